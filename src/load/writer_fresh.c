/*-------------------------------------------------------------------------
 *
 * writer_fresh.c
 *	  Multi-insert into a plain table that has no index, no trigger that would
 *	  fire, no rule and no row security: what COPY FROM does, fed by the
 *	  mapping's executor row by row.
 *
 * Runs in loaders.  The buffered tuples and the bulk-insert state belong to
 * one run, that is to one subtransaction: a failed one leaves nothing to the
 * next but slots that are cleared.  A crash leaves dead tuples.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"

/* a group of tuples, as in COPY */
#define GROUP_ROWS 1000
#define GROUP_BYTES 65535

struct FreshWriter
{
	Relation	rel;
	MigrateMapping *map;
	ResultRelInfo *result;
	EState	   *estate;
	int			natts;
	TupleDesc	desc;			/* a copy: slots of the relation's own would pin
								 * it for the subtransaction they are made in */
	ExprState **defaults;		/* an attribute; NULL: none, or mapped */
	int			nslots;			/* made so far */
	int			nused;			/* filled */
	Size		bytes;
	TupleTableSlot *slots[GROUP_ROWS];

	/* of the run */
	BulkInsertState bistate;
	MemoryContext run_cxt;
	MigrateWriter *writer;
	MigrateTally *tally;
};

/*
 * Would a trigger of the table fire?  In replica role, which an owner writes
 * in elsewhere (P13), only REPLICA and ALWAYS ones would.
 */
static bool
has_firing_trigger(Relation rel)
{
	bool		replica = migrate_owns_relation(RelationGetRelid(rel), GetUserId());

	if (rel->trigdesc == NULL)
		return false;
	for (int i = 0; i < rel->trigdesc->numtriggers; i++)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];
		char		enabled = trigger->tgenabled;

		if (!TRIGGER_FOR_INSERT(trigger->tgtype) ||
			enabled == TRIGGER_DISABLED)
			continue;
		if (enabled == TRIGGER_FIRES_ALWAYS ||
			(enabled == TRIGGER_FIRES_ON_REPLICA) == replica)
			return true;
	}
	return false;
}

/* Is it a table into which rows can be put without anybody noticing? */
bool
migrate_fresh_possible(MigrateMapping *map, Relation rel)
{
	return rel->rd_rel->relkind == RELKIND_RELATION &&
		!rel->rd_rel->relispartition &&
		map->owns == NULL &&
		RelationGetIndexList(rel) == NIL &&
		rel->rd_rules == NULL &&
		!has_firing_trigger(rel) &&
		check_enable_rls(RelationGetRelid(rel), InvalidOid, true) == RLS_NONE;
}

/* As INSERT: on the table, or on each column that is given. */
static void
check_privilege(MigrateMapping *map, Relation rel)
{
	Oid			user = GetUserId();

	if (pg_class_aclcheck(map->target, user, ACL_INSERT) == ACLCHECK_OK)
		return;
	for (int i = 0; i < map->ncolumns; i++)
		if (pg_attribute_aclcheck(map->target, map->attnums[i], user,
								  ACL_INSERT) != ACLCHECK_OK)
			aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE,
						   RelationGetRelationName(rel));
	if (map->ncolumns == 0)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE,
					   RelationGetRelationName(rel));
}

/* Defaults of the columns that the mapping does not give. */
static void
prepare_defaults(struct FreshWriter *fresh)
{
	TupleDesc	desc = RelationGetDescr(fresh->rel);

	fresh->defaults = palloc0(Max(fresh->natts, 1) * sizeof(ExprState *));
	for (int i = 0; i < fresh->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		bool		given = false;
		Node	   *expr;

		for (int c = 0; c < fresh->map->ncolumns; c++)
			given |= fresh->map->attnums[c] == i + 1;
		if (given || att->attisdropped || att->attgenerated)
			continue;
		expr = build_column_default(fresh->rel, i + 1);
		if (expr)
			fresh->defaults[i] =
				ExecInitExpr(expression_planner((Expr *) expr), NULL);
	}
}

/* In the writer's memory context. */
struct FreshWriter *
migrate_fresh_open(MigrateWriter *writer)
{
	struct FreshWriter *fresh = palloc0(sizeof(struct FreshWriter));

	check_privilege(writer->map, writer->rel);
	fresh->rel = writer->rel;
	fresh->map = writer->map;
	fresh->writer = writer;
	fresh->desc = CreateTupleDescCopy(RelationGetDescr(writer->rel));
	fresh->natts = fresh->desc->natts;
	fresh->estate = CreateExecutorState();
	fresh->result = makeNode(ResultRelInfo);
	InitResultRelInfo(fresh->result, writer->rel, 0, NULL, 0);
	prepare_defaults(fresh);
	return fresh;
}

/* Write the group out. */
static void
flush_group(struct FreshWriter *fresh)
{
	MemoryContext oldcxt;

	if (fresh->nused == 0)
		return;
	/* toasting and the tuples' array leak into the current context */
	oldcxt = MemoryContextSwitchTo(GetPerTupleMemoryContext(fresh->estate));
	table_multi_insert(fresh->rel, fresh->slots, fresh->nused,
					   GetCurrentCommandId(true), 0,
					   fresh->bistate);
	MemoryContextSwitchTo(oldcxt);
	ResetPerTupleExprContext(fresh->estate);
	for (int i = 0; i < fresh->nused; i++)
		ExecClearTuple(fresh->slots[i]);
	fresh->nused = 0;
	fresh->bytes = 0;
}

/* The row of the mapping as a row of the target, not yet of its own memory. */
static void
assemble(struct FreshWriter *fresh, TupleTableSlot *from, TupleTableSlot *to)
{
	ExprContext *econtext = GetPerTupleExprContext(fresh->estate);

	slot_getallattrs(from);
	ExecClearTuple(to);
	memset(to->tts_isnull, true, fresh->natts * sizeof(bool));
	memset(to->tts_values, 0, fresh->natts * sizeof(Datum));
	for (int i = 0; i < fresh->natts; i++)
		if (fresh->defaults[i])
			to->tts_values[i] =
				ExecEvalExprSwitchContext(fresh->defaults[i], econtext,
										  &to->tts_isnull[i]);
	for (int c = 0; c < fresh->map->ncolumns; c++)
	{
		int			i = fresh->map->attnums[c] - 1;

		to->tts_values[i] = from->tts_values[c];
		to->tts_isnull[i] = from->tts_isnull[c];
	}
	ExecStoreVirtualTuple(to);
	to->tts_tableOid = RelationGetRelid(fresh->rel);
}

/* Memory that a buffered row takes, about. */
static Size
slot_bytes(TupleTableSlot *slot)
{
	bool		should_free;
	HeapTuple	tuple;

	if (!TTS_IS_HEAPTUPLE(slot) && !TTS_IS_BUFFERTUPLE(slot))
		return GROUP_BYTES / 100;
	tuple = ExecFetchSlotHeapTuple(slot, true, &should_free);
	return tuple->t_len;
}

/* One row from the mapping. */
static void
take_row(TupleTableSlot *from, void *arg)
{
	struct FreshWriter *fresh = arg;
	Relation	rel = fresh->rel;
	TupleTableSlot *slot;

	migrate_tally_row(fresh->writer, fresh->tally, from);
	migrate_writing = true;
	if (fresh->nused == fresh->nslots)
	{
		MemoryContext oldcxt = MemoryContextSwitchTo(fresh->writer->mcxt);

		fresh->slots[fresh->nslots++] =
			MakeSingleTupleTableSlot(fresh->desc, table_slot_callbacks(rel));
		MemoryContextSwitchTo(oldcxt);
	}
	slot = fresh->slots[fresh->nused];

	ResetPerTupleExprContext(fresh->estate);
	assemble(fresh, from, slot);
	if (rel->rd_att->constr && rel->rd_att->constr->has_generated_stored)
		ExecComputeStoredGenerated(fresh->result, fresh->estate, slot, CMD_INSERT);
	if (rel->rd_att->constr)
		ExecConstraints(fresh->result, slot, fresh->estate);
	ExecMaterializeSlot(slot);
	fresh->nused++;
	fresh->bytes += slot_bytes(slot);
	if (fresh->nused == GROUP_ROWS || fresh->bytes > GROUP_BYTES)
		flush_group(fresh);
	migrate_writing = false;
}

/* Map a batch and insert what comes out. */
void
migrate_fresh_run(MigrateWriter *writer, MigrateBatch *batch, MigrateTally *tally)
{
	struct FreshWriter *fresh = writer->fresh;
	MemoryContext oldcxt;

	fresh->run_cxt = AllocSetContextCreate(writer->mcxt, "migrate fresh run",
										   ALLOCSET_SMALL_SIZES);
	oldcxt = MemoryContextSwitchTo(fresh->run_cxt);
	/* pins buffers, for which the subtransaction answers */
	fresh->bistate = GetBulkInsertState();
	MemoryContextSwitchTo(oldcxt);
	fresh->tally = tally;

	migrate_mapping_run(fresh->map, batch, take_row, fresh);
	migrate_writing = true;
	flush_group(fresh);
	FreeBulkInsertState(fresh->bistate);
	fresh->bistate = NULL;
	MemoryContextDelete(fresh->run_cxt);
	fresh->run_cxt = NULL;
	tally->written = tally->produced;
	CommandCounterIncrement();
}

/* The rollback has released the bulk-insert state's buffer already. */
void
migrate_fresh_abort(struct FreshWriter *fresh)
{
	for (int i = 0; i < fresh->nslots; i++)
		ExecClearTuple(fresh->slots[i]);
	fresh->nused = 0;
	fresh->bytes = 0;
	fresh->bistate = NULL;
	if (fresh->run_cxt)
		MemoryContextDelete(fresh->run_cxt);
	fresh->run_cxt = NULL;
	ResetPerTupleExprContext(fresh->estate);
}

void
migrate_fresh_close(struct FreshWriter *fresh)
{
	table_finish_bulk_insert(fresh->rel, 0);
	for (int i = 0; i < fresh->nslots; i++)
		ExecDropSingleTupleTableSlot(fresh->slots[i]);
	FreeExecutorState(fresh->estate);
}
