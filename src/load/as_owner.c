/*-------------------------------------------------------------------------
 *
 * as_owner.c
 *	  Mapping code runs with the rights of the job's owner, never with those
 *	  of a superuser who happens to call, as logical replication's
 *	  workers and REINDEX do.
 *
 * Who may see a job has the owner's rights already, so that nobody gains any.
 * The end of the (sub)transaction restores the caller after an error.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "miscadmin.h"

void
migrate_as_owner(Oid owner, MigrateAsOwner *as)
{
	GetUserIdAndSecContext(&as->caller, &as->sec_context);
	if (as->caller != owner)
		SetUserIdAndSecContext(owner, as->sec_context |
							   SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION);
}

void
migrate_as_caller(MigrateAsOwner *as)
{
	SetUserIdAndSecContext(as->caller, as->sec_context);
}
