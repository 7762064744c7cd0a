/*-------------------------------------------------------------------------
 *
 * budget.c
 *	  How many dead letters are too many: max_dead_letters and max_dead_ratio
 *	  pause the job.
 *
 * The job worker counts what is committed, at every turn.  A loader looks at
 * the chunk at hand, so that a mapping that fails for every row does not fill
 * the disk with letters first: it gives the chunk up and says why in
 * MigrateShared.given_up, where the job worker finds it.  Others who give up
 * their work for a reason that the DBA has to look at do the same.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "control/control.h"

/* the ratio means nothing before so many rows were read */
#define RATIO_MIN_ROWS 10000

void
migrate_give_up(const char *kind, const char *reason)
{
	char		why[sizeof(migrate_shared->given_up)];

	if (migrate_shared == NULL)
		return;
	migrate_clip(why, sizeof(why), reason);
	SpinLockAcquire(&migrate_shared->mutex);
	strlcpy(migrate_shared->given_up_kind, kind, sizeof(migrate_shared->given_up_kind));
	memcpy(migrate_shared->given_up, why, sizeof(why));
	SpinLockRelease(&migrate_shared->mutex);
}

static int64
one_value(const char *sql, int64 arg, Oid type)
{
	Datum		value = type == INT4OID ? Int32GetDatum((int32) arg) : Int64GetDatum(arg);

	migrate_spi_exec(sql, 1, &type, &value, NULL, SPI_OK_SELECT);
	return migrate_spi_int64(0, 0, 0);
}

/*
 * Why the job must be paused, and *kind, in the current memory context, or
 * NULL.  Job worker, in a transaction.
 */
char *
migrate_budget_exceeded(MigrateJob *job, char **kind)
{
	static int	seen_job = 0;
	static int64 seen_dead = -1;
	MemoryContext mcxt = CurrentMemoryContext;
	char		given_up[sizeof(migrate_shared->given_up)];
	char		given_up_kind[sizeof(migrate_shared->given_up_kind)];
	char	   *reason = NULL;
	int64		dead;
	int64		rows = 0;

	SpinLockAcquire(&migrate_shared->mutex);
	memcpy(given_up, migrate_shared->given_up, sizeof(given_up));
	memcpy(given_up_kind, migrate_shared->given_up_kind, sizeof(given_up_kind));
	migrate_shared->given_up[0] = '\0';
	SpinLockRelease(&migrate_shared->mutex);
	*kind = given_up[0] ? pstrdup(given_up_kind) : "budget";
	if (given_up[0])
		return pstrdup(given_up);

	migrate_spi_begin();
	dead = one_value("SELECT count(*) FROM migrate.dead_letter"
					 " WHERE job_id = $1 AND state = 'open'", job->job_id, INT4OID);

	/* the sum over all chunks only when there is something new to judge */
	if (dead > 0 && job->max_dead_ratio < 1 &&
		(dead != seen_dead || seen_job != job->job_id))
		rows = one_value("SELECT coalesce(sum(rows_read), 0)::int8 FROM migrate.chunk_mapping"
						 " WHERE job_id = $1", job->job_id, INT4OID);
	migrate_spi_end();
	seen_job = job->job_id;
	seen_dead = dead;

	MemoryContextSwitchTo(mcxt);
	if (job->max_dead_letters >= 0 && dead > job->max_dead_letters)
		reason = psprintf("max_dead_letters: " INT64_FORMAT " open dead letters > %d",
						  dead, job->max_dead_letters);
	else if (rows >= RATIO_MIN_ROWS && dead > rows * job->max_dead_ratio)
	{
		seen_dead = -1;			/* so that a resume finds it again */
		reason = psprintf("max_dead_ratio: " INT64_FORMAT " open dead letters of "
						  INT64_FORMAT " rows are %.4f > %g",
						  dead, rows, (double) dead / rows, job->max_dead_ratio);
	}
	return reason;
}

/*
 * Loader, in the transaction of a chunk, between batches: more dead letters
 * in this chunk alone than the job may have?
 */
void
migrate_budget_check_chunk(void)
{
	MigrateWorkerSlot *s = &migrate_shared->slots[migrate_my_slot];
	int64		limit = migrate_shared->chunk_dead_limit;
	Oid			type = INT8OID;
	Datum		arg;
	char	   *why;
	char	   *most = NULL;

	if (limit < 0 || s->chunk_dead <= limit || s->chunk_id == 0)
		return;
	arg = Int64GetDatum(s->chunk_id);
	migrate_spi_begin();
	migrate_spi_exec("SELECT format('%s of them %s: %s', count(*), sqlstate, left(message, 150))"
					 " FROM migrate.dead_letter WHERE chunk_id = $1"
					 " GROUP BY sqlstate, message ORDER BY count(*) DESC LIMIT 1",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
		most = migrate_spi_text(0, 0);
	why = psprintf("max_dead_letters: " INT64_FORMAT " dead letters in one chunk > " INT64_FORMAT
				   ", the chunk was given up%s%s",
				   s->chunk_dead, limit, most ? "; " : "", most ? most : "");
	migrate_give_up("budget", why);
	migrate_abandoned = true;
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("chunk given up because it has too many dead letters"),
			 errdetail_internal("%s", why)));
}
