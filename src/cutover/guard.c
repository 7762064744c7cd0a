/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  The guard on the target: until the cutover has opened it, only migrate
 *	  writes to its tables (invariant 6, one writer).
 *
 * A row trigger and a TRUNCATE trigger, both enabled as ordinary ones: the
 * workers write under replica role where the owner owns the table (P13), and
 * then neither fires, so that the guard costs them nothing.  Where they fire,
 * the function lets migrate's own processes pass, and sessions that hold the
 * writer lock of the job (replay, repair).
 *
 * In a database that was restored from a dump there are the triggers, and no job
 * that would open the tables: there they are open.
 *
 * Runs in any backend that writes to a guarded table.  Keeps no state; making,
 * opening and dropping are statements of sql/70_cutover.sql.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/cutover.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_collation.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "control/control.h"

PG_FUNCTION_INFO_V1(migrate_guard);

/* Is there the job?  Whoever writes may not see it, so its table is not asked by SQL. */
static bool
job_is_here(int job_id, const char *name)
{
	Oid			relid = get_relname_relid("job", get_namespace_oid("migrate", false));
	Relation	rel = table_open(relid, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	bool		found;

	ScanKeyInit(&keys[0], get_attnum(relid, "job_id"), BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(job_id));
	ScanKeyInit(&keys[1], get_attnum(relid, "job"), BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(name));
	keys[1].sk_collation = C_COLLATION_OID;
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 2, keys);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

static void
refuse(TriggerData *trigger)
{
	Relation	rel = trigger->tg_relation;

	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 errmsg("table \"%s.%s\" is not open for writing yet",
					get_namespace_name(RelationGetNamespace(rel)),
					RelationGetRelationName(rel)),
			 errdetail("It follows a table of another server, where writes go until the cutover."),
			 errhint("Job %s opens it with migrate_cutover, or gives it up with migrate_finish.",
					 trigger->tg_trigger->tgargs[1])));
}

/*
 * Trigger function; arguments: the job's number and its name.  25006 for
 * everybody but migrate.
 */
PGDLLEXPORT Datum
migrate_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) || trigger->tg_trigger->tgnargs != 2)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" is a trigger of migrate", "migrate._guard")));
	if (migrate_shared == NULL &&
		!migrate_lock_is_mine(MIGRATE_LOCK_WRITER,
							  pg_strtoint32(trigger->tg_trigger->tgargs[0])) &&
		job_is_here(pg_strtoint32(trigger->tg_trigger->tgargs[0]),
					trigger->tg_trigger->tgargs[1]))
		refuse(trigger);
	if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
						   trigger->tg_newtuple : trigger->tg_trigtuple);
}
