/*-------------------------------------------------------------------------
 *
 * spool_show.c
 *	  migrate._spool_messages(): the spool as it is, for people and tests.
 *
 * Runs in a backend, with the rights of the caller; changes nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/stream.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(migrate_spool_messages);
PGDLLEXPORT Datum migrate_spool_messages(PG_FUNCTION_ARGS);

/*
 * migrate._spool_messages(stream_id int, seq bigint)
 *	  RETURNS TABLE (seq bigint, kind "char", message bytea)
 */
Datum
migrate_spool_messages(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MigrateSpoolReader *reader;
	const char *data;
	int			len;

	InitMaterializedSRF(fcinfo, 0);
	reader = migrate_spool_open(PG_GETARG_INT32(0), PG_GETARG_INT64(1));
	while (migrate_spool_next(reader, &data, &len))
	{
		Datum		values[3];
		bool		nulls[3] = {false};
		bytea	   *message = palloc(VARHDRSZ + len);

		CHECK_FOR_INTERRUPTS();
		SET_VARSIZE(message, VARHDRSZ + len);
		memcpy(VARDATA(message), data, len);
		values[0] = Int64GetDatum(migrate_spool_seq(reader));
		values[1] = CharGetDatum(data[0]);
		values[2] = PointerGetDatum(message);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		pfree(message);
	}
	migrate_spool_close(reader);
	return (Datum) 0;
}
