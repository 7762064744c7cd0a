--
-- Preflight: each finding with its remedy; accepted ones; the statements for
-- the source
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_pre LOGIN;
CREATE ROLE regress_reader LOGIN;
CREATE DATABASE migrate_pre_src TEMPLATE template0 ENCODING 'UTF8';
\c migrate_pre_src
CREATE TABLE good (id int PRIMARY KEY, name text, twice int GENERATED ALWAYS AS (id * 2) STORED);
CREATE TABLE secret (id int PRIMARY KEY);
CREATE TABLE rls (id int PRIMARY KEY);
ALTER TABLE rls ENABLE ROW LEVEL SECURITY;
CREATE TABLE nokey (a int);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child () INHERITS (parent);
CREATE VIEW v AS SELECT id FROM good;
CREATE TABLE dropped (id int PRIMARY KEY, gone int);
CREATE SCHEMA hidden;
CREATE TABLE hidden.h (id int PRIMARY KEY, d date);
INSERT INTO good SELECT g, 'n' || g FROM generate_series(1, 30) g;
GRANT SELECT ON good, rls, nokey, parent, child, v, dropped TO regress_reader;
GRANT SELECT ON hidden.h TO regress_reader;
\c regression
CREATE SERVER pre FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_pre_src');
GRANT USAGE ON FOREIGN SERVER pre TO regress_pre;
CREATE USER MAPPING FOR regress_pre SERVER pre OPTIONS (user 'regress_reader', password_required 'false');
SELECT migrate_grant('regress_pre');
GRANT CREATE ON DATABASE regression TO regress_pre;
CREATE VIEW findings AS
	SELECT check_name, object, status, detail, hint FROM migrate_preflight('pre')
	WHERE check_name NOT IN ('launcher', 'worker_slots') AND (status <> 'ok' OR detail LIKE '%accepted%')
	  -- see schema_checks
	  AND check_name NOT IN ('not_moved', 'grants');
GRANT SELECT ON findings TO regress_pre;

SET SESSION AUTHORIZATION regress_pre;
SELECT migrate_create_job('pre', 'pre') > 0 AS made;
-- nothing to do is a finding; else all is well, and every check says so
SELECT check_name, object, status, regexp_replace(detail, 'PostgreSQL \S+( \(.*?\))?', 'PostgreSQL x') AS detail
FROM migrate_preflight('pre') WHERE check_name NOT IN ('launcher', 'worker_slots');

SELECT migrate_add_schema('pre', 'public', 'pre_t', exclude => '{child}');
SELECT migrate_add_schema('pre', 'hidden', 'pre_t');
-- targets as the DBA made them
CREATE TABLE pre_t.mapped (id int, name text, PRIMARY KEY (id));
CREATE TABLE pre_t.noindex (id int, name text);
CREATE TABLE pre_t.owned (tenant int, id int, PRIMARY KEY (tenant, id));
CREATE TABLE pre_t.lookup (id int);
CREATE FUNCTION pre_t.map_wrong(g pre.good) RETURNS SETOF pre_t.mapped LANGUAGE sql STABLE AS
	$$ SELECT g.id + CASE WHEN g.id > 10 THEN 1 ELSE 0 END, g.name || (SELECT count(*) FROM pre_t.lookup) $$;
CREATE FUNCTION pre_t.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
SELECT migrate_add_table('pre', 'public.good', 'pre_t.mapped', mapping => 'pre_t.map_wrong');
SELECT migrate_add_table('pre', 'public.good', 'pre_t.noindex', columns => '{}');
SELECT migrate_add_table('pre', 'public.good', 'pre_t.owned', columns => '{"tenant": "CASE WHEN id < 5 THEN 1 ELSE 2 END"}', owns => 'tenant = 1');
CREATE TABLE pre_t.viewed (id int PRIMARY KEY);
SELECT migrate_add_table('pre', 'public.v', 'pre_t.viewed', key => '{"id": "id"}');
CREATE FOREIGN TABLE pre.declared (id bigint OPTIONS (column_name 'id'), title varchar(3) OPTIONS (column_name 'name')) SERVER pre OPTIONS (schema_name 'public', table_name 'good');
SELECT migrate_add_table('pre', 'pre.declared', 'pre_t.declared');
INSERT INTO pre_t.mapped VALUES (1);
CREATE TRIGGER watch BEFORE INSERT ON pre_t.mapped EXECUTE FUNCTION pre_t.nothing();
\c migrate_pre_src -
ALTER TABLE dropped DROP gone;
DROP TABLE parent CASCADE;
\c regression
ALTER TABLE pre_t.noindex OWNER TO CURRENT_USER;
GRANT SELECT, INSERT ON pre_t.noindex TO regress_pre;
ALTER TABLE pre_t.owned ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SET SESSION AUTHORIZATION regress_pre;
DROP TABLE pre_t.viewed;
\x on
SELECT * FROM findings;
\x off

-- taken note of
SELECT migrate_accept('pre', 'row_security', 'public.rls', 'we know');
SELECT migrate_accept('pre', 'source_key', 'public.nokey', 'copied once');
SELECT migrate_accept('pre', 'source_key', 'public.nokey', 'copied once only');
SELECT check_name, object, status, detail, hint FROM findings WHERE detail LIKE '%accepted%';
SELECT check_name, object, reason, accepted_by FROM migrate.acceptance ORDER BY 1;

SELECT migrate_source_sql('pre');
-- and they help
SELECT string_agg(s, ' ') AS statements FROM migrate_source_sql('pre') s WHERE s !~ 'parent' \gset
RESET SESSION AUTHORIZATION;
\c migrate_pre_src
:statements
\c regression
SET SESSION AUTHORIZATION regress_pre;
SELECT check_name, object FROM findings WHERE check_name IN ('source_privilege', 'row_security');
RESET SESSION AUTHORIZATION;

-- the owner may not log in, the mapping function is gone
ALTER ROLE regress_pre NOLOGIN;
DROP FUNCTION pre_t.map_wrong(pre.good);
SET SESSION AUTHORIZATION regress_pre;
SELECT check_name, object, status FROM findings WHERE check_name IN ('owner', 'mapping');
RESET SESSION AUTHORIZATION;
-- all checks have names that can be accepted
SELECT DISTINCT check_name FROM migrate_preflight('pre') WHERE check_name <> ALL (migrate._check_names());

SET client_min_messages = error;
DROP VIEW findings;
SELECT migrate_drop_job('pre');
DROP SCHEMA pre_t CASCADE;
DROP SERVER pre CASCADE;
DROP SCHEMA IF EXISTS pre CASCADE;
DROP DATABASE migrate_pre_src;
DROP OWNED BY regress_pre;
DROP ROLE regress_pre, regress_reader;
