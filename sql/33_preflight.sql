/*
 * Preflight: what would go wrong, and the remedy; and what the job needs on
 * the source.
 *
 * A check gives one row a finding, or one row 'ok' when it found nothing.
 * Finding something never raises an error; neither does a check that cannot
 * be made, which is a finding itself.  The source is asked a few times in
 * all, whatever the number of tables.
 */

/*
 * Every check, in the order in which they are shown, and the part that makes
 * it.  "remote": it needs a source behind postgres_fdw that can be reached.
 */
CREATE FUNCTION migrate._checks() RETURNS TABLE (name text, part text, remote boolean)
LANGUAGE sql IMMUTABLE ROWS 40
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT u.n, c.part, c.remote
	FROM (VALUES
		(1, 'job', false, '{owner,user_mapping,tables,worker_slots,launcher}'),
		(2, 'source', true, '{connection,source_version,encoding,source_table,source_privilege,row_security,source_key,
			source_kind,inheritance,types,generated_column}'),
		(3, 'capture', true, '{capture,capture_server,capture_role,capture_slot,publication,replica_identity,stream_key,stream_column,
			open_transactions,source_wal}'),
		(4, 'schema', true, '{not_moved,large_objects,grants,extension,foreign_key_target}'),
		(5, 'target', false, '{foreign_table,target,target_privilege,target_owner,target_row_security,target_empty,
			target_indexes,target_triggers}'),
		(6, 'definitions', true, '{target_definition_diff}'),
		(7, 'mappings', false, '{mapping,reads,key_map,key_index,sample,columns_left}'),
		(8, 'cutover', true, '{waves,way_back}')) c(ord, part, remote, names)
	CROSS JOIN LATERAL unnest(c.names::text[]) WITH ORDINALITY u(n, pos)
	ORDER BY c.ord, u.pos
$$;
COMMENT ON FUNCTION migrate._checks() IS
'all checks of migrate_preflight in their order: name, the part _preflight_<part> that makes it, and whether it reads the catalogs of the source';

CREATE FUNCTION migrate._check_names() RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT ARRAY(SELECT c.name FROM migrate._checks() c)
$$;
COMMENT ON FUNCTION migrate._check_names() IS 'the names of all checks of migrate_preflight, in the order in which it shows them';

CREATE FUNCTION migrate._preflight_job(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	srv		text := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1.server);
	owner	text := (SELECT r.rolname FROM pg_roles r WHERE r.oid = $1.owner);
	wanted	int := migrate._option($1.job_id, 'workers')::int + 1;
	slots	int := current_setting('max_worker_processes')::int;
	taken	int;
BEGIN
	IF owner IS NULL THEN
		RETURN QUERY SELECT 'owner', $1.owner::text, 'fail', 'the role that owns the job does not exist any more',
			'Drop the job and make it anew.';
	ELSIF NOT (SELECT r.rolcanlogin FROM pg_roles r WHERE r.oid = $1.owner) THEN
		RETURN QUERY SELECT 'owner', owner, 'fail', 'workers connect as the owner of the job, who may not log in',
			format('ALTER ROLE %I LOGIN;', owner);
	END IF;
	IF srv IS NULL THEN
		RETURN QUERY SELECT 'user_mapping', '', 'fail', 'the foreign server of the job does not exist any more',
			'Drop the job and make it anew.';
	ELSIF migrate._is_postgres_fdw($1.server) AND NOT migrate._has_user_mapping($1.server, $1.owner) THEN
		RETURN QUERY SELECT 'user_mapping', srv, 'fail', format('role "%s" has no user mapping', owner),
			format('CREATE USER MAPPING FOR %I SERVER %I OPTIONS (user ''...'', password ''...'');', owner, srv);
	END IF;
	IF NOT EXISTS (SELECT FROM migrate.mapping m WHERE m.job_id = $1.job_id) THEN
		RETURN QUERY SELECT 'tables', $1.job, 'warn', 'the job has no tables',
			'Add them with migrate_add_schema or migrate_add_table.';
	END IF;

	-- background workers, as far as this role is shown them
	SELECT count(*) INTO taken FROM pg_stat_activity a
	WHERE a.backend_type NOT IN ('client backend', 'autovacuum launcher', 'autovacuum worker', 'checkpointer',
								 'background writer', 'walwriter', 'walsender', 'walreceiver', 'startup',
								 'archiver', 'logger', 'standalone backend', 'slotsync worker', 'walsummarizer',
								 'io worker');
	IF slots - taken < wanted AND $1.wanted <> 'run' THEN
		RETURN QUERY SELECT 'worker_slots', $1.job, 'warn',
			format('%s of %s worker processes (max_worker_processes) are free, the job wants %s', slots - taken, slots, wanted),
			'Raise max_worker_processes (needs a restart) or lower option workers; with fewer the copy is slower, and with none it waits.';
	END IF;
	IF EXISTS (SELECT FROM pg_settings s
			   WHERE s.name = 'shared_preload_libraries' AND s.setting !~ '(^|[,/" ])migrate($|[," .])') THEN
		RETURN QUERY SELECT 'launcher', $1.job, 'warn', 'after a restart of this server the job waits for migrate_resume',
			'Put migrate into shared_preload_libraries (needs a restart) to have jobs go on by themselves.';
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._preflight_job(migrate.job) IS 'findings about the job itself';

CREATE FUNCTION migrate._preflight_source(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	srv		text := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1.server);
	here	text := getdatabaseencoding();
	r		jsonb;
	version	int;
	t		record;
	diff	text;
BEGIN
	IF NOT migrate._is_postgres_fdw($1.server) THEN
		RETURN QUERY
		SELECT 'source_key', s.source, 'warn', 'no key is known, rows cannot be told apart',
			   'Name the columns that identify a row with key => ''{"target column": "source column"}''.'
		FROM migrate.source_table s
		WHERE s.job_id = $1.job_id AND s.key_columns = '{}'
		ORDER BY s.source;
		RETURN;
	END IF;
	BEGIN
		SELECT q INTO r FROM migrate._remote_query($1.server, $q$
			SELECT current_setting('server_version_num') AS num, current_setting('server_version') AS version,
				   current_setting('server_encoding') AS encoding, current_user AS role
		$q$) q;
	EXCEPTION WHEN OTHERS THEN
		RETURN QUERY SELECT 'connection', srv, 'fail', SQLERRM,
			format('Check host, port and dbname of server %I, its user mapping, and pg_hba.conf of the source.', srv);
		RETURN;
	END;
	RETURN QUERY SELECT 'connection', srv, 'ok', format('PostgreSQL %s as role "%s"', r ->> 'version', r ->> 'role'), NULL::text;
	version := (r ->> 'num')::int;
	IF version < 140000 THEN
		-- P8
		RETURN QUERY SELECT 'source_version', srv, CASE WHEN version < 130000 THEN 'fail' ELSE 'warn' END,
			format('PostgreSQL %s', r ->> 'version'),
			CASE WHEN version < 130000 THEN 'Sources are supported from PostgreSQL 13.'
				 ELSE 'Before 14 tables are cut by ranges of their key, not of blocks; those without a key are copied in one piece.' END;
	END IF;
	IF r ->> 'encoding' <> here THEN
		IF 'SQL_ASCII' IN (r ->> 'encoding', here) THEN
			RETURN QUERY SELECT 'encoding', srv, 'warn', format('source %s, here %s: text is not converted or checked', r ->> 'encoding', here),
				'Rows with bytes that are not valid here become dead letters.';
		ELSIF here <> 'UTF8' THEN
			RETURN QUERY SELECT 'encoding', srv, 'warn', format('source %s, here %s: not every character exists here', r ->> 'encoding', here),
				'Rows with other characters become dead letters; a database in UTF8 takes all.';
		END IF;
	END IF;

	FOR t IN
		SELECT s.source, s.key_columns, s.foreign_table, s.remote_schema, s.remote_table, s.only_parent, d.kind, d.columns,
			   d.readable, d.row_security, d.children, d.remote_table IS NULL AS gone,
			   migrate._key_of(s.foreign_table, d.keys, true) AS late_key
		FROM migrate.source_table s
		LEFT JOIN (SELECT x.* FROM (SELECT array_agg(o.remote_schema) AS a, array_agg(o.remote_table) AS b
									FROM (SELECT DISTINCT o.remote_schema, o.remote_table
										  FROM migrate.source_table o
										  WHERE o.job_id = $1.job_id AND o.remote_table IS NOT NULL) o) n
				   CROSS JOIN LATERAL migrate._remote_describe($1.server, n.a, n.b) x
				   WHERE n.a IS NOT NULL) d USING (remote_schema, remote_table)
		WHERE s.job_id = $1.job_id
		ORDER BY s.source
	LOOP
		IF t.gone THEN
			RETURN QUERY SELECT 'source_table', t.source, 'fail', 'the table does not exist on the source (any more)',
				'Take its mapping out with migrate_remove_table, or restore the table.';
			CONTINUE;
		END IF;
		-- only what the foreign table has is asked for
		SELECT string_agg(format('%I', k ->> 'name'), ', ' ORDER BY c.attnum) INTO diff
		FROM migrate._foreign_columns(t.foreign_table) c
		JOIN jsonb_array_elements(t.columns) k ON k ->> 'name' = c.remote_name
		WHERE NOT (k ->> 'readable')::boolean;
		IF diff IS NOT NULL OR NOT t.readable THEN
			RETURN QUERY SELECT 'source_privilege', t.source, 'fail',
				CASE WHEN t.readable THEN format('role "%s" may not read all columns: %s', r ->> 'role', diff)
					 ELSE format('role "%s" may not read the table', r ->> 'role') END,
				format('On the source: GRANT USAGE ON SCHEMA %I TO %I; GRANT SELECT ON %I.%I TO %2$I; (see migrate_source_sql)',
					   t.remote_schema, r ->> 'role', t.remote_schema, t.remote_table);
		END IF;
		IF t.row_security THEN
			-- P6: reading would end in an error, never in missing rows
			RETURN QUERY SELECT 'row_security', t.source, 'fail', format('row security would hide rows from role "%s"', r ->> 'role'),
				format('On the source: ALTER ROLE %I BYPASSRLS; or connect as the owner of the table.', r ->> 'role');
		END IF;
		IF t.key_columns = '{}' THEN
			RETURN QUERY SELECT 'source_key', t.source, 'warn',
				CASE WHEN t.late_key IS NULL THEN 'no primary key and no unique key over NOT NULL columns: rows cannot be told apart'
					 ELSE format('the key (%s) is deferrable, so rows can exchange it: it counts as none, and rows cannot be told apart',
								 (SELECT string_agg(quote_ident(k), ', ' ORDER BY pos)
								  FROM jsonb_array_elements_text(t.late_key -> 'columns') WITH ORDINALITY c(k, pos))) END,
				CASE WHEN t.late_key IS NULL THEN 'Add a key on' ELSE 'Have a key that is not deferrable on' END || ' the source; without one a row cannot be found again for replay, and validation compares counts and sums only.';
		END IF;
		IF t.kind IN ('v', 'm', 'f') THEN
			RETURN QUERY SELECT 'source_kind', t.source, 'warn',
				format('is a %s', CASE t.kind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END),
				'It is read as it is at that moment; changes of it cannot be followed.';
		END IF;
		IF t.only_parent AND migrate._option($1.job_id, 'transport') = 'fdw' THEN
			RETURN QUERY SELECT 'inheritance', t.source, 'fail',
				'its children are targets of their own, and transport fdw cannot read it without them',
				format('SELECT migrate_alter_job(%L, ''{"transport": "copy"}''); or take the mappings of the children out.', $1.job);
		ELSIF t.children AND NOT t.only_parent THEN
			RETURN QUERY SELECT 'inheritance', t.source, 'warn', 'other tables inherit from it',
				'Make sure that their rows are copied once: read either the parent or the children.';
		END IF;
		-- P7
		SELECT string_agg(format('%I (%s there, %s here)', c.local_name, k ->> 'type', c.type), ', ' ORDER BY c.attnum)
		INTO diff
		FROM migrate._foreign_columns(t.foreign_table) c
		JOIN jsonb_array_elements(t.columns) k ON k ->> 'name' = c.remote_name
		WHERE k ->> 'type' <> c.type;
		IF diff IS NOT NULL THEN
			RETURN QUERY SELECT 'types', t.source, 'warn', format('foreign table %s declares other types: %s', migrate._name_of(t.foreign_table), diff),
				'Values are converted by their text form; those that the declared type refuses become dead letters.';
		END IF;
		SELECT string_agg(format('%I', c.local_name), ', ' ORDER BY c.attnum) INTO diff
		FROM migrate._foreign_columns(t.foreign_table) c
		LEFT JOIN jsonb_array_elements(t.columns) k ON k ->> 'name' = c.remote_name
		WHERE k IS NULL;
		IF diff IS NOT NULL THEN
			RETURN QUERY SELECT 'source_table', t.source, 'fail',
				format('columns of foreign table %s are not on the source: %s', migrate._name_of(t.foreign_table), diff),
				'Drop them from the foreign table, or set their option column_name.';
		END IF;
		SELECT string_agg(format('%I', c.local_name), ', ' ORDER BY c.attnum) INTO diff
		FROM migrate._foreign_columns(t.foreign_table) c
		JOIN jsonb_array_elements(t.columns) k ON k ->> 'name' = c.remote_name AND k ->> 'generated' <> ''
		JOIN migrate.source_table s ON s.job_id = $1.job_id AND s.foreign_table = t.foreign_table
		WHERE EXISTS (SELECT FROM migrate.mapping m
					  WHERE m.source_id = s.source_id
						AND (m.kind = 'function'
							 OR (c.local_name = ANY (m.target_columns) AND NOT coalesce(m.columns ? c.local_name, false))
							 OR concat_ws(' ', m.columns::text, m.filter, m.key::text) ~ ('\m' || regexp_replace(c.local_name, '(\W)', '\\\1', 'g') || '\M')));
		IF diff IS NOT NULL THEN
			RETURN QUERY SELECT 'generated_column', t.source, 'warn',
				format('generated on the source, and a mapping may read it: %s', diff),
				'A copy reads it; a change stream does not carry it. Compute it on the target instead.';
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._preflight_source(migrate.job) IS 'findings about the source and its tables';

CREATE FUNCTION migrate._preflight_target(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	owner	text := (SELECT r.rolname FROM pg_roles r WHERE r.oid = $1.owner);
	m		record;
	list	text;
	n		bigint;
	filled	jsonb;
BEGIN
	RETURN QUERY
	SELECT 'foreign_table', s.source, 'fail', 'the foreign table was dropped', 'Take the mapping out with migrate_remove_table and add it again.'
	FROM migrate.source_table s
	WHERE s.job_id = $1.job_id AND NOT EXISTS (SELECT FROM pg_foreign_table f WHERE f.ftrelid = s.foreign_table)
	ORDER BY s.source;

	FOR m IN SELECT * FROM migrate.mapping x WHERE x.job_id = $1.job_id ORDER BY x.target, x.mapping_id
	LOOP
		IF migrate._name_of(m.target_oid) IS NULL THEN
			RETURN QUERY SELECT 'target', m.target, 'fail', 'the target table was dropped',
				'Take the mapping out with migrate_remove_table and add it again.';
			CONTINUE;
		END IF;
		SELECT string_agg(p, ', ') INTO list
		FROM unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) p
		WHERE NOT has_table_privilege($1.owner, m.target_oid, p);
		IF list IS NOT NULL THEN
			RETURN QUERY SELECT 'target_privilege', m.target, 'fail', format('role "%s" lacks %s', owner, list),
				format('GRANT %s ON %s TO %I;', list, m.target, owner);
		ELSIF NOT has_table_privilege($1.owner, m.target_oid, 'TRUNCATE') THEN
			RETURN QUERY SELECT 'target_privilege', m.target, 'warn', format('role "%s" lacks TRUNCATE: migrate_recopy deletes row by row', owner),
				format('GRANT TRUNCATE ON %s TO %I;', m.target, owner);
		END IF;
		IF NOT pg_has_role($1.owner, (SELECT c.relowner FROM pg_class c WHERE c.oid = m.target_oid), 'USAGE') THEN
			-- P13
			RETURN QUERY SELECT 'target_owner', m.target, 'warn',
				format('role "%s" does not own the table: its triggers and foreign keys are worked for every row', owner),
				format('ALTER TABLE %s OWNER TO %I; or let the owner of the table own the job.', m.target, owner);
		END IF;
		IF has_table_privilege(m.target_oid, 'SELECT') AND row_security_active(m.target_oid) THEN
			RETURN QUERY SELECT 'target_row_security', m.target, 'warn', 'row security applies to writing and to validation',
				format('ALTER ROLE %I BYPASSRLS; or let the owner of the table own the job.', owner);
		END IF;
		IF NOT m.created_target THEN
			BEGIN
				filled := migrate._query_under(m.search_path,
					format('SELECT to_jsonb(EXISTS (SELECT FROM %s%s))', m.target, coalesce(' WHERE ' || migrate._parenthesized(m.owns), '')));
				IF filled = 'true' AND $1.state = 'defined' THEN
					RETURN QUERY SELECT 'target_empty', m.target, 'warn', 'the target has rows already',
						'They stay; rows with the same key are replaced. Empty the table first if they are not wanted.';
				END IF;
			EXCEPTION WHEN OTHERS THEN
				RETURN QUERY SELECT 'target_empty', m.target, 'warn', format('cannot be read: %s', SQLERRM), NULL::text;
			END;
			SELECT count(*), string_agg(x.relname, ', ' ORDER BY x.relname) INTO n, list
			FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
			WHERE i.indrelid = m.target_oid;
			IF n > 0 AND migrate._option($1.job_id, 'content') <> 'definitions' THEN
				RETURN QUERY SELECT 'target_indexes', m.target, 'warn',
					format('%s the slow way, row by row: %s', CASE n WHEN 1 THEN 'an index forces' ELSE n || ' indexes force' END, list),
					format('The copy is faster into a table without indexes. Restore only its pre-data (pg_dump --section=pre-data; --section=post-data after the copy), or drop them, and have the job build what the source has: SELECT migrate_alter_job(%L, ''{"indexes": "all"}'');', $1.job);
			END IF;
		END IF;
		SELECT string_agg(t.tgname, ', ' ORDER BY t.tgname) INTO list
		FROM pg_trigger t
		WHERE t.tgrelid = m.target_oid AND NOT t.tgisinternal AND t.tgenabled <> 'D';
		IF list IS NOT NULL THEN
			RETURN QUERY SELECT 'target_triggers', m.target, 'warn', format('triggers force the slow way: %s', list),
				'They do not fire for copied rows when the owner of the job owns the table, unless they are ENABLE ALWAYS or REPLICA; disable them until the copy is done.';
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._preflight_target(migrate.job) IS 'findings about the target tables';

CREATE FUNCTION migrate._query_under(path text, query text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	result	jsonb;
BEGIN
	BEGIN
		PERFORM set_config('search_path', $1, true);
		EXECUTE $2 INTO result;
		-- what a mapping writes on the way is not to stay
		RAISE EXCEPTION USING ERRCODE = 'MGUND';
	EXCEPTION WHEN SQLSTATE 'MGUND' THEN
		NULL;
	END;
	RETURN result;
END
$$;
COMMENT ON FUNCTION migrate._query_under(text, text) IS
'runs a query that gives one jsonb value, under a search_path';

/*
 * The mapping over a few source rows: do key map and mapped columns agree,
 * and do the mapped rows lie within "owns"?  The query's markers let it read
 * the sample in the place of "source", and give the key besides.
 */
CREATE FUNCTION migrate._sample_query(m migrate.mapping, foreign_table oid, sample_rows int) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	keys	text;			-- key expressions, into the mapping's SELECT
	casts	text;			-- everything with the target's types
	differ	text;
BEGIN
	SELECT string_agg(format('%s AS migrate_k%s, ', k.value, k.pos), '' ORDER BY k.pos),
		   string_agg(format('CAST(migrate_k%s AS %s) AS migrate_k%1$s', k.pos, format_type(c.type_oid, c.typmod)), ', '),
		   string_agg(format('%I IS DISTINCT FROM migrate_k%s', k.key, k.pos), ' OR ')
			   FILTER (WHERE k.key = ANY ($1.target_columns))
	INTO keys, casts, differ
	FROM jsonb_each_text($1.key) WITH ORDINALITY k(key, value, pos)
	JOIN migrate._columns_of($1.target_oid) c ON c.name = k.key;

	SELECT concat_ws(', ', string_agg(format('CAST(%I AS %s) AS %1$I', c.name, format_type(c.type_oid, c.typmod)), ', '), casts)
	INTO casts
	FROM migrate._columns_of($1.target_oid) c WHERE c.name = ANY ($1.target_columns);

	RETURN format('SELECT jsonb_build_object(''rows'', count(*), ''keys'', count(*) FILTER (WHERE %s), '
				  '''owned'', count(*) FILTER (WHERE %s)) FROM (SELECT %s FROM (%s) AS migrate_q) AS %I',
				  coalesce(differ, 'false'),
				  coalesce(migrate._parenthesized($1.owns) || ' IS NOT TRUE', 'false'),
				  casts,
				  replace(replace($1.query, 'FROM /*migrate*/ source',
								  format('FROM (SELECT * FROM %s LIMIT %s) AS source', migrate._name_of($2), $3)),
						  'SELECT /*migrate*/ ', 'SELECT ' || coalesce(keys, '')),
				  (SELECT c.relname FROM pg_class c WHERE c.oid = $1.target_oid));
END
$$;
COMMENT ON FUNCTION migrate._sample_query(migrate.mapping, oid, int) IS
'a query that counts in a sample of source rows: mapped rows, those whose key map disagrees with them, and those outside owns';

CREATE FUNCTION migrate._preflight_mappings(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	m		migrate.mapping;
	ft		oid;
	src		text;
	list	text;
	sample	jsonb;
	reads_tables oid[];
	k		text[];
	key_list text;
BEGIN
	FOR m IN SELECT * FROM migrate.mapping x WHERE x.job_id = $1.job_id ORDER BY x.target, x.mapping_id
	LOOP
		SELECT s.foreign_table, s.source INTO ft, src FROM migrate.source_table s WHERE s.source_id = m.source_id;
		CONTINUE WHEN migrate._name_of(m.target_oid) IS NULL OR migrate._name_of(ft) IS NULL;	-- told elsewhere

		BEGIN
			reads_tables := migrate._mapping_check(m.mapping_id)::oid[];
		EXCEPTION WHEN OTHERS THEN
			RETURN QUERY SELECT 'mapping', m.target, 'fail', SQLERRM, 'Mend the mapping, or take it out with migrate_remove_table and add it anew.';
			CONTINUE;
		END;
		-- P15
		SELECT string_agg(migrate._name_of(r), ', ' ORDER BY migrate._name_of(r)) INTO list
		FROM (SELECT DISTINCT unnest(reads_tables)) u(r)
		WHERE r <> ft AND migrate._name_of(r) <> ALL (m.reads);
		IF list IS NOT NULL THEN
			RETURN QUERY SELECT 'reads', m.target, 'warn', format('the mapping reads tables that are not declared: %s', list),
				'Declare them with reads of migrate_add_table, and do not change them while the job runs.';
		END IF;

		-- P11
		IF m.key IS NULL THEN
			RETURN QUERY SELECT 'key_map', m.target, 'warn', format('nothing tells which target row a row of %s became', src),
				'Give key => ''{"target column": "source column"}'' over a unique key of the source; without it replay and repair cannot replace a row.';
		ELSE
			k := ARRAY(SELECT jsonb_object_keys(m.key));
			SELECT string_agg(quote_ident(x), ', ' ORDER BY x) INTO list FROM unnest(k) x WHERE x <> ALL (m.target_columns);
			IF list IS NOT NULL THEN
				RETURN QUERY SELECT 'key_map', m.target, 'fail', format('the mapping does not give the key column(s) %s', list),
					'Give them in columns or in the mapping function''s row.';
			END IF;
			-- an index over all partitions must have the columns that they go by
			SELECT string_agg(coalesce(quote_ident(a.attname), 'an expression'), ', ' ORDER BY o.pos) INTO list
			FROM migrate.made_relation r
			JOIN pg_partitioned_table p ON p.partrelid = r.target_oid
			CROSS JOIN LATERAL unnest(p.partattrs::int2[]) WITH ORDINALITY o(num, pos)
			LEFT JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = o.num AND o.num > 0
			WHERE r.target_oid = m.target_oid AND r.own_definition AND (a.attname = ANY (k)) IS NOT TRUE;
			key_list := (SELECT string_agg(quote_ident(x), ', ' ORDER BY x) FROM unnest(k) x);
			IF list IS NOT NULL THEN
				RETURN QUERY SELECT 'key_index', m.target, 'warn',
					format('the table is partitioned by %s, which the key (%s) lacks: no index makes the key unique over all partitions', list, key_list),
					'Partition it by columns of the key, or accept that rows are found by an index of each partition that is not unique.';
			ELSIF NOT EXISTS (SELECT FROM migrate.post_step p WHERE p.mapping_id = m.mapping_id AND p.kind = 'key' AND p.state <> 'done')
				AND NOT EXISTS (
					SELECT FROM pg_index i
					CROSS JOIN LATERAL (SELECT array_agg(a.attname::text ORDER BY o.pos) AS cols
										FROM unnest(i.indkey::int2[]) WITH ORDINALITY o(num, pos)
										LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = o.num AND o.num > 0
										WHERE o.pos <= i.indnkeyatts) x
					WHERE i.indrelid = m.target_oid AND i.indisvalid AND i.indpred IS NULL
					  AND ((i.indisunique AND x.cols <@ k) OR (x.cols[1:cardinality(k)] @> k))) THEN
				-- with none, the DBA builds it after the copy
				RETURN QUERY SELECT 'key_index', m.target,
					CASE WHEN migrate._option($1.job_id, 'indexes') = 'none' THEN 'warn' ELSE 'fail' END,
					format('no index serves the key (%s)', key_list),
					format('CREATE %sINDEX ON %s (%s);', CASE WHEN m.many THEN '' ELSE 'UNIQUE ' END, m.target, key_list);
			END IF;
		END IF;

		-- columns that have no place
		IF m.kind = 'columns' THEN
			SELECT string_agg(quote_ident(c.name), ', ' ORDER BY c.attnum) INTO list
			FROM migrate._columns_of(ft) c
			WHERE NOT (c.name = ANY (m.target_columns) AND NOT coalesce(m.columns ? c.name, false))
			  AND (SELECT string_agg(v.value, ' ') FROM jsonb_each_text(m.columns) v)
				  !~ ('\m' || regexp_replace(c.name, '(\W)', '\\\1', 'g') || '\M') IS NOT FALSE;
			IF list IS NOT NULL THEN
				RETURN QUERY SELECT 'columns_left', m.target, 'warn', format('not copied from %s: %s', src, list),
					'Accept it with migrate_accept if that is meant, or give them a place in columns.';
			END IF;
		END IF;

		-- only where it is not true by construction
		IF (m.kind = 'function' AND m.key IS NOT NULL) OR m.owns IS NOT NULL
			OR EXISTS (SELECT FROM jsonb_each_text(m.key) e
					   WHERE e.value <> format('source.%I', e.key) OR coalesce(m.columns ? e.key, false)) THEN
			BEGIN
				sample := migrate._query_under(m.search_path, migrate._sample_query(m, ft, 20));
				IF (sample ->> 'keys')::int > 0 THEN
					RETURN QUERY SELECT 'sample', m.target, 'fail',
						format('key map and mapping disagree in %s of %s sample rows', sample ->> 'keys', sample ->> 'rows'),
						format('Key map: %s. Its expressions must give what the mapping puts into these columns.', m.key);
				END IF;
				IF (sample ->> 'owned')::int > 0 THEN
					RETURN QUERY SELECT 'sample', m.target, 'fail',
						format('%s of %s sample rows are not covered by owns', sample ->> 'owned', sample ->> 'rows'),
						format('Every mapped row must satisfy the predicate: %s', m.owns);
				END IF;
			EXCEPTION WHEN OTHERS THEN
				RETURN QUERY SELECT 'sample', m.target, 'warn', format('the mapping raised on a sample of rows: %s', SQLERRM),
					format('Look at them with migrate_dry_run(%L, %L).', $1.job, m.target);
			END;
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._preflight_mappings(migrate.job) IS 'findings about the mappings';

CREATE FUNCTION @extschema@.migrate_preflight(job text)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1);
	part	record;
	found	jsonb;
	findings jsonb := '[]';
	names	text[] := migrate._check_names();
	-- nothing is known of the source
	blind	boolean := NOT migrate._is_postgres_fdw(j.server);
BEGIN
	FOR part IN
		SELECT c.part AS name, bool_and(c.remote) AS remote, (array_agg(c.name ORDER BY c.pos))[1] AS first_check
		FROM migrate._checks() WITH ORDINALITY c(name, part, remote, pos)
		GROUP BY c.part ORDER BY min(c.pos)
	LOOP
		-- it has something to say of other wrappers, too
		CONTINUE WHEN blind AND part.remote AND part.name <> 'source';
		BEGIN
			EXECUTE format('SELECT jsonb_agg(to_jsonb(f)) FROM migrate._preflight_%s($1) f', part.name) INTO found USING j;
			findings := findings || coalesce(found, '[]');
		EXCEPTION WHEN OTHERS THEN
			-- what the other parts found is worth as much
			findings := findings || jsonb_build_array(jsonb_build_object(
				'check_name', part.first_check, 'object', $1, 'status', 'fail',
				'detail', format('the check itself failed: %s', SQLERRM), 'hint', NULL));
		END;
		blind := blind OR findings @> '[{"check_name": "connection", "status": "fail"}]';
	END LOOP;
	IF blind THEN
		names := ARRAY(SELECT c.name FROM migrate._checks() c WHERE NOT c.remote);
	END IF;

	RETURN QUERY
	SELECT f.check_name, f.object,
		   CASE WHEN a.reason IS NULL THEN f.status ELSE 'ok' END,
		   concat_ws('; ', f.detail, 'accepted: ' || a.reason),
		   CASE WHEN a.reason IS NULL THEN f.hint END
	FROM (SELECT x.*, e.pos
		  FROM jsonb_array_elements(findings) WITH ORDINALITY e(finding, pos)
		  CROSS JOIN LATERAL jsonb_to_record(e.finding)
				AS x(check_name text, object text, status text, detail text, hint text)
		  UNION ALL
		  SELECT n, j.job, 'ok', NULL, NULL, 0
		  FROM unnest(names) n
		  WHERE NOT findings @> jsonb_build_array(jsonb_build_object('check_name', n))) f
	LEFT JOIN migrate.acceptance a
		ON a.job_id = j.job_id AND a.check_name = f.check_name AND a.object = f.object AND f.status <> 'ok'
	ORDER BY array_position(migrate._check_names(), f.check_name), f.pos;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_preflight(text) IS
'what would go wrong with a job, and the remedy: one row a finding (status warn or fail), one row ok for each check that found nothing; findings taken note of with migrate_accept are ok, with the reason in detail. Asks the source, runs mappings on 20 rows, changes nothing. Errors: 42704 unknown job; never for a finding';

CREATE FUNCTION @extschema@.migrate_source_sql(job text) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1);
	role	text;
	rls		boolean := false;
BEGIN
	IF NOT migrate._is_postgres_fdw(j.server) THEN
		RETURN;
	END IF;
	-- the role there: from the user mapping where it may be read, else by asking
	SELECT o.option_value INTO role
	FROM pg_user_mappings m CROSS JOIN LATERAL pg_options_to_table(m.umoptions) o
	WHERE m.srvid = j.server AND m.umuser IN (j.owner, 0) AND o.option_name = 'user'
	ORDER BY m.umuser DESC LIMIT 1;
	BEGIN
		IF role IS NULL THEN
			SELECT q ->> 'r' INTO role FROM migrate._remote_query(j.server, 'SELECT current_user AS r') q;
		END IF;
		SELECT bool_or(d.row_security) INTO rls
		FROM (SELECT array_agg(o.remote_schema) AS a, array_agg(o.remote_table) AS b
			  FROM (SELECT DISTINCT o.remote_schema, o.remote_table
					FROM migrate.source_table o WHERE o.job_id = j.job_id) o) n
		CROSS JOIN LATERAL migrate._remote_describe(j.server, n.a, n.b) d
		WHERE n.a IS NOT NULL;
	EXCEPTION WHEN OTHERS THEN
		NULL;				-- the statements are needed all the more
	END;
	role := coalesce(role, (SELECT r.rolname FROM pg_roles r WHERE r.oid = j.owner));

	RETURN QUERY
	SELECT format('GRANT USAGE ON SCHEMA %I TO %I;', s.remote_schema, role)
	FROM (SELECT DISTINCT t.remote_schema FROM migrate.source_table t WHERE t.job_id = j.job_id) s
	ORDER BY s.remote_schema;
	RETURN QUERY
	SELECT format('GRANT SELECT ON TABLE %I.%I TO %I;', s.remote_schema, s.remote_table, role)
	FROM (SELECT DISTINCT t.remote_schema, t.remote_table FROM migrate.source_table t WHERE t.job_id = j.job_id) s
	ORDER BY s.remote_schema, s.remote_table;
	IF rls THEN
		RETURN NEXT format('ALTER ROLE %I BYPASSRLS;', role);
	END IF;
	IF j.capture IS DISTINCT FROM 'none' AND migrate._option(j.job_id, 'capture') <> 'none'
		AND migrate._option(j.job_id, 'content') <> 'definitions' THEN
		RETURN QUERY SELECT * FROM migrate._capture_source_sql(j, role);
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_source_sql(text) IS
'the statements that the job needs on the source, for its owner to run there: grants for the role of the user mapping, BYPASSRLS where row security would hide rows; for live capture REPLICATION, replica identities, and publication and slot where options name them. Errors: 42704 unknown job';
