/*-------------------------------------------------------------------------
 *
 * plan.c
 *	  How each source table is read: its leaves, transport, method and format.
 *
 * Runs in the job worker, in one transaction: when the job is prepared, for
 * all its tables; and again for one table that was rewritten under its chunks
 * (P1).  All tables together cost two queries on the source and three
 * statements here, so that thousands of tables are no matter.
 *
 * A leaf is a relation that holds rows itself: a partition, a parent in an
 * inheritance tree without its children, a view.  A tree that has a leaf which
 * we may not read directly is read as one, through its root.  A source that is
 * read without what inherits from it (only_parent) is one leaf, the root.
 *
 *	  block		heap of version 14 or later, where ctid ranges are scans (P8)
 *	  key		no such heap, but a key
 *	  whole		the rest
 *
 * Planning again replaces leaves and, by foreign key, their chunks; plan_no
 * grows, so that a loader still at work on an older plan cannot commit.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/table.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "parser/parse_oper.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* a guess, where nothing tells */
#define GUESSED_ROW_BYTES 100

typedef struct PlanLeaf
{
	char	   *relation;
	Oid			oid;			/* 0: read through the root */
	Oid			filenode;
	char	   *fingerprint;	/* P2; NULL: not on this connection */
	int64		bytes;
	int64		blocks;			/* 0 unless heap */
	bool		heap;
	double		reltuples;
} PlanLeaf;

typedef struct PlanSource
{
	MigrateSource *src;
	bool		remote;			/* its table can be asked for on conn */
	bool		found;
	PlanLeaf	root;
	bool		root_readable;
	bool		root_has_rows;	/* not a partitioned table */
	List	   *relations;		/* of MigrateRelation: the whole tree */
	List	   *leaves;			/* of PlanLeaf */
	bool		all_readable;
	bool		keys_not_null;
	bool		binary;
	int64		rows;
	int64		bytes;
} PlanSource;

/* ----------------------------------------------------------------
 * which sources
 * ----------------------------------------------------------------
 */

static List *
load_plan_sources(MigrateJob *job, MigrateConn *conn, int source_id)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(job->job_id), Int32GetDatum(source_id)};
	MemoryContext mcxt = CurrentMemoryContext;
	MemoryContext oldcxt;
	List	   *ids = NIL;
	List	   *sources = NIL;
	ListCell   *lc;

	SPI_connect();
	migrate_spi_exec("SELECT source_id FROM migrate.source_table WHERE job_id = $1 "
					 "AND CASE WHEN $2 > 0 THEN source_id = $2 "
					 "ELSE state = 'pending' END ORDER BY source_id",
					 2, types, values, NULL, SPI_OK_SELECT);
	oldcxt = MemoryContextSwitchTo(mcxt);
	for (uint64 i = 0; i < SPI_processed; i++)
		ids = lappend_int(ids, (int) migrate_spi_int64(i, 0, 0));
	MemoryContextSwitchTo(oldcxt);
	SPI_finish();

	foreach(lc, ids)
	{
		PlanSource *ps = palloc0(sizeof(PlanSource));

		ps->src = migrate_source_load(lfirst_int(lc));
		ps->remote = conn && conn->server == ps->src->server;
		ps->all_readable = true;
		sources = lappend(sources, ps);
	}
	return sources;
}

/* ----------------------------------------------------------------
 * what the source says
 * ----------------------------------------------------------------
 */

/* One relation of the tree of a source. */
static void
note_relation(PlanSource *ps, MigrateRelation *rel, int64 block_size)
{
	PlanLeaf   *leaf = palloc0(sizeof(PlanLeaf));

	leaf->oid = rel->oid;
	leaf->relation = rel->name;
	leaf->filenode = rel->filenode;
	leaf->fingerprint = rel->fingerprint;
	leaf->bytes = rel->blocks * block_size;
	leaf->reltuples = rel->reltuples;
	leaf->heap = rel->heap;
	leaf->blocks = leaf->heap ? rel->blocks : 0;
	ps->relations = lappend(ps->relations, rel);
	if (rel->is_root)
	{
		ps->found = true;
		ps->root = *leaf;
		ps->root_readable = rel->readable;
		ps->root_has_rows = rel->relkind != RELKIND_PARTITIONED_TABLE;
	}
	if (rel->relkind != RELKIND_PARTITIONED_TABLE)
	{
		ps->all_readable = ps->all_readable && rel->readable;
		ps->leaves = lappend(ps->leaves, leaf);
	}
}

/*
 * The trees of all sources, in one query: partitions and inheritance children
 * at every depth, each once, with their fingerprints (P2).
 */
static void
ask_relations(List *sources, MigrateConn *conn)
{
	StringInfoData values;
	ListCell   *lc;
	int64		block_size;
	PGresult   *res;

	initStringInfo(&values);
	foreach(lc, sources)
	{
		PlanSource *ps = lfirst(lc);

		if (ps->remote)
			migrate_tree_values(&values, foreach_current_index(lc), ps->src);
	}
	if (values.len == 0)
		return;
	block_size = pg_strtoint64(migrate_exec_value(conn, "SELECT current_setting('block_size')"));
	res = migrate_exec(conn, migrate_tree_query(values.data, conn->version, true));
	for (int row = 0; row < PQntuples(res); row++)
	{
		int			id;
		MigrateRelation *rel = migrate_tree_relation(res, row, &id);

		note_relation(list_nth(sources, id), rel, block_size);
	}
	PQclear(res);
}

/* Types whose binary form means something else elsewhere (P7). */
static bool
binary_form_is_portable(Oid type)
{
	HeapTuple	tuple;
	Form_pg_type form;
	bool		portable;
	Oid			element;

	/* only OIDs assigned by hand are the same in every version */
	if (type >= FirstGenbkiObjectId)
		return false;
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
		case XMLOID:			/* names its encoding */
		case MONEYOID:			/* digits by locale */
		case TSQUERYOID:		/* 18 sends an empty one and cannot read it */
		case INT2VECTOROID:		/* an empty one is sent but not received */
		case OIDVECTOROID:
			return false;
	}
	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_type) GETSTRUCT(tuple);
	portable = OidIsValid(form->typreceive) &&
		(form->typtype == TYPTYPE_BASE || form->typtype == TYPTYPE_RANGE ||
		 form->typtype == TYPTYPE_MULTIRANGE);
	element = form->typcategory == TYPCATEGORY_ARRAY ? form->typelem : InvalidOid;
	ReleaseSysCache(tuple);
	if (portable && OidIsValid(element))
		return binary_form_is_portable(element);
	return portable;
}

/*
 * Columns of all sources, in one query: remote types, for the format, and
 * whether key columns can be null.
 */
static void
ask_columns(List *sources, MigrateConn *conn)
{
	StringInfoData sql;
	ListCell   *lc;
	PGresult   *res;

	initStringInfo(&sql);
	foreach(lc, sources)
	{
		PlanSource *ps = lfirst(lc);

		if (ps->remote)
			appendStringInfo(&sql, "%s(%d,%u::oid)", sql.len > 0 ? "," : "",
							 foreach_current_index(lc), ps->root.oid);
	}
	if (sql.len == 0)
		return;
	res = migrate_exec(conn,
					   psprintf("SELECT w.id, a.attname, a.atttypid, a.attnotnull"
								" FROM (VALUES %s) AS w (id, oid)"
								" JOIN pg_attribute a ON a.attrelid = w.oid"
								" WHERE a.attnum > 0 AND NOT a.attisdropped"
								" ORDER BY w.id", sql.data));
	foreach(lc, sources)
	{
		PlanSource *ps = lfirst(lc);

		/* an inheritance child need not be as strict as its parent */
		ps->keys_not_null = ps->src->nkeys > 0 &&
			!(ps->root_has_rows && list_length(ps->leaves) > 1);
	}
	for (int row = 0; row < PQntuples(res); row++)
	{
		PlanSource *ps = list_nth(sources, atoi(PQgetvalue(res, row, 0)));

		for (int i = 0; i < ps->src->ncolumns; i++)
		{
			MigrateColumn *col = &ps->src->columns[i];

			if (strcmp(col->remote_name, PQgetvalue(res, row, 1)) != 0)
				continue;
			col->remote_type = atooid(PQgetvalue(res, row, 2));
			if (col->is_key && PQgetvalue(res, row, 3)[0] != 't')
				ps->keys_not_null = false;
		}
	}
	PQclear(res);
}

/* Errors for what is not there, or may not be read. */
static void
check_remote(PlanSource *ps, MigrateConn *conn)
{
	MigrateSource *src = ps->src;

	if (!ps->found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist on server \"%s\"",
						src->remote_schema, src->remote_table, migrate_conn_name(conn)),
				 errhint("Check the names in the options of foreign table \"%s\".",
						 get_rel_name(src->foreign_table))));
	if (!ps->root_readable)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s on server \"%s\"",
						ps->root.relation, migrate_conn_name(conn)),
				 errhint("Grant SELECT on it, and USAGE on its schema, to the role of the user mapping.")));
	for (int i = 0; i < src->ncolumns; i++)
	{
		if (!OidIsValid(src->columns[i].remote_type))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table %s does not exist on server \"%s\"",
							src->columns[i].remote_name, ps->root.relation,
							migrate_conn_name(conn)),
					 errhint("Drop the column from foreign table \"%s\", or set its option column_name.",
							 get_rel_name(src->foreign_table))));
	}
}

/* ----------------------------------------------------------------
 * decisions
 * ----------------------------------------------------------------
 */

static bool
has_generated_columns(MigrateSource *src)
{
	for (int i = 0; i < src->ncolumns; i++)
	{
		if (get_attgenerated(src->foreign_table, src->columns[i].attnum) != '\0')
			return true;
	}
	return false;
}

static void
decide_transport(PlanSource *ps, MigrateJob *job)
{
	MigrateSource *src = ps->src;
	const char *obstacle = NULL;
	bool		wants_fdw = strcmp(job->transport, "fdw") == 0;

	if (!ps->remote)
		obstacle = "Its server is not the job's, or not behind postgres_fdw.";
	else if (has_generated_columns(src))
		obstacle = "Its foreign table has generated columns.";
	if (strcmp(job->transport, "copy") == 0 && obstacle)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("source \"%s\" cannot be read by COPY", src->label),
				 errdetail("%s", obstacle),
				 errhint("Set the job's option transport to \"auto\".")));
	if (src->only_parent && (obstacle || wants_fdw))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("source \"%s\" cannot be read without the tables that inherit from it",
						src->label),
				 errdetail("%s", obstacle ? obstacle : "A foreign scan always reads them too."),
				 errhint("Set the job's option transport to \"copy\" or \"auto\", or remove the tables that inherit from it from the job.")));
	src->transport = obstacle || wants_fdw ? 'f' : 'c';
}

/* Replace the leaves by one: the root with all that is below it. */
static void
read_through_root(PlanSource *ps)
{
	PlanLeaf   *leaf = palloc(sizeof(PlanLeaf));

	*leaf = ps->root;
	leaf->oid = leaf->filenode = InvalidOid;
	leaf->fingerprint = migrate_tree_fingerprint(ps->relations);
	leaf->heap = false;
	leaf->blocks = 0;
	ps->leaves = list_make1(leaf);
}

static void
sum_estimates(PlanSource *ps)
{
	ListCell   *lc;

	foreach(lc, ps->leaves)
	{
		PlanLeaf   *leaf = lfirst(lc);

		ps->bytes += leaf->bytes;
		if (leaf->reltuples >= 0)
			ps->rows += (int64) leaf->reltuples;
		if (leaf->reltuples <= 0 && leaf->bytes > 0)
			ps->rows += leaf->bytes / GUESSED_ROW_BYTES;
	}
}

/*
 * Does the source know operators for a range of the key?  Types of extensions
 * may have theirs outside pg_catalog.
 */
static bool
remote_key_is_ordered(PlanSource *ps, MigrateConn *conn)
{
	MigrateRange range = {0};
	StringInfoData sql;
	PGresult   *res;
	bool		ok;

	range.relation = ps->root.relation;
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT FROM ");
	migrate_append_from(&sql, ps->src, &range);
	appendStringInfoString(&sql, " ORDER BY ");
	migrate_append_order(&sql, ps->src);
	appendStringInfoString(&sql, " LIMIT 0");
	res = migrate_exec_try(conn, sql.data);
	ok = migrate_result_ok(res);
	if (!ok && PQresultErrorField(res, PG_DIAG_SQLSTATE) == NULL)
		migrate_report_remote_error(res, conn, sql.data);
	PQclear(res);
	return ok;
}

/* Are the declared types of the key columns ordered by pg_catalog's < here? */
static bool
local_key_is_ordered(MigrateSource *src)
{
	for (int k = 0; k < src->nkeys; k++)
	{
		Oid			type = src->columns[src->keys[k]].type;
		List	   *name = list_make2(makeString("pg_catalog"), makeString("<"));

		if (!OidIsValid(compatible_oper_opid(name, type, type, true)))
			return false;
	}
	return true;
}

static bool
can_read_blocks(PlanSource *ps, MigrateConn *conn)
{
	ListCell   *lc;

	if (ps->src->transport != 'c' || conn->version < 140000)
		return false;
	foreach(lc, ps->leaves)
	{
		if (((PlanLeaf *) lfirst(lc))->heap)
			return true;
	}
	return false;
}

static bool
can_read_keys(PlanSource *ps, MigrateConn *conn)
{
	ListCell   *lc;

	if (ps->src->nkeys == 0)
		return false;
	if (ps->src->transport == 'f')
		return local_key_is_ordered(ps->src);

	/* nulls are minded where there is no storage: see range.c */
	foreach(lc, ps->leaves)
	{
		if (OidIsValid(((PlanLeaf *) lfirst(lc))->filenode) && !ps->keys_not_null)
			return false;
	}
	return remote_key_is_ordered(ps, conn);
}

static void
decide_method(PlanSource *ps, MigrateJob *job, MigrateConn *conn)
{
	MigrateSource *src = ps->src;
	char		wish = strcmp(job->chunking, "auto") == 0 ? '\0' : job->chunking[0];

	/* the option is a wish for all tables; one that cannot have it says so */
	if ((wish == 'b' && !can_read_blocks(ps, conn)) ||
		(wish == 'k' && !can_read_keys(ps, conn)))
	{
		migrate_event(src->job_id, "warning", "chunking",
					  wish == 'b' ?
					  "source %s cannot be read by block ranges (that needs a table, read by COPY, on PostgreSQL 14 or later); the method is chosen as by \"auto\"" :
					  "source %s cannot be read by key ranges (that needs a key of columns that are not null and have an order); the method is chosen as by \"auto\"",
					  src->label);
		wish = '\0';
	}

	/* P16: one snapshot decides which changes the copy contains */
	if (job->live && src->nkeys == 0)
		src->method = 'w';
	else if (wish)
		src->method = wish;
	else if (can_read_blocks(ps, conn))
		src->method = 'b';
	else if (can_read_keys(ps, conn) &&
			 (src->transport == 'c' || migrate_range_pushed_down(src)))
		src->method = 'k';
	else
		src->method = 'w';
}

static void
decide_binary(PlanSource *ps)
{
	MigrateSource *src = ps->src;

	src->binary = src->transport == 'c';
	for (int i = 0; src->binary && i < src->ncolumns; i++)
		src->binary = src->columns[i].remote_type == src->columns[i].type &&
			binary_form_is_portable(src->columns[i].type);
}

/* The foreign table stands for the leaf when a wrapper reads it. */
static void
read_by_wrapper(PlanSource *ps)
{
	PlanLeaf   *leaf = palloc0(sizeof(PlanLeaf));
	StringInfoData name;

	initStringInfo(&name);
	migrate_append_from(&name, ps->src, NULL);
	leaf->relation = name.data;
	leaf->bytes = ps->bytes;
	if (ps->remote)
		leaf->fingerprint = migrate_tree_fingerprint(ps->relations);
	ps->leaves = list_make1(leaf);
	if (!ps->remote)
	{
		Relation	rel = table_open(ps->src->foreign_table, NoLock);

		ps->rows = Max((int64) rel->rd_rel->reltuples, 0);
		table_close(rel, NoLock);
	}
}

static void
decide(PlanSource *ps, MigrateJob *job, MigrateConn *conn)
{
	if (ps->remote)
	{
		if (ps->leaves == NIL || !ps->all_readable)
			read_through_root(ps);
		sum_estimates(ps);
	}
	decide_transport(ps, job);
	if (ps->src->transport == 'f')
		read_by_wrapper(ps);
	decide_method(ps, job, conn);
	decide_binary(ps);
}

/* ----------------------------------------------------------------
 * into the catalog
 * ----------------------------------------------------------------
 */

static int64
first_chunk_size(MigrateSource *src, MigrateJob *job)
{
	switch (src->method)
	{
		case 'b':
			return job->chunk_blocks;
		case 'k':
			return job->chunk_rows;
		default:
			return 0;
	}
}

/* The plans as one JSON array a table, for jsonb_to_recordset(). */
static void
plans_as_json(List *sources, MigrateJob *job, StringInfo tables, StringInfo leaves)
{
	ListCell   *lc;

	initStringInfo(tables);
	initStringInfo(leaves);
	appendStringInfoChar(tables, '[');
	appendStringInfoChar(leaves, '[');
	foreach(lc, sources)
	{
		PlanSource *ps = lfirst(lc);
		MigrateSource *src = ps->src;
		ListCell   *lc2;

		appendStringInfo(tables,
						 "%s{\"id\":%d,\"transport\":\"%s\",\"method\":\"%s\","
						 "\"binary\":%s,\"rows\":" INT64_FORMAT ",\"bytes\":" INT64_FORMAT "}",
						 tables->len > 1 ? "," : "", src->source_id,
						 src->transport == 'c' ? "copy" : "fdw",
						 src->method == 'b' ? "block" :
						 src->method == 'k' ? "key" : "whole",
						 src->binary ? "true" : "false", ps->rows, ps->bytes);
		foreach(lc2, ps->leaves)
		{
			PlanLeaf   *leaf = lfirst(lc2);

			appendStringInfo(leaves, "%s{\"id\":%d,\"no\":%d,\"oid\":%u,\"filenode\":%u,"
							 "\"fingerprint\":\"%s\","
							 "\"blocks\":" INT64_FORMAT ",\"weight\":" INT64_FORMAT
							 ",\"size\":" INT64_FORMAT ",\"relation\":",
							 leaves->len > 1 ? "," : "", src->source_id,
							 foreach_current_index(lc2) + 1, leaf->oid, leaf->filenode,
							 leaf->fingerprint ? leaf->fingerprint : "",
							 leaf->blocks, leaf->bytes / BLCKSZ,
							 first_chunk_size(src, job));
			escape_json(leaves, leaf->relation);
			appendStringInfoChar(leaves, '}');
		}
	}
	appendStringInfoChar(tables, ']');
	appendStringInfoChar(leaves, ']');
}

static void
store_plans(List *sources, MigrateJob *job)
{
	StringInfoData tables;
	StringInfoData leaves;
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[2];

	plans_as_json(sources, job, &tables, &leaves);
	SPI_connect();
	values[0] = CStringGetTextDatum(tables.data);
	migrate_spi_exec("DELETE FROM migrate.leaf l USING pg_catalog.jsonb_to_recordset($1::jsonb)"
					 " AS r (id int) WHERE l.source_id = r.id",
					 1, types, values, NULL, SPI_OK_DELETE);
	migrate_spi_exec("UPDATE migrate.source_table s SET transport = r.transport,"
					 " method = r.method, \"binary\" = r.\"binary\","
					 " estimated_rows = r.rows, estimated_bytes = r.bytes,"
					 " state = 'copying', plan_no = s.plan_no + 1"
					 " FROM pg_catalog.jsonb_to_recordset($1::jsonb) AS r"
					 " (id int, transport text, method text, \"binary\" boolean,"
					 "  rows bigint, bytes bigint)"
					 " WHERE s.source_id = r.id",
					 1, types, values, NULL, SPI_OK_UPDATE);
	values[0] = CStringGetTextDatum(leaves.data);
	values[1] = Int32GetDatum(job->job_id);
	migrate_spi_exec("INSERT INTO migrate.leaf (source_id, leaf_no, job_id, relation,"
					 " remote_oid, remote_filenode, fingerprint, blocks, weight, chunk_size)"
					 " SELECT r.id, r.no, $2, r.relation, nullif(r.oid, 0),"
					 " nullif(r.filenode, 0), nullif(r.fingerprint, ''), r.blocks, r.weight, r.size"
					 " FROM pg_catalog.jsonb_to_recordset($1::jsonb) AS r"
					 " (id int, no int, relation text, oid oid, filenode oid,"
					 "  fingerprint text, blocks bigint, weight bigint, size bigint)",
					 2, types, values, NULL, SPI_OK_INSERT);
	SPI_finish();
}

/*
 * Plan all pending sources of a job, or one again.  conn may be NULL for a job
 * whose server is not behind postgres_fdw.
 */
void
migrate_plan_sources(MigrateJob *job, MigrateConn *conn, int source_id)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate plan",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);
	List	   *sources = load_plan_sources(job, conn, source_id);
	ListCell   *lc;

	if (sources != NIL)
	{
		ask_relations(sources, conn);
		ask_columns(sources, conn);
		foreach(lc, sources)
		{
			PlanSource *ps = lfirst(lc);

			if (ps->remote)
				check_remote(ps, conn);
			decide(ps, job, conn);
			if (ps->remote && ps->src->transport == 'f')
				migrate_set_fetch_size(job, conn, ps->src, ps->relations);
		}
		store_plans(sources, job);
	}
	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(mcxt);
}
