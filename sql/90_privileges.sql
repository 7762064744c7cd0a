/*
 * Nothing is for PUBLIC; migrate_grant() gives a role what the owner of a job
 * needs.  It goes by what belongs to the extension, so that later parts and
 * upgrades need no list here.
 */
CREATE FUNCTION migrate._members(class regclass) RETURNS SETOF oid
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT d.objid
	FROM pg_depend d
	JOIN pg_extension e ON e.oid = d.refobjid
	WHERE d.classid = $1 AND d.refclassid = 'pg_extension'::regclass
	  AND d.deptype = 'e' AND e.extname = 'migrate'
	ORDER BY d.objid
$$;
COMMENT ON FUNCTION migrate._members(regclass) IS
'objects of the extension that are listed in the given system catalog';

CREATE FUNCTION @extschema@.migrate_grant(role text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	r	record;
BEGIN
	IF NOT EXISTS (SELECT FROM pg_roles x WHERE x.rolname = $1) THEN
		RAISE EXCEPTION USING ERRCODE = '42704', MESSAGE = format('role "%s" does not exist', $1),
			HINT = 'Make it with CREATE ROLE.';
	END IF;
	EXECUTE format('GRANT USAGE ON SCHEMA migrate, %I TO %I', '@extschema@', $1);
	FOR r IN SELECT m::regprocedure AS name FROM migrate._members('pg_proc') m
	LOOP
		EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', r.name, $1);
	END LOOP;
	-- row security keeps owners apart; tables without it are for reading
	FOR r IN SELECT c.oid::regclass AS name, c.relkind, c.relrowsecurity
			 FROM migrate._members('pg_class') m JOIN pg_class c ON c.oid = m
			 WHERE c.relkind IN ('r', 'p', 'v') AND c.relnamespace = 'migrate'::regnamespace
	LOOP
		EXECUTE format('GRANT %s ON TABLE %s TO %I',
					   CASE WHEN r.relrowsecurity THEN 'SELECT, INSERT, UPDATE, DELETE' ELSE 'SELECT' END,
					   r.name, $1);
	END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_grant(text) IS
'gives a role what the owner of a job needs of this extension; to be called by a superuser or the extension''s owner, again after an upgrade. The role needs besides: USAGE on the foreign server, a user mapping, rights on its target tables, and CREATE on the database to have schemas made. Errors: 42704 no such role';

DO $$
DECLARE
	r	record;
BEGIN
	FOR r IN SELECT m::regprocedure AS name FROM migrate._members('pg_proc') m
	LOOP
		EXECUTE format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', r.name);
	END LOOP;
	REVOKE ALL ON SCHEMA migrate FROM PUBLIC;
	REVOKE ALL ON ALL TABLES IN SCHEMA migrate FROM PUBLIC;
END
$$;
