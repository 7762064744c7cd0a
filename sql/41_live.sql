/*
 * Live jobs: what ends them, and what begins them anew.
 */

/* ----------------------------------------------------------------
 * migrate_finish
 * ----------------------------------------------------------------
 */
CREATE FUNCTION migrate._finish_begin(job text) RETURNS int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r		migrate.job := migrate._job(job, lock => true);
BEGIN
	IF r.state NOT IN ('copied', 'streaming', 'cut_over', 'finished') THEN
		RAISE EXCEPTION 'job "%" is %, and cannot be finished', job, r.state
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'A job is finished when it is copied, streaming or cut over; to give it up, use migrate_cancel and migrate_drop_job.';
	END IF;
	IF r.state <> 'finished' THEN
		PERFORM migrate._set_state(r.job_id, 'finished', 'asked for by ' || session_user);
	END IF;
	PERFORM migrate._wake(r.job_id);
	RETURN r.job_id;
END
$$;
COMMENT ON FUNCTION migrate._finish_begin(text) IS
	'bring a job into the state finished. Errors: 42704 unknown job, 55000 it is neither copied nor streaming';

CREATE FUNCTION migrate._await_end(job_id int) RETURNS void
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_await_end';
COMMENT ON FUNCTION migrate._await_end(int) IS
	'wait until the job worker, the apply worker and the reverse worker of a job have ended';

CREATE FUNCTION migrate._finish_clean(job text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r		migrate.job := migrate._job(job, lock => true);
	left_over text[];
BEGIN
	IF r.state <> 'finished' THEN
		RETURN;
	END IF;
	left_over := ARRAY(SELECT s FROM migrate._remove_made(r) s);
	IF cardinality(left_over) > 0 THEN
		PERFORM migrate._event(r.job_id, 'warning', 'finish',
			'could not be removed: ' || array_to_string(left_over, ' '),
			jsonb_build_object('statements', left_over));
		RAISE WARNING 'job "%" is finished, but not all that was made for it could be removed', job
			USING DETAIL = array_to_string(left_over, E'\n'),
				  HINT = 'Run these statements, or CALL migrate_finish again when the cause is removed.';
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._finish_clean(text) IS
	'remove what was made for a finished job; a warning lists the statements for what could not be removed';

/*
 * The state is committed first, so that the workers see it and leave; only
 * then can slot and foreign tables go.  A procedure that commits can have no
 * settings of its own, so it calls functions that have, and nothing else.
 */
CREATE PROCEDURE @extschema@.migrate_finish(job text)
LANGUAGE plpgsql AS $$
DECLARE
	job_id	pg_catalog.int4;
BEGIN
	job_id := migrate._finish_begin(job);
	COMMIT;
	PERFORM migrate._await_end(job_id);
	PERFORM migrate._finish_clean(job);
END
$$;
COMMENT ON PROCEDURE @extschema@.migrate_finish(text) IS
	'end a job that is copied or streaming for good: its workers leave, and what was made for it is removed (foreign tables and schemas here, slot and publication on the source); a warning lists the statements for what could not be removed. May be repeated. Not in a transaction block. Errors: 42704 unknown job, 55000 it is neither copied nor streaming';

/* ----------------------------------------------------------------
 * migrate_resync
 * ----------------------------------------------------------------
 */

/*
 * slot: the old slot is removed and a new one made, the job joins the stream
 * anew; tables: what is different is brought back in line, table by table.
 */
CREATE TABLE migrate.resync (
	job_id		int PRIMARY KEY REFERENCES migrate.job ON DELETE CASCADE,
	phase		text NOT NULL DEFAULT 'slot' CHECK (phase IN ('slot', 'tables', 'done')),
	-- the stream has been set back for it
	renewed		boolean NOT NULL DEFAULT false,
	started_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	ended_at	timestamptz
);
COMMENT ON TABLE migrate.resync IS 'one row a job on which migrate_resync was called: how far the last call has come';

CREATE TABLE migrate.resync_table (
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	mapping_id	int PRIMARY KEY REFERENCES migrate.mapping ON DELETE CASCADE,
	-- compare: keys tell what differs; copy: rows have no key, the source table is copied again
	method		text NOT NULL CHECK (method IN ('compare', 'copy')),
	state		text NOT NULL DEFAULT 'todo' CHECK (state IN ('todo', 'done')),
	source_rows bigint,
	target_rows bigint,
	keys_different bigint,
	rows_written bigint,
	rows_deleted bigint,
	dead_letters bigint,
	finished_at timestamptz
);
CREATE INDEX resync_table_job ON migrate.resync_table (job_id);
COMMENT ON TABLE migrate.resync_table IS 'one row a mapping that migrate_resync brings back in line, with what it found';

DO $$
DECLARE
	t text;
BEGIN
	FOREACH t IN ARRAY '{resync,resync_table}'::text[]
	LOOP
		EXECUTE format('ALTER TABLE migrate.%I ENABLE ROW LEVEL SECURITY', t);
		EXECUTE format('CREATE POLICY own ON migrate.%I USING '
					   '(job_id IN (SELECT j.job_id FROM migrate.job j))', t);
	END LOOP;
END
$$;

CREATE FUNCTION @extschema@.migrate_resync(job text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r		migrate.job := migrate._job(job, lock => true);
	at_state text := coalesce(r.resume_state, r.state);
BEGIN
	IF r.capture IS DISTINCT FROM 'logical' THEN
		RAISE EXCEPTION 'job "%" does not follow its source', job
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'Without live capture, migrate_validate finds what differs, and migrate_recopy copies a table again.';
	ELSIF r.state IN ('defined', 'cancelled', 'finished') OR r.wanted = 'cancel' THEN
		RAISE EXCEPTION 'job "%" is %', job,
			CASE r.wanted WHEN 'cancel' THEN 'being cancelled' ELSE r.state END
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = CASE WHEN r.state = 'cancelled' OR r.wanted = 'cancel' THEN 'Use migrate_start, then migrate_resync.'
					ELSE 'A job can be resynced from its start until it is finished.' END;
	END IF;

	PERFORM migrate._check_source_leads(r.job_id, 'resync');

	INSERT INTO migrate.resync (job_id) VALUES (r.job_id)
	ON CONFLICT (job_id) DO UPDATE SET phase = 'slot', renewed = false,
		started_at = clock_timestamp(), ended_at = NULL;
	DELETE FROM migrate.resync_table t WHERE t.job_id = r.job_id;
	UPDATE migrate.job_stream s SET consistent_lsn = NULL, rechecked = false
	WHERE s.job_id = r.job_id;
	IF r.state = 'failed' THEN
		PERFORM migrate._set_state(r.job_id,
			CASE WHEN at_state IN ('preparing', 'copying', 'indexing') THEN at_state
				 ELSE 'catching_up' END, 'resync');
		UPDATE migrate.job j SET last_error = NULL, last_sqlstate = NULL, last_error_at = NULL
		WHERE j.job_id = r.job_id;
	ELSIF r.state = 'streaming' THEN
		PERFORM migrate._set_state(r.job_id, 'catching_up', 'resync');
	END IF;
	PERFORM migrate._run(r.job_id, 'resync', 'resync asked for');
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_resync(text) IS
	'begin the stream of a job anew, after its slot was lost, the source was failed over or restored, or the target was set back: a new slot, then rows that differ are written and rows that the source does not have are deleted, table by table, without copying again; then it catches up and streams. Other jobs of the same stream fail and need the same. May be repeated. Errors: 42704 unknown job, 55000 it does not follow its source, or is cancelled, finished, cut over, being cut over or rolled back';
