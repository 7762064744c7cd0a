/*-------------------------------------------------------------------------
 *
 * writer_lock.c
 *	  One writer at a time into the targets of a job, once its rows are copied
 *	  (P14).
 *
 * Who holds the lock may read rows from the source and write what follows from
 * them; nobody else writes between the two.  So a row that was fetched is never
 * older here than what another writer put there meanwhile, and no row that was
 * deleted comes back.
 *
 * Taken by the apply worker, for each of its transactions, and by sessions
 * that replay dead letters.  It is an advisory lock in a key space that SQL
 * cannot reach (P22), held until the transaction ends; a crash releases it with
 * everything else.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/apply.h"

#include "miscadmin.h"
#include "storage/lock.h"

/* see MIGRATE_LOCK_SPACE in control/worker.c; other keys have other uses */
#define WRITER_LOCK_SPACE 0x4d47
#define WRITER_LOCK_KEY 4

void
migrate_writer_lock(int job_id)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, job_id, WRITER_LOCK_KEY, WRITER_LOCK_SPACE);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}
