/*-------------------------------------------------------------------------
 *
 * remote_query.c
 *	  migrate._remote_query(): one read-only statement at the source, for the
 *	  definitions, which are written in SQL.
 *
 * Runs in a user's backend as the current user.  The connection is kept to the
 * end of the transaction, since a definition asks several questions in a row;
 * a changed server or user mapping ends it earlier.  Nothing is left behind.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#define REMOTE_QUERY_CONNECT_TIMEOUT_S 10

/* lives in TopTransactionContext */
static MigrateConn *kept_conn = NULL;
static Oid	kept_user = InvalidOid;
static bool kept_stale = false;

static void
forget_connection(void *arg)
{
	if (kept_conn == arg)
		kept_conn = NULL;
}

static void
mark_stale(Datum arg, int cacheid, uint32 hashvalue)
{
	kept_stale = true;
}

/* The connection of this transaction to the server, as the current user. */
static MigrateConn *
transaction_connection(Oid server)
{
	static bool registered = false;
	MemoryContext oldcxt;
	MemoryContextCallback *callback;

	if (!registered)
	{
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, mark_stale, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, mark_stale, (Datum) 0);
		registered = true;
	}
	if (kept_conn && !kept_stale && kept_conn->server == server &&
		kept_user == GetUserId() && migrate_connection_usable(kept_conn))
		return kept_conn;
	if (kept_conn)
	{
		MigrateConn *old = kept_conn;

		kept_conn = NULL;
		migrate_disconnect(old);
	}

	oldcxt = MemoryContextSwitchTo(TopTransactionContext);
	callback = palloc0(sizeof(MemoryContextCallback));
	kept_stale = false;
	kept_conn = migrate_connect(server, GetUserId(), "-", "definition",
								REMOTE_QUERY_CONNECT_TIMEOUT_S);
	kept_user = GetUserId();
	callback->func = forget_connection;
	callback->arg = kept_conn;
	MemoryContextRegisterResetCallback(TopTransactionContext, callback);
	MemoryContextSwitchTo(oldcxt);
	return kept_conn;
}

/* One row as an object of strings and nulls. */
static Jsonb *
row_to_jsonb(PGresult *res, int row)
{
	JsonbParseState *state = NULL;
	JsonbValue *object;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int col = 0; col < PQnfields(res); col++)
	{
		JsonbValue	v;

		v.type = jbvString;
		v.val.string.val = PQfname(res, col);
		v.val.string.len = strlen(v.val.string.val);
		pushJsonbValue(&state, WJB_KEY, &v);
		if (PQgetisnull(res, row, col))
			v.type = jbvNull;
		else
		{
			v.type = jbvString;
			v.val.string.val = PQgetvalue(res, row, col);
			v.val.string.len = PQgetlength(res, row, col);
		}
		pushJsonbValue(&state, WJB_VALUE, &v);
	}
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(object);
}

PG_FUNCTION_INFO_V1(migrate_remote_query);
PGDLLEXPORT Datum migrate_remote_query(PG_FUNCTION_ARGS);

/*
 * migrate._remote_query(server oid, sql text) RETURNS SETOF jsonb
 */
Datum
migrate_remote_query(PG_FUNCTION_ARGS)
{
	Oid			server = PG_GETARG_OID(0);
	char	   *sql = text_to_cstring(PG_GETARG_TEXT_PP(1));
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MigrateConn *conn;
	PGresult   *res;
	MemoryContext row_mcxt;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	conn = transaction_connection(server);

	/* an earlier call may have ended in an error */
	if (PQtransactionStatus(conn->pg) != PQTRANS_IDLE)
		migrate_source_end(conn);
	PQclear(migrate_exec(conn, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"));
	res = migrate_exec_extended(conn, sql);
	migrate_source_end(conn);

	row_mcxt = AllocSetContextCreate(CurrentMemoryContext, "migrate remote row",
									 ALLOCSET_DEFAULT_SIZES);
	for (int row = 0; row < PQntuples(res); row++)
	{
		MemoryContext oldcxt = MemoryContextSwitchTo(row_mcxt);
		Datum		value = JsonbPGetDatum(row_to_jsonb(res, row));
		bool		isnull = false;

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
		MemoryContextSwitchTo(oldcxt);
		MemoryContextReset(row_mcxt);
	}
	MemoryContextDelete(row_mcxt);
	PQclear(res);
	return (Datum) 0;
}
