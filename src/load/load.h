/*-------------------------------------------------------------------------
 *
 * load.h
 *	  What the files of load/ share with each other, and nobody else.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_LOAD_H
#define MIGRATE_LOAD_H

#include "migrate.h"

/* ----------------------------------------------------------------
 * in writer.c
 * ----------------------------------------------------------------
 */

/*
 * What one run of a batch did; made anew for each, since a run that fails
 * counts nothing.
 */
typedef struct MigrateTally
{
	int64		nrows;			/* of the batch */
	int64		mapped;			/* source rows that gave at least one row */
	int64		produced;		/* rows that the mapping gave */
	int64		written;		/* target rows */
	uint8	   *seen;			/* a bit a row of the batch */
} MigrateTally;

struct MigrateWriter
{
	MigrateMapping *map;
	MigrateSource *src;
	Relation	rel;			/* the target, ROW EXCLUSIVE */
	MemoryContext mcxt;
	struct FreshWriter *fresh;	/* one of these two */
	struct SqlWriter *sql;

	/*
	 * Set with the error of two rows of one batch that have one key: rows of
	 * the batch to be set aside, ascending.  Belongs to the caller of
	 * migrate_writer_run.
	 */
	int64	   *doubles;
	int			ndoubles;
};

/* false while the mapping runs, true while its rows are written */
extern bool migrate_writing;

/* In a subtransaction of its own; the caller aborts the writer if it throws. */
extern void migrate_writer_run(MigrateWriter *writer, MigrateBatch *batch,
							   MigrateTally *tally);
extern void migrate_writer_abort(MigrateWriter *writer);

/* note a mapped row; throws when a mapping to one gives a second */
extern void migrate_tally_row(MigrateWriter *writer, MigrateTally *tally,
							  TupleTableSlot *slot);

/* ----------------------------------------------------------------
 * in writer_fresh.c
 * ----------------------------------------------------------------
 */
extern bool migrate_fresh_possible(MigrateMapping *map, Relation rel);
extern struct FreshWriter *migrate_fresh_open(MigrateWriter *writer);
extern void migrate_fresh_run(MigrateWriter *writer, MigrateBatch *batch,
							  MigrateTally *tally);
extern void migrate_fresh_abort(struct FreshWriter *fresh);
extern void migrate_fresh_close(struct FreshWriter *fresh);

/* ----------------------------------------------------------------
 * in writer_sql.c
 * ----------------------------------------------------------------
 */
extern struct SqlWriter *migrate_sql_open(MigrateWriter *writer);
extern void migrate_sql_run(MigrateWriter *writer, MigrateBatch *batch,
							MigrateTally *tally);

#endif							/* MIGRATE_LOAD_H */
