/*-------------------------------------------------------------------------
 *
 * cutover_writer.c
 *	  A client of bench/cutover: writes at a steady rate where it may, and
 *	  notes when what was acknowledged.
 *
 *	  cutover_writer SOURCE TARGET RATE TABLES ROWS SEED LOG
 *
 * Keeps a session on each side (conninfo strings), both opened at the start.  A
 * transaction changes a row of one of the tables item_1 to item_TABLES, each of
 * which began with ROWS rows, and adds one to another: four statements, each
 * answered before the next.  Refused with SQLSTATE 25006 it is rolled back and
 * tried on the other side RETRY_US later.  What could not be done in time is
 * not caught up with.
 *
 * SIGTERM ends it after the current transaction.  LOG: a line a transaction,
 * its side and the microseconds of the monotonic clock at its acknowledgement;
 * written at the end, so that no file is in the way.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "libpq-fe.h"

/* between a refusal and the try on the other side */
#define RETRY_US 5000

typedef struct Entry
{
	int			side;
	int64_t		at;
} Entry;

static const char *const side_name[] = {"source", "target"};
static volatile sig_atomic_t stop = 0;

static void
on_term(int signo)
{
	(void) signo;
	stop = 1;
}

static int64_t
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void
sleep_until(int64_t at)
{
	int64_t		us;

	while (!stop && (us = at - now_us()) > 0)
	{
		struct timespec t = {us / 1000000, us % 1000000 * 1000};

		nanosleep(&t, NULL);
	}
}

/* 1: done; 0: refused, with SQLSTATE 25006.  Anything else ends us. */
static int
ask(PGconn *conn, const char *sql)
{
	PGresult   *res = PQexec(conn, sql);
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	int			done = PQresultStatus(res) == PGRES_COMMAND_OK;

	if (!done && (state == NULL || strcmp(state, "25006") != 0))
	{
		fprintf(stderr, "cutover_writer: %s: %s", sql, PQerrorMessage(conn));
		exit(1);
	}
	PQclear(res);
	return done;
}

static int
transaction(PGconn *conn, int tables, int rows)
{
	char		update[200];
	char		insert[200];

	snprintf(update, sizeof(update), "UPDATE item_%d SET amount = amount + %d WHERE id = %d",
			 1 + (int) (random() % tables), (int) (random() % 100), 1 + (int) (random() % rows));
	snprintf(insert, sizeof(insert), "INSERT INTO item_%d (amount, filler) VALUES (1, 'written')",
			 1 + (int) (random() % tables));
	(void) ask(conn, "BEGIN");
	if (ask(conn, update) && ask(conn, insert))
		return ask(conn, "COMMIT");
	(void) ask(conn, "ROLLBACK");
	return 0;
}

int
main(int argc, char **argv)
{
	PGconn	   *conn[2];
	Entry	   *log = NULL;
	size_t		n = 0,
				size = 0;
	int64_t		interval,
				next;
	int			tables,
				rows,
				side = 0;
	FILE	   *f;

	if (argc != 8)
	{
		fprintf(stderr, "usage: cutover_writer SOURCE TARGET RATE TABLES ROWS SEED LOG\n");
		return 2;
	}
	signal(SIGTERM, on_term);
	for (int i = 0; i < 2; i++)
	{
		conn[i] = PQconnectdb(argv[1 + i]);
		if (PQstatus(conn[i]) != CONNECTION_OK)
		{
			fprintf(stderr, "cutover_writer: %s", PQerrorMessage(conn[i]));
			return 1;
		}
	}
	interval = (int64_t) (1000000 / atof(argv[3]));
	tables = atoi(argv[4]);
	rows = atoi(argv[5]);
	srandom((unsigned) atoi(argv[6]));
	/* not all of them at the same moment */
	next = now_us() + random() % interval;
	while (!stop)
	{
		sleep_until(next);
		if (stop)
			break;
		if (!transaction(conn[side], tables, rows))
		{
			side = 1 - side;
			next = now_us() + RETRY_US;
			continue;
		}
		if (n == size)
		{
			size = size ? 2 * size : 1024;
			log = realloc(log, size * sizeof(Entry));
			if (log == NULL)
				return 1;
		}
		log[n].side = side;
		log[n++].at = now_us();
		next += interval;
		if (next < now_us())
			next = now_us();
	}
	f = fopen(argv[7], "w");
	if (f == NULL)
		return 1;
	for (size_t i = 0; i < n; i++)
		fprintf(f, "%s %" PRId64 "\n", side_name[log[i].side], log[i].at);
	return fclose(f) == 0 ? 0 : 1;
}
