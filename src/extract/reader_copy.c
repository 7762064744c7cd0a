/*-------------------------------------------------------------------------
 *
 * reader_copy.c
 *	  The fast transport: COPY (SELECT ...) TO STDOUT on the source, with the
 *	  foreign table as the description of the row.  Binary rows are decoded by
 *	  decode.c, text is parsed by core's COPY FROM.
 *
 * A value is converted exactly once, by the input or receive function of the
 * declared type (P7).  Binary only where the plan found every type built in
 * and the same on both sides; a receive function converts from this session's
 * client encoding, so that binary also needs that to be the database's.
 *
 * Runs inside the transaction that migrate_source_begin() opened.  A savepoint
 * protects it, released in the same round trip:
 *
 *	  SAVEPOINT - COPY ... TO STDOUT - RELEASE
 *
 * so that after a failed read the snapshot is still there for reading the same
 * range in halves.  Core's callback has no argument: a static tells which
 * reader is being served, set before each call into core.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/table.h"
#include "commands/copy.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#define READ_SAVEPOINT "migrate_read"

typedef struct CopyReader
{
	MigrateConn *conn;
	MigrateReader *reader;
	Relation	rel;			/* the foreign table */
	MigrateDecoder *decoder;	/* of binary rows; else core's parser: */
	CopyFromState cstate;
	Datum	   *values;			/* by attribute number of rel */
	bool	   *nulls;
	bool		reorder;		/* rel has columns that the row has not */
	bool		savepoint;
	bool		at_end;			/* the source has sent everything */
	char	   *sql;

	/* the message of libpq that is being handed over */
	char	   *message;
	char	   *joined;			/* a row's begin and the message; NULL: none */
	char	   *data;			/* one of the two */
	int64		length;
	int64		used;
	int64		bytes;			/* received since the last row */

	/*
	 * rows that the parser gave, and that the source says it sent (-1: not
	 * said yet); they must agree
	 */
	int64		parsed;
	int64		sent;
} CopyReader;

/* whose turn it is in read_copy_data() */
static CopyReader *serving = NULL;

/* ----------------------------------------------------------------
 * from the socket to core's parser
 * ----------------------------------------------------------------
 */

/*
 * A statement failed: take what else the source says, so that the connection
 * is idle and need not be cancelled, and throw the error.
 */
static void
fail_copy(CopyReader *copy, PGresult *res)
{
	PGresult   *rest;

	copy->conn->in_copy = false;
	while (PQstatus(copy->conn->pg) == CONNECTION_OK &&
		   (rest = migrate_remote_next_result(copy->conn)) != NULL)
		PQclear(rest);
	migrate_report_remote_error(res, copy->conn, copy->sql);
}

/* The data is over: by success, or by an error, which is thrown. */
static void
finish_copy(CopyReader *copy)
{
	PGresult   *res;

	copy->at_end = true;
	while ((res = migrate_remote_next_result(copy->conn)) != NULL)
	{
		if (!migrate_result_ok(res))
			fail_copy(copy, res);
		if (copy->sent < 0 && PQcmdTuples(res)[0] != '\0')
			copy->sent = pg_strtoint64(PQcmdTuples(res));
		PQclear(res);
	}
	if (PQstatus(copy->conn->pg) != CONNECTION_OK)
		migrate_report_conn_error(copy->conn, copy->sql);
	copy->conn->in_copy = false;
}

static void
free_message(CopyReader *copy)
{
	if (copy->message)
		PQfreemem(copy->message);
	if (copy->joined)
		pfree(copy->joined);
	copy->message = copy->joined = copy->data = NULL;
	copy->used = copy->length = 0;
}

/* Get the next message; false at the end. */
static bool
next_message(CopyReader *copy)
{
	free_message(copy);
	if (copy->at_end)
		return false;
	copy->reader->converting = false;
	copy->length = migrate_remote_copy_data(copy->conn, &copy->message);
	if (copy->length < 0)
	{
		copy->length = 0;
		copy->message = NULL;
		finish_copy(copy);
		return false;
	}
	copy->data = copy->message;
	copy->bytes += copy->length;
	copy->reader->converting = true;
	return true;
}

/*
 * Core's data source: at least minread bytes unless the data ends, at most
 * maxread.  Takes one message (a row) at a time once the minimum is there, so
 * that a row is not held up for those after it.
 */
static int
read_copy_data(void *outbuf, int minread, int maxread)
{
	CopyReader *copy = serving;
	int			got = 0;

	while (got < maxread)
	{
		int			part = (int) Min(copy->length - copy->used, maxread - got);

		if (part > 0)
		{
			memcpy((char *) outbuf + got, copy->data + copy->used, part);
			copy->used += part;
			got += part;
		}
		else if (got >= minread && got > 0)
			break;
		else if (!next_message(copy))
			break;
	}
	return got;
}

/* ----------------------------------------------------------------
 * binary rows
 * ----------------------------------------------------------------
 */

/*
 * The message ends within a row: put what there is of it before the next one.
 * Servers send a row a message, what lies between may not.
 */
static void
join_messages(CopyReader *copy)
{
	int64		left = copy->length - copy->used;
	MemoryContext mcxt = copy->reader->mcxt;
	char	   *begin = MemoryContextAllocHuge(mcxt, Max(left, 1));
	char	   *joined;

	memcpy(begin, copy->data + copy->used, left);
	if (!next_message(copy))
		ereport(ERROR,
				(errcode(ERRCODE_BAD_COPY_FILE_FORMAT),
				 errmsg("data of source \"%s\" ends within a row",
						copy->reader->src->label)));
	joined = MemoryContextAllocHuge(mcxt, left + copy->length + 1);
	memcpy(joined, begin, left);
	/* with the zero byte that libpq puts behind a message */
	memcpy(joined + left, copy->data, copy->length + 1);
	pfree(begin);
	copy->data = copy->joined = joined;
	copy->length += left;
}

/* The next row; false at the end. */
static bool
next_row(CopyReader *copy, Datum *values, bool *nulls)
{
	char	   *row;
	int64		length;

	if (copy->used == copy->length && !next_message(copy))
		return false;
	while ((length = migrate_decode_length(copy->decoder, copy->data + copy->used,
										   copy->length - copy->used)) < 0)
		join_messages(copy);
	row = copy->data + copy->used;
	copy->used += length;
	if (migrate_decode_row(copy->decoder, row, values, nulls))
		return true;
	if (copy->used < copy->length || next_message(copy))
		ereport(ERROR,
				(errcode(ERRCODE_BAD_COPY_FILE_FORMAT),
				 errmsg("received copy data after EOF marker")));
	return false;
}

/* ----------------------------------------------------------------
 * open, next, close
 * ----------------------------------------------------------------
 */

/* The foreign table, held by the transaction: see reader.c. */
static Relation
open_row_description(Oid relid)
{
	ResourceOwner owner = CurrentResourceOwner;
	Relation	rel;

	CurrentResourceOwner = TopTransactionResourceOwner;
	PG_TRY();
	{
		rel = table_open(relid, AccessShareLock);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = owner;
	}
	PG_END_TRY();
	return rel;
}

static void
close_row_description(Relation rel)
{
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = TopTransactionResourceOwner;
	table_close(rel, NoLock);
	CurrentResourceOwner = owner;
}

/* Send the COPY and wait until its data begins. */
static void
start_remote_copy(CopyReader *copy, MigrateReader *reader, bool binary)
{
	MigrateConn *conn = copy->conn;
	char	   *select = migrate_range_select(reader->src, reader->range);
	PGresult   *res;

	copy->sql = psprintf("COPY (%s) TO STDOUT%s", select,
						 binary ? " (FORMAT binary)" : "");
	copy->savepoint = PQtransactionStatus(conn->pg) == PQTRANS_INTRANS;
	if (copy->savepoint)
		migrate_remote_start(conn,
							 psprintf("SAVEPOINT " READ_SAVEPOINT "; %s; "
									  "RELEASE SAVEPOINT " READ_SAVEPOINT, copy->sql),
							 false);
	else
		migrate_remote_start(conn, copy->sql, false);
	for (;;)
	{
		res = migrate_remote_next_result(conn);
		if (res == NULL)
			migrate_report_conn_error(conn, copy->sql);
		if (PQresultStatus(res) == PGRES_COPY_OUT)
			break;
		if (!migrate_result_ok(res))
			fail_copy(copy, res);
		PQclear(res);
	}
	PQclear(res);
	conn->in_copy = true;
}

/*
 * Core's parser over the foreign table, with our columns in our order, for the
 * text form.
 */
static void
start_parser(CopyReader *copy, MigrateSource *src)
{
	List	   *columns = NIL;
	List	   *options = NIL;

	for (int i = 0; i < src->ncolumns; i++)
		columns = lappend(columns, makeString(src->columns[i].name));
	options = lappend(options,
					  makeDefElem("encoding",
								  (Node *) makeString(pstrdup(GetDatabaseEncodingName())),
								  -1));
	serving = copy;
	copy->cstate = BeginCopyFrom(NULL, copy->rel, NULL, NULL, false,
								 read_copy_data, columns, options);
}

void
migrate_copy_reader_open(MigrateReader *reader)
{
	MigrateSource *src = reader->src;
	CopyReader *copy;
	int			natts;
	bool		binary = src->binary &&
	pg_get_client_encoding() == GetDatabaseEncoding();

	if (reader->conn == NULL)
		elog(ERROR, "no connection to read source \"%s\"", src->label);
	if (reader->conn->in_copy)
		elog(ERROR, "the connection to the source is in use by another reader");

	copy = reader->copy = palloc0(sizeof(CopyReader));
	copy->conn = reader->conn;
	copy->reader = reader;
	copy->sent = -1;
	copy->rel = open_row_description(src->foreign_table);
	natts = RelationGetNumberOfAttributes(copy->rel);
	copy->values = palloc0(Max(natts, 1) * sizeof(Datum));
	copy->nulls = palloc0(Max(natts, 1) * sizeof(bool));
	copy->reorder = natts != src->ncolumns;
	start_remote_copy(copy, reader, binary);
	if (binary)
		copy->decoder = migrate_decoder_create(src, pstrdup(RelationGetRelationName(copy->rel)));
	else
		start_parser(copy, src);
}

bool
migrate_copy_reader_next(MigrateReader *reader, Datum *values, bool *nulls,
						 int64 *bytes)
{
	CopyReader *copy = reader->copy;
	MigrateSource *src = reader->src;
	ErrorContextCallback context;
	bool		found;

	/* errors name line, column and value as COPY's do */
	context.callback = copy->decoder ? migrate_decoder_context : CopyFromErrorCallback;
	context.arg = copy->decoder ? (void *) copy->decoder : (void *) copy->cstate;
	context.previous = error_context_stack;
	error_context_stack = &context;
	serving = copy;
	reader->converting = true;
	if (copy->decoder)
		found = next_row(copy, values, nulls);
	else if (copy->reorder)
		found = NextCopyFrom(copy->cstate, NULL, copy->values, copy->nulls);
	else
		found = NextCopyFrom(copy->cstate, NULL, values, nulls);
	error_context_stack = context.previous;
	reader->converting = false;

	if (!found)
	{
		/* the parser may have seen the end before the source said so */
		while (next_message(copy))
			;
		if (copy->parsed != copy->sent)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("%lld rows of source \"%s\" were read, but %lld were sent",
							(long long) copy->parsed, src->label,
							(long long) copy->sent)));
		return false;
	}
	for (int i = 0; copy->reorder && copy->decoder == NULL && i < src->ncolumns; i++)
	{
		values[i] = copy->values[src->columns[i].attnum - 1];
		nulls[i] = copy->nulls[src->columns[i].attnum - 1];
	}
	copy->parsed++;
	*bytes = copy->bytes;
	copy->bytes = 0;
	return true;
}

/* After a failure: end the COPY and go back to the savepoint. */
static void
abandon_remote_copy(CopyReader *copy)
{
	MigrateConn *conn = copy->conn;

	migrate_remote_settle(conn);
	if (!copy->savepoint || PQstatus(conn->pg) != CONNECTION_OK)
		return;

	/*
	 * Still inside the savepoint, or not in it yet or any more: it is gone if
	 * the cancel came too late, and then nothing has to be undone.
	 */
	if (PQtransactionStatus(conn->pg) == PQTRANS_INERROR)
		migrate_exec_quietly(conn, "ROLLBACK TO SAVEPOINT " READ_SAVEPOINT
							 "; RELEASE SAVEPOINT " READ_SAVEPOINT);
}

void
migrate_copy_reader_close(MigrateReader *reader, bool failed)
{
	CopyReader *copy = reader->copy;

	reader->copy = NULL;
	free_message(copy);
	if (serving == copy)
		serving = NULL;
	if (copy->cstate)
		EndCopyFrom(copy->cstate);
	if (copy->rel)
		close_row_description(copy->rel);
	if (failed)
		abandon_remote_copy(copy);
}
