/*-------------------------------------------------------------------------
 *
 * writer_back.c
 *	  Rows that writer_sql.c wrote, read from the target again (verify.c).
 *
 *	  inserted, nothing was looked for	by the places that RETURNING gives:
 *										while a table is copied no index may
 *										find a row.  Of a foreign table, which
 *										has no places here, the values that the
 *										remote server returned
 *	  anything else, views and rules	by the key map, in a statement
 *
 * A rule has no RETURNING for us, and a view no places; without a key map their
 * rows cannot be read back, which is an error.
 *
 * Process, locks and crash: as writer.c.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* columns that migrate_back_insert() returns before the mapped ones */
#define RETURNED_TABLE 1
#define RETURNED_PLACE 2
#define RETURNED_OWNED 3

/* a table that rows were inserted into */
typedef struct PlaceTable
{
	Relation	rel;
	TupleTableSlot *slot;
	AttrNumber *attnums;
} PlaceTable;

/* ----------------------------------------------------------------
 * the statements
 * ----------------------------------------------------------------
 */

/* The foreign tables of the target, itself included. */
static List *
foreign_tables(MigrateWriter *writer)
{
	char		relkind = writer->rel->rd_rel->relkind;
	List	   *result = NIL;
	ListCell   *lc;

	if (relkind == RELKIND_FOREIGN_TABLE)
		return list_make1_oid(writer->map->target);
	if (relkind != RELKIND_PARTITIONED_TABLE)
		return NIL;
	foreach(lc, find_all_inheritors(writer->map->target, AccessShareLock, NULL))
		if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_FOREIGN_TABLE)
		result = lappend_oid(result, lfirst_oid(lc));
	return result;
}

/* The mapped columns of the target, each with what stands before it. */
static void
append_columns(StringInfo buf, MigrateWriter *writer, const char *before)
{
	const char *target = quote_identifier(RelationGetRelationName(writer->rel));

	for (int i = 0; i < writer->map->ncolumns; i++)
		appendStringInfo(buf, "%s%s.%s", i > 0 ? ", " : before, target,
						 quote_identifier(writer->map->columns[i]));
}

static char *
insert_places(MigrateWriter *writer)
{
	const char *target = quote_identifier(RelationGetRelationName(writer->rel));
	const char *owns = writer->map->owns;
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%s RETURNING %s.tableoid, ",
					 migrate_writer_sql_insert(writer), target);
	if (writer->sql.elsewhere != NIL)
	{
		appendStringInfo(&buf, "CASE WHEN %s.tableoid OPERATOR(pg_catalog.=) ANY ('{", target);
		foreach(lc, writer->sql.elsewhere)
			appendStringInfo(&buf, "%s%u", lc == list_head(writer->sql.elsewhere) ? "" : ",",
							 lfirst_oid(lc));
		appendStringInfo(&buf, "}'::pg_catalog.oid[]) THEN NULL ELSE %s.ctid END", target);
	}
	else
		appendStringInfo(&buf, "%s.ctid", target);
	appendStringInfo(&buf, ", (%s\n)", owns && owns[0] ? owns : "true");
	if (writer->sql.elsewhere != NIL)
		append_columns(&buf, writer, ", ");
	return buf.data;
}

/* By key; of a source row that gave many, the key once. */
static void
find_statements(MigrateWriter *writer)
{
	MigrateWriterSql *sql = &writer->sql;
	StringInfoData columns;

	initStringInfo(&columns);
	append_columns(&columns, writer, "");
	sql->find = migrate_writer_sql_find(writer, columns.data, writer->map->many ?
										"(SELECT DISTINCT ON (" MIGRATE_ORDINAL ") * FROM "
										MIGRATE_MAPPED_NAME ")" : MIGRATE_MAPPED_NAME);
	sql->find_gone = migrate_writer_sql_find(writer, columns.data, MIGRATE_GONE_NAME);
}

/* ----------------------------------------------------------------
 * an attempt
 * ----------------------------------------------------------------
 */
static bool
is_by_place(MigrateWriter *writer)
{
	return writer->insert_only && !writer->anew && writer->rel->rd_rules == NULL &&
		writer->rel->rd_rel->relkind != RELKIND_VIEW;
}

/* In an attempt's memory; given will hold the mapped rows. */
void
migrate_back_begin(MigrateWriter *writer, Tuplestorestate *given)
{
	MigrateWriterBack *back = palloc0(sizeof(MigrateWriterBack));
	MemoryContext old = MemoryContextSwitchTo(writer->mcxt);

	back->given = given;
	back->by_place = is_by_place(writer);
	if (!back->by_place && writer->map->nkeys == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("rows of %s cannot be read back after they were written",
						writer->map->target_name),
				 errdetail("It is a view or has rules, and the mapping has no key."),
				 errhint("Give the mapping a key, or set the option verify_writes to false.")));
	if (back->by_place && writer->sql.insert_places == NULL)
	{
		writer->sql.elsewhere = foreign_tables(writer);
		writer->sql.insert_places = insert_places(writer);
	}
	if (!back->by_place && writer->sql.find == NULL)
		find_statements(writer);
	MemoryContextSwitchTo(old);
	writer->back = back;
}

/* Nothing is equal to a null in the key map. */
static bool
can_be_found(MigrateWriter *writer, TupleTableSlot *mapped)
{
	MigrateMapping *map = writer->map;

	for (int k = 0; k < map->nkeys && !writer->back->by_place; k++)
		if (mapped->tts_isnull[map->ncolumns + k])
			return false;
	return true;
}

/* A row that was put into writer->back->given. */
void
migrate_back_given(MigrateWriter *writer, TupleTableSlot *mapped)
{
	slot_getallattrs(mapped);
	if (can_be_found(writer, mapped))
		migrate_verify_given(writer, mapped, NULL);
}

/*
 * Insert the registered rows, and keep where they went.  Returns how many, and
 * how many of them "owns" names.
 */
int64
migrate_back_insert(MigrateWriter *writer, int64 *owned)
{
	MigrateWriterBack *back = writer->back;

	if (SPI_execute(writer->sql.insert_places, false, 0) != SPI_OK_INSERT_RETURNING)
		elog(ERROR, "insert failed: %s", writer->sql.insert_places);
	back->returned = SPI_tuptable;
	back->nreturned = SPI_processed;
	*owned = 0;
	for (uint64 i = 0; i < back->nreturned; i++)
	{
		bool		isnull;
		Datum		ok = SPI_getbinval(back->returned->vals[i], back->returned->tupdesc,
									   RETURNED_OWNED, &isnull);

		*owned += !isnull && DatumGetBool(ok);
	}
	return back->nreturned;
}

/* ----------------------------------------------------------------
 * reading back
 * ----------------------------------------------------------------
 */
static void
given_rows(MigrateWriter *writer, MigrateVerifySink sink, void *arg)
{
	MigrateWriterBack *back = writer->back;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(writer->sql.mapped, &TTSOpsMinimalTuple);

	tuplestore_select_read_pointer(back->given, 0);
	tuplestore_rescan(back->given);
	while (tuplestore_gettupleslot(back->given, true, false, slot))
	{
		slot_getallattrs(slot);
		if (can_be_found(writer, slot))
			sink(arg, slot, NULL);
	}
	ExecDropSingleTupleTableSlot(slot);
}

/* The table of a row, opened once a scan. */
static PlaceTable *
place_table(MigrateWriter *writer, List **tables, Oid relid)
{
	MigrateMapping *map = writer->map;
	PlaceTable *table;
	ListCell   *lc;

	foreach(lc, *tables)
	{
		table = lfirst(lc);
		if (RelationGetRelid(table->rel) == relid)
			return table;
	}
	table = palloc(sizeof(PlaceTable));
	table->rel = table_open(relid, AccessShareLock);
	table->slot = table_slot_create(table->rel, NULL);
	table->attnums = palloc(sizeof(AttrNumber) * Max(map->ncolumns, 1));
	for (int i = 0; i < map->ncolumns; i++)
		table->attnums[i] = relid == map->target ? map->attnums[i] :
			get_attnum(relid, map->columns[i]);
	*tables = lappend(*tables, table);
	return table;
}

static void
close_tables(List *tables)
{
	ListCell   *lc;

	foreach(lc, tables)
	{
		PlaceTable *table = lfirst(lc);

		ExecDropSingleTupleTableSlot(table->slot);
		table_close(table->rel, NoLock);
	}
}

/* What is at the places that the insert returned. */
static void
rows_at_places(MigrateWriter *writer, MigrateVerifySink sink, void *arg)
{
	MigrateWriterBack *back = writer->back;
	TupleDesc	desc = back->returned->tupdesc;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
	AttrNumber *attnums = palloc(sizeof(AttrNumber) * Max(writer->map->ncolumns, 1));
	List	   *tables = NIL;

	for (int i = 0; i < writer->map->ncolumns; i++)
		attnums[i] = RETURNED_OWNED + 1 + i;
	for (uint64 i = 0; i < back->nreturned; i++)
	{
		HeapTuple	tuple = back->returned->vals[i];
		bool		isnull;
		Oid			relid = DatumGetObjectId(SPI_getbinval(tuple, desc, RETURNED_TABLE, &isnull));
		Datum		place = SPI_getbinval(tuple, desc, RETURNED_PLACE, &isnull);

		if (isnull)
		{
			ExecStoreHeapTuple(tuple, slot, false);
			sink(arg, slot, attnums);
		}
		else
		{
			PlaceTable *table = place_table(writer, &tables, relid);

			migrate_verify_place(writer, table->rel, (ItemPointer) DatumGetPointer(place),
								 table->slot, table->attnums, sink, arg);
		}
	}
	ExecDropSingleTupleTableSlot(slot);
	close_tables(tables);
	pfree(attnums);
}

/* What the key map has found. */
static void
rows_of_keys(MigrateWriter *writer, MigrateVerifySink sink, void *arg)
{
	MigrateWriterBack *back = writer->back;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(back->found->tupdesc, &TTSOpsHeapTuple);

	for (uint64 i = 0; i < back->nfound; i++)
	{
		ExecStoreHeapTuple(back->found->vals[i], slot, false);
		sink(arg, slot, NULL);
	}
	ExecDropSingleTupleTableSlot(slot);
}

static void
find(MigrateWriterBack *back, const char *sql)
{
	if (back->found)
		SPI_freetuptable(back->found);
	if (SPI_execute(sql, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "rows could not be read back: %s", sql);
	back->found = SPI_tuptable;
	back->nfound = SPI_processed;
}

static void
check_gone(void *arg, TupleTableSlot *slot, const AttrNumber *attnums)
{
	migrate_verify_gone(arg, slot, attnums, given_rows);
}

/*
 * All is written; mapped rows and keys that were removed are registered.  A
 * set's keys were all removed first, also those that have no row now.
 */
void
migrate_back_check(MigrateWriter *writer, bool any_rows, bool any_gone)
{
	MigrateWriterBack *back = writer->back;

	if (writer->as_set && any_gone)
	{
		find(back, writer->sql.find_gone);
		migrate_verify_found(writer, given_rows, rows_of_keys);
		return;
	}
	if (any_rows && back->by_place)
		migrate_verify_found(writer, given_rows, rows_at_places);
	else if (any_rows)
	{
		find(back, writer->sql.find);
		migrate_verify_found(writer, given_rows, rows_of_keys);
	}
	if (any_gone)
	{
		find(back, writer->sql.find_gone);
		rows_of_keys(writer, check_gone, writer);
	}
}
