/*-------------------------------------------------------------------------
 *
 * step_key.c
 *	  What is particular about keys: which columns they are over, and the
 *	  doubles that they find (P10).
 *
 * Runs in whoever runs the step, see step_run.c, in its transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "utils/memutils.h"

#include "doubles.h"

/* The columns of CREATE UNIQUE INDEX; NIL when it is not over columns alone. */
static List *
columns_of_index(IndexStmt *stmt)
{
	List	   *columns = NIL;
	ListCell   *lc;

	if (!stmt->unique || stmt->whereClause)
		return NIL;
	foreach(lc, stmt->indexParams)
	{
		IndexElem  *elem = lfirst_node(IndexElem, lc);

		if (elem->name == NULL)
			return NIL;			/* an expression */
		columns = lappend(columns, pstrdup(elem->name));
	}
	return columns;
}

/* The columns of ALTER TABLE ... ADD PRIMARY KEY (...) or UNIQUE (...). */
static List *
columns_of_constraint(AlterTableStmt *stmt)
{
	List	   *columns = NIL;
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);
		Constraint *con;
		ListCell   *lk;

		if (cmd->subtype != AT_AddConstraint)
			continue;
		con = castNode(Constraint, cmd->def);
		if (con->contype != CONSTR_PRIMARY && con->contype != CONSTR_UNIQUE)
			continue;
		foreach(lk, con->keys)
			columns = lappend(columns, pstrdup(strVal(lfirst(lk))));
	}
	return columns;
}

/*
 * The columns by which SELECT ... GROUP BY finds doubles, where no key is built;
 * NIL when they are not columns alone.
 */
static List *
columns_of_query(SelectStmt *stmt)
{
	List	   *columns = NIL;
	ListCell   *lc;

	foreach(lc, stmt->groupClause)
	{
		ColumnRef  *ref = lfirst(lc);

		if (!IsA(ref, ColumnRef) || list_length(ref->fields) != 1)
			return NIL;
		columns = lappend(columns, pstrdup(strVal(linitial(ref->fields))));
	}
	return columns;
}

/*
 * Of the first statement: what follows it does not change which rows are
 * unique.
 */
List *
migrate_key_columns(const char *ddl)
{
	List	   *raw = raw_parser(ddl, RAW_PARSE_DEFAULT);
	Node	   *stmt;

	if (raw == NIL)
		return NIL;
	stmt = linitial_node(RawStmt, raw)->stmt;
	if (IsA(stmt, IndexStmt))
		return columns_of_index((IndexStmt *) stmt);
	if (IsA(stmt, AlterTableStmt))
		return columns_of_constraint((AlterTableStmt *) stmt);
	if (IsA(stmt, SelectStmt))
		return columns_of_query((SelectStmt *) stmt);
	return NIL;
}

/*
 * In a transaction, SPI connected.
 */
void
migrate_step_resolve_doubles(MigrateJob *job, MigratePostStep *step)
{
	MemoryContext mcxt = CurrentMemoryContext;
	List	   *columns = migrate_key_columns(step->ddl);
	List	   *ids = NIL;
	ListCell   *lc;
	Oid			types[] = {INT4OID, OIDOID};
	Datum		values[] = {Int32GetDatum(job->job_id), ObjectIdGetDatum(step->root)};

	if (columns == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the statement of step %d makes no key over columns",
						step->step_id),
				 errdetail_internal("%s", step->ddl)));
	migrate_spi_exec("SELECT m.mapping_id FROM migrate.mapping m"
					 " WHERE m.job_id = $1 AND m.target_oid = $2 ORDER BY 1",
					 2, types, values, NULL, SPI_OK_SELECT);
	for (int i = 0; i < SPI_processed; i++)
		ids = lappend_int(ids, migrate_spi_int64(i, 0, 0));
	MemoryContextSwitchTo(mcxt);
	foreach(lc, ids)
	{
		migrate_resolve_doubles(job, lfirst_int(lc), columns);
		migrate_fault("doubles-resolved");
	}
}
