/*-------------------------------------------------------------------------
 *
 * reverse_table.h
 *	  A target table of the job on its way back, and what changed in it.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_REVERSE_TABLE_H
#define MIGRATE_REVERSE_TABLE_H

#include "migrate.h"

#include "extract/stream.h"
#include "cutover/remote_write.h"
#include "nodes/bitmapset.h"
#include "fmgr.h"
#include "utils/hsearch.h"

/* one mapping of a target, backwards */
typedef struct ReverseWay
{
	int			mapping_id;
	MigrateSource *src;			/* the target's row */
	MigrateMapping *inverse;	/* to the source's row */
	MigrateMapping *keys;		/* to the source's key alone */
	char	   *owns;			/* NULL: all rows */
	char	   *filter;			/* of the source's rows; NULL: all are taken */
	MigrateRemoteTable remote;
	MigrateRemoteTable remote_keys;

	/* a text to each column of src, and each column of the two back */
	FmgrInfo   *input;
	Oid		   *ioparam;
	FmgrInfo   *inverse_output;
	FmgrInfo   *keys_output;
} ReverseWay;

typedef struct ReverseTable
{
	Oid			relid;			/* hash key */
	char	   *name;
	int			nways;			/* 0: not of this job */
	ReverseWay *ways;
	int			rank;			/* parents are less than their children */

	/* the newest description in the stream */
	MigrateRemoteRelation *remote;
	int		   *from;			/* column of ways[0].src -> column there, -1 */

	/* the batch at hand */
	bool		dirty;
	bool		truncated;		/* before everything that is collected */
	HTAB	   *entries;		/* of ReverseEntry */
	List	   *order;			/* of ReverseEntry, as they came */
	List	   *carried;		/* of ReverseEntry, in the sink's carry_cxt */
} ReverseTable;

/* what became of a key */
typedef struct ReverseEntry
{
	char	   *key;			/* hash key: length-prefixed texts */
	int			keylen;
	char	  **image;			/* newest row by column of src; NULL: it is
								 * gone */
	bool	   *unknown;		/* unchanged TOAST; NULL: none */
	char	  **gone;			/* the row to delete first; NULL: none */
	bool		keep_image;		/* could not be written yet */
	bool		keep_gone;		/* could not be deleted yet */
} ReverseEntry;

typedef struct ReverseCounts
{
	int64		upserts;
	int64		deletes;
	int64		dead;

	/* more is to come: what cannot be written yet is queued again (queue.c) */
	bool		postpone;
	int64		postponed;
} ReverseCounts;

/*
 * Where a batch goes: one transaction on the source, and one here.  A large one
 * is written in parts, each as soon as so much of it is collected.
 */
typedef struct ReverseSink
{
	MigrateJob *job;
	MigrateConn *conn;

	/*
	 * Statements are sent without waiting for the answer, and any error is
	 * the batch's; else each is tried, and bad rows are set aside.
	 */
	bool		straight;

	/*
	 * More of the batch will come: what stands in the way of a row may be
	 * gone then, so that it is carried along until the last part.
	 */
	bool		more;
	MemoryContext carry_cxt;
	Size		carried;		/* bytes */
	ReverseCounts counts;
} ReverseSink;

/* In a transaction; everything in the current memory context. */
extern HTAB *migrate_reverse_tables(MigrateJob *job, MigrateConn *conn);
extern void migrate_reverse_describe(ReverseTable *table, MigrateRemoteRelation *remote,
									 MemoryContext mcxt);

/* Outside: only memory of the batch is touched. */
extern void migrate_reverse_collect(ReverseTable *table, MigrateMessage *msg,
									MemoryContext batch_cxt);

/* Forget what was collected, at the end of a batch, or of a part of it; begin
 * the next part with what is carried along. */
extern void migrate_reverse_clear(ReverseTable *table);
extern void migrate_reverse_part_over(ReverseTable *table, MemoryContext carry_cxt);
extern void migrate_reverse_resume(ReverseTable *table, MemoryContext batch_cxt);

/* ----------------------------------------------------------------
 * in reverse_write.c
 * ----------------------------------------------------------------
 */

/*
 * Within a transaction here and one on the source: write what was collected.
 * Deletes of all tables come first; see reverse.c.
 */
extern void migrate_reverse_write_gone(ReverseSink *sink, ReverseTable *table);
extern void migrate_reverse_write_images(ReverseSink *sink, ReverseTable *table);

/*
 * Before them: what was collected supersedes letters of the way back, of the
 * mappings (numbers) that have open ones.  Rows changed here.
 */
extern uint64 migrate_reverse_supersede(ReverseTable *table, Bitmapset *lettered);

#endif							/* MIGRATE_REVERSE_TABLE_H */
