/*-------------------------------------------------------------------------
 *
 * check.c
 *	  The user's checks: two queries that must give the same rows on both
 *	  sides (migrate_add_check).
 *
 * All checks of a job are run at one cut (cut.c), with the rights of its owner,
 * the source's in a read-only transaction, the target's as a query that cannot
 * write.  Rows are compared as they are printed under pinned settings, in any
 * order, but each as often; of a numeric the value counts, not its scale.
 *
 * Of a source that is not PostgreSQL the source's query is run here, on its
 * foreign tables.
 *
 * Runs in the session or worker that validates; writes the record of the run.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "validate.h"

typedef struct Check
{
	char	   *name;
	char	   *query[2];		/* by side */
} Check;

/* what a query gave: each row as text, sorted */
typedef struct CheckRows
{
	int			n;
	char	  **rows;
} CheckRows;

static List *
load_checks(MigrateJob *job)
{
	List	   *checks = NIL;
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(job->job_id);

	SPI_connect();
	migrate_spi_exec("SELECT name, source_query, target_query FROM migrate.validation_check"
					 " WHERE job_id = $1 ORDER BY name", 1, &type, &arg, NULL, SPI_OK_SELECT);
	MemoryContextSwitchTo(mcxt);
	for (int i = 0; i < SPI_processed; i++)
	{
		Check	   *check = palloc(sizeof(Check));

		check->name = migrate_spi_text(i, 0);
		check->query[VALIDATE_SOURCE] = migrate_spi_text(i, 1);
		check->query[VALIDATE_TARGET] = migrate_spi_text(i, 2);
		checks = lappend(checks, check);
	}
	SPI_finish();
	return checks;
}

/* Has the job any? */
bool
validate_has_checks(MigrateJob *job)
{
	return load_checks(job) != NIL;
}

/* Add a value to the text of a row. */
static void
append_value(StringInfo row, Oid type, const char *value)
{
	if (row->len > 0)
		appendStringInfoString(row, ", ");
	if (value == NULL)
	{
		appendStringInfoString(row, "null");
		return;
	}
	if (type == NUMERICOID)
	{
		Datum		n = DirectFunctionCall3(numeric_in, CStringGetDatum(value),
											ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));

		value = DatumGetCString(DirectFunctionCall1(numeric_out,
													DirectFunctionCall1(numeric_trim_scale, n)));
	}
	escape_json(row, value);
}

static int
compare_rows(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

static CheckRows *
make_rows(int n)
{
	CheckRows  *result = palloc(sizeof(CheckRows));

	result->n = n;
	result->rows = palloc(sizeof(char *) * Max(n, 1));
	return result;
}

static CheckRows *
run_there(MigrateConn *conn, const char *sql)
{
	PGresult   *res = migrate_exec_extended(conn, sql);
	CheckRows  *result = make_rows(PQntuples(res));

	for (int i = 0; i < result->n; i++)
	{
		StringInfoData row;

		initStringInfo(&row);
		for (int col = 0; col < PQnfields(res); col++)
			append_value(&row, PQftype(res, col),
						 PQgetisnull(res, i, col) ? NULL : PQgetvalue(res, i, col));
		result->rows[i] = row.data;
	}
	PQclear(res);
	return result;
}

static CheckRows *
run_here(const char *sql)
{
	MemoryContext mcxt = CurrentMemoryContext;
	CheckRows  *result;
	int			level;

	SPI_connect();
	level = validate_pin_settings();
	(void) set_config_option("row_security", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the query of a check must be a SELECT")));
	MemoryContextSwitchTo(mcxt);
	result = make_rows(SPI_processed);
	for (int i = 0; i < result->n; i++)
	{
		StringInfoData row;

		initStringInfo(&row);
		for (int col = 0; col < SPI_tuptable->tupdesc->natts; col++)
			append_value(&row, SPI_gettypeid(SPI_tuptable->tupdesc, col + 1),
						 migrate_spi_text(i, col));
		result->rows[i] = row.data;
	}
	validate_unpin_settings(level);
	SPI_finish();
	MemoryContextSwitchTo(mcxt);
	return result;
}

/*
 * Rows that only one side has; of the first the words.
 */
static int64
differences(CheckRows *s, CheckRows *t, char **words)
{
	int64		only[2] = {0, 0};
	const char *first[2] = {NULL, NULL};
	int			i = 0,
				j = 0;

	qsort(s->rows, s->n, sizeof(char *), compare_rows);
	qsort(t->rows, t->n, sizeof(char *), compare_rows);
	while (i < s->n || j < t->n)
	{
		int			c = i == s->n ? 1 : j == t->n ? -1 : strcmp(s->rows[i], t->rows[j]);
		int			side = c < 0 ? VALIDATE_SOURCE : VALIDATE_TARGET;

		if (c != 0)
		{
			if (only[side]++ == 0)
				first[side] = c < 0 ? s->rows[i] : t->rows[j];
		}
		if (c <= 0)
			i++;
		if (c >= 0)
			j++;
	}
	*words = psprintf("source has %s, target has %s", first[0] ? first[0] : "no such row",
					  first[1] ? first[1] : "no such row");
	return Max(only[0], only[1]);
}

static void
check_error_context(void *arg)
{
	errcontext("check \"%s\"", (const char *) arg);
}

static void
run_check(MigrateJob *job, Check *check, MigrateConn *conn, ValidateCut *cut,
		  ReturnSetInfo *rsinfo)
{
	ErrorContextCallback callback = {error_context_stack, check_error_context, check->name};
	ValidateResult result = {0};
	int64		id = validate_begin_run(job, 0, check->name, LEVEL_CHECK);
	CheckRows  *rows[2];
	char	   *words;
	char	   *status = "matched";

	error_context_stack = &callback;
	rows[VALIDATE_SOURCE] = conn ? run_there(conn, check->query[VALIDATE_SOURCE]) :
		run_here(check->query[VALIDATE_SOURCE]);
	rows[VALIDATE_TARGET] = run_here(check->query[VALIDATE_TARGET]);
	error_context_stack = callback.previous;

	result.source_rows = rows[VALIDATE_SOURCE]->n;
	result.target_rows = rows[VALIDATE_TARGET]->n;
	result.mismatches = differences(rows[0], rows[1], &words);
	if (result.mismatches > 0)
		status = psprintf("differs: %s", words);
	if (cut->why)
		status = psprintf("%s; not at one moment: %s", status, cut->why);
	validate_end_run(job, psprintf("check %s", check->name), LEVEL_CHECK, id, &result, cut,
					 status, rsinfo);
}

/* All checks of a job, if it has any. */
void
validate_checks(MigrateJob *job, MigrateConn **conn, MemoryContext conn_cxt,
				ReturnSetInfo *rsinfo)
{
	List	   *checks = load_checks(job);
	MigrateSource any = {.transport = 'c'};
	ValidateCut cut;
	ListCell   *lc;

	if (checks == NIL)
		return;
	validate_progress_target(job, NULL, LEVEL_CHECK);
	if (migrate_server_is_postgres(job->server))
		validate_need_connection(job, conn, conn_cxt);
	validate_cut_begin(job, &any, NULL, *conn, &cut);
	foreach(lc, checks)
		run_check(job, lfirst(lc), *conn, &cut, rsinfo);
	validate_cut_end(*conn, &cut);
	validate_progress_target_done();
}
