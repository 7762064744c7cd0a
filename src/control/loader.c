/*-------------------------------------------------------------------------
 *
 * loader.c
 *	  A loader: claims chunks and copies them, one after the other, until it
 *	  is told to stop; where no chunk is left, steps after the copy.
 *
 * Process: dynamic background worker "migrate loader", as the job's owner.
 * The job worker runs the same steps itself when it can start no loader.
 *
 *	  connect -> claim -> load -> adapt -> claim ...
 *			  -> claim a step -> run it -> claim ...
 *
 * Errors never end the process (FATAL aside): the transaction is rolled back,
 * which takes the chunk's rows along, the chunk goes back to 'todo', the error
 * is noted where the job worker sees it, and after a pause the loader tries
 * again with a new connection.  The job worker decides when it is enough.  The
 * errors of a step are not errors of its loader, see load/step_run.c.
 *
 * After a crash the chunk or step is 'running' with our pid; the job worker, or
 * the next one, makes it 'todo' again.
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
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "control/control.h"

PGDLLEXPORT void migrate_loader_main(Datum main_arg);

/* how long a job that was read is as good as new for steps, and for chunks, ms */
#define JOB_LIFETIME 200
#define JOB_LIFETIME_COPYING 50

/* a table that kept a loader for so long is worth a look when it is left, ms */
#define LONG_TABLE 300

MigrateLoader *
migrate_loader_create(int job_id)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	MigrateLoader *loader = palloc0(sizeof(MigrateLoader));

	loader->job_id = job_id;
	loader->conn_cxt = AllocSetContextCreate(TopMemoryContext, "migrate connection",
											 ALLOCSET_DEFAULT_SIZES);
	loader->cxt = AllocSetContextCreate(TopMemoryContext, "migrate loader step",
										ALLOCSET_DEFAULT_SIZES);
	loader->job_cxt = AllocSetContextCreate(TopMemoryContext, "migrate job of a loader",
											ALLOCSET_DEFAULT_SIZES);
	loader->retry_max_delay_ms = 30000;
	MemoryContextSwitchTo(old);
	return loader;
}

void
migrate_loader_disconnect(MigrateLoader *loader)
{
	MigrateConn *conn = loader->conn;

	loader->conn = NULL;
	if (conn)
		migrate_disconnect(conn);
	MemoryContextReset(loader->conn_cxt);
}

/* What is marked as ours is todo again. */
static void
release(MigrateLoader *loader)
{
	migrate_chunks_release(loader->job_id, MyProcPid);
	migrate_steps_release(loader->job_id, MyProcPid);
}

/* The chunk's row, if it is still ours, gets the error; then it is todo. */
static void
give_back(MigrateLoader *loader, const char *error)
{
	if (error)
	{
		Oid			types[3] = {INT4OID, INT4OID, TEXTOID};
		Datum		values[3];

		values[0] = Int32GetDatum(loader->job_id);
		values[1] = Int32GetDatum(MyProcPid);
		values[2] = CStringGetTextDatum(error);
		migrate_spi_begin();
		migrate_spi_exec("UPDATE migrate.chunk SET last_error = $3"
						 " WHERE job_id = $1 AND worker_pid = $2 AND state = 'running'",
						 3, types, values, NULL, SPI_OK_UPDATE);
		migrate_spi_end();
	}
	release(loader);
}

/* P1: the table under the chunk is not the one that was planned. */
static void
mark_replan(MigrateLoader *loader, MigrateChunk *chunk)
{
	Oid			types[2] = {INT4OID, INT4OID};
	Datum		values[2];

	StartTransactionCommand();
	values[0] = Int32GetDatum(chunk->source_id);
	values[1] = Int32GetDatum(chunk->plan_no);
	migrate_spi_begin();
	migrate_spi_exec("UPDATE migrate.source_table SET state = 'replan'"
					 " WHERE source_id = $1 AND plan_no = $2 AND state = 'copying'",
					 2, types, values, NULL, SPI_OK_UPDATE);
	migrate_spi_end();
	migrate_chunks_release(loader->job_id, MyProcPid);
	CommitTransactionCommand();
	migrate_wake_job_worker();
}

/* What pg_stat_activity shows. */
static void
report_chunk(MigrateJob *job, MigrateChunk *chunk)
{
	char		activity[256];

	snprintf(activity, sizeof(activity), "copying chunk " INT64_FORMAT " of %s, job %s",
			 chunk->chunk_id, chunk->range.relation ? chunk->range.relation : "?", job->name);
	pgstat_report_activity(STATE_RUNNING, activity);
}

static void
report_post_step(MigrateJob *job, MigratePostStep *step)
{
	char		activity[512];

	snprintf(activity, sizeof(activity), "step %d of job %s: %s %s%s%s",
			 step->step_id, job->name, step->kind, step->object,
			 step->relation ? " of " : "", step->relation ? step->relation : "");
	pgstat_report_activity(STATE_RUNNING, activity);
}

/* May there be chunks? */
static bool
copies(MigrateJob *job)
{
	return strcmp(job->state, "indexing") != 0 && strcmp(job->state, "catching_up") != 0 &&
		strcmp(job->state, "streaming") != 0;
}

/*
 * The steps of thousands of small tables, and very small chunks, take less time
 * than to read the options: those of a moment ago will do.  Whether to go on is
 * not among them, shared memory says that.
 */
static MigrateJob *
known_job(MigrateLoader *loader)
{
	MigrateJob *job = loader->job;

	if (job == NULL || loader->release_pending ||
		(copies(job) && loader->conn == NULL) ||
		TimestampDifferenceExceeds(loader->job_at, GetCurrentTimestamp(),
								   copies(job) ? JOB_LIFETIME_COPYING : JOB_LIFETIME))
		return NULL;
	return job;
}

/* Read the job, and keep it for that moment. */
static MigrateJob *
load_job(MigrateLoader *loader)
{
	loader->job = NULL;
	MemoryContextReset(loader->job_cxt);
	MemoryContextSwitchTo(loader->job_cxt);
	loader->job = migrate_job_load(loader->job_id);
	loader->job_at = GetCurrentTimestamp();
	MemoryContextSwitchTo(loader->cxt);
	return loader->job;
}

/* The job as it is now, and a connection if it needs one. */
static MigrateJob *
prepare_step(MigrateLoader *loader)
{
	MigrateJob *job = known_job(loader);

	if (job)
		return job;
	StartTransactionCommand();
	if (loader->release_pending)
		release(loader);
	job = load_job(loader);
	if (job && !copies(job))
		migrate_loader_disconnect(loader);
	else if (job && loader->conn == NULL && migrate_server_is_postgres(job->server))
	{
		migrate_worker_phase("connect");
		MemoryContextSwitchTo(loader->conn_cxt);
		loader->conn = migrate_connect(job->server, job->owner, job->name, "loader",
									   job->connect_timeout_s);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(loader->cxt);
	loader->release_pending = false;
	return job;
}

/* A step after the copy.  Others may wait for its end. */
static MigrateStep
post_step(MigrateLoader *loader, MigrateJob *job)
{
	MigratePostStep *step = migrate_step_claim(job, loader->cxt);

	MemoryContextSwitchTo(loader->cxt);
	if (step == NULL)
		return MIGRATE_STEP_NOTHING;
	migrate_slot_step(step);
	report_post_step(job, step);
	migrate_fault("step-claimed");
	migrate_worker_phase("index");
	(void) migrate_step_run(job, step);
	migrate_trouble_clear(0);
	migrate_slot_step_over(true);
	migrate_wake_loaders();
	return MIGRATE_STEP_BUILT;
}

/*
 * Going on to another table: the last one may be copied, which the job worker
 * is to find out.  Small tables are left to its next look.
 */
static void
note_table(MigrateLoader *loader, int source_id)
{
	TimestampTz now = GetCurrentTimestamp();

	if (source_id == loader->source_id)
		return;
	if (loader->source_id != 0 &&
		TimestampDifferenceExceeds(loader->source_since, now, LONG_TABLE))
		migrate_wake_job_worker();
	loader->source_id = source_id;
	loader->source_since = now;
}

static MigrateStep
chunk_step(MigrateLoader *loader, MigrateJob *job)
{
	MigrateChunk *chunk = migrate_chunk_claim(job, loader->conn, loader->cxt);
	TimestampTz start;

	MemoryContextSwitchTo(loader->cxt);
	if (chunk == NULL)
		return MIGRATE_STEP_NOTHING;
	note_table(loader, chunk->source_id);

	loader->chunk_id = chunk->chunk_id;
	migrate_slot_chunk(chunk);
	report_chunk(job, chunk);
	migrate_fault("loader-claimed");
	start = GetCurrentTimestamp();
	migrate_worker_phase("read");
	if (!migrate_chunk_load(job, loader->conn, chunk))
	{
		mark_replan(loader, chunk);
		migrate_slot_chunk_done(false);
		return MIGRATE_STEP_LOADED;
	}
	MemoryContextSwitchTo(loader->cxt);
	migrate_trouble_clear(chunk->chunk_id);
	migrate_slot_chunk_done(true);

	StartTransactionCommand();
	migrate_chunk_adapt(job, chunk, (GetCurrentTimestamp() - start) / 1e6);
	CommitTransactionCommand();
	return MIGRATE_STEP_LOADED;
}

/*
 * Shall a step go before the next chunk?  The keys of a table that is just
 * copied find it in memory, and when the last table is copied there is less
 * left for all.  But one loader goes on copying.
 */
static bool
steps_first(MigrateLoader *loader, MigrateJob *job)
{
	int			with_step;

	if (migrate_shared->tables_copied == loader->tables_seen)
		return false;
	(void) migrate_loaders_busy(&with_step);
	return with_step < job->workers - 1;
}

static MigrateStep
copy_step(MigrateLoader *loader, MigrateJob *job)
{
	MigrateStep step = MIGRATE_STEP_NOTHING;

	if (steps_first(loader, job))
	{
		int			seen = migrate_shared->tables_copied;

		step = post_step(loader, job);
		if (step == MIGRATE_STEP_NOTHING)
			loader->tables_seen = seen;
	}
	return step == MIGRATE_STEP_NOTHING ? chunk_step(loader, job) : step;
}

static MigrateStep
guarded_step(MigrateLoader *loader)
{
	MigrateJob *job = prepare_step(loader);
	MigrateStep step = MIGRATE_STEP_NOTHING;

	if (job == NULL)
		return MIGRATE_STEP_GONE;
	loader->retry_max_delay_ms = job->retry_max_delay_ms;
	migrate_worker_phase("claim");
	if (copies(job))
	{
		step = copy_step(loader, job);
		/* the next state may be there already, and its wake-up over */
		if (step == MIGRATE_STEP_NOTHING)
			loader->job = NULL;
	}
	return step == MIGRATE_STEP_NOTHING ? post_step(loader, job) : step;
}

/*
 * Write down what happened, in a transaction of its own.  That may fail too
 * (the disk is still full): then release_pending stays and the next step
 * begins with it.
 */
static void
note_error(MigrateLoader *loader, ErrorData *edata, const char *sqlstate, bool abandoned)
{
	MemoryContext mcxt = CurrentMemoryContext;
	bool		news = strcmp(loader->last_sqlstate, sqlstate) != 0 || loader->errors <= 1;

	PG_TRY();
	{
		StartTransactionCommand();
		give_back(loader, abandoned ? NULL : psprintf("%s: %s", sqlstate, edata->message));
		if (!abandoned && news)
			migrate_event(loader->job_id, "warning", "loader_error", "%s: %s%s%s",
						  sqlstate, edata->message,
						  edata->detail ? "; " : "", edata->detail ? edata->detail : "");
		CommitTransactionCommand();
		loader->release_pending = false;
	}
	PG_CATCH();
	{
		(void) migrate_recover(mcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
}

/*
 * One chunk or step.  Outside a transaction; never throws (FATAL aside).
 */
MigrateStep
migrate_loader_step(MigrateLoader *loader)
{
	MigrateStep step;
	ErrorData  *volatile edata = NULL;
	char		sqlstate[6];

	MemoryContextReset(loader->cxt);
	MemoryContextSwitchTo(loader->cxt);
	migrate_abandoned = false;
	loader->chunk_id = 0;
	PG_TRY();
	{
		step = guarded_step(loader);
	}
	PG_CATCH();
	{
		edata = migrate_recover(loader->cxt);
		step = MIGRATE_STEP_ERROR;
	}
	PG_END_TRY();

	pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(false);
	migrate_slot_memory();
	if (edata == NULL)
	{
		if (step == MIGRATE_STEP_LOADED || step == MIGRATE_STEP_BUILT)
			loader->errors = 0;
		return step;
	}

	MemoryContextSwitchTo(loader->cxt);
	strlcpy(sqlstate, unpack_sql_state(edata->sqlerrcode), sizeof(sqlstate));
	loader->release_pending = true;
	migrate_loader_disconnect(loader);
	migrate_slot_chunk_done(false);
	migrate_slot_step_over(false);
	if (migrate_abandoned)
	{
		note_error(loader, edata, sqlstate, true);
		migrate_wake_job_worker();
		return MIGRATE_STEP_ABANDONED;
	}

	/* 40001: another worker has our chunk now, or the usual; just go on */
	if (edata->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE && loader->errors == 0)
	{
		note_error(loader, edata, sqlstate, true);
		loader->errors++;
		return MIGRATE_STEP_LOADED;
	}
	loader->errors++;
	migrate_trouble_note(loader->chunk_id, sqlstate, edata->message);
	migrate_worker_phase("error");
	note_error(loader, edata, sqlstate, false);
	strlcpy(loader->last_sqlstate, sqlstate, sizeof(loader->last_sqlstate));
	migrate_wake_job_worker();
	return MIGRATE_STEP_ERROR;
}

static bool
must_leave(void)
{
	return migrate_shared->stop || migrate_shared->job_worker_pid == 0 ||
		migrate_my_slot > migrate_shared->wanted_loaders;
}

/* Sleep until woken, or so long; wakes that do not concern us are slept off. */
static void
nap(long ms, bool until_woken)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);

	while (ms > 0 && !must_leave())
	{
		int			rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								   ms, PG_WAIT_EXTENSION);

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		migrate_worker_reload();
		if ((rc & WL_LATCH_SET) && until_woken)
			break;
		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
	}
}

void
migrate_loader_main(Datum main_arg)
{
	MigrateLoaderArgs args;
	MigrateLoader *loader;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	migrate_worker_init(args.database, args.owner);
	if (!migrate_shmem_attach(args.handle, args.job_id, args.slot))
		proc_exit(0);
	loader = migrate_loader_create(args.job_id);

	while (!must_leave())
	{
		CHECK_FOR_INTERRUPTS();
		migrate_worker_reload();
		if (migrate_shared->hold)
		{
			migrate_worker_phase("throttle");
			nap(MIGRATE_NAP, true);
			continue;
		}
		switch (migrate_loader_step(loader))
		{
			case MIGRATE_STEP_LOADED:
			case MIGRATE_STEP_BUILT:
				break;
			case MIGRATE_STEP_NOTHING:
				migrate_worker_phase("idle");
				migrate_wake_job_worker();
				nap(MIGRATE_NAP, true);
				break;
			case MIGRATE_STEP_ERROR:
				nap(migrate_backoff(loader->errors, loader->retry_max_delay_ms), false);
				break;
			case MIGRATE_STEP_ABANDONED:
				nap(MIGRATE_NAP, true);
				break;
			case MIGRATE_STEP_GONE:
				nap(MIGRATE_NAP, true);
				break;
		}
	}
	migrate_loader_disconnect(loader);
	migrate_worker_phase("exited");
	proc_exit(0);
}
