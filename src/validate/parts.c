/*-------------------------------------------------------------------------
 *
 * parts.c
 *	  What a validation has found equal is kept, so that one that is killed
 *	  goes on where it was.
 *
 * The first pass over a mapping goes by parts: buckets that follow each other,
 * of about option validate_part_rows rows, where the key is one integer that
 * both sides have an index of and store about in its order; else the mapping is
 * one part.  After each, the buckets that were equal are noted:
 *
 *	  first pass over a part -> buckets that are equal, noted -> when the notes
 *	  are of enough rows, and there is more to read: migrate.validation_part
 *
 * The validation is one transaction of its session, which a crash takes back;
 * so the notes are written by a process of their own, "migrate keeper", that
 * commits them and leaves.  The next validation of the same mapping and level
 * begins with the buckets as they were numbered then (their ends and who made
 * the digests are in the notes), and reads only those that are not noted.
 *
 * Every part is equal at the cut that it was compared at, an earlier one than
 * that of the rest: the record tells the earliest position, and since when.
 *
 * Notes count while they are younger than option validate_resume, the mapping
 * and the plan of its source are what they were, nobody has finished a validation
 * since, and whoever wrote them does not run any more.  Buckets with rows that
 * cannot be mapped or read are never noted, nor what was not compared at one
 * moment.
 *
 * Runs in the session or worker that validates.  The keeper attaches to a
 * segment of memory that lives until it has ended.  It waits for no lock longer
 * than a second: without it there are no notes, nothing else.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "control/control.h"
#include "validate.h"

PGDLLEXPORT void migrate_keeper_main(Datum main_arg);

/* below it the rows of a range lie all over the table */
#define ORDERED "0.9"

/* in bgw_extra */
typedef struct KeeperArgs
{
	Oid			database;
	Oid			owner;
	dsm_handle	handle;
} KeeperArgs;

/* notes of this validation that are not written yet: elements of a JSON array */
static StringInfoData notes;
static int64 noted_rows = 0;

/* ----------------------------------------------------------------
 * what was found before
 * ----------------------------------------------------------------
 */

/* Bits of the text of an int4multirange: {[0,5),[7,9)}. */
static bool *
parse_buckets(const char *text, int nbuckets)
{
	bool	   *buckets = palloc0(sizeof(bool) * (nbuckets + 1));

	for (const char *p = strchr(text, '['); p; p = strchr(p, '['))
	{
		char	   *end;
		int			lo = strtol(p + 1, &end, 10);
		int			hi = strtol(end + 1, &end, 10);

		for (int i = Max(lo, 0); i < hi && i <= nbuckets; i++)
			buckets[i] = true;
		p = end;
	}
	return buckets;
}

static int
parse_digest(const char *name)
{
	int			i = 0;

	while (i < DIGEST_EXTENSION && strcmp(validate_digest_names[i], name) != 0)
		i++;
	return i;
}

/*
 * Forget what earlier validations noted, begin with nothing.
 */
void
validate_parts_reset(void)
{
	if (notes.data)
		pfree(notes.data);
	notes.data = NULL;
	noted_rows = 0;
}

/*
 * The notes on a mapping of a validation that was interrupted; those of the
 * newest, if there are several.  id: of the run that begins.
 */
ValidateParts *
validate_parts_find(ValidateEnds *ends, ValidateLevel level, int64 id)
{
	ValidateParts *parts = palloc0(sizeof(ValidateParts));
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, INT4OID, INT4OID, BOOLOID};
	Datum		values[] = {Int32GetDatum(ends->map->mapping_id),
		CStringGetTextDatum(validate_level_names[level]), CStringGetTextDatum(ends->map->version),
	Int32GetDatum(ends->src->plan_no), Int32GetDatum(MyProcPid), BoolGetDatum(ends->cut->exact)};

	parts->chain = id;
	parts->level = level;
	parts->part_rows = ends->job->validate_part_rows;
	SPI_connect();
	migrate_spi_exec("SELECT p.chain, max(p.digest), bool_or(p.ranges)::int, max(p.range_lo), max(p.range_shift),"
					 " max(p.buckets), range_agg(p.equal)::text, sum(p.source_rows)::int8, sum(p.target_rows)::int8,"
					 " min(p.source_lsn)::text, min(p.kept_at)::text"
					 " FROM migrate.validation_part p"
					 " WHERE p.mapping_id = $1 AND p.level = $2 AND p.mapping_version = $3 AND p.plan_no = $4"
					 " AND (p.source_lsn IS NOT NULL) = $6"
					 " AND p.kept_at > clock_timestamp()"
					 "  - make_interval(secs => migrate._option(p.job_id, 'validate_resume')::float8 / 1000)"
					 " AND p.kept_at > ALL (SELECT v.started_at + v.duration FROM migrate.validation_run v"
					 "  WHERE v.mapping_id = p.mapping_id AND v.level = p.level AND v.duration IS NOT NULL)"
					 " AND (p.pid = $5 OR p.pid NOT IN (SELECT l.pid FROM migrate._live_validations() l))"
					 " GROUP BY p.chain ORDER BY p.chain DESC LIMIT 1",
					 6, types, values, NULL, SPI_OK_SELECT);
	MemoryContextSwitchTo(mcxt);
	if (SPI_processed > 0)
	{
		char	   *lsn = migrate_spi_text(0, 9);

		parts->chain = migrate_spi_int64(0, 0, 0);
		parts->digest = parse_digest(migrate_spi_text(0, 1));
		parts->ranges = migrate_spi_int64(0, 2, 0) != 0;
		parts->lo = migrate_spi_int64(0, 3, 0);
		parts->shift = migrate_spi_int64(0, 4, 0);
		parts->nbuckets = migrate_spi_int64(0, 5, 0);
		parts->equal = parse_buckets(migrate_spi_text(0, 6), parts->nbuckets);
		parts->rows[VALIDATE_SOURCE] = migrate_spi_int64(0, 7, 0);
		parts->rows[VALIDATE_TARGET] = migrate_spi_int64(0, 8, 0);
		parts->lsn = lsn ? DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(lsn))) : InvalidXLogRecPtr;
		parts->since = migrate_spi_text(0, 10);
	}
	SPI_finish();
	return parts;
}

/*
 * The plan is made: of what was found before, what holds for it?
 */
void
validate_parts_begin(ValidateEnds *ends)
{
	ValidateParts *parts = ends->parts;
	ValidatePlan *plan = ends->plan;

	if (parts->equal && (parts->digest != plan->digest || parts->ranges != plan->ranges ||
						 parts->nbuckets != plan->nbuckets || parts->lo != plan->lo ||
						 parts->shift != plan->shift))
	{
		parts->equal = NULL;
		parts->rows[VALIDATE_SOURCE] = parts->rows[VALIDATE_TARGET] = 0;
	}
}

/* ----------------------------------------------------------------
 * what is a part
 * ----------------------------------------------------------------
 */

/* On a side: is there an index that begins with a column, in about its order? */
static bool
is_ordered(ValidateEnds *ends, ValidateSide side, const char *relation, const char *column)
{
	char	   *value;

	value = validate_answer(ends, side,
							psprintf("SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c"
									 " JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = %s"
									 " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
									 " JOIN pg_catalog.pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname"
									 "  AND s.attname = a.attname AND NOT s.inherited"
									 " WHERE c.oid = %s::pg_catalog.regclass AND c.relkind = 'r'"
									 " AND pg_catalog.abs(s.correlation) >= " ORDERED
									 " AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid"
									 "  AND i.indkey[0] = a.attnum AND i.indisvalid AND i.indpred IS NULL)",
									 quote_literal_cstr(column), quote_literal_cstr(relation)));
	return value && strcmp(value, "0") != 0;
}

/* How many buckets a part has. */
static int
part_buckets(ValidateEnds *ends)
{
	ValidatePlan *plan = ends->plan;
	int64		rows = Max(ends->estimate[VALIDATE_SOURCE], ends->estimate[VALIDATE_TARGET]);
	ValidateColumn *key;
	const char *source;

	if (!plan->ranges || rows <= ends->parts->part_rows)
		return plan->nbuckets + 1;
	key = &ends->shape->columns[ends->shape->keys[0]];
	source = ends->src->columns[ends->map->key_source[0]].remote_name;
	if (!is_ordered(ends, VALIDATE_SOURCE,
					quote_qualified_identifier(ends->src->remote_schema, ends->src->remote_table),
					source) ||
		!is_ordered(ends, VALIDATE_TARGET, psprintf("%u", ends->map->target), key->name))
		return plan->nbuckets + 1;
	return Max((double) plan->nbuckets * ends->parts->part_rows / rows, 1);
}

/*
 * The buckets of the next part, from *next on, in only[]; false when nothing is
 * left.  The last one has the null keys, too.
 */
bool
validate_parts_next(ValidateEnds *ends, int *next, bool *only)
{
	ValidateParts *parts = ends->parts;
	int			nbuckets = ends->plan->nbuckets;
	bool		any = false;
	int			end;

	if (parts->size == 0)
		parts->size = part_buckets(ends);
	memset(only, 0, sizeof(bool) * (nbuckets + 1));
	while (!any && *next <= nbuckets)
	{
		/* no part of the null keys alone */
		end = nbuckets - *next <= parts->size ? nbuckets + 1 : *next + parts->size;
		for (; *next < end; (*next)++)
			if (!parts->equal || !parts->equal[*next])
				any = only[*next] = true;
	}
	return any;
}

/* ----------------------------------------------------------------
 * notes
 * ----------------------------------------------------------------
 */

/* {[lo,hi),...} of the buckets of a part that are equal, and their rows. */
static char *
equal_buckets(ValidateEnds *ends, const bool *only, int64 *rows)
{
	ValidatePlan *plan = ends->plan;
	StringInfoData buf;
	int			begun = -1;

	initStringInfo(&buf);
	for (int i = 0; i <= plan->nbuckets + 1; i++)
	{
		bool		equal = i <= plan->nbuckets && only[i] && !validate_bucket_differs(plan, i);

		if (equal)
			for (int side = 0; side < 2; side++)
				rows[side] += plan->buckets[side][i].rows;
		if (equal && begun < 0)
			begun = i;
		else if (!equal && begun >= 0)
		{
			appendStringInfo(&buf, "%c[%d,%d)", buf.len > 0 ? ',' : '{', begun, i);
			begun = -1;
		}
	}
	if (buf.len == 0)
		return NULL;
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* A part was read: note what is equal. */
void
validate_parts_note(ValidateEnds *ends, const bool *only)
{
	ValidateParts *parts = ends->parts;
	ValidatePlan *plan = ends->plan;
	int64		rows[2] = {0, 0};
	char	   *equal;
	MemoryContext old;

	if (parts->part_rows == 0 || (ends->job->live && !ends->cut->exact))
		return;
	equal = equal_buckets(ends, only, rows);
	if (equal == NULL)
		return;
	old = MemoryContextSwitchTo(TopMemoryContext);
	if (notes.data == NULL)
		initStringInfo(&notes);
	appendStringInfo(&notes, "%s{\"chain\": " INT64_FORMAT ", \"mapping_id\": %d, \"level\": \"%s\","
					 " \"mapping_version\": \"%s\", \"plan_no\": %d, \"pid\": %d, \"digest\": \"%s\","
					 " \"ranges\": %s, \"range_lo\": " INT64_FORMAT ", \"range_shift\": %d, \"buckets\": %d,"
					 " \"equal\": \"%s\", \"source_rows\": " INT64_FORMAT ", \"target_rows\": " INT64_FORMAT ","
					 " \"kept_at\": " INT64_FORMAT,
					 notes.len > 0 ? ", " : "", parts->chain, ends->map->mapping_id,
					 validate_level_names[parts->level], ends->map->version, ends->src->plan_no,
					 MyProcPid, validate_digest_names[plan->digest], plan->ranges ? "true" : "false",
					 plan->lo, plan->shift, plan->nbuckets, equal, rows[VALIDATE_SOURCE],
					 rows[VALIDATE_TARGET], GetCurrentTimestamp());
	if (ends->cut->exact)
		appendStringInfo(&notes, ", \"source_lsn\": \"%X/%X\"", LSN_FORMAT_ARGS(ends->cut->lsn));
	appendStringInfoChar(&notes, '}');
	MemoryContextSwitchTo(old);
	noted_rows += Max(rows[VALIDATE_SOURCE], rows[VALIDATE_TARGET]);
}

/* Have a keeper write down the notes; whether it did is not known. */
static void
run_keeper(MigrateJob *job)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	KeeperArgs	args = {.database = MyDatabaseId,.owner = job->owner};
	dsm_segment *seg = dsm_create(notes.len + 3, DSM_CREATE_NULL_IF_MAXSEGMENTS);

	if (seg == NULL)
		return;
	snprintf(dsm_segment_address(seg), notes.len + 3, "[%s]", notes.data);
	args.handle = dsm_segment_handle(seg);
	StaticAssertStmt(sizeof(KeeperArgs) <= BGW_EXTRALEN, "arguments fit");
	migrate_worker_describe(&worker, "migrate keeper", job->name, "migrate_keeper_main");
	memcpy(worker.bgw_extra, &args, sizeof(args));
	worker.bgw_notify_pid = MyProcPid;
	if (RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		(void) WaitForBackgroundWorkerShutdown(handle);
		pfree(handle);
	}
	dsm_detach(seg);
}

/* More is to be read: write down what there is, if it is worth it. */
void
validate_parts_keep(ValidateEnds *ends)
{
	if (noted_rows == 0 || noted_rows < ends->parts->part_rows)
		return;
	run_keeper(ends->job);
	validate_parts_reset();
	migrate_fault("validate-kept");
}

/* ----------------------------------------------------------------
 * the keeper
 * ----------------------------------------------------------------
 */
void
migrate_keeper_main(Datum main_arg)
{
	KeeperArgs	args;
	dsm_segment *seg;
	Oid			type = TEXTOID;
	Datum		arg;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	migrate_worker_init(args.database, args.owner);
	/* whoever waits for us may hold the lock that we want */
	SetConfigOption("lock_timeout", "1s", PGC_USERSET, PGC_S_SESSION);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	seg = dsm_attach(args.handle);
	if (seg == NULL)
		proc_exit(0);			/* the validation has ended */
	arg = CStringGetTextDatum(dsm_segment_address(seg));
	migrate_spi_begin();
	migrate_spi_exec("INSERT INTO migrate.validation_part (job_id, chain, mapping_id, level, mapping_version,"
					 "  plan_no, pid, digest, ranges, range_lo, range_shift, buckets, equal, source_rows,"
					 "  target_rows, source_lsn, kept_at)"
					 " SELECT m.job_id, p.chain, p.mapping_id, p.level, p.mapping_version, p.plan_no, p.pid, p.digest,"
					 "  p.ranges, p.range_lo, p.range_shift, p.buckets, p.equal, p.source_rows, p.target_rows,"
					 "  p.source_lsn, timestamptz '2000-01-01 00:00:00+00' + p.kept_at * interval '1 microsecond'"
					 " FROM jsonb_to_recordset($1::jsonb) AS p (chain int8, mapping_id int, level text,"
					 "  mapping_version text, plan_no int, pid int, digest text, ranges boolean, range_lo int8,"
					 "  range_shift int, buckets int, equal int4multirange, source_rows int8, target_rows int8,"
					 "  source_lsn pg_lsn, kept_at int8)"
					 " JOIN migrate.mapping m USING (mapping_id)",
					 1, &type, &arg, NULL, SPI_OK_INSERT);
	migrate_spi_end();
	CommitTransactionCommand();
	proc_exit(0);
}
