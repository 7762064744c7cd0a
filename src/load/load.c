/*-------------------------------------------------------------------------
 *
 * load.c
 *	  A batch through one mapping into its target, bad rows set aside.
 *
 * The whole batch is one subtransaction (P17).  When it fails by the fault of
 * a row, its halves are tried, from the held rows, down to the row, which
 * becomes a dead letter.  So a batch may have rows that fail in different
 * ways, each with its own error.  An error that is no row's fault, a cancelled
 * statement included, is thrown on.
 *
 * An attempt is mapping and writing at once: rows stream from the one into
 * the other.  "stage" says which of them an error came from.
 *
 * Process: loader; the session that replays.  States and locks: none beyond
 * the writer's.  A crash leaves nothing: all is in the caller's transaction.
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
#include "utils/snapmgr.h"

#define STAGE_MAP "map"

/* a batch on its way */
typedef struct Load
{
	MigrateLoadContext *ctx;
	MigrateWriter *writer;
	MigrateCounts *counts;
	const char *write_stage;
	MemoryContext mcxt;			/* of the whole batch */
} Load;

/* one attempt at the batch or a part of it */
typedef struct Attempt
{
	Load	   *load;
	MigrateBatch *batch;
	const int64 *ids;			/* ordinal -> row of the whole batch */
	const char *volatile stage;
	uint8	   *seen;			/* ordinals that gave a row */
	int64		nseen;
	uint8	   *doubles;		/* ordinals whose key another row has; NULL */
	int64		ndoubles;
	int64		written;
} Attempt;

static void load_part(Load *load, MigrateBatch *batch, const int64 *ids);

static inline bool
get_bit(const uint8 *bits, int64 i)
{
	return (bits[i / 8] & (1 << (i % 8))) != 0;
}

static inline void
set_bit(uint8 *bits, int64 i)
{
	bits[i / 8] |= 1 << (i % 8);
}

/* Every error names target, mapping and chunk. */
static void
load_error_context(void *arg)
{
	Attempt    *attempt = arg;
	MigrateLoadContext *ctx = attempt->load->ctx;
	MigrateMapping *map = attempt->load->writer->map;

	if (ctx->chunk_id != 0)
		errcontext("%s of %s, mapping %d, chunk %lld",
				   strcmp(attempt->stage, STAGE_MAP) == 0 ? "mapping" : "write",
				   map->target_name, map->mapping_id, (long long) ctx->chunk_id);
	else
		errcontext("%s of %s, mapping %d",
				   strcmp(attempt->stage, STAGE_MAP) == 0 ? "mapping" : "write",
				   map->target_name, map->mapping_id);
}

/* ----------------------------------------------------------------
 * an attempt
 * ----------------------------------------------------------------
 */

/* A mapped row whose key another row of the batch has given. */
static void
note_double(Attempt *attempt, TupleTableSlot *slot, int64 ord)
{
	MigrateWriter *writer = attempt->load->writer;

	if (attempt->batch->nrows == 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("two source rows give the same key of %s",
						writer->map->target_name),
				 errdetail("Key %s is that of an earlier row.",
						   migrate_writer_key_text(writer, slot)),
				 errhint("The key map must give every source row a key of its own.")));
	if (attempt->doubles == NULL)
		attempt->doubles = MemoryContextAllocZero(attempt->load->mcxt,
												  attempt->batch->nrows / 8 + 1);
	if (!get_bit(attempt->doubles, ord))
		attempt->ndoubles++;
	set_bit(attempt->doubles, ord);
}

/*
 * A row from the mapping: count its source row, check its key, write it.
 */
static void
receive_mapped(TupleTableSlot *slot, void *arg)
{
	Attempt    *attempt = arg;
	MigrateWriter *writer = attempt->load->writer;
	MigrateMapping *map = writer->map;
	int64		ord;
	int			which = 0;

	slot_getallattrs(slot);
	ord = DatumGetInt64(slot->tts_values[map->ncolumns + map->nkeys]);
	if (ord < 0 || ord >= attempt->batch->nrows)
		elog(ERROR, "mapping gave row %lld of a batch of %lld",
			 (long long) ord, (long long) attempt->batch->nrows);
	if (!get_bit(attempt->seen, ord))
	{
		set_bit(attempt->seen, ord);
		attempt->nseen++;
	}
	else if (!map->many)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("mapping to %s gives more than one row for a source row",
						map->target_name),
				 errhint("Only a mapping function that returns a set may do so.")));
	attempt->stage = attempt->load->write_stage;
	if (!migrate_writer_key_agrees(writer, slot, &which))
		ereport(ERROR,
				(errcode(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION),
				 errmsg("key map and mapping to %s disagree", map->target_name),
				 errdetail("The mapping gives column \"%s\" another value than the key map, whose key is %s.",
						   map->key_columns[which], migrate_writer_key_text(writer, slot)),
				 errhint("Set \"key\" of the mapping so that it computes \"%s\" as the mapping does.",
						 map->key_columns[which])));
	if (migrate_writer_key_is_new(writer, slot, attempt->ids[ord]))
		writer->way->put(writer, slot);
	else
		note_double(attempt, slot, ord);
	attempt->stage = STAGE_MAP;
}

/*
 * Map and write, inside the subtransaction.  False when rows must be taken out
 * first: attempt->doubles.
 */
static bool
attempt_rows(Attempt *attempt)
{
	MigrateWriter *writer = attempt->load->writer;
	MemoryContext old = MemoryContextSwitchTo(writer->attempt);

	attempt->seen = palloc0(attempt->batch->nrows / 8 + 1);
	PushActiveSnapshot(GetTransactionSnapshot());
	writer->way->begin(writer);
	if (attempt->batch->straight && attempt->batch->store == NULL)
	{
		attempt->stage = attempt->load->write_stage;
		writer->way->put_tuples(writer, attempt->batch->tuples, attempt->batch->nrows);
		attempt->nseen = attempt->batch->nrows;
	}
	else
		migrate_mapping_run(writer->map, attempt->batch, receive_mapped, attempt);
	if (attempt->ndoubles > 0)
		return false;
	attempt->stage = attempt->load->write_stage;
	attempt->written = writer->way->finish(writer);
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * One attempt in a subtransaction of its own.  NULL when it was written; else
 * the error, in load->mcxt, with everything undone.
 */
static ErrorData *
try_batch(Attempt *attempt)
{
	Load	   *load = attempt->load;
	MigrateWriter *writer = load->writer;
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;
	ErrorContextCallback callback = {error_context_stack, load_error_context, attempt};

	writer->attempt = AllocSetContextCreate(load->mcxt, "migrate attempt",
											ALLOCSET_DEFAULT_SIZES);
	migrate_verify_begin(writer, load->ctx->job && load->ctx->job->verify_writes);
	attempt->stage = STAGE_MAP;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		error_context_stack = &callback;
		if (attempt_rows(attempt))
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
		error_context_stack = callback.previous;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(load->mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	MemoryContextDelete(writer->attempt);
	writer->attempt = NULL;
	writer->state = NULL;
	return edata;
}

/* ----------------------------------------------------------------
 * what follows from it
 * ----------------------------------------------------------------
 */

/*
 * Count a batch that was written.  Rows that gave nothing were filtered, if
 * the mapping may do so; else one was lost.
 */
static void
count_written(Attempt *attempt)
{
	MigrateCounts *counts = attempt->load->counts;
	MigrateMapping *map = attempt->load->writer->map;
	int64		left_out = attempt->batch->nrows - attempt->nseen;

	if (left_out > 0 && !map->filtered && !map->many)
		elog(ERROR, "mapping %d to %s has no filter but left out %lld of %lld rows",
			 map->mapping_id, map->target_name, (long long) left_out,
			 (long long) attempt->batch->nrows);
	counts->read += attempt->batch->nrows;
	counts->mapped += attempt->nseen;
	counts->filtered += left_out;
	counts->written += attempt->written;
	migrate_worker_verified(attempt->load->writer->verified);
}

/* The batch is one row, and it is the row's fault. */
static void
bury_row(Attempt *attempt, ErrorData *edata)
{
	Load	   *load = attempt->load;
	MigrateLoadContext *ctx = load->ctx;
	char	   *row;
	char	   *key;

	migrate_batch_row_json(attempt->batch, 0, &row, &key);
	migrate_dead_letter_insert(ctx, load->writer->map->mapping_id, attempt->stage,
							   key, row, NULL, edata, load->writer->map->version);
	migrate_writer_keys_forget(load->writer, attempt->ids[0]);
	load->counts->read++;
	load->counts->dead++;
}

static void
load_halves(Load *load, MigrateBatch *batch, const int64 *ids)
{
	int64		bounds[] = {0, batch->nrows / 2, batch->nrows};

	for (int half = 0; half < 2; half++)
	{
		MigrateBatch *part = migrate_batch_slice(batch, bounds[half], bounds[half + 1]);

		load_part(load, part, ids + bounds[half]);
		migrate_batch_free(part);
	}
}

/*
 * Load what is not a double, in runs of neighbours as one batch; then the
 * doubles one by one, since what they collide with may have died meanwhile.
 */
static void
load_without_doubles(Load *load, MigrateBatch *batch, const int64 *ids,
					 const uint8 *doubles)
{
	MigrateBatch *rest = migrate_batch_pick(batch, doubles);
	int64	   *rest_ids = palloc(sizeof(int64) * Max(rest->nrows, 1));
	int64		n = 0;

	for (int64 i = 0; i < batch->nrows; i++)
		if (!get_bit(doubles, i))
			rest_ids[n++] = ids[i];
	load_part(load, rest, rest_ids);
	migrate_batch_free(rest);
	for (int64 i = 0; i < batch->nrows; i++)
		if (get_bit(doubles, i))
		{
			MigrateBatch *one = migrate_batch_slice(batch, i, i + 1);

			load_part(load, one, ids + i);
			migrate_batch_free(one);
		}
}

/*
 * Load a batch or a part of it, whatever it takes.
 */
static void
load_part(Load *load, MigrateBatch *batch, const int64 *ids)
{
	Attempt		attempt = {.load = load,.batch = batch,.ids = ids};
	ErrorData  *edata;

	if (batch->nrows == 0)
		return;
	CHECK_FOR_INTERRUPTS();
	edata = try_batch(&attempt);
	if (edata == NULL)
	{
		if (attempt.ndoubles > 0)
			load_without_doubles(load, batch, ids, attempt.doubles);
		else
			count_written(&attempt);
		return;
	}
	if (!migrate_error_is_of_row(edata->sqlerrcode))
		ReThrowError(edata);
	if (edata->sqlerrcode == ERRCODE_UNIQUE_VIOLATION &&
		migrate_writer_look_first(load->writer))
		load_part(load, batch, ids);
	else if (batch->nrows == 1)
		bury_row(&attempt, edata);
	else
		load_halves(load, batch, ids);
	FreeErrorData(edata);
}

/*
 * A batch through the writer's mapping, see migrate.h.
 */
void
migrate_load_batch(MigrateLoadContext *ctx, MigrateWriter *writer,
				   MigrateBatch *batch, MigrateCounts *counts)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate load",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	Load		load = {
		.ctx = ctx,
		.writer = writer,
		.counts = counts,
		.write_stage = ctx->stage ? ctx->stage : "write",
		.mcxt = mcxt,
	};
	MigrateCounts before = *counts;
	int64	   *ids = palloc(sizeof(int64) * Max(batch->nrows, 1));
	TimestampTz start = GetCurrentTimestamp();

	for (int64 i = 0; i < batch->nrows; i++)
		ids[i] = i;
	migrate_writer_keys_begin(writer, mcxt, batch->nrows);
	load_part(&load, batch, ids);
	writer->seen = NULL;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
	if (ctx->chunk_id != 0)
		migrate_copy_batch_took(GetCurrentTimestamp() - start);
	if (counts->read - before.read != batch->nrows)
		elog(ERROR, "of %lld rows of a batch %lld came to an end",
			 (long long) batch->nrows, (long long) (counts->read - before.read));
}
