/*-------------------------------------------------------------------------
 *
 * checkpoint.c
 *	  The end of a chunk: 'done', with what became of every row that was read.
 *
 * Runs in loaders, in the transaction that wrote the chunk's rows: both
 * commit or neither does.  Fenced: a loader whose chunk was given to another
 * (attempt) or whose table was planned anew (plan_no) cannot commit.  The
 * source's row is locked against planning anew until the commit.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

static void
taken_over(MigrateChunk *chunk)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("chunk %lld was taken over", (long long) chunk->chunk_id),
			 errdetail("Attempt %d of plan %d is not the current one.",
					   chunk->attempt, chunk->plan_no)));
}

/* The plan that the chunk belongs to is still the current one, until commit. */
static void
check_plan(MigrateChunk *chunk)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(chunk->source_id),
	Int32GetDatum(chunk->plan_no)};

	migrate_spi_exec_kept("SELECT FROM migrate.source_table "
						  "WHERE source_id = $1 AND plan_no = $2 FOR SHARE",
						  2, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed != 1)
		taken_over(chunk);
}

static void
mark_done(MigrateChunk *chunk, MigrateSourceTxn *txn, int64 rows, int64 bytes)
{
	Oid			types[] = {INT8OID, INT4OID, INT4OID, INT8OID, INT8OID,
	TEXTOID, LSNOID};
	Datum		values[] = {
		Int64GetDatum(chunk->chunk_id),
		Int32GetDatum(chunk->attempt),
		Int32GetDatum(chunk->plan_no),
		Int64GetDatum(rows),
		Int64GetDatum(bytes),
		txn->snapshot ? CStringGetTextDatum(txn->snapshot) : (Datum) 0,
		LSNGetDatum(txn->insert_lsn)
	};
	char		nulls[] = "       ";

	if (txn->snapshot == NULL)
		nulls[5] = 'n';
	if (txn->insert_lsn == InvalidXLogRecPtr)
		nulls[6] = 'n';
	migrate_spi_exec_kept("UPDATE migrate.chunk SET state = 'done', rows_read = $4, "
						  "bytes_read = $5, snapshot = $6, source_lsn = $7, "
						  "finished_at = pg_catalog.clock_timestamp(), last_error = NULL "
						  "WHERE chunk_id = $1 AND state = 'running' AND attempt = $2 "
						  "AND plan_no = $3",
						  lengthof(types), types, values, nulls, SPI_OK_UPDATE);
	if (SPI_processed != 1)
		taken_over(chunk);
}

/* Conservation: every row that was read has ended up in one place. */
static void
insert_counts(MigrateJob *job, MigrateChunk *chunk, MigrateMapping *map,
			  MigrateCounts *counts, int64 rows)
{
	Oid			types[] = {INT8OID, INT4OID, INT4OID, INT8OID, INT8OID, INT8OID,
	INT8OID, INT8OID};
	Datum		values[] = {
		Int64GetDatum(chunk->chunk_id),
		Int32GetDatum(map->mapping_id),
		Int32GetDatum(job->job_id),
		Int64GetDatum(counts->read),
		Int64GetDatum(counts->mapped),
		Int64GetDatum(counts->filtered),
		Int64GetDatum(counts->dead),
		Int64GetDatum(counts->written)
	};

	if (counts->read != rows ||
		counts->read != counts->mapped + counts->filtered + counts->dead)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("chunk %lld lost count of its rows for target table %s",
						(long long) chunk->chunk_id, map->target_name),
				 errdetail("Of %lld rows, %lld were handed on, %lld mapped, %lld filtered and %lld became dead letters.",
						   (long long) rows, (long long) counts->read,
						   (long long) counts->mapped, (long long) counts->filtered,
						   (long long) counts->dead)));
	migrate_spi_exec_kept("INSERT INTO migrate.chunk_mapping (chunk_id, mapping_id, job_id, "
						  "rows_read, rows_mapped, rows_filtered, rows_dead, rows_written) "
						  "VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
						  lengthof(types), types, values, NULL, SPI_OK_INSERT);
}

/*
 * Record the chunk as done.  counts has one element a mapping, in the order of
 * the list; rows is the number read.
 */
void
migrate_checkpoint(MigrateJob *job, MigrateChunk *chunk, MigrateSourceTxn *txn,
				   int64 rows, int64 bytes, List *mappings, MigrateCounts *counts)
{
	SPI_connect();
	check_plan(chunk);
	mark_done(chunk, txn, rows, bytes);
	for (int i = 0; i < list_length(mappings); i++)
		insert_counts(job, chunk, list_nth(mappings, i), &counts[i], rows);
	SPI_finish();
}
