/*-------------------------------------------------------------------------
 *
 * apply_bag.c
 *	  Changes of a source table without a key: whole rows, each as often as it
 *	  came or went.
 *
 * What came is inserted.  What went is mapped, and rows of the target that have
 * the same image in the mapped columns are deleted, as many as went: the
 * table is read once a call, whatever it holds, since no index tells equal
 * rows apart.  (Images and not equality: of 1.0 and 1.00 the right one goes.)
 * Which of several equal rows goes does not matter, but for columns that are
 * not mapped.
 *
 * A row that went and is not there may be one that failed when it came: then its
 * dead letter is superseded.  Others are counted and told by an event; before
 * the consistent position that can be right, since a chunk's snapshot may
 * contain a later state (P16).
 *
 * Process: apply worker, holding the writer lock.  Locks: as the writers'.  A
 * crash leaves nothing: all is in the caller's transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/apply_set.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

/* an image that is wanted, chained by its hash */
typedef struct WantedRow
{
	struct WantedRow *next;
	HeapTuple	tuple;			/* of the mapping's outdesc */
	int64		number;			/* of the source row */
	bool		found;
} WantedRow;

typedef struct WantedHash
{
	uint32		hash;
	WantedRow  *first;
} WantedHash;

typedef struct Removal
{
	MigrateApplier *applier;
	ApplyTarget *target;
	MigrateBatch *rows;
	MemoryContext mcxt;
	HTAB	   *wanted;
	List	   *list;			/* of WantedRow, all of them */
	int64		left;			/* not found yet */
	const int64 *ids;			/* of the part that is mapped */
} Removal;

/* ----------------------------------------------------------------
 * the images that are wanted
 * ----------------------------------------------------------------
 */

/* Of values in the order of the mapping's columns. */
static uint32
image_hash(Removal *removal, const Datum *values, const bool *nulls)
{
	TupleDesc	desc = removal->target->map->outdesc;
	uint32		hash = 0;

	for (int i = 0; i < removal->target->map->ncolumns; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		hash = hash_combine(hash, nulls[i] ? 0 :
							datum_image_hash(values[i], att->attbyval, att->attlen));
	}
	return hash;
}

static void
want_row(TupleTableSlot *slot, void *arg)
{
	Removal    *removal = arg;
	MigrateMapping *map = removal->target->map;
	WantedRow  *row;
	WantedHash *entry;
	MemoryContext old;
	uint32		hash;
	bool		found;

	slot_getallattrs(slot);
	hash = image_hash(removal, slot->tts_values, slot->tts_isnull);
	old = MemoryContextSwitchTo(removal->mcxt);
	row = palloc0(sizeof(WantedRow));
	row->tuple = ExecCopySlotHeapTuple(slot);
	row->number = removal->ids[DatumGetInt64(slot->tts_values[map->ncolumns + map->nkeys])];
	entry = hash_search(removal->wanted, &hash, HASH_ENTER, &found);
	row->next = found ? entry->first : NULL;
	entry->first = row;
	removal->list = lappend(removal->list, row);
	removal->left++;
	MemoryContextSwitchTo(old);
}

/* Map rows, in a subtransaction; the error if one fails. */
static ErrorData *
try_map(Removal *removal, MigrateBatch *batch)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		migrate_mapping_run(removal->target->map, batch, want_row, removal);
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
	return edata;
}

/*
 * The images of all rows.  One that the mapping refuses was refused when it
 * came: it has a letter and no image.
 */
static void
map_wanted(Removal *removal, MigrateBatch *batch, const int64 *ids)
{
	List	   *before = list_copy(removal->list);
	int64		bounds[] = {0, batch->nrows / 2, batch->nrows};
	ErrorData  *edata;

	if (batch->nrows == 0)
		return;
	removal->ids = ids;
	edata = try_map(removal, batch);
	if (edata == NULL)
		return;
	if (!migrate_error_is_of_row(edata->sqlerrcode))
		ReThrowError(edata);

	/* what the failed attempt gave is not wanted; it is mapped again */
	for (int i = list_length(before); i < list_length(removal->list); i++)
		((WantedRow *) list_nth(removal->list, i))->found = true;
	removal->left -= list_length(removal->list) - list_length(before);
	removal->list = before;
	if (batch->nrows == 1)
	{
		WantedRow  *row = palloc0(sizeof(WantedRow));

		row->number = ids[0];
		removal->list = lappend(removal->list, row);
		return;
	}
	for (int half = 0; half < 2; half++)
	{
		MigrateBatch *part = migrate_batch_slice(batch, bounds[half], bounds[half + 1]);

		map_wanted(removal, part, ids + bounds[half]);
		migrate_batch_free(part);
	}
}

/* ----------------------------------------------------------------
 * finding and deleting them
 * ----------------------------------------------------------------
 */

/* Is the wanted row still wanted, and this its image? */
static bool
same_image(Removal *removal, WantedRow *row, const Datum *values, const bool *nulls)
{
	TupleDesc	desc = removal->target->map->outdesc;

	if (row->found)
		return false;
	for (int i = 0; i < removal->target->map->ncolumns; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		bool		isnull;
		Datum		value = heap_getattr(row->tuple, i + 1, desc, &isnull);

		if (isnull != nulls[i] ||
			(!isnull && !datum_image_eq(value, values[i], att->attbyval, att->attlen)))
			return false;
	}
	return true;
}

/* Is a row of the target wanted?  Then it is so no more. */
static bool
take_wanted(Removal *removal, const Datum *values, const bool *nulls)
{
	uint32		hash = image_hash(removal, values, nulls);
	WantedHash *entry = hash_search(removal->wanted, &hash, HASH_FIND, NULL);

	for (WantedRow *row = entry ? entry->first : NULL; row; row = row->next)
		if (same_image(removal, row, values, nulls))
		{
			row->found = true;
			removal->left--;
			return true;
		}
	return false;
}

/* The attribute numbers of the mapped columns in a partition. */
static AttrNumber *
leaf_attributes(MigrateMapping *map, Relation leaf)
{
	AttrNumber *attnums = palloc(sizeof(AttrNumber) * Max(map->ncolumns, 1));

	for (int i = 0; i < map->ncolumns; i++)
		attnums[i] = RelationGetRelid(leaf) == map->target ? map->attnums[i] :
			get_attnum(RelationGetRelid(leaf), map->columns[i]);
	return attnums;
}

/* The places of the wanted rows in one table, as tid[]; 0 for none. */
static Datum
find_in_leaf(Removal *removal, Relation leaf)
{
	MigrateMapping *map = removal->target->map;
	AttrNumber *attnums = leaf_attributes(map, leaf);
	Datum	   *values = palloc(sizeof(Datum) * Max(map->ncolumns, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(map->ncolumns, 1));
	TupleTableSlot *slot = table_slot_create(leaf, NULL);
	TableScanDesc scan = table_beginscan(leaf, GetActiveSnapshot(), 0, NULL);
	ArrayBuildState *places = NULL;
	MemoryContext turn = AllocSetContextCreate(CurrentMemoryContext, "migrate bag row",
											   ALLOCSET_DEFAULT_SIZES);

	while (removal->left > 0 && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext old = MemoryContextSwitchTo(turn);
		bool		wanted;

		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < map->ncolumns; i++)
			values[i] = slot_getattr(slot, attnums[i], &nulls[i]);
		wanted = take_wanted(removal, values, nulls);
		MemoryContextSwitchTo(old);
		MemoryContextReset(turn);
		if (wanted)
			places = accumArrayResult(places, PointerGetDatum(&slot->tts_tid), false,
									  TIDOID, CurrentMemoryContext);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(turn);
	return places ? makeArrayResult(places, CurrentMemoryContext) : (Datum) 0;
}

/*
 * By a statement, which minds triggers and privileges; by place, so that no
 * row is looked for again.
 */
static int64
delete_places(Removal *removal, Relation leaf, Datum places)
{
	MigrateWriter *writer = removal->target->writer;
	Oid			types[] = {TIDARRAYOID};
	Datum		values[] = {places};
	int			level = NewGUCNestLevel();
	int64		n;
	char	   *sql = psprintf("DELETE FROM ONLY %s WHERE ctid = ANY ($1)",
							   quote_qualified_identifier(get_namespace_name(RelationGetNamespace(leaf)),
														  RelationGetRelationName(leaf)));

	/* P13 */
	if (writer->replica)
		(void) set_config_option("session_replication_role", "replica", PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	migrate_spi_exec(sql, 1, types, values, NULL, SPI_OK_DELETE);
	n = SPI_processed;
	SPI_finish();
	AtEOXact_GUC(true, level);
	return n;
}

/* All tables that hold rows of the target. */
static List *
leaves_of(Removal *removal)
{
	MigrateWriter *writer = removal->target->writer;
	Oid			target = removal->target->map->target;

	if (writer->rel->rd_rel->relkind != RELKIND_RELATION &&
		writer->rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("deletes of source table %s, which has no key, cannot be applied to %s",
						removal->applier->src->label, removal->target->map->target_name),
				 errdetail("It is neither a table nor a partitioned table."),
				 errhint("Give the source table a primary key.")));
	if (migrate_target_is_only(target, removal->applier->src->only_parent))
		return list_make1_oid(target);
	return find_all_inheritors(target, RowExclusiveLock, NULL);
}

static int64
delete_wanted(Removal *removal)
{
	ListCell   *lc;
	int64		deleted = 0;

	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, leaves_of(removal))
	{
		Relation	leaf = table_open(lfirst_oid(lc), RowExclusiveLock);
		Datum		places = 0;

		if (leaf->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("deletes of source table %s, which has no key, cannot be applied to foreign table \"%s\"",
							removal->applier->src->label, RelationGetRelationName(leaf)),
					 errhint("Give the source table a primary key.")));
		if (leaf->rd_rel->relkind == RELKIND_RELATION && removal->left > 0)
			places = find_in_leaf(removal, leaf);
		if (places)
			deleted += delete_places(removal, leaf, places);
		table_close(leaf, NoLock);
	}
	PopActiveSnapshot();
	return deleted;
}

/* ----------------------------------------------------------------
 * what was not there
 * ----------------------------------------------------------------
 */

/* The oldest open letter of the same row, if there is one. */
static bool
supersede_row(Removal *removal, int64 number)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[2] = {Int32GetDatum(removal->target->map->mapping_id)};
	char	   *row;
	char	   *key;
	bool		found;

	migrate_batch_row_json(removal->rows, number, &row, &key);
	if (row == NULL)
		return false;
	values[1] = CStringGetTextDatum(row);
	SPI_connect();
	migrate_spi_exec("UPDATE migrate.dead_letter SET state = 'superseded', updated_at = now()"
					 " WHERE id = (SELECT d.id FROM migrate.dead_letter d WHERE d.mapping_id = $1"
					 " AND d.state = 'open' AND d.source_row = $2::jsonb ORDER BY d.id LIMIT 1)",
					 2, types, values, NULL, SPI_OK_UPDATE);
	found = SPI_processed > 0;
	SPI_finish();
	return found;
}

static void
report_missing(Removal *removal, MigrateApplyCounts *counts)
{
	int64		missing = 0;
	ListCell   *lc;

	foreach(lc, removal->list)
	{
		WantedRow  *row = lfirst(lc);

		if (row->found)
			continue;
		if (supersede_row(removal, row->number))
			counts->superseded++;
		else
			missing++;
	}
	if (missing > 0)
		migrate_event(removal->applier->job->job_id, "warning", "apply",
					  "%lld rows of %s, whose source table %s has no key, were deleted or changed but are not there",
					  (long long) missing, removal->target->map->target_name,
					  removal->applier->src->label);
}

static void
remove_rows(MigrateApplier *applier, ApplyTarget *target, MigrateBatch *rows,
			MigrateApplyCounts *counts)
{
	HASHCTL		ctl = {
		.keysize = sizeof(uint32),
		.entrysize = sizeof(WantedHash),
		.hcxt = CurrentMemoryContext,
	};
	Removal		removal = {.applier = applier,.target = target,.rows = rows,
	.mcxt = CurrentMemoryContext};
	int64	   *ids = palloc(sizeof(int64) * rows->nrows);

	for (int64 i = 0; i < rows->nrows; i++)
		ids[i] = i;
	removal.wanted = hash_create("migrate wanted rows", rows->nrows, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	map_wanted(&removal, rows, ids);
	if (removal.left > 0)
		counts->deletes += delete_wanted(&removal);
	report_missing(&removal, counts);
}

void
migrate_apply_bag(MigrateApplier *applier, MigrateApplyBag *bag,
				  MigrateApplyCounts *counts)
{
	MemoryContext caller = migrate_call_begin(applier);
	ListCell   *lc;

	foreach(lc, applier->targets)
	{
		if (bag->removed && bag->removed->nrows > 0)
			remove_rows(applier, lfirst(lc), bag->removed, counts);
		if (bag->added && bag->added->nrows > 0)
		{
			ApplySet   *set = migrate_set_new(applier, lfirst(lc), bag->added, NULL, false);

			(void) migrate_set_write(set);
			migrate_set_close(set, counts);
		}
	}
	migrate_call_end(applier, caller);
}
