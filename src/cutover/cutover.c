/*-------------------------------------------------------------------------
 *
 * cutover.c
 *	  The cutover, step by step, in the job worker.
 *
 *	  prechecks -> guard -> reverse -> arm -> validate -> lag
 *	  |-- the application writes ----------------------------|
 *	  -> fence -> drain -> check -> sequences -> commit -> open
 *	  |-- it waits -------------------------------------------|
 *
 * Up to "commit" nothing has happened that the source would remember but for
 * triggers that let everything through: the fence is an open transaction there
 * (fence.c).  So whatever goes wrong before, an error, a lost connection, the
 * death of this process or server, ends in the same way: the source rolls back
 * and is open, and streaming goes on.  "commit" is written down durably before
 * COMMIT is sent; who finds it begun and the cutover not done looks whether the
 * fence is there, and if so goes on forward (P25).
 *
 *	  crash		before "commit" began	after it began
 *	  ours		undone					fence there: open; not there: undone
 *	  source's	undone					the same, when it is back
 *
 * Between the fence's commit and the opening neither side takes writes: the
 * time of one transaction here.  If the source cannot be reached then, it is
 * asked again and again, and the job does not become failed: nobody else could
 * open either side.
 *
 * Runs in the job worker, states cutting_over and cut_over, outside a
 * transaction; each record of a step is one of its own, so that the client, who
 * only looks at them, may go away at any time.  Locks here: ALTER TABLE's of the
 * guards (guard.c), for a moment.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/cutover.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "control/job_worker.h"
#include "cutover/driver.h"
#include "cutover/external.h"
#include "cutover/last_check.h"
#include "cutover/reverse.h"
#include "extract/extract.h"
#include "load/apply.h"
#include "validate/changed.h"

/* how long the reverse and apply workers may take to leave, ms */
#define LEAVE_PATIENCE 10000

/* how long the fence's rollback may take before its connection is closed, ms */
#define UNDO_PATIENCE 1000

/* P33: the fence is looked for so often while cut over, ms */
#define FENCE_WATCH 10000

/* RelationGetRelid of targets that this session has locked, see lock_targets() */
static List *locked_targets = NIL;

/* The way back of a cutover that was undone or rolled back may be left. */
static bool may_be_left = true;

/* Its worker has been asked to leave, and has not; told after a while. */
static TimestampTz lingers_since = 0;
static bool told_lingering = false;

/* While cut over; nothing of it matters after a crash. */
static struct
{
	TimestampTz next;
	bool		missing;		/* told */
}			watch;

/* ----------------------------------------------------------------
 * time
 * ----------------------------------------------------------------
 */

int64
migrate_cutover_ms_since(TimestampTz since)
{
	return TimestampDifferenceMilliseconds(since, GetCurrentTimestamp());
}

/* max_downtime is over: an error, which undoes everything. */
void
migrate_cutover_deadline(Cutover *c)
{
	if (c->paused_at == 0 || migrate_cutover_ms_since(c->paused_at) < c->row->max_downtime_ms)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("the application has waited for %lld ms, longer than max_downtime",
					(long long) migrate_cutover_ms_since(c->paused_at)),
			 errhint("Give more time, or find out what the slowest step waits for: see migrate.cutover_steps.")));
}

/* Sleep until woken or so long; interruptible. */
void
migrate_cutover_doze(long ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * How long the n-th of the tries that make up one may wait for a lock, ms.  A
 * writer that holds one table of those that we wait for, and is about to write
 * to one of those that we have got, waits for us: the more tables there are, the
 * likelier.  Nothing but our letting go ends that, so we do so soon, and only the
 * last try waits for transactions that take their time.
 */
int
migrate_cutover_patience(Cutover *c, int n)
{
	return n == CUTOVER_SHORT_TRIES ? c->row->lock_ms : Min(c->row->lock_ms, 10 << (n / 2));
}

static XLogRecPtr
applied_lsn(void)
{
	XLogRecPtr	lsn;

	SpinLockAcquire(&migrate_shared->mutex);
	lsn = migrate_shared->live.applied_lsn;
	SpinLockRelease(&migrate_shared->mutex);
	return lsn;
}

/* ----------------------------------------------------------------
 * steps before the pause
 * ----------------------------------------------------------------
 */

/* Connections and the list of tables; readiness was judged when it was asked. */
static char *
step_prechecks(Cutover *c)
{
	StartTransactionCommand();
	MemoryContextSwitchTo(c->row->mcxt);
	c->conn = migrate_connect(c->job->server, c->job->owner, c->job->name, "cutover",
							  c->job->connect_timeout_s);
	if (c->row->external)
		c->fence = migrate_fence_create(c->job, c->conn);
	else
	{
		c->fence_conn = migrate_connect(c->job->server, c->job->owner, c->job->name, MIGRATE_FENCE_ROLE,
										c->job->connect_timeout_s);
		c->fence = migrate_fence_create(c->job, c->fence_conn);
		migrate_fence_record(c->fence);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(c->row->mcxt);
	if (c->fence->nleaves == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" has no table on its source that could be fenced",
						c->job->name)));
	return psprintf("%d tables", c->fence->nleaves);
}

static char *
step_guard(Cutover *c)
{
	int64		n = migrate_cutover_call_as_writer(c->row, "SELECT migrate._arm_guards($1)");

	return psprintf("%lld tables got a guard", (long long) n);
}

/*
 * P29: the way back is armed before the fence, since its slot waits for
 * whoever has a transaction open here.  Without one the cutover goes on, as
 * readiness has said.
 */
static char *
step_reverse(Cutover *c)
{
	TimestampTz begin = GetCurrentTimestamp();

	/* one of a way back before this does not know that it is over (P30) */
	while (!migrate_reverse_stop(c->job->job_id))
	{
		if (migrate_cutover_ms_since(begin) > c->row->lag_timeout_ms)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("the worker of an earlier way back of job \"%s\" does not leave", c->job->name),
					 errhint("It may wait for a COMMIT on the source: see pg_stat_activity there.")));
		migrate_cutover_doze(CUTOVER_LOOK_AGAIN);
	}
	migrate_apply_ensure(c->job, me.handle);
	MemoryContextSwitchTo(c->row->mcxt);
	if (migrate_cutover_call_as_writer(c->row, "SELECT migrate._arm_reverse($1)") == 0)
		return pstrdup("no way back, see migrate.readiness");
	while (migrate_cutover_call(c->row, "SELECT migrate._reverse_state($1)") == 0)
	{
		if (migrate_cutover_ms_since(begin) > c->row->lag_timeout_ms)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the slot for the way back could not be made within %lld ms",
							(long long) c->row->lag_timeout_ms),
					 errdetail("Making it waits for every transaction that is open on this server."),
					 errhint("See pg_stat_activity for old transactions, and migrate.workers for an error of the worker \"reverse\".")));
		migrate_reverse_ensure(c->job, me.handle);
		migrate_cutover_doze(CUTOVER_LOOK_AGAIN * 5);
	}
	return pstrdup("armed");
}

/*
 * A try to lock the tables of a side that has failed: told, and slept upon.
 * Throws when fence_timeout is over.  Outside a transaction.
 */
void
migrate_cutover_try_again(Cutover *c, const char *side, TimestampTz begin, int tries,
						  long *pause, const char *blockers)
{
	migrate_cutover_event(c->row, "warning", "fence",
						  "the %s's tables could not be locked within %d ms (try %d): %s",
						  side, c->row->lock_ms, tries, blockers);
	if (migrate_cutover_ms_since(begin) + *pause > c->row->fence_timeout_ms)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the %s's tables could not be locked in %d tries", side, tries),
				 errdetail_internal("In the way: %s.", blockers),
				 errhint("End these transactions, or try again at a quieter time.")));
	migrate_cutover_doze(*pause);
	*pause = Min(*pause * 2, CUTOVER_LOCK_MAX_PAUSE);
}

static char *
step_arm(Cutover *c)
{
	TimestampTz begin = GetCurrentTimestamp();
	long		pause = CUTOVER_LOCK_PAUSE;
	int			made = 0;
	char	   *blockers;

	if (c->row->external)
		return pstrdup("nothing, the source is fenced by other means");
	for (int tries = 1; !migrate_fence_arm(c->fence, c->row->lock_ms, &made, &blockers); tries++)
		migrate_cutover_try_again(c, "source", begin, tries, &pause, blockers);
	return psprintf("%d tables got triggers", made);
}

/* The source's insert position, without waiting for anything. */
XLogRecPtr
migrate_cutover_source_position(MigrateConn *conn)
{
	char	   *text = migrate_exec_value(conn, "SELECT pg_catalog.pg_current_wal_insert_lsn()");

	return DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(text)));
}

/*
 * P26: what was decoded is sent when it is flushed; a durable commit of ours
 * flushes, and is a place in the stream that is not idle.
 */
void
migrate_cutover_force_flush(MigrateConn *conn)
{
	PQclear(migrate_exec(conn, "BEGIN; SET LOCAL synchronous_commit = on;"
						 " SELECT pg_catalog.pg_logical_emit_message(true, 'migrate', 'drain'); COMMIT"));
}

/* Until everything before a position is applied here. */
static void
wait_applied(Cutover *c, XLogRecPtr lsn)
{
	while (applied_lsn() < lsn)
	{
		migrate_cutover_deadline(c);
		migrate_cutover_doze(CUTOVER_LOOK_AGAIN);
	}
}

/* A connection, and the fence over it. */
void
migrate_cutover_connect(Cutover *c)
{
	StartTransactionCommand();
	MemoryContextSwitchTo(c->row->mcxt);
	c->conn = migrate_connect(c->job->server, c->job->owner, c->job->name, "cutover",
							  c->job->connect_timeout_s);
	c->fence = migrate_fence_create(c->job, c->conn);
	CommitTransactionCommand();
	MemoryContextSwitchTo(c->row->mcxt);
}

/*
 * Follow closely before the application is made to wait: what it takes to
 * apply up to the position of now, twice.
 */
static char *
step_lag(Cutover *c)
{
	TimestampTz begin = GetCurrentTimestamp();
	int64		took = 0;

	for (int i = 0; i < 2; i++)
	{
		TimestampTz t = GetCurrentTimestamp();
		XLogRecPtr	lsn = migrate_cutover_source_position(c->conn);

		migrate_cutover_force_flush(c->conn);
		while (applied_lsn() < lsn)
		{
			if (migrate_cutover_ms_since(begin) > c->row->lag_timeout_ms)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("the target is too far behind for a cutover"),
						 errdetail("It has not reached the source's position %X/%X after %lld ms.",
								   LSN_FORMAT_ARGS(lsn), (long long) migrate_cutover_ms_since(begin)),
						 errhint("See migrate.lag; try again when it has caught up.")));
			migrate_cutover_doze(CUTOVER_LOOK_AGAIN);
		}
		took = migrate_cutover_ms_since(t);
	}
	if (took > c->row->max_downtime_ms)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("draining would take %lld ms, longer than max_downtime", (long long) took),
				 errhint("See migrate.lag; try again when the source writes less, or give more time.")));
	return psprintf("%lld ms behind", (long long) took);
}

/* ----------------------------------------------------------------
 * steps within the pause
 * ----------------------------------------------------------------
 */

/* False: somebody's lock was in the way to the last, and nothing is held. */
static bool
lock_source(Cutover *c, char **blockers)
{
	for (int n = 0; n <= CUTOVER_SHORT_TRIES; n++)
	{
		if (n > 0)
			migrate_cutover_doze(CUTOVER_SHORT_PAUSE);
		c->paused_at = GetCurrentTimestamp();
		migrate_remote_deadline = TimestampTzPlusMilliseconds(c->paused_at, c->row->max_downtime_ms);
		if (migrate_fence_lock(c->fence, Min(migrate_cutover_patience(c, n), c->row->max_downtime_ms),
							   c->row->max_downtime_ms, n == CUTOVER_SHORT_TRIES ? blockers : NULL))
			return true;
		c->paused_at = 0;
		migrate_remote_deadline = 0;
	}
	return false;
}

/*
 * P25: short tries, so that a writer never waits long behind us.  The blockers
 * of each long one are told.
 */
static char *
step_fence(Cutover *c)
{
	TimestampTz begin = GetCurrentTimestamp();
	long		pause = CUTOVER_LOCK_PAUSE;
	int			tries = 1;
	char	   *blockers;

	/* a gate may have been waited at */
	migrate_last_check_again(c);
	if (c->row->external)
		return migrate_external_fence(c);
	for (; !lock_source(c, &blockers); tries++)
	{
		migrate_cutover_try_again(c, "source", begin, tries, &pause, blockers);
		migrate_last_check_again(c);
	}
	migrate_fault("cutover-locked");
	migrate_fence_close(c->fence, c->row->digest, c->row->new_home);
	if (c->row->fence_reads)
		migrate_fence_close_reads(c->fence);
	return psprintf("%d tables, %d %s", c->fence->nleaves, tries, tries == 1 ? "try" : "tries");
}

static char *
step_drain(Cutover *c)
{
	XLogRecPtr	lsn = c->row->external ? c->fence_lsn :
	migrate_cutover_source_position(c->fence_conn);

	migrate_cutover_force_flush(c->conn);
	wait_applied(c, lsn);
	c->fence_lsn = lsn;
	migrate_cutover_note_lsn(c->row, lsn);
	return psprintf("up to %X/%X", LSN_FORMAT_ARGS(lsn));
}

/*
 * P30: before the target is opened, and before the apply position moves, the
 * apply worker has left.  It would take what the way back brings to the source
 * for news from there, and put it over what was written here since.  Its lock
 * tells of one that a job worker before us has started.
 */
void
migrate_cutover_stop_apply(Cutover *c)
{
	TimestampTz begin = GetCurrentTimestamp();

	while (!migrate_apply_stop(false) ||
		   !migrate_worker_lock(MIGRATE_LOCK_APPLY, c->job->job_id))
	{
		migrate_cutover_deadline(c);
		if (migrate_cutover_ms_since(begin) > LEAVE_PATIENCE)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("the apply worker of job \"%s\" does not leave", c->job->name)));
		migrate_cutover_doze(CUTOVER_LOOK_AGAIN);
	}
	migrate_worker_unlock(MIGRATE_LOCK_APPLY, c->job->job_id);
}

static void
target_tag(LOCKTAG *tag, Oid relid)
{
	SET_LOCKTAG_RELATION(*tag, MyDatabaseId, relid);
}

/* An error names what it waited for. */
static void
lock_target(Oid relid)
{
	MemoryContext mcxt = CurrentMemoryContext;
	LOCKTAG		tag;

	target_tag(&tag, relid);
	PG_TRY();
	{
		(void) LockAcquire(&tag, ShareRowExclusiveLock, true, false);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("table \"%s\" of the target could not be locked within max_downtime",
						get_rel_name(relid)),
				 errhint("Look for VACUUM, ANALYZE or CREATE INDEX at work on it.")));
	}
	PG_END_TRY();
}

static void
note_locked(Oid relid)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	locked_targets = lappend_oid(locked_targets, relid);
	MemoryContextSwitchTo(old);
}

/*
 * The locks that opening takes, while it can still be undone: once the fence
 * has committed, nothing may stand between it and the opening (P28), and a
 * VACUUM does.  They are the session's, over the transactions of the steps.
 */
static void
lock_targets(Cutover *c)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(c->job->job_id);
	Oid		   *relids;
	int			n;

	StartTransactionCommand();
	migrate_spi_begin();
	(void) set_config_option("lock_timeout",
							 psprintf("%lld", (long long) Max(1, c->row->max_downtime_ms - migrate_cutover_ms_since(c->paused_at))),
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	migrate_spi_exec("SELECT DISTINCT g.tgrelid FROM pg_catalog.pg_trigger g"
					 " WHERE g.tgfoid IN ('migrate._guard()'::regprocedure, 'migrate._note_change()'::regprocedure)"
					 " AND g.tgparentid = 0 AND g.tgname IN ('migrate_guard_' || $1, 'migrate_queue_' || $1,"
					 "  'migrate_queue_' || $1 || '_t') ORDER BY 1",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	n = (int) SPI_processed;
	relids = palloc(sizeof(Oid) * (n + 1));
	for (int i = 0; i < n; i++)
		relids[i] = (Oid) migrate_spi_int64(i, 0, 0);
	for (int i = 0; i < n; i++)
	{
		lock_target(relids[i]);
		note_locked(relids[i]);
	}
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(c->row->mcxt);
}

static void
unlock_targets(void)
{
	ListCell   *lc;

	foreach(lc, locked_targets)
	{
		LOCKTAG		tag;

		target_tag(&tag, lfirst_oid(lc));
		(void) LockRelease(&tag, ShareRowExclusiveLock, true);
	}
	list_free(locked_targets);
	locked_targets = NIL;
}

/* P2 under the fence, what else must be so, and P32: what changed. */
static char *
step_check(Cutover *c)
{
	MemoryContext mcxt = CurrentMemoryContext;
	char	   *detail;

	migrate_cutover_stop_apply(c);
	if (c->row->external)
		migrate_external_check(c);
	lock_targets(c);
	StartTransactionCommand();
	migrate_drift_refuse(c->job, NIL, c->row->external ? c->conn : c->fence_conn);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	(void) migrate_cutover_call(c->row, "SELECT 0 FROM migrate._cutover_check($1)");
	detail = migrate_last_check_under(c);
	migrate_cutover_deadline(c);
	return detail;
}

static char *
step_sequences(Cutover *c)
{
	int64		n = migrate_cutover_call(c->row, "SELECT migrate._set_sequences($1)");

	migrate_cutover_deadline(c);
	return psprintf("%lld sequences", (long long) n);
}

/* The record of this step was made durable before we come here. */
static char *
step_commit(Cutover *c)
{
	migrate_cutover_deadline(c);
	if (c->row->external)
	{
		migrate_fault("cutover-commit");
		migrate_external_verify(c);
		migrate_cutover_deadline(c);
		return NULL;
	}
	c->committing = true;
	migrate_fault("cutover-commit");
	migrate_fence_commit(c->fence);
	migrate_fault("cutover-committed");
	c->fence->conn = c->conn;
	if (migrate_fence_look(c->fence, c->row->digest) != MIGRATE_FENCE_CLOSED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the fence is not on the source after its commit")));
	return NULL;
}

/* One transaction: guards off, cutover done, state cut_over. */
static char *
step_open(Cutover *c)
{
	migrate_cutover_open(c->row, c->paused_at);
	migrate_remote_deadline = 0;
	unlock_targets();
	migrate_fault("cutover-opened");
	return NULL;
}

static const struct
{
	const char *name;
	char	   *(*run) (Cutover *c);
	bool		in_pause;
	const char *hook_before;
	const char *hook_after;
}			steps[] =

{
	{"prechecks", step_prechecks, false, NULL, NULL},
	{"guard", step_guard, false, NULL, NULL},
	{"reverse", step_reverse, false, NULL, NULL},
	{"arm", step_arm, false, NULL, NULL},
	{"validate", migrate_last_check_before, false, NULL, NULL},
	{"lag", step_lag, false, NULL, NULL},
	{"fence", step_fence, true, "before_fence", "after_fence"},
	{"drain", step_drain, true, NULL, NULL},
	{"check", step_check, true, NULL, NULL},
	{"sequences", step_sequences, true, NULL, "before_open"},
	{"commit", step_commit, true, NULL, NULL},
	{"open", step_open, true, NULL, NULL},
};

/* ----------------------------------------------------------------
 * the driver
 * ----------------------------------------------------------------
 */

/*
 * The rehearsal ends before the commit: with it the source would be closed,
 * unless that is not ours to do.
 */
static bool
stops_before(Cutover *c, const char *step)
{
	const char *at = c->row->stop_before;

	return at && (strcmp(at, step) == 0 ||
				  (strcmp(at, "open") == 0 && strcmp(step, "commit") == 0 && !c->row->external));
}

void
migrate_cutover_run_hooks(Cutover *c, const char *phase)
{
	if (phase)
		migrate_cutover_hooks(c->row, phase, c->conn,
							  c->paused_at == 0 ? c->row->gate_timeout_ms :
							  Max(0, c->row->max_downtime_ms - migrate_cutover_ms_since(c->paused_at)));
}

/* True when it is done, false when it stopped where it was to stop. */
static bool
run_steps(Cutover *c)
{
	for (int i = 0; i < lengthof(steps); i++)
	{
		char	   *detail;

		MemoryContextSwitchTo(c->row->mcxt);
		if (stops_before(c, steps[i].name))
			return false;
		migrate_cutover_run_hooks(c, steps[i].hook_before);
		migrate_cutover_step_begin(c->row, steps[i].name, steps[i].in_pause,
								   steps[i].run == step_commit ||
								   (c->row->external && steps[i].run == step_fence));
		migrate_fault(psprintf("cutover-%s", steps[i].name));
		detail = steps[i].run(c);
		migrate_cutover_step_end(c->row, "done", detail);
		migrate_cutover_run_hooks(c, steps[i].hook_after);
	}
	return true;
}

void
migrate_cutover_hang_up(Cutover *c)
{
	if (c->fence_conn)
		migrate_disconnect(c->fence_conn);
	if (c->conn)
		migrate_disconnect(c->conn);
	c->conn = c->fence_conn = NULL;
}

/*
 * What was armed for the way back is not needed while we follow.  A reverse
 * worker that takes its time is left to migrate_cutover_tidy().
 */
void
migrate_cutover_disarm_reverse(Cutover *c)
{
	TimestampTz begin = GetCurrentTimestamp();

	while (!migrate_reverse_stop(c->job->job_id))
	{
		if (migrate_cutover_ms_since(begin) > LEAVE_PATIENCE)
			return;
		migrate_cutover_doze(CUTOVER_LOOK_AGAIN);
	}
	(void) migrate_cutover_call(c->row, "SELECT count(*) FROM migrate._disarm_reverse($1)");
}

/* Once: why nothing is applied. */
static void
tell_lingering(MigrateJob *job)
{
	if (lingers_since == 0)
		lingers_since = GetCurrentTimestamp();
	if (told_lingering || migrate_cutover_ms_since(lingers_since) < LEAVE_PATIENCE)
		return;
	told_lingering = true;
	StartTransactionCommand();
	migrate_event(job->job_id, "warning", "reverse",
				  "the worker of the way back has not left: changes of the source are not applied until it has");
	CommitTransactionCommand();
}

/*
 * Before apply begins (P30): a worker before us may have ended after a cutover
 * was undone or rolled back, and before its reverse worker had left, which
 * would take what we apply for the application's, and its slot was dropped,
 * which would hold WAL for ever.  False: that worker still lives.
 */
bool
migrate_cutover_tidy(MigrateJob *job)
{
	MigrateCutover row = {.job = job,.mcxt = CurrentMemoryContext};

	if (!may_be_left)
		return true;
	if (!migrate_reverse_stop(job->job_id))
	{
		tell_lingering(job);
		return false;
	}
	lingers_since = 0;
	told_lingering = false;
	if (migrate_cutover_call(&row, "SELECT count(*) FROM migrate.reverse WHERE job_id = $1") > 0)
		(void) migrate_cutover_call(&row, "SELECT count(*) FROM migrate._disarm_reverse($1)");
	may_be_left = migrate_cutover_call(&row, "SELECT count(*) FROM migrate.reverse WHERE job_id = $1") > 0;
	return true;
}

/*
 * The source is open when it has answered.  One that does not is left to itself:
 * it finds our connection closed, or the transaction idle for too long.
 */
static void
roll_back_fence(Cutover *c)
{
	MemoryContext mcxt = CurrentMemoryContext;

	migrate_remote_deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), UNDO_PATIENCE);
	PG_TRY();
	{
		migrate_fence_rollback(c->fence);
	}
	PG_CATCH();
	{
		FreeErrorData(migrate_recover(mcxt));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	migrate_remote_deadline = 0;
}

/* Undone: what is left to say.  The source is open again at the latest now. */
static void
give_up(Cutover *c, ErrorData *edata)
{
	TimestampTz paused_at = c->paused_at;

	migrate_remote_deadline = 0;
	if (c->fence_conn && c->fence && c->paused_at != 0)
		roll_back_fence(c);
	migrate_cutover_hang_up(c);
	unlock_targets();
	if (c->row->external && migrate_external_begun(c))
		migrate_external_lift(c);
	migrate_cutover_undone(c->row, edata, paused_at);
	migrate_cutover_disarm_reverse(c);
	migrate_cutover_hooks(c->row, "undone", NULL, 0);
}

/*
 * After "commit" has begun, by us or by a worker before us: is the fence
 * there?  Throws when the source does not answer.
 */
static bool
fence_is_there(Cutover *c)
{
	MigrateFenceState state;

	migrate_cutover_hang_up(c);
	migrate_cutover_connect(c);
	migrate_fence_end_others(c->fence);
	state = migrate_fence_look(c->fence, c->row->digest);
	return state == MIGRATE_FENCE_CLOSED;
}

/* Carry on or undo what had come to its commit. */
static void
settle(Cutover *c, ErrorData *edata)
{
	if (!fence_is_there(c))
	{
		give_up(c, edata);
		return;
	}
	migrate_cutover_stop_apply(c);
	migrate_cutover_step_begin(c->row, "open", true, false);
	migrate_cutover_open(c->row, c->row->paused_at);
	unlock_targets();
	migrate_cutover_run_hooks(c, "after_open");
	migrate_cutover_hang_up(c);
}

/*
 * A turn of the job worker in state cutting_over; it lasts as long as the
 * cutover.  Throws only when the source does not answer the question whether
 * it is fenced: try again.
 */
void
migrate_cutover_turn(MigrateJob *job)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Cutover		c = {.job = job};
	ErrorData  *volatile edata = NULL;
	volatile bool done = false;

	may_be_left = true;
	migrate_remote_deadline = 0;
	c.row = migrate_cutover_load(job);
	if (c.row == NULL)
	{
		/* somebody has set the state by hand */
		migrate_cutover_back_to_streaming(job);
		return;
	}
	if (!c.row->forward)
	{
		migrate_rollback_turn(&c);
		return;
	}
	if (c.row->commit_begun && !c.row->external)
	{
		settle(&c, NULL);
		return;
	}
	if (c.row->running)
	{
		give_up(&c, NULL);
		return;
	}
	PG_TRY();
	{
		done = run_steps(&c);
	}
	PG_CATCH();
	{
		edata = migrate_recover(mcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	migrate_remote_deadline = 0;
	if (done)
	{
		migrate_cutover_run_hooks(&c, "after_open");
		if (c.changed)
			migrate_changed_record(c.changed);
		migrate_cutover_hang_up(&c);
	}
	else if (c.committing)
		settle(&c, edata);
	else
		give_up(&c, edata);
}

/* ----------------------------------------------------------------
 * afterwards
 * ----------------------------------------------------------------
 */

static bool
there_is_a_way_back(MigrateJob *job)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(job->job_id);
	bool		found;

	StartTransactionCommand();
	migrate_spi_begin();
	migrate_spi_exec("SELECT FROM migrate.reverse WHERE job_id = $1 AND state <> 'lost'",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	found = SPI_processed > 0;
	migrate_spi_end();
	CommitTransactionCommand();
	return found;
}

/* Is the source fenced by the cutover that opened us?  NULL: no such cutover. */
static char *
fence_digest_of(MigrateJob *job, bool *external)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(job->job_id);
	char	   *digest = NULL;

	migrate_spi_begin();
	migrate_spi_exec("SELECT digest, (fence = 'external')::int FROM migrate.cutover WHERE job_id = $1"
					 " AND direction = 'forward' AND state = 'done'"
					 " ORDER BY cutover_id DESC LIMIT 1",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		digest = MemoryContextStrdup(mcxt, migrate_spi_text(0, 0));
		*external = migrate_spi_int64(0, 1, 0) != 0;
	}
	migrate_spi_end();
	MemoryContextSwitchTo(mcxt);
	return digest;
}

/*
 * Up to where the spool is now, at a commit.  False: nothing to pass over.
 */
static bool
spooled_position(MigrateJob *job, XLogRecPtr *lsn, int64 *seq)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(job->job_id);
	bool		found;
	bool		isnull;

	migrate_spi_begin();
	migrate_spi_exec("SELECT s.spooled_lsn, s.spooled_seq FROM migrate.stream_position s"
					 " JOIN migrate.job_stream USING (stream_id)"
					 " JOIN migrate.apply_position a USING (job_id)"
					 " WHERE job_id = $1 AND a.applied_lsn < s.spooled_lsn AND a.next_seq <= s.spooled_seq",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	found = SPI_processed == 1;
	if (found)
	{
		*lsn = DatumGetLSN(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		*seq = migrate_spi_int64(0, 1, 0);
	}
	migrate_spi_end();
	return found;
}

/*
 * P30: what has come from a source that is fenced is what we brought there.  It
 * is passed over, or it would stay in the spool until a rollback.
 */
void
migrate_cutover_pass_over(MigrateJob *job, XLogRecPtr lsn, int64 seq)
{
	Oid			types[] = {INT4OID, LSNOID, INT8OID};
	Datum		values[] = {Int32GetDatum(job->job_id), LSNGetDatum(lsn), Int64GetDatum(seq)};

	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.apply_position SET applied_lsn = $2, next_seq = $3 + 1"
					 " WHERE job_id = $1 AND applied_lsn < $2 AND next_seq <= $3",
					 3, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_end();
}

/* P33: told once when it goes, and once when it is back. */
static void
tell_fence(MigrateJob *job, bool there)
{
	if (there == !watch.missing)
		return;
	watch.missing = !there;
	if (there)
		migrate_event(job->job_id, "info", "fence", "the fence is on the source again");
	else
		migrate_event(job->job_id, "alert", "fence",
					  "the fence is not on the source any more: both sides may be written to");
}

/* P33, of a fence of ours */
static void
look_for_fence(MigrateJob *job, MigrateFence *fence, const char *digest)
{
	XLogRecPtr	lsn;
	int64		seq;
	bool		passed = spooled_position(job, &lsn, &seq);
	bool		there = migrate_fence_look(fence, digest) == MIGRATE_FENCE_CLOSED;

	tell_fence(job, there);
	if (there && passed)
		migrate_cutover_pass_over(job, lsn, seq);
}

/* P33; a connection of its own, so that nothing is kept over days. */
static pg_noinline void
watch_fence(MigrateJob *job)
{
	bool		external = false;
	char	   *digest;

	StartTransactionCommand();
	digest = fence_digest_of(job, &external);
	if (digest)
	{
		MigrateConn *conn = migrate_connect(job->server, job->owner, job->name, "watch",
											job->connect_timeout_s);
		MigrateFence *fence = migrate_fence_create(job, conn);

		if (external)
			migrate_external_watch(job, fence, digest);
		else
			look_for_fence(job, fence, digest);
		migrate_disconnect(conn);
	}
	CommitTransactionCommand();
}

/*
 * A turn of the job worker in state cut_over, outside a transaction.  A source
 * that does not answer is no alarm: it takes no writes either.
 */
void
migrate_cut_over_turn(MigrateJob *job)
{
	MemoryContext mcxt = CurrentMemoryContext;

	(void) migrate_apply_stop(false);
	if (there_is_a_way_back(job))
		migrate_reverse_ensure(job, me.handle);
	MemoryContextSwitchTo(mcxt);
	if (GetCurrentTimestamp() < watch.next)
		return;
	watch.next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FENCE_WATCH);
	PG_TRY();
	{
		watch_fence(job);
	}
	PG_CATCH();
	{
		(void) migrate_recover(mcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
}
