/*-------------------------------------------------------------------------
 *
 * repair.c
 *	  migrate_repair(): the rows of the targets that differ, in line again.
 *
 * A dry run is a validation whose differences are the result.  A run does not
 * go by a list of differences but by buckets, so that there is no limit to how
 * many it mends:
 *
 *	  writer lock and cut -> buckets that differ -> their rows are deleted and
 *	  written (resync.c) -> the same buckets are compared again
 *
 * With live capture all this happens at a cut (cut.c), from which apply does not
 * go on before the transaction ends: it waits for the writer lock (P14).  So
 * what is written is what the source had at exactly the applied position, and
 * the changes after it fit, also those of tables without a key.  Where no cut
 * can be taken (the job is paused, say) rows may be written that are ahead of
 * the position; later changes bring them in line if they have a key, and
 * tables without one are refused.
 *
 * A row that cannot be mapped or written becomes a dead letter.
 *
 * It keeps to the job's limits, is shown by migrate.validating and ended by
 * migrate_cancel like a validation (progress.c).
 *
 * Runs in the session that repairs, in its one transaction, with the rights of
 * the job's owner.  A crash leaves everything as it was.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "validate.h"

PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_repair);

typedef struct Repair
{
	MigrateJob *job;
	MigrateConn *conn;
	MemoryContext conn_cxt;
	ReturnSetInfo *rsinfo;
	ValidateCut cut;			/* of a run: one for all mappings */
} Repair;

/* A row of the result: what is, or would be, done to how many rows. */
static void
put_row(Repair *r, const char *target, const char *action, Datum key, Datum columns, int64 rows)
{
	Datum		values[] = {CStringGetTextDatum(target), CStringGetTextDatum(action), key,
	columns, Int64GetDatum(rows)};
	bool		nulls[] = {false, false, key == 0, columns == 0, false};

	tuplestore_putvalues(r->rsinfo->setResult, r->rsinfo->setDesc, values, nulls);
}

/*
 * What only a comparison at level full has found (values that are equal, but not
 * the same text) takes one to be found again.
 */
static ValidateLevel
repair_level(ValidateTask *task)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(task->mapping_id);
	bool		full;

	SPI_connect();
	migrate_spi_exec("SELECT (level = 'full' AND NOT matched)::int FROM migrate.validation_run"
					 " WHERE mapping_id = $1 AND level <> 'count' ORDER BY validation_id DESC LIMIT 1",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	full = SPI_processed > 0 && migrate_spi_int64(0, 0, 0) != 0;
	SPI_finish();
	return full ? LEVEL_FULL : LEVEL_CHECKSUM;
}

/* ----------------------------------------------------------------
 * dry run
 * ----------------------------------------------------------------
 */

/* The differences of a validation as what would be done about them. */
static void
list_actions(Repair *r, ValidateTask *task, int64 validation_id, ValidateResult *result)
{
	Oid			type = INT8OID;
	Datum		arg = Int64GetDatum(validation_id);

	SPI_connect();
	migrate_spi_exec("SELECT CASE kind WHEN 'missing_in_target' THEN 'insert'"
					 " WHEN 'missing_in_source' THEN 'delete' ELSE 'update' END, key, columns"
					 " FROM migrate.difference WHERE validation_id = $1 ORDER BY difference_id",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	for (int i = 0; i < SPI_processed; i++)
	{
		bool		isnull[2];
		Datum		value[2];

		for (int col = 0; col < 2; col++)
			value[col] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, col + 2,
									   &isnull[col]);
		put_row(r, task->target, migrate_spi_text(i, 0), isnull[0] ? 0 : value[0],
				isnull[1] ? 0 : value[1], 1);
	}
	SPI_finish();
	if (result->at_least || result->mismatches > result->kept)
		put_row(r, task->target, result->at_least ? "not listed, at least" : "not listed", 0, 0,
				result->mismatches - result->kept);
}

/* ----------------------------------------------------------------
 * run
 * ----------------------------------------------------------------
 */

/* What this transaction has written is seen, too. */
static void
see_now(void)
{
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * Compare what was mended again: the source in its old snapshot, the target as
 * it is now.
 */
static void
compare_again(ValidateEnds *ends, ValidateLevel level, const bool *selected, int64 id, ValidateResult *before,
			  ValidateResult *after)
{
	int64		source = before->source_rows - validate_bucket_rows(ends->plan, VALIDATE_SOURCE, selected);
	int64		target = before->target_rows - validate_bucket_rows(ends->plan, VALIDATE_TARGET, selected);

	see_now();
	ends->only = selected;
	validate_compare(ends, level, id, after);
	ends->only = NULL;
	PopActiveSnapshot();
	after->source_rows += source;
	after->target_rows += target;
}

/* The target's rows can be told apart, or stand still. */
static void
refuse_keyless(MigrateJob *job, ValidateEnds *ends)
{
	if (job->live && ends->shape->nkeys == 0 && (!ends->cut->exact || ends->conn == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s has no key, and cannot be repaired while changes wait to be applied",
						ends->map->target_name),
				 errdetail("No common moment of both sides was found: %s.",
						   ends->cut->why ? ends->cut->why : "rows are read by the foreign data wrapper"),
				 errhint("Repair it while the job is streaming, or copy the table again with migrate_recopy.")));
}

/* The words of the record after a repair. */
static char *
repaired_status(ValidateTask *task, MigrateResyncCounts *counts, ValidateResult *after,
				ValidateCut *cut)
{
	return psprintf("repaired: %lld written, %lld deleted, %lld dead letters; %s",
					(long long) counts->rows_written, (long long) counts->rows_deleted,
					(long long) counts->dead_letters,
					validate_describe(task, LEVEL_CHECKSUM, after, cut));
}

static void
put_counts(Repair *r, ValidateTask *task, MigrateResyncCounts *counts, ValidateResult *after)
{
	if (counts->rows_written > 0)
		put_row(r, task->target, "written", 0, 0, counts->rows_written);
	if (counts->rows_deleted > 0)
		put_row(r, task->target, "deleted", 0, 0, counts->rows_deleted);
	if (counts->dead_letters > 0)
		put_row(r, task->target, "dead letter", 0, 0, counts->dead_letters);
	put_row(r, task->target, after->mismatches > 0 ? "differs" : "matched", 0, 0,
			after->mismatches);
}

/* One mapping; nobody else writes to its target. */
static void
repair_mapping(Repair *r, ValidateTask *task)
{
	ValidateEnds ends = {0};
	ValidateResult before,
				after = {0};
	MigrateResyncCounts counts = {0};
	ValidateLevel level = repair_level(task);
	bool	   *selected;
	int64		id;

	validate_progress_target(r->job, task, level);
	validate_open_ends(&ends, r->job, task, &r->cut, &r->conn, r->conn_cxt);
	refuse_keyless(r->job, &ends);
	see_now();
	selected = validate_differing(&ends, level, &before);
	PopActiveSnapshot();
	if (selected == NULL)
	{
		put_row(r, task->target, "matched", 0, 0, 0);
		validate_progress_target_done();
		return;
	}
	validate_progress_first_pass(false);
	id = validate_begin_run(r->job, task->mapping_id, NULL, level);
	validate_mend(&ends, selected, &counts);
	migrate_fault("repair-mended");
	compare_again(&ends, level, selected, id, &before, &after);
	validate_end_run(r->job, task->target, level, id, &after, &r->cut,
					 repaired_status(task, &counts, &after, &r->cut), NULL);
	migrate_event(r->job->job_id, after.mismatches > after.explained ? "warning" : "info", "repair",
				  "%s: %lld rows written, %lld deleted, %lld dead letters; %lld mismatches are left",
				  task->target, (long long) counts.rows_written, (long long) counts.rows_deleted,
				  (long long) counts.dead_letters, (long long) after.mismatches);
	put_counts(r, task, &counts, &after);
	validate_progress_target_done();
}

/* Only what is copied: before that, rows are missing by nature. */
static void
refuse_not_copied(MigrateJob *job, ValidateTask *task)
{
	if (!task->copied)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the copy of %s is not finished", task->target),
				 errhint("Wait for it with migrate_wait('%s', 'copied').", job->name)));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("rows are repaired in a READ COMMITTED transaction only")));
}

/* Both sides of all mappings at one cut: apply does not move until we end. */
static void
begin_writing(Repair *r, List *tasks)
{
	MigrateSource any = {.transport = 'c'};
	StringInfoData tables;
	ListCell   *lc;

	initStringInfo(&tables);
	foreach(lc, tasks)
	{
		ValidateTask *task = lfirst(lc);
		MigrateSource *src;

		refuse_not_copied(r->job, task);
		src = migrate_source_load(task->source_id);
		if (src->transport == 'c')
			appendStringInfo(&tables, "%s%s", tables.len > 0 ? ", " : "", validate_lock_name(src));
	}
	if (migrate_server_is_postgres(r->job->server))
		validate_need_connection(r->job, &r->conn, r->conn_cxt);
	validate_cut_begin_writing(r->job, &any, tables.len > 0 ? tables.data : NULL, r->conn, &r->cut);
	/* it was looked at before; now it stays so */
	migrate_check_source_leads(r->job, "repair");
}

static void
end_writing(Repair *r)
{
	if (r->conn)
		migrate_source_wait_durable(r->conn, &r->cut.txn);	/* P4 */
	validate_cut_end(r->conn, &r->cut);
}

/* All mappings, each in a memory context that is reset. */
static void
repair_tasks(Repair *r, List *tasks, bool dry_run)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext mcxt = AllocSetContextCreate(old, "migrate repair", ALLOCSET_DEFAULT_SIZES);
	ListCell   *lc;

	MemoryContextSwitchTo(mcxt);
	migrate_check_source_leads(r->job, "repair");
	validate_refuse_drift(r->job, tasks, &r->conn, r->conn_cxt);
	MemoryContextSwitchTo(old);
	if (!dry_run)
	{
		validate_progress_phase("cut", NULL, false);
		begin_writing(r, tasks);
	}
	foreach(lc, tasks)
	{
		ValidateTask *task = lfirst(lc);

		MemoryContextSwitchTo(mcxt);
		if (dry_run)
		{
			ValidateResult result;
			int64		id = validate_one(r->job, task, repair_level(task), &r->conn,
										  r->conn_cxt, NULL, &result);

			list_actions(r, task, id, &result);
		}
		else
			repair_mapping(r, task);
		MemoryContextSwitchTo(old);
		MemoryContextReset(mcxt);
	}
	if (!dry_run)
		end_writing(r);
	MemoryContextDelete(mcxt);
}

/* It is seen, paced and cancelled as a validation is (progress.c). */
static void
repair_job(Repair *r, List *tasks, bool dry_run)
{
	MemoryContext mcxt = CurrentMemoryContext;
	bool		cancelled = false;

	validate_progress_begin(r->job, tasks, false, LEVEL_CHECKSUM);
	PG_TRY();
	{
		repair_tasks(r, tasks, dry_run);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		cancelled = validate_progress_cancelled();
		validate_progress_end();
		if (r->conn)
			migrate_disconnect(r->conn);
		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		if (cancelled && edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
			edata->message = psprintf("the repair was cancelled with job \"%s\"", r->job->name);
		ReThrowError(edata);
	}
	PG_END_TRY();
	validate_progress_end();
	if (r->conn)
		migrate_disconnect(r->conn);
}

/*
 * migrate_repair(job text, target text, dry_run boolean): see
 * sql/50_validate.sql.
 */
Datum
migrate_repair(PG_FUNCTION_ARGS)
{
	Repair		r = {0};
	MigrateAsOwner as;
	List	   *tasks;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job and dry_run must not be null")));
	InitMaterializedSRF(fcinfo, 0);
	r.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	r.job = migrate_job_load_by_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	r.conn_cxt = CurrentMemoryContext;
	tasks = validate_tasks(r.job, PG_ARGISNULL(1) ? NULL :
						   text_to_cstring(PG_GETARG_TEXT_PP(1)));

	migrate_as_owner(r.job->owner, &as);
	repair_job(&r, tasks, PG_GETARG_BOOL(2));
	migrate_as_caller(&as);
	return (Datum) 0;
}
