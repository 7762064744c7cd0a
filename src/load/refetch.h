/*-------------------------------------------------------------------------
 *
 * refetch.h
 *	  Source rows read again, one or a few, through the foreign table: for
 *	  replay, for doubles found when a key is built, and for the dry run.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_REFETCH_H
#define MIGRATE_REFETCH_H

#include "migrate.h"

/* SQL text, all in the current memory context */
extern char *refetch_relation(Oid relid);
extern char *refetch_type(Oid type, int32 typmod);
extern char *refetch_equals(Oid type);
extern char *refetch_column_list(MigrateSource *src, const char *prefix);
extern char *refetch_mapped_query(MigrateJob *job, MigrateMapping *map,
								  MigrateSource *src);
extern char *refetch_mapped_row(MigrateSource *src);

/*
 * What to read the source's rows from, in a query of the current SPI level:
 * the foreign table, or rows that are fetched now (max_rows at most, 0: all).
 */
extern char *refetch_source(MigrateJob *job, MigrateSource *src, int64 max_rows);

/* Rows of the last SPI result, from column "first" (0 based), into a batch. */
extern void refetch_add(MigrateBatch *batch, int64 row, int first);

/* A key column's value in a key (jsonb text); NULL for null. */
extern char *refetch_key_value(const char *key, const char *column);

/*
 * The source row as it is now, by the values of a key (jsonb text); adds what
 * it finds to the batch.  SPI must be connected.
 */
extern void refetch_by_key(MigrateSource *src, const char *key,
						   MigrateBatch *batch);

/* The row as it was set aside (jsonb text), for a source without key. */
extern void refetch_stored(MigrateSource *src, const char *row,
						   MigrateBatch *batch);

/*
 * P4: rows that were read through the foreign table commit here only once what
 * was read is durable on the source.  Call it before the end.
 */
extern void refetch_wait_durable(MigrateJob *job, MigrateSource *src);

/*
 * The dead letter that this transaction's last migrate_load_batch with
 * chunk_id 0 left behind.  False when there is none.
 */
typedef struct RefetchFault
{
	int64		id;
	char	   *sqlstate;
	char	   *message;
} RefetchFault;

extern bool refetch_newest_fault(int mapping_id, RefetchFault *fault);

#endif							/* MIGRATE_REFETCH_H */
