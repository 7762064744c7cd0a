--
-- Preflight of definitions: what is not moved and how to move it, roles,
-- extensions and large objects, targets that were there; then the refresh
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_schema SUPERUSER LOGIN;
CREATE ROLE regress_schema_app;
CREATE DATABASE migrate_schema_src TEMPLATE template0 ENCODING 'UTF8';
\c migrate_schema_src regress_schema
CREATE EXTENSION citext;
CREATE EXTENSION pg_trgm;
CREATE EXTENSION hstore;
CREATE SCHEMA "Odd 'un";
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE refd (id int PRIMARY KEY);
CREATE TABLE orders (id bigint PRIMARY KEY, name citext, m mood, big oid, r int REFERENCES refd);
CREATE INDEX ON orders USING gin ((name::text) gin_trgm_ops);
CREATE TABLE "Odd 'un"."T b" (id int PRIMARY KEY);
CREATE TABLE plain (id int PRIMARY KEY, t text);
ALTER TABLE plain OWNER TO regress_schema_app;
CREATE VIEW v AS SELECT id FROM orders;
CREATE MATERIALIZED VIEW mv AS SELECT id FROM orders;
CREATE FUNCTION f(a int, b text DEFAULT 'x') RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
ALTER TABLE orders ADD CONSTRAINT positive CHECK (f(id::int) > 0);
CREATE FUNCTION "Odd 'un"."f g"(m mood, VARIADIC x int[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE pr(a int) LANGUAGE sql AS '';
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int4);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER tell BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TRIGGER "T r" BEFORE INSERT ON "Odd 'un"."T b" FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TRIGGER not_ours BEFORE INSERT ON refd FOR EACH ROW EXECUTE FUNCTION tell();
CREATE RULE r AS ON DELETE TO orders DO ALSO NOTIFY x;
CREATE POLICY p ON orders USING (id > 0);
ALTER TABLE orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
CREATE OPERATOR CLASS oc FOR TYPE int USING hash AS OPERATOR 1 =, FUNCTION 1 hashint4(int);
CREATE OPERATOR FAMILY ofam USING btree;
CREATE FUNCTION mood2int(mood) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE CAST (mood AS int) WITH FUNCTION mood2int(mood);
CREATE TYPE bt;
SET client_min_messages = warning;
CREATE FUNCTION bt_in(cstring) RETURNS bt LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION bt_out(bt) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
RESET client_min_messages;
CREATE TYPE bt (INPUT = bt_in, OUTPUT = bt_out, LIKE = text);
CREATE TEXT SEARCH DICTIONARY tsd (TEMPLATE = simple);
CREATE TEXT SEARCH CONFIGURATION tsc (COPY = pg_catalog.simple);
CREATE TEXT SEARCH TEMPLATE tst (LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH PARSER tsp (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype);
CREATE CONVERSION cv FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE FOREIGN DATA WRAPPER nothing;
CREATE SERVER other FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE ft (a int) SERVER other;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO regress_schema_app;
CREATE FUNCTION et() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER ev ON ddl_command_end EXECUTE FUNCTION et();
CREATE PUBLICATION pub FOR TABLE orders;
SET client_min_messages = error;
CREATE SUBSCRIPTION regress_sub CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE);
RESET client_min_messages;
SELECT lo_from_bytea(0, 'hello') > 0 AS made;
GRANT SELECT ON orders TO regress_schema_app;
GRANT UPDATE (name) ON orders TO regress_schema_app;

\c regression regress_schema
CREATE SERVER schema_src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_schema_src', sslmode 'prefer');
CREATE USER MAPPING FOR regress_schema SERVER schema_src OPTIONS (user 'regress_schema', password 'not to be shown');
CREATE EXTENSION citext;
-- without the place of the servers and the numbers of their objects
CREATE FUNCTION findings(job text) RETURNS TABLE (check_name text, object text, status text, detail text, hint text) LANGUAGE sql AS $$
	SELECT check_name, object, status, detail,
		   regexp_replace(regexp_replace(regexp_replace(hint, '''host=[^'']* dbname=migrate_schema_src[^'']*''', 'SOURCE', 'g'),
							'''host=[^'']* dbname=regression[^'']*''', 'HERE', 'g'), '([0-9]{3,4}) [0-9]{5,}', '\1 OID', 'g')
	FROM migrate_preflight($1)
	WHERE check_name IN ('not_moved', 'large_objects', 'grants', 'extension', 'foreign_key_target', 'target_definition_diff', 'inheritance')
	  AND (status <> 'ok' OR detail <> '')
$$;
SELECT migrate_create_job('schema', 'schema_src') > 0 AS made;
-- nothing is taken over yet
SELECT * FROM findings('schema');
SELECT migrate_add_schema('schema', 'public', exclude => '{refd}');
SELECT migrate_add_schema('schema', 'Odd ''un', 'even');
\x on
SELECT object, detail, hint FROM findings('schema') WHERE check_name = 'not_moved';
SELECT check_name, object, status, detail, hint FROM findings('schema') WHERE check_name <> 'not_moved';
\x off
SELECT count(*) AS passwords FROM migrate_preflight('schema') WHERE hint ~ 'not to be shown';

-- taken note of; and what is here is not listed any more, under either schema
SELECT migrate_accept('schema', 'large_objects', 'schema_src', 'they go by night');
SELECT status, detail FROM findings('schema') WHERE check_name = 'large_objects';
CREATE VIEW v AS SELECT id FROM orders;
CREATE FUNCTION f(a int, b text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2';
CREATE FUNCTION even."f g"(m mood, VARIADIC x int[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER "T r" BEFORE INSERT ON even."T b" FOR EACH ROW EXECUTE FUNCTION tell();
SELECT object FROM findings('schema') WHERE check_name = 'not_moved' AND object ~ '(view|function|trigger) '
ORDER BY object COLLATE "C";
SELECT migrate_drop_job('schema');

-- tables alone: what is on them, of those that the job made
SELECT migrate_create_job('schema', 'schema_src') > 0 AS made;
CREATE SCHEMA part;
CREATE TABLE part.orders (id bigint, name citext, m mood, big int, r int);
SELECT migrate_add_table('schema', 'public.orders', 'part.orders');
SELECT migrate_add_table('schema', '"Odd ''un"."T b"', 'part.odd');
SELECT check_name, object, status FROM findings('schema') WHERE check_name <> 'target_definition_diff';
SELECT migrate_drop_job('schema');
-- no source, no findings about it
ALTER SERVER schema_src OPTIONS (SET dbname 'no such database');
SELECT migrate_create_job('schema', 'schema_src') > 0 AS made;
SELECT check_name, status FROM migrate_preflight('schema') WHERE check_name IN ('connection', 'not_moved', 'target_definition_diff', 'target');
SELECT migrate_drop_job('schema');
ALTER SERVER schema_src OPTIONS (SET dbname 'migrate_schema_src');

-- targets that were there
\c migrate_schema_src regress_schema
SET client_min_messages = warning;
ALTER SUBSCRIPTION regress_sub DISABLE;
DROP SUBSCRIPTION regress_sub;
RESET client_min_messages;
CREATE SCHEMA d;
CREATE TABLE d.a (id bigint PRIMARY KEY, n numeric(10,2), v text, x varchar(5), g int, nn text, w int, col text COLLATE "C",
	def int DEFAULT 1, i int GENERATED ALWAYS AS IDENTITY, h text, ts timestamptz, arr int[], s serial, dm int);
CREATE INDEX a_n ON d.a (n DESC) WHERE v > 'a';
CREATE UNIQUE INDEX a_v ON d.a (lower(v));
ALTER TABLE d.a ADD CHECK (w > 0), ADD FOREIGN KEY (w) REFERENCES d.a (id);
CREATE TABLE d.b (id int PRIMARY KEY, k int);
CREATE TABLE d.same (id int PRIMARY KEY, v text DEFAULT 'x', s serial);
CREATE INDEX ON d.same (v);
CREATE TABLE d.later (id int PRIMARY KEY);
\c regression regress_schema
CREATE SCHEMA d2;
CREATE DOMAIN small AS int CHECK (VALUE < 100);
CREATE UNLOGGED TABLE d2.a (id int PRIMARY KEY, n numeric(8,2), v varchar(10), x text, g int GENERATED ALWAYS AS (1) STORED,
	nn text NOT NULL, w bigint, col text, def int DEFAULT 2, i int, h text, ts timestamp, arr bigint[],
	s int GENERATED BY DEFAULT AS IDENTITY, dm small);
CREATE TABLE d2.b (id int, k int) PARTITION BY HASH (id);
CREATE TABLE d2.same (id int PRIMARY KEY, v text DEFAULT 'x', s serial);
CREATE INDEX other_name ON d2.same (v);
CREATE TABLE d2.later (id int);
SELECT migrate_create_job('schema', 'schema_src') > 0 AS made;
SELECT migrate_add_schema('schema', 'd', 'd2');
ALTER TABLE d2.a DROP h;
\x on
SELECT object, status, detail, hint FROM findings('schema') WHERE check_name = 'target_definition_diff';
\x off
SELECT check_name, object, detail FROM migrate_preflight('schema') WHERE check_name = 'target_indexes';
-- the job builds them; or the DBA
SELECT migrate_alter_job('schema', '{"indexes": "all"}');
SELECT object FROM findings('schema') WHERE check_name = 'target_definition_diff' AND object ~ '(index|key|constraint)';
SELECT migrate_alter_job('schema', '{"indexes": "none"}');
SELECT object FROM findings('schema') WHERE check_name = 'target_definition_diff' AND object ~ '(index|key|constraint)';
SELECT check_name, object, status, detail FROM migrate_preflight('schema') WHERE check_name = 'key_index';
-- children that are targets themselves cannot be left out by a foreign scan
UPDATE migrate.source_table SET only_parent = true WHERE source = 'd.later';
SELECT migrate_alter_job('schema', '{"transport": "fdw"}');
SELECT object, status, detail, hint FROM findings('schema') WHERE check_name = 'inheritance';
SELECT migrate_drop_job('schema');

-- what a type holds of another
SELECT s, t, migrate._type_fits(s, t) AS fits FROM (VALUES
	('bigint', 'integer'), ('smallint', 'bigint'), ('integer', 'numeric'), ('integer', 'numeric(9,0)'), ('integer', 'numeric(12,2)'),
	('numeric', 'numeric(10,2)'), ('numeric(10,2)', 'numeric(11,3)'), ('numeric(10,2)', 'numeric(11,1)'), ('numeric(10,2)', 'numeric(12,1)'),
	('character varying(5)', 'character varying(4)'), ('character varying(5)', 'character varying(6)'), ('character varying(5)', 'character varying'),
	('character varying', 'character varying(5)'), ('character(3)', 'text'), ('character(3)', 'character varying(3)'), ('character(3)', 'character(4)'),
	('timestamp(3) without time zone', 'timestamp without time zone'), ('timestamp without time zone', 'timestamp(0) without time zone'),
	('timestamp with time zone', 'timestamp without time zone'), ('timestamp without time zone', 'date'), ('date', 'timestamp without time zone'),
	('json', 'jsonb'), ('jsonb', 'json'), ('integer', 'double precision'), ('bigint', 'double precision'), ('real', 'double precision'),
	('bit(3)', 'bit(4)'), ('bit varying(3)', 'bit varying(4)'), ('integer[]', 'bigint[]'), ('numeric(5,1)[]', 'numeric(4,1)[]'),
	('uuid', 'text'), ('text', 'uuid')) x(s, t);

-- the refresh
\c migrate_schema_src regress_schema
CREATE SCHEMA e;
CREATE TYPE e.mood AS ENUM ('sad', 'ok');
CREATE TABLE e.a (id bigint PRIMARY KEY, v varchar(10), n numeric(6,2), m e.mood);
CREATE TABLE e.renamed (id int PRIMARY KEY, x text, y text);
CREATE TABLE e.dropped (id int PRIMARY KEY, x text, y text);
CREATE TABLE e.either (id int PRIMARY KEY, x text, y text);
CREATE TABLE e.each (id int PRIMARY KEY, x text, y text);
CREATE TABLE e.gone (id int PRIMARY KEY);
CREATE TABLE e.retyped (id int PRIMARY KEY, t text);
CREATE TABLE e.fun (id int PRIMARY KEY, t text);
CREATE TABLE e.key (id int PRIMARY KEY, k int NOT NULL UNIQUE);
CREATE TABLE e.theirs (id int PRIMARY KEY);
\c regression regress_schema
CREATE SCHEMA e2;
CREATE TABLE e2.theirs (id int PRIMARY KEY);
CREATE TABLE e2.fun (id int PRIMARY KEY, t text);
SELECT migrate_create_job('schema', 'schema_src') > 0 AS made;
SELECT migrate_import('schema', 'e', 'e_src');
CREATE FUNCTION e2.map(f e_src.fun) RETURNS SETOF e2.fun LANGUAGE sql STABLE AS 'SELECT f.id, f.t';
SELECT migrate_add_table('schema', 'e.fun', 'e2.fun', mapping => 'e2.map');
SELECT migrate_add_schema('schema', 'e', 'e2', exclude => '{fun,skip*}');
SELECT * FROM migrate_refresh_schema('schema');
\c migrate_schema_src regress_schema
ALTER TYPE e.mood ADD VALUE 'soso' BEFORE 'ok';
ALTER TYPE e.mood ADD VALUE 'great';
ALTER TYPE e.mood ADD VALUE 'awful' BEFORE 'sad';
ALTER TABLE e.a ADD first text DEFAULT 'x' NOT NULL COLLATE "C", ADD second e.mood, ADD g int GENERATED ALWAYS AS (id * 2) STORED,
	ADD i int GENERATED BY DEFAULT AS IDENTITY, ALTER v TYPE varchar(20), ALTER n TYPE numeric(8,2), ALTER v SET DEFAULT 'd';
ALTER TABLE e.renamed RENAME x TO x2;
ALTER TABLE e.renamed RENAME y TO y2;
ALTER TABLE e.dropped DROP x;
ALTER TABLE e.either DROP y, ADD z text;
ALTER TABLE e.each DROP y, ADD z int;
ALTER TABLE e.retyped ALTER t TYPE int USING length(t);
DROP TABLE e.gone;
CREATE TABLE e.fresh (id int PRIMARY KEY);
CREATE TABLE e.skipped (id int PRIMARY KEY);
ALTER TABLE e.fun ADD more int;
ALTER TABLE e.theirs ADD more int;
ALTER TABLE e.key DROP CONSTRAINT key_pkey;
CREATE INDEX a_v ON e.a (v);
\c regression regress_schema
\x on
SELECT * FROM migrate_refresh_schema('schema');
\x off
\d e2.a
\dT+ e.mood
-- as the hints say, and again
SELECT string_agg(regexp_replace(regexp_replace(hint, '^.*Dropped: ', ''), 'SELECT migrate_refresh_schema.*', ''), ' ') AS statements FROM migrate_refresh_schema('schema')
WHERE object IN ('e.renamed', 'e.dropped', 'e.either', 'e.each', 'e.retyped', 'e.gone', 'column v of e2.a') \gset
SET client_min_messages = warning;
:statements
ALTER TABLE e2.theirs ADD more int;
RESET client_min_messages;
SELECT object, change, action FROM migrate_refresh_schema('schema');
SELECT object, change, action FROM migrate_refresh_schema('schema');
SELECT target, target_columns FROM migrate.mapping WHERE target ~ '^e2' ORDER BY target COLLATE "C";
SELECT source_schema, include, exclude FROM migrate.job_schema WHERE source_schema = 'e';
SELECT kind, message FROM migrate.event WHERE kind = 'refresh' ORDER BY event_id;
-- errors
SELECT migrate_refresh_schema('no such');
UPDATE migrate.job SET wanted = 'run' WHERE job = 'schema';
SELECT migrate_refresh_schema('schema');
UPDATE migrate.job SET wanted = 'stop' WHERE job = 'schema';
ALTER SERVER schema_src OPTIONS (SET dbname 'no such database');
\set VERBOSITY sqlstate
SELECT migrate_refresh_schema('schema');
\set VERBOSITY default

SET client_min_messages = error;
DO $$ BEGIN PERFORM migrate_drop_job('schema'); END $$;
DROP FUNCTION findings;
DROP SERVER schema_src CASCADE;
DROP SCHEMA part, even, d2, e, e2 CASCADE;
DROP SCHEMA IF EXISTS e_src, "Odd 'un", d CASCADE;
DROP TABLE orders, plain CASCADE;
DROP FUNCTION f, tell;
DROP TYPE mood, small CASCADE;
DROP EXTENSION citext;
DROP SCHEMA IF EXISTS schema_src CASCADE;
DROP DATABASE migrate_schema_src;
DROP ROLE regress_schema_app;
