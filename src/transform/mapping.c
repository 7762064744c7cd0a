/*-------------------------------------------------------------------------
 *
 * mapping.c
 *	  A mapping from source rows to target rows: loaded from the catalog,
 *	  compiled once a chunk, run over batches.
 *
 * Runs in loaders, in the sessions that replay and that define mappings.  The
 * stored query reads a relation "source"; compiling puts the ephemeral
 * relation migrate_batch in its place and appends the key map's values and
 * the row's ordinal:
 *
 *	  SELECT e1 AS c1, ..., migrate_keys.migrate_key_1, migrate_batch.migrate_ord
 *	  FROM migrate_batch (migrate_1, ..., migrate_ord)
 *	  CROSS JOIN LATERAL (SELECT migrate_batch.migrate_1 AS "id", ...) AS source
 *	  CROSS JOIN LATERAL (SELECT k1 AS migrate_key_1, ...) AS migrate_keys
 *	  , LATERAL f(source) AS m ...
 *
 * The batch's columns are renamed so that names in the DBA's expressions find
 * those of "source" only; the key map comes before what the query joins, where
 * those are the only names.  Where a function takes the whole row, "source" is an
 * anonymous record, which the parser turns into the foreign table's row type.
 *
 * Takes the locks of the mapping's own reading, until the transaction ends.
 * Writes nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/execdesc.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_node.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/queryenvironment.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(migrate_mapping_check);
extern PGDLLEXPORT Datum migrate_mapping_check(PG_FUNCTION_ARGS);

/* Put by the definition of a mapping into its query, once each. */
#define SELECT_MARK "SELECT /*migrate*/"
#define FROM_MARK "FROM /*migrate*/ source"

/* the sub-select that has the key map's values */
#define KEYS_ALIAS "migrate_keys"

/*
 * P17: one plan a size class, or a hash join that was made for thousands of
 * rows scans a lookup table for each row of a batch that is halved.  A batch
 * takes the first class that it fits.
 */
static const int64 class_planned[MIGRATE_PLAN_CLASSES] = {1, 300, 5000};
static const int64 class_most[MIGRATE_PLAN_CLASSES] = {10, 1000, PG_INT64_MAX};

/*
 * All of a mapping.  What the DBA can change without redefining it, the
 * function's code, is part of the version.
 */
#define MAPPING_QUERY \
	"SELECT m.mapping_id, m.job_id, m.source_id, m.target_oid, m.target, " \
	" left(m.kind, 1), m.many, m.filter IS NOT NULL OR m.kind = 'function', " \
	" m.search_path, m.query, m.owns, " \
	" left(md5(concat_ws(' ', m.query, m.search_path, m.key, p.prosrc, p.xmin)), 16), " \
	" m.target_columns, " \
	" ARRAY(SELECT k.key FROM jsonb_each_text(m.key) k ORDER BY k.key), " \
	" ARRAY(SELECT k.value FROM jsonb_each_text(m.key) k ORDER BY k.key), " \
	" m.timezone, m.datestyle " \
	"FROM migrate.mapping m LEFT JOIN pg_catalog.pg_proc p ON p.oid = m.mapping "

/* A text[] of the last SPI result as C strings. */
static int
spi_strings(int row, int col, char ***strings)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, col + 1, &isnull);
	Datum	   *elems;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, NULL, &n);
	*strings = palloc0(Max(n, 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
		(*strings)[i] = TextDatumGetCString(elems[i]);
	return n;
}

/* Attribute numbers of the target columns, which must all be there. */
static void
resolve_columns(MigrateMapping *map)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(map->target)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("target table %s does not exist any more",
						map->target_name)));
	map->attnums = palloc0(Max(map->ncolumns, 1) * sizeof(AttrNumber));
	for (int i = 0; i < map->ncolumns; i++)
	{
		map->attnums[i] = get_attnum(map->target, map->columns[i]);
		if (map->attnums[i] == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of target table %s does not exist any more",
							map->columns[i], map->target_name),
					 errhint("Remove the table from the job and add it again.")));
	}
}

/* One row of MAPPING_QUERY. */
static MigrateMapping *
mapping_from_spi(int row)
{
	MigrateMapping *map = palloc0(sizeof(MigrateMapping));
	int			nvalues PG_USED_FOR_ASSERTS_ONLY;

	map->mapping_id = migrate_spi_int64(row, 0, 0);
	map->job_id = migrate_spi_int64(row, 1, 0);
	map->source_id = migrate_spi_int64(row, 2, 0);
	map->target = migrate_spi_int64(row, 3, 0);
	map->target_name = migrate_spi_text(row, 4);
	map->kind = migrate_spi_text(row, 5)[0];
	map->many = migrate_spi_text(row, 6)[0] == 't';
	map->filtered = migrate_spi_text(row, 7)[0] == 't';
	map->search_path = migrate_spi_text(row, 8);
	map->timezone = migrate_spi_text(row, 15);
	map->datestyle = migrate_spi_text(row, 16);
	map->query = migrate_spi_text(row, 9);
	map->owns = migrate_spi_text(row, 10);
	map->version = migrate_spi_text(row, 11);
	map->ncolumns = spi_strings(row, 12, &map->columns);
	map->nkeys = spi_strings(row, 13, &map->key_columns);
	nvalues = spi_strings(row, 14, &map->key_exprs);
	Assert(map->nkeys == nvalues);
	return map;
}

/* Mappings that a condition on $1 selects, in the current memory context. */
static List *
load_mappings(const char *condition, int id)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(id)};
	char	   *sql = psprintf(MAPPING_QUERY "WHERE %s = $1 ORDER BY m.mapping_id",
							   condition);
	List	   *mappings = NIL;

	SPI_connect();
	migrate_spi_exec_kept(sql, 1, types, values, NULL, SPI_OK_SELECT);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);

		mappings = lappend(mappings, mapping_from_spi(row));
		MemoryContextSwitchTo(oldcxt);
	}
	SPI_finish();
	for (int i = 0; i < list_length(mappings); i++)
		resolve_columns(list_nth(mappings, i));
	return mappings;
}

MigrateMapping *
migrate_mapping_load(int mapping_id)
{
	List	   *mappings = load_mappings("m.mapping_id", mapping_id);

	if (mappings == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("mapping %d does not exist", mapping_id)));
	return linitial(mappings);
}

List *
migrate_mappings_of_source(int source_id)
{
	return load_mappings("m.source_id", source_id);
}

/* What the compiled query reads in the place of "source". */
static char *
batch_from_clause(MigrateMapping *map, MigrateSource *src)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "FROM " MIGRATE_BATCH_NAME " AS "
						   MIGRATE_BATCH_NAME " (");
	for (int i = 1; i <= src->ncolumns; i++)
		appendStringInfo(&buf, "migrate_%d, ", i);
	appendStringInfoString(&buf, MIGRATE_ORDINAL
						   ") CROSS JOIN LATERAL (SELECT ");
	for (int i = 1; i <= src->ncolumns; i++)
		appendStringInfo(&buf, "%s" MIGRATE_BATCH_NAME ".migrate_%d AS %s",
						 i > 1 ? ", " : "", i,
						 quote_identifier(src->columns[i - 1].name));
	appendStringInfoString(&buf, ") AS source");
	if (map->nkeys == 0)
		return buf.data;
	appendStringInfoString(&buf, " CROSS JOIN LATERAL (SELECT ");
	for (int k = 0; k < map->nkeys; k++)
		appendStringInfo(&buf, "%s(%s) AS migrate_key_%d", k > 0 ? ", " : "",
						 map->key_exprs[k], k + 1);
	appendStringInfoString(&buf, ") AS " KEYS_ALIAS);
	return buf.data;
}

/* The query that is run, made from the stored one. */
static char *
executed_text(MigrateMapping *map, MigrateSource *src)
{
	char	   *from = strstr(map->query, FROM_MARK);
	char	   *start = strstr(map->query, SELECT_MARK);
	StringInfoData buf;
	char	   *sep = map->ncolumns > 0 ? ", " : " ";

	if (from == NULL || start != map->query)
		elog(ERROR, "query of mapping %d has no marks", map->mapping_id);

	initStringInfo(&buf);
	appendBinaryStringInfo(&buf, map->query, from - map->query);
	for (int k = 0; k < map->nkeys; k++)
	{
		appendStringInfo(&buf, "%s" KEYS_ALIAS ".migrate_key_%d", sep, k + 1);
		sep = ", ";
	}
	appendStringInfo(&buf, "%s" MIGRATE_BATCH_NAME "." MIGRATE_ORDINAL " AS "
					 MIGRATE_ORDINAL " ", sep);
	appendStringInfoString(&buf, batch_from_clause(map, src));
	appendStringInfoString(&buf, from + strlen(FROM_MARK));
	return buf.data;
}

/* An environment in which migrate_batch is known; reldata NULL for planning. */
static QueryEnvironment *
batch_environment(TupleDesc desc, Tuplestorestate *store, double nrows)
{
	QueryEnvironment *env = create_queryEnv();
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));

	enr->md.name = MIGRATE_BATCH_NAME;
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = desc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = nrows;
	enr->reldata = store;
	register_ENR(env, enr);
	return env;
}

/* Coerce one output column to a target column, as INSERT would. */
static void
coerce_column(ParseState *pstate, TargetEntry *tle, MigrateMapping *map,
			  const char *column, AttrNumber attnum)
{
	Oid			type = exprType((Node *) tle->expr);
	Oid			target_type;
	int32		target_typmod;
	Oid			target_collation;
	Node	   *expr;

	get_atttypetypmodcoll(map->target, attnum, &target_type, &target_typmod,
						  &target_collation);
	expr = coerce_to_target_type(pstate, (Node *) tle->expr, type,
								 target_type, target_typmod,
								 COERCION_ASSIGNMENT, COERCE_IMPLICIT_CAST, -1);
	if (expr == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of target table %s is of type %s but expression is of type %s",
						column, map->target_name,
						format_type_be(target_type), format_type_be(type)),
				 errhint("You will need to rewrite or cast the expression.")));
	assign_expr_collations(pstate, expr);
	tle->expr = (Expr *) expr;
}

/* The sub-select of the key map's values; NULL without a key map. */
static Query *
keys_of(Query *query)
{
	ListCell   *lc;

	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind == RTE_SUBQUERY &&
			strcmp(rte->eref->aliasname, KEYS_ALIAS) == 0)
			return rte->subquery;
	}
	return NULL;
}

/* The source column that an expression in migrate_keys is, from 0; or -1. */
static int
key_source_column(Query *query, Query *keys, int k)
{
	Expr	   *expr = list_nth_node(TargetEntry, keys->targetList, k)->expr;
	Var		   *var = (Var *) expr;
	RangeTblEntry *rte;

	if (!IsA(expr, Var) || var->varlevelsup != 1 || var->varattno <= 0)
		return -1;
	rte = rt_fetch(var->varno, query->rtable);
	return strcmp(rte->eref->aliasname, "source") == 0 ? var->varattno - 1 : -1;
}

/* A cast to the target's type that keeps different values different. */
static bool
is_lossless(Oid from, Oid to)
{
	to = getBaseType(to);
	return from == to || IsBinaryCoercible(from, to) ||
		from == INT2OID || from == INT4OID || from == INT8OID;
}

/*
 * Whether the key map holds the whole key of the source as it is: then no two
 * source rows can mean the same target row (P10).
 */
static bool
key_is_source_key(MigrateMapping *map, MigrateSource *src, Query *query)
{
	Query	   *keys = keys_of(query);

	for (int s = 0; s < src->nkeys; s++)
	{
		bool		found = false;

		for (int k = 0; keys && k < map->nkeys && !found; k++)
			found = key_source_column(query, keys, k) == src->keys[s] &&
				is_lossless(src->columns[src->keys[s]].type,
							get_atttype(map->target,
										get_attnum(map->target, map->key_columns[k])));
		if (!found)
			return false;
	}
	return src->nkeys > 0;
}

/* The column of "source" that an output column is as it is, from 0; or -1. */
static int
straight_column(Query *query, TargetEntry *tle)
{
	Var		   *var = (Var *) tle->expr;
	RangeTblEntry *rte;

	if (!IsA(var, Var) || var->varlevelsup != 0 || var->varattno <= 0)
		return -1;
	rte = rt_fetch(var->varno, query->rtable);
	return rte->rtekind == RTE_SUBQUERY &&
		strcmp(rte->eref->aliasname, "source") == 0 ? var->varattno - 1 : -1;
}

/* The sub-select "source" in the range table, from 1. */
static int
source_varno(Query *query)
{
	int			varno = 0;
	ListCell   *lc;

	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		varno++;
		if (rte->rtekind == RTE_SUBQUERY && strcmp(rte->eref->aliasname, "source") == 0)
			return varno;
	}
	elog(ERROR, "query of a mapping has no source");
	return 0;
}

typedef struct ReadsContext
{
	int			varno;
	int			depth;
	int			ncolumns;
	Bitmapset  *columns;
} ReadsContext;

static bool
reads_walker(Node *node, ReadsContext *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;

		if (var->varno == context->varno && var->varlevelsup == context->depth)
		{
			if (var->varattno > 0)
				context->columns = bms_add_member(context->columns, var->varattno - 1);
			else if (context->ncolumns > 0)
				context->columns = bms_add_range(context->columns, 0, context->ncolumns - 1);
		}
		return false;
	}
	if (IsA(node, Query))
	{
		bool		result;

		context->depth++;
		result = query_tree_walker((Query *) node, reads_walker, (void *) context,
								   QTW_IGNORE_JOINALIASES);
		context->depth--;
		return result;
	}
	return expression_tree_walker(node, reads_walker, (void *) context);
}

/* The columns of "source" that a mapping looks at, the key map included. */
static Bitmapset *
columns_read(MigrateSource *src, Query *query)
{
	ReadsContext context = {source_varno(query), 0, src->ncolumns, NULL};

	(void) query_tree_walker(query, reads_walker, (void *) &context,
							 QTW_IGNORE_JOINALIASES);
	return context.columns;
}

/* The same of the key map alone. */
static Bitmapset *
columns_read_by_keys(MigrateSource *src, Query *query)
{
	ReadsContext context = {source_varno(query), 0, src->ncolumns, NULL};

	(void) reads_walker((Node *) keys_of(query), &context);
	return context.columns;
}

/* Does the query give one row for each row of "source", whatever is in it? */
static bool
is_row_for_row(MigrateMapping *map, Query *query)
{
	int			relations = 0;
	ListCell   *lc;

	/* the batch, "source", and the keys; no tables, functions or joins more */
	foreach(lc, query->rtable)
		if (lfirst_node(RangeTblEntry, lc)->rtekind != RTE_JOIN)
		relations++;
	return !(query->jointree->quals || relations > 2 + (map->nkeys > 0 ? 1 : 0) ||
			 map->many || query->hasSubLinks || query->hasAggs || query->hasWindowFuncs ||
			 query->hasTargetSRFs || query->setOperations || query->groupClause ||
			 query->groupingSets || query->havingQual || query->distinctClause ||
			 query->limitCount || query->limitOffset || query->cteList);
}

/*
 * See MigrateMapping.plain and key_source.
 */
static void
find_plain(MigrateMapping *map, Query *query)
{
	Query	   *keys = keys_of(query);

	map->key_source = palloc(Max(map->nkeys, 1) * sizeof(int));
	for (int k = 0; k < map->nkeys; k++)
		map->key_source[k] = keys ? key_source_column(query, keys, k) : -1;
	map->plain = NULL;
	if (!is_row_for_row(map, query))
		return;
	map->plain = palloc(Max(map->ncolumns, 1) * sizeof(int));
	for (int i = 0; i < map->ncolumns; i++)
		map->plain[i] = straight_column(query, list_nth_node(TargetEntry,
															 query->targetList, i));
}

/* See MigrateMapping.projection. */
static int *
find_projection(MigrateMapping *map, Query *query)
{
	int		   *projection = palloc(Max(map->ncolumns + map->nkeys, 1) * sizeof(int));

	if (map->plain == NULL)
		return NULL;
	for (int i = 0; i < map->ncolumns; i++)
		projection[i] = map->plain[i];
	for (int k = 0; k < map->nkeys; k++)
	{
		TargetEntry *tle = list_nth_node(TargetEntry, query->targetList, map->ncolumns + k);

		/* one that is cast to its column's type is no plain column here */
		projection[map->ncolumns + k] = IsA(tle->expr, Var) ? map->key_source[k] : -1;
	}
	for (int i = 0; i < map->ncolumns + map->nkeys; i++)
		if (projection[i] < 0)
			return NULL;
	return projection;
}

/* A relation's row, as a copy. */
static TupleDesc
relation_desc(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	TupleDesc	desc = CreateTupleDescCopy(RelationGetDescr(rel));

	table_close(rel, NoLock);
	return desc;
}

/*
 * See MigrateStraight; NULL when the mapping is not so.  A condition, a join,
 * a cast, a default or a key that is computed all need the executor.
 */
static MigrateStraight *
find_straight(MigrateMapping *map, MigrateSource *src, Query *query)
{
	TupleDesc	target;
	MigrateStraight *straight = palloc0(sizeof(MigrateStraight));
	Bitmapset  *used = NULL;

	if (!is_row_for_row(map, query))
		return NULL;
	target = relation_desc(map->target);
	if (target->natts != src->ncolumns || map->ncolumns != target->natts)
		return NULL;
	straight->desc = target;
	straight->columns = palloc(Max(target->natts, 1) * sizeof(int));
	for (int i = 0; i < map->ncolumns; i++)
	{
		TargetEntry *tle = list_nth_node(TargetEntry, query->targetList, i);
		int			column = straight_column(query, tle);
		Form_pg_attribute att = TupleDescAttr(target, map->attnums[i] - 1);

		if (column < 0 || tle->resjunk || att->attisdropped || att->attgenerated != '\0' ||
			att->atttypid != src->columns[column].type || bms_is_member(column, used))
			return NULL;
		used = bms_add_member(used, column);
		straight->columns[map->attnums[i] - 1] = column;
	}
	for (int k = 0; k < map->nkeys; k++)
		if (key_source_column(query, keys_of(query), k) !=
			straight->columns[map->key_attnums[k] - 1])
			return NULL;
	return straight;
}

/* Parse the executed text, with the target's column types. */
static Query *
parse_mapping(MigrateMapping *map, MigrateSource *src, const char *text,
			  QueryEnvironment *env)
{
	List	   *raw = raw_parser(text, RAW_PARSE_DEFAULT);
	ParseState *pstate = make_parsestate(NULL);
	Query	   *query;
	ListCell   *lc;
	int			n = 0;

	if (list_length(raw) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the mapping to %s is not one query", map->target_name)));
	pstate->p_sourcetext = text;

	pstate->p_queryEnv = env;
	/* literals take the type of their column, as in INSERT */
	pstate->p_resolve_unknowns = false;
	query = transformTopLevelStmt(pstate, linitial_node(RawStmt, raw));
	if (query->commandType != CMD_SELECT || query->utilityStmt != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the mapping to %s is not a query", map->target_name)));

	map->key_is_source_key = key_is_source_key(map, src, query);
	map->key_attnums = palloc0(Max(map->nkeys, 1) * sizeof(AttrNumber));
	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (tle->resjunk)
			continue;
		if (n < map->ncolumns)
		{
			coerce_column(pstate, tle, map, map->columns[n], map->attnums[n]);
			tle->resname = map->columns[n];
		}
		else if (n < map->ncolumns + map->nkeys)
		{
			const char *key = map->key_columns[n - map->ncolumns];
			AttrNumber	attnum = get_attnum(map->target, key);

			if (attnum == InvalidAttrNumber)
				ereport(ERROR,
						(errcode(ERRCODE_UNDEFINED_COLUMN),
						 errmsg("key column \"%s\" of target table %s does not exist",
								key, map->target_name)));
			coerce_column(pstate, tle, map, key, attnum);
			map->key_attnums[n - map->ncolumns] = attnum;
		}
		n++;
	}
	if (n != map->ncolumns + map->nkeys + 1)
		elog(ERROR, "query of mapping %d gives %d columns, not %d",
			 map->mapping_id, n, map->ncolumns + map->nkeys + 1);
	find_plain(map, query);
	map->straight = find_straight(map, src, query);
	map->projection = find_projection(map, query);
	map->reads = columns_read(src, query);
	map->key_reads = keys_of(query) ? columns_read_by_keys(src, query) : NULL;
	free_parsestate(pstate);
	return query;
}

/*
 * The settings under which the mapping was defined, within the nest level that
 * is returned: a loader, a replay and a validation give the same row.
 */
static int
enter_settings(MigrateMapping *map)
{
	struct
	{
		const char *name;
		const char *value;
	}			settings[] = {
		{"search_path", map->search_path},
		{"timezone", map->timezone},
		{"datestyle", map->datestyle}
	};
	int			level = NewGUCNestLevel();

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i].name, settings[i].value, PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/* Plan for each size class; a mapping that reads its row only has one plan. */
static void
plan_classes(MigrateMapping *map, Query *query, const char *text)
{
	for (int i = 0; i < MIGRATE_PLAN_CLASSES; i++)
	{
		Query	   *copy = copyObject(query);
		ListCell   *lc;

		if (i > 0 && map->plans[0]->relationOids == NIL)
		{
			map->plans[i] = map->plans[0];
			continue;
		}
		foreach(lc, copy->rtable)
		{
			RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

			if (rte->rtekind == RTE_NAMEDTUPLESTORE)
				rte->enrtuples = class_planned[i];
		}
		map->plans[i] = pg_plan_query(copy, text, 0, NULL);
	}
}

typedef struct CompileContext
{
	const char *text;
	const char *target;
} CompileContext;

/* An error's position is in the text that is compiled, not in the caller's. */
static void
compile_error_context(void *arg)
{
	CompileContext *context = arg;
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(context->text);
	}
	errcontext("mapping to %s", context->target);
}

/*
 * Parse, coerce to the target's column types with assignment casts, and plan,
 * under the mapping's settings, as the current user.  What is made lives
 * in the current memory context; the locks, until the (sub)transaction ends.
 */
void
migrate_mapping_compile(MigrateMapping *map, MigrateSource *src)
{
	char	   *sql = executed_text(map, src);
	int			level = enter_settings(map);
	MigrateBatch *shape = migrate_batch_create(src);
	QueryEnvironment *env = batch_environment(shape->desc, NULL, 0);
	CompileContext context = {sql, map->target_name};
	ErrorContextCallback callback = {error_context_stack, compile_error_context, &context};
	List	   *queries;

	error_context_stack = &callback;
	PushActiveSnapshot(GetTransactionSnapshot());
	queries = QueryRewrite(parse_mapping(map, src, sql, env));
	if (list_length(queries) != 1)
		elog(ERROR, "mapping %d rewrites to %d queries", map->mapping_id,
			 list_length(queries));
	plan_classes(map, linitial_node(Query, queries), sql);
	map->outdesc = ExecCleanTypeFromTL(map->plans[0]->planTree->targetlist);
	map->relations = map->plans[0]->relationOids;
	PopActiveSnapshot();
	error_context_stack = callback.previous;
	AtEOXact_GUC(true, level);
	migrate_batch_free(shape);
}

/* The executor's way to hand out rows. */
typedef struct RowReceiver
{
	DestReceiver pub;
	MigrateRowFn fn;
	void	   *arg;
} RowReceiver;

static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *receiver = (RowReceiver *) self;

	receiver->fn(slot, receiver->arg);
	return true;
}

static void
receive_startup(DestReceiver *self, int operation, TupleDesc desc)
{
}

static void
receive_nothing(DestReceiver *self)
{
}

/*
 * The key map alone, see migrate.h; after migrate_mapping_compile, in the same
 * memory context.
 */
void
migrate_mapping_compile_keys(MigrateMapping *map, MigrateSource *src)
{
	MigrateBatch *shape = migrate_batch_create(src);
	QueryEnvironment *env = batch_environment(shape->desc, NULL, 0);
	StringInfoData sql;
	ParseState *pstate = make_parsestate(NULL);
	Query	   *query;
	int			level;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int k = 0; k < map->nkeys; k++)
		appendStringInfo(&sql, KEYS_ALIAS ".migrate_key_%d, ", k + 1);
	appendStringInfoString(&sql, MIGRATE_BATCH_NAME "." MIGRATE_ORDINAL " AS "
						   MIGRATE_ORDINAL " ");
	appendStringInfoString(&sql, batch_from_clause(map, src));

	level = enter_settings(map);
	PushActiveSnapshot(GetTransactionSnapshot());
	pstate->p_sourcetext = sql.data;
	pstate->p_queryEnv = env;
	pstate->p_resolve_unknowns = false;
	query = transformTopLevelStmt(pstate, linitial_node(RawStmt,
														raw_parser(sql.data, RAW_PARSE_DEFAULT)));
	for (int k = 0; k < map->nkeys; k++)
		coerce_column(pstate, list_nth_node(TargetEntry, query->targetList, k), map,
					  map->key_columns[k], map->key_attnums[k]);
	free_parsestate(pstate);
	query = linitial_node(Query, QueryRewrite(query));
	map->keys_plan = pg_plan_query(query, sql.data, 0, NULL);
	map->keysdesc = ExecCleanTypeFromTL(map->keys_plan->planTree->targetlist);
	PopActiveSnapshot();
	AtEOXact_GUC(true, level);
	migrate_batch_free(shape);
}

/* Run a plan over a batch. */
static void
run_plan(MigrateMapping *map, PlannedStmt *plan, MigrateBatch *batch,
		 MigrateRowFn dest, void *arg)
{
	RowReceiver receiver = {
		{receive_row, receive_startup, receive_nothing, receive_nothing, DestNone},
		dest, arg
	};
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate mapping run",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);
	int			level = enter_settings(map);
	QueryEnvironment *env = batch_environment(batch->desc, migrate_batch_store(batch),
											  batch->nrows);
	QueryDesc  *desc;

	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	desc = CreateQueryDesc(plan, map->query, GetActiveSnapshot(),
						   InvalidSnapshot, &receiver.pub, NULL, env, 0);
	ExecutorStart(desc, 0);
	migrate_executor_run(desc, ForwardScanDirection, 0);
	ExecutorFinish(desc);
	ExecutorEnd(desc);
	FreeQueryDesc(desc);
	PopActiveSnapshot();
	AtEOXact_GUC(true, level);
	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(mcxt);
}

/*
 * The same without the executor: each output column but the ordinal is a
 * column of the batch.
 */
static void
run_projection(TupleDesc desc, const int *columns, MigrateBatch *batch,
			   MigrateRowFn dest, void *arg)
{
	TupleTableSlot *in = migrate_batch_scan(batch);
	TupleTableSlot *out = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	int			n = desc->natts - 1;
	int			ord = batch->desc->natts - 1;

	while (migrate_batch_next(batch, in))
	{
		ExecClearTuple(out);
		for (int i = 0; i < n; i++)
		{
			out->tts_values[i] = in->tts_values[columns[i]];
			out->tts_isnull[i] = in->tts_isnull[columns[i]];
		}
		out->tts_values[n] = in->tts_values[ord];
		out->tts_isnull[n] = false;
		ExecStoreVirtualTuple(out);
		dest(out, arg);
	}
	ExecDropSingleTupleTableSlot(out);
	ExecDropSingleTupleTableSlot(in);
}

/*
 * Run over a batch.  Each row goes to dest, a slot of outdesc.  The current
 * user is the owner, session_replication_role is origin (P13).
 */
void
migrate_mapping_run(MigrateMapping *map, MigrateBatch *batch, MigrateRowFn dest,
					void *arg)
{
	int			size = 0;

	if (map->projection)
	{
		run_projection(map->outdesc, map->projection, batch, dest, arg);
		return;
	}
	while (batch->nrows > class_most[size])
		size++;
	run_plan(map, map->plans[size], batch, dest, arg);
}

void
migrate_mapping_run_keys(MigrateMapping *map, MigrateBatch *batch, MigrateRowFn dest,
						 void *arg)
{
	if (map->projection)
		run_projection(map->keysdesc, map->projection + map->ncolumns, batch, dest, arg);
	else
		run_plan(map, map->keys_plan, batch, dest, arg);
}

/*
 * migrate._mapping_check(mapping_id) RETURNS regclass[]: compile a mapping and
 * say which tables it reads besides its row (P15).
 */
Datum
migrate_mapping_check(PG_FUNCTION_ARGS)
{
	MigrateMapping *map = migrate_mapping_load(PG_GETARG_INT32(0));
	MigrateSource *src = migrate_source_load(map->source_id);
	Datum	   *elems;
	int			n = 0;

	migrate_mapping_compile(map, src);
	elems = palloc(Max(list_length(map->relations), 1) * sizeof(Datum));
	for (int i = 0; i < list_length(map->relations); i++)
		elems[n++] = ObjectIdGetDatum(list_nth_oid(map->relations, i));
	PG_RETURN_ARRAYTYPE_P(construct_array(elems, n, REGCLASSOID, sizeof(Oid),
										  true, TYPALIGN_INT));
}
