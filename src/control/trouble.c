/*-------------------------------------------------------------------------
 *
 * trouble.c
 *	  Errors that come again, and when they make a job fail.
 *
 * Loaders note their errors in shared memory and go on trying; the job worker
 * judges.  Two kinds:
 *
 *	  transient		the connection, a deadlock, memory, disk, an operator: the
 *					job fails when they last longer than retry_time and no
 *					loader gets anything done meanwhile
 *	  lasting		everything else: the job fails when the same chunk gave
 *					the same SQLSTATE three times in a row, in whichever loader
 *
 * Errors of steps after the copy are not noted here but in their rows, see
 * load/step_run.c; only that which keeps one from being claimed or recorded.
 *
 * Nothing here survives a crash; the count begins again.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"

#include "control/control.h"

#define LASTING_ERRORS 3

/*
 * By SQLSTATE (manual, appendix A): classes 08 connection, 40 rollback, 53
 * resources, 55 state, 57 operator, 58 system; and a wrapper that cannot
 * connect.
 */
bool
migrate_error_is_transient(const char *sqlstate)
{
	static const char *const classes[] = {"08", "40", "53", "55", "57", "58"};

	for (int i = 0; i < lengthof(classes); i++)
		if (strncmp(sqlstate, classes[i], 2) == 0)
			return true;
	return strcmp(sqlstate, "HV00N") == 0 || strcmp(sqlstate, "HV00M") == 0;
}

/*
 * Loader: an error of this chunk (0: none was claimed).  Counts the slot's
 * errors in a row, and the chunk's if it is not transient.
 */
void
migrate_trouble_note(int64 chunk_id, const char *sqlstate, const char *message)
{
	MigrateWorkerSlot *slot = &migrate_shared->slots[migrate_my_slot];
	bool		transient = migrate_error_is_transient(sqlstate);
	char		line[sizeof(slot->last_error)];
	MigrateTrouble *free_entry = NULL;
	MigrateTrouble *entry = NULL;
	TimestampTz now = GetCurrentTimestamp();

	migrate_clip(line, sizeof(line), message);
	SpinLockAcquire(&migrate_shared->mutex);
	slot->errors++;
	if (slot->error_since == 0)
		slot->error_since = now;
	slot->changed = now;
	strlcpy(slot->sqlstate, sqlstate, sizeof(slot->sqlstate));
	strlcpy(slot->last_error, line, sizeof(slot->last_error));
	for (int i = 0; i < MIGRATE_MAX_LOADERS && !transient; i++)
	{
		MigrateTrouble *t = &migrate_shared->trouble[i];

		if (t->count == 0)
			free_entry = free_entry ? free_entry : t;
		else if (t->chunk_id == chunk_id)
		{
			entry = t;
			break;
		}
	}
	if (!transient && (entry || free_entry))
	{
		if (entry == NULL)
			entry = free_entry;
		else if (strcmp(entry->sqlstate, sqlstate) != 0)
			entry->count = 0;	/* another error: a new row */
		entry->count++;
		entry->chunk_id = chunk_id;
		strlcpy(entry->sqlstate, sqlstate, sizeof(entry->sqlstate));
		strlcpy(entry->message, line, sizeof(entry->message));
	}
	SpinLockRelease(&migrate_shared->mutex);
}

/* A success of this chunk, and of claiming it. */
void
migrate_trouble_clear(int64 chunk_id)
{
	SpinLockAcquire(&migrate_shared->mutex);
	for (int i = 0; i < MIGRATE_MAX_LOADERS; i++)
	{
		MigrateTrouble *t = &migrate_shared->trouble[i];

		if (t->count > 0 && (t->chunk_id == chunk_id || t->chunk_id == 0))
			t->count = 0;
	}
	SpinLockRelease(&migrate_shared->mutex);
}

/*
 * Milliseconds to wait after so many errors in a row: 1 s doubled each time
 * up to the limit, then between half and all of that, so that loaders that
 * lost the same server do not come back in step.
 */
int
migrate_backoff(int attempt, int max_ms)
{
	double		ms = 1000.0 * (1 << Min(Max(attempt - 1, 0), 16));

	ms = Min(ms, Max(max_ms, 100));
	return (int) (ms * (0.5 + pg_prng_double(&pg_global_prng_state) / 2));
}

static bool
lasting_error(MigrateVerdict *verdict)
{
	bool		found = false;

	SpinLockAcquire(&migrate_shared->mutex);
	for (int i = 0; i < MIGRATE_MAX_LOADERS && !found; i++)
	{
		MigrateTrouble *t = &migrate_shared->trouble[i];

		if (t->count >= LASTING_ERRORS)
		{
			found = true;
			strlcpy(verdict->sqlstate, t->sqlstate, sizeof(verdict->sqlstate));
			strlcpy(verdict->message, t->message, sizeof(verdict->message));
		}
	}
	SpinLockRelease(&migrate_shared->mutex);
	return found;
}

/*
 * Transient errors: how long nothing has worked is since the first of the
 * errors that last, or the last chunk or step done by anybody if that was
 * later.  A loader that is in the middle of one and has no error is work.
 */
static bool
transient_error(MigrateJob *job, TimestampTz last_progress, MigrateVerdict *verdict)
{
	TimestampTz since = 0;
	bool		working = false;

	SpinLockAcquire(&migrate_shared->mutex);
	for (int i = 0; i <= MIGRATE_MAX_LOADERS; i++)
	{
		MigrateWorkerSlot *s = &migrate_shared->slots[i];

		if (s->pid == 0)
			continue;
		if (s->errors == 0 && (s->chunk_id != 0 || s->step_id != 0))
			working = true;
		if (s->error_since != 0 && (since == 0 || s->error_since < since))
		{
			since = s->error_since;
			strlcpy(verdict->sqlstate, s->sqlstate, sizeof(verdict->sqlstate));
			strlcpy(verdict->message, s->last_error, sizeof(verdict->message));
		}
	}
	SpinLockRelease(&migrate_shared->mutex);
	if (since == 0)
	{
		since = migrate_loaders_dying_since();
		strlcpy(verdict->sqlstate, "58000", sizeof(verdict->sqlstate));
		strlcpy(verdict->message, "loaders keep ending unexpectedly, see the server log",
				sizeof(verdict->message));
	}
	if (since == 0 || working)
		return false;
	return TimestampDifferenceExceeds(Max(since, last_progress), GetCurrentTimestamp(),
									  job->retry_time_ms);
}

bool
migrate_trouble_verdict(MigrateJob *job, TimestampTz last_progress,
						MigrateVerdict *verdict)
{
	return lasting_error(verdict) || transient_error(job, last_progress, verdict);
}
