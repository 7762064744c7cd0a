/*-------------------------------------------------------------------------
 *
 * reverse.c
 *	  The reverse worker: what the application changes here after the cutover,
 *	  into the source, as it happens (P29 to P31).
 *
 *	  arming	make the slot, before the source is fenced
 *	  armed		decode; until the target is opened all of it is thrown away
 *	  opened	decode -> net effect per key -> inverse mapping -> source
 *
 * Where this server has no logical decoding, or option reverse says so, the
 * changes come from the queue that triggers fill (queue.c), which is also
 * emptied here; the rest is the same.
 *
 * A batch is whole transactions.  Its statements are sent to the source without
 * waiting for each answer, and what comes next is decoded while it commits.  If
 * a row is at fault, it is rolled back and written again by steps, which set
 * that row aside (reverse_write.c); what comes from the queue is always written
 * so.  What is applied commits on the source first, then here (dead letters),
 * then the slot is confirmed.  A crash in between repeats the changes, and every
 * statement is idempotent: nothing is lost and nothing is there twice.
 *
 * What committed here before reverse.open_lsn is migrate's own work and not
 * the application's (P29); what the forward stream brings after a rollback is
 * cut by position as well (P30), for this worker does not live then.
 *
 * Process: background worker "migrate reverse", as the job's owner, one a job
 * that is being cut over or is cut over; started by the job worker, which reads
 * its position in MigrateShared.live.  Locks: the session lock (P22), the slot.
 * It looks at the WAL's flushed end every few milliseconds while cut over,
 * since nothing here tells when somebody commits.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/resowner.h"

#include "control/control.h"
#include "cutover/cutover.h"
#include "cutover/external.h"
#include "cutover/remote_pipe.h"
#include "cutover/reverse.h"
#include "cutover/reverse_table.h"
#include "extract/extract.h"

PGDLLEXPORT void migrate_reverse_main(Datum main_arg);

/* messages of one batch; of larger ones if a transaction is */
#define BATCH_BYTES (8 * 1024 * 1024)

/* what may be collected of one before it is written, in memory */
#define COLLECT_BYTES (32 * 1024 * 1024)

/* decoded at a time while the source commits */
#define AHEAD_BYTES (256 * 1024)

/* batches that are not written straight after one that had a bad row */
#define BY_STEPS 8

/* the flushed end is looked at so often, ms */
#define LOOK_AGAIN 5

/* an idle slot is confirmed so often, ms */
#define CONFIRM_INTERVAL 1000

typedef struct ReverseWorker
{
	int			job_id;
	MemoryContext session;		/* made anew after an error */
	MemoryContext batch;		/* of a batch */
	MigrateJob *job;
	char	   *publication;
	char	   *slot;
	char	   *token;			/* of the fence that we write past */
	char	   *mark;			/* of our transactions there, a call; NULL:
								 * none */
	XLogRecPtr	open_lsn;		/* invalid: not opened */
	int64		max_wal;		/* 0: no limit */
	MigrateConn *conn;
	bool		by_trigger;		/* the queue, else the decoder */
	MigrateDecoder *decoder;
	MigrateQueue *queue;
	HTAB	   *tables;
	MigrateMessage msg;
	TimestampTz confirmed_at;
	MemoryContext carry;		/* what a batch takes along from part to part */
	bool		wrote_here;		/* in this batch's transaction */
	int			by_steps;		/* so many batches are not written straight */
	TimestampTz commit_at;		/* of the last transaction of this batch */
} ReverseWorker;

static ReverseWorker worker;
static BackgroundWorkerHandle *handle = NULL;	/* in the job worker */
static TimestampTz not_before = 0;

/* ----------------------------------------------------------------
 * the job worker's side
 * ----------------------------------------------------------------
 */
void
migrate_reverse_ensure(MigrateJob *job, dsm_handle shm)
{
	BackgroundWorker bgw;
	MigrateLoaderArgs args = {
		.database = MyDatabaseId,
		.owner = job->owner,
		.job_id = job->job_id,
		.handle = shm,
		.slot = MIGRATE_REVERSE_SLOT,
	};
	MemoryContext old;
	pid_t		pid;

	if (handle && GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
		return;
	if (handle)
	{
		pfree(handle);
		handle = NULL;
		memset(&migrate_shared->slots[MIGRATE_REVERSE_SLOT], 0, sizeof(MigrateWorkerSlot));
		not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), MIGRATE_NAP);
	}
	if (GetCurrentTimestamp() < not_before)
		return;
	migrate_shared->live.reverse_stop = false;
	old = MemoryContextSwitchTo(TopMemoryContext);
	migrate_worker_describe(&bgw, "migrate reverse", job->name, "migrate_reverse_main");
	memcpy(bgw.bgw_extra, &args, sizeof(args));
	bgw.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&bgw, &handle))
	{
		handle = NULL;
		not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), MIGRATE_NAP);
	}
	MemoryContextSwitchTo(old);
}

/*
 * P30: True when it has left, and so has one that a job worker before us has
 * started.  That one knows from its segment, which is not ours, that it must;
 * its lock tells when it has.
 */
bool
migrate_reverse_stop(int job_id)
{
	pid_t		pid;

	migrate_shared->live.reverse_stop = true;
	if (handle && GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED)
	{
		pfree(handle);
		handle = NULL;
	}
	if (handle)
	{
		migrate_wake_pid(migrate_shared->live.reverse_pid);
		return false;
	}
	if (!migrate_worker_lock(MIGRATE_LOCK_REVERSE, job_id))
		return false;
	migrate_worker_unlock(MIGRATE_LOCK_REVERSE, job_id);
	return true;
}

/* ----------------------------------------------------------------
 * the session
 * ----------------------------------------------------------------
 */
static bool
must_leave(void)
{
	return migrate_shared->live.reverse_stop || migrate_shared->job_worker_pid == 0;
}

static void
exec_for_job(const char *sql, int expected)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(worker.job_id);

	migrate_spi_exec(sql, 1, &type, &value, NULL, expected);
}

/* The job, its reverse row; false when either is gone. */
static bool
load_rows(void)
{
	MemoryContext old = MemoryContextSwitchTo(worker.session);
	bool		found;
	char	   *digest;

	worker.job = migrate_job_load(worker.job_id);
	if (worker.job == NULL)
	{
		MemoryContextSwitchTo(old);
		return false;
	}
	migrate_spi_begin();
	exec_for_job("SELECT r.publication, r.slot, r.state, coalesce(r.open_lsn, '0/0'),"
				 " (SELECT c.token FROM migrate.cutover c WHERE c.job_id = $1 AND c.direction = 'forward'"
				 "  ORDER BY c.cutover_id DESC LIMIT 1),"
				 " migrate._option($1, 'max_target_wal'),"
				 " (SELECT c.digest FROM migrate.cutover c WHERE c.job_id = $1 AND c.direction = 'forward'"
				 "  AND c.fence = 'external' ORDER BY c.cutover_id DESC LIMIT 1), (r.kind = 'trigger')::int"
				 " FROM migrate.reverse r WHERE r.job_id = $1 AND r.state <> 'lost'", SPI_OK_SELECT);
	found = SPI_processed == 1;
	if (found)
	{
		bool		isnull;

		MemoryContextSwitchTo(worker.session);
		worker.publication = migrate_spi_text(0, 0);
		worker.slot = migrate_spi_text(0, 1);
		worker.open_lsn = DatumGetLSN(SPI_getbinval(SPI_tuptable->vals[0],
													SPI_tuptable->tupdesc, 4, &isnull));
		worker.token = migrate_spi_text(0, 4);
		worker.max_wal = migrate_spi_int64(0, 5, 0);
		digest = migrate_spi_text(0, 6);
		worker.mark = digest ? migrate_external_mark(digest) : NULL;
		worker.by_trigger = migrate_spi_int64(0, 7, 0) != 0;
	}
	migrate_spi_end();
	MemoryContextSwitchTo(old);
	return found;
}

static void
set_reverse_state(const char *state, const char *error)
{
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(worker.job_id), CStringGetTextDatum(state),
	error ? CStringGetTextDatum(error) : (Datum) 0};

	StartTransactionCommand();
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.reverse SET state = $2, error = $3 WHERE job_id = $1",
					 3, types, values, error ? "   " : "  n", SPI_OK_UPDATE);
	migrate_spi_end();
	CommitTransactionCommand();
	migrate_wake_job_worker();
}

static bool
slot_exists(const char *name)
{
	return SearchNamedReplicationSlot(name, true) != NULL;
}

/*
 * Past the fence (P27), and without firing the source's triggers where the
 * role may say so (P31).
 */
static void
connect_source(void)
{
	MemoryContext old = MemoryContextSwitchTo(worker.session);

	worker.conn = migrate_connect(worker.job->server, worker.job->owner, worker.job->name,
								  "reverse", worker.job->connect_timeout_s);
	MemoryContextSwitchTo(old);
	if (worker.token)
		PQclear(migrate_exec(worker.conn, migrate_fence_session(worker.token)));
	migrate_exec_quietly(worker.conn, "SET session_replication_role = replica");
}

/* After an error, too: the slot was released by then. */
static void
close_session(bool failed)
{
	if (worker.decoder)
		migrate_decoder_close(worker.decoder, failed);
	worker.decoder = NULL;
	if (worker.queue)
		migrate_queue_close(worker.queue);
	worker.queue = NULL;
	if (worker.conn)
		migrate_disconnect(worker.conn);
	worker.conn = NULL;
	worker.tables = NULL;
	memset(&worker.msg, 0, sizeof(worker.msg));
	MemoryContextReset(worker.batch);
	MemoryContextReset(worker.carry);
	MemoryContextReset(worker.session);
}

/* The target goes on, and what is written to it stays here. */
static void
tell_lost(const char *reason, const char *how)
{
	set_reverse_state("lost", reason);
	StartTransactionCommand();
	migrate_event(worker.job_id, "alert", "reverse_lost",
				  "%s: going back would lose what was written here", how);
	CommitTransactionCommand();
}

/*
 * The queue has grown beyond max_target_wal: nothing more is noted.  Writers
 * hold up each table's lock, and are held up for a moment; the number of tables
 * whose triggers are still at work.
 */
static int
stop_noting(void)
{
	int			left;

	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_job("SELECT migrate._stop_queue($1)", SPI_OK_SELECT);
	left = (int) migrate_spi_int64(0, 0, 0);
	migrate_spi_end();
	CommitTransactionCommand();
	return left;
}

static bool
queue_is_too_long(void)
{
	int64		size;
	int			left;

	if (worker.max_wal <= 0)
		return false;
	StartTransactionCommand();
	size = migrate_queue_size(worker.queue);
	CommitTransactionCommand();
	if (size <= worker.max_wal)
		return false;
	while ((left = stop_noting()) > 0)
	{
		if (must_leave())
			return true;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 MIGRATE_NAP, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	migrate_queue_trim(worker.queue);
	close_session(false);
	tell_lost("its queue was longer than max_target_wal, and was dropped",
			  psprintf("the queue for the way back had %lld bytes, more than max_target_wal, and was dropped",
					   (long long) size));
	return true;
}

/*
 * max_target_wal: rather no way back than a full disk.  By the slot and not by
 * the decoder, for there is none while the source does not answer, which is
 * when WAL piles up.
 */
static bool
holds_too_much(void)
{
	ReplicationSlot *slot = SearchNamedReplicationSlot(worker.slot, true);
	char	   *name;
	XLogRecPtr	restart;
	XLogRecPtr	now = GetXLogWriteRecPtr();

	if (worker.by_trigger)
		return queue_is_too_long();
	if (slot == NULL || worker.max_wal <= 0)
		return false;
	SpinLockAcquire(&slot->mutex);
	restart = slot->data.restart_lsn;
	SpinLockRelease(&slot->mutex);
	if (restart == InvalidXLogRecPtr || now <= restart || (int64) (now - restart) <= worker.max_wal)
		return false;
	name = MemoryContextStrdup(TopMemoryContext, worker.slot);
	close_session(false);
	migrate_fault("reverse-drop");
	ReplicationSlotDrop(name, true);
	pfree(name);
	tell_lost("its slot held more WAL than max_target_wal, and was dropped",
			  psprintf("the slot for the way back held %lld bytes of WAL, more than max_target_wal, and was dropped",
					   (long long) (now - restart)));
	return true;
}

/*
 * Once the target is open, a slot that is not there, or that the server has
 * taken its WAL from (max_slot_wal_keep_size), cannot be made good: a new one
 * would miss what was written meanwhile.
 */
static bool
slot_is_lost(void)
{
	ReplicationSlot *slot = SearchNamedReplicationSlot(worker.slot, true);
	XLogRecPtr	restart;

	if (worker.open_lsn == InvalidXLogRecPtr || worker.by_trigger)
		return false;
	if (slot == NULL)
	{
		tell_lost("its slot is gone", "the slot for the way back is gone");
		return true;
	}
	SpinLockAcquire(&slot->mutex);
	restart = slot->data.restart_lsn;
	SpinLockRelease(&slot->mutex);
	if (restart != InvalidXLogRecPtr)
		return false;
	tell_lost("its slot was invalidated by this server",
			  "the slot for the way back was invalidated by this server (max_slot_wal_keep_size)");
	return true;
}

/* False when there is nothing to do for us. */
static bool
open_session(void)
{
	MemoryContext old;

	StartTransactionCommand();
	if (!load_rows())
	{
		CommitTransactionCommand();
		return false;
	}
	if (worker.by_trigger)
	{
		old = MemoryContextSwitchTo(worker.session);
		worker.queue = migrate_queue_open(worker.job_id);
		MemoryContextSwitchTo(old);
	}
	CommitTransactionCommand();
	if (slot_is_lost() || holds_too_much())
		return false;
	if (!worker.by_trigger && !slot_exists(worker.slot))
	{
		migrate_worker_phase("arm");
		migrate_decoder_make_slot(worker.slot);
		migrate_fault("reverse-slot");
		set_reverse_state("armed", NULL);
	}
	else
		set_reverse_state("armed", NULL);
	StartTransactionCommand();
	connect_source();
	old = MemoryContextSwitchTo(worker.session);
	worker.tables = migrate_reverse_tables(worker.job, worker.conn);
	if (!worker.by_trigger)
		worker.decoder = migrate_decoder_open(worker.slot, worker.publication);
	MemoryContextSwitchTo(old);
	CommitTransactionCommand();
	worker.confirmed_at = GetCurrentTimestamp();
	return true;
}

/* ----------------------------------------------------------------
 * a batch
 * ----------------------------------------------------------------
 */
static ReverseTable *
table_of(Oid relid)
{
	return hash_search(worker.tables, &relid, HASH_FIND, NULL);
}

/* Tables in the order of foreign keys; those that have something collected. */
static int
dirty_tables(ReverseTable ***tables)
{
	HASH_SEQ_STATUS status;
	ReverseTable *table;
	int			n = 0;

	*tables = palloc(sizeof(ReverseTable *) * Max(hash_get_num_entries(worker.tables), 1));
	hash_seq_init(&status, worker.tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		int			i = n++;

		if (!table->dirty)
		{
			n--;
			continue;
		}
		for (; i > 0 && (*tables)[i - 1]->rank > table->rank; i--)
			(*tables)[i] = (*tables)[i - 1];
		(*tables)[i] = table;
	}
	return n;
}

/* Mappings that have open letters of the way back. */
static Bitmapset *
lettered_mappings(void)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Bitmapset  *lettered = NULL;

	migrate_spi_begin();
	exec_for_job("SELECT DISTINCT d.mapping_id FROM migrate.dead_letter d"
				 " WHERE d.job_id = $1 AND d.state = 'open' AND d.stage = 'back'", SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		lettered = bms_add_member(lettered, (int) migrate_spi_int64(i, 0, 0));
		MemoryContextSwitchTo(old);
	}
	migrate_spi_end();
	MemoryContextSwitchTo(mcxt);
	return lettered;
}

/* Within a transaction on both sides: children are deleted first, parents
 * written first. */
static void
write_collected(ReverseSink *sink)
{
	ReverseTable **tables;
	int			n = dirty_tables(&tables);
	Bitmapset  *lettered = n > 0 ? lettered_mappings() : NULL;

	for (int i = 0; lettered && i < n; i++)
		if (migrate_reverse_supersede(tables[i], lettered) > 0)
			worker.wrote_here = true;
	for (int i = n - 1; i >= 0; i--)
		migrate_reverse_write_gone(sink, tables[i]);
	for (int i = 0; i < n; i++)
		migrate_reverse_write_images(sink, tables[i]);
	for (int i = 0; i < n; i++)
	{
		if (sink->more)
			migrate_reverse_part_over(tables[i], sink->carry_cxt);
		else
			migrate_reverse_clear(tables[i]);
	}
}

/* A part of the batch, and its memory. */
static void
write_part(ReverseSink *sink)
{
	HASH_SEQ_STATUS status;
	ReverseTable *table;

	sink->more = true;
	write_collected(sink);
	sink->more = false;
	MemoryContextReset(worker.batch);
	hash_seq_init(&status, worker.tables);
	while ((table = hash_seq_search(&status)) != NULL)
		migrate_reverse_resume(table, worker.batch);
	MemoryContextReset(sink->carry_cxt);
	sink->carried = 0;
}

/* A TRUNCATE comes in order: what was before it is written before. */
static void
take_truncate(ReverseSink *sink)
{
	write_part(sink);
	for (int i = 0; i < worker.msg.nrelids; i++)
	{
		ReverseTable *table = table_of(worker.msg.relids[i]);

		if (table == NULL || table->nways == 0)
			continue;
		migrate_reverse_clear(table);
		table->dirty = table->truncated = true;
	}
}

/* One message of a transaction of the application. */
static void
take_message(ReverseSink *sink, int64 *changes)
{
	ReverseTable *table;

	switch (worker.msg.type)
	{
		case 'I':
		case 'U':
		case 'D':
			table = table_of(worker.msg.relid);
			if (table == NULL || table->nways == 0 || table->from == NULL)
				return;
			migrate_reverse_collect(table, &worker.msg, worker.batch);
			(*changes)++;
			if (MemoryContextMemAllocated(worker.batch, true) > COLLECT_BYTES)
				write_part(sink);
			break;
		case 'T':
			take_truncate(sink);
			(*changes)++;
			break;
		default:
			break;
	}
}

static void
take_relation(const char *data, int len)
{
	MemoryContext old = MemoryContextSwitchTo(worker.session);
	MigrateRemoteRelation *remote = migrate_message_relation(data, len);
	ReverseTable *table = table_of(remote->oid);

	if (table)
		migrate_reverse_describe(table, remote, worker.session);
	MemoryContextSwitchTo(old);
}

/*
 * One batch of this way back at a time on the source, by a lock there until the
 * transaction has ended for everybody: a COMMIT that hangs, for a synchronous
 * standby, outlives the worker that sent it, and what it wrote is not seen by
 * the next one, whose DELETE would find nothing.
 */
static void
begin_on_source(bool straight)
{
	const char *const begin[] = {
		"BEGIN", "SET LOCAL synchronous_commit = on",
		psprintf("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%s, 0)%s",
				 quote_literal_cstr(worker.slot),
				 worker.mark ? psprintf("), %s", worker.mark) : ")")
	};

	if (straight)
	{
		migrate_pipe_begin(worker.conn);
		for (int i = 0; i < lengthof(begin); i++)
			migrate_pipe_send(worker.conn, begin[i], 0, NULL);
	}
	else
		PQclear(migrate_exec(worker.conn, psprintf("%s; %s; %s", begin[0], begin[1], begin[2])));
}

static bool
next_message(const char **data, int *len)
{
	return worker.queue ? migrate_queue_next(worker.queue, data, len) :
		migrate_decoder_next(worker.decoder, data, len);
}

/*
 * Everything that was decoded: what is the application's is collected and
 * written.  False: there is nothing.
 */
static bool
write_decoded(ReverseSink *sink, int64 *changes)
{
	const char *data;
	int			len;
	bool		ours = true;	/* before the opening: migrate's own */
	bool		begun = false;

	while (next_message(&data, &len))
	{
		MemoryContextSwitchTo(worker.batch);
		migrate_message_parse(&worker.msg, data, len, worker.session);
		if (worker.msg.type == 'B')
			ours = worker.open_lsn == InvalidXLogRecPtr || worker.msg.final_lsn < worker.open_lsn;
		else if (worker.msg.type == 'R')
			take_relation(data, len);
		else if (worker.msg.type == 'C')
			worker.commit_at = worker.msg.commit_at;
		else if (!ours)
		{
			if (!begun)
				begin_on_source(sink->straight);
			begun = true;
			take_message(sink, changes);
		}
	}
	MemoryContextSwitchTo(worker.batch);
	if (begun)
		write_collected(sink);
	return begun;
}

/* A batch from its first message on; what was collected of it is forgotten. */
static void
begin_anew(ReverseSink *sink, bool straight)
{
	HASH_SEQ_STATUS status;
	ReverseTable *table;
	bool		postpone;

	hash_seq_init(&status, worker.tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		migrate_reverse_clear(table);
		table->carried = NIL;
	}
	MemoryContextReset(worker.batch);
	MemoryContextReset(worker.carry);
	postpone = sink->counts.postpone;
	memset(sink, 0, sizeof(ReverseSink));
	sink->counts.postpone = postpone;
	sink->job = worker.job;
	sink->conn = worker.conn;
	sink->carry_cxt = worker.carry;
	sink->straight = straight;
	worker.wrote_here = false;
	if (worker.decoder)
		migrate_decoder_again(worker.decoder);
}

/*
 * The straight way: all of a batch is sent, its COMMIT too.  An error that is a
 * row's fault is returned, as the source's is by settle_straight(): then
 * nothing has happened on either side.
 */
static ErrorData *
send_straight(ReverseSink *sink, int64 *changes, bool *begun)
{
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(worker.batch);
	PG_TRY();
	{
		*begun = write_decoded(sink, changes);
		if (*begun)
		{
			migrate_fault("reverse-written");
			migrate_pipe_send(worker.conn, "COMMIT", 0, NULL);
			migrate_pipe_end(worker.conn);
		}
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(worker.session);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(worker.batch);
	CurrentResourceOwner = owner;
	if (edata == NULL)
		return NULL;
	if (!migrate_error_is_of_row(edata->sqlerrcode))
		ReThrowError(edata);
	migrate_pipe_abandon(worker.conn);
	return edata;
}

/* Until the source has committed; what comes next is decoded meanwhile. */
static ErrorData *
settle_straight(bool ahead)
{
	ErrorData  *volatile edata = NULL;
	int64		bytes = 0;
	XLogRecPtr	last = InvalidXLogRecPtr;

	while (ahead && bytes < BATCH_BYTES && !migrate_pipe_ready(worker.conn))
	{
		XLogRecPtr	lsn;

		bytes += AHEAD_BYTES;
		lsn = migrate_decoder_read_ahead(worker.decoder, bytes);
		if (lsn == last)
			break;
		last = lsn;
	}
	PG_TRY();
	{
		migrate_pipe_finish(worker.conn);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(worker.session);
		edata = CopyErrorData();
		if (!migrate_error_is_of_row(edata->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(worker.batch);
	return edata;
}

/*
 * False: it cannot be done so, for the fault of a row.  The transaction here
 * has seldom anything to commit, and then need not wait for that of the source,
 * but makes room for those of decoding.
 */
static bool
apply_straight(ReverseSink *sink, int64 *changes)
{
	ErrorData  *edata;
	bool		begun = false;
	bool		hold;

	edata = send_straight(sink, changes, &begun);
	hold = worker.wrote_here;
	if (!hold)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(worker.batch);
	}
	if (edata == NULL && begun)
		edata = settle_straight(!hold);
	if (edata == NULL)
	{
		if (begun)
			migrate_fault("reverse-committed");
		if (hold)
			CommitTransactionCommand();
		return true;
	}
	FreeErrorData(edata);
	if (hold)
		AbortCurrentTransaction();
	PQclear(migrate_exec(worker.conn, "ROLLBACK"));
	return false;
}

/* Each statement is waited for; bad rows are set aside. */
static void
apply_by_steps(ReverseSink *sink, int64 *changes)
{
	if (write_decoded(sink, changes))
	{
		migrate_fault("reverse-written");
		PQclear(migrate_exec(worker.conn, "COMMIT"));
		migrate_fault("reverse-committed");
	}
	if (worker.queue)
		migrate_queue_delete(worker.queue);
	/* dead letters must be on disk before the slot is confirmed */
	if (sink->counts.dead > 0)
		ForceSyncCommit();
	CommitTransactionCommand();
}

/*
 * A batch, in one transaction on each side.  Where one had a bad row, the next
 * ones are likely to have some.
 */
static void
apply_decoded(ReverseSink *sink, int64 *changes)
{
	bool		straight = worker.by_steps == 0 && worker.decoder != NULL;

	if (worker.by_steps > 0)
		worker.by_steps--;
	StartTransactionCommand();
	if (worker.open_lsn == InvalidXLogRecPtr)
		(void) load_rows();
	begin_anew(sink, straight);
	if (straight && !apply_straight(sink, changes))
	{
		worker.by_steps = BY_STEPS;
		*changes = 0;
		StartTransactionCommand();
		begin_anew(sink, false);
		straight = false;
	}
	if (!straight)
		apply_by_steps(sink, changes);
	MemoryContextSwitchTo(TopMemoryContext);
}

/* Nothing that is flushed here was left when we looked. */
static void
publish_idle(void)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->live.reverse_caught_up_at = now;
	SpinLockRelease(&migrate_shared->mutex);
}

static void
publish_position(XLogRecPtr lsn, ReverseCounts *counts, int64 changes, int64 retained)
{
	SpinLockAcquire(&migrate_shared->mutex);
	if (changes > 0)
		migrate_shared->live.reverse_commit_at = worker.commit_at;
	migrate_shared->live.reverse_lsn = lsn;
	migrate_shared->live.reverse_changes += changes;
	migrate_shared->live.reverse_dead += counts->dead;
	migrate_shared->live.reverse_retained = retained;
	SpinLockRelease(&migrate_shared->mutex);
	migrate_worker_count(changes, 0, counts->dead);
}

/* True when something was applied, or is at hand. */
static bool
batch(void)
{
	ReverseSink sink = {0};
	int64		changes = 0;
	XLogRecPtr	from = migrate_shared->live.reverse_lsn;
	XLogRecPtr	lsn;

	migrate_worker_phase("decode");
	lsn = migrate_decoder_read(worker.decoder, BATCH_BYTES);
	if (!migrate_decoder_empty(worker.decoder))
	{
		migrate_worker_phase("write");
		apply_decoded(&sink, &changes);
		migrate_decoder_forget(worker.decoder);
		MemoryContextReset(worker.batch);
		migrate_decoder_confirm(worker.decoder, lsn);
		worker.confirmed_at = GetCurrentTimestamp();
	}
	else if (TimestampDifferenceExceeds(worker.confirmed_at, GetCurrentTimestamp(), CONFIRM_INTERVAL))
	{
		migrate_decoder_confirm(worker.decoder, lsn);
		worker.confirmed_at = GetCurrentTimestamp();
	}
	if (migrate_decoder_empty(worker.decoder))
		publish_idle();
	if (lsn != from || changes > 0)
		publish_position(lsn, &sink.counts, changes, migrate_decoder_retained(worker.decoder));
	return changes > 0 || !migrate_decoder_empty(worker.decoder);
}

/*
 * The same from the queue.  Of a part, what cannot be written yet is put off
 * until all has been seen.
 */
static bool
queue_batch(void)
{
	ReverseSink sink = {0};
	int64		changes = 0;
	XLogRecPtr	from = migrate_shared->live.reverse_lsn;
	XLogRecPtr	lsn;
	int64		size;

	migrate_worker_phase("read");
	lsn = migrate_queue_read(worker.queue);
	if (migrate_queue_partial(worker.queue))
		lsn = from;
	if (!migrate_queue_empty(worker.queue))
	{
		migrate_worker_phase("write");
		sink.counts.postpone = migrate_queue_partial(worker.queue);
		apply_decoded(&sink, &changes);
		migrate_queue_widen(worker.queue, sink.counts.postponed > 0 && sink.counts.upserts + sink.counts.deletes == 0);
		if (sink.counts.postponed > 0)
			lsn = from;
		migrate_queue_forget(worker.queue);
		MemoryContextReset(worker.batch);
		migrate_queue_trim(worker.queue);
	}
	else
		publish_idle();
	if (lsn == from && changes == 0)
		return false;
	StartTransactionCommand();
	size = migrate_queue_size(worker.queue);
	CommitTransactionCommand();
	publish_position(lsn, &sink.counts, changes, size);
	return changes > 0;
}

/* ----------------------------------------------------------------
 * the process
 * ----------------------------------------------------------------
 */

/*
 * Between batches there is nothing to do but look at the WAL's end.  Who writes
 * to the queue wakes us, unless we have just come, or it was a prepared
 * transaction.
 */
static void
doze(void)
{
	long		nap = worker.queue ? MIGRATE_NAP :
	worker.open_lsn == InvalidXLogRecPtr ? LOOK_AGAIN * 10 : LOOK_AGAIN;

	migrate_worker_phase("wait");
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 nap, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	migrate_worker_reload();
}

static void
note_error(ErrorData *edata, int errors)
{
	MigrateWorkerSlot *slot = &migrate_shared->slots[MIGRATE_REVERSE_SLOT];

	SpinLockAcquire(&migrate_shared->mutex);
	if (errors == 1)
		slot->error_since = GetCurrentTimestamp();
	slot->errors = errors;
	strlcpy(slot->sqlstate, unpack_sql_state(edata->sqlerrcode), sizeof(slot->sqlstate));
	SpinLockRelease(&migrate_shared->mutex);
	migrate_clip(slot->last_error, sizeof(slot->last_error), edata->message);
	if (errors != 2)
		return;
	StartTransactionCommand();
	migrate_event(worker.job_id, "warning", "reverse", "changes cannot go back to the source: %s%s%s",
				  edata->message, edata->detail ? "; " : "", edata->detail ? edata->detail : "");
	CommitTransactionCommand();
}

static void
no_error(void)
{
	MigrateWorkerSlot *slot = &migrate_shared->slots[MIGRATE_REVERSE_SLOT];

	SpinLockAcquire(&migrate_shared->mutex);
	slot->errors = 0;
	slot->error_since = 0;
	SpinLockRelease(&migrate_shared->mutex);
}

/* Sessions, one after the other, until there is nothing to do. */
static void
run(void)
{
	volatile int errors = 0;

	while (!must_leave())
	{
		ErrorData  *volatile edata = NULL;
		volatile bool leave = false;

		PG_TRY();
		{
			if (worker.decoder == NULL && worker.queue == NULL && !open_session())
				leave = true;
			else
			{
				bool		worked = worker.queue ? queue_batch() : batch();

				if (holds_too_much())
					leave = true;
				else if (!worked)
					doze();
			}
		}
		PG_CATCH();
		{
			if (MyReplicationSlot != NULL)
				ReplicationSlotRelease();
			edata = migrate_recover(TopMemoryContext);
			close_session(true);
		}
		PG_END_TRY();
		if (leave)
			return;
		if (edata == NULL)
		{
			if (errors > 0 && worker.conn)
			{
				errors = 0;
				no_error();
			}
			continue;
		}
		errors++;
		note_error(edata, errors);
		FreeErrorData(edata);
		migrate_worker_phase("retry");
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 migrate_backoff(errors, 5000), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		migrate_worker_reload();
	}
}

static void
leave(int code, Datum arg)
{
	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->live.reverse_pid = 0;
	SpinLockRelease(&migrate_shared->mutex);
	migrate_wake_job_worker();
}

void
migrate_reverse_main(Datum main_arg)
{
	MigrateLoaderArgs args;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	worker.job_id = args.job_id;
	migrate_worker_init(args.database, args.owner);
	if (!migrate_shmem_attach(args.handle, args.job_id, args.slot) ||
		!migrate_worker_lock(MIGRATE_LOCK_REVERSE, args.job_id))
		proc_exit(0);
	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->live.reverse_pid = MyProcPid;
	SpinLockRelease(&migrate_shared->mutex);
	before_shmem_exit(leave, (Datum) 0);
	worker.session = AllocSetContextCreate(TopMemoryContext, "migrate reverse session",
										   ALLOCSET_DEFAULT_SIZES);
	worker.batch = AllocSetContextCreate(TopMemoryContext, "migrate reverse batch",
										 ALLOCSET_DEFAULT_SIZES);
	worker.carry = AllocSetContextCreate(TopMemoryContext, "migrate reverse carried",
										 ALLOCSET_DEFAULT_SIZES);
	/* texts for the source, as its sessions read them */
	SetConfigOption("datestyle", "ISO", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("intervalstyle", "postgres", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("extra_float_digits", "3", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("timezone", "GMT", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("bytea_output", "hex", PGC_USERSET, PGC_S_SESSION);
	run();
	close_session(false);
	migrate_worker_phase("exited");
	proc_exit(0);
}

/*
 * migrate._drop_own_slot(job_id): with the rights of the job, which made it,
 * and not those of REPLICATION.
 */
PG_FUNCTION_INFO_V1(migrate_drop_own_slot);
PGDLLEXPORT Datum
migrate_drop_own_slot(PG_FUNCTION_ARGS)
{
	Oid			type = INT4OID;
	Datum		value = PG_GETARG_DATUM(0);
	char	   *slot = NULL;

	migrate_spi_begin();
	migrate_spi_exec("SELECT r.slot FROM migrate.reverse r WHERE r.job_id = $1",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
		slot = migrate_spi_text(0, 0);
	if (slot && slot_exists(slot))
		ReplicationSlotDrop(slot, true);
	migrate_spi_end();
	migrate_fault("finish-slot");
	PG_RETURN_VOID();
}
