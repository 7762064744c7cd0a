/*-------------------------------------------------------------------------
 *
 * identity.c
 *	  Deleting from targets that have no key yet, where a publication here
 *	  (FOR ALL TABLES, say) would refuse it.
 *
 * Core refuses a DELETE or UPDATE on a table whose deletes are published and
 * that has no replica identity (manual, logical replication, publication);
 * before its key is built a target has none.  For the transaction at hand such
 * a table gets REPLICA IDENTITY FULL, and its own setting back at the end.
 *
 * Process: loader or job worker that removes doubles (P10).  Locks: ACCESS
 * EXCLUSIVE on the tables that are changed, until the transaction ends.  A
 * crash rolls all of it back.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/memutils.h"

#include "doubles.h"

/* tables that a publication would keep us from deleting from, and their setting */
#define REFUSING \
	"SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relreplident::text" \
	" FROM (SELECT $1 UNION SELECT relid FROM pg_catalog.pg_partition_tree($1)) AS t (oid)" \
	" JOIN pg_catalog.pg_class c ON c.oid = t.oid" \
	" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace" \
	" WHERE c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_publication)" \
	" AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS" \
	"  (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))"

static void
set_identity(const char *table, const char *identity)
{
	char	   *sql = psprintf("ALTER TABLE ONLY %s REPLICA IDENTITY %s", table, identity);

	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not run: %s", sql);
}

/*
 * Make deletes on a target possible.  Returns what migrate_restore_deletes()
 * takes; NIL in a database without publications.  Within SPI.
 */
List *
migrate_allow_deletes(Oid target)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(target)};
	MemoryContext mcxt = CurrentMemoryContext;
	List	   *changed = NIL;
	ListCell   *lc;

	migrate_spi_exec(REFUSING, 1, types, values, NULL, SPI_OK_SELECT);
	MemoryContextSwitchTo(mcxt);
	for (uint64 i = 0; i < SPI_processed; i++)
		changed = lappend(changed, list_make2(migrate_spi_text(i, 0), migrate_spi_text(i, 1)));
	foreach(lc, changed)
		set_identity(linitial((List *) lfirst(lc)), "FULL");
	return changed;
}

void
migrate_restore_deletes(List *changed)
{
	ListCell   *lc;

	foreach(lc, changed)
	{
		List	   *one = lfirst(lc);

		set_identity(linitial(one),
					 ((char *) lsecond(one))[0] == REPLICA_IDENTITY_NOTHING ? "NOTHING" : "DEFAULT");
	}
}
