/*-------------------------------------------------------------------------
 *
 * compare.c
 *	  Are both sides of a mapping the same set of rows, and if not, where?
 *
 * Three passes, the later ones only when there is something to find, and only
 * over what differs:
 *
 *	  1. Each row falls into a bucket by its key (plan.c).  A bucket counts its
 *		 rows and sums both halves of their hashes; sums, not XOR, since two
 *		 equal wrong rows would cancel.  Equal buckets hold equal rows.
 *	  2. The rows of the buckets that differ, as (key hash, row hash) with a
 *		 count: source rows add, target rows take away.  What is left over
 *		 differs, and grouped by key it says how: left on the source side only
 *		 is missing in the target, on the target side only is missing in the
 *		 source, on both is different.  So duplicates are compared as
 *		 multisets, and the rows of a mapping to many as sets under their key.
 *		 The buckets are done in slices when their rows exceed
 *		 maintenance_work_mem.
 *	  3. Values of what is left over in a slice, up to VALIDATE_CAP rows in all.
 *
 * Digests of pass 1 may be computed by queries on both sides; the passes after
 * it always read rows, through the mapping, and hash them here.  A difference
 * whose values are the same text is none: see row_hash.c.
 *
 * Both sides must stand still between the passes: the source transaction and
 * the statement's snapshot see to that.  With the fdw transport over a wrapper
 * without transactions (files) the user does.
 *
 * Runs in the backend that validates.  Writes migrate.difference, in the
 * caller's transaction; a crash leaves nothing behind.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "validate.h"

/* A row's two hashes, and how many more the source has of it. */
typedef struct DiffKey
{
	ValidateHash key;
	ValidateHash row;
} DiffKey;

typedef struct DiffEntry
{
	DiffKey		id;
	int64		delta;			/* > 0: more on the source side */
	int			wanted;			/* pass 3: rows still to be kept */
	struct DiffGroup *group;
	char		status;
} DiffEntry;

#define SH_PREFIX diff
#define SH_ELEMENT_TYPE DiffEntry
#define SH_KEY_TYPE DiffKey
#define SH_KEY id
#define SH_HASH_KEY(tb, k) ((uint32) ((k).row.lo ^ ((k).key.hi >> 32)))
#define SH_EQUAL(tb, a, b) (memcmp(&(a), &(b), sizeof(DiffKey)) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* A row that differs, with its values as canonical text. */
typedef struct DiffRow
{
	char	  **texts;			/* of the shape's columns; NULL: not mapped */
	char	   *source_key;		/* jsonb text of the source row's key */
	char	   *source_row;
	char	   *raw;			/* of a row that could not be read */
} DiffRow;

/* The differing rows under one key. */
typedef struct DiffGroup
{
	List	   *rows[2];		/* of DiffRow, by side */
} DiffGroup;

typedef struct Comparison
{
	ValidateEnds *ends;
	ValidateLevel level;
	int64		validation_id;
	ValidateResult *result;
	MemoryContext mcxt;			/* of everything that is kept */
	ValidatePlan *plan;
	List	   *groups;			/* of DiffGroup */
	int64		n_picked;
	List	   *failed;			/* of DiffRow: cannot be mapped or read */
	int64		n_failed;

	/* of the part (pass 1) or slice (passes 2 and 3) at hand */
	char	   *where[2];		/* by side; NULL: all rows come */
	int			first_failed;
	int64		failed_before;

	/* passes 2 and 3 */
	bool	   *selected;		/* buckets of the slice */
	diff_hash  *diffs;
	diff_hash  *picked;			/* what to keep of what differs */
	int			first_group;
	int64		met[2];			/* rows of the passes 2, by side */
	int64		met_before;		/* of the source */
} Comparison;

/* ----------------------------------------------------------------
 * pass 1: buckets
 * ----------------------------------------------------------------
 */
static void
add_to_bucket(ValidateRow *row, void *arg)
{
	Comparison *cmp = arg;
	int			i = validate_row_bucket(cmp->ends, row);
	ValidateBucket *b = &cmp->plan->buckets[row->side][i];

	if (cmp->ends->only && !cmp->ends->only[i])
		return;
	b->rows++;
	b->lo += row->row.lo;
	b->hi += row->row.hi;
}

/*
 * A source row that the target cannot have, since it cannot be mapped or read.
 */
static void
note_failed(MigrateBatch *batch, int64 ord, char *key, char *raw, void *arg)
{
	Comparison *cmp = arg;
	MemoryContext old;
	DiffRow    *row;

	if (cmp->n_failed++ >= VALIDATE_CAP)
		return;
	old = MemoryContextSwitchTo(cmp->mcxt);
	row = palloc0(sizeof(DiffRow));
	if (batch)
		migrate_batch_row_json(batch, ord, &row->source_row, &row->source_key);
	else
	{
		row->source_key = key ? pstrdup(key) : NULL;
		row->raw = raw ? pstrdup(raw) : NULL;
	}
	cmp->failed = lappend(cmp->failed, row);
	MemoryContextSwitchTo(old);
}

static void
ignore_failed(MigrateBatch *batch, int64 ord, char *key, char *raw, void *arg)
{
}

/* The buckets that are compared hold nothing. */
static void
clear_buckets(Comparison *cmp, int side)
{
	const bool *only = cmp->ends->only;

	for (int i = 0; i <= cmp->plan->nbuckets; i++)
		if (!only || only[i])
			memset(&cmp->plan->buckets[side][i], 0, sizeof(ValidateBucket));
}

/* The scan of the source begins again; what failed in other parts stays. */
static void
reset_buckets(void *arg)
{
	Comparison *cmp = arg;

	clear_buckets(cmp, VALIDATE_SOURCE);
	cmp->failed = list_truncate(cmp->failed, cmp->first_failed);
	cmp->n_failed = cmp->failed_before;
}

/* Fill the buckets (or some), by queries where the plan says so. */
static void
fill_buckets(Comparison *cmp)
{
	ValidateSink sink = {.row = add_to_bucket,.failed = note_failed,
	.reset = reset_buckets,.arg = cmp};
	const bool *only = cmp->ends->only;

	for (int side = 0; side < 2; side++)
	{
		clear_buckets(cmp, side);
		cmp->where[side] = only ? validate_buckets_where(cmp->ends, side, only) : NULL;
	}
	cmp->first_failed = list_length(cmp->failed);
	cmp->failed_before = cmp->n_failed;
	if (cmp->plan->digest != DIGEST_HERE)
	{
		validate_both_digests(cmp->ends, cmp->where);
		return;
	}
	validate_scan_source(cmp->ends, &sink, cmp->where[VALIDATE_SOURCE]);
	if (cmp->plan->row[VALIDATE_TARGET])
		validate_target_digest(cmp->ends, cmp->where[VALIDATE_TARGET]);
	else
		validate_scan_target(cmp->ends, &sink, cmp->where[VALIDATE_TARGET]);
}

/* Part after part, those that are known to be equal left out. */
static void
fill_parts(Comparison *cmp)
{
	ValidateEnds *ends = cmp->ends;
	bool	   *only = palloc(sizeof(bool) * (cmp->plan->nbuckets + 1));
	int			next = 0;

	while (validate_parts_next(ends, &next, only))
	{
		int64		failed = cmp->n_failed;
		bool		all = true;

		CHECK_FOR_INTERRUPTS();
		validate_parts_keep(ends);
		for (int i = 0; i <= cmp->plan->nbuckets; i++)
			all = all && only[i];
		ends->only = all ? NULL : only;
		fill_buckets(cmp);
		/* what cannot be mapped or read is in no bucket */
		if (cmp->n_failed == failed)
			validate_parts_note(ends, only);
	}
	ends->only = NULL;
	for (int side = 0; side < 2; side++)
		if (ends->parts->equal)
			*(side == VALIDATE_SOURCE ? &cmp->result->source_rows :
			  &cmp->result->target_rows) += ends->parts->rows[side];
	pfree(only);
}

/* Rows that are to be met in pass 1. */
static void
begin_first_pass(Comparison *cmp)
{
	ValidateParts *parts = cmp->ends->parts;
	int64		rows[2];

	for (int side = 0; side < 2; side++)
	{
		rows[side] = Max(cmp->ends->estimate[side] - (parts ? parts->rows[side] : 0), 0);
		if (cmp->ends->only)	/* what the pass before found in them */
			rows[side] = validate_bucket_rows(cmp->plan, side, cmp->ends->only);
	}
	validate_progress_phase("compare", rows, cmp->plan->digest != DIGEST_HERE);
}

/* Fill the buckets and count the rows; true when something differs. */
static bool
compare_buckets(Comparison *cmp)
{
	bool		differ = false;

	begin_first_pass(cmp);
	if (cmp->ends->parts)
		fill_parts(cmp);
	else
		fill_buckets(cmp);
	/* rows that failed are in no bucket, unless the source counted them */
	cmp->result->source_rows += cmp->n_failed;
	for (int i = 0; i <= cmp->plan->nbuckets; i++)
	{
		cmp->result->source_rows += cmp->plan->buckets[VALIDATE_SOURCE][i].rows;
		cmp->result->target_rows += cmp->plan->buckets[VALIDATE_TARGET][i].rows;
		differ = differ || validate_bucket_differs(cmp->plan, i);
	}
	return differ;
}

/* ----------------------------------------------------------------
 * pass 2: rows of the buckets that differ
 * ----------------------------------------------------------------
 */
static void
count_row(ValidateRow *row, void *arg)
{
	Comparison *cmp = arg;
	DiffKey		id = {.key = row->key,.row = row->row};
	DiffEntry  *entry;
	bool		found;

	if (!cmp->where[row->side] && !cmp->selected[validate_row_bucket(cmp->ends, row)])
		return;
	cmp->met[row->side]++;
	entry = diff_insert(cmp->diffs, id, &found);
	if (!found)
	{
		entry->delta = 0;
		entry->wanted = 0;
		entry->group = NULL;
	}
	entry->delta += row->side == VALIDATE_SOURCE ? 1 : -1;
	if (entry->delta == 0)
		diff_delete_item(cmp->diffs, entry);
}

static void
reset_diffs(void *arg)
{
	Comparison *cmp = arg;

	diff_reset(cmp->diffs);
	cmp->failed = list_truncate(cmp->failed, cmp->first_failed);
	cmp->n_failed = cmp->failed_before;
	cmp->met[VALIDATE_SOURCE] = cmp->met_before;
}

/*
 * Choose the next buckets that differ, from *next on, as many as memory
 * allows and at least one.  False when there is none left.
 */
static bool
select_slice(Comparison *cmp, int *next)
{
	/* an entry takes twice its size while the table grows */
	int64		limit = (int64) maintenance_work_mem * 1024 / (sizeof(DiffEntry) * 4);
	int64		rows = 0;
	bool		any = false;

	memset(cmp->selected, 0, sizeof(bool) * (cmp->plan->nbuckets + 1));
	for (; *next <= cmp->plan->nbuckets; (*next)++)
	{
		int64		n;

		if (!validate_bucket_differs(cmp->plan, *next))
			continue;
		n = cmp->plan->buckets[VALIDATE_SOURCE][*next].rows +
			cmp->plan->buckets[VALIDATE_TARGET][*next].rows;
		if (any && rows + n > limit)
			break;
		rows += n;
		any = true;
		cmp->selected[*next] = true;
	}
	return any;
}

/* Say that the rows of the slice, or all where a side cannot tell, are read. */
static void
begin_pass(Comparison *cmp, const char *phase)
{
	int64		rows[2] = {0, 0};

	for (int side = 0; side < 2; side++)
		for (int i = 0; i <= cmp->plan->nbuckets; i++)
			if (!cmp->where[side] || cmp->selected[i])
				rows[side] += cmp->plan->buckets[side][i].rows;
	validate_progress_phase(phase, rows, false);
}

/* by key, so that the rows under one key stand together */
static int
compare_entries(const void *a, const void *b)
{
	return memcmp(*(DiffEntry *const *) a, *(DiffEntry *const *) b,
				  sizeof(DiffKey));
}

/*
 * Count the differences of one key, entries[0..n), and pick rows to be kept.
 * Of rows left over on both sides as many as there are pairs are "different",
 * the rest is missing.
 */
static void
classify_group(Comparison *cmp, DiffEntry **entries, int n)
{
	int64		left[2] = {0, 0};
	int			room = VALIDATE_CAP - cmp->n_picked;
	int			keep[2];
	DiffGroup  *group;

	for (int i = 0; i < n; i++)
	{
		if (entries[i]->delta > 0)
			left[VALIDATE_SOURCE] += entries[i]->delta;
		else
			left[VALIDATE_TARGET] -= entries[i]->delta;
	}
	cmp->result->mismatches += Max(left[0], left[1]);
	if (room <= 0)
		return;

	group = palloc0(sizeof(DiffGroup));
	cmp->groups = lappend(cmp->groups, group);
	for (int side = 0; side < 2; side++)
		keep[side] = Min(left[side], room);
	cmp->n_picked += Max(keep[0], keep[1]);
	for (int i = 0; i < n; i++)
	{
		int			side = entries[i]->delta > 0 ? VALIDATE_SOURCE : VALIDATE_TARGET;
		int			wanted = Min(keep[side], (side == VALIDATE_SOURCE ?
											  entries[i]->delta : -entries[i]->delta));
		DiffEntry  *pick;
		bool		found;

		if (wanted == 0)
			continue;
		keep[side] -= wanted;
		pick = diff_insert(cmp->picked, entries[i]->id, &found);
		pick->delta = entries[i]->delta;
		pick->wanted = wanted;
		pick->group = group;
	}
}

/* What is left over of a slice, key by key. */
static void
classify_slice(Comparison *cmp)
{
	uint32		n = 0;
	DiffEntry **entries;
	DiffEntry  *entry;
	diff_iterator it;

	if (cmp->diffs->members == 0)
		return;
	entries = MemoryContextAllocHuge(CurrentMemoryContext,
									 sizeof(DiffEntry *) * cmp->diffs->members);
	diff_start_iterate(cmp->diffs, &it);
	while ((entry = diff_iterate(cmp->diffs, &it)) != NULL)
		entries[n++] = entry;
	qsort(entries, n, sizeof(DiffEntry *), compare_entries);
	for (uint32 lo = 0, hi; lo < n; lo = hi)
	{
		for (hi = lo + 1; hi < n; hi++)
			if (memcmp(&entries[lo]->id.key, &entries[hi]->id.key,
					   sizeof(ValidateHash)) != 0)
				break;
		classify_group(cmp, entries + lo, hi - lo);
	}
	pfree(entries);
}

/* Pass 2 over the slice. */
static void
find_rows(Comparison *cmp)
{
	ValidateSink sink = {.row = count_row,.reset = reset_diffs,.arg = cmp};

	/* pass 1 has noted them, if the rows came here */
	sink.failed = cmp->plan->digest == DIGEST_HERE ? ignore_failed : note_failed;
	cmp->first_failed = list_length(cmp->failed);
	cmp->failed_before = cmp->n_failed;
	diff_reset(cmp->diffs);
	begin_pass(cmp, "rows that differ");
	validate_scan_source(cmp->ends, &sink, cmp->where[VALIDATE_SOURCE]);
	validate_scan_target(cmp->ends, &sink, cmp->where[VALIDATE_TARGET]);
	cmp->first_group = list_length(cmp->groups);
	diff_reset(cmp->picked);
	classify_slice(cmp);
}

/* ----------------------------------------------------------------
 * pass 3: the values of what differs
 * ----------------------------------------------------------------
 */
static void
keep_row(ValidateRow *row, void *arg)
{
	Comparison *cmp = arg;
	ValidateShape *shape = cmp->ends->shape;
	DiffKey		id = {.key = row->key,.row = row->row};
	DiffEntry  *pick = diff_lookup(cmp->picked, id);
	MemoryContext old;
	DiffRow    *kept;

	if (pick == NULL || pick->wanted == 0 ||
		(pick->delta > 0) != (row->side == VALIDATE_SOURCE))
		return;
	pick->wanted--;
	old = MemoryContextSwitchTo(cmp->mcxt);
	kept = palloc0(sizeof(DiffRow));
	kept->texts = palloc0(sizeof(char *) * Max(shape->ncolumns, 1));
	for (int i = 0; i < shape->ncolumns; i++)
		kept->texts[i] = validate_column_text(shape, row->side, row->slot, i);
	if (row->batch)
		migrate_batch_row_json(row->batch, row->ord, &kept->source_row,
							   &kept->source_key);
	pick->group->rows[row->side] = lappend(pick->group->rows[row->side], kept);
	MemoryContextSwitchTo(old);
}

/* The scan begins again: forget the source rows, want them again. */
static void
reset_kept(void *arg)
{
	Comparison *cmp = arg;
	DiffEntry  *pick;
	diff_iterator it;

	diff_start_iterate(cmp->picked, &it);
	while ((pick = diff_iterate(cmp->picked, &it)) != NULL)
		if (pick->delta > 0)
			pick->wanted = Min(pick->delta, VALIDATE_CAP);
	for (int i = cmp->first_group; i < list_length(cmp->groups); i++)
		((DiffGroup *) list_nth(cmp->groups, i))->rows[VALIDATE_SOURCE] = NIL;
}

static void
fetch_details(Comparison *cmp)
{
	ValidateSink sink = {.row = keep_row,.failed = ignore_failed,
	.reset = reset_kept,.arg = cmp};

	if (cmp->picked->members == 0)
		return;
	begin_pass(cmp, "their values");
	validate_scan_source(cmp->ends, &sink, cmp->where[VALIDATE_SOURCE]);
	validate_scan_target(cmp->ends, &sink, cmp->where[VALIDATE_TARGET]);
}

/*
 * Drill down, a slice of buckets at a time.  Stops when enough was found to be
 * kept: then there may be more mismatches than were counted.
 */
static void
compare_rows(Comparison *cmp)
{
	int			next = 0;

	cmp->selected = palloc(sizeof(bool) * (cmp->plan->nbuckets + 1));
	cmp->diffs = diff_create(cmp->mcxt, 1024, NULL);
	cmp->picked = diff_create(cmp->mcxt, 1024, NULL);
	while (select_slice(cmp, &next))
	{
		if (cmp->n_picked >= VALIDATE_CAP)
		{
			cmp->result->at_least = true;
			break;
		}
		for (int side = 0; side < 2; side++)
			cmp->where[side] = validate_buckets_where(cmp->ends, side, cmp->selected);
		find_rows(cmp);
		fetch_details(cmp);
	}
	diff_destroy(cmp->diffs);
}

/* ----------------------------------------------------------------
 * the record
 * ----------------------------------------------------------------
 */

/* {"column": "canonical text"} of all columns, or of the key's only */
static char *
row_as_json(ValidateShape *shape, DiffRow *row, bool key_only)
{
	StringInfoData buf;
	int			n = key_only ? shape->nkeys : shape->ncolumns;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < n; i++)
	{
		int			col = key_only ? shape->keys[i] : i;

		if (i > 0)
			appendStringInfoString(&buf, ", ");
		escape_json(&buf, shape->columns[col].name);
		appendStringInfoString(&buf, ": ");
		if (row->texts[col])
			escape_json(&buf, row->texts[col]);
		else
			appendStringInfoString(&buf, "null");
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* names of the columns that are not the same, as text[] */
static Datum
differing_columns(ValidateShape *shape, DiffRow *a, DiffRow *b)
{
	Datum	   *names = palloc(sizeof(Datum) * Max(shape->ncolumns, 1));
	int			n = 0;

	for (int i = 0; i < shape->ncolumns; i++)
	{
		char	   *x = a->texts[i];
		char	   *y = b->texts[i];

		if (x == y || (x && y && strcmp(x, y) == 0))
			continue;
		names[n++] = CStringGetTextDatum(shape->columns[i].name);
	}
	return PointerGetDatum(construct_array(names, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * One row of migrate.difference.  source and target are the rows, either may
 * be NULL; a source row without texts could not be mapped or read.
 */
static void
record_difference(Comparison *cmp, const char *kind, DiffRow *source,
				  DiffRow *target)
{
	ValidateShape *shape = cmp->ends->shape;
	bool		full = cmp->level == LEVEL_FULL;
	Oid			types[] = {INT8OID, INT4OID, TEXTOID, TEXTOID, TEXTARRAYOID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, TEXTOID};
	Datum		values[11] = {Int64GetDatum(cmp->validation_id),
		Int32GetDatum(cmp->ends->job->job_id),
	CStringGetTextDatum(kind)};
	char		nulls[] = "   nnnnnn n";

#define SET_TEXT(n, s) \
	do { \
		const char *s_ = (s); \
		if (s_) { values[n] = CStringGetTextDatum(s_); nulls[n] = ' '; } \
	} while (0)

	if (source && !source->texts)
		SET_TEXT(3, source->source_key);
	else if (shape->nkeys > 0)
		SET_TEXT(3, row_as_json(shape, source ? source : target, true));
	if (source && target)
	{
		values[4] = differing_columns(shape, source, target);
		nulls[4] = ' ';
	}
	if (full && source)
		SET_TEXT(5, source->texts ? row_as_json(shape, source, false) :
				 source->source_row ? source->source_row : source->raw);
	if (full && target)
		SET_TEXT(6, row_as_json(shape, target, false));
	if (source)
	{
		SET_TEXT(7, source->source_key);
		SET_TEXT(8, source->source_row);
		SET_TEXT(10, source->raw);
	}
	values[9] = Int32GetDatum(cmp->ends->map->mapping_id);
	migrate_spi_exec("INSERT INTO migrate.difference (validation_id, job_id, kind, key,"
					 " columns, source_row, target_row, dead_letter)"
					 " SELECT $1, $2, $3, $4::jsonb, $5, $6::jsonb, $7::jsonb,"
					 " (SELECT min(d.id) FROM migrate.dead_letter d"
					 "  WHERE d.mapping_id = $10 AND d.state = 'open'"
					 "  AND CASE WHEN $8 IS NOT NULL THEN d.key = $8::jsonb"
					 "      WHEN $9 IS NOT NULL THEN d.source_row = $9::jsonb"
					 "      ELSE d.raw = $11::jsonb END)"
					 " RETURNING (dead_letter IS NOT NULL)::int",
					 11, types, values, nulls, SPI_OK_INSERT_RETURNING);
	cmp->result->kept++;
	cmp->result->explained += migrate_spi_int64(0, 0, 0);
	SPI_freetuptable(SPI_tuptable);
}

static bool
same_texts(ValidateShape *shape, DiffRow *a, DiffRow *b)
{
	for (int i = 0; i < shape->ncolumns; i++)
	{
		char	   *x = a->texts[i];
		char	   *y = b->texts[i];

		if (x != y && !(x && y && strcmp(x, y) == 0))
			return false;
	}
	return true;
}

/* Rows under one key that are the same text on both sides do not differ. */
static void
drop_same(Comparison *cmp, DiffGroup *group)
{
	ValidateShape *shape = cmp->ends->shape;
	ListCell   *s,
			   *t;

	foreach(s, group->rows[VALIDATE_SOURCE])
	{
		foreach(t, group->rows[VALIDATE_TARGET])
		{
			if (!same_texts(shape, lfirst(s), lfirst(t)))
				continue;
			group->rows[VALIDATE_SOURCE] = foreach_delete_current(group->rows[VALIDATE_SOURCE], s);
			group->rows[VALIDATE_TARGET] = foreach_delete_current(group->rows[VALIDATE_TARGET], t);
			cmp->result->mismatches--;
			break;
		}
	}
}

/* Pair up what is left over under one key. */
static void
record_group(Comparison *cmp, DiffGroup *group)
{
	int			n_source,
				n_target;

	drop_same(cmp, group);
	n_source = list_length(group->rows[VALIDATE_SOURCE]);
	n_target = list_length(group->rows[VALIDATE_TARGET]);
	for (int i = 0; i < Max(n_source, n_target); i++)
	{
		DiffRow    *source = NULL;
		DiffRow    *target = NULL;

		CHECK_FOR_INTERRUPTS();
		if (i < n_source)
			source = list_nth(group->rows[VALIDATE_SOURCE], i);
		if (i < n_target)
			target = list_nth(group->rows[VALIDATE_TARGET], i);
		record_difference(cmp, !target ? "missing_in_target" :
						  !source ? "missing_in_source" : "different",
						  source, target);
	}
}

static void
record_all(Comparison *cmp)
{
	ListCell   *lc;

	if (cmp->validation_id == 0)
		cmp->validation_id = validate_begin_run(cmp->ends->job, cmp->ends->map->mapping_id,
												NULL, LEVEL_CHANGED);
	cmp->result->validation_id = cmp->validation_id;
	SPI_connect();
	foreach(lc, cmp->failed)
	{
		if (cmp->result->kept >= VALIDATE_CAP)
			break;
		record_difference(cmp, "missing_in_target", lfirst(lc), NULL);
	}
	foreach(lc, cmp->groups)
	{
		if (cmp->result->kept >= VALIDATE_CAP)
			break;
		record_group(cmp, lfirst(lc));
	}
	SPI_finish();
}

/*
 * Compare both sides' buckets.  Those that differ, in an array by bucket, or
 * NULL when none does; the counts of rows are in *result.  Rows that cannot be
 * mapped or read make everything differ, since they are in no bucket.
 */
bool *
validate_differing(ValidateEnds *ends, ValidateLevel level, ValidateResult *result)
{
	Comparison	cmp = {.ends = ends,.level = level,.result = result,
	.mcxt = CurrentMemoryContext};
	bool	   *differ;
	bool		any;

	memset(result, 0, sizeof(*result));
	validate_plan(ends, level);
	cmp.plan = ends->plan;
	result->digest = validate_digest_names[cmp.plan->digest];
	any = compare_buckets(&cmp);
	if (!any && cmp.n_failed == 0)
		return NULL;
	differ = palloc(sizeof(bool) * (cmp.plan->nbuckets + 1));
	for (int i = 0; i <= cmp.plan->nbuckets; i++)
		differ[i] = cmp.n_failed > 0 || validate_bucket_differs(cmp.plan, i);
	return differ;
}

/*
 * Compare both sides at the level checksum or full, and record what differs.
 */
void
validate_compare(ValidateEnds *ends, ValidateLevel level, int64 validation_id,
				 ValidateResult *result)
{
	Comparison	cmp = {.ends = ends,.level = level,
	.validation_id = validation_id,.result = result};
	MemoryContext old;

	cmp.mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate comparison",
									 ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(cmp.mcxt);
	memset(result, 0, sizeof(*result));
	if (ends->plan == NULL)
		validate_plan(ends, level);
	cmp.plan = ends->plan;
	result->digest = validate_digest_names[cmp.plan->digest];
	if (compare_buckets(&cmp))
	{
		validate_progress_first_pass(false);
		if (ends->renew)
			ends->renew(ends);
		compare_rows(&cmp);
	}
	if (ends->done)
		ends->done(ends);
	result->mismatches += cmp.n_failed;
	if (cmp.failed || cmp.groups)
		record_all(&cmp);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cmp.mcxt);
}

/* ----------------------------------------------------------------
 * chosen rows
 * ----------------------------------------------------------------
 */

/* Do the rows of a part differ?  Nothing is kept of it. */
static bool
part_differs(Comparison *cmp)
{
	ValidateSink sink = {.row = count_row,.failed = note_failed,.reset = reset_diffs,.arg = cmp};
	bool		differs;

	cmp->first_failed = list_length(cmp->failed);
	cmp->failed_before = cmp->n_failed;
	cmp->met_before = cmp->met[VALIDATE_SOURCE];
	diff_reset(cmp->diffs);
	validate_scan_source(cmp->ends, &sink, cmp->where[VALIDATE_SOURCE]);
	validate_scan_target(cmp->ends, &sink, cmp->where[VALIDATE_TARGET]);
	differs = cmp->diffs->members > 0 || cmp->n_failed > cmp->failed_before;
	cmp->met[VALIDATE_SOURCE] += cmp->n_failed - cmp->failed_before;
	cmp->failed = list_truncate(cmp->failed, cmp->first_failed);
	cmp->n_failed = cmp->failed_before;
	return differs;
}

/*
 * Compare rows that conditions name, part by part, and record what differs; the
 * parts that differ are looked at again at a later cut.  False, with nothing
 * done, when the conditions cannot be told.
 */
bool
validate_compare_chosen(ValidateEnds *ends, int nparts, ValidateWhereFn where_of, void *arg,
						int64 validation_id, ValidateResult *result)
{
	/* no buckets; and a row that fails is noted by whatever pass reads it */
	ValidatePlan plan = {.digest = DIGEST_SOURCE,
		.buckets = {palloc0(sizeof(ValidateBucket)), palloc0(sizeof(ValidateBucket))}
	};
	Comparison	cmp = {.ends = ends,.level = LEVEL_CHANGED,.validation_id = validation_id,
	.result = result,.plan = &plan};
	MemoryContext part;
	MemoryContext old;
	List	   *differing = NIL;
	bool		told;
	ListCell   *lc;

	memset(result, 0, sizeof(*result));
	result->digest = validate_digest_names[DIGEST_HERE];
	cmp.mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate comparison", ALLOCSET_DEFAULT_SIZES);
	part = AllocSetContextCreate(cmp.mcxt, "migrate comparison part", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(cmp.mcxt);
	cmp.selected = palloc0(sizeof(bool));
	cmp.diffs = diff_create(cmp.mcxt, 1024, NULL);
	cmp.picked = diff_create(cmp.mcxt, 64, NULL);
	told = where_of(-1, cmp.where, arg);
	validate_progress_phase("changed rows", NULL, false);
	for (int i = 0; i < nparts && told; i++)
	{
		bool		differs = false;

		MemoryContextSwitchTo(part);
		told = where_of(i, cmp.where, arg);
		if (told)
			differs = part_differs(&cmp);
		MemoryContextSwitchTo(cmp.mcxt);
		MemoryContextReset(part);
		if (differs)
			differing = lappend_int(differing, i);
	}
	if (!told)
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(cmp.mcxt);
		return false;
	}
	result->source_rows = cmp.met[VALIDATE_SOURCE];
	result->target_rows = cmp.met[VALIDATE_TARGET];
	if (differing && ends->renew)
	{
		ends->renew(ends);
		(void) where_of(-1, cmp.where, arg);
	}
	foreach(lc, differing)
	{
		if (cmp.n_picked >= VALIDATE_CAP)
		{
			result->at_least = true;
			break;
		}
		if (!where_of(lfirst_int(lc), cmp.where, arg))
			elog(ERROR, "a key that could be mapped cannot be mapped any more");
		find_rows(&cmp);
		fetch_details(&cmp);
	}
	if (ends->done)
		ends->done(ends);
	result->mismatches += cmp.n_failed;
	if (cmp.failed || cmp.groups)
		record_all(&cmp);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cmp.mcxt);
	return true;
}
