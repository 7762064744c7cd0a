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
CREATE TABLE two (id int PRIMARY KEY, code text NOT NULL UNIQUE);
\c regression regress_apply
CREATE SCHEMA a;
CREATE FUNCTION a.apply(job text, source text, images jsonb DEFAULT NULL, gone jsonb DEFAULT NULL, unknown jsonb DEFAULT NULL, truncate text DEFAULT NULL)
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

-- keys of several columns and odd names; a key that is gone and there again
CREATE TABLE a."T ""x" ("a b" text COLLATE "C", "C" uuid, "Val" varchar(3), PRIMARY KEY ("C", "a b"));
SELECT migrate_add_table('a', 'public."Odd ""Name"', 'a."T ""x"');
SELECT a.apply('a', 'public."Odd ""Name"', '[{"a b": "k", "C": "00000000-0000-0000-0000-000000000001", "Val": "x"}, {"a b": "K", "C": "00000000-0000-0000-0000-000000000001", "Val": "y"}, {"a b": "l", "C": "00000000-0000-0000-0000-000000000002", "Val": null}]');
SELECT a.apply('a', 'public."Odd ""Name"', '[{"a b": "k", "C": "00000000-0000-0000-0000-000000000001", "Val": "z"}, {"a b": "l", "C": "00000000-0000-0000-0000-000000000002", "Val": "long"}]',
	'[{"a b": "k", "C": "00000000-0000-0000-0000-000000000001"}, {"a b": "K", "C": "00000000-0000-0000-0000-000000000001"}]');
TABLE a."T ""x";
SELECT stage, key, sqlstate, message FROM a.letters WHERE target ~ 'x';

-- another unique key: values swapped, moved on, moved to a row that comes first
CREATE TABLE a.uniq (id int PRIMARY KEY, u int UNIQUE, v text, ours int DEFAULT 7);
SELECT migrate_add_table('a', 'public.uniq', 'a.uniq');
INSERT INTO a.uniq SELECT i, i * 10, 'old', i FROM generate_series(1, 6) i;
SELECT a.apply('a', 'public.uniq', '[{"id": 1, "u": 20, "v": "new"}, {"id": 2, "u": 10, "v": "new"}, {"id": 9, "u": 30, "v": "new"}, {"id": 3, "u": 40, "v": "new"}, {"id": 4, "u": 50, "v": "new"}, {"id": 5, "u": 90, "v": "new"}]');
SELECT * FROM a.uniq ORDER BY id;
-- what is in the way of a row outside of the set is a dead letter, others are not
SELECT a.apply('a', 'public.uniq', '[{"id": 1, "u": 60, "v": "newer"}, {"id": 2, "u": 20, "v": "newer"}]');
SELECT * FROM a.uniq ORDER BY id;
SELECT stage, state, key, sqlstate, message, detail FROM a.letters WHERE target = 'a.uniq';
-- its new value is free for it later
SELECT a.apply('a', 'public.uniq', '[{"id": 1, "u": 60, "v": "back"}, {"id": 6, "u": 10, "v": "newer"}]');
SELECT * FROM a.uniq ORDER BY id;
SELECT state, count(*) FROM a.letters WHERE target = 'a.uniq' GROUP BY 1;

-- the same with uniqueness that is deferrable, and with an exclusion constraint
ALTER TABLE a.uniq DROP CONSTRAINT uniq_u_key, ADD UNIQUE (u) DEFERRABLE INITIALLY DEFERRED;
SELECT a.apply('a', 'public.uniq', '[{"id": 1, "u": 10, "v": "d"}, {"id": 6, "u": 60, "v": "d"}]');
SELECT a.apply('a', 'public.uniq', '[{"id": 1, "u": 60, "v": "dead"}]');
SELECT * FROM a.uniq ORDER BY id;
ALTER TABLE a.uniq DROP CONSTRAINT uniq_u_key, ADD EXCLUDE (u WITH =);
SELECT a.apply('a', 'public.uniq', '[{"id": 2, "u": 30, "v": "e"}, {"id": 9, "u": 20, "v": "e"}]');
SELECT a.apply('a', 'public.uniq', '[{"id": 2, "u": 60, "v": "dead"}]');
SELECT * FROM a.uniq ORDER BY id;
SELECT state, key, sqlstate, message FROM a.letters WHERE target = 'a.uniq' AND state = 'open';

-- partitioned here: by statements; rows move between partitions
CREATE TABLE a.parts (id int, region text, v text, ours int DEFAULT 7, UNIQUE (id, region)) PARTITION BY LIST (region);
CREATE TABLE a.parts_a PARTITION OF a.parts FOR VALUES IN ('a');
CREATE TABLE a.parts_b PARTITION OF a.parts FOR VALUES IN ('b');
SELECT migrate_add_table('a', 'public.parts', 'a.parts');
INSERT INTO a.parts SELECT i, 'a', 'old', i FROM generate_series(1, 4) i;
SELECT a.apply('a', 'public.parts', '[{"id": 1, "region": "b", "v": "moved"}, {"id": 2, "region": "a", "v": "stays"}, {"id": 5, "region": "b", "v": "new"}, {"id": 6, "region": "c", "v": "nowhere"}]', '[{"id": 4}]');
SELECT tableoid::regclass, * FROM a.parts ORDER BY id;
CREATE UNIQUE INDEX ON a.parts (v, region);
SELECT a.apply('a', 'public.parts', '[{"id": 1, "region": "b", "v": "new"}, {"id": 5, "region": "b", "v": "moved"}, {"id": 7, "region": "a", "v": "old"}, {"id": 8, "region": "a", "v": "seven"}]');
SELECT a.apply('a', 'public.parts', '[{"id": 7, "region": "a", "v": "seven"}, {"id": 8, "region": "a", "v": "eight"}]');
SELECT tableoid::regclass, * FROM a.parts ORDER BY id;
SELECT stage, state, key, sqlstate, message FROM a.letters WHERE target = 'a.parts';

-- filters are entered and left; two mappings of one source share a target
CREATE TABLE a.filt (id int PRIMARY KEY, u text UNIQUE, kind text DEFAULT 'none');
SELECT migrate_add_table('a', 'public.filt', 'a.filt', columns => '{"kind": "''on''"}', filter => 'active', owns => 'kind = ''on''');
SELECT migrate_add_table('a', 'public.filt', 'a.filt', columns => '{"id": "id + 1000", "kind": "''off''"}', filter => 'NOT active', key => '{"id": "id + 1000"}', owns => 'kind = ''off''');
SELECT a.apply('a', 'public.filt', '[{"id": 1, "active": true, "u": "x"}, {"id": 2, "active": false, "u": "y"}, {"id": 3, "active": true, "u": "z"}, {"id": 4, "active": null, "u": "w"}]');
SELECT * FROM a.filt ORDER BY id;
SELECT a.apply('a', 'public.filt', '[{"id": 1, "active": false, "u": "x"}, {"id": 2, "active": true, "u": "y"}, {"id": 3, "active": true, "u": "zz"}, {"id": 4, "active": true, "u": "z"}]');
SELECT * FROM a.filt ORDER BY id;
SELECT a.apply('a', 'public.filt', '[{"id": 2, "active": null, "u": "y"}]', '[{"id": 1}, {"id": 3}]');
SELECT * FROM a.filt ORDER BY id;

-- one row becomes many: they grow, shrink and go; several targets of one source
CREATE TABLE a.tags (id int, tag text CHECK (tag <> 'bad'), PRIMARY KEY (id, tag));
CREATE FUNCTION a.map_tags(t asrc.tags) RETURNS SETOF a.tags LANGUAGE sql STABLE
	AS $$ SELECT t.id, x FROM unnest(string_to_array(t.tags, ',')) x $$;
CREATE TABLE a.tag_lines (id int PRIMARY KEY, tags text);
SELECT migrate_add_table('a', 'public.tags', 'a.tags', mapping => 'a.map_tags', key => '{"id": "id"}');
SELECT migrate_add_table('a', 'public.tags', 'a.tag_lines');
SELECT a.apply('a', 'public.tags', '[{"id": 1, "tags": "a,b,c"}, {"id": 2, "tags": "a"}, {"id": 3, "tags": null}, {"id": 4, "tags": "x,bad"}]');
SELECT id, string_agg(tag, ',' ORDER BY tag) FROM a.tags GROUP BY id ORDER BY id;
SELECT a.apply('a', 'public.tags', '[{"id": 1, "tags": "c"}, {"id": 2, "tags": "a,z"}, {"id": 3, "tags": "new"}, {"id": 4, "tags": "x,good"}]');
SELECT id, string_agg(tag, ',' ORDER BY tag) FROM a.tags GROUP BY id ORDER BY id;
SELECT a.apply('a', 'public.tags', '[{"id": 1, "tags": ""}, {"id": 3, "tags": "new,bad"}]', '[{"id": 2}]');
SELECT id, string_agg(tag, ',' ORDER BY tag) FROM a.tags GROUP BY id ORDER BY id;
SELECT * FROM a.tag_lines ORDER BY id;
SELECT stage, state, key, sqlstate, message FROM a.letters WHERE target ~ 'tag';
-- a function that is replaced is used from the next set on
CREATE OR REPLACE FUNCTION a.map_tags(t asrc.tags) RETURNS SETOF a.tags LANGUAGE sql STABLE
	AS $$ SELECT t.id, upper(x) FROM unnest(string_to_array(t.tags, ',')) x $$;
SELECT a.apply('a', 'public.tags', '[{"id": 1, "tags": "a,b"}]');
SELECT * FROM a.tags WHERE id = 1;

-- unchanged TOAST: left as it is; fetched where the row is not there or a mapping computes with it
CREATE TABLE a.big (id int PRIMARY KEY, t text, n int);
SELECT migrate_add_table('a', 'public.big', 'a.big');
INSERT INTO a.big VALUES (1, 'here', 1), (9, 'here', 9);
SELECT a.apply('a', 'public.big', '[{"id": 1, "n": 100}, {"id": 9, "n": 900}]', NULL, '{"0": ["t"], "1": ["t"]}');
SELECT a.apply('a', 'public.big', '[{"id": 1, "n": 101}, {"id": 2, "n": 200}, {"id": 8, "n": 800}]', NULL, '{"0": ["t"], "1": ["t"], "2": ["t"]}');
SELECT a.apply('a', 'public.big', '[{"id": 5, "n": 500}, {"id": 4, "n": 400}]', NULL, '{"0": ["t"], "1": ["t"]}');
SELECT * FROM a.big ORDER BY id;
SELECT stage, state, key, sqlstate FROM a.letters WHERE target = 'a.big';
CREATE TABLE a.big2 (id int PRIMARY KEY, len int, n int);
SELECT migrate_add_table('a', 'public.big', 'a.big2', columns => '{"len": "length(t)"}');
SELECT a.apply('a', 'public.big', '[{"id": 1, "n": 1}, {"id": 3, "t": "known", "n": 3}, {"id": 9, "n": 9}]', NULL, '{"0": ["t"], "2": ["t"]}');
SELECT * FROM a.big ORDER BY id;
SELECT * FROM a.big2 ORDER BY id;

-- without a key
CREATE TABLE a.nokey (a int CHECK (a > 0), b text, ours int DEFAULT 7);
SELECT migrate_add_table('a', 'public.nokey', 'a.nokey');
SELECT a.apply('a', 'public.nokey', '[{"a": 1, "b": "x"}, {"a": 1, "b": "x"}, {"a": 1, "b": "x"}, {"a": 2, "b": null}, {"a": -1, "b": "bad"}]');
SELECT a.apply('a', 'public.nokey', '[{"a": 3, "b": "y"}]', '[{"a": 1, "b": "x"}, {"a": 1, "b": "x"}, {"a": 2, "b": null}, {"a": -1, "b": "bad"}, {"a": 4, "b": "none"}]');
SELECT * FROM a.nokey ORDER BY a;
SELECT stage, state, key, source_row, sqlstate FROM a.letters WHERE target = 'a.nokey';
SELECT message FROM migrate.event WHERE kind = 'apply';

-- TRUNCATE: the target, or what the mapping owns of it
SELECT a.apply('a', 'public.plain', '[{"id": 1, "v": "bad", "n": 1000}]');
SELECT a.apply('a', 'public.plain', '[{"id": 50, "v": "after", "n": 5}]', truncate => '');
SELECT * FROM a.plain;
SELECT count(*) AS open FROM a.letters WHERE target = 'a.plain' AND state = 'open';
INSERT INTO a.filt VALUES (70, 'other', 'theirs');
SELECT a.apply('a', 'public.filt', truncate => '');
SELECT * FROM a.filt;
CREATE TABLE a.child (id int REFERENCES a.uniq);
INSERT INTO a.child VALUES (3);
SELECT a.apply('a', 'public.uniq', truncate => '');
SELECT count(*) FROM a.uniq;

-- targets of all sorts
CREATE DOMAIN a.small AS int CHECK (VALUE < 10);
CREATE DOMAIN a.named AS text NOT NULL;
CREATE TABLE a.zoo (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v a.named DEFAULT 'v', n a.small, s text GENERATED ALWAYS AS (v || n) STORED);
SELECT migrate_remove_table('a', 'a.plain');
SELECT migrate_add_table('a', 'public.plain', 'a.zoo');
SELECT a.apply('a', 'public.plain', '[{"id": 1, "v": "a", "n": 1}, {"id": 2, "v": null, "n": 2}, {"id": 3, "v": "c", "n": 30}]');
SELECT a.apply('a', 'public.plain', '[{"id": 1, "v": "b", "n": 2}]');
SELECT * FROM a.zoo;
SELECT stage, key, sqlstate, message FROM a.letters WHERE target = 'a.zoo';
-- triggers that fire in replica role see every row
CREATE FUNCTION a.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '% % %', TG_OP, OLD, NEW;
	IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER note BEFORE INSERT OR UPDATE OR DELETE ON a.zoo FOR EACH ROW EXECUTE FUNCTION a.note();
SELECT a.apply('a', 'public.plain', '[{"id": 1, "v": "c", "n": 3}, {"id": 5, "v": "e", "n": 5}]');
ALTER TABLE a.zoo ENABLE ALWAYS TRIGGER note;
SELECT a.apply('a', 'public.plain', '[{"id": 1, "v": "d", "n": 4}, {"id": 6, "v": "f", "n": 6}]', '[{"id": 5}]');
SELECT * FROM a.zoo;

-- what cannot be: a key map that a deleted row does not tell
CREATE TABLE a.two (code text PRIMARY KEY, id int);
SELECT migrate_add_table('a', 'public.two', 'a.two', key => '{"code": "code"}');
SELECT a.apply('a', 'public.two', '[{"id": 1, "code": "a"}]');
\echo :LAST_ERROR_SQLSTATE

\c regression regress_apply
SET client_min_messages = error;
DROP SCHEMA a CASCADE;
SELECT migrate_drop_job('a');
DROP SCHEMA IF EXISTS asrc CASCADE;
DROP SERVER apply_src CASCADE;
\c regression
DROP DATABASE migrate_apply_src;
