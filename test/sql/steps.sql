--
-- Steps after the copy: what is planned, that it gives the source's catalogs,
-- what a DBA may do with steps
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
SELECT current_user AS me \gset
CREATE ROLE regress_steps SUPERUSER LOGIN;
CREATE ROLE regress_steps_reader;
CREATE ROLE regress_steps_writer;
CREATE DATABASE migrate_steps_src TEMPLATE template0 ENCODING 'UTF8';
\c migrate_steps_src regress_steps
CREATE SCHEMA shop;
CREATE SCHEMA extra;
SET search_path = shop, public;
CREATE TYPE shop.mood AS ENUM ('ok', 'bad');
CREATE FUNCTION shop.fold(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT lower($1)';
CREATE SEQUENCE numbers;
CREATE TABLE customers (id int NOT NULL, email text NOT NULL, name text COLLATE "C", born date, tags int[], place point,
	region text, period int4range, n int NOT NULL);
CREATE TABLE extra.countries (code char(2) NOT NULL, capital int);
CREATE TABLE orders (id bigint NOT NULL, placed date NOT NULL, customer int, country char(2), m mood, n int GENERATED ALWAYS AS IDENTITY)
	PARTITION BY RANGE (placed);
CREATE TABLE orders_old PARTITION OF orders FOR VALUES FROM ('2000-01-01') TO ('2020-01-01');
CREATE TABLE orders_new PARTITION OF orders FOR VALUES FROM ('2020-01-01') TO (MAXVALUE) PARTITION BY LIST (country);
CREATE TABLE orders_new_de PARTITION OF orders_new FOR VALUES IN ('de');
CREATE TABLE "orders new ""x" PARTITION OF orders_new DEFAULT;
CREATE TABLE empty_parts (a int) PARTITION BY HASH (a);
CREATE TABLE base (id int NOT NULL, v int);
CREATE TABLE derived (w int) INHERITS (base);
CREATE TABLE derived_again () INHERITS (derived);
CREATE TABLE lines (order_id bigint, order_placed date, no int NOT NULL, country char(2), "from" int);
CREATE TABLE quiet (a int, b text);
CREATE TABLE loud (a int, b text);
ALTER TABLE customers ADD COLUMN gone int, ADD COLUMN note text DEFAULT shop.fold('NONE'), ADD COLUMN no int DEFAULT nextval('shop.numbers');
ALTER TABLE customers DROP COLUMN gone;
ALTER TABLE customers ADD CONSTRAINT customers_pkey PRIMARY KEY (id) INCLUDE (email) WITH (fillfactor = 70);
ALTER TABLE customers ADD CONSTRAINT "customers Email" UNIQUE NULLS NOT DISTINCT (email) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE customers ADD CONSTRAINT apart EXCLUDE USING gist (place WITH ~=, period WITH &&) WHERE (id > 0) DEFERRABLE;
CREATE INDEX customers_expr ON customers (shop.fold(email), (id + n)) WHERE email <> ' WHERE x';
ALTER INDEX customers_expr ALTER COLUMN 2 SET STATISTICS 300;
CREATE INDEX customers_sort ON customers (name COLLATE "POSIX" text_pattern_ops DESC NULLS LAST, born NULLS FIRST) INCLUDE (n, region);
CREATE INDEX customers_gin ON customers USING gin (tags) WITH (fastupdate = off);
CREATE INDEX customers_gist ON customers USING gist (place);
CREATE INDEX customers_spgist ON customers USING spgist (period);
CREATE INDEX customers_hash ON customers USING hash (region);
CREATE INDEX customers_brin ON customers USING brin (born date_minmax_multi_ops(values_per_range = 8)) WITH (pages_per_range = 16);
CREATE UNIQUE INDEX customers_partial ON customers (name) WHERE n IS NULL;
CREATE UNIQUE INDEX customers_n ON customers (n);
CREATE INDEX customers_row ON customers (((customers.*) IS NULL), region);
-- one that was never finished
CREATE INDEX customers_broken ON customers (born);
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'customers_broken'::regclass;
ALTER TABLE customers ADD CONSTRAINT adult CHECK (born < '2010-01-01'), ADD CONSTRAINT later CHECK (n > 0) NOT VALID,
	ADD CONSTRAINT "odd "" name" CHECK (region <> ' NOT VALID'), ADD CONSTRAINT alone CHECK (n < 1000) NO INHERIT;
ALTER TABLE customers CLUSTER ON customers_sort;
ALTER TABLE customers REPLICA IDENTITY USING INDEX customers_n;
CREATE STATISTICS customers_stat (ndistinct, mcv) ON name, region FROM customers;
ALTER STATISTICS customers_stat SET STATISTICS 50;
CREATE STATISTICS extra.customers_stat ON (shop.fold(name)), n FROM customers;
COMMENT ON INDEX customers_expr IS 'it''s an index';
COMMENT ON CONSTRAINT customers_pkey ON customers IS 'the key';
COMMENT ON CONSTRAINT adult ON customers IS 'of age';
COMMENT ON STATISTICS customers_stat IS 'statistics';
GRANT SELECT, INSERT ON customers TO regress_steps_reader;
GRANT UPDATE (name, n) ON customers TO regress_steps_writer WITH GRANT OPTION;
GRANT SELECT ON customers TO PUBLIC;
GRANT USAGE ON SCHEMA shop TO regress_steps_reader;
GRANT USAGE ON TYPE mood TO regress_steps_writer;
REVOKE USAGE ON TYPE mood FROM PUBLIC;
GRANT USAGE ON SEQUENCE numbers TO regress_steps_reader;
GRANT SELECT ON SEQUENCE orders_n_seq TO regress_steps_reader;
-- foreign keys: in a circle, to another schema, with actions, never validated
ALTER TABLE extra.countries ADD PRIMARY KEY (code);
ALTER TABLE extra.countries ADD CONSTRAINT countries_capital FOREIGN KEY (capital) REFERENCES customers (n) ON DELETE SET NULL DEFERRABLE;
ALTER TABLE customers ADD CONSTRAINT customers_region FOREIGN KEY (region) REFERENCES extra.countries ON UPDATE CASCADE NOT VALID;
-- partitions: keys, an index on one alone, one attached by hand, a foreign key each way
ALTER TABLE orders ADD CONSTRAINT orders_key PRIMARY KEY (placed, country, id);
CREATE INDEX orders_customer_idx ON orders (customer) INCLUDE (n) WITH (fillfactor = 60);
CREATE INDEX old_alone ON orders_old (m);
CREATE INDEX "one by hand" ON orders_old (n);
CREATE INDEX orders_n ON orders (n);
CREATE UNIQUE INDEX orders_unique ON orders (id, placed, country) NULLS NOT DISTINCT;
ALTER TABLE orders ADD CONSTRAINT orders_check CHECK (id > 0);
ALTER TABLE orders_old ADD CONSTRAINT old_check CHECK (id < 100);
ALTER TABLE orders ADD CONSTRAINT orders_customer FOREIGN KEY (customer) REFERENCES customers (n) ON DELETE CASCADE;
ALTER TABLE orders_old ADD CONSTRAINT old_country FOREIGN KEY (country) REFERENCES extra.countries;
ALTER TABLE lines ADD CONSTRAINT lines_order FOREIGN KEY (order_placed, country, order_id) REFERENCES orders (placed, country, id);
COMMENT ON INDEX orders_customer_idx IS 'of all';
COMMENT ON CONSTRAINT old_country ON orders_old IS 'of one';
CREATE INDEX empty_parts_a ON empty_parts (a);
ALTER TABLE orders_old REPLICA IDENTITY USING INDEX orders_old_pkey;
-- inheritance: a check that is declared twice, one that is inherited, one alone
ALTER TABLE derived ADD CONSTRAINT twice CHECK (v > 0);
ALTER TABLE base ADD CONSTRAINT twice CHECK (v > 0), ADD CONSTRAINT once CHECK (id > 0), ADD CONSTRAINT own CHECK (id < 5) NO INHERIT;
ALTER TABLE base ADD PRIMARY KEY (id) DEFERRABLE;
CREATE INDEX derived_w ON derived (w);
ALTER TABLE quiet REPLICA IDENTITY NOTHING;
ALTER TABLE loud REPLICA IDENTITY FULL;
CREATE INDEX loud_a ON loud (a);
-- names of relations in expressions
CREATE INDEX loud_row ON loud ((loud.* IS NULL), (('shop.loud'::regclass)::oid)) WHERE a <> ('shop.quiet'::regclass)::oid::int;
ALTER TABLE loud ADD CONSTRAINT names CHECK (a <> ALL (ARRAY[('shop.loud'::regclass)::oid::int, ('extra.countries'::regclass)::oid::int]));

-- the tables as they are made before the copy
\c regression regress_steps
CREATE SCHEMA shop;
CREATE SCHEMA extra;
SET search_path = shop, public;
CREATE TYPE shop.mood AS ENUM ('ok', 'bad');
CREATE FUNCTION shop.fold(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT lower($1)';
CREATE SEQUENCE numbers;
CREATE TABLE customers (id int NOT NULL, email text NOT NULL, name text COLLATE "C", born date, tags int[], place point,
	region text, period int4range, n int NOT NULL);
CREATE TABLE extra.countries (code char(2) NOT NULL, capital int);
CREATE TABLE orders (id bigint NOT NULL, placed date NOT NULL, customer int, country char(2), m mood, n int GENERATED ALWAYS AS IDENTITY)
	PARTITION BY RANGE (placed);
CREATE TABLE orders_old PARTITION OF orders FOR VALUES FROM ('2000-01-01') TO ('2020-01-01');
CREATE TABLE orders_new PARTITION OF orders FOR VALUES FROM ('2020-01-01') TO (MAXVALUE) PARTITION BY LIST (country);
CREATE TABLE orders_new_de PARTITION OF orders_new FOR VALUES IN ('de');
CREATE TABLE "orders new ""x" PARTITION OF orders_new DEFAULT;
CREATE TABLE empty_parts (a int) PARTITION BY HASH (a);
CREATE TABLE base (id int NOT NULL, v int);
CREATE TABLE derived (w int) INHERITS (base);
CREATE TABLE derived_again () INHERITS (derived);
CREATE TABLE lines (order_id bigint, order_placed date, no int NOT NULL, country char(2), "from" int);
CREATE TABLE quiet (a int, b text);
CREATE TABLE loud (a int, b text);
ALTER TABLE customers ADD COLUMN note text, ADD COLUMN no int;
RESET search_path;
CREATE SERVER steps FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_steps_src');
CREATE USER MAPPING FOR regress_steps SERVER steps OPTIONS (user 'regress_steps');
CREATE SERVER steps_here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'regression');
CREATE USER MAPPING FOR regress_steps SERVER steps_here OPTIONS (user 'regress_steps');
SELECT migrate_create_job('steps', server => 'steps') AS job_id \gset
SELECT migrate_add_schema('steps', 'shop');
SELECT migrate_add_schema('steps', 'extra');
-- as if the job had made them
INSERT INTO migrate.made_relation (target_oid, job_id, root_oid, remote_schema, remote_table)
SELECT c.oid, :job_id, CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid ELSE c.oid END, n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN ('shop', 'extra') AND c.relkind IN ('r', 'p')
ON CONFLICT DO NOTHING;
INSERT INTO migrate.job_schema (job_id, source_schema, target_schema, search_path)
SELECT :job_id, s, s, '' FROM unnest('{shop,extra}'::text[]) s
WHERE NOT EXISTS (SELECT FROM migrate.job_schema o WHERE o.job_id = :job_id AND o.source_schema = s);
INSERT INTO migrate.made_object (job_id, side, kind, object, temporary)
VALUES (:job_id, 'target', 'schema', 'shop', false), (:job_id, 'target', 'type', 'shop.mood', false),
	(:job_id, 'target', 'sequence', 'shop.numbers', false);
CREATE FUNCTION plan(job text, mappings int[] DEFAULT NULL) RETURNS void LANGUAGE sql
	AS 'SELECT migrate._plan_steps(j, $2) FROM migrate.job j WHERE j.job = $1';
-- what comes before a step is shown by name
CREATE VIEW planned AS
	SELECT s.phase, s.kind, s.target, s.object,
		   regexp_replace(s.statement, '(_set_sequences)\(\d+\)', '\1(N)') AS statement,
		   (SELECT string_agg(a.kind || ' ' || a.object, ', ' ORDER BY a.kind, a.object COLLATE "C")
			FROM migrate.steps a WHERE a.step = ANY (s.after)) AS after, s.state, s.reason, s.job, s.step
	FROM migrate.steps s;
-- one after the other, as the workers do; an error is kept with its step
CREATE PROCEDURE work(which text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	s	record;
BEGIN
	LOOP
		SELECT p.* INTO s FROM migrate.post_step p JOIN migrate.job j USING (job_id)
		WHERE j.job = which AND p.state = 'todo' AND p.kind NOT IN ('vacuum', 'doubles', 'sequences')
		  AND NOT EXISTS (SELECT FROM migrate.post_step a WHERE a.step_id = ANY (p.after) AND a.state = 'todo')
		ORDER BY p.phase, p.step_id LIMIT 1;
		EXIT WHEN NOT FOUND;
		BEGIN
			EXECUTE s.ddl;
			UPDATE migrate.post_step SET state = 'done' WHERE step_id = s.step_id;
		EXCEPTION WHEN OTHERS THEN
			UPDATE migrate.post_step SET state = 'failed', error = s.kind || ': ' || sqlerrm, sqlstate = 'XX000' WHERE step_id = s.step_id;
		END;
	END LOOP;
END
$$;
SELECT plan('steps');
\pset format unaligned
\pset fieldsep ' | '
\pset tuples_only on
SELECT phase, kind, target, object, E'\n  ' || replace(statement, E'\n', E'\n  ') || coalesce(E'\n  -- after ' || after, '')
	|| coalesce(E'\n  -- ' || reason, '')
FROM planned WHERE job = 'steps' ORDER BY phase, target COLLATE "C", kind, object COLLATE "C";
\pset tuples_only off
\pset format aligned
CALL work('steps');
SELECT kind, target, object, error FROM migrate.steps WHERE job = 'steps' AND state = 'failed';
-- the catalogs of both sides, and what only one of them has
CREATE FUNCTION catalogs(server text) RETURNS TABLE (kind text, relation text, name text, definition text)
LANGUAGE sql AS $f$
	SELECT r ->> 'k', r ->> 'r', r ->> 'n', r ->> 'd'
	FROM pg_foreign_server s CROSS JOIN LATERAL migrate._remote_query(s.oid, $q$
		WITH c AS (SELECT c.*, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
				   WHERE n.nspname IN ('shop', 'extra'))
		SELECT 'index' AS k, c.oid::regclass::text AS r, i.indexrelid::regclass::text AS n,
			   concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisprimary, i.indimmediate, i.indisclustered, i.indisreplident,
						 (SELECT h.inhparent::regclass FROM pg_inherits h WHERE h.inhrelid = i.indexrelid),
						 (SELECT string_agg(a.attname || a.attstattarget, ' ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = i.indexrelid),
						 obj_description(i.indexrelid, 'pg_class')) AS d
		FROM c JOIN pg_index i ON i.indrelid = c.oid
		UNION ALL
		SELECT 'constraint', c.oid::regclass::text, o.conname, concat_ws(' ', pg_get_constraintdef(o.oid), o.conislocal, o.coninhcount, o.connoinherit AND o.contype = 'c', o.convalidated,
			   p.conname, obj_description(o.oid, 'pg_constraint'))
		FROM c JOIN pg_constraint o ON o.conrelid = c.oid LEFT JOIN pg_constraint p ON p.oid = o.conparentid WHERE o.contype <> 'n'
		UNION ALL
		SELECT 'statistics', c.oid::regclass::text, s.stxname, concat_ws(' ', pg_get_statisticsobjdef(s.oid), s.stxstattarget, obj_description(s.oid, 'pg_statistic_ext'))
		FROM c JOIN pg_statistic_ext s ON s.stxrelid = c.oid
		UNION ALL
		SELECT 'relation', c.oid::regclass::text, c.relreplident::text, c.relacl::text FROM c WHERE c.relkind IN ('r', 'p', 'S')
		UNION ALL
		SELECT 'column', c.oid::regclass::text, a.attname, concat_ws(' ', a.attacl, pg_get_expr(d.adbin, d.adrelid))
		FROM c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
		WHERE c.relkind IN ('r', 'p')
		UNION ALL
		SELECT 'schema', NULL, n.nspname, n.nspacl::text FROM pg_namespace n WHERE n.nspname IN ('shop', 'extra')
		UNION ALL
		SELECT 'type', NULL, t.typname, t.typacl::text FROM pg_type t WHERE t.typname = 'mood' $q$) r
	WHERE s.srvname = server
$f$;
SELECT kind, count(*) FROM catalogs('steps') GROUP BY kind ORDER BY kind;
SELECT 'source' AS only, * FROM (SELECT * FROM catalogs('steps') EXCEPT SELECT * FROM catalogs('steps_here')) x
UNION ALL
SELECT 'target', * FROM (SELECT * FROM catalogs('steps_here') EXCEPT SELECT * FROM catalogs('steps')) x
ORDER BY 3, 4, 1;

-- all of it is there, and planning again finds nothing to do
SELECT kind, count(*), count(*) FILTER (WHERE migrate._step_is_there(step_id)) AS there
FROM migrate.post_step GROUP BY kind ORDER BY kind;
CREATE TABLE before AS SELECT * FROM migrate.post_step;
SELECT plan('steps');
SELECT kind, object FROM (SELECT * FROM before EXCEPT SELECT * FROM migrate.post_step) x
UNION ALL
SELECT kind, object FROM (SELECT * FROM migrate.post_step EXCEPT SELECT * FROM before) x;
-- forgotten, it is found by itself
DELETE FROM migrate.post_step;
SELECT plan('steps');
SELECT kind, target, object FROM planned WHERE kind <> 'vacuum';

-- what is there must be what the step would make
ALTER TABLE shop.customers DROP CONSTRAINT customers_pkey, DROP CONSTRAINT adult, DROP CONSTRAINT later, DROP CONSTRAINT customers_region;
ALTER TABLE shop.lines DROP CONSTRAINT lines_order;
DROP INDEX shop.customers_n CASCADE;
DROP INDEX shop.customers_gist;
DROP STATISTICS shop.customers_stat;
SELECT plan('steps');
ALTER TABLE shop.customers ADD CONSTRAINT customers_pkey UNIQUE (id) INCLUDE (email) WITH (fillfactor = 70),
	ADD CONSTRAINT adult CHECK (born < '2011-01-01'), ADD CONSTRAINT later CHECK (n > 0),
	ADD CONSTRAINT customers_region FOREIGN KEY (region) REFERENCES extra.countries NOT VALID;
CREATE INDEX customers_n ON shop.customers (n);
CREATE INDEX customers_gist ON shop.customers USING gist (place);
CREATE STATISTICS shop.customers_stat ON name, region FROM shop.customers;
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'shop.customers_gist'::regclass;
SELECT kind, object, migrate._step_is_there(step_id) AS there FROM migrate.post_step
WHERE phase < 50 OR kind = 'statistics' ORDER BY kind, object COLLATE "C";

-- targets of other forms: partitioned where the source is not, with a column
-- less; one table where the source is partitioned; other names; a tablespace;
-- names that are taken; a table that was there
SELECT migrate_create_job('mine', server => 'steps', options => '{"indexes": "all"}') AS mine_id \gset
CREATE SCHEMA mine;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE regress_steps_space LOCATION '';
CREATE TABLE mine.clients (id bigint NOT NULL, mail text NOT NULL, name text COLLATE "C", tags int[], place point,
	region text, period int4range, n int NOT NULL, note text, no int) PARTITION BY LIST (region);
CREATE TABLE mine.clients_de PARTITION OF mine.clients FOR VALUES IN ('de');
CREATE TABLE mine.clients_rest PARTITION OF mine.clients DEFAULT PARTITION BY LIST (n);
CREATE TABLE mine.clients_rest_1 PARTITION OF mine.clients_rest DEFAULT;
CREATE INDEX mine_own ON mine.clients_de USING gin (tags) WITH (fastupdate = off);
CREATE TABLE mine.countries (code char(2) NOT NULL, capital int) TABLESPACE regress_steps_space;
CREATE TABLE mine.countries_pkey ();
CREATE TABLE mine.orders (id bigint PRIMARY KEY, placed date NOT NULL, customer int, country char(2) NOT NULL, m shop.mood, n int) TABLESPACE regress_steps_space;
CREATE INDEX orders_n ON mine.orders (m);
CREATE INDEX other_name ON mine.orders (customer) INCLUDE (n) WITH (fillfactor = 60);
CREATE TABLE mine.base (id int NOT NULL, v int CONSTRAINT own CHECK (v > 7));
CREATE SCHEMA mine_src;
CREATE FOREIGN TABLE mine_src.clients (id bigint, mail text OPTIONS (column_name 'email'), name text, tags int[], place point,
	region text, period int4range, n int, note text, no int) SERVER steps OPTIONS (schema_name 'shop', table_name 'customers');
SELECT migrate_add_table('mine', 'mine_src.clients', 'mine.clients');
SELECT migrate_add_table('mine', 'extra.countries', 'mine.countries');
SELECT migrate_add_table('mine', 'shop.orders', 'mine.orders');
SELECT migrate_add_table('mine', 'shop.base', 'mine.base');
INSERT INTO migrate.made_relation (target_oid, job_id, root_oid, remote_schema, remote_table, own_definition)
SELECT m.target_oid, m.job_id, m.target_oid, s.remote_schema, s.remote_table, m.target = 'mine.clients'
FROM migrate.mapping m JOIN migrate.source_table s USING (source_id)
WHERE m.target IN ('mine.clients', 'mine.countries')
ON CONFLICT (target_oid) DO UPDATE SET own_definition = excluded.own_definition;
SELECT plan('mine');
\pset format unaligned
\pset tuples_only on
SELECT phase, kind, target, object, state, E'\n  ' || replace(statement, E'\n', E'\n  ') || coalesce(E'\n  -- after ' || after, '')
	|| coalesce(E'\n  -- ' || reason, '')
FROM planned WHERE job = 'mine' ORDER BY phase, target COLLATE "C", kind, object COLLATE "C";
\pset tuples_only off
\pset format aligned
CALL work('mine');
SELECT kind, target, object, error FROM migrate.steps WHERE job = 'mine' AND state = 'failed';
SELECT tablename, indexdef, tablespace FROM pg_indexes WHERE schemaname = 'mine' ORDER BY indexname COLLATE "C";
SELECT conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint
WHERE connamespace = 'mine'::regnamespace AND conparentid = 0 AND contype <> 'n' ORDER BY conrelid::regclass::text COLLATE "C", conname COLLATE "C";
SELECT kind, count(*), count(*) FILTER (WHERE migrate._step_is_there(step)) AS there
FROM migrate.steps WHERE job = 'mine' AND phase < 50 AND state <> 'skipped' GROUP BY 1 ORDER BY 1;

-- by the options, and by mappings
SELECT migrate_create_job('few', server => 'steps') > 0 AS made;
CREATE TABLE mine."Loud" (a int, b text);
CREATE TABLE mine.keyed (code char(2), capital int);
SELECT migrate_add_table('few', 'shop.loud', 'mine."Loud"');
SELECT migrate_add_table('few', 'extra.countries', 'mine.keyed', columns => '{"capital": "capital + 1"}');
INSERT INTO migrate.made_relation (target_oid, job_id, root_oid, remote_schema, remote_table)
SELECT m.target_oid, m.job_id, m.target_oid, 'shop', 'loud' FROM migrate.mapping m WHERE m.target = 'mine."Loud"' ON CONFLICT DO NOTHING;
CREATE FUNCTION few(options jsonb, mappings int[] DEFAULT NULL) RETURNS TABLE (kind text, statement text) LANGUAGE sql AS $$
	SELECT migrate_alter_job('few', options);
	SELECT plan('few', mappings);
	SELECT kind, statement FROM planned WHERE job = 'few';
$$;
SELECT mapping_id AS loud_id FROM migrate.mapping WHERE target = 'mine."Loud"' \gset
SELECT * FROM few('{}', ARRAY[:loud_id]);
SELECT * FROM few('{}');
SELECT * FROM few('{"indexes": "none", "vacuum": "analyze"}');
SELECT * FROM few('{"indexes": null, "content": "data", "vacuum": "off"}');
SELECT * FROM few('{"content": "definitions", "vacuum": null}');
SELECT * FROM few('{"content": null}', ARRAY[:loud_id]);

-- retry and give up
UPDATE migrate.post_step SET state = 'failed', attempt = 3, error = 'could not', sqlstate = '23505'
WHERE ddl ~ 'Loud' AND (object = 'loud_a' OR kind = 'replica identity');
SELECT step AS index_step FROM migrate.steps WHERE job = 'few' AND object = 'loud_a' \gset
SELECT step AS other_step FROM migrate.steps WHERE job = 'few' AND kind = 'replica identity' \gset
SELECT step AS todo_step FROM migrate.steps WHERE job = 'few' AND kind = 'vacuum' AND target = 'mine."Loud"' \gset
SELECT migrate_retry_steps('fewer');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_retry_steps('few', '{0}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_skip_steps('few', ARRAY[:index_step], ' ');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_skip_steps('few', NULL, 'reason');
\echo :LAST_ERROR_SQLSTATE
-- numbers differ from run to run
CREATE FUNCTION attempt(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	more	text;
BEGIN
	EXECUTE statement;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS more = PG_EXCEPTION_DETAIL;
	RETURN format('%s: %s (%s)', sqlstate, regexp_replace(sqlerrm, '\d+', 'N'), more);
END
$$;
SELECT attempt(format('SELECT migrate_retry_steps(%L, %L)', 'few', ARRAY[:todo_step, :index_step]));
SELECT attempt(format('SELECT migrate_skip_steps(%L, %L, %L)', 'few', ARRAY[:index_step, :todo_step], 'reason'));
SELECT migrate_skip_steps('few', ARRAY[:other_step], 'nobody replicates it');
SELECT migrate_retry_steps('few');
SELECT migrate_retry_steps('few');
SELECT kind, object, state, sqlstate, error, reason, attempt FROM migrate.steps WHERE job = 'few' AND target = 'mine."Loud"';
SELECT level, kind, regexp_replace(message, '\d+', 'N') AS message, detail - 'steps' AS detail FROM migrate.events
WHERE job = 'few' AND kind LIKE '%steps' ORDER BY event_id;
-- a step that was given up stays so when it is planned again
SELECT plan('few');
SELECT kind, object, state, reason FROM migrate.steps WHERE job = 'few' AND target = 'mine."Loud"';

SET client_min_messages = warning;
SELECT migrate_drop_job(job) FROM migrate.job;
DROP SCHEMA shop, extra, mine, mine_src CASCADE;
DROP PROCEDURE work;
DROP FUNCTION few, attempt, catalogs, plan;
DROP VIEW planned;
DROP TABLE before;
DROP TABLESPACE regress_steps_space;
DROP SERVER steps CASCADE;
DROP SERVER steps_here CASCADE;
\c regression :me
DROP DATABASE migrate_steps_src;
DROP ROLE regress_steps, regress_steps_reader, regress_steps_writer;
