/*-------------------------------------------------------------------------
 *
 * digest.c
 *	  The hash of a row as SQL functions: for the target, and for a source
 *	  that has this extension, too.
 *
 *	  migrate._digest(lo, shift, buckets, key, VARIADIC columns)	aggregate
 *	  migrate._digest_sum(lo, shift, buckets, key, hash)			aggregate
 *	  migrate._hash(VARIADIC columns)
 *
 * The aggregate counts the rows of each bucket and sums both halves of their
 * hashes (row_hash.c).  A row's bucket is (key >> shift) - lo, or the first or
 * last bucket when it lies beyond; a null key has the bucket after the last.
 * The result is the buckets that have rows, in network order:
 *
 *	  { int32 bucket, int64 rows, int64 sum of lo, int64 sum of hi } ...
 *
 * The other one is given 64-bit hashes, where these are the source's own.  Lo
 * and hi are their halves: the low one unsigned, the high one signed.
 *
 * Runs in whatever process executes the query, in parallel workers, too.  The
 * settings that output functions obey must be pinned by the caller.  Writes
 * nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "fmgr.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "validate.h"

PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_digest_row);
PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_digest_sum_row);
PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_digest_combine);
PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_digest_serialize);
PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_digest_deserialize);
PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_digest_final);
PGDLLEXPORT PG_FUNCTION_INFO_V1(migrate_hash_row);

/* arguments of migrate._digest before the columns, the state included */
#define FIXED_ARGS 5

/* Of one call site: how its arguments become bytes. */
typedef struct RowForm
{
	int			nvalues;
	ValidateValue *values;
	StringInfoData row;
} RowForm;

typedef struct DigestState
{
	int			nbuckets;		/* without the one for null keys */
	ValidateBucket *buckets;	/* nbuckets + 1 */
} DigestState;

/* The form of the arguments from "first" on; made once a call site. */
static RowForm *
row_form(FunctionCallInfo fcinfo, int first)
{
	RowForm    *form = fcinfo->flinfo->fn_extra;
	MemoryContext old;

	if (form)
		return form;
	old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	form = palloc0(sizeof(RowForm));
	form->nvalues = PG_NARGS() - first;
	form->values = palloc0(sizeof(ValidateValue) * form->nvalues);
	for (int i = 0; i < form->nvalues; i++)
	{
		Oid			type = get_fn_expr_argtype(fcinfo->flinfo, first + i);

		if (!OidIsValid(type))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("could not determine the type of argument %d", first + i)));
		validate_value_form(&form->values[i], type);
	}
	initStringInfo(&form->row);
	MemoryContextSwitchTo(old);
	fcinfo->flinfo->fn_extra = form;
	return form;
}

/* The hash of the arguments from "first" on. */
static ValidateHash
hash_args(FunctionCallInfo fcinfo, int first)
{
	RowForm    *form = row_form(fcinfo, first);

	resetStringInfo(&form->row);
	for (int i = 0; i < form->nvalues; i++)
		validate_append_value(&form->row, &form->values[i],
							  fcinfo->args[first + i].value,
							  fcinfo->args[first + i].isnull);
	return validate_hash_bytes(form->row.data, form->row.len);
}

/* In the aggregate's memory context. */
static DigestState *
make_state(FunctionCallInfo fcinfo, int64 nbuckets)
{
	MemoryContext mcxt;
	DigestState *state;

	if (!AggCheckCallContext(fcinfo, &mcxt))
		elog(ERROR, "digest called outside an aggregate");
	if (nbuckets < 1 || nbuckets > VALIDATE_MAX_BUCKETS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number of buckets must be from 1 to %d", VALIDATE_MAX_BUCKETS)));
	state = MemoryContextAlloc(mcxt, sizeof(DigestState));
	state->nbuckets = nbuckets;
	state->buckets = MemoryContextAllocZero(mcxt, sizeof(ValidateBucket) * (nbuckets + 1));
	return state;
}

/*
 * The bucket of the row at hand, from the arguments (internal, lo int8, shift
 * int4, buckets int4, key int8, ...); *state is made when it is the first.
 */
static inline ValidateBucket *
row_bucket(FunctionCallInfo fcinfo, DigestState **state)
{
	if (!PG_ARGISNULL(0))
		*state = (DigestState *) PG_GETARG_POINTER(0);
	else if (PG_ARGISNULL(1) || PG_ARGISNULL(2) || PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("lo, shift and buckets must not be null")));
	else
		*state = make_state(fcinfo, PG_GETARG_INT32(3));
	if (PG_ARGISNULL(4))
		return &(*state)->buckets[(*state)->nbuckets];
	return &(*state)->buckets[validate_bucket_of(PG_GETARG_INT64(4), PG_GETARG_INT64(1),
												 PG_GETARG_INT32(2), (*state)->nbuckets)];
}

/* (internal, lo int8, shift int4, buckets int4, key int8, VARIADIC "any") */
Datum
migrate_digest_row(PG_FUNCTION_ARGS)
{
	DigestState *state;
	ValidateBucket *bucket = row_bucket(fcinfo, &state);
	ValidateHash hash = hash_args(fcinfo, FIXED_ARGS);

	bucket->rows++;
	bucket->lo += hash.lo;
	bucket->hi += hash.hi;
	PG_RETURN_POINTER(state);
}

/* (internal, lo int8, shift int4, buckets int4, key int8, hash int8) */
Datum
migrate_digest_sum_row(PG_FUNCTION_ARGS)
{
	DigestState *state;
	ValidateBucket *bucket = row_bucket(fcinfo, &state);
	int64		hash = PG_ARGISNULL(5) ? 0 : PG_GETARG_INT64(5);

	bucket->rows++;
	bucket->lo += (uint32) hash;
	bucket->hi += (uint64) (hash >> 32);
	PG_RETURN_POINTER(state);
}

Datum
migrate_digest_combine(PG_FUNCTION_ARGS)
{
	DigestState *into;
	DigestState *from;

	if (PG_ARGISNULL(1))
	{
		if (PG_ARGISNULL(0))
			PG_RETURN_NULL();
		PG_RETURN_POINTER(PG_GETARG_POINTER(0));
	}
	from = (DigestState *) PG_GETARG_POINTER(1);
	into = PG_ARGISNULL(0) ? make_state(fcinfo, from->nbuckets) :
		(DigestState *) PG_GETARG_POINTER(0);
	for (int i = 0; i <= from->nbuckets; i++)
	{
		into->buckets[i].rows += from->buckets[i].rows;
		into->buckets[i].lo += from->buckets[i].lo;
		into->buckets[i].hi += from->buckets[i].hi;
	}
	PG_RETURN_POINTER(into);
}

/* Both for parallel workers and as the result. */
static bytea *
write_buckets(DigestState *state, bool with_count)
{
	StringInfoData buf;

	pq_begintypsend(&buf);
	if (with_count)
		pq_sendint32(&buf, state->nbuckets);
	for (int i = 0; i <= state->nbuckets; i++)
	{
		ValidateBucket *b = &state->buckets[i];

		if (b->rows == 0)
			continue;
		pq_sendint32(&buf, i);
		pq_sendint64(&buf, b->rows);
		pq_sendint64(&buf, b->lo);
		pq_sendint64(&buf, b->hi);
	}
	return pq_endtypsend(&buf);
}

/* Add what write_buckets wrote, without its count, to buckets 0 to nbuckets. */
void
validate_read_buckets(const char *data, int len, ValidateBucket *buckets, int nbuckets)
{
	StringInfoData buf = {.data = unconstify(char *, data),.len = len,.maxlen = len};

	while (buf.cursor < buf.len)
	{
		uint32		i = pq_getmsgint(&buf, 4);

		if (i > nbuckets)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("digest has bucket %u of %d", i, nbuckets)));
		buckets[i].rows += pq_getmsgint64(&buf);
		buckets[i].lo += pq_getmsgint64(&buf);
		buckets[i].hi += pq_getmsgint64(&buf);
	}
}

Datum
migrate_digest_serialize(PG_FUNCTION_ARGS)
{
	PG_RETURN_BYTEA_P(write_buckets((DigestState *) PG_GETARG_POINTER(0), true));
}

Datum
migrate_digest_deserialize(PG_FUNCTION_ARGS)
{
	bytea	   *data = PG_GETARG_BYTEA_PP(0);
	StringInfoData buf;
	DigestState *state;

	buf.data = VARDATA_ANY(data);
	buf.len = buf.maxlen = VARSIZE_ANY_EXHDR(data);
	buf.cursor = 0;
	state = make_state(fcinfo, pq_getmsgint(&buf, 4));
	validate_read_buckets(buf.data + buf.cursor, buf.len - buf.cursor,
						  state->buckets, state->nbuckets);
	PG_RETURN_POINTER(state);
}

Datum
migrate_digest_final(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	PG_RETURN_BYTEA_P(write_buckets((DigestState *) PG_GETARG_POINTER(0), false));
}

/* (VARIADIC "any") RETURNS int8 */
Datum
migrate_hash_row(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64((int64) hash_args(fcinfo, 0).lo);
}
