/*
 * Steps after the copy: which there have to be, what a DBA sees of them and
 * may do with them.  Planned by migrate_start, and earlier for a DBA to look
 * at; worked by the loaders.
 *
 *	todo -> running -> done | failed | todo (to be tried again)
 *	failed -> todo		migrate_retry_steps
 *	failed -> skipped	migrate_skip_steps
 *
 * Partitioned tables are built as pg_dump does: a step for each leaf's index,
 * then the parents' index, to which the ones below are attached.
 */
/*
 * All of it, by the job's options, set against the steps that there are: what
 * is still to do follows the plan, what was begun stays as it is.
 */
CREATE FUNCTION migrate._plan_steps(j migrate.job, mappings int[] DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
-- how many rows functions and CTEs have is guessed far too low: with thousands
-- of tables a nested loop takes minutes, and its price here would start JIT
SET enable_nestloop = off
SET jit = off
-- what is deparsed here is compared with what the source deparses
SET datestyle = 'ISO'
SET intervalstyle = 'postgres'
SET extra_float_digits = 3
SET timezone = 'GMT'
AS $$
#variable_conflict use_column
DECLARE
	content	text := migrate._option($1.job_id, 'content');
	indexes	text := migrate._option($1.job_id, 'indexes');
	rels	migrate.step_relation[];
	moved	jsonb;
	wanted	migrate.wanted_step[] := '{}';
BEGIN
	IF content <> 'data' AND indexes <> 'none' AND migrate._is_postgres_fdw($1.server) THEN
		rels := ARRAY(SELECT r FROM migrate._step_relations($1, $2) r);
		IF cardinality(rels) > 0 THEN
			SELECT coalesce(jsonb_object_agg(format('%I.%I', t.remote_schema, t.remote_table), t.shown), '{}') INTO moved
			FROM migrate._relations_here($1) t
			WHERE t.preference = 1 AND t.shown <> format('%I.%I', t.remote_schema, t.remote_table);
			wanted := ARRAY(SELECT w FROM migrate._plan_indexes($1, rels, moved) w)
				   || ARRAY(SELECT w FROM migrate._plan_constraints($1, rels, moved) w)
				   || ARRAY(SELECT w FROM migrate._plan_rest($1, rels, moved) w);
		END IF;
		IF $2 IS NULL THEN
			wanted := wanted || ARRAY(SELECT w FROM migrate._plan_other_grants($1) w);
		END IF;
	END IF;
	IF content <> 'definitions' THEN
		wanted := wanted || ARRAY(SELECT w FROM migrate._plan_data($1, $2, ARRAY(
			SELECT DISTINCT m.target_oid
			FROM unnest(wanted) k JOIN migrate.mapping m ON m.mapping_id = k.mapping_id
			WHERE k.kind = 'key')) w);
	END IF;

	-- rows of one name are one step
	wanted := ARRAY(
		SELECT (w.wid, w.mapping_id, w.target_oid, w.relation, w.kind, w.object, w.source_object, w.ddl, w.phase,
				w.weight, n.needs, w.skip, w.reason)::migrate.wanted_step
		FROM (SELECT w.wid, min(w.mapping_id) AS mapping_id, min(w.target_oid::int8)::oid AS target_oid,
					 min(w.relation) AS relation, min(w.kind) AS kind,
					 CASE WHEN min(w.object) = max(w.object) THEN min(w.object)
						  ELSE string_agg(w.object, ', ' ORDER BY w.object, w.ddl) END AS object,
					 min(w.source_object) AS source_object, string_agg(w.ddl, E';\n' ORDER BY w.object, w.ddl) AS ddl,
					 min(w.phase) AS phase, max(w.weight) AS weight, bool_or(w.skip) AS skip, min(w.reason) AS reason
			  FROM unnest(wanted) w
			  GROUP BY w.wid) w
		LEFT JOIN (SELECT w.wid, array_agg(DISTINCT n) AS needs FROM unnest(wanted) w CROSS JOIN unnest(w.needs) n
				   GROUP BY w.wid) n USING (wid));

	DELETE FROM migrate.post_step p
	WHERE p.job_id = $1.job_id AND ($2 IS NULL OR p.mapping_id = ANY ($2))
	  AND (p.state = 'todo' OR (p.state = 'skipped' AND starts_with(p.reason, 'not planned: ')))
	  AND NOT EXISTS (SELECT FROM unnest(wanted) w
					  WHERE w.kind = p.kind AND coalesce(w.source_object, w.object) = coalesce(p.source_object, p.object)
						AND coalesce(w.mapping_id, 0) = coalesce(p.mapping_id, 0)
						AND coalesce(w.target_oid, 0) = coalesce(p.target_oid, 0)
						AND w.skip = (p.state = 'skipped'));

	INSERT INTO migrate.post_step (job_id, mapping_id, target_oid, relation, kind, object, source_object, ddl, phase, weight,
								   state, reason)
	SELECT $1.job_id, w.mapping_id, w.target_oid, w.relation, w.kind, w.object, w.source_object, w.ddl, w.phase, w.weight,
		   CASE WHEN w.skip THEN 'skipped' ELSE 'todo' END, w.reason
	FROM unnest(wanted) w
	WHERE NOT EXISTS (SELECT FROM migrate.post_step p
					  WHERE p.job_id = $1.job_id AND w.kind = p.kind
						AND coalesce(w.source_object, w.object) = coalesce(p.source_object, p.object)
						AND coalesce(w.mapping_id, 0) = coalesce(p.mapping_id, 0)
						AND coalesce(w.target_oid, 0) = coalesce(p.target_oid, 0))
	ORDER BY w.phase, w.weight DESC, w.relation COLLATE "C", w.object COLLATE "C", w.kind;

	WITH w AS MATERIALIZED (
		SELECT w.*, p.step_id
		FROM unnest(wanted) w
		JOIN migrate.post_step p ON p.job_id = $1.job_id AND w.kind = p.kind
			AND coalesce(w.source_object, w.object) = coalesce(p.source_object, p.object)
			AND coalesce(w.mapping_id, 0) = coalesce(p.mapping_id, 0)
			AND coalesce(w.target_oid, 0) = coalesce(p.target_oid, 0)
	), needs AS MATERIALIZED (
		SELECT w.wid, array_agg(n.step_id ORDER BY n.step_id) AS after
		FROM w
		CROSS JOIN unnest(w.needs) u
		JOIN w n ON n.wid = u
		GROUP BY w.wid
	)
	UPDATE migrate.post_step p
	SET relation = w.relation, object = w.object, source_object = w.source_object, ddl = w.ddl, phase = w.phase,
		weight = w.weight, reason = w.reason, after = coalesce(n.after, '{}')
	FROM w
	LEFT JOIN needs n ON n.wid = w.wid
	WHERE p.step_id = w.step_id AND p.state = 'todo'
	  AND (p.relation, p.object, p.source_object, p.ddl, p.phase, p.weight, p.reason, p.after)
		  IS DISTINCT FROM (w.relation, w.object, w.source_object, w.ddl, w.phase, w.weight, w.reason, coalesce(n.after, '{}'));
END
$$;
COMMENT ON FUNCTION migrate._plan_steps(migrate.job, int[]) IS
'plans what is done after the copy of some mappings of a job, or (null) of all and for its schemas: adds steps, changes those that are still to do and removes those that are not wanted any more; what was begun, is done, has failed or was skipped is left as it is. Errors: 08001 source not reached';

/*
 * Whether what a step makes is there already, made by somebody else.  An index
 * or constraint counts when its statement would be the step's.
 */
CREATE FUNCTION migrate._step_is_there(step_id int) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO'
SET intervalstyle = 'postgres'
SET extra_float_digits = 3
SET timezone = 'GMT'
AS $$
#variable_conflict use_column
DECLARE
	s		migrate.post_step;
	-- of a step of several statements, what has to be the first
	first	text;
	con		pg_constraint;
	i		record;
	timing	text := '';
BEGIN
	SELECT * INTO s FROM migrate.post_step p WHERE p.step_id = $1;
	IF NOT FOUND OR s.kind NOT IN ('key', 'index', 'constraint', 'exclusion', 'attach', 'check', 'foreign key',
								   'validate', 'statistics') THEN
		RETURN false;
	END IF;
	SELECT * INTO con FROM pg_constraint c WHERE c.conrelid = s.target_oid AND c.conname = s.object;
	IF con.condeferrable THEN
		timing := ' DEFERRABLE' || CASE WHEN con.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END;
	END IF;
	SELECT h.*, c.reltablespace <> 0 AS placed INTO i
	FROM migrate._indexes_here(ARRAY[s.target_oid]) h JOIN pg_class c ON c.oid = h.oid
	WHERE h.name = s.object;

	CASE s.kind
		WHEN 'validate' THEN
			RETURN coalesce(con.convalidated, false);
		WHEN 'foreign key' THEN
			first := format('ALTER TABLE %s%s ADD CONSTRAINT %I %s',
							CASE WHEN starts_with(s.ddl, 'ALTER TABLE ONLY ') THEN 'ONLY ' ELSE '' END,
							s.relation, s.object, migrate._foreign_key_here(con.oid));
			RETURN coalesce(con.contype = 'f' AND s.ddl IN (first, first || ' NOT VALID'), false);
		WHEN 'check' THEN
			RETURN coalesce(con.contype = 'c' AND con.conislocal
							AND s.ddl = migrate._check_ddl(s.relation, s.object, pg_get_constraintdef(con.oid), con.convalidated), false);
		WHEN 'constraint' THEN
			RETURN coalesce(con.contype IN ('p', 'u')
							AND s.ddl = migrate._using_index_ddl(s.relation, s.object, con.contype::text, s.object, timing), false);
		WHEN 'statistics' THEN
			SELECT d.def INTO first
			FROM pg_statistic_ext x CROSS JOIN LATERAL pg_get_statisticsobjdef(x.oid) d(def)
			WHERE x.stxrelid = s.target_oid AND starts_with(s.ddl || ';', d.def || ';');
		ELSE
			IF i IS NULL OR NOT i.valid THEN
				RETURN false;
			ELSIF starts_with(s.ddl, 'ALTER TABLE ONLY ') THEN
				-- a constraint with an index of its own
				first := format('ALTER TABLE ONLY %s ADD CONSTRAINT %I ', s.relation, s.object);
				RETURN con.contype IN ('p', 'u', 'x') AND starts_with(s.ddl, first);
			ELSIF starts_with(s.ddl, 'ALTER INDEX ') THEN
				-- the index was there, now it is complete
				RETURN true;
			END IF;
			first := migrate._index_ddl(i.uniq, i.name, CASE WHEN i.partitioned THEN 'ONLY ' ELSE '' END || s.relation, i.body,
						coalesce((SELECT ' WHERE ' || pg_get_expr(x.indpred, x.indrelid) FROM pg_index x WHERE x.indexrelid = i.oid), ''),
						CASE WHEN i.placed THEN migrate._tablespace_clause(i.oid) ELSE '' END);
	END CASE;
	RETURN coalesce(s.ddl = first OR starts_with(s.ddl, first || E';\n'), false);
END
$$;
COMMENT ON FUNCTION migrate._step_is_there(int) IS
'whether the index, constraint or statistics that a step makes is there already, valid and defined in the same way; false for steps that can be repeated without harm';

/* ----------------------------------------------------------------
 * for the DBA
 * ----------------------------------------------------------------
 */

/* The steps of a call, locked; all have to have failed. */
CREATE FUNCTION migrate._failed_steps(j migrate.job, steps int[]) RETURNS int[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	bad		record;
BEGIN
	PERFORM FROM migrate.post_step p
	WHERE p.job_id = $1.job_id AND ($2 IS NULL OR p.step_id = ANY ($2))
	ORDER BY p.step_id FOR UPDATE;
	SELECT u.step, p.step_id, p.state, p.kind, p.object INTO bad
	FROM unnest($2) u(step)
	LEFT JOIN migrate.post_step p ON p.job_id = $1.job_id AND p.step_id = u.step
	WHERE p.state IS DISTINCT FROM 'failed'
	ORDER BY p.step_id IS NOT NULL, u.step LIMIT 1;
	IF FOUND AND bad.step_id IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42704',
			MESSAGE = format('job "%s" has no step %s', $1.job, coalesce(bad.step::text, 'null')),
			HINT = 'The steps are in the view migrate.steps.';
	ELSIF FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '55000',
			MESSAGE = format('step %s of job "%s" has not failed, it is %s', bad.step, $1.job, bad.state),
			DETAIL = format('It is the %s %s.', bad.kind, bad.object);
	END IF;
	RETURN ARRAY(SELECT p.step_id FROM migrate.post_step p
				 WHERE p.job_id = $1.job_id AND p.state = 'failed' AND ($2 IS NULL OR p.step_id = ANY ($2))
				 ORDER BY p.step_id);
END
$$;
COMMENT ON FUNCTION migrate._failed_steps(migrate.job, int[]) IS
'steps of a job that have failed (null: all such), locked. Errors: 42704 no such step, 55000 a step has not failed';

CREATE FUNCTION @extschema@.migrate_retry_steps(job text, steps int[] DEFAULT NULL) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1, lock => true);
	failed	int[];
	list	text;
BEGIN
	IF j.state = 'finished' THEN
		RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = format('job "%s" is finished', $1),
			HINT = 'Run the statements by hand, they are in the view migrate.steps.';
	END IF;
	failed := migrate._failed_steps(j, $2);
	IF j.state IN ('copied', 'streaming') AND $2 IS NULL THEN
		-- planned since by migrate_refresh_schema
		failed := failed || ARRAY(SELECT p.step_id FROM migrate.post_step p
								  WHERE p.job_id = j.job_id AND p.state = 'todo' ORDER BY p.step_id);
	END IF;
	IF failed = '{}' THEN
		RAISE NOTICE 'job "%" has no failed steps', $1;
		RETURN 0;
	END IF;
	UPDATE migrate.post_step p
	SET state = 'todo', attempt = 0, worker_pid = NULL, sqlstate = NULL, error = NULL, error_since = NULL, retry_at = NULL, started_at = NULL, finished_at = NULL
	WHERE p.step_id = ANY (failed);
	SELECT string_agg(format('%s %s', p.kind, p.object), ', ' ORDER BY p.step_id) INTO list
	FROM migrate.post_step p WHERE p.step_id = ANY (failed);
	PERFORM migrate._event(j.job_id, 'info', 'retry_steps', format('trying again: %s', list),
						   jsonb_build_object('by', session_user, 'steps', failed));
	IF j.state = 'copied' THEN
		PERFORM migrate._set_state(j.job_id, 'indexing', 'steps to try again');
		PERFORM migrate._run(j.job_id, 'start', 'started for steps to try again');
	ELSIF j.state = 'streaming' THEN
		PERFORM migrate._set_state(j.job_id, 'catching_up', 'steps to try again');
		PERFORM migrate._wake(j.job_id);
		IF j.wanted = 'pause' THEN
			RAISE NOTICE 'job "%" is paused, the steps run when it goes on', $1;
		END IF;
	ELSIF j.state = 'failed' THEN
		PERFORM @extschema@.migrate_resume($1);
	ELSIF j.wanted = 'run' THEN
		PERFORM migrate._wake(j.job_id);
	ELSE
		RAISE NOTICE 'job "%" is %, the steps run when it goes on', $1,
			CASE j.wanted WHEN 'pause' THEN 'paused' ELSE j.state END;
	END IF;
	RETURN cardinality(failed);
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_retry_steps(text, int[]) IS
'tries failed steps again (null: all of the job, and of a copied or streaming job those that were planned since) and lets the job run for them; returns how many. Errors: 42704 unknown job or step, 55000 a step has not failed, or the job is finished';

CREATE FUNCTION @extschema@.migrate_skip_steps(job text, steps int[], reason text) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1, lock => true);
	failed	int[];
	list	text;
BEGIN
	IF coalesce(btrim($3), '') = '' THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'a reason is needed',
			HINT = 'Say why the target can do without; it is kept on record and shown in migrate.steps.';
	ELSIF $2 IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'steps must not be null',
			HINT = 'Give the numbers of the steps, as shown in migrate.steps.';
	END IF;
	failed := migrate._failed_steps(j, $2);
	UPDATE migrate.post_step p SET state = 'skipped', reason = $3
	WHERE p.step_id = ANY (failed);
	SELECT string_agg(format('%s %s', p.kind, p.object), ', ' ORDER BY p.step_id) INTO list
	FROM migrate.post_step p WHERE p.step_id = ANY (failed);
	IF list IS NOT NULL THEN
		PERFORM migrate._event(j.job_id, 'warning', 'skip_steps', format('given up: %s: %s', list, $3),
							   jsonb_build_object('by', session_user, 'steps', failed));
	END IF;
	IF j.wanted = 'run' THEN
		PERFORM migrate._wake(j.job_id);
	END IF;
	RETURN cardinality(failed);
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_skip_steps(text, int[], text) IS
'gives up failed steps of a job, on record with the reason; what should come after them goes on. Of a failed job: migrate_resume then takes it further. Returns how many. Errors: 42704 unknown job or step, 55000 a step has not failed, 22023 no steps or no reason';

CREATE VIEW migrate.steps WITH (security_invoker = true) AS
	SELECT j.job, p.step_id AS step, p.relation AS target, p.kind,
		   p.object || coalesce(' (' || p.source_object || ' on the source)', '') AS object,
		   p.state, p.phase, p.ddl AS statement, p.weight, p.sqlstate, p.error, p.reason,
		   p.started_at AS started,
		   coalesce(p.finished_at, CASE WHEN p.state = 'running' THEN clock_timestamp() END) - p.started_at AS duration,
		   p.attempt, p.worker_pid,
		   b.phase AS build_phase, b.blocks_done, b.blocks_total, p.after
	FROM migrate.post_step p
	JOIN migrate.job j USING (job_id)
	LEFT JOIN pg_stat_progress_create_index b ON p.state = 'running' AND b.pid = p.worker_pid
	ORDER BY j.job, p.phase, p.weight DESC, p.step_id;
COMMENT ON VIEW migrate.steps IS
'one row a step after the copy, in the order in which they are done: what it makes and on which target, its statement, state and error (with SQLSTATE), the reason of a skipped one, bytes it has to go through (as estimated on the source), how long it took or has been running; while an index is built also phase, blocks done and in all of the build; after: steps that come before it. Try failed ones again with migrate_retry_steps, or give them up with migrate_skip_steps';
