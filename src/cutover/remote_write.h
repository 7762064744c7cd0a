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
	char	  **types;			/* as here, for casts */
	bool	   *is_key;
	bool	   *fixed;			/* GENERATED ALWAYS AS IDENTITY: never updated */
} MigrateRemoteTable;

/* a row of texts, NULL is null */
typedef char **MigrateRemoteRow;

/*
 * Statements for rows [from, to): every row is there afterwards as it is given,
 * or every key (all columns are key columns then) is not.
 */
extern char *migrate_remote_upsert(MigrateRemoteTable *table, MigrateRemoteRow *rows,
								   int from, int to);
extern char *migrate_remote_delete(MigrateRemoteTable *table, MigrateRemoteRow *rows,
								   int from, int to);

#endif							/* MIGRATE_REMOTE_WRITE_H */
