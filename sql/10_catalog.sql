/*
 * The catalog: every fact about a job is a row here and nowhere else, so that
 * a crash, a restart or a lost client changes nothing about where a job is.
 *
 * Every table has row security: a role sees the rows of the jobs whose owner
 * it is (or is a member of).  Nothing is granted to PUBLIC; see
 * migrate_grant().
 */
CREATE SCHEMA migrate;
COMMENT ON SCHEMA migrate IS 'jobs, checkpoints, dead letters and views of the migrate extension';

CREATE TABLE migrate.job (
	job_id		int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job			text NOT NULL UNIQUE CHECK (job <> ''),
	owner		oid NOT NULL,
	server		oid NOT NULL,
	options		jsonb NOT NULL DEFAULT '{}',
	state		text NOT NULL DEFAULT 'defined',
	-- how the source's changes are followed; decided when it starts
	capture		text CHECK (capture IN ('none', 'logical')),
	-- where a failed job goes on when it is resumed
	resume_state text,
	-- the wish: what the DBA asked for last
	wanted		text NOT NULL DEFAULT 'stop'
				CHECK (wanted IN ('stop', 'run', 'pause', 'cancel')),
	-- why it is paused, when a limit and not the DBA asked for it
	pause_reason text,
	-- the job worker's dynamic shared memory, 0 when none is alive
	shm_handle	bigint NOT NULL DEFAULT 0,
	last_error	text,
	last_sqlstate text,
	last_error_at timestamptz,
	created_at	timestamptz NOT NULL DEFAULT now(),
	started_at	timestamptz,
	ended_at	timestamptz
);
COMMENT ON TABLE migrate.job IS 'one row a job: its definition, its state, and what the DBA last asked of it';

/*
 * A relation that is read: one scan feeds all mappings of it.
 */
CREATE TABLE migrate.source_table (
	source_id	int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	-- as shown to the DBA: "schema.table" on the source, or the foreign table
	source		text NOT NULL,
	foreign_table oid NOT NULL,
	-- the table's names on the server, null where the wrapper has none
	remote_schema text,
	remote_table text,
	-- local column names of the key that identifies a source row, may be empty
	key_columns	text[] NOT NULL DEFAULT '{}',
	-- decided when the job prepares: 'copy' | 'fdw', 'block' | 'key' | 'whole'
	transport	text CHECK (transport IN ('copy', 'fdw')),
	method		text CHECK (method IN ('block', 'key', 'whole')),
	"binary"	boolean,
	-- pending: not planned; copying; replan: the table under the chunks was
	-- rewritten (P1); copied: every chunk is done; done: keys are built
	state		text NOT NULL DEFAULT 'pending'
				CHECK (state IN ('pending', 'copying', 'replan', 'copied', 'done')),
	-- counts the plans; a loader that works on an older plan cannot commit
	plan_no		int NOT NULL DEFAULT 0,
	-- read without the tables that inherit from it: they are targets themselves
	only_parent	boolean NOT NULL DEFAULT false,
	estimated_rows bigint,
	estimated_bytes bigint,
	UNIQUE (job_id, foreign_table)
);
COMMENT ON TABLE migrate.source_table IS 'one row a relation that a job reads';

/*
 * The parts a source table is read in: one a leaf partition, or one in all.
 * next_* is the point up to which chunks have been cut off (half-open).
 */
CREATE TABLE migrate.leaf (
	source_id	int NOT NULL REFERENCES migrate.source_table ON DELETE CASCADE,
	leaf_no		int NOT NULL,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	-- its size in blocks when it was planned: the largest is read first
	weight		bigint NOT NULL,
	-- quoted, schema-qualified name on the source; the foreign table for fdw
	relation	text NOT NULL,
	remote_oid	oid,
	remote_filenode oid,
	-- of its place and columns there when it was planned (P2)
	fingerprint	text,
	blocks		bigint,
	next_block	bigint NOT NULL DEFAULT 0,
	next_key	text[],
	-- blocks or rows that the next chunk takes; follows measured speed
	chunk_size	bigint NOT NULL,
	exhausted	boolean NOT NULL DEFAULT false,
	PRIMARY KEY (source_id, leaf_no)
);
-- a claim finds its leaf here, in order; none of its columns changes after
CREATE INDEX leaf_open ON migrate.leaf (job_id, weight DESC, source_id, leaf_no)
	WHERE NOT exhausted;
COMMENT ON TABLE migrate.leaf IS 'the physical parts of a source table and how far each has been cut into chunks';

CREATE TABLE migrate.mapping (
	mapping_id	int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	source_id	int NOT NULL REFERENCES migrate.source_table,
	target_oid	oid NOT NULL,
	-- format('%I.%I'), as shown everywhere
	target		text NOT NULL,
	kind		text NOT NULL CHECK (kind IN ('identity', 'columns', 'function')),
	mapping		oid,			-- the function of kind 'function'
	columns		jsonb,
	filter		text,
	-- target column -> source expression; null when a row cannot be identified
	key			jsonb,
	owns		text,
	reads		text[] NOT NULL DEFAULT '{}',
	-- settings under which the DBA's expressions are read and run, whoever
	-- runs them: those of the session that defined the mapping
	search_path	text NOT NULL,
	timezone	text NOT NULL DEFAULT current_setting('TimeZone'),
	datestyle	text NOT NULL DEFAULT current_setting('DateStyle'),
	-- target columns that the query gives, in its order
	target_columns text[] NOT NULL,
	-- SELECT <target columns> FROM source [WHERE filter]
	query		text NOT NULL,
	-- one source row may become several target rows
	many		boolean NOT NULL DEFAULT false,
	-- the target was made by this job
	created_target boolean NOT NULL DEFAULT false,
	-- rows removed as second copies of a row that moved between chunks (P10)
	doubles		bigint NOT NULL DEFAULT 0
);
CREATE INDEX mapping_source ON migrate.mapping (source_id);
CREATE UNIQUE INDEX mapping_target ON migrate.mapping (target_oid, (coalesce(owns, '')));
COMMENT ON TABLE migrate.mapping IS 'one row a mapping from a source table to a target table';

/*
 * One row a chunk that was cut off: 'todo' again after a crash, 'running',
 * 'done'.  attempt is counted before the work, so a crash is over-counted and
 * never missed; it is also the fencing token of the loader that works on it.
 */
CREATE TABLE migrate.chunk (
	chunk_id	bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	source_id	int NOT NULL,
	leaf_no		int NOT NULL,
	plan_no		int NOT NULL,
	-- half-open range of blocks or keys; null is an open end
	block_lo	bigint,
	block_hi	bigint,
	key_lo		text[],
	key_hi		text[],
	state		text NOT NULL DEFAULT 'running'
				CHECK (state IN ('todo', 'running', 'done')),
	attempt		int NOT NULL DEFAULT 1,
	worker_pid	int,
	rows_read	bigint,
	bytes_read	bigint,
	snapshot	text,			-- pg_current_snapshot() of the source
	source_lsn	pg_lsn,			-- insert position read after the snapshot
	started_at	timestamptz,
	finished_at	timestamptz,
	last_error	text,
	FOREIGN KEY (source_id, leaf_no) REFERENCES migrate.leaf ON DELETE CASCADE
);
CREATE INDEX chunk_todo ON migrate.chunk (job_id, chunk_id) WHERE state = 'todo';
CREATE INDEX chunk_running ON migrate.chunk (job_id) WHERE state = 'running';
CREATE INDEX chunk_leaf ON migrate.chunk (source_id, leaf_no);
COMMENT ON TABLE migrate.chunk IS 'checkpoints of the copy: a chunk''s rows and its ''done'' commit together';

/*
 * Conservation, a row a chunk and mapping: what was read is
 * mapped, filtered or dead.
 */
CREATE TABLE migrate.chunk_mapping (
	chunk_id	bigint NOT NULL REFERENCES migrate.chunk ON DELETE CASCADE,
	mapping_id	int NOT NULL REFERENCES migrate.mapping ON DELETE CASCADE,
	job_id		int NOT NULL,
	rows_read	bigint NOT NULL,
	rows_mapped	bigint NOT NULL,
	rows_filtered bigint NOT NULL,
	rows_dead	bigint NOT NULL,
	rows_written bigint NOT NULL,
	PRIMARY KEY (chunk_id, mapping_id),
	CONSTRAINT conservation CHECK (rows_read = rows_mapped + rows_filtered + rows_dead)
);
CREATE INDEX chunk_mapping_mapping ON migrate.chunk_mapping (mapping_id);
COMMENT ON TABLE migrate.chunk_mapping IS 'per chunk and mapping: rows read = mapped + filtered + dead';

CREATE TABLE migrate.dead_letter (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	mapping_id	int NOT NULL REFERENCES migrate.mapping ON DELETE CASCADE,
	chunk_id	bigint,
	stage		text NOT NULL CHECK (stage IN ('read', 'map', 'write', 'index', 'apply', 'back', 'late')),
	state		text NOT NULL DEFAULT 'open'
				CHECK (state IN ('open', 'replayed', 'superseded', 'discarded')),
	key			jsonb,			-- source key column -> text value
	source_row	jsonb,			-- null when the row could not be read
	raw			jsonb,			-- then: {"at": where, "columns": {name: "\\x.."}}
	sqlstate	text NOT NULL,
	message		text NOT NULL,
	detail		text,
	hint		text,
	context		text,
	mapping_version text,
	attempts	int NOT NULL DEFAULT 1,
	reason		text,			-- of a discard
	created_at	timestamptz NOT NULL DEFAULT now(),
	updated_at	timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letter_open ON migrate.dead_letter (mapping_id) WHERE state = 'open';
CREATE INDEX dead_letter_job ON migrate.dead_letter (job_id, state);
COMMENT ON TABLE migrate.dead_letter IS 'rows that could not be read, mapped or written, with what is needed to replay them';

/*
 * Schemas that a job takes over as a whole (migrate_add_schema): what
 * migrate_preflight lists as not moved, and migrate_refresh_schema looks
 * through again.
 */
CREATE TABLE migrate.job_schema (
	schema_id	int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	source_schema text NOT NULL,
	target_schema text NOT NULL,
	include		text[],
	exclude		text[],
	rename		jsonb NOT NULL DEFAULT '{}',	-- source name -> target name
	tablespace	text,
	search_path	text NOT NULL
);
CREATE INDEX job_schema_job ON migrate.job_schema (job_id);
COMMENT ON TABLE migrate.job_schema IS 'one row a call of migrate_add_schema: which schema a job takes over, and where to';

/*
 * Tables that a job made here, partitions included, each with the one that it
 * was made like: what is built on them after the copy is found by this.
 */
CREATE TABLE migrate.made_relation (
	target_oid	oid PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	-- the target of the mapping: itself, or the partitioned table above it
	root_oid	oid NOT NULL,
	remote_schema text NOT NULL,
	remote_table text NOT NULL,
	-- made by the DBA's target_definition: columns and partitions are his
	own_definition boolean NOT NULL DEFAULT false
);
CREATE INDEX made_relation_job ON migrate.made_relation (job_id, root_oid);
COMMENT ON TABLE migrate.made_relation IS 'tables and partitions that a job made, and the source table that each is like';

/*
 * What is done after the copy, a row a step: keys, indexes, constraints,
 * statistics, grants, VACUUM.  A step's work and its 'done' commit together
 * (but for VACUUM, which may be done twice).
 *
 * Phases order the work: 10 indexes, 20 what uses them (constraints, indexes of
 * partitioned tables), 30 foreign keys, 40 their validation, 50 the rest,
 * 60 VACUUM and sequences.  Within a phase the heaviest is first.
 */
CREATE TABLE migrate.post_step (
	step_id		int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	-- the mapping whose target it completes; null: of no table
	mapping_id	int REFERENCES migrate.mapping ON DELETE CASCADE,
	-- the relation here that it changes, null: none; relation is its name
	target_oid	oid,
	relation	text,
	kind		text NOT NULL
				CHECK (kind IN ('key', 'index', 'exclusion', 'constraint', 'attach', 'check',
								'foreign key', 'validate', 'default', 'statistics', 'replica identity',
								'cluster', 'comment', 'grant', 'doubles', 'sequences', 'vacuum')),
	-- what it makes, as shown: a name or a list of names
	object		text NOT NULL,
	-- the name on the source, where that is taken here
	source_object text,
	-- one or more statements, run in one transaction (VACUUM: alone)
	ddl			text NOT NULL,
	phase		int NOT NULL,
	-- bytes that it has to go through, as estimated on the source
	weight		bigint NOT NULL DEFAULT 0,
	-- steps that have to be over (done, failed or skipped) before
	after		int[] NOT NULL DEFAULT '{}',
	state		text NOT NULL DEFAULT 'todo'
				CHECK (state IN ('todo', 'running', 'done', 'failed', 'skipped')),
	attempt		int NOT NULL DEFAULT 0,
	worker_pid	int,
	sqlstate	text,
	error		text,
	reason		text,			-- of 'skipped', or that it was there already
	-- of an error that passes (a lock time-out): since when, next try
	error_since	timestamptz,
	retry_at	timestamptz,
	started_at	timestamptz,
	finished_at	timestamptz
);
CREATE INDEX post_step_todo ON migrate.post_step (job_id, phase, weight DESC, step_id) WHERE state = 'todo';
CREATE INDEX post_step_running ON migrate.post_step (job_id) WHERE state = 'running';
CREATE INDEX post_step_mapping ON migrate.post_step (mapping_id);
COMMENT ON TABLE migrate.post_step IS 'statements that run after the copy, each recorded and restartable';

/*
 * Everything made outside the extension's own tables, recorded before it is
 * made.
 */
CREATE TABLE migrate.made_object (
	object_id	int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	side		text NOT NULL CHECK (side IN ('source', 'target')),
	kind		text NOT NULL,	-- 'foreign table', 'schema', 'type', 'table'
	object		text NOT NULL,	-- quoted and qualified
	-- dropped with the job; a target table holds data and never is
	temporary	boolean NOT NULL DEFAULT true,
	made_at		timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX made_object_job ON migrate.made_object (job_id, object);
COMMENT ON TABLE migrate.made_object IS 'objects made for a job outside the extension''s tables, so that they can be removed again';

CREATE TABLE migrate.acceptance (
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	check_name	text NOT NULL,
	object		text NOT NULL,
	reason		text NOT NULL CHECK (reason <> ''),
	accepted_by	text NOT NULL DEFAULT session_user,
	accepted_at	timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (job_id, check_name, object)
);
COMMENT ON TABLE migrate.acceptance IS 'preflight findings that the DBA took note of, with the reason';

CREATE TABLE migrate.event (
	event_id	bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	at			timestamptz NOT NULL DEFAULT clock_timestamp(),
	level		text NOT NULL CHECK (level IN ('info', 'warning', 'error', 'alert')),
	kind		text NOT NULL,
	message		text NOT NULL,
	detail		jsonb
);
CREATE INDEX event_job ON migrate.event (job_id, at);
COMMENT ON TABLE migrate.event IS 'every state change, warning and alert of a job with its cause';

CREATE TABLE migrate.validation_run (
	validation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	-- what was compared: a mapping or a check of the user's
	mapping_id	int REFERENCES migrate.mapping ON DELETE CASCADE,
	check_name	text,
	level		text NOT NULL CHECK (level IN ('count', 'checksum', 'full', 'check', 'changed')),
	-- who computed the source's digests; null at level count
	digest		text CHECK (digest IN ('here', 'source', 'extension')),
	source_rows	bigint,
	target_rows	bigint,
	matched		boolean,
	mismatches	bigint,
	status		text NOT NULL,
	-- of a live job: where in the stream both snapshots were
	source_lsn	pg_lsn,
	started_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	duration	interval,
	CHECK ((mapping_id IS NULL) = (check_name IS NOT NULL))
);
CREATE INDEX validation_run_job ON migrate.validation_run (job_id, validation_id);
CREATE INDEX validation_run_mapping ON migrate.validation_run (mapping_id, validation_id);
COMMENT ON TABLE migrate.validation_run IS 'the history of validations, a row a mapping or check';

/*
 * What must be the same on both sides whatever becomes of single rows: sums,
 * counts, extremes.
 */
CREATE TABLE migrate.validation_check (
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	name		text NOT NULL CHECK (name <> ''),
	source_query text NOT NULL,
	target_query text NOT NULL,
	created_at	timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (job_id, name)
);
COMMENT ON TABLE migrate.validation_check IS 'queries of the user''s that must give the same rows on both sides';

CREATE TABLE migrate.difference (
	difference_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	validation_id bigint NOT NULL REFERENCES migrate.validation_run ON DELETE CASCADE,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	kind		text NOT NULL
				CHECK (kind IN ('missing_in_target', 'missing_in_source', 'different')),
	key			jsonb,
	columns		text[],
	source_row	jsonb,
	target_row	jsonb,
	-- the open dead letter that explains it
	dead_letter	bigint
);
CREATE INDEX difference_run ON migrate.difference (validation_id);
COMMENT ON TABLE migrate.difference IS 'rows that a validation found different';

/*
 * What a validation that may be interrupted has found equal already, a row a
 * part (src/validate/parts.c): buckets of keys, and how these were made.
 */
CREATE TABLE migrate.validation_part (
	part_id		bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	job_id		int NOT NULL REFERENCES migrate.job ON DELETE CASCADE,
	mapping_id	int NOT NULL REFERENCES migrate.mapping ON DELETE CASCADE,
	-- validation_id of the run that began it; a crash may have taken that back
	chain		bigint NOT NULL,
	level		text NOT NULL CHECK (level IN ('checksum', 'full')),
	mapping_version text NOT NULL,
	plan_no		int NOT NULL,
	-- of the session that validated
	pid			int NOT NULL,
	digest		text NOT NULL CHECK (digest IN ('here', 'source', 'extension')),
	-- of a range the number is (key >> range_shift) - range_lo
	ranges		boolean NOT NULL,
	range_lo	bigint NOT NULL,
	range_shift	int NOT NULL,
	buckets		int NOT NULL,
	equal		int4multirange NOT NULL,
	source_rows	bigint NOT NULL,
	target_rows	bigint NOT NULL,
	source_lsn	pg_lsn,
	kept_at		timestamptz NOT NULL
);
CREATE INDEX validation_part_mapping ON migrate.validation_part (mapping_id, level);
CREATE INDEX validation_part_job ON migrate.validation_part (job_id);
COMMENT ON TABLE migrate.validation_part IS 'what validations that are not finished have found equal: whoever validates next goes on from there';

/*
 * Owners see only their jobs.  The policy of job is the root; the others
 * follow it, since its own row security applies inside the subquery.
 */
ALTER TABLE migrate.job ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON migrate.job USING (pg_has_role(owner, 'USAGE'));

DO $$
DECLARE
	t text;
BEGIN
	FOREACH t IN ARRAY '{source_table,leaf,mapping,chunk,chunk_mapping,dead_letter,job_schema,made_relation,post_step,made_object,acceptance,event,validation_run,validation_check,validation_part,difference}'::text[]
	LOOP
		EXECUTE format('ALTER TABLE migrate.%I ENABLE ROW LEVEL SECURITY', t);
		EXECUTE format('CREATE POLICY own ON migrate.%I USING '
					   '(job_id IN (SELECT j.job_id FROM migrate.job j))', t);
	END LOOP;
END
$$;
