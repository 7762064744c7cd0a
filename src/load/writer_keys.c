/*-------------------------------------------------------------------------
 *
 * writer_keys.c
 *	  Two checks of the key map on every mapped row.
 *
 * 1. Key map and mapping agree: a key column that the mapping gives has the
 *	  key map's value.  Else a later look-up by the key map (replay, changes)
 *	  would find another row, or none.
 *
 * 2. Two source rows of a batch do not give the same key.  When a batch is
 *	  tried in halves, the second would find the first one's row and quietly
 *	  overwrite it; so the keys that a batch gave are remembered across its
 *	  attempts, each with the row that gave it.  (Between batches the target's
 *	  unique index tells, see writer.c.)  Keys are told apart by 128 bits of
 *	  their types' hash functions, which agree with equality.
 *
 * Process and crash: as writer.c.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/typcache.h"

typedef struct KeyDigest
{
	uint64		a;
	uint64		b;
} KeyDigest;

typedef struct SeenKey
{
	KeyDigest	digest;			/* the hash key */
	int64		id;				/* the row of the whole batch that gave it */
} SeenKey;

/* The functions of each key column's type, in the writer's memory. */
void
migrate_writer_keys_open(MigrateWriter *writer)
{
	MigrateMapping *map = writer->map;

	writer->keys = palloc0(sizeof(MigrateWriterKey) * Max(map->nkeys, 1));
	for (int k = 0; k < map->nkeys; k++)
	{
		MigrateWriterKey *key = &writer->keys[k];
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(writer->rel),
											  map->key_attnums[k] - 1);
		TypeCacheEntry *type = lookup_type_cache(att->atttypid,
												 TYPECACHE_EQ_OPR_FINFO |
												 TYPECACHE_HASH_EXTENDED_PROC_FINFO);
		Oid			output;
		bool		varlena;

		key->column = -1;
		for (int i = 0; i < map->ncolumns; i++)
			if (map->attnums[i] == map->key_attnums[k])
				key->column = i;
		key->type = att->atttypid;
		key->collation = att->attcollation;
		if (OidIsValid(type->eq_opr_finfo.fn_oid))
			fmgr_info_copy(&key->equal, &type->eq_opr_finfo, CurrentMemoryContext);
		if (OidIsValid(type->hash_extended_proc_finfo.fn_oid))
			fmgr_info_copy(&key->hash, &type->hash_extended_proc_finfo,
						   CurrentMemoryContext);
		getTypeOutputInfo(att->atttypid, &output, &varlena);
		fmgr_info(output, &key->output);
	}
}

/*
 * A new batch of so many rows: forget the last one's keys.  The table lives in
 * mcxt, which the caller resets when the batch is done.
 */
void
migrate_writer_keys_begin(MigrateWriter *writer, MemoryContext mcxt, int64 rows)
{
	HASHCTL		ctl = {
		.keysize = sizeof(KeyDigest),
		.entrysize = sizeof(SeenKey),
		.hcxt = mcxt,
	};

	writer->seen = NULL;
	/* a table without any index, or a single row, shows no doubles */
	if (writer->way == &migrate_writer_fresh || writer->map->nkeys == 0 || rows < 2)
		return;
	writer->seen = hash_create("migrate keys of a batch", rows, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* The k-th key value of a mapped row. */
static Datum
key_value(MigrateWriter *writer, TupleTableSlot *slot, int k, bool *isnull)
{
	int			i = writer->map->ncolumns + k;

	*isnull = slot->tts_isnull[i];
	return slot->tts_values[i];
}

/*
 * Whether the mapping gives the key map's values; if not, *which is the key
 * column that differs.
 */
bool
migrate_writer_key_agrees(MigrateWriter *writer, TupleTableSlot *slot, int *which)
{
	for (int k = 0; k < writer->map->nkeys; k++)
	{
		MigrateWriterKey *key = &writer->keys[k];
		bool		isnull;
		Datum		value = key_value(writer, slot, k, &isnull);
		bool		same;

		if (key->column < 0)
			continue;
		if (isnull || slot->tts_isnull[key->column])
			same = isnull == slot->tts_isnull[key->column];
		else if (OidIsValid(key->equal.fn_oid))
			same = DatumGetBool(FunctionCall2Coll(&key->equal, key->collation, value,
												  slot->tts_values[key->column]));
		else
		{
			Form_pg_attribute att = TupleDescAttr(slot->tts_tupleDescriptor, key->column);

			same = datum_image_eq(value, slot->tts_values[key->column],
								  att->attbyval, att->attlen);
		}
		*which = k;
		if (!same)
			return false;
	}
	return true;
}

/* 128 bits of a row's key values; false when one is null. */
static bool
key_digest(MigrateWriter *writer, TupleTableSlot *slot, KeyDigest *digest)
{
	memset(digest, 0, sizeof(KeyDigest));
	for (int k = 0; k < writer->map->nkeys; k++)
	{
		MigrateWriterKey *key = &writer->keys[k];
		bool		isnull;
		Datum		value = key_value(writer, slot, k, &isnull);
		uint64		a;
		uint64		b;

		if (isnull)
			return false;
		if (OidIsValid(key->hash.fn_oid))
		{
			a = DatumGetUInt64(FunctionCall2Coll(&key->hash, key->collation, value,
												 Int64GetDatum(0x6d69)));
			b = DatumGetUInt64(FunctionCall2Coll(&key->hash, key->collation, value,
												 Int64GetDatum(0x6772)));
		}
		else
		{
			char	   *s = OutputFunctionCall(&key->output, value);

			a = DatumGetUInt64(hash_any_extended((unsigned char *) s, strlen(s), 0x6d69));
			b = DatumGetUInt64(hash_any_extended((unsigned char *) s, strlen(s), 0x6772));
			pfree(s);
		}
		digest->a = hash_combine64(digest->a, a);
		digest->b = hash_combine64(digest->b, b);
	}
	return true;
}

/*
 * Whether no other row of the batch has given this key.  Remembers it.  A null
 * in the key is no key: nothing is equal to it.
 */
bool
migrate_writer_key_is_new(MigrateWriter *writer, TupleTableSlot *slot, int64 id)
{
	KeyDigest	digest;
	SeenKey    *entry;
	bool		found;

	if (writer->seen == NULL || !key_digest(writer, slot, &digest))
		return true;
	entry = hash_search(writer->seen, &digest, HASH_ENTER, &found);
	if (!found)
		entry->id = id;
	return entry->id == id;
}

/* A row became a dead letter: what it gave is free for others. */
void
migrate_writer_keys_forget(MigrateWriter *writer, int64 id)
{
	HASH_SEQ_STATUS scan;
	SeenKey    *entry;

	if (writer->seen == NULL)
		return;
	hash_seq_init(&scan, writer->seen);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (entry->id == id)
			hash_search(writer->seen, &entry->digest, HASH_REMOVE, NULL);
}

/* "(a, b)=(1, x)", as core's messages show a key. */
char *
migrate_writer_key_text(MigrateWriter *writer, TupleTableSlot *slot)
{
	StringInfoData names;
	StringInfoData values;

	initStringInfo(&names);
	initStringInfo(&values);
	for (int k = 0; k < writer->map->nkeys; k++)
	{
		bool		isnull;
		Datum		value = key_value(writer, slot, k, &isnull);

		appendStringInfo(&names, "%s%s", k > 0 ? ", " : "", writer->map->key_columns[k]);
		appendStringInfo(&values, "%s%s", k > 0 ? ", " : "",
						 isnull ? "null" : OutputFunctionCall(&writer->keys[k].output, value));
	}
	return psprintf("(%s)=(%s)", names.data, values.data);
}
