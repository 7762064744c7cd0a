/*-------------------------------------------------------------------------
 *
 * scheduled.c
 *	  Validations that a job makes by itself: option validate_every.
 *
 * Process: dynamic background worker "migrate validator", as the job's owner,
 * started by the job worker of a streaming job when a mapping is due, the only
 * one of its job by a lock (P22).  It validates one mapping after the other,
 * each in a transaction and at a cut of its own, those first that were not
 * validated for longest; then the user's checks.  It leaves when nothing is due
 * any more, when the job is no longer to run, or at an error, which the job
 * worker answers with a new one after a while.
 *
 * A crash loses the mapping at hand: what was validated is recorded, and is not
 * due.
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
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "validate.h"

PGDLLEXPORT void migrate_validator_main(Datum main_arg);

/* the job worker looks so often whether something is due, ms */
#define LOOK_INTERVAL 2000

/* after a validator has ended with something still due, ms */
#define RETRY_INTERVAL 30000

/*
 * Mappings of a streaming job that runs, which no checksum was begun of within
 * validate_every; and checks likewise (mapping_id 0).
 */
#define DUE \
	"SELECT d.mapping_id FROM (" \
	" SELECT m.mapping_id, m.job_id, (SELECT max(v.started_at) FROM migrate.validation_run v" \
	"  WHERE v.mapping_id = m.mapping_id AND v.level = 'checksum') AS last" \
	" FROM migrate.mapping m WHERE m.job_id = $1" \
	" UNION ALL SELECT 0, c.job_id, min((SELECT max(v.started_at) FROM migrate.validation_run v" \
	"  WHERE v.job_id = c.job_id AND v.check_name = c.name))" \
	" FROM migrate.validation_check c WHERE c.job_id = $1 GROUP BY c.job_id) d" \
	" JOIN migrate.job j USING (job_id)" \
	" WHERE j.state = 'streaming' AND j.wanted = 'run'" \
	" AND migrate._option(j.job_id, 'validate_every')::int8 > 0" \
	" AND coalesce(d.last, '-infinity') < clock_timestamp()" \
	"  - make_interval(secs => migrate._option(j.job_id, 'validate_every')::float8 / 1000)" \
	" ORDER BY d.last NULLS FIRST, d.mapping_id LIMIT 1"

/* What is due next, -1: nothing.  In a transaction. */
static int
next_due(int job_id)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(job_id);
	int			due;

	migrate_spi_begin();
	migrate_spi_exec(DUE, 1, &type, &arg, NULL, SPI_OK_SELECT);
	due = SPI_processed > 0 ? (int) migrate_spi_int64(0, 0, 0) : -1;
	migrate_spi_end();
	return due;
}

/* ----------------------------------------------------------------
 * in the job worker
 * ----------------------------------------------------------------
 */
static BackgroundWorkerHandle *validator = NULL;
static TimestampTz look_again_at = 0;

static bool
validator_lives(void)
{
	pid_t		pid;

	if (validator == NULL)
		return false;
	if (GetBackgroundWorkerPid(validator, &pid) != BGWH_STOPPED)
		return true;
	pfree(validator);
	validator = NULL;
	look_again_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), RETRY_INTERVAL);
	return false;
}

static void
start_validator(MigrateJob *job)
{
	BackgroundWorker worker;
	MigrateJobArgs args = {.database = MyDatabaseId,.owner = job->owner,.job_id = job->job_id};
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	migrate_worker_describe(&worker, "migrate validator", job->name, "migrate_validator_main");
	memcpy(worker.bgw_extra, &args, sizeof(args));
	worker.bgw_notify_pid = MyProcPid;
	/* no slot: then it is due a little later */
	if (!RegisterDynamicBackgroundWorker(&worker, &validator))
		validator = NULL;
	MemoryContextSwitchTo(old);
}

/* Start a validator when one is due.  Outside a transaction. */
void
migrate_validate_scheduled(MigrateJob *job)
{
	TimestampTz now = GetCurrentTimestamp();
	int			due;

	if (job->validate_every_ms == 0 || now < look_again_at || validator_lives())
		return;
	look_again_at = TimestampTzPlusMilliseconds(now, LOOK_INTERVAL);
	StartTransactionCommand();
	due = next_due(job->job_id);
	CommitTransactionCommand();
	if (due >= 0)
		start_validator(job);
}

/* ----------------------------------------------------------------
 * the validator
 * ----------------------------------------------------------------
 */
static ValidateTask *
find_task(MigrateJob *job, int mapping_id)
{
	ListCell   *lc;

	foreach(lc, validate_tasks(job, NULL))
	{
		ValidateTask *task = lfirst(lc);

		if (task->mapping_id == mapping_id)
			return task;
	}
	return NULL;
}

/* Validate what is due, in the current transaction. */
static void
validate_due(MigrateJob *job, int mapping_id)
{
	MigrateConn *conn = NULL;
	ValidateResult result;
	ValidateTask *task = mapping_id == 0 ? NULL : find_task(job, mapping_id);

	/* an error ends the process */
	validate_progress_begin(job, task ? list_make1(task) : NIL, mapping_id == 0,
							mapping_id == 0 ? LEVEL_CHECK : LEVEL_CHECKSUM);
	if (mapping_id == 0)
		validate_checks(job, &conn, CurrentMemoryContext, NULL);
	else if (task != NULL)
	{
		validate_refuse_drift(job, list_make1(task), &conn, CurrentMemoryContext);
		(void) validate_one(job, task, LEVEL_CHECKSUM, &conn, CurrentMemoryContext, NULL, &result);
	}
	validate_progress_end();
	if (conn)
		migrate_disconnect(conn);
}

/* False when nothing is due. */
static bool
turn(int job_id)
{
	MigrateJob *job;
	int			due;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	job = migrate_job_load(job_id);
	due = job ? next_due(job_id) : -1;
	if (due >= 0)
	{
		pgstat_report_activity(STATE_RUNNING, psprintf("validating job %s", job->name));
		validate_due(job, due);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);
	return due >= 0;
}

/* Why a validation of ours came to nothing. */
static void
tell_error(int job_id, ErrorData *edata)
{
	StartTransactionCommand();
	if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
		migrate_event(job_id, "info", "validation", "a scheduled validation was cancelled: %s",
					  edata->message);
	else
		migrate_event(job_id, "warning", "validation", "a scheduled validation has failed: %s: %s",
					  unpack_sql_state(edata->sqlerrcode), edata->message);
	CommitTransactionCommand();
}

void
migrate_validator_main(Datum main_arg)
{
	MigrateJobArgs args;
	ErrorData  *volatile edata = NULL;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	migrate_worker_init(args.database, args.owner);
	if (!migrate_worker_lock(MIGRATE_LOCK_VALIDATOR, args.job_id))
		proc_exit(0);
	PG_TRY();
	{
		while (turn(args.job_id))
		{
			CHECK_FOR_INTERRUPTS();
			migrate_worker_reload();
		}
	}
	PG_CATCH();
	{
		edata = migrate_recover(TopMemoryContext);
	}
	PG_END_TRY();
	if (edata)
		tell_error(args.job_id, edata);
	proc_exit(0);
}
