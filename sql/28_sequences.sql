/*
 * Sequences: made before the tables whose defaults draw from them, owned by
 * columns once these are there, and brought to their values at the end.
 *
 * A sequence goes where migrate.job_schema sends its schema, and keeps its
 * name unless "rename" lists it; one of another schema stays where it is.
 * Sequences of identity columns come with their tables.
 */

/*
 * What the source's catalogs say of sequences: those of one schema and those
 * that its tables draw from, or, without a schema, of all.  "users" are the
 * columns that draw from it or own it, with the table above a partition.
 */
CREATE FUNCTION migrate._remote_sequences(server oid, source_schema text DEFAULT NULL)
RETURNS TABLE (schema text, name text, full_name text, type text, increment bigint, min_value bigint,
			   max_value bigint, start_value bigint, cache bigint, cycle boolean, persistence text,
			   comment text, identity boolean, extension boolean, owner jsonb, users jsonb,
			   readable boolean, last_value bigint, role text)
LANGUAGE sql VOLATILE ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT r ->> 'schema', r ->> 'name', r ->> 'full_name', r ->> 'type', (r ->> 'increment')::bigint,
		   (r ->> 'min')::bigint, (r ->> 'max')::bigint, (r ->> 'start')::bigint, (r ->> 'cache')::bigint,
		   (r ->> 'cycle')::boolean, r ->> 'persistence', r ->> 'comment', (r ->> 'identity')::boolean,
		   (r ->> 'extension')::boolean, (r ->> 'owner')::jsonb, coalesce((r ->> 'users')::jsonb, '[]'),
		   (r ->> 'readable')::boolean, (r ->> 'value')::bigint, r ->> 'role'
	FROM migrate._remote_query($1, format($q$
		WITH col(seq, rel, num, deptype) AS MATERIALIZED (
			SELECT x.seq, x.rel, x.num, max(x.deptype)
			FROM (SELECT d.refobjid, ad.adrelid, ad.adnum, NULL::text
				  FROM pg_depend d
				  JOIN pg_sequence q ON q.seqrelid = d.refobjid
				  JOIN pg_attrdef ad ON ad.oid = d.objid
				  WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
				  UNION ALL
				  SELECT d.objid, d.refobjid, d.refobjsubid, d.deptype::text
				  FROM pg_depend d
				  JOIN pg_sequence q ON q.seqrelid = d.objid
				  WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
					AND d.deptype IN ('a', 'i')) x(seq, rel, num, deptype)
			GROUP BY x.seq, x.rel, x.num
		), used AS MATERIALIZED (
			SELECT col.seq, max(col.deptype) AS deptype, bool_or(tn.nspname = %1$L) AS near,
				   json_agg(json_build_array(tn.nspname, t.relname, a.attname))
						FILTER (WHERE col.deptype IS NOT NULL) -> 0 AS owner,
				   json_agg(json_build_object('schema', tn.nspname, 'table', t.relname, 'column', a.attname,
											  'root_schema', rn.nspname, 'root', r.relname)
							ORDER BY tn.nspname, t.relname, a.attnum) AS users
			FROM col
			JOIN pg_class t ON t.oid = col.rel
			JOIN pg_namespace tn ON tn.oid = t.relnamespace
			JOIN pg_attribute a ON a.attrelid = col.rel AND a.attnum = col.num
			JOIN pg_class r ON r.oid = CASE WHEN t.relispartition THEN pg_partition_root(t.oid) ELSE t.oid END
			JOIN pg_namespace rn ON rn.oid = r.relnamespace
			GROUP BY col.seq
		)
		SELECT n.nspname AS schema, c.relname AS name, c.oid::regclass AS full_name,
			   format_type(s.seqtypid, NULL) AS type, s.seqincrement AS increment, s.seqmin AS min, s.seqmax AS max,
			   s.seqstart AS start, s.seqcache AS cache, s.seqcycle AS cycle, c.relpersistence AS persistence,
			   obj_description(c.oid, 'pg_class') AS comment,
			   coalesce(u.deptype = 'i', false) AS identity,
			   EXISTS (SELECT FROM pg_depend d
					   WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') AS extension,
			   u.owner, u.users,
			   x.readable, CASE WHEN x.readable THEN pg_sequence_last_value(c.oid) END AS value,
			   current_user AS role
		FROM pg_sequence s
		JOIN pg_class c ON c.oid = s.seqrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN used u ON u.seq = c.oid
		CROSS JOIN LATERAL (
			SELECT has_schema_privilege(n.oid, 'USAGE') AND has_sequence_privilege(c.oid, 'SELECT')
				   -- on a standby there is no such thing
				   AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery()) AS readable) x
		WHERE c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
		  AND (%1$L IS NULL OR n.nspname = %1$L OR u.near)
		ORDER BY n.nspname, c.relname
	$q$, $2)) AS r
$$;
COMMENT ON FUNCTION migrate._remote_sequences(oid, text) IS
'sequences of the source: those of a schema and those that its tables draw from, or all; with the columns that use them, and their last value, which is null when none was drawn or it may not be read';

/*
 * A sequence comes with the tables that draw from it; one that no table of the
 * schema draws from is chosen by its own name.
 */
CREATE FUNCTION migrate._sequence_chosen(name text, schema text, users jsonb, source_schema text,
										 include text[], exclude text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN count(u) > 0 THEN
					bool_or(($5 IS NULL OR migrate._matches(u ->> 'root', $5) OR u ->> 'table' = ANY ($5))
							AND NOT migrate._matches(u ->> 'root', coalesce($6, '{}')))
				ELSE $2 = $4 AND ($5 IS NULL OR migrate._matches($1, $5))
					 AND NOT migrate._matches($1, coalesce($6, '{}')) END
	FROM jsonb_array_elements($3) u
	WHERE u ->> 'root_schema' = $4
$$;
COMMENT ON FUNCTION migrate._sequence_chosen(text, text, jsonb, text, text[], text[]) IS
'whether a sequence, with its users as _remote_sequences gives them, is taken with the tables of a schema that include and exclude leave';

/*
 * Where the job has it already, else where the schema's row that takes it
 * sends it.  Two rows of one schema may send it to different places; it is
 * made once.
 */
CREATE FUNCTION migrate._sequence_target(j migrate.job, source_schema text, source_name text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT p.target
	FROM (SELECT format('%I.%I', s.target_schema, coalesce(s.rename ->> $3, $3)) AS target,
				 (s.include IS NULL OR migrate._matches($3, s.include))
				 AND NOT migrate._matches($3, coalesce(s.exclude, '{}')) AS chosen, s.schema_id
		  FROM migrate.job_schema s WHERE s.job_id = $1.job_id AND s.source_schema = $2
		  UNION ALL
		  SELECT format('%I.%I', $2, $3), false, 0
		  WHERE NOT EXISTS (SELECT FROM migrate.job_schema s WHERE s.job_id = $1.job_id AND s.source_schema = $2)) p
	ORDER BY EXISTS (SELECT FROM migrate.made_object o
					 WHERE o.job_id = $1.job_id AND o.object = p.target AND o.kind = 'sequence') DESC,
			 p.chosen DESC, p.schema_id
	LIMIT 1
$$;
COMMENT ON FUNCTION migrate._sequence_target(migrate.job, text, text) IS
'the quoted and qualified name that a sequence of the source has here';

/*
 * One sequence, given as a row of _remote_sequences.  One that is here is used
 * when it can give what the source's gives: the same steps, the same end, and
 * no smaller range.
 */
CREATE FUNCTION migrate._make_sequence(j migrate.job, source jsonb, target text) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	parts	text[] := parse_ident($3);
	here	record;
	wish	text;
	unlike	text[];
BEGIN
	IF octet_length(parts[2]) > 63 THEN
		RAISE EXCEPTION USING ERRCODE = '42622',
			MESSAGE = format('name of sequence "%s" is longer than 63 bytes in the encoding of this database', parts[2]),
			HINT = 'Give it another name here with the argument "rename" of migrate_add_schema.';
	END IF;
	wish := format('AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s',
				   $2 ->> 'type', $2 ->> 'increment', $2 ->> 'min_value', $2 ->> 'max_value',
				   $2 ->> 'start_value', $2 ->> 'cache',
				   CASE WHEN ($2 ->> 'cycle')::boolean THEN 'CYCLE' ELSE 'NO CYCLE' END);

	SELECT c.relkind, q.* INTO here
	FROM pg_class c
	JOIN pg_namespace n ON n.oid = c.relnamespace
	LEFT JOIN pg_sequence q ON q.seqrelid = c.oid
	WHERE n.nspname = parts[1] AND c.relname = parts[2];
	IF NOT FOUND THEN
		PERFORM migrate._make_schema($1.job_id, parts[1], false);
		PERFORM migrate._make($1.job_id, 'sequence', $3, false,
			format('CREATE %sSEQUENCE %s %s', CASE $2 ->> 'persistence' WHEN 'u' THEN 'UNLOGGED ' ELSE '' END, $3, wish)
			|| coalesce(format('; COMMENT ON SEQUENCE %s IS ', $3) || quote_literal($2 ->> 'comment'), ''));
		RETURN 1;
	ELSIF here.relkind <> 'S' THEN
		RAISE EXCEPTION USING ERRCODE = '42P07',
			MESSAGE = format('%s exists here already and is not a sequence', $3),
			DETAIL = 'Nothing is overwritten.',
			HINT = 'Give the sequence another name here with the argument "rename" of migrate_add_schema, or another target schema.';
	END IF;
	SELECT array_agg(format('%s is %s here, %s on the source', o.name, o.here, o.there) ORDER BY o.pos) INTO unlike
	FROM (VALUES
			(1, 'INCREMENT BY', here.seqincrement::text, $2 ->> 'increment',
			 here.seqincrement <> ($2 ->> 'increment')::bigint),
			(2, 'MINVALUE', here.seqmin::text, $2 ->> 'min_value', here.seqmin > ($2 ->> 'min_value')::bigint),
			(3, 'MAXVALUE', here.seqmax::text, $2 ->> 'max_value', here.seqmax < ($2 ->> 'max_value')::bigint),
			(4, 'CYCLE', here.seqcycle::text, $2 ->> 'cycle', here.seqcycle <> ($2 ->> 'cycle')::boolean)
		 ) o(pos, name, here, there, differs)
	WHERE o.differs;
	IF unlike IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42P07',
			MESSAGE = format('sequence %s exists here already and is unlike the source''s', $3),
			DETAIL = array_to_string(unlike, '; ') || '. Nothing is overwritten.',
			HINT = format('Make it fit: ALTER SEQUENCE %s %s; or give the source''s another name here with the argument "rename" of migrate_add_schema.',
						  $3, regexp_replace(wish, ' START WITH \S+ CACHE \S+', ''));
	END IF;
	RETURN 0;
END
$$;
COMMENT ON FUNCTION migrate._make_sequence(migrate.job, jsonb, text) IS
'makes a sequence, given as a row of _remote_sequences, under a quoted and qualified name, when it is missing; returns 1 when it was. Errors: 42P07 the name is taken, by something else or by a sequence that differs in increment, range or cycle; 42622 its name is too long here';

CREATE FUNCTION migrate._make_sequences(j migrate.job, source_schema text, names text[]) RETURNS int
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(sum(migrate._make_sequence($1, to_jsonb(s), migrate._sequence_target($1, s.schema, s.name))), 0)::int
	FROM migrate._remote_sequences($1.server, $2) s
	WHERE s.schema = $2 AND s.name = ANY ($3) AND NOT s.identity
$$;
COMMENT ON FUNCTION migrate._make_sequences(migrate.job, text, text[]) IS
'makes some sequences of a schema on the source where they are missing here; returns how many. Errors: as _make_sequence';

CREATE FUNCTION migrate._import_sequences(j migrate.job, source_schema text, target_schema text,
										  include text[], exclude text[]) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	s		record;
	target	text;
	made	int := 0;
BEGIN
	IF NOT migrate._is_postgres_fdw($1.server) THEN
		RETURN 0;
	END IF;
	FOR s IN SELECT r.* FROM migrate._remote_sequences($1.server, $2) r
			 WHERE NOT r.identity AND NOT r.extension
			   AND migrate._sequence_chosen(r.name, r.schema, r.users, $2, $4, $5)
	LOOP
		target := migrate._sequence_target($1, s.schema, s.name);
		-- this call's place, unless an earlier one has taken it elsewhere
		IF s.schema = $2 AND NOT EXISTS (SELECT FROM migrate.made_object o
										 WHERE o.job_id = $1.job_id AND o.object = target AND o.kind = 'sequence') THEN
			SELECT format('%I.%I', $3, coalesce(min(c.rename ->> s.name), s.name)) INTO target
			FROM migrate.job_schema c
			WHERE c.job_id = $1.job_id AND c.source_schema = $2 AND c.target_schema = $3;
		END IF;
		made := made + migrate._make_sequence($1, to_jsonb(s), target);
	END LOOP;
	RETURN made;
END
$$;
COMMENT ON FUNCTION migrate._import_sequences(migrate.job, text, text, text[], text[]) IS
'makes the sequences of a schema on the source that are missing here, but for those of identity columns and of extensions, and those of other schemas that its tables draw from: with the tables that include and exclude leave, or by their own names when no table draws from them. Returns how many. Errors: as _make_sequence';

/*
 * OWNED BY, of the sequences and tables that the job made: as the source has
 * it, where both ended up in one schema.
 */
CREATE FUNCTION migrate._own_sequences(j migrate.job, source_schema text, target_schema text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	o		record;
BEGIN
	IF NOT migrate._is_postgres_fdw($1.server) THEN
		RETURN;
	END IF;
	FOR o IN
		SELECT DISTINCT ON (q.oid) q.oid::regclass AS sequence,
			   format('%s.%I', t.oid::regclass, a.attname) AS column_name
		FROM migrate._remote_sequences($1.server, $2) s
		JOIN migrate.made_object m ON m.job_id = $1.job_id AND m.kind = 'sequence'
			AND m.object = migrate._sequence_target($1, s.schema, s.name)
		JOIN pg_class q ON q.oid = migrate._sequence_oid(m.object)
		JOIN migrate.made_relation r ON r.job_id = $1.job_id
			AND r.remote_schema = s.owner ->> 0 AND r.remote_table = s.owner ->> 1
		JOIN pg_class t ON t.oid = r.target_oid AND t.relnamespace = q.relnamespace AND t.relowner = q.relowner
		JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = s.owner ->> 2 AND a.attnum > 0
		WHERE NOT s.identity
		  AND NOT EXISTS (SELECT FROM pg_depend d
						  WHERE d.classid = 'pg_class'::regclass AND d.objid = q.oid
							AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))
		ORDER BY q.oid, t.oid
	LOOP
		EXECUTE format('ALTER SEQUENCE %s OWNED BY %s', o.sequence, o.column_name);
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._own_sequences(migrate.job, text, text) IS
'sets OWNED BY of the sequences that the job made, to columns of tables that it made, as on the source';

/* to_regclass() refuses schemas that the caller may not use. */
CREATE FUNCTION migrate._sequence_oid(full_name text) RETURNS oid
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT c.oid
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE n.nspname = (parse_ident($1))[1] AND c.relname = (parse_ident($1))[2] AND c.relkind = 'S'
$$;
COMMENT ON FUNCTION migrate._sequence_oid(text) IS
'the sequence of a quoted and qualified name, null when there is none';

/*
 * Which sequences here follow which of the source: those of schemas taken as a
 * whole and those that the job made, by name; and those of columns that a
 * mapping takes over as they are, or that stand in a table that the job made.
 * "made": nobody but the job has had a say in its value so far.
 */
CREATE FUNCTION migrate._sequence_pairs(j migrate.job)
RETURNS TABLE (sequence oid, made boolean, full_name text, increment bigint, readable boolean,
			   last_value bigint, role text)
LANGUAGE sql VOLATILE ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
	WITH source AS MATERIALIZED (
		SELECT * FROM migrate._remote_sequences($1.server)
	), made AS MATERIALIZED (
		SELECT migrate._sequence_oid(o.object) AS oid, o.object FROM migrate.made_object o
		WHERE o.job_id = $1.job_id AND o.kind = 'sequence'
	), by_name AS (
		SELECT s.full_name, migrate._sequence_oid(migrate._sequence_target($1, s.schema, s.name)) AS oid
		FROM source s
		WHERE NOT s.identity AND NOT s.extension
		  AND (EXISTS (SELECT FROM migrate.job_schema c
					   WHERE c.job_id = $1.job_id AND c.source_schema = s.schema
						 AND migrate._sequence_chosen(s.name, s.schema, s.users, s.schema, c.include, c.exclude))
			   OR migrate._sequence_target($1, s.schema, s.name) IN (SELECT m.object FROM made m))
	), columns AS (
		SELECT s.full_name, m.target_oid, t.name, m.created_target AS made
		FROM source s
		CROSS JOIN LATERAL jsonb_array_elements(s.users) u
		JOIN migrate.source_table st ON st.job_id = $1.job_id
			AND st.remote_schema = u ->> 'schema' AND st.remote_table = u ->> 'table'
		JOIN migrate.mapping m ON m.source_id = st.source_id AND m.kind IN ('identity', 'columns')
		CROSS JOIN LATERAL migrate._foreign_columns(st.foreign_table) f
		CROSS JOIN LATERAL unnest(m.target_columns) t(name)
		WHERE f.remote_name = u ->> 'column'
		  AND CASE WHEN coalesce(m.columns, '{}') ? t.name
				   THEN jsonb_typeof(m.columns -> t.name) = 'string' AND m.columns ->> t.name = f.local_name
				   ELSE t.name = f.local_name END
		UNION ALL
		SELECT s.full_name, r.target_oid, u ->> 'column', true
		FROM source s
		CROSS JOIN LATERAL jsonb_array_elements(s.users) u
		JOIN migrate.made_relation r ON r.job_id = $1.job_id
			AND r.remote_schema = u ->> 'schema' AND r.remote_table = u ->> 'table'
	), by_column AS (
		SELECT c.full_name, d.oid, c.made AND d.owned AS made
		FROM columns c
		JOIN pg_attribute a ON a.attrelid = c.target_oid AND a.attname = c.name AND a.attnum > 0
		CROSS JOIN LATERAL (
			SELECT d.objid AS oid, true AS owned
			FROM pg_depend d
			WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
			  AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
			  AND EXISTS (SELECT FROM pg_sequence q WHERE q.seqrelid = d.objid)
			UNION ALL
			SELECT d.refobjid, false
			FROM pg_attrdef ad
			JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid
			JOIN pg_sequence q ON q.seqrelid = d.refobjid
			WHERE ad.adrelid = a.attrelid AND ad.adnum = a.attnum
			  AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'n') d
	)
	SELECT p.oid, bool_or(p.made), s.full_name, s.increment, s.readable, s.last_value, s.role
	FROM (SELECT b.full_name, b.oid, b.oid IN (SELECT m.oid FROM made m WHERE m.oid IS NOT NULL) AS made FROM by_name b
		  UNION ALL
		  SELECT c.full_name, c.oid, c.made FROM by_column c) p
	JOIN source s ON s.full_name = p.full_name
	WHERE p.oid IS NOT NULL
	GROUP BY p.oid, s.full_name, s.increment, s.readable, s.last_value, s.role
	ORDER BY s.full_name, p.oid
$$;
COMMENT ON FUNCTION migrate._sequence_pairs(migrate.job) IS
'the sequences here whose values a job brings up to those of the source, each with the one that it follows, as _remote_sequences gives it';

/*
 * Never back: a value that somebody may have been given must not be given
 * again.  What counts is the next value, in the direction of the sequence; one
 * that the job made and that has not been drawn from takes any.
 */
CREATE FUNCTION migrate._advance_sequence(sequence oid, made boolean, last_value bigint, is_called boolean)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	name	text := migrate._name_of($1);
	q		pg_sequence;
	here	record;
	ahead	numeric;
BEGIN
	SELECT * INTO q FROM pg_sequence x WHERE x.seqrelid = $1;
	EXECUTE format('SELECT s.last_value, s.is_called FROM %s s', name) INTO here;
	ahead := $3::numeric + CASE WHEN $4 THEN q.seqincrement ELSE 0 END
			 - here.last_value - CASE WHEN here.is_called THEN q.seqincrement ELSE 0 END;
	IF $2 AND NOT here.is_called AND here.last_value = q.seqstart THEN
		IF $3 = here.last_value AND NOT $4 THEN
			RETURN false;
		END IF;
	ELSIF ahead * sign(q.seqincrement::numeric) <= 0 THEN
		RETURN false;
	END IF;
	PERFORM setval($1, $3, $4);
	RETURN true;
END
$$;
COMMENT ON FUNCTION migrate._advance_sequence(oid, boolean, bigint, boolean) IS
'sets a sequence to a value of the source, unless it is there already or beyond; made = the job made it. Returns whether it was set. Errors: 22003 outside its range, 42501 no SELECT or UPDATE on it';

/*
 * last_value of a sequence that was not drawn from can only be read from
 * itself (setval may have set it): these are asked by the hundred.
 */
CREATE FUNCTION migrate._remote_positions(server oid, full_names text[])
RETURNS TABLE (full_name text, last_value bigint, is_called boolean)
LANGUAGE sql VOLATILE ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT r ->> 'name', (r ->> 'last_value')::bigint, (r ->> 'is_called')::boolean
	FROM (SELECT string_agg(format('SELECT %L AS name, s.last_value, s.is_called FROM %s s', n.name, n.name), ' UNION ALL ') AS query
		  FROM (SELECT x AS name, (row_number() OVER (ORDER BY x) - 1) / 200 AS batch
				FROM (SELECT DISTINCT unnest($2) AS x) u) n
		  GROUP BY n.batch) b
	CROSS JOIN LATERAL migrate._remote_query($1, b.query) AS r
$$;
COMMENT ON FUNCTION migrate._remote_positions(oid, text[]) IS
'last_value and is_called of sequences of the source, given by their quoted and qualified names';

CREATE FUNCTION migrate._set_sequences(job_id int) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job;
	pairs	jsonb;
	missing	record;
	p		record;
	done	int := 0;
	wrong	text[] := '{}';
	remedy	text[] := '{}';
	state	text;
BEGIN
	SELECT * INTO j FROM migrate.job x WHERE x.job_id = $1;
	IF NOT FOUND OR NOT migrate._is_postgres_fdw(j.server) THEN
		RETURN 0;
	END IF;
	SELECT jsonb_agg(to_jsonb(x)) INTO pairs FROM migrate._sequence_pairs(j) x;
	SELECT string_agg(DISTINCT x ->> 'full_name', ', ') AS names, count(DISTINCT x ->> 'full_name') AS n,
		   min(x ->> 'role') AS role,
		   string_agg(DISTINCT quote_ident((parse_ident(x ->> 'full_name'))[1]), ', ') AS schemas INTO missing
	FROM jsonb_array_elements(pairs) x WHERE NOT (x ->> 'readable')::boolean;
	IF missing.n > 0 THEN
		RAISE EXCEPTION USING ERRCODE = '42501',
			MESSAGE = format('permission denied on the source for %s %s',
							 CASE missing.n WHEN 1 THEN 'sequence' ELSE 'sequences' END, missing.names),
			HINT = format('On the source: GRANT USAGE ON SCHEMA %s TO %I; GRANT SELECT ON SEQUENCE %s TO %2$I;',
						  missing.schemas, missing.role, missing.names);
	END IF;

	FOR p IN
		SELECT (x ->> 'sequence')::oid AS sequence, (x ->> 'made')::boolean AS made, x ->> 'full_name' AS full_name,
			   sign((x ->> 'increment')::numeric) <> sign(q.seqincrement::numeric) AS contrary,
			   coalesce((x ->> 'last_value')::bigint, r.last_value) AS last_value,
			   x ->> 'last_value' IS NOT NULL OR r.is_called AS is_called
		FROM jsonb_array_elements(pairs) x
		JOIN pg_sequence q ON q.seqrelid = (x ->> 'sequence')::oid
		LEFT JOIN migrate._remote_positions(j.server, ARRAY(
			SELECT y ->> 'full_name' FROM jsonb_array_elements(pairs) y WHERE y ->> 'last_value' IS NULL)) r
			ON r.full_name = x ->> 'full_name'
		ORDER BY x ->> 'full_name', q.seqrelid
	LOOP
		BEGIN
			IF p.contrary THEN
				RAISE WARNING USING ERRCODE = '01000',
					MESSAGE = format('sequence %s is left as it is', migrate._name_of(p.sequence)),
					DETAIL = format('It runs in the other direction than %s on the source.', p.full_name);
			ELSIF migrate._advance_sequence(p.sequence, p.made, p.last_value, p.is_called) THEN
				done := done + 1;
			END IF;
		EXCEPTION
			WHEN numeric_value_out_of_range THEN
				state := coalesce(state, SQLSTATE);
				wrong := wrong || format('value %s of sequence %s on the source is outside the range of %s',
										 p.last_value, p.full_name, migrate._name_of(p.sequence));
				remedy := remedy || format('Widen it, for example: ALTER SEQUENCE %s AS bigint NO MINVALUE NO MAXVALUE;',
										   migrate._name_of(p.sequence));
			WHEN insufficient_privilege THEN
				state := coalesce(state, SQLSTATE);
				wrong := wrong || SQLERRM;
				remedy := remedy
						  || ARRAY(SELECT format('GRANT USAGE ON SCHEMA %I TO %s;', n.nspname, current_user::regrole)
								   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
								   WHERE c.oid = p.sequence AND NOT has_schema_privilege(n.oid, 'USAGE'))
						  || format('GRANT SELECT, UPDATE ON SEQUENCE %s TO %s;',
									migrate._name_of(p.sequence), current_user::regrole);
		END;
	END LOOP;
	-- the others keep what they got: setval is not undone
	IF wrong <> '{}' THEN
		RAISE EXCEPTION USING ERRCODE = state,
			MESSAGE = CASE cardinality(wrong) WHEN 1 THEN wrong[1]
					  ELSE format('%s sequences cannot be set', cardinality(wrong)) END,
			DETAIL = CASE cardinality(wrong) WHEN 1 THEN 'All other sequences are set.'
					 ELSE array_to_string(wrong, '; ') || '. All others are set.' END,
			HINT = array_to_string(remedy, ' ');
	END IF;
	RETURN done;
END
$$;
COMMENT ON FUNCTION migrate._set_sequences(int) IS
'brings the sequences of a job to their values on the source: those that it made, those of schemas that it takes as a whole, and those of columns that it fills as they are. None goes back. Returns how many were set. Errors: 42501 one may not be read there or set here, 22003 a value is outside the range here; the others are set all the same';
