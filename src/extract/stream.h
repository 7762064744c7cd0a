/*-------------------------------------------------------------------------
 *
 * stream.h
 *	  Live capture: the stream of a source's changes, its spool, and what is
 *	  shared about it.
 *
 *	  source --pgoutput--> capture worker --> spool (tables) --> apply workers
 *
 * A message stays as the source sent it from the socket to the apply worker;
 * pgoutput.c is the one place that knows its layout.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_STREAM_H
#define MIGRATE_STREAM_H

#include "migrate.h"

/* ----------------------------------------------------------------
 * in stream.c: the stream as the catalog describes it; publication, slot and
 * the waits before the first chunk (P3)
 * ----------------------------------------------------------------
 */
typedef struct MigrateStream
{
	int			stream_id;
	Oid			server;
	Oid			owner;
	char	   *server_name;
	char	   *publication;
	char	   *slot;
	bool		own_publication;
	bool		own_slot;
	char	   *state;			/* 'new', 'running', 'lost' */
	int			generation;
	char	   *system_identifier;	/* NULL: not known yet */
	int			timeline;
	char	   *encoding;		/* of the source's database */
	XLogRecPtr	start_lsn;
	XLogRecPtr	spooled_lsn;
	int64		spooled_seq;
	XLogRecPtr	commit_lsn;		/* of the last commit in the spool; 0: not
								 * known */
	TimestampTz commit_at;		/* and its time on the source */
	int64		shm_handle;

	/* not of the catalog: what the slot says, when the stream was checked */
	XLogRecPtr	confirmed_lsn;
} MigrateStream;

/* In a transaction; NULL when there is none. */
extern MigrateStream *migrate_stream_load(int stream_id);
extern MigrateStream *migrate_stream_of_job(int job_id);

/*
 * Job worker, state preparing, outside a transaction, again and again until it
 * gives true: stream row, publication, slot (made before any chunk is read),
 * then the waits of P3 and for late visibility.  False: it waits for something
 * (told by event and by migrate_worker_phase); call it again after a nap.
 * Everything is recorded in migrate.made_object before it is made.
 */
extern bool migrate_stream_prepare(MigrateJob *job, MigrateConn *conn);

/* ----------------------------------------------------------------
 * in capture.c: the capture worker, as seen by others
 * ----------------------------------------------------------------
 */

/*
 * Job worker, outside a transaction, at every turn from preparing on: start
 * the capture worker of the job's stream if none lives and the stream is
 * 'running'; nothing to do else.  Cheap when it lives.
 */
extern void migrate_capture_ensure(MigrateJob *job);

/* Does it live, by its lock (key2 2)?  In a transaction. */
extern bool migrate_capture_alive(int stream_id);

/* ----------------------------------------------------------------
 * in replication.c: the replication protocol over libpq
 * ----------------------------------------------------------------
 */

/*
 * A replication connection (replication=database), application_name
 * migrate/<stream's slot>/capture; client_encoding is the source's own.
 */
extern MigrateConn *migrate_connect_replication(MigrateStream *stream,
												int connect_timeout_s);

/* ----------------------------------------------------------------
 * in stream_shm.c: shared memory of a stream; one segment, made by its capture
 * worker, handle in migrate.stream.shm_handle
 * ----------------------------------------------------------------
 */
#define MIGRATE_STREAM_MAGIC 0x6d696773

typedef struct MigrateStreamShared
{
	uint32		magic;
	Oid			database;
	int			stream_id;
	slock_t		mutex;
	ConditionVariable spooled;	/* broadcast after each commit of the spool */

	/* all written by the capture worker, under mutex */
	int			capture_pid;	/* 0: it has left */
	char		phase[24];		/* 'connect', 'stream', 'full', 'retry' .. */
	XLogRecPtr	source_lsn;		/* the source's position as last heard of */
	TimestampTz source_at;		/* when that was */
	XLogRecPtr	received_lsn;
	XLogRecPtr	spooled_lsn;
	int64		spooled_seq;
	XLogRecPtr	confirmed_lsn;
	TimestampTz commit_at;		/* source time of the last spooled commit */
	int64		transactions;	/* since its start */
	int64		changes;
	int64		bytes;
	int64		spool_bytes;	/* in all segments */
	bool		full;			/* spool_limit: it does not read */
	double		changes_per_second; /* of the last seconds */
	Size		memory;
	TimestampTz started;
	char		sqlstate[6];
	char		last_error[256];
} MigrateStreamShared;

extern MigrateStreamShared *migrate_stream_shmem_create(int stream_id, uint32 *handle);

/* Map the segment of a living capture worker; NULL when there is none. */
extern MigrateStreamShared *migrate_stream_shmem_attach(int64 handle, int stream_id,
														dsm_segment **seg);

/* ----------------------------------------------------------------
 * in pgoutput.c: the messages, proto_version 1 (manual, "Logical Replication
 * Message Formats")
 * ----------------------------------------------------------------
 */
typedef struct MigrateRemoteColumn
{
	char	   *name;
	Oid			type;			/* on the source */
	int32		typmod;
	bool		is_key;			/* of the replica identity */
} MigrateRemoteColumn;

typedef struct MigrateRemoteRelation
{
	Oid			oid;
	char	   *schema;
	char	   *name;
	char		identity;		/* 'd', 'n', 'f', 'i' */
	int			ncolumns;
	MigrateRemoteColumn *columns;
} MigrateRemoteRelation;

/* a tuple as it is in the message: nothing is copied, nothing terminated */
typedef struct MigrateRemoteTuple
{
	int			ncolumns;
	int			max;			/* room in the arrays */
	char	   *kind;			/* 'n' null, 'u' unchanged TOAST, 't' text */
	int		   *len;
	const char **value;
} MigrateRemoteTuple;

typedef struct MigrateMessage
{
	char		type;			/* 'B','C','O','R','Y','I','U','D','T','M' */
	/* B */
	XLogRecPtr	final_lsn;
	TransactionId xid;
	/* B, C */
	TimestampTz commit_at;
	/* C */
	XLogRecPtr	commit_lsn;
	XLogRecPtr	end_lsn;
	/* I, U, D */
	Oid			relid;
	char		old_kind;		/* 'K' key, 'O' whole row, 0 none */
	MigrateRemoteTuple old_row;
	MigrateRemoteTuple new_row;
	/* T */
	int			nrelids;
	Oid		   *relids;
	bool		cascade;
	bool		restart_identity;
} MigrateMessage;

/*
 * Take a message apart; arrays of *msg are made once in mcxt and used again.
 * 08P01 when it is not of the protocol.
 */
extern void migrate_message_parse(MigrateMessage *msg, const char *data, int len,
								  MemoryContext mcxt);

/* An 'R' message, in the current memory context. */
extern MigrateRemoteRelation *migrate_message_relation(const char *data, int len);

/* ----------------------------------------------------------------
 * in spool_read.c: messages back from the spool, in order
 * ----------------------------------------------------------------
 */
typedef struct MigrateSpoolReader MigrateSpoolReader;

/*
 * From row "seq" of the spool on, in a memory context of its own below the
 * current one.  May be used across transactions; calls are made in one.
 */
extern MigrateSpoolReader *migrate_spool_open(int stream_id, int64 seq);

/*
 * The next message; *data lives until the next call.  False: there is none yet
 * (as of this transaction's snapshot); try again after a wake-up.
 */
extern bool migrate_spool_next(MigrateSpoolReader *reader, const char **data, int *len);

/* The row that holds the message at hand. */
extern int64 migrate_spool_seq(MigrateSpoolReader *reader);
extern void migrate_spool_close(MigrateSpoolReader *reader);

/*
 * The newest 'R' message of each table before row "seq" (of MigrateRemoteRelation).
 */
extern List *migrate_spool_relations(int stream_id, int64 seq);

#endif							/* MIGRATE_STREAM_H */
