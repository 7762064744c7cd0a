/*-------------------------------------------------------------------------
 *
 * last_check.h
 *	  What changed is compared before the target is opened (P32).
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_LAST_CHECK_H
#define MIGRATE_LAST_CHECK_H

#include "cutover/driver.h"

/* The step before the fence: until the rest fits into the pause; its detail. */
extern char *migrate_last_check_before(Cutover *c);

/* Before a try to lock that may come long after: does the rest still fit? */
extern void migrate_last_check_again(Cutover *c);

/* Under the fence, when all is applied and apply has left; NULL: nothing to say. */
extern char *migrate_last_check_under(Cutover *c);

#endif							/* MIGRATE_LAST_CHECK_H */
