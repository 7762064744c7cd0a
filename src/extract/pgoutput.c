/*-------------------------------------------------------------------------
 *
 * pgoutput.c
 *	  The messages of logical replication, taken apart.
 *
 * Layout as in the manual, "Logical Replication Message Formats", for
 * proto_version 1 and values as text.  Core's own readers (logicalproto.h)
 * copy and terminate every value; here nothing is copied: a tuple points into
 * the message, since most values go straight into an input function, and those
 * of a row that another change supersedes nowhere at all.
 *
 * Runs in the capture worker, which looks at the type of each message, and in
 * apply workers, which look at all of it.  Keeps no state.
 *
 * A message comes from another server: every length is checked against what
 * is there.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/stream.h"

#include "port/pg_bswap.h"
#include "utils/memutils.h"

/* what is left of a message */
typedef struct Cursor
{
	const char *at;
	const char *end;
	char		type;			/* for the error message */
} Cursor;

pg_noreturn static void
bad_message(Cursor *c)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("logical replication message of type \"%c\" is not of the expected form",
					c->type >= ' ' && c->type <= '~' ? c->type : '?')));
	pg_unreachable();
}

static inline const char *
get_bytes(Cursor *c, int n)
{
	const char *p = c->at;

	if (unlikely(n < 0 || c->end - c->at < n))
		bad_message(c);
	c->at += n;
	return p;
}

static inline uint8
get_byte(Cursor *c)
{
	return (uint8) *get_bytes(c, 1);
}

static inline int
get_int16(Cursor *c)
{
	uint16		v;

	memcpy(&v, get_bytes(c, sizeof(v)), sizeof(v));
	return pg_ntoh16(v);
}

static inline uint32
get_uint32(Cursor *c)
{
	uint32		v;

	memcpy(&v, get_bytes(c, sizeof(v)), sizeof(v));
	return pg_ntoh32(v);
}

static inline uint64
get_uint64(Cursor *c)
{
	uint64		v;

	memcpy(&v, get_bytes(c, sizeof(v)), sizeof(v));
	return pg_ntoh64(v);
}

static const char *
get_string(Cursor *c)
{
	const char *s = c->at;
	const char *zero = memchr(s, '\0', c->end - s);

	if (zero == NULL)
		bad_message(c);
	c->at = zero + 1;
	return s;
}

/* Room for n columns; what was there before is not kept. */
static void
tuple_room(MigrateRemoteTuple *tuple, int n, MemoryContext mcxt)
{
	if (n <= tuple->max)
		return;
	if (tuple->max > 0)
	{
		pfree(tuple->kind);
		pfree(tuple->len);
		pfree(tuple->value);
	}
	tuple->max = 0;
	tuple->kind = MemoryContextAlloc(mcxt, n * sizeof(char));
	tuple->len = MemoryContextAlloc(mcxt, n * sizeof(int));
	tuple->value = MemoryContextAlloc(mcxt, n * sizeof(char *));
	tuple->max = n;
}

static void
get_tuple(Cursor *c, MigrateRemoteTuple *tuple, MemoryContext mcxt)
{
	int			n = get_int16(c);

	tuple_room(tuple, n, mcxt);
	tuple->ncolumns = n;
	for (int i = 0; i < n; i++)
	{
		char		kind = (char) get_byte(c);

		tuple->kind[i] = kind;
		if (kind == 't')
		{
			tuple->len[i] = (int) get_uint32(c);
			tuple->value[i] = get_bytes(c, tuple->len[i]);
		}
		else if (kind == 'n' || kind == 'u')
		{
			tuple->len[i] = 0;
			tuple->value[i] = NULL;
		}
		else
			bad_message(c);
	}
}

/* Old row, if there is one (K or O), then the new one unless it is a delete. */
static void
get_row_change(Cursor *c, MigrateMessage *msg, MemoryContext mcxt)
{
	char		kind;

	msg->relid = get_uint32(c);
	kind = (char) get_byte(c);
	if (msg->type != 'I' && (kind == 'K' || kind == 'O'))
	{
		msg->old_kind = kind;
		get_tuple(c, &msg->old_row, mcxt);
		if (msg->type == 'D')
			return;
		kind = (char) get_byte(c);
	}
	if (kind != 'N' || msg->type == 'D')
		bad_message(c);
	get_tuple(c, &msg->new_row, mcxt);
}

static void
get_truncate(Cursor *c, MigrateMessage *msg, MemoryContext mcxt)
{
	int			n = (int) get_uint32(c);
	uint8		flags = get_byte(c);

	if (n < 0 || n > (c->end - c->at) / (int) sizeof(uint32))
		bad_message(c);
	msg->cascade = (flags & 1) != 0;
	msg->restart_identity = (flags & 2) != 0;
	if (msg->relids)
		pfree(msg->relids);
	msg->relids = MemoryContextAlloc(mcxt, Max(n, 1) * sizeof(Oid));
	msg->nrelids = n;
	for (int i = 0; i < n; i++)
		msg->relids[i] = get_uint32(c);
}

void
migrate_message_parse(MigrateMessage *msg, const char *data, int len,
					  MemoryContext mcxt)
{
	Cursor		c = {data, data + len, '?'};

	c.type = msg->type = (char) get_byte(&c);
	msg->old_kind = 0;
	switch (msg->type)
	{
		case 'B':
			msg->final_lsn = get_uint64(&c);
			msg->commit_at = (TimestampTz) get_uint64(&c);
			msg->xid = get_uint32(&c);
			break;
		case 'C':
			(void) get_byte(&c);	/* flags, none is in use */
			msg->commit_lsn = get_uint64(&c);
			msg->end_lsn = get_uint64(&c);
			msg->commit_at = (TimestampTz) get_uint64(&c);
			break;
		case 'I':
		case 'U':
		case 'D':
			get_row_change(&c, msg, mcxt);
			break;
		case 'T':
			get_truncate(&c, msg, mcxt);
			break;
		case 'R':
			msg->relid = get_uint32(&c);
			break;
		case 'O':
		case 'Y':
		case 'M':
			break;
		default:
			bad_message(&c);
	}
}

MigrateRemoteRelation *
migrate_message_relation(const char *data, int len)
{
	Cursor		c = {data, data + len, 'R'};
	MigrateRemoteRelation *rel = palloc0(sizeof(MigrateRemoteRelation));
	const char *schema;

	if (get_byte(&c) != 'R')
		bad_message(&c);
	rel->oid = get_uint32(&c);
	/* an empty string is what stands for pg_catalog */
	schema = get_string(&c);
	rel->schema = pstrdup(schema[0] ? schema : "pg_catalog");
	rel->name = pstrdup(get_string(&c));
	rel->identity = (char) get_byte(&c);
	rel->ncolumns = get_int16(&c);
	rel->columns = palloc0(Max(rel->ncolumns, 1) * sizeof(MigrateRemoteColumn));
	for (int i = 0; i < rel->ncolumns; i++)
	{
		MigrateRemoteColumn *col = &rel->columns[i];

		col->is_key = (get_byte(&c) & 1) != 0;
		col->name = pstrdup(get_string(&c));
		col->type = get_uint32(&c);
		col->typmod = (int32) get_uint32(&c);
	}
	return rel;
}
