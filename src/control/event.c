/*-------------------------------------------------------------------------
 *
 * event.c
 *	  Events and states of a job, written from C.
 *
 * Runs in any process, within the current transaction: what is said here is
 * kept only if that commits.  Never in a transaction that has failed.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "control/control.h"

/* "level" is info, warning, error or alert. */
void
migrate_event(int job_id, const char *level, const char *kind, const char *fmt,...)
{
	StringInfoData message;
	Oid			types[4] = {INT4OID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[4];

	initStringInfo(&message);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&message, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&message, needed);
	}
	values[0] = Int32GetDatum(job_id);
	values[1] = CStringGetTextDatum(level);
	values[2] = CStringGetTextDatum(kind);
	values[3] = CStringGetTextDatum(message.data);
	migrate_spi_begin();
	migrate_spi_exec("SELECT migrate._event($1, $2, $3, $4)",
					 4, types, values, NULL, SPI_OK_SELECT);
	migrate_spi_end();
	pfree(message.data);
}

/* An illegal change is an error (migrate.transition); reason may be NULL. */
void
migrate_set_state(int job_id, const char *state, const char *reason)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3];

	values[0] = Int32GetDatum(job_id);
	values[1] = CStringGetTextDatum(state);
	values[2] = reason ? CStringGetTextDatum(reason) : (Datum) 0;
	migrate_spi_begin();
	migrate_spi_exec("SELECT migrate._set_state($1, $2, $3)",
					 3, types, values, reason ? "   " : "  n", SPI_OK_SELECT);
	migrate_spi_end();
}
