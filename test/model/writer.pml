/*
 * writer.pml
 *	  After the copy: apply, and whoever else writes to the targets (replay,
 *	  repair, the re-check of P9), with rows fetched from the source.
 *
 * One source, whose commits are a log; a commit is in the log (inserted), then
 * flushed, and seen by new snapshots, in either order; a crash of the source
 * takes back what is not flushed.  One target; apply brings the log's flushed
 * entries in batches, fetching a row where a message lacks a value (unchanged
 * TOAST) and the row is not there; replay fetches a row and writes it.
 *
 * A row is two columns, v and t; t is the large one that messages leave out.
 * Values are the number of the commit that wrote them; v = 0: no such row.
 *
 * check: : one replay, one dead letter of apply, a crash of the source
 * check: -DREPLAYS=2 -DREFUSALS=0 -DCRASHES=0 : two replays
 * check: -DOLD_SNAPSHOT -DREFUSALS=0 -DCRASHES=0 : a snapshot older than the lock does no harm when it is checked
 * ends: -DN=2
 * mutant: -DNO_P14 : P14: replay writes without the writer lock
 * mutant: -DNO_P4_REPLAY : P4: replay commits what is not durable on the source
 * mutant: -DNO_P4_APPLY : P4: apply commits a fetched row that is not durable on the source
 * mutant: -DNO_CHECK_REPLAY : late visibility: replay's snapshot does not see all that is applied
 * mutant: -DNO_CHECK_APPLY : late visibility: apply fetches by a snapshot that does not see the batch
 * mutant: -DNO_CHECK_REPLAY -DOLD_SNAPSHOT -DNOT_LATE : the snapshot was taken before the writer lock
 * mutant: -DSTALE_TOAST : an unchanged value is left in a row whose newer image is a dead letter
 * mutant: -DCARRY_AHEAD : a key change takes the unchanged value of a row that was fetched ahead
 * mutant: -DNO_P24 : P24: a row fetched ahead is taken for one of the applied position
 */
#ifndef N
#define N		3				/* commits */
#endif
#ifndef CRASHES
#define CRASHES	1				/* of the source */
#endif
#ifndef REPLAYS
#define REPLAYS	1
#endif
#ifndef REFUSALS
#define REFUSALS 1
#endif
#define NK		2				/* keys */
#define NONE	NK

typedef Commit
{
	byte gone;					/* key that ends, or NONE */
	byte img;					/* key that is written, or NONE */
	byte v;
	byte t;
	bool u						/* the message does not hold t */
};

/* the source */
Commit log[N];
byte inserted;
byte flushed;
byte seen;						/* bit i: snapshots see commit i */
byte src_v[NK], src_t[NK];			/* what a new snapshot reads */
bool locked[NK];				/* by a transaction that is not seen yet */
byte epoch;						/* crashes so far */

/* the target, as committed */
byte tgt_v[NK], tgt_t[NK];
bool letter[NK];				/* an open dead letter */
byte applied;
byte fpos[NK];					/* the insert position after the key's last fetch */
bool wlock;						/* the writer lock */
byte refusals = REFUSALS;		/* rows that apply still makes dead letters of */
byte replays = REPLAYS;

/* the source at the applied position */
byte ref_v[NK], ref_t[NK];

byte j;							/* scratch, within d_step only */

#define ALL(n)		((1 << (n)) - 1)
#define SEES(m, n)	(((m) & ALL(n)) == ALL(n))

/* convergence (invariant 5): but for open dead letters and rows fetched ahead */
#ifdef NO_P24
#define AHEAD(k)	false
#else
#define AHEAD(k)	(applied < fpos[k])
#endif
#define SAME(k)		(letter[k] || AHEAD(k) || (tgt_v[k] == ref_v[k] && (ref_v[k] == 0 || tgt_t[k] == ref_t[k])))
#define CHECK		assert(SAME(0) && SAME(1))

/* what commit i does to the rows a, b: of the source as seen, or as applied */
#define EFFECT(i, a, b) \
	if \
	:: log[i].gone != NONE -> a[log[i].gone] = 0; b[log[i].gone] = 0 \
	:: else \
	fi; \
	if \
	:: log[i].img != NONE -> a[log[i].img] = log[i].v; b[log[i].img] = log[i].t \
	:: else \
	fi

inline commit(g, m, vv, t0, uu)
{
	log[inserted].gone = g;
	log[inserted].img = m;
	log[inserted].v = vv;
	log[inserted].t = t0;
	log[inserted].u = uu;
	if
	:: g != NONE -> locked[g] = true
	:: else
	fi;
	if
	:: m != NONE -> locked[m] = true
	:: else
	fi;
	printf("source: commit %d: key %d ends, key %d is v %d, t %d, unchanged %d (%d: none)\n", inserted, g, m, vv, t0, uu, NONE);
	inserted++
}

inline become_seen(i)
{
	EFFECT(i, src_v, src_t);
	if
	:: log[i].gone != NONE -> locked[log[i].gone] = false
	:: else
	fi;
	if
	:: log[i].img != NONE -> locked[log[i].img] = false
	:: else
	fi;
	seen = seen | (1 << i);
	printf("source: commit %d is seen\n", i)
}

proctype source()
{
	byte k, i;

	do
	:: atomic {
			inserted < N && (!locked[0] || !locked[1]);
			if
			:: !locked[0] -> k = 0
			:: !locked[1] -> k = 1
			fi;
			if
			:: src_v[k] == 0 -> commit(NONE, k, inserted + 2, inserted + 2, false)
			:: src_v[k] != 0 -> commit(NONE, k, inserted + 2, src_t[k], true)
			:: src_v[k] != 0 -> commit(NONE, k, inserted + 2, inserted + 2, false)
			:: src_v[k] != 0 -> commit(k, NONE, 0, 0, false)
			:: src_v[k] != 0 && src_v[1 - k] == 0 && !locked[1 - k] ->
				commit(k, 1 - k, inserted + 2, src_t[k], true)
			fi;
#ifdef NOT_LATE
			i = inserted - 1;
			become_seen(i);
#endif
			k = 0; i = 0
		}
	:: atomic {
			seen != ALL(inserted);
			if
			:: inserted > 0 && !(seen & 1) -> i = 0
			:: inserted > 1 && !(seen & 2) -> i = 1
			:: inserted > 2 && !(seen & 4) -> i = 2
			:: inserted > 3 && !(seen & 8) -> i = 3
			fi;
			become_seen(i);
			i = 0
		}
	:: atomic { flushed < inserted -> flushed++ }
	:: d_step {
			/* a crash takes back what is not flushed; the rest is seen then */
			epoch < CRASHES && flushed < inserted;
			epoch++;
			printf("source: crash, %d of %d commits are left\n", flushed, inserted);
			j = flushed;
			do
			:: j < inserted ->
				log[j].gone = 0; log[j].img = 0; log[j].v = 0; log[j].t = 0; log[j].u = 0;
				j++
			:: else -> break
			od;
			inserted = flushed;
			seen = 0;
			src_v[0] = 1; src_t[0] = 1; src_v[1] = 0; src_t[1] = 0;
			j = 0;
			do
			:: j < inserted -> EFFECT(j, src_v, src_t); seen = seen | (1 << j); j++
			:: else -> break
			od;
			locked[0] = false; locked[1] = false;
			j = 0
		}
	:: inserted == N && flushed == N && seen == ALL(N) -> break
	od
}

proctype apply()
{
	byte i, to, k, fl, fe;
	byte wv[NK], wt[NK], wf[NK];
	bool wl[NK], touched[NK], need;

	do
	/* one local transaction; others only come in between where it waits */
	:: atomic {
			applied < flushed && !wlock;
			wlock = true;		/* migrate_writer_lock */
			i = applied;
			if
			:: to = applied + 1
			:: applied + 2 <= flushed -> to = applied + 2
			fi;
			j = 0;
			do
			:: j < NK ->
				wv[j] = tgt_v[j]; wt[j] = tgt_t[j]; wl[j] = letter[j]; wf[j] = fpos[j];
				j++
			:: else -> break
			od;
			j = 0;
			do
			:: i < to ->
				d_step {
					need = false;
					k = log[i].img;
					j = NONE;
					if
					:: k != NONE && log[i].u ->
						/* the row that has the value, by its old key if that ended */
						j = (log[i].gone != NONE -> log[i].gone : k);
						need = (wv[j] == 0);
#ifndef STALE_TOAST
						need = (need || wl[j]);
#endif
#ifndef CARRY_AHEAD
						/* what was fetched ahead may be another row of that key */
						need = (need || (j != k && wf[j] > i));
#endif
					:: else
					fi;
					if
					:: k != NONE && !need ->
						wt[k] = (log[i].u -> wt[j] : log[i].t);
						wv[k] = log[i].v;
						wl[k] = false;
						touched[k] = true
					:: else
					fi;
					if
					:: log[i].gone != NONE ->
						wv[log[i].gone] = 0; wt[log[i].gone] = 0;
						wl[log[i].gone] = false;
						touched[log[i].gone] = true
					:: else
					fi;
					j = 0
				};
				if
				:: need ->
again:
#ifndef NO_CHECK_APPLY
					SEES(seen, to);
#endif
					wv[k] = src_v[k]; wt[k] = src_t[k]; fl = inserted; fe = epoch;
					printf("apply: fetches key %d: v %d, t %d\n", k, wv[k], wt[k]);
#ifndef NO_P4_APPLY
					/* migrate_source_wait_durable; a lost connection: once more */
					if
					:: flushed >= fl && epoch == fe
					:: epoch != fe -> goto again
					fi;
#endif
					/* not found: a delete follows */
					d_step {
						wl[k] = false; wf[k] = fl; touched[k] = true;
						fl = 0; fe = 0; need = false
					}
				:: !need && k != NONE && refusals > 0 ->
					/* the row's own fault: a dead letter; what is there stays, or goes */
					refusals--;
					printf("apply: key %d is a dead letter\n", k);
					wl[k] = true;
					if
					:: wv[k] = 0; wt[k] = 0
					:: wv[k] = tgt_v[k]; wt[k] = tgt_t[k]
					fi
				:: !need
				fi;
				i++
			:: else -> break
			od;
			/* commit: rows, letters and position */
			j = 0;
			do
			:: j < NK ->
				if
				:: touched[j] ->
					tgt_v[j] = wv[j]; tgt_t[j] = wt[j]; letter[j] = wl[j]; fpos[j] = wf[j]
				:: else
				fi;
				wv[j] = 0; wt[j] = 0; wl[j] = 0; wf[j] = 0; touched[j] = 0;
				j++
			:: else -> break
			od;
			do
			:: applied < to -> EFFECT(applied, ref_v, ref_t); applied++
			:: else -> break
			od;
			printf("apply: up to commit %d: %d/%d, %d/%d (source %d/%d, %d/%d)\n", applied - 1,
				tgt_v[0], tgt_t[0], tgt_v[1], tgt_t[1], ref_v[0], ref_t[0], ref_v[1], ref_t[1]);
			j = 0; i = 0; to = 0; k = 0;
			wlock = false;
			CHECK
		}
	:: applied == N -> break
	od
}

proctype replay()
{
	byte k, fv, ft, fl, fe, mask;

	do
	:: atomic {
			replays > 0;
			if
			:: k = 0
			:: k = 1
			fi;
#ifdef OLD_SNAPSHOT
			fv = src_v[k]; ft = src_t[k]; fl = inserted; fe = epoch;
			printf("replay: fetches key %d: v %d, t %d\n", k, fv, ft);
			mask = seen
		};
		atomic {
#endif
#ifndef NO_P14
			!wlock;
			wlock = true;
#endif
#ifdef OLD_SNAPSHOT
			if
#ifdef NO_CHECK_REPLAY
			:: true
#else
			:: SEES(mask, applied)
			:: !SEES(mask, applied) -> goto next	/* an error, nothing is written */
#endif
			fi;
#else
again:
#ifndef NO_CHECK_REPLAY
			SEES(seen, applied);
#endif
			fv = src_v[k]; ft = src_t[k]; fl = inserted; fe = epoch;
			printf("replay: fetches key %d: v %d, t %d\n", k, fv, ft)
		};
		atomic {
#endif
#ifndef NO_P4_REPLAY
			if
			:: flushed >= fl && epoch == fe
#ifdef OLD_SNAPSHOT
			:: epoch != fe -> goto next
#else
			:: epoch != fe -> goto again
#endif
			fi;
#endif
			/* not found: superseded; nothing is written */
			if
			:: fv != 0 -> tgt_v[k] = fv; tgt_t[k] = ft
			:: else
			fi;
			printf("replay: writes key %d: v %d, t %d\n", k, tgt_v[k], tgt_t[k]);
			letter[k] = false;
			fpos[k] = fl;
			CHECK;
next:
			replays--;
#ifndef NO_P14
			wlock = false;
#endif
			k = 0; fv = 0; ft = 0; fl = 0; fe = 0; mask = 0
		}
	:: replays == 0 -> break
	od
}

/* nothing moves any more: all is applied and equal, but for open dead letters */
proctype end_of_run()
{
	timeout;
	assert(applied == N && inserted == N && !wlock);
	CHECK
}

init
{
	atomic {
		src_v[0] = 1; src_t[0] = 1;
		ref_v[0] = 1; ref_t[0] = 1;
		/* the copy could not write key 0: it has an open dead letter */
		letter[0] = true;
		run source(); run apply(); run replay(); run end_of_run()
	}
}
