/*-------------------------------------------------------------------------
 *
 * apply_truncate.c
 *	  TRUNCATE of a source table, or of a partition of it.
 *
 * A target that the mapping has for itself is truncated, too.  That takes ACCESS
 * EXCLUSIVE, and is refused for a table that foreign keys refer to; where it
 * cannot be had within the job's lock_timeout, or cannot be at all, the rows
 * are deleted instead.  Where several mappings fill a target, the rows that "owns"
 * names are deleted.  Identity sequences are set when the job cuts over.
 *
 * The rows of one partition are those of its counterpart, where the job made
 * the target like the source; else what satisfies the partition's constraint, as
 * the source words it, where the mapping keeps columns as they are.
 *
 * Open dead letters of a table that is truncated are superseded.
 *
 * Process: apply worker, holding the writer lock.  Locks: as above, until the
 * transaction ends.  A crash leaves nothing: all is in the caller's
 * transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/apply_set.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

/* what is to be emptied */
typedef struct Emptied
{
	int			mapping_id;
	char	   *name;			/* as statements name it */
	char	   *where;			/* NULL: all rows */
	char	   *search_path;	/* to read it under */
	bool		replica;
} Emptied;

/* Does another mapping, of whatever job, fill the same target? */
static bool
is_shared(MigrateMapping *map)
{
	Oid			types[] = {OIDOID, INT4OID};
	Datum		values[] = {ObjectIdGetDatum(map->target), Int32GetDatum(map->mapping_id)};

	migrate_spi_exec("SELECT FROM migrate.mapping WHERE target_oid = $1 AND mapping_id <> $2 LIMIT 1",
					 2, types, values, NULL, SPI_OK_SELECT);
	return SPI_processed > 0;
}

/* ----------------------------------------------------------------
 * the rows of a partition
 * ----------------------------------------------------------------
 */

/* The table that the job made like a partition of the source; or InvalidOid. */
static Oid
counterpart(MigrateMapping *map, const char *leaf)
{
	Oid			types[] = {OIDOID, INT4OID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(map->target), Int32GetDatum(map->job_id),
	CStringGetTextDatum(leaf)};

	migrate_spi_exec("SELECT r.target_oid FROM migrate.made_relation r"
					 " JOIN pg_catalog.pg_class c ON c.oid = r.target_oid"
					 " WHERE r.root_oid = $1 AND r.job_id = $2 AND NOT r.own_definition"
					 " AND pg_catalog.format('%I.%I', r.remote_schema, r.remote_table) = $3",
					 3, types, values, NULL, SPI_OK_SELECT);
	return SPI_processed > 0 ? (Oid) migrate_spi_int64(0, 0, 0) : InvalidOid;
}

/*
 * The partition's constraint in the source's words; NULL when it cannot be
 * asked here: a hash of the source's own table, or no partition.
 */
static char *
leaf_constraint(MigrateApplier *applier, const char *leaf)
{
	MigrateConn *conn = migrate_connect(applier->src->server, applier->job->owner,
										applier->job->name, "apply",
										applier->job->connect_timeout_s);
	char	   *constraint = migrate_exec_value(conn,
												psprintf("SELECT pg_catalog.pg_get_partition_constraintdef(%s::pg_catalog.regclass)",
														 quote_literal_cstr(leaf)));

	migrate_disconnect(conn);
	if (constraint == NULL || strstr(constraint, "satisfies_hash_partition"))
		return NULL;
	return constraint;
}

/* Which rows of a target are those of a partition; false when nobody can tell. */
static bool
find_leaf(MigrateApplier *applier, ApplyTarget *target, const char *leaf, Emptied *emptied)
{
	MigrateMapping *map = target->map;
	Oid			relid = InvalidOid;
	char	   *constraint;

	if (map->kind != 'i' || map->filtered)
		return false;
	if (map->owns == NULL || map->owns[0] == '\0')
		relid = counterpart(map, leaf);
	if (OidIsValid(relid))
	{
		emptied->name = migrate_target_name(relid, false);
		emptied->where = NULL;
		return true;
	}
	constraint = leaf_constraint(applier, leaf);
	if (constraint == NULL)
		return false;
	emptied->where = emptied->where ?
		psprintf("(%s\n) AND (%s)", emptied->where, constraint) : constraint;
	return true;
}

/* ----------------------------------------------------------------
 * emptying
 * ----------------------------------------------------------------
 */

/* P13, and names in "owns" as its mapping reads them. */
static int
enter_settings(Emptied *emptied)
{
	int			level = NewGUCNestLevel();

	(void) set_config_option("search_path", emptied->search_path, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (emptied->replica)
		(void) set_config_option("session_replication_role", "replica", PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/* Can rows be deleted instead? */
static bool
is_refusal(ErrorData *edata)
{
	return edata->sqlerrcode == ERRCODE_FEATURE_NOT_SUPPORTED ||
		edata->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		edata->sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE ||
		edata->sqlerrcode == ERRCODE_OBJECT_IN_USE ||
		edata->sqlerrcode == ERRCODE_WRONG_OBJECT_TYPE ||
		edata->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED;
}

/* False when it was refused, or the lock was not to be had. */
static bool
try_truncate(MigrateApplier *applier, Emptied *emptied)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		int			level = enter_settings(emptied);

		(void) set_config_option("lock_timeout",
								 psprintf("%d", applier->job->lock_timeout_ms), PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		SPI_connect();
		migrate_spi_exec(psprintf("TRUNCATE %s", emptied->name), 0, NULL, NULL, NULL,
						 SPI_OK_UTILITY);
		SPI_finish();
		AtEOXact_GUC(true, level);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		if (!is_refusal(edata))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		FreeErrorData(edata);
		done = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	return done;
}

static void
delete_rows(Emptied *emptied)
{
	int			level = enter_settings(emptied);
	char	   *sql = emptied->where ? psprintf("DELETE FROM %s WHERE %s\n", emptied->name, emptied->where) :
	psprintf("DELETE FROM %s", emptied->name);

	SPI_connect();
	migrate_spi_exec(sql, 0, NULL, NULL, NULL, SPI_OK_DELETE);
	SPI_finish();
	AtEOXact_GUC(true, level);
}

/* Every row with an open letter is gone on the source, too. */
static void
supersede_all(Emptied *emptied)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(emptied->mapping_id)};

	SPI_connect();
	migrate_spi_exec("UPDATE migrate.dead_letter SET state = 'superseded', updated_at = now()"
					 " WHERE mapping_id = $1 AND state = 'open'",
					 1, types, values, NULL, SPI_OK_UPDATE);
	SPI_finish();
}

static Emptied *
what_to_empty(ApplyTarget *target)
{
	MigrateMapping *map = target->map;
	Emptied    *emptied = palloc0(sizeof(Emptied));

	emptied->mapping_id = map->mapping_id;
	emptied->name = migrate_target_name(map->target, target->writer->src->only_parent);
	emptied->search_path = pstrdup(map->search_path);
	emptied->replica = target->writer->replica;
	if (map->owns && map->owns[0])
		emptied->where = psprintf("(%s\n)", map->owns);
	else if (is_shared(map))
		emptied->where = "true";
	return emptied;
}

/*
 * See apply.h.  Nothing is done when a target has rows that cannot be told
 * apart.
 */
bool
migrate_apply_truncate(MigrateApplier *applier, const char *leaf)
{
	MemoryContext caller = migrate_call_begin(applier);
	List	   *all = NIL;
	bool		possible = true;
	ListCell   *lc;

	SPI_connect();
	foreach(lc, applier->targets)
	{
		ApplyTarget *target = lfirst(lc);
		Emptied    *emptied = what_to_empty(target);

		if (leaf && !find_leaf(applier, target, leaf, emptied))
			possible = false;
		all = lappend(all, emptied);
	}

	/* TRUNCATE wants nobody to have the table open */
	migrate_applier_release(applier);
	foreach(lc, possible ? all : NIL)
	{
		Emptied    *emptied = lfirst(lc);

		if (emptied->where || !try_truncate(applier, emptied))
			delete_rows(emptied);
		if (leaf == NULL)
			supersede_all(emptied);
	}
	SPI_finish();
	migrate_applier_hold(applier);
	migrate_call_end(applier, caller);
	return possible;
}
