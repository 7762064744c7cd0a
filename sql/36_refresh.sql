/*
 * Reading the source's definitions again.  What was only added there is taken
 * over: the foreign table, targets that the job made, the mapping, the steps
 * after the copy.  What is gone or another now is named with the statements
 * that follow it, after which a second call takes over the rest: who knows
 * whether a column was renamed, or dropped and another one added.
 *
 * Each change is a subtransaction, so that one that fails is a row "to do"
 * with its error, and the others stand.
 */

/* What came of statements: null, or the error, and then nothing of them stays. */
CREATE FUNCTION migrate._attempt(statements text[]) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	s	text;
BEGIN
	FOREACH s IN ARRAY $1
	LOOP
		EXECUTE s;
	END LOOP;
	RETURN NULL;
EXCEPTION
	WHEN operator_intervention OR insufficient_resources OR transaction_rollback THEN
		RAISE;
	WHEN OTHERS THEN
		RETURN SQLERRM;
END
$$;
COMMENT ON FUNCTION migrate._attempt(text[]) IS
'runs statements, all or none of them; returns the error message, null when all went well';

/*
 * A row of the answer: statements taken over, or to do because they failed.
 */
CREATE FUNCTION migrate._take_over(thing text, what text, statements text[], afterwards text DEFAULT NULL,
								   OUT object text, OUT change text, OUT action text, OUT hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	error	text := migrate._attempt($3);
BEGIN
	object := $1;
	change := $2 || coalesce(': ' || error, '');
	action := CASE WHEN error IS NULL THEN 'taken over' ELSE 'to do' END;
	hint := CASE WHEN error IS NULL THEN $4 ELSE array_to_string($3, '; ') || ';' END;
END
$$;
COMMENT ON FUNCTION migrate._take_over(text, text, text[], text) IS
'runs the statements that follow a change of the source, and gives the row that migrate_refresh_schema shows for it';

/*
 * Enums: labels that were added get the same place here.
 */
CREATE FUNCTION migrate._refresh_enums(j migrate.job)
RETURNS TABLE (object text, change text, action text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	t		record;
	labels	text[];
	lost	text[];
	at		int;
	l		text;
	ddl		text;
BEGIN
	FOR t IN
		SELECT format('%I.%I', r ->> 'schema', r ->> 'name') AS name,
			   ARRAY(SELECT jsonb_array_elements_text((r ->> 'labels')::jsonb)) AS there,
			   h.labels AS here,
			   EXISTS (SELECT FROM migrate.made_object o
					   WHERE o.kind = 'type' AND o.object = format('%I.%I', r ->> 'schema', r ->> 'name')) AS made
		FROM migrate._remote_query($1.server, $q$
			SELECT n.nspname AS schema, t.typname AS name,
				   (SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid) AS labels
			FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
			WHERE t.typtype = 'e'
			ORDER BY 1, 2
		$q$) r
		JOIN pg_namespace n ON n.nspname = r ->> 'schema'
		JOIN pg_type y ON y.typnamespace = n.oid AND y.typname = r ->> 'name' AND y.typtype = 'e'
		CROSS JOIN LATERAL (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) AS labels
							FROM pg_enum e WHERE e.enumtypid = y.oid) h
		WHERE h.labels <> ARRAY(SELECT jsonb_array_elements_text((r ->> 'labels')::jsonb))
		  AND (r ->> 'schema' IN (SELECT k.source_schema FROM migrate.job_schema k WHERE k.job_id = $1.job_id)
			   OR EXISTS (SELECT FROM migrate.source_table s
						  JOIN pg_attribute a ON a.attrelid = s.foreign_table AND a.attnum > 0 AND NOT a.attisdropped
						  WHERE s.job_id = $1.job_id AND a.atttypid IN (y.oid, y.typarray)))
	LOOP
		labels := t.here;
		lost := ARRAY(SELECT h FROM unnest(t.here) h WHERE h <> ALL (t.there));
		FOR at IN 1 .. cardinality(t.there)
		LOOP
			l := t.there[at];
			CONTINUE WHEN l = ANY (labels);
			IF labels[at] = ANY (lost) AND cardinality(t.there) = cardinality(t.here) THEN
				object := format('type %s', t.name);
				change := format('value %L has the name %L there now', labels[at], l);
				action := 'to do';
				hint := format('ALTER TYPE %s RENAME VALUE %L TO %L;', t.name, labels[at], l);
				lost := array_remove(lost, labels[at]);
				RETURN NEXT;
				CONTINUE;
			END IF;
			ddl := format('ALTER TYPE %s ADD VALUE %L%s', t.name, l,
						  CASE WHEN at > 1 AND t.there[at - 1] = ANY (labels) THEN format(' AFTER %L', t.there[at - 1])
							   ELSE coalesce((SELECT format(' BEFORE %L', b.label)
											  FROM unnest(t.there[at + 1:]) WITH ORDINALITY b(label, pos)
											  WHERE b.label = ANY (labels) ORDER BY b.pos LIMIT 1), '') END);
			IF t.made THEN
				RETURN QUERY SELECT x.* FROM migrate._take_over(format('type %s', t.name), format('new value %L', l), ARRAY[ddl]) x;
			ELSE
				RETURN QUERY SELECT format('type %s', t.name), format('new value %L; no job made the type', l), 'to do', ddl || ';';
			END IF;
			labels := labels || l;
		END LOOP;
		RETURN QUERY
		SELECT format('type %s', t.name), format('value %L is not there any more', x), 'to do',
			   'Values of an enum cannot be dropped: rows that have it stay valid here. Nothing needs to be done for the copy.'
		FROM unnest(lost) x;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._refresh_enums(migrate.job) IS
'adds labels that enums of the source got since; what cannot be followed as rows "to do"';

/*
 * The clauses of a column that a made target gets, as on the source.  A
 * sequence goes by its name here.
 */
CREATE FUNCTION migrate._new_column(j migrate.job, name text, about jsonb, defaults boolean) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	expression text := $3 ->> 'default';
	s		jsonb;
BEGIN
	FOR s IN SELECT e FROM jsonb_array_elements(coalesce(nullif($3 -> 'sequences', 'null'), '[]')) e
	LOOP
		expression := replace(expression, quote_literal(format('%I.%I', s ->> 0, s ->> 1)) || '::regclass',
							  quote_literal(migrate._sequence_target($1, s ->> 0, s ->> 1)) || '::regclass');
	END LOOP;
	RETURN format('%I %s', $2, $3 ->> 'type')
		   || migrate._collate_clause(nullif($3 -> 'collation', 'null'))
		   || CASE WHEN $3 ->> 'generated' IN ('s', 'v') THEN format(' GENERATED ALWAYS AS (%s) STORED', expression)
				   WHEN $3 ->> 'identity' IN ('a', 'd') THEN
						format(' GENERATED %s AS IDENTITY', CASE $3 ->> 'identity' WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END)
				   WHEN expression IS NOT NULL AND $4 THEN ' DEFAULT ' || expression
				   ELSE '' END
		   || CASE WHEN ($3 ->> 'notnull')::boolean THEN ' NOT NULL' ELSE '' END;
END
$$;
COMMENT ON FUNCTION migrate._new_column(migrate.job, text, jsonb, boolean) IS
'a column as CREATE TABLE has it, from what _definition_query says of it; without its default when "defaults" is false';

/*
 * Columns of the foreign table that the source table has no more, each with
 * the column that it may have become.  A column that is added comes last, so
 * one that is new before others that stayed is one that was renamed; at the
 * end only the absence of dropped ones, or another type, tells.
 */
CREATE FUNCTION migrate._lost_columns(foreign_table oid, columns jsonb, dropped jsonb)
RETURNS TABLE (local_name text, renamed_to text, certain boolean)
LANGUAGE plpgsql STABLE ROWS 2
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	c		record;
	taken	text[] := '{}';
	dropped_last boolean;
BEGIN
	FOR c IN
		SELECT f.local_name, f.type, num IS NULL AS lost,
			   coalesce(max(num) OVER (ORDER BY f.attnum ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS after,
			   min(num) OVER (ORDER BY f.attnum ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING) AS before,
			   max(num) OVER () AS last
		FROM migrate._foreign_columns($1) f
		CROSS JOIN LATERAL (SELECT ($2 -> f.remote_name ->> 'num')::int AS num) n
		ORDER BY f.attnum
	LOOP
		CONTINUE WHEN NOT c.lost;
		local_name := c.local_name;
		dropped_last := EXISTS (SELECT FROM jsonb_array_elements_text($3) d WHERE d.value::int > coalesce(c.last, 0));
		SELECT n.key INTO renamed_to
		FROM jsonb_each($2) n
		WHERE n.key NOT IN (SELECT f.remote_name FROM migrate._foreign_columns($1) f)
		  AND n.key <> ALL (taken)
		  AND (n.value ->> 'num')::int > c.after
		  AND CASE WHEN c.before IS NOT NULL THEN (n.value ->> 'num')::int < c.before
				   ELSE NOT dropped_last OR n.value ->> 'type' = c.type END
		ORDER BY (n.value ->> 'num')::int
		LIMIT 1;
		certain := c.before IS NOT NULL OR NOT dropped_last;
		taken := taken || coalesce(ARRAY[renamed_to], '{}');
		RETURN NEXT;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._lost_columns(oid, jsonb, jsonb) IS
'columns of a foreign table that are not on the source any more, and the new column that each may be under another name; certain: it is no other column';

/*
 * The columns of all source tables.
 */
CREATE FUNCTION migrate._refresh_columns(j migrate.job, there jsonb)
RETURNS TABLE (object text, change text, action text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	again	text := format('SELECT migrate_refresh_schema(%L);', $1.job);
	s		record;
	c		record;
	m		record;
	ddl		text[];
	lacking	boolean;		-- a target does not have the new column
	filled	boolean;
	late_not_null text[];
	r		record;
	changed	boolean;
BEGIN
	FOR s IN
		SELECT t.source_id, t.source, t.foreign_table AS ft, migrate._name_of(t.foreign_table) AS ft_name, t.remote_schema, t.remote_table,
			   (d.o ->> 'columns')::jsonb AS columns, coalesce((d.o ->> 'dropped')::jsonb, '[]') AS dropped,
			   -- its columns are as the job imported them
			   EXISTS (SELECT FROM migrate.made_object o
					   WHERE o.kind = 'foreign table' AND o.object = migrate._name_of(t.foreign_table)) AS imported,
			   NOT EXISTS (SELECT FROM migrate.mapping x WHERE x.source_id = t.source_id AND x.kind <> 'identity') AS by_name,
			   EXISTS (SELECT FROM migrate.chunk k WHERE k.source_id = t.source_id AND k.state = 'done') AS copied,
			   (SELECT string_agg(x.target, ', ' ORDER BY x.target) FROM migrate.mapping x WHERE x.source_id = t.source_id) AS targets,
			   (SELECT min(x.target) FROM migrate.mapping x WHERE x.source_id = t.source_id) AS a_target
		FROM migrate.source_table t
		JOIN (SELECT DISTINCT ON (o ->> 'schema', o ->> 'name') o FROM jsonb_array_elements($2) o) d
			ON d.o ->> 'schema' = t.remote_schema AND d.o ->> 'name' = t.remote_table
		WHERE t.job_id = $1.job_id AND migrate._name_of(t.foreign_table) IS NOT NULL
		  AND (SELECT jsonb_object_agg(f.remote_name, f.type) FROM migrate._foreign_columns(t.foreign_table) f)
			  IS DISTINCT FROM (SELECT jsonb_object_agg(e.key, e.value ->> 'type') FROM jsonb_each((d.o ->> 'columns')::jsonb) e)
		-- a column of a parent goes to its children by itself
		ORDER BY EXISTS (SELECT FROM jsonb_each((d.o ->> 'columns')::jsonb) e WHERE (e.value ->> 'inherited')::boolean), t.source
	LOOP
		-- gone or under another name
		FOR c IN SELECT * FROM migrate._lost_columns(s.ft, s.columns, s.dropped)
		LOOP
			object := s.source;
			action := 'to do';
			change := CASE WHEN c.renamed_to IS NULL THEN format('column %I is dropped', c.local_name)
						   WHEN c.certain THEN format('column %I is %I now', c.local_name, c.renamed_to)
						   ELSE format('column %I is gone and %I is new: renamed, or dropped and another added', c.local_name, c.renamed_to) END;
			hint := concat_ws(' ',
				CASE WHEN c.renamed_to IS NOT NULL THEN
					CASE WHEN c.certain THEN '' ELSE 'Renamed: ' END
					|| (SELECT format('ALTER FOREIGN TABLE %s ALTER COLUMN %I OPTIONS (%s column_name %L); ALTER FOREIGN TABLE %1$s RENAME COLUMN %2$I TO %5$I;',
									  s.ft_name, a.attname, CASE WHEN a.attfdwoptions::text ~ 'column_name=' THEN 'SET' ELSE 'ADD' END, c.renamed_to, c.renamed_to)
						FROM pg_attribute a WHERE a.attrelid = s.ft AND a.attname = c.local_name)
					|| coalesce((SELECT string_agg(format(' ALTER TABLE %s RENAME COLUMN %I TO %I;', x.target, c.local_name, c.renamed_to), '')
								 FROM migrate.mapping x WHERE x.source_id = s.source_id AND x.kind = 'identity'), '') END,
				CASE WHEN c.renamed_to IS NULL OR NOT c.certain THEN
					CASE WHEN c.renamed_to IS NULL THEN '' ELSE 'Dropped: ' END
					|| format('ALTER FOREIGN TABLE %s DROP COLUMN %I;', s.ft_name, c.local_name)
					|| coalesce((SELECT string_agg(format(' ALTER TABLE %s DROP COLUMN %I;', x.target, c.local_name), '')
								 FROM migrate.mapping x WHERE x.source_id = s.source_id AND x.kind = 'identity'), '') END,
				CASE WHEN NOT s.by_name THEN 'Mend the mapping where it reads the column.' END,
				again);
			RETURN NEXT;
		END LOOP;

		-- another type
		changed := false;
		FOR c IN
			SELECT f.local_name, f.type AS old_type, s.columns -> f.remote_name ->> 'type' AS new_type,
				   migrate._type_fits(f.type, s.columns -> f.remote_name ->> 'type') AS fits
			FROM migrate._foreign_columns(s.ft) f
			WHERE s.imported AND s.columns -> f.remote_name ->> 'type' <> f.type
			ORDER BY f.attnum
		LOOP
			SELECT array_agg(format('ALTER TABLE %s ALTER COLUMN %I TYPE %s%s', x.target, c.local_name, c.new_type,
									CASE WHEN c.fits = 'wider' THEN '' ELSE format(' USING %I::%s', c.local_name, c.new_type) END)
							 ORDER BY x.mapping_id)
			INTO ddl
			FROM migrate.mapping x
			CROSS JOIN LATERAL (SELECT format_type(t.type_oid, t.typmod) AS type
								FROM migrate._columns_of(x.target_oid) t WHERE t.name = c.local_name) t
			WHERE x.source_id = s.source_id AND x.kind = 'identity'
			  -- one that the DBA chose may hold it as it is
			  AND (t.type = c.old_type OR migrate._type_fits(c.new_type, t.type) NOT IN ('same', 'wider'));
			ddl := format('ALTER FOREIGN TABLE %s ALTER COLUMN %I TYPE %s', s.ft_name, c.local_name, c.new_type) || coalesce(ddl, '{}');
			IF c.fits = 'wider' AND regexp_replace(c.old_type, '\(.*\)', '') = regexp_replace(c.new_type, '\(.*\)', '')
				AND NOT EXISTS (SELECT FROM migrate.mapping x WHERE x.source_id = s.source_id AND x.kind = 'identity' AND NOT x.created_target
								AND cardinality(ddl) > 1) AND s.by_name THEN
				SELECT * INTO r FROM migrate._take_over(s.source, format('column %I is %s now, it was %s', c.local_name, c.new_type, c.old_type), ddl);
				changed := changed OR r.action = 'taken over';
				RETURN QUERY SELECT r.object, r.change, r.action, r.hint;
			ELSE
				RETURN QUERY SELECT s.source, format('column %I is %s now, it was %s', c.local_name, c.new_type, c.old_type), 'to do',
					concat_ws(' ', array_to_string(ddl, '; ') || ';',
							  CASE WHEN s.by_name THEN NULL ELSE 'Mend the mapping where it reads the column.' END, again,
							  CASE WHEN s.copied THEN format('SELECT migrate_recopy(%L, %L);', $1.job, s.a_target) END);
			END IF;
		END LOOP;

		-- new
		FOR c IN
			SELECT n.key AS name, n.value AS about, (n.value ->> 'num')::int AS num
			FROM jsonb_each(s.columns) n
			WHERE s.imported
			  AND n.key NOT IN (SELECT f.remote_name FROM migrate._foreign_columns(s.ft) f)
			  AND n.key NOT IN (SELECT l.renamed_to FROM migrate._lost_columns(s.ft, s.columns, s.dropped) l WHERE l.renamed_to IS NOT NULL)
			ORDER BY (n.value ->> 'num')::int
		LOOP
			ddl := '{}';
			late_not_null := '{}';
			lacking := NOT s.by_name;
			FOR m IN SELECT * FROM migrate.mapping x WHERE x.source_id = s.source_id AND x.kind = 'identity' ORDER BY x.mapping_id
			LOOP
				CONTINUE WHEN EXISTS (SELECT FROM migrate._columns_of(m.target_oid) t WHERE t.name = c.name);
				lacking := lacking OR NOT m.created_target;
				EXECUTE format('SELECT EXISTS (SELECT FROM %s)', m.target) INTO filled;
				IF filled AND (c.about ->> 'notnull')::boolean AND c.about ->> 'default' IS NULL AND c.about ->> 'identity' = '' THEN
					late_not_null := late_not_null || format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', m.target, c.name);
					c.about := c.about || '{"notnull": "false"}';
				END IF;
				ddl := ddl || format('ALTER TABLE %s ADD COLUMN %s', m.target, migrate._new_column($1, c.name, c.about, true));
			END LOOP;
			ddl := ddl || format('ALTER FOREIGN TABLE %s ADD COLUMN %I %s OPTIONS (column_name %2$L)', s.ft_name, c.name, c.about ->> 'type');
			IF lacking THEN
				RETURN QUERY SELECT s.source, format('new column %I %s', c.name, c.about ->> 'type'), 'to do',
					CASE WHEN s.by_name THEN 'A target that the job did not make lacks it. '
						 ELSE 'The row that the mapping gets would change. ' END
					|| array_to_string(ddl, '; ') || '; ' || again;
				CONTINUE;
			END IF;
			SELECT * INTO r FROM migrate._take_over(s.source, format('new column %I %s', c.name, c.about ->> 'type'), ddl,
				CASE WHEN s.copied THEN format('Rows that were copied before have %s in it. SELECT migrate_recopy(%L, %L); copies them again.',
											   CASE WHEN c.about ->> 'generated' <> '' THEN 'what is computed here'
													WHEN c.about ->> 'identity' <> '' THEN 'new numbers'
													ELSE coalesce('the default ' || (c.about ->> 'default'), 'NULL') END,
											   $1.job, s.a_target) END);
			changed := changed OR r.action = 'taken over';
			RETURN QUERY SELECT r.object, r.change, r.action, r.hint;
			IF r.action = 'taken over' AND late_not_null <> '{}' THEN
				RETURN QUERY SELECT s.source, format('new column %I is NOT NULL there', c.name), 'to do',
					'When the rows are copied again: ' || array_to_string(late_not_null, '; ') || ';';
			END IF;
		END LOOP;
		IF changed THEN
			-- P2: what was planned is not what is read now; the watch looks anew
			UPDATE migrate.leaf l SET fingerprint = NULL WHERE l.source_id = s.source_id;
		END IF;

	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._refresh_columns(migrate.job, jsonb) IS
'takes over new columns and wider types of the source tables; there: rows of _definition_query. What cannot be followed as rows "to do"';

/*
 * What else may have changed in a column, for targets that are like the
 * source's.
 */
CREATE FUNCTION migrate._refresh_attributes(j migrate.job, there jsonb)
RETURNS TABLE (object text, change text, action text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	here	jsonb;
BEGIN
	EXECUTE format('SELECT coalesce(jsonb_agg(to_jsonb(q)), ''[]'') FROM (%s) q', (
		SELECT migrate._definition_query(coalesce(array_agg(n.nspname::text), '{}'), coalesce(array_agg(c.relname::text), '{}'))
		FROM migrate.mapping m
		JOIN migrate.made_relation k ON k.target_oid = m.target_oid AND NOT k.own_definition
		JOIN pg_class c ON c.oid = m.target_oid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE m.job_id = $1.job_id AND m.kind = 'identity')) INTO here;
	RETURN QUERY
	SELECT format('column %I of %s', c.key, m.target), d.detail, 'to do', d.hint
	FROM migrate.mapping m
	JOIN migrate.source_table s USING (source_id)
	JOIN (SELECT o ->> 'schema' AS schema, o ->> 'name' AS name, (o ->> 'columns')::jsonb AS columns
		  FROM jsonb_array_elements($2) o) a ON a.schema = s.remote_schema AND a.name = s.remote_table
	JOIN (SELECT format('%I.%I', o ->> 'schema', o ->> 'name') AS name, o -> 'columns' AS columns
		  FROM jsonb_array_elements(here) o) b ON b.name = m.target
	CROSS JOIN LATERAL jsonb_each(b.columns) c
	CROSS JOIN LATERAL migrate._column_differences(m.target, c.key, a.columns -> c.key, c.value) d
	WHERE m.job_id = $1.job_id AND m.kind = 'identity' AND a.columns ? c.key
	  AND d.hint ~ ' (SET|DROP) (NOT NULL|DEFAULT)'
	  -- what differs in name or type is told already, or meant
	  AND NOT EXISTS (SELECT FROM migrate.post_step p WHERE p.mapping_id = m.mapping_id AND p.kind = 'default' AND p.state <> 'done')
	ORDER BY m.target, (c.value ->> 'num')::int;
END
$$;
COMMENT ON FUNCTION migrate._refresh_attributes(migrate.job, jsonb) IS
'defaults and NOT NULL that differ between the source and targets that the job made like it, as rows "to do"';

/*
 * Mappings whose query is another now, and keys that are others.
 */
CREATE FUNCTION migrate._refresh_mappings(j migrate.job)
RETURNS TABLE (object text, change text, action text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	m		record;
	c		record;
BEGIN
	FOR m IN
		SELECT x.*, s.foreign_table
		FROM migrate.mapping x JOIN migrate.source_table s USING (source_id)
		WHERE x.job_id = $1.job_id
		  AND migrate._name_of(s.foreign_table) IS NOT NULL AND migrate._name_of(x.target_oid) IS NOT NULL
		ORDER BY x.target, x.mapping_id
	LOOP
		BEGIN
			SELECT * INTO c FROM migrate._compile(m.foreign_table, m.target_oid, m.mapping, m.columns, m.filter, m.search_path);
			CONTINUE WHEN c.query = m.query AND c.target_columns = m.target_columns;
			UPDATE migrate.mapping x SET query = c.query, target_columns = c.target_columns
			WHERE x.mapping_id = m.mapping_id;
			PERFORM migrate._mapping_check(m.mapping_id);
			UPDATE migrate.leaf l SET fingerprint = NULL WHERE l.source_id = m.source_id;
		EXCEPTION
			WHEN operator_intervention OR insufficient_resources OR transaction_rollback THEN
				RAISE;
			WHEN OTHERS THEN
				RETURN QUERY SELECT m.target, format('the mapping cannot be compiled any more: %s', SQLERRM), 'to do',
					format('Mend it%s, then SELECT migrate_refresh_schema(%L);',
						   CASE WHEN $1.state = 'defined' THEN ', or take it out with migrate_remove_table and add it anew' ELSE '' END, $1.job);
				CONTINUE;
		END;
		RETURN QUERY SELECT m.target, format('the mapping gives %s now', array_to_string(ARRAY(SELECT quote_ident(t) FROM unnest(c.target_columns) t), ', ')),
							'taken over', NULL::text;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._refresh_mappings(migrate.job) IS
'compiles the mappings of a job again; rows for those that became others, or cannot be compiled any more';

/*
 * Partitions that the source's tables got since, and those that they lost.
 */
CREATE FUNCTION migrate._refresh_partitions(j migrate.job)
RETURNS TABLE (object text, change text, action text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	roots	jsonb;
	there	jsonb;
	p		record;
	r		record;
	place	text;
	name	text;
BEGIN
	SELECT jsonb_agg(jsonb_build_object('s', k.remote_schema, 't', k.remote_table)) INTO roots
	FROM migrate.made_relation k JOIN pg_class c ON c.oid = k.target_oid AND c.relkind = 'p'
	WHERE k.job_id = $1.job_id AND k.target_oid = k.root_oid AND NOT k.own_definition;
	IF roots IS NULL THEN
		RETURN;
	END IF;
	SELECT coalesce(jsonb_agg(q), '[]') INTO there
	FROM migrate._remote_query($1.server, format($q$
		SELECT n.nspname AS root_schema, c.relname AS root, t.level,
			   pn.nspname AS parent_schema, pc.relname AS parent, kn.nspname AS schema, kc.relname AS name,
			   pg_get_expr(kc.relpartbound, kc.oid) AS bound, pg_get_partkeydef(kc.oid) AS key, kc.relpersistence AS persistence
		FROM unnest(%L::text[], %L::text[]) w(s, t)
		JOIN pg_namespace n ON n.nspname = w.s
		JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t AND c.relkind = 'p'
		CROSS JOIN LATERAL pg_partition_tree(c.oid) t
		JOIN pg_class kc ON kc.oid = t.relid JOIN pg_namespace kn ON kn.oid = kc.relnamespace
		JOIN pg_class pc ON pc.oid = t.parentrelid JOIN pg_namespace pn ON pn.oid = pc.relnamespace
		WHERE t.level > 0
	$q$, ARRAY(SELECT e ->> 's' FROM jsonb_array_elements(roots) WITH ORDINALITY x(e, pos) ORDER BY pos),
		 ARRAY(SELECT e ->> 't' FROM jsonb_array_elements(roots) WITH ORDINALITY x(e, pos) ORDER BY pos))) q;

	FOR p IN
		SELECT t.*, root.target_oid AS root_oid, n.nspname AS root_place,
			   here.target_oid AS here_oid, pg_get_expr(hc.relpartbound, hc.oid) AS here_bound,
			   m.target, s.state <> 'pending' AS planned
		FROM jsonb_array_elements(there) o
		CROSS JOIN LATERAL jsonb_to_record(o) AS t(root_schema text, root text, level int, parent_schema text, parent text,
												   schema text, name text, bound text, key text, persistence text)
		JOIN migrate.made_relation root ON root.job_id = $1.job_id AND root.target_oid = root.root_oid
			AND root.remote_schema = t.root_schema AND root.remote_table = t.root
		JOIN pg_class rc ON rc.oid = root.target_oid JOIN pg_namespace n ON n.oid = rc.relnamespace
		JOIN migrate.mapping m ON m.job_id = $1.job_id AND m.target_oid = root.target_oid
		JOIN migrate.source_table s ON s.source_id = m.source_id
		LEFT JOIN migrate.made_relation here ON here.job_id = $1.job_id AND here.root_oid = root.target_oid
			AND here.remote_schema = t.schema AND here.remote_table = t.name
		LEFT JOIN pg_class hc ON hc.oid = here.target_oid
		WHERE here.target_oid IS NULL OR pg_get_expr(hc.relpartbound, hc.oid) IS DISTINCT FROM t.bound
		ORDER BY t.root_schema, t.root, t.level, t.schema, t.name
	LOOP
		object := format('partition %I.%I of %I.%I', p.schema, p.name, p.parent_schema, p.parent);
		IF p.here_oid IS NOT NULL THEN
			RETURN QUERY SELECT object, CASE WHEN p.here_bound IS NULL THEN 'is no partition here any more'
											 ELSE format('is %s there, %s here', p.bound, p.here_bound) END, 'to do',
				concat_ws(' ',
					(SELECT format(CASE WHEN p.here_bound IS NULL THEN '' ELSE 'ALTER TABLE %1$s DETACH PARTITION %2$s; ' END
								   || 'ALTER TABLE %1$s ATTACH PARTITION %2$s %3$s;', migrate._name_of(k.target_oid), migrate._name_of(p.here_oid), p.bound)
					 FROM migrate.made_relation k
					 WHERE k.job_id = $1.job_id AND k.root_oid = p.root_oid AND k.remote_schema = p.parent_schema AND k.remote_table = p.parent),
					CASE WHEN p.planned THEN format('SELECT migrate_recopy(%L, %L);', $1.job, p.target) END);
			CONTINUE;
		END IF;
		SELECT coalesce(min(k.target_schema), CASE WHEN p.schema = p.root_schema THEN p.root_place::text ELSE p.schema END),
			   coalesce(min(k.rename ->> p.name), p.name)
		INTO place, name
		FROM migrate.job_schema k
		WHERE k.job_id = $1.job_id AND k.source_schema = p.schema;
		SELECT x.* INTO r FROM migrate._take_over(object, format('new, %s', p.bound),
			(SELECT CASE WHEN EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = place) THEN '{}'
						 ELSE ARRAY[format('SELECT migrate._make_schema(%s, %L, false)', $1.job_id, place)] END
				|| format('CREATE %sTABLE %I.%I PARTITION OF %s %s%s', CASE p.persistence WHEN 'u' THEN 'UNLOGGED ' ELSE '' END,
						  place, name, migrate._name_of(k.target_oid), p.bound, coalesce(' PARTITION BY ' || p.key, ''))
			 FROM migrate.made_relation k
			 WHERE k.job_id = $1.job_id AND k.root_oid = p.root_oid AND k.remote_schema = p.parent_schema AND k.remote_table = p.parent),
			CASE WHEN p.planned THEN format('The copy was planned without it: SELECT migrate_recopy(%L, %L);', $1.job, p.target) END) x;
		IF r.action = 'taken over' THEN
			INSERT INTO migrate.made_object (job_id, side, kind, object, temporary)
			VALUES ($1.job_id, 'target', 'table', format('%I.%I', place, name), false);
			INSERT INTO migrate.made_relation (target_oid, job_id, root_oid, remote_schema, remote_table)
			VALUES (to_regclass(format('%I.%I', place, name)), $1.job_id, p.root_oid, p.schema, p.name);
		END IF;
		RETURN QUERY SELECT r.object, r.change, r.action, r.hint;
	END LOOP;

	RETURN QUERY
	SELECT format('partition %I.%I', k.remote_schema, k.remote_table), 'is not there any more', 'to do',
		   format('DROP TABLE %s;', migrate._name_of(k.target_oid))
		   || CASE WHEN s.state <> 'pending' THEN format(' SELECT migrate_recopy(%L, %L);', $1.job, m.target) ELSE '' END
	FROM migrate.made_relation k
	JOIN pg_class c ON c.oid = k.target_oid
	JOIN migrate.mapping m ON m.job_id = k.job_id AND m.target_oid = k.root_oid
	JOIN migrate.source_table s ON s.source_id = m.source_id
	JOIN migrate.made_relation root ON root.target_oid = k.root_oid
	WHERE k.job_id = $1.job_id AND k.target_oid <> k.root_oid AND NOT k.own_definition
	  -- of a table that is gone as a whole, that is told
	  AND EXISTS (SELECT FROM jsonb_array_elements(there) o
				  WHERE o ->> 'root_schema' = root.remote_schema AND o ->> 'root' = root.remote_table)
	  AND NOT EXISTS (SELECT FROM jsonb_array_elements(there) o
					  WHERE o ->> 'root_schema' = root.remote_schema AND o ->> 'root' = root.remote_table
						AND o ->> 'schema' = k.remote_schema AND o ->> 'name' = k.remote_table)
	ORDER BY 1;
END
$$;
COMMENT ON FUNCTION migrate._refresh_partitions(migrate.job) IS
'makes partitions that the source tables of made targets got since; those that are gone or have other bounds as rows "to do"';

/*
 * Tables that are gone, tables that a schema got since, keys that changed.
 * there: rows of _remote_describe of the job's source tables.
 */
CREATE FUNCTION migrate._refresh_tables(j migrate.job, there jsonb)
RETURNS TABLE (object text, change text, action text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	k		migrate.job_schema;
	names	text[];
	error	text;
BEGIN
	RETURN QUERY
	SELECT s.source, 'the table is not there any more', 'to do',
		   CASE WHEN $1.state = 'defined'
				THEN (SELECT string_agg(format('SELECT migrate_remove_table(%L, %L);', $1.job, m.target), ' ' ORDER BY m.target)
					  FROM migrate.mapping m WHERE m.source_id = s.source_id)
				ELSE format('What was copied of it stays in %s. Renamed: ALTER FOREIGN TABLE %s OPTIONS (SET table_name ''...''); dropped: DROP TABLE here when it is not wanted, and a new job without it.',
							(SELECT string_agg(m.target, ', ' ORDER BY m.target) FROM migrate.mapping m WHERE m.source_id = s.source_id),
							migrate._name_of(s.foreign_table)) END
	FROM migrate.source_table s
	WHERE s.job_id = $1.job_id
	  AND NOT EXISTS (SELECT FROM jsonb_array_elements($2) o
					  WHERE o ->> 'remote_schema' = s.remote_schema AND o ->> 'remote_table' = s.remote_table)
	ORDER BY s.source;

	RETURN QUERY
	SELECT s.source, format('the key is (%s) now, it was (%s)', array_to_string(n.names, ', '), array_to_string(s.key_columns, ', ')), 'to do',
		   CASE WHEN $1.state = 'defined'
				THEN 'Take the table out with migrate_remove_table, drop the target if the job made it, and add it anew.'
				ELSE format('Change the keys of %s alike, then SELECT migrate_recopy(%L, %L);',
							(SELECT string_agg(m.target, ', ' ORDER BY m.target) FROM migrate.mapping m WHERE m.source_id = s.source_id), $1.job,
							(SELECT min(m.target) FROM migrate.mapping m WHERE m.source_id = s.source_id)) END
	FROM migrate.source_table s
	JOIN jsonb_array_elements($2) o ON o ->> 'remote_schema' = s.remote_schema AND o ->> 'remote_table' = s.remote_table
	CROSS JOIN LATERAL (SELECT ARRAY(SELECT jsonb_array_elements_text(migrate._key_of(s.foreign_table, o -> 'keys') -> 'columns')) AS names) n
	WHERE s.job_id = $1.job_id AND o ->> 'kind' IN ('r', 'p') AND migrate._name_of(s.foreign_table) IS NOT NULL
	  AND n.names <> s.key_columns
	ORDER BY s.source;

	FOR k IN SELECT * FROM migrate.job_schema x WHERE x.job_id = $1.job_id ORDER BY x.schema_id
	LOOP
		SELECT array_agg(t.name ORDER BY t.name) INTO names
		FROM migrate._remote_tables($1.server, k.source_schema) t
		WHERE t.kind IN ('r', 'p')
		  AND (CASE WHEN k.include IS NULL THEN NOT t.partition AND NOT t.extension
					WHEN t.partition OR t.extension THEN t.name = ANY (k.include)
					ELSE migrate._matches(t.name, k.include) END)
		  AND NOT migrate._matches(t.name, coalesce(k.exclude, '{}'))
		  -- another job on the server may have it
		  AND NOT EXISTS (SELECT FROM migrate.source_table s JOIN migrate.job o USING (job_id)
						  WHERE o.server = $1.server AND s.remote_schema = k.source_schema AND s.remote_table = t.name)
		  AND NOT EXISTS (SELECT FROM migrate.made_relation r
						  WHERE r.job_id = $1.job_id AND r.remote_schema = k.source_schema AND r.remote_table = t.name);
		CONTINUE WHEN names IS NULL;
		IF $1.state <> 'defined' THEN
			RETURN QUERY SELECT format('%I.%I', k.source_schema, n), 'new table', 'to do',
				format('The job has started; make another one: SELECT migrate_create_job(%L, %L); SELECT migrate_add_table(%1$L, %3$L, %4$L); SELECT migrate_start(%1$L);',
					   $1.job || '_2', (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = $1.server),
					   format('%I.%I', k.source_schema, n), format('%I.%I', k.target_schema, coalesce(k.rename ->> n, n)))
			FROM unnest(names) n;
			CONTINUE;
		END IF;
		-- what is mapped is skipped by it, so the names may well be patterns
		error := migrate._attempt(ARRAY[format('SELECT %s.migrate_add_schema(%L, %L, %L, include => %L, exclude => %L, search_path => %L, rename => %L, tablespace => %L)',
			'@extschema@', $1.job, k.source_schema, k.target_schema, names, k.exclude, k.search_path, nullif(k.rename, '{}'), k.tablespace)]);
		IF error IS NULL THEN
			-- one row a call of the DBA
			DELETE FROM migrate.job_schema x WHERE x.job_id = $1.job_id AND x.schema_id > k.schema_id
				AND x.source_schema = k.source_schema AND x.target_schema = k.target_schema AND x.include = names;
		END IF;
		RETURN QUERY SELECT format('%I.%I', k.source_schema, n), 'new table' || coalesce(': ' || error, ''),
			CASE WHEN error IS NULL THEN 'taken over' ELSE 'to do' END,
			CASE WHEN error IS NOT NULL THEN format('SELECT migrate_add_table(%L, %L, %L);', $1.job, format('%I.%I', k.source_schema, n),
													format('%I.%I', k.target_schema, coalesce(k.rename ->> n, n))) END
		FROM unnest(names) n;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._refresh_tables(migrate.job, jsonb) IS
'adds tables that schemas of a job got since, as long as it has not started; tables that are gone and keys that changed as rows "to do"';

/*
 * The steps after the copy, planned again: what comes and goes.
 */
CREATE FUNCTION migrate._refresh_steps(j migrate.job, before jsonb, last_mapping int)
RETURNS TABLE (object text, change text, action text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	error	text;
BEGIN
	error := migrate._attempt(ARRAY[format('SELECT migrate._plan_steps(j) FROM migrate.job j WHERE j.job_id = %s', $1.job_id)]);
	IF error IS NOT NULL THEN
		RETURN QUERY SELECT $1.job, 'the steps after the copy cannot be planned: ' || error, 'to do',
							format('Mend that, then SELECT migrate_refresh_schema(%L);', $1.job);
		RETURN;
	END IF;
	RETURN QUERY
	SELECT concat_ws(' ', x.kind, x.object, 'on ' || x.relation),
		   CASE WHEN x.ddl IS NULL THEN 'is not there any more'
				WHEN x.was IS NULL THEN 'new: ' || x.ddl
				ELSE 'is another now: ' || x.ddl END,
		   'taken over',
		   CASE WHEN x.ddl IS NOT NULL AND $1.state = 'copied' THEN format('SELECT migrate_retry_steps(%L); has it built.', $1.job) END
	FROM (SELECT coalesce(p.kind, b.value ->> 'kind') AS kind, coalesce(p.object, b.value ->> 'object') AS object,
				 coalesce(p.relation, b.value ->> 'relation') AS relation, p.ddl, b.value ->> 'ddl' AS was,
				 coalesce(p.step_id, b.key::int) AS step_id
		  FROM (SELECT * FROM migrate.post_step q
				WHERE q.job_id = $1.job_id AND coalesce(q.mapping_id, 0) <= $3) p
		  FULL JOIN jsonb_each($2) b ON b.key = p.step_id::text) x
	WHERE x.was IS DISTINCT FROM x.ddl AND x.kind NOT IN ('vacuum', 'sequences')
	ORDER BY x.step_id;
END
$$;
COMMENT ON FUNCTION migrate._refresh_steps(migrate.job, jsonb, int) IS
'plans the steps after the copy again; a row for each that is new, changed or not needed any more. before: the steps by their number, last_mapping: the last mapping, before the refresh began';

/*
 * Indexes and constraints that are built here and are gone on the source.
 */
CREATE FUNCTION migrate._refresh_built(j migrate.job, there jsonb)
RETURNS TABLE (object text, change text, action text, hint text)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
	WITH made AS (
		SELECT m.mapping_id, m.target, m.target_oid, o
		FROM migrate.mapping m
		JOIN migrate.source_table s USING (source_id)
		JOIN migrate.made_relation k ON k.target_oid = m.target_oid AND NOT k.own_definition
		JOIN jsonb_array_elements($2) o ON o ->> 'schema' = s.remote_schema AND o ->> 'name' = s.remote_table
		WHERE m.job_id = $1.job_id AND m.kind = 'identity'
		  AND EXISTS (SELECT FROM migrate.post_step p WHERE p.mapping_id = m.mapping_id AND p.state = 'done')
	), here AS (
		SELECT made.*, 'index' AS kind, c.relname AS name,
			   ARRAY[substr(pg_get_indexdef(c.oid), strpos(pg_get_indexdef(c.oid), ' USING '))] AS def,
			   format('DROP INDEX %s;', migrate._name_of(c.oid)) AS hint
		FROM made JOIN pg_index i ON i.indrelid = made.target_oid JOIN pg_class c ON c.oid = i.indexrelid
		WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid)
		UNION ALL
		SELECT made.*, 'constraint', k.conname, NULL,
			   format('ALTER TABLE %s DROP CONSTRAINT %I;', made.target, k.conname)
		FROM made JOIN pg_constraint k ON k.conrelid = made.target_oid AND k.contype IN ('p', 'u', 'x', 'c', 'f') AND k.conparentid = 0
	)
	SELECT format('%s %I of %s', h.kind, h.name, h.target), 'is not on the source any more', 'to do', h.hint
	FROM here h
	WHERE NOT EXISTS (SELECT FROM jsonb_array_elements((h.o ->> 'indexes')::jsonb) i
					  WHERE i ->> 'name' = h.name OR (h.kind = 'index' AND i ->> 'def' = ANY (h.def)))
	  AND NOT EXISTS (SELECT FROM jsonb_array_elements((h.o ->> 'constraints')::jsonb) k WHERE k ->> 'name' = h.name)
	  -- the DBA may have more here; only what the job built
	  AND EXISTS (SELECT FROM migrate.post_step p WHERE p.mapping_id = h.mapping_id AND p.state = 'done'
				  AND strpos(p.ddl, quote_ident(h.name)) > 0)
	ORDER BY h.target, h.kind, h.name
$$;
COMMENT ON FUNCTION migrate._refresh_built(migrate.job, jsonb) IS
'indexes and constraints that the job built and that the source has no more, as rows "to do"; there: rows of _definition_query';

CREATE FUNCTION @extschema@.migrate_refresh_schema(job text)
RETURNS TABLE (object text, change text, action text, hint text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job := migrate._job($1, lock => true);
	last_made int := (SELECT coalesce(max(m.object_id), 0) FROM migrate.made_object m);
	last_mapping int := (SELECT coalesce(max(m.mapping_id), 0) FROM migrate.mapping m);
	steps	jsonb := (SELECT coalesce(jsonb_object_agg(p.step_id, to_jsonb(p)), '{}')
					  FROM migrate.post_step p WHERE p.job_id = j.job_id);
	k		record;
	part	text;
	there	jsonb;
	about	jsonb;
	rows_	jsonb := '[]';
	found	jsonb;
	error	text;
BEGIN
	IF j.state = 'finished' THEN
		RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = format('job "%s" is finished', j.job),
			HINT = 'Make another job.';
	ELSIF EXISTS (SELECT FROM migrate._live_workers() w WHERE w.job_id = j.job_id)
		OR (j.wanted = 'run' AND (SELECT s.works FROM migrate.job_state s WHERE s.state = j.state)) THEN
		RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = format('job "%s" is running', j.job),
			DETAIL = 'Its workers read the definitions that would change.',
			HINT = format('Pause it first: SELECT migrate_pause(%L); SELECT migrate_wait(%1$L, ''paused'');', j.job);
	ELSIF NOT migrate._is_postgres_fdw(j.server) THEN
		RAISE EXCEPTION USING ERRCODE = '0A000',
			MESSAGE = format('server "%s" has no catalogs to read again', (SELECT s.srvname FROM pg_foreign_server s WHERE s.oid = j.server)),
			HINT = 'Only sources behind postgres_fdw can be compared; alter the foreign tables by hand.';
	END IF;
	PERFORM migrate._require_user_mapping(j.server);

	-- types and sequences first, as columns need them
	SELECT coalesce(jsonb_agg(to_jsonb(r)), '[]') INTO rows_ FROM migrate._refresh_enums(j) r;
	SELECT coalesce(jsonb_agg(q), '[]') INTO there
	FROM migrate._remote_query(j.server, (
		SELECT migrate._definition_query(coalesce(array_agg(s.remote_schema), '{}'), coalesce(array_agg(s.remote_table), '{}'))
		FROM (SELECT DISTINCT t.remote_schema, t.remote_table FROM migrate.source_table t WHERE t.job_id = j.job_id) s)) q;
	FOR k IN
		SELECT format('SELECT migrate._import_schema_types(%s, %s, %L)', j.job_id, j.server, s.source_schema) AS statement,
			   format('types of schema %I', s.source_schema) AS what
		FROM (SELECT DISTINCT x.source_schema FROM migrate.job_schema x WHERE x.job_id = j.job_id) s
		UNION ALL
		SELECT format('SELECT migrate._import_types(%s, %s, %L, %L)', j.job_id, j.server, s.remote_schema, s.tables),
			   format('types of tables in schema %I', s.remote_schema)
		FROM (SELECT t.remote_schema, array_agg(t.remote_table ORDER BY t.remote_table) AS tables
			  FROM migrate.source_table t WHERE t.job_id = j.job_id GROUP BY 1) s
		UNION ALL
		SELECT format('SELECT migrate._import_sequences(j, %L, %L, %L, %L) FROM migrate.job j WHERE j.job_id = %s',
					  x.source_schema, x.target_schema, x.include, x.exclude, j.job_id),
			   format('sequences of schema %I', x.source_schema)
		FROM migrate.job_schema x WHERE x.job_id = j.job_id
	LOOP
		error := migrate._attempt(ARRAY[k.statement]);
		IF error IS NOT NULL THEN
			rows_ := rows_ || jsonb_build_object('object', k.what, 'change', error, 'action', 'to do',
												 'hint', format('Mend that, then SELECT migrate_refresh_schema(%L);', j.job));
		END IF;
	END LOOP;
	SELECT coalesce(jsonb_agg(jsonb_build_object('object', format('%s %s', m.kind, m.object), 'change', 'new', 'action', 'taken over', 'hint', NULL)
							  ORDER BY m.object_id), '[]')
	INTO found
	FROM migrate.made_object m WHERE m.job_id = j.job_id AND m.object_id > last_made AND m.kind <> 'schema';
	rows_ := rows_ || found;

	SELECT coalesce(jsonb_agg(to_jsonb(d)), '[]') INTO about
	FROM (SELECT array_agg(t.remote_schema) AS a, array_agg(t.remote_table) AS b
		  FROM migrate.source_table t WHERE t.job_id = j.job_id) n
	CROSS JOIN LATERAL migrate._remote_describe(j.server, n.a, n.b) d
	WHERE n.a IS NOT NULL;
	FOREACH part IN ARRAY '{tables($1\, $3),partitions($1),columns($1\, $2),mappings($1),steps($1\, $4\, $5),attributes($1\, $2),built($1\, $2)}'::text[]
	LOOP
		EXECUTE format('SELECT coalesce(jsonb_agg(to_jsonb(r)), ''[]'') FROM migrate._refresh_%s r', part) INTO found USING j, there, about, steps, last_mapping;
		rows_ := rows_ || found;
	END LOOP;
	-- a serial column's sequence goes with it
	FOR k IN SELECT x.source_schema, x.target_schema FROM migrate.job_schema x WHERE x.job_id = j.job_id
	LOOP
		PERFORM migrate._own_sequences(j, k.source_schema, k.target_schema);
	END LOOP;

	IF rows_ <> '[]' THEN
		PERFORM migrate._event(j.job_id, 'info', 'refresh',
			format('definitions read again: %s taken over, %s to do',
				   (SELECT count(*) FROM jsonb_array_elements(rows_) r WHERE r ->> 'action' = 'taken over'),
				   (SELECT count(*) FROM jsonb_array_elements(rows_) r WHERE r ->> 'action' = 'to do')), rows_);
	END IF;
	RETURN QUERY
	SELECT r ->> 'object', r ->> 'change', r ->> 'action', r ->> 'hint'
	FROM jsonb_array_elements(rows_) WITH ORDINALITY x(r, pos) ORDER BY pos;
END
$$;
COMMENT ON FUNCTION @extschema@.migrate_refresh_schema(text) IS
'reads the definitions of the source again and follows what was added there: columns, wider types, values of enums, types, sequences, partitions, tables of schemas taken as a whole (until the job starts), indexes and constraints. One row a change: object, change, action (taken over, or to do), hint = the statements that follow a change that is not made here, or what becomes of rows copied before. Calling it again takes over what was done by hand. Errors: 42704 unknown job, 55000 the job runs or is finished, 08001 source not reached, 0A000 the server is not behind postgres_fdw';
