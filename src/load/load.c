/*-------------------------------------------------------------------------
 *
 * load.c
 *	  A batch through one mapping, with the rows that fail set aside (P17).
 *
 * Runs in loaders and in the session that replays.  A batch is tried in one
 * internal subtransaction:
 *
 *	  try -> released
 *	  try -> rolled back -> fault of a row  -> halves, down to the row
 *										   -> dead letter
 *						 -> anything else   -> thrown
 *
 * Dead letters are written after the rollback, in the enclosing transaction,
 * so that they commit with the rows around them.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

typedef struct LoadState
{
	MigrateLoadContext *ctx;
	MigrateWriter *writer;
	MigrateCounts *counts;
} LoadState;

/*
 * Map and write in a subtransaction.  NULL when it went well, else the error,
 * in the current memory context, and *writing says which half it came from.
 */
static ErrorData *
try_batch(LoadState *state, MigrateBatch *batch, MigrateTally *tally, bool *writing)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;
	MemoryContext run_cxt = AllocSetContextCreate(oldcxt, "migrate batch run",
												  ALLOCSET_DEFAULT_SIZES);
	ErrorData  *volatile edata = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(run_cxt);
	PG_TRY();
	{
		migrate_writer_run(state->writer, batch, tally);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(oldcxt);
		CurrentResourceOwner = oldowner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(oldcxt);
		edata = CopyErrorData();
		FlushErrorState();
		*writing = migrate_writing;
		migrate_writing = false;
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(oldcxt);
		CurrentResourceOwner = oldowner;
		migrate_writer_abort(state->writer);
	}
	PG_END_TRY();
	MemoryContextDelete(run_cxt);
	return edata;
}

/* A try that went well: conservation, then the counts. */
static void
count_batch(LoadState *state, MigrateTally *tally)
{
	MigrateMapping *map = state->writer->map;
	int64		left_out = tally->nrows - tally->mapped;

	if (left_out > 0 && !map->filtered && !map->many)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("the mapping to %s gave %lld of %lld rows, and has no filter",
						map->target_name, (long long) tally->mapped,
						(long long) tally->nrows)));
	state->counts->read += tally->nrows;
	state->counts->mapped += tally->mapped;
	state->counts->filtered += left_out;
	state->counts->written += tally->written;
}

/* A row of the batch becomes a dead letter. */
static void
bury_row(LoadState *state, MigrateBatch *batch, int64 row, ErrorData *edata,
		 bool writing)
{
	char	   *row_json;
	char	   *key_json;

	migrate_batch_row_json(batch, row, &row_json, &key_json);
	migrate_dead_letter_insert(state->ctx, state->writer->map->mapping_id,
							   !writing ? "map" :
							   state->ctx->stage ? state->ctx->stage : "write",
							   key_json, row_json, NULL, edata,
							   state->writer->map->version);
	state->counts->read++;
	state->counts->dead++;
}

static void load_rows(LoadState *state, MigrateBatch *batch);

/* Rows [lo, hi) of a batch that failed as a whole. */
static void
load_slice(LoadState *state, MigrateBatch *batch, int64 lo, int64 hi)
{
	MigrateBatch *slice;

	if (lo >= hi)
		return;
	slice = migrate_batch_slice(batch, lo, hi);
	load_rows(state, slice);
	migrate_batch_free(slice);
}

/* Set the named rows aside, and load those between them. */
static void
load_around(LoadState *state, MigrateBatch *batch, int64 *rows, int nrows,
			ErrorData *edata)
{
	int64		next = 0;

	for (int i = 0; i < nrows; i++)
	{
		load_slice(state, batch, next, rows[i]);
		bury_row(state, batch, rows[i], edata, true);
		next = rows[i] + 1;
	}
	load_slice(state, batch, next, batch->nrows);
}

/* Try, else split. */
static void
load_rows(LoadState *state, MigrateBatch *batch)
{
	MemoryContext mcxt;
	MemoryContext oldcxt;
	MigrateTally tally;
	ErrorData  *edata;
	bool		writing = false;
	int64	   *doubles = NULL;

	CHECK_FOR_INTERRUPTS();
	check_stack_depth();
	mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate load",
								 ALLOCSET_SMALL_SIZES);
	oldcxt = MemoryContextSwitchTo(mcxt);
	edata = try_batch(state, batch, &tally, &writing);
	if (edata == NULL)
		count_batch(state, &tally);
	else if (!migrate_error_is_of_row(edata->sqlerrcode))
		ReThrowError(edata);
	else if ((doubles = state->writer->doubles) != NULL)
	{
		int			ndoubles = state->writer->ndoubles;

		/* loading what is between them uses these fields again */
		state->writer->doubles = NULL;
		load_around(state, batch, doubles, ndoubles, edata);
		pfree(doubles);
	}
	else if (batch->nrows == 1)
		bury_row(state, batch, 0, edata, writing);
	else
	{
		load_slice(state, batch, 0, batch->nrows / 2);
		load_slice(state, batch, batch->nrows / 2, batch->nrows);
	}
	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(mcxt);
}

/*
 * Map and write a batch; rows that cannot be become dead letters.  Adds to
 * counts.  Errors that are no row's fault are thrown, with nothing of the
 * failing try left.
 */
void
migrate_load_batch(MigrateLoadContext *ctx, MigrateWriter *writer,
				   MigrateBatch *batch, MigrateCounts *counts)
{
	LoadState	state = {ctx, writer, counts};

	if (batch->nrows > 0)
		load_rows(&state, batch);
}
