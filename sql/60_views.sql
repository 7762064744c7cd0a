/*
 * What the DBA sees.  Every view runs with the rights of whoever reads it, so
 * that the row security of the catalog holds.  Sums go over the chunks of one
 * source table once; live figures come from the workers' shared memory.
 */

CREATE VIEW migrate.options WITH (security_invoker = true) AS
	SELECT d.name, d.type, d.unit, d.default_value, d.changeable, d.allowed, d.meaning
	FROM migrate.option_def d
	ORDER BY d.name;
COMMENT ON VIEW migrate.options IS
'every option that a job can have: type, unit in which it is kept, default, when it can be changed, what is allowed, what it does';

CREATE VIEW migrate.job_options WITH (security_invoker = true) AS
	SELECT j.job, d.name,
		   coalesce(j.options ->> d.name, d.default_value) AS value,
		   j.options ? d.name AS changed,
		   d.changeable
	FROM migrate.job j CROSS JOIN migrate.option_def d
	ORDER BY j.job, d.name;
COMMENT ON VIEW migrate.job_options IS
'the options of each job as they are in effect; changed: given for this job, not the default';

/*
 * A bar of 20 places.  Block characters only where the database can hold
 * them; a function because an expression would be evaluated when planned.
 */
CREATE FUNCTION migrate._bar(percent numeric, estimated boolean) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	full_place text := '#';
	free_place text := '.';
	mark	text := '~';
	places	int := floor(least(greatest($1, 0), 100) / 5);
BEGIN
	IF getdatabaseencoding() = 'UTF8' THEN
		full_place := chr(9608);
		free_place := chr(9617);
		mark := chr(8776);
	END IF;
	RETURN rpad(repeat(full_place, places), 20, free_place)
		   || CASE WHEN $2 THEN ' ' || mark ELSE '' END;
END
$$;
COMMENT ON FUNCTION migrate._bar(numeric, boolean) IS
'a bar of 20 places for 0 to 100 percent, with a mark behind it when the figure rests on an estimate';

CREATE VIEW migrate.progress WITH (security_invoker = true) AS
WITH done AS (
	SELECT c.source_id,
		   sum(c.rows_read) FILTER (WHERE c.state = 'done') AS rows_done,
		   sum(c.bytes_read) FILTER (WHERE c.state = 'done') AS bytes_done,
		   min(c.started_at) AS first_start,
		   max(c.finished_at) AS last_finish,
		   -- rows of the last 30 seconds; a chunk that began before counts in part
		   sum(c.rows_read * least(1, 30 / greatest(extract(epoch FROM c.finished_at - c.started_at), 0.001)))
			   FILTER (WHERE c.state = 'done' AND c.finished_at > clock_timestamp() - interval '30 s') AS recent_rows,
		   (array_agg(c.last_error ORDER BY c.chunk_id) FILTER (WHERE c.state <> 'done' AND c.last_error IS NOT NULL))[1]
			   AS last_error
	FROM migrate.chunk c
	JOIN migrate.source_table s ON s.source_id = c.source_id AND s.plan_no = c.plan_no
	GROUP BY c.source_id
), live AS (
	SELECT w.source_id,
		   count(*) AS workers,
		   sum(w.chunk_rows) AS rows_flying,
		   sum(w.chunk_bytes) AS bytes_flying,
		   max(nullif(w.throttle, '')) AS throttle,
		   max(nullif(w.last_error, '')) AS last_error
	FROM migrate._live_workers() w
	WHERE w.role = 'loader' AND w.source_id > 0
	GROUP BY w.source_id
), dead AS (
	SELECT d.mapping_id, count(*) AS dead_letters
	FROM migrate.dead_letter d
	WHERE d.state = 'open'
	GROUP BY d.mapping_id
), steps AS (
	SELECT p.mapping_id,
		   count(*) AS steps,
		   count(*) FILTER (WHERE p.state IN ('done', 'skipped')) AS steps_done,
		   count(*) FILTER (WHERE p.state = 'failed') AS steps_failed,
		   string_agg(p.kind || ' ' || p.object, ', ' ORDER BY p.step_id) FILTER (WHERE p.state = 'running') AS building,
		   (array_agg(p.kind || ' ' || p.object || ': ' || p.error ORDER BY p.step_id) FILTER (WHERE p.state <> 'done' AND p.error IS NOT NULL))[1]
			   AS last_error
	FROM migrate.post_step p
	GROUP BY p.mapping_id
), apply AS (
	-- one row a job; capture's error stands in the catalog
	SELECT w.job_id, max(w.sqlstate || ': ' || w.last_error) AS last_error
	FROM migrate._live_workers() w
	WHERE w.role = 'apply' AND w.errors > 0
	GROUP BY w.job_id
), source AS (
	SELECT s.*,
		   s.state IN ('copied', 'done') AS complete,
		   coalesce(done.rows_done, 0) + CASE WHEN s.state IN ('copied', 'done') THEN 0 ELSE coalesce(live.rows_flying, 0) END AS rows_done,
		   coalesce(done.bytes_done, 0) + CASE WHEN s.state IN ('copied', 'done') THEN 0 ELSE coalesce(live.bytes_flying, 0) END AS bytes_done,
		   coalesce(live.workers, 0) AS workers,
		   live.throttle,
		   coalesce(live.last_error, done.last_error) AS last_error,
		   CASE WHEN s.state IN ('copied', 'done')
				THEN done.rows_done / greatest(extract(epoch FROM done.last_finish - done.first_start), 0.001)
				ELSE (coalesce(done.recent_rows, 0) + coalesce(live.rows_flying, 0))
					 / greatest(least(30, extract(epoch FROM clock_timestamp() - done.first_start)), 0.001)
				END AS rate
	FROM migrate.source_table s
	LEFT JOIN done USING (source_id)
	LEFT JOIN live USING (source_id)
)
SELECT j.job,
	   s.source,
	   m.target,
	   j.state,
	   j.wanted = 'pause' AS paused,
	   s.state AS table_state,
	   s.rows_done::bigint AS rows_done,
	   CASE WHEN s.complete THEN s.rows_done::bigint ELSE s.estimated_rows END AS rows_estimate,
	   s.bytes_done::bigint AS bytes_done,
	   CASE WHEN s.complete THEN s.bytes_done::bigint ELSE s.estimated_bytes END AS bytes_estimate,
	   p.percent,
	   round(s.rate)::bigint AS rows_per_second,
	   CASE WHEN NOT s.complete AND s.rate >= 1 AND s.estimated_rows > s.rows_done AND s.workers > 0
			THEN make_interval(secs => ceil((s.estimated_rows - s.rows_done) / s.rate)::float8) END AS eta,
	   migrate._bar(p.percent, NOT s.complete AND s.state <> 'pending') AS bar,
	   s.workers::int AS workers,
	   coalesce(dead.dead_letters, 0) AS dead_letters,
	   coalesce(s.throttle, CASE WHEN j.wanted = 'pause' THEN j.pause_reason END) AS throttle,
	   coalesce(s.last_error, steps.last_error, apply.last_error, j.last_error, stream.last_error) AS last_error,
	   coalesce(steps.steps, 0)::int AS steps,
	   coalesce(steps.steps_done, 0)::int AS steps_done,
	   coalesce(steps.steps_failed, 0)::int AS steps_failed,
	   steps.building
FROM migrate.mapping m
JOIN migrate.job j USING (job_id)
JOIN source s USING (source_id)
LEFT JOIN dead USING (mapping_id)
LEFT JOIN steps USING (mapping_id)
LEFT JOIN apply ON apply.job_id = j.job_id
LEFT JOIN (migrate.job_stream js JOIN migrate.stream USING (stream_id)) ON js.job_id = j.job_id
CROSS JOIN LATERAL (
	-- an estimate never shows 100 before the end; without one it is not known
	SELECT CASE WHEN s.complete THEN 100.0
				WHEN s.state = 'pending' THEN 0.0
				WHEN s.estimated_rows IS NOT NULL THEN
					least(99.9, round(100.0 * s.rows_done / greatest(s.estimated_rows, 1), 1)) END AS percent
) p
ORDER BY j.job, m.target, s.source;
COMMENT ON VIEW migrate.progress IS
'one row a mapping: state of the job and of the source table, rows and bytes read so far (chunks in flight included) of the estimate, rate over the last 30 seconds, time left, a bar (with a mark while the total is an estimate), loaders at work on it, open dead letters, what holds it back, and the last error; then the steps after the copy: how many, how many are done or skipped, how many have failed, and what is being built. Figures of a source table show in each of its mappings';

CREATE VIEW migrate.chunks WITH (security_invoker = true) AS
	SELECT j.job, s.source, c.chunk_id, l.relation,
		   CASE WHEN c.block_lo IS NOT NULL OR c.block_hi IS NOT NULL THEN
					format('blocks [%s, %s)', coalesce(c.block_lo, 0), coalesce(c.block_hi::text, ''))
				WHEN c.key_lo IS NOT NULL OR c.key_hi IS NOT NULL THEN
					format('keys [%s, %s)', coalesce(c.key_lo::text, ''), coalesce(c.key_hi::text, ''))
				ELSE 'all' END AS range,
		   c.state, c.attempt, c.rows_read, c.bytes_read,
		   coalesce(c.finished_at, CASE WHEN c.state = 'running' THEN clock_timestamp() END) - c.started_at AS duration,
		   c.worker_pid, c.started_at, c.finished_at, c.snapshot, c.source_lsn, c.last_error,
		   c.plan_no < s.plan_no AS outdated
	FROM migrate.chunk c
	JOIN migrate.job j USING (job_id)
	JOIN migrate.source_table s USING (source_id)
	LEFT JOIN migrate.leaf l USING (source_id, leaf_no);
COMMENT ON VIEW migrate.chunks IS
'one row a chunk: what it covers (half-open; an open end is empty), state, attempts, rows and bytes read, how long it took or has been running, its snapshot on the source; outdated: of a plan that was discarded';

CREATE VIEW migrate.events WITH (security_invoker = true) AS
	SELECT j.job, e.event_id, e.at, e.level, e.kind, e.message, e.detail
	FROM migrate.event e
	JOIN migrate.job j USING (job_id);
COMMENT ON VIEW migrate.events IS
'every state change, warning and alert with its cause; kept for option event_retention';

CREATE VIEW migrate.dead_letters WITH (security_invoker = true) AS
	SELECT j.job, m.target, d.id, d.stage, d.state, d.key, d.source_row, d.raw, d.sqlstate, d.message,
		   d.detail, d.hint, d.context, s.source, d.chunk_id, d.mapping_version, d.attempts, d.reason,
		   d.created_at, d.updated_at
	FROM migrate.dead_letter d
	JOIN migrate.mapping m USING (mapping_id)
	JOIN migrate.job j ON j.job_id = d.job_id
	JOIN migrate.source_table s USING (source_id);
COMMENT ON VIEW migrate.dead_letters IS
'rows that could not be read, mapped or written: the error, the source row with its key (raw: where it is and its bytes, when it could not be read), attempts and state. Replay them with migrate_replay, or give them up with migrate_discard';

CREATE VIEW migrate.validation WITH (security_invoker = true) AS
	SELECT j.job, s.source, coalesce(m.target, 'check ' || v.check_name) AS target, v.validation_id, v.level, v.digest,
		   v.source_rows, v.target_rows, v.matched, v.mismatches, v.status, v.source_lsn, v.started_at, v.duration
	FROM migrate.validation_run v
	JOIN migrate.job j ON j.job_id = v.job_id
	LEFT JOIN migrate.mapping m USING (mapping_id)
	LEFT JOIN migrate.source_table s USING (source_id);
COMMENT ON VIEW migrate.validation IS
'every validation of a mapping or check with its result, the newest has the highest validation_id; digest: who computed the source''s digests, source_lsn: of a live job, where in the stream both snapshots were (null: they were at no one place). Kept for option validation_retention';

CREATE VIEW migrate.validating WITH (security_invoker = true) AS
	SELECT j.job, v.pid, coalesce(m.target, CASE WHEN v.level = 'check' THEN 'checks' END) AS target, v.level, v.digest, v.phase,
		   v.source_rows, v.target_rows, v.source_estimate, v.target_estimate, p.percent,
		   round((coalesce(v.source_rows, 0) + v.target_rows) / p.seconds)::bigint AS rows_per_second,
		   CASE WHEN v.part > 0 AND v.part < 1 THEN make_interval(secs => ceil(p.seconds * (1 / v.part - 1))) END AS eta,
		   migrate._bar(p.percent, true) AS bar,
		   v.targets_done, v.targets, p.total_percent,
		   CASE WHEN v.all_done > 0 AND v.all_done < v.all_estimate THEN
				make_interval(secs => ceil(p.total_seconds * (v.all_estimate / v.all_done - 1))) END AS total_eta,
		   v.throttle, v.started AS started_at, v.target_started AS target_started_at
	FROM migrate._live_validations() v
	JOIN migrate.job j USING (job_id)
	LEFT JOIN migrate.mapping m USING (mapping_id)
	CROSS JOIN LATERAL (
		-- an estimate never shows 100 before the end
		SELECT least(99.9, round((100 * v.part)::numeric, 1)) AS percent,
			   least(99.9, round((100 * v.all_done / nullif(v.all_estimate, 0))::numeric, 1)) AS total_percent,
			   greatest(extract(epoch FROM clock_timestamp() - v.phase_started), 0.001)::float8 AS seconds,
			   greatest(extract(epoch FROM clock_timestamp() - v.started), 0.001)::float8 AS total_seconds
	) p
	ORDER BY j.job, v.started;
COMMENT ON VIEW migrate.validating IS
'one row a validation that runs, in whatever session: the target at hand, who makes the digests, what is being done (phase), the rows of both sides that were met in it, of how many (estimated; of the source null while a query there reads them), rows a second, time left and a bar; then how many targets are done of how many, percent and time left of all of them, and the limit that it waits for, if any';

CREATE VIEW migrate.differences WITH (security_invoker = true) AS
	SELECT j.job, m.target, d.validation_id, d.difference_id, d.kind, d.key, d.columns, d.source_row,
		   d.target_row, d.dead_letter
	FROM migrate.difference d
	JOIN migrate.validation_run v USING (validation_id)
	JOIN migrate.mapping m USING (mapping_id)
	JOIN migrate.job j ON j.job_id = d.job_id;
COMMENT ON VIEW migrate.differences IS
'rows that a validation found different: which side lacks them or in which columns they differ, both rows as mapped, and the open dead letter that explains it, if any';
