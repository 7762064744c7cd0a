/*-------------------------------------------------------------------------
 *
 * fence.c
 *	  The fence around the source's tables: who writes gets SQLSTATE 25006 and
 *	  a hint where the tables are now (P25, P27, P28).
 *
 * It is made in two parts, so that the part inside the pause takes the same
 * time for one table as for a thousand:
 *
 *	  arm		a schema with one function, and triggers on every leaf that call
 *				it; it lets everything through.  Long before the pause, a table
 *				at a time
 *	  close		one transaction: LOCK of all tables in one statement, then the
 *				function is replaced by one that refuses
 *
 * A writer that waits behind the lock meets the new function when the
 * transaction commits: its trigger looks the function up after it got its
 * lock.  A writer before us has to end first, since its row lock on the table
 * is in our way.
 *
 *	  missing -> open (arm) -> closed (commit) -> open (lift) .. -> missing (drop)
 *
 * Until its commit the fence exists in the transaction alone: if this process,
 * this server or the network dies, the source rolls it back and opens by
 * itself, at the latest after idle_in_transaction_session_timeout (P25).  After
 * the commit it stays until it is lifted; migrate_fence_look() tells which.
 *
 * The trigger functions are ENABLE ALWAYS, for replica role skips others, and
 * let a session pass that has set migrate.fence_token to the token whose digest
 * is in the function: the way back writes past the fence by it.
 *
 * Process: job worker; the session that ends a job.  Locks on the source: SHARE
 * ROW EXCLUSIVE, which readers do not wait for.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/cutover.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "extract/extract.h"

#define FENCE_FUNCTION "migrate_fence"

/* modes of locks that are in the way of the fence's */
#define FENCE_CONFLICTS "'RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock'," \
	" 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'"

/* in the function's body, behind a comment: how it is recognised */
#define FENCE_MARK "migrate fence closed by "

/* ----------------------------------------------------------------
 * what is to be fenced
 * ----------------------------------------------------------------
 */

/* The source tables of the job that are on its server. */
static List *
sources_of(MigrateJob *job, MemoryContext mcxt)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(job->job_id);
	List	   *sources = NIL;
	int		   *ids;
	uint64		n;

	migrate_spi_exec("SELECT source_id FROM migrate.source_table"
					 " WHERE job_id = $1 AND remote_table IS NOT NULL ORDER BY 1",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	n = SPI_processed;
	ids = palloc(sizeof(int) * (n + 1));
	for (uint64 i = 0; i < n; i++)
		ids[i] = (int) migrate_spi_int64(i, 0, 0);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		sources = lappend(sources, migrate_source_load(ids[i]));
		MemoryContextSwitchTo(old);
	}
	return sources;
}

static void
add_relation(List **names, List **sources, MigrateRelation *rel, MigrateSource *source)
{
	String	   *name = makeString(rel->name);

	if (list_member(*names, name))
		return;
	*names = lappend(*names, name);
	*sources = lappend(*sources, source);
}

/*
 * All tables below the source tables, as they are there now: those that hold
 * rows first, then the partitioned ones, whose lock keeps new partitions out.
 */
static void
find_relations(MigrateFence *fence, List *sources)
{
	StringInfoData values;
	List	   *roots = NIL;
	List	   *root_sources = NIL;
	PGresult   *res;
	ListCell   *lc;

	if (sources == NIL)
		return;
	initStringInfo(&values);
	foreach(lc, sources)
		migrate_tree_values(&values, foreach_current_index(lc), lfirst(lc));
	res = migrate_exec(fence->conn,
					   migrate_tree_query(values.data, fence->conn->version, false));
	for (int row = 0; row < PQntuples(res); row++)
	{
		int			id;
		MigrateRelation *rel = migrate_tree_relation(res, row, &id);

		if (rel->relkind == RELKIND_RELATION)
			add_relation(&fence->relations, &fence->sources, rel, list_nth(sources, id));
		else if (rel->relkind == RELKIND_PARTITIONED_TABLE)
			add_relation(&roots, &root_sources, rel, list_nth(sources, id));
	}
	PQclear(res);
	fence->nleaves = list_length(fence->relations);
	fence->relations = list_concat(fence->relations, roots);
	fence->sources = list_concat(fence->sources, root_sources);
}

static const char *
relation_name(MigrateFence *fence, int i)
{
	return strVal(list_nth(fence->relations, i));
}

/* The same name as long as the job lives, and another for every job. */
static char *
schema_of(MigrateJob *job)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(job->job_id);

	migrate_spi_exec("SELECT pg_catalog.format('migrate_fence_%s_%s', (SELECT d.oid FROM pg_catalog.pg_database d"
					 "  WHERE d.datname = pg_catalog.current_database()),"
					 "  pg_catalog.left(pg_catalog.md5(j.created_at::pg_catalog.text || j.job_id), 12))"
					 " FROM migrate.job j WHERE j.job_id = $1",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	return migrate_spi_text(0, 0);
}

/* What is needed to drop it, when its tables may not be known here any more. */
static MigrateFence *
name_fence(MigrateJob *job, MigrateConn *conn)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateFence *fence = palloc0(sizeof(MigrateFence));
	char	   *schema;

	fence->job = job;
	fence->conn = conn;
	SPI_connect();
	schema = schema_of(job);
	MemoryContextSwitchTo(mcxt);
	fence->schema = pstrdup(quote_identifier(schema));
	fence->trigger = fence->schema;
	fence->truncate_trigger = pstrdup(quote_identifier(psprintf("%s_truncate", schema)));
	SPI_finish();
	MemoryContextSwitchTo(mcxt);
	return fence;
}

MigrateFence *
migrate_fence_create(MigrateJob *job, MigrateConn *conn)
{
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateFence *fence = name_fence(job, conn);
	List	   *sources;

	SPI_connect();
	sources = sources_of(job, mcxt);
	SPI_finish();
	MemoryContextSwitchTo(mcxt);
	find_relations(fence, sources);
	return fence;
}

/* ----------------------------------------------------------------
 * the function
 * ----------------------------------------------------------------
 */

/* NULL: lets everything through. */
static char *
function_ddl(MigrateFence *fence, const char *digest, const char *new_home)
{
	StringInfoData body;
	StringInfoData sql;
	const char *pass = "RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;";

	initStringInfo(&body);
	if (digest == NULL)
		appendStringInfo(&body, "BEGIN %s END", pass);
	else
	{
		appendStringInfo(&body, "-- " FENCE_MARK "%s\n", digest);
		appendStringInfo(&body,
						 "BEGIN\n"
						 "	IF pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to("
						 "coalesce(pg_catalog.current_setting('migrate.fence_token', true), ''),"
						 " 'UTF8')), 'hex') = '%s' THEN %s END IF;\n",
						 digest, pass);
		appendStringInfo(&body,
						 "	RAISE EXCEPTION USING ERRCODE = '25006',\n"
						 "		MESSAGE = pg_catalog.format('table \"%%s.%%s\" cannot be written to any more', TG_TABLE_SCHEMA, TG_TABLE_NAME),\n"
						 "		DETAIL = 'It has been moved to another server.',\n"
						 "		HINT = %s;\nEND",
						 quote_literal_cstr(new_home && new_home[0] ?
											psprintf("Write to %s.", new_home) :
											"Connect to the new server and try again."));
	}
	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE OR REPLACE FUNCTION %s." FENCE_FUNCTION "()"
					 " RETURNS pg_catalog.trigger LANGUAGE plpgsql AS %s",
					 fence->schema, quote_literal_cstr(body.data));
	return sql.data;
}

/* ----------------------------------------------------------------
 * arm
 * ----------------------------------------------------------------
 */

/*
 * P27: on every leaf, rows and TRUNCATE, whatever the session's role.  They are
 * named as the schema, after the job: another one that reads the same table has
 * its own.
 */
static char *
trigger_ddl(MigrateFence *fence, const char *relation)
{
	return psprintf("CREATE TRIGGER %3$s"
					" BEFORE INSERT OR UPDATE OR DELETE ON %1$s"
					" FOR EACH ROW EXECUTE FUNCTION %2$s." FENCE_FUNCTION "();"
					"CREATE TRIGGER %4$s BEFORE TRUNCATE ON %1$s"
					" FOR EACH STATEMENT EXECUTE FUNCTION %2$s." FENCE_FUNCTION "();"
					"ALTER TABLE %1$s ENABLE ALWAYS TRIGGER %3$s;"
					"ALTER TABLE %1$s ENABLE ALWAYS TRIGGER %4$s",
					relation, fence->schema, fence->trigger, fence->truncate_trigger);
}

/* Recorded before it is made (invariant 7); in a transaction of its own. */
void
migrate_fence_record(MigrateFence *fence)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(fence->job->job_id),
	CStringGetTextDatum(fence->schema)};

	SPI_connect();
	migrate_spi_exec("INSERT INTO migrate.made_object (job_id, side, kind, object)"
					 " SELECT $1, 'source', 'fence', $2 WHERE NOT EXISTS"
					 " (SELECT FROM migrate.made_object m WHERE m.job_id = $1"
					 "  AND m.side = 'source' AND m.kind = 'fence' AND m.object = $2)",
					 2, types, values, NULL, SPI_OK_INSERT);
	SPI_finish();
}

/* Leaves (names) that have both triggers of ours, enabled as they must be. */
static List *
armed_relations(MigrateFence *fence)
{
	List	   *armed = NIL;
	PGresult   *res;

	res = migrate_exec(fence->conn,
					   psprintf("SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname)"
								" FROM pg_catalog.pg_trigger t"
								" JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid"
								" JOIN pg_catalog.pg_namespace f ON f.oid = p.pronamespace"
								" JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid"
								" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
								" WHERE f.nspname = %s AND t.tgenabled = 'A'"
								" GROUP BY 1 HAVING count(*) = 2",
								quote_literal_cstr(fence->schema)));
	for (int row = 0; row < PQntuples(res); row++)
		armed = lappend(armed, makeString(migrate_result_value(res, row, 0)));
	PQclear(res);
	return armed;
}

/*
 * Who holds a lock on tables, in one of the modes: pid, or the name of a
 * prepared transaction and when it was prepared.  relations: oids, modes: names,
 * each as the right side of IN.
 */
char *
migrate_holders_query(const char *relations, const char *modes)
{
	return psprintf("SELECT DISTINCT l.pid, x.gid, x.prepared"
					" FROM pg_catalog.pg_locks l"
					" LEFT JOIN pg_catalog.pg_locks t ON l.pid IS NULL AND t.pid IS NULL"
					"  AND t.virtualtransaction = l.virtualtransaction AND t.locktype = 'transactionid' AND t.mode = 'ExclusiveLock'"
					" LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.transaction = t.transactionid"
					" WHERE l.locktype = 'relation' AND l.granted"
					" AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())"
					" AND l.relation IN (%s) AND l.mode IN (%s)"
					" AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()", relations, modes);
}

/* migrate._lock_holders_sql(relations): those in the way of the fence */
PG_FUNCTION_INFO_V1(migrate_lock_holders_sql);
PGDLLEXPORT Datum
migrate_lock_holders_sql(PG_FUNCTION_ARGS)
{
	char	   *relations = text_to_cstring(PG_GETARG_TEXT_PP(0));

	PG_RETURN_TEXT_P(cstring_to_text(migrate_holders_query(relations, FENCE_CONFLICTS)));
}

/*
 * Holders of such locks, for people; null: nobody.
 */
static char *
holders_names_query(const char *relations, const char *modes)
{
	return psprintf("SELECT pg_catalog.string_agg(DISTINCT CASE"
					"  WHEN h.gid IS NOT NULL THEN pg_catalog.format('prepared transaction %%L', h.gid)"
					"  WHEN a.xact_start IS NULL THEN pg_catalog.format('pid %%s (%%s; more is seen with pg_read_all_stats)', a.pid, a.usename)"
					"  ELSE pg_catalog.format('pid %%s (%%s, %%s, transaction %%s old%%s)', a.pid, a.usename, a.state,"
					"   pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - a.xact_start),"
					"   CASE a.backend_type WHEN 'client backend' THEN '' ELSE ', ' || a.backend_type END) END, '; ')"
					" FROM (%s) h LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = h.pid"
					" WHERE h.gid IS NOT NULL OR a.pid IS NOT NULL",
					migrate_holders_query(relations, modes));
}

/* The question who holds a lock that is in the way of closing tables. */
char *
migrate_blockers_query(const char *relations)
{
	return holders_names_query(relations, FENCE_CONFLICTS);
}

/* The fence's tables, as the right side of IN. */
static char *
relations_list(MigrateFence *fence)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < list_length(fence->relations); i++)
		appendStringInfo(&list, "%s%s", i > 0 ? ", " : "",
						 quote_literal_cstr(relation_name(fence, i)));
	return psprintf("SELECT pg_catalog.unnest(ARRAY[%s]::pg_catalog.regclass[])::pg_catalog.oid",
					list.data);
}

/* Who is about to write to the source's tables, for people; NULL: nobody. */
char *
migrate_fence_writers(MigrateFence *fence)
{
	return migrate_exec_value(fence->conn,
							  holders_names_query(relations_list(fence), "'RowExclusiveLock'"));
}

/* Who is in our way on the source; asked after we have let go. */
static char *
name_blockers(MigrateFence *fence)
{
	PGresult   *res = migrate_exec_try(fence->conn, migrate_blockers_query(relations_list(fence)));

	if (!migrate_result_ok(res) || PQgetisnull(res, 0, 0))
		return pstrdup(MIGRATE_NO_BLOCKER);
	return migrate_result_value(res, 0, 0);
}

/* False when somebody else's lock is in the way for longer than lock_ms. */
static bool
arm_relation(MigrateFence *fence, const char *relation, int lock_ms)
{
	char	   *sql = psprintf("BEGIN; SET LOCAL lock_timeout = %1$d;"
							   " SET LOCAL client_min_messages = warning;"
							   " DROP TRIGGER IF EXISTS %3$s ON %2$s;"
							   " DROP TRIGGER IF EXISTS %4$s ON %2$s;"
							   " %5$s; COMMIT", lock_ms, relation,
							   fence->trigger, fence->truncate_trigger,
							   trigger_ddl(fence, relation));
	PGresult   *res = migrate_exec_try(fence->conn, sql);
	bool		armed = migrate_result_ok(res);

	if (!armed && !migrate_result_is(res, ERRCODE_LOCK_NOT_AVAILABLE) &&
		!migrate_result_is(res, ERRCODE_T_R_DEADLOCK_DETECTED))
		migrate_report_remote_error(res, fence->conn, sql);
	PQclear(res);
	if (!armed)
		migrate_fence_rollback(fence);
	return armed;
}

bool
migrate_fence_arm(MigrateFence *fence, int lock_ms, int *made, char **blockers)
{
	List	   *armed;

	if (migrate_fence_look(fence, NULL) == MIGRATE_FENCE_MISSING)
		PQclear(migrate_exec(fence->conn,
							 psprintf("BEGIN; CREATE SCHEMA IF NOT EXISTS %1$s; %2$s;"
									  " COMMENT ON SCHEMA %1$s IS"
									  " 'refuses writes to tables that have been moved away; made by migrate'; COMMIT",
									  fence->schema, function_ddl(fence, NULL, NULL))));
	armed = armed_relations(fence);
	for (int i = 0; i < fence->nleaves; i++)
	{
		if (list_member(armed, list_nth(fence->relations, i)))
			continue;
		CHECK_FOR_INTERRUPTS();
		if (!arm_relation(fence, relation_name(fence, i), lock_ms))
		{
			*blockers = name_blockers(fence);
			return false;
		}
		(*made)++;
	}
	return true;
}

/* ----------------------------------------------------------------
 * the transaction that is the fence
 * ----------------------------------------------------------------
 */

/*
 * lock_timeout is per lock; statement_timeout bounds the whole statement, so
 * that a writer never waits behind us for longer, however many tables.
 */
bool
migrate_fence_lock(MigrateFence *fence, int lock_ms, int64 idle_ms, char **blockers)
{
	StringInfoData sql;
	PGresult   *res;

	initStringInfo(&sql);
	appendStringInfo(&sql, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
					 " SET LOCAL lock_timeout = %d; SET LOCAL statement_timeout = %d;"
					 " SET LOCAL synchronous_commit = on;"
					 " SET LOCAL idle_in_transaction_session_timeout = %d; LOCK TABLE ",
					 lock_ms, lock_ms, (int) Min(Max(idle_ms, 1000), INT_MAX));
	for (int i = 0; i < list_length(fence->relations); i++)
		appendStringInfo(&sql, "%sONLY %s", i > 0 ? ", " : "", relation_name(fence, i));
	appendStringInfoString(&sql, " IN SHARE ROW EXCLUSIVE MODE;"
						   " SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0");
	res = migrate_exec_try(fence->conn, sql.data);
	if (migrate_result_ok(res))
	{
		PQclear(res);
		return true;
	}
	if (!migrate_result_is(res, ERRCODE_LOCK_NOT_AVAILABLE) &&
		!migrate_result_is(res, ERRCODE_QUERY_CANCELED) &&
		!migrate_result_is(res, ERRCODE_T_R_DEADLOCK_DETECTED))
		migrate_report_remote_error(res, fence->conn, sql.data);
	PQclear(res);
	migrate_fence_rollback(fence);
	if (blockers)
		*blockers = name_blockers(fence);
	return false;
}

void
migrate_fence_close(MigrateFence *fence, const char *digest, const char *new_home)
{
	PQclear(migrate_exec(fence->conn, function_ddl(fence, digest, new_home)));
}

void
migrate_fence_commit(MigrateFence *fence)
{
	PGresult   *res = migrate_exec(fence->conn, "COMMIT");

	/* a failed transaction says ROLLBACK to a COMMIT, without an error */
	if (strcmp(PQcmdStatus(res), "COMMIT") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_IN_FAILED_SQL_TRANSACTION),
				 errmsg("the fence's transaction was rolled back by server \"%s\"",
						migrate_conn_name(fence->conn))));
	PQclear(res);
}

void
migrate_fence_rollback(MigrateFence *fence)
{
	migrate_exec_quietly(fence->conn, "ROLLBACK");
}

/*
 * A COMMIT whose answer was lost may still be under way.  Its session holds
 * the lock on the tables until it is over, which we wait for; one that only
 * idles there is ended.
 */
void
migrate_fence_end_others(MigrateFence *fence)
{
	PQclear(migrate_exec(fence->conn,
						 psprintf("SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a"
								  " WHERE a.application_name = %s AND a.usename = current_user"
								  " AND a.datname = pg_catalog.current_database()"
								  " AND a.pid <> pg_catalog.pg_backend_pid()",
								  quote_literal_cstr(migrate_application_name(fence->job->name,
																			  MIGRATE_FENCE_ROLE)))));
	if (fence->nleaves > 0)
		PQclear(migrate_exec(fence->conn,
							 psprintf("BEGIN; LOCK TABLE ONLY %s IN ROW EXCLUSIVE MODE; COMMIT",
									  relation_name(fence, 0))));
}

/* ----------------------------------------------------------------
 * afterwards
 * ----------------------------------------------------------------
 */

/* P28: replacing the function waits for nobody who reads or writes. */
void
migrate_fence_lift(MigrateFence *fence)
{
	PQclear(migrate_exec(fence->conn,
						 psprintf("BEGIN; SET LOCAL synchronous_commit = on; %s; %s; COMMIT",
								  function_ddl(fence, NULL, NULL),
								  migrate_fence_open_reads_sql(fence))));
}

MigrateFenceState
migrate_fence_look(MigrateFence *fence, const char *digest)
{
	PGresult   *res = migrate_exec(fence->conn,
								   psprintf("SELECT p.prosrc FROM pg_catalog.pg_proc p"
											" JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace"
											" WHERE n.nspname = %s AND p.proname = '" FENCE_FUNCTION "'",
											quote_literal_cstr(fence->schema)));
	MigrateFenceState state = MIGRATE_FENCE_MISSING;

	if (PQntuples(res) > 0)
	{
		const char *body = PQgetvalue(res, 0, 0);

		if (strstr(body, FENCE_MARK) == NULL)
			state = MIGRATE_FENCE_OPEN;
		else if (digest && strstr(body, psprintf(FENCE_MARK "%s\n", digest)))
			state = MIGRATE_FENCE_CLOSED;
		else
			state = MIGRATE_FENCE_OTHER;
	}
	PQclear(res);
	return state;
}

char *
migrate_fence_session(const char *token)
{
	return psprintf("SET migrate.fence_token = %s", quote_literal_cstr(token));
}

char *
migrate_fence_drop(MigrateFence *fence, int lock_ms)
{
	char	   *drop = psprintf("DROP SCHEMA IF EXISTS %s CASCADE", fence->schema);
	PGresult   *res = migrate_exec_try(fence->conn,
									   psprintf("BEGIN; SET LOCAL lock_timeout = %d;"
												" SET LOCAL client_min_messages = warning; %s; %s; COMMIT",
												lock_ms, migrate_fence_open_reads_sql(fence), drop));

	if (migrate_result_ok(res))
	{
		PQclear(res);
		return NULL;
	}
	PQclear(res);
	migrate_exec_quietly(fence->conn, "ROLLBACK");
	/* whoever drops it by hand must give readers their rights back first */
	res = migrate_exec_try(fence->conn, psprintf("SELECT 1 WHERE pg_catalog.to_regclass(%s) IS NOT NULL",
												 quote_literal_cstr(psprintf("%s.revoked", fence->schema))));
	if (!migrate_result_ok(res) || PQntuples(res) > 0)
		drop = psprintf("%s; %s", migrate_fence_open_reads_sql(fence), drop);
	PQclear(res);
	return drop;
}

/* migrate._open_reads_sql(schema) */
PG_FUNCTION_INFO_V1(migrate_open_reads_sql);
PGDLLEXPORT Datum
migrate_open_reads_sql(PG_FUNCTION_ARGS)
{
	MigrateFence fence = {.schema = text_to_cstring(PG_GETARG_TEXT_PP(0))};

	PG_RETURN_TEXT_P(cstring_to_text(migrate_fence_open_reads_sql(&fence)));
}

/* migrate._drop_fence(job_id) */
PG_FUNCTION_INFO_V1(migrate_drop_fence);
PGDLLEXPORT Datum
migrate_drop_fence(PG_FUNCTION_ARGS)
{
	MigrateJob *job = migrate_job_load(PG_GETARG_INT32(0));
	MigrateConn *conn;
	char	   *refused;

	if (job == NULL)
		PG_RETURN_NULL();
	conn = migrate_connect(job->server, job->owner, job->name, "cutover",
						   job->connect_timeout_s);
	refused = migrate_fence_drop(name_fence(job, conn), job->lock_timeout_ms);
	migrate_disconnect(conn);
	migrate_fault("finish-fence");
	if (refused == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(refused));
}
