/*
 * spool.pml
 *	  From the source's WAL to the target's rows: walsender, capture, spool,
 *	  apply, and what is confirmed to the slot.
 *
 * Positions of the source are 1 .. P; each is the end of a transaction's commit
 * or of something else (noise).  A transaction is two messages, so that it can
 * be half received.  The target's durable state is one WAL: tuples, of which
 * the first is on disk and the last is what its processes see; a crash keeps
 * the first, a flush drops it.  So that spool, apply's position and rows are
 * lost together and in order.
 *
 * check: -DCRASHES=1 : one crash of anything
 * check: -DP=2 : two crashes of anything
 * check: -DREWIND -DCRASHES=1 -DP=2 : a target restored from a backup
 * ends: -DP=2 -DCRASHES=1
 * mutant: -DCONFIRM_RECEIVED : invariant 4: what is received is confirmed
 * mutant: -DCONFIRM_COMMITTED : invariant 4: what is committed here, not flushed, is confirmed
 * mutant: -DCONFIRM_AT_START -DP=2 : invariant 4: a capture that starts again confirms what it finds in the spool
 * mutant: -DKEEPALIVE_CONFIRMS : keep-alive trap: its position is confirmed at once
 * mutant: -DKEEPALIVE_SKIPS : keep-alive trap: its position is taken while something waits to be spooled
 * mutant: -DNO_KEEPALIVE : an idle source: the slot and apply stay behind
 * mutant: -DNO_P18 -DREWIND -DP=2 : P18: a slot ahead of a rewound target is not noticed
 * mutant: -DNO_START -DP=2 : capture leaves the start to the slot
 * mutant: -DSPLIT_COMMIT -DP=2 -DCRASHES=1 : the boundary trap: a local transaction ends within a source transaction
 * mutant: -DPOSITION_LATER -DP=2 : invariant 1: the position in a transaction after the rows
 * mutant: -DPOSITION_BEFORE -DP=2 : invariant 1: the position in a transaction before the rows
 * mutant: -DTWO_SNAPSHOTS : apply takes the spooled position by a later snapshot than the rows
 * mutant: -DIDLE_IS_DRAINED -DP=2 : nothing comes: taken for drained
 */
#ifndef P
#define P		3				/* positions of the source */
#endif
#ifndef CRASHES
#define CRASHES	2				/* in all: of capture, source, target */
#endif
#define Q		2				/* local commits not yet flushed, at most */

/* the source: what its walsender can read (flushed) */
byte tail;						/* position reached */
byte txn;						/* bit i: position i ends a transaction */
byte slot;						/* confirmed_flush_lsn */

#define IS_TXN(i)	((txn >> (i)) & 1)

/* positions a + 1 .. b */
#define BITS(a, b)	(((1 << ((b) + 1)) - 1) & ~((1 << ((a) + 1)) - 1))
#define TXNS(a, b)	(txn & BITS(a, b))

/* the connection; lost with whoever is at an end of it */
mtype = { HALF, COMMIT, KEEPALIVE };
chan wire = [1] of { mtype, byte };
bool up;
byte sent;						/* the walsender's sentPtr */
bool half_sent;
byte kept;						/* of the last keep-alive */

/* capture's memory */
bool half;						/* a transaction is half received */
byte have;						/* last commit received, not in the spool; 0: none */
byte received;
byte heard;						/* position of the last keep-alive */
byte pending;					/* committed here, to be confirmed; 0: none */
byte pending_n;					/* local commits that must be flushed before */
bool failed;					/* P18 */

/* the target */
typedef Here
{
	byte spooled;				/* stream_position.spooled_lsn */
	bool half;					/* the spool ends within a transaction */
	byte applied;				/* apply_position.applied_lsn */
	byte rows					/* the transactions that the target's rows hold */
};
Here s[Q + 1];
byte n;							/* s[0] is on disk, s[n] is seen */
#ifdef REWIND
Here backup;
#endif
bool rewound;					/* restored from a backup */
byte crashes = CRASHES;

/* apply's memory, between two transactions */
byte later;						/* position still to be written; 0: none */
byte early;						/* rows still to be written */
byte empty_until;				/* TWO_SNAPSHOTS: nothing in the spool up to here */

byte fence;						/* the position to drain to; 0: not yet taken */
bool drained;

byte j;

inline copy_state(a, b)
{
	a.spooled = b.spooled;
	a.half = b.half;
	a.applied = b.applied;
	a.rows = b.rows
}

/* a new tuple, to be changed by the caller */
inline local_commit()
{
	assert(n < Q);
	copy_state(s[n + 1], s[n]);
	n++
}

inline disconnect()
{
	do
	:: wire ? _, _
	:: empty(wire) -> break
	od;
	up = false; sent = 0; half_sent = false; kept = 0;
	half = false; have = 0; received = 0; heard = 0
}

/* the processes of the target are gone */
inline all_gone()
{
	disconnect();
	pending = 0; pending_n = 0;
	later = 0; early = 0; empty_until = 0
}

inline confirm(pos)
{
	if
	:: pos > slot ->
		printf("confirm %d\n", pos);
		slot = pos;
		/* invariant 4 */
		assert(slot <= s[0].spooled)
	:: else
	fi
}

proctype source()
{
end:	do
	:: atomic { tail < P -> tail++; txn = txn | (1 << tail); printf("source: transaction %d\n", tail) }
	:: atomic { tail < P -> tail++; printf("source: noise %d\n", tail) }
	:: tail == P -> break
	od
}

proctype walsender()
{
end:	do
	:: atomic {
			up && sent < tail;
			if
			:: !IS_TXN(sent + 1) -> sent++
			:: IS_TXN(sent + 1) && !half_sent && nfull(wire) ->
				wire ! HALF, sent + 1; half_sent = true
			:: IS_TXN(sent + 1) && half_sent && nfull(wire) ->
				sent++; half_sent = false; wire ! COMMIT, sent
			fi
		}
#ifndef NO_KEEPALIVE
	/* at any moment, also within a transaction */
	:: atomic { up && kept < sent && nfull(wire) -> kept = sent; wire ! KEEPALIVE, sent }
#endif
	od
}

proctype capture()
{
	mtype what;
	byte pos;

end:	do
	/* start: where the spool ends; P18; the server moves a lower start forward */
	:: atomic {
			!up && !failed;
			assert(!s[n].half);
#ifndef NO_P18
			if
			:: slot > s[n].spooled ->
				failed = true;
				printf("capture: failed, the slot is at %d, the spool at %d\n", slot, s[n].spooled);
				assert(rewound);
				goto next
			:: else
			fi;
#endif
			up = true;
#ifdef NO_START
			sent = slot;
#else
			sent = (s[n].spooled > slot -> s[n].spooled : slot);
#endif
			kept = sent;
			received = s[n].spooled;
			/* what is seen in the spool need not be on disk */
			pending = s[n].spooled;
			pending_n = n;
#ifdef CONFIRM_AT_START
			pending_n = 0;
#endif
			printf("capture: starts, spool %d (on disk %d), slot %d\n", s[n].spooled, s[0].spooled, slot);
next:
			skip
		}
	:: atomic {
			up && nempty(wire) && n < Q;
			wire ? what, pos;
			if
			:: what == HALF -> half = true
			:: what == COMMIT ->
				/* the spool is the stream: nothing left out, nothing twice */
				assert(half && pos > received && TXNS(received, pos) == (1 << pos));
				half = false; have = pos; received = pos;
				printf("capture: received %d\n", pos);
#ifdef CONFIRM_RECEIVED
				confirm(pos)
#endif
			:: what == KEEPALIVE ->
				printf("capture: keep-alive %d\n", pos);
#ifdef KEEPALIVE_CONFIRMS
				confirm(pos);
#endif
				heard = pos
			fi;
			what = 0; pos = 0
		}
	/* a keep-alive's position, when all that came before it is in the spool */
	:: atomic {
#ifdef KEEPALIVE_SKIPS
			heard > s[n].spooled && n < Q;
#else
			heard > s[n].spooled && n < Q && !half && have == 0;
#endif
			assert(TXNS(s[n].spooled, heard) == 0);
			local_commit();
			s[n].spooled = heard;
			received = (heard > received -> heard : received);
			heard = 0;
			if
			:: pending == 0 -> pending = s[n].spooled; pending_n = n
			:: else
			fi
		}
	/* into the spool: whole transactions */
#ifdef SPLIT_COMMIT
	:: atomic {
			(have > s[n].spooled || half) && n < Q;
			local_commit();
			s[n].half = half;
			s[n].spooled = (have > s[n].spooled -> have : s[n].spooled);
#else
	:: atomic {
			have > s[n].spooled && !half && n < Q;
			local_commit();
			s[n].spooled = have;
#endif
			printf("capture: spooled %d\n", s[n].spooled);
			have = 0;
			if
			:: pending == 0 -> pending = s[n].spooled; pending_n = n
			:: else
			fi;
#ifdef CONFIRM_COMMITTED
			pending_n = 0
#endif
		}
	/* GetFlushRecPtr() has passed the end of that commit */
	:: atomic { up && pending != 0 && pending_n == 0 -> confirm(pending); pending = 0 }
	/* all is flushed, and what came last was not remembered by itself */
	:: atomic { up && pending == 0 && n == 0 && slot < s[0].spooled -> pending = s[0].spooled }
	od
}

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
			s[n].spooled = 0; s[n].half = 0; s[n].applied = 0; s[n].rows = 0;
			n--;
			if
			:: pending_n > 0 -> pending_n--
			:: else
			fi;
			j = 0
		}
	od
}

/* transactions a + 1 .. b into the rows: each once, after all before it */
#define WRITE_ROWS(a, b) \
	assert(s[n].rows == TXNS(0, a)); \
	s[n].rows = s[n].rows | TXNS(a, b)

proctype apply()
{
	byte to;

end:	do
	:: atomic {
			n < Q && later == 0 && early == 0 && s[n].applied < s[n].spooled;
			/* up to a commit in the spool, or all of it: one snapshot for both */
			to = s[n].applied + 1;
			do
			:: to < s[n].spooled -> to++
			:: to == s[n].spooled || IS_TXN(to) -> break
			od;
#ifdef TWO_SNAPSHOTS
			if
			:: TXNS(s[n].applied, to) == 0 && to == s[n].spooled -> empty_until = to
			:: else
			fi;
		}
		atomic {
			n < Q;
			if
			:: empty_until != 0 -> to = s[n].spooled; empty_until = 0; early = 0;
				local_commit(); s[n].applied = to; to = 0; goto next
			:: to == 0 -> goto next
			:: else
			fi;
#endif
#ifdef POSITION_BEFORE
			early = to;
			local_commit();
			later = s[n].applied;
			s[n].applied = to;
#else
			local_commit();
			WRITE_ROWS(s[n].applied, to);
#ifdef POSITION_LATER
			later = to;
#else
			s[n].applied = to;
#endif
#endif
			printf("apply: %d\n", to);
next:
			to = 0
		}
#ifdef POSITION_BEFORE
	:: atomic { n < Q && early != 0 -> local_commit(); WRITE_ROWS(later, early); early = 0; later = 0 }
#endif
#ifdef POSITION_LATER
	:: atomic { n < Q && later != 0 -> local_commit(); s[n].applied = later; later = 0 }
#endif
	od
}

/* P5, P26: a position, then all up to it */
proctype drain()
{
	atomic { fence = tail };
end:
	atomic {
#ifdef IDLE_IS_DRAINED
		s[n].applied == s[n].spooled && have == 0 && !half && empty(wire) && later == 0 && early == 0;
#else
		s[n].applied >= fence;
#endif
		drained = true;
		assert(s[n].rows == TXNS(0, s[n].applied) && TXNS(s[n].applied, fence) == 0)
	}
}

proctype crash()
{
end:	do
	:: atomic { crashes > 0 && !failed ->
			crashes--;
			if
			:: printf("capture ends, its server lives on\n");
				disconnect(); pending = 0; pending_n = 0
			:: printf("apply ends, its server lives on\n");
				later = 0; early = 0
			:: printf("the source crashes\n");
				/* the slot is as some checkpoint has kept it */
				disconnect();
				do
				:: slot > 0 -> slot--
				:: break
				od
			:: printf("the target crashes: spooled %d -> %d\n", s[n].spooled, s[0].spooled);
				all_gone();
				do
				:: n > 0 -> s[n].spooled = 0; s[n].half = 0; s[n].applied = 0; s[n].rows = 0; n--
				:: n == 0 -> break
				od
#ifdef REWIND
			:: !drained ->
				printf("the target is restored from a backup: spooled %d -> %d\n", s[n].spooled, backup.spooled);
				all_gone();
				do
				:: n > 0 -> s[n].spooled = 0; s[n].half = 0; s[n].applied = 0; s[n].rows = 0; n--
				:: n == 0 -> break
				od;
				copy_state(s[0], backup);
				rewound = true
#endif
			fi
		}
#ifdef REWIND
	:: atomic { crashes > 0 && backup.spooled < s[0].spooled -> copy_state(backup, s[0]) }
#endif
	:: tail == P -> break
	od
}

/* nothing moves any more */
proctype end_of_run()
{
	timeout;
	assert(failed || (tail == P && s[n].applied == P && s[n].rows == TXNS(0, P) && n == 0));
	assert(failed || (slot == P && drained))
}

init
{
	atomic {
		run source(); run walsender(); run capture();
		run walwriter(); run apply(); run drain(); run crash(); run end_of_run()
	}
}
