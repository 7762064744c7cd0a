/*-------------------------------------------------------------------------
 *
 * remote_pipe.c
 *	  Many statements to the source without waiting for the answer to each:
 *	  libpq's pipeline mode.
 *
 * The source works on what was sent while the next statement is made, and what
 * comes after it decoded.  At the first error it skips the rest, a COMMIT among
 * it, up to the end of the pipe; that error is what migrate_pipe_finish()
 * throws.  Nothing here blocks in libpq, and what is sent and not taken yet is
 * bounded.
 *
 * Runs in the reverse worker.  Its state is the connection's.  An error
 * that is thrown in between leaves the connection in the mode; it is closed
 * then, or migrate_pipe_abandon() brings it back.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/remote_pipe.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"

#include "extract/extract.h"

/* so much may wait in memory for the source to take it, bytes */
#define MOST_WAITING (4 * 1024 * 1024)

/* of the one pipe: bytes sent since nothing was waiting */
static Size waiting;
static bool pipe_over;			/* all answers have been taken */
static PGresult *failed;		/* the first error among them */

static void
wait_socket(MigrateConn *conn, int events)
{
	(void) WaitLatchOrSocket(MyLatch, events | WL_LATCH_SET | WL_EXIT_ON_PM_DEATH,
							 PQsocket(conn->pg), -1L, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Hand on what can be without waiting; false: something is left. */
static bool
flush(MigrateConn *conn)
{
	int			rc = PQflush(conn->pg);

	/* the server may have to be read before it reads on */
	if (rc < 0 || PQconsumeInput(conn->pg) == 0)
		migrate_report_conn_error(conn, NULL);
	if (rc == 0)
		waiting = 0;
	return rc == 0;
}

void
migrate_pipe_begin(MigrateConn *conn)
{
	migrate_remote_settle(conn);
	if (PQstatus(conn->pg) != CONNECTION_OK || PQenterPipelineMode(conn->pg) == 0)
		migrate_report_conn_error(conn, NULL);
	waiting = 0;
	pipe_over = false;
	failed = NULL;
}

void
migrate_pipe_send(MigrateConn *conn, const char *sql, int n, const char *const *values)
{
	waiting += strlen(sql);
	for (int i = 0; i < n; i++)
		waiting += values[i] ? strlen(values[i]) : 0;
	if (PQsendQueryParams(conn->pg, sql, n, NULL, values, NULL, NULL, 0) == 0)
		migrate_report_conn_error(conn, sql);
	while (!flush(conn) && waiting > MOST_WAITING)
		wait_socket(conn, WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE);
}

void
migrate_pipe_end(MigrateConn *conn)
{
	if (PQpipelineSync(conn->pg) == 0)
		migrate_report_conn_error(conn, NULL);
	(void) flush(conn);
}

/*
 * Take the answers that are there, or wait for all of them; the first error is
 * kept.  True: there are no more.
 */
static bool
take_answers(MigrateConn *conn, bool wait)
{
	while (!pipe_over)
	{
		bool		out = flush(conn);
		PGresult   *res;

		if (PQisBusy(conn->pg))
		{
			if (!wait)
				return false;
			wait_socket(conn, out ? WL_SOCKET_READABLE : WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE);
			continue;
		}
		res = migrate_remote_next_result(conn);
		if (PQstatus(conn->pg) != CONNECTION_OK)
			migrate_report_conn_error(conn, NULL);
		/* there is none between those of two statements */
		if (res == NULL)
			continue;
		pipe_over = PQresultStatus(res) == PGRES_PIPELINE_SYNC;
		if (PQresultStatus(res) == PGRES_FATAL_ERROR && failed == NULL)
			failed = res;
		else
			PQclear(res);
	}
	return true;
}

bool
migrate_pipe_ready(MigrateConn *conn)
{
	return take_answers(conn, false);
}

void
migrate_pipe_finish(MigrateConn *conn)
{
	(void) take_answers(conn, true);
	if (PQexitPipelineMode(conn->pg) == 0)
		migrate_report_conn_error(conn, NULL);
	if (failed)
		migrate_report_remote_error(failed, conn, NULL);
}

void
migrate_pipe_abandon(MigrateConn *conn)
{
	if (PQpipelineStatus(conn->pg) == PQ_PIPELINE_OFF)
		return;
	migrate_pipe_end(conn);
	(void) take_answers(conn, true);
	if (PQexitPipelineMode(conn->pg) == 0)
		migrate_report_conn_error(conn, NULL);
	PQclear(failed);
}
