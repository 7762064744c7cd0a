/*
 * The source as the definitions, which are SQL, see it.
 */
CREATE FUNCTION migrate._remote_query(server oid, sql text) RETURNS SETOF jsonb
	AS 'MODULE_PATHNAME', 'migrate_remote_query'
	LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp;
REVOKE ALL ON FUNCTION migrate._remote_query(oid, text) FROM PUBLIC;
COMMENT ON FUNCTION migrate._remote_query(oid, text) IS
	'internal: runs one read-only statement on a server behind postgres_fdw as the current user; each row is an object of column name to text value or null';
