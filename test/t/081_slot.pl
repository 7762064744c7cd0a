# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Publication and slot: what is waited for, and what happens when they are not
# ours any more.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use File::Path qw(rmtree);
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source', logical => 1, conf => "autovacuum = off\nmax_prepared_transactions = 5\nmax_replication_slots = 20\nmax_wal_senders = 20\n");
my $target = new_target('target', preload => 1);

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

# A job on a server of its own, and so a stream of its own.
sub job
{
	my ($job, $options, @tables) = @_;
	connect_source($target, $source, server => $job);
	sql(qq{SELECT migrate_create_job('$job', server => '$job', options => '{"capture": "logical", "retry_max_delay": "300ms" $options}')});
	sql("SELECT migrate_add_table('$job', 'public.$_', 't_$job.$_')") foreach @tables;
	return;
}

sub stream_column
{
	my ($job, $column) = @_;
	return sql("SELECT s.$column FROM migrate.stream s JOIN migrate.job_stream USING (stream_id) JOIN migrate.job USING (job_id) WHERE job = '$job'");
}

sub joined { return wait_for($target, "SELECT joined FROM migrate.job_stream JOIN migrate.job USING (job_id) WHERE job = '$_[0]'"); }

sub events
{
	my ($job, $kind) = @_;
	return sql("SELECT string_agg(message, E'\\n' ORDER BY event_id) FROM migrate.event JOIN migrate.job USING (job_id) WHERE job = '$job' AND kind = '$kind'");
}

# The stream is lost, the job has failed, and both say why and what helps.
sub is_lost
{
	my ($job, $why, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(wait_for($target, "SELECT state = 'failed' FROM migrate.job WHERE job = '$job'"), "$name: the job has failed");
	is(stream_column($job, 'state'), 'lost', "$name: the stream is lost");
	like(sql("SELECT last_sqlstate || ' ' || last_error FROM migrate.job WHERE job = '$job'"), qr/^55000 .*$why.*migrate_resync/s,
		"$name: which names the reason and the remedy");
	ok(wait_for($target, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'migrate capture'"),
		"$name: the capture worker has left");
	return;
}

# The job is over, and with it what was made for it.
sub gone
{
	my ($job) = @_;
	sql("SELECT migrate_cancel('$job')");
	wait_for($target, "SELECT state = 'cancelled' FROM migrate.job WHERE job = '$job'");
	return sql("SELECT migrate_drop_job('$job')");
}

src(q{CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'a' FROM generate_series(1, 100) g;
	CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b SELECT g, 'b' FROM generate_series(1, 100) g});

# --- the slot waits for transactions, and says for which
{
	my $open = $source->background_psql('postgres');
	$open->query_safe('BEGIN');
	$open->query_safe(q{INSERT INTO b VALUES (1001, 'open')});
	my $pid = $open->query_safe('SELECT pg_backend_pid()');
	src(q{BEGIN; INSERT INTO b VALUES (1002, 'prepared'); PREPARE TRANSACTION 'forgotten'});
	job('waits', '', 'a');
	like(sql(q{SELECT string_agg(object, ',') FROM migrate_preflight('waits') WHERE check_name = 'open_transactions' AND status = 'warn'}),
		qr/prepared transaction forgotten of user/, 'waits: preflight names the prepared transaction');
	sql(q{SELECT migrate_start('waits')});
	ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.event WHERE kind = 'stream_waits'}), 'waits: it says that it waits');
	like(events('waits', 'stream_waits'), qr/process $pid of user/, 'waits: for which process');
	like(events('waits', 'stream_waits'), qr/prepared transaction "forgotten"/, 'waits: and which prepared transaction');
	is(job_state($target, 'waits'), 'preparing', 'waits: and copies nothing meanwhile');
	$open->query_safe('COMMIT');
	src(q{COMMIT PREPARED 'forgotten'});
	$open->quit;
	ok(joined('waits'), 'waits: it goes on when they have ended');
}

# --- P3: a job that joins a running stream
{
	my $open = $source->background_psql('postgres');
	$open->query_safe('BEGIN');
	$open->query_safe(q{INSERT INTO b VALUES (2001, 'inserted before the table was published')});
	sql(q{SELECT migrate_create_job('second', server => 'waits', options => '{"capture": "logical"}');
		SELECT migrate_add_table('second', 'public.b', 't_second.b'); SELECT migrate_start('second')});
	ok(wait_for($source, q{SELECT count(*) = 1 FROM pg_publication_tables WHERE tablename = 'b'}), 'P3: the table is published');
	ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.event JOIN migrate.job USING (job_id) WHERE job = 'second' AND kind = 'stream_waits'}),
		'P3: it waits for the transaction that was open then');
	is(sql(q{SELECT count(*) FROM migrate.chunk JOIN migrate.job USING (job_id) WHERE job = 'second'}), '0', 'P3: nothing is read');
	is(sql(q{SELECT count(DISTINCT stream_id) FROM migrate.job_stream}), '1', 'P20: both jobs read one stream');
	$open->query_safe('COMMIT');
	$open->quit;
	ok(joined('second'), 'P3: it has joined');
	ok(wait_for($target, q{SELECT count(*) = 1 FROM t_second.b WHERE id = 2001}), 'P3: and the row is there');

	# one leaves, the other stays
	is(gone('second'), '', 'leave: nothing could not be removed');
	is(src(q{SELECT string_agg(tablename, ',') FROM pg_publication_tables}), 'a', 'leave: its table is not published any more');
	is(src(q{SELECT count(*) FROM pg_replication_slots WHERE active}), '1', 'leave: the slot is in use by the other');
	is(gone('waits'), '', 'leave: nor of the last one');
	is(src(q{SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)}), '0', 'leave: slot and publication are gone');
	is(sql(q{SELECT (SELECT count(*) FROM migrate.stream) + (SELECT count(*) FROM pg_class WHERE relname LIKE 'spool\_%\_%' AND relkind = 'r' AND relname <> 'spool_segment')}),
		'0', 'leave: and the spool here');
}

# --- P16: publishing must not break the application
{
	src(q{CREATE TABLE late (id int PRIMARY KEY DEFERRABLE, v text); CREATE TABLE nokey (v text);
		CREATE TABLE tree (id int) PARTITION BY LIST (id); CREATE TABLE tree_1 PARTITION OF tree FOR VALUES IN (1);
		CREATE TABLE tree_2 PARTITION OF tree FOR VALUES IN (2); ALTER TABLE tree_2 ADD PRIMARY KEY (id)});
	job('p16', ', "retry_time": "1s"', 'late', 'nokey', 'tree');
	is(sql(q{SELECT string_agg(object, ',' ORDER BY object) FROM migrate_preflight('p16') WHERE check_name = 'replica_identity' AND status = 'fail'}),
		'public.late,public.nokey,public.tree_1', 'P16: preflight names each table and leaf');
	my ($rc, $out, $err) = $target->psql('postgres', q{SELECT migrate_start('p16')});
	isnt($rc, 0, 'P16: start refuses');
	like($err, qr/ALTER TABLE public\.late REPLICA IDENTITY FULL/, 'P16: with the remedy');
	is(join("\n", grep { /REPLICA IDENTITY/ } split /\n/, sql(q{SELECT migrate_source_sql('p16')})),
		join("\n", map { sprintf("ALTER TABLE public.%s REPLICA IDENTITY FULL;", $_) } qw(late nokey tree_1 tree_2)),
		'P16: which is part of the statements for the source, with the leaf whose own key is not the whole table\'s');
	# past preflight, the job itself looks
	sql(q{SELECT migrate_accept('p16', check_name, object, 'test') FROM migrate_preflight('p16') WHERE status = 'fail'; SELECT migrate_start('p16')});
	wait_job($target, 'p16', 'failed');
	like(sql(q{SELECT last_error FROM migrate.job WHERE job = 'p16'}), qr/3 tables have no replica identity/, 'P16: and so does the job');
	is(src(q{SELECT count(*) FROM pg_publication}), '0', 'P16: nothing is published');
	gone('p16');
}

# --- a key that is only checked at the commit does not identify a row
{
	my $key = q{SELECT string_agg(check_name || ' ' || status || ': ' || detail, E'\n' ORDER BY check_name) FROM migrate_preflight('later')
		WHERE check_name IN ('source_key', 'stream_key') AND status <> 'ok'};
	src(q{CREATE TABLE later (id int PRIMARY KEY, v text); ALTER TABLE later REPLICA IDENTITY FULL});
	job('later', '', 'later');
	is(sql($key), '', 'P16: a key that is not deferrable');
	src(q{ALTER TABLE later DROP CONSTRAINT later_pkey, ADD PRIMARY KEY (id) DEFERRABLE});
	is(sql($key), 'stream_key fail: the key (id) has become deferrable there, so rows can exchange it', 'P16: preflight refuses a key that has become deferrable');
	sql(q{SELECT migrate_remove_table('later', 't_later.later'); DROP TABLE t_later.later; SELECT migrate_add_table('later', 'public.later', 't_later.later')});
	is(sql($key), 'source_key warn: the key (id) is deferrable, so rows can exchange it: it counts as none, and rows cannot be told apart',
		'P16: added anew, it is told why the table has no key');
	sql(q{SELECT migrate_drop_job('later')});
	src('DROP TABLE later');
}

# --- a slot that is dropped
{
	job('dropped', '', 'a');
	sql(q{SELECT migrate_start('dropped')});
	ok(joined('dropped'), 'dropped: joined');
	my $slot = stream_column('dropped', 'slot');
	ok(wait_for($source, "SELECT active FROM pg_replication_slots WHERE slot_name = '$slot'"), 'dropped: it is read');
	ok(wait_for($source, qq{SELECT count(*) = 1 FROM (SELECT pg_terminate_backend(active_pid), pg_sleep(0.02), pg_drop_replication_slot(slot_name)
		FROM pg_replication_slots WHERE slot_name = '$slot') x}), 'dropped: somebody drops it');
	is_lost('dropped', "replication slot \"$slot\" does not exist", 'dropped');
	like(events('dropped', 'stream_lost'), qr/migrate_resync/, 'dropped: an event says so');
	gone('dropped');
}

# --- a source that is another one
{
	my $other = new_source('other', logical => 1);
	$other->safe_psql('postgres', q{CREATE TABLE a (id int PRIMARY KEY, v text)});
	job('moved', '', 'a');
	sql(q{SELECT migrate_start('moved')});
	ok(joined('moved'), 'other: joined');
	sql("ALTER SERVER moved OPTIONS (SET port '" . $other->port . "', SET host '" . $other->host . "')");
	src(q{SELECT pg_terminate_backend(pid) FROM pg_stat_replication});
	is_lost('moved', 'system identifier', 'other');
	sql("ALTER SERVER moved OPTIONS (SET port '" . $source->port . "', SET host '" . $source->host . "')");
	gone('moved');
	$other->stop;
}

# --- a source that is away for a while is no reason to fail
{
	job('away', '', 'a');
	sql(q{SELECT migrate_start('away')});
	ok(joined('away'), 'away: joined');
	ok(wait_for($source, 'SELECT count(*) = 1 FROM pg_replication_slots WHERE active'), 'away: it streams');
	$source->stop('immediate');
	ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.event WHERE kind = 'stream_error'}), 'away: an event says so');
	like(stream_column('away', 'last_sqlstate'), qr/^(08|57)/, 'away: and the stream');
	$source->start;
	ok(wait_for($source, 'SELECT count(*) = 1 FROM pg_replication_slots WHERE active'), 'away: it streams again by itself');
	ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.event WHERE kind = 'stream_again'}), 'away: which is told, too');
	is(stream_column('away', 'last_error'), '', 'away: nothing is left of the error');
	isnt(job_state($target, 'away'), 'failed', 'away: the job has not failed');
	gone('away');
}

# --- P18: a target that was rewound to before what it has confirmed
{
	job('rewound', '', 'a');
	sql(q{SELECT migrate_start('rewound')});
	ok(joined('rewound'), 'P18: joined');
	ok(wait_for($source, 'SELECT count(*) = 1 FROM pg_replication_slots WHERE active'), 'P18: it streams');
	$target->stop('fast');
	my $data = $target->data_dir;
	system('cp', '-a', $data, "$data.old") == 0 or die;
	$target->start;
	my $before = src('SELECT confirmed_flush_lsn FROM pg_replication_slots');
	src(q{INSERT INTO a SELECT g, 'kept' FROM generate_series(1000, 1100) g});
	ok(wait_for($source, "SELECT confirmed_flush_lsn > '$before' FROM pg_replication_slots"), 'P18: the slot moves on');
	$target->stop('immediate');
	rmtree($data);
	rename("$data.old", $data) or die;
	$target->start;
	is_lost('rewound', 'the target was rewound', 'P18');
	gone('rewound');
}

# --- back-pressure, and the fuse
{
	job('full', ', "spool_limit": "1MB"', 'a');
	sql(q{SELECT migrate_start('full')});
	ok(joined('full'), 'limit: joined');
	ok(wait_for($source, 'SELECT count(*) = 1 FROM pg_replication_slots WHERE active'), 'limit: it streams');
	sql(q{SELECT migrate_pause('full'); SELECT migrate_wait('full', 'paused', '1min')});
	# P19: what is begun is finished, whatever the limit
	src(q{INSERT INTO a SELECT g, repeat(md5(g::text), 10) FROM generate_series(10001, 30000) g});
	ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.event WHERE kind = 'spool_full'}), 'limit: it says that the spool is full');
	like(events('full', 'spool_full'), qr/more than spool_limit \(1024 kB\)/, 'limit: with the limit');
	my $stream = stream_column('full', 'stream_id');
	is(sql("SELECT count(*) FROM migrate._spool_messages($stream, 1) WHERE kind = 'I'"), '20000', 'P19: the transaction at hand is complete');
	my $seq = sql("SELECT spooled_seq FROM migrate.stream_position WHERE stream_id = $stream");
	src(q{INSERT INTO a SELECT g, 'more' FROM generate_series(30001, 30100) g; SELECT txid_current()});
	# status messages go on while reading is held back
	wait_for($source, 'SELECT count(reply_time) > 0 FROM pg_stat_replication');
	my $reply = src(q{SELECT max(reply_time) FROM pg_stat_replication});
	ok(wait_for($source, "SELECT max(reply_time) > '$reply'::timestamptz + interval '2 s' FROM pg_stat_replication"), 'limit: the source still hears of us');
	is(sql("SELECT spooled_seq FROM migrate.stream_position WHERE stream_id = $stream"), $seq, 'limit: and nothing more is read');
	sql(q{SELECT migrate_alter_job('full', '{"spool_limit": "1GB"}')});
	ok(wait_for($target, "SELECT count(*) = 20100 FROM migrate._spool_messages($stream, 1) WHERE kind = 'I'"), 'limit: with a higher one it goes on');

	sql(q{SELECT migrate_alter_job('full', '{"spool_limit": "1MB", "max_source_wal": "3MB"}')});
	ok(wait_for($target, q{SELECT count(*) > 2 FROM migrate.event WHERE kind = 'spool_full'}), 'P21: full again');
	src(q{INSERT INTO b SELECT g, repeat('x', 500) FROM generate_series(10001, 20000) g});
	ok(wait_for($source, 'SELECT count(*) = 0 FROM pg_replication_slots'), 'P21: the fuse drops the slot');
	ok(wait_for($target, "SELECT state = 'lost' FROM migrate.stream WHERE stream_id = $stream"), 'P21: the stream is lost');
	sql(q{SELECT migrate_resume('full')});
	is_lost('full', 'max_source_wal', 'P21');
	gone('full');
}

# --- what the DBA made is taken as it is, and stays
{
	src(q{CREATE PUBLICATION theirs FOR TABLE a; SELECT pg_create_logical_replication_slot('their_slot', 'pgoutput')});
	job('adopted', ', "publication": "theirs", "slot": "their_slot"', 'a');
	sql(q{SELECT migrate_start('adopted')});
	ok(joined('adopted'), 'adopted: joined');
	ok(wait_for($source, q{SELECT active FROM pg_replication_slots WHERE slot_name = 'their_slot'}), 'adopted: the slot is read');
	is(src('SELECT count(*) FROM pg_replication_slots'), '1', 'adopted: and no other is made');
	is(sql(q{SELECT count(*) FROM migrate.made_object WHERE side = 'source'}), '0', 'adopted: nothing is ours');
	is(gone('adopted'), '', 'adopted: left');
	is(src(q{SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)}), '2', 'adopted: both are there still');
	src(q{ALTER PUBLICATION theirs SET (publish = 'insert')});
	job('bad', ', "publication": "theirs", "slot": "their_slot"', 'a', 'b');
	is(sql(q{SELECT string_agg(detail, ',') FROM migrate_preflight('bad') WHERE check_name = 'publication' AND status = 'fail'}),
		'it must publish insert, update, delete and truncate, of partitions as themselves', 'adopted: one that leaves out something is refused');
	src(q{ALTER PUBLICATION theirs SET (publish = 'insert, update, delete, truncate')});
	is(sql(q{SELECT string_agg(detail, ',') FROM migrate_preflight('bad') WHERE check_name = 'publication' AND status = 'fail'}),
		'does not publish public.b', 'adopted: so is one that lacks a table');
	gone('bad');
	src(q{DROP PUBLICATION theirs; SELECT pg_drop_replication_slot('their_slot')});
}

# --- a publication that somebody changes under us
{
	job('unpublished', '', 'a');
	sql(q{SELECT migrate_start('unpublished')});
	ok(joined('unpublished'), 'unpublished: joined');
	ok(wait_for($source, 'SELECT count(*) = 1 FROM pg_replication_slots WHERE active'), 'unpublished: it streams');
	src('ALTER PUBLICATION ' . stream_column('unpublished', 'publication') . ' DROP TABLE a');
	is_lost('unpublished', 'does not publish public.a', 'unpublished');
	gone('unpublished');
}

# --- a source that is gone does not keep a job from going
{
	job('left', '', 'a');
	sql(q{SELECT migrate_start('left')});
	ok(joined('left'), 'left: joined');
	my ($slot, $publication) = (stream_column('left', 'slot'), stream_column('left', 'publication'));
	$source->stop('immediate');
	is(gone('left'), "SELECT pg_drop_replication_slot('$slot');\nDROP PUBLICATION IF EXISTS $publication;", 'left: it says what is to be done there');
	$source->start;
	is(sql('SELECT count(*) FROM migrate.stream'), '0', 'left: here nothing is left');
	src("SELECT pg_drop_replication_slot('$slot'); DROP PUBLICATION $publication");
}

# --- the role's rights, and the server's settings
{
	src(q{CREATE ROLE poor LOGIN; GRANT SELECT ON a TO poor});
	connect_source($target, $source, server => 'poor', user => 'poor');
	sql(q{SELECT migrate_create_job('poor', server => 'poor', options => '{"capture": "logical"}'); SELECT migrate_add_table('poor', 'public.a', 't_poor.a')});
	is(sql(q{SELECT string_agg(check_name || ': ' || detail, E'\n') FROM migrate_preflight('poor') WHERE status = 'fail'}),
		qq{capture_role: role "poor" may not read a change stream\npublication: role "poor" may not make a publication\npublication: role "poor" does not own public.a},
		'rights: preflight names what the role lacks');
	like(sql(q{SELECT migrate_source_sql('poor')}), qr/ALTER ROLE poor REPLICATION;\nCREATE PUBLICATION migrate_poor FOR TABLE public\.a WITH/, 'rights: and what to run');
	sql(q{SELECT migrate_alter_job('poor', '{"capture": "auto"}')});
	is(sql(q{SELECT string_agg(check_name || ' ' || status, ',') FROM migrate_preflight('poor') WHERE check_name IN ('capture', 'capture_role', 'publication')}),
		'capture warn,capture_role ok,publication warn,publication warn', 'rights: with auto it is a warning');
	sql(q{SELECT migrate_drop_job('poor')});
}

# --- what is confirmed to the source is durable here (invariant 4)
{
	# nothing here flushes WAL but who wants his commit durable, and the WAL
	# writer as long as it may run; capture's own flush is left out
	my $lazy = new_target('lazy', preload => 1,
		conf => "autovacuum = off\nbgwriter_lru_maxpages = 0\ncheckpoint_timeout = 1h\nmigrate.fault = 'capture-flush:skip'\n");
	connect_source($lazy, $source, server => 'lazy');
	$lazy->safe_psql('postgres', q{SELECT migrate_create_job('lazy', server => 'lazy', options => '{"capture": "logical", "retry_max_delay": "300ms"}');
		SELECT migrate_add_table('lazy', 'public.a', 't_lazy.a'); SELECT migrate_start('lazy')});
	wait_job($lazy, 'lazy', 'streaming');
	$lazy->safe_psql('postgres', q{SELECT migrate_pause('lazy'); SELECT migrate_wait('lazy', 'paused', '1min')});
	my $slot = $lazy->safe_psql('postgres', 'SELECT slot FROM migrate.stream');
	my $stream = $lazy->safe_psql('postgres', 'SELECT stream_id FROM migrate.stream');
	my $writer = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'};
	my $confirmed = "FROM pg_replication_slots WHERE slot_name = '$slot'";

	# a row that is in the spool, as everybody sees, and cannot be durable: the
	# position behind it, and the process to be killed
	my $spooled = sub {
		my ($id) = @_;
		my $pid = $lazy->safe_psql('postgres', $writer);
		kill 'STOP', $pid;
		my $lsn = src("INSERT INTO a VALUES ($id, 'row $id'); SELECT pg_current_wal_insert_lsn()");
		src('SELECT txid_current()');
		ok(wait_for($lazy, "SELECT spooled_lsn >= '$lsn' FROM migrate.stream_position"), "durable: row $id is in the spool");
		return ($lsn, $pid);
	};
	# all that is not flushed is lost; the source is away, so that it stays so
	my $crash = sub {
		my ($pid) = @_;
		$source->stop('immediate');
		kill 9, $pid;
		return wait_for($lazy, "SELECT count(*) = 1 FROM ($writer AND pid <> $pid) p");
	};
	my $kept = sub { return $lazy->safe_psql('postgres', "SELECT count(*) FROM migrate._spool_messages($stream, 1) WHERE position('row $_[0]'::bytea IN message) > 0") };

	my ($lsn, $pid) = $spooled->(900001);
	# the source has had a status message since then
	my $now = src('SELECT clock_timestamp()');
	ok(wait_for($source, "SELECT count(*) = 1 FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = '$slot' AND reply_time > '$now' AND write_lsn >= '$lsn'"),
		'durable: the source hears that it was received');
	my $there = src("SELECT confirmed_flush_lsn $confirmed");
	is(src("SELECT confirmed_flush_lsn < '$lsn' $confirmed"), 't', 'durable: what is not durable here is not confirmed');
	ok($crash->($pid), 'durable: the target crashes');
	is($kept->(900001), '0', 'durable: and has lost it');
	is($lazy->safe_psql('postgres', "SELECT spooled_lsn >= '$there' FROM migrate.stream_position"), 't', 'durable: what was confirmed is there');
	$source->start;
	ok(wait_for($lazy, "SELECT spooled_lsn >= '$lsn' FROM migrate.stream_position"), 'durable: it comes again');
	is($kept->(900001), '1', 'durable: once');

	# a new connection begins with what an earlier one has spooled
	($lsn, $pid) = $spooled->(900002);
	src("SELECT pg_terminate_backend(active_pid) $confirmed");
	ok(wait_for($source, "SELECT confirmed_flush_lsn >= '$lsn' $confirmed"), 'durable: a new connection confirms it');
	ok($crash->($pid), 'durable: the target crashes again');
	is($kept->(900002), '1', 'durable: nothing confirmed is lost');
	$source->start;
	$lazy->stop('immediate');
}

done_testing();
