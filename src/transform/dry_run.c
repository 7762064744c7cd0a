/*-------------------------------------------------------------------------
 *
 * dry_run.c
 *	  migrate_dry_run(): a mapping on some real source rows, nothing kept.
 *
 * Each sampled row goes through the mapping, to show what comes out, and then
 * through the real writer, so that the target's constraints and triggers have
 * their say; all in a subtransaction that is rolled back.  What remains is
 * what no rollback undoes: sequence values that were drawn.
 *
 * Runs in the caller's session with the rights of the job's owner.  Takes the
 * locks of writing a row, until the end of the caller's transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "load/refetch.h"

PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_dry_run);

/* What one source row came to. */
typedef struct DryRun
{
	MigrateJob *job;
	MigrateMapping *map;
	MigrateSource *src;
	TupleDesc	mapped;			/* the mapping's columns only, blessed */
	ReturnSetInfo *rsinfo;
	MemoryContext mcxt;			/* of one row */
	int			row_no;
	char	   *source_row;		/* jsonb text */
	List	   *rows;			/* of char *: jsonb text of the mapped rows */
	char	   *sqlstate;
	char	   *error;
} DryRun;

/* The only mapping of a job that fills a target (of several, the first). */
static int
find_mapping(MigrateJob *job, Datum target)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job->job_id), target};
	int			id;

	SPI_connect();
	migrate_spi_exec("SELECT m.mapping_id FROM migrate.mapping m WHERE m.job_id = $1"
					 " AND (m.target = $2 OR m.target_oid = to_regclass($2))"
					 " ORDER BY 1",
					 2, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" has no target table \"%s\"", job->name,
						TextDatumGetCString(target)),
				 errhint("Give it as schema.table; migrate.mapping lists the targets of each job.")));
	id = migrate_spi_int64(0, 0, 0);
	SPI_finish();
	return id;
}

/* MigrateRowFn: keep a mapped row as json */
static void
keep_mapped(TupleTableSlot *slot, void *arg)
{
	DryRun	   *run = arg;
	MemoryContext old = MemoryContextSwitchTo(run->mcxt);
	HeapTuple	tup;

	slot_getallattrs(slot);
	tup = heap_form_tuple(run->mapped, slot->tts_values, slot->tts_isnull);
	run->rows = lappend(run->rows,
						TextDatumGetCString(OidFunctionCall1(F_ROW_TO_JSON_RECORD,
															 HeapTupleGetDatum(tup))));
	MemoryContextSwitchTo(old);
}

/* The dead letter that the writer left says why it refused the row. */
static void
ask_why(DryRun *run)
{
	RefetchFault fault;

	if (!refetch_newest_fault(run->map->mapping_id, &fault))
		elog(ERROR, "a failed batch left no dead letter");
	run->sqlstate = MemoryContextStrdup(run->mcxt, fault.sqlstate);
	run->error = MemoryContextStrdup(run->mcxt, fault.message);
}

/* Map and write a batch of one row; to be rolled back. */
static void
map_and_write(DryRun *run, MigrateBatch *batch)
{
	MigrateLoadContext ctx = {.job = run->job,.chunk_id = 0,.stage = "write"};
	MigrateCounts counts = {0};
	MigrateWriter *writer;

	migrate_mapping_run(run->map, batch, keep_mapped, run);
	writer = migrate_writer_open(run->map, run->src, false);
	migrate_load_batch(&ctx, writer, batch, &counts);
	migrate_writer_close(writer);
	if (counts.dead > 0)
		ask_why(run);
}

/*
 * Errors that say nothing about the row, the mapping or the target: a dry run
 * shows all others, of rights or a missing column for example.
 */
static bool
concerns_nobody(int sqlerrcode)
{
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);

	return category == ERRCODE_OPERATOR_INTERVENTION ||
		category == ERRCODE_INSUFFICIENT_RESOURCES ||
		category == ERRCODE_SYSTEM_ERROR ||
		category == ERRCODE_INTERNAL_ERROR;
}

/* map_and_write, undone; the outcome is in *run. */
static void
try_row(DryRun *run, MigrateBatch *batch)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	run->rows = NIL;
	run->sqlstate = NULL;
	run->error = NULL;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		map_and_write(run, batch);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(run->mcxt);
		edata = CopyErrorData();
		if (concerns_nobody(edata->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
		run->sqlstate = pstrdup(unpack_sql_state(edata->sqlerrcode));
		run->error = edata->message;
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
}

/* One row of the result. */
static void
emit(DryRun *run, const char *target_row)
{
	Datum		values[5];
	bool		nulls[5] = {false, true, true, true, true};
	const char *error = run->error;

	values[0] = Int32GetDatum(run->row_no);
	if (run->source_row)
	{
		values[1] = DirectFunctionCall1(jsonb_in, CStringGetDatum(run->source_row));
		nulls[1] = false;
	}
	if (target_row)
	{
		values[2] = DirectFunctionCall1(jsonb_in, CStringGetDatum(target_row));
		nulls[2] = false;
	}
	if (run->sqlstate)
	{
		values[3] = CStringGetTextDatum(run->sqlstate);
		nulls[3] = false;
	}
	if (error == NULL && target_row == NULL)
		error = "filtered";
	if (error)
	{
		values[4] = CStringGetTextDatum(error);
		nulls[4] = false;
	}
	tuplestore_putvalues(run->rsinfo->setResult, run->rsinfo->setDesc, values, nulls);
}

static void
emit_all(DryRun *run)
{
	ListCell   *lc;

	if (run->rows == NIL)
		emit(run, NULL);
	foreach(lc, run->rows)
		emit(run, lfirst(lc));
}

/* The mapping's columns without keys and ordinal, for json. */
static TupleDesc
mapped_desc(MigrateMapping *map)
{
	TupleDesc	desc = CreateTemplateTupleDesc(map->ncolumns);

	for (int i = 0; i < map->ncolumns; i++)
	{
		Form_pg_attribute att = TupleDescAttr(map->outdesc, i);

		TupleDescInitEntry(desc, i + 1, map->columns[i], att->atttypid,
						   att->atttypmod, 0);
		TupleDescInitEntryCollation(desc, i + 1, att->attcollation);
	}
	return BlessTupleDesc(desc);
}

/* Sample the source and try each row. */
static void
run_sample(DryRun *run, int sample_rows)
{
	char	   *sql;
	uint64		n;
	SPITupleTable *sample;

	SPI_connect();
	sql = psprintf("SELECT %s FROM %s LIMIT %d", refetch_column_list(run->src, ""),
				   refetch_source(run->job, run->src, sample_rows), sample_rows);
	if (SPI_execute(sql, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "reading source rows failed: %s", sql);
	n = SPI_processed;
	sample = SPI_tuptable;
	run->mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate dry run row",
									  ALLOCSET_DEFAULT_SIZES);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(run->mcxt);
		MigrateBatch *batch = migrate_batch_create(run->src);
		char	   *key;

		CHECK_FOR_INTERRUPTS();
		SPI_tuptable = sample;
		refetch_add(batch, i, 0);
		run->row_no = i + 1;
		migrate_batch_row_json(batch, 0, &run->source_row, &key);
		try_row(run, batch);
		emit_all(run);
		migrate_batch_free(batch);
		MemoryContextSwitchTo(old);
		MemoryContextReset(run->mcxt);
	}
	SPI_finish();
}

/*
 * migrate_dry_run(job text, target text, sample_rows int): see
 * sql/55_dead_letters.sql.
 */
Datum
migrate_dry_run(PG_FUNCTION_ARGS)
{
	DryRun		run = {0};
	MigrateAsOwner as;
	int			sample_rows;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job, target and sample_rows must not be null")));
	sample_rows = PG_GETARG_INT32(2);
	if (sample_rows < 1 || sample_rows > 10000)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("sample_rows must be between 1 and 10000, not %d", sample_rows)));
	InitMaterializedSRF(fcinfo, 0);
	run.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	run.job = migrate_job_load_by_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	run.map = migrate_mapping_load(find_mapping(run.job, PG_GETARG_DATUM(1)));
	run.src = migrate_source_load(run.map->source_id);

	migrate_as_owner(run.job->owner, &as);
	migrate_mapping_compile(run.map, run.src);
	run.mapped = mapped_desc(run.map);
	run_sample(&run, sample_rows);
	migrate_as_caller(&as);
	return (Datum) 0;
}
