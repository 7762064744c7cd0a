/*-------------------------------------------------------------------------
 *
 * source.c
 *	  A source table as the catalog describes it: migrate.source_table, the
 *	  foreign table's columns and the names that its options give.
 *
 * Runs in every process that reads a source.  Takes ACCESS SHARE on the
 * foreign table until the end of the transaction, so that what is loaded stays
 * true.  Writes nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* The value of an option, NULL when it is not there. */
static char *
option_value(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, name) == 0)
			return pstrdup(defGetString(def));
	}
	return NULL;
}

/* The row of migrate.source_table; false when there is none to see. */
static bool
read_source_row(MigrateSource *src, char ***keys, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(src->source_id)};
	bool		found;

	SPI_connect();
	migrate_spi_exec_kept("SELECT job_id, plan_no, source, foreign_table, remote_schema, "
						  "remote_table, coalesce(transport, ''), coalesce(method, ''), "
						  "coalesce(\"binary\", false), key_columns, only_parent "
						  "FROM migrate.source_table WHERE source_id = $1",
						  1, types, values, NULL, SPI_OK_SELECT);
	found = SPI_processed == 1;
	if (found)
	{
		HeapTuple	tuple = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);
		bool		isnull;

		src->job_id = migrate_spi_int64(0, 0, 0);
		src->plan_no = migrate_spi_int64(0, 1, 0);
		src->label = migrate_spi_text(0, 2);
		src->foreign_table = atooid(migrate_spi_text(0, 3));
		src->remote_schema = migrate_spi_text(0, 4);
		src->remote_table = migrate_spi_text(0, 5);
		src->transport = migrate_spi_text(0, 6)[0];
		src->method = migrate_spi_text(0, 7)[0];
		src->binary = DatumGetBool(SPI_getbinval(tuple, desc, 9, &isnull));
		*keys = migrate_key_from_array(SPI_getbinval(tuple, desc, 10, &isnull), isnull);
		src->only_parent = DatumGetBool(SPI_getbinval(tuple, desc, 11, &isnull));
		MemoryContextSwitchTo(oldcxt);
	}
	SPI_finish();
	return found;
}

/* Columns of the foreign table without dropped ones, and the row's shape. */
static void
read_columns(MigrateSource *src, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			n = 0;

	src->columns = palloc0(Max(desc->natts, 1) * sizeof(MigrateColumn));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		MigrateColumn *col;
		char	   *remote;

		if (att->attisdropped)
			continue;
		col = &src->columns[n++];
		remote = option_value(GetForeignColumnOptions(RelationGetRelid(rel),
													  att->attnum),
							  "column_name");
		col->name = pstrdup(NameStr(att->attname));
		col->remote_name = remote ? remote : col->name;
		col->attnum = att->attnum;
		col->type = att->atttypid;
		col->typmod = att->atttypmod;
	}
	src->ncolumns = n;

	src->rowdesc = CreateTemplateTupleDesc(n);
	for (int i = 0; i < n; i++)
		TupleDescCopyEntry(src->rowdesc, i + 1, desc, src->columns[i].attnum);
}

static void
read_keys(MigrateSource *src, char **keys)
{
	int			n = 0;

	while (keys && keys[n])
		n++;
	src->keys = palloc0(Max(n, 1) * sizeof(int));
	src->nkeys = n;
	for (int k = 0; k < n; k++)
	{
		int			i = 0;

		while (i < src->ncolumns && strcmp(src->columns[i].name, keys[k]) != 0)
			i++;
		if (i == src->ncolumns)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of source \"%s\" does not exist any more",
							keys[k], src->label),
					 errhint("The foreign table was changed after the table was added; remove it from the job and add it again.")));
		src->columns[i].is_key = true;
		src->keys[k] = i;
	}
}

/*
 * Load one, into the current memory context.  Before the job is planned it
 * reads as one piece, in text form.
 */
MigrateSource *
migrate_source_load(int source_id)
{
	MigrateSource *src = palloc0(sizeof(MigrateSource));
	char	  **keys = NULL;
	Relation	rel;
	ForeignTable *table;

	src->source_id = source_id;
	if (!read_source_row(src, &keys, CurrentMemoryContext))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("source table %d does not exist", source_id)));

	rel = try_table_open(src->foreign_table, AccessShareLock);
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the foreign table of source \"%s\" does not exist any more",
						src->label),
				 errhint("Remove the source from the job and add it again.")));
	if (rel->rd_rel->relkind != RELKIND_FOREIGN_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a foreign table", RelationGetRelationName(rel))));
	table = GetForeignTable(src->foreign_table);
	src->server = table->serverid;
	if (migrate_server_is_postgres(table->serverid))
	{
		if (src->remote_schema == NULL)
			src->remote_schema = option_value(table->options, "schema_name");
		if (src->remote_schema == NULL)
			src->remote_schema = get_namespace_name(RelationGetNamespace(rel));
		if (src->remote_table == NULL)
			src->remote_table = option_value(table->options, "table_name");
		if (src->remote_table == NULL)
			src->remote_table = pstrdup(RelationGetRelationName(rel));
		if (src->transport == '\0')
			src->transport = 'c';
	}
	if (src->transport == '\0')
		src->transport = 'f';
	if (src->method == '\0')
		src->method = 'w';
	read_columns(src, rel);
	read_keys(src, keys);
	table_close(rel, NoLock);
	return src;
}
