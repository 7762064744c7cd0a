/*
 * Preflight of definitions: what stays behind, with the command that moves it;
 * what moved tables need that is missing here; and how targets that were there
 * differ from the source.
 *
 * A side is described by a query that runs there and here alike, so that "is it
 * here already" is a comparison of two answers.  What the DBA has moved by hand
 * is not listed any more.
 */

/*
 * The tables that are to be like the source's: those that the job made, and in
 * a schema that it takes over also those that were there.
 */
CREATE FUNCTION migrate._moved_tables(j migrate.job)
RETURNS TABLE (remote_schema text, remote_table text, target_oid oid, made boolean)
LANGUAGE sql STABLE ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT m.remote_schema, m.remote_table, m.target_oid, true
	FROM migrate.made_relation m JOIN pg_class c ON c.oid = m.target_oid
	WHERE m.job_id = $1.job_id
	UNION ALL
	SELECT s.remote_schema, s.remote_table, m.target_oid, false
	FROM migrate.mapping m
	JOIN migrate.source_table s USING (source_id)
	JOIN pg_class c ON c.oid = m.target_oid
	WHERE m.job_id = $1.job_id AND m.kind = 'identity' AND NOT m.created_target
	  AND s.remote_schema IN (SELECT k.source_schema FROM migrate.job_schema k WHERE k.job_id = $1.job_id)
$$;
COMMENT ON FUNCTION migrate._moved_tables(migrate.job) IS
'tables of the source that a job takes over with all that is on them, partitions included, and the table here';

/* A word for a POSIX shell. */
CREATE FUNCTION migrate._shell_word(word text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN $1 ~ '^[[:alnum:]_./:=@%+,-]+$' THEN $1
				ELSE '''' || replace($1, '''', '''\''''') || '''' END
$$;
COMMENT ON FUNCTION migrate._shell_word(text) IS 'a text as one word of a shell command';

/* libpq, manual 34.1.1.1: values with spaces are quoted, \ and '' escaped. */
CREATE FUNCTION migrate._conninfo(name text, value text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('%s=%s', $1, CASE WHEN $2 ~ '^[^\s''\\]+$' THEN $2
									ELSE '''' || regexp_replace($2, '([''\\])', '\\\1', 'g') || '''' END)
$$;
COMMENT ON FUNCTION migrate._conninfo(text, text) IS 'an option as libpq reads it from a connection string';

/*
 * Where the client programs find both sides.  Passwords are never in it: they
 * ask, or find them in a password file.
 */
CREATE FUNCTION migrate._command_targets(j migrate.job, remote_user text, OUT source text, OUT here text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	known	text[] := '{host,hostaddr,port,dbname,user,service,sslmode,sslrootcert,sslcert,sslkey,gssencmode,target_session_attrs}';
BEGIN
	SELECT string_agg(migrate._conninfo(o.option_name, o.option_value), ' ' ORDER BY array_position(known, o.option_name))
	INTO source
	FROM (SELECT x.option_name, x.option_value
		  FROM pg_foreign_server s CROSS JOIN LATERAL pg_options_to_table(s.srvoptions) x
		  WHERE s.oid = $1.server AND x.option_name <> 'user'
		  UNION ALL
		  SELECT x.option_name, x.option_value
		  FROM (SELECT u.umoptions FROM pg_user_mappings u
				WHERE u.srvid = $1.server AND u.umuser IN ($1.owner, 0)
				ORDER BY u.umuser DESC LIMIT 1) m
		  CROSS JOIN LATERAL pg_options_to_table(m.umoptions) x
		  WHERE x.option_name <> 'user'
		  UNION ALL
		  SELECT 'user', $2) o
	WHERE o.option_name = ANY (known);
	-- the socket's directory is shown to few, and is rarely another
	SELECT string_agg(migrate._conninfo(o.name, o.value), ' ') INTO here
	FROM (VALUES ('host', (SELECT split_part(s.setting, ',', 1) FROM pg_settings s WHERE s.name = 'unix_socket_directories')),
				 ('port', current_setting('port')),
				 ('dbname', current_database()::text),
				 ('user', current_user::text)) o(name, value)
	WHERE o.value <> '';
	source := '-d ' || migrate._shell_word(source);
	here := '-d ' || migrate._shell_word(here);
END
$$;
COMMENT ON FUNCTION migrate._command_targets(migrate.job, text) IS
'the option -d of pg_dump, psql and pg_restore for the source of a job and for this database, without passwords';

/*
 * Everything of these schemas and tables that the job does not make, as a query
 * for either side.  "wide": with what belongs to the whole database.  "entry"
 * are the catalog and oid by which an archive of pg_dump lists it.
 */
CREATE FUNCTION migrate._stays_query(schemas text[], table_schemas text[], tables text[], wide boolean)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format($q$
	WITH sch AS (
		SELECT n.oid, n.nspname FROM pg_namespace n WHERE n.nspname = ANY (%1$L::text[])
	), rel AS (
		SELECT c.oid, n.nspname, c.relname, c.relrowsecurity, c.relforcerowsecurity
		FROM (SELECT DISTINCT * FROM unnest(%2$L::text[], %3$L::text[]) u(s, t)) w
		JOIN pg_namespace n ON n.nspname = w.s
		JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t
	), base AS (
		SELECT t.*, s.nspname FROM pg_type t JOIN sch s ON s.oid = t.typnamespace
		WHERE t.typtype = 'b' AND t.typisdefined
		  AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
	), io AS (
		SELECT b.oid AS typ, p.oid
		FROM base b JOIN pg_proc p
			ON p.oid IN (b.typinput, b.typoutput, b.typreceive, b.typsend, b.typmodin, b.typmodout, b.typanalyze)
			AND p.oid >= 16384
	), used AS (
		SELECT d.refobjid AS oid FROM pg_depend d
		JOIN pg_attrdef a ON a.oid = d.objid JOIN rel r ON r.oid = a.adrelid
		WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_proc'::regclass
		UNION SELECT d.refobjid FROM pg_depend d
		JOIN pg_constraint k ON k.oid = d.objid JOIN rel r ON r.oid = k.conrelid
		WHERE d.classid = 'pg_constraint'::regclass AND d.refclassid = 'pg_proc'::regclass
		UNION SELECT d.refobjid FROM pg_depend d
		JOIN pg_index i ON i.indexrelid = d.objid JOIN rel r ON r.oid = i.indrelid
		WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_proc'::regclass
	), found(ord, kind, schema, relation, name, shown, detail, class, oid, more) AS (
		SELECT 1, 'base type', b.nspname::text, NULL::text, b.typname::text, format('%%I.%%I', b.nspname, b.typname),
			   'a type with functions of its own; they go with it', 1247::oid, b.oid,
			   ARRAY(SELECT format('1255 %%s', i.oid) FROM io i WHERE i.typ = b.oid ORDER BY i.oid)
		FROM base b
		UNION ALL
		SELECT 2, CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END,
			   s.nspname, NULL, format('%%s(%%s)', p.proname, a.args), format('%%I.%%I(%%s)', s.nspname, p.proname, a.args),
			   CASE WHEN p.prokind = 'a' THEN 'an aggregate' ELSE 'in language ' || l.lanname END
			   || CASE WHEN EXISTS (SELECT FROM used u WHERE u.oid = p.oid)
					   THEN '; a default, a constraint or an index of a moved table uses it: move it before the start' ELSE '' END,
			   1255, p.oid, NULL
		FROM pg_proc p JOIN sch s ON s.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
		CROSS JOIN LATERAL (SELECT coalesce(string_agg(format_type(t.typ, NULL), ', ' ORDER BY t.pos),
											CASE p.prokind WHEN 'a' THEN '*' ELSE '' END) AS args
							FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY t(typ, pos)) a
		WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'i')
		  AND p.oid NOT IN (SELECT i.oid FROM io i)
		UNION ALL
		SELECT 3, 'operator', s.nspname, NULL,
			   format('%%s (%%s, %%s)', o.oprname, l.name, r.name), format('%%I.%%s (%%s, %%s)', s.nspname, o.oprname, l.name, r.name),
			   format('calls %%s', o.oprcode), 2617, o.oid, NULL
		FROM pg_operator o JOIN sch s ON s.oid = o.oprnamespace
		CROSS JOIN LATERAL (SELECT CASE o.oprleft WHEN 0 THEN 'NONE' ELSE format_type(o.oprleft, NULL) END AS name) l
		CROSS JOIN LATERAL (SELECT CASE o.oprright WHEN 0 THEN 'NONE' ELSE format_type(o.oprright, NULL) END AS name) r
		UNION ALL
		SELECT 4, 'operator family', s.nspname, NULL, format('%%s using %%s', f.opfname, a.amname),
			   format('%%I.%%I using %%s', s.nspname, f.opfname, a.amname), NULL, 2753, f.oid, NULL
		FROM pg_opfamily f JOIN sch s ON s.oid = f.opfnamespace JOIN pg_am a ON a.oid = f.opfmethod
		WHERE NOT EXISTS (SELECT FROM pg_opclass c WHERE c.opcfamily = f.oid AND c.opcname = f.opfname
						  AND c.opcnamespace = f.opfnamespace)
		UNION ALL
		SELECT 5, 'operator class', s.nspname, NULL, format('%%s using %%s', c.opcname, a.amname),
			   format('%%I.%%I using %%s', s.nspname, c.opcname, a.amname),
			   format('for type %%s', format_type(c.opcintype, NULL)), 2616, c.oid,
			   ARRAY(SELECT format('2753 %%s', f.oid) FROM pg_opfamily f
					 WHERE f.oid = c.opcfamily AND f.opfname = c.opcname AND f.opfnamespace = c.opcnamespace)
		FROM pg_opclass c JOIN sch s ON s.oid = c.opcnamespace JOIN pg_am a ON a.oid = c.opcmethod
		UNION ALL
		SELECT 6, 'cast', NULL, NULL, c.name, c.name,
			   CASE WHEN c.castfunc = 0 THEN NULL ELSE format('calls %%s', c.castfunc::regprocedure) END, 2605, c.oid, NULL
		FROM (SELECT k.*, format('(%%s as %%s)', format_type(k.castsource, NULL), format_type(k.casttarget, NULL)) AS name
			  FROM pg_cast k WHERE k.oid >= 16384) c
		WHERE EXISTS (SELECT FROM pg_type t JOIN sch s ON s.oid = t.typnamespace WHERE t.oid IN (c.castsource, c.casttarget))
		   OR EXISTS (SELECT FROM pg_proc p JOIN sch s ON s.oid = p.pronamespace WHERE p.oid = c.castfunc)
		UNION ALL
		SELECT 7, 'conversion', s.nspname, NULL, c.conname, format('%%I.%%I', s.nspname, c.conname), NULL, 2607, c.oid, NULL
		FROM pg_conversion c JOIN sch s ON s.oid = c.connamespace
		UNION ALL
		SELECT 8, 'text search parser', s.nspname, NULL, t.prsname, format('%%I.%%I', s.nspname, t.prsname), NULL, 3601, t.oid, NULL
		FROM pg_ts_parser t JOIN sch s ON s.oid = t.prsnamespace
		UNION ALL
		SELECT 9, 'text search template', s.nspname, NULL, t.tmplname, format('%%I.%%I', s.nspname, t.tmplname), NULL, 3764, t.oid, NULL
		FROM pg_ts_template t JOIN sch s ON s.oid = t.tmplnamespace
		UNION ALL
		SELECT 10, 'text search dictionary', s.nspname, NULL, t.dictname, format('%%I.%%I', s.nspname, t.dictname), NULL, 3600, t.oid, NULL
		FROM pg_ts_dict t JOIN sch s ON s.oid = t.dictnamespace
		UNION ALL
		SELECT 11, 'text search configuration', s.nspname, NULL, t.cfgname, format('%%I.%%I', s.nspname, t.cfgname), NULL, 3602, t.oid, NULL
		FROM pg_ts_config t JOIN sch s ON s.oid = t.cfgnamespace
		UNION ALL
		SELECT 12, CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END,
			   s.nspname, NULL, c.relname, format('%%I.%%I', s.nspname, c.relname),
			   CASE c.relkind WHEN 'm' THEN format('it comes empty: REFRESH MATERIALIZED VIEW %%I.%%I when the copy is done', s.nspname, c.relname)
							  WHEN 'f' THEN format('needs server %%I here', f.srvname) END,
			   1259, c.oid, NULL
		FROM pg_class c JOIN sch s ON s.oid = c.relnamespace
		LEFT JOIN pg_foreign_table ft ON ft.ftrelid = c.oid LEFT JOIN pg_foreign_server f ON f.oid = ft.ftserver
		WHERE c.relkind IN ('v', 'm', 'f')
		UNION ALL
		SELECT 13, 'default privileges', s.nspname, NULL, format('%%s %%s', pg_get_userbyid(a.defaclrole), a.defaclobjtype),
			   format('of role %%I on %%s in schema %%I', pg_get_userbyid(a.defaclrole), CASE a.defaclobjtype
					  WHEN 'r' THEN 'tables' WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'functions' WHEN 'T' THEN 'types' ELSE a.defaclobjtype::text END,
					  s.nspname), NULL, 826, a.oid, NULL
		FROM pg_default_acl a JOIN sch s ON s.oid = a.defaclnamespace
		UNION ALL
		SELECT 14, 'rule', r.nspname, r.relname, w.rulename, format('%%I on %%I.%%I', w.rulename, r.nspname, r.relname), NULL, 2618, w.oid, NULL
		FROM pg_rewrite w JOIN rel r ON r.oid = w.ev_class
		WHERE w.rulename <> '_RETURN'
		UNION ALL
		SELECT 15, 'trigger', r.nspname, r.relname, t.tgname, format('%%I on %%I.%%I', t.tgname, r.nspname, r.relname),
			   format('calls %%s', t.tgfoid::regprocedure), 2620, t.oid, NULL
		FROM pg_trigger t JOIN rel r ON r.oid = t.tgrelid
		WHERE NOT t.tgisinternal AND t.tgparentid = 0
		UNION ALL
		SELECT 16, 'policy', r.nspname, r.relname, p.polname, format('%%I on %%I.%%I', p.polname, r.nspname, r.relname), NULL, 3256, p.oid, NULL
		FROM pg_policy p JOIN rel r ON r.oid = p.polrelid
		UNION ALL
		SELECT 17, 'row security', r.nspname, r.relname, r.relforcerowsecurity::text, format('of %%I.%%I', r.nspname, r.relname),
			   CASE WHEN r.relforcerowsecurity THEN 'enabled and forced' ELSE 'enabled' END, 1259, r.oid, NULL
		FROM rel r WHERE r.relrowsecurity
		UNION ALL
		SELECT 18, 'event trigger', NULL, NULL, e.evtname, format('%%I', e.evtname), format('on %%s, calls %%s', e.evtevent, e.evtfoid::regprocedure), 3466, e.oid, NULL
		FROM pg_event_trigger e WHERE %4$L
		UNION ALL
		SELECT 19, 'publication', NULL, NULL, p.pubname, format('%%I', p.pubname), NULL, 6104, p.oid,
			   ARRAY(SELECT format('%%s %%s', d.classid, d.objid) FROM pg_depend d
					 WHERE d.refclassid = 6104 AND d.refobjid = p.oid ORDER BY 1)
		FROM pg_publication p WHERE %4$L
		UNION ALL
		SELECT 20, 'subscription', NULL, NULL, s.subname, format('%%I', s.subname), 'it comes disabled and without a slot', 6100, 0, NULL
		FROM pg_subscription s
		WHERE %4$L AND s.subdbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
	)
	SELECT f.kind, f.schema, f.relation, f.name, f.kind || ' ' || f.shown AS shown, f.detail,
		   f.class, f.oid, array_to_json(f.more) AS more
	FROM found f
	WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = f.class AND d.objid = f.oid AND d.deptype = 'e')
	   OR f.kind = 'row security'
	ORDER BY f.ord, f.oid
	$q$, $1, $2, $3, $4)
$$;
COMMENT ON FUNCTION migrate._stays_query(text[], text[], text[], boolean) IS
'a query, for either side, for what of these schemas and tables a job does not make';

/*
 * The command that moves one object that _stays_query found.  pg_restore picks
 * functions and triggers by name; what it has no option for goes by a list of
 * the archive's entries.  Where schema or table has another name here, the
 * statements go to a file, to be changed.
 */
CREATE FUNCTION migrate._move_command(o jsonb, source text, here text, renamed text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	kind	text := $1 ->> 'kind';
	full_name text := format('%s.%I', quote_ident($1 ->> 'schema'), coalesce($1 ->> 'relation', $1 ->> 'name'));
	dump	text := format('pg_dump %s --schema-only', $2);
	archive	text := CASE WHEN $1 ->> 'relation' IS NOT NULL THEN format(' -t %s', migrate._shell_word(full_name))
						 WHEN $1 ->> 'schema' IS NOT NULL THEN format(' -n %s', migrate._shell_word(quote_ident($1 ->> 'schema')))
						 ELSE '' END;
	into_here text := CASE WHEN $4 IS NULL THEN $3 ELSE '-f migrate.sql' END;
	entries	text;
	command	text;
BEGIN
	IF kind = 'row security' THEN
		RETURN format('psql %s -c %s', $3, migrate._shell_word(
			format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY%s', $1 ->> 'target',
				   CASE WHEN ($1 ->> 'name')::boolean THEN ', FORCE ROW LEVEL SECURITY' ELSE '' END)));
	ELSIF kind IN ('view', 'materialized view', 'foreign table') THEN
		command := format('%s -t %s | psql %s', dump, migrate._shell_word(full_name), $3);
		IF $4 IS NOT NULL THEN
			command := format('%s -t %s -f migrate.sql', dump, migrate._shell_word(full_name));
		END IF;
	ELSIF kind IN ('function', 'procedure', 'aggregate', 'trigger') THEN
		command := format('%s -Fc%s | pg_restore %s -n %s %s %s', dump, archive, into_here,
						  migrate._shell_word($1 ->> 'schema'),
						  CASE kind WHEN 'trigger' THEN '-T' ELSE '-P' END,
						  migrate._shell_word(concat_ws(' ', $1 ->> 'relation', $1 ->> 'name')));
	ELSE
		IF kind = 'subscription' THEN
			entries := format('-F %s', migrate._shell_word(format(' SUBSCRIPTION - %s ', $1 ->> 'name')));
		ELSE
			entries := format('-E %s', migrate._shell_word(format('^[0-9]+; (%s) ', (
				SELECT string_agg(e, '|')
				FROM (SELECT jsonb_array_elements_text(coalesce(($1 ->> 'more')::jsonb, '[]'))
					  UNION ALL SELECT format('%s %s', $1 ->> 'class', $1 ->> 'oid')) x(e)))));
			IF kind = 'base type' THEN
				entries := format('%s -e %s', replace(entries, '-E ', '-E -e '), migrate._shell_word(
					format(' SHELL TYPE %s %s ', $1 ->> 'schema', regexp_replace($1 ->> 'name', '([][\\.*^$+?(){}|])', '\\\1', 'g'))));
			END IF;
		END IF;
		command := format('%s -Fc%s -f migrate.dump && pg_restore -l migrate.dump | grep %s > migrate.list && pg_restore %s -L migrate.list migrate.dump',
						  dump, archive, entries, into_here);
	END IF;
	RETURN command || CASE WHEN $4 IS NULL THEN ''
						   ELSE format(' # then change %s in migrate.sql, and: psql %s -f migrate.sql', $4, $3) END;
END
$$;
COMMENT ON FUNCTION migrate._move_command(jsonb, text, text, text) IS
'the shell command that moves an object of _stays_query: o = its row, source and here as _command_targets gives them, renamed = what has another name here, null when nothing has';

/*
 * The objects that stay, without those that are here already.
 */
CREATE FUNCTION migrate._not_moved(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	tables	jsonb;			-- array of {s, t: on the source; hs, ht, target: here}
	schemas	jsonb;			-- array of {s, hs}
	wide	boolean;
	query	text;
	there	jsonb;
	here	jsonb;
	commands record;
BEGIN
	SELECT coalesce(jsonb_agg(jsonb_build_object('s', m.remote_schema, 't', m.remote_table, 'hs', n.nspname, 'ht', c.relname,
												 'target', migrate._name_of(m.target_oid))), '[]')
	INTO tables
	FROM migrate._moved_tables($1) m
	JOIN pg_class c ON c.oid = m.target_oid JOIN pg_namespace n ON n.oid = c.relnamespace;
	SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_object('s', k.source_schema, 'hs', k.target_schema)), '[]') INTO schemas
	FROM migrate.job_schema k WHERE k.job_id = $1.job_id;
	wide := schemas <> '[]';
	IF tables = '[]' AND NOT wide THEN
		RETURN;
	END IF;

	SELECT coalesce(jsonb_agg(r), '[]') INTO there
	FROM migrate._remote_query($1.server, migrate._stays_query(
		ARRAY(SELECT e ->> 's' FROM jsonb_array_elements(schemas) e),
		ARRAY(SELECT e ->> 's' FROM jsonb_array_elements(tables) WITH ORDINALITY x(e, pos) ORDER BY pos),
		ARRAY(SELECT e ->> 't' FROM jsonb_array_elements(tables) WITH ORDINALITY x(e, pos) ORDER BY pos), wide)) r;
	IF there = '[]' THEN
		RETURN;
	END IF;
	query := migrate._stays_query(
		ARRAY(SELECT e ->> 's' FROM jsonb_array_elements(schemas) e UNION SELECT e ->> 'hs' FROM jsonb_array_elements(schemas) e),
		ARRAY(SELECT e ->> 'hs' FROM jsonb_array_elements(tables) WITH ORDINALITY x(e, pos) ORDER BY pos),
		ARRAY(SELECT e ->> 'ht' FROM jsonb_array_elements(tables) WITH ORDINALITY x(e, pos) ORDER BY pos), wide);
	EXECUTE format('SELECT coalesce(jsonb_agg(to_jsonb(q)), ''[]'') FROM (%s) q', query) INTO here;
	SELECT * INTO commands FROM migrate._command_targets($1,
		(SELECT q ->> 'r' FROM migrate._remote_query($1.server, 'SELECT session_user AS r') q));

	RETURN QUERY
	WITH place AS (
		SELECT e ->> 's' AS s, e ->> 't' AS t, e ->> 'hs' AS hs, e ->> 'ht' AS ht, e ->> 'target' AS target
		FROM jsonb_array_elements(tables) e
		UNION ALL
		SELECT e ->> 's', NULL, e ->> 'hs', NULL, NULL FROM jsonb_array_elements(schemas) e
		UNION ALL
		-- a definition that kept its schema
		SELECT e ->> 's', NULL, e ->> 's', NULL, NULL FROM jsonb_array_elements(schemas) e WHERE e ->> 's' <> e ->> 'hs'
	), have AS (
		SELECT h ->> 'kind' AS kind, h ->> 'schema' AS schema, h ->> 'relation' AS relation, h ->> 'name' AS name
		FROM jsonb_array_elements(here) h
	), lacking AS (
		SELECT o, pos
		FROM jsonb_array_elements(there) WITH ORDINALITY x(o, pos)
		LEFT JOIN place p ON p.s = o ->> 'schema' AND p.t IS NOT DISTINCT FROM o ->> 'relation'
		LEFT JOIN have h ON h.kind = o ->> 'kind' AND h.name = o ->> 'name'
			AND h.schema IS NOT DISTINCT FROM p.hs AND h.relation IS NOT DISTINCT FROM p.ht
		GROUP BY o, pos
		HAVING count(h.kind) = 0
	)
	SELECT 'not_moved', o ->> 'shown', 'warn',
		   concat_ws('; ', 'is not moved', o ->> 'detail'),
		   migrate._move_command(o || jsonb_build_object('target', p.target), commands.source, commands.here,
			CASE WHEN p.hs <> p.s OR p.ht <> p.t
				 THEN format('%s into %s', concat_ws('.', quote_ident(p.s), quote_ident(p.t)), concat_ws('.', quote_ident(p.hs), quote_ident(p.ht))) END)
	FROM lacking
	LEFT JOIN LATERAL (SELECT x.* FROM place x
					   WHERE x.s = o ->> 'schema' AND x.t IS NOT DISTINCT FROM o ->> 'relation'
					   ORDER BY x.hs = x.s LIMIT 1) p ON true
	ORDER BY pos;
END
$$;
COMMENT ON FUNCTION migrate._not_moved(migrate.job) IS
'findings: objects of the source that the job does not move and that are not here, each with the command that moves it';

/*
 * Large objects belong to no schema, and are not seen by who reads a table.
 */
CREATE FUNCTION migrate._large_objects(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	srv		text := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1.server);
	n		bigint;
	remote_user text;
	columns	text;
	commands record;
BEGIN
	-- of the types, "lo" (contrib) is a domain over oid
	SELECT string_agg(format('%s.%I', s.source, a.attname), ', ' ORDER BY s.source, a.attnum) INTO columns
	FROM migrate.source_table s
	JOIN pg_attribute a ON a.attrelid = s.foreign_table AND a.attnum > 0 AND NOT a.attisdropped
	JOIN pg_type t ON t.oid = a.atttypid
	WHERE s.job_id = $1.job_id AND 'oid'::regtype IN (t.oid, t.typbasetype);
	IF columns IS NULL AND NOT EXISTS (SELECT FROM migrate.job_schema k WHERE k.job_id = $1.job_id) THEN
		RETURN;
	END IF;
	SELECT (q ->> 'n')::bigint, q ->> 'r' INTO n, remote_user
	FROM migrate._remote_query($1.server, $q$
		SELECT count(*) AS n, session_user AS r FROM (SELECT FROM pg_largeobject_metadata LIMIT 1000000) l
	$q$) q;
	IF n = 0 THEN
		RETURN;
	END IF;
	SELECT * INTO commands FROM migrate._command_targets($1, remote_user);
	RETURN QUERY SELECT 'large_objects', srv, 'fail',
		format('%s%s on the source %s not moved%s; accept it when they will be moved, or are not wanted', CASE n WHEN 1000000 THEN 'at least ' ELSE '' END,
			   CASE n WHEN 1 THEN 'a large object' ELSE n || ' large objects' END,
			   CASE n WHEN 1 THEN 'is' ELSE 'are' END, coalesce('; columns that may refer to them: ' || columns, '')),
		format('pg_dump %s -Fc -b --data-only -T ''*.*'' | pg_restore %s', commands.source, commands.here);
END
$$;
COMMENT ON FUNCTION migrate._large_objects(migrate.job) IS
'a finding (fail) when the source has large objects and the job takes a schema, or reads a column that may refer to one';

/*
 * Roles that the source's tables, sequences, types and schemas know, and who
 * owns them there and here.
 */
CREATE FUNCTION migrate._grants(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	schemas	text[];
	a		text[];
	b		text[];
	there	jsonb;
BEGIN
	schemas := ARRAY(SELECT DISTINCT k.source_schema FROM migrate.job_schema k WHERE k.job_id = $1.job_id ORDER BY 1);
	SELECT coalesce(array_agg(m.remote_schema), '{}'), coalesce(array_agg(m.remote_table), '{}') INTO a, b
	FROM (SELECT DISTINCT t.remote_schema, t.remote_table FROM migrate._moved_tables($1) t) m;
	IF a = '{}' AND schemas = '{}' THEN
		RETURN;
	END IF;
	SELECT jsonb_agg(r) INTO there
	FROM migrate._remote_query($1.server, format($q$
		WITH sch AS (
			SELECT n.* FROM pg_namespace n WHERE n.nspname = ANY (%L::text[])
		), rel AS (
			SELECT c.*, n.nspname
			FROM unnest(%L::text[], %L::text[]) w(s, t)
			JOIN pg_namespace n ON n.nspname = w.s
			JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t
		), seq AS (
			SELECT c.*, n.nspname, d.refobjid IS NOT NULL AS owned
			FROM pg_class c
			JOIN pg_namespace n ON n.oid = c.relnamespace
			LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
				AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
			WHERE c.relkind = 'S' AND (d.refobjid IN (SELECT r.oid FROM rel r)
									   OR (d.refobjid IS NULL AND c.relnamespace IN (SELECT s.oid FROM sch s)))
		), obj(class, oid, kind, schema, name, owner, acl) AS (
			SELECT 'pg_class'::regclass, r.oid, 'table', r.nspname::text, r.relname::text, r.relowner, r.relacl FROM rel r
			UNION ALL
			SELECT 'pg_class'::regclass, r.oid, 'table', r.nspname, r.relname, NULL, t.attacl
			FROM rel r JOIN pg_attribute t ON t.attrelid = r.oid AND t.attnum > 0 AND NOT t.attisdropped AND t.attacl IS NOT NULL
			UNION ALL
			SELECT 'pg_class'::regclass, q.oid, CASE WHEN q.owned THEN 'owned sequence' ELSE 'sequence' END, q.nspname, q.relname, q.relowner, q.relacl FROM seq q
			UNION ALL
			SELECT 'pg_type'::regclass, t.oid, 'type', s.nspname, t.typname, t.typowner, t.typacl
			FROM pg_type t JOIN sch s ON s.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
			WHERE t.typtype IN ('e', 'd', 'r') OR c.relkind = 'c'
			UNION ALL
			SELECT 'pg_namespace'::regclass, s.oid, 'schema', NULL, s.nspname, s.nspowner, s.nspacl FROM sch s
		)
		SELECT o.kind, o.schema, o.name, w.rolname AS owner, w.rolcanlogin AS owner_login,
			   (SELECT json_agg(json_build_array(g.rolname, g.rolcanlogin))
				FROM (SELECT DISTINCT u.rolname, u.rolcanlogin
					  FROM aclexplode(o.acl) x JOIN pg_roles u ON u.oid = x.grantee) g) AS granted
		FROM obj o LEFT JOIN pg_roles w ON w.oid = o.owner
		WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
		ORDER BY 2, 3
	$q$, schemas, a, b)) r;

	RETURN QUERY
	WITH obj AS (
		SELECT o ->> 'kind' AS kind, o ->> 'schema' AS schema, o ->> 'name' AS name, o ->> 'owner' AS owner,
			   (o ->> 'owner_login')::boolean AS owner_login, (o ->> 'granted')::jsonb AS granted,
			   concat_ws('.', quote_ident(o ->> 'schema'), quote_ident(o ->> 'name')) AS shown
		FROM jsonb_array_elements(there) o
	), named AS (
		SELECT o.owner AS role, o.owner_login AS login, format('owns %s', o.shown) AS what FROM obj o WHERE o.owner IS NOT NULL
		UNION
		SELECT g.pair ->> 0, (g.pair ->> 1)::boolean, format('has rights on %s', o.shown)
		FROM obj o CROSS JOIN LATERAL jsonb_array_elements(o.granted) g(pair)
		WHERE g.pair ->> 0 IS DISTINCT FROM o.owner
	)
	SELECT 'grants', format('role %I', n.role), 'warn',
		   format('does not exist here; it %s%s', array_to_string((array_agg(n.what ORDER BY n.what))[1:4], ', '),
				  CASE WHEN count(*) > 4 THEN format(' and %s more', count(*) - 4) ELSE '' END),
		   format('CREATE ROLE %I%s;', n.role, CASE WHEN bool_or(n.login) THEN ' LOGIN' ELSE '' END)
	FROM named n
	WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = n.role)
	GROUP BY n.role
	ORDER BY n.role;

	-- owners; a column's sequence follows its table
	RETURN QUERY
	WITH obj AS (
		SELECT o ->> 'kind' AS kind, o ->> 'schema' AS schema, o ->> 'name' AS name, o ->> 'owner' AS owner
		FROM jsonb_array_elements(there) o
		WHERE o ->> 'owner' IS NOT NULL AND o ->> 'kind' <> 'owned sequence'
	), place AS (
		SELECT k.source_schema, min(k.target_schema) AS target_schema
		FROM migrate.job_schema k WHERE k.job_id = $1.job_id GROUP BY 1
	), here AS (
		SELECT 1 AS ord, 'TABLE' AS kind, migrate._name_of(c.oid) AS shown, o.owner AS there, c.relowner AS role
		FROM obj o
		JOIN migrate._moved_tables($1) m ON m.remote_schema = o.schema AND m.remote_table = o.name
		JOIN pg_class c ON c.oid = m.target_oid
		WHERE o.kind = 'table'
		UNION ALL
		SELECT 2, 'SEQUENCE', migrate._name_of(c.oid), o.owner, c.relowner
		FROM obj o JOIN place p ON p.source_schema = o.schema
		JOIN pg_namespace n ON n.nspname = p.target_schema
		JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = o.name AND c.relkind = 'S'
		WHERE o.kind = 'sequence'
		UNION ALL
		SELECT 3, 'TYPE', format('%I.%I', n.nspname, t.typname), o.owner, t.typowner
		FROM obj o JOIN pg_namespace n ON n.nspname = o.schema
		JOIN pg_type t ON t.typnamespace = n.oid AND t.typname = o.name
		WHERE o.kind = 'type'
		UNION ALL
		SELECT 4, 'SCHEMA', format('%I', n.nspname), o.owner, n.nspowner
		FROM obj o JOIN place p ON p.source_schema = o.name
		JOIN pg_namespace n ON n.nspname = p.target_schema
		WHERE o.kind = 'schema'
	)
	SELECT 'grants', format('owner %I', h.there), 'warn',
		   format('owns on the source what belongs to %s here: %s%s',
				  (SELECT string_agg(DISTINCT quote_ident(pg_get_userbyid(x.role)), ', ') FROM here x WHERE x.there = h.there AND pg_get_userbyid(x.role) <> h.there),
				  array_to_string((array_agg(h.shown ORDER BY h.ord, h.shown))[1:4], ', '),
				  CASE WHEN count(*) > 4 THEN format(' and %s more', count(*) - 4) ELSE '' END),
		   -- P13: not before the copy is over
		   format('When the job is done: %s', string_agg(format('ALTER %s %s OWNER TO %I;', h.kind, h.shown, h.there), ' ' ORDER BY h.ord, h.shown))
	FROM here h
	WHERE pg_get_userbyid(h.role) <> h.there
	GROUP BY h.there
	ORDER BY h.there;
END
$$;
COMMENT ON FUNCTION migrate._grants(migrate.job) IS
'findings: roles that own moved objects on the source, or have rights on them, and are missing here; objects with another owner here';

/*
 * Extensions: those that moved tables need (their columns, defaults,
 * constraints and indexes, followed through types and functions), and those
 * that a schema's views and functions may need.  Foreign keys that lead out
 * of what is moved.
 */
CREATE FUNCTION migrate._needed_elsewhere(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	wide	boolean := EXISTS (SELECT FROM migrate.job_schema k WHERE k.job_id = $1.job_id);
	a		text[];
	b		text[];
	there	jsonb;
BEGIN
	SELECT coalesce(array_agg(m.remote_schema), '{}'), coalesce(array_agg(m.remote_table), '{}') INTO a, b
	FROM (SELECT DISTINCT t.remote_schema, t.remote_table FROM migrate._moved_tables($1) t) m;
	IF a = '{}' AND NOT wide THEN
		RETURN;
	END IF;
	SELECT jsonb_agg(r) INTO there
	FROM migrate._remote_query($1.server, format($q$
		WITH RECURSIVE rel AS (
			SELECT c.oid, n.nspname, c.relname
			FROM unnest(%L::text[], %L::text[]) w(s, t)
			JOIN pg_namespace n ON n.nspname = w.s
			JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t
		), need(class, oid) AS (
			SELECT 'pg_class'::regclass::oid, r.oid FROM rel r
			UNION SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index i JOIN rel r ON r.oid = i.indrelid
			UNION SELECT 'pg_attrdef'::regclass, d.oid FROM pg_attrdef d JOIN rel r ON r.oid = d.adrelid
			UNION SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k JOIN rel r ON r.oid = k.conrelid
			UNION
			SELECT x.class, x.oid
			FROM need n
			CROSS JOIN LATERAL (
				SELECT d.refclassid, d.refobjid FROM pg_depend d
				WHERE d.classid = n.class AND d.objid = n.oid AND d.deptype <> 'e'
				  AND d.refclassid IN ('pg_type'::regclass, 'pg_proc'::regclass, 'pg_operator'::regclass,
									   'pg_opclass'::regclass, 'pg_opfamily'::regclass, 'pg_am'::regclass,
									   'pg_collation'::regclass, 'pg_language'::regclass)
				UNION ALL
				SELECT 'pg_type'::regclass, t.typelem FROM pg_type t
				WHERE n.class = 'pg_type'::regclass AND t.oid = n.oid AND t.typelem <> 0
				UNION ALL
				-- what a composite type is made of hangs on its relation
				SELECT 'pg_class'::regclass, c.oid FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c'
				WHERE n.class = 'pg_type'::regclass AND t.oid = n.oid
			) x(class, oid)
		), used AS (
			SELECT d.refobjid AS ext, min(pg_describe_object(n.class, n.oid, 0)) AS what, count(*) AS n
			FROM need n
			JOIN pg_depend d ON d.classid = n.class AND d.objid = n.oid AND d.deptype = 'e'
				AND d.refclassid = 'pg_extension'::regclass
			GROUP BY 1
		)
		SELECT 'extension' AS kind, e.extname AS name, n.nspname AS schema, e.extversion AS version,
			   u.what, u.n, NULL AS relation, NULL AS refers_schema, NULL AS refers
		FROM pg_extension e
		JOIN pg_namespace n ON n.oid = e.extnamespace
		LEFT JOIN used u ON u.ext = e.oid
		WHERE u.ext IS NOT NULL OR (%L AND e.extname NOT IN ('plpgsql', 'migrate', 'postgres_fdw'))
		UNION ALL
		SELECT 'foreign key', k.conname, r.nspname, NULL, NULL, NULL, r.relname, n.nspname, c.relname
		FROM pg_constraint k
		JOIN rel r ON r.oid = k.conrelid
		JOIN pg_class c ON c.oid = k.confrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE k.contype = 'f' AND k.conparentid = 0
		ORDER BY 1, 3, 7, 2
	$q$, a, b, wide)) r;

	RETURN QUERY
	SELECT 'extension', e ->> 'name',
		   CASE WHEN e ->> 'what' IS NULL THEN 'warn' ELSE 'fail' END,
		   CASE WHEN x.oid IS NULL THEN 'is missing here' ELSE format('is in schema %I here, in %I there', n.nspname, e ->> 'schema') END
		   || CASE WHEN (e ->> 'n')::int = 1 THEN format('; moved tables use its %s', e ->> 'what')
				   WHEN (e ->> 'n')::int > 1 THEN format('; moved tables use its %s and %s more', e ->> 'what', (e ->> 'n')::int - 1)
				   ELSE '; no moved table uses it' END
		   || CASE WHEN x.oid IS NULL AND NOT EXISTS (SELECT FROM pg_available_extensions v WHERE v.name = e ->> 'name')
				   THEN '; its files are not installed on this server' ELSE '' END,
		   CASE WHEN x.oid IS NOT NULL THEN format('ALTER EXTENSION %I SET SCHEMA %I;', e ->> 'name', e ->> 'schema')
				ELSE format('%sCREATE EXTENSION %I SCHEMA %I;',
							CASE WHEN EXISTS (SELECT FROM pg_namespace s WHERE s.nspname = e ->> 'schema') THEN ''
								 ELSE format('CREATE SCHEMA IF NOT EXISTS %I; ', e ->> 'schema') END,
							e ->> 'name', e ->> 'schema') END
	FROM jsonb_array_elements(there) e
	LEFT JOIN pg_extension x ON x.extname = e ->> 'name'
	LEFT JOIN pg_namespace n ON n.oid = x.extnamespace
	WHERE e ->> 'kind' = 'extension' AND (x.oid IS NULL OR (e ->> 'what' IS NOT NULL AND n.nspname <> e ->> 'schema'))
	ORDER BY e ->> 'what' IS NULL, e ->> 'name';

	IF migrate._option($1.job_id, 'indexes') = 'none' THEN
		RETURN;
	END IF;
	RETURN QUERY
	SELECT 'foreign_key_target', format('%s.%I', f.shown, f.name), 'warn',
		   format('refers to %s, which is neither moved nor here', f.refers),
		   format('Move it as well: SELECT migrate_add_table(%L, %L, %2$L); or give the foreign key up with migrate_skip_steps.', $1.job, f.refers)
	FROM (SELECT DISTINCT migrate._name_of(m.target_oid) AS shown, e ->> 'name' AS name,
				 e ->> 'refers_schema' AS s, e ->> 'refers' AS t, format('%I.%I', e ->> 'refers_schema', e ->> 'refers') AS refers
		  FROM jsonb_array_elements(there) e
		  JOIN migrate._moved_tables($1) m ON m.remote_schema = e ->> 'schema' AND m.remote_table = e ->> 'relation'
		  WHERE e ->> 'kind' = 'foreign key'
			AND (m.made OR migrate._option($1.job_id, 'indexes') = 'all')) f
	WHERE to_regclass(f.refers) IS NULL
	  AND NOT EXISTS (SELECT FROM migrate.source_table s JOIN migrate.job o USING (job_id)
					  WHERE o.server = $1.server AND s.remote_schema = f.s AND s.remote_table = f.t)
	  AND NOT EXISTS (SELECT FROM migrate.made_relation r JOIN migrate.job o USING (job_id)
					  WHERE o.server = $1.server AND r.remote_schema = f.s AND r.remote_table = f.t)
	ORDER BY 2;
END
$$;
COMMENT ON FUNCTION migrate._needed_elsewhere(migrate.job) IS
'findings: extensions of the source that are missing here, foreign keys to tables that are neither moved nor here';

CREATE FUNCTION migrate._preflight_schema(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT * FROM migrate._not_moved($1)
	UNION ALL SELECT * FROM migrate._large_objects($1)
	UNION ALL SELECT * FROM migrate._grants($1)
	UNION ALL SELECT * FROM migrate._needed_elsewhere($1)
$$;
COMMENT ON FUNCTION migrate._preflight_schema(migrate.job) IS
'findings about what of the source is not moved, and what the moved tables need besides';

/*
 * Tables of either side with what a difference would matter in.  Definitions
 * are cut where names of tables and indexes end.
 */
CREATE FUNCTION migrate._definition_query(schemas text[], tables text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format($q$
	SELECT n.nspname AS schema, c.relname AS name, c.relkind AS kind, c.relpersistence AS persistence,
		   c.relispartition AS partition,
		   CASE c.relkind WHEN 'p' THEN pg_get_partkeydef(c.oid) END AS partitioned,
		   (SELECT json_object_agg(a.attname, json_build_object(
						'num', a.attnum, 'type', format_type(a.atttypid, a.atttypmod),
						'base', CASE t.typtype WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod) END,
						'notnull', a.attnotnull, 'identity', a.attidentity, 'generated', a.attgenerated,
						'inherited', a.attinhcount > 0,
						'default', pg_get_expr(d.adbin, d.adrelid),
						'sequences', (SELECT json_agg(json_build_array(sn.nspname, s.relname))
									  FROM pg_depend p JOIN pg_class s ON s.oid = p.refobjid AND s.relkind = 'S'
									  JOIN pg_namespace sn ON sn.oid = s.relnamespace
									  WHERE p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
										AND p.refclassid = 'pg_class'::regclass),
						'collation', CASE WHEN a.attcollation <> t.typcollation
										  THEN json_build_array(cn.nspname, co.collname) END))
			FROM pg_attribute a
			JOIN pg_type t ON t.oid = a.atttypid
			LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
			LEFT JOIN pg_collation co ON co.oid = a.attcollation
			LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
			WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
		   (SELECT json_agg(a.attnum ORDER BY a.attnum) FROM pg_attribute a
			WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attisdropped) AS dropped,
		   (SELECT json_agg(json_build_object(
						'name', ic.relname, 'unique', i.indisunique, 'primary', i.indisprimary,
						'contype', k.contype,
						'def', substr(pg_get_indexdef(i.indexrelid), strpos(pg_get_indexdef(i.indexrelid), ' USING ')),
						'condef', pg_get_constraintdef(k.oid)) ORDER BY ic.relname)
			FROM pg_index i
			JOIN pg_class ic ON ic.oid = i.indexrelid
			LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = c.oid AND k.contype IN ('p', 'u', 'x')
			WHERE i.indrelid = c.oid AND (i.indisvalid OR c.relkind = 'p')) AS indexes,
		   (SELECT json_agg(json_build_object('name', k.conname, 'type', k.contype,
						'def', regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', ''),
						'refers', CASE k.contype WHEN 'f' THEN json_build_array(fn.nspname, fc.relname) END) ORDER BY k.conname)
			FROM pg_constraint k
			LEFT JOIN pg_class fc ON fc.oid = k.confrelid
			LEFT JOIN pg_namespace fn ON fn.oid = fc.relnamespace
			WHERE k.conrelid = c.oid AND k.contype IN ('c', 'f') AND k.conparentid = 0) AS constraints
	FROM unnest(%1$L::text[], %2$L::text[]) w(s, t)
	JOIN pg_namespace n ON n.nspname = w.s
	JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
	$q$, $1, $2)
$$;
COMMENT ON FUNCTION migrate._definition_query(text[], text[]) IS
'a query, for either side, for the definitions of tables: columns, indexes and constraints as JSON';

/*
 * Types as format_type() writes them.  Only what is known to lose nothing is
 * wider, only what can is narrower.
 */
CREATE FUNCTION migrate._type_fits(source text, target text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	-- without (...), and the numbers in it
	s		text := regexp_replace($1, '\([-0-9, ]+\)', '');
	t		text := regexp_replace($2, '\([-0-9, ]+\)', '');
	sm		int[] := string_to_array(substring($1 from '\(([-0-9, ]+)\)'), ',')::int[];
	tm		int[] := string_to_array(substring($2 from '\(([-0-9, ]+)\)'), ',')::int[];
	-- digits before the point that a number can have
	digits	int := CASE s WHEN 'smallint' THEN 5 WHEN 'integer' THEN 10 WHEN 'bigint' THEN 19
						  WHEN 'numeric' THEN sm[1] - coalesce(sm[2], 0) END;
BEGIN
	IF $1 = $2 THEN
		RETURN 'same';
	ELSIF $1 LIKE '%[]' AND $2 LIKE '%[]' THEN
		RETURN migrate._type_fits(rtrim($1, '[]'), rtrim($2, '[]'));
	ELSIF t = 'text' OR (t = 'character varying' AND tm IS NULL) THEN
		-- P7: padding goes
		RETURN CASE s WHEN 'character' THEN 'other' ELSE 'wider' END;
	ELSIF t IN ('character varying', 'character') THEN
		RETURN CASE WHEN s IN ('character varying', 'character') AND sm[1] <= tm[1]
					THEN CASE WHEN s = t THEN 'wider' ELSE 'other' END
					ELSE 'narrower' END;
	ELSIF t IN ('smallint', 'integer', 'bigint') THEN
		RETURN CASE WHEN s NOT IN ('smallint', 'integer', 'bigint', 'numeric', 'real', 'double precision') THEN 'other'
					WHEN (s, t) IN (('smallint', 'integer'), ('smallint', 'bigint'), ('integer', 'bigint')) THEN 'wider'
					ELSE 'narrower' END;
	ELSIF t = 'numeric' THEN
		RETURN CASE WHEN s NOT IN ('smallint', 'integer', 'bigint', 'numeric') THEN 'other'
					WHEN tm IS NULL THEN 'wider'
					WHEN digits <= tm[1] - coalesce(tm[2], 0)
						AND (s <> 'numeric' OR coalesce(sm[2], 0) <= coalesce(tm[2], 0)) THEN 'wider'
					ELSE 'narrower' END;
	ELSIF t IN ('real', 'double precision') THEN
		RETURN CASE WHEN s = 'smallint' OR (t = 'double precision' AND s IN ('integer', 'real')) THEN 'wider'
					WHEN s IN ('integer', 'bigint', 'numeric', 'double precision') THEN 'narrower'
					ELSE 'other' END;
	ELSIF s = t THEN
		-- the precision of a time, the length of a bit string
		RETURN CASE WHEN tm IS NULL AND s <> 'bit' THEN 'wider'
					WHEN sm[1] <= tm[1] AND s <> 'bit' THEN 'wider'
					ELSE 'narrower' END;
	ELSIF t = 'date' OR (t LIKE 'timestamp% without time zone' AND s LIKE 'timestamp% with time zone') THEN
		RETURN 'narrower';
	ELSIF s = 'json' AND t = 'jsonb' THEN
		RETURN 'narrower';			-- doubled keys, order, white space
	END IF;
	RETURN 'other';
END
$$;
COMMENT ON FUNCTION migrate._type_fits(text, text) IS
'whether a type holds every value of another: same, wider, narrower (values could be refused or lose something), other (by its text form, not known)';

/* A default, with sequences named as in their own schema. */
CREATE FUNCTION migrate._plain_default(expression text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT regexp_replace($1, '''([^'']*\.)?([^''.]+)''::regclass', '''\2''::regclass', 'g')
$$;
COMMENT ON FUNCTION migrate._plain_default(text) IS
'the text of a default without the schemas of the sequences in it, to compare two';

/*
 * What differs in one column, whether values can be lost by it, and the statement
 * that mends it.
 * c is the column there, h here, both as _definition_query gives them.
 */
CREATE FUNCTION migrate._column_differences(target text, name text, c jsonb, h jsonb)
RETURNS TABLE (loses boolean, detail text, hint text)
LANGUAGE plpgsql STABLE ROWS 3
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	fits	text;
	alter_column text := format('ALTER TABLE %s ALTER COLUMN %I', $1, $2);
	serial	boolean := $3 ->> 'default' ~ '^nextval\(';
BEGIN
	IF $4 IS NULL THEN
		RETURN QUERY SELECT true, format('is not here; on the source it is %s', $3 ->> 'type'),
			format('ALTER TABLE %s ADD COLUMN %I %s; or take note that its values are not moved.', $1, $2, $3 ->> 'type');
		RETURN;
	END IF;
	fits := migrate._type_fits($3 ->> 'type', $4 ->> 'type');
	IF fits = 'other' THEN
		-- a domain is what it is over, as far as it goes
		fits := CASE migrate._type_fits(coalesce($3 ->> 'base', $3 ->> 'type'), coalesce($4 ->> 'base', $4 ->> 'type'))
					WHEN 'narrower' THEN 'narrower'
					WHEN 'other' THEN 'other'
					ELSE CASE WHEN $4 ->> 'base' IS NULL THEN 'wider' ELSE 'other' END END;
	END IF;
	IF fits IN ('narrower', 'other') THEN
		RETURN QUERY SELECT fits = 'narrower',
			format('is %s there, %s here: %s', $3 ->> 'type', $4 ->> 'type',
				   CASE fits WHEN 'narrower' THEN 'values that do not fit become dead letters, or are cut or rounded'
							 ELSE 'values are converted, those that are refused become dead letters' END),
			format('%s TYPE %s;', alter_column, $3 ->> 'type');
	END IF;
	IF ($4 ->> 'notnull')::boolean AND NOT ($3 ->> 'notnull')::boolean THEN
		RETURN QUERY SELECT false, 'is NOT NULL here, not on the source: rows with NULL become dead letters',
			format('%s DROP NOT NULL;', alter_column);
	ELSIF ($3 ->> 'notnull')::boolean AND NOT ($4 ->> 'notnull')::boolean THEN
		RETURN QUERY SELECT false, 'is NOT NULL on the source, not here', format('%s SET NOT NULL;', alter_column);
	END IF;
	IF ($3 ->> 'generated' <> '') <> ($4 ->> 'generated' <> '')
		OR ($3 ->> 'generated' <> '' AND $3 ->> 'default' <> $4 ->> 'default') THEN
		RETURN QUERY SELECT $3 ->> 'generated' = '',
			CASE WHEN $4 ->> 'generated' = '' THEN format('is generated on the source, as (%s), not here', $3 ->> 'default')
				 WHEN $3 ->> 'generated' = '' THEN 'is generated here, not on the source: its values are not moved'
				 ELSE format('is generated as (%s) there, as (%s) here', $3 ->> 'default', $4 ->> 'default') END,
			CASE WHEN $3 ->> 'generated' = '' THEN format('%s DROP EXPRESSION;', alter_column)
				 ELSE format('ALTER TABLE %s DROP COLUMN %I, ADD COLUMN %2$I %s GENERATED ALWAYS AS (%s) STORED;', $1, $2, $3 ->> 'type', $3 ->> 'default') END;
	ELSIF $3 ->> 'identity' <> $4 ->> 'identity'
		-- a serial that became an identity is meant
		AND NOT (serial AND $4 ->> 'identity' <> '') THEN
		RETURN QUERY SELECT false,
			CASE WHEN $4 ->> 'identity' = '' THEN 'is an identity column on the source, not here'
				 WHEN $3 ->> 'identity' = '' THEN 'is an identity column here, not on the source'
				 ELSE 'is an identity column of another kind on the source' END,
			CASE WHEN $3 ->> 'identity' = '' THEN format('%s DROP IDENTITY;', alter_column)
				 ELSE format('%s %s %s%s;', alter_column, CASE WHEN $4 ->> 'identity' = '' THEN 'ADD GENERATED' ELSE 'SET GENERATED' END,
							 CASE $3 ->> 'identity' WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END,
							 CASE WHEN $4 ->> 'identity' = '' THEN ' AS IDENTITY' ELSE '' END) END;
	ELSIF $3 ->> 'generated' = '' AND $4 ->> 'identity' = ''
		AND migrate._plain_default($3 ->> 'default') IS DISTINCT FROM migrate._plain_default($4 ->> 'default') THEN
		RETURN QUERY SELECT false,
			format('has %s there, %s here', coalesce('the default ' || ($3 ->> 'default'), 'no default'), coalesce('the default ' || ($4 ->> 'default'), 'none')),
			format('%s %s;', alter_column, coalesce('SET DEFAULT ' || ($3 ->> 'default'), 'DROP DEFAULT'));
	END IF;
	IF $3 -> 'collation' <> $4 -> 'collation' THEN
		RETURN QUERY SELECT false,
			format('has collation %s there, %s here',
				   coalesce(quote_ident($3 -> 'collation' ->> 0) || '.' || quote_ident($3 -> 'collation' ->> 1), 'default'),
				   coalesce(quote_ident($4 -> 'collation' ->> 0) || '.' || quote_ident($4 -> 'collation' ->> 1), 'default')),
			'Order, and what is equal in a nondeterministic collation, can differ.';
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._column_differences(text, text, jsonb, jsonb) IS
'differences that matter between a column on the source and the same here';

/*
 * Targets that were there, filled by name alone, compared with the source.
 */
CREATE FUNCTION migrate._preflight_definitions(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	who_builds text := migrate._option($1.job_id, 'indexes');
	targets	jsonb;
	there	jsonb;
	here	jsonb;
	build	text := format('SELECT migrate_alter_job(%L, ''{"indexes": "all"}''); has the job build it.', $1.job);
	t		record;
BEGIN
	SELECT jsonb_agg(jsonb_build_object('s', s.remote_schema, 't', s.remote_table, 'hs', n.nspname, 'ht', c.relname,
										'target', m.target, 'foreign', s.foreign_table) ORDER BY m.target)
	INTO targets
	FROM migrate.mapping m
	JOIN migrate.source_table s USING (source_id)
	JOIN pg_class c ON c.oid = m.target_oid JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE m.job_id = $1.job_id AND m.kind = 'identity' AND NOT m.created_target AND s.remote_table IS NOT NULL;
	IF targets IS NULL THEN
		RETURN;
	END IF;
	SELECT jsonb_agg(r) INTO there
	FROM migrate._remote_query($1.server, migrate._definition_query(
		ARRAY(SELECT e ->> 's' FROM jsonb_array_elements(targets) WITH ORDINALITY x(e, pos) ORDER BY pos),
		ARRAY(SELECT e ->> 't' FROM jsonb_array_elements(targets) WITH ORDINALITY x(e, pos) ORDER BY pos))) r;
	EXECUTE format('SELECT jsonb_agg(to_jsonb(q)) FROM (%s) q', migrate._definition_query(
		ARRAY(SELECT e ->> 'hs' FROM jsonb_array_elements(targets) WITH ORDINALITY x(e, pos) ORDER BY pos),
		ARRAY(SELECT e ->> 'ht' FROM jsonb_array_elements(targets) WITH ORDINALITY x(e, pos) ORDER BY pos))) INTO here;

	FOR t IN
		WITH a AS (SELECT DISTINCT ON (o ->> 'schema', o ->> 'name') o ->> 'schema' AS schema, o ->> 'name' AS name, o FROM jsonb_array_elements(there) o),
			 b AS (SELECT DISTINCT ON (o ->> 'schema', o ->> 'name') o ->> 'schema' AS schema, o ->> 'name' AS name, o FROM jsonb_array_elements(here) o)
		SELECT e ->> 'target' AS target, (e ->> 'foreign')::oid AS ft,
			   a.o ->> 'kind' AS kind, a.o ->> 'persistence' AS there_persistence, b.o ->> 'persistence' AS here_persistence,
			   a.o ->> 'partitioned' AS there_partitioned, b.o ->> 'partitioned' AS here_partitioned,
			   (a.o ->> 'columns')::jsonb AS there_columns, coalesce(b.o -> 'columns', '{}') AS here_columns,
			   coalesce((a.o ->> 'indexes')::jsonb, '[]') AS there_indexes,
			   coalesce(nullif(b.o -> 'indexes', 'null'), '[]') AS here_indexes,
			   coalesce((a.o ->> 'constraints')::jsonb, '[]') AS there_constraints,
			   coalesce(nullif(b.o -> 'constraints', 'null'), '[]') AS here_constraints
		FROM jsonb_array_elements(targets) WITH ORDINALITY x(e, pos)
		JOIN a ON a.schema = e ->> 's' AND a.name = e ->> 't'
		JOIN b ON b.schema = e ->> 'hs' AND b.name = e ->> 'ht'
		ORDER BY pos
	LOOP
		-- never 'fail': who made the target another way meant something by it
		RETURN QUERY
		SELECT 'target_definition_diff', format('column %I of %s', coalesce(f.local_name, c.key), t.target), 'warn', d.detail, d.hint
		FROM jsonb_each(t.there_columns) c
		LEFT JOIN migrate._foreign_columns(t.ft) f ON f.remote_name = c.key
		CROSS JOIN LATERAL migrate._column_differences(t.target, coalesce(f.local_name, c.key), c.value,
													   t.here_columns -> coalesce(f.local_name, c.key)) d
		-- a view has no definition that its columns could differ from
		WHERE t.kind IN ('r', 'p') OR d.loses
		ORDER BY (c.value ->> 'num')::int;
		CONTINUE WHEN t.kind NOT IN ('r', 'p');
		IF t.there_partitioned IS DISTINCT FROM t.here_partitioned THEN
			RETURN QUERY SELECT 'target_definition_diff', format('partitions of %s', t.target), 'warn',
				format('is %s there, %s here', coalesce('partitioned by ' || t.there_partitioned, 'not partitioned'),
					   coalesce('partitioned by ' || t.here_partitioned, 'not partitioned')),
				'Rows go where the table here puts them; rows that fit no partition become dead letters.';
		END IF;
		IF t.here_persistence = 'u' AND t.there_persistence <> 'u' THEN
			RETURN QUERY SELECT 'target_definition_diff', format('table %s', t.target), 'warn',
				'is unlogged here, not on the source: a crash empties it', format('ALTER TABLE %s SET LOGGED;', t.target);
		END IF;
		-- with all the job builds them, with none the DBA knows
		CONTINUE WHEN who_builds <> 'auto';
		RETURN QUERY
		SELECT 'target_definition_diff', format('%s %I of %s', x.what, x.name, t.target), 'warn',
			   format('is on the source, not here: %s', x.def), build
		FROM (SELECT CASE i ->> 'contype' WHEN 'p' THEN 'primary key' WHEN 'u' THEN 'unique constraint' WHEN 'x' THEN 'exclusion constraint'
					 ELSE CASE WHEN (i ->> 'unique')::boolean THEN 'unique index' ELSE 'index' END END AS what,
					 i ->> 'name' AS name,
					 coalesce(i ->> 'condef', ltrim(i ->> 'def')) AS def
			  FROM jsonb_array_elements(t.there_indexes) i
			  WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(t.here_indexes) h
								WHERE h -> 'unique' = i -> 'unique' AND h ->> 'def' = i ->> 'def'
								  AND (h -> 'primary' = i -> 'primary' OR NOT (i ->> 'primary')::boolean)
								  AND (h -> 'condef' = i -> 'condef' OR i ->> 'contype' <> 'x' OR i ->> 'contype' IS NULL))
			  UNION ALL
			  SELECT CASE k ->> 'type' WHEN 'c' THEN 'check constraint' ELSE 'foreign key' END, k ->> 'name', k ->> 'def'
			  FROM jsonb_array_elements(t.there_constraints) k
			  WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(t.here_constraints) h
								WHERE h ->> 'type' = k ->> 'type'
								  -- the table it refers to may have another name here
								  AND CASE h ->> 'type' WHEN 'f'
									  THEN regexp_replace(h ->> 'def', 'REFERENCES .*\(', '(') = regexp_replace(k ->> 'def', 'REFERENCES .*\(', '(')
									  ELSE h ->> 'def' = k ->> 'def' END)) x
		ORDER BY x.what, x.name;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._preflight_definitions(migrate.job) IS
'findings: how target tables that were there differ from the source tables that fill them by name';
