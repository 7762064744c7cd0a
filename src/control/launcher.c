/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  After a server start, the jobs that should run go on by themselves, in
 *	  every database.
 *
 * Process: one static background worker "migrate launcher", only with migrate
 * in shared_preload_libraries.  It is connected to no database, so that it
 * never stands in the way of DROP DATABASE; for each database it starts a
 * short-lived "migrate starter", one after the other, which looks for the
 * extension and for jobs that should run and have no worker, and leaves what
 * it found in shared memory; when it has ended, and its worker slot is free
 * again, the launcher registers the job workers.
 *
 *	  look at all databases -> sleep 60 s, or until a job worker has ended
 *	  (it is their bgw_notify_pid) -> look again ...
 *
 * A job whose worker keeps dying makes each look start something: the pause
 * between looks then grows from 1 s to 60 s.
 *
 * Shared memory: one small struct (LauncherShared), a letter box of one
 * starter at a time.  Nothing is left behind by
 * a crash; the postmaster starts the launcher again.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "extract/stream.h"

PGDLLEXPORT void migrate_launcher_main(Datum main_arg);
PGDLLEXPORT void migrate_starter_main(Datum main_arg);

#define LOOK_INTERVAL 60000		/* ms */
#define LOOK_MIN 1000

/* datconnlimit of a database whose DROP was interrupted (15.4 and later) */
#define INVALID_DATABASE (-2)

/* more jobs than this in one database are found by the next look */
#define MAX_FOUND 64

typedef struct LauncherShared
{
	pid_t		pid;			/* written by the launcher */

	/*
	 * A job worker is ending: set by it, cleared before a look.  Its signal
	 * alone would be lost among those of the starters when it comes in the
	 * middle of a look.
	 */
	volatile bool ended;

	/* emptied by the launcher, written by the one starter that runs */
	int			nfound;
	struct
	{
		MigrateJobArgs args;
		char		name[BGW_MAXLEN];
	}			found[MAX_FOUND];
} LauncherShared;

static LauncherShared *launcher = NULL;
static shmem_request_hook_type prev_request_hook = NULL;
static shmem_startup_hook_type prev_startup_hook = NULL;

/* ----------------------------------------------------------------
 * while the library is preloaded
 * ----------------------------------------------------------------
 */
static void
request_memory(void)
{
	if (prev_request_hook)
		prev_request_hook();
	RequestAddinShmemSpace(sizeof(LauncherShared));
}

static void
init_memory(void)
{
	bool		found;

	if (prev_startup_hook)
		prev_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	launcher = ShmemInitStruct("migrate launcher", sizeof(LauncherShared), &found);
	if (!found)
	{
		launcher->pid = 0;
		launcher->nfound = 0;
	}
	LWLockRelease(AddinShmemInitLock);
}

void
migrate_launcher_register(void)
{
	BackgroundWorker worker;

	prev_request_hook = shmem_request_hook;
	shmem_request_hook = request_memory;
	prev_startup_hook = shmem_startup_hook;
	shmem_startup_hook = init_memory;

	migrate_worker_describe(&worker, "migrate launcher", NULL, "migrate_launcher_main");
	worker.bgw_restart_time = 5;
	RegisterBackgroundWorker(&worker);
}

/* To be told when a job worker ends; 0 when there is no launcher. */
pid_t
migrate_launcher_pid(void)
{
	return launcher ? launcher->pid : 0;
}

/* Is there one that starts what should run? */
bool
migrate_launcher_present(void)
{
	return launcher != NULL;
}

/* ----------------------------------------------------------------
 * the launcher
 * ----------------------------------------------------------------
 */

/* OIDs of the databases that can be connected to, in the current context. */
static List *
databases(void)
{
	MemoryContext mcxt = CurrentMemoryContext;
	List	   *list = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database db = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old;

		if (!db->datallowconn || db->datistemplate || db->datconnlimit == INVALID_DATABASE)
			continue;
		old = MemoryContextSwitchTo(mcxt);
		list = lappend_oid(list, db->oid);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	return list;
}

/*
 * One starter, and wait until it has ended.  A database that was dropped
 * meanwhile ends it with an error of its own.  False: no worker slot is free.
 */
static bool
visit(Oid database)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	launcher->nfound = 0;
	migrate_worker_describe(&worker, "migrate starter", NULL, "migrate_starter_main");
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		return false;
	(void) WaitForBackgroundWorkerShutdown(handle);
	pfree(handle);
	return true;
}

/* Job workers for what a starter has found; false: no worker slot is free. */
static bool
start_found(void)
{
	for (int i = 0; i < launcher->nfound; i++)
		if (!migrate_register_job_worker(&launcher->found[i].args,
										 launcher->found[i].name, MyProcPid))
			return false;
	return true;
}

static void
tell_no_slot(void)
{
	ereport(LOG,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("no worker slot is free to start migrate jobs"),
			 errdetail("All of max_worker_processes (%d) are in use.", max_worker_processes),
			 errhint("Raise max_worker_processes.")));
}

/* All databases; true when a job worker was started. */
static bool
look(void)
{
	bool		started = false;
	ListCell   *lc;

	pgstat_report_activity(STATE_RUNNING, "looking for jobs that should run");
	foreach(lc, databases())
	{
		CHECK_FOR_INTERRUPTS();
		if (!visit(lfirst_oid(lc)) || !start_found())
		{
			tell_no_slot();
			break;
		}
		started |= launcher->nfound > 0;
	}
	pgstat_report_activity(STATE_IDLE, NULL);
	return started;
}

/*
 * Sleep until it is time for the next look: "pause" ms at least, and until a
 * job worker ends, or LOOK_INTERVAL.
 */
static void
sleep_between_looks(long pause)
{
	TimestampTz begin = GetCurrentTimestamp();
	bool		woken = launcher->ended;

	for (;;)
	{
		long		passed = TimestampDifferenceMilliseconds(begin, GetCurrentTimestamp());
		long		rest = (woken ? pause : LOOK_INTERVAL) - passed;

		if (rest <= 0)
			return;
		if (WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					  rest, PG_WAIT_EXTENSION) & WL_LATCH_SET)
			woken = true;
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		migrate_worker_reload();
	}
}

/* Called by a job worker on its way out. */
void
migrate_launcher_worker_ends(int code, Datum arg)
{
	if (launcher)
		launcher->ended = true;
}

static void
launcher_end(int code, Datum arg)
{
	launcher->pid = 0;
}

void
migrate_launcher_main(Datum main_arg)
{
	MemoryContext mcxt;
	long		pause = LOOK_MIN;

	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	before_shmem_exit(launcher_end, (Datum) 0);
	launcher->pid = MyProcPid;

	mcxt = AllocSetContextCreate(TopMemoryContext, "migrate launcher", ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		bool		started;

		MemoryContextReset(mcxt);
		MemoryContextSwitchTo(mcxt);
		launcher->ended = false;
		started = look();
		ResetLatch(MyLatch);	/* set by the starters */
		pause = started ? Min(pause * 2, LOOK_INTERVAL) : LOOK_MIN;
		sleep_between_looks(pause);
	}
}

/* ----------------------------------------------------------------
 * the starter
 * ----------------------------------------------------------------
 */

/*
 * It runs as the bootstrap superuser, so it must not touch what somebody else
 * has put in the place of our table: migrate.job counts only if it is a plain
 * table that belongs to the extension and to a superuser.
 */
static bool
extension_is_here(void)
{
	migrate_spi_exec("SELECT FROM pg_catalog.pg_extension e"
					 " JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass"
					 " AND d.refobjid = e.oid AND d.deptype = 'e'"
					 " AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass"
					 " JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'r' AND c.relname = 'job'"
					 " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'migrate'"
					 " JOIN pg_catalog.pg_roles r ON r.oid = c.relowner AND r.rolsuper"
					 " WHERE e.extname = 'migrate'",
					 0, NULL, NULL, NULL, SPI_OK_SELECT);
	return SPI_processed > 0;
}

/*
 * Find what should run and does not: jobs, and the capture worker of a job that
 * is paused or has failed, which its job worker starts before it leaves again.
 * Owners that are gone or, where that
 * matters, cannot log in are left out: the worker would only die.
 */
static void
find_jobs(void)
{
	SPITupleTable *table;
	uint64		n;

	migrate_spi_exec("SELECT j.job_id, j.owner, j.job,"
					 " CASE WHEN s.works AND j.wanted IN ('run', 'cancel') THEN 0 ELSE m.stream_id END"
					 " FROM migrate.job j JOIN migrate.job_state s USING (state)"
					 " JOIN pg_catalog.pg_roles r ON r.oid = j.owner"
					 " LEFT JOIN (migrate.job_stream js JOIN migrate.stream m USING (stream_id))"
					 "  ON js.job_id = j.job_id AND m.state = 'running'"
					 " WHERE (s.works AND j.wanted IN ('run', 'cancel')"
					 "  OR m.stream_id IS NOT NULL AND (j.state = 'failed' OR s.works AND j.wanted = 'pause'))"
					 " AND " MIGRATE_ROLE_CAN_CONNECT " ORDER BY 1",
					 0, NULL, NULL, NULL, SPI_OK_SELECT);
	table = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n && launcher->nfound < MAX_FOUND; i++)
	{
		MigrateJobArgs args = {
			.database = MyDatabaseId,
			.job_id = atoi(SPI_getvalue(table->vals[i], table->tupdesc, 1)),
			.owner = (Oid) strtoul(SPI_getvalue(table->vals[i], table->tupdesc, 2), NULL, 10),
			.xid = InvalidTransactionId,
		};

		int			stream_id = atoi(SPI_getvalue(table->vals[i], table->tupdesc, 4));

		if (migrate_job_alive(args.job_id) ||
			(stream_id > 0 && migrate_capture_alive(stream_id)))
			continue;
		launcher->found[launcher->nfound].args = args;
		migrate_clip(launcher->found[launcher->nfound].name, BGW_MAXLEN,
					 SPI_getvalue(table->vals[i], table->tupdesc, 3));
		launcher->nfound++;
	}
}

void
migrate_starter_main(Datum main_arg)
{
	migrate_worker_init(DatumGetObjectId(main_arg), InvalidOid);
	StartTransactionCommand();
	migrate_spi_begin();
	if (extension_is_here())
		find_jobs();
	migrate_spi_end();
	CommitTransactionCommand();
	proc_exit(0);
}
