/*-------------------------------------------------------------------------
 *
 * changed_rows.c
 *	  The rows of keys that changed, on both sides, and their comparison: see
 *	  changed.c.
 *
 * A key is that of the source row.  In the source's words it is a condition on
 * its key columns; the key map, run here over rows that have nothing but their
 * key, gives the target rows that belong to it: one, none or many.  A thousand
 * keys are a statement on either side.
 *
 * Runs where changed.c does, in its transaction, with both snapshots open;
 * holds no lock beyond those of the queries.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "parser/parse_oper.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "load/refetch.h"
#include "changed_keys.h"

/* keys in one statement */
#define CHUNK_KEYS 1000

/* ----------------------------------------------------------------
 * rows of keys, in the words of both sides
 * ----------------------------------------------------------------
 */
typedef struct KeyChunks
{
	ValidateChanged *changed;
	ChangedTarget *target;
	ValidateEnds *ends;
	KeyText    *keys;
	int			nkeys;

	/* of the chunk at hand */
	char	 ***texts;			/* key columns of its keys on the source */
	int			n;
	List	   *mapped;			/* of char **: of the key map */
	FmgrInfo   *output;			/* of the key map's columns */
} KeyChunks;

/* The columns of a key; nothing is copied. */
static char **
key_columns(KeyText *key, int nkeys)
{
	char	  **columns = palloc0(sizeof(char *) * (nkeys + 1));
	const char *at = key->data;

	for (int k = 0; k < nkeys; k++)
	{
		uint32		len;

		memcpy(&len, at, sizeof(len));
		at += sizeof(len);
		if (len == PG_UINT32_MAX)
			continue;
		columns[k] = unconstify(char *, at);
		at += len + 1;
	}
	return columns;
}

/* The keys of the chunk as rows of the source that have nothing else. */
static MigrateBatch *
batch_of_keys(KeyChunks *chunks)
{
	MigrateSource *src = chunks->target->src;
	MigrateBatch *batch = migrate_batch_create(src);
	Datum	   *values = palloc0(sizeof(Datum) * src->ncolumns);
	bool	   *nulls = palloc(sizeof(bool) * src->ncolumns);
	FmgrInfo   *input = palloc(sizeof(FmgrInfo) * src->nkeys);
	Oid		   *ioparam = palloc(sizeof(Oid) * src->nkeys);
	bool		money = false;
	int			level;

	for (int k = 0; k < src->nkeys; k++)
	{
		Oid			function;

		getTypeInputInfo(src->columns[src->keys[k]].type, &function, &ioparam[k]);
		fmgr_info(function, &input[k]);
		money = money || migrate_type_contains_money(src->columns[src->keys[k]].type);
	}
	level = migrate_input_settings(money);
	for (int i = 0; i < chunks->n; i++)
	{
		memset(nulls, true, sizeof(bool) * src->ncolumns);
		for (int k = 0; k < src->nkeys; k++)
		{
			int			column = src->keys[k];
			char	   *text = chunks->texts[i][k];

			nulls[column] = text == NULL;
			if (text)
				values[column] = InputFunctionCall(&input[k], text, ioparam[k],
												   src->columns[column].typmod);
		}
		migrate_batch_add(batch, values, nulls, 0);
	}
	migrate_input_settings_end(level);
	return batch;
}

static void
keep_mapped(TupleTableSlot *slot, void *arg)
{
	KeyChunks  *chunks = arg;
	int			nkeys = chunks->ends->map->nkeys;
	char	  **columns = palloc0(sizeof(char *) * (nkeys + 1));
	int			level = validate_pin_settings();

	for (int k = 0; k < nkeys; k++)
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, k + 1, &isnull);

		if (!isnull)
			columns[k] = OutputFunctionCall(&chunks->output[k], value);
	}
	validate_unpin_settings(level);
	chunks->mapped = lappend(chunks->mapped, columns);
}

static void
keep_mapped_in(TupleTableSlot *slot, void *arg)
{
	KeyChunks  *chunks = arg;
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(chunks->texts));

	keep_mapped(slot, arg);
	MemoryContextSwitchTo(old);
}

/*
 * The key map of the chunk's keys.  False when one cannot be read or mapped
 * here.
 */
static bool
map_keys(KeyChunks *chunks)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = true;

	chunks->mapped = NIL;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		migrate_mapping_run_keys(chunks->ends->map, batch_of_keys(chunks), keep_mapped_in, chunks);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		ok = false;
		if (!migrate_error_is_of_row(edata->sqlerrcode) && !migrate_error_can_be_of_value(edata))
		{
			RollbackAndReleaseCurrentSubTransaction();
			ReThrowError(edata);
		}
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	return ok;
}

static char *
key_type(KeyChunks *chunks, int k)
{
	ValidateShape *shape = chunks->ends->shape;

	return refetch_type(getBaseType(shape->columns[shape->keys[k]].type[VALIDATE_TARGET]), -1);
}

static const char *
key_name(KeyChunks *chunks, int k)
{
	ValidateShape *shape = chunks->ends->shape;

	return quote_identifier(shape->columns[shape->keys[k]].name);
}

static char *
key_equals(KeyChunks *chunks, int k)
{
	ValidateShape *shape = chunks->ends->shape;

	return refetch_equals(shape->columns[shape->keys[k]].type[VALIDATE_TARGET]);
}

static bool
has_null(char **columns, int n)
{
	for (int k = 0; k < n; k++)
		if (columns[k] == NULL)
			return true;
	return false;
}

/* Keys of one column: an array, which one scan of its index serves. */
static void
append_array(StringInfo buf, KeyChunks *chunks)
{
	const char *sep = "";
	ListCell   *lc;

	appendStringInfo(buf, "%s %s ANY (ARRAY[", key_name(chunks, 0), key_equals(chunks, 0));
	foreach(lc, chunks->mapped)
	{
		char	  **columns = lfirst(lc);

		if (columns[0] == NULL)
			continue;
		appendStringInfo(buf, "%s%s", sep, quote_literal_cstr(columns[0]));
		sep = ", ";
	}
	appendStringInfo(buf, "]::%s[])", key_type(chunks, 0));
}

/* Of several: rows that are joined; none of them has a null. */
static void
append_rows(StringInfo buf, KeyChunks *chunks)
{
	int			n = chunks->ends->map->nkeys;
	bool		first = true;
	ListCell   *lc;

	appendStringInfoString(buf, "EXISTS (SELECT FROM (VALUES ");
	foreach(lc, chunks->mapped)
	{
		char	  **columns = lfirst(lc);

		if (has_null(columns, n))
			continue;
		appendStringInfoString(buf, first ? "(" : ", (");
		for (int k = 0; k < n; k++)
		{
			appendStringInfo(buf, "%s%s", k > 0 ? ", " : "", quote_literal_cstr(columns[k]));
			if (first)
				appendStringInfo(buf, "::%s", key_type(chunks, k));
		}
		appendStringInfoChar(buf, ')');
		first = false;
	}
	appendStringInfoString(buf, ") migrate_k (");
	for (int k = 0; k < n; k++)
		appendStringInfo(buf, "%smigrate_k%d", k > 0 ? ", " : "", k + 1);
	appendStringInfoString(buf, ") WHERE ");
	for (int k = 0; k < n; k++)
		appendStringInfo(buf, "%s%s %s migrate_k.migrate_k%d", k > 0 ? " AND " : "",
						 key_name(chunks, k), key_equals(chunks, k), k + 1);
	appendStringInfoChar(buf, ')');
}

/* One with a null, which no index may serve. */
static void
append_with_null(StringInfo buf, KeyChunks *chunks, char **columns)
{
	for (int k = 0; k < chunks->ends->map->nkeys; k++)
	{
		appendStringInfo(buf, "%s%s", k > 0 ? " AND " : "(", key_name(chunks, k));
		if (columns[k])
			appendStringInfo(buf, " %s %s::%s", key_equals(chunks, k),
							 quote_literal_cstr(columns[k]), key_type(chunks, k));
		else
			appendStringInfoString(buf, " IS NULL");
	}
	appendStringInfoChar(buf, ')');
}

static char *
target_where(KeyChunks *chunks)
{
	int			n = chunks->ends->map->nkeys;
	StringInfoData buf;
	const char *sep = "";
	bool		any = false;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, chunks->mapped)
		any = any || !has_null(lfirst(lc), n);
	if (any && n == 1)
		append_array(&buf, chunks);
	else if (any)
		append_rows(&buf, chunks);
	if (any)
		sep = " OR ";
	foreach(lc, chunks->mapped)
	{
		if (!has_null(lfirst(lc), n))
			continue;
		appendStringInfoString(&buf, sep);
		append_with_null(&buf, chunks, lfirst(lc));
		sep = " OR ";
	}
	return buf.len > 0 ? buf.data : "false";
}

/*
 * The types of the key columns on the source, in its words, where pg_catalog's
 * equality serves them; else text.
 */
static void
ask_key_types(KeyChunks *chunks)
{
	ChangedTarget *t = chunks->target;
	MigrateSource *src = t->src;
	List	   *name = list_make2(makeString("pg_catalog"), makeString("="));
	char	  **types = MemoryContextAllocZero(chunks->changed->mcxt, sizeof(char *) * src->nkeys);

	for (int k = 0; k < src->nkeys; k++)
	{
		MigrateColumn *col = &src->columns[src->keys[k]];
		char	   *type = NULL;

		if (OidIsValid(compatible_oper_opid(name, col->type, col->type, true)))
			type = migrate_exec_value(chunks->ends->conn,
									  psprintf("SELECT pg_catalog.format_type(a.atttypid, NULL) FROM pg_catalog.pg_attribute a"
											   " WHERE a.attrelid = pg_catalog.to_regclass(%s) AND a.attname = %s AND a.attnum > 0",
											   quote_literal_cstr(quote_qualified_identifier(src->remote_schema, src->remote_table)),
											   quote_literal_cstr(col->remote_name)));
		types[k] = type ? MemoryContextStrdup(chunks->changed->mcxt, type) : NULL;
	}
	t->key_types = types;
}

/*
 * Rows of several columns that are joined, which the source can do by hash or by
 * index: conditions in a row would be tried one by one.  None has a null.
 */
static void
append_source_rows(StringInfo buf, KeyChunks *chunks)
{
	MigrateSource *src = chunks->target->src;
	char	  **types = chunks->target->key_types;
	bool		first = true;

	appendStringInfoString(buf, "EXISTS (SELECT FROM (VALUES ");
	for (int i = 0; i < chunks->n; i++)
	{
		char	  **key = chunks->texts[i];

		if (has_null(key, src->nkeys))
			continue;
		appendStringInfoString(buf, first ? "(" : ", (");
		for (int k = 0; k < src->nkeys; k++)
			appendStringInfo(buf, "%s%s::%s", k > 0 ? ", " : "", quote_literal_cstr(key[k]),
							 types[k] ? types[k] : "pg_catalog.text");
		appendStringInfoChar(buf, ')');
		first = false;
	}
	appendStringInfoString(buf, ") migrate_k (");
	for (int k = 0; k < src->nkeys; k++)
		appendStringInfo(buf, "%smigrate_k%d", k > 0 ? ", " : "", k + 1);
	appendStringInfoString(buf, ") WHERE ");
	for (int k = 0; k < src->nkeys; k++)
		appendStringInfo(buf, "%s%s%s OPERATOR(pg_catalog.=) migrate_k.migrate_k%d", k > 0 ? " AND " : "",
						 quote_identifier(src->columns[src->keys[k]].remote_name),
						 types[k] ? "" : "::pg_catalog.text", k + 1);
	appendStringInfoChar(buf, ')');
}

static char *
source_where(KeyChunks *chunks)
{
	MigrateSource *src = chunks->target->src;
	StringInfoData buf;
	List	   *keys = NIL;

	initStringInfo(&buf);
	for (int i = 0; i < chunks->n; i++)
		if (src->nkeys == 1 || has_null(chunks->texts[i], src->nkeys))
			keys = lappend(keys, chunks->texts[i]);
	if (list_length(keys) < chunks->n)
	{
		if (chunks->target->key_types == NULL)
			ask_key_types(chunks);
		append_source_rows(&buf, chunks);
		if (keys)
			appendStringInfoString(&buf, " OR ");
	}
	if (keys)
		migrate_append_keys_at(&buf, src, keys);
	return buf.data;
}

/*
 * The conditions for the rows of a chunk; -1: the mapping was compiled anew.
 * False: they cannot be told.
 */
static bool
chunk_where(int chunk, char **where, void *arg)
{
	KeyChunks  *chunks = arg;
	MigrateMapping *map = chunks->ends->map;
	int			first = chunk * CHUNK_KEYS;

	if (chunk < 0)
	{
		if (map->nkeys == 0)
			return false;
		if (map != chunks->target->map)
			migrate_mapping_compile_keys(map, chunks->target->src);
		chunks->output = palloc(sizeof(FmgrInfo) * map->nkeys);
		for (int k = 0; k < map->nkeys; k++)
		{
			Oid			function;
			bool		varlena;

			getTypeOutputInfo(TupleDescAttr(map->keysdesc, k)->atttypid, &function, &varlena);
			fmgr_info(function, &chunks->output[k]);
		}
		return true;
	}
	if (chunks->changed->tick)
		chunks->changed->tick(chunks->changed->tick_arg);
	chunks->n = Min(CHUNK_KEYS, chunks->nkeys - first);
	chunks->texts = palloc(sizeof(char **) * chunks->n);
	for (int i = 0; i < chunks->n; i++)
		chunks->texts[i] = key_columns(&chunks->keys[first + i], chunks->target->src->nkeys);
	if (!map_keys(chunks))
		return false;
	where[VALIDATE_SOURCE] = source_where(chunks);
	where[VALIDATE_TARGET] = target_where(chunks);
	return true;
}

/* ----------------------------------------------------------------
 * comparing
 * ----------------------------------------------------------------
 */

/* Those that share a page are read together, where that is the order of keys. */
static int
compare_keys(const void *a, const void *b)
{
	const KeyText *x = a;
	const KeyText *y = b;

	if (x->len != y->len)
		return x->len < y->len ? -1 : 1;
	return memcmp(x->data, y->data, x->len);
}

static void
take_keys(KeyChunks *chunks, changed_hash * keys)
{
	changed_iterator it;
	KeySlot    *slot;

	chunks->keys = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(KeyText) * Max(keys->members, 1));
	changed_start_iterate(keys, &it);
	while ((slot = changed_iterate(keys, &it)) != NULL)
		chunks->keys[chunks->nkeys++] = slot->key;
	qsort(chunks->keys, chunks->nkeys, sizeof(KeyText), compare_keys);
}

/*
 * Compare what changed of a mapping; both snapshots are open.  id 0: a record is
 * begun when something differs.  What was
 * compared is in result->note.
 */
void
validate_changed_compare(ValidateChanged *c, ValidateEnds *ends, int64 id, ValidateResult *result)
{
	ChangedTarget *t = validate_changed_target(c, ends->map->mapping_id);
	KeyChunks	chunks = {.changed = c,.target = t,.ends = ends};

	XLogRecPtr	upto = ends->cut->lsn;

	/* never beyond a cut that is still to come */
	if (!ends->cut->exact)
		(void) validate_changed_applied(c, &upto);
	if (c->quiet_at == InvalidXLogRecPtr)
		validate_changed_read(c, upto);
	if (!t->whole && t->keys)
	{
		take_keys(&chunks, t->keys);
		if (validate_compare_chosen(ends, (chunks.nkeys + CHUNK_KEYS - 1) / CHUNK_KEYS,
									chunk_where, &chunks, id, result))
		{
			result->note = psprintf("%d keys changed", chunks.nkeys);
			return;
		}
		validate_changed_whole(c, t, "a key that changed cannot be read here");
	}
	if (t->whole)
	{
		validate_compare(ends, LEVEL_CHECKSUM, id, result);
		result->note = psprintf("compared whole: %s", t->why);
		return;
	}
	if (ends->done)
		ends->done(ends);
	result->note = "nothing changed";
}
