/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  What differs between PostgreSQL 15, 16, 17 and 18, in one place: a macro
 *	  or inline function has the newest version's shape.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIGRATE_COMPAT_H
#define MIGRATE_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "migrate needs PostgreSQL 15 or later on the target"
#endif

/*
 * Workers connect as the job's owner, who may be a role without LOGIN where
 * the server can do that (17, commit e7689190b3).
 */
#if PG_VERSION_NUM >= 170000
#define MIGRATE_BGW_CONNECT_FLAGS BGWORKER_BYPASS_ROLELOGINCHECK
#define MIGRATE_ROLE_CAN_CONNECT "true"
#else
#define MIGRATE_BGW_CONNECT_FLAGS 0
#define MIGRATE_ROLE_CAN_CONNECT "r.rolcanlogin"
#endif

/*
 * Does the role own the relation?  One function for all kinds of objects from
 * 16 (commit afbfc02983).  Needs utils/acl.h and, from 16, catalog/pg_class.h.
 */
#if PG_VERSION_NUM >= 160000
#define object_ownercheck_relation(relid, roleid) \
	object_ownercheck(RelationRelationId, (relid), (roleid))
#else
#define object_ownercheck_relation(relid, roleid) \
	pg_class_ownercheck((relid), (roleid))
#endif

#endif							/* MIGRATE_COMPAT_H */
