/*-------------------------------------------------------------------------
 *
 * remote.c
 *	  Statements on the source over libpq, without ever blocking in libpq.
 *
 * Runs in any process that holds a connection made by connection.c.  Every
 * wait is on the latch and the socket together, so that cancelling, shutdown
 * and the death of the postmaster end it.
 *
 * Results belong to the memory context that was current when they arrived and
 * are cleared with it.  A caller may PQclear one earlier: libpq's event for
 * the end of a result disarms the callback.
 *
 * An error thrown in the middle of a statement (an interrupt, say) leaves the
 * connection busy.  migrate_remote_settle() brings it back: it cancels and
 * drains, or gives the connection up.  A crash here leaves a backend on the
 * source that ends when it finds its client gone.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* how long a cancelled statement may take to end before we hang up */
#define SETTLE_TIMEOUT_MS 30000

/* statements are quoted in messages up to this length */
#define MAX_SQL_IN_MESSAGE 500

typedef struct ResultGuard
{
	MemoryContextCallback callback;
	PGresult   *res;			/* NULL once cleared */
} ResultGuard;

const char *
migrate_conn_name(MigrateConn *conn)
{
	return ((RemoteConn *) conn)->server_name;
}

/* ----------------------------------------------------------------
 * ownership of results
 * ----------------------------------------------------------------
 */

/* Called by libpq; a result that is cleared takes its guard's hand off it. */
int
migrate_result_event(PGEventId event, void *info, void *arg)
{
	if (event == PGEVT_RESULTDESTROY)
	{
		PGresult   *res = ((PGEventResultDestroy *) info)->result;
		ResultGuard *guard;

		guard = PQresultInstanceData(res, migrate_result_event);
		if (guard)
			guard->res = NULL;
	}
	return 1;
}

static void
clear_result(void *arg)
{
	ResultGuard *guard = arg;

	if (guard->res)
		PQclear(guard->res);
}

TimestampTz migrate_remote_deadline = 0;

/*
 * Wait for the socket, or until migrate_remote_deadline is over: then the
 * connection is closed, without asking a server that may not answer to cancel
 * anything, and 57014 is thrown.
 */
static int
wait_for_socket(MigrateConn *conn, int events)
{
	long		left = -1L;
	int			rc;

	if (migrate_remote_deadline != 0)
	{
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), migrate_remote_deadline);
		if (left <= 0)
		{
			PQfinish(conn->pg);
			conn->pg = NULL;
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("server \"%s\" has not answered: the application has waited longer than max_downtime",
							migrate_conn_name(conn))));
		}
	}
	rc = WaitLatchOrSocket(MyLatch,
						   WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | events |
						   (left >= 0 ? WL_TIMEOUT : 0),
						   PQsocket(conn->pg), left, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return rc;
}

/*
 * Next result of the statement under way, owned by the current memory context;
 * NULL when there is no more.  Interruptible.
 */
PGresult *
migrate_remote_next_result(MigrateConn *conn)
{
	ResultGuard *guard = palloc0(sizeof(ResultGuard));
	PGresult   *res;

	while (PQisBusy(conn->pg))
	{
		(void) wait_for_socket(conn, WL_SOCKET_READABLE);
		if (PQconsumeInput(conn->pg) == 0)
			break;				/* PQgetResult says what happened */
	}
	res = PQgetResult(conn->pg);
	if (res == NULL)
	{
		pfree(guard);
		return NULL;
	}

	/*
	 * libpq skips the event of the end for results whose beginning it did not
	 * announce, which is so for those of a broken connection: announce it.
	 */
	if (PQfireResultCreateEvents(conn->pg, res) &&
		PQresultSetInstanceData(res, migrate_result_event, guard))
	{
		guard->res = res;
		guard->callback.func = clear_result;
		guard->callback.arg = guard;
		MemoryContextRegisterResetCallback(CurrentMemoryContext, &guard->callback);
	}
	return res;
}

/* A value as a palloc'd string, NULL if null or if there is no such row. */
char *
migrate_result_value(PGresult *res, int row, int col)
{
	if (row >= PQntuples(res) || PQgetisnull(res, row, col))
		return NULL;
	return pstrdup(PQgetvalue(res, row, col));
}

bool
migrate_result_ok(PGresult *res)
{
	ExecStatusType status = PQresultStatus(res);

	return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK ||
		status == PGRES_EMPTY_QUERY;
}

/* Is this result the remote error of that SQLSTATE (ERRCODE_...)? */
bool
migrate_result_is(PGresult *res, int sqlerrcode)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);

	return state && strcmp(state, unpack_sql_state(sqlerrcode)) == 0;
}

/* ----------------------------------------------------------------
 * statements
 * ----------------------------------------------------------------
 */

/*
 * Send a statement; false when the connection is broken.  Interruptible, as
 * everything here.
 */
static bool
send_statement(MigrateConn *conn, const char *sql, bool single_statement)
{
	int			sent;

	if (conn->pg && PQtransactionStatus(conn->pg) == PQTRANS_ACTIVE)
		migrate_remote_settle(conn);
	if (PQstatus(conn->pg) != CONNECTION_OK)
		return false;

	if (single_statement)
		sent = PQsendQueryParams(conn->pg, sql, 0, NULL, NULL, NULL, NULL, 0);
	else
		sent = PQsendQuery(conn->pg, sql);
	if (!sent)
		return false;

	for (;;)
	{
		int			rc = PQflush(conn->pg);

		if (rc <= 0)
			return rc == 0;

		/* the server may have to be read before it reads on */
		rc = wait_for_socket(conn, WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE);
		if ((rc & WL_SOCKET_READABLE) && PQconsumeInput(conn->pg) == 0)
			return false;
	}
}

/*
 * Send a statement.  Several may stand in one string, and cost one round trip
 * then; single_statement refuses that (extended protocol), which is for text
 * that is not ours.
 */
void
migrate_remote_start(MigrateConn *conn, const char *sql, bool single_statement)
{
	if (!send_statement(conn, sql, single_statement))
		migrate_report_conn_error(conn, sql);
}

/*
 * All results of what was sent; returns the last, which is the error if there
 * was one (a server stops there), or NULL when the connection broke.
 */
static PGresult *
last_result(MigrateConn *conn)
{
	PGresult   *last = NULL;
	PGresult   *res;

	while ((res = migrate_remote_next_result(conn)) != NULL)
	{
		PQclear(last);
		last = res;
		if (PQstatus(conn->pg) == CONNECTION_BAD ||
			PQresultStatus(res) == PGRES_COPY_OUT ||
			PQresultStatus(res) == PGRES_COPY_IN)
			break;
	}
	return last;
}

/*
 * Run what only tidies up on the source.  A broken connection has tidied up by
 * itself, so that nothing is an error here.
 */
void
migrate_exec_quietly(MigrateConn *conn, const char *sql)
{
	if (send_statement(conn, sql, false))
		PQclear(last_result(conn));
}

PGresult *
migrate_exec(MigrateConn *conn, const char *sql)
{
	PGresult   *res = migrate_exec_try(conn, sql);

	if (!migrate_result_ok(res))
		migrate_report_remote_error(res, conn, sql);
	return res;
}

/* Like migrate_exec(), but the caller looks at the result's status. */
PGresult *
migrate_exec_try(MigrateConn *conn, const char *sql)
{
	PGresult   *res;

	migrate_remote_start(conn, sql, false);
	res = last_result(conn);
	if (res == NULL)
		migrate_report_conn_error(conn, sql);
	return res;
}

/* Like migrate_exec(), for exactly one statement. */
PGresult *
migrate_exec_extended(MigrateConn *conn, const char *sql)
{
	PGresult   *res;

	migrate_remote_start(conn, sql, true);
	res = last_result(conn);
	if (res == NULL)
		migrate_report_conn_error(conn, sql);
	if (!migrate_result_ok(res))
		migrate_report_remote_error(res, conn, sql);
	return res;
}

char *
migrate_exec_value(MigrateConn *conn, const char *sql)
{
	PGresult   *res = migrate_exec(conn, sql);
	char	   *value = NULL;

	if (PQnfields(res) > 0)
		value = migrate_result_value(res, 0, 0);
	PQclear(res);
	return value;
}

/* Can the answer to what was sent be had without waiting?  Or its error. */
bool
migrate_remote_ready(MigrateConn *conn)
{
	return PQstatus(conn->pg) != CONNECTION_OK || PQconsumeInput(conn->pg) == 0 ||
		!PQisBusy(conn->pg);
}

/* The answer to migrate_remote_start(): as migrate_exec_value(). */
char *
migrate_remote_value(MigrateConn *conn, const char *sql)
{
	PGresult   *res = last_result(conn);
	char	   *value;

	if (res == NULL)
		migrate_report_conn_error(conn, sql);
	if (!migrate_result_ok(res))
		migrate_report_remote_error(res, conn, sql);
	value = migrate_result_value(res, 0, 0);
	PQclear(res);
	return value;
}

/*
 * One message of a COPY TO STDOUT: its length and *buffer (for PQfreemem), or
 * -1 at the end of the data, whether by success or by error: the next result
 * tells.
 */
int
migrate_remote_copy_data(MigrateConn *conn, char **buffer)
{
	bool		looked = false;

	for (;;)
	{
		int			len = PQgetCopyData(conn->pg, buffer, 1);

		if (len != 0)
			return Max(len, -1);
		CHECK_FOR_INTERRUPTS();

		/*
		 * most of the time the next rows are there already: waiting costs
		 * more
		 */
		if (!looked)
		{
			if (PQconsumeInput(conn->pg) == 0)
				return -1;
			looked = true;
			continue;
		}
		(void) WaitLatchOrSocket(MyLatch,
								 WL_LATCH_SET | WL_SOCKET_READABLE | WL_EXIT_ON_PM_DEATH,
								 PQsocket(conn->pg), -1L, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (PQconsumeInput(conn->pg) == 0)
			return -1;
	}
}

/* ----------------------------------------------------------------
 * back from an interrupted statement
 * ----------------------------------------------------------------
 */

/* Throw away what arrives until the statement has ended; false: too late. */
static bool
drain(MigrateConn *conn, TimestampTz deadline)
{
	for (;;)
	{
		PGresult   *res;
		ExecStatusType status;

		while (PQisBusy(conn->pg))
		{
			long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
															   deadline);

			if (left <= 0)
				return false;
			(void) WaitLatchOrSocket(MyLatch,
									 WL_LATCH_SET | WL_SOCKET_READABLE |
									 WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
									 PQsocket(conn->pg), left, PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
			if (PQconsumeInput(conn->pg) == 0)
				return false;
		}
		res = PQgetResult(conn->pg);
		if (res == NULL)
			return true;
		status = PQresultStatus(res);
		PQclear(res);
		if (PQstatus(conn->pg) == CONNECTION_BAD)
			return false;
		while (status == PGRES_COPY_OUT)
		{
			char	   *buffer = NULL;
			int			len = PQgetCopyData(conn->pg, &buffer, 1);

			if (len > 0)
				PQfreemem(buffer);
			else if (len < 0)
				break;
			else
			{
				long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
																   deadline);

				if (left <= 0)
					return false;
				(void) WaitLatchOrSocket(MyLatch,
										 WL_LATCH_SET | WL_SOCKET_READABLE |
										 WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
										 PQsocket(conn->pg), left, PG_WAIT_EXTENSION);
				ResetLatch(MyLatch);
				CHECK_FOR_INTERRUPTS();
				if (PQconsumeInput(conn->pg) == 0)
					return false;
			}
		}
	}
}

/* Ask the server to end the statement under way; no error if it cannot. */
void
migrate_remote_cancel(PGconn *pg)
{
	PGcancel   *cancel = PQgetCancel(pg);
	char		errbuf[256];

	if (cancel)
	{
		(void) PQcancel(cancel, errbuf, sizeof(errbuf));
		PQfreeCancel(cancel);
	}
}

/*
 * Make a connection idle that was left in the middle of a statement, by
 * cancelling it; one that does not answer is closed, and its next use is an
 * error of class 08.
 */
void
migrate_remote_settle(MigrateConn *conn)
{
	bool		settled = false;

	conn->in_copy = false;
	if (conn->pg == NULL)
		return;
	if (PQstatus(conn->pg) == CONNECTION_OK)
	{
		if (PQtransactionStatus(conn->pg) != PQTRANS_ACTIVE)
			return;
		migrate_remote_cancel(conn->pg);
		settled = drain(conn, TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														  SETTLE_TIMEOUT_MS));
	}
	if (!settled)
	{
		PQfinish(conn->pg);
		conn->pg = NULL;
	}
}

/* ----------------------------------------------------------------
 * errors
 * ----------------------------------------------------------------
 */

/* For ereport(): the statement that was sent, if there is one. */
static int
remote_context(const char *sql)
{
	int			len;

	if (sql == NULL)
		return 0;
	len = strlen(sql);
	if (len > MAX_SQL_IN_MESSAGE)
		errcontext("remote SQL: %.*s ...",
				   pg_mbcliplen(sql, len, MAX_SQL_IN_MESSAGE), sql);
	else
		errcontext("remote SQL: %s", sql);
	return 0;
}

/* The connection itself failed: class 08, with libpq's words. */
void
migrate_report_conn_error(MigrateConn *conn, const char *sql)
{
	char	   *words = NULL;

	if (conn->pg)
		words = pchomp(PQerrorMessage(conn->pg));
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("connection to server \"%s\" was lost", migrate_conn_name(conn)),
			 words && words[0] ? errdetail_internal("%s", words) : 0,
			 remote_context(sql)));
	pg_unreachable();
}

/*
 * A remote statement failed: an error with its SQLSTATE, or class 08 when the
 * result has none since the connection broke.  Clears the result.
 */
void
migrate_report_remote_error(struct pg_result *res, MigrateConn *conn,
							const char *sql)
{
	char	   *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	char	   *primary = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	char	   *detail = PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL);
	char	   *hint = PQresultErrorField(res, PG_DIAG_MESSAGE_HINT);
	char	   *context = PQresultErrorField(res, PG_DIAG_CONTEXT);

	if (state == NULL || primary == NULL)
		migrate_report_conn_error(conn, sql);

	/* copies: the result goes before the error is thrown */
	primary = pstrdup(primary);
	detail = detail ? pstrdup(detail) : NULL;
	hint = hint ? pstrdup(hint) : NULL;
	context = context ? pstrdup(context) : NULL;
	state = pstrdup(state);
	PQclear(res);

	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4])),
			 errmsg("error on server \"%s\": %s", migrate_conn_name(conn), primary),
			 detail ? errdetail_internal("%s", detail) : 0,
			 hint ? errhint("%s", hint) : 0,
			 context ? errcontext("%s", context) : 0,
			 remote_context(sql)));
	pg_unreachable();
}
