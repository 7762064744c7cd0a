/*
 * Streams of changes: the segments of the spool, what stands in the way of
 * live capture, and leaving a stream.
 */
CREATE FUNCTION migrate._spool_add_segment(stream_id int, segment_no int) RETURNS oid
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_spool_add_segment';
COMMENT ON FUNCTION migrate._spool_add_segment(int, int) IS
	'make the table of a segment of a stream''s spool, which belongs to the extension''s owner and which the stream''s may read and insert into. Errors: 42704 no such stream of the caller';

CREATE FUNCTION migrate._spool_drop_segment(stream_id int, segment_no int) RETURNS void
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_spool_drop_segment';
COMMENT ON FUNCTION migrate._spool_drop_segment(int, int) IS
	'drop the table of a segment of a stream''s spool. Errors: 42704 no such stream of the caller';

/*
 * What is asked of the source about a job's tables, as text, since C and SQL
 * both ask.  Every statement begins with the same list: schema, name, without
 * the tables that inherit from it.
 */
CREATE FUNCTION migrate._source_tables_sql(job_id int) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT 'SELECT x.s, x.t, x.solo, c.oid, c.relkind, c.relreplident, c.relpersistence'
		   ' FROM (VALUES ' || string_agg(format('(%L::name, %L::name, %L::boolean)', s.remote_schema, s.remote_table, s.only_parent),
										  ', ' ORDER BY s.remote_schema, s.remote_table)
		   || ') x(s, t, solo) JOIN pg_catalog.pg_namespace n ON n.nspname = x.s'
		   ' JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = x.t AND c.relkind IN (''r'', ''p'')'
	FROM (SELECT t.remote_schema, t.remote_table, bool_and(t.only_parent) AS only_parent
		  FROM migrate.source_table t
		  WHERE t.job_id = $1 AND t.remote_table IS NOT NULL
		  GROUP BY t.remote_schema, t.remote_table) s
$$;
COMMENT ON FUNCTION migrate._source_tables_sql(int) IS
	'query for the source: the tables that a job reads and that can be published; null when it reads none';

/*
 * The relations that changes are logged for: a table, its partitions or the
 * tables that inherit from it; with the index that identifies a row, null where
 * UPDATE and DELETE would be refused once it is published (P16).
 */
CREATE FUNCTION migrate._source_leaves_sql(job_id int) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT 'WITH RECURSIVE t AS (' || q || '), tree AS ('
		   'SELECT t.s, t.t, t.solo, t.oid AS root, t.oid FROM t UNION '
		   'SELECT r.s, r.t, r.solo, r.root, i.inhrelid FROM tree r JOIN pg_catalog.pg_inherits i ON i.inhparent = r.oid AND NOT r.solo)'
		   ' SELECT r.s, r.t, r.oid, pg_catalog.format(''%I.%I'', n.nspname, c.relname) AS leaf, c.relreplident AS identity,'
		   ' c.relpersistence AS persistence, pg_catalog.pg_has_role(c.relowner, ''USAGE'') AS owned,'
		   ' (SELECT i.indexrelid FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate'
		   '  AND CASE c.relreplident WHEN ''d'' THEN i.indisprimary WHEN ''i'' THEN i.indisreplident ELSE false END LIMIT 1) AS index,'
		   ' (SELECT pg_catalog.json_agg(a.attname) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)'
		   '  WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate'
		   '  AND CASE c.relreplident WHEN ''d'' THEN i.indisprimary WHEN ''i'' THEN i.indisreplident ELSE false END) AS columns,'
		   ' (SELECT i.indexrelid FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate) AS deferrable,'
		   ' (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(''immediate'', i.indimmediate, ''columns'','
		   '   (SELECT pg_catalog.array_agg(a.attname) FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid'
		   '     AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))))'
		   '  FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid'
		   '  AND i.indpred IS NULL AND i.indexprs IS NULL) AS keys'
		   ' FROM tree r JOIN pg_catalog.pg_class c ON c.oid = r.oid AND c.relkind = ''r'''
		   ' JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace'
	FROM migrate._source_tables_sql($1) q
$$;
COMMENT ON FUNCTION migrate._source_leaves_sql(int) IS
	'query for the source: the relations without partitions that a job''s tables consist of, and how their rows are identified in the change stream';

CREATE FUNCTION migrate._identity_missing_sql(job_id int) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT 'SELECT l.leaf, CASE WHEN l.deferrable IS NOT NULL AND l.identity = ''d'' THEN ''its primary key is deferrable'''
		   ' WHEN l.identity = ''n'' THEN ''its replica identity is NOTHING'''
		   ' WHEN l.identity = ''i'' THEN ''the index of its replica identity is not there or not usable'''
		   ' ELSE ''it has no primary key'' END AS why FROM (' || q || ') l'
		   ' WHERE l.identity <> ''f'' AND l.index IS NULL ORDER BY l.leaf'
	FROM migrate._source_leaves_sql($1) q
$$;
COMMENT ON FUNCTION migrate._identity_missing_sql(int) IS
	'query for the source: relations of a job whose UPDATE and DELETE would be refused there once they are published (P16), and why';

CREATE FUNCTION migrate._stream_leave(job_id int) RETURNS SETOF text
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_stream_leave';
COMMENT ON FUNCTION migrate._stream_leave(int) IS
	'take a job off its stream: the last one drops slot and publication on the source (not those that the DBA made) and the spool here, else tables that no other job reads leave the publication. Returns the statements for what could not be removed, with the reason as a notice; nothing when the job has no stream. Errors: 55006 the capture worker does not end';

CREATE FUNCTION migrate._spool_messages(stream_id int, seq bigint)
RETURNS TABLE (seq bigint, kind "char", message bytea)
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_spool_messages';
COMMENT ON FUNCTION migrate._spool_messages(int, bigint) IS
	'the messages of a stream''s spool in commit order, from a row of it on, as the source sent them (manual, "Logical Replication Message Formats"). Errors: 55000 the row is not kept any more';

/*
 * What stands in the way of following a job's source (fail), and what to know
 * before (warn), the first first.  Nothing of it is asked of the application's
 * tables but their definitions.
 */
CREATE FUNCTION migrate._capture_findings(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	srv		text := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1.server);
	pub		text := migrate._option($1.job_id, 'publication');
	slot	text := migrate._option($1.job_id, 'slot');
	running boolean := EXISTS (SELECT FROM migrate.stream s
							   WHERE s.server = $1.server AND s.owner = $1.owner AND s.state = 'running');
	r		jsonb;
	l		jsonb;
	list	text;
BEGIN
	IF NOT migrate._is_postgres_fdw($1.server) THEN
		RETURN QUERY SELECT 'capture', srv, 'fail', 'only a source behind postgres_fdw can be followed', NULL::text;
		RETURN;
	END IF;
	SELECT q INTO r FROM migrate._remote_query($1.server, format($q$
		SELECT current_setting('server_version_num')::int AS version, current_setting('wal_level') AS wal_level,
			   pg_is_in_recovery() AS standby, current_user AS role, current_database() AS db,
			   (SELECT r.rolsuper OR r.rolreplication FROM pg_roles r WHERE r.rolname = current_user) AS replication,
			   current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots) AS slots,
			   current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_get_wal_senders() w) AS senders,
			   has_database_privilege(current_database(), 'CREATE') AS may_create,
			   (SELECT s.setting::bigint * 1024 * 1024 FROM pg_settings s WHERE s.name = 'max_slot_wal_keep_size') AS keep,
			   (SELECT s.setting::bigint FROM pg_settings s WHERE s.name = 'wal_sender_timeout') AS sender_timeout,
			   (SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND NOT p.pubviaroot
				FROM pg_publication p WHERE p.pubname = %1$L) AS publication,
			   (SELECT s.plugin IS NOT DISTINCT FROM 'pgoutput' AND s.database = current_database()
					   AND s.wal_status IS DISTINCT FROM 'lost' FROM pg_replication_slots s WHERE s.slot_name = %2$L) AS slot
		$q$, pub, slot)) q;

	-- the server
	IF (r ->> 'version')::int < 130000 THEN
		RETURN QUERY SELECT 'capture_server', srv, 'fail', 'live capture needs PostgreSQL 13 or later', NULL::text;
		RETURN;
	ELSIF (r ->> 'standby')::boolean THEN
		RETURN QUERY SELECT 'capture_server', srv, 'fail', 'the source is a standby', 'Name the primary in the server''s options.';
		RETURN;
	ELSIF r ->> 'wal_level' <> 'logical' THEN
		RETURN QUERY SELECT 'capture_server', srv, 'fail', format('wal_level is %s there, and live capture needs logical', r ->> 'wal_level'),
			'On the source: ALTER SYSTEM SET wal_level = logical; (needs a restart)';
		RETURN;
	END IF;
	IF NOT running AND slot = '' AND (r ->> 'slots')::int < 1 THEN
		RETURN QUERY SELECT 'capture_server', srv, 'fail', 'no replication slot is free (max_replication_slots)',
			'On the source: drop one that is not needed (pg_replication_slots), or raise max_replication_slots (needs a restart).';
	END IF;
	IF NOT running AND (r ->> 'senders')::int < 1 THEN
		RETURN QUERY SELECT 'capture_server', srv, 'fail', 'no WAL sender is free (max_wal_senders)',
			'On the source: raise max_wal_senders (needs a restart).';
	END IF;

	-- the role
	IF NOT (r ->> 'replication')::boolean THEN
		RETURN QUERY SELECT 'capture_role', srv, 'fail', format('role "%s" may not read a change stream', r ->> 'role'),
			format('On the source: ALTER ROLE %I REPLICATION;', r ->> 'role');
	END IF;
	IF slot <> '' AND (r ->> 'slot')::boolean IS NOT TRUE THEN
		RETURN QUERY SELECT 'capture_slot', slot, 'fail',
			CASE WHEN r ->> 'slot' IS NULL THEN 'the slot does not exist' ELSE 'not a usable slot of plugin pgoutput on this database' END,
			format('On the source, after the publication was made: SELECT pg_create_logical_replication_slot(%L, ''pgoutput'');', slot);
	END IF;

	-- the publication
	IF pub <> '' THEN
		IF (r ->> 'publication')::boolean IS NOT TRUE THEN
			RETURN QUERY SELECT 'publication', pub, 'fail',
				CASE WHEN r ->> 'publication' IS NULL THEN 'the publication does not exist'
					 ELSE 'it must publish insert, update, delete and truncate, of partitions as themselves' END,
				'See migrate_source_sql.';
		ELSE
			SELECT string_agg(q ->> 'leaf', ', ' ORDER BY q ->> 'leaf') INTO list
			FROM migrate._remote_query($1.server, format('SELECT l.leaf FROM (%s) l WHERE NOT EXISTS (SELECT FROM pg_publication_tables p'
				' WHERE p.pubname = %L AND format(''%%I.%%I'', p.schemaname, p.tablename) = l.leaf)',
				migrate._source_leaves_sql($1.job_id), pub)) q;
			IF list IS NOT NULL THEN
				RETURN QUERY SELECT 'publication', pub, 'fail', format('does not publish %s', list),
					format('On the source: ALTER PUBLICATION %I ADD TABLE %s;', pub, list);
			END IF;
		END IF;
	ELSE
		IF NOT running AND NOT (r ->> 'may_create')::boolean THEN
			RETURN QUERY SELECT 'publication', srv, 'fail', format('role "%s" may not make a publication', r ->> 'role'),
				format('On the source: GRANT CREATE ON DATABASE %I TO %I; or make one (see migrate_source_sql) and name it in option publication.',
					   r ->> 'db', r ->> 'role');
		END IF;
	END IF;

	-- the tables
	list := NULL;
	FOR l IN SELECT q FROM migrate._remote_query($1.server, migrate._source_leaves_sql($1.job_id)) q ORDER BY q ->> 'leaf'
	LOOP
		IF pub = '' AND NOT (l ->> 'owned')::boolean THEN
			list := concat_ws(', ', list, l ->> 'leaf');
		END IF;
		IF l ->> 'persistence' <> 'p' THEN
			RETURN QUERY SELECT 'publication', l ->> 'leaf', 'fail', 'the table is not logged, and so are its changes',
				format('On the source: ALTER TABLE %s SET LOGGED; or take it into a job of its own with capture none.', l ->> 'leaf');
		END IF;
		RETURN QUERY SELECT * FROM migrate._capture_key_findings($1, l);
	END LOOP;
	IF list IS NOT NULL THEN
		RETURN QUERY SELECT 'publication', srv, 'fail', format('role "%s" does not own %s', r ->> 'role', list),
			'Only the owner of a table may publish it: let him make the publication (see migrate_source_sql), and name it in option publication.';
	END IF;
	RETURN QUERY
	SELECT 'replica_identity', q ->> 'leaf', 'fail', format('publishing it would make UPDATE and DELETE fail on the source: %s', q ->> 'why'),
		format('On the source: ALTER TABLE %s REPLICA IDENTITY FULL; or give it a primary key that is not deferrable.', q ->> 'leaf')
	FROM migrate._remote_query($1.server, migrate._identity_missing_sql($1.job_id)) q;
	RETURN QUERY SELECT * FROM migrate._capture_column_findings($1);

	-- what holds up
	RETURN QUERY
	SELECT 'open_transactions', q ->> 'who', 'warn',
		CASE q ->> 'kind' WHEN 'p' THEN format('prepared %s ago', q ->> 'age') ELSE format('open for %s', q ->> 'age') END,
		'The slot is made when every transaction that runs then has ended: end it, or wait.'
	FROM migrate._remote_query($1.server, $q$
		SELECT 'process ' || a.pid || ' of user ' || a.usename AS who, 't' AS kind, (clock_timestamp() - a.xact_start)::interval(0) AS age
		FROM pg_stat_activity a
		WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_backend_pid() AND a.xact_start < clock_timestamp() - interval '10 s'
		UNION ALL
		SELECT 'prepared transaction ' || p.gid || ' of user ' || p.owner, 'p', (clock_timestamp() - p.prepared)::interval(0)
		FROM pg_prepared_xacts p
		ORDER BY 3 DESC LIMIT 10 $q$) q;
	IF (r ->> 'keep')::bigint BETWEEN 0 AND 10::bigint * 1024 * 1024 * 1024 - 1 THEN
		RETURN QUERY SELECT 'source_wal', srv, 'warn', format('max_slot_wal_keep_size is %s there: a stream that is held up longer is lost', pg_size_pretty((r ->> 'keep')::bigint)),
			'Raise it, or set it to -1 and use option max_source_wal.';
	END IF;
	IF (r ->> 'sender_timeout')::bigint BETWEEN 1 AND 4999 THEN
		RETURN QUERY SELECT 'capture_server', srv, 'warn', format('wal_sender_timeout is %s ms there: a busy moment here ends the stream', r ->> 'sender_timeout'),
			format('On the source: ALTER ROLE %I SET wal_sender_timeout = ''60s'';', r ->> 'role');
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._capture_findings(migrate.job) IS
	'what stands in the way of live capture of a job (fail) or is worth knowing before (warn); asks the source';

/*
 * P11, P16: the stream tells of a row that is gone, or changed its key, by the
 * columns of its replica identity.
 */
CREATE FUNCTION migrate._capture_key_findings(j migrate.job, leaf jsonb)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	identity text[] := ARRAY(SELECT jsonb_array_elements_text((leaf ->> 'columns')::jsonb));
	s		migrate.source_table;
	list	text;
BEGIN
	-- rows that exchange a key would take each other away, one change after the other
	RETURN QUERY
	SELECT 'stream_key', leaf ->> 'leaf', 'fail', format('the key (%s) has become deferrable there, so rows can exchange it', array_to_string(t.key_columns, ', ')),
		'On the source: make it a key that is not deferrable; or take the table out with migrate_remove_table and add it anew: then it is followed without a key.'
	FROM migrate.source_table t
	CROSS JOIN LATERAL (SELECT array_agg(c.remote_name) AS names FROM migrate._foreign_columns(t.foreign_table) c
						WHERE c.local_name = ANY (t.key_columns)) n
	CROSS JOIN LATERAL (SELECT bool_or((k ->> 'immediate')::boolean) AS immediate
						FROM jsonb_array_elements((leaf ->> 'keys')::jsonb) k
						WHERE ARRAY(SELECT jsonb_array_elements_text(k -> 'columns')) <@ n.names) k
	WHERE t.job_id = $1.job_id AND t.remote_schema = leaf ->> 's' AND t.remote_table = leaf ->> 't'
	  AND NOT k.immediate;
	IF leaf ->> 'identity' = 'f' OR identity = '{}' THEN
		RETURN;
	END IF;
	FOR s IN SELECT * FROM migrate.source_table t
			 WHERE t.job_id = $1.job_id AND t.remote_schema = leaf ->> 's' AND t.remote_table = leaf ->> 't'
	LOOP
		IF s.key_columns = '{}' THEN
			RETURN QUERY SELECT 'stream_key', leaf ->> 'leaf', 'fail', 'no key is known, and the stream tells only some columns of a row that is changed or deleted',
				format('On the source: ALTER TABLE %s REPLICA IDENTITY FULL;', leaf ->> 'leaf');
			CONTINUE;
		END IF;
		SELECT string_agg(format('%I', c.remote_name), ', ' ORDER BY c.attnum) INTO list
		FROM migrate._foreign_columns(s.foreign_table) c
		WHERE c.local_name = ANY (s.key_columns) AND c.remote_name <> ALL (identity);
		IF list IS NOT NULL THEN
			RETURN QUERY SELECT 'stream_key', leaf ->> 'leaf', 'fail', format('its replica identity lacks columns of the key: %s', list),
				format('On the source: ALTER TABLE %s REPLICA IDENTITY FULL;', leaf ->> 'leaf');
			CONTINUE;
		END IF;
		SELECT string_agg(DISTINCT format('%s reads %I', m.target, c.local_name), ', ') INTO list
		FROM migrate.mapping m
		CROSS JOIN LATERAL jsonb_each_text(m.key) e
		JOIN migrate._foreign_columns(s.foreign_table) c
			ON c.remote_name <> ALL (identity)
			AND e.value ~ ('\m' || regexp_replace(c.local_name, '(\W)', '\\\1', 'g') || '\M')
		WHERE m.source_id = s.source_id;
		IF list IS NOT NULL THEN
			RETURN QUERY SELECT 'stream_key', leaf ->> 'leaf', 'fail', format('a key map reads columns that the stream does not tell of a deleted row: %s', list),
				format('On the source: ALTER TABLE %s REPLICA IDENTITY FULL; or use a key map over the replica identity.', leaf ->> 'leaf');
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._capture_key_findings(migrate.job, jsonb) IS
	'whether the replica identity of one relation of the source has what keys and key maps of a job need, and whether its key is one at any moment';

/*
 * P7: generated columns are not in the stream.  A function is taken to read one
 * if its text names it, or whole rows, or cannot be looked into.
 */
CREATE FUNCTION migrate._capture_column_findings(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT 'stream_column', s.source, 'fail',
		   format('generated on the source and so not in the stream, but %s reads it: %s', m.target, string_agg(format('%I', c.local_name), ', ' ORDER BY c.attnum)),
		   'Compute it in the mapping (or let the target generate it), and take it out of the foreign table.'
	FROM migrate.source_table s
	JOIN migrate.mapping m ON m.source_id = s.source_id
	LEFT JOIN pg_proc p ON p.oid = m.mapping
	LEFT JOIN pg_language g ON g.oid = p.prolang
	JOIN migrate._foreign_columns(s.foreign_table) c ON true
	JOIN (SELECT d.remote_schema, d.remote_table, k ->> 'name' AS name
		  FROM (SELECT array_agg(o.remote_schema) AS a, array_agg(o.remote_table) AS b
				FROM (SELECT DISTINCT o.remote_schema, o.remote_table FROM migrate.source_table o
					  WHERE o.job_id = $1.job_id AND o.remote_table IS NOT NULL) o) n
		  CROSS JOIN LATERAL migrate._remote_describe($1.server, n.a, n.b) d
		  CROSS JOIN LATERAL jsonb_array_elements(d.columns) k
		  WHERE n.a IS NOT NULL AND k ->> 'generated' <> '') x
		ON x.remote_schema = s.remote_schema AND x.remote_table = s.remote_table AND x.name = c.remote_name
	CROSS JOIN LATERAL (SELECT '\m' || regexp_replace(c.local_name, '(\W)', '\\\1', 'g') || '\M' AS word) w
	WHERE s.job_id = $1.job_id
	  AND CASE m.kind
			WHEN 'function' THEN g.lanname NOT IN ('sql', 'plpgsql') OR p.prosqlbody IS NOT NULL OR p.prosrc ~ w.word OR p.prosrc ~ '\.\s*\*'
			ELSE (c.local_name = ANY (m.target_columns) AND NOT coalesce(m.columns ? c.local_name, false))
				 OR concat_ws(' ', (SELECT string_agg(v.value, ' ') FROM jsonb_each_text(m.columns) v), m.filter,
							  (SELECT string_agg(v.value, ' ') FROM jsonb_each_text(m.key) v)) ~ w.word END
	GROUP BY s.source, m.target
$$;
COMMENT ON FUNCTION migrate._capture_column_findings(migrate.job) IS
	'mappings of a job that read columns which the change stream does not carry';

CREATE FUNCTION migrate._capture_obstacle(job_id int) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	result	text;
BEGIN
	SELECT format('%s: %s', f.object, f.detail) INTO result
	FROM migrate.job j CROSS JOIN LATERAL migrate._capture_findings(j) WITH ORDINALITY f(check_name, object, status, detail, hint, pos)
	WHERE j.job_id = $1 AND f.status = 'fail'
	ORDER BY f.pos LIMIT 1;
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	RETURN SQLERRM;
END
$$;
COMMENT ON FUNCTION migrate._capture_obstacle(int) IS
	'the first thing that stands in the way of live capture of a job; null when nothing does';

CREATE FUNCTION migrate._preflight_capture(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	wish	text := migrate._option($1.job_id, 'capture');
	f		record;
	first	text;
BEGIN
	IF wish = 'none' OR $1.capture = 'none' OR migrate._option($1.job_id, 'content') = 'definitions' THEN
		RETURN;
	END IF;
	FOR f IN SELECT * FROM migrate._capture_findings($1)
	LOOP
		IF f.status = 'fail' AND wish = 'auto' AND $1.capture IS NULL THEN
			IF first IS NULL THEN
				first := f.detail;
				RETURN QUERY SELECT 'capture', f.object, 'warn', format('rows are copied once, and changes are not followed: %s', f.detail),
					concat_ws(' ', f.hint, format('With SELECT migrate_alter_job(%L, ''{"capture": "none"}''); this is not asked.', $1.job));
			ELSE
				RETURN QUERY SELECT f.check_name, f.object, 'warn', f.detail, f.hint;
			END IF;
		ELSE
			RETURN QUERY SELECT f.check_name, f.object, f.status, f.detail, f.hint;
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._preflight_capture(migrate.job) IS
	'findings about live capture: obstacles fail where capture logical was asked for; with auto the first names why changes will not be followed';

/*
 * What the cutover and the way back need where the role does not own the tables.
 */
CREATE FUNCTION migrate._fence_source_sql(j migrate.job, role text, fence text) RETURNS SETOF text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN $3 = 'triggers' AND (q ->> 'super')::boolean
				THEN '-- set option fence to ''external'': tables belong to a superuser, and only who has the rights of their owner can fence them'
				WHEN $3 = 'triggers' THEN format('GRANT %I TO %I;	-- for the fence of the cutover; not with option fence ''external''', q ->> 'owner', $2)
				   ELSE format('GRANT INSERT, UPDATE, DELETE ON TABLE %s TO %I;	-- only for the way back', q ->> 'tables', $2) END
	FROM migrate._remote_query($1.server, format($q$
		SELECT pg_get_userbyid(c.relowner) AS owner, (SELECT o.rolsuper FROM pg_roles o WHERE o.oid = c.relowner) AS super, string_agg(DISTINCT format('%%I.%%I', n.nspname, c.relname), ', ') AS tables
		FROM (VALUES %s) v (n, t)
		JOIN pg_namespace n ON n.nspname = v.n JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.t
		WHERE NOT pg_has_role(c.relowner, 'USAGE')
		  AND (%L = 'triggers' OR NOT (has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')))
		GROUP BY c.relowner ORDER BY 1
	$q$, (SELECT string_agg(format('(%L, %L)', s.remote_schema, s.remote_table), ', ')
		  FROM migrate.source_table s WHERE s.job_id = $1.job_id AND s.remote_table IS NOT NULL), $3)) q
$$;
COMMENT ON FUNCTION migrate._fence_source_sql(migrate.job, text, text) IS
	'the part of migrate_source_sql about fence and way back, for tables that the role does not own';

CREATE FUNCTION migrate._capture_source_sql(j migrate.job, role text) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	pub		text := migrate._option($1.job_id, 'publication');
	slot	text := migrate._option($1.job_id, 'slot');
	fence	text := migrate._option($1.job_id, 'fence');
	r		jsonb;
	owned	boolean := false;
	list	text;
	hints	text[];
BEGIN
	-- what the source says, where it can be asked
	BEGIN
		SELECT q INTO r FROM migrate._remote_query($1.server, format($q$
			SELECT current_setting('wal_level') AS wal_level, current_database() AS db,
				   (SELECT r.rolsuper OR r.rolreplication FROM pg_roles r WHERE r.rolname = %1$L) AS replication,
				   has_database_privilege(current_database(), 'CREATE') AS may_create,
				   EXISTS (SELECT FROM pg_publication p WHERE p.pubname = %2$L) AS publication,
				   EXISTS (SELECT FROM pg_replication_slots s WHERE s.slot_name = %3$L) AS slot
			$q$, $2, pub, slot)) q;
		SELECT array_agg(DISTINCT f.hint) INTO hints FROM migrate._capture_findings($1) f
		WHERE f.check_name IN ('replica_identity', 'stream_key') AND f.status = 'fail';
		SELECT bool_and((q ->> 'owned')::boolean) INTO owned
		FROM migrate._remote_query($1.server, migrate._source_leaves_sql($1.job_id)) q;
	EXCEPTION WHEN OTHERS THEN
		NULL;
	END;
	-- auto does without
	IF r ->> 'wal_level' <> 'logical' AND migrate._option($1.job_id, 'capture') = 'auto' THEN
		RETURN;
	ELSIF r ->> 'wal_level' <> 'logical' THEN
		RETURN NEXT 'ALTER SYSTEM SET wal_level = logical;	-- needs a restart';
	END IF;
	IF (r ->> 'replication')::boolean IS NOT TRUE THEN
		RETURN NEXT format('ALTER ROLE %I REPLICATION;', $2);
	END IF;
	RETURN QUERY
	SELECT DISTINCT substring(h FROM 'ALTER TABLE .* REPLICA IDENTITY FULL;') AS statement
	FROM unnest(hints) h WHERE h ~ 'REPLICA IDENTITY FULL;' ORDER BY 1;
	IF pub = '' AND owned AND NOT (r ->> 'may_create')::boolean THEN
		RETURN NEXT format('GRANT CREATE ON DATABASE %I TO %I;', r ->> 'db', $2);
	ELSIF (r ->> 'publication')::boolean IS NOT TRUE AND (pub <> '' OR NOT coalesce(owned, true)) THEN
		SELECT string_agg(CASE WHEN t.only_parent THEN 'ONLY ' ELSE '' END || format('%I.%I', t.remote_schema, t.remote_table), ', '
						  ORDER BY t.remote_schema, t.remote_table) INTO list
		FROM (SELECT s.remote_schema, s.remote_table, bool_and(s.only_parent) AS only_parent
			  FROM migrate.source_table s WHERE s.job_id = $1.job_id AND s.remote_table IS NOT NULL GROUP BY 1, 2) t;
		RETURN NEXT format('CREATE PUBLICATION %I FOR TABLE %s WITH (publish = ''insert, update, delete, truncate'', publish_via_partition_root = false);',
						   coalesce(nullif(pub, ''), 'migrate_' || $1.job), list);
	END IF;
	-- after the publication: what comes before it cannot be decoded
	IF slot <> '' AND (r ->> 'slot')::boolean IS NOT TRUE THEN
		RETURN NEXT format('SELECT pg_create_logical_replication_slot(%L, ''pgoutput'');', slot);
	END IF;
	IF fence = 'triggers' AND (NOT owned OR pub <> '') AND NOT (r ->> 'may_create')::boolean THEN
		RETURN NEXT format('GRANT CREATE ON DATABASE %I TO %I;	-- for the fence of the cutover; not with option fence ''external''', r ->> 'db', $2);
	END IF;
	IF NOT owned AND r IS NOT NULL THEN
		RETURN QUERY SELECT * FROM migrate._fence_source_sql($1, $2, fence);
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._capture_source_sql(migrate.job, text) IS
	'the part of migrate_source_sql about live capture; the publication comes before the slot';
