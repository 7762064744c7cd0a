/*-------------------------------------------------------------------------
 *
 * apply_set.c
 *	  The net effect of a batch of changes through one mapping: attempts,
 *	  halves, conflicts.
 *
 * All rows of a set are tried in one subtransaction (P17).  What follows when
 * that fails depends on the error:
 *
 *	  no row's fault			thrown
 *	  a conflict on a unique key or an exclusion constraint while rows are
 *	  written in place			the set is written anew: two rows may have
 *								swapped a value, or a value may have moved to a
 *								row that came before
 *	  any other					the halves are tried, down to the row, which
 *								becomes a dead letter
 *
 * Written anew: the rows of all keys of the set are taken out of the target,
 * then inserted again, with the new values over the old (columns that are not
 * mapped, and unchanged TOAST, keep theirs); in halves again when something
 * is in the way.  Since no old row of the set is there any more, what still
 * conflicts does so with a row outside, or with another new one: that is a dead
 * letter.  Mappings of one source table into the same target are written anew
 * together (apply_write.c).
 *
 * A dead row has no row in the target: the old image is removed, so that
 * nobody takes it for right, and so that it stands in no other row's way.
 * (Unless the removal fails too, by a foreign key where the role that
 * applies is not the owner, or the key map itself fails: then the old image
 * stays, and the open letter tells.)  A replay brings it back.
 *
 * Rows that the mapping leaves out now are removed by the key map's values.  A
 * mapping to many rows has all rows of its keys removed, then inserted; unless
 * a unique index of the target says that a key is one row at most.
 *
 * Process: apply worker.  States and locks: those of the writers.  A crash
 * leaves nothing: all is in the caller's transaction.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/apply_set.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

/* stages of dead letters */
#define STAGE_MAP "map"
#define STAGE_WRITE "apply"

/* one attempt at the set or a part of it */
typedef struct Attempt
{
	ApplySet   *set;
	MigrateBatch *batch;
	const int64 *ids;			/* ordinal -> number in the set */
	bool		remove;			/* all keys go */
	const char *volatile stage;
	volatile bool is_double;	/* the error is that of two rows with one key */
	uint8	   *seen;			/* ordinals that gave a row */
	int64		nseen;
	int64		written;
} Attempt;

static void set_part(ApplySet *set, MigrateBatch *batch, const int64 *ids);

ApplySet *
migrate_set_new(MigrateApplier *applier, ApplyTarget *target, MigrateBatch *rows,
				Bitmapset **unknown, bool remove)
{
	ApplySet   *set = palloc0(sizeof(ApplySet));

	set->applier = applier;
	set->target = target;
	set->rows = rows;
	set->unknown = unknown;
	set->remove = remove;
	set->mcxt = CurrentMemoryContext;
	set->dead = palloc0(rows->nrows / 8 + 1);
	set->missing = palloc0(rows->nrows / 8 + 1);
	return set;
}

/* Every error names target and mapping. */
static void
set_error_context(void *arg)
{
	Attempt    *attempt = arg;
	MigrateMapping *map = attempt->set->target->map;

	errcontext("%s of %s, mapping %d",
			   strcmp(attempt->stage, STAGE_MAP) == 0 ? "mapping" : "apply",
			   map->target_name, map->mapping_id);
}

/* ----------------------------------------------------------------
 * an attempt
 * ----------------------------------------------------------------
 */

/* Key map and mapping must say the same, or changes would miss the row. */
static void
check_key(Attempt *attempt, TupleTableSlot *slot)
{
	MigrateWriter *writer = attempt->set->target->writer;
	MigrateMapping *map = writer->map;
	int			which = 0;

	if (!migrate_writer_key_agrees(writer, slot, &which))
		ereport(ERROR,
				(errcode(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION),
				 errmsg("key map and mapping to %s disagree", map->target_name),
				 errdetail("The mapping gives column \"%s\" another value than the key map, whose key is %s.",
						   map->key_columns[which], migrate_writer_key_text(writer, slot)),
				 errhint("Set \"key\" of the mapping so that it computes \"%s\" as the mapping does.",
						 map->key_columns[which])));
}

/* Two rows of a set with one key: the second is a dead letter. */
static void
refuse_double(Attempt *attempt, TupleTableSlot *slot)
{
	MigrateWriter *writer = attempt->set->target->writer;

	attempt->is_double = true;
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("two source rows give the same key of %s", writer->map->target_name),
			 errdetail("Key %s is that of an earlier row.",
					   migrate_writer_key_text(writer, slot)),
			 errhint("The key map must give every source row a key of its own.")));
}

/* A row from the mapping. */
static void
receive_mapped(TupleTableSlot *slot, void *arg)
{
	Attempt    *attempt = arg;
	MigrateWriter *writer = attempt->set->target->writer;
	MigrateMapping *map = writer->map;
	int64		ord;

	slot_getallattrs(slot);
	ord = DatumGetInt64(slot->tts_values[map->ncolumns + map->nkeys]);
	if (ord < 0 || ord >= attempt->batch->nrows)
		elog(ERROR, "mapping gave row %lld of a batch of %lld",
			 (long long) ord, (long long) attempt->batch->nrows);
	if (!migrate_bit(attempt->seen, ord))
	{
		migrate_set_bit(attempt->seen, ord);
		attempt->nseen++;
	}
	else if (!writer->as_set)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("mapping to %s gives more than one row for a source row",
						map->target_name),
				 map->many ? errdetail("The key map finds one row of the target for it.") :
				 errhint("Only a mapping function that returns a set may do so.")));
	attempt->stage = STAGE_WRITE;
	/* a projection takes both from the same column */
	if (map->projection == NULL)
		check_key(attempt, slot);
	if (!migrate_writer_key_is_new(writer, slot, attempt->ids[ord]))
		refuse_double(attempt, slot);
	writer->way->put(writer, slot);
	attempt->stage = STAGE_MAP;
}

/* A key that goes. */
static void
receive_key(TupleTableSlot *slot, void *arg)
{
	Attempt    *attempt = arg;
	MigrateWriter *writer = attempt->set->target->writer;
	int64		ord;

	slot_getallattrs(slot);
	ord = DatumGetInt64(slot->tts_values[writer->map->nkeys]);
	if (attempt->seen && !writer->as_set && migrate_bit(attempt->seen, ord))
		return;
	attempt->stage = STAGE_WRITE;
	for (int k = 0; attempt->set->remove && k < writer->map->nkeys; k++)
		if (slot->tts_isnull[k])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("key map of %s gives no key for a row that was deleted",
							writer->map->target_name),
					 errdetail("Key column \"%s\" is null.", writer->map->key_columns[k])));
	writer->way->remove(writer, slot);
	attempt->stage = STAGE_MAP;
}

/* What the mapping left out, on purpose or not. */
static void
handle_left_out(Attempt *attempt)
{
	MigrateWriter *writer = attempt->set->target->writer;
	MigrateMapping *map = writer->map;
	int64		left_out = attempt->batch->nrows - attempt->nseen;

	if (left_out == 0 || writer->as_set)
		return;
	if (!map->filtered && !map->many)
		elog(ERROR, "mapping %d to %s has no filter but left out %lld of %lld rows",
			 map->mapping_id, map->target_name, (long long) left_out,
			 (long long) attempt->batch->nrows);
	/* without a key there is no old row of it that would have to go */
	if (attempt->set->phase != APPLY_ANEW && !writer->insert_only)
		migrate_mapping_run_keys(map, attempt->batch, receive_key, attempt);
}

/* Inside the subtransaction. */
static void
attempt_rows(Attempt *attempt)
{
	ApplySet   *set = attempt->set;
	MigrateWriter *writer = set->target->writer;
	MigrateMapping *map = set->target->map;
	MemoryContext old = MemoryContextSwitchTo(writer->attempt);

	PushActiveSnapshot(GetTransactionSnapshot());
	writer->way->begin(writer);
	if (attempt->remove)
		migrate_mapping_run_keys(map, attempt->batch, receive_key, attempt);
	else
	{
		if (writer->as_set && !writer->insert_only && set->phase != APPLY_ANEW)
			migrate_mapping_run_keys(map, attempt->batch, receive_key, attempt);
		attempt->seen = palloc0(attempt->batch->nrows / 8 + 1);
		migrate_mapping_run(map, attempt->batch, receive_mapped, attempt);
		handle_left_out(attempt);
	}
	attempt->stage = STAGE_WRITE;
	attempt->written = writer->way->finish(writer);
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
}

/* What the writer has to know of the set. */
static void
prepare_writer(Attempt *attempt)
{
	ApplySet   *set = attempt->set;
	MigrateWriter *writer = set->target->writer;

	writer->ids = attempt->ids;
	writer->unknown = set->unknown;
	writer->taken = set->taken;
	writer->anew = set->phase == APPLY_ANEW;
	writer->missing = set->missing;
	writer->nmissing = 0;
	writer->removed = 0;
	migrate_verify_begin(writer, set->applier->job->verify_writes);
	writer->attempt = AllocSetContextCreate(set->mcxt, "migrate attempt",
											ALLOCSET_DEFAULT_SIZES);
}

/*
 * One attempt in a subtransaction of its own.  NULL when it is done; else the
 * error, in set->mcxt, with everything undone.
 */
static ErrorData *
try_rows(Attempt *attempt)
{
	ApplySet   *set = attempt->set;
	MigrateWriter *writer = set->target->writer;
	MemoryContext mcxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;
	ErrorContextCallback callback = {error_context_stack, set_error_context, attempt};

	prepare_writer(attempt);
	attempt->stage = STAGE_MAP;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		error_context_stack = &callback;
		attempt_rows(attempt);
		ReleaseCurrentSubTransaction();
		error_context_stack = callback.previous;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(set->mcxt);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	CurrentResourceOwner = owner;
	if (edata == NULL)
	{
		set->written += attempt->written;
		set->removed += writer->removed;
		set->nmissing += writer->nmissing;
		migrate_worker_verified(writer->verified);
	}
	MemoryContextDelete(writer->attempt);
	writer->attempt = NULL;
	writer->state = NULL;
	writer->ids = NULL;
	writer->unknown = NULL;
	writer->taken = NULL;
	return edata;
}

/* ----------------------------------------------------------------
 * what follows from it
 * ----------------------------------------------------------------
 */

/*
 * Can it be that rows of the set are only in each other's way?  Not those
 * without a key: none of them replaces another.
 */
static bool
is_conflict(Attempt *attempt, ErrorData *edata)
{
	return (edata->sqlerrcode == ERRCODE_UNIQUE_VIOLATION ||
			edata->sqlerrcode == ERRCODE_EXCLUSION_VIOLATION) &&
		!attempt->remove && !attempt->is_double && !attempt->set->target->writer->insert_only &&
		strcmp(attempt->stage, STAGE_WRITE) == 0;
}

/*
 * The attempt is one row, and it is the row's fault.  Its old image goes, but
 * not that of another row with the same key.
 */
static void
bury_row(Attempt *attempt, ErrorData *edata)
{
	ApplySet   *set = attempt->set;
	MemoryContext old = MemoryContextSwitchTo(set->mcxt);
	ApplyLetter *letter = palloc0(sizeof(ApplyLetter));
	ErrorData  *failed;

	letter->number = attempt->ids[0];
	letter->stage = attempt->stage;
	letter->error = edata;
	set->letters = lappend(set->letters, letter);
	migrate_set_bit(set->dead, letter->number);
	migrate_writer_keys_forget(set->target->writer, letter->number);
	MemoryContextSwitchTo(old);
	if (attempt->remove || attempt->is_double || set->phase == APPLY_ANEW ||
		set->target->writer->insert_only)
		return;
	attempt->remove = true;
	attempt->seen = NULL;
	failed = try_rows(attempt);
	if (failed && !migrate_error_is_of_row(failed->sqlerrcode))
		ReThrowError(failed);
}

static void
set_halves(ApplySet *set, MigrateBatch *batch, const int64 *ids)
{
	int64		bounds[] = {0, batch->nrows / 2, batch->nrows};

	for (int half = 0; half < 2; half++)
	{
		MigrateBatch *part = migrate_batch_slice(batch, bounds[half], bounds[half + 1]);

		set_part(set, part, ids + bounds[half]);
		migrate_batch_free(part);
	}
}

/*
 * Do a set or a part of it, whatever it takes; up to the first conflict, when
 * all of it has to be written anew.
 */
static void
set_part(ApplySet *set, MigrateBatch *batch, const int64 *ids)
{
	Attempt		attempt = {.set = set,.batch = batch,.ids = ids,
	.remove = set->remove || set->phase == APPLY_TAKE};
	ErrorData  *edata;

	if (batch->nrows == 0 || set->conflict)
		return;
	CHECK_FOR_INTERRUPTS();
	edata = try_rows(&attempt);
	if (edata == NULL)
		return;
	if (!migrate_error_is_of_row(edata->sqlerrcode))
		ReThrowError(edata);
	if (set->phase == APPLY_WRITE && is_conflict(&attempt, edata))
		set->conflict = true;
	else if (batch->nrows == 1)
		bury_row(&attempt, edata);
	else
		set_halves(set, batch, ids);
}

/* The rows that are no letters yet, with their numbers. */
static MigrateBatch *
living_rows(ApplySet *set, int64 **ids)
{
	MigrateBatch *rows = set->rows;
	int64		n = 0;

	*ids = MemoryContextAllocExtended(set->mcxt, sizeof(int64) * Max(rows->nrows, 1),
									  MCXT_ALLOC_HUGE);
	for (int64 i = 0; i < rows->nrows; i++)
		if (!migrate_bit(set->dead, i))
			(*ids)[n++] = i;
	return n == rows->nrows ? rows : migrate_batch_pick(rows, set->dead);
}

static void
do_set(ApplySet *set)
{
	int64	   *ids;
	MigrateBatch *living = living_rows(set, &ids);
	MigrateWriter *writer = set->target->writer;

	/* the whole source key in the key map: no two rows can mean one */
	writer->seen = NULL;
	if (!set->remove && !writer->map->key_is_source_key)
		migrate_writer_keys_begin(writer, set->mcxt, set->rows->nrows);
	set_part(set, living, ids);
	writer->seen = NULL;
	if (living != set->rows)
		migrate_batch_free(living);
	pfree(ids);
}

/*
 * Write or remove the rows of a set.  False when it has to be written anew:
 * migrate_set_take() it, and all that shares its target, then call this again.
 */
bool
migrate_set_write(ApplySet *set)
{
	Assert(set->phase != APPLY_TAKE);
	do_set(set);
	set->done = !set->conflict;
	return set->done;
}

/*
 * Take the rows of all keys of a set out of the target; it is written by
 * inserts from now on.
 */
void
migrate_set_take(ApplySet *set)
{
	set->conflict = false;
	set->phase = APPLY_TAKE;
	set->taken = MemoryContextAllocExtended(set->mcxt,
											Max(set->rows->nrows, 1) * sizeof(HeapTuple),
											MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	set->removed = 0;
	do_set(set);
	set->phase = APPLY_ANEW;
	set->written = 0;
	memset(set->missing, 0, set->rows->nrows / 8 + 1);
	set->nmissing = 0;
}
