/*-------------------------------------------------------------------------
 *
 * fetch_size.c
 *	  How many rows postgres_fdw fetches at once, for sources that are read
 *	  through it although a connection of ours could be used.
 *
 * postgres_fdw asks for 100 rows at a time unless its option fetch_size says
 * otherwise, and waits for the network in between.  More is better as long as
 * what is fetched fits into memory: rows of the table's average size, TOAST
 * included, up to FETCH_TARGET bytes.  Only foreign tables that the job has
 * made are changed; on others the option is the DBA's.
 *
 * Process: job worker, when it plans a source table.  Locks: ACCESS EXCLUSIVE
 * on the foreign table, when the option changes.  In the transaction of the
 * plan, so a crash leaves nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#define FETCH_TARGET (1024 * 1024)
#define MIN_FETCH 10
/* least bytes of a row in a page: for tables whose rows nobody has counted */
#define LEAST_ROW_BYTES 40

/* Rows that make up FETCH_TARGET, at most "most". */
static int
rows_for_target(MigrateConn *conn, List *relations, int most)
{
	StringInfoData sql;
	ListCell   *lc;
	double		bytes = 0;
	double		rows = 0;
	char	   *with_toast;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT sum(pg_table_size(r)) FROM unnest('{");
	foreach(lc, relations)
	{
		MigrateRelation *rel = lfirst(lc);

		if (rel->relkind == RELKIND_PARTITIONED_TABLE)
			continue;
		appendStringInfo(&sql, "%s%u", rows > 0 || bytes > 0 ? "," : "", rel->oid);
		bytes += Max(rel->blocks, 1) * (double) BLCKSZ;
		rows += rel->reltuples > 0 ? rel->reltuples : rel->blocks * (double) BLCKSZ / LEAST_ROW_BYTES;
	}
	appendStringInfoString(&sql, "}'::oid[]) AS r");
	if (rows < 1)
		return most;
	with_toast = migrate_exec_value(conn, sql.data);
	if (with_toast)
		bytes = Max(bytes, strtod(with_toast, NULL));
	return (int) Min(Max(FETCH_TARGET / Max(bytes / rows, 1), MIN_FETCH), most);
}

/* Did the job make the foreign table? */
static bool
made_by_job(int job_id, Oid foreign_table)
{
	Oid			types[] = {INT4OID, OIDOID};
	Datum		values[] = {Int32GetDatum(job_id), ObjectIdGetDatum(foreign_table)};

	migrate_spi_exec("SELECT FROM migrate.made_object m WHERE m.job_id = $1"
					 " AND m.kind = 'foreign table' AND pg_catalog.to_regclass(m.object) = $2",
					 2, types, values, NULL, SPI_OK_SELECT);
	return SPI_processed > 0;
}

/* The option as it is; 0: not set. */
static int
present_fetch_size(Oid foreign_table)
{
	ListCell   *lc;

	foreach(lc, GetForeignTable(foreign_table)->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, "fetch_size") == 0)
			return atoi(defGetString(def));
	}
	return 0;
}

/*
 * Let the wrapper fetch as many rows of this source at once as is good, at most
 * the job's fetch_size.
 */
void
migrate_set_fetch_size(MigrateJob *job, MigrateConn *conn, MigrateSource *src,
					   List *relations)
{
	int			present = present_fetch_size(src->foreign_table);
	int			wanted;
	char	   *sql;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (made_by_job(job->job_id, src->foreign_table))
	{
		wanted = rows_for_target(conn, relations, Max(job->fetch_size, 1));
		sql = psprintf("ALTER FOREIGN TABLE %s OPTIONS (%s fetch_size '%d')",
					   quote_qualified_identifier(get_namespace_name(get_rel_namespace(src->foreign_table)),
												  get_rel_name(src->foreign_table)),
					   present > 0 ? "SET" : "ADD", wanted);
		if (wanted != present && SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "could not run: %s", sql);
	}
	SPI_finish();
	PopActiveSnapshot();
}
