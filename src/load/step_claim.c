/*-------------------------------------------------------------------------
 *
 * step_claim.c
 *	  Which step after the copy runs next, and giving steps back.
 *
 * Runs in loaders, and in a job worker that can start none.  States of
 * migrate.post_step, and who moves them:
 *
 *	  todo -> running -> done			claim; the step's own transaction
 *	  running -> failed					an error that lasts
 *	  running -> todo					an error that passes, or a worker that died
 *	  todo, failed -> skipped			the DBA, who also sets failed to todo
 *
 * attempt is counted before the work, as with chunks, and is the fence: a
 * worker whose step was given to another cannot commit it.
 *
 * Steps must not wait for each other's locks: an index may be built for hours,
 * and who waits runs into lock_timeout.  So a step is claimed only when what
 * runs does not stand in its way.  The tables of a mapping, that is its target
 * with all partitions, count as one here:
 *
 *	  phase 10 (SHARE)		beside others of phase 10; doubles alone (SHARE ROW
 *							EXCLUSIVE).  What needs unique rows waits for the
 *							key, which finds doubles (P10)
 *	  20, 30, 40, 50		alone (up to ACCESS EXCLUSIVE)
 *	  60 (SHARE UPDATE EXCLUSIVE)	beside others of phase 60
 *
 * With live capture (P9) only what finds rows, and what cannot fail by their
 * values, is built before the consistent position: keys with their doubles, and
 * non-unique indexes.  The copy is no image of any moment, and a value that
 * moved from one row to another may be in both; see MIGRATE_STEP_IS_EARLY.
 *
 * Foreign keys, their validation and phase 50 lock or need other tables, too:
 * they begin when no step of an earlier phase is left in the job, and foreign
 * keys are made one at a time, for else two could lock the same two tables in
 * different orders.
 *
 * Claims of a job are made one after the other, under a lock that ends with
 * the claim's transaction, so that each sees what the others have taken.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

/* see MIGRATE_LOCK_SPACE in control/worker.c; not one of its kinds */
#define STEP_LOCK_SPACE 0x4d47
#define STEP_LOCK_KEY 1

/* steps of a job, alias q, that are not over yet */
#define OPEN(what, condition) \
	"EXISTS (SELECT FROM migrate.post_step q WHERE q." what \
	" AND q.state = 'todo' AND " condition ")" \
	" OR EXISTS (SELECT FROM migrate.post_step q WHERE q." what \
	" AND q.state = 'running' AND " condition ")"

/* a key that found doubles: they have to go before it is built again */
#define HAS_DOUBLES(s) "(" s ".kind = 'key' AND coalesce(" s ".sqlstate, '') = '23505')"

/* no other step may run on the same tables */
#define ALONE(s) \
	"(" s ".phase BETWEEN 20 AND 50 OR " s ".kind = 'doubles' OR " HAS_DOUBLES(s) ")"

/* what runs, with the tables that it runs on */
#define RUNNING \
	"WITH r AS MATERIALIZED (SELECT coalesce(m.target_oid, q.target_oid) AS root," \
	" q.phase, q.kind, " ALONE("q") " AS alone" \
	" FROM migrate.post_step q LEFT JOIN migrate.mapping m ON m.mapping_id = q.mapping_id" \
	" WHERE q.job_id = $1 AND q.state = 'running') "

/* while tables are still copied: keys and indexes of those that are not */
#define COPIED \
	" AND (NOT $2 OR p.phase = 10 AND p.kind IN ('key', 'index') AND NOT EXISTS" \
	" (SELECT FROM migrate.mapping f" \
	"  JOIN migrate.source_table s ON s.source_id = f.source_id" \
	"  WHERE f.job_id = p.job_id AND f.target_oid = m.target_oid" \
	"  AND s.state NOT IN ('copied', 'done')))"

#define EARLY " AND (NOT $3 OR " MIGRATE_STEP_IS_EARLY ")"

#define AFTER \
	" AND (p.after = '{}' OR NOT EXISTS (SELECT FROM migrate.post_step q" \
	"  WHERE q.step_id = ANY (p.after) AND q.state IN ('todo', 'running')))"

/* what does not depend on p is evaluated once, whatever the number of steps */
#define PHASES \
	" AND (p.phase < 30" \
	"  OR p.phase <= least((SELECT min(q.phase) FROM migrate.post_step q" \
	"    WHERE q.job_id = $1 AND q.state = 'todo')," \
	"   (SELECT min(q.phase) FROM migrate.post_step q" \
	"    WHERE q.job_id = $1 AND q.state = 'running'))" \
	"  OR p.kind = 'vacuum' AND p.mapping_id IS NOT NULL" \
	"   AND NOT (" OPEN("job_id = $1", "q.phase = 30") ")" \
	"   AND NOT (" OPEN("mapping_id = p.mapping_id", "q.phase < p.phase") "))"

/* a key comes before what relies on it; doubles are not to wait for ever */
#define KEYS \
	" AND (p.phase <> 20 AND (p.kind <> 'index' OR p.ddl !~ '^CREATE UNIQUE')" \
	"  OR NOT (" OPEN("mapping_id = p.mapping_id", "q.kind IN ('key', 'doubles')") "))" \
	" AND (p.phase <> 10 OR " HAS_DOUBLES("p") \
	"  OR NOT EXISTS (SELECT FROM migrate.post_step q WHERE q.mapping_id = p.mapping_id" \
	"   AND q.state = 'todo' AND " HAS_DOUBLES("q") "))"

#define FREE \
	" AND NOT EXISTS (SELECT FROM r WHERE r.root IS NOT DISTINCT FROM" \
	"   coalesce(m.target_oid, p.target_oid)" \
	"  AND (r.alone OR " ALONE("p") " OR (r.phase = 60) <> (p.phase = 60)))" \
	" AND (p.kind <> 'foreign key' OR NOT EXISTS" \
	"  (SELECT FROM r WHERE r.kind = 'foreign key'))"

/* P9: the job has not passed its consistent position. */
bool
migrate_steps_are_early(MigrateJob *job)
{
	return job->live && strcmp(job->state, "catching_up") != 0 &&
		strcmp(job->state, "streaming") != 0;
}

static const char *const next_step =
RUNNING
"SELECT p.step_id, p.attempt + 1, coalesce(m.target_oid, p.target_oid),"
" m.source_id, p.kind, p.object, p.relation, p.ddl, " HAS_DOUBLES("p") "::int,"
" p.error_since"
" FROM migrate.post_step p LEFT JOIN migrate.mapping m ON m.mapping_id = p.mapping_id"
" WHERE p.job_id = $1 AND p.state = 'todo'"
" AND (p.retry_at IS NULL OR p.retry_at <= pg_catalog.clock_timestamp())"
COPIED EARLY PHASES FREE KEYS AFTER
" ORDER BY p.phase, p.weight DESC, p.step_id LIMIT 1 FOR UPDATE OF p SKIP LOCKED";

void
migrate_steps_lock(int job_id)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, job_id, STEP_LOCK_KEY, STEP_LOCK_SPACE);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/* The step in the only row of the last SPI result, in mcxt. */
static MigratePostStep *
step_from_result(MemoryContext mcxt)
{
	MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);
	MigratePostStep *step = palloc0(sizeof(MigratePostStep));
	Datum		since;
	bool		isnull;

	step->step_id = (int) migrate_spi_int64(0, 0, 0);
	step->attempt = (int) migrate_spi_int64(0, 1, 0);
	step->root = (Oid) migrate_spi_int64(0, 2, 0);
	step->source_id = (int) migrate_spi_int64(0, 3, 0);
	step->kind = migrate_spi_text(0, 4);
	step->object = migrate_spi_text(0, 5);
	step->relation = migrate_spi_text(0, 6);
	step->ddl = migrate_spi_text(0, 7);
	step->has_doubles = migrate_spi_int64(0, 8, 0) != 0;
	since = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 10, &isnull);
	step->error_since = isnull ? 0 : DatumGetTimestampTz(since);
	MemoryContextSwitchTo(oldcxt);
	return step;
}

/*
 * The query is planned once, since that takes longer than many a step; but
 * while the job copies, when loaders look only now and then, its plan is not
 * kept (half a megabyte).
 */
static SPIPlanPtr
plan_query(bool keep)
{
	static SPIPlanPtr kept = NULL;
	Oid			types[] = {INT4OID, BOOLOID, BOOLOID};
	SPIPlanPtr	plan = kept;

	if (plan == NULL)
	{
		plan = SPI_prepare_cursor(next_step, 3, types, CURSOR_OPT_GENERIC_PLAN);
		if (plan == NULL || (keep && SPI_keepplan(plan) != 0))
			elog(ERROR, "SPI_prepare gave %s", SPI_result_code_string(SPI_result));
		if (keep)
			kept = plan;
	}
	return plan;
}

static MigratePostStep *
find_step(MigrateJob *job, MemoryContext mcxt)
{
	Datum		values[3];
	bool		copying = strcmp(job->state, "indexing") != 0 &&
	strcmp(job->state, "catching_up") != 0 && strcmp(job->state, "streaming") != 0;
	int			level = migrate_follow_index_order();
	SPIPlanPtr	plan = plan_query(!copying);
	int			rc;

	values[0] = Int32GetDatum(job->job_id);
	values[1] = BoolGetDatum(copying);
	values[2] = BoolGetDatum(migrate_steps_are_early(job));
	rc = SPI_execute_plan(plan, values, NULL, false, 0);
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_plan gave %s", SPI_result_code_string(rc));
	AtEOXact_GUC(true, level);
	return SPI_processed > 0 ? step_from_result(mcxt) : NULL;
}

static void
mark_running(MigratePostStep *step)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID};
	Datum		values[3];

	values[0] = Int32GetDatum(step->step_id);
	values[1] = Int32GetDatum(step->attempt);
	values[2] = Int32GetDatum(MyProcPid);
	migrate_spi_exec("UPDATE migrate.post_step SET state = 'running', attempt = $2,"
					 " worker_pid = $3, started_at = pg_catalog.clock_timestamp(),"
					 " finished_at = NULL, retry_at = NULL WHERE step_id = $1",
					 3, types, values, NULL, SPI_OK_UPDATE);
}

MigratePostStep *
migrate_step_claim(MigrateJob *job, MemoryContext mcxt)
{
	MigratePostStep *step;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	migrate_steps_lock(job->job_id);	/* before there is a snapshot */
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	step = find_step(job, mcxt);
	if (step)
		mark_running(step);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	return step;
}

/*
 * Give back the steps of a worker that is gone, or of all; how many.  In the
 * caller's transaction.
 */
int
migrate_steps_release(int job_id, int worker_pid)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(job_id), Int32GetDatum(worker_pid)};
	int			n;

	SPI_connect();
	migrate_spi_exec("UPDATE migrate.post_step SET state = 'todo', worker_pid = NULL"
					 " WHERE job_id = $1 AND state = 'running'"
					 " AND ($2 = 0 OR worker_pid = $2)",
					 2, types, values, NULL, SPI_OK_UPDATE);
	n = (int) SPI_processed;
	SPI_finish();
	return n;
}
