/*
 * Jobs: made, changed and dropped; findings accepted; rights granted.
 *
 * Everything runs with the caller's rights.  The row security of the catalog
 * decides which jobs he sees; one that he may not see does not exist.
 */

CREATE FUNCTION migrate._job(job text, lock boolean DEFAULT false) RETURNS migrate.job
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	found_job	migrate.job;
BEGIN
	IF lock THEN
		-- not FOR UPDATE: a loader's rows refer to the job, and a chunk that has
		-- set some aside would hold up every call until it commits
		SELECT * INTO found_job FROM migrate.job j WHERE j.job = $1 FOR NO KEY UPDATE;
	ELSE
		SELECT * INTO found_job FROM migrate.job j WHERE j.job = $1;
	END IF;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '42704',
			MESSAGE = format('job "%s" does not exist', $1),
			HINT = 'Make it with migrate_create_job(job, server). A job of a role that you are not a member of is not shown.';
	END IF;
	RETURN found_job;
END
$$;
COMMENT ON FUNCTION migrate._job(text, boolean) IS
'the row of a job, locked if asked. Errors: 42704 for an unknown job';

/*
 * P3: what a job reads is settled when it starts.
 */
CREATE FUNCTION migrate._job_to_define(job text) RETURNS migrate.job
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	j	migrate.job := migrate._job($1, lock => true);
BEGIN
	IF j.state <> 'defined' THEN
		RAISE EXCEPTION USING ERRCODE = '55000',
			MESSAGE = format('job "%s" is %s, its tables can no longer be changed', j.job, j.state),
			HINT = 'Make another job on the same server for more tables.';
	END IF;
	RETURN j;
END
$$;
COMMENT ON FUNCTION migrate._job_to_define(text) IS
'the row of a job that has not started yet, locked. Errors: 42704 unknown job, 55000 already started';

/* By its handler, since a wrapper's name is the DBA's to choose. */
CREATE FUNCTION migrate._is_postgres_fdw(server oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT EXISTS (SELECT
				   FROM pg_foreign_server s
				   JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
				   JOIN pg_proc p ON p.oid = w.fdwhandler
				   WHERE s.oid = $1 AND p.prosrc = 'postgres_fdw_handler')
$$;
COMMENT ON FUNCTION migrate._is_postgres_fdw(oid) IS
'whether a foreign server belongs to postgres_fdw, under whatever name';

CREATE FUNCTION migrate._has_user_mapping(server oid, role oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT EXISTS (SELECT FROM pg_user_mappings m
				   WHERE m.srvid = $1 AND m.umuser IN ($2, 0))
$$;
COMMENT ON FUNCTION migrate._has_user_mapping(oid, oid) IS
'whether a role (or PUBLIC) has a user mapping for a foreign server';

CREATE FUNCTION migrate._require_user_mapping(server oid) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	server_name	text := (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1);
BEGIN
	IF server_name IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42704',
			MESSAGE = 'the server of the job does not exist any more',
			HINT = 'Drop the job with migrate_drop_job and make it anew on another server.';
	ELSIF migrate._is_postgres_fdw($1)
		AND NOT migrate._has_user_mapping($1, current_user::regrole) THEN
		RAISE EXCEPTION USING ERRCODE = '42704',
			MESSAGE = format('role "%s" has no user mapping for server "%s"', current_user, server_name),
			HINT = format('CREATE USER MAPPING FOR %s SERVER %I OPTIONS (user ''...'', password ''...'');',
						  current_user::regrole, server_name);
	END IF;
END
$$;
COMMENT ON FUNCTION migrate._require_user_mapping(oid) IS
'errors (42704) when the server is gone or the caller has no user mapping that postgres_fdw needs';

CREATE FUNCTION @extschema@.migrate_create_job(job text, server text, options jsonb DEFAULT '{}')
RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	srv		oid := (SELECT s.oid FROM pg_foreign_server s WHERE s.srvname = $2);
	new_id	int;
BEGIN
	IF coalesce($1, '') = '' THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'a job needs a name',
			HINT = 'migrate_create_job(''shop'', server => ''legacy'')';
	END IF;
	IF srv IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '42704',
			MESSAGE = format('server "%s" does not exist', $2),
			HINT = format('CREATE SERVER %I FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host ''...'', dbname ''...'');',
						  coalesce($2, 'legacy'));
	END IF;
	IF NOT has_server_privilege(srv, 'USAGE') THEN
		RAISE EXCEPTION USING ERRCODE = '42501',
			MESSAGE = format('permission denied for foreign server %I', $2),
			HINT = format('GRANT USAGE ON FOREIGN SERVER %I TO %s;', $2, current_user::regrole);
	END IF;
	PERFORM migrate._require_user_mapping(srv);
	PERFORM migrate._options_check($3, false);

	BEGIN
		INSERT INTO migrate.job (job, owner, server, options)
		VALUES ($1, current_user::regrole, srv, $3)
		RETURNING job_id INTO new_id;
	EXCEPTION WHEN unique_violation THEN
		RAISE EXCEPTION USING ERRCODE = '42710',
			MESSAGE = format('job "%s" already exists', $1),
			HINT = 'Choose another name, or take the old job away with migrate_drop_job.';
	END;
	PERFORM migrate._event(new_id, 'info', 'created', format('job made on server %I', $2), $3);
	RETURN new_id;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_create_job(text, text, jsonb) IS
'makes a job: job = its name, server = the foreign server that is the source, options = overrides as in migrate.options, e.g. {"workers": 4, "chunk_time": "3s"} (a bare number is seconds for a duration, bytes for a size). The caller owns the job; its workers run as him. Returns the job''s number, as found in the tables of schema migrate. Errors: 42704 unknown server or no user mapping, 42501 no USAGE on the server, 22023 unknown option or bad value, 42710 job exists';

CREATE FUNCTION @extschema@.migrate_alter_job(job text, options jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1, lock => true);
	fixed	text;
BEGIN
	PERFORM migrate._options_check($2, true);
	IF j.state <> 'defined' THEN
		SELECT string_agg(format('"%s"', d.name), ', ' ORDER BY d.name) INTO fixed
		FROM migrate.option_def d
		WHERE d.changeable = 'before start' AND $2 ? d.name
		  AND (CASE WHEN $2 -> d.name = 'null'
					THEN migrate._option_canonical(d.name, to_jsonb(d.default_value))
					ELSE migrate._option_canonical(d.name, $2 -> d.name) END)
			  <> migrate._option(j.job_id, d.name);
		IF fixed IS NOT NULL THEN
			RAISE EXCEPTION USING ERRCODE = '55000',
				MESSAGE = format('job "%s" is %s, option %s can be changed only before the start', $1, j.state, fixed),
				HINT = 'See column "changeable" of the view migrate.options; for another choice make another job.';
		END IF;
	END IF;
	UPDATE migrate.job SET options = jsonb_strip_nulls(options || $2)
	WHERE job_id = j.job_id;
	PERFORM migrate._event(j.job_id, 'info', 'options', 'options changed', $2);
	IF j.wanted = 'run' THEN
		PERFORM migrate._wake(j.job_id);
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_alter_job(text, jsonb) IS
'changes options of a job: options = those to change, the others stay; null goes back to the default. A running job follows at its next batch. Errors: 42704 unknown job, 22023 unknown option or bad value, 55000 an option that can be changed only before the start';

/*
 * The statement that removes a made object, without and with what depends on
 * it.
 */
CREATE FUNCTION migrate._drop_statement(kind text, object text, how text DEFAULT '') RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('DROP %s IF EXISTS %s%s', upper($1), $2, $3)
$$;
COMMENT ON FUNCTION migrate._drop_statement(text, text, text) IS
'DROP statement for an object of migrate.made_object';

/*
 * What was made for the job goes, or is named, or is handed to another job that
 * reads it.  Objects that are not temporary (target tables, types their columns
 * have) stay.  Also what it left behind may be tried again.
 */
CREATE FUNCTION migrate._remove_made(j migrate.job) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	o		migrate.made_object;
	reason	text;
BEGIN
	RETURN QUERY SELECT * FROM migrate._remove_cutover($1);
	-- slot and publication first: they hold up the source
	IF $1.capture = 'logical' THEN
		RETURN QUERY SELECT * FROM migrate._stream_leave($1.job_id);
	END IF;

	FOR o IN SELECT * FROM migrate.made_object m
			 WHERE m.job_id = $1.job_id AND m.side = 'target' AND m.temporary
			   AND m.kind NOT IN ('publication', 'replication slot')
			 ORDER BY m.kind = 'schema', m.object_id DESC
	LOOP
		-- one import serves several jobs: the next that needs it takes it over
		UPDATE migrate.made_object m SET job_id = heir.job_id
		FROM (SELECT s.job_id FROM migrate.source_table s JOIN migrate.job h USING (job_id)
			  WHERE o.kind = 'foreign table' AND s.foreign_table = to_regclass(o.object)
				AND s.job_id <> $1.job_id AND h.state <> 'finished'
			  UNION ALL
			  SELECT x.job_id FROM migrate.made_object x
			  WHERE o.kind = 'schema' AND x.kind = 'foreign table' AND x.job_id <> $1.job_id
				AND starts_with(x.object, o.object || '.')
			  ORDER BY 1 LIMIT 1) heir
		WHERE m.object_id = o.object_id;
		CONTINUE WHEN FOUND;
		reason := NULL;
		BEGIN
			EXECUTE migrate._drop_statement(o.kind, o.object);
		EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege
			OR object_in_use OR lock_not_available OR wrong_object_type THEN
			GET STACKED DIAGNOSTICS reason = PG_EXCEPTION_DETAIL;
			reason := coalesce(nullif(reason, ''), SQLERRM);
		END;
		IF reason IS NULL THEN
			DELETE FROM migrate.made_object m WHERE m.object_id = o.object_id;
		ELSE
			RAISE NOTICE USING
				MESSAGE = format('%s %s is kept', o.kind, o.object),
				DETAIL = reason;
			RETURN NEXT migrate._drop_statement(o.kind, o.object,
												CASE o.kind WHEN 'schema' THEN '' ELSE ' CASCADE' END) || ';';
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._remove_made(migrate.job) IS
'removes slot, publication, foreign tables and schemas that were made for a job; the statements that would remove what could not be removed, with the reason as a NOTICE';

CREATE FUNCTION @extschema@.migrate_drop_job(job text) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1, lock => true);
BEGIN
	-- a worker that still lives although nothing is wanted, or in a state
	-- without work, is on its way out, also when it finds no job any more
	IF j.wanted <> 'stop' AND j.state NOT IN ('copied', 'finished', 'failed', 'cancelled') THEN
		RAISE EXCEPTION USING ERRCODE = '55006',
			MESSAGE = format('job "%s" is running', $1),
			HINT = format('Stop it first: SELECT migrate_cancel(%L);', $1);
	END IF;
	RETURN QUERY SELECT * FROM migrate._remove_made(j);
	DELETE FROM migrate.mapping m WHERE m.job_id = j.job_id;
	DELETE FROM migrate.job d WHERE d.job_id = j.job_id;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_drop_job(text) IS
'removes a job and what was made for it: foreign tables and schemas here, slot and publication on the source; target tables and their types stay. Returns, one row each, the statements that would remove what could not be removed (with the reason as a NOTICE), normally none. Errors: 42704 unknown job, 55006 the job is running';

CREATE FUNCTION @extschema@.migrate_accept(job text, check_name text, object text, reason text)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j	migrate.job := migrate._job($1);
BEGIN
	-- "cutover" and "rollback": what stands in their way, see migrate.readiness
	IF NOT coalesce($2 = ANY (migrate._check_names() || '{cutover,rollback}'), false) THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = format('there is no check "%s"', $2),
			HINT = format('The checks are: %s.', array_to_string(migrate._check_names(), ', '));
	END IF;
	IF coalesce(btrim($4), '') = '' THEN
		RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'a reason is needed',
			HINT = 'Say why the finding is acceptable; it is kept on record and shown by migrate_preflight.';
	END IF;
	INSERT INTO migrate.acceptance AS a (job_id, check_name, object, reason)
	VALUES (j.job_id, $2, coalesce($3, ''), $4)
	ON CONFLICT (job_id, check_name, object) DO UPDATE
	SET reason = excluded.reason, accepted_by = excluded.accepted_by, accepted_at = now();
	PERFORM migrate._event(j.job_id, 'info', 'accepted',
						   format('%s of %s accepted: %s', $2, coalesce($3, ''), $4));
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_accept(text, text, text, text) IS
'takes note of a finding of migrate_preflight: check_name and object as it shows them, reason = why it is acceptable. The finding is then shown as ok with the reason. Errors: 42704 unknown job, 22023 unknown check or no reason';
