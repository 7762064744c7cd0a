/*-------------------------------------------------------------------------
 *
 * throttle.c
 *	  Not faster than the DBA allows: rows and bytes per second, and a pause
 *	  while his throttle_query says so.
 *
 * migrate_throttle() runs in loaders between batches, the query in the job
 * worker.  The token buckets are in shared memory, one pair for all loaders
 * of the job: each takes what it has read out of the bucket, below zero if it
 * must, and waits until the bucket is no longer in debt.  The sum over any
 * time is therefore at most rate * time + one second's worth.
 *
 * A loader that waits here while the job is stopped gives its chunk up
 * (migrate_abandoned), rather than keep a DBA waiting who set a low limit.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"

#include "control/control.h"

/* a throttle_query that takes longer is cancelled, ms */
#define QUERY_TIMEOUT 10000

/* true from migrate_throttle() to whoever catches: not an error */
bool		migrate_abandoned = false;

/* ----------------------------------------------------------------
 * limits
 * ----------------------------------------------------------------
 */

/* Job worker: take over what the DBA has set. */
void
migrate_throttle_limits(MigrateJob *job)
{
	MigrateBuckets *b = &migrate_shared->buckets;

	SpinLockAcquire(&migrate_shared->mutex);
	if (b->rows_per_second != job->rows_per_second)
	{
		b->rows_per_second = job->rows_per_second;
		b->row_tokens = Min(b->row_tokens, 0);
	}
	if (b->bytes_per_second != job->bytes_per_second)
	{
		b->bytes_per_second = job->bytes_per_second;
		b->byte_tokens = Min(b->byte_tokens, 0);
	}
	migrate_shared->chunk_dead_limit = job->max_dead_letters;
	SpinLockRelease(&migrate_shared->mutex);
}

/* A bucket holds at most a second's worth; no limit: it is never in debt. */
static double
refill(double tokens, int64 rate, double seconds)
{
	return rate <= 0 ? 0 : Min(tokens + rate * seconds, (double) rate);
}

/* How long a bucket's debt takes, s. */
static double
debt(double tokens, int64 rate)
{
	return tokens < 0 ? -tokens / rate : 0;
}

/*
 * Take rows and bytes, and say how long to wait, in ms (0: go on).  Under the
 * mutex of the buckets, if they are shared.
 */
long
migrate_buckets_take(MigrateBuckets *b, int64 rows, int64 bytes)
{
	TimestampTz now = GetCurrentTimestamp();
	double		seconds = Max(now - b->tokens_at, 0) / 1e6;
	double		wait;

	b->tokens_at = now;
	b->row_tokens = refill(b->row_tokens, b->rows_per_second, seconds) -
		(b->rows_per_second > 0 ? rows : 0);
	b->byte_tokens = refill(b->byte_tokens, b->bytes_per_second, seconds) -
		(b->bytes_per_second > 0 ? bytes : 0);
	wait = Max(debt(b->row_tokens, b->rows_per_second), debt(b->byte_tokens, b->bytes_per_second));
	return (long) ceil(Min(wait, 1000000) * 1000);
}

/*
 * What is waited for, as reason, value, threshold.  The value is what all
 * readers have asked for against one second's worth, that is the limit and the
 * bucket's debt.
 */
void
migrate_buckets_describe(const MigrateBuckets *b, char *line, size_t size)
{
	if (debt(b->row_tokens, b->rows_per_second) >= debt(b->byte_tokens, b->bytes_per_second))
		snprintf(line, size, "rows_per_second: %.1f > " INT64_FORMAT,
				 b->rows_per_second - b->row_tokens, b->rows_per_second);
	else
		snprintf(line, size, "bytes_per_second: %.1f > " INT64_FORMAT,
				 b->bytes_per_second - b->byte_tokens, b->bytes_per_second);
}

static void
tell(const char *line)
{
	SpinLockAcquire(&migrate_shared->mutex);
	strlcpy(migrate_shared->throttle, line, sizeof(migrate_shared->throttle));
	SpinLockRelease(&migrate_shared->mutex);
}

/* Give the chunk at hand up: an error that is none. */
static void
abandon(void)
{
	migrate_abandoned = true;
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("chunk given up because the job was stopped while it was throttled")));
}

/*
 * Account for what was read and wait while it is too much.
 */
void
migrate_throttle(int64 rows, int64 bytes)
{
	bool		waited = false;
	char		phase[sizeof(migrate_shared->slots[0].phase)];

	CHECK_FOR_INTERRUPTS();
	if (migrate_shared == NULL)
		return;
	migrate_budget_check_chunk();
	for (;;)
	{
		MigrateBuckets after;
		long		wait;
		bool		hold = migrate_shared->hold;

		SpinLockAcquire(&migrate_shared->mutex);
		wait = migrate_buckets_take(&migrate_shared->buckets, rows, bytes);
		after = migrate_shared->buckets;
		SpinLockRelease(&migrate_shared->mutex);

		rows = bytes = 0;		/* taken */
		if (wait <= 0 && !hold)
			break;
		if (!waited)
		{
			strlcpy(phase, migrate_shared->slots[migrate_my_slot].phase, sizeof(phase));
			migrate_worker_phase("throttle");
			waited = true;
		}
		if (wait > 0)
		{
			char		line[sizeof(migrate_shared->throttle)];

			migrate_buckets_describe(&after, line, sizeof(line));
			tell(line);
		}
		if (migrate_my_slot == 0)
			migrate_job_worker_glance();
		if (migrate_shared->stop)
			abandon();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 hold ? MIGRATE_NAP : Min(wait, MIGRATE_NAP), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	if (waited)
		migrate_worker_phase(phase);
	else if (migrate_shared->throttle[0] != '\0')
		tell("");
}

/* ----------------------------------------------------------------
 * throttle_query
 * ----------------------------------------------------------------
 */

/* A number, or a boolean as 1 and 0, from its text. */
static double
parse_value(const char *given)
{
	bool		b;

	if (parse_bool(given, &b))
		return b ? 1 : 0;
	return DatumGetFloat8(DirectFunctionCall1(float8in, CStringGetDatum(given)));
}

/*
 * First column of the first row here, NULL when there is none.  Names are
 * looked up as in a new session of the owner.
 */
static char *
value_here(const char *query, MemoryContext mcxt)
{
	char	   *value = NULL;
	int			nest = NewGUCNestLevel();

	(void) set_config_option("search_path", migrate_owner_search_path, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	migrate_spi_begin();
	if (SPI_execute(query, false, 1) != SPI_OK_SELECT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("throttle_query is not a SELECT")));
	if (SPI_processed > 0 && SPI_tuptable->tupdesc->natts > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		value = migrate_spi_text(0, 0);
		MemoryContextSwitchTo(old);
	}
	migrate_spi_end();
	AtEOXact_GUC(true, nest);
	return value;
}

/*
 * Start or end the pause; each change is an event, once, however often the
 * query runs.
 */
static void
set_hold(MigrateJob *job, bool hold, const char *reason)
{
	bool		was = migrate_shared->hold;

	SpinLockAcquire(&migrate_shared->mutex);
	strlcpy(migrate_shared->hold_reason, hold ? reason : "",
			sizeof(migrate_shared->hold_reason));
	SpinLockRelease(&migrate_shared->mutex);
	migrate_shared->hold = hold;
	if (hold == was)
		return;
	if (hold)
		migrate_event(job->job_id, "info", "throttle", "held by %s", reason);
	else
		migrate_event(job->job_id, "info", "throttle", "no longer held by throttle_query");
	migrate_wake_loaders();
}

static void
evaluate(MigrateJob *job, MigrateConn **conn, MemoryContext conn_cxt, MemoryContext mcxt)
{
	char	   *given;
	char		reason[128];
	double		measured;

	StartTransactionCommand();
	if (strcmp(job->throttle_side, "source") == 0)
	{
		if (*conn == NULL)
		{
			MemoryContextSwitchTo(conn_cxt);
			*conn = migrate_connect(job->server, job->owner, job->name, "job",
									job->connect_timeout_s);
		}
		MemoryContextSwitchTo(mcxt);
		given = migrate_exec_value(*conn, job->throttle_query);
	}
	else
	{
		enable_timeout_after(STATEMENT_TIMEOUT, QUERY_TIMEOUT);
		given = value_here(job->throttle_query, mcxt);
		disable_timeout(STATEMENT_TIMEOUT, false);
	}
	measured = given ? parse_value(given) : 0;
	snprintf(reason, sizeof(reason), "throttle_query: %g > %g", measured,
			 job->throttle_threshold);
	set_hold(job, given != NULL && measured > job->throttle_threshold, reason);
	CommitTransactionCommand();
}

/* An error of the query is a warning, once, and never holds the copy. */
static void
evaluate_failed(MigrateJob *job, ErrorData *edata, bool tell_it)
{
	StartTransactionCommand();
	if (tell_it)
		migrate_event(job->job_id, "warning", "throttle_query",
					  "throttle_query failed, the copy goes on without it: %s%s",
					  edata->message,
					  strcmp(job->throttle_side, "source") == 0 ?
					  " (on the source, names need their schema)" : "");
	set_hold(job, false, NULL);
	CommitTransactionCommand();
}

/*
 * Job worker, outside a transaction.  *conn is made when the query runs on the
 * source, and lost (NULL) when that fails.
 */
void
migrate_throttle_evaluate(MigrateJob *job, MigrateConn **conn, MemoryContext conn_cxt)
{
	static TimestampTz last = 0;
	static bool failed = false;
	MemoryContext mcxt = CurrentMemoryContext;
	ErrorData  *volatile edata = NULL;

	if (job->throttle_query[0] == '\0')
	{
		if (migrate_shared->hold)
		{
			StartTransactionCommand();
			set_hold(job, false, NULL);
			CommitTransactionCommand();
			MemoryContextSwitchTo(mcxt);
		}
		failed = false;
		return;
	}
	if (last != 0 && !TimestampDifferenceExceeds(last, GetCurrentTimestamp(),
												 job->throttle_interval_ms))
		return;
	last = GetCurrentTimestamp();
	PG_TRY();
	{
		evaluate(job, conn, conn_cxt, mcxt);
	}
	PG_CATCH();
	{
		edata = migrate_recover(mcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	if (edata)
	{
		disable_timeout(STATEMENT_TIMEOUT, false);
		if (*conn)
			migrate_disconnect(*conn);
		*conn = NULL;
		MemoryContextReset(conn_cxt);
		evaluate_failed(job, edata, !failed);
		MemoryContextSwitchTo(mcxt);
	}
	failed = (edata != NULL);
}
