
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# One transaction on its way back that is larger than the memory it may take: it
# is written in parts, in one transaction of the source, within a bound; what a
# part cannot write before the next is carried along, and what cannot be written
# at all is one dead letter.  And the lag of the way back, and its slot when this
# server takes its WAL away.
#
# MIGRATE_BACK_MB: size of the transaction (default 300).

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $mb = $ENV{MIGRATE_BACK_MB} || 300;

# what the worker may use of memory of its own, MB: logical decoding has 64 of it
my $bound = 200;

my $source = new_source('source', logical => 1);
my $target = new_target('target', logical => 1, preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

src(q{
	CREATE TABLE fat (id int PRIMARY KEY, place int NOT NULL, t text, UNIQUE (place) DEFERRABLE);
	INSERT INTO fat SELECT g, g, 'small' FROM generate_series(1, 20) g;
	CREATE TABLE parent (id int PRIMARY KEY, t text);
	CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent DEFERRABLE, t text);
	CREATE TABLE small (id int PRIMARY KEY, v smallint)});
sql(q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"retry_max_delay": "300ms"}');
	SELECT migrate_add_schema('j', 'public', exclude => '{small}');
	CREATE TABLE small (id int PRIMARY KEY, v int);
	SELECT migrate_add_table('j', 'public.small', 'public.small');
	SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
sql(q{SELECT migrate_accept('j', 'cutover', 'validation', 'the test compares')});
is(sql('SELECT back_state FROM migrate.lag'), '', 'there is no way back yet');
sql(q{CALL migrate_cutover('j')});

sub worker { return value($target, q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'migrate reverse'}) }

# Until what was written here is there, or set aside; the peak of memory, MB.
sub gone_back
{
	my ($patience) = @_;
	my $position = value($target, 'SELECT pg_current_wal_insert_lsn()');
	sql('SELECT pg_logical_emit_message(true, $$test$$, $$x$$)');
	my $pid = worker();
	my $until = time() + ($patience // 60);
	my ($peak, $look) = (0, 0);
	while (time() < $until)
	{
		if (open(my $f, '<', "/proc/$pid/status"))
		{
			while (<$f>) { $peak = $1 / 1024 if /^RssAnon:\s+(\d+)/ && $1 / 1024 > $peak; }
		}
		return $peak if ++$look % 25 == 0
		  && value($target, "SELECT confirmed_flush_lsn > '$position' FROM pg_replication_slots WHERE slot_name LIKE 'migrate_back%'") eq 't';
		sleep(0.02);
	}
	fail('it went back in time');
	return $peak;
}

sub letters { return sql(q{SELECT count(*) FROM migrate.dead_letter WHERE state = 'open'}) }

# --- the lag of the way back

sql(q{UPDATE fat SET t = 'once' WHERE id = 1});
gone_back();
ok(wait_for($target, q{SELECT back_state = 'armed' AND back_seconds < 1 AND back_sent_lsn IS NOT NULL FROM migrate.lag}), 'migrate.lag shows the way back')
  or diag sql('SELECT * FROM migrate.lag');
my $pid = worker();
kill 'STOP', $pid;
sql(q{UPDATE fat SET t = repeat(md5(id::text), 1000)});
my ($bytes, $seconds) = split /\|/, sql('SELECT back_bytes, back_seconds FROM migrate.lag');
sql(q{UPDATE fat SET t = repeat(md5(id::text), 2000)});
my ($more, $later) = split /\|/, sql('SELECT back_bytes, back_seconds FROM migrate.lag');
cmp_ok($bytes, '>', 0, 'bytes that are still to go back');
cmp_ok($more, '>', $bytes, 'grow');
cmp_ok($later, '>', $seconds, 'as do seconds');
kill 'CONT', $pid;
ok(wait_for($target, 'SELECT back_seconds < 1 FROM migrate.lag'), 'and are gone');
gone_back();
same_rows($source, 'SELECT * FROM fat', $target, 'SELECT * FROM fat', 'equal');

# --- a large transaction
{
	my $rows = $mb * 500;
	my $start = time();
	sql(qq{
		INSERT INTO fat SELECT g, g, repeat(md5(g::text), 62) FROM generate_series(21, $rows) g});
	note(sprintf('written in %.1f s', time() - $start));
	$start = time();
	my $peak = gone_back(400);
	note(sprintf('%d MB went back in %.1f s, %.0f MB of memory', $mb, time() - $start, $peak));
	cmp_ok($peak, '<', $bound, 'insert: memory, MB');
	is(letters(), '0', 'insert: no dead letter');
	is(src('SELECT count(*), sum(length(t)), sum(place) FROM fat'), sql('SELECT count(*), sum(length(t)), sum(place) FROM fat'), 'insert: the same rows');
	is(src('SELECT count(DISTINCT xmin::text) FROM fat WHERE id > 20'), '1', 'insert: in one transaction there');
}

# --- unique values that move across the parts, a row that cannot be written,
# children before their parents
sql(q{
	BEGIN;
	SET CONSTRAINTS ALL DEFERRED;
	INSERT INTO small VALUES (1, 7), (2, 70000);
	INSERT INTO child SELECT g, g, 'of ' || g FROM generate_series(1, 5000) g;
	UPDATE fat SET place = place + 1 WHERE id <= 60000;
	UPDATE fat SET place = 60000 + 900000 WHERE id > 60000 AND place = 60001;
	INSERT INTO parent SELECT g, 'late' FROM generate_series(1, 5000) g;
	COMMIT});
{
	my $peak = gone_back(400);
	note(sprintf('moved: %.0f MB of memory', $peak));
	cmp_ok($peak, '<', $bound, 'moved: memory, MB');
	is(sql(q{SELECT string_agg(target || ' ' || sqlstate, ',') FROM migrate.dead_letters WHERE state = 'open'}), 'public.small 22003', 'moved: one letter, of the row at fault')
	  or diag sql(q{SELECT key, message FROM migrate.dead_letter WHERE state = 'open' LIMIT 5});
	is(src('SELECT count(*), sum(place), sum(place::numeric * id) FROM fat'), sql('SELECT count(*), sum(place), sum(place::numeric * id) FROM fat'), 'moved: the same places');
	same_rows($source, 'SELECT * FROM child', $target, 'SELECT * FROM child', 'moved: children');
	same_rows($source, 'SELECT * FROM parent', $target, 'SELECT * FROM parent', 'moved: and parents');
	is(src('SELECT id FROM small'), '1', 'moved: the good one of two rows');
}
sql('DELETE FROM small');
gone_back();
is(letters(), '0', 'a delete supersedes the letter');

# --- this server takes the WAL away (max_slot_wal_keep_size)

$pid = worker();
kill 'STOP', $pid;
sql(q{ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'});
sql('SELECT pg_reload_conf()');
sql('CREATE TABLE ballast (t text)');
# the one that invalidates ends the worker first, which does not hear it
my $checkpoint = fork() // die;
if ($checkpoint == 0)
{
	open(STDOUT, '>', '/dev/null');
	exec 'psql', '-Xq', '-d', $target->connstr('postgres'), map { ('-c', $_) } (q{INSERT INTO ballast SELECT repeat(md5(g::text), 60) FROM generate_series(1, 20000) g}, 'SELECT pg_switch_wal()') x 3, 'CHECKPOINT';
	exit 1;
}
sleep(3);
kill 'CONT', $pid;
waitpid($checkpoint, 0);
is($?, 0, 'a checkpoint ends');
sql(q{UPDATE fat SET t = 'too late' WHERE id = 1});
ok(wait_for($target, q{SELECT state = 'lost' AND error = 'its slot was invalidated by this server' FROM migrate.reverse}, timeout => 60), 'invalidated: the way back is lost')
  or diag sql('SELECT state, error FROM migrate.reverse');
is(sql(q{SELECT count(*) FROM migrate.event WHERE kind = 'reverse_lost' AND level = 'alert' AND message LIKE '%max_slot_wal_keep_size%'}), '1', 'invalidated: an alert, once');
is(sql('SELECT back_state, back_bytes IS NULL FROM migrate.lag'), 'lost|t', 'invalidated: migrate.lag says so');
is(sql('SELECT rollback_possible FROM migrate.readiness'), 'f', 'invalidated: readiness says so');
my ($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_rollback('j')});
isnt($rc, 0, 'invalidated: a rollback is refused');
is(job_state($target, 'j'), 'cut_over', 'invalidated: the target goes on');
($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_finish('j')});
is($rc, 0, 'invalidated: finish') or diag $err;
is(sql(q{SELECT count(*) FROM pg_replication_slots}), '0', 'invalidated: the slot is dropped');

done_testing();
