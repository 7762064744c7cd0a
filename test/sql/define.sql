--
-- Definitions: import, mappings in all forms, what they compile to
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_define SUPERUSER LOGIN;
CREATE DATABASE migrate_define_src TEMPLATE template0 ENCODING 'UTF8';
\c migrate_define_src regress_define
CREATE TYPE mood AS ENUM ('ok', 'it''s bad');
CREATE SCHEMA types;
CREATE DOMAIN types.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN types.code AS varchar(5) NOT NULL DEFAULT 'x' CONSTRAINT short CHECK (length(VALUE) < 5);
CREATE TYPE types.part AS (n types.positive, m mood[]);
CREATE TYPE types.whole AS (a types.part[], b text);
CREATE TYPE types.unused AS ENUM ('a');
CREATE TABLE customers (id int PRIMARY KEY, name varchar(20) NOT NULL, m mood DEFAULT 'ok', w types.whole, c types.code);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int REFERENCES customers,
	total numeric(10,2) DEFAULT 0, placed timestamptz DEFAULT now(), "Weird ""Col" text COLLATE "C",
	source text, twice numeric GENERATED ALWAYS AS (total * 2) STORED, gone int, n serial);
ALTER TABLE orders DROP COLUMN gone;
CREATE TABLE nokey (a int, b text);
CREATE TABLE nocols ();
CREATE TABLE uniq (a int NOT NULL, b int NOT NULL, c int UNIQUE, UNIQUE (b, a) INCLUDE (c));
CREATE TABLE late (id int, PRIMARY KEY (id) DEFERRABLE);
CREATE VIEW v_customers AS SELECT id, name FROM customers;
CREATE MATERIALIZED VIEW mv AS SELECT id FROM customers;
CREATE TABLE parted (id int, d date, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE parted_2020 PARTITION OF parted FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE "Quoted ""T%_" ("select" int PRIMARY KEY, "naïve" text);
CREATE SCHEMA "Über";
CREATE TABLE "Über"."Straße" (id int PRIMARY KEY);
INSERT INTO customers SELECT g, 'c' || g, 'ok', NULL, 'c' FROM generate_series(1, 10) g;
INSERT INTO orders (customer, total) SELECT g, g * 1.5 FROM generate_series(1, 10) g;
\c regression regress_define
CREATE SERVER legacy FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_define_src');
CREATE USER MAPPING FOR regress_define SERVER legacy OPTIONS (user 'regress_define');
SELECT migrate_create_job('shop', server => 'legacy') > 0 AS made;

-- import: types first, then tables; nothing twice
SELECT migrate_import('shop', 'public', include => '{cust*,orders,?ocols}');
SELECT object, kind, temporary FROM migrate.made_object ORDER BY object_id;
\dT+ types.*
\dD types.*
\d types.whole
\d types.part
SELECT migrate_import('shop', 'public', exclude => '{v_*}');
SELECT migrate_import('shop', 'public', exclude => '{v_*}');
SELECT c.oid::regclass, count(a.attname) AS columns
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0
WHERE relnamespace = 'legacy'::regnamespace GROUP BY 1 ORDER BY 1::text;
SELECT migrate_import('shop', 'Über', local_schema => 'Ünter');
\d "Ünter".*
-- a partition only when named in full
SELECT migrate_import('shop', 'public', include => '{parted_202*}');
SELECT migrate_import('shop', 'public', include => '{parted_2020}');

-- a whole schema
SELECT migrate_add_schema('shop', 'public', 'copy', exclude => '{orders,zz*}');
SELECT migrate_add_schema('shop', 'public', 'copy', exclude => '{orders}');
SELECT target, s.source, kind, m.key, target_columns, created_target
FROM migrate.mapping m JOIN migrate.source_table s USING (source_id) ORDER BY target COLLATE "C";
SELECT source, key_columns, remote_schema, remote_table FROM migrate.source_table ORDER BY source COLLATE "C";
SELECT target_oid::regclass, root_oid::regclass, remote_schema, remote_table FROM migrate.made_relation ORDER BY remote_table COLLATE "C";
SELECT table_name, column_name, data_type, character_maximum_length AS len, udt_name, is_nullable, column_default
FROM information_schema.columns WHERE table_schema = 'copy' ORDER BY table_name COLLATE "C", ordinal_position;

-- a table by itself: generated, identity and collated columns
SELECT migrate_add_table('shop', 'public.orders', 'copy.orders');
\d copy.orders
SELECT query FROM migrate.mapping WHERE target = 'copy.orders';

-- the forms of a mapping; names are read under the caller's search_path
CREATE SCHEMA sales;
SET search_path = sales, public;
CREATE TABLE sales.orders (order_id bigint PRIMARY KEY, total_cents bigint NOT NULL, customer int, state text DEFAULT 'new',
	twice bigint GENERATED ALWAYS AS (total_cents * 2) STORED);
CREATE FUNCTION sales.rate() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 100';
CREATE FUNCTION sales.map_order(o legacy.orders) RETURNS SETOF sales.orders LANGUAGE sql STABLE
	AS $$ SELECT o.id, (o.total * sales.rate())::bigint, o.customer, 'x', NULL::bigint $$;
SELECT migrate_add_table('shop', 'public.orders', 'orders', mapping => 'map_order', key => '{"order_id": "id"}',
	filter => 'id > 2 AND source IS NULL -- a comment');
SELECT target, kind, mapping::regproc, many, key, filter, search_path, target_columns, query FROM migrate.mapping WHERE kind = 'function';
-- one row, given by OUT columns; the rest keeps its defaults
CREATE TABLE totals (customer int PRIMARY KEY, cents bigint, at timestamptz DEFAULT now());
CREATE FUNCTION map_total(o legacy.orders, OUT cents bigint, OUT customer int) LANGUAGE sql AS 'SELECT o.total::bigint, o.id::int';
SELECT migrate_add_table('shop', 'legacy.orders', 'totals', mapping => 'map_total', key => '{"customer": "id::int"}');
SELECT kind, many, key, target_columns, query FROM migrate.mapping WHERE target = 'sales.totals';
-- one column only
CREATE TABLE names (name text);
CREATE FUNCTION map_names(c legacy.customers) RETURNS TABLE (name text) LANGUAGE sql AS $$ SELECT c.name UNION ALL SELECT upper(c.name) $$;
SELECT migrate_add_table('shop', 'public.customers', 'names', mapping => 'map_names');
SELECT kind, many, key, target_columns, query FROM migrate.mapping WHERE target = 'sales.names';
-- columns: expressions, constants, renames, defaults; the key follows
CREATE TABLE people (tenant_id int, id int, label text, name varchar(20), active boolean, note text DEFAULT 'n', PRIMARY KEY (tenant_id, id));
SELECT migrate_add_table('shop', 'public.customers', 'people',
	columns => '{"tenant_id": 7, "label": "rate() || name", "active": true, "note": null}',
	key => '{"tenant_id": 7, "id": "id"}', owns => 'tenant_id = 7', reads => '{names}');
SELECT migrate_add_table('shop', 'public.customers', 'people',
	columns => '{"tenant_id": -8, "id": "id + 1000", "label": "id"}', owns => 'people.tenant_id = -8');
SELECT kind, columns, key, owns, reads, target_columns, query FROM migrate.mapping WHERE target = 'sales.people' ORDER BY mapping_id;
-- only what both have
CREATE TABLE few (id int PRIMARY KEY, extra int);
SELECT migrate_add_table('shop', 'public.customers', 'few', columns => '{}');
-- a renamed key column is found
CREATE TABLE renamed (cid int PRIMARY KEY, name text);
SELECT migrate_add_table('shop', 'public.customers', 'renamed', columns => '{"cid": "id"}');
SELECT target, key, target_columns FROM migrate.mapping WHERE target IN ('sales.few', 'sales.renamed') ORDER BY 1;
-- a function for a table of the same columns, as shards have them
CREATE FOREIGN TABLE shard_customers (id int, name varchar(20), m public.mood, w types.whole, c types.code) SERVER legacy OPTIONS (schema_name 'public', table_name 'customers');
CREATE TABLE shard (name text, PRIMARY KEY (name));
CREATE FUNCTION map_shard(c legacy.customers) RETURNS shard LANGUAGE sql AS 'SELECT c.name';
SELECT migrate_add_table('shop', 'sales.shard_customers', 'shard', mapping => 'map_shard', owns => 'name < ''d''');
SELECT s.source, s.foreign_table::regclass FROM migrate.mapping m JOIN migrate.source_table s USING (source_id) WHERE target = 'sales.shard';
-- a view gets its key from the mapping
CREATE TABLE viewed (id int PRIMARY KEY, name text);
SELECT migrate_add_table('shop', 'public.v_customers', 'viewed', key => '{"id": "id"}');
SELECT key_columns FROM migrate.source_table WHERE source = 'public.v_customers';
RESET search_path;

-- many mappings, one source
SELECT source, count(*) FROM migrate.source_table JOIN migrate.mapping USING (source_id)
GROUP BY source HAVING count(*) > 1 ORDER BY 1;

-- out again, and in again: the table is still one made for the job
SELECT migrate_remove_table('shop', 'copy.customers');
SELECT migrate_add_table('shop', 'public.customers', 'copy.customers');
SELECT target, created_target FROM migrate.mapping WHERE target = 'copy.customers';

-- a file as a source: another wrapper
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE SCHEMA files;
CREATE FOREIGN TABLE files.lines (id int, line text) SERVER files OPTIONS (filename '/dev/null');
SELECT migrate_create_job('files', 'files') > 0 AS made;
SELECT migrate_add_table('files', 'files.lines', 'sales.lines', key => '{"id": "id"}');
SELECT s.source, s.key_columns, s.remote_table, m.key, m.query FROM migrate.mapping m JOIN migrate.source_table s USING (source_id) WHERE m.target = 'sales.lines';
SELECT migrate_source_sql('files');

-- what the source's owner has to run
SELECT migrate_source_sql('shop');

-- drop: what cannot go is named
SELECT migrate_drop_job('shop');
SELECT migrate_drop_job('files');
DROP SCHEMA sales CASCADE;
SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = to_regnamespace('legacy');
SELECT n.nspname FROM pg_namespace n WHERE n.nspname IN ('legacy', 'Ünter', 'copy', 'types') ORDER BY 1;
SELECT count(*) FROM migrate.job;
\set QUIET on
SET client_min_messages = error;
DROP SCHEMA copy, types, files CASCADE;
DROP SCHEMA IF EXISTS legacy CASCADE;
DROP TYPE mood;
DROP EXTENSION file_fdw CASCADE;
DROP SERVER legacy CASCADE;
\c regression
DROP DATABASE migrate_define_src;
