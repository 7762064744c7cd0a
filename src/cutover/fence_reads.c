/*-------------------------------------------------------------------------
 *
 * fence_reads.c
 *	  The read fence, option fence_reads: who may not write to the source any
 *	  more does not read it either, for what it says is old.
 *
 * In the fence's transaction SELECT on its tables is revoked from everybody who
 * has it, but for the role that we are there.  What gives it back stands in a
 * table beside the fence's function, and is done when the fence is lifted or
 * dropped, in the same transaction.  So it is there exactly when the fence is:
 * a rehearsal and a crash roll back both.
 *
 * Row policies would tell more than "permission denied", but our own reads run
 * with row_security = off (P6), which is an error where a policy applies.
 *
 * The owner of a table keeps SELECT where our role may not set
 * session_replication_role: foreign keys are checked with the owner's rights,
 * for the rows of the way back too.  Superusers and members of pg_read_all_data
 * read on.
 *
 * A privilege that was granted by another role than the owner could not be
 * given back as it was, and one that we may not revoke stays: errors, which
 * undo the cutover.
 *
 * Process: job worker; the session that ends a job.  Locks on the source: none
 * but the fence's.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "cutover/cutover.h"

#include "nodes/pg_list.h"
#include "nodes/value.h"
#include "utils/builtins.h"

#include "extract/extract.h"

/* SELECT on tables and their columns that somebody else has; %s: the tables, whether owners count */
#define OTHERS \
	"SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS rel, a.col, a.is_grantable," \
	"  a.grantor = c.relowner AS by_owner," \
	"  CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END AS who" \
	" FROM pg_catalog.unnest(ARRAY[%s]::pg_catalog.regclass[]) t (oid)" \
	" JOIN pg_catalog.pg_class c ON c.oid = t.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace" \
	" CROSS JOIN LATERAL (SELECT '' AS col, e.* FROM pg_catalog.aclexplode(" \
	"   coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))) e" \
	"  UNION ALL SELECT pg_catalog.format(' (%%I)', x.attname), e.* FROM pg_catalog.pg_attribute x" \
	"   CROSS JOIN LATERAL pg_catalog.aclexplode(x.attacl) e WHERE x.attrelid = c.oid AND NOT x.attisdropped) a" \
	" WHERE a.privilege_type = 'SELECT' AND a.grantee <> current_user::pg_catalog.regrole" \
	"  AND (a.grantee <> c.relowner OR %s)"

/* may we write without foreign keys being checked? */
static const char *
replica_condition(int version)
{
	return version >= 150000 ?
		"pg_catalog.has_parameter_privilege('session_replication_role', 'SET')" :
		"(SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)";
}

void
migrate_fence_close_reads(MigrateFence *fence)
{
	StringInfoData names;
	StringInfoData body;
	char	   *others;
	ListCell   *lc;

	if (fence->relations == NIL)
		return;
	initStringInfo(&names);
	foreach(lc, fence->relations)
		appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "",
						 quote_literal_cstr(strVal(lfirst(lc))));
	others = psprintf(OTHERS, names.data, replica_condition(fence->conn->version));
	initStringInfo(&body);
	appendStringInfo(&body,
					 "DECLARE r record;\n"
					 "BEGIN\n"
					 "	CREATE TABLE %1$s.revoked (place int GENERATED ALWAYS AS IDENTITY, statement text NOT NULL);\n"
					 "	FOR r IN SELECT o.* FROM (%2$s) o WHERE NOT o.by_owner LOOP\n"
					 "		RAISE EXCEPTION USING ERRCODE = '55000',\n"
					 "			MESSAGE = pg_catalog.format('readers of %%s cannot be fenced: its owner has not granted SELECT to %%s himself', r.rel, r.who),\n"
					 "			HINT = 'Let the owner grant it, or set the option fence_reads to false.';\n"
					 "	END LOOP;\n"
					 "	FOR r IN %2$s LOOP\n"
					 "		INSERT INTO %1$s.revoked (statement) VALUES (pg_catalog.format('GRANT SELECT%%s ON %%s TO %%s%%s',\n"
					 "			r.col, r.rel, r.who, CASE WHEN r.is_grantable AND r.who <> 'PUBLIC' THEN ' WITH GRANT OPTION' ELSE '' END));\n"
					 "		EXECUTE pg_catalog.format('REVOKE SELECT%%s ON %%s FROM %%s', r.col, r.rel, r.who);\n"
					 "	END LOOP;\n"
					 "	FOR r IN %2$s LOOP\n"
					 "		RAISE EXCEPTION USING ERRCODE = '42501',\n"
					 "			MESSAGE = pg_catalog.format('readers of %%s cannot be fenced: SELECT could not be revoked from %%s', r.rel, r.who),\n"
					 "			HINT = 'The role of the user mapping has to be a member of the owner''s, or set the option fence_reads to false.';\n"
					 "	END LOOP;\n"
					 "	FOR r IN SELECT t.name FROM pg_catalog.unnest(ARRAY[%3$s]) t (name)\n"
					 "		WHERE NOT pg_catalog.has_table_privilege(t.name, 'SELECT') LOOP\n"
					 "		RAISE EXCEPTION USING ERRCODE = '42501',\n"
					 "			MESSAGE = pg_catalog.format('readers of %%s cannot be fenced: the job would not read it any more either', r.name),\n"
					 "			HINT = pg_catalog.format('GRANT SELECT ON %%s TO %%I;', r.name, current_user);\n"
					 "	END LOOP;\n"
					 "END", fence->schema, others, names.data);
	PQclear(migrate_exec(fence->conn, psprintf("DO %s", quote_literal_cstr(body.data))));
}

/*
 * What the other way takes, within a transaction; nothing where there is no read
 * fence.  Tables and roles that are gone need nothing.
 */
char *
migrate_fence_open_reads_sql(MigrateFence *fence)
{
	char	   *body = psprintf("DECLARE s text;\n"
								"BEGIN\n"
								"	IF pg_catalog.to_regclass(%1$s) IS NULL THEN RETURN; END IF;\n"
								"	FOR s IN EXECUTE %2$s LOOP\n"
								"		BEGIN\n"
								"			EXECUTE s;\n"
								"		EXCEPTION WHEN undefined_table OR undefined_column OR undefined_object OR invalid_schema_name THEN\n"
								"			RAISE WARNING '%%', SQLERRM;\n"
								"		END;\n"
								"	END LOOP;\n"
								"	EXECUTE %3$s;\n"
								"END",
								quote_literal_cstr(psprintf("%s.revoked", fence->schema)),
								quote_literal_cstr(psprintf("SELECT statement FROM %s.revoked ORDER BY place", fence->schema)),
								quote_literal_cstr(psprintf("DROP TABLE %s.revoked", fence->schema)));

	return psprintf("DO %s", quote_literal_cstr(body));
}
