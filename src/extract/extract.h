/*-------------------------------------------------------------------------
 *
 * extract.h
 *	  What the files of extract/ share with each other, and nobody else.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_EXTRACT_H
#define MIGRATE_EXTRACT_H

#include "migrate.h"

#include "libpq-events.h"
#include "libpq-fe.h"

/* ----------------------------------------------------------------
 * in remote.c: libpq without blocking
 * ----------------------------------------------------------------
 */

/* What connection.c makes; MigrateConn is its public face. */
typedef struct RemoteConn
{
	MigrateConn pub;
	char	   *server_name;	/* for messages: no catalog access there */
	MemoryContext mcxt;			/* holds this struct; deleting it closes */
	bool		owns_fd;		/* one of fd.c's external descriptors is ours */
	MemoryContextCallback closer;
	List	   *not_lockable;	/* OIDs that LOCK TABLE has refused */
	bool		streaming;		/* START_REPLICATION is under way */
} RemoteConn;

extern const char *migrate_conn_name(MigrateConn *conn);
extern int	migrate_result_event(PGEventId event, void *info, void *arg);
extern void migrate_remote_start(MigrateConn *conn, const char *sql,
								 bool single_statement);
extern PGresult *migrate_remote_next_result(MigrateConn *conn);
extern bool migrate_remote_ready(MigrateConn *conn);
extern char *migrate_remote_value(MigrateConn *conn, const char *sql);

/*
 * While not 0, no statement is waited for beyond it (but for COPY): set by a
 * cutover while the application waits.  A connection that it hits is closed.
 */
extern TimestampTz migrate_remote_deadline;

extern int	migrate_remote_copy_data(MigrateConn *conn, char **buffer);
extern PGresult *migrate_exec_extended(MigrateConn *conn, const char *sql);
extern PGresult *migrate_exec_try(MigrateConn *conn, const char *sql);
extern void migrate_exec_quietly(MigrateConn *conn, const char *sql);
extern bool migrate_result_ok(PGresult *res);
extern bool migrate_result_is(PGresult *res, int sqlerrcode);
extern void migrate_remote_cancel(PGconn *pg);
extern void migrate_remote_settle(MigrateConn *conn);
extern char *migrate_result_value(PGresult *res, int row, int col);
pg_noreturn extern void migrate_report_conn_error(MigrateConn *conn,
												  const char *sql);

/* ----------------------------------------------------------------
 * in connection.c: to the server's walsender, in the given encoding
 * ----------------------------------------------------------------
 */
extern MigrateConn *migrate_connect_for_replication(Oid server, Oid owner,
													const char *slot, const char *role,
													const char *encoding,
													int connect_timeout_s);

/* ----------------------------------------------------------------
 * in range.c: a range as SQL, and where to cut it
 * ----------------------------------------------------------------
 */
extern char *migrate_range_select(MigrateSource *src, MigrateRange *range);
extern void migrate_append_columns(StringInfo buf, MigrateSource *src);
extern void migrate_append_from(StringInfo buf, MigrateSource *src,
								MigrateRange *range);
extern void migrate_append_keys_at(StringInfo buf, MigrateSource *src, List *keys);
extern void migrate_append_where(StringInfo buf, MigrateSource *src,
								 MigrateRange *range);
extern void migrate_append_order(StringInfo buf, MigrateSource *src);
extern char **migrate_range_cut(MigrateConn *conn, MigrateSource *src,
								MigrateRange *range, int64 offset);
extern char **migrate_range_first_key(MigrateConn *conn, MigrateSource *src,
									  MigrateRange *range);
extern int64 migrate_range_count(MigrateConn *conn, MigrateSource *src,
								 MigrateRange *range);
extern bool migrate_range_pushed_down(MigrateSource *src);
extern void migrate_append_not_null(StringInfo buf, MigrateSource *src);
extern char **migrate_key_copy(char **key, int nkeys);
extern char **migrate_key_from_array(Datum value, bool isnull);
extern Datum migrate_key_to_array(char **key, int nkeys);
extern int	migrate_portable_output(void);

/* ----------------------------------------------------------------
 * in fingerprint.c: the tree of a source table, and what it is read by (P2)
 * ----------------------------------------------------------------
 */
extern char *migrate_fingerprint_items(MigrateConn *conn, MigrateSource *src,
									   const char *relation, bool looked_up);
extern MigrateRelation *migrate_tree_relation(PGresult *res, int row, int *id);

/* ----------------------------------------------------------------
 * in fetch_size.c
 * ----------------------------------------------------------------
 */
extern void migrate_set_fetch_size(MigrateJob *job, MigrateConn *conn,
								   MigrateSource *src, List *relations);

/* ----------------------------------------------------------------
 * in decode.c and decode_jsonb.c: binary COPY into values
 * ----------------------------------------------------------------
 */
typedef struct MigrateDecoder MigrateDecoder;

extern MigrateDecoder *migrate_decoder_create(MigrateSource *src, const char *relation);
extern void migrate_decoder_context(void *arg);
extern int64 migrate_decode_length(MigrateDecoder *decoder, const char *data, int64 len);
extern bool migrate_decode_row(MigrateDecoder *decoder, char *data, Datum *values,
							   bool *nulls);
extern Size migrate_put_numeric(char *to, Size header, bool negative, int scale,
								int weight, const int16 *digits, int ndigits);
extern Datum migrate_decode_jsonb(const char *text, int len, bool *done);

/* ----------------------------------------------------------------
 * in reader_copy.c and reader_fdw.c: the two kinds of reader
 * ----------------------------------------------------------------
 */
struct MigrateReader
{
	MigrateConn *conn;
	MigrateSource *src;
	MigrateRange *range;		/* NULL: everything */
	MemoryContext mcxt;			/* of the transaction; holds the reader */
	MemoryContext row_mcxt;		/* reset before each row */
	int			fetch_size;
	bool		done;
	bool		money;			/* a column is read by lc_monetary */
	bool		converting;		/* an error now is about a value, not the
								 * source */
	struct CopyReader *copy;	/* one of these two */
	struct FdwReader *fdw;
};

extern void migrate_copy_reader_open(MigrateReader *reader);
extern bool migrate_copy_reader_next(MigrateReader *reader, Datum *values,
									 bool *nulls, int64 *bytes);
extern void migrate_copy_reader_close(MigrateReader *reader, bool failed);

extern void migrate_fdw_reader_open(MigrateReader *reader);
extern bool migrate_fdw_reader_next(MigrateReader *reader, Datum *values,
									bool *nulls, int64 *bytes);
extern void migrate_fdw_reader_close(MigrateReader *reader, bool failed);

#endif							/* MIGRATE_EXTRACT_H */
