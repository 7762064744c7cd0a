--
-- Views: figures from known rows
--
\set SHOW_CONTEXT never
CREATE EXTENSION file_fdw;
CREATE SERVER views_server FOREIGN DATA WRAPPER file_fdw;
CREATE SCHEMA v;
CREATE FOREIGN TABLE v.big (id int, name text) SERVER views_server OPTIONS (filename '/dev/null');
CREATE FOREIGN TABLE v.small (id int) SERVER views_server OPTIONS (filename '/dev/null');
CREATE FOREIGN TABLE v.waiting (id int) SERVER views_server OPTIONS (filename '/dev/null');
CREATE TABLE v.big_t (id int PRIMARY KEY, name text);
CREATE TABLE v.big_copy (id int PRIMARY KEY, name text);
CREATE TABLE v.small_t (id int PRIMARY KEY);
CREATE TABLE v.waiting_t (id int PRIMARY KEY);
SELECT migrate_create_job('views', 'views_server') > 0 AS made;
SELECT migrate_add_table('views', 'v.big', 'v.big_t', key => '{"id": "id"}');
SELECT migrate_add_table('views', 'v.big', 'v.big_copy', key => '{"id": "id"}');
SELECT migrate_add_table('views', 'v.small', 'v.small_t', key => '{"id": "id"}');
SELECT migrate_add_table('views', 'v.waiting', 'v.waiting_t', key => '{"id": "id"}');

-- before the start
SELECT job, source, target, state, paused, table_state, rows_done, rows_estimate, percent, rows_per_second, eta, bar, workers, dead_letters, throttle, last_error
FROM migrate.progress;

-- half way: 3 of 10 chunks; one table done; one dead letter
UPDATE migrate.source_table SET state = 'copying', plan_no = 1, estimated_rows = 1000, estimated_bytes = 10000 WHERE source = 'v.big';
UPDATE migrate.source_table SET state = 'done', plan_no = 1, estimated_rows = 7, estimated_bytes = 70 WHERE source = 'v.small';
INSERT INTO migrate.leaf (job_id, source_id, leaf_no, weight, relation, chunk_size) SELECT job_id, source_id, 1, 0, source, 100 FROM migrate.source_table;
INSERT INTO migrate.chunk (job_id, source_id, leaf_no, plan_no, key_lo, key_hi, state, rows_read, bytes_read, started_at, finished_at)
SELECT s.job_id, s.source_id, 1, 1, nullif(ARRAY[g * 100 - 100], '{0}')::text[], ARRAY[g * 100]::text[], 'done', 100, 1000,
	   now() - interval '1 h', now() - interval '1 h' + interval '2 s'
FROM migrate.source_table s, generate_series(1, 3) g WHERE s.source = 'v.big';
INSERT INTO migrate.chunk (job_id, source_id, leaf_no, plan_no, state, rows_read, bytes_read, started_at, finished_at)
SELECT s.job_id, s.source_id, 1, 1, 'done', 9, 90, '2026-01-01', '2026-01-01 00:00:03' FROM migrate.source_table s WHERE s.source = 'v.small';
INSERT INTO migrate.chunk (job_id, source_id, leaf_no, plan_no, block_lo, block_hi, state, attempt, last_error)
SELECT s.job_id, s.source_id, 1, 1, 7, NULL, 'todo', 2, 'connection lost' FROM migrate.source_table s WHERE s.source = 'v.big';
-- of a plan that was discarded: counts for nothing
INSERT INTO migrate.chunk (job_id, source_id, leaf_no, plan_no, state, rows_read, bytes_read)
SELECT s.job_id, s.source_id, 1, 0, 'done', 5000, 5000 FROM migrate.source_table s WHERE s.source = 'v.big';
INSERT INTO migrate.dead_letter (job_id, mapping_id, stage, key, source_row, sqlstate, message)
SELECT m.job_id, m.mapping_id, 'map', '{"id": "5"}', '{"id": 5, "name": "x"}', '22012', 'division by zero'
FROM migrate.mapping m WHERE m.target = 'v.big_t';
SELECT job, source, target, table_state, rows_done, rows_estimate, bytes_done, bytes_estimate, percent, rows_per_second, eta, bar, workers, dead_letters, last_error
FROM migrate.progress;
SELECT job, source, relation, range, state, attempt, rows_read, duration, last_error, outdated FROM migrate.chunks ORDER BY chunk_id;
SELECT job, target, stage, state, key, source_row, sqlstate, message, attempts, source FROM migrate.dead_letters;
SELECT * FROM migrate.workers;

-- an estimate never shows 100 before the end
UPDATE migrate.source_table SET estimated_rows = 10 WHERE source = 'v.big';
SELECT DISTINCT percent, bar, eta FROM migrate.progress WHERE source = 'v.big';
-- and without one there is none
UPDATE migrate.source_table SET estimated_rows = NULL WHERE source = 'v.big';
SELECT DISTINCT percent, bar, eta FROM migrate.progress WHERE source = 'v.big';
-- paused, with the reason
UPDATE migrate.job SET wanted = 'pause', pause_reason = 'too many dead letters' WHERE job = 'views';
SELECT DISTINCT paused, throttle FROM migrate.progress WHERE job = 'views';
UPDATE migrate.job SET wanted = 'stop', pause_reason = NULL WHERE job = 'views';

-- steps after the copy: of one mapping, none of the others
INSERT INTO migrate.post_step (job_id, mapping_id, kind, object, ddl, phase, state, sqlstate, error)
SELECT m.job_id, m.mapping_id, s.kind, s.object, '', s.phase, s.state, s.sqlstate, s.error
FROM migrate.mapping m, (VALUES ('key', 'big_pkey', 10, 'done', NULL, NULL), ('index', 'big_a', 10, 'running', NULL, NULL),
	('index', 'big_b', 10, 'running', NULL, NULL), ('check', 'big_c', 20, 'failed', '23514', 'some row violates it'),
	('comment', 'big', 50, 'skipped', NULL, NULL), ('vacuum', 'v.big_t', 60, 'todo', NULL, NULL)) s (kind, object, phase, state, sqlstate, error)
WHERE m.target = 'v.big_t';
SELECT target, percent, steps, steps_done, steps_failed, building, last_error FROM migrate.progress;

INSERT INTO migrate.validation_run (job_id, mapping_id, level, source_rows, target_rows, matched, mismatches, status, duration)
SELECT m.job_id, m.mapping_id, 'full', 9, 8, false, 1, 'differs', '1 s' FROM migrate.mapping m WHERE m.target = 'v.small_t';
INSERT INTO migrate.difference (validation_id, job_id, kind, key, columns, source_row)
SELECT v.validation_id, v.job_id, 'missing_in_target', '{"id": "9"}', NULL, '{"id": 9}' FROM migrate.validation_run v;
SELECT job, source, target, level, source_rows, target_rows, matched, mismatches, status, duration FROM migrate.validation;
SELECT job, target, kind, key, columns, source_row, target_row, dead_letter FROM migrate.differences;
SELECT job, level, kind, message, detail FROM migrate.events WHERE job = 'views' ORDER BY event_id;

SELECT migrate_drop_job('views');
SELECT count(*) FROM migrate.progress;
DROP SCHEMA v CASCADE;
DROP SERVER views_server;
DROP EXTENSION file_fdw;
