/*-------------------------------------------------------------------------
 *
 * range.c
 *	  A range of a source table as SQL, and where a range of keys is cut.
 *
 * Two dialects.  For the copy transport the statement runs on the source:
 * blocks are ranges of ctid, keys are compared as rows, which one btree range
 * scan serves, in the source's own collation.  For the fdw transport it runs
 * here, on the foreign table: part of it may be evaluated by the wrapper's
 * server and part of it here, where text sorts otherwise, so that text is
 * always compared as COLLATE "C", and row comparison is written out with AND
 * and OR, which wrappers know how to send on.
 *
 * Both sides of a cut use the same operators, < and >= of pg_catalog (ORDER BY
 * with USING, since a type's default ordering may be another one, as citext's
 * is).  Values are literals without a cast: they take the column's type, and
 * no cast cuts them to its length.
 *
 * Every row falls into exactly one of the ranges [open, a) [a, b) ... [z,
 * open): where nothing vouches for NOT NULL, rows with a null in the key
 * belong to the first.
 *
 * Runs wherever a range is planned or read; holds no state.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "nodes/plannodes.h"
#include "parser/parse_oper.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"

/* ----------------------------------------------------------------
 * keys as values
 * ----------------------------------------------------------------
 */

/* text[] as a NULL-terminated array of strings; NULL for a null array */
char	  **
migrate_key_from_array(Datum value, bool isnull)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	char	  **key;

	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, &n);
	key = palloc0((n + 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
		key[i] = nulls[i] ? NULL : TextDatumGetCString(elems[i]);
	return key;
}

Datum
migrate_key_to_array(char **key, int nkeys)
{
	Datum	   *elems = palloc(Max(nkeys, 1) * sizeof(Datum));

	for (int i = 0; i < nkeys; i++)
		elems[i] = CStringGetTextDatum(key[i]);
	return PointerGetDatum(construct_array(elems, nkeys, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

char	  **
migrate_key_copy(char **key, int nkeys)
{
	char	  **copy;

	if (key == NULL)
		return NULL;
	copy = palloc0((nkeys + 1) * sizeof(char *));
	for (int i = 0; i < nkeys; i++)
		copy[i] = pstrdup(key[i]);
	return copy;
}

static bool
same_key(char **a, char **b, int nkeys)
{
	if (a == NULL || b == NULL)
		return false;
	for (int i = 0; i < nkeys; i++)
	{
		if (strcmp(a[i], b[i]) != 0)
			return false;
	}
	return true;
}

/*
 * Local settings under which a key's text form means the same in every session
 * of ours; to be undone by AtEOXact_GUC(true, <result>).
 */
int
migrate_portable_output(void)
{
	int			level = NewGUCNestLevel();

	(void) set_config_option("datestyle", "ISO", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("intervalstyle", "postgres", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("extra_float_digits", "3", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/* ----------------------------------------------------------------
 * pieces of SQL
 * ----------------------------------------------------------------
 */

/* Always quoted: what is a keyword depends on the server's version. */
static void
append_ident(StringInfo buf, const char *name)
{
	appendStringInfoChar(buf, '"');
	for (const char *p = name; *p; p++)
	{
		if (*p == '"')
			appendStringInfoChar(buf, '"');
		appendStringInfoChar(buf, *p);
	}
	appendStringInfoChar(buf, '"');
}

static bool
is_local(MigrateSource *src)
{
	return src->transport == 'f';
}

static void
append_column(StringInfo buf, MigrateSource *src, int column)
{
	MigrateColumn *col = &src->columns[column];

	append_ident(buf, is_local(src) ? col->name : col->remote_name);
}

/* A key column as it is compared. */
static void
append_key(StringInfo buf, MigrateSource *src, int k)
{
	append_column(buf, src, src->keys[k]);
	if (is_local(src) &&
		OidIsValid(get_typcollation(src->columns[src->keys[k]].type)))
		appendStringInfoString(buf, " COLLATE pg_catalog.\"C\"");
}

/* The columns of a row, for a SELECT list; nothing for a table without any. */
void
migrate_append_columns(StringInfo buf, MigrateSource *src)
{
	for (int i = 0; i < src->ncolumns; i++)
	{
		if (i > 0)
			appendStringInfoString(buf, ", ");
		append_column(buf, src, i);
	}
}

/*
 * The relation.  A leaf is read without its children, which are leaves of
 * their own; one without an OID stands for the whole tree, unless that is not
 * wanted.
 */
void
migrate_append_from(StringInfo buf, MigrateSource *src, MigrateRange *range)
{
	if (is_local(src))
	{
		append_ident(buf, get_namespace_name(get_rel_namespace(src->foreign_table)));
		appendStringInfoChar(buf, '.');
		append_ident(buf, get_rel_name(src->foreign_table));
	}
	else if (range && range->relation)
		appendStringInfo(buf, "%s%s",
						 OidIsValid(range->remote_oid) || src->only_parent ? "ONLY " : "",
						 range->relation);
	else
	{
		if (src->only_parent)
			appendStringInfoString(buf, "ONLY ");
		append_ident(buf, src->remote_schema);
		appendStringInfoChar(buf, '.');
		append_ident(buf, src->remote_table);
	}
}

void
migrate_append_order(StringInfo buf, MigrateSource *src)
{
	for (int k = 0; k < src->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoString(buf, ", ");
		append_key(buf, src, k);
		appendStringInfoString(buf, " USING OPERATOR(pg_catalog.<)");
	}
}

/* k1 IS NOT NULL AND k2 IS NOT NULL ... */
void
migrate_append_not_null(StringInfo buf, MigrateSource *src)
{
	for (int k = 0; k < src->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoString(buf, " AND ");
		append_column(buf, src, src->keys[k]);
		appendStringInfoString(buf, " IS NOT NULL");
	}
}

static void
append_any_null(StringInfo buf, MigrateSource *src)
{
	for (int k = 0; k < src->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoString(buf, " OR ");
		append_column(buf, src, src->keys[k]);
		appendStringInfoString(buf, " IS NULL");
	}
}

/*
 * A value of key column k.  Its type follows from the column's, but for reg*
 * types: they are compared as oid, and their names are none.
 */
static void
append_key_value(StringInfo buf, MigrateSource *src, int k, const char *value)
{
	Oid			type = src->columns[src->keys[k]].type;

	appendStringInfoString(buf, quote_literal_cstr(value));
	switch (type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
			appendStringInfo(buf, "::pg_catalog.%s", format_type_be(type));
			break;
	}
}

/* (k1, k2) <op> ('v1', 'v2'), as one row comparison */
static void
append_row_comparison(StringInfo buf, MigrateSource *src, const char *op, char **key)
{
	appendStringInfoChar(buf, '(');
	for (int k = 0; k < src->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoString(buf, ", ");
		append_key(buf, src, k);
	}
	appendStringInfo(buf, ") OPERATOR(pg_catalog.%s) (", op);
	for (int k = 0; k < src->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoString(buf, ", ");
		append_key_value(buf, src, k, key[k]);
	}
	appendStringInfoChar(buf, ')');
}

static void
append_one_comparison(StringInfo buf, MigrateSource *src, int k, const char *op,
					  const char *value)
{
	append_key(buf, src, k);
	appendStringInfo(buf, " OPERATOR(pg_catalog.%s) ", op);
	append_key_value(buf, src, k, value);
}

/*
 * The same with AND and OR, from column k on:
 *		k1 >= v1 AND (k1 > v1 OR (k2 >= v2 AND (k2 > v2 OR k3 >= v3)))
 * in which the first term says nothing new but can use an index.
 */
static void
append_expanded(StringInfo buf, MigrateSource *src, const char *op, char **key, int k)
{
	char		strict[2] = {op[0], '\0'};	/* < or > */
	char		loose[3] = {op[0], '=', '\0'};

	if (k == src->nkeys - 1)
	{
		append_one_comparison(buf, src, k, op, key[k]);
		return;
	}
	append_one_comparison(buf, src, k, loose, key[k]);
	appendStringInfoString(buf, " AND (");
	append_one_comparison(buf, src, k, strict, key[k]);
	appendStringInfoString(buf, " OR (");
	append_expanded(buf, src, op, key, k + 1);
	appendStringInfoString(buf, "))");
}

/* op is one of < <= > >= */
static void
append_comparison(StringInfo buf, MigrateSource *src, const char *op, char **key)
{
	if (is_local(src))
		append_expanded(buf, src, op, key, 0);
	else
		append_row_comparison(buf, src, op, key);
}

/* Does nothing vouch for it that key columns are not null? */
static bool
key_may_be_null(MigrateSource *src, MigrateRange *range)
{
	return is_local(src) || !OidIsValid(range->remote_filenode);
}

static void
append_key_range(StringInfo buf, MigrateSource *src, MigrateRange *range)
{
	bool		nulls = key_may_be_null(src, range);

	if (range->key_lo)
	{
		append_comparison(buf, src, ">=", range->key_lo);
		if (range->key_hi)
			appendStringInfoString(buf, " AND ");
	}
	if (range->key_hi)
		append_comparison(buf, src, "<", range->key_hi);
	if (!nulls)
		return;
	appendStringInfoString(buf, " AND ");
	migrate_append_not_null(buf, src);
	if (range->key_lo == NULL)
	{
		appendStringInfoString(buf, " OR ");
		append_any_null(buf, src);
	}
}

static void
append_block_range(StringInfo buf, MigrateRange *range)
{
	int64		lo = Max(range->block_lo, 0);

	if (range->off_lo > 0 || range->off_hi > 0)
	{
		appendStringInfo(buf, "ctid >= '(" INT64_FORMAT ",%d)'::tid", lo, range->off_lo);
		if (range->off_hi > 0)
		{
			appendStringInfo(buf, " AND ctid < '(" INT64_FORMAT ",%d)'::tid",
							 lo, range->off_hi);
			return;
		}
	}
	else
		appendStringInfo(buf, "ctid >= '(" INT64_FORMAT ",0)'::tid", lo);
	if (range->block_hi >= 0)
		appendStringInfo(buf, " AND ctid < '(" INT64_FORMAT ",0)'::tid", range->block_hi);
}

/*
 * k1 = 'v1' AND k2 IS NULL ...: by pg_catalog's equality where it serves the
 * type, else by the text form, which is right but uses no index.
 */
static void
append_key_at(StringInfo buf, MigrateSource *src, char **key)
{
	for (int k = 0; k < src->nkeys; k++)
	{
		Oid			type = src->columns[src->keys[k]].type;
		List	   *name = list_make2(makeString("pg_catalog"), makeString("="));

		if (k > 0)
			appendStringInfoString(buf, " AND ");
		append_column(buf, src, src->keys[k]);
		if (key[k] == NULL)
			appendStringInfoString(buf, " IS NULL");
		else
			appendStringInfo(buf, "%s OPERATOR(pg_catalog.=) %s",
							 OidIsValid(compatible_oper_opid(name, type, type, true)) ?
							 "" : "::pg_catalog.text", quote_literal_cstr(key[k]));
	}
}

/*
 * The same for any of a list of keys.  A single column is compared with the
 * list (both sessions find pg_catalog's operators first), which one scan of its
 * index serves; several with OR.
 */
void
migrate_append_keys_at(StringInfo buf, MigrateSource *src, List *keys)
{
	Oid			type = src->columns[src->keys[0]].type;
	List	   *name = list_make2(makeString("pg_catalog"), makeString("="));
	bool		in = src->nkeys == 1 && OidIsValid(compatible_oper_opid(name, type, type, true));
	ListCell   *lc;

	if (in)
	{
		append_column(buf, src, src->keys[0]);
		appendStringInfoString(buf, " IN (");
	}
	foreach(lc, keys)
	{
		char	  **key = lfirst(lc);

		if (in)
			appendStringInfo(buf, "%s%s", lc == list_head(keys) ? "" : ", ",
							 key[0] ? quote_literal_cstr(key[0]) : "NULL");
		else
		{
			appendStringInfoString(buf, lc == list_head(keys) ? "(" : ") OR (");
			append_key_at(buf, src, key);
		}
	}
	appendStringInfoString(buf, ")");
}

/* " WHERE ..." for a range, nothing for one that is open at both ends. */
void
migrate_append_where(StringInfo buf, MigrateSource *src, MigrateRange *range)
{
	const char *sep = " WHERE ";
	bool		several;

	if (range == NULL)
		return;
	if (range->key_at)
	{
		appendStringInfoString(buf, sep);
		append_key_at(buf, src, range->key_at);
		return;
	}
	if (range->keys_at)
	{
		appendStringInfoString(buf, sep);
		migrate_append_keys_at(buf, src, range->keys_at);
		return;
	}
	several = range->where != NULL;
	if (range->where)
	{
		appendStringInfo(buf, "%s(%s)", sep, range->where);
		sep = " AND ";
	}
	if (range->block_lo > 0 || range->block_hi >= 0 ||
		range->off_lo > 0 || range->off_hi > 0)
	{
		appendStringInfoString(buf, sep);
		append_block_range(buf, range);
		sep = " AND ";
		several = true;
	}
	if (range->key_lo || range->key_hi)
	{
		appendStringInfo(buf, several ? "%s(" : "%s", sep);
		append_key_range(buf, src, range);
		if (several)
			appendStringInfoChar(buf, ')');
	}
}

/* SELECT <columns> FROM <leaf> [WHERE <range>] */
char *
migrate_range_select(MigrateSource *src, MigrateRange *range)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	migrate_append_columns(&buf, src);
	appendStringInfoString(&buf, " FROM ");
	migrate_append_from(&buf, src, range);
	migrate_append_where(&buf, src, range);
	return buf.data;
}

/* ----------------------------------------------------------------
 * asking one side or the other
 * ----------------------------------------------------------------
 */

/* First row of a query as n strings (NULL-terminated), NULL without a row. */
static char **
query_row(MigrateConn *conn, MigrateSource *src, const char *sql, int n)
{
	char	  **row = NULL;

	if (is_local(src))
	{
		MemoryContext mcxt = CurrentMemoryContext;
		int			level = migrate_portable_output();

		SPI_connect();
		if (SPI_execute(sql, true, 1) != SPI_OK_SELECT)
			elog(ERROR, "not a query: %s", sql);
		if (SPI_processed > 0)
		{
			MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);

			row = palloc0((n + 1) * sizeof(char *));
			for (int i = 0; i < n; i++)
				row[i] = migrate_spi_text(0, i);
			MemoryContextSwitchTo(oldcxt);
		}
		SPI_finish();
		AtEOXact_GUC(true, level);
	}
	else
	{
		PGresult   *res = migrate_exec(conn, sql);

		if (PQntuples(res) > 0)
		{
			row = palloc0((n + 1) * sizeof(char *));
			for (int i = 0; i < n; i++)
				row[i] = migrate_result_value(res, 0, i);
		}
		PQclear(res);
	}
	return row;
}

/* The key at a distance from a point, or the first beyond it. */
static char **
key_after(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
		  const char *op, int64 offset)
{
	StringInfoData sql;
	const char *sep = " WHERE ";

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int k = 0; k < src->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoString(&sql, ", ");
		append_column(&sql, src, src->keys[k]);
	}
	appendStringInfoString(&sql, " FROM ");
	migrate_append_from(&sql, src, range);
	if (range->key_lo)
	{
		appendStringInfoString(&sql, sep);
		append_comparison(&sql, src, op, range->key_lo);
		sep = " AND ";
	}
	if (range->key_hi)
	{
		appendStringInfoString(&sql, sep);
		append_comparison(&sql, src, "<", range->key_hi);
		sep = " AND ";
	}
	if (key_may_be_null(src, range))
	{
		appendStringInfoString(&sql, sep);
		migrate_append_not_null(&sql, src);
	}
	appendStringInfoString(&sql, " ORDER BY ");
	migrate_append_order(&sql, src);
	appendStringInfo(&sql, " OFFSET " INT64_FORMAT " LIMIT 1", offset);
	return query_row(conn, src, sql.data, src->nkeys);
}

/* The lowest key of a range without nulls in it, NULL when there is none. */
char	  **
migrate_range_first_key(MigrateConn *conn, MigrateSource *src, MigrateRange *range)
{
	return key_after(conn, src, range, ">=", 0);
}

/*
 * The key that is "offset" rows into a range: a place to cut it.  NULL when
 * the range is no longer than that.  Never its lower end, even if many rows
 * are equal there: then it is the next key.
 */
char	  **
migrate_range_cut(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
				  int64 offset)
{
	MigrateRange from = *range;
	char	  **key = key_after(conn, src, range, ">=", offset);

	if (key == NULL)
		return NULL;
	if (range->key_lo == NULL)
	{
		/* an open end: is there anything below this key? */
		char	  **lowest = key_after(conn, src, range, ">=", 0);

		if (!same_key(lowest, key, src->nkeys))
			return key;
		from.key_lo = key;
	}
	else if (!same_key(range->key_lo, key, src->nkeys))
		return key;
	return key_after(conn, src, &from, ">", 0);
}

int64
migrate_range_count(MigrateConn *conn, MigrateSource *src, MigrateRange *range)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT count(*) FROM ");
	migrate_append_from(&sql, src, range);
	migrate_append_where(&sql, src, range);
	return pg_strtoint64(query_row(conn, src, sql.data, 1)[0]);
}

/*
 * Does the foreign table's wrapper evaluate a range of its key itself?  If it
 * does not, each chunk would read the whole table.  Told by the plan: a
 * condition left with us is a qual of the scan.
 */
bool
migrate_range_pushed_down(MigrateSource *src)
{
	StringInfoData sql;
	Oid			type = src->columns[src->keys[0]].type;
	SPIPlanPtr	plan;
	CachedPlan *cached;
	bool		pushed = false;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT FROM ");
	migrate_append_from(&sql, src, NULL);
	appendStringInfoString(&sql, " WHERE ");
	append_key(&sql, src, 0);
	appendStringInfoString(&sql, " OPERATOR(pg_catalog.>=) $1");

	SPI_connect();
	plan = SPI_prepare(sql.data, 1, &type);
	if (plan == NULL)
		elog(ERROR, "could not prepare: %s", sql.data);
	cached = SPI_plan_get_cached_plan(plan);
	if (cached)
	{
		PlannedStmt *stmt = linitial_node(PlannedStmt, cached->stmt_list);

		pushed = IsA(stmt->planTree, ForeignScan) && stmt->planTree->qual == NIL;
		ReleaseCachedPlan(cached, NULL);
	}
	SPI_finish();
	return pushed;
}
