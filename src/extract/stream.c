/*-------------------------------------------------------------------------
 *
 * stream.c
 *	  A stream of changes as the catalog describes it.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

#include "control/control.h"
#include "extract/extract.h"
#include "extract/spool.h"
#include "extract/stream.h"

static XLogRecPtr
spi_lsn(int row, int col)
{
	char	   *s = migrate_spi_text(row, col);

	return s ? DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(s))) :
		InvalidXLogRecPtr;
}

/* By the stream's own id, or by that of a job that reads it. */
static MigrateStream *
load_stream(const char *where, int id)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(id);
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateStream *stream = NULL;

	migrate_spi_begin();
	migrate_spi_exec(psprintf("SELECT s.stream_id, s.server::bigint, s.owner::bigint, f.srvname, s.publication,"
							  " s.slot, s.own_publication::int, s.own_slot::int, s.state, s.generation,"
							  " s.system_identifier, s.timeline, s.encoding, s.start_lsn, p.spooled_lsn,"
							  " p.spooled_seq, s.shm_handle"
							  " FROM migrate.stream s LEFT JOIN migrate.stream_position p USING (stream_id)"
							  " LEFT JOIN pg_catalog.pg_foreign_server f ON f.oid = s.server WHERE %s", where),
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	if (SPI_processed == 1)
	{
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		stream = palloc0(sizeof(MigrateStream));
		stream->stream_id = (int) migrate_spi_int64(0, 0, 0);
		stream->server = (Oid) migrate_spi_int64(0, 1, 0);
		stream->owner = (Oid) migrate_spi_int64(0, 2, 0);
		stream->server_name = migrate_spi_text(0, 3);
		stream->publication = migrate_spi_text(0, 4);
		stream->slot = migrate_spi_text(0, 5);
		stream->own_publication = migrate_spi_int64(0, 6, 0) != 0;
		stream->own_slot = migrate_spi_int64(0, 7, 0) != 0;
		stream->state = migrate_spi_text(0, 8);
		stream->generation = (int) migrate_spi_int64(0, 9, 0);
		stream->system_identifier = migrate_spi_text(0, 10);
		stream->timeline = (int) migrate_spi_int64(0, 11, 0);
		stream->encoding = migrate_spi_text(0, 12);
		stream->start_lsn = spi_lsn(0, 13);
		stream->spooled_lsn = spi_lsn(0, 14);
		stream->spooled_seq = migrate_spi_int64(0, 15, 0);
		stream->shm_handle = migrate_spi_int64(0, 16, 0);
		MemoryContextSwitchTo(old);
	}
	migrate_spi_end();
	return stream;
}

MigrateStream *
migrate_stream_load(int stream_id)
{
	return load_stream("s.stream_id = $1", stream_id);
}

MigrateStream *
migrate_stream_of_job(int job_id)
{
	return load_stream("s.stream_id = (SELECT j.stream_id FROM migrate.job_stream j"
					   " WHERE j.job_id = $1)", job_id);
}
