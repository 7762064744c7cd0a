/*-------------------------------------------------------------------------
 *
 * rollback.c
 *	  Back to the source, after a cutover: the mirror of cutover.c.
 *
 *	  prechecks -> lag -> close -> drain -> check -> sequences -> commit -> lift
 *	  |-- the application writes here --|-- it waits -----------------------|
 *
 * The fence on this side is a transaction of ours: the guards of all targets
 * are enabled in it, under short lock time-outs, and it stays open until all
 * that was written here is on the source and its sequences are set.  If
 * anything fails before its commit, it is rolled back and the target is open as
 * before.
 *
 * That same transaction moves the apply position to the source's position of
 * that moment (P30): what is in the forward stream before it is what we brought
 * there ourselves, since nobody else can write past the fence.  And it marks
 * the cutover "closed": from its commit on it can only go forward, by lifting
 * the fence of the source, which is done again after a crash.
 *
 *	  crash		before the commit		after it
 *	  ours		undone, target open		the source is opened by the next worker
 *	  source's	undone, target open		the same, when it is back
 *
 * Runs in the job worker, state rolling_back.  Locks: SHARE ROW EXCLUSIVE on
 * the targets until the commit, which readers and the reverse worker do not
 * wait for; all within one lock time-out, else who was in the way is told.
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
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "control/job_worker.h"
#include "cutover/driver.h"
#include "cutover/external.h"
#include "cutover/reverse.h"
#include "extract/extract.h"
#include "load/apply.h"

/* a step within the closing transaction, recorded with it */
typedef struct InnerStep
{
	const char *name;
	TimestampTz begun;
} InnerStep;

static XLogRecPtr
reverse_lsn(void)
{
	XLogRecPtr	lsn;

	SpinLockAcquire(&migrate_shared->mutex);
	lsn = migrate_shared->live.reverse_lsn;
	SpinLockRelease(&migrate_shared->mutex);
	return lsn;
}

static void
exec_int(const char *sql, int arg, int expected)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(arg);

	migrate_spi_exec(sql, 1, &type, &value, NULL, expected);
}

/* ----------------------------------------------------------------
 * before the pause
 * ----------------------------------------------------------------
 */

/* The digest of the cutover that we go back from; NULL: none. */
static char *
forward_digest(Cutover *c)
{
	char	   *digest;

	exec_int("SELECT digest FROM migrate.cutover WHERE job_id = $1 AND direction = 'forward'"
			 " AND state = 'done' ORDER BY cutover_id DESC LIMIT 1",
			 c->job->job_id, SPI_OK_SELECT);
	digest = SPI_processed > 0 ? migrate_spi_text(0, 0) : NULL;
	return digest ? MemoryContextStrdup(c->row->mcxt, digest) : NULL;
}

/* The source must be fenced by that cutover; check() looks where it is not ours. */
static void
prechecks(Cutover *c)
{
	char	   *digest;

	StartTransactionCommand();
	migrate_spi_begin();
	digest = forward_digest(c);
	migrate_spi_end();
	CommitTransactionCommand();
	migrate_cutover_connect(c);
	if (c->row->external && digest != NULL)
		return;
	if (digest == NULL || migrate_fence_look(c->fence, digest) != MIGRATE_FENCE_CLOSED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source is not fenced by the cutover of job \"%s\"", c->job->name),
				 errdetail("It may have been written to, and what the target would bring could overwrite that."),
				 errhint("See the event of kind \"fence\"; compare both sides with migrate_validate.")));
}

/* Until our own changes of now are on the source. */
static void
wait_sent(Cutover *c, XLogRecPtr lsn, int64 patience_ms)
{
	TimestampTz begin = GetCurrentTimestamp();

	while (reverse_lsn() < lsn)
	{
		migrate_cutover_deadline(c);
		if (patience_ms > 0 && migrate_cutover_ms_since(begin) > patience_ms)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the source is too far behind for a rollback"),
					 errdetail("Changes up to %X/%X have not reached it after %lld ms.",
							   LSN_FORMAT_ARGS(lsn), (long long) migrate_cutover_ms_since(begin)),
					 errhint("See migrate.lag and migrate.workers.")));
		migrate_reverse_ensure(c->job, me.handle);
		/* nobody's commit wakes it when all is read */
		migrate_wake_pid(migrate_shared->live.reverse_pid);
		migrate_cutover_doze(CUTOVER_LOOK_AGAIN);
	}
}

static void
lag(Cutover *c)
{
	/* that of the record of this step */
	XLogRecPtr	lsn = XactLastCommitEnd;

	XLogFlush(lsn);
	wait_sent(c, lsn, c->row->lag_timeout_ms);
}

/* ----------------------------------------------------------------
 * the closing transaction
 * ----------------------------------------------------------------
 */

static void
begin_inner(Cutover *c, InnerStep *step, const char *name)
{
	step->name = name;
	step->begun = GetCurrentTimestamp();
	migrate_worker_phase(name);
	migrate_fault(psprintf("rollback-%s", name));
	migrate_cutover_deadline(c);
}

static void
end_inner(Cutover *c, InnerStep *step)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(c->row->cutover_id), Int32GetDatum(c->job->job_id),
		Int32GetDatum(++c->row->step_no), CStringGetTextDatum(step->name),
	TimestampTzGetDatum(step->begun)};

	migrate_spi_exec("INSERT INTO migrate.cutover_step (cutover_id, job_id, step_no, step, state, in_pause,"
					 " started_at, duration) VALUES ($1, $2, $3, $4, 'done', true, $5, clock_timestamp() - $5)",
					 5, types, values, NULL, SPI_OK_INSERT);
}

static void
set_lock_timeout(int64 ms)
{
	(void) set_config_option("lock_timeout", psprintf("%lld", (long long) ms), PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/* guards and notes of a job, $1, on the tables that they are made on */
#define GUARDS "FROM pg_catalog.pg_trigger g" \
	" WHERE g.tgfoid IN ('migrate._guard()'::regprocedure, 'migrate._note_change()'::regprocedure)" \
	" AND g.tgparentid = 0 AND g.tgname IN ('migrate_guard_' || $1, 'migrate_queue_' || $1, 'migrate_queue_' || $1 || '_t')"

/*
 * P25: the locks that the guards need, of all tables within one time-out, so
 * that no writer waits behind us for longer, however many tables there are.
 */
static void
lock_all(Cutover *c, int lock_ms)
{
	TimestampTz begin = GetCurrentTimestamp();
	int			n;
	Oid		   *relids;

	exec_int("SELECT DISTINCT g.tgrelid " GUARDS " ORDER BY 1", c->job->job_id, SPI_OK_SELECT);
	n = (int) SPI_processed;
	relids = palloc(sizeof(Oid) * Max(n, 1));
	for (int i = 0; i < n; i++)
		relids[i] = (Oid) migrate_spi_int64(i, 0, 0);
	for (int i = 0; i < n; i++)
	{
		set_lock_timeout(Max(1, lock_ms - migrate_cutover_ms_since(begin)));
		LockRelationOid(relids[i], ShareRowExclusiveLock);
	}
	/* what is locked cannot be waited for */
	set_lock_timeout(lock_ms);
}

/*
 * The guards of all targets, in a subtransaction that may time out.  False: it
 * has.
 */
static bool
close_guards(Cutover *c, int lock_ms)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool closed = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		lock_all(c, lock_ms);
		exec_int("SELECT migrate._set_guards($1, 'ENABLE')", c->job->job_id, SPI_OK_SELECT);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE &&
			edata->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED)
			ReThrowError(edata);
		FreeErrorData(edata);
		closed = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	return closed;
}

/* False: somebody's lock was in the way to the last, and nothing is held. */
static bool
try_to_close(Cutover *c)
{
	for (int n = 0; n <= CUTOVER_SHORT_TRIES; n++)
	{
		if (n > 0)
			migrate_cutover_doze(CUTOVER_SHORT_PAUSE);
		c->paused_at = GetCurrentTimestamp();
		if (close_guards(c, migrate_cutover_patience(c, n)))
			return true;
		c->paused_at = 0;
	}
	return false;
}

/* Who is in our way, asked after we have let go. */
static char *
name_blockers(Cutover *c)
{
	char	   *blockers;

	exec_int(migrate_blockers_query("SELECT g.tgrelid " GUARDS), c->job->job_id, SPI_OK_SELECT);
	blockers = migrate_spi_text(0, 0);
	return MemoryContextStrdup(c->row->mcxt, blockers ? blockers : MIGRATE_NO_BLOCKER);
}

/*
 * Begin the closing transaction with the guards enabled.  A try that fails is
 * told in a transaction of its own, and the application goes on meanwhile.
 */
static void
close_target(Cutover *c)
{
	TimestampTz begin = GetCurrentTimestamp();
	long		pause = CUTOVER_LOCK_PAUSE;

	for (int tries = 1;; tries++)
	{
		char	   *blockers;

		StartTransactionCommand();
		migrate_spi_begin();
		if (try_to_close(c))
		{
			migrate_remote_deadline = TimestampTzPlusMilliseconds(c->paused_at, c->row->max_downtime_ms);
			return;
		}
		blockers = name_blockers(c);
		migrate_spi_end();
		CommitTransactionCommand();
		MemoryContextSwitchTo(c->row->mcxt);
		migrate_cutover_try_again(c, "target", begin, tries, &pause, blockers);
	}
}

/* The source's sequences up to ours; it answers with those that were set. */
static void
sequences_back(Cutover *c)
{
	char	   *query;

	exec_int("SELECT migrate._sequences_back($1)", c->job->job_id, SPI_OK_SELECT);
	query = migrate_spi_text(0, 0);
	if (query)
		PQclear(migrate_exec(c->conn, query));
}

/* Open letters of a stage that were not accepted for this rollback. */
static int64
open_letters(Cutover *c, const char *stage)
{
	exec_int(psprintf("SELECT count(*) FROM migrate.dead_letter d WHERE d.job_id = $1 AND d.state = 'open' AND d.stage = %s"
					  " AND NOT EXISTS (SELECT FROM migrate.acceptance a"
					  "  WHERE a.job_id = $1 AND a.check_name = 'rollback' AND a.object = 'dead_letters')",
					  quote_literal_cstr(stage)),
			 c->job->job_id, SPI_OK_SELECT);
	return migrate_spi_int64(0, 0, 0);
}

static void
check(Cutover *c)
{
	int64		n = open_letters(c, "back");

	if (n > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%lld rows could not go back to the source", (long long) n),
				 errhint("See migrate.dead_letters, stage \"back\"; pass over them, on record, with migrate_accept(job, 'rollback', 'dead_letters', reason).")));
	if (!c->row->external)
		return;
	n = open_letters(c, "late");
	if (n > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%lld rows were written on the source while the target led", (long long) n),
				 errhint("See migrate.dead_letters, stage \"late\"; discard them, or pass over them, on record, with migrate_accept(job, 'rollback', 'dead_letters', reason), and replay them after the rollback.")));
	migrate_external_verify_back(c, forward_digest(c));
}

/*
 * P30: the forward stream goes on behind what we brought.  X is the source's
 * position while nobody can write to it but us, and we have.  P4: it is flushed
 * before it is written down, or after a crash of the source what is written
 * there anew would lie before it, and be skipped.
 */
static void
mark_closed(Cutover *c)
{
	Oid			types[] = {INT4OID, LSNOID, INT4OID};
	Datum		values[3];

	values[0] = Int32GetDatum(c->job->job_id);
	values[1] = LSNGetDatum(migrate_cutover_source_position(c->conn));
	values[2] = Int32GetDatum(c->row->cutover_id);
	migrate_cutover_force_flush(c->conn);
	/* P30: what comes here now is ours */
	exec_int("SELECT migrate._set_queue($1, 'DISABLE')", c->job->job_id, SPI_OK_SELECT);
	migrate_spi_exec("UPDATE migrate.apply_position SET applied_lsn = $2 WHERE job_id = $1 AND applied_lsn < $2",
					 2, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_exec("UPDATE migrate.cutover SET closed = true, fence_lsn = $2 WHERE cutover_id = $3 AND $1 IS NOT NULL",
					 3, types, values, NULL, SPI_OK_UPDATE);
	/* it was accepted for this rollback; its reason stays in "overrides" */
	exec_int("DELETE FROM migrate.acceptance WHERE job_id = $1 AND check_name = 'rollback'",
			 c->job->job_id, SPI_OK_DELETE);
}

static void
close_and_drain(Cutover *c)
{
	InnerStep	step;
	XLogRecPtr	lsn;

	begin_inner(c, &step, "close");
	close_target(c);
	end_inner(c, &step);
	begin_inner(c, &step, "drain");

	/*
	 * The record of the step before, which is behind every writer's commit.
	 * The insert position would not do: at a page's border it is behind the
	 * header of a page that is not there yet.
	 */
	lsn = XactLastRecEnd;
	XLogFlush(lsn);
	wait_sent(c, lsn, 0);
	end_inner(c, &step);
	begin_inner(c, &step, "check");
	check(c);
	end_inner(c, &step);
	begin_inner(c, &step, "sequences");
	sequences_back(c);
	end_inner(c, &step);
	begin_inner(c, &step, "commit");
	mark_closed(c);
	end_inner(c, &step);
	migrate_spi_end();
	ForceSyncCommit();
	migrate_cutover_deadline(c);
	CommitTransactionCommand();
	migrate_remote_deadline = 0;
	MemoryContextSwitchTo(c->row->mcxt);
	migrate_fault("rollback-closed");
}

/* ----------------------------------------------------------------
 * forward from there
 * ----------------------------------------------------------------
 */

/* Idempotent; throws when the source does not answer, to be called again. */
static void
lift(Cutover *c)
{
	if (c->conn == NULL)
		migrate_cutover_connect(c);
	migrate_cutover_step_begin(c->row, "lift", true, false);
	if (c->row->external)
		migrate_external_lift(c);
	else
		migrate_fence_lift(c->fence);
	migrate_fault("rollback-lifted");
	migrate_cutover_back_open(c->row, c->paused_at ? c->paused_at : c->row->paused_at);
	migrate_cutover_disarm_reverse(c);
	migrate_cutover_run_hooks(c, "after_open");
	migrate_cutover_hang_up(c);
}

/* False: it stopped where it was to stop. */
static bool
run(Cutover *c)
{
	const char *at = c->row->stop_before;

	migrate_cutover_step_begin(c->row, "prechecks", false, false);
	prechecks(c);
	migrate_cutover_stop_apply(c);
	/* partitions that were made since */
	(void) migrate_cutover_call(c->row, "SELECT migrate._arm_guards($1, false)");
	migrate_cutover_step_end(c->row, "done", NULL);
	migrate_cutover_step_begin(c->row, "lag", false, false);
	lag(c);
	migrate_cutover_step_end(c->row, "done", NULL);
	migrate_cutover_run_hooks(c, "before_fence");
	if (at)
		return false;
	close_and_drain(c);
	return true;
}

void
migrate_rollback_turn(Cutover *c)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ErrorData  *volatile edata = NULL;
	volatile bool closed = false;

	if (c->row->closed)
	{
		lift(c);
		return;
	}
	if (c->row->running)
	{
		migrate_cutover_undone(c->row, NULL, 0);
		return;
	}
	PG_TRY();
	{
		closed = run(c);
	}
	PG_CATCH();
	{
		edata = migrate_recover(mcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	migrate_remote_deadline = 0;
	if (closed)
	{
		lift(c);
		return;
	}
	migrate_cutover_hang_up(c);
	migrate_cutover_undone(c->row, edata, c->paused_at);
	migrate_cutover_hooks(c->row, "undone", NULL, 0);
}
