/*-------------------------------------------------------------------------
 *
 * writer_fresh.c
 *	  Multi-insert, as COPY does it, into a table where nothing else is to be
 *	  done for a row: a plain table without index, trigger that would fire,
 *	  rule or row security.
 *
 * Rows come straight from the mapping's executor.  Defaults of columns that
 * the mapping does not give, stored generated columns, NOT NULL and CHECK
 * constraints are computed here, as ExecInsert would.  WAL is written as
 * usual.
 *
 * Process, locks and crash: as writer.c.  Everything of an attempt (executor
 * state, slots, buffer pins) belongs to its memory context and subtransaction,
 * so a constraint that fails leaves nothing to undo here.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/heapam.h"
#include "access/hio.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "storage/bufmgr.h"
#include "rewrite/rewriteHandler.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"

/* as in core's copyfrom.c: what is gathered before it is written */
#define MAX_BUFFERED_TUPLES 1000
#define MAX_BUFFERED_BYTES 65535
/* of tuples that are in memory anyway, at a time */
#define MAX_TUPLE_BYTES (1024 * 1024)

/* what is the same for all attempts, in the writer's memory */
typedef struct FreshPlan
{
	int			ndefaults;		/* columns that get an expression's value */
	AttrNumber *default_attnums;
	Expr	  **defaults;
	Expr	   *owns;			/* NULL: none */
	bool		generated;		/* stored generated columns */
} FreshPlan;

/* an attempt */
typedef struct FreshState
{
	EState	   *estate;
	ResultRelInfo *rri;
	ExprState **defaults;
	ExprState  *owns;
	BulkInsertState bistate;
	MemoryContext flush_cxt;
	TupleTableSlot *slots[MAX_BUFFERED_TUPLES];
	int			nslots;			/* made */
	int			nused;
	Size		bytes;
	int64		written;
} FreshState;

/* ----------------------------------------------------------------
 * may it be used
 * ----------------------------------------------------------------
 */

/* Would a trigger see the insert?  P13: in replica role only some do. */
static bool
insert_triggers_fire(MigrateWriter *writer)
{
	TriggerDesc *desc = writer->rel->trigdesc;

	for (int i = 0; desc && i < desc->numtriggers; i++)
	{
		Trigger    *trigger = &desc->triggers[i];

		if (!TRIGGER_FOR_INSERT(trigger->tgtype) ||
			trigger->tgenabled == TRIGGER_DISABLED)
			continue;
		if (trigger->tgenabled == TRIGGER_FIRES_ALWAYS ||
			trigger->tgenabled == (writer->replica ? TRIGGER_FIRES_ON_REPLICA
								   : TRIGGER_FIRES_ON_ORIGIN))
			return true;
	}
	return false;
}

/* INSERT on the table, or on every column that is written. */
static void
check_insert_privilege(MigrateWriter *writer)
{
	Oid			relid = RelationGetRelid(writer->rel);
	MigrateMapping *map = writer->map;

	if (pg_class_aclcheck(relid, GetUserId(), ACL_INSERT) == ACLCHECK_OK)
		return;
	for (int i = 0; i < map->ncolumns; i++)
		if (pg_attribute_aclcheck(relid, map->attnums[i], GetUserId(),
								  ACL_INSERT) != ACLCHECK_OK)
			aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE,
						   RelationGetRelationName(writer->rel));
	if (map->ncolumns == 0)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE,
					   RelationGetRelationName(writer->rel));
}

/* ----------------------------------------------------------------
 * what a row needs besides its mapped columns
 * ----------------------------------------------------------------
 */

/*
 * "owns" as an expression over the target's row; false when it has a
 * sub-select, which needs more than an expression.
 */
static bool
plan_owns(MigrateWriter *writer, FreshPlan *plan)
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
plan_defaults(MigrateWriter *writer, FreshPlan *plan)
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
 * Whether this way serves the writer's target; prepares it if so.
 */
bool
migrate_fresh_possible(MigrateWriter *writer)
{
	Relation	rel = writer->rel;
	FreshPlan  *plan;

	if (rel->rd_rel->relkind != RELKIND_RELATION ||
		rel->rd_rel->relispartition ||
		RelationGetIndexList(rel) != NIL ||
		rel->rd_rules != NULL ||
		insert_triggers_fire(writer) ||
		check_enable_rls(RelationGetRelid(rel), InvalidOid, true) != RLS_NONE)
		return false;
	check_insert_privilege(writer);
	plan = palloc0(sizeof(FreshPlan));
	if (!plan_owns(writer, plan))
		return false;
	plan_defaults(writer, plan);
	writer->fresh = plan;
	return true;
}

/* ----------------------------------------------------------------
 * an attempt
 * ----------------------------------------------------------------
 */

/*
 * Core's bulk inserts go through a small ring of buffers, so as not to push
 * everything else out, and have to write every page themselves.  As long as the
 * table is less than a quarter of the buffers, core's own limit for scans
 * (heapam.c, initscan), there is room, and the index builds that follow find
 * its pages there.
 */
static BulkInsertState
bulk_insert_state(Relation rel)
{
	BulkInsertState bistate = GetBulkInsertState();

	if (RelationGetNumberOfBlocks(rel) < NBuffers / 4)
	{
		FreeAccessStrategy(bistate->strategy);
		bistate->strategy = NULL;
	}
	return bistate;
}

static void
fresh_begin(MigrateWriter *writer)
{
	FreshPlan  *plan = writer->fresh;
	FreshState *state = palloc0(sizeof(FreshState));
	MemoryContext old;

	writer->state = state;
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
	state->bistate = bulk_insert_state(writer->rel);
	state->flush_cxt = AllocSetContextCreate(writer->attempt, "migrate flush",
											 ALLOCSET_DEFAULT_SIZES);
}

/* Write what was gathered. */
static void
fresh_flush(MigrateWriter *writer)
{
	FreshState *state = writer->state;
	MemoryContext old;

	if (state->nused == 0)
		return;
	/* table_multi_insert may leak */
	old = MemoryContextSwitchTo(state->flush_cxt);
	table_multi_insert(writer->rel, state->slots, state->nused,
					   GetCurrentCommandId(true), 0, state->bistate);
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->flush_cxt);
	for (int i = 0; i < state->nused; i++)
		ExecClearTuple(state->slots[i]);
	state->written += state->nused;
	state->nused = 0;
	state->bytes = 0;
}

/* The mapped columns, defaults and nulls of one target row, as a virtual tuple. */
static void
fill_slot(MigrateWriter *writer, TupleTableSlot *slot, TupleTableSlot *mapped)
{
	FreshState *state = writer->state;
	FreshPlan  *plan = writer->fresh;
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

/* What ExecInsert would check of the row. */
static void
check_row(MigrateWriter *writer, TupleTableSlot *slot)
{
	FreshState *state = writer->state;

	slot->tts_tableOid = RelationGetRelid(writer->rel);
	if (writer->fresh->generated)
		ExecComputeStoredGenerated(state->rri, state->estate, slot, CMD_INSERT);
	if (RelationGetDescr(writer->rel)->constr)
		ExecConstraints(state->rri, slot, state->estate);
	if (state->owns)
	{
		ExprContext *econtext = GetPerTupleExprContext(state->estate);
		bool		isnull;
		Datum		ok;

		econtext->ecxt_scantuple = slot;
		ok = ExecEvalExprSwitchContext(state->owns, econtext, &isnull);
		if (isnull || !DatumGetBool(ok))
			ereport(ERROR,
					(errcode(ERRCODE_WITH_CHECK_OPTION_VIOLATION),
					 errmsg("row does not satisfy \"owns\" of the mapping to %s",
							writer->map->target_name),
					 errdetail("The predicate is %s.", writer->map->owns)));
	}
}

static void
fresh_put(MigrateWriter *writer, TupleTableSlot *mapped)
{
	FreshState *state = writer->state;
	TupleTableSlot *slot;
	MemoryContext old;

	if (state->nused == state->nslots)
	{
		old = MemoryContextSwitchTo(writer->attempt);
		state->slots[state->nslots++] = table_slot_create(writer->rel, NULL);
		MemoryContextSwitchTo(old);
	}
	slot = state->slots[state->nused];
	ResetPerTupleExprContext(state->estate);
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(state->estate));
	fill_slot(writer, slot, mapped);
	check_row(writer, slot);
	MemoryContextSwitchTo(old);
	/* the values are of this row's memory, the slot lives longer */
	ExecMaterializeSlot(slot);
	state->nused++;
	state->bytes += heap_compute_data_size(mapped->tts_tupleDescriptor,
										   mapped->tts_values, mapped->tts_isnull);
	if (state->nused == MAX_BUFFERED_TUPLES || state->bytes > MAX_BUFFERED_BYTES)
		fresh_flush(writer);
}

/*
 * Whether rows can be written as tuples that the batch holds: nothing is to be
 * added to them, and no predicate asked.
 */
bool
migrate_fresh_takes_tuples(MigrateWriter *writer)
{
	FreshPlan  *plan = writer->fresh;

	return plan != NULL && writer->way == &migrate_writer_fresh &&
		writer->map->straight != NULL && plan->ndefaults == 0 &&
		plan->owns == NULL && !plan->generated;
}

/* NOT NULL and CHECK of a tuple; most tuples have no null to look at. */
static void
check_tuple(MigrateWriter *writer, TupleTableSlot *slot, HeapTuple tuple)
{
	FreshState *state = writer->state;
	TupleConstr *constr = RelationGetDescr(writer->rel)->constr;

	if (constr == NULL ||
		(constr->num_check == 0 && !HeapTupleHasNulls(tuple)))
		return;
	slot->tts_tableOid = RelationGetRelid(writer->rel);
	ResetPerTupleExprContext(state->estate);
	ExecConstraints(state->rri, slot, state->estate);
}

/*
 * Tuples of the target as they are.  Each slot says that its tuple is its own,
 * or heap_multi_insert() would copy it; the batch may still need the tuple
 * when the attempt fails, so the slot must not free it.
 */
static void
fresh_put_tuples(MigrateWriter *writer, HeapTuple *tuples, int64 n)
{
	FreshState *state = writer->state;
	TupleDesc	desc = CreateTupleDescCopy(writer->map->straight->desc);
	TupleTableSlot **slots = palloc(sizeof(TupleTableSlot *) * MAX_BUFFERED_TUPLES);
	int			made = 0;

	for (int64 done = 0; done < n;)
	{
		int			part = (int) Min(n - done, MAX_BUFFERED_TUPLES);
		Size		bytes = 0;
		MemoryContext old;

		for (int i = 0; i < part; i++)
		{
			HeapTuple	tuple = tuples[done + i];

			if (i == made)
				slots[made++] = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
			ExecStoreHeapTuple(tuple, slots[i], false);
			check_tuple(writer, slots[i], tuple);
			slots[i]->tts_flags |= TTS_FLAG_SHOULDFREE;
			bytes += tuple->t_len;
			if (bytes > MAX_TUPLE_BYTES)
				part = i + 1;
		}
		old = MemoryContextSwitchTo(state->flush_cxt);
		table_multi_insert(writer->rel, slots, part, GetCurrentCommandId(true), 0,
						   state->bistate);
		MemoryContextSwitchTo(old);
		MemoryContextReset(state->flush_cxt);
		for (int i = 0; i < part; i++)
		{
			slots[i]->tts_flags &= ~TTS_FLAG_SHOULDFREE;
			ExecClearTuple(slots[i]);
		}
		done += part;
	}
	for (int i = 0; i < made; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
	state->written += n;
}

static int64
fresh_finish(MigrateWriter *writer)
{
	FreshState *state = writer->state;

	fresh_flush(writer);
	table_finish_bulk_insert(writer->rel, 0);
	FreeBulkInsertState(state->bistate);
	for (int i = 0; i < state->nslots; i++)
		ExecDropSingleTupleTableSlot(state->slots[i]);
	FreeExecutorState(state->estate);
	return state->written;
}

const MigrateWriterWay migrate_writer_fresh = {
	.name = "multi-insert",
	.begin = fresh_begin,
	.put = fresh_put,
	.put_tuples = fresh_put_tuples,
	.finish = fresh_finish,
};
