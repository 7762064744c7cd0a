/*-------------------------------------------------------------------------
 *
 * writer.c
 *	  A mapping's rows into its target: which of the two ways, and what they
 *	  have in common.
 *
 *	  fresh	 multi-insert as COPY does, for a table that nothing watches
 *	  sql	 statements over the mapped rows, for everything else (P11)
 *
 * Runs in loaders and in the session that replays.  Holds ROW EXCLUSIVE on
 * the target until the end of the transaction.  A writer is opened outside of
 * the subtransactions that it writes in, and outlives their failures.  Nothing
 * is left behind by a crash but dead tuples.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "utils/memutils.h"
#include "utils/rel.h"

bool		migrate_writing = false;

/*
 * Open, in the current memory context.  fresh_allowed: no row of ours can be
 * there yet.
 */
MigrateWriter *
migrate_writer_open(MigrateMapping *map, MigrateSource *src, bool fresh_allowed)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate writer",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);
	MigrateWriter *writer = palloc0(sizeof(MigrateWriter));

	writer->map = map;
	writer->src = src;
	writer->mcxt = mcxt;
	writer->rel = table_open(map->target, RowExclusiveLock);
	if (fresh_allowed && migrate_fresh_possible(map, writer->rel))
		writer->fresh = migrate_fresh_open(writer);
	else
		writer->sql = migrate_sql_open(writer);
	MemoryContextSwitchTo(oldcxt);
	return writer;
}

void
migrate_writer_close(MigrateWriter *writer)
{
	if (writer->fresh)
		migrate_fresh_close(writer->fresh);
	table_close(writer->rel, NoLock);
	MemoryContextDelete(writer->mcxt);
}

/* Map and write a batch.  In a subtransaction of the caller. */
void
migrate_writer_run(MigrateWriter *writer, MigrateBatch *batch, MigrateTally *tally)
{
	memset(tally, 0, sizeof(MigrateTally));
	tally->nrows = batch->nrows;
	tally->seen = palloc0(batch->nrows / 8 + 1);
	writer->doubles = NULL;
	writer->ndoubles = 0;
	migrate_writing = false;
	if (writer->fresh)
		migrate_fresh_run(writer, batch, tally);
	else
		migrate_sql_run(writer, batch, tally);
	migrate_writing = false;
	pfree(tally->seen);
	tally->seen = NULL;
}

/* After the subtransaction of a failed run was rolled back. */
void
migrate_writer_abort(MigrateWriter *writer)
{
	if (writer->fresh)
		migrate_fresh_abort(writer->fresh);
}

/* Note a mapped row by the source row that it came from. */
void
migrate_tally_row(MigrateWriter *writer, MigrateTally *tally, TupleTableSlot *slot)
{
	bool		isnull;
	int64		row = DatumGetInt64(slot_getattr(slot,
												 writer->map->outdesc->natts,
												 &isnull));

	if (isnull || row < 0 || row >= tally->nrows)
		elog(ERROR, "mapped row has no ordinal");
	tally->produced++;
	if ((tally->seen[row / 8] & (1 << (row % 8))) == 0)
	{
		tally->seen[row / 8] |= 1 << (row % 8);
		tally->mapped++;
	}
	else if (!writer->map->many)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("the mapping to %s gives more than one row for a source row",
						writer->map->target_name),
				 errhint("A mapping to several rows must be a function that returns a set.")));
}
