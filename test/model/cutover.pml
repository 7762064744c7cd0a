/*
 * cutover.pml
 *	  Fence, drain, opening, the way back and rollback, with crashes: at no time
 *	  do two sides take writes, at the end one does, and it has every write that
 *	  was acknowledged and durable (P25 to P30).
 *
 * There is one row.  A write of the application adds its own bit to what is
 * there, or deletes the row (0); so a write that is lost, and an older row put
 * over a newer one, both show.  "truth" is what the row must be: what the
 * application has committed, in the order in which it did, on whichever side.
 *
 * The source is a log: an entry is the row, and whether the fence is closed,
 * after a commit; a crash takes back what is not flushed.  The application's
 * commits are asynchronous (a durable one is one that is flushed at once).
 *
 * The target's durable state is one WAL, as in spool.pml: tuples, of which the
 * first is on disk and the last is what its processes see.  Its changes of the
 * row are numbered, whoever made them: these are the positions of the way back.
 *
 * The stream is taken for what spool.pml shows: apply gets what is flushed on
 * the source, in order, each once.
 *
 * quick: the searches are short, compiling is not
 *
 * check: -DN=3 : a cutover and a rollback, a crash of anything
 * check: -DCRASHES=2 : two crashes of anything
 * check: -DCUTS=2 : a cutover, a rollback, and a cutover again
 * check: -DLIMIT : the slot of the way back is dropped
 * ends: -DN=1
 * mutant: -DFENCE_ASYNC : P25: the fence is committed asynchronously
 * mutant: -DOPEN_FIRST : P25: the target is opened before the fence is committed
 * mutant: -DUNDO_COMMITTED : P25: a cutover is undone although the fence is committed
 * mutant: -DRECORD_ASYNC : P25: that the commit has begun is written down asynchronously
 * mutant: -DNO_END_OTHERS : P25: the fence is looked for while its COMMIT is under way
 * mutant: -DNO_LOCK : P25: the fence does not wait for whoever writes
 * mutant: -DDRAIN_FLUSHED : P26: drained to the flush position
 * mutant: -DARM_LATE : P29: the way back is armed after the opening
 * mutant: -DNO_SKIP : P29: changes before the opening go back
 * mutant: -DECHO : P30: the apply position stays in a rollback
 * mutant: -DNO_MARK_FLUSH : P4: the apply position is moved to one that is not flushed on the source
 * mutant: -DAPPLY_LIVES : P30: the target is opened while apply lives
 * mutant: -DREVERSE_LIVES -DCUTS=2 : P30: apply begins while the reverse worker lives
 * mutant: -DREAD_UNFLUSHED : what this server may still lose goes back
 * mutant: -DBACK_ASYNC : the source's commit of the way back is asynchronous
 * mutant: -DCONFIRM_FIRST : the slot is confirmed before the source has committed
 * mutant: -DNO_BACK_LOCK : a COMMIT of the way back is under way when its changes come again
 * mutant: -DNO_BACK_DRAIN : a rollback does not drain
 * mutant: -DBACK_FLUSHED : a rollback drains to the flush position
 * mutant: -DNO_TARGET_LOCK : a rollback does not wait for whoever writes
 * mutant: -DCLOSE_ASYNC : the source is opened before the target's guard is durable
 * mutant: -DLIFT_FIRST : the source is opened before the target's guard is committed
 * mutant: -DNEW_SLOT -DLIMIT : a missing slot is made anew while cut over
 */
#ifndef N
#define N		2				/* writes of the application, at most 3 */
#endif
#ifndef CRASHES
#define CRASHES	1				/* of job worker, reverse worker, source, target */
#endif
#ifndef CUTS
#define CUTS	1				/* cutovers that are asked for */
#endif
#define BACKS	1				/* rollbacks */
#define SP		15				/* positions of the source, enough of them */
#define TP		11				/* changes of the target, likewise */
#define Q		2				/* local commits not yet flushed, at most */
#define NOWHERE	15				/* open_lsn: null */

/* states of the job */
#define STREAMING 0
#define CUTTING	1
#define CUT_OVER 2
#define ROLLING	3

/* migrate.reverse */
#define NONE	0
#define ARMING	1
#define ARMED	2
#define LOST	3

/*
 * the source
 */
#define ROW(e)		((e) & 15)
#define CLOSED(e)	((e) & 16)	/* the fence refuses */
#define CHANGE(e)	((e) & 32)	/* the commit changed the row */
#define OURS(e)		((e) & 64)	/* it was the way back */
byte src[SP];					/* by position; 0: before everything */
byte ins;						/* insert position */
byte fl;						/* flush position */
#define NOW			src[ins]

/* the session that owns the fence */
#define LOCKED	1
#define COMMIT	2				/* sent */
byte fs;
bool fs_mine;					/* of the job worker that lives */

/* a COMMIT of the way back whose sender has died */
bool late;
byte late_row;

/*
 * the target
 */
typedef Here
{
	byte row;
	byte applied;				/* apply_position.applied_lsn */
	byte n;						/* changes of the row so far */
	byte state;					/* of the job */
	bool running;				/* migrate.cutover.state; else asked */
	bool commit_begun;			/* step "commit" is there */
	bool closed;				/* migrate.cutover.closed */
	bool guard;					/* enabled */
	byte back;					/* migrate.reverse.state */
	byte open_at				/* migrate.reverse.open_lsn */
};
Here s[Q + 1];
byte n;							/* s[0] is on disk, s[n] is seen */
#define T			s[n]
byte change[TP];				/* the row after each */
bool slot;						/* of the way back */
byte slot_at;					/* confirmed_flush_lsn */

/* the application */
byte left = N;
byte truth;
byte at;						/* where it is in a transaction */
#define SOURCE	1
#define TARGET	2

/* the job worker; its memory */
mtype = { TURN, ARM, ARM_WAIT, FENCE, DRAIN, DRAIN_WAIT, CHECK, BEGIN_COMMIT, SEND, LOOK,
	OPEN, SETTLE, LOOK_AGAIN, SETTLE_APPLY, GIVE_UP,
	PRECHECK, CLOSE, BACK_DRAIN, MARK, CLOSE_COMMIT, LIFT, STREAM_ON, STOP_REVERSE, BACK_UNDONE };
mtype job = TURN;
byte upto;						/* position to drain to */
bool tlock;						/* a rollback's transaction has the targets */
byte sent_to;					/* live.reverse_lsn */

/* the apply worker */
bool apply_on, apply_mine, apply_stop;

/* the reverse worker */
mtype = { OFF, START, IDLE, READ, WRITTEN, COMMITTING, COMMITTED, CONFIRMED, DROPPED };
mtype rev = OFF;
bool rev_mine, rev_stop;
byte rev_at;					/* decoded up to */
byte rev_to;					/* the batch at hand */
byte rev_row;
bool rev_effect;				/* it has written something */
byte rev_open;					/* what it knows of open_lsn */

byte crashes = CRASHES;
byte cuts = CUTS;
byte backs = BACKS;

byte j;

#define SOURCE_OPEN	(!CLOSED(NOW) && fs == NONE)
#define TARGET_OPEN	(!T.guard && !tlock)

inline copy_state(a, b)
{
	a.row = b.row; a.applied = b.applied; a.n = b.n; a.state = b.state;
	a.running = b.running; a.commit_begun = b.commit_begun; a.closed = b.closed;
	a.guard = b.guard; a.back = b.back; a.open_at = b.open_at
}

inline clear_state(a)
{
	a.row = 0; a.applied = 0; a.n = 0; a.state = 0;
	a.running = 0; a.commit_begun = 0; a.closed = 0;
	a.guard = 0; a.back = 0; a.open_at = 0
}

/* a new tuple, to be changed by the caller */
inline local_commit()
{
	assert(n < Q);
	copy_state(s[n + 1], s[n]);
	n++
}

/* everything is on disk */
inline flush_here()
{
	if
	:: n > 0 ->
		copy_state(s[0], s[n]);
		do
		:: n > 0 -> clear_state(s[n]); n--
		:: else -> break
		od
	:: else
	fi
}

/* an asynchronous commit on the source; e: row and flags */
inline source_commit(e)
{
	assert(ins < SP - 1);
	src[ins + 1] = e;
	ins++
}

inline flush_source()
{
	fl = ins
}

/* ----------------------------------------------------------------
 * the application: refused by one side (25006), it writes to the other
 * ----------------------------------------------------------------
 */
proctype application()
{
	byte r;

end:	do
	:: atomic { at == 0 && left > 0 && SOURCE_OPEN && !late && !rev_effect -> at = SOURCE }
	:: atomic { at == 0 && left > 0 && TARGET_OPEN -> at = TARGET }
	/* commit, the lock goes with it; it has seen what it must see */
	:: atomic {
			at == SOURCE;
			r = ROW(NOW);
			assert(r == truth);
			if
			:: r = r | (1 << (N - left))
			:: r != 0 -> r = 0
			fi;
			source_commit(r | CLOSED(NOW) | 32);
			truth = r;
			printf("application: the source's row is %d\n", r);
			left--; at = 0; r = 0
		}
	:: atomic {
			at == TARGET && n < Q;
			r = T.row;
			assert(r == truth);
			if
			:: r = r | (1 << (N - left))
			:: r != 0 -> r = 0
			fi;
			assert(T.n < TP - 1);
			local_commit();
			T.row = r; T.n++;
			change[T.n] = r;
			truth = r;
			printf("application: the target's row is %d\n", r);
			left--; at = 0; r = 0
		}
	/* its client dies */
	:: atomic { at != 0 -> left--; at = 0 }
	od
}

/* somebody else's commits, in a table that is not the job's */
proctype others()
{
end:	atomic { (fl == ins && T.state == ROLLING) -> source_commit(ROW(NOW) | CLOSED(NOW)); source_commit(ROW(NOW) | CLOSED(NOW)) }
}

proctype client()
{
end:	do
	/* migrate_cutover, migrate_rollback: they only ask; whether they then die is the same */
	:: atomic { cuts > 0 && T.state == STREAMING && job == TURN && n < Q ->
			cuts--;
			local_commit();
			T.state = CUTTING; T.running = false; T.commit_begun = false; T.closed = false;
			flush_here();
			printf("client: cutover\n")
		}
	:: atomic { backs > 0 && T.state == CUT_OVER && T.back == ARMED && job == TURN && n < Q ->
			backs--;
			local_commit();
			T.state = ROLLING; T.running = false; T.closed = false;
			flush_here();
			printf("client: rollback\n")
		}
	od
}

/* ----------------------------------------------------------------
 * the source
 * ----------------------------------------------------------------
 */
inline fence_commits()
{
	source_commit(ROW(NOW) | 16);
#ifndef FENCE_ASYNC
	flush_source();
#endif
	fs = NONE;
	printf("source: the fence is committed\n")
}

proctype source()
{
end:	do
	:: atomic { fl < ins -> fl++ }
	/* P25: its session is lost, or idles for too long */
	:: atomic { fs == LOCKED -> fs = NONE; fs_mine = false; printf("source: the fence's session ends\n") }
	:: atomic { fs == COMMIT -> fence_commits() }
	:: atomic { late -> source_commit(late_row | CLOSED(NOW) | 32 | 64); flush_source(); late = false; late_row = 0;
			printf("source: a late commit of the way back\n") }
	:: atomic { late -> late = false; late_row = 0 }
	od
}

/* ----------------------------------------------------------------
 * the target's processes
 * ----------------------------------------------------------------
 */
proctype walwriter()
{
end:	do
	:: d_step {
			n > 0;
			j = 0;
			do
			:: j < n -> copy_state(s[j], s[j + 1]); j++
			:: else -> break
			od;
			clear_state(s[n]);
			n--; j = 0
		}
	od
}

/* what is flushed on the source, in order; asynchronously */
proctype apply()
{
end:	do
	:: atomic {
			apply_on && T.applied < fl && n < Q;
			local_commit();
			T.applied++;
			if
			:: CHANGE(src[T.applied]) ->
				assert(T.n < TP - 1);
				/* it is here already */
				assert(!OURS(src[T.applied]));
				T.row = ROW(src[T.applied]);
				T.n++;
				change[T.n] = T.row;
				printf("apply: %d, the row is %d\n", T.applied, T.row)
			:: else
			fi
		}
	:: atomic { apply_on && (apply_stop || !apply_mine) -> apply_on = false; apply_mine = false }
	od
}

#ifdef NEW_SLOT
#define MAY_MAKE	true
#else
#define MAY_MAKE	(T.back == ARMING)
#endif

proctype reverse()
{
end:	do
	/* open_session: the row, the slot */
	:: atomic {
			rev == START && n < Q;
			if
			:: T.back == NONE || T.back == LOST -> rev = OFF; rev_mine = false
			:: else ->
				rev_open = T.open_at;
				if
#ifndef NEW_SLOT
				:: !slot && T.back != ARMING ->
					/* what has been written here since is in no slot */
					local_commit(); T.back = LOST; flush_here();
					rev = OFF; rev_mine = false; rev_open = 0
#endif
				:: !slot && MAY_MAKE ->
					/* from a flushed position of now */
					flush_here();
					slot = true; slot_at = T.n;
					printf("reverse: slot at %d\n", slot_at);
					local_commit(); T.back = ARMED; flush_here();
					rev_at = slot_at; rev = IDLE
				:: slot ->
					local_commit(); T.back = ARMED; flush_here();
					rev_at = slot_at; rev = IDLE
				fi
			fi
		}
	/* migrate_decoder_read, apply_decoded: a batch, its net effect */
	:: atomic {
#ifdef READ_UNFLUSHED
			rev == IDLE && rev_at < T.n;
#else
			rev == IDLE && rev_at < s[0].n;
#endif
			if
			:: rev_open == NOWHERE -> rev_open = T.open_at
			:: else
			fi;
			rev_to = rev_at + 1;
			do
#ifdef READ_UNFLUSHED
			:: rev_to < T.n -> rev_to++
#else
			:: rev_to < s[0].n -> rev_to++
#endif
			:: break
			od;
			rev_row = change[rev_to];
#ifdef NO_SKIP
			rev = READ;
#else
			/* P29 */
			if
			:: rev_open == NOWHERE || rev_to <= rev_open -> rev_row = 0; rev = COMMITTED
			:: else -> rev = READ
			fi;
#endif
			printf("reverse: up to %d, opened at %d\n", rev_to, rev_open);
#ifdef CONFIRM_FIRST
			slot_at = rev_to
#endif
		}
	/* BEGIN and the rows; a row that nobody sees is not deleted, nor waited for */
	:: atomic {
#ifdef NO_BACK_LOCK
			rev == READ && at != SOURCE && (!late || (rev_row == 0 && ROW(NOW) == 0));
#else
			rev == READ && at != SOURCE && !late;
#endif
			rev_effect = (rev_row != 0 || ROW(NOW) != 0);
			rev = WRITTEN
		}
	:: atomic { rev == WRITTEN -> rev = COMMITTING }
	/* the source executes it */
	:: atomic {
			rev == COMMITTING;
			if
			:: rev_effect ->
				source_commit(rev_row | CLOSED(NOW) | 32 | 64);
#ifndef BACK_ASYNC
				flush_source();
#endif
				printf("reverse: the source's row is %d\n", rev_row)
			:: else
			fi;
			rev_effect = false; rev_row = 0;
			rev = COMMITTED
		}
	:: atomic { rev == COMMITTED -> slot_at = rev_to; rev = CONFIRMED }
	/* publish_position */
	:: atomic {
			rev == CONFIRMED;
			rev_at = rev_to; rev_to = 0;
			if
			:: rev_mine -> sent_to = rev_at
			:: else
			fi;
			rev = IDLE
		}
	/* a job worker that does not know yet how far we are */
	:: atomic { rev == IDLE && rev_mine && sent_to < rev_at -> sent_to = rev_at }
	:: atomic { (rev == IDLE || rev == START) && (rev_stop || !rev_mine) ->
			rev = OFF; rev_mine = false; rev_at = 0; rev_open = 0 }
#ifdef LIMIT
	/* max_target_wal: holds_too_much() */
	:: atomic {
			rev == IDLE && T.state == CUT_OVER && rev_at == s[0].n && n < Q;
			slot = false; slot_at = 0;
			printf("reverse: too much\n");
			rev = DROPPED
		}
	:: atomic {
			rev == DROPPED && n < Q;
			local_commit(); T.back = LOST; flush_here();
			rev = OFF; rev_mine = false; rev_at = 0; rev_open = 0
		}
#endif
	od
}

/* ----------------------------------------------------------------
 * the job worker
 * ----------------------------------------------------------------
 */
inline ensure_reverse()
{
	if
	:: rev == OFF -> rev = START; rev_mine = true; rev_stop = false
	:: else
	fi
}

#ifdef APPLY_LIVES
/* it asks, and does not wait for one that a job worker before it has started */
#define APPLY_GONE	(!apply_on || !apply_mine)
#else
#define APPLY_GONE	(!apply_on)
#endif

/* _disarm_reverse */
inline disarm()
{
	local_commit(); T.back = NONE; T.open_at = NOWHERE; flush_here();
	slot = false; slot_at = 0
}

/* migrate_cutover_open */
inline open_target()
{
	local_commit();
	T.guard = false;
	T.open_at = T.n;
	T.state = CUT_OVER;
	flush_here();
	printf("job: the target is open\n");
	assert(T.row == truth)
}

#if defined(LIFT_FIRST) || defined(OPEN_FIRST)
#define MAY_FAIL	false
#else
#define MAY_FAIL	true
#endif

proctype job_worker()
{
end:	do
	/* migrate_turn_stream; what is left of the way back goes first */
#ifdef REVERSE_LIVES
	:: atomic { job == TURN && T.state == STREAMING && !apply_on -> apply_on = true; apply_mine = true; apply_stop = false }
#else
	/* migrate_cutover_tidy: the lock of the reverse worker, whoever has started it */
	:: atomic { job == TURN && T.state == STREAMING && !apply_on && rev == OFF ->
			apply_on = true; apply_mine = true; apply_stop = false }
#endif
	:: atomic { job == TURN && T.state == STREAMING && T.back != NONE && rev != OFF && !rev_stop -> rev_stop = true }
	:: atomic { job == TURN && T.state == STREAMING && T.back != NONE && rev == OFF && n < Q ->
			disarm() }

	/* migrate_cutover_turn */
	:: atomic { job == TURN && T.state == CUTTING && n < Q ->
			if
			:: !T.running -> local_commit(); T.running = true; flush_here(); job = ARM
#ifndef UNDO_COMMITTED
			:: T.running && T.commit_begun -> job = SETTLE
			:: T.running && !T.commit_begun -> job = GIVE_UP
#else
			:: T.running -> job = GIVE_UP
#endif
			fi
		}
	/* step_reverse */
#ifndef REVERSE_LIVES
	:: atomic { job == ARM && rev != OFF && !rev_stop -> rev_stop = true }
	:: atomic { job == ARM && rev == OFF && n < Q ->
#else
	:: atomic { job == ARM && n < Q ->
#endif
#ifdef ARM_LATE
			job = FENCE
#else
			local_commit();
			T.back = (slot -> T.back : ARMING);
			T.open_at = NOWHERE;
			job = ARM_WAIT
#endif
		}
	:: atomic { job == ARM_WAIT && T.back != ARMED && rev == OFF -> ensure_reverse() }
	:: atomic { job == ARM_WAIT && T.back == ARMED -> job = FENCE }
	/* step_fence; apply is there, as a turn sees to it */
	:: atomic {
#ifdef NO_LOCK
			job == FENCE && fs == NONE;
#else
			job == FENCE && fs == NONE && at != SOURCE;
#endif
			fs = LOCKED; fs_mine = true;
			if
			:: !apply_on -> apply_on = true; apply_mine = true; apply_stop = false
			:: else
			fi;
			job = DRAIN
		}
	/* step_drain: the position, then a commit that flushes */
	:: atomic { job == DRAIN ->
#ifdef DRAIN_FLUSHED
			upto = fl;
#else
			upto = ins;
#endif
			flush_source();
			job = DRAIN_WAIT
		}
	:: atomic { job == DRAIN_WAIT && T.applied >= upto -> upto = 0; apply_stop = true; job = CHECK }
	/* step_check */
	:: atomic { job == CHECK && APPLY_GONE -> job = BEGIN_COMMIT }
	/* step_commit */
	:: atomic { job == BEGIN_COMMIT && n < Q ->
			local_commit(); T.commit_begun = true;
#ifndef RECORD_ASYNC
			flush_here();
#endif
#ifdef OPEN_FIRST
			job = OPEN
#else
			job = SEND
#endif
		}
	:: atomic { job == SEND ->
			if
			:: fs == LOCKED && fs_mine -> fs = COMMIT; job = LOOK
			:: else -> job = SETTLE
			fi
		}
	/* max_downtime is over, or any error before COMMIT is sent */
	:: atomic { (job == ARM_WAIT || job == DRAIN || job == DRAIN_WAIT || job == CHECK || job == BEGIN_COMMIT || job == SEND) && MAY_FAIL -> job = GIVE_UP }
	/* the answer, and it is read back */
	:: atomic { job == LOOK && fs == NONE ->
			fs_mine = false;
			if
#ifdef OPEN_FIRST
			:: true -> job = TURN
#endif
			:: CLOSED(NOW) -> job = OPEN
			:: else -> job = SETTLE
			fi
		}
	/* the answer is lost */
	:: atomic { job == LOOK && fs == COMMIT && crashes > 0 -> crashes--; fs_mine = false; job = SETTLE }
	/* step_open */
	:: atomic { job == OPEN && n < Q ->
			open_target();
#ifdef ARM_LATE
			local_commit(); T.back = ARMING; flush_here();
#endif
#ifdef OPEN_FIRST
			job = SEND
#else
			job = TURN
#endif
		}
	/* settle: end_others, look */
	:: atomic { job == SETTLE ->
#ifdef NO_END_OTHERS
			job = LOOK_AGAIN
		}
	:: atomic { job == LOOK_AGAIN ->
#else
			if
			:: fs == LOCKED -> fs = NONE; fs_mine = false
			:: else
			fi;
			job = LOOK_AGAIN
		}
	:: atomic { job == LOOK_AGAIN && fs == NONE ->
#endif
			if
			:: CLOSED(NOW) -> apply_stop = true; job = SETTLE_APPLY
			:: else -> job = GIVE_UP
			fi
		}
	:: atomic { job == SETTLE_APPLY && APPLY_GONE -> job = OPEN }
	:: atomic { job == GIVE_UP && n < Q ->
			if
			:: fs == LOCKED && fs_mine -> fs = NONE
			:: else
			fi;
			fs_mine = false; upto = 0;
			local_commit();
			T.state = STREAMING; T.running = false; T.commit_begun = false;
			flush_here();
			printf("job: undone\n");
			job = TURN
		}

	/* migrate_cut_over_turn */
	:: atomic { job == TURN && T.state == CUT_OVER && apply_on && !apply_stop -> apply_stop = true }
	:: atomic { job == TURN && T.state == CUT_OVER && (T.back == ARMED || T.back == ARMING) && rev == OFF -> ensure_reverse() }

	/* migrate_rollback_turn */
	:: atomic { job == TURN && T.state == ROLLING && n < Q ->
			if
			:: T.closed -> job = LIFT
			:: !T.closed && T.running -> job = BACK_UNDONE
			:: !T.closed && !T.running -> local_commit(); T.running = true; flush_here(); apply_stop = true; job = PRECHECK
			fi
		}
	:: atomic { job == PRECHECK && APPLY_GONE ->
			if
			:: CLOSED(NOW) -> job = CLOSE
			:: else -> job = BACK_UNDONE
			fi
		}
	/* close_target, and the position: the last record, flushed */
	:: atomic {
#ifdef NO_TARGET_LOCK
			job == CLOSE;
#else
			job == CLOSE && at != TARGET;
			tlock = true;
#endif
#ifdef BACK_FLUSHED
			upto = s[0].n;
#else
			upto = T.n;
#endif
			flush_here();
			job = BACK_DRAIN
		}
	:: atomic { job == BACK_DRAIN && rev == OFF && T.back == ARMED -> ensure_reverse() }
	/* max_downtime is over, or any error */
	:: atomic { (job == BACK_DRAIN || job == MARK || job == CLOSE_COMMIT) && MAY_FAIL -> job = BACK_UNDONE }
	:: atomic {
#ifdef NO_BACK_DRAIN
			job == BACK_DRAIN;
#else
			job == BACK_DRAIN && sent_to >= upto;
#endif
			job = MARK
		}
	/* mark_closed: P30, P4 */
	:: atomic { job == MARK ->
			upto = ins;
#ifndef NO_MARK_FLUSH
			flush_source();
#endif
#ifdef LIFT_FIRST
			job = LIFT
#else
			job = CLOSE_COMMIT
#endif
		}
	:: atomic { job == CLOSE_COMMIT && n < Q ->
			local_commit();
			T.guard = true; T.closed = true;
#ifndef ECHO
			T.applied = (T.applied < upto -> upto : T.applied);
#endif
#ifndef CLOSE_ASYNC
			flush_here();
#endif
			tlock = false; upto = 0;
			printf("job: the target is closed\n");
#ifdef LIFT_FIRST
			job = STREAM_ON
#else
			job = LIFT
#endif
		}
	/* lift: the fence, and then the state */
	:: atomic { job == LIFT ->
			if
			:: CLOSED(NOW) ->
				source_commit(ROW(NOW));
				flush_source();
				printf("job: the fence is lifted\n");
				assert(ROW(NOW) == truth)
			:: else
			fi;
#ifdef LIFT_FIRST
			job = CLOSE_COMMIT
#else
			job = STREAM_ON
#endif
		}
	:: atomic { job == STREAM_ON && n < Q ->
			local_commit();
			T.state = STREAMING; T.running = false; T.closed = false; T.commit_begun = false;
			flush_here();
#ifdef REVERSE_LIVES
			job = TURN
#else
			rev_stop = true;
			job = STOP_REVERSE
#endif
		}
	/* stop_reverse, _disarm_reverse */
	:: atomic { job == STOP_REVERSE && rev == OFF && n < Q ->
			if
			:: T.state == STREAMING -> disarm()
			:: else
			fi;
			job = TURN
		}
	/* it takes its time */
	:: atomic { job == STOP_REVERSE && rev != OFF -> job = TURN }
	:: atomic { job == BACK_UNDONE && n < Q ->
			tlock = false; upto = 0;
			local_commit();
			T.state = CUT_OVER; T.running = false;
			flush_here();
			printf("job: the rollback is undone\n");
			job = TURN
		}
	od
}

/* ----------------------------------------------------------------
 * crashes
 * ----------------------------------------------------------------
 */

/* the job worker's memory, locks and connections are gone */
inline job_gone()
{
	job = TURN; upto = 0; tlock = false; sent_to = 0;
	fs_mine = false;
	apply_mine = false; apply_stop = false;
	rev_mine = false; rev_stop = false
}

/* the reverse worker's; its COMMIT may still be under way on the source */
inline reverse_gone()
{
	if
	:: rev == COMMITTING && rev_effect && !late -> late = true; late_row = rev_row
	:: true
	fi;
	rev = OFF; rev_at = 0; rev_to = 0; rev_row = 0; rev_effect = false; rev_open = 0
}

proctype crash()
{
end:	do
	:: atomic { crashes > 0 ->
			crashes--;
			if
			:: printf("the job worker dies\n");
				job_gone()
			:: rev != OFF ->
				printf("the reverse worker dies\n");
				reverse_gone()
			:: printf("the source crashes: %d -> %d\n", ins, fl);
				if
				:: !CLOSED(NOW) -> truth = ROW(src[fl])
				:: else
				fi;
				do
				:: ins > fl -> src[ins] = 0; ins--
				:: else -> break
				od;
				fs = NONE; fs_mine = false;
				late = false; late_row = 0;
				if
				:: at == SOURCE -> at = 0; left--
				:: else
				fi;
				if
				:: rev == READ || rev == WRITTEN || rev == COMMITTING ->
					rev = START; rev_at = 0; rev_to = 0; rev_row = 0; rev_effect = false
				:: else
				fi
			:: printf("the target crashes\n");
				if
				:: !T.guard && s[0].n < T.n -> truth = s[0].row
				:: else
				fi;
				j = T.n;
				do
				:: j > s[0].n -> change[j] = 0; j--
				:: else -> break
				od;
				j = 0;
				do
				:: n > 0 -> clear_state(s[n]); n--
				:: else -> break
				od;
				reverse_gone();
				job_gone();
				apply_on = false;
				if
				:: at == TARGET -> at = 0; left--
				:: else
				fi
			fi
		}
	od
}

/* at any time */
proctype one_writer()
{
end:	atomic { SOURCE_OPEN && TARGET_OPEN -> assert(false) }
}

/* nothing moves any more: one side is open, with everything, and the other has it too */
proctype end_of_run()
{
	timeout;
	assert(SOURCE_OPEN || TARGET_OPEN);
	assert(job == TURN && (T.state == STREAMING || T.state == CUT_OVER) && n == 0);
	assert((T.state == STREAMING) == SOURCE_OPEN);
	assert(!SOURCE_OPEN || ROW(NOW) == truth);
	assert(!TARGET_OPEN || T.row == truth);
	assert(T.row == truth || T.state == CUT_OVER);
	assert(ROW(NOW) == truth || T.back == LOST)
}

init
{
	atomic {
		s[0].guard = true;
		s[0].open_at = NOWHERE;
		run application(); run client(); run source(); run walwriter();
		run apply(); run reverse(); run job_worker(); run crash();
		run one_writer(); run end_of_run();
		if
		:: CRASHES > 0 -> run others()
		:: else
		fi
	}
}
