/*-------------------------------------------------------------------------
 *
 * writer_sql.c
 *	  Mapped rows into any kind of table, by statements over the ephemeral
 *	  relation "mapped": partitions, foreign tables, indexes, triggers, rules
 *	  and row security are the executor's business.
 *
 * Runs in loaders and in the session that replays.  The row that may be there
 * already is found by the key map (P11):
 *
 *	  update  1:1, key map: UPDATE what is there, INSERT the rest
 *	  replace the same by DELETE and INSERT, where an UPDATE would not do: the
 *			  row may have to move, or rows may swap a unique value
 *	  insert  no key map: nothing can be found
 *
 * Statements run in replica role if the user owns the target (P13); mapping
 * code has run before, as origin.  Everything happens in the caller's
 * subtransaction, whose rollback undoes the settings too.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/genam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_operator.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#define MAPPED "migrate_mapped"

/* memory of the mapped rows of a batch until they spill, kB */
#define MAPPED_MEMORY_KB 16384

struct SqlWriter
{
	bool		replica;		/* the user owns the target (P13) */
	/* statements; NULL: not needed */
	char	   *doubles;
	char	   *owns;
	char	   *update;
	char	   *delete;
	char	   *insert;
};

/* FROM migrate_mapped with column names that clash with nothing */
static char *
from_mapped(MigrateMapping *map)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, MAPPED " AS " MAPPED " (");
	for (int i = 1; i <= map->ncolumns; i++)
		appendStringInfo(&buf, "migrate_col_%d, ", i);
	for (int i = 1; i <= map->nkeys; i++)
		appendStringInfo(&buf, "migrate_key_%d, ", i);
	appendStringInfoString(&buf, MIGRATE_ORDINAL ")");
	return buf.data;
}

/* The equality of a column's type, qualified: search_path may hide it. */
static char *
equality(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR);
	HeapTuple	tuple;
	char	   *result;

	if (!OidIsValid(entry->eq_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("type %s has no equality operator, so it cannot be in a key",
						format_type_be(type))));
	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(entry->eq_opr));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", entry->eq_opr);
	result = psprintf("OPERATOR(%s.%s)",
					  quote_identifier(get_namespace_name(((Form_pg_operator) GETSTRUCT(tuple))->oprnamespace)),
					  NameStr(((Form_pg_operator) GETSTRUCT(tuple))->oprname));
	ReleaseSysCache(tuple);
	return result;
}

/* The target row is that of the mapped row: its key, and it is ours. */
static char *
match_condition(MigrateMapping *map, const char *alias)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int k = 0; k < map->nkeys; k++)
	{
		AttrNumber	attnum = get_attnum(map->target, map->key_columns[k]);

		appendStringInfo(&buf, "%s%s.%s %s " MAPPED ".migrate_key_%d",
						 k > 0 ? " AND " : "", alias,
						 quote_identifier(map->key_columns[k]),
						 equality(get_atttype(map->target, attnum)), k + 1);
	}
	if (map->owns)
		appendStringInfo(&buf, " AND (%s)", map->owns);
	return buf.data;
}

/* Is the column one of the key map? */
static bool
in_key_map(MigrateMapping *map, const char *column)
{
	for (int k = 0; k < map->nkeys; k++)
		if (strcmp(map->key_columns[k], column) == 0)
			return true;
	return false;
}

/* P11: has the target a unique index on more than the key map's columns? */
static bool
has_other_unique(MigrateMapping *map, Relation rel)
{
	bool		found = false;
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;

		if (form->indisunique || form->indisexclusion)
		{
			for (int i = 0; i < form->indnkeyatts; i++)
			{
				AttrNumber	attnum = form->indkey.values[i];

				if (attnum == 0 ||
					!in_key_map(map, get_attname(map->target, attnum, false)))
					found = true;
			}
		}
		index_close(index, NoLock);
	}
	return found;
}

/* P11: where an UPDATE is not the same as taking the old row away first. */
static bool
must_replace(MigrateMapping *map, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	if (map->many || map->ncolumns == 0 ||
		rel->rd_rel->relkind != RELKIND_RELATION)
		return true;
	for (int c = 0; c < map->ncolumns; c++)
		if (TupleDescAttr(desc, map->attnums[c] - 1)->attidentity ==
			ATTRIBUTE_IDENTITY_ALWAYS)
			return true;
	return has_other_unique(map, rel);
}

/* The statement that adds rows; with a condition, only those not yet there. */
static char *
insert_statement(MigrateMapping *map, const char *target, const char *missing)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "INSERT INTO %s ", target);
	for (int c = 0; c < map->ncolumns; c++)
		appendStringInfo(&buf, "%s%s", c > 0 ? ", " : "(",
						 quote_identifier(map->columns[c]));
	appendStringInfo(&buf, "%sOVERRIDING SYSTEM VALUE SELECT ",
					 map->ncolumns > 0 ? ") " : "");
	for (int c = 0; c < map->ncolumns; c++)
		appendStringInfo(&buf, "%smigrate_col_%d", c > 0 ? ", " : "", c + 1);
	appendStringInfo(&buf, " FROM %s", from_mapped(map));
	if (missing)
		appendStringInfo(&buf, " WHERE NOT EXISTS (SELECT FROM %s WHERE %s)",
						 target, missing);
	return buf.data;
}

static char *
update_statement(MigrateMapping *map, const char *target, const char *match)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "UPDATE %s SET ", target);
	for (int c = 0; c < map->ncolumns; c++)
		appendStringInfo(&buf, "%s%s = migrate_col_%d", c > 0 ? ", " : "",
						 quote_identifier(map->columns[c]), c + 1);
	appendStringInfo(&buf, " FROM %s WHERE %s", from_mapped(map), match);
	return buf.data;
}

/* Ordinals of all rows but the first of each key. */
static char *
doubles_statement(MigrateMapping *map)
{
	StringInfoData keys;

	initStringInfo(&keys);
	for (int k = 1; k <= map->nkeys; k++)
		appendStringInfo(&keys, "%smigrate_key_%d", k > 1 ? ", " : "", k);
	return psprintf("SELECT d." MIGRATE_ORDINAL " FROM (SELECT " MIGRATE_ORDINAL
					", pg_catalog.row_number() OVER (PARTITION BY %s ORDER BY "
					MIGRATE_ORDINAL ") AS n FROM %s WHERE (%s) IS NOT NULL) AS d"
					" WHERE d.n OPERATOR(pg_catalog.>) 1 ORDER BY 1",
					keys.data, from_mapped(map),
					map->nkeys > 1 ? psprintf("ROW(%s)", keys.data) : keys.data);
}

/* Is there a mapped row that "owns" does not hold for? */
static char *
owns_statement(MigrateMapping *map, const char *alias)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT FROM (SELECT ");
	for (int c = 0; c < map->ncolumns; c++)
		appendStringInfo(&buf, "%smigrate_col_%d AS %s", c > 0 ? ", " : "", c + 1,
						 quote_identifier(map->columns[c]));
	appendStringInfo(&buf, " FROM %s) AS %s WHERE (%s) IS NOT TRUE LIMIT 1",
					 from_mapped(map), alias, map->owns);
	return buf.data;
}

/* Build the statements, in the writer's memory context. */
struct SqlWriter *
migrate_sql_open(MigrateWriter *writer)
{
	struct SqlWriter *sql = palloc0(sizeof(struct SqlWriter));
	MigrateMapping *map = writer->map;
	Relation	rel = writer->rel;
	const char *alias = quote_identifier(RelationGetRelationName(rel));
	char	   *target;
	char	   *match;

	target = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
										RelationGetRelationName(rel));
	sql->replica = migrate_owns_relation(map->target, GetUserId());
	if (map->owns)
		sql->owns = owns_statement(map, alias);
	if (map->nkeys == 0)
	{
		sql->insert = insert_statement(map, target, NULL);
		return sql;
	}

	match = match_condition(map, alias);
	if (!map->many)
		sql->doubles = doubles_statement(map);
	if (must_replace(map, rel))
	{
		sql->delete = psprintf("DELETE FROM %s USING %s WHERE %s", target,
							   from_mapped(map), match);
		sql->insert = insert_statement(map, target, NULL);
	}
	else
	{
		sql->update = update_statement(map, target, match);
		sql->insert = insert_statement(map, target, match);
	}
	return sql;
}

/* Where mapped rows go while the mapping runs. */
typedef struct MappedRows
{
	MigrateWriter *writer;
	MigrateTally *tally;
	Tuplestorestate *store;
} MappedRows;

static void
keep_row(TupleTableSlot *slot, void *arg)
{
	MappedRows *rows = arg;

	migrate_tally_row(rows->writer, rows->tally, slot);
	tuplestore_puttupleslot(rows->store, slot);
}

/* Make the rows visible to the statements of this SPI connection. */
static void
register_mapped(MigrateMapping *map, Tuplestorestate *store)
{
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));
	int			rc;

	enr->md.name = MAPPED;
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = map->outdesc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = tuplestore_tuple_count(store);
	enr->reldata = store;
	rc = SPI_register_relation(enr);
	if (rc != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation gave %s", SPI_result_code_string(rc));
}

/* Run one statement; the number of rows it touched. */
static int64
run(const char *statement)
{
	int			rc = SPI_execute(statement, false, 0);

	if (rc < 0)
		elog(ERROR, "\"%s\" gave %s", statement, SPI_result_code_string(rc));
	return SPI_processed;
}

/*
 * Two rows of a batch with one key are two source rows that would overwrite
 * each other: all but the first are named to the caller, who sets them aside.
 */
static void
check_doubles(MigrateWriter *writer)
{
	MigrateMapping *map = writer->map;
	int64		n = run(writer->sql->doubles);

	if (n == 0)
		return;
	writer->doubles = MemoryContextAlloc(writer->mcxt, n * sizeof(int64));
	writer->ndoubles = n;
	for (int64 i = 0; i < n; i++)
		writer->doubles[i] = migrate_spi_int64(i, 0, 0);
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("the key map of target table %s gives two source rows one key",
					map->target_name),
			 errhint("The key map must tell source rows apart.")));
}

/* The statements, over rows that are registered. */
static int64
write_rows(MigrateWriter *writer, int64 produced)
{
	struct SqlWriter *sql = writer->sql;
	MigrateMapping *map = writer->map;
	int64		written = 0;

	if (sql->doubles)
		check_doubles(writer);
	if (sql->owns && run(sql->owns) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_WITH_CHECK_OPTION_VIOLATION),
				 errmsg("a row for target table %s does not satisfy \"owns\"",
						map->target_name),
				 errdetail("The condition is: %s.", map->owns)));
	if (sql->replica)
		(void) set_config_option("session_replication_role", "replica", PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (sql->delete)
		(void) run(sql->delete);
	if (sql->update)
		written += run(sql->update);
	if (written < produced || sql->update == NULL)
		written += run(sql->insert);
	if (written != produced)
		ereport(ERROR,
				(errcode(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION),
				 errmsg("writing %lld rows to target table %s touched %lld rows",
						(long long) produced, map->target_name, (long long) written),
				 errhint("A trigger or rule keeps rows away, or the key map finds several rows of the target.")));
	return written;
}

/* Map a batch, then write what came out. */
void
migrate_sql_run(MigrateWriter *writer, MigrateBatch *batch, MigrateTally *tally)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate mapped rows",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);
	MappedRows	rows = {writer, tally, NULL};
	int			level;

	rows.store = tuplestore_begin_heap(true, false, MAPPED_MEMORY_KB);
	migrate_mapping_run(writer->map, batch, keep_row, &rows);
	migrate_writing = true;
	if (tally->produced > 0)
	{
		level = NewGUCNestLevel();
		(void) set_config_option("search_path", writer->map->search_path,
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
		SPI_connect();
		register_mapped(writer->map, rows.store);
		tally->written = write_rows(writer, tally->produced);
		SPI_finish();
		AtEOXact_GUC(true, level);
	}
	tuplestore_end(rows.store);
	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(mcxt);
}
