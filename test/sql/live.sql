--
-- Jobs that follow their source: the legal changes of state, and each wrong
-- call with its error, SQLSTATE and hint; views without a live job
--
\set SHOW_CONTEXT never
\getenv pghost PGHOST
\getenv pgport PGPORT
CREATE ROLE regress_live SUPERUSER LOGIN;
CREATE DATABASE migrate_live_src TEMPLATE template0 ENCODING 'UTF8';
\c migrate_live_src regress_live
CREATE TABLE t (id int PRIMARY KEY, v text);
\c regression regress_live
CREATE SERVER live_src FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host :'pghost', port :'pgport', dbname 'migrate_live_src');
CREATE USER MAPPING FOR regress_live SERVER live_src OPTIONS (user 'regress_live');

-- the states and the legal changes
SELECT state, works FROM migrate.job_state WHERE state IN ('indexing', 'copied', 'catching_up', 'streaming', 'finished') ORDER BY ord;
SELECT from_state, string_agg(to_state, ' ' ORDER BY to_state) AS to_states FROM migrate.transition
WHERE from_state IN ('indexing', 'catching_up', 'streaming', 'finished', 'failed', 'cancelled')
  AND to_state IN ('preparing', 'copying', 'indexing', 'copied', 'catching_up', 'streaming', 'finished', 'failed', 'cancelled')
GROUP BY from_state ORDER BY from_state;

-- finish and resync in the wrong state
SELECT migrate_create_job('live', 'live_src') > 0 AS made;
SELECT migrate_add_table('live', 'public.t', 'live.t') IS NOT NULL AS added;
CALL migrate_finish('nope');
\echo :LAST_ERROR_SQLSTATE
CALL migrate_finish('live');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_resync('nope');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_resync('live');
\echo :LAST_ERROR_SQLSTATE
UPDATE migrate.job SET capture = 'logical' WHERE job = 'live';
SELECT migrate_resync('live');
\echo :LAST_ERROR_SQLSTATE
UPDATE migrate.job SET capture = NULL WHERE job = 'live';

-- a state that is not reached like this
SELECT migrate._set_state(job_id, 'streaming', NULL) FROM migrate.job WHERE job = 'live';
\echo :LAST_ERROR_SQLSTATE

-- without live capture: copied, and finished
SELECT migrate_alter_job('live', '{"capture": "none"}');
SELECT migrate_start('live');
SELECT migrate_wait('live', 'copied', '60s');
SELECT capture FROM migrate.job WHERE job = 'live';
SELECT migrate_resync('live');
\echo :LAST_ERROR_SQLSTATE
CREATE VIEW live_depends AS SELECT * FROM live_src.t;
CALL migrate_finish('live');
SELECT state, wanted FROM migrate.job WHERE job = 'live';
SELECT level, message FROM migrate.events WHERE job = 'live' AND kind = 'finish';
DROP VIEW live_depends;
CALL migrate_finish('live');
SELECT to_regclass('live_src.t') IS NULL AS foreign_table_gone, to_regnamespace('live_src') IS NULL AS schema_gone;
SELECT count(*) FROM migrate.made_object o JOIN migrate.job USING (job_id) WHERE job = 'live' AND temporary;
SELECT migrate_start('live');
SELECT migrate_cancel('live');
\echo :LAST_ERROR_SQLSTATE
SELECT migrate_recopy('live', 'live.t');
\echo :LAST_ERROR_SQLSTATE

-- views
SELECT * FROM migrate.lag;
SELECT * FROM migrate.streams;
SELECT job, checkpoint_success, checkpoint_objective, apply_write_objective, lag_p50, lag_objective, "window"
FROM migrate.slo WHERE job = 'live';
SELECT migrate._histogram_quantile('{1}', 0.5), migrate._histogram_quantile('{0,1,0}', 1), migrate._histogram_quantile('{0,0,1}', 1),
	   migrate._histogram_quantile('{5,5,0}', 0.5), migrate._histogram_quantile('{5,5,0}', 0.51);

SELECT migrate_drop_job('live');
DROP SCHEMA live CASCADE;
DROP SERVER live_src CASCADE;
DROP DATABASE migrate_live_src;
