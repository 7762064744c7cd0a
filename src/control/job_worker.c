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

#include "control/control.h"

PGDLLEXPORT void migrate_job_worker_main(Datum main_arg);

/* another worker of the job may be just leaving: wait so long for its lock */
#define LOCK_PATIENCE 5000

/* old events are removed this often, ms */
#define PURGE_INTERVAL (3600 * 1000)

typedef enum
{
	TURN_AGAIN,					/* there is more to do at once */
	TURN_WAIT,
	TURN_LEAVE
} Turn;

/* What a job worker knows for itself; nothing of it matters after a crash. */
static struct
{
	int			job_id;
	dsm_handle	handle;
	bool		published;		/* the handle is in the job's row */
	MemoryContext cxt;			/* of one turn */
	MigrateLoader *loader;		/* to do the loaders' work by ourselves */
	MigrateConn *conn;			/* to plan, and for throttle_query */
	MemoryContext conn_cxt;
	bool		changed;		/* a state was changed: tell the waiting */
	volatile bool cancelable;	/* SIGINT ends what is at hand */

	/* progress: a chunk or step done by anybody */
	int64		work_seen;
	TimestampTz last_progress;

	/* errors of turns in a row */
	int			errors;
	int			equal_errors;
	TimestampTz error_since;
	char		sqlstate[6];
	TimestampTz not_before;		/* back-off */
	bool		backed_off;		/* this turn only waited for that */
	TimestampTz last_purge;
}			me;

static void
exec_for_job(const char *sql, int expected)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(me.job_id);

	migrate_spi_exec(sql, 1, &type, &arg, NULL, expected);
}

static void
change_state(const char *state, const char *reason)
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
	exec_for_job("SELECT pg_catalog.pg_terminate_backend(a.pid, 5000)"
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
	exec_for_job("SELECT s.works AND j.wanted IN ('run', 'cancel')"
				 " FROM migrate.job j JOIN migrate.job_state s USING (state)"
				 " WHERE j.job_id = $1 FOR NO KEY UPDATE OF j", SPI_OK_SELECT);
	stay = SPI_processed > 0 && migrate_spi_text(0, 0)[0] == 't';
	if (!stay && SPI_processed > 0)
		exec_for_job("UPDATE migrate.job SET shm_handle = 0 WHERE job_id = $1", SPI_OK_UPDATE);
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
static bool
loaders_ended(bool at_once)
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

static Turn
turn_pause(void)
{
	migrate_worker_phase("pausing");
	if (!loaders_ended(false))
		return TURN_WAIT;
	return leave("paused") ? TURN_LEAVE : TURN_AGAIN;
}

static Turn
turn_cancel(void)
{
	migrate_worker_phase("cancelling");
	if (!loaders_ended(true))
		return TURN_WAIT;
	change_state("cancelled", NULL);
	return TURN_AGAIN;			/* and leave from there */
}

/* copied, failed, cancelled, or the job was dropped */
static Turn
turn_end(bool at_once)
{
	if (!loaders_ended(at_once))
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
static void
drop_connection(void)
{
	MigrateConn *conn = me.conn;

	me.conn = NULL;
	if (conn)
		migrate_disconnect(conn);
	MemoryContextReset(me.conn_cxt);
}

/* Definitions alone: there is nothing to copy. */
static void
skip_copy(void)
{
	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_job("UPDATE migrate.source_table SET state = 'copied'"
				 " WHERE job_id = $1 AND state = 'pending'", SPI_OK_UPDATE);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
}

/* Plan every source table that is 'pending'. */
static void
plan(MigrateJob *job)
{
	if (strcmp(job->content, "definitions") == 0)
	{
		skip_copy();
		return;
	}
	migrate_worker_phase("plan");
	pgstat_report_activity(STATE_RUNNING, "planning the copy");
	StartTransactionCommand();
	if (me.conn == NULL && migrate_server_is_postgres(job->server))
	{
		MemoryContextSwitchTo(me.conn_cxt);
		me.conn = migrate_connect(job->server, job->owner, job->name, "job",
								  job->connect_timeout_s);
	}
	MemoryContextSwitchTo(me.cxt);
	migrate_plan_sources(job, me.conn, 0);
	CommitTransactionCommand();
	migrate_drift_forget();
	if (strcmp(job->throttle_side, "source") != 0 || job->throttle_query[0] == '\0')
		drop_connection();
}

static Turn
turn_prepare(MigrateJob *job)
{
	plan(job);
	migrate_fault("job-planned");
	change_state("copying", NULL);
	return TURN_AGAIN;
}

/*
 * Source tables whose every chunk is done are 'copied', and their indexes can
 * be built.  Says how many are still to plan, and how many still to copy.  The two states of chunks that
 * are not done are asked for apart, each has its partial index.
 */
static void
look_at_sources(int64 *pending, int64 *unfinished)
{
	bool		any;

	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_job("UPDATE migrate.source_table s SET state = 'copied'"
				 " WHERE s.job_id = $1 AND s.state = 'copying'"
				 " AND NOT EXISTS (SELECT FROM migrate.leaf l"
				 " WHERE l.source_id = s.source_id AND NOT l.exhausted)"
				 " AND NOT EXISTS (SELECT FROM migrate.chunk c WHERE c.job_id = $1"
				 " AND c.source_id = s.source_id AND c.state = 'todo')"
				 " AND NOT EXISTS (SELECT FROM migrate.chunk c WHERE c.job_id = $1"
				 " AND c.source_id = s.source_id AND c.state = 'running')", SPI_OK_UPDATE);
	any = SPI_processed > 0;
	exec_for_job("SELECT count(*) FILTER (WHERE state = 'pending'),"
				 " count(*) FILTER (WHERE state NOT IN ('copied', 'done'))"
				 " FROM migrate.source_table WHERE job_id = $1", SPI_OK_SELECT);
	*pending = migrate_spi_int64(0, 0, 0);
	*unfinished = migrate_spi_int64(0, 1, 0);
	migrate_spi_end();
	CommitTransactionCommand();
	if (any)
		migrate_wake_loaders();
	MemoryContextSwitchTo(me.cxt);
}

/* Too many dead letters: the job pauses itself, with the reason. */
static bool
over_budget(MigrateJob *job)
{
	char	   *reason;

	StartTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	reason = migrate_budget_exceeded(job);
	if (reason)
	{
		Oid			types[2] = {INT4OID, TEXTOID};
		Datum		values[2];

		values[0] = Int32GetDatum(me.job_id);
		values[1] = CStringGetTextDatum(reason);
		migrate_spi_begin();
		migrate_spi_exec("UPDATE migrate.job SET wanted = 'pause', pause_reason = $2"
						 " WHERE job_id = $1 AND wanted = 'run'",
						 2, types, values, NULL, SPI_OK_UPDATE);
		migrate_spi_end();
		migrate_event(me.job_id, "alert", "budget", "paused: %s", reason);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	return reason != NULL;
}

/* Note that chunks or steps were finished since the last look. */
static void
watch_progress(void)
{
	int64		work = 0;

	SpinLockAcquire(&migrate_shared->mutex);
	for (int i = 0; i <= MIGRATE_MAX_LOADERS; i++)
		work += migrate_shared->slots[i].chunks + migrate_shared->slots[i].steps;
	SpinLockRelease(&migrate_shared->mutex);
	if (work > me.work_seen)
		me.last_progress = GetCurrentTimestamp();
	me.work_seen = work;
}

/* The job must fail: the error in its row, with the state. */
static void
fail(const char *sqlstate, const char *message)
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

/*
 * No loader could be started: a chunk or step by ourselves, then look again.
 * Only meanwhile can somebody who cancels the job cancel what we do.
 */
static Turn
work_by_ourselves(void)
{
	MigrateStep step;

	me.cancelable = true;
	step = migrate_loader_step(me.loader);
	me.cancelable = false;
	QueryCancelPending = false;
	switch (step)
	{
		case MIGRATE_STEP_LOADED:
		case MIGRATE_STEP_BUILT:
			return TURN_AGAIN;
		case MIGRATE_STEP_ERROR:
			me.not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														migrate_backoff(me.loader->errors,
																		me.loader->retry_max_delay_ms));
			return TURN_WAIT;
		default:
			return TURN_WAIT;
	}
}

static Turn
turn_copy(MigrateJob *job)
{
	int64		pending,
				unfinished;
	MigrateVerdict verdict;

	if (migrate_replan(job))
		migrate_wake_loaders();
	look_at_sources(&pending, &unfinished);
	if (pending > 0)
	{
		plan(job);
		migrate_wake_loaders();
	}
	watch_progress();
	if (over_budget(job) || migrate_drift_found(job, false))
		return TURN_AGAIN;		/* the wish is now to pause */
	if (migrate_trouble_verdict(job, me.last_progress, &verdict))
	{
		fail(verdict.sqlstate, verdict.message);
		return TURN_AGAIN;
	}
	if (pending == 0 && unfinished == 0)
	{
		/* the loaders go on with the steps */
		migrate_loader_disconnect(me.loader);
		if (migrate_drift_found(job, true))
			return TURN_AGAIN;
		change_state("indexing", NULL);
		migrate_wake_loaders();
		return TURN_AGAIN;
	}

	migrate_shared->stop = false;
	migrate_throttle_evaluate(job, &me.conn, me.conn_cxt);
	migrate_loaders_start(job, me.handle);
	if (migrate_loaders_alive() == 0 && !migrate_shared->hold)
		return work_by_ourselves();
	migrate_loader_disconnect(me.loader);
	migrate_worker_phase("watch");
	pgstat_report_activity(STATE_IDLE, psprintf("watching the loaders of job %s", job->name));
	return TURN_WAIT;
}

/*
 * Source tables whose steps are all over are 'done'.  Says how many steps are
 * not over, and how many have failed.
 */
static void
look_at_steps(int64 *open, int64 *failed)
{
	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_job("UPDATE migrate.source_table s SET state = 'done'"
				 " WHERE s.job_id = $1 AND s.state = 'copied' AND NOT EXISTS"
				 " (SELECT FROM migrate.mapping m"
				 "  JOIN migrate.post_step p ON p.mapping_id = m.mapping_id"
				 "  WHERE m.source_id = s.source_id AND p.state IN ('todo', 'running'))",
				 SPI_OK_UPDATE);
	exec_for_job("SELECT count(*) FILTER (WHERE state IN ('todo', 'running')),"
				 " count(*) FILTER (WHERE state = 'failed')"
				 " FROM migrate.post_step WHERE job_id = $1", SPI_OK_SELECT);
	*open = migrate_spi_int64(0, 0, 0);
	*failed = migrate_spi_int64(0, 1, 0);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
}

/*
 * The error of a key that failed, or of doubles that stayed: without it rows
 * cannot be told apart.  False when there is none.
 */
static bool
failed_key(char **sqlstate, char **error)
{
	bool		found;

	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_job("SELECT sqlstate, pg_catalog.format('%s %s%s: %s', kind, object,"
				 "  ' of ' || relation, error)"
				 " FROM migrate.post_step WHERE job_id = $1 AND state = 'failed'"
				 " AND kind IN ('key', 'doubles') ORDER BY step_id LIMIT 1", SPI_OK_SELECT);
	found = SPI_processed > 0;
	if (found)
	{
		*sqlstate = MemoryContextStrdup(me.cxt, migrate_spi_text(0, 0));
		*error = MemoryContextStrdup(me.cxt, migrate_spi_text(0, 1));
	}
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	return found;
}

/* In the current transaction: an alert that lists the steps that failed. */
static void
alert_of_failed_steps(void)
{
	exec_for_job("SELECT migrate._event($1, 'alert', 'steps_failed', pg_catalog.format("
				 "  '%s of the steps after the copy %s failed: %s', count(*),"
				 "  CASE count(*) WHEN 1 THEN 'has' ELSE 'have' END,"
				 "  string_agg(pg_catalog.concat(p.kind, ' ', p.object,"
				 "   ' of ' || p.relation, ' (', p.sqlstate, ')'), ', ' ORDER BY p.step_id)),"
				 " jsonb_build_object('steps', jsonb_agg(p.step_id ORDER BY p.step_id)))"
				 " FROM migrate.post_step p WHERE p.job_id = $1 AND p.state = 'failed'",
				 SPI_OK_SELECT);
}

/* No step is left to run. */
static Turn
steps_over(bool any_failed)
{
	char	   *sqlstate,
			   *error;

	if (!loaders_ended(false))
		return TURN_WAIT;
	if (any_failed && failed_key(&sqlstate, &error))
	{
		fail(sqlstate, error);
		return TURN_AGAIN;
	}
	migrate_fault("job-indexed");
	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_job("UPDATE migrate.source_table SET state = 'done'"
				 " WHERE job_id = $1 AND state = 'copied'", SPI_OK_UPDATE);
	if (any_failed)
		alert_of_failed_steps();
	migrate_spi_end();
	migrate_set_state(me.job_id, "copied", NULL);
	CommitTransactionCommand();
	me.changed = true;
	return TURN_AGAIN;
}

/* throttle_query is about the copy. */
static void
end_hold(void)
{
	migrate_shared->hold = false;
	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->hold_reason[0] = migrate_shared->throttle[0] = '\0';
	SpinLockRelease(&migrate_shared->mutex);
}

static Turn
turn_index(MigrateJob *job)
{
	int64		open,
				failed;
	MigrateVerdict verdict;

	drop_connection();
	look_at_steps(&open, &failed);
	if (open == 0)
		return steps_over(failed > 0);
	watch_progress();
	if (migrate_trouble_verdict(job, me.last_progress, &verdict))
	{
		fail(verdict.sqlstate, verdict.message);
		return TURN_AGAIN;
	}
	migrate_shared->stop = false;
	end_hold();
	migrate_loaders_start(job, me.handle);
	if (migrate_loaders_alive() == 0)
		return work_by_ourselves();
	migrate_worker_phase("watch");
	pgstat_report_activity(STATE_IDLE, psprintf("watching the steps of job %s", job->name));
	return TURN_WAIT;
}

/* event_retention, once an hour. */
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
	exec_for_job("DELETE FROM migrate.event WHERE job_id = $1 AND at < pg_catalog.now()"
				 " - pg_catalog.make_interval(secs => migrate._option($1, 'event_retention')::float8 / 1000)",
				 SPI_OK_DELETE);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
}

/* ----------------------------------------------------------------
 * turns
 * ----------------------------------------------------------------
 */
static Turn
turn_by_state(MigrateJob *job)
{
	if (strcmp(job->state, "defined") == 0)
	{
		change_state("preparing", NULL);
		return TURN_AGAIN;
	}
	if (strcmp(job->state, "preparing") == 0)
		return turn_prepare(job);
	if (strcmp(job->state, "copying") == 0)
		return turn_copy(job);
	if (strcmp(job->state, "indexing") == 0)
		return turn_index(job);
	return turn_end(strcmp(job->state, "copied") != 0);
}

static Turn
turn(void)
{
	MigrateJob *job;
	bool		works;

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
		return turn_end(true);
	migrate_loaders_reap(job);
	migrate_throttle_limits(job);
	migrate_fault("job-turn");

	works = strcmp(job->state, "defined") == 0 || strcmp(job->state, "preparing") == 0 ||
		strcmp(job->state, "copying") == 0 || strcmp(job->state, "indexing") == 0;
	if (works && strcmp(job->wanted, "cancel") == 0)
		return turn_cancel();
	if (works && strcmp(job->wanted, "run") != 0)
		return turn_pause();
	if (works && GetCurrentTimestamp() < me.not_before)
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
	CommitTransactionCommand();
	if (lasts)
		fail(sqlstate, edata->message);
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
	drop_connection();
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
static Turn
guarded_turn(void)
{
	ErrorData  *volatile edata = NULL;
	volatile Turn result = TURN_WAIT;

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
		turn_failed(edata);
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
 * makes us look.
 */
static void
handle_cancel(SIGNAL_ARGS)
{
	if (me.cancelable)
		StatementCancelHandler(postgres_signal_arg);
	else
		SetLatch(MyLatch);
}

void
migrate_job_worker_main(Datum main_arg)
{
	MigrateJobArgs args;
	Turn		result;

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
	drop_connection();
	migrate_loader_disconnect(me.loader);
	proc_exit(0);
}
