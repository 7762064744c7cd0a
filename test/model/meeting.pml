/*
 * meeting.pml
 *	  The meeting of copy and stream: publication, slot and waits (P3), chunks
 *	  at different snapshots (P4, P5), rows seen twice or not at all (P10),
 *	  tables without a key (P16), then the stream over it.
 *
 * The source's WAL is the log of its commits.  A transaction changes one row:
 * it is open (the row is locked, the publication of that moment decides whether
 * the stream will have the change), then its commit is in the log (inserted),
 * then flushed and seen by new snapshots, in either order.  A crash of the
 * source takes back what is not flushed, and what is open.
 *
 * Rows have a key and a place: chunk 0 or 1 reads what its snapshot sees at its
 * place, and an update may move a row.  Values are the number of the commit that
 * wrote them; 0: no such row.  With BAG the table has no key: a commit adds a
 * row, and one chunk counts them.
 *
 * check: : three commits
 * check: -DN=2 -DCRASHES=1 : two commits and a crash of the source
 * check: -DJOIN -DN=2 : a table joins a stream that runs (P3)
 * check: -DBAG -DCRASHES=1 : a table without a key (P16)
 * ends: -DN=2
 * mutant: -DNO_LATE_WAIT -DN=2 : late visibility: chunks are read while a commit from before the slot is not seen
 * mutant: -DSLOT_FIRST -DNO_LATE_WAIT -DEARLY_SEEN -DN=2 : P3: first the slot, then the publication
 * mutant: -DJOIN -DNO_LATE_WAIT -DN=2 : P3: a table that joins is read while older transactions are open
 * mutant: -DNO_P4 -DCRASHES=1 -DN=2 : P4: a chunk commits here what is not durable on the source
 * mutant: -DP5_FLUSH : P5: the flush position for the insert position
 * mutant: -DP5_BEFORE : P5: a position read before the snapshot
 * mutant: -DP5_FIRST : P5: the position of the first chunk
 * mutant: -DNO_P10 -DN=2 : P10: both copies of a moved row stay
 * mutant: -DBEGIN_LATE : apply begins at the consistent position, not at the slot's
 * mutant: -DUPDATE_ONLY : an update whose row is not there is left out
 * mutant: -DBAG -DP16_NONE : P16: the chunk's own changes are applied again
 * mutant: -DBAG -DP16_POSITION : P16: told apart by position, not by transaction
 */
#ifndef N
#define N		3				/* commits */
#endif
#ifndef CRASHES
#define CRASHES	0				/* of the source */
#endif
#ifdef EARLY_SEEN
#undef EARLY_SEEN
#define EARLY_SEEN true
#else
#define EARLY_SEEN false
#endif
#define NK		2				/* keys */
#define NC		2				/* chunks */
#define W		2				/* transactions open at once */

typedef Commit
{
	byte k;
	byte v;						/* 0: delete */
	byte place;
	bool there;					/* an update or delete: the row was there before */
	bool published
};

/* the source */
Commit log[N];
byte inserted;
byte flushed;
byte seen;						/* bit i: snapshots see commit i */
byte src_v[NK], src_place[NK];	/* what a new snapshot reads */
bool locked[NK];
byte epoch;						/* crashes so far */
byte writer[W];					/* 0 idle, 1 open, 2 + i: commit i, not seen yet */
Commit change[W];
bool published;
byte wait_slot, wait_late;		/* bit w: still waited for */
bool ready;						/* chunks may be read */
byte start;						/* the stream begins behind so many commits */

/* the target */
byte copy_v[NK * NC];			/* what each chunk brought */
byte tgt_v[NK];
byte bag, bag_seen;				/* rows; the commits that they contain */
byte done;						/* chunks */
byte consistent;				/* P5 */
byte applied;
byte ref_v[NK], ref_bag;		/* the source at the applied position */
bool built;						/* the key */

byte j;

#define ALL(n)		((1 << (n)) - 1)
#ifdef BAG
#define CHECK		assert(applied < consistent || bag == ref_bag)
#else
#define CHECK		assert(applied < consistent || (tgt_v[0] == ref_v[0] && tgt_v[1] == ref_v[1]))
#endif

inline become_seen(w)
{
	j = writer[w] - 2;
	src_v[log[j].k] = log[j].v;
	src_place[log[j].k] = log[j].place;
	locked[log[j].k] = false;
	seen = seen | (1 << j);
	writer[w] = 0;
	change[w].k = 0; change[w].v = 0; change[w].place = 0;
	change[w].there = 0; change[w].published = 0;
	wait_slot = wait_slot & ~(1 << w);
	wait_late = wait_late & ~(1 << w);
	printf("source: commit %d is seen\n", j);
	j = 0
}

inline open_now(set)
{
	set = (writer[0] != 0) | ((writer[1] != 0) << 1)
}

inline commit(w)
{
	log[inserted].k = change[w].k;
	log[inserted].v = (change[w].v -> inserted + 2 : 0);
	log[inserted].place = change[w].place;
	log[inserted].there = change[w].there;
	log[inserted].published = change[w].published;
	writer[w] = 2 + inserted;
	printf("source: transaction %d is commit %d\n", w, inserted);
	inserted++;
	if
	:: EARLY_SEEN || built -> become_seen(w)
	:: else
	fi
}

proctype source()
{
	byte w, k;

	do
	/* a transaction changes a row */
	:: atomic {
			inserted + (writer[0] == 1) + (writer[1] == 1) < N &&
			(writer[0] == 0 || writer[1] == 0) && (!locked[0] || !locked[1]);
			if
			:: writer[0] == 0 -> w = 0
			:: writer[0] != 0 -> w = 1
			fi;
			if
			:: !locked[0] -> k = 0
			:: !locked[1] -> k = 1
			fi;
			writer[w] = 1;
			locked[k] = true;
			change[w].k = k;
			change[w].published = published;
			change[w].there = src_v[k] != 0;
#ifndef BAG
			if
			:: change[w].v = 1; change[w].place = 0
			:: change[w].v = 1; change[w].place = 1
			:: src_v[k] != 0 -> change[w].v = 0
			fi;
#endif
			printf("source: transaction %d writes key %d, place %d, %d\n", w, k, change[w].place, change[w].v);
			/* open transactions matter to the slot and the waits alone */
			if
			:: ready -> commit(w)
			:: else
			fi;
			w = 0; k = 0
		}
	/* its commit is in the log */
	:: atomic {
			writer[0] == 1 || writer[1] == 1;
			if
			:: writer[0] == 1 -> w = 0
			:: writer[1] == 1 -> w = 1
			fi;
			commit(w);
			w = 0
		}
	/* snapshots see it */
	:: atomic { writer[0] > 1 -> become_seen(0) }
	:: atomic { writer[1] > 1 -> become_seen(1) }
	:: atomic {
			flushed < inserted;
			flushed = (built -> inserted : flushed + 1);
			printf("source: flushed %d\n", flushed)
		}
	/* a crash takes back what is not flushed; the rest is seen then */
	:: atomic {
			epoch < CRASHES && flushed < inserted;
			epoch++;
			printf("source: crash, %d of %d commits are left\n", flushed, inserted);
			j = flushed;
			do
			:: j < inserted ->
				log[j].k = 0; log[j].v = 0; log[j].place = 0;
				log[j].there = 0; log[j].published = 0;
				j++
			:: else -> break
			od;
			inserted = flushed;
			j = 0;
			do
			:: j < W ->
				writer[j] = 0;
				change[j].k = 0; change[j].v = 0; change[j].place = 0;
				change[j].there = 0; change[j].published = 0;
				j++
			:: else -> break
			od;
			seen = ALL(inserted);
			src_v[0] = 1; src_place[0] = 0; src_v[1] = 0; src_place[1] = 0;
			j = 0;
			do
			:: j < inserted ->
				src_v[log[j].k] = log[j].v; src_place[log[j].k] = log[j].place;
				j++
			:: else -> break
			od;
			locked[0] = false; locked[1] = false;
			wait_slot = 0; wait_late = 0;
			j = 0
		}
	:: inserted == N && flushed == N && seen == ALL(N) -> break
	od
}

/* migrate_stream_prepare */
proctype prepare()
{
#ifdef JOIN
	/* the stream runs since before the first commit */
	atomic { published = true; open_now(wait_late) };
#else
#ifndef SLOT_FIRST
	published = true;
#endif
	/* the server waits for what was open, then the stream begins here */
	atomic { open_now(wait_slot) };
	atomic {
		wait_slot == 0;
		start = inserted; flushed = inserted;
		printf("slot: the stream begins behind commit %d\n", start);
#ifdef SLOT_FIRST
	}
	atomic {
		published = true;
#endif
		open_now(wait_late)
	};
#endif
#ifndef NO_LATE_WAIT
	wait_late == 0;
#endif
	atomic {
		j = 0;
		do
		:: j < start -> ref_v[log[j].k] = log[j].v; ref_bag++; j++
		:: else -> break
		od;
		j = 0;
		applied = start;
		ready = true;
		printf("chunks may be read\n")
	}
}

/* migrate_chunk_load, of one chunk; a lost connection: from the start */
proctype loader(byte c)
{
	byte v0, v1, pos, e, mask, at;

	ready;
again:
#ifdef P5_BEFORE
	at = inserted;
#endif
	atomic {
		v0 = (src_place[0] == c -> src_v[0] : 0);
		v1 = (src_place[1] == c -> src_v[1] : 0);
		mask = seen; pos = inserted; e = epoch;
		printf("chunk %d: reads %d and %d, insert position %d\n", c, v0, v1, pos);
#ifdef P5_FLUSH
		at = flushed
#endif
#if !defined(P5_FLUSH) && !defined(P5_BEFORE)
		at = pos
#endif
	};
	atomic {
#ifndef NO_P4
		if
		:: flushed >= pos && epoch == e
		:: epoch != e -> goto again
		fi;
#endif
		copy_v[2 * c] = v0;
		copy_v[2 * c + 1] = v1;
		bag_seen = mask;
		bag = ((mask >> 0) & 1) + ((mask >> 1) & 1) + ((mask >> 2) & 1);
#ifdef P5_FIRST
		if
		:: done == 0 -> consistent = at
		:: else
		fi;
#else
		consistent = (at > consistent -> at : consistent);
#endif
		done++;
		printf("chunk %d: done\n", c);
		v0 = 0; v1 = 0; pos = 0; e = 0; mask = 0; at = 0
	}
}

/* migrate_resolve_doubles, a key at a time */
proctype keys()
{
	byte k, v, pos, e;

	done == NC;
	do
	:: k < NK ->
		if
		:: copy_v[k] == 0 || copy_v[2 + k] == 0 -> tgt_v[k] = copy_v[k] + copy_v[2 + k]
		:: copy_v[k] != 0 && copy_v[2 + k] != 0 ->
#ifdef NO_P10
			/* the stream's next image reaches one of them */
			tgt_v[k] = 99;
#else
again:
			/* the row as it is now; if it is no more, one of them */
			atomic {
				if
				:: src_v[k] != 0 -> v = src_v[k]
				:: src_v[k] == 0 -> v = copy_v[k]
				:: src_v[k] == 0 -> v = copy_v[2 + k]
				fi;
				pos = inserted; e = epoch;
				printf("key %d: twice, now %d\n", k, v)
			};
			atomic {
				if
				:: flushed >= pos && epoch == e
				:: epoch != e -> goto again
				fi;
				tgt_v[k] = v;
				consistent = (pos > consistent -> pos : consistent);
				v = 0; pos = 0; e = 0
			}
#endif
		fi;
		k++
	:: k == NK -> break
	od;
	atomic { k = 0; built = true; CHECK }
}

proctype apply()
{
	byte k;

	do
	:: atomic {
			/* what it does depends on the log alone: it may as well begin late */
			built && applied < N && flushed == N;
			k = log[applied].k;
			if
			:: log[applied].published ->
#ifdef NO_P10
				if
				:: tgt_v[k] != 99 -> tgt_v[k] = log[applied].v
				:: else
				fi;
#else
				if
#ifdef BEGIN_LATE
				:: applied < consistent
#endif
#ifdef UPDATE_ONLY
				:: log[applied].there && tgt_v[k] == 0
#endif
				:: else -> tgt_v[k] = log[applied].v
				fi;
#endif
				if
#ifdef P16_POSITION
				:: applied < consistent
#endif
#if !defined(P16_POSITION) && !defined(P16_NONE)
				:: (bag_seen >> applied) & 1
#endif
				:: else -> bag++
				fi
			:: else
			fi;
			ref_v[k] = log[applied].v;
			ref_bag++;
			applied++;
			printf("apply: commit %d, rows %d %d (%d %d)\n", applied - 1, tgt_v[0], tgt_v[1], ref_v[0], ref_v[1]);
			k = 0;
			CHECK
		}
	:: applied == N -> break
	od
}

/* nothing moves any more */
proctype end_of_run()
{
	timeout;
	assert(ready && built && applied == N && inserted == N && consistent <= applied);
	CHECK
}

init
{
	atomic {
		src_v[0] = 1; ref_v[0] = 1;
		run source(); run prepare();
#ifdef BAG
		done = 1;
		run loader(0);
#else
		run loader(0); run loader(1);
#endif
		run keys(); run apply(); run end_of_run()
	}
}
