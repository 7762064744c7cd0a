/*-------------------------------------------------------------------------
 *
 * plan.c
 *	  How a mapping is compared: who computes the digests, and what the
 *	  buckets are.
 *
 * The digest of a row, by whom (migrate.validation.digest):
 *
 *	  extension	the source has this extension, too, and computes XXH3 over the
 *				row's own values
 *	  source	the source computes the hashes of its own types: 64 bits by
 *				equality (1.0 is 1.00, trailing blanks of char(n) do not count)
 *	  here		the rows travel, go through the mapping, and are hashed here
 *
 * The first two need a mapping that takes columns as they are, the same
 * built-in types on both sides, and the same encoding; whether both servers
 * hash alike is not assumed but tried, with a value of each type.  Only
 * digests travel then.
 *
 * A row's bucket is that of its key, so that it is the same on both sides,
 * wherever a row lies (blocks of the source have no counterpart here):
 *
 *	  ranges	of the key, where it is one integer column: rows of a bucket
 *				are found by the key's index, and a difference costs the
 *				reading of its bucket only
 *	  hash		of the key, or of the whole row where there is none: for the
 *				rows of a bucket the table is read again, filtered where it is
 *
 * The extent of the ranges is that of the source's keys; they are equally
 * wide, half-open, and the first and the last are open.
 *
 * Runs in the backend that validates, asks both sides' catalogs, writes
 * nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "validate.h"

/* Rows that a bucket should have: its digest is then about a hundredth of them. */
#define BUCKET_ROWS 256

/* An SQL function has at most 100 arguments. */
#define MAX_ARGUMENTS 90

/* Seeds: of columns from 1, of key columns from here; of the row's own. */
#define KEY_SEED 1001
#define ROW_SEED 17

const char *const validate_digest_names[] = {"here", "source", "extension"};

/* A source column as the source describes it. */
typedef struct RemoteColumn
{
	Oid			base;			/* of a domain its base type */
	char		typtype;		/* of that */
} RemoteColumn;

/*
 * Types that have a function to be called, and a value to try it with.  The
 * function of timestamptz is that of timestamp: time zones are UTC on both
 * sides.  "%s" is the column, "%d" the seed.
 */
static const struct
{
	Oid			type;
	const char *hash;
	const char *sample;
	int			since;			/* server version that has it; 0: any of ours */
}			hashes[] =

{
	{BOOLOID, "pg_catalog.hashint4extended(%s::pg_catalog.int4, %d)", "true", 0},
	{INT2OID, "pg_catalog.hashint2extended(%s, %d)", "-7", 0},
	{INT4OID, "pg_catalog.hashint4extended(%s, %d)", "-70000", 0},
	{INT8OID, "pg_catalog.hashint8extended(%s, %d)", "-5000000000", 0},
	{OIDOID, "pg_catalog.hashoidextended(%s, %d)", "4000000000", 0},
	{FLOAT4OID, "pg_catalog.hashfloat4extended(%s, %d)", "1.5e-7", 0},
	{FLOAT8OID, "pg_catalog.hashfloat8extended(%s, %d)", "-1.5e-77", 0},
	{NUMERICOID, "pg_catalog.hash_numeric_extended(%s, %d)", "-1234567.0890", 0},
	{TEXTOID, "pg_catalog.hashtextextended(%s COLLATE pg_catalog.\"C\", %d)", "longer than twelve bytes", 0},
	{VARCHAROID, "pg_catalog.hashtextextended(%s COLLATE pg_catalog.\"C\", %d)", "longer than twelve bytes", 0},
	{BPCHAROID, "pg_catalog.hashbpcharextended(%s COLLATE pg_catalog.\"C\", %d)", "longer than twelve bytes", 0},
	{TIMEOID, "pg_catalog.time_hash_extended(%s, %d)", "12:34:56.789", 0},
	{TIMETZOID, "pg_catalog.timetz_hash_extended(%s, %d)", "12:34:56.789+02", 0},
	{TIMESTAMPOID, "pg_catalog.timestamp_hash_extended(%s, %d)", "2026-01-02 12:34:56.789", 0},
	{TIMESTAMPTZOID, "pg_catalog.timestamp_hash_extended(%s::pg_catalog.timestamp, %d)", "2026-01-02 12:34:56.789+00", 0},
	{INTERVALOID, "pg_catalog.interval_hash_extended(%s, %d)", "1 mon 2 days 03:04:05.6", 0},
	{UUIDOID, "pg_catalog.uuid_hash_extended(%s, %d)", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", 0},
	{JSONBOID, "pg_catalog.jsonb_hash_extended(%s, %d)", "{\"a\": [1.50, null, true, {\"b\": \"c\"}]}", 0},
	{INETOID, "pg_catalog.hashinetextended(%s, %d)", "192.168.5.1/24", 0},
	{CIDROID, "pg_catalog.hashinetextended(%s, %d)", "10.1.0.0/16", 0},
	{MACADDROID, "pg_catalog.hashmacaddrextended(%s, %d)", "08:00:2b:01:02:03", 0},
	{DATEOID, "pg_catalog.hash_record_extended(ROW(%s), %d)", "2026-01-02", 140000},
	{BYTEAOID, "pg_catalog.hash_record_extended(ROW(%s), %d)", "\\x00ff", 140000},
};

/* ----------------------------------------------------------------
 * hashes in SQL
 * ----------------------------------------------------------------
 */

/* Types whose text says something of one server only. */
static bool
text_is_local(Oid type)
{
	switch (type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case ACLITEMOID:
		case ACLITEMARRAYOID:
			return true;
		default:
			return type >= FirstNormalObjectId;
	}
}

/*
 * The hash of a column in SQL, 0 for null; NULL when it has none that is the
 * same everywhere.  Types without a function of their own go by their text.
 */
static char *
column_hash(const char *column, Oid base, char typtype, int seed, int version)
{
	char	   *hash = NULL;

	for (int i = 0; i < lengthof(hashes) && !hash; i++)
		if (hashes[i].type == base && version >= hashes[i].since)
			hash = psprintf(hashes[i].hash, column, seed);
	if (!hash && typtype == TYPTYPE_ENUM)
		hash = psprintf("pg_catalog.hashtextextended(%s::pg_catalog.text COLLATE pg_catalog.\"C\", %d)",
						column, seed);
	if (!hash && (typtype == TYPTYPE_BASE || typtype == TYPTYPE_RANGE ||
				  typtype == TYPTYPE_MULTIRANGE) && !text_is_local(base) &&
		!text_is_local(get_element_type(base)))
		hash = psprintf("pg_catalog.hashtextextended(%s::pg_catalog.text COLLATE pg_catalog.\"C\", %d)",
						column, seed);
	return hash ? psprintf("COALESCE(%s, 0)", hash) : NULL;
}

/* The XOR of several hashes; they have seeds of their own. */
static char *
combine(char *a, char *b)
{
	return a ? psprintf("pg_catalog.int8xor(%s, %s)", a, b) : b;
}

/* ----------------------------------------------------------------
 * what the source is like
 * ----------------------------------------------------------------
 */

/* The source column that a compared column is as it is, or -1. */
static int
source_column(ValidateEnds *ends, int column)
{
	MigrateMapping *map = ends->map;

	if (!map->plain || column >= map->ncolumns)
		return -1;
	return map->plain[column];
}

/* Every compared column is one of the source's. */
static bool
is_plain(ValidateEnds *ends)
{
	if (ends->shape->ncolumns == 0 || ends->shape->ncolumns > MAX_ARGUMENTS)
		return false;
	for (int i = 0; i < ends->shape->ncolumns; i++)
		if (source_column(ends, i) < 0)
			return false;
	for (int k = 0; k < ends->map->nkeys; k++)
		if (ends->map->key_source[k] != source_column(ends, ends->shape->keys[k]))
			return false;
	return true;
}

/* Ask the source for the types of its columns; in the order of src->columns. */
static RemoteColumn *
remote_columns(ValidateEnds *ends)
{
	MigrateSource *src = ends->src;
	RemoteColumn *columns = palloc0(sizeof(RemoteColumn) * Max(src->ncolumns, 1));
	char	   *sql;
	PGresult   *res;

	sql = psprintf("SELECT a.attname, b.oid, b.typtype FROM pg_catalog.pg_attribute a"
				   " JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
				   " JOIN pg_catalog.pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END"
				   " WHERE a.attrelid = pg_catalog.to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped",
				   quote_literal_cstr(quote_qualified_identifier(src->remote_schema,
																 src->remote_table)));
	res = migrate_exec(ends->conn, sql);
	for (int row = 0; row < PQntuples(res); row++)
		for (int i = 0; i < src->ncolumns; i++)
			if (strcmp(src->columns[i].remote_name, PQgetvalue(res, row, 0)) == 0)
			{
				columns[i].base = atooid(PQgetvalue(res, row, 1));
				columns[i].typtype = PQgetvalue(res, row, 2)[0];
			}
	PQclear(res);
	return columns;
}

/*
 * Is the source's type the declared one (else values are converted on their
 * way, P7), and the target's?
 */
static bool
same_type(ValidateEnds *ends, RemoteColumn *remote, int column)
{
	int			s = source_column(ends, column);
	Oid			declared = getBaseType(ends->src->columns[s].type);
	ValidateColumn *col = &ends->shape->columns[column];

	if (getBaseType(col->type[VALIDATE_SOURCE]) != declared ||
		getBaseType(col->type[VALIDATE_TARGET]) != declared)
		return false;
	if (get_typtype(declared) == TYPTYPE_ENUM)
		return remote[s].typtype == TYPTYPE_ENUM;
	return declared < FirstNormalObjectId && remote[s].base == declared &&
		!text_is_local(declared);
}

static bool
same_encoding(ValidateEnds *ends)
{
	const char *encoding = PQparameterStatus(ends->conn->pg, "server_encoding");

	return encoding && strcmp(encoding, GetDatabaseEncodingName()) == 0;
}

/* The answer of a statement on either side, one value, as text. */
char *
validate_answer(ValidateEnds *ends, ValidateSide side, const char *sql)
{
	MemoryContext mcxt = CurrentMemoryContext;
	char	   *value;

	if (side == VALIDATE_SOURCE)
		return migrate_exec_value(ends->conn, sql);
	SPI_connect();
	if (SPI_execute(sql, true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "no answer to: %s", sql);
	value = migrate_spi_text(0, 0);
	value = value ? MemoryContextStrdup(mcxt, value) : NULL;
	SPI_finish();
	return value;
}

/* Do both sides give the same answer? */
static bool
both_agree(ValidateEnds *ends, const char *sql)
{
	int			level = validate_pin_settings();
	char	   *source = validate_answer(ends, VALIDATE_SOURCE, sql);
	char	   *target = validate_answer(ends, VALIDATE_TARGET, sql);

	validate_unpin_settings(level);
	return source && target && strcmp(source, target) == 0;
}

/* ----------------------------------------------------------------
 * the digests
 * ----------------------------------------------------------------
 */

/* A compared column's name in the SQL of a side. */
static const char *
column_name(ValidateEnds *ends, ValidateSide side, int column)
{
	if (side == VALIDATE_TARGET)
		return quote_identifier(ends->shape->columns[column].name);
	return quote_identifier(ends->src->columns[source_column(ends, column)].remote_name);
}

/* Of the columns as arguments. */
static char *
argument_list(ValidateEnds *ends, ValidateSide side, const int *columns, int n)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "",
						 column_name(ends, side, columns ? columns[i] : i));
	return buf.data;
}

/* What of a row is given to migrate._digest: all columns. */
static char *
row_arguments(ValidateEnds *ends, ValidateSide side)
{
	return argument_list(ends, side, NULL, ends->shape->ncolumns);
}

/* The number that a bucket is made from, where XXH3 is the hash. */
static char *
key_by_extension(ValidateEnds *ends, ValidateSide side)
{
	ValidateShape *shape = ends->shape;

	return psprintf("pg_catalog.int8and(migrate._hash(%s), %d)",
					shape->nkeys > 0 ? argument_list(ends, side, shape->keys, shape->nkeys) :
					row_arguments(ends, side), ends->plan->nbuckets - 1);
}

/* Has the source this extension, for the user that we are there? */
static bool
has_extension(ValidateEnds *ends)
{
	char	   *value =
	migrate_exec_value(ends->conn,
					   "SELECT count(*) FROM pg_catalog.pg_proc p"
					   " JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace"
					   " WHERE n.nspname = 'migrate' AND p.proname IN ('_digest', '_digest_row', '_digest_combine',"
					   "  '_digest_serialize', '_digest_deserialize', '_digest_final', '_hash')"
					   " AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
					   " AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')");

	return value && strcmp(value, "7") == 0;
}

/* The extension's way, if it is there and hashes as we do. */
static bool
plan_by_extension(ValidateEnds *ends)
{
	ValidatePlan *plan = ends->plan;

	if (!has_extension(ends) ||
		!both_agree(ends,
					"SELECT migrate._digest('-3', 1, 4, x, x, -1.50::pg_catalog.numeric, 'text'::pg_catalog.text,"
					" '{\"a\": [1.50, null, {\"b\": \"c\"}]}'::pg_catalog.jsonb, '1 mon'::pg_catalog.interval,"
					" '{1,NULL}'::pg_catalog.int4[], 1.5::pg_catalog.float8, true, NULL::pg_catalog.date)"
					" FROM (VALUES (1::pg_catalog.int8), (NULL), (-70)) v (x)"))
		return false;
	plan->digest = DIGEST_EXTENSION;
	for (int side = 0; side < 2; side++)
		plan->row[side] = row_arguments(ends, side);
	return true;
}

/* The built-in hash of a row, or of its key, in SQL; NULL if there is none. */
static char *
built_in_hash(ValidateEnds *ends, ValidateSide side, RemoteColumn *remote, bool of_key)
{
	ValidateShape *shape = ends->shape;
	char	   *all = NULL;
	int			n = of_key ? shape->nkeys : shape->ncolumns;

	for (int i = 0; i < n; i++)
	{
		int			column = of_key ? shape->keys[i] : i;
		RemoteColumn *r = &remote[source_column(ends, column)];
		char	   *hash = column_hash(column_name(ends, side, column), r->base, r->typtype,
									   i + (of_key ? KEY_SEED : 1), ends->conn->version);

		if (hash == NULL)
			return NULL;
		all = combine(all, hash);
	}
	return all;
}

/* The query that tries the hash of every type that is used. */
static char *
built_in_probe(ValidateEnds *ends, RemoteColumn *remote)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT pg_catalog.concat_ws(',', pg_catalog.hashint8extended(1, 2)");
	for (int i = 0; i < lengthof(hashes); i++)
		for (int c = 0; c < ends->shape->ncolumns; c++)
			if (remote[source_column(ends, c)].base == hashes[i].type &&
				ends->conn->version >= hashes[i].since)
			{
				char	   *sample = psprintf("%s::%s", quote_literal_cstr(hashes[i].sample),
											  format_type_extended(hashes[i].type, -1,
																   FORMAT_TYPE_FORCE_QUALIFY));

				appendStringInfoString(&buf, ", ");
				appendStringInfo(&buf, hashes[i].hash, sample, i);
				break;
			}
	appendStringInfoString(&buf, ", pg_catalog.hashtextextended('any other' COLLATE pg_catalog.\"C\", 3))");
	return buf.data;
}

/*
 * The source's own hashes.  Each column's has a seed, so that equal values in
 * two columns do not cancel; the hash of their XOR is what is summed, so that
 * values that rows have exchanged do not cancel either.
 */
static bool
plan_by_source(ValidateEnds *ends, RemoteColumn *remote)
{
	ValidatePlan *plan = ends->plan;
	char	   *row[2];

	for (int side = 0; side < 2; side++)
	{
		row[side] = built_in_hash(ends, side, remote, false);
		if (row[side] == NULL)
			return false;
		row[side] = psprintf("pg_catalog.hashint8extended(%s, %d)", row[side], ROW_SEED);
	}
	if (ends->conn->version < 130000 || !both_agree(ends, built_in_probe(ends, remote)))
		return false;
	plan->digest = DIGEST_SOURCE;
	for (int side = 0; side < 2; side++)
	{
		plan->row[side] = row[side];
		plan->key[side] = ends->shape->nkeys > 0 ?
			built_in_hash(ends, side, remote, true) : row[side];
		plan->key[side] = psprintf("pg_catalog.int8and(%s, %d)", plan->key[side],
								   plan->nbuckets - 1);
	}
	return true;
}

/*
 * Can the source compute the digests?  wanted: option "digest".
 */
static bool
plan_source_digest(ValidateEnds *ends, const char *wanted)
{
	RemoteColumn *remote;

	if (strcmp(wanted, "here") == 0 || ends->conn == NULL || ends->src->transport != 'c' ||
		!is_plain(ends) || !same_encoding(ends))
		return false;
	remote = remote_columns(ends);
	for (int i = 0; i < ends->shape->ncolumns; i++)
		if (!same_type(ends, remote, i))
			return false;
	if (strcmp(wanted, "source") != 0 && plan_by_extension(ends))
		return true;
	return plan_by_source(ends, remote);
}

/*
 * The rows travel.  The target's digests are computed by a query all the same,
 * unless a key is compared in another form than its type's.
 */
static void
plan_here(ValidateEnds *ends)
{
	ValidateShape *shape = ends->shape;
	ValidatePlan *plan = ends->plan;

	plan->digest = DIGEST_HERE;
	if (shape->ncolumns == 0 || shape->ncolumns > MAX_ARGUMENTS)
		return;
	for (int i = 0; i < shape->ncolumns; i++)
		if (shape->columns[i].as_text)
			return;
	plan->row[VALIDATE_TARGET] = row_arguments(ends, VALIDATE_TARGET);
	plan->key[VALIDATE_TARGET] = key_by_extension(ends, VALIDATE_TARGET);
}

/* ----------------------------------------------------------------
 * the buckets
 * ----------------------------------------------------------------
 */

/* About how many rows there are. */
static double
estimate_rows(ValidateEnds *ends)
{
	Oid			types[] = {INT4OID, OIDOID};
	Datum		values[] = {Int32GetDatum(ends->src->source_id), ObjectIdGetDatum(ends->map->target)};
	int64		rows;

	SPI_connect();
	migrate_spi_exec("SELECT greatest(s.estimated_rows, (SELECT sum(c.rows_read) FROM migrate.chunk c"
					 "   WHERE c.source_id = s.source_id AND c.plan_no = s.plan_no),"
					 " t.reltuples::int8, pg_relation_size(t.oid) / 500)"
					 " FROM migrate.source_table s, pg_class t WHERE s.source_id = $1 AND t.oid = $2",
					 2, types, values, NULL, SPI_OK_SELECT);
	rows = SPI_processed > 0 ? migrate_spi_int64(0, 0, 0) : 0;
	SPI_finish();
	return rows;
}

static int
bucket_count(double rows)
{
	int			n = 1;

	while (n < VALIDATE_MAX_BUCKETS && (double) n * BUCKET_ROWS < rows)
		n *= 2;
	return n;
}

static bool
is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

/* The source column that the one integer key is as it is; -1: it is no such. */
static int
integer_key(ValidateEnds *ends)
{
	MigrateMapping *map = ends->map;
	ValidateShape *shape = ends->shape;
	int			column;

	if (shape->nkeys != 1 || ends->conn == NULL || ends->src->transport != 'c' ||
		map->key_source == NULL || (column = map->key_source[0]) < 0)
		return -1;
	for (int side = 0; side < 2; side++)
		if (!is_integer(getBaseType(shape->columns[shape->keys[0]].type[side])))
			return -1;
	if (!is_integer(getBaseType(ends->src->columns[column].type)))
		return -1;
	return column;
}

/* As wide as it takes to reach from the least key that the source has to the greatest. */
static void
measure_ranges(ValidateEnds *ends)
{
	ValidatePlan *plan = ends->plan;
	StringInfoData sql;
	PGresult   *res;
	int64		lo = 0,
				hi = 0;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT min(%s), max(%s) FROM ", plan->range_column[0],
					 plan->range_column[0]);
	migrate_append_from(&sql, ends->src, NULL);
	res = migrate_exec(ends->conn, sql.data);
	if (!PQgetisnull(res, 0, 0))
	{
		lo = pg_strtoint64(PQgetvalue(res, 0, 0));
		hi = pg_strtoint64(PQgetvalue(res, 0, 1));
	}
	PQclear(res);

	plan->shift = 0;
	plan->nbuckets = Max(plan->nbuckets, 2);
	while ((uint64) (hi >> plan->shift) - (uint64) (lo >> plan->shift) >= (uint64) plan->nbuckets)
		plan->shift++;
	plan->lo = lo >> plan->shift;
	plan->nbuckets = (int) ((hi >> plan->shift) - plan->lo) + 1;
}

/* Ranges of the key; those that there were, if a validation goes on. */
static void
plan_ranges(ValidateEnds *ends, int column)
{
	ValidatePlan *plan = ends->plan;
	ValidateParts *parts = ends->parts;

	plan->ranges = true;
	plan->range_column[VALIDATE_SOURCE] =
		quote_identifier(ends->src->columns[column].remote_name);
	plan->range_column[VALIDATE_TARGET] =
		quote_identifier(ends->shape->columns[ends->shape->keys[0]].name);
	for (int side = 0; side < 2; side++)
		plan->key[side] = psprintf("%s::pg_catalog.int8", plan->range_column[side]);
	if (parts && parts->equal && parts->ranges)
	{
		plan->lo = parts->lo;
		plan->shift = parts->shift;
		plan->nbuckets = parts->nbuckets;
	}
	else
		measure_ranges(ends);
}

/*
 * Decide, once the source transaction is open.  The result is in ends->plan.
 */
void
validate_plan(ValidateEnds *ends, ValidateLevel level)
{
	ValidatePlan *plan = palloc0(sizeof(ValidatePlan));
	int			column = integer_key(ends);
	const char *digest = ends->job->digest;

	ends->plan = plan;
	plan->nbuckets = bucket_count(estimate_rows(ends));
	if (ends->parts && ends->parts->equal)
		plan->nbuckets = ends->parts->nbuckets;
	/* a query on the source cannot be paced */
	if (level == LEVEL_FULL || (validate_paced() && strcmp(digest, "auto") == 0))
		digest = "here";
	if (!plan_source_digest(ends, digest))
		plan_here(ends);
	if (plan->digest == DIGEST_EXTENSION)
		for (int side = 0; side < 2; side++)
			plan->key[side] = key_by_extension(ends, side);
	if (column >= 0)
		plan_ranges(ends, column);
	for (int side = 0; side < 2; side++)
		plan->buckets[side] = palloc0(sizeof(ValidateBucket) * (plan->nbuckets + 1));
	if (ends->parts)
		validate_parts_begin(ends);
	validate_progress_digest(plan->digest);
}

/* The rows that were counted in some buckets. */
int64
validate_bucket_rows(ValidatePlan *plan, ValidateSide side, const bool *selected)
{
	int64		rows = 0;

	for (int i = 0; i <= plan->nbuckets; i++)
		if (selected[i])
			rows += plan->buckets[side][i].rows;
	return rows;
}

/* Do both sides' rows of a bucket differ? */
bool
validate_bucket_differs(ValidatePlan *plan, int i)
{
	ValidateBucket *s = &plan->buckets[VALIDATE_SOURCE][i];
	ValidateBucket *t = &plan->buckets[VALIDATE_TARGET][i];

	return s->rows != t->rows || s->lo != t->lo || s->hi != t->hi;
}

/* The bucket of a row that was hashed here. */
int
validate_row_bucket(ValidateEnds *ends, ValidateRow *row)
{
	ValidatePlan *plan = ends->plan;
	ValidateShape *shape = ends->shape;
	ValidateColumn *col;
	Datum		value;
	bool		isnull;
	int64		key;

	if (!plan->ranges)
		return row->key.lo & (plan->nbuckets - 1);
	col = &shape->columns[shape->keys[0]];
	value = slot_getattr(row->slot, col->attno[row->side], &isnull);
	if (isnull)
		return plan->nbuckets;
	switch (col->value[row->side].length)
	{
		case 2:
			key = DatumGetInt16(value);
			break;
		case 4:
			key = DatumGetInt32(value);
			break;
		default:
			key = DatumGetInt64(value);
			break;
	}
	return validate_bucket_of(key, plan->lo, plan->shift, plan->nbuckets);
}

/* ----------------------------------------------------------------
 * the rows of some buckets
 * ----------------------------------------------------------------
 */

/* "column <op> the lower end of a bucket"; nothing where no key is so large */
static void
append_bound(StringInfo buf, ValidatePlan *plan, const char *column, const char *op, int bucket)
{
	int64		n = plan->lo + bucket;

	if ((n << plan->shift) >> plan->shift == n)
		appendStringInfo(buf, "%s OPERATOR(pg_catalog.%s) '" INT64_FORMAT "'::pg_catalog.int8",
						 column, op, n << plan->shift);
	else
		appendStringInfo(buf, op[0] == '<' ? "true" : "false");
}

static void
append_ranges(StringInfo buf, ValidatePlan *plan, const char *column, const bool *selected)
{
	const char *sep = "";

	for (int i = 0, j; i < plan->nbuckets; i = j)
	{
		j = i + 1;
		if (!selected[i])
			continue;
		while (j < plan->nbuckets && selected[j])
			j++;
		appendStringInfo(buf, "%s(", sep);
		sep = " OR ";
		if (i > 0)
			append_bound(buf, plan, column, ">=", i);
		if (i > 0 && j < plan->nbuckets)
			appendStringInfoString(buf, " AND ");
		if (j < plan->nbuckets)
			append_bound(buf, plan, column, "<", j);
		if (i == 0 && j == plan->nbuckets)
			appendStringInfo(buf, "%s IS NOT NULL", column);
		appendStringInfoChar(buf, ')');
	}
	if (selected[plan->nbuckets])
		appendStringInfo(buf, "%s%s IS NULL", sep, column);
}

/*
 * A condition that holds for the rows of the selected buckets only; NULL when
 * a side cannot tell (then validate_row_bucket can, for the rows that come).
 */
char *
validate_buckets_where(ValidateEnds *ends, ValidateSide side, const bool *selected)
{
	ValidatePlan *plan = ends->plan;
	StringInfoData buf;
	const char *sep = "";

	if (plan->key[side] == NULL)
		return NULL;
	initStringInfo(&buf);
	if (plan->ranges)
	{
		append_ranges(&buf, plan, plan->range_column[side], selected);
		return buf.data;
	}
	appendStringInfo(&buf, "%s OPERATOR(pg_catalog.=) ANY ('{", plan->key[side]);
	for (int i = 0; i < plan->nbuckets; i++)
		if (selected[i])
		{
			appendStringInfo(&buf, "%s%d", sep, i);
			sep = ",";
		}
	appendStringInfoString(&buf, "}'::pg_catalog.int8[])");
	return buf.data;
}

/* ----------------------------------------------------------------
 * digests by query
 * ----------------------------------------------------------------
 */

/*
 * Sums of 64-bit hashes by what every server has.  The planner would take the
 * distinct keys for an estimate of how many buckets there are, and prepare for
 * millions: it cannot look behind an OFFSET.  Not "OFFSET 0", an expression
 * until it is simplified, which is after parallel plans were ruled out.  Ranges
 * are numbered, and what lies beyond them is put into the outermost, by
 * bucket_of_group(): fewer steps a row.
 */
static char *
group_query(ValidatePlan *plan, ValidateSide side, const char *from)
{
	char	   *bucket = plan->key[side];

	if (plan->ranges)
		bucket = psprintf("pg_catalog.int8shr(%s, %d)", bucket, plan->shift);
	return psprintf("SELECT q.b, pg_catalog.count(*), pg_catalog.sum(q.h)"
					" FROM (SELECT %s AS b, %s AS h%s OFFSET '0'::pg_catalog.int8) q GROUP BY q.b",
					bucket, plan->row[side], from);
}

/* Of a side, whether its rows are (bucket, rows, sum). */
static bool
is_grouped(ValidatePlan *plan, ValidateSide side)
{
	/* where Citus is, its other servers can group, but do not know us */
	return plan->digest == DIGEST_SOURCE &&
		(side == VALIDATE_SOURCE || OidIsValid(get_extension_oid("citus", true)));
}

/* The query of a side; from: " FROM ..." and conditions. */
static char *
digest_query(ValidatePlan *plan, ValidateSide side, const char *from)
{
	if (is_grouped(plan, side))
		return group_query(plan, side, from);
	return psprintf("SELECT migrate.%s('" INT64_FORMAT "', %d, %d, %s, %s)%s",
					plan->digest == DIGEST_SOURCE ? "_digest_sum" : "_digest",
					plan->ranges ? plan->lo : 0, plan->shift, plan->nbuckets,
					plan->key[side], plan->row[side], from);
}

/* Of the sum of 64-bit hashes, as numeric gives it, 128 bits. */
static void
add_sum(ValidateBucket *b, const char *s)
{
	bool		negative = *s == '-';
	uint64		lo = 0,
				hi = 0;

	for (s += negative; *s >= '0' && *s <= '9'; s++)
	{
		/* times ten in two halves, plus the digit */
		uint64		low = (lo & 0xffffffff) * 10 + (*s - '0');
		uint64		high = (lo >> 32) * 10 + (low >> 32);

		hi = hi * 10 + (high >> 32);
		lo = (high << 32) | (low & 0xffffffff);
	}
	if (negative)
	{
		lo = ~lo + 1;
		hi = ~hi + (lo == 0);
	}
	b->lo += lo;
	b->hi += hi + (b->lo < lo);
}

/* The bucket of a row of group_query. */
static int
bucket_of_group(ValidatePlan *plan, const char *group)
{
	int64		n;

	if (group == NULL)
		return plan->nbuckets;
	n = pg_strtoint64(group);
	if (plan->ranges)
		return validate_bucket_of(n, plan->lo, 0, plan->nbuckets);
	if (n < 0 || n >= plan->nbuckets)
		elog(ERROR, "digest has bucket %lld of %d", (long long) n, plan->nbuckets);
	return (int) n;
}

static void
add_group(ValidatePlan *plan, ValidateSide side, const char *group, const char *rows,
		  const char *sum)
{
	ValidateBucket *b = &plan->buckets[side][bucket_of_group(plan, group)];

	b->rows += pg_strtoint64(rows);
	add_sum(b, sum);
}

/*
 * A hex bytea of migrate._digest, or _digest_sum, which sums the halves of
 * 64-bit hashes; as one sum they are what add_sum makes of the source's.
 */
static void
add_digest(ValidatePlan *plan, ValidateSide side, const char *hex)
{
	ValidateBucket *buckets = palloc0(sizeof(ValidateBucket) * (plan->nbuckets + 1));
	bytea	   *data;

	if (hex == NULL)
		return;					/* no row at all */
	data = DatumGetByteaPP(DirectFunctionCall1(byteain, CStringGetDatum(hex)));
	validate_read_buckets(VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data), buckets,
						  plan->nbuckets);
	pfree(data);
	for (int i = 0; i <= plan->nbuckets; i++)
	{
		ValidateBucket *b = &plan->buckets[side][i];
		uint64		lo = buckets[i].lo;
		int64		hi = (int64) buckets[i].hi;

		b->rows += buckets[i].rows;
		b->lo += lo;
		if (plan->digest == DIGEST_SOURCE)
		{
			/* of a bucket there is one sum a pass */
			b->lo += (uint64) hi << 32;
			b->hi += (uint64) (hi >> 32) + (b->lo < lo);
		}
		else
			b->hi += hi;
	}
	pfree(buckets);
}

/* Send the source's query; its parallel workers are those of the job. */
static char *
start_source_digest(ValidateEnds *ends, const char *where)
{
	StringInfoData from;
	char	   *sql;

	PQclear(migrate_exec(ends->conn,
						 psprintf("SET LOCAL max_parallel_workers_per_gather = %d; SET LOCAL work_mem = '32MB'",
								  ends->job->workers - 1)));
	initStringInfo(&from);
	appendStringInfoString(&from, " FROM ");
	migrate_append_from(&from, ends->src, NULL);
	if (where)
		appendStringInfo(&from, " WHERE %s", where);
	sql = digest_query(ends->plan, VALIDATE_SOURCE, from.data);
	migrate_remote_start(ends->conn, sql, true);
	return sql;
}

static void
finish_source_digest(ValidateEnds *ends, const char *sql)
{
	ValidatePlan *plan = ends->plan;
	PGresult   *res;

	while ((res = migrate_remote_next_result(ends->conn)) != NULL)
	{
		if (!migrate_result_ok(res))
			migrate_report_remote_error(res, ends->conn, sql);
		for (int row = 0; row < PQntuples(res); row++)
			if (is_grouped(plan, VALIDATE_SOURCE))
				add_group(plan, VALIDATE_SOURCE,
						  PQgetisnull(res, row, 0) ? NULL : PQgetvalue(res, row, 0),
						  PQgetvalue(res, row, 1), PQgetvalue(res, row, 2));
			else
				add_digest(plan, VALIDATE_SOURCE,
						   PQgetisnull(res, row, 0) ? NULL : PQgetvalue(res, row, 0));
		PQclear(res);
	}
	if (PQstatus(ends->conn->pg) != CONNECTION_OK)
		migrate_report_conn_error(ends->conn, sql);
}

/* The target's digests by a query, in parallel workers where that pays. */
void
validate_target_digest(ValidateEnds *ends, const char *where)
{
	ValidatePlan *plan = ends->plan;
	char	   *sql = digest_query(plan, VALIDATE_TARGET, validate_from_target_seen(ends, where));
	int			level;

	SPI_connect();
	level = validate_query_settings(ends);
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "not a query: %s", sql);
	for (uint64 row = 0; row < SPI_processed; row++)
		if (is_grouped(plan, VALIDATE_TARGET))
			add_group(plan, VALIDATE_TARGET, migrate_spi_text(row, 0),
					  migrate_spi_text(row, 1), migrate_spi_text(row, 2));
		else
			add_digest(plan, VALIDATE_TARGET, migrate_spi_text(row, 0));
	validate_unpin_settings(level);
	SPI_finish();
}

/* Both sides' at the same time. */
void
validate_both_digests(ValidateEnds *ends, char **where)
{
	char	   *sql = start_source_digest(ends, where[VALIDATE_SOURCE]);

	validate_target_digest(ends, where[VALIDATE_TARGET]);
	validate_progress_wait("source digest");
	finish_source_digest(ends, sql);
}
