/*-------------------------------------------------------------------------
 *
 * reverse.h
 *	  The way back: the target's own changes since it was opened, to the source.
 *
 *	  decode.c			logical decoding of this server's WAL, in process
 *	  queue.c			where there is none: what triggers have noted
 *	  reverse.c			the worker: transactions, position, confirmation
 *	  reverse_table.c	a target table of the job as a source of rows, its
 *						inverse mapping, the net effect of changes per key
 *	  remote_write.c	rows into a table of the source
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_REVERSE_H
#define MIGRATE_REVERSE_H

#include "migrate.h"

#include "extract/stream.h"

/* ----------------------------------------------------------------
 * in decode.c
 * ----------------------------------------------------------------
 */
typedef struct MigrateDecoder MigrateDecoder;

/*
 * Make the slot; waits for every transaction that is open here.  Outside a
 * transaction.
 */
extern void migrate_decoder_make_slot(const char *slot);

/* Acquire the slot and begin where it was confirmed.  In a transaction, which
 * may end; everything lives in the current memory context. */
extern MigrateDecoder *migrate_decoder_open(const char *slot, const char *publication);

/* failed: after an error, which has released the slot */
extern void migrate_decoder_close(MigrateDecoder *decoder, bool failed);

/*
 * Decode what is flushed, until "bytes" of messages of whole transactions are
 * there or there is no more.  Outside a transaction.  The position that is
 * decoded then.
 */
extern XLogRecPtr migrate_decoder_read(MigrateDecoder *decoder, int64 bytes);

/*
 * The same, kept apart from the messages at hand, which may be read meanwhile:
 * what comes after them.  One may do nothing here but say the position.
 */
extern XLogRecPtr migrate_decoder_read_ahead(MigrateDecoder *decoder, int64 bytes);

/* The messages at hand, in order; *data lives until the next call. */
extern bool migrate_decoder_next(MigrateDecoder *decoder, const char **data, int *len);

/* From the first of them again. */
extern void migrate_decoder_again(MigrateDecoder *decoder);

extern bool migrate_decoder_empty(MigrateDecoder *decoder);

/*
 * Forget them: their effects are where they belong.  At hand is then what was
 * read ahead.
 */
extern void migrate_decoder_forget(MigrateDecoder *decoder);

/* Nothing before it is needed any more. */
extern void migrate_decoder_confirm(MigrateDecoder *decoder, XLogRecPtr lsn);

/* WAL that the slot holds back, bytes. */
extern int64 migrate_decoder_retained(MigrateDecoder *decoder);

/* ----------------------------------------------------------------
 * in queue.c: the same messages from the queue that triggers fill
 * ----------------------------------------------------------------
 */
typedef struct MigrateQueue MigrateQueue;

/* In a transaction; everything lives in the current memory context. */
extern MigrateQueue *migrate_queue_open(int job_id);
extern void migrate_queue_close(MigrateQueue *queue);

/*
 * What is visible now.  Outside a transaction.  The position up to which
 * everything is in it; partial: no, there is more.
 */
extern XLogRecPtr migrate_queue_read(MigrateQueue *queue);
extern bool migrate_queue_empty(MigrateQueue *queue);
extern bool migrate_queue_partial(MigrateQueue *queue);
extern void migrate_queue_widen(MigrateQueue *queue, bool more);
extern bool migrate_queue_next(MigrateQueue *queue, const char **data, int *len);

/* When the source has it: take it from the queue (in a transaction); forget it. */
extern void migrate_queue_delete(MigrateQueue *queue);
extern void migrate_queue_forget(MigrateQueue *queue);

/* Put a row's key (row: a JSON object) into it again, in a transaction. */
extern void migrate_queue_again(int job_id, Oid relid, const char *row);

/* Bytes on disk, in a transaction; give them back where that is free. */
extern int64 migrate_queue_size(MigrateQueue *queue);
extern void migrate_queue_trim(MigrateQueue *queue);

/* ----------------------------------------------------------------
 * in reverse.c, for the job worker: start it, make it leave (true: it has)
 * ----------------------------------------------------------------
 */
extern void migrate_reverse_ensure(MigrateJob *job, dsm_handle shm);
extern bool migrate_reverse_stop(int job_id);

#endif							/* MIGRATE_REVERSE_H */
