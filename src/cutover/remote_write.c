/*-------------------------------------------------------------------------
 *
 * remote_write.c
 *	  Rows into a table of the source, by idempotent statements: INSERT with
 *	  ON CONFLICT on the key, DELETE by key, and both in one.  Doing them again
 *	  changes nothing, so a crash may repeat them.
 *
 * Values travel as literals, which take the type of their column as in any
 * INSERT, or as elements of arrays of that type: its input function reads them
 * either way (P7: one conversion, the source's).  Keeps no state; runs in the
 * reverse worker.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/remote_write.h"

#include "lib/stringinfo.h"

/*
 * As quote_literal, but an E'' string where there are backslashes; the session
 * has standard_conforming_strings on.
 */
static void
append_literal(StringInfo buf, const char *value)
{
	if (value == NULL)
	{
		appendStringInfoString(buf, "NULL");
		return;
	}
	appendStringInfoChar(buf, '\'');
	for (const char *p = value; *p; p++)
	{
		if (*p == '\'')
			appendStringInfoChar(buf, '\'');
		appendStringInfoChar(buf, *p);
	}
	appendStringInfoChar(buf, '\'');
}

/* a, b, c of those columns that are keys, or that can be updated, or all */
static int
append_columns(StringInfo buf, MigrateRemoteTable *table, bool keys, const char *format)
{
	int			n = 0;

	for (int i = 0; i < table->ncolumns; i++)
	{
		if (keys && !table->is_key[i])
			continue;
		if (n++ > 0)
			appendStringInfoString(buf, ", ");
		appendStringInfo(buf, "%s%s", format, table->columns[i]);
	}
	return n;
}

/* VALUES (...), ... */
static void
append_values(StringInfo buf, MigrateRemoteTable *table, MigrateRemoteRow *rows,
			  int from, int to)
{
	appendStringInfoString(buf, "VALUES ");
	for (int r = from; r < to; r++)
	{
		for (int i = 0; i < table->ncolumns; i++)
		{
			appendStringInfoString(buf, i > 0 ? ", " : r > from ? ", (" : "(");
			append_literal(buf, rows[r][i]);
			/* the first row says what all are */
			if (r == from)
				appendStringInfo(buf, "::%s", table->types[i]);
		}
		appendStringInfoChar(buf, ')');
	}
}

/* a.k = b.k AND ... */
static void
append_same_key(StringInfo buf, MigrateRemoteTable *table, const char *a, const char *b)
{
	int			n = 0;

	for (int i = 0; i < table->ncolumns; i++)
		if (table->is_key[i])
			appendStringInfo(buf, "%s%s.%s = %s.%s", n++ > 0 ? " AND " : "",
							 a, table->columns[i], b, table->columns[i]);
}

static void
append_conflict(StringInfo buf, MigrateRemoteTable *table)
{
	int			n = 0;

	appendStringInfoString(buf, " ON CONFLICT (");
	(void) append_columns(buf, table, true, "");
	appendStringInfoString(buf, ") DO ");
	for (int i = 0; i < table->ncolumns; i++)
	{
		if (table->is_key[i] || table->fixed[i])
			continue;
		appendStringInfo(buf, "%s%s = excluded.%s", n++ == 0 ? "UPDATE SET " : ", ",
						 table->columns[i], table->columns[i]);
	}
	if (n == 0)
		appendStringInfoString(buf, "NOTHING");
}

char *
migrate_remote_upsert(MigrateRemoteTable *table, MigrateRemoteRow *rows, int from, int to)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "INSERT INTO %s (", table->name);
	(void) append_columns(&buf, table, false, "");
	appendStringInfoString(&buf, ") OVERRIDING SYSTEM VALUE VALUES ");
	for (int r = from; r < to; r++)
	{
		for (int i = 0; i < table->ncolumns; i++)
		{
			appendStringInfoString(&buf, i > 0 ? ", " : r > from ? ", (" : "(");
			append_literal(&buf, rows[r][i]);
		}
		appendStringInfoChar(&buf, ')');
	}
	append_conflict(&buf, table);
	return buf.data;
}

char *
migrate_remote_delete(MigrateRemoteTable *table, MigrateRemoteRow *rows, int from, int to)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "DELETE FROM %s AS migrate_t USING (", table->name);
	append_values(&buf, table, rows, from, to);
	appendStringInfoString(&buf, ") AS migrate_v (");
	(void) append_columns(&buf, table, false, "");
	appendStringInfoString(&buf, ") WHERE ");
	append_same_key(&buf, table, "migrate_t", "migrate_v");
	return buf.data;
}

/* ROWS FROM (unnest($1::a[]), unnest($2::b[])) */
static void
append_unnest(StringInfo buf, MigrateRemoteTable *table)
{
	appendStringInfoString(buf, "ROWS FROM (");
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(buf, "%spg_catalog.unnest($%d::%s[])", i > 0 ? ", " : "", i + 1, table->types[i]);
	appendStringInfoChar(buf, ')');
}

char *
migrate_remote_upsert_arrays(MigrateRemoteTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "INSERT INTO %s (", table->name);
	(void) append_columns(&buf, table, false, "");
	appendStringInfoString(&buf, ") OVERRIDING SYSTEM VALUE SELECT * FROM ");
	append_unnest(&buf, table);
	append_conflict(&buf, table);
	return buf.data;
}

char *
migrate_remote_delete_arrays(MigrateRemoteTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "DELETE FROM %s AS migrate_t USING ", table->name);
	append_unnest(&buf, table);
	appendStringInfoString(&buf, " AS migrate_v (");
	(void) append_columns(&buf, table, false, "");
	appendStringInfoString(&buf, ") WHERE ");
	append_same_key(&buf, table, "migrate_t", "migrate_v");
	return buf.data;
}

/* An element of an array's text. */
static void
append_element(StringInfo buf, const char *value)
{
	if (value == NULL)
	{
		appendStringInfoString(buf, "NULL");
		return;
	}
	appendStringInfoChar(buf, '"');
	for (;;)
	{
		size_t		plain = strcspn(value, "\"\\");

		appendBinaryStringInfo(buf, value, plain);
		value += plain;
		if (*value == '\0')
			break;
		appendStringInfoChar(buf, '\\');
		appendStringInfoChar(buf, *value++);
	}
	appendStringInfoChar(buf, '"');
}

/* The parameters: texts of arrays. */
const char **
migrate_remote_arrays(MigrateRemoteTable *table, MigrateRemoteRow *rows, int n)
{
	const char **arrays = palloc(sizeof(char *) * Max(table->ncolumns, 1));

	for (int i = 0; i < table->ncolumns; i++)
	{
		StringInfoData buf;

		initStringInfo(&buf);
		appendStringInfoChar(&buf, '{');
		for (int r = 0; r < n; r++)
		{
			if (r > 0)
				appendStringInfoChar(&buf, ',');
			append_element(&buf, rows[r][i]);
		}
		appendStringInfoChar(&buf, '}');
		arrays[i] = buf.data;
	}
	return arrays;
}

/* INSERT INTO t (<columns>[, <kept>]) ... SELECT <the same> FROM migrate_v v */
static void
append_insert_select(StringInfo buf, MigrateRemoteTable *table, bool kept)
{
	appendStringInfo(buf, "INSERT INTO %s (", table->name);
	(void) append_columns(buf, table, false, "");
	for (int i = 0; kept && i < table->nkept; i++)
		appendStringInfo(buf, ", %s", table->kept[i]);
	appendStringInfoString(buf, ") OVERRIDING SYSTEM VALUE SELECT ");
	(void) append_columns(buf, table, false, "v.");
	for (int i = 0; kept && i < table->nkept; i++)
		appendStringInfo(buf, ", g.%s", table->kept[i]);
	appendStringInfoString(buf, " FROM migrate_v v");
}

/*
 * One statement, so that a foreign key to a row that is there again at its end
 * is satisfied.  Counting what is gone has everything deleted before the first
 * row is written.  What is not given is kept.
 */
char *
migrate_remote_anew(MigrateRemoteTable *table, MigrateRemoteRow *rows, int from, int to)
{
	StringInfoData buf;
	const char *all_gone = " WHERE (SELECT count(*) FROM migrate_gone) >= 0";

	initStringInfo(&buf);
	appendStringInfoString(&buf, "WITH migrate_v (");
	(void) append_columns(&buf, table, false, "");
	appendStringInfoString(&buf, ") AS (");
	append_values(&buf, table, rows, from, to);
	appendStringInfo(&buf, "), migrate_gone AS (DELETE FROM %s AS migrate_t USING migrate_v WHERE ",
					 table->name);
	append_same_key(&buf, table, "migrate_t", "migrate_v");
	appendStringInfoString(&buf, " RETURNING migrate_t.*)");
	if (table->nkept > 0)
	{
		appendStringInfoString(&buf, ", migrate_again AS (");
		append_insert_select(&buf, table, true);
		appendStringInfoString(&buf, " JOIN migrate_gone g ON ");
		append_same_key(&buf, table, "g", "v");
		appendStringInfo(&buf, "%s) ", all_gone);
	}
	append_insert_select(&buf, table, false);
	appendStringInfoString(&buf, all_gone);
	if (table->nkept > 0)
	{
		appendStringInfoString(&buf, " AND NOT EXISTS (SELECT FROM migrate_gone g WHERE ");
		append_same_key(&buf, table, "g", "v");
		appendStringInfoChar(&buf, ')');
	}
	return buf.data;
}
