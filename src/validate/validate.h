/*-------------------------------------------------------------------------
 *
 * validate.h
 *	  What the parts of the comparison share.
 *
 *	  row_hash.c	a row's canonical form, its hash, the pinned settings
 *	  scan.c		the rows of both sides, hashed, to a callback
 *	  compare.c		buckets, drill-down to rows, details of the differences
 *	  validate.c	the SQL function, the record of a run
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

/* How a column's value becomes bytes; see row_hash.c. */
typedef enum ValidateForm
{
	FORM_INTEGER,				/* passed by value, widened to 8 bytes */
	FORM_BYTES,					/* varlena whose bytes are its text */
	FORM_UUID,
	FORM_TEXT					/* the type's output function */
} ValidateForm;

typedef struct ValidateColumn
{
	char	   *name;			/* in the target */
	ValidateForm form;
	int16		length;			/* typlen, for FORM_INTEGER */
	Oid			type[2];		/* by side */
	int			attno[2];		/* in the slots of each side, from 1 */
	FmgrInfo	out[2];
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

/* Both ends of one mapping. */
typedef struct ValidateEnds
{
	MigrateJob *job;
	MigrateMapping *map;
	MigrateSource *src;
	MigrateConn *conn;			/* NULL for transport fdw */
	ValidateShape *shape;
	bool		careful;		/* read chunk by chunk: some rows cannot be */
	int64		seen;			/* rows met in the careful way */
} ValidateEnds;

typedef enum ValidateLevel
{
	LEVEL_COUNT,
	LEVEL_CHECKSUM,
	LEVEL_FULL
} ValidateLevel;

typedef struct ValidateResult
{
	int64		source_rows;
	int64		target_rows;
	int64		mismatches;
	int64		kept;			/* rows in migrate.difference */
	int64		explained;		/* of them, by an open dead letter */
	bool		at_least;		/* there may be more mismatches */
} ValidateResult;

/* row_hash.c */
extern ValidateShape *validate_shape(MigrateMapping *map);
extern void validate_hash(ValidateShape *shape, ValidateRow *row);
extern char *validate_column_text(ValidateShape *shape, ValidateSide side,
								  TupleTableSlot *slot, int column);
extern int	validate_pin_settings(void);
extern void validate_unpin_settings(int nestlevel);

/* scan.c */
extern void validate_scan_source(ValidateEnds *ends, ValidateSink *sink);
extern void validate_scan_target(ValidateEnds *ends, ValidateSink *sink);
extern int64 validate_count_source(ValidateEnds *ends);
extern int64 validate_count_target(ValidateEnds *ends);

/* compare.c */
extern void validate_compare(ValidateEnds *ends, ValidateLevel level,
							 int64 validation_id, ValidateResult *result);

#endif							/* MIGRATE_VALIDATE_H */
