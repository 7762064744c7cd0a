/*
 * limits.pml
 *	  The spool's limit: capture stops reading when too much is still to be
 *	  applied, and must go on when it is (P19).
 *
 * Source transactions are 1 or BIG units; a row of the spool is closed at a
 * commit, or after each unit; segments are sealed when they are full.  What a
 * job has before it counts by whole segments.  While capture does not read, it
 * hears no keep-alives, so that nothing moves the stream's position.
 *
 * check: -DLIMIT=1 : transactions larger than the limit
 * check: -DLIMIT=1 -DSEGMENT=3 : segments larger than the limit
 * check: -DLIMIT=4 : several segments within the limit
 * ends: -DLIMIT=2
 * mutant: -DLIMIT=1 -DNO_P19 : P19: reading stops within a transaction
 * mutant: -DLIMIT=1 -DSEGMENT=3 -DLAST_ROW_AHEAD : apply's place stays at the row that it has applied to its end
 * mutant: -DLIMIT=1 -DSEGMENT=3 -DCOUNT_ALL : what is applied, but not dropped, counts
 * mutant: -DLIMIT=2 -DEARLY_DROP : a segment is dropped that a job has not passed
 */
#ifndef SEGMENT
#define SEGMENT	1				/* units after which a segment is full */
#endif
#define N		3				/* transactions */
#define BIG		3
#define ROWS	10				/* at most */

byte left = N;					/* transactions that the source still makes */
byte unit;						/* of the transaction being received */
byte size;						/* of it; 0: none */
byte rows;						/* in the spool, committed ones: 1 .. rows */
byte open_rows;					/* of the transaction being received */
byte segment_of[ROWS];			/* by row */
bool ends_in[ROWS];				/* a commit ends the row */
byte segment;					/* the one being written */
byte units;						/* in it */
byte bytes[ROWS];				/* by segment */
byte dropped;					/* segments below are gone */
byte next_row[2];				/* each job's next */
byte place[2];					/* what it says of that: apply_position.next_seq */
byte applied[2];				/* transactions */
bool is_full;

byte j, m, sum;

#define LEAST	(place[0] < place[1] -> place[0] : place[1])

/* migrate_spool_pending */
inline judge()
{
	m = LEAST;
	sum = 0;
	j = dropped;
	do
	:: j <= segment ->
#ifdef COUNT_ALL
		sum = sum + bytes[j];
#else
		/* it holds a row that somebody has before him; all applied: nothing counts */
		if
		:: m < rows + open_rows && (j == segment || segment_of[m] <= j) -> sum = sum + bytes[j]
		:: else
		fi;
#endif
		j++
	:: else -> break
	od;
	is_full = sum > LIMIT;
	j = 0; m = 0; sum = 0
}

proctype capture()
{
end:	do
	/* a unit arrives and is a row */
	:: atomic {
#ifdef NO_P19
			!is_full && (left > 0 || size > 0);
#else
			(!is_full || size > 0) && (left > 0 || size > 0);
#endif
			if
			:: size == 0 -> left--; unit = 0;
				if
				:: size = 1
				:: size = BIG
				fi
			:: else
			fi;
			if
			:: units >= SEGMENT -> segment++; units = 0
			:: else
			fi;
			segment_of[rows + open_rows] = segment;
			units++;
			bytes[segment]++;
			open_rows++;
			unit++;
#ifdef NO_P19
			judge();
#endif
			if
			:: unit == size ->
				ends_in[rows + open_rows - 1] = true;
				rows = rows + open_rows;
				open_rows = 0; size = 0; unit = 0;
				judge();
				printf("capture: row %d, segment %d, is_full %d\n", rows, segment, is_full)
			:: else
			fi
		}
	/* look_at_jobs: drop what all have passed, look at the limit again */
	:: atomic {
			size == 0 && dropped < segment &&
#ifdef EARLY_DROP
			segment_of[place[0]] > dropped;
#else
			(LEAST >= rows || segment_of[LEAST] > dropped);
#endif
			printf("capture: drops segment %d\n", dropped);
			dropped++;
			judge()
		}
	od
}

proctype apply(byte me)
{
	byte to;

end:	do
	/* up to the next commit in the spool */
	:: atomic {
			next_row[me] < rows;
			to = next_row[me];
			do
			:: !ends_in[to] -> to++
			:: else -> break
			od;
			assert(segment_of[next_row[me]] >= dropped);
			applied[me]++;
			next_row[me] = to + 1;
#ifdef LAST_ROW_AHEAD
			place[me] = to;
#else
			place[me] = to + 1;
#endif
			printf("apply %d: up to row %d\n", me, to);
			/* capture looks again when it is woken, and from time to time */
			judge();
			to = 0
		}
	od
}

/* nothing moves any more */
proctype end_of_run()
{
	timeout;
	assert(left == 0 && size == 0 && applied[0] == N && applied[1] == N)
}

init
{
	atomic { run capture(); run apply(0); run apply(1); run end_of_run() }
}
