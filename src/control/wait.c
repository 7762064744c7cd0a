/*-------------------------------------------------------------------------
 *
 * wait.c
 *	  migrate_wait: block until a job is in a state or beyond.
 *
 * Runs in backends.  Looks at the catalog with a fresh snapshot each time
 * (also in a REPEATABLE READ transaction, which would wait for ever), and
 * sleeps on the condition variable that the job worker broadcasts at every
 * change, for 200 ms at most, since not every change comes from a worker.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "control/control.h"

#define LOOK_AGAIN 200			/* ms */

/* a job that should run and has no worker: so long, then say so, ms */
#define NO_WORKER_PATIENCE 10000

typedef struct JobNow
{
	int			job_id;
	char	   *state;
	char	   *wanted;
	char	   *pause_reason;
	char	   *error;			/* SQLSTATE: message */
	int64		handle;
	int			ord;			/* 0: beside the way */
	bool		works;
	int			wanted_ord;		/* of the state that is waited for; 0 likewise */
	bool		wanted_known;
} JobNow;

/* In the caller's memory context; an error when the job is not there. */
static JobNow *
look(const char *name, const char *state)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2];
	JobNow	   *now = palloc0(sizeof(JobNow));
	MemoryContext mcxt = CurrentMemoryContext;

	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(state);
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	/* read only: with the snapshot that we pushed */
	if (SPI_execute_with_args(
							  "SELECT j.job_id, j.state, j.wanted, j.pause_reason,"
							  " j.last_sqlstate || ': ' || j.last_error, j.shm_handle,"
							  " s.ord, s.works::int, w.ord, (w.state IS NOT NULL)::int"
							  " FROM migrate.job j JOIN migrate.job_state s USING (state)"
							  " LEFT JOIN migrate.job_state w ON w.state = $2"
							  " WHERE j.job = $1",
							  2, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look at the job");
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" does not exist", name),
				 errhint("Create it with migrate_create_job, or see the table migrate.job for the jobs that you may see.")));
	MemoryContextSwitchTo(mcxt);
	now->job_id = (int) migrate_spi_int64(0, 0, 0);
	now->state = migrate_spi_text(0, 1);
	now->wanted = migrate_spi_text(0, 2);
	now->pause_reason = migrate_spi_text(0, 3);
	now->error = migrate_spi_text(0, 4);
	now->handle = migrate_spi_int64(0, 5, 0);
	now->ord = (int) migrate_spi_int64(0, 6, 0);
	now->works = migrate_spi_int64(0, 7, 0) != 0;
	now->wanted_ord = (int) migrate_spi_int64(0, 8, 0);
	now->wanted_known = migrate_spi_int64(0, 9, 0) != 0;
	SPI_finish();
	PopActiveSnapshot();
	return now;
}

static void
unknown_state(const char *state)
{
	char	   *list = NULL;

	migrate_spi_begin();
	migrate_spi_exec("SELECT string_agg(state, ', ' ORDER BY ord, state) FROM migrate.job_state",
					 0, NULL, NULL, NULL, SPI_OK_SELECT);
	list = migrate_spi_text(0, 0);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown job state \"%s\"", state),
			 errhint("The states are: %s; and \"paused\".", list)));
}

/* "or beyond"; failed, cancelled and paused have nothing beyond them. */
static bool
reached(JobNow *now, const char *state)
{
	if (strcmp(now->state, state) == 0)
		return true;
	if (strcmp(state, "paused") == 0)
		return strcmp(now->wanted, "pause") == 0 && now->handle == 0;
	return now->wanted_ord > 0 && now->ord >= now->wanted_ord;
}

/* States from which what is waited for will not come by itself. */
static void
refuse_hopeless(JobNow *now, const char *job, const char *state)
{
	if (strcmp(now->state, "failed") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" has failed while waiting for state \"%s\"", job, state),
				 now->error ? errdetail_internal("%s", now->error) : 0,
				 errhint("Solve the cause, then use migrate_resume.")));
	if (strcmp(now->state, "cancelled") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" was cancelled while waiting for state \"%s\"", job, state),
				 now->error ? errdetail_internal("%s", now->error) : 0,
				 errhint("Use migrate_start to go on from its checkpoint.")));
	if (strcmp(now->wanted, "pause") == 0 && now->pause_reason)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" is paused in state \"%s\" while waiting for state \"%s\"",
						job, now->state, state),
				 errdetail_internal("%s", now->pause_reason),
				 errhint("Do what the reason says; of a limit: raise it with migrate_alter_job, or replay or discard dead letters. Then use migrate_resume.")));
	if (migrate_wish_pending(now->job_id))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("this transaction cannot wait for job \"%s\", which it has driven itself", job),
				 errdetail("The job sees what was asked of it when the transaction commits."),
				 errhint("Commit first; with psql -c, give each statement its own -c.")));
}

/*
 * Should run, but nobody does: without the launcher that stays so.
 */
static void
check_worker(JobNow *now, const char *job, TimestampTz *missing_since)
{
	TimestampTz t = GetCurrentTimestamp();

	if (!now->works || strcmp(now->wanted, "run") != 0 ||
		migrate_launcher_present() || migrate_job_alive(now->job_id))
		*missing_since = 0;
	else if (*missing_since == 0)
		*missing_since = t;
	else if (TimestampDifferenceExceeds(*missing_since, t, NO_WORKER_PATIENCE))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" is in state \"%s\", and no worker runs it", job, now->state),
				 now->error ? errdetail_internal("%s", now->error) : 0,
				 errhint("Use migrate_resume; with migrate in shared_preload_libraries, jobs go on by themselves after a restart.")));
}

/* Until something changes, or so long. */
static void
sleep_on(int64 handle, int job_id, long ms)
{
	dsm_segment *seg;
	MigrateShared *shared = migrate_shmem_peek(handle, job_id, &seg);

	if (shared)
	{
		ConditionVariablePrepareToSleep(&shared->changed);
		(void) ConditionVariableTimedSleep(&shared->changed, ms, PG_WAIT_EXTENSION);
		ConditionVariableCancelSleep();
		migrate_shmem_unpeek(seg);
	}
	else
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ms, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	CHECK_FOR_INTERRUPTS();
}

/* The job is where it was to be, but some of its steps are not done. */
static void
warn_of_failed_steps(JobNow *now, const char *job)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(now->job_id);
	int64		failed;

	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	if (SPI_execute_with_args("SELECT count(*) FROM migrate.post_step"
							  " WHERE job_id = $1 AND state = 'failed'",
							  1, &type, &arg, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look at the steps of the job");
	failed = migrate_spi_int64(0, 0, 0);
	SPI_finish();
	PopActiveSnapshot();
	if (failed > 0)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg_plural("%lld step after the copy of job \"%s\" has failed",
							   "%lld steps after the copy of job \"%s\" have failed",
							   (unsigned long) failed, (long long) failed, job),
				 errhint("See migrate.steps; solve the cause, then use migrate_retry_steps, or migrate_skip_steps.")));
}

/* migrate._wait(job, state, timeout): returns the state that the job is in. */
PG_FUNCTION_INFO_V1(migrate_wait);
PGDLLEXPORT Datum
migrate_wait(PG_FUNCTION_ARGS)
{
	char	   *job;
	char	   *state;
	TimestampTz deadline = 0;
	TimestampTz missing_since = 0;
	MemoryContext mcxt;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job and state must not be null")));
	job = text_to_cstring(PG_GETARG_TEXT_PP(0));
	state = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!PG_ARGISNULL(2))
		deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														   TimestampTzGetDatum(GetCurrentTimestamp()),
														   PG_GETARG_DATUM(2)));
	mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate wait", ALLOCSET_SMALL_SIZES);
	for (;;)
	{
		MemoryContext old;
		JobNow	   *now;

		MemoryContextReset(mcxt);
		old = MemoryContextSwitchTo(mcxt);
		now = look(job, state);
		if (!now->wanted_known && strcmp(state, "paused") != 0)
			unknown_state(state);
		MemoryContextSwitchTo(old);
		if (reached(now, state))
		{
			warn_of_failed_steps(now, job);
			PG_RETURN_TEXT_P(cstring_to_text(strcmp(state, "paused") == 0 ? state : now->state));
		}
		refuse_hopeless(now, job, state);
		check_worker(now, job, &missing_since);
		if (deadline != 0 && GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("timeout while waiting for job \"%s\" to be \"%s\": it is in state \"%s\"%s",
							job, state, now->state,
							strcmp(now->wanted, "pause") == 0 ? " and paused" : ""),
					 now->error ? errdetail_internal("%s", now->error) : 0));
		sleep_on(now->handle, now->job_id, LOOK_AGAIN);
	}
}

/*
 * migrate._await_change(job_id, ms): one sleep, for procedures that look at
 * what a job worker records.
 */
PG_FUNCTION_INFO_V1(migrate_await_change);
PGDLLEXPORT Datum
migrate_await_change(PG_FUNCTION_ARGS)
{
	int			job_id = PG_GETARG_INT32(0);

	sleep_on(migrate_job_shmem(job_id), job_id, PG_GETARG_INT32(1));
	PG_RETURN_VOID();
}
