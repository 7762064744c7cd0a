/*-------------------------------------------------------------------------
 *
 * job.c
 *	  A job and its options, as the catalog has them now.
 *
 * Runs in every process; reads migrate.job and migrate._options_of(), keeps
 * nothing.  Workers load the job again for every chunk, which is how a changed
 * option takes effect while they run.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "control/control.h"

typedef enum
{
	OPT_TEXT,
	OPT_INT,
	OPT_INT64,
	OPT_DOUBLE,
	OPT_BOOL,
	OPT_SECONDS					/* canonical milliseconds, kept as seconds */
} OptionKind;

/*
 * Where each option goes.  Values are canonical (migrate._option): durations
 * are milliseconds, sizes bytes.  Options that C does not read are not here.
 */
static const struct
{
	const char *name;
	OptionKind	kind;
	size_t		offset;
}			options[] =

{
	{"transport", OPT_TEXT, offsetof(MigrateJob, transport)},
	{"chunking", OPT_TEXT, offsetof(MigrateJob, chunking)},
	{"content", OPT_TEXT, offsetof(MigrateJob, content)},
	{"workers", OPT_INT, offsetof(MigrateJob, workers)},
	{"chunk_time", OPT_INT, offsetof(MigrateJob, chunk_time_ms)},
	{"chunk_rows", OPT_INT, offsetof(MigrateJob, chunk_rows)},
	{"chunk_blocks", OPT_INT, offsetof(MigrateJob, chunk_blocks)},
	{"batch_rows", OPT_INT, offsetof(MigrateJob, batch_rows)},
	{"batch_bytes", OPT_INT64, offsetof(MigrateJob, batch_bytes)},
	{"fetch_size", OPT_INT, offsetof(MigrateJob, fetch_size)},
	{"verify_writes", OPT_BOOL, offsetof(MigrateJob, verify_writes)},
	{"max_dead_letters", OPT_INT, offsetof(MigrateJob, max_dead_letters)},
	{"max_dead_ratio", OPT_DOUBLE, offsetof(MigrateJob, max_dead_ratio)},
	{"rows_per_second", OPT_INT64, offsetof(MigrateJob, rows_per_second)},
	{"bytes_per_second", OPT_INT64, offsetof(MigrateJob, bytes_per_second)},
	{"throttle_query", OPT_TEXT, offsetof(MigrateJob, throttle_query)},
	{"throttle_threshold", OPT_DOUBLE, offsetof(MigrateJob, throttle_threshold)},
	{"throttle_side", OPT_TEXT, offsetof(MigrateJob, throttle_side)},
	{"throttle_interval", OPT_INT, offsetof(MigrateJob, throttle_interval_ms)},
	{"retry_time", OPT_INT, offsetof(MigrateJob, retry_time_ms)},
	{"retry_max_delay", OPT_INT, offsetof(MigrateJob, retry_max_delay_ms)},
	{"connect_timeout", OPT_SECONDS, offsetof(MigrateJob, connect_timeout_s)},
	{"lock_timeout", OPT_INT, offsetof(MigrateJob, lock_timeout_ms)},
	{"validate_every", OPT_INT64, offsetof(MigrateJob, validate_every_ms)},
	{"validate_part_rows", OPT_INT64, offsetof(MigrateJob, validate_part_rows)},
	{"digest", OPT_TEXT, offsetof(MigrateJob, digest)},
	{"spool_limit", OPT_INT64, offsetof(MigrateJob, spool_limit)},
	{"spool_retention", OPT_INT64, offsetof(MigrateJob, spool_retention_ms)},
	{"spool_retention_size", OPT_INT64, offsetof(MigrateJob, spool_retention_size)},
	{"max_source_wal", OPT_INT64, offsetof(MigrateJob, max_source_wal)},
	{"apply_rows", OPT_INT64, offsetof(MigrateJob, apply_rows)},
	{"apply_bytes", OPT_INT64, offsetof(MigrateJob, apply_bytes)},
	{"apply_latency", OPT_INT, offsetof(MigrateJob, apply_latency_ms)},
	{"lag_alert", OPT_INT64, offsetof(MigrateJob, lag_alert_ms)},
};

/* A number that does not fit an int is as good as the largest. */
static int
clamp_int(int64 v)
{
	return v > INT_MAX ? INT_MAX : v < INT_MIN ? INT_MIN : (int) v;
}

static void
set_option(MigrateJob *job, int i, const char *value)
{
	char	   *field = (char *) job + options[i].offset;

	switch (options[i].kind)
	{
		case OPT_TEXT:
			*(char **) field = pstrdup(value);
			break;
		case OPT_INT:
			*(int *) field = clamp_int(pg_strtoint64(value));
			break;
		case OPT_INT64:
			*(int64 *) field = pg_strtoint64(value);
			break;
		case OPT_DOUBLE:
			*(double *) field = DatumGetFloat8(DirectFunctionCall1(float8in,
																   CStringGetDatum(value)));
			break;
		case OPT_BOOL:
			*(bool *) field = strcmp(value, "true") == 0;
			break;
		case OPT_SECONDS:
			*(int *) field = clamp_int((pg_strtoint64(value) + 999) / 1000);
			break;
	}
}

/*
 * Read all options in effect; one that is not there means that library and
 * extension are of different versions.
 */
static void
load_options(MigrateJob *job, MemoryContext mcxt)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(job->job_id);
	bool		seen[lengthof(options)] = {false};
	MemoryContext old;

	migrate_spi_exec_kept("SELECT name, value FROM migrate._options_of($1)",
						  1, &type, &arg, NULL, SPI_OK_SELECT);
	old = MemoryContextSwitchTo(mcxt);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		char	   *name = migrate_spi_text(row, 0);
		char	   *value = migrate_spi_text(row, 1);

		for (int i = 0; i < lengthof(options); i++)
			if (name && value && strcmp(name, options[i].name) == 0)
			{
				set_option(job, i, value);
				seen[i] = true;
			}
	}
	MemoryContextSwitchTo(old);
	for (int i = 0; i < lengthof(options); i++)
		if (!seen[i])
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("option \"%s\" has no value", options[i].name),
					 errhint("Library and extension may be of different versions; run ALTER EXTENSION migrate UPDATE.")));
}

/* By id, or by name where name is not NULL; the result is in mcxt. */
static MigrateJob *
load_job(int job_id, const char *name, MemoryContext mcxt)
{
	Oid			type = name ? TEXTOID : INT4OID;
	Datum		arg = name ? CStringGetTextDatum(name) : Int32GetDatum(job_id);
	MigrateJob *job = NULL;

	migrate_spi_begin();
	migrate_spi_exec_kept(name ?
						  "SELECT job_id, job, owner, server, state, wanted, (capture = 'logical')::int FROM migrate.job WHERE job = $1" :
						  "SELECT job_id, job, owner, server, state, wanted, (capture = 'logical')::int FROM migrate.job WHERE job_id = $1",
						  1, &type, &arg, NULL, SPI_OK_SELECT);
	if (SPI_processed == 1)
	{
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		job = palloc0(sizeof(MigrateJob));
		job->job_id = (int) migrate_spi_int64(0, 0, 0);
		job->name = migrate_spi_text(0, 1);
		job->owner = (Oid) migrate_spi_int64(0, 2, 0);
		job->server = (Oid) migrate_spi_int64(0, 3, 0);
		job->state = migrate_spi_text(0, 4);
		job->wanted = migrate_spi_text(0, 5);
		job->live = migrate_spi_int64(0, 6, 0) != 0;
		MemoryContextSwitchTo(old);
		load_options(job, mcxt);
	}
	migrate_spi_end();
	return job;
}

MigrateJob *
migrate_job_load(int job_id)
{
	return load_job(job_id, NULL, CurrentMemoryContext);
}

MigrateJob *
migrate_job_load_by_name(const char *name)
{
	MigrateJob *job = load_job(0, name, CurrentMemoryContext);

	if (job == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" does not exist", name),
				 errhint("Create it with migrate_create_job, or see the table migrate.job for the jobs that you may see.")));
	return job;
}

/* The handle of the segment of a job's worker, as published; 0: none. */
int64
migrate_job_shmem(int job_id)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(job_id);
	int64		handle;

	migrate_spi_begin();
	migrate_spi_exec("SELECT shm_handle FROM migrate.job WHERE job_id = $1",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	handle = SPI_processed > 0 ? migrate_spi_int64(0, 0, 0) : 0;
	migrate_spi_end();
	return handle;
}

/*
 * An error where rows of the source must not be written here any more; what:
 * "repair", as in "cannot repair job ..".  Whoever holds the writer lock then
 * keeps the job from being cut over until his transaction ends: a cutover
 * takes that lock before the target opens.
 */
void
migrate_check_source_leads(MigrateJob *job, const char *what)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job->job_id), CStringGetTextDatum(what)};

	migrate_spi_begin();
	migrate_spi_exec("SELECT migrate._check_source_leads($1, $2)",
					 2, types, values, NULL, SPI_OK_SELECT);
	migrate_spi_end();
}
