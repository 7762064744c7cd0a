--
-- Dead letters: dry run, replay, discard; doubles found when a key is built
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_letters SUPERUSER LOGIN;
CREATE DATABASE migrate_letters_src TEMPLATE template0 ENCODING 'SQL_ASCII';
\c migrate_letters_src regress_letters
CREATE TABLE orders (id int, part text, total numeric(12,2), at timestamptz, code char(5), PRIMARY KEY (id, part));
INSERT INTO orders SELECT i, 'p' || i % 3, i * 1.25, '2026-01-01 00:00+00'::timestamptz + i * interval '1 min', 'c' || i % 9
FROM generate_series(1, 500) i;
CREATE TABLE people (id int PRIMARY KEY, email text);
INSERT INTO people SELECT i, 'p' || i || '@x' FROM generate_series(1, 100) i;
INSERT INTO people VALUES (201, 'P1@x'), (202, 'P2@x'), (203, 'P2@X');
CREATE TABLE tags (id int PRIMARY KEY, tags text);
INSERT INTO tags VALUES (1, 'a'), (2, 'a,b'), (3, 'a,bad'), (4, NULL);
CREATE TABLE log (line text, n int);
INSERT INTO log VALUES ('one', 1), ('two', 2), ('two', 2), ('three', -3);
CREATE TABLE bytes (id int PRIMARY KEY, v text);
INSERT INTO bytes SELECT i, 'v' || i FROM generate_series(1, 1000) i;
UPDATE bytes SET v = convert_from('\xff41'::bytea, 'SQL_ASCII') WHERE id = 500;
CREATE TABLE bytes_nokey (v text);
INSERT INTO bytes_nokey SELECT 'v' || i FROM generate_series(1, 1000) i;
UPDATE bytes_nokey SET v = convert_from('\xff41'::bytea, 'SQL_ASCII') WHERE v = 'v500';
CREATE TABLE moved (id int PRIMARY KEY, v text, grp int);
INSERT INTO moved SELECT i, 'v' || i, i / 2 FROM generate_series(1, 100) i;
CREATE TABLE clash (id int PRIMARY KEY, a int, b text);
INSERT INTO clash SELECT i, i % 99, 'same' FROM generate_series(1, 100) i;
\c regression regress_letters
CREATE SERVER letters_src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_letters_src');
CREATE USER MAPPING FOR regress_letters SERVER letters_src OPTIONS (user 'regress_letters');
SELECT migrate_create_job('l', 'letters_src', '{"max_dead_ratio": 1}') > 0 AS made;
SELECT migrate_import('l', 'public', 'lsrc');
CREATE SCHEMA l;
CREATE TABLE l.orders (id bigint, part text, total_cents bigint, at timestamptz, code char(5), PRIMARY KEY (id, part));
CREATE TABLE l.people (pid int, email text UNIQUE);
CREATE TABLE l.tags (id int, tag text CHECK (tag <> 'bad'), PRIMARY KEY (id, tag));
CREATE TABLE l.log (line text, n int CONSTRAINT positive CHECK (n > 0));
CREATE FUNCTION l.cents(t numeric, id int) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	IF id IN (77, 88, 99) THEN
		RAISE EXCEPTION 'no % here', id USING ERRCODE = '22012', DETAIL = 'A detail.', HINT = 'A hint.';
	END IF;
	RETURN t * 100;
END $$;
CREATE FUNCTION l.map_tags(t lsrc.tags) RETURNS SETOF l.tags LANGUAGE sql STABLE
	AS $$ SELECT t.id, x FROM unnest(string_to_array(t.tags, ',')) x $$;
SELECT migrate_add_table('l', 'public.orders', 'l.orders', columns => '{"total_cents": "l.cents(total, id)"}');
SELECT migrate_add_table('l', 'public.people', 'l.people', columns => '{"email": "lower(email)", "pid": "id"}', key => '{"email": "lower(email)"}');
SELECT migrate_add_table('l', 'public.tags', 'l.tags', mapping => 'l.map_tags', key => '{"id": "id"}');
SELECT migrate_add_table('l', 'public.log', 'l.log');
SELECT migrate_add_table('l', 'public.bytes', 'l.bytes');
SELECT migrate_add_table('l', 'public.bytes_nokey', 'l.bytes_nokey');
SELECT migrate_add_table('l', 'public.moved', 'l.moved');
SELECT migrate_add_table('l', 'public.clash', 'l.clash');

-- dry run: a row each, filtered ones and errors; nothing stays
SELECT * FROM migrate_dry_run('l', 'l.tags');
SELECT source_row ->> 'id' AS id, target_row, sqlstate, error FROM migrate_dry_run('l', 'l.orders', 99) WHERE sqlstate IS NOT NULL;
SELECT row_no, target_row FROM migrate_dry_run('l', 'l.orders', 1);
SELECT count(*) AS letters FROM migrate.dead_letter d JOIN migrate.job j USING (job_id) WHERE j.job = 'l';
SELECT count(*) AS rows FROM l.tags;
SELECT * FROM migrate_dry_run('l', 'l.none');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM migrate_dry_run('none', 'l.tags');
SELECT * FROM migrate_dry_run('l', 'l.tags', 0);
\echo :LAST_ERROR_SQLSTATE

-- nothing to replay yet
SELECT * FROM migrate_replay('l');

-- a row that was read twice while it moved; one that is gone; a key that is none
INSERT INTO l.moved VALUES (5, 'stale', 0), (5, 'v5', 2), (999, 'gone', 0), (999, 'gone', 0);
BEGIN;
SELECT migrate_start('l');
UPDATE migrate.post_step SET ddl = 'CREATE UNIQUE INDEX clash_pkey ON l.clash (a, b)' WHERE relation = 'l.clash' AND kind = 'key';
COMMIT;
SELECT migrate_wait('l', 'copied', '60s');
CREATE VIEW letters AS
	SELECT m.target, d.stage, d.state, d.key, coalesce(d.source_row ->> 'n', d.source_row ->> 'id') AS row, d.sqlstate, d.message, d.attempts
	FROM migrate.dead_letter d JOIN migrate.mapping m USING (mapping_id) JOIN migrate.job j ON j.job_id = d.job_id
	WHERE j.job = 'l' ORDER BY target COLLATE "C", (d.key ->> 'id')::int, stage;
SELECT * FROM letters;
SELECT p.relation, p.state FROM migrate.post_step p JOIN migrate.job j USING (job_id) WHERE j.job = 'l' AND p.kind = 'key' ORDER BY relation COLLATE "C";
SELECT id, v, grp FROM l.moved WHERE id IN (5, 999);
SELECT target, doubles FROM migrate.mapping WHERE target IN ('l.moved', 'l.clash') ORDER BY 1;
SELECT message FROM migrate.event WHERE kind = 'doubles' ORDER BY message COLLATE "C";
SELECT target, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('l');

-- nothing has changed: all fail again
SELECT * FROM migrate_replay('l');
SELECT * FROM letters;
SELECT target, source_rows, target_rows, mismatches, status FROM migrate_validate('l');

-- mapping, source and target are corrected
CREATE OR REPLACE FUNCTION l.cents(t numeric, id int) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	IF id = 88 THEN
		RAISE EXCEPTION 'still not % here', id USING ERRCODE = '22013';
	END IF;
	RETURN t * 100;
END $$;
ALTER TABLE l.tags DROP CONSTRAINT tags_tag_check;
ALTER TABLE l.log DROP CONSTRAINT positive;
\c migrate_letters_src regress_letters
DELETE FROM orders WHERE id = 99;
UPDATE orders SET total = 7.77 WHERE id = 77;
UPDATE bytes SET v = 'corrected' WHERE id = 500;
UPDATE bytes_nokey SET v = 'corrected' WHERE v ~ 'A';
DELETE FROM people WHERE id = 2;
UPDATE clash SET a = 1000 WHERE id = 100;
\c regression regress_letters
\set SHOW_CONTEXT never
SELECT * FROM migrate_replay('l', 'l.orders');
SELECT * FROM migrate_replay('l');
SELECT * FROM letters;
SELECT * FROM l.orders WHERE id IN (77, 88, 99);
SELECT * FROM l.people WHERE email IN ('p1@x', 'p2@x') ORDER BY pid;
-- again: no row twice
SELECT * FROM migrate_replay('l');
SELECT target, source_rows, target_rows, mismatches, status FROM migrate_validate('l');

-- an error that is not the row's fault changes nothing
ALTER TABLE l.orders RENAME code TO kode;
SELECT * FROM migrate_replay('l', 'l.orders');
ALTER TABLE l.orders RENAME kode TO code;
SELECT attempts FROM letters WHERE target = 'l.orders' AND state = 'open';

-- by id; wrong calls
SELECT d.id FROM migrate.dead_letter d WHERE d.message = 'still not 88 here' \gset
SELECT * FROM migrate_replay('l', ids => ARRAY[:id]);
SELECT * FROM migrate_replay('l', 'l.tags', ARRAY[:id]);
SELECT * FROM migrate_replay('l', ids => '{0,-5}');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM migrate_replay('l', 'l.none');
SELECT * FROM migrate_replay('none');
\echo :LAST_ERROR_SQLSTATE

-- discard
SELECT migrate_discard('l', ARRAY[:id], ' ');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_discard('l', ARRAY[:id, 0], 'test data');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_discard('l', NULL, 'test data');
SELECT migrate_discard('none', ARRAY[:id], 'test data');
SELECT migrate_discard('l', ARRAY[:id], 'test data');
SELECT migrate_discard('l', ARRAY[:id], 'test data');
SELECT state, reason FROM migrate.dead_letter WHERE id = :id;
SELECT target, mismatches, status FROM migrate_validate('l', 'l.orders');

SET client_min_messages = error;
SELECT count(*) > 0 AS dropped FROM migrate_drop_job('l');
DROP VIEW letters;
DROP SCHEMA l, lsrc CASCADE;
DROP SERVER letters_src CASCADE;
DROP DATABASE migrate_letters_src;
