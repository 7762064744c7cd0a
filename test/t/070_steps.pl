# Copyright (c) 2026, the migrate authors; PostgreSQL License

# What is done after the copy, step by step: in parallel, in order, a failing
# step alone; paused, cancelled, without loaders; and kill -9 between and
# inside the steps, after which each index and constraint is there once.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $source = new_source('source');
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

my $node = $target;
sub sql { return $node->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

src(q{CREATE TABLE a (id int PRIMARY KEY, v int, t text);
	INSERT INTO a SELECT g, g % 10, 'row ' || g FROM generate_series(1, 2000) g;
	CREATE TABLE b (id int PRIMARY KEY, v int, t text);
	INSERT INTO b SELECT g, g % 10, 'row ' || g FROM generate_series(1, 2000) g;
	CREATE TABLE long (id int PRIMARY KEY, v int, t text);
	INSERT INTO long SELECT g, g % 10, 'row ' || g FROM generate_series(1, 20000) g;
	VACUUM ANALYZE});

# Functions for indexes that take their time: wait for who holds the advisory
# lock k, or for s seconds.
sub gates
{
	$_[0]->safe_psql('postgres', q{CREATE SCHEMA gate;
		CREATE FUNCTION gate.wait(id int, k int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
			$$BEGIN IF id = 1 THEN PERFORM pg_catalog.pg_advisory_xact_lock_shared(k); END IF; RETURN id; END$$;
		CREATE FUNCTION gate.nap(id int, s float8) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
			$$BEGIN IF id = 1 THEN PERFORM pg_catalog.pg_sleep(s); END IF; RETURN id; END$$});
	return;
}
gates($target);

# Somebody who holds gate k closed, until open_gate(it).
sub close_gate
{
	my ($k) = @_;
	my $session = $node->background_psql('postgres');
	$session->query_safe("SELECT pg_advisory_lock($k)");
	return $session;
}
sub open_gate { $_[0]->quit; return; }

# A job that copies tables into schema $job, which the DBA has made, and then
# does these steps: [name, table, kind, phase, statement, after ...].  They are
# written down in the transaction of the start: after the planning, before any
# worker looks.  In statements, %s is the schema.
sub job
{
	my ($job, $options, $tables, @steps) = @_;
	my $sql = "CREATE SCHEMA $job;\n";

	$sql .= "CREATE TABLE $job.$_ (id int NOT NULL, v int, t text);\n" for @$tables;
	$sql .= qq{SELECT migrate_create_job('$job', server => 'legacy', options => '{"retry_max_delay": "300ms", "lock_timeout": "0" $options}');\n};
	$sql .= qq{SELECT migrate_add_table('$job', 'public.$_', '$job.$_', key => '{"id": "id"}');\n} for @$tables;
	$sql .= qq{SELECT migrate_accept('$job', check_name, object, 'test') FROM migrate_preflight('$job') WHERE status = 'fail';\n};
	$sql .= "BEGIN; SELECT migrate_start('$job');\n";
	# these steps alone, not the ones that were planned
	$sql .= "DELETE FROM migrate.post_step p USING migrate.job j WHERE j.job_id = p.job_id AND j.job = '$job';\n";
	foreach my $step (@steps)
	{
		my ($name, $table, $kind, $phase, $ddl, @after) = @$step;
		my $after = join(', ', map { "'$_'" } '', @after);
		$ddl =~ s/%s/$job/g;
		$sql .= qq{INSERT INTO migrate.post_step (job_id, mapping_id, target_oid, relation, kind, object, ddl, phase, after)
			SELECT job_id, mapping_id, target_oid, target, '$kind', '$name', \$ddl\$$ddl\$ddl\$, $phase,
				ARRAY(SELECT p.step_id FROM migrate.post_step p WHERE p.job_id = m.job_id AND p.object IN ($after))
			FROM migrate.mapping m WHERE target = '$job.$table';\n};
	}
	sql("$sql COMMIT;");
	return;
}

sub steps
{
	my ($job, $where) = @_;
	return sql(qq{SELECT coalesce(string_agg(p.object, ' ' ORDER BY p.object), '') FROM migrate.post_step p JOIN migrate.job j USING (job_id)
		WHERE j.job = '$job' AND ($where)});
}

sub indexes
{
	my ($job) = @_;
	return sql(qq{SELECT coalesce(string_agg(c.relname || CASE WHEN i.indisvalid AND i.indisready THEN '' ELSE ' (invalid)' END, ' ' ORDER BY c.relname), '')
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = '$job'::regnamespace});
}

sub constraints
{
	my ($job) = @_;
	return sql(qq{SELECT coalesce(string_agg(conname || CASE WHEN convalidated THEN '' ELSE ' (not valid)' END, ' ' ORDER BY conname), '')
		FROM pg_constraint WHERE connamespace = '$job'::regnamespace AND contype <> 'n'});
}

sub running
{
	my ($job, $n) = @_;
	return wait_for($node, qq{SELECT count(*) = $n FROM migrate.post_step p JOIN migrate.job j USING (job_id)
		WHERE j.job = '$job' AND p.state = 'running'});
}

# migrate_retry_steps, without its checks
sub retry
{
	my ($job) = @_;
	sql(qq{BEGIN;
		UPDATE migrate.post_step p SET state = 'todo' FROM migrate.job j WHERE j.job_id = p.job_id AND j.job = '$job' AND p.state = 'failed';
		SELECT migrate._set_state(job_id, 'indexing', 'test'), migrate._run(job_id, 'retry', 'test') FROM migrate.job WHERE job = '$job';
		COMMIT});
	return;
}

# ------------------------------------------------- every kind of step, once
sub all_kinds
{
	return (
		[ 'a_key', 'a', 'key', 10, 'CREATE UNIQUE INDEX a_key ON %s.a (id)' ],
		[ 'a_v', 'a', 'index', 10, 'CREATE INDEX a_v ON %s.a (v)' ],
		[ 'a_t', 'a', 'index', 10, 'CREATE INDEX a_t ON %s.a (lower(t)) WHERE v > 3' ],
		[ 'a_twice', 'a', 'index', 10, 'CREATE UNIQUE INDEX a_twice ON %s.a (v)' ],
		[ 'b_key', 'b', 'key', 10, 'CREATE UNIQUE INDEX b_key ON %s.b (id)' ],
		[ 'a_pkey', 'a', 'constraint', 20, 'ALTER TABLE ONLY %s.a ADD CONSTRAINT a_key PRIMARY KEY USING INDEX a_key', 'a_key' ],
		[ 'a_check', 'a', 'check', 20, 'ALTER TABLE %s.a ADD CONSTRAINT a_check CHECK (v < 10) NOT VALID; ALTER TABLE %s.a VALIDATE CONSTRAINT a_check' ],
		[ 'b_check', 'b', 'check', 20, 'ALTER TABLE %s.b ADD CONSTRAINT b_check CHECK (v < 9)' ],
		[ 'b_fk', 'b', 'foreign key', 30, 'ALTER TABLE %s.b ADD CONSTRAINT b_fk FOREIGN KEY (id) REFERENCES %s.a (id) NOT VALID', 'a_key' ],
		[ 'b_bad', 'b', 'foreign key', 30, 'ALTER TABLE %s.b ADD CONSTRAINT b_bad FOREIGN KEY (v) REFERENCES %s.a (id) NOT VALID', 'a_key' ],
		[ 'b_fk_valid', 'b', 'validate', 40, 'ALTER TABLE %s.b VALIDATE CONSTRAINT b_fk', 'b_fk' ],
		[ 'b_bad_valid', 'b', 'validate', 40, 'ALTER TABLE %s.b VALIDATE CONSTRAINT b_bad', 'b_bad' ],
		[ 'a_stat', 'a', 'statistics', 50, 'CREATE STATISTICS %s.a_stat ON id, v FROM %s.a' ],
		[ 'a_default', 'a', 'default', 50, 'ALTER TABLE %s.a ALTER v SET DEFAULT 7' ],
		[ 'a_identity', 'a', 'replica identity', 50, 'ALTER TABLE ONLY %s.a REPLICA IDENTITY USING INDEX a_key' ],
		[ 'a_comment', 'a', 'comment', 50, q{COMMENT ON INDEX %s.a_v IS 'of a'} ],
		[ 'a_grant', 'a', 'grant', 50, 'GRANT SELECT ON %s.a TO pg_monitor' ],
		[ 'a_vacuum', 'a', 'vacuum', 60, 'VACUUM (ANALYZE) %s.a' ],
		[ 'b_analyze', 'b', 'vacuum', 60, 'ANALYZE %s.b' ]);
}

job('kinds', '', [qw(a b)], all_kinds());
# (not by migrate_wait: its snapshot would keep VACUUM from its work)
wait_job($target, 'kinds', 'copied');
my ($rc, $out, $err) = $target->psql('postgres', q{SELECT migrate_wait('kinds', 'copied', '60s')});
is($out, 'copied', 'failing steps do not fail the job');
like($err, qr/^\S*\s*WARNING:  3 steps after the copy of job "kinds" have failed\nHINT:  See migrate.steps/m, 'but migrate_wait warns');
is(steps('kinds', q{p.state = 'failed'}), 'a_twice b_bad_valid b_check', 'those that cannot be have failed');
is(steps('kinds', q{p.state <> 'done'}), 'a_twice b_bad_valid b_check', 'and all others are done');
is(sql(q{SELECT string_agg(object || ' ' || sqlstate, ' ' ORDER BY object) FROM migrate.post_step WHERE state = 'failed'}),
	'a_twice 23505 b_bad_valid 23503 b_check 23514', 'each with its SQLSTATE');
like(sql(q{SELECT error FROM migrate.post_step WHERE object = 'a_twice'}), qr/^could not create unique index "a_twice": Key \(v\)=\(\d\) is duplicated\.$/, 'and its error');
is(indexes('kinds'), 'a_key a_t a_v b_key', 'indexes');
is(constraints('kinds'), 'a_check a_key b_bad (not valid) b_fk', 'constraints');
is(sql(q{SELECT relreplident, obj_description('kinds.a_v'::regclass, 'pg_class'), has_table_privilege('pg_monitor', 'kinds.a', 'SELECT'),
		relallvisible > 0, reltuples FROM pg_class WHERE oid = 'kinds.a'::regclass}), 'i|of a|t|t|2000', 'the rest is done, the visibility map filled');
is(sql(q{SELECT reltuples FROM pg_class WHERE oid = 'kinds.b'::regclass}), '2000', 'analyzed');
is(sql(q{SELECT count(*) FROM migrate.post_step p, migrate.post_step q WHERE p.phase < 30 AND q.phase >= 30 AND q.kind <> 'vacuum' AND p.finished_at > q.started_at}),
	'0', 'what needs other tables begins when their indexes and constraints are there');
is(sql(q{SELECT bool_and(state = 'done') FROM migrate.source_table}), 't', 'source tables are done');
is(sql(q{SELECT level || ': ' || message FROM migrate.events WHERE job = 'kinds' AND kind = 'steps_failed'}),
	'alert: 3 of the steps after the copy have failed: index a_twice of kinds.a (23505), check b_check of kinds.b (23514), validate b_bad_valid of kinds.b (23503)',
	'an alert lists what has failed');
is(sql(q{SELECT target, steps, steps_done, steps_failed, building FROM migrate.progress WHERE job = 'kinds'}), "kinds.a|12|11|1|\nkinds.b|7|5|2|", 'progress counts');

# two are mended, and only they run again
my $attempts = sql(q{SELECT sum(attempt) FROM migrate.post_step WHERE state = 'done'});
sql(q{ALTER TABLE kinds.a DROP CONSTRAINT a_check; UPDATE kinds.a SET v = id + 10; DELETE FROM kinds.b WHERE v >= 9; UPDATE kinds.b SET v = 1 WHERE v = 0});
retry('kinds');
wait_job($target, 'kinds', 'copied');
is(steps('kinds', q{p.state = 'failed'}), '', 'mended and tried again: none fails');
is(sql(q{SELECT sum(attempt) FROM migrate.post_step}), $attempts + 6, 'and none of the others was done again');
is(indexes('kinds'), 'a_key a_t a_twice a_v b_key', 'indexes');
is(constraints('kinds'), 'a_key b_bad b_check b_fk', 'constraints');

# --------------------------------------------- at the same time, and in turn
{
	my $gate = close_gate(1);
	job('twice', '', [qw(a b)],
		[ 'a_key', 'a', 'key', 10, 'CREATE UNIQUE INDEX a_key ON %s.a (gate.wait(id, 1))' ],
		[ 'a_alone', 'a', 'check', 20, 'ALTER TABLE %s.a ADD CHECK (v < 10)' ],
		[ 'a_unique', 'a', 'index', 10, 'CREATE UNIQUE INDEX a_unique ON %s.a (t)' ],
		[ 'a_vacuum', 'a', 'vacuum', 60, 'VACUUM %s.a' ],
		[ 'b_key', 'b', 'key', 10, 'CREATE UNIQUE INDEX b_key ON %s.b (gate.wait(id, 1))' ]);
	ok(running('twice', 2), 'two steps run at the same time');
	is(sql(q{SELECT count(DISTINCT p.worker_pid), count(DISTINCT a.pid) FROM migrate.post_step p JOIN migrate.job USING (job_id)
			LEFT JOIN pg_stat_activity a ON a.pid = p.worker_pid AND a.backend_type = 'migrate loader' WHERE job = 'twice' AND p.state = 'running'}), '2|2', 'in two loaders');
	is(sql(q{SELECT string_agg(phase || ' ' || source || ' ' || building, ', ' ORDER BY building) FROM migrate.workers WHERE job = 'twice' AND role = 'loader'}),
		'index public.a key a_key, index public.b key b_key', 'migrate.workers says what they build');
	is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'step % of job twice: key __key of twice._'}), '2', 'and so does pg_stat_activity');
	is(sql(q{SELECT string_agg(concat_ws(' ', target, percent, workers, steps, steps_done, building), ', ' ORDER BY target) FROM migrate.progress WHERE job = 'twice'}),
		'twice.a 100.0 1 4 0 key a_key, twice.b 100.0 1 1 0 key b_key', 'and migrate.progress');
	is(job_state($target, 'twice'), 'indexing', 'in state indexing');

	# pause: what runs is finished, nothing else begun
	sql(q{SELECT migrate_pause('twice')});
	sleep(1.5);
	is(sql(q{SELECT count(*) FROM migrate._live_workers() WHERE step_id > 0}), '2', 'paused: the steps go on');
	open_gate($gate);
	is(sql(q{SELECT migrate_wait('twice', 'paused', '30s')}), 'paused', 'until they are done');
	is(steps('twice', q{p.state = 'done'}), 'a_key b_key', 'and no other has begun');
	is(steps('twice', q{p.state = 'todo'}), 'a_alone a_unique a_vacuum', 'they wait');
	sql(q{SELECT migrate_resume('twice')});
	wait_job($target, 'twice', 'copied');
	is(steps('twice', q{p.attempt <> 1}), '', 'resumed: nothing was done twice');
	is(sql(q{SELECT count(*) FROM migrate.post_step p JOIN migrate.post_step q USING (job_id, target_oid) JOIN migrate.job USING (job_id)
			WHERE job = 'twice' AND p.step_id <> q.step_id AND p.started_at < q.finished_at AND q.started_at < p.finished_at}), '0',
		'what cannot be beside another on its table was not');
}

# ------------------------------------------------------------------ cancel
{
	my $gate = close_gate(2);
	job('cancel', '', ['a'], [ 'a_key', 'a', 'key', 10, 'CREATE UNIQUE INDEX a_key ON %s.a (gate.wait(id, 2))' ]);
	ok(running('cancel', 1), 'cancel: it builds');
	my $begin = time();
	sql(q{SELECT migrate_cancel('cancel')});
	is(sql(q{SELECT migrate_wait('cancel', 'cancelled', '30s')}), 'cancelled', 'cancel: it ends');
	cmp_ok(time() - $begin, '<', 10, 'cancel: at once');
	is(steps('cancel', q{p.state = 'todo' AND p.worker_pid IS NULL}), 'a_key', 'cancel: the step is to do');
	is(indexes('cancel'), '', 'cancel: nothing is left of it');
	open_gate($gate);
	sql(q{SELECT migrate_start('cancel')});
	wait_job($target, 'cancel', 'copied');
	is(indexes('cancel'), 'a_key', 'cancel: started again, it is built');
}

# ------------------------------ a loader that has lost its job worker builds on
{
	my $gate = close_gate(4);
	job('orphan', '', ['a'], [ 'a_key', 'a', 'key', 10, 'CREATE UNIQUE INDEX a_key ON %s.a (gate.wait(id, 4))' ]);
	ok(running('orphan', 1), 'orphan: it builds');
	my $pid = sql(q{SELECT worker_pid FROM migrate.post_step p JOIN migrate.job USING (job_id) WHERE job = 'orphan'});
	sql(q{SELECT pg_terminate_backend(pid) FROM migrate.workers WHERE job = 'orphan' AND role = 'job'});
	ok(wait_for($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'migrate job'}), 'orphan: without a job worker');
	sql(q{SELECT migrate_resume('orphan')});
	ok(wait_for($target, qq{SELECT p.worker_pid <> $pid AND p.state = 'running' FROM migrate.post_step p JOIN migrate.job USING (job_id) WHERE job = 'orphan'}),
		'orphan: another loader begins the step again');
	is(sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid"), '0', 'orphan: and the old one does not stand in its way');
	open_gate($gate);
	wait_job($target, 'orphan', 'copied');
	is(indexes('orphan'), 'a_key', 'orphan: it is there once');
}

# -------------------------------- an index of one table while another is read
{
	job('early', ', "chunking": "whole", "rows_per_second": 4000', [qw(a long)],
		[ 'a_key', 'a', 'key', 10, 'CREATE UNIQUE INDEX a_key ON %s.a (id)' ],
		[ 'a_check', 'a', 'check', 20, 'ALTER TABLE %s.a ADD CHECK (v < 10)' ],
		[ 'long_key', 'long', 'key', 10, 'CREATE UNIQUE INDEX long_key ON %s.long (id)' ]);
	ok(wait_for($target, q{SELECT state = 'done' FROM migrate.post_step p WHERE object = 'a_key' AND job_id = (SELECT job_id FROM migrate.job WHERE job = 'early')}),
		'the index of a table that is copied');
	is(job_state($target, 'early'), 'copying', 'is built while another is copied');
	is(steps('early', q{p.state = 'todo'}), 'a_check long_key', 'but no constraint, and not that of the other');
	sql(q{SELECT migrate_alter_job('early', '{"rows_per_second": 0}')});
	wait_job($target, 'early', 'copied');
	is(sql(q{SELECT count(*) FROM migrate.events WHERE job = 'early' AND kind = 'loader_ended'}), '0', 'and no loader was ended on the way');
	same_rows($source, 'SELECT * FROM long', $target, 'SELECT * FROM early.long', 'early: equal');
}

# ------------------------------------------------ a key that fails, and P10
{
	src('CREATE TABLE dup (id int PRIMARY KEY, v int, t text); INSERT INTO dup SELECT g, g / 2, g FROM generate_series(1, 100) g');
	job('nokey', '', [qw(dup a)],
		[ 'dup_key', 'dup', 'key', 10, 'CREATE UNIQUE INDEX dup_key ON %s.dup ((v + 1))' ],
		[ 'a_key', 'a', 'key', 10, 'CREATE UNIQUE INDEX a_key ON %s.a (id)' ],
		[ 'dup_t', 'dup', 'index', 10, 'CREATE INDEX dup_t ON %s.dup (t)', 'dup_key' ]);
	wait_job($target, 'nokey', 'failed');
	like(sql(q{SELECT last_sqlstate || ' ' || last_error FROM migrate.job WHERE job = 'nokey'}), qr/^23505 key dup_key of nokey.dup: could not create unique index "dup_key"/,
		'a key that fails makes the job fail, with its error');
	is(steps('nokey', q{p.state = 'done'}), 'a_key dup_t', 'after the others were done');
	sql(q{DELETE FROM nokey.dup WHERE id % 2 = 1; SELECT migrate_resume('nokey')});
	wait_job($target, 'nokey', 'copied');
	is(indexes('nokey'), 'a_key dup_key dup_t', 'mended and resumed: it is built');

	# doubles without an index, and before what else is unique
	job('dups', '', ['a'],
		[ 'a_doubles', 'a', 'doubles', 10, 'CREATE UNIQUE INDEX no ON %s.a (id)' ]);
	wait_job($target, 'dups', 'copied');
	is(indexes('dups'), '', 'doubles: checked without an index');
	is(steps('dups', q{p.state = 'done'}), 'a_doubles', 'doubles: done');
}

# ------------------------------------------------------ errors that pass
foreach my $retry ('1min', '1s')
{
	my $job = "busy_$retry";
	my $holder = $target->background_psql('postgres');
	sql("CREATE TABLE gate.ready_$retry ()");
	$holder->query_safe("BEGIN; LOCK TABLE gate.ready_$retry IN ROW EXCLUSIVE MODE");
	job($job, qq{, "lock_timeout": "200ms", "retry_time": "$retry"}, [qw(a b)],
		[ 'a_v', 'a', 'index', 10, "LOCK TABLE gate.ready_$retry IN SHARE MODE; CREATE INDEX a_v ON %s.a (v)" ],
		[ 'b_v', 'b', 'index', 10, 'CREATE INDEX b_v ON %s.b (v)' ]);
	if ($retry eq '1s')
	{
		wait_job($target, $job, 'copied');
		is(steps($job, q{p.state = 'failed' AND p.sqlstate = '55P03'}), 'a_v', 'a lock that stays taken for longer than retry_time: failed');
		cmp_ok(sql("SELECT max(attempt) FROM migrate.post_step p JOIN migrate.job USING (job_id) WHERE job = '$job'"), '>', 1, 'after several tries');
	}
	else
	{
		ok(wait_for($target, qq{SELECT attempt > 2 FROM migrate.post_step p JOIN migrate.job USING (job_id) WHERE job = '$job' AND object = 'a_v'}), 'a lock that is taken: tried again');
		is(steps($job, q{p.state = 'done'}), 'b_v', 'while the others are done');
		is(sql("SELECT count(*) FROM migrate.events WHERE job = '$job' AND kind = 'step' AND level = 'warning'"), '1', 'told once');
		$holder->query_safe('COMMIT');
		wait_job($target, $job, 'copied');
		is(indexes($job), 'a_v b_v', 'and built when it is free');
		is(sql("SELECT count(*) FROM migrate.post_step p JOIN migrate.job USING (job_id) WHERE job = '$job' AND (error IS NOT NULL OR p.error_since IS NOT NULL)"), '0', 'no error is left to see');
	}
	$holder->quit;
}

# -------------------------------------------------------- definitions only
job('defs', ', "content": "definitions"', ['a'], [ 'a_key', 'a', 'key', 10, 'CREATE UNIQUE INDEX a_key ON %s.a (id)' ]);
wait_job($target, 'defs', 'copied');
is(sql(q{SELECT count(*) FROM defs.a}), '0', 'definitions only: nothing is copied');
is(indexes('defs'), 'a_key', 'definitions only: but built');

# ------------------------------------- no loader: the job worker does it alone
{
	my $tight = new_target('tight', conf => "max_worker_processes = 1\nmax_parallel_workers = 0\nmax_logical_replication_workers = 0\n");
	connect_source($tight, $source, server => 'legacy');
	gates($tight);
	$node = $tight;
	my $gate = close_gate(3);
	job('tight', '', ['a'],
		[ 'a_key', 'a', 'key', 10, 'CREATE UNIQUE INDEX a_key ON %s.a (id)' ],
		[ 'a_v', 'a', 'index', 10, 'CREATE INDEX a_v ON %s.a (gate.wait(id, 3))' ],
		[ 'a_pkey', 'a', 'constraint', 20, 'ALTER TABLE ONLY %s.a ADD CONSTRAINT a_key PRIMARY KEY USING INDEX a_key' ],
		[ 'a_vacuum', 'a', 'vacuum', 60, 'VACUUM (ANALYZE) %s.a' ]);
	ok(wait_for($tight, q{SELECT count(*) = 1 FROM migrate.workers WHERE role = 'job' AND phase = 'index' AND building = 'index a_v'}), 'tight: the job worker builds by itself');
	my $begin = time();
	sql(q{SELECT migrate_cancel('tight')});
	is(sql(q{SELECT migrate_wait('tight', 'cancelled', '30s')}), 'cancelled', 'tight: cancel ends it');
	cmp_ok(time() - $begin, '<', 10, 'tight: at once');
	is(steps('tight', q{p.state = 'done'}), 'a_key', 'tight: with what it has done');
	open_gate($gate);
	sql(q{SELECT migrate_start('tight')});
	wait_job($tight, 'tight', 'copied');
	is(steps('tight', q{p.state = 'done'}), 'a_key a_pkey a_v a_vacuum', 'tight: all is done');
	is(indexes('tight') . ' ' . constraints('tight'), 'a_key a_v a_key', 'tight: and there');
	$tight->stop;
	$node = $target;
}

# ---------------------------------------------------- kill -9 at each point
src(q{CREATE TABLE moved (id int PRIMARY KEY, v int, t text); INSERT INTO moved SELECT g, g, 'x' FROM generate_series(1, 100) g});
sub killed { return scalar(() = slurp_file($target->logfile) =~ /was terminated by signal 9/g); }
foreach my $point (qw(step-claimed step-built step-done doubles-resolved))
{
	my $job = $point =~ tr/-/_/r;
	my $before = killed();

	# the first step leaves a row there twice, for the key to find
	sql(qq{ALTER SYSTEM SET migrate.fault = '$point:kill'});
	sql('SELECT pg_reload_conf()');
	job($job, '', ['moved'],
		[ 'm_v', 'moved', 'index', 10, q{INSERT INTO %s.moved VALUES (5, 0, 'x'); CREATE INDEX m_v ON %s.moved (v)} ],
		[ 'm_key', 'moved', 'key', 10, 'CREATE UNIQUE INDEX m_key ON %s.moved (id)', 'm_v' ],
		[ 'm_pkey', 'moved', 'constraint', 20, 'ALTER TABLE ONLY %s.moved ADD CONSTRAINT m_key PRIMARY KEY USING INDEX m_key', 'm_key' ],
		[ 'm_vacuum', 'moved', 'vacuum', 60, 'VACUUM (ANALYZE) %s.moved' ]);
	ok(wait_for(sub { killed() >= $before + 2 }), "$point: killed, and again");
	# the server may be starting again
	ok(wait_for(sub { eval { sql('ALTER SYSTEM RESET migrate.fault'); sql('SELECT pg_reload_conf()'); 1 } }), "$point: no more");
	my $killed = killed();
	wait_job($target, $job, 'copied');
	is(steps($job, q{p.state = 'done'}), 'm_key m_pkey m_v m_vacuum', "$point: each step is done");
	# a third kill may have come before the fault was away
	is(steps($job, q{p.attempt > 1}), 'm_key', "$point: and none was done again but the key, for doubles")
		if $point eq 'step-done' && $killed == $before + 2;
	is(indexes($job) . ' ' . constraints($job), 'm_key m_v m_key', "$point: each index and constraint is there once");
	same_rows($source, 'SELECT * FROM moved', $target, "SELECT * FROM $job.moved", "$point: equal");
}

# ------------------------------------------------- kill -9 at random moments
{
	my $rounds = $ENV{MIGRATE_KILLS} || 15;
	my @steps;

	srand($ENV{MIGRATE_SEED} || 42);
	foreach my $t (qw(a b long))
	{
		my @after;
		push @steps, [ "${t}_key", $t, 'key', 10, "CREATE UNIQUE INDEX ${t}_key ON %s.$t (id, gate.nap(id, 0.5))" ],
		  [ "${t}_id", $t, 'index', 10, "CREATE UNIQUE INDEX ${t}_id ON %s.$t (id)" ];
		push @steps, [ "${t}_$_", $t, 'index', 10, "CREATE INDEX ${t}_$_ ON %s.$t (v, gate.nap(id, 0.5))" ] for 1 .. 4;
		push @steps, [ "${t}_pkey", $t, 'constraint', 20, "ALTER TABLE ONLY %s.$t ADD CONSTRAINT ${t}_id PRIMARY KEY USING INDEX ${t}_id", "${t}_id" ],
		  [ "${t}_check", $t, 'check', 20, "ALTER TABLE ONLY %s.$t ADD CONSTRAINT ${t}_check CHECK (gate.nap(id, 0.3) > 0)" ],
		  [ "${t}_bad", $t, 'check', 20, "ALTER TABLE ONLY %s.$t ADD CONSTRAINT ${t}_bad CHECK (gate.nap(id, 0.1) < 0)" ],
		  [ "${t}_vacuum", $t, 'vacuum', 60, "VACUUM (ANALYZE) %s.$t" ];
	}
	push @steps, [ "${_}_fk", $_, 'foreign key', 30, "ALTER TABLE ONLY %s.$_ ADD CONSTRAINT ${_}_fk FOREIGN KEY (id) REFERENCES %s.long (id) NOT VALID" ],
	  [ "${_}_fkv", $_, 'validate', 40, "ALTER TABLE ONLY %s.$_ VALIDATE CONSTRAINT ${_}_fk", "${_}_fk" ] for qw(a b);
	job('kills', '', [qw(a b long)], @steps);

	my ($n, %done) = (0);
	for (1 .. $rounds)
	{
		# somewhere in a step, by its position
		last unless wait_for($target, q{SELECT count(*) > 0 OR (SELECT state FROM migrate.job WHERE job = 'kills') = 'copied'
			FROM migrate.post_step p JOIN migrate.job USING (job_id) WHERE job = 'kills' AND p.state = 'running'});
		last if job_state($target, 'kills') eq 'copied';
		sleep(rand(0.9));
		my $what = random_kill($target, $source, qw(loader loader job target));
		$done{$what}++;
		$n++ if $what;
	}
	diag("$n kills: " . join(', ', map { "$_ x $done{$_}" } sort keys %done));
	cmp_ok($n, '>=', $rounds * 0.6, 'most of the kills hit a job that was building');
	wait_job($target, 'kills', 'copied', timeout => 300);
	is(steps('kills', q{p.state = 'failed'}), 'a_bad b_bad long_bad', 'kills: only that failed which cannot be');
	is(steps('kills', q{p.state NOT IN ('done', 'failed')}), '', 'kills: no step is left over');
	is(indexes('kills'), join(' ', map { my $t = $_; map { "${t}_$_" } (1 .. 4, 'id', 'key') } qw(a b long)), 'kills: each index is there once, and valid');
	is(constraints('kills'), 'a_check a_fk a_id b_check b_fk b_id long_check long_id', 'kills: each constraint, too');
	is(sql(q{SELECT count(*) FROM pg_index WHERE NOT indisvalid OR NOT indisready}), '0', 'kills: no invalid index is left anywhere');
	is(sql(q{SELECT count(*) FROM pg_class WHERE relkind = 'i' AND relnamespace = 'kills'::regnamespace AND pg_relation_size(oid) = 0}), '0', 'kills: nor an empty one');
	cmp_ok(sql(q{SELECT sum(attempt - 1) FROM migrate.post_step JOIN migrate.job USING (job_id) WHERE job = 'kills'}), '<=', $n * 2, 'kills: a kill repeats at most the step at hand of each loader');
	same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM kills.$_", "kills: $_ is equal") for qw(a b long);
}

done_testing();
