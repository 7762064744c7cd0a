/*
 * Loading: what SQL needs of the C code that maps and writes rows.
 */
CREATE FUNCTION migrate._mapping_check(mapping_id int) RETURNS regclass[]
LANGUAGE C STRICT SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_mapping_check';
COMMENT ON FUNCTION migrate._mapping_check(int) IS
	'compile a mapping as the copy does, with its errors; the relations that it reads besides its source row';
