/*-------------------------------------------------------------------------
 *
 * live_shm.c
 *	  What live jobs and streams say of themselves in shared memory, as rows for
 *	  the views.
 *
 * Runs in backends, and in the job worker (lag_watch.c); reads only.  A job or
 * stream without a living worker gives no row.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

#include "control/control.h"
#include "extract/stream.h"

#define JOB_COLUMNS 17
#define STREAM_COLUMNS 19
#define BACK_COLUMNS 7

/* a row as it is put together */
typedef struct Row
{
	Datum		values[STREAM_COLUMNS];
	bool		nulls[STREAM_COLUMNS];
	int			n;
} Row;

static void
add(Row *row, Datum value)
{
	row->nulls[row->n] = false;
	row->values[row->n++] = value;
}

static void
add_null(Row *row)
{
	row->nulls[row->n++] = true;
}

static void
add_lsn(Row *row, XLogRecPtr lsn)
{
	if (lsn == InvalidXLogRecPtr)
		add_null(row);
	else
		add(row, LSNGetDatum(lsn));
}

static void
add_time(Row *row, TimestampTz t)
{
	if (t == 0)
		add_null(row);
	else
		add(row, TimestampTzGetDatum(t));
}

static void
add_text(Row *row, const char *s)
{
	if (s[0] == '\0')
		add_null(row);
	else
		add(row, CStringGetTextDatum(s));
}

static void
add_histogram(Row *row, MigrateHistogram *h)
{
	Datum		elems[MIGRATE_HISTOGRAM];

	for (int i = 0; i < MIGRATE_HISTOGRAM; i++)
		elems[i] = Int64GetDatum(h->count[i]);
	add(row, PointerGetDatum(construct_array(elems, MIGRATE_HISTOGRAM, INT8OID,
											 sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE)));
}

/* Both halves of a window. */
static void
add_halves(Row *row, MigrateHistogram *half)
{
	MigrateHistogram sum;

	for (int i = 0; i < MIGRATE_HISTOGRAM; i++)
		sum.count[i] = half[0].count[i] + half[1].count[i];
	add_histogram(row, &sum);
}

/* Ids and handles of a query with these two columns, in the current context. */
static uint64
ids_and_handles(const char *sql, int **ids, int64 **handles)
{
	MemoryContext mcxt = CurrentMemoryContext;
	uint64		n;

	migrate_spi_begin();
	migrate_spi_exec(sql, 0, NULL, NULL, NULL, SPI_OK_SELECT);
	n = SPI_processed;
	*ids = MemoryContextAlloc(mcxt, sizeof(int) * (n + 1));
	*handles = MemoryContextAlloc(mcxt, sizeof(int64) * (n + 1));
	for (uint64 i = 0; i < n; i++)
	{
		(*ids)[i] = (int) migrate_spi_int64(i, 0, 0);
		(*handles)[i] = migrate_spi_int64(i, 1, 0);
	}
	migrate_spi_end();
	return n;
}

/* A row for each job that has shared memory, by "put". */
static Datum
put_jobs(FunctionCallInfo fcinfo, void (*put) (ReturnSetInfo *rsinfo, int job_id, int64 handle))
{
	int		   *ids;
	int64	   *handles;
	uint64		n;

	InitMaterializedSRF(fcinfo, 0);
	n = ids_and_handles("SELECT job_id, shm_handle FROM migrate.job WHERE shm_handle <> 0",
						&ids, &handles);
	for (uint64 i = 0; i < n; i++)
		put((ReturnSetInfo *) fcinfo->resultinfo, ids[i], handles[i]);
	return (Datum) 0;
}

/* ----------------------------------------------------------------
 * migrate._live_jobs()
 * ----------------------------------------------------------------
 */
static void
put_job(ReturnSetInfo *rsinfo, int job_id, int64 handle)
{
	dsm_segment *seg;
	MigrateShared *shared = migrate_shmem_peek(handle, job_id, &seg);
	MigrateLive live;
	MigrateHistogram copy;
	TimestampTz stuck_since,
				caught_up_at,
				started;
	Row			row = {.n = 0};
	bool		alive;

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->mutex);
	alive = shared->job_worker_pid != 0;
	live = shared->live;
	copy = shared->copy_write;
	stuck_since = shared->stuck_since;
	caught_up_at = shared->caught_up_at;
	started = shared->slots[0].started;
	SpinLockRelease(&shared->mutex);
	migrate_shmem_unpeek(seg);
	if (!alive)
		return;
	add(&row, Int32GetDatum(job_id));
	if (live.apply_pid != 0)
		add(&row, Int32GetDatum(live.apply_pid));
	else
		add_null(&row);
	add_lsn(&row, live.applied_lsn);
	add_time(&row, live.commit_at);
	add_time(&row, live.applied_at);
	add(&row, Int64GetDatum(live.transactions));
	add(&row, Int64GetDatum(live.changes));
	add(&row, Int64GetDatum(live.batches));
	add(&row, Float8GetDatum(live.apply_pid ? live.changes_per_second : 0));
	add(&row, BoolGetDatum(live.idle));
	add(&row, BoolGetDatum(live.hold || live.held));
	migrate_window_turn(&live.window, GetCurrentTimestamp());
	add_halves(&row, live.window.lag);
	add_halves(&row, live.window.write);
	add_histogram(&row, &copy);
	add_time(&row, stuck_since);
	add_time(&row, caught_up_at);
	add_time(&row, started);
	Assert(row.n == JOB_COLUMNS);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row.values, row.nulls);
}

PG_FUNCTION_INFO_V1(migrate_live_jobs);
PGDLLEXPORT Datum
migrate_live_jobs(PG_FUNCTION_ARGS)
{
	return put_jobs(fcinfo, put_job);
}

/* ----------------------------------------------------------------
 * migrate._live_ways_back()
 * ----------------------------------------------------------------
 */
static void
put_way_back(ReturnSetInfo *rsinfo, int job_id, int64 handle)
{
	dsm_segment *seg;
	MigrateShared *shared = migrate_shmem_peek(handle, job_id, &seg);
	MigrateLive live;
	Row			row = {.n = 0};
	bool		alive;

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->mutex);
	alive = shared->job_worker_pid != 0;
	live = shared->live;
	SpinLockRelease(&shared->mutex);
	migrate_shmem_unpeek(seg);
	if (!alive || live.reverse_lsn == InvalidXLogRecPtr)
		return;
	add(&row, Int32GetDatum(job_id));
	if (live.reverse_pid != 0)
		add(&row, Int32GetDatum(live.reverse_pid));
	else
		add_null(&row);
	add_lsn(&row, live.reverse_lsn);
	add_time(&row, live.reverse_commit_at);
	add_time(&row, live.reverse_caught_up_at);
	add(&row, Int64GetDatum(live.reverse_changes));
	add(&row, Int64GetDatum(live.reverse_dead));
	Assert(row.n == BACK_COLUMNS);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row.values, row.nulls);
}

PG_FUNCTION_INFO_V1(migrate_live_ways_back);
PGDLLEXPORT Datum
migrate_live_ways_back(PG_FUNCTION_ARGS)
{
	return put_jobs(fcinfo, put_way_back);
}

/* ----------------------------------------------------------------
 * migrate._live_streams()
 * ----------------------------------------------------------------
 */
static void
put_stream(ReturnSetInfo *rsinfo, int stream_id, int64 handle)
{
	dsm_segment *seg = NULL;
	MigrateStreamShared *shared = migrate_stream_shmem_attach(handle, stream_id, &seg);
	MigrateStreamShared s;
	Row			row = {.n = 0};

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->mutex);
	memcpy(&s, shared, sizeof(s));
	SpinLockRelease(&shared->mutex);
	if (seg)
		dsm_detach(seg);
	if (s.capture_pid == 0)
		return;
	add(&row, Int32GetDatum(stream_id));
	add(&row, Int32GetDatum(s.capture_pid));
	add_text(&row, s.phase);
	add_lsn(&row, s.source_lsn);
	add_time(&row, s.source_at);
	add_lsn(&row, s.received_lsn);
	add_lsn(&row, s.spooled_lsn);
	add_lsn(&row, s.confirmed_lsn);
	add_time(&row, s.commit_at);
	add(&row, Int64GetDatum(s.transactions));
	add(&row, Int64GetDatum(s.changes));
	add(&row, Int64GetDatum(s.bytes));
	add(&row, Int64GetDatum(s.spool_bytes));
	add(&row, BoolGetDatum(s.full));
	add(&row, Float8GetDatum(s.changes_per_second));
	add(&row, Int64GetDatum((int64) s.memory));
	add_time(&row, s.started);
	add_text(&row, s.sqlstate);
	add_text(&row, s.last_error);
	Assert(row.n == STREAM_COLUMNS);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row.values, row.nulls);
}

PG_FUNCTION_INFO_V1(migrate_live_streams);
PGDLLEXPORT Datum
migrate_live_streams(PG_FUNCTION_ARGS)
{
	int		   *ids;
	int64	   *handles;
	uint64		n;

	InitMaterializedSRF(fcinfo, 0);
	n = ids_and_handles("SELECT stream_id, shm_handle FROM migrate.stream WHERE shm_handle <> 0",
						&ids, &handles);
	for (uint64 i = 0; i < n; i++)
		put_stream((ReturnSetInfo *) fcinfo->resultinfo, ids[i], handles[i]);
	return (Datum) 0;
}
