# Copyright (c) 2026, the migrate authors; PostgreSQL License

# What goes wrong in a night: a full disk, memory refused, too few worker
# slots, two jobs at once, an owner without superuser, and mapping functions
# that raise, sleep, write, return NULL or return the same key twice.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;

my $source = new_source('source');
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

# start a job whatever preflight warns of a table without an index
sub start
{
	my ($job) = @_;
	return sql(qq{SELECT migrate_accept('$job', check_name, object, 'test') FROM migrate_preflight('$job') WHERE status = 'fail';
		SELECT migrate_start('$job')});
}

# --- a failing allocation, and a full disk, in a loader
src(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('v', 100) FROM generate_series(1, 30000) g});
foreach my $case ([ 'chunk-batch', '53200' ], [ 'before-commit', '53200' ])
{
	my ($point, $state) = @$case;
	my $job = 'oom_' . ($point =~ tr/-/_/r);
	sql(qq{ALTER SYSTEM SET migrate.fault = '$point:error'});
	sql('SELECT pg_reload_conf()');
	sql(qq{SELECT migrate_create_job('$job', server => 'legacy', options => '{"retry_time": "1s", "retry_max_delay": "200ms"}');
		SELECT migrate_add_table('$job', 'public.t', '$job.t')});
	start($job);
	wait_job($target, $job, 'failed');
	like(sql(qq{SELECT last_sqlstate || ' ' || last_error FROM migrate.job WHERE job = '$job'}), qr/^$state fault injected at "$point"/,
		"$point: the job failed with the error in view");
	is(sql(qq{SELECT count(*) FROM migrate.dead_letters WHERE job = '$job'}), '0', "$point: which is no row's fault");
	is(sql("SELECT count(*) FROM $job.t"), '0', "$point: nothing half done");
	sql(q{ALTER SYSTEM RESET migrate.fault});
	sql('SELECT pg_reload_conf()');
	sql(qq{SELECT migrate_resume('$job')});
	wait_job($target, $job, 'copied');
	same_rows($source, 'SELECT * FROM t', $target, "SELECT * FROM $job.t", "$point: resumed and equal");
}

SKIP:
{
	# a file that must not grow beyond 2 MB: the loader inherits the limit from
	# the postmaster, as it would a full file system
	my $small = new_target('small');
	connect_source($small, $source, server => 'legacy');
	src(q{CREATE TABLE big (id int PRIMARY KEY, v text); ALTER TABLE big ALTER v SET STORAGE PLAIN;
		INSERT INTO big SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 40000) g});
	$small->safe_psql('postgres', q{SELECT migrate_create_job('full', server => 'legacy', options => '{"retry_time": "1s", "retry_max_delay": "200ms"}');
		SELECT migrate_add_table('full', 'public.big', 'small.big')});
	# RLIMIT_FSIZE of the running postmaster, which its children inherit
	my $pid = (split /\n/, PostgreSQL::Test::Utils::slurp_file($small->data_dir . '/postmaster.pid'))[0];
	skip 'prlimit is not there', 4 if system("prlimit --pid $pid --fsize=20000000:20000000") != 0;
	$small->safe_psql('postgres', q{SELECT migrate_start('full')});
	wait_job($small, 'full', 'failed');
	like($small->safe_psql('postgres', q{SELECT last_sqlstate || ' ' || last_error FROM migrate.job}), qr/^(53100|58030|54000|53400|XX000).*could not (extend|write)/i,
		'full disk: the job failed with the error in view');
	system("prlimit --pid $pid --fsize=unlimited:unlimited") == 0 or $small->restart;
	$small->safe_psql('postgres', q{SELECT migrate_resume('full')});
	wait_job($small, 'full', 'copied');
	same_rows($source, 'SELECT * FROM big', $small, 'SELECT * FROM small.big', 'full disk: resumed and equal');
	$small->stop;
}

# --- mapping functions that misbehave
src(q{CREATE TABLE m (id int PRIMARY KEY, v int); INSERT INTO m SELECT g, g FROM generate_series(1, 1000) g});
sql(q{CREATE SCHEMA m; CREATE TABLE m.log (id int);
	SELECT migrate_create_job('setup', server => 'legacy'); SELECT migrate_import('setup', 'public', 'src', include => '{m}')});
my %mapping = (
	raises => [ q{BEGIN IF o.id % 100 = 3 THEN RAISE EXCEPTION 'no % here', o.id USING ERRCODE = 'P0099', DETAIL = 'why'; END IF; RETURN NEXT ROW(o.id, o.v)::m.raises; END},
		'990', '10', 'id % 100 <> 3' ],
	sleeps => [ q{BEGIN PERFORM pg_sleep(0.001); RETURN NEXT ROW(o.id, o.v)::m.sleeps; END}, '1000', '0', 'true' ],
	writes => [ q{BEGIN INSERT INTO m.log VALUES (o.id); RETURN NEXT ROW(o.id, o.v / (o.id - 500))::m.writes; END}, '999', '1', 'id <> 500' ],
	nulls => [ q{BEGIN IF o.id % 2 = 0 THEN RETURN NEXT NULL::m.nulls; ELSE RETURN NEXT ROW(o.id, o.v)::m.nulls; END IF; END}, '500', '0', 'id % 2 = 1' ],
	twice => [ q{BEGIN RETURN NEXT ROW(o.id, o.v)::m.twice; IF o.id % 100 = 7 THEN RETURN NEXT ROW(o.id, -o.v)::m.twice; END IF; END}, '990', '10', 'id % 100 <> 7' ]);
foreach my $name (sort keys %mapping)
{
	my ($body, $rows, $dead, $where) = @{ $mapping{$name} };
	sql(qq{CREATE TABLE m.$name (id int PRIMARY KEY, v int);
		CREATE FUNCTION m.map_$name(o src.m) RETURNS SETOF m.$name LANGUAGE plpgsql AS \$\$$body\$\$;
		SELECT migrate_create_job('m_$name', server => 'legacy', options => '{"batch_rows": 128}');
		SELECT migrate_add_table('m_$name', 'src.m', 'm.$name', mapping => 'm.map_$name');
		SELECT migrate_start('m_$name')});
}
foreach my $name (sort keys %mapping)
{
	my ($body, $rows, $dead, $where) = @{ $mapping{$name} };
	wait_job($target, "m_$name", 'copied');
	is(sql("SELECT count(*) FROM m.$name"), $rows, "mapping that $name: $rows rows are there");
	is(sql("SELECT count(*) FROM migrate.dead_letters WHERE job = 'm_$name' AND state = 'open'"), $dead, "mapping that $name: $dead dead letters");
	is(sql("SELECT count(*) FROM migrate.chunk_mapping c JOIN migrate.job j USING (job_id) WHERE job = 'm_$name' AND rows_read <> rows_mapped + rows_filtered + rows_dead"),
		'0', "mapping that $name: conservation");
}
is(sql('SELECT count(*), count(DISTINCT id) FROM m.log'), '999|999', 'what a mapping wrote for rows that were tried again is there once');
is(sql(q{SELECT sqlstate, message, detail, source_row->>'v' FROM migrate.dead_letters WHERE job = 'm_raises' AND key->>'id' = '103'}),
	'P0099|no 103 here|why|103', 'a letter has the whole error');

# --- replay after the mapping is fixed; nothing is doubled by a second replay
sql(q{CREATE OR REPLACE FUNCTION m.map_raises(o src.m) RETURNS SETOF m.raises LANGUAGE sql STABLE AS 'SELECT o.id, o.v'});
src('UPDATE m SET v = -3 WHERE id = 103; DELETE FROM m WHERE id = 203');
is(sql(q{SELECT * FROM migrate_replay('m_raises')}), '9|1|0', 'nine replayed, one superseded, since the row is gone');
is(sql(q{SELECT * FROM migrate_replay('m_raises')}), '0|0|0', 'a second replay finds none');
is(sql('SELECT v FROM m.raises WHERE id = 103'), '-3', 'the row as it is on the source now');
is(sql('SELECT count(*), count(DISTINCT id) FROM m.raises'), '999|999', 'and each is there once');
is(sql(q{SELECT bool_and(matched) FROM migrate_validate('m_raises')}), 't', 'validated');

# --- budget: a bad mapping does not make a million letters
sql(q{CREATE TABLE m.budget (id int PRIMARY KEY, v int);
	SELECT migrate_create_job('budget', server => 'legacy', options => '{"max_dead_letters": 50, "batch_rows": 100, "chunk_blocks": 16, "workers": 1}');
	SELECT migrate_add_table('budget', 'public.t', 'm.budget', columns => '{"v": "v::int"}');
	SELECT migrate_start('budget')});
ok(wait_for($target, q{SELECT wanted = 'pause' AND pause_reason IS NOT NULL FROM migrate.job WHERE job = 'budget'}), 'budget: the job pauses itself');
like(sql(q{SELECT pause_reason FROM migrate.job WHERE job = 'budget'}), qr/max_dead_letters/, 'budget: and says why');
cmp_ok(sql(q{SELECT count(*) FROM migrate.dead_letters WHERE job = 'budget'}), '<', 30000, 'budget: long before every row was dead');
is(sql(q{SELECT count(*) > 0 FROM migrate.events WHERE job = 'budget' AND level = 'alert'}), 't', 'budget: with an alert');

# --- two jobs at once, and an owner who may little
sql(q{CREATE ROLE mover LOGIN; SELECT migrate_grant('mover'); GRANT CREATE ON DATABASE postgres TO mover});
connect_source($target, $source, server => 'moved', for => 'mover');
sql(q{SET SESSION AUTHORIZATION mover;
	SELECT migrate_create_job('owned', server => 'moved', options => '{"chunk_blocks": 16}');
	SELECT migrate_add_table('owned', 'public.t', 'owned.t'); SELECT migrate_start('owned')});
sql(q{SELECT migrate_create_job('beside', server => 'legacy', options => '{"chunk_blocks": 16}');
	SELECT migrate_add_table('beside', 'public.t', 'beside.t'); SELECT migrate_start('beside')});
wait_job($target, $_, 'copied') for qw(owned beside);
same_rows($source, 'SELECT * FROM t', $target, "SELECT * FROM $_.t", "$_: equal") for qw(owned beside);
is(sql(q{SET SESSION AUTHORIZATION mover; SELECT string_agg(DISTINCT job, ',') FROM migrate.chunks}), 'owned', 'an owner sees only his jobs');
is(sql(q{SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'owned'}), 'mover', 'and the tables are his');
my ($ret, $out, $err) = $target->psql('postgres', q{SET SESSION AUTHORIZATION mover; SELECT migrate_pause('beside')});
like($err, qr/job "beside" does not exist/, 'nor can he touch another');

# --- no worker slot left: slower, told, never stuck
{
	my $tight = new_target('tight', conf => "max_worker_processes = 1\nmax_parallel_workers = 0\nmax_logical_replication_workers = 0\n");
	connect_source($tight, $source, server => 'legacy');
	$tight->safe_psql('postgres', q{SELECT migrate_create_job('j', server => 'legacy', options => '{"workers": 4, "chunk_blocks": 16}');
		SELECT migrate_add_table('j', 'public.t', 'tight.t')});
	is($tight->safe_psql('postgres', q{SELECT count(*) > 0 FROM migrate_preflight('j') WHERE status = 'warn' AND detail LIKE '%max_worker_processes%'}),
		't', 'too few worker slots: preflight says so');
	$tight->safe_psql('postgres', q{SELECT migrate_start('j')});
	wait_job($tight, 'j', 'copied');
	same_rows($source, 'SELECT * FROM t', $tight, 'SELECT * FROM tight.t', 'too few worker slots: equal');
	is($tight->safe_psql('postgres', q{SELECT count(*) > 0 FROM migrate.events WHERE level = 'warning' AND message LIKE '%max_worker_processes%'}),
		't', 'too few worker slots: told');
	$tight->stop;
}

# --- a loader's memory after 1,000 chunks is that after 10
src(q{CREATE TABLE leak (id int PRIMARY KEY, v text); INSERT INTO leak SELECT g, repeat('x', 300) FROM generate_series(1, 450000) g});
sql(q{SELECT migrate_create_job('leak', server => 'legacy', options => '{"workers": 1, "chunk_blocks": 16, "chunk_time": "1ms", "batch_rows": 500}');
	SELECT migrate_add_table('leak', 'public.leak', 'leak.leak'); SELECT migrate_start('leak')});
my ($first, $chunks, @last) = (0, 0);
while (job_state($target, 'leak') =~ /^(defined|preparing|copying)$/)
{
	my ($c, $m) = split /\|/, sql(q{SELECT chunks, memory FROM migrate.workers WHERE job = 'leak' AND role = 'loader' AND chunks >= 10 LIMIT 1}) || '0|0';
	next unless $c;
	$first ||= $m;
	$chunks = $c;
	push @last, $m;
	shift @last if @last > 10;
}
wait_job($target, 'leak', 'copied');
cmp_ok(sql(q{SELECT count(*) FROM migrate.chunks WHERE job = 'leak'}), '>', 1000, 'leak: more than 1,000 chunks');
cmp_ok($chunks, '>', 500, "leak: seen at chunk $chunks");
# what one chunk had at hand when it was looked at is no leak
my ($last) = sort { $a <=> $b } @last;
cmp_ok($last, '<=', $first * 1.1 + 65536, "leak: $first bytes at first, $last in the end");

done_testing();
