/*-------------------------------------------------------------------------
 *
 * validate.h
 *	  What the parts of the comparison share.
 *
 *	  row_hash.c	a row's canonical form, its hash, the pinned settings
 *	  digest.c		the same as SQL functions
 *	  plan.c		who computes digests, what the buckets are; digests by query
 *	  scan.c		the rows of both sides, hashed, to a callback
 *	  changed.c		which rows changed since the last validation, and those alone
 *	  cut.c			the two snapshots that a live job is compared at
 *	  compare.c		buckets, drill-down to rows, details of the differences
 *	  validate.c	migrate_validate(), the record of a run
 *	  progress.c	what a running validation says of itself; pace, cancelling
 *	  parts.c		what is kept of a validation that is interrupted
 *	  check.c		the user's queries
 *	  scheduled.c	validations that a job makes by itself
 *	  resync.c		a target brought in line
 *	  repair.c		migrate_repair()
 *	  resync.c		write what differs (migrate_resync)
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_VALIDATE_H
#define MIGRATE_VALIDATE_H

#include "migrate.h"

#include "fmgr.h"
#include "nodes/execnodes.h"
#include "utils/elog.h"

/* Differences kept a mapping and run; more are only counted. */
#define VALIDATE_CAP 1000

typedef enum ValidateSide
{
	VALIDATE_SOURCE = 0,		/* mapped rows */
	VALIDATE_TARGET = 1			/* rows of the target table */
} ValidateSide;

/* 128 bits of XXH3, as two numbers that can be summed. */
typedef struct ValidateHash
{
	uint64		lo;
	uint64		hi;
} ValidateHash;

#define VALIDATE_MAX_BUCKETS 65536

/* Rows of a bucket: how many, and the sums of the halves of their hashes. */
typedef struct ValidateBucket
{
	int64		rows;
	uint64		lo;
	uint64		hi;
} ValidateBucket;

/* The bucket of a key that is not null, see digest.c. */
static inline int
validate_bucket_of(int64 key, int64 lo, int shift, int nbuckets)
{
	int64		n = key >> shift;

	if (n < lo)
		return 0;
	return (uint64) n - (uint64) lo < (uint64) nbuckets ? (int) (n - lo) : nbuckets - 1;
}

/* How a value becomes bytes; see row_hash.c. */
typedef enum ValidateForm
{
	FORM_INTEGER,				/* passed by value, widened to 8 bytes */
	FORM_BYTES,					/* varlena whose bytes determine its text */
	FORM_FIXED,					/* "length" bytes, by reference */
	FORM_TEXT					/* the type's output function */
} ValidateForm;

typedef struct ValidateValue
{
	ValidateForm form;
	int16		length;			/* typlen */
	FmgrInfo	out;
} ValidateValue;

typedef struct ValidateColumn
{
	char	   *name;			/* in the target */
	Oid			type[2];		/* by side */
	int			attno[2];		/* in the slots of each side, from 1 */
	ValidateValue value[2];
	bool		as_text;		/* the types of both sides are not the same */
} ValidateColumn;

/*
 * A row that is compared: the mapping's columns, then those key columns that
 * the mapping does not give.
 */
typedef struct ValidateShape
{
	int			ncolumns;
	ValidateColumn *columns;
	int			nkeys;			/* 0: rows are their own key */
	int		   *keys;			/* indexes into columns */
	StringInfoData row;			/* canonical form of the row at hand */
	StringInfoData key;
	int		   *offsets;		/* where each column starts in row */
	MemoryContext tmp;			/* reset after each row */
} ValidateShape;

/* A row on its way to a callback. */
typedef struct ValidateRow
{
	ValidateSide side;
	ValidateHash key;
	ValidateHash row;
	TupleTableSlot *slot;
	MigrateBatch *batch;		/* source side: where it came from */
	int64		ord;
} ValidateRow;

/*
 * What a scan reports to.  row: each row.  failed: a source row that cannot be
 * mapped (batch and ord) or read (batch NULL, key and raw as jsonb text or
 * NULL).  reset: forget the source rows so far, the scan begins again.
 */
typedef struct ValidateSink
{
	void		(*row) (ValidateRow *row, void *arg);
	void		(*failed) (MigrateBatch *batch, int64 ord, char *key, char *raw,
						   void *arg);
	void		(*reset) (void *arg);
	/* may be NULL: the rows of a batch of the source were all handed on */
	void		(*batch_seen) (MigrateBatch *batch, void *arg);
	void	   *arg;
} ValidateSink;

typedef enum ValidateLevel
{
	LEVEL_COUNT,
	LEVEL_CHECKSUM,
	LEVEL_FULL,
	LEVEL_CHECK,				/* of a check of the user's */
	LEVEL_CHANGED				/* rows that changed, see changed.c */
} ValidateLevel;

typedef enum ValidateDigest
{
	DIGEST_HERE,
	DIGEST_SOURCE,
	DIGEST_EXTENSION
} ValidateDigest;

/* How a mapping is compared, see plan.c. */
typedef struct ValidatePlan
{
	ValidateDigest digest;
	int			nbuckets;		/* and one more for null keys */
	ValidateBucket *buckets[2]; /* by side, nbuckets + 1 */

	/*
	 * By side, in SQL: the number that the bucket is made from (an int8), and
	 * what the digest is made from.  NULL: only C can tell.
	 */
	char	   *key[2];
	char	   *row[2];

	/* ranges of an integer key; else the key's hash is its bucket */
	bool		ranges;
	const char *range_column[2];
	int64		lo;
	int			shift;
} ValidatePlan;

/*
 * The snapshots that both sides are compared at, see cut.c.
 */
typedef struct ValidateCut
{
	MigrateSourceTxn txn;
	bool		exact;			/* of a live job: no change lies between them */
	XLogRecPtr	lsn;			/* then: where in the stream they are */
	int64		seq;			/* and the row of the spool that holds it, or
								 * one before */
	bool		pushed;			/* the target's is the active snapshot */
	const char *why;			/* of a live job: why not */
} ValidateCut;

/*
 * What is known of a mapping from a validation that was interrupted, and how
 * this one is cut into parts; see parts.c.
 */
typedef struct ValidateParts
{
	int64		chain;			/* the run that began it */
	ValidateLevel level;
	int64		part_rows;		/* option validate_part_rows */
	int			size;			/* buckets of a part; 0: not known yet */

	bool	   *equal;			/* by bucket; NULL: nothing is known */
	int64		rows[2];		/* of those, by side */
	XLogRecPtr	lsn;			/* the first cut of them; 0: none */
	char	   *since;			/* when the first was compared */

	/* how buckets were made: what the plan has to be */
	ValidateDigest digest;
	bool		ranges;
	int64		lo;
	int			shift;
	int			nbuckets;
} ValidateParts;

/* Both ends of one mapping. */
typedef struct ValidateEnds
{
	MigrateJob *job;
	MigrateMapping *map;
	MigrateSource *src;
	MigrateConn *conn;			/* NULL for transport fdw */
	ValidateShape *shape;
	ValidatePlan *plan;			/* NULL: to be made */
	const bool *only;			/* buckets to compare; NULL: all */
	ValidateParts *parts;		/* NULL: all is compared at once */

	/*
	 * Called before what differs is looked at again, to take new snapshots;
	 * NULL: keep those that there are.
	 */
	void		(*renew) (struct ValidateEnds *ends);

	/* called when nothing is read any more, before anything is recorded */
	void		(*done) (struct ValidateEnds *ends);
	ValidateCut *cut;
	MemoryContext mcxt;			/* around the subtransaction of reading */
	struct ResourceOwnerData *owner;
	bool		careful;		/* read chunk by chunk: some rows cannot be */
	int64		seen;			/* rows met in the careful way */
	int64		estimate[2];	/* see ValidateTask */
	XLogRecPtr	first_lsn;		/* of the first cut, 0: it was not exact */
	int64		first_seq;
} ValidateEnds;

typedef struct ValidateResult
{
	int64		source_rows;
	int64		target_rows;
	int64		mismatches;
	int64		kept;			/* rows in migrate.difference */
	int64		explained;		/* of them, by an open dead letter */
	bool		at_least;		/* there may be more mismatches */
	const char *digest;			/* NULL: rows were only counted */
	const char *note;			/* for the status, NULL: none */
	int64		validation_id;	/* that differences were recorded for, 0: none */
	double		ms;				/* that comparing took, without the cut */
} ValidateResult;

/* one mapping to be validated, as the catalog has it */
typedef struct ValidateTask
{
	int			mapping_id;
	int			source_id;
	char	   *target;
	bool		watched;		/* compared with its plan first (P2) */
	bool		copied;			/* the copy of its source table is over */
	int64		dead;			/* open dead letters */
	int64		estimate[2];	/* rows to be met, by side; 0: not known */
} ValidateTask;

/* validate.c */
extern const char *const validate_level_names[];
extern List *validate_tasks(MigrateJob *job, const char *target);
extern int64 validate_begin_run(MigrateJob *job, int mapping_id, const char *check,
								ValidateLevel level);
extern char *validate_describe(ValidateTask *task, ValidateLevel level, ValidateResult *r,
							   ValidateCut *cut);
extern void validate_end_run(MigrateJob *job, const char *target, ValidateLevel level,
							 int64 id, ValidateResult *r, ValidateCut *cut, char *status,
							 ReturnSetInfo *rsinfo);
extern void validate_need_connection(MigrateJob *job, MigrateConn **conn,
									 MemoryContext conn_cxt);
extern void validate_refuse_drift(MigrateJob *job, List *tasks, MigrateConn **conn,
								  MemoryContext conn_cxt);
extern void validate_open_ends(ValidateEnds *ends, MigrateJob *job, ValidateTask *task,
							   ValidateCut *cut, MigrateConn **conn, MemoryContext conn_cxt);
extern int64 validate_one(MigrateJob *job, ValidateTask *task, ValidateLevel level,
						  MigrateConn **conn, MemoryContext conn_cxt,
						  ReturnSetInfo *rsinfo, ValidateResult *result);

struct ValidateChanged;
extern int64 validate_one_changed(MigrateJob *job, ValidateTask *task, struct ValidateChanged *changed,
								  MigrateConn **conn, MemoryContext conn_cxt,
								  ReturnSetInfo *rsinfo, ValidateResult *result, ValidateCut *cut);

/* changed.c */
typedef struct ValidateChanged ValidateChanged;

extern ValidateChanged *validate_changed_open(MigrateJob *job, List *tasks, bool from_now,
											  MigrateConn **conn, MemoryContext conn_cxt);
extern void validate_changed_read(ValidateChanged *c, XLogRecPtr upto);
extern void validate_changed_compare(ValidateChanged *c, ValidateEnds *ends, int64 id,
									 ValidateResult *result);
extern void validate_note_compared(MigrateJob *job, int mapping_id, int64 id, XLogRecPtr lsn,
								   int64 seq);

/* progress.c; all but the first two do nothing where no validation was begun */
extern void validate_progress_begin(MigrateJob *job, List *tasks, bool checks,
									ValidateLevel level);
extern void validate_progress_end(void);
extern void validate_progress_target(MigrateJob *job, ValidateTask *task,
									 ValidateLevel level);
extern void validate_progress_target_done(void);
extern void validate_progress_phase(const char *phase, const int64 *estimate,
									bool source_query);
extern void validate_progress_wait(const char *phase);
extern void validate_progress_digest(int digest);
extern void validate_progress_first_pass(bool first);
extern void validate_progress_rows(ValidateSide side, int64 rows);
extern void validate_progress_again(ValidateSide side);
extern bool validate_progress_cancelled(void);
extern char *validate_progress_condition(void);
extern bool validate_paced(void);
extern void validate_pace(int64 rows, int64 bytes);

/* parts.c */
extern void validate_parts_reset(void);
extern ValidateParts *validate_parts_find(ValidateEnds *ends, ValidateLevel level, int64 id);
extern void validate_parts_begin(ValidateEnds *ends);
extern bool validate_parts_next(ValidateEnds *ends, int *next, bool *only);
extern void validate_parts_note(ValidateEnds *ends, const bool *only);
extern void validate_parts_keep(ValidateEnds *ends);

/* check.c */
extern bool validate_has_checks(MigrateJob *job);
extern void validate_checks(MigrateJob *job, MigrateConn **conn, MemoryContext conn_cxt,
							ReturnSetInfo *rsinfo);

/* cut.c */
extern char *validate_lock_name(MigrateSource *src);
extern void validate_cut_begin_writing(MigrateJob *job, MigrateSource *src,
									   const char *tables, MigrateConn *conn,
									   ValidateCut *cut);
extern void validate_cut_begin(MigrateJob *job, MigrateSource *src, const char *tables,
							   MigrateConn *conn, ValidateCut *cut);
extern void validate_cut_end(MigrateConn *conn, ValidateCut *cut);

/* row_hash.c */
extern ValidateShape *validate_shape(MigrateMapping *map);
extern void validate_value_form(ValidateValue *v, Oid type);
extern ValidateHash validate_hash_bytes(const char *data, size_t len);
extern void validate_append_value(StringInfo buf, ValidateValue *v, Datum value,
								  bool isnull);
extern void validate_hash(ValidateShape *shape, ValidateRow *row);
extern char *validate_column_text(ValidateShape *shape, ValidateSide side,
								  TupleTableSlot *slot, int column);
extern int	validate_pin_settings(void);
extern void validate_unpin_settings(int nestlevel);

/* digest.c */
extern void validate_read_buckets(const char *data, int len, ValidateBucket *buckets,
								  int nbuckets);

/* plan.c */
extern const char *const validate_digest_names[];
extern void validate_plan(ValidateEnds *ends, ValidateLevel level);
extern char *validate_answer(ValidateEnds *ends, ValidateSide side, const char *sql);
extern int64 validate_bucket_rows(ValidatePlan *plan, ValidateSide side, const bool *selected);
extern bool validate_bucket_differs(ValidatePlan *plan, int i);
extern int	validate_row_bucket(ValidateEnds *ends, ValidateRow *row);
extern char *validate_buckets_where(ValidateEnds *ends, ValidateSide side,
									const bool *selected);
extern void validate_target_digest(ValidateEnds *ends, const char *where);
extern void validate_both_digests(ValidateEnds *ends, char **where);

/* scan.c; where: a condition in the words of that side, or NULL */
extern char *validate_from_target(ValidateEnds *ends, const char *where);
extern char *validate_from_target_seen(ValidateEnds *ends, const char *where);
extern int	validate_query_settings(ValidateEnds *ends);
extern void validate_scan_source(ValidateEnds *ends, ValidateSink *sink,
								 const char *where);
extern void validate_scan_target(ValidateEnds *ends, ValidateSink *sink,
								 const char *where);
extern bool validate_source_counts(ValidateEnds *ends);
extern int64 validate_count_source(ValidateEnds *ends);
extern int64 validate_count_target(ValidateEnds *ends);

/* compare.c */
extern bool *validate_differing(ValidateEnds *ends, ValidateLevel level,
								ValidateResult *result);
extern void validate_compare(ValidateEnds *ends, ValidateLevel level,
							 int64 validation_id, ValidateResult *result);

/*
 * The conditions, by side, of a part of the rows; part -1: the mapping was
 * compiled (anew).  False: they cannot be told.
 */
typedef bool (*ValidateWhereFn) (int part, char **where, void *arg);
extern bool validate_compare_chosen(ValidateEnds *ends, int nparts, ValidateWhereFn where_of,
									void *arg, int64 validation_id, ValidateResult *result);

/* resync.c */
extern void validate_mend(ValidateEnds *ends, const bool *selected,
						  MigrateResyncCounts *counts);

#endif							/* MIGRATE_VALIDATE_H */
