/*-------------------------------------------------------------------------
 *
 * reverse_write.c
 *	  What was collected of a target table, through the inverse mapping into the
 *	  source.
 *
 * The newest image of each key is read into a batch, run through the inverse as
 * any mapping is run, and what comes out is sent as texts.  A value that the
 * message does not hold (unchanged TOAST) is read from the target as it is now:
 * later changes follow in the stream, and everything is idempotent.
 *
 * Straight, statements follow each other without waiting for the source, and
 * one that fails fails the batch, which is then done again row by row if need
 * be: each statement under a savepoint on both sides.  A row that fails by its own fault
 * (an int8 that no longer fits an int4) is found by halving and becomes a dead
 * letter of stage 'back'; the source keeps what it had.  It is superseded when
 * another change of the same key comes.
 *
 * Statements write row by row, and the source looks at what must be unique
 * after each: rows that exchange such values stand in each other's way.  Where
 * a statement fails for that, its rows are written last, all at once, after the
 * old ones of all of them have been taken away.
 *
 * Runs in the reverse worker, in one transaction here and one on the source.  A
 * crash undoes both or repeats the changes.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/reverse_table.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "cutover/remote_pipe.h"
#include "cutover/reverse.h"
#include "extract/extract.h"

/* rows of one statement: at most so many, and so many bytes */
#define STATEMENT_ROWS 500
#define STATEMENT_BYTES (1024 * 1024)

/* the same where the source reads them as arrays */
#define STRAIGHT_ROWS 2000

/* of what cannot be written before the rest of its batch is there, bytes */
#define CARRY_BYTES (8 * 1024 * 1024)

#define SAVEPOINT "migrate_back"
#define SAVEPOINT_TRIAL "migrate_back_trial"

/* ----------------------------------------------------------------
 * through the inverse
 * ----------------------------------------------------------------
 */

/* The row of the target as it is now, for values that are not in the message. */
static bool
fetch_current(ReverseWay *way, char **row)
{
	MigrateSource *src = way->src;
	StringInfoData sql;
	bool		found;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int i = 0; i < src->ncolumns; i++)
		appendStringInfo(&sql, "%st.%s", i > 0 ? ", " : "", quote_identifier(src->columns[i].name));
	appendStringInfo(&sql, " FROM %s t WHERE ",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(src->foreign_table)),
												get_rel_name(src->foreign_table)));
	for (int k = 0; k < src->nkeys; k++)
	{
		MigrateColumn *col = &src->columns[src->keys[k]];

		appendStringInfo(&sql, "%st.%s = %s::%s", k > 0 ? " AND " : "", quote_identifier(col->name),
						 quote_literal_cstr(row[src->keys[k]] ? row[src->keys[k]] : ""),
						 format_type_extended(col->type, col->typmod,
											  FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY));
	}
	{
		MemoryContext mcxt = CurrentMemoryContext;

		SPI_connect();
		migrate_spi_exec(sql.data, 0, NULL, NULL, NULL, SPI_OK_SELECT);
		found = SPI_processed > 0;
		MemoryContextSwitchTo(mcxt);
		for (int i = 0; found && i < src->ncolumns; i++)
			row[i] = migrate_spi_text(0, i);
		SPI_finish();
		MemoryContextSwitchTo(mcxt);
	}
	return found;
}

/* Texts into a batch of the target's rows. */
static void
add_row(ReverseWay *way, MigrateBatch *batch, char **row)
{
	MigrateSource *src = way->src;
	Datum	   *values = palloc(sizeof(Datum) * Max(src->ncolumns, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(src->ncolumns, 1));

	for (int i = 0; i < src->ncolumns; i++)
	{
		nulls[i] = row[i] == NULL;
		values[i] = nulls[i] ? (Datum) 0 :
			InputFunctionCall(&way->input[i], row[i], way->ioparam[i], src->columns[i].typmod);
	}
	migrate_batch_add(batch, values, nulls, 0);
}

/* mapped rows as texts; they are made under the settings of the worker */
typedef struct Texts
{
	Tuplestorestate *store;
	int			n;
} Texts;

static void
take_mapped(TupleTableSlot *slot, void *arg)
{
	Texts	   *texts = arg;

	tuplestore_puttupleslot(texts->store, slot);
	texts->n++;
}

static MigrateRemoteRow *
texts_of(MigrateMapping *map, FmgrInfo *output, MigrateBatch *batch, int *n)
{
	Texts		texts = {0};
	MigrateRemoteRow *rows;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(map->outdesc, &TTSOpsMinimalTuple);
	int			r = 0;

	texts.store = tuplestore_begin_heap(false, false, work_mem);
	migrate_mapping_run(map, batch, take_mapped, &texts);
	rows = palloc(sizeof(MigrateRemoteRow) * Max(texts.n, 1));
	while (tuplestore_gettupleslot(texts.store, true, false, slot))
	{
		rows[r] = palloc0(sizeof(char *) * Max(map->ncolumns, 1));
		for (int i = 0; i < map->ncolumns; i++)
		{
			bool		isnull;
			Datum		value = slot_getattr(slot, i + 1, &isnull);

			if (!isnull)
				rows[r][i] = OutputFunctionCall(&output[i], value);
		}
		r++;
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(texts.store);
	*n = r;
	return rows;
}

/* ----------------------------------------------------------------
 * to the source, bad rows set aside
 * ----------------------------------------------------------------
 */
typedef enum WriteHow
{
	WRITE_GONE,					/* rows that are no more: delete */
	WRITE_IMAGES,				/* upsert */
	WRITE_ANEW,					/* delete all, then insert */
	WRITE_AWAY					/* delete the rows with the images' keys */
} WriteHow;

typedef struct Portion
{
	ReverseSink *sink;
	ReverseWay *way;
	WriteHow	how;
	ReverseEntry **entries;

	/*
	 * Entries that are to be written anew, since what must be unique is still
	 * at another row; filled while images are written.
	 */
	ReverseEntry **conflicts;
	int			nconflicts;

	/* while it is found out which of those cannot be written */
	ErrorData **errors;			/* by entry; NULL: bad rows are buried */
} Portion;

static char *
statement_for(Portion *p, MigrateRemoteRow *rows, int n)
{
	switch (p->how)
	{
		case WRITE_GONE:
			return migrate_remote_delete(&p->way->remote_keys, rows, 0, n);
		case WRITE_ANEW:
			return migrate_remote_anew(&p->way->remote, rows, 0, n);
		case WRITE_AWAY:
			return migrate_remote_delete(&p->way->remote, rows, 0, n);
		default:
			return migrate_remote_upsert(&p->way->remote, rows, 0, n);
	}
}

/* The row of an entry that is at stake. */
static char **
row_of(Portion *p, ReverseEntry *entry)
{
	return p->how == WRITE_GONE ? entry->gone : entry->image;
}

/* Rows of one statement, as texts. */
static MigrateRemoteRow *
rows_of(Portion *p, int from, int to, int *n)
{
	bool		gone = p->how == WRITE_GONE;
	MigrateBatch *batch = migrate_batch_create(p->way->src);
	MigrateMapping *map = gone ? p->way->keys : p->way->inverse;
	MigrateRemoteRow *rows;

	PushActiveSnapshot(GetTransactionSnapshot());
	for (int i = from; i < to; i++)
	{
		ReverseEntry *entry = p->entries[i];
		char	  **row = row_of(p, entry);

		/* not there any more: its delete follows */
		if (!gone && entry->unknown && !fetch_current(p->way, row))
			continue;
		add_row(p->way, batch, row);
	}
	rows = texts_of(map, gone ? p->way->keys_output : p->way->inverse_output, batch, n);
	PopActiveSnapshot();
	migrate_batch_free(batch);
	return rows;
}

/* Everything for entries [from, to) but the halving; throws. */
static int64
write_rows(Portion *p, int from, int to)
{
	int			n;
	MigrateRemoteRow *rows = rows_of(p, from, to, &n);

	if (n > 0)
		PQclear(migrate_exec(p->sink->conn, statement_for(p, rows, n)));
	return n;
}

static void
count_rows(Portion *p, int64 n)
{
	if (p->how == WRITE_GONE)
		p->sink->counts.deletes += n;
	else
		p->sink->counts.upserts += n;
}

/* The same without waiting; nothing of it is kept. */
static void
send_rows(Portion *p, int from, int to)
{
	MemoryContext tmp = AllocSetContextCreate(CurrentMemoryContext, "migrate reverse rows",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(tmp);
	bool		gone = p->how == WRITE_GONE;
	MigrateRemoteTable *table = gone ? &p->way->remote_keys : &p->way->remote;
	int			n;
	MigrateRemoteRow *rows = rows_of(p, from, to, &n);

	if (n > 0 && table->arrays)
		migrate_pipe_send(p->sink->conn, gone ? migrate_remote_delete_arrays(table) :
						  migrate_remote_upsert_arrays(table),
						  table->ncolumns, migrate_remote_arrays(table, rows, n));
	else if (n > 0)
		migrate_pipe_send(p->sink->conn, statement_for(p, rows, n), 0, NULL);
	count_rows(p, n);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(tmp);
}

/* {"column": "text", ...} */
static char *
row_json(MigrateSource *src, char **row, bool keys_only)
{
	StringInfoData buf;
	int			n = 0;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < src->ncolumns; i++)
	{
		if (keys_only && !src->columns[i].is_key)
			continue;
		appendStringInfoString(&buf, n++ > 0 ? ", " : "");
		escape_json(&buf, src->columns[i].name);
		appendStringInfoString(&buf, ": ");
		if (row[i])
			escape_json(&buf, row[i]);
		else
			appendStringInfoString(&buf, "null");
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

static void
bury(Portion *p, ReverseEntry *entry, ErrorData *edata)
{
	MigrateLoadContext ctx = {.job = p->sink->job};
	char	  **row = row_of(p, entry);

	if (p->sink->counts.postpone)
	{
		migrate_queue_again(p->sink->job->job_id, p->way->src->foreign_table,
							row_json(p->way->src, row, false));
		p->sink->counts.postponed++;
		return;
	}
	migrate_dead_letter_insert(&ctx, p->way->mapping_id, "back",
							   row_json(p->way->src, row, true),
							   row_json(p->way->src, row, false), NULL, edata, NULL);
	p->sink->counts.dead++;
}

/*
 * Open letters of the keys that have changed again are superseded: the source
 * gets the row as it is now, or there is a new letter.  After a TRUNCATE, all.
 */
static uint64
supersede(ReverseTable *table, ReverseWay *way)
{
	Oid			types[] = {INT4OID, TEXTARRAYOID};
	Datum		values[] = {Int32GetDatum(way->mapping_id), (Datum) 0};
	ArrayBuildState *keys = initArrayResult(TEXTOID, CurrentMemoryContext, true);
	ListCell   *lc;
	uint64		n;

	foreach(lc, table->order)
	{
		ReverseEntry *entry = lfirst(lc);

		keys = accumArrayResult(keys, CStringGetTextDatum(row_json(way->src, entry->image ? entry->image : entry->gone, true)),
								false, TEXTOID, CurrentMemoryContext);
	}
	values[1] = makeArrayResult(keys, CurrentMemoryContext);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.dead_letter d SET state = 'superseded', updated_at = now()"
					 " WHERE d.mapping_id = $1 AND d.state = 'open' AND d.stage = 'back' AND ($2 IS NULL"
					 "  OR d.key IN (SELECT k::pg_catalog.jsonb FROM pg_catalog.unnest($2) k))",
					 2, types, values, table->truncated ? " n" : NULL, SPI_OK_UPDATE);
	n = SPI_processed;
	migrate_spi_end();
	return n;
}

uint64
migrate_reverse_supersede(ReverseTable *table, Bitmapset *lettered)
{
	uint64		n = 0;

	for (int w = 0; w < table->nways; w++)
		if (bms_is_member(table->ways[w].mapping_id, lettered))
			n += supersede(table, &table->ways[w]);
	return n;
}

/* One try, under a savepoint on both sides; the error when it failed. */
static ErrorData *
try_rows(Portion *p, int from, int to)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;
	volatile int64 n = 0;
	MemoryContext tmp = AllocSetContextCreate(mcxt, "migrate reverse rows", ALLOCSET_DEFAULT_SIZES);

	PQclear(migrate_exec(p->sink->conn, "SAVEPOINT " SAVEPOINT));
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(tmp);
	PG_TRY();
	{
		n = write_rows(p, from, to);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	MemoryContextDelete(tmp);
	if (edata && !migrate_error_is_of_row(edata->sqlerrcode))
		ReThrowError(edata);
	PQclear(migrate_exec(p->sink->conn, edata ? "ROLLBACK TO SAVEPOINT " SAVEPOINT "; RELEASE SAVEPOINT " SAVEPOINT :
						 "RELEASE SAVEPOINT " SAVEPOINT));
	if (edata == NULL && p->errors == NULL)
		count_rows(p, n);
	return edata;
}

static bool
is_conflict(ErrorData *edata)
{
	return edata->sqlerrcode == ERRCODE_UNIQUE_VIOLATION ||
		edata->sqlerrcode == ERRCODE_EXCLUSION_VIOLATION;
}

static Size
row_size(ReverseWay *way, char **row)
{
	Size		size = 0;

	for (int i = 0; i < way->src->ncolumns; i++)
		size += row[i] ? strlen(row[i]) : 4;
	return size;
}

/*
 * May entries [from, to) be written after the next part of the batch?  What is
 * carried along is bounded, too, and single rows have more of it.
 */
static bool
carry_along(Portion *p, int from, int to, ErrorData *edata)
{
	Size		size = 0;

	if (!p->sink->more ||
		(!is_conflict(edata) && edata->sqlerrcode != ERRCODE_FOREIGN_KEY_VIOLATION))
		return false;
	for (int i = from; i < to; i++)
		size += row_size(p->way, row_of(p, p->entries[i]));
	if (p->sink->carried + size > (to - from > 1 ? CARRY_BYTES : 2 * CARRY_BYTES))
		return false;
	p->sink->carried += size;
	for (int i = from; i < to; i++)
	{
		if (p->how == WRITE_GONE)
			p->entries[i]->keep_gone = true;
		else
			p->entries[i]->keep_image = true;
	}
	return true;
}

/* A row that cannot be written; takes the error. */
static void
set_aside(Portion *p, int i, ErrorData *edata)
{
	if (p->errors)
		p->errors[i] = edata;
	else
	{
		bury(p, p->entries[i], edata);
		FreeErrorData(edata);
	}
}

static void
write_portion(Portion *p, int from, int to)
{
	ErrorData  *edata;

	CHECK_FOR_INTERRUPTS();
	edata = try_rows(p, from, to);
	if (edata == NULL)
		return;
	if (p->conflicts && is_conflict(edata))
	{
		memcpy(p->conflicts + p->nconflicts, p->entries + from, sizeof(ReverseEntry *) * (to - from));
		p->nconflicts += to - from;
	}
	else if (p->errors == NULL && carry_along(p, from, to, edata))
	{
		/* it comes with the next part */
	}
	else if (to - from == 1)
	{
		set_aside(p, from, edata);
		return;
	}
	else
	{
		int			middle = from + (to - from) / 2;

		write_portion(p, from, middle);
		write_portion(p, middle, to);
	}
	FreeErrorData(edata);
}

/*
 * Which of the rows cannot be written although the old ones of all of them are
 * out of the way?  It is tried, and taken back.
 */
static void
find_unwritable(Portion *p, int n, ErrorData *edata)
{
	ErrorData  *away;

	PQclear(migrate_exec(p->sink->conn, "SAVEPOINT " SAVEPOINT_TRIAL));
	p->how = WRITE_AWAY;
	away = try_rows(p, 0, n);
	p->how = WRITE_IMAGES;
	if (away == NULL)
		write_portion(p, 0, n);
	else
		FreeErrorData(away);
	PQclear(migrate_exec(p->sink->conn, "ROLLBACK TO SAVEPOINT " SAVEPOINT_TRIAL
						 "; RELEASE SAVEPOINT " SAVEPOINT_TRIAL));
	for (int i = 0; i < n; i++)
		if (p->errors[i])
			return;
	/* it cannot be told: all of them */
	for (int i = 0; i < n; i++)
		p->errors[i] = edata;
}

/*
 * Rows whose unique values have changed places.  What cannot be written is set
 * aside, and the source keeps what it had there; that may stand in the way of
 * others, so it is tried again with the rest until all of that can be written.
 */
static void
write_anew(Portion *from, ReverseEntry **entries, int n)
{
	Portion		p = *from;

	p.entries = entries;
	p.conflicts = NULL;
	while (n > 0)
	{
		ErrorData  *edata;
		int			left = 0;

		p.how = WRITE_ANEW;
		p.errors = NULL;
		edata = try_rows(&p, 0, n);
		if (edata == NULL)
			return;
		p.errors = palloc0(sizeof(ErrorData *) * n);
		find_unwritable(&p, n, edata);
		for (int i = 0; i < n; i++)
		{
			if (p.errors[i])
			{
				if (!carry_along(&p, i, i + 1, p.errors[i]))
					bury(&p, entries[i], p.errors[i]);
			}
			else
				entries[left++] = entries[i];
		}
		n = left;
	}
}

static ReverseEntry **
entry_array(int n)
{
	return MemoryContextAllocHuge(CurrentMemoryContext, sizeof(ReverseEntry *) * Max(n, 1));
}

/* How many entries from one on make up a statement. */
static int
statement_end(Portion *p, int from, int n)
{
	int			most = p->sink->straight && p->way->remote.arrays ? STRAIGHT_ROWS : STATEMENT_ROWS;
	Size		size = 0;
	int			to = from;

	while (to < n && to - from < most && (to == from || size < STATEMENT_BYTES))
		size += row_size(p->way, row_of(p, p->entries[to++]));
	return to;
}

/* All entries that have what is asked for, in statements of bounded size. */
static void
write_all(ReverseSink *sink, ReverseTable *table, WriteHow how)
{
	bool		deletes = how == WRITE_GONE;
	ReverseEntry **entries = entry_array(list_length(table->order));
	ReverseEntry **conflicts = entry_array(list_length(table->order));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, table->order)
	{
		ReverseEntry *entry = lfirst(lc);

		if (deletes ? entry->gone != NULL : entry->image != NULL)
			entries[n++] = entry;
	}
	for (int w = 0; w < table->nways; w++)
	{
		Portion		p = {.sink = sink,.way = &table->ways[w],.how = how,.entries = entries};
		int			to;

		if (!deletes && p.way->remote.anew)
			p.conflicts = conflicts;
		for (int from = 0; from < n; from = to)
		{
			to = statement_end(&p, from, n);
			if (sink->straight)
				send_rows(&p, from, to);
			else
				write_portion(&p, from, to);
		}
		write_anew(&p, conflicts, p.nconflicts);
	}
	pfree(entries);
	pfree(conflicts);
}

/* A TRUNCATE that does not go back is a letter without a row. */
static void
bury_truncate(ReverseSink *sink, ReverseWay *way, int sqlerrcode, const char *message)
{
	MigrateLoadContext ctx = {.job = sink->job};
	ErrorData	edata = {.elevel = ERROR,.sqlerrcode = sqlerrcode};

	edata.message = psprintf("TRUNCATE did not go back to %s: %s", way->remote.name, message);
	edata.detail = "The source still has the rows that were there.";
	migrate_dead_letter_insert(&ctx, way->mapping_id, "back", "{}", "{\"truncate\": true}", NULL,
							   &edata, NULL);
	sink->counts.dead++;
}

/* Under a savepoint; the source may refuse, for a foreign key, say. */
static void
truncate_by_steps(ReverseSink *sink, ReverseWay *way, const char *sql)
{
	PGresult   *res;
	char	   *state;

	PQclear(migrate_exec(sink->conn, "SAVEPOINT " SAVEPOINT));
	res = migrate_exec_try(sink->conn, sql);
	state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	if (!migrate_result_ok(res))
	{
		int			code = state == NULL ? ERRCODE_CONNECTION_FAILURE :
		MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);

		if (!migrate_error_is_of_row(code))
			migrate_report_remote_error(res, sink->conn, sql);
		bury_truncate(sink, way, code, pstrdup(PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY)));
		PQclear(migrate_exec(sink->conn, "ROLLBACK TO SAVEPOINT " SAVEPOINT));
	}
	PQclear(res);
	PQclear(migrate_exec(sink->conn, "RELEASE SAVEPOINT " SAVEPOINT));
}

/*
 * A TRUNCATE of the target empties the source tables, but for rows that were
 * never taken over.
 */
static void
truncate_source(ReverseSink *sink, ReverseTable *table)
{
	for (int w = 0; w < table->nways; w++)
	{
		ReverseWay *way = &table->ways[w];
		char	   *sql = psprintf("DELETE FROM %s AS source%s%s%s", way->remote.name,
								   way->filter ? " WHERE (" : "",
								   way->filter ? way->filter : "",
								   way->filter ? "\n)" : "");

		if (sink->straight)
			migrate_pipe_send(sink->conn, sql, 0, NULL);
		else
			truncate_by_steps(sink, way, sql);
	}
}

void
migrate_reverse_write_gone(ReverseSink *sink, ReverseTable *table)
{
	if (table->truncated)
		truncate_source(sink, table);
	write_all(sink, table, WRITE_GONE);
}

void
migrate_reverse_write_images(ReverseSink *sink, ReverseTable *table)
{
	write_all(sink, table, WRITE_IMAGES);
}
