/*-------------------------------------------------------------------------
 *
 * replan.c
 *	  A source table from the start again: after its table was rewritten
 *	  under the chunks (P1), or by migrate_recopy.
 *
 * Runs in the job worker, state copying.  A source table in state 'replan'
 * gives no chunks; once none of its chunks and steps runs, one transaction removes our
 * rows from its targets, its dead letters, chunks and leaves, and sets it
 * 'pending' with the next plan_no.  A loader that still had an older plan
 * cannot commit (plan_no is part of the fence).  After a crash either all of
 * it has happened, or nothing.
 *
 * Locks: those of TRUNCATE or DELETE on the targets, under lock_timeout.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "control/control.h"

static void
set_locally(const char *name, const char *value, GucContext context)
{
	(void) set_config_option(name, value, context, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

static void
exec_for_int(const char *sql, int arg, int expected)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(arg);

	migrate_spi_exec(sql, 1, &type, &value, NULL, expected);
}

/*
 * TRUNCATE where it does the same as DELETE of all rows: a plain or
 * partitioned table that no other references.  only: without the tables that
 * inherit from it, which else are left alone by deleting.
 */
static bool
may_truncate(Oid target, bool only)
{
	Oid			types[] = {OIDOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(target), BoolGetDatum(only)};
	char		relkind = get_rel_relkind(target);

	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		return false;
	if (pg_class_aclcheck(target, GetUserId(), ACL_TRUNCATE) != ACLCHECK_OK)
		return false;
	migrate_spi_exec("SELECT FROM pg_catalog.pg_constraint"
					 " WHERE contype = 'f' AND confrelid = $1 AND conrelid <> $1"
					 " UNION ALL SELECT FROM pg_catalog.pg_inherits i"
					 " JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid"
					 " WHERE i.inhparent = $1 AND NOT c.relispartition AND NOT $2 LIMIT 1",
					 2, types, values, NULL, SPI_OK_SELECT);
	return SPI_processed == 0;
}

/*
 * Remove the rows of one mapping from its target.  Without "owns" they are
 * all that is there.  Triggers and foreign keys do not fire where the owner
 * owns the table (P13); a row that row security hides is an error, not one
 * left behind.
 */
static void
clear_target(Oid target, const char *owns, const char *search_path, bool only_parent,
			 int lock_timeout_ms)
{
	int			nest = NewGUCNestLevel();
	char	   *name;
	bool		only;

	if (get_rel_name(target) == NULL)
		return;					/* dropped; the writer will say so */
	name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(target)),
									  get_rel_name(target));
	only = migrate_target_is_only(target, only_parent);
	set_locally("lock_timeout", psprintf("%d", lock_timeout_ms), PGC_USERSET);
	set_locally("row_security", "off", PGC_USERSET);
	set_locally("search_path", search_path, PGC_USERSET);
	if (migrate_owns_relation(target, GetUserId()))
		set_locally("session_replication_role", "replica", PGC_SUSET);
	if (owns)
		migrate_spi_exec(psprintf("DELETE FROM %s%s WHERE (%s\n)", only ? "ONLY " : "",
								  name, owns),
						 0, NULL, NULL, NULL, SPI_OK_DELETE);
	else if (may_truncate(target, only))
		migrate_spi_exec(psprintf("TRUNCATE %s%s", only ? "ONLY " : "", name),
						 0, NULL, NULL, NULL, SPI_OK_UTILITY);
	else
		migrate_spi_exec(psprintf("DELETE FROM %s%s",
								  get_rel_relkind(target) == RELKIND_RELATION ? "ONLY " : "",
								  name),
						 0, NULL, NULL, NULL, SPI_OK_DELETE);
	AtEOXact_GUC(true, nest);
}

static void
clear_targets(MigrateJob *job, int source_id)
{
	SPITupleTable *table;
	uint64		n;

	/* without a chunk that is done nothing of ours is there */
	exec_for_int("SELECT FROM migrate.chunk WHERE source_id = $1 AND state = 'done' LIMIT 1",
				 source_id, SPI_OK_SELECT);
	if (SPI_processed == 0)
		return;
	exec_for_int("SELECT m.target_oid, m.owns, m.search_path, s.only_parent"
				 " FROM migrate.mapping m JOIN migrate.source_table s USING (source_id)"
				 " WHERE m.source_id = $1 ORDER BY m.mapping_id", source_id, SPI_OK_SELECT);
	table = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		char	   *owns = SPI_getvalue(table->vals[i], table->tupdesc, 2);

		clear_target((Oid) pg_strtoint64(SPI_getvalue(table->vals[i], table->tupdesc, 1)),
					 owns && owns[0] ? owns : NULL,
					 SPI_getvalue(table->vals[i], table->tupdesc, 3),
					 SPI_getvalue(table->vals[i], table->tupdesc, 4)[0] == 't',
					 job->lock_timeout_ms);
	}
}

/* One source table, in the current transaction; false: one of its chunks or
 * steps still runs. */
static bool
replan_source(MigrateJob *job, int source_id)
{
	bool		ready;

	/* against a claim that has looked before we did */
	exec_for_int("SELECT FROM migrate.source_table WHERE source_id = $1 FOR UPDATE",
				 source_id, SPI_OK_SELECT);
	exec_for_int("SELECT FROM migrate.chunk c JOIN migrate.source_table s USING (job_id)"
				 " WHERE s.source_id = $1 AND c.source_id = $1 AND c.state = 'running' LIMIT 1",
				 source_id, SPI_OK_SELECT);
	ready = SPI_processed == 0;
	/* likewise an index of a target, which could not be emptied meanwhile */
	migrate_steps_lock(job->job_id);
	exec_for_int("SELECT FROM migrate.post_step p JOIN migrate.mapping b USING (mapping_id)"
				 " JOIN migrate.mapping m ON m.target_oid = b.target_oid"
				 " WHERE m.source_id = $1 AND p.state = 'running' LIMIT 1",
				 source_id, SPI_OK_SELECT);
	if (!ready || SPI_processed > 0)
		return false;
	clear_targets(job, source_id);
	exec_for_int("DELETE FROM migrate.dead_letter WHERE state = 'open' AND chunk_id IS NOT NULL"
				 " AND mapping_id IN (SELECT mapping_id FROM migrate.mapping WHERE source_id = $1)",
				 source_id, SPI_OK_DELETE);
	exec_for_int("UPDATE migrate.mapping SET doubles = 0 WHERE source_id = $1",
				 source_id, SPI_OK_UPDATE);
	/* takes its chunks along, and their chunk_mapping rows */
	exec_for_int("DELETE FROM migrate.leaf WHERE source_id = $1", source_id, SPI_OK_DELETE);
	exec_for_int("UPDATE migrate.source_table SET state = 'pending', plan_no = plan_no + 1"
				 " WHERE source_id = $1", source_id, SPI_OK_UPDATE);
	return true;
}

/*
 * All source tables of the job that are marked, each in a transaction of its
 * own.  True when at least one is 'pending' now.  Outside a transaction.
 */
bool
migrate_replan(MigrateJob *job)
{
	MemoryContext mcxt = CurrentMemoryContext;
	bool		any = false;
	int		   *ids;
	uint64		n;

	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_int("SELECT source_id FROM migrate.source_table"
				 " WHERE job_id = $1 AND state = 'replan' ORDER BY 1",
				 job->job_id, SPI_OK_SELECT);
	n = SPI_processed;
	ids = MemoryContextAlloc(mcxt, sizeof(int) * (n + 1));
	for (uint64 i = 0; i < n; i++)
		ids[i] = (int) migrate_spi_int64(i, 0, 0);
	migrate_spi_end();
	CommitTransactionCommand();

	for (uint64 i = 0; i < n; i++)
	{
		StartTransactionCommand();
		migrate_spi_begin();
		if (replan_source(job, ids[i]))
		{
			any = true;
			migrate_fault("replan");
			migrate_event(job->job_id, "info", "replan",
						  "source table %d is planned anew and copied from the start", ids[i]);
		}
		migrate_spi_end();
		CommitTransactionCommand();
	}
	MemoryContextSwitchTo(mcxt);
	return any;
}
