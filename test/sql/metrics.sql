--
-- migrate_metrics(): the text format of Prometheus
--
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
CREATE EXTENSION file_fdw;
CREATE SERVER metrics_server FOREIGN DATA WRAPPER file_fdw;
CREATE SCHEMA mx;
CREATE FOREIGN TABLE mx.src (id int, name text) SERVER metrics_server OPTIONS (filename '/dev/null');
CREATE TABLE mx."odd ""na\me" (id int PRIMARY KEY, name text);
-- no job, nothing to tell
SELECT coalesce(migrate_metrics(), 'null');
SELECT migrate_create_job(E'night\nly', 'metrics_server') > 0;
SELECT migrate_add_table(E'night\nly', 'mx.src', 'mx."odd ""na\me"', key => '{"id": "id"}');
-- what is known at once
SELECT migrate_metrics();
-- a mismatch, a dead letter, a failed job
INSERT INTO migrate.validation_run (job_id, mapping_id, level, source_rows, target_rows, matched, mismatches, status, duration)
SELECT m.job_id, m.mapping_id, 'full', 9, 8, v.matched, v.mismatches, 'x', '1 s'
FROM migrate.mapping m, (VALUES (1, true, 0), (2, false, 3)) v (n, matched, mismatches) ORDER BY v.n;
INSERT INTO migrate.dead_letter (job_id, mapping_id, stage, key, source_row, sqlstate, message)
SELECT m.job_id, m.mapping_id, 'map', '{"id": "5"}', '{"id": 5, "name": "x"}', '22012', 'division by zero' FROM migrate.mapping m;
UPDATE migrate.job SET state = 'failed';
SELECT l FROM regexp_split_to_table(migrate_metrics(), '\n') WITH ORDINALITY r (l, n)
WHERE l ~ '^migrate_(job_|open_dead|validation_(matched|mismatches))' ORDER BY n;
-- every line is one of the format's, every metric has its two lines of comment, no sample comes twice
SELECT DISTINCT l FROM regexp_split_to_table(rtrim(migrate_metrics(), E'\n'), '\n') r (l)
WHERE l !~ '^# (HELP [a-z_]+ .+|TYPE [a-z_]+ gauge)$'
  AND l !~ '^[a-z_]+\{[a-z]+="([^"\\]|\\["\\n])*"(,[a-z]+="([^"\\]|\\["\\n])*")*\} -?[0-9.]+(e[-+]?[0-9]+)?$';
SELECT s.metric FROM migrate._metric_samples() s
WHERE NOT EXISTS (SELECT FROM migrate._metric_names() n WHERE n.metric = s.metric);
SELECT s.metric, s.labels FROM migrate._metric_samples() s GROUP BY 1, 2 HAVING count(*) > 1;
SELECT count(DISTINCT place), count(DISTINCT metric), count(*) FROM migrate._metric_names();
SELECT migrate_drop_job(E'night\nly');
DROP SCHEMA mx CASCADE;
DROP SERVER metrics_server;
DROP EXTENSION file_fdw;
