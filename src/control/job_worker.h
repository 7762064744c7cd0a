/*-------------------------------------------------------------------------
 *
 * job_worker.h
 *	  What the job worker's files share: it is one process, split by state.
 *
 *	  job_worker.c	begin, wishes, turns and their errors, leaving
 *	  job_copy.c	preparing, copying
 *	  job_steps.c	indexing, and the steps after it
 *	  live.c		catching_up, streaming
 *	  resync.c		migrate_resync, within catching_up
 *	  lag_watch.c	alerts while live
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_JOB_WORKER_H
#define MIGRATE_JOB_WORKER_H

#include "control/control.h"

typedef enum MigrateTurn
{
	TURN_AGAIN,					/* there is more to do at once */
	TURN_WAIT,
	TURN_LEAVE
} MigrateTurn;

/* What a job worker knows for itself; nothing of it matters after a crash. */
typedef struct MigrateJobWorker
{
	int			job_id;
	dsm_handle	handle;
	bool		published;		/* the handle is in the job's row */
	MemoryContext cxt;			/* of one turn */
	MigrateLoader *loader;		/* to do the loaders' work by ourselves */
	MigrateConn *conn;			/* to plan, and for throttle_query */
	MemoryContext conn_cxt;
	bool		changed;		/* a state was changed: tell the waiting */
	volatile bool cancelable;	/* SIGINT ends what is at hand */

	/* progress: a chunk or step done by anybody */
	int64		work_seen;
	TimestampTz last_progress;

	/* errors of turns in a row */
	int			errors;
	int			equal_errors;
	TimestampTz error_since;
	char		sqlstate[6];
	TimestampTz not_before;		/* back-off */
	bool		backed_off;		/* this turn only waited for that */
	TimestampTz last_purge;
} MigrateJobWorker;

extern MigrateJobWorker migrate_job_me;

/* in job_worker.c; change_state, fail and connect are for outside a transaction */
extern void migrate_job_exec(const char *sql, int expected);
extern void migrate_job_change_state(const char *state, const char *reason);
extern void migrate_job_fail(const char *sqlstate, const char *message);
extern bool migrate_job_loaders_ended(bool at_once);
extern void migrate_job_connect(MigrateJob *job);
extern void migrate_job_drop_connection(void);

/* in job_copy.c */
extern MigrateTurn migrate_turn_prepare(MigrateJob *job);
extern MigrateTurn migrate_turn_copy(MigrateJob *job);
extern bool migrate_job_over_budget(MigrateJob *job);
extern void migrate_job_watch_progress(void);
extern MigrateTurn migrate_job_work_by_ourselves(void);

/* in job_steps.c */
extern MigrateTurn migrate_turn_index(MigrateJob *job);

/*
 * Go on with the steps of the job's state; *over when none is left.  Its
 * result is what the turn should give unless they are over.
 */
extern MigrateTurn migrate_job_run_steps(MigrateJob *job, bool *over);

/* False: a key has failed, and so has the job. */
extern bool migrate_job_keys_built(void);

/* Every step is over; an alert names those that failed.  Then "state". */
extern void migrate_job_steps_over(const char *state);

/* in live.c */
extern bool migrate_live_prepare(MigrateJob *job);
extern bool migrate_live_begin_turn(MigrateJob *job, bool *resync);
extern MigrateTurn migrate_turn_catch_up(MigrateJob *job);
extern MigrateTurn migrate_turn_stream(MigrateJob *job);
extern MigrateTurn migrate_turn_switch(MigrateJob *job);

/* in resync.c */
typedef enum MigrateResyncPhase
{
	RESYNC_NONE,
	RESYNC_SLOT,
	RESYNC_TABLES
} MigrateResyncPhase;

extern MigrateResyncPhase migrate_resync_phase(void);
extern MigrateTurn migrate_turn_resync(MigrateJob *job);

/* in lag_watch.c */
extern void migrate_lag_watch(MigrateJob *job);


#define me migrate_job_me

#endif							/* MIGRATE_JOB_WORKER_H */
