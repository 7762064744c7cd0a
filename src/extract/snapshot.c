/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *	  The transaction on the source around a chunk (P1, P2), and waiting
 *	  until what was read there is durable there (P4).
 *
 * Runs in loaders and wherever else a range is read.  On the source it holds
 * ACCESS SHARE on one leaf and one snapshot, for one chunk.
 *
 *	  BEGIN -> LOCK leaf -> snapshot, positions, oid, relfilenode, fingerprint
 *	        -> (reader) -> wait until durable -> COMMIT
 *
 * The lock comes first since it takes no snapshot: a rewrite that commits
 * while we wait for it is then either visible to the snapshot and found by the
 * comparison, or did not happen.  What the comparison finds:
 *
 *	  new storage; another table with the same columns	-> rewritten
 *	  other columns; another place in its tree; gone	-> drift
 *  A crash here ends the connection and with it
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

/* Is the range of a tree that is read through its root? */
static bool
through_root(MigrateRange *range)
{
	return !OidIsValid(range->remote_oid);
}

/*
 * How the leaf is locked.  LOCK TABLE wants a table, and SELECT on all of it;
 * where that is not so (a view, column privileges) an empty SELECT takes the
 * same lock.  Its snapshot is then older than the lock, which is harmless:
 * relfilenode and column names are looked up after it, in the catalog as it
 * is.
 */
static char *
lock_statement(MigrateRange *range, bool by_select)
{
	const char *only;

	if (range == NULL || (through_root(range) && range->fingerprint == NULL && !range->lock))
		return "";
	only = through_root(range) ? "" : "ONLY ";
	if (by_select)
		return psprintf("SELECT FROM %s%s LIMIT 0; ", only, range->relation);
	return psprintf("LOCK TABLE %s%s IN ACCESS SHARE MODE; ", only, range->relation);
}

/*
 * All that is asked once the lock is held, in one query.  The positions are
 * read after the snapshot was taken (P4, P5).
 */
static char *
state_query(MigrateConn *conn, MigrateSource *src, MigrateRange *range, bool by_select)
{
	char	   *relation = "NULL";
	char	   *fingerprint = "NULL, NULL";

	if (range && !through_root(range))
	{
		relation = psprintf("to_regclass(%s)", quote_literal_cstr(range->relation));
		fingerprint = migrate_fingerprint_items(conn, src, relation, by_select);
	}
	return psprintf("SELECT pg_is_in_recovery(), pg_current_snapshot()::text,"
					" CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END,"
					" CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END,"
					" %s::oid, pg_relation_filenode(%s), %s", relation, relation, fingerprint);
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

/* The relation of the plan is not there under its name: what became of it? */
static void
note_gone(MigrateConn *conn, MigrateRange *range, MigrateSourceTxn *txn)
{
	char	   *name;

	if (range->fingerprint == NULL)
	{
		txn->rewritten = true;
		return;
	}
	name = migrate_exec_value(conn,
							  psprintf("SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)"
									   " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
									   " WHERE c.oid = %u", range->remote_oid));
	txn->drift = psprintf("%s %s%s", range->relation,
						  name ? "was renamed to " : "does not exist any more",
						  name ? name : "");
}

/*
 * P1, P2: compare what is locked with the plan, by the result of the state
 * query from column 4 on.
 */
static void
compare_leaf(PGresult *res, MigrateRange *range, MigrateSourceTxn *txn)
{
	char	   *value = migrate_result_value(res, 0, 4);
	Oid			oid = value ? atooid(value) : InvalidOid;
	Oid			filenode;
	bool		other = oid != range->remote_oid;
	char	   *change;

	value = migrate_result_value(res, 0, 5);
	filenode = value ? atooid(value) : InvalidOid;
	change = migrate_fingerprint_change(range->fingerprint,
										migrate_result_value(res, 0, 6),
										migrate_result_value(res, 0, 7), other);
	if (change)
		txn->drift = psprintf("%s %s%s", range->relation,
							  other ? "is another table now, which " : "", change);
	else
		txn->rewritten = other || filenode != range->remote_filenode;
}

/* P2 for a tree that is read through its root: all of it is locked. */
static void
compare_tree(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
			 MigrateSourceTxn *txn)
{
	StringInfoData values;
	PGresult   *res;
	List	   *relations = NIL;
	char	   *missing = NULL;
	char	   *change;

	initStringInfo(&values);
	migrate_tree_values(&values, 0, src);
	res = migrate_exec(conn, migrate_tree_query(values.data, conn->version, false));
	for (int row = 0; row < PQntuples(res); row++)
	{
		int			id;
		MigrateRelation *rel = migrate_tree_relation(res, row, &id);

		relations = lappend(relations, rel);
		if (rel->is_root)
			missing = rel->missing;
	}
	PQclear(res);
	change = migrate_fingerprint_change(range->fingerprint,
										migrate_tree_fingerprint(relations),
										missing, false);
	if (change)
		txn->drift = psprintf("%s %s", range->relation, change);
}

/*
 * P1, P2: open the transaction in which a range is read.  rewritten says that
 * the table has new storage since the plan, or is another one that can be read
 * in the same way; drift, that it cannot: a clause that begins with its name.
 * Then the transaction is not to be used.  For the fdw transport the wrapper has
 * its own transaction, and only what P4 needs is noted.
 */
void
migrate_source_begin(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
					 MigrateSourceTxn *txn)
{
	PGresult   *res;
	char	   *sql;
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

	/* without storage: a view, or a foreign table */
	by_select = range &&
		((!through_root(range) && !OidIsValid(range->remote_filenode)) ||
		 list_member_oid(((RemoteConn *) conn)->not_lockable, range->remote_oid));
	sql = psprintf(BEGIN_READING "%s%s", lock_statement(range, by_select),
				   state_query(conn, src, range, by_select));
	res = migrate_exec_try(conn, sql);
	if (range && !by_select && wants_select(res))
	{
		PQclear(res);
		if (!through_root(range))
			remember_not_lockable(conn, range->remote_oid);
		migrate_source_end(conn);
		by_select = true;
		sql = psprintf(BEGIN_READING "%s%s", lock_statement(range, true),
					   state_query(conn, src, range, true));
		res = migrate_exec_try(conn, sql);
	}
	if (range && says_gone(res))
	{
		PQclear(res);
		migrate_source_end(conn);
		note_gone(conn, range, txn);
		return;
	}
	if (!migrate_result_ok(res))
		migrate_report_remote_error(res, conn, sql);

	txn->in_recovery = strcmp(PQgetvalue(res, 0, 0), "t") == 0;
	txn->snapshot = migrate_result_value(res, 0, 1);
	txn->insert_lsn = parse_lsn(migrate_result_value(res, 0, 2));
	txn->durable = txn->in_recovery ||
		parse_lsn(migrate_result_value(res, 0, 3)) >= txn->insert_lsn;
	if (range && !through_root(range))
		compare_leaf(res, range, txn);
	PQclear(res);
	if (range && through_root(range) && range->fingerprint)
		compare_tree(conn, src, range, txn);
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

/*
 * Does a snapshot of the source, pg_snapshot as text (xmin:xmax:xip,..), see
 * all of these transactions?  They are of the stream, so they have committed;
 * but a commit is there before it is in anybody's sight.
 */
bool
migrate_snapshot_sees(const char *snapshot, const TransactionId *xids, int n)
{
	unsigned long long xmin,
				xmax;
	int			used = 0;

	if (snapshot == NULL || sscanf(snapshot, "%llu:%llu:%n", &xmin, &xmax, &used) < 2 || used == 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the source has given no snapshot")));
	for (int i = 0; i < n; i++)
		if ((int32) (xids[i] - (TransactionId) xmax) >= 0)
			return false;
	for (const char *at = snapshot + used; *at; at++)
	{
		char	   *end;
		TransactionId xid = (TransactionId) strtoull(at, &end, 10);

		for (int i = 0; i < n; i++)
			if (xids[i] == xid)
				return false;
		if (*end == '\0')
			break;
		at = end;
	}
	return true;
}
