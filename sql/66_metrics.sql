/*
 * The views' figures in the text format that Prometheus reads (version 0.0.4):
 * https://prometheus.io/docs/instrumenting/exposition_formats/
 *
 * An exporter that runs a query (postgres_exporter, sql_exporter) or a
 * textfile collector passes it on; nothing here listens to the network.
 */
CREATE FUNCTION migrate._metric_label(name text, value text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('%s="%s"', $1, replace(replace(replace(coalesce($2, ''), '\', '\\'), '"', '\"'), E'\n', '\n'))
$$;
COMMENT ON FUNCTION migrate._metric_label(text, text) IS
'a label as the text format of Prometheus quotes it; null is the empty value, which is the same as no label there';

CREATE FUNCTION migrate._metric_names() RETURNS TABLE (place int, metric text, help text)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
	VALUES
	(1, 'migrate_job_info', 'State of a job and what is wanted of it; always 1.'),
	(2, 'migrate_job_failed', 'Whether a job has failed.'),
	(3, 'migrate_job_paused', 'Whether a job is paused.'),
	(4, 'migrate_workers', 'Worker processes that are alive.'),
	(5, 'migrate_copied_rows', 'Source rows that the copy has read.'),
	(6, 'migrate_copied_bytes', 'Bytes that the copy has read.'),
	(7, 'migrate_copy_ratio', 'Part of the rows that is copied, by estimate until the end.'),
	(8, 'migrate_copy_rows_per_second', 'Source rows that the copy reads a second.'),
	(9, 'migrate_failed_steps', 'Indexes, constraints and the like that failed.'),
	(10, 'migrate_open_dead_letters', 'Rows that were set aside and are not settled.'),
	(11, 'migrate_checkpoint_success_ratio', 'Part of the attempts at chunks that ended in a checkpoint.'),
	(12, 'migrate_copy_write_seconds', 'Time to write a batch of the copy.'),
	(13, 'migrate_apply_write_seconds', 'Time to write a batch of changes.'),
	(14, 'migrate_commit_lag_seconds', 'Time from a commit on the source to the commit here.'),
	(15, 'migrate_lag_seconds', 'How far the target is behind the source.'),
	(16, 'migrate_lag_bytes', 'WAL of the source that is not applied.'),
	(17, 'migrate_stalled', 'Whether changes stand still without a reason.'),
	(18, 'migrate_arriving_changes_per_second', 'Changes that come from the source a second.'),
	(19, 'migrate_applied_changes_per_second', 'Changes that are applied a second.'),
	(20, 'migrate_spool_bytes', 'Size of the spool of changes.'),
	(21, 'migrate_validation_matched', 'Whether the newest validation of a target found both sides equal.'),
	(22, 'migrate_validation_mismatches', 'Rows that differ by the newest validation of a target.'),
	(23, 'migrate_validation_age_seconds', 'Time since the newest validation of a target began.'),
	(24, 'migrate_events', 'Events that are kept (event_retention), by level.')
$$;
COMMENT ON FUNCTION migrate._metric_names() IS
'the metrics in their order, with their help lines; all are gauges';

CREATE FUNCTION migrate._metric_samples() RETURNS TABLE (metric text, labels text, value float8)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	WITH job AS (
		SELECT j.*, migrate._metric_label('job', j.job) AS label FROM migrate.job j
	), target AS (
		SELECT p.*, migrate._metric_label('job', p.job) || ',' || migrate._metric_label('source', p.source) || ','
			   || migrate._metric_label('target', p.target) AS label
		FROM migrate.progress p
	), slo AS (
		SELECT s.*, migrate._metric_label('job', s.job) AS label FROM migrate.slo s
	), lag AS (
		SELECT l.*, migrate._metric_label('job', l.job) AS label FROM migrate.lag l
	), validation AS (
		SELECT DISTINCT ON (v.job, v.source, v.target) v.*,
			   migrate._metric_label('job', v.job) || ',' || migrate._metric_label('source', v.source) || ','
			   || migrate._metric_label('target', v.target) AS label
		FROM migrate.validation v
		WHERE v.matched IS NOT NULL
		ORDER BY v.job, v.source, v.target, v.validation_id DESC
	)
	SELECT x.metric, j.label || x.labels, x.value
	FROM job j CROSS JOIN LATERAL (VALUES
		('migrate_job_info', ',' || migrate._metric_label('state', j.state) || ',' || migrate._metric_label('wanted', j.wanted), 1),
		('migrate_job_failed', '', (j.state = 'failed')::int),
		('migrate_job_paused', '', (j.wanted = 'pause')::int)) x (metric, labels, value)
	UNION ALL
	SELECT 'migrate_workers', migrate._metric_label('job', w.job) || ',' || migrate._metric_label('role', w.role), count(*)
	FROM migrate.workers w GROUP BY w.job, w.role
	UNION ALL
	SELECT x.metric, t.label, x.value
	FROM target t CROSS JOIN LATERAL (VALUES
		('migrate_copied_rows', t.rows_done::float8),
		('migrate_copied_bytes', t.bytes_done),
		('migrate_copy_ratio', t.percent / 100.0),
		('migrate_copy_rows_per_second', t.rows_per_second),
		('migrate_failed_steps', t.steps_failed),
		('migrate_open_dead_letters', t.dead_letters)) x (metric, value)
	UNION ALL
	SELECT x.metric, s.label || x.labels, x.value
	FROM slo s CROSS JOIN LATERAL (VALUES
		('migrate_checkpoint_success_ratio', '', s.checkpoint_success::float8),
		('migrate_copy_write_seconds', ',quantile="0.5"', s.copy_write_p50 / 1000),
		('migrate_copy_write_seconds', ',quantile="0.95"', s.copy_write_p95 / 1000),
		('migrate_copy_write_seconds', ',quantile="0.99"', s.copy_write_p99 / 1000),
		('migrate_apply_write_seconds', ',quantile="0.5"', s.apply_write_p50 / 1000),
		('migrate_apply_write_seconds', ',quantile="0.95"', s.apply_write_p95 / 1000),
		('migrate_apply_write_seconds', ',quantile="0.99"', s.apply_write_p99 / 1000),
		('migrate_commit_lag_seconds', ',quantile="0.5"', s.lag_p50 / 1000),
		('migrate_commit_lag_seconds', ',quantile="0.95"', s.lag_p95 / 1000),
		('migrate_commit_lag_seconds', ',quantile="0.99"', s.lag_p99 / 1000)) x (metric, labels, value)
	UNION ALL
	SELECT x.metric, l.label, x.value
	FROM lag l CROSS JOIN LATERAL (VALUES
		('migrate_lag_seconds', l.seconds_behind::float8),
		('migrate_lag_bytes', l.apply_bytes),
		('migrate_stalled', l.stalled::int),
		('migrate_arriving_changes_per_second', l.arrival_changes_per_second),
		('migrate_applied_changes_per_second', l.apply_changes_per_second),
		('migrate_spool_bytes', l.spool_bytes)) x (metric, value)
	UNION ALL
	SELECT x.metric, v.label, x.value
	FROM validation v CROSS JOIN LATERAL (VALUES
		('migrate_validation_matched', v.matched::int::float8),
		('migrate_validation_mismatches', v.mismatches),
		('migrate_validation_age_seconds', extract(epoch FROM clock_timestamp() - v.started_at))) x (metric, value)
	UNION ALL
	SELECT 'migrate_events', migrate._metric_label('job', e.job) || ',' || migrate._metric_label('level', e.level), count(*)
	FROM migrate.events e GROUP BY e.job, e.level
$$;
COMMENT ON FUNCTION migrate._metric_samples() IS
'the samples of migrate_metrics; a value that is not known (null) is left out there';

CREATE FUNCTION @extschema@.migrate_metrics() RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 1
AS $$
	SELECT string_agg(f.part, '' ORDER BY f.place)
	FROM (
		SELECT n.place,
			   format(E'# HELP %s %s\n# TYPE %s gauge\n', n.metric, n.help, n.metric)
			   || string_agg(format(E'%s{%s} %s\n', n.metric, s.labels,
									CASE s.value WHEN 'Infinity' THEN '+Inf' WHEN '-Infinity' THEN '-Inf'
												 ELSE s.value::text END), '' ORDER BY s.labels) AS part
		FROM migrate._metric_names() n
		JOIN migrate._metric_samples() s USING (metric)
		WHERE s.value IS NOT NULL
		GROUP BY n.place, n.metric, n.help) f
$$;
COMMENT ON FUNCTION @extschema@.migrate_metrics() IS
'the jobs that the caller may see in the text format of Prometheus: states, copy, dead letters, lag, SLOs, validations, events. Times in seconds, sizes in bytes; what is not known is left out; null when there is no job';
