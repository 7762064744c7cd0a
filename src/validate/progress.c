/*-------------------------------------------------------------------------
 *
 * progress.c
 *	  What a validation says of itself while it runs (migrate.validating), and
 *	  what it is told: not to read faster than the DBA allows, and to stop.
 *
 * A validation is one transaction in any session, and its job may have no
 * worker whose segment could be used.  So it makes a segment of its own and
 * publishes the handle in a lock: the second key of MIGRATE_LOCK_VALIDATION
 * *is* the handle.  Whoever looks walks the locks of that kind and attaches.
 * Lock and segment are the transaction's; nothing is left after an error or a
 * crash, and a handle that is used anew is told by what the segment says of
 * itself.
 *
 * Rows are counted where they come to this server's code: batches of the
 * source, rows fetched from the target.  Where the target's digests are made by
 * a query, each row passes migrate._seen(), in parallel workers, too.  Of a
 * query on the source nothing is known before it ends.
 *
 * Reading the source is paced by the job's token buckets (control/throttle.c):
 * those in the segment of its worker, so that copy and validation together keep
 * to the limits, or, when the job has no worker, by buckets of our own.
 *
 * Runs in the session or worker that validates, and in sessions that look.
 * Locks: MIGRATE_LOCK_VALIDATION until the validation's end, the mutex of either
 * segment.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/parallel.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "storage/dsm.h"
#include "storage/latch.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "control/control.h"
#include "validate.h"

#define VALIDATION_MAGIC 0x6d766c64

/* migrate._seen() adds so many rows at once */
#define SEEN_ROWS 1024

/* A running validation; whoever validates writes it, under mutex. */
typedef struct ValidateShared
{
	uint32		magic;
	Oid			database;
	int			job_id;
	int			pid;
	slock_t		mutex;

	/* by side, of the pass at hand; parallel workers add, too */
	pg_atomic_uint64 rows[2];

	bool		cancelled;		/* written by whoever cancels the job */

	int			targets;		/* checks are one */
	int			targets_done;
	int			mapping_id;		/* 0: checks */
	ValidateLevel level;
	int			digest;			/* -1: not known, or none */
	char		phase[24];
	char		throttle[128];	/* reason, value, threshold; empty: none */
	bool		counts_source;	/* else a query on the source does */
	bool		first_pass;		/* every row of both sides is to be met */
	int64		estimate[2];	/* of the pass; by side */
	int64		target_weight;	/* rows of the target at hand, both sides */
	int64		all_done;		/* sums of weights */
	int64		all_estimate;
	TimestampTz started;
	TimestampTz target_started;
	TimestampTz phase_started;
} ValidateShared;

/* this process validates; its segment, or NULL when there was none to have */
static bool validating = false;
static ValidateShared *mine = NULL;
static dsm_segment *my_segment = NULL;
static ResourceOwner my_owner = NULL;	/* of both lock and segment */

/* how fast we may read the source */
static MigrateShared *worker_limits = NULL; /* NULL: see own_limits */
static dsm_segment *worker_segment = NULL;	/* NULL also where it was mapped */
static MigrateBuckets own_limits;

/* ----------------------------------------------------------------
 * begin and end
 * ----------------------------------------------------------------
 */
static void
forget_worker_limits(void)
{
	worker_limits = NULL;
	migrate_shmem_unpeek(worker_segment);
	worker_segment = NULL;
}

/*
 * Begin, before any subtransaction.  Without a segment (there are too many) the
 * validation runs all the same, unseen.
 */
void
validate_progress_begin(MigrateJob *job, List *tasks, bool checks, ValidateLevel level)
{
	dsm_segment *seg = dsm_create(sizeof(ValidateShared), DSM_CREATE_NULL_IF_MAXSEGMENTS);
	ValidateShared *v;
	ListCell   *lc;

	validate_parts_reset();
	validating = true;
	mine = NULL;
	my_segment = NULL;
	memset(&own_limits, 0, sizeof(own_limits));
	own_limits.tokens_at = GetCurrentTimestamp();
	if (seg == NULL)
		return;
	v = dsm_segment_address(seg);
	memset(v, 0, sizeof(*v));
	v->database = MyDatabaseId;
	v->job_id = job->job_id;
	v->pid = MyProcPid;
	SpinLockInit(&v->mutex);
	for (int side = 0; side < 2; side++)
		pg_atomic_init_u64(&v->rows[side], 0);
	v->targets = list_length(tasks) + (checks ? 1 : 0);
	v->level = level;
	v->digest = -1;
	strlcpy(v->phase, "start", sizeof(v->phase));
	v->started = v->target_started = v->phase_started = GetCurrentTimestamp();
	foreach(lc, tasks)
	{
		ValidateTask *task = lfirst(lc);

		v->all_estimate += task->estimate[VALIDATE_SOURCE] + task->estimate[VALIDATE_TARGET];
	}
	pg_write_barrier();
	v->magic = VALIDATION_MAGIC;
	mine = v;
	my_segment = seg;
	my_owner = CurrentResourceOwner;
	(void) migrate_transaction_lock_try(MIGRATE_LOCK_VALIDATION, (int) dsm_segment_handle(seg));
}

/* The end, also in PG_FINALLY. */
void
validate_progress_end(void)
{
	dsm_segment *seg = my_segment;
	ResourceOwner owner = CurrentResourceOwner;

	forget_worker_limits();
	validating = false;
	mine = NULL;
	my_segment = NULL;
	if (seg == NULL)
		return;
	/* after an error it may be another */
	CurrentResourceOwner = my_owner;
	migrate_transaction_unlock(MIGRATE_LOCK_VALIDATION, (int) dsm_segment_handle(seg));
	dsm_detach(seg);
	CurrentResourceOwner = owner;
}

/* The limits of the job as they are now, and the segment that holds them. */
static void
load_limits(MigrateJob *job)
{
	MigrateJob *now = migrate_job_load(job->job_id);

	forget_worker_limits();
	own_limits.rows_per_second = now ? now->rows_per_second : 0;
	own_limits.bytes_per_second = now ? now->bytes_per_second : 0;
	worker_limits = migrate_shmem_peek(migrate_job_shmem(job->job_id), job->job_id, &worker_segment);
}

/* A target is begun (task NULL: the checks); before any subtransaction. */
void
validate_progress_target(MigrateJob *job, ValidateTask *task, ValidateLevel level)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!validating)
		return;
	load_limits(job);
	if (mine == NULL)
		return;
	SpinLockAcquire(&mine->mutex);
	mine->mapping_id = task ? task->mapping_id : 0;
	mine->level = level;
	mine->digest = -1;
	mine->target_weight = task ? task->estimate[VALIDATE_SOURCE] + task->estimate[VALIDATE_TARGET] : 0;
	mine->target_started = now;
	SpinLockRelease(&mine->mutex);
	validate_progress_phase(task ? "begin" : "checks", NULL, false);
	mine->first_pass = true;
}

void
validate_progress_target_done(void)
{
	if (mine == NULL)
		return;
	SpinLockAcquire(&mine->mutex);
	mine->targets_done++;
	mine->all_done += mine->target_weight;
	mine->target_weight = 0;
	SpinLockRelease(&mine->mutex);
}

/*
 * What is done now, and how many rows of each side that takes (NULL: none);
 * source_query: those of the source are not counted, but read by a query there.
 */
void
validate_progress_phase(const char *phase, const int64 *estimate, bool source_query)
{
	TimestampTz now = GetCurrentTimestamp();

	if (mine == NULL)
		return;
	SpinLockAcquire(&mine->mutex);
	strlcpy(mine->phase, phase, sizeof(mine->phase));
	mine->phase_started = now;
	mine->counts_source = !source_query;
	mine->throttle[0] = '\0';
	for (int side = 0; side < 2; side++)
		mine->estimate[side] = estimate ? estimate[side] : 0;
	SpinLockRelease(&mine->mutex);
	for (int side = 0; side < 2; side++)
		pg_atomic_write_u64(&mine->rows[side], 0);
}

/* The rows are met already; what is waited for has no measure. */
void
validate_progress_wait(const char *phase)
{
	if (mine == NULL)
		return;
	SpinLockAcquire(&mine->mutex);
	strlcpy(mine->phase, phase, sizeof(mine->phase));
	SpinLockRelease(&mine->mutex);
}

/* Who makes the digests; and whether all rows are still to be met. */
void
validate_progress_digest(int digest)
{
	if (mine)
		mine->digest = digest;
}

void
validate_progress_first_pass(bool first)
{
	if (mine)
		mine->first_pass = first;
}

void
validate_progress_rows(ValidateSide side, int64 rows)
{
	if (mine)
		pg_atomic_fetch_add_u64(&mine->rows[side], rows);
}

/* The source is read anew. */
void
validate_progress_again(ValidateSide side)
{
	if (mine)
		pg_atomic_write_u64(&mine->rows[side], 0);
}

/* Was the job cancelled, and we with it? */
bool
validate_progress_cancelled(void)
{
	return mine != NULL && mine->cancelled;
}

/* ----------------------------------------------------------------
 * rows of a query here
 * ----------------------------------------------------------------
 */

/*
 * The condition that counts the rows of a query on the target, or NULL.  Where
 * Citus is, queries may run on servers that know no such function.
 */
char *
validate_progress_condition(void)
{
	if (my_segment == NULL || OidIsValid(get_extension_oid("citus", true)))
		return NULL;
	return psprintf("migrate._seen('%u')", dsm_segment_handle(my_segment));
}

/* What is in a segment; NULL when its handle is another's by now. */
static ValidateShared *
content(dsm_segment *seg)
{
	ValidateShared *v = dsm_segment_address(seg);

	if (dsm_segment_map_length(seg) < sizeof(ValidateShared) ||
		v->magic != VALIDATION_MAGIC || v->database != MyDatabaseId)
		return NULL;
	return v;
}

/* The segment in the leader, or in a parallel worker, which keeps it. */
static ValidateShared *
segment_of_query(int64 handle)
{
	dsm_segment *seg = dsm_find_mapping((dsm_handle) handle);

	if (seg == NULL)
	{
		seg = dsm_attach((dsm_handle) handle);
		if (seg == NULL)
			return NULL;
		dsm_pin_mapping(seg);
	}
	return content(seg);
}

typedef struct SeenState
{
	ValidateShared *shared;
	int			rows;			/* not added yet */
} SeenState;

PG_FUNCTION_INFO_V1(migrate_seen);
PGDLLEXPORT Datum
migrate_seen(PG_FUNCTION_ARGS)
{
	SeenState  *state = fcinfo->flinfo->fn_extra;

	if (state == NULL)
	{
		state = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(SeenState));
		/* only in a validation, where nobody ends the segment meanwhile */
		if (mine || IsParallelWorker())
			state->shared = segment_of_query(PG_GETARG_INT64(0));
		fcinfo->flinfo->fn_extra = state;
	}
	if (++state->rows == SEEN_ROWS)
	{
		if (state->shared)
			pg_atomic_fetch_add_u64(&state->shared->rows[VALIDATE_TARGET], SEEN_ROWS);
		state->rows = 0;
	}
	PG_RETURN_BOOL(true);
}

/* ----------------------------------------------------------------
 * pace
 * ----------------------------------------------------------------
 */

/* Is there a limit to how fast the source may be read? */
bool
validate_paced(void)
{
	MigrateBuckets *b = worker_limits ? &worker_limits->buckets : &own_limits;

	return validating && (b->rows_per_second > 0 || b->bytes_per_second > 0);
}

/* Take what was read out of the buckets; how long to wait, ms, and for what. */
static long
take(int64 rows, int64 bytes, char *line, size_t size)
{
	MigrateBuckets *b = worker_limits ? &worker_limits->buckets : &own_limits;
	MigrateBuckets after;
	long		wait;

	if (worker_limits)
		SpinLockAcquire(&worker_limits->mutex);
	wait = migrate_buckets_take(b, rows, bytes);
	after = *b;
	if (worker_limits)
		SpinLockRelease(&worker_limits->mutex);
	if (wait > 0)
		migrate_buckets_describe(&after, line, size);
	return wait;
}

static void
tell_throttle(const char *line)
{
	if (mine == NULL)
		return;
	SpinLockAcquire(&mine->mutex);
	strlcpy(mine->throttle, line, sizeof(mine->throttle));
	SpinLockRelease(&mine->mutex);
}

/*
 * Account for what was read of the source, and wait while it is too much, or
 * while throttle_query holds the copy of a job that is at it.  Interruptible.
 */
void
validate_pace(int64 rows, int64 bytes)
{
	char		line[sizeof(mine->throttle)];

	validate_progress_rows(VALIDATE_SOURCE, rows);
	if (!validating)
		return;
	for (;;)
	{
		long		wait = take(rows, bytes, line, sizeof(line));
		bool		hold = worker_limits && worker_limits->hold &&
		worker_limits->job_worker_pid != 0;

		CHECK_FOR_INTERRUPTS();
		rows = bytes = 0;		/* taken */
		if (wait <= 0 && !hold)
			break;
		if (wait <= 0)
		{
			SpinLockAcquire(&worker_limits->mutex);
			strlcpy(line, worker_limits->hold_reason, sizeof(line));
			SpinLockRelease(&worker_limits->mutex);
		}
		tell_throttle(line);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 hold ? MIGRATE_NAP : Min(wait, MIGRATE_NAP), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	if (mine && mine->throttle[0] != '\0')
		tell_throttle("");
}

/* ----------------------------------------------------------------
 * who looks
 * ----------------------------------------------------------------
 */

/* Attach to a published handle; NULL when it is gone, or another's by now. */
static ValidateShared *
look(int handle, dsm_segment **seg)
{
	dsm_segment *found = dsm_find_mapping((dsm_handle) handle);
	ValidateShared *v;

	*seg = NULL;
	if (found == NULL)
		*seg = found = dsm_attach((dsm_handle) handle);
	if (found == NULL)
		return NULL;
	v = content(found);
	if (v)
		return v;
	if (*seg)
		dsm_detach(*seg);
	*seg = NULL;
	return NULL;
}

/* 0 to 1: how much of the pass is done; -1: not known */
static double
fraction(ValidateShared *v, const int64 *rows)
{
	int64		done = rows[VALIDATE_TARGET] + (v->counts_source ? rows[VALIDATE_SOURCE] : 0);
	int64		all = v->estimate[VALIDATE_TARGET] +
	(v->counts_source ? v->estimate[VALIDATE_SOURCE] : 0);

	return all > 0 ? Min((double) done / all, 1.0) : -1;
}

#define COLUMNS 19

/* The row of a validation from a copy of its segment. */
static void
put_validation(ReturnSetInfo *rsinfo, ValidateShared *v, const int64 *rows)
{
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS] = {0};
	double		part = fraction(v, rows);
	int			i = 0;

	values[i++] = Int32GetDatum(v->job_id);
	values[i++] = Int32GetDatum(v->pid);
	nulls[i] = v->mapping_id == 0;
	values[i++] = Int32GetDatum(v->mapping_id);
	values[i++] = CStringGetTextDatum(validate_level_names[v->level]);
	nulls[i] = v->digest < 0;
	values[i++] = v->digest < 0 ? (Datum) 0 : CStringGetTextDatum(validate_digest_names[v->digest]);
	values[i++] = CStringGetTextDatum(v->phase);
	for (int side = 0; side < 2; side++)
	{
		nulls[i] = side == VALIDATE_SOURCE && !v->counts_source;
		values[i++] = Int64GetDatum(rows[side]);
	}
	for (int side = 0; side < 2; side++)
	{
		nulls[i] = v->estimate[side] == 0;
		values[i++] = Int64GetDatum(v->estimate[side]);
	}
	nulls[i] = part < 0;
	values[i++] = Float8GetDatum(part);
	values[i++] = Int32GetDatum(v->targets);
	values[i++] = Int32GetDatum(v->targets_done);
	/* later passes look at what differs only: they weigh nothing */
	values[i++] = Float8GetDatum(v->all_done + v->target_weight *
								 (v->first_pass ? Max(part, 0) : 1));
	values[i++] = Float8GetDatum(v->all_estimate);
	nulls[i] = v->throttle[0] == '\0';
	values[i++] = CStringGetTextDatum(v->throttle);
	values[i++] = TimestampTzGetDatum(v->started);
	values[i++] = TimestampTzGetDatum(v->target_started);
	values[i++] = TimestampTzGetDatum(v->phase_started);
	Assert(i == COLUMNS);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* Does the caller see this job? */
static bool
job_is_visible(int job_id)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(job_id);
	bool		visible;

	migrate_spi_begin();
	migrate_spi_exec("SELECT 1 FROM migrate.job WHERE job_id = $1", 1, &type, &arg, NULL,
					 SPI_OK_SELECT);
	visible = SPI_processed > 0;
	migrate_spi_end();
	return visible;
}

/*
 * migrate._live_validations(): of the jobs that the caller may see.
 */
PG_FUNCTION_INFO_V1(migrate_live_validations);
PGDLLEXPORT Datum
migrate_live_validations(PG_FUNCTION_ARGS)
{
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, migrate_lock_ids(MIGRATE_LOCK_VALIDATION))
	{
		dsm_segment *seg;
		ValidateShared *shared = look(lfirst_int(lc), &seg);
		ValidateShared v;
		int64		rows[2];

		if (shared == NULL)
			continue;
		SpinLockAcquire(&shared->mutex);
		memcpy(&v, shared, sizeof(v));
		SpinLockRelease(&shared->mutex);
		for (int side = 0; side < 2; side++)
			rows[side] = (int64) pg_atomic_read_u64(&shared->rows[side]);
		if (seg)
			dsm_detach(seg);
		if (job_is_visible(v.job_id))
			put_validation((ReturnSetInfo *) fcinfo->resultinfo, &v, rows);
	}
	return (Datum) 0;
}

/*
 * migrate._cancel_validations(job_id): cancel them, whoever's session it is,
 * since the job is the caller's.  How many there were.
 */
PG_FUNCTION_INFO_V1(migrate_cancel_validations);
PGDLLEXPORT Datum
migrate_cancel_validations(PG_FUNCTION_ARGS)
{
	int			job_id = PG_GETARG_INT32(0);
	int			n = 0;
	ListCell   *lc;

	if (!job_is_visible(job_id))
		PG_RETURN_INT32(0);
	foreach(lc, migrate_lock_ids(MIGRATE_LOCK_VALIDATION))
	{
		dsm_segment *seg;
		ValidateShared *shared = look(lfirst_int(lc), &seg);

		if (shared && shared->job_id == job_id && shared->pid != MyProcPid)
		{
			shared->cancelled = true;
			if (kill(shared->pid, SIGINT) == 0)
				n++;
		}
		if (seg)
			dsm_detach(seg);
	}
	PG_RETURN_INT32(n);
}
