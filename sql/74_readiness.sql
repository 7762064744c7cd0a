/*
 * Whether a job's cutover may begin, and what going back would lose.
 */
CREATE FUNCTION migrate._readiness()
RETURNS TABLE (job_id int, go boolean, blockers text[], accepted text[], details jsonb)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	j		migrate.job;
BEGIN
	FOR j IN SELECT * FROM migrate.job x
			 WHERE x.capture = 'logical' AND x.state <> 'finished'
			 ORDER BY x.job_id
	LOOP
		-- one that is switched is listed for what is said of its way back
		IF j.state IN ('cut_over', 'cutting_over', 'rolling_back') THEN
			RETURN QUERY SELECT j.job_id, false, '{state}'::text[], '{}'::text[],
				jsonb_build_array(jsonb_build_object('name', 'state', 'detail', format('The job is %s.', j.state),
													 'hint', 'A cutover begins from state streaming.'));
			CONTINUE;
		END IF;
		-- what going back would lose is told before it is armed
		PERFORM migrate._plan_inverses(j.job_id);
		RETURN QUERY
		SELECT j.job_id, bool_and(b.name IS NULL OR a.reason IS NOT NULL),
			   coalesce(array_agg(DISTINCT b.name) FILTER (WHERE b.name IS NOT NULL AND a.reason IS NULL), '{}'),
			   coalesce(array_agg(DISTINCT b.name) FILTER (WHERE a.reason IS NOT NULL), '{}'),
			   coalesce(jsonb_agg(to_jsonb(b)) FILTER (WHERE b.name IS NOT NULL), '[]')
		FROM (SELECT 1) one
		LEFT JOIN LATERAL migrate._blockers(j) b ON true
		LEFT JOIN migrate.acceptance a ON a.job_id = j.job_id AND a.check_name = 'cutover' AND a.object = b.name;
	END LOOP;
END
$$;
COMMENT ON FUNCTION migrate._readiness() IS 'blockers of the cutover of every job that follows its source live';

CREATE VIEW migrate.readiness WITH (security_invoker = true) AS
	SELECT j.job, r.go, r.blockers, r.accepted,
		   p.pause AS predicted_pause, p.ended_at AS measured_at,
		   b.obstacles IS NULL AS rollback_possible,
		   coalesce('everything written here after the opening: ' || b.obstacles, l.lost) AS rollback_loses,
		   r.details, v.validated_at, v.changed_keys, v.not_known
	FROM migrate._readiness() r
	JOIN migrate.job j USING (job_id)
	LEFT JOIN LATERAL (SELECT c.pause, c.ended_at FROM migrate.cutover c
					   WHERE c.job_id = j.job_id AND c.direction = 'forward' AND c.pause IS NOT NULL AND c.error IS NULL
					   ORDER BY c.cutover_id DESC LIMIT 1) p ON true
	LEFT JOIN LATERAL (SELECT string_agg(o.object || ': ' || o.detail, '; ') AS obstacles
					   FROM migrate._reverse_obstacles(j.job_id) o) b ON true
	LEFT JOIN LATERAL (SELECT string_agg(format('%s of %s', array_to_string(i.lost, ', '), m.target), '; ') AS lost
					   FROM migrate.inverse i JOIN migrate.mapping m USING (mapping_id)
					   WHERE i.job_id = j.job_id AND i.lost <> '{}') l ON true
	LEFT JOIN LATERAL (SELECT CASE WHEN count(v.mapping_id) = count(*) THEN min(v.validated_at) END AS validated_at,
							  sum(c.keys)::bigint AS changed_keys,
							  array_agg(m.target ORDER BY m.target) FILTER (WHERE c.whole IS NOT NULL) AS not_known
					   FROM migrate._changed_since(j.job_id) c
					   JOIN migrate.mapping m USING (mapping_id)
					   LEFT JOIN migrate.validated v USING (mapping_id)
					   WHERE j.state = 'streaming') v ON true;
COMMENT ON VIEW migrate.readiness IS
'one row a job that follows its source live or is cut over: whether its cutover may begin, what blocks it, what was accepted (migrate_accept with check ''cutover''), the pause as the last rehearsal or cutover measured it, and what going back would lose; validated_at: since when all targets were compared, changed_keys: how many rows changed since, as the spool tells, not_known: targets that are compared whole. Asks the sources';
