--
-- Each wrong call has an error of its own, with SQLSTATE and hint
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_errors SUPERUSER LOGIN;
CREATE DATABASE migrate_errors_src TEMPLATE template0 ENCODING 'UTF8';
\c migrate_errors_src regress_errors
CREATE TABLE orders (id bigint PRIMARY KEY, customer int, total numeric(10,2), code text UNIQUE, n int NOT NULL UNIQUE);
CREATE TABLE nokey (a int, b text);
CREATE TABLE "two words" (id int PRIMARY KEY);
CREATE TABLE row_types (id int PRIMARY KEY, r orders);
CREATE EXTENSION citext;
CREATE TABLE ci (id int PRIMARY KEY, t citext);
CREATE SCHEMA empty;
\c regression regress_errors
CREATE SERVER wrong_server FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '/nonexistent', port '1', dbname 'x');
CREATE SERVER old FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_errors_src');

-- create_job
SELECT migrate_create_job('e', 'no_such_server');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_create_job('e', 'old');
\echo :LAST_ERROR_SQLSTATE
CREATE USER MAPPING FOR regress_errors SERVER old OPTIONS (user 'regress_errors');
SELECT migrate_create_job('', 'old');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_create_job('e', 'old') > 0 AS made;
SELECT migrate_create_job('e', 'old');
\echo :LAST_ERROR_SQLSTATE

-- unknown job
SELECT migrate_alter_job('nope', '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_drop_job('nope');
SELECT migrate_import('nope', 'public');
SELECT migrate_add_schema('nope', 'public');
SELECT migrate_add_table('nope', 'public.orders', 'x');
SELECT migrate_remove_table('nope', 'x');
SELECT * FROM migrate_preflight('nope');
SELECT migrate_source_sql('nope');
SELECT migrate_accept('nope', 'sample', 'x', 'y');
\echo :LAST_ERROR_SQLSTATE

-- a source that cannot be reached, and one that lost its user mapping
CREATE USER MAPPING FOR regress_errors SERVER wrong_server OPTIONS (user 'x');
SELECT migrate_create_job('unreached', 'wrong_server') > 0 AS made;
\set VERBOSITY terse
SELECT migrate_import('unreached', 'public');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
SELECT check_name, status FROM migrate_preflight('unreached') WHERE check_name = 'connection';
DROP USER MAPPING FOR regress_errors SERVER wrong_server;
SELECT migrate_add_table('unreached', 'public.orders', 'x');
\echo :LAST_ERROR_SQLSTATE
SELECT check_name, object, status, detail, hint FROM migrate_preflight('unreached') WHERE check_name = 'user_mapping';

-- import
SELECT migrate_import('e', 'no_such_schema');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_import('e', 'empty');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_import('e', 'public', include => '{no*}', exclude => '{nok?y}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_import('e', NULL);
\echo :LAST_ERROR_SQLSTATE
CREATE SCHEMA old;
CREATE TABLE old.nokey ();
SELECT migrate_import('e', 'public', exclude => '{row_types,ci}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_import('e', 'public', include => '{row_types}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_import('e', 'public', include => '{ci}');
\echo :LAST_ERROR_SQLSTATE
DROP SCHEMA old CASCADE;
-- nothing is left of what failed
SELECT count(*) FROM migrate.made_object;

-- add_table: the source
SELECT migrate_add_table('e', 'public.no_such', 'x');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'orders', 'x');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.two words', 'x');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'a.b.c', 'x');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', NULL, 'x');
\echo :LAST_ERROR_SQLSTATE
-- the foreign table gets the name that the target is to have
SELECT migrate_add_table('e', 'public.orders', 'old.orders');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT migrate_import('e', 'public', local_schema => 'old_public', include => '{orders}');
SELECT migrate_add_table('e', 'public.orders', 'old.orders');
SELECT target, s.foreign_table::regclass FROM migrate.mapping JOIN migrate.source_table s USING (source_id);
ROLLBACK;
SELECT migrate_import('e', 'public', include => '{orders,nokey,"two words"}');

-- the target
CREATE SCHEMA t;
CREATE VIEW t.v AS SELECT 1 AS id;
CREATE TEMP TABLE temporary (id int);
CREATE TABLE t.orders (order_id bigint PRIMARY KEY, cents bigint NOT NULL, customer int, note text DEFAULT '', total numeric,
	double_cents bigint GENERATED ALWAYS AS (cents * 2) STORED, code text);
SELECT migrate_add_table('e', 'public.orders', 't.v');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 'pg_catalog.pg_class');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 'migrate.job');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 'temporary');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.missing', columns => '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 'missing', search_path => 'no_such_schema');
\echo :LAST_ERROR_SQLSTATE

-- columns
SELECT migrate_add_table('e', 'public.orders', 't.orders');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": 1, "wrong": 2}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": "total * hundred"}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": "total *"}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": "sum(total)"}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": "no_function(total)"}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": {"a": 1}}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": 1, "double_cents": 2}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": "total /*migrate*/"}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '["id"]');
\echo :LAST_ERROR_SQLSTATE
-- a value of another type than the column
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": "code"}');
\echo :LAST_ERROR_SQLSTATE
CREATE TABLE t.nothing (x int);
SELECT migrate_add_table('e', 'public.orders', 't.nothing', columns => '{}');
\echo :LAST_ERROR_SQLSTATE

-- mapping functions
CREATE TYPE t.pair AS (order_id bigint, surplus int);
CREATE FUNCTION t.takes_int(int) RETURNS SETOF t.orders LANGUAGE sql AS 'SELECT NULL::t.orders';
CREATE FUNCTION t.takes_nothing() RETURNS SETOF t.orders LANGUAGE sql AS 'SELECT NULL::t.orders';
CREATE FUNCTION t.takes_other(old.nokey) RETURNS SETOF t.orders LANGUAGE sql AS 'SELECT NULL::t.orders';
CREATE FUNCTION t.gives_int(old.orders) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION t.gives_pair(old.orders) RETURNS t.pair LANGUAGE sql AS 'SELECT NULL::t.pair';
CREATE FUNCTION t.gives_record(old.orders) RETURNS record LANGUAGE sql AS 'SELECT 1, 2';
CREATE FUNCTION t.gives_little(old.orders, OUT order_id bigint, OUT code text) LANGUAGE sql AS 'SELECT 1, ''''';
CREATE FUNCTION t.good(old.orders) RETURNS SETOF t.orders LANGUAGE sql AS 'SELECT NULL::t.orders';
CREATE FUNCTION t.step(int, old.orders) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE t.agg(old.orders) (sfunc = t.step, stype = int);
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.no_such');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 0::regproc);
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.takes_int');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.takes_nothing');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.takes_other');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.gives_int');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.gives_record');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.gives_pair');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.gives_little');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.agg');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.good', columns => '{}');
\echo :LAST_ERROR_SQLSTATE

-- filter, owns, reads
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.good', filter => 'xyzzy > 1');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.good', filter => 'id');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.good', owns => 'xyzzy = 1');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.good', owns => 'customer + 1');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.good', reads => '{t.nope}');
\echo :LAST_ERROR_SQLSTATE

-- key
CREATE TABLE t.plain (LIKE t.nothing);
ALTER TABLE t.plain ADD id bigint, ADD code text, ADD total numeric;
SELECT migrate_add_table('e', 'public.orders', 't.plain', columns => '{}', key => '["id"]');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.plain', columns => '{}', key => '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.plain', columns => '{}', key => '{"id": null}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.plain', columns => '{}', key => '{"nope": "id"}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.plain', columns => '{}', key => '{"id": "xyzzy"}');
\echo :LAST_ERROR_SQLSTATE
-- not unique; unique but nullable; no key at all
SELECT migrate_add_table('e', 'public.orders', 't.plain', columns => '{}', key => '{"total": "total"}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.plain', columns => '{}', key => '{"code": "code"}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.nokey', 't.plain', columns => '{"id": "a"}', key => '{"id": "a"}');
\echo :LAST_ERROR_SQLSTATE
-- no unique index of the target
SELECT migrate_add_table('e', 'public.orders', 't.orders', columns => '{"order_id": "id", "cents": 1}', key => '{"customer": "id"}');
\echo :LAST_ERROR_SQLSTATE

-- a target twice
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.good', key => '{"order_id": "id"}', owns => 'customer = 1');
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.good');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e', 'public.orders', 't.orders', mapping => 't.good', owns => 'customer = 1');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_create_job('e2', 'old') > 0 AS made;
SELECT migrate_add_table('e2', 'old.orders', 't.orders', mapping => 't.good');
\echo :LAST_ERROR_SQLSTATE
-- an import of one's own takes nothing of another job; a mapping shares it
SELECT migrate_import('e2', 'public', include => '{orders}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_table('e2', 'public.orders', 't.handed');
SELECT s.foreign_table::regclass FROM migrate.source_table s JOIN migrate.job j USING (job_id) WHERE j.job = 'e2';
SELECT migrate_import('e2', 'public', 'old_e2', include => '{orders}');

-- add_schema
SELECT migrate_add_schema('e', 'public', 't', include => '{nope}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_schema('e', 'public', 't', include => '{orders,nokey}');
-- a source that the job reads already is skipped
SELECT migrate_add_schema('e2', 'public', 't', include => '{orders}');
SELECT migrate_create_job('e3', 'old') > 0 AS made;
SELECT migrate_add_schema('e3', 'public', 't', include => '{orders}');
\echo :LAST_ERROR_SQLSTATE

-- remove_table
SELECT migrate_remove_table('e', 't.plain');
\echo :LAST_ERROR_SQLSTATE

-- accept
SELECT migrate_accept('e', 'no_such_check', 'x', 'y');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_accept('e', 'sample', 'x', ' ');
\echo :LAST_ERROR_SQLSTATE

-- P3: what a job reads is settled when it starts
BEGIN;
SELECT migrate._set_state(job_id, 'preparing', 'test') FROM migrate.job WHERE job = 'e';
UPDATE migrate.job SET wanted = 'run' WHERE job = 'e';
SAVEPOINT s;
SELECT migrate_add_table('e', 'public.nokey', 't.more');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT migrate_add_schema('e', 'public');
ROLLBACK TO s;
SELECT migrate_remove_table('e', 't.orders');
ROLLBACK TO s;
SELECT migrate_drop_job('e');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- what another job reads is handed over to it
DROP FUNCTION t.takes_other(old.nokey);
SELECT migrate_drop_job('e');
SELECT j.job, m.kind, m.object FROM migrate.made_object m JOIN migrate.job j USING (job_id) ORDER BY m.object_id;
SET client_min_messages = error;
SELECT statement FROM migrate.job, LATERAL migrate_drop_job(job) AS statement;
DROP SCHEMA t CASCADE;
DROP SCHEMA IF EXISTS old CASCADE;
DROP SERVER old CASCADE;
DROP SERVER wrong_server CASCADE;
\c regression
DROP DATABASE migrate_errors_src;
