/*
 * Types and collations of the source that are missing here: enums, domains,
 * composite and range types with all that is on them.  They get the schema and
 * name that they have on the source, since foreign tables refer to them so;
 * one of that name that is here is used as it is.
 *
 * One remote query gives what is wanted, what that is made of, and what refers
 * to what.  Arrays and multiranges are looked through: they come with their
 * element and their range.
 */

/*
 * "seed" is a query that gives pairs (type, collation), either may be 0.  A
 * part's parents are the types here that are made of it; parent 0 is the seed.
 */
CREATE FUNCTION migrate._remote_types(server oid, seed text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	found_types	jsonb;
BEGIN
	SELECT jsonb_object_agg(r ->> 'key', r || jsonb_build_object('parents', (r ->> 'parents')::jsonb))
	INTO found_types
	FROM migrate._remote_query($1, $q$
		WITH RECURSIVE used(parent, typ, coll) AS (
			SELECT 0::oid, s.typ, s.coll FROM ($q$ || $2 || $q$) s(typ, coll)
			UNION
			SELECT CASE WHEN t.typtype = 'm' OR e.oid IS NOT NULL THEN u.parent ELSE t.oid END,
				   part.typ, part.coll
			FROM used u
			JOIN pg_type t ON t.oid = u.typ
			LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
			CROSS JOIN LATERAL (
				SELECT e.oid, 0::oid WHERE e.oid IS NOT NULL
				UNION ALL
				SELECT t.typbasetype, t.typcollation WHERE t.typtype = 'd'
				UNION ALL
				SELECT a.atttypid, a.attcollation FROM pg_attribute a
				WHERE t.typtype = 'c' AND a.attrelid = t.typrelid
				  AND a.attnum > 0 AND NOT a.attisdropped
				UNION ALL
				SELECT g.rngsubtype, g.rngcollation FROM pg_range g
				WHERE t.typtype = 'r' AND g.rngtypid = t.oid
				UNION ALL
				SELECT g.rngtypid, 0::oid FROM pg_range g
				WHERE t.typtype = 'm' AND (to_jsonb(g) ->> 'rngmultitypid')::oid = t.oid
				UNION ALL
				-- what the expressions of a domain name
				SELECT CASE d.refclassid WHEN 'pg_type'::regclass THEN d.refobjid ELSE 0 END,
					   CASE d.refclassid WHEN 'pg_collation'::regclass THEN d.refobjid ELSE 0 END
				FROM pg_depend d
				WHERE t.typtype = 'd' AND d.deptype = 'n'
				  AND d.refclassid IN ('pg_type'::regclass, 'pg_collation'::regclass)
				  AND d.refobjid <> t.oid
				  AND (d.classid = 'pg_type'::regclass AND d.objid = t.oid
					   OR d.classid = 'pg_constraint'::regclass
						  AND d.objid IN (SELECT k.oid FROM pg_constraint k WHERE k.contypid = t.oid))
			) part(typ, coll)
			WHERE t.typnamespace <> 'pg_catalog'::regnamespace OR e.oid IS NOT NULL
		)
		SELECT 't' || t.oid AS key, u.parents, t.typtype::text AS kind, n.nspname AS schema, t.typname AS name,
			   c.relkind,
			   (SELECT x.extname FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
				WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid
				  AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e') AS extension,
			   obj_description(t.oid, 'pg_type') AS comment,
			   CASE t.typtype
			   WHEN 'e' THEN
				(SELECT json_build_object('labels', json_agg(l.enumlabel ORDER BY l.enumsortorder))
				 FROM pg_enum l WHERE l.enumtypid = t.oid)
			   WHEN 'd' THEN
				json_build_object(
					'base', format_type(t.typbasetype, t.typtypmod),
					'default', pg_get_expr(t.typdefaultbin, 'pg_type'::regclass),
					'collation', (SELECT json_build_array(cn.nspname, co.collname)
								  FROM pg_type b, pg_collation co
								  JOIN pg_namespace cn ON cn.oid = co.collnamespace
								  WHERE b.oid = t.typbasetype AND b.typcollation <> t.typcollation
									AND co.oid = t.typcollation),
					'notnull', t.typnotnull,
					-- from 17 on it has a name
					'notnull_name', (SELECT k.conname FROM pg_constraint k
									 WHERE k.contypid = t.oid AND k.contype = 'n'),
					'checks', (SELECT json_agg(json_build_array(k.conname, pg_get_constraintdef(k.oid),
																k.convalidated) ORDER BY k.conname)
							   FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'),
					'comments', (SELECT json_agg(json_build_array(k.conname, m.description) ORDER BY k.conname)
								 FROM pg_constraint k
								 JOIN pg_description m ON m.classoid = 'pg_constraint'::regclass AND m.objoid = k.oid
								 WHERE k.contypid = t.oid),
					-- as they stand in the default
					'sequences', (SELECT json_agg(json_build_array(sn.nspname, s.relname, s.oid::regclass::text)
												  ORDER BY sn.nspname, s.relname)
								  FROM pg_depend d
								  JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
								  JOIN pg_namespace sn ON sn.oid = s.relnamespace
								  WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid
									AND d.refclassid = 'pg_class'::regclass))
			   WHEN 'c' THEN
				(SELECT json_build_object('attributes', json_agg(json_build_array(
							a.attname, format_type(a.atttypid, a.atttypmod),
							CASE WHEN a.attcollation <> p.typcollation
								 THEN json_build_array(cn.nspname, co.collname) END,
							col_description(a.attrelid, a.attnum)) ORDER BY a.attnum))
				 FROM pg_attribute a
				 JOIN pg_type p ON p.oid = a.atttypid
				 LEFT JOIN pg_collation co ON co.oid = a.attcollation
				 LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
				 WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
			   WHEN 'r' THEN
				(SELECT json_build_object(
							'subtype', format_type(g.rngsubtype, NULL),
							'opclass', (SELECT json_build_array(x.nspname, o.opcname)
										FROM pg_opclass o JOIN pg_namespace x ON x.oid = o.opcnamespace
										WHERE o.oid = g.rngsubopc AND NOT o.opcdefault),
							'collation', (SELECT json_build_array(x.nspname, o.collname)
										  FROM pg_type b, pg_collation o
										  JOIN pg_namespace x ON x.oid = o.collnamespace
										  WHERE b.oid = g.rngsubtype AND o.oid = g.rngcollation
											AND b.typcollation <> g.rngcollation),
							'canonical', (SELECT json_build_array(x.nspname, p.proname)
										  FROM pg_proc p JOIN pg_namespace x ON x.oid = p.pronamespace
										  WHERE p.oid = g.rngcanonical),
							'diff', (SELECT json_build_array(x.nspname, p.proname)
									 FROM pg_proc p JOIN pg_namespace x ON x.oid = p.pronamespace
									 WHERE p.oid = g.rngsubdiff),
							'multirange', json_build_array(mn.nspname, mt.typname),
							'multirange_comment', obj_description(mt.oid, 'pg_type'))
				 FROM pg_range g
				 LEFT JOIN pg_type mt ON mt.oid = (to_jsonb(g) ->> 'rngmultitypid')::oid
				 LEFT JOIN pg_namespace mn ON mn.oid = mt.typnamespace
				 WHERE g.rngtypid = t.oid)
			   END AS about
		FROM (SELECT typ, json_agg(DISTINCT 't' || parent) AS parents FROM used GROUP BY typ) u
		JOIN pg_type t ON t.oid = u.typ
		JOIN pg_namespace n ON n.oid = t.typnamespace
		LEFT JOIN pg_class c ON c.oid = t.typrelid
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND t.typtype <> 'm'
		  AND NOT EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid)
		UNION ALL
		SELECT 'c' || co.oid, u.parents, 'collation', n.nspname, co.collname, NULL,
			   (SELECT x.extname FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
				WHERE d.classid = 'pg_collation'::regclass AND d.objid = co.oid
				  AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'),
			   obj_description(co.oid, 'pg_collation'),
			   json_build_object(
				'provider', co.collprovider, 'deterministic', co.collisdeterministic,
				'collate', co.collcollate, 'ctype', co.collctype,
				'locale', coalesce(to_jsonb(co) ->> 'colllocale', to_jsonb(co) ->> 'colliculocale',
								   co.collcollate),
				'rules', to_jsonb(co) ->> 'collicurules')
		FROM (SELECT coll, json_agg(DISTINCT 't' || parent) AS parents FROM used GROUP BY coll) u
		JOIN pg_collation co ON co.oid = u.coll
		JOIN pg_namespace n ON n.oid = co.collnamespace
	$q$) AS r
	WHERE CASE r ->> 'kind' WHEN 'collation' THEN to_regcollation(format('%I.%I', r ->> 'schema', r ->> 'name')) IS NULL
							-- to_regtype() of 15 does not like shell types
							ELSE NOT EXISTS (SELECT FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
											 WHERE n.nspname = r ->> 'schema' AND t.typname = r ->> 'name'
											   AND t.typisdefined) END;

	-- parts of a type that is here, however it was made, are not missing
	WITH RECURSIVE missing(key) AS (
		SELECT 't0'
		UNION
		SELECT e.key
		FROM missing m
		JOIN (SELECT t.key, p AS parent
			  FROM jsonb_each(found_types) t, jsonb_array_elements_text(t.value -> 'parents') p) e
			ON e.parent = m.key
	)
	SELECT coalesce(jsonb_object_agg(e.key, e.value), '{}') INTO found_types
	FROM jsonb_each(found_types) e
	WHERE e.key IN (SELECT m.key FROM missing m);
	RETURN found_types;
END
$$;
COMMENT ON FUNCTION migrate._remote_types(oid, text) IS
'the types and collations that are missing here, of those that a query on the source names (type, collation) and what these are made of: an object of key -> description';

/* Collations are taken over where they exist here and fit the encoding. */
CREATE FUNCTION migrate._collate_clause(collation_name jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce((
		SELECT format(' COLLATE %I.%I', n.nspname, c.collname)
		FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
		WHERE n.nspname = $1 ->> 0 AND c.collname = $1 ->> 1
		  AND c.collencoding IN (-1, (SELECT d.encoding FROM pg_database d
									  WHERE d.datname = current_database()))
		LIMIT 1), '')
$$;
COMMENT ON FUNCTION migrate._collate_clause(jsonb) IS
'COLLATE clause for [schema, name] of the source, empty when there is no such collation here';

CREATE FUNCTION migrate._collation_ddl(collation_def jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('CREATE COLLATION %s (PROVIDER = %s, ', n.name,
				  CASE a ->> 'provider' WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END)
		   || CASE WHEN a ->> 'provider' = 'c' AND a ->> 'collate' <> a ->> 'ctype'
				   THEN format('LC_COLLATE = %L, LC_CTYPE = %L', a ->> 'collate', a ->> 'ctype')
				   ELSE format('LOCALE = %L', a ->> 'locale') END
		   || CASE WHEN (a ->> 'deterministic')::boolean THEN '' ELSE ', DETERMINISTIC = false' END
		   || coalesce(', RULES = ' || quote_literal(a ->> 'rules'), '')
		   || ')'
		   || coalesce(format('; COMMENT ON COLLATION %s IS ', n.name) || quote_literal($1 ->> 'comment'), '')
	FROM (SELECT ($1 ->> 'about')::jsonb AS a, format('%I.%I', $1 ->> 'schema', $1 ->> 'name') AS name) n
$$;
COMMENT ON FUNCTION migrate._collation_ddl(jsonb) IS
'CREATE COLLATION, and its comment, for a collation as _remote_types describes it';

/*
 * In an expression of the source, the sequences that it names by their names
 * here: [schema, name, as it stands there].  They stand as regclass constants.
 */
CREATE FUNCTION migrate._rename_sequences(expression text, sequences jsonb, j migrate.job) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	result	text := $1;
	s		jsonb;
BEGIN
	FOR s IN SELECT e FROM jsonb_array_elements(CASE jsonb_typeof($2) WHEN 'array' THEN $2 ELSE '[]' END) e
	LOOP
		-- the source writes backslashes as they are, as with standard_conforming_strings
		result := replace(result,
						  '''' || replace(s ->> 2, '''', '''''') || '''::regclass',
						  quote_literal(migrate._sequence_target($3, s ->> 0, s ->> 1)) || '::regclass');
	END LOOP;
	RETURN result;
END
$$;
COMMENT ON FUNCTION migrate._rename_sequences(text, jsonb, migrate.job) IS
'an expression of the source with the sequences in it, given as [[schema, name, as it stands there], ...], by their names here';

/*
 * Checks that were added NOT VALID cannot be made with the domain.
 */
CREATE FUNCTION migrate._domain_ddl(name text, about jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	WITH con AS (
		SELECT format('CONSTRAINT %I %s', c.con ->> 0, c.con ->> 1) AS clause,
			   (c.con ->> 2)::boolean AS valid, c.pos
		FROM jsonb_array_elements(CASE jsonb_typeof($2 -> 'checks') WHEN 'array' THEN $2 -> 'checks' ELSE '[]' END)
			 WITH ORDINALITY c(con, pos)
	)
	SELECT format('CREATE DOMAIN %s AS %s', $1, $2 ->> 'base')
		   || migrate._collate_clause($2 -> 'collation')
		   || coalesce(' DEFAULT ' || ($2 ->> 'default'), '')
		   || CASE WHEN ($2 ->> 'notnull')::boolean
				   THEN coalesce(' CONSTRAINT ' || quote_ident($2 ->> 'notnull_name'), '') || ' NOT NULL'
				   ELSE '' END
		   || coalesce((SELECT string_agg(' ' || c.clause, '' ORDER BY c.pos) FROM con c WHERE c.valid), '')
		   || coalesce((SELECT string_agg(format('; ALTER DOMAIN %s ADD %s', $1, c.clause), '' ORDER BY c.pos)
						FROM con c WHERE NOT c.valid), '')
		   || coalesce((SELECT string_agg(format('; COMMENT ON CONSTRAINT %I ON DOMAIN %s IS %L', c ->> 0, $1, c ->> 1), '')
						FROM jsonb_array_elements(CASE jsonb_typeof($2 -> 'comments')
												  WHEN 'array' THEN $2 -> 'comments' ELSE '[]' END) c), '')
$$;
COMMENT ON FUNCTION migrate._domain_ddl(text, jsonb) IS
'CREATE DOMAIN, with what has to follow it, for a quoted name and what _remote_types says about the domain';

CREATE FUNCTION migrate._type_ddl(type jsonb, j migrate.job) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE $1 ->> 'kind'
		WHEN 'e' THEN
			format('CREATE TYPE %s AS ENUM (%s)', n.name,
				   (SELECT string_agg(quote_literal(l.label), ', ' ORDER BY l.pos)
					FROM jsonb_array_elements_text(CASE jsonb_typeof(a -> 'labels') WHEN 'array' THEN a -> 'labels' ELSE '[]' END)
						 WITH ORDINALITY l(label, pos)))
		WHEN 'c' THEN
			(SELECT format('CREATE TYPE %s AS (%s)', n.name,
						   string_agg(format('%I %s', c.att ->> 0, c.att ->> 1)
									  || migrate._collate_clause(c.att -> 2), ', ' ORDER BY c.pos))
					|| coalesce(string_agg(format('; COMMENT ON COLUMN %s.%I IS %L', n.name, c.att ->> 0, c.att ->> 3), ''
												  ORDER BY c.pos) FILTER (WHERE c.att ->> 3 IS NOT NULL), '')
			 FROM jsonb_array_elements(CASE jsonb_typeof(a -> 'attributes') WHEN 'array' THEN a -> 'attributes' ELSE '[]' END)
				  WITH ORDINALITY c(att, pos))
		WHEN 'r' THEN
			format('CREATE TYPE %s AS RANGE (SUBTYPE = %s', n.name, a ->> 'subtype')
			|| coalesce((SELECT string_agg(format(', %s = %I.%I', o.name, a -> o.key ->> 0, a -> o.key ->> 1), '' ORDER BY o.pos)
						 FROM (VALUES (1, 'SUBTYPE_OPCLASS', 'opclass'), (2, 'COLLATION', 'collation'),
									  (3, 'CANONICAL', 'canonical'), (4, 'SUBTYPE_DIFF', 'diff'),
									  (5, 'MULTIRANGE_TYPE_NAME', 'multirange')) o(pos, name, key)
						 WHERE a -> o.key ->> 1 IS NOT NULL), '')
			|| ')'
			|| CASE WHEN a ->> 'multirange_comment' IS NULL THEN ''
					ELSE format('; COMMENT ON TYPE %I.%I IS %L', a -> 'multirange' ->> 0, a -> 'multirange' ->> 1,
								a ->> 'multirange_comment') END
		ELSE
			migrate._domain_ddl(n.name, a || jsonb_build_object('default',
				migrate._rename_sequences(a ->> 'default', a -> 'sequences', $2)))
		END
		|| coalesce(format('; COMMENT ON %s %s IS ', CASE $1 ->> 'kind' WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, n.name)
					|| quote_literal($1 ->> 'comment'), '')
	FROM (SELECT ($1 ->> 'about')::jsonb AS a, format('%I.%I', $1 ->> 'schema', $1 ->> 'name') AS name) n
$$;
COMMENT ON FUNCTION migrate._type_ddl(jsonb, migrate.job) IS
'CREATE TYPE or CREATE DOMAIN, with its comments, for a type as _remote_types describes it';

/*
 * A collation depends on what the operating system or ICU has: one that cannot
 * be made does not hold up the tables.  Ranges do need theirs, and say so.
 */
CREATE FUNCTION migrate._make_collations(job_id int, types jsonb) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	c		jsonb;
	made	int := 0;
	reason	text;
BEGIN
	FOR c IN SELECT e.value FROM jsonb_each($2) e
			 WHERE e.value ->> 'kind' = 'collation'
			 ORDER BY e.value ->> 'schema', e.value ->> 'name'
	LOOP
		reason := NULL;
		IF c ->> 'schema' IN ('pg_catalog', 'information_schema') THEN
			reason := 'It is a collation of the server there, and this server does not have it.';
		ELSE
			PERFORM migrate._make_schema($1, c ->> 'schema', false);
			BEGIN
				PERFORM migrate._make($1, 'collation', format('%I.%I', c ->> 'schema', c ->> 'name'), false,
									  migrate._collation_ddl(c));
				made := made + 1;
			EXCEPTION WHEN invalid_parameter_value OR feature_not_supported OR undefined_object OR syntax_error
				OR invalid_object_definition OR wrong_object_type OR internal_error THEN
				reason := SQLERRM || '.';
			END;
		END IF;
		IF reason IS NOT NULL THEN
			RAISE WARNING USING ERRCODE = '01000',
				MESSAGE = format('collation "%s"."%s" is missing here, what has it is made with the default collation',
								 c ->> 'schema', c ->> 'name'),
				DETAIL = reason,
				HINT = CASE c ->> 'schema' WHEN 'pg_catalog'
					   THEN 'Install its locale on this server, then SELECT pg_import_system_collations(''pg_catalog''), and define the job anew.'
					   ELSE 'Make a collation of that name by hand, and define the job anew.' END;
		END IF;
	END LOOP;
	RETURN made;
END
$$;
COMMENT ON FUNCTION migrate._make_collations(int, jsonb) IS
'makes the collations among what _remote_types gives; one that cannot be made here gives a warning. Returns how many were made';

/* Errors for a type that only a person, or CREATE EXTENSION, can make. */
CREATE FUNCTION migrate._check_type(type jsonb) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF $1 ->> 'extension' IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42704',
			MESSAGE = format('type "%s"."%s" of extension "%s" is missing here', $1 ->> 'schema', $1 ->> 'name', $1 ->> 'extension'),
			HINT = format('CREATE SCHEMA IF NOT EXISTS %I; CREATE EXTENSION %I SCHEMA %1$I;', $1 ->> 'schema', $1 ->> 'extension');
	ELSIF $1 ->> 'kind' NOT IN ('e', 'd', 'c', 'r') OR coalesce($1 ->> 'relkind', 'c') <> 'c' THEN
		RAISE EXCEPTION USING ERRCODE = '0A000',
			MESSAGE = format('type "%s"."%s" is missing here and cannot be made by the import', $1 ->> 'schema', $1 ->> 'name'),
			DETAIL = CASE WHEN $1 ->> 'relkind' IS NULL THEN 'It is a base type, which is made with functions in C.'
						  ELSE 'It is the row type of a table.' END,
			HINT = CASE WHEN $1 ->> 'relkind' IS NULL THEN 'Make it by hand (pg_dump --schema-only shows how), or exclude the tables that use it.'
						ELSE 'Make that table here first (pg_dump --section=pre-data shows how), or exclude the tables that use its type.' END;
	ELSIF octet_length($1 ->> 'name') > 63 OR octet_length($1 ->> 'schema') > 63 THEN
		RAISE EXCEPTION USING ERRCODE = '42622',
			MESSAGE = format('name of type "%s"."%s" is longer than 63 bytes in the encoding of this database',
							 $1 ->> 'schema', $1 ->> 'name'),
			HINT = 'Rename it on the source, or exclude the tables that use it.';
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._check_type(jsonb) IS
'errors for a type that cannot be made: 42704 of an extension that is missing here, 0A000 a base type or the row type of a table, 42622 its name is too long here';

/*
 * One type.  Expressions and ranges name functions, operators and classes,
 * which are not moved.
 */
CREATE FUNCTION migrate._make_type(j migrate.job, type jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	kind	text := CASE $2 ->> 'kind' WHEN 'd' THEN 'domain' ELSE 'type' END;
	name	text := format('%I.%I', $2 ->> 'schema', $2 ->> 'name');
	ddl		text;
BEGIN
	PERFORM migrate._make_schema($1.job_id, s, false)
	FROM unnest(ARRAY[$2 ->> 'schema', ($2 ->> 'about')::jsonb -> 'multirange' ->> 0]) s
	WHERE s IS NOT NULL;
	ddl := migrate._type_ddl($2, $1);
	BEGIN
		PERFORM migrate._make($1.job_id, kind, name, false, ddl);
	EXCEPTION WHEN undefined_function OR undefined_object OR undefined_table OR invalid_schema_name
		OR ambiguous_function OR wrong_object_type OR invalid_object_definition THEN
		RAISE EXCEPTION USING ERRCODE = SQLSTATE,
			MESSAGE = format('%s %s cannot be made here: %s', kind, name, SQLERRM),
			DETAIL = format('The statement is: %s', ddl),
			HINT = format('Functions and operators are not moved. Make what it needs first, or the whole schema: pg_dump --section=pre-data --schema=%s moves them with the types and tables, which are then used as they are.',
						  quote_ident($2 ->> 'schema'));
	END;
END
$$;
COMMENT ON FUNCTION migrate._make_type(migrate.job, jsonb) IS
'makes a type as _remote_types describes it, recorded beforehand. Errors: those of CREATE TYPE, with what to do when something that it needs is missing';

/*
 * Made in the order of their dependencies: each turn of the loop makes those
 * whose parts are there.
 */
CREATE FUNCTION migrate._make_types(job_id int, types jsonb) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job;
	wanted	jsonb;
	ready	text[];
	made	int;
	t		jsonb;
	k		text;
BEGIN
	SELECT * INTO j FROM migrate.job x WHERE x.job_id = $1;
	SELECT coalesce(jsonb_object_agg(e.key, e.value), '{}') INTO wanted
	FROM jsonb_each($2) e WHERE e.value ->> 'kind' <> 'collation';
	FOR t IN SELECT e.value FROM jsonb_each(wanted) e ORDER BY e.value ->> 'schema', e.value ->> 'name'
	LOOP
		PERFORM migrate._check_type(t);
	END LOOP;
	made := migrate._make_collations($1, $2);
	PERFORM migrate._make_sequences(j, s.source_schema, s.names)
	FROM (SELECT s ->> 0 AS source_schema, array_agg(DISTINCT s ->> 1) AS names
		  FROM jsonb_each(wanted) e, jsonb_array_elements(
				CASE WHEN e.value ->> 'kind' = 'd' AND jsonb_typeof((e.value ->> 'about')::jsonb -> 'sequences') = 'array'
					 THEN (e.value ->> 'about')::jsonb -> 'sequences' ELSE '[]' END) s
		  GROUP BY 1 ORDER BY 1) s;

	WHILE wanted <> '{}'
	LOOP
		SELECT array_agg(e.key ORDER BY e.value ->> 'schema', e.value ->> 'name') INTO ready
		FROM jsonb_each(wanted) e
		WHERE e.key NOT IN (SELECT p FROM jsonb_each(wanted) x, jsonb_array_elements_text(x.value -> 'parents') p);
		IF ready IS NULL THEN
			RAISE EXCEPTION USING ERRCODE = '0A000',
				MESSAGE = 'types of the source refer to each other in a circle',
				HINT = 'Make them by hand (pg_dump --schema-only shows how).';
		END IF;
		FOREACH k IN ARRAY ready
		LOOP
			PERFORM migrate._make_type(j, wanted -> k);
			made := made + 1;
		END LOOP;
		wanted := wanted - ready;
	END LOOP;
	RETURN made;
END
$$;
COMMENT ON FUNCTION migrate._make_types(int, jsonb) IS
'makes what _remote_types gives, and the sequences that defaults of domains draw from; returns how many types and collations. Errors: as _check_type and _make_type; 0A000 types that refer to each other';

CREATE FUNCTION migrate._import_types(job_id int, server oid, source_schema text, tables text[])
RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	RETURN migrate._make_types($1, migrate._remote_types($2, format($q$
		SELECT a.atttypid, a.attcollation
		FROM pg_attribute a
		JOIN pg_class c ON c.oid = a.attrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = %1$L AND c.relname = ANY (%2$L::text[])
		  AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
		  AND a.attnum > 0 AND NOT a.attisdropped
		UNION ALL
		SELECT c.reloftype, 0
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = %1$L AND c.relname = ANY (%2$L::text[]) AND c.reloftype <> 0
	$q$, $3, $4)));
END
$$;
COMMENT ON FUNCTION migrate._import_types(int, oid, text, text[]) IS
'makes the types and collations that columns of source tables have and that are missing here; returns how many. A collation that cannot be made gives a warning. Errors: 42704 the type belongs to an extension that is missing; 0A000 a base type, or the row type of a table; 42622 a name too long here; 42883, 42704, 42P01 it needs a function or another object that is missing here';

/*
 * A schema's types as a whole.  What belongs to extensions comes with these,
 * and a base type hinders only what is made of it.
 */
CREATE FUNCTION migrate._import_schema_types(job_id int, server oid, source_schema text) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	types	jsonb;
	t		record;
BEGIN
	types := migrate._remote_types($2, format($q$
		SELECT t.oid, 0::oid
		FROM pg_type t
		JOIN pg_namespace n ON n.oid = t.typnamespace
		LEFT JOIN pg_class c ON c.oid = t.typrelid
		WHERE n.nspname = %1$L AND t.typisdefined
		  AND (t.typtype IN ('e', 'd', 'r') OR t.typtype = 'c' AND c.relkind = 'c'
			   OR t.typtype = 'b' AND NOT EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid))
		  AND NOT EXISTS (SELECT FROM pg_depend d
						  WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
		UNION ALL
		SELECT 0, co.oid
		FROM pg_collation co JOIN pg_namespace n ON n.oid = co.collnamespace
		WHERE n.nspname = %1$L
		  AND co.collencoding IN (-1, (SELECT d.encoding FROM pg_database d WHERE d.datname = current_database()))
		  AND NOT EXISTS (SELECT FROM pg_depend d
						  WHERE d.classid = 'pg_collation'::regclass AND d.objid = co.oid AND d.deptype = 'e')
	$q$, $3));
	FOR t IN SELECT e.key, e.value ->> 'name' AS name FROM jsonb_each(types) e
			 WHERE e.value ->> 'kind' = 'b' AND e.value ->> 'extension' IS NULL AND e.value -> 'parents' = '["t0"]'
			 ORDER BY 2
	LOOP
		RAISE WARNING USING ERRCODE = '01000',
			MESSAGE = format('type "%s"."%s" is not moved', $3, t.name),
			DETAIL = 'It is a base type, which is made with functions in C.',
			HINT = 'Make it by hand if it is needed (pg_dump --schema-only shows how).';
		types := types - t.key;
	END LOOP;
	RETURN migrate._make_types($1, types);
END
$$;
COMMENT ON FUNCTION migrate._import_schema_types(int, oid, text) IS
'makes the enums, domains, composite and range types and the collations of a schema on the source that are missing here, and what they are made of; returns how many. A collation that cannot be made, and a base type, give a warning. Errors: as _import_types';
