/*
 * Mappings: which source table goes where, compiled to one query.
 *
 * A mapping is stored as SELECT /*migrate*/ <target columns> FROM
 * /*migrate*/ source ...: both markers occur once and are placed here, so that
 * each feeder can put its own relation in the place of "source" and ask for
 * key values besides.  Functions are called as f(source.*), since a column
 * may have the name "source", and the columns of their rows get names that no
 * expression of the DBA can mean by accident.
 */

CREATE FUNCTION migrate._split_name(name text, what text) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	parts	text[];
BEGIN
	BEGIN
		parts := parse_ident($1);
	EXCEPTION WHEN invalid_parameter_value OR null_value_not_allowed THEN
		NULL;
	END;
	IF parts IS NULL OR cardinality(parts) > 2 THEN
		RAISE EXCEPTION USING ERRCODE = '42602',
			MESSAGE = format('%s is not a valid name of a %s', coalesce(quote_literal($1), 'null'), $2),
			HINT = 'Write schema.table, each part in double quotes where SQL asks for them.';
	END IF;
	RETURN parts;
END
$$;
COMMENT ON FUNCTION migrate._split_name(text, text) IS
'a name as its one or two parts. Errors: 42602 not a name';

/*
 * What a name means under a search_path.  Nothing but qualified calls may
 * follow the switch.
 */
CREATE FUNCTION migrate._resolve(name text, path text) RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM pg_catalog.set_config('search_path', $2, true);
	RETURN pg_catalog.to_regclass($1);
END
$$;
COMMENT ON FUNCTION migrate._resolve(text, text) IS
'the relation that a name means under a search_path, null when there is none';

CREATE FUNCTION migrate._first_schema(path text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM pg_catalog.set_config('search_path', $1, true);
	RETURN pg_catalog.current_schema();
END
$$;
COMMENT ON FUNCTION migrate._first_schema(text) IS
'the schema in which new tables are made under a search_path, null when none of it exists';

CREATE FUNCTION migrate._execute_under(path text, statement text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM pg_catalog.set_config('search_path', $1, true);
	EXECUTE $2;
END
$$;
COMMENT ON FUNCTION migrate._execute_under(text, text) IS
'runs a statement under a search_path';

/* %I.%I of a relation, as names are shown everywhere. */
CREATE FUNCTION migrate._name_of(relation oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('%I.%I', n.nspname, c.relname)
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.oid = $1
$$;
COMMENT ON FUNCTION migrate._name_of(oid) IS
'quoted and qualified name of a relation, null when it is gone';

/* Columns a statement may write to or read from. */
CREATE FUNCTION migrate._columns_of(relation oid)
RETURNS TABLE (name text, attnum int2, type_oid oid, typmod int4, generated boolean, required boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT a.attname::text, a.attnum, a.atttypid, a.atttypmod, a.attgenerated <> '',
		   a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
	FROM pg_attribute a
	WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
$$;
COMMENT ON FUNCTION migrate._columns_of(oid) IS
'the columns of a relation; required: NOT NULL without a default';

/*
 * An expression of the DBA over the source row.  JSON numbers and booleans
 * are constants, a string that names a column is that column.
 */
CREATE FUNCTION migrate._expression(value jsonb, foreign_table oid, what text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	given	text := $1 #>> '{}';
BEGIN
	CASE jsonb_typeof($1)
		WHEN 'number' THEN
			RETURN CASE WHEN given LIKE '-%' THEN format('(%s)', given) ELSE given END;
		WHEN 'boolean' THEN
			RETURN given;
		WHEN 'string' THEN
			IF EXISTS (SELECT FROM migrate._columns_of($2) c WHERE c.name = given) THEN
				RETURN format('source.%I', given);
			END IF;
			RETURN migrate._parenthesized(given);
		ELSE
			RAISE EXCEPTION USING ERRCODE = '22023',
				MESSAGE = format('%s must be an expression, not %s', $3, $1),
				HINT = 'Write a string with a column or an SQL expression over the source row, or a number or boolean as constant.';
	END CASE;
END
$$;
COMMENT ON FUNCTION migrate._expression(jsonb, oid, text) IS
'SQL text of an expression given as JSON. Errors: 22023 an array, object or null';

/* The line break ends a comment that the DBA may have left at the end. */
CREATE FUNCTION migrate._parenthesized(expression text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT '(' || $1 || CASE WHEN strpos($1, '--') > 0 THEN E'\n' ELSE '' END || ')'
$$;
COMMENT ON FUNCTION migrate._parenthesized(text) IS 'an expression in parentheses';

/*
 * Let the parser say what is wrong with an expression, with the words of the
 * call around it.  "condition": it must be boolean.  Nothing is read: the
 * planner sees that the condition is never true.
 */
CREATE FUNCTION migrate._check_expression(what text, expression text, relation oid, alias text,
										  condition boolean, path text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	hint	text;
BEGIN
	IF strpos($2, '/*' || 'migrate*/') > 0 THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = format('%s must not contain the marker of compiled mappings', $1),
			HINT = 'Take the comment out of the expression.';
	END IF;
	BEGIN
		PERFORM migrate._execute_under($6,
			format(CASE WHEN $5 THEN 'SELECT 1 FROM %s AS %s WHERE false AND %s'
						ELSE 'SELECT 1 FROM %s AS %s WHERE false AND (%s IS NULL)' END,
				   migrate._name_of($3), $4, $2));
	EXCEPTION
		WHEN insufficient_privilege THEN
			RAISE;
		WHEN syntax_error_or_access_rule_violation OR data_exception
			OR feature_not_supported OR program_limit_exceeded THEN
			GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
			RAISE EXCEPTION USING ERRCODE = SQLSTATE,
				MESSAGE = format('%s: %s', $1, SQLERRM),
				DETAIL = format('The expression is: %s', $2),
				HINT = coalesce(nullif(hint, '') || ' ', '')
					   || format('Columns of %s are: %s.', migrate._name_of($3),
								 coalesce((SELECT string_agg(quote_ident(c.name), ', ' ORDER BY c.attnum)
										   FROM migrate._columns_of($3) c), 'none'));
	END;
END
$$;
COMMENT ON FUNCTION migrate._check_expression(text, text, oid, text, boolean, text) IS
'errors, naming what it belongs to, when an expression over a relation cannot be parsed';

/*
 * The source: a foreign table of the job's server, found by its local name,
 * or by its name on the source; imported when there is none yet.
 */
CREATE FUNCTION migrate._find_source(j migrate.job, source text, mapping oid, path text) RETURNS oid
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	parts	text[] := migrate._split_name($2, 'source table');
	ft		oid := migrate._resolve($2, $4);
	postgres boolean := migrate._is_postgres_fdw($1.server);
	server_name text := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1.server);
BEGIN
	IF EXISTS (SELECT FROM pg_foreign_table f WHERE f.ftrelid = ft AND f.ftserver = $1.server) THEN
		RETURN ft;
	END IF;
	-- by its name there: the table whose row the mapping function takes, else
	-- one of the job; of other wrappers any
	SELECT f.foreign_table INTO ft
	FROM migrate._foreign_tables($1.server) f
	LEFT JOIN pg_proc p ON p.oid = $3
	LEFT JOIN pg_type t ON t.oid = p.proargtypes[0]
	CROSS JOIN LATERAL (
		SELECT coalesce(f.foreign_table = t.typrelid, false) AS argument,
			   f.foreign_table IN (SELECT o.foreign_table
								   FROM migrate._foreign_tables_of_job($1.job_id, $1.server) o) AS of_job) x
	WHERE f.remote_schema = parts[1] AND f.remote_table = parts[2]
	  AND (x.argument OR x.of_job OR NOT postgres)
	ORDER BY x.argument DESC,
			 f.foreign_table::oid IN (SELECT s.foreign_table FROM migrate.source_table s
									  WHERE s.job_id = $1.job_id) DESC,
			 f.foreign_table::oid
	LIMIT 1;
	IF NOT postgres THEN
		IF ft IS NULL THEN
			RAISE EXCEPTION USING ERRCODE = '42P01',
				MESSAGE = format('there is no foreign table "%s" on server "%s"', $2, server_name),
				HINT = 'Make it with CREATE FOREIGN TABLE, or with migrate_import where the wrapper can.';
		END IF;
		RETURN ft;
	END IF;
	IF cardinality(parts) < 2 THEN
		RAISE EXCEPTION USING ERRCODE = '42P01',
			MESSAGE = format('source table "%s" does not exist', $2),
			HINT = format('Write schema.table as on server "%s", for example public.%I, or the name of a local foreign table.', server_name, $2);
	END IF;
	IF ft IS NULL THEN
		IF NOT EXISTS (SELECT FROM migrate._remote_describe($1.server, parts[1:1], parts[2:2])) THEN
			RAISE EXCEPTION USING ERRCODE = '42P01',
				MESSAGE = format('table "%s"."%s" does not exist on server "%s"', parts[1], parts[2], server_name),
				HINT = 'Write schema.table as on the source, or the name of a local foreign table of that server.';
		END IF;
		PERFORM migrate._import_tables($1, parts[1], server_name, parts[2:2]);
		ft := to_regclass(format('%I.%I', server_name, parts[2]));
	END IF;
	RETURN ft;
END
$$;
COMMENT ON FUNCTION migrate._find_source(migrate.job, text, oid, text) IS
'the foreign table for a source, imported when there is none. Errors: 42602, 42P01 no such table; as migrate_import';

/*
 * What is known of a source table, as jsonb: {"kind", "columns", "keys"};
 * empty for wrappers without catalogs.
 */
CREATE FUNCTION migrate._describe_source(j migrate.job, foreign_table oid) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	names	record;
	about	jsonb;
BEGIN
	IF NOT migrate._is_postgres_fdw($1.server) THEN
		RETURN '{"kind": null, "columns": [], "keys": []}';
	END IF;
	SELECT * INTO names FROM migrate._remote_name($2);
	SELECT to_jsonb(d) INTO about
	FROM migrate._remote_describe($1.server, ARRAY[names.remote_schema], ARRAY[names.remote_table]) d;
	IF about IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42P01',
			MESSAGE = format('table "%s"."%s", which foreign table %s reads, does not exist on the source',
							 names.remote_schema, names.remote_table, migrate._name_of($2)),
			HINT = 'Check the options schema_name and table_name of the foreign table.';
	END IF;
	RETURN about;
END
$$;
COMMENT ON FUNCTION migrate._describe_source(migrate.job, oid) IS
'what the source''s catalogs say of a table. Errors: 42P01 it is not there';

/* One row a relation that is read, shared by its mappings. */
CREATE FUNCTION migrate._source_table(j migrate.job, foreign_table oid, about jsonb) RETURNS migrate.source_table
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	s		migrate.source_table;
	names	record;
BEGIN
	SELECT * INTO s FROM migrate.source_table t WHERE t.job_id = $1.job_id AND t.foreign_table = $2;
	IF FOUND THEN
		RETURN s;
	END IF;
	SELECT * INTO names FROM migrate._remote_name($2);
	INSERT INTO migrate.source_table AS t (job_id, source, foreign_table, remote_schema, remote_table, key_columns)
	SELECT $1.job_id,
		   CASE WHEN pg THEN format('%I.%I', names.remote_schema, names.remote_table)
				ELSE migrate._name_of($2) END,
		   $2,
		   CASE WHEN pg THEN names.remote_schema END,
		   CASE WHEN pg THEN names.remote_table END,
		   ARRAY(SELECT jsonb_array_elements_text(migrate._key_of($2, $3 -> 'keys') -> 'columns'))
	FROM migrate._is_postgres_fdw($1.server) pg
	RETURNING * INTO s;
	RETURN s;
END
$$;
COMMENT ON FUNCTION migrate._source_table(migrate.job, oid, jsonb) IS
'the row of migrate.source_table for a foreign table, made when it is new';

/* A target must be a table that the job's rows can be written to. */
CREATE FUNCTION migrate._check_target(target oid, owns text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	c		record;
	other	record;
BEGIN
	SELECT r.relkind, r.relpersistence, r.relname, n.nspname INTO c
	FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = $1;
	IF c.relkind NOT IN ('r', 'p') THEN
		RAISE EXCEPTION USING ERRCODE = '42809',
			MESSAGE = format('target %s is not a table', migrate._name_of($1)),
			HINT = 'Rows can be written to tables and partitioned tables only.';
	ELSIF c.nspname IN ('pg_catalog', 'pg_toast', 'information_schema', 'migrate') THEN
		RAISE EXCEPTION USING ERRCODE = '42809',
			MESSAGE = format('target %s is a system table', migrate._name_of($1)),
			HINT = 'Choose a table of your own.';
	ELSIF c.relpersistence = 't' THEN
		RAISE EXCEPTION USING ERRCODE = '42809',
			MESSAGE = format('target "%s" is a temporary table', c.relname),
			HINT = 'Workers cannot see it; choose a permanent table.';
	END IF;
	SELECT j.job, m.owns INTO other
	FROM migrate.mapping m JOIN migrate.job j USING (job_id)
	WHERE m.target_oid = $1 AND (m.owns IS NULL OR $2 IS NULL OR m.owns = $2)
	ORDER BY m.mapping_id LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '42710',
			MESSAGE = format('target %s has a mapping already, in job "%s"', migrate._name_of($1), other.job),
			HINT = 'Mappings that fill one table each need a predicate of their own in "owns", for example owns => ''tenant_id = 7''; or take the other out with migrate_remove_table.';
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._check_target(oid, text) IS
'errors when a relation cannot be the target of one more mapping: 42809 not a table, 42710 mapped already';

/*
 * The columns that a mapping function's rows have, after checking that it
 * takes a row of the source table.
 */
CREATE FUNCTION migrate._function_columns(mapping oid, foreign_table oid)
RETURNS TABLE (name text, pos int)
LANGUAGE plpgsql STABLE ROWS 20
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	p		pg_proc;
	arg		pg_type;
	res		pg_type;
	shown	text := mapping::regprocedure::text;
	wanted	text := format('Declare it as %s(%s) RETURNS SETOF <target table>, or RETURNS <target table>.',
						   mapping::regproc, migrate._name_of($2));
BEGIN
	SELECT * INTO p FROM pg_proc f WHERE f.oid = $1;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '42883', MESSAGE = format('mapping function %s does not exist', $1),
			HINT = 'Give the name of a function, for example mapping => ''sales.map_order''.';
	ELSIF p.prokind <> 'f' THEN
		RAISE EXCEPTION USING ERRCODE = '42809', MESSAGE = format('%s is not a plain function', shown), HINT = wanted;
	ELSIF p.pronargs < 1 OR p.pronargs - p.pronargdefaults > 1 THEN
		RAISE EXCEPTION USING ERRCODE = '42P13',
			MESSAGE = format('mapping function %s does not take one argument', shown), HINT = wanted;
	ELSIF NOT has_function_privilege($1, 'EXECUTE') THEN
		RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = format('permission denied for function %s', shown),
			HINT = format('GRANT EXECUTE ON FUNCTION %s TO %s;', shown, current_user::regrole);
	END IF;

	-- a row of the table, or of one with the same columns (shards)
	SELECT * INTO arg FROM pg_type t WHERE t.oid = p.proargtypes[0];
	IF NOT (arg.typrelid = $2 OR arg.oid = 'record'::regtype
			OR (arg.typtype = 'c' AND
				(SELECT array_agg((c.name, c.type_oid, c.typmod)::text ORDER BY c.attnum) FROM migrate._columns_of(arg.typrelid) c)
				= (SELECT array_agg((c.name, c.type_oid, c.typmod)::text ORDER BY c.attnum) FROM migrate._columns_of($2) c))) THEN
		RAISE EXCEPTION USING ERRCODE = '42P13',
			MESSAGE = format('mapping function %s does not take a row of %s', shown, migrate._name_of($2)),
			HINT = wanted;
	END IF;

	SELECT * INTO res FROM pg_type t WHERE t.oid = p.prorettype;
	IF res.typtype = 'c' THEN
		RETURN QUERY SELECT c.name, row_number() OVER (ORDER BY c.attnum)::int FROM migrate._columns_of(res.typrelid) c;
	ELSE
		RETURN QUERY
		SELECT p.proargnames[a.pos]::text, row_number() OVER (ORDER BY a.pos)::int
		FROM unnest(p.proargmodes) WITH ORDINALITY a(mode, pos)
		WHERE a.mode IN ('o', 'b', 't');
		IF NOT FOUND THEN
			RAISE EXCEPTION USING ERRCODE = '42804',
				MESSAGE = format('mapping function %s returns %s, not a row', shown, format_type(res.oid, NULL)),
				HINT = wanted;
		END IF;
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._function_columns(oid, oid) IS
'the columns that a mapping function gives. Errors: 42883, 42809, 42P13 wrong arguments, 42804 wrong result, 42501 may not be called';

/*
 * Compile: which target columns the mapping gives, with an expression each,
 * and the query.  "columns" null and no function is identity, in which every
 * source column must find its place.
 */
CREATE FUNCTION migrate._compile(foreign_table oid, target oid, mapping oid, columns jsonb, filter text,
								 path text, OUT target_columns text[], OUT expressions text[], OUT query text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	shown	text := migrate._name_of($2);
	bad		text;
	aliases	text;
	c		record;
	given	jsonb := '{}';			-- target column -> expression
	conditions text[] := '{}';
BEGIN
	-- what is given, by name
	IF mapping IS NOT NULL THEN
		SELECT jsonb_object_agg(f.name, format('migrate_m.migrate_%s', f.pos)),
			   string_agg(format('migrate_%s', f.pos), ', ' ORDER BY f.pos)
		INTO given, aliases
		FROM migrate._function_columns($3, $1) f;
	ELSE
		SELECT coalesce(jsonb_object_agg(s.name, format('source.%I', s.name)), '{}') INTO given
		FROM migrate._columns_of($1) s
		WHERE $4 IS NULL OR EXISTS (SELECT FROM migrate._columns_of($2) t WHERE t.name = s.name);
		FOR c IN SELECT e.key, e.value FROM jsonb_each(coalesce($4, '{}')) e ORDER BY e.key
		LOOP
			IF NOT EXISTS (SELECT FROM migrate._columns_of($2) t WHERE t.name = c.key) THEN
				CONTINUE;			-- told below
			ELSIF (SELECT t.generated FROM migrate._columns_of($2) t WHERE t.name = c.key) THEN
				RAISE EXCEPTION USING ERRCODE = '428C9',
					MESSAGE = format('column "%s" of target %s is generated and cannot be given', c.key, shown),
					HINT = 'Take it out of columns; the target computes it.';
			ELSIF c.value = 'null' THEN
				given := given - c.key;
			ELSE
				given := given || jsonb_build_object(c.key,
							migrate._expression(c.value, $1, format('column "%s" of target %s', c.key, shown)));
				PERFORM migrate._check_expression(format('column "%s" of target %s', c.key, shown),
												  given ->> c.key, $1, 'source', false, $6);
			END IF;
		END LOOP;
	END IF;

	-- each must have a place, each place that needs a value must get one
	SELECT string_agg(quote_ident(n.name), ', ' ORDER BY n.name) INTO bad
	FROM (SELECT jsonb_object_keys(given) UNION SELECT jsonb_object_keys($4)) n(name)
	WHERE NOT EXISTS (SELECT FROM migrate._columns_of($2) t WHERE t.name = n.name);
	IF bad IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42703',
			MESSAGE = format('target %s lacks column%s %s', shown, CASE WHEN strpos(bad, ', ') > 0 THEN 's' ELSE '' END, bad),
			HINT = CASE
				WHEN $3 IS NOT NULL THEN 'The columns of the mapping function''s row must be columns of the target.'
				WHEN $4 IS NOT NULL THEN 'Keys of columns are target columns, their values are expressions over the source row.'
				ELSE 'Add the column to the target, or say with columns or mapping what goes where; columns => ''{}'' takes only what both have.' END;
	END IF;
	SELECT string_agg(quote_ident(t.name), ', ' ORDER BY t.attnum) INTO bad
	FROM migrate._columns_of($2) t
	WHERE t.required AND NOT given ? t.name;
	IF bad IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '23502',
			MESSAGE = format('target %s needs values that the mapping does not give, for: %s', shown, bad),
			HINT = 'Give it with columns or mapping, or let the column have a default.';
	END IF;

	SELECT coalesce(array_agg(t.name ORDER BY t.attnum), '{}'),
		   coalesce(array_agg(given ->> t.name ORDER BY t.attnum), '{}')
	INTO target_columns, expressions
	FROM migrate._columns_of($2) t
	WHERE given ? t.name AND NOT t.generated;
	IF target_columns = '{}' AND EXISTS (SELECT FROM migrate._columns_of($2)) THEN
		RAISE EXCEPTION USING ERRCODE = '42703',
			MESSAGE = format('no column of target %s is given a value', shown),
			HINT = 'Say with columns or mapping what goes where.';
	END IF;

	query := format('SELECT /*%1$s*/ %2$s FROM /*%1$s*/ source', 'migrate',
					(SELECT string_agg(format('%s AS %I', e.expr, e.col), ', ' ORDER BY e.pos)
					 FROM unnest(expressions, target_columns) WITH ORDINALITY e(expr, col, pos)));
	IF $3 IS NOT NULL THEN
		query := query || (SELECT format(', LATERAL %I.%I(source.*) AS migrate_m(%s)', n.nspname, p.proname, aliases)
						   FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = $3);
		-- a NULL row is a row left out
		conditions := '{NOT (migrate_m IS NULL)}';
	END IF;
	IF $5 IS NOT NULL THEN
		PERFORM migrate._check_expression(format('filter of target %s', shown),
										  migrate._parenthesized($5), $1, 'source', true, $6);
		conditions := conditions || migrate._parenthesized($5);
	END IF;
	IF conditions <> '{}' THEN
		query := query || ' WHERE ' || array_to_string(conditions, ' AND ');
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._compile(oid, oid, oid, jsonb, text, text) IS
'compiles a mapping: the target columns that it gives, an expression each, and the query with its markers. Errors: 42703 unknown column, 23502 a needed column is not given, 428C9 a generated column is given; those of the parser';

/*
 * P11: how a target row is found from a source key.  As the DBA gives it, or
 * the columns that take the source's key over; null when there is no such.
 */
CREATE FUNCTION migrate._key_map(given jsonb, s migrate.source_table, about jsonb, target oid, many boolean,
								 target_columns text[], expressions text[], by_function boolean, path text)
RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	shown	text := migrate._name_of($4);
	map		jsonb := '{}';
	e		record;
	plain	text[];
	bad		text;
	lost	boolean;
	primary_key text[] := ARRAY(SELECT a.attname::text FROM pg_index i
								CROSS JOIN LATERAL unnest(i.indkey::int2[]) n(num)
								JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = n.num
								WHERE i.indrelid = $4 AND i.indisprimary);
BEGIN
	IF $1 IS NULL THEN
		-- the column that has the key column's value or its name, rather one
		-- that is in the target's primary key
		SELECT jsonb_object_agg(m.col, m.expr) FILTER (WHERE m.col IS NOT NULL), bool_or(m.col IS NULL)
		INTO map, lost
		FROM unnest($2.key_columns) k(name)
		LEFT JOIN LATERAL (
			SELECT c.col, CASE WHEN $8 THEN format('source.%I', k.name) ELSE c.expr END AS expr
			FROM unnest($6, $7) c(col, expr)
			WHERE c.expr = format('source.%I', k.name) OR c.col = k.name
			ORDER BY c.col = ANY (primary_key) DESC, c.expr = format('source.%I', k.name) DESC, c.col = k.name DESC, c.col
			LIMIT 1) m ON true;
		-- constants in the primary key tell this mapping's rows from others'
		SELECT map || coalesce(jsonb_object_agg(c.col, c.expr), '{}') INTO map
		FROM unnest($6, $7) c(col, expr)
		WHERE NOT $8 AND c.col = ANY (primary_key) AND c.expr ~ '^(\(-[0-9.e+]+\)|[0-9.e+]+|true|false)$';
		RETURN CASE WHEN lost THEN NULL ELSE map END;
	END IF;

	IF jsonb_typeof($1) <> 'object' OR $1 = '{}' THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = 'key must be a JSON object of target columns and what they come from',
			HINT = 'Write for example key => ''{"order_id": "id"}''.';
	END IF;
	SELECT string_agg(quote_ident(k), ', ' ORDER BY k) INTO bad
	FROM jsonb_object_keys($1) k
	WHERE NOT EXISTS (SELECT FROM migrate._columns_of($4) t WHERE t.name = k);
	IF bad IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42703',
			MESSAGE = format('target %s lacks key column %s', shown, bad),
			HINT = 'Names in key are target columns, their values are expressions over the source row.';
	END IF;
	FOR e IN SELECT * FROM jsonb_each($1) x ORDER BY x.key
	LOOP
		map := map || jsonb_build_object(e.key,
					migrate._expression(e.value, $2.foreign_table, format('key column "%s" of target %s', e.key, shown)));
		PERFORM migrate._check_expression(format('key column "%s" of target %s', e.key, shown),
										  map ->> e.key, $2.foreign_table, 'source', false, $9);
	END LOOP;

	-- unique on the source, as far as its catalogs tell
	SELECT coalesce(array_agg(c.name), '{}') INTO plain
	FROM migrate._columns_of($2.foreign_table) c
	WHERE EXISTS (SELECT FROM jsonb_each_text(map) m WHERE m.value = format('source.%I', c.name));
	IF $3 ->> 'kind' IN ('r', 'p')
		AND NOT EXISTS (SELECT FROM jsonb_each(map) m
						WHERE jsonb_typeof($1 -> m.key) = 'string'
						  AND m.value #>> '{}' <> ALL (SELECT format('source.%I', p) FROM unnest(plain) p))
		AND NOT EXISTS (SELECT FROM jsonb_array_elements($3 -> 'keys') k
						WHERE (k ->> 'immediate')::boolean AND (k ->> 'notnull')::boolean
						  AND ARRAY(SELECT jsonb_array_elements_text(k -> 'columns'))
							  <@ ARRAY(SELECT f.remote_name FROM migrate._foreign_columns($2.foreign_table) f
									   WHERE f.local_name = ANY (plain))) THEN
		RAISE EXCEPTION USING ERRCODE = '42P10',
			MESSAGE = format('key of target %s is not unique on the source', shown),
			DETAIL = format('No primary key or unique index over NOT NULL columns of %s lies within (%s).',
							$2.source, array_to_string(plain, ', ')),
			HINT = CASE WHEN $2.key_columns = '{}' THEN 'Give the source table a unique key over NOT NULL columns, or leave key out.'
						ELSE format('Include the source''s key (%s).', array_to_string($2.key_columns, ', ')) END;
	END IF;
	-- and no stranger to the unique keys of a target that has some
	IF NOT $5
		AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = $4 AND i.indisunique)
		AND NOT EXISTS (
			SELECT FROM pg_index i
			CROSS JOIN LATERAL (SELECT array_agg(a.attname::text) AS cols
								FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(num, pos)
								LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num AND k.num > 0
								WHERE k.pos <= i.indnkeyatts) x
			WHERE i.indrelid = $4 AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
			  AND (x.cols <@ ARRAY(SELECT jsonb_object_keys(map)) OR x.cols @> ARRAY(SELECT jsonb_object_keys(map)))) THEN
		RAISE EXCEPTION USING ERRCODE = '42P10',
			MESSAGE = format('key of target %s matches none of its unique indexes', shown),
			DETAIL = format('The key is (%s).', (SELECT string_agg(k, ', ' ORDER BY k) FROM jsonb_object_keys(map) k)),
			HINT = 'Name the columns of its primary key or of another unique index in key.';
	END IF;
	RETURN map;
END
$$;
COMMENT ON FUNCTION migrate._key_map(jsonb, migrate.source_table, jsonb, oid, boolean, text[], text[], boolean, text) IS
'the key map of a mapping: target column -> SQL expression over the source row; null when rows cannot be identified. Errors: 22023, 42703 unknown column, 42P10 not unique on the source or no unique index on the target; those of the parser';

/*
 * Everything after the names are resolved: compile, check, record.  Returns
 * the mapping's number.
 */
CREATE FUNCTION migrate._add_mapping(j migrate.job, foreign_table oid, about jsonb, target oid, mapping oid,
									 columns jsonb, filter text, key jsonb, owns text, reads text[], path text)
RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	s		migrate.source_table;
	compiled record;
	many	boolean := coalesce((SELECT p.proretset FROM pg_proc p WHERE p.oid = $5), false);
	key_map	jsonb;
	read_tables text[];
	missing	text;
	shown	text := migrate._name_of($4);
	created	boolean := EXISTS (SELECT FROM migrate.made_object m
							   WHERE m.job_id = $1.job_id AND m.kind = 'table' AND m.object = shown);
	new_id	int;
BEGIN
	SELECT * INTO compiled FROM migrate._compile($2, $4, $5, $6, $7, $11);
	s := migrate._source_table($1, $2, $3);
	key_map := migrate._key_map($8, s, $3, $4, many, compiled.target_columns, compiled.expressions,
								$5 IS NOT NULL, $11);
	-- where the catalogs name no key, the DBA does
	IF s.key_columns = '{}' AND coalesce($3 ->> 'kind', 'f') IN ('f', 'v', 'm') AND $8 IS NOT NULL THEN
		UPDATE migrate.source_table t
		SET key_columns = ARRAY(SELECT c.name FROM migrate._columns_of($2) c
								WHERE format('source.%I', c.name) IN (SELECT m.value FROM jsonb_each_text(key_map) m)
								ORDER BY c.attnum)
		WHERE t.source_id = s.source_id;
	END IF;
	IF $9 IS NOT NULL THEN
		PERFORM migrate._check_expression(format('owns of target %s', shown),
										  migrate._parenthesized($9), $4,
										  (SELECT quote_ident(c.relname) FROM pg_class c WHERE c.oid = $4),
										  true, $11);
	END IF;
	SELECT coalesce(array_agg(migrate._name_of(migrate._resolve(r, $11)) ORDER BY r), '{}'),
		   min(r) FILTER (WHERE migrate._resolve(r, $11) IS NULL)
	INTO read_tables, missing
	FROM unnest(coalesce($10, '{}')) r;
	IF missing IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42P01',
			MESSAGE = format('relation "%s" in reads does not exist', missing),
			HINT = 'Name the tables that the mapping looks things up in, each as schema.table.';
	END IF;

	-- no block of its own: each costs with the number of tables made before
	INSERT INTO migrate.mapping (job_id, source_id, target_oid, target, kind, mapping, columns, filter,
								 key, owns, reads, search_path, target_columns, query, many, created_target)
	VALUES ($1.job_id, s.source_id, $4, shown,
			CASE WHEN $5 IS NOT NULL THEN 'function' WHEN $6 IS NOT NULL THEN 'columns' ELSE 'identity' END,
			$5, $6, $7, key_map, $9, read_tables, $11,
			compiled.target_columns, compiled.query, many, created)
	ON CONFLICT DO NOTHING
	RETURNING mapping_id INTO new_id;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '42710',
			MESSAGE = format('target %s has a mapping already, in another job', shown),
			HINT = 'Mappings that fill one table each need a predicate of their own in "owns".';
	END IF;
	-- planned as the loaders will: types, missing functions, rights
	PERFORM migrate._mapping_check(new_id);
	RETURN new_id;
END
$$;
COMMENT ON FUNCTION migrate._add_mapping(migrate.job, oid, jsonb, oid, oid, jsonb, text, jsonb, text, text[], text) IS
'compiles and records a mapping between relations that exist; returns its number';

CREATE FUNCTION @extschema@.migrate_add_table(job text, source text, target text,
											mapping regproc DEFAULT NULL, columns jsonb DEFAULT NULL,
											filter text DEFAULT NULL, key jsonb DEFAULT NULL,
											owns text DEFAULT NULL, reads text[] DEFAULT '{}',
											search_path text DEFAULT current_setting('search_path'),
											target_definition text DEFAULT NULL, column_types jsonb DEFAULT NULL,
											tablespace text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job_to_define($1);
	data_only boolean := migrate._option(j.job_id, 'content') = 'data';
	parts	text[];
	ft		oid;
	tgt		oid;
	about	jsonb;
	types	jsonb;
	names	record;
	new_id	int;
BEGIN
	PERFORM migrate._require_user_mapping(j.server);
	IF $4 IS NOT NULL AND $5 IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'mapping and columns exclude each other',
			HINT = 'Let the mapping function give the columns, or write their expressions in columns.';
	ELSIF $5 IS NOT NULL AND jsonb_typeof($5) <> 'object' THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'columns must be a JSON object of target columns and expressions',
			HINT = 'Write for example columns => ''{"total_cents": "(total * 100)::bigint"}''.';
	END IF;
	parts := migrate._split_name($3, 'target table');
	tgt := migrate._resolve($3, $10);
	IF $11 IS NOT NULL AND tgt IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42P07', MESSAGE = format('target %s exists already', migrate._name_of(tgt)),
			HINT = 'Leave target_definition out to use the table as it is, or drop it.';
	ELSIF ($12 IS NOT NULL OR $13 IS NOT NULL) AND (tgt IS NOT NULL OR $11 IS NOT NULL) THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = format('%s is only for a target that is made like the source', CASE WHEN $12 IS NULL THEN 'tablespace' ELSE 'column_types' END),
			HINT = CASE WHEN tgt IS NULL THEN 'Say it in target_definition.' ELSE 'The target exists and is used as it is.' END;
	ELSIF tgt IS NOT NULL THEN
		PERFORM migrate._check_target(tgt, $8);
	ELSIF data_only THEN
		RAISE EXCEPTION USING ERRCODE = '42P01', MESSAGE = format('target table "%s" does not exist', $3),
			HINT = 'With option content = data no target is made. Make it first, for example with pg_dump --section=pre-data of the source, restored here.';
	ELSIF $11 IS NULL AND ($4 IS NOT NULL OR $5 IS NOT NULL) THEN
		RAISE EXCEPTION USING ERRCODE = '42P01', MESSAGE = format('target table "%s" does not exist', $3),
			HINT = 'Make it first. Only a mapping by name alone (without mapping and columns) makes a missing target.';
	ELSIF $11 IS NULL AND cardinality(parts) = 1 THEN
		parts := ARRAY[migrate._first_schema($10), parts[1]];
		IF parts[1] IS NULL THEN
			RAISE EXCEPTION USING ERRCODE = '3F000', MESSAGE = 'no schema has been selected to make the target in',
				HINT = 'Write the target as schema.table.';
		END IF;
	END IF;
	PERFORM migrate._check_tablespace($13);

	ft := migrate._find_source(j, $2, $4, $10);
	about := migrate._describe_source(j, ft);
	IF $11 IS NOT NULL THEN
		tgt := migrate._make_own_target(j, $3, $11, ft, $10);
		PERFORM migrate._check_target(tgt, $8);
	ELSIF tgt IS NULL THEN
		PERFORM migrate._make_schema(j.job_id, parts[1], false);
		IF $12 IS NOT NULL THEN
			types := migrate._column_types($12, ft, parts[1], $10);
		END IF;
		PERFORM migrate._make_targets(j, ARRAY[ft], parts[1:1], parts[2:2], NULL, $13, types);
		tgt := to_regclass(format('%I.%I', parts[1], parts[2]));
		SELECT * INTO names FROM migrate._remote_name(ft);
		PERFORM migrate._own_sequences(j, names.remote_schema, parts[1]);
	END IF;
	new_id := migrate._add_mapping(j, ft, about, tgt, $4, $5, $6, $7, $8, $9, $10);
	-- else a parent that is chosen alone is read with its children
	IF EXISTS (SELECT FROM migrate.job_schema s WHERE s.job_id = j.job_id) THEN
		PERFORM migrate._set_only_parent(j);
	END IF;
	PERFORM migrate._plan_steps(j, ARRAY[new_id]);
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_add_table(text, text, text, regproc, jsonb, text, jsonb, text, text[], text, text, jsonb, text) IS
'adds one mapping to a job that has not started. source = schema.table on the source (imported when needed) or a local foreign table of the job''s server; target = a table here, made like the source (with its partitions) when it is missing and neither mapping nor columns is given; mapping = a function from the source row to the target row or a set of it; columns = {"target column": "expression over the source row"}, the rest by name, null leaves a column to its default; filter = predicate over the source row; key = {"target column": "source column or expression"}, how a target row is found from a source row (default: the columns that take over the source''s key); owns = predicate over the target, for targets that several mappings fill; reads = tables that the mapping looks things up in; search_path = how names in all of these are read (default: the caller''s); target_definition = statements that make the missing target, for example partitioned in another way; column_types = {"column": "type"}, other types in a target that is made like the source; tablespace = where such a target lies. Errors: 42704 unknown job, no user mapping or no such tablespace; 55000 the job has started; 22023; 42602, 42P01 unknown table, or the target is missing and may not or was not made; 42809 target is no table; 42710 target mapped already; 42883, 42P13, 42804 mapping function; 42703 unknown column; 23502 a needed column is not given; 428C9 a generated column is given; 42P10 key not unique; 42P07 a name is taken, as migrate_import; 08001 source not reached';

CREATE FUNCTION @extschema@.migrate_add_schema(job text, source_schema text, target_schema text DEFAULT NULL,
											 include text[] DEFAULT NULL, exclude text[] DEFAULT NULL,
											 search_path text DEFAULT current_setting('search_path'),
											 rename jsonb DEFAULT NULL, tablespace text DEFAULT NULL)
RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job_to_define($1);
	place	text := coalesce($3, $2);
	srv_name text := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = j.server);
	postgres boolean := migrate._is_postgres_fdw(j.server);
	data_only boolean := migrate._option(j.job_id, 'content') = 'data';
	last_made int := (SELECT coalesce(max(m.object_id), 0) FROM migrate.made_object m);
	names	text[];
	new_names text[];
	sources	jsonb[];		-- {"name", "ft", "about", "target", "new"}
	missing	text;
	s		jsonb;
	mappings int[] := '{}';
BEGIN
	PERFORM migrate._require_user_mapping(j.server);
	IF $2 IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = 'source_schema must not be null',
			HINT = 'Name the schema on the source, for example migrate_add_schema(''shop'', ''public'').';
	END IF;
	PERFORM migrate._check_tablespace($8);
	BEGIN
		IF postgres THEN
			names := migrate._choose_tables(j.server, $2, $4, $5, 'rp');
			-- what is mapped already stays as it is
			names := ARRAY(SELECT n FROM unnest(names) n
						   WHERE NOT EXISTS (SELECT FROM migrate.mapping m WHERE m.job_id = j.job_id
											 AND m.target_oid = to_regclass(format('%I.%I', place, coalesce($7 ->> n, n))))
							 AND n NOT IN (SELECT t.remote_table FROM migrate.source_table t
										   WHERE t.job_id = j.job_id AND t.remote_schema = $2)
						   ORDER BY n);
			IF $4 IS NOT NULL THEN
				names := ARRAY(SELECT unnest(names) EXCEPT SELECT unnest(migrate._covered_partitions(j, $2, names)) ORDER BY 1);
			END IF;
		END IF;
		IF $7 IS NOT NULL THEN
			PERFORM migrate._check_rename(j, $2, $7, names);
		END IF;
		INSERT INTO migrate.job_schema (job_id, source_schema, target_schema, include, exclude, rename, tablespace, search_path)
		VALUES (j.job_id, $2, place, $4, $5, coalesce($7, '{}'), $8, $6);

		IF NOT data_only THEN
			PERFORM migrate._make_schema(j.job_id, place, false);
			IF postgres AND $4 IS NULL THEN
				PERFORM migrate._import_schema_types(j.job_id, j.server, $2);
			END IF;
			PERFORM migrate._comment_schema(j, $2, place);
			PERFORM migrate._import_sequences(j, $2, place, $4, $5);
		END IF;
		IF postgres THEN
			new_names := ARRAY(SELECT n FROM unnest(names) n
							   WHERE n NOT IN (SELECT f.remote_table
											   FROM migrate._foreign_tables_of_job(j.job_id, j.server) f
											   WHERE f.remote_schema = $2)
							   ORDER BY n);
			PERFORM migrate._import_tables(j, $2, srv_name, new_names);
			SELECT array_agg(jsonb_build_object('name', x.name, 'ft', x.ft::int8, 'about', x.about) ORDER BY x.name) INTO sources
			FROM (SELECT DISTINCT ON (d.remote_table) d.remote_table AS name, f.foreign_table::oid AS ft, to_jsonb(d) AS about
				  FROM migrate._remote_describe(j.server, array_fill($2, ARRAY[cardinality(names)]), names) d
				  JOIN migrate._foreign_tables_of_job(j.job_id, j.server) f USING (remote_schema, remote_table)
				  WHERE names <> '{}'
				  ORDER BY d.remote_table, f.foreign_table::oid) x;
		ELSE
			-- what it imported just now
			PERFORM migrate._import_other(j, $2, srv_name, $4, $5);
			SELECT array_agg(jsonb_build_object('name', c.relname, 'ft', c.oid::int8, 'about', migrate._describe_source(j, c.oid))
							 ORDER BY c.relname) INTO sources
			FROM migrate.made_object m JOIN pg_class c ON c.oid = to_regclass(m.object)
			WHERE m.job_id = j.job_id AND m.object_id > last_made AND m.kind = 'foreign table';
		END IF;
		SELECT array_agg(x || jsonb_build_object('target', coalesce($7 ->> (x ->> 'name'), x ->> 'name'),
												 'new', to_regclass(format('%I.%I', place, coalesce($7 ->> (x ->> 'name'), x ->> 'name'))) IS NULL)
						 ORDER BY x ->> 'name') INTO sources
		FROM unnest(sources) x;

		SELECT string_agg(format('%I.%I', place, x ->> 'target'), ', ' ORDER BY x ->> 'target') INTO missing
		FROM unnest(sources) x WHERE (x ->> 'new')::boolean;
		IF missing IS NOT NULL AND data_only THEN
			RAISE EXCEPTION USING ERRCODE = '42P01', MESSAGE = format('target tables do not exist: %s', missing),
				HINT = 'With option content = data no target is made. Make them first, for example with pg_dump --section=pre-data of the source, restored here; or exclude them.';
		ELSIF missing IS NOT NULL THEN
			PERFORM migrate._make_targets(j, array_agg((x ->> 'ft')::oid ORDER BY x ->> 'name'),
										  array_agg(place), array_agg(x ->> 'target' ORDER BY x ->> 'name'), $7, $8)
			FROM unnest(sources) x WHERE (x ->> 'new')::boolean;
		END IF;
		IF NOT data_only THEN
			PERFORM migrate._own_sequences(j, $2, place);
		END IF;

		FOREACH s IN ARRAY coalesce(sources, '{}')
		LOOP
			IF NOT (s ->> 'new')::boolean THEN
				PERFORM migrate._check_target(to_regclass(format('%I.%I', place, s ->> 'target')), NULL);
			END IF;
			mappings := mappings || migrate._add_mapping(j, (s ->> 'ft')::oid, s -> 'about', to_regclass(format('%I.%I', place, s ->> 'target')),
														 NULL, NULL, NULL, NULL, NULL, '{}', $6);
		END LOOP;
		PERFORM migrate._set_only_parent(j);
		PERFORM migrate._plan_steps(j, mappings);
	EXCEPTION WHEN out_of_memory THEN
		RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM,
			HINT = 'Raise max_locks_per_transaction, or add the schema in parts, each in a transaction of its own, with include => ''{a*}''; tables that are mapped already are skipped.';
	END;
	RETURN cardinality(mappings);
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_add_schema(text, text, text, text[], text[], text, jsonb, text) IS
'adds all tables of a schema on the source by name, with foreign tables where they are missing, and makes what is missing here: the schema, its types (all of them when include is null), sequences and tables, with partitions and parents. source_schema = there, target_schema = here (default: the same name), include and exclude = name patterns (* any text, ? a character), search_path = as for migrate_add_table, rename = {"name on the source": "name here"} of tables, partitions and sequences, tablespace = where tables that it makes lie. Views, foreign tables, partitions and tables of extensions are left out unless (the last two) named; partitions come with their table; source tables that the job maps already are skipped. With option content = data nothing is made but foreign tables. Takes about four locks a table, see max_locks_per_transaction. Returns the number of tables added. Errors: 42P01 a name in rename is unknown, or a target is missing and content = data; 42P07 names collide; 42704 no such tablespace; as migrate_import and migrate_add_table';

CREATE FUNCTION @extschema@.migrate_remove_table(job text, target text,
											   search_path text DEFAULT current_setting('search_path'))
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job_to_define($1);
	parts	text[] := migrate._split_name($2, 'target table');
	tgt		oid := migrate._resolve($2, $3);
	-- of a table that was dropped the name is left
	gone	text := format('%I.%I', parts[1], parts[2]);
	made	text;
BEGIN
	SELECT m.target INTO made FROM migrate.mapping m
	WHERE m.job_id = j.job_id AND m.created_target AND m.target_oid = tgt;
	DELETE FROM migrate.mapping m
	WHERE m.job_id = j.job_id AND (m.target_oid = tgt OR (tgt IS NULL AND m.target = gone));
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '42704',
			MESSAGE = format('job "%s" has no mapping to "%s"', $1, $2),
			HINT = format('Its targets are: %s.',
						  coalesce((SELECT string_agg(DISTINCT m.target, ', ' ORDER BY m.target)
									FROM migrate.mapping m WHERE m.job_id = j.job_id), 'none'));
	END IF;
	DELETE FROM migrate.source_table s
	WHERE s.job_id = j.job_id
	  AND NOT EXISTS (SELECT FROM migrate.mapping m WHERE m.source_id = s.source_id);
	-- the last child gone: its parent is read with its children again
	IF EXISTS (SELECT FROM migrate.source_table s WHERE s.job_id = j.job_id AND s.only_parent) THEN
		PERFORM migrate._set_only_parent(j);
	END IF;
	IF made IS NOT NULL THEN
		RAISE NOTICE USING MESSAGE = format('table %s, which was made for the job, is kept', made),
			HINT = format('DROP TABLE %s;', made);
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_remove_table(text, text, text) IS
'takes the mappings to a target out of a job that has not started; the target table is kept, also when the job made it. Errors: 42704 unknown job or no such mapping, 55000 the job has started';
