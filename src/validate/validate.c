/*-------------------------------------------------------------------------
 *
 * validate.c
 *	  migrate_validate(): a row a mapping, and the record of the run.
 *
 * The comparison runs with the rights of the job's owner, whoever of his role
 * (or superuser) calls it: mapping code is his.  One connection to the source
 * serves all mappings; each has one REPEATABLE READ transaction there around
 * all its passes.
 *
 * Writes migrate.validation_run, migrate.difference and an event, all in the
 * caller's transaction: a crash leaves nothing behind, a cancelled validation
 * no half of a result.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "validate.h"

PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_validate);

/* one mapping to be validated, as the catalog has it */
typedef struct Task
{
	int			mapping_id;
	int			source_id;
	char	   *target;
	bool		watched;		/* compared with its plan first (P2) */
	bool		copied;			/* the copy of its source table is over */
	int64		dead;			/* open dead letters */
} Task;

static const char *const level_names[] = {"count", "checksum", "full"};

static ValidateLevel
parse_level(const char *name)
{
	for (int i = 0; i < lengthof(level_names); i++)
		if (strcmp(name, level_names[i]) == 0)
			return (ValidateLevel) i;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown validation level \"%s\"", name),
			 errhint("Levels are count, checksum and full.")));
}

/*
 * The mappings of a job, or those that fill one target.
 */
static List *
find_tasks(MigrateJob *job, const char *target)
{
	List	   *tasks = NIL;
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job->job_id),
	target ? CStringGetTextDatum(target) : (Datum) 0};

	SPI_connect();
	migrate_spi_exec("SELECT m.mapping_id, m.target, s.state IN ('copied', 'done'),"
					 " (SELECT count(*) FROM migrate.dead_letter d"
					 "  WHERE d.mapping_id = m.mapping_id AND d.state = 'open'),"
					 " m.source_id, EXISTS (SELECT FROM migrate.leaf l"
					 "  WHERE l.source_id = m.source_id AND l.fingerprint IS NOT NULL)"
					 " FROM migrate.mapping m JOIN migrate.source_table s USING (source_id)"
					 " WHERE m.job_id = $1 AND ($2 IS NULL OR m.target = $2"
					 "  OR m.target_oid = to_regclass($2)) ORDER BY m.target, m.mapping_id",
					 2, types, values, target ? "  " : " n", SPI_OK_SELECT);
	MemoryContextSwitchTo(mcxt);
	for (int i = 0; i < SPI_processed; i++)
	{
		Task	   *task = palloc0(sizeof(Task));

		task->mapping_id = migrate_spi_int64(i, 0, 0);
		task->target = migrate_spi_text(i, 1);
		task->copied = strcmp(migrate_spi_text(i, 2), "t") == 0;
		task->dead = migrate_spi_int64(i, 3, 0);
		task->source_id = migrate_spi_int64(i, 4, 0);
		task->watched = strcmp(migrate_spi_text(i, 5), "t") == 0;
		tasks = lappend(tasks, task);
	}
	SPI_finish();
	if (target && tasks == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" has no target table \"%s\"", job->name, target),
				 errhint("Give it as schema.table; migrate.mapping lists the targets of each job.")));
	return tasks;
}

/* Open the record of a run; its id. */
static int64
begin_run(MigrateJob *job, Task *task, ValidateLevel level)
{
	Oid			types[] = {INT4OID, INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job->job_id),
		Int32GetDatum(task->mapping_id),
	CStringGetTextDatum(level_names[level])};
	int64		id;

	SPI_connect();
	migrate_spi_exec("INSERT INTO migrate.validation_run (job_id, mapping_id, level, status)"
					 " VALUES ($1, $2, $3, 'running') RETURNING validation_id",
					 3, types, values, NULL, SPI_OK_INSERT_RETURNING);
	id = migrate_spi_int64(0, 0, 0);
	SPI_finish();
	return id;
}

/*
 * What a result comes to, in words.  An explained difference is one whose key
 * has an open dead letter.
 */
static char *
describe(Task *task, ValidateLevel level, ValidateResult *r)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (r->mismatches == 0)
	{
		appendStringInfoString(&buf, "matched");
		return buf.data;
	}
	appendStringInfoString(&buf, "differs");
	if (level == LEVEL_COUNT)
	{
		if (task->dead > 0 && r->source_rows - r->target_rows == task->dead)
			appendStringInfoString(&buf, ": as many rows as there are open dead letters");
	}
	else if (r->explained == r->mismatches && !r->at_least)
		appendStringInfoString(&buf, ": explained by dead letters");
	else if (r->kept < r->mismatches || r->at_least)
		appendStringInfo(&buf, ": %lld of %s%lld kept, the limit is %d",
						 (long long) r->kept, r->at_least ? "at least " : "",
						 (long long) r->mismatches, VALIDATE_CAP);
	else if (r->explained > 0)
		appendStringInfo(&buf, ": %lld of %lld explained by dead letters",
						 (long long) r->explained, (long long) r->mismatches);
	if (!task->copied)
		appendStringInfoString(&buf, "; the copy is not finished");
	return buf.data;
}

/*
 * Complete the record, raise the alert when rows differ, and add the row of
 * the function's result.
 */
static void
end_run(MigrateJob *job, Task *task, ValidateLevel level, int64 id,
		ValidateResult *r, ReturnSetInfo *rsinfo)
{
	char	   *status = describe(task, level, r);
	bool		matched = r->mismatches == 0;
	Oid			types[] = {INT8OID, INT8OID, INT8OID, BOOLOID, INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(id), Int64GetDatum(r->source_rows),
		Int64GetDatum(r->target_rows), BoolGetDatum(matched),
		Int64GetDatum(r->mismatches), CStringGetTextDatum(status),
	r->digest ? CStringGetTextDatum(r->digest) : (Datum) 0};
	Datum		result[8];
	bool		nulls[8] = {0};
	bool		isnull;

	SPI_connect();
	migrate_spi_exec("UPDATE migrate.validation_run SET source_rows = $2, target_rows = $3,"
					 " matched = $4, mismatches = $5, status = $6, digest = $7,"
					 " duration = clock_timestamp() - started_at"
					 " WHERE validation_id = $1 RETURNING duration",
					 7, types, values, r->digest ? "       " : "      n", SPI_OK_UPDATE_RETURNING);
	result[0] = CStringGetTextDatum(task->target);
	result[1] = CStringGetTextDatum(level_names[level]);
	result[2] = values[1];
	result[3] = values[2];
	result[4] = values[3];
	result[5] = values[4];
	result[6] = values[5];
	result[7] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
							  &isnull);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, result, nulls);
	SPI_finish();

	if (!matched)
		migrate_event(job->job_id, "alert", "validation",
					  "%s does not match its source: %lld mismatches at level %s (%s)",
					  task->target, (long long) r->mismatches,
					  level_names[level], status);
}

/* The connection of all mappings; made, in conn_cxt, when it is needed first. */
static void
need_connection(MigrateJob *job, MigrateConn **conn, MemoryContext conn_cxt)
{
	MemoryContext old;

	if (*conn)
		return;
	old = MemoryContextSwitchTo(conn_cxt);
	*conn = migrate_connect(job->server, job->owner, job->name, "validate",
							job->connect_timeout_s);
	MemoryContextSwitchTo(old);
}

/*
 * P2: sources that are not what was copied cannot be compared; the error names
 * them.
 */
static void
refuse_drift(MigrateJob *job, List *tasks, MigrateConn **conn, MemoryContext conn_cxt)
{
	List	   *ids = NIL;
	ListCell   *lc;

	foreach(lc, tasks)
	{
		Task	   *task = lfirst(lc);

		if (task->watched)
			ids = list_append_unique_int(ids, task->source_id);
	}
	if (ids == NIL)
		return;
	need_connection(job, conn, conn_cxt);
	migrate_drift_refuse(job, ids, *conn);
}

/*
 * Validate one mapping.
 */
static void
validate_mapping(MigrateJob *job, Task *task, ValidateLevel level,
				 MigrateConn **conn, MemoryContext conn_cxt,
				 ReturnSetInfo *rsinfo)
{
	ValidateEnds ends = {.job = job};
	ValidateResult result = {0};
	int64		id = begin_run(job, task, level);

	ends.map = migrate_mapping_load(task->mapping_id);
	ends.src = migrate_source_load(ends.map->source_id);
	/* before the job has prepared: the way that works everywhere */
	if (ends.src->transport != 'c')
		ends.src->transport = 'f';
	migrate_mapping_compile(ends.map, ends.src);
	ends.shape = validate_shape(ends.map);
	if (ends.src->transport == 'c')
	{
		MigrateSourceTxn txn;

		need_connection(job, conn, conn_cxt);
		ends.conn = *conn;
		migrate_source_begin(ends.conn, ends.src, NULL, &txn);
	}

	if (level == LEVEL_COUNT)
	{
		result.source_rows = validate_count_source(&ends);
		result.target_rows = validate_count_target(&ends);
		result.mismatches = Max(result.source_rows, result.target_rows) -
			Min(result.source_rows, result.target_rows);
	}
	else
		validate_compare(&ends, level, id, &result);
	if (ends.conn)
		migrate_source_end(ends.conn);
	end_run(job, task, level, id, &result, rsinfo);
}

static void
validate_job(MigrateJob *job, List *tasks, ValidateLevel level,
			 ReturnSetInfo *rsinfo)
{
	MigrateConn *volatile conn = NULL;
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate validation",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;

	PG_TRY();
	{
		ListCell   *lc;

		MemoryContextSwitchTo(mcxt);
		refuse_drift(job, tasks, (MigrateConn **) &conn, old);
		foreach(lc, tasks)
		{
			MemoryContextSwitchTo(mcxt);
			validate_mapping(job, lfirst(lc), level, (MigrateConn **) &conn,
							 old, rsinfo);
			MemoryContextSwitchTo(old);
			MemoryContextReset(mcxt);
		}
	}
	PG_FINALLY();
	{
		if (conn)
			migrate_disconnect(conn);
	}
	PG_END_TRY();
	MemoryContextDelete(mcxt);
}

/*
 * migrate_validate(job text, target text, level text): see sql/50_validate.sql.
 */
Datum
migrate_validate(PG_FUNCTION_ARGS)
{
	ValidateLevel level;
	MigrateJob *job;
	List	   *tasks;
	MigrateAsOwner as;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job and level must not be null")));
	InitMaterializedSRF(fcinfo, 0);
	level = parse_level(text_to_cstring(PG_GETARG_TEXT_PP(2)));
	job = migrate_job_load_by_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	tasks = find_tasks(job, PG_ARGISNULL(1) ? NULL :
					   text_to_cstring(PG_GETARG_TEXT_PP(1)));

	migrate_as_owner(job->owner, &as);
	validate_job(job, tasks, level, (ReturnSetInfo *) fcinfo->resultinfo);
	migrate_as_caller(&as);
	return (Datum) 0;
}
