/*-------------------------------------------------------------------------
 *
 * apply.c
 *	  The apply worker: the spool's changes into the job's targets.
 *
 * Process: dynamic background worker "migrate apply", as the job's owner, one
 * a job that is catching_up or streaming; started by the job worker
 * (control/apply_start.c), which it tells everything by the job's shared
 * memory: its slot, and MigrateShared.live.
 *
 *	  session -> batch -> batch -> ... -> nothing left: wait for the stream
 *	     ^         | error: noted, back-off
 *	     +---------+ change of the schema: apply what was before, pause the job
 *
 * A session is what it knows from the catalog: job, stream, source tables,
 * compiled mappings, its place in the spool.  It is made anew after an error,
 * and when a definition that it was made from has changed.
 *
 * It waits on the condition variable of the stream's shared memory, which
 * capture broadcasts after every commit, and on its own latch; while capture
 * is down, or should a wake-up be lost, it looks once a second.
 *
 * Errors do not end the process: the transaction is rolled back, the error is
 * in our slot, where the job worker judges it, and the batch is tried again.
 * Transient ones last until retry_time, others until the third time.
 *
 * Locks: the session lock of apply (P22), which makes it the only one of its
 * job; within a batch the writer lock.
 *
 * A crash at any point loses the batch at hand and nothing else: rows and
 * position commit together.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "load/apply_worker.h"

PGDLLEXPORT void migrate_apply_main(Datum main_arg);

/* options and consistent_lsn are read again this often, ms */
#define JOB_INTERVAL 2000

/* memory is measured, and a rate taken, this often, ms */
#define RATE_INTERVAL 1000

/* how long another apply worker of the job may take to leave, ms */
#define LOCK_PATIENCE 10000

static ApplyWorker worker;
static MigrateJob current_job;	/* appliers keep a pointer to it */
static bool session_open = false;

/* a definition that the session was made from may have changed */
static bool session_stale = false;

/* what makes us wait for the stream */
static MigrateStreamShared *stream_shared = NULL;
static dsm_segment *stream_segment = NULL;
static int64 dry_seq = -1;		/* spooled_seq before the look that found
								 * nothing */

static uint32 seen_look = 0;
static int	errors = 0;			/* in a row */
static char last_sqlstate[6];

/* the rate that is shown */
static TimestampTz rate_at = 0;
static int64 rate_changes = 0;

static void sleep_for(long ms);

static bool
must_leave(void)
{
	/* MigrateShared.stop is for loaders, who are not needed while streaming */
	return migrate_shared->live.stop || migrate_shared->job_worker_pid == 0;
}

/* ----------------------------------------------------------------
 * the connection to the source
 * ----------------------------------------------------------------
 */
/*
 * A commit is in the stream before it is in anybody's sight, and much longer
 * when it waits for a synchronous standby: what is read now would be the rows
 * as they were before, or none under a new key.  So nothing is read from the
 * source before it shows all that the batch tells of.
 */
static void
wait_until_seen(ApplyWorker *w)
{
	long		delay = 1;

	for (;;)
	{
		if (migrate_snapshot_sees(migrate_exec_value(w->conn, "SELECT pg_current_snapshot()"),
								  w->xids, w->nxids))
			return;
		migrate_worker_phase("unseen");
		if (must_leave())
		{
			migrate_abandoned = true;
			ereport(ERROR,
					(errcode(ERRCODE_OPERATOR_INTERVENTION),
					 errmsg("batch given up while its transactions are not visible on the source")));
		}
		sleep_for(delay);
		delay = Min(2 * delay, 200);
	}
}

MigrateConn *
migrate_apply_connection(void *arg)
{
	ApplyWorker *w = arg;
	MemoryContext old;

	if (w->conn == NULL || !migrate_connection_usable(w->conn))
	{
		w->conn = NULL;
		MemoryContextReset(w->conn_cxt);
		old = MemoryContextSwitchTo(w->conn_cxt);
		w->conn = migrate_connect(w->job->server, w->job->owner, w->job->name, "apply",
								  w->job->connect_timeout_s);
		MemoryContextSwitchTo(old);
	}
	wait_until_seen(w);
	return w->conn;
}

/* ----------------------------------------------------------------
 * the session
 * ----------------------------------------------------------------
 */
static void
forget_definitions(Datum arg, int cacheid, uint32 hashvalue)
{
	session_stale = true;
}

/* A table's definition: ours are the foreign tables; the rest is the writer's. */
static void
forget_relation(Datum arg, Oid relid)
{
	ListCell   *lc;

	if (!session_open || session_stale)
		return;
	if (!OidIsValid(relid))
		session_stale = true;
	foreach(lc, worker.sources)
	{
		ApplySource *source = lfirst(lc);

		if (source->src && source->src->foreign_table == relid)
			session_stale = true;
	}
}

/* Outside a transaction, or after an error. */
static void
close_session(void)
{
	ListCell   *lc;

	if (!session_open)
		return;
	session_open = false;
	PG_TRY();
	{
		StartTransactionCommand();
		foreach(lc, worker.sources)
		{
			ApplySource *source = lfirst(lc);

			if (source->applier)
				migrate_applier_close(source->applier);
		}
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		FreeErrorData(migrate_recover(TopMemoryContext));
	}
	PG_END_TRY();
	if (worker.conn)
		migrate_disconnect(worker.conn);
	worker.conn = NULL;
	MemoryContextReset(worker.conn_cxt);
	MemoryContextReset(worker.session);
	worker.sources = NIL;
	worker.relations = NULL;
	worker.last_relation = NULL;
	worker.reader = NULL;
	worker.commits = NULL;
	worker.ncommits = worker.max_commits = 0;
	worker.xids = NULL;
	worker.nxids = worker.max_xids = 0;
	memset(&worker.msg, 0, sizeof(worker.msg));
}

/* Options, and where the consistent position is.  In a transaction. */
static bool
load_job(ApplyWorker *w)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(w->job_id);
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext, "migrate apply job",
											  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	MigrateJob *job = migrate_job_load(w->job_id);

	MemoryContextSwitchTo(old);
	w->job_at = GetCurrentTimestamp();
	if (job == NULL)
	{
		MemoryContextDelete(cxt);
		return false;
	}
	current_job = *job;
	w->job = &current_job;
	if (w->job_cxt)
		MemoryContextDelete(w->job_cxt);
	w->job_cxt = cxt;
	migrate_spi_begin();
	migrate_spi_exec("SELECT coalesce(consistent_lsn, '0/0') FROM migrate.job_stream"
					 " WHERE job_id = $1", 1, &type, &arg, NULL, SPI_OK_SELECT);
	w->consistent_lsn = InvalidXLogRecPtr;
	if (SPI_processed == 1)
	{
		bool		isnull;

		w->consistent_lsn = DatumGetLSN(SPI_getbinval(SPI_tuptable->vals[0],
													  SPI_tuptable->tupdesc, 1, &isnull));
	}
	migrate_spi_end();
	return true;
}

static void
load_position(ApplyWorker *w)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(w->job_id);
	bool		isnull;

	migrate_spi_begin();
	migrate_spi_exec("SELECT applied_lsn, next_seq, commit_at FROM migrate.apply_position"
					 " WHERE job_id = $1", 1, &type, &arg, NULL, SPI_OK_SELECT);
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" has no position in its stream", w->job->name)));
	w->applied_lsn = DatumGetLSN(SPI_getbinval(SPI_tuptable->vals[0],
											   SPI_tuptable->tupdesc, 1, &isnull));
	w->next_seq = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											  SPI_tuptable->tupdesc, 2, &isnull));
	w->end_at = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 3, &isnull));
	if (isnull)
		w->end_at = 0;
	migrate_spi_end();
}

/* Values come in the source's encoding, and are verified or converted (P7). */
static void
load_encoding(ApplyWorker *w)
{
	w->encoding = GetDatabaseEncoding();
	if (w->stream->encoding)
	{
		w->encoding = pg_char_to_encoding(w->stream->encoding);
		if (w->encoding < 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("the source's encoding \"%s\" is not known here",
							w->stream->encoding)));
	}
}

/* False when the job is not there any more. */
static bool
open_session(ApplyWorker *w)
{
	MemoryContext old;

	session_stale = false;
	StartTransactionCommand();
	if (!load_job(w))
	{
		CommitTransactionCommand();
		return false;
	}
	session_open = true;
	old = MemoryContextSwitchTo(w->session);
	w->stream = migrate_stream_of_job(w->job_id);
	if (w->stream == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" reads no stream", w->job->name)));
	load_encoding(w);
	load_position(w);
	w->pending_transactions = 0;
	w->position_at = 0;
	migrate_collect_open(w);
	migrate_relations_open(w);
	MemoryContextSwitchTo(w->session);
	w->reader = migrate_spool_open(w->stream->stream_id, w->next_seq);
	w->read_seq = w->next_seq - 1;
	w->dry = false;

	/*
	 * The row may begin with the rest of a transaction: of one whose commit
	 * is in the row, so it comes no later than the last that is applied.
	 */
	w->in_xact = false;
	w->skip = true;
	MemoryContextSwitchTo(old);
	CommitTransactionCommand();
	if (w->row_limit == 0)
		w->row_limit = w->job->apply_rows;
	dry_seq = -1;
	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->live.applied_lsn = w->applied_lsn;
	migrate_shared->live.commit_at = w->end_at;
	SpinLockRelease(&migrate_shared->mutex);
	return true;
}

/* ----------------------------------------------------------------
 * pausing for a change of the schema
 * ----------------------------------------------------------------
 */
void
migrate_apply_pause(ApplyWorker *w, const char *fmt,...)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	StringInfoData reason;

	initStringInfo(&reason);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&reason, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&reason, needed);
	}
	MemoryContextSwitchTo(old);
	if (w->pause_reason)
		pfree(w->pause_reason);
	w->pause_reason = reason.data;
	w->pause_lsn = w->final_lsn;
	migrate_abandoned = true;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("batch given up because the source's schema has changed"),
			 errdetail_internal("%s", w->pause_reason)));
}

/* The wish, with the reason; outside a transaction. */
static void
pause_job(ApplyWorker *w)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[2];

	StartTransactionCommand();
	values[0] = Int32GetDatum(w->job_id);
	values[1] = CStringGetTextDatum(w->pause_reason);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.job SET wanted = 'pause', pause_reason = $2"
					 " WHERE job_id = $1 AND wanted = 'run'",
					 2, types, values, NULL, SPI_OK_UPDATE);
	if (SPI_processed > 0)
		migrate_event(w->job_id, "alert", "schema_change", "paused: %s", w->pause_reason);
	migrate_spi_end();
	CommitTransactionCommand();
	w->pause_lsn = InvalidXLogRecPtr;
	w->pause_due = false;
	/* should it be resumed before we have left, all is looked at again */
	session_stale = true;
	migrate_wake_job_worker();
}

/* ----------------------------------------------------------------
 * waiting
 * ----------------------------------------------------------------
 */

/* Sleep until woken, or so long. */
static void
sleep_for(long ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	migrate_worker_reload();
}

/* Sleep so long, or until we are to leave. */
static void
back_off(long ms)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);

	migrate_worker_phase("retry");
	while (ms > 0 && !must_leave())
	{
		sleep_for(ms);
		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
	}
	migrate_shared->live.held = false;
}

bool
migrate_apply_is_held(XLogRecPtr lsn)
{
	MigrateLive *live = &migrate_shared->live;
	bool		is_held;

	if (likely(!live->hold))
		return false;
	SpinLockAcquire(&migrate_shared->mutex);
	is_held = live->hold && lsn >= live->hold_at;
	SpinLockRelease(&migrate_shared->mutex);
	return is_held;
}

/*
 * Say whether we stand, if we still are to.  At once, so that nobody who holds
 * us again sees "held" of the last time.
 */
static bool
stand(ApplyWorker *w)
{
	MigrateLive *live = &migrate_shared->live;
	bool		stay;

	SpinLockAcquire(&migrate_shared->mutex);
	stay = live->hold && w->applied_lsn >= live->hold_at && !must_leave();
	live->held = stay;
	SpinLockRelease(&migrate_shared->mutex);
	return stay;
}

/* Stand at a commit, as long as somebody wants (P23). */
static void
hold(ApplyWorker *w)
{
	migrate_worker_phase("hold");
	if (!stand(w))
		return;
	ConditionVariableBroadcast(&migrate_shared->changed);
	do
		sleep_for(MIGRATE_NAP);
	while (stand(w));
}

/* Map the shared memory of the capture worker, if one lives. */
static void
attach_stream(ApplyWorker *w)
{
	MigrateStream *stream;

	if (stream_shared && stream_shared->capture_pid != 0)
		return;
	stream_shared = NULL;
	if (stream_segment)
		dsm_detach(stream_segment);
	stream_segment = NULL;
	StartTransactionCommand();
	stream = migrate_stream_load(w->stream->stream_id);
	if (stream && stream->shm_handle != 0)
		stream_shared = migrate_stream_shmem_attach(stream->shm_handle, stream->stream_id,
													&stream_segment);
	if (stream_segment)
		dsm_pin_mapping(stream_segment);
	CommitTransactionCommand();
	dry_seq = -1;
}

/* What capture has spooled, -1 when that is not known. */
static int64
spooled_seq(XLogRecPtr *lsn)
{
	int64		seq = -1;

	if (stream_shared == NULL)
		return seq;
	SpinLockAcquire(&stream_shared->mutex);
	seq = stream_shared->spooled_seq;
	*lsn = stream_shared->spooled_lsn;
	SpinLockRelease(&stream_shared->mutex);
	return seq;
}

/* Nothing is left in the spool: wait until there may be. */
static void
wait_for_stream(ApplyWorker *w)
{
	XLogRecPtr	lsn = InvalidXLogRecPtr;

	migrate_worker_phase("idle");
	pgstat_report_activity(STATE_IDLE, "waiting for changes");
	attach_stream(w);
	if (stream_shared)
		ConditionVariablePrepareToSleep(&stream_shared->spooled);
	if (spooled_seq(&lsn) == dry_seq || stream_shared == NULL)
	{
		if (lsn > w->applied_lsn || stream_shared == NULL)
			migrate_apply_idle(w);
		if (!must_leave() && !migrate_apply_is_held(w->applied_lsn))
			sleep_for(MIGRATE_NAP);
	}
	ConditionVariableCancelSleep();
}

/* ----------------------------------------------------------------
 * errors
 * ----------------------------------------------------------------
 */

/* Our entries of errors; after a batch that went well. */
static void
clear_errors(void)
{
	if (errors == 0)
		return;
	errors = 0;
	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->slots[MIGRATE_APPLY_SLOT].errors = 0;
	migrate_shared->slots[MIGRATE_APPLY_SLOT].error_since = 0;
	for (int i = 0; i < MIGRATE_MAX_LOADERS; i++)
		if (migrate_shared->trouble[i].count > 0 &&
			migrate_shared->trouble[i].chunk_id == MIGRATE_APPLY_TROUBLE)
			migrate_shared->trouble[i].count = 0;
	SpinLockRelease(&migrate_shared->mutex);
}

static void
tell_error(ApplyWorker *w, ErrorData *edata, const char *sqlstate)
{
	PG_TRY();
	{
		StartTransactionCommand();
		migrate_event(w->job_id, "warning", "apply_error", "%s: %s%s%s%s%s", sqlstate,
					  edata->message, edata->detail ? "; " : "",
					  edata->detail ? edata->detail : "", edata->context ? "; " : "",
					  edata->context ? edata->context : "");
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		FreeErrorData(migrate_recover(TopMemoryContext));
	}
	PG_END_TRY();
}

/* Outside a transaction: what an error of a batch leads to. */
static void
batch_failed(ApplyWorker *w, ErrorData *edata)
{
	char		sqlstate[6];
	int			max_delay = w->job ? w->job->retry_max_delay_ms : 30000;

	strlcpy(sqlstate, unpack_sql_state(edata->sqlerrcode), sizeof(sqlstate));
	if (migrate_abandoned)
	{
		migrate_abandoned = false;
		migrate_wake_job_worker();

		/*
		 * To what comes before, then pause_job(); or for too many dead
		 * letters the job worker pauses.
		 */
		if (w->pause_lsn == 0)
			back_off(MIGRATE_NAP);
		return;
	}
	errors++;
	migrate_trouble_note(MIGRATE_APPLY_TROUBLE, sqlstate, edata->message);
	if (errors == 1 || strcmp(last_sqlstate, sqlstate) != 0)
		tell_error(w, edata, sqlstate);
	strlcpy(last_sqlstate, sqlstate, sizeof(last_sqlstate));
	migrate_wake_job_worker();
	back_off(migrate_backoff(errors, max_delay));
}

/* ----------------------------------------------------------------
 * turns
 * ----------------------------------------------------------------
 */

/* The rate of the last seconds, and our memory. */
static void
measure(void)
{
	TimestampTz now = GetCurrentTimestamp();
	double		seconds = (now - rate_at) / 1e6;

	if (rate_at != 0 && seconds * 1000 < RATE_INTERVAL)
		return;
	SpinLockAcquire(&migrate_shared->mutex);
	if (rate_at != 0)
		migrate_shared->live.changes_per_second =
			(migrate_shared->live.changes - rate_changes) / seconds;
	rate_changes = migrate_shared->live.changes;
	SpinLockRelease(&migrate_shared->mutex);
	rate_at = now;
	migrate_slot_memory();
}

/* Options may have changed. */
static void
look_again(ApplyWorker *w)
{
	uint32		look = migrate_shared->live.look;

	if (look == seen_look &&
		!TimestampDifferenceExceeds(w->job_at, GetCurrentTimestamp(), JOB_INTERVAL))
		return;
	seen_look = look;
	StartTransactionCommand();
	if (!load_job(w))
		session_stale = true;
	CommitTransactionCommand();
}

/* What there is to do now. */
static void
turn(ApplyWorker *w)
{
	XLogRecPtr	lsn;
	int64		seq;

	if (!migrate_worker_lock(MIGRATE_LOCK_APPLY, w->job_id))
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("job %d has another apply worker", w->job_id)));
	AcceptInvalidationMessages();
	if (session_stale)
		close_session();
	if (!session_open && !open_session(w))
	{
		sleep_for(MIGRATE_NAP); /* the job worker will see it, too */
		return;
	}
	look_again(w);
	if (w->pause_due)
	{
		pause_job(w);
		sleep_for(MIGRATE_NAP);
		return;
	}
	if (migrate_apply_is_held(w->applied_lsn))
	{
		hold(w);
		return;
	}

	/* what is committed after this look may be missed by the batch */
	seq = spooled_seq(&lsn);
	if (w->dry && seq == dry_seq && stream_shared)
		wait_for_stream(w);
	else
	{
		pgstat_report_activity(STATE_RUNNING, "applying changes");
		migrate_worker_phase("read");
		(void) migrate_apply_batch(w);
		if (w->dry)
			dry_seq = seq;
		clear_errors();
		if (w->dry && !w->pause_due && stream_shared == NULL)
			wait_for_stream(w);
	}
}

static void
guarded_turn(ApplyWorker *w)
{
	ErrorData  *volatile edata = NULL;

	migrate_abandoned = false;
	PG_TRY();
	{
		turn(w);
	}
	PG_CATCH();
	{
		edata = migrate_recover(TopMemoryContext);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(TopMemoryContext);
	error_context_stack = NULL;
	measure();
	pgstat_report_stat(false);
	if (edata)
	{
		pgstat_report_activity(STATE_IDLE, NULL);
		close_session();
		batch_failed(w, edata);
		MemoryContextSwitchTo(TopMemoryContext);
		FreeErrorData(edata);
	}
}

/* ----------------------------------------------------------------
 * the process
 * ----------------------------------------------------------------
 */
static void
apply_ends(int code, Datum arg)
{
	/*
	 * Ended in the middle of a sleep: the condition variable is in memory
	 * that is unmapped before the process would leave its queue by itself.
	 */
	ConditionVariableCancelSleep();
	if (migrate_shared == NULL)
		return;
	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->live.apply_pid = 0;
	migrate_shared->live.held = false;
	SpinLockRelease(&migrate_shared->mutex);
}

/* Another one may be just leaving. */
static bool
become_the_one(int job_id)
{
	TimestampTz start = GetCurrentTimestamp();

	while (!migrate_worker_lock(MIGRATE_LOCK_APPLY, job_id))
	{
		if (must_leave() ||
			TimestampDifferenceExceeds(start, GetCurrentTimestamp(), LOCK_PATIENCE))
			return false;
		sleep_for(50);
	}
	return true;
}

static void
init_worker(ApplyWorker *w, int job_id)
{
	w->job_id = job_id;
	w->session = AllocSetContextCreate(TopMemoryContext, "migrate apply session",
									   ALLOCSET_DEFAULT_SIZES);
	w->conn_cxt = AllocSetContextCreate(TopMemoryContext, "migrate apply connection",
										ALLOCSET_DEFAULT_SIZES);
	CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, forget_definitions, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID, forget_definitions, (Datum) 0);
	seen_look = migrate_shared->live.look;
	SpinLockAcquire(&migrate_shared->mutex);
	memset(&migrate_shared->live.window, 0, sizeof(MigrateWindow));
	migrate_shared->live.apply_pid = MyProcPid;
	migrate_shared->live.transactions = 0;
	migrate_shared->live.changes = 0;
	migrate_shared->live.batches = 0;
	migrate_shared->live.idle = false;
	migrate_shared->live.held = false;
	/* after a resync ids may begin anew */
	migrate_shared->live.nrecent = 0;
	SpinLockRelease(&migrate_shared->mutex);
}

void
migrate_apply_main(Datum main_arg)
{
	MigrateLoaderArgs args;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	migrate_worker_init(args.database, args.owner);
	/* see apply_batch.c */
	SetConfigOption("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION);
	if (!migrate_shmem_attach(args.handle, args.job_id, MIGRATE_APPLY_SLOT))
		proc_exit(0);
	before_shmem_exit(apply_ends, (Datum) 0);
	if (!become_the_one(args.job_id))
	{
		migrate_worker_phase("exited");
		proc_exit(0);
	}
	init_worker(&worker, args.job_id);
	while (!must_leave())
	{
		CHECK_FOR_INTERRUPTS();
		migrate_worker_reload();
		guarded_turn(&worker);
	}
	close_session();
	migrate_worker_phase("exited");
	proc_exit(0);
}
