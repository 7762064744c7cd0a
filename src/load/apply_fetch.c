/*-------------------------------------------------------------------------
 *
 * apply_fetch.c
 *	  Rows by their keys from the source, for changes that do not tell all.
 *
 * An unchanged TOAST value is not in the stream.  Where it is needed, the row
 * is read from the source as it is there now: it may be ahead of the applied
 * position, and the changes between will come and say the same or more.  A row
 * that is not found was deleted meanwhile, or its key was changed; both follow
 * in the stream.  A row that cannot be read becomes a dead letter.
 *
 * Process: apply worker, holding the writer lock (P14).  On the source: a
 * transaction of its own, ended here, after what was read is durable there
 * (P4).  A crash leaves nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/apply_set.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* keys in one statement */
#define FETCH_KEYS 1000

typedef struct Fetch
{
	MigrateApplier *applier;
	MigrateConn *conn;
	MigrateBatch *asked;
	ApplyFetch *result;
	char	 ***keys;			/* by number asked for, as MigrateRange.key_at */
	HTAB	   *by_key;			/* digest of key text -> number */
	MigrateApplyCounts *counts;
	MigrateReader *reader;
} Fetch;

typedef struct FetchKey
{
	uint64		digest[2];
	int64		number;
} FetchKey;

static void
key_digest(const char *key, uint64 *digest)
{
	int			len = strlen(key);

	digest[0] = DatumGetUInt64(hash_any_extended((const unsigned char *) key, len, 1));
	digest[1] = DatumGetUInt64(hash_any_extended((const unsigned char *) key, len, 2));
}

/* ----------------------------------------------------------------
 * the keys that are asked for
 * ----------------------------------------------------------------
 */

/* The key columns of the rows that are wanted, as text. */
static void
read_keys(Fetch *fetch, const uint8 *wanted)
{
	MigrateSource *src = fetch->applier->src;
	int			level = migrate_pin_output();
	TupleTableSlot *slot = migrate_batch_scan(fetch->asked);
	FmgrInfo   *output = palloc(sizeof(FmgrInfo) * src->nkeys);

	for (int k = 0; k < src->nkeys; k++)
	{
		Oid			function;
		bool		varlena;

		getTypeOutputInfo(src->columns[src->keys[k]].type, &function, &varlena);
		fmgr_info(function, &output[k]);
	}
	fetch->keys = palloc0(sizeof(char **) * fetch->asked->nrows);
	for (int64 i = 0; migrate_batch_next(fetch->asked, slot); i++)
	{
		if (!migrate_bit(wanted, i))
			continue;
		fetch->keys[i] = palloc0(sizeof(char *) * (src->nkeys + 1));
		for (int k = 0; k < src->nkeys; k++)
			if (!slot->tts_isnull[src->keys[k]])
				fetch->keys[i][k] = OutputFunctionCall(&output[k],
													   slot->tts_values[src->keys[k]]);
	}
	ExecDropSingleTupleTableSlot(slot);
	AtEOXact_GUC(true, level);
}

static void
remember_number(int64 row, const char *key, void *arg)
{
	Fetch	   *fetch = arg;
	FetchKey	probe;
	FetchKey   *entry;

	if (fetch->keys[row] == NULL)
		return;
	key_digest(key, probe.digest);
	entry = hash_search(fetch->by_key, probe.digest, HASH_ENTER, NULL);
	entry->number = row;
}

/* A row that was found belongs to the number whose key it has. */
static void
note_found(int64 row, const char *key, void *arg)
{
	Fetch	   *fetch = arg;
	FetchKey	probe;
	FetchKey   *entry;

	key_digest(key, probe.digest);
	entry = hash_search(fetch->by_key, probe.digest, HASH_FIND, NULL);
	fetch->result->numbers[row] = entry ? entry->number : -1;
	if (entry)
		migrate_set_bit(fetch->result->found, entry->number);
}

/* ----------------------------------------------------------------
 * reading
 * ----------------------------------------------------------------
 */
static void
read_range(Fetch *fetch, MigrateRange *range)
{
	MigrateSource *src = fetch->applier->src;
	Datum	   *values = palloc(sizeof(Datum) * Max(src->ncolumns, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(src->ncolumns, 1));
	MigrateBatch *part = migrate_batch_create(src);
	TupleTableSlot *slot;
	int64		bytes;

	fetch->reader = migrate_reader_open(fetch->conn, src, range,
										fetch->applier->job->fetch_size);
	while (migrate_reader_next(fetch->reader, values, nulls, &bytes))
		migrate_batch_add(part, values, nulls, bytes);
	migrate_reader_close(fetch->reader);
	fetch->reader = NULL;

	/* only now, when all of them could be read */
	slot = migrate_batch_scan(part);
	while (migrate_batch_next(part, slot))
		migrate_batch_add(fetch->result->rows, slot->tts_values, slot->tts_isnull, 0);
	ExecDropSingleTupleTableSlot(slot);
	migrate_batch_free(part);
}

/* Read the rows of these keys; the error, if it is the fault of one of them. */
static ErrorData *
try_range(Fetch *fetch, MigrateRange *range)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		read_range(fetch, range);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		edata = CopyErrorData();
		if (!migrate_reader_error_is_of_row(fetch->reader, edata))
			PG_RE_THROW();
		FlushErrorState();
		if (fetch->reader)
			migrate_reader_abort(fetch->reader);
		fetch->reader = NULL;
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	return edata;
}

/* A row that cannot be read here. */
static void
bury_unreadable(Fetch *fetch, int64 number, MigrateRange *range, ErrorData *edata)
{
	MigrateSource *src = fetch->applier->src;
	char	   *key;
	char	   *row;
	char	   *raw;

	range->relation = quote_qualified_identifier(src->remote_schema, src->remote_table);
	migrate_range_raw(fetch->conn, src, range, &key, &raw);
	migrate_batch_row_json(fetch->asked, number, &row, &key);
	migrate_apply_unreadable(fetch->applier, key, raw, edata);
	fetch->counts->dead += list_length(fetch->applier->targets);
	migrate_set_bit(fetch->result->found, number);
}

static void
fetch_keys(Fetch *fetch, const int64 *numbers, int n)
{
	MigrateRange range = {.block_hi = -1};
	ErrorData  *edata;

	if (n == 0)
		return;
	CHECK_FOR_INTERRUPTS();
	for (int i = 0; i < n; i++)
		range.keys_at = lappend(range.keys_at, fetch->keys[numbers[i]]);
	edata = try_range(fetch, &range);
	if (edata == NULL)
		return;
	if (n == 1)
	{
		range.keys_at = NIL;
		range.key_at = fetch->keys[numbers[0]];
		bury_unreadable(fetch, numbers[0], &range, edata);
		return;
	}
	fetch_keys(fetch, numbers, n / 2);
	fetch_keys(fetch, numbers + n / 2, n - n / 2);
}

/*
 * The rows of "wanted" (bits, by number) as they are on the source now, in the
 * current memory context.
 */
void
migrate_fetch_rows(MigrateApplier *applier, MigrateBatch *rows, const uint8 *wanted,
				   MigrateConn *conn, ApplyFetch *result, MigrateApplyCounts *counts)
{
	Fetch		fetch = {.applier = applier,.conn = conn,.asked = rows,
	.result = result,.counts = counts};
	HASHCTL		ctl = {
		.keysize = sizeof(uint64) * 2,
		.entrysize = sizeof(FetchKey),
		.hcxt = CurrentMemoryContext,
	};
	MigrateSourceTxn txn;
	int64	   *numbers = palloc(sizeof(int64) * FETCH_KEYS);
	int			n = 0;

	result->rows = migrate_batch_create(applier->src);
	result->found = palloc0(rows->nrows / 8 + 1);
	fetch.by_key = hash_create("migrate rows to fetch", 64, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	read_keys(&fetch, wanted);
	migrate_batch_keys_json(rows, remember_number, &fetch);

	migrate_source_begin(conn, applier->src, NULL, &txn);
	for (int64 i = 0; i < rows->nrows; i++)
	{
		if (fetch.keys[i] == NULL)
			continue;
		numbers[n++] = i;
		if (n < FETCH_KEYS)
			continue;
		fetch_keys(&fetch, numbers, n);
		n = 0;
	}
	fetch_keys(&fetch, numbers, n);
	migrate_source_wait_durable(conn, &txn);
	migrate_source_end(conn);

	result->numbers = palloc(sizeof(int64) * Max(result->rows->nrows, 1));
	migrate_batch_keys_json(result->rows, note_found, &fetch);
}
