-- Segments of the spool and reading from them, without a source: rows are
-- written here by hand, as the capture worker would.
CREATE SERVER spool_src FOREIGN DATA WRAPPER postgres_fdw;
CREATE ROLE regress_spool_owner;
CREATE ROLE regress_spool_other;
SELECT migrate_grant('regress_spool_owner'), migrate_grant('regress_spool_other');
INSERT INTO migrate.stream (stream_id, server, owner, publication, slot, state) OVERRIDING SYSTEM VALUE
SELECT 901, s.oid, 'regress_spool_owner'::regrole, 'p', 's', 'running' FROM pg_foreign_server s WHERE s.srvname = 'spool_src'
RETURNING stream_id AS stream \gset
INSERT INTO migrate.stream_position (stream_id, spooled_lsn) VALUES (:stream, '0/100');
CREATE FUNCTION frame(message text) RETURNS bytea LANGUAGE sql
	AS $$ SELECT int4send(octet_length($1)) || convert_to($1, 'UTF8') $$;
CREATE FUNCTION put(stream int, segment int, seq bigint, VARIADIC messages text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('INSERT INTO migrate.spool_%s_%s (seq, commits, changes, bytes, data)
		SELECT $1, 1, 1, octet_length(d), d FROM (SELECT string_agg(public.frame(m), '''' ORDER BY o) AS d FROM unnest($2) WITH ORDINALITY u(m, o)) x',
		stream, segment) USING seq, messages;
END
$$;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO regress_spool_owner;

-- nothing there yet
SELECT * FROM migrate._spool_messages(:stream, 1);

SET ROLE regress_spool_owner;
INSERT INTO migrate.spool_segment (stream_id, segment_no, relation, first_seq) VALUES (:stream, 1, migrate._spool_add_segment(:stream, 1), 1);
SELECT put(:stream, 1, 1, 'Begin', 'Insert one', 'Commit');
SELECT put(:stream, 1, 2, 'Begin', '' || repeat('I', 10));
SELECT seq, kind, convert_from(message, 'UTF8') FROM migrate._spool_messages(:stream, 1);

-- over the border of a segment; a large message is packed, and comes back whole
UPDATE migrate.spool_segment SET last_seq = 2, bytes = 50, sealed_at = now() WHERE stream_id = :stream AND segment_no = 1;
INSERT INTO migrate.spool_segment (stream_id, segment_no, relation, first_seq) VALUES (:stream, 2, migrate._spool_add_segment(:stream, 2), 3);
SELECT put(:stream, 2, 3, 'I' || repeat('x', 3000000), 'Commit');
SELECT seq, kind, length(message), md5(message) = md5('I' || repeat('x', 3000000)) AS same FROM migrate._spool_messages(:stream, 2);
-- far more rows than are fetched at once
SELECT count(put(:stream, 2, g, 'Begin ' || g, 'Commit ' || g)) FROM generate_series(4, 3003) g;
SELECT count(*), min(seq), max(seq), sum(length(message)) FROM migrate._spool_messages(:stream, 4);
SELECT bool_and(convert_from(message, 'UTF8') = CASE kind WHEN 'B' THEN 'Begin ' ELSE 'Commit ' END || seq) AS in_order FROM migrate._spool_messages(:stream, 4);
SELECT count(*) FROM migrate._spool_messages(:stream, 3004);

-- what is not kept any more, what is missing, what is cut off
BEGIN;
SELECT migrate._spool_drop_segment(:stream, 1);
DELETE FROM migrate.spool_segment WHERE stream_id = :stream AND segment_no = 1;
SELECT to_regclass(format('migrate.spool_%s_1', :stream));
SELECT count(*) FROM migrate._spool_messages(:stream, 3);
\set VERBOSITY sqlstate
SELECT count(*) FROM migrate._spool_messages(:stream, 2);
ROLLBACK;
SELECT put(:stream, 2, 3005, 'a gap');
SELECT count(*) FROM migrate._spool_messages(:stream, 3000);
RESET ROLE;
DELETE FROM migrate.spool_segment WHERE stream_id = :stream AND segment_no = 2;
SET ROLE regress_spool_owner;
INSERT INTO migrate.spool_segment (stream_id, segment_no, relation, first_seq) VALUES (:stream, 3, migrate._spool_add_segment(:stream, 3), 3);
SELECT format('INSERT INTO migrate.spool_%s_3 (seq, commits, changes, bytes, data) VALUES (3, 0, 0, 6, %L)', :stream, '\x000000ff4142') \gexec
SELECT count(*) FROM migrate._spool_messages(:stream, 3);

-- another owner's stream is not there; and no table becomes a segment by its OID
SET ROLE regress_spool_other;
SELECT count(*) FROM migrate._spool_messages(:stream, 1);
SELECT migrate._spool_add_segment(:stream, 9);
SELECT migrate._spool_drop_segment(:stream, 1);
SELECT format('SELECT count(*) FROM migrate.spool_%s_1', :stream) \gexec
SET ROLE regress_spool_owner;
SELECT format('DELETE FROM migrate.spool_%s_1', :stream) \gexec
SELECT format('DROP TABLE migrate.spool_%s_1', :stream) \gexec
RESET ROLE;
UPDATE migrate.spool_segment SET relation = 'pg_authid'::regclass WHERE stream_id = :stream AND segment_no = 1;
SET ROLE regress_spool_owner;
SELECT count(*) FROM migrate._spool_messages(:stream, 1);
RESET ROLE;
SELECT count(*) FROM migrate._spool_messages(:stream, 1);
\set VERBOSITY default

-- the extension takes its segments along, and nobody else's rights reach them
SELECT c.relname ~ '^spool_\d+_1$' AS named, c.relrowsecurity, pg_get_userbyid(c.relowner) = current_user AS ours,
	   has_table_privilege('regress_spool_other', c.oid, 'SELECT') AS other, has_table_privilege('public', c.oid, 'SELECT') AS everybody
FROM pg_class c WHERE c.relname = format('spool_%s_1', :stream);
BEGIN;
SET LOCAL client_min_messages = error;
DROP EXTENSION migrate CASCADE;
SELECT count(*) FROM pg_class WHERE relname ~ format('^spool_%s_\d+$', :stream);
ROLLBACK;

SELECT migrate._spool_drop_segment(:stream, g) FROM generate_series(1, 3) g;
DELETE FROM migrate.stream WHERE stream_id = :stream;
DROP FUNCTION put(int, int, bigint, text[]), frame(text);
DROP OWNED BY regress_spool_owner, regress_spool_other;
DROP ROLE regress_spool_owner, regress_spool_other;
DROP SERVER spool_src;
