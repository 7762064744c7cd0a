/*-------------------------------------------------------------------------
 *
 * load.h
 *	  What the files of load/ share: the writer's three ways behind one
 *	  interface.
 *
 * A batch is written in one or more attempts, each in a subtransaction:
 *
 *	  begin -> put (a mapped row) ... -> finish
 *
 * An attempt that fails is not ended by any call: everything it made lives in
 * the memory context "attempt" and in the subtransaction's resource owner.
 * That holds for expression state, too, since a function that was left by an
 * error cannot be entered again.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_LOAD_H
#define MIGRATE_LOAD_H

#include "migrate.h"

#include "executor/executor.h"
#include "fmgr.h"
#include "storage/buf.h"
#include "utils/hsearch.h"

/* how mapped rows get into the target; a way through a temporary table joins */
typedef struct MigrateWriterWay
{
	const char *name;
	void		(*begin) (MigrateWriter *writer);
	void		(*put) (MigrateWriter *writer, TupleTableSlot *slot);
	/* the same for many tuples of the target at once; NULL: it cannot */
	void		(*put_tuples) (MigrateWriter *writer, HeapTuple *tuples, int64 n);

	/*
	 * The rows of a key (slot of map->keysdesc) go; with writer->taken they
	 * are kept there.  NULL: it cannot.
	 */
	void		(*remove) (MigrateWriter *writer, TupleTableSlot *keys);
	int64		(*finish) (MigrateWriter *writer);	/* target rows written */
} MigrateWriterWay;

/* a column of the key map */
typedef struct MigrateWriterKey
{
	int			column;			/* index in map->columns, -1: not mapped */
	Oid			type;
	Oid			collation;
	FmgrInfo	equal;			/* fn_oid 0: compare images */
	FmgrInfo	hash;			/* extended; fn_oid 0: hash the text */
	FmgrInfo	output;
} MigrateWriterKey;

/* the target's relation as the statements of writer_sql.c need it */
typedef struct MigrateWriterSql
{
	char	   *update;			/* NULL: delete first */
	char	   *delete;			/* NULL: update, or nothing to look for */
	char	   *insert;
	char	   *insert_new;		/* only rows whose key is not there */
	TupleDesc	mapped;			/* map->outdesc, named for the statements */

	/* for sets */
	char	   *remove;			/* rows of a list of keys */
	TupleDesc	gone;			/* map->keysdesc, named likewise */
	char	   *take;			/* their columns that are not mapped; NULL:
								 * none */
	char	   *put_back;		/* insert mapped columns with those */
	char	   *insert_untaken; /* rows of whom nothing was there */
	TupleDesc	taken;			/* those columns, then the ordinal */

	/* to read back, see writer_back.c; NULL until it is wanted */
	char	   *insert_places;	/* insert, and say where */
	char	   *find;			/* rows of the mapped rows' keys */
	char	   *find_gone;		/* rows of the list of keys */
	List	   *elsewhere;		/* OIDs of the target's foreign tables */
} MigrateWriterSql;

/* of writer_row.c: what is the same for all attempts, in the writer's memory */
typedef struct MigrateRowPlan
{
	int			ndefaults;		/* columns that get an expression's value */
	AttrNumber *default_attnums;
	Expr	  **defaults;
	Expr	   *owns;			/* NULL: none */
	bool		generated;		/* stored generated columns */
} MigrateRowPlan;

/* the same as it is run in an attempt */
typedef struct MigrateRowState
{
	EState	   *estate;
	ResultRelInfo *rri;
	ExprState **defaults;
	ExprState  *owns;
} MigrateRowState;

struct MigrateWriter
{
	const MigrateWriterWay *way;
	MigrateMapping *map;
	MigrateSource *src;
	Relation	rel;			/* open, RowExclusiveLock until the end */
	bool		replica;		/* P13: the owner owns the target */
	bool		sets;			/* for sets of changes, not for a copy */
	bool		as_set;			/* a key's rows are replaced all at once */
	bool		served;			/* a btree index serves the key map */

	/*
	 * No row of ours is there: insert without looking.  Goes off for good
	 * when a unique violation says that one is, see
	 * migrate_writer_look_first().
	 */
	bool		insert_only;
	MigrateWriterKey *keys;		/* map->nkeys */
	MigrateWriterSql sql;
	MigrateRowPlan *row;		/* of writer_row.c; NULL: not needed */

	struct IndexPlan *index;	/* of writer_index.c */

	/*
	 * Of the set at hand, see apply_set.c; all NULL and false in a copy.  A
	 * row's number in the set is ids[its ordinal].
	 */
	const int64 *ids;
	Bitmapset **unknown;		/* by number: source columns without a value */
	HeapTuple  *taken;			/* by number: the row that was removed */
	bool		anew;			/* what was there is in "taken": only insert */
	uint8	   *missing;		/* numbers whose unknown value no row has */
	int64		nmissing;
	int64		removed;		/* rows of the target, in this attempt */

	MemoryContext mcxt;			/* the writer's own */
	MemoryContext attempt;		/* of the current attempt */
	void	   *state;			/* of the way, in "attempt" */

	/* the batch at hand; see writer_keys.c */
	HTAB	   *seen;			/* key values -> row that gave them */

	/* of verify.c */
	struct MigrateVerify *verify;	/* in this attempt; NULL: not wanted */
	struct MigrateVerify *verifier; /* what it was made of, once it was */
	int64		verified;		/* rows, in this attempt */
	struct MigrateWriterBack *back; /* of writer_back.c, likewise */
};

/* writer.c */
extern MigrateWriter *migrate_writer_open_sets(MigrateMapping *map, MigrateSource *src);
extern void migrate_writer_hold(MigrateWriter *writer);
extern void migrate_writer_release(MigrateWriter *writer);
extern bool migrate_writer_look_first(MigrateWriter *writer);
extern char *migrate_writer_target(MigrateWriter *writer);

/* extend.c */
extern void migrate_extend_for(Relation rel, Size bytes, Size *owed,
							   BufferAccessStrategy strategy);
extern Size migrate_tuple_room(Size length);

/* writer_keys.c */
extern void migrate_writer_keys_open(MigrateWriter *writer);
extern void migrate_writer_keys_begin(MigrateWriter *writer, MemoryContext mcxt,
									  int64 rows);
extern bool migrate_writer_key_agrees(MigrateWriter *writer, TupleTableSlot *slot,
									  int *which);
extern bool migrate_writer_key_is_new(MigrateWriter *writer, TupleTableSlot *slot,
									  int64 id);
extern void migrate_writer_keys_forget(MigrateWriter *writer, int64 id);
extern char *migrate_writer_key_text(MigrateWriter *writer, TupleTableSlot *slot);

/*
 * verify.c.  A scan gives all rows to the sink, and can be called again; the
 * i-th mapped column of a row is attribute attnums[i] of the slot, or i + 1
 * when that is NULL.
 */
typedef struct MigrateVerify MigrateVerify;
typedef void (*MigrateVerifySink) (void *arg, TupleTableSlot *slot,
								   const AttrNumber *attnums);
typedef void (*MigrateVerifyScan) (MigrateWriter *writer, MigrateVerifySink sink,
								   void *arg);

extern void migrate_verify_begin(MigrateWriter *writer, bool wanted);
extern void migrate_verify_given(MigrateWriter *writer, TupleTableSlot *slot,
								 const AttrNumber *attnums);
extern void migrate_verify_found(MigrateWriter *writer, MigrateVerifyScan given_rows,
								 MigrateVerifyScan found_rows);
extern void migrate_verify_gone(MigrateWriter *writer, TupleTableSlot *slot,
								const AttrNumber *attnums, MigrateVerifyScan given_rows);
extern void migrate_verify_place(MigrateWriter *writer, Relation rel, ItemPointer place,
								 TupleTableSlot *slot, const AttrNumber *attnums,
								 MigrateVerifySink sink, void *arg);
extern void migrate_verify_store(Tuplestorestate *store, TupleDesc desc,
								 MigrateVerifySink sink, void *arg);

/* writer_row.c */
extern MigrateRowPlan *migrate_row_plan(MigrateWriter *writer);
extern void migrate_row_begin(MigrateWriter *writer, MigrateRowState *state);
extern void migrate_row_fill(MigrateWriter *writer, MigrateRowState *state,
							 TupleTableSlot *slot, TupleTableSlot *mapped);
extern bool migrate_row_is_owned(MigrateRowState *state, TupleTableSlot *slot);
extern void migrate_row_check(MigrateWriter *writer, MigrateRowState *state,
							  TupleTableSlot *slot);

/* writer_fresh.c */
extern const MigrateWriterWay migrate_writer_fresh;
extern bool migrate_fresh_possible(MigrateWriter *writer);
extern bool migrate_fresh_takes_tuples(MigrateWriter *writer);

/* writer_index.c */
extern const MigrateWriterWay migrate_writer_index;
extern bool migrate_index_possible(MigrateWriter *writer);
extern bool migrate_index_serves(MigrateWriter *writer);

/* writer_sql.c */
extern const MigrateWriterWay migrate_writer_sql;
#define MIGRATE_MAPPED_NAME "migrate_mapped"
#define MIGRATE_GONE_NAME "migrate_gone"

extern void migrate_writer_sql_open(MigrateWriter *writer);
extern char *migrate_writer_sql_insert(MigrateWriter *writer);
extern char *migrate_writer_sql_find(MigrateWriter *writer, const char *columns,
									 const char *keys);

/* writer_back.c: of an attempt by statements, while SPI is connected */
typedef struct MigrateWriterBack
{
	bool		by_place;		/* inserts say where; else by the key map */
	Tuplestorestate *given;		/* mapped rows */
	struct SPITupleTable *returned; /* by the insert */
	uint64		nreturned;
	struct SPITupleTable *found;	/* by the key map */
	uint64		nfound;
} MigrateWriterBack;

extern void migrate_back_begin(MigrateWriter *writer, Tuplestorestate *given);
extern void migrate_back_given(MigrateWriter *writer, TupleTableSlot *mapped);
extern int64 migrate_back_insert(MigrateWriter *writer, int64 *owned);
extern void migrate_back_check(MigrateWriter *writer, bool any_rows, bool any_gone);

#endif							/* MIGRATE_LOAD_H */
