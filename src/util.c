/*-------------------------------------------------------------------------
 *
 * util.c
 *	  SPI in short form, and fault injection for the crash tests.
 *
 * Runs in every process; holds no state but the fault's name.  SPI calls here
 * expect a connected SPI and a transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include <signal.h>

#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* the GUC migrate.fault, defined in migrate.c */
char	   *migrate_fault_setting = NULL;

/*
 * Run a statement on the extension's tables.  "expected" is the SPI result
 * code that it must give; anything else cannot happen.  A worker's transaction
 * may have no snapshot yet; a statement gets one of its own then.
 */
void
migrate_spi_exec(const char *sql, int nargs, Oid *types, Datum *values,
				 const char *nulls, int expected)
{
	bool		snapshot = !ActiveSnapshotSet();
	int			rc;

	if (snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	rc = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (snapshot)
		PopActiveSnapshot();
	if (rc != expected)
		elog(ERROR, "statement gave %s, not %s: %s",
			 SPI_result_code_string(rc), SPI_result_code_string(expected), sql);
}

/* a statement whose plan is kept, for the life of the process */
typedef struct KeptPlan
{
	char	   *sql;
	SPIPlanPtr	plan;
} KeptPlan;

static KeptPlan kept_plans[32];

/* The kept plan of a statement; NULL when there is no more room. */
static SPIPlanPtr
kept_plan(const char *sql, int nargs, Oid *types)
{
	KeptPlan   *kept = NULL;
	SPIPlanPtr	plan;

	for (int i = 0; i < lengthof(kept_plans); i++)
	{
		kept = &kept_plans[i];
		if (kept->sql == NULL)
			break;
		if (strcmp(kept->sql, sql) == 0)
			return kept->plan;
	}
	if (kept->sql != NULL)
		return NULL;
	plan = SPI_prepare_cursor(sql, nargs, types, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_prepare gave %s: %s", SPI_result_code_string(SPI_result), sql);
	kept->plan = plan;
	kept->sql = MemoryContextStrdup(TopMemoryContext, sql);
	return plan;
}

/*
 * Like migrate_spi_exec(), for the few statements that run for every chunk: to
 * plan them takes longer than to run them.  The types of the parameters belong
 * to the text.
 */
void
migrate_spi_exec_kept(const char *sql, int nargs, Oid *types, Datum *values,
					  const char *nulls, int expected)
{
	bool		snapshot = !ActiveSnapshotSet();
	int			level = migrate_follow_index_order();
	SPIPlanPtr	plan;
	int			rc;

	/* tables that are small when it is planned do not stay so */
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	plan = kept_plan(sql, nargs, types);
	rc = plan ? SPI_execute_plan(plan, values, nulls, false, 0) :
		SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (snapshot)
		PopActiveSnapshot();
	AtEOXact_GUC(true, level);
	if (rc != expected)
		elog(ERROR, "statement gave %s, not %s: %s",
			 SPI_result_code_string(rc), SPI_result_code_string(expected), sql);
}

/*
 * A value of the last result as text, in the caller's memory context; NULL if
 * it is null.  row and col count from 0.
 */
char *
migrate_spi_text(int row, int col)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col + 1);
}

int64
migrate_spi_int64(int row, int col, int64 if_null)
{
	char	   *s = migrate_spi_text(row, col);

	return s ? pg_strtoint64(s) : if_null;
}

/*
 * The tables of a job that has just been planned have no statistics, and the
 * planner would sort all leaves, or all steps, to get at the first: it shall
 * read them in the index's order.
 */
int
migrate_follow_index_order(void)
{
	static const char *const off[] = {"enable_sort", "enable_bitmapscan", "jit"};
	int			level = NewGUCNestLevel();

	for (int i = 0; i < lengthof(off); i++)
		(void) set_config_option(off[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/*
 * A named point where the crash tests stop the process: migrate.fault is
 * "point:kill" (SIGKILL to ourselves), "point:error" or "point:wait" (until
 * the setting changes).  With "point:skip" it returns true: the caller leaves
 * out what it names, if it looks.  Costs a comparison when not set.
 */
bool
migrate_fault(const char *point)
{
	size_t		len;

	if (likely(migrate_fault_setting == NULL || migrate_fault_setting[0] == '\0'))
		return false;
	len = strlen(point);
	if (strncmp(migrate_fault_setting, point, len) != 0 ||
		migrate_fault_setting[len] != ':')
		return false;
	if (strcmp(migrate_fault_setting + len + 1, "skip") == 0)
		return true;
	if (strcmp(migrate_fault_setting + len + 1, "kill") == 0)
		kill(MyProcPid, SIGKILL);
	else if (strcmp(migrate_fault_setting + len + 1, "error") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("fault injected at \"%s\"", point)));
	while (migrate_fault_setting && strncmp(migrate_fault_setting, point, len) == 0)
	{
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 100, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
	return false;
}
