/*-------------------------------------------------------------------------
 *
 * cutover.h
 *	  The switch from the source to the target.
 *
 *	  fence.c		the source: triggers that refuse writes, and the one
 *					transaction that owns the fence until it commits
 *	  external.c	the same where the DBA fences by other means
 *	  guard.c		the target: refuses writes that are not migrate's until it
 *					is opened
 *	  steps.c		the recorded list of steps, hooks and gates
 *	  last_check.c	what changed is compared, before the fence and under it
 *	  cutover.c		the driver, in the job worker
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_CUTOVER_H
#define MIGRATE_CUTOVER_H

#include "migrate.h"

/* ----------------------------------------------------------------
 * in fence.c
 * ----------------------------------------------------------------
 */
typedef struct MigrateFence
{
	MigrateJob *job;
	MigrateConn *conn;			/* whose transaction owns the fence */
	char	   *schema;			/* on the source, of the fence's function */
	char	   *trigger;		/* names, quoted as schema is */
	char	   *truncate_trigger;
	List	   *relations;		/* char *, quoted; those with rows first */
	List	   *sources;		/* the MigrateSource of each */
	int			nleaves;		/* of them, those that hold rows */
} MigrateFence;

/* role of the fence's own connection, see migrate_connect() */
#define MIGRATE_FENCE_ROLE "fence"

typedef enum MigrateFenceState
{
	MIGRATE_FENCE_MISSING,		/* no function: never armed, or dropped */
	MIGRATE_FENCE_OPEN,			/* armed, and lets everything through */
	MIGRATE_FENCE_CLOSED,		/* with the digest asked about */
	MIGRATE_FENCE_OTHER			/* by another one */
} MigrateFenceState;

extern MigrateFence *migrate_fence_create(MigrateJob *job, MigrateConn *conn);

/* In a local transaction, which commits before the fence is armed. */
extern void migrate_fence_record(MigrateFence *fence);

/*
 * Function and triggers on every leaf, which let everything through; a table
 * that has them keeps them.  Each table is locked for a moment, under
 * lock_ms.  *made counts the tables that got them now.  False when one could
 * not be locked; *blockers then names who was in the way.  Call again.
 */
extern bool migrate_fence_arm(MigrateFence *fence, int lock_ms, int *made, char **blockers);

/* who is in the way of locks on tables, by oid; see fence.c */
extern char *migrate_holders_query(const char *relations, const char *modes);
extern char *migrate_blockers_query(const char *relations);
extern char *migrate_fence_writers(MigrateFence *fence);

#define MIGRATE_NO_BLOCKER "somebody who has ended since"

/*
 * Begin the transaction that is the fence, and lock every table in one
 * statement that lasts lock_ms at most.  False, with nothing held, when it
 * could not; *blockers, if asked for, then names who was in the way.  idle_ms: the source
 * ends the transaction by itself after so long without a statement.
 */
extern bool migrate_fence_lock(MigrateFence *fence, int lock_ms, int64 idle_ms,
							   char **blockers);

/*
 * In that transaction: from its commit on, writes are refused, but for sessions
 * whose token has this SHA-256 (hexadecimal).
 */
extern void migrate_fence_close(MigrateFence *fence, const char *digest,
								const char *new_home);

/*
 * In fence_reads.c.  In that transaction, too: nobody else reads the tables from
 * its commit on.  Errors: 55000, 42501.
 */
extern void migrate_fence_close_reads(MigrateFence *fence);
extern char *migrate_fence_open_reads_sql(MigrateFence *fence);

/* COMMIT, durably.  An error leaves it unknown whether it did: look. */
extern void migrate_fence_commit(MigrateFence *fence);
extern void migrate_fence_rollback(MigrateFence *fence);

/*
 * Until no session of ours is in the middle of a fence's transaction: it is
 * ended, or has committed.  Before migrate_fence_look() tells the truth.
 */
extern void migrate_fence_end_others(MigrateFence *fence);

/* Let everything through again, at once and durably; the triggers stay. */
extern void migrate_fence_lift(MigrateFence *fence);
extern MigrateFenceState migrate_fence_look(MigrateFence *fence, const char *digest);

/* Sessions with the token write past the fence (P27). */
extern char *migrate_fence_session(const char *token);

/* Remove everything; NULL, or the statement that was refused. */
extern char *migrate_fence_drop(MigrateFence *fence, int lock_ms);

/* ----------------------------------------------------------------
 * in cutover.c: a turn of the job worker
 * ----------------------------------------------------------------
 */
extern void migrate_cutover_turn(MigrateJob *job);
extern void migrate_cut_over_turn(MigrateJob *job);
extern bool migrate_cutover_tidy(MigrateJob *job);

#endif							/* MIGRATE_CUTOVER_H */
