
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# What the way back may not do: delete rows that were never taken over (TRUNCATE),
# or be shut out by the fence of another job; and P4 in a rollback: the position from which the stream goes on is on the source's disk.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source', logical => 1, conf => "wal_buffers = 16MB\nautovacuum = off\n");
my $target = new_target('target', logical => 1, preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

sub gone_back
{
	my $position = value($target, 'SELECT pg_current_wal_insert_lsn()');
	sql('SELECT pg_logical_emit_message(true, $$test$$, $$x$$)');
	return wait_for($target, "SELECT bool_and(confirmed_flush_lsn > '$position') FROM pg_replication_slots WHERE slot_name LIKE 'migrate_back%'");
}

src(q{
	CREATE TABLE item (id int PRIMARY KEY, hidden boolean, t text);
	INSERT INTO item SELECT g, g > 90, 't' || g FROM generate_series(1, 100) g;
	CREATE TABLE plain (id int PRIMARY KEY, hidden boolean, t text);
	INSERT INTO plain SELECT * FROM item;
	CREATE TABLE other (t text)});
sql(q{
	CREATE TABLE item (id int PRIMARY KEY, t text);
	CREATE TABLE plain (id int PRIMARY KEY, hidden boolean, t text);
	SELECT migrate_create_job('j', server => 'legacy', options => '{"retry_max_delay": "300ms"}');
	SELECT migrate_import('j', 'public', 'legacy');
	CREATE FUNCTION item_of(s legacy.item) RETURNS SETOF item LANGUAGE sql STABLE
		AS 'SELECT s.id, s.t WHERE NOT s.hidden';
	CREATE FUNCTION item_back(s item) RETURNS SETOF legacy.item LANGUAGE sql STABLE
		AS 'SELECT s.id, false, s.t';
	SELECT migrate_add_table('j', 'public.item', 'public.item', mapping => 'item_of');
	SELECT migrate_add_table('j', 'public.plain', 'public.plain', filter => 'NOT hidden');
	SELECT migrate_set_inverse('j', 'public.item', 'item_back(item)');
	SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
sql(q{SELECT migrate_accept('j', 'cutover', 'validation', 'the test compares')});

# --- a second job on the same source table
sql(q{
	CREATE TABLE plain2 (id int PRIMARY KEY, hidden boolean, t text);
	SELECT migrate_create_job('k', server => 'legacy', options => '{"retry_max_delay": "300ms"}');
	SELECT migrate_add_table('k', 'public.plain', 'public.plain2');
	SELECT migrate_start('k')});
wait_job($target, 'k', 'streaming');
sql(q{SELECT migrate_accept('k', 'cutover', 'validation', 'the test compares')});

sql(q{CALL migrate_cutover('j')});

my ($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_cutover('k')});
isnt($rc, 0, 'shared: the other job cannot be cut over now');
like($err, qr/shared_source: Already fenced for another job.*public\.plain \(job "j"\)/, 'shared: and it says why');
sql(q{UPDATE plain SET t = 'changed' WHERE id = 1});
ok(gone_back(), 'shared: the way back of the first goes on');
ok(wait_for($target, q{SELECT t = 'changed' FROM plain2 WHERE id = 1}), 'shared: and the second follows its source');

# --- TRUNCATE
sql('TRUNCATE plain');
gone_back();
is(src('SELECT count(*), bool_and(hidden) FROM plain'), '10|t', 'TRUNCATE: rows that were never taken over stay');
is(sql(q{SELECT count(*) FROM migrate.dead_letter WHERE state = 'open'}), '0', 'TRUNCATE: no dead letter');
# --- P4: the source forgets what it has not flushed, after the rollback is decided

my $walwriter = value($source, q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
set_fault($target, 'rollback-commit:wait');
my $client = fork() // die;
if ($client == 0)
{
	open(STDOUT, '>', '/dev/null');
	open(STDERR, '>', '/dev/null');
	exec 'psql', '-Xq', '-d', $target->connstr('postgres'), '-c', q{CALL migrate_rollback('j', max_downtime => '2min')};
	exit 1;
}
ok(wait_for($target, q{SELECT count(*) = 1 FROM migrate.workers WHERE job = 'j' AND role = 'job' AND phase = 'commit'}), 'P4: the rollback is about to commit');
kill 'STOP', $walwriter;
src(q{SET synchronous_commit = off; INSERT INTO other SELECT repeat(md5(g::text), 30) FROM generate_series(1, 3000) g});
my ($insert, $flushed) = split /\|/, src('SELECT pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn() > 1000000, pg_current_wal_flush_lsn()');
is($insert, 't', 'P4: the source has 1 MB that is not on its disk');
set_fault($target, 'rollback-closed:wait');
ok(wait_for($target, q{SELECT closed FROM migrate.cutover WHERE direction = 'back' AND state = 'running'}), 'P4: it is decided');
$source->stop('immediate');
start_again($source);
set_fault($target, '');
waitpid($client, 0);
is($?, 0, 'P4: the rollback has gone on');
src(q{INSERT INTO plain VALUES (1000, false, 'after the crash')});
ok(wait_for($target, 'SELECT count(*) = 1 FROM plain WHERE id = 1000', timeout => 30), 'P4: what is written after the crash is in the stream, and not before its position')
  or diag sql('SELECT applied_lsn FROM migrate.apply_position'), src('SELECT pg_current_wal_insert_lsn()');

done_testing();
