/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  Source rows held while they are mapped and written.
 *
 * A batch is a tuplestore of the source row's columns and one more,
 * migrate_ord, the row's number in the batch.  It is what the mapping's query
 * reads as its ephemeral relation.  Since the batch is held, a bad row is
 * isolated by running parts of it again, without reading the source again.
 *
 * Process: loader, or the session that replays a dead letter.
 * States and locks: none.  The tuplestore spills to a temporary file beyond
 * max_kb; the file belongs to the resource owner that was current when the
 * batch was made, so a batch that was made inside a subtransaction must not be
 * touched after that was rolled back (delete its memory context instead).
 * A crash leaves nothing behind.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* how the columns of a row are written into a dead letter's source_row */
typedef enum RowForm
{
	FORM_JSON,					/* as row_to_json does */
	FORM_TEXT,					/* every column as its text */
	FORM_SHORT,					/* the same, cut to FORM_SHORT_BYTES */
	FORM_NONE					/* nothing can be shown */
} RowForm;

#define FORM_SHORT_BYTES (1024 * 1024)

/* block of memory for tuples */
#define TUPLE_MEMORY ((Size) 2 * 1024 * 1024)

/*
 * The row type of a batch: the source row's columns, then the ordinal.
 */
static TupleDesc
batch_desc(MigrateSource *src)
{
	int			natts = src->rowdesc->natts;
	TupleDesc	desc = CreateTemplateTupleDesc(natts + 1);

	for (int i = 1; i <= natts; i++)
		TupleDescCopyEntry(desc, i, src->rowdesc, i);
	TupleDescInitEntry(desc, natts + 1, MIGRATE_ORDINAL, INT8OID, -1, 0);
	return desc;
}

/*
 * An empty batch in a memory context of its own below the current one.
 */
MigrateBatch *
migrate_batch_create(MigrateSource *src)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate batch",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	MigrateBatch *batch = palloc0(sizeof(MigrateBatch));

	batch->src = src;
	batch->desc = batch_desc(src);
	batch->mcxt = mcxt;
	batch->max_kb = work_mem;
	batch->owner = CurrentResourceOwner;
	MemoryContextSwitchTo(old);
	return batch;
}

/* The store is made with the first row, for the batch's owner. */
static void
batch_open_store(MigrateBatch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->mcxt);
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = batch->owner;
	batch->store = tuplestore_begin_heap(false, false, batch->max_kb);
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(old);
}

/*
 * Hold the rows as tuples of the target from now on; the batch is empty.
 */
void
migrate_batch_straight(MigrateBatch *batch, const MigrateStraight *straight)
{
	Assert(batch->nrows == 0 && batch->store == NULL);
	batch->straight = straight;

	/* what a usual batch needs is kept: fresh memory costs page faults */
	batch->tuple_cxt = GenerationContextCreate(batch->mcxt, "migrate batch tuples",
											   TUPLE_MEMORY, TUPLE_MEMORY, TUPLE_MEMORY);
}

/* Append a row as a tuple of the target. */
static void
add_tuple(MigrateBatch *batch, Datum *values, bool *nulls)
{
	const MigrateStraight *straight = batch->straight;
	int			natts = straight->desc->natts;
	MemoryContext old = MemoryContextSwitchTo(batch->mcxt);
	Datum		v[MaxTupleAttributeNumber];
	bool		n[MaxTupleAttributeNumber];

	if (batch->nrows == batch->max_tuples)
	{
		batch->max_tuples = Max(1024, 2 * batch->max_tuples);
		batch->tuples = batch->tuples == NULL ?
			MemoryContextAllocHuge(batch->mcxt, batch->max_tuples * sizeof(HeapTuple)) :
			repalloc_huge(batch->tuples, batch->max_tuples * sizeof(HeapTuple));
	}
	for (int i = 0; i < natts; i++)
	{
		v[i] = values[straight->columns[i]];
		n[i] = nulls[straight->columns[i]];
	}
	MemoryContextSwitchTo(batch->tuple_cxt);
	batch->tuples[batch->nrows] = heap_form_tuple(straight->desc, v, n);
	MemoryContextSwitchTo(old);
}

/* Append a row to the store. */
static void
add_to_store(MigrateBatch *batch, Datum *values, bool *nulls, int64 ordinal)
{
	int			natts = batch->desc->natts;
	Datum	   *v;
	bool	   *n;
	Datum		vbuf[64];
	bool		nbuf[64];
	bool		large = natts > lengthof(vbuf);

	if (batch->store == NULL)
		batch_open_store(batch);
	v = large ? palloc(sizeof(Datum) * natts) : vbuf;
	n = large ? palloc(sizeof(bool) * natts) : nbuf;
	memcpy(v, values, sizeof(Datum) * (natts - 1));
	memcpy(n, nulls, sizeof(bool) * (natts - 1));
	v[natts - 1] = Int64GetDatum(ordinal);
	n[natts - 1] = false;
	tuplestore_putvalues(batch->store, batch->desc, v, n);
	if (large)
	{
		pfree(v);
		pfree(n);
	}
}

/*
 * Append a row (columns of src->rowdesc); the values are copied.  "bytes" is
 * what the row counts toward batch_bytes.
 */
void
migrate_batch_add(MigrateBatch *batch, Datum *values, bool *nulls, int64 bytes)
{
	if (batch->straight)
		add_tuple(batch, values, nulls);
	else
		add_to_store(batch, values, nulls, batch->nrows);
	batch->nrows++;
	batch->bytes += bytes;
}

/*
 * The rows as a tuplestore, made from the tuples where they are held so.
 */
Tuplestorestate *
migrate_batch_store(MigrateBatch *batch)
{
	const MigrateStraight *straight = batch->straight;

	if (batch->store == NULL && straight != NULL)
	{
		int			natts = straight->desc->natts;
		Datum	   *target = palloc(Max(natts, 1) * sizeof(Datum));
		bool	   *target_null = palloc(Max(natts, 1) * sizeof(bool));
		Datum	   *source = palloc(Max(natts, 1) * sizeof(Datum));
		bool	   *source_null = palloc(Max(natts, 1) * sizeof(bool));

		for (int64 row = 0; row < batch->nrows; row++)
		{
			heap_deform_tuple(batch->tuples[row], straight->desc, target, target_null);
			for (int i = 0; i < natts; i++)
			{
				source[straight->columns[i]] = target[i];
				source_null[straight->columns[i]] = target_null[i];
			}
			add_to_store(batch, source, source_null, row);
		}
	}
	return batch->store;
}

/*
 * Empty the batch for the next rows.  The store is made anew: every scan of it
 * leaves a read pointer behind, which only the store's end frees.
 */
void
migrate_batch_reset(MigrateBatch *batch)
{
	if (batch->store)
		tuplestore_end(batch->store);
	batch->store = NULL;
	if (batch->straight)
		MemoryContextReset(batch->tuple_cxt);
	batch->nrows = 0;
	batch->bytes = 0;
}

void
migrate_batch_free(MigrateBatch *batch)
{
	migrate_batch_reset(batch);
	MemoryContextDelete(batch->mcxt);
}

/* Stand before row "row" of the batch. */
static void
batch_seek(MigrateBatch *batch, int64 row)
{
	(void) migrate_batch_store(batch);
	tuplestore_select_read_pointer(batch->store, 0);
	tuplestore_rescan(batch->store);
	if (row > 0 && !tuplestore_skiptuples(batch->store, row, true))
		elog(ERROR, "batch has no row " INT64_FORMAT, row);
}

/*
 * Begin to read the rows in their order; the slot is the caller's to drop.  One
 * scan at a time.
 */
TupleTableSlot *
migrate_batch_scan(MigrateBatch *batch)
{
	if (batch->nrows > 0)
		batch_seek(batch, 0);
	return MakeSingleTupleTableSlot(batch->desc, &TTSOpsMinimalTuple);
}

bool
migrate_batch_next(MigrateBatch *batch, TupleTableSlot *slot)
{
	if (batch->nrows == 0 || !tuplestore_gettupleslot(batch->store, true, false, slot))
		return false;
	slot_getallattrs(slot);
	return true;
}

/* Copy rows [lo, hi) but those left out (NULL: none) into a new batch. */
static MigrateBatch *
batch_copy(MigrateBatch *batch, int64 lo, int64 hi, const uint8 *left_out)
{
	MigrateBatch *part = migrate_batch_create(batch->src);
	TupleTableSlot *slot;
	int64		each = batch->nrows > 0 ? batch->bytes / batch->nrows : 0;

	Assert(0 <= lo && lo <= hi && hi <= batch->nrows);
	part->max_kb = batch->max_kb;
	if (lo == hi)
		return part;
	slot = MakeSingleTupleTableSlot(batch->desc, &TTSOpsMinimalTuple);
	batch_seek(batch, lo);
	for (int64 i = lo; i < hi; i++)
	{
		if (!tuplestore_gettupleslot(batch->store, true, false, slot))
			elog(ERROR, "batch has no row " INT64_FORMAT, i);
		if (left_out && (left_out[i / 8] & (1 << (i % 8))) != 0)
			continue;
		slot_getallattrs(slot);
		migrate_batch_add(part, slot->tts_values, slot->tts_isnull, each);
	}
	ExecDropSingleTupleTableSlot(slot);
	return part;
}

/*
 * Rows [lo, hi) as a batch of its own, with ordinals from 0.
 */
MigrateBatch *
migrate_batch_slice(MigrateBatch *batch, int64 lo, int64 hi)
{
	return batch_copy(batch, lo, hi, NULL);
}

/* The rows whose bit is not set in left_out, with ordinals from 0. */
MigrateBatch *
migrate_batch_pick(MigrateBatch *batch, const uint8 *left_out)
{
	return batch_copy(batch, 0, batch->nrows, left_out);
}

/*
 * Settings under which a value's text is the same whoever reads it, and reads
 * back as the same value.
 */
int
migrate_pin_output(void)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"datestyle", "ISO, YMD"},
		{"intervalstyle", "postgres"},
		{"timezone", "UTC"},
		{"bytea_output", "hex"},
		{"extra_float_digits", "3"},
		{"lc_monetary", "C"},
	};
	int			nestlevel = NewGUCNestLevel();

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1],
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
	return nestlevel;
}

/* A value's text, cut to "limit" bytes (0: whole). */
static char *
value_text(Datum value, Oid type, int limit)
{
	Oid			output;
	bool		varlena;
	char	   *s;

	getTypeOutputInfo(type, &output, &varlena);
	s = OidOutputFunctionCall(output, value);
	if (limit > 0 && strlen(s) > limit)
		s[pg_mbcliplen(s, strlen(s), limit)] = '\0';
	return s;
}

/* {"column": "text", ..} of the columns that keys[] names, or of all. */
static char *
columns_as_text(MigrateSource *src, TupleTableSlot *slot, const int *keys,
				int ncols, int limit)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < ncols; i++)
	{
		int			col = keys ? keys[i] : i;

		if (i > 0)
			appendStringInfoString(&buf, ", ");
		escape_json(&buf, src->columns[col].name);
		appendStringInfoString(&buf, ": ");
		if (slot->tts_isnull[col])
			appendStringInfoString(&buf, "null");
		else
			escape_json(&buf, value_text(slot->tts_values[col],
										 src->columns[col].type, limit));
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* The whole row as row_to_json shows it. */
static char *
row_as_json(MigrateSource *src, TupleTableSlot *slot)
{
	TupleDesc	desc = BlessTupleDesc(CreateTupleDescCopy(src->rowdesc));
	HeapTuple	tuple = heap_form_tuple(desc, slot->tts_values, slot->tts_isnull);

	return TextDatumGetCString(DirectFunctionCall1(row_to_json,
												   HeapTupleGetDatum(tuple)));
}

/*
 * One way of writing down a row and its key, with the proof that both are
 * jsonb: json allows \u0000 in a string and any length, jsonb does not.  In a
 * subtransaction, since output functions may fail on an odd value.
 */
static bool
try_row_form(MigrateBatch *batch, TupleTableSlot *slot, RowForm form,
			 char **row_json, char **key_json)
{
	MigrateSource *src = batch->src;
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = false;

	*row_json = *key_json = NULL;
	if (form == FORM_NONE)
		return true;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		int			limit = form == FORM_SHORT ? FORM_SHORT_BYTES : 0;
		char	   *row;
		char	   *key = NULL;

		(void) migrate_pin_output();
		row = form == FORM_JSON ? row_as_json(src, slot) :
			columns_as_text(src, slot, NULL, src->ncolumns, limit);
		if (src->nkeys > 0)
			key = columns_as_text(src, slot, src->keys, src->nkeys, limit);
		(void) DirectFunctionCall1(jsonb_in, CStringGetDatum(row));
		if (key)
			(void) DirectFunctionCall1(jsonb_in, CStringGetDatum(key));
		*row_json = row;
		*key_json = key;

		/* an aborted subtransaction takes the settings back, and no harm */
		RollbackAndReleaseCurrentSubTransaction();
		ok = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(mcxt);
		CurrentResourceOwner = owner;
		/* a cancelled statement is never swallowed */
		if (ERRCODE_TO_CATEGORY(edata->sqlerrcode) ==
			ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION))
			ReThrowError(edata);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	return ok;
}

/*
 * One row as jsonb text, and its key as {source key column: text value}, NULL
 * without a key.  What is given here always converts to jsonb; where the row
 * as it is would not (a json column with \u0000, more than 256 MB), its
 * columns are given as text, at last cut short.
 */
void
migrate_batch_row_json(MigrateBatch *batch, int64 row,
					   char **row_json, char **key_json)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(batch->desc,
													&TTSOpsMinimalTuple);

	batch_seek(batch, row);
	if (!tuplestore_gettupleslot(batch->store, true, true, slot))
		elog(ERROR, "batch has no row " INT64_FORMAT, row);
	slot_getallattrs(slot);
	for (int form = FORM_JSON; form <= FORM_NONE; form++)
		if (try_row_form(batch, slot, (RowForm) form, row_json, key_json))
			break;
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * The key of every row, for a source that has one.
 */
void
migrate_batch_keys_json(MigrateBatch *batch, MigrateKeyFn fn, void *arg)
{
	MigrateSource *src = batch->src;
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate key texts",
											   ALLOCSET_DEFAULT_SIZES);
	int			level = migrate_pin_output();
	TupleTableSlot *slot = migrate_batch_scan(batch);

	for (int64 row = 0; migrate_batch_next(batch, slot); row++)
	{
		MemoryContext old = MemoryContextSwitchTo(mcxt);
		char	   *key = columns_as_text(src, slot, src->keys, src->nkeys, 0);
		Datum		json = DirectFunctionCall1(jsonb_in, CStringGetDatum(key));

		fn(row, DatumGetCString(DirectFunctionCall1(jsonb_out, json)), arg);
		MemoryContextSwitchTo(old);
		MemoryContextReset(mcxt);
	}
	ExecDropSingleTupleTableSlot(slot);
	AtEOXact_GUC(true, level);
	MemoryContextDelete(mcxt);
}
