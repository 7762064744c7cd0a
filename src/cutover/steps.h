/*-------------------------------------------------------------------------
 *
 * steps.h
 *	  The record of a cutover: its row, its steps, the DBA's hooks.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_STEPS_H
#define MIGRATE_STEPS_H

#include "migrate.h"

typedef struct MigrateCutover
{
	int			cutover_id;
	MigrateJob *job;
	MemoryContext mcxt;			/* lives as long as the cutover */
	bool		forward;
	char	   *stop_before;	/* NULL: none */
	int64		max_downtime_ms;
	char	   *digest;			/* of its token */
	bool		running;		/* a worker before us had begun it */
	bool		commit_begun;	/* and come to the fence's commit */
	bool		closed;			/* a rollback: the target is closed for good */
	bool		fence_reads;
	bool		external;		/* the source is fenced by its DBA
								 * (external.c) */
	bool		passed_gate;	/* hooks have waited at one */
	TimestampTz paused_at;		/* then: since when the application waits */
	int			step_no;		/* of the step at hand */

	/* options */
	int			lock_ms;
	int64		fence_timeout_ms;
	int64		lag_timeout_ms;
	int64		gate_timeout_ms;
	char	   *new_home;
	bool		last_check;		/* what changed is compared */
} MigrateCutover;

/* The one that was asked for or is under way; NULL: none. */
extern MigrateCutover *migrate_cutover_load(MigrateJob *job);

/* Each is a transaction of its own.  durable: it is on disk on return. */
extern void migrate_cutover_step_begin(MigrateCutover *cutover, const char *step,
									   bool in_pause, bool durable);
extern void migrate_cutover_step_end(MigrateCutover *cutover, const char *state,
									 const char *detail);
extern void migrate_cutover_event(MigrateCutover *cutover, const char *level,
								  const char *kind, const char *fmt,...) pg_attribute_printf(4, 5);
extern void migrate_cutover_note_lsn(MigrateCutover *cutover, XLogRecPtr lsn);

/* A function of one argument, the job's number; its value as a number. */
extern int64 migrate_cutover_call(MigrateCutover *cutover, const char *sql);
extern int64 migrate_cutover_call_as_writer(MigrateCutover *cutover, const char *sql);

/*
 * One transaction, durable: the guards are off, the cutover is done, the job
 * is cut_over.
 */
extern void migrate_cutover_open(MigrateCutover *cutover, TimestampTz paused_at);

/* The same for a rollback whose fence is lifted: the job streams again. */
extern void migrate_cutover_back_open(MigrateCutover *cutover, TimestampTz paused_at);

/* One transaction: the cutover is undone (edata NULL: as it was asked, or by a
 * crash), the job streams. */
extern void migrate_cutover_undone(MigrateCutover *cutover, ErrorData *edata,
								   TimestampTz paused_at);
extern void migrate_cutover_back_to_streaming(MigrateJob *job);

/* The DBA's statements and gates of a phase, in order.  A gate waits for
 * migrate_continue for timeout_ms at most.  conn NULL: one is made if needed. */
extern void migrate_cutover_hooks(MigrateCutover *cutover, const char *phase,
								  MigrateConn *conn, int64 timeout_ms);

#endif							/* MIGRATE_STEPS_H */
