/*
 * Cutover: the switch of the application from the source to the target.
 *
 * A cutover is a row that is asked for, and a list of steps that the job worker
 * takes and records one by one.  Whoever dies, the row and its steps say how
 * far it came: before "commit fence" it is undone, after it is carried on.
 */
CREATE TABLE migrate.cutover (
	cutover_id	int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	direction	text NOT NULL CHECK (direction IN ('forward', 'back')),
	-- the step before which it ends and is undone; null: none
	stop_before text,
	max_downtime_ms bigint NOT NULL,
	state		text NOT NULL DEFAULT 'asked'
				CHECK (state IN ('asked', 'running', 'done', 'undone')),
	-- sessions that set it write past the fence; and how the fence is known again
	token		text NOT NULL DEFAULT replace(gen_random_uuid()::text || gen_random_uuid(), '-', ''),
	digest		text NOT NULL GENERATED ALWAYS AS (encode(sha256(token::bytea), 'hex')) STORED,
	-- of a rollback: the target is closed, it can only go on
	closed		boolean NOT NULL DEFAULT false,
	-- 'external': the DBA closes the source, see cutover/external.c
	fence		text NOT NULL DEFAULT 'triggers' CHECK (fence IN ('triggers', 'external')),
	-- the source's position under the fence, up to which all is applied
	fence_lsn	pg_lsn,
	-- a gate that waits for migrate_continue; when that came
	gate		text,
	continued_at timestamptz,
	-- blocker -> reason, of those that were to be passed over
	overrides	jsonb NOT NULL DEFAULT '{}',
	-- how long the application could not write
	pause		interval,
	sqlstate	text,
	error		text,
	asked_by	text NOT NULL DEFAULT session_user,
	asked_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	started_at	timestamptz,
	ended_at	timestamptz
);
CREATE UNIQUE INDEX cutover_current ON migrate.cutover (job_id) WHERE state IN ('asked', 'running');
CREATE INDEX cutover_job ON migrate.cutover (job_id, cutover_id);
COMMENT ON TABLE migrate.cutover IS 'one row a cutover, rehearsal or rollback that was asked for';

CREATE TABLE migrate.cutover_step (
	cutover_id	int NOT NULL REFERENCES migrate.cutover ON DELETE CASCADE,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	step_no		int NOT NULL,
	step		text NOT NULL,
	state		text NOT NULL DEFAULT 'running'
				CHECK (state IN ('running', 'done', 'failed', 'undone')),
	-- within the time that the application cannot write
	in_pause	boolean NOT NULL DEFAULT false,
	started_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	duration	interval,
	detail		text,
	PRIMARY KEY (cutover_id, step_no)
);
CREATE INDEX cutover_step_job ON migrate.cutover_step (job_id);
COMMENT ON TABLE migrate.cutover_step IS 'the steps of a cutover as they were taken';

/*
 * What the DBA wants done at a phase of the cutover: SQL on either side, or a
 * gate that waits for migrate_continue.
 */
CREATE TABLE migrate.hook (
	hook_id		int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	phase		text NOT NULL CHECK (phase IN ('before_fence', 'fence', 'after_fence', 'before_open', 'after_open', 'undone', 'lift')),
	side		text NOT NULL CHECK (side IN ('source', 'target', 'gate')),
	sql			text,
	CHECK ((side = 'gate') = (sql IS NULL))
);
CREATE INDEX hook_job ON migrate.hook (job_id);
COMMENT ON TABLE migrate.hook IS 'statements and gates of the DBA at the phases of a cutover';

DO $$
DECLARE
	t text;
BEGIN
	FOREACH t IN ARRAY '{cutover,cutover_step,hook}'::text[]
	LOOP
		EXECUTE format('ALTER TABLE migrate.%I ENABLE ROW LEVEL SECURITY', t);
		EXECUTE format('CREATE POLICY own ON migrate.%I USING '
					   '(job_id IN (SELECT j.job_id FROM migrate.job j))', t);
	END LOOP;
END
$$;

/* ----------------------------------------------------------------
 * the guard
 * ----------------------------------------------------------------
 */
CREATE FUNCTION migrate._guard() RETURNS trigger
LANGUAGE C SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_guard';
COMMENT ON FUNCTION migrate._guard() IS
'trigger on targets that are not open yet; arguments: number and name of the job. Errors: 25006 for whoever is not migrate';

/*
 * Tables that a guard must stand on: leaves of the job's targets that the owner
 * may have triggers on.
 */
CREATE FUNCTION migrate._guarded_tables(j migrate.job)
RETURNS TABLE (relation regclass, armed boolean, enabled boolean, possible boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT c.oid::regclass,
		   coalesce(t.n = 2, false), coalesce(t.enabled, false),
		   pg_has_role(c.relowner, 'USAGE') OR has_table_privilege(c.oid, 'TRIGGER')
	FROM (SELECT DISTINCT coalesce(p.relid, m.target_oid) AS oid
		  FROM migrate.mapping m
		  LEFT JOIN LATERAL (SELECT x.relid FROM pg_partition_tree(m.target_oid) x WHERE x.isleaf) p ON true
		  WHERE m.job_id = $1.job_id) r
	JOIN pg_class c ON c.oid = r.oid
	LEFT JOIN LATERAL (
		SELECT count(*) AS n, bool_and(g.tgenabled <> 'D') AS enabled
		FROM pg_trigger g
		WHERE g.tgrelid = c.oid AND g.tgfoid = 'migrate._guard()'::regprocedure
		  AND g.tgname LIKE 'migrate\_guard\_' || $1.job_id || '%') t ON true
	WHERE c.relkind = 'r'
$$;
COMMENT ON FUNCTION migrate._guarded_tables(migrate.job) IS
'the tables of a job''s targets, leaves of partitioned ones, that a guard belongs on: whether it is there, enabled, and may be made';

-- enabled: closed at once; else, what lacks one gets one that lets everything through
CREATE FUNCTION migrate._arm_guards(job_id int, enabled boolean DEFAULT true) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job;
	r		record;
	n		int := 0;
	name	text := 'migrate_guard_' || $1;
BEGIN
	SELECT * INTO j FROM migrate.job x WHERE x.job_id = $1;
	FOR r IN SELECT g.* FROM migrate._guarded_tables(j) g WHERE g.possible AND NOT (g.armed AND (g.enabled OR NOT $2)) ORDER BY g.relation
	LOOP
		EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', name, r.relation);
		EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', name || '_t', r.relation);
		EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION migrate._guard(%s, %L)',
					   name, r.relation, $1, j.job);
		EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION migrate._guard(%s, %L)',
					   name || '_t', r.relation, $1, j.job);
		IF NOT $2 THEN
			EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I, DISABLE TRIGGER %I', r.relation, name, name || '_t');
		END IF;
		n := n + 1;
	END LOOP;
	RETURN n;
END
$$;
COMMENT ON FUNCTION migrate._arm_guards(int, boolean) IS
'puts the guard, enabled or not, on every target table of a job that lacks it; returns how many';

-- how: 'DISABLE' opens, 'ENABLE' closes (rollback.c has locked the tables), 'DROP' removes
CREATE FUNCTION migrate._set_guards(job_id int, how text) RETURNS int
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
			 WHERE g.tgfoid = 'migrate._guard()'::regprocedure AND g.tgparentid = 0
			   AND g.tgname IN ('migrate_guard_' || $1, 'migrate_guard_' || $1 || '_t')
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
COMMENT ON FUNCTION migrate._set_guards(int, text) IS
'DISABLE, ENABLE or DROP the guard triggers of a job; returns how many there were';

/* ----------------------------------------------------------------
 * readiness
 * ----------------------------------------------------------------
 */

/*
 * What stands between a job and its cutover, a row a finding.  Each name can be
 * accepted with migrate_accept(job, 'cutover', name, reason).
 */
CREATE FUNCTION migrate._blockers(j migrate.job)
RETURNS TABLE (name text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	n		bigint;
	what	text;
BEGIN
	IF $1.state <> 'streaming' THEN
		RETURN QUERY SELECT 'state', format('The job is %s.', $1.state), 'A cutover begins from state streaming.';
	ELSIF $1.wanted <> 'run' THEN
		RETURN QUERY SELECT 'paused', coalesce($1.pause_reason, 'The job is paused.'), 'Use migrate_resume.';
	END IF;

	SELECT count(*), string_agg(DISTINCT m.target, ', ') INTO n, what
	FROM migrate.dead_letter d JOIN migrate.mapping m USING (mapping_id)
	WHERE d.job_id = $1.job_id AND d.state = 'open';
	IF n > 0 THEN
		RETURN QUERY SELECT 'dead_letters', format('%s open, of %s.', n, what),
			'Replay or discard them: migrate_replay, migrate_discard.';
	END IF;

	SELECT count(*), string_agg(p.kind || ' ' || p.object, ', ' ORDER BY p.step_id) INTO n, what
	FROM migrate.post_step p WHERE p.job_id = $1.job_id AND p.state = 'failed';
	IF n > 0 THEN
		RETURN QUERY SELECT 'steps', format('Failed: %s.', what), 'See migrate.steps; migrate_retry_steps or migrate_skip_steps.';
	END IF;

	SELECT string_agg(x.target, ', ') INTO what
	FROM (SELECT m.target,
				 (SELECT v.matched AND v.started_at > now() - interval '24 hours' FROM migrate.validation_run v
				  WHERE v.mapping_id = m.mapping_id AND v.status <> 'running' AND v.level <> 'changed'
				  ORDER BY v.validation_id DESC LIMIT 1) AS good
		  FROM migrate.mapping m WHERE m.job_id = $1.job_id) x
	WHERE x.good IS NOT TRUE;
	IF what IS NOT NULL THEN
		RETURN QUERY SELECT 'validation', format('Not found equal within the last 24 hours: %s.', what),
			'Run migrate_validate, and migrate_repair where it finds differences.';
	END IF;
	IF migrate._option($1.job_id, 'fence') = 'external'
		AND NOT EXISTS (SELECT FROM migrate.hook h WHERE h.job_id = $1.job_id AND h.phase = 'fence') THEN
		RETURN QUERY SELECT 'fence_hook', 'Nothing says when the source is fenced: there is no hook and no gate of phase "fence".',
			format('Close the source there with migrate_add_hook(%L, ''fence'', ''source'', ''...''), or let a gate wait for your word: migrate_add_hook(%1$L, ''fence'', ''gate''). What opens it again belongs to phase "lift".', $1.job);
	END IF;

	-- explained by dead letters: those are named above
	SELECT string_agg(m.target, ', ') INTO what
	FROM migrate.mapping m
	CROSS JOIN LATERAL (SELECT v.validation_id, v.level, v.matched FROM migrate.validation_run v
						WHERE v.mapping_id = m.mapping_id AND v.status <> 'running' AND v.level <> 'count'
						ORDER BY v.validation_id DESC LIMIT 1) l
	WHERE m.job_id = $1.job_id AND l.level = 'changed' AND NOT l.matched
	  AND (NOT EXISTS (SELECT FROM migrate.difference d WHERE d.validation_id = l.validation_id)
		   OR EXISTS (SELECT FROM migrate.difference d WHERE d.validation_id = l.validation_id AND d.dead_letter IS NULL));
	IF what IS NOT NULL THEN
		RETURN QUERY SELECT 'last_check', format('Rows that changed are not equal: %s.', what),
			'See migrate.differences; run migrate_repair, and migrate_validate after it.';
	END IF;

	-- a fence lets one session token through, and the way back of each job has its own
	SELECT string_agg(DISTINCT format('%I.%I (job "%s")', o.remote_schema, o.remote_table, x.job), ', ') INTO what
	FROM migrate.source_table s
	JOIN migrate.source_table o ON o.remote_schema = s.remote_schema AND o.remote_table = s.remote_table AND o.job_id <> s.job_id
	JOIN migrate.job x ON x.job_id = o.job_id AND x.server = $1.server AND x.state IN ('cutting_over', 'cut_over', 'rolling_back')
	WHERE s.job_id = $1.job_id;
	IF what IS NOT NULL THEN
		RETURN QUERY SELECT 'shared_source', format('Already fenced for another job, whose way back could not write any more: %s.', what),
			'Finish that job or roll it back first; mappings of one source table that are to be cut over together belong to one job.';
	END IF;
	RETURN QUERY SELECT * FROM migrate._fence_obstacles($1);
END
$$;
COMMENT ON FUNCTION migrate._blockers(migrate.job) IS
'what stands in the way of a job''s cutover now, with the remedy; asks the source';

CREATE FUNCTION migrate._lock_holders_sql(relations text) RETURNS text
LANGUAGE C IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_lock_holders_sql';
COMMENT ON FUNCTION migrate._lock_holders_sql(text) IS
'the query for those who hold a lock in the way of the fence''s on tables (oids, as the right side of IN): pid, or gid and prepared of a prepared transaction';

-- Who would keep the fence from getting its lock.
CREATE FUNCTION migrate._fence_obstacles(j migrate.job)
RETURNS TABLE (name text, detail text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	tables	text;
BEGIN
	SELECT string_agg(format('(%L, %L)', s.remote_schema, s.remote_table), ', ') INTO tables
	FROM migrate.source_table s WHERE s.job_id = $1.job_id AND s.remote_table IS NOT NULL;
	IF tables IS NULL THEN
		RETURN;
	END IF;
	RETURN QUERY
	SELECT q ->> 'name', q ->> 'detail', q ->> 'hint'
	FROM migrate._remote_query($1.server, format($q$
		WITH r AS (
			SELECT c.oid FROM (VALUES %1$s) v (n, t)
			JOIN pg_namespace n ON n.nspname = v.n JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.t
			UNION SELECT p.relid FROM (VALUES %1$s) v (n, t)
			JOIN pg_namespace n ON n.nspname = v.n JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.t
			CROSS JOIN LATERAL pg_partition_tree(c.oid) p
		), l AS (
			%2$s
		)
		SELECT 'prepared_transaction' AS name, format('Prepared transaction %%L holds locks on the tables since %%s.', x.gid, x.prepared) AS detail,
			   format('COMMIT PREPARED %%L, or ROLLBACK PREPARED.', x.gid) AS hint
		FROM l x WHERE x.gid IS NOT NULL
		UNION ALL
		SELECT 'long_transaction', format('Session %%s (%%s, %%s) holds locks on the tables for %%s.', a.pid, a.usename, a.state,
										  date_trunc('second', clock_timestamp() - a.xact_start)),
			   'End it, or wait for it.'
		FROM l JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE a.xact_start < clock_timestamp() - interval '5 seconds' AND a.backend_type = 'client backend'
		UNION ALL
		SELECT 'fence_privilege', format('Role %%I may not make the fence: it %%s.', current_user, x.lacks),
			   x.remedy || ' Or fence the source by your own means: option fence ''external''.'
		FROM (SELECT concat_ws(', and ', CASE WHEN NOT has_database_privilege(current_database(), 'CREATE') THEN 'may not create a schema' END,
							   CASE WHEN count(*) > 0 THEN 'does not own ' || string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid::regclass::text) END) AS lacks,
					 concat_ws(' ', 'On the source:', CASE WHEN NOT has_database_privilege(current_database(), 'CREATE')
														   THEN format('GRANT CREATE ON DATABASE %%I TO %%I;', current_database(), current_user) END,
							   string_agg(DISTINCT format('GRANT %%I TO %%I;', pg_get_userbyid(c.relowner), current_user), ' ')
								   FILTER (WHERE NOT (SELECT o.rolsuper FROM pg_roles o WHERE o.oid = c.relowner))) AS remedy
			  FROM r JOIN pg_class c ON c.oid = r.oid WHERE NOT pg_has_role(c.relowner, 'USAGE')) x
		WHERE x.lacks <> '' AND %3$L <> 'external'
		UNION ALL
		SELECT 'wraparound_vacuum', format('Process %%s: %%s.', a.pid, a.query), 'It does not yield to a lock; wait until it has ended.'
		FROM l JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE a.backend_type = 'autovacuum worker' AND a.query LIKE '%%(to prevent wraparound)%%'
	$q$, tables, migrate._lock_holders_sql('SELECT r.oid FROM r'), migrate._option($1.job_id, 'fence'))) q;
EXCEPTION WHEN OTHERS THEN
	RETURN QUERY SELECT 'source', SQLERRM, 'The source must answer for a cutover.';
END
$$;
COMMENT ON FUNCTION migrate._fence_obstacles(migrate.job) IS
'transactions and processes on the source that would hold up the lock of the fence, and privileges for it that are missing there';

-- What is looked at under the fence, within the pause; an error undoes it.
CREATE FUNCTION migrate._cutover_check(job_id int) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	n	bigint;
BEGIN
	SELECT count(*) INTO n FROM migrate.dead_letter d
	WHERE d.job_id = $1 AND d.state = 'open'
	  AND NOT EXISTS (SELECT FROM migrate.acceptance a
					  WHERE a.job_id = $1 AND a.check_name = 'cutover' AND a.object = 'dead_letters');
	IF n > 0 THEN
		RAISE EXCEPTION USING ERRCODE = '55000',
			MESSAGE = format('%s dead letters came up while the source was drained', n),
			HINT = 'Replay or discard them, then try again.';
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._cutover_check(int) IS 'the last look before the fence commits; errors: 55000';

/* ----------------------------------------------------------------
 * the calls
 * ----------------------------------------------------------------
 */
CREATE FUNCTION migrate._cutover_steps() RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT '{prechecks,guard,reverse,arm,validate,lag,fence,drain,check,sequences,commit,open}'::text[]
$$;
COMMENT ON FUNCTION migrate._cutover_steps() IS 'the steps of a cutover, in order';

CREATE FUNCTION migrate._rollback_steps() RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT '{prechecks,lag,close,drain,check,sequences,commit,lift}'::text[]
$$;
COMMENT ON FUNCTION migrate._rollback_steps() IS 'the steps of a rollback, in order';

-- The row that the job worker acts on, and the state that says so.
CREATE FUNCTION migrate._ask_switch(j migrate.job, direction text, max_downtime interval, stop_before text) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	steps	text[] := CASE $2 WHEN 'forward' THEN migrate._cutover_steps() ELSE migrate._rollback_steps() END;
	id		int;
BEGIN
	IF $3 IS NULL OR $3 < interval '100 ms' THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'max_downtime must be 100 ms or more';
	ELSIF $4 IS NOT NULL AND $4 <> ALL (steps) THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('there is no step "%s"', $4),
			HINT = format('The steps are: %s.', array_to_string(steps, ', '));
	ELSIF $1.state IN ('cutting_over', 'rolling_back') THEN
		RAISE EXCEPTION USING ERRCODE = '55006', MESSAGE = format('job "%s" is %s', $1.job,
			CASE $1.state WHEN 'cutting_over' THEN 'being cut over' ELSE 'being rolled back' END),
			HINT = 'See migrate.cutover_steps.';
	END IF;
	PERFORM migrate._require_switchable($1, $2);
	INSERT INTO migrate.cutover AS c (job_id, direction, stop_before, max_downtime_ms, fence, overrides)
	SELECT $1.job_id, $2, $4, extract(epoch FROM $3) * 1000,
		   -- a rollback lifts what its cutover has closed
		   CASE $2 WHEN 'forward' THEN migrate._option($1.job_id, 'fence')
				   ELSE (SELECT f.fence FROM migrate.cutover f WHERE f.job_id = $1.job_id AND f.direction = 'forward' AND f.state = 'done'
						 ORDER BY f.cutover_id DESC LIMIT 1) END,
		   coalesce((SELECT jsonb_object_agg(a.object, a.reason) FROM migrate.acceptance a
					 WHERE a.job_id = $1.job_id AND a.check_name = CASE $2 WHEN 'forward' THEN 'cutover' ELSE 'rollback' END), '{}')
	RETURNING c.cutover_id INTO id;
	PERFORM migrate._set_state($1.job_id, CASE $2 WHEN 'forward' THEN 'cutting_over' ELSE 'rolling_back' END,
		format('%s asked for by %s', CASE WHEN $4 IS NOT NULL THEN 'rehearsal' WHEN $2 = 'forward' THEN 'cutover' ELSE 'rollback' END,
			   session_user));
	PERFORM migrate._launch($1.job_id);
	RETURN id;
END
$$;
COMMENT ON FUNCTION migrate._ask_switch(migrate.job, text, interval, text) IS
'ask the job worker for a cutover (forward) or rollback (back); returns its number. Errors: 22023 bad argument, 55006 one is under way, 55000 the job is not ready';

-- 55000 with everything that stands in the way and was not accepted.
CREATE FUNCTION migrate._require_switchable(j migrate.job, direction text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	found	text;
	hints	text;
	back	boolean := $2 = 'back';
BEGIN
	IF back AND $1.state <> 'cut_over' THEN
		RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = format('job "%s" is %s, there is nothing to roll back', $1.job, $1.state);
	ELSIF NOT back AND $1.state = 'cut_over' THEN
		RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = format('job "%s" is cut over', $1.job);
	END IF;
	SELECT string_agg(format('%s: %s', b.name, b.detail), E'\n'), string_agg(DISTINCT b.hint, E'\n') INTO found, hints
	FROM migrate._blockers($1) b
	WHERE NOT back AND NOT EXISTS (SELECT FROM migrate.acceptance a
								   WHERE a.job_id = $1.job_id AND a.check_name = 'cutover' AND a.object = b.name);
	IF back AND migrate._reverse_state($1.job_id) IS DISTINCT FROM 1 THEN
		found := 'reverse: What was written here since the opening is not on the source: there is no way back that loses nothing.';
		hints := 'Validate both sides and bring the source in line by hand, or stay.';
	END IF;
	IF found IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '55000',
			MESSAGE = format('job "%s" is not ready for a %s', $1.job, CASE WHEN back THEN 'rollback' ELSE 'cutover' END),
			DETAIL = found,
			HINT = concat_ws(E'\n', hints, CASE WHEN NOT back THEN 'Or pass over it, on record: migrate_accept(job, ''cutover'', name, reason).' END);
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._require_switchable(migrate.job, text) IS
'errors unless a cutover (forward) or rollback (back) of the job may begin: 55000 with all that stands in the way';

CREATE FUNCTION migrate._cutover_ask(job text, direction text, max_downtime interval, stop_before text) RETURNS int
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT migrate._ask_switch(migrate._job($1, lock => true), $2, $3, $4)
$$;
COMMENT ON FUNCTION migrate._cutover_ask(text, text, interval, text) IS 'migrate._ask_switch by the job''s name';

CREATE FUNCTION migrate._interval_ms(duration interval) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT round(extract(epoch FROM $1) * 1000) || ' ms'
$$;
COMMENT ON FUNCTION migrate._interval_ms(interval) IS 'a duration in whole milliseconds, for people';

CREATE FUNCTION migrate._cutover_plan(job text, direction text) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1);
	b		record;
BEGIN
	RETURN QUERY
	SELECT format('%s: %s', n.step, coalesce('about ' || migrate._interval_ms(l.duration), 'not measured yet'))
	FROM unnest(CASE $2 WHEN 'forward' THEN migrate._cutover_steps() ELSE migrate._rollback_steps() END)
		WITH ORDINALITY n(step, pos)
	LEFT JOIN LATERAL (SELECT s.duration FROM migrate.cutover_step s
					   JOIN migrate.cutover c USING (cutover_id)
					   WHERE s.job_id = j.job_id AND c.direction = $2 AND s.step = n.step AND s.state = 'done'
					   ORDER BY s.cutover_id DESC LIMIT 1) l ON true
	ORDER BY n.pos;
	IF $2 = 'forward' AND j.state = 'streaming' AND migrate._option(j.job_id, 'last_check') = 'changed' THEN
		RETURN QUERY
		SELECT format('to compare: %s keys that changed since the last validation%s', coalesce(sum(c.keys), 0),
					  '; whole: ' || string_agg(format('%s (%s)', m.target, c.whole), ', ' ORDER BY m.target) FILTER (WHERE c.whole IS NOT NULL))
		FROM migrate._changed_since(j.job_id) c JOIN migrate.mapping m USING (mapping_id);
	END IF;
	FOR b IN SELECT * FROM migrate._blockers(j) WHERE $2 = 'forward'
	LOOP
		RETURN NEXT format('in the way: %s: %s %s', b.name, b.detail, b.hint);
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._cutover_plan(text, text) IS
'the steps of a cutover or rollback with the time that each took last, and what stands in the way now';

CREATE FUNCTION migrate._await_change(job_id int, ms int) RETURNS void
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_await_change';
COMMENT ON FUNCTION migrate._await_change(int, int) IS
'sleep until the job worker has changed something, for so many milliseconds at most';

/*
 * It only asks and looks: the worker goes on without us.  It commits, so it
 * cannot pin search_path: every name is qualified.
 */
CREATE PROCEDURE migrate._switch(job text, direction text, max_downtime interval, stop_before text, dry_run boolean)
LANGUAGE plpgsql
AS $$
DECLARE
	id		pg_catalog.int4;
	line	pg_catalog.text;
	r		migrate.cutover_step;
	c		migrate.cutover;
	seen	pg_catalog.int4 := 0;
	what	pg_catalog.text := CASE direction WHEN 'forward' THEN 'cutover' ELSE 'rollback' END;
	side	pg_catalog.text := CASE direction WHEN 'forward' THEN 'target' ELSE 'source' END;
BEGIN
	IF dry_run THEN
		FOR line IN SELECT p FROM migrate._cutover_plan(job, direction) p
		LOOP
			RAISE INFO '%', line;
		END LOOP;
		RETURN;
	END IF;
	id := migrate._cutover_ask(job, direction, max_downtime, stop_before);
	COMMIT;
	LOOP
		SELECT x.* INTO c FROM migrate.cutover x WHERE x.cutover_id OPERATOR(pg_catalog.=) id;
		FOR r IN SELECT s.* FROM migrate.cutover_step s
				 WHERE s.cutover_id OPERATOR(pg_catalog.=) id AND s.step_no OPERATOR(pg_catalog.>) seen
				   AND s.state OPERATOR(pg_catalog.<>) 'running'
				 ORDER BY s.step_no
		LOOP
			RAISE INFO '% %: %', pg_catalog.rpad(r.step, 10), pg_catalog.lpad(migrate._interval_ms(r.duration), 9),
				pg_catalog.concat_ws(', ', r.state, r.detail);
			seen := r.step_no;
		END LOOP;
		EXIT WHEN c.state OPERATOR(pg_catalog.=) ANY ('{done,undone}');
		COMMIT;
		PERFORM migrate._await_change(c.job_id, 200);
		COMMIT;
	END LOOP;
	IF c.state OPERATOR(pg_catalog.=) 'done' THEN
		RAISE INFO 'the % is open; the application could not write for %', side, migrate._interval_ms(c.pause);
	ELSIF c.error IS NULL THEN
		RAISE INFO 'stopped before "%" and undone; the application could not write for %', stop_before,
			coalesce(migrate._interval_ms(c.pause), '0 ms');
	ELSE
		RAISE EXCEPTION USING ERRCODE = c.sqlstate, MESSAGE = pg_catalog.format('the %s of job "%s" was undone: %s', what, job, c.error),
			DETAIL = CASE direction WHEN 'forward' THEN 'The source is open, and the job streams on.' ELSE 'The target is open as before.' END,
			HINT = 'See migrate.cutover_steps and migrate.events.';
	END IF;
END
$$;
COMMENT ON PROCEDURE migrate._switch(text, text, interval, text, boolean) IS
'what migrate_cutover and migrate_rollback do: ask the job worker, print its steps, wait for the end';

CREATE PROCEDURE @extschema@.migrate_cutover(job text, max_downtime interval DEFAULT '5s',
											 stop_before text DEFAULT NULL, dry_run boolean DEFAULT false)
LANGUAGE plpgsql
AS $$
BEGIN
	CALL migrate._switch(job, 'forward', max_downtime, stop_before, dry_run);
END
$$;
COMMENT ON PROCEDURE @extschema@.migrate_cutover(text, interval, text, boolean) IS
'switch over: compare what changed since the last validation, fence the source, drain, check, set sequences, open the target; prints each step with its duration. max_downtime: longest time that the application may wait, after which all is undone; stop_before: a step to stop and undo at (''open'' is the rehearsal); dry_run: print the steps with the time that each took last. Not within a transaction block. Losing the client changes nothing. Errors: 22023 bad argument, 55006 one is under way, 55000 the job is not ready; the error for which it was undone';

CREATE PROCEDURE @extschema@.migrate_rollback(job text, max_downtime interval DEFAULT '5s',
											  stop_before text DEFAULT NULL, dry_run boolean DEFAULT false)
LANGUAGE plpgsql
AS $$
BEGIN
	CALL migrate._switch(job, 'back', max_downtime, stop_before, dry_run);
END
$$;
COMMENT ON PROCEDURE @extschema@.migrate_rollback(text, interval, text, boolean) IS
'go back to the source after a cutover: close the target, bring the rest of its changes to the source, set its sequences, lift its fence; the job streams again. Arguments, output and errors as of migrate_cutover';

CREATE FUNCTION @extschema@.migrate_continue(job text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j	migrate.job := migrate._job($1);
BEGIN
	UPDATE migrate.cutover c SET continued_at = clock_timestamp()
	WHERE c.job_id = j.job_id AND c.state = 'running' AND c.gate IS NOT NULL AND c.continued_at IS NULL;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = format('job "%s" waits at no gate', $1);
	END IF;
	PERFORM migrate._wake(j.job_id);
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_continue(text) IS
'let a cutover that waits at a gate go on. Errors: 42704 unknown job, 55000 it waits at none';

CREATE FUNCTION @extschema@.migrate_add_hook(job text, phase text, side text, sql text DEFAULT NULL) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1);
	phases	text[] := '{before_fence,fence,after_fence,before_open,after_open,undone,lift}';
	id		int;
BEGIN
	IF $2 IS NULL OR $2 <> ALL (phases) THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('there is no phase "%s"', $2),
			HINT = format('The phases are: %s.', array_to_string(phases, ', '));
	ELSIF $3 IS NULL OR $3 NOT IN ('source', 'target', 'gate') THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('there is no side "%s"', $3),
			HINT = 'The sides are: source, target; and gate, which waits for migrate_continue.';
	ELSIF ($3 = 'gate') <> ($4 IS NULL) THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = CASE $3 WHEN 'gate' THEN 'a gate has no statement' ELSE 'a hook needs a statement' END;
	END IF;
	INSERT INTO migrate.hook AS h (job_id, phase, side, sql) VALUES (j.job_id, $2, $3, $4)
	RETURNING h.hook_id INTO id;
	RETURN id;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_add_hook(text, text, text, text) IS
'run a statement at a phase of the cutover (before_fence, after_fence, before_open, after_open, undone; with fence => ''external'' also fence and lift, which close and open the source) on side source or target, as the owner; side gate waits there for migrate_continue. Returns its number. Errors: 22023';

CREATE FUNCTION @extschema@.migrate_remove_hook(job text, hook int) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j	migrate.job := migrate._job($1);
BEGIN
	DELETE FROM migrate.hook h WHERE h.job_id = j.job_id AND h.hook_id = $2;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '42704', MESSAGE = format('job "%s" has no hook %s', $1, $2);
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_remove_hook(text, int) IS 'take a hook out again. Errors: 42704';

CREATE VIEW migrate.cutover_steps WITH (security_invoker = true) AS
	SELECT j.job, s.cutover_id, c.direction, s.step_no, s.step, s.state, s.in_pause, s.started_at,
		   coalesce(s.duration, clock_timestamp() - s.started_at) AS duration, s.detail,
		   c.state AS cutover, c.pause, c.error
	FROM migrate.cutover_step s
	JOIN migrate.cutover c USING (cutover_id)
	JOIN migrate.job j ON j.job_id = s.job_id
	ORDER BY s.cutover_id, s.step_no;
COMMENT ON VIEW migrate.cutover_steps IS
'the steps of every cutover and rehearsal with their durations; in_pause: the application waits meanwhile; pause: how long in all';

CREATE VIEW migrate.cutovers WITH (security_invoker = true) AS
	SELECT j.job, c.cutover_id, c.direction, c.fence, c.stop_before, c.state, c.gate, c.overrides,
		   make_interval(secs => c.max_downtime_ms / 1000.0) AS max_downtime, c.pause, c.sqlstate, c.error,
		   c.asked_by, c.asked_at, c.started_at, c.ended_at
	FROM migrate.cutover c
	JOIN migrate.job j USING (job_id)
	ORDER BY c.cutover_id;
COMMENT ON VIEW migrate.cutovers IS
'every cutover, rehearsal and rollback: gate: the one that it waits at for migrate_continue; overrides: what stood in its way and was passed over (migrate_accept), with the reasons; pause: how long the application could not write';
