/*-------------------------------------------------------------------------
 *
 * cut.c
 *	  Two snapshots, of the source and of the target, between which no change
 *	  lies: what a job that follows its source live is compared at (P23).
 *
 *	  1. apply is held: it stands at a commit, position P
 *	  2. the tables are locked on the source (P1), a snapshot S is opened there,
 *		 then its insert position L read
 *	  3. the spool is read from P to L: which transactions does S see?
 *	  4. those that S sees must come first; apply goes on to the end of the last
 *		 of them and is held there.  If they are no prefix of the order of
 *		 commits, or apply has one that S does not see, S is given up and 1 to
 *		 3 begin again
 *	  5. a snapshot is taken here, apply is released
 *
 * What commits is in the stream shortly before or after snapshots see it, so
 * neither says anything of the other: transactions are matched by their ids.
 * Apply remembers those it took last (MigrateLive.recent); older ones have long
 * been visible.
 *
 * Apply stands still for as long as the stream takes to arrive at L: while the
 * source is busy that is a moment, while it is idle there is nothing to apply.
 * After that nobody is held up; the source keeps what S can still see until
 * the comparison is over, as for any long query.
 *
 * Rows that apply fetched by key a moment ahead of its position (P24) are ahead
 * of the cut, too.  So what a cut finds is looked at again at a later one
 * (compare.c).
 *
 * Runs in the session or worker that validates.  Locks: MIGRATE_LOCK_CUT while
 * the cut is taken; on the source those of reading.  Whatever ends it, apply is
 * released; a crash ends apply, too, which begins unheld.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "extract/stream.h"
#include "load/apply.h"
#include "validate.h"

/* snapshots taken before it is given up: most fit at once */
#define MAX_TRIES 100

/* a cut is not begun while apply is so far behind, bytes of WAL */
#define NEAR_ENOUGH (16 * 1024 * 1024)

/*
 * Apply comes to stand when its batch is over, which may have rows to fetch.  A
 * transaction that holds up apply, as the caller's may, is not seen by the
 * deadlock detector; so there is an end.
 */
#define PATIENCE 60000

/* the source's WAL is made to move on after so long, ms */
#define NUDGE_AFTER 200

/* pg_snapshot */
typedef struct Snap
{
	uint64		xmin;
	uint64		xmax;
	int			nxip;
	uint64	   *xip;
} Snap;

/* a source transaction in the spool, behind P */
typedef struct CutXact
{
	TransactionId xid;
	XLogRecPtr	end_lsn;
} CutXact;

typedef struct CutState
{
	ValidateCut *cut;
	MigrateJob *job;
	MigrateSource *src;
	const char *tables;			/* on the source, to be locked; NULL: none */
	MigrateConn *conn;
	MigrateShared *shared;
	dsm_segment *seg;
	MigrateStreamShared *stream;
	dsm_segment *stream_seg;
	int			stream_id;
	bool		writing;		/* take the writer lock with the cut */
	MemoryContext mcxt;			/* of one try */
} CutState;

/* ----------------------------------------------------------------
 * holding apply
 * ----------------------------------------------------------------
 */
static void
set_hold(CutState *s, bool hold, XLogRecPtr at)
{
	int			pid;

	SpinLockAcquire(&s->shared->mutex);
	s->shared->live.hold = hold;
	s->shared->live.hold_at = at;
	pid = s->shared->live.apply_pid;
	SpinLockRelease(&s->shared->mutex);
	migrate_wake_pid(pid);
}

static void
release_apply(int code, Datum arg)
{
	set_hold((CutState *) DatumGetPointer(arg), false, InvalidXLogRecPtr);
}

/*
 * The transaction keeps apply from going on, until it ends; to be called while
 * it stands (it has no transaction then, so that the lock is free).
 */
static void
keep_apply(CutState *s)
{
	if (s->writing)
		migrate_writer_lock(s->job->job_id);
}

/* What apply says of itself. */
static bool
apply_stands(CutState *s, XLogRecPtr at, XLogRecPtr *applied)
{
	bool		held;
	bool		lives;

	SpinLockAcquire(&s->shared->mutex);
	held = s->shared->live.held;
	*applied = s->shared->live.applied_lsn;
	lives = s->shared->live.apply_pid != 0 && s->shared->job_worker_pid != 0;
	SpinLockRelease(&s->shared->mutex);
	if (!lives)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the apply worker of job \"%s\" has ended", s->job->name),
				 errhint("Validate again when it runs; see migrate.workers.")));
	return held && *applied >= at;
}

/* Until apply stands, at a position if one is given; the position. */
static XLogRecPtr
wait_held(CutState *s, XLogRecPtr at)
{
	TimestampTz start = GetCurrentTimestamp();
	int			patience = Max(s->job->lock_timeout_ms, PATIENCE);
	XLogRecPtr	applied;

	ConditionVariablePrepareToSleep(&s->shared->changed);
	while (!apply_stands(s, at, &applied))
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), patience))
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("the apply worker of job \"%s\" did not come to stand within %d ms",
							s->job->name, patience),
					 errhint("A transaction may keep it waiting, this one included; or raise the option \"lock_timeout\".")));
		(void) ConditionVariableTimedSleep(&s->shared->changed, MIGRATE_NAP, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return applied;
}

/* ----------------------------------------------------------------
 * which transactions a snapshot sees
 * ----------------------------------------------------------------
 */

/* xmin:xmax:xip,xip,... */
static void
parse_snapshot(const char *text, Snap *snap)
{
	char	   *end;

	snap->xmin = strtou64(text, &end, 10);
	snap->xmax = strtou64(end + 1, &end, 10);
	snap->nxip = 0;
	snap->xip = palloc(sizeof(uint64) * (strlen(end) / 2 + 1));
	if (*end == ':')
		end++;
	while (*end >= '0' && *end <= '9')
	{
		snap->xip[snap->nxip++] = strtou64(end, &end, 10);
		if (*end == ',')
			end++;
	}
}

/* A transaction id of the stream has 32 bits: the epoch is that of the snapshot. */
static bool
sees(Snap *snap, TransactionId xid)
{
	uint64		full = (snap->xmax & ~(uint64) PG_UINT32_MAX) | xid;

	if (full > snap->xmax + PG_INT32_MAX)
		full -= (uint64) 1 << 32;
	else if (full + PG_INT32_MAX < snap->xmax)
		full += (uint64) 1 << 32;
	if (full >= snap->xmax)
		return false;
	if (full < snap->xmin)
		return true;
	for (int i = 0; i < snap->nxip; i++)
		if (snap->xip[i] == full)
			return false;
	return true;
}

/* Has apply taken one that the snapshot does not see? */
static bool
apply_is_ahead(CutState *s, Snap *snap)
{
	TransactionId *recent = palloc(sizeof(TransactionId) * MIGRATE_RECENT_XIDS);
	uint32		n;

	SpinLockAcquire(&s->shared->mutex);
	n = Min(s->shared->live.nrecent, MIGRATE_RECENT_XIDS);
	memcpy(recent, s->shared->live.recent, sizeof(TransactionId) * n);
	SpinLockRelease(&s->shared->mutex);
	for (uint32 i = 0; i < n; i++)
		if (!sees(snap, recent[i]))
			return true;
	return false;
}

/* ----------------------------------------------------------------
 * the spool from the applied position on
 * ----------------------------------------------------------------
 */

/* A value of the job's row of migrate.apply_position. */
static int64
next_seq(CutState *s)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(s->job->job_id);
	int64		seq;

	SPI_connect();
	migrate_spi_exec("SELECT next_seq FROM migrate.apply_position WHERE job_id = $1",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	seq = SPI_processed > 0 ? migrate_spi_int64(0, 0, 0) : 0;
	SPI_finish();
	return seq;
}

/*
 * The source's last WAL may not be flushed, and so not be sent, until somebody
 * commits: do that.
 */
static void
nudge(CutState *s, XLogRecPtr upto)
{
	char	   *flushed = migrate_exec_value(s->conn, "SELECT pg_catalog.pg_current_wal_flush_lsn()");
	MigrateConn *conn;

	if (DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(flushed))) >= upto)
		return;
	conn = migrate_connect(s->job->server, s->job->owner, s->job->name, "nudge",
						   s->job->connect_timeout_s);
	(void) migrate_exec_value(conn, "SELECT pg_catalog.txid_current()");
	migrate_disconnect(conn);
}

static XLogRecPtr
spooled_lsn(CutState *s)
{
	XLogRecPtr	lsn;
	bool		lives;

	SpinLockAcquire(&s->stream->mutex);
	lsn = s->stream->spooled_lsn;
	lives = s->stream->capture_pid != 0;
	SpinLockRelease(&s->stream->mutex);
	if (!lives)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the capture worker of job \"%s\" has ended", s->job->name),
				 errhint("Validate again when it runs; see migrate.streams.")));
	return lsn;
}

/*
 * Take what is in the spool now; true when a transaction is there that ends at
 * "upto" or behind.
 */
static bool
read_spool(MigrateSpoolReader *reader, MigrateMessage *msg, MemoryContext mcxt,
		   XLogRecPtr after, XLogRecPtr upto, TransactionId *xid, List **xacts)
{
	const char *data;
	int			len;

	while (migrate_spool_next(reader, &data, &len))
	{
		CutXact    *xact;
		MemoryContext old;

		if (data[0] != 'B' && data[0] != 'C')
			continue;
		CHECK_FOR_INTERRUPTS();
		migrate_message_parse(msg, data, len, mcxt);
		if (data[0] == 'B')
			*xid = msg->xid;
		else if (msg->end_lsn > after)
		{
			old = MemoryContextSwitchTo(mcxt);
			xact = palloc(sizeof(CutXact));
			xact->xid = *xid;
			xact->end_lsn = msg->end_lsn;
			*xacts = lappend(*xacts, xact);
			MemoryContextSwitchTo(old);
			if (msg->end_lsn >= upto)
				return true;
		}
	}
	return false;
}

/* All transactions that end after one position and up to another (at least). */
static List *
transactions_between(CutState *s, XLogRecPtr after, XLogRecPtr upto)
{
	MigrateSpoolReader *reader = migrate_spool_open(s->stream_id, next_seq(s));
	MigrateMessage msg = {0};
	TransactionId xid = InvalidTransactionId;
	List	   *xacts = NIL;
	TimestampTz start = GetCurrentTimestamp();
	bool		nudged = false;

	ConditionVariablePrepareToSleep(&s->stream->spooled);
	for (;;)
	{
		/* looked at before the snapshot that reads */
		XLogRecPtr	spooled = spooled_lsn(s);
		bool		found;

		PushActiveSnapshot(GetTransactionSnapshot());
		found = read_spool(reader, &msg, s->mcxt, after, upto, &xid, &xacts);
		PopActiveSnapshot();
		if (found || spooled >= upto)
			break;
		if (!nudged && TimestampDifferenceExceeds(start, GetCurrentTimestamp(), NUDGE_AFTER))
		{
			ConditionVariableCancelSleep();
			nudge(s, upto);
			nudged = true;
			ConditionVariablePrepareToSleep(&s->stream->spooled);
			continue;
		}
		(void) ConditionVariableTimedSleep(&s->stream->spooled,
										   nudged ? MIGRATE_NAP : NUDGE_AFTER, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	migrate_spool_close(reader);
	return xacts;
}

/* ----------------------------------------------------------------
 * the cut
 * ----------------------------------------------------------------
 */

/*
 * Open the source transaction.  P1: the tables are locked before the snapshot is
 * taken; one that is emptied or rewritten between the two would look empty to
 * the snapshot.
 */
static void
begin_source(MigrateConn *conn, MigrateSource *src, const char *tables, MigrateSourceTxn *txn)
{
	MigrateRange range = {.relation = unconstify(char *, tables),.block_lo = -1,.block_hi = -1,
	.lock = true};

	migrate_source_begin(conn, src, tables ? &range : NULL, txn);
	if (txn->rewritten)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("a source table does not exist any more: %s", tables)));
}

/*
 * Apply stands at P: open a snapshot and find where it is in the stream.
 * False when it is at no one place.
 */
static bool
match_snapshot(CutState *s, XLogRecPtr applied, XLogRecPtr *at)
{
	MigrateSourceTxn *txn = &s->cut->txn;
	Snap		snap;
	ListCell   *lc;
	bool		behind = false;

	begin_source(s->conn, s->src, s->tables, txn);
	parse_snapshot(txn->snapshot, &snap);
	*at = applied;
	if (apply_is_ahead(s, &snap))
		return false;
	foreach(lc, transactions_between(s, applied, txn->insert_lsn))
	{
		CutXact    *xact = lfirst(lc);

		if (!sees(&snap, xact->xid))
			behind = true;
		else if (behind)
			return false;
		else
			*at = xact->end_lsn;
	}
	return true;
}

static bool
try_cut(CutState *s)
{
	XLogRecPtr	applied;
	XLogRecPtr	at;

	set_hold(s, true, InvalidXLogRecPtr);
	applied = wait_held(s, InvalidXLogRecPtr);
	migrate_fault("cut-held");
	if (!match_snapshot(s, applied, &at))
	{
		migrate_source_end(s->conn);
		return false;
	}
	if (at > applied)
	{
		set_hold(s, true, at);
		if (wait_held(s, at) != at)
			elog(ERROR, "apply went beyond the cut at %X/%X", LSN_FORMAT_ARGS(at));
	}
	keep_apply(s);
	PushActiveSnapshot(GetTransactionSnapshot());
	s->cut->pushed = true;
	s->cut->exact = true;
	s->cut->lsn = at;
	s->cut->seq = next_seq(s);
	return true;
}

/* While much is to be applied, holding apply would only make it more. */
static void
wait_until_near(CutState *s)
{
	XLogRecPtr	applied;

	for (;;)
	{
		(void) apply_stands(s, InvalidXLogRecPtr, &applied);
		if (spooled_lsn(s) <= applied + NEAR_ENOUGH)
			return;
		CHECK_FOR_INTERRUPTS();
		ConditionVariablePrepareToSleep(&s->stream->spooled);
		(void) ConditionVariableTimedSleep(&s->stream->spooled, MIGRATE_NAP, PG_WAIT_EXTENSION);
		ConditionVariableCancelSleep();
	}
}

static void
take_cut(CutState *s)
{
	MemoryContext old;

	s->mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate cut", ALLOCSET_DEFAULT_SIZES);
	migrate_transaction_lock(MIGRATE_LOCK_CUT, s->job->job_id);
	wait_until_near(s);
	PG_ENSURE_ERROR_CLEANUP(release_apply, PointerGetDatum(s));
	{
		for (int i = 0; i < MAX_TRIES && !s->cut->exact; i++)
		{
			CHECK_FOR_INTERRUPTS();
			old = MemoryContextSwitchTo(s->mcxt);
			(void) try_cut(s);
			MemoryContextSwitchTo(old);
			MemoryContextReset(s->mcxt);
			if (!s->cut->exact)
				set_hold(s, false, InvalidXLogRecPtr);
		}
	}
	PG_END_ENSURE_ERROR_CLEANUP(release_apply, PointerGetDatum(s));
	/* apply waits for whoever has its writer lock next, not for us */
	release_apply(0, PointerGetDatum(s));
	migrate_transaction_unlock(MIGRATE_LOCK_CUT, s->job->job_id);
}

/* Map what apply and capture share; why not, else NULL. */
static const char *
attach(CutState *s)
{
	MigrateStream *stream = migrate_stream_of_job(s->job->job_id);

	s->shared = migrate_shmem_peek(migrate_job_shmem(s->job->job_id), s->job->job_id, &s->seg);
	if (s->shared == NULL || s->shared->live.apply_pid == 0)
		return "apply does not run";
	if (stream && stream->shm_handle != 0)
	{
		s->stream_id = stream->stream_id;
		s->stream = migrate_stream_shmem_attach(stream->shm_handle, stream->stream_id,
												&s->stream_seg);
	}
	if (s->stream == NULL || s->stream->capture_pid == 0)
		return "capture does not run";
	return NULL;
}

/* Why no cut can be taken of this source, NULL when it can. */
static const char *
obstacle(MigrateJob *job, MigrateSource *src, MigrateConn *conn)
{
	/* the cutover's own check comes before apply leaves */
	if (strcmp(job->state, "streaming") != 0 &&
		!(strcmp(job->state, "cutting_over") == 0 && migrate_lock_is_mine(MIGRATE_LOCK_JOB, job->job_id)))
		return psprintf("the job is %s", job->state);
	if (conn == NULL || src->transport != 'c')
		return "rows are read by the foreign data wrapper";
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("a job that follows its source live is validated in a READ COMMITTED transaction only"),
				 errhint("A snapshot that was taken before does not match the source's.")));
	return NULL;
}

static void
cut_begin(MigrateJob *job, MigrateSource *src, const char *tables, MigrateConn *conn,
		  ValidateCut *cut, bool writing)
{
	CutState	s = {.cut = cut,.job = job,.src = src,.tables = tables,.conn = conn,
	.writing = writing};

	memset(cut, 0, sizeof(*cut));
	if (job->live)
	{
		cut->why = obstacle(job, src, conn);
		if (cut->why == NULL)
			cut->why = attach(&s);
		if (cut->why == NULL)
		{
			take_cut(&s);
			if (!cut->exact)
				cut->why = psprintf("none of %d snapshots was at one place of the stream", MAX_TRIES);
		}
		if (s.stream_seg)
			dsm_detach(s.stream_seg);
		migrate_shmem_unpeek(s.seg);
		if (cut->exact)
			return;
		/* before anything is read (P14) */
		keep_apply(&s);
	}
	if (conn && src->transport == 'c')
		begin_source(conn, src, tables, &cut->txn);
}

/* A source table's name as it is locked. */
char *
validate_lock_name(MigrateSource *src)
{
	return psprintf("%s%s", src->only_parent ? "ONLY " : "",
					quote_qualified_identifier(src->remote_schema, src->remote_table));
}

/*
 * Open the source transaction of a comparison, which locks tables there (names
 * with commas, or NULL).  For a live job apply is brought
 * to stand where its snapshot is, and the target's snapshot of that moment is
 * made the active one; where that cannot be, cut->why says so.
 */
void
validate_cut_begin(MigrateJob *job, MigrateSource *src, const char *tables, MigrateConn *conn,
				   ValidateCut *cut)
{
	cut_begin(job, src, tables, conn, cut, false);
}

/*
 * The same for a repair: the job's writer lock is held from the cut on, until
 * the transaction ends.
 */
void
validate_cut_begin_writing(MigrateJob *job, MigrateSource *src, const char *tables,
						   MigrateConn *conn, ValidateCut *cut)
{
	cut_begin(job, src, tables, conn, cut, true);
}

/* Both snapshots go. */
void
validate_cut_end(MigrateConn *conn, ValidateCut *cut)
{
	if (cut->pushed)
		PopActiveSnapshot();
	cut->pushed = false;
	if (conn)
		migrate_source_end(conn);
}
