/*
 * Options of a job: one table defines them all, and everything else (checking
 * what a DBA gives, the values that workers read, the view) follows from it.
 *
 * job.options holds what the DBA gave, as he gave it.  Workers read canonical
 * text: durations in milliseconds, sizes in bytes, numbers as numbers.
 */
CREATE TABLE migrate.option_def (
	name		text PRIMARY KEY,
	type		text NOT NULL
				CHECK (type IN ('integer', 'number', 'size', 'duration',
								'boolean', 'choice', 'text')),
	-- of the canonical value
	unit		text,
	default_value text NOT NULL,
	changeable	text NOT NULL
				CHECK (changeable IN ('before start', 'while running')),
	-- of the canonical value; null is no limit
	min_value	numeric,
	max_value	numeric,
	choices		text[],
	-- the range in the DBA's words
	allowed		text NOT NULL,
	meaning		text NOT NULL
);
COMMENT ON TABLE migrate.option_def IS 'one row an option that a job can have; see the view migrate.options';

INSERT INTO migrate.option_def
	(name, type, unit, default_value, changeable, min_value, max_value, choices, allowed, meaning)
VALUES
	('capture', 'choice', NULL, 'auto', 'before start', NULL, NULL, '{auto,logical,none}', 'auto, logical, none',
	 'how changes on the source are followed; logical: by a replication slot, none: copy once, auto: logical where the source allows it'),
	('transport', 'choice', NULL, 'auto', 'before start', NULL, NULL, '{auto,copy,fdw}', 'auto, copy, fdw',
	 'how rows are read; auto: copy where the server supports it, else fdw'),
	('chunking', 'choice', NULL, 'auto', 'before start', NULL, NULL, '{auto,block,key,whole}', 'auto, block, key, whole',
	 'how a table is cut into chunks; auto: the fastest way that the server and the table support'),
	('content', 'choice', NULL, 'all', 'before start', NULL, NULL, '{all,definitions,data}', 'all, definitions, data',
	 'what is moved; definitions: tables and all that is on them, but no rows; data: rows and sequence values into tables that are there'),
	('indexes', 'choice', NULL, 'auto', 'before start', NULL, NULL, '{auto,all,none}', 'auto, all, none',
	 'who builds keys, indexes and constraints after the copy; auto: the job, on tables that it made; all: the job, also what tables that were there lack; none: the DBA'),
	('vacuum', 'choice', NULL, 'on', 'while running', NULL, NULL, '{on,analyze,off}', 'on, analyze, off',
	 'what is done to the targets after the copy; on: VACUUM (ANALYZE), analyze: ANALYZE alone, off: neither'),
	('workers', 'integer', NULL, '2', 'while running', 1, 64, NULL, '1 to 64',
	 'loaders that copy, and then build indexes, at the same time'),
	('chunk_time', 'duration', 'ms', '3s', 'while running', 1, 3600000, NULL, '1ms to 1h',
	 'how long the copy of one chunk should take; chunks grow and shrink towards it'),
	('chunk_rows', 'integer', 'rows', '50000', 'before start', 1, 1000000000, NULL, '1 to 1000000000',
	 'size of the first chunk of a table that is cut by key'),
	('chunk_blocks', 'integer', 'blocks', '4096', 'before start', 1, 2147483647, NULL, '1 to 2147483647',
	 'size of the first chunk of a table that is cut by blocks'),
	('batch_rows', 'integer', 'rows', '5000', 'while running', 1, 1000000, NULL, '1 to 1000000',
	 'most rows that are mapped and written at once'),
	('batch_bytes', 'size', 'bytes', '4MB', 'while running', 1024, 1073741824, NULL, '1kB to 1GB',
	 'most bytes that are mapped and written at once; one larger row is a batch of its own'),
	('fetch_size', 'integer', 'rows', '10000', 'while running', 1, 1000000, NULL, '1 to 1000000',
	 'rows fetched at once by the transport fdw'),
	('verify_writes', 'boolean', NULL, 'false', 'while running', NULL, NULL, NULL, 'true, false',
	 'whether rows are read back from the target, in the transaction that writes them, and compared with what the mapping gave; a difference pauses the job'),
	('max_dead_letters', 'integer', 'rows', '1000', 'while running', -1, 2147483647, NULL, '-1 (no limit) to 2147483647',
	 'open dead letters after which the job pauses'),
	('max_dead_ratio', 'number', NULL, '0.1', 'while running', 0, 1, NULL, '0 to 1',
	 'share of the rows read, judged after 10,000 rows, that may be dead letters before the job pauses'),
	('rows_per_second', 'integer', 'rows/s', '0', 'while running', 0, 9223372036854775807, NULL, '0 (no limit) or more',
	 'most rows read from the source a second, over all loaders'),
	('bytes_per_second', 'size', 'bytes/s', '0', 'while running', 0, 9223372036854775807, NULL, '0 (no limit) or more',
	 'most bytes read from the source a second, over all loaders'),
	('throttle_query', 'text', NULL, '', 'while running', NULL, NULL, NULL, 'a query that gives one number or boolean; empty: none',
	 'the copy holds while its value is above throttle_threshold (true counts as 1)'),
	('throttle_threshold', 'number', NULL, '0', 'while running', NULL, NULL, NULL, 'any number',
	 'see throttle_query'),
	('throttle_side', 'choice', NULL, 'target', 'while running', NULL, NULL, '{target,source}', 'target, source',
	 'the server that throttle_query runs on'),
	('throttle_interval', 'duration', 'ms', '5s', 'while running', 100, 3600000, NULL, '100ms to 1h',
	 'how often throttle_query runs'),
	('retry_time', 'duration', 'ms', '2min', 'while running', 0, 604800000, NULL, '0 to 7d',
	 'how long the same passing error (lost connection, lock time-out) is retried before the job is failed'),
	('retry_max_delay', 'duration', 'ms', '30s', 'while running', 10, 3600000, NULL, '10ms to 1h',
	 'longest pause between two tries'),
	('connect_timeout', 'duration', 'ms', '10s', 'while running', 1000, 3600000, NULL, '1s to 1h',
	 'longest wait for a connection to the source, in whole seconds'),
	('lock_timeout', 'duration', 'ms', '10s', 'while running', 0, 3600000, NULL, '0 (no limit) to 1h',
	 'longest wait for a lock on the target, after which the work is tried again later'),
	('digest', 'choice', NULL, 'auto', 'while running', NULL, NULL, '{auto,here,source,extension}', 'auto, here, source, extension',
	 'who computes the digests that validation compares; source: the source by its own hashes, extension: the source by this extension, where it is there, too, here: nobody but this server, auto: the source where it can'),
	('validate_every', 'duration', 'ms', '0', 'while running', 0, 315360000000, NULL, '0 (never) to 3650d',
	 'how often a job that follows its source live validates all of its targets by itself (level checksum)'),
	('validate_part_rows', 'integer', 'rows', '10000000', 'while running', 0, 1000000000000, NULL, '0 (keep nothing) to 10^12',
	 'rows that a validation compares before it keeps what it has found equal, so that one that is killed goes on from there'),
	('validate_resume', 'duration', 'ms', '1d', 'while running', 0, 315360000000, NULL, '0 (begin anew) to 3650d',
	 'how old what an interrupted validation has found equal may be for the next one to go on from there'),
	('publication', 'text', NULL, '', 'before start', NULL, NULL, NULL, 'a name; empty: the job makes one',
	 'a publication on the source, made by its owner, that publishes the job''s tables (capture logical)'),
	('slot', 'text', NULL, '', 'before start', NULL, NULL, NULL, 'a name; empty: the job makes one',
	 'a replication slot on the source, made by its owner with the plugin pgoutput (capture logical)'),
	('spool_limit', 'size', 'bytes', '10GB', 'while running', 1048576, 9223372036854775807, NULL, '1MB or more',
	 'changes kept here that a job has still to apply; beyond it no more are read, and the source keeps its WAL'),
	('spool_retention', 'duration', 'ms', '0', 'while running', 0, 315360000000, NULL, '0 (drop at once) to 3650d',
	 'how long changes are kept here after every job has applied them'),
	('spool_retention_size', 'size', 'bytes', '1GB', 'while running', 0, 9223372036854775807, NULL, '0 or more',
	 'most of such changes that are kept for spool_retention'),
	('changed_spool_size', 'size', 'bytes', '1GB', 'while running', 0, 9223372036854775807, NULL, '0 (keep none) or more',
	 'most of such changes that are kept back to the last validation, so that it is known which rows changed since (level changed, the last check of a cutover); beyond it whole tables are compared'),
	('max_source_wal', 'size', 'bytes', '0', 'while running', 0, 9223372036854775807, NULL, '0 (no limit) or more',
	 'WAL that the slot may hold back on the source; beyond it the slot is dropped and the job fails, to go on by migrate_resync'),
	('apply_rows', 'integer', 'rows', '50000', 'while running', 1, 10000000, NULL, '1 to 10000000',
	 'most changes that are applied at once when behind'),
	('apply_bytes', 'size', 'bytes', '16MB', 'while running', 1024, 1073741824, NULL, '1kB to 1GB',
	 'most bytes of changes that are applied at once when behind'),
	('apply_latency', 'duration', 'ms', '1s', 'while running', 1, 3600000, NULL, '1ms to 1h',
	 'how long one batch of changes should take to apply when behind'),
	('lag_alert', 'duration', 'ms', '5min', 'while running', 0, 315360000000, NULL, '0 (never) to 3650d',
	 'an alert is given when the target is further behind, or when nothing moves for so long though it should'),
	('new_home', 'text', NULL, '', 'while running', NULL, NULL, NULL, 'any text',
	 'where the tables are after the cutover, for the hint that writers to the source get'),
	('fence', 'choice', NULL, 'triggers', 'while running', NULL, NULL, '{triggers,external}', 'triggers, external',
	 'who keeps the application from writing to the source from the cutover on; triggers: the job, external: the DBA by other means, with hooks and gates of the phases fence and lift'),
	('fence_reads', 'boolean', NULL, 'false', 'while running', NULL, NULL, NULL, 'true, false',
	 'whether the source is not read any more either while it is fenced: SELECT is revoked there from all but the job''s role, and given back when the fence goes'),
	('fence_lock_timeout', 'duration', 'ms', '500ms', 'while running', 1, 60000, NULL, '1ms to 1min',
	 'how long one try to lock the source''s tables for the cutover may last, and a writer wait behind it'),
	('fence_timeout', 'duration', 'ms', '30s', 'while running', 0, 86400000, NULL, '0 (one try) to 1d',
	 'how long the cutover tries to lock the source''s tables, again and again, before it gives up'),
	('cutover_lag_timeout', 'duration', 'ms', '1min', 'while running', 0, 86400000, NULL, '0 to 1d',
	 'how long the cutover waits for the target to catch up before it fences the source'),
	('last_check', 'choice', NULL, 'changed', 'while running', NULL, NULL, '{changed,none}', 'changed, none',
	 'what a cutover compares before it opens the target; changed: the rows that changed since the last validation, before the fence and under it'),
	('gate_timeout', 'duration', 'ms', '5min', 'while running', 0, 86400000, NULL, '0 to 1d',
	 'how long a gate of the cutover waits for migrate_continue outside the pause'),
	('reverse', 'choice', NULL, 'auto', 'while running', NULL, NULL, '{auto,logical,trigger,none}', 'auto, logical, trigger, none',
	 'how what is written here after the cutover goes back to the source, from the next cutover on; logical: by decoding this server''s WAL, trigger: by triggers on the targets, none: not at all, auto: logical where wal_level is logical, else trigger'),
	('max_target_wal', 'size', 'bytes', '0', 'while running', 0, 9223372036854775807, NULL, '0 (no limit) or more',
	 'WAL that the slot of the way back may hold back here, or size of its queue; beyond it that is dropped and going back loses what was written here'),
	('event_retention', 'duration', 'ms', '30d', 'while running', 0, 315360000000, NULL, '0 (keep all) to 3650d',
	 'events older than this are removed'),
	('validation_retention', 'duration', 'ms', '30d', 'while running', 0, 315360000000, NULL, '0 (keep all) to 3650d',
	 'results of validations older than this are removed, with their differences; the newest of each target and level stays');

/*
 * The canonical text of a value, or an error that says what is expected.  A
 * bare number as a duration is seconds, as a size it is bytes.
 */
CREATE FUNCTION migrate._option_canonical(name text, value jsonb) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	def		migrate.option_def;
	given	text := $2 #>> '{}';
	form	text := jsonb_typeof($2);
	num		numeric;
	wanted	text;
BEGIN
	SELECT * INTO def FROM migrate.option_def d WHERE d.name = $1;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = format('unknown option "%s"', $1),
			HINT = format('Valid options are: %s. See the view migrate.options.',
						  (SELECT string_agg(d.name, ', ' ORDER BY d.name)
						   FROM migrate.option_def d));
	END IF;

	wanted := format('Option "%s" is %s%s; allowed: %s.', $1,
					 CASE def.type
						 WHEN 'integer' THEN 'an integer'
						 WHEN 'number' THEN 'a number'
						 WHEN 'size' THEN 'a size such as ''4MB'''
						 WHEN 'duration' THEN 'a duration such as ''3s'''
						 WHEN 'boolean' THEN 'a boolean'
						 WHEN 'choice' THEN 'one of a list'
						 ELSE 'text' END,
					 coalesce(', kept in ' || def.unit, ''), def.allowed);

	IF form NOT IN ('string', 'number', 'boolean') THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = format('invalid value for option "%s": %s', $1, $2), HINT = wanted;
	END IF;

	CASE def.type
		WHEN 'text' THEN
			IF form <> 'string' THEN
				RAISE EXCEPTION USING ERRCODE = '22023',
					MESSAGE = format('invalid value for option "%s": %s', $1, $2), HINT = wanted;
			END IF;
			RETURN given;
		WHEN 'choice' THEN
			IF lower(given) = ANY (def.choices) THEN
				RETURN lower(given);
			END IF;
			RAISE EXCEPTION USING ERRCODE = '22023',
				MESSAGE = format('invalid value for option "%s": "%s"', $1, given), HINT = wanted;
		ELSE
			BEGIN
				CASE def.type
					WHEN 'boolean' THEN
						RETURN (given::boolean)::text;
					WHEN 'size' THEN
						num := pg_size_bytes(given);
					WHEN 'duration' THEN
						num := round(extract(epoch FROM given::interval) * 1000);
					ELSE
						IF form = 'boolean' OR given IS NULL THEN
							RAISE invalid_text_representation;
						END IF;
						num := given::numeric;
						IF num IN ('NaN', 'Infinity', '-Infinity')
							OR (def.type = 'integer' AND num <> trunc(num)) THEN
							RAISE invalid_text_representation;
						END IF;
				END CASE;
			EXCEPTION WHEN data_exception THEN
				RAISE EXCEPTION USING ERRCODE = '22023',
					MESSAGE = format('invalid value for option "%s": "%s"', $1, given), HINT = wanted;
			END;
	END CASE;

	IF num < def.min_value OR num > def.max_value THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = format('value "%s" of option "%s" is out of range', given, $1), HINT = wanted;
	END IF;
	RETURN CASE WHEN def.type = 'number' THEN trim_scale(num) ELSE trunc(num) END::text;
END
$$;
COMMENT ON FUNCTION migrate._option_canonical(text, jsonb) IS
'the value of an option in canonical text: durations in ms, sizes in bytes. Errors: 22023 for an unknown option or a bad value';

/*
 * Errors unless "options" is an object of known options with good values.
 * With "merging", null takes an override out again.
 */
CREATE FUNCTION migrate._options_check(options jsonb, merging boolean) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	o	record;
BEGIN
	IF $1 IS NULL OR jsonb_typeof($1) <> 'object' THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = 'options must be a JSON object',
			HINT = 'Write for example ''{"workers": 4, "chunk_time": "3s"}''.';
	END IF;
	-- unknown names first: a misspelt name explains a strange value
	PERFORM migrate._option_canonical(e.key, '0')
	FROM jsonb_each($1) e
	WHERE e.key NOT IN (SELECT d.name FROM migrate.option_def d);
	FOR o IN SELECT e.key, e.value FROM jsonb_each($1) e ORDER BY e.key
	LOOP
		IF NOT (merging AND jsonb_typeof(o.value) = 'null') THEN
			PERFORM migrate._option_canonical(o.key, o.value);
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._options_check(jsonb, boolean) IS
'checks an options object; with merging, null values are allowed. Errors: 22023';

CREATE FUNCTION migrate._options_of(job_id int)
RETURNS TABLE (name text, value text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT d.name,
		   migrate._option_canonical(d.name,
									 coalesce(j.options -> d.name, to_jsonb(d.default_value)))
	FROM migrate.job j CROSS JOIN migrate.option_def d
	WHERE j.job_id = $1
$$;
COMMENT ON FUNCTION migrate._options_of(int) IS
'every option of a job with the value in effect, as canonical text (ms, bytes)';

CREATE FUNCTION migrate._option(job_id int, name text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT migrate._option_canonical(d.name,
									 coalesce(j.options -> d.name, to_jsonb(d.default_value)))
	FROM migrate.job j CROSS JOIN migrate.option_def d
	WHERE j.job_id = $1 AND d.name = $2
$$;
COMMENT ON FUNCTION migrate._option(int, text) IS
'the value of one option of a job in effect, as canonical text (ms, bytes); null when there is no such job or option';
