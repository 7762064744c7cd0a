/*-------------------------------------------------------------------------
 *
 * validate.c
 *	  migrate_validate(): a row a mapping and check, and the record of the run.
 *
 * The comparison runs with the rights of the job's owner, whoever of his role
 * (or superuser) calls it: mapping code is his.  One connection to the source
 * serves all mappings; each has a source transaction and, where the job
 * follows its source live, a cut of its own (cut.c), so that no snapshot is
 * held longer than one table takes.
 *
 * Writes migrate.validation_run, migrate.difference and an event, all in the
 * caller's transaction: a crash leaves nothing behind, a cancelled validation
 * no half of a result.
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
#include "utils/pg_lsn.h"
#include "utils/resowner.h"

#include "validate.h"

PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_validate);

const char *const validate_level_names[] = {"count", "checksum", "full", "check", "changed"};

static ValidateLevel
parse_level(const char *name)
{
	for (int i = 0; i <= LEVEL_FULL; i++)
		if (strcmp(name, validate_level_names[i]) == 0)
			return (ValidateLevel) i;
	if (strcmp(name, validate_level_names[LEVEL_CHANGED]) == 0)
		return LEVEL_CHANGED;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown validation level \"%s\"", name),
			 errhint("Levels are count, checksum, full and changed.")));
}

/*
 * Rows of both sides that a mapping "m" of a source "s" has: those that were
 * copied, and grown since like the target has by its last validation; else the
 * estimate that the copy was planned with.
 */
#define ESTIMATES \
	" coalesce(n.rows_read * coalesce(last.target_rows / nullif(n.rows_mapped, 0), 1)," \
	"  s.estimated_rows, 0)::int8," \
	" coalesce(last.target_rows, n.rows_mapped, s.estimated_rows, 0)::int8"
#define ESTIMATES_FROM \
	" LEFT JOIN LATERAL (SELECT sum(k.rows_read) AS rows_read, sum(k.rows_mapped) AS rows_mapped" \
	"  FROM migrate.chunk c JOIN migrate.chunk_mapping k USING (chunk_id)" \
	"  WHERE c.source_id = s.source_id AND c.plan_no = s.plan_no" \
	"  AND k.mapping_id = m.mapping_id) n ON true" \
	" LEFT JOIN LATERAL (SELECT v.target_rows FROM migrate.validation_run v" \
	"  WHERE v.mapping_id = m.mapping_id AND v.target_rows IS NOT NULL" \
	"  ORDER BY v.validation_id DESC LIMIT 1) last ON true"

/*
 * The mappings of a job, or those that fill one target (of ValidateTask).
 */
List *
validate_tasks(MigrateJob *job, const char *target)
{
	List	   *tasks = NIL;
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job->job_id),
	target ? CStringGetTextDatum(target) : (Datum) 0};

	SPI_connect();
	migrate_spi_exec("SELECT m.mapping_id, m.target, s.state IN ('copied', 'done'),"
					 " (SELECT count(*) FROM migrate.dead_letter d"
					 "  WHERE d.mapping_id = m.mapping_id AND d.state = 'open'),"
					 " m.source_id, EXISTS (SELECT FROM migrate.leaf l"
					 "  WHERE l.source_id = m.source_id AND l.fingerprint IS NOT NULL),"
					 ESTIMATES
					 " FROM migrate.mapping m JOIN migrate.source_table s USING (source_id)"
					 ESTIMATES_FROM
					 " WHERE m.job_id = $1 AND ($2 IS NULL OR m.target = $2"
					 "  OR m.target_oid = to_regclass($2)) ORDER BY m.target, m.mapping_id",
					 2, types, values, target ? "  " : " n", SPI_OK_SELECT);
	MemoryContextSwitchTo(mcxt);
	for (int i = 0; i < SPI_processed; i++)
	{
		ValidateTask *task = palloc0(sizeof(ValidateTask));

		task->mapping_id = migrate_spi_int64(i, 0, 0);
		task->target = migrate_spi_text(i, 1);
		task->copied = strcmp(migrate_spi_text(i, 2), "t") == 0;
		task->dead = migrate_spi_int64(i, 3, 0);
		task->source_id = migrate_spi_int64(i, 4, 0);
		task->watched = strcmp(migrate_spi_text(i, 5), "t") == 0;
		task->estimate[VALIDATE_SOURCE] = migrate_spi_int64(i, 6, 0);
		task->estimate[VALIDATE_TARGET] = migrate_spi_int64(i, 7, 0);
		tasks = lappend(tasks, task);
	}
	SPI_finish();
	if (target && tasks == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" has no target table \"%s\"", job->name, target),
				 errhint("Give it as schema.table; migrate.mapping lists the targets of each job.")));
	return tasks;
}

/* ----------------------------------------------------------------
 * the record of a run
 * ----------------------------------------------------------------
 */

/* Open it, of a mapping or (mapping_id 0) of a check; its id. */
int64
validate_begin_run(MigrateJob *job, int mapping_id, const char *check, ValidateLevel level)
{
	Oid			types[] = {INT4OID, INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job->job_id), Int32GetDatum(mapping_id),
		CStringGetTextDatum(validate_level_names[level]),
	check ? CStringGetTextDatum(check) : (Datum) 0};
	int64		id;

	SPI_connect();
	migrate_spi_exec("INSERT INTO migrate.validation_run (job_id, mapping_id, level, check_name, status)"
					 " VALUES ($1, nullif($2, 0), $3, $4, 'running') RETURNING validation_id",
					 4, types, values, check ? "    " : "   n", SPI_OK_INSERT_RETURNING);
	id = migrate_spi_int64(0, 0, 0);
	SPI_finish();
	return id;
}

/*
 * What a result comes to, in words.  An explained difference is one whose key
 * has an open dead letter.
 */
char *
validate_describe(ValidateTask *task, ValidateLevel level, ValidateResult *r, ValidateCut *cut)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (r->mismatches == 0)
		appendStringInfoString(&buf, "matched");
	else
		appendStringInfoString(&buf, "differs");
	if (r->mismatches == 0)
		;
	else if (level == LEVEL_COUNT)
	{
		if (task->dead > 0 && r->source_rows - r->target_rows == task->dead)
			appendStringInfoString(&buf, ": as many rows as there are open dead letters");
	}
	else if (r->explained == r->mismatches && !r->at_least)
		appendStringInfoString(&buf, ": explained by dead letters");
	else if (r->kept < r->mismatches || r->at_least)
		appendStringInfo(&buf, ": %lld of %s%lld kept, the limit is %d",
						 (long long) r->kept, r->at_least ? "at least " : "",
						 (long long) r->mismatches, VALIDATE_CAP);
	else if (r->explained > 0)
		appendStringInfo(&buf, ": %lld of %lld explained by dead letters",
						 (long long) r->explained, (long long) r->mismatches);
	if (!task->copied && r->mismatches > 0)
		appendStringInfoString(&buf, "; the copy is not finished");
	if (r->note)
		appendStringInfo(&buf, "; %s", r->note);
	if (cut->why)
		appendStringInfo(&buf, "; not at one moment: %s", cut->why);
	return buf.data;
}

/*
 * Complete the record, raise the alert when rows differ, and add the row of
 * the function's result.
 */
void
validate_end_run(MigrateJob *job, const char *target, ValidateLevel level, int64 id,
				 ValidateResult *r, ValidateCut *cut, char *status, ReturnSetInfo *rsinfo)
{
	bool		matched = r->mismatches == 0;
	Oid			types[] = {INT8OID, INT8OID, INT8OID, BOOLOID, INT8OID, TEXTOID, TEXTOID, PG_LSNOID};
	Datum		values[] = {Int64GetDatum(id), Int64GetDatum(r->source_rows),
		Int64GetDatum(r->target_rows), BoolGetDatum(matched),
		Int64GetDatum(r->mismatches), CStringGetTextDatum(status),
		r->digest ? CStringGetTextDatum(r->digest) : (Datum) 0,
	LSNGetDatum(cut->lsn)};
	char		nulls[] = {' ', ' ', ' ', ' ', ' ', ' ', r->digest ? ' ' : 'n',
	cut->exact ? ' ' : 'n', 0};
	Datum		result[8];
	bool		isnull[8] = {0};
	bool		null;

	SPI_connect();
	migrate_spi_exec("UPDATE migrate.validation_run SET source_rows = $2, target_rows = $3,"
					 " matched = $4, mismatches = $5, status = $6, digest = $7, source_lsn = $8,"
					 " duration = clock_timestamp() - started_at"
					 " WHERE validation_id = $1 RETURNING duration",
					 8, types, values, nulls, SPI_OK_UPDATE_RETURNING);
	result[0] = CStringGetTextDatum(target);
	result[1] = CStringGetTextDatum(validate_level_names[level]);
	for (int i = 1; i <= 5; i++)
		result[i + 1] = values[i];
	result[7] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null);
	if (rsinfo)
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, result, isnull);
	SPI_finish();

	if (!matched)
		migrate_event(job->job_id, "alert", "validation",
					  "%s does not match its source: %lld mismatches at level %s (%s)",
					  target, (long long) r->mismatches, validate_level_names[level], status);
}

/* ----------------------------------------------------------------
 * one mapping
 * ----------------------------------------------------------------
 */

/* The connection of all mappings; made, in conn_cxt, when it is needed first. */
void
validate_need_connection(MigrateJob *job, MigrateConn **conn, MemoryContext conn_cxt)
{
	MemoryContext old;

	if (*conn)
		return;
	old = MemoryContextSwitchTo(conn_cxt);
	*conn = migrate_connect(job->server, job->owner, job->name, "validate",
							job->connect_timeout_s);
	MemoryContextSwitchTo(old);
}

/*
 * P2: sources that are not what was copied cannot be compared; the error names
 * them.
 */
void
validate_refuse_drift(MigrateJob *job, List *tasks, MigrateConn **conn, MemoryContext conn_cxt)
{
	List	   *ids = NIL;
	ListCell   *lc;

	foreach(lc, tasks)
	{
		ValidateTask *task = lfirst(lc);

		if (task->watched)
			ids = list_append_unique_int(ids, task->source_id);
	}
	if (ids == NIL)
		return;
	validate_need_connection(job, conn, conn_cxt);
	migrate_drift_refuse(job, ids, *conn);
}

/* Load and compile both ends of a mapping. */
void
validate_open_ends(ValidateEnds *ends, MigrateJob *job, ValidateTask *task, ValidateCut *cut,
				   MigrateConn **conn, MemoryContext conn_cxt)
{
	ends->job = job;
	ends->cut = cut;
	memcpy(ends->estimate, task->estimate, sizeof(ends->estimate));
	ends->map = migrate_mapping_load(task->mapping_id);
	ends->src = migrate_source_load(ends->map->source_id);
	/* before the job has prepared: the way that works everywhere */
	if (ends->src->transport != 'c')
		ends->src->transport = 'f';
	migrate_mapping_compile(ends->map, ends->src);
	ends->shape = validate_shape(ends->map);
	if (ends->src->transport == 'c')
	{
		validate_need_connection(job, conn, conn_cxt);
		ends->conn = *conn;
	}
}

/*
 * What is read here is read in a subtransaction that is rolled back: so the
 * locks of reading are gone before apply is waited for again, which may need
 * stronger ones for a TRUNCATE.
 */
static void
begin_reading(ValidateEnds *ends)
{
	ends->mcxt = CurrentMemoryContext;
	ends->owner = CurrentResourceOwner;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(ends->mcxt);
}

static void
end_reading(ValidateEnds *ends)
{
	validate_cut_end(ends->conn, ends->cut);
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(ends->mcxt);
	CurrentResourceOwner = ends->owner;
}

static void
cut_for(ValidateEnds *ends)
{
	validate_progress_phase("cut", NULL, false);
	validate_cut_begin(ends->job, ends->src, ends->conn ? validate_lock_name(ends->src) : NULL,
					   ends->conn, ends->cut);
}

/*
 * A later cut, for what differed at the first; all else was compared at that,
 * whose position is the one to be recorded.
 */
static void
renew_cut(ValidateEnds *ends)
{
	MemoryContext mcxt = CurrentMemoryContext;
	XLogRecPtr	first = ends->cut->lsn;

	end_reading(ends);
	begin_reading(ends);
	migrate_mapping_compile(ends->map, ends->src);
	cut_for(ends);
	ends->cut->lsn = Min(first, ends->cut->lsn);
	MemoryContextSwitchTo(mcxt);
}

/* Read both sides and compare; ends in no subtransaction. */
static void
read_both(ValidateEnds *ends, MigrateJob *job, ValidateTask *task, ValidateLevel level,
		  int64 id, ValidateChanged *changed, ValidateCut *cut, MigrateConn **conn,
		  MemoryContext conn_cxt, ValidateResult *result)
{
	TimestampTz begin;

	begin_reading(ends);
	validate_open_ends(ends, job, task, cut, conn, conn_cxt);
	cut_for(ends);
	if (cut->exact)
		ends->renew = renew_cut;
	ends->first_lsn = cut->exact ? cut->lsn : InvalidXLogRecPtr;
	ends->first_seq = cut->seq;
	ends->done = end_reading;
	begin = GetCurrentTimestamp();
	if (!changed && level != LEVEL_COUNT)
		ends->parts = validate_parts_find(ends, level, id);
	if (changed)
		validate_changed_compare(changed, ends, id, result);
	else if (level == LEVEL_COUNT)
	{
		validate_progress_phase("count", task->estimate, validate_source_counts(ends));
		result->source_rows = validate_count_source(ends);
		result->target_rows = validate_count_target(ends);
		result->mismatches = Max(result->source_rows, result->target_rows) -
			Min(result->source_rows, result->target_rows);
		end_reading(ends);
	}
	else
		validate_compare(ends, level, id, result);
	result->ms = (GetCurrentTimestamp() - begin) / 1000.0;
}

/* Does the run say for all rows up to its cut whether they are equal? */
static bool
is_base(ValidateLevel level, ValidateResult *r)
{
	if (level == LEVEL_CHANGED)
		return r->mismatches == r->explained && !r->at_least;
	return level == LEVEL_CHECKSUM || level == LEVEL_FULL;
}

static int64
validate_at(MigrateJob *job, ValidateTask *task, ValidateLevel level, ValidateChanged *changed,
			MigrateConn **conn, MemoryContext conn_cxt, ReturnSetInfo *rsinfo,
			ValidateResult *result, ValidateCut *cut)
{
	ValidateEnds ends = {0};
	MemoryContext mcxt = CurrentMemoryContext;
	int			depth = GetCurrentTransactionNestLevel();
	int64		id = validate_begin_run(job, task->mapping_id, NULL, level);
	char	   *status;

	memset(result, 0, sizeof(*result));
	validate_progress_target(job, task, level);
	PG_TRY();
	{
		read_both(&ends, job, task, level, id, changed, cut, conn, conn_cxt, result);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		/* an error must not leave a subtransaction of ours open */
		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		while (GetCurrentTransactionNestLevel() > depth)
			RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(mcxt);
		if (validate_progress_cancelled() && edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
			edata->message = psprintf("the validation was cancelled with job \"%s\"", job->name);
		ReThrowError(edata);
	}
	PG_END_TRY();
	status = validate_describe(task, level, result, cut);
	if (ends.parts && ends.parts->equal)
	{
		/* what was equal before has not been looked at again */
		cut->lsn = Min(cut->lsn, ends.parts->lsn);
		status = psprintf("%s; %lld rows of it compared before an interruption, since %s", status,
						  (long long) ends.parts->rows[VALIDATE_TARGET], ends.parts->since);
		if (ends.first_lsn > ends.parts->lsn)
		{
			ends.first_lsn = ends.parts->lsn;
			ends.first_seq = 0;
		}
	}
	validate_end_run(job, task->target, level, id, result, cut, status, rsinfo);
	if (ends.first_lsn != InvalidXLogRecPtr && is_base(level, result))
		validate_note_compared(job, task->mapping_id, id, ends.first_lsn, ends.first_seq);
	validate_progress_target_done();
	return id;
}

/*
 * Validate one mapping; the id of the run.
 */
int64
validate_one(MigrateJob *job, ValidateTask *task, ValidateLevel level, MigrateConn **conn,
			 MemoryContext conn_cxt, ReturnSetInfo *rsinfo, ValidateResult *result)
{
	ValidateCut cut;

	return validate_at(job, task, level, NULL, conn, conn_cxt, rsinfo, result, &cut);
}

/* The rows of it that changed. */
int64
validate_one_changed(MigrateJob *job, ValidateTask *task, ValidateChanged *changed,
					 MigrateConn **conn, MemoryContext conn_cxt, ReturnSetInfo *rsinfo,
					 ValidateResult *result, ValidateCut *cut)
{
	return validate_at(job, task, LEVEL_CHANGED, changed, conn, conn_cxt, rsinfo, result, cut);
}

static void
validate_job(MigrateJob *job, List *tasks, bool checks, ValidateLevel level,
			 ReturnSetInfo *rsinfo)
{
	MigrateConn *volatile conn = NULL;
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate validation",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;

	validate_progress_begin(job, tasks, checks && validate_has_checks(job), level);
	PG_TRY();
	{
		ValidateChanged *changed = NULL;
		ListCell   *lc;

		if (level == LEVEL_CHANGED)
			changed = validate_changed_open(job, tasks, false, (MigrateConn **) &conn, old);
		MemoryContextSwitchTo(mcxt);
		validate_refuse_drift(job, tasks, (MigrateConn **) &conn, old);
		foreach(lc, tasks)
		{
			ValidateResult result;
			ValidateCut cut;

			MemoryContextSwitchTo(mcxt);
			(void) validate_at(job, lfirst(lc), level, changed, (MigrateConn **) &conn, old, rsinfo,
							   &result, &cut);
			MemoryContextSwitchTo(old);
			MemoryContextReset(mcxt);
		}
		MemoryContextSwitchTo(mcxt);
		if (checks)
			validate_checks(job, (MigrateConn **) &conn, old, rsinfo);
	}
	PG_FINALLY();
	{
		validate_progress_end();
		if (conn)
			migrate_disconnect(conn);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}

/* A job may have no worker that does it. */
static void
purge(MigrateJob *job)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(job->job_id);

	SPI_connect();
	migrate_spi_exec("SELECT migrate._purge_validations($1)", 1, &type, &arg, NULL, SPI_OK_SELECT);
	SPI_finish();
}

/*
 * migrate_validate(job text, target text, level text): see sql/50_validate.sql.
 */
Datum
migrate_validate(PG_FUNCTION_ARGS)
{
	ValidateLevel level;
	MigrateJob *job;
	List	   *tasks;
	MigrateAsOwner as;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job and level must not be null")));
	InitMaterializedSRF(fcinfo, 0);
	level = parse_level(text_to_cstring(PG_GETARG_TEXT_PP(2)));
	job = migrate_job_load_by_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	tasks = validate_tasks(job, PG_ARGISNULL(1) ? NULL :
						   text_to_cstring(PG_GETARG_TEXT_PP(1)));

	migrate_as_owner(job->owner, &as);
	validate_job(job, tasks, PG_ARGISNULL(1) && level != LEVEL_CHANGED, level, (ReturnSetInfo *) fcinfo->resultinfo);
	purge(job);
	migrate_as_caller(&as);
	return (Datum) 0;
}
