/*-------------------------------------------------------------------------
 *
 * capture_start.c
 *	  The capture worker as the job worker sees it: is it there, start it.
 *
 * One worker serves all jobs of a stream; whichever job worker finds none
 * registers one.  If two do, the second capture worker does not get the lock and
 * leaves.
 *
 * Process: job worker.  Locks: none.  A crash leaves nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "extract/capture.h"

bool
migrate_capture_alive(int stream_id)
{
	return migrate_worker_alive(MIGRATE_LOCK_CAPTURE, stream_id);
}

/*
 * Registered and not seen to live yet; a worker that dies at once is started
 * again by a later turn.
 */
static BackgroundWorkerHandle *starting = NULL;

static bool
is_starting(void)
{
	pid_t		pid;

	if (starting == NULL)
		return false;
	if (GetBackgroundWorkerPid(starting, &pid) == BGWH_NOT_YET_STARTED)
		return true;
	pfree(starting);
	starting = NULL;
	return false;
}

void
migrate_capture_ensure(MigrateJob *job)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateStream *stream;
	BackgroundWorker worker;
	CaptureArgs args;
	bool		wanted;

	if (is_starting())
		return;
	StartTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	stream = migrate_stream_of_job(job->job_id);
	wanted = stream && strcmp(stream->state, "running") == 0 &&
		!migrate_capture_alive(stream->stream_id);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	if (!wanted)
		return;

	StaticAssertStmt(sizeof(CaptureArgs) <= BGW_EXTRALEN, "arguments fit");
	args.database = MyDatabaseId;
	args.owner = stream->owner;
	args.stream_id = stream->stream_id;
	migrate_worker_describe(&worker, "migrate capture", stream->slot, "migrate_capture_main");
	memcpy(worker.bgw_extra, &args, sizeof(args));
	worker.bgw_notify_pid = MyProcPid;
	MemoryContextSwitchTo(TopMemoryContext);
	if (!RegisterDynamicBackgroundWorker(&worker, &starting))
		starting = NULL;
	MemoryContextSwitchTo(mcxt);
}
