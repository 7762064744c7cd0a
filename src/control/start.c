/*-------------------------------------------------------------------------
 *
 * start.c
 *	  From a DBA's session to the job worker: start one, or wake it.
 *
 * Runs in backends, in migrate_start and its like, which have the job's row
 * locked.  Waking happens when the transaction commits, so that the worker
 * sees the wish.  A worker that is started waits for the transaction by
 * itself (its id travels along), so that definitions and start may be one
 * transaction; if that rolls back the worker finds nothing to do and leaves.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "utils/syscache.h"

#include "control/control.h"

/* job workers to wake when this transaction commits; more are woken by their nap */
#define MAX_WAKES 16

static int	wake_pids[MAX_WAKES];
static int	wake_jobs[MAX_WAKES];
static bool wake_cancel[MAX_WAKES]; /* and end what it does by itself */
static int	nwakes = 0;

/* the jobs that this transaction has started a worker for */
static int	launched[MAX_WAKES];
static int	nlaunched = 0;

/*
 * SIGINT ends the statement that a job worker without loaders is in the middle
 * of, and only that, see handle_cancel() in job_worker.c.
 */
static void
wake(int pid, bool cancel)
{
	if (cancel && pid > 0 && BackendPidGetProc(pid) != NULL)
		(void) kill(pid, SIGINT);
	else
		migrate_wake_pid(pid);
}

/* At commit and rollback of the top transaction; must not throw. */
static void
at_transaction_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			for (int i = 0; i < nwakes; i++)
				wake(wake_pids[i], wake_cancel[i]);
			nwakes = nlaunched = 0;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			nwakes = nlaunched = 0;
			break;
		default:
			break;
	}
}

static void
watch_transaction(void)
{
	static bool registered = false;

	if (!registered)
		RegisterXactCallback(at_transaction_end, NULL);
	registered = true;
}

/* Has this transaction a wish for the job that nobody else can see yet? */
bool
migrate_wish_pending(int job_id)
{
	for (int i = 0; i < nlaunched; i++)
		if (launched[i] == job_id)
			return true;
	for (int i = 0; i < nwakes; i++)
		if (wake_jobs[i] == job_id)
			return true;
	return false;
}

static int
job_worker_pid(int job_id)
{
	int			pid = 0;
	dsm_segment *seg;
	MigrateShared *shared = migrate_shmem_peek(migrate_job_shmem(job_id), job_id, &seg);

	if (shared)
	{
		pid = shared->job_worker_pid;
		migrate_shmem_unpeek(seg);
	}
	return pid;
}

/* False when no worker lives. */
static bool
wake_at_commit(int job_id, bool cancel)
{
	if (!migrate_job_alive(job_id))
		return false;
	watch_transaction();
	if (nwakes < MAX_WAKES)
	{
		wake_jobs[nwakes] = job_id;
		wake_cancel[nwakes] = cancel;
		wake_pids[nwakes++] = job_worker_pid(job_id);
	}
	return true;
}

PG_FUNCTION_INFO_V1(migrate_wake);
PGDLLEXPORT Datum
migrate_wake(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(wake_at_commit(PG_GETARG_INT32(0), PG_GETARG_BOOL(1)));
}

/* Before 17 a background worker cannot be a role that may not log in. */
static void
check_owner(Oid owner)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	bool		can_login;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of the job does not exist any more")));
	can_login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	if (!can_login && MIGRATE_BGW_CONNECT_FLAGS == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("the owner \"%s\" of the job is not permitted to log in",
						GetUserNameFromId(owner, false)),
				 errhint("Workers connect as the owner: use ALTER ROLE ... LOGIN; he needs no password.")));
}

static void
no_slot(MigrateJob *job)
{
	if (migrate_launcher_present())
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("job \"%s\" waits for a free worker slot", job->name),
				 errdetail("All of max_worker_processes (%d) are in use.", max_worker_processes),
				 errhint("It begins by itself within a minute after one is free.")));
	else
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no worker slot is free for job \"%s\"", job->name),
				 errdetail("All of max_worker_processes (%d) are in use.", max_worker_processes),
				 errhint("Raise max_worker_processes, or try again when other workers have ended.")));
}

/*
 * migrate._launch(job_id): make sure that a job worker lives.
 */
PG_FUNCTION_INFO_V1(migrate_launch);
PGDLLEXPORT Datum
migrate_launch(PG_FUNCTION_ARGS)
{
	int			job_id = PG_GETARG_INT32(0);
	MigrateJob *job = migrate_job_load(job_id);
	MigrateJobArgs args;

	if (job == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job %d does not exist", job_id)));
	if (wake_at_commit(job_id, false))
		PG_RETURN_BOOL(true);
	for (int i = 0; i < nlaunched; i++)
		if (launched[i] == job_id)
			PG_RETURN_BOOL(true);
	check_owner(job->owner);
	args.database = MyDatabaseId;
	args.owner = job->owner;
	args.job_id = job_id;
	args.xid = GetTopTransactionIdIfAny();
	if (!migrate_register_job_worker(&args, job->name, migrate_launcher_pid()))
	{
		no_slot(job);
		PG_RETURN_BOOL(false);
	}
	watch_transaction();
	if (nlaunched < MAX_WAKES)
		launched[nlaunched++] = job_id;
	PG_RETURN_BOOL(true);
}
