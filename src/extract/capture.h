/*-------------------------------------------------------------------------
 *
 * capture.h
 *	  What the files of live capture share with each other, and nobody else.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_CAPTURE_H
#define MIGRATE_CAPTURE_H

#include "control/control.h"
#include "extract/extract.h"
#include "extract/stream.h"

/* ----------------------------------------------------------------
 * in stream.c
 * ----------------------------------------------------------------
 */
extern XLogRecPtr migrate_parse_lsn(const char *s); /* 0 for NULL */

/* ----------------------------------------------------------------
 * in replication.c
 * ----------------------------------------------------------------
 */

/* set by whoever throws since the stream is not ours any more */
extern bool migrate_stream_is_lost;

/* of the capture worker; travels in bgw_extra */
typedef struct CaptureArgs
{
	Oid			database;
	Oid			owner;
	int			stream_id;
} CaptureArgs;

typedef struct MigrateIdentity
{
	char	   *system_identifier;
	int			timeline;
	XLogRecPtr	flush_lsn;
} MigrateIdentity;

extern void migrate_replication_identify(MigrateConn *conn, MigrateIdentity *id);
extern void migrate_replication_check(MigrateConn *conn, MigrateStream *stream);
extern void migrate_replication_check_tables(MigrateConn *conn, MigrateStream *stream);
extern void migrate_replication_start(MigrateConn *conn, MigrateStream *stream,
									  XLogRecPtr lsn);
extern int	migrate_replication_receive(MigrateConn *conn, char **buffer);
extern void migrate_replication_status(MigrateConn *conn, XLogRecPtr received,
									   XLogRecPtr durable, bool reply_requested);
pg_noreturn extern void migrate_stream_lost(MigrateStream *stream, const char *fmt,...)
			pg_attribute_printf(2, 3);

#endif							/* MIGRATE_CAPTURE_H */
