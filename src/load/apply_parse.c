/*-------------------------------------------------------------------------
 *
 * apply_parse.c
 *	  Values of the stream's rows: from the source's text to this server's.
 *
 * Apply worker, in the transaction of a batch, for rows that no later change
 * of the batch has superseded.  A value is converted as the copy does it (P7):
 * the declared type's input function on the text that the source sent, which
 * is in the source's encoding, under migrate_input_settings().
 *
 * A value that cannot be read is its row's fault, and the row is set aside: one
 * subtransaction for all rows, begun again behind the one that failed.  Rows
 * read before it stay in the batch, which is the outer level's.  Input
 * functions that were left by an error are looked up anew.
 *
 * A crash leaves nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "load/apply_worker.h"

/* a batch beyond this spills to disk, kB */
#define BATCH_KB (48 * 1024)

/* Types whose input functions accept nothing that is not ASCII. */
static bool
is_ascii(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case FLOAT4OID:
		case FLOAT8OID:
		case NUMERICOID:
		case OIDOID:
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case UUIDOID:
		case BYTEAOID:
		case INETOID:
		case CIDROID:
			return true;
		default:
			return false;
	}
}

static char
fast_form(Oid type, int32 typmod)
{
	if (type == INT4OID)
		return '4';
	if (type == INT8OID)
		return '8';
	if (type == TEXTOID || (type == VARCHAROID && typmod < 0))
		return 't';
	return '\0';
}

/* How each column of a source is read. */
static void
prepare_input(ApplySource *source)
{
	MigrateSource *src = source->src;
	MemoryContext old;

	if (source->input_cxt == NULL)
		source->input_cxt = AllocSetContextCreate(GetMemoryChunkContext(source),
												  "migrate apply input",
												  ALLOCSET_SMALL_SIZES);
	MemoryContextReset(source->input_cxt);
	old = MemoryContextSwitchTo(source->input_cxt);
	source->input = palloc0(sizeof(ApplyInput) * Max(src->ncolumns, 1));
	source->money = false;
	for (int i = 0; i < src->ncolumns; i++)
	{
		MigrateColumn *col = &src->columns[i];
		ApplyInput *in = &source->input[i];
		Oid			function;

		getTypeInputInfo(col->type, &function, &in->ioparam);
		fmgr_info_cxt(function, &in->function, source->input_cxt);
		in->typmod = col->typmod;
		in->fast = fast_form(col->type, col->typmod);
		in->ascii = is_ascii(col->type);
		source->money = source->money || migrate_type_contains_money(col->type);
	}
	MemoryContextSwitchTo(old);
}

/* One value; its text ends with a zero. */
static inline Datum
read_value(ApplyInput *in, const char *text, int len, int encoding)
{
	char	   *s = (char *) text;

	if (in->fast == '4')
		return Int32GetDatum(pg_strtoint32(s));
	if (in->fast == '8')
		return Int64GetDatum(pg_strtoint64(s));
	if (!in->ascii)
	{
		/* the same pointer when it only had to be verified */
		s = pg_any_to_server(s, len, encoding);
		if (s != text)
			len = strlen(s);
	}
	if (in->fast == 't')
		return PointerGetDatum(cstring_to_text_with_len(s, len));
	return InputFunctionCall(&in->function, s, in->ioparam, in->typmod);
}

/* All values of a row, or those of its key. */
static void
read_row(ApplyWorker *w, ApplySource *source, ApplyRow *row, bool keys,
		 Datum *values, bool *nulls)
{
	MigrateSource *src = source->src;
	const char *at = row->data + src->ncolumns;

	for (int i = 0; i < src->ncolumns; i++)
	{
		uint32		len;

		nulls[i] = true;
		values[i] = (Datum) 0;
		if (row->data[i] == 't')
		{
			memcpy(&len, at, sizeof(len));
			at += sizeof(len);
			if (!keys || src->columns[i].is_key)
			{
				nulls[i] = false;
				values[i] = read_value(&source->input[i], at, len, w->encoding);
			}
			at += len + 1;
		}
		/* a domain or type may refuse null */
		else if (row->data[i] == 'n' && !keys && !source->input[i].function.fn_strict)
			values[i] = InputFunctionCall(&source->input[i].function, NULL,
										  source->input[i].ioparam,
										  source->input[i].typmod);
	}
}

static Bitmapset *
unknown_columns(ApplySource *source, ApplyRow *row)
{
	Bitmapset  *set = NULL;

	for (int i = 0; i < source->src->ncolumns; i++)
		if (row->data[i] == 'u')
			set = bms_add_member(set, i);
	return set;
}

/* What has to be kept of a batch of rows that is being read. */
typedef struct Reading
{
	ApplyWorker *w;
	ApplySource *source;
	ApplyRow  **rows;
	int			nrows;
	int			next;			/* row at hand */
	bool		keys;
	MigrateBatch *batch;
	Bitmapset ***unknown;
	MemoryContext result;		/* of what is given back */
	MemoryContext row_cxt;
	Datum	   *values;
	bool	   *nulls;
} Reading;

/* Rows from "next" on, until all are read or one throws. */
static void
read_on(Reading *r)
{
	ApplySource *source = r->source;
	int			level = migrate_input_settings(source->money);

	for (; r->next < r->nrows; r->next++)
	{
		ApplyRow   *row = r->rows[r->next];

		MemoryContextReset(r->row_cxt);
		MemoryContextSwitchTo(r->row_cxt);
		read_row(r->w, source, row, r->keys, r->values, r->nulls);
		MemoryContextSwitchTo(r->result);
		if (row->unknown > 0 && r->unknown)
		{
			if (*r->unknown == NULL)
				*r->unknown = palloc0(sizeof(Bitmapset *) * r->nrows);
			(*r->unknown)[r->batch->nrows] = unknown_columns(source, row);
		}
		migrate_batch_add(r->batch, r->values, r->nulls, row->size);
		if ((r->next & 0x3ff) == 0)
			CHECK_FOR_INTERRUPTS();
	}
	migrate_input_settings_end(level);
}

/* Read on in a subtransaction; the error of the row at hand, NULL: done. */
static ErrorData *
try_read_on(Reading *r)
{
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(r->result);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		read_on(r);
		PopActiveSnapshot();
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(r->result);
		edata = CopyErrorData();
		if (!migrate_error_is_of_row(edata->sqlerrcode) &&
			!migrate_error_can_be_of_value(edata))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		error = edata;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(r->result);
	CurrentResourceOwner = owner;
	return error;
}

List *
migrate_parse_rows(ApplyWorker *w, ApplySource *source, ApplyRow **rows, int nrows,
				   bool keys, MigrateBatch *batch, Bitmapset ***unknown)
{
	int			n = Max(source->src->ncolumns, 1);
	List	   *bad = NIL;
	ErrorData  *edata;
	Reading		r = {
		.w = w,
		.source = source,
		.rows = rows,
		.nrows = nrows,
		.keys = keys,
		.batch = batch,
		.unknown = unknown,
		.result = CurrentMemoryContext,
	};

	if (unknown)
		*unknown = NULL;
	if (source->input == NULL)
		prepare_input(source);
	batch->max_kb = Max(batch->max_kb, BATCH_KB);
	r.row_cxt = AllocSetContextCreate(CurrentMemoryContext, "migrate apply row",
									  ALLOCSET_DEFAULT_SIZES);
	r.values = palloc(sizeof(Datum) * n);
	r.nulls = palloc(sizeof(bool) * n);
	while ((edata = try_read_on(&r)) != NULL)
	{
		ApplyBadRow *b = palloc(sizeof(ApplyBadRow));

		b->row = rows[r.next++];
		b->edata = edata;
		bad = lappend(bad, b);
		prepare_input(source);
	}
	MemoryContextDelete(r.row_cxt);
	return bad;
}

/* ----------------------------------------------------------------
 * rows that cannot be read
 * ----------------------------------------------------------------
 */

/* The text of a value in this server's encoding, NULL when it is not valid. */
static char *
shown_text(const char *text, int len, int encoding)
{
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext mcxt = CurrentMemoryContext;
	char	   *volatile result = NULL;

	if (pg_encoding_verifymbstr(encoding, text, len) != len)
		return NULL;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		result = pg_any_to_server(text, len, encoding);
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

char *
migrate_row_key(ApplyWorker *w, ApplySource *source, ApplyRow *row)
{
	MigrateSource *src = source->src;
	char	  **text = palloc0(sizeof(char *) * Max(src->ncolumns, 1));
	const char *at = row->data + src->ncolumns;
	StringInfoData json;

	if (src->nkeys == 0)
		return NULL;
	for (int i = 0; i < src->ncolumns; i++)
	{
		uint32		len;

		if (row->data[i] != 't')
			continue;
		memcpy(&len, at, sizeof(len));
		at += sizeof(len);
		if (src->columns[i].is_key &&
			(text[i] = shown_text(at, len, w->encoding)) == NULL)
			return NULL;
		at += len + 1;
	}
	initStringInfo(&json);
	for (int k = 0; k < src->nkeys; k++)
	{
		appendStringInfoString(&json, k > 0 ? ", " : "{");
		escape_json(&json, src->columns[src->keys[k]].name);
		appendStringInfoString(&json, ": ");
		if (text[src->keys[k]])
			escape_json(&json, text[src->keys[k]]);
		else
			appendStringInfoString(&json, "null");
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

char *
migrate_row_raw(ApplyWorker *w, ApplySource *source, ApplyRow *row)
{
	MigrateSource *src = source->src;
	const char *at = row->data + src->ncolumns;
	bool		first = true;
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"at\": ");
	escape_json(&json, psprintf("the stream, at or before commit %X/%X",
								LSN_FORMAT_ARGS(w->final_lsn)));
	appendStringInfoString(&json, ", \"columns\": {");
	for (int i = 0; i < src->ncolumns; i++)
	{
		uint32		len;

		if (row->data[i] == 'u')
			continue;
		appendStringInfoString(&json, first ? "" : ", ");
		first = false;
		escape_json(&json, src->columns[i].name);
		if (row->data[i] == 'n')
		{
			appendStringInfoString(&json, ": null");
			continue;
		}
		memcpy(&len, at, sizeof(len));
		at += sizeof(len);
		appendStringInfoString(&json, ": \"\\\\x");
		for (uint32 b = 0; b < len; b++)
			appendStringInfo(&json, "%02x", (unsigned char) at[b]);
		appendStringInfoChar(&json, '"');
		at += len + 1;
	}
	appendStringInfoString(&json, "}}");
	return json.data;
}
