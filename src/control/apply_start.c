/*-------------------------------------------------------------------------
 *
 * apply_start.c
 *	  The job worker's view of its apply worker: start it, notice its end,
 *	  stop it.
 *
 * Runs in the job worker only, which owns the handle; a new job worker starts
 * with none (the apply worker of the last one leaves by itself, since its
 * segment says that it is gone, and two are never at work by the lock of
 * load/apply.c).
 *
 * One that ends without having said "exited" ended unexpectedly, and is started
 * again after a back-off.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "control/control.h"
#include "load/apply.h"

/* how long to wait before asking for a worker slot again, ms */
#define SLOT_RETRY 5000

/* nothing of it matters after a crash */
static struct
{
	BackgroundWorkerHandle *handle; /* NULL: none */
	int			deaths;			/* unexpected, in a row without work done */
	TimestampTz dying_since;
	TimestampTz not_before;
	bool		told_no_slot;
}			apply;

/* Its process is gone: clear the slot, and say whether it had left orderly. */
static bool
clear_slot(bool *worked, int *pid)
{
	MigrateWorkerSlot *s = &migrate_shared->slots[MIGRATE_APPLY_SLOT];
	bool		orderly;

	SpinLockAcquire(&migrate_shared->mutex);
	orderly = strcmp(s->phase, "exited") == 0;
	*worked = migrate_shared->live.batches > 0;
	*pid = s->pid;
	memset(s, 0, sizeof(*s));
	migrate_shared->live.apply_pid = 0;
	migrate_shared->live.held = false;
	SpinLockRelease(&migrate_shared->mutex);
	return orderly;
}

static void
note_end(MigrateJob *job)
{
	bool		worked;
	int			pid;
	bool		orderly = clear_slot(&worked, &pid);
	MemoryContext mcxt = CurrentMemoryContext;

	pfree(apply.handle);
	apply.handle = NULL;
	if (orderly || migrate_shared->live.stop || job == NULL)
	{
		apply.deaths = 0;
		apply.not_before = 0;
		return;
	}
	if (worked)
		apply.deaths = 0;
	if (apply.deaths++ == 0)
		apply.dying_since = GetCurrentTimestamp();
	apply.not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   migrate_backoff(apply.deaths, job->retry_max_delay_ms));
	if (apply.deaths > 1)
		return;
	StartTransactionCommand();
	migrate_event(job->job_id, "warning", "apply_ended",
				  "the apply worker (pid %d) ended unexpectedly and is started again, see the server log",
				  pid);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

/* Does it live?  What is over is noted. */
static bool
reap(MigrateJob *job)
{
	pid_t		pid;

	if (apply.handle && GetBackgroundWorkerPid(apply.handle, &pid) == BGWH_STOPPED)
		note_end(job);
	return apply.handle != NULL;
}

TimestampTz
migrate_apply_dying_since(void)
{
	return apply.deaths > 1 ? apply.dying_since : 0;
}

static void
no_slot(MigrateJob *job)
{
	MemoryContext mcxt = CurrentMemoryContext;

	apply.handle = NULL;
	apply.not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SLOT_RETRY);
	if (apply.told_no_slot)
		return;
	apply.told_no_slot = true;
	StartTransactionCommand();
	migrate_event(job->job_id, "warning", "no_worker_slot",
				  "all of max_worker_processes (%d) are in use: changes are not applied until one is free",
				  max_worker_processes);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

void
migrate_apply_ensure(MigrateJob *job, dsm_handle handle)
{
	BackgroundWorker worker;
	MigrateLoaderArgs args = {
		.database = MyDatabaseId,
		.owner = job->owner,
		.job_id = job->job_id,
		.handle = handle,
		.slot = MIGRATE_APPLY_SLOT,
	};
	MemoryContext old;
	bool		ok;

	if (reap(job))
		return;
	if (GetCurrentTimestamp() < apply.not_before)
		return;
	migrate_shared->live.stop = false;
	old = MemoryContextSwitchTo(TopMemoryContext);
	migrate_worker_describe(&worker, "migrate apply", job->name, "migrate_apply_main");
	memcpy(worker.bgw_extra, &args, sizeof(args));
	worker.bgw_notify_pid = MyProcPid;
	ok = RegisterDynamicBackgroundWorker(&worker, &apply.handle);
	MemoryContextSwitchTo(old);
	if (ok)
		apply.told_no_slot = false;
	else
		no_slot(job);
}

bool
migrate_apply_stop(bool at_once)
{
	migrate_shared->live.stop = true;
	if (!reap(NULL))
		return true;
	if (at_once)
		TerminateBackgroundWorker(apply.handle);
	else
		migrate_wake_pid(migrate_shared->live.apply_pid);
	return false;
}

void
migrate_apply_wake(void)
{
	migrate_shared->live.look++;
	migrate_wake_pid(migrate_shared->live.apply_pid);
}
