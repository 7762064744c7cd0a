# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Inheritance trees: parent, children and grandchildren are targets each, with
# rows of their own under the same keys.  Each is read, looked up, written,
# emptied and validated without those that inherit from it (only_parent).

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;

my $source = new_source('source', conf => "autovacuum = off\n");
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

my @tables = qw(parent child grand other);

# the same keys everywhere; v tells whose row it is
src(q{
	CREATE TABLE parent (id int PRIMARY KEY, v text, bad int);
	CREATE TABLE child (x int, PRIMARY KEY (id)) INHERITS (parent);
	CREATE TABLE grand (y int, PRIMARY KEY (id)) INHERITS (child);
	CREATE TABLE other (z text, PRIMARY KEY (id)) INHERITS (parent);
	INSERT INTO parent SELECT g, 'parent ' || g, 1 FROM generate_series(1, 6000) g;
	INSERT INTO child SELECT g, 'child ' || g, 1, g FROM generate_series(1, 4000) g;
	INSERT INTO grand SELECT g, 'grand ' || g, 1, g, g FROM generate_series(1, 2000) g;
	INSERT INTO other SELECT g, 'other ' || g, 1, 'z' FROM generate_series(1, 5000) g;
});
my $definitions = q{
	CREATE TABLE %1$s.parent (id int PRIMARY KEY, v text, bad int);
	CREATE TABLE %1$s.child (x int, PRIMARY KEY (id)) INHERITS (%1$s.parent);
	CREATE TABLE %1$s.grand (y int, PRIMARY KEY (id)) INHERITS (%1$s.child);
	CREATE TABLE %1$s.other (z text, PRIMARY KEY (id)) INHERITS (%1$s.parent);
};

sub define
{
	my ($job, $options, %more) = @_;
	sql("CREATE SCHEMA $job; " . sprintf($definitions, $job)
		  . "SELECT migrate_create_job('$job', server => 'legacy', options => '{\"workers\": 2 $options}')");
	foreach my $t (@tables)
	{
		my $args = $more{$t} // $more{all} // '';
		sql("SELECT migrate_add_table('$job', 'public.$t', '$job.$t' $args)");
	}
	sql(qq{UPDATE migrate.source_table s SET only_parent = remote_table IN ('parent', 'child')
		FROM migrate.job j WHERE j.job_id = s.job_id AND j.job = '$job'});
	return;
}

sub start
{
	my ($job) = @_;
	return sql(qq{SELECT migrate_accept('$job', check_name, object, 'test') FROM migrate_preflight('$job') WHERE status = 'fail';
		SELECT migrate_start('$job')});
}

sub all_equal
{
	my ($job, $name) = @_;
	same_rows($source, "SELECT * FROM ONLY $_", $target, "SELECT * FROM ONLY $job.$_", "$job: $name: $_") foreach @tables;
	is( sql("SELECT string_agg(format('%s %s %s %s', target, source_rows, target_rows, matched), ', ' ORDER BY source_rows) FROM migrate_validate('$job', level => '$_')"),
		"$job.grand 2000 2000 t, $job.child 4000 4000 t, $job.other 5000 5000 t, $job.parent 6000 6000 t",
		"$job: $name: validation at level $_") foreach qw(count checksum full);
	return;
}

# --- how it is read
foreach my $case (
	[ 'block', '' ],
	[ 'keyed', ', "chunking": "key", "chunk_rows": 700' ],
	[ 'whole', ', "chunking": "whole"' ],
	[ 'copied', ', "transport": "copy"' ])
{
	my ($job, $options) = @$case;
	define($job, $options);
	start($job);
	wait_job($target, $job, 'copied');
	all_equal($job, 'copied');
	is(sql(qq{SELECT string_agg(DISTINCT transport, ',') FROM migrate.source_table NATURAL JOIN (SELECT job_id, job FROM migrate.job) j WHERE job = '$job'}),
		'copy', "$job: by COPY");
	is(sql(qq{SELECT count(*) FROM migrate.leaf NATURAL JOIN (SELECT job_id, job FROM migrate.job) j WHERE job = '$job'}), '4', "$job: each is a leaf");
}
is(sql(q{SELECT sum(rows_estimate) FROM migrate.progress WHERE job = 'block'}), '17000', 'block: no row counts twice');

# --- a foreign scan cannot do that
{
	define('fdw', ', "transport": "fdw", "retry_time": "1s"');
	start('fdw');
	wait_job($target, 'fdw', 'failed');
	like(sql(q{SELECT last_sqlstate || last_error FROM migrate.job WHERE job = 'fdw'}),
		qr/^0A000source "public\.(parent|child)" cannot be read without the tables that inherit from it/, 'fdw: the job fails and says why');
	is(sql('SELECT count(*) FROM fdw.parent'), '0', 'fdw: without a row');
}
# of those that have no children it can
{
	sql("CREATE SCHEMA fdwleaf; " . sprintf($definitions, 'fdwleaf') . q{
		SELECT migrate_create_job('fdwleaf', server => 'legacy', options => '{"transport": "fdw"}');
		SELECT migrate_add_table('fdwleaf', 'public.' || t, 'fdwleaf.' || t) FROM unnest('{grand,other}'::text[]) t});
	start('fdwleaf');
	wait_job($target, 'fdwleaf', 'copied');
	same_rows($source, "SELECT * FROM ONLY $_", $target, "SELECT * FROM ONLY fdwleaf.$_", "fdwleaf: $_") foreach qw(grand other);
}

# --- killed in the middle, then the parent alone again
{
	define('kill9', ', "chunk_blocks": 16, "chunk_time": "100ms", "batch_rows": 200, "rows_per_second": 3000, "retry_max_delay": "200ms"');
	start('kill9');
	ok(wait_for($target, q{SELECT count(*) >= 2 FROM migrate.chunks WHERE job = 'kill9' AND state = 'done'}), 'kill9: in the middle of the copy');
	ok(kill9_backend($target, 'migrate loader'), 'kill9: a loader is killed');
	ok(wait_for($target, q{SELECT count(*) >= 4 FROM migrate.chunks WHERE job = 'kill9' AND state = 'done'}), 'kill9: it goes on');
	is(sql(q{SELECT state FROM migrate.job WHERE job = 'kill9'}), 'copying', 'kill9: and is not at the end');
	# the parent only, while it is copied
	sql(q{SELECT migrate_recopy('kill9', 'kill9.parent'); SELECT migrate_alter_job('kill9', '{"rows_per_second": 0}')});
	wait_job($target, 'kill9', 'copied');
	all_equal('kill9', 'after a kill and a recopy');

	foreach my $again (qw(parent child))
	{
		my %before = map { $_ => sql("SELECT string_agg(DISTINCT xmin::text, ',') FROM ONLY kill9.$_") } @tables;
		sql(qq{SELECT migrate_recopy('kill9', 'kill9.$again')});
		wait_job($target, 'kill9', 'copied');
		all_equal('kill9', "$again copied again");
		foreach my $t (@tables)
		{
			my $now = sql("SELECT string_agg(DISTINCT xmin::text, ',') FROM ONLY kill9.$t");
			$t eq $again
			  ? isnt($now, $before{$t}, "kill9: rows of $t are new")
			  : is($now, $before{$t}, "kill9: rows of $t are left alone");
		}
	}

	# a table that refers to the parent: it is emptied by DELETE
	sql(q{CREATE TABLE kill9.refers (id int REFERENCES kill9.parent); SELECT migrate_recopy('kill9', 'kill9.parent')});
	wait_job($target, 'kill9', 'copied');
	all_equal('kill9', 'parent deleted and copied again');
}

# --- rows that are there: found in the parent, not below it
{
	define('found', '');
	sql(q{INSERT INTO found.parent SELECT g, 'old', 0 FROM generate_series(1, 3000) g;
		INSERT INTO found.child SELECT g, 'old', 0, 0 FROM generate_series(2000, 3000) g});
	start('found');
	wait_job($target, 'found', 'copied');
	all_equal('found', 'updated in place');
}

# --- dead letters
{
	define('dead', ', "batch_rows": 500', all => q{, columns => '{"bad": "1 / bad"}'});
	src(q{UPDATE ONLY parent SET bad = 0 WHERE id IN (5, 50, 5000); UPDATE ONLY child SET bad = 0 WHERE id IN (5, 3000);
		UPDATE ONLY grand SET bad = 0 WHERE id = 5});
	start('dead');
	wait_job($target, 'dead', 'copied');
	my $letters = q{SELECT string_agg(target || ' ' || n, ', ' ORDER BY target) FROM (SELECT target, count(*) AS n
		FROM migrate.dead_letter d JOIN migrate.mapping m USING (mapping_id) JOIN migrate.job j ON j.job_id = d.job_id WHERE job = 'dead' AND d.state = 'open' GROUP BY 1) x};
	is(sql($letters), 'dead.child 2, dead.grand 1, dead.parent 3', 'dead: letters of each table');
	is(sql(q{SELECT * FROM migrate_replay('dead')}), '0|0|6', 'dead: they fail again');
	is(sql($letters), 'dead.child 2, dead.grand 1, dead.parent 3', 'dead: and stay');

	# each row is fetched by its key from its own table
	src(q{UPDATE ONLY parent SET bad = 1 WHERE id IN (5, 50); UPDATE ONLY child SET bad = 1; UPDATE ONLY grand SET bad = 1});
	is(sql(q{SELECT * FROM migrate_replay('dead')}), '5|0|1', 'dead: replayed');
	src(q{DELETE FROM ONLY parent WHERE id = 5000});
	is(sql(q{SELECT * FROM migrate_replay('dead')}), '0|1|0', 'dead: superseded when it is gone, even if a child has the key');
	src(q{INSERT INTO parent VALUES (5000, 'parent 5000', 1)});
	is(sql(q{SELECT count(*) FROM ONLY dead.parent WHERE id = 5000}), '0', 'dead: its child was not put in its place');
	sql(q{SELECT migrate_recopy('dead', 'dead.parent')});
	wait_job($target, 'dead', 'copied');
	all_equal('dead', 'in the end');

	# a dry run shows rows of the table itself
	is(sql(q{SELECT string_agg(DISTINCT split_part(source_row ->> 'v', ' ', 1), ','), count(*) FROM migrate_dry_run('dead', 'dead.parent', 50)}), 'parent|50',
		'dead: a dry run reads the parent only');
	is(sql(q{SELECT count(*), count(DISTINCT source_row ->> 'v') FROM migrate_dry_run('dead', 'dead.parent', 10000) WHERE error IS NULL}), '6000|6000', 'dead: all of it, if asked');
}

# --- a key that a function computes: replay looks for another row under it
{
	src(q{CREATE TABLE p2 (id int PRIMARY KEY, v text); CREATE TABLE c2 (PRIMARY KEY (id)) INHERITS (p2);
		INSERT INTO p2 SELECT g, CASE g WHEN 7 THEN 'x' ELSE g::text END FROM generate_series(1, 100) g; INSERT INTO c2 SELECT g, 'c' FROM generate_series(101, 300) g});
	sql(q{CREATE SCHEMA f2; CREATE TABLE f2.p2 (id int PRIMARY KEY, v int); CREATE TABLE f2.c2 (w text, PRIMARY KEY (id)) INHERITS (f2.p2);
		SELECT migrate_import('f2', 'public', 'f2s', include => '{p2,c2}') FROM migrate_create_job('f2', server => 'legacy');
		CREATE FUNCTION f2.map(s f2s.p2) RETURNS SETOF f2.p2 LANGUAGE sql STABLE AS $$ SELECT s.id % 200, s.v::int $$;
		SELECT migrate_add_table('f2', 'f2s.p2', 'f2.p2', mapping => 'f2.map', key => '{"id": "id % 200"}');
		SELECT migrate_add_table('f2', 'f2s.c2', 'f2.c2', columns => '{"id": "id - 100", "v": "0", "w": "v"}', key => '{"id": "id - 100"}');
		UPDATE migrate.source_table SET only_parent = true WHERE remote_table = 'p2'});
	start('f2');
	wait_job($target, 'f2', 'copied');
	is(sql('SELECT count(*) FROM ONLY f2.p2'), '99', 'f2: one is a dead letter');
	src(q{UPDATE ONLY p2 SET v = '7' WHERE id = 7});
	# c2 has id 207, which would be the same key
	is(sql(q{SELECT * FROM migrate_replay('f2')}), '1|0|0', 'f2: a row of a child is no double');
	is(sql(q{SELECT bool_and(matched) FROM migrate_validate('f2')}), 't', 'f2: and all matches');
	src(q{INSERT INTO p2 VALUES (207, '207'); UPDATE ONLY p2 SET v = 'x' WHERE id = 7});
}

# --- rows that moved while they were copied (P10): resolved by the parent's own
{
	src(q{CREATE TABLE p3 (id int PRIMARY KEY, v text) WITH (fillfactor = 100); CREATE TABLE c3 (PRIMARY KEY (id)) INHERITS (p3);
		INSERT INTO p3 SELECT g, repeat('p', 200) FROM generate_series(1, 8000) g; INSERT INTO c3 SELECT g, 'c' FROM generate_series(1, 8000) g});
	sql(q{SELECT migrate_create_job('p3', server => 'legacy', options => '{"workers": 1, "chunk_blocks": 16, "chunk_time": "100ms", "batch_rows": 200, "rows_per_second": 3000}');
		SELECT migrate_add_table('p3', 'public.p3', 'p3.p3'); SELECT migrate_add_table('p3', 'public.c3', 'p3.c3');
		UPDATE migrate.source_table SET only_parent = true WHERE remote_table = 'p3'});
	start('p3');
	ok(wait_for($target, q{SELECT count(*) >= 2 FROM migrate.chunks WHERE job = 'p3' AND state = 'done' AND relation = 'public.p3'}), 'p3: two chunks are done');
	# from the beginning, which is copied, to the end
	src(q{UPDATE ONLY p3 SET v = repeat('q', 200) WHERE id <= 300});
	sql(q{SELECT migrate_alter_job('p3', '{"rows_per_second": 0}')});
	wait_job($target, 'p3', 'copied');
	same_rows($source, "SELECT * FROM ONLY $_", $target, "SELECT * FROM ONLY p3.$_", "p3: equal: $_") foreach qw(p3 c3);
	cmp_ok(sql(q{SELECT doubles FROM migrate.mapping WHERE target = 'p3.p3'}), '>', 0, 'p3: rows that moved were found');
	is(sql(q{SELECT count(*) FROM migrate.dead_letters WHERE job = 'p3'}), '0', 'p3: and none of the child taken for them');
}

# --- a parent that is no only_parent, with a child that is a target of another source
{
	src(q{CREATE TABLE whole (id int PRIMARY KEY, v text); INSERT INTO whole SELECT g, 'w' FROM generate_series(1, 500) g;
		CREATE TABLE alone (id int PRIMARY KEY, v text); INSERT INTO alone SELECT g, 'a' FROM generate_series(1, 700) g});
	sql(q{CREATE SCHEMA mixed; CREATE TABLE mixed.whole (id int PRIMARY KEY, v text); CREATE TABLE mixed.alone (PRIMARY KEY (id)) INHERITS (mixed.whole);
		SELECT migrate_create_job('mixed', server => 'legacy');
		SELECT migrate_add_table('mixed', 'public.whole', 'mixed.whole'); SELECT migrate_add_table('mixed', 'public.alone', 'mixed.alone')});
	start('mixed');
	wait_job($target, 'mixed', 'copied');
	is(sql(q{SELECT bool_and(matched) FROM migrate_validate('mixed')}), 't', 'mixed: rows of a child that is a target are not the parent\'s');
	sql(q{SELECT migrate_recopy('mixed', 'mixed.whole')});
	wait_job($target, 'mixed', 'copied');
	same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM ONLY mixed.$_", "mixed: equal: $_") foreach qw(whole alone);
}

# --- and one whose children are nobody's target: the tree is one table
{
	sql(q{CREATE SCHEMA tree; CREATE TABLE tree.parent (id int, v text, bad int);
		SELECT migrate_create_job('tree', server => 'legacy'); SELECT migrate_add_table('tree', 'public.parent', 'tree.parent')});
	start('tree');
	wait_job($target, 'tree', 'copied');
	same_rows($source, 'SELECT id, v, bad FROM parent', $target, 'SELECT * FROM tree.parent', 'tree: parent with all below');
}

done_testing();
