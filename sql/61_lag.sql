/*
 * Live capture as the DBA sees it: how far behind, how fast, and how well it
 * keeps what was promised.
 *
 * Figures come from the shared memory of the workers; where none lives, from
 * the catalog, so that they go on growing while a job is paused or a source is
 * away.
 */
CREATE FUNCTION migrate._live_jobs(
	OUT job_id int, OUT apply_pid int, OUT applied_lsn pg_lsn, OUT commit_at timestamptz,
	OUT applied_at timestamptz, OUT transactions bigint, OUT changes bigint, OUT batches bigint,
	OUT changes_per_second float8, OUT idle boolean, OUT held boolean,
	OUT lag bigint[], OUT apply_write bigint[], OUT copy_write bigint[],
	OUT stuck_since timestamptz, OUT caught_up_at timestamptz, OUT started timestamptz)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT ROWS 4 SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_live_jobs';
COMMENT ON FUNCTION migrate._live_jobs() IS
	'apply of the jobs that the caller may see and that have a worker, from their shared memory; histograms have the buckets of migrate._histogram_quantile, lag and apply_write are of the last 30 to 60 seconds, copy_write since the job worker started';

CREATE FUNCTION migrate._live_streams(
	OUT stream_id int, OUT pid int, OUT phase text, OUT source_lsn pg_lsn, OUT source_at timestamptz,
	OUT received_lsn pg_lsn, OUT spooled_lsn pg_lsn, OUT confirmed_lsn pg_lsn, OUT commit_at timestamptz,
	OUT transactions bigint, OUT changes bigint, OUT bytes bigint, OUT spool_bytes bigint,
	OUT spool_full boolean, OUT changes_per_second float8, OUT memory bigint, OUT started timestamptz,
	OUT sqlstate text, OUT last_error text)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT ROWS 4 SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_live_streams';
COMMENT ON FUNCTION migrate._live_streams() IS
	'capture of the streams that the caller may see and that have a worker, from their shared memory';

CREATE FUNCTION migrate._live_ways_back(
	OUT job_id int, OUT pid int, OUT sent_lsn pg_lsn, OUT commit_at timestamptz, OUT caught_up_at timestamptz,
	OUT changes bigint, OUT dead bigint)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT ROWS 4 SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_live_ways_back';
COMMENT ON FUNCTION migrate._live_ways_back() IS
	'the ways back of the jobs that the caller may see and that have a worker, from their shared memory: what was written here before sent_lsn is on the source; changes and dead letters since the job worker started';

/*
 * Buckets double: 0 is below 0.1 ms, i is [0.1 * 2^(i-1), 0.1 * 2^i) ms.  The
 * geometric middle of a bucket is given, so the figure is off by a factor of
 * the square root of 2 at most (of the last bucket, its lower end is given; of the first,
 * 0.05 ms, off by no more than that).
 */
CREATE FUNCTION migrate._histogram_quantile(counts bigint[], q float8) RETURNS numeric
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
	SELECT round((CASE b.i
			WHEN 1 THEN 0.05
			WHEN cardinality($1) THEN 0.1 * 2 ^ (b.i - 2)
			ELSE 0.1 * 2 ^ (b.i - 1.5) END)::numeric, 3)
	FROM (SELECT u.i, sum(u.n) OVER (ORDER BY u.i) AS upto, sum(u.n) OVER () AS total
		  FROM unnest($1) WITH ORDINALITY u (n, i)) b
	WHERE b.total > 0 AND b.upto >= greatest(ceil(b.total * $2), 1)
	ORDER BY b.i LIMIT 1
$$;
COMMENT ON FUNCTION migrate._histogram_quantile(bigint[], float8) IS
	'a quantile in milliseconds, of a histogram whose buckets double from 0.1 ms on; off by a factor of 1.42 at most; null when it is empty';

CREATE VIEW migrate.streams WITH (security_invoker = true) AS
	SELECT f.srvname AS server, r.rolname AS owner, s.stream_id, s.state, w.pid, w.phase,
		   s.publication, s.slot, s.generation,
		   (SELECT array_agg(j.job ORDER BY j.job) FROM migrate.job_stream js JOIN migrate.job j USING (job_id)
			WHERE js.stream_id = s.stream_id) AS jobs,
		   s.start_lsn, w.source_lsn, w.source_at, w.received_lsn,
		   coalesce(w.spooled_lsn, p.spooled_lsn) AS spooled_lsn, w.confirmed_lsn,
		   coalesce(w.commit_at, p.commit_at) AS commit_at,
		   w.transactions, w.changes, w.bytes, round(w.changes_per_second::numeric, 1) AS changes_per_second,
		   coalesce(w.spool_bytes, (SELECT sum(pg_total_relation_size(c.oid))::bigint
									FROM migrate.spool_segment g JOIN pg_class c ON c.oid = g.relation
									WHERE g.stream_id = s.stream_id), 0) AS spool_bytes,
		   coalesce(w.spool_full, false) AS spool_full, w.memory, w.started,
		   coalesce(w.sqlstate, s.last_sqlstate) AS sqlstate, coalesce(w.last_error, s.last_error) AS last_error,
		   s.last_error_at
	FROM migrate.stream s
	LEFT JOIN migrate.stream_position p USING (stream_id)
	LEFT JOIN migrate._live_streams() w USING (stream_id)
	LEFT JOIN pg_foreign_server f ON f.oid = s.server
	LEFT JOIN pg_roles r ON r.oid = s.owner
	ORDER BY 1, 2;
COMMENT ON VIEW migrate.streams IS
'one row a stream of changes: its slot and publication, the jobs that read it, the positions up to which the source has come, was received, spooled and confirmed, what it took in since its worker started, the size of the spool, and the error it retries after, if any';

CREATE VIEW migrate.workers WITH (security_invoker = true) AS
	SELECT j.job, w.role, w.pid, w.phase, s.source, nullif(w.chunk_id, 0) AS chunk_id,
		   w.rows, w.bytes,
		   round(w.rows / greatest(extract(epoch FROM clock_timestamp() - w.started), 0.001))::bigint AS rows_per_second,
		   w.chunk_rows, w.chunk_bytes, w.chunks, w.dead AS dead_letters, w.memory,
		   w.started, w.changed, w.throttle, w.errors, w.error_since, w.sqlstate, w.last_error, w.slot,
		   w.steps, p.kind || ' ' || p.object AS building, w.verified
	FROM migrate._live_workers() w
	JOIN migrate.job j USING (job_id)
	LEFT JOIN migrate.source_table s ON s.source_id = w.source_id
	LEFT JOIN migrate.post_step p ON p.step_id = w.step_id
	UNION ALL
	-- one worker for all jobs of a stream
	SELECT j.job, 'capture', c.pid, c.phase, NULL, NULL, c.changes, c.bytes,
		   round(c.changes / greatest(extract(epoch FROM clock_timestamp() - c.started), 0.001))::bigint,
		   NULL, NULL, NULL, NULL, c.memory, c.started, NULL, CASE WHEN c.spool_full THEN 'spool_limit' END,
		   NULL, NULL, c.sqlstate, c.last_error, NULL, NULL, NULL, NULL
	FROM migrate._live_streams() c
	JOIN migrate.job_stream js USING (stream_id)
	JOIN migrate.job j USING (job_id)
	WHERE j.state NOT IN ('finished', 'cancelled')
	ORDER BY job, slot;
COMMENT ON VIEW migrate.workers IS
'the live workers of each job with counters since their start, of the chunk at hand (chunk_*), memory in bytes, and the error they retry after, if any; steps: of those after the copy, how many are over since its start, building: the one at hand; verified: rows read back since its start (verify_writes). Roles: job, loader, apply, and capture, which is one for all jobs of a stream and whose rows are changes';

/*
 * How far the way back is, in the eyes of this server.  Without a worker the
 * slot tells, so that bytes go on growing; seconds are not known then.
 */
CREATE FUNCTION migrate._way_back(job_id int, OUT state text, OUT written_lsn pg_lsn, OUT sent_lsn pg_lsn,
	OUT bytes bigint, OUT seconds numeric, OUT retained_bytes bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	r		migrate.reverse;
	w		record;
	s		record;
BEGIN
	SELECT * INTO r FROM migrate.reverse x WHERE x.job_id = $1;
	IF NOT FOUND THEN
		RETURN;
	END IF;
	state := r.state;
	SELECT * INTO s FROM pg_replication_slots x WHERE x.slot_name = r.slot;
	IF r.state = 'lost' OR s.slot_name IS NULL AND r.kind <> 'trigger' THEN
		RETURN;
	END IF;
	-- the position before the time: what is read later may only be further on
	written_lsn := pg_current_wal_flush_lsn();
	SELECT * INTO w FROM migrate._live_ways_back() x WHERE x.job_id = $1;
	sent_lsn := greatest(w.sent_lsn, s.confirmed_flush_lsn);
	bytes := greatest(written_lsn - sent_lsn, 0);
	seconds := CASE WHEN sent_lsn >= written_lsn THEN 0
					ELSE round(greatest(extract(epoch FROM clock_timestamp() - greatest(w.commit_at, w.caught_up_at)), 0)::numeric, 3) END;
	retained_bytes := CASE WHEN r.kind <> 'trigger' THEN greatest(written_lsn - s.restart_lsn, 0) END;
END
$$;
COMMENT ON FUNCTION migrate._way_back(int) IS
	'the way back of a job: its state, the position up to which this server has written and that up to which the source has it, the bytes between them, seconds since the last commit that is there or since all was (0 when all is; null without a worker), the bytes of WAL that its slot holds; null where there is none';

CREATE VIEW migrate.lag WITH (security_invoker = true) AS
WITH now AS MATERIALIZED (
	SELECT clock_timestamp() AS at
), live AS (
	SELECT j.job_id, j.job, j.state, j.wanted, j.pause_reason, js.consistent_lsn, js.rechecked,
		   s.state AS stream_state, s.pid AS capture_pid, s.phase, s.source_lsn, s.source_at, s.received_lsn,
		   s.spooled_lsn, s.confirmed_lsn, s.spool_bytes, s.spool_full, s.last_error AS stream_error,
		   s.commit_at AS spooled_at, s.changes_per_second AS arrival_rate,
		   w.apply_pid, w.applied_at, w.held, w.stuck_since, w.caught_up_at,
		   coalesce(s.phase = 'stream' AND NOT s.spool_full AND s.source_at > clock_timestamp() - interval '65 s', false) AS hears,
		   greatest(w.applied_lsn, a.applied_lsn) AS applied_lsn,
		   greatest(w.commit_at, a.commit_at) AS commit_at,
		   w.changes_per_second AS apply_rate,
		   j.state IN ('catching_up', 'streaming') AS applies,
		   (migrate._option(j.job_id, 'lag_alert')::bigint) AS lag_alert
	FROM migrate.job j
	JOIN migrate.job_stream js USING (job_id)
	JOIN migrate.streams s USING (stream_id)
	LEFT JOIN migrate._live_jobs() w USING (job_id)
	LEFT JOIN migrate.apply_position a USING (job_id)
	WHERE j.state NOT IN ('defined', 'cancelled', 'finished')
)
SELECT l.job, l.state, l.stream_state, l.phase AS stream_phase,
	   l.source_lsn, l.received_lsn, l.spooled_lsn, l.confirmed_lsn, l.applied_lsn, l.consistent_lsn,
	   greatest(l.source_lsn - l.received_lsn, 0)::bigint AS receive_bytes,
	   greatest(greatest(l.source_lsn, l.spooled_lsn) - l.spooled_lsn, 0)::bigint AS spool_bytes_behind,
	   greatest(greatest(l.source_lsn, l.spooled_lsn) - l.applied_lsn, 0)::bigint AS apply_bytes,
	   round(extract(epoch FROM b.behind)::numeric, 3) AS seconds_behind,
	   CASE WHEN l.capture_pid IS NULL THEN 0 ELSE coalesce(l.arrival_rate, 0) END AS arrival_changes_per_second,
	   round(coalesce(l.apply_rate, 0)::numeric, 1) AS apply_changes_per_second,
	   l.spool_bytes,
	   b.reason,
	   coalesce(l.wanted = 'run' AND l.applies AND NOT coalesce(l.held, false) AND l.lag_alert > 0
				AND n.at - l.stuck_since > make_interval(secs => l.lag_alert / 1000.0), false) AS stalled,
	   back.state AS back_state, back.written_lsn AS back_written_lsn, back.sent_lsn AS back_sent_lsn,
	   back.bytes AS back_bytes, back.seconds AS back_seconds, back.retained_bytes AS back_retained_bytes
FROM live l
CROSS JOIN now n
CROSS JOIN LATERAL migrate._way_back(l.job_id) back
CROSS JOIN LATERAL (
	SELECT CASE
			   -- all is applied, and the source says that there is no more
			   WHEN l.hears AND l.applied_lsn >= l.spooled_lsn AND l.spooled_lsn >= l.source_lsn THEN interval '0'
			   -- of an idle source the last commit may be old
			   ELSE greatest(n.at - coalesce(greatest(l.commit_at, l.caught_up_at), l.spooled_at, n.at), interval '0')
			   END AS behind,
		   CASE WHEN l.wanted = 'pause' THEN 'paused' || coalesce(': ' || l.pause_reason, '')
				WHEN l.state = 'failed' THEN 'failed'
				WHEN l.stream_state = 'lost' THEN 'the stream is lost: ' || coalesce(l.stream_error, '')
				WHEN NOT l.applies THEN 'changes are spooled while the job is ' || l.state
				WHEN l.held THEN 'held'
				WHEN l.spool_full THEN 'spool_limit: no more changes are read'
				WHEN l.capture_pid IS NULL THEN 'no capture worker'
				WHEN l.phase = 'retry' THEN 'the source cannot be read: ' || coalesce(l.stream_error, '')
				END AS reason
) b
ORDER BY l.job;
COMMENT ON VIEW migrate.lag IS
'one row a job that follows its source: the positions up to which the source has come, changes were received, spooled, confirmed to the source and applied; the bytes that are still to receive, spool and apply; seconds between now and the source''s last applied commit, or when all was applied last (0 when all is), by both servers'' clocks; changes that arrive and are applied a second; the size of the spool; what holds it up (reason), and whether it stands still without one (stalled). Moves on while the job is paused. back_*: of the way back, from when it is armed on: its state (arming, armed, lost), the position up to which this server has written and up to which the source has it, the bytes between, seconds since the last commit that is there or since all was (0 when all is), and the WAL that its slot holds back in bytes';

CREATE VIEW migrate.slo WITH (security_invoker = true) AS
SELECT j.job,
	   c.checkpoints, c.attempts,
	   round(c.checkpoints / nullif(c.attempts, 0)::numeric, 4) AS checkpoint_success,
	   0.99 AS checkpoint_objective,
	   migrate._histogram_quantile(w.copy_write, 0.50) AS copy_write_p50,
	   migrate._histogram_quantile(w.copy_write, 0.95) AS copy_write_p95,
	   migrate._histogram_quantile(w.copy_write, 0.99) AS copy_write_p99,
	   migrate._histogram_quantile(w.apply_write, 0.50) AS apply_write_p50,
	   migrate._histogram_quantile(w.apply_write, 0.95) AS apply_write_p95,
	   migrate._histogram_quantile(w.apply_write, 0.99) AS apply_write_p99,
	   migrate._option(j.job_id, 'apply_latency')::numeric AS apply_write_objective,
	   migrate._histogram_quantile(w.lag, 0.50) AS lag_p50,
	   migrate._histogram_quantile(w.lag, 0.95) AS lag_p95,
	   migrate._histogram_quantile(w.lag, 0.99) AS lag_p99,
	   nullif(migrate._option(j.job_id, 'lag_alert')::numeric, 0) AS lag_objective,
	   clock_timestamp() - w.started AS "window",
	   v.targets, v.validated AS targets_validated, v.matched AS targets_matched,
	   v.mismatches AS validation_mismatches,
	   clock_timestamp() - v.oldest AS validation_age,
	   make_interval(secs => nullif(migrate._option(j.job_id, 'validate_every')::float8, 0) / 1000) AS validation_age_objective
FROM migrate.job j
LEFT JOIN LATERAL (
	-- the newest comparison of rows of each target
	SELECT count(*)::int AS targets, count(r.validation_id)::int AS validated,
		   (count(*) FILTER (WHERE r.matched))::int AS matched, sum(r.mismatches)::bigint AS mismatches,
		   CASE WHEN bool_and(r.validation_id IS NOT NULL) THEN min(r.started_at) END AS oldest
	FROM migrate.mapping m
	LEFT JOIN LATERAL (
		SELECT q.* FROM migrate.validation_run q
		WHERE q.mapping_id = m.mapping_id AND q.level IN ('checksum', 'full') AND q.matched IS NOT NULL
		ORDER BY q.validation_id DESC LIMIT 1
	) r ON true
	WHERE m.job_id = j.job_id
) v ON true
LEFT JOIN LATERAL (
	SELECT count(*) FILTER (WHERE k.state = 'done') AS checkpoints, sum(k.attempt) AS attempts
	FROM migrate.chunk k WHERE k.job_id = j.job_id
) c ON true
LEFT JOIN migrate._live_jobs() w USING (job_id)
ORDER BY j.job;
COMMENT ON VIEW migrate.slo IS
'one row a job: share of the attempts at chunks that ended in a checkpoint; in milliseconds, quantiles of the time that a batch of the copy and a batch of changes takes to be written, and of the lag from commit on the source to commit here; beside them what is aimed at. Quantiles of the copy are of the time since the job worker started (window), those of apply and lag of the last 30 to 60 seconds, null when nothing was applied in them; all are null while the worker is not alive, and off by a factor of 1.42 at most. Then of the newest validation of each target by checksum or in full: how many targets there are, are validated and matched, the mismatches, and the age of the oldest, null until all are validated; aimed at is validate_every';
