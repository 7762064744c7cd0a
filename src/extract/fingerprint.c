/*-------------------------------------------------------------------------
 *
 * fingerprint.c
 *	  The relations of a source table as the source describes them, each with
 *	  a fingerprint of what its rows are read by (P2).
 *
 * A fingerprint is made by the source, in the query that is asked anyway: when
 * the copy is planned, in the transaction of each chunk, and by the watch
 * (control/drift.c).  Its parts, joined by periods:
 *
 *	  place		parents and partition bound, and of a partition the row of
 *				each link up the tree, which a DETACH and ATTACH renews: what
 *				was written between is in no stream; "-" for the table
 *				itself, whose place does not matter
 *	  types		of the columns that are read: name, type, typmod, collation
 *	  numbers	of these columns: name, attribute number
 *	  versions	of their rows in pg_attribute, which every ALTER renews
 *	  natts		columns that there ever were
 *	  unread	columns that are there and not read
 *
 * The first three decide whether rows may be read as planned.  "versions"
 * tells, with new storage, an ALTER TYPE ... USING to the same type from a
 * mere rewrite; the last two tell columns that came or went and do not
 * matter.  Hashes and not md5(), which some servers are built without.
 *
 * What is read are the columns of the foreign table.  A tree that is read
 * through its root has one fingerprint, of all its relations.
 *
 * Runs wherever a source is planned, read or watched; holds no state.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "common/hashfn.h"
#include "utils/builtins.h"

#define PARTS 6

enum
{
	PLACE,
	TYPES,
	NUMBERS,
	VERSIONS,
	NATTS,
	UNREAD
};

/* ----------------------------------------------------------------
 * the query
 * ----------------------------------------------------------------
 */

/* to_hex(hash of an aggregate), of nothing too */
#define HASH(text) "to_hex(hashtextextended(coalesce(" text ", '') COLLATE \"C\", 0))"

/* the columns that the source reads, or those of its key, as a name[] literal */
static char *
column_names(MigrateSource *src, bool keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < (keys ? src->nkeys : src->ncolumns); i++)
	{
		MigrateColumn *col = &src->columns[keys ? src->keys[i] : i];

		appendStringInfoString(&buf, i > 0 ? ",\"" : "\"");
		for (const char *p = col->remote_name; *p; p++)
		{
			if (*p == '"' || *p == '\\')
				appendStringInfoChar(&buf, '\\');
			appendStringInfoChar(&buf, *p);
		}
		appendStringInfoChar(&buf, '"');
	}
	appendStringInfoChar(&buf, '}');
	return psprintf("%s::name[]", quote_literal_cstr(buf.data));
}

/*
 * A LATERAL item "f" over pg_class c, with the fingerprint's parts and the
 * names of read columns that are missing.  "condition" is one more that a
 * column must meet.
 */
static char *
columns_item(const char *columns, const char *condition)
{
	return psprintf("LATERAL (SELECT "
					HASH("string_agg(concat_ws(' ', a.attname, a.atttypid, a.atttypmod,"
						 " a.attcollation), ',' ORDER BY a.attname) FILTER (WHERE a.is_read)")
					" AS types, "
					HASH("string_agg(concat_ws(' ', a.attname, a.attnum), ','"
						 " ORDER BY a.attname) FILTER (WHERE a.is_read)")
					" AS numbers, "
					HASH("string_agg(a.xmin::text, ' ' ORDER BY a.attname)"
						 " FILTER (WHERE a.is_read)")
					" AS versions,"
					" count(*) FILTER (WHERE NOT a.is_read AND NOT a.attisdropped) AS unread,"
					" array_agg(a.attname) FILTER (WHERE a.is_read) AS found"
					" FROM (SELECT x.attname, x.attnum, x.atttypid, x.atttypmod,"
					"  x.attcollation, x.attisdropped, x.xmin,"
					"  x.attname = ANY (%s) AND NOT x.attisdropped%s AS is_read"
					"  FROM pg_attribute x WHERE x.attrelid = c.oid AND x.attnum > 0) a) f",
					columns, condition);
}

/* The place of pg_class c in its tree. */
static char *
place_expression(int version)
{
	const char *attached = version >= 140000 ? " AND NOT i.inhdetachpending" : "";

	return psprintf(HASH("concat_ws(' ', pg_get_expr(c.relpartbound, c.oid),"
						 " CASE WHEN c.relispartition THEN"
						 " (SELECT string_agg(concat_ws(' ', i.inhparent, i.xmin), ' ' ORDER BY a.level)"
						 "  FROM pg_partition_ancestors(c.oid) WITH ORDINALITY a (relid, level)"
						 "  JOIN pg_inherits i ON i.inhrelid = a.relid%s)"
						 " ELSE (SELECT string_agg(i.inhparent::text, ' ' ORDER BY i.inhseqno)"
						 "  FROM pg_inherits i WHERE i.inhrelid = c.oid%s) END)"),
					attached, attached);
}

#define JOINED(place) "concat_ws('.', " place \
	", f.types, f.numbers, f.versions, c.relnatts, f.unread)"

/* read columns that are not there, as they are quoted in messages */
#define MISSING(columns) "(SELECT string_agg('\"' || m || '\"', ', ')" \
	" FROM unnest(" columns ") m WHERE m <> ALL (coalesce(f.found, '{}')))"

/*
 * The fingerprint of one relation, and its missing columns, as two scalar
 * expressions: for the query that follows the lock of a chunk.  looked_up: the
 * statement's snapshot may be older than the lock, so names are compared with
 * those that the parser will see.
 */
char *
migrate_fingerprint_items(MigrateConn *conn, MigrateSource *src,
						  const char *relation, bool looked_up)
{
	char	   *columns = column_names(src, false);
	char	   *condition = "";
	char	   *from;

	if (looked_up)
		condition = " AND x.attname = (pg_identify_object_as_address("
			"'pg_catalog.pg_class'::regclass, c.oid, x.attnum)).object_names[3]";
	from = psprintf("FROM pg_class c CROSS JOIN %s WHERE c.oid = %s",
					columns_item(columns, condition), relation);
	return psprintf("(SELECT " JOINED("%s") " %s), (SELECT " MISSING("%s") " %s)",
					place_expression(conn->version), from, columns, from);
}

/* Add a source to the list of VALUES that the queries below begin with. */
void
migrate_tree_values(StringInfo buf, int id, MigrateSource *src)
{
	appendStringInfo(buf, "%s(%d,%s,%s,%s,%s)", buf->len > 0 ? "," : "", id,
					 quote_literal_cstr(src->remote_schema),
					 quote_literal_cstr(src->remote_table),
					 src->only_parent ? "true" : "false", column_names(src, false));
}

/* The same for migrate_tree_identity_query()'s keys. */
void
migrate_key_values(StringInfo buf, int id, MigrateSource *src)
{
	appendStringInfo(buf, "%s(%d,%s)", buf->len > 0 ? "," : "", id, column_names(src, true));
}

/*
 * Trees of sources: the root by its name, and below it partitions and
 * inheritance children at every depth, each once.
 */
static char *
tree_clause(const char *values, int version)
{
	return psprintf("WITH RECURSIVE wanted (id, nsp, rel, alone, columns) AS (VALUES %s),"
					" root AS (SELECT w.id, c.oid, w.alone AND c.relkind <> 'p' AS alone"
					"  FROM wanted w"
					"  JOIN pg_namespace n ON n.nspname = w.nsp"
					"  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel),"
					" tree (id, oid, alone) AS (SELECT id, oid, alone FROM root"
					"  UNION SELECT t.id, i.inhrelid, false FROM tree t"
					"  JOIN pg_inherits i ON i.inhparent = t.oid AND NOT t.alone%s)",
					values, version >= 140000 ? " AND NOT i.inhdetachpending" : "");
}

#define TREE_RELATIONS \
	" FROM tree t JOIN pg_class c ON c.oid = t.oid" \
	" JOIN pg_namespace n ON n.oid = c.relnamespace"
#define RELATION_KINDS " WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f')"

/*
 * All relations of the trees of sources, for migrate_tree_relation().  Sizes
 * take a lock on each table, and are left out where that may last.
 */
char *
migrate_tree_query(const char *values, int version, bool sizes)
{
	return psprintf("%s SELECT t.id, c.oid, c.relkind,"
					" quote_ident(n.nspname) || '.' || quote_ident(c.relname),"
					" pg_relation_filenode(c.oid),"
					" CASE WHEN %s AND c.relkind IN ('r', 'm') THEN pg_relation_size(c.oid)"
					"  / current_setting('block_size')::int8 END,"
					" c.reltuples,"
					" has_schema_privilege(n.oid, 'USAGE') AND"
					" (has_table_privilege(c.oid, 'SELECT') OR"
					"  has_any_column_privilege(c.oid, 'SELECT')),"
					" r.oid IS NOT NULL,"
	/* ctid is readable with a privilege on the whole table only */
					" coalesce(a.amname, '') = 'heap' AND has_table_privilege(c.oid, 'SELECT'),"
					" " JOINED("CASE WHEN r.oid IS NULL THEN %s ELSE '-' END") ","
					" " MISSING("w.columns")
					TREE_RELATIONS
					" JOIN wanted w ON w.id = t.id"
					" LEFT JOIN root r ON r.id = t.id AND r.oid = t.oid"
					" LEFT JOIN pg_am a ON a.oid = c.relam"
					" CROSS JOIN %s" RELATION_KINDS " ORDER BY t.id, c.oid",
					tree_clause(values, version), sizes ? "true" : "false",
					place_expression(version), columns_item("w.columns", ""));
}

/*
 * Relations with rows of the trees of sources that the stream cannot tell the
 * rows of any more (P16): id of the source, name, why, and the remedy.  "keys"
 * is a list of VALUES (id, columns of its key as the source names them).
 */
char *
migrate_tree_identity_query(const char *values, const char *keys, int version)
{
	return psprintf("%s, keys (id, names) AS (VALUES %s),"
					" leaf AS (SELECT t.id, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,"
					"  c.relreplident AS kind, k.names, x.*" TREE_RELATIONS
					"  JOIN keys k ON k.id = t.id"
	/* its identity, the immediate keys among its columns, and the others */
					"  CROSS JOIN LATERAL (SELECT"
					"   bool_or(i.indisprimary AND NOT i.indimmediate) AS deferrable,"
					"   max(i.names) FILTER (WHERE i.indimmediate"
					"    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END) AS identity,"
					"   bool_or(i.indimmediate) FILTER (WHERE i.plain AND i.names <@ k.names) AS immediate"
					"   FROM (SELECT i.indisprimary, i.indimmediate, i.indisreplident,"
					"    i.indpred IS NULL AND i.indexprs IS NULL AS plain,"
					"    ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid"
					"     AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) AS names"
					"    FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid) i) x"
					"  WHERE c.relkind = 'r')"
					" SELECT l.id, l.name, w.why, CASE WHEN w.deferrable THEN 'make that key not deferrable'"
					"  ELSE 'give it a primary key that is not deferrable, or ALTER TABLE ' || l.name || ' REPLICA IDENTITY FULL' END"
					" FROM leaf l CROSS JOIN LATERAL (SELECT true AS deferrable,"
					"   format('has a key (%%s) that has become deferrable, so rows can exchange it', array_to_string(l.names, ', ')) AS why"
					"   WHERE NOT l.immediate"
					"  UNION ALL SELECT l.kind = 'd' AND l.deferrable, CASE WHEN l.kind = 'n' THEN 'has replica identity NOTHING'"
					"   WHEN l.kind = 'i' AND l.identity IS NULL THEN 'has lost the index of its replica identity'"
					"   WHEN l.identity IS NOT NULL THEN 'has a replica identity without columns of the key'"
					"   WHEN l.deferrable THEN 'has a primary key that is deferrable, which identifies no rows'"
					"   ELSE 'has no primary key any more' END"
					"   WHERE l.kind <> 'f' AND (l.names = '{}' OR NOT l.names <@ coalesce(l.identity, '{}'))"
					"  LIMIT 1) w ORDER BY l.id, l.name",
					tree_clause(values, version), keys);
}

/*
 * One value that changes whenever anything of these trees does, storage, keys
 * and columns that are not read included; cheap to compare, says nothing more.
 * Behind it, after a blank, the milliseconds that it took.
 */
char *
migrate_tree_digest_query(const char *values, int version)
{
	return psprintf("%s SELECT "
					HASH("string_agg(concat_ws(' ', t.id, c.oid, c.relkind, n.nspname,"
						 " c.relname, pg_relation_filenode(c.oid), %s, f.all_columns,"
						 " c.relreplident, k.all_keys), ';'"
						 " ORDER BY t.id, c.oid)")
					" || ' ' || (extract(epoch FROM clock_timestamp()"
					"  - statement_timestamp()) * 1000)::int8"
					TREE_RELATIONS
					" CROSS JOIN LATERAL (SELECT "
					HASH("string_agg(concat_ws(' ', x.attnum, x.attname, x.atttypid,"
						 " x.atttypmod, x.attcollation, x.xmin), ',' ORDER BY x.attnum)")
					" AS all_columns FROM pg_attribute x"
					"  WHERE x.attrelid = c.oid AND x.attnum > 0) f"
					" CROSS JOIN LATERAL (SELECT "
					HASH("string_agg(concat_ws(' ', i.indexrelid, i.indisprimary, i.indimmediate,"
						 " i.indisvalid, i.indisreplident), ',' ORDER BY i.indexrelid)")
					" AS all_keys FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique) k"
					RELATION_KINDS,
					tree_clause(values, version), place_expression(version));
}

/* ----------------------------------------------------------------
 * the answer
 * ----------------------------------------------------------------
 */

/* One relation of migrate_tree_query()'s result; *id is that of its source. */
MigrateRelation *
migrate_tree_relation(PGresult *res, int row, int *id)
{
	MigrateRelation *rel = palloc0(sizeof(MigrateRelation));
	char	   *value;

	*id = atoi(PQgetvalue(res, row, 0));
	rel->oid = atooid(PQgetvalue(res, row, 1));
	rel->relkind = PQgetvalue(res, row, 2)[0];
	rel->name = pstrdup(PQgetvalue(res, row, 3));
	if ((value = migrate_result_value(res, row, 4)) != NULL)
		rel->filenode = atooid(value);
	if ((value = migrate_result_value(res, row, 5)) != NULL)
		rel->blocks = pg_strtoint64(value);
	rel->reltuples = atof(PQgetvalue(res, row, 6));
	rel->readable = PQgetvalue(res, row, 7)[0] == 't';
	rel->is_root = PQgetvalue(res, row, 8)[0] == 't';
	rel->heap = PQgetvalue(res, row, 9)[0] == 't' &&
		(rel->relkind == 'r' || rel->relkind == 'm');
	rel->fingerprint = pstrdup(PQgetvalue(res, row, 10));
	rel->missing = migrate_result_value(res, row, 11);
	return rel;
}

/* The parts of a fingerprint; false when it is none. */
static bool
split(const char *fingerprint, char **parts)
{
	char	   *copy = pstrdup(fingerprint);
	int			n = 0;

	for (char *p = strtok(copy, "."); p && n < PARTS; p = strtok(NULL, "."))
		parts[n++] = p;
	return n == PARTS;
}

static void
add_hash(uint64 *hash, const char *text)
{
	*hash = hash_combine64(*hash, hash_bytes_extended((const unsigned char *) text,
													  strlen(text), 0));
}

/*
 * Of a tree that is read as one: all of its relations (of MigrateRelation, in
 * the order of the query) count, and the root for what is not read.
 */
char *
migrate_tree_fingerprint(List *relations)
{
	uint64		hash[NATTS] = {0};
	char	   *natts = "0";
	char	   *unread = "0";
	ListCell   *lc;

	foreach(lc, relations)
	{
		MigrateRelation *rel = lfirst(lc);
		char	   *parts[PARTS];

		if (!split(rel->fingerprint, parts))
			elog(ERROR, "not a fingerprint: %s", rel->fingerprint);
		for (int i = 0; i < NATTS; i++)
			add_hash(&hash[i], parts[i]);
		add_hash(&hash[PLACE], psprintf("%u", rel->oid));
		if (rel->is_root)
		{
			natts = parts[NATTS];
			unread = parts[UNREAD];
		}
	}
	return psprintf(UINT64_FORMAT "." UINT64_FORMAT "." UINT64_FORMAT "." UINT64_FORMAT
					".%s.%s", hash[PLACE], hash[TYPES], hash[NUMBERS], hash[VERSIONS],
					natts, unread);
}

/*
 * What has changed between two fingerprints that matters to reading: a phrase
 * that follows the table's name, or NULL.  "missing" are the columns that were
 * not found now, NULL for none.  other: it is another relation of that name,
 * whose attribute numbers may be others.
 */
char *
migrate_fingerprint_change(const char *planned, const char *now,
						   const char *missing, bool other)
{
	char	   *was[PARTS];
	char	   *is[PARTS];

	if (planned == NULL || now == NULL || !split(planned, was) || !split(now, is))
		return NULL;
	if (strcmp(was[TYPES], is[TYPES]) != 0)
	{
		if (missing)
			return psprintf("has no column %s any more (dropped or renamed)", missing);
		return "has another type or collation of a column that is read";
	}
	if (!other && strcmp(was[NUMBERS], is[NUMBERS]) != 0)
		return "has other columns under the names that are read (renamed, or dropped and added again)";
	if (strcmp(was[PLACE], "-") != 0 && strcmp(was[PLACE], is[PLACE]) != 0)
		return "has other partitions or children, or is one of another table, with other bounds, or was detached for a while";
	return NULL;
}

/* Were read columns altered, even if they look as before? */
bool
migrate_fingerprint_altered(const char *planned, const char *now)
{
	char	   *was[PARTS];
	char	   *is[PARTS];

	return planned && now && split(planned, was) && split(now, is) &&
		strcmp(was[VERSIONS], is[VERSIONS]) != 0;
}

/*
 * Columns that came and went among those that are not read.  *after is the
 * attribute number behind which the added ones are.
 */
void
migrate_fingerprint_unread(const char *planned, const char *now,
						   int *after, int *added, int *dropped)
{
	char	   *was[PARTS];
	char	   *is[PARTS];

	*after = *added = *dropped = 0;
	if (planned == NULL || now == NULL || !split(planned, was) || !split(now, is))
		return;
	*after = atoi(was[NATTS]);
	*added = Max(atoi(is[NATTS]) - *after, 0);
	*dropped = Max(atoi(was[UNREAD]) + *added - atoi(is[UNREAD]), 0);
}
