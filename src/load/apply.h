/*-------------------------------------------------------------------------
 *
 * apply.h
 *	  Changes of the source into the targets, a set at a time.
 *
 *	  apply.c			the worker: batches, transactions, the position
 *	  apply_relation.c	a table of the stream as a source table of the job
 *	  apply_collect.c	changes -> the net effect per key: sets
 *	  apply_write.c		a set through the mappings into the targets
 *	  writer_index.c	the writer's third way: row by row by an index
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_APPLY_H
#define MIGRATE_APPLY_H

#include "migrate.h"

/*
 * The net effect of a batch of changes on one source table with a key.  No key
 * is twice in images, nor twice in gone; a key in both was deleted (or became
 * another) and exists again: images win, gone is applied first.
 */
typedef struct MigrateApplySet
{
	MigrateSource *src;

	/* newest image of each key that exists after the batch, sorted by key */
	MigrateBatch *images;

	/*
	 * Columns whose value is not known (unchanged TOAST) and null in images:
	 * NULL when all are known; else for each row NULL or a set of indexes
	 * into src->columns.
	 */
	Bitmapset **unknown;

	/*
	 * Keys that do not exist after it: rows with the key columns, and
	 * whatever else the source told, the others null.
	 */
	MigrateBatch *gone;
} MigrateApplySet;

/*
 * The same for a source table without a key: whole rows, each as often as it
 * came (added) or went (removed) more than it went or came.
 */
typedef struct MigrateApplyBag
{
	MigrateSource *src;
	MigrateBatch *added;
	MigrateBatch *removed;
} MigrateApplyBag;

typedef struct MigrateApplyCounts
{
	int64		upserts;		/* target rows written */
	int64		deletes;		/* target rows removed */
	int64		dead;			/* dead letters */
	int64		superseded;		/* dead letters */
} MigrateApplyCounts;

/* ----------------------------------------------------------------
 * in control/apply_start.c, for the job worker, outside a transaction
 * ----------------------------------------------------------------
 */

/*
 * Start the job's apply worker if none lives; "handle" is that of the job's
 * shared memory.  It reads migrate.apply_position, which is there, and wakes
 * the job worker when it passes job_stream.consistent_lsn (known, or made
 * known while it runs: migrate_apply_wake), and when it has an error.
 */
extern void migrate_apply_ensure(MigrateJob *job, dsm_handle handle);

/*
 * Let it end at the next commit (at_once: by SIGTERM); true when none lives.
 * It wakes the job worker when it ends.
 */
extern bool migrate_apply_stop(bool at_once);

/* Let it look at job_stream, the options and MigrateLive.hold again. */
extern void migrate_apply_wake(void);

/* When it keeps ending unexpectedly: since when, else 0. */
extern TimestampTz migrate_apply_dying_since(void);

/* ----------------------------------------------------------------
 * in apply_write.c: every mapping of one source table, compiled; lives across
 * transactions until the catalogs that it was made from change
 * ----------------------------------------------------------------
 */
typedef struct MigrateApplier MigrateApplier;

/* In a transaction; lives in a memory context of its own below the current. */
extern MigrateApplier *migrate_applier_open(MigrateJob *job, MigrateSource *src);
extern void migrate_applier_close(MigrateApplier *applier);

/* Place in the order of foreign keys: parents are less than their children. */
extern int	migrate_applier_rank(MigrateApplier *applier);

/*
 * Within the current transaction, which holds the writer lock.  First the
 * deletes of all sets of a batch, children first, then the images, parents
 * first.  Each call is a subtransaction (P17); a row that fails by its own
 * fault becomes a dead letter of stage 'apply', 'map' or 'write', anything
 * else is thrown.  A key that is written or deleted supersedes its open
 * dead letters.  conn: to fetch rows by key (unchanged TOAST); it is asked
 * for only when it is needed.
 */
typedef MigrateConn *(*MigrateConnFn) (void *arg);

extern void migrate_apply_gone(MigrateApplier *applier, MigrateApplySet *set,
							   MigrateApplyCounts *counts);
extern void migrate_apply_images(MigrateApplier *applier, MigrateApplySet *set,
								 MigrateConnFn conn, void *conn_arg,
								 MigrateApplyCounts *counts);
extern void migrate_apply_bag(MigrateApplier *applier, MigrateApplyBag *bag,
							  MigrateApplyCounts *counts);

/*
 * TRUNCATE of the source table (leaf NULL), or of one leaf of it: only the
 * rows that the job's mappings own.  False when the rows of the leaf cannot be
 * told apart in a target.
 */
extern bool migrate_apply_truncate(MigrateApplier *applier, const char *leaf);

/*
 * A row whose values cannot be read here: dead letter of stage 'read' for
 * every mapping; key and raw are jsonb text.
 */
extern void migrate_apply_unreadable(MigrateApplier *applier, const char *key,
									 const char *raw, ErrorData *edata);

/*
 * The writer lock of a job, until the transaction ends: after the copy nobody
 * writes to its targets, nor reads from the source what it will write, without
 * it (P14).  In load/writer_lock.c.
 */
extern void migrate_writer_lock(int job_id);

#endif							/* MIGRATE_APPLY_H */
