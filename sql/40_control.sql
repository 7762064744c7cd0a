/*
 * What a DBA calls to drive a job.  Each writes the wish (job.wanted) and
 * wakes the job worker at commit, or starts one; each may be repeated.
 * They lock the job row FOR NO KEY UPDATE: a worker that is about to leave
 * locks it too and looks again, so no wish falls between two workers.
 */

-- Raise 55000 with all that preflight found wrong.
CREATE FUNCTION migrate._require_preflight(job text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n		bigint;
	found	text;
	hints	text;
BEGIN
	SELECT count(*),
		   string_agg(format('%s on %s: %s', p.check_name, p.object, p.detail), E'\n'),
		   string_agg(DISTINCT p.hint, E'\n')
	INTO n, found, hints
	FROM @extschema@.migrate_preflight(job) p WHERE p.status = 'fail';
	IF n > 0 THEN
		RAISE EXCEPTION 'preflight of job "%" found % that must be solved first',
			job, CASE n WHEN 1 THEN 'a problem' ELSE n || ' problems' END
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  DETAIL = found,
				  HINT = coalesce(hints, 'See migrate_preflight.');
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._require_preflight(text) IS 'error 55000 that lists the failed checks of migrate_preflight';

/*
 * How the job follows its source, decided once.  A capture that was asked for
 * and cannot be is a failure of preflight; auto falls back, and says so.
 */
CREATE FUNCTION migrate._resolve_capture(j migrate.job) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	wish	text := migrate._option(j.job_id, 'capture');
	kind	text := 'none';
	obstacle text;
BEGIN
	IF wish <> 'none' AND migrate._option(j.job_id, 'content') <> 'definitions' THEN
		obstacle := migrate._capture_obstacle(j.job_id);
		IF obstacle IS NULL OR wish = 'logical' THEN
			kind := 'logical';
		ELSE
			RAISE WARNING 'job "%" copies once, changes made meanwhile and later are not followed', j.job
				USING DETAIL = obstacle,
					  HINT = 'See check "capture" of migrate_preflight. With option capture none this is not tried.';
			PERFORM migrate._event(j.job_id, 'warning', 'capture',
				'changes on the source are not followed: ' || obstacle);
		END IF;
	END IF;
	UPDATE migrate.job u SET capture = kind WHERE u.job_id = j.job_id;
END
$$;
COMMENT ON FUNCTION migrate._resolve_capture(migrate.job) IS
	'decide migrate.job.capture by the option and what the source allows; a warning that names the obstacle when auto falls back to none';

-- Where a job goes on that is failed or cancelled.
CREATE FUNCTION migrate._state_to_resume(j migrate.job) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE
		WHEN $1.resume_state IN ('copied', 'copying') THEN 'copying'
		WHEN $1.resume_state = 'streaming'
			AND EXISTS (SELECT FROM migrate.post_step p
						WHERE p.job_id = $1.job_id AND p.state IN ('todo', 'running', 'failed'))
			THEN 'catching_up'
		WHEN $1.resume_state IN ('indexing', 'catching_up', 'streaming') THEN $1.resume_state
		ELSE 'preparing' END
$$;
COMMENT ON FUNCTION migrate._state_to_resume(migrate.job) IS 'the state in which a failed or cancelled job goes on';

-- The wish to run, written down, and a worker for it.
CREATE FUNCTION migrate._run(job_id int, kind text, message text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE migrate.job j SET wanted = 'run', pause_reason = NULL
	WHERE j.job_id = _run.job_id;
	PERFORM migrate._event(_run.job_id, 'info', _run.kind, _run.message,
		jsonb_build_object('by', session_user));
	PERFORM migrate._launch(_run.job_id);
END
$$;
COMMENT ON FUNCTION migrate._run(int, text, text) IS 'record that a job should run, and start or wake its worker';

CREATE FUNCTION @extschema@.migrate_start(job text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r		migrate.job := migrate._job(job, lock => true);
BEGIN
	IF r.state IN ('copied', 'finished') THEN
		RAISE NOTICE 'job "%" is already %', job, r.state;
		RETURN;
	ELSIF r.state = 'failed' THEN
		RAISE EXCEPTION 'job "%" has failed', job
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  DETAIL = r.last_error,
				  HINT = 'Use migrate_resume to try again.';
	ELSIF r.wanted = 'cancel' THEN
		RAISE EXCEPTION 'job "%" is being cancelled', job
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'Wait with migrate_wait(job, ''cancelled''), then start it again.';
	ELSIF r.wanted = 'run' THEN
		RAISE NOTICE 'job "%" is already running', job;
		PERFORM migrate._launch(r.job_id);
		RETURN;
	ELSIF r.wanted = 'pause' THEN
		PERFORM @extschema@.migrate_resume(job);
		RETURN;
	END IF;

	IF NOT EXISTS (SELECT FROM migrate.mapping m WHERE m.job_id = r.job_id) THEN
		RAISE EXCEPTION 'job "%" has no tables', job
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'Add some with migrate_add_table or migrate_add_schema.';
	END IF;
	PERFORM migrate._require_preflight(job);
	IF r.state = 'defined' THEN
		-- options may have changed, and the source, since it was planned
		PERFORM migrate._plan_steps(r);
		PERFORM migrate._resolve_capture(r);
	END IF;
	IF r.state = 'cancelled' THEN
		PERFORM migrate._set_state(r.job_id, migrate._state_to_resume(r), 'started again');
	END IF;
	PERFORM migrate._run(r.job_id, 'start', 'started');
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_start(text) IS
	'start a job (a cancelled one goes on from its checkpoint); error 55000 when preflight fails; no-op with a notice when it runs';

CREATE FUNCTION @extschema@.migrate_pause(job text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r		migrate.job := migrate._job(job, lock => true);
BEGIN
	IF r.wanted = 'pause' THEN
		-- a limit's pause is now the DBA's
		UPDATE migrate.job j SET pause_reason = NULL WHERE j.job_id = r.job_id;
		RAISE NOTICE 'job "%" is already paused', job;
		RETURN;
	ELSIF r.wanted <> 'run' THEN
		RAISE EXCEPTION 'job "%" does not run, it is %', job,
			CASE r.wanted WHEN 'cancel' THEN 'being cancelled' ELSE r.state END
			USING ERRCODE = 'object_not_in_prerequisite_state';
	END IF;
	UPDATE migrate.job j SET wanted = 'pause', pause_reason = NULL
	WHERE j.job_id = r.job_id;
	PERFORM migrate._event(r.job_id, 'info', 'pause', 'pause asked for',
		jsonb_build_object('by', session_user));
	PERFORM migrate._wake(r.job_id);
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_pause(text) IS
	'pause a running job: loaders finish the chunk at hand, changes the batch at hand, then its workers leave; with live capture, changes of the source are still taken in; migrate_wait(job, ''paused'') waits for that';

CREATE FUNCTION @extschema@.migrate_resume(job text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r		migrate.job := migrate._job(job, lock => true);
BEGIN
	IF r.state IN ('copied', 'finished') THEN
		RAISE NOTICE 'job "%" is already %', job, r.state;
		RETURN;
	ELSIF r.state = 'cancelled' OR r.wanted = 'cancel' THEN
		RAISE EXCEPTION 'job "%" is cancelled', job
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'Use migrate_start to go on from its checkpoint.';
	ELSIF r.state = 'failed' THEN
		PERFORM migrate._set_state(r.job_id, migrate._state_to_resume(r), 'resumed');
		UPDATE migrate.job j SET last_error = NULL, last_sqlstate = NULL, last_error_at = NULL
		WHERE j.job_id = r.job_id;
		UPDATE migrate.post_step p SET state = 'todo', error_since = NULL, retry_at = NULL
		WHERE p.job_id = r.job_id AND (p.state = 'failed' OR p.retry_at IS NOT NULL);
	ELSIF r.wanted = 'stop' THEN
		RAISE EXCEPTION 'job "%" has not been started', job
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'Use migrate_start.';
	ELSIF r.wanted = 'run' THEN
		-- it should run; see that it does
		PERFORM migrate._launch(r.job_id);
		RETURN;
	END IF;
	PERFORM migrate._run(r.job_id, 'resume', 'resumed');
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_resume(text) IS
	'let a paused or failed job go on where it was; of a job that should run: make sure that a worker lives';

CREATE FUNCTION @extschema@.migrate_cancel(job text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r		migrate.job := migrate._job(job, lock => true);
BEGIN
	IF r.state = 'cancelled' THEN
		RAISE NOTICE 'job "%" is already cancelled', job;
		RETURN;
	ELSIF r.state = 'finished' THEN
		RAISE EXCEPTION 'job "%" is finished', job
			USING ERRCODE = 'object_not_in_prerequisite_state';
	ELSIF r.state IN ('cutting_over', 'rolling_back', 'cut_over') THEN
		RAISE EXCEPTION 'job "%" is %, and cannot be cancelled', job, r.state
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'Between the two sides one of them must be opened: use migrate_rollback or migrate_finish.';
	END IF;
	PERFORM migrate._cancel_validations(r.job_id);
	IF migrate._wake(r.job_id, cancel => true) THEN
		IF r.wanted <> 'cancel' THEN
			UPDATE migrate.job j SET wanted = 'cancel', pause_reason = NULL
			WHERE j.job_id = r.job_id;
			PERFORM migrate._event(r.job_id, 'info', 'cancel', 'cancel asked for',
				jsonb_build_object('by', session_user));
		END IF;
	ELSE
		-- no worker lives (a new one would look at the row that we hold)
		UPDATE migrate.chunk c SET state = 'todo', worker_pid = NULL
		WHERE c.job_id = r.job_id AND c.state = 'running';
		UPDATE migrate.post_step p SET state = 'todo', worker_pid = NULL
		WHERE p.job_id = r.job_id AND p.state = 'running';
		PERFORM migrate._set_state(r.job_id, 'cancelled', 'asked for by ' || session_user);
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_cancel(text) IS
	'stop a job and its validations at once; what is copied stays, migrate_start goes on from there, migrate_drop_job removes what was made for it';

CREATE FUNCTION @extschema@.migrate_wait(job text, state text, timeout interval DEFAULT NULL)
RETURNS text LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT migrate._wait(job, state, timeout) $$;
COMMENT ON FUNCTION @extschema@.migrate_wait(text, text, interval) IS
	'block until the job is in the state or beyond (or ''paused''), and return its state; errors: 55P03 after the timeout (null: none), 55000 when it failed, was cancelled, was paused by a limit or has no worker, 22023 unknown state';

/*
 * From the fence to the end of a rollback the target leads, and for good once
 * the job is finished: rows that are read from the source then would replace
 * newer ones here.  For whatever writes here by itself; what: what is refused.
 */
CREATE FUNCTION migrate._check_source_leads(job_id int, what text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	r		record;
BEGIN
	SELECT j.job, j.state INTO r FROM migrate.job j
	WHERE j.job_id = $1 AND j.state IN ('cutting_over', 'cut_over', 'rolling_back', 'finished');
	IF FOUND THEN
		RAISE EXCEPTION 'cannot % job "%" while it is %', what, r.job, r.state
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  DETAIL = 'The source does not lead any more: its rows would replace newer ones here.',
				  HINT = 'Correct the rows here' || CASE r.state WHEN 'finished' THEN '.' ELSE ', or go back with migrate_rollback first.' END;
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._check_source_leads(int, text) IS
	'error 55000 when a job is cut over, being cut over or rolled back, or finished: its source''s rows may be older than the target''s';

CREATE FUNCTION @extschema@.migrate_recopy(job text, target text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r		migrate.job := migrate._job(job, lock => true);
	sources	int[];
	others	text;
BEGIN
	SELECT array_agg(DISTINCT m.source_id) INTO sources FROM migrate.mapping m
	WHERE m.job_id = r.job_id
	  AND (m.target = migrate_recopy.target
		   OR m.target_oid = (SELECT c.oid
							  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
							  WHERE parse_ident(migrate_recopy.target, false)
									= ARRAY[n.nspname, c.relname]::text[]));
	IF sources IS NULL THEN
		RAISE EXCEPTION 'job "%" has no target "%"', job, target
			USING ERRCODE = 'undefined_object',
				  HINT = format('Its targets are: %s.',
					coalesce((SELECT string_agg(DISTINCT m.target, ', ') FROM migrate.mapping m
							  WHERE m.job_id = r.job_id), 'none'));
	ELSIF r.state = 'finished' THEN
		RAISE EXCEPTION 'job "%" is finished', job
			USING ERRCODE = 'object_not_in_prerequisite_state';
	ELSIF r.state = 'indexing' THEN
		RAISE EXCEPTION 'job "%" is building keys', job
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'Wait with migrate_wait(job, ''copied''), then try again.';
	END IF;

	PERFORM migrate._check_source_leads(r.job_id, 'recopy tables of');

	-- the worker empties the targets and plans anew; not planned yet: nothing to do
	UPDATE migrate.source_table s SET state = 'replan'
	WHERE s.source_id = ANY (sources) AND s.state <> 'pending';
	SELECT string_agg(DISTINCT m.target, ', ') INTO others FROM migrate.mapping m
	WHERE m.source_id = ANY (sources);
	PERFORM migrate._event(r.job_id, 'info', 'recopy', format('copying %s again', others),
		jsonb_build_object('by', session_user));

	-- a new position from which on the target is consistent, once it is copied
	UPDATE migrate.job_stream s SET consistent_lsn = NULL, rechecked = false
	WHERE s.job_id = r.job_id;

	IF r.state = 'copied' THEN
		PERFORM migrate._set_state(r.job_id, 'copying', 'recopy of ' || others);
		PERFORM migrate._run(r.job_id, 'start', 'started for a recopy');
	ELSIF r.state IN ('catching_up', 'streaming') THEN
		PERFORM migrate._set_state(r.job_id, 'copying', 'recopy of ' || others);
		PERFORM migrate._wake(r.job_id);
		IF r.wanted = 'pause' THEN
			RAISE NOTICE 'job "%" is paused, the copy begins when it goes on', job;
		END IF;
	ELSIF r.state IN ('failed', 'cancelled') THEN
		UPDATE migrate.job j SET resume_state = 'copying'
		WHERE j.job_id = r.job_id
		  AND j.resume_state IN ('indexing', 'copied', 'catching_up', 'streaming');
		RAISE NOTICE 'job "%" is %, the copy begins when it goes on', job, r.state;
	ELSE
		PERFORM migrate._wake(r.job_id);
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_recopy(text, text) IS
	'copy the source table of a target again from the start: our rows in all targets of that source table are removed first. A copied job goes back to copying; so does one that streams, which applies no changes meanwhile, and catches up afterwards';
