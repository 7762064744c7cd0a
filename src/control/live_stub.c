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
migrate_writer_lock(int job_id)
{
}

extern STUB MigrateStream *
migrate_stream_of_job(int job_id)
{
	return NULL;
}

extern STUB MigrateApplier *
migrate_applier_open(MigrateJob *job, MigrateSource *src)
{
	elog(ERROR, "applying changes is not there yet");
}

extern STUB void
migrate_applier_close(MigrateApplier *applier)
{
}

extern STUB int
migrate_applier_rank(MigrateApplier *applier)
{
	return 0;
}

extern STUB void
migrate_apply_gone(MigrateApplier *applier, MigrateApplySet *set,
				   MigrateApplyCounts *counts)
{
}

extern STUB void
migrate_apply_images(MigrateApplier *applier, MigrateApplySet *set,
					 MigrateConnFn conn, void *conn_arg, MigrateApplyCounts *counts)
{
}

extern STUB void
migrate_apply_bag(MigrateApplier *applier, MigrateApplyBag *bag,
				  MigrateApplyCounts *counts)
{
}

extern STUB bool
migrate_apply_truncate(MigrateApplier *applier, const char *leaf)
{
	return false;
}

extern STUB void
migrate_apply_unreadable(MigrateApplier *applier, const char *key,
						 const char *raw, ErrorData *edata)
{
}
