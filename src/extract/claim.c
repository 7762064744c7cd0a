/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  Chunks: cut off one at a time when a loader asks for work.
 *
 * Runs in loaders; each claim is a short transaction of its own.  States of
 * migrate.chunk, and who moves them:
 *
 *	  (cut) -> running -> done			claim; the checkpoint
 *	  running -> todo -> running		a loader that failed or died; claim
 *
 * A leaf is locked while a chunk is cut from it, SKIP LOCKED, so that loaders
 * spread over the leaves; only when all are locked does one wait.  The leaf
 * remembers how far it has been cut, so a claim costs the same after 100,000
 * chunks.  attempt is counted before the work: a crash is over-counted, never
 * missed, and leaves a chunk 'running' of a process that is gone, which
 * migrate_chunks_release() gives back.
 *
 * Keys behind a wrapper (of a server that cannot be asked otherwise) are cut
 * all at once by the first loader that gets there, since finding one boundary
 * may cost the wrapper a whole scan; those
 * chunks are 'todo' then.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* bounds of what adapts; less where the first chunk was to be smaller */
#define MIN_CHUNK_BLOCKS 16
#define MAX_CHUNK_BYTES ((int64) 1024 * 1024 * 1024)
#define MIN_CHUNK_ROWS 1000
#define MAX_CHUNK_ROWS 10000000
/* towards a leaf's end chunks get no smaller than this */
#define MIN_LAST_BLOCKS 512
/* a change of the size smaller than this is not worth a write */
#define ADAPT_THRESHOLD 0.2

/* a leaf from which a chunk is to be cut; its row is locked */
typedef struct Leaf
{
	int			source_id;
	int			leaf_no;
	int			plan_no;
	char		method;
	bool		local;			/* read by a wrapper */
	char	   *relation;
	Oid			remote_oid;
	Oid			remote_filenode;
	char	   *fingerprint;
	int64		blocks;
	int64		next_block;
	char	  **next_key;
	int64		chunk_size;
} Leaf;

/* ----------------------------------------------------------------
 * a chunk that somebody gave back
 * ----------------------------------------------------------------
 */

/* A chunk from a row of the last SPI result, in mcxt. */
static MigrateChunk *
chunk_from_result(MemoryContext mcxt)
{
	HeapTuple	tuple = SPI_tuptable->vals[0];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	MemoryContext oldcxt = MemoryContextSwitchTo(mcxt);
	MigrateChunk *chunk = palloc0(sizeof(MigrateChunk));
	Datum		value;
	bool		isnull;

	chunk->chunk_id = migrate_spi_int64(0, 0, 0);
	chunk->source_id = (int) migrate_spi_int64(0, 1, 0);
	chunk->leaf_no = (int) migrate_spi_int64(0, 2, 0);
	chunk->plan_no = (int) migrate_spi_int64(0, 3, 0);
	chunk->attempt = (int) migrate_spi_int64(0, 4, 0);
	chunk->range.relation = migrate_spi_text(0, 5);
	chunk->range.remote_oid = (Oid) migrate_spi_int64(0, 6, 0);
	chunk->range.remote_filenode = (Oid) migrate_spi_int64(0, 7, 0);
	chunk->range.block_lo = migrate_spi_int64(0, 8, 0);
	chunk->range.block_hi = migrate_spi_int64(0, 9, -1);
	value = SPI_getbinval(tuple, desc, 11, &isnull);
	chunk->range.key_lo = migrate_key_from_array(value, isnull);
	value = SPI_getbinval(tuple, desc, 12, &isnull);
	chunk->range.key_hi = migrate_key_from_array(value, isnull);
	chunk->range.fingerprint = migrate_spi_text(0, 12);
	chunk->started = GetCurrentTimestamp();
	MemoryContextSwitchTo(oldcxt);
	return chunk;
}

static MigrateChunk *
claim_given_back(MigrateJob *job, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(job->job_id), Int32GetDatum(MyProcPid)};

	migrate_spi_exec_kept("UPDATE migrate.chunk c SET state = 'running',"
						  " attempt = c.attempt + 1, worker_pid = $2,"
						  " started_at = pg_catalog.clock_timestamp(), finished_at = NULL"
						  " FROM (SELECT ch.chunk_id FROM migrate.chunk ch"
						  "  JOIN migrate.source_table s ON s.source_id = ch.source_id"
						  "   AND s.plan_no = ch.plan_no AND s.state = 'copying'"
						  "  WHERE ch.job_id = $1 AND ch.state = 'todo'"
						  "  ORDER BY ch.chunk_id LIMIT 1 FOR UPDATE OF ch SKIP LOCKED) n,"
						  " migrate.leaf l"
						  " WHERE c.chunk_id = n.chunk_id AND l.source_id = c.source_id"
						  " AND l.leaf_no = c.leaf_no"
						  " RETURNING c.chunk_id, c.source_id, c.leaf_no, c.plan_no, c.attempt,"
						  " l.relation, l.remote_oid, l.remote_filenode,"
						  " c.block_lo, c.block_hi, c.key_lo, c.key_hi, l.fingerprint",
						  2, types, values, NULL, SPI_OK_UPDATE_RETURNING);
	return SPI_processed > 0 ? chunk_from_result(mcxt) : NULL;
}

/* ----------------------------------------------------------------
 * cutting a new one
 * ----------------------------------------------------------------
 */

/*
 * Lock the largest leaf that is not cut up yet.  Sizes are those of the plan,
 * so that the order is an index's and a claim costs the same however many
 * leaves there are.
 */
static Leaf *
lock_leaf(MigrateJob *job, bool wait)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(job->job_id)};
	int			level = migrate_follow_index_order();
	Leaf	   *leaf;
	Datum		value;
	bool		isnull;

	migrate_spi_exec_kept(psprintf("SELECT l.source_id, l.leaf_no, s.plan_no, s.method,"
								   " s.transport, l.relation, l.remote_oid, l.remote_filenode,"
								   " l.blocks, l.next_block, l.next_key, l.chunk_size,"
								   " l.fingerprint"
								   " FROM migrate.leaf l JOIN migrate.source_table s"
								   "  ON s.source_id = l.source_id"
								   " WHERE l.job_id = $1 AND s.state = 'copying'"
								   " AND NOT l.exhausted"
								   " ORDER BY l.weight DESC, l.source_id, l.leaf_no"
								   " LIMIT 1 FOR UPDATE OF l%s", wait ? "" : " SKIP LOCKED"),
						  1, types, values, NULL, SPI_OK_SELECT);
	AtEOXact_GUC(true, level);
	if (SPI_processed == 0)
		return NULL;
	leaf = palloc0(sizeof(Leaf));
	leaf->source_id = (int) migrate_spi_int64(0, 0, 0);
	leaf->leaf_no = (int) migrate_spi_int64(0, 1, 0);
	leaf->plan_no = (int) migrate_spi_int64(0, 2, 0);
	leaf->method = migrate_spi_text(0, 3)[0];
	leaf->local = migrate_spi_text(0, 4)[0] == 'f';
	leaf->relation = migrate_spi_text(0, 5);
	leaf->remote_oid = (Oid) migrate_spi_int64(0, 6, 0);
	leaf->remote_filenode = (Oid) migrate_spi_int64(0, 7, 0);
	leaf->blocks = migrate_spi_int64(0, 8, 0);
	leaf->next_block = migrate_spi_int64(0, 9, 0);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 11, &isnull);
	leaf->next_key = migrate_key_from_array(value, isnull);
	leaf->chunk_size = migrate_spi_int64(0, 11, 0);
	leaf->fingerprint = migrate_spi_text(0, 12);
	return leaf;
}

/* Blocks of the leaf now; it may have grown since the plan. */
static int64
blocks_now(MigrateConn *conn, Leaf *leaf)
{
	char	   *value;

	if (conn == NULL || !OidIsValid(leaf->remote_oid))
		return leaf->blocks;
	value = migrate_exec_value(conn, psprintf("SELECT pg_relation_size(%u)"
											  " / current_setting('block_size')::int8",
											  leaf->remote_oid));
	return Max(leaf->blocks, value ? pg_strtoint64(value) : 0);
}

/*
 * The next blocks.  Towards the end of the leaf chunks shrink, so that all
 * workers get there at about the same time (guided self-scheduling:
 * Polychronopoulos and Kuck, IEEE Transactions on Computers 36, 1987).  The
 * last range has an open end, and takes a rest that would be less than half a
 * chunk; a table that was cut before is asked for its size again, so that this
 * open end is not a day's growth.
 */
static void
cut_blocks(MigrateConn *conn, Leaf *leaf, MigrateRange *range, int workers)
{
	int64		share = (leaf->blocks - leaf->next_block) / (2 * Max(workers, 1));
	int64		size = Max(leaf->chunk_size, 1);

	size = Min(size, Max(share, MIN_LAST_BLOCKS));

	if (leaf->next_block > 0 && leaf->next_block + size + size / 2 >= leaf->blocks)
		leaf->blocks = blocks_now(conn, leaf);
	range->block_lo = leaf->next_block;
	range->block_hi = -1;
	if (leaf->next_block + size + size / 2 < leaf->blocks)
		range->block_hi = leaf->next_block + size;
}

/*
 * May the keys of a foreign table be asked for on its server?  It must be the
 * one that we are connected to, and its order that of the scans.
 */
static bool
can_ask_server(MigrateJob *job, MigrateConn *conn, MigrateSource *src)
{
	if (conn == NULL || src->server != job->server || src->remote_table == NULL)
		return false;
	for (int k = 0; k < src->nkeys; k++)
		if (OidIsValid(get_typcollation(src->columns[src->keys[k]].type)))
			return false;
	return true;
}

/* The next keys, by a query on the source. */
static void
cut_keys(MigrateConn *conn, Leaf *leaf, MigrateSource *src, MigrateRange *range)
{
	MigrateSource there = *src;
	MigrateRange rest = *range;

	if (leaf->local)
	{
		there.transport = 'c';
		rest.relation = NULL;
	}
	rest.key_lo = range->key_lo = leaf->next_key;
	range->key_hi = migrate_range_cut(conn, &there, &rest, Max(leaf->chunk_size, 1));
}

/* Note in the leaf how far it is cut: to a block, or to a key, or to its end. */
static void
advance_leaf(Leaf *leaf, MigrateSource *src, MigrateRange *range)
{
	Oid			types[] = {INT4OID, INT4OID, INT8OID, INT8OID, TEXTARRAYOID, BOOLOID};
	Datum		values[6];
	char		nulls[7] = "      ";

	values[0] = Int32GetDatum(leaf->source_id);
	values[1] = Int32GetDatum(leaf->leaf_no);
	values[2] = Int64GetDatum(range->block_hi >= 0 ? range->block_hi : leaf->next_block);
	values[3] = Int64GetDatum(leaf->blocks);
	if (range->key_hi)
		values[4] = migrate_key_to_array(range->key_hi, src->nkeys);
	else
		nulls[4] = 'n';
	values[5] = BoolGetDatum(range->block_hi < 0 && range->key_hi == NULL);
	migrate_spi_exec_kept("UPDATE migrate.leaf SET next_block = $3, blocks = $4,"
						  " next_key = $5, exhausted = $6"
						  " WHERE source_id = $1 AND leaf_no = $2",
						  6, types, values, nulls, SPI_OK_UPDATE);
}

/* Record a chunk; its id. */
static int64
insert_chunk(MigrateJob *job, Leaf *leaf, MigrateSource *src, MigrateRange *range,
			 bool running)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID, INT4OID, INT8OID, INT8OID,
	TEXTARRAYOID, TEXTARRAYOID, BOOLOID, INT4OID};
	Datum		values[10];
	char		nulls[11] = "          ";

	values[0] = Int32GetDatum(job->job_id);
	values[1] = Int32GetDatum(leaf->source_id);
	values[2] = Int32GetDatum(leaf->leaf_no);
	values[3] = Int32GetDatum(leaf->plan_no);
	values[4] = Int64GetDatum(range->block_lo);
	values[5] = Int64GetDatum(range->block_hi);
	if (leaf->method != 'b')
		nulls[4] = 'n';
	if (range->block_hi < 0)
		nulls[5] = 'n';
	if (range->key_lo)
		values[6] = migrate_key_to_array(range->key_lo, src->nkeys);
	else
		nulls[6] = 'n';
	if (range->key_hi)
		values[7] = migrate_key_to_array(range->key_hi, src->nkeys);
	else
		nulls[7] = 'n';
	values[8] = BoolGetDatum(running);
	values[9] = Int32GetDatum(MyProcPid);
	migrate_spi_exec_kept("INSERT INTO migrate.chunk (job_id, source_id, leaf_no, plan_no,"
						  " block_lo, block_hi, key_lo, key_hi, state, attempt, worker_pid, started_at)"
						  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8,"
						  " CASE WHEN $9 THEN 'running' ELSE 'todo' END,"
						  " CASE WHEN $9 THEN 1 ELSE 0 END,"
						  " CASE WHEN $9 THEN $10 END,"
						  " CASE WHEN $9 THEN pg_catalog.clock_timestamp() END)"
						  " RETURNING chunk_id",
						  10, types, values, nulls, SPI_OK_INSERT_RETURNING);
	return migrate_spi_int64(0, 0, 0);
}

/*
 * SELECT of every n-th key in order, for cutting behind a wrapper; one scan of
 * the key columns, sorted here.
 */
static char *
boundaries_query(MigrateSource *src, int64 size)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int k = 0; k < src->nkeys; k++)
		appendStringInfo(&sql, "%s%s", k > 0 ? ", " : "",
						 quote_identifier(src->columns[src->keys[k]].name));
	appendStringInfoString(&sql, " FROM (SELECT ");
	for (int k = 0; k < src->nkeys; k++)
		appendStringInfo(&sql, "%s, ",
						 quote_identifier(src->columns[src->keys[k]].name));
	appendStringInfoString(&sql, "pg_catalog.row_number() OVER (ORDER BY ");
	migrate_append_order(&sql, src);
	appendStringInfoString(&sql, ") FROM ");
	migrate_append_from(&sql, src, NULL);
	appendStringInfoString(&sql, " WHERE ");
	migrate_append_not_null(&sql, src);
	appendStringInfo(&sql, ") AS q (");
	for (int k = 0; k < src->nkeys; k++)
		appendStringInfo(&sql, "%s, ",
						 quote_identifier(src->columns[src->keys[k]].name));
	appendStringInfo(&sql, "migrate_n) WHERE migrate_n %% " INT64_FORMAT
					 " = 0 ORDER BY migrate_n", size);
	return sql.data;
}

/*
 * Cut a whole table behind a wrapper into ranges of equal row counts.  range
 * becomes the first of them; the others are recorded as 'todo', except that
 * the leaf's end is left open in the last.
 */
static void
cut_all_keys(MigrateJob *job, Leaf *leaf, MigrateSource *src, MigrateRange *range)
{
	int			level = migrate_portable_output();
	Portal		portal;
	char	   *name = NULL;
	MigrateRange part = *range;
	bool		first = true;

	portal = SPI_cursor_open_with_args(name,
									   boundaries_query(src, Max(leaf->chunk_size, 1)),
									   0, NULL, NULL, NULL, true, 0);
	for (;;)
	{
		SPITupleTable *rows;
		uint64		n;

		SPI_cursor_fetch(portal, true, 1000);
		rows = SPI_tuptable;
		n = SPI_processed;
		for (uint64 i = 0; i < n; i++)
		{
			char	  **key = palloc0((src->nkeys + 1) * sizeof(char *));

			for (int k = 0; k < src->nkeys; k++)
				key[k] = SPI_getvalue(rows->vals[i], rows->tupdesc, k + 1);
			part.key_hi = key;
			if (first)
				range->key_hi = key;
			else
				(void) insert_chunk(job, leaf, src, &part, false);
			first = false;
			part.key_lo = key;
		}
		if (n == 0)
			break;
	}
	SPI_cursor_close(portal);
	AtEOXact_GUC(true, level);
	if (!first)
	{
		part.key_hi = NULL;
		(void) insert_chunk(job, leaf, src, &part, false);
	}
}

static MigrateChunk *
claim_new(MigrateJob *job, MigrateConn *conn, MemoryContext mcxt)
{
	Leaf	   *leaf = lock_leaf(job, false);
	MigrateRange range = {0};
	MigrateRange cut_to;
	MigrateSource *src;
	MigrateChunk *chunk;
	MemoryContext oldcxt;
	int64		chunk_id;

	if (leaf == NULL)
		leaf = lock_leaf(job, true);
	if (leaf == NULL)
		return NULL;

	src = migrate_source_load(leaf->source_id);
	range.relation = leaf->relation;
	range.remote_oid = leaf->remote_oid;
	range.remote_filenode = leaf->remote_filenode;
	range.fingerprint = leaf->fingerprint;
	range.block_hi = -1;
	if (leaf->method == 'b')
		cut_blocks(conn, leaf, &range, job->workers);
	cut_to = range;
	if (leaf->method == 'k' && leaf->local && !can_ask_server(job, conn, src))
		cut_all_keys(job, leaf, src, &range);
	else if (leaf->method == 'k')
	{
		cut_keys(conn, leaf, src, &range);
		cut_to = range;
	}
	advance_leaf(leaf, src, &cut_to);
	chunk_id = insert_chunk(job, leaf, src, &range, true);

	oldcxt = MemoryContextSwitchTo(mcxt);
	chunk = palloc0(sizeof(MigrateChunk));
	chunk->chunk_id = chunk_id;
	chunk->source_id = leaf->source_id;
	chunk->leaf_no = leaf->leaf_no;
	chunk->plan_no = leaf->plan_no;
	chunk->attempt = 1;
	chunk->started = GetCurrentTimestamp();
	chunk->range = range;
	chunk->range.relation = pstrdup(range.relation);
	if (range.fingerprint)
		chunk->range.fingerprint = pstrdup(range.fingerprint);
	chunk->range.key_lo = migrate_key_copy(range.key_lo, src->nkeys);
	chunk->range.key_hi = migrate_key_copy(range.key_hi, src->nkeys);
	MemoryContextSwitchTo(oldcxt);
	return chunk;
}

MigrateChunk *
migrate_chunk_claim(MigrateJob *job, MigrateConn *conn, MemoryContext mcxt)
{
	MigrateChunk *chunk;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	chunk = claim_given_back(job, mcxt);
	if (chunk == NULL)
		chunk = claim_new(job, conn, mcxt);
	/* all may have been cut by another loader while we waited for its leaf */
	if (chunk == NULL)
		chunk = claim_given_back(job, mcxt);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	return chunk;
}

/* ----------------------------------------------------------------
 * size, and giving back
 * ----------------------------------------------------------------
 */

/*
 * The next chunk of this leaf shall take the time that the job wants, judged by
 * this one's size and duration, at most twice or half as much at a time.  In
 * the checkpoint's transaction, as late as possible: it locks the leaf.
 */
void
migrate_chunk_adapt(MigrateJob *job, MigrateChunk *chunk, double seconds)
{
	Oid			types[] = {INT4OID, INT4OID, INT8OID, INT4OID};
	Datum		values[4];
	MigrateRange *range = &chunk->range;
	bool		blocks = range->block_hi >= 0;
	double		size;
	double		factor;
	int64		next;

	if (!blocks && range->key_hi == NULL)
		return;					/* the last one, or the only one */
	factor = (job->chunk_time_ms / 1000.0) / Max(seconds, 0.001);
	factor = Min(Max(factor, 0.5), 2.0);
	if (fabs(factor - 1.0) < ADAPT_THRESHOLD)
		return;

	SPI_connect();
	values[0] = Int32GetDatum(chunk->source_id);
	values[1] = Int32GetDatum(chunk->leaf_no);
	if (blocks)
	{
		size = (range->block_hi - range->block_lo) * factor;
		next = (int64) Min(Max(size, Min(MIN_CHUNK_BLOCKS, job->chunk_blocks)),
						   MAX_CHUNK_BYTES / BLCKSZ);
	}
	else
	{
		migrate_spi_exec_kept("SELECT l.chunk_size, s.estimated_rows FROM migrate.leaf l"
							  " JOIN migrate.source_table s USING (source_id)"
							  " WHERE l.source_id = $1 AND l.leaf_no = $2",
							  2, types, values, NULL, SPI_OK_SELECT);
		size = SPI_processed > 0 ? migrate_spi_int64(0, 0, 0) * factor : 0;

		/* how much is left is not known, so no chunk is a large part */
		if (SPI_processed > 0 && migrate_spi_int64(0, 1, 0) > 0)
			size = Min(size, migrate_spi_int64(0, 1, 0) / (8.0 * Max(job->workers, 1)));
		next = (int64) Min(Max(size, MIN_CHUNK_ROWS), MAX_CHUNK_ROWS);
	}
	values[2] = Int64GetDatum(next);
	values[3] = Int32GetDatum(chunk->plan_no);
	migrate_spi_exec_kept("UPDATE migrate.leaf l SET chunk_size = $3"
						  " FROM migrate.source_table s WHERE s.source_id = l.source_id"
						  " AND s.plan_no = $4 AND l.source_id = $1 AND l.leaf_no = $2"
						  " AND NOT l.exhausted AND l.chunk_size <> $3",
						  4, types, values, NULL, SPI_OK_UPDATE);
	SPI_finish();
}

/*
 * Give back the chunks of a loader that is gone, or of all; how many.  In the
 * caller's transaction.
 */
int
migrate_chunks_release(int job_id, int worker_pid)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(job_id), Int32GetDatum(worker_pid)};
	int			n;

	SPI_connect();
	migrate_spi_exec("UPDATE migrate.chunk SET state = 'todo', worker_pid = NULL"
					 " WHERE job_id = $1 AND state = 'running'"
					 " AND ($2 = 0 OR worker_pid = $2)",
					 2, types, values, NULL, SPI_OK_UPDATE);
	n = (int) SPI_processed;
	SPI_finish();
	return n;
}
