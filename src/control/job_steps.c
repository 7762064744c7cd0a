/*-------------------------------------------------------------------------
 *
 * job_steps.c
 *	  The job worker while steps after the copy run: keys, indexes, constraints
 *	  and what else is in migrate.post_step.
 *
 *	  indexing -> copied
 *	  with live capture: indexing (keys, P9) -> catching_up, and the other
 *	  steps there, from live.c, while changes are applied
 *
 * Loaders do them, see load/step_claim.c for the order.  A key that fails
 * fails the job; other steps that fail are named in an alert.
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


/*
 * Source tables whose steps are all over are 'done'.  Says how many steps that
 * the state has room for are not over (P9, see step_claim.c).
 */
static int64
look_at_steps(MigrateJob *job)
{
	int64		open;

	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("UPDATE migrate.source_table s SET state = 'done'"
					 " WHERE s.job_id = $1 AND s.state = 'copied' AND NOT EXISTS"
					 " (SELECT FROM migrate.mapping m"
					 "  JOIN migrate.post_step p ON p.mapping_id = m.mapping_id"
					 "  WHERE m.source_id = s.source_id AND p.state IN ('todo', 'running'))",
					 SPI_OK_UPDATE);
	migrate_job_exec(migrate_steps_are_early(job) ?
					 "SELECT count(*) FROM migrate.post_step p"
					 " WHERE p.job_id = $1 AND p.state IN ('todo', 'running')"
					 " AND " MIGRATE_STEP_IS_EARLY :
					 "SELECT count(*) FROM migrate.post_step p"
					 " WHERE p.job_id = $1 AND p.state IN ('todo', 'running')",
					 SPI_OK_SELECT);
	open = migrate_spi_int64(0, 0, 0);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	return open;
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
	migrate_job_exec("SELECT sqlstate, pg_catalog.format('%s %s%s: %s', kind, object,"
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

/* In the current transaction: an alert that lists the steps that failed, if any. */
static void
alert_of_failed_steps(void)
{
	migrate_job_exec("SELECT migrate._event($1, 'alert', 'steps_failed', pg_catalog.format("
					 "  '%s of the steps after the copy %s failed: %s', count(*),"
					 "  CASE count(*) WHEN 1 THEN 'has' ELSE 'have' END,"
					 "  string_agg(pg_catalog.concat(p.kind, ' ', p.object,"
					 "   ' of ' || p.relation, ' (', p.sqlstate, ')'), ', ' ORDER BY p.step_id)),"
					 " jsonb_build_object('steps', jsonb_agg(p.step_id ORDER BY p.step_id)))"
					 " FROM migrate.post_step p WHERE p.job_id = $1 AND p.state = 'failed'"
					 " HAVING count(*) > 0",
					 SPI_OK_SELECT);
}

/*
 * No step of the state is left to run, and loaders have ended.  False: a key
 * failed, without which rows cannot be told apart, and the job with it.
 */
bool
migrate_job_keys_built(void)
{
	char	   *sqlstate,
			   *error;

	if (!failed_key(&sqlstate, &error))
		return true;
	migrate_job_fail(sqlstate, error);
	return false;
}

void
migrate_job_steps_over(const char *state)
{
	migrate_fault("job-indexed");
	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("UPDATE migrate.source_table SET state = 'done'"
					 " WHERE job_id = $1 AND state = 'copied'", SPI_OK_UPDATE);
	alert_of_failed_steps();
	migrate_spi_end();
	migrate_set_state(me.job_id, state, NULL);
	CommitTransactionCommand();
	me.changed = true;
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

MigrateTurn
migrate_job_run_steps(MigrateJob *job, bool *over)
{
	int64		open = look_at_steps(job);
	MigrateVerdict verdict;

	*over = false;
	if (open == 0)
	{
		if (!migrate_job_loaders_ended(false))
			return TURN_WAIT;
		*over = true;
		return TURN_AGAIN;
	}
	migrate_job_watch_progress();
	if (migrate_trouble_verdict(job, me.last_progress, &verdict))
	{
		migrate_job_fail(verdict.sqlstate, verdict.message);
		return TURN_AGAIN;
	}
	migrate_shared->stop = false;
	end_hold();
	migrate_loaders_start(job, me.handle);
	if (migrate_loaders_alive() == 0)
		return migrate_job_work_by_ourselves();
	migrate_worker_phase("watch");
	pgstat_report_activity(STATE_IDLE, psprintf("watching the steps of job %s", job->name));
	return TURN_WAIT;
}

MigrateTurn
migrate_turn_index(MigrateJob *job)
{
	bool		over;
	MigrateTurn result;

	migrate_job_drop_connection();
	result = migrate_job_run_steps(job, &over);
	if (!over || !migrate_job_keys_built())
		return result;
	if (job->live)
		migrate_job_change_state("catching_up", NULL);
	else
		migrate_job_steps_over("copied");
	return TURN_AGAIN;
}
