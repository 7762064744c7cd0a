/*-------------------------------------------------------------------------
 *
 * reader_fdw.c
 *	  The transport for every wrapper: a query on the foreign table.
 *
 * The query runs in a portal, which outlives SPI levels.  Rows are fetched in
 * turns whose number of rows follows their size, so that what is held at a
 * time is about a megabyte however wide a row is.  (How many rows the wrapper
 * itself asks for at a time is its own option, such as postgres_fdw's
 * fetch_size.)
 *
 * A portal that was opened or ran in a subtransaction dies with it: it is
 * looked up by its name before it is closed.  A crash leaves nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/htup_details.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "tcop/dest.h"
#include "tcop/pquery.h"
#include "utils/memutils.h"
#include "utils/portal.h"

#define FIRST_FETCH 32
#define FETCH_BYTES (1024 * 1024)

typedef struct FdwReader
{
	DestReceiver receiver;		/* must be first */
	char	   *portal_name;
	TupleTableSlot *slot;
	int			natts;

	/* rows of the last fetch */
	MemoryContext mcxt;
	MinimalTuple *rows;
	int			max_rows;
	int			n;
	int			next;
	int64		bytes;
	int			fetch;			/* rows of the next fetch */
	bool		ended;
} FdwReader;

/* ----------------------------------------------------------------
 * the portal's destination
 * ----------------------------------------------------------------
 */
static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	FdwReader  *fdw = (FdwReader *) self;
	MemoryContext oldcxt = MemoryContextSwitchTo(fdw->mcxt);
	MinimalTuple row = ExecCopySlotMinimalTuple(slot);

	fdw->rows[fdw->n++] = row;
	fdw->bytes += row->t_len;
	MemoryContextSwitchTo(oldcxt);
	return true;
}

static void
startup_receiver(DestReceiver *self, int operation, TupleDesc typeinfo)
{
}

static void
end_receiver(DestReceiver *self)
{
}

/* ----------------------------------------------------------------
 * open, next, close
 * ----------------------------------------------------------------
 */
void
migrate_fdw_reader_open(MigrateReader *reader)
{
	static unsigned int serial = 0;
	FdwReader  *fdw = reader->fdw = palloc0(sizeof(FdwReader));
	char	   *sql;

	fdw->receiver.receiveSlot = receive_row;
	fdw->receiver.rStartup = startup_receiver;
	fdw->receiver.rShutdown = end_receiver;
	fdw->receiver.rDestroy = end_receiver;
	fdw->receiver.mydest = DestNone;
	fdw->natts = reader->src->ncolumns;
	/* what a usual fetch needs is kept: fresh memory costs page faults */
	fdw->mcxt = GenerationContextCreate(reader->mcxt, "migrate fetched rows",
										2 * FETCH_BYTES, 2 * FETCH_BYTES,
										2 * FETCH_BYTES);
	fdw->fetch = Min(FIRST_FETCH, reader->fetch_size);
	fdw->max_rows = reader->fetch_size;
	fdw->rows = palloc(fdw->max_rows * sizeof(MinimalTuple));
	fdw->slot = MakeSingleTupleTableSlot(CreateTupleDescCopy(reader->src->rowdesc),
										 &TTSOpsMinimalTuple);

	sql = migrate_range_select(reader->src, reader->range);
	SPI_connect();
	(void) SPI_cursor_open_with_args(psprintf("migrate reader %u", serial),
									 sql, 0, NULL, NULL, NULL, true,
									 CURSOR_OPT_NO_SCROLL);
	SPI_finish();
	fdw->portal_name = psprintf("migrate reader %u", serial++);
}

/* Fetch more rows; false when there are none. */
static bool
fetch_rows(FdwReader *fdw)
{
	Portal		portal;

	if (fdw->ended)
		return false;
	ExecClearTuple(fdw->slot);
	MemoryContextReset(fdw->mcxt);
	fdw->n = fdw->next = 0;
	fdw->bytes = 0;
	portal = GetPortalByName(fdw->portal_name);
	if (!PortalIsValid(portal))
		elog(ERROR, "portal \"%s\" is gone", fdw->portal_name);
	(void) PortalRunFetch(portal, FETCH_FORWARD, fdw->fetch, &fdw->receiver);
	if (fdw->n < fdw->fetch)
		fdw->ended = true;
	if (fdw->n == 0)
		return false;
	fdw->fetch = Max(1, Min(FETCH_BYTES / Max(fdw->bytes / fdw->n, 1), fdw->max_rows));
	return true;
}

bool
migrate_fdw_reader_next(MigrateReader *reader, Datum *values, bool *nulls,
						int64 *bytes)
{
	FdwReader  *fdw = reader->fdw;
	MinimalTuple row;

	reader->converting = true;
	if (fdw->next >= fdw->n && !fetch_rows(fdw))
		return false;
	reader->converting = false;
	row = fdw->rows[fdw->next++];
	ExecStoreMinimalTuple(row, fdw->slot, false);
	slot_getallattrs(fdw->slot);
	memcpy(values, fdw->slot->tts_values, fdw->natts * sizeof(Datum));
	memcpy(nulls, fdw->slot->tts_isnull, fdw->natts * sizeof(bool));
	*bytes = row->t_len;
	return true;
}

void
migrate_fdw_reader_close(MigrateReader *reader, bool failed)
{
	FdwReader  *fdw = reader->fdw;
	Portal		portal;

	reader->fdw = NULL;
	if (fdw->slot)
		ExecDropSingleTupleTableSlot(fdw->slot);
	if (fdw->portal_name == NULL)
		return;
	portal = GetPortalByName(fdw->portal_name);
	if (PortalIsValid(portal))
		PortalDrop(portal, false);
}
