/*-------------------------------------------------------------------------
 *
 * step_run.c
 *	  One step after the copy: run it, and write down what came of it.
 *
 * Runs in loaders, and in a job worker that can start none, as the job's
 * owner, outside a transaction, after step_claim.c has committed 'running'.
 *
 *	  the work and 'done'			one transaction; VACUUM, which can be in
 *									none, may be done again after a crash
 *	  'failed', or back to 'todo'	one of its own, after the other rolled back
 *
 * So a crash leaves nothing built that is not recorded, and a step 'running'
 * of a process that is gone, which migrate_steps_release() gives back.
 *
 * A key that finds duplicates (23505) goes back to 'todo' with that SQLSTATE.
 * It is claimed again when nothing else runs on its table (step_claim.c); then
 * the doubles are resolved in a transaction of their own (P10), and it is
 * built once more.  If that fails the same way, it has failed.
 *
 * An error that passes (a lock time-out, a deadlock, a full disk) is tried
 * again, at growing intervals, until it has lasted for retry_time.
 *
 * Locks: those of the statement, under the job's lock_timeout.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/vacuum.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parse_node.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

#include "control/control.h"

/* the first pause after an error that passes, ms */
#define FIRST_DELAY 500

typedef struct StepRun
{
	MigrateJob *job;
	MigratePostStep *step;

	/* filled in when it went wrong */
	const char *state;			/* what the step becomes */
	const char *sqlstate;
	char	   *error;
	int			delay_ms;		/* before the next try */
} StepRun;

/*
 * Run fn(run) in a transaction of its own.  NULL, or a copy of the error in
 * the current memory context, everything undone.
 */
static ErrorData *
guarded(void (*fn) (StepRun *run), StepRun *run)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ErrorData  *volatile edata = NULL;

	PG_TRY();
	{
		fn(run);
	}
	PG_CATCH();
	{
		edata = migrate_recover(mcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	return edata;
}

static void
begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	migrate_spi_begin();
}

static void
commit(void)
{
	migrate_spi_end();
	CommitTransactionCommand();
}

/* ----------------------------------------------------------------
 * the work
 * ----------------------------------------------------------------
 */

/* 'done', if the step is still ours. */
static void
record_done(MigratePostStep *step, const char *reason)
{
	Oid			types[] = {INT4OID, INT4OID, TEXTOID};
	Datum		values[3];

	values[0] = Int32GetDatum(step->step_id);
	values[1] = Int32GetDatum(step->attempt);
	values[2] = reason ? CStringGetTextDatum(reason) : (Datum) 0;
	migrate_spi_exec("UPDATE migrate.post_step SET state = 'done', reason = $3,"
					 " sqlstate = NULL, error = NULL, error_since = NULL,"
					 " finished_at = pg_catalog.clock_timestamp()"
					 " WHERE step_id = $1 AND attempt = $2 AND state = 'running'",
					 3, types, values, reason ? "   " : "  n", SPI_OK_UPDATE);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("step %d was given to another worker", step->step_id)));
}

/* Somebody built the same thing already? */
static bool
is_there(MigratePostStep *step)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(step->step_id)};

	migrate_spi_exec("SELECT migrate._step_is_there($1)::int",
					 1, types, values, NULL, SPI_OK_SELECT);
	return SPI_processed > 0 && migrate_spi_int64(0, 0, 0) != 0;
}

/* The doubles that a key has found, before it is built again. */
static void
resolve_doubles(StepRun *run)
{
	begin();
	migrate_step_resolve_doubles(run->job, run->step);
	commit();
}

static void
execute_statements(MigratePostStep *step)
{
	int			rc = SPI_execute(step->ddl, false, 0);

	if (rc < 0)
		elog(ERROR, "SPI_execute gave %s: %s", SPI_result_code_string(rc), step->ddl);
}

static void
build(StepRun *run)
{
	MigratePostStep *step = run->step;
	const char *reason = NULL;

	begin();
	if (is_there(step))
		reason = "was there";
	else if (strcmp(step->kind, "doubles") == 0)
		migrate_step_resolve_doubles(run->job, step);
	else
		execute_statements(step);
	migrate_fault("step-built");
	record_done(step, reason);
	commit();
}

/* ----------------------------------------------------------------
 * VACUUM
 * ----------------------------------------------------------------
 */

/* The statement, if it is one that must not be in a transaction; else NULL. */
static VacuumStmt *
vacuum_statement(MigratePostStep *step)
{
	List	   *raw;
	Node	   *stmt;

	if (strcmp(step->kind, "vacuum") != 0)
		return NULL;
	raw = raw_parser(step->ddl, RAW_PARSE_DEFAULT);
	if (list_length(raw) != 1)
		return NULL;
	stmt = linitial_node(RawStmt, raw)->stmt;
	if (!IsA(stmt, VacuumStmt) || !((VacuumStmt *) stmt)->is_vacuumcmd)
		return NULL;			/* ANALYZE is like any other statement */
	return (VacuumStmt *) stmt;
}

/*
 * As exec_simple_query() and the utility code do it: VACUUM ends the
 * transaction that it is called in, makes its own, and leaves one open.  What
 * it needs all along is in PortalContext.
 */
static void
run_vacuum(StepRun *run)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MemoryContext portal = PortalContext;
	VacuumStmt *stmt = vacuum_statement(run->step);
	ParseState *pstate = make_parsestate(NULL);

	pstate->p_sourcetext = run->step->ddl;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PG_TRY();
	{
		PortalContext = AllocSetContextCreate(mcxt, "migrate vacuum",
											  ALLOCSET_DEFAULT_SIZES);
		MemoryContextSwitchTo(PortalContext);
		ExecVacuum(pstate, stmt, true);
		CommitTransactionCommand();
	}
	PG_FINALLY();
	{
		PortalContext = portal;
	}
	PG_END_TRY();
	migrate_fault("step-built");
}

static void
record_vacuum(StepRun *run)
{
	begin();
	record_done(run->step, NULL);
	commit();
}

/* ----------------------------------------------------------------
 * when it went wrong
 * ----------------------------------------------------------------
 */

/* What to show of an error, besides its SQLSTATE. */
static char *
describe_error(ErrorData *edata)
{
	return psprintf("%s%s%s", edata->message, edata->detail ? ": " : "",
					edata->detail ? edata->detail : "");
}

/*
 * Class 55 is passing only where it is about locks: other objects that are not
 * in the state that a statement needs do not get there by waiting.
 */
static bool
passes(const char *sqlstate)
{
	return migrate_error_is_transient(sqlstate) && strcmp(sqlstate, "55000") != 0;
}

/*
 * What the step becomes.  The pause before the next try is as long as the
 * error has lasted: it doubles each time.
 */
static void
judge(StepRun *run, ErrorData *edata)
{
	MigratePostStep *step = run->step;
	long		lasted = 0;

	run->sqlstate = pstrdup(unpack_sql_state(edata->sqlerrcode));
	run->error = describe_error(edata);
	run->state = "failed";
	run->delay_ms = 0;
	if (edata->sqlerrcode == ERRCODE_UNIQUE_VIOLATION)
	{
		if (strcmp(step->kind, "key") == 0 && !step->has_doubles &&
			migrate_key_columns(step->ddl) != NIL)
			run->state = "todo";
	}
	else if (passes(run->sqlstate))
	{
		if (step->error_since != 0)
			lasted = TimestampDifferenceMilliseconds(step->error_since,
													 GetCurrentTimestamp());
		if (lasted >= run->job->retry_time_ms)
			return;
		run->state = "todo";
		run->delay_ms = Min(Max(lasted, FIRST_DELAY), run->job->retry_max_delay_ms);
	}
}

/* An event for what has failed, and for the first of errors that pass. */
static void
tell(StepRun *run)
{
	MigratePostStep *step = run->step;
	bool		failed = strcmp(run->state, "failed") == 0;

	if (failed)
		migrate_event(run->job->job_id, "error", "step", "%s %s%s%s has failed: %s: %s",
					  step->kind, step->object, step->relation ? " of " : "",
					  step->relation ? step->relation : "", run->sqlstate, run->error);
	else if (run->delay_ms > 0 && step->error_since == 0)
		migrate_event(run->job->job_id, "warning", "step", "%s %s%s%s is tried again: %s: %s",
					  step->kind, step->object, step->relation ? " of " : "",
					  step->relation ? step->relation : "", run->sqlstate, run->error);
}

/* Nothing to do when it has another owner by now. */
static void
record_error(StepRun *run)
{
	MigratePostStep *step = run->step;
	Oid			types[] = {INT4OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, INT4OID};
	Datum		values[6];

	values[0] = Int32GetDatum(step->step_id);
	values[1] = Int32GetDatum(step->attempt);
	values[2] = CStringGetTextDatum(run->state);
	values[3] = CStringGetTextDatum(run->sqlstate);
	values[4] = CStringGetTextDatum(run->error);
	values[5] = Int32GetDatum(run->delay_ms);
	begin();
	migrate_spi_exec("UPDATE migrate.post_step SET state = $3, sqlstate = $4, error = $5,"
					 " worker_pid = NULL, finished_at = pg_catalog.clock_timestamp(),"
					 " error_since = CASE WHEN $6 > 0 THEN"
					 "  coalesce(error_since, pg_catalog.clock_timestamp()) END,"
					 " retry_at = CASE WHEN $6 > 0 THEN pg_catalog.clock_timestamp()"
					 "  + pg_catalog.make_interval(secs => $6 / 1000.0) END"
					 " WHERE step_id = $1 AND attempt = $2 AND state = 'running'",
					 6, types, values, NULL, SPI_OK_UPDATE);
	if (SPI_processed > 0)
		tell(run);
	commit();
}

/* The work by kind; NULL or the error. */
static ErrorData *
work(StepRun *run)
{
	ErrorData  *edata = NULL;

	if (vacuum_statement(run->step))
	{
		edata = guarded(run_vacuum, run);
		return edata ? edata : guarded(record_vacuum, run);
	}
	/* one that has failed before and is tried again may not be over columns */
	if (run->step->has_doubles && migrate_key_columns(run->step->ddl) != NIL)
		edata = guarded(resolve_doubles, run);
	return edata ? edata : guarded(build, run);
}

/*
 * Processes that an index build may start beside this one.  While others copy
 * or build, all together are as many as the job may have at work; who is alone
 * may do what the server allows.
 */
static int
parallel_helpers(MigrateJob *job)
{
	int			with_step;
	int			busy = migrate_loaders_busy(&with_step);

	if (busy == 0)
		return max_parallel_maintenance_workers;
	return Min(max_parallel_maintenance_workers, Max(job->workers - 1 - busy, 0));
}

/*
 * lock_timeout is set for the session, since VACUUM changes transactions on
 * its way.  An error of the setting's end would be a bug: the value was valid.
 */
bool
migrate_step_run(MigrateJob *job, MigratePostStep *step)
{
	StepRun		run = {.job = job,.step = step};
	char	   *lock_timeout = pstrdup(GetConfigOption("lock_timeout", false, false));
	int			helpers = max_parallel_maintenance_workers;
	ErrorData  *edata;

	SetConfigOption("lock_timeout", psprintf("%d", job->lock_timeout_ms),
					PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("max_parallel_maintenance_workers",
					psprintf("%d", parallel_helpers(job)), PGC_USERSET, PGC_S_SESSION);
	edata = work(&run);
	SetConfigOption("lock_timeout", lock_timeout, PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("max_parallel_maintenance_workers", psprintf("%d", helpers),
					PGC_USERSET, PGC_S_SESSION);
	if (edata)
	{
		judge(&run, edata);
		record_error(&run);
	}
	else
		migrate_fault("step-done");
	return edata == NULL;
}
