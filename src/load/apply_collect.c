/*-------------------------------------------------------------------------
 *
 * apply_collect.c
 *	  Changes of a batch, compacted to the net effect per key, and written
 *	  set by set.
 *
 * Apply worker, in the transaction of a batch; memory only, until the flush.
 * The rules (PROTOCOL P12):
 *
 *	  insert				the newest image of its key
 *	  update				the same; columns that the message does not have
 *							(unchanged TOAST) come from the image before, or
 *							from the old row where the source sends it whole;
 *							else they are not known
 *	  update of the key		the old key is gone, the new one has the image,
 *							which takes unknown columns from the old key's
 *	  delete				the key is gone
 *	  TRUNCATE				what came before is written first
 *
 * Keys are compared by their text on the source.  Two texts of one value (1.0
 * and 1.00) are two keys here; since what is gone is deleted before any image
 * is written, that comes out right.
 *
 * A key that is gone and has an image again is deleted first only if the image
 * is not whole: a whole one replaces whatever is there.
 *
 * A newest image that cannot be read is a dead letter.  An earlier one of the
 * batch is not written in its place, and the row in the target, which is older
 * still, is taken away (migrate_apply_unreadable): the open letter stands for it.
 *
 * Without a key, rows are a bag: whole rows with the number that came or went.
 *
 * Memory: rows are copied into an arena, bounded by the batch's limits; one
 * larger transaction is written in several sets.  Hash tables of large batches
 * are freed.  A crash leaves nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "common/int.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "load/apply_worker.h"

#define BLOCK_BYTES ((Size) 1024 * 1024)

/* a larger hash table is not kept for the next batch */
#define KEEP_BUCKETS 8192

typedef struct HashSlot
{
	ApplyEntry *entry;
	uint32		hash;
	char		status;
} HashSlot;

#define SH_PREFIX entries
#define SH_ELEMENT_TYPE HashSlot
#define SH_KEY_TYPE ApplyEntry *
#define SH_KEY entry
#define SH_HASH_KEY(tb, key) (key)->hash
#define SH_EQUAL(tb, a, b) ((a)->keylen == (b)->keylen && memcmp((a)->key, (b)->key, (a)->keylen) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) (a)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* columns of a message's row, in the order of src->columns */
typedef struct Values
{
	int			max;
	char	   *kind;
	int		   *len;
	const char **value;
} Values;

/* scratch: of the new row and the old one, and their keys */
static Values new_values;
static Values old_values;
static StringInfoData new_key;
static StringInfoData old_key;

/* ----------------------------------------------------------------
 * the arena
 * ----------------------------------------------------------------
 */
void
migrate_collect_open(ApplyWorker *w)
{
	ApplyArena *arena = &w->arena;

	memset(arena, 0, sizeof(*arena));
	arena->mcxt = AllocSetContextCreate(w->session, "migrate apply batch",
										ALLOCSET_DEFAULT_SIZES);
	arena->large = AllocSetContextCreate(arena->mcxt, "migrate apply large rows",
										 ALLOCSET_DEFAULT_SIZES);
	arena->current = -1;
	w->dirty = NIL;
	w->collected = 0;
	if (new_key.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&new_key);
		initStringInfo(&old_key);
		MemoryContextSwitchTo(old);
	}
}

/* The next block, made when there is none. */
static void
next_block(ApplyArena *arena)
{
	if (++arena->current == arena->nblocks)
	{
		if (arena->nblocks == arena->max_blocks)
		{
			arena->max_blocks = Max(16, 2 * arena->max_blocks);
			arena->blocks = arena->blocks ?
				repalloc(arena->blocks, arena->max_blocks * sizeof(char *)) :
				MemoryContextAlloc(arena->mcxt, arena->max_blocks * sizeof(char *));
		}
		arena->blocks[arena->nblocks++] = MemoryContextAlloc(arena->mcxt, BLOCK_BYTES);
	}
	arena->at = arena->blocks[arena->current];
	arena->end = arena->at + BLOCK_BYTES;
}

static inline void *
arena_alloc(ApplyArena *arena, Size size)
{
	char	   *p;

	size = MAXALIGN(size);
	arena->used += size;
	if (unlikely(size > arena->end - arena->at))
	{
		if (size > BLOCK_BYTES / 4)
			return MemoryContextAllocHuge(arena->large, size);
		next_block(arena);
	}
	p = arena->at;
	arena->at += size;
	return p;
}

static void
arena_reset(ApplyArena *arena)
{
	if (arena->used == 0)
		return;
	arena->used = 0;
	arena->current = -1;
	arena->at = arena->end = NULL;
	MemoryContextReset(arena->large);
}

/* ----------------------------------------------------------------
 * rows
 * ----------------------------------------------------------------
 */

/* A row of a message by the columns of the source. */
static void
take_values(Values *v, ApplyMap *map, MigrateRemoteTuple *tuple)
{
	int			n = map->source->src->ncolumns;

	if (n > v->max)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		v->max = n;
		v->kind = palloc(n * sizeof(char));
		v->len = palloc(n * sizeof(int));
		v->value = palloc(n * sizeof(char *));
		MemoryContextSwitchTo(old);
	}
	for (int i = 0; i < n; i++)
	{
		int			from = map->from[i];

		if (likely(from >= 0))
		{
			if (unlikely(from >= tuple->ncolumns))
				ereport(ERROR,
						(errcode(ERRCODE_PROTOCOL_VIOLATION),
						 errmsg("a row of the stream has %d columns, not as its table was described",
								tuple->ncolumns)));
			v->kind[i] = tuple->kind[from];
			v->len[i] = tuple->len[from];
			v->value[i] = tuple->value[from];
		}
		else
			v->kind[i] = from == APPLY_NOT_KNOWN ? 'u' : 'n';
	}
}

/* P12: what the new row does not have, the old one may, where it is sent. */
static int
carry_from_old_row(ApplySource *source, char old_kind)
{
	MigrateSource *src = source->src;
	int			unknown = 0;

	for (int i = 0; i < src->ncolumns; i++)
	{
		if (new_values.kind[i] != 'u')
			continue;
		if ((old_kind == 'O' || (old_kind == 'K' && src->columns[i].is_key)) &&
			old_values.kind[i] != 'u')
		{
			new_values.kind[i] = old_values.kind[i];
			new_values.len[i] = old_values.len[i];
			new_values.value[i] = old_values.value[i];
		}
		else
			unknown++;
	}
	return unknown;
}

/* P12: or an earlier image of the row in this batch. */
static int
carry_from_image(ApplySource *source, ApplyRow *image)
{
	int			n = source->src->ncolumns;
	const char *at = image->data + n;
	int			unknown = 0;

	for (int i = 0; i < n; i++)
	{
		uint32		len = 0;

		if (image->data[i] == 't')
		{
			memcpy(&len, at, sizeof(len));
			at += sizeof(len);
		}
		if (new_values.kind[i] == 'u')
		{
			if (image->data[i] == 'u')
				unknown++;
			new_values.kind[i] = image->data[i];
			new_values.len[i] = len;
			new_values.value[i] = at;
		}
		if (image->data[i] == 't')
			at += len + 1;
	}
	return unknown;
}

/* Copy a row into the batch. */
static ApplyRow *
keep_row(ApplyWorker *w, ApplySource *source, Values *v, int unknown)
{
	int			n = source->src->ncolumns;
	Size		size = n;
	ApplyRow   *row;
	char	   *at;

	for (int i = 0; i < n; i++)
		if (v->kind[i] == 't')
			size += sizeof(uint32) + v->len[i] + 1;
	if (size > PG_UINT32_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a row of source \"%s\" is too large", source->src->label)));
	row = arena_alloc(&w->arena, offsetof(ApplyRow, data) + size);
	row->unknown = unknown;
	row->size = (uint32) size;
	memcpy(row->data, v->kind, n);
	at = row->data + n;
	for (int i = 0; i < n; i++)
	{
		uint32		len;

		if (v->kind[i] != 't')
			continue;
		len = v->len[i];
		memcpy(at, &len, sizeof(len));
		memcpy(at + sizeof(len), v->value[i], len);
		at += sizeof(len) + len;
		*at++ = '\0';
	}
	return row;
}

/* ----------------------------------------------------------------
 * keys
 * ----------------------------------------------------------------
 */

/* A key: of each column its length (uint32, PG_UINT32_MAX: null) and bytes. */
static void
build_key(ApplySource *source, Values *v, StringInfo key)
{
	MigrateSource *src = source->src;

	resetStringInfo(key);
	for (int k = 0; k < src->nkeys; k++)
	{
		int			i = src->keys[k];
		uint32		len = v->kind[i] == 't' ? (uint32) v->len[i] : PG_UINT32_MAX;

		if (unlikely(v->kind[i] == 'u'))
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the stream does not have column \"%s\" of a row of source \"%s\", which is of its key",
							src->columns[i].name, src->label)));
		appendBinaryStringInfo(key, (char *) &len, sizeof(len));
		if (v->kind[i] == 't')
			appendBinaryStringInfo(key, v->value[i], v->len[i]);
	}
}

static void
set_dirty(ApplyWorker *w, ApplySource *source)
{
	MemoryContext old;

	if (source->dirty)
		return;
	old = MemoryContextSwitchTo(w->session);
	source->dirty = true;
	w->dirty = lappend(w->dirty, source);
	if (source->hash == NULL)
		source->hash = entries_create(w->session, 64, NULL);
	MemoryContextSwitchTo(old);
}

static ApplyEntry *
new_entry(ApplyWorker *w, ApplySource *source, ApplyEntry *probe)
{
	ApplyEntry *entry = arena_alloc(&w->arena, sizeof(ApplyEntry));

	*entry = *probe;
	if (source->nentries == source->max_entries)
	{
		source->max_entries = Max(64, 2 * source->max_entries);
		source->entries = source->entries ?
			repalloc_huge(source->entries, source->max_entries * sizeof(ApplyEntry *)) :
			MemoryContextAllocHuge(w->session, source->max_entries * sizeof(ApplyEntry *));
	}
	source->entries[source->nentries++] = entry;
	w->collected++;
	return entry;
}

/* The entry of a key; NULL when there is none, unless it is to be made. */
static ApplyEntry *
entry_of(ApplyWorker *w, ApplySource *source, StringInfo key, bool make)
{
	ApplyEntry	probe = {0};
	HashSlot   *slot;
	bool		found;

	probe.key = key->data;
	probe.keylen = key->len;
	probe.hash = hash_bytes((const unsigned char *) key->data, key->len);
	if (!make)
	{
		slot = entries_lookup(source->hash, &probe);
		return slot ? slot->entry : NULL;
	}
	slot = entries_insert(source->hash, &probe, &found);
	if (!found)
	{
		char	   *copy = arena_alloc(&w->arena, key->len);

		memcpy(copy, key->data, key->len);
		probe.key = copy;
		slot->entry = new_entry(w, source, &probe);
	}
	return slot->entry;
}

/* ----------------------------------------------------------------
 * changes
 * ----------------------------------------------------------------
 */
static void
collect_insert(ApplyWorker *w, ApplyMap *map)
{
	ApplySource *source = map->source;
	int			unknown = 0;

	take_values(&new_values, map, &w->msg.new_row);
	/* columns that the message is too old for */
	for (int i = 0; i < source->src->ncolumns; i++)
		unknown += new_values.kind[i] == 'u';
	build_key(source, &new_values, &new_key);
	entry_of(w, source, &new_key, true)->image = keep_row(w, source, &new_values, unknown);
}

static void
collect_update(ApplyWorker *w, ApplyMap *map)
{
	ApplySource *source = map->source;
	ApplyEntry *before = NULL;
	bool		moved = false;
	int			unknown;

	take_values(&new_values, map, &w->msg.new_row);
	if (w->msg.old_kind)
		take_values(&old_values, map, &w->msg.old_row);
	unknown = carry_from_old_row(source, w->msg.old_kind);
	build_key(source, &new_values, &new_key);
	if (w->msg.old_kind)
	{
		build_key(source, &old_values, &old_key);
		moved = old_key.len != new_key.len ||
			memcmp(old_key.data, new_key.data, old_key.len) != 0;
	}
	if (moved)
	{
		before = entry_of(w, source, &old_key, true);
		if (unknown > 0 && before->image)
			unknown = carry_from_image(source, before->image);
		before->image = NULL;
		before->gone = keep_row(w, source, &old_values, 0);
	}
	else if (unknown > 0 &&
			 (before = entry_of(w, source, &new_key, false)) != NULL && before->image)
		unknown = carry_from_image(source, before->image);
	entry_of(w, source, &new_key, true)->image = keep_row(w, source, &new_values, unknown);
}

static void
collect_delete(ApplyWorker *w, ApplyMap *map)
{
	ApplySource *source = map->source;
	ApplyEntry *entry;

	take_values(&old_values, map, &w->msg.old_row);
	build_key(source, &old_values, &old_key);
	entry = entry_of(w, source, &old_key, true);
	entry->image = NULL;
	entry->gone = keep_row(w, source, &old_values, 0);
}

/* From now on the rows of a bag are found, since one went. */
static void
hash_bag(ApplySource *source)
{
	source->hashed = true;
	for (int i = 0; i < source->nentries; i++)
	{
		ApplyEntry *entry = source->entries[i];
		bool		found;
		HashSlot   *slot;

		entry->hash = hash_bytes((const unsigned char *) entry->key, entry->keylen);
		slot = entries_insert(source->hash, entry, &found);
		if (found)
		{
			slot->entry->count += entry->count;
			entry->count = 0;
		}
	}
}

/* A whole row came (1) or went (-1). */
static void
collect_whole(ApplyWorker *w, ApplySource *source, Values *v, int count)
{
	ApplyRow   *row = keep_row(w, source, v, 0);
	ApplyEntry	probe = {.key = row->data,.keylen = row->size,.image = row,.count = count};
	HashSlot   *slot;
	bool		found;

	for (int i = 0; i < source->src->ncolumns; i++)
		if (v->kind[i] == 'u')
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the stream does not have column \"%s\" of a row of source \"%s\", which has no key",
							source->src->columns[i].name, source->src->label),
					 errhint("Copy the table again with migrate_recopy.")));
	if (count < 0 && !source->hashed)
		hash_bag(source);
	if (!source->hashed)
	{
		(void) new_entry(w, source, &probe);
		return;
	}
	probe.hash = hash_bytes((const unsigned char *) probe.key, probe.keylen);
	slot = entries_insert(source->hash, &probe, &found);
	if (found)
		slot->entry->count += count;
	else
		slot->entry = new_entry(w, source, &probe);
}

static void
collect_in_bag(ApplyWorker *w, ApplyMap *map)
{
	ApplySource *source = map->source;
	MigrateMessage *msg = &w->msg;

	if (msg->type != 'I')
		take_values(&old_values, map, &msg->old_row);
	if (msg->type != 'D')
		take_values(&new_values, map, &msg->new_row);
	if (msg->type == 'U')
		(void) carry_from_old_row(source, msg->old_kind);
	if (msg->type != 'I')
		collect_whole(w, source, &old_values, -1);
	if (msg->type != 'D')
		collect_whole(w, source, &new_values, 1);
}

/* The change in w->msg, for one source table. */
void
migrate_collect_change(ApplyWorker *w, ApplyRelation *rel, ApplyMap *map)
{
	MigrateMessage *msg = &w->msg;

	if (msg->type != 'I' && map->no_key)
		migrate_apply_pause(w, "%s", map->no_key);
	if (msg->type == 'D' && msg->old_kind == 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("a delete from source \"%s\" has no old row", map->source->src->label)));
	set_dirty(w, map->source);
	if (map->source->src->nkeys == 0)
		collect_in_bag(w, map);
	else if (msg->type == 'I')
		collect_insert(w, map);
	else if (msg->type == 'U')
		collect_update(w, map);
	else
		collect_delete(w, map);
}

/* ----------------------------------------------------------------
 * sorting
 * ----------------------------------------------------------------
 */

/* an entry with the beginning of its key as a number in the key's order */
typedef struct SortItem
{
	uint64		first;
	ApplyEntry *entry;
} SortItem;

static bool
is_integer(Oid type)
{
	return type == INT4OID || type == INT8OID || type == INT2OID;
}

/* A key column as a number: integers by value, else the text's first bytes. */
static uint64
sort_number(const char *text, uint32 len, bool integer)
{
	uint64		n = 0;

	if (integer)
	{
		bool		minus = len > 0 && text[0] == '-';

		for (uint32 i = minus; i < len; i++)
			n = n * 10 + (text[i] - '0');
		return (minus ? (uint64) (-(int64) n) : n) ^ (UINT64CONST(1) << 63);
	}
	memcpy(&n, text, Min(len, sizeof(n)));
	return pg_ntoh64(n);
}

/* Columns behind the first, or what is left of its text. */
static int
compare_keys(ApplySource *source, ApplyEntry *a, ApplyEntry *b)
{
	MigrateSource *src = source->src;
	const char *x = a->key;
	const char *y = b->key;

	for (int k = 0; k < src->nkeys; k++)
	{
		uint32		xlen,
					ylen;
		int			diff;

		memcpy(&xlen, x, sizeof(xlen));
		memcpy(&ylen, y, sizeof(ylen));
		x += sizeof(xlen);
		y += sizeof(ylen);
		if (xlen == PG_UINT32_MAX || ylen == PG_UINT32_MAX)
		{
			if (xlen != ylen)
				return xlen == PG_UINT32_MAX ? 1 : -1;
			continue;
		}
		if (is_integer(src->columns[src->keys[k]].type))
		{
			uint64		m = sort_number(x, xlen, true);
			uint64		n = sort_number(y, ylen, true);

			diff = m < n ? -1 : m > n;
		}
		else
		{
			diff = memcmp(x, y, Min(xlen, ylen));
			if (diff == 0)
				diff = xlen < ylen ? -1 : xlen > ylen;
		}
		if (diff != 0)
			return diff;
		x += xlen;
		y += ylen;
	}
	return 0;
}

#define ST_SORT sort_items
#define ST_ELEMENT_TYPE SortItem
#define ST_COMPARE_ARG_TYPE ApplySource
#define ST_COMPARE(a, b, source) \
	((a)->first < (b)->first ? -1 : (a)->first > (b)->first ? 1 : \
	 compare_keys(source, (a)->entry, (b)->entry))
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/* The rows of a source that are images (or gone), sorted by key. */
static ApplyRow **
sorted_rows(ApplySource *source, bool gone, int *nrows)
{
	MigrateSource *src = source->src;
	bool		integer = is_integer(src->columns[src->keys[0]].type);
	SortItem   *items = palloc_extended(sizeof(SortItem) * Max(source->nentries, 1),
										MCXT_ALLOC_HUGE);
	ApplyRow  **rows;
	int			n = 0;

	for (int i = 0; i < source->nentries; i++)
	{
		ApplyEntry *entry = source->entries[i];
		uint32		len;

		if (gone ? entry->gone == NULL || (entry->image && entry->image->unknown == 0) :
			entry->image == NULL)
			continue;
		memcpy(&len, entry->key, sizeof(len));
		items[n].entry = entry;
		items[n++].first = len == PG_UINT32_MAX ? 0 :
			sort_number(entry->key + sizeof(len), len, integer);
	}
	sort_items(items, n, source);
	rows = (ApplyRow **) items;
	for (int i = 0; i < n; i++)
		rows[i] = gone ? items[i].entry->gone : items[i].entry->image;
	*nrows = n;
	return rows;
}

/* The rows of a bag that came (sign 1) or went (-1), each as often as it did. */
static ApplyRow **
bag_rows(ApplySource *source, int sign, int *nrows)
{
	ApplyRow  **rows;
	int64		n = 0;

	for (int i = 0; i < source->nentries; i++)
		if (source->entries[i]->count * sign > 0)
			n += source->entries[i]->count * sign;
	if (n > PG_INT32_MAX)
		elog(ERROR, "too many rows in a batch");
	rows = palloc_extended(sizeof(ApplyRow *) * Max(n, 1), MCXT_ALLOC_HUGE);
	n = 0;
	for (int i = 0; i < source->nentries; i++)
		for (int64 c = source->entries[i]->count * sign; c > 0; c--)
			rows[n++] = source->entries[i]->image;
	*nrows = (int) n;
	return rows;
}

/* ----------------------------------------------------------------
 * the flush
 * ----------------------------------------------------------------
 */

/* The source's batch, empty, for the current transaction. */
static MigrateBatch *
empty_batch(ApplyWorker *w, ApplySource *source)
{
	MemoryContext old;

	if (source->batch == NULL)
	{
		old = MemoryContextSwitchTo(w->session);
		source->batch = migrate_batch_create(source->src);
		MemoryContextSwitchTo(old);
	}
	source->batch->owner = CurrentResourceOwner;
	return source->batch;
}

/* Images that cannot be read. */
static void
write_letters(ApplyWorker *w, ApplySource *source, List *bad)
{
	ListCell   *lc;

	if (bad == NIL)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, bad)
	{
		ApplyBadRow *b = lfirst(lc);

		migrate_apply_unreadable(source->applier, migrate_row_key(w, source, b->row),
								 migrate_row_raw(w, source, b->row), b->edata);
		w->counts.dead++;
	}
	PopActiveSnapshot();
}

/*
 * Rows that went, with a key that cannot be read here: none of them can be in
 * a target, but a letter may tell of one.
 */
static void
forget_letters(ApplyWorker *w, ApplySource *source, List *bad)
{
	ListCell   *lc;

	foreach(lc, bad)
	{
		char	   *key = migrate_row_key(w, source, ((ApplyBadRow *) lfirst(lc))->row);
		Oid			types[] = {INT4OID, TEXTOID};
		Datum		values[2];

		if (key == NULL)
			continue;
		values[0] = Int32GetDatum(source->source_id);
		values[1] = CStringGetTextDatum(key);
		migrate_spi_begin();
		migrate_spi_exec("UPDATE migrate.dead_letter d SET state = 'superseded',"
						 " updated_at = pg_catalog.clock_timestamp() FROM migrate.mapping m"
						 " WHERE m.source_id = $1 AND d.mapping_id = m.mapping_id"
						 " AND d.state = 'open' AND d.key = $2::pg_catalog.jsonb",
						 2, types, values, NULL, SPI_OK_UPDATE);
		w->counts.superseded += SPI_processed;
		migrate_spi_end();
	}
}

static void
flush_gone(ApplyWorker *w, ApplySource *source)
{
	MigrateApplySet set = {.src = source->src};
	int			nrows;
	ApplyRow  **rows = sorted_rows(source, true, &nrows);
	List	   *bad;

	if (nrows == 0)
		return;
	set.gone = empty_batch(w, source);
	bad = migrate_parse_rows(w, source, rows, nrows, false, set.gone, NULL);
	if (bad != NIL)
	{
		/* other columns than the key's matter no more */
		ListCell   *lc;
		int			n = 0;

		foreach(lc, bad)
			rows[n++] = ((ApplyBadRow *) lfirst(lc))->row;
		forget_letters(w, source,
					   migrate_parse_rows(w, source, rows, n, true, set.gone, NULL));
	}
	if (set.gone->nrows > 0)
		migrate_apply_gone(source->applier, &set, &w->counts);
	migrate_batch_reset(set.gone);
	migrate_fault("apply-set");
}

static void
flush_images(ApplyWorker *w, ApplySource *source)
{
	MigrateApplySet set = {.src = source->src};
	int			nrows;
	ApplyRow  **rows = sorted_rows(source, false, &nrows);
	List	   *bad;

	if (nrows == 0)
		return;
	set.images = empty_batch(w, source);
	bad = migrate_parse_rows(w, source, rows, nrows, false, set.images, &set.unknown);
	if (set.images->nrows > 0)
		migrate_apply_images(source->applier, &set, migrate_apply_connection, w,
							 &w->counts);
	migrate_batch_reset(set.images);
	write_letters(w, source, bad);
	migrate_fault("apply-set");
}

static void
flush_bag(ApplyWorker *w, ApplySource *source)
{
	MigrateApplyBag bag = {.src = source->src};
	int			nadded,
				nremoved;
	ApplyRow  **added = bag_rows(source, 1, &nadded);
	ApplyRow  **removed = bag_rows(source, -1, &nremoved);
	List	   *bad;
	List	   *bad_removed;

	if (nadded + nremoved == 0)
		return;
	bag.added = empty_batch(w, source);
	bag.removed = migrate_batch_create(source->src);
	bad = migrate_parse_rows(w, source, added, nadded, false, bag.added, NULL);
	bad_removed = migrate_parse_rows(w, source, removed, nremoved, false, bag.removed, NULL);
	if (bag.added->nrows + bag.removed->nrows > 0)
		migrate_apply_bag(source->applier, &bag, &w->counts);
	migrate_batch_reset(bag.added);
	migrate_batch_free(bag.removed);
	write_letters(w, source, bad);
	if (bad_removed != NIL)
		migrate_event(w->job_id, "warning", "apply",
					  "%d rows that went from %s on the source cannot be read here and are in no target; an open dead letter may tell of them",
					  list_length(bad_removed), source->src->label);
	migrate_fault("apply-set");
}

static int
compare_ranks(const ListCell *a, const ListCell *b)
{
	int			x = migrate_applier_rank(((ApplySource *) lfirst(a))->applier);
	int			y = migrate_applier_rank(((ApplySource *) lfirst(b))->applier);

	return x < y ? -1 : x > y;
}

/* Forget what was collected for a source. */
static void
clean_source(ApplySource *source)
{
	if (source->src->nkeys > 0 || source->hashed)
	{
		/* emptying a table costs its size */
		if (source->hash->size > KEEP_BUCKETS ||
			source->hash->size / 64 > source->hash->members)
		{
			entries_destroy(source->hash);
			source->hash = NULL;
		}
		else
			entries_reset(source->hash);
	}
	if (source->max_entries > KEEP_BUCKETS)
	{
		pfree(source->entries);
		source->entries = NULL;
		source->max_entries = 0;
	}
	source->nentries = 0;
	source->hashed = false;
	source->dirty = false;
}

/*
 * More dead letters in this batch alone than the job may have: give it up, so
 * that a mapping that fails for every row does not fill the disk with letters.
 * The job worker pauses the job for it, as for a loader's (control/budget.c).
 */
static void
check_budget(ApplyWorker *w, ApplySource *source)
{
	int64		limit = migrate_shared->chunk_dead_limit;
	char	   *why;

	if (limit < 0 || w->counts.dead <= limit)
		return;
	why = psprintf("max_dead_letters: " INT64_FORMAT " dead letters in one batch of changes > " INT64_FORMAT
				   ", the last of source %s; the batch was given up",
				   w->counts.dead, limit, source->src->label);
	migrate_give_up("budget", why);
	migrate_abandoned = true;
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("batch given up because it has too many dead letters"),
			 errdetail_internal("%s", why)));
}

/*
 * Write what was collected: what is gone, children first, then images, parents
 * first.
 */
void
migrate_collect_flush(ApplyWorker *w)
{
	const char *relation = w->relation;
	MemoryContext cxt;
	MemoryContext old;
	ListCell   *lc;

	if (w->dirty == NIL)
		return;
	cxt = AllocSetContextCreate(CurrentMemoryContext, "migrate apply flush",
								ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(cxt);
	migrate_worker_phase("write");
	foreach(lc, w->dirty)
		migrate_source_ready(w, lfirst(lc));
	list_sort(w->dirty, compare_ranks);
	for (int i = list_length(w->dirty) - 1; i >= 0; i--)
	{
		ApplySource *source = list_nth(w->dirty, i);

		w->relation = source->src->label;
		if (source->src->nkeys > 0)
			flush_gone(w, source);
		MemoryContextSwitchTo(cxt);
		MemoryContextReset(cxt);
	}
	foreach(lc, w->dirty)
	{
		ApplySource *source = lfirst(lc);

		w->relation = source->src->label;
		if (source->src->nkeys > 0)
			flush_images(w, source);
		else
			flush_bag(w, source);
		check_budget(w, source);
		clean_source(source);
		MemoryContextSwitchTo(cxt);
		MemoryContextReset(cxt);
	}
	w->relation = relation;
	list_free(w->dirty);
	w->dirty = NIL;
	w->collected = 0;
	w->written = true;
	arena_reset(&w->arena);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
}
