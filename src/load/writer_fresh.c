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
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"

/* as in core's copyfrom.c: what is gathered before it is written */
#define MAX_BUFFERED_TUPLES 1000
#define MAX_BUFFERED_BYTES 65535
/* of tuples that are in memory anyway, at a time */
#define MAX_TUPLE_BYTES (1024 * 1024)

/* an attempt */
typedef struct FreshState
{
	MigrateRowState row;
	BulkInsertState bistate;
	MemoryContext flush_cxt;
	TupleTableSlot *read;		/* to read rows back; NULL: not made */
	TupleTableSlot *slots[MAX_BUFFERED_TUPLES];
	int			nslots;			/* made */
	int			nused;
	Size		bytes;
	Size		room;			/* that they take in the table */
	Size		owed;			/* of migrate_extend_for() */
	int64		written;

	/* the slots that were just written, while they are read back */
	TupleTableSlot **flushed;
	int			nflushed;
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

/*
 * Whether this way serves the writer's target; prepares it if so.
 */
bool
migrate_fresh_possible(MigrateWriter *writer)
{
	Relation	rel = writer->rel;

	if (rel->rd_rel->relkind != RELKIND_RELATION ||
		rel->rd_rel->relispartition ||
		RelationGetIndexList(rel) != NIL ||
		rel->rd_rules != NULL ||
		insert_triggers_fire(writer) ||
		check_enable_rls(RelationGetRelid(rel), InvalidOid, true) != RLS_NONE)
		return false;
	check_insert_privilege(writer);
	writer->row = migrate_row_plan(writer);
	return writer->row != NULL;
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
	FreshState *state = palloc0(sizeof(FreshState));

	writer->state = state;
	migrate_row_begin(writer, &state->row);
	state->bistate = bulk_insert_state(writer->rel);
	state->flush_cxt = AllocSetContextCreate(writer->attempt, "migrate flush",
											 ALLOCSET_DEFAULT_SIZES);
}

static void
given_rows(MigrateWriter *writer, MigrateVerifySink sink, void *arg)
{
	FreshState *state = writer->state;

	for (int i = 0; i < state->nflushed; i++)
		sink(arg, state->flushed[i], writer->map->attnums);
}

static void
found_rows(MigrateWriter *writer, MigrateVerifySink sink, void *arg)
{
	FreshState *state = writer->state;

	for (int i = 0; i < state->nflushed; i++)
		migrate_verify_place(writer, writer->rel, &state->flushed[i]->tts_tid,
							 state->read, writer->map->attnums, sink, arg);
}

/* Read back, by the places that they have now, what was just written. */
static void
verify_flushed(MigrateWriter *writer, TupleTableSlot **slots, int n)
{
	FreshState *state = writer->state;
	MemoryContext old = MemoryContextSwitchTo(writer->attempt);

	if (state->read == NULL)
		state->read = table_slot_create(writer->rel, NULL);
	MemoryContextSwitchTo(old);
	state->flushed = slots;
	state->nflushed = n;
	migrate_verify_found(writer, given_rows, found_rows);
}

/* Write what was gathered. */
static void
fresh_flush(MigrateWriter *writer)
{
	FreshState *state = writer->state;
	MemoryContext old;

	if (state->nused == 0)
		return;
	migrate_extend_for(writer->rel, state->room, &state->owed, state->bistate->strategy);
	/* table_multi_insert may leak */
	old = MemoryContextSwitchTo(state->flush_cxt);
	table_multi_insert(writer->rel, state->slots, state->nused,
					   GetCurrentCommandId(true), 0, state->bistate);
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->flush_cxt);
	if (writer->verify)
		verify_flushed(writer, state->slots, state->nused);
	for (int i = 0; i < state->nused; i++)
		ExecClearTuple(state->slots[i]);
	state->written += state->nused;
	state->nused = 0;
	state->bytes = state->room = 0;
}

static void
fresh_put(MigrateWriter *writer, TupleTableSlot *mapped)
{
	FreshState *state = writer->state;
	TupleTableSlot *slot;
	MemoryContext old;
	Size		size;

	if (state->nused == state->nslots)
	{
		old = MemoryContextSwitchTo(writer->attempt);
		state->slots[state->nslots++] = table_slot_create(writer->rel, NULL);
		MemoryContextSwitchTo(old);
	}
	slot = state->slots[state->nused];
	ResetPerTupleExprContext(state->row.estate);
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(state->row.estate));
	migrate_row_fill(writer, &state->row, slot, mapped);
	migrate_row_check(writer, &state->row, slot);
	MemoryContextSwitchTo(old);
	if (writer->verify)
		migrate_verify_given(writer, mapped, NULL);
	/* the values are of this row's memory, the slot lives longer */
	ExecMaterializeSlot(slot);
	state->nused++;
	size = heap_compute_data_size(mapped->tts_tupleDescriptor, mapped->tts_values,
								  mapped->tts_isnull);
	state->bytes += size;
	state->room += migrate_tuple_room(MAXALIGN(SizeofHeapTupleHeader) + size);
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
	MigrateRowPlan *plan = writer->row;

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
	ResetPerTupleExprContext(state->row.estate);
	ExecConstraints(state->row.rri, slot, state->row.estate);
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
		Size		room = 0;
		MemoryContext old;

		for (int i = 0; i < part; i++)
		{
			HeapTuple	tuple = tuples[done + i];

			if (i == made)
				slots[made++] = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
			ExecStoreHeapTuple(tuple, slots[i], false);
			check_tuple(writer, slots[i], tuple);
			if (writer->verify)
				migrate_verify_given(writer, slots[i], writer->map->attnums);
			slots[i]->tts_flags |= TTS_FLAG_SHOULDFREE;
			bytes += tuple->t_len;
			room += migrate_tuple_room(tuple->t_len);
			if (bytes > MAX_TUPLE_BYTES)
				part = i + 1;
		}
		migrate_extend_for(writer->rel, room, &state->owed, state->bistate->strategy);
		old = MemoryContextSwitchTo(state->flush_cxt);
		table_multi_insert(writer->rel, slots, part, GetCurrentCommandId(true), 0,
						   state->bistate);
		MemoryContextSwitchTo(old);
		MemoryContextReset(state->flush_cxt);
		if (writer->verify)
			verify_flushed(writer, slots, part);
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
	if (state->read)
		ExecDropSingleTupleTableSlot(state->read);
	FreeExecutorState(state->row.estate);
	return state->written;
}

const MigrateWriterWay migrate_writer_fresh = {
	.name = "multi-insert",
	.begin = fresh_begin,
	.put = fresh_put,
	.put_tuples = fresh_put_tuples,
	.finish = fresh_finish,
};
