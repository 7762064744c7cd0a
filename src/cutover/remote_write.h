/*-------------------------------------------------------------------------
 *
 * remote_write.h
 *	  Rows into a table of the source, by idempotent statements.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_REMOTE_WRITE_H
#define MIGRATE_REMOTE_WRITE_H

#include "migrate.h"

/* a table of the source, as it is written to */
typedef struct MigrateRemoteTable
{
	char	   *name;			/* quoted and qualified */
	int			ncolumns;
	char	  **columns;		/* quoted, those that are given */
	bool	   *is_key;
	bool	   *fixed;			/* GENERATED ALWAYS AS IDENTITY: never updated */
	char	  **types;			/* as there, without length: a cast must not
								 * cut */

	bool		arrays;			/* values of each can be elements of an array */

	/* for rows that are written anew */
	int			nkept;			/* quoted, those that are not given */
	char	  **kept;
	bool		anew;			/* deleting a row takes no other with it */
} MigrateRemoteTable;

/* a row of texts, NULL is null */
typedef char **MigrateRemoteRow;

/*
 * Statements for rows [from, to): every row is there afterwards as it is given,
 * or no row with its key is.
 */
extern char *migrate_remote_upsert(MigrateRemoteTable *table, MigrateRemoteRow *rows,
								   int from, int to);
extern char *migrate_remote_delete(MigrateRemoteTable *table, MigrateRemoteRow *rows,
								   int from, int to);

/*
 * The same where the rows come as parameters, an array a column, which is much
 * less for the source to read: only if table->arrays.
 */
extern char *migrate_remote_upsert_arrays(MigrateRemoteTable *table);
extern char *migrate_remote_delete_arrays(MigrateRemoteTable *table);
extern const char **migrate_remote_arrays(MigrateRemoteTable *table, MigrateRemoteRow *rows,
										  int n);

/*
 * As upsert, but all that is there of these keys is deleted before the first is
 * written, so that values which must be unique may change places.
 */
extern char *migrate_remote_anew(MigrateRemoteTable *table, MigrateRemoteRow *rows,
								 int from, int to);

#endif							/* MIGRATE_REMOTE_WRITE_H */
