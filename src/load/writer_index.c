/*-------------------------------------------------------------------------
 *
 * writer_index.c
 *	  Row by row by an index, without a statement: changes into plain tables.
 *
 * A statement for each small set costs its planning, and for each row a
 * tuplestore and half a dozen executor nodes.  Here each mapped row is looked
 * up by the key map in a btree index, then
 *
 *	  is there, and the same		left alone
 *	  is there						updated in place (P11), also its key
 *	  is not there					inserted, many at a time
 *
 * and everything about the target is found out once, when the writer is
 * opened.  What the executor does to a row is done by core's own functions:
 * generated columns, constraints, index entries.  What cannot be done so is left
 * to writer_sql.c: partitioned and foreign tables, views, triggers that
 * would fire (P13: in the role that the writer has), rules, row security,
 * column privileges, "owns" with a sub-select, a key map that no index serves.
 *
 * The index is a unique one within the key map, so that a row is found with
 * one descent; or one that begins with the key map's columns.  No plan is
 * made, so none can turn to reading the table for a row (P17).
 *
 * Rows are found by the snapshot of the attempt.  Whoever changed a row
 * meanwhile did so without the writer lock (P14): 40001, and the whole set is
 * tried again.
 *
 * Uniqueness that is deferrable is not left to a trigger that does not fire in
 * replica role (P13): a possible conflict is an error at once, and the set is
 * then written anew (apply_set.c).
 *
 * Process, locks and crash: as writer.c.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/hio.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

/* as in core's copyfrom.c: what is gathered before it is inserted */
#define MAX_BUFFERED_TUPLES 1000
#define MAX_BUFFERED_BYTES 65535

/* how rows are found; in the writer's memory */
typedef struct IndexPlan
{
	Oid			index;
	bool		one_row;		/* it can find no second one */
	int			nscan;
	ScanKeyData *scan;			/* arguments missing */
	int		   *scan_key;		/* key map column of each */
	int			nrest;			/* key map columns that are not in the index */
	int		   *rest;
} IndexPlan;

/* an attempt */
typedef struct IndexState
{
	MigrateRowState row;
	Snapshot	snapshot;
	Relation	index;
	IndexScanDesc scan;
	ScanKeyData *keys;
	TupleTableSlot *old;
	TupleTableSlot *new;
	bool		may_update;		/* replica identity has been looked at */
	bool		may_delete;

	/* rows to insert */
	BulkInsertState bistate;
	MemoryContext flush_cxt;
	TupleTableSlot *slots[MAX_BUFFERED_TUPLES];
	int			nslots;			/* made */
	int			nused;
	Size		bytes;
	int64		written;

	/* to read back (verify.c), in "attempt" */
	Tuplestorestate *given;		/* rows, of map->outdesc */
	Tuplestorestate *gone;		/* keys, of map->keysdesc; NULL: none */
	TupleTableSlot *give;		/* as a row of given */
} IndexState;

/* ----------------------------------------------------------------
 * may it be used, and which index
 * ----------------------------------------------------------------
 */

/* Would any trigger see what is written?  P13: in replica role only some do. */
static bool
triggers_fire(MigrateWriter *writer)
{
	TriggerDesc *desc = writer->rel->trigdesc;

	for (int i = 0; desc && i < desc->numtriggers; i++)
	{
		char		enabled = desc->triggers[i].tgenabled;

		if (TRIGGER_FOR_TRUNCATE(desc->triggers[i].tgtype) &&
			!TRIGGER_FOR_INSERT(desc->triggers[i].tgtype) &&
			!TRIGGER_FOR_UPDATE(desc->triggers[i].tgtype) &&
			!TRIGGER_FOR_DELETE(desc->triggers[i].tgtype))
			continue;
		if (enabled == TRIGGER_FIRES_ALWAYS ||
			enabled == (writer->replica ? TRIGGER_FIRES_ON_REPLICA : TRIGGER_FIRES_ON_ORIGIN))
			return true;
	}
	return false;
}

/* The key map's column of a target attribute, or -1. */
static int
key_of_attribute(MigrateMapping *map, AttrNumber attnum)
{
	for (int k = 0; k < map->nkeys; k++)
		if (map->key_attnums[k] == attnum)
			return k;
	return -1;
}

/*
 * How column i of an index is compared with key k: the operator that is also
 * the type's own equality, under the column's own collation; InvalidOid when
 * the index means something else by equal.
 */
static Oid
index_equality(MigrateWriter *writer, Relation index, int i, int k)
{
	MigrateWriterKey *key = &writer->keys[k];
	Oid			opcintype = index->rd_opcintype[i];
	Oid			operator = get_opfamily_member(index->rd_opfamily[i], opcintype,
											   opcintype, BTEqualStrategyNumber);
	TypeCacheEntry *type = lookup_type_cache(key->type, TYPECACHE_EQ_OPR);

	if (!OidIsValid(operator) || operator != type->eq_opr ||
		index->rd_indcollation[i] != key->collation)
		return InvalidOid;
	return get_opcode(operator);
}

/* Can a scan of now rely on the index? */
static bool
index_usable(Relation index)
{
	Form_pg_index form = index->rd_index;

	if (index->rd_rel->relam != BTREE_AM_OID || !form->indisvalid ||
		!form->indisready || !form->indislive ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL))
		return false;
	/* as the planner: rows changed while it was built may be missing for us */
	return !form->indcheckxmin ||
		TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data),
							  TransactionXmin);
}

/*
 * A plan to find rows by this index; NULL when it does not serve the key map.
 */
static IndexPlan *
plan_with_index(MigrateWriter *writer, Relation index)
{
	MigrateMapping *map = writer->map;
	int			nkeyatts = index->rd_index->indnkeyatts;
	IndexPlan  *plan = palloc0(sizeof(IndexPlan));
	Bitmapset  *used = NULL;

	plan->index = RelationGetRelid(index);
	plan->scan = palloc0(sizeof(ScanKeyData) * nkeyatts);
	plan->scan_key = palloc0(sizeof(int) * nkeyatts);
	plan->rest = palloc0(sizeof(int) * map->nkeys);
	for (int i = 0; i < nkeyatts; i++)
	{
		AttrNumber	attnum = index->rd_index->indkey.values[i];
		int			k = attnum > 0 ? key_of_attribute(map, attnum) : -1;
		Oid			equality = k < 0 ? InvalidOid : index_equality(writer, index, i, k);

		if (!OidIsValid(equality))
			break;
		ScanKeyEntryInitialize(&plan->scan[i], 0, i + 1, BTEqualStrategyNumber,
							   index->rd_opcintype[i], index->rd_indcollation[i],
							   equality, (Datum) 0);
		plan->scan_key[i] = k;
		plan->nscan++;
		used = bms_add_member(used, k);
	}
	for (int k = 0; k < map->nkeys; k++)
		if (!bms_is_member(k, used))
		{
			if (!OidIsValid(writer->keys[k].equal.fn_oid))
				return NULL;
			plan->rest[plan->nrest++] = k;
		}
	plan->one_row = plan->nscan == nkeyatts && index->rd_index->indisunique &&
		index->rd_index->indimmediate;
	return plan->one_row || plan->nrest == 0 ? plan : NULL;
}

/* The best index for the key map. */
static IndexPlan *
choose_index(MigrateWriter *writer)
{
	List	   *indexes = RelationGetIndexList(writer->rel);
	IndexPlan  *best = NULL;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		IndexPlan  *plan = index_usable(index) ? plan_with_index(writer, index) : NULL;

		index_close(index, NoLock);
		if (plan && (best == NULL || (plan->one_row && !best->one_row)))
			best = plan;
	}
	list_free(indexes);
	return best;
}

/* Does any index find rows by the key map, whatever writes them? */
bool
migrate_index_serves(MigrateWriter *writer)
{
	char		relkind = writer->rel->rd_rel->relkind;

	return writer->map->nkeys > 0 &&
		(relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE) &&
		choose_index(writer) != NULL;
}

/*
 * Whether this way serves the writer's target; prepares it if so.
 */
bool
migrate_index_possible(MigrateWriter *writer)
{
	Relation	rel = writer->rel;
	AclMode		needed = ACL_SELECT | ACL_INSERT | ACL_UPDATE | ACL_DELETE;

	if (rel->rd_rel->relkind != RELKIND_RELATION ||
		writer->map->nkeys == 0 ||
		rel->rd_rules != NULL ||
		triggers_fire(writer) ||
		check_enable_rls(RelationGetRelid(rel), InvalidOid, true) != RLS_NONE ||
		pg_class_aclmask(RelationGetRelid(rel), GetUserId(), needed,
						 ACLMASK_ALL) != needed ||
		(rel->rd_rel->relhassubclass &&
		 !migrate_target_is_only(RelationGetRelid(rel), writer->src->only_parent)))
		return false;
	writer->index = choose_index(writer);
	if (writer->index == NULL)
		return false;
	writer->row = migrate_row_plan(writer);
	if (writer->row == NULL)
		return false;
	writer->as_set = writer->map->many && !writer->index->one_row;
	return true;
}

/* ----------------------------------------------------------------
 * an attempt
 * ----------------------------------------------------------------
 */
static void
index_begin(MigrateWriter *writer)
{
	IndexPlan  *plan = writer->index;
	IndexState *state = palloc0(sizeof(IndexState));

	writer->state = state;
	migrate_row_begin(writer, &state->row);
	ExecOpenIndices(state->row.rri, false);
	state->snapshot = GetActiveSnapshot();
	state->index = index_open(plan->index, RowExclusiveLock);
	state->scan = migrate_index_beginscan(writer->rel, state->index, state->snapshot,
										  plan->nscan);
	state->keys = palloc(sizeof(ScanKeyData) * plan->nscan);
	memcpy(state->keys, plan->scan, sizeof(ScanKeyData) * plan->nscan);
	for (int i = 0; i < plan->nscan; i++)
		state->keys[i].sk_func.fn_mcxt = writer->attempt;
	state->old = table_slot_create(writer->rel, NULL);
	state->new = table_slot_create(writer->rel, NULL);
	state->flush_cxt = AllocSetContextCreate(writer->attempt, "migrate flush",
											 ALLOCSET_DEFAULT_SIZES);
	if (writer->verify)
	{
		state->given = tuplestore_begin_heap(false, false, work_mem);
		state->give = MakeSingleTupleTableSlot(writer->map->outdesc, &TTSOpsVirtual);
	}
}

/* The number of a row in the set, from the ordinal in a slot's last column. */
static int64
row_number(MigrateWriter *writer, TupleTableSlot *slot)
{
	int64		ord = DatumGetInt64(slot->tts_values[slot->tts_tupleDescriptor->natts - 1]);

	return writer->ids ? writer->ids[ord] : ord;
}

/*
 * Look for the rows of a key: false when it holds a null, to which nothing is
 * equal.
 */
static bool
find_begin(MigrateWriter *writer, const Datum *key, const bool *key_null)
{
	IndexPlan  *plan = writer->index;
	IndexState *state = writer->state;
	MemoryContext old;

	for (int k = 0; k < writer->map->nkeys; k++)
		if (key_null[k])
			return false;
	for (int i = 0; i < plan->nscan; i++)
		state->keys[i].sk_argument = key[plan->scan_key[i]];
	old = MemoryContextSwitchTo(writer->attempt);
	index_rescan(state->scan, state->keys, plan->nscan, NULL, 0);
	MemoryContextSwitchTo(old);
	return true;
}

/* Is the row in state->old, which the index gave, one of the key and ours? */
static bool
is_wanted(MigrateWriter *writer, const Datum *key)
{
	IndexPlan  *plan = writer->index;
	IndexState *state = writer->state;

	for (int i = 0; i < plan->nrest; i++)
	{
		MigrateWriterKey *column = &writer->keys[plan->rest[i]];
		bool		isnull;
		Datum		value = slot_getattr(state->old,
										 writer->map->key_attnums[plan->rest[i]], &isnull);

		if (isnull || !DatumGetBool(FunctionCall2Coll(&column->equal, column->collation,
													  value, key[plan->rest[i]])))
			return false;
	}
	return migrate_row_is_owned(&state->row, state->old);
}

/*
 * The scan's next row.  What the scan allocates (as a btree its list of dead
 * items) must live as long as it does, and we may be in a row's memory.
 */
static bool
scan_next(MigrateWriter *writer)
{
	IndexState *state = writer->state;
	MemoryContext old = MemoryContextSwitchTo(writer->attempt);
	bool		found = index_getnext_slot(state->scan, ForwardScanDirection, state->old);

	MemoryContextSwitchTo(old);
	return found;
}

/* The next row of the key, into state->old. */
static bool
find_next(MigrateWriter *writer, const Datum *key)
{
	IndexState *state = writer->state;

	while (scan_next(writer))
		if (is_wanted(writer, key))
			return true;
	ExecClearTuple(state->old);
	return false;
}

/* A row that was found was changed by somebody else before we came to it. */
static void
check_result(MigrateWriter *writer, TM_Result result)
{
	if (result == TM_Ok)
		return;
	if (result != TM_Updated && result != TM_Deleted)
		elog(ERROR, "row of %s cannot be changed: result %d",
			 writer->map->target_name, (int) result);
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("row of %s was changed by another session at the same time",
					writer->map->target_name),
			 errhint("While a job follows its source live, nobody else should write to its targets.")));
}

/*
 * Deferrable keys: rows that may be equal in such an index.  Core leaves the
 * decision to a trigger at the end; ours is now.
 */
static void
check_deferred(MigrateWriter *writer, List *indexes)
{
	if (likely(indexes == NIL))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("duplicate key value violates unique constraint \"%s\"",
					get_rel_name(linitial_oid(indexes))),
			 errdetail("The constraint is deferrable, and checked at once for rows that are moved."),
			 errtableconstraint(writer->rel, get_rel_name(linitial_oid(indexes)))));
}

/* Insert what was gathered. */
static void
index_flush(MigrateWriter *writer)
{
	IndexState *state = writer->state;
	MemoryContext old;

	if (state->nused == 0)
		return;
	if (state->nused > 1 && state->bistate == NULL)
	{
		old = MemoryContextSwitchTo(writer->attempt);
		state->bistate = GetBulkInsertState();
		MemoryContextSwitchTo(old);

		/*
		 * Without the ring of buffers that core's bulk loads go through: what
		 * is inserted now is often changed next, and its indexes are in the
		 * buffers anyway.
		 */
		FreeAccessStrategy(state->bistate->strategy);
		state->bistate->strategy = NULL;
	}
	/* table_multi_insert may leak */
	old = MemoryContextSwitchTo(state->flush_cxt);
	table_multi_insert(writer->rel, state->slots, state->nused,
					   GetCurrentCommandId(true), 0, state->bistate);
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->flush_cxt);
	for (int i = 0; i < state->nused; i++)
	{
		ResetPerTupleExprContext(state->row.estate);
		if (state->row.rri->ri_NumIndices > 0)
			check_deferred(writer, migrate_insert_index_tuples(state->row.rri, state->slots[i],
															   state->row.estate));
		ExecClearTuple(state->slots[i]);
	}
	state->nused = 0;
	state->bytes = 0;
}

/* Put mapped values over those of a row, but unknown ones.  True: it differs. */
static bool
overlay(MigrateWriter *writer, TupleTableSlot *row, TupleTableSlot *mapped,
		Bitmapset *unknown)
{
	MigrateMapping *map = writer->map;
	TupleDesc	desc = row->tts_tupleDescriptor;
	bool		differs = false;

	for (int i = 0; i < map->ncolumns; i++)
	{
		int			a = map->attnums[i] - 1;
		Form_pg_attribute att = TupleDescAttr(desc, a);

		if (unknown && bms_is_member(map->projection[i], unknown))
			continue;
		/* an equal value stays as it is stored, out of line or compressed */
		if (mapped->tts_isnull[i] == row->tts_isnull[a] &&
			(mapped->tts_isnull[i] ||
			 datum_image_eq(mapped->tts_values[i], row->tts_values[a],
							att->attbyval, att->attlen)))
			continue;
		row->tts_values[a] = mapped->tts_values[i];
		row->tts_isnull[a] = mapped->tts_isnull[i];
		differs = true;
	}
	return differs;
}

/* All columns of a stored row into a slot, whose values live as long as the row. */
static void
spread(TupleTableSlot *slot, const Datum *values, const bool *nulls)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;

	ExecClearTuple(slot);
	memcpy(slot->tts_values, values, sizeof(Datum) * desc->natts);
	memcpy(slot->tts_isnull, nulls, sizeof(bool) * desc->natts);
	for (int a = 0; a < desc->natts; a++)
		if (TupleDescAttr(desc, a)->attisdropped)
			slot->tts_isnull[a] = true;
}

/* ----------------------------------------------------------------
 * read back (verify.c)
 * ----------------------------------------------------------------
 */

/*
 * Keep a mapped row, which is to be there afterwards; columns whose value is
 * not known as they are in "row".
 */
static void
give_row(MigrateWriter *writer, TupleTableSlot *mapped, Bitmapset *unknown,
		 TupleTableSlot *row)
{
	IndexState *state = writer->state;
	MigrateMapping *map = writer->map;
	TupleTableSlot *give = state->give;

	for (int k = 0; k < map->nkeys; k++)
		if (mapped->tts_isnull[map->ncolumns + k])
			return;
	ExecClearTuple(give);
	memcpy(give->tts_values, mapped->tts_values, sizeof(Datum) * map->outdesc->natts);
	memcpy(give->tts_isnull, mapped->tts_isnull, sizeof(bool) * map->outdesc->natts);
	for (int i = 0; unknown && i < map->ncolumns; i++)
		if (bms_is_member(map->projection[i], unknown))
			give->tts_values[i] = slot_getattr(row, map->attnums[i], &give->tts_isnull[i]);
	ExecStoreVirtualTuple(give);
	migrate_verify_given(writer, give, NULL);
	tuplestore_puttupleslot(state->given, give);
}

static void
given_rows(MigrateWriter *writer, MigrateVerifySink sink, void *arg)
{
	migrate_verify_store(((IndexState *) writer->state)->given, writer->map->outdesc,
						 sink, arg);
}

/* The rows of a key, in the slot from attribute "first" on (from 0). */
static void
find_rows(MigrateWriter *writer, TupleTableSlot *slot, int first,
		  MigrateVerifySink sink, void *arg)
{
	IndexState *state = writer->state;
	const Datum *key = slot->tts_values + first;
	MemoryContext old;

	ResetPerTupleExprContext(state->row.estate);
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(state->row.estate));
	if (find_begin(writer, key, slot->tts_isnull + first))
		while (find_next(writer, key))
		{
			MemoryContextSwitchTo(old);
			sink(arg, state->old, writer->map->attnums);
			MemoryContextSwitchTo(GetPerTupleMemoryContext(state->row.estate));
		}
	MemoryContextSwitchTo(old);
}

/* The rows of every key in a store, of a source row's keys once. */
static void
find_all(MigrateWriter *writer, Tuplestorestate *store, TupleDesc desc,
		 MigrateVerifySink sink, void *arg)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	int			ord = desc->natts - 1;
	Bitmapset  *seen = NULL;

	tuplestore_rescan(store);
	while (tuplestore_gettupleslot(store, true, false, slot))
	{
		slot_getallattrs(slot);
		if (writer->as_set)
		{
			int			n = (int) DatumGetInt64(slot->tts_values[ord]);

			if (bms_is_member(n, seen))
				continue;
			seen = bms_add_member(seen, n);
		}
		find_rows(writer, slot, ord - writer->map->nkeys, sink, arg);
	}
	bms_free(seen);
	ExecDropSingleTupleTableSlot(slot);
}

/* A set's keys were all removed first, also those that have no row now. */
static void
found_rows(MigrateWriter *writer, MigrateVerifySink sink, void *arg)
{
	IndexState *state = writer->state;

	if (writer->as_set && state->gone)
		find_all(writer, state->gone, writer->map->keysdesc, sink, arg);
	else
		find_all(writer, state->given, writer->map->outdesc, sink, arg);
}

static void
check_gone(void *arg, TupleTableSlot *slot, const AttrNumber *attnums)
{
	migrate_verify_gone(arg, slot, attnums, given_rows);
}

/* All is written: look for it as the next change of these keys would. */
static void
verify_rows(MigrateWriter *writer)
{
	IndexState *state = writer->state;

	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	index_endscan(state->scan);
	state->scan = migrate_index_beginscan(writer->rel, state->index, GetActiveSnapshot(),
										  writer->index->nscan);
	migrate_verify_found(writer, given_rows, found_rows);
	if (state->gone && !writer->as_set)
		find_all(writer, state->gone, writer->map->keysdesc, check_gone, writer);
	ExecClearTuple(state->old);
	PopActiveSnapshot();
	tuplestore_end(state->given);
	if (state->gone)
		tuplestore_end(state->gone);
	ExecDropSingleTupleTableSlot(state->give);
}

/* ----------------------------------------------------------------
 * a row
 * ----------------------------------------------------------------
 */

/* The row in state->old becomes the mapped one, in place. */
static void
update_row(MigrateWriter *writer, TupleTableSlot *mapped, Bitmapset *unknown)
{
	IndexState *state = writer->state;
	MigrateUpdateIndexes which;
	LockTupleMode lockmode;
	TM_FailureData failure;

	slot_getallattrs(state->old);
	if (writer->verify)
		give_row(writer, mapped, unknown, state->old);
	spread(state->new, state->old->tts_values, state->old->tts_isnull);
	if (!overlay(writer, state->new, mapped, unknown))
		return;
	ExecStoreVirtualTuple(state->new);
	migrate_row_check(writer, &state->row, state->new);
	if (!state->may_update)
		CheckCmdReplicaIdentity(writer->rel, CMD_UPDATE);
	state->may_update = true;
	ExecMaterializeSlot(state->new);
	check_result(writer,
				 table_tuple_update(writer->rel, &state->old->tts_tid, state->new,
									GetCurrentCommandId(true), state->snapshot,
									InvalidSnapshot, true, &failure, &lockmode, &which));
	if (state->row.rri->ri_NumIndices > 0 && migrate_update_indexes_any(which))
		check_deferred(writer, migrate_update_index_tuples(state->row.rri, state->new,
														   state->row.estate, which));
	state->written++;
}

/*
 * The mapped row is not there.  In a set that is written anew it goes on from
 * the row that was taken, if one was.
 */
static void
insert_row(MigrateWriter *writer, TupleTableSlot *mapped, Bitmapset *unknown)
{
	IndexState *state = writer->state;
	HeapTuple	taken = writer->anew && !writer->as_set ?
	writer->taken[row_number(writer, mapped)] : NULL;
	TupleTableSlot *slot;
	MemoryContext old;

	if (unknown && taken == NULL)
	{
		writer->missing[row_number(writer, mapped) / 8] |= 1 << (row_number(writer, mapped) % 8);
		writer->nmissing++;
		return;
	}
	if (state->nused == state->nslots)
	{
		old = MemoryContextSwitchTo(writer->attempt);
		state->slots[state->nslots++] = table_slot_create(writer->rel, NULL);
		MemoryContextSwitchTo(old);
	}
	slot = state->slots[state->nused];
	if (taken)
	{
		heap_deform_tuple(taken, RelationGetDescr(writer->rel), state->new->tts_values,
						  state->new->tts_isnull);
		spread(slot, state->new->tts_values, state->new->tts_isnull);
		(void) overlay(writer, slot, mapped, unknown);
		ExecStoreVirtualTuple(slot);
	}
	else
		migrate_row_fill(writer, &state->row, slot, mapped);
	migrate_row_check(writer, &state->row, slot);
	if (writer->verify)
		give_row(writer, mapped, unknown, slot);
	state->bytes += heap_compute_data_size(slot->tts_tupleDescriptor, slot->tts_values,
										   slot->tts_isnull);
	/* the values are of this row's memory, the slot lives longer */
	ExecMaterializeSlot(slot);
	state->nused++;
	state->written++;
	if (state->nused == MAX_BUFFERED_TUPLES || state->bytes > MAX_BUFFERED_BYTES)
		index_flush(writer);
}

/* Where the index may find more than one row, the key map must not. */
static void
refuse_second(MigrateWriter *writer, const Datum *key)
{
	if (!writer->index->one_row && find_next(writer, key))
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("key map finds more than one row of %s for a source row",
						writer->map->target_name),
				 errhint("The key must be unique in the target.")));
}

static void
index_put(MigrateWriter *writer, TupleTableSlot *mapped)
{
	IndexState *state = writer->state;
	const Datum *key = mapped->tts_values + writer->map->ncolumns;
	Bitmapset  *unknown = writer->unknown ? writer->unknown[row_number(writer, mapped)] : NULL;

	MemoryContext old;

	ResetPerTupleExprContext(state->row.estate);
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(state->row.estate));
	if (writer->anew || writer->as_set ||
		!find_begin(writer, key, mapped->tts_isnull + writer->map->ncolumns) ||
		!find_next(writer, key))
		insert_row(writer, mapped, unknown);
	else
	{
		update_row(writer, mapped, unknown);
		refuse_second(writer, key);
	}
	MemoryContextSwitchTo(old);
}

/* Delete the row in state->old. */
static void
delete_row(MigrateWriter *writer, int64 number)
{
	IndexState *state = writer->state;
	TM_FailureData failure;

	if (!state->may_delete)
		CheckCmdReplicaIdentity(writer->rel, CMD_DELETE);
	state->may_delete = true;
	if (writer->taken && writer->taken[number] == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(writer->taken));

		writer->taken[number] = ExecCopySlotHeapTuple(state->old);
		MemoryContextSwitchTo(old);
	}
	check_result(writer,
				 table_tuple_delete(writer->rel, &state->old->tts_tid,
									GetCurrentCommandId(true), state->snapshot,
									InvalidSnapshot, true, &failure, false));
	writer->removed++;
}

static void
index_remove(MigrateWriter *writer, TupleTableSlot *keys)
{
	IndexState *state = writer->state;
	int64		number = row_number(writer, keys);

	if (writer->verify && state->gone == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(writer->attempt);

		state->gone = tuplestore_begin_heap(false, false, work_mem);
		MemoryContextSwitchTo(old);
	}
	if (writer->verify)
		tuplestore_puttupleslot(state->gone, keys);
	ResetPerTupleExprContext(state->row.estate);
	if (!find_begin(writer, keys->tts_values, keys->tts_isnull))
		return;
	while (find_next(writer, keys->tts_values))
	{
		delete_row(writer, number);
		if (writer->index->one_row)
			break;
	}
}

static int64
index_finish(MigrateWriter *writer)
{
	IndexState *state = writer->state;

	index_flush(writer);
	if (writer->verify)
		verify_rows(writer);
	index_endscan(state->scan);
	index_close(state->index, NoLock);
	if (state->bistate)
	{
		table_finish_bulk_insert(writer->rel, 0);
		FreeBulkInsertState(state->bistate);
	}
	for (int i = 0; i < state->nslots; i++)
		ExecDropSingleTupleTableSlot(state->slots[i]);
	ExecDropSingleTupleTableSlot(state->old);
	ExecDropSingleTupleTableSlot(state->new);
	ExecCloseIndices(state->row.rri);
	FreeExecutorState(state->row.estate);
	return state->written;
}

const MigrateWriterWay migrate_writer_index = {
	.name = "index",
	.begin = index_begin,
	.put = index_put,
	.remove = index_remove,
	.finish = index_finish,
};
