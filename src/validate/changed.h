/*-------------------------------------------------------------------------
 *
 * changed.h
 *	  What changed since the last validation, for the cutover.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_CHANGED_H
#define MIGRATE_CHANGED_H

#include "migrate.h"

typedef struct ValidateChanged MigrateChanged;

/* What there is to compare, and about how long that takes. */
typedef struct MigrateChangedRest
{
	int64		keys;
	int			targets;
	int			whole;			/* targets of them that are compared whole */
	double		ms;				/* < 0: not known */
} MigrateChangedRest;

/* What a round has come to. */
typedef struct MigrateChangedRound
{
	int			targets;		/* compared */
	int64		keys;			/* of those that were not compared whole */
	int			whole;
	int64		mismatches;		/* that no open dead letter explains */
	char	   *differing;		/* targets, NULL: none */
	char	   *inexact;		/* why both sides were not at one moment;
								 * NULL: they were */
	double		ms;				/* of comparing */
} MigrateChangedRound;

/*
 * Job worker, outside a transaction.  Lives in a memory context of its own
 * below the current one.
 */
extern MigrateChanged *migrate_changed_open(MigrateJob *job, MigrateConn *conn);

/* Take what the spool has by now. */
extern void migrate_changed_look(MigrateChanged *c);
extern void migrate_changed_rest(MigrateChanged *c, MigrateChangedRest *rest);

/*
 * Compare what changed.  quiet_at: nothing is written on either side, all up
 * to there is applied and apply has left; 0: at a cut for each target.  tick
 * is called between the parts.  Rows that differ are recorded; targets without
 * such (accepted: any) have not changed any more.
 */
extern void migrate_changed_round(MigrateChanged *c, XLogRecPtr quiet_at, bool accepted,
								  void (*tick) (void *arg), void *arg,
								  MigrateChangedRound *round);

/* Beforehand what can be, for a round in quiet; and its record after it. */
extern void migrate_changed_prepare(MigrateChanged *c);
extern void migrate_changed_record(MigrateChanged *c);

/* Targets that were never validated, of which only what changes from now on
 * is compared; and those whose rows do not come over the fast transport. */
extern int	migrate_changed_unknown(MigrateChanged *c);
extern int	migrate_changed_left_out(MigrateChanged *c);

#endif							/* MIGRATE_CHANGED_H */
