# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Live capture where the source is not as one would like it: commits that a
# crash takes back, commits that are in the stream long before anybody sees
# them, one statement that changes everything, one transaction that is larger
# than the memory, hundreds of tables, nothing to do at all; two jobs on one
# stream, a full spool, pauses, and tables that change their columns.
#
# MIGRATE_BULK_ROWS: rows of the statement (default 300,000); MIGRATE_BULK_MB:
# size of the transaction (default 100); MIGRATE_LIVE_TABLES (default 200);
# MIGRATE_LAZY_CRASHES (default 4); MIGRATE_ODD: a pattern for the parts.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Workload;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $bulk_rows = $ENV{MIGRATE_BULK_ROWS} || 300_000;
my $bulk_mb = $ENV{MIGRATE_BULK_MB} || 100;
my $tables = $ENV{MIGRATE_LIVE_TABLES} || 200;
my $crashes = $ENV{MIGRATE_LAZY_CRASHES} || 4;
my $parts = $ENV{MIGRATE_ODD} || '.';

# what the two workers may use of memory of their own, MB
my %bound = (capture => 100, apply => 150);

my $source = new_source('source', logical => 1, conf => "max_locks_per_transaction = 512\n");
my $target = new_target('target', preload => 1, conf => "max_locks_per_transaction = 512\n");
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

my $quick = '"capture": "logical", "retry_max_delay": "300ms"';

# A job that streams tables of schema s into a schema named like itself.
sub stream
{
	my ($job, $names, $options) = @_;
	my $more = $options ? ", $options" : '';

	sql("SELECT migrate_create_job('$job', server => 'legacy', options => '{$quick$more}')");
	sql("SELECT migrate_add_schema('$job', 's', '$job', include => '{$names}')");
	sql("SELECT migrate_start('$job')");
	return wait_job($target, $job, 'streaming');
}

# A row in a table of marks, which every job here takes along, is the last
# commit that is waited for.
my $marks = 0;
sub applied
{
	my (@jobs) = @_;
	my $ok = 1;

	$marks++;
	src("INSERT INTO s.mark VALUES ($marks)");
	$ok &&= wait_for($target, "SELECT count(*) = 1 FROM $_.mark WHERE id = $marks", timeout => 120 + ($bulk_rows + 3000 * $bulk_mb) / 10_000) for @jobs;
	return $ok;
}

sub over
{
	my ($job) = @_;

	sql("CALL migrate_finish('$job')");
	sql("SELECT migrate_drop_job('$job'); DROP SCHEMA $job CASCADE");
	return;
}

# Anonymous memory in MB of the workers, in the eyes of the kernel: the peak
# over the time that the function takes to become true.
sub peak_until
{
	my ($done) = @_;
	my %pid = map { split /\|/ } split /\n/, sql(q{SELECT CASE WHEN backend_type LIKE '%capture%' THEN 'capture' ELSE 'apply' END, pid
		FROM pg_stat_activity WHERE backend_type LIKE 'migrate capture%' OR backend_type LIKE 'migrate apply%'});
	my %peak = (capture => 0, apply => 0);
	my $look = 0;

	while (1)
	{
		foreach my $role (keys %pid)
		{
			open(my $f, '<', "/proc/$pid{$role}/status") or next;
			while (<$f>) { $peak{$role} = $1 / 1024 if /^RssAnon:\s+(\d+)/ && $1 / 1024 > $peak{$role}; }
		}
		last if ++$look % 25 == 0 && $done->();
		sleep(0.02);
	}
	return %peak;
}

# A session whose statement does not come back before it is let go.
sub in_background
{
	my ($node, $sql) = @_;
	return IPC::Run::start([ 'psql', '-XqAt', '-d', $node->connstr('postgres'), '-c', $sql ],
		'<', '/dev/null', '>', \my $out, '2>', \my $err);
}

src('CREATE SCHEMA s; CREATE TABLE s.mark (id int PRIMARY KEY)');

# --- commits that a crash of the source takes back
if ('lazy' =~ /$parts/)
{
	my $lazy = new_source('lazy', logical => 1, conf => "synchronous_commit = off\nwal_writer_delay = 1s\n");
	my $other = new_target('other', preload => 1);
	connect_source($other, $lazy, server => 'legacy');
	my $w = Workload->new(source => $lazy, target => $other, rate => 150, rows => 12000);
	$w->fill;
	$w->start_writers;
	$w->define('j', options => '"workers": 2, "chunk_blocks": 20, "chunk_time": "50ms", "batch_rows": 200, "rows_per_second": 10000, "retry_max_delay": "300ms"');
	$w->start_watch('j');
	$other->safe_psql('postgres', q{SELECT migrate_start('j')});
	my $taken_back = 0;
	foreach my $i (1 .. $crashes)
	{
		if ($i == 1) { wait_for($other, q{SELECT count(*) > 3 FROM migrate.chunk WHERE state = 'done'}); }
		elsif ($i == 2) { wait_job($other, 'j', 'streaming'); }
		$w->wait_work(30);
		my ($is) = $w->work;
		hard_restart($lazy);
		$taken_back++ if $w->work < $is;
	}
	note("$taken_back of $crashes crashes took back what was seen before");
	ok($w->mark('j'), 'lazy source: it goes on by itself');
	$w->drain('j');
	$w->check('j');
	$w->drop('j');
	$_->stop for $lazy, $other;
}

# --- a commit that is in the WAL, and that nobody sees for long: it waits for
# a standby that does not exist
if ('late' =~ /$parts/)
{
	src(q{CREATE TABLE s.late (id int PRIMARY KEY, small int, big text);
		ALTER TABLE s.late ALTER big SET STORAGE EXTERNAL;
		INSERT INTO s.late SELECT g, g, repeat(md5(g::text), 100) FROM generate_series(1, 20) g;
		ALTER SYSTEM SET synchronous_commit = local;
		ALTER SYSTEM SET synchronous_standby_names = 'nobody';
		SELECT pg_reload_conf()});
	wait_for($source, q{SELECT current_setting('synchronous_standby_names') = 'nobody' AND current_setting('synchronous_commit') = 'local'});
	my $hangs = q{SELECT count(*) = %d FROM pg_stat_activity WHERE wait_event = 'SyncRep'};
	my $hung = 0;
	my @sessions;
	my $late = sub {
		push @sessions, in_background($source, "SET synchronous_commit = on; BEGIN; $_[0]; COMMIT");
		return ok(wait_for($source, sprintf($hangs, ++$hung)), "late: $_[1]: committed, and in nobody's sight");
	};

	# one before there is a stream: not in the stream, not in any snapshot yet
	$late->('INSERT INTO s.late VALUES (101, 2, $$before$$)', 'before the start');
	sql(qq{SELECT migrate_create_job('late', server => 'legacy', options => '{$quick}')});
	sql(q{SELECT migrate_add_schema('late', 's', 'late', include => '{late,mark}');
		CREATE TABLE late.even (id int PRIMARY KEY, small int, big text);
		SELECT migrate_add_table('late', 's.late', 'late.even', filter => 'small % 2 = 0');
		CREATE TABLE late.size (id int PRIMARY KEY, size int);
		SELECT migrate_add_table('late', 's.late', 'late.size', columns => '{"size": "length(big) + small"}')});
	my $start = in_background($target, q{SELECT migrate_start('late')});
	# it may come as far as it dares
	my $until = time() + 3;
	sleep(0.2) while time() < $until && (job_state($target, 'late') // '') ne 'streaming';
	note('with an unseen commit it is ' . job_state($target, 'late'));
	$source->safe_psql('postgres', q{ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()});
	wait_for($source, sprintf($hangs, 0));
	$start->finish;
	wait_job($target, 'late', 'streaming');
	ok(applied('late'), 'late: all is applied');
	is(sql('SELECT big FROM late.late WHERE id = 101'), 'before', 'late: what was committed and not seen before the start is there');

	# while streaming: a row comes into a filter, its large value is not in the
	# message, and what a query on the source finds is the row as it was; the
	# same with a key that nobody can see yet
	src(q{ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf()});
	wait_for($source, q{SELECT current_setting('synchronous_standby_names') = 'nobody'});
	$hung = 0;
	$late->('UPDATE s.late SET small = small + 1 WHERE id = 1', 'comes into a filter');
	$late->('UPDATE s.late SET id = 203, small = small + 1 WHERE id = 3', 'comes into a filter under a new key');
	$late->('INSERT INTO s.late VALUES (205, 4, repeat($$y$$, 5000)); UPDATE s.late SET id = 206 WHERE id = 205', 'new, and another key at once');
	$late->('DELETE FROM s.late WHERE id = 2', 'is deleted');
	$late->('DELETE FROM s.late WHERE id = 4; INSERT INTO s.late VALUES (4, 44, $$again$$)', 'comes again');
	# apply works at it, or waits; both are right, a wrong row is not
	wait_for($target, 'SELECT count(*) = 0 FROM late.late WHERE id = 2', timeout => 5);
	src(q{ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()});
	wait_for($source, sprintf($hangs, 0));
	ok(applied('late'), 'late: all is applied');
	same_rows($source, 'SELECT * FROM s.late', $target, 'SELECT * FROM late.late', 'late: equal');
	same_rows($source, 'SELECT * FROM s.late WHERE small % 2 = 0', $target, 'SELECT * FROM late.even', 'late: equal through the filter');
	same_rows($source, 'SELECT id, length(big) + small FROM s.late', $target, 'SELECT * FROM late.size', 'late: equal through an expression');
	is(sql(q{SELECT count(*) FROM migrate.dead_letters WHERE job = 'late' AND state = 'open'}), '0', 'late: no dead letter');
	$_->finish for @sessions;
	src('ALTER SYSTEM RESET synchronous_commit; SELECT pg_reload_conf()');
	over('late');
}

# --- one statement that changes every row; one large transaction; two jobs on
# the stream that bring it, one of them through a function
if ('bulk' =~ /$parts/)
{
	src(qq{CREATE TABLE s.bulk (id int PRIMARY KEY, v int, t text);
		INSERT INTO s.bulk SELECT g, 0, 'row ' || g FROM generate_series(1, $bulk_rows) g;
		CREATE TABLE s.fat (id int PRIMARY KEY, body text);
		ALTER TABLE s.fat ALTER body SET STORAGE EXTERNAL});
	stream('bulk', 'bulk,fat,mark') or goto DONE;
	sql(qq{SELECT migrate_create_job('bulk2', server => 'legacy', options => '{$quick}');
		SELECT migrate_add_schema('bulk2', 's', 'bulk2', include => '{mark}');
		SELECT migrate_import('bulk2', 's', 'from2', include => '{bulk}');
		CREATE TABLE bulk2.bulk (id int PRIMARY KEY, v bigint, t text);
		CREATE FUNCTION bulk2.map(o from2.bulk) RETURNS SETOF bulk2.bulk LANGUAGE sql STABLE AS 'SELECT o.id, o.v::bigint * 2, upper(o.t)';
		SELECT migrate_add_table('bulk2', 's.bulk', 'bulk2.bulk', mapping => 'bulk2.map');
		SELECT migrate_start('bulk2')});
	wait_job($target, 'bulk2', 'streaming');
	is(src('SELECT count(*) FROM pg_replication_slots'), '1', 'two jobs on one server have one stream');

	foreach my $case ([ "$bulk_rows rows by one statement", 'UPDATE s.bulk SET v = v + 1' ],
		[ 'their keys by one statement', "UPDATE s.bulk SET id = id + $bulk_rows WHERE id <= $bulk_rows / 10" ],
		[ "a transaction of $bulk_mb MB", "INSERT INTO s.fat SELECT g, repeat(md5(g::text), 320) FROM generate_series(1, $bulk_mb * 100) g" ],
		[ 'and its end', 'DELETE FROM s.fat' ])
	{
		my ($title, $statement) = @$case;
		my $start = time();
		src($statement);
		src('INSERT INTO s.mark VALUES (' . ++$marks . ')');
		my $until = time() + 900;
		my %peak = peak_until(sub { time() > $until || sql("SELECT (SELECT count(*) FROM bulk.mark WHERE id = $marks)
			+ (SELECT count(*) FROM bulk2.mark WHERE id = $marks)") eq '2' });
		ok(time() < $until, "$title: applied by both jobs");
		note(sprintf('%s: %.1f s, capture %.0f MB, apply %.0f MB', $title, time() - $start, @peak{qw(capture apply)}));
		cmp_ok($peak{$_}, '<', $bound{$_}, "$title: memory of $_, MB") for qw(capture apply);
	}
	same_rows($source, 'SELECT * FROM s.bulk', $target, 'SELECT * FROM bulk.bulk', 'bulk: equal');
	same_rows($source, 'SELECT * FROM s.fat', $target, 'SELECT * FROM bulk.fat', 'fat: equal');
	same_rows($source, 'SELECT id, v * 2, upper(t) FROM s.bulk', $target, 'SELECT * FROM bulk2.bulk', 'bulk: equal through the function');

	# one of the two stands still: the other goes on, and nothing is taken from
	# the spool that the first one needs
	sql(q{SELECT migrate_pause('bulk2')});
	ok(wait_for($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type LIKE 'migrate apply%'}), 'one of two is paused');
	src('UPDATE s.bulk SET v = v + 1 WHERE id % 10 = 0') for 1 .. 3;
	ok(applied('bulk'), 'the other goes on');
	is(sql("SELECT count(*) FROM bulk2.mark WHERE id = $marks"), '0', 'and it does not');
	over('bulk');
	sql(q{SELECT migrate_resume('bulk2')});
	ok(applied('bulk2'), 'it goes on where it stood, the other one being over');
	same_rows($source, 'SELECT id, v * 2, upper(t) FROM s.bulk', $target, 'SELECT * FROM bulk2.bulk', 'two jobs: equal');
	over('bulk2');
	# kept while the function took its rows
	sql('DROP SCHEMA from2 CASCADE');
}

# --- many tables in one publication
if ('many' =~ /$parts/)
{
	src(join('', map { "CREATE TABLE s.m$_ (id int PRIMARY KEY, v int); INSERT INTO s.m$_ VALUES (1, $_), (2, $_);" } 1 .. $tables));
	sql(qq{SELECT migrate_create_job('many', server => 'legacy', options => '{$quick, "workers": 4}');
		SELECT migrate_add_schema('many', 's', 'many', include => '{m*}')});
	sql(q{SELECT migrate_start('many')});
	wait_job($target, 'many', 'streaming', timeout => 600);
	src(join('', map { "UPDATE s.m$_ SET v = v + 1 WHERE id = 1; DELETE FROM s.m$_ WHERE id = 2; INSERT INTO s.m$_ VALUES (3, 3);" } 1 .. $tables));
	src('DO $$ BEGIN FOR i IN 1 .. 20 LOOP ' . join('', map { "UPDATE s.m$_ SET v = v + 1 WHERE id = 3;" } 1 .. $tables) . ' COMMIT; END LOOP; END $$');
	ok(applied('many'), "$tables tables: all is applied");
	my $all = join(' UNION ALL ', map { "SELECT $_, id, v FROM %s.m$_" } 1 .. $tables);
	same_rows($source, $all =~ s/%s/s/gr, $target, $all =~ s/%s/many/gr, "$tables tables: equal");
	over('many');
	src(join('', map { "DROP TABLE s.m$_;" } 1 .. $tables));
}

# --- a source that writes, but nothing of ours; a spool that is full; pauses
if ('idle' =~ /$parts/)
{
	src(q{CREATE TABLE s.some (id int PRIMARY KEY, pad text); CREATE TABLE s.foreign_to_us (id int)});
	stream('idle', 'some,mark') or goto DONE;
	ok(applied('idle'), 'idle: it streams');
	my $lsn = src('INSERT INTO s.foreign_to_us SELECT g FROM generate_series(1, 50000) g; SELECT pg_current_wal_lsn()');
	ok(wait_for($source, "SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots", timeout => 60),
		'idle: the slot moves though nothing of ours is written');
	is(sql("SELECT spooled_lsn >= '" . src('SELECT confirmed_flush_lsn FROM pg_replication_slots') . "' FROM migrate.stream_position"), 't',
		'idle: what is confirmed is kept here first');

	sql(q{SELECT migrate_alter_job('idle', '{"spool_limit": "1MB"}'); SELECT migrate_pause('idle')});
	ok(wait_for($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'migrate apply%'}), 'full: paused');
	# incompressible, in many transactions; capture may be late to see the limit
	my $much = q{DO $$ BEGIN FOR i IN 1 .. 300 LOOP
		INSERT INTO s.some SELECT (SELECT coalesce(max(id), 0) FROM s.some) + g, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 60)) FROM generate_series(1, 40) g; COMMIT; END LOOP; END $$};
	src($much);
	ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.events WHERE kind = 'spool_full'}, timeout => 60), 'full: it is told');
	my $size = sql(q{SELECT sum(pg_total_relation_size(relation)) FROM migrate.spool_segment});
	src($much);
	# it stays where it is, and the connection with it
	sleep(2);
	my $behind = src('SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint FROM pg_replication_slots');
	cmp_ok($behind, '>', 10_000_000, 'full: the source keeps its WAL');
	is(sql(q{SELECT sum(pg_total_relation_size(relation)) FROM migrate.spool_segment}), $size, 'full: the spool does not grow');
	is(src('SELECT active FROM pg_replication_slots'), 't', 'full: and the connection is kept');
	sql(q{SELECT migrate_resume('idle')});
	ok(applied('idle'), 'full: after the pause all is applied');
	same_rows($source, 'SELECT * FROM s.some', $target, 'SELECT * FROM idle.some', 'full: equal');
	ok(wait_for($source, q{SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) < 1000000 FROM pg_replication_slots}, timeout => 60),
		'full: the source is free of its WAL');

	# one transaction larger than the limit is finished all the same (P19)
	src(q{INSERT INTO s.some SELECT 1000000 + g, (SELECT string_agg(md5(random()::text || g || x), '') FROM generate_series(1, 60) x) FROM generate_series(1, 3000) g});
	ok(applied('idle'), 'P19: a transaction larger than the limit');

	foreach my $i (1 .. 5)
	{
		sql(q{SELECT migrate_pause('idle')});
		src("DELETE FROM s.some WHERE id % 5 = $i; UPDATE s.some SET pad = '$i' WHERE id % 7 = 0");
		sql(q{SELECT migrate_resume('idle')});
	}
	ok(applied('idle'), 'pauses: all is applied');
	same_rows($source, 'SELECT * FROM s.some', $target, 'SELECT * FROM idle.some', 'pauses: equal');
	over('idle');
}

# --- the columns of the source change
if ('schema' =~ /$parts/)
{
	src(q{CREATE TABLE s.c (id int PRIMARY KEY, a int, b text, unread int);
		INSERT INTO s.c SELECT g, g, 'b', 0 FROM generate_series(1, 50) g});
	sql(qq{CREATE SCHEMA c; CREATE TABLE c.c (id int PRIMARY KEY, a int, b text);
		SELECT migrate_create_job('c', server => 'legacy', options => '{$quick}');
		SELECT migrate_add_schema('c', 's', 'c', include => '{mark}');
		SELECT migrate_add_table('c', 's.c', 'c.c', columns => '{}');
		SELECT migrate_start('c')});
	wait_job($target, 'c', 'streaming') or goto DONE;
	src(q{ALTER TABLE s.c ADD extra text DEFAULT 'new'; INSERT INTO s.c VALUES (51, 51, 'b', 0, 'x'); UPDATE s.c SET a = a + 1 WHERE id < 10;
		ALTER TABLE s.c DROP extra; INSERT INTO s.c VALUES (52, 52, 'b', 0); UPDATE s.c SET a = a + 1 WHERE id < 10});
	ok(applied('c'), 'schema: columns that are not read come and go');
	same_rows($source, 'SELECT id, a, b FROM s.c', $target, 'SELECT * FROM c.c', 'schema: equal');

	src(q{BEGIN; UPDATE s.c SET a = 1000 WHERE id = 1; COMMIT;
		ALTER TABLE s.c RENAME b TO b2; UPDATE s.c SET a = 2000 WHERE id = 1; INSERT INTO s.c VALUES (60, 60, 'b60', 0)});
	ok(wait_for($target, q{SELECT wanted = 'pause' OR state = 'failed' FROM migrate.job WHERE job = 'c'}, timeout => 60),
		'schema: a column that a mapping reads is renamed: it does not go on');
	note(sql(q{SELECT state, wanted, pause_reason, last_error FROM migrate.job WHERE job = 'c'}));
	like(sql(q{SELECT concat(pause_reason, last_error, (SELECT string_agg(message, ' ') FROM migrate.events WHERE job = 'c' AND level IN ('alert', 'warning', 'error')))
		FROM migrate.job WHERE job = 'c'}), qr/refresh/, 'schema: the remedy is named');
	is(sql('SELECT count(*) FROM c.c WHERE id = 60 OR b IS NULL'), '0', 'schema: and nothing of it is applied');
	src('ALTER TABLE s.c RENAME b2 TO b; INSERT INTO s.c VALUES (61, 61, $$b61$$, 0)');
	is(sql('SELECT count(*) FROM c.c WHERE b IS NULL'), '0', 'schema: no row without its value');
	over('c');
}

is(src('SELECT count(*) FROM pg_replication_slots') . src('SELECT count(*) FROM pg_publication'), '00', 'nothing is left on the source');
is(sql(q{SELECT count(*) FROM pg_class WHERE relnamespace = 'migrate'::regnamespace AND relname ~ '^spool_[0-9]'}), '0', 'no segment is left here');
is(sql('SELECT count(*) FROM pg_foreign_table'), '0', 'nor a foreign table');

DONE:
done_testing();
