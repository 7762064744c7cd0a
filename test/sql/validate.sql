--
-- Validation: equal, planted differences, each level, and who may
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_validate SUPERUSER LOGIN;
CREATE DATABASE migrate_validate_src TEMPLATE template0 ENCODING 'UTF8';
\c migrate_validate_src regress_validate
CREATE TABLE orders (id int PRIMARY KEY, customer text, total numeric(12,2), at timestamptz,
	note bytea, f float8, tags text[], j jsonb);
INSERT INTO orders SELECT i, 'c' || i % 100, i * 1.25, '2026-01-01 00:00+00'::timestamptz + i * interval '1 min',
	CASE WHEN i % 3 > 0 THEN decode(md5(i::text), 'hex') END, i / 7.0::float8,
	ARRAY['a', i::text, NULL], jsonb_build_object('n', i)
FROM generate_series(1, 20000) i;
CREATE TABLE log (line text, n int);
INSERT INTO log SELECT 'line ' || i % 500, i % 7 FROM generate_series(1, 5000) i;
CREATE TABLE tags (id int PRIMARY KEY, tags text);
INSERT INTO tags SELECT i, array_to_string(ARRAY(SELECT 't' || k FROM generate_series(1, i % 4) k), ',')
FROM generate_series(1, 300) i;
CREATE TABLE empty (id int PRIMARY KEY);
CREATE TABLE nocols ();
INSERT INTO nocols DEFAULT VALUES;
INSERT INTO nocols DEFAULT VALUES;
CREATE TABLE parted (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200);
INSERT INTO parted SELECT i, 'v' || i FROM generate_series(0, 199) i;
CREATE TABLE tenant (id int PRIMARY KEY, v text);
INSERT INTO tenant SELECT i, 'v' || i FROM generate_series(1, 50) i;
\c regression regress_validate
CREATE SERVER validate_src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_validate_src');
CREATE USER MAPPING FOR regress_validate SERVER validate_src OPTIONS (user 'regress_validate');
SELECT migrate_create_job('v', 'validate_src') > 0 AS made;
SELECT migrate_import('v', 'public', 'vsrc');
CREATE SCHEMA v;
CREATE TABLE v.orders (id bigint PRIMARY KEY, customer varchar(20), total_cents bigint, at timestamptz,
	note bytea, f float8, tags text[], j jsonb, seen timestamptz DEFAULT now());
CREATE TABLE v.log (line text, n int);
CREATE TABLE v.tags (id int, tag text, PRIMARY KEY (id, tag));
CREATE TABLE v.parted (id int PRIMARY KEY, v text);
CREATE TABLE v.tenant (tenant int, id int, v text, PRIMARY KEY (tenant, id));
INSERT INTO v.tenant VALUES (8, 1, 'of another');
CREATE FUNCTION v.map_tags(t vsrc.tags) RETURNS SETOF v.tags LANGUAGE sql STABLE
	AS $$ SELECT t.id, x FROM unnest(string_to_array(t.tags, ',')) x $$;
SELECT migrate_add_table('v', 'public.orders', 'v.orders', columns => '{"total_cents": "(total * 100)::bigint"}');
SELECT migrate_add_table('v', 'public.log', 'v.log');
SELECT migrate_add_table('v', 'public.tags', 'v.tags', mapping => 'v.map_tags', key => '{"id": "id"}');
SELECT migrate_add_table('v', 'public.empty', 'v.empty');
SELECT migrate_add_table('v', 'public.nocols', 'v.nocols');
SELECT migrate_add_table('v', 'public.parted', 'v.parted', filter => 'id % 10 <> 0');
SELECT migrate_add_table('v', 'public.tenant', 'v.tenant', columns => '{"tenant": 7}',
	key => '{"tenant": 7, "id": "id"}', owns => 'tenant = 7');

CREATE VIEW differences AS
	SELECT m.target, d.kind, d.key, d.columns, d.source_row, d.target_row, d.dead_letter IS NOT NULL AS explained
	FROM migrate.difference d JOIN migrate.validation_run v USING (validation_id) JOIN migrate.mapping m USING (mapping_id)
	WHERE v.validation_id = (SELECT max(validation_id) FROM migrate.validation_run);

-- before the copy: through the foreign tables
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', 'v.log', 'count');

SELECT migrate_start('v');
SELECT migrate_wait('v', 'copied', '60s');
SELECT target, level, source_rows, target_rows, matched, mismatches, status, duration >= interval '0' AS timed
FROM migrate_validate('v');
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', level => 'count');
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', level => 'full');

-- the caller's settings have no say
SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Tokyo'; SET extra_float_digits = -5; SET bytea_output = escape; SET intervalstyle = iso_8601;
SELECT target, matched FROM migrate_validate('v', 'v.orders');
SHOW datestyle;
RESET ALL;

-- planted: values, pairs that swap, rows that lack, rows too many, twins
BEGIN;
UPDATE v.orders SET customer = 'x' || customer WHERE id IN (5, 600, 12345);
UPDATE v.orders a SET total_cents = b.total_cents FROM v.orders b WHERE (a.id, b.id) IN ((10, 11), (11, 10));
UPDATE v.orders SET note = NULL WHERE id = 1000;
UPDATE v.orders SET note = '' WHERE id = 999;
UPDATE v.orders SET f = f + 1e-12 WHERE id = 77;
UPDATE v.orders SET tags[3] = 'NULL', customer = NULL WHERE id = 78;
DELETE FROM v.orders WHERE id = 99;
INSERT INTO v.orders (id) VALUES (-1);
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', 'v.orders');
SELECT kind, key, columns FROM differences ORDER BY (key ->> 'id')::int;
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', 'v.orders', 'full');
SELECT source_row ->> 'f' AS source_f, target_row ->> 'f' AS target_f FROM differences WHERE key = '{"id": "77"}';
SELECT source_row ->> 'tags' AS source_tags, target_row ->> 'tags' AS target_tags, target_row FROM differences WHERE key = '{"id": "78"}';
-- what a count cannot see
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', 'v.orders', 'count');
SELECT level, kind, message FROM migrate.event WHERE kind = 'validation' ORDER BY event_id;
ROLLBACK;

-- random updates are all found, and nothing else
BEGIN;
SELECT setseed(0.42);
CREATE TEMP TABLE hit ON COMMIT DROP AS
	SELECT id FROM v.orders WHERE random() < 0.02;
UPDATE v.orders SET total_cents = total_cents + (CASE WHEN id % 2 = 0 THEN 1 ELSE -1 END) WHERE id IN (SELECT id FROM hit);
SELECT mismatches = (SELECT count(*) FROM hit) AS all_found FROM migrate_validate('v', 'v.orders');
SELECT count(*) AS wrong FROM hit FULL JOIN differences d ON d.key ->> 'id' = hit.id::text
WHERE hit.id IS NULL OR d.key IS NULL OR d.columns <> '{total_cents}';
ROLLBACK;

-- whoever computes the digests: the same differences, and only those
\c migrate_validate_src regress_validate
CREATE TABLE zoo (id int PRIMARY KEY, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, t text, vc varchar(40), c char(9), ba bytea,
	d date, tm time, tz timetz, ts timestamp, tsz timestamptz, iv interval, u uuid, jb jsonb, js json, ip inet, mac macaddr, bits bit(5),
	p point, arr int[], tarr text[], r int4range, nm name, x text, y text);
INSERT INTO zoo SELECT i, i % 2 = 0, i % 30000, i * 10000000000, i / 7.0, i / 7.0, i / 8.0, 't' || i, 'v' || i, 'c' || i, decode(md5(i::text), 'hex'),
	date '2020-01-01' + i, time '00:00' + i * interval '1 s', timetz '00:00+01' + i * interval '1 s', timestamp '2020-01-01' + i * interval '1 min',
	timestamptz '2020-01-01 UTC' + i * interval '1 min', i * interval '1 hour', md5(i::text)::uuid, jsonb_build_object('a', i, 'b', jsonb_build_array(i, null)),
	json_build_object('a', i), inet '10.0.0.0' + i, '08:00:2b:01:02:03'::macaddr, (i % 32)::bit(5), point(i, i / 3.0), ARRAY[i, NULL, 3], ARRAY['x', i::text],
	int4range(i, i + 5), 'n' || i, CASE WHEN i % 2 = 0 THEN 'x' || i END, CASE WHEN i % 3 = 0 THEN 'x' || i END
FROM generate_series(1, 3000) i;
INSERT INTO zoo (id) VALUES (-2147483648), (2147483647);
CREATE TABLE keyed (a text COLLATE "C", b uuid, v int, PRIMARY KEY (a, b));
INSERT INTO keyed SELECT 'k' || i % 50, md5(i::text)::uuid, i FROM generate_series(1, 3000) i;
\c regression regress_validate
SELECT migrate_create_job('z', 'validate_src') > 0 AS made;
CREATE SCHEMA z;
SELECT migrate_import('z', 'public', 'zsrc', include => '{zoo,keyed,log}');
SELECT migrate_add_schema('z', 'public', 'z', include => '{zoo,keyed,log}');
SELECT migrate_start('z');
SELECT migrate_wait('z', 'copied', '60s');
CREATE FUNCTION results() RETURNS TABLE (target text, digest text, source_rows bigint, target_rows bigint, mismatches bigint, status text, found text) LANGUAGE sql AS $$
	SELECT v.target, v.digest, v.source_rows, v.target_rows, v.mismatches, v.status, (SELECT string_agg(concat_ws(' ', d.kind, d.key ->> 'id', d.columns::text), ', ' ORDER BY d.key ->> 'id', d.kind)
		FROM migrate.differences d WHERE d.validation_id = v.validation_id AND d.target = 'z.zoo')
	FROM migrate.validation v WHERE v.job = 'z' AND v.validation_id > (SELECT max(validation_id) - 3 FROM migrate.validation_run) ORDER BY v.target $$;
\c migrate_validate_src regress_validate
SET client_min_messages = warning;
CREATE EXTENSION migrate CASCADE;
\c regression regress_validate
CREATE PROCEDURE all_digests(sql text) LANGUAGE plpgsql AS $$
DECLARE
	x text;
	r record;
BEGIN
	FOREACH x IN ARRAY '{here,source,extension}'::text[] LOOP
		PERFORM migrate_alter_job('z', jsonb_build_object('digest', x));
		BEGIN
			EXECUTE sql;
			PERFORM migrate_validate('z');
			FOR r IN SELECT * FROM results() LOOP
				RAISE NOTICE '% by %: % % % % %', r.target, r.digest, r.source_rows, r.target_rows, r.mismatches, r.status, r.found;
			END LOOP;
			RAISE SQLSTATE 'UNDOO';
		EXCEPTION WHEN SQLSTATE 'UNDOO' THEN NULL;
		END;
	END LOOP;
END $$;
CALL all_digests('SELECT');
CALL all_digests($$UPDATE z.zoo SET n = n + 0.001 WHERE id = 7; UPDATE z.zoo SET c = 'd' WHERE id = 8; DELETE FROM z.zoo WHERE id = 9; INSERT INTO z.zoo (id) VALUES (-5), (0);
	UPDATE z.zoo SET x = '' WHERE x IS NULL AND id IN (11, 13); UPDATE z.zoo SET jb = jsonb_set(jb, '{b,1}', '0') WHERE id = 2000;
	DELETE FROM z.zoo WHERE id = 2147483647; UPDATE z.zoo SET tarr[3] = NULL WHERE id = 2500; UPDATE z.zoo SET x = y, y = x WHERE id = 2998;
	UPDATE z.keyed SET v = v + 1 WHERE a = 'k7'; DELETE FROM z.log WHERE ctid = (SELECT min(ctid) FROM z.log)$$);
-- values that two rows have exchanged: in one range, and across
CALL all_digests($$UPDATE z.zoo q SET t = w.t FROM z.zoo w WHERE (q.id, w.id) IN ((100, 101), (101, 100), (5, 2900), (2900, 5))$$);
CALL all_digests($$UPDATE z.keyed q SET v = w.v FROM z.keyed w WHERE (q.v, w.v) IN ((100, 101), (101, 100), (5, 2900), (2900, 5))$$);
-- duplicates of a row without a key do not cancel
CALL all_digests($$INSERT INTO z.log SELECT * FROM z.log WHERE line = 'line 8'; INSERT INTO z.log SELECT * FROM z.log WHERE line = 'line 9' UNION ALL SELECT * FROM z.log WHERE line = 'line 9'$$);
-- what is equal, but another text: by text always, by equality where the source computes
CALL all_digests($$UPDATE z.zoo SET n = 0.50 WHERE id = 4$$);
SELECT migrate_alter_job('z', '{"digest": "source"}');
BEGIN;
UPDATE z.zoo SET n = 0.50 WHERE id = 4;
SELECT target, matched, mismatches FROM migrate_validate('z', 'z.zoo', 'full');
SELECT digest FROM migrate.validation ORDER BY validation_id DESC LIMIT 1;
ROLLBACK;
SELECT migrate_alter_job('z', '{"digest": "auto"}');
SELECT target, matched FROM migrate_validate('z', 'z.zoo');
SELECT digest FROM migrate.validation ORDER BY validation_id DESC LIMIT 1;
DROP PROCEDURE all_digests;
DROP FUNCTION results;

-- repair: what it would do, does, and that it is so afterwards; without a list, beyond its limit
CREATE PROCEDURE repaired(target text) LANGUAGE plpgsql AS $$
DECLARE
	r record;
	x text;
BEGIN
	FOREACH x IN ARRAY '{here,source}'::text[] LOOP
		PERFORM migrate_alter_job('z', jsonb_build_object('digest', x));
		BEGIN
			CASE target
				WHEN 'z.zoo' THEN
					UPDATE z.zoo SET n = n + 0.001 WHERE id % 2 = 0;
					DELETE FROM z.zoo WHERE id = 9 OR id = 2147483647;
					INSERT INTO z.zoo (id) VALUES (-5), (0), (5000);
				WHEN 'z.keyed' THEN
					UPDATE z.keyed SET v = v + 1 WHERE a = 'k7';
					DELETE FROM z.keyed WHERE a = 'k8';
					INSERT INTO z.keyed SELECT 'new', b, v FROM z.keyed WHERE a = 'k9';
				WHEN 'z.log' THEN
					DELETE FROM z.log WHERE line = 'line 7';
					INSERT INTO z.log SELECT * FROM z.log WHERE line = 'line 8' UNION ALL SELECT 'new', NULL FROM generate_series(1, 3);
			END CASE;
			IF target <> 'z.zoo' THEN
				FOR r IN SELECT action, count(*) FROM migrate_repair('z', target) GROUP BY 1 ORDER BY 1 LOOP RAISE NOTICE 'dry %', r; END LOOP;
			ELSE
				FOR r IN SELECT q.* FROM migrate_repair('z', target) q WHERE action <> 'update' OR key ->> 'id' = '2' ORDER BY action, key ->> 'id' LOOP RAISE NOTICE 'dry %', r; END LOOP;
			END IF;
			FOR r IN SELECT q.* FROM migrate_repair('z', target, dry_run => false) q LOOP RAISE NOTICE 'run by % %', x, r; END LOOP;
			RAISE NOTICE '%', (SELECT matched FROM migrate_validate('z', target, 'full'));
			RAISE NOTICE '%', (SELECT v.status FROM migrate.validation v ORDER BY validation_id DESC OFFSET 1 LIMIT 1);
			RAISE SQLSTATE 'UNDOO';
		EXCEPTION WHEN SQLSTATE 'UNDOO' THEN NULL;
		END;
	END LOOP;
END $$;
CALL repaired('z.zoo');
CALL repaired('z.keyed');
CALL repaired('z.log');
SELECT action, rows FROM migrate_repair('z', dry_run => false);
BEGIN;
DELETE FROM v.tags WHERE id = 3 AND tag = 't2';
INSERT INTO v.tags VALUES (4, 't9'), (1000, 'x');
UPDATE v.tags SET tag = 'z' WHERE id = 2 AND tag = 't1';
DELETE FROM v.tenant WHERE tenant = 7 AND id < 4;
UPDATE v.tenant SET v = 'mine' WHERE tenant = 8;
INSERT INTO v.parted VALUES (10, 'filtered');
SELECT target, action, key FROM migrate_repair('v') ORDER BY target, key ->> 'id';
SELECT target, action, rows FROM migrate_repair('v', NULL, false) ORDER BY target, action;
SELECT target, matched FROM migrate_validate('v');
SELECT * FROM v.tenant WHERE tenant = 8;
SELECT level, kind, message FROM migrate.event WHERE kind = 'repair' ORDER BY event_id;
ROLLBACK;
-- rows that cannot be written are dead letters, and their older letters are closed
ALTER TABLE v.orders ADD CONSTRAINT no77 CHECK (id <> 77) NOT VALID;
DELETE FROM v.orders WHERE id IN (77, 78);
SELECT action, rows FROM migrate_repair('v', 'v.orders', false);
SELECT state, sqlstate, key FROM migrate.dead_letters WHERE job = 'v';
SELECT action, rows FROM migrate_repair('v', 'v.orders', false);
SELECT state, count(*) FROM migrate.dead_letters WHERE job = 'v' GROUP BY 1 ORDER BY 1;
ALTER TABLE v.orders DROP CONSTRAINT no77;
SELECT action, rows FROM migrate_repair('v', 'v.orders', false);
SELECT state, count(*) FROM migrate.dead_letters WHERE job = 'v' GROUP BY 1 ORDER BY 1;
SELECT * FROM migrate_repair('v', 'v.none');
\echo :LAST_ERROR_SQLSTATE
DROP PROCEDURE repaired;

-- checks of the user's
SELECT migrate_add_check('v', 'revenue', 'SELECT sum(total) FROM public.orders', 'SELECT sum(total_cents) / 100.00 FROM v.orders');
SELECT migrate_add_check('v', 'customers', 'SELECT customer, count(*) FROM public.orders GROUP BY 1 ORDER BY 2', 'SELECT customer, count(*) FROM v.orders GROUP BY 1');
SELECT migrate_add_check('v', 'revenue', 'SELECT 1', 'SELECT 1');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_add_check('v', ' ', 'SELECT 1', 'SELECT 1');
\echo :LAST_ERROR_SQLSTATE
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v') WHERE target ~ 'check';
BEGIN;
UPDATE v.orders SET total_cents = total_cents - 3, customer = 'c100' WHERE id = 100;
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v') WHERE target ~ 'check';
SELECT target, matched FROM migrate.validation WHERE level = 'check' ORDER BY validation_id DESC LIMIT 2;
ROLLBACK;
SELECT migrate_add_check('v', 'writes', 'SELECT 1', 'DELETE FROM v.orders');
SELECT * FROM migrate_validate('v');
SELECT migrate_remove_check('v', 'writes');
SELECT migrate_remove_check('v', 'revenue');
SELECT migrate_remove_check('v', 'customers');
SELECT migrate_remove_check('v', 'customers');
\echo :LAST_ERROR_SQLSTATE

-- no key: multisets
BEGIN;
WITH d AS (SELECT min(ctid) c FROM v.log WHERE line = 'line 3' AND n = 3) DELETE FROM v.log USING d WHERE ctid = c;
INSERT INTO v.log VALUES ('line 4', 4), ('line 4', 4), ('new', NULL);
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', 'v.log', 'full');
SELECT kind, key, source_row, target_row FROM differences ORDER BY 1, 4;
INSERT INTO v.nocols DEFAULT VALUES;
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', 'v.nocols');
ROLLBACK;

-- one row to many: sets under the key
BEGIN;
DELETE FROM v.tags WHERE id = 3 AND tag = 't2';
INSERT INTO v.tags VALUES (4, 't9');
UPDATE v.tags SET tag = 'z' WHERE id = 2 AND tag = 't1';
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', 'v.tags', 'full');
SELECT kind, key, columns, source_row, target_row FROM differences ORDER BY key ->> 'id';
ROLLBACK;

-- only what the mapping owns
BEGIN;
UPDATE v.tenant SET v = 'changed' WHERE tenant = 8;
SELECT target, source_rows, target_rows, matched FROM migrate_validate('v', 'v.tenant');
UPDATE v.tenant SET v = 'changed' WHERE tenant = 7 AND id = 3;
SELECT target, source_rows, target_rows, matched, mismatches FROM migrate_validate('v', 'v.tenant');
SELECT kind, key FROM differences;
ROLLBACK;

-- everything different: the list has an end, and so has memory
BEGIN;
UPDATE v.orders SET customer = customer || '!';
SELECT target, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', 'v.orders');
SELECT count(*) FROM differences;
SET LOCAL maintenance_work_mem = '1MB';
SELECT target, source_rows, target_rows, matched, mismatches BETWEEN 1000 AND 20000 AS some, status ~ '1000 of at least' AS capped
FROM migrate_validate('v', 'v.orders');
SELECT count(*) FROM differences;
ROLLBACK;
SET maintenance_work_mem = '1MB';
SELECT target, matched FROM migrate_validate('v', 'v.orders');
RESET maintenance_work_mem;

-- a mapping that raises now does not stop the comparison
CREATE OR REPLACE FUNCTION v.map_tags(t vsrc.tags) RETURNS SETOF v.tags LANGUAGE sql STABLE
	AS $$ SELECT t.id / (t.id - 7) * 0 + t.id, x FROM unnest(string_to_array(t.tags, ',')) x $$;
SELECT target, level, source_rows, target_rows, matched, mismatches, status FROM migrate_validate('v', 'v.tags', 'full');
SELECT kind, key, columns, source_row, target_row FROM differences ORDER BY kind, target_row;

-- wrong calls
SELECT * FROM migrate_validate('none');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM migrate_validate('v', 'v.none');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM migrate_validate('v', level => 'deep');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM migrate_validate(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM migrate_validate('v', level => NULL);

-- mapping code runs with the rights of the owner, whoever validates
CREATE ROLE regress_validate_owner LOGIN;
GRANT USAGE ON FOREIGN SERVER validate_src TO regress_validate_owner;
GRANT CREATE ON DATABASE regression TO regress_validate_owner;
CREATE USER MAPPING FOR regress_validate_owner SERVER validate_src OPTIONS (user 'regress_validate', password_required 'false');
SELECT migrate_grant('regress_validate_owner');
SET SESSION AUTHORIZATION regress_validate_owner;
CREATE SCHEMA vo;
CREATE TABLE vo.who (id int PRIMARY KEY, v text);
CREATE FUNCTION vo.who(i int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN current_user; END $$;
SELECT migrate_create_job('vo', 'validate_src') > 0 AS made;
SELECT migrate_import('vo', 'public', 'vosrc', include => '{tenant}');
SELECT migrate_add_table('vo', 'public.tenant', 'vo.who', columns => '{"v": "vo.who(id)"}');
INSERT INTO vo.who SELECT i, 'regress_validate_owner' FROM generate_series(1, 50) i;
SELECT target, matched FROM migrate_validate('vo');
SELECT * FROM migrate_validate('v');
RESET SESSION AUTHORIZATION;
SELECT target, matched FROM migrate_validate('vo');
-- row security on the target: an error, not a wrong result
ALTER TABLE vo.who ENABLE ROW LEVEL SECURITY;
ALTER TABLE vo.who FORCE ROW LEVEL SECURITY;
SELECT target, matched FROM migrate_validate('vo');
\echo :LAST_ERROR_SQLSTATE

SET client_min_messages = error;
SELECT count(*) FROM migrate_drop_job('vo');
SELECT count(*) FROM migrate_drop_job('v');
SELECT count(*) FROM migrate_drop_job('z');
DROP VIEW differences;
DROP SCHEMA v, vo, vsrc, z CASCADE;
DROP SERVER validate_src CASCADE;
REVOKE ALL ON DATABASE regression FROM regress_validate_owner;
DROP OWNED BY regress_validate_owner;
DROP ROLE regress_validate_owner;
DROP DATABASE migrate_validate_src;
