/*-------------------------------------------------------------------------
 *
 * dead_letter.c
 *	  Whose fault is an error, and the record of rows that failed.
 *
 * Runs wherever rows are loaded.  A letter is inserted in the caller's
 * transaction and commits with the chunk that it belongs to; a crash before
 * that takes both.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

/*
 * Is it the row's fault?  Else it is the system's or the definition's, would
 * hit any other row as well, and must never make a dead letter.  Classes are
 * those of the manual's appendix A.
 */
bool
migrate_error_is_of_row(int sqlerrcode)
{
	static const char *const classes[] = {
		"08",					/* connection */
		"0A",					/* not supported */
		"25",					/* transaction state */
		"26",					/* statement name */
		"28",					/* authorization */
		"34",					/* cursor name */
		"3D",					/* database name */
		"3F",					/* schema name */
		"40",					/* deadlock, serialization */
		"42",					/* syntax, missing objects, privileges */
		"53",					/* resources */
		"55",					/* object state */
		"57",					/* operator intervention, cancel */
		"58",					/* system error */
		"F0",					/* configuration file */
		"HV",					/* foreign data wrapper */
		"XX"					/* internal, corruption */
	};
	const char *sqlstate = unpack_sql_state(sqlerrcode);

	if (sqlerrcode == ERRCODE_STATEMENT_TOO_COMPLEX)
		return false;
	for (int i = 0; i < lengthof(classes); i++)
		if (strncmp(sqlstate, classes[i], 2) == 0)
			return false;
	return true;
}

/*
 * Text that can be stored whatever bytes it has: a message may quote a value
 * that is not valid in this encoding.
 */
static Datum
storable_text(const char *s)
{
	StringInfoData buf;

	if (pg_verify_mbstr(GetDatabaseEncoding(), s, strlen(s), true))
		return CStringGetTextDatum(s);
	initStringInfo(&buf);
	for (; *s; s++)
	{
		if (IS_HIGHBIT_SET(*s))
			appendStringInfo(&buf, "\\x%02x", (unsigned char) *s);
		else
			appendStringInfoChar(&buf, *s);
	}
	return CStringGetTextDatum(buf.data);
}

static Datum
text_or_null(const char *s, char *isnull)
{
	*isnull = s ? ' ' : 'n';
	return s ? storable_text(s) : (Datum) 0;
}

/*
 * Record a row.  key, row and raw are jsonb in text form or NULL; edata the
 * error as it was caught.
 */
void
migrate_dead_letter_insert(MigrateLoadContext *ctx, int mapping_id,
						   const char *stage, const char *key, const char *row,
						   const char *raw, ErrorData *edata, const char *version)
{
	Oid			types[] = {INT4OID, INT4OID, INT8OID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1] = "             ";

	values[0] = Int32GetDatum(ctx->job->job_id);
	values[1] = Int32GetDatum(mapping_id);
	values[2] = Int64GetDatum(ctx->chunk_id);
	if (ctx->chunk_id == 0)
		nulls[2] = 'n';
	values[3] = CStringGetTextDatum(stage);
	values[4] = text_or_null(key, &nulls[4]);
	values[5] = text_or_null(row, &nulls[5]);
	values[6] = text_or_null(raw, &nulls[6]);
	values[7] = CStringGetTextDatum(unpack_sql_state(edata->sqlerrcode));
	values[8] = storable_text(edata->message ? edata->message : "");
	values[9] = text_or_null(edata->detail, &nulls[9]);
	values[10] = text_or_null(edata->hint, &nulls[10]);
	values[11] = text_or_null(edata->context, &nulls[11]);
	values[12] = text_or_null(version, &nulls[12]);

	SPI_connect();
	migrate_spi_exec("INSERT INTO migrate.dead_letter (job_id, mapping_id, chunk_id, "
					 "stage, key, source_row, raw, sqlstate, message, detail, hint, "
					 "context, mapping_version) "
					 "VALUES ($1, $2, $3, $4, $5::pg_catalog.jsonb, "
					 "$6::pg_catalog.jsonb, $7::pg_catalog.jsonb, $8, $9, $10, $11, $12, $13)",
					 lengthof(types), types, values, nulls, SPI_OK_INSERT);
	SPI_finish();
}
