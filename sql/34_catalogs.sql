/*
 * What steps after the copy are planned from: the tables to complete, and the
 * catalogs of both sides.
 *
 * The source is asked set-wise, a query a kind of object for all tables.  What
 * PostgreSQL deparses there is not parsed here: the part of a definition that
 * names the table is known, so what follows it is cut off by its length and
 * put behind a head of our own.
 */
CREATE TYPE migrate.step_relation AS (
	target_oid	oid,
	-- the target of the mapping; the partitioned (or inherited) table above it here
	root_oid	oid,
	parent_oid	oid,
	mapping_id	int,
	remote_schema text,
	remote_table text,
	-- made by the job; with columns and partitions of its own
	made		boolean,
	own			boolean,
	kind		"char",
	schema		text,
	name		text,
	shown		text,
	-- TABLESPACE clause that its indexes get
	tablespace	text,
	columns		text[],
	-- source column -> column here, where the names differ
	names		jsonb
);
COMMENT ON TYPE migrate.step_relation IS 'a table here that steps complete, and the source table that it is like';

CREATE TYPE migrate.wanted_step AS (
	wid			text,
	mapping_id	int,
	target_oid	oid,
	relation	text,
	kind		text,
	object		text,
	source_object text,
	ddl			text,
	phase		int,
	weight		bigint,
	needs		text[],
	-- recorded as skipped, with the reason
	skip		boolean,
	reason		text
);
COMMENT ON TYPE migrate.wanted_step IS 'a step that there has to be: as migrate.post_step, named by wid, after the steps in needs';

/* Names of at most 63 bytes. */
CREATE FUNCTION migrate._clip(name text, bytes int) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT left($1, n) FROM generate_series(least(length($1), $2), 0, -1) n
	WHERE octet_length(left($1, n)) <= $2
	ORDER BY n DESC LIMIT 1
$$;
COMMENT ON FUNCTION migrate._clip(text, int) IS 'the longest beginning of a text that has at most so many bytes';

CREATE FUNCTION migrate._numbered(name text, n bigint) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT migrate._clip($1, 62 - length($2::text)) || '_' || $2 $$;
COMMENT ON FUNCTION migrate._numbered(text, bigint) IS 'a name with a number behind it, within 63 bytes';

/* The name of a partition's index, after the one of the table above it. */
CREATE FUNCTION migrate._part_name(part text, whole text, index_name text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT migrate._clip($1, greatest(20, 63 - octet_length(x.tail))) || migrate._clip(x.tail, 43)
	FROM (SELECT CASE WHEN starts_with($3, $2 || '_') THEN substr($3, length($2) + 1) ELSE '_' || $3 END) x(tail)
$$;
COMMENT ON FUNCTION migrate._part_name(text, text, text) IS
'a name for the index of a partition: part = the partition, whole = the partitioned table as the source calls it, index_name = its index';

/* A table's indexes go where it is, unless that is the database's default. */
CREATE FUNCTION migrate._tablespace_clause(relation oid, word text DEFAULT 'TABLESPACE') RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce((SELECT format(' %s %I', $2, s.spcname)
					 FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace
					 WHERE c.oid = $1), '')
$$;
COMMENT ON FUNCTION migrate._tablespace_clause(oid, text) IS
'TABLESPACE clause for where a relation is, empty for the default of the database';

/*
 * The tables to complete: those that the job made, and with option indexes =
 * all also those that were there, which are treated like one that the DBA's
 * own statement made: by what its source table has, as far as it fits.
 */
CREATE FUNCTION migrate._step_relations(j migrate.job, mappings int[]) RETURNS SETOF migrate.step_relation
LANGUAGE plpgsql STABLE ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	WITH target AS MATERIALIZED (
		SELECT DISTINCT ON (m.target_oid) m.target_oid, m.mapping_id, s.foreign_table, s.remote_schema, s.remote_table
		FROM migrate.mapping m
		JOIN migrate.source_table s USING (source_id)
		WHERE m.job_id = $1.job_id AND m.kind = 'identity' AND s.remote_table IS NOT NULL
		ORDER BY m.target_oid, m.mapping_id
	), relation AS MATERIALIZED (
		SELECT r.target_oid, r.root_oid, t.mapping_id, t.foreign_table, r.remote_schema, r.remote_table,
			   true AS made, r.own_definition AS own
		FROM migrate.made_relation r
		JOIN target t ON t.target_oid = r.root_oid
		WHERE r.job_id = $1.job_id AND (NOT r.own_definition OR r.target_oid = r.root_oid)
		UNION ALL
		SELECT t.target_oid, t.target_oid, t.mapping_id, t.foreign_table, t.remote_schema, t.remote_table, false, true
		FROM target t
		LEFT JOIN migrate.made_relation r ON r.target_oid = t.target_oid
		WHERE r.target_oid IS NULL AND migrate._option($1.job_id, 'indexes') = 'all'
	), renamed AS MATERIALIZED (
		-- importing writes down every column's name
		SELECT a.attrelid, jsonb_object_agg(o.option_value, a.attname) AS names
		FROM pg_attribute a
		CROSS JOIN LATERAL pg_options_to_table(a.attfdwoptions) o
		WHERE a.attrelid IN (SELECT t.foreign_table FROM target t) AND a.attnum > 0 AND NOT a.attisdropped
		  AND o.option_name = 'column_name' AND o.option_value <> a.attname
		GROUP BY a.attrelid
	), columns AS MATERIALIZED (
		SELECT a.attrelid, array_agg(a.attname::text ORDER BY a.attnum) AS names
		FROM pg_attribute a
		WHERE a.attrelid IN (SELECT r.target_oid FROM relation r) AND a.attnum > 0 AND NOT a.attisdropped
		GROUP BY a.attrelid
	), parent AS MATERIALIZED (
		SELECT h.inhrelid, min(h.inhparent::int8)::oid AS oid
		FROM pg_inherits h WHERE h.inhrelid IN (SELECT r.target_oid FROM relation r)
		GROUP BY h.inhrelid
	)
	SELECT r.target_oid, r.root_oid, p.oid, r.mapping_id, r.remote_schema, r.remote_table, r.made, r.own,
		   c.relkind, n.nspname::text, c.relname::text, format('%I.%I', n.nspname, c.relname),
		   CASE WHEN c.reltablespace = 0 THEN '' ELSE migrate._tablespace_clause(c.oid) END,
		   coalesce(a.names, '{}'), x.names
	FROM relation r
	JOIN pg_class c ON c.oid = r.target_oid
	JOIN pg_namespace n ON n.oid = c.relnamespace
	LEFT JOIN parent p ON p.inhrelid = r.target_oid
	LEFT JOIN columns a ON a.attrelid = r.target_oid
	LEFT JOIN renamed x ON x.attrelid = r.foreign_table
	WHERE ($2 IS NULL OR r.mapping_id = ANY ($2)) AND c.relkind IN ('r', 'p');
END
$$;
COMMENT ON FUNCTION migrate._step_relations(migrate.job, int[]) IS
'the tables here that steps after the copy complete, of some mappings or (null) all';

/* A column of the source under its name here. */
CREATE FUNCTION migrate._columns_here(names jsonb, columns text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN $1 IS NULL THEN $2
				ELSE ARRAY(SELECT coalesce($1 ->> c.name, c.name) FROM unnest($2) WITH ORDINALITY c(name, pos) ORDER BY c.pos) END
$$;
COMMENT ON FUNCTION migrate._columns_here(jsonb, text[]) IS
'columns of the source under the names that they have here: names = source column -> column here, where they differ';

/* Quoted, with commas. */
CREATE FUNCTION migrate._name_list(names text[]) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT string_agg(quote_ident(n.name), ', ' ORDER BY n.pos) FROM unnest($1) WITH ORDINALITY n(name, pos) $$;
COMMENT ON FUNCTION migrate._name_list(text[]) IS 'names, quoted where needed, as a list with commas';

/* ----------------------------------------------------------------
 * what the source has
 * ----------------------------------------------------------------
 */

/*
 * Indexes with the constraints they belong to.  Invalid ones are what a failed
 * CREATE INDEX CONCURRENTLY left behind; one on a partitioned table may just
 * lack a partition.
 */
CREATE FUNCTION migrate._remote_indexes(server oid, schemas text[], tables text[])
RETURNS TABLE (remote_schema text, remote_table text, oid oid, name text, parent oid, partitioned boolean,
			   uniq boolean, prim boolean, excludes boolean, immediate boolean, clustered boolean, ident boolean,
			   -- the definition after the table's name, and how much of its end is the predicate
			   body text, predicate text, method text,
			   -- columns it refers to; of its key (null: an expression), included
			   columns text[], keys text[], included text[], filled boolean, plain boolean,
			   -- how each column of the key is sorted and by what operators
			   forms text[], nulls_equal boolean, storage text, targets jsonb, refers jsonb, size bigint,
			   contype text, constraint_body text, constraint_predicate text, timing text,
			   comment text, constraint_comment text)
LANGUAGE sql STABLE ROWS 1000
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT r ->> 's', r ->> 't', (r ->> 'oid')::oid, r ->> 'name', (r ->> 'parent')::oid, (r ->> 'parted')::boolean,
		   (r ->> 'uniq')::boolean, (r ->> 'prim')::boolean, (r ->> 'excl')::boolean, (r ->> 'imm')::boolean,
		   (r ->> 'clustered')::boolean, (r ->> 'ident')::boolean,
		   r ->> 'body', r ->> 'predicate', r ->> 'method',
		   coalesce((r ->> 'columns')::text[], '{}'), (r ->> 'keys')::text[], (r ->> 'included')::text[],
		   (r ->> 'filled')::boolean, (r ->> 'plain')::boolean,
		   (r ->> 'forms')::text[], coalesce((r ->> 'nulls_equal')::boolean, false), r ->> 'storage',
		   (r ->> 'targets')::jsonb, (r ->> 'refers')::jsonb, coalesce((r ->> 'size')::bigint, 0),
		   r ->> 'contype', r ->> 'con_body', coalesce(r ->> 'con_predicate', ''), coalesce(r ->> 'timing', ''),
		   r ->> 'comment', r ->> 'con_comment'
	FROM migrate._remote_query($1, format($q$
		SELECT n.nspname AS s, t.relname AS t, i.indexrelid AS oid, c.relname AS name,
			   (SELECT h.inhparent FROM pg_inherits h WHERE h.inhrelid = i.indexrelid) AS parent,
			   c.relkind = 'I' AS parted, i.indisunique AS uniq, i.indisprimary AS prim, i.indisexclusion AS excl,
			   i.indimmediate AS imm, i.indisclustered AS clustered, i.indisreplident AS ident,
			   CASE WHEN starts_with(d.def, d.head) THEN substr(d.def, length(d.head) + 1) END AS body,
			   coalesce(' WHERE ' || d.pred, '') AS predicate, am.amname AS method,
			   (SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
				WHERE a.attrelid = i.indrelid AND a.attnum > 0
				  AND (a.attnum = ANY (i.indkey::int2[])
					   OR a.attnum IN (SELECT x.refobjsubid FROM pg_depend x
									   WHERE x.classid = 'pg_class'::regclass AND x.objid = i.indexrelid
										 AND x.refclassid = 'pg_class'::regclass AND x.refobjid = i.indrelid))) AS columns,
			   k.keys, k.included, k.filled, k.forms,
			   i.indexprs IS NULL AND i.indpred IS NULL AS plain,
			   (to_jsonb(i.*) ->> 'indnullsnotdistinct')::boolean AS nulls_equal,
			   (SELECT string_agg(format('%%I=%%L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ')
				FROM unnest(c.reloptions) o) AS storage,
			   (SELECT json_agg(json_build_array(a.attnum, a.attstattarget) ORDER BY a.attnum) FROM pg_attribute a
				WHERE a.attrelid = i.indexrelid AND a.attstattarget >= 0) AS targets,
			   (SELECT json_agg(DISTINCT jsonb_build_array(xn.nspname, xc.relname))
				FROM pg_depend x
				JOIN pg_class xc ON xc.oid = x.refobjid AND xc.relkind <> 'c'
				JOIN pg_namespace xn ON xn.oid = xc.relnamespace
				WHERE x.classid = 'pg_class'::regclass AND x.objid = i.indexrelid
				  AND x.refclassid = 'pg_class'::regclass AND x.refobjid <> i.indrelid AND x.deptype = 'n') AS refers,
			   CASE c.relkind WHEN 'I' THEN (SELECT sum(pg_relation_size(p.relid)) FROM pg_partition_tree(c.oid) p)
							  ELSE pg_relation_size(c.oid) END AS size,
			   con.contype,
			   CASE WHEN i.indisexclusion THEN left(cd.def, length(cd.def) - length(cd.timing)) END AS con_body,
			   coalesce(' WHERE (' || d.pred || ')', '') AS con_predicate, cd.timing,
			   obj_description(c.oid, 'pg_class') AS comment, obj_description(con.oid, 'pg_constraint') AS con_comment
		FROM unnest(%L::text[], %L::text[]) w(s, t)
		JOIN pg_namespace n ON n.nspname = w.s
		JOIN pg_class t ON t.relnamespace = n.oid AND t.relname = w.t
		JOIN pg_index i ON i.indrelid = t.oid
		JOIN pg_class c ON c.oid = i.indexrelid
		JOIN pg_am am ON am.oid = c.relam
		LEFT JOIN pg_constraint con ON con.conrelid = t.oid AND con.conindid = c.oid AND con.contype IN ('p', 'u', 'x')
		CROSS JOIN LATERAL (
			SELECT pg_get_indexdef(c.oid) AS def, pg_get_expr(i.indpred, t.oid) AS pred,
				   format('CREATE %%sINDEX %%I ON %%s%%I.%%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, c.relname,
						  CASE c.relkind WHEN 'I' THEN 'ONLY ' ELSE '' END, n.nspname, t.relname) AS head) d
		CROSS JOIN LATERAL (
			SELECT pg_get_constraintdef(con.oid) AS def,
				   CASE WHEN con.condeferrable THEN ' DEFERRABLE' ELSE '' END
				   || CASE WHEN con.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END AS timing) cd
		CROSS JOIN LATERAL (
			SELECT array_agg(a.attname ORDER BY o.pos) FILTER (WHERE o.pos <= i.indnkeyatts) AS keys,
				   array_agg(a.attname ORDER BY o.pos) FILTER (WHERE o.pos > i.indnkeyatts) AS included,
				   bool_and(coalesce(a.attnotnull, false)) FILTER (WHERE o.pos <= i.indnkeyatts) AS filled,
				   array_agg(CASE WHEN i.indcollation[o.pos - 1] NOT IN (0, a.attcollation) THEN
									 format(' COLLATE %%I.%%I', ln.nspname, l.collname) ELSE '' END
							 || CASE WHEN NOT oc.opcdefault THEN format(' %%I.%%I', ocn.nspname, oc.opcname) ELSE '' END
							 || CASE i.indoption[o.pos - 1] & 3 WHEN 1 THEN ' DESC NULLS LAST' WHEN 2 THEN ' NULLS FIRST'
																WHEN 3 THEN ' DESC' ELSE '' END
							 ORDER BY o.pos) FILTER (WHERE o.pos <= i.indnkeyatts) AS forms
			FROM unnest(i.indkey::int2[]) WITH ORDINALITY o(num, pos)
			LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = o.num AND o.num > 0
			LEFT JOIN pg_collation l ON l.oid = i.indcollation[o.pos - 1]
			LEFT JOIN pg_namespace ln ON ln.oid = l.collnamespace
			LEFT JOIN pg_opclass oc ON oc.oid = i.indclass[o.pos - 1]
			LEFT JOIN pg_namespace ocn ON ocn.oid = oc.opcnamespace) k
		WHERE (i.indisvalid OR c.relkind = 'I') AND i.indisready
	$q$, $2, $3)) AS r
$$;
COMMENT ON FUNCTION migrate._remote_indexes(oid, text[], text[]) IS
'indexes of tables on the source with their constraints, for parallel arrays of schema and table names; size in bytes';

/*
 * Checks and foreign keys.  Those that a partition has because of another
 * row of pg_constraint for the same table are no constraints of their own.
 */
CREATE FUNCTION migrate._remote_constraints(server oid, schemas text[], tables text[])
RETURNS TABLE (remote_schema text, remote_table text, name text, contype text, inherited boolean, valid boolean,
			   -- of a check; of a foreign key what follows the referenced table's columns
			   body text, actions text, timing text, enforced boolean, period boolean, columns text[],
			   ref_schema text, ref_table text, ref_partitioned boolean, ref_columns text[], match text, cleared text[],
			   refers jsonb, size bigint, comment text)
LANGUAGE sql STABLE ROWS 1000
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT r ->> 's', r ->> 't', r ->> 'name', r ->> 'contype', (r ->> 'inherited')::boolean, (r ->> 'valid')::boolean,
		   r ->> 'body', r ->> 'actions', r ->> 'timing', (r ->> 'enforced')::boolean, (r ->> 'period')::boolean,
		   coalesce((r ->> 'columns')::text[], '{}'),
		   r ->> 'rs', r ->> 'rt', coalesce((r ->> 'rparted')::boolean, false), (r ->> 'ref_columns')::text[], r ->> 'match', (r ->> 'cleared')::text[],
		   (r ->> 'refers')::jsonb, coalesce((r ->> 'size')::bigint, 0), r ->> 'comment'
	FROM migrate._remote_query($1, format($q$
		SELECT n.nspname AS s, t.relname AS t, con.conname AS name, con.contype,
			   CASE con.contype WHEN 'c' THEN NOT con.conislocal ELSE con.conparentid <> 0 END AS inherited,
			   con.convalidated AS valid,
			   CASE con.contype WHEN 'c' THEN pg_get_constraintdef(con.oid) END AS body,
			   CASE WHEN con.contype = 'f' THEN
					CASE con.confupdtype WHEN 'r' THEN ' ON UPDATE RESTRICT' WHEN 'c' THEN ' ON UPDATE CASCADE'
										 WHEN 'n' THEN ' ON UPDATE SET NULL' WHEN 'd' THEN ' ON UPDATE SET DEFAULT' ELSE '' END
					|| CASE con.confdeltype WHEN 'r' THEN ' ON DELETE RESTRICT' WHEN 'c' THEN ' ON DELETE CASCADE'
											WHEN 'n' THEN ' ON DELETE SET NULL' WHEN 'd' THEN ' ON DELETE SET DEFAULT' ELSE '' END END AS actions,
			   CASE WHEN con.condeferrable THEN ' DEFERRABLE' ELSE '' END
			   || CASE WHEN con.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END AS timing,
			   coalesce((to_jsonb(con) ->> 'conenforced')::boolean, true) AS enforced,
			   coalesce((to_jsonb(con) ->> 'conperiod')::boolean, false) AS period,
			   (SELECT array_agg(a.attname ORDER BY k.pos) FROM unnest(con.conkey) WITH ORDINALITY k(num, pos)
				JOIN pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.num) AS columns,
			   rn.nspname AS rs, rt.relname AS rt, rt.relkind = 'p' AS rparted,
			   (SELECT array_agg(a.attname ORDER BY k.pos) FROM unnest(con.confkey) WITH ORDINALITY k(num, pos)
				JOIN pg_attribute a ON a.attrelid = con.confrelid AND a.attnum = k.num) AS ref_columns,
			   CASE con.confmatchtype WHEN 'f' THEN ' MATCH FULL' WHEN 'p' THEN ' MATCH PARTIAL' ELSE '' END AS match,
			   (SELECT array_agg(a.attname ORDER BY k.pos)
				FROM jsonb_array_elements_text(CASE jsonb_typeof(to_jsonb(con) -> 'confdelsetcols')
											   WHEN 'array' THEN to_jsonb(con) -> 'confdelsetcols' END) WITH ORDINALITY k(num, pos)
				JOIN pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.num::int) AS cleared,
			   (SELECT json_agg(DISTINCT jsonb_build_array(xn.nspname, xc.relname))
				FROM pg_depend x
				JOIN pg_class xc ON xc.oid = x.refobjid AND xc.relkind <> 'c'
				JOIN pg_namespace xn ON xn.oid = xc.relnamespace
				WHERE con.contype = 'c' AND x.classid = 'pg_constraint'::regclass AND x.objid = con.oid
				  AND x.refclassid = 'pg_class'::regclass AND x.refobjid <> con.conrelid AND x.deptype = 'n') AS refers,
			   CASE t.relkind WHEN 'p' THEN (SELECT sum(pg_relation_size(p.relid)) FROM pg_partition_tree(t.oid) p)
							  ELSE pg_relation_size(t.oid) END AS size,
			   obj_description(con.oid, 'pg_constraint') AS comment
		FROM unnest(%L::text[], %L::text[]) w(s, t)
		JOIN pg_namespace n ON n.nspname = w.s
		JOIN pg_class t ON t.relnamespace = n.oid AND t.relname = w.t
		JOIN pg_constraint con ON con.conrelid = t.oid AND con.contype IN ('c', 'f')
		LEFT JOIN pg_class rt ON rt.oid = con.confrelid
		LEFT JOIN pg_namespace rn ON rn.oid = rt.relnamespace
		WHERE NOT EXISTS (SELECT FROM pg_constraint pc
						  WHERE pc.oid = con.conparentid AND pc.conrelid = con.conrelid)
	$q$, $2, $3)) AS r
$$;
COMMENT ON FUNCTION migrate._remote_constraints(oid, text[], text[]) IS
'checks and foreign keys of tables on the source, for parallel arrays of schema and table names; size of the table in bytes';

CREATE FUNCTION migrate._remote_statistics(server oid, schemas text[], tables text[])
RETURNS TABLE (remote_schema text, remote_table text, own_schema text, name text, body text, columns text[],
			   target int, comment text)
LANGUAGE sql STABLE ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT r ->> 's', r ->> 't', r ->> 'own', r ->> 'name', r ->> 'body', coalesce((r ->> 'columns')::text[], '{}'),
		   (r ->> 'target')::int, r ->> 'comment'
	FROM migrate._remote_query($1, format($q$
		SELECT n.nspname AS s, t.relname AS t, sn.nspname AS own, s.stxname AS name,
			   -- between the name and the table
			   CASE WHEN starts_with(d.def, d.head) AND right(d.def, length(d.tail)) = d.tail
					THEN substr(left(d.def, length(d.def) - length(d.tail)), length(d.head) + 1) END AS body,
			   (SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
				WHERE a.attrelid = t.oid AND a.attnum > 0
				  AND (a.attnum = ANY (s.stxkeys::int2[])
					   OR a.attnum IN (SELECT x.refobjsubid FROM pg_depend x
									   WHERE x.classid = 'pg_statistic_ext'::regclass AND x.objid = s.oid
										 AND x.refclassid = 'pg_class'::regclass AND x.refobjid = t.oid))) AS columns,
			   (to_jsonb(s.*) ->> 'stxstattarget')::int AS target,
			   obj_description(s.oid, 'pg_statistic_ext') AS comment
		FROM unnest(%L::text[], %L::text[]) w(s, t)
		JOIN pg_namespace n ON n.nspname = w.s
		JOIN pg_class t ON t.relnamespace = n.oid AND t.relname = w.t
		JOIN pg_statistic_ext s ON s.stxrelid = t.oid
		JOIN pg_namespace sn ON sn.oid = s.stxnamespace
		CROSS JOIN LATERAL (
			SELECT pg_get_statisticsobjdef(s.oid) AS def,
				   format('CREATE STATISTICS %%I.%%I', sn.nspname, s.stxname) AS head,
				   format(' FROM %%I.%%I', n.nspname, t.relname) AS tail) d
	$q$, $2, $3)) AS r
$$;
COMMENT ON FUNCTION migrate._remote_statistics(oid, text[], text[]) IS
'extended statistics of tables on the source, for parallel arrays of schema and table names';

/* ----------------------------------------------------------------
 * definitions here
 * ----------------------------------------------------------------
 */

/*
 * Indexes that relations here have, described as _remote_indexes does, so that
 * they can be compared.
 */
CREATE FUNCTION migrate._indexes_here(relations oid[])
RETURNS TABLE (relation oid, oid oid, name text, uniq boolean, valid boolean, partitioned boolean, clustered boolean,
			   contype text, body text, constraint_body text)
LANGUAGE sql STABLE ROWS 1000
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT i.indrelid, c.oid, c.relname::text, i.indisunique, i.indisvalid, c.relkind = 'I', i.indisclustered,
		   con.contype::text,
		   substr(pg_get_indexdef(c.oid),
				  length(format('CREATE %sINDEX %I ON %s%I.%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, c.relname,
								CASE c.relkind WHEN 'I' THEN 'ONLY ' ELSE '' END, n.nspname, t.relname)) + 1),
		   CASE WHEN i.indisexclusion THEN left(d.def, length(d.def) - length(d.timing)) END
	FROM pg_index i
	JOIN pg_class c ON c.oid = i.indexrelid
	JOIN pg_class t ON t.oid = i.indrelid
	JOIN pg_namespace n ON n.oid = t.relnamespace
	LEFT JOIN pg_constraint con ON con.conrelid = i.indrelid AND con.conindid = i.indexrelid AND con.contype IN ('p', 'u', 'x')
	CROSS JOIN LATERAL (
		SELECT pg_get_constraintdef(con.oid) AS def,
			   CASE WHEN con.condeferrable THEN ' DEFERRABLE' ELSE '' END
			   || CASE WHEN con.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END AS timing) d
	WHERE i.indrelid = ANY ($1)
$$;
COMMENT ON FUNCTION migrate._indexes_here(oid[]) IS 'indexes of relations here with their definitions as far as they do not name them';

/*
 * CREATE INDEX and ADD CONSTRAINT as steps have them.  Tablespace and
 * predicate come in this order; a predicate that cannot be told from the rest
 * is left where it is.
 */
CREATE FUNCTION migrate._index_ddl(uniq boolean, name text, relation text, body text, predicate text, tablespace text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('CREATE %sINDEX %I ON %s ', CASE WHEN $1 THEN 'UNIQUE ' ELSE '' END, $2, $3)
		   || CASE WHEN $6 = '' THEN $4
				   WHEN right($4, length($5)) = $5 THEN left($4, length($4) - length($5)) || $6 || $5
				   ELSE $4 END
$$;
COMMENT ON FUNCTION migrate._index_ddl(boolean, text, text, text, text, text) IS
'CREATE INDEX: relation quoted, with ONLY where needed; body = what follows it; predicate = the end of body; tablespace = clause';

CREATE FUNCTION migrate._using_index_ddl(relation text, name text, contype text, index_name text, timing text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('ALTER TABLE ONLY %s ADD CONSTRAINT %I %s USING INDEX %I%s', $1, $2,
				  CASE $3 WHEN 'p' THEN 'PRIMARY KEY' ELSE 'UNIQUE' END, $4, $5)
$$;
COMMENT ON FUNCTION migrate._using_index_ddl(text, text, text, text, text) IS
'ADD CONSTRAINT for an index that is there: relation quoted, contype p or u, timing = DEFERRABLE clause';

CREATE FUNCTION migrate._check_ddl(relation text, name text, body text, valid boolean) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('ALTER TABLE %s ADD CONSTRAINT %I %s', $1, $2, $3)
		   || CASE WHEN $4 THEN format(E' NOT VALID;\nALTER TABLE %s VALIDATE CONSTRAINT %I', $1, $2) ELSE '' END
$$;
COMMENT ON FUNCTION migrate._check_ddl(text, text, text, boolean) IS
'adds a check, and makes it valid unless it is not so on the source: relation quoted, body as pg_get_constraintdef gives it';

CREATE FUNCTION migrate._foreign_key_body(columns text[], referenced text, ref_columns text[], period boolean, match text,
										  actions text, cleared text[], timing text, enforced boolean) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('FOREIGN KEY (%s%s) REFERENCES %s (%s%s)',
				  coalesce(migrate._name_list(CASE WHEN $4 THEN trim_array($1, 1) ELSE $1 END), ''),
				  CASE WHEN $4 THEN format(', PERIOD %I', $1[cardinality($1)]) ELSE '' END, $2,
				  coalesce(migrate._name_list(CASE WHEN $4 THEN trim_array($3, 1) ELSE $3 END), ''),
				  CASE WHEN $4 THEN format(', PERIOD %I', $3[cardinality($3)]) ELSE '' END)
		   || $5 || $6 || coalesce(' (' || migrate._name_list($7) || ')', '') || $8
		   || CASE WHEN $9 THEN '' ELSE ' NOT ENFORCED' END
$$;
COMMENT ON FUNCTION migrate._foreign_key_body(text[], text, text[], boolean, text, text, text[], text, boolean) IS
'a foreign key: columns, the referenced table quoted and its columns, PERIOD for the last, MATCH clause, ON UPDATE and ON DELETE clauses, columns that ON DELETE clears, DEFERRABLE clause, whether it is enforced';

/* A foreign key here as _foreign_key_body gives it. */
CREATE FUNCTION migrate._foreign_key_here(constraint_oid oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT migrate._foreign_key_body(
		(SELECT array_agg(a.attname::text ORDER BY k.pos) FROM unnest(con.conkey) WITH ORDINALITY k(num, pos)
		 JOIN pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.num),
		format('%I.%I', n.nspname, t.relname),
		(SELECT array_agg(a.attname::text ORDER BY k.pos) FROM unnest(con.confkey) WITH ORDINALITY k(num, pos)
		 JOIN pg_attribute a ON a.attrelid = con.confrelid AND a.attnum = k.num),
		coalesce((to_jsonb(con) ->> 'conperiod')::boolean, false),
		CASE con.confmatchtype WHEN 'f' THEN ' MATCH FULL' WHEN 'p' THEN ' MATCH PARTIAL' ELSE '' END,
		CASE con.confupdtype WHEN 'r' THEN ' ON UPDATE RESTRICT' WHEN 'c' THEN ' ON UPDATE CASCADE'
							 WHEN 'n' THEN ' ON UPDATE SET NULL' WHEN 'd' THEN ' ON UPDATE SET DEFAULT' ELSE '' END
		|| CASE con.confdeltype WHEN 'r' THEN ' ON DELETE RESTRICT' WHEN 'c' THEN ' ON DELETE CASCADE'
								WHEN 'n' THEN ' ON DELETE SET NULL' WHEN 'd' THEN ' ON DELETE SET DEFAULT' ELSE '' END,
		(SELECT array_agg(a.attname::text ORDER BY k.pos) FROM unnest(con.confdelsetcols) WITH ORDINALITY k(num, pos)
		 JOIN pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.num),
		CASE WHEN con.condeferrable THEN ' DEFERRABLE' ELSE '' END
		|| CASE WHEN con.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END,
		coalesce((to_jsonb(con) ->> 'conenforced')::boolean, true))
	FROM pg_constraint con
	JOIN pg_class t ON t.oid = con.confrelid
	JOIN pg_namespace n ON n.oid = t.relnamespace
	WHERE con.oid = $1
$$;
COMMENT ON FUNCTION migrate._foreign_key_here(oid) IS 'a foreign key of this database in the words of the steps';

/* Statements after CREATE INDEX: statistics targets of its expressions. */
CREATE FUNCTION migrate._index_extras(index_name text, targets jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(string_agg(format(E';\nALTER INDEX %s ALTER COLUMN %s SET STATISTICS %s', $1, t ->> 0, t ->> 1), ''
							   ORDER BY (t ->> 0)::int), '')
	FROM jsonb_array_elements($2) t
$$;
COMMENT ON FUNCTION migrate._index_extras(text, jsonb) IS
'statements that set the statistics targets of an index: targets = [[column, target], ...]';

/*
 * Names of relations inside a deparsed expression, where they are others here:
 * constants of type regclass, and whole rows of the table itself.
 */
CREATE FUNCTION migrate._expression_here(expression text, old_schema text, old_name text, new_schema text, new_name text,
										 refers jsonb, moved jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	own		text := format('%I.%I', old_schema, old_name);
	r		record;
BEGIN
	IF old_name <> new_name THEN
		expression := replace(replace(expression, format('(%I.*', old_name), format('(%I.*', new_name)),
							  format(' %I.*', old_name), format(' %I.*', new_name));
	END IF;
	FOR r IN SELECT own AS name, format('%I.%I', new_schema, new_name) AS now
			 UNION ALL
			 SELECT x.name, moved ->> x.name
			 FROM jsonb_array_elements($6) e
			 CROSS JOIN LATERAL format('%I.%I', e ->> 0, e ->> 1) x(name)
			 WHERE x.name <> own AND moved ? x.name
	LOOP
		expression := replace(expression, quote_literal(r.name) || '::regclass', quote_literal(r.now) || '::regclass');
	END LOOP;
	RETURN expression;
END
$$;
COMMENT ON FUNCTION migrate._expression_here(text, text, text, text, text, jsonb, jsonb) IS
'an expression of the source with the names that relations have here: schema and name of its table there and here, other relations that it refers to as [[schema, name], ...], and moved = {quoted name there: quoted name here}';
