# Copyright (c) 2026, the migrate authors; PostgreSQL License

# P18, P21: a stream that is lost fails its jobs and names the remedy, and
# migrate_resync makes them good without copying again: the slot dropped under
# load, the source restored from an older backup, failed over to a standby, the
# target set back.  Tables with a key are compared and mended, those without are
# copied again; dead letters are tried anew; a crash in the middle repeats the
# table at hand.  At the end source and target are equal, and it streams.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $source = new_source('source', logical => 1, conf => 'wal_log_hints = on');
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

sub fails
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $target->psql('postgres', "\\set VERBOSITY verbose\n$sql");
	return $err;
}

my @tables = qw(a many keyless part);
my @jobs = qw(j);

sub caught_up
{
	my ($job, $name) = @_;
	my $lsn = src('SELECT pg_current_wal_insert_lsn()');
	src('SELECT txid_current()');
	return ok(wait_for($target, "SELECT a.applied_lsn >= '$lsn' FROM migrate.apply_position a JOIN migrate.job USING (job_id) WHERE job = '$job'"), $name);
}

sub equal
{
	my ($name, $schema) = @_;
	$schema //= 'j';
	same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM $schema.$_", "$name: $_ is equal") for qw(a keyless part);
	same_rows($source, "SELECT m.id, g, 'm' || m.v FROM many m, generate_series(1, m.n) g",
		$target, "SELECT * FROM $schema.many", "$name: many is equal");
	return;
}

# one change of every kind
my $n = 0;
sub work
{
	my ($times) = @_;
	for (1 .. $times) { $n++; src("SELECT work($n)"); }
	return;
}

sub lost
{
	my ($name, $pattern) = @_;
	ok(wait_for(sub { (job_state($target, 'j') // '') eq 'failed' }), "$name: failed");
	like(sql(q{SELECT last_error FROM migrate.job WHERE job = 'j'}), $pattern, "$name: the error names cause and remedy");
	is(sql(q{SELECT state FROM migrate.streams}), 'lost', "$name: the stream is lost");
	return;
}

sub resync
{
	my ($name) = @_;
	my $chunks = sql(q{SELECT count(*) FROM migrate.chunks WHERE job = 'j' AND source <> 'public.keyless'});
	my $first = sql(q{SELECT min(chunk_id) FROM migrate.chunks WHERE job = 'j' AND source <> 'public.keyless'});
	sql(q{SELECT migrate_resync('j')});
	work(3);
	wait_job($target, 'j', 'streaming') or do { done_testing(); exit; };
	is(sql(q{SELECT concat_ws(' ', state, last_error) FROM migrate.streams}), 'running', "$name: a new stream");
	is(sql(q{SELECT count(*) FROM migrate.chunks WHERE job = 'j' AND source <> 'public.keyless'}) . ' ' . sql(q{SELECT min(chunk_id) FROM migrate.chunks WHERE job = 'j' AND source <> 'public.keyless'}), "$chunks $first", "$name: what has a key was not copied again");
	work(3);
	caught_up('j', "$name: caught up");
	equal($name);
	is(sql(q{SELECT count(*) FROM pg_foreign_server}) . src('SELECT count(*) FROM pg_replication_slots'), '11', "$name: one slot");
	return;
}

src(q{
	CREATE TABLE a (id int PRIMARY KEY, v text, t numeric);
	INSERT INTO a SELECT g, md5(g::text), g / 3.0 FROM generate_series(1, 20000) g;
	CREATE TABLE many (id int PRIMARY KEY, v text, n int);
	INSERT INTO many SELECT g, g, g % 3 FROM generate_series(1, 3000) g;
	CREATE TABLE keyless (v int, w text);
	ALTER TABLE keyless REPLICA IDENTITY FULL;
	INSERT INTO keyless SELECT g % 50, g % 7 FROM generate_series(1, 1000) g;
	CREATE TABLE part (id int, r int, v text, PRIMARY KEY (id, r)) PARTITION BY RANGE (r);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
	CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (100);
	INSERT INTO part SELECT g, g % 20, g FROM generate_series(1, 4000) g;
	CREATE FUNCTION work(n int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
		UPDATE a SET v = v || n WHERE id % 199 = n % 199;
		DELETE FROM a WHERE id = n;
		INSERT INTO a VALUES (100000 + n, 'new', n) ON CONFLICT DO NOTHING;
		UPDATE a SET id = id + 1000000 WHERE id = 100000 + n - 3;
		UPDATE many SET v = v || 'x', n = (many.n + 1) % 4 WHERE id % 97 = work.n % 97;
		DELETE FROM many WHERE id = work.n;
		INSERT INTO keyless VALUES (n, n);
		DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless);
		UPDATE part SET r = (r + 7) % 20 WHERE id % 101 = n % 101;
		DELETE FROM part WHERE id = n;
	END $$;
	VACUUM ANALYZE});

sql(q{
	CREATE SCHEMA j;
	CREATE TABLE j.many (id int, n int, v text, PRIMARY KEY (id, n));
	SELECT migrate_create_job('j', server => 'legacy', options => '{"capture": "logical", "chunk_blocks": 32, "batch_rows": 500, "retry_max_delay": "300ms", "retry_time": "60s"}');
	SELECT migrate_add_schema('j', 'public', target_schema => 'j', exclude => '{many}');
	SELECT migrate_import('j', 'public', include => '{many}');
	CREATE FUNCTION j.map_many(m legacy.many) RETURNS SETOF j.many LANGUAGE sql STABLE
		AS $$ SELECT m.id, g, 'm' || m.v FROM generate_series(1, m.n) g $$;
	SELECT migrate_add_table('j', 'public.many', 'j.many', mapping => 'j.map_many', key => '{"id": "id"}');
	SELECT migrate_start('j')});
work(5);
wait_job($target, 'j', 'streaming') or do { done_testing(); exit; };
caught_up('j', 'streaming');
equal('before');

# ------------------------------------------------ the slot dropped under us
sub drop_slot
{
	ok(wait_for(sub {
		src(q{SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active});
		my ($rc) = $source->psql('postgres', q{SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots});
		return src('SELECT count(*) FROM pg_replication_slots') eq '0' }), $_[0]);
	return;
}
work(5);
drop_slot('the slot is dropped');
work(10);
lost('P21, slot dropped', qr/is lost: .*migrate_resync makes it good without copying again/);
like(fails(q{SELECT migrate_wait('j', 'streaming')}), qr/ERROR:  55000: job "j" has failed.*migrate_resync/s, 'migrate_wait says it too');
# a row that the mapping refuses, and one that nobody has
sql(q{ALTER TABLE j.a ADD CHECK (v <> 'refused') NOT VALID; INSERT INTO j.a VALUES (-5, 'of nobody', 0)});
src(q{UPDATE a SET v = 'refused' WHERE id = 19000});
sql(q{SELECT migrate_resync('j')});
work(3);
wait_job($target, 'j', 'streaming') or do { done_testing(); exit; };
is(sql(q{SELECT string_agg(d.sqlstate || ' ' || (d.key ->> 'id'), ' ') FROM migrate.dead_letters d WHERE state = 'open'}), '23514 19000', 'slot dropped: a row that is refused is a dead letter');
is(sql(q{SELECT count(*) FROM j.a WHERE id = -5}), '0', 'slot dropped: a row that the source does not have is gone');
is(sql(q{SELECT string_agg(DISTINCT method || ' ' || state, ', ' ORDER BY method || ' ' || state) FROM migrate.resync_table}), 'compare done, copy done', 'slot dropped: every table had its turn');
cmp_ok(sql(q{SELECT rows_written FROM migrate.resync_table JOIN migrate.mapping USING (mapping_id) WHERE target = 'j.a'}), '<', 3000, 'slot dropped: only what differs is written');
src(q{UPDATE a SET v = 'fine' WHERE id = 19000});
caught_up('j', 'slot dropped: caught up');
is(sql(q{SELECT count(*) FROM migrate.dead_letters WHERE state = 'open'}), '0', 'slot dropped: the dead letter is superseded');
equal('slot dropped');

# ------------------------------------ asked for while it streams, and crashes
sql(q{SELECT migrate_resync('j')});
wait_job($target, 'j', 'streaming') or do { done_testing(); exit; };
equal('while streaming');
foreach my $point (qw(resync-set-back resync-joined resync-mended resync-over))
{
	my $before = kills_seen($target);
	sql(qq{ALTER SYSTEM SET migrate.fault = '$point:kill'; SELECT pg_reload_conf()});
	work(2);
	sql(q{UPDATE j.a SET v = 'wrong' WHERE id % 500 = 0; SELECT migrate_resync('j')});
	ok(wait_for(sub { kills_seen($target) > $before }), "$point: killed");
	ok(wait_for(sub { defined try_query($target, 'ALTER SYSTEM RESET migrate.fault') && defined try_query($target, 'SELECT pg_reload_conf()') }), "$point: the server is back");
	wait_job($target, 'j', 'streaming') or do { done_testing(); exit; };
	caught_up('j', "$point: caught up");
	equal($point);
}

# ------------------------------------------ two jobs of one stream
sql(q{SELECT migrate_create_job('k', server => 'legacy', options => '{"capture": "logical", "retry_max_delay": "300ms"}');
	SELECT migrate_add_table('k', 'public.a', 'k.a'); SELECT migrate_start('k')});
wait_job($target, 'k', 'streaming');
sql(q{SELECT migrate_resync('j')});
wait_job($target, 'j', 'streaming');
ok(wait_for(sub { job_state($target, 'k') eq 'failed' }), 'the other job of the stream fails');
like(sql(q{SELECT last_error FROM migrate.job WHERE job = 'k'}), qr/begun anew by migrate_resync of another job.*; migrate_resync makes it good/, 'and is told to resync, too');
work(3);
sql(q{SELECT migrate_resync('k')});
wait_job($target, 'k', 'streaming');
caught_up($_, "$_: caught up") for qw(j k);
same_rows($source, 'SELECT * FROM a', $target, 'SELECT * FROM k.a', 'k is equal');
equal('two jobs');
sql(q{SELECT migrate_cancel('k'); SELECT migrate_wait('k', 'cancelled'); SELECT migrate_drop_job('k')});

# ---------------------------- the source restored from an older backup
my $backup = $source->backup_dir . '/cold';
$source->stop;
PostgreSQL::Test::RecursiveCopy::copypath($source->data_dir, $backup);
$source->start;
work(10);
caught_up('j', 'applied what the source will forget');
$source->stop('immediate');
system('rm', '-rf', $source->data_dir) == 0 or die;
PostgreSQL::Test::RecursiveCopy::copypath($backup, $source->data_dir);
chmod(0700, $source->data_dir);
$source->start;
lost('P18, source restored', qr/is lost: .*migrate_resync makes it good/);
resync('source restored');

# ------------------------------------------------------ the target set back
my $target_backup = $target->backup_dir . '/cold';
$target->stop;
PostgreSQL::Test::RecursiveCopy::copypath($target->data_dir, $target_backup);
$target->start;
work(10);
caught_up('j', 'applied what the target will forget');
my $confirmed = src('SELECT pg_current_wal_lsn()');
ok(wait_for($source, "SELECT confirmed_flush_lsn >= '$confirmed' FROM pg_replication_slots"), 'and confirmed');
$target->stop('immediate');
system('rm', '-rf', $target->data_dir) == 0 or die;
PostgreSQL::Test::RecursiveCopy::copypath($target_backup, $target->data_dir);
chmod(0700, $target->data_dir);
$target->start;
lost('P18, target set back', qr/is lost: .*migrate_resync makes it good/);
resync('target set back');

# -------------------------------------------------- failover to a standby
$source->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($source, 'base', has_streaming => 1);
$standby->start;
work(3);
$source->wait_for_catchup($standby);
caught_up('j', 'applied before the failover');
$source->stop('immediate');
$standby->promote;
sql('ALTER SERVER legacy OPTIONS (SET host ' . "'" . $standby->host . "'" . ', SET port ' . "'" . $standby->port . "')");
$source = $standby;
work(5);
lost('failover', qr/is lost: .*migrate_resync makes it good/);
resync('failover');

sql(q{CALL migrate_finish('j')});
is(src('SELECT count(*) FROM pg_replication_slots') . src('SELECT count(*) FROM pg_publication'), '00', 'finished: nothing is left on the source');

done_testing();
