/*-------------------------------------------------------------------------
 *
 * apply_worker.h
 *	  What the files of the apply worker share, and nobody else.
 *
 *	  apply.c			the worker: waits, holds, errors, the session
 *	  apply_batch.c		one local transaction: messages -> sets -> position
 *	  apply_relation.c	a table of the stream as a source table of the job
 *	  apply_collect.c	changes -> the net effect per key, written set by set
 *	  apply_parse.c		values of the rows that are left
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_APPLY_WORKER_H
#define MIGRATE_APPLY_WORKER_H

#include "control/control.h"
#include "extract/stream.h"
#include "load/apply.h"

#include "executor/spi.h"
#include "fmgr.h"

/* the entry of MigrateShared.trouble that is ours: no chunk has this id */
#define MIGRATE_APPLY_TROUBLE (-1)

/* ----------------------------------------------------------------
 * a row of the stream, kept until its batch is written
 * ----------------------------------------------------------------
 */

/*
 * Columns in the order of MigrateSource.columns, whatever the order on the
 * source: first a byte each ('n', 't' or 'u' as in the message), then for each
 * 't' its length (uint32, not aligned), its bytes and a zero.
 */
typedef struct ApplyRow
{
	int			unknown;		/* columns of kind 'u' */
	uint32		size;			/* of data */
	char		data[FLEXIBLE_ARRAY_MEMBER];
} ApplyRow;

/* what became of a key in the batch */
typedef struct ApplyEntry
{
	uint32		hash;
	uint32		keylen;
	const char *key;			/* see migrate_collect_change() */
	ApplyRow   *image;			/* the newest, NULL: it does not exist */
	ApplyRow   *gone;			/* delete this one first, NULL: no need */
	int64		count;			/* without a key: came minus went */
} ApplyEntry;

/* memory of a batch: blocks that are kept, so that they are faulted in once */
typedef struct ApplyArena
{
	MemoryContext mcxt;
	MemoryContext large;		/* what does not fit a block; reset */
	char	  **blocks;
	int			nblocks;
	int			max_blocks;
	int			current;		/* block at hand, -1: none */
	char	   *at;
	char	   *end;
	Size		used;			/* since the last reset */
} ApplyArena;

/* ----------------------------------------------------------------
 * tables
 * ----------------------------------------------------------------
 */

/* pg_snapshot */
typedef struct ApplySnapshot
{
	uint64		xmin;
	uint64		xmax;
	int			nxip;
	uint64	   *xip;
} ApplySnapshot;

/* a part of a source table as it was planned */
typedef struct ApplyLeaf
{
	Oid			oid;			/* 0: read through the root */
	char	   *relation;		/* quoted and qualified */

	/* P16, of a source without a key: its chunk's; NULL: not known */
	ApplySnapshot *snapshot;
	XLogRecPtr	lsn;			/* no commit from here on is in it */
} ApplyLeaf;

/* how a column's text becomes a value */
typedef struct ApplyInput
{
	char		fast;			/* '4' int4, '8' int8, 't' text, 0: by
								 * function */
	bool		ascii;			/* its function refuses all but ASCII */
	Oid			ioparam;
	int32		typmod;
	FmgrInfo	function;
} ApplyInput;

/* A source table of the job.  What is below "src" is made when it is needed. */
typedef struct ApplySource
{
	int			source_id;
	char	   *schema;
	char	   *table;
	bool		only_parent;
	List	   *leaves;			/* of ApplyLeaf */
	XLogRecPtr	copied_lsn;		/* every chunk has been read from here on */

	MigrateSource *src;
	MigrateApplier *applier;
	MemoryContext input_cxt;	/* of input; made anew after an error */
	ApplyInput *input;
	bool		money;

	/* the batch at hand */
	bool		dirty;
	struct entries_hash *hash;
	ApplyEntry **entries;		/* in order of arrival */
	int			nentries;
	int			max_entries;
	bool		hashed;			/* without a key: entries are in hash, too */
	MigrateBatch *batch;		/* used for one set after the other */
} ApplySource;

/* a table of the stream as one source table of the job */
typedef struct ApplyMap
{
	ApplySource *source;
	ApplyLeaf  *leaf;			/* NULL: not in the plan */
	int		   *from;			/* by column of src: column there, or ... */
	const char *no_key;			/* why old rows cannot be found; NULL: they
								 * can */
} ApplyMap;

#define APPLY_NOT_SENT (-1)		/* generated: null here */
#define APPLY_NOT_KNOWN (-2)	/* came later than the message: as 'u' */

/* a table of the stream */
typedef struct ApplyRelation
{
	Oid			oid;			/* hash key */
	MigrateRemoteRelation *remote;	/* newest description */
	MigrateRemoteRelation *accepted;	/* the one applied last; NULL: none */
	bool		found;			/* sources are known */
	List	   *sources;		/* of ApplySource; NIL: not of this job */
	bool		ready;			/* maps are those of remote */
	int			nmaps;
	ApplyMap   *maps;
} ApplyRelation;

/* ----------------------------------------------------------------
 * the worker
 * ----------------------------------------------------------------
 */
typedef struct ApplyWorker
{
	int			job_id;
	MemoryContext session;		/* everything below it; made anew after an
								 * error */

	/* from the catalog; the job is read again every now and then */
	MigrateJob *job;
	MemoryContext job_cxt;
	TimestampTz job_at;
	MigrateStream *stream;
	int			encoding;		/* of values; -1: as here */
	XLogRecPtr	consistent_lsn; /* 0: not known */

	/* migrate.apply_position as committed */
	XLogRecPtr	applied_lsn;
	int64		next_seq;

	/* apply_relation.c */
	List	   *sources;		/* of ApplySource */
	HTAB	   *relations;		/* of ApplyRelation */
	ApplyRelation *last_relation;	/* looked up last */

	/* apply_collect.c */
	ApplyArena	arena;
	List	   *dirty;			/* of ApplySource: have something collected */
	int64		collected;		/* entries in all of them */
	MigrateApplyCounts counts;	/* of the batch */

	/* a connection to the source, for questions and fetches; made when needed */
	MigrateConn *conn;
	MemoryContext conn_cxt;

	/* reading */
	MigrateSpoolReader *reader;
	MigrateMessage msg;
	int64		read_seq;		/* of the last row that was read */
	bool		dry;			/* nothing was left when it was looked last */

	/* the source transaction at hand */
	bool		in_xact;
	bool		skip;			/* it is applied */
	TransactionId xid;
	XLogRecPtr	final_lsn;
	TimestampTz commit_at;
	const char *relation;		/* for the error context */

	/* the batch: its last commit, and the source times of all */
	XLogRecPtr	end_lsn;
	int64		end_seq;
	TimestampTz end_at;
	int64		transactions;
	int64		changes;
	XLogRecPtr	changed_lsn;	/* the last that changed the job's tables */
	int64		bytes;
	bool		written;		/* a set has been flushed */
	TimestampTz *commits;
	int			ncommits;
	int			max_commits;
	TransactionId *xids;		/* of all that have begun in it */
	int			nxids;
	int			max_xids;

	/* empty transactions at the end that no commit here tells of yet */
	int64		pending_transactions;
	TimestampTz position_at;	/* when the position was written last */

	double		row_limit;		/* follows apply_latency */

	/*
	 * The job has to pause before this transaction (a change of the schema);
	 * what comes before it is applied first.
	 */
	XLogRecPtr	pause_lsn;		/* 0: no */
	char	   *pause_reason;	/* in TopMemoryContext */
	bool		pause_due;		/* all before it is applied */
} ApplyWorker;

/* ----------------------------------------------------------------
 * in apply.c
 * ----------------------------------------------------------------
 */
extern MigrateConn *migrate_apply_connection(void *worker);

/* Is apply to stand at this position, where a transaction ends? */
extern bool migrate_apply_is_held(XLogRecPtr lsn);

/*
 * Give the batch up: the job is to pause before the source transaction at
 * hand.  "why" names table and column and the remedy.
 */
pg_noreturn extern void migrate_apply_pause(ApplyWorker *w, const char *fmt,...) pg_attribute_printf(2, 3);

/* ----------------------------------------------------------------
 * in apply_batch.c
 * ----------------------------------------------------------------
 */

/* Outside a transaction; true when something was applied. */
extern bool migrate_apply_batch(ApplyWorker *w);

/* The spool is applied to its end: so is all that the stream has passed. */
extern void migrate_apply_idle(ApplyWorker *w);

/* ----------------------------------------------------------------
 * in apply_relation.c
 * ----------------------------------------------------------------
 */
extern void migrate_relations_open(ApplyWorker *w);
extern void migrate_relation_message(ApplyWorker *w, const char *data, int len);
extern ApplyRelation *migrate_relation_of(ApplyWorker *w, Oid oid);
extern void migrate_source_ready(ApplyWorker *w, ApplySource *source);
extern void migrate_relations_truncate(ApplyWorker *w, MigrateMessage *msg);
extern bool migrate_relation_copied(ApplyWorker *w, ApplyMap *map);

/* ----------------------------------------------------------------
 * in apply_collect.c
 * ----------------------------------------------------------------
 */
extern void migrate_collect_open(ApplyWorker *w);
extern void migrate_collect_change(ApplyWorker *w, ApplyRelation *rel, ApplyMap *map);
extern void migrate_collect_flush(ApplyWorker *w);

/* ----------------------------------------------------------------
 * in apply_parse.c
 * ----------------------------------------------------------------
 */

/* a row that cannot be read here */
typedef struct ApplyBadRow
{
	ApplyRow   *row;
	ErrorData  *edata;
} ApplyBadRow;

/*
 * Read rows into a batch, in their order; keys: key columns alone, the others
 * null.  What cannot be read is left out and given back, of ApplyBadRow.
 * *unknown (if not NULL) as in MigrateApplySet.
 */
extern List *migrate_parse_rows(ApplyWorker *w, ApplySource *source, ApplyRow **rows,
								int nrows, bool keys, MigrateBatch *batch,
								Bitmapset ***unknown);

/* The row's key as jsonb text; NULL when it cannot be shown. */
extern char *migrate_row_key(ApplyWorker *w, ApplySource *source, ApplyRow *row);

/* {"at": .., "columns": {..}} of a row, in the source's encoding. */
extern char *migrate_row_raw(ApplyWorker *w, ApplySource *source, ApplyRow *row);

#endif							/* MIGRATE_APPLY_WORKER_H */
