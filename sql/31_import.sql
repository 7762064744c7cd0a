/*
 * Import: foreign tables for the source's tables, after the types of their
 * columns (27_types.sql).
 *
 * The remote catalogs are read set-wise, one query for all tables, since a
 * round trip a table would be felt with two thousand of them.  Queries run
 * under search_path = pg_catalog on the source, so format_type() and
 * pg_get_expr() give qualified names, and must work on PostgreSQL 13.
 */

/* A pattern with * and ? as a LIKE pattern. */
CREATE FUNCTION migrate._like_pattern(pattern text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT translate(replace(replace(replace($1, '\', '\\'), '%', '\%'), '_', '\_'), '*?', '%_')
$$;
COMMENT ON FUNCTION migrate._like_pattern(text) IS
'a name pattern (* any text, ? any character) as a LIKE pattern';

CREATE FUNCTION migrate._matches(name text, patterns text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT EXISTS (SELECT FROM unnest($2) p WHERE $1 LIKE migrate._like_pattern(p))
$$;
COMMENT ON FUNCTION migrate._matches(text, text[]) IS
'whether a name matches one of several patterns (* any text, ? any character)';

/*
 * Tables of one schema of the source, also the partitions (which are taken
 * only when named without wildcards).
 */
CREATE FUNCTION migrate._remote_tables(server oid, source_schema text)
RETURNS TABLE (name text, kind text, partition boolean, extension boolean)
LANGUAGE plpgsql STABLE ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	remote_schemas	text;
BEGIN
	RETURN QUERY
	SELECT r ->> 'name', r ->> 'kind', (r ->> 'part')::boolean, (r ->> 'ext')::boolean
	FROM migrate._remote_query($1, format($q$
		SELECT c.relname AS name, c.relkind AS kind, c.relispartition AS part,
			   EXISTS (SELECT FROM pg_depend d
					   WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
						 AND d.deptype = 'e') AS ext
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = %L AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
		ORDER BY c.relname
	$q$, $2)) AS r;
	IF NOT FOUND THEN
		-- no table, or no schema?
		SELECT string_agg(format('"%s"', r ->> 'nspname'), ', ' ORDER BY r ->> 'nspname')
		INTO remote_schemas
		FROM migrate._remote_query($1, $q$
			SELECT nspname FROM pg_namespace
			WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
		$q$) AS r;
		IF NOT coalesce(strpos(remote_schemas, format('"%s"', $2)) > 0, false) THEN
			RAISE EXCEPTION USING ERRCODE = '3F000',
				MESSAGE = format('schema "%s" does not exist on server "%s"', $2,
								 (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1)),
				HINT = format('Schemas there are: %s.', coalesce(remote_schemas, 'none'));
		END IF;
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._remote_tables(oid, text) IS
'tables, views and foreign tables of a schema on the source. Errors: 3F000 no such schema; 08001 source not reached';

/*
 * What the remote catalogs say of tables, given as parallel arrays of schema
 * and table names: columns, unique keys, and what the connected role may do.
 */
CREATE FUNCTION migrate._remote_describe(server oid, schemas text[], tables text[])
RETURNS TABLE (remote_schema text, remote_table text, kind text, columns jsonb, keys jsonb,
			   readable boolean, row_security boolean, children boolean)
LANGUAGE sql STABLE ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT r ->> 'nspname', r ->> 'relname', r ->> 'kind',
		   coalesce((r ->> 'columns')::jsonb, '[]'), coalesce((r ->> 'keys')::jsonb, '[]'),
		   (r ->> 'readable')::boolean, (r ->> 'rls')::boolean, (r ->> 'children')::boolean
	FROM migrate._remote_query($1, format($q$
		SELECT n.nspname, c.relname, c.relkind AS kind,
			(SELECT json_agg(json_build_object(
						'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
						'notnull', a.attnotnull, 'identity', a.attidentity,
						'generated', a.attgenerated,
						'readable', has_column_privilege(c.oid, a.attnum, 'SELECT'),
						'default', pg_get_expr(d.adbin, d.adrelid),
						'collation', CASE WHEN a.attcollation <> t.typcollation
										  THEN json_build_array(cn.nspname, co.collname) END)
					ORDER BY a.attnum)
			 FROM pg_attribute a
			 JOIN pg_type t ON t.oid = a.atttypid
			 LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
			 LEFT JOIN pg_collation co ON co.oid = a.attcollation
			 LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
			 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
			(SELECT json_agg(json_build_object(
						'name', ic.relname, 'primary', i.indisprimary,
						'immediate', i.indimmediate,
						'definition', pg_get_constraintdef(con.oid),
						'notnull', k.filled, 'columns', k.names)
					ORDER BY i.indisprimary DESC, i.indnkeyatts, ic.relname)
			 FROM pg_index i
			 JOIN pg_class ic ON ic.oid = i.indexrelid
			 LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid
					AND con.conrelid = c.oid AND con.contype IN ('p', 'u')
			 CROSS JOIN LATERAL (
				SELECT json_agg(a.attname ORDER BY o.pos) AS names, bool_and(a.attnotnull) AS filled
				FROM unnest(i.indkey::int2[]) WITH ORDINALITY o(num, pos)
				JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = o.num
				WHERE o.pos <= i.indnkeyatts) k
			 WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
			   AND i.indpred IS NULL AND i.indexprs IS NULL) AS keys,
			has_schema_privilege(n.oid, 'USAGE') AND
			(has_table_privilege(c.oid, 'SELECT') OR
			 has_any_column_privilege(c.oid, 'SELECT')) AS readable,
			row_security_active(c.oid) AS rls,
			c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = c.oid) AS children
		FROM unnest(%L::text[], %L::text[]) w(s, t)
		JOIN pg_namespace n ON n.nspname = w.s
		JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t
			AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
	$q$, $2, $3)) AS r
$$;
COMMENT ON FUNCTION migrate._remote_describe(oid, text[], text[]) IS
'columns, unique keys and rights of tables on the source, for parallel arrays of schema and table names; tables that are not there give no row';

/* The columns of a foreign table and their names on the source. */
CREATE FUNCTION migrate._foreign_columns(foreign_table regclass)
RETURNS TABLE (local_name text, remote_name text, attnum int2, type text, type_oid oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT a.attname::text,
		   coalesce((SELECT o.option_value FROM pg_options_to_table(a.attfdwoptions) o
					 WHERE o.option_name = 'column_name'), a.attname),
		   a.attnum, format_type(a.atttypid, a.atttypmod), a.atttypid
	FROM pg_attribute a
	WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
$$;
COMMENT ON FUNCTION migrate._foreign_columns(regclass) IS
'the columns of a foreign table and their names on the source';

/*
 * The unique key of the source that identifies its rows, its columns named as
 * in the foreign table: the primary key, else the shortest unique key over
 * columns that are not null, and neither partial, deferrable nor over an
 * expression.  Null when there is none.
 */
CREATE FUNCTION migrate._key_of(foreign_table regclass, keys jsonb, also_deferrable boolean DEFAULT false)
RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT o.key || jsonb_build_object('columns', k.names)
	FROM jsonb_array_elements($2) WITH ORDINALITY o(key, pos)
	CROSS JOIN LATERAL (
		SELECT array_agg(l.local_name ORDER BY c.pos) AS names
		FROM jsonb_array_elements_text(o.key -> 'columns') WITH ORDINALITY c(name, pos)
		LEFT JOIN migrate._foreign_columns($1) l ON l.remote_name = c.name) k
	WHERE ((o.key ->> 'immediate')::boolean OR $3) AND (o.key ->> 'notnull')::boolean
	  -- the foreign table may lack a column of it
	  AND array_position(k.names, NULL) IS NULL
	ORDER BY o.pos
	LIMIT 1
$$;
COMMENT ON FUNCTION migrate._key_of(regclass, jsonb, boolean) IS
'the key of a source table, chosen from the keys that _remote_describe gives, its columns named as in the foreign table; null when there is none';

/* The names of a foreign table on the source, as postgres_fdw finds them. */
CREATE FUNCTION migrate._remote_name(foreign_table oid, OUT remote_schema text, OUT remote_table text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce((SELECT o.option_value FROM pg_options_to_table(f.ftoptions) o
					 WHERE o.option_name = 'schema_name'), n.nspname),
		   coalesce((SELECT o.option_value FROM pg_options_to_table(f.ftoptions) o
					 WHERE o.option_name = 'table_name'), c.relname)
	FROM pg_foreign_table f
	JOIN pg_class c ON c.oid = f.ftrelid
	JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE f.ftrelid = $1
$$;
COMMENT ON FUNCTION migrate._remote_name(oid) IS
'the names that a foreign table has on the source';

/*
 * All foreign tables of a server with their names on the source.  Takes time
 * with their number: not to be called once a table.
 */
CREATE FUNCTION migrate._foreign_tables(server oid)
RETURNS TABLE (foreign_table regclass, remote_schema text, remote_table text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT f.ftrelid::regclass,
		   coalesce((SELECT o.option_value FROM pg_options_to_table(f.ftoptions) o
					 WHERE o.option_name = 'schema_name'), n.nspname),
		   coalesce((SELECT o.option_value FROM pg_options_to_table(f.ftoptions) o
					 WHERE o.option_name = 'table_name'), c.relname)
	FROM pg_foreign_table f
	JOIN pg_class c ON c.oid = f.ftrelid
	JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE f.ftserver = $1
$$;
COMMENT ON FUNCTION migrate._foreign_tables(oid) IS
'the foreign tables of a server and the names they have on the source';

/*
 * Those that the job made or reads already; for a source table of which it has
 * none, those that other jobs made: one import serves them all.
 */
CREATE FUNCTION migrate._foreign_tables_of_job(job_id int, server oid)
RETURNS TABLE (foreign_table regclass, remote_schema text, remote_table text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT u.foreign_table, u.remote_schema, u.remote_table
	FROM (SELECT f.*, o.own, bool_or(o.own) OVER (PARTITION BY f.remote_schema, f.remote_table) AS any_own
		  FROM migrate._foreign_tables($2) f
		  JOIN (SELECT m.foreign_table, bool_or(m.job_id = $1) AS own
				FROM (SELECT s.foreign_table, s.job_id FROM migrate.source_table s WHERE s.job_id = $1
					  UNION ALL
					  SELECT to_regclass(m.object), m.job_id FROM migrate.made_object m
					  WHERE m.kind = 'foreign table') m
				GROUP BY 1) o ON o.foreign_table = f.foreign_table::oid) u
	WHERE u.own OR NOT u.any_own
$$;
COMMENT ON FUNCTION migrate._foreign_tables_of_job(int, oid) IS
'the foreign tables of a server that a job made or reads, or else that other jobs made';

/* Record, then make. */
CREATE FUNCTION migrate._make(job_id int, kind text, object text, temporary boolean, ddl text)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	INSERT INTO migrate.made_object (job_id, side, kind, object, temporary)
	VALUES ($1, 'target', $2, $3, $4);
	EXECUTE ddl;
END
$$;
COMMENT ON FUNCTION migrate._make(int, text, text, boolean, text) IS
'makes an object on the target, recorded beforehand in migrate.made_object';

CREATE FUNCTION migrate._make_schema(job_id int, name text, temporary boolean) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = $2) THEN
		PERFORM migrate._make($1, 'schema', format('%I', $2), $3, format('CREATE SCHEMA %I', $2));
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._make_schema(int, text, boolean) IS
'makes a schema when it is missing';

/*
 * A name for the foreign tables' schema in which none of the names is taken.
 */
CREATE FUNCTION migrate._propose_schema(local_schema text, source_schema text, job text, names text[])
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT p.name
	FROM (VALUES (1, $1 || '_' || $2), (2, $1 || '_' || $3), (3, $1 || '_' || $2 || '_' || $3),
				 (4, $1 || '_2'), (5, $1 || '_3'), (6, $1 || '_' || md5($1 || $2 || $3))) p(pos, name)
	WHERE octet_length(p.name) < 64
	  AND NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
					  WHERE n.nspname = p.name AND c.relname = ANY ($4))
	ORDER BY p.pos
	LIMIT 1
$$;
COMMENT ON FUNCTION migrate._propose_schema(text, text, text, text[]) IS
'a schema in which none of the names is taken yet';

/*
 * Foreign tables for the given tables of a postgres_fdw server.  Those that
 * this job has already in that schema are left alone; any other relation or
 * type of the name is an error: nothing is overwritten.
 */
CREATE FUNCTION migrate._import_tables(j migrate.job, source_schema text, local_schema text, tables text[])
RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	wanted	text[];
	taken	text;
	proposal text;
BEGIN
	WITH made AS MATERIALIZED (
		SELECT f.foreign_table::oid AS oid, f.remote_table AS name
		FROM migrate._foreign_tables($1.server) f
		JOIN (SELECT to_regclass(o.object) AS oid FROM migrate.made_object o
			  WHERE o.job_id = $1.job_id AND o.kind = 'foreign table') m ON m.oid = f.foreign_table
		WHERE f.remote_schema = $2
	)
	SELECT array_agg(t ORDER BY t) INTO wanted
	FROM unnest($4) t
	LEFT JOIN made ON made.name = t AND made.oid = to_regclass(format('%I.%I', $3, t))
	WHERE made.oid IS NULL;
	IF wanted IS NULL THEN
		RETURN 0;
	END IF;

	SELECT t INTO taken FROM unnest(wanted) t WHERE octet_length(t) > 63;
	IF taken IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42622',
			MESSAGE = format('name of table "%s" is longer than 63 bytes in the encoding of this database', taken),
			HINT = 'Make a foreign table of another name by hand, with the option table_name, and pass it to migrate_add_table.';
	END IF;
	SELECT t INTO taken
	FROM unnest(wanted) t
	WHERE EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
				  WHERE n.nspname = $3 AND c.relname = t)
	   OR EXISTS (SELECT FROM pg_type c JOIN pg_namespace n ON n.oid = c.typnamespace
				  WHERE n.nspname = $3 AND c.typname = t)
	ORDER BY t LIMIT 1;
	IF taken IS NOT NULL THEN
		proposal := migrate._propose_schema($3, $2, $1.job, wanted);
		RAISE EXCEPTION USING ERRCODE = '42P07',
			MESSAGE = format('"%s"."%s" exists already and was not made by this job', $3, taken),
			DETAIL = 'Nothing is overwritten.',
			HINT = format('Import into another schema: SELECT migrate_import(%L, %L, local_schema => %L);',
						  $1.job, $2, proposal);
	END IF;

	PERFORM migrate._import_types($1.job_id, $1.server, $2, wanted);
	PERFORM migrate._make_schema($1.job_id, $3, true);
	INSERT INTO migrate.made_object (job_id, side, kind, object)
	SELECT $1.job_id, 'target', 'foreign table', format('%I.%I', $3, t) FROM unnest(wanted) t;
	EXECUTE format('IMPORT FOREIGN SCHEMA %I LIMIT TO (%s) FROM SERVER %I INTO %I '
				   'OPTIONS (import_collate ''false'', import_default ''false'', '
				   'import_generated ''false'', import_not_null ''false'')',
				   $2, (SELECT string_agg(quote_ident(t), ', ') FROM unnest(wanted) t),
				   (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1.server), $3);
	RETURN cardinality(wanted);
END
$$;
COMMENT ON FUNCTION migrate._import_tables(migrate.job, text, text, text[]) IS
'makes foreign tables for tables of a postgres_fdw source, with the types they need; returns how many. Errors: 42P07 a name is taken; 42622 a name is too long here; as _import_types';

/*
 * Any other wrapper: IMPORT FOREIGN SCHEMA as far as it knows it.  What it
 * made is seen only afterwards.
 */
CREATE FUNCTION migrate._import_other(j migrate.job, source_schema text, local_schema text,
									  include text[], exclude text[]) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	server_name	text := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1.server);
	wild	text;
	clause	text := '';
	before	oid[];
	made	int;
BEGIN
	SELECT p INTO wild FROM unnest($4 || $5) p WHERE p ~ '[*?]' LIMIT 1;
	IF wild IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '0A000',
			MESSAGE = format('pattern "%s": server "%s" imports tables only by their names', wild, server_name),
			HINT = 'Write out the names in include or exclude; only postgres_fdw servers know * and ?.';
	END IF;
	IF $4 IS NOT NULL THEN
		SELECT format('LIMIT TO (%s)', string_agg(quote_ident(p), ', ')) INTO clause
		FROM unnest($4) p WHERE p <> ALL (coalesce($5, '{}'));
	ELSIF $5 <> '{}' THEN
		SELECT format('EXCEPT (%s)', string_agg(quote_ident(p), ', ')) INTO clause FROM unnest($5) p;
	END IF;
	PERFORM migrate._make_schema($1.job_id, $3, true);
	before := ARRAY(SELECT f.foreign_table::oid FROM migrate._foreign_tables($1.server) f);
	BEGIN
		EXECUTE format('IMPORT FOREIGN SCHEMA %I %s FROM SERVER %I INTO %I', $2, clause, server_name, $3);
	EXCEPTION
		WHEN duplicate_table THEN
			RAISE EXCEPTION USING ERRCODE = '42P07', MESSAGE = SQLERRM, DETAIL = 'Nothing is overwritten.',
				HINT = format('Import into another schema: SELECT migrate_import(%L, %L, local_schema => %L);',
							  $1.job, $2, migrate._propose_schema($3, $2, $1.job, coalesce($4, '{}')));
		WHEN fdw_no_schemas OR feature_not_supported THEN
			RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM,
				HINT = 'Make foreign tables by hand (CREATE FOREIGN TABLE) and pass them to migrate_add_table.';
	END;
	INSERT INTO migrate.made_object (job_id, side, kind, object)
	SELECT $1.job_id, 'target', 'foreign table', format('%I.%I', n.nspname, c.relname)
	FROM pg_foreign_table f
	JOIN pg_class c ON c.oid = f.ftrelid
	JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE f.ftserver = $1.server AND f.ftrelid <> ALL (before);
	GET DIAGNOSTICS made = ROW_COUNT;
	RETURN made;
END
$$;
COMMENT ON FUNCTION migrate._import_other(migrate.job, text, text, text[], text[]) IS
'IMPORT FOREIGN SCHEMA for wrappers other than postgres_fdw; returns how many tables. Errors: 0A000 patterns with wildcards; 42P07 a name is taken';

/*
 * Names of the source that include and exclude leave.  "kinds" are relkinds.
 * Partitions come in only when named; so does what an extension made.
 */
CREATE FUNCTION migrate._choose_tables(server oid, source_schema text, include text[], exclude text[], kinds text)
RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	chosen	text[];
	idle	text;
BEGIN
	WITH candidate AS (
		SELECT t.name,
			   ($3 IS NULL AND NOT t.partition AND NOT t.extension)
			   OR CASE WHEN t.partition OR t.extension THEN t.name = ANY ($3)
					   ELSE migrate._matches(t.name, $3) END AS inside,
			   migrate._matches(t.name, coalesce($4, '{}')) AS outside
		FROM migrate._remote_tables($1, $2) t
		WHERE strpos($5, t.kind) > 0
	)
	SELECT array_agg(c.name ORDER BY c.name) FILTER (WHERE c.inside AND NOT c.outside),
		   (SELECT string_agg(format('"%s"', p), ', ')
			FROM unnest(coalesce($3, '{}') || coalesce($4, '{}')) p
			WHERE p <> ALL (coalesce(array_agg(c.name), '{}'))
			  AND NOT EXISTS (SELECT FROM unnest(array_agg(c.name)) n WHERE n LIKE migrate._like_pattern(p)))
	INTO chosen, idle
	FROM candidate c;
	IF chosen IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42P01',
			MESSAGE = format('no table of schema "%s" on server "%s" matches', $2,
							 (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1)),
			DETAIL = format('include: %s; exclude: %s', coalesce($3::text, 'everything'), coalesce($4::text, 'nothing')),
			HINT = 'Patterns are names in which * stands for any text and ? for a character; partitions must be named in full.';
	END IF;
	IF idle IS NOT NULL THEN
		RAISE WARNING USING ERRCODE = '01000',
			MESSAGE = format('no table of schema "%s" matches %s', $2, idle);
	END IF;
	RETURN chosen;
END
$$;
COMMENT ON FUNCTION migrate._choose_tables(oid, text, text[], text[], text) IS
'names of tables on the source after include and exclude; a pattern that matches nothing gives a warning. Errors: 42P01 nothing is left; 3F000 no such schema';

CREATE FUNCTION @extschema@.migrate_import(job text, source_schema text, local_schema text DEFAULT NULL,
										 include text[] DEFAULT NULL, exclude text[] DEFAULT NULL)
RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	j		migrate.job := migrate._job($1, lock => true);
	place	text := coalesce($3, (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = j.server));
BEGIN
	PERFORM migrate._require_user_mapping(j.server);
	IF $2 IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = 'source_schema must not be null',
			HINT = 'Name the schema on the source, for example migrate_import(''shop'', ''public'').';
	END IF;
	IF NOT migrate._is_postgres_fdw(j.server) THEN
		RETURN migrate._import_other(j, $2, place, $4, $5);
	END IF;
	RETURN migrate._import_tables(j, $2, place,
								  migrate._choose_tables(j.server, $2, $4, $5, 'rpvmf'));
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_import(text, text, text, text[], text[]) IS
'makes foreign tables for the tables and views of a schema on the source, and the types they need: job, source_schema = there, local_schema = here (default: the server''s name, made when missing), include and exclude = name patterns (* any text, ? a character; default: all). Partitions only when named. Tables that this job has imported already are skipped. Returns the number of foreign tables made. Errors: 42704 unknown job, no user mapping, or a type of a missing extension; 08001 source not reached; 3F000 no such schema; 42P01 nothing matches; 42P07 a name is taken, with a proposal; 0A000 a kind of type that cannot be made';
