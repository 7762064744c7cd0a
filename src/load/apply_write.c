/*-------------------------------------------------------------------------
 *
 * apply_write.c
 *	  Sets of changes of one source table through all of its mappings.
 *
 * A batch of changes comes as sets, one a source table: first the keys that
 * are gone, then the newest images (apply.h).  Each goes through every mapping
 * that reads the table, each mapping's in subtransactions of its own
 * (apply_set.c).
 *
 * Unchanged TOAST is not in the stream.  Where the mapping gives the columns
 * as they are and the row is in the target, the column there is left as it
 * is (P12); else the row is read from the source by its key (apply_fetch.c):
 * before anything is written, when a mapping computes with such a value or
 * its target is written by statements; afterwards, for rows that turn out not
 * to be there.
 *
 * What is compiled lasts over transactions.  It is made anew when the target,
 * the foreign table, a relation that a mapping reads, or (for mappings that
 * compute) any function has changed; invalidation messages say so, and locking
 * the target receives them.  migrate.mapping does not change while a job is
 * past its start, but with one of those.
 *
 * Process: apply worker, holding the writer lock (P14); tests.  Locks: ROW
 * EXCLUSIVE on the targets until the transaction ends.  A crash leaves
 * nothing: all is in the caller's transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/apply_set.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "refetch.h"

/* every applier of this process, for the invalidation callbacks */
static dlist_head appliers = DLIST_STATIC_INIT(appliers);
static bool callbacks_registered = false;

/* ----------------------------------------------------------------
 * what is compiled, and until when
 * ----------------------------------------------------------------
 */

/* May do little: it runs whenever messages arrive. */
static void
relation_changed(Datum arg, Oid relid)
{
	dlist_iter	iter;

	dlist_foreach(iter, &appliers)
	{
		MigrateApplier *applier = dlist_container(MigrateApplier, node, iter.cur);

		if (relid == InvalidOid || list_member_oid(applier->depends, relid))
			applier->stale = true;
	}
}

/* A function: what a mapping computes may have changed. */
static void
code_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	dlist_iter	iter;

	dlist_foreach(iter, &appliers)
	{
		MigrateApplier *applier = dlist_container(MigrateApplier, node, iter.cur);

		if (applier->has_code)
			applier->stale = true;
	}
}

/* Its memory goes, with or without migrate_applier_close(). */
static void
forget_applier(void *arg)
{
	dlist_delete(&((MigrateApplier *) arg)->node);
}

MigrateApplier *
migrate_applier_open(MigrateJob *job, MigrateSource *src)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate applier",
											   ALLOCSET_DEFAULT_SIZES);
	MigrateApplier *applier = MemoryContextAllocZero(mcxt, sizeof(MigrateApplier));
	MemoryContextCallback *callback = MemoryContextAlloc(mcxt, sizeof(MemoryContextCallback));

	if (!callbacks_registered)
	{
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(PROCOID, code_changed, (Datum) 0);
		callbacks_registered = true;
	}
	applier->mcxt = mcxt;
	applier->job = job;
	applier->src = src;
	applier->stale = true;
	applier->plans = AllocSetContextCreate(mcxt, "migrate applier plans",
										   ALLOCSET_DEFAULT_SIZES);
	dlist_push_tail(&appliers, &applier->node);
	callback->func = forget_applier;
	callback->arg = applier;
	MemoryContextRegisterResetCallback(mcxt, callback);
	migrate_applier_hold(applier);
	migrate_applier_release(applier);
	return applier;
}

void
migrate_applier_close(MigrateApplier *applier)
{
	MemoryContextDelete(applier->mcxt);
}

/*
 * A delete must find its target rows from the key alone.  With another key map
 * it could not, and the row would stay.
 */
static void
check_key_map(MigrateApplier *applier, MigrateMapping *map)
{
	MigrateSource *src = applier->src;
	Bitmapset  *key = NULL;

	for (int k = 0; k < src->nkeys; k++)
		key = bms_add_member(key, src->keys[k]);
	if (map->nkeys > 0 && bms_is_subset(map->key_reads, key))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("key map of %s cannot be used to follow changes", map->target_name),
			 errdetail(map->nkeys > 0 ? "It is computed from columns outside the key of source table %s, of which a deleted row tells no value." :
					   "It is empty, while source table %s has a key.", src->label),
			 errhint("Set \"key\" of the mapping to expressions over the source's key.")));
}

/* One mapping, compiled, with its writer. */
static void
open_target(MigrateApplier *applier, MigrateMapping *map)
{
	ApplyTarget *target = palloc0(sizeof(ApplyTarget));
	MemoryContext old;

	target->map = map;
	migrate_mapping_compile(map, applier->src);
	if (applier->src->nkeys > 0)
		check_key_map(applier, map);
	if (map->nkeys > 0)
		migrate_mapping_compile_keys(map, applier->src);
	target->writer = migrate_writer_open_sets(map, applier->src);
	applier->targets = lappend(applier->targets, target);
	old = MemoryContextSwitchTo(applier->mcxt);
	applier->depends = lappend_oid(applier->depends, map->target);
	for (int i = 0; i < list_length(map->relations); i++)
		applier->depends = lappend_oid(applier->depends, list_nth_oid(map->relations, i));
	MemoryContextSwitchTo(old);
	if (map->projection == NULL)
		applier->has_code = true;
}

/* Make everything anew; the writers' relations are open then. */
static void
compile(MigrateApplier *applier)
{
	MemoryContext old;
	List	   *mappings;
	ListCell   *lc;

	applier->targets = NIL;
	applier->has_code = false;
	applier->rank = -1;
	applier->letters_at = -1;
	MemoryContextReset(applier->plans);
	old = MemoryContextSwitchTo(applier->mcxt);
	applier->depends = list_make1_oid(applier->src->foreign_table);
	MemoryContextSwitchTo(applier->plans);

	/* from here on changes are noticed, those of while it is made included */
	applier->stale = false;
	PG_TRY();
	{
		mappings = migrate_mappings_of_source(applier->src->source_id);
		foreach(lc, mappings)
			open_target(applier, lfirst(lc));
	}
	PG_CATCH();
	{
		applier->stale = true;
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
}

/*
 * Lock the targets, and have everything as the catalogs are now.
 */
void
migrate_applier_hold(MigrateApplier *applier)
{
	ListCell   *lc;

	if (!applier->stale)
		foreach(lc, applier->targets)
			migrate_writer_hold(((ApplyTarget *) lfirst(lc))->writer);
	while (applier->stale)
	{
		foreach(lc, applier->targets)
			if (((ApplyTarget *) lfirst(lc))->writer->rel)
			migrate_writer_release(((ApplyTarget *) lfirst(lc))->writer);
		compile(applier);
	}
	migrate_letters_load(applier);
}

void
migrate_applier_release(MigrateApplier *applier)
{
	ListCell   *lc;

	foreach(lc, applier->targets)
		migrate_writer_release(((ApplyTarget *) lfirst(lc))->writer);
}

/* ----------------------------------------------------------------
 * the order of foreign keys
 * ----------------------------------------------------------------
 */

/*
 * Foreign keys between the job's targets, and those of other partitions of
 * them: (child, parent), by their roots.
 */
#define FOREIGN_KEYS \
	"SELECT DISTINCT c.child, c.parent FROM (SELECT" \
	"  coalesce(pg_catalog.pg_partition_root(k.conrelid), k.conrelid)::oid AS child," \
	"  coalesce(pg_catalog.pg_partition_root(k.confrelid), k.confrelid)::oid AS parent" \
	" FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0) c" \
	" WHERE c.child <> c.parent" \
	" AND EXISTS (SELECT FROM migrate.mapping m WHERE m.job_id = $1 AND" \
	"  coalesce(pg_catalog.pg_partition_root(m.target_oid), m.target_oid) = c.child)" \
	" AND EXISTS (SELECT FROM migrate.mapping m WHERE m.job_id = $1 AND" \
	"  coalesce(pg_catalog.pg_partition_root(m.target_oid), m.target_oid) = c.parent)"

typedef struct RankedTable
{
	Oid			oid;
	int			rank;
} RankedTable;

static RankedTable *
ranked_table(List **tables, Oid oid)
{
	RankedTable *table;
	ListCell   *lc;

	foreach(lc, *tables)
	{
		table = lfirst(lc);
		if (table->oid == oid)
			return table;
	}
	table = palloc0(sizeof(RankedTable));
	table->oid = oid;
	*tables = lappend(*tables, table);
	return table;
}

/* The longest way down to each table; a cycle ends it somewhere. */
static List *
rank_tables(int job_id)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(job_id)};
	List	   *tables = NIL;
	RankedTable **child;
	RankedTable **parent;
	bool		changed = true;
	uint64		n;

	migrate_spi_exec(FOREIGN_KEYS, 1, types, values, NULL, SPI_OK_SELECT);
	n = SPI_processed;
	child = palloc(sizeof(RankedTable *) * Max(n, 1));
	parent = palloc(sizeof(RankedTable *) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		child[i] = ranked_table(&tables, (Oid) migrate_spi_int64(i, 0, 0));
		parent[i] = ranked_table(&tables, (Oid) migrate_spi_int64(i, 1, 0));
	}
	for (int round = 0; changed && round < list_length(tables); round++)
	{
		changed = false;
		for (uint64 i = 0; i < n; i++)
			if (child[i]->rank <= parent[i]->rank && parent[i]->rank < list_length(tables))
			{
				child[i]->rank = parent[i]->rank + 1;
				changed = true;
			}
	}
	return tables;
}

static Oid
partition_root(Oid relid)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(relid)};

	migrate_spi_exec("SELECT coalesce(pg_catalog.pg_partition_root($1)::oid, $1)",
					 1, types, values, NULL, SPI_OK_SELECT);
	return (Oid) migrate_spi_int64(0, 0, relid);
}

/*
 * See apply.h.  Of several targets the one deepest below counts.
 */
int
migrate_applier_rank(MigrateApplier *applier)
{
	List	   *tables;
	ListCell   *lc;

	if (applier->rank >= 0 && !applier->stale)
		return applier->rank;
	migrate_applier_hold(applier);
	SPI_connect();
	tables = rank_tables(applier->job->job_id);
	applier->rank = 0;
	foreach(lc, applier->targets)
	{
		Oid			root = partition_root(((ApplyTarget *) lfirst(lc))->map->target);

		applier->rank = Max(applier->rank, ranked_table(&tables, root)->rank);
	}
	SPI_finish();
	migrate_applier_release(applier);
	return applier->rank;
}

/* ----------------------------------------------------------------
 * keys that are gone
 * ----------------------------------------------------------------
 */

/* Open letters of these keys, for every mapping. */
static void
supersede(MigrateApplier *applier, MigrateBatch *rows, MigrateApplyCounts *counts)
{
	ListCell   *lc;

	foreach(lc, applier->targets)
	{
		int64		n = migrate_letters_supersede(lfirst(lc), rows);

		/* what is in memory is not right any more */
		if (n > 0)
			applier->letters_at = -1;
		counts->superseded += n;
	}
}

/* Count a set that is done, and write down its letters. */
void
migrate_set_close(ApplySet *set, MigrateApplyCounts *counts)
{
	migrate_letters_insert(set);
	counts->upserts += set->written;
	counts->deletes += set->removed;
	counts->dead += list_length(set->letters);
}

static void
remove_keys(MigrateApplier *applier, MigrateBatch *keys, MigrateApplyCounts *counts)
{
	ListCell   *lc;

	if (keys->nrows == 0)
		return;
	foreach(lc, applier->targets)
	{
		ApplySet   *set = migrate_set_new(applier, lfirst(lc), keys, NULL, true);

		(void) migrate_set_write(set);
		migrate_set_close(set, counts);
	}
}

/* The memory of a call, and the targets; to be ended by migrate_call_end(). */
MemoryContext
migrate_call_begin(MigrateApplier *applier)
{
	MemoryContext mcxt;

	migrate_applier_hold(applier);
	mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate apply",
								 ALLOCSET_DEFAULT_SIZES);
	return MemoryContextSwitchTo(mcxt);
}

void
migrate_call_end(MigrateApplier *applier, MemoryContext caller)
{
	MemoryContext mcxt = MemoryContextSwitchTo(caller);

	MemoryContextDelete(mcxt);
	migrate_applier_release(applier);
}

void
migrate_apply_gone(MigrateApplier *applier, MigrateApplySet *set,
				   MigrateApplyCounts *counts)
{
	MemoryContext caller;

	if (set->gone == NULL || set->gone->nrows == 0)
		return;
	caller = migrate_call_begin(applier);
	supersede(applier, set->gone, counts);
	remove_keys(applier, set->gone, counts);
	migrate_call_end(applier, caller);
}

/* ----------------------------------------------------------------
 * images
 * ----------------------------------------------------------------
 */

/* Mappings into one target, of which a set met a conflict: all of them anew. */
static void
write_anew(List *sets, Oid target)
{
	ListCell   *lc;

	foreach(lc, sets)
	{
		ApplySet   *set = lfirst(lc);

		if (set->target->map->target == target)
			migrate_set_take(set);
	}
	foreach(lc, sets)
	{
		ApplySet   *set = lfirst(lc);

		if (set->target->map->target == target)
			(void) migrate_set_write(set);
	}
}

/* Rows through every mapping.  Returns the sets (ApplySet), not closed. */
static List *
write_rows(MigrateApplier *applier, MigrateBatch *rows, Bitmapset **unknown)
{
	List	   *sets = NIL;
	ListCell   *lc;

	foreach(lc, applier->targets)
		sets = lappend(sets, migrate_set_new(applier, lfirst(lc), rows, unknown, false));
	foreach(lc, sets)
	{
		ApplySet   *set = lfirst(lc);

		if (!set->done && !migrate_set_write(set))
			write_anew(sets, set->target->map->target);
	}
	return sets;
}

/* Rows whose unknown columns a mapping needs before it can run; NULL: none. */
static uint8 *
needed_first(MigrateApplier *applier, MigrateBatch *rows, Bitmapset **unknown)
{
	uint8	   *needed = NULL;

	for (int64 i = 0; unknown && i < rows->nrows; i++)
	{
		ListCell   *lc;

		if (unknown[i] == NULL)
			continue;
		foreach(lc, applier->targets)
		{
			ApplyTarget *target = lfirst(lc);

			if (target->map->projection && target->writer->way == &migrate_writer_index)
				continue;
			if (!bms_overlap(unknown[i], target->map->reads))
				continue;
			if (needed == NULL)
				needed = palloc0(rows->nrows / 8 + 1);
			migrate_set_bit(needed, i);
		}
	}
	return needed;
}

/* The rows whose bit is set, as a batch. */
static MigrateBatch *
rows_of(MigrateBatch *rows, const uint8 *bits)
{
	uint8	   *others = palloc0(rows->nrows / 8 + 1);
	MigrateBatch *result;

	for (int64 i = 0; i < rows->nrows; i++)
		if (!migrate_bit(bits, i))
			migrate_set_bit(others, i);
	result = migrate_batch_pick(rows, others);
	pfree(others);
	return result;
}

/* Wanted rows that were not found: they are gone. */
static void
remove_not_found(MigrateApplier *applier, MigrateBatch *rows, const uint8 *wanted,
				 const uint8 *found, MigrateApplyCounts *counts)
{
	uint8	   *gone = palloc0(rows->nrows / 8 + 1);

	for (int64 i = 0; i < rows->nrows; i++)
		if (migrate_bit(wanted, i) && !migrate_bit(found, i))
			migrate_set_bit(gone, i);
	remove_keys(applier, rows_of(rows, gone), counts);
}

/*
 * Put fetched rows in the place of those that were wanted; *unknown is what is
 * still unknown of the result.
 */
static MigrateBatch *
with_fetched(MigrateBatch *rows, Bitmapset ***unknown, const uint8 *wanted,
			 ApplyFetch *fetch)
{
	MigrateBatch *result = migrate_batch_create(rows->src);
	Bitmapset **left = MemoryContextAllocExtended(CurrentMemoryContext,
												  sizeof(Bitmapset *) * (rows->nrows + fetch->rows->nrows + 1),
												  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	TupleTableSlot *slot = migrate_batch_scan(rows);

	for (int64 i = 0; migrate_batch_next(rows, slot); i++)
	{
		if (migrate_bit(wanted, i))
			continue;
		left[result->nrows] = (*unknown)[i];
		migrate_batch_add(result, slot->tts_values, slot->tts_isnull, 0);
	}
	ExecDropSingleTupleTableSlot(slot);
	slot = migrate_batch_scan(fetch->rows);
	for (int64 i = 0; migrate_batch_next(fetch->rows, slot); i++)
		if (fetch->numbers[i] >= 0)
			migrate_batch_add(result, slot->tts_values, slot->tts_isnull, 0);
	ExecDropSingleTupleTableSlot(slot);
	*unknown = left;
	return result;
}

/* Rows that are in no target, so that nothing could be left as it is. */
static void
write_missing(MigrateApplier *applier, List *sets, MigrateBatch *rows,
			  MigrateConn *conn, MigrateApplyCounts *counts)
{
	uint8	   *wanted = palloc0(rows->nrows / 8 + 1);
	ApplyFetch	fetch;
	ListCell   *lc;

	foreach(lc, sets)
	{
		ApplySet   *set = lfirst(lc);

		for (int64 i = 0; i < rows->nrows / 8 + 1; i++)
			wanted[i] |= set->missing[i];
	}
	migrate_fetch_rows(applier, rows, wanted, conn, &fetch, counts);
	remove_not_found(applier, rows, wanted, fetch.found, counts);
	/* mappings that had all of them write the same again, or what is newer */
	foreach(lc, write_rows(applier, fetch.rows, NULL))
		migrate_set_close(lfirst(lc), counts);
}

void
migrate_apply_images(MigrateApplier *applier, MigrateApplySet *set,
					 MigrateConnFn conn, void *conn_arg, MigrateApplyCounts *counts)
{
	MigrateBatch *rows = set->images;
	Bitmapset **unknown = set->unknown;
	MemoryContext caller;
	uint8	   *needed;
	List	   *sets;
	int64		nmissing = 0;
	ListCell   *lc;

	if (rows == NULL || rows->nrows == 0)
		return;
	caller = migrate_call_begin(applier);
	supersede(applier, rows, counts);
	needed = needed_first(applier, rows, unknown);
	if (needed)
	{
		ApplyFetch	fetch;

		migrate_fetch_rows(applier, rows, needed, conn(conn_arg), &fetch, counts);
		remove_not_found(applier, rows, needed, fetch.found, counts);
		rows = with_fetched(rows, &unknown, needed, &fetch);
	}
	sets = write_rows(applier, rows, unknown);
	foreach(lc, sets)
	{
		migrate_set_close(lfirst(lc), counts);
		nmissing += ((ApplySet *) lfirst(lc))->nmissing;
	}
	if (nmissing > 0)
		write_missing(applier, sets, rows, conn(conn_arg), counts);
	migrate_call_end(applier, caller);
}

/* ----------------------------------------------------------------
 * a row that cannot be read
 * ----------------------------------------------------------------
 */
void
migrate_apply_unreadable(MigrateApplier *applier, const char *key, const char *raw,
						 ErrorData *edata)
{
	bool		held = applier->targets != NIL &&
	((ApplyTarget *) linitial(applier->targets))->writer->rel != NULL;
	MigrateApplyCounts counts = {0};
	MemoryContext caller = NULL;
	MigrateBatch *row;
	ListCell   *lc;

	/* also called from within migrate_apply_images */
	if (!held)
		caller = migrate_call_begin(applier);
	if (key && applier->src->nkeys > 0)
	{
		row = migrate_batch_create(applier->src);
		SPI_connect();
		refetch_stored(applier->src, key, row);
		SPI_finish();
		supersede(applier, row, &counts);
		remove_keys(applier, row, &counts);
		migrate_batch_free(row);
	}
	foreach(lc, applier->targets)
		migrate_letter_insert(applier, lfirst(lc), "read", key, NULL, raw, edata);
	if (!held)
		migrate_call_end(applier, caller);
}
