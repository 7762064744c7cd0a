/*-------------------------------------------------------------------------
 *
 * apply_letter.c
 *	  Dead letters of changes, and those that a change supersedes.
 *
 * A change that comes for a key with open letters makes them 'superseded': the
 * row is right again, or has a new letter, or is gone.  The keys of open
 * letters are held in memory, by 128 bits, so that a change costs nothing
 * where there are none.  Others write letters, too (a step that builds a key or
 * an index, a replay), holding a lock on the target or the writer lock: who
 * has the target locked and sees the same last number of letters as before
 * has missed none.
 *
 * Process: apply worker.  Locks: ACCESS SHARE on the sequence of letters.  A
 * crash leaves nothing: all is in the caller's transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/apply_set.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

typedef struct LetterKey
{
	uint64		a;
	uint64		b;
} LetterKey;

static LetterKey
letter_key(const char *key)
{
	int			len = strlen(key);
	LetterKey	result;

	result.a = DatumGetUInt64(hash_any_extended((const unsigned char *) key, len, 0x6d69));
	result.b = DatumGetUInt64(hash_any_extended((const unsigned char *) key, len, 0x6772));
	return result;
}

/*
 * The last number that a letter got, committed or not: the sequence's row,
 * read as it is, since SQL would ask for a privilege that owners of jobs do
 * not have.
 */
static int64
last_letter(void)
{
	Oid			oid = get_relname_relid("dead_letter_id_seq",
										get_namespace_oid("migrate", false));
	Relation	sequence = relation_open(oid, AccessShareLock);
	Buffer		buffer = ReadBuffer(sequence, 0);
	Page		page;
	HeapTupleHeader tuple;
	Form_pg_sequence_data data;
	int64		last;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	tuple = (HeapTupleHeader) PageGetItem(page, PageGetItemId(page, FirstOffsetNumber));
	data = (Form_pg_sequence_data) ((char *) tuple + tuple->t_hoff);
	last = data->is_called ? data->last_value : 0;
	UnlockReleaseBuffer(buffer);
	relation_close(sequence, AccessShareLock);
	return last;
}

/* The keys of the open letters of one mapping. */
static void
load_target(MigrateApplier *applier, ApplyTarget *target)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(target->map->mapping_id)};

	if (target->letters)
		hash_destroy(target->letters);
	target->letters = NULL;
	migrate_spi_exec("SELECT d.key::text FROM migrate.dead_letter d"
					 " WHERE d.mapping_id = $1 AND d.state = 'open' AND d.key IS NOT NULL",
					 1, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		HASHCTL		ctl = {
			.keysize = sizeof(LetterKey),
			.entrysize = sizeof(LetterKey),
			.hcxt = applier->plans,
		};

		target->letters = hash_create("migrate open letters", SPI_processed, &ctl,
									  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			LetterKey	key = letter_key(migrate_spi_text(i, 0));

			(void) hash_search(target->letters, &key, HASH_ENTER, NULL);
		}
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Know the open letters of all targets, which are locked; reads them when any
 * letter was written since.
 */
void
migrate_letters_load(MigrateApplier *applier)
{
	int64		last;
	ListCell   *lc;

	if (applier->src->nkeys == 0)
		return;
	last = last_letter();
	if (last == applier->letters_at)
		return;
	SPI_connect();
	foreach(lc, applier->targets)
		load_target(applier, lfirst(lc));
	SPI_finish();
	applier->letters_at = last;
}

typedef struct Superseded
{
	HTAB	   *letters;
	ArrayBuildState *keys;		/* text */
} Superseded;

static void
note_superseded(int64 row, const char *key, void *arg)
{
	Superseded *superseded = arg;
	LetterKey	digest = letter_key(key);
	bool		found;

	(void) hash_search(superseded->letters, &digest, HASH_FIND, &found);
	if (found)
		superseded->keys = accumArrayResult(superseded->keys, CStringGetTextDatum(key),
											false, TEXTOID, CurrentMemoryContext);
}

/*
 * Open letters of the rows' keys are superseded; returns how many.  Those of
 * the same rows that fail again are written after this.
 */
int64
migrate_letters_supersede(ApplyTarget *target, MigrateBatch *rows)
{
	Superseded	superseded = {.letters = target->letters};
	Oid			types[] = {INT4OID, TEXTARRAYOID};
	Datum		values[2] = {Int32GetDatum(target->map->mapping_id)};
	int64		n;

	if (target->letters == NULL || rows->nrows == 0)
		return 0;
	superseded.keys = initArrayResult(TEXTOID, CurrentMemoryContext, true);
	migrate_batch_keys_json(rows, note_superseded, &superseded);
	if (superseded.keys->nelems == 0)
		return 0;
	values[1] = makeArrayResult(superseded.keys, CurrentMemoryContext);
	SPI_connect();
	migrate_spi_exec("UPDATE migrate.dead_letter d SET state = 'superseded', updated_at = now()"
					 " WHERE d.mapping_id = $1 AND d.state = 'open' AND d.key::text = ANY ($2)",
					 2, types, values, NULL, SPI_OK_UPDATE);
	n = SPI_processed;
	SPI_finish();
	return n;
}

void
migrate_letter_insert(MigrateApplier *applier, ApplyTarget *target, const char *stage,
					  const char *key, const char *row, const char *raw, ErrorData *error)
{
	MigrateLoadContext ctx = {.job = applier->job,.chunk_id = 0,.stage = stage};

	migrate_dead_letter_insert(&ctx, target->map->mapping_id, stage, key, row, raw, error,
							   target->map->version);
}

/* The letters of a set that is done. */
void
migrate_letters_insert(ApplySet *set)
{
	ListCell   *lc;

	foreach(lc, set->letters)
	{
		ApplyLetter *letter = lfirst(lc);
		char	   *row;
		char	   *key;

		migrate_batch_row_json(set->rows, letter->number, &row, &key);
		migrate_letter_insert(set->applier, set->target, letter->stage, key,
							  set->remove ? NULL : row, NULL, letter->error);
	}
}
