/*-------------------------------------------------------------------------
 *
 * apply_test.c
 *	  Sets of changes by hand, for the tests.
 *
 * No object of the extension calls this: a test declares the function itself,
 * which takes a superuser.  It writes with the rights of the job's owner, under
 * the writer lock, what a change of the source would write.
 *
 * Process: the caller's session, in its transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/apply_set.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_rusage.h"

#include "refetch.h"

PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_test_apply);

typedef struct TestCall
{
	MigrateJob *job;
	MigrateSource *src;
	MigrateConn *conn;
	int			connects;
} TestCall;

static MigrateSource *
source_by_name(MigrateJob *job, Datum name)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job->job_id), name};

	migrate_spi_exec("SELECT source_id FROM migrate.source_table"
					 " WHERE job_id = $1 AND source = $2",
					 2, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed == 0)
		elog(ERROR, "no such source table");
	return migrate_source_load(migrate_spi_int64(0, 0, 0));
}

/* The objects of a jsonb array as rows of the source. */
static MigrateBatch *
rows_from_json(MigrateSource *src, const char *json)
{
	MigrateBatch *batch = migrate_batch_create(src);
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(json)};
	char	  **rows;
	uint64		n;

	migrate_spi_exec("SELECT e::text FROM jsonb_array_elements($1::jsonb) e",
					 1, types, values, NULL, SPI_OK_SELECT);
	n = SPI_processed;
	rows = palloc(sizeof(char *) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
		rows[i] = migrate_spi_text(i, 0);
	for (uint64 i = 0; i < n; i++)
		refetch_stored(src, rows[i], batch);
	return batch;
}

/* {"0": ["column", ..]}: columns that are not known, by row */
static Bitmapset **
unknown_from_json(MigrateSource *src, const char *json, int64 nrows)
{
	Bitmapset **unknown = palloc0(sizeof(Bitmapset *) * Max(nrows, 1));
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(json)};

	migrate_spi_exec("SELECT e.key::int8, c FROM jsonb_each($1::jsonb) e,"
					 " jsonb_array_elements_text(e.value) c",
					 1, types, values, NULL, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
		for (int c = 0; c < src->ncolumns; c++)
			if (strcmp(src->columns[c].name, migrate_spi_text(i, 1)) == 0)
			{
				int64		row = migrate_spi_int64(i, 0, 0);

				unknown[row] = bms_add_member(unknown[row], c);
			}
	return unknown;
}

static MigrateConn *
test_connect(void *arg)
{
	TestCall   *call = arg;

	call->connects++;
	if (call->conn == NULL)
		call->conn = migrate_connect(call->src->server, call->job->owner, call->job->name,
									 "test", call->job->connect_timeout_s);
	return call->conn;
}

/*
 * migrate_test_apply(job, source, images jsonb, gone jsonb, unknown jsonb,
 * truncate text): everything but job and source may be null.  truncate: a
 * partition on the source, or empty for the whole table.
 */
Datum
migrate_test_apply(PG_FUNCTION_ARGS)
{
	TestCall	call = {0};
	MigrateApplier *applier;
	MigrateApplyCounts counts = {0};
	MigrateAsOwner as;
	char	   *arg[5] = {0};
	bool		truncated = false;
	char	   *ways = "";
	ListCell   *lc;
	MemoryContext mcxt = CurrentMemoryContext;
	char	   *result;
	PGRUsage	usage;

	for (int i = 2; i < 5; i++)
		if (!PG_ARGISNULL(i))
			arg[i] = DatumGetCString(DirectFunctionCall1(jsonb_out, PG_GETARG_DATUM(i)));
	call.job = migrate_job_load_by_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	migrate_as_owner(call.job->owner, &as);
	SPI_connect();
	call.src = source_by_name(call.job, PG_GETARG_DATUM(1));
	migrate_writer_lock(call.job->job_id);
	applier = migrate_applier_open(call.job, call.src);
	foreach(lc, applier->targets)
		ways = psprintf("%s%s%s", ways, ways[0] ? "," : "",
						((ApplyTarget *) lfirst(lc))->writer->way->name);
	if (!PG_ARGISNULL(5))
	{
		char	   *leaf = text_to_cstring(PG_GETARG_TEXT_PP(5));

		truncated = migrate_apply_truncate(applier, leaf[0] ? leaf : NULL);
	}
	if (call.src->nkeys > 0)
	{
		MigrateApplySet set = {.src = call.src};

		set.gone = arg[3] ? rows_from_json(call.src, arg[3]) : NULL;
		set.images = arg[2] ? rows_from_json(call.src, arg[2]) : NULL;
		if (set.images && arg[4])
			set.unknown = unknown_from_json(call.src, arg[4], set.images->nrows);
		pg_rusage_init(&usage);
		migrate_apply_gone(applier, &set, &counts);
		migrate_apply_images(applier, &set, test_connect, &call, &counts);
		elog(DEBUG1, "applied: %s", pg_rusage_show(&usage));
	}
	else
	{
		MigrateApplyBag bag = {.src = call.src};

		bag.added = rows_from_json(call.src, arg[2] ? arg[2] : "[]");
		bag.removed = rows_from_json(call.src, arg[3] ? arg[3] : "[]");
		migrate_apply_bag(applier, &bag, &counts);
	}
	result = MemoryContextStrdup(mcxt, psprintf("%s: %lld up, %lld del, %lld dead, %lld superseded%s%s",
												ways, (long long) counts.upserts,
												(long long) counts.deletes, (long long) counts.dead,
												(long long) counts.superseded,
												call.connects > 0 ? ", fetched" : "",
												truncated ? ", truncated" : ""));
	migrate_applier_close(applier);
	SPI_finish();
	migrate_as_caller(&as);
	PG_RETURN_TEXT_P(cstring_to_text(result));
}
