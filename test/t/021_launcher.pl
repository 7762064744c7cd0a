# Copyright (c) 2026, the migrate authors; PostgreSQL License

# With migrate in shared_preload_libraries: after a restart, a crash or the
# death of a worker, jobs go on by themselves, in every database; the launcher
# stands in nobody's way; and two worker slots are enough.

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
my @dbs = ('postgres', 'second db');

sub sql { return $target->safe_psql($_[1] || 'postgres', $_[0]); }

$source->safe_psql('postgres', q{CREATE TABLE t (id int PRIMARY KEY, v text);
	INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 50000) g; VACUUM ANALYZE t});
sql('CREATE DATABASE "second db"');
sql('CREATE DATABASE other');
sql('CREATE EXTENSION migrate CASCADE', 'second db');
foreach my $db (@dbs)
{
	connect_source($target, $source, server => 'legacy', db => $db);
	sql(q{SELECT migrate_create_job('j', server => 'legacy', options => '{"chunk_blocks": 16, "batch_rows": 200, "rows_per_second": 1000, "retry_max_delay": "300ms"}');
		SELECT migrate_add_table('j', 'public.t', 'copy.t'); SELECT migrate_start('j')}, $db);
}

# until work was done by a worker that was not there before
sub goes_on
{
	my ($what, $since) = @_;
	foreach my $db (@dbs)
	{
		ok(wait_for($target, "SELECT count(*) > 0 FROM migrate._live_workers() WHERE role = 'loader' AND rows > 0 AND started > '$since'", db => $db, timeout => 30),
			"$what: goes on in database $db");
	}
	is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'migrate job'}), '2', "$what: one job worker each (P22)");
	return;
}
sub now { return sql('SELECT clock_timestamp()'); }

goes_on('start', '2000-01-01');

# the launcher is told of a job worker's end, also of one that it did not start
sub terminate
{
	my ($what) = @_;
	my $t = now();
	sql(q{SELECT pg_terminate_backend(pid) FROM migrate._live_workers() WHERE slot = 0}, $_) for @dbs;
	goes_on($what, $t);
	return;
}
terminate('terminated job workers');
my $t = now();
my $begin = time();
$target->stop('fast');
$target->start;
goes_on('restart', $t);
cmp_ok(time() - $begin, '<', 15, 'restart: within seconds');
$t = now();
$target->stop('immediate');
$target->start;
goes_on('immediate restart', $t);
foreach my $role ('loader', 'job', 'launcher')
{
	$t = now();
	ok(kill9_backend($target, "migrate $role"), "kill -9 of a $role");
	goes_on("kill -9 of a $role", $t);
}
$t = now();
hard_restart($target);
goes_on('kill -9 of the server', $t);

terminate('terminated job workers, again');

# nothing stands in the way of databases
$begin = time();
sql('CREATE DATABASE made TEMPLATE other');
sql('DROP DATABASE made');
sql('ALTER DATABASE other ALLOW_CONNECTIONS false');
cmp_ok(time() - $begin, '<', 8, 'CREATE and DROP DATABASE are not held up');
like(($target->psql('postgres', 'DROP DATABASE "second db"'))[2], qr/is being accessed by other users/, 'a running job keeps its database');

sql(q{SELECT migrate_alter_job('j', '{"rows_per_second": 0}')}, $_) for @dbs;
foreach my $db (@dbs)
{
	is(sql(q{SELECT migrate_wait('j', 'copied', '60s')}, $db), 'copied', "copied in database $db");
	same_rows($source, 'SELECT * FROM t', $target, 'SELECT * FROM copy.t', "equal in database $db", db2 => $db);
}
ok(wait_for($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'second db'}), 'a copied job uses no worker');
sql('DROP DATABASE "second db"');

# A table of that name that is not ours: the starter, a superuser, must not
# read it.
sql(q{CREATE ROLE mallory LOGIN; CREATE DATABASE trap OWNER mallory; ALTER ROLE mallory CREATEDB});
sql(q{SET SESSION AUTHORIZATION mallory; CREATE SCHEMA migrate; CREATE TABLE migrate.seen (who text);
	CREATE FUNCTION migrate.f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO migrate.seen VALUES (current_user); RETURN 1; END $$;
	CREATE VIEW migrate.job AS SELECT migrate.f() AS job_id, 10::oid AS owner, 'x'::text AS job, 'copying'::text AS state, 'run'::text AS wanted;
	CREATE TABLE migrate.job_state AS SELECT 'copying'::text AS state, true AS works}, 'trap');
$target->restart;
ok(wait_for($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'migrate launcher'}), 'launcher after the restart');
sleep(2);
is(sql('SELECT count(*) FROM migrate.seen', 'trap'), '0', 'a false migrate.job is not read');

# Two slots: the launcher, and one worker that does it all; two jobs in turn.
$target->append_conf('postgresql.conf', "max_worker_processes = 2\nmax_logical_replication_workers = 0\nmax_parallel_workers = 0\n");
$target->restart;
sql(qq{SELECT migrate_create_job('tight$_', server => 'legacy', options => '{"chunk_blocks": 16, "batch_rows": 200, "rows_per_second": 5000}');
	SELECT migrate_add_table('tight$_', 'public.t', 'tight$_.t')}) for 1 .. 2;
sql(q{SELECT migrate_start('tight1')});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate._live_workers() WHERE role = 'job' AND rows > 0}), 'tight: the job worker copies by itself');
like(($target->psql('postgres', q{SELECT migrate_start('tight2')}))[2], qr/WARNING:  job "tight2" waits for a free worker slot/, 'tight: the second job waits, and says so');
$begin = time();
sql(q{SELECT migrate_pause('tight1')});
is(sql(q{SELECT migrate_wait('tight1', 'paused', '10s')}), 'paused', 'tight: paused in the middle of a chunk');
cmp_ok(time() - $begin, '<', 3, 'tight: promptly');
sql(qq{SELECT migrate_alter_job('tight$_', '{"rows_per_second": 0}')}) for 1 .. 2;
is(sql(q{SELECT migrate_wait('tight2', 'copied', '90s')}), 'copied', 'tight: the second job begins by itself');
$target->psql('postgres', q{SELECT migrate_resume('tight1')});
is(sql(q{SELECT migrate_wait('tight1', 'copied', '90s')}), 'copied', 'tight: and the first goes on');
same_rows($source, 'SELECT * FROM t', $target, "SELECT * FROM tight$_.t", "tight$_: equal") for 1 .. 2;
is(sql(q{SELECT count(DISTINCT job_id) FROM migrate.event WHERE kind = 'no_worker_slot' AND message ~ 'max_worker_processes'}), '2', 'tight: told, each');

done_testing();
