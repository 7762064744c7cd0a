/*
 * The life of a job.  migrate.transition is the one place that says which
 * changes of state are legal, migrate._set_state() the one writer of
 * migrate.job.state, and a trigger refuses everything else.
 *
 *	 defined -> preparing -> copying -> indexing -> copied -> finished
 *	 with live capture:				   indexing -> catching_up -> streaming -> finished
 *	 failed and cancelled beside the way, from any state before finished
 *
 * Pausing is a wish (migrate.job.wanted), not a state: a paused job knows
 * where it was.
 */
CREATE TABLE migrate.job_state (
	state		text PRIMARY KEY,
	-- place on the way, for "that state or beyond"; null: beside the way
	ord			int UNIQUE,
	-- a job worker has something to do in this state
	works		boolean NOT NULL,
	meaning		text NOT NULL
);
COMMENT ON TABLE migrate.job_state IS 'the states of a job, in their order';
INSERT INTO migrate.job_state VALUES
	('defined',	  1, true,	'can be changed; waits for migrate_start'),
	('preparing', 2, true,	'source tables are looked at and the copy is planned'),
	('copying',	  3, true,	'loaders copy chunks'),
	('indexing',  4, true,	'keys, indexes and constraints are built on the targets that the job made'),
	('copied',	  5, false, 'every row is copied or in a dead letter'),
	('catching_up', 6, true, 'changes made since the copy began are applied, then the other indexes and constraints are built'),
	('streaming', 7, true, 'every change of the source is applied as it comes'),
	('cutting_over', 8, true, 'the cutover, or a rehearsal of it, takes its steps'),
	('rolling_back', 9, true,	'the rollback takes its steps'),
	('cut_over',  10, true,	'the target is open, the source is fenced'),
	('finished',  11, false, 'the job is over and its temporary objects are removed'),
	('failed',	NULL, false, 'stopped by an error, see last_error; migrate_resume tries again'),
	('cancelled', NULL, false, 'stopped for good; migrate_start goes on from the checkpoint');

CREATE TABLE migrate.transition (
	from_state	text NOT NULL REFERENCES migrate.job_state,
	to_state	text NOT NULL REFERENCES migrate.job_state,
	cause		text NOT NULL,
	PRIMARY KEY (from_state, to_state)
);
COMMENT ON TABLE migrate.transition IS 'the legal changes of a job''s state; everything else is refused';
INSERT INTO migrate.transition VALUES
	('defined',	  'preparing', 'migrate_start'),
	('preparing', 'copying',   'every source table is planned'),
	('copying',	  'indexing',  'every chunk is done'),
	('indexing',  'copied',	   'every step is done, failed or skipped'),
	('indexing',  'catching_up', 'live capture, and the keys are built'),
	('catching_up', 'streaming', 'the consistent position is passed and every step is over'),
	('catching_up', 'copying', 'migrate_recopy'),
	('streaming', 'copying',   'migrate_recopy'),
	('streaming', 'catching_up', 'migrate_resync, migrate_retry_steps'),
	('streaming', 'finished',  'migrate_finish'),
	('streaming', 'cutting_over', 'migrate_cutover'),
	('cutting_over', 'streaming', 'the cutover was undone, or was a rehearsal'),
	('cutting_over', 'cut_over', 'the fence is committed and the target open'),
	('cut_over',  'finished',  'migrate_finish'),
	('cut_over',  'rolling_back', 'migrate_rollback'),
	('rolling_back', 'cut_over', 'the rollback was undone'),
	('rolling_back', 'streaming', 'the target is closed and the source open'),
	('failed',	  'catching_up', 'migrate_resume, migrate_resync'),
	('failed',	  'streaming', 'migrate_resume'),
	('cancelled', 'catching_up', 'migrate_start'),
	('cancelled', 'streaming', 'migrate_start'),
	('copied',	  'copying',   'migrate_recopy'),
	('copied',	  'indexing',  'migrate_retry_steps'),
	('copied',	  'finished',  'migrate_finish'),
	('failed',	  'preparing', 'migrate_resume'),
	('failed',	  'copying',   'migrate_resume'),
	('failed',	  'indexing',  'migrate_resume'),
	('cancelled', 'preparing', 'migrate_start'),
	('cancelled', 'copying',   'migrate_start'),
	('cancelled', 'indexing',  'migrate_start'),
	('failed',	  'cancelled', 'migrate_cancel');
INSERT INTO migrate.transition
SELECT s.state, t.state, t.cause
FROM migrate.job_state s,
	 (VALUES ('failed', 'an error that lasts'),
			 ('cancelled', 'migrate_cancel')) t (state, cause)
WHERE s.ord IS NOT NULL AND s.state <> 'finished';

CREATE FUNCTION migrate._check_transition() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF TG_OP = 'INSERT' THEN
		IF NEW.state <> 'defined' THEN
			RAISE EXCEPTION 'job "%" cannot start its life in state "%"', NEW.job, NEW.state
				USING ERRCODE = 'object_not_in_prerequisite_state';
		END IF;
	ELSIF NEW.state <> OLD.state
		AND NOT EXISTS (SELECT FROM migrate.transition t
						WHERE t.from_state = OLD.state AND t.to_state = NEW.state)
	THEN
		RAISE EXCEPTION 'job "%" cannot go from state "%" to "%"', NEW.job, OLD.state, NEW.state
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'The legal changes are in migrate.transition.';
	END IF;
	RETURN NEW;
END
$$;
COMMENT ON FUNCTION migrate._check_transition() IS 'refuses a change of a job''s state that is not in migrate.transition';
CREATE TRIGGER check_transition BEFORE INSERT OR UPDATE OF state ON migrate.job
	FOR EACH ROW EXECUTE FUNCTION migrate._check_transition();

/*
 * Insert an event and tell the listeners.  A NOTIFY payload must stay below
 * 8000 bytes (manual, NOTIFY), and a character can take six of them in JSON:
 * name and message are cut, the event row has them in full.
 */
CREATE FUNCTION migrate._event(job_id int, level text, kind text, message text,
							   detail jsonb DEFAULT NULL)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	ev		migrate.event;
BEGIN
	INSERT INTO migrate.event AS e (job_id, level, kind, message, detail)
	VALUES (_event.job_id, _event.level, _event.kind, _event.message, _event.detail)
	RETURNING e.* INTO ev;
	PERFORM pg_notify('migrate', json_build_object(
		'job', left(j.job, 200), 'state', j.state, 'level', ev.level,
		'kind', ev.kind, 'message', left(ev.message, 900), 'at', ev.at)::text)
	FROM migrate.job j WHERE j.job_id = _event.job_id;
END
$$;
COMMENT ON FUNCTION migrate._event(int, text, text, text, jsonb) IS
	'record an event of a job and NOTIFY migrate with the same as JSON (job, state, level, kind, message, at)';

/*
 * The only writer of job.state.  Beside the way, resume_state remembers where
 * the job was; in a state without work the wish to run is over.
 */
CREATE FUNCTION migrate._set_state(job_id int, state text, reason text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	was		text;
	s		migrate.job_state;
BEGIN
	SELECT j.state INTO was FROM migrate.job j
	WHERE j.job_id = _set_state.job_id FOR NO KEY UPDATE;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'job % does not exist', _set_state.job_id
			USING ERRCODE = 'undefined_object';
	END IF;
	SELECT x.* INTO s FROM migrate.job_state x WHERE x.state = _set_state.state;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'unknown job state "%"', _set_state.state
			USING ERRCODE = 'invalid_parameter_value';
	END IF;
	IF was = s.state THEN
		RETURN;
	END IF;
	UPDATE migrate.job j SET
		state = s.state,
		resume_state = CASE
			WHEN s.ord IS NOT NULL THEN NULL
			WHEN was IN ('failed', 'cancelled') THEN j.resume_state
			ELSE was END,
		wanted = CASE WHEN s.works THEN j.wanted ELSE 'stop' END,
		pause_reason = CASE WHEN s.works THEN j.pause_reason END,
		started_at = CASE WHEN s.state = 'preparing'
			THEN coalesce(j.started_at, clock_timestamp()) ELSE j.started_at END,
		ended_at = CASE WHEN NOT s.works THEN clock_timestamp() END
	WHERE j.job_id = _set_state.job_id;
	PERFORM migrate._event(_set_state.job_id,
		CASE s.state WHEN 'failed' THEN 'error' ELSE 'info' END, 'state',
		format('%s -> %s', was, s.state) || coalesce(': ' || _set_state.reason, ''),
		jsonb_build_object('from', was, 'to', s.state, 'reason', _set_state.reason));
END
$$;
COMMENT ON FUNCTION migrate._set_state(int, text, text) IS
	'bring a job into a state, with the reason; the only writer of migrate.job.state';
