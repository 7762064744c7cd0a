/*-------------------------------------------------------------------------
 *
 * unreadable.c
 *	  Finding the row that cannot be read, and what can be said of it.
 *
 * A range whose reading fails by the fault of a row is halved: blocks down to
 * one block, then its line pointers at the median of those that the snapshot
 * sees; keys at the median row.  The row that is left is fetched once more as
 * bytes, without conversion between encodings.
 *
 * Runs in the source transaction of the chunk, so that every half is of the
 * same snapshot.  Whatever may fail is inside a savepoint.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define RAW_SAVEPOINT "migrate_raw"

/* ----------------------------------------------------------------
 * halving
 * ----------------------------------------------------------------
 */

/* Where a block range that is open ends for the snapshot: the file's length. */
static int64
relation_blocks(MigrateConn *conn, MigrateRange *range)
{
	char	   *value = migrate_exec_value(conn,
										   psprintf("SELECT pg_relation_size(%u)"
													" / current_setting('block_size')::int8",
													range->remote_oid));

	return value ? pg_strtoint64(value) : 0;
}

/* One block: cut at the median of the line pointers that hold a row for us. */
static bool
halve_block(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
			MigrateRange *first, MigrateRange *second)
{
	StringInfoData sql;
	PGresult   *res;
	int64		count;
	int			median;

	initStringInfo(&sql);
	appendStringInfoString(&sql,
						   "SELECT count(*), (array_agg(o ORDER BY o))[count(*) / 2 + 1]"
						   " FROM (SELECT ((ctid::text::point)[1])::int AS o FROM ");
	migrate_append_from(&sql, src, range);
	migrate_append_where(&sql, src, range);
	appendStringInfoString(&sql, ") AS s");
	res = migrate_exec(conn, sql.data);
	count = pg_strtoint64(PQgetvalue(res, 0, 0));
	median = count > 1 ? atoi(PQgetvalue(res, 0, 1)) : 0;
	PQclear(res);
	if (count <= 1)
		return false;
	first->off_lo = Max(range->off_lo, 1);
	first->off_hi = median;
	second->off_lo = median;
	second->off_hi = range->off_hi;
	return true;
}

static bool
halve_blocks(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
			 MigrateRange *first, MigrateRange *second)
{
	int64		lo = Max(range->block_lo, 0);
	int64		hi = range->block_hi;
	int64		mid;

	/* rows beyond the end of the file came after the snapshot */
	if (hi < 0)
		hi = Max(relation_blocks(conn, range), lo + 1);
	first->block_lo = second->block_lo = lo;
	first->block_hi = second->block_hi = hi;
	if (hi - lo <= 1)
	{
		MigrateRange block = *range;

		block.block_lo = lo;
		block.block_hi = first->block_hi = second->block_hi = lo + 1;
		return halve_block(conn, src, &block, first, second);
	}
	mid = lo + (hi - lo) / 2;
	first->block_hi = mid;
	second->block_lo = mid;
	return true;
}

static bool
halve_keys(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
		   MigrateRange *first, MigrateRange *second)
{
	int64		count = migrate_range_count(conn, src, range);
	char	  **key;

	if (count <= 1)
		return false;
	key = migrate_range_cut(conn, src, range, count / 2);
	if (key == NULL)
		return false;
	first->key_hi = key;
	second->key_lo = key;
	return true;
}

/*
 * Halve a range.  False when it holds at most one row, or nothing is known by
 * which it could be cut (a whole table behind another wrapper).
 */
bool
migrate_range_halve(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
					MigrateRange *first, MigrateRange *second)
{
	MigrateRange whole = *range;
	bool		by_key = src->nkeys > 0 && src->method == 'k';

	*first = *second = whole;
	if (src->transport == 'f')
		return by_key && halve_keys(conn, src, &whole, first, second);
	if (!by_key && OidIsValid(range->remote_filenode))
		return halve_blocks(conn, src, &whole, first, second);
	return src->nkeys > 0 && halve_keys(conn, src, &whole, first, second);
}

/*
 * A range that cannot be halved may hold many rows: a whole table without a
 * key behind another wrapper, or rows of one key in a view.
 */
bool
migrate_range_is_row(MigrateConn *conn, MigrateSource *src, MigrateRange *range)
{
	return migrate_range_count(conn, src, range) <= 1;
}

/* ----------------------------------------------------------------
 * the row as bytes
 * ----------------------------------------------------------------
 */

/*
 * A query that may fail, without client encoding conversion if raw: NULL then.
 * Inside a savepoint when there is a transaction; undone in any case, which
 * also brings the encoding back.
 */
static PGresult *
guarded_query(MigrateConn *conn, const char *sql, bool raw)
{
	bool		in_xact = PQtransactionStatus(conn->pg) == PQTRANS_INTRANS;
	PGresult   *res;

	PQclear(migrate_exec(conn, in_xact ? "SAVEPOINT " RAW_SAVEPOINT : "BEGIN READ ONLY"));
	if (raw)
		PQclear(migrate_exec(conn, "SET LOCAL client_encoding = 'SQL_ASCII'"));
	res = migrate_exec_try(conn, sql);
	PQclear(migrate_exec(conn, in_xact ?
						 "ROLLBACK TO SAVEPOINT " RAW_SAVEPOINT
						 "; RELEASE SAVEPOINT " RAW_SAVEPOINT : "ROLLBACK"));
	if (!migrate_result_ok(res))
	{
		PQclear(res);
		return NULL;
	}
	return res;
}

/* SELECT <what> of the range, two rows at most (to see whether it is one) */
static char *
row_query(MigrateSource *src, MigrateRange *range, const char *what)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s FROM ", what);
	migrate_append_from(&sql, src, range);
	migrate_append_where(&sql, src, range);
	appendStringInfoString(&sql, " LIMIT 2");
	return sql.data;
}

static char *
quoted_remote(MigrateColumn *col)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '"');
	for (const char *p = col->remote_name; *p; p++)
	{
		if (*p == '"')
			appendStringInfoChar(&buf, '"');
		appendStringInfoChar(&buf, *p);
	}
	appendStringInfoChar(&buf, '"');
	return buf.data;
}

/* "a": "\\x61" for one column; nothing if not even its bytes can be had */
static void
append_raw_column(StringInfo buf, MigrateConn *conn, MigrateSource *src,
				  MigrateRange *range, MigrateColumn *col)
{
	PGresult   *res = guarded_query(conn, row_query(src, range, quoted_remote(col)), true);

	if (res == NULL)
		return;
	if (PQntuples(res) == 1)
	{
		if (buf->data[buf->len - 1] != '{')
			appendStringInfoString(buf, ", ");
		escape_json(buf, col->name);
		if (PQgetisnull(res, 0, 0))
			appendStringInfoString(buf, ": null");
		else
		{
			appendStringInfoString(buf, ": \"\\\\x");
			for (int i = 0; i < PQgetlength(res, 0, 0); i++)
				appendStringInfo(buf, "%02x", (unsigned char) PQgetvalue(res, 0, 0)[i]);
			appendStringInfoChar(buf, '"');
		}
	}
	PQclear(res);
}

/* Where the row is, in words: its ctid, or the ends of the range. */
static char *
row_place(MigrateConn *conn, MigrateSource *src, MigrateRange *range)
{
	StringInfoData buf;
	PGresult   *res;

	initStringInfo(&buf);
	if (src->transport == 'c' && OidIsValid(range->remote_filenode) &&
		(res = guarded_query(conn, row_query(src, range, "ctid::text"), false)) != NULL)
	{
		if (PQntuples(res) == 1)
			appendStringInfo(&buf, "%s of ", PQgetvalue(res, 0, 0));
		else if (range->block_lo >= 0)
			appendStringInfo(&buf, "block " INT64_FORMAT " of ", range->block_lo);
		PQclear(res);
	}
	else if (range->key_lo)
	{
		appendStringInfoString(&buf, "from key (");
		for (int k = 0; k < src->nkeys; k++)
			appendStringInfo(&buf, "%s%s", k > 0 ? ", " : "", range->key_lo[k]);
		appendStringInfoString(&buf, ") of ");
	}
	appendStringInfoString(&buf, range->relation);
	return buf.data;
}

/* The key as a jsonb object of texts, NULL when it cannot be read either. */
static char *
row_key(MigrateConn *conn, MigrateSource *src, MigrateRange *range)
{
	StringInfoData what;
	StringInfoData json;
	PGresult   *res;
	bool		valid;

	if (src->nkeys == 0)
		return NULL;
	initStringInfo(&what);
	for (int k = 0; k < src->nkeys; k++)
		appendStringInfo(&what, "%s%s", k > 0 ? ", " : "",
						 quoted_remote(&src->columns[src->keys[k]]));
	res = guarded_query(conn, row_query(src, range, what.data), false);
	if (res == NULL)
		return NULL;
	valid = PQntuples(res) == 1;
	initStringInfo(&json);
	for (int k = 0; valid && k < src->nkeys; k++)
	{
		appendStringInfoString(&json, k > 0 ? ", " : "{");
		escape_json(&json, src->columns[src->keys[k]].name);
		appendStringInfoString(&json, ": ");
		if (PQgetisnull(res, 0, k))
			appendStringInfoString(&json, "null");
		else if (pg_verifymbstr(PQgetvalue(res, 0, k), PQgetlength(res, 0, k), true))
			escape_json(&json, PQgetvalue(res, 0, k));
		else
			valid = false;
	}
	PQclear(res);
	if (!valid)
		return NULL;
	appendStringInfoChar(&json, '}');
	return json.data;
}

/*
 * The same through the foreign table: the lowest key of the range.  It may be
 * what cannot be read.
 */
static char *
row_key_by_scan(MigrateSource *src, MigrateRange *range)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	StringInfoData json;
	char	  **volatile key = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		key = migrate_range_first_key(NULL, src, range);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		if (!migrate_error_is_of_row(edata->sqlerrcode) &&
			!migrate_error_can_be_of_value(edata))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	if (key == NULL)
		return NULL;
	initStringInfo(&json);
	for (int k = 0; k < src->nkeys; k++)
	{
		appendStringInfoString(&json, k > 0 ? ", " : "{");
		escape_json(&json, src->columns[src->keys[k]].name);
		appendStringInfoString(&json, ": ");
		escape_json(&json, key[k]);
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

/*
 * What can be said of the one row of a range that cannot be read: *key, or
 * NULL, and *raw, {"at": "(12,3) of public.t", "columns": {"a": "\\x61"}} in
 * the source's own encoding.
 */
void
migrate_range_raw(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
				  char **key, char **raw)
{
	StringInfoData buf;

	*key = NULL;
	initStringInfo(&buf);
	appendStringInfoString(&buf, "{\"at\": ");
	escape_json(&buf, row_place(conn, src, range));
	appendStringInfoString(&buf, ", \"columns\": {");
	if (src->transport == 'c')
	{
		*key = row_key(conn, src, range);
		for (int i = 0; i < src->ncolumns; i++)
			append_raw_column(&buf, conn, src, range, &src->columns[i]);
	}
	else if (src->nkeys > 0 && src->method == 'k')
		*key = row_key_by_scan(src, range);
	appendStringInfoString(&buf, "}}");
	*raw = buf.data;
}
