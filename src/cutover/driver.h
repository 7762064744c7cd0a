/*-------------------------------------------------------------------------
 *
 * driver.h
 *	  What the two directions of the driver share: cutover.c and rollback.c.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_DRIVER_H
#define MIGRATE_DRIVER_H

#include "cutover/cutover.h"
#include "cutover/steps.h"

typedef struct Cutover
{
	MigrateCutover *row;
	MigrateJob *job;
	MigrateConn *fence_conn;	/* forward: its transaction is the fence */
	MigrateConn *conn;			/* everything else on the source */
	MigrateFence *fence;
	TimestampTz paused_at;		/* the application waits since; 0: it does not */
	bool		committing;		/* COMMIT may have been sent */
	XLogRecPtr	fence_lsn;		/* external: the source's position when it was
								 * fenced; all up to there is applied, once
								 * drained */

	/* last_check.c */
	struct ValidateChanged *changed;	/* NULL: nothing is compared */
	int			rounds;
	int64		checked_keys;
	int			checked_whole;
} Cutover;

/* in cutover.c */
extern int64 migrate_cutover_ms_since(TimestampTz since);
extern void migrate_cutover_deadline(Cutover *c);
extern void migrate_cutover_doze(long ms);
extern int	migrate_cutover_patience(Cutover *c, int n);
extern void migrate_cutover_connect(Cutover *c);
extern void migrate_cutover_hang_up(Cutover *c);
extern void migrate_cutover_run_hooks(Cutover *c, const char *phase);
extern void migrate_cutover_stop_apply(Cutover *c);
extern XLogRecPtr migrate_cutover_source_position(MigrateConn *conn);
extern void migrate_cutover_try_again(Cutover *c, const char *side, TimestampTz begin,
									  int tries, long *pause, const char *blockers);
extern void migrate_cutover_force_flush(MigrateConn *conn);
extern void migrate_cutover_disarm_reverse(Cutover *c);

extern void migrate_cutover_pass_over(MigrateJob *job, XLogRecPtr lsn, int64 seq);

/* in rollback.c */
extern void migrate_rollback_turn(Cutover *c);

/* between two looks at positions in shared memory that nobody wakes us for, ms */
#define CUTOVER_LOOK_AGAIN 2

/* short tries to lock in front of every long one, and between two of them, ms */
#define CUTOVER_SHORT_TRIES 8
#define CUTOVER_SHORT_PAUSE 30

/* between tries to lock, ms: at first, at most */
#define CUTOVER_LOCK_PAUSE 200
#define CUTOVER_LOCK_MAX_PAUSE 5000

#endif							/* MIGRATE_DRIVER_H */
