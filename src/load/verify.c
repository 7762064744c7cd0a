/*-------------------------------------------------------------------------
 *
 * verify.c
 *	  Rows read back after they were written (option verify_writes).
 *
 * Of the mapped rows of an attempt, count and two sums of their hashes are
 * kept as they are handed to the writer: what was given.  When they are
 * written, in the same subtransaction, the writer's way reads them from the
 * target again: what was found.
 *
 *	  multi-insert		by the places that it gave
 *	  by an index		by the key map, in that index
 *	  statements		inserts by the places that RETURNING gave (of a foreign
 *						table the values, which are the remote server's); all
 *						else by the key map
 *
 * A key that was removed must have no row but those that were given.  Rows
 * with a null in the key map cannot be found by it, and are left out.
 *
 * Hashes are over the bytes of each mapped column's value, detoasted: what the
 * mapping gave is of the column's type and length already (mapping.c).  Two
 * values with other bytes may be the same to their type (a foreign server
 * sends text), so a difference is one only when the texts under the settings
 * of row_hash.c differ, too.
 *
 * A difference is nobody's row's fault but something on the target that changes
 * rows: it is thrown, nothing of the chunk or batch stays, and the job pauses.
 *
 * Process and crash: as writer.c.  Off, none of this is called.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "validate/validate.h"

/* a key or row in a message, bytes */
#define MAX_SHOWN 200

struct MigrateVerify
{
	ValidateValue *values;		/* by mapped column */
	StringInfoData form;		/* of the row at hand */
	MemoryContext tmp;			/* reset after each row */
	ValidateBucket given;		/* in this attempt, not yet found */
};

/* a row as text, when something differs */
typedef struct RowText
{
	char	  **columns;		/* NULL is null */
	char	   *all;			/* of all columns, to sort by */
} RowText;

/* rows of one side */
typedef struct Side
{
	MigrateWriter *writer;
	ValidateBucket *sums;
	ValidateHash *hashes;		/* in the end of rows that the other lacks */
	int64		nhashes;
	int64		max_hashes;
	int64		rows;
	bool	   *told;			/* by hash: its row is in texts */
	List	   *texts;			/* of RowText, the same rows */
} Side;

/* ----------------------------------------------------------------
 * hashes
 * ----------------------------------------------------------------
 */

/*
 * Bytes wherever they can be had: both sides are of one server and one type,
 * so that its output function, and pinned settings, are not needed.
 */
static void
value_form(ValidateValue *value, Oid type)
{
	validate_value_form(value, type);
	if (value->form != FORM_TEXT)
		return;
	if (value->length == -1)
		value->form = FORM_BYTES;
	else if (value->length > 1)
		value->form = get_typbyval(getBaseType(type)) ? FORM_INTEGER : FORM_FIXED;
}

/* Begin to read back; in the writer's memory. */
static void
open_verify(MigrateWriter *writer)
{
	MigrateMapping *map = writer->map;
	MemoryContext old = MemoryContextSwitchTo(writer->mcxt);
	MigrateVerify *verify = palloc0(sizeof(MigrateVerify));

	verify->values = palloc0(sizeof(ValidateValue) * Max(map->ncolumns, 1));
	for (int i = 0; i < map->ncolumns; i++)
		value_form(&verify->values[i], TupleDescAttr(map->outdesc, i)->atttypid);
	initStringInfo(&verify->form);
	verify->tmp = AllocSetContextCreate(writer->mcxt, "migrate verify",
										ALLOCSET_DEFAULT_SIZES);
	writer->verifier = verify;
	MemoryContextSwitchTo(old);
}

/* Before each attempt: shall its rows be read back? */
void
migrate_verify_begin(MigrateWriter *writer, bool wanted)
{
	writer->verify = NULL;
	writer->verified = 0;
	if (!wanted)
		return;
	if (writer->verifier == NULL)
		open_verify(writer);
	writer->verify = writer->verifier;
	memset(&writer->verify->given, 0, sizeof(ValidateBucket));
}

/*
 * The mapped columns of a slot; the i-th is attribute attnums[i], or i + 1 when
 * that is NULL.
 */
static ValidateHash
row_hash(MigrateWriter *writer, TupleTableSlot *slot, const AttrNumber *attnums)
{
	MigrateVerify *verify = writer->verify;
	MemoryContext old = MemoryContextSwitchTo(verify->tmp);
	ValidateHash hash;

	resetStringInfo(&verify->form);
	for (int i = 0; i < writer->map->ncolumns; i++)
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, attnums ? attnums[i] : i + 1, &isnull);

		validate_append_value(&verify->form, &verify->values[i], value, isnull);
	}
	hash = validate_hash_bytes(verify->form.data, verify->form.len);
	MemoryContextSwitchTo(old);
	MemoryContextReset(verify->tmp);
	return hash;
}

static void
add_row(ValidateBucket *sums, ValidateHash hash)
{
	sums->rows++;
	sums->lo += hash.lo;
	sums->hi += hash.hi;
}

/* A row that is about to be written. */
void
migrate_verify_given(MigrateWriter *writer, TupleTableSlot *slot,
					 const AttrNumber *attnums)
{
	add_row(&writer->verify->given, row_hash(writer, slot, attnums));
}

/* ----------------------------------------------------------------
 * what differs
 * ----------------------------------------------------------------
 */
static int
compare_hashes(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(ValidateHash));
}

static void
collect_hash(void *arg, TupleTableSlot *slot, const AttrNumber *attnums)
{
	Side	   *side = arg;

	if (side->nhashes == side->max_hashes)
	{
		side->max_hashes = Max(side->max_hashes * 2, 1024);
		side->hashes = side->hashes == NULL ?
			MemoryContextAllocHuge(CurrentMemoryContext, sizeof(ValidateHash) * side->max_hashes) :
			repalloc_huge(side->hashes, sizeof(ValidateHash) * side->max_hashes);
	}
	side->hashes[side->nhashes++] = row_hash(side->writer, slot, attnums);
}

/* Sort, and leave what the other side has not. */
static void
drop_equal_hashes(Side *a, Side *b)
{
	int64		left[2] = {0, 0};
	int64		i = 0;
	int64		j = 0;

	a->rows = a->nhashes;
	b->rows = b->nhashes;
	if (a->rows > 0)
		qsort(a->hashes, a->rows, sizeof(ValidateHash), compare_hashes);
	if (b->rows > 0)
		qsort(b->hashes, b->rows, sizeof(ValidateHash), compare_hashes);
	while (i < a->rows || j < b->rows)
	{
		int			cmp = i == a->rows ? 1 : j == b->rows ? -1 :
		compare_hashes(&a->hashes[i], &b->hashes[j]);

		if (cmp < 0)
			a->hashes[left[0]++] = a->hashes[i];
		if (cmp > 0)
			b->hashes[left[1]++] = b->hashes[j];
		i += cmp <= 0;
		j += cmp >= 0;
	}
	a->nhashes = left[0];
	b->nhashes = left[1];
	a->told = palloc0(sizeof(bool) * (left[0] + 1));
	b->told = palloc0(sizeof(bool) * (left[1] + 1));
}

/* Is it one of those that the other side has not?  Each once. */
static bool
is_left(Side *side, ValidateHash hash)
{
	ValidateHash *found = side->nhashes == 0 ? NULL :
	bsearch(&hash, side->hashes, side->nhashes, sizeof(ValidateHash), compare_hashes);
	int64		i;

	if (found == NULL)
		return false;
	for (i = found - side->hashes; i > 0 && compare_hashes(&hash, &side->hashes[i - 1]) == 0;)
		i--;
	for (; i < side->nhashes && compare_hashes(&hash, &side->hashes[i]) == 0; i++)
		if (!side->told[i])
			return side->told[i] = true;
	return false;
}

/* Keep the text of a row that the other side has not. */
static void
collect_text(void *arg, TupleTableSlot *slot, const AttrNumber *attnums)
{
	Side	   *side = arg;
	MigrateWriter *writer = side->writer;
	StringInfoData all;
	RowText    *row;

	if (!is_left(side, row_hash(writer, slot, attnums)))
		return;
	row = palloc0(sizeof(RowText));
	row->columns = palloc0(sizeof(char *) * Max(writer->map->ncolumns, 1));
	initStringInfo(&all);
	for (int i = 0; i < writer->map->ncolumns; i++)
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, attnums ? attnums[i] : i + 1, &isnull);

		if (!isnull)
			row->columns[i] = OutputFunctionCall(&writer->verify->values[i].out, value);
		/* told apart: null, the empty text, and where a column ends */
		appendStringInfo(&all, "%s%s", i > 0 ? ", " : "",
						 isnull ? "null" : quote_literal_cstr(row->columns[i]));
	}
	row->all = all.data;
	side->texts = lappend(side->texts, row);
}

static int
compare_texts(const ListCell *a, const ListCell *b)
{
	return strcmp(((RowText *) lfirst(a))->all, ((RowText *) lfirst(b))->all);
}

/* Take out what both have, as text. */
static void
drop_equal_texts(Side *a, Side *b)
{
	List	   *left[2] = {NIL, NIL};
	int			i = 0;
	int			j = 0;

	list_sort(a->texts, compare_texts);
	list_sort(b->texts, compare_texts);
	while (i < list_length(a->texts) || j < list_length(b->texts))
	{
		RowText    *x = i < list_length(a->texts) ? list_nth(a->texts, i) : NULL;
		RowText    *y = j < list_length(b->texts) ? list_nth(b->texts, j) : NULL;
		int			cmp = x == NULL ? 1 : y == NULL ? -1 : strcmp(x->all, y->all);

		if (cmp < 0)
			left[0] = lappend(left[0], x);
		if (cmp > 0)
			left[1] = lappend(left[1], y);
		i += cmp <= 0;
		j += cmp >= 0;
	}
	a->texts = left[0];
	b->texts = left[1];
}

static bool
column_differs(RowText *a, RowText *b, int i)
{
	if (a->columns[i] == NULL || b->columns[i] == NULL)
		return a->columns[i] != b->columns[i];
	return strcmp(a->columns[i], b->columns[i]) != 0;
}

static int
columns_that_differ(MigrateMapping *map, RowText *a, RowText *b)
{
	int			n = 0;

	for (int i = 0; i < map->ncolumns; i++)
		n += column_differs(a, b, i);
	return n;
}

/* Have both the same key?  Without one, no two rows have. */
static bool
same_key(MigrateWriter *writer, RowText *a, RowText *b)
{
	for (int k = 0; k < writer->map->nkeys; k++)
	{
		int			i = writer->keys[k].column;

		if (i >= 0 && column_differs(a, b, i))
			return false;
	}
	return writer->map->nkeys > 0;
}

/* The row that was found where this one was given; NULL: none is like it. */
static RowText *
most_like(MigrateWriter *writer, RowText *row, List *found)
{
	RowText    *best = NULL;
	int			best_n = writer->map->ncolumns;
	ListCell   *lc;

	foreach(lc, found)
	{
		RowText    *other = lfirst(lc);
		int			n = columns_that_differ(writer->map, row, other);

		if (same_key(writer, row, other))
			return other;
		if (n < best_n)
		{
			best = other;
			best_n = n;
		}
	}
	return best;
}

static char *
shown(const char *text)
{
	int			len = strlen(text);

	if (len <= MAX_SHOWN)
		return pstrdup(text);
	return psprintf("%.*s...", pg_mbcliplen(text, len, MAX_SHOWN), text);
}

/* "(a, b)=(1, x)"; of a target without a key map, the row. */
static char *
name_of_row(MigrateWriter *writer, RowText *row)
{
	StringInfoData names;
	StringInfoData values;

	initStringInfo(&names);
	initStringInfo(&values);
	for (int k = 0; k < writer->map->nkeys; k++)
	{
		int			i = writer->keys[k].column;

		if (i < 0)
			continue;
		appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "", writer->map->key_columns[k]);
		appendStringInfo(&values, "%s%s", values.len > 0 ? ", " : "",
						 row->columns[i] ? row->columns[i] : "null");
	}
	if (names.len == 0)
		return psprintf("(%s)", shown(row->all));
	return psprintf("(%s)=(%s)", names.data, shown(values.data));
}

/* In words, what the first difference is. */
static char *
describe(MigrateWriter *writer, List *given, List *found)
{
	RowText    *row = linitial(given != NIL ? given : found);
	RowText    *other;
	StringInfoData buf;
	int			n;

	if (given == NIL)
		return psprintf("Row %s is there, which was not written.", name_of_row(writer, row));
	other = most_like(writer, row, found);
	if (other == NULL)
		return psprintf("Row %s is not there.", name_of_row(writer, row));
	initStringInfo(&buf);
	n = columns_that_differ(writer->map, row, other);
	appendStringInfo(&buf, "Row %s is there with another value of column%s ",
					 name_of_row(writer, row), n > 1 ? "s" : "");
	n = 0;
	for (int i = 0; i < writer->map->ncolumns; i++)
		if (column_differs(row, other, i))
			appendStringInfo(&buf, "%s\"%s\"", n++ > 0 ? ", " : "", writer->map->columns[i]);
	appendStringInfoChar(&buf, '.');
	return buf.data;
}

/* Throw it, and let the job pause. */
static void
refuse(MigrateWriter *writer, char *what)
{
	migrate_give_up("verify", psprintf("verify_writes: rows of %s are not there as they were written; %s",
									   writer->map->target_name, what));
	if (migrate_shared)
		migrate_abandoned = true;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("rows of %s are not there as they were written",
					writer->map->target_name),
			 errdetail_internal("%s", what),
			 errhint("A trigger that always fires, or a rule, of the target may change what is written. Remove it, or let the mapping give what it makes; then migrate_resume. Without verify_writes rows are not read back.")));
}

/*
 * The sums differ: which rows do?  None, where only the bytes of a value do.
 */
static void
explain(MigrateWriter *writer, MigrateVerifyScan given_rows, MigrateVerifyScan found_rows)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate verify explain",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	Side		given = {.writer = writer};
	Side		found = {.writer = writer};
	int			nestlevel = validate_pin_settings();

	given_rows(writer, collect_hash, &given);
	found_rows(writer, collect_hash, &found);
	drop_equal_hashes(&given, &found);
	given_rows(writer, collect_text, &given);
	found_rows(writer, collect_text, &found);
	validate_unpin_settings(nestlevel);
	drop_equal_texts(&given, &found);
	if (given.texts != NIL || found.texts != NIL)
		refuse(writer, psprintf("%lld were given, %lld were found. %s",
								(long long) given.rows, (long long) found.rows,
								describe(writer, given.texts, found.texts)));
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}

/* ----------------------------------------------------------------
 * for the ways
 * ----------------------------------------------------------------
 */
static void
sum_row(void *arg, TupleTableSlot *slot, const AttrNumber *attnums)
{
	Side	   *side = arg;

	add_row(side->sums, row_hash(side->writer, slot, attnums));
}

/*
 * What was given since the last call is written: compare it with what is
 * found.  Both scans may be called again.
 */
void
migrate_verify_found(MigrateWriter *writer, MigrateVerifyScan given_rows,
					 MigrateVerifyScan found_rows)
{
	MigrateVerify *verify = writer->verify;
	ValidateBucket found = {0};
	Side		side = {.writer = writer,.sums = &found};

	found_rows(writer, sum_row, &side);
	if (memcmp(&found, &verify->given, sizeof(found)) != 0)
		explain(writer, given_rows, found_rows);
	writer->verified += verify->given.rows;
	memset(&verify->given, 0, sizeof(ValidateBucket));
}

/* A row of a removed key: is it one that was given?  Else it should be gone. */
static void
look_for_row(void *arg, TupleTableSlot *slot, const AttrNumber *attnums)
{
	Side	   *side = arg;
	ValidateHash hash = row_hash(side->writer, slot, attnums);

	if (compare_hashes(side->hashes, &hash) == 0)
		side->rows++;
}

void
migrate_verify_gone(MigrateWriter *writer, TupleTableSlot *slot,
					const AttrNumber *attnums, MigrateVerifyScan given_rows)
{
	ValidateHash hash = row_hash(writer, slot, attnums);
	Side		given = {.writer = writer,.hashes = &hash};
	Side		found = {.writer = writer};
	int			nestlevel;

	given_rows(writer, look_for_row, &given);
	if (given.rows > 0)
		return;
	nestlevel = validate_pin_settings();
	collect_hash(&found, slot, attnums);
	found.told = palloc0(sizeof(bool));
	collect_text(&found, slot, attnums);
	validate_unpin_settings(nestlevel);
	refuse(writer, psprintf("Row %s is still there, which was removed.",
							name_of_row(writer, linitial(found.texts))));
}

/* The row at a place of a table; no row when nothing that we see is there. */
void
migrate_verify_place(MigrateWriter *writer, Relation rel, ItemPointer place,
					 TupleTableSlot *slot, const AttrNumber *attnums,
					 MigrateVerifySink sink, void *arg)
{
	/*
	 * SnapshotSelf: with what this very command has done, and triggers after
	 * it
	 */
	if (table_tuple_fetch_row_version(rel, place, SnapshotSelf, slot))
		sink(arg, slot, attnums);
	ExecClearTuple(slot);
}

/* All rows of a store, whose slots begin with the mapped columns. */
void
migrate_verify_store(Tuplestorestate *store, TupleDesc desc, MigrateVerifySink sink,
					 void *arg)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);

	tuplestore_select_read_pointer(store, 0);
	tuplestore_rescan(store);
	while (tuplestore_gettupleslot(store, true, false, slot))
		sink(arg, slot, NULL);
	ExecDropSingleTupleTableSlot(slot);
}
