/*-------------------------------------------------------------------------
 *
 * spool_read.c
 *	  Messages back from the spool, in order.
 *
 * Runs in apply workers and wherever else a stream is looked at, as the
 * stream's owner.  Rows are fetched by the key of a segment, about a megabyte
 * at a time, each detoasted once and walked in place; no lock on a segment is
 * kept beyond that, so that one that everybody has passed can be dropped.
 *
 * There is one writer, whose transactions end in order, and rows have numbers
 * without a gap: what a snapshot sees is all up to some row.
 *
 * Which table a segment is comes from migrate.spool_segment under row
 * security, and the right to read it is checked as for any query.  Keeps
 * nothing outside its memory context, and leaves nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/stream.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "extract/spool.h"

/* rows are fetched until they have so many bytes */
#define FETCH_BYTES (1024 * 1024)
#define FETCH_ROWS 1024

typedef struct SpoolRow
{
	int64		seq;
	const char *data;
	int			len;
} SpoolRow;

struct MigrateSpoolReader
{
	int			stream_id;
	MemoryContext mcxt;			/* holds this struct */
	MemoryContext rows_mcxt;	/* of what was fetched; reset before each
								 * fetch */

	/* the segment that holds next_seq; relation 0: not known */
	Oid			relation;
	int64		last_seq;		/* of it; 0: it is still written to */

	int64		next_seq;		/* to fetch next */
	SpoolRow	rows[FETCH_ROWS];
	int			nrows;
	int			row;			/* at hand */
	int			offset;			/* in it, of the next message */
};

MigrateSpoolReader *
migrate_spool_open(int stream_id, int64 seq)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate spool reader",
											   ALLOCSET_DEFAULT_SIZES);
	MigrateSpoolReader *reader = MemoryContextAllocZero(mcxt, sizeof(MigrateSpoolReader));

	reader->stream_id = stream_id;
	reader->mcxt = mcxt;
	reader->rows_mcxt = AllocSetContextCreate(mcxt, "migrate spool rows",
											  ALLOCSET_DEFAULT_SIZES);
	reader->next_seq = seq;
	return reader;
}

void
migrate_spool_close(MigrateSpoolReader *reader)
{
	MemoryContextDelete(reader->mcxt);
}

/*
 * Find the segment of next_seq.  False: that row is not there yet (or not any
 * more, which is an error).
 */
static bool
find_segment(MigrateSpoolReader *reader)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		values[2];
	int64		first = 0;
	bool		found;

	values[0] = Int32GetDatum(reader->stream_id);
	values[1] = Int64GetDatum(reader->next_seq);
	migrate_spi_begin();
	if (plan == NULL)
	{
		plan = SPI_prepare("SELECT relation, last_seq, first_seq FROM migrate.spool_segment"
						   " WHERE stream_id = $1 AND (last_seq IS NULL OR last_seq >= $2)"
						   " ORDER BY segment_no LIMIT 1", 2, types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_prepare failed");
	}
	if (SPI_execute_plan(plan, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_plan failed");
	found = SPI_processed > 0;
	if (found)
	{
		reader->relation = (Oid) migrate_spi_int64(0, 0, 0);
		reader->last_seq = migrate_spi_int64(0, 1, 0);
		first = migrate_spi_int64(0, 2, 0);
	}
	migrate_spi_end();
	if (found && first > reader->next_seq)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("row " INT64_FORMAT " of the spool of stream %d is not kept any more",
						reader->next_seq, reader->stream_id),
				 errdetail("The first row that is kept is " INT64_FORMAT ".", first)));
	return found;
}

/* One row of a segment into the reader; gives its size. */
static int
keep_row(MigrateSpoolReader *reader, TupleTableSlot *slot)
{
	bool		isnull;
	int64		seq = DatumGetInt64(slot_getattr(slot, SPOOL_SEQ, &isnull));
	Datum		data = slot_getattr(slot, SPOOL_DATA, &isnull);
	MemoryContext old;
	struct varlena *raw;
	SpoolRow   *row;

	if (seq != reader->next_seq)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("row " INT64_FORMAT " is missing in the spool of stream %d",
						reader->next_seq, reader->stream_id)));
	old = MemoryContextSwitchTo(reader->rows_mcxt);
	raw = detoast_attr((struct varlena *) DatumGetPointer(data));
	if ((Pointer) raw == DatumGetPointer(data))
	{
		/* it was plain, and is in the page */
		raw = palloc(VARSIZE_ANY(data));
		memcpy(raw, DatumGetPointer(data), VARSIZE_ANY(data));
	}
	MemoryContextSwitchTo(old);
	row = &reader->rows[reader->nrows++];
	row->seq = seq;
	row->data = VARDATA_ANY(raw);
	row->len = VARSIZE_ANY_EXHDR(raw);
	reader->next_seq = seq + 1;
	return row->len;
}

/* The next rows of the segment at hand, as far as a snapshot sees them. */
static void
fetch_rows(MigrateSpoolReader *reader)
{
	Relation	rel = try_relation_open(reader->relation, AccessShareLock);
	Relation	index;
	List	   *indexes;
	IndexScanDesc scan;
	ScanKeyData key;
	TupleTableSlot *slot;
	Snapshot	snapshot;
	int64		bytes = 0;

	if (rel == NULL)
		return;
	if (pg_class_aclcheck(reader->relation, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, RelationGetRelationName(rel));
	indexes = RelationGetIndexList(rel);
	if (!migrate_spool_is_segment(rel) || list_length(indexes) != 1)
		elog(ERROR, "\"%s\" is not a segment of a spool", RelationGetRelationName(rel));
	index = index_open(linitial_oid(indexes), AccessShareLock);
	list_free(indexes);
	snapshot = RegisterSnapshot(GetTransactionSnapshot());
	slot = table_slot_create(rel, NULL);
	ScanKeyInit(&key, SPOOL_SEQ, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum(reader->next_seq));
	scan = migrate_index_beginscan(rel, index, snapshot, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	while (reader->nrows < FETCH_ROWS && bytes < FETCH_BYTES &&
		   index_getnext_slot(scan, ForwardScanDirection, slot))
		bytes += keep_row(reader, slot);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
}

/* False when there is none yet. */
static bool
fetch(MigrateSpoolReader *reader)
{
	reader->nrows = reader->row = reader->offset = 0;
	MemoryContextReset(reader->rows_mcxt);
	for (;;)
	{
		Oid			relation = reader->relation;
		int64		last_seq = reader->last_seq;

		if (OidIsValid(relation) && (last_seq == 0 || reader->next_seq <= last_seq))
		{
			fetch_rows(reader);
			if (reader->nrows > 0)
				return true;
		}

		/*
		 * Nothing more in it.  If that is still so after another look at the
		 * list, there is nothing; if it is another segment, or was closed
		 * meanwhile, go on.
		 */
		if (!find_segment(reader))
			return false;
		if (reader->relation == relation && reader->last_seq == last_seq)
			return false;
	}
}

bool
migrate_spool_next(MigrateSpoolReader *reader, const char **data, int *len)
{
	SpoolRow   *row;
	uint32		size;

	while (reader->row >= reader->nrows ||
		   reader->offset >= reader->rows[reader->row].len)
	{
		if (reader->row + 1 < reader->nrows)
		{
			reader->row++;
			reader->offset = 0;
		}
		else if (!fetch(reader))
			return false;
	}
	row = &reader->rows[reader->row];
	if (row->len - reader->offset < SPOOL_FRAME_HEADER)
		elog(ERROR, "row " INT64_FORMAT " of the spool is cut off", row->seq);
	memcpy(&size, row->data + reader->offset, sizeof(size));
	size = pg_ntoh32(size);
	reader->offset += SPOOL_FRAME_HEADER;
	if (size > (uint32) (row->len - reader->offset))
		elog(ERROR, "row " INT64_FORMAT " of the spool is cut off", row->seq);
	*data = row->data + reader->offset;
	*len = (int) size;
	reader->offset += size;
	return true;
}

int64
migrate_spool_seq(MigrateSpoolReader *reader)
{
	return reader->row < reader->nrows ? reader->rows[reader->row].seq : 0;
}

List *
migrate_spool_relations(int stream_id, int64 seq)
{
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		values[2];
	MemoryContext mcxt = CurrentMemoryContext;
	List	   *relations = NIL;

	values[0] = Int32GetDatum(stream_id);
	values[1] = Int64GetDatum(seq);
	migrate_spi_begin();
	migrate_spi_exec("SELECT DISTINCT ON (remote_oid) message FROM migrate.stream_relation"
					 " WHERE stream_id = $1 AND seq < $2 ORDER BY remote_oid, seq DESC",
					 2, types, values, NULL, SPI_OK_SELECT);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		bool		isnull;
		bytea	   *message = DatumGetByteaPP(SPI_getbinval(SPI_tuptable->vals[row],
															SPI_tuptable->tupdesc, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		relations = lappend(relations,
							migrate_message_relation(VARDATA_ANY(message),
													 VARSIZE_ANY_EXHDR(message)));
		MemoryContextSwitchTo(old);
	}
	migrate_spi_end();
	return relations;
}
