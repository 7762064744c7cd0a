
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# The worker of the way back that outlives the job worker that started it: its
# slot is not forgotten, nothing of the source is applied before it has left
# (P30), and no cutover arms a way back beside it.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source', logical => 1);
my $target = new_target('target', logical => 1, preload => 1);

connect_source($target, $source, server => 'legacy');
$source->safe_psql('postgres', q{
	CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
	INSERT INTO account SELECT g, 100 FROM generate_series(1, 100) g});
$target->safe_psql('postgres', q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"retry_max_delay": "300ms"}');
	SELECT migrate_add_schema('j', 'public');
	SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
$target->safe_psql('postgres', q{SELECT migrate_accept('j', 'cutover', 'validation', 'the test compares')});

sub pid_of { return value($target, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'migrate $_[0]'") }

sub call
{
	my ($what) = @_;
	my $pid = fork() // die;
	return $pid if $pid;
	open(STDOUT, '>', '/dev/null');
	open(STDERR, '>', '/dev/null');
	exec 'psql', '-Xq', '-d', $target->connstr('postgres'), '-c', "CALL migrate_$what('j')";
	exit 1;
}

$target->safe_psql('postgres', q{CALL migrate_cutover('j')});
$target->safe_psql('postgres', 'UPDATE account SET balance = 101');

# --- the rollback is decided, its job worker ends, the reverse worker does not

set_fault($target, 'rollback-closed:wait');
my $client = call('rollback');
ok(wait_for($target, q{SELECT closed FROM migrate.cutover WHERE direction = 'back'}), 'the target is closed, the source not open yet');
my $reverse = pid_of('reverse');
my $job = pid_of('job');
# not in the middle of anything: it has brought all
kill 'STOP', $reverse;
$target->safe_psql('postgres', "SELECT pg_terminate_backend($job)");
ok(wait_for($target, "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $job"), 'the job worker ends');
set_fault($target, '');
ok(wait_for($target, q{SELECT state = 'streaming' FROM migrate.job}, timeout => 60), 'the next one opens the source');
waitpid($client, 0);
is(value($source, 'SELECT min(balance), max(balance) FROM account'), '101|101', 'which has everything');
$source->safe_psql('postgres', 'UPDATE account SET balance = 102');
ok(wait_for($target, q{SELECT count(*) = 1 FROM migrate.event WHERE kind = 'reverse' AND message LIKE '%has not left%'}, timeout => 60), 'it is told what is waited for');
is(pid_of('reverse'), $reverse, 'the reverse worker still lives');
is(value($target, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'migrate apply'}), '0', 'P30: nothing is applied while it lives');
is(value($target, 'SELECT min(balance), max(balance) FROM account'), '101|101', 'nor has been');
is(value($target, q{SELECT (SELECT count(*) FROM migrate.reverse) + (SELECT count(*) FROM migrate.made_object WHERE side = 'target' AND kind = 'replication slot')
	+ (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'migrate_back%')}), '3', 'its slot is there, and on record');

kill 'CONT', $reverse;
ok(wait_for($target, 'SELECT min(balance) = 102 FROM account'), 'it leaves, and what came meanwhile is applied');
ok(wait_for($target, q{SELECT (SELECT count(*) FROM migrate.reverse) + (SELECT count(*) FROM migrate.made_object WHERE side = 'target' AND kind = 'replication slot')
	+ (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'migrate_back%') = 0}), 'slot and record are gone');
$source->safe_psql('postgres', 'UPDATE account SET balance = 103');
ok(wait_for($target, 'SELECT min(balance) = 103 FROM account'), 'the stream goes on');
same_rows($source, 'SELECT * FROM account', $target, 'SELECT * FROM account', 'equal');

# --- while cut over: the next job worker waits for the lock before it starts one

$target->safe_psql('postgres', q{CALL migrate_cutover('j')});
ok(wait_for(sub { pid_of('reverse') ne '' }), 'cut over again');
$reverse = pid_of('reverse');
$job = pid_of('job');
kill 'STOP', $reverse;
$target->safe_psql('postgres', "SELECT pg_terminate_backend($job)");
ok(wait_for(sub { my $p = pid_of('job'); return $p ne '' && $p ne $job }, timeout => 60), 'another job worker');
$target->safe_psql('postgres', 'UPDATE account SET balance = 104');
kill 'CONT', $reverse;
ok(wait_for($source, 'SELECT min(balance) = 104 FROM account'), 'one reverse worker follows the other, and nothing is lost');
$target->safe_psql('postgres', q{CALL migrate_rollback('j')});
same_rows($source, 'SELECT * FROM account', $target, 'SELECT * FROM account', 'equal after a rollback');
$source->safe_psql('postgres', 'UPDATE account SET balance = 105 WHERE id = 1');
ok(wait_for($target, 'SELECT max(balance) = 105 FROM account'), 'and the stream goes on');

done_testing();
