/*-------------------------------------------------------------------------
 *
 * doubles.c
 *	  Target rows that share a key that should be unique (P10).
 *
 * There are two reasons.  A source row that was updated while its table was
 * copied can move from a range that is not read yet to one that is, or back,
 * and be read twice: its copies go, and it is written once, as it is now.  Or
 * several source rows map to one key: the first stays, each further one is a
 * dead letter.  The source as it is now tells which:
 *
 *	  source rows under the key
 *		0		gone meanwhile; one copy stays (validation shows it, and the
 *				repair after a copy without capture removes it)
 *		1		moved: its copies are counted in mapping.doubles
 *		2 ..	a real duplicate of the mapped key: dead letters 23505
 *
 * A job that follows its source needs not ask, where the key map holds the
 * source's key as it is: then both copies are of one source row, any of them
 * may stay, and the stream sets it right.
 *
 * Runs in the job worker, in one transaction a target table, which holds SHARE
 * ROW EXCLUSIVE on it.  A crash rolls it back and the key is found wanting
 * again.
 *
 * The chunks' conservation counts stay as they are: they say what was read and
 * written then.  The event "doubles" says what was taken away since.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "doubles.h"
#include "refetch.h"

/* More doubles than this are a key that is none. */
#define MAX_GROUPS 10000
#define MAX_SOURCE_ROWS 100000

/* Up to here each key is asked for by itself, where the source has an index. */
#define MAX_LOOKUPS 200

/* Target rows that share a key. */
typedef struct KeyGroup
{
	char	  **key;			/* text values, in order of the key's columns */
	int64		copies;			/* rows in the target */
	List	   *batches;		/* source rows now, each a MigrateBatch */
} KeyGroup;

typedef struct Doubles
{
	MigrateJob *job;
	MigrateMapping *map;
	MigrateSource *src;
	int			nkeys;
	char	  **names;			/* quoted columns of the key */
	char	  **types;			/* their types, for casts */
	char	  **equals;			/* their equality operators */
	List	   *groups;
	int64		keys;			/* that occurred more than once */
	int64		moved;			/* copies of rows that were read twice */
	int64		dead;
} Doubles;

/*
 * Run a statement whose expressions are the DBA's, under their search_path.
 */
static void
exec_as_mapped(MigrateMapping *map, const char *sql, int expected, long limit)
{
	int			nestlevel = NewGUCNestLevel();
	int			rc;

	(void) set_config_option("search_path", map->search_path, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	rc = SPI_execute(sql, false, limit);
	AtEOXact_GUC(true, nestlevel);
	if (rc != expected)
		elog(ERROR, "statement gave %s: %s", SPI_result_code_string(rc), sql);
}

/* "(owns)", or true */
static const char *
owned(MigrateMapping *map)
{
	return map->owns ? psprintf("(%s)", map->owns) : "true";
}

static Doubles *
describe_key(MigrateJob *job, int mapping_id, List *columns)
{
	Doubles    *d = palloc0(sizeof(Doubles));
	ListCell   *lc;

	d->job = job;
	d->map = migrate_mapping_load(mapping_id);
	d->src = migrate_source_load(d->map->source_id);
	migrate_mapping_compile(d->map, d->src);
	d->names = palloc(sizeof(char *) * list_length(columns));
	d->types = palloc(sizeof(char *) * list_length(columns));
	d->equals = palloc(sizeof(char *) * list_length(columns));
	foreach(lc, columns)
	{
		char	   *name = lfirst(lc);
		AttrNumber	attnum = get_attnum(d->map->target, name);
		Oid			type;
		int32		typmod;
		Oid			collation;

		get_atttypetypmodcoll(d->map->target, attnum, &type, &typmod, &collation);
		d->names[d->nkeys] = pstrdup(quote_identifier(name));
		d->types[d->nkeys] = refetch_type(type, typmod);
		d->equals[d->nkeys] = refetch_equals(type);
		d->nkeys++;
	}
	return d;
}

/* Keys that occur more than once among the mapping's rows. */
static void
find_groups(Doubles *d)
{
	MemoryContext mcxt = CurrentMemoryContext;
	StringInfoData sql,
				keys;

	initStringInfo(&keys);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT count(*)");
	for (int k = 0; k < d->nkeys; k++)
	{
		appendStringInfo(&sql, ", %s::text", d->names[k]);
		appendStringInfo(&keys, "%s%s", k > 0 ? ", " : "", d->names[k]);
	}
	appendStringInfo(&sql, " FROM %s WHERE %s", migrate_target_name(d->map->target, d->src->only_parent),
					 owned(d->map));
	/* a unique key takes nulls for different */
	for (int k = 0; k < d->nkeys; k++)
		appendStringInfo(&sql, " AND %s IS NOT NULL", d->names[k]);
	appendStringInfo(&sql, " GROUP BY %s HAVING count(*) > 1", keys.data);
	exec_as_mapped(d->map, sql.data, SPI_OK_SELECT, MAX_GROUPS + 1);
	if (SPI_processed > MAX_GROUPS)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("more than %d keys of %s occur more than once",
						MAX_GROUPS, d->map->target_name),
				 errhint("The mapping does not make (%s) unique: correct it and copy the table again with migrate_recopy.",
						 keys.data)));
	MemoryContextSwitchTo(mcxt);
	for (int i = 0; i < SPI_processed; i++)
	{
		KeyGroup   *g = palloc0(sizeof(KeyGroup));

		g->copies = migrate_spi_int64(i, 0, 0);
		g->key = palloc(sizeof(char *) * d->nkeys);
		for (int k = 0; k < d->nkeys; k++)
			g->key[k] = migrate_spi_text(i, k + 1);
		d->groups = lappend(d->groups, g);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* (VALUES (0, 'x'::type, ..), ..) AS migrate_g(n, k1, ..): groups by number */
static char *
groups_as_values(Doubles *d, List *groups)
{
	StringInfoData buf;
	int			n = 0;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "(VALUES ");
	foreach(lc, groups)
	{
		KeyGroup   *g = lfirst(lc);

		appendStringInfo(&buf, "%s(%d", n > 0 ? ", " : "", n);
		for (int k = 0; k < d->nkeys; k++)
			appendStringInfo(&buf, ", %s::%s",
							 g->key[k] ? quote_literal_cstr(g->key[k]) : "NULL",
							 d->types[k]);
		appendStringInfoChar(&buf, ')');
		n++;
	}
	appendStringInfoString(&buf, ") AS migrate_g(migrate_n");
	for (int k = 0; k < d->nkeys; k++)
		appendStringInfo(&buf, ", migrate_k%d", k);
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* ----------------------------------------------------------------
 * source rows under a key
 * ----------------------------------------------------------------
 */

/* Row "row" of the last result as a batch of its own, to a group. */
static void
add_source_row(Doubles *d, KeyGroup *g, int64 row, int first)
{
	MigrateBatch *batch = migrate_batch_create(d->src);

	refetch_add(batch, row, first);
	g->batches = lappend(g->batches, batch);
}

/* Is an expression of the key map this source column, as it is? */
static bool
is_column(const char *expr, const char *column)
{
	if (strncmp(expr, "source.", 7) == 0)
		expr += 7;
	return strcmp(expr, column) == 0 || strcmp(expr, quote_identifier(column)) == 0;
}

/*
 * Does the source find a key fast?  Yes where each column of it is a plain
 * source column or a constant in the key map.
 */
static bool
key_is_plain(Doubles *d)
{
	for (int k = 0; k < d->nkeys; k++)
	{
		const char *expr = NULL;
		bool		plain = false;

		for (int m = 0; m < d->map->nkeys; m++)
			if (strcmp(quote_identifier(d->map->key_columns[m]), d->names[k]) == 0)
				expr = d->map->key_exprs[m];
		if (expr == NULL)
			return false;
		for (int i = 0; i < d->src->ncolumns && !plain; i++)
			plain = is_column(expr, d->src->columns[i].name);
		if (!plain && expr[strspn(expr, "0123456789")] != '\0' && expr[0] != '\'')
			return false;
	}
	return true;
}

/* One query a group: the comparison goes to the source. */
static void
look_up_rows(Doubles *d)
{
	char	   *query = refetch_mapped_query(d->job, d->map, d->src);
	ListCell   *lc;

	foreach(lc, d->groups)
	{
		KeyGroup   *g = lfirst(lc);
		StringInfoData sql;
		MemoryContext mcxt = CurrentMemoryContext;

		CHECK_FOR_INTERRUPTS();
		initStringInfo(&sql);
		appendStringInfo(&sql, "SELECT %s FROM (%s\n) AS q WHERE true",
						 refetch_mapped_row(d->src), query);
		for (int k = 0; k < d->nkeys; k++)
			appendStringInfo(&sql, " AND q.%s::%s %s %s::%s", d->names[k],
							 d->types[k], d->equals[k],
							 g->key[k] ? quote_literal_cstr(g->key[k]) : "NULL",
							 d->types[k]);
		exec_as_mapped(d->map, sql.data, SPI_OK_SELECT, MAX_SOURCE_ROWS);
		MemoryContextSwitchTo(mcxt);
		for (int64 i = 0; i < SPI_processed; i++)
			add_source_row(d, g, i, 0);
		SPI_freetuptable(SPI_tuptable);
		pfree(sql.data);
	}
}

/* One scan of the source for all groups. */
static void
scan_rows(Doubles *d)
{
	MemoryContext mcxt = CurrentMemoryContext;
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT migrate_g.migrate_n, %s FROM (%s\n) AS q JOIN %s ON true",
					 refetch_mapped_row(d->src),
					 refetch_mapped_query(d->job, d->map, d->src),
					 groups_as_values(d, d->groups));
	for (int k = 0; k < d->nkeys; k++)
		appendStringInfo(&sql, " AND q.%s::%s %s migrate_g.migrate_k%d", d->names[k],
						 d->types[k], d->equals[k], k);
	exec_as_mapped(d->map, sql.data, SPI_OK_SELECT, MAX_SOURCE_ROWS + 1);
	if (SPI_processed > MAX_SOURCE_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("more than %d source rows share keys of %s",
						MAX_SOURCE_ROWS, d->map->target_name),
				 errhint("Correct the mapping and copy the table again with migrate_recopy.")));
	MemoryContextSwitchTo(mcxt);
	for (int64 i = 0; i < SPI_processed; i++)
		add_source_row(d, list_nth(d->groups, migrate_spi_int64(i, 0, 0)), i, 1);
	SPI_freetuptable(SPI_tuptable);
}

/* ----------------------------------------------------------------
 * putting the target right
 * ----------------------------------------------------------------
 */

/* target.k = migrate_g.k for each column of the key */
static char *
join_groups(Doubles *d)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int k = 0; k < d->nkeys; k++)
		appendStringInfo(&buf, "%s%s %s migrate_g.migrate_k%d", k > 0 ? " AND " : "",
						 d->names[k], d->equals[k], k);
	return buf.data;
}

/*
 * Delete the rows of some groups, all or all but one each.
 */
static void
delete_rows(Doubles *d, List *groups, bool keep_one)
{
	char	   *target = migrate_target_name(d->map->target, d->src->only_parent);
	char	   *sql;

	if (groups == NIL)
		return;
	if (!keep_one)
		sql = psprintf("DELETE FROM %s USING %s WHERE %s AND %s", target,
					   groups_as_values(d, groups), join_groups(d), owned(d->map));
	else
		sql = psprintf("DELETE FROM %s USING (SELECT tableoid AS migrate_o, ctid AS migrate_c,"
					   " row_number() OVER (PARTITION BY migrate_g.migrate_n) AS migrate_r"
					   " FROM %s, %s WHERE %s AND %s) AS migrate_d"
					   " WHERE tableoid = migrate_o AND ctid = migrate_c AND migrate_r > 1",
					   target, target, groups_as_values(d, groups), join_groups(d),
					   owned(d->map));
	exec_as_mapped(d->map, sql, SPI_OK_DELETE, 0);
}

/*
 * A source row whose key is taken: a dead letter that says by which key.
 */
static void
bury(Doubles *d, KeyGroup *g, MigrateBatch *batch, MigrateLoadContext *ctx)
{
	ErrorData	edata = {.elevel = ERROR,.sqlerrcode = ERRCODE_UNIQUE_VIOLATION};
	StringInfoData names,
				values;
	char	   *row,
			   *key;

	initStringInfo(&names);
	initStringInfo(&values);
	for (int k = 0; k < d->nkeys; k++)
	{
		appendStringInfo(&names, "%s%s", k > 0 ? ", " : "", d->names[k]);
		appendStringInfo(&values, "%s%s", k > 0 ? ", " : "",
						 g->key[k] ? g->key[k] : "null");
	}
	edata.message = psprintf("duplicate key value violates the key of %s",
							 d->map->target_name);
	edata.detail = psprintf("Key (%s)=(%s) already exists.", names.data, values.data);
	edata.hint = pstrdup("Another source row maps to the same key. Correct one of them or the mapping.");
	migrate_batch_row_json(batch, 0, &row, &key);
	migrate_dead_letter_insert(ctx, d->map->mapping_id, "index", key, row, NULL,
							   &edata, d->map->version);
	d->dead++;
}

/*
 * Groups with one source row each, many at once: there is no index yet, so each
 * statement reads the whole table.
 */
static void
write_lone_rows(Doubles *d, MigrateWriter *writer)
{
	MigrateLoadContext ctx = {.job = d->job,.chunk_id = 0,.stage = "index"};
	MigrateBatch *batch = migrate_batch_create(d->src);
	MigrateCounts counts = {0};
	ListCell   *lc;

	foreach(lc, d->groups)
	{
		KeyGroup   *g = lfirst(lc);
		MigrateBatch *row;
		TupleTableSlot *slot;

		if (list_length(g->batches) != 1)
			continue;
		row = linitial(g->batches);
		slot = migrate_batch_scan(row);
		while (migrate_batch_next(row, slot))
			migrate_batch_add(batch, slot->tts_values, slot->tts_isnull, 0);
		ExecDropSingleTupleTableSlot(slot);
		migrate_batch_free(row);
		g->batches = NIL;
		d->moved += Max(g->copies - 1, 0);
		g->copies = 0;
	}
	if (batch->nrows > 0)
		migrate_load_batch(&ctx, writer, batch, &counts);
	d->dead += counts.dead;
	migrate_batch_free(batch);
}

/* Write the source rows of a group: the first that can be stays. */
static void
write_group(Doubles *d, KeyGroup *g, MigrateWriter *writer)
{
	MigrateLoadContext ctx = {.job = d->job,.chunk_id = 0,.stage = "index"};
	bool		taken = false;
	ListCell   *lc;

	foreach(lc, g->batches)
	{
		MigrateBatch *batch = lfirst(lc);
		MigrateCounts counts = {0};

		CHECK_FOR_INTERRUPTS();
		if (taken)
			bury(d, g, batch, &ctx);
		else
		{
			migrate_load_batch(&ctx, writer, batch, &counts);
			d->dead += counts.dead;
			taken = counts.written > 0;
		}
		migrate_batch_free(batch);
	}
	d->moved += Max(g->copies - Max(list_length(g->batches), 1), 0);
}

/* Count and tell. */
static void
record(Doubles *d)
{
	Oid			types[] = {INT4OID, INT8OID};
	Datum		values[] = {Int32GetDatum(d->map->mapping_id), Int64GetDatum(d->moved)};

	migrate_spi_exec("UPDATE migrate.mapping SET doubles = doubles + $2"
					 " WHERE mapping_id = $1", 2, types, values, NULL, SPI_OK_UPDATE);
	migrate_event(d->job->job_id, d->dead > 0 ? "warning" : "info", "doubles",
				  "%s: %lld keys occurred more than once; %lld copies of rows that moved during the copy removed, %lld source rows with a key that is taken set aside",
				  d->map->target_name, (long long) d->keys,
				  (long long) d->moved, (long long) d->dead);
}

/* Does the key hold all of the key map? */
static bool
covers_key_map(Doubles *d)
{
	for (int m = 0; m < d->map->nkeys; m++)
	{
		bool		found = false;

		for (int k = 0; k < d->nkeys && !found; k++)
			found = strcmp(quote_identifier(d->map->key_columns[m]), d->names[k]) == 0;
		if (!found)
			return false;
	}
	return d->map->nkeys > 0;
}

/* One copy of each key stays, whichever. */
static void
keep_one_of_each(Doubles *d)
{
	char	   *target = migrate_target_name(d->map->target, d->src->only_parent);
	StringInfoData keys,
				known;
	char	   *sql;

	initStringInfo(&keys);
	initStringInfo(&known);
	for (int k = 0; k < d->nkeys; k++)
	{
		appendStringInfo(&keys, "%s%s", k > 0 ? ", " : "", d->names[k]);
		appendStringInfo(&known, " AND %s IS NOT NULL", d->names[k]);
	}
	sql = psprintf("WITH migrate_gone AS (DELETE FROM %1$s USING"
				   " (SELECT tableoid AS migrate_o, ctid AS migrate_c,"
				   "  row_number() OVER (PARTITION BY %2$s) AS migrate_r FROM %1$s WHERE %3$s AND (%2$s) IN"
				   "  (SELECT %2$s FROM %1$s WHERE %3$s%4$s GROUP BY %2$s HAVING count(*) > 1)) AS migrate_d"
				   " WHERE tableoid = migrate_o AND ctid = migrate_c AND migrate_r > 1 RETURNING %2$s)"
				   " SELECT count(*), count(DISTINCT (%2$s)) FROM migrate_gone",
				   target, keys.data, owned(d->map), known.data);
	exec_as_mapped(d->map, sql, SPI_OK_SELECT, 0);
	d->moved = migrate_spi_int64(0, 0, 0);
	d->keys = migrate_spi_int64(0, 1, 0);
	SPI_freetuptable(SPI_tuptable);
}

void
migrate_resolve_doubles(MigrateJob *job, int mapping_id, List *columns)
{
	Doubles    *d = describe_key(job, mapping_id, columns);
	MigrateWriter *writer;
	List	   *with = NIL,
			   *without = NIL,
			   *published;
	ListCell   *lc;
	char	   *lock = psprintf("LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE",
								migrate_target_name(d->map->target, d->src->only_parent));

	if (SPI_execute(lock, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not run: %s", lock);
	if (job->live && d->map->key_is_source_key && !d->map->many && covers_key_map(d))
	{
		published = migrate_allow_deletes(d->map->target);
		keep_one_of_each(d);
		migrate_restore_deletes(published);
		if (d->keys > 0)
			record(d);
		return;
	}
	find_groups(d);
	d->keys = list_length(d->groups);
	if (d->groups == NIL)
		return;
	if (list_length(d->groups) <= MAX_LOOKUPS && key_is_plain(d) &&
		!d->src->only_parent)
		look_up_rows(d);
	else
		scan_rows(d);
	foreach(lc, d->groups)
	{
		KeyGroup   *g = lfirst(lc);

		if (g->batches)
			with = lappend(with, g);
		else
			without = lappend(without, g);
	}
	published = migrate_allow_deletes(d->map->target);
	delete_rows(d, with, false);
	delete_rows(d, without, true);
	writer = migrate_writer_open(d->map, d->src, false);
	write_lone_rows(d, writer);
	foreach(lc, d->groups)
		write_group(d, lfirst(lc), writer);
	migrate_writer_close(writer);
	migrate_restore_deletes(published);
	refetch_wait_durable(job, d->src);
	record(d);
}

/*
 * Two scans of the source at worst, and none where the key map holds the
 * source's key as it is: then no two source rows can share a target key.
 */
bool
migrate_has_double(MigrateJob *job, MigrateMapping *map, MigrateSource *src,
				   const char *key)
{
	char	   *query;
	int			held = 0;
	StringInfoData same,
				me,
				other;
	bool		found;

	for (int i = 0; i < src->nkeys; i++)
		for (int k = 0; k < map->nkeys; k++)
			if (is_column(map->key_exprs[k], src->columns[src->keys[i]].name))
			{
				held++;
				break;
			}
	if (held == src->nkeys || map->nkeys == 0)
		return false;
	query = refetch_mapped_query(job, map, src);
	initStringInfo(&same);
	initStringInfo(&me);
	initStringInfo(&other);
	for (int k = 0; k < map->nkeys; k++)
	{
		const char *name = quote_identifier(map->key_columns[k]);
		AttrNumber	attnum = get_attnum(map->target, map->key_columns[k]);
		Oid			type;
		int32		typmod;
		Oid			collation;
		char	   *cast;

		get_atttypetypmodcoll(map->target, attnum, &type, &typmod, &collation);
		cast = refetch_type(type, typmod);
		appendStringInfo(&same, " AND a.%s::%s %s b.%s::%s", name, cast,
						 refetch_equals(type), name, cast);
	}
	for (int i = 0; i < src->nkeys; i++)
	{
		MigrateColumn *col = &src->columns[src->keys[i]];
		char	   *value = refetch_key_value(key, col->name);
		char	   *test;

		if (value)
			test = psprintf("%s %s::%s", refetch_equals(col->type),
							quote_literal_cstr(value), refetch_type(col->type, -1));
		else
			test = "IS NULL";
		appendStringInfo(&me, " AND a.migrate_s%d %s", src->keys[i] + 1, test);
		appendStringInfo(&other, "%sNOT coalesce(b.migrate_s%d %s, false)",
						 i > 0 ? " OR " : "", src->keys[i] + 1, test);
	}
	exec_as_mapped(map, psprintf("SELECT FROM (%s\n) a JOIN (%s\n) b ON true%s"
								 " WHERE true%s AND (%s) LIMIT 1",
								 query, query, same.data, me.data, other.data),
				   SPI_OK_SELECT, 1);
	found = SPI_processed > 0;
	SPI_freetuptable(SPI_tuptable);
	return found;
}
