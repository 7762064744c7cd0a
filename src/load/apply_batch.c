/*-------------------------------------------------------------------------
 *
 * apply_batch.c
 *	  One local transaction of the apply worker: source transactions from the
 *	  spool, their net effect into the targets, and the position.
 *
 *	  BEGIN -> writer lock -> messages -> sets -> position -> COMMIT
 *
 * It ends at a source commit: when nothing more is in the spool, so that a
 * quiet stream is applied at once, or at the limits apply_rows, apply_bytes
 * and what apply_latency leaves of them.  A source transaction that is larger
 * is written in several sets within the one local transaction, so that memory
 * is bounded and nobody sees half of it.
 *
 * The position commits with the rows, asynchronously: a crash may take the
 * last batches, with their position, and they are applied again from the
 * spool, whose commits come before in the WAL.  It is not written for source
 * transactions that have nothing for this job, but once a second at most.
 *
 * next_seq is the row of the spool that holds the last applied commit; what is
 * in it up to there is skipped when reading begins again: transactions by their
 * position, and what the row has of one that began in an earlier row.
 *
 * Locks: the writer lock of the job (P14), what the targets' statements take,
 * the row of migrate.apply_position.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "load/apply_worker.h"

/* an empty advance of the position is written this often, ms */
#define IDLE_INTERVAL 1000

/* least rows a batch is bounded to for the sake of apply_latency */
#define MIN_ROWS 500

/* ----------------------------------------------------------------
 * error context
 * ----------------------------------------------------------------
 */
static void
error_context(void *arg)
{
	ApplyWorker *w = arg;

	if (!w->in_xact && w->relation == NULL)
		return;
	if (w->relation)
		errcontext("applying changes of %s, up to source transaction %u, commit %X/%X",
				   w->relation, w->xid, LSN_FORMAT_ARGS(w->final_lsn));
	else
		errcontext("applying source transaction %u, commit %X/%X",
				   w->xid, LSN_FORMAT_ARGS(w->final_lsn));
}

/* ----------------------------------------------------------------
 * messages
 * ----------------------------------------------------------------
 */
static void
take_begin(ApplyWorker *w)
{
	if (w->in_xact)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("a source transaction begins in the middle of another one")));
	w->in_xact = true;
	w->xid = w->msg.xid;
	w->final_lsn = w->msg.final_lsn;
	w->commit_at = w->msg.commit_at;
	/* the position is the end of a commit, or between two */
	w->skip = w->final_lsn < w->applied_lsn;
	if (w->skip)
		return;
	if (w->nxids == w->max_xids)
	{
		w->max_xids = Max(1024, 2 * w->max_xids);
		w->xids = w->xids ?
			repalloc_huge(w->xids, w->max_xids * sizeof(TransactionId)) :
			MemoryContextAllocHuge(w->session, w->max_xids * sizeof(TransactionId));
	}
	w->xids[w->nxids++] = w->xid;
}

/* For whoever takes a cut (P23): this one will be applied. */
static void
remember(TransactionId xid)
{
	MigrateLive *live = &migrate_shared->live;

	SpinLockAcquire(&migrate_shared->mutex);
	live->recent[live->nrecent++ % MIGRATE_RECENT_XIDS] = xid;
	SpinLockRelease(&migrate_shared->mutex);
}

static void
take_commit(ApplyWorker *w)
{
	w->in_xact = false;
	w->relation = NULL;
	if (w->skip)
	{
		/* whatever comes next has to begin a transaction */
		w->skip = false;
		return;
	}
	w->end_lsn = w->msg.end_lsn;
	w->end_at = w->msg.commit_at;
	w->end_seq = w->read_seq;
	w->transactions++;
	remember(w->xid);
	if (w->ncommits == w->max_commits)
	{
		w->max_commits = Max(1024, 2 * w->max_commits);
		w->commits = w->commits ?
			repalloc_huge(w->commits, w->max_commits * sizeof(TimestampTz)) :
			MemoryContextAllocHuge(w->session, w->max_commits * sizeof(TimestampTz));
	}
	w->commits[w->ncommits++] = w->msg.commit_at;
}

static void
take_change(ApplyWorker *w)
{
	ApplyRelation *rel = migrate_relation_of(w, w->msg.relid);

	if (rel->nmaps == 0)
		return;
	w->relation = rel->remote->name;
	w->changes++;
	w->changed_lsn = w->final_lsn;
	for (int i = 0; i < rel->nmaps; i++)
		if (!migrate_relation_copied(w, &rel->maps[i]))
			migrate_collect_change(w, rel, &rel->maps[i]);
}

static void
take_truncate(ApplyWorker *w)
{
	migrate_relations_truncate(w, &w->msg);
	for (int i = 0; i < w->msg.nrelids; i++)
		if (migrate_relation_of(w, w->msg.relids[i])->nmaps > 0)
			w->changed_lsn = w->final_lsn;
}

/*
 * Changes and commits belong to a transaction that has begun; but for the rest
 * of one at the beginning, which is skipped.
 */
static void
check_order(ApplyWorker *w)
{
	if (!w->in_xact && !w->skip)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the spool has a message \"%c\" outside a source transaction",
						w->msg.type),
				 errdetail("It is in row %lld of the spool.", (long long) w->read_seq)));
}

static void
take_message(ApplyWorker *w, const char *data, int len)
{
	migrate_message_parse(&w->msg, data, len, w->session);
	switch (w->msg.type)
	{
		case 'B':
			take_begin(w);
			break;
		case 'C':
			check_order(w);
			take_commit(w);
			break;
		case 'R':
			migrate_relation_message(w, data, len);
			break;
		case 'I':
		case 'U':
		case 'D':
			check_order(w);
			if (!w->skip)
				take_change(w);
			break;
		case 'T':
			check_order(w);
			if (!w->skip)
				take_truncate(w);
			break;
		default:
			break;				/* types, origins, messages of applications */
	}
}

/* ----------------------------------------------------------------
 * a batch
 * ----------------------------------------------------------------
 */

/* Has enough been taken for one local transaction?  At a commit. */
static bool
is_full(ApplyWorker *w)
{
	int64		rows = Min(w->job->apply_rows, (int64) w->row_limit);

	if (w->transactions == 0)
		return false;
	return w->changes >= rows || w->bytes >= w->job->apply_bytes ||
		migrate_apply_is_held(w->end_lsn) || migrate_shared->live.stop;
}

/*
 * Take messages until the batch is complete, or until the transaction that the
 * job is to pause before.
 */
static void
read_batch(ApplyWorker *w)
{
	const char *data;
	int			len;
	int64		n = 0;

	for (;;)
	{
		if (!w->in_xact && is_full(w))
			return;
		if (!migrate_spool_next(w->reader, &data, &len))
			break;
		w->dry = false;
		w->read_seq = migrate_spool_seq(w->reader);
		w->bytes += len;
		take_message(w, data, len);
		if (w->msg.type == 'B' && !w->skip && w->pause_lsn != 0 &&
			w->final_lsn >= w->pause_lsn)
		{
			w->in_xact = false;
			w->pause_due = true;
			return;
		}
		if (w->in_xact && (w->arena.used > w->job->apply_bytes ||
						   w->collected >= w->job->apply_rows))
			migrate_collect_flush(w);
		if ((++n & 0xff) == 0)
			CHECK_FOR_INTERRUPTS();
	}
	/* capture commits at source commits only */
	if (w->in_xact)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the spool ends in the middle of a source transaction")));
	w->dry = true;
}

/* A plan that is kept for the life of the process. */
static void
execute_kept(SPIPlanPtr *plan, const char *sql, int nargs, Oid *types,
			 Datum *values, const char *nulls)
{
	if (*plan == NULL)
	{
		SPIPlanPtr	p = SPI_prepare(sql, nargs, types);

		if (p == NULL || SPI_keepplan(p) != 0)
			elog(ERROR, "SPI_prepare failed");
		*plan = p;
	}
	if (SPI_execute_plan(*plan, values, nulls, false, 0) < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", sql);
}

/*
 * The position, in the transaction of the rows.  It is still what we began
 * from, or else another worker or a resync has been here.
 */
static void
write_position(ApplyWorker *w)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, PG_LSNOID, PG_LSNOID, INT8OID, TIMESTAMPTZOID, INT8OID, INT8OID};
	Datum		values[7];

	values[0] = Int32GetDatum(w->job_id);
	values[1] = LSNGetDatum(w->applied_lsn);
	values[2] = LSNGetDatum(w->end_lsn);
	values[3] = Int64GetDatum(w->end_seq);
	values[4] = TimestampTzGetDatum(w->end_at);
	values[5] = Int64GetDatum(w->transactions + w->pending_transactions);
	values[6] = Int64GetDatum(w->changes);
	migrate_spi_begin();
	execute_kept(&plan, "UPDATE migrate.apply_position SET applied_lsn = $3, next_seq = $4,"
				 " commit_at = $5, transactions = transactions + $6, changes = changes + $7"
				 " WHERE job_id = $1 AND applied_lsn <= $2", 7, types, values, NULL);
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the position of job \"%s\" was changed by another", w->job->name)));
	migrate_spi_end();
}

/* Follow apply_latency: the next batch shall take about so long. */
static void
adapt(ApplyWorker *w, double ms)
{
	double		factor = w->job->apply_latency_ms / Max(ms, 1.0);

	/* a batch that was not full says nothing, unless it took too long */
	if (w->changes < w->row_limit / 2 && factor > 1)
		return;
	w->row_limit = Min(w->row_limit, (double) Max(w->changes, MIN_ROWS) * 2);
	w->row_limit *= Min(Max(factor, 0.5), 2.0);
	w->row_limit = Min(Max(w->row_limit, MIN_ROWS), (double) Max(w->job->apply_rows, MIN_ROWS));
}

/* What others see of it; lag is by both servers' clocks. */
static void
count_batch(ApplyWorker *w, TimestampTz begin)
{
	MigrateLive *live = &migrate_shared->live;
	TimestampTz now = GetCurrentTimestamp();
	MigrateHistogram lag = {{0}};

	for (int i = 0; i < w->ncommits; i++)
		lag.count[migrate_histogram_bucket(Max(now - w->commits[i], 0))]++;
	SpinLockAcquire(&migrate_shared->mutex);
	live->applied_lsn = w->end_lsn;
	live->commit_at = w->end_at;
	live->applied_at = now;
	live->transactions += w->transactions;
	live->changes += w->changes;
	live->batches += w->written;
	live->idle = w->dry;
	migrate_window_turn(&live->window, now);
	for (int i = 0; i < MIGRATE_HISTOGRAM; i++)
		live->window.lag[0].count[i] += lag.count[i];
	if (w->written)
		live->window.write[0].count[migrate_histogram_bucket(now - begin)]++;
	SpinLockRelease(&migrate_shared->mutex);
	migrate_worker_count(w->changes, w->bytes, w->counts.dead);
}

/* P5: has the position just passed the consistent one? */
static void
tell_consistent(ApplyWorker *w, XLogRecPtr before, XLogRecPtr now)
{
	if (w->consistent_lsn != 0 && before < w->consistent_lsn && now >= w->consistent_lsn)
		migrate_wake_job_worker();
}

/* The batch is committed, or had nothing to commit. */
static void
note_applied(ApplyWorker *w, TimestampTz begin, bool position)
{
	XLogRecPtr	before = w->applied_lsn;

	count_batch(w, begin);
	w->applied_lsn = w->end_lsn;
	if (position)
	{
		w->next_seq = w->end_seq;
		w->pending_transactions = 0;
		w->position_at = begin;
		tell_consistent(w, before, w->applied_lsn);
	}
	else
		w->pending_transactions += w->transactions;
	if (w->written)
		adapt(w, (GetCurrentTimestamp() - begin) / 1000.0);
}

static void
begin_batch(ApplyWorker *w)
{
	w->in_xact = false;
	w->relation = NULL;
	w->transactions = w->changes = w->bytes = 0;
	w->ncommits = w->nxids = 0;
	w->written = false;
	memset(&w->counts, 0, sizeof(w->counts));
}

/* Rows and position; false: there was nothing but empty transactions. */
static bool
finish_batch(ApplyWorker *w, TimestampTz begin)
{
	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->live.changed_lsn = Max(migrate_shared->live.changed_lsn, w->changed_lsn);
	SpinLockRelease(&migrate_shared->mutex);
	if (w->dirty != NIL)
	{
		migrate_fault("apply-collected");
		migrate_collect_flush(w);
		migrate_fault("apply-written");
	}
	if (!w->written && !(w->consistent_lsn > w->applied_lsn && w->consistent_lsn <= w->end_lsn) &&
		!TimestampDifferenceExceeds(w->position_at, begin, IDLE_INTERVAL))
		return false;
	write_position(w);
	return true;
}

bool
migrate_apply_batch(ApplyWorker *w)
{
	ErrorContextCallback context = {
		.previous = error_context_stack,
		.callback = error_context,
		.arg = w,
	};
	TimestampTz begin;
	bool		position = false;

	error_context_stack = &context;
	SetCurrentStatementStartTimestamp();
	begin = GetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	migrate_fault("apply-begin");
	migrate_writer_lock(w->job_id);
	begin_batch(w);
	read_batch(w);
	if (w->transactions > 0)
	{
		migrate_fault("apply-read");
		position = finish_batch(w, begin);
		if (position)
			migrate_fault("apply-commit");
	}
	CommitTransactionCommand();
	if (position)
		migrate_fault("apply-committed");
	if (w->transactions > 0)
		note_applied(w, begin, position);
	error_context_stack = context.previous;
	return w->transactions > 0;
}

/* ----------------------------------------------------------------
 * nothing to apply
 * ----------------------------------------------------------------
 */

/*
 * Everything in the spool is applied: then so is what the stream has passed
 * without a commit for us (P5: the consistent position may lie there).  Once a
 * second at most, and for nothing that is known.  Outside a transaction.
 */
void
migrate_apply_idle(ApplyWorker *w)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID, INT8OID, INT8OID};
	Datum		values[4];
	XLogRecPtr	before = w->applied_lsn;
	TimestampTz now = GetCurrentTimestamp();
	bool		moved;

	if (!TimestampDifferenceExceeds(w->position_at, now, IDLE_INTERVAL))
		return;
	w->position_at = now;
	StartTransactionCommand();
	migrate_writer_lock(w->job_id);
	values[0] = Int32GetDatum(w->job_id);
	values[1] = Int32GetDatum(w->stream->stream_id);
	values[2] = Int64GetDatum(w->read_seq);
	values[3] = Int64GetDatum(w->pending_transactions);
	migrate_spi_begin();
	execute_kept(&plan, "UPDATE migrate.apply_position p SET applied_lsn = s.spooled_lsn,"
				 " next_seq = $3 + 1, commit_at = coalesce(s.commit_at, p.commit_at),"
				 " transactions = transactions + $4"
				 " FROM migrate.stream_position s WHERE p.job_id = $1 AND s.stream_id = $2"
				 " AND s.spooled_seq <= $3 AND p.applied_lsn < s.spooled_lsn"
				 " RETURNING p.applied_lsn", 4, types, values, NULL);
	moved = SPI_processed == 1;
	if (moved)
	{
		bool		isnull;

		w->applied_lsn = DatumGetLSN(SPI_getbinval(SPI_tuptable->vals[0],
												   SPI_tuptable->tupdesc, 1, &isnull));
	}
	migrate_spi_end();
	CommitTransactionCommand();
	if (!moved)
		return;
	w->next_seq = w->read_seq + 1;
	w->pending_transactions = 0;
	tell_consistent(w, before, w->applied_lsn);
	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->live.applied_lsn = w->applied_lsn;
	migrate_shared->live.idle = true;
	SpinLockRelease(&migrate_shared->mutex);
}
