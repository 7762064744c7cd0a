/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  Source rows, held until every mapping has taken them.
 *
 * Runs in loaders, and in the session that replays dead letters.  A batch is
 * a tuplestore of source rows, each with its number, migrate_ord, by which a
 * mapped row is traced back to the row that it came from.  Mappings see it as
 * the ephemeral relation migrate_batch; when one fails, the rows are read
 * again from here (P17).
 *
 * Memory is bounded by twice migrate.options' batch_bytes, beyond that the
 * store spills to a temporary file.  Read pointers of a tuplestore are never
 * freed, so that each filling gets a new store.  A crash leaves at most that
 * temporary file, which the server removes when it starts.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* memory of a batch until it spills, kB; the default batch is 4 MB */
#define BATCH_MEMORY_KB 16384

static void
begin_store(MigrateBatch *batch)
{
	MemoryContext oldcxt = MemoryContextSwitchTo(batch->mcxt);

	batch->store = tuplestore_begin_heap(true, false, BATCH_MEMORY_KB);
	batch->nrows = 0;
	batch->bytes = 0;
	MemoryContextSwitchTo(oldcxt);
}

/*
 * An empty batch, in a context of its own below the current one.  Its store
 * belongs to the current resource owner: after a rollback of the
 * subtransaction it was made in, the batch is gone and must not be freed.
 */
MigrateBatch *
migrate_batch_create(MigrateSource *src)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate batch",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);
	MigrateBatch *batch = palloc0(sizeof(MigrateBatch));
	int			n = src->ncolumns;

	batch->src = src;
	batch->mcxt = mcxt;
	batch->desc = CreateTemplateTupleDesc(n + 1);
	for (int i = 1; i <= n; i++)
		TupleDescCopyEntry(batch->desc, i, src->rowdesc, i);
	TupleDescInitEntry(batch->desc, n + 1, MIGRATE_ORDINAL, INT8OID, -1, 0);
	MemoryContextSwitchTo(oldcxt);
	begin_store(batch);
	return batch;
}

/* Add a row; the values are copied. */
void
migrate_batch_add(MigrateBatch *batch, Datum *values, bool *nulls, int64 bytes)
{
	int			n = batch->src->ncolumns;
	Datum	   *v = palloc((n + 1) * sizeof(Datum));
	bool	   *isnull = palloc((n + 1) * sizeof(bool));

	if (n > 0)
	{
		memcpy(v, values, n * sizeof(Datum));
		memcpy(isnull, nulls, n * sizeof(bool));
	}
	v[n] = Int64GetDatum(batch->nrows);
	isnull[n] = false;
	tuplestore_putvalues(batch->store, batch->desc, v, isnull);
	batch->nrows++;
	batch->bytes += bytes;
	pfree(v);
	pfree(isnull);
}

/* Forget the rows. */
void
migrate_batch_reset(MigrateBatch *batch)
{
	tuplestore_end(batch->store);
	begin_store(batch);
}

void
migrate_batch_free(MigrateBatch *batch)
{
	tuplestore_end(batch->store);
	MemoryContextDelete(batch->mcxt);
}

/* Place the store's own read pointer before a row. */
static void
seek(MigrateBatch *batch, int64 row)
{
	tuplestore_select_read_pointer(batch->store, 0);
	tuplestore_rescan(batch->store);
	if (row > 0 && !tuplestore_skiptuples(batch->store, row, true))
		elog(ERROR, "batch has no row " INT64_FORMAT, row);
}

/* Rows [lo, hi) as a batch of its own, ordinals starting at 0 again. */
MigrateBatch *
migrate_batch_slice(MigrateBatch *batch, int64 lo, int64 hi)
{
	MigrateBatch *slice = migrate_batch_create(batch->src);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(batch->desc,
													&TTSOpsMinimalTuple);

	seek(batch, lo);
	for (int64 row = lo; row < hi; row++)
	{
		if (!tuplestore_gettupleslot(batch->store, true, false, slot))
			elog(ERROR, "batch has no row " INT64_FORMAT, row);
		slot_getallattrs(slot);
		migrate_batch_add(slice, slot->tts_values, slot->tts_isnull, 0);
	}
	ExecDropSingleTupleTableSlot(slot);
	if (batch->nrows > 0)
		slice->bytes = batch->bytes * (hi - lo) / batch->nrows;
	return slice;
}

/* {"key column": "value as text"} of a row in a slot */
static char *
key_as_json(MigrateSource *src, TupleTableSlot *slot)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int k = 0; k < src->nkeys; k++)
	{
		int			i = src->keys[k];

		if (k > 0)
			appendStringInfoString(&buf, ", ");
		escape_json(&buf, src->columns[i].name);
		appendStringInfoString(&buf, ": ");
		if (slot->tts_isnull[i])
			appendStringInfoString(&buf, "null");
		else
		{
			Oid			output;
			bool		varlena;

			getTypeOutputInfo(TupleDescAttr(src->rowdesc, i)->atttypid,
							  &output, &varlena);
			escape_json(&buf, OidOutputFunctionCall(output, slot->tts_values[i]));
		}
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/*
 * One row as jsonb text, and its key as jsonb text (NULL without key), in the
 * current memory context.
 */
void
migrate_batch_row_json(MigrateBatch *batch, int64 row, char **row_json,
					   char **key_json)
{
	MigrateSource *src = batch->src;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(batch->desc,
													&TTSOpsMinimalTuple);
	TupleDesc	desc = CreateTupleDescCopy(src->rowdesc);
	HeapTuple	tuple;

	seek(batch, row);
	if (!tuplestore_gettupleslot(batch->store, true, false, slot))
		elog(ERROR, "batch has no row " INT64_FORMAT, row);
	slot_getallattrs(slot);

	*row_json = pstrdup("{}");
	if (src->ncolumns > 0)
	{
		desc = BlessTupleDesc(desc);
		tuple = heap_form_tuple(desc, slot->tts_values, slot->tts_isnull);
		*row_json = TextDatumGetCString(DirectFunctionCall1(row_to_json,
															HeapTupleGetDatum(tuple)));
	}
	*key_json = src->nkeys > 0 ? key_as_json(src, slot) : NULL;
	ExecDropSingleTupleTableSlot(slot);
}
