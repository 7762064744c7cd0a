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

/* 16 (c727f511bd7) folded the per-kind privilege checks into one */
#if PG_VERSION_NUM >= 160000
#define migrate_server_aclcheck(server, role) \
	object_aclcheck(ForeignServerRelationId, server, role, ACL_USAGE)
#else
#define migrate_server_aclcheck(server, role) \
	pg_foreign_server_aclcheck(server, role, ACL_USAGE)
#endif

/* 16 replaced the aclcheck functions of each catalog (afbfc02983f) */
#if PG_VERSION_NUM < 160000
#define migrate_owns_relation(relid, role) pg_class_ownercheck(relid, role)
#else
#define migrate_owns_relation(relid, role) \
	object_ownercheck(RelationRelationId, relid, role)
#endif

/* 18 dropped the argument execute_once (3eea7a0c97e) */
#if PG_VERSION_NUM < 180000
#define migrate_executor_run(desc, direction, count) \
	ExecutorRun(desc, direction, count, true)
#else
#define migrate_executor_run(desc, direction, count) \
	ExecutorRun(desc, direction, count)
#endif

#endif							/* MIGRATE_COMPAT_H */
