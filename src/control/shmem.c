/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  The shared memory of a running job: live counters, wishes, wake-ups.
 *
 * The job worker makes one dynamic segment and puts its handle into
 * migrate.job.shm_handle; loaders attach by the handle in their arguments,
 * backends by the one in the catalog, to look.  Works the same with and
 * without preloading.
 *
 * Everything in it is guarded by MigrateShared.mutex, but for the wishes,
 * single words that only the job worker writes.  Nothing in it matters after
 * a crash: the segment is gone with the last process that had it mapped, and
 * dsm_attach() of a stale handle finds nothing.  A process that ends in any
 * orderly way says so here (slot_end).
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "control/control.h"

MigrateShared *migrate_shared = NULL;
int			migrate_my_slot = -1;

/* half of the time that a MigrateWindow is of, ms */
#define WINDOW_HALF 30000

#define MY_SLOT (&migrate_shared->slots[migrate_my_slot])

/*
 * The end of a worker, orderly or by an error: not for kill -9, after which
 * the server starts its memory anew.  A loader leaves its pid, by which the
 * job worker finds the chunk that it may have had.
 */
static void
slot_end(int code, Datum arg)
{
	if (migrate_shared == NULL)
		return;
	if (migrate_my_slot == 0)
	{
		migrate_shared->stop = true;
		SpinLockAcquire(&migrate_shared->mutex);
		migrate_shared->job_worker_pid = 0;
		MY_SLOT->pid = 0;
		SpinLockRelease(&migrate_shared->mutex);
		ConditionVariableBroadcast(&migrate_shared->changed);
		migrate_wake_loaders();
		migrate_wake_pid(migrate_shared->slots[MIGRATE_APPLY_SLOT].pid);
		migrate_wake_pid(migrate_shared->live.reverse_pid);
	}
	else
		migrate_wake_job_worker();
	migrate_shared = NULL;
}

static void
slot_begin(int slot, const char *role)
{
	TimestampTz now = GetCurrentTimestamp();
	MigrateWorkerSlot *s = &migrate_shared->slots[slot];

	SpinLockAcquire(&migrate_shared->mutex);
	memset(s, 0, sizeof(*s));
	s->pid = MyProcPid;
	strlcpy(s->role, role, sizeof(s->role));
	strlcpy(s->phase, "start", sizeof(s->phase));
	s->started = s->changed = now;
	SpinLockRelease(&migrate_shared->mutex);
	migrate_my_slot = slot;
	before_shmem_exit(slot_end, (Datum) 0);
}

/* Job worker: make the segment, which lives as long as somebody has it. */
dsm_handle
migrate_shmem_create(int job_id)
{
	dsm_segment *seg = dsm_create(sizeof(MigrateShared), 0);
	MigrateShared *shared = dsm_segment_address(seg);

	dsm_pin_mapping(seg);
	memset(shared, 0, sizeof(*shared));
	shared->database = MyDatabaseId;
	shared->job_id = job_id;
	SpinLockInit(&shared->mutex);
	ConditionVariableInit(&shared->changed);
	shared->job_worker_pid = MyProcPid;
	shared->buckets.tokens_at = GetCurrentTimestamp();
	shared->chunk_dead_limit = -1;
	pg_write_barrier();
	shared->magic = MIGRATE_SHM_MAGIC;
	migrate_shared = shared;
	slot_begin(0, "job");
	return dsm_segment_handle(seg);
}

static bool
segment_is_of_job(dsm_segment *seg, int job_id)
{
	MigrateShared *shared = dsm_segment_address(seg);

	return dsm_segment_map_length(seg) >= sizeof(MigrateShared) &&
		shared->magic == MIGRATE_SHM_MAGIC &&
		shared->database == MyDatabaseId && shared->job_id == job_id;
}

/* Loader or apply worker: false when the job worker is gone. */
bool
migrate_shmem_attach(dsm_handle handle, int job_id, int slot)
{
	dsm_segment *seg = dsm_attach(handle);

	if (seg == NULL)
		return false;
	dsm_pin_mapping(seg);
	if (!segment_is_of_job(seg, job_id))
		return false;
	migrate_shared = dsm_segment_address(seg);
	slot_begin(slot, slot == MIGRATE_APPLY_SLOT ? "apply" :
			   slot == MIGRATE_REVERSE_SLOT ? "reverse" : "loader");
	return migrate_shared->job_worker_pid != 0;
}

/*
 * Look into the segment of any job.  *seg is what to give back, NULL when it
 * was mapped in this process already (a job worker that runs a query).
 */
MigrateShared *
migrate_shmem_peek(int64 handle, int job_id, dsm_segment **seg)
{
	dsm_segment *found;

	*seg = NULL;
	if (handle <= 0 || handle > PG_UINT32_MAX)
		return NULL;
	found = dsm_find_mapping((dsm_handle) handle);
	if (found == NULL)
	{
		found = dsm_attach((dsm_handle) handle);
		if (found == NULL)
			return NULL;
		*seg = found;
	}
	if (segment_is_of_job(found, job_id))
		return dsm_segment_address(found);
	migrate_shmem_unpeek(*seg);
	*seg = NULL;
	return NULL;
}

void
migrate_shmem_unpeek(dsm_segment *seg)
{
	if (seg)
		dsm_detach(seg);
}

/* Copy into a fixed field, cut at a character. */
void
migrate_clip(char *field, size_t size, const char *text)
{
	int			len = pg_mbcliplen(text, strlen(text), size - 1);

	memcpy(field, text, len);
	field[len] = '\0';
}

/* ----------------------------------------------------------------
 * what a worker says of itself
 * ----------------------------------------------------------------
 */
void
migrate_worker_phase(const char *phase)
{
	TimestampTz now = GetCurrentTimestamp();

	if (migrate_shared == NULL)
		return;
	SpinLockAcquire(&migrate_shared->mutex);
	strlcpy(MY_SLOT->phase, phase, sizeof(MY_SLOT->phase));
	MY_SLOT->changed = now;
	SpinLockRelease(&migrate_shared->mutex);
}

void
migrate_worker_count(int64 rows, int64 bytes, int64 dead)
{
	TimestampTz now = GetCurrentTimestamp();
	MigrateWorkerSlot *s;

	if (migrate_shared == NULL)
		return;
	s = MY_SLOT;
	SpinLockAcquire(&migrate_shared->mutex);
	s->rows += rows;
	s->bytes += bytes;
	s->dead += dead;
	s->chunk_rows += rows;
	s->chunk_bytes += bytes;
	s->chunk_dead += dead;
	s->changed = now;
	SpinLockRelease(&migrate_shared->mutex);
}

/* Rows were read back and are as they were written (verify_writes). */
void
migrate_worker_verified(int64 rows)
{
	if (migrate_shared == NULL || rows == 0)
		return;
	SpinLockAcquire(&migrate_shared->mutex);
	MY_SLOT->verified += rows;
	SpinLockRelease(&migrate_shared->mutex);
}

int
migrate_histogram_bucket(int64 usec)
{
	int			bucket = 0;

	for (int64 limit = 100; usec >= limit && bucket < MIGRATE_HISTOGRAM - 1; limit *= 2)
		bucket++;
	return bucket;
}

/* Forget what is too old; whoever shares the window holds its lock. */
void
migrate_window_turn(MigrateWindow *window, TimestampTz now)
{
	TimestampTz next = TimestampTzPlusMilliseconds(window->since, WINDOW_HALF);

	if (now < next)
		return;
	if (now < TimestampTzPlusMilliseconds(next, WINDOW_HALF))
	{
		window->lag[1] = window->lag[0];
		window->write[1] = window->write[0];
		memset(&window->lag[0], 0, sizeof(MigrateHistogram));
		memset(&window->write[0], 0, sizeof(MigrateHistogram));
		window->since = next;
	}
	else
	{
		memset(window, 0, sizeof(*window));
		window->since = now;
	}
}

void
migrate_copy_batch_took(int64 usec)
{
	if (migrate_shared == NULL)
		return;
	SpinLockAcquire(&migrate_shared->mutex);
	migrate_shared->copy_write.count[migrate_histogram_bucket(usec)]++;
	SpinLockRelease(&migrate_shared->mutex);
}

/* A chunk was claimed. */
void
migrate_slot_chunk(MigrateChunk *chunk)
{
	TimestampTz now = GetCurrentTimestamp();
	MigrateWorkerSlot *s;

	if (migrate_shared == NULL)
		return;
	s = MY_SLOT;
	SpinLockAcquire(&migrate_shared->mutex);
	s->chunk_id = chunk->chunk_id;
	s->source_id = chunk->source_id;
	s->chunk_rows = s->chunk_bytes = s->chunk_dead = 0;
	s->changed = now;
	SpinLockRelease(&migrate_shared->mutex);
}

/* It is done, which ends a row of errors; or it was given up. */
void
migrate_slot_chunk_done(bool success)
{
	TimestampTz now = GetCurrentTimestamp();
	MigrateWorkerSlot *s;

	if (migrate_shared == NULL)
		return;
	s = MY_SLOT;
	SpinLockAcquire(&migrate_shared->mutex);
	if (success)
	{
		s->chunks++;
		s->errors = 0;
		s->error_since = 0;
	}
	s->chunk_id = 0;
	s->source_id = 0;
	s->chunk_rows = s->chunk_bytes = s->chunk_dead = 0;
	s->changed = now;
	SpinLockRelease(&migrate_shared->mutex);
}

/* A step after the copy was claimed. */
void
migrate_slot_step(MigratePostStep *step)
{
	TimestampTz now = GetCurrentTimestamp();
	MigrateWorkerSlot *s;

	if (migrate_shared == NULL)
		return;
	s = MY_SLOT;
	SpinLockAcquire(&migrate_shared->mutex);
	s->step_id = step->step_id;
	s->source_id = step->source_id;
	s->changed = now;
	SpinLockRelease(&migrate_shared->mutex);
}

/*
 * It is over, or (recorded false) what came of it could not be written down.
 * A step that failed counts: it is not tried again.
 */
void
migrate_slot_step_over(bool recorded)
{
	TimestampTz now = GetCurrentTimestamp();
	MigrateWorkerSlot *s;

	if (migrate_shared == NULL)
		return;
	s = MY_SLOT;
	SpinLockAcquire(&migrate_shared->mutex);
	if (recorded)
	{
		s->steps++;
		s->errors = 0;
		s->error_since = 0;
	}
	s->step_id = 0;
	s->source_id = 0;
	s->changed = now;
	SpinLockRelease(&migrate_shared->mutex);
}

/* How many other loaders are at work, and how many of them at steps. */
int
migrate_loaders_busy(int *with_step)
{
	int			busy = 0;

	*with_step = 0;
	if (migrate_shared == NULL)
		return 0;
	SpinLockAcquire(&migrate_shared->mutex);
	for (int i = 1; i <= MIGRATE_MAX_LOADERS; i++)
	{
		MigrateWorkerSlot *s = &migrate_shared->slots[i];

		if (i == migrate_my_slot || s->pid == 0)
			continue;
		if (s->step_id != 0)
			(*with_step)++;
		if (s->step_id != 0 || s->chunk_id != 0)
			busy++;
	}
	SpinLockRelease(&migrate_shared->mutex);
	return busy;
}

/* Walks all memory contexts: between chunks, not for every row. */
void
migrate_slot_memory(void)
{
	Size		memory;

	if (migrate_shared == NULL)
		return;
	memory = MemoryContextMemAllocated(TopMemoryContext, true);
	SpinLockAcquire(&migrate_shared->mutex);
	MY_SLOT->memory = memory;
	SpinLockRelease(&migrate_shared->mutex);
}

/* ----------------------------------------------------------------
 * wake-ups; a pid that is used anew is woken in vain
 * ----------------------------------------------------------------
 */
void
migrate_wake_pid(int pid)
{
	PGPROC	   *proc = pid > 0 ? BackendPidGetProc(pid) : NULL;

	if (proc)
		SetLatch(&proc->procLatch);
}

void
migrate_wake_job_worker(void)
{
	if (migrate_shared)
		migrate_wake_pid(migrate_shared->job_worker_pid);
}

void
migrate_wake_loaders(void)
{
	for (int i = 1; i <= MIGRATE_MAX_LOADERS; i++)
		migrate_wake_pid(migrate_shared->slots[i].pid);
}

/* ----------------------------------------------------------------
 * migrate._live_workers()
 * ----------------------------------------------------------------
 */
#define LIVE_COLUMNS 24

static Datum
timestamp_or_null(TimestampTz t, bool *isnull)
{
	*isnull = (t == 0);
	return TimestampTzGetDatum(t);
}

static Datum
text_or_null(const char *s, bool *isnull)
{
	*isnull = (s[0] == '\0');
	return *isnull ? (Datum) 0 : CStringGetTextDatum(s);
}

/* One worker's row from a copy of its slot. */
static void
put_slot(ReturnSetInfo *rsinfo, int job_id, int slot, MigrateWorkerSlot *s,
		 const char *throttle)
{
	Datum		values[LIVE_COLUMNS];
	bool		nulls[LIVE_COLUMNS] = {false};
	int			i = 0;

	values[i++] = Int32GetDatum(job_id);
	values[i++] = Int32GetDatum(slot);
	values[i++] = Int32GetDatum(s->pid);
	values[i++] = CStringGetTextDatum(s->role);
	values[i++] = CStringGetTextDatum(s->phase);
	nulls[i] = (s->chunk_id == 0);
	values[i++] = Int64GetDatum(s->chunk_id);
	nulls[i] = (s->source_id == 0);
	values[i++] = Int32GetDatum(s->source_id);
	values[i++] = Int64GetDatum(s->rows);
	values[i++] = Int64GetDatum(s->bytes);
	values[i++] = Int64GetDatum(s->chunk_rows);
	values[i++] = Int64GetDatum(s->chunk_bytes);
	values[i++] = Int64GetDatum(s->chunks);
	values[i++] = Int64GetDatum(s->dead);
	values[i++] = Int64GetDatum((int64) s->memory);
	values[i] = timestamp_or_null(s->started, &nulls[i]);
	i++;
	values[i] = timestamp_or_null(s->changed, &nulls[i]);
	i++;
	values[i++] = Int32GetDatum(s->errors);
	values[i] = timestamp_or_null(s->error_since, &nulls[i]);
	i++;
	values[i] = text_or_null(s->sqlstate, &nulls[i]);
	i++;
	values[i] = text_or_null(s->last_error, &nulls[i]);
	i++;
	values[i] = text_or_null(throttle, &nulls[i]);
	i++;
	nulls[i] = (s->step_id == 0);
	values[i++] = Int32GetDatum(s->step_id);
	values[i++] = Int64GetDatum(s->steps);
	values[i++] = Int64GetDatum(s->verified);
	Assert(i == LIVE_COLUMNS);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static void
put_job(ReturnSetInfo *rsinfo, int job_id, int64 handle)
{
	dsm_segment *seg;
	MigrateShared *shared = migrate_shmem_peek(handle, job_id, &seg);
	char		throttle[sizeof(shared->throttle)];

	if (shared == NULL)
		return;
	for (int i = 0; i <= MIGRATE_REVERSE_SLOT && shared->job_worker_pid != 0; i++)
	{
		MigrateWorkerSlot s;

		SpinLockAcquire(&shared->mutex);
		s = shared->slots[i];
		strlcpy(throttle, shared->hold_reason[0] ? shared->hold_reason : shared->throttle,
				sizeof(throttle));
		SpinLockRelease(&shared->mutex);
		if (s.pid != 0)
			put_slot(rsinfo, job_id, i, &s, throttle);
	}
	migrate_shmem_unpeek(seg);
}

PG_FUNCTION_INFO_V1(migrate_live_workers);
PGDLLEXPORT Datum
migrate_live_workers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int		   *ids;
	int64	   *handles;
	uint64		n;

	InitMaterializedSRF(fcinfo, 0);
	migrate_spi_begin();
	migrate_spi_exec("SELECT job_id, shm_handle FROM migrate.job WHERE shm_handle <> 0",
					 0, NULL, NULL, NULL, SPI_OK_SELECT);
	n = SPI_processed;
	ids = SPI_palloc(sizeof(int) * (n + 1));
	handles = SPI_palloc(sizeof(int64) * (n + 1));
	for (uint64 i = 0; i < n; i++)
	{
		ids[i] = (int) migrate_spi_int64(i, 0, 0);
		handles[i] = migrate_spi_int64(i, 1, 0);
	}
	migrate_spi_end();
	for (uint64 i = 0; i < n; i++)
		put_job(rsinfo, ids[i], handles[i]);
	return (Datum) 0;
}
