/*
 * What to do with dead letters, and how to see them coming.
 */
CREATE FUNCTION @extschema@.migrate_replay(job text, target text DEFAULT NULL,
	ids bigint[] DEFAULT NULL, OUT replayed bigint, OUT superseded bigint,
	OUT failed bigint)
RETURNS SETOF record
LANGUAGE C SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_replay';
COMMENT ON FUNCTION @extschema@.migrate_replay(text, text, bigint[]) IS
	'load open dead letters (all, of one target, or by id) again: the row as it is on the source now, through the mapping as it is now; superseded: the source has no such row any more; failed: stays open with the newest error';

CREATE FUNCTION @extschema@.migrate_discard(job text, ids bigint[], reason text)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	the_job int;
	unknown text;
	n		bigint;
BEGIN
	SELECT j.job_id INTO the_job FROM migrate.job j WHERE j.job = migrate_discard.job;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'job "%" does not exist', job
			USING ERRCODE = 'undefined_object',
				  HINT = 'Create it with migrate_create_job, or see the table migrate.job for the jobs that you may see.';
	END IF;
	IF coalesce(btrim(reason), '') = '' THEN
		RAISE EXCEPTION 'a reason is required to discard dead letters'
			USING ERRCODE = 'invalid_parameter_value',
				  HINT = 'It stays on record with each letter.';
	END IF;
	IF ids IS NULL THEN
		RAISE EXCEPTION 'ids must not be null'
			USING ERRCODE = 'null_value_not_allowed',
				  HINT = 'Name the letters; see migrate.dead_letters.';
	END IF;
	SELECT string_agg(i::text, ', ' ORDER BY i) INTO unknown
	FROM unnest(ids) AS i
	WHERE NOT EXISTS (SELECT FROM migrate.dead_letter d
					  WHERE d.id = i AND d.job_id = the_job);
	IF unknown IS NOT NULL THEN
		RAISE EXCEPTION 'job "%" has no dead letters with these ids: %', job, unknown
			USING ERRCODE = 'undefined_object', HINT = 'See migrate.dead_letters.';
	END IF;

	UPDATE migrate.dead_letter d
	SET state = 'discarded', reason = migrate_discard.reason, updated_at = now()
	WHERE d.job_id = the_job AND d.id = ANY (ids) AND d.state = 'open';
	GET DIAGNOSTICS n = ROW_COUNT;
	IF n > 0 THEN
		PERFORM migrate._event(the_job, 'warning', 'discard',
			format('%s dead letters discarded: %s', n, reason),
			jsonb_build_object('by', session_user, 'ids', ids, 'reason', reason));
	END IF;
	RETURN n;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_discard(text, bigint[], text) IS
	'give open dead letters up, with the reason on record; returns how many were open; error 22023 without a reason, 42704 for ids that are no letters of the job';

CREATE FUNCTION @extschema@.migrate_dry_run(job text, target text,
	sample_rows int DEFAULT 10, OUT row_no int, OUT source_row jsonb,
	OUT target_row jsonb, OUT sqlstate text, OUT error text)
RETURNS SETOF record
LANGUAGE C SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_dry_run';
COMMENT ON FUNCTION @extschema@.migrate_dry_run(text, text, int) IS
	'the mapping and the writer on some real source rows (1 to 10,000), nothing kept: a row each mapped row, target_row null and error "filtered" for a source row that gives none, sqlstate and error where it would become a dead letter (with the target row when it was mapped but could not be written)';
