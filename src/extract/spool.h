/*-------------------------------------------------------------------------
 *
 * spool.h
 *	  The form of the spool, and what writes it: for the files of capture,
 *	  and nobody else.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_SPOOL_H
#define MIGRATE_SPOOL_H

#include "extract/stream.h"

/* columns of a segment, see migrate_spool_add_segment() */
#define SPOOL_SEQ 1
#define SPOOL_LSN 2
#define SPOOL_COMMITS 3
#define SPOOL_CHANGES 4
#define SPOOL_BYTES 5
#define SPOOL_COMMIT_AT 6
#define SPOOL_DATA 7
#define SPOOL_COLUMNS 7

/* before each message in SPOOL_DATA: its length, in network order */
#define SPOOL_FRAME_HEADER 4

/* a row is closed when it has so many bytes, a segment likewise */
#define SPOOL_ROW_BYTES (256 * 1024)
#define SPOOL_SEGMENT_BYTES (64 * 1024 * 1024)

/* ----------------------------------------------------------------
 * in spool_write.c
 * ----------------------------------------------------------------
 */
typedef struct SpoolSegment
{
	int			segment_no;
	Oid			relation;
	int64		first_seq;
	int64		last_seq;		/* 0: it is being written */
	int64		bytes;
	TimestampTz sealed_at;
} SpoolSegment;

typedef struct SpoolWriter
{
	int			stream_id;
	MemoryContext mcxt;			/* holds this struct */
	int64		segment_bytes;	/* see SPOOL_SEGMENT_BYTES */

	/* as committed, and in the transaction under way */
	List	   *segments;		/* of SpoolSegment, oldest first */
	int64		next_seq;		/* number of the row at hand */

	/* the row at hand: a bytea, max bytes of room */
	char	   *buf;
	int			len;			/* with VARHDRSZ */
	int			max;
	XLogRecPtr	lsn;			/* of the last commit in it, 0: none */
	TimestampTz commit_at;
	int			commits;
	int			changes;
	List	   *relations;		/* R messages in it (bytea) */
	MemoryContext relations_mcxt;

	/* the local transaction under way */
	bool		open;
	TimestampTz last_commit_at; /* of the last commit in it, 0: none */
	XLogRecPtr	last_commit_lsn;
	struct SpoolInsert *insert; /* the segment, open for inserting */
	int64		rows;			/* written in it */
} SpoolWriter;

extern bool migrate_spool_is_segment(Relation rel);
extern SpoolWriter *migrate_spool_writer_open(int stream_id, int64 spooled_seq);
extern void migrate_spool_append(SpoolWriter *w, const char *data, int len);
extern void migrate_spool_commit_seen(SpoolWriter *w, XLogRecPtr commit_lsn,
									  XLogRecPtr end_lsn, TimestampTz commit_at);
extern XLogRecPtr migrate_spool_commit(SpoolWriter *w, XLogRecPtr spooled_lsn);
extern int64 migrate_spool_total(SpoolWriter *w);
extern int64 migrate_spool_pending(SpoolWriter *w, int64 next_seq);
extern int	migrate_spool_drop_passed(SpoolWriter *w, int64 next_seq,
									  int64 retention_ms, int64 retention_size,
									  int64 keep_seq, int64 keep_size);

#endif							/* MIGRATE_SPOOL_H */
