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

/* 16 moved the macros of varlenas out of postgres.h */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 16 marks what a module exports; we hide everything else, so 15 must too */
#if PG_VERSION_NUM < 160000
#undef PGDLLEXPORT
#define PGDLLEXPORT __attribute__((visibility("default")))
#endif

/* 18 has a specifier that comes first */
#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))
#endif

/* 16 folded the privilege checks of each kind of object into one */
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

/* 18 counts index scans for EXPLAIN (0fbceae841c) */
#if PG_VERSION_NUM < 180000
#define migrate_index_beginscan(rel, index, snapshot, nkeys) \
	index_beginscan(rel, index, snapshot, nkeys, 0)
#else
#define migrate_index_beginscan(rel, index, snapshot, nkeys) \
	index_beginscan(rel, index, snapshot, NULL, nkeys, 0)
#endif

/* 17 added whether a stronger lock counts (the argument orstronger) */
#if PG_VERSION_NUM < 170000
#define migrate_lock_held_by_me(tag, mode) LockHeldByMe(tag, mode)
#else
#define migrate_lock_held_by_me(tag, mode) LockHeldByMe(tag, mode, false)
#endif

/* 17 added failover and synced, 18 error_if_invalid; files that use these
 * include replication/slot.h */
#if PG_VERSION_NUM < 170000
#define migrate_slot_create(name) \
	ReplicationSlotCreate(name, true, RS_EPHEMERAL, false)
#else
#define migrate_slot_create(name) \
	ReplicationSlotCreate(name, true, RS_EPHEMERAL, false, false, false)
#endif
#if PG_VERSION_NUM < 180000
#define migrate_slot_acquire(name) ReplicationSlotAcquire(name, true)
#else
#define migrate_slot_acquire(name) ReplicationSlotAcquire(name, true, true)
#endif

/*
 * 16 tells which indexes an update needs, and has an argument for those that
 * only summarize (19d8e2308bc)
 */
#if PG_VERSION_NUM < 160000
#define MigrateUpdateIndexes bool
#define migrate_update_indexes_any(which) (which)
#define migrate_insert_index_tuples(rri, slot, estate) \
	ExecInsertIndexTuples(rri, slot, estate, false, false, NULL, NIL)
#define migrate_update_index_tuples(rri, slot, estate, which) \
	ExecInsertIndexTuples(rri, slot, estate, true, false, NULL, NIL)
#else
#define MigrateUpdateIndexes TU_UpdateIndexes
#define migrate_update_indexes_any(which) ((which) != TU_None)
#define migrate_insert_index_tuples(rri, slot, estate) \
	ExecInsertIndexTuples(rri, slot, estate, false, false, NULL, NIL, false)
#define migrate_update_index_tuples(rri, slot, estate, which) \
	ExecInsertIndexTuples(rri, slot, estate, true, false, NULL, NIL, \
						  (which) == TU_Summarizing)
#endif

/*
 * Workers connect as the job's owner, who may be a role without LOGIN where
 * the server can do that (17).
 */
#if PG_VERSION_NUM >= 170000
#define MIGRATE_BGW_CONNECT_FLAGS BGWORKER_BYPASS_ROLELOGINCHECK
#define MIGRATE_ROLE_CAN_CONNECT "true"
#else
#define MIGRATE_BGW_CONNECT_FLAGS 0
#define MIGRATE_ROLE_CAN_CONNECT "r.rolcanlogin"
#endif

#endif							/* MIGRATE_COMPAT_H */
