/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *	  The transaction on the source around a chunk (P1), and waiting until
 *	  what was read there is durable there (P4).
 *
 * Runs in loaders and wherever else a range is read.  On the source it holds
 * ACCESS SHARE on one leaf and one snapshot, for one chunk.
 *
 *	  BEGIN -> LOCK leaf -> snapshot, positions, oid and relfilenode
 *	        -> (reader) -> wait until durable -> COMMIT
 *
 * The lock comes first since it takes no snapshot: a rewrite that commits
 * while we wait for it is then either visible to the snapshot and found by the
 * comparison, or did not happen.  A crash here ends the connection and with it
 * the transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

/* waiting for a flush: nudge the source after so long, and again */
#define NUDGE_AFTER_MS 100
#define NUDGE_EVERY_MS 5000

#define BEGIN_READING "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; "

static XLogRecPtr
parse_lsn(const char *s)
{
	return s ? DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(s))) :
		InvalidXLogRecPtr;
}

/*
 * How the leaf is locked.  LOCK TABLE wants a table, and SELECT on all of it;
 * where that is not so (a materialized view, column privileges) an empty
 * SELECT takes the same lock.  Its snapshot is then older than the lock, which
 * is harmless: relfilenode is looked up after it, in the catalog as it is.
 */
static char *
lock_statement(MigrateRange *range, bool by_select)
{
	if (range == NULL || !OidIsValid(range->remote_oid))
		return "";
	if (by_select)
		return psprintf("SELECT FROM ONLY %s LIMIT 0; ", range->relation);
	if (!OidIsValid(range->remote_filenode))
		return "";				/* a view: nothing to be rewritten */
	return psprintf("LOCK TABLE ONLY %s IN ACCESS SHARE MODE; ", range->relation);
}

/*
 * All that is asked once the lock is held, in one query.  The positions are
 * read after the snapshot was taken (P4, P5).
 */
static char *
state_query(MigrateRange *range)
{
	char	   *relation = "NULL";

	if (range && OidIsValid(range->remote_oid))
		relation = psprintf("to_regclass(%s)", quote_literal_cstr(range->relation));
	return psprintf("SELECT pg_is_in_recovery(), pg_current_snapshot()::text,"
					" CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END,"
					" CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END,"
					" %s::oid, pg_relation_filenode(%s)", relation, relation);
}

/* Errors of the lock that mean: this is not the table of the plan. */
static bool
says_gone(PGresult *res)
{
	return migrate_result_is(res, ERRCODE_UNDEFINED_TABLE) ||
		migrate_result_is(res, ERRCODE_INVALID_SCHEMA_NAME);
}

static bool
wants_select(PGresult *res)
{
	return migrate_result_is(res, ERRCODE_WRONG_OBJECT_TYPE) ||
		migrate_result_is(res, ERRCODE_INSUFFICIENT_PRIVILEGE);
}

/* For the life of the connection, so that the source's log shows it once. */
static void
remember_not_lockable(MigrateConn *conn, Oid relation)
{
	RemoteConn *remote = (RemoteConn *) conn;
	MemoryContext oldcxt = MemoryContextSwitchTo(remote->mcxt);

	remote->not_lockable = lappend_oid(remote->not_lockable, relation);
	MemoryContextSwitchTo(oldcxt);
}

/*
 * P1: open the transaction in which a range is read.  rewritten says that the
 * table is gone, another one, or has new storage since the plan.  For the fdw
 * transport the wrapper has its own transaction, and only what P4 needs is
 * noted.
 */
void
migrate_source_begin(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
					 MigrateSourceTxn *txn)
{
	PGresult   *res;
	char	   *sql;
	Oid			oid = InvalidOid;
	Oid			filenode = InvalidOid;
	char	   *value;
	bool		by_select;

	memset(txn, 0, sizeof(MigrateSourceTxn));
	if (conn == NULL || src->transport == 'f')
	{
		/* its rows may be of this server all the same: see wait_durable */
		txn->durable = conn == NULL || conn->server != src->server;
		return;
	}
	if (conn->pg && PQtransactionStatus(conn->pg) != PQTRANS_IDLE)
		migrate_source_end(conn);

	by_select = range &&
		list_member_oid(((RemoteConn *) conn)->not_lockable, range->remote_oid);
	sql = psprintf(BEGIN_READING "%s%s", lock_statement(range, by_select),
				   state_query(range));
	res = migrate_exec_try(conn, sql);
	if (!by_select && wants_select(res))
	{
		PQclear(res);
		remember_not_lockable(conn, range->remote_oid);
		migrate_source_end(conn);
		sql = psprintf(BEGIN_READING "%s%s", lock_statement(range, true),
					   state_query(range));
		res = migrate_exec_try(conn, sql);
	}
	if (says_gone(res))
	{
		PQclear(res);
		migrate_source_end(conn);
		txn->rewritten = true;
		return;
	}
	if (!migrate_result_ok(res))
		migrate_report_remote_error(res, conn, sql);

	txn->in_recovery = strcmp(PQgetvalue(res, 0, 0), "t") == 0;
	txn->snapshot = migrate_result_value(res, 0, 1);
	txn->insert_lsn = parse_lsn(migrate_result_value(res, 0, 2));
	txn->durable = txn->in_recovery ||
		parse_lsn(migrate_result_value(res, 0, 3)) >= txn->insert_lsn;
	if ((value = migrate_result_value(res, 0, 4)) != NULL)
		oid = atooid(value);
	if ((value = migrate_result_value(res, 0, 5)) != NULL)
		filenode = atooid(value);
	if (range && OidIsValid(range->remote_oid))
		txn->rewritten = oid != range->remote_oid ||
			filenode != range->remote_filenode;
	PQclear(res);
}

/*
 * Make the source's WAL writer go as far as the position we wait for.  By
 * itself it flushes up to the last commit, and the position may lie behind
 * that, in a transaction that idles: an empty transaction with an id moves the
 * mark.  (A logical message would flush at once, but others may decode them.)
 */
static void
nudge(MigrateConn *conn)
{
	migrate_source_end(conn);
	PQclear(migrate_exec(conn, "SELECT txid_current()"));
}

/*
 * P4: return when everything that the snapshot saw is durable on the source.
 * The source's transaction may be ended by this: nothing is read after it.
 */
void
migrate_source_wait_durable(MigrateConn *conn, MigrateSourceTxn *txn)
{
	long		delay = 1;
	long		waited = 0;
	long		next_nudge = NUDGE_AFTER_MS;

	if (txn->durable || conn == NULL)
		return;

	if (txn->insert_lsn == InvalidXLogRecPtr)
	{
		/* read by a wrapper, whose snapshot is older than this position */
		txn->insert_lsn =
			parse_lsn(migrate_exec_value(conn,
										 "SELECT CASE WHEN NOT pg_is_in_recovery()"
										 " THEN pg_current_wal_insert_lsn() END"));
		if (txn->insert_lsn == InvalidXLogRecPtr)
		{
			txn->in_recovery = true;
			txn->durable = true;
			return;
		}
	}

	while (parse_lsn(migrate_exec_value(conn, "SELECT pg_current_wal_flush_lsn()")) <
		   txn->insert_lsn)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 delay, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		waited += delay;
		delay = Min(delay * 2, 50);
		if (waited >= next_nudge)
		{
			nudge(conn);
			next_nudge = waited + NUDGE_EVERY_MS;
		}
	}
	txn->durable = true;
}

/*
 * End the transaction on the source, whatever its state.  Never an error: a
 * lost connection has ended it too, and its next use will say so.
 */
void
migrate_source_end(MigrateConn *conn)
{
	if (conn == NULL || PQstatus(conn->pg) != CONNECTION_OK)
		return;
	if (PQtransactionStatus(conn->pg) == PQTRANS_ACTIVE)
		migrate_remote_settle(conn);
	if (PQstatus(conn->pg) != CONNECTION_OK)
		return;
	if (PQtransactionStatus(conn->pg) != PQTRANS_IDLE)
		migrate_exec_quietly(conn, "ROLLBACK");
}
