/*-------------------------------------------------------------------------
 *
 * external.h
 *	  A source that the DBA fences by his own means; see external.c.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_EXTERNAL_H
#define MIGRATE_EXTERNAL_H

#include "cutover/driver.h"

/* of the message that each transaction of the way back begins with */
#define MIGRATE_MARK_PREFIX "migrate"

/* Within the pause; each throws when the source is not as it was said to be. */
extern char *migrate_external_fence(Cutover *c);
extern void migrate_external_check(Cutover *c);
extern void migrate_external_verify(Cutover *c);
extern void migrate_external_verify_back(Cutover *c, const char *digest);

extern bool migrate_external_begun(Cutover *c);
extern void migrate_external_lift(Cutover *c);
extern char *migrate_external_mark(const char *digest);
extern void migrate_external_watch(MigrateJob *job, MigrateFence *fence, const char *digest);

#endif							/* MIGRATE_EXTERNAL_H */
