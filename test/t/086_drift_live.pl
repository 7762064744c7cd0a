# Copyright (c) 2026, the migrate authors; PostgreSQL License

# P2 while the job follows its source: partitions that are created and filled at
# once are in the stream with every row, and no reason to stop, below parents of
# every kind; tables that were attached with rows are, however they hide it, and
# so is a partition that was written to while it was detached.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;

my $source = new_source('source', logical => 1, conf => "autovacuum = off\n");
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

sub caught_up
{
	my ($job) = @_;
	my $lsn = src('SELECT pg_current_wal_insert_lsn()');
	src('SELECT txid_current()');
	return ok(wait_for($target, "SELECT a.applied_lsn >= '$lsn' FROM migrate.apply_position a JOIN migrate.job USING (job_id) WHERE job = '$job'"), "$job: caught up");
}

sub alert
{
	my ($job) = @_;
	return sql(qq{SELECT coalesce(string_agg(message, ' '), '') FROM migrate.event JOIN migrate.job USING (job_id)
		WHERE job = '$job' AND kind = 'drift' AND level = 'alert'});
}

# A range of ids in table %s: two partitions, and a parent of partitions each
# that was born as one, and that was attached.  A key, so that nothing is
# created without NOT NULL.
my $table = q{
	CREATE TABLE %s (id int NOT NULL, v text, w int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
	CREATE TABLE %s_1 PARTITION OF %s FOR VALUES FROM (0) TO (1000);
	CREATE TABLE %s_2 PARTITION OF %s FOR VALUES FROM (1000) TO (2000);
	CREATE TABLE %s_born PARTITION OF %s FOR VALUES FROM (10000) TO (20000) PARTITION BY RANGE (id);
	CREATE TABLE %s_old (w int, v text, id int NOT NULL) PARTITION BY RANGE (id);
	CREATE TABLE %s_old_1 PARTITION OF %s_old FOR VALUES FROM (20000) TO (21000);
	ALTER TABLE %s ATTACH PARTITION %s_old FOR VALUES FROM (20000) TO (30000);
	INSERT INTO %s SELECT g, 'old', g FROM generate_series(1, 1999) g;
	INSERT INTO %s SELECT g, 'old', g FROM generate_series(20000, 20100) g};
my $attach = 'ALTER TABLE %s ATTACH PARTITION %s_new FOR VALUES FROM (3000) TO (4000)';
my $new = q{CREATE TABLE %s_new (id int NOT NULL, v text, w int); INSERT INTO %s_new SELECT g, 'lost', g FROM generate_series(3000, 3100) g};

# table, what is done to it, each in a transaction; what is said, or undef
my @cases = (
	[ 'filled', [
		# in the same transaction, by COPY
		q{CREATE TABLE %s_a PARTITION OF %s FOR VALUES FROM (3000) TO (4000); COPY %s FROM PROGRAM 'seq -f "%.0f,a,1" 3000 3099' (FORMAT csv)},
		q{CREATE TABLE %s_b PARTITION OF %s FOR VALUES FROM (4000) TO (5000)}, q{INSERT INTO %s SELECT g, 'b', g FROM generate_series(4000, 4999) g},
		q{UPDATE %s SET id = id + 2600 WHERE id BETWEEN 500 AND 600}, q{DELETE FROM %s WHERE id BETWEEN 4100 AND 4200},
		# new storage, a new column, and a new value of an attribute
		q{ALTER TABLE %s ADD more int DEFAULT 7}, q{ALTER TABLE %s_a ALTER v SET DEFAULT 'x', ALTER w SET STATISTICS 10},
		q{ALTER TABLE %s_b SET (fillfactor = 50)}, q{TRUNCATE %s_a}, q{INSERT INTO %s VALUES (3001, 'again', 1)} ], undef ],
	[ 'levels', [
		q{CREATE TABLE %s_m PARTITION OF %s FOR VALUES FROM (5000) TO (6000) PARTITION BY RANGE (id); CREATE TABLE %s_m1 PARTITION OF %s_m DEFAULT;
			INSERT INTO %s SELECT g, 'm', g FROM generate_series(5000, 5500) g},
		q{CREATE TABLE %s_born_1 PARTITION OF %s_born FOR VALUES FROM (10000) TO (11000)}, q{INSERT INTO %s SELECT g, 'born', g FROM generate_series(10000, 10500) g},
		q{CREATE TABLE %s_old_2 PARTITION OF %s_old FOR VALUES FROM (21000) TO (22000)}, q{INSERT INTO %s SELECT g, 'old', g FROM generate_series(21000, 21500) g} ], undef ],
	[ 'attached', [ $new, $attach ], qr/public\.attached_new has come to public\.attached, and is not empty/ ],
	# made, filled and attached in one, and then somebody tries to alter it
	[ 'hidden', [ "$new; $attach", map { q{DO $$ BEGIN PERFORM 1; ALTER TABLE %s_new ALTER v SET STATISTICS 10, ALTER id SET STATISTICS 10, ALTER w SET STATISTICS 10; RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END $$} } 1 .. 2 ],
		qr/public\.hidden_new has come to public\.hidden, and is not empty/ ],
	# born as a partition of something else
	[ 'elsewhere', [ q{CREATE TABLE %s_new (LIKE %s) PARTITION BY RANGE (id); CREATE TABLE %s_n1 PARTITION OF %s_new DEFAULT; INSERT INTO %s_new SELECT g, 'lost', g FROM generate_series(3000, 3100) g},
		$attach ], qr/public\.elsewhere_n1 has come to public\.elsewhere, and is not empty/ ],
	# born as one, and filled while it was none
	[ 'gone', [ q{CREATE TABLE %s_new PARTITION OF %s FOR VALUES FROM (3000) TO (4000)},
		qq{ALTER TABLE %s DETACH PARTITION %s_new; INSERT INTO %s_new SELECT g, 'lost', g FROM generate_series(3000, 3100) g; $attach} ],
		qr/public\.gone_new has come to public\.gone, and is not empty/ ],
	# one of the plan, and one below a parent that was away
	[ 'away', [ q{ALTER TABLE %s DETACH PARTITION %s_2; UPDATE %s_2 SET v = 'lost'; ALTER TABLE %s ATTACH PARTITION %s_2 FOR VALUES FROM (1000) TO (2000)} ],
		qr/public\.away_2 .*was detached for a while/ ],
	[ 'above', [ q{ALTER TABLE %s DETACH PARTITION %s_old; UPDATE %s_old SET v = 'lost'; ALTER TABLE %s ATTACH PARTITION %s_old FOR VALUES FROM (20000) TO (30000)} ],
		qr/public\.above_old_1 .*was detached for a while/ ]);

sub fill { my ($text, $name) = @_; return $text =~ s/%s/$name/gr; }

foreach my $c (@cases)
{
	my $job = $c->[0];
	src(fill($table, $job));
	sql(qq{CREATE SCHEMA "$job"; CREATE TABLE "$job".t (id int PRIMARY KEY, v text, w int);
		CREATE FOREIGN TABLE "$job".f (id int NOT NULL, v text, w int) SERVER legacy OPTIONS (schema_name 'public', table_name '$job');
		SELECT migrate_create_job('$job', server => 'legacy', options => '{"capture": "logical", "workers": 1}');
		SELECT migrate_add_table('$job', '"$job".f', '"$job".t', key => '{"id": "id"}');
		SELECT migrate_start('$job')});
}
wait_job($target, $_->[0], 'streaming') foreach @cases;

# a writer in each of them all the time

my $pid = fork() // die;
if ($pid == 0)
{
	for my $n (1 .. 40)
	{
		$source->psql('postgres', qq{UPDATE filled SET w = w + 1 WHERE id % 50 = $n % 50; UPDATE levels SET w = w + 1 WHERE id % 50 = $n % 50;
			DO \$\$ BEGIN INSERT INTO levels VALUES (10600 + $n, 'writer', $n); EXCEPTION WHEN check_violation THEN NULL; END \$\$});
	}
	POSIX::_exit(0);
}
foreach my $c (@cases)
{
	src(/^DO|VACUUM/ ? fill($_, $c->[0]) : 'BEGIN; ' . fill($_, $c->[0]) . '; COMMIT') foreach @{ $c->[1] };
}
waitpid($pid, 0);
is($?, 0, 'the writer is done');

foreach my $c (@cases)
{
	my ($job, undef, $says) = @$c;
	if (defined $says)
	{
		ok(wait_for($target, qq{SELECT wanted = 'pause' FROM migrate.job WHERE job = '$job'}, timeout => 60), "$job: is paused") or next;
		like(alert($job), $says, "$job: says what has changed");
		sql(qq{SELECT migrate_wait('$job', 'paused', '60 s'); SELECT migrate_recopy('$job', '"$job".t'); SELECT migrate_resume('$job')});
		wait_job($target, $job, 'streaming');
	}
	else
	{
		# planned too
		my $leaves = src("SELECT count(*) FROM pg_partition_tree('$job') WHERE isleaf AND relid <> '${job}_born'::regclass");
		ok(wait_for($target, qq{SELECT count(*) = $leaves FROM migrate.leaf NATURAL JOIN migrate.job WHERE job = '$job'}, timeout => 60), "$job: what came is planned");
		is(alert($job), '', "$job: without an alert");
		is(sql("SELECT wanted FROM migrate.job WHERE job = '$job'"), 'run', "$job: goes on");
	}
	caught_up($job);
	same_rows($source, "SELECT id, v, w FROM \"$job\"", $target, "SELECT * FROM \"$job\".t", "$job: equal");
}

sql("SELECT migrate_cancel('$_->[0]'); SELECT migrate_wait('$_->[0]', 'cancelled', '60 s')") foreach @cases;

# ----------------------------------------------------------------
# P16: what identifies a row in the stream
# ----------------------------------------------------------------
my $plain = 'CREATE TABLE %s (id int PRIMARY KEY, u int NOT NULL UNIQUE, v text); INSERT INTO %s SELECT g, g, g FROM generate_series(1, 100) g';

# table, how it is made, what is done to it, what is said, what is done about it
my @identities = (
	[ 'nothing', $plain, 'ALTER TABLE %s REPLICA IDENTITY NOTHING', qr/public\.nothing has replica identity NOTHING: .*ALTER TABLE public\.nothing REPLICA IDENTITY FULL/, 'ALTER TABLE %s REPLICA IDENTITY FULL' ],
	[ 'other', $plain, 'ALTER TABLE %s REPLICA IDENTITY USING INDEX %s_u_key', qr/public\.other has a replica identity without columns of the key/, 'ALTER TABLE %s REPLICA IDENTITY DEFAULT' ],
	[ 'deferred', $plain, 'ALTER TABLE %s DROP CONSTRAINT %s_pkey, ADD PRIMARY KEY (id) DEFERRABLE', qr/public\.deferred has a key \(id\) that has become deferrable/, 'ALTER TABLE %s DROP CONSTRAINT %s_pkey, ADD PRIMARY KEY (id)' ],
	[ 'deferred_full', $plain, 'ALTER TABLE %s REPLICA IDENTITY FULL, DROP CONSTRAINT %s_pkey, ADD PRIMARY KEY (id) DEFERRABLE', qr/public\.deferred_full has a key \(id\) that has become deferrable/, 'ALTER TABLE %s DROP CONSTRAINT %s_pkey, ADD PRIMARY KEY (id)' ],
	[ 'dropped', $plain, 'ALTER TABLE %s DROP CONSTRAINT %s_pkey', qr/public\.dropped has no primary key any more/, 'ALTER TABLE %s ADD PRIMARY KEY (id)' ],
	[ 'bag', 'CREATE TABLE %s (id int, u int, v text); ALTER TABLE %s REPLICA IDENTITY FULL; INSERT INTO %s SELECT g, g FROM generate_series(1, 100) g', 'ALTER TABLE %s REPLICA IDENTITY DEFAULT',
		qr/public\.bag has no primary key/, 'ALTER TABLE %s REPLICA IDENTITY FULL' ],
	[ 'leaf', 'CREATE TABLE %s (id int PRIMARY KEY, u int, v text) PARTITION BY RANGE (id); CREATE TABLE %s_1 PARTITION OF %s DEFAULT; INSERT INTO %s SELECT g, g FROM generate_series(1, 100) g',
		'ALTER TABLE %s_1 REPLICA IDENTITY NOTHING', qr/public\.leaf_1 has replica identity NOTHING/, 'ALTER TABLE %s_1 REPLICA IDENTITY DEFAULT' ],
	# as good as before
	[ 'good', $plain, 'ALTER TABLE %s REPLICA IDENTITY FULL; CREATE UNIQUE INDEX ON %s (v); ALTER TABLE %s DROP CONSTRAINT %s_u_key', undef, '' ]);
foreach my $c (@identities)
{
	my $job = $c->[0];
	src(fill($c->[1], $job));
	sql(qq{SELECT migrate_create_job('$job', server => 'legacy', options => '{"capture": "logical", "workers": 1}');
		SELECT migrate_add_table('$job', 'public.$job', '$job.$job'); SELECT migrate_start('$job')});
}
wait_job($target, $_->[0], 'streaming') foreach @identities;
src(fill("BEGIN; $_->[2]; COMMIT", $_->[0])) foreach @identities;
foreach my $c (@identities)
{
	my ($job, undef, undef, $says, $then) = @$c;
	if (defined $says)
	{
		ok(wait_for($target, qq{SELECT wanted = 'pause' FROM migrate.job WHERE job = '$job'}, timeout => 60), "$job: is paused") or next;
		like(alert($job), $says, "$job: says what is wrong, and what to do");
		src(fill($then, $job));
		sql(qq{SELECT migrate_wait('$job', 'paused', '60 s'); SELECT migrate_resume('$job')});
	}
	src(qq{UPDATE $job SET id = id + 1000 WHERE id % 7 = 0; UPDATE $job SET v = 'new' || id WHERE id % 5 = 0; DELETE FROM $job WHERE id % 11 = 0});
	caught_up($job);
	same_rows($source, "SELECT * FROM $job", $target, "SELECT * FROM $job.$job", "$job: equal");
}
# the watch has looked at it by now
is(sql(q{SELECT wanted FROM migrate.job WHERE job = 'good'}) . alert('good'), 'run', 'good: goes on');

done_testing();
