/*-------------------------------------------------------------------------
 *
 * target.c
 *	  How a target is named in statements: with ONLY, or with what inherits
 *	  from it.
 *
 * A target that other tables inherit from means the whole tree to SQL.  When
 * those tables are targets themselves, their rows are not this target's: every
 * statement but INSERT (which never descends) then says ONLY.  That is so
 *
 *	- when the source is read without its children (only_parent), and
 *	- when a mapping fills a table below the target.
 *
 * Other children are left to SQL's meaning: extensions that keep the rows of a
 * table in its children (TimescaleDB) show none with ONLY.  Partitioned tables
 * hold no row themselves and are never read so.
 *
 * Runs wherever a target is written or read; reads catalogs, keeps nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* Does a mapping fill a table that inherits from this one, at any depth? */
static bool
children_are_targets(Oid target)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(target)};
	bool		found;

	SPI_connect();
	migrate_spi_exec("WITH RECURSIVE below (oid) AS"
					 " (SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = $1"
					 "  UNION SELECT i.inhrelid FROM below b"
					 "  JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid)"
					 " SELECT FROM below b JOIN migrate.mapping m ON m.target_oid = b.oid"
					 " LIMIT 1", 1, types, values, NULL, SPI_OK_SELECT);
	found = SPI_processed > 0;
	SPI_finish();
	return found;
}

/*
 * Is a target to be taken without the tables that inherit from it?
 * only_parent: its source is.
 */
bool
migrate_target_is_only(Oid target, bool only_parent)
{
	return get_rel_relkind(target) != RELKIND_PARTITIONED_TABLE &&
		has_subclass(target) &&
		(only_parent || children_are_targets(target));
}

/*
 * The target's name for any statement but INSERT, quoted and qualified, with
 * ONLY where that is due.
 */
char *
migrate_target_name(Oid target, bool only_parent)
{
	char	   *name = get_rel_name(target);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist any more", target)));
	return psprintf("%s%s", migrate_target_is_only(target, only_parent) ? "ONLY " : "",
					quote_qualified_identifier(get_namespace_name(get_rel_namespace(target)),
											   name));
}
