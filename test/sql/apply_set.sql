--
-- Sets of changes into targets: the net effect of a batch, without a stream
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_apply SUPERUSER LOGIN;
CREATE DATABASE migrate_apply_src TEMPLATE template0 ENCODING 'SQL_ASCII';
\c migrate_apply_src regress_apply
CREATE TABLE plain (id int PRIMARY KEY, v text, n int);
CREATE TABLE "Odd ""Name" ("a b" text, "C" uuid, "Val" text, PRIMARY KEY ("a b", "C"));
CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, v text);
CREATE TABLE parts (id int, region text, v text, PRIMARY KEY (id));
CREATE TABLE filt (id int PRIMARY KEY, active boolean, u text);
CREATE TABLE tags (id int PRIMARY KEY, tags text);
CREATE TABLE big (id int PRIMARY KEY, t text, n int);
INSERT INTO big SELECT i, 'source ' || i, i FROM generate_series(1, 5) i;
UPDATE big SET t = convert_from('\xff41'::bytea, 'SQL_ASCII') WHERE id = 5;
CREATE TABLE nokey (a int, b text);
\c regression regress_apply
CREATE SCHEMA a;
CREATE FUNCTION a.apply(job text, source text, images jsonb DEFAULT NULL, gone jsonb DEFAULT NULL, unknown jsonb DEFAULT NULL, truncate boolean DEFAULT false)
	RETURNS text LANGUAGE C AS '$libdir/migrate', 'migrate_test_apply';
CREATE SERVER apply_src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_apply_src');
CREATE USER MAPPING FOR regress_apply SERVER apply_src OPTIONS (user 'regress_apply');
SELECT migrate_create_job('a', 'apply_src') > 0 AS made;
SELECT migrate_import('a', 'public', 'asrc');
CREATE VIEW a.letters AS
	SELECT m.target, d.stage, d.state, d.key, d.source_row, d.sqlstate, d.message, d.detail
	FROM migrate.dead_letter d JOIN migrate.mapping m USING (mapping_id) JOIN migrate.job j ON j.job_id = d.job_id
	WHERE j.job = 'a' ORDER BY d.id;

-- plain: in place, new, gone; columns that are not mapped keep what they have
CREATE TABLE a.plain (id int PRIMARY KEY, v text, n int, ours text DEFAULT 'default', twice int GENERATED ALWAYS AS (n * 2) STORED, CHECK (n < 100));
SELECT migrate_add_table('a', 'public.plain', 'a.plain');
INSERT INTO a.plain VALUES (1, 'one', 1, 'kept'), (2, 'two', 2, 'kept'), (3, 'three', 3, 'kept');
SELECT a.apply('a', 'public.plain', '[{"id": 1, "v": "ONE", "n": 10}, {"id": 2, "v": "two", "n": 2}, {"id": 4, "v": "four", "n": 4}]', '[{"id": 3}, {"id": 77}]');
SELECT * FROM a.plain ORDER BY id;
-- the same again changes nothing
SELECT a.apply('a', 'public.plain', '[{"id": 1, "v": "ONE", "n": 10}, {"id": 2, "v": "two", "n": 2}, {"id": 4, "v": "four", "n": 4}]', '[{"id": 3}, {"id": 77}]');
-- a row that fails takes no other with it, and its old image goes
SELECT a.apply('a', 'public.plain', '[{"id": 1, "v": "ok", "n": 1}, {"id": 2, "v": "bad", "n": 200}, {"id": 3, "v": "ok", "n": 3}, {"id": 4, "v": "bad", "n": 300}]');
SELECT * FROM a.plain ORDER BY id;
SELECT * FROM a.letters;
-- a later change supersedes, also a delete; a new failure has a new letter
SELECT a.apply('a', 'public.plain', '[{"id": 2, "v": "good", "n": 2}]', '[{"id": 4}]');
SELECT * FROM a.plain ORDER BY id;
SELECT state, key FROM a.letters;
