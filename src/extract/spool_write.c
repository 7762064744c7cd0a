/*-------------------------------------------------------------------------
 *
 * spool_write.c
 *	  Messages into the spool: frames into rows, rows into segments, and all
 *	  of it into local transactions that end at commits of the source.
 *
 *	  frame		length and one message; never cut
 *	  row		frames, up to SPOOL_ROW_BYTES; numbered without a gap
 *	  segment	a table of rows, up to SPOOL_SEGMENT_BYTES; dropped as a whole
 *
 * Runs in the capture worker, the one writer of a stream.  A local transaction
 * begins with the first row that is full, or with the commit.  A source
 * transaction of any size is one local transaction; so the spool never holds
 * half of one, and a crash leaves nothing of it but dead rows, and files of
 * segments that were made in it.
 *
 * Segments are members of the extension: they belong to its owner, go with it,
 * and are in no dump (as the jobs and streams are not); the stream's owner may
 * read and insert.  They are vacuumed only against wraparound: rows
 * are never changed.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "extract/spool.h"

/* a segment that is inserted into, for one local transaction */
typedef struct SpoolInsert
{
	Relation	rel;
	EState	   *estate;
	ResultRelInfo *target;
	TupleTableSlot *slot;
} SpoolInsert;

/* ----------------------------------------------------------------
 * segments
 * ----------------------------------------------------------------
 */

/* Has it the columns of a segment?  Its OID came from a table. */
bool
migrate_spool_is_segment(Relation rel)
{
	static const Oid types[SPOOL_COLUMNS] = {
		INT8OID, LSNOID, INT4OID, INT4OID, INT4OID, TIMESTAMPTZOID, BYTEAOID
	};
	TupleDesc	desc = RelationGetDescr(rel);

	if (rel->rd_rel->relkind != RELKIND_RELATION || desc->natts != SPOOL_COLUMNS)
		return false;
	for (int i = 0; i < SPOOL_COLUMNS; i++)
		if (TupleDescAttr(desc, i)->atttypid != types[i])
			return false;
	return true;
}

static Oid
extension_owner(Oid extension)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			owner = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return owner;
}

/* The stream must be of a role whose rights the caller has. */
static Oid
check_stream(int stream_id)
{
	MigrateStream *stream = migrate_stream_load(stream_id);

	if (stream == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("stream %d does not exist", stream_id)));
	return stream->owner;
}

static void
run_ddl(const char *sql)
{
	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "SPI_execute failed: %s", sql);
}

static const char *
segment_name(int stream_id, int segment_no)
{
	return psprintf("spool_%d_%d", stream_id, segment_no);
}

/*
 * migrate._spool_add_segment(stream_id, segment_no): make the table, as the
 * extension's owner; the caller must be the stream's.
 */
PG_FUNCTION_INFO_V1(migrate_spool_add_segment);
PGDLLEXPORT Datum
migrate_spool_add_segment(PG_FUNCTION_ARGS)
{
	int			stream_id = PG_GETARG_INT32(0);
	const char *name = segment_name(stream_id, PG_GETARG_INT32(1));
	Oid			owner = check_stream(stream_id);
	Oid			extension = get_extension_oid("migrate", false);
	MigrateAsOwner as;

#ifdef USE_LZ4
	const char *compression = " COMPRESSION lz4";
#else
	const char *compression = "";
#endif

	migrate_as_owner(extension_owner(extension), &as);
	migrate_spi_begin();
	run_ddl(psprintf("CREATE TABLE migrate.%s (seq bigint PRIMARY KEY, lsn pg_lsn,"
					 " commits int NOT NULL, changes int NOT NULL, bytes int NOT NULL,"
					 " commit_at timestamptz, data bytea%s NOT NULL) USING heap"
					 " WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)",
					 name, compression));
	run_ddl(psprintf("COMMENT ON TABLE migrate.%s IS"
					 " 'a segment of the spool of stream %d: raw messages in commit order'",
					 name, stream_id));
	run_ddl(psprintf("GRANT SELECT, INSERT ON migrate.%s TO %s", name,
					 quote_identifier(GetUserNameFromId(owner, false))));
	/* with its privileges, which a dump would have otherwise */
	run_ddl(psprintf("ALTER EXTENSION migrate ADD TABLE migrate.%s", name));
	migrate_spi_end();
	migrate_as_caller(&as);
	PG_RETURN_OID(get_relname_relid(name, get_namespace_oid("migrate", false)));
}

/* migrate._spool_drop_segment(stream_id, segment_no), likewise. */
PG_FUNCTION_INFO_V1(migrate_spool_drop_segment);
PGDLLEXPORT Datum
migrate_spool_drop_segment(PG_FUNCTION_ARGS)
{
	int			stream_id = PG_GETARG_INT32(0);
	const char *name = segment_name(stream_id, PG_GETARG_INT32(1));
	Oid			extension = get_extension_oid("migrate", false);
	Oid			table = get_relname_relid(name, get_namespace_oid("migrate", false));
	MigrateAsOwner as;

	(void) check_stream(stream_id);
	migrate_as_owner(extension_owner(extension), &as);
	migrate_spi_begin();
	if (OidIsValid(table) && getExtensionOfObject(RelationRelationId, table) == extension)
		run_ddl(psprintf("ALTER EXTENSION migrate DROP TABLE migrate.%s", name));
	run_ddl(psprintf("DROP TABLE IF EXISTS migrate.%s", name));
	migrate_spi_end();
	migrate_as_caller(&as);
	PG_RETURN_VOID();
}

static SpoolSegment *
last_segment(SpoolWriter *w)
{
	return w->segments ? llast(w->segments) : NULL;
}

/* All that are there, oldest first. */
static void
load_segments(SpoolWriter *w)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(w->stream_id);

	migrate_spi_begin();
	migrate_spi_exec("SELECT segment_no, relation::bigint, first_seq, last_seq, bytes,"
					 " (extract(epoch FROM sealed_at) * 1000000)::bigint"
					 " FROM migrate.spool_segment WHERE stream_id = $1 ORDER BY segment_no",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		SpoolSegment *s = MemoryContextAllocZero(w->mcxt, sizeof(SpoolSegment));
		MemoryContext old = MemoryContextSwitchTo(w->mcxt);

		w->segments = lappend(w->segments, s);
		MemoryContextSwitchTo(old);
		s->segment_no = (int) migrate_spi_int64(row, 0, 0);
		s->relation = (Oid) migrate_spi_int64(row, 1, 0);
		s->first_seq = migrate_spi_int64(row, 2, 0);
		s->last_seq = migrate_spi_int64(row, 3, 0);
		s->bytes = migrate_spi_int64(row, 4, 0);
		s->sealed_at = migrate_spi_int64(row, 5, 0);
		if (s->sealed_at != 0)
			s->sealed_at -= (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	}
	migrate_spi_end();
}

/*
 * What the last segment holds is in its row only when it is closed; after a
 * restart it is asked of the table, or it would grow beyond all bounds.
 */
static void
count_open_segment(SpoolWriter *w)
{
	SpoolSegment *s = last_segment(w);

	if (s == NULL || s->last_seq != 0)
		return;
	migrate_spi_begin();
	if (SPI_execute(psprintf("SELECT coalesce(sum(bytes), 0)::bigint FROM migrate.%s",
							 segment_name(w->stream_id, s->segment_no)),
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute failed");
	s->bytes = migrate_spi_int64(0, 0, 0);
	migrate_spi_end();
}

/* In a transaction; in a memory context of its own below the current one. */
SpoolWriter *
migrate_spool_writer_open(int stream_id, int64 spooled_seq)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate spool writer",
											   ALLOCSET_DEFAULT_SIZES);
	SpoolWriter *w = MemoryContextAllocZero(mcxt, sizeof(SpoolWriter));

	w->stream_id = stream_id;
	w->mcxt = mcxt;
	w->relations_mcxt = AllocSetContextCreate(mcxt, "migrate spool relations",
											  ALLOCSET_SMALL_SIZES);
	w->segment_bytes = SPOOL_SEGMENT_BYTES;
	w->next_seq = spooled_seq + 1;
	w->max = SPOOL_ROW_BYTES + 1024;
	w->buf = MemoryContextAlloc(mcxt, w->max);
	w->len = VARHDRSZ;
	load_segments(w);
	count_open_segment(w);
	return w;
}

/* ----------------------------------------------------------------
 * rows
 * ----------------------------------------------------------------
 */
static void
close_insert(SpoolWriter *w)
{
	SpoolInsert *in = w->insert;

	if (in == NULL)
		return;
	w->insert = NULL;
	ExecCloseIndices(in->target);
	ExecDropSingleTupleTableSlot(in->slot);
	table_close(in->rel, NoLock);
	FreeExecutorState(in->estate);
}

static void
open_insert(SpoolWriter *w, Oid relation)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	SpoolInsert *in = palloc0(sizeof(SpoolInsert));

	in->rel = table_open(relation, RowExclusiveLock);
	if (!migrate_spool_is_segment(in->rel))
		elog(ERROR, "\"%s\" is not a segment of a spool", RelationGetRelationName(in->rel));
	in->estate = CreateExecutorState();
	in->target = makeNode(ResultRelInfo);
	InitResultRelInfo(in->target, in->rel, 1, NULL, 0);
	ExecOpenIndices(in->target, false);
	in->slot = table_slot_create(in->rel, NULL);
	w->insert = in;
	MemoryContextSwitchTo(old);
}

/* In the local transaction: the last segment is full. */
static void
seal_segment(SpoolWriter *w, SpoolSegment *s)
{
	Oid			types[4] = {INT4OID, INT4OID, INT8OID, INT8OID};
	Datum		values[4];

	s->last_seq = w->next_seq - 1;
	s->sealed_at = GetCurrentTimestamp();
	values[0] = Int32GetDatum(w->stream_id);
	values[1] = Int32GetDatum(s->segment_no);
	values[2] = Int64GetDatum(s->last_seq);
	values[3] = Int64GetDatum(s->bytes);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.spool_segment SET last_seq = $3, bytes = $4,"
					 " sealed_at = clock_timestamp(),"
					 " last_lsn = (SELECT spooled_lsn FROM migrate.stream_position WHERE stream_id = $1)"
					 " WHERE stream_id = $1 AND segment_no = $2",
					 4, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_end();
}

static void
add_segment(SpoolWriter *w)
{
	Oid			types[3] = {INT4OID, INT4OID, INT8OID};
	Datum		values[3];
	SpoolSegment *last = last_segment(w);
	SpoolSegment *s = MemoryContextAllocZero(w->mcxt, sizeof(SpoolSegment));
	MemoryContext old;

	s->segment_no = last ? last->segment_no + 1 : 1;
	s->first_seq = w->next_seq;
	values[0] = Int32GetDatum(w->stream_id);
	values[1] = Int32GetDatum(s->segment_no);
	values[2] = Int64GetDatum(s->first_seq);
	migrate_spi_begin();
	migrate_spi_exec("INSERT INTO migrate.spool_segment (stream_id, segment_no, relation, first_seq)"
					 " VALUES ($1, $2, migrate._spool_add_segment($1, $2), $3)"
					 " RETURNING relation::bigint",
					 3, types, values, NULL, SPI_OK_INSERT_RETURNING);
	s->relation = (Oid) migrate_spi_int64(0, 0, 0);
	migrate_spi_end();
	old = MemoryContextSwitchTo(w->mcxt);
	w->segments = lappend(w->segments, s);
	MemoryContextSwitchTo(old);
}

/* The local transaction, with a segment that takes the next row. */
static SpoolSegment *
ready_segment(SpoolWriter *w)
{
	SpoolSegment *s = last_segment(w);

	if (!w->open)
	{
		StartTransactionCommand();
		w->open = true;
		w->rows = 0;
		w->last_commit_at = 0;
	}
	if (s == NULL || s->last_seq != 0 || s->bytes >= w->segment_bytes)
	{
		close_insert(w);
		if (s && s->last_seq == 0)
			seal_segment(w, s);
		add_segment(w);
		s = last_segment(w);
	}
	if (w->insert == NULL)
		open_insert(w, s->relation);
	return s;
}

/* Relation messages of the row at hand; the last of each table counts. */
static void
write_relations(SpoolWriter *w)
{
	Oid			types[4] = {INT4OID, OIDOID, INT8OID, BYTEAOID};
	ListCell   *lc;

	migrate_spi_begin();
	foreach(lc, w->relations)
	{
		bytea	   *message = lfirst(lc);
		uint32		oid;
		Datum		values[4];

		memcpy(&oid, VARDATA(message) + 1, sizeof(oid));
		values[0] = Int32GetDatum(w->stream_id);
		values[1] = ObjectIdGetDatum(pg_ntoh32(oid));
		values[2] = Int64GetDatum(w->next_seq);
		values[3] = PointerGetDatum(message);
		migrate_spi_exec("INSERT INTO migrate.stream_relation (stream_id, remote_oid, seq, message)"
						 " VALUES ($1, $2, $3, $4)"
						 " ON CONFLICT (stream_id, remote_oid, seq) DO UPDATE SET message = excluded.message",
						 4, types, values, NULL, SPI_OK_INSERT);
	}
	migrate_spi_end();
	w->relations = NIL;
	MemoryContextReset(w->relations_mcxt);
}

/* The row at hand into the segment, if there is anything in it. */
static void
write_row(SpoolWriter *w)
{
	SpoolSegment *s;
	TupleTableSlot *slot;
	MemoryContext old = CurrentMemoryContext;

	if (w->len <= VARHDRSZ)
		return;
	s = ready_segment(w);
	if (w->relations)
		write_relations(w);
	slot = w->insert->slot;
	SET_VARSIZE(w->buf, w->len);
	ExecClearTuple(slot);
	memset(slot->tts_isnull, 0, SPOOL_COLUMNS * sizeof(bool));
	slot->tts_values[SPOOL_SEQ - 1] = Int64GetDatum(w->next_seq);
	slot->tts_values[SPOOL_LSN - 1] = LSNGetDatum(w->lsn);
	slot->tts_isnull[SPOOL_LSN - 1] = w->commits == 0;
	slot->tts_values[SPOOL_COMMITS - 1] = Int32GetDatum(w->commits);
	slot->tts_values[SPOOL_CHANGES - 1] = Int32GetDatum(w->changes);
	slot->tts_values[SPOOL_BYTES - 1] = Int32GetDatum(w->len - VARHDRSZ);
	slot->tts_values[SPOOL_COMMIT_AT - 1] = TimestampTzGetDatum(w->commit_at);
	slot->tts_isnull[SPOOL_COMMIT_AT - 1] = w->commits == 0;
	slot->tts_values[SPOOL_DATA - 1] = PointerGetDatum(w->buf);
	ExecStoreVirtualTuple(slot);

	w->insert->estate->es_output_cid = GetCurrentCommandId(true);
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(GetPerTupleMemoryContext(w->insert->estate));
	ExecSimpleRelationInsert(w->insert->target, w->insert->estate, slot);
	MemoryContextSwitchTo(old);
	PopActiveSnapshot();
	ExecClearTuple(slot);
	ResetPerTupleExprContext(w->insert->estate);

	s->bytes += w->len - VARHDRSZ;
	w->rows++;
	w->next_seq++;
	w->len = VARHDRSZ;
	w->lsn = InvalidXLogRecPtr;
	w->commits = w->changes = 0;

	/* one huge message does not keep its room */
	if (w->max > 2 * SPOOL_ROW_BYTES)
	{
		pfree(w->buf);
		w->max = SPOOL_ROW_BYTES + 1024;
		w->buf = MemoryContextAlloc(w->mcxt, w->max);
	}
}

static void
keep_relation(SpoolWriter *w, const char *data, int len)
{
	MemoryContext old;
	bytea	   *message;

	if (len < 1 + (int) sizeof(uint32))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("logical replication message of type \"R\" is not of the expected form")));
	old = MemoryContextSwitchTo(w->relations_mcxt);
	message = palloc(VARHDRSZ + len);
	SET_VARSIZE(message, VARHDRSZ + len);
	memcpy(VARDATA(message), data, len);
	w->relations = lappend(w->relations, message);
	MemoryContextSwitchTo(old);
}

/* Make room for a message that does not fit beside others. */
static void
enlarge_row(SpoolWriter *w, int len)
{
	Size		needed = (Size) w->len + SPOOL_FRAME_HEADER + len;

	if (needed > MaxAllocSize)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a change of %d bytes is too large for the spool", len)));
	pfree(w->buf);
	w->buf = NULL;
	w->max = 0;
	w->buf = MemoryContextAlloc(w->mcxt, needed);
	w->max = (int) needed;
}

/*
 * One message, of any type.  May begin a local transaction, and then goes on
 * with it until migrate_spool_commit().
 */
void
migrate_spool_append(SpoolWriter *w, const char *data, int len)
{
	uint32		size = pg_hton32((uint32) len);

	if (w->len > VARHDRSZ && w->len + SPOOL_FRAME_HEADER + len > SPOOL_ROW_BYTES)
		write_row(w);
	if (w->len + SPOOL_FRAME_HEADER + len > w->max)
		enlarge_row(w, len);
	memcpy(w->buf + w->len, &size, sizeof(size));
	memcpy(w->buf + w->len + SPOOL_FRAME_HEADER, data, len);
	w->len += SPOOL_FRAME_HEADER + len;
	switch (data[0])
	{
		case 'I':
		case 'U':
		case 'D':
		case 'T':
			w->changes++;
			break;
		case 'R':
			keep_relation(w, data, len);
			break;
		default:
			break;
	}
}

/* The message just appended was a COMMIT. */
void
migrate_spool_commit_seen(SpoolWriter *w, XLogRecPtr commit_lsn, XLogRecPtr end_lsn,
						  TimestampTz commit_at)
{
	w->last_commit_lsn = commit_lsn;
	w->lsn = end_lsn;
	w->commit_at = commit_at;
	w->last_commit_at = commit_at;
	w->commits++;
}

static void
write_position(SpoolWriter *w, XLogRecPtr lsn)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[5] = {INT4OID, LSNOID, INT8OID, TIMESTAMPTZOID, LSNOID};
	Datum		values[5];

	values[0] = Int32GetDatum(w->stream_id);
	values[4] = LSNGetDatum(w->last_commit_lsn);
	values[1] = LSNGetDatum(lsn);
	values[2] = Int64GetDatum(w->next_seq - 1);
	values[3] = TimestampTzGetDatum(w->last_commit_at);
	migrate_spi_begin();
	if (plan == NULL)
	{
		plan = SPI_prepare("UPDATE migrate.stream_position SET spooled_lsn = $2, spooled_seq = $3,"
						   " commit_at = coalesce($4, commit_at), commit_lsn = coalesce($5, commit_lsn)"
						   " WHERE stream_id = $1",
						   5, types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_prepare failed");
	}
	if (SPI_execute_plan(plan, values, w->last_commit_at ? "     " : "   nn", false, 0) != SPI_OK_UPDATE ||
		SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the position of stream %d is not there any more", w->stream_id)));
	migrate_spi_end();
}

/*
 * At a commit of the source: write what is left, and the position, and commit
 * here.  Returns where that ends in the local WAL; when that is flushed, all
 * up to spooled_lsn is durable.
 */
XLogRecPtr
migrate_spool_commit(SpoolWriter *w, XLogRecPtr spooled_lsn)
{
	MemoryContext old = CurrentMemoryContext;
	TimestampTz last_commit_at = w->last_commit_at;
	XLogRecPtr	last_commit_lsn = w->last_commit_lsn;

	if (w->len > VARHDRSZ)
		(void) ready_segment(w);
	else if (!w->open)
	{
		StartTransactionCommand();
		w->open = true;
		w->rows = 0;
	}
	w->last_commit_at = last_commit_at;
	w->last_commit_lsn = last_commit_lsn;
	write_row(w);
	close_insert(w);
	write_position(w, spooled_lsn);
	if (w->rows > 0)
		migrate_fault("capture-spooled");
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	w->open = false;
	w->last_commit_at = 0;
	if (w->rows > 0)
		migrate_fault("capture-committed");
	w->rows = 0;
	return XactLastCommitEnd;
}

/* ----------------------------------------------------------------
 * how much there is, and what may go
 * ----------------------------------------------------------------
 */

/* Bytes of messages in all segments. */
int64
migrate_spool_total(SpoolWriter *w)
{
	int64		bytes = 0;
	ListCell   *lc;

	foreach(lc, w->segments)
		bytes += ((SpoolSegment *) lfirst(lc))->bytes;
	return bytes;
}

/*
 * Bytes that a reader at next_seq has still before it; a segment counts as a
 * whole as long as it holds one such row.
 */
int64
migrate_spool_pending(SpoolWriter *w, int64 next_seq)
{
	int64		bytes = 0;
	ListCell   *lc;

	/*
	 * A reader that has all stands in the last row.  P19: an open segment
	 * larger than the limit must not keep capture waiting for it.
	 */
	if (next_seq >= w->next_seq - 1)
		return 0;
	foreach(lc, w->segments)
	{
		SpoolSegment *s = lfirst(lc);

		if (s->last_seq == 0 || s->last_seq >= next_seq)
			bytes += s->bytes;
	}
	return bytes;
}

/*
 * Has everybody passed it?  Asked again under the lock that a job has that
 * joins, see stream.c.
 */
static bool
is_passed(SpoolWriter *w, SpoolSegment *s)
{
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		values[2];
	bool		passed;

	values[0] = Int32GetDatum(w->stream_id);
	values[1] = Int64GetDatum(s->last_seq);
	migrate_spi_begin();
	migrate_spi_exec("SELECT FROM migrate.stream WHERE stream_id = $1 FOR NO KEY UPDATE",
					 1, types, values, NULL, SPI_OK_SELECT);
	migrate_spi_end();
	migrate_spi_begin();
	migrate_spi_exec("SELECT FROM migrate.apply_position p JOIN migrate.job_stream j USING (job_id)"
					 " WHERE j.stream_id = $1 AND p.next_seq <= $2",
					 2, types, values, NULL, SPI_OK_SELECT);
	passed = SPI_processed == 0;
	migrate_spi_end();
	return passed;
}

/*
 * Drop the oldest segment, and what relation messages nobody needs any more.
 * False when somebody has it locked: it is tried again later.
 */
static bool
drop_segment(SpoolWriter *w, SpoolSegment *s)
{
	Oid			types[3] = {INT4OID, INT4OID, INT8OID};
	Datum		values[3];
	bool		dropped = false;

	values[0] = Int32GetDatum(w->stream_id);
	values[1] = Int32GetDatum(s->segment_no);
	values[2] = Int64GetDatum(s->last_seq);
	StartTransactionCommand();
	if (ConditionalLockRelationOid(s->relation, AccessExclusiveLock) && is_passed(w, s))
	{
		migrate_spi_begin();
		migrate_spi_exec("SELECT migrate._spool_drop_segment($1, $2)", 2, types, values,
						 NULL, SPI_OK_SELECT);
		migrate_spi_exec("DELETE FROM migrate.spool_segment WHERE stream_id = $1 AND segment_no = $2",
						 2, types, values, NULL, SPI_OK_DELETE);
		migrate_spi_exec("DELETE FROM migrate.stream_relation r WHERE r.stream_id = $1 AND r.seq <= $3"
						 " AND $2 IS NOT NULL AND EXISTS (SELECT FROM migrate.stream_relation n"
						 "  WHERE n.stream_id = $1 AND n.remote_oid = r.remote_oid"
						 "  AND n.seq > r.seq AND n.seq <= $3)",
						 3, types, values, NULL, SPI_OK_DELETE);
		migrate_spi_end();
		dropped = true;
	}
	CommitTransactionCommand();
	return dropped;
}

/*
 * Drop segments that every reader has passed, all being at next_seq or beyond,
 * unless they are to be kept for a while, or hold what comes from row keep_seq
 * on and are not more than keep_size.  Outside a transaction.
 */
int
migrate_spool_drop_passed(SpoolWriter *w, int64 next_seq, int64 retention_ms,
						  int64 retention_size, int64 keep_seq, int64 keep_size)
{
	MemoryContext old = CurrentMemoryContext;
	int64		passed = 0;
	int			dropped = 0;
	ListCell   *lc;

	foreach(lc, w->segments)
	{
		SpoolSegment *s = lfirst(lc);

		if (s->last_seq != 0 && s->last_seq < next_seq)
			passed += s->bytes;
	}
	while (list_length(w->segments) > 1)
	{
		SpoolSegment *s = linitial(w->segments);

		if (s->last_seq == 0 || s->last_seq >= next_seq)
			break;
		if (passed <= retention_size &&
			!TimestampDifferenceExceeds(s->sealed_at, GetCurrentTimestamp(),
										(int) Min(retention_ms, INT_MAX)))
			break;
		if (s->last_seq >= keep_seq && passed <= keep_size)
			break;
		if (!drop_segment(w, s))
			break;
		MemoryContextSwitchTo(old);
		passed -= s->bytes;
		w->segments = list_delete_first(w->segments);
		pfree(s);
		dropped++;
	}
	return dropped;
}
