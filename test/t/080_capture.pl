# Copyright (c) 2026, the migrate authors; PostgreSQL License

# The source's change stream into the spool: complete, in order, once; whatever
# is killed.  What is in the spool is compared, message by message, with what a
# second slot on the same publication gives.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $source = new_source('source', logical => 1, conf => "autovacuum = off\nmax_prepared_transactions = 5\n");
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

my $settings = q{SET timezone = 'GMT'; SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3;
	SET bytea_output = hex; SET xmloption = content; SET lc_monetary = 'C'; SET client_min_messages = error;};

# The stream of a server: id
sub stream
{
	return sql("SELECT s.stream_id FROM migrate.stream s JOIN pg_foreign_server f ON f.oid = s.server WHERE f.srvname = '$_[0]'");
}

# Everything that is on the source now is in the spool.
sub caught_up
{
	my ($node, $stream, $name) = @_;
	my $lsn = $node->safe_psql('postgres', 'SELECT txid_current(); SELECT pg_current_wal_insert_lsn()') =~ s/.*\n//sr;
	$node->safe_psql('postgres', 'SELECT txid_current()');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for($target, "SELECT spooled_lsn >= '$lsn' FROM migrate.stream_position WHERE stream_id = $stream"), $name);
}

# Messages but for descriptions of tables and types, which every new connection
# gets again; both sides as one digest a line, and the digest of all.
sub same_messages
{
	my ($node, $stream, $slot, $publication, $name) = @_;
	my $there = $node->safe_psql('postgres', qq{$settings
		SELECT md5(data) FROM pg_logical_slot_peek_binary_changes('$slot', NULL, NULL, 'proto_version', '1', 'publication_names', '"$publication"')
		WHERE get_byte(data, 0) NOT IN (ascii('R'), ascii('Y'))});
	my $here = sql("SELECT md5(message) FROM migrate._spool_messages($stream, 1) WHERE kind NOT IN ('R', 'Y')");
	my $n = () = $here =~ /\n/g;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($there eq $here && $n > 0, "$name: the same messages in the same order ($n)")
	  || diag('there ' . (() = $there =~ /\n/g) . ", here $n");
}

src(q{CREATE TABLE acc (id int PRIMARY KEY, v int, pad text);
	INSERT INTO acc SELECT g, 0, repeat('x', 100) FROM generate_series(1, 1000) g;
	CREATE TABLE part (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (1000);
	CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (1000) TO (100000);
	CREATE TABLE bare (a int, b float8, c timestamptz, d bytea, e interval, f money);
	ALTER TABLE bare REPLICA IDENTITY FULL});
sql(q{SELECT migrate_create_job('j', server => 'legacy', options => '{"capture": "logical"}');
	SELECT migrate_add_table('j', 'public.acc', 'here.acc');
	SELECT migrate_add_table('j', 'public.part', 'here.part');
	SELECT migrate_add_table('j', 'public.bare', 'here.bare');
	SELECT migrate_start('j')});
ok(wait_for($target, q{SELECT joined FROM migrate.job_stream}), 'the job has joined its stream');
my $stream = stream('legacy');
my ($publication, $slot) = split /\|/, sql("SELECT publication, slot FROM migrate.stream WHERE stream_id = $stream");
is(src(q{SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables}), 'acc,bare,part_1,part_2',
	'the publication has the tables of the job, partitions as leaves');
is(src("SELECT plugin || ' ' || slot_type || ' ' || temporary FROM pg_replication_slots WHERE slot_name = '$slot'"),
	'pgoutput logical false', 'the slot is there');
is(sql(q{SELECT string_agg(kind, ',' ORDER BY object_id) FROM migrate.made_object WHERE side = 'source'}),
	'publication,replication slot', 'both are recorded');
src("SELECT pg_create_logical_replication_slot('other', 'pgoutput')");

# --- what there is of messages
src(q{BEGIN; INSERT INTO acc VALUES (2001, 1, 'new'); SAVEPOINT a; UPDATE acc SET v = 5 WHERE id < 10; ROLLBACK TO a;
		DELETE FROM acc WHERE id = 5; UPDATE acc SET id = 3000 WHERE id = 6; COMMIT;
	INSERT INTO part SELECT g, 'p' FROM generate_series(900, 1100) g;
	UPDATE part SET id = id + 1000 WHERE id = 950;
	INSERT INTO bare VALUES (1, 0.1, '2024-02-29 12:00:00+02', '\x00ff', '1 mon -1 day', '12.34'), (2, 'NaN', 'infinity', NULL, NULL, NULL);
	UPDATE bare SET b = b * 3; DELETE FROM bare WHERE a = 2;
	UPDATE acc SET pad = repeat(md5(random()::text), 2000) WHERE id = 7;
	ALTER TABLE acc ALTER pad SET STORAGE EXTERNAL;
	UPDATE acc SET pad = repeat(md5(random()::text), 2000) WHERE id = 7;
	UPDATE acc SET v = 9 WHERE id = 7;
	ALTER TABLE acc ADD COLUMN late int DEFAULT 3;
	INSERT INTO acc VALUES (4000, 1, 'x', 4);
	TRUNCATE bare RESTART IDENTITY CASCADE});
caught_up($source, $stream, 'everything arrives');
same_messages($source, $stream, 'other', $publication, 'all kinds');
is(sql("SELECT count(DISTINCT remote_oid) >= 4 FROM migrate.stream_relation WHERE stream_id = $stream"), 't', 'descriptions of tables are kept apart');

# --- an idle source: nothing of ours is written, and the slot still moves
{
	src('CREATE TABLE elsewhere (x int); INSERT INTO elsewhere SELECT generate_series(1, 20000); SELECT txid_current()');
	my $lsn = src('SELECT pg_current_wal_insert_lsn()');
	src('SELECT txid_current()');
	ok(wait_for($source, "SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots WHERE slot_name = '$slot'"),
		'idle: what is not ours is confirmed all the same');
	ok(wait_for($target, "SELECT spooled_lsn >= '$lsn' FROM migrate.stream_position WHERE stream_id = $stream"),
		'idle: and is written down here (P18)');
}

# --- a transaction that is much larger than the memory it may take
{
	my $pid = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'migrate capture'});
	my $rows = 1_600_000;
	my $first = sql("SELECT spooled_seq + 1 FROM migrate.stream_position WHERE stream_id = $stream");
	sql(q{SELECT migrate_pause('j')});
	src("BEGIN; INSERT INTO acc SELECT g, g, repeat(md5(g::text), 4) FROM generate_series(1000001, 1000000 + $rows) g; COMMIT");
	my $lsn = src('SELECT pg_current_wal_insert_lsn()');
	src('SELECT txid_current()');
	my $most = 0;
	my $private = sub {
		my $status = eval { PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") } // '';
		my ($kb) = $status =~ /^RssAnon:\s+(\d+)/m;
		$most = $kb if defined $kb && $kb > $most;
		return sql("SELECT spooled_lsn >= '$lsn' FROM migrate.stream_position WHERE stream_id = $stream") eq 't';
	};
	ok(wait_for($private), 'large: it is in the spool');
	cmp_ok(sql("SELECT sum(bytes) / 1024 / 1024 FROM migrate.spool_segment WHERE stream_id = $stream"), '>', 200, 'large: with more than 200 MB');
	cmp_ok($most, '<', 100 * 1024, "large: the capture worker had $most kB of its own at most");
	cmp_ok($most, '>', 0, 'large: which was measured');
	is(sql("SELECT count(*) FROM migrate._spool_messages($stream, $first) WHERE kind = 'I'"), $rows, 'large: every row once');
	cmp_ok(sql("SELECT count(*) FROM migrate.spool_segment WHERE stream_id = $stream"), '>', 3, 'large: over several segments');
	is(sql(qq{SELECT count(*) FROM (SELECT s.first_seq, lag(s.last_seq) OVER (ORDER BY s.segment_no) AS before FROM migrate.spool_segment s
			WHERE stream_id = $stream) x WHERE before IS NOT NULL AND first_seq <> before + 1}), '0', 'large: without a gap');
	is(sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'migrate capture'}), $pid, 'large: by one and the same worker');
}

# --- kill -9 between receiving, spooling and confirming
connect_source($target, $source, server => 'again');
sql(q{SELECT migrate_create_job('k', server => 'again', options => '{"capture": "logical", "retry_max_delay": "300ms"}');
	SELECT migrate_add_table('k', 'public.part', 'k.part');
	SELECT migrate_add_table('k', 'public.bare', 'k.bare');
	SELECT migrate_start('k')});
ok(wait_for($target, q{SELECT joined FROM migrate.job_stream NATURAL JOIN migrate.job WHERE job = 'k'}), 'kill: another job, on a server of its own');
$stream = stream('again');
($publication, $slot) = split /\|/, sql("SELECT publication, slot FROM migrate.stream WHERE stream_id = $stream");
ok(wait_for($target, "SELECT shm_handle <> 0 FROM migrate.stream WHERE stream_id = $stream"), 'kill: its worker lives');
src("SELECT pg_create_logical_replication_slot('third', 'pgoutput')");
# what is applied may go from the spool: not before it was compared
sql(q{SELECT migrate_pause('k')});

my $n = 10000;
sub some_work
{
	my ($times) = @_;
	for my $i (1 .. $times)
	{
		my ($from, $to) = ($n + 1, $n + 1 + int(rand(40)));
		eval {
			src(qq{BEGIN; INSERT INTO part SELECT g, 'w' || g FROM generate_series($from, $to) g;
				UPDATE part SET t = t || '+' WHERE id = $from; DELETE FROM part WHERE id = $to; COMMIT;
				INSERT INTO bare VALUES ($i, random(), now(), '\\x01', '1 day', '1.5')});
		};
		$n = $to + 1;
		# those two are in two partitions at most up to here
		$n = 10000, src('TRUNCATE part') if $n > 90000;
	}
	return;
}

sub crashes
{
	my $log = PostgreSQL::Test::Utils::slurp_file($target->logfile);
	return scalar(() = $log =~ /was terminated by signal 9/g);
}

foreach my $point (qw(capture-received capture-spooled capture-committed capture-confirmed))
{
	my $before = crashes();
	sql("ALTER SYSTEM SET migrate.fault = '$point:kill'");
	sql('SELECT pg_reload_conf()');
	ok(wait_for(sub { some_work(1); return crashes() > $before }), "kill: at $point");
	ok(wait_for($target, q{SELECT true}), "kill: the target is back");
	$target->append_conf('postgresql.auto.conf', "migrate.fault = ''\n");
	$target->reload;
	some_work(5);
	ok(wait_for($target, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'migrate capture' AND query LIKE '%again%'"),
		"kill: the worker goes on after $point");
	caught_up($source, $stream, "kill: everything is there after $point");
}
same_messages($source, $stream, 'third', $publication, 'kill at each point');

# at any moment, of everything
srand($ENV{MIGRATE_SEED} || 7);
for my $round (1 .. ($ENV{MIGRATE_KILLS} || 8))
{
	my $what = (qw(capture target source connection))[ int(rand(4)) ];
	some_work(1 + int(rand(10)));
	note("round $round: $what");
	if ($what eq 'capture') { kill9_backend($target, 'migrate capture'); }
	else { random_kill($target, $source, $what); }
	wait_for($source, 'SELECT true');
	wait_for($target, 'SELECT true');
	some_work(1 + int(rand(10)));
}
caught_up($source, $stream, 'random kills: everything arrives');
same_messages($source, $stream, 'third', $publication, 'random kills');
is(sql(qq{SELECT count(*), count(DISTINCT x.message) FROM migrate._spool_messages($stream, 1) x WHERE kind = 'C'}) =~ s/^(\d+)\|\1$/same/r, 'same',
	'random kills: no transaction is there twice');

# --- values stay in the source's encoding
foreach my $encoding (qw(LATIN1 SQL_ASCII))
{
	my $job = lc $encoding;
	my $there = new_source("source_$job", logical => 1, encoding => $encoding);
	$there->safe_psql('postgres', 'CREATE TABLE e (id int PRIMARY KEY, t text)');
	connect_source($target, $there, server => $job);
	sql(qq{SELECT migrate_create_job('$job', server => '$job', options => '{"capture": "logical"}');
		SELECT migrate_add_table('$job', 'public.e', 't_$job.e'); SELECT migrate_start('$job')});
	ok(wait_for($target, "SELECT joined FROM migrate.job_stream NATURAL JOIN migrate.job WHERE job = '$job'"), "$encoding: joined");
	my $id = stream($job);
	$there->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('fourth', 'pgoutput')});
	# e acute in LATIN1; bytes that are nothing in UTF-8 in the other
	$there->safe_psql('postgres', q{INSERT INTO e VALUES (1, E'caf\\xe9'), (2, E'\\xff\\xfe'), (3, 'plain')});
	caught_up($there, $id, "$encoding: everything arrives");
	is(sql("SELECT encoding FROM migrate.stream WHERE stream_id = $id"), $encoding, "$encoding: is noted");
	same_messages($there, $id, 'fourth', sql("SELECT publication FROM migrate.stream WHERE stream_id = $id"), $encoding);
	is(sql("SELECT count(*) FROM migrate._spool_messages($id, 1) WHERE kind = 'I' AND (position('\\x636166e9'::bytea IN message) > 0 OR position('\\xfffe'::bytea IN message) > 0)"),
		'2', "$encoding: as the bytes that they are there");
	$there->stop;
}

done_testing();
