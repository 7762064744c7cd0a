/*-------------------------------------------------------------------------
 *
 * resync.c
 *	  Bring the target of one mapping in line with its source, writing only
 *	  what differs: the work of migrate_resync and migrate_repair on one table.
 *
 *	  0. Both sides are compared as for a validation, bucket by bucket; what
 *		 follows is about the rows of buckets that differ.
 *	  1. They are read and hashed.  Each row gives a
 *		 tuple (hash of its key, hash of the row, side), and a sort, on disk
 *		 where it is large, brings the rows of one key together.
 *	  2. Keys whose rows differ are gathered from the sorted tuples, a slice at
 *		 a time, as many as maintenance_work_mem holds.
 *	  3. For a slice both sides are read once more.  Keys that the source does
 *		 not have, or in another number of rows, are deleted from the target;
 *		 then the source's rows of all keys of the slice are written, through
 *		 the mapping, as the copy does it.  Where rows have no key, so many
 *		 of each are deleted or written as there are too many or too few.
 *
 * So nothing is written that is not different, memory is bounded by settings,
 * and a table without differences is read once.
 *
 * A resync runs while the source goes on.  What changes after the new slot was
 * made is in the stream, whichever image was read here; so the passes need not
 * see the same snapshot, and no apply worker runs.  For a repair see repair.c.
 *
 * Runs in the job worker or the session that repairs, in one transaction a
 * mapping, which holds the writer lock (P14) where changes are applied; a crash
 * repeats the mapping.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/tupdesc.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/tuplesort.h"

#include "load/apply.h"
#include "load/refetch.h"
#include "validate.h"

/* of the tuples that are sorted */
#define TUPLE_COLUMNS 5
#define COL_KEY_LO 0
#define COL_KEY_HI 1
#define COL_ROW_LO 2
#define COL_ROW_HI 3
#define COL_SIDE 4

/* a key whose rows differ */
typedef struct KeyEntry
{
	ValidateHash key;
	bool		write;			/* the source has rows of it */
	bool		remove;			/* rows of the target are to go first */
	bool		taken;			/* its source row is in a batch (many) */
	int64		wanted;			/* without a key: more rows than there are */
	int64		left;			/* of them, to be found by pass 3 */
	int64		surplus;		/* without a key: rows too many */
	char		status;
} KeyEntry;

#define SH_PREFIX keys
#define SH_ELEMENT_TYPE KeyEntry
#define SH_KEY_TYPE ValidateHash
#define SH_KEY key
#define SH_HASH_KEY(tb, k) ((uint32) (k).hi)
#define SH_EQUAL(tb, a, b) ((a).lo == (b).lo && (a).hi == (b).hi)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

typedef struct Resync
{
	ValidateEnds *ends;
	MigrateResyncCounts *counts;
	const bool *selected;		/* buckets to be mended */
	char	   *where[2];		/* their rows, by side; NULL: all rows come */
	int64		nrows[2];		/* how many come, by side */
	bool		keyless;		/* a row is its own key */
	int64		last_letter;	/* the newest there was; see settle_letters() */
	bool		settle;			/* there are open ones before it */
	TupleDesc	desc;
	Tuplesortstate *sort;
	TupleTableSlot *slot;		/* of desc */
	bool		pending;		/* slot holds the first tuple of the next key */
	int64		failed;			/* source rows that cannot be mapped or read */
	bool		letters;		/* they have got their dead letters */
	keys_hash  *keys;			/* of the slice */
	uint32		max_keys;

	/* pass 3 */
	MemoryContext mcxt;			/* of the slice */
	List	   *removals;		/* of char **: key values */
	MigrateWriter *writer;
	uint8	   *left_out;		/* rows of the batch at hand that are not
								 * wanted */
	int64		nbits;
	int64		nwanted;
} Resync;

/* ----------------------------------------------------------------
 * hashes of both sides, sorted
 * ----------------------------------------------------------------
 */
static void
begin_sort(Resync *r)
{
	AttrNumber	atts[TUPLE_COLUMNS];
	Oid			operators[TUPLE_COLUMNS];
	Oid			collations[TUPLE_COLUMNS] = {0};
	bool		nulls_first[TUPLE_COLUMNS] = {0};

	for (int i = 0; i < TUPLE_COLUMNS; i++)
	{
		atts[i] = i + 1;
		operators[i] = Int8LessOperator;
	}
	r->sort = tuplesort_begin_heap(r->desc, TUPLE_COLUMNS, atts, operators, collations,
								   nulls_first, maintenance_work_mem, NULL,
								   TUPLESORT_NONE);
}

static void
sort_row(ValidateRow *row, void *arg)
{
	Resync	   *r = arg;

	if (!r->where[row->side] && !r->selected[validate_row_bucket(r->ends, row)])
		return;
	ExecClearTuple(r->slot);
	r->slot->tts_values[COL_KEY_LO] = Int64GetDatum((int64) row->key.lo);
	r->slot->tts_values[COL_KEY_HI] = Int64GetDatum((int64) row->key.hi);
	r->slot->tts_values[COL_ROW_LO] = Int64GetDatum((int64) row->row.lo);
	r->slot->tts_values[COL_ROW_HI] = Int64GetDatum((int64) row->row.hi);
	r->slot->tts_values[COL_SIDE] = Int64GetDatum((int64) row->side);
	memset(r->slot->tts_isnull, 0, TUPLE_COLUMNS * sizeof(bool));
	ExecStoreVirtualTuple(r->slot);
	tuplesort_puttupleslot(r->sort, r->slot);
}

static void
count_failed(MigrateBatch *batch, int64 ord, char *key, char *raw, void *arg)
{
	((Resync *) arg)->failed++;
}

/* The scan of the source begins again. */
static void
reset_sort(void *arg)
{
	Resync	   *r = arg;

	tuplesort_end(r->sort);
	begin_sort(r);
	r->failed = 0;
}

static void
sort_both_sides(Resync *r)
{
	ValidateSink sink = {.row = sort_row,.failed = count_failed,.reset = reset_sort,.arg = r};

	validate_progress_phase("rows that differ", r->nrows, false);
	begin_sort(r);
	validate_scan_source(r->ends, &sink, r->where[VALIDATE_SOURCE]);
	validate_scan_target(r->ends, &sink, r->where[VALIDATE_TARGET]);
	tuplesort_performsort(r->sort);
	ExecClearTuple(r->slot);
	r->pending = tuplesort_gettupleslot(r->sort, true, false, r->slot, NULL);
}

/* ----------------------------------------------------------------
 * keys that differ
 * ----------------------------------------------------------------
 */
static uint64
column(Resync *r, int i)
{
	bool		isnull;

	return (uint64) DatumGetInt64(slot_getattr(r->slot, i + 1, &isnull));
}

static ValidateHash
slot_hash(Resync *r, int lo)
{
	return (ValidateHash)
	{
		.lo = column(r, lo),.hi = column(r, lo + 1)
	};
}

static bool
same_hash(ValidateHash a, ValidateHash b)
{
	return a.lo == b.lo && a.hi == b.hi;
}

/*
 * The rows of the next key: how many each side has, and whether they are the
 * same rows, each as often.
 */
static ValidateHash
next_key(Resync *r, int64 *rows, bool *same)
{
	ValidateHash key = slot_hash(r, COL_KEY_LO);
	ValidateHash row = slot_hash(r, COL_ROW_LO);
	int64		delta = 0;

	rows[0] = rows[1] = 0;
	*same = true;
	while (r->pending && same_hash(slot_hash(r, COL_KEY_LO), key))
	{
		int			side = (int) column(r, COL_SIDE);
		ValidateHash this = slot_hash(r, COL_ROW_LO);

		if (!same_hash(this, row))
		{
			*same = *same && delta == 0;
			delta = 0;
			row = this;
		}
		rows[side]++;
		delta += side == VALIDATE_SOURCE ? 1 : -1;
		r->pending = tuplesort_gettupleslot(r->sort, true, false, r->slot, NULL);
	}
	*same = *same && delta == 0;
	return key;
}

/* Gather keys that differ; false when there are none any more. */
static bool
next_slice(Resync *r)
{
	keys_reset(r->keys);
	while (r->pending && r->keys->members < r->max_keys)
	{
		int64		rows[2];
		bool		same,
					found;
		ValidateHash key = next_key(r, rows, &same);
		KeyEntry   *entry;

		CHECK_FOR_INTERRUPTS();
		if (same)
			continue;
		entry = keys_insert(r->keys, key, &found);
		entry->wanted = entry->left = entry->surplus = 0;
		if (r->keyless)
		{
			entry->wanted = entry->left = Max(rows[VALIDATE_SOURCE] - rows[VALIDATE_TARGET], 0);
			entry->surplus = Max(rows[VALIDATE_TARGET] - rows[VALIDATE_SOURCE], 0);
			entry->write = entry->wanted > 0;
			entry->remove = entry->surplus > 0;
		}
		else
		{
			entry->write = rows[VALIDATE_SOURCE] > 0;
			entry->remove = rows[VALIDATE_TARGET] > 0 &&
				rows[VALIDATE_TARGET] != rows[VALIDATE_SOURCE];
		}
		entry->taken = false;
		r->counts->keys_different++;
	}
	return r->keys->members > 0;
}

/* ----------------------------------------------------------------
 * rows that have to go
 * ----------------------------------------------------------------
 */
static void
take_removal(ValidateRow *row, void *arg)
{
	Resync	   *r = arg;
	ValidateShape *shape = r->ends->shape;
	KeyEntry   *entry = keys_lookup(r->keys, row->key);
	MemoryContext old;
	char	  **values;

	if (entry == NULL || !entry->remove)
		return;
	entry->remove = false;		/* one statement for all rows of a key */
	old = MemoryContextSwitchTo(r->mcxt);
	values = palloc0(sizeof(char *) * shape->nkeys);
	for (int k = 0; k < shape->nkeys; k++)
		values[k] = validate_column_text(shape, VALIDATE_TARGET, row->slot, shape->keys[k]);
	r->removals = lappend(r->removals, values);
	MemoryContextSwitchTo(old);
}

static void
set_locally(const char *name, const char *value, GucContext context)
{
	(void) set_config_option(name, value, context, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * DELETE by the key map's columns, whose values come as text; "owns" is read
 * under the mapping's search_path, rows that row security hides are an error,
 * and triggers do not fire where the owner owns the table (P13).
 */
static SPIPlanPtr
prepare_removal(Resync *r)
{
	MigrateMapping *map = r->ends->map;
	ValidateShape *shape = r->ends->shape;
	Oid		   *types = palloc(sizeof(Oid) * shape->nkeys);
	StringInfoData sql;
	SPIPlanPtr	plan;

	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM %s t WHERE ",
					 migrate_target_name(map->target, r->ends->src->only_parent));
	for (int k = 0; k < shape->nkeys; k++)
	{
		ValidateColumn *col = &shape->columns[shape->keys[k]];
		const char *name = quote_identifier(col->name);
		Oid			type = col->type[VALIDATE_TARGET];

		types[k] = TEXTOID;
		appendStringInfo(&sql, "%s(t.%s %s $%d::%s OR t.%s IS NULL AND $%d IS NULL)",
						 k > 0 ? " AND " : "", name, refetch_equals(type), k + 1,
						 refetch_type(type, -1), name, k + 1);
	}
	if (map->owns)
		appendStringInfo(&sql, " AND (%s\n)", map->owns);
	plan = SPI_prepare(sql.data, shape->nkeys, types);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare gave %s: %s", SPI_result_code_string(SPI_result), sql.data);
	return plan;
}

/* Settings under which rows are deleted; see above. */
static int
removal_settings(Resync *r)
{
	MigrateMapping *map = r->ends->map;
	int			level = validate_pin_settings();

	set_locally("search_path", map->search_path, PGC_USERSET);
	set_locally("row_security", "off", PGC_USERSET);
	if (migrate_owns_relation(map->target, GetUserId()))
		set_locally("session_replication_role", "replica", PGC_SUSET);
	return level;
}

static void
run_removals(Resync *r)
{
	int			nkeys = r->ends->shape->nkeys;
	Datum	   *values = palloc(sizeof(Datum) * nkeys);
	char	   *nulls = palloc(nkeys);
	int			level;
	SPIPlanPtr	plan;
	ListCell   *lc;

	SPI_connect();
	level = removal_settings(r);
	plan = prepare_removal(r);
	foreach(lc, r->removals)
	{
		char	  **key = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		for (int k = 0; k < nkeys; k++)
		{
			nulls[k] = key[k] ? ' ' : 'n';
			values[k] = key[k] ? CStringGetTextDatum(key[k]) : (Datum) 0;
		}
		if (SPI_execute_plan(plan, values, nulls, false, 0) != SPI_OK_DELETE)
			elog(ERROR, "deleting target rows failed");
		r->counts->rows_deleted += SPI_processed;
	}
	AtEOXact_GUC(true, level);
	SPI_finish();
}

/*
 * Rows without a key, as many of each as are too many: found by their hash,
 * deleted by their place.
 */
static void
remove_surplus(Resync *r)
{
	ValidateShape *shape = r->ends->shape;
	Datum	   *hashes = palloc(sizeof(Datum) * r->keys->members);
	Datum	   *counts = palloc(sizeof(Datum) * r->keys->members);
	Oid			types[] = {INT8ARRAYOID, INT8ARRAYOID};
	Datum		values[2];
	StringInfoData hash;
	KeyEntry   *entry;
	keys_iterator it;
	int			n = 0;
	int			level;

	keys_start_iterate(r->keys, &it);
	while ((entry = keys_iterate(r->keys, &it)) != NULL)
		if (entry->surplus > 0)
		{
			hashes[n] = Int64GetDatum(shape->ncolumns > 0 ? (int64) entry->key.lo : 0);
			counts[n++] = Int64GetDatum(entry->surplus);
		}
	if (n == 0)
		return;
	values[0] = PointerGetDatum(construct_array(hashes, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[1] = PointerGetDatum(construct_array(counts, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	initStringInfo(&hash);
	for (int i = 0; i < shape->ncolumns; i++)
		appendStringInfo(&hash, "%s%s", i > 0 ? ", " : "migrate._hash(",
						 quote_identifier(shape->columns[i].name));
	appendStringInfoString(&hash, shape->ncolumns > 0 ? ")" : "'0'::pg_catalog.int8");

	SPI_connect();
	level = removal_settings(r);
	if (SPI_execute_with_args(psprintf("DELETE FROM %s t USING"
									   " (SELECT s.*, pg_catalog.row_number() OVER (PARTITION BY s.h) AS n"
									   "  FROM (SELECT tableoid AS o, ctid AS c, %s AS h%s) s"
									   "  WHERE s.h = ANY ($1)) s,"
									   " ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS u (h, n)"
									   " WHERE u.h = s.h AND s.n <= u.n AND t.tableoid = s.o AND t.ctid = s.c",
									   migrate_target_name(r->ends->map->target,
														   r->ends->src->only_parent),
									   hash.data, validate_from_target(r->ends, NULL)),
							  2, types, values, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "deleting target rows failed");
	r->counts->rows_deleted += SPI_processed;
	AtEOXact_GUC(true, level);
	SPI_finish();
}

static void
remove_rows(Resync *r)
{
	ValidateSink sink = {.row = take_removal,.arg = r};

	if (r->keyless)
	{
		remove_surplus(r);
		return;
	}
	r->removals = NIL;
	validate_scan_target(r->ends, &sink, r->where[VALIDATE_TARGET]);
	if (r->removals != NIL)
		run_removals(r);
}

/* ----------------------------------------------------------------
 * rows that have to come
 * ----------------------------------------------------------------
 */

/* A row of the batch at hand is wanted. */
static void
want_row(ValidateRow *row, void *arg)
{
	Resync	   *r = arg;
	KeyEntry   *entry = keys_lookup(r->keys, row->key);

	if (entry == NULL || !entry->write || (r->ends->map->many && entry->taken) ||
		(r->keyless && entry->left == 0))
		return;
	entry->taken = true;
	entry->left--;
	if (r->nbits != row->batch->nrows)
	{
		/* a new batch; the bits of the last were given back when it ended */
		r->nbits = row->batch->nrows;
		r->left_out = MemoryContextAlloc(r->mcxt, r->nbits / 8 + 1);
		memset(r->left_out, 0xff, r->nbits / 8 + 1);
	}
	if (r->left_out[row->ord / 8] & (1 << (row->ord % 8)))
		r->nwanted++;
	r->left_out[row->ord / 8] &= ~(1 << (row->ord % 8));
}

/*
 * Rows that are written now need their older letters no more: what fails gets
 * one of now.
 */
static void
settle_letters(Resync *r, MigrateBatch *batch)
{
	Oid			types[] = {INT4OID, INT8OID, TEXTOID, TEXTOID};
	Datum		values[4] = {Int32GetDatum(r->ends->map->mapping_id), Int64GetDatum(r->last_letter)};

	if (!r->settle)
		return;
	SPI_connect();
	for (int64 i = 0; i < batch->nrows; i++)
	{
		char	   *row,
				   *key;

		CHECK_FOR_INTERRUPTS();
		migrate_batch_row_json(batch, i, &row, &key);
		values[2] = CStringGetTextDatum(row);
		if (key)
			values[3] = CStringGetTextDatum(key);
		migrate_spi_exec("UPDATE migrate.dead_letter SET state = 'superseded', updated_at = now()"
						 " WHERE mapping_id = $1 AND id <= $2 AND state = 'open'"
						 " AND CASE WHEN $4 IS NULL THEN source_row = $3::jsonb ELSE key = $4::jsonb END",
						 4, types, values, key ? "    " : "   n", SPI_OK_UPDATE);
	}
	SPI_finish();
}

static void
write_batch(Resync *r, MigrateBatch *batch)
{
	MigrateLoadContext ctx = {.job = r->ends->job,.chunk_id = 0,.stage = "write"};
	MigrateCounts counts = {0};

	settle_letters(r, batch);
	migrate_load_batch(&ctx, r->writer, batch, &counts);
	r->counts->rows_written += counts.written;
	r->counts->dead_letters += counts.dead;
	migrate_worker_count(counts.written, batch->bytes, counts.dead);
}

/* All rows of a batch were seen. */
static void
batch_seen(MigrateBatch *batch, void *arg)
{
	Resync	   *r = arg;

	if (r->nwanted > 0)
	{
		MigrateBatch *part = migrate_batch_pick(batch, r->left_out);

		write_batch(r, part);
		migrate_batch_free(part);
	}
	if (r->left_out)
		pfree(r->left_out);
	r->left_out = NULL;
	r->nbits = r->nwanted = 0;
}

/* Has a row that cannot be read an open letter already? */
static bool
has_letter(Resync *r, const char *key, const char *raw)
{
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3] = {Int32GetDatum(r->ends->map->mapping_id)};
	char		nulls[] = " nn";
	bool		found;

	if (key)
		values[1] = CStringGetTextDatum(key);
	if (raw)
		values[2] = CStringGetTextDatum(raw);
	nulls[1] = key ? ' ' : 'n';
	nulls[2] = raw ? ' ' : 'n';
	SPI_connect();
	migrate_spi_exec("SELECT FROM migrate.dead_letter WHERE mapping_id = $1 AND state = 'open'"
					 " AND (key = $2::jsonb OR raw = $3::jsonb) LIMIT 1",
					 3, types, values, nulls, SPI_OK_SELECT);
	found = SPI_processed > 0;
	SPI_finish();
	return found;
}

/*
 * A row that cannot be mapped fails again when it is written, and becomes a
 * dead letter there; one that cannot be read becomes it here.
 */
static void
failed_row(MigrateBatch *batch, int64 ord, char *key, char *raw, void *arg)
{
	Resync	   *r = arg;
	MigrateLoadContext ctx = {.job = r->ends->job,.chunk_id = 0,.stage = "read"};
	ErrorData	edata = {.sqlerrcode = ERRCODE_DATA_EXCEPTION,
	.message = "the row cannot be read"};

	if (r->letters)
		return;
	if (batch)
	{
		write_batch(r, batch);
		return;
	}
	if (r->settle && has_letter(r, key, raw))
		return;
	migrate_dead_letter_insert(&ctx, r->ends->map->mapping_id, "read", key, NULL, raw,
							   &edata, r->ends->map->version);
	r->counts->dead_letters++;
}

/* The scan begins again, and what it had written is undone. */
static void
reset_written(void *arg)
{
	Resync	   *r = arg;
	KeyEntry   *entry;
	keys_iterator it;

	keys_start_iterate(r->keys, &it);
	while ((entry = keys_iterate(r->keys, &it)) != NULL)
	{
		entry->taken = false;
		entry->left = entry->wanted;
	}
	r->left_out = NULL;
	r->nbits = r->nwanted = 0;
	r->counts->rows_written = 0;
	r->counts->dead_letters = 0;
}

static void
write_rows(Resync *r)
{
	ValidateSink sink = {.row = want_row,.failed = failed_row,.reset = reset_written,
	.batch_seen = batch_seen,.arg = r};

	r->writer = migrate_writer_open(r->ends->map, r->ends->src, false);
	validate_scan_source(r->ends, &sink, r->where[VALIDATE_SOURCE]);
	migrate_writer_close(r->writer);
	r->letters = true;
}

/* ----------------------------------------------------------------
 * one mapping
 * ----------------------------------------------------------------
 */

/* Every row is looked at again: what fails now gets a letter of now. */
static void
supersede_letters(int mapping_id)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(mapping_id);

	SPI_connect();
	migrate_spi_exec("UPDATE migrate.dead_letter SET state = 'superseded', updated_at = now()"
					 " WHERE mapping_id = $1 AND state = 'open'",
					 1, &type, &arg, NULL, SPI_OK_UPDATE);
	SPI_finish();
}

/* Delete and write what a slice of keys asks for. */
static void
mend_slice(Resync *r)
{
	MemoryContext old = MemoryContextSwitchTo(r->mcxt);

	validate_progress_phase("repair", r->nrows, false);
	CommandCounterIncrement();
	remove_rows(r);
	write_rows(r);
	MemoryContextSwitchTo(old);
	MemoryContextReset(r->mcxt);
}

static TupleDesc
hash_tuple(void)
{
	TupleDesc	desc = CreateTemplateTupleDesc(TUPLE_COLUMNS);

	for (int i = 0; i < TUPLE_COLUMNS; i++)
		TupleDescInitEntry(desc, i + 1, "h", INT8OID, -1, 0);
	return desc;
}

static void
mend_mapping(Resync *r)
{
	bool		any = false;

	r->desc = hash_tuple();
	r->slot = MakeSingleTupleTableSlot(r->desc, &TTSOpsMinimalTuple);
	r->mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate resync slice",
									ALLOCSET_DEFAULT_SIZES);
	r->keys = keys_create(CurrentMemoryContext, 1024, NULL);
	/* an entry takes twice its size while the table grows; and key values */
	r->max_keys = Max((int64) maintenance_work_mem * 1024 / (sizeof(KeyEntry) * 4 + 64), 1000);
	sort_both_sides(r);
	while (next_slice(r))
	{
		mend_slice(r);
		any = true;
	}
	if (!any && r->failed > 0)
		mend_slice(r);			/* for the dead letters */
	tuplesort_end(r->sort);
	ExecDropSingleTupleTableSlot(r->slot);
}

/* Are there open letters, and which is the newest? */
static void
look_at_letters(Resync *r)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(r->ends->map->mapping_id);

	SPI_connect();
	migrate_spi_exec("SELECT max(id) FROM migrate.dead_letter"
					 " WHERE mapping_id = $1 AND state = 'open'",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	r->last_letter = migrate_spi_int64(0, 0, 0);
	r->settle = r->last_letter > 0;
	SPI_finish();
}

/*
 * Mend the selected buckets of a mapping that was compared (ends->plan); adds
 * to counts.  In a transaction that may write, with the source transaction of
 * the comparison.
 */
void
validate_mend(ValidateEnds *ends, const bool *selected, MigrateResyncCounts *counts)
{
	Resync		r = {.ends = ends,.counts = counts,.selected = selected,
	.keyless = ends->shape->nkeys == 0};
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate mending",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);

	for (int side = 0; side < 2; side++)
	{
		r.where[side] = validate_buckets_where(ends, side, selected);
		for (int i = 0; i <= ends->plan->nbuckets; i++)
			if (!r.where[side] || selected[i])
				r.nrows[side] += ends->plan->buckets[side][i].rows;
	}
	look_at_letters(&r);
	mend_mapping(&r);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}

/*
 * In a transaction, which holds the writer lock; conn is free to be used.
 */
void
migrate_resync_mapping(MigrateJob *job, int mapping_id, MigrateConn *conn,
					   MigrateResyncCounts *counts)
{
	ValidateEnds ends = {.job = job};
	MigrateSourceTxn txn;
	ValidateResult result;
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate resync",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	bool	   *selected;

	memset(counts, 0, sizeof(*counts));
	ends.map = migrate_mapping_load(mapping_id);
	ends.src = migrate_source_load(ends.map->source_id);
	migrate_mapping_compile(ends.map, ends.src);
	ends.shape = validate_shape(ends.map);
	ends.conn = ends.src->transport == 'c' ? conn : NULL;
	supersede_letters(mapping_id);
	migrate_source_begin(ends.conn, ends.src, NULL, &txn);
	selected = validate_differing(&ends, LEVEL_CHECKSUM, &result);
	counts->source_rows = result.source_rows;
	counts->target_rows = result.target_rows;
	if (selected)
		validate_mend(&ends, selected, counts);
	migrate_source_wait_durable(conn, &txn);	/* P4 */
	migrate_source_end(ends.conn);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}
