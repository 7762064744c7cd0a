/*
 * Target tables, made like the source's before the copy: everything that
 * CREATE TABLE says.  Keys, indexes and what else can wait are built after it
 * (migrate.post_step).
 *
 * The source is asked once for all tables of a call, with the partitions under
 * them.  A partition is made as pg_dump does, a table of its own that is then
 * attached: so it keeps its own column order and defaults.
 *
 * A relation travels as jsonb: what _remote_definitions says of it, and what
 * _place_targets adds:
 *	target, target_schema, target_name	what it will be here
 *	root		the target of the mapping that it belongs to, under the same name
 *	here		source column -> [name, type, collatable, toastable] here
 *	renamed		columns have other names here: no expression is valid
 *	above		the partitioned table here that it is attached to
 *	inherits	the tables here that it inherits from
 *	of			the type here that it is a table of
 *	tablespace
 */

/*
 * What the remote catalogs say of tables and the partitions under them, given
 * as parallel arrays of schema and table names.  "level" counts partitioned
 * tables above it, "depth" generations of inheritance.
 */
CREATE FUNCTION migrate._remote_definitions(server oid, schemas text[], tables text[])
RETURNS SETOF jsonb
LANGUAGE sql STABLE ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT jsonb_strip_nulls(r)
		   || jsonb_build_object('level', (r ->> 'level')::int, 'depth', (r ->> 'depth')::int,
								 'columns', coalesce((r ->> 'columns')::jsonb, '[]'),
								 'options', coalesce((r ->> 'options')::jsonb, '[]'))
		   || CASE WHEN r ->> 'parents' IS NULL THEN '{}' ELSE jsonb_build_object('parents', (r ->> 'parents')::jsonb) END
	FROM migrate._remote_query($1, format($q$
		WITH RECURSIVE tree(oid, root, above, level) AS (
			SELECT c.oid, c.oid, NULL::oid, 0
			FROM unnest(%L::text[], %L::text[]) w(s, t)
			JOIN pg_namespace n ON n.nspname = w.s
			JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t
				AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
			UNION ALL
			SELECT i.inhrelid, t.root, t.oid, t.level + 1
			FROM tree t
			JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p'
			JOIN pg_inherits i ON i.inhparent = t.oid
			WHERE NOT coalesce((to_jsonb(i) ->> 'inhdetachpending')::boolean, false)
		), line(oid, parent, depth) AS (
			SELECT i.inhrelid, i.inhparent, 1
			FROM tree t
			JOIN pg_class c ON c.oid = t.oid AND NOT c.relispartition
			JOIN pg_inherits i ON i.inhrelid = t.oid
			UNION
			SELECT l.oid, i.inhparent, l.depth + 1
			FROM line l JOIN pg_inherits i ON i.inhrelid = l.parent
		)
		SELECT n.nspname AS schema, c.relname AS name, c.relkind AS kind, t.level,
			rn.nspname AS root_schema, r.relname AS root_name,
			an.nspname AS above_schema, a.relname AS above_name,
			(SELECT coalesce(max(l.depth), 0) FROM line l WHERE l.oid = t.oid) AS depth,
			(SELECT json_agg(json_build_array(pn.nspname, p.relname) ORDER BY i.inhseqno)
			 FROM pg_inherits i
			 JOIN pg_class p ON p.oid = i.inhparent
			 JOIN pg_namespace pn ON pn.oid = p.relnamespace
			 WHERE i.inhrelid = c.oid AND NOT c.relispartition) AS parents,
			CASE WHEN t.level > 0 THEN pg_get_expr(c.relpartbound, c.oid) END AS bound,
			CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END AS partition_key,
			c.relpersistence AS persistence, m.amname AS method,
			format_type(nullif(c.reloftype, 0), NULL) AS of_type,
			CASE WHEN c.relkind = 'r' THEN
				(SELECT json_agg(o.option)
				 FROM (SELECT unnest(c.reloptions) AS option
					   UNION ALL
					   SELECT 'toast.' || unnest(x.reloptions) FROM pg_class x WHERE x.oid = c.reltoastrelid) o)
			END AS options,
			obj_description(c.oid, 'pg_class') AS comment,
			(SELECT json_strip_nulls(json_agg(json_build_object(
						'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
						'notnull', a.attnotnull, 'local', a.attislocal,
						'notnull_constraint',
							(SELECT json_build_object('name', k.conname, 'noinherit', k.connoinherit, 'valid', k.convalidated)
							 FROM pg_constraint k
							 WHERE k.conrelid = c.oid AND k.contype = 'n' AND k.conkey[1] = a.attnum),
						'identity', a.attidentity, 'sequence', s.about,
						'generated', a.attgenerated,
						'default', pg_get_expr(d.adbin, d.adrelid), 'refers', f.list,
						'storage', CASE WHEN a.attstorage <> ty.typstorage THEN a.attstorage END,
						'compression', nullif(to_jsonb(a) ->> 'attcompression', ''),
						'statistics', CASE WHEN a.attstattarget >= 0 THEN a.attstattarget END,
						-- less a key that later minor versions keep to themselves
						'options', (SELECT json_agg(o) FROM unnest(a.attoptions) o WHERE o NOT LIKE 'pg\_attver=%%'),
						'collation', CASE WHEN a.attcollation <> ty.typcollation
										  THEN json_build_array(cn.nspname, co.collname) END,
						'comment', col_description(c.oid, a.attnum))
					ORDER BY a.attnum))
			 FROM pg_attribute a
			 JOIN pg_type ty ON ty.oid = a.atttypid
			 LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
			 LEFT JOIN pg_collation co ON co.oid = a.attcollation
			 LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
			 -- tables and sequences in its default, as the expression writes them
			 LEFT JOIN LATERAL (
				SELECT json_agg(json_build_array(quote_literal(x.oid::regclass::text), xn.nspname, x.relname, x.relkind)) AS list
				FROM pg_depend p
				JOIN pg_class x ON x.oid = p.refobjid
				JOIN pg_namespace xn ON xn.oid = x.relnamespace
				WHERE p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
				  AND p.refclassid = 'pg_class'::regclass AND p.refobjid <> c.oid) f ON d.oid IS NOT NULL
			 LEFT JOIN LATERAL (
				SELECT json_build_object(
						'name', x.relname, 'type', format_type(q.seqtypid, NULL), 'start', q.seqstart, 'increment', q.seqincrement,
						'min', q.seqmin, 'max', q.seqmax, 'cache', q.seqcache, 'cycle', q.seqcycle,
						-- before 15 they were all logged
						'persistence', CASE WHEN current_setting('server_version_num')::int >= 150000
											THEN x.relpersistence END,
						'comment', obj_description(x.oid, 'pg_class')) AS about
				FROM pg_depend p
				JOIN pg_class x ON x.oid = p.objid
				JOIN pg_sequence q ON q.seqrelid = x.oid
				WHERE p.refclassid = 'pg_class'::regclass AND p.refobjid = c.oid AND p.refobjsubid = a.attnum
				  AND p.classid = 'pg_class'::regclass AND p.deptype = 'i') s ON a.attidentity <> ''
			 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
		FROM tree t
		JOIN pg_class c ON c.oid = t.oid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_class r ON r.oid = t.root
		JOIN pg_namespace rn ON rn.oid = r.relnamespace
		LEFT JOIN pg_class a ON a.oid = t.above
		LEFT JOIN pg_namespace an ON an.oid = a.relnamespace
		LEFT JOIN pg_am m ON m.oid = c.relam
	$q$, $2, $3)) AS r
$$;
COMMENT ON FUNCTION migrate._remote_definitions(oid, text[], text[]) IS
'all that CREATE TABLE has to say of tables on the source and of the partitions under them, for parallel arrays of schema and table names; tables that are not there give no row';

/*
 * The types that the argument column_types gives, as this database writes
 * them: a composite type reads a type as CREATE TABLE will.
 */
CREATE FUNCTION migrate._column_types(types jsonb, foreign_table oid, schema text, path text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	name	text := format('%I.migrate_column_type', $3);
	c		record;
	found	jsonb;
	result	jsonb := '{}';
BEGIN
	IF jsonb_typeof($1) <> 'object' THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'column_types must be a JSON object of columns and types',
			HINT = 'Write for example column_types => ''{"id": "bigint"}''.';
	END IF;
	FOR c IN SELECT e.key, e.value FROM jsonb_each($1) e ORDER BY e.key
	LOOP
		IF NOT EXISTS (SELECT FROM migrate._columns_of($2) f WHERE f.name = c.key) THEN
			RAISE EXCEPTION USING ERRCODE = '42703',
				MESSAGE = format('column "%s" in column_types does not exist in %s', c.key, migrate._name_of($2)),
				HINT = format('Its columns are: %s.',
							  coalesce((SELECT string_agg(quote_ident(f.name), ', ' ORDER BY f.attnum)
										FROM migrate._columns_of($2) f), 'none'));
		ELSIF jsonb_typeof(c.value) <> 'string' THEN
			RAISE EXCEPTION USING ERRCODE = '22023',
				MESSAGE = format('type of column "%s" in column_types must be a string, not %s', c.key, c.value),
				HINT = 'Write for example column_types => ''{"id": "bigint"}''.';
		END IF;
		BEGIN
			-- the line break ends a comment
			PERFORM migrate._execute_under($4, format(E'CREATE TYPE %s AS (c %s\n)', name, c.value #>> '{}'));
		EXCEPTION WHEN syntax_error_or_access_rule_violation OR invalid_schema_name OR data_exception THEN
			IF SQLSTATE = '42501' THEN
				RAISE;
			END IF;
			RAISE EXCEPTION USING ERRCODE = SQLSTATE,
				MESSAGE = format('type of column "%s" in column_types: %s', c.key, SQLERRM),
				HINT = 'Write a type as in CREATE TABLE, for example "bigint" or "numeric(20,2)".';
		END;
		IF (SELECT count(*) FILTER (WHERE a.attcollation = t.typcollation) <> 1 OR count(*) <> 1
			FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			WHERE a.attrelid = to_regclass(name) AND a.attnum > 0) THEN
			RAISE EXCEPTION USING ERRCODE = '22023',
				MESSAGE = format('type of column "%s" in column_types is not a type alone: %s', c.key, c.value #>> '{}'),
				HINT = 'The column keeps its collation. For more than another type make the target with target_definition.';
		END IF;
		SELECT jsonb_build_array(format_type(a.atttypid, a.atttypmod), a.attcollation <> 0, a.attstorage <> 'p')
		INTO found
		FROM pg_attribute a WHERE a.attrelid = to_regclass(name) AND a.attnum = 1;
		EXECUTE format('DROP TYPE %s', name);
		result := result || jsonb_build_object(c.key, found);
	END LOOP;
	RETURN result;
END
$$;
COMMENT ON FUNCTION migrate._column_types(jsonb, oid, text, text) IS
'checks {"column": "type"} for a foreign table; schema = one in which the caller may make a type. Returns {"column": [qualified type, collatable, toastable]}. Errors: 22023 no object of strings, 42703 unknown column, those of the parser for a type';

/* Options [k=v, ...] of a relation or column as SET takes them. */
CREATE FUNCTION migrate._options_clause(options jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT string_agg(CASE WHEN starts_with(o.option, 'toast.') THEN format('toast.%I = %L', substr(p.name, 7), p.value)
						   ELSE format('%I = %L', p.name, p.value) END, ', ' ORDER BY o.pos)
	FROM jsonb_array_elements_text($1) WITH ORDINALITY o(option, pos)
	CROSS JOIN LATERAL (SELECT split_part(o.option, '=', 1) AS name,
							   substr(o.option, strpos(o.option, '=') + 1) AS value) p
$$;
COMMENT ON FUNCTION migrate._options_clause(jsonb) IS
'storage parameters, given as in pg_class.reloptions, for WITH or SET; null when there are none';

/*
 * An expression of the source with the tables and sequences in it replaced by
 * those here; everything else has its name from there.  "refers": [how it is
 * written there, schema, name, relkind], as _remote_definitions gives it.
 */
CREATE FUNCTION migrate._expression_here(j migrate.job, expression text, refers jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	result	text := $2;
	r		record;
	pass	int;
BEGIN
	-- in two passes, since the new name of one may be the old one of another
	FOR pass IN 1..2
	LOOP
		FOR r IN SELECT x.value AS v, format(E'\x01%s\x02', x.pos) AS mark
				 FROM jsonb_array_elements($3) WITH ORDINALITY x(value, pos)
		LOOP
			IF pass = 1 THEN
				result := replace(result, (r.v ->> 0) || '::regclass', r.mark);
			ELSE
				result := replace(result, r.mark,
					quote_literal(CASE r.v ->> 3 WHEN 'S' THEN migrate._sequence_target($1, r.v ->> 1, r.v ->> 2)
								  ELSE coalesce((SELECT migrate._name_of(m.target_oid) FROM migrate.made_relation m
												 WHERE m.job_id = $1.job_id AND m.remote_schema = r.v ->> 1 AND m.remote_table = r.v ->> 2
												 ORDER BY m.target_oid LIMIT 1),
												format('%I.%I', r.v ->> 1, r.v ->> 2)) END) || '::regclass');
			END IF;
		END LOOP;
	END LOOP;
	RETURN result;
END
$$;
COMMENT ON FUNCTION migrate._expression_here(migrate.job, text, jsonb) IS
'an expression as the source writes it, with the names that its tables and sequences have here';

/* What an identity column says of its sequence; the type's limits are left to it. */
CREATE FUNCTION migrate._identity_options(sequence jsonb, full_name text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('(%sSTART WITH %s INCREMENT BY %s%s%s CACHE %s%s)',
				  'SEQUENCE NAME ' || $2 || ' ', $1 ->> 'start', $1 ->> 'increment',
				  CASE WHEN ($1 ->> 'min')::bigint <> CASE WHEN l.up THEN 1 ELSE l.lowest END
					   THEN ' MINVALUE ' || ($1 ->> 'min') END,
				  CASE WHEN ($1 ->> 'max')::bigint <> CASE WHEN l.up THEN l.highest ELSE -1 END
					   THEN ' MAXVALUE ' || ($1 ->> 'max') END,
				  $1 ->> 'cache', CASE WHEN ($1 ->> 'cycle')::boolean THEN ' CYCLE' END)
	FROM (SELECT ($1 ->> 'increment')::bigint > 0 AS up, t.lowest, t.highest
		  FROM (VALUES ('smallint', (-32768)::bigint, 32767::bigint), ('integer', -2147483648, 2147483647),
					   ('bigint', -9223372036854775808, 9223372036854775807)) t(type, lowest, highest)
		  WHERE t.type = $1 ->> 'type') l
$$;
COMMENT ON FUNCTION migrate._identity_options(jsonb, text) IS
'the sequence options of an identity column, for a sequence as _remote_definitions describes it; full_name = its name here, null: whichever is free';

/*
 * Where everything comes to lie: the relations to be made, in the order in
 * which they can be.  See the top of this file for what is in one.
 */
CREATE FUNCTION migrate._place_targets(j migrate.job, foreign_tables oid[], schemas text[], names text[],
									   rename jsonb, tablespace text, column_types jsonb) RETURNS SETOF jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	postgres boolean := migrate._is_postgres_fdw($1.server);
BEGIN
	RETURN QUERY
	WITH wanted AS MATERIALIZED (
		SELECT w.ft, w.schema, w.name, n.remote_schema, n.remote_table
		FROM unnest($2, $3, $4) w(ft, schema, name)
		CROSS JOIN LATERAL migrate._remote_name(w.ft) n
	), here AS MATERIALIZED (
		SELECT a.attrelid AS ft,
			   jsonb_object_agg(o.name, jsonb_build_array(a.attname)
								|| coalesce($7 -> a.attname::text,
											jsonb_build_array(format_type(a.atttypid, a.atttypmod), a.attcollation <> 0,
															  a.attstorage <> 'p'))) AS columns,
			   bool_or(o.name <> a.attname) AS renamed,
			   -- where there is no catalog to ask
			   jsonb_agg(jsonb_build_object('name', o.name, 'local', true) ORDER BY a.attnum) AS plain
		FROM pg_attribute a
		CROSS JOIN LATERAL (
			SELECT coalesce((SELECT f.option_value FROM pg_options_to_table(a.attfdwoptions) f
							 WHERE f.option_name = 'column_name'), a.attname) AS name) o
		WHERE a.attrelid = ANY ($2) AND a.attnum > 0 AND NOT a.attisdropped
		GROUP BY a.attrelid
	), relation AS MATERIALIZED (
		SELECT d.r, (d.r ->> 'level')::int AS level, d.r ->> 'schema' AS schema, d.r ->> 'name' AS name,
			   d.r ->> 'root_schema' AS root_schema, d.r ->> 'root_name' AS root_name,
			   d.r ->> 'above_schema' AS above_schema, d.r ->> 'above_name' AS above_name
		FROM (SELECT array_agg(w.remote_schema) AS s, array_agg(w.remote_table) AS t FROM wanted w) a
		CROSS JOIN LATERAL migrate._remote_definitions($1.server, a.s, a.t) d(r)
		WHERE postgres
		UNION ALL
		SELECT jsonb_build_object('kind', 'f', 'level', 0, 'depth', 0, 'options', '[]'::jsonb,
								  'columns', coalesce(h.plain, '[]')),
			   0, NULL, NULL, w.remote_schema, w.remote_table, NULL, NULL
		FROM wanted w LEFT JOIN here h ON h.ft = w.ft
		WHERE NOT postgres
	), placed AS MATERIALIZED (
		SELECT x.r, x.level, x.schema AS remote_schema, x.name AS remote_table, x.above_schema, x.above_name,
			   w.ft, coalesce(h.columns, '{}') AS here, coalesce(h.renamed, false) AS renamed,
			   format('%I.%I', w.schema, w.name) AS root,
			   CASE WHEN x.level = 0 OR x.schema = w.remote_schema THEN w.schema
					ELSE coalesce(s.target_schema, x.schema) END AS schema,
			   CASE WHEN x.level = 0 THEN w.name
					ELSE coalesce(CASE WHEN x.schema = w.remote_schema THEN $5 ELSE s.rename END ->> x.name, x.name) END AS name
		FROM relation x
		JOIN wanted w ON w.remote_schema = x.root_schema AND w.remote_table = x.root_name
		LEFT JOIN here h ON h.ft = w.ft
		LEFT JOIN LATERAL (
			SELECT c.target_schema, c.rename FROM migrate.job_schema c
			WHERE x.level > 0 AND c.job_id = $1.job_id AND c.source_schema = x.schema
			ORDER BY c.schema_id DESC LIMIT 1) s ON true
		-- columns of other names: what the source says of partitions is not valid
		WHERE x.level = 0 OR NOT h.renamed
	), made AS MATERIALIZED (
		SELECT p.remote_schema, p.remote_table, format('%I.%I', p.schema, p.name) AS target
		FROM placed p WHERE NOT p.renamed
		UNION ALL
		SELECT m.remote_schema, m.remote_table, migrate._name_of(m.target_oid)
		FROM migrate.made_relation m
		WHERE m.job_id = $1.job_id AND NOT m.own_definition
	)
	SELECT p.r || jsonb_build_object(
			'ft', p.ft, 'here', p.here, 'renamed', p.renamed, 'root', p.root, 'tablespace', $6,
			'target', format('%I.%I', p.schema, p.name), 'target_schema', p.schema, 'target_name', p.name,
			'above', CASE WHEN b.ft IS NOT NULL THEN format('%I.%I', b.schema, b.name) END,
			'inherits', CASE WHEN NOT p.renamed THEN i.targets END,
			'of', CASE WHEN NOT p.renamed AND $7 IS NULL THEN to_regtype(p.r ->> 'of_type')::text END)
	FROM placed p
	LEFT JOIN placed b ON b.ft = p.ft AND b.remote_schema = p.above_schema AND b.remote_table = p.above_name
	-- either all of its parents or none
	LEFT JOIN LATERAL (
		SELECT CASE WHEN bool_and(m.target IS NOT NULL) THEN jsonb_agg(m.target ORDER BY q.pos) END AS targets
		FROM jsonb_array_elements(p.r -> 'parents') WITH ORDINALITY q(parent, pos)
		LEFT JOIN LATERAL (SELECT x.target FROM made x
						   WHERE x.remote_schema = q.parent ->> 0 AND x.remote_table = q.parent ->> 1
							 AND x.target IS NOT NULL
						   LIMIT 1) m ON true) i ON true
	ORDER BY (p.r ->> 'depth')::int, p.level, p.schema, p.name;
END
$$;
COMMENT ON FUNCTION migrate._place_targets(migrate.job, oid[], text[], text[], jsonb, text, jsonb) IS
'what the source says of the tables that foreign tables read, and of their partitions, with the places they get here; parents first. Arguments as _make_targets';

CREATE FUNCTION migrate._is_adopted(r jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(jsonb_typeof($1 -> 'inherits') = 'array'
					AND NOT EXISTS (SELECT FROM jsonb_array_elements($1 -> 'columns') c WHERE NOT (c ->> 'local')::boolean), false)
$$;
COMMENT ON FUNCTION migrate._is_adopted(jsonb) IS
'whether a relation, as _place_targets gives it, inherits but has all columns as its own, as ALTER TABLE ... INHERIT leaves it';

/*
 * What makes one relation, in two ways: all at once (create and complete), or
 * with the parts that may fail one by one (bare and parts).
 */
CREATE FUNCTION migrate._table_ddl(j migrate.job, r jsonb, OUT "create" text, OUT complete text,
								   OUT bare text, OUT parts jsonb, OUT last text, OUT stored text, OUT nullable text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	version	int := current_setting('server_version_num')::int;
	target	text := $2 ->> 'target';
	typed	boolean := $2 ->> 'of' IS NOT NULL;
	-- all columns its own: it was made to inherit afterwards, and is so here
	adopted	boolean := migrate._is_adopted($2);
	inherits boolean := coalesce(jsonb_typeof($2 -> 'inherits') = 'array', false) AND NOT adopted;
	whole	boolean := $2 ->> 'kind' = 'p' AND NOT ($2 ->> 'renamed')::boolean;
	options	text := migrate._options_clause($2 -> 'options');
	method	text := $2 ->> 'method';
	head	text;
	tail	text;
	list	text;
	bare_list text;
	alters	text[];
	comments text[];
BEGIN
	WITH col AS (
		SELECT k.c, k.pos, h.h ->> 0 AS name, h.h ->> 1 AS type, h.h ->> 1 <> k.c ->> 'type' AS changed,
			   (h.h ->> 2)::boolean AS collatable, (h.h ->> 3)::boolean AS toastable,
			   NOT inherits OR (k.c ->> 'local')::boolean AS printed,
			   k.c ->> 'generated' AS generated,
			   (k.c ->> 'notnull')::boolean AND coalesce((k.c -> 'notnull_constraint' ->> 'valid')::boolean, true) AS filled
		FROM jsonb_array_elements($2 -> 'columns') WITH ORDINALITY k(c, pos)
		CROSS JOIN LATERAL (SELECT $2 -> 'here' -> (k.c ->> 'name') AS h) h
		WHERE h.h IS NOT NULL
	), def AS (
		SELECT c.*, x.expr,
			   coalesce(CASE WHEN NOT typed THEN ' ' || c.type END, '')
			   || CASE WHEN typed OR NOT coalesce(c.collatable, true) THEN ''
					   ELSE migrate._collate_clause(c.c -> 'collation') END
			   || CASE WHEN c.generated IN ('s', 'v') AND x.expr IS NOT NULL THEN
						format(' GENERATED ALWAYS AS (%s) %s', x.expr,
							   CASE WHEN c.generated = 'v' AND version >= 180000 THEN 'VIRTUAL' ELSE 'STORED' END)
					   WHEN c.c ->> 'identity' IN ('a', 'd') AND c.c ? 'sequence'
							AND c.type IN ('smallint', 'integer', 'bigint')
							-- from 17 on a partition has that of its table
							AND NOT (version >= 170000 AND $2 ->> 'above' IS NOT NULL) THEN
						format(' GENERATED %s AS IDENTITY %s',
							   CASE c.c ->> 'identity' WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END,
							   migrate._identity_options(c.c -> 'sequence', s.name))
					   ELSE '' END AS body,
			   CASE WHEN NOT c.filled THEN ''
					ELSE coalesce(CASE WHEN version >= 180000 AND c.c -> 'notnull_constraint' ->> 'name'
											<> format('%s_%s_not_null', $2 ->> 'name', c.c ->> 'name')
									   THEN format(' CONSTRAINT %I', c.c -> 'notnull_constraint' ->> 'name') END, '')
						 || ' NOT NULL'
						 || CASE WHEN version >= 180000 AND (c.c -> 'notnull_constraint' ->> 'noinherit')::boolean
								 THEN ' NO INHERIT' ELSE '' END END AS notnull,
			   CASE WHEN x.expr IS NOT NULL AND coalesce(c.generated, '') = '' THEN ' DEFAULT ' || x.expr ELSE '' END AS preset,
			   s.name AS sequence_name
		FROM col c
		CROSS JOIN LATERAL (
			SELECT CASE WHEN ($2 ->> 'renamed')::boolean OR $2 ->> 'kind' IN ('v', 'm') THEN NULL
						WHEN c.c ? 'refers' THEN migrate._expression_here($1, c.c ->> 'default', c.c -> 'refers')
						ELSE c.c ->> 'default' END AS expr
			OFFSET 0) x -- not worked out anew at each use
		LEFT JOIN LATERAL (
			SELECT q.name
			FROM (SELECT quote_ident($2 ->> 'target_schema') || '.' || quote_ident(c.c -> 'sequence' ->> 'name') AS name) q
			WHERE to_regclass(q.name) IS NULL) s ON true
	), clause AS (
		SELECT d.pos, 1 AS n, format('ALTER %I SET STORAGE %s', d.name,
							CASE d.c ->> 'storage' WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END) AS text,
			   format('storage of column %I', d.name) AS what
		FROM def d WHERE d.c ? 'storage' AND NOT inherits AND (d.toastable OR NOT d.changed)
		UNION ALL
		SELECT d.pos, 2, format('ALTER %I SET COMPRESSION %s', d.name, CASE d.c ->> 'compression' WHEN 'l' THEN 'lz4' ELSE 'pglz' END),
			   format('compression of column %I', d.name)
		FROM def d WHERE d.c ? 'compression' AND NOT inherits AND (d.toastable OR NOT d.changed)
		UNION ALL
		SELECT d.pos, 3, format('ALTER %I SET STATISTICS %s', d.name, d.c ->> 'statistics'), format('statistics target of column %I', d.name)
		FROM def d WHERE d.c ? 'statistics'
		UNION ALL
		SELECT d.pos, 4, format('ALTER %I SET (%s)', d.name, migrate._options_clause(d.c -> 'options')), format('options of column %I', d.name)
		FROM def d WHERE d.c ? 'options'
	)
	SELECT (SELECT string_agg(format('%I%s%s%s%s', d.name, CASE WHEN typed THEN ' WITH OPTIONS' END, d.body, d.preset, d.notnull), ', ' ORDER BY d.pos)
			FROM def d WHERE d.printed AND (NOT typed OR d.body || d.preset || d.notnull <> '')),
		   (SELECT string_agg(format('%I%s%s%s', d.name, CASE WHEN typed THEN ' WITH OPTIONS' END, d.body, d.notnull), ', ' ORDER BY d.pos)
			FROM def d WHERE d.printed AND (NOT typed OR d.body || d.notnull <> '')),
		   (SELECT array_agg(c.text ORDER BY c.pos, c.n) FROM clause c),
		   (SELECT coalesce(jsonb_agg(jsonb_build_array(p.what, p.ddl) ORDER BY p.n, p.pos), '[]')
			FROM (SELECT 1 AS n, d.pos, format('default of column %I', d.name) AS what,
						 format('ALTER TABLE ONLY %s ALTER %I SET%s', target, d.name, d.preset) AS ddl
				  FROM def d WHERE d.printed AND d.preset <> ''
				  UNION ALL
				  SELECT 2, o.pos, format('storage parameter %s', o.option),
						 format('ALTER TABLE %s SET (%s)', target, migrate._options_clause(jsonb_build_array(o.option)))
				  FROM jsonb_array_elements($2 -> 'options') WITH ORDINALITY o(option, pos)
				  UNION ALL
				  SELECT 3, c.pos, c.what, format('ALTER TABLE ONLY %s %s', target, c.text) FROM clause c) p),
		   (SELECT array_agg(x.text)
			FROM (SELECT format('COMMENT ON TABLE %s IS %L', target, $2 ->> 'comment') AS text
				  WHERE $2 ? 'comment' AND $2 ->> 'kind' IN ('r', 'p', 'f')
				  UNION ALL
				  SELECT format('COMMENT ON COLUMN %s.%I IS %L', target, d.name, d.c ->> 'comment')
				  FROM def d WHERE d.c ? 'comment' AND $2 ->> 'kind' IN ('r', 'p', 'f')
				  UNION ALL
				  SELECT format('COMMENT ON SEQUENCE %s IS %L', d.sequence_name, d.c -> 'sequence' ->> 'comment')
				  FROM def d WHERE d.body LIKE '% AS IDENTITY (%' AND d.sequence_name IS NOT NULL AND d.c -> 'sequence' ? 'comment'
				  UNION ALL
				  SELECT format('ALTER SEQUENCE %s SET %s', d.sequence_name,
								CASE d.c -> 'sequence' ->> 'persistence' WHEN 'u' THEN 'UNLOGGED' ELSE 'LOGGED' END)
				  FROM def d WHERE d.body LIKE '% AS IDENTITY (%' AND d.sequence_name IS NOT NULL
					AND d.c -> 'sequence' ->> 'persistence' <> $2 ->> 'persistence') x),
		   (SELECT string_agg(quote_ident(d.name), ', ' ORDER BY d.pos) FROM def d
			WHERE d.generated = 'v' AND d.printed AND d.body LIKE '% STORED'),
		   (SELECT string_agg(quote_ident(d.name), ', ' ORDER BY d.pos) FROM def d
			WHERE (d.c ->> 'notnull')::boolean AND NOT d.filled)
	INTO list, bare_list, alters, parts, comments, stored, nullable;

	-- a partitioned table can neither be unlogged nor, before 17, have a method
	head := format('CREATE %sTABLE %s%s ', CASE WHEN $2 ->> 'persistence' = 'u' AND NOT (whole AND version >= 180000) THEN 'UNLOGGED ' END,
				   target, CASE WHEN typed THEN ' OF ' || ($2 ->> 'of') END);
	tail := coalesce(' INHERITS (' || (SELECT string_agg(i.name, ', ' ORDER BY i.pos)
									   FROM jsonb_array_elements_text(CASE WHEN inherits THEN $2 -> 'inherits' END) WITH ORDINALITY i(name, pos)) || ')', '')
		|| CASE WHEN whole THEN ' PARTITION BY ' || ($2 ->> 'partition_key') ELSE '' END
		|| CASE WHEN method <> 'heap' AND method <> current_setting('default_table_access_method')
					 AND $2 ->> 'kind' IN ('r', 'p') AND NOT (whole AND version < 170000)
					 AND EXISTS (SELECT FROM pg_am a WHERE a.amname = method AND a.amtype = 't')
				THEN format(' USING %I', method) ELSE '' END;
	"create" := head || coalesce('(' || list || ')', CASE WHEN typed THEN '' ELSE '()' END) || tail
		|| coalesce(' WITH (' || options || ')', '') || coalesce(' TABLESPACE ' || quote_ident($2 ->> 'tablespace'), '');
	bare := head || coalesce('(' || bare_list || ')', CASE WHEN typed THEN '' ELSE '()' END) || tail
		|| coalesce(' TABLESPACE ' || quote_ident($2 ->> 'tablespace'), '');
	complete := coalesce(format('; ALTER TABLE ONLY %s ', target) || array_to_string(alters, ', '), '');
	IF $2 ->> 'above' IS NOT NULL THEN
		comments := comments || format('ALTER TABLE ONLY %s ATTACH PARTITION %s %s', $2 ->> 'above', target, $2 ->> 'bound');
	END IF;
	IF adopted THEN
		comments := comments || ARRAY(SELECT format('ALTER TABLE ONLY %s INHERIT %s', target, i.name)
									  FROM jsonb_array_elements_text($2 -> 'inherits') WITH ORDINALITY i(name, pos) ORDER BY i.pos);
	END IF;
	last := coalesce(array_to_string(comments, '; '), '');
END
$$;
COMMENT ON FUNCTION migrate._table_ddl(migrate.job, jsonb) IS
'statements for one relation as _place_targets gives it: "create" with "complete", or bare with the optional parts, an array of [what, statement]; then last (comments, attaching). stored = columns that are virtual on the source and stored here; nullable = columns whose NOT NULL is not valid on the source';

/*
 * What a table that inherits has and its parents lack, or the other way round:
 * found by looking at what came out.
 */
CREATE FUNCTION migrate._inherited_parts(j migrate.job, r jsonb) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(jsonb_agg(jsonb_build_array(p.what, format('ALTER TABLE ONLY %s ', $2 ->> 'target') || p.clause)
							  ORDER BY a.attnum, p.n), '[]')
	FROM pg_attribute a
	JOIN jsonb_array_elements($2 -> 'columns') c ON $2 -> 'here' -> (c ->> 'name') ->> 0 = a.attname
	LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
	CROSS JOIN LATERAL (SELECT CASE WHEN c ? 'refers' THEN migrate._expression_here($1, c ->> 'default', c -> 'refers')
									ELSE c ->> 'default' END AS preset,
							   pg_get_expr(d.adbin, d.adrelid) AS preset_here,
							   (c ->> 'notnull')::boolean AND coalesce((c -> 'notnull_constraint' ->> 'valid')::boolean, true) AS filled,
							   coalesce(c ->> 'storage', t.typstorage::text) AS storage,
							   coalesce(c ->> 'compression', '') AS compression,
							   coalesce(to_jsonb(a) ->> 'attcompression', '') AS compression_here
						FROM pg_type t WHERE t.oid = a.atttypid) x
	CROSS JOIN LATERAL (
		SELECT 1 AS n, format('default of column %I', a.attname) AS what,
			   CASE WHEN x.preset IS NULL THEN format('ALTER %I DROP DEFAULT', a.attname)
					ELSE format('ALTER %I SET DEFAULT %s', a.attname, x.preset) END AS clause
		WHERE a.attgenerated = '' AND a.attidentity = '' AND x.preset IS DISTINCT FROM x.preset_here
		UNION ALL
		SELECT 2, format('NOT NULL of column %I', a.attname),
			   CASE WHEN current_setting('server_version_num')::int >= 180000 AND c ? 'notnull_constraint'
					THEN format('ADD CONSTRAINT %I NOT NULL %I', c -> 'notnull_constraint' ->> 'name', a.attname)
					ELSE format('ALTER %I SET NOT NULL', a.attname) END
		WHERE x.filled AND NOT a.attnotnull
		UNION ALL
		SELECT 3, format('storage of column %I', a.attname),
			   format('ALTER %I SET STORAGE %s', a.attname,
					  CASE x.storage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END)
		WHERE x.storage <> a.attstorage::text
		UNION ALL
		SELECT 4, format('compression of column %I', a.attname),
			   format('ALTER %I SET COMPRESSION %s', a.attname,
					  CASE x.compression WHEN 'l' THEN 'lz4' WHEN 'p' THEN 'pglz' ELSE 'default' END)
		WHERE x.compression <> x.compression_here) p
	WHERE a.attrelid = to_regclass($2 ->> 'target') AND a.attnum > 0 AND NOT a.attisdropped
$$;
COMMENT ON FUNCTION migrate._inherited_parts(migrate.job, jsonb) IS
'what is still to be done on a table made with INHERITS, an array of [what, statement]';

/* One optional part after another: one that cannot be made is told and left out. */
CREATE FUNCTION migrate._make_parts(target text, parts jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	p		record;
BEGIN
	FOR p IN SELECT x.value ->> 0 AS what, x.value ->> 1 AS ddl
			 FROM jsonb_array_elements($2) WITH ORDINALITY x(value, pos) ORDER BY x.pos
	LOOP
		BEGIN
			EXECUTE p.ddl;
		EXCEPTION WHEN syntax_error_or_access_rule_violation OR invalid_schema_name OR data_exception
			OR feature_not_supported OR object_not_in_prerequisite_state THEN
			RAISE WARNING USING ERRCODE = '01000',
				MESSAGE = format('target table %s is made without the %s', $1, p.what),
				DETAIL = SQLERRM,
				HINT = format('When what it needs is there: %s;%s', p.ddl,
							  CASE WHEN p.what LIKE 'default %' THEN ' (tried again after the copy)' ELSE '' END);
		END;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._make_parts(text, jsonb) IS
'runs the optional statements of a table that is made, an array of [what, statement]; a WARNING for each that fails';

/* What comes out unlike the source, and is known beforehand. */
CREATE FUNCTION migrate._tell_unlike(r jsonb, stored text, nullable text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	target	text := $1 ->> 'target';
BEGIN
	IF $2 IS NOT NULL THEN
		RAISE WARNING USING ERRCODE = '01000',
			MESSAGE = format('virtual generated columns of target table %s are stored here: %s', target, $2),
			HINT = 'Virtual ones need PostgreSQL 18.';
	END IF;
	IF $3 IS NOT NULL THEN
		RAISE WARNING USING ERRCODE = '01000',
			MESSAGE = format('target table %s is made without NOT NULL of: %s', target, $3),
			DETAIL = 'The constraint is not valid on the source.';
	END IF;
	IF $1 ->> 'kind' = 'f' AND $1 ->> 'above' IS NOT NULL THEN
		RAISE NOTICE USING
			MESSAGE = format('partition %s is a foreign table on the source and becomes a plain table', target);
	END IF;
	IF $1 ->> 'kind' = 'p' AND ($1 ->> 'renamed')::boolean THEN
		RAISE WARNING USING ERRCODE = '01000',
			MESSAGE = format('target table %s is made without partitions', target),
			DETAIL = 'The foreign table has other column names than the source.';
	END IF;
	IF $1 ? 'parents' AND jsonb_typeof($1 -> 'inherits') = 'null' THEN
		RAISE WARNING USING ERRCODE = '01000',
			MESSAGE = format('target table %s is made without its parent', target),
			DETAIL = format('On the source it inherits from %s.',
							(SELECT string_agg(format('%I.%I', p ->> 0, p ->> 1), ', ') FROM jsonb_array_elements($1 -> 'parents') p)),
			HINT = 'Only what the job makes too can be its parent: add that first, or both with one migrate_add_schema.';
	END IF;
	IF $1 ->> 'of_type' IS NOT NULL AND $1 ->> 'of' IS NULL THEN
		RAISE WARNING USING ERRCODE = '01000',
			MESSAGE = format('target table %s is made without its type %s', target, $1 ->> 'of_type'),
			HINT = format('ALTER TABLE %s OF %s;', target, $1 ->> 'of_type');
	END IF;
	IF $1 ->> 'method' <> 'heap' AND $1 ->> 'kind' IN ('r', 'p')
		AND NOT EXISTS (SELECT FROM pg_am a WHERE a.amname = $1 ->> 'method' AND a.amtype = 't') THEN
		RAISE WARNING USING ERRCODE = '01000',
			MESSAGE = format('target table %s is made with another access method', target),
			DETAIL = format('Access method "%s" of the source does not exist here.', $1 ->> 'method'),
			HINT = 'Make it first, then take the table out, drop it and add it again.';
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._tell_unlike(jsonb, text, text) IS
'a WARNING or NOTICE for each thing in which a relation, as _place_targets gives it, will be unlike the source; stored and nullable as _table_ddl gives them';

/* Without the notices of what is merged with a parent. */
CREATE FUNCTION migrate._execute_quietly(statement text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
BEGIN
	EXECUTE $1;
END
$$;
COMMENT ON FUNCTION migrate._execute_quietly(text) IS 'runs a statement without notices';

/*
 * "boldly": all at once, any error is the caller's; else what may be left out
 * is tried by itself.
 */
CREATE FUNCTION migrate._make_table(j migrate.job, r jsonb, boldly boolean) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	target	text := $2 ->> 'target';
	d		record;
BEGIN
	SELECT * INTO d FROM migrate._table_ddl($1, $2);
	IF $3 THEN
		PERFORM migrate._execute_quietly(d."create" || d.complete);
	ELSE
		BEGIN
			PERFORM migrate._execute_quietly(d.bare);
		EXCEPTION
			WHEN insufficient_privilege OR duplicate_table THEN
				RAISE;
			WHEN syntax_error_or_access_rule_violation OR invalid_schema_name OR data_exception
				OR feature_not_supported OR object_not_in_prerequisite_state THEN
				RAISE EXCEPTION USING ERRCODE = SQLSTATE,
					MESSAGE = format('target table %s cannot be made like the source: %s', target, SQLERRM),
					HINT = 'Make what it needs first (pg_dump --section=pre-data of the source, restored here, has all of it), or the table by hand; then add it again.';
		END;
		PERFORM migrate._make_parts(target, d.parts);
	END IF;
	IF jsonb_typeof($2 -> 'inherits') = 'array' AND NOT migrate._is_adopted($2) THEN
		PERFORM migrate._make_parts(target, migrate._inherited_parts($1, $2));
	END IF;
	IF d.last <> '' THEN
		EXECUTE d.last;
	END IF;
	PERFORM migrate._tell_unlike($2, d.stored, d.nullable);
END
$$;
COMMENT ON FUNCTION migrate._make_table(migrate.job, jsonb, boolean) IS
'makes one relation as _place_targets gives it; boldly = as one statement, which fails for anything. Errors: those of CREATE TABLE, when it cannot even be made without defaults and parameters';

/*
 * Tables like those that foreign tables read, with their partitions.
 */
CREATE FUNCTION migrate._make_targets(j migrate.job, foreign_tables oid[], schemas text[], names text[],
									  rename jsonb DEFAULT NULL, tablespace text DEFAULT NULL, column_types jsonb DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	relations jsonb[];
	r		jsonb;
	bad		record;
	s		record;
BEGIN
	relations := ARRAY(SELECT p FROM migrate._place_targets($1, $2, $3, $4, $5, $6, $7) p);

	SELECT x ->> 'target_name' AS name INTO bad
	FROM unnest(relations) x WHERE octet_length(x ->> 'target_name') > 63 ORDER BY 1 LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '42622',
			MESSAGE = format('name of table "%s" is longer than 63 bytes in the encoding of this database', bad.name),
			HINT = 'Give it another name with the argument rename of migrate_add_schema.';
	END IF;
	SELECT x ->> 'target' AS target, string_agg(concat_ws('.', x ->> 'schema', x ->> 'name'), ', ' ORDER BY x ->> 'schema', x ->> 'name') AS sources
	INTO bad
	FROM unnest(relations) x GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '42P07',
			MESSAGE = format('several tables would become %s', bad.target),
			DETAIL = format('They are: %s.', bad.sources),
			HINT = 'Give them different names with the argument rename of migrate_add_schema.';
	END IF;
	SELECT x ->> 'target' AS target, x ->> 'root' AS root, x ->> 'schema' AS schema,
		   (SELECT s.srvname FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver
			WHERE f.ftrelid = to_regclass(x ->> 'target') AND f.ftserver = $1.server) AS server
	INTO bad
	FROM unnest(relations) x WHERE to_regclass(x ->> 'target') IS NOT NULL ORDER BY 1 LIMIT 1;
	IF bad.server IS NOT NULL THEN
		-- the target schema is the one that the source's tables are imported into
		RAISE EXCEPTION USING ERRCODE = '42P07',
			MESSAGE = format('relation %s exists already', bad.target),
			DETAIL = 'It is a foreign table by which the source is read. Nothing is overwritten.',
			HINT = format('Use another target schema; or have the foreign tables in another one, by calling first: SELECT migrate_import(%L, %L, local_schema => %L);',
						  $1.job, coalesce(bad.schema, 'public'), bad.server || '_' || coalesce(bad.schema, 'public'));
	ELSIF bad.target IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42P07',
			MESSAGE = format('relation %s exists already', bad.target),
			DETAIL = CASE WHEN bad.target <> bad.root THEN format('A partition of target %s would get this name. Nothing is overwritten.', bad.root)
						  ELSE 'Nothing is overwritten.' END,
			HINT = 'Make the whole partitioned table by hand, drop the relation, or use another target schema or the argument rename of migrate_add_schema.';
	END IF;

	PERFORM migrate._make_schema($1.job_id, x.name, false)
	FROM (SELECT DISTINCT x ->> 'target_schema' FROM unnest(relations) x) x(name);
	-- sequences that defaults draw from
	FOR s IN
		SELECT f ->> 1 AS schema, array_agg(DISTINCT f ->> 2) AS names
		FROM unnest(relations) x
		CROSS JOIN LATERAL jsonb_array_elements(x -> 'columns') c
		CROSS JOIN LATERAL jsonb_array_elements(c -> 'refers') f
		WHERE c ? 'refers' AND NOT (x ->> 'renamed')::boolean AND f ->> 3 = 'S'
		  AND to_regclass(migrate._sequence_target($1, f ->> 1, f ->> 2)) IS NULL
		GROUP BY 1
	LOOP
		PERFORM migrate._make_sequences($1, s.schema, s.names);
	END LOOP;

	INSERT INTO migrate.made_object (job_id, side, kind, object, temporary)
	SELECT $1.job_id, 'target', 'table', x ->> 'target', false FROM unnest(relations) x;
	-- a block costs with the number of tables made before: one for a hundred
	FOR piece IN 0 .. (cardinality(relations) - 1) / 100
	LOOP
		BEGIN
			FOREACH r IN ARRAY relations[piece * 100 + 1 : piece * 100 + 100]
			LOOP
				PERFORM migrate._make_table($1, r, true);
			END LOOP;
		EXCEPTION WHEN syntax_error_or_access_rule_violation OR invalid_schema_name OR data_exception
			OR feature_not_supported OR object_not_in_prerequisite_state THEN
			FOREACH r IN ARRAY relations[piece * 100 + 1 : piece * 100 + 100]
			LOOP
				PERFORM migrate._make_table($1, r, false);
			END LOOP;
		END;
	END LOOP;
	INSERT INTO migrate.made_relation AS m (target_oid, job_id, root_oid, remote_schema, remote_table)
	SELECT to_regclass(x ->> 'target'), $1.job_id, to_regclass(x ->> 'root'), x ->> 'schema', x ->> 'name'
	FROM unnest(relations) x
	WHERE x ? 'schema'
	-- left by a table that was dropped since
	ON CONFLICT (target_oid) DO UPDATE
	SET job_id = excluded.job_id, root_oid = excluded.root_oid, remote_schema = excluded.remote_schema,
		remote_table = excluded.remote_table, own_definition = false;
END
$$;
COMMENT ON FUNCTION migrate._make_targets(migrate.job, oid[], text[], text[], jsonb, text, jsonb) IS
'makes a target table like each of several source tables, with its partitions, and the sequences its defaults draw from; no keys or indexes. Parallel arrays: foreign_tables = what reads them, schemas and names = of the targets, none of which may exist; rename = {"partition on the source": "name here"}; tablespace; column_types = {"column": [type, collatable, toastable]} as _column_types gives it. Errors: 42P07 a name is taken or given twice; 42622 a name is too long; those of CREATE TABLE';

/*
 * A target that the DBA's own statement makes.
 */
CREATE FUNCTION migrate._make_own_target(j migrate.job, target text, definition text, foreign_table oid, path text)
RETURNS oid
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	parts	text[] := migrate._split_name($2, 'target table');
	recorded int;
	tgt		oid;
BEGIN
	INSERT INTO migrate.made_object (job_id, side, kind, object, temporary)
	VALUES ($1.job_id, 'target', 'table',
			CASE WHEN cardinality(parts) = 2 THEN format('%I.%I', parts[1], parts[2])
				 ELSE format('%I.%I', coalesce(migrate._first_schema($5), ''), parts[1]) END, false)
	RETURNING object_id INTO recorded;
	PERFORM migrate._execute_under($5, $3);
	tgt := migrate._resolve($2, $5);
	IF tgt IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42P01',
			MESSAGE = format('target_definition did not make target table "%s"', $2),
			HINT = format('It must contain CREATE TABLE %s (...); names in it are read under search_path.', $2);
	END IF;
	UPDATE migrate.made_object m SET object = migrate._name_of(tgt) WHERE m.object_id = recorded;
	INSERT INTO migrate.made_object (job_id, side, kind, object, temporary)
	SELECT $1.job_id, 'target', 'table', migrate._name_of(p.relid), false
	FROM pg_partition_tree(tgt) p WHERE p.relid <> tgt;
	IF migrate._is_postgres_fdw($1.server) THEN
		INSERT INTO migrate.made_relation AS m (target_oid, job_id, root_oid, remote_schema, remote_table, own_definition)
		SELECT tgt, $1.job_id, tgt, n.remote_schema, n.remote_table, true FROM migrate._remote_name($4) n
		ON CONFLICT (target_oid) DO UPDATE
		SET job_id = excluded.job_id, root_oid = excluded.root_oid, remote_schema = excluded.remote_schema,
			remote_table = excluded.remote_table, own_definition = true;
	END IF;
	RETURN tgt;
END
$$;
COMMENT ON FUNCTION migrate._make_own_target(migrate.job, text, text, oid, text) IS
'runs the statements of target_definition under a search_path, and returns the target they made. Errors: 42P01 they did not make it; their own';

/*
 * A parent whose children the job copies too is read without them; else their
 * rows would come twice.
 */
CREATE FUNCTION migrate._set_only_parent(j migrate.job) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	p		record;
BEGIN
	IF NOT migrate._is_postgres_fdw($1.server) THEN
		RETURN;
	END IF;
	UPDATE migrate.source_table s SET only_parent = false WHERE s.job_id = $1.job_id AND s.only_parent;
	FOR p IN
		WITH source AS MATERIALIZED (
			SELECT DISTINCT s.remote_schema AS schema, s.remote_table AS name
			FROM migrate.source_table s WHERE s.job_id = $1.job_id
		)
		SELECT f.r ->> 'parent_schema' AS schema, f.r ->> 'parent' AS name,
			   string_agg(format('%I.%I', f.r ->> 'schema', f.r ->> 'name'), ', ' ORDER BY f.r ->> 'schema', f.r ->> 'name')
			   FILTER (WHERE c.name IS NULL) AS unread
		FROM (SELECT array_agg(s.schema) AS schemas, array_agg(s.name) AS names FROM source s) a
		CROSS JOIN LATERAL migrate._remote_query($1.server, format($q$
			WITH RECURSIVE line(child, parent) AS (
				SELECT i.inhrelid, i.inhparent
				FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
				WHERE c.relkind IN ('r', 'f') AND NOT c.relispartition
				UNION
				SELECT l.child, i.inhparent FROM line l JOIN pg_inherits i ON i.inhrelid = l.parent
			)
			SELECT pn.nspname AS parent_schema, p.relname AS parent, n.nspname AS schema, c.relname AS name
			FROM line l
			JOIN pg_class p ON p.oid = l.parent
			JOIN pg_namespace pn ON pn.oid = p.relnamespace
			JOIN unnest(%L::text[], %L::text[]) w(s, t) ON w.s = pn.nspname AND w.t = p.relname
			JOIN pg_class c ON c.oid = l.child
			JOIN pg_namespace n ON n.oid = c.relnamespace
		$q$, a.schemas, a.names)) f(r)
		LEFT JOIN source c ON c.schema = f.r ->> 'schema' AND c.name = f.r ->> 'name'
		GROUP BY 1, 2
		HAVING bool_or(c.name IS NOT NULL)
	LOOP
		UPDATE migrate.source_table s SET only_parent = true
		WHERE s.job_id = $1.job_id AND s.remote_schema = p.schema AND s.remote_table = p.name;
		IF p.unread IS NOT NULL THEN
			RAISE WARNING USING ERRCODE = '01000',
				MESSAGE = format('rows of tables that inherit from %I.%I are not copied: %s', p.schema, p.name, p.unread),
				DETAIL = 'The table is read without those that inherit from it, since others of them are targets of their own.',
				HINT = 'Add them with migrate_add_table.';
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._set_only_parent(migrate.job) IS
'sets source_table.only_parent of a job: true for those from which another table inherits that the job reads too; a WARNING names those of them that it does not read';

/* The comment of a schema that has none here. */
CREATE FUNCTION migrate._comment_schema(j migrate.job, source_schema text, target_schema text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	comment	text;
BEGIN
	IF migrate._is_postgres_fdw($1.server)
		AND EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = $3 AND pg_has_role(n.nspowner, 'USAGE'))
		AND obj_description(to_regnamespace(format('%I', $3)), 'pg_namespace') IS NULL THEN
		SELECT r ->> 'comment' INTO comment
		FROM migrate._remote_query($1.server, format($q$
			SELECT obj_description(n.oid, 'pg_namespace') AS comment FROM pg_namespace n WHERE n.nspname = %L
		$q$, $2)) r;
		IF comment IS NOT NULL THEN
			EXECUTE format('COMMENT ON SCHEMA %I IS %L', $3, comment);
		END IF;
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._comment_schema(migrate.job, text, text) IS
'gives a schema here the comment that it has on the source, if it has none';

/* Tables renamed: what the argument rename must be. */
CREATE FUNCTION migrate._check_rename(j migrate.job, source_schema text, rename jsonb, names text[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	bad		text;
	other	text;
BEGIN
	IF jsonb_typeof($3) <> 'object'
		OR EXISTS (SELECT FROM jsonb_each($3) e WHERE jsonb_typeof(e.value) <> 'string' OR e.value #>> '{}' = '') THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'rename must be a JSON object of names on the source and names here',
			HINT = 'Write for example rename => ''{"orders": "orders_old"}''.';
	END IF;
	IF migrate._is_postgres_fdw($1.server) THEN
		SELECT string_agg(format('"%s"', k), ', ' ORDER BY k) INTO bad
		FROM jsonb_object_keys($3) k
		WHERE k NOT IN (
			SELECT r ->> 'relname'
			FROM migrate._remote_query($1.server, format($q$
				SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE n.nspname = %L AND c.relkind IN ('r', 'p', 'f', 'S') AND c.relname = ANY (%L::text[])
			$q$, $2, ARRAY(SELECT jsonb_object_keys($3)))) r);
		IF bad IS NOT NULL THEN
			RAISE EXCEPTION USING ERRCODE = '42P01',
				MESSAGE = format('rename names what is not in schema "%s" on the source: %s', $2, bad),
				HINT = 'Its keys are names of tables, partitions or sequences there, without the schema.';
		END IF;
	END IF;
	SELECT x.name, string_agg(format('"%s"', x.source), ', ' ORDER BY x.source) INTO other, bad
	FROM (SELECT coalesce($3 ->> n, n) AS name, n AS source FROM unnest($4) n) x
	GROUP BY x.name HAVING count(*) > 1 ORDER BY x.name LIMIT 1;
	IF bad IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42P07',
			MESSAGE = format('rename gives several tables the name "%s"', other),
			DETAIL = format('They are: %s.', bad),
			HINT = 'Give each of them a name of its own.';
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._check_rename(migrate.job, text, jsonb, text[]) IS
'checks the argument rename of migrate_add_schema for the names that it takes over. Errors: 22023 no object of strings, 42P01 unknown names, 42P07 two of a name';

CREATE FUNCTION migrate._check_tablespace(tablespace text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF $1 IS NOT NULL AND NOT EXISTS (SELECT FROM pg_tablespace s WHERE s.spcname = $1) THEN
		RAISE EXCEPTION USING ERRCODE = '42704', MESSAGE = format('tablespace "%s" does not exist', $1),
			HINT = format('Tablespaces here are: %s.', (SELECT string_agg(s.spcname, ', ' ORDER BY s.spcname) FROM pg_tablespace s
														WHERE s.spcname <> 'pg_global'));
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._check_tablespace(text) IS 'error 42704 when there is no such tablespace; null is the default one';

/* Of those source tables: the partitions whose partitioned table comes along. */
CREATE FUNCTION migrate._covered_partitions(j migrate.job, source_schema text, names text[]) RETURNS text[]
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(array_agg(DISTINCT r ->> 'name'), '{}')
	FROM (SELECT array_agg(x.s) AS schemas, array_agg(x.t) AS tables
		  FROM (SELECT $2 AS s, n AS t FROM unnest($3) n
				UNION ALL
				SELECT s.remote_schema, s.remote_table FROM migrate.source_table s
				WHERE s.job_id = $1.job_id AND s.remote_table IS NOT NULL) x) a
	CROSS JOIN LATERAL migrate._remote_query($1.server, format($q$
		SELECT c.relname AS name
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = %L AND c.relname = ANY (%L::text[]) AND c.relispartition
		  AND EXISTS (SELECT FROM pg_partition_ancestors(c.oid) p(oid)
					  JOIN pg_class pc ON pc.oid = p.oid
					  JOIN pg_namespace pn ON pn.oid = pc.relnamespace
					  JOIN unnest(%L::text[], %L::text[]) w(s, t) ON w.s = pn.nspname AND w.t = pc.relname
					  WHERE p.oid <> c.oid)
	$q$, $2, $3, a.schemas, a.tables)) r
$$;
COMMENT ON FUNCTION migrate._covered_partitions(migrate.job, text, text[]) IS
'the names of a schema on the source that are partitions of another of them, or of a table that the job reads already';
