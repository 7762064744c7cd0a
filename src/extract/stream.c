/*-------------------------------------------------------------------------
 *
 * stream.c
 *	  A stream of changes as the catalog describes it, and how a job gets one:
 *	  publication, slot, and the waits before the first chunk is read.
 *
 * Runs in the job worker, state preparing, over many turns; loading also in
 * all others.  One job at a time makes or joins a stream: a session lock on it
 * (MIGRATE_LOCK_STREAM), held until the job has joined.
 *
 *	  row of the stream -> publication -> slot ('running')
 *		-> table added, start_lsn and a transaction id read
 *		-> every transaction up to that id has ended -> joined
 *
 * First the publication, then the slot, then the chunks: a change is decoded
 * with the catalog as it was then.  A transaction that was open when a table
 * came into the publication has changes that are in no message; so nothing of
 * the table is read before it has ended, and then every snapshot sees it (P3).
 * The same wait makes sure that what committed before start_lsn is seen by
 * every snapshot: a commit can be in the WAL before it is visible.  The id is a
 * new one: xmax of a snapshot is not beyond all that run.
 *
 * What is made on the source is recorded in migrate.made_object before.  A
 * crash is followed by the same steps again: what is there by our name is ours,
 * a slot that no row tells the position of is dropped and made anew.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "extract/capture.h"

XLogRecPtr
migrate_parse_lsn(const char *s)
{
	return s ? DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(s))) :
		InvalidXLogRecPtr;
}

static XLogRecPtr
spi_lsn(int row, int col)
{
	return migrate_parse_lsn(migrate_spi_text(row, col));
}

static TimestampTz
spi_time(int row, int col)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col + 1,
									  &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
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
							  " p.spooled_seq, s.shm_handle, p.commit_lsn, p.commit_at"
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
		stream->commit_lsn = spi_lsn(0, 17);
		stream->commit_at = spi_time(0, 18);
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

/* ----------------------------------------------------------------
 * preparing: what one process knows of it
 * ----------------------------------------------------------------
 */

/* how long one call waits for the slot before it gives the turn back, ms */
#define SLOT_PATIENCE 500

static struct
{
	int			job_id;			/* 0: nothing is under way */
	MemoryContext mcxt;			/* of conn and told */
	MigrateConn *conn;			/* CREATE_REPLICATION_SLOT is under way on it */
	char	   *system_identifier;
	int			timeline;
	char	   *boundary;		/* wait for transactions up to this one */
	XLogRecPtr	start_lsn;
	char	   *told;			/* whom we have said that we wait for */
}			prep;

static void
forget_preparation(void)
{
	MemoryContext mcxt = prep.mcxt;

	memset(&prep, 0, sizeof(prep));
	if (mcxt)
		MemoryContextReset(mcxt);
	else
		mcxt = AllocSetContextCreate(TopMemoryContext, "migrate stream preparation",
									 ALLOCSET_SMALL_SIZES);
	prep.mcxt = mcxt;
}

/* SPI with the job and a text as arguments, in the current transaction. */
static void
exec_for_job(const char *sql, MigrateJob *job, const char *text, int expected)
{
	Oid			types[2] = {INT4OID, TEXTOID};
	Datum		values[2];

	values[0] = Int32GetDatum(job->job_id);
	values[1] = text ? CStringGetTextDatum(text) : (Datum) 0;
	migrate_spi_exec(sql, 2, types, values, text ? "  " : " n", expected);
}

/* One value, in a transaction of its own; NULL if null or no row. */
static char *
value_for_job(const char *sql, MigrateJob *job, const char *text)
{
	MemoryContext mcxt = CurrentMemoryContext;
	char	   *value = NULL;

	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_job(sql, job, text, SPI_OK_SELECT);
	if (SPI_processed > 0)
		value = migrate_spi_text(0, 0);
	if (value)
		value = MemoryContextStrdup(mcxt, value);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	return value;
}

static void
tell_job(MigrateJob *job, const char *kind, const char *message)
{
	MemoryContext mcxt = CurrentMemoryContext;

	StartTransactionCommand();
	migrate_event(job->job_id, "info", kind, "%s", message);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

/* ----------------------------------------------------------------
 * the rows
 * ----------------------------------------------------------------
 */

/*
 * The stream's row and the job's, made where they are not there.  The name of
 * slot and publication is the target server's, the database's and the stream's,
 * since a slot is known in the whole source; the DBA's, where he made them.
 */
static MigrateStream *
ensure_rows(MigrateJob *job)
{
	MemoryContext mcxt = CurrentMemoryContext;
	char	   *name = psprintf("migrate_" UINT64_FORMAT "_%u_", GetSystemIdentifier(), MyDatabaseId);
	MigrateStream *stream;

	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_job("INSERT INTO migrate.stream (server, owner, publication, slot, own_publication, own_slot)"
				 " SELECT j.server, j.owner, o.p, o.s, o.p <> '', o.s <> '' FROM migrate.job j,"
				 "  LATERAL (SELECT migrate._option($1, 'publication') AS p, migrate._option($1, 'slot') AS s, $2) o"
				 " WHERE j.job_id = $1 ON CONFLICT (server, owner) DO NOTHING",
				 job, name, SPI_OK_INSERT);
	exec_for_job("UPDATE migrate.stream s SET"
				 " publication = CASE s.publication WHEN '' THEN $2 || s.stream_id ELSE s.publication END,"
				 " slot = CASE s.slot WHEN '' THEN $2 || s.stream_id ELSE s.slot END"
				 " FROM migrate.job j WHERE j.job_id = $1 AND s.server = j.server AND s.owner = j.owner"
				 " AND '' IN (s.publication, s.slot)", job, name, SPI_OK_UPDATE);
	exec_for_job("INSERT INTO migrate.job_stream (job_id, stream_id)"
				 " SELECT j.job_id, s.stream_id FROM migrate.job j JOIN migrate.stream s USING (server, owner)"
				 " WHERE j.job_id = $1 AND $2 IS NOT NULL ON CONFLICT (job_id) DO NOTHING",
				 job, name, SPI_OK_INSERT);
	migrate_spi_end();
	CommitTransactionCommand();
	StartTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	stream = migrate_stream_of_job(job->job_id);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
	if (stream == NULL)
		elog(ERROR, "job %d has no stream", job->job_id);
	return stream;
}

/* A job that wants other objects than the stream has cannot have its way. */
static void
check_options(MigrateJob *job, MigrateStream *stream)
{
	char	   *publication = value_for_job("SELECT migrate._option($1, 'publication'), $2", job, NULL);
	char	   *slot = value_for_job("SELECT migrate._option($1, 'slot'), $2", job, NULL);

	if (publication[0] && strcmp(publication, stream->publication) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the stream of server \"%s\" has publication \"%s\", not \"%s\"",
						stream->server_name, stream->publication, publication),
				 errhint("Jobs on the same server share one stream: leave the option out, or end the other jobs first.")));
	if (slot[0] && strcmp(slot, stream->slot) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the stream of server \"%s\" has slot \"%s\", not \"%s\"",
						stream->server_name, stream->slot, slot),
				 errhint("Jobs on the same server share one stream: leave the option out, or end the other jobs first.")));
}

/* Before it is made: that we are about to make it. */
static void
record_made(MigrateJob *job, const char *kind, const char *object)
{
	MemoryContext mcxt = CurrentMemoryContext;

	StartTransactionCommand();
	migrate_spi_begin();
	exec_for_job(psprintf("INSERT INTO migrate.made_object (job_id, side, kind, object)"
						  " SELECT $1, 'source', %s, $2 WHERE NOT EXISTS (SELECT FROM migrate.made_object o"
						  " WHERE o.side = 'source' AND o.kind = %s AND o.object = $2"
						  "  AND o.job_id IN (SELECT a.job_id FROM migrate.job a JOIN migrate.job b USING (server, owner)"
						  "   WHERE b.job_id = $1))",
						  quote_literal_cstr(kind), quote_literal_cstr(kind)),
				 job, object, SPI_OK_INSERT);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

/* ----------------------------------------------------------------
 * the publication
 * ----------------------------------------------------------------
 */
static void
check_source(MigrateJob *job, MigrateConn *conn)
{
	char	   *level;

	if (conn->version < 130000)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("live capture needs PostgreSQL 13 or later as source")));
	level = migrate_exec_value(conn, "SELECT CASE WHEN pg_is_in_recovery() THEN 'of a standby'"
							   " ELSE current_setting('wal_level') END");
	if (strcmp(level, "logical") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("server \"%s\" does not log what live capture needs: its wal_level is %s",
						migrate_conn_name(conn), level),
				 errhint("Set wal_level = logical on the source (needs a restart), or use the option capture 'none'.")));
}

/* P16: publishing must not make the application's statements fail. */
static void
check_identities(MigrateJob *job, MigrateConn *conn)
{
	char	   *sql = value_for_job("SELECT migrate._identity_missing_sql($1), $2", job, NULL);
	PGresult   *res;
	StringInfoData list,
				remedy;

	if (sql == NULL)
		return;
	res = migrate_exec(conn, sql);
	if (PQntuples(res) == 0)
	{
		PQclear(res);
		return;
	}
	initStringInfo(&list);
	initStringInfo(&remedy);
	for (int i = 0; i < PQntuples(res) && i < 20; i++)
	{
		appendStringInfo(&list, "%s%s (%s)", i ? ", " : "", PQgetvalue(res, i, 0),
						 PQgetvalue(res, i, 1));
		appendStringInfo(&remedy, " ALTER TABLE %s REPLICA IDENTITY FULL;", PQgetvalue(res, i, 0));
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%d tables have no replica identity: publishing them would make UPDATE and DELETE fail on the source",
					PQntuples(res)),
			 errdetail_internal("%s", list.data),
			 errhint("On the source, give each a primary key that is not deferrable, or:%s", remedy.data)));
}

/* The job's tables that are not in the publication yet, as a FOR TABLE list. */
static char *
tables_to_publish(MigrateJob *job, MigrateStream *stream, MigrateConn *conn)
{
	char	   *sql = value_for_job("SELECT migrate._source_tables_sql($1), $2", job, NULL);

	if (sql == NULL)
		return NULL;
	return migrate_exec_value(conn,
							  psprintf("SELECT string_agg(CASE WHEN q.solo THEN 'ONLY ' ELSE '' END || format('%%I.%%I', q.s, q.t), ', ')"
									   " FROM (%s) q WHERE NOT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
									   "  WHERE p.pubname = %s AND r.prrelid = q.oid)",
									   sql, quote_literal_cstr(stream->publication)));
}

/* In one transaction there, which does not wait for a lock longer than it may. */
static void
run_on_source(MigrateJob *job, MigrateConn *conn, const char *sql)
{
	PGresult   *res;

	PQclear(migrate_exec(conn, psprintf("BEGIN READ WRITE; SET LOCAL lock_timeout = %d", job->lock_timeout_ms)));
	res = migrate_exec_try(conn, sql);
	if (!migrate_result_ok(res))
	{
		if (migrate_connection_usable(conn))
			migrate_exec_quietly(conn, "ROLLBACK");
		migrate_report_remote_error(res, conn, sql);
	}
	PQclear(res);
	/* durable before anything relies on it */
	PQclear(migrate_exec(conn, "SET LOCAL synchronous_commit = on; COMMIT"));
}

/* What the DBA made must give all that we need. */
static void
check_publication(MigrateJob *job, MigrateStream *stream, MigrateConn *conn)
{
	char	   *tables_sql = value_for_job("SELECT migrate._source_leaves_sql($1), $2", job, NULL);
	char	   *name = quote_literal_cstr(stream->publication);
	PGresult   *res;
	char	   *missing = NULL;

	res = migrate_exec(conn, psprintf("SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot"
									  " FROM pg_publication WHERE pubname = %s", name));
	if (PQntuples(res) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("publication \"%s\" does not exist on server \"%s\"",
						stream->publication, migrate_conn_name(conn)),
				 errhint("Make it there, before the slot; migrate_source_sql shows how.")));
	if (PQgetvalue(res, 0, 0)[0] != 't' || PQgetvalue(res, 0, 1)[0] != 'f')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("publication \"%s\" must publish insert, update, delete and truncate, of partitions as themselves",
						stream->publication),
				 errhint("On the source: ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = false);",
						 quote_identifier(stream->publication))));
	PQclear(res);
	if (tables_sql)
		missing = migrate_exec_value(conn,
									 psprintf("SELECT string_agg(l.leaf, ', ' ORDER BY l.leaf) FROM (%s) l"
											  " WHERE NOT EXISTS (SELECT FROM pg_publication_tables p WHERE p.pubname = %s"
											  "  AND format('%%I.%%I', p.schemaname, p.tablename) = l.leaf)",
											  tables_sql, name));
	if (missing)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("publication \"%s\" does not publish %s", stream->publication, missing),
				 errhint("On the source: ALTER PUBLICATION %s ADD TABLE %s;",
						 quote_identifier(stream->publication), missing)));
	if (conn->version >= 150000 &&
		migrate_exec_value(conn, psprintf("SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
										  " WHERE p.pubname = %s AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL) LIMIT 1",
										  name)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("publication \"%s\" leaves out rows or columns", stream->publication),
				 errhint("Publish whole tables; use the option filter of migrate_add_table to leave out rows.")));
}

/* Made, or what is missing added; the DBA's own is only looked at. */
static void
ensure_publication(MigrateJob *job, MigrateStream *stream, MigrateConn *conn)
{
	char	   *name = pstrdup(quote_identifier(stream->publication));
	char	   *tables;
	bool		exists;

	check_identities(job, conn);
	if (stream->own_publication)
	{
		check_publication(job, stream, conn);
		return;
	}
	exists = migrate_exec_value(conn, psprintf("SELECT 1 FROM pg_publication WHERE pubname = %s",
											   quote_literal_cstr(stream->publication))) != NULL;
	tables = tables_to_publish(job, stream, conn);
	if (!exists)
	{
		record_made(job, "publication", name);
		run_on_source(job, conn,
					  psprintf("CREATE PUBLICATION %s%s%s WITH (publish = 'insert, update, delete, truncate',"
							   " publish_via_partition_root = false)",
							   name, tables ? " FOR TABLE " : "", tables ? tables : ""));
		migrate_fault("stream-published");
	}
	else if (tables)
		run_on_source(job, conn, psprintf("ALTER PUBLICATION %s ADD TABLE %s", name, tables));
}

/* ----------------------------------------------------------------
 * the slot
 * ----------------------------------------------------------------
 */

/* The slot is there: write down where it begins. */
static void
slot_made(MigrateJob *job, MigrateStream *stream, MigrateConn *conn, const char *lsn)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[5] = {INT4OID, TEXTOID, TEXTOID, INT4OID, TEXTOID};
	Datum		values[5];
	char	   *encoding = migrate_exec_value(conn, "SELECT current_setting('server_encoding')");

	values[0] = Int32GetDatum(stream->stream_id);
	values[1] = CStringGetTextDatum(lsn);
	values[2] = CStringGetTextDatum(prep.system_identifier);
	values[3] = Int32GetDatum(prep.timeline);
	values[4] = CStringGetTextDatum(encoding);
	StartTransactionCommand();
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.stream SET state = 'running', generation = generation + 1,"
					 " start_lsn = $2::pg_lsn, system_identifier = $3, timeline = $4, encoding = $5,"
					 " last_error = NULL, last_sqlstate = NULL, last_error_at = NULL"
					 " WHERE stream_id = $1 AND state = 'new'",
					 5, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_exec("INSERT INTO migrate.stream_position AS p (stream_id, spooled_lsn)"
					 " VALUES ($1, $2::pg_lsn) ON CONFLICT (stream_id) DO UPDATE"
					 " SET spooled_lsn = excluded.spooled_lsn, commit_lsn = NULL",
					 2, types, values, NULL, SPI_OK_INSERT);
	migrate_spi_end();
	migrate_event(job->job_id, "info", "stream", "the stream of changes begins at %s (slot \"%s\", publication \"%s\")",
				  lsn, stream->slot, stream->publication);
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

/*
 * A slot by our name while no row tells of it: adopt the DBA's; drop ours,
 * which a crash has left.  True when a slot can be made, or *lsn is of the
 * one that is there.
 */
static bool
look_for_slot(MigrateStream *stream, MigrateConn *conn, char **lsn)
{
	char	   *name = quote_literal_cstr(stream->slot);
	PGresult   *res = migrate_exec(conn,
								   psprintf("SELECT s.plugin IS NOT DISTINCT FROM 'pgoutput' AND s.database = current_database()"
											" AND s.wal_status IS DISTINCT FROM 'lost' AND NOT s.temporary,"
											" s.active_pid, a.application_name LIKE 'migrate/%%', s.confirmed_flush_lsn"
											" FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid"
											" WHERE s.slot_name = %s", name));
	bool		found = PQntuples(res) > 0;

	*lsn = NULL;
	if (stream->own_slot)
	{
		if (!found || PQgetvalue(res, 0, 0)[0] != 't')
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("replication slot \"%s\" on server \"%s\" is not there, or not one of pgoutput on this database that is usable",
							stream->slot, migrate_conn_name(conn)),
					 errhint("On the source, after the publication was made: SELECT pg_create_logical_replication_slot(%s, 'pgoutput');",
							 name)));
		if (!PQgetisnull(res, 0, 1))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("replication slot \"%s\" is in use by process %s of the source",
							stream->slot, PQgetvalue(res, 0, 1))));
		*lsn = migrate_result_value(res, 0, 3);
		return true;
	}
	if (!found)
		return true;
	if (!PQgetisnull(res, 0, 1))
	{
		/* of an earlier try of ours, which still waits for transactions */
		if (PQgetvalue(res, 0, 2)[0] == 't')
			(void) migrate_exec_value(conn, psprintf("SELECT pg_terminate_backend(%s)",
													 PQgetvalue(res, 0, 1)));
		else
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("replication slot \"%s\" is in use by process %s of the source",
							stream->slot, PQgetvalue(res, 0, 1))));
		return false;
	}
	(void) migrate_exec_value(conn, psprintf("SELECT pg_drop_replication_slot(%s)", name));
	return true;
}

/*
 * Ask for the slot, on a connection of its own.  The answer comes when all
 * transactions that run on the source have ended.
 */
static void
begin_slot(MigrateJob *job, MigrateStream *stream)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateIdentity id;

	StartTransactionCommand();
	MemoryContextSwitchTo(prep.mcxt);
	prep.conn = migrate_connect_for_replication(stream->server, stream->owner, stream->slot,
												"slot", "SQL_ASCII", job->connect_timeout_s);
	CommitTransactionCommand();
	MemoryContextSwitchTo(prep.mcxt);
	migrate_replication_identify(prep.conn, &id);
	prep.system_identifier = id.system_identifier;
	prep.timeline = id.timeline;
	MemoryContextSwitchTo(mcxt);
}

static void
send_create_slot(MigrateJob *job, MigrateStream *stream)
{
	record_made(job, "replication slot", stream->slot);
	migrate_remote_start(prep.conn,
						 psprintf("CREATE_REPLICATION_SLOT \"%s\" LOGICAL pgoutput NOEXPORT_SNAPSHOT",
								  stream->slot), false);
}

/* Wait a moment for the answer. */
static bool
slot_answered(void)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SLOT_PATIENCE);
	long		left;

	while (!migrate_remote_ready(prep.conn))
	{
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		if (left <= 0)
			return false;
		(void) WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT |
								 WL_EXIT_ON_PM_DEATH, PQsocket(prep.conn->pg), left,
								 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

/* ----------------------------------------------------------------
 * waiting
 * ----------------------------------------------------------------
 */

/*
 * Say whom we wait for: transactions that have an id, not younger than
 * "oldest" (NULL: any), once for each set of them.
 */
static void
tell_waits(MigrateJob *job, MigrateConn *conn, const char *boundary, const char *what)
{
	char	   *limit = "";
	char	   *limit_prepared = "";
	PGresult   *res;
	StringInfoData ids,
				list;

	migrate_worker_phase("wait for source");
	pgstat_report_activity(STATE_RUNNING, "waiting for transactions of the source to end");
	if (boundary)
	{
		limit = psprintf(" AND age(a.backend_xid) >= age('%s'::xid8::xid)", boundary);
		limit_prepared = psprintf(" AND age(p.transaction) >= age('%s'::xid8::xid)", boundary);
	}
	res = migrate_exec(conn,
					   psprintf("SELECT x.id, x.words FROM (SELECT a.backend_xid::text AS id, a.backend_xid AS xid,"
								"  format('process %%s of user \"%%s\" in database \"%%s\"%%s (transaction %%s)', a.pid, a.usename, a.datname,"
								"  coalesce(', open for ' || (clock_timestamp() - a.xact_start)::interval(0), ''), a.backend_xid) AS words"
								" FROM pg_stat_activity a WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_backend_pid()%s"
								" UNION ALL SELECT p.transaction::text, p.transaction,"
								"  format('prepared transaction \"%%s\" of user \"%%s\" in database \"%%s\", prepared %%s ago (transaction %%s)',"
								"   p.gid, p.owner, p.database, (clock_timestamp() - p.prepared)::interval(0), p.transaction)"
								" FROM pg_prepared_xacts p WHERE true%s) x ORDER BY age(x.xid) DESC LIMIT 10",
								limit, limit_prepared));
	initStringInfo(&ids);
	initStringInfo(&list);
	for (int i = 0; i < PQntuples(res); i++)
	{
		appendStringInfo(&ids, "%s ", PQgetvalue(res, i, 0));
		appendStringInfo(&list, "%s%s", i ? "; " : "", PQgetvalue(res, i, 1));
	}
	if (PQntuples(res) > 0 && (prep.told == NULL || strcmp(prep.told, ids.data) != 0))
	{
		prep.told = MemoryContextStrdup(prep.mcxt, ids.data);
		tell_job(job, "stream_waits", psprintf("%s waits for transactions on the source to end: %s",
											   what, list.data));
	}
	PQclear(res);
}

/* True when the slot is there and written down. */
static bool
ensure_slot(MigrateJob *job, MigrateStream *stream, MigrateConn *conn)
{
	char	   *lsn;

	if (prep.conn == NULL)
	{
		if (!look_for_slot(stream, conn, &lsn))
			return false;
		begin_slot(job, stream);
		if (lsn)
		{
			slot_made(job, stream, conn, lsn);
			return true;
		}
		send_create_slot(job, stream);
	}
	if (!slot_answered())
	{
		tell_waits(job, conn, NULL, "the replication slot");
		return false;
	}
	{
		PGresult   *res = migrate_remote_next_result(prep.conn);

		if (res == NULL)
			migrate_report_conn_error(prep.conn, NULL);
		if (!migrate_result_ok(res))
			migrate_report_remote_error(res, prep.conn, "CREATE_REPLICATION_SLOT");
		lsn = migrate_result_value(res, 0, 1);
		PQclear(res);
	}
	migrate_fault("stream-slot-made");
	slot_made(job, stream, conn, lsn);
	migrate_disconnect(prep.conn);
	prep.conn = NULL;
	return true;
}

/*
 * P3 and late visibility.  The position is read first, then the id: whatever
 * committed before the position has a smaller one.
 */
static void
read_boundary(MigrateConn *conn)
{
	char	   *lsn = migrate_exec_value(conn, "SELECT pg_current_wal_insert_lsn()");
	char	   *boundary = migrate_exec_value(conn, "SELECT pg_current_xact_id()");

	prep.start_lsn = migrate_parse_lsn(lsn);
	prep.boundary = MemoryContextStrdup(prep.mcxt, boundary);
}

/* Have all ended that had begun by then, and are they seen by snapshots? */
static bool
all_ended(MigrateJob *job, MigrateConn *conn)
{
	char	   *passed;

	passed = migrate_exec_value(conn, psprintf("SELECT pg_snapshot_xmin(pg_current_snapshot()) > '%s'::xid8",
											   prep.boundary));
	if (passed[0] == 't')
		return true;
	tell_waits(job, conn, prep.boundary, "the copy");
	return false;
}

/* The job has joined, and what ended before start_lsn is in its copy. */
static void
join_stream(MigrateJob *job, MigrateStream *stream)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[4] = {INT4OID, INT4OID, LSNOID, TEXTOID};
	Datum		values[4];

	values[0] = Int32GetDatum(job->job_id);
	values[1] = Int32GetDatum(stream->stream_id);
	values[2] = LSNGetDatum(prep.start_lsn);
	values[3] = CStringGetTextDatum(prep.boundary);
	StartTransactionCommand();
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.job_stream j SET joined = true, start_lsn = $3, boundary = $4::xid8,"
					 " generation = s.generation"
					 " FROM migrate.stream s WHERE j.job_id = $1 AND s.stream_id = $2",
					 4, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_exec("UPDATE migrate.apply_position SET applied_lsn = greatest(applied_lsn, $3)"
					 " WHERE job_id = $1 AND $2 IS NOT NULL",
					 3, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

/*
 * Where the job will begin to read, written down before start_lsn is read on
 * the source: what is spooled already ended before that.  The lock keeps the
 * capture worker from dropping what comes after.
 */
static void
take_place(MigrateJob *job, MigrateStream *stream)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[2] = {INT4OID, INT4OID};
	Datum		values[2];

	values[0] = Int32GetDatum(job->job_id);
	values[1] = Int32GetDatum(stream->stream_id);
	StartTransactionCommand();
	migrate_spi_begin();
	migrate_spi_exec("SELECT FROM migrate.stream WHERE stream_id = $2 AND $1 IS NOT NULL FOR NO KEY UPDATE",
					 2, types, values, NULL, SPI_OK_SELECT);
	migrate_spi_end();
	migrate_spi_begin();
	migrate_spi_exec("INSERT INTO migrate.apply_position (job_id, applied_lsn, next_seq)"
					 " SELECT $1, p.spooled_lsn, p.spooled_seq + 1 FROM migrate.stream_position p"
					 " WHERE p.stream_id = $2 ON CONFLICT (job_id) DO NOTHING",
					 2, types, values, NULL, SPI_OK_INSERT);
	migrate_spi_end();
	CommitTransactionCommand();
	MemoryContextSwitchTo(mcxt);
}

static bool
is_joined(MigrateJob *job)
{
	return value_for_job("SELECT 1, $2 FROM migrate.job_stream WHERE job_id = $1 AND joined", job, NULL) != NULL;
}

/* All that is asked of the source; false: it waits for something. */
static bool
prepare_on_source(MigrateJob *job, MigrateStream *stream, MigrateConn *conn)
{
	if (prep.conn == NULL && prep.boundary == NULL)
	{
		check_source(job, conn);
		ensure_publication(job, stream, conn);
	}
	if (strcmp(stream->state, "new") == 0 && !ensure_slot(job, stream, conn))
		return false;
	if (prep.boundary == NULL)
	{
		take_place(job, stream);
		read_boundary(conn);
	}
	if (!all_ended(job, conn))
		return false;
	join_stream(job, stream);
	return true;
}

bool
migrate_stream_prepare(MigrateJob *job, MigrateConn *conn)
{
	MigrateStream *stream;
	volatile bool done = false;

	if (prep.job_id != job->job_id)
		forget_preparation();
	prep.job_id = job->job_id;
	if (is_joined(job))
		return true;
	stream = ensure_rows(job);
	if (!migrate_worker_lock(MIGRATE_LOCK_STREAM, stream->stream_id))
		return false;			/* another job makes or joins it */
	check_options(job, stream);
	if (strcmp(stream->state, "lost") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the stream of changes from server \"%s\" is lost",
						stream->server_name),
				 errhint("Use migrate_resync for the jobs that read it.")));
	PG_TRY();
	{
		done = prepare_on_source(job, stream, conn);
	}
	PG_CATCH();
	{
		forget_preparation();
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (!done)
		return false;
	forget_preparation();
	migrate_worker_unlock(MIGRATE_LOCK_STREAM, stream->stream_id);
	return true;
}
