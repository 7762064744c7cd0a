--
-- Options: what is listed, checked, kept and read back
--
\set SHOW_CONTEXT never
CREATE FOREIGN DATA WRAPPER options_fdw;
CREATE SERVER options_server FOREIGN DATA WRAPPER options_fdw;

SELECT name, type, unit, default_value, changeable, allowed FROM migrate.options;
-- every option says what it does, and its default is a value that it allows
SELECT name FROM migrate.options WHERE coalesce(meaning, '') = '';
SELECT name, migrate._option_canonical(name, to_jsonb(default_value)) FROM migrate.options;

SELECT migrate_create_job('o', 'options_server',
	'{"workers": 4, "chunk_time": "1.5s", "batch_bytes": "2MB", "max_dead_ratio": 0.25, "transport": "FDW"}') > 0 AS made;
SELECT name, value, changed FROM migrate.job_options WHERE job = 'o' AND changed;
SELECT o.name, o.value FROM migrate.job j, migrate._options_of(j.job_id) o
WHERE j.job = 'o' AND o.name IN ('workers', 'chunk_time', 'batch_bytes', 'max_dead_ratio', 'transport', 'retry_time')
ORDER BY 1;

-- alter merges, null takes an override out; forms of values
SELECT migrate_alter_job('o', '{"workers": "8", "chunk_time": null, "retry_time": 90, "bytes_per_second": 1048576, "max_dead_letters": -1, "throttle_query": "SELECT 1"}');
SELECT name, value FROM migrate.job_options WHERE job = 'o' AND changed;
SELECT migrate._option(job_id, 'retry_time') AS retry, migrate._option(job_id, 'chunk_time') AS chunk,
	   migrate._option(job_id, 'no_such') AS none FROM migrate.job WHERE job = 'o';

-- what is refused: an unknown name
SELECT migrate_alter_job('o', '{"worker": 4}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_create_job('o2', 'options_server', '{"wrokers": 4}');
\echo :LAST_ERROR_SQLSTATE
-- wrong types and ranges
SELECT migrate_alter_job('o', '{"workers": "many"}');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_alter_job('o', '{"workers": 1.5}');
SELECT migrate_alter_job('o', '{"workers": true}');
SELECT migrate_alter_job('o', '{"workers": 0}');
SELECT migrate_alter_job('o', '{"workers": [1]}');
SELECT migrate_alter_job('o', '{"chunk_time": "soon"}');
SELECT migrate_alter_job('o', '{"chunk_time": "2 days"}');
SELECT migrate_alter_job('o', '{"batch_bytes": "4 parsecs"}');
SELECT migrate_alter_job('o', '{"batch_bytes": "1 bytes"}');
SELECT migrate_alter_job('o', '{"max_dead_ratio": "NaN"}');
SELECT migrate_alter_job('o', '{"max_dead_ratio": 1.01}');
SELECT migrate_alter_job('o', '{"transport": "pigeon"}');
SELECT migrate_alter_job('o', '{"throttle_query": 1}');
SELECT migrate_create_job('o2', 'options_server', '{"workers": null}');
SELECT migrate_alter_job('o', '[1]');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_alter_job('o', NULL);
-- nothing of a refused change is kept
SELECT migrate_alter_job('o', '{"workers": 3, "transport": "pigeon"}');
SELECT value FROM migrate.job_options WHERE job = 'o' AND name = 'workers';

-- after the start
BEGIN;
SELECT migrate._set_state(job_id, 'preparing', 'test') FROM migrate.job WHERE job = 'o';
SAVEPOINT s;
SELECT migrate_alter_job('o', '{"workers": 5, "transport": "auto"}');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
-- the same value is no change
SELECT migrate_alter_job('o', '{"workers": 5, "transport": "fdw"}');
SELECT value FROM migrate.job_options WHERE job = 'o' AND name = 'workers';
ROLLBACK;

SELECT migrate_drop_job('o');
DROP SERVER options_server;
DROP FOREIGN DATA WRAPPER options_fdw;
