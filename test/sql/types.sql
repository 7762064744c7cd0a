--
-- Types, collations and sequences of the source: made here as they are there
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_types SUPERUSER LOGIN;
CREATE DATABASE migrate_types_src TEMPLATE template0 ENCODING 'UTF8';
\c migrate_types_src regress_types
CREATE SCHEMA zoo;
CREATE SCHEMA other;
CREATE SCHEMA "Ünïque ""S";
-- names sort against the order in which they depend on each other
CREATE TYPE zoo.z_mood AS ENUM ('ok', 'it''s bad', 'back\slash');
ALTER TYPE zoo.z_mood ADD VALUE 'between' BEFORE 'it''s bad';
COMMENT ON TYPE zoo.z_mood IS 'how it''s going';
CREATE COLLATION zoo.lenient (PROVIDER = icu, LOCALE = 'und-u-ks-level2', DETERMINISTIC = false);
COMMENT ON COLLATION zoo.lenient IS 'no case';
CREATE COLLATION zoo.plain (LOCALE = 'C');
CREATE COLLATION zoo.mixed (LC_COLLATE = 'C', LC_CTYPE = 'POSIX');
CREATE COLLATION other.used (PROVIDER = icu, LOCALE = 'de');
CREATE TYPE zoo.y_part AS (n int, "M m" zoo.z_mood[], t text COLLATE other.used, v varchar(7));
COMMENT ON TYPE zoo.y_part IS 'a part';
COMMENT ON COLUMN zoo.y_part."M m" IS 'moods';
CREATE DOMAIN zoo.x_part AS zoo.y_part CONSTRAINT whole CHECK ((VALUE).n > 0 OR (VALUE).n IS NULL);
CREATE TYPE zoo.w_pair AS (a zoo.x_part, b zoo.x_part[]);
CREATE DOMAIN zoo.v_pairs AS zoo.w_pair[] NOT NULL;
CREATE TYPE zoo.empty AS ();
CREATE TYPE zoo.noone AS ENUM ();
CREATE SEQUENCE zoo.numbers;
CREATE SEQUENCE "Ünïque ""S"."it's \ me" START 7;
CREATE DOMAIN zoo.a_number AS bigint DEFAULT nextval('zoo.numbers') + nextval('"Ünïque ""S"."it''s \ me"') CONSTRAINT given NOT NULL;
CREATE DOMAIN zoo.a_text AS varchar(10) COLLATE zoo.lenient DEFAULT 'x'
	CONSTRAINT short CHECK (length(VALUE) < 9) CONSTRAINT "Moody" CHECK (VALUE::text::zoo.z_mood <> 'ok');
ALTER DOMAIN zoo.a_text ADD CONSTRAINT late CHECK (VALUE <> '%') NOT VALID;
COMMENT ON DOMAIN zoo.a_text IS 'some text';
COMMENT ON CONSTRAINT short ON DOMAIN zoo.a_text IS 'not long';
CREATE TYPE zoo.t_span AS RANGE (SUBTYPE = zoo.a_number);
CREATE TYPE zoo.s_text AS RANGE (SUBTYPE = text, SUBTYPE_OPCLASS = text_pattern_ops, COLLATION = zoo.plain,
	MULTIRANGE_TYPE_NAME = other.many);
COMMENT ON TYPE other.many IS 'many';
COMMENT ON TYPE zoo.s_text IS 'from a to b';
CREATE TYPE zoo.r_float AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = float8mi);
CREATE TYPE zoo.a_spans AS (one zoo.t_span, few zoo.r_float[], multi zoo.t_span_multirange, lots other.many[]);
-- in another schema, found by what uses them
CREATE TYPE other.deep AS ENUM ('deep');
CREATE TYPE zoo.a_deep AS (d other.deep[]);
CREATE TYPE other.idle AS ENUM ('idle');
-- row types of tables are not types to be made
CREATE TABLE zoo.t (id int, s zoo.a_spans, c text COLLATE "C", d text COLLATE zoo.mixed);
CREATE TABLE zoo.typed OF zoo.y_part;
\c regression regress_types
SET client_min_messages = warning;
CREATE SERVER types_src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_types_src');
CREATE USER MAPPING FOR regress_types SERVER types_src OPTIONS (user 'regress_types');
-- the same for the database here, to compare both
CREATE SERVER types_here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'regression');
CREATE USER MAPPING FOR regress_types SERVER types_here OPTIONS (user 'regress_types');
SELECT migrate_create_job('zoo', server => 'types_src') AS job \gset
SELECT oid AS src FROM pg_foreign_server WHERE srvname = 'types_src' \gset
SELECT oid AS here FROM pg_foreign_server WHERE srvname = 'types_here' \gset

CREATE SCHEMA regress_types;
CREATE FUNCTION regress_types.catalog(server oid, schemas text[]) RETURNS SETOF jsonb LANGUAGE sql AS $$
	SELECT migrate._remote_query($1, format($q$
		SELECT 'type' AS what, t.oid::regtype::text AS name, t.typtype::text, t.typcategory::text,
			   format_type(t.typbasetype, t.typtypmod) AS base, t.typnotnull AS flag,
			   pg_get_expr(t.typdefaultbin, 0) AS def, t.typcollation::regcollation::text AS coll, obj_description(t.oid) AS comment,
			   (SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid) AS labels,
			   (SELECT json_agg(concat_ws('|', a.attname, format_type(a.atttypid, a.atttypmod), a.attcollation::regcollation,
										  col_description(a.attrelid, a.attnum)) ORDER BY a.attnum)
				FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS attributes,
			   (SELECT json_agg(concat_ws('|', c.conname, pg_get_constraintdef(c.oid), c.convalidated,
										  obj_description(c.oid, 'pg_constraint')) ORDER BY c.conname)
				FROM pg_constraint c WHERE c.contypid = t.oid) AS constraints,
			   (SELECT concat_ws('|', r.rngsubtype::regtype, r.rngcollation::regcollation, o.opcname, r.rngcanonical, r.rngsubdiff,
								 (to_jsonb(r) ->> 'rngmultitypid')::oid::regtype)
				FROM pg_range r JOIN pg_opclass o ON o.oid = r.rngsubopc
				WHERE t.oid IN (r.rngtypid, (to_jsonb(r) ->> 'rngmultitypid')::oid)) AS range
		FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
		WHERE t.typnamespace::regnamespace::text = ANY (%1$L) AND t.typelem = 0 AND coalesce(c.relkind, 'c') = 'c'
		UNION ALL
		SELECT 'collation', o.collname, o.collprovider::text, o.collencoding::text, o.collcollate, o.collisdeterministic, o.collctype,
			   o.collnamespace::regnamespace::text, obj_description(o.oid, 'pg_collation'),
			   json_build_array(to_jsonb(o) -> 'colliculocale', to_jsonb(o) -> 'colllocale'), NULL, NULL, NULL
		FROM pg_collation o WHERE o.collnamespace::regnamespace::text = ANY (%1$L)
		UNION ALL
		SELECT 'sequence', s.seqrelid::regclass::text, c.relpersistence::text, s.seqtypid::regtype::text, s.seqincrement::text, s.seqcycle,
			   concat_ws('|', s.seqmin, s.seqmax, s.seqcache), s.seqstart::text, obj_description(c.oid, 'pg_class'), NULL, NULL, NULL, NULL
		FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
		WHERE c.relnamespace::regnamespace::text = ANY (%1$L)
		  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('i', 'e'))
	$q$, $2))
$$;
CREATE FUNCTION regress_types.differs(src oid, here oid, schemas text[], OUT side text, OUT object jsonb) RETURNS SETOF record LANGUAGE sql AS $$
	WITH s AS MATERIALIZED (SELECT regress_types.catalog($1, $3)), h AS MATERIALIZED (SELECT regress_types.catalog($2, $3))
	SELECT 'source', x FROM (TABLE s EXCEPT TABLE h) a(x) UNION ALL SELECT 'here', x FROM (TABLE h EXCEPT TABLE s) b(x)
$$;

-- types of a table's columns, and what these are made of
SELECT migrate._import_types(:job, :src, 'zoo', '{t}');
SELECT kind, object, temporary FROM migrate.made_object WHERE job_id = :job ORDER BY object_id;
-- the rest; nothing twice
SELECT migrate._import_schema_types(:job, :src, 'zoo');
SELECT kind, object FROM migrate.made_object WHERE job_id = :job ORDER BY object_id OFFSET 12;
SELECT migrate._import_schema_types(:job, :src, 'zoo');
SELECT migrate._import_types(:job, :src, 'zoo', '{t,typed}');
SELECT migrate._import_schema_types(:job, :src, 'no such');
-- all of it is as on the source, but what nothing uses
SELECT count(*) FROM regress_types.catalog(:src, '{zoo,other,"\"Ünïque \"\"\"\"S\""}');
SELECT side, object ->> 'name' AS name FROM regress_types.differs(:src, :here, '{zoo,other,"\"Ünïque \"\"\"\"S\""}');
SELECT name, base, def FROM regress_types.catalog(:here, '{zoo}') c, jsonb_to_record(c) r(name text, base text, def text) WHERE def LIKE '%regclass%';

-- what cannot be made here
\c migrate_types_src regress_types
CREATE SCHEMA fn;
CREATE FUNCTION fn.good(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT $1 > 0';
CREATE DOMAIN fn.needs AS int CONSTRAINT c CHECK (fn.good(VALUE));
CREATE TABLE fn.uses (a fn.needs);
CREATE SCHEMA rng;
CREATE FUNCTION rng.diff(a text, b text) RETURNS float8 IMMUTABLE LANGUAGE sql AS 'SELECT 1.0::float8';
CREATE TYPE rng.by_text AS RANGE (SUBTYPE = text, SUBTYPE_DIFF = rng.diff);
CREATE SCHEMA canon;
CREATE TYPE canon.steps;
CREATE FUNCTION canon.canonical(canon.steps) RETURNS canon.steps IMMUTABLE STRICT LANGUAGE internal AS 'int4range_canonical';
CREATE TYPE canon.steps AS RANGE (SUBTYPE = int, CANONICAL = canon.canonical);
CREATE SCHEMA coll;
CREATE COLLATION coll.gone (LOCALE = 'C');
CREATE COLLATION pg_catalog.nowhere (LOCALE = 'C');
UPDATE pg_collation SET collcollate = 'no_PLACE', collctype = 'no_PLACE' WHERE collname = 'gone';
CREATE TABLE coll.t (a text COLLATE coll.gone, b text COLLATE nowhere);
CREATE DOMAIN coll.d AS text COLLATE coll.gone;
CREATE SCHEMA coll_range;
CREATE TYPE coll_range.r AS RANGE (SUBTYPE = text, COLLATION = coll.gone);
CREATE SCHEMA base;
CREATE TYPE base.b;
CREATE FUNCTION base.b_in(cstring) RETURNS base.b IMMUTABLE STRICT LANGUAGE internal AS 'int4in';
CREATE FUNCTION base.b_out(base.b) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS 'int4out';
CREATE TYPE base.b (INPUT = base.b_in, OUTPUT = base.b_out, LIKE = int4);
CREATE TYPE base.shell;
CREATE TYPE base.e AS ENUM ('e');
CREATE TABLE base.t (a base.b[]);
CREATE SCHEMA base_part;
CREATE DOMAIN base_part.d AS base.b;
CREATE SCHEMA ext;
CREATE EXTENSION postgres_fdw SCHEMA ext;
CREATE DOMAIN ext.member AS int;
CREATE TYPE ext.free AS ENUM ('free');
ALTER EXTENSION postgres_fdw ADD DOMAIN ext.member;
CREATE TABLE ext.t (a ext.member[]);
CREATE SCHEMA rows;
CREATE TABLE rows.a (a int);
CREATE TABLE rows.b (b rows.a);
\c regression regress_types
SET client_min_messages = warning;
-- a function
SELECT migrate._import_schema_types(:job, :src, 'fn');
SELECT migrate._import_types(:job, :src, 'fn', '{uses}');
\echo :LAST_ERROR_SQLSTATE
CREATE SCHEMA fn;
CREATE FUNCTION fn.good(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT $1 > 0';
SELECT migrate._import_schema_types(:job, :src, 'fn');
SELECT migrate._import_schema_types(:job, :src, 'rng');
\echo :LAST_ERROR_SQLSTATE
-- a function in C that takes the range
SELECT migrate._import_schema_types(:job, :src, 'canon');
\echo :LAST_ERROR_SQLSTATE
CREATE SCHEMA canon;
CREATE TYPE canon.steps;
CREATE FUNCTION canon.canonical(canon.steps) RETURNS canon.steps IMMUTABLE STRICT LANGUAGE internal AS 'int4range_canonical';
SELECT migrate._import_schema_types(:job, :src, 'canon');
SELECT '(1,4]'::canon.steps;
SELECT side, object ->> 'name' AS name FROM regress_types.differs(:src, :here, '{fn,canon}');
-- collations
SELECT migrate._import_types(:job, :src, 'coll', '{t}');
SELECT migrate._import_schema_types(:job, :src, 'coll_range');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate._import_schema_types(:job, :src, 'coll');
SELECT object FROM migrate.made_object WHERE job_id = :job AND starts_with(object, 'coll');
-- base types
SELECT migrate._import_schema_types(:job, :src, 'base');
SELECT migrate._import_types(:job, :src, 'base', '{t}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate._import_schema_types(:job, :src, 'base_part');
-- extensions, tables
SELECT migrate._import_schema_types(:job, :src, 'ext');
SELECT migrate._import_types(:job, :src, 'ext', '{t}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate._import_types(:job, :src, 'rows', '{b}');
\echo :LAST_ERROR_SQLSTATE
-- a type that is here does not ask for the parts of the one there
CREATE SCHEMA base_part;
CREATE DOMAIN base_part.d AS int;
SELECT migrate._import_schema_types(:job, :src, 'base_part');

-- sequences
\c migrate_types_src regress_types
CREATE SCHEMA seq;
CREATE SCHEMA seq2;
CREATE SEQUENCE seq.free AS smallint INCREMENT 3 MINVALUE -5 MAXVALUE 1000 START 10 CACHE 7 CYCLE;
COMMENT ON SEQUENCE seq.free IS 'it''s free';
CREATE SEQUENCE seq.down INCREMENT -2 MAXVALUE 100 MINVALUE -100;
CREATE UNLOGGED SEQUENCE seq.unlogged;
CREATE SEQUENCE seq."Rénamed";
CREATE SEQUENCE seq.skipped;
CREATE SEQUENCE seq."it's \ odd";
CREATE DOMAIN seq2.draws AS bigint DEFAULT nextval('seq."Rénamed"') + nextval('seq."it''s \ odd"');
CREATE SEQUENCE seq2.shared;
CREATE TABLE seq.t (id serial, big bigserial, ident int GENERATED ALWAYS AS IDENTITY (START 50), s int DEFAULT nextval('seq2.shared'));
CREATE TABLE seq.skipped_too (id serial, other int DEFAULT nextval('seq.t_big_seq'));
CREATE TABLE seq.parted (id int, own int) PARTITION BY RANGE (id);
CREATE TABLE seq.parted_1 PARTITION OF seq.parted FOR VALUES FROM (0) TO (100);
CREATE SEQUENCE seq.of_part OWNED BY seq.parted_1.own;
ALTER TABLE seq.parted_1 ALTER own SET DEFAULT nextval('seq.of_part');
CREATE SEQUENCE seq.member;
ALTER EXTENSION postgres_fdw ADD SEQUENCE seq.member;
\c regression regress_types
SET client_min_messages = warning;
CREATE FUNCTION regress_types.import(source text, target text, include text[], exclude text[]) RETURNS int LANGUAGE sql
	AS $$ SELECT migrate._import_sequences(j, $1, $2, $3, $4) FROM migrate.job j WHERE job = 'zoo' $$;
CREATE FUNCTION regress_types.target(source text, name text) RETURNS text LANGUAGE sql
	AS $$ SELECT migrate._sequence_target(j, $1, $2) FROM migrate.job j WHERE job = 'zoo' $$;
INSERT INTO migrate.job_schema (job_id, source_schema, target_schema, exclude, rename, search_path)
	VALUES (:job, 'seq', 'sëq', '{skipped*}', '{"Rénamed": "named \"anew\""}', '');
-- what a type draws from comes with it, and has its name here in the default
SELECT migrate._import_schema_types(:job, :src, 'seq2');
\dD seq2.*
SELECT regress_types.import('seq', 'sëq', NULL, '{skipped*}');
SELECT kind, object FROM migrate.made_object WHERE job_id = :job AND object ~ '^"?s.q' ORDER BY object_id;
SELECT regress_types.import('seq', 'sëq', NULL, '{skipped*}');
-- everything there but for names, as on the source
SELECT x.there, c - 'name' - 'what' = h - 'name' - 'what' AS same
FROM unnest('{free,down,unlogged,Rénamed,skipped,t_id_seq,t_big_seq,skipped_too_id_seq,of_part}'::text[]) WITH ORDINALITY x(there, pos)
LEFT JOIN regress_types.catalog(:src, '{seq}') c ON (parse_ident(c ->> 'name'))[2] = x.there AND c ->> 'what' = 'sequence'
LEFT JOIN regress_types.catalog(:here, '{"\"sëq\""}') h ON h ->> 'name' = regress_types.target('seq', x.there) AND h ->> 'what' = 'sequence'
ORDER BY x.pos;
SELECT regress_types.target('seq', 'free'), regress_types.target('seq', 'Rénamed'), regress_types.target('seq2', 'shared');
-- with the tables that are taken, or by its own name
SELECT regress_types.import('seq', 'narrow', '{t}', NULL), regress_types.import('seq', 'narrow', '{skipped}', NULL);
SELECT object FROM migrate.made_object WHERE job_id = :job AND starts_with(object, 'narrow');
-- what is here is used when it fits, and never touched
CREATE SCHEMA taken;
CREATE SEQUENCE taken.skipped AS bigint MINVALUE 0 START 77 CACHE 3;
INSERT INTO migrate.job_schema (job_id, source_schema, target_schema, include, search_path)
	VALUES (:job, 'seq', 'taken', '{skipped*}', '');
DROP SEQUENCE narrow.skipped;
DELETE FROM migrate.made_object WHERE object = 'narrow.skipped';
SELECT regress_types.import('seq', 'taken', '{skipped*}', NULL);
\d taken.skipped
ALTER SEQUENCE taken.skipped INCREMENT 2 MINVALUE 5 CYCLE;
SELECT regress_types.import('seq', 'taken', '{skipped*}', NULL);
\echo :LAST_ERROR_SQLSTATE
ALTER SEQUENCE taken.skipped AS bigint INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 NO CYCLE;
SELECT regress_types.import('seq', 'taken', '{skipped*}', NULL);
DROP SEQUENCE taken.skipped;
CREATE TABLE taken.skipped (a int);
SELECT regress_types.import('seq', 'taken', '{skipped*}', NULL);
\echo :LAST_ERROR_SQLSTATE
DROP TABLE taken.skipped;

-- owners, of what the job made
CREATE TABLE "sëq".t (id int DEFAULT nextval('"sëq".t_id_seq'), big bigint, ident int GENERATED ALWAYS AS IDENTITY, s int);
CREATE TABLE "sëq".parted_1 (id int, own int);
INSERT INTO migrate.made_relation (target_oid, job_id, root_oid, remote_schema, remote_table)
	SELECT c.oid, :job, c.oid, 'seq', c.relname FROM pg_class c WHERE relnamespace = '"sëq"'::regnamespace AND relkind = 'r';
SELECT migrate._own_sequences(j, 'seq', 'sëq') FROM migrate.job j WHERE job = 'zoo';
SELECT objid::regclass, refobjid::regclass, refobjsubid, deptype FROM pg_depend
WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND refobjid IN ('"sëq".t'::regclass, '"sëq".parted_1'::regclass) ORDER BY 2, 3;
SELECT migrate._own_sequences(j, 'seq', 'sëq') FROM migrate.job j WHERE job = 'zoo';

-- values: the furthest that either side has given
CREATE FUNCTION regress_types.values() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	s	text;
	r	record;
BEGIN
	FOR s IN SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
			 WHERE relkind = 'S' AND nspname IN ('sëq', 'seq2', 'zoo', 'old') ORDER BY nspname COLLATE "C", relname COLLATE "C"
	LOOP
		EXECUTE format('SELECT last_value, is_called FROM %s', s) INTO r;
		RETURN NEXT format('%s %s%s', s, r.last_value, CASE WHEN r.is_called THEN '' ELSE ' (not called)' END);
	END LOOP;
END $$;
SELECT migrate._set_sequences(:job);
\c migrate_types_src regress_types
SELECT setval('seq.free', 4);								-- it cycles: below its start
SELECT setval('seq.down', -40);
SELECT setval('seq."Rénamed"', 33, false);					-- restarted, nothing drawn
SELECT nextval('seq.t_id_seq') FROM generate_series(1, 9);
SELECT setval('seq.t_ident_seq', 60);
SELECT setval('seq.of_part', 5);
SELECT setval('seq2.shared', 1234567890123);
SELECT setval('zoo.numbers', 3);
\c regression regress_types
SET client_min_messages = warning;
SELECT migrate._set_sequences(:job);
SELECT * FROM regress_types.values();
SELECT migrate._set_sequences(:job);
-- never back: lowered there, drawn from here
SELECT setval('"sëq".t_id_seq', 20), setval('"sëq".down', -60), setval('"sëq".of_part', 5, false), setval('"sëq".free', 900), setval('zoo.numbers', 4, false);
\c migrate_types_src regress_types
SELECT setval('seq.t_id_seq', 19), setval('seq.down', -50), setval('seq.of_part', 5), setval('seq."Rénamed"', 20), setval('seq2.shared', 5), setval('zoo.numbers', 4, false);
\c regression regress_types
SET client_min_messages = warning;
SELECT migrate._set_sequences(:job);
SELECT * FROM regress_types.values();
\c migrate_types_src regress_types
SELECT setval('seq.t_id_seq', 20, true), setval('seq.down', -61, false), setval('zoo.numbers', 4);
\c regression regress_types
SET client_min_messages = warning;
SELECT migrate._set_sequences(:job);
SELECT nextval('"sëq".down'), nextval('zoo.numbers'), nextval('"sëq".t_id_seq');

-- of columns that a mapping takes over as they are, in tables that were here
\c migrate_types_src regress_types
CREATE SCHEMA old;
CREATE TABLE old.ident (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n serial);
CREATE TABLE old.ser (id serial PRIMARY KEY, v serial, w serial);
CREATE SEQUENCE old.plain;
CREATE TABLE old.def (id bigint PRIMARY KEY DEFAULT nextval('old.plain'), back int GENERATED BY DEFAULT AS IDENTITY (INCREMENT -1));
CREATE TABLE old.fun (id serial PRIMARY KEY);
SELECT setval('old.ident_id_seq', 11), setval('old.ident_n_seq', 12), setval('old.ser_id_seq', 21), setval('old.ser_v_seq', 22),
	setval('old.ser_w_seq', 23), setval('old.plain', 31), setval('old.def_back_seq', -32), setval('old.fun_id_seq', 41);
\c regression regress_types
SET client_min_messages = warning;
CREATE SCHEMA old;
CREATE TABLE old.ident (n int, id serial PRIMARY KEY);
CREATE TABLE old.ser (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, other serial, w serial);
CREATE SEQUENCE old.def_source AS smallint;
CREATE TABLE old.def (id int PRIMARY KEY DEFAULT nextval('old.def_source'), back serial);
CREATE TABLE old.fun (id serial PRIMARY KEY);
SELECT migrate_add_table('zoo', 'old.ident', 'old.ident');
SELECT migrate_add_table('zoo', 'old.ser', 'old.ser', columns => '{"other": "v", "w": "(w + 1)"}');
SELECT migrate_add_table('zoo', 'old.def', 'old.def');
SELECT migrate_import('zoo', 'old', include => '{fun}');
CREATE FUNCTION regress_types.fun(s types_src.fun) RETURNS SETOF old.fun LANGUAGE sql STABLE AS 'SELECT s.id + 100';
SELECT migrate_add_table('zoo', 'old.fun', 'old.fun', mapping => 'regress_types.fun');
SELECT migrate._set_sequences(:job);
SELECT v FROM regress_types.values() v WHERE v LIKE 'old.%';

-- what may not be read there, or set here, or does not fit
\c migrate_types_src regress_types
SELECT setval('old.plain', 40000), setval('old.ident_id_seq', 12);
\c regression regress_types
SET client_min_messages = warning;
SELECT migrate._set_sequences(:job);
\echo :LAST_ERROR_SQLSTATE
SELECT v FROM regress_types.values() v WHERE v LIKE 'old.ident_id%';
CREATE ROLE regress_types_weak LOGIN;
ALTER USER MAPPING FOR regress_types SERVER types_src OPTIONS (SET user 'regress_types_weak', ADD password_required 'false');
SELECT migrate._set_sequences(:job);
\echo :LAST_ERROR_SQLSTATE
\c migrate_types_src regress_types
GRANT USAGE ON SCHEMA zoo, old, seq, seq2, "Ünïque ""S" TO regress_types_weak;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA zoo, old, seq, seq2, "Ünïque ""S" TO regress_types_weak;
REVOKE SELECT ON SEQUENCE seq.t_id_seq FROM regress_types_weak;
\c regression regress_types
SET client_min_messages = warning;
SELECT migrate._set_sequences(:job);
ALTER USER MAPPING FOR regress_types SERVER types_src OPTIONS (SET user 'regress_types', DROP password_required);
GRANT USAGE ON FOREIGN SERVER types_src TO regress_types_weak;
SELECT migrate_grant('regress_types_weak');
CREATE USER MAPPING FOR regress_types_weak SERVER types_src OPTIONS (user 'regress_types', password_required 'false');
UPDATE migrate.job SET owner = 'regress_types_weak'::regrole WHERE job_id = :job;
GRANT USAGE ON SCHEMA zoo, old, "sëq", taken, "Ünïque ""S" TO regress_types_weak;
GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA zoo, old, seq2, "sëq", taken, "Ünïque ""S" TO regress_types_weak;
REVOKE UPDATE ON SEQUENCE old.ident_id_seq FROM regress_types_weak;
ALTER SEQUENCE old.def_source AS int MAXVALUE 50000;
SELECT setval('old.ident_id_seq', 11), setval('zoo.numbers', 1);
SET ROLE regress_types_weak;
SELECT migrate._set_sequences(:job);
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT v FROM regress_types.values() v WHERE v ~ '^(old.def_source|old.ident_id|seq2|zoo.numbers)';
-- a job of another kind of source has none
CREATE FOREIGN DATA WRAPPER types_nothing;
CREATE SERVER types_none FOREIGN DATA WRAPPER types_nothing;
SELECT migrate_create_job('none', 'types_none') AS none \gset
SELECT migrate._set_sequences(:none), migrate._import_sequences(j, 'seq', 'seq', NULL, NULL), migrate._own_sequences(j, 'seq', 'seq') FROM migrate.job j WHERE job_id = :none;

-- clean up
SELECT migrate_drop_job('none');
SELECT migrate_drop_job('zoo');
\c regression
SET client_min_messages = warning;
DROP SCHEMA zoo, other, "Ünïque ""S", fn, canon, coll, base, base_part, ext, "sëq", seq2, narrow, taken, old, regress_types CASCADE;
DROP FOREIGN DATA WRAPPER types_nothing CASCADE;
DROP SERVER types_src CASCADE;
DROP SERVER types_here CASCADE;
DROP DATABASE migrate_types_src WITH (FORCE);
DROP OWNED BY regress_types_weak;
DROP ROLE regress_types_weak;
