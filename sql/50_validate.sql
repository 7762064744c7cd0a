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

/*
 * The hash of rows as the comparison takes it, for both sides: see
 * src/validate/digest.c.  A source that has this extension, too, and lets the
 * job's user call these, computes its own digests with them.
 */
CREATE FUNCTION migrate._digest_row(internal, bigint, int, int, bigint, VARIADIC "any") RETURNS internal
LANGUAGE C PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_row';
CREATE FUNCTION migrate._digest_combine(internal, internal) RETURNS internal
LANGUAGE C PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_combine';
CREATE FUNCTION migrate._digest_serialize(internal) RETURNS bytea
LANGUAGE C STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_serialize';
CREATE FUNCTION migrate._digest_deserialize(bytea, internal) RETURNS internal
LANGUAGE C STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_deserialize';
CREATE FUNCTION migrate._digest_final(internal) RETURNS bytea
LANGUAGE C PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_digest_final';
COMMENT ON FUNCTION migrate._digest_row(internal, bigint, int, int, bigint, VARIADIC "any") IS 'step of the aggregate migrate._digest';
COMMENT ON FUNCTION migrate._digest_combine(internal, internal) IS 'of the aggregate migrate._digest, for parallel queries';
COMMENT ON FUNCTION migrate._digest_serialize(internal) IS 'of the aggregate migrate._digest, for parallel queries';
COMMENT ON FUNCTION migrate._digest_deserialize(bytea, internal) IS 'of the aggregate migrate._digest, for parallel queries';
COMMENT ON FUNCTION migrate._digest_final(internal) IS 'result of the aggregate migrate._digest';

CREATE AGGREGATE migrate._digest(lo bigint, shift int, buckets int, key bigint, VARIADIC columns "any") (
	SFUNC = migrate._digest_row,
	STYPE = internal,
	FINALFUNC = migrate._digest_final,
	COMBINEFUNC = migrate._digest_combine,
	SERIALFUNC = migrate._digest_serialize,
	DESERIALFUNC = migrate._digest_deserialize,
	PARALLEL = SAFE
);
COMMENT ON AGGREGATE migrate._digest(bigint, int, int, bigint, VARIADIC "any") IS
	'rows and sums of row hashes (XXH3) of each bucket of keys, in network order; the bucket is (key >> shift) - lo, from 0 to buckets - 1, that of a null key is "buckets"';

CREATE FUNCTION migrate._hash(VARIADIC columns "any") RETURNS bigint
LANGUAGE C STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'migrate_hash_row';
COMMENT ON FUNCTION migrate._hash(VARIADIC "any") IS
	'64 bits of the hash (XXH3) of a row or key of these columns, as validation takes it';
