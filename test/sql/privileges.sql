--
-- Rights: nothing for PUBLIC, owners apart from each other, no superuser needed
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_ann LOGIN;
CREATE ROLE regress_bob LOGIN;
CREATE DATABASE migrate_priv_src TEMPLATE template0 ENCODING 'UTF8';
\c migrate_priv_src
CREATE TABLE things (id int PRIMARY KEY, name text);
INSERT INTO things VALUES (1, 'one');
GRANT SELECT ON things TO regress_ann, regress_bob;
\c regression

-- what belongs to the extension and PUBLIC may use: nothing
SELECT p.oid::regprocedure FROM migrate._members('pg_proc') m JOIN pg_proc p ON p.oid = m
WHERE has_function_privilege('public', p.oid, 'EXECUTE') ORDER BY 1::text;
SELECT c.oid::regclass FROM migrate._members('pg_class') m JOIN pg_class c ON c.oid = m
WHERE c.relkind IN ('r', 'v') AND has_table_privilege('public', c.oid, 'SELECT') ORDER BY 1::text;
SELECT has_schema_privilege('public', 'migrate', 'USAGE');
-- every function has a pinned search_path, and none the rights of its owner;
-- a procedure that commits cannot have one, and calls functions that have;
-- what runs for each row would pay for it, and looks no name up
SELECT p.oid::regprocedure FROM migrate._members('pg_proc') m JOIN pg_proc p ON p.oid = m
WHERE p.prosecdef OR p.prokind <> 'p' AND p.proname !~ '^_(digest|hash|seen)'
	AND NOT coalesce(p.proconfig && '{"search_path=pg_catalog, pg_temp"}', false) ORDER BY 1::text;
-- every table that holds a job's rows has row security
SELECT c.oid::regclass FROM migrate._members('pg_class') m JOIN pg_class c ON c.oid = m
WHERE c.relkind = 'r' AND NOT c.relrowsecurity ORDER BY 1::text;
-- every view runs with the rights of its reader
SELECT c.oid::regclass FROM migrate._members('pg_class') m JOIN pg_class c ON c.oid = m
WHERE c.relkind = 'v' AND NOT coalesce(c.reloptions && '{security_invoker=true}', false) ORDER BY 1::text;
-- everything is explained
SELECT p.oid::regprocedure FROM migrate._members('pg_proc') m JOIN pg_proc p ON p.oid = m
WHERE obj_description(p.oid, 'pg_proc') IS NULL ORDER BY 1::text;
SELECT c.oid::regclass FROM migrate._members('pg_class') m JOIN pg_class c ON c.oid = m
WHERE c.relkind IN ('r', 'v') AND obj_description(c.oid, 'pg_class') IS NULL ORDER BY 1::text;

CREATE SERVER priv FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_priv_src');
CREATE USER MAPPING FOR PUBLIC SERVER priv OPTIONS (user 'regress_bob', password_required 'false');
CREATE USER MAPPING FOR regress_ann SERVER priv OPTIONS (user 'regress_ann', password_required 'false');
GRANT CREATE ON DATABASE regression TO regress_ann, regress_bob;

SET SESSION AUTHORIZATION regress_ann;
SELECT migrate_create_job('ann', 'priv');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM migrate.progress;
\echo :LAST_ERROR_SQLSTATE
RESET SESSION AUTHORIZATION;
SELECT migrate_grant('regress_nobody');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_grant('regress_ann');
SELECT migrate_grant('regress_bob');

SET SESSION AUTHORIZATION regress_ann;
SELECT migrate_create_job('ann', 'priv');
\echo :LAST_ERROR_SQLSTATE
RESET SESSION AUTHORIZATION;
GRANT USAGE ON FOREIGN SERVER priv TO regress_ann, regress_bob;

SET SESSION AUTHORIZATION regress_ann;
SELECT migrate_create_job('ann', 'priv') > 0 AS made;
SELECT migrate_import('ann', 'public', 'ann');
SELECT migrate_add_schema('ann', 'public', 'ann_target');
SELECT check_name, status, detail FROM migrate_preflight('ann')
WHERE status <> 'ok' AND check_name NOT IN ('launcher', 'worker_slots', 'grants');
SELECT migrate_source_sql('ann');
SELECT job, source, target FROM migrate.progress;

-- the job of another does not exist, whatever is asked
SET SESSION AUTHORIZATION regress_bob;
SELECT count(*) FROM migrate.job;
SELECT count(*) FROM migrate.progress;
SELECT count(*) FROM migrate.events;
SELECT count(*) FROM migrate.mapping;
SELECT count(*) FROM migrate.source_table;
SELECT count(*) FROM migrate.made_object;
SELECT migrate_alter_job('ann', '{"workers": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_drop_job('ann');
SELECT migrate_preflight('ann');
UPDATE migrate.job SET owner = 'regress_bob'::regrole;
DELETE FROM migrate.mapping;
INSERT INTO migrate.job (job, owner, server) SELECT 'forged', 'regress_ann'::regrole, oid FROM pg_foreign_server WHERE srvname = 'priv';
\echo :LAST_ERROR_SQLSTATE
-- but its name is taken, and so is its target
SELECT migrate_create_job('ann', 'priv');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_create_job('bob', 'priv') > 0 AS made;
SELECT migrate_add_table('bob', 'public.things', 'ann_target.things');
\echo :LAST_ERROR_SQLSTATE
RESET SESSION AUTHORIZATION;
GRANT USAGE ON SCHEMA ann_target TO regress_bob;
GRANT ALL ON ann_target.things TO regress_bob;
SET SESSION AUTHORIZATION regress_bob;
SELECT migrate_add_table('bob', 'public.things', 'ann_target.things');
\echo :LAST_ERROR_SQLSTATE
-- tables that are the same for all are for reading
UPDATE migrate.option_def SET default_value = '64';
\echo :LAST_ERROR_SQLSTATE

-- a member of the owner's role shares its jobs
RESET SESSION AUTHORIZATION;
GRANT regress_ann TO regress_bob;
SET SESSION AUTHORIZATION regress_bob;
SELECT job FROM migrate.job ORDER BY 1;
RESET SESSION AUTHORIZATION;

SELECT migrate_drop_job('ann');
SELECT migrate_drop_job('bob');
SET client_min_messages = error;
DROP SCHEMA ann_target CASCADE;
DROP SERVER priv CASCADE;
DROP OWNED BY regress_ann, regress_bob;
DROP DATABASE migrate_priv_src;
DROP ROLE regress_ann, regress_bob;
