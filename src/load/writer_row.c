/*-------------------------------------------------------------------------
 *
 * writer_row.c
 *	  One row of a plain table, for the ways that write without a statement:
 *	  what it needs besides its mapped columns, and what is checked of it.
 *
 *	  defaults		of columns that the mapping does not give
 *	  generated		stored generated columns
 *	  checks		NOT NULL, CHECK, a partition's bounds, "owns"
 *
 * What is planned lives as long as the writer, what is made to run it as long
 * as an attempt.  Process, locks and crash: as writer.c.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "catalog/pg_type.h"
#include "executor/nodeModifyTable.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "rewrite/rewriteHandler.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* ----------------------------------------------------------------
 * the plan
 * ----------------------------------------------------------------
 */

/*
 * "owns" as an expression over the target's row; false when it has a
 * sub-select, which needs more than an expression.
 */
static bool
plan_owns(MigrateWriter *writer, MigrateRowPlan *plan)
{
	MigrateMapping *map = writer->map;
	ParseState *pstate;
	ParseNamespaceItem *nsitem;
	SelectStmt *select;
	Node	   *expr;
	bool		simple;
	int			nestlevel;

	if (map->owns == NULL || map->owns[0] == '\0')
		return true;
	nestlevel = NewGUCNestLevel();
	(void) set_config_option("search_path", map->search_path, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	pstate = make_parsestate(NULL);
	pstate->p_sourcetext = map->owns;
	nsitem = addRangeTableEntryForRelation(pstate, writer->rel, RowExclusiveLock,
										   NULL, false, false);
	addNSItemToQuery(pstate, nsitem, false, true, true);
	select = castNode(SelectStmt,
					  linitial_node(RawStmt, raw_parser(map->owns, RAW_PARSE_PLPGSQL_EXPR))->stmt);
	expr = transformExpr(pstate, linitial_node(ResTarget, select->targetList)->val,
						 EXPR_KIND_WHERE);
	expr = coerce_to_boolean(pstate, expr, "owns");
	assign_expr_collations(pstate, expr);
	simple = !pstate->p_hasSubLinks;
	if (simple)
		plan->owns = expression_planner((Expr *) expr);
	free_parsestate(pstate);
	AtEOXact_GUC(true, nestlevel);
	return simple;
}

/*
 * The value of a column that the mapping does not give: its default, or null,
 * which a domain may refuse.  NULL when it is simply null.
 */
static Expr *
missing_column(Relation rel, AttrNumber attnum)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), attnum - 1);
	Node	   *expr = build_column_default(rel, attnum);

	if (expr == NULL && get_typtype(att->atttypid) == TYPTYPE_DOMAIN)
	{
		int32		typmod = att->atttypmod;
		Oid			base = getBaseTypeAndTypmod(att->atttypid, &typmod);

		expr = coerce_to_domain((Node *) makeNullConst(base, typmod, att->attcollation),
								base, typmod, att->atttypid, COERCION_IMPLICIT,
								COERCE_IMPLICIT_CAST, -1, false);
	}
	return expr ? expression_planner((Expr *) expr) : NULL;
}

static void
plan_defaults(MigrateWriter *writer, MigrateRowPlan *plan)
{
	TupleDesc	desc = RelationGetDescr(writer->rel);
	MigrateMapping *map = writer->map;

	plan->default_attnums = palloc(sizeof(AttrNumber) * Max(desc->natts, 1));
	plan->defaults = palloc(sizeof(Expr *) * Max(desc->natts, 1));
	for (int a = 1; a <= desc->natts; a++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, a - 1);
		Expr	   *expr;
		bool		given = false;

		for (int i = 0; i < map->ncolumns && !given; i++)
			given = map->attnums[i] == a;
		if (given || att->attisdropped || att->attgenerated != '\0')
			continue;
		expr = missing_column(writer->rel, a);
		if (expr == NULL)
			continue;
		plan->default_attnums[plan->ndefaults] = a;
		plan->defaults[plan->ndefaults++] = expr;
	}
	plan->generated = desc->constr && desc->constr->has_generated_stored;
}

/*
 * The plan for the writer's target, a plain table; NULL when "owns" cannot be
 * asked of a row alone.
 */
MigrateRowPlan *
migrate_row_plan(MigrateWriter *writer)
{
	MigrateRowPlan *plan = palloc0(sizeof(MigrateRowPlan));

	if (!plan_owns(writer, plan))
		return NULL;
	plan_defaults(writer, plan);
	return plan;
}

/* ----------------------------------------------------------------
 * an attempt
 * ----------------------------------------------------------------
 */

/* What runs the plan, in the current memory context. */
void
migrate_row_begin(MigrateWriter *writer, MigrateRowState *state)
{
	MigrateRowPlan *plan = writer->row;
	MemoryContext old;

	state->estate = CreateExecutorState();
	state->rri = makeNode(ResultRelInfo);

	/*
	 * Range table index 0: not in a range table.  An error message about a
	 * row then shows the columns that the user may read.
	 */
	InitResultRelInfo(state->rri, writer->rel, 0, NULL, 0);
	old = MemoryContextSwitchTo(state->estate->es_query_cxt);
	state->defaults = palloc(sizeof(ExprState *) * Max(plan->ndefaults, 1));
	for (int i = 0; i < plan->ndefaults; i++)
		state->defaults[i] = ExecInitExpr(plan->defaults[i], NULL);
	if (plan->owns)
		state->owns = ExecInitExpr(plan->owns, NULL);
	MemoryContextSwitchTo(old);
}

/*
 * A new row: mapped columns, defaults and nulls, as a virtual tuple.  In the
 * per-tuple memory.
 */
void
migrate_row_fill(MigrateWriter *writer, MigrateRowState *state,
				 TupleTableSlot *slot, TupleTableSlot *mapped)
{
	MigrateRowPlan *plan = writer->row;
	MigrateMapping *map = writer->map;
	ExprContext *econtext = GetPerTupleExprContext(state->estate);

	ExecClearTuple(slot);
	memset(slot->tts_values, 0, sizeof(Datum) * slot->tts_tupleDescriptor->natts);
	memset(slot->tts_isnull, true, sizeof(bool) * slot->tts_tupleDescriptor->natts);
	for (int i = 0; i < map->ncolumns; i++)
	{
		slot->tts_values[map->attnums[i] - 1] = mapped->tts_values[i];
		slot->tts_isnull[map->attnums[i] - 1] = mapped->tts_isnull[i];
	}
	for (int i = 0; i < plan->ndefaults; i++)
	{
		int			a = plan->default_attnums[i] - 1;

		slot->tts_values[a] = ExecEvalExprSwitchContext(state->defaults[i], econtext,
														&slot->tts_isnull[a]);
	}
	ExecStoreVirtualTuple(slot);
}

/* Does "owns" name this row of the target? */
bool
migrate_row_is_owned(MigrateRowState *state, TupleTableSlot *slot)
{
	ExprContext *econtext;
	bool		isnull;
	Datum		ok;

	if (state->owns == NULL)
		return true;
	econtext = GetPerTupleExprContext(state->estate);
	econtext->ecxt_scantuple = slot;
	ok = ExecEvalExprSwitchContext(state->owns, econtext, &isnull);
	return !isnull && DatumGetBool(ok);
}

/*
 * Generated columns, and what the executor would check of a row.  They are
 * always computed as for an insert: for an update core would leave out those
 * that no updated column leads to, and knows of none here.
 */
void
migrate_row_check(MigrateWriter *writer, MigrateRowState *state, TupleTableSlot *slot)
{
	slot->tts_tableOid = RelationGetRelid(writer->rel);
	if (writer->row->generated)
		ExecComputeStoredGenerated(state->rri, state->estate, slot, CMD_INSERT);
	if (RelationGetDescr(writer->rel)->constr)
		ExecConstraints(state->rri, slot, state->estate);
	if (writer->rel->rd_rel->relispartition)
		ExecPartitionCheck(state->rri, slot, state->estate, true);
	if (!migrate_row_is_owned(state, slot))
		ereport(ERROR,
				(errcode(ERRCODE_WITH_CHECK_OPTION_VIOLATION),
				 errmsg("row does not satisfy \"owns\" of the mapping to %s",
						writer->map->target_name),
				 errdetail("The predicate is %s.", writer->map->owns)));
}
