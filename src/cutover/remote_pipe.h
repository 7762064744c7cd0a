/*-------------------------------------------------------------------------
 *
 * remote_pipe.h
 *	  Many statements to the source without waiting for the answer to each.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_REMOTE_PIPE_H
#define MIGRATE_REMOTE_PIPE_H

#include "migrate.h"

/* From here on only what follows may be called for the connection. */
extern void migrate_pipe_begin(MigrateConn *conn);

/* One statement; its parameters as texts, whose types it says itself. */
extern void migrate_pipe_send(MigrateConn *conn, const char *sql, int n,
							  const char *const *values);

/* Nothing more will be sent. */
extern void migrate_pipe_end(MigrateConn *conn);

/*
 * After it, without waiting: have all answers come?  They live in the current
 * memory context.
 */
extern bool migrate_pipe_ready(MigrateConn *conn);

/*
 * Wait for the answers; throws the first error, of which the transaction there
 * is still to be rolled back.  The connection is as it was before.
 */
extern void migrate_pipe_finish(MigrateConn *conn);

/* After an error of ours in the middle: the same without an error. */
extern void migrate_pipe_abandon(MigrateConn *conn);

#endif							/* MIGRATE_REMOTE_PIPE_H */
