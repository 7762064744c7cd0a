/*-------------------------------------------------------------------------
 *
 * writer.c
 *	  Mapped rows into a target: which way, and what is the same for all.
 *
 * Ways: writer_fresh.c (multi-insert into a plain table that nothing watches),
 * writer_index.c (changes, row by row, into a plain table with a usable index)
 * and writer_sql.c (statements through the executor, anything else).
 *
 * A copy begins when no row of ours is in the target (a table that is copied
 * again was cleared before), so rows are inserted without looking for them.
 * What a key that exists nevertheless means depends on the key map (P10):
 *
 *	- it holds the whole source key as it is: the row there is this source row
 *	  (it moved between two chunks' snapshots, or was there before the job), so
 *	  from now on rows are looked for and updated (P11);
 *	- else it may be another source row's: a duplicate in the mapped key, which
 *	  must not overwrite; a dead letter.
 *
 * Process: loader; the session that replays.  Locks: ROW EXCLUSIVE on the
 * target until the transaction ends.  A crash leaves nothing: all is in the
 * chunk's transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* A relation that rows can be written into, by one way or the other. */
static void
check_relkind(Relation rel)
{
	switch (rel->rd_rel->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
		case RELKIND_FOREIGN_TABLE:
		case RELKIND_VIEW:
			return;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("cannot write into \"%s\"", RelationGetRelationName(rel)),
					 errdetail("It is neither a table nor a view.")));
	}
}

/*
 * A writer for a compiled mapping, in a memory context of its own below the
 * current one.  fresh_allowed: no row of ours is there.  Opened outside a
 * subtransaction, and closed in the same one as it was opened.
 */
static MigrateWriter *
open_writer(MigrateMapping *map, MigrateSource *src, bool fresh_allowed, bool sets)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate writer",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	MigrateWriter *writer = palloc0(sizeof(MigrateWriter));

	writer->mcxt = mcxt;
	writer->map = map;
	writer->src = src;
	writer->rel = table_open(map->target, RowExclusiveLock);
	check_relkind(writer->rel);
	/* P13: never for a table that is not the owner's */
	writer->replica = migrate_owns_relation(map->target, GetUserId());
	writer->insert_only = fresh_allowed || map->nkeys == 0 || (sets && src->nkeys == 0);
	migrate_writer_keys_open(writer);
	writer->sets = sets;
	writer->as_set = map->many;
	if (sets && !writer->insert_only && migrate_index_possible(writer))
		writer->way = &migrate_writer_index;
	else if (fresh_allowed && migrate_fresh_possible(writer))
		writer->way = &migrate_writer_fresh;
	else
	{
		writer->way = &migrate_writer_sql;
		migrate_writer_sql_open(writer);
	}
	MemoryContextSwitchTo(old);
	return writer;
}

MigrateWriter *
migrate_writer_open(MigrateMapping *map, MigrateSource *src, bool fresh_allowed)
{
	return open_writer(map, src, fresh_allowed, false);
}

/*
 * A writer for sets of changes.  It lasts over transactions: its relation is
 * open when this returns, let go by migrate_writer_release() and opened
 * again by migrate_writer_hold(), which each transaction calls before it uses
 * the writer.  Whoever keeps it makes a new one when the target has changed.
 */
MigrateWriter *
migrate_writer_open_sets(MigrateMapping *map, MigrateSource *src)
{
	return open_writer(map, src, false, true);
}

void
migrate_writer_hold(MigrateWriter *writer)
{
	writer->rel = table_open(writer->map->target, RowExclusiveLock);
}

void
migrate_writer_release(MigrateWriter *writer)
{
	table_close(writer->rel, NoLock);
	writer->rel = NULL;
}

void
migrate_writer_close(MigrateWriter *writer)
{
	table_close(writer->rel, NoLock);
	MemoryContextDelete(writer->mcxt);
}

/*
 * A key is there that was not expected.  True when rows are looked for from
 * now on, so that the same batch is worth another attempt.
 */
bool
migrate_writer_look_first(MigrateWriter *writer)
{
	if (!writer->insert_only || writer->way != &migrate_writer_sql ||
		writer->map->nkeys == 0 || !writer->map->key_is_source_key)
		return false;
	writer->insert_only = false;
	return true;
}

/* The target's name for statements. */
char *
migrate_writer_target(MigrateWriter *writer)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(writer->rel)),
									  RelationGetRelationName(writer->rel));
}
