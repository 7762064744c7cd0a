/*-------------------------------------------------------------------------
 *
 * stream_leave.c
 *	  A job leaves its stream: migrate._stream_leave(job_id).
 *
 * Runs in a backend, or in the job worker, as somebody with the rights of the
 * job's owner, in his transaction.  The last job takes slot, publication and
 * spool with it; before, the capture worker is ended and kept from starting
 * again until the transaction's end (MIGRATE_LOCK_CAPTURE).  Others stay: then
 * only the tables that nobody else reads leave the publication.
 *
 * What is done on the source is not undone when this transaction rolls back;
 * the stream then is lost, with its remedy.  What could not be done is returned
 * as the statement that would do it.  Nothing that fails there is an error
 * here: a source that is gone must not keep a job from being finished.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "extract/capture.h"

/* how long the capture worker, or the walsender, may take to end, ms */
#define END_PATIENCE 10000
#define LEAVE_CONNECT_TIMEOUT_S 10


static void
exec_with_ids(const char *sql, int first, int second, int expected)
{
	Oid			types[2] = {INT4OID, INT4OID};
	Datum		values[2] = {Int32GetDatum(first), Int32GetDatum(second)};

	migrate_spi_exec(sql, 2, types, values, NULL, expected);
}

static void
nap(long ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * End the capture worker, and let none begin.  False when it did not end in
 * time.
 */
static bool
end_capture(MigrateStream *stream)
{
	TimestampTz start = GetCurrentTimestamp();
	dsm_segment *seg;
	MigrateStreamShared *shared;

	while (!migrate_transaction_lock_try(MIGRATE_LOCK_CAPTURE, stream->stream_id))
	{
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(), END_PATIENCE))
			return false;
		shared = migrate_stream_shmem_attach(stream->shm_handle, stream->stream_id, &seg);
		if (shared)
		{
			int			pid = shared->capture_pid;

			if (pid > 0)
				(void) kill(pid, SIGTERM);
			if (seg)
				dsm_detach(seg);
		}
		nap(50);
	}
	return true;
}

/* ----------------------------------------------------------------
 * on the source
 * ----------------------------------------------------------------
 */

/*
 * Run a statement there; NULL, or why it could not be done.  An error of it
 * ends a subtransaction.
 */
static char *
try_on_source(MigrateConn **conn, MigrateStream *stream, const char *sql)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile why = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		if (*conn == NULL)
			*conn = migrate_connect(stream->server, stream->owner, stream->slot, "leave",
									LEAVE_CONNECT_TIMEOUT_S);
		PQclear(migrate_exec(*conn, sql));
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		/* somebody's wish to end this goes on */
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			edata->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		why = edata->detail ? psprintf("%s; %s", edata->message, edata->detail) : edata->message;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	return why;
}

/* The statement that ends who reads from the slot, and drops it if it can. */
static char *
drop_slot(MigrateConn **conn, MigrateStream *stream)
{
	TimestampTz start = GetCurrentTimestamp();
	char	   *name = quote_literal_cstr(stream->slot);
	char	   *why;

	why = try_on_source(conn, stream,
						psprintf("SELECT pg_terminate_backend(s.active_pid) FROM pg_replication_slots s"
								 " JOIN pg_stat_activity a ON a.pid = s.active_pid"
								 " WHERE s.slot_name = %s AND a.application_name LIKE 'migrate/%%'", name));
	do
	{
		if (why && (*conn == NULL || !migrate_connection_usable(*conn)))
			return why;
		why = try_on_source(conn, stream,
							psprintf("SELECT pg_drop_replication_slot(slot_name)"
									 " FROM pg_replication_slots WHERE slot_name = %s", name));
		if (why == NULL)
			return NULL;
		nap(100);
	} while (!TimestampDifferenceExceeds(start, GetCurrentTimestamp(), END_PATIENCE / 2));
	return why;
}

/* ----------------------------------------------------------------
 * what is to be removed
 * ----------------------------------------------------------------
 */

/* In SPI: tables of the stream that only this job reads, as a list; or NULL. */
static char *
tables_left_over(MemoryContext mcxt, int job_id, int stream_id)
{
	char	   *list;

	exec_with_ids("SELECT string_agg(DISTINCT pg_catalog.format('%I.%I', s.remote_schema, s.remote_table), ', ')"
				  " FROM migrate.source_table s WHERE s.job_id = $1 AND s.remote_table IS NOT NULL"
				  " AND NOT EXISTS (SELECT FROM migrate.source_table o JOIN migrate.job_stream j USING (job_id)"
				  "  WHERE j.stream_id = $2 AND o.job_id <> $1"
				  "  AND (o.remote_schema, o.remote_table) = (s.remote_schema, s.remote_table))",
				  job_id, stream_id, SPI_OK_SELECT);
	list = migrate_spi_text(0, 0);
	return list ? MemoryContextStrdup(mcxt, list) : NULL;
}

/* Of those, the ones that are in the publication; a view never was. */
static char *
published(MigrateConn **conn, MigrateStream *stream, const char *tables, char **why)
{
	char	   *list = NULL;

	*why = try_on_source(conn, stream, "SELECT 1");
	if (*why)
		return pstrdup(tables);
	list = migrate_exec_value(*conn,
							  psprintf("SELECT string_agg(format('%%I.%%I', n.nspname, c.relname), ', ')"
									   " FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
									   " JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
									   " WHERE p.pubname = %s AND format('%%I.%%I', n.nspname, c.relname)"
									   " = ANY (string_to_array(%s, ', '))",
									   quote_literal_cstr(stream->publication),
									   quote_literal_cstr(tables)));
	return list;
}

/* What the job made for the stream is now another job's to remove. */
static void
hand_over(int job_id, int stream_id)
{
	exec_with_ids("UPDATE migrate.made_object o SET job_id ="
				  " (SELECT min(j.job_id) FROM migrate.job_stream j WHERE j.stream_id = $2 AND j.job_id <> $1)"
				  " FROM migrate.stream s WHERE s.stream_id = $2 AND o.job_id = $1 AND o.side = 'source'"
				  " AND (o.kind, o.object) IN (('replication slot', s.slot), ('publication', pg_catalog.quote_ident(s.publication)))",
				  job_id, stream_id, SPI_OK_UPDATE);
}

/* what is still on the source */
typedef struct Kept
{
	bool		slot;
	bool		publication;
} Kept;

/*
 * The stream and all that is kept of it here.  What is still on the source stays
 * on record, as the job's, for leave_rest().
 */
static void
remove_stream(int job_id, MigrateStream *stream, Kept *kept)
{
	const char *ours = " s.stream_id = $2 AND $1 IS NOT NULL AND o.side = 'source'"
	" AND o.job_id IN (SELECT a.job_id FROM migrate.job a JOIN migrate.job b USING (server, owner) WHERE b.job_id = $1)"
	" AND (o.kind, o.object) IN (('replication slot', s.slot), ('publication', pg_catalog.quote_ident(s.publication)))";

	exec_with_ids(psprintf("DELETE FROM migrate.made_object o USING migrate.stream s WHERE%s"
						   " AND NOT CASE o.kind WHEN 'publication' THEN %s ELSE %s END",
						   ours, kept->publication ? "true" : "false", kept->slot ? "true" : "false"),
				  job_id, stream->stream_id, SPI_OK_DELETE);
	exec_with_ids(psprintf("UPDATE migrate.made_object o SET job_id = $1 FROM migrate.stream s WHERE%s", ours),
				  job_id, stream->stream_id, SPI_OK_UPDATE);
	exec_with_ids("SELECT migrate._spool_drop_segment(g.stream_id, g.segment_no)"
				  " FROM migrate.spool_segment g WHERE g.stream_id = $2 AND $1 IS NOT NULL",
				  job_id, stream->stream_id, SPI_OK_SELECT);
	exec_with_ids("DELETE FROM migrate.stream WHERE stream_id = $2 AND $1 IS NOT NULL",
				  job_id, stream->stream_id, SPI_OK_DELETE);
}

/* ----------------------------------------------------------------
 * migrate._stream_leave(job_id) RETURNS SETOF text
 * ----------------------------------------------------------------
 */

/* Could not be done: tell why, and give the statement. */
static void
return_statement(ReturnSetInfo *rsinfo, MigrateStream *stream, const char *what,
				 const char *statement, const char *why)
{
	Datum		value = CStringGetTextDatum(statement);
	bool		isnull = false;

	ereport(NOTICE,
			(errmsg("%s on server \"%s\" is kept", what, stream->server_name),
			 errdetail_internal("%s", why)));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
}

/* Others read the stream: only what they do not read goes. */
static void
leave_to_others(ReturnSetInfo *rsinfo, int job_id, MigrateStream *stream,
				MigrateConn **conn, char *tables)
{
	char	   *why;
	char	   *sql;

	if (stream->own_publication || tables == NULL)
		return;
	tables = published(conn, stream, tables, &why);
	if (tables == NULL)
		return;
	sql = psprintf("ALTER PUBLICATION %s DROP TABLE %s",
				   quote_identifier(stream->publication), tables);
	if (why == NULL)
		why = try_on_source(conn, stream, sql);
	if (why)
		return_statement(rsinfo, stream, psprintf("publication \"%s\" as it is", stream->publication),
						 psprintf("%s;", sql), why);
}

/* False: the slot is still there. */
static bool
leave_slot(ReturnSetInfo *rsinfo, MigrateStream *stream, MigrateConn **conn)
{
	char	   *why = drop_slot(conn, stream);

	if (why == NULL)
		return true;
	return_statement(rsinfo, stream, psprintf("replication slot \"%s\"", stream->slot),
					 psprintf("SELECT pg_drop_replication_slot(%s);",
							  quote_literal_cstr(stream->slot)), why);
	return false;
}

/* False: the publication, its name quoted, is still there. */
static bool
leave_publication(ReturnSetInfo *rsinfo, MigrateStream *stream, MigrateConn **conn,
				  const char *publication)
{
	char	   *sql = psprintf("DROP PUBLICATION IF EXISTS %s", publication);
	char	   *why = try_on_source(conn, stream, sql);

	if (why == NULL)
		return true;
	return_statement(rsinfo, stream, psprintf("publication %s", publication),
					 psprintf("%s;", sql), why);
	return false;
}

static void
leave_last(ReturnSetInfo *rsinfo, int job_id, MigrateStream *stream, MigrateConn **conn,
		   Kept *kept)
{
	if (!end_capture(stream))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("the capture worker of server \"%s\" does not end", stream->server_name),
				 errhint("Try again in a moment.")));
	/* a slot that was never there has left nothing */
	if (!stream->own_slot)
		kept->slot = !leave_slot(rsinfo, stream, conn);
	if (!stream->own_publication)
		kept->publication = !leave_publication(rsinfo, stream, conn,
											   quote_identifier(stream->publication));
}

/*
 * What an earlier call could not remove, the stream itself being gone here.
 */
static void
leave_rest(ReturnSetInfo *rsinfo, int job_id)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateJob *job = migrate_job_load(job_id);
	MigrateStream stream = {0};
	MigrateConn *conn = NULL;
	List	   *objects = NIL;	/* of lists: id, kind, object */
	ListCell   *lc;

	if (job == NULL)
		return;
	migrate_spi_begin();
	exec_with_ids("SELECT o.object_id, o.kind, o.object FROM migrate.made_object o"
				  " WHERE o.job_id = $1 AND $2 IS NOT NULL AND o.side = 'source'"
				  " AND o.kind IN ('replication slot', 'publication') ORDER BY o.kind DESC",
				  job_id, 0, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		objects = lappend(objects, list_make3(makeInteger((int) migrate_spi_int64(i, 0, 0)),
											  makeString(pstrdup(migrate_spi_text(i, 1))),
											  makeString(pstrdup(migrate_spi_text(i, 2)))));
		MemoryContextSwitchTo(old);
	}
	migrate_spi_end();
	MemoryContextSwitchTo(mcxt);
	stream.server = job->server;
	stream.owner = job->owner;
	stream.server_name = GetForeignServer(job->server)->servername;
	foreach(lc, objects)
	{
		List	   *object = lfirst(lc);
		char	   *name = strVal(lthird(object));
		bool		gone;

		/* names the connection, too */
		stream.slot = name;
		if (strcmp(strVal(lsecond(object)), "publication") == 0)
			gone = leave_publication(rsinfo, &stream, &conn, name);
		else
			gone = leave_slot(rsinfo, &stream, &conn);
		if (!gone)
			continue;
		migrate_spi_begin();
		exec_with_ids("DELETE FROM migrate.made_object WHERE object_id = $2 AND job_id = $1",
					  job_id, intVal(linitial(object)), SPI_OK_DELETE);
		migrate_spi_end();
	}
	migrate_disconnect(conn);
}

PG_FUNCTION_INFO_V1(migrate_stream_leave);
PGDLLEXPORT Datum
migrate_stream_leave(PG_FUNCTION_ARGS)
{
	int			job_id = PG_GETARG_INT32(0);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateStream *stream;
	MigrateConn *conn = NULL;
	char	   *tables;
	bool		others;
	Kept		kept = {0};

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	stream = migrate_stream_of_job(job_id);
	if (stream == NULL)
	{
		leave_rest(rsinfo, job_id);
		return (Datum) 0;
	}

	/* no job joins or leaves meanwhile */
	migrate_spi_begin();
	exec_with_ids("SELECT FROM migrate.stream WHERE stream_id = $2 AND $1 IS NOT NULL FOR UPDATE",
				  job_id, stream->stream_id, SPI_OK_SELECT);
	migrate_spi_end();
	migrate_spi_begin();
	exec_with_ids("SELECT FROM migrate.job_stream WHERE stream_id = $2 AND job_id <> $1",
				  job_id, stream->stream_id, SPI_OK_SELECT);
	others = SPI_processed > 0;
	tables = others ? tables_left_over(mcxt, job_id, stream->stream_id) : NULL;
	migrate_spi_end();
	if (others)
		leave_to_others(rsinfo, job_id, stream, &conn, tables);
	else
		leave_last(rsinfo, job_id, stream, &conn, &kept);
	migrate_disconnect(conn);

	migrate_spi_begin();
	if (others)
		hand_over(job_id, stream->stream_id);
	exec_with_ids("DELETE FROM migrate.apply_position WHERE job_id = $1 AND $2 IS NOT NULL",
				  job_id, stream->stream_id, SPI_OK_DELETE);
	exec_with_ids("DELETE FROM migrate.job_stream WHERE job_id = $1 AND $2 IS NOT NULL",
				  job_id, stream->stream_id, SPI_OK_DELETE);
	if (!others)
		remove_stream(job_id, stream, &kept);
	migrate_spi_end();
	migrate_fault("finish-stream");
	return (Datum) 0;
}
