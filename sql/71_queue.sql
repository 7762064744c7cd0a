/*
 * The way back by triggers, for targets without logical decoding: triggers note
 * the keys that were written to, and the reverse worker looks what became of
 * them (src/cutover/queue.c).
 *
 * One queue for all jobs, without an index: it is read as a whole, and nobody
 * looks for a row.
 */
CREATE TABLE migrate.reverse_queue (
	job_id		int NOT NULL,
	-- the target
	relation	oid NOT NULL,
	-- the texts of _queue_keys(); null: TRUNCATE
	key			text[]
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
		autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0,
		autovacuum_analyze_threshold = 1000000000);
COMMENT ON TABLE migrate.reverse_queue IS
'keys of targets that were written to after the cutover, to be brought to the source; option reverse, ''trigger''';
-- a publication FOR ALL TABLES of somebody else would refuse to have rows deleted
ALTER TABLE migrate.reverse_queue REPLICA IDENTITY FULL;
ALTER TABLE migrate.reverse_queue ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON migrate.reverse_queue USING (job_id IN (SELECT j.job_id FROM migrate.job j));

CREATE FUNCTION migrate._note_change() RETURNS trigger
LANGUAGE C SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_note_change';
COMMENT ON FUNCTION migrate._note_change() IS
'trigger on opened targets; arguments: number of the job, oid of the target, columns that hold keys of the source. Notes the keys of what was written in migrate.reverse_queue';

-- 'logical', 'trigger' or 'none', of a cutover that would begin now or of the one that was
CREATE FUNCTION migrate._reverse_kind(job_id int) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	wanted	text := migrate._option($1, 'reverse');
	armed	text;
BEGIN
	SELECT r.kind INTO armed FROM migrate.reverse r JOIN migrate.job j USING (job_id)
	WHERE r.job_id = $1 AND j.state IN ('cut_over', 'rolling_back');
	RETURN CASE WHEN armed IS NOT NULL THEN armed
				WHEN wanted <> 'auto' THEN wanted
				WHEN current_setting('wal_level') = 'logical' THEN 'logical'
				ELSE 'trigger' END;
END
$$;
COMMENT ON FUNCTION migrate._reverse_kind(int) IS
'how changes of a job''s targets go back to its source: logical, trigger or none';

-- Columns of a target that hold keys of the source, of all its mappings.
CREATE FUNCTION migrate._queue_keys(job_id int, target oid) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	RETURN (SELECT array_agg(DISTINCT e.value ORDER BY e.value)
			FROM migrate.inverse i JOIN migrate.mapping m USING (mapping_id)
			CROSS JOIN LATERAL jsonb_each_text(i.key) e
			WHERE i.job_id = $1 AND m.target_oid = $2 AND i.obstacle IS NULL);
END
$$;
COMMENT ON FUNCTION migrate._queue_keys(int, oid) IS
'the columns of a target that migrate.reverse_queue has the values of, in their order there';

/*
 * What triggers need and have not.
 */
CREATE FUNCTION migrate._queue_obstacles(job_id int) RETURNS TABLE (object text, detail text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	SELECT m.target, format('partition %s is a foreign table, and its changes cannot be noted', p.relid::regclass)
	FROM migrate.mapping m CROSS JOIN LATERAL pg_partition_tree(m.target_oid) p
	JOIN pg_class c ON c.oid = p.relid
	WHERE m.job_id = $1 AND c.relkind = 'f'
	UNION ALL
	SELECT DISTINCT m.target, 'the owner of the job does not own it, and may not have triggers enabled there'
	FROM migrate.mapping m JOIN pg_class c ON c.oid = m.target_oid
	WHERE m.job_id = $1 AND NOT pg_has_role(c.relowner, 'USAGE');
END
$$;
COMMENT ON FUNCTION migrate._queue_obstacles(int) IS 'what stands in the way of triggers on a job''s targets';

-- Tables and the triggers that belong on them.
CREATE FUNCTION migrate._queue_triggers(job_id int)
RETURNS TABLE (relation regclass, name text, event text, arguments text[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	SELECT x.relid::regclass, 'migrate_queue_' || $1 || CASE k.kind WHEN 't' THEN '_t' ELSE '' END,
		   CASE k.kind WHEN 't' THEN 'BEFORE TRUNCATE ON %s FOR EACH STATEMENT'
				ELSE 'AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW' END,
		   ARRAY[$1::text, x.target::text] || migrate._queue_keys($1, x.target)
	FROM (SELECT DISTINCT m.target_oid AS target, coalesce(p.relid, m.target_oid) AS relid
		  FROM migrate.mapping m LEFT JOIN LATERAL pg_partition_tree(m.target_oid) p ON true
		  WHERE m.job_id = $1) x
	JOIN pg_class c ON c.oid = x.relid
	CROSS JOIN (VALUES ('r'), ('t')) k(kind)
	-- partitions get the row trigger from their table, those to come as well
	WHERE x.relid = x.target OR k.kind = 't' AND c.relkind = 'r'
	ORDER BY 1, 2;
END
$$;
COMMENT ON FUNCTION migrate._queue_triggers(int) IS
'the triggers that note changes of a job''s targets, as they should be';

/*
 * Triggers that are not there yet, disabled: they are enabled by the
 * transaction that opens the target, and disabled by the one that closes it.
 */
CREATE FUNCTION migrate._arm_queue(job_id int) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	r		record;
	n		int := 0;
BEGIN
	DELETE FROM migrate.reverse_queue q WHERE q.job_id = $1;
	FOR r IN SELECT t.*, (SELECT string_agg(quote_literal(a), ', ' ORDER BY i) FROM unnest(t.arguments) WITH ORDINALITY a(a, i)) AS list
			 FROM migrate._queue_triggers($1) t
			 WHERE NOT EXISTS (
				SELECT FROM pg_trigger g
				WHERE g.tgrelid = t.relation AND g.tgname = t.name AND g.tgfoid = 'migrate._note_change()'::regprocedure
				  AND g.tgenabled = 'D'
				  AND g.tgargs = (SELECT string_agg(convert_to(a, getdatabaseencoding()) || '\x00'::bytea, ''::bytea ORDER BY i)
								  FROM unnest(t.arguments) WITH ORDINALITY a(a, i)))
	LOOP
		EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', r.name, r.relation);
		EXECUTE format('CREATE TRIGGER %I ' || r.event || ' EXECUTE FUNCTION migrate._note_change(%s)', r.name, r.relation, r.list);
		EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', r.relation, r.name);
		n := n + 1;
	END LOOP;
	RETURN n;
END
$$;
COMMENT ON FUNCTION migrate._arm_queue(int) IS
'makes the triggers that note changes of a job''s targets, disabled; returns how many there were to make';

-- how: 'ENABLE ALWAYS' (P27), 'DISABLE', 'DROP'; the caller has locked the tables
CREATE FUNCTION migrate._set_queue(job_id int, how text) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	r		record;
	n		int := 0;
BEGIN
	FOR r IN SELECT g.tgrelid::regclass AS relation, g.tgname
			 FROM pg_trigger g
			 WHERE g.tgfoid = 'migrate._note_change()'::regprocedure AND g.tgparentid = 0
			   AND g.tgname IN ('migrate_queue_' || $1, 'migrate_queue_' || $1 || '_t')
			 ORDER BY g.tgrelid
	LOOP
		IF how = 'DROP' THEN
			EXECUTE format('DROP TRIGGER %I ON %s', r.tgname, r.relation);
		ELSE
			EXECUTE format('ALTER TABLE %s %s TRIGGER %I', r.relation, how, r.tgname);
		END IF;
		n := n + 1;
	END LOOP;
	RETURN n;
END
$$;
COMMENT ON FUNCTION migrate._set_queue(int, text) IS
'ENABLE ALWAYS, DISABLE or DROP the triggers that note changes of a job''s targets; returns how many there were';

-- One table a call, so that no writer waits for more than one.
CREATE FUNCTION migrate._stop_queue(job_id int) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	r		record;
	n		int;
BEGIN
	DELETE FROM migrate.reverse_queue q WHERE q.job_id = $1;
	SELECT g.tgrelid::regclass AS relation, count(*) OVER () AS n INTO r
	FROM pg_trigger g
	WHERE g.tgfoid = 'migrate._note_change()'::regprocedure AND g.tgparentid = 0 AND g.tgenabled <> 'D'
	  AND g.tgname IN ('migrate_queue_' || $1, 'migrate_queue_' || $1 || '_t')
	GROUP BY g.tgrelid ORDER BY random() LIMIT 1;
	IF r.relation IS NULL THEN
		RETURN 0;
	END IF;
	n := r.n;
	BEGIN
		PERFORM set_config('lock_timeout', migrate._option($1, 'fence_lock_timeout'), true);
		FOR r IN SELECT g.tgname, r.relation FROM pg_trigger g
				 WHERE g.tgrelid = r.relation AND g.tgfoid = 'migrate._note_change()'::regprocedure AND g.tgparentid = 0
				   AND g.tgname IN ('migrate_queue_' || $1, 'migrate_queue_' || $1 || '_t')
		LOOP
			EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', r.relation, r.tgname);
		END LOOP;
	EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
		NULL;
	END;
	RETURN n;
END
$$;
COMMENT ON FUNCTION migrate._stop_queue(int) IS
'gives up the queue of a job: empties it, and disables the triggers of one table; returns how many tables had any, to be called until that is 0';
