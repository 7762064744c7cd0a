/*-------------------------------------------------------------------------
 *
 * decode.c
 *	  Logical decoding of this server's own WAL, in this process (P31): no
 *	  connection to ourselves, no second process.
 *
 * The output plugin is pgoutput, so what comes out are the messages that the
 * forward stream has as well.  They are kept in a tuplestore, which spills to
 * disk, and read when decoding has returned: pgoutput calls us under a historic
 * snapshot, where nothing else may be done.
 *
 * The context is made inside a transaction on purpose.  Made outside one, core
 * marks the process as one whose snapshots hold nothing back
 * (PROC_IN_LOGICAL_DECODING), and ours does: it also runs mappings.
 *
 * Process: reverse worker.  Locks: the slot.  A crash leaves the slot where it
 * was confirmed last, and the same messages come again; what is made of them
 * is idempotent.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/reverse.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "pgstat.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define PLUGIN "pgoutput"

/* messages beyond this spill to disk, kB */
#define STORE_KB (16 * 1024)

struct MigrateDecoder
{
	LogicalDecodingContext *ctx;
	MemoryContext mcxt;
	ResourceOwner owner;
	TupleDesc	desc;			/* one column, bytea */
	TupleTableSlot *slot;
	Tuplestorestate *store;		/* the messages at hand */
	int64		bytes;			/* in it */
	Tuplestorestate *ahead;		/* what was read ahead; NULL: nothing */
	int64		ahead_bytes;
	bool		reading_ahead;	/* where messages go */
	bool		open;			/* in the middle of a transaction */
	XLogRecPtr	decoded;		/* everything that ended before it is in it */
};

/* ----------------------------------------------------------------
 * pages of WAL
 * ----------------------------------------------------------------
 */

/*
 * Core's page reader waits for what is not flushed yet, and leaves for nobody,
 * not even when the postmaster is gone.  We do.
 */
static int
read_page_waiting(XLogReaderState *state, XLogRecPtr page, int len, XLogRecPtr record,
				  char *buf)
{
	while (GetFlushRecPtr(NULL) < page + len)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return read_local_xlog_page(state, page, len, record, buf);
}

/*
 * Do not wait: the flushed end may be within a record, and on an idle server
 * stay there.  The reader can be asked for that record again.
 */
static int
read_page(XLogReaderState *state, XLogRecPtr page, int len, XLogRecPtr record, char *buf)
{
	if (GetFlushRecPtr(NULL) < page + len)
		return -1;
	return read_local_xlog_page(state, page, len, record, buf);
}

static XLogReaderRoutine waiting_routine = {
	.page_read = read_page_waiting,
	.segment_open = wal_segment_open,
	.segment_close = wal_segment_close
};

static XLogReaderRoutine routine = {
	.page_read = read_page,
	.segment_open = wal_segment_open,
	.segment_close = wal_segment_close
};

/* ----------------------------------------------------------------
 * the slot
 * ----------------------------------------------------------------
 */
void
migrate_decoder_make_slot(const char *slot)
{
	LogicalDecodingContext *ctx;

	StartTransactionCommand();
	CheckLogicalDecodingRequirements();
	migrate_slot_create(slot);
	PG_TRY();
	{
		ctx = CreateInitDecodingContext(PLUGIN, NIL, false, InvalidXLogRecPtr,
										&waiting_routine, NULL, NULL, NULL);
		DecodingContextFindStartpoint(ctx);
		FreeDecodingContext(ctx);
		ReplicationSlotPersist();
	}
	PG_CATCH();
	{
		/* it is ephemeral: releasing drops it */
		ReplicationSlotRelease();
		PG_RE_THROW();
	}
	PG_END_TRY();
	ReplicationSlotRelease();
	CommitTransactionCommand();
}

/* ----------------------------------------------------------------
 * callbacks of the output plugin
 * ----------------------------------------------------------------
 */
static void
prepare_write(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last_write)
{
	resetStringInfo(ctx->out);
}

/* Across transactions: each transaction that is decoded is one. */
static Tuplestorestate *
open_store(void)
{
	return tuplestore_begin_heap(false, true, STORE_KB);
}

static void
take_message(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last_write)
{
	MigrateDecoder *decoder = ctx->output_writer_private;
	MemoryContext old = MemoryContextSwitchTo(decoder->mcxt);
	bytea	   *message = palloc(VARHDRSZ + ctx->out->len);
	Datum		value = PointerGetDatum(message);
	bool		isnull = false;

	SET_VARSIZE(message, VARHDRSZ + ctx->out->len);
	memcpy(VARDATA(message), ctx->out->data, ctx->out->len);
	if (decoder->reading_ahead)
	{
		if (decoder->ahead == NULL)
			decoder->ahead = open_store();
		tuplestore_putvalues(decoder->ahead, decoder->desc, &value, &isnull);
		decoder->ahead_bytes += ctx->out->len;
	}
	else
	{
		tuplestore_putvalues(decoder->store, decoder->desc, &value, &isnull);
		decoder->bytes += ctx->out->len;
	}
	pfree(message);
	if (ctx->out->len > 0 && ctx->out->data[0] == 'B')
		decoder->open = true;
	else if (ctx->out->len > 0 && ctx->out->data[0] == 'C')
		decoder->open = false;
	MemoryContextSwitchTo(old);
}

/* ----------------------------------------------------------------
 * reading
 * ----------------------------------------------------------------
 */
MigrateDecoder *
migrate_decoder_open(const char *slot, const char *publication)
{
	MigrateDecoder *decoder = palloc0(sizeof(MigrateDecoder));
	List	   *options = list_make2(makeDefElem("proto_version", (Node *) makeString("1"), -1),
									 makeDefElem("publication_names",
												 (Node *) makeString(pstrdup(quote_identifier(publication))), -1));

	decoder->mcxt = CurrentMemoryContext;
	decoder->owner = ResourceOwnerCreate(NULL, "migrate decoder");
	decoder->desc = CreateTemplateTupleDesc(1);
	TupleDescInitEntry(decoder->desc, 1, "message", BYTEAOID, -1, 0);
	decoder->slot = MakeSingleTupleTableSlot(decoder->desc, &TTSOpsMinimalTuple);
	decoder->store = open_store();
	migrate_slot_acquire(slot);
	decoder->ctx = CreateDecodingContext(InvalidXLogRecPtr, options, false, &routine,
										 prepare_write, take_message, NULL);
	decoder->ctx->output_writer_private = decoder;
	/* entries of now are none of then */
	InvalidateSystemCaches();
	XLogBeginRead(decoder->ctx->reader, MyReplicationSlot->data.restart_lsn);
	decoder->decoded = MyReplicationSlot->data.confirmed_flush;
	return decoder;
}

/*
 * After an error nothing of core's context can be relied on but what holds
 * files; its memory goes with its parent.
 */
void
migrate_decoder_close(MigrateDecoder *decoder, bool failed)
{
	if (!failed)
	{
		FreeDecodingContext(decoder->ctx);
		ReplicationSlotRelease();
	}
	else if (decoder->ctx->reader->seg.ws_file >= 0)
		wal_segment_close(decoder->ctx->reader);
	tuplestore_end(decoder->store);
	if (decoder->ahead)
		tuplestore_end(decoder->ahead);
	ResourceOwnerRelease(decoder->owner, RESOURCE_RELEASE_BEFORE_LOCKS, false, true);
	ResourceOwnerRelease(decoder->owner, RESOURCE_RELEASE_LOCKS, false, true);
	ResourceOwnerRelease(decoder->owner, RESOURCE_RELEASE_AFTER_LOCKS, false, true);
	ResourceOwnerDelete(decoder->owner);
}

/* Every record that is flushed as a whole, until *read is so many bytes. */
static XLogRecPtr
read_records(MigrateDecoder *decoder, int64 *read, int64 bytes)
{
	LogicalDecodingContext *ctx = decoder->ctx;
	ResourceOwner old = CurrentResourceOwner;
	XLogRecPtr	end = GetFlushRecPtr(NULL);

	CurrentResourceOwner = decoder->owner;
	while (ctx->reader->EndRecPtr < end && (*read < bytes || decoder->open))
	{
		char	   *error = NULL;
		XLogRecord *record = XLogReadRecord(ctx->reader, &error);

		if (error)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("could not read this server's WAL for the way back: %s", error)));
		if (record == NULL)
			break;
		LogicalDecodingProcessRecord(ctx, ctx->reader);
		CHECK_FOR_INTERRUPTS();
	}
	CurrentResourceOwner = old;
	if (ctx->reader->EndRecPtr > decoder->decoded)
		decoder->decoded = ctx->reader->EndRecPtr;
	return decoder->decoded;
}

XLogRecPtr
migrate_decoder_read(MigrateDecoder *decoder, int64 bytes)
{
	decoder->reading_ahead = false;
	return read_records(decoder, &decoder->bytes, bytes);
}

XLogRecPtr
migrate_decoder_read_ahead(MigrateDecoder *decoder, int64 bytes)
{
	decoder->reading_ahead = true;
	return read_records(decoder, &decoder->ahead_bytes, bytes);
}

bool
migrate_decoder_next(MigrateDecoder *decoder, const char **data, int *len)
{
	MemoryContext old = MemoryContextSwitchTo(decoder->mcxt);
	bool		isnull;
	bool		found;
	struct varlena *message;

	/*
	 * A tuple of a store that has spilled is made in the current context, and
	 * the slot frees it when the next one comes: the caller's may be gone by
	 * then.
	 */
	found = tuplestore_gettupleslot(decoder->store, true, false, decoder->slot);
	MemoryContextSwitchTo(old);
	if (!found)
		return false;
	message = (struct varlena *) DatumGetPointer(slot_getattr(decoder->slot, 1, &isnull));
	*data = VARDATA_ANY(message);
	*len = VARSIZE_ANY_EXHDR(message);
	return true;
}

void
migrate_decoder_again(MigrateDecoder *decoder)
{
	ExecClearTuple(decoder->slot);
	tuplestore_rescan(decoder->store);
}

bool
migrate_decoder_empty(MigrateDecoder *decoder)
{
	return decoder->bytes == 0;
}

void
migrate_decoder_forget(MigrateDecoder *decoder)
{
	MemoryContext old = MemoryContextSwitchTo(decoder->mcxt);

	ExecClearTuple(decoder->slot);
	tuplestore_end(decoder->store);
	decoder->store = decoder->ahead ? decoder->ahead : open_store();
	decoder->bytes = decoder->ahead_bytes;
	decoder->ahead = NULL;
	decoder->ahead_bytes = 0;
	MemoryContextSwitchTo(old);
}

void
migrate_decoder_confirm(MigrateDecoder *decoder, XLogRecPtr lsn)
{
	if (lsn <= MyReplicationSlot->data.confirmed_flush)
		return;
	LogicalConfirmReceivedLocation(lsn);
	ReplicationSlotMarkDirty();
	ReplicationSlotSave();
}

int64
migrate_decoder_retained(MigrateDecoder *decoder)
{
	XLogRecPtr	now = GetXLogWriteRecPtr();
	XLogRecPtr	restart = MyReplicationSlot->data.restart_lsn;

	return now > restart ? (int64) (now - restart) : 0;
}
