/*-------------------------------------------------------------------------
 *
 * apply_set.h
 *	  What the files that put sets of changes into targets share.
 *
 *	  apply_write.c		every mapping of a source table, compiled: the calls
 *	  apply_set.c		a set through one mapping: attempts, halves, conflicts
 *	  apply_letter.c	dead letters of it, and those that it supersedes
 *	  apply_fetch.c		rows by key from the source (unchanged TOAST)
 *	  apply_bag.c		tables without a key
 *	  apply_truncate.c	TRUNCATE
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_APPLY_SET_H
#define MIGRATE_APPLY_SET_H

#include "load/apply.h"
#include "load/load.h"

#include "lib/ilist.h"

/* a mapping of the source table, with its writer */
typedef struct ApplyTarget
{
	MigrateMapping *map;
	MigrateWriter *writer;
	HTAB	   *letters;		/* keys of open dead letters; NULL: none */
} ApplyTarget;

struct MigrateApplier
{
	MigrateJob *job;
	MigrateSource *src;
	MemoryContext mcxt;			/* of this struct */
	dlist_node	node;			/* in the list that invalidations go through */

	/* from here on made anew when stale */
	bool		stale;
	MemoryContext plans;
	List	   *targets;		/* of ApplyTarget */
	List	   *depends;		/* OIDs of relations */
	bool		has_code;		/* a mapping that functions are called for */
	int			rank;			/* -1: not known yet */
	int64		letters_at;		/* serial of letters when they were read; -1 */
};

/* a row that is to become a dead letter */
typedef struct ApplyLetter
{
	int64		number;
	const char *stage;
	ErrorData  *error;
} ApplyLetter;

typedef enum ApplyPhase
{
	APPLY_WRITE,				/* in place */
	APPLY_TAKE,					/* old rows are taken out, */
	APPLY_ANEW					/* then inserted again */
} ApplyPhase;

/* rows on their way through one mapping */
typedef struct ApplySet
{
	MigrateApplier *applier;
	ApplyTarget *target;
	MigrateBatch *rows;
	Bitmapset **unknown;		/* by row, or NULL */
	bool		remove;			/* the keys go; else rows are written */
	MemoryContext mcxt;			/* of the call */

	ApplyPhase	phase;
	bool		conflict;		/* phase is to be APPLY_TAKE next */
	bool		done;
	HeapTuple  *taken;			/* by row: what was there, NULL: nothing */
	uint8	   *missing;		/* see MigrateWriter */
	int64		nmissing;
	uint8	   *dead;			/* rows that are letters */
	List	   *letters;		/* of ApplyLetter */
	int64		written;
	int64		removed;
} ApplySet;

static inline bool
migrate_bit(const uint8 *bits, int64 i)
{
	return (bits[i / 8] & (1 << (i % 8))) != 0;
}

static inline void
migrate_set_bit(uint8 *bits, int64 i)
{
	bits[i / 8] |= 1 << (i % 8);
}

/* apply_write.c */
extern void migrate_applier_hold(MigrateApplier *applier);
extern void migrate_applier_release(MigrateApplier *applier);
extern MemoryContext migrate_call_begin(MigrateApplier *applier);
extern void migrate_call_end(MigrateApplier *applier, MemoryContext caller);
extern void migrate_set_close(ApplySet *set, MigrateApplyCounts *counts);

/* apply_set.c */
extern ApplySet *migrate_set_new(MigrateApplier *applier, ApplyTarget *target,
								 MigrateBatch *rows, Bitmapset **unknown, bool remove);
extern bool migrate_set_write(ApplySet *set);
extern void migrate_set_take(ApplySet *set);

/* apply_letter.c */
extern void migrate_letters_load(MigrateApplier *applier);
extern int64 migrate_letters_supersede(ApplyTarget *target, MigrateBatch *rows);
extern void migrate_letters_insert(ApplySet *set);
extern void migrate_letter_insert(MigrateApplier *applier, ApplyTarget *target,
								  const char *stage, const char *key, const char *row,
								  const char *raw, ErrorData *error);

/* apply_fetch.c */
typedef struct ApplyFetch
{
	MigrateBatch *rows;			/* what was found */
	int64	   *numbers;		/* of each of them, the row that was asked for */
	uint8	   *found;			/* by number asked for: found, or a letter */
} ApplyFetch;

extern void migrate_fetch_rows(MigrateApplier *applier, MigrateBatch *rows,
							   const uint8 *wanted, MigrateConn *conn,
							   ApplyFetch *fetch, MigrateApplyCounts *counts);

#endif							/* MIGRATE_APPLY_SET_H */
