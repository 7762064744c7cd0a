/*-------------------------------------------------------------------------
 *
 * reverse_table.c
 *	  A target table on its way back: the net effect of its changes per key,
 *	  and that effect through the inverse mapping into the source.
 *
 * A change is kept as the texts of the message.  Per key only the newest image
 * counts; it is read into a batch, run through the inverse as any mapping is
 * run, and what comes out is sent as literals.  A value that the message does
 * not hold (unchanged TOAST) is read from the target as it is now: later
 * changes follow in the stream, and everything is idempotent.
 *
 * A row that fails by its own fault (an int8 that no longer fits an int4) is
 * found by halving and becomes a dead letter of stage 'back'; the source keeps
 * what it had.  It is superseded when another change of the same key comes.
 *
 * Statements write row by row, and the source looks at what must be unique
 * after each: rows that exchange such values stand in each other's way.  Where
 * a statement fails for that, its rows are written last, all at once, after the
 * old ones of all of them have been taken away.
 *
 * Runs in the reverse worker, in one transaction here and one on the source.  A
 * crash undoes both or repeats the changes.
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
#include "cutover/reverse.h"
#include "extract/extract.h"

/* rows of one statement: at most so many, and so many bytes */
#define STATEMENT_ROWS 500
#define STATEMENT_BYTES (1024 * 1024)

#define SAVEPOINT "migrate_back"
#define SAVEPOINT_TRIAL "migrate_back_trial"

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
 * IDENTITY; and whether a row may be deleted there for a moment: nothing
 * cascades from it, and no trigger sees it.
 */
static PGresult *
remote_columns(MigrateSource *forward, MigrateConn *conn)
{
	return migrate_exec(conn,
						psprintf("SELECT a.attname, pg_catalog.format_type(a.atttypid, -1), a.attidentity = 'a',"
								 " pg_catalog.current_setting('session_replication_role') = 'replica'"
								 " OR NOT EXISTS (SELECT FROM pg_catalog.pg_constraint f WHERE f.contype = 'f'"
								 "  AND f.confrelid = c.oid AND f.confdeltype <> 'a')"
								 " AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid"
								 "  AND NOT t.tgisinternal AND t.tgtype & 8 <> 0 AND t.tgname !~ '^migrate_fence_')"
								 " FROM pg_catalog.pg_attribute a"
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
			}
		}
	remote->kept = palloc(Max(n, 1) * sizeof(char *));
	for (int row = 0; row < n; row++)
	{
		remote->anew = PQgetvalue(res, row, 3)[0] == 't';
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

/* ----------------------------------------------------------------
 * through the inverse
 * ----------------------------------------------------------------
 */

/* The row of the target as it is now, for values that are not in the message. */
static bool
fetch_current(ReverseWay *way, char **row)
{
	MigrateSource *src = way->src;
	StringInfoData sql;
	bool		found;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int i = 0; i < src->ncolumns; i++)
		appendStringInfo(&sql, "%st.%s", i > 0 ? ", " : "", quote_identifier(src->columns[i].name));
	appendStringInfo(&sql, " FROM %s t WHERE ",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(src->foreign_table)),
												get_rel_name(src->foreign_table)));
	for (int k = 0; k < src->nkeys; k++)
	{
		MigrateColumn *col = &src->columns[src->keys[k]];

		appendStringInfo(&sql, "%st.%s = %s::%s", k > 0 ? " AND " : "", quote_identifier(col->name),
						 quote_literal_cstr(row[src->keys[k]] ? row[src->keys[k]] : ""),
						 format_type_extended(col->type, col->typmod,
											  FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY));
	}
	{
		MemoryContext mcxt = CurrentMemoryContext;

		SPI_connect();
		migrate_spi_exec(sql.data, 0, NULL, NULL, NULL, SPI_OK_SELECT);
		found = SPI_processed > 0;
		MemoryContextSwitchTo(mcxt);
		for (int i = 0; found && i < src->ncolumns; i++)
			row[i] = migrate_spi_text(0, i);
		SPI_finish();
		MemoryContextSwitchTo(mcxt);
	}
	return found;
}

/* Texts into a batch of the target's rows. */
static void
add_row(ReverseWay *way, MigrateBatch *batch, char **row)
{
	MigrateSource *src = way->src;
	Datum	   *values = palloc(sizeof(Datum) * Max(src->ncolumns, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(src->ncolumns, 1));

	for (int i = 0; i < src->ncolumns; i++)
	{
		MigrateColumn *col = &src->columns[i];
		Oid			function,
					ioparam;

		nulls[i] = row[i] == NULL;
		values[i] = (Datum) 0;
		if (nulls[i])
			continue;
		getTypeInputInfo(col->type, &function, &ioparam);
		values[i] = OidInputFunctionCall(function, row[i], ioparam, col->typmod);
	}
	migrate_batch_add(batch, values, nulls, 0);
}

/* mapped rows as texts; they are made under the settings of the worker */
typedef struct Texts
{
	MigrateMapping *map;
	MemoryContext mcxt;
	Tuplestorestate *store;
	int			n;
} Texts;

static void
take_mapped(TupleTableSlot *slot, void *arg)
{
	Texts	   *texts = arg;

	tuplestore_puttupleslot(texts->store, slot);
	texts->n++;
}

static MigrateRemoteRow *
texts_of(MigrateMapping *map, MigrateBatch *batch, int *n)
{
	Texts		texts = {.map = map,.mcxt = CurrentMemoryContext};
	MigrateRemoteRow *rows;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(map->outdesc, &TTSOpsMinimalTuple);
	int			r = 0;

	texts.store = tuplestore_begin_heap(false, false, work_mem);
	migrate_mapping_run(map, batch, take_mapped, &texts);
	rows = palloc(sizeof(MigrateRemoteRow) * Max(texts.n, 1));
	while (tuplestore_gettupleslot(texts.store, true, false, slot))
	{
		rows[r] = palloc0(sizeof(char *) * Max(map->ncolumns, 1));
		for (int i = 0; i < map->ncolumns; i++)
		{
			bool		isnull;
			Datum		value = slot_getattr(slot, i + 1, &isnull);
			Oid			output;
			bool		varlena;

			if (isnull)
				continue;
			getTypeOutputInfo(TupleDescAttr(map->outdesc, i)->atttypid, &output, &varlena);
			rows[r][i] = OidOutputFunctionCall(output, value);
		}
		r++;
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(texts.store);
	*n = r;
	return rows;
}

/* ----------------------------------------------------------------
 * to the source, bad rows set aside
 * ----------------------------------------------------------------
 */
typedef enum WriteHow
{
	WRITE_GONE,					/* rows that are no more: delete */
	WRITE_IMAGES,				/* upsert */
	WRITE_ANEW,					/* delete all, then insert */
	WRITE_AWAY					/* delete the rows with the images' keys */
} WriteHow;

typedef struct Portion
{
	MigrateJob *job;
	MigrateConn *conn;
	ReverseWay *way;
	WriteHow	how;
	ReverseEntry **entries;
	ReverseCounts *counts;

	/*
	 * Entries that are to be written anew, since what must be unique is still
	 * at another row; filled while images are written.
	 */
	ReverseEntry **conflicts;
	int			nconflicts;

	/* while it is found out which of those cannot be written */
	ErrorData **errors;			/* by entry; NULL: bad rows are buried */
} Portion;

static char *
statement_for(Portion *p, MigrateRemoteRow *rows, int n)
{
	switch (p->how)
	{
		case WRITE_GONE:
			return migrate_remote_delete(&p->way->remote_keys, rows, 0, n);
		case WRITE_ANEW:
			return migrate_remote_anew(&p->way->remote, rows, 0, n);
		case WRITE_AWAY:
			return migrate_remote_delete(&p->way->remote, rows, 0, n);
		default:
			return migrate_remote_upsert(&p->way->remote, rows, 0, n);
	}
}

/* Everything for entries [from, to) but the halving; throws. */
static int64
write_rows(Portion *p, int from, int to)
{
	bool		gone = p->how == WRITE_GONE;
	MigrateBatch *batch = migrate_batch_create(p->way->src);
	MigrateMapping *map = gone ? p->way->keys : p->way->inverse;
	MigrateRemoteRow *rows;
	int			n;

	PushActiveSnapshot(GetTransactionSnapshot());
	for (int i = from; i < to; i++)
	{
		ReverseEntry *entry = p->entries[i];
		char	  **row = gone ? entry->gone : entry->image;

		/* not there any more: its delete follows */
		if (!gone && entry->unknown && !fetch_current(p->way, row))
			continue;
		add_row(p->way, batch, row);
	}
	rows = texts_of(map, batch, &n);
	PopActiveSnapshot();
	migrate_batch_free(batch);
	if (n > 0)
		PQclear(migrate_exec(p->conn, statement_for(p, rows, n)));
	return n;
}

/* {"column": "text", ...} */
static char *
row_json(MigrateSource *src, char **row, bool keys_only)
{
	StringInfoData buf;
	int			n = 0;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < src->ncolumns; i++)
	{
		if (keys_only && !src->columns[i].is_key)
			continue;
		appendStringInfoString(&buf, n++ > 0 ? ", " : "");
		escape_json(&buf, src->columns[i].name);
		appendStringInfoString(&buf, ": ");
		if (row[i])
			escape_json(&buf, row[i]);
		else
			appendStringInfoString(&buf, "null");
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

static void
bury(Portion *p, ReverseEntry *entry, ErrorData *edata)
{
	MigrateLoadContext ctx = {.job = p->job};
	char	  **row = p->how == WRITE_GONE ? entry->gone : entry->image;

	if (p->counts->postpone)
	{
		migrate_queue_again(p->job->job_id, p->way->src->foreign_table,
							row_json(p->way->src, row, false));
		p->counts->postponed++;
		return;
	}
	migrate_dead_letter_insert(&ctx, p->way->mapping_id, "back",
							   row_json(p->way->src, row, true),
							   row_json(p->way->src, row, false), NULL, edata, NULL);
	p->counts->dead++;
}

/*
 * Open letters of the keys that have changed again are superseded: the source
 * gets the row as it is now, or there is a new letter.  After a TRUNCATE, all.
 */
static void
supersede(ReverseTable *table, ReverseWay *way)
{
	Oid			types[] = {INT4OID, TEXTARRAYOID};
	Datum		values[] = {Int32GetDatum(way->mapping_id), (Datum) 0};
	ArrayBuildState *keys = initArrayResult(TEXTOID, CurrentMemoryContext, true);
	ListCell   *lc;

	foreach(lc, table->order)
	{
		ReverseEntry *entry = lfirst(lc);

		keys = accumArrayResult(keys, CStringGetTextDatum(row_json(way->src, entry->image ? entry->image : entry->gone, true)),
								false, TEXTOID, CurrentMemoryContext);
	}
	values[1] = makeArrayResult(keys, CurrentMemoryContext);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.dead_letter d SET state = 'superseded', updated_at = now()"
					 " WHERE d.mapping_id = $1 AND d.state = 'open' AND d.stage = 'back' AND ($2 IS NULL"
					 "  OR d.key IN (SELECT k::pg_catalog.jsonb FROM pg_catalog.unnest($2) k))",
					 2, types, values, table->truncated ? " n" : NULL, SPI_OK_UPDATE);
	migrate_spi_end();
}

void
migrate_reverse_supersede(ReverseTable *table, Bitmapset *lettered)
{
	for (int w = 0; w < table->nways; w++)
		if (bms_is_member(table->ways[w].mapping_id, lettered))
			supersede(table, &table->ways[w]);
}

/* One try, under a savepoint on both sides; the error when it failed. */
static ErrorData *
try_rows(Portion *p, int from, int to)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;
	volatile int64 n = 0;
	MemoryContext tmp = AllocSetContextCreate(mcxt, "migrate reverse rows", ALLOCSET_DEFAULT_SIZES);

	PQclear(migrate_exec(p->conn, "SAVEPOINT " SAVEPOINT));
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(tmp);
	PG_TRY();
	{
		n = write_rows(p, from, to);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	MemoryContextDelete(tmp);
	if (edata && !migrate_error_is_of_row(edata->sqlerrcode))
		ReThrowError(edata);
	PQclear(migrate_exec(p->conn, edata ? "ROLLBACK TO SAVEPOINT " SAVEPOINT "; RELEASE SAVEPOINT " SAVEPOINT :
						 "RELEASE SAVEPOINT " SAVEPOINT));
	if (edata == NULL && p->errors == NULL)
	{
		if (p->how == WRITE_GONE)
			p->counts->deletes += n;
		else
			p->counts->upserts += n;
	}
	return edata;
}

static bool
is_conflict(ErrorData *edata)
{
	return edata->sqlerrcode == ERRCODE_UNIQUE_VIOLATION ||
		edata->sqlerrcode == ERRCODE_EXCLUSION_VIOLATION;
}

/* A row that cannot be written; takes the error. */
static void
set_aside(Portion *p, int i, ErrorData *edata)
{
	if (p->errors)
		p->errors[i] = edata;
	else
	{
		bury(p, p->entries[i], edata);
		FreeErrorData(edata);
	}
}

static void
write_portion(Portion *p, int from, int to)
{
	ErrorData  *edata;

	CHECK_FOR_INTERRUPTS();
	edata = try_rows(p, from, to);
	if (edata == NULL)
		return;
	if (p->conflicts && is_conflict(edata))
	{
		memcpy(p->conflicts + p->nconflicts, p->entries + from, sizeof(ReverseEntry *) * (to - from));
		p->nconflicts += to - from;
	}
	else if (to - from == 1)
	{
		set_aside(p, from, edata);
		return;
	}
	else
	{
		int			middle = from + (to - from) / 2;

		write_portion(p, from, middle);
		write_portion(p, middle, to);
	}
	FreeErrorData(edata);
}

/*
 * Which of the rows cannot be written although the old ones of all of them are
 * out of the way?  It is tried, and taken back.
 */
static void
find_unwritable(Portion *p, int n, ErrorData *edata)
{
	ErrorData  *away;

	PQclear(migrate_exec(p->conn, "SAVEPOINT " SAVEPOINT_TRIAL));
	p->how = WRITE_AWAY;
	away = try_rows(p, 0, n);
	p->how = WRITE_IMAGES;
	if (away == NULL)
		write_portion(p, 0, n);
	else
		FreeErrorData(away);
	PQclear(migrate_exec(p->conn, "ROLLBACK TO SAVEPOINT " SAVEPOINT_TRIAL
						 "; RELEASE SAVEPOINT " SAVEPOINT_TRIAL));
	for (int i = 0; i < n; i++)
		if (p->errors[i])
			return;
	/* it cannot be told: all of them */
	for (int i = 0; i < n; i++)
		p->errors[i] = edata;
}

/*
 * Rows whose unique values have changed places.  What cannot be written is set
 * aside, and the source keeps what it had there; that may stand in the way of
 * others, so it is tried again with the rest until all of that can be written.
 */
static void
write_anew(Portion *from, ReverseEntry **entries, int n)
{
	Portion		p = *from;

	p.entries = entries;
	p.conflicts = NULL;
	while (n > 0)
	{
		ErrorData  *edata;
		int			left = 0;

		p.how = WRITE_ANEW;
		p.errors = NULL;
		edata = try_rows(&p, 0, n);
		if (edata == NULL)
			return;
		p.errors = palloc0(sizeof(ErrorData *) * n);
		find_unwritable(&p, n, edata);
		for (int i = 0; i < n; i++)
		{
			if (p.errors[i])
				bury(&p, entries[i], p.errors[i]);
			else
				entries[left++] = entries[i];
		}
		n = left;
	}
}

static Size
row_size(ReverseWay *way, char **row)
{
	Size		size = 0;

	for (int i = 0; i < way->src->ncolumns; i++)
		size += row[i] ? strlen(row[i]) : 4;
	return size;
}

static ReverseEntry **
entry_array(int n)
{
	return MemoryContextAllocHuge(CurrentMemoryContext, sizeof(ReverseEntry *) * Max(n, 1));
}

/* All entries that have what is asked for, in statements of bounded size. */
static void
write_all(MigrateJob *job, MigrateConn *conn, ReverseTable *table, WriteHow how,
		  ReverseCounts *counts)
{
	bool		deletes = how == WRITE_GONE;
	ReverseEntry **entries = entry_array(list_length(table->order));
	ReverseEntry **conflicts = entry_array(list_length(table->order));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, table->order)
	{
		ReverseEntry *entry = lfirst(lc);

		if (deletes ? entry->gone != NULL : entry->image != NULL)
			entries[n++] = entry;
	}
	for (int w = 0; w < table->nways; w++)
	{
		Portion		p = {.job = job,.conn = conn,.way = &table->ways[w],.how = how,
		.entries = entries,.counts = counts};
		int			from = 0;

		if (!deletes && p.way->remote.anew)
			p.conflicts = conflicts;
		while (from < n)
		{
			Size		size = 0;
			int			to = from;

			while (to < n && to - from < STATEMENT_ROWS && (to == from || size < STATEMENT_BYTES))
			{
				size += row_size(p.way, deletes ? entries[to]->gone : entries[to]->image);
				to++;
			}
			write_portion(&p, from, to);
			from = to;
		}
		write_anew(&p, conflicts, p.nconflicts);
	}
	pfree(entries);
	pfree(conflicts);
}

/*
 * A TRUNCATE of the target empties the source tables, but for rows that were
 * never taken over.
 */
static void
truncate_source(MigrateConn *conn, ReverseTable *table)
{
	for (int w = 0; w < table->nways; w++)
	{
		ReverseWay *way = &table->ways[w];

		PQclear(migrate_exec(conn, psprintf("DELETE FROM %s AS source%s%s%s", way->remote.name,
											way->filter ? " WHERE (" : "",
											way->filter ? way->filter : "",
											way->filter ? "\n)" : "")));
	}
}

void
migrate_reverse_write_gone(MigrateJob *job, MigrateConn *conn, ReverseTable *table,
						   ReverseCounts *counts)
{
	if (table->truncated)
		truncate_source(conn, table);
	write_all(job, conn, table, WRITE_GONE, counts);
}

void
migrate_reverse_write_images(MigrateJob *job, MigrateConn *conn, ReverseTable *table,
							 ReverseCounts *counts)
{
	write_all(job, conn, table, WRITE_IMAGES, counts);
}
