/*
 * Streams of changes: the segments of the spool, what stands in the way of
 * live capture, and leaving a stream.
 */
CREATE FUNCTION migrate._spool_add_segment(stream_id int, segment_no int) RETURNS oid
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_spool_add_segment';
COMMENT ON FUNCTION migrate._spool_add_segment(int, int) IS
	'make the table of a segment of a stream''s spool, which belongs to the extension''s owner and which the stream''s may read and insert into. Errors: 42704 no such stream of the caller';

CREATE FUNCTION migrate._spool_drop_segment(stream_id int, segment_no int) RETURNS void
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_spool_drop_segment';
COMMENT ON FUNCTION migrate._spool_drop_segment(int, int) IS
	'drop the table of a segment of a stream''s spool. Errors: 42704 no such stream of the caller';
