/*-------------------------------------------------------------------------
 *
 * reverse_table.c
 *	  A target table on its way back: how its rows become the source's, and the
 *	  net effect of its changes per key.
 *
 * A change is kept as the texts of the message.  Per key only the newest image
 * counts.  What becomes of it is in reverse_write.c.
 *
 * A transaction that is larger than the memory it may take is written in parts,
 * and between two of them the source may be in a state that the target has
 * never shown: a child before its parent, a unique value that is still at
 * another row.  What cannot be written for that is carried along into the next
 * part, as a change that came before all of its changes.
 *
 * Runs in the reverse worker; memory only.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/reverse_table.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "extract/extract.h"

/* ----------------------------------------------------------------
 * the tables of a job
 * ----------------------------------------------------------------
 */

/* The target's row as a source of rows; keys: names of its columns. */
static MigrateSource *
target_as_source(MigrateJob *job, Oid target, char **keys, int nkeys)
{
	Relation	rel = table_open(target, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	MigrateSource *src = palloc0(sizeof(MigrateSource));

	src->job_id = job->job_id;
	src->label = pstrdup(RelationGetRelationName(rel));
	src->server = job->server;
	src->foreign_table = target;
	src->columns = palloc0(Max(desc->natts, 1) * sizeof(MigrateColumn));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		MigrateColumn *col;

		if (att->attisdropped)
			continue;
		col = &src->columns[src->ncolumns++];
		col->name = col->remote_name = pstrdup(NameStr(att->attname));
		col->attnum = att->attnum;
		col->type = att->atttypid;
		col->typmod = att->atttypmod;
	}
	src->rowdesc = CreateTemplateTupleDesc(src->ncolumns);
	for (int i = 0; i < src->ncolumns; i++)
		TupleDescCopyEntry(src->rowdesc, i + 1, desc, src->columns[i].attnum);
	table_close(rel, NoLock);

	src->keys = palloc0(Max(nkeys, 1) * sizeof(int));
	src->nkeys = nkeys;
	for (int k = 0; k < nkeys; k++)
		for (int i = 0; i < src->ncolumns; i++)
			if (strcmp(src->columns[i].name, keys[k]) == 0)
			{
				src->keys[k] = i;
				src->columns[i].is_key = true;
			}
	return src;
}

/* A compiled mapping to columns of a relation, from query text with its marks. */
static MigrateMapping *
make_mapping(MigrateMapping *forward, MigrateSource *src, Oid to, char *query,
			 char **columns, int ncolumns, char *search_path)
{
	MigrateMapping *map = palloc0(sizeof(MigrateMapping));

	map->mapping_id = forward->mapping_id;
	map->job_id = forward->job_id;
	map->target = to;
	map->target_name = psprintf("the source of %s", forward->target_name);
	map->kind = 'c';
	map->many = true;			/* it may leave rows out */
	map->search_path = search_path;
	map->timezone = forward->timezone;
	map->datestyle = forward->datestyle;
	map->query = query;
	map->ncolumns = ncolumns;
	map->columns = columns;
	map->attnums = palloc(Max(ncolumns, 1) * sizeof(AttrNumber));
	for (int i = 0; i < ncolumns; i++)
		map->attnums[i] = get_attnum(to, columns[i]);
	map->version = forward->version;
	migrate_mapping_compile(map, src);
	return map;
}

/*
 * Columns of a table there: name, type, whether it is GENERATED ALWAYS AS
 * IDENTITY, whether values of it can be elements of an array; and whether a row may be deleted there for a moment: nothing
 * cascades from it, and no trigger sees it.
 */
static PGresult *
remote_columns(MigrateSource *forward, MigrateConn *conn)
{
	return migrate_exec(conn,
						psprintf("SELECT a.attname, pg_catalog.format_type(a.atttypid, -1), a.attidentity = 'a',"
								 " t.typarray <> 0 AND t.typtype <> 'c' AND t.typcategory NOT IN ('A', 'C') AND t.typdelim = ',',"
								 " pg_catalog.current_setting('session_replication_role') = 'replica'"
								 " OR NOT EXISTS (SELECT FROM pg_catalog.pg_constraint f WHERE f.contype = 'f'"
								 "  AND f.confrelid = c.oid AND f.confdeltype <> 'a')"
								 " AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid"
								 "  AND NOT t.tgisinternal AND t.tgtype & 8 <> 0 AND t.tgname !~ '^migrate_fence_')"
								 " FROM pg_catalog.pg_attribute a"
								 " JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
								 " JOIN pg_catalog.pg_class c ON c.oid = a.attrelid"
								 " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
								 " WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0"
								 " AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum",
								 quote_literal_cstr(forward->remote_schema),
								 quote_literal_cstr(forward->remote_table)));
}

/* The columns that are given, as they are there, and those that are not. */
static void
describe_remote(MigrateRemoteTable *remote, MigrateSource *forward, MigrateMapping *map,
				MigrateConn *conn, bool keys_only)
{
	PGresult   *res = remote_columns(forward, conn);
	int			n = PQntuples(res);
	bool	   *given = palloc0(Max(n, 1) * sizeof(bool));
	int			known = 0;

	remote->arrays = true;
	remote->name = quote_qualified_identifier(forward->remote_schema, forward->remote_table);
	remote->ncolumns = map->ncolumns;
	remote->columns = palloc0(Max(map->ncolumns, 1) * sizeof(char *));
	remote->types = palloc0(Max(map->ncolumns, 1) * sizeof(char *));
	remote->is_key = palloc0(Max(map->ncolumns, 1) * sizeof(bool));
	remote->fixed = palloc0(Max(map->ncolumns, 1) * sizeof(bool));
	for (int i = 0; i < map->ncolumns; i++)
		for (int c = 0; c < forward->ncolumns; c++)
		{
			MigrateColumn *col = &forward->columns[c];

			if (strcmp(col->name, map->columns[i]) != 0)
				continue;
			remote->columns[i] = pstrdup(quote_identifier(col->remote_name));
			remote->types[i] = format_type_extended(col->type, -1, FORMAT_TYPE_TYPEMOD_GIVEN |
													FORMAT_TYPE_FORCE_QUALIFY);
			remote->is_key[i] = keys_only || col->is_key;
			for (int row = 0; row < n; row++)
			{
				if (strcmp(PQgetvalue(res, row, 0), col->remote_name) != 0)
					continue;
				given[row] = true;
				remote->types[i] = migrate_result_value(res, row, 1);
				remote->fixed[i] = PQgetvalue(res, row, 2)[0] == 't';
				known++;
				remote->arrays = remote->arrays && PQgetvalue(res, row, 3)[0] == 't';
			}
		}
	remote->arrays = remote->arrays && known == map->ncolumns;
	remote->kept = palloc(Max(n, 1) * sizeof(char *));
	for (int row = 0; row < n; row++)
	{
		remote->anew = PQgetvalue(res, row, 4)[0] == 't';
		if (!given[row])
			remote->kept[remote->nkept++] = pstrdup(quote_identifier(migrate_result_value(res, row, 0)));
	}
	PQclear(res);
}

/* SELECT <key columns of the source> FROM source */
static char *
key_query(char **columns, char **target_columns, int n)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT /*migrate*/ ");
	for (int k = 0; k < n; k++)
		appendStringInfo(&buf, "%ssource.%s AS %s", k > 0 ? ", " : "",
						 quote_identifier(target_columns[k]), pstrdup(quote_identifier(columns[k])));
	appendStringInfoString(&buf, " FROM /*migrate*/ source");
	return buf.data;
}

/* A text array of the current SPI result, copied. */
static char **
text_array(int row, int col, int *n, MemoryContext mcxt)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col + 1, &isnull);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	char	  **result = isnull ? NULL : migrate_key_from_array(value, false);

	for (*n = 0; result && result[*n]; (*n)++)
		;
	MemoryContextSwitchTo(old);
	return result;
}

static FmgrInfo *
output_functions(MigrateMapping *map)
{
	FmgrInfo   *output = palloc0(sizeof(FmgrInfo) * Max(map->ncolumns, 1));

	for (int i = 0; i < map->ncolumns; i++)
	{
		Oid			function;
		bool		varlena;

		getTypeOutputInfo(TupleDescAttr(map->outdesc, i)->atttypid, &function, &varlena);
		fmgr_info(function, &output[i]);
	}
	return output;
}

static void
input_functions(ReverseWay *way)
{
	MigrateSource *src = way->src;

	way->input = palloc0(sizeof(FmgrInfo) * Max(src->ncolumns, 1));
	way->ioparam = palloc0(sizeof(Oid) * Max(src->ncolumns, 1));
	for (int i = 0; i < src->ncolumns; i++)
	{
		Oid			function;

		getTypeInputInfo(src->columns[i].type, &function, &way->ioparam[i]);
		fmgr_info(function, &way->input[i]);
	}
}

static void
make_way(MigrateJob *job, MigrateConn *conn, ReverseWay *way, int mapping_id, char *query,
		 char **columns, int ncolumns, char **keys, int nkeys, char **target_keys,
		 char *search_path)
{
	MigrateMapping *forward = migrate_mapping_load(mapping_id);
	MigrateSource *source = migrate_source_load(forward->source_id);

	way->mapping_id = mapping_id;
	way->owns = forward->owns && forward->owns[0] ? forward->owns : NULL;
	way->src = target_as_source(job, forward->target, target_keys, nkeys);
	if (way->owns)
		query = psprintf("%s%s (%s\n)", query, strstr(query, " WHERE ") ? " AND" : " WHERE",
						 way->owns);
	way->inverse = make_mapping(forward, way->src, source->foreign_table, query, columns,
								ncolumns, search_path);
	way->keys = make_mapping(forward, way->src, source->foreign_table,
							 key_query(keys, target_keys, nkeys), keys, nkeys, search_path);
	describe_remote(&way->remote, source, way->inverse, conn, false);
	describe_remote(&way->remote_keys, source, way->keys, conn, true);
	way->inverse_output = output_functions(way->inverse);
	way->keys_output = output_functions(way->keys);
	input_functions(way);
}

static uint32
entry_hash(const void *key, Size keysize)
{
	const ReverseEntry *entry = key;

	return DatumGetUInt32(hash_any((const unsigned char *) entry->key, entry->keylen));
}

static int
entry_compare(const void *a, const void *b, Size keysize)
{
	const ReverseEntry *x = a;
	const ReverseEntry *y = b;

	if (x->keylen != y->keylen)
		return 1;
	return memcmp(x->key, y->key, x->keylen);
}

/* The key is in front of the entry: pointer and length. */
static void *
entry_copy(void *dest, const void *src, Size keysize)
{
	return memcpy(dest, src, keysize);
}

static HTAB *
make_entries(MemoryContext mcxt)
{
	HASHCTL		ctl = {0};

	ctl.keysize = offsetof(ReverseEntry, image);
	ctl.entrysize = sizeof(ReverseEntry);
	ctl.hash = entry_hash;
	ctl.match = entry_compare;
	ctl.keycopy = entry_copy;
	ctl.hcxt = mcxt;
	return hash_create("migrate reverse entries", 1024, &ctl,
					   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_KEYCOPY | HASH_CONTEXT);
}

/*
 * Every target of the job with the ways back of its mappings, by its OID.
 */
HTAB *
migrate_reverse_tables(MigrateJob *job, MigrateConn *conn)
{
	MemoryContext mcxt = CurrentMemoryContext;
	HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(ReverseTable),.hcxt = mcxt};
	HTAB	   *tables = hash_create("migrate reverse tables", 64, &ctl,
									 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(job->job_id);
	SPITupleTable *rows;
	uint64		n;

	migrate_spi_begin();
	migrate_spi_exec("SELECT m.target_oid, m.mapping_id, i.query, i.source_columns, i.search_path,"
					 " k.keys, k.target_keys, m.target, r.rank,"
					 " count(*) OVER (PARTITION BY m.target_oid), m.filter"
					 " FROM migrate.inverse i JOIN migrate.mapping m USING (mapping_id)"
					 " CROSS JOIN LATERAL (SELECT array_agg(e.key ORDER BY e.key) AS keys,"
					 "  array_agg(e.value ORDER BY e.key) AS target_keys"
					 "  FROM jsonb_each_text(i.key) e) k"
					 " JOIN migrate._foreign_key_ranks($1) r ON r.target_oid = m.target_oid"
					 " WHERE i.job_id = $1 AND i.obstacle IS NULL ORDER BY m.target_oid, m.mapping_id",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	rows = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		Oid			relid;
		ReverseTable *table;
		bool		found;
		int			mapping_id,
					ncolumns,
					nkeys;
		char	   *query,
				   *search_path,
				  **columns,
				  **keys,
				  **target_keys;
		MemoryContext old;

		SPI_tuptable = rows;
		relid = (Oid) migrate_spi_int64(i, 0, 0);
		mapping_id = (int) migrate_spi_int64(i, 1, 0);
		columns = text_array(i, 3, &ncolumns, mcxt);
		keys = text_array(i, 5, &nkeys, mcxt);
		target_keys = text_array(i, 6, &nkeys, mcxt);
		old = MemoryContextSwitchTo(mcxt);
		query = migrate_spi_text(i, 2);
		search_path = migrate_spi_text(i, 4);
		table = hash_search(tables, &relid, HASH_ENTER, &found);
		if (!found)
		{
			memset((char *) table + sizeof(Oid), 0, sizeof(ReverseTable) - sizeof(Oid));
			table->name = migrate_spi_text(i, 7);
			table->rank = (int) migrate_spi_int64(i, 8, 0);
			table->ways = palloc0(sizeof(ReverseWay) * migrate_spi_int64(i, 9, 1));
		}
		table->ways[table->nways].filter = migrate_spi_text(i, 10);
		make_way(job, conn, &table->ways[table->nways++], mapping_id, query, columns, ncolumns,
				 keys, nkeys, target_keys, search_path);
		MemoryContextSwitchTo(old);
	}
	migrate_spi_end();
	MemoryContextSwitchTo(mcxt);
	return tables;
}

/* A relation message of the table: where each of its columns is. */
void
migrate_reverse_describe(ReverseTable *table, MigrateRemoteRelation *remote, MemoryContext mcxt)
{
	MigrateSource *src;

	table->remote = remote;
	if (table->nways == 0)
		return;
	src = table->ways[0].src;
	table->from = MemoryContextAlloc(mcxt, sizeof(int) * Max(src->ncolumns, 1));
	for (int i = 0; i < src->ncolumns; i++)
	{
		table->from[i] = -1;
		for (int c = 0; c < remote->ncolumns; c++)
			if (strcmp(remote->columns[c].name, src->columns[i].name) == 0)
				table->from[i] = c;
	}
}

/* ----------------------------------------------------------------
 * changes -> the net effect per key
 * ----------------------------------------------------------------
 */

/* Texts by column of src, those that the message has; NULL is null. */
static char **
copy_row(ReverseTable *table, MigrateRemoteTuple *tuple, bool **unknown)
{
	MigrateSource *src = table->ways[0].src;
	char	  **row = palloc0(sizeof(char *) * Max(src->ncolumns, 1));

	*unknown = NULL;
	for (int i = 0; i < src->ncolumns; i++)
	{
		int			c = table->from[i];

		if (c < 0 || c >= tuple->ncolumns || tuple->kind[c] == 'n')
			continue;
		if (tuple->kind[c] == 'u')
		{
			if (*unknown == NULL)
				*unknown = palloc0(sizeof(bool) * src->ncolumns);
			(*unknown)[i] = true;
			continue;
		}
		row[i] = pnstrdup(tuple->value[c], tuple->len[c]);
	}
	return row;
}

static void
make_key(ReverseTable *table, char **row, ReverseEntry *probe)
{
	MigrateSource *src = table->ways[0].src;
	StringInfoData key;

	initStringInfo(&key);
	for (int k = 0; k < src->nkeys; k++)
	{
		const char *value = row[src->keys[k]];
		int32		len = value ? (int32) strlen(value) : -1;

		appendBinaryStringInfo(&key, (char *) &len, sizeof(len));
		if (value)
			appendBinaryStringInfo(&key, value, len);
	}
	probe->key = key.data;
	probe->keylen = key.len;
}

static ReverseEntry *
entry_of(ReverseTable *table, char **row)
{
	ReverseEntry probe;
	ReverseEntry *entry;
	bool		found;

	make_key(table, row, &probe);
	entry = hash_search(table->entries, &probe, HASH_ENTER, &found);
	if (!found)
	{
		entry->image = entry->gone = NULL;
		entry->unknown = NULL;
		entry->keep_image = entry->keep_gone = false;
		table->order = lappend(table->order, entry);
	}
	return entry;
}

/* Values that an image does not have, from the one before it (P12). */
static void
carry_over(ReverseTable *table, ReverseEntry *entry, char **before, bool *before_unknown)
{
	MigrateSource *src = table->ways[0].src;
	bool		any = false;

	if (entry->unknown == NULL || before == NULL)
		return;
	for (int i = 0; i < src->ncolumns; i++)
	{
		if (!entry->unknown[i])
			continue;
		if (before_unknown && before_unknown[i])
			any = true;
		else
		{
			entry->image[i] = before[i];
			entry->unknown[i] = false;
		}
	}
	if (!any)
		entry->unknown = NULL;
}

static void
set_image(ReverseTable *table, char **row, bool *unknown, ReverseEntry *before)
{
	ReverseEntry *entry = entry_of(table, row);
	char	  **old_image = before ? before->image : entry->image;
	bool	   *old_unknown = before ? before->unknown : entry->unknown;

	entry->image = row;
	entry->unknown = unknown;
	carry_over(table, entry, old_image, old_unknown);
}

static ReverseEntry *
set_gone(ReverseTable *table, char **row)
{
	ReverseEntry *entry = entry_of(table, row);

	entry->gone = row;
	return entry;
}

/*
 * One change.  Everything lives in batch_cxt, which is reset with the batch.
 */
void
migrate_reverse_collect(ReverseTable *table, MigrateMessage *msg, MemoryContext batch_cxt)
{
	MemoryContext old = MemoryContextSwitchTo(batch_cxt);
	bool	   *unknown;

	if (table->entries == NULL)
		table->entries = make_entries(batch_cxt);
	table->dirty = true;
	if (msg->type == 'I')
	{
		char	  **row = copy_row(table, &msg->new_row, &unknown);

		set_image(table, row, unknown, NULL);
	}
	else if (msg->type == 'U')
	{
		char	  **row = copy_row(table, &msg->new_row, &unknown);
		ReverseEntry *before = NULL;

		if (msg->old_kind != 0)
		{
			bool	   *ignored;
			char	  **old_row = copy_row(table, &msg->old_row, &ignored);
			ReverseEntry a,
						b;

			make_key(table, old_row, &a);
			make_key(table, row, &b);
			if (entry_compare(&a, &b, 0) != 0)
				before = set_gone(table, old_row);
		}
		set_image(table, row, unknown, before);
		if (before)
		{
			before->image = NULL;
			before->unknown = NULL;
		}
	}
	else
	{
		ReverseEntry *entry = set_gone(table, copy_row(table, &msg->old_row, &unknown));

		entry->image = NULL;
		entry->unknown = NULL;
	}
	MemoryContextSwitchTo(old);
}

void
migrate_reverse_clear(ReverseTable *table)
{
	table->dirty = table->truncated = false;
	table->entries = NULL;
	table->order = NIL;
}

static char **
copy_texts(ReverseTable *table, char **row)
{
	int			n = table->ways[0].src->ncolumns;
	char	  **copy = palloc0(sizeof(char *) * Max(n, 1));

	for (int i = 0; i < n; i++)
		copy[i] = row[i] ? pstrdup(row[i]) : NULL;
	return copy;
}

static bool *
copy_flags(ReverseTable *table, bool *flags)
{
	int			n = table->ways[0].src->ncolumns;

	return flags ? memcpy(palloc(sizeof(bool) * Max(n, 1)), flags, sizeof(bool) * n) : NULL;
}

/* What could not be written yet, out of the memory of this part. */
static void
carry(ReverseTable *table, MemoryContext carry_cxt)
{
	MemoryContext old = MemoryContextSwitchTo(carry_cxt);
	ListCell   *lc;

	foreach(lc, table->order)
	{
		ReverseEntry *entry = lfirst(lc);
		ReverseEntry *copy;

		if (!entry->keep_image && !entry->keep_gone)
			continue;
		copy = palloc0(sizeof(ReverseEntry));
		if (entry->keep_gone)
			copy->gone = copy_texts(table, entry->gone);
		/* a row that is to be deleted first is not there before it is */
		if (entry->keep_image || entry->image)
		{
			copy->image = copy_texts(table, entry->image);
			copy->unknown = copy_flags(table, entry->unknown);
		}
		table->carried = lappend(table->carried, copy);
	}
	MemoryContextSwitchTo(old);
}

/*
 * After a part of a batch that is not the last: its memory may be reset then.
 */
void
migrate_reverse_part_over(ReverseTable *table, MemoryContext carry_cxt)
{
	carry(table, carry_cxt);
	migrate_reverse_clear(table);
}

/* Begin the next part with what is carried along; its memory may be reset then. */
void
migrate_reverse_resume(ReverseTable *table, MemoryContext batch_cxt)
{
	MemoryContext old = MemoryContextSwitchTo(batch_cxt);
	ListCell   *lc;

	foreach(lc, table->carried)
	{
		ReverseEntry *from = lfirst(lc);
		ReverseEntry *entry;

		if (table->entries == NULL)
			table->entries = make_entries(batch_cxt);
		table->dirty = true;
		entry = entry_of(table, from->image ? from->image : from->gone);
		entry->gone = from->gone ? copy_texts(table, from->gone) : NULL;
		entry->image = from->image ? copy_texts(table, from->image) : NULL;
		entry->unknown = copy_flags(table, from->unknown);
	}
	table->carried = NIL;
	MemoryContextSwitchTo(old);
}
