/*-------------------------------------------------------------------------
 *
 * job_copy.c
 *	  The job worker while it prepares and copies: plan, watch the loaders, see
 *	  when every chunk is done.
 *
 *	  preparing -> copying -> indexing
 *
 * States and locks: see job_worker.c; the state of each source table follows
 * its chunks here (look_at_sources).  With live capture, preparing begins with
 * the stream (P3), and while copying, which migrate_recopy comes back to, no
 * apply worker runs.  A crash leaves nothing that the next turn does not see.
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
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "control/job_worker.h"
#include "load/apply.h"

/* Definitions alone: there is nothing to copy. */
static void
skip_copy(void)
{
	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("UPDATE migrate.source_table SET state = 'copied'"
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
	migrate_job_connect(job);
	migrate_plan_sources(job, me.conn, 0);
	CommitTransactionCommand();
	migrate_drift_forget();
	if (strcmp(job->throttle_side, "source") != 0 || job->throttle_query[0] == '\0')
		migrate_job_drop_connection();
}

MigrateTurn
migrate_turn_prepare(MigrateJob *job)
{
	if (job->live && !migrate_live_prepare(job))
		return TURN_WAIT;
	plan(job);
	migrate_fault("job-planned");
	migrate_job_change_state("copying", NULL);
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
	migrate_job_exec("UPDATE migrate.source_table s SET state = 'copied'"
					 " WHERE s.job_id = $1 AND s.state = 'copying'"
					 " AND NOT EXISTS (SELECT FROM migrate.leaf l"
					 " WHERE l.source_id = s.source_id AND NOT l.exhausted)"
					 " AND NOT EXISTS (SELECT FROM migrate.chunk c WHERE c.job_id = $1"
					 " AND c.source_id = s.source_id AND c.state = 'todo')"
					 " AND NOT EXISTS (SELECT FROM migrate.chunk c WHERE c.job_id = $1"
					 " AND c.source_id = s.source_id AND c.state = 'running')", SPI_OK_UPDATE);
	any = SPI_processed > 0;
	migrate_job_exec("SELECT count(*) FILTER (WHERE state = 'pending'),"
					 " count(*) FILTER (WHERE state NOT IN ('copied', 'done'))"
					 " FROM migrate.source_table WHERE job_id = $1", SPI_OK_SELECT);
	*pending = migrate_spi_int64(0, 0, 0);
	*unfinished = migrate_spi_int64(0, 1, 0);
	migrate_spi_end();
	CommitTransactionCommand();
	if (any)
	{
		migrate_shared->tables_copied++;
		migrate_wake_loaders();
	}
	MemoryContextSwitchTo(me.cxt);
}

/* Too many dead letters, or a worker gave up: the job pauses itself, with the reason. */
bool
migrate_job_over_budget(MigrateJob *job)
{
	char	   *reason;
	char	   *kind;

	StartTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	reason = migrate_budget_exceeded(job, &kind);
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
		migrate_event(me.job_id, "alert", kind, "paused: %s", reason);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	return reason != NULL;
}

/* Note that chunks or steps were finished since the last look. */
void
migrate_job_watch_progress(void)
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

/*
 * No loader could be started: a chunk or step by ourselves, then look again.
 * Only meanwhile can somebody who cancels the job cancel what we do.
 */
MigrateTurn
migrate_job_work_by_ourselves(void)
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

MigrateTurn
migrate_turn_copy(MigrateJob *job)
{
	int64		pending,
				unfinished;
	MigrateVerdict verdict;

	/* migrate_recopy of a live job: it stays at its position meanwhile */
	if (job->live && !migrate_apply_stop(false))
		return TURN_WAIT;
	if (migrate_replan(job))
		migrate_wake_loaders();
	look_at_sources(&pending, &unfinished);
	if (pending > 0)
	{
		plan(job);
		migrate_wake_loaders();
	}
	migrate_job_watch_progress();
	if (migrate_job_over_budget(job) || migrate_drift_found(job, false))
		return TURN_AGAIN;		/* the wish is now to pause */
	if (migrate_trouble_verdict(job, me.last_progress, &verdict))
	{
		migrate_job_fail(verdict.sqlstate, verdict.message);
		return TURN_AGAIN;
	}
	if (pending == 0 && unfinished == 0)
	{
		/* the loaders go on with the steps */
		migrate_loader_disconnect(me.loader);
		if (migrate_drift_found(job, true))
			return TURN_AGAIN;
		migrate_job_change_state("indexing", NULL);
		migrate_wake_loaders();
		return TURN_AGAIN;
	}

	migrate_shared->stop = false;
	migrate_throttle_evaluate(job, &me.conn, me.conn_cxt);
	migrate_loaders_start(job, me.handle);
	if (migrate_loaders_alive() == 0 && !migrate_shared->hold)
		return migrate_job_work_by_ourselves();
	migrate_loader_disconnect(me.loader);
	migrate_worker_phase("watch");
	pgstat_report_activity(STATE_IDLE, psprintf("watching the loaders of job %s", job->name));
	return TURN_WAIT;
}
