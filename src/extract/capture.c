/*-------------------------------------------------------------------------
 *
 * capture.c
 *	  The capture worker: follows the source's change stream and keeps it in
 *	  the spool.
 *
 * Process: one background worker "migrate capture" a stream, as the stream's
 * owner, started by the job workers of its jobs (migrate_capture_ensure); the
 * only one by a session lock that SQL cannot take (P22).  It leaves when no job
 * needs the stream any more, or when the stream is lost.
 *
 *	  connect -> check (P18) -> stream { receive -> spool -> commit here
 *			  -> durable here -> confirm there }
 *
 * What is where, from left to right:
 *
 *	  confirmed <= durable here <= spooled (committed here) <= received
 *
 * Commits here are asynchronous.  For each, where it ends in the local WAL and
 * up to where it brings the spool are kept in a queue; once a second the local
 * WAL is flushed, and what has passed is confirmed to the source.  So nothing
 * that a crash here can lose has been confirmed (invariant 4), and after one
 * the source is asked to begin at stream_position.spooled_lsn again.
 *
 * A keep-alive moves the position only when no source transaction is half
 * received and everything received is committed here; it is written to
 * stream_position and flushed before it is confirmed, so that the slot of an
 * idle source still advances, and P18's check holds.
 *
 * A source that was restored from files, and goes on by itself, has another past
 * from then on, under the same identity and timeline.  Its slot was restored,
 * too, so it confirms less than is here; as after a crash of the source, or of a
 * connection.  Then nothing more is confirmed until the source has told again
 * what comes after the confirmed position ("recheck"): the last commit of the
 * spool must be the same, and no other may be before the end of the spool.
 *
 * Errors that pass are tried again for ever, with back-off, and told once.  A
 * crash leaves nothing but an old shm_handle.
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
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "extract/capture.h"
#include "extract/spool.h"

PGDLLEXPORT void migrate_capture_main(Datum main_arg);

#define STATUS_INTERVAL 1000	/* ms between status messages at most */
#define LOOK_INTERVAL 2000		/* ms between looks at the jobs */
#define LOOK_WHEN_FULL 250		/* the same while the spool is full */
#define WATCH_INTERVAL 5000		/* ms between looks at the source's WAL */
#define PUBLISHED_INTERVAL 15000	/* and at the publication */

/* no sign of life for so long, ms: ask; for twice that: the connection is dead */
#define SILENCE_ASK 30000
#define SILENCE_DEAD 60000

/*
 * A local transaction is ended at the next source commit after so many bytes
 * or so long, even while more is coming.
 */
#define COMMIT_BYTES (8 * 1024 * 1024)
#define COMMIT_MS 100

/*
 * And when nothing more is coming, but not so soon after the one before: at a
 * high rate each local commit, and each batch of apply after it, is for many
 * transactions of the source.  ms.
 */
#define GATHER_MS 4

/*
 * A source that has much to send sends each change by itself, and to be woken
 * for it costs more than the change does, on both sides.  At so many bytes a ms
 * we look only once in so many ms; what comes meanwhile fits into the socket.
 */
#define NAP_RATE 8192
#define NAP_MS 1

/* what libpq has received is gone through for so long before looking up, bytes */
#define BUSY_BYTES (4 * 1024 * 1024)

#define QUEUE_MAX 256

/* sizes of a message 'w' before its content, and of 'k' */
#define HEADER_BYTES (1 + 3 * 8)
#define KEEPALIVE_BYTES (1 + 8 + 8 + 1)

/* when local_end is flushed here, the source may forget what is before remote */
typedef struct Durable
{
	XLogRecPtr	local_end;
	XLogRecPtr	remote;
} Durable;

/* What a capture worker knows; nothing of it matters after a crash. */
static struct
{
	int			stream_id;
	MigrateStreamShared *shared;
	MemoryContext session_cxt;	/* from one connection to the next */
	MemoryContext turn_cxt;		/* of small things in a session */

	/* of a session */
	MigrateStream *stream;
	MigrateConn *conn;
	char	   *received_buffer;	/* of libpq, to free after an error */
	SpoolWriter *spool;
	bool		in_xact;		/* a source transaction is half received */
	bool		recheck;		/* is what we have still the source's past? */
	bool		known_awaited;	/* the last commit that we have is to come
								 * again */
	bool		passing;		/* it is coming, and not kept twice */
	int64		unsaved;		/* bytes since the last local commit */
	TimestampTz unsaved_since;
	bool		overdue;		/* so it was when the last commit came */
	TimestampTz committed_at;	/* here, last */
	/* how fast changes come: bytes since then, and the verdict of before */
	int64		arrived;
	TimestampTz measured_at;
	bool		fast;
	XLogRecPtr	received;
	XLogRecPtr	last_end;		/* of the last commit received */
	TimestampTz last_commit_at;
	XLogRecPtr	spooled;		/* committed here */
	XLogRecPtr	idle_lsn;		/* of a keep-alive; valid when it is beyond */
	XLogRecPtr	confirmed;
	bool		reply_wanted;
	TimestampTz last_heard;
	TimestampTz last_tick;
	TimestampTz last_look;
	Durable		queue[QUEUE_MAX];
	int			nqueue;

	/* since the last look into shared memory */
	int64		transactions;
	int64		changes;
	int64		bytes;
	TimestampTz rate_since;
	int64		rate_changes;

	/* what the jobs want, as of the last look */
	bool		needed;
	bool		full;
	int64		spool_limit;
	int64		retention_ms;
	int64		retention_size;
	int64		max_source_wal;
	int			max_delay_ms;
	int			connect_timeout_s;
	int64		next_seq;		/* of the slowest; 0: nobody reads yet */
	int64		validated_seq;	/* what comes from here on is kept, too, ... */
	int64		changed_size;	/* ... up to so many bytes */

	/* the source's WAL, over a connection of its own */
	MigrateConn *watch;
	bool		watching;		/* an answer is awaited */
	TimestampTz last_watch;
	TimestampTz last_published; /* the publication was looked at */
	bool		told_reserve;	/* of a slot that is about to be lost */

	/* errors in a row */
	int			errors;
	char		sqlstate[6];
}			me;

/* ----------------------------------------------------------------
 * telling
 * ----------------------------------------------------------------
 */
static char *
pretty_size(int64 bytes)
{
	return text_to_cstring(DatumGetTextPP(DirectFunctionCall1(pg_size_pretty,
															  Int64GetDatum(bytes))));
}

static void
set_phase(const char *phase)
{
	SpinLockAcquire(&me.shared->mutex);
	strlcpy(me.shared->phase, phase, sizeof(me.shared->phase));
	SpinLockRelease(&me.shared->mutex);
}

static void
exec_for_stream(const char *sql, int expected)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(me.stream_id);

	migrate_spi_exec(sql, 1, &type, &arg, NULL, expected);
}

/* In a transaction: an event of every job that reads the stream. */
static void
stream_event(const char *level, const char *kind, const char *message)
{
	Oid			types[4] = {INT4OID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[4];

	values[0] = Int32GetDatum(me.stream_id);
	values[1] = CStringGetTextDatum(level);
	values[2] = CStringGetTextDatum(kind);
	values[3] = CStringGetTextDatum(message);
	migrate_spi_begin();
	migrate_spi_exec("SELECT migrate._event(j.job_id, $2, $3, $4) FROM migrate.job_stream j"
					 " WHERE j.stream_id = $1 ORDER BY j.job_id",
					 4, types, values, NULL, SPI_OK_SELECT);
	migrate_spi_end();
}

/* The same, in a transaction of its own. */
static void
tell(const char *level, const char *kind, const char *message)
{
	MemoryContext old = CurrentMemoryContext;

	StartTransactionCommand();
	stream_event(level, kind, message);
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
}

static void
wake_jobs(void)
{
	MemoryContext old = CurrentMemoryContext;

	ConditionVariableBroadcast(&me.shared->spooled);
	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_stream("SELECT migrate._wake(j.job_id) FROM migrate.job_stream j WHERE j.stream_id = $1",
					SPI_OK_SELECT);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
}

static void
count_for_all(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		total = migrate_spool_total(me.spool);
	double		seconds = (now - me.rate_since) / 1000000.0;

	SpinLockAcquire(&me.shared->mutex);
	me.shared->received_lsn = me.received;
	me.shared->spooled_lsn = me.spooled;
	me.shared->spooled_seq = me.spool->next_seq - 1;
	me.shared->confirmed_lsn = me.confirmed;
	if (me.received > me.shared->source_lsn)
	{
		me.shared->source_lsn = me.received;
		me.shared->source_at = me.last_heard;
	}
	if (me.last_commit_at != 0)
		me.shared->commit_at = me.last_commit_at;
	me.shared->transactions += me.transactions;
	me.shared->changes += me.changes;
	me.shared->bytes += me.bytes;
	me.shared->spool_bytes = total;
	me.shared->full = me.full;
	me.rate_changes += me.changes;
	if (seconds >= 2)
	{
		me.shared->changes_per_second = me.rate_changes / seconds;
		me.rate_changes = 0;
		me.rate_since = now;
	}
	SpinLockRelease(&me.shared->mutex);
	me.transactions = me.changes = me.bytes = 0;
}

/* ----------------------------------------------------------------
 * positions
 * ----------------------------------------------------------------
 */

/* A local commit brought the spool up to "remote". */
static void
queue_durable(XLogRecPtr local_end, XLogRecPtr remote)
{
	if (me.nqueue == QUEUE_MAX)
		me.nqueue--;			/* the two newest become one */
	me.queue[me.nqueue].local_end = local_end;
	me.queue[me.nqueue].remote = remote;
	me.nqueue++;
}

/* What is durable here by now may be confirmed. */
static bool
look_what_is_durable(void)
{
	XLogRecPtr	flushed = GetFlushRecPtr(NULL);
	int			done = 0;

	while (done < me.nqueue && me.queue[done].local_end <= flushed)
		me.confirmed = me.queue[done++].remote;
	if (done > 0)
	{
		me.nqueue -= done;
		memmove(me.queue, me.queue + done, me.nqueue * sizeof(Durable));
	}
	return done > 0;
}

static void
send_status(bool ask)
{
	bool		more = look_what_is_durable();

	migrate_replication_status(me.conn, Max(me.received, me.idle_lsn), me.confirmed, ask);
	me.reply_wanted = false;
	if (more)
		migrate_fault("capture-confirmed");
}

/* End the local transaction, at a commit of the source. */
static void
commit_here(void)
{
	XLogRecPtr	local_end = migrate_spool_commit(me.spool, me.last_end);

	me.spooled = me.last_end;
	queue_durable(local_end, me.spooled);
	me.unsaved = 0;
	me.committed_at = GetCurrentTimestamp();
	count_for_all();
	ConditionVariableBroadcast(&me.shared->spooled);
}

/*
 * Nothing is half received or unsaved, and the source has told that there is
 * nothing up to idle_lsn.
 */
static void
take_idle_position(void)
{
	XLogRecPtr	local_end = migrate_spool_commit(me.spool, me.idle_lsn);

	me.spooled = me.idle_lsn;
	queue_durable(local_end, me.spooled);
	count_for_all();
	ConditionVariableBroadcast(&me.shared->spooled);
}

/* ----------------------------------------------------------------
 * what the jobs want
 * ----------------------------------------------------------------
 */

/*
 * Jobs in a state between preparing and cut over need the stream; one that has
 * failed keeps it, too, since migrate_resume lets it go on.  A stream that is
 * said to be lost (migrate_resync) is of no use to any.  Limits are the
 * tightest, what is to be kept the most.
 */
static void
load_wishes(void)
{
	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_stream("SELECT count(*), min(migrate._option(j.job_id, 'spool_limit')::bigint),"
					" max(migrate._option(j.job_id, 'spool_retention')::bigint),"
					" max(migrate._option(j.job_id, 'spool_retention_size')::bigint),"
					" min(nullif(migrate._option(j.job_id, 'max_source_wal')::bigint, 0)),"
					" min(migrate._option(j.job_id, 'retry_max_delay')::bigint),"
					" min(migrate._option(j.job_id, 'connect_timeout')::bigint),"
					" max(migrate._option(j.job_id, 'changed_spool_size')::bigint)"
					" FROM migrate.job_stream s JOIN migrate.job j USING (job_id)"
					" JOIN migrate.stream m ON m.stream_id = s.stream_id AND m.state = 'running'"
					" WHERE s.stream_id = $1 AND j.state NOT IN ('defined', 'copied', 'finished', 'cancelled')",
					SPI_OK_SELECT);
	me.needed = migrate_spi_int64(0, 0, 0) > 0;
	me.spool_limit = migrate_spi_int64(0, 1, PG_INT64_MAX);
	me.retention_ms = migrate_spi_int64(0, 2, 0);
	me.retention_size = migrate_spi_int64(0, 3, 0);
	me.max_source_wal = migrate_spi_int64(0, 4, 0);
	me.max_delay_ms = (int) migrate_spi_int64(0, 5, 30000);
	me.connect_timeout_s = (int) ((migrate_spi_int64(0, 6, 10000) + 999) / 1000);
	me.changed_size = migrate_spi_int64(0, 7, 0);
	exec_for_stream("SELECT min(p.next_seq) FROM migrate.apply_position p"
					" JOIN migrate.job_stream s USING (job_id) WHERE s.stream_id = $1",
					SPI_OK_SELECT);
	me.next_seq = migrate_spi_int64(0, 0, 0);
	exec_for_stream("SELECT min(v.seq) FROM migrate.validated v JOIN migrate.stream s USING (stream_id, generation)"
					" WHERE v.stream_id = $1", SPI_OK_SELECT);
	me.validated_seq = migrate_spi_int64(0, 0, PG_INT64_MAX);
	migrate_spi_end();
	CommitTransactionCommand();
}

static int64
pending_bytes(void)
{
	return me.next_seq > 0 ? migrate_spool_pending(me.spool, me.next_seq) : 0;
}

/*
 * P19, back-pressure: the spool has too much that a job has still to apply.
 * Looked at between source transactions only.
 */
static void
judge_limit(void)
{
	int64		pending = pending_bytes();
	bool		full = pending > me.spool_limit;

	if (full == me.full)
		return;
	if (full)
	{
		/* what is applied by now? */
		load_wishes();
		MemoryContextSwitchTo(me.session_cxt);
		pending = pending_bytes();
		full = pending > me.spool_limit;
		if (!full)
			return;
	}
	me.full = full;
	me.last_heard = GetCurrentTimestamp();
	set_phase(full ? "full" : "stream");
	if (full)
		tell("warning", "spool_full",
			 psprintf("the spool holds %s of changes that are still to be applied, which is more than spool_limit (%s): no more are read, and the source keeps its WAL",
					  pretty_size(pending), pretty_size(me.spool_limit)));
	else
		tell("info", "spool_full", "the spool is below spool_limit again, changes are read on");
	count_for_all();
}

/* Between local transactions. */
static void
look_at_jobs(void)
{
	MemoryContext old = MemoryContextSwitchTo(me.turn_cxt);
	Size		memory = MemoryContextMemAllocated(TopMemoryContext, true);

	me.last_look = GetCurrentTimestamp();
	load_wishes();
	MemoryContextSwitchTo(me.turn_cxt);
	me.spool->segment_bytes = Min(SPOOL_SEGMENT_BYTES,
								  Max(me.spool_limit / 8, SPOOL_ROW_BYTES / 4));
	if (me.next_seq > 0)
		migrate_spool_drop_passed(me.spool, me.next_seq, me.retention_ms, me.retention_size,
								  me.validated_seq, me.changed_size);
	MemoryContextSwitchTo(me.turn_cxt);
	judge_limit();
	SpinLockAcquire(&me.shared->mutex);
	me.shared->memory = memory;
	SpinLockRelease(&me.shared->mutex);
	MemoryContextSwitchTo(old);
	MemoryContextReset(me.turn_cxt);
	pgstat_report_stat(false);
}

/* ----------------------------------------------------------------
 * the source's WAL
 * ----------------------------------------------------------------
 */
static char *
watch_query(void)
{
	return psprintf("SELECT concat_ws(' ', pg_current_wal_insert_lsn(),"
					" pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)::bigint, wal_status)"
					" FROM pg_replication_slots WHERE slot_name = %s",
					quote_literal_cstr(me.stream->slot));
}

/* P21: before our slot fills the source's disk, it is given up. */
static void
blow_fuse(int64 held)
{
	char	   *slot = quote_literal_cstr(me.stream->slot);

	migrate_disconnect(me.conn);
	me.conn = NULL;
	migrate_exec_quietly(me.watch,
						 psprintf("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
								  " WHERE slot_name = %s AND active_pid IS NOT NULL", slot));
	/* the walsender may take a moment to leave it */
	for (int i = 0; i < 100; i++)
	{
		PGresult   *res = migrate_exec_try(me.watch,
										   psprintf("SELECT pg_drop_replication_slot(slot_name)"
													" FROM pg_replication_slots WHERE slot_name = %s", slot));
		bool		busy = migrate_result_is(res, ERRCODE_OBJECT_IN_USE);

		if (!busy && !migrate_result_ok(res))
			migrate_report_remote_error(res, me.watch, NULL);
		PQclear(res);
		if (!busy)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 100, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	migrate_stream_lost(me.stream, "its slot held back %s of WAL on the source, more than max_source_wal (%s), and was dropped",
						pretty_size(held), pretty_size(me.max_source_wal));
}

static void
take_watch_answer(const char *answer)
{
	unsigned int hi,
				lo;
	long long	held = 0;
	char		status[32] = "";
	bool		unreserved;

	if (answer == NULL ||
		sscanf(answer, "%X/%X %lld %31s", &hi, &lo, &held, status) < 3)
		return;					/* the slot is gone: the stream will tell */
	SpinLockAcquire(&me.shared->mutex);
	me.shared->source_lsn = Max(me.received, ((uint64) hi << 32) | lo);
	me.shared->source_at = GetCurrentTimestamp();
	SpinLockRelease(&me.shared->mutex);
	if (me.max_source_wal > 0 && held > me.max_source_wal)
		blow_fuse(held);
	unreserved = strcmp(status, "unreserved") == 0;
	if (unreserved && !me.told_reserve && !me.spool->open)
		tell("alert", "slot_at_risk",
			 psprintf("replication slot \"%s\" holds back %s of WAL, more than the source's max_slot_wal_keep_size: it is lost at the source's next checkpoints",
					  me.stream->slot, pretty_size(held)));
	me.told_reserve = unreserved;
}

/*
 * Every few seconds: ask, and take the answer when it has come; what goes
 * wrong here is no trouble of the stream.  Connecting needs a transaction, so
 * it is done between local ones.
 */
static void
watch_source(void)
{
	MemoryContext old = MemoryContextSwitchTo(me.turn_cxt);
	TimestampTz now = GetCurrentTimestamp();

	if (me.watching && me.watch && migrate_remote_ready(me.watch))
	{
		me.watching = false;
		if (migrate_connection_usable(me.watch))
			take_watch_answer(migrate_remote_value(me.watch, NULL));
	}
	else if (!me.watching &&
			 TimestampDifferenceExceeds(me.last_watch, now, WATCH_INTERVAL))
	{
		if (me.watch && !migrate_connection_usable(me.watch))
		{
			migrate_disconnect(me.watch);
			me.watch = NULL;
		}
		if (me.watch == NULL && !me.spool->open)
		{
			StartTransactionCommand();
			MemoryContextSwitchTo(me.session_cxt);
			me.watch = migrate_connect(me.stream->server, me.stream->owner, me.stream->slot,
									   "watch", me.connect_timeout_s);
			CommitTransactionCommand();
			MemoryContextSwitchTo(me.turn_cxt);
		}
		me.last_watch = now;
		if (me.watch)
		{
			migrate_remote_start(me.watch, watch_query(), false);
			me.watching = true;
		}
	}
	MemoryContextSwitchTo(old);
	if (!me.watching)
		MemoryContextReset(me.turn_cxt);
}

/* ----------------------------------------------------------------
 * receiving
 * ----------------------------------------------------------------
 */
static inline uint64
read_uint64(const char *p)
{
	uint64		v;

	memcpy(&v, p, sizeof(v));
	return pg_ntoh64(v);
}

pg_noreturn static void
bad_frame(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("server \"%s\" has sent a message that is not of the replication protocol",
					me.stream->server_name)));
	pg_unreachable();
}

static void
take_commit(const char *data, int len)
{
	MigrateMessage msg = {0};

	me.overdue = TimestampDifferenceExceeds(me.unsaved_since, GetCurrentTimestamp(), COMMIT_MS);
	migrate_fault("capture-received");
	migrate_message_parse(&msg, data, len, me.turn_cxt);
	migrate_spool_append(me.spool, data, len);
	migrate_spool_commit_seen(me.spool, msg.commit_lsn, msg.end_lsn, msg.commit_at);
	me.in_xact = false;
	me.last_end = me.received = msg.end_lsn;
	me.last_commit_at = msg.commit_at;
	me.transactions++;
}

/* ----------------------------------------------------------------
 * is the source's past still what we have? (P18)
 * ----------------------------------------------------------------
 */

/*
 * From where to ask.  The source begins at what is confirmed, if that is more,
 * and with the transactions whose commit record begins there or later.
 */
static XLogRecPtr
begin_recheck(void)
{
	MigrateStream *s = me.stream;

	me.passing = me.known_awaited = false;
	me.recheck = s->commit_lsn != InvalidXLogRecPtr && s->confirmed_lsn < me.spooled;
	if (!me.recheck)
		return me.spooled;
	me.known_awaited = s->confirmed_lsn <= s->commit_lsn;
	me.confirmed = s->confirmed_lsn;
	return Max(s->confirmed_lsn, s->commit_lsn);
}

/* The source has told everything up to the end of the spool. */
static void
end_recheck(void)
{
	if (me.known_awaited)
		migrate_stream_lost(me.stream, "the transaction that was committed at %X/%X is not there any more: it was restored from a backup",
							LSN_FORMAT_ARGS(me.stream->commit_lsn));
	me.recheck = false;
	me.confirmed = me.spooled;
}

/* A transaction begins. */
static void
recheck_begin(const char *data, int len)
{
	MigrateMessage msg = {0};

	migrate_message_parse(&msg, data, len, me.turn_cxt);
	if (msg.final_lsn >= me.spooled)
		end_recheck();
	else if (me.known_awaited && msg.final_lsn == me.stream->commit_lsn &&
			 msg.commit_at == me.stream->commit_at)
	{
		me.known_awaited = false;
		me.passing = true;
	}
	else
		migrate_stream_lost(me.stream, "it has a transaction, committed at %X/%X, that was not there when changes up to %X/%X were taken over: it was restored from a backup",
							LSN_FORMAT_ARGS(msg.final_lsn), LSN_FORMAT_ARGS(me.spooled));
}

/* One change message; true at a commit. */
static bool
take_message(const char *data, int len)
{
	if (unlikely(me.recheck) && data[0] == 'B')
		recheck_begin(data, len);
	if (unlikely(me.passing))
	{
		me.in_xact = me.passing = data[0] != 'C';
		return false;
	}
	if (me.unsaved == 0)
		me.unsaved_since = GetCurrentTimestamp();
	me.unsaved += len;
	me.bytes += len;
	switch (data[0])
	{
		case 'C':
			take_commit(data, len);
			return true;
		case 'B':
			me.in_xact = true;
			break;
		case 'I':
		case 'U':
		case 'D':
		case 'T':
			me.changes++;
			break;
		default:
			break;
	}
	migrate_spool_append(me.spool, data, len);
	return false;
}

/*
 * PEERS' trap: the position of a keep-alive counts only when nothing is half
 * received.  What was received before is committed here first, see tick().
 */
static void
take_keepalive(const char *message)
{
	XLogRecPtr	lsn = read_uint64(message + 1);

	if (me.recheck && !me.in_xact && lsn >= me.spooled)
		end_recheck();
	if (!me.in_xact && lsn > me.idle_lsn)
		me.idle_lsn = lsn;
	if (message[KEEPALIVE_BYTES - 1])
		me.reply_wanted = true;
}

/* One message of the stream; true at a commit of the source. */
static bool
take(const char *message, int len)
{
	switch (message[0])
	{
		case 'w':
			if (len <= HEADER_BYTES)
				bad_frame();
			return take_message(message + HEADER_BYTES, len - HEADER_BYTES);
		case 'k':
			if (len < KEEPALIVE_BYTES)
				bad_frame();
			take_keepalive(message);
			return false;
		default:
			bad_frame();
	}
}

/*
 * All that has arrived, up to so many bytes, or to where the local transaction
 * is ended.  False when there was nothing more.
 */
static bool
receive(void)
{
	int64		bytes = 0;
	bool		looked = false;

	while (bytes < BUSY_BYTES && !me.full)
	{
		char	   *buffer = NULL;
		int			len = migrate_replication_receive(me.conn, &buffer);
		bool		commit;

		if (len == 0)
		{
			if (looked)
				return false;
			if (PQconsumeInput(me.conn->pg) == 0)
				migrate_report_conn_error(me.conn, NULL);
			looked = true;
			continue;
		}
		looked = false;
		bytes += len;
		me.arrived += len;
		me.received_buffer = buffer;
		commit = take(buffer, len);
		me.received_buffer = NULL;
		PQfreemem(buffer);
		if (commit && me.unsaved > 0 && (me.unsaved > COMMIT_BYTES || me.overdue))
		{
			commit_here();
			judge_limit();
			return true;
		}
	}
	return true;
}

/* Once a second, or when the source has asked. */
static void
tick(TimestampTz now)
{
	bool		quiet = !me.in_xact && me.unsaved == 0;

	me.last_tick = now;
	if (quiet)
		migrate_worker_reload();
	if (quiet && me.idle_lsn > me.spooled)
		take_idle_position();
	if (me.nqueue > 0 && !migrate_fault("capture-flush"))
		XLogFlush(me.queue[me.nqueue - 1].local_end);
	if (!me.full && TimestampDifferenceExceeds(me.last_heard, now, SILENCE_DEAD))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("server \"%s\" has not been heard of for %d s",
						me.stream->server_name, SILENCE_DEAD / 1000)));
	send_status(!me.full && (me.recheck ||
							 TimestampDifferenceExceeds(me.last_heard, now, SILENCE_ASK)));
	watch_source();
	count_for_all();
}

/* Between local transactions: what is due then. */
static void
between(TimestampTz now)
{
	if (TimestampDifferenceExceeds(me.last_look, now, me.full ? LOOK_WHEN_FULL : LOOK_INTERVAL))
		look_at_jobs();
	if (me.watch && !me.watching &&
		TimestampDifferenceExceeds(me.last_published, now, PUBLISHED_INTERVAL))
	{
		MemoryContext old = MemoryContextSwitchTo(me.turn_cxt);

		me.last_published = now;
		if (migrate_connection_usable(me.watch))
			migrate_replication_check_tables(me.watch, me.stream);
		MemoryContextSwitchTo(old);
		MemoryContextReset(me.turn_cxt);
	}
}

/*
 * If changes come so fast that many will be there in a moment: let them.  False
 * when they do not.
 */
static bool
nap(TimestampTz now)
{
	int64		us = now - me.measured_at;

	if (us >= NAP_MS * 1000)
	{
		me.fast = me.arrived * 1000 / us > NAP_RATE;
		if (me.arrived > 0)
			me.last_heard = now;
		me.arrived = 0;
		me.measured_at = now;
	}
	if (!me.fast)
		return false;
	if (WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, NAP_MS,
				  PG_WAIT_EXTENSION) & WL_LATCH_SET)
		ResetLatch(MyLatch);
	return true;
}

/* Wait for the source, the clock or somebody who wakes us. */
static void
wait_for_more(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		left = STATUS_INTERVAL - TimestampDifferenceMilliseconds(me.last_tick, now);
	int			events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;
	int			rc;

	if (left <= 0 || me.reply_wanted || (!me.full && nap(now)))
		return;
	if (me.full)
		left = Min(left, LOOK_WHEN_FULL);
	else
		events |= WL_SOCKET_READABLE;
	/* a status message that did not go out at once */
	if (PQflush(me.conn->pg) > 0)
		events |= WL_SOCKET_WRITEABLE;
	rc = WaitLatchOrSocket(MyLatch, events,
						   (events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE)) ?
						   PQsocket(me.conn->pg) : PGINVALID_SOCKET,
						   left, PG_WAIT_EXTENSION);
	if (rc & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (rc & WL_SOCKET_READABLE)
		me.last_heard = GetCurrentTimestamp();
}

/*
 * The last local commit was just now: let the source's next commits come into
 * the same local transaction, and go on receiving.  False when it is time.
 */
static bool
gather(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		left = GATHER_MS - TimestampDifferenceMilliseconds(me.committed_at, now);
	int			rc;

	if (left <= 0)
		return false;
	if (nap(now))
		return true;
	rc = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH |
						   WL_SOCKET_READABLE, PQsocket(me.conn->pg), left, PG_WAIT_EXTENSION);
	if (rc & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (rc & WL_SOCKET_READABLE)
		me.last_heard = now;
	return true;
}

/* ----------------------------------------------------------------
 * sessions
 * ----------------------------------------------------------------
 */

/* The stream as it is now; false: it is not there, or not to be read. */
static bool
begin_session(void)
{
	StartTransactionCommand();
	MemoryContextSwitchTo(me.session_cxt);
	me.stream = migrate_stream_load(me.stream_id);
	if (me.stream == NULL || strcmp(me.stream->state, "running") != 0)
	{
		CommitTransactionCommand();
		return false;
	}
	set_phase("connect");
	pgstat_report_activity(STATE_RUNNING, psprintf("connecting to server %s", me.stream->server_name));
	MemoryContextSwitchTo(me.session_cxt);
	me.conn = migrate_connect_replication(me.stream, me.connect_timeout_s ? me.connect_timeout_s : 10);
	me.spool = migrate_spool_writer_open(me.stream_id, me.stream->spooled_seq);
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.session_cxt);

	me.spooled = me.received = me.last_end = me.confirmed = me.stream->spooled_lsn;
	me.idle_lsn = InvalidXLogRecPtr;
	me.in_xact = me.reply_wanted = me.full = me.watching = false;
	me.unsaved = 0;
	me.nqueue = 0;
	me.watch = NULL;
	me.last_commit_at = 0;
	me.last_heard = me.last_tick = me.rate_since = me.last_published = GetCurrentTimestamp();
	me.last_watch = 0;

	/*
	 * What was spooled by an earlier session may not be flushed yet, and must
	 * be before anything up to there is confirmed.
	 */
	XLogFlush(migrate_spool_commit(me.spool, me.spooled));
	migrate_replication_check(me.conn, me.stream);
	look_at_jobs();
	return me.needed;
}

/* Said once the stream flows again after an error. */
static void
recovered(void)
{
	SpinLockAcquire(&me.shared->mutex);
	me.shared->sqlstate[0] = me.shared->last_error[0] = '\0';
	SpinLockRelease(&me.shared->mutex);
	if (me.errors == 0)
		return;
	me.errors = 0;
	me.sqlstate[0] = '\0';
	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_stream("UPDATE migrate.stream SET last_error = NULL, last_sqlstate = NULL,"
					" last_error_at = NULL WHERE stream_id = $1", SPI_OK_UPDATE);
	migrate_spi_end();
	stream_event("info", "stream_again", "the stream of changes flows again");
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.session_cxt);
}

/* One connection, as long as it holds; returns when nobody needs us. */
static void
session(void)
{
	if (!begin_session())
		return;
	migrate_replication_start(me.conn, me.stream, begin_recheck());
	me.last_heard = GetCurrentTimestamp();
	recovered();
	set_phase(me.full ? "full" : "stream");
	pgstat_report_activity(STATE_RUNNING, psprintf("following the changes of server %s",
												   me.stream->server_name));
	while (me.needed)
	{
		bool		more;
		TimestampTz now;

		CHECK_FOR_INTERRUPTS();
		more = receive();
		if (!more && !me.in_xact && me.unsaved > 0)
		{
			if (gather())
				continue;
			commit_here();
			judge_limit();
		}
		now = GetCurrentTimestamp();
		if (more && !me.full)
			me.last_heard = now;
		if (me.reply_wanted || TimestampDifferenceExceeds(me.last_tick, now, STATUS_INTERVAL))
			tick(now);
		if (!me.in_xact && me.unsaved == 0)
			between(now);
		if (!more || me.full)
			wait_for_more();
	}
	if (me.nqueue > 0)
		XLogFlush(me.queue[me.nqueue - 1].local_end);
	send_status(false);
}

static void
end_session(void)
{
	me.conn = me.watch = NULL;
	me.spool = NULL;
	if (me.received_buffer)
		PQfreemem(me.received_buffer);
	me.received_buffer = NULL;
	MemoryContextReset(me.session_cxt);
	MemoryContextSwitchTo(me.session_cxt);
}

/* ----------------------------------------------------------------
 * errors
 * ----------------------------------------------------------------
 */

/* In the catalog, and an event when it is another one than before. */
static void
write_error(ErrorData *edata, bool lost)
{
	Oid			types[4] = {INT4OID, TEXTOID, TEXTOID, BOOLOID};
	Datum		values[4];
	char	   *message = edata->message;

	if (edata->detail)
		message = psprintf("%s; %s", message, edata->detail);
	StartTransactionCommand();
	values[0] = Int32GetDatum(me.stream_id);
	values[1] = CStringGetTextDatum(unpack_sql_state(edata->sqlerrcode));
	values[2] = CStringGetTextDatum(edata->message);
	values[3] = BoolGetDatum(lost);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.stream SET last_sqlstate = $2, last_error = $3,"
					 " last_error_at = clock_timestamp(),"
					 " state = CASE WHEN $4 THEN 'lost' ELSE state END WHERE stream_id = $1",
					 4, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_end();
	stream_event(lost ? "error" : "warning", lost ? "stream_lost" : "stream_error",
				 psprintf("%s: %s%s%s", unpack_sql_state(edata->sqlerrcode), message,
						  lost && edata->hint ? "; " : "", lost && edata->hint ? edata->hint : ""));
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.session_cxt);
}

/* After a session has failed; true: the stream is lost. */
static bool
session_failed(ErrorData *edata)
{
	volatile bool lost = migrate_stream_is_lost;
	volatile bool written = true;
	char	   *sqlstate = unpack_sql_state(edata->sqlerrcode);

	migrate_stream_is_lost = false;
	SpinLockAcquire(&me.shared->mutex);
	strlcpy(me.shared->phase, lost ? "lost" : "retry", sizeof(me.shared->phase));
	strlcpy(me.shared->sqlstate, sqlstate, sizeof(me.shared->sqlstate));
	migrate_clip(me.shared->last_error, sizeof(me.shared->last_error), edata->message);
	SpinLockRelease(&me.shared->mutex);
	me.errors++;
	if (!lost && strcmp(me.sqlstate, sqlstate) == 0)
		return false;
	strlcpy(me.sqlstate, sqlstate, sizeof(me.sqlstate));
	PG_TRY();
	{
		write_error(edata, lost);
	}
	PG_CATCH();
	{
		(void) migrate_recover(me.session_cxt);
		written = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(me.session_cxt);
	if (!written)
		me.sqlstate[0] = '\0';
	return lost && written;
}

/* One session, caught; false: there is nothing more to do. */
static bool
guarded_session(void)
{
	ErrorData  *volatile edata = NULL;

	PG_TRY();
	{
		session();
	}
	PG_CATCH();
	{
		edata = migrate_recover(me.session_cxt);
	}
	PG_END_TRY();
	if (edata == NULL)
	{
		end_session();
		return false;
	}

	/* the error lives in the session's context: told before that is reset */
	if (session_failed(edata))
	{
		end_session();
		wake_jobs();
		return false;
	}
	end_session();
	return true;
}

/* Like the pause between two errors of a loader. */
static void
pause_after_error(void)
{
	pgstat_report_activity(STATE_IDLE, "waiting before the next try");
	migrate_worker_sleep(migrate_backoff(me.errors, Max(me.max_delay_ms, 100)));
}

/* ----------------------------------------------------------------
 * the worker
 * ----------------------------------------------------------------
 */

/* Let the others find our shared memory; false: the stream is gone. */
static bool
publish(uint32 handle)
{
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		values[2];
	bool		found;

	StartTransactionCommand();
	values[0] = Int32GetDatum(me.stream_id);
	values[1] = Int64GetDatum((int64) handle);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.stream SET shm_handle = $2 WHERE stream_id = $1",
					 2, types, values, NULL, SPI_OK_UPDATE);
	found = SPI_processed == 1;
	migrate_spi_end();
	CommitTransactionCommand();
	return found;
}

void
migrate_capture_main(Datum main_arg)
{
	CaptureArgs args;
	uint32		handle;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	me.stream_id = args.stream_id;
	migrate_worker_init(args.database, args.owner);
	SetConfigOption("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION);
	if (!migrate_worker_lock(MIGRATE_LOCK_CAPTURE, me.stream_id))
		proc_exit(0);			/* the other one does it */

	me.session_cxt = AllocSetContextCreate(TopMemoryContext, "migrate capture session",
										   ALLOCSET_DEFAULT_SIZES);
	me.turn_cxt = AllocSetContextCreate(TopMemoryContext, "migrate capture turn",
										ALLOCSET_DEFAULT_SIZES);
	me.max_delay_ms = 30000;
	me.shared = migrate_stream_shmem_create(me.stream_id, &handle);
	MemoryContextSwitchTo(me.session_cxt);
	if (!publish(handle))
		proc_exit(0);
	while (guarded_session())
		pause_after_error();
	(void) publish(0);
	proc_exit(0);
}
