/*-------------------------------------------------------------------------
 *
 * resync.c
 *	  migrate_resync: go on after the stream was lost, without copying again.
 *
 * Runs in the job worker, over many turns; migrate.resync says how far it has
 * come, and each step below is one transaction, repeated after a crash:
 *
 *	  slot			loaders and apply have ended; the old slot is removed, the spool
 *					emptied and the stream 'new' (unless another job of the
 *					stream has done so); then the job joins it as in preparing
 *					(P3), and stands where it begins
 *	  tables		in state catching_up: each mapping is compared with the source
 *					and mended (validate/resync.c); source tables without a key
 *					are copied again
 *	  done			settled and caught up like any other job (live.c)
 *
 * A job that had not copied everything goes on with that between the two; what
 * was copied before the new slot is compared afterwards.
 *
 * Why this is exact: everything read for it is read after the slot's start, so
 * whatever changes meanwhile is in the stream; and the consistent position is
 * taken after the last read (P5).
 *
 * Locks: the writer lock (P14) while a mapping is mended.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "control/job_worker.h"
#include "extract/stream.h"
#include "load/apply.h"

/* "slot", "tables"; empty: nothing is asked for */
static void
load_phase(char *phase, size_t size, bool *renewed)
{
	phase[0] = '\0';
	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("SELECT phase, renewed::int FROM migrate.resync"
					 " WHERE job_id = $1 AND phase <> 'done'", SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		strlcpy(phase, migrate_spi_text(0, 0), size);
		*renewed = migrate_spi_int64(0, 1, 0) != 0;
	}
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
}

MigrateResyncPhase
migrate_resync_phase(void)
{
	char		phase[16];
	bool		renewed;

	load_phase(phase, sizeof(phase), &renewed);
	return phase[0] == '\0' ? RESYNC_NONE :
		strcmp(phase, "slot") == 0 ? RESYNC_SLOT : RESYNC_TABLES;
}

/* ----------------------------------------------------------------
 * the new slot
 * ----------------------------------------------------------------
 */

/* Our own slot, if it is still there; a session that has it is a leftover. */
static void
drop_old_slot(MigrateStream *stream)
{
	char	   *slot = quote_literal_cstr(stream->slot);

	if (stream->own_slot)
		return;
	(void) migrate_exec_value(me.conn,
							  psprintf("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
									   " WHERE slot_name = %s AND active", slot));
	(void) migrate_exec_value(me.conn,
							  psprintf("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
									   " WHERE slot_name = %s", slot));
}

/* What the catalog knows of the stream's past goes. */
static void
empty_stream(int stream_id)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(stream_id);
	static const char *const statements[] = {
		"DELETE FROM migrate.stream_relation WHERE stream_id = $1",
		"DELETE FROM migrate.stream_position WHERE stream_id = $1",
		"DELETE FROM migrate.spool_segment WHERE stream_id = $1"
	};

	migrate_spi_exec("SELECT migrate._spool_drop_segment(stream_id, segment_no)"
					 " FROM migrate.spool_segment WHERE stream_id = $1",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	for (int i = 0; i < lengthof(statements); i++)
		migrate_spi_exec(statements[i], 1, &type, &arg, NULL, SPI_OK_DELETE);
	migrate_spi_exec("UPDATE migrate.stream SET state = 'new', start_lsn = NULL,"
					 " system_identifier = NULL, timeline = NULL, encoding = NULL,"
					 " last_error = NULL, last_sqlstate = NULL, last_error_at = NULL"
					 " WHERE stream_id = $1", 1, &type, &arg, NULL, SPI_OK_UPDATE);
}

/*
 * The stream is said to be lost, so that its capture worker leaves and no new
 * one is started.  True when none lives.
 */
static bool
capture_ended(MigrateStream *stream)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(stream->stream_id);
	bool		alive;

	StartTransactionCommand();
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.stream SET state = 'lost', last_sqlstate = '55000',"
					 " last_error = 'it is begun anew by migrate_resync of another job'"
					 " WHERE stream_id = $1 AND state = 'running'",
					 1, &type, &arg, NULL, SPI_OK_UPDATE);
	migrate_spi_end();
	CommitTransactionCommand();
	StartTransactionCommand();
	alive = migrate_capture_alive(stream->stream_id);
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	return !alive;
}

/* The job leaves its old position, and with "renew" the stream its slot. */
static void
set_back(MigrateJob *job, MigrateStream *stream, bool renew)
{
	StartTransactionCommand();
	if (renew)
		migrate_job_connect(job);
	migrate_spi_begin();
	if (renew)
	{
		drop_old_slot(stream);
		empty_stream(stream->stream_id);
	}
	migrate_job_exec("DELETE FROM migrate.apply_position WHERE job_id = $1", SPI_OK_DELETE);
	migrate_job_exec("UPDATE migrate.job_stream SET joined = false, start_lsn = NULL,"
					 " consistent_lsn = NULL, rechecked = false WHERE job_id = $1", SPI_OK_UPDATE);
	migrate_job_exec("UPDATE migrate.resync SET renewed = true WHERE job_id = $1", SPI_OK_UPDATE);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	migrate_fault("resync-set-back");
}

/*
 * Is the stream the one that we joined?  Else another job has begun it anew, or
 * is about to.
 */
static bool
stream_is_ours(void)
{
	bool		same;

	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("SELECT (js.generation = s.generation AND s.state <> 'new')::int FROM migrate.job_stream js"
					 " JOIN migrate.stream s USING (stream_id) WHERE js.job_id = $1",
					 SPI_OK_SELECT);
	same = migrate_spi_int64(0, 0, 0) != 0;
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	return same;
}

/*
 * What is to be mended: what was copied before the new slot.  Of a source table
 * without a key, or with a mapping that has none, rows cannot be told apart, and
 * it is copied again.
 */
static void
plan_tables(void)
{
	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("INSERT INTO migrate.resync_table (job_id, mapping_id, method)"
					 " SELECT m.job_id, m.mapping_id, CASE WHEN s.key_columns <> '{}'"
					 "  AND NOT EXISTS (SELECT FROM migrate.mapping k WHERE k.source_id = s.source_id"
					 "   AND (k.key IS NULL OR k.key = '{}')) THEN 'compare' ELSE 'copy' END"
					 " FROM migrate.mapping m JOIN migrate.source_table s USING (source_id)"
					 " WHERE m.job_id = $1 AND EXISTS (SELECT FROM migrate.chunk c"
					 "  WHERE c.source_id = s.source_id AND c.state = 'done')"
					 " ON CONFLICT (mapping_id) DO NOTHING", SPI_OK_INSERT);
	migrate_job_exec("UPDATE migrate.resync SET phase = CASE WHEN EXISTS"
					 "  (SELECT FROM migrate.resync_table t WHERE t.job_id = $1)"
					 " THEN 'tables' ELSE 'done' END WHERE job_id = $1", SPI_OK_UPDATE);
	migrate_event(me.job_id, "info", "resync", "the job has joined its stream anew");
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	migrate_fault("resync-joined");
}

static MigrateTurn
turn_slot(MigrateJob *job, bool renewed)
{
	bool		ended = migrate_apply_stop(false);
	MigrateStream *stream;

	migrate_worker_phase("resync");
	pgstat_report_activity(STATE_RUNNING, psprintf("making the slot of job %s anew", job->name));
	if (!migrate_job_loaders_ended(false) || !ended)
		return TURN_WAIT;
	StartTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	stream = migrate_stream_of_job(me.job_id);
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	if (stream && !renewed)
	{
		bool		renew;

		/* one job after the other; given back when it has joined */
		if (!migrate_worker_lock(MIGRATE_LOCK_STREAM, stream->stream_id))
			return TURN_WAIT;
		renew = stream_is_ours();

		if (renew && !capture_ended(stream))
			return TURN_WAIT;
		set_back(job, stream, renew);
	}
	if (!migrate_live_prepare(job))
		return TURN_WAIT;
	plan_tables();
	return TURN_AGAIN;
}

/* ----------------------------------------------------------------
 * the tables
 * ----------------------------------------------------------------
 */

/* The next mapping to be compared; 0: none is left. */
static int
next_mapping(char **target, int *source_id)
{
	int			mapping_id = 0;

	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("SELECT t.mapping_id, m.target, m.source_id FROM migrate.resync_table t"
					 " JOIN migrate.mapping m USING (mapping_id)"
					 " WHERE t.job_id = $1 AND t.state = 'todo' AND t.method = 'compare'"
					 " ORDER BY 1 LIMIT 1", SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(me.cxt);

		mapping_id = (int) migrate_spi_int64(0, 0, 0);
		*target = migrate_spi_text(0, 1);
		*source_id = (int) migrate_spi_int64(0, 2, 0);
		MemoryContextSwitchTo(old);
	}
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(me.cxt);
	return mapping_id;
}

/* In the transaction that mended it. */
static void
record_mapping(int mapping_id, const char *target, MigrateResyncCounts *counts)
{
	Oid			types[] = {INT4OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID};
	Datum		values[] = {Int32GetDatum(mapping_id), Int64GetDatum(counts->source_rows),
		Int64GetDatum(counts->target_rows), Int64GetDatum(counts->keys_different),
		Int64GetDatum(counts->rows_written), Int64GetDatum(counts->rows_deleted),
	Int64GetDatum(counts->dead_letters)};

	migrate_spi_exec("UPDATE migrate.resync_table SET state = 'done', source_rows = $2,"
					 " target_rows = $3, keys_different = $4, rows_written = $5,"
					 " rows_deleted = $6, dead_letters = $7,"
					 " finished_at = pg_catalog.clock_timestamp() WHERE mapping_id = $1",
					 7, types, values, NULL, SPI_OK_UPDATE);
	migrate_event(me.job_id, counts->dead_letters > 0 ? "warning" : "info", "resync",
				  "%s: of %lld source rows, %lld keys were different; rows written: %lld, deleted: %lld, dead letters: %lld",
				  target, (long long) counts->source_rows, (long long) counts->keys_different,
				  (long long) counts->rows_written, (long long) counts->rows_deleted,
				  (long long) counts->dead_letters);
}

static void
mend(MigrateJob *job, int mapping_id, const char *target, int source_id)
{
	MigrateResyncCounts counts;

	migrate_worker_phase("resync");
	pgstat_report_activity(STATE_RUNNING, psprintf("bringing %s of job %s in line", target,
												   job->name));
	me.cancelable = true;
	StartTransactionCommand();
	migrate_job_connect(job);
	migrate_writer_lock(me.job_id); /* P14 */
	migrate_spi_begin();
	migrate_drift_refuse(job, list_make1_int(source_id), me.conn);
	migrate_resync_mapping(job, mapping_id, me.conn, &counts);
	migrate_fault("resync-mended");
	record_mapping(mapping_id, target, &counts);
	migrate_spi_end();
	CommitTransactionCommand();
	me.cancelable = false;
	MemoryContextSwitchTo(me.cxt);
	me.last_progress = GetCurrentTimestamp();
}

/*
 * All that has keys is compared.  What has none is copied again, for which the
 * job goes back to copying; then it is over.
 */
static void
end_of_tables(void)
{
	bool		copy;

	StartTransactionCommand();
	migrate_spi_begin();
	migrate_job_exec("UPDATE migrate.source_table s SET state = 'replan'"
					 " WHERE s.job_id = $1 AND s.state <> 'pending' AND s.source_id IN"
					 " (SELECT m.source_id FROM migrate.resync_table t"
					 "  JOIN migrate.mapping m USING (mapping_id)"
					 "  WHERE t.job_id = $1 AND t.method = 'copy' AND t.state = 'todo')",
					 SPI_OK_UPDATE);
	copy = SPI_processed > 0;
	migrate_job_exec("UPDATE migrate.resync_table SET state = 'done',"
					 " finished_at = pg_catalog.clock_timestamp()"
					 " WHERE job_id = $1 AND state = 'todo'", SPI_OK_UPDATE);
	migrate_job_exec("UPDATE migrate.resync SET phase = 'done',"
					 " ended_at = pg_catalog.clock_timestamp() WHERE job_id = $1", SPI_OK_UPDATE);
	migrate_event(me.job_id, "info", "resync", copy ?
				  "every table with a key is in line again; those without are copied" :
				  "every table is in line again");
	migrate_spi_end();
	if (copy)
		migrate_set_state(me.job_id, "copying", "tables without a key are copied again");
	CommitTransactionCommand();
	me.changed = copy;
	MemoryContextSwitchTo(me.cxt);
	migrate_fault("resync-over");
}

static MigrateTurn
turn_tables(MigrateJob *job)
{
	char	   *target;
	int			source_id;
	int			mapping_id = next_mapping(&target, &source_id);

	if (!migrate_job_loaders_ended(false))
		return TURN_WAIT;
	if (mapping_id == 0)
		end_of_tables();
	else
		mend(job, mapping_id, target, source_id);
	return TURN_AGAIN;
}

/* A turn of phase slot, or in state catching_up of phase tables. */
MigrateTurn
migrate_turn_resync(MigrateJob *job)
{
	char		phase[16];
	bool		renewed = false;

	load_phase(phase, sizeof(phase), &renewed);
	return strcmp(phase, "slot") == 0 ? turn_slot(job, renewed) : turn_tables(job);
}
