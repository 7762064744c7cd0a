/*-------------------------------------------------------------------------
 *
 * doubles.h
 *	  Target rows that share a key that should be unique (P10).
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_DOUBLES_H
#define MIGRATE_DOUBLES_H

#include "migrate.h"

/*
 * Leave one row under each key (columns: names, char *) among the rows that a
 * mapping owns.  In a transaction, SPI connected.
 */
extern void migrate_resolve_doubles(MigrateJob *job, int mapping_id, List *columns);

/*
 * Do other source rows map to the same target key (the key map's) as the
 * source row with this key (jsonb text)?  Writing that row would replace
 * theirs.  SPI connected.
 */
extern bool migrate_has_double(MigrateJob *job, MigrateMapping *map,
							   MigrateSource *src, const char *key);

/* in identity.c */
extern List *migrate_allow_deletes(Oid target);
extern void migrate_restore_deletes(List *changed);

#endif							/* MIGRATE_DOUBLES_H */
