/*-------------------------------------------------------------------------
 *
 * scan.c
 *	  The rows of both sides of a mapping, hashed, one by one to a callback.
 *
 * Source rows go the way they went in the copy: reader, batch, the same plan
 * of the mapping.  Target rows come from a cursor over
 * SELECT <columns> FROM target WHERE <owns>, in the snapshot of the calling
 * statement.
 *
 * A batch is mapped in a subtransaction that is always rolled back, so that a
 * mapping function that writes leaves nothing behind; one that raises has its
 * batch halved down to the rows that it raises on.  Mapped rows wait in a
 * tuplestore until their batch is through, since only then they count, and
 * since the settings under which they are hashed are not those under which
 * the mapping runs.
 *
 * A row that cannot even be read ends the plain scan.  The scan then begins
 * again in the careful way: the chunks of the copy, each held as a whole
 * before any of its rows counts, halved around what cannot be read.
 *
 * Runs in the backend that validates, with the source transaction open.  Takes
 * no locks beyond those of the queries and writes nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/resowner.h"

#include "validate.h"

/* Target rows fetched at a time. */
#define FETCH_ROWS 2000

/* ----------------------------------------------------------------
 * mapping held batches
 * ----------------------------------------------------------------
 */
static void
keep_row(TupleTableSlot *slot, void *arg)
{
	tuplestore_puttupleslot((Tuplestorestate *) arg, slot);
}

/*
 * Run the mapping over a batch; the mapped rows or, when it raised by a row's
 * fault, NULL.
 */
static Tuplestorestate *
map_batch(ValidateEnds *ends, MigrateBatch *batch)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	volatile bool failed = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		migrate_mapping_run(ends->map, batch, keep_row, store);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		if (!migrate_error_is_of_row(edata->sqlerrcode))
		{
			RollbackAndReleaseCurrentSubTransaction();
			ReThrowError(edata);
		}
		FreeErrorData(edata);
		failed = true;
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;

	if (!failed)
		return store;
	tuplestore_end(store);
	return NULL;
}

/*
 * Hash the mapped rows of a batch and hand them on.  Ordinals are those of
 * "batch"; the last column of the mapping's output is the ordinal.
 */
static void
hand_on(ValidateEnds *ends, MigrateBatch *batch, Tuplestorestate *store,
		ValidateSink *sink)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(ends->map->outdesc,
													&TTSOpsMinimalTuple);
	int			nestlevel = validate_pin_settings();

	while (tuplestore_gettupleslot(store, true, false, slot))
	{
		ValidateRow row = {.side = VALIDATE_SOURCE,.slot = slot,.batch = batch};
		bool		isnull;

		row.ord = DatumGetInt64(slot_getattr(slot, ends->map->outdesc->natts,
											 &isnull));
		validate_hash(ends->shape, &row);
		sink->row(&row, sink->arg);
	}
	validate_unpin_settings(nestlevel);
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * A batch through the mapping to the sink; in halves when it fails.
 */
static void
run_batch(ValidateEnds *ends, MigrateBatch *batch, ValidateSink *sink)
{
	Tuplestorestate *store;

	CHECK_FOR_INTERRUPTS();
	if (batch->nrows == 0)
		return;
	store = map_batch(ends, batch);
	if (store)
	{
		hand_on(ends, batch, store, sink);
		tuplestore_end(store);
		if (sink->batch_seen)
			sink->batch_seen(batch, sink->arg);
	}
	else if (batch->nrows == 1)
		sink->failed(batch, 0, NULL, NULL, sink->arg);
	else
	{
		int64		middle = batch->nrows / 2;
		int64		bounds[] = {0, middle, batch->nrows};

		for (int half = 0; half < 2; half++)
		{
			MigrateBatch *part = migrate_batch_slice(batch, bounds[half],
													 bounds[half + 1]);

			run_batch(ends, part, sink);
			migrate_batch_free(part);
		}
	}
}

/* run_batch in a memory context of its own */
static void
run_batch_and_forget(ValidateEnds *ends, MigrateBatch *batch, ValidateSink *sink)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate validation batch",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);

	run_batch(ends, batch, sink);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}

/* ----------------------------------------------------------------
 * reading the source
 * ----------------------------------------------------------------
 */

/*
 * Read a range (NULL: everything) into batches.  Each is handed on when it is
 * full; with "hold" there is one batch, and the caller hands it on.
 */
static void
read_range(ValidateEnds *ends, MigrateRange *range, MigrateBatch *batch,
		   bool hold, ValidateSink *sink, MigrateReader **reader)
{
	MigrateSource *src = ends->src;
	Datum	   *values = palloc(sizeof(Datum) * Max(src->ncolumns, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(src->ncolumns, 1));
	int64		bytes,
				unpaced_rows = 0,
				unpaced_bytes = 0;

	*reader = migrate_reader_open(ends->conn, src, range, ends->job->fetch_size);
	while (migrate_reader_next(*reader, values, nulls, &bytes))
	{
		CHECK_FOR_INTERRUPTS();
		migrate_batch_add(batch, values, nulls, bytes);
		unpaced_bytes += bytes;
		if (++unpaced_rows >= ends->job->batch_rows || unpaced_bytes >= ends->job->batch_bytes)
		{
			validate_pace(unpaced_rows, unpaced_bytes);
			unpaced_rows = unpaced_bytes = 0;
		}
		if (!hold && (batch->nrows >= ends->job->batch_rows ||
					  batch->bytes >= ends->job->batch_bytes))
		{
			run_batch_and_forget(ends, batch, sink);
			migrate_batch_reset(batch);
		}
	}
	validate_pace(unpaced_rows, unpaced_bytes);
	if (!hold)
		run_batch_and_forget(ends, batch, sink);
	migrate_reader_close(*reader);
	*reader = NULL;
}

/*
 * read_range in a subtransaction; false when a row could not be read.
 */
static bool
try_read_range(ValidateEnds *ends, MigrateRange *range, MigrateBatch *batch,
			   bool hold, ValidateSink *sink)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	MigrateReader *volatile reader = NULL;
	volatile bool readable = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		read_range(ends, range, batch, hold, sink, (MigrateReader **) &reader);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		readable = !migrate_reader_error_is_of_row(reader, edata);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (readable)
			ReThrowError(edata);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	if (!readable && reader)
		migrate_reader_abort(reader);
	return readable;
}

/*
 * The careful way: a range is held as a whole, and halved down to the rows
 * that cannot be read.
 */
static void
scan_range_carefully(ValidateEnds *ends, MigrateRange *range, ValidateSink *sink)
{
	MigrateBatch *batch = migrate_batch_create(ends->src);
	MigrateRange first,
				second;

	CHECK_FOR_INTERRUPTS();
	if (try_read_range(ends, range, batch, true, sink))
	{
		ends->seen += batch->nrows;
		run_batch_and_forget(ends, batch, sink);
		migrate_batch_free(batch);
		return;
	}
	migrate_batch_free(batch);
	if (migrate_range_halve(ends->conn, ends->src, range, &first, &second))
	{
		scan_range_carefully(ends, &first, sink);
		scan_range_carefully(ends, &second, sink);
	}
	else
	{
		char	   *key,
				   *raw;

		ends->seen++;
		migrate_range_raw(ends->conn, ends->src, range, &key, &raw);
		sink->failed(NULL, 0, key, raw, sink->arg);
	}
}

/* A text[] of the last SPI result as an array of strings, NULL for null. */
static char **
spi_strings(int row, int col)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, col + 1, &isnull);
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	char	  **result;

	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, &n);
	result = palloc0(sizeof(char *) * Max(n, 1));
	for (int i = 0; i < n; i++)
		result[i] = nulls[i] ? NULL : TextDatumGetCString(elems[i]);
	return result;
}

/*
 * The ranges that the copy read: together they cover every row, since the
 * outermost are open.
 */
static List *
copied_ranges(ValidateEnds *ends)
{
	List	   *ranges = NIL;
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(ends->src->source_id)};

	SPI_connect();
	migrate_spi_exec("SELECT l.relation, l.remote_oid::int8, l.remote_filenode::int8,"
					 " c.block_lo, c.block_hi, c.key_lo, c.key_hi"
					 " FROM migrate.chunk c JOIN migrate.leaf l USING (source_id, leaf_no)"
					 " JOIN migrate.source_table s USING (source_id)"
					 " WHERE c.source_id = $1 AND c.plan_no = s.plan_no"
					 " ORDER BY c.chunk_id",
					 1, types, values, NULL, SPI_OK_SELECT);
	MemoryContextSwitchTo(mcxt);
	for (int i = 0; i < SPI_processed; i++)
	{
		MigrateRange *range = palloc0(sizeof(MigrateRange));

		range->relation = migrate_spi_text(i, 0);
		range->remote_oid = migrate_spi_int64(i, 1, 0);
		range->remote_filenode = migrate_spi_int64(i, 2, 0);
		range->block_lo = migrate_spi_int64(i, 3, -1);
		range->block_hi = migrate_spi_int64(i, 4, -1);
		range->key_lo = spi_strings(i, 5);
		range->key_hi = spi_strings(i, 6);
		ranges = lappend(ranges, range);
	}
	SPI_finish();
	return ranges;
}

/* Rows of the source table, by its own count, in the same snapshot. */
static int64
remote_count(ValidateEnds *ends, const char *where)
{
	char	   *sql = psprintf("SELECT count(*) FROM %s%s%s%s",
							   ends->src->only_parent ? "ONLY " : "",
							   quote_qualified_identifier(ends->src->remote_schema,
														  ends->src->remote_table),
							   where ? " WHERE " : "", where ? where : "");

	return pg_strtoint64(migrate_exec_value(ends->conn, sql));
}

/*
 * The careful way over all ranges.  The source counts its rows as well: ranges
 * that miss some (of a partition that was added since) must not pass for a
 * comparison of all.
 */
static void
scan_carefully(ValidateEnds *ends, ValidateSink *sink, const char *where)
{
	List	   *ranges = copied_ranges(ends);
	ListCell   *lc;
	int64		count;

	if (ranges == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source table %s has rows that cannot be read",
						ends->src->label),
				 errhint("Copy the table first: its dead letters then say which.")));
	ends->seen = 0;
	foreach(lc, ranges)
	{
		MigrateRange *range = lfirst(lc);

		range->where = unconstify(char *, where);
		scan_range_carefully(ends, range, sink);
	}
	if (ends->conn == NULL)
		return;
	count = remote_count(ends, where);
	if (count != ends->seen)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the ranges in which %s was copied hold %lld rows, the table has %lld",
						ends->src->label, (long long) ends->seen,
						(long long) count),
				 errhint("Partitions may have been added: copy the table again with migrate_recopy.")));
}

/*
 * Every source row, mapped, to the sink; or those that a condition names.
 */
void
validate_scan_source(ValidateEnds *ends, ValidateSink *sink, const char *where)
{
	MigrateRange some = {.block_lo = -1,.block_hi = -1,.where = unconstify(char *, where)};
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate source scan",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);

	if (!ends->careful)
	{
		MigrateBatch *batch = migrate_batch_create(ends->src);
		bool		done = try_read_range(ends, where ? &some : NULL, batch, false, sink);

		migrate_batch_free(batch);
		if (done)
		{
			MemoryContextSwitchTo(old);
			MemoryContextDelete(mcxt);
			return;
		}
		ends->careful = true;
		sink->reset(sink->arg);
		validate_progress_again(VALIDATE_SOURCE);
	}

	scan_carefully(ends, sink, where);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}

/* ----------------------------------------------------------------
 * reading the target
 * ----------------------------------------------------------------
 */

/* FROM [ONLY] target [WHERE owns AND where] */
char *
validate_from_target(ValidateEnds *ends, const char *where)
{
	StringInfoData sql;
	const char *sep = " WHERE ";

	initStringInfo(&sql);
	appendStringInfo(&sql, " FROM %s",
					 migrate_target_name(ends->map->target, ends->src->only_parent));
	if (ends->map->owns)
	{
		appendStringInfo(&sql, "%s(%s\n)", sep, ends->map->owns);
		sep = " AND ";
	}
	if (where)
		appendStringInfo(&sql, "%s(%s)", sep, where);
	return sql.data;
}

/* The same for a query that nobody looks at row by row: it counts them. */
char *
validate_from_target_seen(ValidateEnds *ends, const char *where)
{
	char	   *seen = validate_progress_condition();

	if (seen && where)
		where = psprintf("(%s) AND %s", where, seen);
	return validate_from_target(ends, where ? where : seen);
}

static void
set_here(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
}

/*
 * Settings of a query on the target, until validate_unpin_settings(): "owns"
 * is read under the mapping's search_path.  Row security is off (only here,
 * since our own tables live by it): an error instead of missing rows.
 */
int
validate_query_settings(ValidateEnds *ends)
{
	int			level = validate_pin_settings();

	if (ends->map->owns)
		set_here("search_path", ends->map->search_path);
	set_here("row_security", "off");
	set_here("jit", "off");
	set_here("work_mem", "32MB");
	set_here("max_parallel_workers_per_gather", psprintf("%d", ends->job->workers - 1));
	return level;
}

/* A cursor over rows of the target: the shape's columns. */
static Portal
open_target(ValidateEnds *ends, const char *where)
{
	ValidateShape *shape = ends->shape;
	StringInfoData sql;
	SPIPlanPtr	plan;
	Portal		portal;
	int			level = validate_query_settings(ends);

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT");
	for (int i = 0; i < shape->ncolumns; i++)
		appendStringInfo(&sql, "%s %s", i > 0 ? "," : "",
						 quote_identifier(shape->columns[i].name));
	appendStringInfoString(&sql, validate_from_target(ends, where));
	plan = SPI_prepare(sql.data, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s: %s",
			 SPI_result_code_string(SPI_result), sql.data);
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	validate_unpin_settings(level);
	return portal;
}

/*
 * Every target row that the mapping owns to the sink; or those of them that a
 * condition names.
 */
void
validate_scan_target(ValidateEnds *ends, ValidateSink *sink, const char *where)
{
	ValidateShape *shape = ends->shape;
	Portal		portal;
	TupleTableSlot *slot;

	SPI_connect();
	portal = open_target(ends, where);
	slot = MakeSingleTupleTableSlot(portal->tupDesc, &TTSOpsHeapTuple);

	for (;;)
	{
		int			nestlevel;

		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		nestlevel = validate_pin_settings();
		for (int i = 0; i < SPI_processed; i++)
		{
			ValidateRow row = {.side = VALIDATE_TARGET,.slot = slot,.ord = -1};

			ExecStoreHeapTuple(SPI_tuptable->vals[i], slot, false);
			validate_hash(shape, &row);
			sink->row(&row, sink->arg);
		}
		validate_unpin_settings(nestlevel);
		validate_progress_rows(VALIDATE_TARGET, SPI_processed);
		ExecClearTuple(slot);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_freetuptable(SPI_tuptable);
	ExecDropSingleTupleTableSlot(slot);
	SPI_cursor_close(portal);
	SPI_finish();
}

/* ----------------------------------------------------------------
 * counting only
 * ----------------------------------------------------------------
 */

/* Rows of the target that the mapping owns. */
int64
validate_count_target(ValidateEnds *ends)
{
	int			level;
	int64		n;

	SPI_connect();
	level = validate_query_settings(ends);
	if (SPI_execute(psprintf("SELECT count(*)%s", validate_from_target_seen(ends, NULL)), true, 0) != SPI_OK_SELECT)
		elog(ERROR, "counting target rows failed");
	n = migrate_spi_int64(0, 0, 0);
	validate_unpin_settings(level);
	SPI_finish();
	return n;
}

static void
count_row(ValidateRow *row, void *arg)
{
	(*(int64 *) arg)++;
}

static void
count_failed(MigrateBatch *batch, int64 ord, char *key, char *raw, void *arg)
{
	(*(int64 *) arg)++;
}

static void
count_reset(void *arg)
{
	*(int64 *) arg = 0;
}

/* The mapping gives one row for each of the source, which can count them. */
bool
validate_source_counts(ValidateEnds *ends)
{
	return !ends->map->filtered && !ends->map->many && ends->map->kind != 'f' && ends->conn;
}

/*
 * Rows that the source should give: by its own count, or the mapping must run.
 */
int64
validate_count_source(ValidateEnds *ends)
{
	int64		n = 0;

	if (validate_source_counts(ends))
		n = remote_count(ends, NULL);
	else
	{
		ValidateSink sink = {.row = count_row,.failed = count_failed,
		.reset = count_reset,.arg = &n};

		validate_scan_source(ends, &sink, NULL);
	}
	return n;
}
