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

/*
 * What is asked of the source about a job's tables, as text, since C and SQL
 * both ask.  Every statement begins with the same list: schema, name, without
 * the tables that inherit from it.
 */
CREATE FUNCTION migrate._source_tables_sql(job_id int) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT 'SELECT x.s, x.t, x.only, c.oid, c.relkind, c.relreplident, c.relpersistence'
		   ' FROM (VALUES ' || string_agg(format('(%L::name, %L::name, %L::boolean)', s.remote_schema, s.remote_table, s.only_parent),
										  ', ' ORDER BY s.remote_schema, s.remote_table)
		   || ') x(s, t, only) JOIN pg_catalog.pg_namespace n ON n.nspname = x.s'
		   ' JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = x.t AND c.relkind IN (''r'', ''p'')'
	FROM (SELECT t.remote_schema, t.remote_table, bool_and(t.only_parent) AS only_parent
		  FROM migrate.source_table t
		  WHERE t.job_id = $1 AND t.remote_table IS NOT NULL
		  GROUP BY t.remote_schema, t.remote_table) s
$$;
COMMENT ON FUNCTION migrate._source_tables_sql(int) IS
	'query for the source: the tables that a job reads and that can be published; null when it reads none';

/*
 * The relations that changes are logged for: a table, its partitions or the
 * tables that inherit from it; with the index that identifies a row, null where
 * UPDATE and DELETE would be refused once it is published (P16).
 */
CREATE FUNCTION migrate._source_leaves_sql(job_id int) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT 'WITH RECURSIVE t AS (' || q || '), tree AS ('
		   'SELECT t.s, t.t, t.only, t.oid AS root, t.oid FROM t UNION '
		   'SELECT r.s, r.t, r.only, r.root, i.inhrelid FROM tree r JOIN pg_catalog.pg_inherits i ON i.inhparent = r.oid AND NOT r.only)'
		   ' SELECT r.s, r.t, r.oid, pg_catalog.format(''%I.%I'', n.nspname, c.relname) AS leaf, c.relreplident AS identity,'
		   ' c.relpersistence AS persistence, pg_catalog.pg_has_role(c.relowner, ''USAGE'') AS owned,'
		   ' (SELECT i.indexrelid FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate'
		   '  AND CASE c.relreplident WHEN ''d'' THEN i.indisprimary WHEN ''i'' THEN i.indisreplident ELSE false END LIMIT 1) AS index,'
		   ' (SELECT i.indexrelid FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate) AS deferrable'
		   ' FROM tree r JOIN pg_catalog.pg_class c ON c.oid = r.oid AND c.relkind = ''r'''
		   ' JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace'
	FROM migrate._source_tables_sql($1) q
$$;
COMMENT ON FUNCTION migrate._source_leaves_sql(int) IS
	'query for the source: the relations without partitions that a job''s tables consist of, and how their rows are identified in the change stream';

CREATE FUNCTION migrate._identity_missing_sql(job_id int) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT 'SELECT l.leaf, CASE WHEN l.deferrable IS NOT NULL AND l.identity = ''d'' THEN ''its primary key is deferrable'''
		   ' WHEN l.identity = ''n'' THEN ''its replica identity is NOTHING'''
		   ' WHEN l.identity = ''i'' THEN ''the index of its replica identity is not there or not usable'''
		   ' ELSE ''it has no primary key'' END AS why FROM (' || q || ') l'
		   ' WHERE l.identity <> ''f'' AND l.index IS NULL ORDER BY l.leaf'
	FROM migrate._source_leaves_sql($1) q
$$;
COMMENT ON FUNCTION migrate._identity_missing_sql(int) IS
	'query for the source: relations of a job whose UPDATE and DELETE would be refused there once they are published (P16), and why';

CREATE FUNCTION migrate._stream_leave(job_id int) RETURNS SETOF text
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_stream_leave';
COMMENT ON FUNCTION migrate._stream_leave(int) IS
	'take a job off its stream: the last one drops slot and publication on the source (not those that the DBA made) and the spool here, else tables that no other job reads leave the publication. Returns the statements for what could not be removed, with the reason as a notice; nothing when the job has no stream. Errors: 55006 the capture worker does not end';

CREATE FUNCTION migrate._spool_messages(stream_id int, seq bigint)
RETURNS TABLE (seq bigint, kind "char", message bytea)
LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_spool_messages';
COMMENT ON FUNCTION migrate._spool_messages(int, bigint) IS
	'the messages of a stream''s spool in commit order, from a row of it on, as the source sent them (manual, "Logical Replication Message Formats"). Errors: 55000 the row is not kept any more';
