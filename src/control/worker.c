/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  What every background worker of ours begins and ends with: signals,
 *	  the connection, settings, recovery from an error, the job's singleton.
 *
 * Runs in job workers, loaders, and the starter of the launcher; describing
 * and registering also in backends.
 *
 * Locks: a job worker holds the session lock of its job as long as it lives
 * (migrate_job_lock); a crash of the process releases it.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "control/control.h"

/*
 * The fourth field of an advisory lock's tag tells its key spaces apart; SQL
 * knows 1 and 2, so no SQL function can take ours (P22).
 */
#define MIGRATE_LOCK_SPACE 0x4d47

/* what the database and role set it to, for statements that the DBA wrote */
char	   *migrate_owner_search_path = "";

/*
 * SIGTERM ends the process at the next CHECK_FOR_INTERRUPTS, which every wait
 * of ours has.  Role and database settings that would change what our
 * statements mean are overridden.
 */
void
migrate_worker_init(Oid database, Oid owner)
{
	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, owner,
											  MIGRATE_BGW_CONNECT_FLAGS);

	migrate_owner_search_path = MemoryContextStrdup(TopMemoryContext,
													GetConfigOption("search_path", false, false));
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("default_transaction_read_only", "off", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("default_transaction_deferrable", "off", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("row_security", "on", PGC_USERSET, PGC_S_SESSION);

	/*
	 * short statements again and again: compiling them costs more than they
	 * do
	 */
	SetConfigOption("jit", "off", PGC_USERSET, PGC_S_SESSION);
}

/* What SIGHUP asked for; call it between transactions. */
void
migrate_worker_reload(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * Fill in a background worker that connects to a database and is never
 * restarted by the postmaster.  The name is "type job", cut at a character.
 */
void
migrate_worker_describe(BackgroundWorker *worker, const char *type,
						const char *name, const char *function)
{
	char	   *full = name ? psprintf("%s %s", type, name) : pstrdup(type);

	memset(worker, 0, sizeof(*worker));
	full[pg_mbcliplen(full, strlen(full), BGW_MAXLEN - 1)] = '\0';
	strlcpy(worker->bgw_name, full, sizeof(worker->bgw_name));
	strlcpy(worker->bgw_type, type, sizeof(worker->bgw_type));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker->bgw_library_name, MIGRATE_LIBRARY, sizeof(worker->bgw_library_name));
	strlcpy(worker->bgw_function_name, function, sizeof(worker->bgw_function_name));
	pfree(full);
}

/* False when all of max_worker_processes are in use. */
bool
migrate_register_job_worker(MigrateJobArgs *args, const char *job, pid_t notify_pid)
{
	BackgroundWorker worker;

	StaticAssertStmt(sizeof(MigrateJobArgs) <= BGW_EXTRALEN, "arguments fit");
	migrate_worker_describe(&worker, "migrate job", job, "migrate_job_worker_main");
	memcpy(worker.bgw_extra, args, sizeof(*args));
	worker.bgw_notify_pid = notify_pid;
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

/*
 * SPI for code that may be called with or without a snapshot: parse analysis
 * wants one.  It goes away with the transaction at an error.
 */
void
migrate_spi_begin(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
migrate_spi_end(void)
{
	PopActiveSnapshot();
	SPI_finish();
}

/*
 * To be called in PG_CATCH at the top of a worker: the error is written to
 * the server's log and returned in mcxt, the transaction rolled back, and all
 * that a transaction's end would release is released.
 */
ErrorData *
migrate_recover(MemoryContext mcxt)
{
	ErrorData  *edata;

	HOLD_INTERRUPTS();			/* nothing may throw before we are clean */
	MemoryContextSwitchTo(mcxt);
	edata = CopyErrorData();
	if (!migrate_abandoned)
		EmitErrorReport();
	AbortOutOfAnyTransaction();
	/* an error outside a transaction leaves these */
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
	MemoryContextSwitchTo(mcxt);
	FlushErrorState();
	RESUME_INTERRUPTS();
	return edata;
}

static void
locktag(LOCKTAG *tag, MigrateLockKind kind, int id)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, id, kind, MIGRATE_LOCK_SPACE);
}

/*
 * Become, or still be, the only worker of a kind (P22), for as long as the
 * process lives.  Called at every turn: mapping code may have called
 * pg_advisory_unlock_all(), which takes the lock away; then it is taken again,
 * or another worker has it and false is returned.
 */
bool
migrate_worker_lock(MigrateLockKind kind, int id)
{
	LOCKTAG		tag;

	locktag(&tag, kind, id);
	switch (LockAcquire(&tag, ExclusiveLock, true, true))
	{
		case LOCKACQUIRE_NOT_AVAIL:
			return false;
		case LOCKACQUIRE_ALREADY_HELD:
		case LOCKACQUIRE_ALREADY_CLEAR:
			LockRelease(&tag, ExclusiveLock, true);
			return true;
		default:
			return true;
	}
}

void
migrate_worker_unlock(MigrateLockKind kind, int id)
{
	LOCKTAG		tag;

	locktag(&tag, kind, id);
	LockRelease(&tag, ExclusiveLock, true);
}

/*
 * Does such a worker live?  True as soon as it has its lock and until it has
 * decided to leave.  In a transaction.
 */
bool
migrate_worker_alive(MigrateLockKind kind, int id)
{
	LOCKTAG		tag;

	locktag(&tag, kind, id);
	if (LockAcquire(&tag, ShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	LockRelease(&tag, ShareLock, false);
	return false;
}

/* Until the transaction's end; false when somebody has it. */
bool
migrate_transaction_lock_try(MigrateLockKind kind, int id)
{
	LOCKTAG		tag;

	locktag(&tag, kind, id);
	return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* Wait for a lock of ours until the transaction's end. */
void
migrate_transaction_lock(MigrateLockKind kind, int id)
{
	LOCKTAG		tag;

	locktag(&tag, kind, id);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/* Give it back before that. */
void
migrate_transaction_unlock(MigrateLockKind kind, int id)
{
	LOCKTAG		tag;

	locktag(&tag, kind, id);
	LockRelease(&tag, ExclusiveLock, false);
}

/* Does this process hold it, as a worker or until its transaction's end? */
bool
migrate_lock_is_mine(MigrateLockKind kind, int id)
{
	LOCKTAG		tag;

	locktag(&tag, kind, id);
	return migrate_lock_held_by_me(&tag, ExclusiveLock);
}

/* The process that has it; 0: none.  Looks through all locks of the server. */
int
migrate_lock_holder(MigrateLockKind kind, int id)
{
	LockData   *locks = GetLockStatusData();
	LOCKTAG		tag;
	int			pid = 0;

	locktag(&tag, kind, id);
	for (int i = 0; i < locks->nelements && pid == 0; i++)
		if (locks->locks[i].holdMask != 0 && memcmp(&tag, &locks->locks[i].locktag, sizeof(tag)) == 0)
			pid = locks->locks[i].pid;
	pfree(locks->locks);
	pfree(locks);
	return pid;
}

/* The ids of all locks of a kind that somebody has, in this database. */
List *
migrate_lock_ids(MigrateLockKind kind)
{
	List	   *ids = NIL;
	LockData   *locks = GetLockStatusData();

	for (int i = 0; i < locks->nelements; i++)
	{
		LockInstanceData *lock = &locks->locks[i];
		LOCKTAG		tag;

		locktag(&tag, kind, (int) lock->locktag.locktag_field2);
		if (lock->holdMask != 0 && memcmp(&tag, &lock->locktag, sizeof(tag)) == 0)
			ids = lappend_int(ids, (int) lock->locktag.locktag_field2);
	}
	return ids;
}

bool
migrate_job_lock(int job_id)
{
	return migrate_worker_lock(MIGRATE_LOCK_JOB, job_id);
}

void
migrate_job_unlock(int job_id)
{
	migrate_worker_unlock(MIGRATE_LOCK_JOB, job_id);
}

bool
migrate_job_alive(int job_id)
{
	return migrate_worker_alive(MIGRATE_LOCK_JOB, job_id);
}

void
migrate_worker_sleep(long ms)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);

	for (; ms > 0; ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ms, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		migrate_worker_reload();
	}
}

/*
 * migrate._await_end(job_id): sleep until the worker of the job, its apply
 * worker and its reverse worker, which holds a slot, have given their locks
 * back.
 */
PG_FUNCTION_INFO_V1(migrate_await_end);
PGDLLEXPORT Datum
migrate_await_end(PG_FUNCTION_ARGS)
{
	static const MigrateLockKind kinds[] = {MIGRATE_LOCK_JOB, MIGRATE_LOCK_APPLY, MIGRATE_LOCK_REVERSE};

	migrate_fault("finish-asked");
	for (int i = 0; i < lengthof(kinds); i++)
	{
		LOCKTAG		tag;

		locktag(&tag, kinds[i], PG_GETARG_INT32(0));
		(void) LockAcquire(&tag, ShareLock, false, false);
		LockRelease(&tag, ShareLock, false);
	}
	migrate_fault("finish-alone");
	PG_RETURN_VOID();
}
