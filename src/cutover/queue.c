/*-------------------------------------------------------------------------
 *
 * queue.c
 *	  The way back where the target has no logical decoding: triggers note which
 *	  keys of its tables have changed, and the reverse worker reads the rows.
 *
 *	  application -> trigger -> migrate.reverse_queue -> reverse worker -> source
 *
 * A row of the queue says "look at this key", and nothing of what became of it.
 * So nothing depends on the order of rows there: triggers of one statement may
 * fire behind those of a statement within it, and lower numbers may become
 * visible after higher ones.  The worker takes what one snapshot sees of the
 * queue, and of these keys the rows as the same snapshot sees them: together
 * that is what the transactions which it sees, and the one before did not, have
 * made of the tables.  Of a row that is there an insert is made, of one that is
 * not a delete, as messages of pgoutput, and reverse.c goes on as with decoded
 * ones.
 *
 *	  read		one snapshot: queue, rows; what it sees is flushed (P4)
 *	  write		source commits; queue rows are deleted, by where they are
 *	  trim		an empty queue is cut to nothing, if nobody writes to it just then
 *
 * A crash between the source's commit and ours has the keys looked at again,
 * which is idempotent at any time.  All TRUNCATEs are taken first: what was
 * inserted behind one was committed behind it, and is in the queue, or was not
 * yet taken from it.
 *
 * More than BATCH_KEYS keys, or BATCH_BYTES of rows, go in several transactions
 * of the source, which sees the changes in parts until the last of them; a row
 * that cannot be written for what another part will change is queued again
 * (reverse_table.c).
 *
 * Triggers: AFTER ROW on each target, and so on every partition, TRUNCATE on
 * every leaf as well; ENABLE ALWAYS from the transaction that opens the target
 * to the one that closes it, disabled else: writes of ours never fire them
 * (P27, P29, P30).
 *
 * Process: any that writes to an opened target (the trigger), which wakes the
 * worker at its commit; the reverse worker.  Locks: the queue, ROW EXCLUSIVE for
 * the session between read and write, so that no VACUUM FULL moves its rows.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/reverse.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "control/control.h"
#include "load/refetch.h"

#define QUEUE "migrate.reverse_queue"

/* columns of it */
enum
{
	QUEUE_JOB,
	QUEUE_RELATION,
	QUEUE_KEY,					/* NULL: TRUNCATE */
	QUEUE_COLUMNS
};

/* a batch: at most so many rows of the queue, and bytes of messages */
#define BATCH_KEYS 200000
#define BATCH_BYTES (64 * 1024 * 1024)

/* keys that are looked up in one statement */
#define LOOKUP_KEYS 500

/* messages beyond this spill to disk, kB */
#define STORE_KB (16 * 1024)

/* an empty queue that is smaller is left as it is, blocks */
#define TRIM_BLOCKS 128

/* the worker to be woken is looked for so often, ms */
#define LOOK_FOR_WORKER 1000

/* ----------------------------------------------------------------
 * the trigger
 * ----------------------------------------------------------------
 */

/* what it knows of a trigger; as long as a statement lasts */
typedef struct Capture
{
	int			job_id;
	Oid			target;			/* the relation that the mapping names */
	int			nkeys;
	int		   *attnums;		/* in the relation that fires it */
	Oid		   *outputs;
	bool		plain;			/* no setting changes the keys' texts */
} Capture;

/* The root that this transaction's command has truncated, see truncated(). */
static struct
{
	FullTransactionId xid;
	CommandId	command;
	Oid			target;
}			truncating;

/* Workers to wake at commit: one a job, of what this session has written to. */
typedef struct Reader
{
	int			job_id;			/* hash key */
	PGPROC	   *proc;
	int			pid;			/* 0: none was there */
	TimestampTz looked_at;
	bool		wake;
} Reader;

static HTAB *readers = NULL;

/* A guess that is wrong wakes somebody for nothing, or costs the worker's nap. */
static void
find_reader(Reader *reader)
{
	reader->pid = migrate_lock_holder(MIGRATE_LOCK_REVERSE, reader->job_id);
	reader->proc = reader->pid ? BackendPidGetProc(reader->pid) : NULL;
	if (reader->proc == NULL)
		reader->pid = 0;
	reader->looked_at = GetCurrentTimestamp();
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	HASH_SEQ_STATUS status;
	Reader	   *reader;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	hash_seq_init(&status, readers);
	while ((reader = hash_seq_search(&status)) != NULL)
	{
		if (reader->wake && event == XACT_EVENT_COMMIT && reader->pid != 0 &&
			reader->proc->pid == reader->pid)
			SetLatch(&reader->proc->procLatch);
		reader->wake = false;
	}
}

static void
wake_at_commit(int job_id)
{
	Reader	   *reader;
	bool		found;

	if (readers == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(int),.entrysize = sizeof(Reader)};

		readers = hash_create("migrate reverse workers", 8, &ctl, HASH_ELEM | HASH_BLOBS);
		RegisterXactCallback(at_transaction_end, NULL);
	}
	reader = hash_search(readers, &job_id, HASH_ENTER, &found);
	if (!found)
		memset((char *) reader + sizeof(int), 0, sizeof(Reader) - sizeof(int));
	if (reader->wake)
		return;
	if (!found || TimestampDifferenceExceeds(reader->looked_at, GetCurrentTimestamp(), LOOK_FOR_WORKER))
		find_reader(reader);
	reader->wake = true;
}

/* Types whose texts no setting changes. */
static bool
has_plain_text(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case UUIDOID:
			return true;
		default:
			return false;
	}
}

/* Arguments of the trigger: number of the job, OID of its target, key columns. */
static Capture *
capture_of(FunctionCallInfo fcinfo, TriggerData *trigger)
{
	Capture    *capture = fcinfo->flinfo->fn_extra;
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	Trigger    *tg = trigger->tg_trigger;
	MemoryContext old;

	if (capture)
		return capture;
	if (tg->tgnargs < 3)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" of migrate has too few arguments", tg->tgname)));
	old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	capture = palloc0(sizeof(Capture));
	capture->job_id = pg_strtoint32(tg->tgargs[0]);
	capture->target = (Oid) strtoul(tg->tgargs[1], NULL, 10);
	capture->nkeys = tg->tgnargs - 2;
	capture->attnums = palloc(sizeof(int) * capture->nkeys);
	capture->outputs = palloc(sizeof(Oid) * capture->nkeys);
	capture->plain = true;
	for (int k = 0; k < capture->nkeys; k++)
	{
		int			attnum = SPI_fnumber(desc, tg->tgargs[k + 2]);
		Oid			type;
		bool		varlena;

		if (attnum <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" is gone, and its changes cannot go back to the source",
							tg->tgargs[k + 2], RelationGetRelationName(trigger->tg_relation)),
					 errdetail("Job %d takes what is written here back to the source by this column.",
							   capture->job_id)));
		type = TupleDescAttr(desc, attnum - 1)->atttypid;
		capture->attnums[k] = attnum;
		getTypeOutputInfo(type, &capture->outputs[k], &varlena);
		capture->plain = capture->plain && has_plain_text(type);
	}
	fcinfo->flinfo->fn_extra = capture;
	MemoryContextSwitchTo(old);
	return capture;
}

/* The texts are read back by our worker, under its settings. */
static int
set_plain_settings(Capture *capture)
{
	int			level;

	if (capture->plain)
		return -1;
	level = NewGUCNestLevel();
	(void) set_config_option("datestyle", "ISO", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("intervalstyle", "postgres", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("extra_float_digits", "3", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("bytea_output", "hex", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/*
 * Past privileges and row security: whoever may write to the table has it
 * noted.
 */
static void
insert_row(Capture *capture, ArrayType *key)
{
	Relation	queue = table_open(get_relname_relid("reverse_queue", get_namespace_oid("migrate", false)),
								   RowExclusiveLock);
	Datum		values[QUEUE_COLUMNS];
	bool		nulls[QUEUE_COLUMNS] = {false};
	HeapTuple	tuple;

	values[QUEUE_JOB] = Int32GetDatum(capture->job_id);
	values[QUEUE_RELATION] = ObjectIdGetDatum(capture->target);
	values[QUEUE_KEY] = PointerGetDatum(key);
	nulls[QUEUE_KEY] = key == NULL;
	tuple = heap_form_tuple(RelationGetDescr(queue), values, nulls);
	simple_heap_insert(queue, tuple);
	heap_freetuple(tuple);
	table_close(queue, NoLock);
}

static void
note_key(Capture *capture, TupleDesc desc, HeapTuple row)
{
	Datum	   *texts = palloc(sizeof(Datum) * capture->nkeys);
	bool	   *nulls = palloc(sizeof(bool) * capture->nkeys);
	int			dims[] = {capture->nkeys};
	int			lbs[] = {1};
	int			level = set_plain_settings(capture);

	for (int k = 0; k < capture->nkeys; k++)
	{
		Datum		value = heap_getattr(row, capture->attnums[k], desc, &nulls[k]);

		texts[k] = nulls[k] ? (Datum) 0 :
			CStringGetTextDatum(OidOutputFunctionCall(capture->outputs[k], value));
	}
	if (level >= 0)
		AtEOXact_GUC(true, level);
	insert_row(capture, construct_md_array(texts, nulls, 1, dims, lbs, TEXTOID, -1, false, TYPALIGN_INT));
}

/* The same key, to the bit? */
static bool
keeps_key(Capture *capture, TupleDesc desc, HeapTuple before, HeapTuple after)
{
	for (int k = 0; k < capture->nkeys; k++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, capture->attnums[k] - 1);
		bool		null_before,
					null_after;
		Datum		a = heap_getattr(before, capture->attnums[k], desc, &null_before);
		Datum		b = heap_getattr(after, capture->attnums[k], desc, &null_after);

		if (null_before != null_after)
			return false;
		if (!null_before && !datumIsEqual(a, b, att->attbyval, att->attlen))
			return false;
	}
	return true;
}

static void
note_change(Capture *capture, TriggerData *trigger)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);

	note_key(capture, desc, trigger->tg_trigtuple);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) &&
		!keeps_key(capture, desc, trigger->tg_trigtuple, trigger->tg_newtuple))
		note_key(capture, desc, trigger->tg_newtuple);
}

/* A partition that is emptied by itself: every key that was in it. */
static void
note_all_keys(Capture *capture, Relation rel)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "migrate truncated row",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		free;
		HeapTuple	tuple;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(row);
		tuple = ExecFetchSlotHeapTuple(slot, false, &free);
		note_key(capture, RelationGetDescr(rel), tuple);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	MemoryContextDelete(row);
}

/*
 * TRUNCATE fires for the table that it names, then for its partitions.  Only
 * when these are named themselves, their keys are noted one by one.
 */
static void
note_truncate(Capture *capture, Relation rel)
{
	FullTransactionId xid = GetTopFullTransactionId();
	CommandId	command = GetCurrentCommandId(true);

	if (RelationGetRelid(rel) == capture->target)
	{
		insert_row(capture, NULL);
		truncating.xid = xid;
		truncating.command = command;
		truncating.target = capture->target;
	}
	else if (truncating.target != capture->target || truncating.command != command ||
			 !FullTransactionIdEquals(truncating.xid, xid))
		note_all_keys(capture, rel);
}

/*
 * Trigger function, AFTER ROW and BEFORE TRUNCATE; arguments: the job's number,
 * the OID of its target, the columns that hold keys of the source.
 */
PG_FUNCTION_INFO_V1(migrate_note_change);
PGDLLEXPORT Datum
migrate_note_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Capture    *capture;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" is a trigger of migrate", "migrate._note_change")));
	capture = capture_of(fcinfo, trigger);
	wake_at_commit(capture->job_id);
	if (TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		note_change(capture, trigger);
	else
		note_truncate(capture, trigger->tg_relation);
	return PointerGetDatum(NULL);
}

/* ----------------------------------------------------------------
 * the reader
 * ----------------------------------------------------------------
 */
struct MigrateQueue
{
	int			job_id;
	LockRelId	lock;			/* of the queue */
	bool		locked;
	MemoryContext batch;		/* of what follows */
	TupleDesc	desc;			/* one column, bytea */
	TupleTableSlot *slot;
	Tuplestorestate *store;		/* NULL: empty */
	int64		bytes;			/* in it */
	Datum	   *places;			/* in the queue, of what is in it */
	int			nplaces;
	bool		partial;		/* more was to be seen */
	int64		scale;			/* of the limits of a batch */
};

/* a row of the queue */
typedef struct Noted
{
	ItemPointerData place;
	Oid			relation;
	char	  **key;			/* NULL: TRUNCATE */
	bool		has_null;
} Noted;

/* a target */
typedef struct NotedTable
{
	Oid			relid;
	TupleDesc	desc;
	int			nkeys;
	char	  **keys;
	int		   *attnums;
	char	   *lookup[2];		/* keys without and with nulls */
} NotedTable;

MigrateQueue *
migrate_queue_open(int job_id)
{
	MigrateQueue *queue = palloc0(sizeof(MigrateQueue));

	queue->job_id = job_id;
	queue->scale = 1;
	queue->batch = AllocSetContextCreate(CurrentMemoryContext, "migrate queue batch",
										 ALLOCSET_DEFAULT_SIZES);
	queue->desc = CreateTemplateTupleDesc(1);
	TupleDescInitEntry(queue->desc, 1, "message", BYTEAOID, -1, 0);
	queue->slot = MakeSingleTupleTableSlot(queue->desc, &TTSOpsMinimalTuple);
	queue->lock.relId = get_relname_relid("reverse_queue", get_namespace_oid("migrate", false));
	queue->lock.dbId = MyDatabaseId;
	return queue;
}

void
migrate_queue_forget(MigrateQueue *queue)
{
	ExecClearTuple(queue->slot);
	if (queue->store)
		tuplestore_end(queue->store);
	queue->store = NULL;
	queue->bytes = 0;
	queue->places = NULL;
	queue->nplaces = 0;
	MemoryContextReset(queue->batch);
	if (queue->locked)
		UnlockRelationIdForSession(&queue->lock, RowExclusiveLock);
	queue->locked = false;
}

void
migrate_queue_close(MigrateQueue *queue)
{
	migrate_queue_forget(queue);
}

bool
migrate_queue_empty(MigrateQueue *queue)
{
	return queue->store == NULL;
}

bool
migrate_queue_partial(MigrateQueue *queue)
{
	return queue->partial;
}

/*
 * Nothing of a part could be written, since rows elsewhere stand in the way:
 * take twice as much, if need be until it is all.
 */
void
migrate_queue_widen(MigrateQueue *queue, bool more)
{
	queue->scale = !more ? 1 : Min(queue->scale * 2, PG_INT32_MAX / BATCH_KEYS);
}

bool
migrate_queue_next(MigrateQueue *queue, const char **data, int *len)
{
	bool		isnull;
	struct varlena *message;

	if (!tuplestore_gettupleslot(queue->store, true, false, queue->slot))
		return false;
	message = (struct varlena *) DatumGetPointer(slot_getattr(queue->slot, 1, &isnull));
	*data = VARDATA_ANY(message);
	*len = VARSIZE_ANY_EXHDR(message);
	return true;
}

/* ----------------------------------------------------------------
 * messages, as pgoutput.c reads them
 * ----------------------------------------------------------------
 */
static void
put_message(MigrateQueue *queue, StringInfo message)
{
	MemoryContext old = MemoryContextSwitchTo(queue->batch);
	Datum		value;
	bool		isnull = false;

	SET_VARSIZE(message->data, message->len);
	value = PointerGetDatum(message->data);
	tuplestore_putvalues(queue->store, queue->desc, &value, &isnull);
	queue->bytes += message->len;
	MemoryContextSwitchTo(old);
}

static void
begin_message(StringInfo message, char type)
{
	resetStringInfo(message);
	appendStringInfoSpaces(message, VARHDRSZ);
	appendStringInfoCharMacro(message, type);
}

/* values by column of the relation; NULL is null */
static void
append_row(StringInfo message, char **values, int n)
{
	pq_sendint16(message, n);
	for (int i = 0; i < n; i++)
	{
		int			len = values[i] ? (int) strlen(values[i]) : 0;

		appendStringInfoCharMacro(message, values[i] ? 't' : 'n');
		if (values[i] == NULL)
			continue;
		pq_sendint32(message, len);
		appendBinaryStringInfo(message, values[i], len);
	}
}

/* Number and name of columns go by the relation: dropped ones have no name. */
static void
put_relation(MigrateQueue *queue, NotedTable *table, StringInfo message)
{
	begin_message(message, 'R');
	pq_sendint32(message, table->relid);
	pq_sendstring(message, "");
	pq_sendstring(message, "");
	pq_sendbyte(message, 'd');
	pq_sendint16(message, table->desc->natts);
	for (int i = 0; i < table->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(table->desc, i);

		pq_sendbyte(message, 0);
		pq_sendstring(message, att->attisdropped ? "" : NameStr(att->attname));
		pq_sendint32(message, att->atttypid);
		pq_sendint32(message, att->atttypmod);
	}
	put_message(queue, message);
}

static void
put_begin(MigrateQueue *queue, StringInfo message)
{
	begin_message(message, 'B');
	/* after any opening */
	pq_sendint64(message, PG_UINT64_MAX);
	pq_sendint64(message, GetCurrentTimestamp());
	pq_sendint32(message, 0);
	put_message(queue, message);
}

static void
put_truncate(MigrateQueue *queue, List *relids, StringInfo message)
{
	ListCell   *lc;

	begin_message(message, 'T');
	pq_sendint32(message, list_length(relids));
	pq_sendbyte(message, 0);
	foreach(lc, relids)
		pq_sendint32(message, lfirst_oid(lc));
	put_message(queue, message);
}

/* kind: 'I' with the row, 'D' with the key */
static void
put_row(MigrateQueue *queue, NotedTable *table, char kind, char **values, StringInfo message)
{
	begin_message(message, kind);
	pq_sendint32(message, table->relid);
	pq_sendbyte(message, kind == 'I' ? 'N' : 'K');
	append_row(message, values, table->desc->natts);
	put_message(queue, message);
}

/* ----------------------------------------------------------------
 * rows by their keys
 * ----------------------------------------------------------------
 */

/*
 * $1, $2 ... are text arrays, one a key column.  Of each key: its columns, then
 * whether a row has it, then that row.
 */
static char *
lookup_query(NotedTable *table, bool nulls)
{
	StringInfoData sql;
	int			nkeys = table->nkeys;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int k = 0; k < nkeys; k++)
		appendStringInfo(&sql, "k.c%d, ", k);
	appendStringInfoString(&sql, "(t.tableoid IS NOT NULL)::pg_catalog.int4");
	for (int i = 0; i < table->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(table->desc, i);

		if (att->attisdropped)
			appendStringInfoString(&sql, ", NULL");
		else
			appendStringInfo(&sql, ", t.%s", quote_identifier(NameStr(att->attname)));
	}
	appendStringInfoString(&sql, " FROM (SELECT ");
	for (int k = 0; k < nkeys; k++)
	{
		Form_pg_attribute att = TupleDescAttr(table->desc, table->attnums[k] - 1);

		appendStringInfo(&sql, "%su.k%d::%s AS c%d", k > 0 ? ", " : "", k,
						 refetch_type(att->atttypid, -1), k);
	}
	appendStringInfoString(&sql, " FROM (SELECT DISTINCT * FROM ROWS FROM (");
	for (int k = 0; k < nkeys; k++)
		appendStringInfo(&sql, "%spg_catalog.unnest($%d)", k > 0 ? ", " : "", k + 1);
	appendStringInfoString(&sql, ") x(");
	for (int k = 0; k < nkeys; k++)
		appendStringInfo(&sql, "%sk%d", k > 0 ? ", " : "", k);
	appendStringInfo(&sql, ")) u) k LEFT JOIN %s%s t ON ",
					 get_rel_relkind(table->relid) == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(table->relid)),
												get_rel_name(table->relid)));
	for (int k = 0; k < nkeys; k++)
	{
		Form_pg_attribute att = TupleDescAttr(table->desc, table->attnums[k] - 1);
		const char *name = quote_identifier(NameStr(att->attname));

		appendStringInfo(&sql, "%s(t.%s %s k.c%d", k > 0 ? " AND " : "", name,
						 refetch_equals(att->atttypid), k);
		if (nulls)
			appendStringInfo(&sql, " OR t.%s IS NULL AND k.c%d IS NULL", name, k);
		appendStringInfoChar(&sql, ')');
	}
	return sql.data;
}

/* NULL: the relation is gone, or has no keys that go back. */
static NotedTable *
describe_table(MigrateQueue *queue, Oid relid)
{
	NotedTable *table = palloc0(sizeof(NotedTable));
	Oid			types[] = {INT4OID, OIDOID};
	Datum		values[] = {Int32GetDatum(queue->job_id), ObjectIdGetDatum(relid)};
	MemoryContext mcxt = CurrentMemoryContext;
	Relation	rel = try_relation_open(relid, AccessShareLock);

	if (rel == NULL)
		return NULL;
	table->relid = relid;
	table->desc = CreateTupleDescCopy(RelationGetDescr(rel));
	relation_close(rel, NoLock);
	migrate_spi_begin();
	migrate_spi_exec("SELECT k FROM pg_catalog.unnest(migrate._queue_keys($1, $2)) k",
					 2, types, values, NULL, SPI_OK_SELECT);
	MemoryContextSwitchTo(mcxt);
	table->nkeys = (int) SPI_processed;
	table->keys = palloc0(sizeof(char *) * Max(table->nkeys, 1));
	table->attnums = palloc0(sizeof(int) * Max(table->nkeys, 1));
	for (int k = 0; k < table->nkeys; k++)
	{
		table->keys[k] = migrate_spi_text(k, 0);
		table->attnums[k] = get_attnum(relid, table->keys[k]);
	}
	migrate_spi_end();
	MemoryContextSwitchTo(mcxt);
	for (int k = 0; k < table->nkeys; k++)
		if (table->attnums[k] <= 0)
			return NULL;
	if (table->nkeys == 0)
		return NULL;
	table->lookup[0] = lookup_query(table, false);
	table->lookup[1] = lookup_query(table, true);
	return table;
}

/* Row i of the last result: is the key's row there, and how does it spell it? */
static void
take_found(MigrateQueue *queue, NotedTable *table, int i, StringInfo message)
{
	int			natts = table->desc->natts;
	char	  **row = palloc0(sizeof(char *) * Max(natts, 1));
	char	  **key = palloc0(sizeof(char *) * Max(natts, 1));
	bool		there = migrate_spi_int64(i, table->nkeys, 0) != 0;
	bool		other = !there;
	bool		has_null = false;

	for (int a = 0; there && a < natts; a++)
		row[a] = migrate_spi_text(i, table->nkeys + 1 + a);
	for (int k = 0; k < table->nkeys; k++)
	{
		char	   *text = migrate_spi_text(i, k);
		char	   *found = row[table->attnums[k] - 1];

		key[table->attnums[k] - 1] = text;
		has_null = has_null || text == NULL;
		/* equal, but spelled in another way: the source may tell them apart */
		if (there && text && found && strcmp(text, found) != 0)
			other = true;
	}
	if (other && !has_null)
		put_row(queue, table, 'D', key, message);
	if (there)
		put_row(queue, table, 'I', row, message);
}

/* Keys of one table, all with or all without nulls. */
static void
look_up(MigrateQueue *queue, NotedTable *table, Noted *noted, int n)
{
	int			nkeys = table->nkeys;
	Oid		   *types = palloc(sizeof(Oid) * nkeys);
	Datum	   *values = palloc(sizeof(Datum) * nkeys);
	Datum	   *texts = palloc(sizeof(Datum) * n);
	bool	   *nulls = palloc(sizeof(bool) * n);
	MemoryContext mcxt = CurrentMemoryContext;
	StringInfoData message;
	int			level;

	initStringInfo(&message);
	for (int k = 0; k < nkeys; k++)
	{
		int			lbs[] = {1};

		for (int i = 0; i < n; i++)
		{
			nulls[i] = noted[i].key[k] == NULL;
			texts[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(noted[i].key[k]);
		}
		types[k] = TEXTARRAYOID;
		values[k] = PointerGetDatum(construct_md_array(texts, nulls, 1, &n, lbs, TEXTOID,
													   -1, false, TYPALIGN_INT));
	}
	/* a row that is hidden from us would be taken for one that is gone */
	level = NewGUCNestLevel();
	(void) set_config_option("row_security", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	migrate_spi_begin();
	migrate_spi_exec(table->lookup[noted[0].has_null ? 1 : 0], nkeys, types, values, NULL, SPI_OK_SELECT);
	MemoryContextSwitchTo(mcxt);
	for (uint64 i = 0; i < SPI_processed; i++)
		take_found(queue, table, (int) i, &message);
	migrate_spi_end();
	AtEOXact_GUC(true, level);
	MemoryContextSwitchTo(mcxt);
}

/* ----------------------------------------------------------------
 * a batch
 * ----------------------------------------------------------------
 */

/* TRUNCATEs first, then by table. */
static int
compare_noted(const void *a, const void *b)
{
	const Noted *x = a;
	const Noted *y = b;

	if ((x->key == NULL) != (y->key == NULL))
		return x->key == NULL ? -1 : 1;
	if (x->relation != y->relation)
		return x->relation < y->relation ? -1 : 1;
	return (int) x->has_null - (int) y->has_null;
}

static void
read_noted(Noted *noted, uint64 row, MemoryContext mcxt)
{
	HeapTuple	tuple = SPI_tuptable->vals[row];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	bool		isnull;
	Datum		value;

	value = SPI_getbinval(tuple, desc, 1, &isnull);
	noted->place = *(ItemPointer) DatumGetPointer(value);
	noted->relation = DatumGetObjectId(SPI_getbinval(tuple, desc, 2, &isnull));
	value = SPI_getbinval(tuple, desc, 3, &isnull);
	if (!isnull)
	{
		Datum	   *texts;
		bool	   *nulls;
		int			n;

		deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT, &texts, &nulls, &n);
		noted->key = palloc0(sizeof(char *) * Max(n, 1));
		for (int k = 0; k < n; k++)
		{
			if (nulls[k])
				noted->has_null = true;
			else
				noted->key[k] = TextDatumGetCString(texts[k]);
		}
	}
	MemoryContextSwitchTo(old);
}

/* What the snapshot sees of the queue, and all TRUNCATEs of it. */
static Noted *
read_queue(MigrateQueue *queue, int *n)
{
	int64		most = queue->scale * (migrate_fault("queue-small") ? 100 : BATCH_KEYS);
	Oid			types[] = {INT4OID, INT8OID};
	Datum		values[] = {Int32GetDatum(queue->job_id), Int64GetDatum(most)};
	MemoryContext mcxt = CurrentMemoryContext;
	Noted	   *noted;

	migrate_spi_begin();
	migrate_spi_exec("(SELECT q.ctid, q.relation, q.key FROM " QUEUE " q WHERE q.job_id = $1 AND q.key IS NULL)"
					 " UNION ALL"
					 " (SELECT q.ctid, q.relation, q.key FROM " QUEUE " q WHERE q.job_id = $1 AND q.key IS NOT NULL LIMIT $2)",
					 2, types, values, NULL, SPI_OK_SELECT);
	*n = (int) SPI_processed;
	noted = MemoryContextAllocExtended(mcxt, sizeof(Noted) * Max(*n, 1),
									   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (int i = 0; i < *n; i++)
		read_noted(&noted[i], i, mcxt);
	migrate_spi_end();
	MemoryContextSwitchTo(mcxt);
	queue->partial = *n >= most;
	return noted;
}

/* P4: what we have seen must not be lost by a crash once the source has it. */
static void
flush_seen(void)
{
	XLogRecPtr	lsn;
	bool		isnull;

	migrate_spi_begin();
	migrate_spi_exec("SELECT pg_catalog.pg_logical_emit_message(false, 'migrate', 'queue')",
					 0, NULL, NULL, NULL, SPI_OK_SELECT);
	lsn = DatumGetLSN(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	migrate_spi_end();
	XLogFlush(lsn);
}

static void
consumed(MigrateQueue *queue, Noted *noted, int n)
{
	for (int i = 0; i < n; i++)
		queue->places[queue->nplaces++] = PointerGetDatum(&noted[i].place);
}

/* The keys of one table from noted[from] on; where they end. */
static int
read_table(MigrateQueue *queue, Noted *noted, int from, int n)
{
	NotedTable *table = describe_table(queue, noted[from].relation);
	MemoryContext lookup = AllocSetContextCreate(queue->batch, "migrate queue lookup",
												 ALLOCSET_DEFAULT_SIZES);
	Oid			relid = noted[from].relation;
	int			at = from;

	if (table)
	{
		StringInfoData message;

		initStringInfo(&message);
		put_relation(queue, table, &message);
	}
	while (at < n && noted[at].relation == relid)
	{
		MemoryContext old;
		int			to = at;

		CHECK_FOR_INTERRUPTS();
		if (queue->bytes >= queue->scale * BATCH_BYTES)
		{
			queue->partial = true;
			return n;
		}
		while (to < n && to - at < LOOKUP_KEYS && noted[to].relation == relid &&
			   noted[to].has_null == noted[at].has_null)
			to++;
		old = MemoryContextSwitchTo(lookup);
		if (table)
			look_up(queue, table, noted + at, to - at);
		MemoryContextSwitchTo(old);
		MemoryContextReset(lookup);
		consumed(queue, noted + at, to - at);
		at = to;
	}
	return at;
}

static void
read_batch(MigrateQueue *queue)
{
	StringInfoData message;
	List	   *truncated = NIL;
	Noted	   *noted;
	int			n;
	int			at = 0;

	noted = read_queue(queue, &n);
	if (n == 0)
		return;
	flush_seen();
	qsort(noted, n, sizeof(Noted), compare_noted);
	queue->store = tuplestore_begin_heap(false, true, STORE_KB);
	queue->places = MemoryContextAllocHuge(queue->batch, sizeof(Datum) * n);
	initStringInfo(&message);
	put_begin(queue, &message);
	while (at < n && noted[at].key == NULL)
		truncated = list_append_unique_oid(truncated, noted[at++].relation);
	consumed(queue, noted, at);
	if (truncated)
		put_truncate(queue, truncated, &message);
	while (at < n)
		at = read_table(queue, noted, at, n);
}

/*
 * Returns the position before which everything that has committed, and was
 * seen to have by then, is in what was read.
 */
XLogRecPtr
migrate_queue_read(MigrateQueue *queue)
{
	XLogRecPtr	lsn = GetFlushRecPtr(NULL);
	MemoryContext old;

	queue->partial = false;
	StartTransactionCommand();
	/* one snapshot for all */
	XactIsoLevel = XACT_REPEATABLE_READ;
	LockRelationIdForSession(&queue->lock, RowExclusiveLock);
	queue->locked = true;
	old = MemoryContextSwitchTo(queue->batch);
	read_batch(queue);
	MemoryContextSwitchTo(old);
	CommitTransactionCommand();
	if (migrate_queue_empty(queue))
		migrate_queue_forget(queue);
	return lsn;
}

/* In a transaction, when the source has committed. */
void
migrate_queue_delete(MigrateQueue *queue)
{
	Oid			types[] = {INT4OID, TIDARRAYOID};
	Datum		values[2];

	if (queue->nplaces == 0)
		return;
	values[0] = Int32GetDatum(queue->job_id);
	values[1] = PointerGetDatum(construct_array(queue->places, queue->nplaces, TIDOID,
												sizeof(ItemPointerData), false, TYPALIGN_SHORT));
	migrate_spi_begin();
	migrate_spi_exec("DELETE FROM " QUEUE " q WHERE q.job_id = $1 AND q.ctid = ANY ($2)",
					 2, types, values, NULL, SPI_OK_DELETE);
	migrate_spi_end();
}

/*
 * A key that could not be written while others were still to come is looked at
 * again with them.  row: as a JSON object.  In a transaction.
 */
void
migrate_queue_again(int job_id, Oid relid, const char *row)
{
	Oid			types[] = {INT4OID, OIDOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job_id), ObjectIdGetDatum(relid), CStringGetTextDatum(row)};

	migrate_spi_begin();
	migrate_spi_exec("INSERT INTO " QUEUE " (job_id, relation, key) SELECT $1, $2, pg_catalog.array_agg($3::pg_catalog.jsonb ->> k.name ORDER BY k.n)"
					 " FROM pg_catalog.unnest(migrate._queue_keys($1, $2)) WITH ORDINALITY k(name, n)",
					 3, types, values, NULL, SPI_OK_INSERT);
	migrate_spi_end();
}

/* Bytes on disk, of all jobs.  In a transaction. */
int64
migrate_queue_size(MigrateQueue *queue)
{
	Relation	rel = table_open(queue->lock.relId, AccessShareLock);
	int64		size = (int64) RelationGetNumberOfBlocks(rel) * BLCKSZ;

	table_close(rel, AccessShareLock);
	return size;
}

/* Under a lock that nobody shares: is there nothing that anybody will see? */
static bool
is_empty(Relation rel)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	bool		empty = !table_scan_getnextslot(scan, ForwardScanDirection, slot);

	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	return empty;
}

/*
 * Rows that are deleted would be read over again and again until a VACUUM
 * comes, which old transactions hold up.  An empty queue is cut to nothing, if
 * nobody is at work on it: we do not wait, and nobody waits behind us.
 */
void
migrate_queue_trim(MigrateQueue *queue)
{
	StartTransactionCommand();
	if (migrate_queue_size(queue) > (int64) TRIM_BLOCKS * BLCKSZ &&
		ConditionalLockRelationOid(queue->lock.relId, AccessExclusiveLock))
	{
		Relation	rel = table_open(queue->lock.relId, NoLock);

		if (is_empty(rel))
			heap_truncate_one_rel(rel);
		table_close(rel, NoLock);
	}
	CommitTransactionCommand();
}
