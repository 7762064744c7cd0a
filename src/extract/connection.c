/*-------------------------------------------------------------------------
 *
 * connection.c
 *	  A libpq connection to the source, made as postgres_fdw would make it.
 *
 * The options are those of the foreign server and of the owner's user mapping
 * (what postgres_fdw's validator let in and libpq knows), the password rule is
 * postgres_fdw's, checked before and after connecting against the owner, and
 * the session is set up for honest reading (P6).  Runs in any process; needs a
 * transaction for the catalogs.
 *
 * libpq's own connect would block and, polled from outside, knows no time-out,
 * so the loop here has both the latch and the clock.  A connection belongs to
 * the memory context that was current when it was made: resetting that closes
 * it, gives fd.c its descriptor back, and so an error leaks nothing.
 *
 * No password reaches a message: libpq's words hold none, and options are
 * never printed.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_proc.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

typedef struct ConnOptions
{
	const char **keywords;
	const char **values;
	int			n;
} ConnOptions;

/* ----------------------------------------------------------------
 * options
 * ----------------------------------------------------------------
 */

/*
 * Is this an option that goes to libpq?  postgres_fdw's own (fetch_size, ...)
 * do not, nor those that it keeps to itself.
 */
static bool
is_libpq_option(const char *keyword)
{
	static PQconninfoOption *known = NULL;	/* for the life of the process */

	if (known == NULL)
	{
		known = PQconndefaults();
		if (known == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("out of memory"),
					 errdetail("Could not get libpq's default connection options.")));
	}
	if (strcmp(keyword, "replication") == 0 ||
		strcmp(keyword, "fallback_application_name") == 0 ||
		strcmp(keyword, "client_encoding") == 0)
		return false;
	for (PQconninfoOption *opt = known; opt->keyword; opt++)
	{
		if (strcmp(opt->keyword, keyword) == 0)
			return strchr(opt->dispchar, 'D') == NULL;
	}
	return false;
}

static void
add_option(ConnOptions *opts, const char *keyword, const char *value)
{
	opts->keywords[opts->n] = keyword;
	opts->values[opts->n] = value;
	opts->n++;
}

static void
add_option_list(ConnOptions *opts, List *defelems)
{
	ListCell   *lc;

	foreach(lc, defelems)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (is_libpq_option(def->defname))
			add_option(opts, def->defname, defGetString(def));
	}
}

static const char *
find_option(ConnOptions *opts, const char *keyword)
{
	const char *value = NULL;

	for (int i = 0; i < opts->n; i++)
	{
		if (strcmp(opts->keywords[i], keyword) == 0)
			value = opts->values[i];	/* libpq too takes the last */
	}
	return value;
}

/*
 * Settings of a replication connection, which cannot be given by SET for all
 * of it: those of configure_session(), so that the stream's values read as
 * those of a copy do (P6, P7).
 */
#define REPLICATION_SETTINGS \
	"-c search_path=pg_catalog -c timezone=GMT -c datestyle=ISO" \
	" -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex" \
	" -c xmlbinary=base64 -c xmloption=content -c lc_monetary=C" \
	" -c quote_all_identifiers=off -c row_security=off -c statement_timeout=0" \
	" -c lock_timeout=0 -c idle_in_transaction_session_timeout=0"

/* migrate/<job>/<role>, as long as a name may be */
char *
migrate_application_name(const char *job, const char *role)
{
	char	   *name = psprintf("migrate/%s/%s", job, role);
	int			len = strlen(name);

	if (len >= NAMEDATALEN)
		name[pg_mbcliplen(name, len, NAMEDATALEN - 1)] = '\0';
	return name;
}

/*
 * Everything for PQconnectStartParams; a later value of an option wins over an
 * earlier one.  encoding not NULL: for a replication connection, which gives
 * values in that encoding.
 */
static void
build_options(ConnOptions *opts, ForeignServer *server, ForeignDataWrapper *fdw,
			  UserMapping *user, const char *job, const char *role,
			  const char *encoding)
{
	int			max = list_length(server->options) + list_length(fdw->options) +
	list_length(user->options) + 10;

	opts->keywords = palloc0(max * sizeof(char *));
	opts->values = palloc0(max * sizeof(char *));
	opts->n = 0;

	/* a dead network is noticed in about a minute, unless told otherwise */
	add_option(opts, "keepalives", "1");
	add_option(opts, "keepalives_idle", "30");
	add_option(opts, "keepalives_interval", "10");
	add_option(opts, "keepalives_count", "3");
	add_option_list(opts, fdw->options);
	add_option_list(opts, server->options);
	add_option_list(opts, user->options);
	add_option(opts, "application_name", migrate_application_name(job, role));
	add_option(opts, "client_encoding", encoding ? encoding : GetDatabaseEncodingName());
	if (encoding)
	{
		const char *given = find_option(opts, "options");

		add_option(opts, "replication", "database");
		add_option(opts, "options", given ? psprintf("%s %s", given, REPLICATION_SETTINGS) :
				   REPLICATION_SETTINGS);
	}
}

/* ----------------------------------------------------------------
 * who may connect
 * ----------------------------------------------------------------
 */

/* By its handler, since a wrapper's name is the DBA's to choose. */
bool
migrate_server_is_postgres(Oid server)
{
	ForeignServer *srv = GetForeignServer(server);
	ForeignDataWrapper *fdw = GetForeignDataWrapper(srv->fdwid);
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(fdw->fdwhandler));
	char	   *handler = NULL;
	bool		isnull;

	if (HeapTupleIsValid(tuple))
	{
		handler = TextDatumGetCString(SysCacheGetAttr(PROCOID, tuple,
													  Anum_pg_proc_prosrc, &isnull));

		ReleaseSysCache(tuple);
	}
	return handler != NULL && strcmp(handler, "postgres_fdw_handler") == 0;
}

/* The mapping of "owner", or PUBLIC's, with an error of our own for neither. */
static UserMapping *
user_mapping(ForeignServer *server, Oid owner)
{
	if (!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(owner),
							   ObjectIdGetDatum(server->serverid)) &&
		!SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							   ObjectIdGetDatum(InvalidOid),
							   ObjectIdGetDatum(server->serverid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no user mapping for \"%s\" on server \"%s\"",
						GetUserNameFromId(owner, false), server->servername),
				 errhint("Use CREATE USER MAPPING FOR %s SERVER %s OPTIONS (user '...', password '...').",
						 quote_identifier(GetUserNameFromId(owner, false)),
						 quote_identifier(server->servername))));
	return GetUserMapping(owner, server->serverid);
}

/*
 * May this user connect without a password?  A superuser may, and so may one
 * in whose mapping a superuser set password_required 'false'.
 */
static bool
password_required(UserMapping *user)
{
	ListCell   *lc;

	if (superuser_arg(user->userid))
		return false;
	foreach(lc, user->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, "password_required") == 0)
			return defGetBoolean(def);
	}
	return true;
}

static void
password_error(const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
			 errmsg("password is required"),
			 errdetail("%s", detail),
			 errhint("%s", hint)));
}

/* Before connecting: the password must be in the mapping, not in .pgpass. */
static void
check_password_given(ConnOptions *opts, UserMapping *user)
{
	const char *password = find_option(opts, "password");

	if (password_required(user) && (password == NULL || password[0] == '\0'))
		password_error("Non-superusers must provide a password in the user mapping.",
					   "Add the option \"password\" to the user mapping, or let a superuser set its option password_required to false.");
}

/* After connecting: it must be what opened the door. */
static void
check_password_used(RemoteConn *conn, UserMapping *user)
{
	if (password_required(user) && !PQconnectionUsedPassword(conn->pub.pg))
		password_error("Non-superuser cannot connect if the server does not request a password.",
					   "Target server's authentication method must be changed or password_required=false set in the user mapping attributes.");
}

/* ----------------------------------------------------------------
 * connecting
 * ----------------------------------------------------------------
 */

/*
 * Reset callback of the connection's memory context.  A statement under way is
 * cancelled: the source would notice that we are gone only when it next sends
 * something.  A walsender that streams listens, and notices.
 */
static void
close_connection(void *arg)
{
	RemoteConn *conn = arg;

	if (conn->pub.pg)
	{
		if (PQtransactionStatus(conn->pub.pg) == PQTRANS_ACTIVE && !conn->streaming)
			migrate_remote_cancel(conn->pub.pg);
		PQfinish(conn->pub.pg);
	}
	conn->pub.pg = NULL;
	if (conn->owns_fd)
		ReleaseExternalFD();
	conn->owns_fd = false;
}

static RemoteConn *
make_connection_struct(ForeignServer *server)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext,
											   "migrate connection",
											   ALLOCSET_SMALL_SIZES);
	RemoteConn *conn = MemoryContextAllocZero(mcxt, sizeof(RemoteConn));

	conn->mcxt = mcxt;
	conn->pub.server = server->serverid;
	conn->server_name = MemoryContextStrdup(mcxt, server->servername);
	conn->closer.func = close_connection;
	conn->closer.arg = conn;
	MemoryContextRegisterResetCallback(mcxt, &conn->closer);
	return conn;
}

static void
connect_error(RemoteConn *conn, UserMapping *user, const char *words)
{
	ereport(ERROR,
			(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
			 errmsg("could not connect to server \"%s\"", conn->server_name),
			 words && words[0] ? errdetail_internal("%s", words) : 0,
			 errhint("Check the options of the server and of the user mapping for \"%s\", and that the source accepts connections from this host.",
					 MappingUserName(user->userid))));
}

/* Drive libpq's connection state machine until it is done or out of time. */
static void
poll_connection(RemoteConn *conn, UserMapping *user, int timeout_s)
{
	PGconn	   *pg = conn->pub.pg;
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   (int64) timeout_s * 1000);

	/* while the application waits for a cutover, no longer than that */
	bool		in_pause = migrate_remote_deadline != 0 &&
	(timeout_s <= 0 || migrate_remote_deadline < deadline);

	if (in_pause)
		deadline = migrate_remote_deadline;

	while (status != PGRES_POLLING_OK && status != PGRES_POLLING_FAILED)
	{
		int			wanted = status == PGRES_POLLING_READING ?
		WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;
		long		left = -1;
		int			rc;

		if (timeout_s > 0 || in_pause)
		{
			left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
			if (left <= 0)
				connect_error(conn, user, in_pause ?
							  pstrdup("the application has waited longer than max_downtime") :
							  psprintf("timeout expired after %d s", timeout_s));
		}
		rc = WaitLatchOrSocket(MyLatch,
							   WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | wanted |
							   (left >= 0 ? WL_TIMEOUT : 0),
							   PQsocket(pg), left, PG_WAIT_EXTENSION);
		if (rc & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		if (rc & wanted)
			status = PQconnectPoll(pg);
	}
}

static void
open_connection(RemoteConn *conn, ConnOptions *opts, UserMapping *user,
				int connect_timeout_s)
{
	const char *own_timeout = find_option(opts, "connect_timeout");

	if (own_timeout)
		connect_timeout_s = atoi(own_timeout);
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("could not connect to server \"%s\"", conn->server_name),
				 errdetail("There are too many open files on the local server."),
				 errhint("Raise the server's max_files_per_process and/or \"ulimit -n\" limits.")));
	conn->owns_fd = true;
	conn->pub.pg = PQconnectStartParams(opts->keywords, opts->values, false);
	if (conn->pub.pg == NULL)
		connect_error(conn, user, "out of memory");
	if (PQstatus(conn->pub.pg) != CONNECTION_BAD)
		poll_connection(conn, user, connect_timeout_s);
	if (PQstatus(conn->pub.pg) != CONNECTION_OK)
		connect_error(conn, user, pchomp(PQerrorMessage(conn->pub.pg)));
	(void) PQsetnonblocking(conn->pub.pg, 1);
	(void) PQregisterEventProc(conn->pub.pg, migrate_result_event,
							   "migrate", NULL);
	conn->pub.version = PQserverVersion(conn->pub.pg);
}

/*
 * The settings of postgres_fdw, so that values mean the same on both sides,
 * and P6: rows that a policy would hide are an error, and no limit of the role
 * ends a long copy.  One round trip.
 */
static void
configure_session(MigrateConn *conn)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql,
						   "SET search_path = pg_catalog;"
						   "SET timezone = 'GMT';"
						   "SET datestyle = ISO;"
						   "SET intervalstyle = postgres;"
						   "SET extra_float_digits = 3;"
						   "SET bytea_output = hex;"
						   "SET xmlbinary = base64;"
						   "SET xmloption = content;"
						   "SET lc_monetary = 'C';"
						   "SET standard_conforming_strings = on;"
						   "SET quote_all_identifiers = off;"
						   "SET row_security = off;"
						   "SET statement_timeout = 0;"
						   "SET lock_timeout = 0;"
						   "SET idle_in_transaction_session_timeout = 0;"
						   "SET jit = off;");
	if (conn->version >= 140000)
		appendStringInfoString(&sql, "SET idle_session_timeout = 0;");
	if (conn->version >= 170000)
		appendStringInfoString(&sql, "SET transaction_timeout = 0;");
	PQclear(migrate_exec(conn, sql.data));
	pfree(sql.data);
}

/* encoding: see build_options() */
static MigrateConn *
connect_to(Oid server_oid, Oid owner, const char *job, const char *role,
		   int connect_timeout_s, const char *encoding)
{
	ForeignServer *server = GetForeignServer(server_oid);
	ForeignDataWrapper *fdw = GetForeignDataWrapper(server->fdwid);
	UserMapping *user;
	ConnOptions opts;
	RemoteConn *conn;
	AclResult	acl;

	if (!migrate_server_is_postgres(server_oid))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION),
				 errmsg("server \"%s\" is not behind postgres_fdw", server->servername),
				 errdetail("Its wrapper is \"%s\".", fdw->fdwname)));
	acl = migrate_server_aclcheck(server_oid, owner);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FOREIGN_SERVER, server->servername);
	user = user_mapping(server, owner);
	build_options(&opts, server, fdw, user, job, role, encoding);
	check_password_given(&opts, user);

	conn = make_connection_struct(server);
	PG_TRY();
	{
		open_connection(conn, &opts, user, connect_timeout_s);
		check_password_used(conn, user);
		if (encoding == NULL)
			configure_session(&conn->pub);
	}
	PG_CATCH();
	{
		/* the context may be a long-lived one, and this be tried again */
		MemoryContextDelete(conn->mcxt);
		PG_RE_THROW();
	}
	PG_END_TRY();

	pfree(opts.keywords);
	pfree(opts.values);
	return &conn->pub;
}

MigrateConn *
migrate_connect(Oid server_oid, Oid owner, const char *job, const char *role,
				int connect_timeout_s)
{
	return connect_to(server_oid, owner, job, role, connect_timeout_s, NULL);
}

/* In a transaction, as migrate_connect(). */
MigrateConn *
migrate_connect_for_replication(Oid server_oid, Oid owner, const char *slot,
								const char *role, const char *encoding,
								int connect_timeout_s)
{
	return connect_to(server_oid, owner, slot, role, connect_timeout_s, encoding);
}

/* Close it; the pointer is invalid afterwards. */
void
migrate_disconnect(MigrateConn *conn)
{
	if (conn)
		MemoryContextDelete(((RemoteConn *) conn)->mcxt);
}

/* False when it has to be made anew. */
bool
migrate_connection_usable(MigrateConn *conn)
{
	return conn && PQstatus(conn->pg) == CONNECTION_OK;
}
