/*
 * Live capture: streams of changes, what they have spooled, and how far each
 * job has applied it.
 *
 * A stream is one slot and one publication on a source, read once for all jobs
 * of one owner on one foreign server (P20).  Its changes are kept as raw
 * messages in segments, tables migrate.spool_<stream>_<segment> that are made
 * and dropped as the stream goes on.
 */
CREATE TABLE migrate.stream (
	stream_id	int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	server		oid NOT NULL,
	owner		oid NOT NULL,
	publication text NOT NULL,
	slot		text NOT NULL,
	-- the DBA made them; they are not dropped
	own_publication boolean NOT NULL DEFAULT false,
	own_slot	boolean NOT NULL DEFAULT false,
	-- new: the slot is not there yet; running; lost: it is not ours any more
	state		text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'running', 'lost')),
	-- counts the slots that were made (migrate_resync)
	generation	int NOT NULL DEFAULT 0,
	-- of the source when the slot was made
	system_identifier text,
	timeline	int,
	encoding	text,
	-- the slot's consistent point: what commits after it is in the stream
	start_lsn	pg_lsn,
	-- the capture worker's dynamic shared memory, 0 when none is alive
	shm_handle	bigint NOT NULL DEFAULT 0,
	last_error	text,
	last_sqlstate text,
	last_error_at timestamptz,
	UNIQUE (server, owner)
);
COMMENT ON TABLE migrate.stream IS 'one row a stream of changes: publication and slot on a source, shared by the jobs of one owner on one server';

/*
 * Everything that committed on the source before spooled_lsn is in the spool.
 * Changes with every flush: apart, so that its row stays small and in place.
 */
CREATE TABLE migrate.stream_position (
	stream_id	int PRIMARY KEY REFERENCES migrate.stream ON DELETE CASCADE,
	spooled_lsn pg_lsn NOT NULL,
	spooled_seq bigint NOT NULL DEFAULT 0,
	commit_at	timestamptz,		-- source time of the last commit in the spool
	commit_lsn	pg_lsn				-- and where its record begins
) WITH (fillfactor = 10);
COMMENT ON TABLE migrate.stream_position IS 'up to where the source''s changes are durably in the spool';

CREATE TABLE migrate.spool_segment (
	stream_id	int NOT NULL REFERENCES migrate.stream ON DELETE CASCADE,
	segment_no	int NOT NULL,
	relation	oid NOT NULL,
	first_seq	bigint NOT NULL,
	-- when it is full; null: it is being written
	last_seq	bigint,
	last_lsn	pg_lsn,
	bytes		bigint,
	created_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	sealed_at	timestamptz,
	PRIMARY KEY (stream_id, segment_no)
);
COMMENT ON TABLE migrate.spool_segment IS 'the tables that hold the raw messages of a stream, in order';

/*
 * The description of each source table as the stream gave it, with the row of
 * the spool that holds the message: what a reader must know that begins there.
 */
CREATE TABLE migrate.stream_relation (
	stream_id	int NOT NULL REFERENCES migrate.stream ON DELETE CASCADE,
	remote_oid	oid NOT NULL,
	seq			bigint NOT NULL,
	message		bytea NOT NULL,
	PRIMARY KEY (stream_id, remote_oid, seq)
);
COMMENT ON TABLE migrate.stream_relation IS 'relation messages of a stream by the place in the spool from which they hold';

CREATE TABLE migrate.job_stream (
	job_id		int PRIMARY KEY REFERENCES migrate.job ON DELETE CASCADE,
	stream_id	int NOT NULL REFERENCES migrate.stream,
	-- of the stream that the job has joined; another one: it needs a resync
	generation	int,
	-- every snapshot taken since "joined" sees what committed before start_lsn (P3)
	start_lsn	pg_lsn,
	joined		boolean NOT NULL DEFAULT false,
	-- a transaction id of the source then: what later ones do is in the stream
	boundary	xid8,
	-- from here on the target is the source's image at the applied position (P5)
	consistent_lsn pg_lsn,
	-- the re-check of conflicts from before consistent_lsn is over (P9)
	rechecked	boolean NOT NULL DEFAULT false
);
CREATE INDEX job_stream_stream ON migrate.job_stream (stream_id);
COMMENT ON TABLE migrate.job_stream IS 'one row a job that follows its source live: the stream it reads and where it may begin';

/*
 * Changes with every batch, in the transaction of its rows.
 */
CREATE TABLE migrate.apply_position (
	job_id		int PRIMARY KEY REFERENCES migrate.job ON DELETE CASCADE,
	-- end of the last source transaction that is applied
	applied_lsn pg_lsn NOT NULL,
	-- row of the spool in which the next one begins
	next_seq	bigint NOT NULL,
	commit_at	timestamptz,		-- source time of that last commit
	transactions bigint NOT NULL DEFAULT 0,
	changes		bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
COMMENT ON TABLE migrate.apply_position IS 'up to where each job has applied the source''s changes';

/*
 * What changed since is known from the spool: that is all that the last check
 * of a cutover has to look at.  Valid for one generation of the stream and one
 * plan of the table only.
 */
CREATE TABLE migrate.validated (
	mapping_id	int PRIMARY KEY REFERENCES migrate.mapping ON DELETE CASCADE,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	stream_id	int NOT NULL REFERENCES migrate.stream ON DELETE CASCADE,
	generation	int NOT NULL,
	plan_no		int NOT NULL,
	-- both sides were compared where this is the applied position
	source_lsn	pg_lsn NOT NULL,
	-- row of the spool in which the next source transaction begins, or one before
	seq			bigint NOT NULL,
	-- of migrate.validation_run; it may have been removed since
	validation_id bigint NOT NULL,
	validated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX validated_job ON migrate.validated (job_id);
CREATE INDEX validated_stream ON migrate.validated (stream_id);
COMMENT ON TABLE migrate.validated IS 'up to where in the stream each mapping was compared with its source; what changed since is in the spool';

ALTER TABLE migrate.stream ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON migrate.stream USING (pg_has_role(owner, 'USAGE'));

DO $$
DECLARE
	t text;
BEGIN
	FOREACH t IN ARRAY '{stream_position,spool_segment,stream_relation}'::text[]
	LOOP
		EXECUTE format('ALTER TABLE migrate.%I ENABLE ROW LEVEL SECURITY', t);
		EXECUTE format('CREATE POLICY own ON migrate.%I USING '
					   '(stream_id IN (SELECT s.stream_id FROM migrate.stream s))', t);
	END LOOP;
	FOREACH t IN ARRAY '{job_stream,apply_position,validated}'::text[]
	LOOP
		EXECUTE format('ALTER TABLE migrate.%I ENABLE ROW LEVEL SECURITY', t);
		EXECUTE format('CREATE POLICY own ON migrate.%I USING '
					   '(job_id IN (SELECT j.job_id FROM migrate.job j))', t);
	END LOOP;
END
$$;
