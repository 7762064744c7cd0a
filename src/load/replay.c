/*-------------------------------------------------------------------------
 *
 * replay.c
 *	  migrate_replay(): dead letters through the mapping as it is now, on the
 *	  source rows as they are now.
 *
 * A letter is locked (FOR UPDATE SKIP LOCKED), its row fetched by its key
 * through the foreign table, and loaded as a batch of one by a writer that
 * finds the row that may be there by the key map, so that no success doubles
 * a row:
 *
 *	  open -> replayed		written (or filtered by the mapping of now)
 *	  open -> superseded	the source has no such row any more
 *	  open -> open			failed again: newest error, attempts + 1
 *
 * A source without key has no row to fetch: the row that was set aside is
 * loaded, or where it could not be read, what is at its place, if its bytes
 * are the same.  Errors that are not the row's fault are thrown, and then nothing
 * has changed.
 *
 * All in the caller's transaction, with the rights of the job's owner; a crash
 * leaves the letters open.  Where the job follows its source live, replay takes
 * the writer lock before it fetches anything and keeps it until the end, so
 * that apply writes nothing between the two (P14).  What is fetched may be
 * ahead of what is applied; the changes between are applied later, and end
 * with the same row.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "apply.h"
#include "control/control.h"
#include "doubles.h"
#include "refetch.h"

PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_replay);

/* Letters taken at a time. */
#define REPLAY_PORTION 200

/* for a commit that the source does not show yet: how long, between looks, ms */
#define SEEN_PATIENCE 10000
#define SEEN_DELAY 20

/* A mapping that letters of this call belong to, ready to write. */
typedef struct ReplayTarget
{
	MigrateMapping *map;
	MigrateSource *src;
	MigrateWriter *writer;
} ReplayTarget;

typedef struct Letter
{
	int64		id;
	int			mapping_id;
	char	   *key;			/* jsonb text, NULL without */
	char	   *source_row;
	char	   *raw;			/* of a row that could not be read */
} Letter;

typedef struct Replay
{
	MigrateJob *job;
	Datum		target;			/* text; 0: any */
	Datum		ids;			/* bigint[]; 0: all */
	MemoryContext mcxt;			/* lives as long as the call */
	List	   *targets;		/* of ReplayTarget */

	/* while a row is read by its place */
	MigrateConn *conn;
	MigrateReader *reader;
	int64		replayed;
	int64		superseded;
	int64		failed;
} Replay;

/* ----------------------------------------------------------------
 * the letters
 * ----------------------------------------------------------------
 */

/* Every id that was asked for must be a letter of the job. */
static void
check_ids(Replay *replay)
{
	Oid			types[] = {INT4OID, INT8ARRAYOID};
	Datum		values[] = {Int32GetDatum(replay->job->job_id), replay->ids};
	char	   *unknown;

	if (replay->ids == 0)
		return;
	migrate_spi_exec("SELECT string_agg(i::text, ', ' ORDER BY i) FROM unnest($2) AS i"
					 " WHERE NOT EXISTS (SELECT FROM migrate.dead_letter d"
					 "  WHERE d.id = i AND d.job_id = $1)",
					 2, types, values, NULL, SPI_OK_SELECT);
	unknown = migrate_spi_text(0, 0);
	if (unknown)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" has no dead letters with these ids: %s",
						replay->job->name, unknown),
				 errhint("See migrate.dead_letters.")));
}

/* The target that was asked for must be one of the job. */
static void
check_target(Replay *replay)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(replay->job->job_id), replay->target};

	if (replay->target == 0)
		return;
	migrate_spi_exec("SELECT FROM migrate.mapping m WHERE m.job_id = $1"
					 " AND (m.target = $2 OR m.target_oid = to_regclass($2))",
					 2, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" has no target table \"%s\"", replay->job->name,
						TextDatumGetCString(replay->target)),
				 errhint("Give it as schema.table; migrate.mapping lists the targets of each job.")));
}

/*
 * The next open letters after an id, locked.  Letters that another session
 * replays are left to it.
 */
static List *
take_letters(Replay *replay, int64 after)
{
	List	   *letters = NIL;
	Oid			types[] = {INT4OID, INT8OID, TEXTOID, INT8ARRAYOID};
	Datum		values[] = {Int32GetDatum(replay->job->job_id), Int64GetDatum(after),
	replay->target, replay->ids};
	char		nulls[] = {' ', ' ', replay->target ? ' ' : 'n',
	replay->ids ? ' ' : 'n', 0};

	migrate_spi_exec("SELECT d.id, d.mapping_id, d.key::text, d.source_row::text,"
					 " d.raw::text"
					 " FROM migrate.dead_letter d JOIN migrate.mapping m USING (mapping_id)"
					 " WHERE d.job_id = $1 AND d.id > $2 AND d.state = 'open'"
					 " AND ($3 IS NULL OR m.target = $3 OR m.target_oid = to_regclass($3))"
					 " AND ($4 IS NULL OR d.id = ANY ($4))"
					 " ORDER BY d.id LIMIT " CppAsString2(REPLAY_PORTION)
					 " FOR UPDATE OF d SKIP LOCKED",
					 4, types, values, nulls, SPI_OK_SELECT);
	for (int i = 0; i < SPI_processed; i++)
	{
		Letter	   *letter = palloc(sizeof(Letter));

		letter->id = migrate_spi_int64(i, 0, 0);
		letter->mapping_id = migrate_spi_int64(i, 1, 0);
		letter->key = migrate_spi_text(i, 2);
		letter->source_row = migrate_spi_text(i, 3);
		letter->raw = migrate_spi_text(i, 4);
		letters = lappend(letters, letter);
	}
	SPI_freetuptable(SPI_tuptable);
	return letters;
}

static void
close_letter(Letter *letter, const char *state)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(letter->id), CStringGetTextDatum(state)};

	migrate_spi_exec("UPDATE migrate.dead_letter SET state = $2,"
					 " attempts = attempts + 1, updated_at = now() WHERE id = $1",
					 2, types, values, NULL, SPI_OK_UPDATE);
}

/*
 * The row failed again in migrate_load_batch, which wrote a letter: the old
 * one takes over what it says, and it goes.
 */
static void
merge_letter(Letter *letter)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(letter->id), Int32GetDatum(letter->mapping_id)};
	RefetchFault fault;

	if (!refetch_newest_fault(letter->mapping_id, &fault))
		elog(ERROR, "a failed batch left no dead letter");
	values[1] = Int64GetDatum(fault.id);
	types[1] = INT8OID;
	migrate_spi_exec("UPDATE migrate.dead_letter d SET attempts = d.attempts + 1,"
					 " updated_at = now(), stage = n.stage, key = n.key,"
					 " source_row = n.source_row, raw = n.raw, sqlstate = n.sqlstate,"
					 " message = n.message, detail = n.detail, hint = n.hint,"
					 " context = n.context, mapping_version = n.mapping_version"
					 " FROM migrate.dead_letter n WHERE n.id = $2 AND d.id = $1",
					 2, types, values, NULL, SPI_OK_UPDATE);
	values[0] = values[1];
	migrate_spi_exec("DELETE FROM migrate.dead_letter WHERE id = $1",
					 1, types, values, NULL, SPI_OK_DELETE);
}

/* The row was not tried, or could not even be fetched: keep why. */
static void
note_error(Letter *letter, ErrorData *edata)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[6] = {Int64GetDatum(letter->id),
		CStringGetTextDatum(unpack_sql_state(edata->sqlerrcode)),
	CStringGetTextDatum(edata->message)};
	char		nulls[] = "   nnn";
	const char *more[] = {edata->detail, edata->hint, edata->context};

	for (int i = 0; i < 3; i++)
		if (more[i])
		{
			values[3 + i] = CStringGetTextDatum(more[i]);
			nulls[3 + i] = ' ';
		}
	migrate_spi_exec("UPDATE migrate.dead_letter SET attempts = attempts + 1,"
					 " updated_at = now(), sqlstate = $2, message = $3, detail = $4,"
					 " hint = $5, context = $6 WHERE id = $1",
					 6, types, values, nulls, SPI_OK_UPDATE);
}

/* ----------------------------------------------------------------
 * one letter
 * ----------------------------------------------------------------
 */

/*
 * The mapping of a letter, compiled, with a writer; made when first needed.
 */
static ReplayTarget *
target_of(Replay *replay, int mapping_id)
{
	ListCell   *lc;
	ReplayTarget *t;
	MemoryContext old;
	Oid			types[] = {INT4OID};
	Datum		values[1];

	foreach(lc, replay->targets)
	{
		t = lfirst(lc);
		if (t->map->mapping_id == mapping_id)
			return t;
	}
	old = MemoryContextSwitchTo(replay->mcxt);
	t = palloc0(sizeof(ReplayTarget));
	t->map = migrate_mapping_load(mapping_id);
	t->src = migrate_source_load(t->map->source_id);

	values[0] = Int32GetDatum(t->map->source_id);
	migrate_spi_exec("SELECT FROM migrate.source_table WHERE source_id = $1"
					 " AND state IN ('pending', 'replan')",
					 1, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source table %s is about to be copied again", t->src->label),
				 errhint("Replay when its copy is under way or done.")));
	MemoryContextSwitchTo(replay->mcxt);
	migrate_mapping_compile(t->map, t->src);
	t->writer = migrate_writer_open(t->map, t->src, false);
	replay->targets = lappend(replay->targets, t);
	MemoryContextSwitchTo(old);
	return t;
}

/* Are the columns of two raw rows (jsonb texts) the same bytes? */
static bool
same_bytes(const char *a, const char *b)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(a), CStringGetTextDatum(b)};
	bool		same;

	migrate_spi_exec("SELECT ($1::jsonb -> 'columns' = $2::jsonb -> 'columns')::int",
					 2, types, values, NULL, SPI_OK_SELECT);
	same = migrate_spi_int64(0, 0, 0) == 1;
	SPI_freetuptable(SPI_tuptable);
	return same;
}

/*
 * The leaf of a source by its name: a parent is read without its children,
 * which have rows at the same places.
 */
static Oid
leaf_oid(MigrateSource *src, const char *relation)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(src->source_id), CStringGetTextDatum(relation)};
	Oid			oid;

	migrate_spi_exec("SELECT remote_oid FROM migrate.leaf"
					 " WHERE source_id = $1 AND relation = $2",
					 2, types, values, NULL, SPI_OK_SELECT);
	oid = SPI_processed > 0 ? (Oid) migrate_spi_int64(0, 0, 0) : InvalidOid;
	SPI_freetuptable(SPI_tuptable);
	return oid;
}

/* "(block,line) of relation" as a range of that one row. */
static bool
parse_place(MigrateSource *src, const char *raw, MigrateRange *range)
{
	char	   *at = refetch_key_value(raw, "at");
	char	   *relation;
	unsigned int block;
	int			line;

	if (at == NULL || sscanf(at, "(%u,%d) of ", &block, &line) != 2 ||
		(relation = strstr(at, " of ")) == NULL)
		return false;
	memset(range, 0, sizeof(MigrateRange));
	range->relation = relation + strlen(" of ");
	range->remote_oid = leaf_oid(src, range->relation);
	range->block_lo = block;
	range->block_hi = (int64) block + 1;
	range->off_lo = line;
	range->off_hi = line + 1;
	return true;
}

/*
 * The source transactions that apply took last, while it lives; the writer
 * lock keeps it from taking more.
 */
static int
applied_lately(Replay *replay, TransactionId **xids)
{
	dsm_segment *seg;
	MigrateShared *shared;
	int			n = 0;

	*xids = palloc(sizeof(TransactionId) * MIGRATE_RECENT_XIDS);
	shared = migrate_shmem_peek(migrate_job_shmem(replay->job->job_id), replay->job->job_id, &seg);
	if (shared == NULL)
		return 0;
	SpinLockAcquire(&shared->mutex);
	n = Min(shared->live.nrecent, MIGRATE_RECENT_XIDS);
	memcpy(*xids, shared->live.recent, sizeof(TransactionId) * n);
	SpinLockRelease(&shared->mutex);
	migrate_shmem_unpeek(seg);
	return n;
}

/*
 * A transaction on the source.  Of a live job, one that sees all that apply has
 * taken: a commit that waits for a synchronous standby is in the stream and
 * applied while the source still shows the rows of before it, and those must
 * not be written over what came since.
 */
static void
connect_source(Replay *replay, ReplayTarget *t, MigrateSourceTxn *txn)
{
	TimestampTz begin = GetCurrentTimestamp();
	TransactionId *xids = NULL;
	int			n = replay->job->live ? applied_lately(replay, &xids) : 0;

	replay->conn = migrate_connect(t->src->server, replay->job->owner,
								   replay->job->name, "replay",
								   replay->job->connect_timeout_s);
	for (;;)
	{
		migrate_source_begin(replay->conn, t->src, NULL, txn);
		if (n == 0 || migrate_snapshot_sees(txn->snapshot, xids, n))
			return;
		migrate_source_end(replay->conn);
		if (TimestampDifferenceExceeds(begin, GetCurrentTimestamp(), SEEN_PATIENCE))
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("the source does not show yet what has been applied here"),
					 errdetail("A commit there waits, for a synchronous standby perhaps."),
					 errhint("Try again later.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 SEEN_DELAY, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* All rows of a range into the batch, over the connection just made. */
static void
fetch_range(Replay *replay, ReplayTarget *t, MigrateRange *range, MigrateBatch *batch,
			MigrateSourceTxn *txn)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(t->src->ncolumns, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(t->src->ncolumns, 1));
	int64		bytes;

	replay->reader = migrate_reader_open(replay->conn, t->src, range,
										 replay->job->fetch_size);
	while (migrate_reader_next(replay->reader, values, nulls, &bytes))
		migrate_batch_add(batch, values, nulls, bytes);
	migrate_reader_close(replay->reader);
	replay->reader = NULL;
	migrate_source_wait_durable(replay->conn, txn);
	migrate_source_end(replay->conn);
	migrate_disconnect(replay->conn);
	replay->conn = NULL;
}

/* By its key, without the tables that inherit from the source's. */
static void
fetch_by_key(Replay *replay, ReplayTarget *t, Letter *letter, MigrateBatch *batch)
{
	MigrateSource *src = t->src;
	MigrateRange range = {.block_hi = -1};
	MigrateSourceTxn txn;

	range.key_at = palloc(sizeof(char *) * src->nkeys);
	for (int k = 0; k < src->nkeys; k++)
		range.key_at[k] = refetch_key_value(letter->key, src->columns[src->keys[k]].name);
	connect_source(replay, t, &txn);
	fetch_range(replay, t, &range, batch, &txn);
}

/*
 * A row without key that could not be read: from its place, if the very same
 * bytes are still there (what is readable now is then our side).  Anything
 * else at that place is another row, which was copied when it came.
 */
static void
fetch_by_place(Replay *replay, ReplayTarget *t, Letter *letter, MigrateBatch *batch)
{
	MigrateRange range;
	MigrateSourceTxn txn;
	char	   *key,
			   *raw;

	if (t->src->transport != 'c' || !parse_place(t->src, letter->raw, &range))
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA),
				 errmsg("the row has no key and no place by which it could be read again"),
				 errhint("Load it by hand or copy the table again with migrate_recopy, then discard the letter.")));
	connect_source(replay, t, &txn);
	migrate_range_raw(replay->conn, t->src, &range, &key, &raw);
	if (!same_bytes(raw, letter->raw))
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA),
				 errmsg("the row has no key, and is not at its place any more as it was"),
				 errhint("Load it by hand or copy the table again with migrate_recopy, then discard the letter.")));
	fetch_range(replay, t, &range, batch, &txn);
}

static void
fetch_letter(Replay *replay, ReplayTarget *t, Letter *letter, MigrateBatch *batch)
{
	if (letter->key && t->src->nkeys > 0 && (t->src->only_parent || replay->job->live))
		fetch_by_key(replay, t, letter, batch);
	else if (letter->key && t->src->nkeys > 0)
		refetch_by_key(t->src, letter->key, batch);
	else if (letter->source_row)
		refetch_stored(t->src, letter->source_row, batch);
	else
		fetch_by_place(replay, t, letter, batch);
}

/*
 * Fetch the letter's row; false, with *edata, when that fails by a fault of
 * the row.
 */
static bool
fetch_row(Replay *replay, ReplayTarget *t, Letter *letter, MigrateBatch *batch,
		  ErrorData **edata)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool fetched = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		fetch_letter(replay, t, letter, batch);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		*edata = CopyErrorData();
		if (!migrate_error_is_of_row((*edata)->sqlerrcode) &&
			!(letter->raw && migrate_error_can_be_of_value(*edata)))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		fetched = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	if (replay->reader)
		migrate_reader_abort(replay->reader);
	if (replay->conn)
		migrate_disconnect(replay->conn);
	replay->reader = NULL;
	replay->conn = NULL;
	return fetched;
}

/*
 * Load the letter's row.  When it fails again, migrate_load_batch has written
 * a letter, or several where the source's key is not unique: one is merged
 * into the old one, the others go.
 */
static bool
load_row(Replay *replay, ReplayTarget *t, Letter *letter, MigrateBatch *batch)
{
	MigrateLoadContext ctx = {.job = replay->job,.chunk_id = 0,.stage = "write"};
	MigrateCounts counts = {0};
	RefetchFault fault;

	migrate_load_batch(&ctx, t->writer, batch, &counts);
	for (int64 i = 1; i < counts.dead; i++)
	{
		Oid			types[] = {INT8OID};
		Datum		values[1];

		if (!refetch_newest_fault(letter->mapping_id, &fault))
			break;
		values[0] = Int64GetDatum(fault.id);
		migrate_spi_exec("DELETE FROM migrate.dead_letter WHERE id = $1",
						 1, types, values, NULL, SPI_OK_DELETE);
	}
	if (counts.dead > 0)
		merge_letter(letter);
	return counts.dead == 0;
}

static void
replay_letter(Replay *replay, Letter *letter)
{
	ReplayTarget *t = target_of(replay, letter->mapping_id);
	MigrateBatch *batch = migrate_batch_create(t->src);
	ErrorData  *edata;

	if (!fetch_row(replay, t, letter, batch, &edata))
	{
		note_error(letter, edata);
		replay->failed++;
	}
	else if (batch->nrows == 0)
	{
		close_letter(letter, "superseded");
		replay->superseded++;
	}
	else if (letter->key && migrate_has_double(replay->job, t->map, t->src, letter->key))
	{
		ErrorData	taken = {.sqlerrcode = ERRCODE_UNIQUE_VIOLATION};

		/* the writer would find the other row by the key, and replace it */
		taken.message = psprintf("another source row maps to the same key of %s",
								 t->map->target_name);
		taken.hint = "Correct one of them or the mapping, or discard the letter.";
		note_error(letter, &taken);
		replay->failed++;
	}
	else if (!load_row(replay, t, letter, batch))
		replay->failed++;
	else
	{
		close_letter(letter, "replayed");
		replay->replayed++;
	}
	migrate_batch_free(batch);
}

static void
replay_all(Replay *replay)
{
	MemoryContext turn = AllocSetContextCreate(replay->mcxt, "migrate replay letter",
											   ALLOCSET_DEFAULT_SIZES);
	int64		last = 0;
	List	   *letters;
	ListCell   *lc;

	/* before any letter is locked, since apply locks them under it */
	if (replay->job->live)
		migrate_writer_lock(replay->job->job_id);
	SPI_connect();
	migrate_check_source_leads(replay->job, "replay dead letters of");
	check_target(replay);
	check_ids(replay);
	while ((letters = take_letters(replay, last)) != NIL)
	{
		foreach(lc, letters)
		{
			Letter	   *letter = lfirst(lc);
			MemoryContext old = MemoryContextSwitchTo(turn);

			CHECK_FOR_INTERRUPTS();
			replay_letter(replay, letter);
			last = letter->id;
			MemoryContextSwitchTo(old);
			MemoryContextReset(turn);
		}
		list_free_deep(letters);
	}
	foreach(lc, replay->targets)
	{
		ReplayTarget *t = lfirst(lc);

		migrate_writer_close(t->writer);
		refetch_wait_durable(replay->job, t->src);
	}
	SPI_finish();
}

/*
 * migrate_replay(job text, target text, ids bigint[]): see
 * sql/55_dead_letters.sql.
 */
Datum
migrate_replay(PG_FUNCTION_ARGS)
{
	Replay		replay = {0};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MigrateAsOwner as;
	Datum		values[3];
	bool		nulls[3] = {0};

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job must not be null")));
	InitMaterializedSRF(fcinfo, 0);
	replay.job = migrate_job_load_by_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	replay.target = PG_ARGISNULL(1) ? 0 : PG_GETARG_DATUM(1);
	replay.ids = PG_ARGISNULL(2) ? 0 : PG_GETARG_DATUM(2);
	replay.mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate replay",
										ALLOCSET_DEFAULT_SIZES);

	migrate_as_owner(replay.job->owner, &as);
	replay_all(&replay);
	migrate_as_caller(&as);

	if (replay.replayed + replay.superseded + replay.failed > 0)
		migrate_event(replay.job->job_id, replay.failed > 0 ? "warning" : "info",
					  "replay", "dead letters: %lld replayed, %lld superseded, %lld failed again",
					  (long long) replay.replayed, (long long) replay.superseded,
					  (long long) replay.failed);
	values[0] = Int64GetDatum(replay.replayed);
	values[1] = Int64GetDatum(replay.superseded);
	values[2] = Int64GetDatum(replay.failed);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	MemoryContextDelete(replay.mcxt);
	return (Datum) 0;
}
