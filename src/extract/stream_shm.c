/*-------------------------------------------------------------------------
 *
 * stream_shm.c
 *	  The shared memory of a stream: what its capture worker does at the
 *	  moment, and the wake-up for those who read the spool.
 *
 * One dynamic segment, made by the capture worker, whose handle is in
 * migrate.stream.shm_handle; apply workers and backends that look attach by
 * it.  All fields are written by the capture worker under the mutex.  Nothing
 * in it matters after a crash: it goes with the last process that has it
 * mapped, and a handle that is stale finds nothing, or something that is not
 * of this stream.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/stream.h"

#include "miscadmin.h"
#include "storage/ipc.h"

/* The capture worker ends: who waits for the spool looks by himself then. */
static void
capture_ends(int code, Datum arg)
{
	MigrateStreamShared *shared = (MigrateStreamShared *) DatumGetPointer(arg);

	SpinLockAcquire(&shared->mutex);
	shared->capture_pid = 0;
	SpinLockRelease(&shared->mutex);
	ConditionVariableBroadcast(&shared->spooled);
}

MigrateStreamShared *
migrate_stream_shmem_create(int stream_id, uint32 *handle)
{
	dsm_segment *seg = dsm_create(sizeof(MigrateStreamShared), 0);
	MigrateStreamShared *shared = dsm_segment_address(seg);

	dsm_pin_mapping(seg);
	memset(shared, 0, sizeof(*shared));
	shared->database = MyDatabaseId;
	shared->stream_id = stream_id;
	SpinLockInit(&shared->mutex);
	ConditionVariableInit(&shared->spooled);
	shared->capture_pid = MyProcPid;
	shared->started = GetCurrentTimestamp();
	strlcpy(shared->phase, "start", sizeof(shared->phase));
	pg_write_barrier();
	shared->magic = MIGRATE_STREAM_MAGIC;
	before_shmem_exit(capture_ends, PointerGetDatum(shared));
	*handle = dsm_segment_handle(seg);
	return shared;
}

/*
 * *seg is what to give back by dsm_detach(), or to keep by dsm_pin_mapping();
 * NULL when this process has had it mapped before.
 */
MigrateStreamShared *
migrate_stream_shmem_attach(int64 handle, int stream_id, dsm_segment **seg)
{
	dsm_segment *found;
	MigrateStreamShared *shared;

	*seg = NULL;
	if (handle <= 0 || handle > PG_UINT32_MAX)
		return NULL;
	found = dsm_find_mapping((dsm_handle) handle);
	if (found == NULL)
	{
		found = dsm_attach((dsm_handle) handle);
		if (found == NULL)
			return NULL;
		*seg = found;
	}
	shared = dsm_segment_address(found);
	if (dsm_segment_map_length(found) >= sizeof(MigrateStreamShared) &&
		shared->magic == MIGRATE_STREAM_MAGIC &&
		shared->database == MyDatabaseId && shared->stream_id == stream_id &&
		shared->capture_pid != 0)
		return shared;
	if (*seg)
		dsm_detach(*seg);
	*seg = NULL;
	return NULL;
}
