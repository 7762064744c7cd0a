# Copyright (c) 2026, the migrate authors; PostgreSQL License

# P18: a source with another past than the one that was followed.  Restored from
# files without a new timeline, and written to beyond where we had come, it looks
# like the old one; so does one that has only crashed, which must go on, with
# every change once.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source', logical => 1, conf => "autovacuum = off\n");
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

sub caught_up
{
	my ($name) = @_;
	my $lsn = src('SELECT pg_current_wal_insert_lsn()');
	src('SELECT txid_current()');
	return ok(wait_for($target, "SELECT applied_lsn >= '$lsn' FROM migrate.apply_position"), "$name: caught up");
}

# and durable here, so that a crash does not lose it
sub taken_over
{
	my $lsn = src('SELECT pg_current_wal_insert_lsn()');
	caught_up('taken over');
	return ok(wait_for($source, "SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots"), 'taken over: and confirmed');
}

sub equal
{
	my ($name) = @_;
	caught_up($name);
	same_rows($source, 'SELECT * FROM a', $target, 'SELECT * FROM j.a', "$name: equal");
	same_rows($source, 'SELECT * FROM bag', $target, 'SELECT * FROM j.bag', "$name: equal, with every row once");
	return;
}

# a commit each
my $n = 0;
sub work
{
	for (1 .. $_[0]) { $n++; src("BEGIN; INSERT INTO bag VALUES ($n, 'new'); INSERT INTO a VALUES (1000 + $n, 'new'); UPDATE a SET v = v || $n WHERE id <= 5; COMMIT"); }
	return;
}

sub resync
{
	my ($name, $pattern) = @_;
	ok(wait_for($target, q{SELECT state = 'failed' FROM migrate.job}), "$name: failed") or return;
	like(sql('SELECT last_error FROM migrate.job'), $pattern, "$name: says why");
	like(sql('SELECT last_error FROM migrate.job'), qr/migrate_resync makes it good/, "$name: and what to do");
	sql(q{SELECT migrate_resync('j')});
	wait_job($target, 'j', 'streaming') or do { done_testing(); exit; };
	equal($name);
	return;
}

my $copies = 0;
sub copy_files
{
	my $to = $source->backup_dir . '/cold' . ++$copies;
	$source->stop;
	PostgreSQL::Test::RecursiveCopy::copypath($source->data_dir, $to);
	$source->start;
	return $to;
}

# The source is what it was then; nobody looks before it has been written to.
sub restore
{
	my ($from, $recovery) = @_;
	$target->stop('immediate');
	$source->stop('immediate');
	system('rm', '-rf', $source->data_dir) == 0 or die;
	PostgreSQL::Test::RecursiveCopy::copypath($from, $source->data_dir);
	chmod(0700, $source->data_dir);
	if ($recovery)
	{
		append_to_file($source->data_dir . '/recovery.signal', '');
		append_to_file($source->data_dir . '/postgresql.conf', "restore_command = 'false'\n");
	}
	$source->start;
	$source->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
	return;
}

# beyond what is here
sub write_beyond
{
	src(q{CREATE TABLE IF NOT EXISTS filler (v text); INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 3000)});
	work(3);
	$target->start;
	cmp_ok(sql(sprintf(q{SELECT pg_wal_lsn_diff('%s', spooled_lsn) FROM migrate.stream_position}, src('SELECT pg_current_wal_lsn()'))), '>', 0, 'the source is beyond what was taken over');
	return;
}

src(q{
	CREATE TABLE a (id int PRIMARY KEY, v text);
	INSERT INTO a SELECT g, 'old' FROM generate_series(1, 100) g;
	CREATE TABLE bag (v int, w text);
	ALTER TABLE bag REPLICA IDENTITY FULL;
	INSERT INTO bag SELECT g % 5, 'old' FROM generate_series(1, 100) g});
sql(q{SELECT migrate_create_job('j', server => 'legacy', options => '{"capture": "logical", "retry_max_delay": "300ms"}');
	SELECT migrate_add_schema('j', 'public', target_schema => 'j'); SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming') or do { done_testing(); exit; };
work(5);
equal('streaming');

# ---------------------------- crashes: the slot forgets what was confirmed
foreach my $round (1 .. 3)
{
	src('CHECKPOINT') if $round == 1;
	work(5);
	caught_up("crash $round");
	my $before = sql('SELECT spooled_lsn FROM migrate.stream_position');
	$target->stop('immediate') if $round == 2;
	$source->stop('immediate');
	$source->start;
	is(src("SELECT confirmed_flush_lsn < '$before' FROM pg_replication_slots"), 't', "crash $round: the slot has forgotten") if $round == 2;
	$target->start if $round == 2;
	work(2);
	equal("crash $round");
}
kill9_backend($source, 'walsender');
$source->poll_query_until('postgres', 'SELECT true');
equal('crash of the sender');
# idle since: nothing but what it sends again ends the doubt
{
	work(1);
	caught_up('idle');
	$target->stop('immediate');
	$source->stop('immediate');
	$source->start;
	$target->start;
	ok(wait_for($target, sprintf(q{SELECT spooled_lsn >= '%s' FROM migrate.stream_position}, src('SELECT pg_current_wal_lsn()'))), 'idle: goes on');
	ok(wait_for($source, sprintf(q{SELECT confirmed_flush_lsn >= '%s' FROM pg_replication_slots}, sql('SELECT spooled_lsn FROM migrate.stream_position'))), 'idle: and confirms');
	equal('idle');
}
is(sql(q{SELECT count(*) FROM migrate.event WHERE kind = 'stream_lost' OR message ~ 'is lost'}), '0', 'no stream was lost by a crash');

# ------------------------------------------------------------- restored
{
	my $files = copy_files();
	work(10);
	taken_over();
	restore($files, 1);
	write_beyond();
	resync('to a new timeline', qr/the source is on timeline 2, not 1/);
}
{
	my $files = copy_files();
	work(10);
	taken_over();
	restore($files);
	write_beyond();
	resync('same timeline', qr/the transaction that was committed at .* is not there any more/);
}
# the last commit is before the copy of the files, and no other is missing
{
	work(1);
	my $files = copy_files();
	src(q{INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 1000)});
	ok(wait_for($target, sprintf(q{SELECT spooled_lsn >= '%s' FROM migrate.stream_position}, src('SELECT pg_current_wal_lsn()'))), 'nothing but other tables\' changes');
	restore($files);
	work(1);
	write_beyond();
	resync('one more than we have', qr/it has a transaction, committed at .*, that was not there when/);
}
# and the other way: ours is missing, no other is in its place
{
	my $files = copy_files();
	src(q{INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 1000)});
	work(1);
	taken_over();
	restore($files);
	src(q{INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 5000)});
	$target->start;
	resync('ours is missing', qr/the transaction that was committed at .* is not there any more/);
}

# --------------------------------- a dump of the target: tables, and no job
{
	work(3);
	caught_up('before the dump');
	sql(q{SELECT migrate._arm_guards(job_id) FROM migrate.job});
	my $slot = src('SELECT string_agg(slot_name || active, \' \') FROM pg_replication_slots');
	my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
	$target->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $target->connstr('postgres') ], 'dump: made while it streams');
	my ($out, $err) = run_command([ 'pg_restore', '-l', $dump ]);
	unlike($out, qr/spool|stream_position/, 'dump: nothing of the spool, not even its privileges');
	sql('CREATE DATABASE again');
	$target->command_ok([ 'pg_restore', '--exit-on-error', '-d', $target->connstr('again'), $dump ], 'dump: restored without an error');
	sub again { return $target->safe_psql('again', $_[0]); }
	is(again('SELECT (SELECT count(*) FROM migrate.job) || \' \' || (SELECT count(*) FROM migrate.stream)'), '0 0', 'dump: holds no job, so nothing touches the slot');
	cmp_ok(again(q{SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'migrate_guard%'}), '>', 0, 'dump: the guards are there');
	is(again(q{INSERT INTO j.a VALUES (-1, 'mine'); UPDATE j.a SET v = 'mine' WHERE id = 1; DELETE FROM j.bag; TRUNCATE j.bag; SELECT v FROM j.a WHERE id = 1}), 'mine', 'dump: of no job, and open');
	my ($rc, undef, $refused) = $target->psql('postgres', q{UPDATE j.a SET v = 'mine' WHERE id = 1});
	like($refused, qr/table "j\.a" is not open for writing yet/, 'dump: where the job is, they are not');
	my ($rc2, undef, $hidden) = $target->psql('postgres', q{CREATE ROLE stranger; GRANT USAGE ON SCHEMA j TO stranger; GRANT ALL ON j.a TO stranger; SET ROLE stranger; UPDATE j.a SET v = 'mine' WHERE id = 1});
	like($hidden, qr/table "j\.a" is not open for writing yet/, 'dump: nor for one who does not see the job');
	is(src('SELECT string_agg(slot_name || active, \' \') FROM pg_replication_slots'), $slot, 'dump: the slot is the job\'s as before');
	# a stream of its own, with a spool by names that the old one has in the other database
	again(q{SELECT migrate_create_job('k', server => 'legacy', options => '{"capture": "logical"}'); SELECT migrate_import('k', 'public', local_schema => 'legacy_k', include => '{a}');
		SELECT migrate_add_table('k', 'public.a', 'k.a'); SELECT migrate_start('k')});
	ok(wait_for($target, q{SELECT state = 'streaming' FROM migrate.job}, db => 'again'), 'dump: a new job there streams');
	is(src('SELECT count(*) FROM pg_replication_slots'), '2', 'dump: by a slot of its own');
	work(2);
	equal('after the dump');
	ok(wait_for(sub { rows_equal($source, 'SELECT * FROM a', $target, 'SELECT * FROM k.a', db2 => 'again') }), 'dump: and the new job has the changes, too');
	again(q{SELECT migrate_cancel('k'); SELECT migrate_wait('k', 'cancelled', '60 s'); SELECT migrate_drop_job('k')});
	is(again(q{SELECT count(*) FROM pg_class WHERE relname LIKE 'spool\_%\_%' AND relkind = 'r' AND relname <> 'spool_segment'}), '0', 'dump: and its spool goes with it');
}

# ------------------------- the spool's compression is its own, not the server's
foreach my $method (qw(pglz lz4))
{
	my ($ok) = $target->psql('postgres', "ALTER SYSTEM SET default_toast_compression = '$method'");
	next if $ok != 0;
	sql('SELECT pg_reload_conf()');
	src(qq{INSERT INTO a SELECT g, repeat('$method' || g, 50000) FROM generate_series(10000, 10040) g; UPDATE a SET v = v || 'x' WHERE id BETWEEN 10000 AND 10040; DELETE FROM a WHERE id BETWEEN 10000 AND 10040});
	equal("default_toast_compression = $method");
	is(sql(q{SELECT count(DISTINCT a.attcompression) FROM pg_attribute a JOIN migrate.spool_segment s ON s.relation = a.attrelid WHERE a.attname = 'data'}), '1', "$method: the same for all segments");
}

sql(q{CALL migrate_finish('j')});
is(sql(q{SELECT count(*) FROM pg_class WHERE relname LIKE 'spool\_%\_%' AND relkind = 'r' AND relname <> 'spool_segment'}) . src('SELECT count(*) FROM pg_replication_slots'), '00', 'finished: no spool, no slot');

done_testing();
