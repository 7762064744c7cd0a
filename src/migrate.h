/*-------------------------------------------------------------------------
 *
 * migrate.h
 *	  The types that the stages hand to each other, and the table of contents
 *	  of the library.
 *
 * A row walks from left to right:
 *
 *	  extract (reader) -> transform (batch, mapping) -> load (writer,
 *	  checkpoint, dead letter)
 *
 * control/ starts and stops the processes that do so; validate/ reads both
 * ends again through the same mapping.  Every function here is called in a
 * transaction unless it says otherwise, and reports trouble by ereport(ERROR).
 *
 * Names of functions with external linkage start with migrate_.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_H
#define MIGRATE_H

#include "postgres.h"

#include "access/tupdesc.h"
#include "access/xlogdefs.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "storage/block.h"
#include "storage/condition_variable.h"
#include "storage/dsm.h"
#include "storage/s_lock.h"
#include "storage/spin.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "compat.h"

/* ----------------------------------------------------------------
 * in control/job.c: the job and its options, read from the catalog
 * ----------------------------------------------------------------
 */
typedef struct MigrateJob
{
	int			job_id;
	char	   *name;
	Oid			owner;
	Oid			server;
	char	   *state;
	char	   *wanted;			/* 'stop', 'run', 'pause', 'cancel' */
	bool		live;			/* capture is 'logical' */

	/* options in effect; units as in migrate.options */
	char	   *transport;		/* 'auto', 'copy', 'fdw' */
	char	   *chunking;		/* 'auto', 'block', 'key', 'whole' */
	char	   *content;		/* 'all', 'definitions', 'data' */
	int			workers;
	int			chunk_time_ms;	/* a chunk should take about this long */
	int			chunk_rows;		/* first chunk of a key range */
	int			chunk_blocks;	/* first chunk of a block range */
	int			batch_rows;
	int64		batch_bytes;
	int			fetch_size;
	bool		verify_writes;	/* read back what is written */
	int			max_dead_letters;	/* -1: no limit */
	double		max_dead_ratio; /* of rows read, judged after 10,000 rows */
	int64		rows_per_second;	/* 0: no limit */
	int64		bytes_per_second;	/* 0: no limit */
	char	   *throttle_query; /* empty: none */
	double		throttle_threshold;
	char	   *throttle_side;	/* 'target' or 'source' */
	int			throttle_interval_ms;
	int			retry_time_ms;	/* the same error for so long: failed */
	int			retry_max_delay_ms;
	int			connect_timeout_s;
	int			lock_timeout_ms;
	int64		validate_every_ms;	/* 0: never */
	int64		validate_part_rows; /* 0: nothing is kept */
	char	   *digest;			/* 'auto', 'here', 'source', 'extension' */
	int64		spool_limit;
	int64		spool_retention_ms;
	int64		spool_retention_size;
	int64		max_source_wal; /* 0: no limit */
	int64		apply_rows;
	int64		apply_bytes;
	int			apply_latency_ms;
	int64		lag_alert_ms;	/* 0: never */
} MigrateJob;

/* NULL when there is no such job (or none that this role may see). */
extern MigrateJob *migrate_job_load(int job_id);
extern MigrateJob *migrate_job_load_by_name(const char *name);	/* errors when unknown */
extern void migrate_check_source_leads(MigrateJob *job, const char *what);

/* ----------------------------------------------------------------
 * in extract/source.c: a source table as the catalog describes it
 * ----------------------------------------------------------------
 */
typedef struct MigrateColumn
{
	char	   *name;			/* in the foreign table */
	char	   *remote_name;	/* column_name option, else name */
	AttrNumber	attnum;			/* in the foreign table */
	Oid			type;			/* declared here */
	int32		typmod;
	Oid			remote_type;	/* InvalidOid when not known */
	bool		is_key;			/* one of source_table.key_columns */
} MigrateColumn;

typedef struct MigrateSource
{
	int			source_id;
	int			job_id;
	int			plan_no;
	char	   *label;			/* source_table.source, for messages */
	Oid			server;
	Oid			foreign_table;
	char	   *remote_schema;	/* NULL where the wrapper has none */
	char	   *remote_table;
	bool		only_parent;	/* without the tables that inherit from it */
	char		transport;		/* 'c' copy, 'f' fdw */
	char		method;			/* 'b' block, 'k' key, 'w' whole */
	bool		binary;
	int			ncolumns;		/* without dropped ones; may be 0 */
	MigrateColumn *columns;
	int			nkeys;
	int		   *keys;			/* indexes into columns */

	/*
	 * Columns of a source row, in the order of columns[], named as in the
	 * foreign table; what mapping functions take, without dropped columns.
	 */
	TupleDesc	rowdesc;
	char	   *refetched;		/* of load/refetch.c */
} MigrateSource;

extern MigrateSource *migrate_source_load(int source_id);

/* ----------------------------------------------------------------
 * in extract/connection.c: libpq to the source (interruptible everywhere)
 * ----------------------------------------------------------------
 */
struct pg_conn;
struct pg_result;

typedef struct MigrateConn
{
	struct pg_conn *pg;
	Oid			server;
	int			version;		/* PQserverVersion */
	bool		in_copy;
} MigrateConn;

/*
 * Connect with the server's options and the user mapping of "owner"; checks
 * postgres_fdw's password rule; application_name migrate/<job>/<role>;
 * session settings of P6.  SQLSTATE 08001 with a hint when unreachable.  It
 * belongs to the current memory context, whose reset closes it.
 */
extern MigrateConn *migrate_connect(Oid server, Oid owner, const char *job,
									const char *role, int connect_timeout_s);
extern void migrate_disconnect(MigrateConn *conn);

/* What its session is called on the source. */
extern char *migrate_application_name(const char *job, const char *role);

/* False when it broke and has to be made anew. */
extern bool migrate_connection_usable(MigrateConn *conn);

/* Run one statement; error (with the remote SQLSTATE, remote text in
 * errdetail_internal) unless it gives PGRES_COMMAND_OK or TUPLES_OK.  The
 * caller frees the result with PQclear (or lets a memory context do it: the
 * result is registered with the current context and cleared on reset). */
extern struct pg_result *migrate_exec(MigrateConn *conn, const char *sql);

/* First column of the first row as text, or NULL. */
extern char *migrate_exec_value(MigrateConn *conn, const char *sql);
pg_noreturn extern void migrate_report_remote_error(struct pg_result *res,
													MigrateConn *conn,
													const char *sql);

/* True when the server's wrapper is postgres_fdw. */
extern bool migrate_server_is_postgres(Oid server);

/* ----------------------------------------------------------------
 * in extract/fingerprint.c: what the source says of a source table (P2)
 * ----------------------------------------------------------------
 */

/* the table itself, a partition or child of it at any depth, on the source */
typedef struct MigrateRelation
{
	Oid			oid;
	char		relkind;
	char	   *name;			/* quoted and qualified */
	Oid			filenode;		/* 0: no storage */
	int64		blocks;			/* 0 unless a table or materialized view */
	double		reltuples;
	bool		readable;
	bool		is_root;
	bool		heap;			/* can be read by block ranges */
	char	   *fingerprint;
	char	   *missing;		/* read columns that it has not; NULL: none */
} MigrateRelation;

extern void migrate_tree_values(StringInfo buf, int id, MigrateSource *src);
extern char *migrate_tree_query(const char *values, int version, bool sizes);
extern char *migrate_tree_digest_query(const char *values, int version);
extern void migrate_key_values(StringInfo buf, int id, MigrateSource *src);
extern char *migrate_tree_identity_query(const char *values, const char *keys,
										 int version);
extern char *migrate_tree_fingerprint(List *relations);
extern char *migrate_fingerprint_change(const char *planned, const char *now,
										const char *missing, bool other);
extern bool migrate_fingerprint_altered(const char *planned, const char *now);
extern void migrate_fingerprint_unread(const char *planned, const char *now,
									   int *after, int *added, int *dropped);

/* ----------------------------------------------------------------
 * in extract/plan.c: parts and chunks
 * ----------------------------------------------------------------
 */
typedef struct MigrateRange
{
	char	   *relation;		/* quoted, on the source; NULL: the table */
	Oid			remote_oid;		/* 0 when not known */
	Oid			remote_filenode;
	char	   *fingerprint;	/* P2: when it was planned; NULL: not known */
	/* blocks [block_lo, block_hi); -1 is an open end */
	int64		block_lo;
	int64		block_hi;
	/* inside one block, line pointers [off_lo, off_hi); 0 is an open end */
	int			off_lo;
	int			off_hi;
	/* keys [key_lo, key_hi) in text form, NULL is an open end */
	char	  **key_lo;
	char	  **key_hi;
	/* rows of this key only, nkeys elements, NULL is null; NULL: not asked */
	char	  **key_at;
	/* likewise, rows of any of these keys (char **); NIL: not asked */
	List	   *keys_at;
	/* and a condition in the source's words (transport copy); NULL: none */
	char	   *where;
	/* lock "relation" (or several, with commas) although it was not planned */
	bool		lock;
} MigrateRange;

typedef struct MigrateChunk
{
	int64		chunk_id;
	int			source_id;
	int			leaf_no;
	int			plan_no;
	int			attempt;		/* fencing token */
	MigrateRange range;
	TimestampTz started;
} MigrateChunk;

/*
 * Decide transport, method and binary of every pending source table of the
 * job, insert its leaves, set it 'copying'.  Job worker, state preparing; also
 * used again after a rewrite (P1), for one source table (source_id > 0).
 */
extern void migrate_plan_sources(MigrateJob *job, MigrateConn *conn, int source_id);

/*
 * Claim a chunk: one that is 'todo', else cut the next from a leaf.  NULL when
 * none is left to claim.  Called outside a transaction, commits its own.  The
 * connection is NULL for a source that is not postgres_fdw.
 */
extern MigrateChunk *migrate_chunk_claim(MigrateJob *job, MigrateConn *conn,
										 MemoryContext mcxt);

/* Follow the measured speed: next chunk of this leaf (adaptive size). */
extern void migrate_chunk_adapt(MigrateJob *job, MigrateChunk *chunk, double seconds);

/* Chunks marked running that no live loader holds become 'todo' again. */
extern int	migrate_chunks_release(int job_id, int worker_pid /* 0: all */ );

/* ----------------------------------------------------------------
 * in extract/snapshot.c: the source transaction around a chunk (P1, P4)
 * ----------------------------------------------------------------
 */
typedef struct MigrateSourceTxn
{
	char	   *snapshot;		/* pg_current_snapshot(), NULL if unknown */
	XLogRecPtr	insert_lsn;		/* read after the snapshot, 0 if unknown */
	bool		in_recovery;	/* the source is a standby */
	bool		rewritten;		/* P1: table is not the one that was planned */
	char	   *drift;			/* P2: what else has changed, see snapshot.c */
	bool		durable;		/* P4: nothing to wait for */
} MigrateSourceTxn;

extern void migrate_source_begin(MigrateConn *conn, MigrateSource *src,
								 MigrateRange *range, MigrateSourceTxn *txn);
extern void migrate_source_wait_durable(MigrateConn *conn, MigrateSourceTxn *txn);
extern void migrate_source_end(MigrateConn *conn);
extern bool migrate_snapshot_sees(const char *snapshot, const TransactionId *xids, int n);

/* ----------------------------------------------------------------
 * in extract/reader.c (and reader_copy.c, reader_fdw.c): rows of a range
 * ----------------------------------------------------------------
 */
typedef struct MigrateReader MigrateReader;

/*
 * range NULL reads everything.  The reader runs inside the transaction that
 * migrate_source_begin opened (copy), or as a scan of the foreign table (fdw).
 */
extern MigrateReader *migrate_reader_open(MigrateConn *conn, MigrateSource *src,
										  MigrateRange *range, int fetch_size);

/*
 * Next row into values/nulls (src->rowdesc); pass-by-reference values live
 * until the next call.  False at the end.  *bytes is the row's size on the
 * wire or, where that is not known, in memory.
 */
extern bool migrate_reader_next(MigrateReader *reader, Datum *values, bool *nulls,
								int64 *bytes);
extern void migrate_reader_close(MigrateReader *reader);

/*
 * Is an error that the reader threw about one row?  Call it before the reader
 * is aborted.
 */
extern bool migrate_reader_error_is_of_row(MigrateReader *reader, ErrorData *edata);

/* Does reading a value of the type depend on lc_monetary? */
extern bool migrate_type_contains_money(Oid type);
extern bool migrate_error_can_be_of_value(ErrorData *edata);

/*
 * Settings under which values from the source are read, until the level that
 * is returned (0: nothing to be done) is ended; or the (sub)transaction fails.
 */
extern int	migrate_input_settings(bool money);
extern void migrate_input_settings_end(int level);

/* Abandon a reader after an error was caught: the source transaction is
 * usable afterwards (it was protected by a savepoint). */
extern void migrate_reader_abort(MigrateReader *reader);

/*
 * Halve a range, for rows that cannot be read.  False when it is one row (or
 * cannot be cut any further).
 */
extern bool migrate_range_halve(MigrateConn *conn, MigrateSource *src,
								MigrateRange *range,
								MigrateRange *first, MigrateRange *second);

/* After halving: is it one row at most?  False: nothing tells its rows apart. */
extern bool migrate_range_is_row(MigrateConn *conn, MigrateSource *src,
								 MigrateRange *range);

/*
 * What can be said of an unreadable row: key (jsonb text or NULL) and
 * {"at": .., "columns": {name: "\\x.."}}.
 */
extern void migrate_range_raw(MigrateConn *conn, MigrateSource *src,
							  MigrateRange *range, char **key, char **raw);

/* ----------------------------------------------------------------
 * in transform/batch.c: held source rows
 * ----------------------------------------------------------------
 */
#define MIGRATE_BATCH_NAME "migrate_batch"
#define MIGRATE_ORDINAL "migrate_ord"

typedef struct MigrateBatch
{
	MigrateSource *src;
	TupleDesc	desc;			/* rowdesc plus migrate_ord int8 */
	Tuplestorestate *store;
	int64		nrows;
	int64		bytes;
	int			max_kb;			/* beyond it spills to disk; work_mem at first */
	struct ResourceOwnerData *owner;	/* of the file that it spills to */
	MemoryContext mcxt;

	/*
	 * Straight (migrate_batch_straight): rows are held as tuples of the one
	 * target, which a writer may take as they are.  The store is made from
	 * them only when something else is wanted of the batch.
	 */
	const struct MigrateStraight *straight; /* NULL: not so */
	struct HeapTupleData **tuples;
	int64		max_tuples;		/* room in tuples */
	MemoryContext tuple_cxt;
} MigrateBatch;

/*
 * A mapping that gives every source column, as it is, to a target column of the
 * same type, and nothing else.
 */
typedef struct MigrateStraight
{
	TupleDesc	desc;			/* of the target */
	int		   *columns;		/* target attribute -> source column, from 0 */
} MigrateStraight;

extern MigrateBatch *migrate_batch_create(MigrateSource *src);
extern void migrate_batch_add(MigrateBatch *batch, Datum *values, bool *nulls,
							  int64 bytes);
extern void migrate_batch_straight(MigrateBatch *batch, const MigrateStraight *straight);
extern Tuplestorestate *migrate_batch_store(MigrateBatch *batch);
extern void migrate_batch_reset(MigrateBatch *batch);

/* Rows [lo, hi) as a batch of its own, ordinals starting at 0 again. */
extern MigrateBatch *migrate_batch_slice(MigrateBatch *batch, int64 lo, int64 hi);

/* The rows whose bit is not set in left_out, likewise. */
extern MigrateBatch *migrate_batch_pick(MigrateBatch *batch, const uint8 *left_out);
extern void migrate_batch_free(MigrateBatch *batch);

/* Read the rows from the first on, into a slot of batch->desc. */
extern TupleTableSlot *migrate_batch_scan(MigrateBatch *batch);
extern bool migrate_batch_next(MigrateBatch *batch, TupleTableSlot *slot);

/*
 * Settings under which a value's text is the same whoever reads it, and reads
 * back as the same value; until AtEOXact_GUC(true, <result>).
 */
extern int	migrate_pin_output(void);

/*
 * The key of each row as jsonb text, as migrate_batch_row_json gives it and
 * jsonb shows it.
 */
typedef void (*MigrateKeyFn) (int64 row, const char *key, void *arg);
extern void migrate_batch_keys_json(MigrateBatch *batch, MigrateKeyFn fn, void *arg);

/* One row as jsonb text, and its key as jsonb text (NULL without key). */
extern void migrate_batch_row_json(MigrateBatch *batch, int64 row,
								   char **row_json, char **key_json);

/* ----------------------------------------------------------------
 * in transform/mapping.c: a mapping, compiled once a chunk
 * ----------------------------------------------------------------
 */
#define MIGRATE_PLAN_CLASSES 3	/* P17: a row, hundreds, thousands */

typedef struct MigrateMapping
{
	int			mapping_id;
	int			job_id;
	int			source_id;
	Oid			target;
	char	   *target_name;
	char		kind;			/* 'i', 'c', 'f' */
	bool		many;
	bool		filtered;		/* rows may be left out on purpose */
	/* settings of the session that defined it, under which it always runs */
	char	   *search_path;
	char	   *timezone;
	char	   *datestyle;
	char	   *query;			/* SELECT <target columns> FROM source ... */
	int			ncolumns;		/* of the query */
	char	  **columns;		/* target column names, query order */
	AttrNumber *attnums;		/* target attribute numbers, query order */
	int			nkeys;			/* key map; 0 when there is none */
	char	  **key_columns;	/* target columns */
	char	  **key_exprs;		/* source expressions */
	char	   *owns;
	char	   *version;		/* changes when the mapping's code does */

	/* filled by migrate_mapping_compile */
	AttrNumber *key_attnums;	/* target attribute numbers of key_columns */
	bool		key_is_source_key;	/* key map holds the source key as it is */
	struct PlannedStmt *plans[MIGRATE_PLAN_CLASSES];
	TupleDesc	outdesc;		/* ncolumns, then nkeys key values, then ord */
	List	   *relations;		/* OIDs of tables that the mapping reads */
	MigrateStraight *straight;	/* NULL: it computes something */

	/*
	 * Where each source row gives one target row: the source column (from 0)
	 * that an output column is as it is, of the same type, or -1.  NULL: rows
	 * are filtered or become many.
	 */
	int		   *plain;

	/*
	 * The source column that the key map gives, before it is coerced to the
	 * target's type, or -1.
	 */
	int		   *key_source;

	/*
	 * Which source column each column of outdesc but the last is, as it is,
	 * from 0; NULL: something is computed, left out or looked up.  Less than
	 * straight: any target columns, in any order.
	 */
	int		   *projection;
	struct Bitmapset *reads;	/* source columns that it reads, from 0 */
	struct Bitmapset *key_reads;	/* likewise, the key map alone */

	/* filled by migrate_mapping_compile_keys */
	struct PlannedStmt *keys_plan;	/* NULL with a projection */
	TupleDesc	keysdesc;		/* nkeys key values, then ord */
} MigrateMapping;

extern MigrateMapping *migrate_mapping_load(int mapping_id);
extern List *migrate_mappings_of_source(int source_id); /* of MigrateMapping */

/*
 * Parse, coerce to the target's column types with assignment casts, and plan,
 * under the mapping's search_path, as the current user.
 */
extern void migrate_mapping_compile(MigrateMapping *map, MigrateSource *src);

/*
 * Run over a batch.  Each row goes to dest, a slot of outdesc.  The current
 * user is the owner, session_replication_role is origin (P13).
 */
typedef void (*MigrateRowFn) (TupleTableSlot *slot, void *arg);
extern void migrate_mapping_run(MigrateMapping *map, MigrateBatch *batch,
								MigrateRowFn dest, void *arg);

/*
 * The key map alone: of every row, filtered or not, its key values (slot of
 * keysdesc).  Rows need no more than the columns that the key map reads.
 */
extern void migrate_mapping_compile_keys(MigrateMapping *map, MigrateSource *src);
extern void migrate_mapping_run_keys(MigrateMapping *map, MigrateBatch *batch,
									 MigrateRowFn dest, void *arg);

/* ----------------------------------------------------------------
 * in load/writer.c (writer_fresh.c, writer_sql.c): mapped rows into a target
 * ----------------------------------------------------------------
 */
typedef struct MigrateWriter MigrateWriter;

typedef struct MigrateCounts
{
	int64		read;
	int64		mapped;			/* source rows that gave at least one row */
	int64		filtered;
	int64		dead;
	int64		written;		/* target rows */
} MigrateCounts;

/* fresh_allowed: no row of ours can be there yet (first copy). */
extern MigrateWriter *migrate_writer_open(MigrateMapping *map, MigrateSource *src,
										  bool fresh_allowed);
extern void migrate_writer_close(MigrateWriter *writer);

/* ----------------------------------------------------------------
 * in load/load.c: a batch through one mapping, bad rows set aside
 * ----------------------------------------------------------------
 */
typedef struct MigrateLoadContext
{
	MigrateJob *job;
	int64		chunk_id;		/* 0 when none (replay) */
	const char *stage;			/* 'write' normally */
} MigrateLoadContext;

/*
 * One subtransaction for the batch; when it fails by a fault of a row, halves
 * it down to the row, which becomes a dead letter.  Adds to counts.  Errors
 * that are no row's fault are thrown.
 */
extern void migrate_load_batch(MigrateLoadContext *ctx, MigrateWriter *writer,
							   MigrateBatch *batch, MigrateCounts *counts);

/* load/dead_letter.c */
extern bool migrate_error_is_of_row(int sqlerrcode);
extern void migrate_dead_letter_insert(MigrateLoadContext *ctx, int mapping_id,
									   const char *stage, const char *key,
									   const char *row, const char *raw,
									   ErrorData *edata, const char *version);

/* load/chunk.c: the whole of one chunk; commits rows and checkpoint together.
 * Called outside a transaction.  Returns false when the chunk was given up
 * because the table was rewritten (P1). */
extern bool migrate_chunk_load(MigrateJob *job, MigrateConn *conn,
							   MigrateChunk *chunk);

/* load/checkpoint.c: 'done', fenced by attempt and plan_no; conservation. */
extern void migrate_checkpoint(MigrateJob *job, MigrateChunk *chunk,
							   MigrateSourceTxn *txn, int64 rows, int64 bytes,
							   List *mappings, MigrateCounts *counts);

/* ----------------------------------------------------------------
 * in load/step_claim.c, step_run.c, step_key.c: what is done after the copy,
 * one row of migrate.post_step at a time
 * ----------------------------------------------------------------
 */
typedef struct MigratePostStep
{
	int			step_id;
	int			attempt;		/* fencing token */
	Oid			root;			/* target of its mapping, else its own */
	int			source_id;		/* that the mapping reads, 0: none */
	char	   *kind;
	char	   *object;
	char	   *relation;		/* NULL: of no table */
	char	   *ddl;
	bool		has_doubles;	/* 23505 when it was built last (P10) */
	TimestampTz error_since;	/* of passing errors; 0: none */
} MigratePostStep;

/*
 * Claim a step that may run now; NULL when there is none.  While the job still
 * copies, only keys and indexes of targets whose every source is copied.
 * Called outside a transaction, commits its own.
 */
extern MigratePostStep *migrate_step_claim(MigrateJob *job, MemoryContext mcxt);

/*
 * Run it and write down what came of it; its own errors are written down too,
 * not thrown.  True when it is done.  Called outside a transaction.
 */
extern bool migrate_step_run(MigrateJob *job, MigratePostStep *step);

/* Like migrate_chunks_release, for steps. */
extern int	migrate_steps_release(int job_id, int worker_pid /* 0: all */ );

/*
 * P9: only steps that may run before the consistent position, as a condition
 * on migrate.post_step p.
 */
extern bool migrate_steps_are_early(MigrateJob *job);

#define MIGRATE_STEP_IS_EARLY \
	"(p.phase = 10 AND (p.kind IN ('key', 'doubles')" \
	" OR p.kind = 'index' AND p.ddl !~ '^CREATE UNIQUE'))"

/* Until the transaction's end no step of the job is claimed by anybody. */
extern void migrate_steps_lock(int job_id);

/* Columns of the key that a statement makes (char *); NIL: it is no such. */
extern List *migrate_key_columns(const char *ddl);

/* P10 for every mapping that fills the step's table. */
extern void migrate_step_resolve_doubles(MigrateJob *job, MigratePostStep *step);

/*
 * load/as_owner.c: be the job's owner while mapping code runs, in functions
 * that anybody may call; an error undoes it.
 */
typedef struct MigrateAsOwner
{
	Oid			caller;
	int			sec_context;
} MigrateAsOwner;

extern void migrate_as_owner(Oid owner, MigrateAsOwner *as);
extern void migrate_as_caller(MigrateAsOwner *as);

/*
 * load/target.c: a target's name for statements other than INSERT, with ONLY
 * where tables that inherit from it are no part of it.  only_parent is that of
 * the source which fills it.
 */
extern bool migrate_target_is_only(Oid target, bool only_parent);
extern char *migrate_target_name(Oid target, bool only_parent);

/* ----------------------------------------------------------------
 * in validate/scheduled.c: option validate_every, of a streaming job; in the
 * job worker, outside a transaction
 * ----------------------------------------------------------------
 */
extern void migrate_validate_scheduled(MigrateJob *job);

/* ----------------------------------------------------------------
 * in validate/resync.c: write what differs
 * ----------------------------------------------------------------
 */
typedef struct MigrateResyncCounts
{
	int64		source_rows;	/* mapped rows, and those that cannot be
								 * mapped */
	int64		target_rows;
	int64		keys_different;
	int64		rows_written;
	int64		rows_deleted;
	int64		dead_letters;
} MigrateResyncCounts;

/*
 * A mapping whose key map and source have a key; in a transaction that holds
 * the writer lock and that no other rows are written in.
 */
extern void migrate_resync_mapping(MigrateJob *job, int mapping_id, MigrateConn *conn,
								   MigrateResyncCounts *counts);

/* ----------------------------------------------------------------
 * in control/shmem.c: live counters, rate limits, wake-ups
 *
 * One dynamic segment a running job, made by its job worker, whose handle is
 * in migrate.job.shm_handle; works the same with and without preloading.
 * ----------------------------------------------------------------
 */
#define MIGRATE_MAX_LOADERS 64
#define MIGRATE_SHM_MAGIC 0x6d696772

typedef struct MigrateWorkerSlot
{
	/* all written by the worker itself, under MigrateShared.mutex */
	int			pid;			/* 0: free */
	char		role[16];		/* 'job', 'loader' */
	char		phase[24];		/* 'claim', 'read', 'write', 'throttle', .. */
	int64		chunk_id;
	int			step_id;		/* of post_step */
	int			source_id;		/* of the chunk or step */
	int64		rows;			/* since its start */
	int64		bytes;
	int64		chunk_rows;		/* of the current chunk */
	int64		chunk_bytes;
	int64		chunk_dead;
	int64		chunks;			/* finished, since its start */
	int64		steps;			/* likewise */
	int64		dead;
	int64		verified;		/* rows read back (verify_writes) */
	Size		memory;			/* bytes in TopMemoryContext and below */
	TimestampTz started;
	TimestampTz changed;
	TimestampTz error_since;	/* 0: working; else the first of equal errors */
	int			errors;			/* in a row */
	char		sqlstate[6];
	char		last_error[256];
} MigrateWorkerSlot;

/*
 * Errors of a chunk in a row that are not transient, written by loaders under
 * MigrateShared.mutex; a success of the chunk removes its entry.  Outlives the
 * loader, so that a chunk that fails in one loader after the other is noticed.
 */
typedef struct MigrateTrouble
{
	int			count;			/* 0: free */
	int64		chunk_id;		/* 0: while claiming */
	char		sqlstate[6];
	char		message[256];
} MigrateTrouble;

/*
 * How long something took, in buckets of powers of two of 0.1 ms: bucket 0 is
 * below 0.1 ms, bucket i below 0.1 * 2^i ms, the last one whatever is longer.
 */
#define MIGRATE_HISTOGRAM 32

typedef struct MigrateHistogram
{
	int64		count[MIGRATE_HISTOGRAM];
} MigrateHistogram;

/*
 * What was counted in the last 30 to 60 s, in two halves: [0] since "since",
 * [1] in the half before.  migrate_window_turn() comes before each use.
 */
typedef struct MigrateWindow
{
	TimestampTz since;
	MigrateHistogram lag[2];	/* commit on the source to commit here */
	MigrateHistogram write[2];	/* one batch: begin to commit */
} MigrateWindow;

/* source transactions that the apply worker remembers */
#define MIGRATE_RECENT_XIDS 8192

/* Written by the apply worker under MigrateShared.mutex, unless it says else. */
typedef struct MigrateLive
{
	int			apply_pid;		/* 0: none */
	XLogRecPtr	applied_lsn;
	XLogRecPtr	changed_lsn;	/* commit of the last that changed the job's
								 * tables; set before it is applied */
	TimestampTz commit_at;		/* source time of the last applied commit */
	TimestampTz applied_at;		/* when that was applied here */
	int64		transactions;	/* since its start */
	int64		changes;
	int64		batches;
	double		changes_per_second; /* of the last seconds */
	bool		idle;			/* nothing is left to apply */
	/* written by the job worker; the apply worker is woken after */
	bool		stop;			/* leave at a commit */
	uint32		look;			/* counts the calls to read options and
								 * job_stream */

	/*
	 * Written by whoever takes a cut, under MIGRATE_LOCK_CUT
	 * (validate/cut.c): stop at a commit, or at the one that ends at hold_at
	 * if that is not applied; held: it has.  MigrateShared.changed is
	 * broadcast then.
	 */
	bool		hold;
	XLogRecPtr	hold_at;
	bool		held;			/* written by the apply worker */

	/*
	 * A ring of the source transactions that were applied last; those of a
	 * batch that was rolled back may be among them.
	 */
	uint32		nrecent;		/* counts on */
	TransactionId recent[MIGRATE_RECENT_XIDS];

	/* written by the reverse worker, but for reverse_stop */
	int			reverse_pid;	/* 0: none */
	bool		reverse_stop;	/* written by the job worker: leave */
	XLogRecPtr	reverse_lsn;	/* our own changes before it are on the source */
	int64		reverse_changes;	/* since the job worker's start */
	int64		reverse_dead;
	int64		reverse_retained;	/* WAL that the slot holds back, bytes */
	TimestampTz reverse_commit_at;	/* of the last commit that is on the
									 * source */
	TimestampTz reverse_caught_up_at;	/* when nothing was left to send, last */

	MigrateWindow window;
} MigrateLive;

/*
 * Token buckets of what may be read from the source: the limits (0: none), and
 * what is left; below zero is a debt that whoever reads has to wait for.
 */
typedef struct MigrateBuckets
{
	int64		rows_per_second;
	int64		bytes_per_second;
	double		row_tokens;
	double		byte_tokens;
	TimestampTz tokens_at;
} MigrateBuckets;

typedef struct MigrateShared
{
	uint32		magic;
	Oid			database;
	int			job_id;
	slock_t		mutex;
	int			job_worker_pid;
	ConditionVariable changed;	/* broadcast at every state change */

	/* wishes, written by the job worker, read by loaders at each batch */
	bool		stop;			/* finish the chunk at hand, then exit */
	bool		hold;			/* throttle_query says so */
	int			wanted_loaders;

	/*
	 * Counted by the job worker whenever a table is copied while others are
	 * not: its keys can be built.  Read by loaders before they claim a chunk.
	 */
	int			tables_copied;

	MigrateBuckets buckets;		/* written by any reader under mutex */
	char		throttle[128];	/* reason, value, threshold; empty: none */
	char		hold_reason[128];	/* the same of throttle_query */

	/* dead letters that one chunk may have before it is given up; -1: any */
	int64		chunk_dead_limit;
	/* why a worker gave up its work so that the job pauses; empty: none */
	char		given_up[512];
	char		given_up_kind[16];	/* of the event: 'budget', 'verify' */

	/* one batch of the copy: mapped and written */
	MigrateHistogram copy_write;

	/*
	 * Written by the job worker: since when there is something to apply and
	 * the applied position has not moved; 0: it moves, or is to stand.
	 */
	TimestampTz stuck_since;

	/* likewise: when all that the source was known to have was applied last */
	TimestampTz caught_up_at;

	MigrateTrouble trouble[MIGRATE_MAX_LOADERS];
	MigrateWorkerSlot slots[MIGRATE_MAX_LOADERS + 3];	/* 0: job worker; the
														 * last two: below */
	MigrateLive live;
} MigrateShared;

#define MIGRATE_APPLY_SLOT (MIGRATE_MAX_LOADERS + 1)
#define MIGRATE_REVERSE_SLOT (MIGRATE_MAX_LOADERS + 2)

/* NULL in a process that belongs to no job (then the calls below do nothing) */
extern MigrateShared *migrate_shared;
extern int	migrate_my_slot;

extern void migrate_worker_phase(const char *phase);
extern void migrate_worker_count(int64 rows, int64 bytes, int64 dead);
extern void migrate_worker_verified(int64 rows);

/* Of a histogram: where a duration falls; and a batch of the copy. */
extern int	migrate_histogram_bucket(int64 usec);
extern void migrate_window_turn(MigrateWindow *window, TimestampTz now);
extern void migrate_copy_batch_took(int64 usec);

/* control/throttle.c: account for what was read and wait while it is too
 * much; interruptible.  Between batches. */
extern void migrate_throttle(int64 rows, int64 bytes);

/* Other loaders that have a chunk or a step at hand; those with a step. */
extern int	migrate_loaders_busy(int *with_step);

/* set by whoever throws to give a chunk up without calling it an error */
extern bool migrate_abandoned;

/*
 * control/budget.c: the reason for that; the job worker pauses the job for it
 * (an alert of that kind).
 */
extern void migrate_give_up(const char *kind, const char *reason);

/* control/drift.c: the job shall pause since a source table is not what was
 * planned (P2); in a transaction.  "what" is a clause that names the table. */
extern void migrate_drift_pause(MigrateJob *job, List *source_ids, const char *what);

/* P2 before source tables are read as a whole: 55000 when one has changed
 * since it was planned.  conn NULL: those read by wrappers only. */
extern void migrate_drift_refuse(MigrateJob *job, List *source_ids,
								 MigrateConn *conn);

/* control/event.c */
extern void migrate_event(int job_id, const char *level, const char *kind,
						  const char *fmt,...) pg_attribute_printf(4, 5);
extern void migrate_set_state(int job_id, const char *state, const char *reason);

/* ----------------------------------------------------------------
 * in util.c
 * ----------------------------------------------------------------
 */
extern void migrate_spi_exec(const char *sql, int nargs, Oid *types,
							 Datum *values, const char *nulls, int expected);
extern void migrate_spi_exec_kept(const char *sql, int nargs, Oid *types,
								  Datum *values, const char *nulls, int expected);
extern char *migrate_spi_text(int row, int col);	/* copy, NULL if null */
extern int64 migrate_spi_int64(int row, int col, int64 if_null);

/*
 * Until AtEOXact_GUC(true, level): read tables without statistics in the order
 * of an index rather than sort them.
 */
extern int	migrate_follow_index_order(void);

/* fault injection for the crash tests: SIGKILL, an ERROR or a wait at a named
 * point, or true: leave it out; set by the custom GUC
 * migrate.fault = 'point:kill|error|wait|skip' */
extern char *migrate_fault_setting;
extern bool migrate_fault(const char *point);

#endif							/* MIGRATE_H */
