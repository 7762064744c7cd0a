/*-------------------------------------------------------------------------
 *
 * migrate.c
 *	  Entry of the library: settings, and the launcher when it is preloaded.
 *
 * Runs in every process that loads the library; in the postmaster when it is
 * in shared_preload_libraries.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "control/control.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	DefineCustomStringVariable("migrate.fault",
							   "Fault to inject, for tests: point:kill, point:error or point:wait.",
							   NULL,
							   &migrate_fault_setting,
							   "",
							   PGC_SUSET,
							   GUC_NOT_IN_SAMPLE | GUC_NO_SHOW_ALL,
							   NULL, NULL, NULL);
	MarkGUCPrefixReserved("migrate");

	if (process_shared_preload_libraries_in_progress)
		migrate_launcher_register();
}
