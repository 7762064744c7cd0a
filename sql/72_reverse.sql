/*
 * The way back: what the application changes on the target after the cutover is
 * applied to the source as it happens, through the inverse of each mapping, so
 * that a rollback finds the source up to date.
 */
CREATE TABLE migrate.inverse (
	mapping_id	int PRIMARY KEY REFERENCES migrate.mapping ON DELETE CASCADE,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	-- given with migrate_set_inverse; null: derived
	function	oid,
	search_path text NOT NULL,
	-- columns of the foreign table that the query gives, in its order
	source_columns text[] NOT NULL DEFAULT '{}',
	-- SELECT <columns of the source> FROM source, where source is a target row
	query		text,
	-- key column of the source -> column of the target that holds it
	key			jsonb,
	-- columns of the source that nothing here gives back
	lost		text[] NOT NULL DEFAULT '{}',
	-- why rows of this target cannot go back; null: they can
	obstacle	text
);
CREATE INDEX inverse_job ON migrate.inverse (job_id);
COMMENT ON TABLE migrate.inverse IS 'one row a mapping whose way back was planned: the query from a target row to the source row';

CREATE TABLE migrate.reverse (
	job_id		int PRIMARY KEY REFERENCES migrate.job ON DELETE CASCADE,
	publication text NOT NULL,
	slot		text NOT NULL,
	-- where it is 'trigger', there is neither; see 71_queue.sql
	kind		text NOT NULL DEFAULT 'logical' CHECK (kind IN ('logical', 'trigger')),
	-- arming: the slot is being made; armed; lost: dropped, nothing goes back
	state		text NOT NULL DEFAULT 'arming' CHECK (state IN ('arming', 'armed', 'lost')),
	-- what commits here before it is not the application's (P29)
	open_lsn	pg_lsn,
	error		text
);
COMMENT ON TABLE migrate.reverse IS 'one row a job whose target is captured for the way back';

DO $$
DECLARE
	t text;
BEGIN
	FOREACH t IN ARRAY '{inverse,reverse}'::text[]
	LOOP
		EXECUTE format('ALTER TABLE migrate.%I ENABLE ROW LEVEL SECURITY', t);
		EXECUTE format('CREATE POLICY own ON migrate.%I USING '
					   '(job_id IN (SELECT j.job_id FROM migrate.job j))', t);
	END LOOP;
END
$$;

/*
 * Which target column holds each column of the source as it is: by name, or by
 * a plain name in "columns".
 */
CREATE FUNCTION migrate._held_columns(m migrate.mapping, foreign_table oid)
RETURNS TABLE (source_column text, target_column text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT f.local_name, t.name
	FROM migrate._foreign_columns($2::regclass) f
	LEFT JOIN LATERAL (
		SELECT t.name FROM unnest($1.target_columns) t(name)
		WHERE CASE WHEN $1.kind = 'function' THEN false
				   WHEN coalesce($1.columns, '{}') ? t.name
				   THEN jsonb_typeof($1.columns -> t.name) = 'string' AND $1.columns ->> t.name = f.local_name
				   ELSE t.name = f.local_name END
		ORDER BY t.name = f.local_name DESC, t.name LIMIT 1) t ON true
$$;
COMMENT ON FUNCTION migrate._held_columns(migrate.mapping, oid) IS
'for each column of the source the target column that takes it over as it is, or null; nothing is known of a mapping function';

/*
 * The source's key from the target's: of the key map, where it is plain columns.
 */
CREATE FUNCTION migrate._key_back(m migrate.mapping, s migrate.source_table) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN $2.key_columns <> '{}' AND bool_and(k.target_column IS NOT NULL)
				THEN jsonb_object_agg(k.source_column, k.target_column) FILTER (WHERE k.target_column IS NOT NULL) END
	FROM (SELECT c.name AS source_column,
				 (SELECT e.key FROM jsonb_each_text(coalesce($1.key, '{}')) e
				  WHERE e.value = format('source.%I', c.name) ORDER BY e.key LIMIT 1) AS target_column
		  FROM unnest($2.key_columns) c(name)) k
$$;
COMMENT ON FUNCTION migrate._key_back(migrate.mapping, migrate.source_table) IS
'key column of the source -> target column that holds it; null where a row of the source cannot be found from one of the target';

-- Why changes of the target cannot be told apart by its replica identity.
CREATE FUNCTION migrate._identity_obstacle(target oid, keys text[]) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE
		WHEN c.relkind NOT IN ('r', 'p') THEN 'it is no table'
		WHEN c.relreplident = 'f' THEN NULL
		WHEN i.columns IS NULL THEN 'it has no replica identity: give it a primary key, or ALTER TABLE ... REPLICA IDENTITY FULL'
		WHEN NOT $2 <@ i.columns THEN format('its replica identity (%s) does not hold the key of the source (%s)',
											 array_to_string(i.columns, ', '), array_to_string($2, ', '))
		END
	FROM pg_class c
	LEFT JOIN LATERAL (
		SELECT array_agg(a.attname::text) AS columns
		FROM pg_index x CROSS JOIN LATERAL unnest(x.indkey::int2[]) n(num)
		JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = n.num
		WHERE x.indrelid = c.oid AND x.indisvalid AND x.indimmediate
		  AND CASE c.relreplident WHEN 'd' THEN x.indisprimary WHEN 'i' THEN x.indisreplident ELSE false END) i ON true
	WHERE c.oid = $1
$$;
COMMENT ON FUNCTION migrate._identity_obstacle(oid, text[]) IS
'why the changes of a table cannot be followed by the given columns; null: they can';

/*
 * Plan the way back of every mapping of a job: the given function, or what can
 * be derived.
 */
CREATE FUNCTION migrate._plan_inverses(job_id int) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	m		migrate.mapping;
	s		migrate.source_table;
	i		migrate.inverse;
	held	jsonb;
	c		record;
	by_trigger boolean := migrate._reverse_kind($1) = 'trigger';
BEGIN
	FOR m IN SELECT * FROM migrate.mapping x WHERE x.job_id = $1 ORDER BY x.mapping_id
	LOOP
		SELECT * INTO s FROM migrate.source_table x WHERE x.source_id = m.source_id;
		SELECT * INTO i FROM migrate.inverse x WHERE x.mapping_id = m.mapping_id;
		i.mapping_id := m.mapping_id;
		i.job_id := $1;
		i.search_path := coalesce(i.search_path, m.search_path);
		i.obstacle := NULL;
		i.query := NULL;
		i.source_columns := '{}';
		i.lost := '{}';
		i.key := migrate._key_back(m, s);
		IF m.kind = 'function' AND i.function IS NULL THEN
			i.obstacle := 'its mapping is a function: give the inverse with migrate_set_inverse';
		ELSIF s.remote_table IS NULL THEN
			i.obstacle := 'its source is not behind postgres_fdw';
		ELSIF i.key IS NULL THEN
			i.obstacle := 'the key of the source cannot be told from its rows';
		ELSIF NOT by_trigger OR (SELECT c.relkind NOT IN ('r', 'p') FROM pg_class c WHERE c.oid = m.target_oid) THEN
			i.obstacle := migrate._identity_obstacle(m.target_oid, ARRAY(SELECT e.value FROM jsonb_each_text(i.key) e));
		END IF;
		IF i.obstacle IS NULL THEN
			BEGIN
				IF i.function IS NULL THEN
					SELECT jsonb_object_agg(h.source_column, h.target_column),
						   coalesce(array_agg(h.source_column) FILTER (WHERE h.target_column IS NULL), '{}')
					INTO held, i.lost
					FROM migrate._held_columns(m, s.foreign_table) h;
				END IF;
				SELECT * INTO c FROM migrate._compile(m.target_oid, s.foreign_table, i.function,
													  CASE WHEN i.function IS NULL THEN held END, NULL, i.search_path);
				i.query := c.query;
				i.source_columns := c.target_columns;
				IF NOT ARRAY(SELECT jsonb_object_keys(i.key)) <@ i.source_columns THEN
					i.obstacle := 'the inverse does not give the key of the source';
				END IF;
			EXCEPTION WHEN OTHERS THEN
				i.obstacle := SQLERRM;
			END;
		END IF;
		INSERT INTO migrate.inverse SELECT i.*
		ON CONFLICT (mapping_id) DO UPDATE SET source_columns = excluded.source_columns, query = excluded.query,
			key = excluded.key, lost = excluded.lost, obstacle = excluded.obstacle;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._plan_inverses(int) IS
'derives the inverse of every mapping of a job that has none given, and notes what would be lost and what cannot go back';

CREATE FUNCTION @extschema@.migrate_set_inverse(job text, target text, inverse regprocedure,
												search_path text DEFAULT current_setting('search_path')) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1, lock => true);
	m		migrate.mapping;
	s		migrate.source_table;
	n		int := 0;
BEGIN
	FOR m IN SELECT * FROM migrate.mapping x
			 WHERE x.job_id = j.job_id AND (x.target = $2 OR x.target_oid = migrate._resolve($2, $4))
	LOOP
		n := n + 1;
		SELECT * INTO s FROM migrate.source_table x WHERE x.source_id = m.source_id;
		-- the parser's own words where it does not fit
		PERFORM migrate._compile(m.target_oid, s.foreign_table, $3, NULL, NULL, $4);
		INSERT INTO migrate.inverse AS i (mapping_id, job_id, function, search_path)
		VALUES (m.mapping_id, j.job_id, $3, $4)
		ON CONFLICT (mapping_id) DO UPDATE SET function = excluded.function, search_path = excluded.search_path;
	END LOOP;
	IF n = 0 THEN
		RAISE EXCEPTION USING ERRCODE = '42704', MESSAGE = format('job "%s" has no target "%s"', $1, $2),
			HINT = 'migrate.mapping lists the targets of each job.';
	END IF;
	PERFORM migrate._plan_inverses(j.job_id);
	PERFORM migrate._event(j.job_id, 'info', 'inverse', format('rows of %s go back through %s', $2, $3));
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_set_inverse(text, text, regprocedure, text) IS
'how rows of a target go back: a function from the target''s row to a row of the source''s foreign table. Errors: 42704 unknown job or target; those of a mapping function that does not fit';

/*
 * What is better known before the copy than before the cutover, of a job that
 * will follow its source: foreign keys that cross its border (P31), and targets
 * whose changes cannot be followed (P29).
 */
CREATE FUNCTION migrate._preflight_cutover(j migrate.job)
RETURNS TABLE (check_name text, object text, status text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	tables	text;
BEGIN
	SELECT string_agg(format('(%L, %L)', s.remote_schema, s.remote_table), ', ') INTO tables
	FROM migrate.source_table s WHERE s.job_id = $1.job_id AND s.remote_table IS NOT NULL;
	IF tables IS NULL OR $1.capture = 'none' OR migrate._option($1.job_id, 'capture') = 'none'
		OR NOT EXISTS (SELECT FROM migrate._remote_query($1.server, 'SELECT current_setting(''wal_level'') AS l') q WHERE q ->> 'l' = 'logical') THEN
		RETURN;
	END IF;
	RETURN QUERY
	SELECT 'waves', q ->> 'own', 'warn',
		   format('foreign key %s: %s %s, which %s', q ->> 'key', q ->> 'verb', q ->> 'other',
				  coalesce(format('job "%s" moves', o.job), 'is not moved by this job')),
		   'While one of the two is cut over and the other is not, nobody keeps their rows together: move them in one job, or let the application see to it until both are cut over.'
	FROM migrate._remote_query($1.server, format($q$
		WITH own AS (
			SELECT c.oid FROM (VALUES %s) v (n, t)
			JOIN pg_namespace n ON n.nspname = v.n JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.t
		)
		SELECT k.conname AS key, a.oid IS NOT NULL AS from_own,
			   CASE WHEN a.oid IS NOT NULL THEN k.conrelid ELSE k.confrelid END::regclass AS own,
			   CASE WHEN a.oid IS NOT NULL THEN 'it refers to' ELSE 'it is referred to by' END AS verb,
			   x.relname AS "table", n.nspname AS "schema", format('%%I.%%I', n.nspname, x.relname) AS other
		FROM pg_constraint k
		LEFT JOIN own a ON a.oid = k.conrelid
		LEFT JOIN own b ON b.oid = k.confrelid
		JOIN pg_class x ON x.oid = CASE WHEN a.oid IS NOT NULL THEN k.confrelid ELSE k.conrelid END
		JOIN pg_namespace n ON n.oid = x.relnamespace
		WHERE k.contype = 'f' AND k.conparentid = 0 AND (a.oid IS NULL) <> (b.oid IS NULL)
		ORDER BY 3, 1
	$q$, tables)) q
	LEFT JOIN LATERAL (SELECT h.job FROM migrate.source_table s JOIN migrate.job h USING (job_id)
					   WHERE h.server = $1.server AND h.job_id <> $1.job_id AND h.state <> 'finished'
						 AND s.remote_schema = q ->> 'schema' AND s.remote_table = q ->> 'table'
					   ORDER BY h.job_id LIMIT 1) o ON true
	-- inherited by partitions that are tables of the job by themselves
	WHERE q ->> 'own' <> q ->> 'other';

	RETURN QUERY
	SELECT 'way_back', m.target, 'fail', format('what is written here after the cutover cannot go back to the source: %s', i.obstacle),
		   'Or do without migrate_rollback, on record: migrate_accept(job, ''way_back'', target, reason).'
	FROM migrate.mapping m JOIN migrate.source_table s USING (source_id)
	CROSS JOIN LATERAL (SELECT migrate._key_back(m, s) AS key) k
	CROSS JOIN LATERAL (SELECT migrate._identity_obstacle(m.target_oid, ARRAY(SELECT e.value FROM jsonb_each_text(k.key) e)) AS obstacle) i
	WHERE m.job_id = $1.job_id AND k.key IS NOT NULL AND i.obstacle IS NOT NULL
	  AND migrate._reverse_kind($1.job_id) = 'logical'
	  -- keys of others are still to be built
	  AND migrate._option($1.job_id, 'indexes') <> 'all'
	  AND NOT EXISTS (SELECT FROM migrate.made_relation r WHERE r.root_oid = m.target_oid)
	UNION ALL
	SELECT 'way_back', o.object, 'fail', format('what is written here after the cutover cannot go back to the source: %s', o.detail),
		   'Or do without migrate_rollback, on record: migrate_accept(job, ''way_back'', target, reason).'
	FROM migrate._queue_obstacles($1.job_id) o WHERE migrate._reverse_kind($1.job_id) = 'trigger';
END
$$;
COMMENT ON FUNCTION migrate._preflight_cutover(migrate.job) IS
'findings about cutover and way back of a job that will follow its source live';

/*
 * What the way back lacks on the source, before it is cut over; nothing when it does not answer,
 * which others say.
 */
CREATE FUNCTION migrate._reverse_source_obstacles(job_id int) RETURNS TABLE (object text, detail text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job;
	tables	text;
BEGIN
	SELECT * INTO j FROM migrate.job x WHERE x.job_id = $1 AND x.state NOT IN ('cut_over', 'rolling_back', 'finished');
	SELECT string_agg(format('(%L, %L)', s.remote_schema, s.remote_table), ', ') INTO tables
	FROM migrate.source_table s WHERE s.job_id = j.job_id AND s.remote_table IS NOT NULL;
	IF tables IS NULL THEN
		RETURN;
	END IF;
	RETURN QUERY
	SELECT q ->> 'object', q ->> 'detail'
	FROM migrate._remote_query(j.server, format($q$
		SELECT 'source_privilege' AS object, format('role %%I may not write to %%s on the source: GRANT INSERT, UPDATE, DELETE',
													current_user, string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid::regclass::text)) AS detail
		FROM (VALUES %s) v (n, t)
		JOIN pg_namespace n ON n.nspname = v.n JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.t
		WHERE NOT (has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
		HAVING count(*) > 0
		UNION ALL
		SELECT 'source_version', 'in the stream of a source before version 14 what goes back cannot be told from what others write: use fence triggers'
		WHERE current_setting('server_version_num')::int < 140000 AND %L = 'external'
	$q$, tables, migrate._option(j.job_id, 'fence'))) q;
EXCEPTION WHEN OTHERS THEN
	NULL;
END
$$;
COMMENT ON FUNCTION migrate._reverse_source_obstacles(int) IS 'what keeps changes of a job''s targets from being written to the source';

/*
 * What the way back needs and has not, a row an obstacle.
 */
CREATE FUNCTION migrate._reverse_obstacles(job_id int) RETURNS TABLE (object text, detail text)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT 'reverse', 'option reverse is none'
	WHERE migrate._reverse_kind($1) = 'none'
	UNION ALL
	SELECT 'wal_level', format('wal_level of this server is %s; option reverse, logical, needs logical', current_setting('wal_level'))
	WHERE current_setting('wal_level') <> 'logical' AND migrate._reverse_kind($1) = 'logical'
	UNION ALL
	SELECT o.object, o.detail FROM migrate._queue_obstacles($1) o
	WHERE migrate._reverse_kind($1) = 'trigger'
	UNION ALL
	SELECT 'max_replication_slots', 'no replication slot of this server is free'
	WHERE migrate._reverse_kind($1) = 'logical'
	  AND (SELECT count(*) FROM pg_replication_slots) >= current_setting('max_replication_slots')::int
	  AND NOT EXISTS (SELECT FROM migrate.reverse r WHERE r.job_id = $1 AND r.state = 'armed')
	UNION ALL
	SELECT 'privilege', 'the owner of the job may not create in this database, which a publication needs'
	WHERE migrate._reverse_kind($1) = 'logical' AND NOT has_database_privilege(current_database(), 'CREATE')
	UNION ALL
	SELECT 'slot', coalesce(r.error, 'no way back was armed when the target was opened')
	FROM migrate.job j LEFT JOIN migrate.reverse r USING (job_id)
	WHERE j.job_id = $1 AND j.state IN ('cut_over', 'rolling_back') AND coalesce(r.state, 'lost') = 'lost'
	UNION ALL
	SELECT o.object, o.detail FROM migrate._reverse_source_obstacles($1) o
	UNION ALL
	SELECT m.target, i.obstacle
	FROM migrate.inverse i JOIN migrate.mapping m USING (mapping_id)
	WHERE i.job_id = $1 AND i.obstacle IS NOT NULL
$$;
COMMENT ON FUNCTION migrate._reverse_obstacles(int) IS 'why the changes of a job''s targets cannot go back to the source';

/*
 * Publication of the targets, and the row that the reverse worker makes its slot
 * for; recorded before they are made.  Returns whether there is a way back.
 */
CREATE FUNCTION migrate._arm_reverse(job_id int) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	name	text := format('migrate_back_%s_%s', (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()), $1);
	tables	text;
BEGIN
	PERFORM migrate._plan_inverses($1);
	IF EXISTS (SELECT FROM migrate._reverse_obstacles($1)) THEN
		RETURN 0;
	END IF;
	IF migrate._reverse_kind($1) = 'trigger' THEN
		PERFORM migrate._arm_queue($1);
		INSERT INTO migrate.reverse (job_id, publication, slot, kind, state) VALUES ($1, name, name, 'trigger', 'armed')
		ON CONFLICT (job_id) DO UPDATE SET kind = 'trigger', state = 'armed', open_lsn = NULL, error = NULL;
		RETURN 1;
	END IF;
	INSERT INTO migrate.made_object (job_id, side, kind, object)
	SELECT $1, 'target', k.kind, quote_ident(name) FROM (VALUES ('publication'), ('replication slot')) k(kind)
	WHERE NOT EXISTS (SELECT FROM migrate.made_object o
					  WHERE o.job_id = $1 AND o.side = 'target' AND o.kind = k.kind AND o.object = quote_ident(name));
	IF NOT EXISTS (SELECT FROM pg_publication p WHERE p.pubname = name) THEN
		SELECT string_agg(DISTINCT CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || m.target, ', ') INTO tables
		FROM migrate.mapping m JOIN pg_class c ON c.oid = m.target_oid WHERE m.job_id = $1;
		EXECUTE format('CREATE PUBLICATION %I FOR TABLE %s WITH (publish_via_partition_root = true)', name, tables);
	END IF;
	INSERT INTO migrate.reverse (job_id, publication, slot) VALUES ($1, name, name)
	ON CONFLICT (job_id) DO UPDATE SET state = CASE WHEN EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = name)
													THEN reverse.state ELSE 'arming' END,
		kind = 'logical', open_lsn = NULL, error = NULL;
	RETURN 1;
END
$$;
COMMENT ON FUNCTION migrate._arm_reverse(int) IS
'makes the triggers for the way back, or its publication and asks for its slot; 0 when there is no way back (see _reverse_obstacles)';

CREATE FUNCTION migrate._reverse_state(job_id int) RETURNS int
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE r.state WHEN 'armed' THEN 1 WHEN 'arming' THEN 0 ELSE -1 END
	FROM migrate.reverse r WHERE r.job_id = $1
$$;
COMMENT ON FUNCTION migrate._reverse_state(int) IS '1 armed, 0 being armed, -1 lost; null: none';

-- The publication; the slot is the reverse worker's to drop, or is dropped here.
CREATE FUNCTION migrate._disarm_reverse(job_id int) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	r	migrate.reverse;
BEGIN
	SELECT * INTO r FROM migrate.reverse x WHERE x.job_id = $1;
	IF NOT FOUND THEN
		RETURN;
	END IF;
	IF EXISTS (SELECT FROM pg_replication_slots s WHERE s.slot_name = r.slot) THEN
		BEGIN
			PERFORM migrate._drop_own_slot($1);
		EXCEPTION WHEN OTHERS THEN
			-- both stay, and on record: without the publication the slot is worth nothing
			RETURN NEXT format('SELECT pg_drop_replication_slot(%L);', r.slot);
			RETURN NEXT format('DROP PUBLICATION IF EXISTS %I;', r.publication);
			RETURN;
		END;
	END IF;
	EXECUTE format('DROP PUBLICATION IF EXISTS %I', r.publication);
	-- its triggers are disabled by now, and stay for the next cutover (P28)
	DELETE FROM migrate.reverse_queue q WHERE q.job_id = $1;
	DELETE FROM migrate.reverse x WHERE x.job_id = $1;
	DELETE FROM migrate.made_object o
	WHERE o.job_id = $1 AND o.side = 'target' AND o.kind IN ('publication', 'replication slot');
END
$$;
COMMENT ON FUNCTION migrate._disarm_reverse(int) IS
'removes slot and publication of the way back; returns the statement for what could not be removed';

CREATE FUNCTION migrate._drop_own_slot(job_id int) RETURNS void
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_drop_own_slot';
COMMENT ON FUNCTION migrate._drop_own_slot(int) IS
'drops the slot on this server that is recorded for the job, with the rights of the job. Errors: 55006 it is in use';

/*
 * Sequences of the source up to those here: never back.
 */
CREATE FUNCTION migrate._sequences_back(job_id int) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job;
	p		record;
	here	record;
	queries text[] := '{}';
BEGIN
	SELECT * INTO j FROM migrate.job x WHERE x.job_id = $1;
	FOR p IN SELECT DISTINCT ON (x.full_name) x.* FROM migrate._sequence_pairs(j) x ORDER BY x.full_name
	LOOP
		EXECUTE format('SELECT s.last_value, s.is_called FROM %s s', migrate._name_of(p.sequence)) INTO here;
		queries := queries || format('SELECT setval(%L, %s, %L) AS v FROM %s s WHERE s.last_value %s %s OR (s.last_value = %s AND NOT s.is_called AND %L::boolean)',
			p.full_name, here.last_value, here.is_called, p.full_name,
			CASE WHEN p.increment < 0 THEN '>' ELSE '<' END, here.last_value, here.last_value, here.is_called);
	END LOOP;
	RETURN nullif(array_to_string(queries, ' UNION ALL '), '');
END
$$;
COMMENT ON FUNCTION migrate._sequences_back(int) IS
'the query that sets the source''s sequences to the values of those here that follow them, a row for each that was set; null: there are none';

/*
 * Targets by their foreign keys: a table is behind those that it refers to.
 */
CREATE FUNCTION migrate._foreign_key_ranks(job_id int) RETURNS TABLE (target_oid oid, rank int)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	WITH RECURSIVE target AS (
		SELECT DISTINCT m.target_oid AS oid FROM migrate.mapping m WHERE m.job_id = $1
	), walk AS (
		SELECT t.oid, 0 AS depth FROM target t
		UNION
		SELECT c.conrelid, w.depth + 1
		FROM walk w JOIN pg_constraint c ON c.contype = 'f' AND c.confrelid = w.oid AND c.conrelid <> c.confrelid
		JOIN target t ON t.oid = c.conrelid
		WHERE w.depth < 50
	)
	SELECT w.oid, max(w.depth) FROM walk w GROUP BY w.oid
$$;
COMMENT ON FUNCTION migrate._foreign_key_ranks(int) IS
'the targets of a job in the order of their foreign keys: parents have lower ranks than their children';

/*
 * Everything that cutovers have made: guards and the way back here, the fence
 * on the source; returns the statements for what could not be removed.
 */
CREATE FUNCTION migrate._drop_fence(job_id int) RETURNS text
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_drop_fence';
COMMENT ON FUNCTION migrate._drop_fence(int) IS
'drops the fence''s triggers and function from the source; null, or the statement that was refused';

CREATE FUNCTION migrate._open_reads_sql(schema text) RETURNS text
LANGUAGE C IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_open_reads_sql';
COMMENT ON FUNCTION migrate._open_reads_sql(text) IS
'the statement that gives readers of a fenced source their rights back, for the schema of its fence; does nothing where none were taken';

CREATE FUNCTION migrate._remove_cutover(j migrate.job) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	left_over text;
	fence	text;
BEGIN
	PERFORM migrate._set_guards($1.job_id, 'DROP');
	PERFORM migrate._set_queue($1.job_id, 'DROP');
	RETURN QUERY SELECT * FROM migrate._disarm_reverse($1.job_id);
	SELECT o.object INTO fence FROM migrate.made_object o
	WHERE o.job_id = $1.job_id AND o.side = 'source' AND o.kind = 'fence';
	IF fence IS NULL THEN
		RETURN;
	END IF;
	BEGIN
		left_over := migrate._drop_fence($1.job_id);
	EXCEPTION WHEN OTHERS THEN
		left_over := format('DROP SCHEMA IF EXISTS %s CASCADE', fence);
		IF migrate._option($1.job_id, 'fence_reads') = 'true' THEN
			left_over := migrate._open_reads_sql(fence) || '; ' || left_over;
		END IF;
	END;
	IF left_over IS NULL THEN
		DELETE FROM migrate.made_object o
		WHERE o.job_id = $1.job_id AND o.side = 'source' AND o.kind = 'fence';
	ELSE
		RETURN NEXT left_over || ';  -- on the source';
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._remove_cutover(migrate.job) IS
'removes what cutovers of a job have made on both sides; the statements for what could not be removed';
