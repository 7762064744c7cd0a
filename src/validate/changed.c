/*-------------------------------------------------------------------------
 *
 * changed.c
 *	  What changed since the last validation, known from the spool, and the
 *	  comparison of that alone: level "changed", and the last check of a cutover
 *	  (P32).
 *
 *	  validated at P              cut at Q
 *	  -----+---- spool ------------+-->
 *	        keys that changed: read on both sides at Q, and compared
 *
 * A validation of a live job writes down its cut, a position P of the stream
 * (migrate.validated).  Capture keeps the spool back to the least P, within
 * option changed_spool_size.  The messages from P to Q name every row that
 * has changed: by the key of the new row, of the old one where the source sends
 * it, of the deleted one.  Rows of these keys are read through the mapping on
 * the one side, by the key map on the other, a thousand keys at a time, and
 * compared as the rows of buckets that differ are (compare.c).
 *
 * A table is compared whole where that does not do:
 *
 *	  it was never validated, was copied again since, or the stream was made
 *	  anew, or the spool does not reach back to P
 *	  it was truncated, or has no key
 *	  too many keys changed for memory, or one cannot be read here
 *
 * Not found is what nobody changed on the source: a row that was damaged here.
 * That is what the other levels are for.
 *
 * P moves on with every run whose rows were equal, and with every one of the
 * levels checksum and full, whose verdict stands for itself; a run of this level
 * that finds differences leaves it, so that the next one looks at them again.
 *
 * Runs in the session or worker that validates, and in the job worker.  Reads
 * the spool, writes what a validation does, in the caller's transaction; the
 * keys are in memory, and a crash loses nothing but them.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/guc.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "validate/changed.h"
#include "changed_keys.h"

/* of a comparison that was not measured yet, ms */
#define GUESSED_TARGET_MS 10.0
#define GUESSED_KEY_MS 0.05

/* fewer keys than this say nothing of what a key costs */
#define MEASURED_KEYS 200

/* ----------------------------------------------------------------
 * since when
 * ----------------------------------------------------------------
 */

/* A pg_lsn of the last SPI result; 0 for null. */
static XLogRecPtr
spi_lsn(uint64 row, int col)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
									  col + 1, &isnull);

	return isnull ? InvalidXLogRecPtr : DatumGetLSN(value);
}

/* From now on all of it is to be compared. */
void
validate_changed_whole(ValidateChanged *c, ChangedTarget *t, const char *why)
{
	t->whole = true;
	t->why = why ? MemoryContextStrdup(c->mcxt, why) : NULL;
	if (t->keys)
	{
		c->bytes -= t->bytes;
		t->keys = NULL;
		t->bytes = 0;
		MemoryContextReset(t->mcxt);
	}
}

/* Nothing of it has changed any more. */
static void
forget_changes(ValidateChanged *c, ChangedTarget *t)
{
	validate_changed_whole(c, t, NULL);
	t->whole = false;
	/* what is read from now on counts, whatever was known before */
	c->least = Min(c->least, t->since);
}

/* Where apply is: its position, and the row of the spool that holds it. */
int64
validate_changed_applied(ValidateChanged *c, XLogRecPtr *lsn)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(c->job->job_id);
	int64		seq = 1;

	*lsn = InvalidXLogRecPtr;
	migrate_spi_begin();
	migrate_spi_exec("SELECT next_seq, applied_lsn FROM migrate.apply_position WHERE job_id = $1",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		seq = migrate_spi_int64(0, 0, 1);
		*lsn = spi_lsn(0, 1);
	}
	migrate_spi_end();
	return seq;
}

ChangedTarget *
validate_changed_target(ValidateChanged *c, int mapping_id)
{
	ListCell   *lc;

	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);

		if (t->task->mapping_id == mapping_id)
			return t;
	}
	return NULL;
}

/*
 * What was compared last of each target, and whether the spool still reaches
 * back there.  The row of the spool where reading begins, 0: nothing is known.
 */
static int64
load_since(ValidateChanged *c)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(c->job->job_id);
	int64		seq = 0;

	migrate_spi_begin();
	migrate_spi_exec("SELECT m.mapping_id, v.seq, v.source_lsn,"
					 " CASE WHEN v.mapping_id IS NULL THEN 'it was never validated'"
					 "  WHEN v.stream_id <> s.stream_id OR v.generation <> s.generation THEN 'the stream was made anew since it was validated'"
					 "  WHEN v.plan_no <> t.plan_no THEN 'it was copied again since it was validated'"
					 "  WHEN v.seq < coalesce((SELECT min(g.first_seq) FROM migrate.spool_segment g WHERE g.stream_id = s.stream_id),"
					 "   p.spooled_seq) THEN 'what changed since it was validated is not kept any more' END,"
					 " (v.mapping_id IS NULL)::int"
					 " FROM migrate.mapping m JOIN migrate.source_table t USING (source_id)"
					 " JOIN migrate.job_stream js ON js.job_id = m.job_id"
					 " JOIN migrate.stream s ON s.stream_id = js.stream_id"
					 " JOIN migrate.stream_position p ON p.stream_id = s.stream_id"
					 " LEFT JOIN migrate.validated v USING (mapping_id) WHERE m.job_id = $1",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ChangedTarget *t = validate_changed_target(c, (int) migrate_spi_int64(i, 0, 0));
		char	   *why = migrate_spi_text(i, 3);

		if (t == NULL)
			continue;
		t->never = migrate_spi_int64(i, 4, 0) != 0;
		if (why)
		{
			validate_changed_whole(c, t, why);
			continue;
		}
		forget_changes(c, t);
		t->since = spi_lsn(i, 2);
		if (seq == 0 || migrate_spi_int64(i, 1, 0) < seq)
			seq = migrate_spi_int64(i, 1, 0);
	}
	migrate_spi_end();
	return seq;
}

/* Of targets that were never validated what changes from now on is known. */
static void
begin_now(ValidateChanged *c, XLogRecPtr lsn)
{
	ListCell   *lc;

	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);

		if (!t->never)
			continue;
		t->whole = false;
		t->since = lsn;
	}
}

/* The leaves of each target's source table. */
static void
load_leaves(ValidateChanged *c)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(c->job->job_id);

	migrate_spi_begin();
	migrate_spi_exec("SELECT m.mapping_id, l.remote_oid::int8 FROM migrate.mapping m JOIN migrate.leaf l USING (source_id)"
					 " WHERE m.job_id = $1 AND l.remote_oid IS NOT NULL AND l.remote_oid::int8 <> 0",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ChangedTarget *t = validate_changed_target(c, (int) migrate_spi_int64(i, 0, 0));
		MemoryContext old = MemoryContextSwitchTo(c->mcxt);

		if (t)
			t->leaves = lappend_oid(t->leaves, (Oid) migrate_spi_int64(i, 1, 0));
		MemoryContextSwitchTo(old);
	}
	migrate_spi_end();
}

static void
add_target(ValidateChanged *c, ValidateTask *task)
{
	ChangedTarget *t = palloc0(sizeof(ChangedTarget));

	t->task = palloc(sizeof(ValidateTask));
	*t->task = *task;
	t->task->target = pstrdup(task->target);
	t->src = migrate_source_load(task->source_id);
	t->left_out = t->src->transport != 'c';
	t->mcxt = AllocSetContextCreate(c->mcxt, "migrate changed keys", ALLOCSET_DEFAULT_SIZES);
	c->targets = lappend(c->targets, t);
	validate_changed_whole(c, t, "the job does not follow its source live");
}

/* In a transaction; from_now: see begin_now(). */
ValidateChanged *
validate_changed_open(MigrateJob *job, List *tasks, bool from_now, MigrateConn **conn,
					  MemoryContext conn_cxt)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate changed rows",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	ValidateChanged *c = palloc0(sizeof(ValidateChanged));
	MigrateStream *stream = job->live ? migrate_stream_of_job(job->job_id) : NULL;
	ListCell   *lc;

	c->job = job;
	c->mcxt = mcxt;
	c->conn = conn;
	c->conn_cxt = conn_cxt;
	foreach(lc, tasks)
		add_target(c, lfirst(lc));
	if (stream)
	{
		XLogRecPtr	lsn;
		int64		now = validate_changed_applied(c, &lsn);
		int64		seq = load_since(c);

		c->streams = true;
		c->stream_id = stream->stream_id;
		c->encoding = stream->encoding ? pg_char_to_encoding(stream->encoding) : GetDatabaseEncoding();
		load_leaves(c);
		if (from_now)
			begin_now(c, lsn);
		validate_changed_begin(c, seq > 0 ? Min(seq, now) : now);
	}
	MemoryContextSwitchTo(old);
	return c;
}

/*
 * Both sides of a mapping were compared at a cut: what changes from there on is
 * to be looked at next.  seq 0: the row of the spool is looked for; where it may
 * be gone, nothing is noted.
 */
void
validate_note_compared(MigrateJob *job, int mapping_id, int64 id, XLogRecPtr lsn, int64 seq)
{
	Oid			types[] = {INT4OID, INT8OID, LSNOID, INT8OID};
	Datum		values[] = {Int32GetDatum(mapping_id), Int64GetDatum(id), LSNGetDatum(lsn), Int64GetDatum(seq)};

	SPI_connect();
	migrate_spi_exec("INSERT INTO migrate.validated AS v (mapping_id, job_id, stream_id, generation, plan_no, source_lsn, seq, validation_id)"
					 " SELECT m.mapping_id, m.job_id, s.stream_id, s.generation, t.plan_no, $3, q.seq, $2"
					 " FROM migrate.mapping m JOIN migrate.source_table t USING (source_id)"
					 " JOIN migrate.job_stream j ON j.job_id = m.job_id JOIN migrate.stream s ON s.stream_id = j.stream_id"
					 " CROSS JOIN LATERAL (SELECT CASE WHEN $4 > 0 THEN $4 WHEN min(g.first_seq) = 1 OR bool_or(g.last_lsn <= $3)"
					 "   THEN min(g.first_seq) FILTER (WHERE g.last_lsn IS NULL OR g.last_lsn > $3) END AS seq"
					 "  FROM migrate.spool_segment g WHERE g.stream_id = s.stream_id) q"
					 " WHERE m.mapping_id = $1 AND q.seq IS NOT NULL"
					 " ON CONFLICT (mapping_id) DO UPDATE SET stream_id = excluded.stream_id, generation = excluded.generation,"
					 "  plan_no = excluded.plan_no, source_lsn = excluded.source_lsn, seq = excluded.seq,"
					 "  validation_id = excluded.validation_id, validated_at = excluded.validated_at"
					 " WHERE excluded.source_lsn >= v.source_lsn OR excluded.generation <> v.generation OR excluded.plan_no <> v.plan_no",
					 4, types, values, NULL, SPI_OK_INSERT);
	SPI_finish();
}

/* ----------------------------------------------------------------
 * for the cutover, in the job worker
 * ----------------------------------------------------------------
 */
MigrateChanged *
migrate_changed_open(MigrateJob *job, MigrateConn *conn)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateConn **place = palloc(sizeof(MigrateConn *));
	MigrateChanged *c;

	*place = conn;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(mcxt);
	c = validate_changed_open(job, validate_tasks(job, NULL), true, place, mcxt);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	return c;
}

void
migrate_changed_look(MigrateChanged *c)
{
	MemoryContext mcxt = CurrentMemoryContext;
	XLogRecPtr	applied;

	SpinLockAcquire(&migrate_shared->mutex);
	applied = migrate_shared->live.applied_lsn;
	SpinLockRelease(&migrate_shared->mutex);
	StartTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	validate_changed_read(c, applied);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

static bool
has_changed(ChangedTarget *t)
{
	return !t->left_out && (t->whole || t->keys);
}

void
migrate_changed_rest(MigrateChanged *c, MigrateChangedRest *rest)
{
	ListCell   *lc;

	memset(rest, 0, sizeof(*rest));
	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);

		if (!has_changed(t))
			continue;
		rest->targets++;
		if (t->whole)
		{
			rest->whole++;
			if (t->whole_ms == 0)
				rest->ms = -1;
			else if (rest->ms >= 0)
				rest->ms += t->whole_ms;
			continue;
		}
		rest->keys += t->keys->members;
		if (rest->ms >= 0)
			rest->ms += (t->target_ms > 0 ? t->target_ms : GUESSED_TARGET_MS) +
				t->keys->members * (t->key_ms > 0 ? t->key_ms : GUESSED_KEY_MS);
	}
}

/* What it took tells what the next one will take. */
static void
measure(ChangedTarget *t, int64 keys, double ms)
{
	if (t->whole)
		t->whole_ms = Max(ms, 0.1);
	else if (keys < MEASURED_KEYS)
		t->target_ms = Max(ms, 0.1);
	else
		t->key_ms = Max(ms, 0.1) / keys;
}

/* What a comparison has come to, in the current memory context. */
static void
add_result(MigrateChanged *c, ChangedTarget *t, bool accepted, ValidateResult *result,
		   const char *inexact, MigrateChangedRound *round)
{
	int64		keys = t->keys ? t->keys->members : 0;
	int64		left = result->mismatches - (result->at_least ? 0 : result->explained);

	round->targets++;
	round->ms += result->ms;
	round->whole += t->whole;
	round->keys += keys;
	measure(t, keys, result->ms);
	if (inexact)
	{
		round->inexact = pstrdup(inexact);
		return;
	}
	if (left > 0)
	{
		round->mismatches += left;
		round->differing = round->differing ?
			psprintf("%s, %s", round->differing, t->task->target) : pstrdup(t->task->target);
	}
	if (left == 0 || accepted)
		forget_changes(c, t);
}

/* At a cut of its own. */
static void
compare_one(MigrateChanged *c, ChangedTarget *t, bool accepted, MigrateChangedRound *round)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MemoryContext cxt = AllocSetContextCreate(mcxt, "migrate last check", ALLOCSET_DEFAULT_SIZES);
	ValidateResult result;
	ValidateCut cut;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(cxt);
	/* to be seen, and paced */
	validate_progress_begin(c->job, list_make1(t->task), false, LEVEL_CHANGED);
	PG_TRY();
	{
		(void) validate_one_changed(c->job, t->task, c, c->conn, c->conn_cxt, NULL, &result, &cut);
	}
	PG_FINALLY();
	{
		validate_progress_end();
	}
	PG_END_TRY();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	add_result(c, t, accepted, &result, cut.why, round);
	MemoryContextDelete(cxt);
}

/*
 * Under the fence, in the transactions of all of them: what was compiled before is
 * used, and what is equal is written down later (migrate_changed_record).
 */
static void
compare_quiet(MigrateChanged *c, ChangedTarget *t, bool accepted, ValidateCut *cut,
			  MigrateChangedRound *round)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MemoryContext cxt = AllocSetContextCreate(mcxt, "migrate last check", ALLOCSET_DEFAULT_SIZES);
	ValidateEnds ends = {.job = c->job,.cut = cut,.conn = *c->conn,.src = t->src,.map = t->map,.shape = t->shape};
	TimestampTz begin = GetCurrentTimestamp();

	MemoryContextSwitchTo(cxt);
	memset(&t->result, 0, sizeof(t->result));
	if (t->map == NULL)
		validate_open_ends(&ends, c->job, t->task, cut, c->conn, c->conn_cxt);
	validate_changed_compare(c, &ends, 0, &t->result);
	t->result.ms = (GetCurrentTimestamp() - begin) / 1000.0;
	t->result.note = MemoryContextStrdup(c->mcxt, t->result.note);
	if (t->result.validation_id != 0)
		validate_end_run(c->job, t->task->target, LEVEL_CHANGED, t->result.validation_id, &t->result,
						 cut, validate_describe(t->task, LEVEL_CHANGED, &t->result, cut), NULL);
	t->compared = true;
	t->compared_at = begin;
	MemoryContextSwitchTo(mcxt);
	add_result(c, t, accepted, &t->result, NULL, round);
	MemoryContextDelete(cxt);
}

static void
round_in_quiet(MigrateChanged *c, bool accepted, MigrateChangedRound *round)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateSource any = {.transport = 'c'};
	ValidateCut cut = {.exact = true,.lsn = c->quiet_at};
	ListCell   *lc;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(mcxt);
	migrate_source_begin(*c->conn, &any, NULL, &cut.txn);
	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		if (has_changed(t))
			compare_quiet(c, t, accepted, &cut, round);
		c->tick(c->tick_arg);
	}
	migrate_source_end(*c->conn);
	PopActiveSnapshot();
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

void
migrate_changed_round(MigrateChanged *c, XLogRecPtr quiet_at, bool accepted,
					  void (*tick) (void *arg), void *arg, MigrateChangedRound *round)
{
	ListCell   *lc;

	memset(round, 0, sizeof(*round));
	c->quiet_at = quiet_at;
	c->tick = tick;
	c->tick_arg = arg;
	if (quiet_at != InvalidXLogRecPtr)
	{
		round_in_quiet(c, accepted, round);
		return;
	}
	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		if (has_changed(t))
			compare_one(c, t, accepted, round);
	}
}

/*
 * Compile what is a matter of columns; what has code, or reads other tables, is
 * compiled when it is needed, in the transaction that runs it.
 */
static void
prepare_target(MigrateChanged *c, ChangedTarget *t)
{
	MemoryContext old;

	t->map_cxt = AllocSetContextCreate(c->mcxt, "migrate last check mapping", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(t->map_cxt);
	t->map = migrate_mapping_load(t->task->mapping_id);
	migrate_mapping_compile(t->map, t->src);
	if (t->map->projection && t->map->nkeys > 0)
	{
		migrate_mapping_compile_keys(t->map, t->src);
		t->shape = validate_shape(t->map);
	}
	MemoryContextSwitchTo(old);
	if (t->shape)
		return;
	MemoryContextDelete(t->map_cxt);
	t->map = NULL;
}

void
migrate_changed_prepare(MigrateChanged *c)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ListCell   *lc;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(mcxt);
	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);

		if (!t->left_out && t->src->nkeys > 0)
			prepare_target(c, t);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

/* The history of what was equal under the fence, when nobody waits any more. */
void
migrate_changed_record(MigrateChanged *c)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ListCell   *lc;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(mcxt);
	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);
		Oid			types[] = {INT4OID, INT4OID, INT8OID, INT8OID, TEXTOID, LSNOID, TIMESTAMPTZOID, FLOAT8OID};
		Datum		values[8];

		if (!t->compared || t->result.validation_id != 0)
			continue;
		values[0] = Int32GetDatum(c->job->job_id);
		values[1] = Int32GetDatum(t->task->mapping_id);
		values[2] = Int64GetDatum(t->result.source_rows);
		values[3] = Int64GetDatum(t->result.target_rows);
		values[4] = CStringGetTextDatum(psprintf("matched; %s", t->result.note));
		values[5] = LSNGetDatum(c->quiet_at);
		values[6] = TimestampTzGetDatum(t->compared_at);
		values[7] = Float8GetDatum(t->result.ms / 1000);
		SPI_connect();
		migrate_spi_exec("INSERT INTO migrate.validation_run (job_id, mapping_id, level, digest, source_rows, target_rows,"
						 "  matched, mismatches, status, source_lsn, started_at, duration)"
						 " VALUES ($1, $2, 'changed', 'here', $3, $4, true, 0, $5, $6, $7, make_interval(secs => $8))",
						 8, types, values, NULL, SPI_OK_INSERT);
		SPI_finish();
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

int
migrate_changed_unknown(MigrateChanged *c)
{
	int			n = 0;
	ListCell   *lc;

	foreach(lc, c->targets)
		n += ((ChangedTarget *) lfirst(lc))->never;
	return n;
}

int
migrate_changed_left_out(MigrateChanged *c)
{
	int			n = 0;
	ListCell   *lc;

	foreach(lc, c->targets)
		n += ((ChangedTarget *) lfirst(lc))->left_out;
	return n;
}

/* ----------------------------------------------------------------
 * for people
 * ----------------------------------------------------------------
 */

/*
 * migrate._changed_since(job_id) RETURNS (mapping_id, keys, whole): what changed
 * of each target since it was validated; keys null: all of it counts as
 * changed, for the reason that is given.
 */
PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_changed_since);
Datum
migrate_changed_since(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MigrateJob *job;
	MigrateConn *conn = NULL;
	ValidateChanged *c;
	MigrateAsOwner as;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	job = migrate_job_load(PG_GETARG_INT32(0));
	if (job == NULL)
		return (Datum) 0;
	migrate_as_owner(job->owner, &as);
	c = validate_changed_open(job, validate_tasks(job, NULL), false, &conn, CurrentMemoryContext);
	validate_changed_read(c, InvalidXLogRecPtr);
	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);
		Datum		values[3] = {Int32GetDatum(t->task->mapping_id),
			Int64GetDatum(t->keys ? t->keys->members : 0),
		t->whole ? CStringGetTextDatum(t->why) : (Datum) 0};
		bool		nulls[3] = {false, t->whole, !t->whole};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	if (conn)
		migrate_disconnect(conn);
	migrate_as_caller(&as);
	return (Datum) 0;
}
