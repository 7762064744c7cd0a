/*-------------------------------------------------------------------------
 *
 * keys.c
 *	  Primary keys (where the source has none, unique keys) of the tables that
 *	  a job made, built after the copy.
 *
 * The job worker calls this in state indexing, outside a transaction.  A step
 * is a row of migrate.post_step:
 *
 *	  todo | failed -> done		in the transaction that builds the key
 *	  todo | failed -> failed	in one of its own, after the other rolled back
 *
 * so a crash leaves a step as it was, and its key not built.  A key that
 * somebody else built counts as done.
 *
 * When the key finds duplicates (23505), they are resolved in a transaction of
 * their own (doubles.c), and the key is tried once more.  Any other error is
 * kept with its step; the other steps go on, and the first error is raised at
 * the end, so that the job fails with it in view and migrate_resume tries
 * again.
 *
 * Locks: what ALTER TABLE ... ADD PRIMARY KEY takes on the target.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "doubles.h"
#include "refetch.h"

typedef struct KeyStep
{
	MigrateJob *job;
	int			step_id;
	Oid			target;
	char	   *target_name;
	char	   *ddl;
	List	   *columns;		/* of the key, names (char *) */
	char	   *error;			/* to be recorded by fail_step */
} KeyStep;

/*
 * Run fn(step) in a transaction of its own, SPI connected.  NULL, or a copy of
 * the error in the current memory context, everything undone.
 */
static ErrorData *
in_transaction(void (*fn) (KeyStep *step), KeyStep *step)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ErrorData  *volatile edata = NULL;

	PG_TRY();
	{
		StartTransactionCommand();
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		fn(step);
		PopActiveSnapshot();
		SPI_finish();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	if (edata)
		AbortCurrentTransaction();
	MemoryContextSwitchTo(mcxt);

	/* asked to stop: no fault of the step */
	if (edata && ERRCODE_TO_CATEGORY(edata->sqlerrcode) ==
		ERRCODE_OPERATOR_INTERVENTION)
		ReThrowError(edata);
	return edata;
}

/* ----------------------------------------------------------------
 * one step
 * ----------------------------------------------------------------
 */

/*
 * The columns of the key that a statement adds; NIL when it is of another
 * kind.
 */
static List *
key_columns(const char *ddl)
{
	List	   *columns = NIL;
	ListCell   *lc;
	AlterTableStmt *stmt;
	List	   *raw = raw_parser(ddl, RAW_PARSE_DEFAULT);

	if (list_length(raw) != 1)
		return NIL;
	stmt = (AlterTableStmt *) linitial_node(RawStmt, raw)->stmt;
	if (!IsA(stmt, AlterTableStmt))
		return NIL;
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

/* Is the key that the step is to build there? */
static bool
key_exists(KeyStep *step)
{
	Oid			types[] = {OIDOID, TEXTARRAYOID};
	Datum	   *names = palloc(sizeof(Datum) * Max(list_length(step->columns), 1));
	Datum		values[2];
	int			n = 0;
	ListCell   *lc;

	foreach(lc, step->columns)
		names[n++] = CStringGetTextDatum((char *) lfirst(lc));
	values[0] = ObjectIdGetDatum(step->target);
	values[1] = PointerGetDatum(construct_array(names, n, TEXTOID, -1, false,
												TYPALIGN_INT));
	migrate_spi_exec("SELECT FROM pg_catalog.pg_constraint c"
					 " WHERE c.conrelid = $1 AND c.contype IN ('p', 'u') AND $2 ="
					 " (SELECT array_agg(a.attname::text ORDER BY k.n)"
					 "  FROM unnest(c.conkey) WITH ORDINALITY AS k(attnum, n)"
					 "  JOIN pg_catalog.pg_attribute a"
					 "  ON a.attrelid = c.conrelid AND a.attnum = k.attnum)",
					 2, types, values, NULL, SPI_OK_SELECT);
	return SPI_processed > 0;
}

static void
build_step(KeyStep *step)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(step->step_id)};

	migrate_spi_exec("UPDATE migrate.post_step SET started_at = clock_timestamp()"
					 " WHERE step_id = $1", 1, types, values, NULL, SPI_OK_UPDATE);
	if (step->columns == NIL || !key_exists(step))
	{
		int			rc = SPI_execute(step->ddl, false, 0);

		if (rc < 0)
			elog(ERROR, "SPI_execute gave %s: %s", SPI_result_code_string(rc),
				 step->ddl);
	}
	migrate_fault("key-built");
	migrate_spi_exec("UPDATE migrate.post_step SET state = 'done', error = NULL,"
					 " finished_at = clock_timestamp() WHERE step_id = $1",
					 1, types, values, NULL, SPI_OK_UPDATE);
}

/*
 * P10 for every mapping that fills the table.
 */
static void
resolve_step(KeyStep *step)
{
	MemoryContext mcxt = CurrentMemoryContext;
	List	   *ids = NIL;
	ListCell   *lc;
	Oid			types[] = {INT4OID, OIDOID};
	Datum		values[] = {Int32GetDatum(step->job->job_id),
	ObjectIdGetDatum(step->target)};

	migrate_spi_exec("SELECT m.mapping_id FROM migrate.mapping m"
					 " WHERE m.job_id = $1 AND m.target_oid = $2 ORDER BY 1",
					 2, types, values, NULL, SPI_OK_SELECT);
	for (int i = 0; i < SPI_processed; i++)
		ids = lappend_int(ids, migrate_spi_int64(i, 0, 0));
	MemoryContextSwitchTo(mcxt);
	foreach(lc, ids)
	{
		migrate_resolve_doubles(step->job, lfirst_int(lc), step->columns);
		migrate_fault("doubles-resolved");
	}
}

/* The planner should know the table before anybody uses it. */
static void
analyze_step(KeyStep *step)
{
	char	   *sql = psprintf("ANALYZE %s", refetch_relation(step->target));

	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not run: %s", sql);
}

static void
fail_step(KeyStep *step)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(step->step_id),
	CStringGetTextDatum(step->error)};

	migrate_spi_exec("UPDATE migrate.post_step SET state = 'failed', error = $2,"
					 " finished_at = clock_timestamp() WHERE step_id = $1",
					 2, types, values, NULL, SPI_OK_UPDATE);
	migrate_event(step->job->job_id, "error", "index",
				  "key of %s could not be built: %s",
				  step->target_name, step->error);
}

/* What to tell of an error, its SQLSTATE first. */
static char *
describe_error(ErrorData *edata)
{
	return psprintf("%s: %s%s%s", unpack_sql_state(edata->sqlerrcode),
					edata->message, edata->detail ? ": " : "",
					edata->detail ? edata->detail : "");
}

/*
 * Build one key, resolving doubles once.  NULL or the error.
 */
static ErrorData *
work_on_step(KeyStep *step)
{
	ErrorData  *edata = in_transaction(build_step, step);

	if (edata && edata->sqlerrcode == ERRCODE_UNIQUE_VIOLATION &&
		step->columns != NIL)
	{
		edata = in_transaction(resolve_step, step);
		if (edata == NULL)
			edata = in_transaction(build_step, step);
	}
	if (edata)
	{
		ErrorData  *second;

		step->error = describe_error(edata);
		if ((second = in_transaction(fail_step, step)) != NULL)
			ReThrowError(second);
	}
	else if ((edata = in_transaction(analyze_step, step)) != NULL)
	{
		ereport(WARNING,
				(errmsg("could not analyze %s: %s", step->target_name,
						edata->message)));
		edata = NULL;
	}
	return edata;
}

/* ----------------------------------------------------------------
 * all steps
 * ----------------------------------------------------------------
 */

/* The steps that are not done, in the current memory context. */
static List *
open_steps(MigrateJob *job)
{
	MemoryContext mcxt = CurrentMemoryContext;
	List	   *steps = NIL;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(job->job_id)};

	StartTransactionCommand();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	migrate_spi_exec("SELECT p.step_id, m.target_oid::int8, m.target, p.ddl"
					 " FROM migrate.post_step p JOIN migrate.mapping m USING (mapping_id)"
					 " WHERE p.job_id = $1 AND p.kind = 'primary key'"
					 " AND p.state IN ('todo', 'failed') ORDER BY p.step_id",
					 1, types, values, NULL, SPI_OK_SELECT);
	MemoryContextSwitchTo(mcxt);
	for (int i = 0; i < SPI_processed; i++)
	{
		KeyStep    *step = palloc0(sizeof(KeyStep));

		step->job = job;
		step->step_id = migrate_spi_int64(i, 0, 0);
		step->target = migrate_spi_int64(i, 1, 0);
		step->target_name = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3);
		step->ddl = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 4);
		step->columns = key_columns(step->ddl);
		steps = lappend(steps, step);
	}
	PopActiveSnapshot();
	SPI_finish();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	return steps;
}

/* Source tables whose copy is over and whose keys are built are done. */
static void
finish_tables(KeyStep *step)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(step->job->job_id)};

	migrate_spi_exec("UPDATE migrate.source_table s SET state = 'done'"
					 " WHERE s.job_id = $1 AND s.state = 'copied' AND NOT EXISTS"
					 " (SELECT FROM migrate.post_step p JOIN migrate.mapping m USING (mapping_id)"
					 "  WHERE m.source_id = s.source_id AND p.state <> 'done')",
					 1, types, values, NULL, SPI_OK_UPDATE);
}

void
migrate_build_keys(MigrateJob *job)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext mcxt = AllocSetContextCreate(old, "migrate keys",
											   ALLOCSET_DEFAULT_SIZES);
	KeyStep		all = {.job = job};
	ErrorData  *first = NULL;
	ErrorData  *edata;
	ListCell   *lc;

	MemoryContextSwitchTo(mcxt);
	foreach(lc, open_steps(job))
	{
		CHECK_FOR_INTERRUPTS();
		migrate_worker_phase("index");
		edata = work_on_step(lfirst(lc));
		if (first == NULL)
			first = edata;
	}
	edata = in_transaction(finish_tables, &all);
	if (first == NULL)
		first = edata;
	MemoryContextSwitchTo(old);
	if (first)
		ReThrowError(first);
	MemoryContextDelete(mcxt);
}
