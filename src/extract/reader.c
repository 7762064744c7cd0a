/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  Rows of a range, whichever way they come.
 *
 * Runs in loaders, validation and dry runs, within one local transaction: a
 * reader, its memory and its hold on the foreign table belong to the whole
 * transaction, not to the subtransaction or SPI level in which it happens to
 * be called, so that it can be used between others' levels and given up after
 * an error in one of them.  Core's COPY checks neither privileges nor
 * policies, so the privilege is checked here.
 *
 * A crash leaves nothing: the source's transaction ends with the connection.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

MigrateReader *
migrate_reader_open(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
					int fetch_size)
{
	AclResult	acl = pg_class_aclcheck(src->foreign_table, GetUserId(), ACL_SELECT);
	MemoryContext mcxt;
	MemoryContext oldcxt;
	MigrateReader *reader;

	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FOREIGN_TABLE, get_rel_name(src->foreign_table));

	mcxt = AllocSetContextCreate(TopTransactionContext, "migrate reader",
								 ALLOCSET_DEFAULT_SIZES);
	oldcxt = MemoryContextSwitchTo(mcxt);
	reader = palloc0(sizeof(MigrateReader));
	reader->mcxt = mcxt;
	reader->row_mcxt = AllocSetContextCreate(mcxt, "migrate reader row",
											 ALLOCSET_DEFAULT_SIZES);
	reader->conn = conn;
	reader->src = src;
	reader->range = range;
	reader->fetch_size = Max(fetch_size, 1);
	PG_TRY();
	{
		if (src->transport == 'c')
			migrate_copy_reader_open(reader);
		else
			migrate_fdw_reader_open(reader);
	}
	PG_CATCH();
	{
		/* the caller gets no reader that it could abort */
		MemoryContextSwitchTo(oldcxt);
		migrate_reader_abort(reader);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	return reader;
}

bool
migrate_reader_next(MigrateReader *reader, Datum *values, bool *nulls, int64 *bytes)
{
	MemoryContext oldcxt;

	*bytes = 0;
	if (reader->done)
		return false;
	MemoryContextReset(reader->row_mcxt);
	oldcxt = MemoryContextSwitchTo(reader->row_mcxt);
	if (reader->copy)
		reader->done = !migrate_copy_reader_next(reader, values, nulls, bytes);
	else
		reader->done = !migrate_fdw_reader_next(reader, values, nulls, bytes);
	MemoryContextSwitchTo(oldcxt);
	return !reader->done;
}

/* The end of a reader that gave no error, at its end or before. */
void
migrate_reader_close(MigrateReader *reader)
{
	if (!reader->done)
	{
		migrate_reader_abort(reader);
		return;
	}
	if (reader->copy)
		migrate_copy_reader_close(reader, false);
	else
		migrate_fdw_reader_close(reader, false);
	MemoryContextDelete(reader->mcxt);
}

/*
 * The end of any reader.  On the source what it began is cancelled and rolled
 * back to where it began; a connection that does not answer is closed.
 */
void
migrate_reader_abort(MigrateReader *reader)
{
	if (reader->copy)
		migrate_copy_reader_close(reader, true);
	if (reader->fdw)
		migrate_fdw_reader_close(reader, true);
	MemoryContextDelete(reader->mcxt);
}
