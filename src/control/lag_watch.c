/*-------------------------------------------------------------------------
 *
 * lag_watch.c
 *	  Alerts of a live job: far behind, or standing still without a reason.
 *
 * Runs in the job worker, in catching_up and streaming, once a second at most,
 * on what the view migrate.lag says, so that both say the same.
 *
 *	  lag		seconds_behind is more than lag_alert
 *	  stalled	there is something to apply, the applied position has not moved
 *				for lag_alert, and apply is not held; a paused or failed job has
 *				no job worker that could think so
 *
 * Each is told once an episode (level alert), and its end (info).  Both are
 * facts of this process: a new job worker may tell again.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "control/job_worker.h"

#define LOOK_INTERVAL 1000		/* ms */

/* an alert that is on has been told */
static bool lagging = false;
static bool stalled = false;

static TimestampTz last_look = 0;
static XLogRecPtr last_applied = InvalidXLogRecPtr;

static XLogRecPtr
lsn_at(int col)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, col + 1,
									  &isnull);

	return isnull ? InvalidXLogRecPtr : DatumGetLSN(value);
}

/* Keep what the view reads in MigrateShared. */
static void
watch_movement(XLogRecPtr applied, XLogRecPtr spooled, XLogRecPtr source, bool held)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&migrate_shared->mutex);
	if (applied >= spooled || applied != last_applied || held)
		migrate_shared->stuck_since = 0;
	else if (migrate_shared->stuck_since == 0)
		migrate_shared->stuck_since = now;
	if (applied >= spooled && spooled >= source && source != InvalidXLogRecPtr)
		migrate_shared->caught_up_at = now;
	SpinLockRelease(&migrate_shared->mutex);
	last_applied = applied;
}

static void
tell(const char *kind, bool is, bool *was, const char *begin, const char *end)
{
	if (is == *was)
		return;
	*was = is;
	migrate_event(me.job_id, is ? "alert" : "info", kind, "%s", is ? begin : end);
}

/* The view is a large query: it is planned once. */
static void
look_at_lag(void)
{
	static SPIPlanPtr plan = NULL;
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(me.job_id);

	if (plan == NULL)
	{
		SPIPlanPtr	made = SPI_prepare("SELECT l.applied_lsn, l.spooled_lsn, (l.reason = 'held')::int,"
									   " (l.seconds_behind * 1000)::bigint, l.stalled::int,"
									   " l.seconds_behind::text, pg_catalog.pg_size_pretty(l.apply_bytes),"
									   " CASE WHEN l.stream_phase = 'stream' THEN l.source_lsn END"
									   " FROM migrate.lag l JOIN migrate.job j USING (job)"
									   " WHERE j.job_id = $1", 1, &type);

		if (made == NULL || SPI_keepplan(made) != 0)
			elog(ERROR, "SPI_prepare gave %s", SPI_result_code_string(SPI_result));
		plan = made;
	}
	if (SPI_execute_plan(plan, &arg, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look at the lag");
}

void
migrate_lag_watch(MigrateJob *job)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		is_stalled,
				is_lagging;
	char	   *behind,
			   *bytes;

	if (!TimestampDifferenceExceeds(last_look, now, LOOK_INTERVAL))
		return;
	last_look = now;
	StartTransactionCommand();
	migrate_spi_begin();
	look_at_lag();
	if (SPI_processed > 0)
	{
		watch_movement(lsn_at(0), lsn_at(1), lsn_at(7), migrate_spi_int64(0, 2, 0) != 0);
		is_lagging = job->lag_alert_ms > 0 &&
			migrate_spi_int64(0, 3, 0) > job->lag_alert_ms;
		is_stalled = migrate_spi_int64(0, 4, 0) != 0;
		behind = migrate_spi_text(0, 5);
		bytes = migrate_spi_text(0, 6);
		tell("stalled", is_stalled, &stalled,
			 psprintf("changes are waiting, and none has been applied for longer than lag_alert: %s are to be applied",
					  bytes ? bytes : "changes"),
			 "changes are applied again");
		tell("lag", is_lagging, &lagging,
			 psprintf("the target is %s seconds behind its source, more than lag_alert",
					  behind ? behind : "?"),
			 "the target is no longer behind its source by more than lag_alert");
	}
	migrate_spi_end();
	CommitTransactionCommand();
}
