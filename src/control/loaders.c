/*-------------------------------------------------------------------------
 *
 * loaders.c
 *	  The job worker's view of its loaders: start them, notice their end,
 *	  stop them.
 *
 * Runs in the job worker only, which owns every handle here; a new job worker
 * starts with none (the loaders of the last one leave by themselves, since
 * their segment says that it is gone, and cannot commit a chunk that was made
 * 'todo' meanwhile).
 *
 * A loader that ends without having said "exited" ended unexpectedly: its
 * chunk or step is released, and its slot is used again after a back-off.
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

/* how long to wait before asking for a worker slot again, ms */
#define SLOT_RETRY 5000

typedef struct LoaderHandle
{
	BackgroundWorkerHandle *handle; /* NULL: none */
	pid_t		pid;			/* 0: not seen yet */
	int			deaths;			/* unexpected, in a row without work done */
	TimestampTz dying_since;
	TimestampTz not_before;
} LoaderHandle;

static LoaderHandle loaders[MIGRATE_MAX_LOADERS + 1];	/* 0 is not used */
static TimestampTz no_slot_until = 0;
static bool told_no_slot = false;

int
migrate_loaders_alive(void)
{
	int			n = 0;

	for (int i = 1; i <= MIGRATE_MAX_LOADERS; i++)
		if (loaders[i].handle)
			n++;
	return n;
}

TimestampTz
migrate_loaders_dying_since(void)
{
	TimestampTz since = 0;

	for (int i = 1; i <= MIGRATE_MAX_LOADERS; i++)
		if (loaders[i].deaths > 1 && (since == 0 || loaders[i].dying_since < since))
			since = loaders[i].dying_since;
	return since;
}

/* Its process is gone: clear the slot, and say whether it had left orderly. */
static bool
clear_slot(int i, int64 *finished, int *pid)
{
	MigrateWorkerSlot *s = &migrate_shared->slots[i];
	bool		orderly;

	SpinLockAcquire(&migrate_shared->mutex);
	orderly = strcmp(s->phase, "exited") == 0;
	*finished = s->chunks + s->steps;
	*pid = s->pid;
	memset(s, 0, sizeof(*s));
	SpinLockRelease(&migrate_shared->mutex);
	return orderly;
}

static void
loader_ended(MigrateJob *job, int i)
{
	LoaderHandle *l = &loaders[i];
	int64		finished;
	int			pid;
	bool		orderly = clear_slot(i, &finished, &pid);
	TimestampTz now = GetCurrentTimestamp();

	pfree(l->handle);
	l->handle = NULL;
	pid = pid ? pid : l->pid;
	l->pid = 0;
	if (orderly || migrate_shared->stop)
	{
		l->deaths = 0;
		if (orderly)
			return;
	}
	else
	{
		if (finished > 0)
			l->deaths = 0;
		if (l->deaths++ == 0)
			l->dying_since = now;
		l->not_before = TimestampTzPlusMilliseconds(now,
													migrate_backoff(l->deaths, job->retry_max_delay_ms));
	}

	StartTransactionCommand();
	if (pid != 0)
	{
		migrate_chunks_release(job->job_id, pid);
		migrate_steps_release(job->job_id, pid);
	}
	if (!migrate_shared->stop && l->deaths == 1)
		migrate_event(job->job_id, "warning", "loader_ended",
					  "loader %d (pid %d) ended unexpectedly and is started again, see the server log",
					  i, pid);
	CommitTransactionCommand();
}

/* Look which loaders have ended.  Outside a transaction. */
void
migrate_loaders_reap(MigrateJob *job)
{
	MemoryContext mcxt = CurrentMemoryContext;

	for (int i = 1; i <= MIGRATE_MAX_LOADERS; i++)
	{
		pid_t		pid;

		if (loaders[i].handle == NULL)
			continue;
		switch (GetBackgroundWorkerPid(loaders[i].handle, &pid))
		{
			case BGWH_STARTED:
				loaders[i].pid = pid;
				break;
			case BGWH_STOPPED:
				loader_ended(job, i);
				MemoryContextSwitchTo(mcxt);
				break;
			default:
				break;
		}
	}
}

static bool
start_loader(MigrateJob *job, dsm_handle handle, int i)
{
	BackgroundWorker worker;
	MigrateLoaderArgs args = {
		.database = MyDatabaseId,
		.owner = job->owner,
		.job_id = job->job_id,
		.handle = handle,
		.slot = i,
	};
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	bool		ok;

	StaticAssertStmt(sizeof(MigrateLoaderArgs) <= BGW_EXTRALEN, "arguments fit");
	migrate_worker_describe(&worker, "migrate loader", job->name, "migrate_loader_main");
	memcpy(worker.bgw_extra, &args, sizeof(args));
	worker.bgw_notify_pid = MyProcPid;
	ok = RegisterDynamicBackgroundWorker(&worker, &loaders[i].handle);
	if (!ok)
		loaders[i].handle = NULL;
	loaders[i].pid = 0;
	MemoryContextSwitchTo(old);
	return ok;
}

/* Told once, until all could be started again. */
static void
tell_no_slot(MigrateJob *job, int running, int wanted)
{
	MemoryContext mcxt = CurrentMemoryContext;

	if (told_no_slot)
		return;
	told_no_slot = true;
	StartTransactionCommand();
	migrate_event(job->job_id, "warning", "no_worker_slot",
				  "all of max_worker_processes (%d) are in use: %d of %d loaders run%s",
				  max_worker_processes, running, wanted,
				  running == 0 ? ", the job worker does the work by itself" : "");
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

/*
 * Keep as many as the job wants.  Surplus ones leave by themselves
 * (wanted_loaders).  Outside a transaction.
 */
void
migrate_loaders_start(MigrateJob *job, dsm_handle handle)
{
	int			wanted = Min(job->workers, MIGRATE_MAX_LOADERS);
	TimestampTz now = GetCurrentTimestamp();

	migrate_shared->wanted_loaders = wanted;
	if (now < no_slot_until)
		return;
	for (int i = 1; i <= wanted; i++)
	{
		if (loaders[i].handle != NULL || now < loaders[i].not_before)
			continue;
		if (!start_loader(job, handle, i))
		{
			no_slot_until = TimestampTzPlusMilliseconds(now, SLOT_RETRY);
			tell_no_slot(job, migrate_loaders_alive(), wanted);
			return;
		}
	}
	if (migrate_loaders_alive() >= wanted)
		told_no_slot = false;
}

/* SIGTERM to all; migrate_loaders_reap() sees them go. */
void
migrate_loaders_terminate(void)
{
	for (int i = 1; i <= MIGRATE_MAX_LOADERS; i++)
		if (loaders[i].handle)
			TerminateBackgroundWorker(loaders[i].handle);
}
