/*
 * Proof that both sides are equal.  What each level can and cannot find:
 *
 *	count		rows of both sides.  Finds missing and surplus rows unless they
 *				balance; no changed value.
 *	checksum	every mapped row, every column that the mapping gives, as
 *				canonical text (1.0 and 1.00 differ, no collation has a say),
 *				by sums of 128-bit hashes a bucket of keys; rows of unequal
 *				buckets are found one by one.  Misses what collides in XXH3's
 *				128 bits: chance one in 10^38, no protection against intent.
 *	full		the same, and keeps both rows of each difference.
 *	changed		the rows that the stream of changes names since the target was
 *				compared last, as checksum does.  Finds what went wrong with a
 *				change; no row that was damaged here without one.  Where it is
 *				not known what changed, the whole table, as checksum.
 *
 * No level sees target columns that the mapping does not give (defaults,
 * generated columns), nor target rows outside the mapping's "owns".
 */
CREATE FUNCTION @extschema@.migrate_validate(job text, target text DEFAULT NULL,
	level text DEFAULT 'checksum', OUT target text, OUT level text,
	OUT source_rows bigint, OUT target_rows bigint, OUT matched boolean,
	OUT mismatches bigint, OUT status text, OUT duration interval)
RETURNS SETOF record
LANGUAGE C SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_validate';
COMMENT ON FUNCTION @extschema@.migrate_validate(text, text, text) IS
	'compare each mapping''s source, mapped, with its target: level count, checksum, full or changed (the rows that changed since the last checksum, full or changed; jobs that follow their source live); rows that differ (at most 1,000 a mapping) are in migrate.difference; error 42704 for an unknown job or target, 22023 for an unknown level';

CREATE FUNCTION migrate._changed_since(job_id int, OUT mapping_id int, OUT keys bigint, OUT whole text)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT ROWS 20 SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_changed_since';
COMMENT ON FUNCTION migrate._changed_since(int) IS
	'how many rows (keys) of each target of a job changed on the source since it was validated, counted in the spool, which is read; whole: why all of it counts as changed, keys is null then';

CREATE FUNCTION migrate._live_validations(
	OUT job_id int, OUT pid int, OUT mapping_id int, OUT level text, OUT digest text, OUT phase text,
	OUT source_rows bigint, OUT target_rows bigint, OUT source_estimate bigint, OUT target_estimate bigint,
	OUT part float8, OUT targets int, OUT targets_done int, OUT all_done float8, OUT all_estimate float8,
	OUT throttle text, OUT started timestamptz, OUT target_started timestamptz, OUT phase_started timestamptz)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT ROWS 2 SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_live_validations';
COMMENT ON FUNCTION migrate._live_validations() IS
	'the validations that are running, of the jobs that the caller may see, from their shared memory; part: 0 to 1, of the phase';

CREATE FUNCTION migrate._cancel_validations(job_id int) RETURNS int
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_cancel_validations';
COMMENT ON FUNCTION migrate._cancel_validations(int) IS
	'cancel the validations of a job that run in other sessions; how many there were';

CREATE FUNCTION migrate._seen(handle bigint) RETURNS boolean
LANGUAGE C VOLATILE STRICT PARALLEL SAFE COST 0.1
AS 'MODULE_PATHNAME', 'migrate_seen';
COMMENT ON FUNCTION migrate._seen(bigint) IS
	'always true: counts the rows of a query of a validation for migrate.validating';

/*
 * What is older than its retention, of a job.  By the job worker once an hour,
 * and by each validation, for jobs without a worker.  Rows that another has
 * in hand are left to him: a validation may be a long transaction.
 */
CREATE FUNCTION migrate._purge_validations(job_id int) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
	DELETE FROM migrate.validation_run d
	WHERE d.validation_id IN (
		SELECT v.validation_id
		FROM migrate.validation_run v
		CROSS JOIN (SELECT nullif(migrate._option($1, 'validation_retention')::float8, 0) / 1000 AS seconds) o
		WHERE v.job_id = $1 AND v.started_at < now() - make_interval(secs => o.seconds)
		  AND EXISTS (SELECT FROM migrate.validation_run n
					  WHERE n.job_id = v.job_id AND n.level = v.level AND n.validation_id > v.validation_id
						AND n.mapping_id IS NOT DISTINCT FROM v.mapping_id
						AND n.check_name IS NOT DISTINCT FROM v.check_name)
		FOR UPDATE OF v SKIP LOCKED);
	-- nobody will go on from these
	DELETE FROM migrate.validation_part d
	WHERE d.part_id IN (
		SELECT p.part_id
		FROM migrate.validation_part p
		WHERE p.job_id = $1
		  AND (p.kept_at < now() - make_interval(secs => migrate._option($1, 'validate_resume')::float8 / 1000)
			OR EXISTS (SELECT FROM migrate.validation_run v
					   WHERE v.mapping_id = p.mapping_id AND v.level = p.level AND v.started_at + v.duration >= p.kept_at))
		FOR UPDATE OF p SKIP LOCKED)
$$;
COMMENT ON FUNCTION migrate._purge_validations(int) IS
	'remove a job''s results of validations that are older than option validation_retention, but the newest of each target or check and level; and what was kept of validations that have ended or are too old to go on from';

CREATE FUNCTION @extschema@.migrate_repair(job text, target text DEFAULT NULL,
	dry_run boolean DEFAULT true, OUT target text, OUT action text, OUT key jsonb,
	OUT columns text[], OUT rows bigint)
RETURNS SETOF record
LANGUAGE C SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_repair';
COMMENT ON FUNCTION @extschema@.migrate_repair(text, text, boolean) IS
	'bring the rows of one or all targets that differ from the source in line with it. dry_run: what would be done, a row each (at most 1,000 a mapping, then one that counts the others): insert, update (the columns that differ) or delete; else how many rows were written, deleted or became dead letters, and whether the target matches now. Live jobs: apply waits until the transaction ends. Errors: 42704 unknown job or target, 55000 the copy is not finished, a table without a key and no common moment, or the source does not lead any more (the job is cut over, say)';

/*
 * Checks of the user's: queries whose rows must be the same on both sides.
 */
CREATE FUNCTION @extschema@.migrate_add_check(job text, name text, source_query text, target_query text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	the_job int := (migrate._job(job)).job_id;
BEGIN
	IF coalesce(btrim(name), '') = '' OR coalesce(btrim(source_query), '') = '' OR coalesce(btrim(target_query), '') = '' THEN
		RAISE EXCEPTION 'a check needs a name and two queries'
			USING ERRCODE = 'invalid_parameter_value';
	END IF;
	INSERT INTO migrate.validation_check (job_id, name, source_query, target_query)
	VALUES (the_job, migrate_add_check.name, migrate_add_check.source_query, migrate_add_check.target_query);
EXCEPTION WHEN unique_violation THEN
	RAISE EXCEPTION 'job "%" has a check "%" already', job, name
		USING ERRCODE = 'duplicate_object', HINT = 'Remove it with migrate_remove_check first, or give another name.';
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_add_check(text, text, text, text) IS
	'have migrate_validate compare the rows of two queries, in any order, besides the tables: a sum of balances, say. The first is run on the source (read only), the second here; names must be qualified. Errors: 42704 unknown job, 42710 the name is taken, 22023 something is missing';

CREATE FUNCTION @extschema@.migrate_remove_check(job text, name text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	the_job int := (migrate._job(job)).job_id;
BEGIN
	DELETE FROM migrate.validation_check c
	WHERE c.job_id = the_job AND c.name = migrate_remove_check.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'job "%" has no check "%"', job, name
			USING ERRCODE = 'undefined_object', HINT = 'See the table migrate.validation_check.';
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_remove_check(text, text) IS
	'take a check out again; its results stay. Errors: 42704 unknown job or check';

/*
 * The hash of rows as the comparison takes it, for both sides: see
 * src/validate/digest.c.  A source that has this extension, too, and lets the
 * job's user call these, computes its own digests with them.
 */
CREATE FUNCTION migrate._digest_row(internal, bigint, int, int, bigint, VARIADIC "any") RETURNS internal
LANGUAGE C PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_row';
CREATE FUNCTION migrate._digest_sum_row(internal, bigint, int, int, bigint, bigint) RETURNS internal
LANGUAGE C PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_sum_row';
CREATE FUNCTION migrate._digest_combine(internal, internal) RETURNS internal
LANGUAGE C PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_combine';
CREATE FUNCTION migrate._digest_serialize(internal) RETURNS bytea
LANGUAGE C STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_serialize';
CREATE FUNCTION migrate._digest_deserialize(bytea, internal) RETURNS internal
LANGUAGE C STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_deserialize';
CREATE FUNCTION migrate._digest_final(internal) RETURNS bytea
LANGUAGE C PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_final';
COMMENT ON FUNCTION migrate._digest_row(internal, bigint, int, int, bigint, VARIADIC "any") IS 'step of the aggregate migrate._digest';
COMMENT ON FUNCTION migrate._digest_sum_row(internal, bigint, int, int, bigint, bigint) IS 'step of the aggregate migrate._digest_sum';
COMMENT ON FUNCTION migrate._digest_combine(internal, internal) IS 'of the aggregate migrate._digest, for parallel queries';
COMMENT ON FUNCTION migrate._digest_serialize(internal) IS 'of the aggregate migrate._digest, for parallel queries';
COMMENT ON FUNCTION migrate._digest_deserialize(bytea, internal) IS 'of the aggregate migrate._digest, for parallel queries';
COMMENT ON FUNCTION migrate._digest_final(internal) IS 'result of the aggregate migrate._digest';

CREATE AGGREGATE migrate._digest(lo bigint, shift int, buckets int, key bigint, VARIADIC columns "any") (
	SFUNC = migrate._digest_row,
	STYPE = internal,
	FINALFUNC = migrate._digest_final,
	COMBINEFUNC = migrate._digest_combine,
	SERIALFUNC = migrate._digest_serialize,
	DESERIALFUNC = migrate._digest_deserialize,
	PARALLEL = SAFE
);
COMMENT ON AGGREGATE migrate._digest(bigint, int, int, bigint, VARIADIC "any") IS
	'rows and sums of row hashes (XXH3) of each bucket of keys, in network order; the bucket is (key >> shift) - lo, from 0 to buckets - 1, that of a null key is "buckets"';

CREATE AGGREGATE migrate._digest_sum(lo bigint, shift int, buckets int, key bigint, hash bigint) (
	SFUNC = migrate._digest_sum_row,
	STYPE = internal,
	FINALFUNC = migrate._digest_final,
	COMBINEFUNC = migrate._digest_combine,
	SERIALFUNC = migrate._digest_serialize,
	DESERIALFUNC = migrate._digest_deserialize,
	PARALLEL = SAFE
);
COMMENT ON AGGREGATE migrate._digest_sum(bigint, int, int, bigint, bigint) IS
	'as migrate._digest, for rows whose hash is given: sums of its low and its high half';

CREATE FUNCTION migrate._hash(VARIADIC columns "any") RETURNS bigint
LANGUAGE C STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_hash_row';
COMMENT ON FUNCTION migrate._hash(VARIADIC "any") IS
	'64 bits of the hash (XXH3) of a row or key of these columns, as validation takes it';
