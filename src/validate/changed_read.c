/*-------------------------------------------------------------------------
 *
 * changed_read.c
 *	  The keys of the rows that changed, out of the spool: see changed.c.
 *
 * Messages are taken in commit order, and no further than a cut at which what
 * was taken is compared and forgotten.  Keys are text in this database's
 * encoding, each once, in memory that is bounded: a target with more is compared
 * whole.  That the spool is still there is looked at before each reading, since
 * nothing but a size keeps it.
 *
 * Runs where changed.c does, in its transaction; holds no lock, and leaves
 * nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "mb/pg_wchar.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "control/control.h"
#include "changed_keys.h"

/* keys kept of a target, and bytes of all; beyond it is compared whole */
#define MAX_KEYS 1000000
#define MAX_BYTES ((Size) 256 * 1024 * 1024)

/* ----------------------------------------------------------------
 * whose table is it?
 * ----------------------------------------------------------------
 */

/*
 * A table that is neither of the plan nor named is another job's, or a partition
 * that came later: such a one is drift (P2), which is looked for beside this.
 */
static bool
has_name(ChangedTarget *t, const char *schema, const char *table)
{
	return t->src->remote_schema && t->src->remote_table &&
		strcmp(t->src->remote_schema, schema) == 0 && strcmp(t->src->remote_table, table) == 0;
}

static List *
targets_of(ValidateChanged *c, MigrateRemoteRelation *remote)
{
	List	   *found = NIL;
	ListCell   *lc;

	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);

		if (list_member_oid(t->leaves, remote->oid) || has_name(t, remote->schema, remote->name))
			found = lappend(found, t);
	}
	return found;
}

/* The key columns of a target in the messages of a table. */
static int *
key_places(ChangedTarget *t, MigrateRemoteRelation *remote)
{
	int		   *from = palloc(sizeof(int) * Max(t->src->nkeys, 1));

	for (int k = 0; k < t->src->nkeys; k++)
	{
		from[k] = -1;
		for (int i = 0; i < remote->ncolumns; i++)
			if (strcmp(remote->columns[i].name, t->src->columns[t->src->keys[k]].remote_name) == 0)
				from[k] = i;
	}
	return from;
}

static ChangedRelation *
enter_relation(ValidateChanged *c, Oid oid)
{
	bool		found;
	ChangedRelation *rel = hash_search(c->relations, &oid, HASH_ENTER, &found);

	if (!found)
	{
		memset(rel, 0, sizeof(*rel));
		rel->oid = oid;
	}
	return rel;
}

static ChangedRelation *
relation_of(ValidateChanged *c, Oid oid)
{
	ChangedRelation *rel = hash_search(c->relations, &oid, HASH_FIND, NULL);
	MemoryContext old;
	int			n = 0;
	ListCell   *lc;

	if (rel == NULL || rel->remote == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the stream has a change of table %u, which it has not described", oid)));
	if (likely(rel->ready))
		return rel;
	old = MemoryContextSwitchTo(c->mcxt);
	if (!rel->found)
		rel->targets = targets_of(c, rel->remote);
	rel->found = true;
	rel->maps = palloc(sizeof(ChangedMap) * Max(list_length(rel->targets), 1));
	foreach(lc, rel->targets)
	{
		rel->maps[n].target = lfirst(lc);
		rel->maps[n++].from = key_places(lfirst(lc), rel->remote);
	}
	rel->ready = true;
	MemoryContextSwitchTo(old);
	return rel;
}

static void
take_relation(ValidateChanged *c, const char *data, int len)
{
	MemoryContext old = MemoryContextSwitchTo(c->mcxt);
	MigrateRemoteRelation *remote = migrate_message_relation(data, len);
	ChangedRelation *rel = enter_relation(c, remote->oid);

	rel->remote = remote;
	rel->ready = false;
	MemoryContextSwitchTo(old);
}

/* ----------------------------------------------------------------
 * keys
 * ----------------------------------------------------------------
 */

/* Text of the stream in this database's encoding; NULL when it is not valid. */
static const char *
text_here(ValidateChanged *c, const char *text, int len)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	const char *volatile result = NULL;
	bool		ascii = true;

	for (int i = 0; i < len && ascii; i++)
		ascii = !IS_HIGHBIT_SET(text[i]);
	if (ascii)
		return text;
	if (c->encoding == GetDatabaseEncoding() || c->encoding == PG_SQL_ASCII)
		return pg_verify_mbstr(GetDatabaseEncoding(), text, len, true) ? text : NULL;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		result = pg_any_to_server(text, len, c->encoding);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		result = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	return result;
}

/* The key of a row of the stream; false when it cannot be told. */
static bool
build_key(ValidateChanged *c, ChangedMap *map, MigrateRemoteTuple *row, StringInfo key)
{
	resetStringInfo(key);
	for (int k = 0; k < map->target->src->nkeys; k++)
	{
		int			i = map->from[k];
		uint32		len = PG_UINT32_MAX;
		const char *text = NULL;

		if (i < 0 || i >= row->ncolumns || row->kind[i] == 'u')
			return false;
		if (row->kind[i] == 't')
		{
			text = text_here(c, row->value[i], row->len[i]);
			if (text == NULL)
				return false;
			len = text == row->value[i] ? row->len[i] : strlen(text);
		}
		appendBinaryStringInfo(key, (char *) &len, sizeof(len));
		if (text)
		{
			appendBinaryStringInfo(key, text, len);
			appendStringInfoChar(key, '\0');
		}
	}
	return true;
}

static void
keep_key(ValidateChanged *c, ChangedTarget *t, StringInfo key)
{
	KeyText		text = {.data = key->data,.len = key->len};
	KeySlot    *slot;
	bool		found;
	Size		size;

	if (t->keys == NULL)
		t->keys = changed_create(t->mcxt, 64, NULL);
	slot = changed_insert(t->keys, text, &found);
	if (found)
		return;
	slot->key.data = memcpy(MemoryContextAlloc(t->mcxt, key->len), key->data, key->len);
	size = key->len + 2 * sizeof(KeySlot);
	t->bytes += size;
	c->bytes += size;
	if (t->keys->members > MAX_KEYS)
		validate_changed_whole(c, t, psprintf("more than %d keys changed", MAX_KEYS));
	else if (c->bytes > MAX_BYTES)
		validate_changed_whole(c, t, "more keys changed than memory holds");
}

static void
take_row(ValidateChanged *c, ChangedMap *map, MigrateRemoteTuple *row)
{
	static StringInfoData key = {0};

	if (key.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&key);
		MemoryContextSwitchTo(old);
	}
	if (map->target->whole)
		return;
	if (build_key(c, map, row, &key))
		keep_key(c, map->target, &key);
	else
		validate_changed_whole(c, map->target, "a key that changed cannot be read here");
}

static void
take_change(ValidateChanged *c)
{
	ChangedRelation *rel = relation_of(c, c->msg.relid);

	for (int i = 0; i < list_length(rel->targets); i++)
	{
		ChangedTarget *t = rel->maps[i].target;

		if (t->whole || t->left_out || c->final_lsn < t->since)
			continue;
		if (t->src->nkeys == 0)
			validate_changed_whole(c, t, "it has no key, and has changed");
		else
		{
			if (c->msg.type != 'D')
				take_row(c, &rel->maps[i], &c->msg.new_row);
			if (c->msg.type == 'D' || c->msg.old_kind != 0)
				take_row(c, &rel->maps[i], &c->msg.old_row);
		}
	}
}

static void
take_truncate(ValidateChanged *c)
{
	for (int i = 0; i < c->msg.nrelids; i++)
	{
		ChangedRelation *rel = relation_of(c, c->msg.relids[i]);
		ListCell   *lc;

		foreach(lc, rel->targets)
		{
			ChangedTarget *t = lfirst(lc);

			if (!t->left_out && c->final_lsn >= t->since)
				validate_changed_whole(c, t, "it was truncated");
		}
	}
}

/* ----------------------------------------------------------------
 * reading the spool
 * ----------------------------------------------------------------
 */

static void
note_least(ValidateChanged *c)
{
	ListCell   *lc;

	c->least = PG_UINT64_MAX;
	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);

		if (t->since != InvalidXLogRecPtr)
			c->least = Min(c->least, t->since);
	}
}

/* Read on from a row of the spool, at a place between two transactions in it. */
void
validate_changed_begin(ValidateChanged *c, int64 seq)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(ChangedRelation),.hcxt = c->mcxt};
	MemoryContext old = MemoryContextSwitchTo(c->mcxt);
	ListCell   *lc;

	if (c->reader)
		migrate_spool_close(c->reader);
	c->relations = hash_create("migrate changed tables", 64, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	foreach(lc, migrate_spool_relations(c->stream_id, seq))
	{
		MigrateRemoteRelation *remote = lfirst(lc);

		enter_relation(c, remote->oid)->remote = remote;
	}
	c->reader = migrate_spool_open(c->stream_id, seq);
	c->seq = seq - 1;
	/* the row may begin with the rest of a transaction, which is not wanted */
	c->in_xact = c->ahead = false;
	MemoryContextSwitchTo(old);
	note_least(c);
}


/*
 * Capture has dropped what is not read yet, since there was more of it than is
 * to be kept: all is to be compared, and what comes from here on is known.
 */
static void
begin_again_if_lost(ValidateChanged *c)
{
	Oid			types[] = {INT4OID, INT8OID};
	Datum		values[] = {Int32GetDatum(c->stream_id), Int64GetDatum(c->seq + 1)};
	bool		lost;
	XLogRecPtr	lsn;
	int64		seq;
	ListCell   *lc;

	migrate_spi_begin();
	migrate_spi_exec("SELECT FROM migrate.spool_segment WHERE stream_id = $1 HAVING min(first_seq) > $2",
					 2, types, values, NULL, SPI_OK_SELECT);
	lost = SPI_processed > 0;
	migrate_spi_end();
	if (!lost)
		return;
	seq = validate_changed_applied(c, &lsn);
	foreach(lc, c->targets)
	{
		ChangedTarget *t = lfirst(lc);

		t->since = lsn;
		validate_changed_whole(c, t, "what changed is not kept any more");
	}
	validate_changed_begin(c, seq);
}

static void
take_message(ValidateChanged *c, const char *data, int len)
{
	switch (data[0])
	{
		case 'B':
			migrate_message_parse(&c->msg, data, len, c->mcxt);
			c->final_lsn = c->msg.final_lsn;
			c->in_xact = c->ahead = true;
			break;
		case 'C':
			c->in_xact = false;
			break;
		case 'R':
			take_relation(c, data, len);
			break;
		case 'I':
		case 'U':
		case 'D':
		case 'T':
			if (!c->in_xact || c->final_lsn < c->least)
				break;
			migrate_message_parse(&c->msg, data, len, c->mcxt);
			if (data[0] == 'T')
				take_truncate(c);
			else
				take_change(c);
			break;
		default:
			break;
	}
}

/*
 * Take what the spool has of transactions that end before a position, which is
 * no further than apply is (0: all that is there): what was taken is compared
 * at a cut that is not before it, and then forgotten.
 */
void
validate_changed_read(ValidateChanged *c, XLogRecPtr upto)
{
	MemoryContext cxt;
	MemoryContext old;
	const char *data;
	int			len;

	if (!c->streams)
		return;
	begin_again_if_lost(c);
	cxt = AllocSetContextCreate(CurrentMemoryContext, "migrate changed message", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(cxt);
	PushActiveSnapshot(GetTransactionSnapshot());
	for (int64 n = 1;; n++)
	{
		if (c->ahead && upto != InvalidXLogRecPtr && c->final_lsn >= upto)
			break;
		c->ahead = false;
		if (!migrate_spool_next(c->reader, &data, &len))
			break;
		c->seq = migrate_spool_seq(c->reader);
		take_message(c, data, len);
		if ((n & 0xff) == 0)
		{
			CHECK_FOR_INTERRUPTS();
			MemoryContextReset(cxt);
		}
	}
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
}
