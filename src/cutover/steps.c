/*-------------------------------------------------------------------------
 *
 * steps.c
 *	  The record of a cutover: its row, its steps, the DBA's hooks.
 *
 * Runs in the job worker.  Every function here is a transaction of its own and
 * is called outside one; a crash leaves a step 'running', which is how the next
 * job worker knows how far it came.  In the pause commits are asynchronous, but
 * for those that something on the source depends on.
 *
 * States of migrate.cutover, which nothing else writes:
 *
 *	  asked -> running -> done		the target is open
 *					   -> undone	the source is
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/cutover.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "control/control.h"
#include "cutover/steps.h"
#include "extract/extract.h"
#include "load/apply.h"

/* a gate that waits is looked at so often, should no wake-up come, ms */
#define GATE_LOOK 100

/* ----------------------------------------------------------------
 * transactions of one statement
 * ----------------------------------------------------------------
 */

static void
begin(MigrateCutover *cutover)
{
	StartTransactionCommand();
	migrate_spi_begin();
}

/*
 * Commit.  What is not durable may be lost in a crash that loses the pause
 * along with it.
 */
static void
commit(MigrateCutover *cutover, bool durable)
{
	migrate_spi_end();
	if (durable)
		ForceSyncCommit();
	else
		(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	CommitTransactionCommand();
	MemoryContextSwitchTo(cutover->mcxt);
	ConditionVariableBroadcast(&migrate_shared->changed);
}

static void
exec_for_cutover(MigrateCutover *cutover, const char *sql, int nargs, Oid *types,
				 Datum *values, const char *nulls, int expected)
{
	migrate_spi_exec(sql, nargs, types, values, nulls, expected);
}

/* ----------------------------------------------------------------
 * the row
 * ----------------------------------------------------------------
 */

static int64
option_ms(int job_id, const char *name)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job_id), CStringGetTextDatum(name)};

	migrate_spi_exec("SELECT migrate._option($1, $2)", 2, types, values, NULL, SPI_OK_SELECT);
	return migrate_spi_int64(0, 0, 0);
}

static char *
option_text(int job_id, const char *name)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job_id), CStringGetTextDatum(name)};

	migrate_spi_exec("SELECT migrate._option($1, $2)", 2, types, values, NULL, SPI_OK_SELECT);
	return migrate_spi_text(0, 0);
}

static void
take_row(MigrateCutover *cutover, MemoryContext mcxt)
{
	cutover->cutover_id = (int) migrate_spi_int64(0, 0, 0);
	cutover->forward = migrate_spi_int64(0, 1, 0) != 0;
	cutover->max_downtime_ms = migrate_spi_int64(0, 3, 0);
	cutover->running = migrate_spi_int64(0, 5, 0) != 0;
	cutover->commit_begun = migrate_spi_int64(0, 6, 0) != 0;
	cutover->step_no = (int) migrate_spi_int64(0, 7, 0);
	cutover->paused_at = migrate_spi_int64(0, 8, 0);
	cutover->closed = migrate_spi_int64(0, 9, 0) != 0;
	cutover->external = migrate_spi_int64(0, 10, 0) != 0;
	MemoryContextSwitchTo(mcxt);
	cutover->stop_before = migrate_spi_text(0, 2);
	cutover->digest = migrate_spi_text(0, 4);
}

/*
 * The current cutover of a job, from now on 'running'.
 */
MigrateCutover *
migrate_cutover_load(MigrateJob *job)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateCutover *cutover = palloc0(sizeof(MigrateCutover));
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(job->job_id);
	char	   *new_home;

	cutover->job = job;
	cutover->mcxt = mcxt;
	begin(cutover);
	migrate_spi_exec("SELECT c.cutover_id, (c.direction = 'forward')::int, c.stop_before,"
					 " c.max_downtime_ms, c.digest, (c.state = 'running')::int,"
					 " EXISTS (SELECT FROM migrate.cutover_step s"
					 "  WHERE s.cutover_id = c.cutover_id AND s.step = 'commit')::int,"
					 " (SELECT coalesce(max(s.step_no), 0) FROM migrate.cutover_step s WHERE s.cutover_id = c.cutover_id),"
					 " (SELECT (extract(epoch FROM min(s.started_at) - '2000-01-01 00:00Z') * 1000000)::bigint"
					 "  FROM migrate.cutover_step s WHERE s.cutover_id = c.cutover_id AND s.in_pause)"
					 "  , c.closed::int, (c.fence = 'external')::int"
					 " FROM migrate.cutover c WHERE c.job_id = $1 AND c.state IN ('asked', 'running')",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	if (SPI_processed == 0)
	{
		commit(cutover, false);
		return NULL;
	}
	take_row(cutover, mcxt);
	cutover->lock_ms = (int) option_ms(job->job_id, "fence_lock_timeout");
	cutover->fence_timeout_ms = option_ms(job->job_id, "fence_timeout");
	cutover->lag_timeout_ms = option_ms(job->job_id, "cutover_lag_timeout");
	cutover->gate_timeout_ms = option_ms(job->job_id, "gate_timeout");
	cutover->last_check = strcmp(option_text(job->job_id, "last_check"), "changed") == 0;
	new_home = option_text(job->job_id, "new_home");
	cutover->fence_reads = strcmp(option_text(job->job_id, "fence_reads"), "true") == 0;
	cutover->new_home = new_home ? MemoryContextStrdup(mcxt, new_home) : NULL;
	value = Int32GetDatum(cutover->cutover_id);
	migrate_spi_exec("UPDATE migrate.cutover SET state = 'running',"
					 " started_at = coalesce(started_at, clock_timestamp()) WHERE cutover_id = $1",
					 1, &type, &value, NULL, SPI_OK_UPDATE);
	commit(cutover, true);
	return cutover;
}

void
migrate_cutover_note_lsn(MigrateCutover *cutover, XLogRecPtr lsn)
{
	Oid			types[] = {INT4OID, LSNOID};
	Datum		values[] = {Int32GetDatum(cutover->cutover_id), LSNGetDatum(lsn)};

	begin(cutover);
	exec_for_cutover(cutover, "UPDATE migrate.cutover SET fence_lsn = $2 WHERE cutover_id = $1",
					 2, types, values, NULL, SPI_OK_UPDATE);
	commit(cutover, false);
}

/* ----------------------------------------------------------------
 * its steps
 * ----------------------------------------------------------------
 */
void
migrate_cutover_step_begin(MigrateCutover *cutover, const char *step, bool in_pause,
						   bool durable)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID, TEXTOID, BOOLOID};
	Datum		values[5];

	cutover->step_no++;
	begin(cutover);
	values[0] = Int32GetDatum(cutover->cutover_id);
	values[1] = Int32GetDatum(cutover->job->job_id);
	values[2] = Int32GetDatum(cutover->step_no);
	values[3] = CStringGetTextDatum(step);
	values[4] = BoolGetDatum(in_pause);
	exec_for_cutover(cutover, "INSERT INTO migrate.cutover_step (cutover_id, job_id, step_no, step, in_pause)"
					 " VALUES ($1, $2, $3, $4, $5)", 5, types, values, NULL, SPI_OK_INSERT);
	commit(cutover, durable);
	migrate_worker_phase(step);
}

/* detail may be NULL. */
static void
end_step(MigrateCutover *cutover, const char *state, const char *detail)
{
	Oid			types[] = {INT4OID, INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(cutover->cutover_id), Int32GetDatum(cutover->step_no),
		CStringGetTextDatum(state),
	detail ? CStringGetTextDatum(detail) : (Datum) 0};

	exec_for_cutover(cutover, "UPDATE migrate.cutover_step SET state = $3, detail = $4,"
					 " duration = clock_timestamp() - started_at"
					 " WHERE cutover_id = $1 AND step_no = $2 AND state = 'running'",
					 4, types, values, detail ? "    " : "   n", SPI_OK_UPDATE);
}

void
migrate_cutover_step_end(MigrateCutover *cutover, const char *state, const char *detail)
{
	begin(cutover);
	end_step(cutover, state, detail);
	commit(cutover, false);
}

void
migrate_cutover_event(MigrateCutover *cutover, const char *level, const char *kind,
					  const char *fmt,...)
{
	StringInfoData text;

	initStringInfo(&text);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&text, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&text, needed);
	}
	StartTransactionCommand();
	migrate_event(cutover->job->job_id, level, kind, "%s", text.data);
	CommitTransactionCommand();
	MemoryContextSwitchTo(cutover->mcxt);
}

/* One value of a statement in a transaction of its own, perhaps as the targets' writer (P14). */
static int64
call(MigrateCutover *cutover, const char *sql, bool writer)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(cutover->job->job_id);
	int64		result;

	begin(cutover);
	/* a VACUUM keeps a table from being published; do not wait for its end */
	if (cutover->lag_timeout_ms > 0)
		(void) set_config_option("lock_timeout", psprintf("%lld", (long long) cutover->lag_timeout_ms),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	if (writer)
		migrate_writer_lock(cutover->job->job_id);
	exec_for_cutover(cutover, sql, 1, &type, &value, NULL, SPI_OK_SELECT);
	result = SPI_processed > 0 ? migrate_spi_int64(0, 0, 0) : 0;
	commit(cutover, false);
	return result;
}

int64
migrate_cutover_call(MigrateCutover *cutover, const char *sql)
{
	return call(cutover, sql, false);
}

/*
 * For what locks many targets: the apply worker is not between two of them
 * meanwhile, which would be a deadlock.
 */
int64
migrate_cutover_call_as_writer(MigrateCutover *cutover, const char *sql)
{
	return call(cutover, sql, true);
}

/* ----------------------------------------------------------------
 * its end
 * ----------------------------------------------------------------
 */
void
migrate_cutover_open(MigrateCutover *cutover, TimestampTz paused_at)
{
	Oid			types[] = {INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(cutover->cutover_id), TimestampTzGetDatum(paused_at)};
	Oid			type = INT4OID;
	Datum		job_id = Int32GetDatum(cutover->job->job_id);

	begin(cutover);
	migrate_writer_lock(cutover->job->job_id);
	exec_for_cutover(cutover, "SELECT migrate._set_guards($1, 'DISABLE')", 1, &type, &job_id,
					 NULL, SPI_OK_SELECT);
	/* what the application writes from now on is noted, and nothing of ours */
	exec_for_cutover(cutover, "SELECT migrate._set_queue($1, 'ENABLE ALWAYS') FROM migrate.reverse"
					 " WHERE job_id = $1 AND kind = 'trigger'", 1, &type, &job_id,
					 NULL, SPI_OK_SELECT);
	/* P29: with the writer lock nothing of ours commits after it */
	exec_for_cutover(cutover, "UPDATE migrate.reverse SET open_lsn = pg_current_wal_insert_lsn()"
					 " WHERE job_id = $1", 1, &type, &job_id, NULL, SPI_OK_UPDATE);
	end_step(cutover, "done", NULL);
	exec_for_cutover(cutover, "UPDATE migrate.cutover SET state = 'done', ended_at = clock_timestamp(),"
					 " pause = clock_timestamp() - $2 WHERE cutover_id = $1",
					 2, types, values, NULL, SPI_OK_UPDATE);
	migrate_set_state(cutover->job->job_id, "cut_over", NULL);
	commit(cutover, true);
}

void
migrate_cutover_back_open(MigrateCutover *cutover, TimestampTz paused_at)
{
	Oid			types[] = {INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(cutover->cutover_id), TimestampTzGetDatum(paused_at)};

	begin(cutover);
	end_step(cutover, "done", NULL);
	exec_for_cutover(cutover, "UPDATE migrate.cutover SET state = 'done', ended_at = clock_timestamp(),"
					 " pause = clock_timestamp() - $2 WHERE cutover_id = $1",
					 2, types, values, paused_at != 0 ? NULL : " n", SPI_OK_UPDATE);
	migrate_set_state(cutover->job->job_id, "streaming", "rolled back");
	commit(cutover, true);
}

void
migrate_cutover_undone(MigrateCutover *cutover, ErrorData *edata, TimestampTz paused_at)
{
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[4];
	bool		asked = edata == NULL && !cutover->running;
	const char *error = edata ? edata->message : asked ? NULL :
	"the worker of the job ended in the middle of it";
	char		nulls[] = "    ";

	begin(cutover);
	values[0] = Int32GetDatum(cutover->cutover_id);
	values[1] = CStringGetTextDatum(edata ? unpack_sql_state(edata->sqlerrcode) : "57P01");
	values[2] = CStringGetTextDatum(error ? error : "");
	values[3] = TimestampTzGetDatum(paused_at);
	nulls[1] = nulls[2] = error ? ' ' : 'n';
	nulls[3] = paused_at != 0 ? ' ' : 'n';
	end_step(cutover, error ? "failed" : "undone", error);
	exec_for_cutover(cutover, "UPDATE migrate.cutover SET state = 'undone', ended_at = clock_timestamp(), gate = NULL,"
					 " sqlstate = $2, error = $3, pause = clock_timestamp() - $4 WHERE cutover_id = $1",
					 4, types, values, nulls, SPI_OK_UPDATE);
	migrate_set_state(cutover->job->job_id, cutover->forward ? "streaming" : "cut_over",
					  asked ? "rehearsal" : cutover->forward ? "cutover undone" : "rollback undone");
	if (error)
		migrate_event(cutover->job->job_id, "alert",
					  cutover->forward ? "cutover_undone" : "rollback_undone",
					  "the %s: %s%s%s", cutover->forward ? "cutover was undone, the source is open" :
					  "rollback was undone, the target is open", error,
					  edata && edata->detail ? "; " : "", edata && edata->detail ? edata->detail : "");
	commit(cutover, true);
}

void
migrate_cutover_back_to_streaming(MigrateJob *job)
{
	StartTransactionCommand();
	migrate_set_state(job->job_id, "streaming", "no cutover is asked for");
	CommitTransactionCommand();
}

/* ----------------------------------------------------------------
 * hooks and gates
 * ----------------------------------------------------------------
 */

typedef struct Hook
{
	int			hook_id;
	char	   *side;
	char	   *sql;
} Hook;

static List *
hooks_of(MigrateCutover *cutover, const char *phase)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(cutover->job->job_id), CStringGetTextDatum(phase)};
	List	   *hooks = NIL;

	begin(cutover);
	exec_for_cutover(cutover, "SELECT hook_id, side, sql FROM migrate.hook"
					 " WHERE job_id = $1 AND phase = $2 ORDER BY hook_id",
					 2, types, values, NULL, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(cutover->mcxt);
		Hook	   *hook = palloc(sizeof(Hook));

		hook->hook_id = (int) migrate_spi_int64(i, 0, 0);
		hook->side = migrate_spi_text(i, 1);
		hook->sql = migrate_spi_text(i, 2);
		hooks = lappend(hooks, hook);
		MemoryContextSwitchTo(old);
	}
	commit(cutover, false);
	return hooks;
}

static void
run_on_target(MigrateCutover *cutover, Hook *hook)
{
	int			rc;

	begin(cutover);
	rc = SPI_execute(hook->sql, false, 0);
	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("hook %d cannot be run: %s", hook->hook_id, SPI_result_code_string(rc)),
				 errhint("It must be a statement that may run in a transaction.")));
	commit(cutover, false);
}

static void
run_on_source(MigrateCutover *cutover, Hook *hook, MigrateConn *conn)
{
	MigrateConn *own = NULL;

	if (conn == NULL)
	{
		StartTransactionCommand();
		MemoryContextSwitchTo(cutover->mcxt);
		conn = own = migrate_connect(cutover->job->server, cutover->job->owner,
									 cutover->job->name, "cutover",
									 cutover->job->connect_timeout_s);
		CommitTransactionCommand();
		MemoryContextSwitchTo(cutover->mcxt);
	}

	/*
	 * While the application waits, no longer than that: the connection is
	 * closed at the deadline, and what still runs on the source ends, too.
	 */
	if (migrate_remote_deadline != 0)
		PQclear(migrate_exec(conn, psprintf("SET statement_timeout = %ld",
											Max(1, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), migrate_remote_deadline)) + 200)));
	PQclear(migrate_exec(conn, hook->sql));
	if (migrate_remote_deadline != 0)
		PQclear(migrate_exec(conn, "SET statement_timeout = 0"));
	if (own)
		migrate_disconnect(own);
}

/* Set the gate, or look whether it was opened; NULL takes it away. */
static bool
gate(MigrateCutover *cutover, const char *name)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(cutover->cutover_id),
	name ? CStringGetTextDatum(name) : (Datum) 0};
	bool		open;

	begin(cutover);
	if (name)
		exec_for_cutover(cutover, "UPDATE migrate.cutover SET gate = $2, continued_at = NULL"
						 " WHERE cutover_id = $1 AND gate IS DISTINCT FROM $2",
						 2, types, values, NULL, SPI_OK_UPDATE);
	else
		exec_for_cutover(cutover, "UPDATE migrate.cutover SET gate = NULL WHERE cutover_id = $1",
						 1, types, values, NULL, SPI_OK_UPDATE);
	exec_for_cutover(cutover, "SELECT (continued_at IS NOT NULL)::int FROM migrate.cutover WHERE cutover_id = $1",
					 1, types, values, NULL, SPI_OK_SELECT);
	open = migrate_spi_int64(0, 0, 0) != 0;
	commit(cutover, false);
	return open;
}

static void
wait_at_gate(MigrateCutover *cutover, Hook *hook, const char *phase, int64 timeout_ms)
{
	TimestampTz begun = GetCurrentTimestamp();
	char	   *name = psprintf("%s, hook %d", phase, hook->hook_id);

	migrate_cutover_event(cutover, "info", "gate", "waiting for migrate_continue(%s): %s",
						  quote_literal_cstr(cutover->job->name), name);
	while (!gate(cutover, name))
	{
		if (TimestampDifferenceExceeds(begun, GetCurrentTimestamp(), timeout_ms))
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("nobody called migrate_continue within %lld ms", (long long) timeout_ms),
					 errdetail("The gate is: %s.", name)));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 GATE_LOOK, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	(void) gate(cutover, NULL);
	cutover->passed_gate = true;
}

/* Phases whose hooks cannot undo anything: what fails there is told as an alert. */
static bool
is_guarded(const char *phase)
{
	return strcmp(phase, "after_open") == 0 || strcmp(phase, "undone") == 0 ||
		strcmp(phase, "lift") == 0;
}

/* The source did not take it: class 08, or it is shutting down or starting. */
static bool
is_not_reached(ErrorData *edata)
{
	const char *sqlstate = unpack_sql_state(edata->sqlerrcode);

	return strncmp(sqlstate, "08", 2) == 0 || strncmp(sqlstate, "57P", 3) == 0;
}

/*
 * A hook that fails undoes the cutover, unless that is over.
 */
static void
run_hook(MigrateCutover *cutover, Hook *hook, const char *phase, MigrateConn *conn,
		 int64 timeout_ms)
{
	if (strcmp(hook->side, "target") == 0)
		run_on_target(cutover, hook);
	else if (strcmp(hook->side, "source") == 0)
		run_on_source(cutover, hook, conn);
	else
		wait_at_gate(cutover, hook, phase, timeout_ms);
}

static void
run_hook_guarded(MigrateCutover *cutover, Hook *hook, const char *phase, MigrateConn *conn)
{
	ErrorData  *volatile edata = NULL;

	PG_TRY();
	{
		run_hook(cutover, hook, phase, conn, cutover->gate_timeout_ms);
	}
	PG_CATCH();
	{
		edata = migrate_recover(cutover->mcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cutover->mcxt);
	if (edata == NULL)
		return;
	/* whoever lifts a fence tries again */
	if (strcmp(phase, "lift") == 0 && is_not_reached(edata))
		ReThrowError(edata);
	migrate_cutover_event(cutover, "alert", "hook", "hook %d (%s) has failed: %s",
						  hook->hook_id, phase, edata->message);
}

void
migrate_cutover_hooks(MigrateCutover *cutover, const char *phase, MigrateConn *conn,
					  int64 timeout_ms)
{
	ListCell   *lc;

	foreach(lc, hooks_of(cutover, phase))
	{
		if (is_guarded(phase))
			run_hook_guarded(cutover, lfirst(lc), phase, conn);
		else
			run_hook(cutover, lfirst(lc), phase, conn, timeout_ms);
	}
}
