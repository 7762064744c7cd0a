/*-------------------------------------------------------------------------
 *
 * control.h
 *	  What the files of control/ share with each other.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_CONTROL_H
#define MIGRATE_CONTROL_H

#include "migrate.h"

#include "postmaster/bgworker.h"

#define MIGRATE_LIBRARY "migrate"

/* how long workers sleep when nobody wakes them, ms */
#define MIGRATE_NAP 1000

/* ----------------------------------------------------------------
 * in worker.c: what every background worker of ours begins and ends with
 * ----------------------------------------------------------------
 */

/* travels in bgw_extra to job workers */
typedef struct MigrateJobArgs
{
	Oid			database;
	Oid			owner;
	int			job_id;
	TransactionId xid;			/* wait for its end first; 0: do not */
} MigrateJobArgs;

/* travels in bgw_extra to loaders */
typedef struct MigrateLoaderArgs
{
	Oid			database;
	Oid			owner;
	int			job_id;
	dsm_handle	handle;
	int			slot;
} MigrateLoaderArgs;

/* signals, connection as "owner" (InvalidOid: bootstrap superuser), settings */
extern void migrate_worker_init(Oid database, Oid owner);
extern void migrate_worker_reload(void);

/* so long, ms, whoever sets the latch; settings are taken up meanwhile */
extern void migrate_worker_sleep(long ms);
extern char *migrate_owner_search_path;

/* fill in what is common; name is cut to fit */
extern void migrate_worker_describe(BackgroundWorker *worker, const char *type,
									const char *name, const char *function);
extern bool migrate_register_job_worker(MigrateJobArgs *args, const char *job,
										pid_t notify_pid);

/* SPI_connect with a snapshot where there is none, and back */
extern void migrate_spi_begin(void);
extern void migrate_spi_end(void);

/* After PG_CATCH: the error in the given context, everything else undone. */
extern ErrorData *migrate_recover(MemoryContext mcxt);

/*
 * Locks that SQL cannot take (P22): what the second key says, and what the
 * first one then is.
 */
typedef enum MigrateLockKind
{
	MIGRATE_LOCK_JOB = 0,		/* job: its job worker (1: steps,
								 * load/step_claim.c) */
	MIGRATE_LOCK_CAPTURE = 2,	/* stream: its capture worker */
	MIGRATE_LOCK_APPLY = 3,		/* job: its apply worker */
	MIGRATE_LOCK_WRITER = 4,	/* job: whoever writes to its targets (P14) */
	MIGRATE_LOCK_STREAM = 5,	/* stream: the job worker that makes or joins
								 * it */
	MIGRATE_LOCK_CUT = 6,		/* job: whoever takes a cut (P23) */
	MIGRATE_LOCK_REVERSE = 7,	/* job: its reverse worker */
	MIGRATE_LOCK_VALIDATOR = 8, /* job: its validator */
	MIGRATE_LOCK_VALIDATION = 9 /* no id, but the handle of the segment of a
								 * running validation (validate/progress.c) */
} MigrateLockKind;

extern bool migrate_worker_lock(MigrateLockKind kind, int id);
extern void migrate_worker_unlock(MigrateLockKind kind, int id);
extern bool migrate_worker_alive(MigrateLockKind kind, int id);
extern void migrate_transaction_lock(MigrateLockKind kind, int id);
extern void migrate_transaction_unlock(MigrateLockKind kind, int id);
extern bool migrate_transaction_lock_try(MigrateLockKind kind, int id);
extern bool migrate_lock_is_mine(MigrateLockKind kind, int id);
extern int	migrate_lock_holder(MigrateLockKind kind, int id);
extern List *migrate_lock_ids(MigrateLockKind kind);

/* the same for a job worker */
extern bool migrate_job_lock(int job_id);
extern void migrate_job_unlock(int job_id);
extern bool migrate_job_alive(int job_id);

/* ----------------------------------------------------------------
 * in shmem.c
 * ----------------------------------------------------------------
 */
extern dsm_handle migrate_shmem_create(int job_id);
extern bool migrate_shmem_attach(dsm_handle handle, int job_id, int slot);

/* look into the segment of another job; NULL when it is gone */
/* in job.c: the handle for it */
extern int64 migrate_job_shmem(int job_id);

extern MigrateShared *migrate_shmem_peek(int64 handle, int job_id,
										 dsm_segment **seg);
extern void migrate_shmem_unpeek(dsm_segment *seg);
extern void migrate_slot_chunk(MigrateChunk *chunk);
extern void migrate_slot_chunk_done(bool success);
extern void migrate_slot_step(MigratePostStep *step);
extern void migrate_slot_step_over(bool recorded);
extern void migrate_slot_memory(void);
extern void migrate_clip(char *field, size_t size, const char *text);
extern void migrate_wake_pid(int pid);
extern void migrate_wake_job_worker(void);
extern void migrate_wake_loaders(void);

/* ----------------------------------------------------------------
 * in throttle.c
 * ----------------------------------------------------------------
 */
extern void migrate_throttle_limits(MigrateJob *job);

/* the token buckets of a reader, also one that is no worker of the job */
extern long migrate_buckets_take(MigrateBuckets *b, int64 rows, int64 bytes);
extern void migrate_buckets_describe(const MigrateBuckets *b, char *line, size_t size);

/* run throttle_query when its time has come; may lose *conn (then NULL) */
extern void migrate_throttle_evaluate(MigrateJob *job, MigrateConn **conn,
									  MemoryContext conn_cxt);

/* ----------------------------------------------------------------
 * in trouble.c: errors that repeat, and when they make a job fail
 * ----------------------------------------------------------------
 */
extern bool migrate_error_is_transient(const char *sqlstate);
extern void migrate_trouble_note(int64 chunk_id, const char *sqlstate,
								 const char *message);
extern void migrate_trouble_clear(int64 chunk_id);
extern int	migrate_backoff(int attempt, int max_ms);

typedef struct MigrateVerdict
{
	char		sqlstate[6];
	char		message[512];
} MigrateVerdict;

/* true: the loaders' errors have lasted too long, the job must fail */
extern bool migrate_trouble_verdict(MigrateJob *job, TimestampTz last_progress,
									MigrateVerdict *verdict);

/* ----------------------------------------------------------------
 * in loader.c: one chunk or step after the other; used by the job worker, too
 * ----------------------------------------------------------------
 */
typedef struct MigrateLoader
{
	int			job_id;
	MigrateConn *conn;
	MemoryContext conn_cxt;
	MemoryContext cxt;			/* of one step */

	/* while indexing, what was loaded a moment ago; see known_job() */
	MigrateJob *job;			/* NULL: none */
	MemoryContext job_cxt;
	TimestampTz job_at;

	bool		release_pending;	/* a chunk or step may be marked as ours */
	int			errors;			/* steps in a row that failed */
	int			retry_max_delay_ms;
	char		last_sqlstate[6];
	int64		chunk_id;		/* at hand, 0: none */

	/* the table whose chunks it copies, and since when */
	int			source_id;
	TimestampTz source_since;
	int			tables_seen;	/* of MigrateShared.tables_copied: no step
								 * left */
} MigrateLoader;

typedef enum MigrateStep
{
	MIGRATE_STEP_LOADED,		/* a chunk is done */
	MIGRATE_STEP_BUILT,			/* a step after the copy is over */
	MIGRATE_STEP_NOTHING,		/* nothing to claim */
	MIGRATE_STEP_ERROR,			/* noted; wait before the next */
	MIGRATE_STEP_ABANDONED,		/* given up on purpose, chunk is todo */
	MIGRATE_STEP_GONE			/* the job is not there any more */
} MigrateStep;

extern MigrateLoader *migrate_loader_create(int job_id);
extern MigrateStep migrate_loader_step(MigrateLoader *loader);
extern void migrate_loader_disconnect(MigrateLoader *loader);

/* ----------------------------------------------------------------
 * in loaders.c: the job worker's view of its loaders
 * ----------------------------------------------------------------
 */
extern int	migrate_loaders_alive(void);
extern void migrate_loaders_reap(MigrateJob *job);
extern void migrate_loaders_start(MigrateJob *job, dsm_handle handle);
extern void migrate_loaders_terminate(void);

/* when loaders that ended by themselves keep doing so: since when, else 0 */
extern TimestampTz migrate_loaders_dying_since(void);

/* ----------------------------------------------------------------
 * in job_worker.c
 * ----------------------------------------------------------------
 */
extern void migrate_job_worker_glance(void);

/* ----------------------------------------------------------------
 * in replan.c: P1 and migrate_recopy
 * ----------------------------------------------------------------
 */
extern bool migrate_replan(MigrateJob *job);

/* ----------------------------------------------------------------
 * in drift.c: P2, what the source changes without saying so
 * ----------------------------------------------------------------
 */

/* Outside a transaction; true: the job is to pause.  final: look now, and
 * throw if that is not possible; else every few seconds, without waiting. */
extern bool migrate_drift_found(MigrateJob *job, bool final);

/* Sources were planned: compare anew. */
extern void migrate_drift_forget(void);

/* ----------------------------------------------------------------
 * in budget.c: how many dead letters are too many
 * ----------------------------------------------------------------
 */
extern char *migrate_budget_exceeded(MigrateJob *job, char **kind);
extern void migrate_budget_check_chunk(void);

/* ----------------------------------------------------------------
 * in launcher.c
 * ----------------------------------------------------------------
 */
extern void migrate_launcher_register(void);
extern bool migrate_launcher_present(void);
extern pid_t migrate_launcher_pid(void);
extern void migrate_launcher_worker_ends(int code, Datum arg);

/* ----------------------------------------------------------------
 * in start.c
 * ----------------------------------------------------------------
 */
/* this transaction has a wish for the job that is not committed */
extern bool migrate_wish_pending(int job_id);

#endif							/* MIGRATE_CONTROL_H */
