/*-------------------------------------------------------------------------
 *
 * chunk.c
 *	  The whole of one chunk: read a range, map and write it batch by batch,
 *	  commit rows and checkpoint together.
 *
 * Runs in loaders, outside of a transaction.  One transaction here and one on
 * the source:
 *
 *	  begin here -> begin on the source (P1) -> read, map, write
 *	  -> what was read is durable there (P4) -> checkpoint -> commit
 *
 * Below the transaction, a subtransaction covers the reading of the range, and
 * one inside it each batch.  When a row cannot be read, that of the range is
 * rolled back and the range is halved, down to the row:
 *
 *	  range fails reading -> rolled back -> two halves, each the same way
 *						  -> one row: dead letter, stage 'read'
 *						  -> rows that nothing tells apart: error
 *
 * A crash leaves the chunk 'running', without any of its rows.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

/* the ratio of dead letters is judged after so many rows */
#define RATIO_AFTER_ROWS 10000

/* dead letters above the limit that one chunk may still record */
#define CHUNK_GRACE 1000

typedef struct ChunkState
{
	MigrateJob *job;
	MigrateConn *conn;
	MigrateChunk *chunk;
	MigrateSource *src;
	MigrateSourceTxn txn;
	MigrateLoadContext ctx;
	MemoryContext batch_cxt;	/* reset after each batch */
	List	   *mappings;
	MigrateWriter **writers;	/* one a mapping */
	MigrateCounts *counts;		/* one a mapping */
	int64		rows;
	int64		bytes;
	bool		reading;		/* an error now is one of reading */
} ChunkState;

/* Why the chunk was given up; set with the error. */
static char *budget_reason = NULL;
static char *drift_reason = NULL;

static int64
dead_rows(ChunkState *state)
{
	int64		dead = 0;

	for (int i = 0; i < list_length(state->mappings); i++)
		dead += state->counts[i].dead;
	return dead;
}

/*
 * A chunk full of bad rows is given up before it records them all.  Nothing
 * of it stays.
 */
static void
check_chunk_budget(ChunkState *state)
{
	int64		limit = state->job->max_dead_letters;
	int64		dead = dead_rows(state);
	char	   *reason;

	if (limit >= 0)
		limit += CHUNK_GRACE;
	if (migrate_shared && migrate_shared->chunk_dead_limit >= 0)
		limit = migrate_shared->chunk_dead_limit;
	if (limit < 0 || dead <= limit)
		return;

	reason = psprintf("max_dead_letters: %lld in one chunk of %s",
					  (long long) dead, state->src->label);
	budget_reason = MemoryContextStrdup(TopMemoryContext, reason);
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("chunk %lld was given up: %s",
					(long long) state->chunk->chunk_id, reason),
			 errhint("Correct the mapping, or raise max_dead_letters, then migrate_resume.")));
}

/* A full batch through every mapping. */
static void
flush_batch(ChunkState *state, MigrateBatch *batch)
{
	MemoryContext oldcxt = MemoryContextSwitchTo(state->batch_cxt);
	int64		dead = dead_rows(state);
	int64		rows = batch->nrows;
	int64		bytes = batch->bytes;

	if (rows > 0)
	{
		migrate_worker_phase("write");
		for (int i = 0; i < list_length(state->mappings); i++)
			migrate_load_batch(&state->ctx, state->writers[i], batch,
							   &state->counts[i]);
		state->rows += rows;
		state->bytes += bytes;
		migrate_worker_count(rows, bytes, dead_rows(state) - dead);
		migrate_fault("chunk-batch");
		check_chunk_budget(state);
		migrate_throttle(rows, bytes);
		migrate_worker_phase("read");
	}
	CHECK_FOR_INTERRUPTS();
	migrate_batch_reset(batch);
	MemoryContextSwitchTo(oldcxt);
	MemoryContextReset(state->batch_cxt);
}

/* Read a range and load it.  *reader is set as soon as it must be ended. */
static void
read_rows(ChunkState *state, MigrateRange *range, MigrateReader **reader)
{
	int			n = Max(state->src->ncolumns, 1);
	Datum	   *values = palloc0(n * sizeof(Datum));
	bool	   *nulls = palloc0(n * sizeof(bool));
	MigrateBatch *batch = migrate_batch_create(state->src);
	int64		bytes;

	/* in memory up to twice what a batch should be, beyond that on disk */
	batch->max_kb = Max(64, Min(2 * state->job->batch_bytes / 1024, MAX_KILOBYTES));
	if (list_length(state->mappings) == 1 && migrate_fresh_takes_tuples(state->writers[0]))
		migrate_batch_straight(batch, state->writers[0]->map->straight);
	migrate_worker_phase("read");
	state->reading = true;
	*reader = migrate_reader_open(state->conn, state->src, range,
								  state->job->fetch_size);
	while (migrate_reader_next(*reader, values, nulls, &bytes))
	{
		migrate_batch_add(batch, values, nulls, bytes);
		if (batch->nrows >= state->job->batch_rows ||
			batch->bytes >= state->job->batch_bytes)
		{
			state->reading = false;
			flush_batch(state, batch);
			state->reading = true;
		}
	}
	migrate_reader_close(*reader);
	*reader = NULL;
	state->reading = false;
	flush_batch(state, batch);
	migrate_batch_free(batch);
}

/* One row that cannot be read is a dead letter of every mapping. */
static void
bury_range(ChunkState *state, MigrateRange *range, ErrorData *edata)
{
	char	   *key = NULL;
	char	   *raw = NULL;

	migrate_range_raw(state->conn, state->src, range, &key, &raw);
	for (int i = 0; i < list_length(state->mappings); i++)
	{
		MigrateMapping *map = list_nth(state->mappings, i);

		migrate_dead_letter_insert(&state->ctx, map->mapping_id, "read", key, NULL,
								   raw, edata, map->version);
		state->counts[i].read++;
		state->counts[i].dead++;
	}
	state->rows++;
	migrate_worker_count(1, 0, list_length(state->mappings));
	check_chunk_budget(state);
}

/*
 * Take the counts back to what they were before a range that was rolled back.
 */
static void
restore_counts(ChunkState *state, MigrateCounts *counts, int64 rows, int64 bytes)
{
	int64		dead = dead_rows(state);
	int			n = list_length(state->mappings);

	if (n > 0)
		memcpy(state->counts, counts, n * sizeof(MigrateCounts));
	migrate_worker_count(rows - state->rows, bytes - state->bytes,
						 dead_rows(state) - dead);
	state->rows = rows;
	state->bytes = bytes;
}

/*
 * Read and load a range in a subtransaction.  NULL, or the error of a row that
 * cannot be read, after which nothing of the range is left.
 */
static ErrorData *
try_range(ChunkState *state, MigrateRange *range)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;
	MemoryContext range_cxt = AllocSetContextCreate(oldcxt, "migrate range",
													ALLOCSET_DEFAULT_SIZES);
	int			n = list_length(state->mappings);
	MigrateCounts *counts = palloc0(Max(n, 1) * sizeof(MigrateCounts));
	int64		rows = state->rows;
	int64		bytes = state->bytes;
	MigrateReader *reader = NULL;
	MigrateReader *volatile *reader_p = (MigrateReader *volatile *) &reader;
	ErrorData  *volatile edata = NULL;

	if (n > 0)
		memcpy(counts, state->counts, n * sizeof(MigrateCounts));
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(range_cxt);
	PG_TRY();
	{
		read_rows(state, range, &reader);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(oldcxt);
		CurrentResourceOwner = oldowner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(oldcxt);
		if (!state->reading)
			PG_RE_THROW();
		edata = CopyErrorData();
		if (!migrate_reader_error_is_of_row(*reader_p, edata))
			PG_RE_THROW();
		FlushErrorState();
		state->reading = false;
		if (*reader_p)
			migrate_reader_abort(*reader_p);
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(oldcxt);
		CurrentResourceOwner = oldowner;
		MemoryContextReset(state->batch_cxt);
		restore_counts(state, counts, rows, bytes);
	}
	PG_END_TRY();
	MemoryContextDelete(range_cxt);
	return edata;
}

/* A range, halved where it cannot be read. */
static void
load_range(ChunkState *state, MigrateRange *range)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate load range",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);
	MigrateRange first;
	MigrateRange second;
	ErrorData  *edata;

	CHECK_FOR_INTERRUPTS();
	check_stack_depth();
	edata = try_range(state, range);
	if (edata == NULL)
		 /* all of it is loaded */ ;
	else if (migrate_range_halve(state->conn, state->src, range, &first, &second))
	{
		load_range(state, &first);
		load_range(state, &second);
	}
	else if (migrate_range_is_row(state->conn, state->src, range))
		bury_range(state, range, edata);
	else
	{
		/* nothing tells its rows apart, and the good ones are not to go too */
		if (edata->hint == NULL)
			edata->hint = pstrdup("Rows that cannot be read are set aside one by one only where ranges of blocks or of a key tell them apart. Mend the row, or declare its column as text.");
		ReThrowError(edata);
	}
	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(mcxt);
}

/*
 * Is the whole job over its limit?  The reason, or NULL.  Letters of chunks
 * that others have not committed yet are missing; they ask for themselves.
 */
static char *
job_over_budget(MigrateJob *job)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(job->job_id)};
	int64		dead;
	int64		rows;

	migrate_spi_exec("SELECT (SELECT pg_catalog.count(*) FROM migrate.dead_letter d "
					 "WHERE d.job_id = $1 AND d.state = 'open'), "
					 "(SELECT pg_catalog.sum(c.rows_read)::bigint "
					 "FROM migrate.chunk_mapping c WHERE c.job_id = $1)",
					 1, types, values, NULL, SPI_OK_SELECT);
	dead = migrate_spi_int64(0, 0, 0);
	rows = migrate_spi_int64(0, 1, 0);
	if (job->max_dead_letters >= 0 && dead > job->max_dead_letters)
		return psprintf("max_dead_letters: %lld > %d", (long long) dead,
						job->max_dead_letters);
	if (rows >= RATIO_AFTER_ROWS && job->max_dead_ratio >= 0 &&
		dead > rows * job->max_dead_ratio)
		return psprintf("max_dead_ratio: %lld of %lld rows > %g", (long long) dead,
						(long long) rows, job->max_dead_ratio);
	return NULL;
}

/* The job shall pause, unless it was asked to do something else meanwhile. */
static void
pause_job(MigrateJob *job, const char *reason)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job->job_id), CStringGetTextDatum(reason)};

	migrate_spi_exec("UPDATE migrate.job SET wanted = 'pause', pause_reason = $2 "
					 "WHERE job_id = $1 AND wanted = 'run'",
					 2, types, values, NULL, SPI_OK_UPDATE);
	if (SPI_processed > 0)
		migrate_event(job->job_id, "alert", "budget",
					  "job \"%s\" pauses: too many dead letters, %s",
					  job->name, reason);
}

/* The same after the chunk was given up and rolled back, and tell the others. */
static void
pause_for_chunk(MigrateJob *job, const char *reason)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	pause_job(job, reason);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	migrate_give_up("budget", reason);
}

/* P1: the table was rewritten under the plan; it is planned anew. */
static void
ask_for_replan(ChunkState *state)
{
	Oid			types[] = {INT4OID, INT4OID, INT8OID, INT4OID};
	Datum		values[] = {Int32GetDatum(state->chunk->source_id),
		Int32GetDatum(state->chunk->plan_no),
		Int64GetDatum(state->chunk->chunk_id),
	Int32GetDatum(state->chunk->attempt)};

	SPI_connect();
	migrate_spi_exec("UPDATE migrate.source_table SET state = 'replan' "
					 "WHERE source_id = $1 AND plan_no = $2 AND state <> 'replan'",
					 2, types, values, NULL, SPI_OK_UPDATE);
	if (SPI_processed > 0)
		migrate_event(state->job->job_id, "warning", "replan",
					  "table %s was rewritten on the source, and is planned anew",
					  state->src->label);
	migrate_spi_exec("UPDATE migrate.chunk SET state = 'todo', worker_pid = NULL "
					 "WHERE chunk_id = $3 AND attempt = $4 AND state = 'running' "
					 "AND source_id = $1 AND plan_no = $2",
					 4, types, values, NULL, SPI_OK_UPDATE);
	SPI_finish();
}

/*
 * P2: the table can not be read as planned any more.  Nothing of the chunk
 * stays; the job pauses, until the DBA has said what to do.
 */
static void
give_up_for_drift(ChunkState *state)
{
	drift_reason = MemoryContextStrdup(TopMemoryContext, state->txn.drift);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("chunk %lld was given up: %s",
					(long long) state->chunk->chunk_id, state->txn.drift)));
}

/* The same after the chunk was rolled back; no error of a loader. */
static void
pause_for_drift(MigrateJob *job, MigrateChunk *chunk, const char *reason)
{
	StartTransactionCommand();
	migrate_drift_pause(job, list_make1_int(chunk->source_id), reason);
	CommitTransactionCommand();
	migrate_abandoned = true;
}

/*
 * Constraints that are deferred would fail at the commit, and with them the
 * whole chunk instead of a row.
 */
static void
set_constraints_immediate(void)
{
	SPI_connect();
	if (SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) < 0)
		elog(ERROR, "SET CONSTRAINTS failed");
	SPI_finish();
}

/* Mappings are compiled and targets opened before any subtransaction. */
static void
open_writers(ChunkState *state)
{
	int			n;

	state->mappings = migrate_mappings_of_source(state->src->source_id);
	n = list_length(state->mappings);
	state->counts = palloc0(Max(n, 1) * sizeof(MigrateCounts));
	state->writers = palloc0(Max(n, 1) * sizeof(MigrateWriter *));
	for (int i = 0; i < n; i++)
	{
		MigrateMapping *map = list_nth(state->mappings, i);

		migrate_mapping_compile(map, state->src);

		/*
		 * No row of this chunk is there yet: its rows commit with its 'done',
		 * and before a table is planned anew its target is emptied.
		 */
		state->writers[i] = migrate_writer_open(map, state->src, true);
	}
}

/* In the transaction: everything between its begin and its commit. */
static bool
load_chunk(ChunkState *state)
{
	MigrateJob *job = state->job;
	MigrateChunk *chunk = state->chunk;
	char	   *reason;

	state->src = migrate_source_load(chunk->source_id);
	if (state->conn)
		migrate_source_begin(state->conn, state->src, &chunk->range, &state->txn);
	if (state->txn.drift)
		give_up_for_drift(state);
	if (state->txn.rewritten)
	{
		ask_for_replan(state);
		return false;
	}
	set_constraints_immediate();
	open_writers(state);
	load_range(state, &chunk->range);
	for (int i = 0; i < list_length(state->mappings); i++)
		migrate_writer_close(state->writers[i]);

	migrate_worker_phase("commit");
	if (state->conn)
		migrate_source_wait_durable(state->conn, &state->txn);
	migrate_checkpoint(job, chunk, &state->txn, state->rows, state->bytes,
					   state->mappings, state->counts);
	if (dead_rows(state) > 0)
	{
		SPI_connect();
		reason = job_over_budget(job);
		if (reason)
			pause_job(job, reason);
		SPI_finish();
	}
	migrate_fault("before-commit");
	return true;
}

/*
 * Load a chunk.  Called outside a transaction; commits rows and checkpoint
 * together.  Returns false when the chunk was given up because the table was
 * rewritten (P1).  Throws with nothing loaded; when that is for too many dead
 * letters, or since the table has changed (P2), the job's pause is committed
 * before.
 */
bool
migrate_chunk_load(MigrateJob *job, MigrateConn *conn, MigrateChunk *chunk)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	volatile bool loaded = false;

	budget_reason = drift_reason = NULL;
	PG_TRY();
	{
		MemoryContext mcxt;
		ChunkState	state = {.job = job,.conn = conn,.chunk = chunk};

		StartTransactionCommand();
		/* a batch must see what other loaders have committed */
		XactIsoLevel = XACT_READ_COMMITTED;
		PushActiveSnapshot(GetTransactionSnapshot());
		mcxt = AllocSetContextCreate(TopTransactionContext, "migrate chunk",
									 ALLOCSET_DEFAULT_SIZES);
		MemoryContextSwitchTo(mcxt);
		state.batch_cxt = AllocSetContextCreate(mcxt, "migrate chunk batch",
												ALLOCSET_DEFAULT_SIZES);
		state.ctx.job = job;
		state.ctx.chunk_id = chunk->chunk_id;
		state.ctx.stage = "write";
		loaded = load_chunk(&state);
		PopActiveSnapshot();
		CommitTransactionCommand();
		MemoryContextSwitchTo(oldcxt);
	}
	PG_CATCH();
	{
		ErrorData  *edata;
		char	   *reason = budget_reason ? budget_reason : drift_reason;
		bool		drift = drift_reason != NULL;

		if (reason == NULL)
			PG_RE_THROW();
		MemoryContextSwitchTo(oldcxt);
		edata = CopyErrorData();
		FlushErrorState();
		budget_reason = drift_reason = NULL;
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(oldcxt);
		if (drift)
			pause_for_drift(job, chunk, reason);
		else
			pause_for_chunk(job, reason);
		MemoryContextSwitchTo(oldcxt);
		pfree(reason);
		ReThrowError(edata);
	}
	PG_END_TRY();
	if (loaded)
		migrate_fault("after-commit");
	if (conn)
		migrate_source_end(conn);
	return loaded;
}
