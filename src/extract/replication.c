/*-------------------------------------------------------------------------
 *
 * replication.c
 *	  The replication protocol over libpq: is the slot still ours, the stream
 *	  from it, and what we say back (manual, "Streaming Replication Protocol").
 *
 * Runs in the capture worker; the connection also in the job worker that makes
 * the slot.  libpq itself and not libpqwalreceiver, whose interface changes
 * with every version.  No transaction is needed but to connect.
 *
 * What makes a stream lost for good, and not just for the moment: another
 * system identifier or timeline, a slot that is gone, invalid, of another
 * database or plugin, or that has moved on without us (P18), a publication
 * that is gone or lacks a table.  Everything else is tried again.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/capture.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"

bool		migrate_stream_is_lost = false;

MigrateConn *
migrate_connect_replication(MigrateStream *stream, int connect_timeout_s)
{
	return migrate_connect_for_replication(stream->server, stream->owner, stream->slot,
										   "capture", stream->encoding, connect_timeout_s);
}

/* ----------------------------------------------------------------
 * is it ours?
 * ----------------------------------------------------------------
 */

/* The stream cannot go on; with the remedy. */
void
migrate_stream_lost(MigrateStream *stream, const char *fmt,...)
{
	StringInfoData detail;

	initStringInfo(&detail);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&detail, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&detail, needed);
	}
	migrate_stream_is_lost = true;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the stream of changes from server \"%s\" is lost: %s",
					stream->server_name, detail.data),
			 errhint("Use migrate_resync, which makes a new slot, and validates and repairs what changed meanwhile, without copying again.")));
	pg_unreachable();
}

void
migrate_replication_identify(MigrateConn *conn, MigrateIdentity *id)
{
	PGresult   *res = migrate_exec(conn, "IDENTIFY_SYSTEM");
	char	   *timeline = migrate_result_value(res, 0, 1);

	id->system_identifier = migrate_result_value(res, 0, 0);
	id->timeline = timeline ? atoi(timeline) : 0;
	id->flush_lsn = migrate_parse_lsn(migrate_result_value(res, 0, 2));
	PQclear(res);
	if (id->system_identifier == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("server \"%s\" does not tell what it is", migrate_conn_name(conn))));
}

static void
check_identity(MigrateConn *conn, MigrateStream *stream)
{
	MigrateIdentity id;

	migrate_replication_identify(conn, &id);
	if (stream->system_identifier &&
		strcmp(id.system_identifier, stream->system_identifier) != 0)
		migrate_stream_lost(stream, "the source is another server now: its system identifier is %s, not %s",
							id.system_identifier, stream->system_identifier);
	if (stream->timeline != 0 && id.timeline != stream->timeline)
		migrate_stream_lost(stream, "the source is on timeline %d, not %d: it has failed over, or was restored from a backup",
							id.timeline, stream->timeline);

	/*
	 * what is here was durable there: only a past of it can be behind us
	 * (P18)
	 */
	if (id.flush_lsn < stream->spooled_lsn)
		migrate_stream_lost(stream, "the source is at %X/%X, and changes up to %X/%X are here: it was restored from a backup",
							LSN_FORMAT_ARGS(id.flush_lsn),
							LSN_FORMAT_ARGS(stream->spooled_lsn));
}

/* P18 and the rest about the slot. */
static void
check_slot(MigrateConn *conn, MigrateStream *stream)
{
	PGresult   *res;
	char	   *plugin;
	char	   *status;
	XLogRecPtr	confirmed;

	res = migrate_exec(conn, psprintf("SELECT coalesce(plugin, ''), database = current_database(),"
									  " wal_status, confirmed_flush_lsn FROM pg_replication_slots"
									  " WHERE slot_name = %s",
									  quote_literal_cstr(stream->slot)));
	if (PQntuples(res) == 0)
		migrate_stream_lost(stream, "replication slot \"%s\" does not exist there any more",
							stream->slot);
	plugin = migrate_result_value(res, 0, 0);
	status = migrate_result_value(res, 0, 2);
	confirmed = migrate_parse_lsn(migrate_result_value(res, 0, 3));
	if (strcmp(plugin, "pgoutput") != 0)
		migrate_stream_lost(stream, "replication slot \"%s\" is not one of the plugin pgoutput any more",
							stream->slot);
	if (PQgetisnull(res, 0, 1) || PQgetvalue(res, 0, 1)[0] != 't')
		migrate_stream_lost(stream, "replication slot \"%s\" is of another database now",
							stream->slot);
	if (status && strcmp(status, "lost") == 0)
		migrate_stream_lost(stream, "the source has invalidated replication slot \"%s\", or removed WAL that it needs (see max_slot_wal_keep_size there)",
							stream->slot);
	/* P18: the server would silently begin there */
	if (confirmed > stream->spooled_lsn)
		migrate_stream_lost(stream, "replication slot \"%s\" has been confirmed up to %X/%X, but only what is before %X/%X is here: the target was rewound, or somebody else has read from the slot",
							stream->slot, LSN_FORMAT_ARGS(confirmed),
							LSN_FORMAT_ARGS(stream->spooled_lsn));
	PQclear(res);
	stream->confirmed_lsn = confirmed;
}

/* Tables that jobs read from this stream, as a list of (schema, name) literals. */
static char *
tables_of_stream(MigrateStream *stream)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(stream->stream_id);
	MemoryContext mcxt = CurrentMemoryContext;
	char	   *list;

	StartTransactionCommand();
	migrate_spi_begin();
	migrate_spi_exec("SELECT string_agg(DISTINCT pg_catalog.format('(%L::name, %L::name)', s.remote_schema, s.remote_table), ', ')"
					 " FROM migrate.job_stream j JOIN migrate.source_table s USING (job_id)"
					 " WHERE j.stream_id = $1 AND j.joined AND s.remote_table IS NOT NULL",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	list = migrate_spi_text(0, 0);
	if (list)
		list = MemoryContextStrdup(mcxt, list);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	return list;
}

/*
 * A table that somebody has taken out of the publication is silently missing
 * in the stream; so is all of it on a source that only warns when the
 * publication itself is gone (18).
 */
void
migrate_replication_check_tables(MigrateConn *conn, MigrateStream *stream)
{
	char	   *tables = tables_of_stream(stream);
	char	   *missing;

	if (migrate_exec_value(conn, psprintf("SELECT 1 FROM pg_publication WHERE pubname = %s",
										  quote_literal_cstr(stream->publication))) == NULL)
		migrate_stream_lost(stream, "publication \"%s\" does not exist there any more",
							stream->publication);
	if (tables == NULL)
		return;
	missing = migrate_exec_value(conn,
								 psprintf("SELECT string_agg(format('%%I.%%I', w.s, w.t), ', ')"
										  " FROM (VALUES %s) w(s, t)"
										  " JOIN pg_namespace n ON n.nspname = w.s"
										  " JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t"
										  " WHERE (c.relkind = 'r' OR c.relkind = 'p' AND EXISTS (SELECT FROM pg_partition_tree(c.oid) l WHERE l.isleaf))"
										  " AND NOT EXISTS (SELECT FROM pg_publication_tables p"
										  "  WHERE p.pubname = %s AND (p.schemaname, p.tablename) IN"
										  "  (SELECT pn.nspname, pc.relname FROM pg_partition_tree(c.oid) l"
										  "   JOIN pg_class pc ON pc.oid = l.relid JOIN pg_namespace pn ON pn.oid = pc.relnamespace"
										  "   UNION ALL SELECT n.nspname, c.relname))",
										  tables, quote_literal_cstr(stream->publication)));
	if (missing)
		migrate_stream_lost(stream, "publication \"%s\" does not publish %s any more",
							stream->publication, missing);
}

void
migrate_replication_check(MigrateConn *conn, MigrateStream *stream)
{
	check_identity(conn, stream);
	check_slot(conn, stream);
	migrate_replication_check_tables(conn, stream);
}

/* ----------------------------------------------------------------
 * the stream
 * ----------------------------------------------------------------
 */
void
migrate_replication_start(MigrateConn *conn, MigrateStream *stream, XLogRecPtr lsn)
{
	char	   *names = quote_literal_cstr(quote_identifier(stream->publication));
	char	   *sql;
	PGresult   *res;

	/*
	 * From 15 on an empty transaction is not sent, unless it holds a message:
	 * the cutover commits one to know where the stream is (P26).
	 */
	sql = psprintf("START_REPLICATION SLOT \"%s\" LOGICAL %X/%X (proto_version '1', publication_names %s%s)",
				   stream->slot, LSN_FORMAT_ARGS(lsn), names,
				   conn->version >= 140000 ? ", messages 'true'" : "");
	migrate_remote_start(conn, sql, false);
	res = migrate_remote_next_result(conn);
	if (res == NULL)
		migrate_report_conn_error(conn, sql);
	if (PQresultStatus(res) != PGRES_COPY_BOTH)
		migrate_report_remote_error(res, conn, sql);
	PQclear(res);
	((RemoteConn *) conn)->streaming = true;
}

/* The server has ended the stream: say why. */
pg_noreturn static void
report_end(MigrateConn *conn)
{
	PGresult   *res = migrate_remote_next_result(conn);

	if (res && !migrate_result_ok(res))
		migrate_report_remote_error(res, conn, NULL);
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("server \"%s\" has ended the stream of changes", migrate_conn_name(conn))));
	pg_unreachable();
}

/*
 * What is there of the stream: a message (for PQfreemem) and its length, or 0
 * when nothing has arrived.  Does not read from the socket.
 */
int
migrate_replication_receive(MigrateConn *conn, char **buffer)
{
	int			len = PQgetCopyData(conn->pg, buffer, 1);

	if (unlikely(len == -1))
		report_end(conn);
	if (unlikely(len < 0))
		migrate_report_conn_error(conn, NULL);
	return len;
}

/*
 * Standby status update: "received" counts for nothing but the source's views;
 * up to "durable" the source may forget its WAL.
 */
void
migrate_replication_status(MigrateConn *conn, XLogRecPtr received, XLogRecPtr durable,
						   bool reply_requested)
{
	char		message[34];
	uint64		fields[4];

	fields[0] = pg_hton64(Max(received, durable));
	fields[1] = pg_hton64(durable);
	fields[2] = pg_hton64(durable);
	fields[3] = pg_hton64((uint64) GetCurrentTimestamp());
	message[0] = 'r';
	memcpy(message + 1, fields, sizeof(fields));
	message[33] = reply_requested ? 1 : 0;
	if (PQputCopyData(conn->pg, message, sizeof(message)) <= 0 || PQflush(conn->pg) < 0)
		migrate_report_conn_error(conn, NULL);
}
