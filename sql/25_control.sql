/*
 * The C side of control: live counters, and starting and waking job workers.
 */
CREATE FUNCTION migrate._live_workers(
	OUT job_id int, OUT slot int, OUT pid int, OUT role text, OUT phase text,
	OUT chunk_id bigint, OUT source_id int, OUT "rows" bigint, OUT bytes bigint,
	OUT chunk_rows bigint, OUT chunk_bytes bigint, OUT chunks bigint,
	OUT dead bigint, OUT memory bigint, OUT started timestamptz,
	OUT changed timestamptz, OUT errors int, OUT error_since timestamptz,
	OUT sqlstate text, OUT last_error text, OUT throttle text,
	OUT step_id int, OUT steps bigint, OUT verified bigint)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT ROWS 8 SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_live_workers';
COMMENT ON FUNCTION migrate._live_workers() IS
	'the workers of the jobs that the caller may see, from their shared memory';

CREATE FUNCTION migrate._launch(job_id int) RETURNS boolean
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_launch';
COMMENT ON FUNCTION migrate._launch(int) IS
	'make sure that a job worker lives: wake it at commit, or start one that waits for this transaction; false when there is no free worker slot';

CREATE FUNCTION migrate._wake(job_id int, cancel boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_wake';
COMMENT ON FUNCTION migrate._wake(int, boolean) IS
	'wake the job worker when this transaction commits, and with cancel end the chunk or step that it does by itself; false when none lives';

CREATE FUNCTION migrate._wait(job text, state text, timeout interval) RETURNS text
LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_wait';
COMMENT ON FUNCTION migrate._wait(text, text, interval) IS
	'the C side of migrate_wait';
