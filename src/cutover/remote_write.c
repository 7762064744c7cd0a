/*-------------------------------------------------------------------------
 *
 * remote_write.c
 *	  Rows into a table of the source, by idempotent statements: INSERT with
 *	  ON CONFLICT on the key, and DELETE by key.  Doing them again changes
 *	  nothing, so a crash may repeat them.
 *
 * Values travel as literals, which take the type of their column as in any
 * INSERT (P7: one conversion, the source's).  Keeps no state; runs in the
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
	appendStringInfo(&buf, "DELETE FROM %s AS migrate_t USING (VALUES ", table->name);
	for (int r = from; r < to; r++)
	{
		for (int i = 0; i < table->ncolumns; i++)
		{
			appendStringInfoString(&buf, i > 0 ? ", " : r > from ? ", (" : "(");
			append_literal(&buf, rows[r][i]);
			/* the first row says what all are */
			if (r == from)
				appendStringInfo(&buf, "::%s", table->types[i]);
		}
		appendStringInfoChar(&buf, ')');
	}
	appendStringInfoString(&buf, ") AS migrate_v (");
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(&buf, "%smigrate_%d", i > 0 ? ", " : "", i);
	appendStringInfoString(&buf, ") WHERE ");
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(&buf, "%smigrate_t.%s = migrate_v.migrate_%d", i > 0 ? " AND " : "",
						 table->columns[i], i);
	return buf.data;
}
