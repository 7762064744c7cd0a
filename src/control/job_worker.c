/*-------------------------------------------------------------------------
 *
 * job_worker.c
 *	  The job worker: owns the state machine of one job.
 *
 * Process: dynamic background worker "migrate job", as the job's owner, one a
 * running job.  It is started by migrate_start and migrate_resume (then it
 * first waits for that transaction to end, and looks whether it committed), or
 * by the launcher.
 *
 *	  defined -> preparing -> copying -> indexing -> copied, then it leaves
 *	  with live capture, instead of copied: catching_up -> streaming, where it
 *	  watches until it is told otherwise
 *
 * What it does in each state is in job_copy.c, job_steps.c, live.c and
 * resync.c; what is common to all is here.
 *
 * It works in turns: read the job's row, follow the wish (job.wanted), do the
 * next piece of work of the state, sleep on the latch for a second at most.
 * All it knows is in the catalog, so a turn may end anywhere, by an error or
 * by kill -9, and the next turn, or the next job worker, goes on.  An error
 * ends the turn, not the process: it is noted in the job's row and the turn
 * tried again after a back-off; when it lasts, the job is 'failed' with the
 * error in view.
 *
 * Locks: the job's session lock as long as it lives (P22), which makes it the
 * only one; row locks on migrate.job for the moments of a change.
 *
 * Leaving: the job's row is locked, looked at once more, the shared memory's
 * handle is taken out and the session lock released before that commits; so
 * whoever writes a wish after us sees that no worker lives, and starts one.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timeout.h"

#include "control/job_worker.h"
#include "cutover/reverse.h"
#include "extract/stream.h"
#include "load/apply.h"

PGDLLEXPORT void migrate_job_worker_main(Datum main_arg);

/* another worker of the job may be just leaving: wait so long for its lock */
#define LOCK_PATIENCE 5000

/* old events are removed this often, ms */
#define PURGE_INTERVAL (3600 * 1000)

MigrateJobWorker migrate_job_me;

void
migrate_job_exec(const char *sql, int expected)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(me.job_id);

	migrate_spi_exec(sql, 1, &type, &arg, NULL, expected);
}

void
migrate_job_change_state(const char *state, const char *reason)
{
	StartTransactionCommand();
	migrate_set_state(me.job_id, state, reason);
	CommitTransactionCommand();
	me.changed = true;
}

/* ----------------------------------------------------------------
 * begin
 * ----------------------------------------------------------------
 */

/* The transaction that asked for us; if it rolls back, the row tells. */
static void
wait_for_starter(TransactionId xid)
{
	if (!TransactionIdIsValid(xid))
		return;
	pgstat_report_activity(STATE_RUNNING, "waiting for the transaction that starts the job");
	StartTransactionCommand();
	XactLockTableWait(xid, NULL, NULL, XLTW_None);
	CommitTransactionCommand();
}

static bool
become_the_one(void)
{
	TimestampTz start = GetCurrentTimestamp();

	while (!migrate_job_lock(me.job_id))
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), LOCK_PATIENCE))
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 50, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

/*
 * End the loaders of an earlier job worker that are in the middle of a step:
 * they are fenced off by the attempt, but could stand in the way for hours.
 */
static void
end_orphans(void)
{
	migrate_job_exec("SELECT pg_catalog.pg_terminate_backend(a.pid, 5000)"
					 " FROM migrate.post_step p JOIN pg_catalog.pg_stat_activity a"
					 " ON a.pid = p.worker_pid AND a.backend_type = 'migrate loader'"
					 " AND a.datid = (SELECT d.oid FROM pg_catalog.pg_database d"
					 "  WHERE d.datname = pg_catalog.current_database())"
					 " AND a.backend_start <= p.started_at"
					 " WHERE p.job_id = $1 AND p.state = 'running'", SPI_OK_SELECT);
}

/*
 * Let the others find our shared memory.  Chunks and steps that are marked
 * running are nobody's: loaders of an earlier job worker are fenced off by the
 * attempt.
 */
static void
publish(void)
{
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		values[2];
	int			chunks,
				steps;

	StartTransactionCommand();
	values[0] = Int32GetDatum(me.job_id);
	values[1] = Int64GetDatum((int64) me.handle);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.job SET shm_handle = $2 WHERE job_id = $1",
					 2, types, values, NULL, SPI_OK_UPDATE);
	end_orphans();
	migrate_spi_end();
	chunks = migrate_chunks_release(me.job_id, 0);
	steps = migrate_steps_release(me.job_id, 0);
	if (chunks > 0 || steps > 0)
		migrate_event(me.job_id, "warning", "restart",
					  "the workers have ended without notice and go on; to begin again: %d chunks, %d steps",
					  chunks, steps);
	CommitTransactionCommand();
	me.published = true;
}

/* ----------------------------------------------------------------
 * the wishes
 * ----------------------------------------------------------------
 */

/*
 * Leave, if there is still nothing to do for us.  False: the wish has changed,
 * stay.  After true the lock is no longer ours.
 */
static bool
leave(const char *event)
{
	bool		stay;

	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("SELECT s.works AND j.wanted IN ('run', 'cancel')"
					 " OR (j.wanted = 'cancel' AND j.state NOT IN ('finished', 'cancelled'))"
					 " FROM migrate.job j JOIN migrate.job_state s USING (state)"
					 " WHERE j.job_id = $1 FOR NO KEY UPDATE OF j", SPI_OK_SELECT);
	stay = SPI_processed > 0 && migrate_spi_text(0, 0)[0] == 't';
	if (!stay && SPI_processed > 0)
		migrate_job_exec("UPDATE migrate.job SET shm_handle = 0 WHERE job_id = $1", SPI_OK_UPDATE);
	migrate_spi_end();
	if (!stay)
	{
		migrate_chunks_release(me.job_id, 0);
		migrate_steps_release(me.job_id, 0);
		if (event)
			migrate_event(me.job_id, "info", event, "%s", event);
		migrate_job_unlock(me.job_id);
	}
	CommitTransactionCommand();
	me.changed = true;
	return !stay;
}

/*
 * Bring the loaders to an end: they finish what is at hand, or not.  True
 * when none is left.
 */
bool
migrate_job_loaders_ended(bool at_once)
{
	migrate_shared->stop = true;
	if (migrate_loaders_alive() == 0)
		return true;
	if (at_once)
		migrate_loaders_terminate();
	else
		migrate_wake_loaders();
	return false;
}

/* Likewise with the apply and reverse workers. */
static bool
workers_ended(bool at_once)
{
	bool		ended = migrate_apply_stop(at_once);

	ended = migrate_reverse_stop(me.job_id) && ended;
	return migrate_job_loaders_ended(at_once) && ended;
}

/* The source's changes are still taken in. */
static MigrateTurn
turn_pause(MigrateJob *job)
{
	migrate_worker_phase("pausing");
	if (job->live)
		migrate_capture_ensure(job);
	if (!workers_ended(false))
		return TURN_WAIT;
	return leave("paused") ? TURN_LEAVE : TURN_AGAIN;
}

static MigrateTurn
turn_cancel(void)
{
	migrate_worker_phase("cancelling");
	if (!workers_ended(true))
		return TURN_WAIT;
	migrate_job_change_state("cancelled", NULL);
	return TURN_AGAIN;			/* and leave from there */
}

/*
 * copied, finished, failed, cancelled, or the job was dropped (NULL).  Of one
 * that failed, the source's changes are still taken in.
 */
static MigrateTurn
turn_end(MigrateJob *job, bool at_once)
{
	if (job && job->live && strcmp(job->state, "failed") == 0)
		migrate_capture_ensure(job);
	MemoryContextSwitchTo(me.cxt);
	if (!workers_ended(at_once))
		return TURN_WAIT;
	return leave(NULL) ? TURN_LEAVE : TURN_AGAIN;
}

/*
 * For throttle waits of a job worker that copies by itself, in the middle of
 * a chunk's transaction: is it still wished, and which limits hold?
 */
void
migrate_job_worker_glance(void)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateJob *job = migrate_job_load(me.job_id);

	MemoryContextSwitchTo(mcxt);
	if (job == NULL || strcmp(job->wanted, "run") != 0)
		migrate_shared->stop = true;
	else
		migrate_throttle_limits(job);
}

/* ----------------------------------------------------------------
 * the work
 * ----------------------------------------------------------------
 */
void
migrate_job_drop_connection(void)
{
	MigrateConn *conn = me.conn;

	me.conn = NULL;
	if (conn)
		migrate_disconnect(conn);
	MemoryContextReset(me.conn_cxt);
}

/* Connect to the source, if that is not done yet; in a transaction. */
void
migrate_job_connect(MigrateJob *job)
{
	if (me.conn == NULL && migrate_server_is_postgres(job->server))
	{
		MemoryContextSwitchTo(me.conn_cxt);
		me.conn = migrate_connect(job->server, job->owner, job->name, "job",
								  job->connect_timeout_s);
	}
	MemoryContextSwitchTo(me.cxt);
}

/* The job must fail: the error in its row, with the state. */
void
migrate_job_fail(const char *sqlstate, const char *message)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3];

	StartTransactionCommand();
	values[0] = Int32GetDatum(me.job_id);
	values[1] = CStringGetTextDatum(sqlstate);
	values[2] = CStringGetTextDatum(message);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.job SET last_sqlstate = $2, last_error = $3,"
					 " last_error_at = clock_timestamp() WHERE job_id = $1",
					 3, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_end();
	migrate_set_state(me.job_id, "failed", psprintf("%s: %s", sqlstate, message));
	CommitTransactionCommand();
	me.changed = true;
}

/* event_retention and validation_retention, once an hour. */
static void
purge(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (me.last_purge != 0 &&
		!TimestampDifferenceExceeds(me.last_purge, now, PURGE_INTERVAL))
		return;
	me.last_purge = now;
	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("DELETE FROM migrate.event WHERE job_id = $1 AND at < pg_catalog.now()"
					 " - pg_catalog.make_interval(secs => nullif(migrate._option($1, 'event_retention')::float8, 0) / 1000)",
					 SPI_OK_DELETE);
	migrate_job_exec("SELECT migrate._purge_validations($1)", SPI_OK_SELECT);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
}

/* ----------------------------------------------------------------
 * turns
 * ----------------------------------------------------------------
 */

/*
 * Between both sides: such a job may not fail, pause or be cancelled, for
 * nobody else would open either side.
 */
static bool
is_switching(const char *state)
{
	return strcmp(state, "cutting_over") == 0 || strcmp(state, "rolling_back") == 0;
}

static MigrateTurn
turn_by_state(MigrateJob *job)
{
	bool		resync = false;

	if (strcmp(job->state, "defined") == 0)
	{
		migrate_job_change_state("preparing", NULL);
		return TURN_AGAIN;
	}
	if (is_switching(job->state) || strcmp(job->state, "cut_over") == 0)
		return migrate_turn_switch(job);
	if (job->live && migrate_live_begin_turn(job, &resync))
		return TURN_AGAIN;
	if (resync)
		return migrate_turn_resync(job);
	if (strcmp(job->state, "preparing") == 0)
		return migrate_turn_prepare(job);
	if (strcmp(job->state, "copying") == 0)
		return migrate_turn_copy(job);
	if (strcmp(job->state, "indexing") == 0)
		return migrate_turn_index(job);
	if (strcmp(job->state, "catching_up") == 0)
		return migrate_turn_catch_up(job);
	return migrate_turn_stream(job);
}

/* The states that are job_state.works. */
static bool
state_works(const char *state)
{
	static const char *const states[] = {"defined", "preparing", "copying", "indexing",
	"catching_up", "streaming", "cutting_over", "rolling_back", "cut_over"};

	for (int i = 0; i < lengthof(states); i++)
		if (strcmp(state, states[i]) == 0)
			return true;
	return false;
}

static bool
may_be_cancelled(const char *state)
{
	return !is_switching(state) && strcmp(state, "finished") != 0 &&
		strcmp(state, "cancelled") != 0;
}

static MigrateTurn
turn(void)
{
	MigrateJob *job;

	if (!migrate_job_lock(me.job_id))
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("job %d has another worker", me.job_id)));
	if (!me.published)
		publish();
	StartTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	job = migrate_job_load(me.job_id);
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	if (job == NULL)
		return turn_end(NULL, true);
	migrate_loaders_reap(job);
	migrate_throttle_limits(job);
	migrate_fault("job-turn");

	/* also when it has just failed, or was copied, and we have not left yet */
	if (strcmp(job->wanted, "cancel") == 0 && may_be_cancelled(job->state))
		return turn_cancel();
	if (!state_works(job->state))
		return turn_end(job, strcmp(job->state, "copied") != 0 &&
						strcmp(job->state, "finished") != 0);
	if (strcmp(job->wanted, "run") != 0 && !is_switching(job->state))
		return turn_pause(job);
	if (GetCurrentTimestamp() < me.not_before)
	{
		me.backed_off = true;
		return TURN_WAIT;
	}
	purge();
	return turn_by_state(job);
}

/*
 * What an error of a turn does to the job.  Throws when it cannot be written
 * down.
 */
static void
note_turn_error(ErrorData *edata, const char *sqlstate)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3];
	MigrateJob *job;
	bool		lasts;

	StartTransactionCommand();
	job = migrate_job_load(me.job_id);
	if (job == NULL)
	{
		CommitTransactionCommand();
		return;
	}
	me.not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												migrate_backoff(me.errors, job->retry_max_delay_ms));
	values[0] = Int32GetDatum(me.job_id);
	values[1] = CStringGetTextDatum(sqlstate);
	values[2] = CStringGetTextDatum(edata->message);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.job SET last_sqlstate = $2, last_error = $3,"
					 " last_error_at = clock_timestamp() WHERE job_id = $1",
					 3, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_end();
	if (me.equal_errors == 1)
		migrate_event(me.job_id, "warning", "worker_error", "%s: %s%s%s",
					  sqlstate, edata->message,
					  edata->detail ? "; " : "", edata->detail ? edata->detail : "");
	lasts = migrate_error_is_transient(sqlstate) ?
		TimestampDifferenceExceeds(me.error_since, GetCurrentTimestamp(), job->retry_time_ms) :
		me.equal_errors >= 3;
	lasts = lasts && !is_switching(job->state);
	CommitTransactionCommand();
	if (lasts)
		migrate_job_fail(sqlstate, edata->message);
}

static void
turn_failed(ErrorData *edata)
{
	char		sqlstate[6];
	volatile bool noted = true;

	strlcpy(sqlstate, unpack_sql_state(edata->sqlerrcode), sizeof(sqlstate));
	me.equal_errors = strcmp(me.sqlstate, sqlstate) == 0 ? me.equal_errors + 1 : 1;
	strlcpy(me.sqlstate, sqlstate, sizeof(me.sqlstate));
	if (me.errors++ == 0)
		me.error_since = GetCurrentTimestamp();
	migrate_job_drop_connection();
	PG_TRY();
	{
		note_turn_error(edata, sqlstate);
	}
	PG_CATCH();
	{
		(void) migrate_recover(me.cxt);
		noted = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(me.cxt);
	if (!noted)
		me.not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													migrate_backoff(me.errors, 30000));

	/* nothing can be written any more, as after DROP EXTENSION */
	if (!noted && me.errors >= 3 && !migrate_error_is_transient(sqlstate))
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("worker of job %d cannot go on", me.job_id)));
}

/* One turn, caught. */
static MigrateTurn
guarded_turn(void)
{
	ErrorData  *volatile edata = NULL;
	volatile MigrateTurn result = TURN_WAIT;

	MemoryContextReset(me.cxt);
	MemoryContextSwitchTo(me.cxt);
	me.changed = me.backed_off = false;
	PG_TRY();
	{
		result = turn();
	}
	PG_CATCH();
	{
		edata = migrate_recover(me.cxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(me.cxt);
	if (edata)
	{
		me.cancelable = false;
		QueryCancelPending = false;
		turn_failed(edata);
	}
	else if (!me.backed_off)
		me.errors = me.equal_errors = 0;
	if (me.changed)
		ConditionVariableBroadcast(&migrate_shared->changed);
	pgstat_report_stat(false);
	migrate_slot_memory();
	return result;
}

/* Sleep until woken, for a second at most. */
static void
nap(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 MIGRATE_NAP, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
}

/*
 * SIGINT, from migrate_cancel.  Where we do not work by ourselves it only
 * makes us look.  A lock_timeout of ours comes the same way.
 */
static void
handle_cancel(SIGNAL_ARGS)
{
	if (me.cancelable || get_timeout_indicator(LOCK_TIMEOUT, false))
		StatementCancelHandler(postgres_signal_arg);
	else
		SetLatch(MyLatch);
}

void
migrate_job_worker_main(Datum main_arg)
{
	MigrateJobArgs args;
	MigrateTurn result;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	me.job_id = args.job_id;
	before_shmem_exit(migrate_launcher_worker_ends, (Datum) 0);
	pqsignal(SIGINT, handle_cancel);
	migrate_worker_init(args.database, args.owner);
	wait_for_starter(args.xid);
	if (!become_the_one())
		proc_exit(0);			/* the other one does it */

	me.cxt = AllocSetContextCreate(TopMemoryContext, "migrate job turn",
								   ALLOCSET_DEFAULT_SIZES);
	me.conn_cxt = AllocSetContextCreate(TopMemoryContext, "migrate job connection",
										ALLOCSET_DEFAULT_SIZES);
	me.loader = migrate_loader_create(me.job_id);
	me.last_progress = GetCurrentTimestamp();
	me.handle = migrate_shmem_create(me.job_id);
	do
	{
		CHECK_FOR_INTERRUPTS();
		migrate_worker_reload();
		result = guarded_turn();
		if (result == TURN_WAIT)
			nap();
	} while (result != TURN_LEAVE);
	migrate_job_drop_connection();
	migrate_loader_disconnect(me.loader);
	proc_exit(0);
}
