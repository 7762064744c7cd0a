/*-------------------------------------------------------------------------
 *
 * external.c
 *	  A source that the DBA fences by his own means (fence => 'external'): a
 *	  pooler that is paused, privileges revoked, an application in maintenance.
 *
 * Nothing is made on the source and nothing locked there: reading it and its
 * stream is enough.  His hooks and gates of phase "fence" close it, those of
 * "lift" open it again.  That it is closed is his word; what can be seen of it is
 * looked at:
 *
 *	  fence hooks -> transactions that were open then have ended -> position F
 *	  -> drained to F, apply stopped: nothing of the tables applied beyond F
 *	  -> position G: nothing of the tables in the spool up to G, no writer's lock
 *	  -> open
 *	  -> every few seconds, as long as it is cut over: nothing but what we brought
 *
 * Whoever begins to write between the last look and the opening, and whoever
 * writes after it, is seen when his commit comes in the stream: an alert, and
 * letters of stage "late" for the rows.  That is the guarantee that is not given:
 * without a fence of ours a write can get through, but not unseen.
 *
 * What the way back brings comes in the stream, too; it begins each of its
 * transactions with a message that has the cutover's digest (source 14 or later).
 *
 *	  crash		before the opening		undone by the next job worker: lift hooks
 *	  source's	before the opening		the same, as soon as it can be reached
 *
 * so lift hooks run at least once, and have to bear a second time.
 *
 * Runs in the job worker, states cutting_over, cut_over, rolling_back; outside
 * a transaction unless it says else.  Locks: none.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "cutover/driver.h"
#include "cutover/external.h"
#include "extract/extract.h"
#include "extract/stream.h"

/* between two looks at what nobody wakes us for on the source, ms */
#define LOOK_AGAIN 20

/* between tries to run the lift hooks on a source that does not answer, ms */
#define LIFT_AGAIN 1000

/* letters of one look; the event has the number of all changes */
#define MAX_LETTERS 1000

/* ----------------------------------------------------------------
 * the fence
 * ----------------------------------------------------------------
 */

/*
 * Transactions of this database that might write: every session in one holds
 * its virtual transaction id, which all may see.  Not ours, and not those of
 * autovacuum and the like, which have no user.  For a format string.
 */
#define OPEN_TRANSACTIONS \
	"SELECT l.virtualtransaction AS id, pg_catalog.format('pid %%s (%%s%%s)', a.pid, a.usename," \
	"  CASE WHEN a.xact_start IS NULL THEN '; more is seen with pg_read_all_stats'" \
	"  ELSE ', ' || a.state || ', transaction '" \
	"   || pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - a.xact_start) || ' old' END) AS who" \
	" FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid" \
	" WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.granted" \
	" AND a.datname = pg_catalog.current_database() AND a.usename IS NOT NULL" \
	" AND a.pid <> pg_catalog.pg_backend_pid()" \
	" AND NOT (a.usename = current_user AND a.application_name LIKE 'migrate/%%')" \
	" UNION ALL SELECT 'prepared ' || p.gid, pg_catalog.format('prepared transaction %%L', p.gid)" \
	" FROM pg_catalog.pg_prepared_xacts p WHERE p.database = pg_catalog.current_database()"

static void
wait_for_open_transactions(Cutover *c)
{
	char	   *ids = migrate_exec_value(c->conn, psprintf("SELECT coalesce(pg_catalog.array_agg(o.id), '{}')::pg_catalog.text"
														   " FROM (" OPEN_TRANSACTIONS ") o"));
	char	   *query = psprintf("SELECT pg_catalog.string_agg(DISTINCT o.who, '; ') FROM (" OPEN_TRANSACTIONS ") o"
								 " WHERE o.id = ANY (%s::pg_catalog.text[])", quote_literal_cstr(ids));

	/* the last question has to be answered within the time, too */
	int64		patience = c->row->max_downtime_ms - Min(100, c->row->max_downtime_ms / 10);
	bool		told = false;
	char	   *who;

	while ((who = migrate_exec_value(c->conn, query)) != NULL)
	{
		if (migrate_cutover_ms_since(c->paused_at) + LOOK_AGAIN > patience)
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("transactions that were open when the source was fenced have not ended within max_downtime"),
					 errdetail_internal("%s.", who),
					 errhint("End them together with the fence, for example by a hook of phase \"fence\".")));
		if (!told)
			migrate_cutover_event(c->row, "info", "fence",
								  "waiting for transactions that were open when the source was fenced: %s", who);
		told = true;
		migrate_cutover_doze(LOOK_AGAIN);
	}
}

/*
 * A gate is the DBA's own time: max_downtime counts from where he says that it
 * is closed.
 */
char *
migrate_external_fence(Cutover *c)
{
	TimestampTz begin = GetCurrentTimestamp();

	c->paused_at = begin;
	migrate_remote_deadline = TimestampTzPlusMilliseconds(begin, c->row->max_downtime_ms);
	migrate_cutover_hooks(c->row, "fence", c->conn, c->row->gate_timeout_ms);
	if (c->row->passed_gate)
		c->paused_at = GetCurrentTimestamp();
	migrate_remote_deadline = TimestampTzPlusMilliseconds(c->paused_at, c->row->max_downtime_ms);
	migrate_fault("cutover-stated");
	migrate_cutover_deadline(c);
	wait_for_open_transactions(c);
	c->fence_lsn = migrate_cutover_source_position(c->conn);
	return psprintf("by other means, up to %X/%X", LSN_FORMAT_ARGS(c->fence_lsn));
}

/*
 * Lift hooks, until the source has answered: whoever closed it by a hook relies
 * on us to open it again.  A hook that fails there is told.
 */
void
migrate_external_lift(Cutover *c)
{
	MemoryContext mcxt = CurrentMemoryContext;
	volatile bool told = false;

	for (;;)
	{
		ErrorData  *volatile edata = NULL;

		PG_TRY();
		{
			migrate_cutover_hooks(c->row, "lift", NULL, c->row->gate_timeout_ms);
		}
		PG_CATCH();
		{
			edata = migrate_recover(mcxt);
		}
		PG_END_TRY();
		MemoryContextSwitchTo(mcxt);
		if (edata == NULL)
			return;
		if (!told)
			migrate_cutover_event(c->row, "alert", "fence",
								  "the source cannot be opened yet, it is tried again: %s", edata->message);
		told = true;
		FreeErrorData(edata);
		migrate_cutover_doze(LIFT_AGAIN);
	}
}

/* Has this cutover come to its fence hooks? */
bool
migrate_external_begun(Cutover *c)
{
	return migrate_cutover_call(c->row,
								"SELECT count(*) FROM migrate.cutover_step s JOIN migrate.cutover c USING (cutover_id)"
								" WHERE c.job_id = $1 AND c.state = 'running' AND s.step = 'fence'") > 0;
}

/* ----------------------------------------------------------------
 * what is in the spool and not applied
 * ----------------------------------------------------------------
 */

/* a table of the stream */
typedef struct StrayTable
{
	Oid			oid;			/* hash key */
	MigrateRemoteRelation *remote;
	MigrateSource *source;		/* NULL: not of this job */
} StrayTable;

typedef struct Stray
{
	MigrateJob *job;
	MigrateFence *fence;		/* for the names of its tables */
	const char *mark;			/* of transactions of ours */
	bool		letters;		/* write them */

	/* where the looking begins and ends */
	int			stream_id;
	int			encoding;		/* of values; -1: as here */
	XLogRecPtr	from_lsn;
	int64		from_seq;
	XLogRecPtr	to_lsn;
	int64		to_seq;

	/* found */
	int64		changes;
	int64		nletters;
	char	   *table;			/* of the first */
	XLogRecPtr	lsn;			/* of its commit */
	TransactionId xid;
	TimestampTz at;

	/* at hand */
	HTAB	   *tables;
	MigrateMessage msg;
	bool		ours;
} Stray;

/* The source of a table by its name there. */
static void
add_table(Stray *stray, MigrateRemoteRelation *remote)
{
	String	   *name = makeString(quote_qualified_identifier(remote->schema, remote->name));
	StrayTable *table = hash_search(stray->tables, &remote->oid, HASH_ENTER, NULL);
	ListCell   *lc;

	table->remote = remote;
	table->source = NULL;
	foreach(lc, stray->fence->relations)
		if (equal(lfirst(lc), name))
		table->source = list_nth(stray->fence->sources, foreach_current_index(lc));
}

/* False: nothing new is there. */
static bool
load_range(Stray *stray)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(stray->job->job_id);
	bool		isnull;
	MemoryContext mcxt = CurrentMemoryContext;
	MigrateStream *stream = migrate_stream_of_job(stray->job->job_id);
	HeapTuple	row;
	TupleDesc	desc;

	if (stream == NULL)
		return false;
	stray->encoding = stream->encoding ? pg_char_to_encoding(stream->encoding) : GetDatabaseEncoding();
	migrate_spi_begin();
	migrate_spi_exec("SELECT s.stream_id, a.applied_lsn, a.next_seq, s.spooled_lsn, s.spooled_seq"
					 " FROM migrate.stream_position s JOIN migrate.job_stream USING (stream_id)"
					 " JOIN migrate.apply_position a USING (job_id) WHERE job_id = $1",
					 1, &type, &value, NULL, SPI_OK_SELECT);
	if (SPI_processed != 1)
	{
		migrate_spi_end();
		return false;
	}
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	stray->stream_id = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
	stray->from_lsn = DatumGetLSN(SPI_getbinval(row, desc, 2, &isnull));
	stray->from_seq = DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
	stray->to_lsn = DatumGetLSN(SPI_getbinval(row, desc, 4, &isnull));
	stray->to_seq = DatumGetInt64(SPI_getbinval(row, desc, 5, &isnull));
	migrate_spi_end();
	MemoryContextSwitchTo(mcxt);
	return stray->to_seq >= stray->from_seq;
}

/* ----------------------------------------------------------------
 * letters
 * ----------------------------------------------------------------
 */

/* A value in this database's encoding, as jsonb text; null where it has no such. */
static void
append_value(Stray *stray, StringInfo json, MigrateRemoteTuple *tuple, int i)
{
	char	   *value;

	if (tuple->kind[i] != 't')
	{
		appendStringInfoString(json, "null");
		return;
	}
	value = pnstrdup(tuple->value[i], tuple->len[i]);
	escape_json(json, stray->encoding < 0 ? value :
				pg_any_to_server(value, tuple->len[i], stray->encoding));
}

/* Columns of a row by their names here; keys: those of the key alone. */
static char *
row_json(Stray *stray, StrayTable *table, MigrateRemoteTuple *tuple, bool keys)
{
	MigrateSource *source = table->source;
	StringInfoData json;

	initStringInfo(&json);
	for (int i = 0; i < Min(tuple->ncolumns, table->remote->ncolumns); i++)
		for (int j = 0; j < source->ncolumns; j++)
		{
			MigrateColumn *column = &source->columns[j];

			if (strcmp(column->remote_name, table->remote->columns[i].name) != 0 ||
				(keys && !column->is_key))
				continue;
			appendStringInfoChar(&json, json.len == 0 ? '{' : ',');
			escape_json(&json, column->name);
			appendStringInfoChar(&json, ':');
			append_value(stray, &json, tuple, i);
		}
	if (json.len == 0)
		return NULL;
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* One open letter a key and mapping; gone: the row is not there any more. */
static void
write_letter(Stray *stray, StrayTable *table, MigrateRemoteTuple *tuple, bool gone)
{
	Oid			types[] = {INT4OID, INT4OID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[5];
	char		nulls[] = "     ";
	char	   *key = row_json(stray, table, tuple, true);
	char	   *row = gone ? NULL : row_json(stray, table, tuple, false);

	values[0] = Int32GetDatum(stray->job->job_id);
	values[1] = Int32GetDatum(table->source->source_id);
	values[2] = key ? CStringGetTextDatum(key) : (Datum) 0;
	values[3] = row ? CStringGetTextDatum(row) : (Datum) 0;
	values[4] = CStringGetTextDatum(psprintf("written on the source by transaction %u after it was fenced, commit %X/%X",
											 stray->xid, LSN_FORMAT_ARGS(stray->msg.final_lsn)));
	nulls[2] = key ? ' ' : 'n';
	nulls[3] = row ? ' ' : 'n';
	migrate_spi_begin();
	migrate_spi_exec("INSERT INTO migrate.dead_letter (job_id, mapping_id, stage, key, source_row, sqlstate, message)"
					 " SELECT $1, m.mapping_id, 'late', $3::jsonb, $4::jsonb, '25006', $5"
					 " FROM migrate.mapping m WHERE m.job_id = $1 AND m.source_id = $2"
					 " AND NOT EXISTS (SELECT FROM migrate.dead_letter d WHERE d.mapping_id = m.mapping_id"
					 "  AND d.state = 'open' AND d.stage = 'late' AND d.key = $3::jsonb)",
					 5, types, values, nulls, SPI_OK_INSERT);
	stray->nletters += SPI_processed;
	migrate_spi_end();
}

/* ----------------------------------------------------------------
 * looking
 * ----------------------------------------------------------------
 */

/*
 * Is this the message that a transaction of the way back begins with?  Layout:
 * type, flags, position (8), prefix and a zero, length (4), content.
 */
static bool
is_mark(Stray *stray, const char *data, int len)
{
	const char *prefix = data + 10;
	int			prefix_len = sizeof(MIGRATE_MARK_PREFIX);
	uint32		size;

	if (len < 10 + prefix_len + (int) sizeof(size) ||
		memcmp(prefix, MIGRATE_MARK_PREFIX, prefix_len) != 0)
		return false;
	memcpy(&size, prefix + prefix_len, sizeof(size));
	size = pg_ntoh32(size);
	return len - 10 - prefix_len - sizeof(size) >= size &&
		size == strlen(stray->mark) &&
		memcmp(prefix + prefix_len + sizeof(size), stray->mark, size) == 0;
}

static void
note_change(Stray *stray, StrayTable *table)
{
	if (stray->changes++ > 0)
		return;
	stray->table = quote_qualified_identifier(table->remote->schema, table->remote->name);
	stray->lsn = stray->msg.final_lsn;
	stray->at = stray->msg.commit_at;
}

static void
take_row(Stray *stray)
{
	StrayTable *table = hash_search(stray->tables, &stray->msg.relid, HASH_FIND, NULL);

	if (table == NULL || table->source == NULL)
		return;
	note_change(stray, table);
	if (!stray->letters || stray->nletters >= MAX_LETTERS)
		return;
	if (stray->msg.old_kind != 0)
		write_letter(stray, table, &stray->msg.old_row, true);
	if (stray->msg.type != 'D')
		write_letter(stray, table, &stray->msg.new_row, false);
}

static void
take(Stray *stray, const char *data, int len)
{
	migrate_message_parse(&stray->msg, data, len, CurrentMemoryContext);
	switch (stray->msg.type)
	{
		case 'B':
			stray->ours = stray->msg.final_lsn < stray->from_lsn;
			if (stray->changes == 0)
				stray->xid = stray->msg.xid;
			break;
		case 'M':
			stray->ours |= is_mark(stray, data, len);
			break;
		case 'R':
			add_table(stray, migrate_message_relation(data, len));
			break;
		case 'I':
		case 'U':
		case 'D':
			if (!stray->ours)
				take_row(stray);
			break;
		case 'T':
			for (int i = 0; i < stray->msg.nrelids && !stray->ours; i++)
			{
				StrayTable *table = hash_search(stray->tables, &stray->msg.relids[i], HASH_FIND, NULL);

				if (table && table->source)
					note_change(stray, table);
			}
			break;
		default:
			break;
	}
}

/*
 * Everything in the spool that is not applied, as far as it is on disk.  In a
 * transaction; memory for one change at a time but for definitions of tables.
 */
static void
look(Stray *stray)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(StrayTable),.hcxt = CurrentMemoryContext};
	MigrateSpoolReader *reader;
	const char *data;
	int			len;
	ListCell   *lc;
	bool		snapshot = !ActiveSnapshotSet();

	/* the rest of a transaction that begins the row is applied */
	stray->ours = true;
	stray->tables = hash_create("migrate stray changes", 64, &ctl,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	if (snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, migrate_spool_relations(stray->stream_id, stray->from_seq))
		add_table(stray, lfirst(lc));
	reader = migrate_spool_open(stray->stream_id, stray->from_seq);
	while (migrate_spool_next(reader, &data, &len) &&
		   migrate_spool_seq(reader) <= stray->to_seq)
	{
		CHECK_FOR_INTERRUPTS();
		take(stray, data, len);
	}
	migrate_spool_close(reader);
	if (snapshot)
		PopActiveSnapshot();
}

static char *
mark_of(const char *digest)
{
	return psprintf("back %s", digest);
}

/* What the way back begins its transactions with, as a call. */
char *
migrate_external_mark(const char *digest)
{
	return psprintf("pg_catalog.pg_logical_emit_message(true, %s, %s)",
					quote_literal_cstr(MIGRATE_MARK_PREFIX), quote_literal_cstr(mark_of(digest)));
}

/* ----------------------------------------------------------------
 * the looks
 * ----------------------------------------------------------------
 */

/* apply has left: has it applied anything of the tables beyond the fence? */
void
migrate_external_check(Cutover *c)
{
	XLogRecPtr	changed;

	SpinLockAcquire(&migrate_shared->mutex);
	changed = migrate_shared->live.changed_lsn;
	SpinLockRelease(&migrate_shared->mutex);
	if (changed >= c->fence_lsn)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source was written to after it was said to be fenced"),
				 errdetail("A commit of %X/%X changed tables of the job, behind the fence at %X/%X.",
						   LSN_FORMAT_ARGS(changed), LSN_FORMAT_ARGS(c->fence_lsn)),
				 errhint("Find out who still writes there, and let the fence stop him.")));
}

/* Until the spool has all that the source had at a position. */
static void
wait_spooled(Cutover *c, MigrateJob *job, XLogRecPtr lsn)
{
	for (;;)
	{
		MigrateStream *stream;
		bool		there;

		/* a snapshot of now, in whichever transaction we are */
		PushActiveSnapshot(GetLatestSnapshot());
		stream = migrate_stream_of_job(job->job_id);
		there = stream && stream->spooled_lsn >= lsn;
		PopActiveSnapshot();
		if (there)
			return;
		migrate_cutover_deadline(c);
		migrate_cutover_doze(CUTOVER_LOOK_AGAIN);
	}
}

/* Throws when the spool up to the source's position of now has strange changes. */
static void
refuse_stray(Cutover *c, const char *digest)
{
	Stray		stray = {.job = c->job,.fence = c->fence,.mark = mark_of(digest)};
	XLogRecPtr	lsn = migrate_cutover_source_position(c->conn);

	migrate_cutover_force_flush(c->conn);
	wait_spooled(c, c->job, lsn);
	if (load_range(&stray))
		look(&stray);
	if (stray.changes > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source was written to after it was said to be fenced"),
				 errdetail("%lld changes, the first of %s by transaction %u, commit %X/%X, at %s.",
						   (long long) stray.changes, stray.table, stray.xid,
						   LSN_FORMAT_ARGS(stray.lsn), timestamptz_to_str(stray.at)),
				 errhint("Find out who still writes there, and let the fence stop him.")));
}

/* The last look, after which the target is opened. */
void
migrate_external_verify(Cutover *c)
{
	char	   *writers;

	StartTransactionCommand();
	MemoryContextSwitchTo(c->row->mcxt);
	refuse_stray(c, c->row->digest);
	writers = migrate_fence_writers(c->fence);
	if (writers)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source is being written to after it was said to be fenced"),
				 errdetail_internal("%s.", writers),
				 errhint("Find out who still writes there, and let the fence stop him.")));
	CommitTransactionCommand();
	MemoryContextSwitchTo(c->row->mcxt);
}

/* The same for a rollback, within its transaction; digest: of the cutover. */
void
migrate_external_verify_back(Cutover *c, const char *digest)
{
	refuse_stray(c, digest);
}

/*
 * P33: what has come from the source since the last look.  In a transaction.
 */
void
migrate_external_watch(MigrateJob *job, MigrateFence *fence, const char *digest)
{
	Stray		stray = {.job = job,.fence = fence,.mark = mark_of(digest),.letters = true};

	if (!load_range(&stray))
		return;
	look(&stray);
	if (stray.changes > 0)
		migrate_event(job->job_id, "alert", "fence",
					  "the source was written to while the target leads: %lld changes, the first of %s by transaction %u,"
					  " commit %X/%X, at %s; see migrate.dead_letters, stage \"late\"",
					  (long long) stray.changes, stray.table, stray.xid,
					  LSN_FORMAT_ARGS(stray.lsn), timestamptz_to_str(stray.at));
	migrate_cutover_pass_over(job, stray.to_lsn, stray.to_seq);
}
