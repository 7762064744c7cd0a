/*-------------------------------------------------------------------------
 *
 * last_check.c
 *	  What changed since the last validation is compared before the target is
 *	  opened: the greater part before the fence, the rest under it (P32).
 *
 *	  validated       round 1          round 2   3    fence   drained   open
 *	  ---+---------------+----------------+-------+-+----|-------|========|
 *	       a day's changes  those meanwhile            the application waits
 *
 * What changed is known from the spool (validate/changed.c), so that a round
 * costs what was written since the one before it, and takes the less time the
 * less that was.  The rounds end when the rest is small, or fits into what the
 * other steps leave of max_downtime and does not get less any more.  If it does
 * not fit, the cutover is refused before anybody has waited.
 *
 * Under the fence nobody writes on either side: there it needs no cut, but the
 * rows of the rest on both sides.  Rows that differ undo the cutover, unless
 * 'last_check' is accepted (migrate_accept); they are recorded before that, and
 * stand in its way from then on.
 *
 * Targets that were never validated are compared by what changes from the first
 * look on: that they were not is what readiness says, and somebody has accepted.
 *
 * Runs in the job worker.  Each comparison is a transaction of its own; a crash
 * loses what is known of the changes, which the next cutover finds out anew.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/last_check.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timeout.h"

#include "validate/changed.h"

/* a rest that takes so long is not worth another round, ms */
#define SMALL_REST 10.0

/* rounds in all, and those in a row that make the rest no less */
#define MAX_ROUNDS 20
#define MAX_IDLE_ROUNDS 3

/* a round is of use when it leaves less than this part */
#define SHRINKS 0.7

static bool
is_accepted(Cutover *c)
{
	return migrate_cutover_call(c->row, "SELECT count(*) FROM migrate.acceptance WHERE job_id = $1"
								" AND check_name = 'cutover' AND object = 'last_check'") > 0;
}

/*
 * What the comparison may take of the pause: half of what the other steps leave,
 * by what they took last.
 */
static double
room_ms(Cutover *c)
{
	int64		others =
	migrate_cutover_call(c->row, "SELECT round(1000 * extract(epoch FROM c.pause"
						 "  - coalesce((SELECT s.duration FROM migrate.cutover_step s WHERE s.cutover_id = c.cutover_id AND s.step = 'check'), '0')))::bigint"
						 " FROM migrate.cutover c WHERE c.job_id = $1 AND c.direction = 'forward'"
						 " AND c.pause IS NOT NULL AND c.error IS NULL ORDER BY c.cutover_id DESC LIMIT 1");

	return Max(c->row->max_downtime_ms - others, 0) / 2.0;
}

static void
refuse_differences(MigrateChangedRound *round)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%lld rows that changed are not equal on both sides: %s",
					(long long) round->mismatches, round->differing),
			 errhint("See migrate.differences; run migrate_repair and migrate_validate. Or pass over it, on record: migrate_accept(job, 'cutover', 'last_check', reason).")));
}

static void
refuse_rest(Cutover *c, MigrateChangedRest *rest, int rounds, double room)
{
	char	   *time = rest->ms < 0 ? pstrdup("not measured") : psprintf("about %.0f ms", rest->ms);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("what changes on the source cannot be compared within max_downtime"),
			 errdetail("After %d rounds %lld keys of %d targets are left, %d of these to be compared whole: %s; %.0f ms of %lld ms are left for it.",
					   rounds, (long long) rest->keys, rest->targets, rest->whole, time, room,
					   (long long) c->row->max_downtime_ms),
			 errhint("Try again when less is written, give more time, or leave it out: option \"last_check\".")));
}

/* One round; false when both sides could not be had at one moment. */
static bool
run_round(Cutover *c, bool accepted)
{
	MigrateChangedRound round;

	migrate_changed_round(c->changed, InvalidXLogRecPtr, accepted, NULL, NULL, &round);
	if (round.mismatches > 0 && !accepted)
		refuse_differences(&round);
	c->checked_keys += round.keys;
	c->checked_whole += round.whole;
	migrate_fault("cutover-round");
	return round.inexact == NULL;
}

/*
 * Rounds until the rest fits; least: so many at any rate, when something has
 * changed.
 */
static void
run_rounds(Cutover *c, int least)
{
	bool		accepted = is_accepted(c);
	double		room = room_ms(c);
	double		best = -1;
	int			idle = 0;
	MigrateChangedRest rest;

	for (int n = 0;; n++)
	{
		bool		fits;

		migrate_changed_look(c->changed);
		migrate_changed_rest(c->changed, &rest);
		if (rest.targets == 0)
			return;
		fits = rest.ms >= 0 && rest.ms <= room;
		if (n > 0 && (rest.ms < 0 || (best >= 0 && rest.ms > best * SHRINKS)))
			idle++;
		else
			idle = 0;
		if (rest.ms >= 0 && (best < 0 || rest.ms < best))
			best = rest.ms;
		if (n >= least && fits && (rest.ms <= SMALL_REST || idle > 0 || least == 0))
			return;
		if (n >= MAX_ROUNDS || idle >= MAX_IDLE_ROUNDS)
		{
			if (fits)
				return;
			refuse_rest(c, &rest, n, room);
		}
		if (!run_round(c, accepted))
			best = -1;
		c->rounds++;
	}
}

/* What is not compared, in words; NULL: nothing. */
static char *
not_compared(Cutover *c)
{
	int			unknown = migrate_changed_unknown(c->changed);
	int			left_out = migrate_changed_left_out(c->changed);
	char	   *text = NULL;

	if (unknown > 0)
		text = psprintf("; %d targets were never validated: of them only what changes now", unknown);
	if (left_out > 0)
		text = psprintf("%s; %d targets are read by the foreign data wrapper: not compared",
						text ? text : "", left_out);
	return text;
}

char *
migrate_last_check_before(Cutover *c)
{
	char	   *more;

	if (!c->row->last_check)
		return pstrdup("left out: option last_check");
	c->changed = migrate_changed_open(c->job, c->conn);
	migrate_changed_prepare(c->changed);
	run_rounds(c, 1);
	more = not_compared(c);
	if (c->rounds == 0)
		return psprintf("nothing has changed%s", more ? more : "");
	return psprintf("%lld keys%s in %d %s%s", (long long) c->checked_keys,
					c->checked_whole > 0 ? psprintf(" and %d whole tables", c->checked_whole) : "",
					c->rounds, c->rounds == 1 ? "round" : "rounds", more ? more : "");
}

void
migrate_last_check_again(Cutover *c)
{
	if (c->changed)
		run_rounds(c, 0);
}

static void
look_at_deadline(void *arg)
{
	migrate_cutover_deadline((Cutover *) arg);
}

/*
 * Under a time-out: a comparison that takes longer than it was to must not hold
 * the target's locks when the source has long opened.
 */
static void
compare_rest(Cutover *c, bool accepted, int64 left, MigrateChangedRound *round)
{
	MemoryContext mcxt = CurrentMemoryContext;

	PG_TRY();
	{
		enable_timeout_after(STATEMENT_TIMEOUT, (int) Min(Max(left, 1), INT_MAX));
		migrate_changed_round(c->changed, c->fence_lsn, accepted, look_at_deadline, c, round);
		disable_timeout(STATEMENT_TIMEOUT, false);
	}
	PG_CATCH();
	{
		disable_timeout(STATEMENT_TIMEOUT, false);
		MemoryContextSwitchTo(mcxt);
		if (geterrcode() == ERRCODE_QUERY_CANCELED)
		{
			ErrorData  *edata = CopyErrorData();

			FlushErrorState();
			/* the better words, when it was that */
			migrate_cutover_deadline(c);
			ReThrowError(edata);
		}
		PG_RE_THROW();
	}
	PG_END_TRY();
}

char *
migrate_last_check_under(Cutover *c)
{
	MigrateChangedRest rest;
	MigrateChangedRound round;
	bool		accepted;
	int64		left;

	if (c->changed == NULL)
		return NULL;
	migrate_changed_look(c->changed);
	migrate_changed_rest(c->changed, &rest);
	if (rest.targets == 0)
		return pstrdup("nothing to compare");
	accepted = is_accepted(c);
	left = c->row->max_downtime_ms - migrate_cutover_ms_since(c->paused_at);
	if (rest.ms > left)
		refuse_rest(c, &rest, c->rounds, left);
	migrate_fault("cutover-compare");
	compare_rest(c, accepted, left, &round);
	if (round.mismatches > 0 && !accepted)
		refuse_differences(&round);
	return psprintf("%lld keys%s of %d targets compared%s", (long long) round.keys,
					round.whole > 0 ? psprintf(" and %d whole tables", round.whole) : "",
					round.targets,
					round.mismatches > 0 ? psprintf(", %lld rows differ (accepted)", (long long) round.mismatches) : "");
}
