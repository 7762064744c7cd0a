/*
 * Planning of the steps after the copy, a function a group of kinds; each
 * gives wanted steps for _plan_steps to put together.
 */

/*
 * Relation names of the source and what they are here, for those that a job on
 * its server took over as they are: the job's own before others'.
 */
CREATE FUNCTION migrate._relations_here(j migrate.job)
RETURNS TABLE (remote_schema text, remote_table text, shown text, schema text, partitioned boolean, preference int)
LANGUAGE sql STABLE ROWS 1000
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT x.remote_schema, x.remote_table, format('%I.%I', n.nspname, c.relname), n.nspname::text, c.relkind = 'p',
		   (row_number() OVER (PARTITION BY x.remote_schema, x.remote_table
							   ORDER BY x.job_id <> $1.job_id, x.job_id, x.target_oid))::int
	FROM (SELECT r.job_id, r.remote_schema, r.remote_table, r.target_oid
		  FROM migrate.made_relation r
		  WHERE NOT r.own_definition OR r.target_oid = r.root_oid
		  UNION
		  SELECT m.job_id, s.remote_schema, s.remote_table, m.target_oid
		  FROM migrate.mapping m JOIN migrate.source_table s USING (source_id)
		  WHERE m.kind = 'identity' AND s.remote_table IS NOT NULL) x
	JOIN migrate.job o ON o.job_id = x.job_id AND o.server = $1.server
	JOIN pg_class c ON c.oid = x.target_oid
	JOIN pg_namespace n ON n.oid = c.relnamespace
$$;
COMMENT ON FUNCTION migrate._relations_here(migrate.job) IS
'tables of the job''s server that some job takes over by identity, with the quoted name here; preference 1 is the best where there are several';

/*
 * Keys, indexes, the constraints that use them, and what refers to them.
 *
 * A node is a table that gets an index: one of ours for an index of its own
 * source table; or, for an index of a source table whose target the DBA
 * partitioned in his way, each partition here.
 */
CREATE FUNCTION migrate._plan_indexes(j migrate.job, relations migrate.step_relation[], moved jsonb)
RETURNS SETOF migrate.wanted_step
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	schemas	text[];
	tables	text[];
BEGIN
	SELECT array_agg(r.remote_schema), array_agg(r.remote_table) INTO schemas, tables
	FROM (SELECT DISTINCT r.remote_schema, r.remote_table FROM unnest($2) r) r;

	RETURN QUERY
	WITH RECURSIVE rel AS MATERIALIZED (
		SELECT r.* FROM unnest($2) r
	), src AS MATERIALIZED (
		SELECT i.* FROM migrate._remote_indexes($1.server, schemas, tables) i
	), root_key AS MATERIALIZED (
		-- that identifies the rows: the one the job works with, else the best
		SELECT DISTINCT ON (r.target_oid) r.target_oid AS root, i.oid
		FROM rel r
		JOIN src i USING (remote_schema, remote_table)
		JOIN migrate.mapping m ON m.mapping_id = r.mapping_id
		JOIN migrate.source_table s ON s.source_id = m.source_id
		CROSS JOIN LATERAL migrate._columns_here(r.names, i.keys) k
		WHERE r.target_oid = r.root_oid AND i.uniq AND i.plain AND i.filled AND NOT i.excludes
		ORDER BY r.target_oid, (k @> s.key_columns AND k <@ s.key_columns) DESC, i.prim DESC, cardinality(i.keys), i.name
	), key_index(root, oid) AS (
		SELECT k.root, k.oid FROM root_key k
		UNION
		SELECT k.root, i.oid FROM key_index k JOIN src i ON i.parent = k.oid
	), tree AS MATERIALIZED (
		SELECT r.target_oid AS root, t.relid::oid AS node, t.parentrelid::oid AS parent, n.nspname::text AS schema,
			   c.relname::text AS name, c.relkind AS kind, t.level, migrate._tablespace_clause(c.oid) AS tablespace,
			   count(*) FILTER (WHERE t.isleaf) OVER (PARTITION BY r.target_oid) AS leaves
		FROM rel r
		CROSS JOIN LATERAL pg_partition_tree(r.target_oid) t
		JOIN pg_class c ON c.oid = t.relid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE r.own AND r.kind = 'p' AND c.relkind IN ('r', 'p')
	), partition_key AS MATERIALIZED (
		-- columns that a unique key must have; null: none can
		SELECT t.root, CASE WHEN bool_or(a.attname IS NULL) THEN NULL ELSE array_agg(DISTINCT a.attname::text) END AS columns
		FROM tree t
		JOIN pg_partitioned_table p ON p.partrelid = t.node
		CROSS JOIN LATERAL unnest(p.partattrs::int2[]) k(num)
		LEFT JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = k.num AND k.num > 0
		GROUP BY t.root
	), primary_key AS MATERIALIZED (
		SELECT c.conrelid FROM pg_constraint c JOIN rel r ON r.target_oid = c.conrelid WHERE c.contype = 'p'
	), wish AS MATERIALIZED (
		-- an index of the source on a target
		SELECT r.target_oid, r.root_oid, r.parent_oid, r.mapping_id, r.own, r.kind AS relkind, r.schema AS rel_schema,
			   r.name AS rel_name, r.shown, r.tablespace, r.remote_table, i.oid, i.name, i.parent, i.contype, i.excludes,
			   i.predicate, i.constraint_body, i.constraint_predicate, i.timing, i.targets, i.size, i.comment, i.constraint_comment, i.clustered, i.ident,
			   i.nulls_equal, i.storage, k.keys, k.included,
			   k.columns, r.columns AS rel_columns, i.body AS given_body,
			   CASE WHEN r.names ?| i.columns THEN
						format('USING %I (%s)', i.method,
							   (SELECT string_agg(quote_ident(x.name) || x.form, ', ' ORDER BY x.pos)
								FROM unnest(k.keys, i.forms) WITH ORDINALITY x(name, form, pos)))
						|| coalesce(' INCLUDE (' || migrate._name_list(k.included) || ')', '')
						|| CASE WHEN i.nulls_equal THEN ' NULLS NOT DISTINCT' ELSE '' END
						|| coalesce(' WITH (' || i.storage || ')', '')
					WHEN r.name <> r.remote_table OR i.refers IS NOT NULL OR strpos(i.body, '::regclass') > 0 THEN
						migrate._expression_here(i.body, r.remote_schema, r.remote_table, r.schema, r.name, i.refers, $3)
					ELSE i.body END AS body,
			   CASE WHEN i.body IS NULL THEN 'its definition on the source could not be read'
					WHEN NOT k.columns <@ r.columns THEN
						format('the target lacks %s', (SELECT migrate._name_list(array_agg(c)) FROM unnest(k.columns) c WHERE c <> ALL (r.columns)))
					WHEN r.names ?| i.columns AND (NOT i.plain OR i.excludes) THEN
						'columns that it refers to have other names here' END AS lost,
			   CASE WHEN r.own AND r.kind = 'p' AND i.uniq AND NOT coalesce(pk.columns <@ k.keys, false) THEN
						format('not unique: the partition key%s is not in it', coalesce(' (' || migrate._name_list(pk.columns) || ')', '')) END AS demoted,
			   i.uniq AND (NOT r.own OR r.kind <> 'p' OR coalesce(pk.columns <@ k.keys, false)) AS uniq,
			   ki.oid IS NOT NULL AS is_key
		FROM rel r
		JOIN src i USING (remote_schema, remote_table)
		CROSS JOIN LATERAL (SELECT migrate._columns_here(r.names, i.keys) AS keys,
								   migrate._columns_here(r.names, i.columns) AS columns,
								   migrate._columns_here(r.names, i.included) AS included) k
		LEFT JOIN partition_key pk ON pk.root = r.target_oid
		LEFT JOIN key_index ki ON ki.root = r.root_oid AND ki.oid = i.oid
	), node AS MATERIALIZED (
		SELECT w.*, w.target_oid AS node, w.parent_oid AS above, w.relkind = 'p' AS parted, w.name AS want,
			   format('%s:%s', w.target_oid, w.oid) AS id, format('%s:%s', w.parent_oid, w.parent) AS above_id,
			   CASE WHEN NOT w.excludes AND w.demoted IS NULL
						 AND NOT (w.contype = 'p' AND w.target_oid IN (SELECT p.conrelid FROM primary_key p)) THEN w.contype END AS con
		FROM wish w
		WHERE w.lost IS NULL AND NOT (w.own AND w.relkind = 'p')
		UNION ALL
		SELECT w.target_oid, w.root_oid, w.parent_oid, w.mapping_id, w.own, t.kind, t.schema, t.name,
			   format('%I.%I', t.schema, t.name), t.tablespace, w.remote_table, w.oid, w.name, w.parent, w.contype, w.excludes,
			   w.predicate, w.constraint_body, w.constraint_predicate, w.timing, w.targets, w.size / greatest(t.leaves, 1), CASE WHEN t.level = 0 THEN w.comment END,
			   CASE WHEN t.level = 0 THEN w.constraint_comment END, false, w.ident AND t.level = 0,
			   w.nulls_equal, w.storage, w.keys, w.included, w.columns, w.rel_columns, w.given_body,
			   CASE WHEN strpos(w.body, '.*') > 0 THEN migrate._expression_here(w.body, t.schema, w.rel_name, t.schema, t.name, NULL, NULL) ELSE w.body END, w.lost, w.demoted, w.uniq,
			   w.is_key AND w.demoted IS NULL,
			   t.node, CASE WHEN t.level > 0 THEN t.parent END, t.kind = 'p',
			   CASE WHEN t.level = 0 THEN w.name ELSE migrate._part_name(t.name, w.remote_table, w.name) END,
			   format('%s:%s', t.node, w.oid), CASE WHEN t.level > 0 THEN format('%s:%s', t.parent, w.oid) END,
			   CASE WHEN NOT w.excludes AND w.demoted IS NULL
						 AND NOT (w.contype = 'p' AND w.target_oid IN (SELECT p.conrelid FROM primary_key p)) THEN w.contype END
		FROM wish w
		JOIN tree t ON t.root = w.target_oid
		WHERE w.lost IS NULL
	), here AS MATERIALIZED (
		SELECT h.*, h.body || coalesce(h.constraint_body, '') AS full_body,
			   row_number() OVER (PARTITION BY h.relation, h.uniq, h.body, h.constraint_body
								  ORDER BY h.contype IS NULL, h.name) AS nth
		FROM migrate._indexes_here(ARRAY(SELECT DISTINCT n.node FROM node n)) h
		WHERE h.valid OR h.partitioned
	), ranked AS MATERIALIZED (
		SELECT n.*, n.body || coalesce(n.constraint_body, '') AS full_body,
			   row_number() OVER (PARTITION BY n.node, n.uniq, n.body, n.constraint_body ORDER BY n.contype IS NULL, n.name) AS nth
		FROM node n
	), found AS MATERIALIZED (
		SELECT n.*, coalesce(h.name, b.name) AS have, coalesce(h.valid, b.valid) AS have_valid,
			   coalesce(h.contype, b.contype) AS have_con,
			   row_number() OVER (PARTITION BY n.rel_schema, n.want, coalesce(h.name, b.name) IS NULL ORDER BY n.mapping_id, n.node, n.oid) AS claim
		FROM ranked n
		LEFT JOIN here h ON h.relation = n.node AND h.uniq = n.uniq AND h.full_body = n.full_body AND h.nth = n.nth
		-- the DBA's own: of the same name is the same
		LEFT JOIN here b ON n.own AND b.relation = n.node AND b.name = n.want AND h.relation IS NULL
	), busy AS MATERIALIZED (
		-- names that other relations have, or will have
		SELECT s.nspname::text AS schema, c.relname::text AS name
		FROM (SELECT DISTINCT f.rel_schema, f.want FROM found f WHERE f.have IS DISTINCT FROM f.want) f
		JOIN pg_namespace s ON s.nspname = f.rel_schema
		JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = f.want
		UNION
		SELECT n.nspname::text, p.object
		FROM migrate.post_step p
		JOIN pg_class c ON c.oid = p.target_oid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE p.kind IN ('key', 'index', 'exclusion', 'attach') AND p.state IN ('todo', 'running', 'failed')
		  AND p.target_oid NOT IN (SELECT x.node FROM node x)
	), named AS MATERIALIZED (
		-- the name it has or gets
		SELECT f.*, b.name IS NULL AND f.claim = 1 AS free,
			   CASE WHEN f.have IS NOT NULL THEN f.have
					WHEN b.name IS NULL AND f.claim = 1 THEN f.want
					ELSE (SELECT migrate._numbered(f.want, x.n)
						  FROM generate_series(1, 10000) x(n)
						  WHERE NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
											WHERE s.nspname = f.rel_schema AND c.relname = migrate._numbered(f.want, x.n))
							AND (f.rel_schema, migrate._numbered(f.want, x.n)) NOT IN (SELECT o.rel_schema, o.want FROM found o)
						  ORDER BY x.n OFFSET f.claim - CASE WHEN b.name IS NULL THEN 2 ELSE 1 END LIMIT 1) END AS index_name
		FROM found f
		LEFT JOIN busy b ON b.schema = f.rel_schema AND b.name = f.want
	), planned AS MATERIALIZED (
		SELECT n.*,
			   -- a constraint of its own is to be added; its index takes the name
			   n.con IN ('p', 'u') AND n.have_con IS NULL AND (n.have IS NULL OR NOT n.parted) AS add_con,
			   CASE WHEN n.con IN ('p', 'u') AND n.have_con IS NULL AND n.have IS NOT NULL AND n.free AND NOT n.parted
					THEN n.want ELSE n.index_name END AS final_name
		FROM named n
	), placed AS MATERIALIZED (
		SELECT p.*, format('%I.%I', p.rel_schema, p.final_name) AS final_shown,
			   CASE WHEN p.final_name <> p.want THEN p.want END AS source_object,
			   CASE WHEN p.parted THEN 'a:' WHEN p.excludes THEN 'x:' WHEN p.add_con THEN 'c:' ELSE 'i:' END || p.id AS last_wid,
			   CASE WHEN p.excludes AND p.tablespace <> '' AND right(p.constraint_body, length(p.constraint_predicate)) = p.constraint_predicate
					THEN left(p.constraint_body, length(p.constraint_body) - length(p.constraint_predicate))
						 || ' USING INDEX' || p.tablespace || p.constraint_predicate
					ELSE p.constraint_body END || p.timing AS exclusion
		FROM planned p
	), below AS MATERIALIZED (
		SELECT c.above_id,
			   string_agg(format('ALTER INDEX %s ATTACH PARTITION %s', p.final_shown, c.final_shown), E';\n' ORDER BY c.final_name) AS ddl,
			   array_agg(c.last_wid ORDER BY c.final_name) AS needs
		FROM placed c
		JOIN placed p ON p.id = c.above_id
		GROUP BY c.above_id
	)
	-- the index
	SELECT 'i:' || p.id, p.mapping_id, p.node, p.shown, CASE WHEN p.is_key THEN 'key' ELSE 'index' END,
		   p.index_name, CASE WHEN p.index_name <> p.want THEN p.want END,
		   migrate._index_ddl(p.uniq, p.index_name, p.shown, p.body, p.predicate, p.tablespace)
		   || migrate._index_extras(format('%I.%I', p.rel_schema, p.index_name), p.targets),
		   10, p.size,
		   -- doubles are resolved by the key
		   CASE WHEN p.uniq AND NOT p.is_key THEN ARRAY['i:' || k.id] END, false, p.demoted
	FROM placed p
	LEFT JOIN placed k ON k.node = p.node AND k.is_key
	WHERE p.have IS NULL AND NOT p.parted AND NOT p.excludes
	UNION ALL
	SELECT 'c:' || p.id, p.mapping_id, p.node, p.shown, 'constraint', p.final_name, p.source_object,
		   migrate._using_index_ddl(p.shown, p.final_name, p.con, p.index_name, p.timing),
		   20, 0, ARRAY['i:' || p.id], false, NULL
	FROM placed p
	WHERE p.add_con AND NOT p.parted
	UNION ALL
	SELECT 'x:' || p.id, p.mapping_id, p.node, p.shown, 'exclusion', p.final_name, p.source_object,
		   format('ALTER TABLE ONLY %s ADD CONSTRAINT %I %s', p.shown, p.final_name, p.exclusion),
		   20, p.size, NULL, false, NULL
	FROM placed p
	WHERE p.excludes AND p.have IS NULL AND NOT p.parted
	UNION ALL
	SELECT 'a:' || p.id, p.mapping_id, p.node, p.shown, 'attach', p.final_name, p.source_object,
		   concat_ws(E';\n',
			   CASE WHEN p.have IS NOT NULL THEN NULL
					WHEN p.excludes THEN format('ALTER TABLE ONLY %s ADD CONSTRAINT %I %s', p.shown, p.final_name, p.exclusion)
					WHEN p.add_con THEN
						format('ALTER TABLE ONLY %s ADD CONSTRAINT %I %s%s (%s)', p.shown, p.final_name,
							   CASE p.con WHEN 'p' THEN 'PRIMARY KEY' ELSE 'UNIQUE' END,
							   CASE WHEN p.nulls_equal THEN ' NULLS NOT DISTINCT' ELSE '' END, migrate._name_list(p.keys))
						|| coalesce(' INCLUDE (' || migrate._name_list(p.included) || ')', '')
						|| coalesce(' WITH (' || p.storage || ')', '')
						|| CASE WHEN p.tablespace <> '' THEN ' USING INDEX' || p.tablespace ELSE '' END
						|| p.timing
					ELSE migrate._index_ddl(p.uniq, p.final_name, 'ONLY ' || p.shown, p.body, p.predicate, p.tablespace)
						 || migrate._index_extras(p.final_shown, p.targets) END,
			   b.ddl),
		   20, 0, b.needs, false, p.demoted
	FROM placed p
	LEFT JOIN below b ON b.above_id = p.id
	WHERE p.parted AND (p.have IS NULL OR NOT p.have_valid) AND (p.have IS NULL OR b.ddl IS NOT NULL)
	UNION ALL
	-- what refers to them, a step a table
	SELECT 'm:' || p.node, p.mapping_id, p.node, p.shown, 'comment', p.final_name, NULL,
		   format('COMMENT ON INDEX %s IS %L', p.final_shown, p.comment), 50, 0, ARRAY[p.last_wid], false, NULL
	FROM placed p
	LEFT JOIN here h ON h.relation = p.node AND h.name = p.have
	WHERE p.comment IS NOT NULL AND (h.oid IS NULL OR obj_description(h.oid, 'pg_class') IS NULL)
	UNION ALL
	SELECT 'm:' || p.node, p.mapping_id, p.node, p.shown, 'comment', p.final_name, NULL,
		   format('COMMENT ON CONSTRAINT %I ON %s IS %L', p.final_name, p.shown, p.constraint_comment), 50, 0,
		   ARRAY[p.last_wid], false, NULL
	FROM placed p
	LEFT JOIN pg_constraint c ON c.conrelid = p.node AND c.conname = p.final_name
	WHERE p.constraint_comment IS NOT NULL AND (p.add_con OR p.excludes OR c.oid IS NOT NULL)
	  AND obj_description(c.oid, 'pg_constraint') IS NULL
	UNION ALL
	SELECT 'r:' || p.node, p.mapping_id, p.node, p.shown, 'replica identity', p.final_name, NULL,
		   format('ALTER TABLE ONLY %s REPLICA IDENTITY USING INDEX %I', p.shown, p.final_name), 50, 0,
		   ARRAY[p.last_wid], false, NULL
	FROM placed p
	JOIN pg_class c ON c.oid = p.node
	WHERE p.ident AND p.uniq AND c.relreplident = 'd'
	UNION ALL
	SELECT 'u:' || p.node, p.mapping_id, p.node, p.shown, 'cluster', p.final_name, NULL,
		   format('ALTER TABLE %s CLUSTER ON %I', p.shown, p.final_name), 50, 0,
		   ARRAY[p.last_wid], false, NULL
	FROM placed p
	WHERE p.clustered AND NOT p.parted
	  AND NOT EXISTS (SELECT FROM here h WHERE h.relation = p.node AND h.clustered)
	UNION ALL
	SELECT format('l:%s:%s', w.target_oid, w.oid), w.mapping_id, w.target_oid, w.shown,
		   CASE WHEN w.excludes THEN 'exclusion' ELSE 'index' END, w.name, NULL,
		   CASE WHEN w.excludes THEN format('ALTER TABLE ONLY %s ADD CONSTRAINT %I %s', w.shown, w.name, w.constraint_body)
				ELSE migrate._index_ddl(w.uniq, w.name, w.shown, coalesce(w.given_body, ''), '', '') END,
		   CASE WHEN w.excludes THEN 20 ELSE 10 END, w.size, NULL, true, 'not planned: ' || w.lost
	FROM wish w
	WHERE w.lost IS NOT NULL AND w.root_oid = w.target_oid;
END
$$;
COMMENT ON FUNCTION migrate._plan_indexes(migrate.job, migrate.step_relation[], jsonb) IS
'steps for keys, indexes, their constraints, comments on them, replica identity and CLUSTER ON: moved = {quoted name there: quoted name here} for tables whose name differs';

/*
 * Checks, children before parents, and foreign keys, which are declared before
 * they are validated where PostgreSQL can do so.
 */
CREATE FUNCTION migrate._plan_constraints(j migrate.job, relations migrate.step_relation[], moved jsonb)
RETURNS SETOF migrate.wanted_step
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	schemas	text[];
	tables	text[];
BEGIN
	SELECT array_agg(r.remote_schema), array_agg(r.remote_table) INTO schemas, tables
	FROM (SELECT DISTINCT r.remote_schema, r.remote_table FROM unnest($2) r) r;

	RETURN QUERY
	WITH rel AS MATERIALIZED (
		SELECT r.* FROM unnest($2) r
	), taken_over AS MATERIALIZED (
		SELECT * FROM migrate._relations_here($1)
	), con AS MATERIALIZED (
		SELECT DISTINCT ON (r.target_oid, c.name)
			   r.target_oid, r.root_oid, r.parent_oid, r.mapping_id, r.own, r.kind AS relkind, r.shown,
			   c.name, c.contype, c.valid, c.enforced, c.size, c.comment, k.columns,
			   coalesce(o.partitioned, c.ref_partitioned) AS ref_partitioned,
			   CASE WHEN c.contype = 'f' THEN
						migrate._foreign_key_body(k.columns, coalesce(o.shown, format('%I.%I', c.ref_schema, c.ref_table)),
												  c.ref_columns, c.period, c.match, c.actions, k.cleared, c.timing, c.enforced)
					WHEN r.name <> r.remote_table OR c.refers IS NOT NULL OR strpos(c.body, '::regclass') > 0 THEN
						migrate._expression_here(c.body, r.remote_schema, r.remote_table, r.schema, r.name, c.refers, $3)
					ELSE c.body END AS body,
			   CASE WHEN NOT k.columns <@ r.columns THEN
						format('the target lacks %s', (SELECT migrate._name_list(array_agg(x)) FROM unnest(k.columns) x WHERE x <> ALL (r.columns)))
					WHEN c.contype = 'c' AND r.names ?| c.columns THEN
						'columns that it refers to have other names here' END AS lost
		FROM rel r
		JOIN migrate._remote_constraints($1.server, schemas, tables) c USING (remote_schema, remote_table)
		CROSS JOIN LATERAL (SELECT migrate._columns_here(r.names, c.columns) AS columns,
								   migrate._columns_here(r.names, c.cleared) AS cleared) k
		LEFT JOIN taken_over o ON o.remote_schema = c.ref_schema AND o.remote_table = c.ref_table
		-- what a table here inherits is not its own
		WHERE NOT (c.inherited AND r.parent_oid IS NOT NULL)
		ORDER BY r.target_oid, c.name, o.schema <> r.schema, o.preference
	), here AS MATERIALIZED (
		SELECT x.conrelid, x.conname::text AS name, x.contype::text, x.convalidated,
			   CASE x.contype WHEN 'f' THEN migrate._foreign_key_here(x.oid)
				ELSE left(d.def, length(d.def) - CASE WHEN right(d.def, 10) = ' NOT VALID' AND NOT x.convalidated THEN 10 ELSE 0 END) END AS body,
			   obj_description(x.oid, 'pg_constraint') AS comment
		FROM pg_constraint x
		JOIN rel r ON r.target_oid = x.conrelid
		CROSS JOIN LATERAL (SELECT CASE x.contype WHEN 'c' THEN pg_get_constraintdef(x.oid) END AS def) d
		-- what a parent handed down becomes the table's own by being added again
		WHERE x.contype <> 'c' OR x.conislocal
	), found AS MATERIALIZED (
		-- the same under any name; of the DBA's own, what has the name
		SELECT DISTINCT ON (c.target_oid, c.name) c.*,
			   CASE WHEN h.by_name THEN b.name ELSE s.name END AS have,
			   CASE WHEN h.by_name THEN b.convalidated ELSE s.convalidated END AS have_valid,
			   CASE WHEN h.by_name THEN b.comment ELSE s.comment END AS have_comment,
			   NOT h.by_name AND s.name IS NULL AND b.name IS NOT NULL AS busy
		FROM con c
		LEFT JOIN here b ON b.conrelid = c.target_oid AND b.name = c.name
		LEFT JOIN here s ON s.conrelid = c.target_oid AND s.contype = c.contype
			AND s.body = left(c.body, length(c.body) - CASE WHEN c.contype = 'c' AND NOT c.valid AND right(c.body, 10) = ' NOT VALID' THEN 10 ELSE 0 END)
		CROSS JOIN LATERAL (SELECT coalesce(b.contype = c.contype AND c.own, false) AS by_name) h
		WHERE c.lost IS NULL
		ORDER BY c.target_oid, c.name, s.name <> c.name, s.name
	), named AS MATERIALIZED (
		SELECT f.*, format('%s:%s', f.target_oid, f.name) AS id,
			   coalesce(f.have, CASE WHEN f.busy THEN
					(SELECT migrate._numbered(f.name, x.n) FROM generate_series(1, 10000) x(n)
					 WHERE NOT EXISTS (SELECT FROM pg_constraint p WHERE p.conrelid = f.target_oid AND p.conname = migrate._numbered(f.name, x.n))
					   AND NOT EXISTS (SELECT FROM con o WHERE o.target_oid = f.target_oid AND o.name = migrate._numbered(f.name, x.n))
					 ORDER BY x.n LIMIT 1) ELSE f.name END) AS final_name,
			   -- before 18 partitioned tables cannot have one that is not valid, and
			   -- making one valid that refers to them leaves out their partitions
			   (f.relkind = 'p' OR f.ref_partitioned) AND current_setting('server_version_num')::int < 180000 AS at_once
		FROM found f
	), above AS MATERIALIZED (
		WITH RECURSIVE a(target_oid, parent_oid) AS (
			SELECT r.target_oid, h.inhparent FROM rel r JOIN pg_inherits h ON h.inhrelid = r.target_oid
			UNION
			SELECT a.target_oid, h.inhparent FROM a JOIN pg_inherits h ON h.inhrelid = a.parent_oid
		)
		SELECT * FROM a
	), children AS MATERIALIZED (
		SELECT a.parent_oid, n.name, array_agg('k:' || n.id) AS needs
		FROM named n
		JOIN above a USING (target_oid)
		WHERE n.contype = 'c' AND n.have IS NULL
		GROUP BY a.parent_oid, n.name
	)
	SELECT 'k:' || n.id, n.mapping_id, n.target_oid, n.shown, 'check', n.final_name, CASE WHEN n.final_name <> n.name THEN n.name END,
		   migrate._check_ddl(n.shown, n.final_name, n.body, n.valid), 20, n.size, b.needs, false, NULL::text
	FROM named n
	LEFT JOIN children b ON b.parent_oid = n.target_oid AND b.name = n.name
	WHERE n.contype = 'c' AND n.have IS NULL
	UNION ALL
	SELECT 'f:' || n.id, n.mapping_id, n.target_oid, n.shown, 'foreign key', n.final_name, CASE WHEN n.final_name <> n.name THEN n.name END,
		   format('ALTER TABLE %s%s ADD CONSTRAINT %I %s%s', CASE n.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END, n.shown,
				  n.final_name, n.body, CASE WHEN n.at_once OR NOT n.enforced THEN '' ELSE ' NOT VALID' END),
		   30, CASE WHEN n.at_once THEN n.size ELSE 0 END, NULL, false, NULL
	FROM named n
	WHERE n.contype = 'f' AND n.have IS NULL
	UNION ALL
	SELECT 'v:' || n.id, n.mapping_id, n.target_oid, n.shown, 'validate', n.final_name, CASE WHEN n.final_name <> n.name THEN n.name END,
		   format('ALTER TABLE %s VALIDATE CONSTRAINT %I', n.shown, n.final_name), 40, n.size, ARRAY['f:' || n.id], false, NULL
	FROM named n
	WHERE n.contype = 'f' AND n.valid AND NOT n.at_once AND NOT coalesce(n.have_valid, false)
	UNION ALL
	SELECT 'm:' || n.target_oid, n.mapping_id, n.target_oid, n.shown, 'comment', n.final_name, NULL,
		   format('COMMENT ON CONSTRAINT %I ON %s IS %L', n.final_name, n.shown, n.comment), 50, 0,
		   ARRAY[CASE n.contype WHEN 'c' THEN 'k:' ELSE 'f:' END || n.id], false, NULL
	FROM named n
	WHERE n.comment IS NOT NULL AND n.have_comment IS NULL
	UNION ALL
	SELECT 'l:' || c.target_oid || ':' || c.name, c.mapping_id, c.target_oid, c.shown,
		   CASE c.contype WHEN 'c' THEN 'check' ELSE 'foreign key' END, c.name, NULL,
		   format('ALTER TABLE %s ADD CONSTRAINT %I %s', c.shown, c.name, c.body),
		   CASE c.contype WHEN 'c' THEN 20 ELSE 30 END, c.size, NULL, true, 'not planned: ' || c.lost
	FROM con c
	WHERE c.lost IS NOT NULL AND c.root_oid = c.target_oid;
END
$$;
COMMENT ON FUNCTION migrate._plan_constraints(migrate.job, migrate.step_relation[], jsonb) IS
'steps for checks and foreign keys and comments on them: moved = {quoted name there: quoted name here} for tables whose name differs';

/*
 * GRANT for one role, null: PUBLIC.
 */
CREATE FUNCTION migrate._grant_ddl(kind text, object text, role text, privileges text[], column_name text,
								   grantable boolean) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('GRANT %s ON %s %s TO %s%s',
				  (SELECT string_agg(DISTINCT p || coalesce(' (' || quote_ident($5) || ')', ''), ', ') FROM unnest($4) p),
				  $1, $2, coalesce(quote_ident($3), 'PUBLIC'), CASE WHEN $6 THEN ' WITH GRANT OPTION' ELSE '' END)
$$;
COMMENT ON FUNCTION migrate._grant_ddl(text, text, text, text[], text, boolean) IS
'GRANT statement: kind of object, its quoted name, role (null: PUBLIC), privileges, the column that they are for (null: none)';

/*
 * Defaults that a made table lacks, extended statistics, REPLICA IDENTITY FULL
 * and NOTHING, and grants: all of it at the end.
 */
CREATE FUNCTION migrate._plan_rest(j migrate.job, relations migrate.step_relation[], moved jsonb)
RETURNS SETOF migrate.wanted_step
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	schemas	text[];
	tables	text[];
BEGIN
	SELECT array_agg(r.remote_schema), array_agg(r.remote_table) INTO schemas, tables
	FROM (SELECT DISTINCT r.remote_schema, r.remote_table FROM unnest($2) r) r;

	RETURN QUERY
	WITH rel AS MATERIALIZED (
		SELECT r.* FROM unnest($2) r
	), about AS MATERIALIZED (
		SELECT r ->> 's' AS remote_schema, r ->> 't' AS remote_table, r ->> 'ident' AS ident,
			   (r ->> 'defaults')::jsonb AS defaults, (r ->> 'acl')::jsonb AS acl
		FROM migrate._remote_query($1.server, format($q$
			SELECT n.nspname AS s, c.relname AS t, c.relreplident AS ident,
				   (SELECT json_agg(json_build_array(a.attname, pg_get_expr(d.adbin, d.adrelid),
							(SELECT json_agg(DISTINCT jsonb_build_array(xn.nspname, xc.relname, xc.relkind))
							 FROM pg_depend x
							 JOIN pg_class xc ON xc.oid = x.refobjid AND xc.relkind <> 'c'
							 JOIN pg_namespace xn ON xn.oid = xc.relnamespace
							 WHERE x.classid = 'pg_attrdef'::regclass AND x.objid = d.oid AND x.deptype = 'n'
							   AND x.refclassid = 'pg_class'::regclass AND x.refobjid <> c.oid)))
					FROM pg_attrdef d
					JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
					WHERE d.adrelid = c.oid AND a.attgenerated = '') AS defaults,
				   -- column (null: the table), grantee (null: PUBLIC), privilege, with grant option
				   (SELECT json_agg(json_build_array(g.attname, g.role, g.privilege_type, g.is_grantable))
					FROM (SELECT NULL AS attname, r.rolname AS role, e.grantee, e.privilege_type, e.is_grantable
						  FROM aclexplode(c.relacl) e LEFT JOIN pg_roles r ON r.oid = e.grantee
						  UNION ALL
						  SELECT a.attname, r.rolname, e.grantee, e.privilege_type, e.is_grantable
						  FROM pg_attribute a
						  CROSS JOIN LATERAL aclexplode(a.attacl) e
						  LEFT JOIN pg_roles r ON r.oid = e.grantee
						  WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL AND NOT a.attisdropped) g
					WHERE g.grantee <> c.relowner AND (g.grantee = 0 OR g.role IS NOT NULL)) AS acl
			FROM unnest(%L::text[], %L::text[]) w(s, t)
			JOIN pg_namespace n ON n.nspname = w.s
			JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t
		$q$, schemas, tables)) r
	), lacking AS MATERIALIZED (
		SELECT r.target_oid, r.mapping_id, r.shown, coalesce(r.names ->> (d ->> 0), d ->> 0) AS name,
			   migrate._expression_here(d ->> 1, r.remote_schema, r.remote_table, r.schema, r.name, nullif(d -> 2, 'null'),
				   (SELECT jsonb_object_agg(format('%I.%I', e ->> 0, e ->> 1),
											CASE e ->> 2 WHEN 'S' THEN migrate._sequence_target($1, e ->> 0, e ->> 1)
														 ELSE coalesce($3 ->> format('%I.%I', e ->> 0, e ->> 1), format('%I.%I', e ->> 0, e ->> 1)) END)
					FROM jsonb_array_elements(nullif(d -> 2, 'null')) e)) AS expression
		FROM rel r
		JOIN about x USING (remote_schema, remote_table)
		CROSS JOIN LATERAL jsonb_array_elements(x.defaults) d
		JOIN pg_attribute a ON a.attrelid = r.target_oid AND a.attname = coalesce(r.names ->> (d ->> 0), d ->> 0)
		WHERE r.made AND NOT r.own AND NOT a.atthasdef AND a.attidentity = '' AND NOT a.attisdropped
	), stat AS MATERIALIZED (
		SELECT r.target_oid, r.root_oid, r.mapping_id, r.shown, r.own, s.name, s.target, s.comment, s.body,
			   r.schema AS rel_schema, format('%s:%s.%s', r.target_oid, s.own_schema, s.name) AS id,
			   -- in the table's schema, or where it is on the source
			   CASE WHEN s.own_schema = r.remote_schema THEN r.schema
					ELSE coalesce((SELECT o.target_schema FROM migrate.job_schema o
								   WHERE o.job_id = $1.job_id AND o.source_schema = s.own_schema ORDER BY o.schema_id LIMIT 1),
								  s.own_schema) END AS schema,
			   CASE WHEN s.body IS NULL THEN 'its definition on the source could not be read'
					WHEN NOT s.columns <@ r.columns THEN
						format('the target lacks %s', (SELECT migrate._name_list(array_agg(c)) FROM unnest(s.columns) c WHERE c <> ALL (r.columns)))
					WHEN r.names ?| s.columns THEN 'columns that it refers to have other names here' END AS lost
		FROM rel r
		JOIN migrate._remote_statistics($1.server, schemas, tables) s USING (remote_schema, remote_table)
	), stat_here AS MATERIALIZED (
		SELECT s.oid, s.stxrelid, n.nspname::text AS schema, s.stxname::text AS name,
			   substr(d.def, length(d.head) + 1, length(d.def) - length(d.head) - length(d.tail)) AS body
		FROM pg_statistic_ext s
		JOIN pg_namespace n ON n.oid = s.stxnamespace
		JOIN rel r ON r.target_oid = s.stxrelid
		CROSS JOIN LATERAL (SELECT pg_get_statisticsobjdef(s.oid) AS def,
								   format('CREATE STATISTICS %I.%I', n.nspname, s.stxname) AS head,
								   format(' FROM %s', r.shown) AS tail) d
	), stat_found AS MATERIALIZED (
		SELECT s.*, h.oid AS have_oid, h.name AS have, h.schema AS have_schema,
			   row_number() OVER (PARTITION BY s.schema, s.name, h.oid IS NULL ORDER BY s.mapping_id, s.target_oid) AS claim,
			   EXISTS (SELECT FROM pg_statistic_ext o JOIN pg_namespace n ON n.oid = o.stxnamespace
					   WHERE o.stxname = s.name AND n.nspname = s.schema)
			   OR EXISTS (SELECT FROM migrate.post_step p
						  WHERE p.kind = 'statistics' AND p.state IN ('todo', 'running', 'failed')
							AND p.target_oid NOT IN (SELECT r.target_oid FROM rel r)
							AND starts_with(p.ddl, format('CREATE STATISTICS %I.%I ', s.schema, s.name))) AS busy
		FROM stat s
		LEFT JOIN LATERAL (SELECT h.* FROM stat_here h
						   WHERE h.stxrelid = s.target_oid AND (h.body = s.body OR (s.own AND h.name = s.name))
						   ORDER BY h.name <> s.name LIMIT 1) h ON true
		WHERE s.lost IS NULL
	), stat_named AS MATERIALIZED (
		SELECT f.*, coalesce(f.have_schema, f.schema) AS final_schema,
			   CASE WHEN f.schema <> f.rel_schema THEN quote_ident(f.schema) || '.' ELSE '' END AS prefix,
			   CASE WHEN f.have IS NOT NULL THEN f.have
					WHEN NOT f.busy AND f.claim = 1 THEN f.name
					ELSE (SELECT migrate._numbered(f.name, x.n) FROM generate_series(1, 10000) x(n)
						  WHERE NOT EXISTS (SELECT FROM pg_statistic_ext o JOIN pg_namespace n ON n.oid = o.stxnamespace
											WHERE n.nspname = f.schema AND o.stxname = migrate._numbered(f.name, x.n))
							AND (f.schema, migrate._numbered(f.name, x.n)) NOT IN (SELECT o.schema, o.name FROM stat o)
						  ORDER BY x.n OFFSET f.claim - CASE WHEN f.busy THEN 1 ELSE 2 END LIMIT 1) END AS final_name
		FROM stat_found f
	), acl AS MATERIALIZED (
		SELECT r.target_oid, r.mapping_id, r.shown, coalesce(r.names ->> (g ->> 0), g ->> 0) AS name,
			   g ->> 1 AS role, g ->> 2 AS privilege, (g ->> 3)::boolean AS grantable
		FROM rel r
		JOIN about x USING (remote_schema, remote_table)
		CROSS JOIN LATERAL jsonb_array_elements(x.acl) g
		WHERE r.made AND (g ->> 0 IS NULL OR coalesce(r.names ->> (g ->> 0), g ->> 0) = ANY (r.columns))
	)
	SELECT 'd:' || l.target_oid, l.mapping_id, l.target_oid, l.shown, 'default', l.name, NULL::text,
		   format('ALTER TABLE ONLY %s ALTER COLUMN %I SET DEFAULT %s', l.shown, l.name, l.expression),
		   50, 0::bigint, NULL::text[], false, NULL::text
	FROM lacking l
	UNION ALL
	SELECT 's:' || n.id, n.mapping_id, n.target_oid, n.shown, 'statistics', n.prefix || n.final_name,
		   CASE WHEN n.final_name <> n.name THEN n.prefix || n.name END,
		   format('CREATE STATISTICS %I.%I', n.schema, n.final_name) || n.body || ' FROM ' || n.shown
		   || CASE WHEN n.target >= 0 THEN format(E';\nALTER STATISTICS %I.%I SET STATISTICS %s', n.schema, n.final_name, n.target) ELSE '' END,
		   50, 0, NULL, false, NULL
	FROM stat_named n
	WHERE n.have IS NULL
	UNION ALL
	SELECT 'l:' || s.id, s.mapping_id, s.target_oid, s.shown, 'statistics', s.name, NULL,
		   format('CREATE STATISTICS %I.%I', s.schema, s.name) || coalesce(s.body, '') || ' FROM ' || s.shown,
		   50, 0, NULL, true, 'not planned: ' || s.lost
	FROM stat s
	WHERE s.lost IS NOT NULL AND s.root_oid = s.target_oid
	UNION ALL
	SELECT 'm:' || n.target_oid, n.mapping_id, n.target_oid, n.shown, 'comment', n.final_name, NULL,
		   format('COMMENT ON STATISTICS %I.%I IS %L', n.final_schema, n.final_name, n.comment), 50, 0,
		   ARRAY['s:' || n.id], false, NULL
	FROM stat_named n
	WHERE n.comment IS NOT NULL AND obj_description(n.have_oid, 'pg_statistic_ext') IS NULL
	UNION ALL
	SELECT 'r:' || r.target_oid, r.mapping_id, r.target_oid, r.shown, 'replica identity',
		   CASE x.ident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END, NULL,
		   format('ALTER TABLE ONLY %s REPLICA IDENTITY %s', r.shown, CASE x.ident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END),
		   50, 0, NULL, false, NULL
	FROM rel r
	JOIN about x USING (remote_schema, remote_table)
	JOIN pg_class c ON c.oid = r.target_oid
	WHERE x.ident IN ('f', 'n') AND c.relreplident = 'd'
	UNION ALL
	SELECT 'g:' || a.target_oid, a.mapping_id, a.target_oid, a.shown, 'grant', a.shown, NULL,
		   migrate._grant_ddl('TABLE', a.shown, a.role, array_agg(a.privilege), a.name, a.grantable), 50, 0, NULL, false, NULL
	FROM acl a
	JOIN pg_class c ON c.oid = a.target_oid
	LEFT JOIN pg_roles o ON o.rolname = a.role
	WHERE (a.role IS NULL OR (o.oid IS NOT NULL AND o.oid <> c.relowner))
	  AND (a.privilege <> 'MAINTAIN' OR current_setting('server_version_num')::int >= 170000)
	GROUP BY a.target_oid, a.mapping_id, a.shown, a.role, a.name, a.grantable;
END
$$;
COMMENT ON FUNCTION migrate._plan_rest(migrate.job, migrate.step_relation[], jsonb) IS
'steps for defaults that are lacking, extended statistics and comments on them, replica identity without an index, and grants on tables: moved = {quoted name there: quoted name here} for tables whose name differs';

/*
 * Grants on what belongs to no table: types that the job made, schemas that it
 * takes over, sequences of these and of columns.
 */
CREATE FUNCTION migrate._plan_other_grants(j migrate.job) RETURNS SETOF migrate.wanted_step
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	schemas	text[] := ARRAY(SELECT DISTINCT o.source_schema FROM migrate.job_schema o WHERE o.job_id = $1.job_id);
	tables	record;
	made_schemas jsonb;
	types	text[] := ARRAY(SELECT DISTINCT o.object FROM migrate.made_object o
							WHERE o.job_id = $1.job_id AND o.side = 'target'
							  AND CASE WHEN o.kind IN ('type', 'domain') THEN to_regtype(o.object) IS NOT NULL END);
BEGIN
	-- quoted name there -> here
	SELECT coalesce(jsonb_object_agg(x.there, x.here), '{}') INTO made_schemas
	FROM (SELECT coalesce(quote_ident(o.source_schema), m.object) AS there, m.object AS here
		  FROM migrate.made_object m
		  JOIN pg_namespace n ON quote_ident(n.nspname) = m.object
		  LEFT JOIN migrate.job_schema o ON o.job_id = m.job_id AND o.target_schema = n.nspname
		  WHERE m.job_id = $1.job_id AND m.side = 'target' AND m.kind = 'schema' AND NOT m.temporary
		  UNION
		  SELECT quote_ident(o.source_schema), quote_ident(n.nspname)
		  FROM migrate.job_schema o JOIN pg_namespace n ON n.nspname = o.target_schema
		  WHERE o.job_id = $1.job_id AND pg_has_role(n.nspowner, 'USAGE')) x;
	SELECT array_agg(r.remote_schema) AS s, array_agg(r.remote_table) AS t INTO tables
	FROM (SELECT DISTINCT r.remote_schema, r.remote_table FROM migrate.made_relation r WHERE r.job_id = $1.job_id) r;

	RETURN QUERY
	WITH acl AS MATERIALIZED (
		SELECT r ->> 'kind' AS kind, r ->> 's' AS schema, r ->> 'name' AS name, r ->> 'ts' AS ts, r ->> 't' AS t, r ->> 'c' AS c,
			   r ->> 'deptype' AS deptype, g ->> 0 AS role, g ->> 1 AS privilege, (g ->> 2)::boolean AS grantable,
			   (r ->> 'withheld')::boolean AS withheld
		FROM migrate._remote_query($1.server, format($q$
			SELECT o.kind, o.s, o.name, o.ts, o.t, o.c, o.deptype,
				   (SELECT json_agg(json_build_array(r.rolname, e.privilege_type, e.is_grantable))
					FROM aclexplode(o.acl) e LEFT JOIN pg_roles r ON r.oid = e.grantee
					WHERE e.grantee <> o.owner AND (e.grantee = 0 OR r.oid IS NOT NULL)) AS acl,
				   -- what everybody may do with a type unless it is taken back
				   o.kind = 'TYPE' AND NOT EXISTS (SELECT FROM aclexplode(o.acl) e WHERE e.grantee = 0) AS withheld
			FROM (
				SELECT 'SCHEMA' AS kind, NULL AS s, n.nspname AS name, NULL AS ts, NULL AS t, NULL AS c, NULL AS deptype,
					   n.nspacl AS acl, n.nspowner AS owner
				FROM pg_namespace n WHERE quote_ident(n.nspname) = ANY (%L::text[])
				UNION ALL
				SELECT 'TYPE', n.nspname, t.typname, NULL, NULL, NULL, NULL, t.typacl, t.typowner
				FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
				WHERE format('%%I.%%I', n.nspname, t.typname) = ANY (%L::text[])
				UNION ALL
				SELECT 'SEQUENCE', n.nspname, q.relname, tn.nspname, t.relname, a.attname, d.deptype::text, q.relacl, q.relowner
				FROM pg_class q
				JOIN pg_namespace n ON n.oid = q.relnamespace
				LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = q.oid
					AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
				LEFT JOIN pg_class t ON t.oid = d.refobjid
				LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
				LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
				WHERE q.relkind = 'S'
				  AND (n.nspname = ANY (%L::text[])
					   OR (tn.nspname, t.relname) IN (SELECT * FROM unnest(%L::text[], %L::text[])))
			) o
			WHERE o.acl IS NOT NULL
		$q$, ARRAY(SELECT jsonb_object_keys(made_schemas)), types, schemas, tables.s, tables.t)) r
		LEFT JOIN LATERAL jsonb_array_elements((r ->> 'acl')::jsonb) g ON true
	), owned AS MATERIALIZED (
		-- sequences of columns here, by the column there
		SELECT m.remote_schema AS ts, m.remote_table AS t, a.attname::text AS c, format('%I.%I', n.nspname, q.relname) AS shown
		FROM migrate.made_relation m
		JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = m.target_oid
			AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
		JOIN pg_class q ON q.oid = d.objid AND q.relkind = 'S'
		JOIN pg_namespace n ON n.oid = q.relnamespace
		JOIN pg_attribute a ON a.attrelid = m.target_oid AND a.attnum = d.refobjsubid
		WHERE m.job_id = $1.job_id
	), placed AS (
		SELECT a.*,
			   CASE a.kind
				WHEN 'SCHEMA' THEN made_schemas ->> quote_ident(a.name)
				WHEN 'TYPE' THEN format('%I.%I', a.schema, a.name)
				ELSE coalesce((SELECT o.shown FROM owned o WHERE (o.ts, o.t, o.c) = (a.ts, a.t, a.c) LIMIT 1),
							  CASE WHEN a.deptype = 'i' THEN NULL
								   ELSE (SELECT m.object FROM migrate.made_object m
										 WHERE m.job_id = $1.job_id AND m.kind = 'sequence'
										   AND m.object = migrate._sequence_target($1, a.schema, a.name) LIMIT 1) END) END AS shown
		FROM acl a
	)
	SELECT format('g:%s:%s', lower(p.kind), p.shown), NULL::int, NULL::oid, NULL::text, 'grant', lower(p.kind) || ' ' || p.shown, NULL::text,
		   migrate._grant_ddl(p.kind, p.shown, p.role, array_agg(p.privilege), NULL, p.grantable), 50, 0::bigint, NULL::text[], false, NULL::text
	FROM placed p
	WHERE p.shown IS NOT NULL AND p.privilege IS NOT NULL AND p.role IS DISTINCT FROM current_user
	  AND (p.role IS NULL OR EXISTS (SELECT FROM pg_roles o WHERE o.rolname = p.role))
	  -- what everybody may do in a schema that was here before is the DBA's (older
	  -- versions let everybody make things in public)
	  AND (p.kind <> 'SCHEMA' OR p.role IS NOT NULL
		   OR EXISTS (SELECT FROM migrate.made_object m WHERE m.job_id = $1.job_id AND m.kind = 'schema' AND m.object = p.shown))
	GROUP BY p.kind, p.shown, p.role, p.grantable
	UNION ALL
	SELECT DISTINCT format('g:%s:%s', lower(p.kind), p.shown), NULL::int, NULL::oid, NULL, 'grant', lower(p.kind) || ' ' || p.shown, NULL,
		   format('REVOKE ALL ON TYPE %s FROM PUBLIC', p.shown), 50, 0, NULL::text[], false, NULL
	FROM placed p
	WHERE p.withheld AND p.shown IS NOT NULL;
END
$$;
COMMENT ON FUNCTION migrate._plan_other_grants(migrate.job) IS
'steps for grants on schemas that the job takes over, types and sequences that it made';

/*
 * What is done with the rows: doubles where no key is built that finds them,
 * VACUUM, and the values of sequences.
 */
CREATE FUNCTION migrate._plan_data(j migrate.job, mappings int[], keyed oid[]) RETURNS SETOF migrate.wanted_step
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	vacuum	text := migrate._option($1.job_id, 'vacuum');
	-- of a table that was there, preflight wants the key to be there too
	all_targets boolean := migrate._option($1.job_id, 'indexes') <> 'auto' OR migrate._option($1.job_id, 'content') = 'data';
	sizes	jsonb := '{}';
BEGIN
	IF migrate._is_postgres_fdw($1.server) THEN
		SELECT coalesce(jsonb_object_agg(format('%I.%I', r ->> 's', r ->> 't'), r -> 'size'), '{}') INTO sizes
		FROM (SELECT array_agg(x.remote_schema) AS s, array_agg(x.remote_table) AS t
			  FROM (SELECT s.remote_schema, s.remote_table FROM migrate.source_table s
					WHERE s.job_id = $1.job_id AND s.remote_table IS NOT NULL
					UNION
					SELECT m.remote_schema, m.remote_table FROM migrate.made_relation m
					WHERE m.job_id = $1.job_id AND NOT m.own_definition) x) n
		CROSS JOIN LATERAL migrate._remote_query($1.server, format($q$
			SELECT n.nspname AS s, c.relname AS t,
				   CASE c.relkind WHEN 'p' THEN (SELECT sum(pg_relation_size(p.relid)) FROM pg_partition_tree(c.oid) p)
								  ELSE pg_relation_size(c.oid) END AS size
			FROM unnest(%L::text[], %L::text[]) w(s, t)
			JOIN pg_namespace n ON n.nspname = w.s
			JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t
		$q$, n.s, n.t)) r;
	END IF;

	RETURN QUERY
	WITH target AS MATERIALIZED (
		SELECT m.mapping_id, m.target_oid, m.target, m.key, m.many, s.foreign_table, c.relkind,
			   EXISTS (SELECT FROM migrate.made_relation r WHERE r.target_oid = m.target_oid) AS made,
			   m.mapping_id = min(m.mapping_id) OVER (PARTITION BY m.target_oid) AS first,
			   (sizes ->> (quote_ident(s.remote_schema) || '.' || quote_ident(s.remote_table)))::bigint AS size
		FROM migrate.mapping m
		JOIN migrate.source_table s USING (source_id)
		JOIN pg_class c ON c.oid = m.target_oid
		WHERE m.job_id = $1.job_id AND ($2 IS NULL OR m.mapping_id = ANY ($2))
	), found AS MATERIALIZED (
		-- unique keys that find two rows under one key already
		SELECT i.indrelid, array_agg(a.attname::text) AS columns
		FROM pg_index i
		JOIN target t ON t.target_oid = i.indrelid AND t.first
		CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(num, pos)
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
		WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND k.pos <= i.indnkeyatts
		GROUP BY i.indexrelid, i.indrelid
	), part AS MATERIALIZED (
		SELECT t.mapping_id, t.target_oid AS root, p.relid::oid AS oid, format('%I.%I', n.nspname, c.relname) AS shown,
			   (SELECT (sizes ->> format('%I.%I', r.remote_schema, r.remote_table))::bigint
				FROM migrate.made_relation r WHERE r.target_oid = p.relid) AS size
		FROM target t
		CROSS JOIN LATERAL pg_partition_tree(t.target_oid) p
		JOIN pg_class c ON c.oid = p.relid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE t.first AND t.relkind = 'p' AND p.isleaf AND c.relkind = 'r'
	)
	-- P10
	SELECT 'b:' || t.mapping_id, t.mapping_id, t.target_oid, t.target, 'doubles', k.list, NULL::text,
		   format('SELECT %s, count(*) FROM %s GROUP BY %1$s HAVING count(*) > 1', k.list, t.target),
		   10, coalesce(t.size, 0), NULL::text[], false, NULL::text
	FROM target t
	CROSS JOIN LATERAL (SELECT string_agg(quote_ident(e.key), ', ' ORDER BY e.key) AS list, array_agg(e.key) AS columns,
							   bool_and(EXISTS (SELECT FROM pg_attribute a
												WHERE a.attrelid = t.foreign_table AND format('source.%I', a.attname) = e.value)) AS plain
						FROM jsonb_each_text(t.key) e) k
	WHERE t.key IS NOT NULL AND t.key <> '{}' AND NOT t.many AND k.plain
	  AND t.target_oid <> ALL ($3) AND (all_targets OR t.made)
	  AND NOT EXISTS (SELECT FROM found f WHERE f.indrelid = t.target_oid AND f.columns <@ k.columns)
	  AND NOT EXISTS (SELECT FROM migrate.post_step p WHERE p.mapping_id = t.mapping_id AND p.kind = 'key' AND p.state <> 'todo')
	UNION ALL
	SELECT 'w:' || t.target_oid, t.mapping_id, t.target_oid, t.target, 'vacuum', t.target, NULL,
		   CASE WHEN vacuum = 'analyze' OR t.relkind = 'p' THEN 'ANALYZE ' ELSE 'VACUUM (ANALYZE) ' END || t.target,
		   60, CASE t.relkind WHEN 'p' THEN 0 ELSE coalesce(t.size, 0) END,
		   (SELECT array_agg('w:' || p.oid) FROM part p WHERE p.root = t.target_oid AND vacuum = 'on'), false, NULL
	FROM target t
	WHERE t.first AND vacuum <> 'off' AND t.relkind IN ('r', 'p')
	UNION ALL
	SELECT 'w:' || p.oid, p.mapping_id, p.oid, p.shown, 'vacuum', p.shown, NULL, 'VACUUM (ANALYZE) ' || p.shown,
		   60, coalesce(p.size, 0), NULL, false, NULL
	FROM part p
	WHERE vacuum = 'on'
	UNION ALL
	SELECT 'q:', NULL, NULL, NULL, 'sequences', 'values', NULL, format('SELECT migrate._set_sequences(%s)', $1.job_id),
		   60, 0, NULL, false, NULL
	WHERE $2 IS NULL AND migrate._is_postgres_fdw($1.server);
END
$$;
COMMENT ON FUNCTION migrate._plan_data(migrate.job, int[], oid[]) IS
'steps that go over the rows of targets: mappings (null: all), keyed = targets for which a key is planned, which finds their doubles; the values of sequences when all are planned';
