/*-------------------------------------------------------------------------
 *
 * live.c
 *	  The job worker of a job that follows its source: joining the stream,
 *	  catching up, streaming.
 *
 *	  preparing		the stream first, then the plan (P3); the apply position is
 *					made where the stream begins
 *	  copying		no apply worker runs; after migrate_recopy it waits at its
 *					position
 *	  indexing		keys (P9)
 *	  catching_up	apply runs towards the consistent position (P5); there, what
 *					conflicted before it is tried once more (P9), then the other
 *					steps are done while apply goes on
 *	  streaming		watch
 *
 *	  -- consistent_lsn null --> settle --> apply passes it --> recheck
 *		 --> rechecked --> steps --> streaming
 *
 * Each arrow is one transaction that the row in migrate.job_stream tells of, so
 * a crash anywhere repeats one of them.
 *
 * What the apply worker says of its errors is judged here, as is the stream's
 * state: a lost slot fails the job, with the remedy.  Errors of the capture
 * worker that pass (a source that is away) do not, however long they last: the
 * job can do nothing better than to wait, and the alerts of lag_watch.c tell.
 *
 * Locks: the writer lock (P14) within migrate_replay; row locks for moments.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "control/job_worker.h"
#include "cutover/cutover.h"
#include "cutover/reverse.h"
#include "extract/stream.h"
#include "load/apply.h"

/* dead letters tried again in one transaction */
#define RECHECK_PORTION 500

/* an idle source is made to write something this often, ms */
#define NUDGE_INTERVAL 3000

/* errors of apply in a row that are not transient */
#define APPLY_LASTING_ERRORS 3

/* the job's rows in job_stream, stream and apply_position */
typedef struct LiveState
{
	bool		joined;
	bool		other_generation;	/* the stream was made anew since it
									 * joined */
	bool		lost;
	char	   *server;
	char	   *error;			/* of the stream */
	char	   *sqlstate;
	XLogRecPtr	consistent_lsn; /* 0: not known */
	XLogRecPtr	applied_lsn;	/* 0: there is no position */
	bool		rechecked;
} LiveState;

static TimestampTz last_nudge = 0;

static XLogRecPtr
lsn_or_zero(int row, int col)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
									  col + 1, &isnull);

	return isnull ? InvalidXLogRecPtr : DatumGetLSN(value);
}

/* False when the job has no stream yet. */
static bool
load_state(LiveState *live)
{
	bool		found;

	memset(live, 0, sizeof(*live));
	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("SELECT js.joined::int, (js.generation <> s.generation)::int,"
					 " (s.state = 'lost')::int, f.srvname, s.last_error, s.last_sqlstate,"
					 " js.consistent_lsn, a.applied_lsn, js.rechecked::int"
					 " FROM migrate.job_stream js JOIN migrate.stream s USING (stream_id)"
					 " LEFT JOIN pg_catalog.pg_foreign_server f ON f.oid = s.server"
					 " LEFT JOIN migrate.apply_position a USING (job_id)"
					 " WHERE js.job_id = $1", SPI_OK_SELECT);
	found = SPI_processed > 0;
	if (found)
	{
		MemoryContext old = MemoryContextSwitchTo(me.cxt);

		live->joined = migrate_spi_int64(0, 0, 0) != 0;
		live->other_generation = migrate_spi_int64(0, 1, 0) != 0;
		live->lost = migrate_spi_int64(0, 2, 0) != 0;
		live->server = migrate_spi_text(0, 3);
		live->error = migrate_spi_text(0, 4);
		live->sqlstate = migrate_spi_text(0, 5);
		live->consistent_lsn = lsn_or_zero(0, 6);
		live->applied_lsn = lsn_or_zero(0, 7);
		live->rechecked = migrate_spi_int64(0, 8, 0) != 0;
		MemoryContextSwitchTo(old);
	}
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	return found;
}

/* ----------------------------------------------------------------
 * the stream
 * ----------------------------------------------------------------
 */

/*
 * Join the stream (P3), which makes the apply position: from there on the spool
 * keeps what comes.  False: it waits for something.
 */
bool
migrate_live_prepare(MigrateJob *job)
{
	StartTransactionCommand();
	migrate_job_connect(job);
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	if (!migrate_stream_prepare(job, me.conn))
	{
		MemoryContextSwitchTo(me.cxt);
		return false;
	}
	MemoryContextSwitchTo(me.cxt);
	migrate_fault("stream-joined");
	return true;
}

/*
 * P18, P21: the stream is not ours any more, or not the one that we joined.
 */
static bool
stream_is_gone(LiveState *live)
{
	if (live->lost)
	{
		migrate_job_fail(live->sqlstate ? live->sqlstate : "55000",
						 psprintf("the stream of changes from server \"%s\" is lost: %s;"
								  " migrate_resync makes it good without copying again",
								  live->server ? live->server : "?",
								  live->error ? live->error : "no reason is known"));
		return true;
	}
	if (live->other_generation)
	{
		migrate_job_fail("55000",
						 psprintf("the stream of changes from server \"%s\" was begun anew by migrate_resync"
								  " of another job, and changes between are missing;"
								  " migrate_resync makes it good without copying again",
								  live->server ? live->server : "?"));
		return true;
	}
	return false;
}

/*
 * What every turn of a live job begins with: is its stream still there, and
 * does somebody read it?  True: the job's fate has changed.  *resync: the turn
 * belongs to migrate_resync.
 */
bool
migrate_live_begin_turn(MigrateJob *job, bool *resync)
{
	LiveState	live;
	MigrateResyncPhase phase = migrate_resync_phase();

	*resync = phase == RESYNC_SLOT ||
		(phase == RESYNC_TABLES && strcmp(job->state, "catching_up") == 0);
	if (phase == RESYNC_SLOT || !load_state(&live) || !live.joined)
		return false;
	if (stream_is_gone(&live))
		return true;
	migrate_capture_ensure(job);
	MemoryContextSwitchTo(me.cxt);
	return false;
}

/* ----------------------------------------------------------------
 * the consistent position
 * ----------------------------------------------------------------
 */

/*
 * A source that is idle writes nothing, and its WAL may end within what we
 * wait for, at the border of a page; an empty transaction with an id moves it.
 */
static void
nudge_source(void)
{
	(void) migrate_exec_value(me.conn, "SELECT txid_current()");
	last_nudge = GetCurrentTimestamp();
}

/*
 * P5: the source's insert position as of now, which is later than the
 * snapshot of every chunk and of whatever was fetched when keys were built.
 * Nothing when a recopy has come between.
 */
static void
settle(MigrateJob *job)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[2];
	char	   *position;

	migrate_worker_phase("settle");
	StartTransactionCommand();
	migrate_job_connect(job);
	position = migrate_exec_value(me.conn, "SELECT pg_current_wal_insert_lsn()");
	nudge_source();
	values[0] = Int32GetDatum(me.job_id);
	values[1] = CStringGetTextDatum(position);
	migrate_spi_begin();
	migrate_job_exec("SELECT FROM migrate.job WHERE job_id = $1 FOR SHARE", SPI_OK_SELECT);
	migrate_spi_exec("UPDATE migrate.job_stream s SET rechecked = false, consistent_lsn ="
					 " greatest($2::pg_lsn, (SELECT max(c.source_lsn) FROM migrate.chunk c"
					 "  WHERE c.job_id = $1 AND c.state = 'done'))"
					 " FROM migrate.job j WHERE s.job_id = $1 AND j.job_id = $1"
					 " AND j.state = 'catching_up'",
					 2, types, values, NULL, SPI_OK_UPDATE);
	if (SPI_processed > 0)
		migrate_event(me.job_id, "info", "catch_up",
					  "changes are applied; the target is consistent from position %s on", position);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	migrate_fault("live-settled");
}

/* The next open letters of class 23 after an id, as int8[]; 0 when none. */
static Datum
next_conflicts(int64 after, int64 *last)
{
	Oid			types[] = {INT4OID, INT8OID};
	Datum		values[] = {Int32GetDatum(me.job_id), Int64GetDatum(after)};
	Datum		ids;
	bool		isnull;

	migrate_spi_exec("SELECT array_agg(d.id), max(d.id) FROM"
					 " (SELECT d.id FROM migrate.dead_letter d WHERE d.job_id = $1"
					 "  AND d.state = 'open' AND d.sqlstate LIKE '23%' AND d.id > $2"
					 "  ORDER BY d.id LIMIT " CppAsString2(RECHECK_PORTION) ") d",
					 2, types, values, NULL, SPI_OK_SELECT);
	ids = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (isnull)
		return (Datum) 0;
	*last = migrate_spi_int64(0, 1, 0);
	return ids;
}

/* migrate_replay, in whatever schema the extension is. */
static void
replay_letters(MigrateJob *job, Datum ids, int64 *healed, int64 *failed)
{
	Oid			types[] = {TEXTOID, INT8ARRAYOID};
	Datum		values[] = {CStringGetTextDatum(job->name), ids};
	char	   *function;

	migrate_spi_exec("SELECT pg_catalog.format('%I.migrate_replay', n.nspname)"
					 " FROM pg_catalog.pg_extension e"
					 " JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
					 " WHERE e.extname = 'migrate'", 0, NULL, NULL, NULL, SPI_OK_SELECT);
	function = migrate_spi_text(0, 0);
	migrate_spi_exec(psprintf("SELECT r.replayed + r.superseded, r.failed FROM %s($1, NULL, $2) r",
							  function),
					 2, types, values, NULL, SPI_OK_SELECT);
	*healed += migrate_spi_int64(0, 0, 0);
	*failed += migrate_spi_int64(0, 1, 0);
}

/*
 * P9: what conflicted before the consistent position may have done so with a
 * row that was an older image than itself.  Each such row is fetched and
 * written once more, by the code of migrate_replay, under the writer lock; what
 * still fails is a dead letter for good.  A crash begins with the first again.
 */
static void
recheck(MigrateJob *job)
{
	int64		last = 0;
	int64		healed = 0,
				failed = 0;
	bool		more = true;

	migrate_worker_phase("recheck");
	while (more)
	{
		Datum		ids;

		CHECK_FOR_INTERRUPTS();
		StartTransactionCommand();
		migrate_writer_lock(me.job_id);
		migrate_spi_begin();
		ids = next_conflicts(last, &last);
		more = ids != (Datum) 0;
		if (more)
			replay_letters(job, ids, &healed, &failed);
		else
		{
			migrate_job_exec("UPDATE migrate.job_stream SET rechecked = true WHERE job_id = $1",
							 SPI_OK_UPDATE);
			if (healed + failed > 0)
				migrate_event(me.job_id, failed > 0 ? "warning" : "info", "recheck",
							  "conflicts from before the consistent position: %lld are solved, %lld stay dead letters",
							  (long long) healed, (long long) failed);
		}
		migrate_spi_end();
		CommitTransactionCommand();
		MemoryContextSwitchTo(me.cxt);
		migrate_fault("live-recheck");
	}
}

/* ----------------------------------------------------------------
 * the apply worker
 * ----------------------------------------------------------------
 */

/* Its errors have lasted too long, and the job has failed. */
static bool
apply_is_in_trouble(MigrateJob *job)
{
	MigrateWorkerSlot *slot = &migrate_shared->slots[MIGRATE_APPLY_SLOT];
	char		sqlstate[sizeof(slot->sqlstate)];
	char		message[sizeof(slot->last_error)];
	TimestampTz since;
	int			errors;

	SpinLockAcquire(&migrate_shared->mutex);
	errors = slot->errors;
	since = slot->error_since;
	memcpy(sqlstate, slot->sqlstate, sizeof(sqlstate));
	memcpy(message, slot->last_error, sizeof(message));
	SpinLockRelease(&migrate_shared->mutex);
	if (errors == 0 || sqlstate[0] == '\0')
	{
		since = migrate_apply_dying_since();
		if (since == 0 ||
			!TimestampDifferenceExceeds(since, GetCurrentTimestamp(), job->retry_time_ms))
			return false;
		migrate_job_fail("58000", "the apply worker keeps ending unexpectedly, see the server log");
		return true;
	}
	if (migrate_error_is_transient(sqlstate) ?
		!TimestampDifferenceExceeds(since, GetCurrentTimestamp(), job->retry_time_ms) :
		errors < APPLY_LASTING_ERRORS)
		return false;
	migrate_job_fail(sqlstate, psprintf("changes cannot be applied: %s", message));
	return true;
}

/*
 * Watch what may end the live states; true: the wish or the state has changed.
 */
static bool
watch(MigrateJob *job)
{
	if (migrate_job_over_budget(job) || migrate_drift_found(job, false) ||
		apply_is_in_trouble(job))
		return true;
	if (migrate_cutover_tidy(job))
		migrate_apply_ensure(job, me.handle);
	MemoryContextSwitchTo(me.cxt);
	migrate_lag_watch(job);
	MemoryContextSwitchTo(me.cxt);
	return false;
}

/* ----------------------------------------------------------------
 * the states
 * ----------------------------------------------------------------
 */

/* A source that is away cannot be nudged, and need not be. */
static void
try_to_nudge(MigrateJob *job)
{
	volatile bool failed = false;

	last_nudge = GetCurrentTimestamp();
	PG_TRY();
	{
		StartTransactionCommand();
		migrate_job_connect(job);
		nudge_source();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		(void) migrate_recover(me.cxt);
		failed = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(me.cxt);
	if (failed)
		migrate_job_drop_connection();
}

/* Not there yet: the apply worker wakes us when it is. */
static MigrateTurn
wait_for_position(MigrateJob *job)
{
	if (TimestampDifferenceExceeds(last_nudge, GetCurrentTimestamp(), NUDGE_INTERVAL))
		try_to_nudge(job);
	migrate_worker_phase("catch up");
	pgstat_report_activity(STATE_IDLE, psprintf("watching job %s catch up", job->name));
	return TURN_WAIT;
}

MigrateTurn
migrate_turn_catch_up(MigrateJob *job)
{
	LiveState	live;
	MigrateTurn result;
	bool		over;

	if (!load_state(&live))
		elog(ERROR, "job %d has no stream", me.job_id);
	if (live.consistent_lsn == InvalidXLogRecPtr)
	{
		settle(job);
		return TURN_AGAIN;
	}
	if (watch(job))
		return TURN_AGAIN;
	if (!live.rechecked)
	{
		if (live.applied_lsn < live.consistent_lsn)
			return wait_for_position(job);
		migrate_job_drop_connection();
		recheck(job);
		return TURN_AGAIN;
	}
	result = migrate_job_run_steps(job, &over);
	if (over && migrate_job_keys_built())
		migrate_job_steps_over("streaming");
	return result;
}

MigrateTurn
migrate_turn_stream(MigrateJob *job)
{
	migrate_job_drop_connection();
	if (!migrate_job_loaders_ended(false))
		return TURN_WAIT;
	if (watch(job))
		return TURN_AGAIN;
	migrate_validate_scheduled(job);
	MemoryContextSwitchTo(me.cxt);
	migrate_worker_phase("stream");
	pgstat_report_activity(STATE_IDLE, psprintf("watching job %s stream", job->name));
	return TURN_WAIT;
}

/*
 * Cutover, rollback, and the time between them.  Capture goes on, so that a
 * rollback finds the stream where it was; that it is lost is told when it is
 * needed again.
 */
MigrateTurn
migrate_turn_switch(MigrateJob *job)
{
	migrate_capture_ensure(job);
	MemoryContextSwitchTo(me.cxt);
	if (strcmp(job->state, "cut_over") == 0)
	{
		migrate_cut_over_turn(job);
		migrate_worker_phase("cut over");
		pgstat_report_activity(STATE_IDLE, psprintf("watching job %s, which is cut over", job->name));
		return TURN_WAIT;
	}
	migrate_job_drop_connection();
	/* of an earlier way back; else step "reverse" waits for it */
	if (strcmp(job->state, "cutting_over") == 0 && migrate_reverse_stop(me.job_id))
		migrate_apply_ensure(job, me.handle);
	MemoryContextSwitchTo(me.cxt);
	migrate_cutover_turn(job);
	me.changed = true;
	return TURN_AGAIN;
}
