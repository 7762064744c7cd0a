/*
 * Proof that both sides are equal.  What each level can and cannot find:
 *
 *	count		rows of both sides.  Finds missing and surplus rows unless they
 *				balance; no changed value.
 *	checksum	every mapped row, every column that the mapping gives, as
 *				canonical text (1.0 and 1.00 differ, no collation has a say),
 *				by sums of 128-bit hashes a bucket of keys; rows of unequal
 *				buckets are found one by one.  Misses what collides in XXH3's
 *				128 bits: chance one in 10^38, no protection against intent.
 *	full		the same, and keeps both rows of each difference.
 *
 * No level sees target columns that the mapping does not give (defaults,
 * generated columns), nor target rows outside the mapping's "owns".
 */
CREATE FUNCTION @extschema@.migrate_validate(job text, target text DEFAULT NULL,
	level text DEFAULT 'checksum', OUT target text, OUT level text,
	OUT source_rows bigint, OUT target_rows bigint, OUT matched boolean,
	OUT mismatches bigint, OUT status text, OUT duration interval)
RETURNS SETOF record
LANGUAGE C SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'migrate_validate';
COMMENT ON FUNCTION @extschema@.migrate_validate(text, text, text) IS
	'compare each mapping''s source, mapped, with its target on a quiet source: level count, checksum or full; rows that differ (at most 1,000 a mapping) are in migrate.difference; error 42704 for an unknown job or target, 22023 for an unknown level';
