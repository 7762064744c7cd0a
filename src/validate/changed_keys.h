/*-------------------------------------------------------------------------
 *
 * changed_keys.h
 *	  What the files of level "changed" share, and nobody else.
 *
 *	  changed.c			since when, what the cutover asks for
 *	  changed_read.c	the spool -> keys that changed
 *	  changed_rows.c	keys -> rows of both sides, compared
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef VALIDATE_CHANGED_KEYS_H
#define VALIDATE_CHANGED_KEYS_H

#include "common/hashfn.h"
#include "utils/hsearch.h"

#include "extract/stream.h"
#include "validate.h"

/* A key: of each column its length (uint32, PG_UINT32_MAX: null), bytes and a zero. */
typedef struct KeyText
{
	const char *data;
	uint32		len;
} KeyText;

typedef struct KeySlot
{
	KeyText		key;
	uint32		hash;
	char		status;
} KeySlot;

#define SH_PREFIX changed
#define SH_ELEMENT_TYPE KeySlot
#define SH_KEY_TYPE KeyText
#define SH_KEY key
#define SH_HASH_KEY(tb, k) hash_bytes((const unsigned char *) (k).data, (k).len)
#define SH_EQUAL(tb, a, b) ((a).len == (b).len && memcmp((a).data, (b).data, (a).len) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) (a)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* a mapping, and what changed of its source table since "since" */
typedef struct ChangedTarget
{
	ValidateTask *task;
	MigrateSource *src;
	List	   *leaves;			/* OIDs of the plan's */
	char	  **key_types;		/* of several key columns, on the source;
								 * NULL: not asked yet */
	XLogRecPtr	since;
	bool		whole;			/* all of it is to be compared, ... */
	const char *why;			/* ... since */
	bool		never;			/* it was never validated: see begin_now() */
	bool		left_out;		/* its rows come by another transport */

	MemoryContext mcxt;			/* of the keys */
	changed_hash *keys;			/* NULL: none */
	Size		bytes;

	/* compiled beforehand, for the comparison that somebody waits for */
	MemoryContext map_cxt;
	MigrateMapping *map;		/* NULL: it is not */
	ValidateShape *shape;

	/* what that has come to */
	bool		compared;
	ValidateResult result;
	TimestampTz compared_at;

	/* as measured, 0: not yet */
	double		target_ms;
	double		key_ms;
	double		whole_ms;
} ChangedTarget;

/* a table of the stream in the words of a target */
typedef struct ChangedMap
{
	ChangedTarget *target;
	int		   *from;			/* by key column: column there, -1: none */
} ChangedMap;

typedef struct ChangedRelation
{
	Oid			oid;			/* hash key */
	MigrateRemoteRelation *remote;
	bool		found;			/* targets are known */
	List	   *targets;
	bool		ready;			/* maps are those of remote */
	ChangedMap *maps;
} ChangedRelation;

struct ValidateChanged
{
	MigrateJob *job;
	MemoryContext mcxt;			/* holds this */
	MigrateConn **conn;			/* made when it is needed, in conn_cxt */
	MemoryContext conn_cxt;
	bool		streams;		/* there is a stream to be read */
	int			stream_id;
	int			encoding;		/* of the stream's values */
	List	   *targets;		/* of ChangedTarget */
	HTAB	   *relations;		/* of ChangedRelation */
	Size		bytes;			/* of all keys */

	/* reading */
	MigrateSpoolReader *reader;
	MigrateMessage msg;
	XLogRecPtr	final_lsn;		/* of the source transaction at hand */
	bool		in_xact;
	bool		ahead;			/* it has begun, and is not taken yet */
	XLogRecPtr	least;			/* of the targets' since */
	int64		seq;			/* row of the last message */

	XLogRecPtr	quiet_at;		/* see migrate_changed_round() */
	void		(*tick) (void *arg);
	void	   *tick_arg;
};

/* in changed.c */
extern void validate_changed_whole(ValidateChanged *c, ChangedTarget *t, const char *why);
extern ChangedTarget *validate_changed_target(ValidateChanged *c, int mapping_id);
extern int64 validate_changed_applied(ValidateChanged *c, XLogRecPtr *lsn);

/* in changed_read.c */
extern void validate_changed_begin(ValidateChanged *c, int64 seq);

#endif							/* VALIDATE_CHANGED_KEYS_H */
