/*-------------------------------------------------------------------------
 *
 * live_stub.c
 *	  Stands in for parts of live capture that are not there yet; a job without
 *	  it calls none of them.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "extract/stream.h"
#include "load/apply.h"

#define STUB __attribute__((weak))

extern STUB bool
migrate_stream_prepare(MigrateJob *job, MigrateConn *conn)
{
	return true;
}

extern STUB void
migrate_capture_ensure(MigrateJob *job)
{
}

extern STUB bool
migrate_capture_alive(int stream_id)
{
	return false;
}

extern STUB void
migrate_apply_ensure(MigrateJob *job, dsm_handle handle)
{
}

extern STUB bool
migrate_apply_stop(bool at_once)
{
	return true;
}

extern STUB void
migrate_apply_wake(void)
{
}

extern STUB void
migrate_writer_lock(int job_id)
{
}

extern STUB MigrateStream *
migrate_stream_of_job(int job_id)
{
	return NULL;
}
