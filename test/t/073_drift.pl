# Copyright (c) 2026, the migrate authors; PostgreSQL License

# P2: what the source changes without saying so.  Nothing wrong is ever loaded,
# the job says what has changed and what to do, and goes on after that.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;
use Time::HiRes qw(sleep);

my $source = new_source('source', conf => "autovacuum = off\n");
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

sub events
{
	my ($job, $level) = @_;
	return sql(qq{SELECT coalesce(string_agg(message, E'\n' ORDER BY event_id), '') FROM migrate.event
		NATURAL JOIN migrate.job WHERE job = '$job' AND level = '$level' AND kind = 'drift'});
}

sub start
{
	my ($job) = @_;
	return sql(qq{SELECT migrate_accept('$job', check_name, object, 'test') FROM migrate_preflight('$job') WHERE status = 'fail';
		SELECT migrate_start('$job')});
}

# Paused, for a reason that matches; and as an alert, once.
sub is_paused
{
	my ($job, $reason) = @_;
	ok(wait_for($target, qq{SELECT wanted = 'pause' FROM migrate.job WHERE job = '$job'}, timeout => 60), "$job: is paused");
	my $given = sql("SELECT pause_reason FROM migrate.job WHERE job = '$job'");
	like($given, $reason, "$job: says what has changed");
	like($given, qr/migrate_refresh_schema, then migrate_recopy of .*$job\./, "$job: and what to do");
	like(events($job, 'alert'), $reason, "$job: with an alert");
	return;
}

sub resume
{
	my ($job) = @_;
	sql(qq{SELECT migrate_wait('$job', 'paused', '60 s')});
	sql(qq{SELECT migrate_alter_job('$job', '{"rows_per_second": 0}'); SELECT migrate_resume('$job')});
	wait_job($target, $job, 'copied');
	return;
}

# ======================================================================
# under the chunks
# ======================================================================

my $slow = '"workers": 1, "chunk_blocks": 16, "chunk_time": "100ms", "batch_rows": 200, "rows_per_second": 2500';

# columns a and b tell by their values which is which
sub make_table
{
	my ($name, $more) = @_;
	$more //= '';
	return src(qq{CREATE TABLE $name (id int PRIMARY KEY, a int, b int, pad text, c varchar(20)) $more;
		INSERT INTO $name SELECT g, g, -g, repeat('x', 100), 'c' || g FROM generate_series(1, 20000) g});
}

sub start_slowly
{
	my ($job, $table, $options, $server) = @_;
	$options //= '';
	$server //= 'legacy';
	sql(qq{SELECT migrate_create_job('$job', server => '$server', options => '{$slow $options}');
		SELECT migrate_add_table('$job', 'public.$table', '$job.$table')});
	start($job);
	ok(wait_for($target, qq{SELECT count(*) >= 2 FROM migrate.chunks WHERE job = '$job' AND state = 'done'}), "$job: two chunks are done");
	# the watch has looked, and will not again so soon
	sleep(1.5);
	is(job_state($target, $job), 'copying', "$job: and it is in the middle of the copy");
	return;
}

sub nothing_wrong
{
	my ($job, $table) = @_;
	is(sql("SELECT count(*) FROM $job.$table WHERE a <> id OR b <> -id OR c <> 'c' || id"), '0', "$job: nothing wrong was loaded");
	return;
}

my $swap = 'BEGIN; ALTER TABLE %s RENAME a TO t; ALTER TABLE %1$s RENAME b TO a; ALTER TABLE %1$s RENAME t TO b; COMMIT';

sub swap { my ($table) = @_; return src(sprintf($swap, $table) =~ s/%s/$table/gr); }

{
	make_table('c_swap');
	start_slowly('c_swap', 'c_swap');
	swap('c_swap');
	is_paused('c_swap', qr/public\.c_swap has other columns under the names that are read/);
	nothing_wrong('c_swap', 'c_swap');
	my ($ret, $out, $err) = $target->psql('postgres', q{SELECT migrate_wait('c_swap', 'copied', '60 s')});
	like($err, qr/is paused.*has other columns/s, 'c_swap: migrate_wait says so, too');

	# without a remedy it pauses again
	sql(q{SELECT migrate_wait('c_swap', 'paused', '60 s'); SELECT migrate_resume('c_swap')});
	ok(wait_for($target, q{SELECT wanted = 'pause' FROM migrate.job WHERE job = 'c_swap'}, timeout => 60), 'c_swap: and pauses again');
	sql(q{SELECT migrate_wait('c_swap', 'paused', '60 s')});
	is(sql(q{SELECT count(*) FROM migrate.event NATURAL JOIN migrate.job WHERE job = 'c_swap' AND kind = 'drift' AND level = 'alert'}), '2',
		'c_swap: one alert a pause');
	nothing_wrong('c_swap', 'c_swap');

	# remedy: that is how it should be
	sql(q{SELECT migrate_recopy('c_swap', 'c_swap.c_swap')});
	resume('c_swap');
	same_rows($source, 'SELECT * FROM c_swap', $target, 'SELECT id, b, a, pad, c FROM c_swap.c_swap', 'c_swap: equal');
}

{
	make_table('c_column');
	start_slowly('c_column', 'c_column');
	src('ALTER TABLE c_column RENAME b TO z');
	is_paused('c_column', qr/public\.c_column has no column "b" any more/);
	nothing_wrong('c_column', 'c_column');
	src('ALTER TABLE c_column RENAME z TO b');
	resume('c_column');
	same_rows($source, 'SELECT * FROM c_column', $target, 'SELECT * FROM c_column.c_column', 'c_column: undone and equal');
}

# dropped and added again under the same name and type: nulls, silently
{
	make_table('c_again');
	start_slowly('c_again', 'c_again');
	src('BEGIN; ALTER TABLE c_again DROP b; ALTER TABLE c_again ADD b int; COMMIT');
	is_paused('c_again', qr/public\.c_again has other columns under the names/);
	nothing_wrong('c_again', 'c_again');
	sql(q{SELECT migrate_recopy('c_again', 'c_again.c_again')});
	resume('c_again');
	same_rows($source, 'SELECT id, a, b, pad, c FROM c_again', $target, 'SELECT * FROM c_again.c_again', 'c_again: equal');
}

{
	make_table('c_type');
	start_slowly('c_type', 'c_type');
	src('ALTER TABLE c_type ALTER c TYPE varchar(30)');
	is_paused('c_type', qr/public\.c_type has another type or collation/);
	nothing_wrong('c_type', 'c_type');
	src(q{INSERT INTO c_type VALUES (0, 0, 0, 'x', repeat('c', 30))});
	sql(q{ALTER FOREIGN TABLE legacy.c_type ALTER c TYPE varchar(30); ALTER TABLE c_type.c_type ALTER c TYPE varchar(30);
		SELECT migrate_recopy('c_type', 'c_type.c_type')});
	resume('c_type');
	same_rows($source, 'SELECT * FROM c_type', $target, 'SELECT * FROM c_type.c_type', 'c_type: equal');
}

# a mere rewrite (P1): to the same type, and another table of the same columns
foreach my $how (
	[ 'c_using',    'ALTER TABLE c_using ALTER a TYPE int USING a + 1000000' ],
	[ 'c_recreate', 'BEGIN; CREATE TABLE k AS SELECT id + 1000000 AS id, a, b, pad, c FROM c_recreate; DROP TABLE c_recreate;
		CREATE TABLE c_recreate (id int PRIMARY KEY, a int, b int, gone int, pad text, c varchar(20)); ALTER TABLE c_recreate DROP gone;
		INSERT INTO c_recreate SELECT * FROM k; DROP TABLE k; COMMIT' ])
{
	my ($job, $statement) = @$how;
	make_table($job);
	start_slowly($job, $job);
	src($statement);
	ok(wait_for($target, "SELECT plan_no > 2 FROM migrate.source_table s JOIN migrate.job j USING (job_id) WHERE job = '$job'"), "$job: is planned anew by itself");
	sql(qq{SELECT migrate_alter_job('$job', '{"rows_per_second": 0}')});
	wait_job($target, $job, 'copied');
	same_rows($source, "SELECT * FROM $job", $target, "SELECT * FROM $job.$job", "$job: equal");
}

# another table with other columns
{
	make_table('c_other');
	start_slowly('c_other', 'c_other');
	src(q{BEGIN; DROP TABLE c_other; CREATE TABLE c_other (id int PRIMARY KEY, a bigint, b int, pad text, c varchar(20));
		INSERT INTO c_other VALUES (1, 1, -1, '', 'c1'); COMMIT});
	is_paused('c_other', qr/public\.c_other is another table now, which has another type/);
	nothing_wrong('c_other', 'c_other');
	sql(q{SELECT migrate_recopy('c_other', 'c_other.c_other')});
	resume('c_other');
	same_rows($source, 'SELECT * FROM c_other', $target, 'SELECT * FROM c_other.c_other', 'c_other: equal');
}

# dropped or renamed: not a failure of the job
{
	make_table('c_name');
	start_slowly('c_name', 'c_name');
	src('ALTER TABLE c_name RENAME TO c_named');
	is_paused('c_name', qr/public\.c_name was renamed to public\.c_named/);
	src('ALTER TABLE c_named RENAME TO c_name');
	resume('c_name');
	same_rows($source, 'SELECT * FROM c_name', $target, 'SELECT * FROM c_name.c_name', 'c_name: undone and equal');
}

# with privileges on columns only, and through a view: no LOCK TABLE
{
	src(q{CREATE ROLE app LOGIN});
	connect_source($target, $source, server => 'as_app', user => 'app');
	make_table('c_priv');
	src(q{GRANT SELECT (id, a, b, pad, c) ON c_priv TO app});
	start_slowly('c_priv', 'c_priv', ', "chunking": "key", "chunk_rows": 1000', 'as_app');
	swap('c_priv');
	is_paused('c_priv', qr/public\.c_priv has other columns/);
	nothing_wrong('c_priv', 'c_priv');
	swap('c_priv');
	resume('c_priv');
	same_rows($source, 'SELECT * FROM c_priv', $target, 'SELECT * FROM c_priv.c_priv', 'c_priv: equal');

	make_table('c_base');
	src(q{CREATE VIEW c_view AS SELECT * FROM c_base});
	sql(qq{CREATE SCHEMA c_view; CREATE TABLE c_view.c_view (id int PRIMARY KEY, a int, b int, pad text, c varchar(20));
		CREATE FOREIGN TABLE c_view.f (id int NOT NULL, a int, b int, pad text, c varchar(20)) SERVER legacy OPTIONS (schema_name 'public', table_name 'c_view');
		SELECT migrate_create_job('c_view', server => 'legacy', options => '{$slow, "chunking": "key", "chunk_rows": 1000}');
		SELECT migrate_add_table('c_view', 'c_view.f', 'c_view.c_view', key => '{"id": "id"}');
		UPDATE migrate.source_table s SET key_columns = '{id}' FROM migrate.job j WHERE j.job_id = s.job_id AND job = 'c_view'});
	start('c_view');
	ok(wait_for($target, q{SELECT count(*) >= 2 FROM migrate.chunks WHERE job = 'c_view' AND state = 'done'}), 'c_view: two chunks are done');
	sleep(1.5);
	src('BEGIN; ALTER VIEW c_view RENAME a TO t; ALTER VIEW c_view RENAME b TO a; ALTER VIEW c_view RENAME t TO b; COMMIT');
	is_paused('c_view', qr/public\.c_view has other columns/);
	nothing_wrong('c_view', 'c_view');
	src('BEGIN; ALTER VIEW c_view RENAME a TO t; ALTER VIEW c_view RENAME b TO a; ALTER VIEW c_view RENAME t TO b; COMMIT');
	resume('c_view');
	same_rows($source, 'SELECT * FROM c_view', $target, 'SELECT * FROM c_view.c_view', 'c_view: equal');
}

# a tree that is read through its root, since one partition is not readable
{
	src(q{CREATE TABLE c_root (id int PRIMARY KEY, a int, b int, pad text, c varchar(20)) PARTITION BY RANGE (id);
		CREATE TABLE c_root_1 PARTITION OF c_root FOR VALUES FROM (0) TO (10000);
		CREATE TABLE c_root_2 PARTITION OF c_root FOR VALUES FROM (10000) TO (30000);
		INSERT INTO c_root SELECT g, g, -g, repeat('x', 100), 'c' || g FROM generate_series(1, 20000) g;
		GRANT SELECT ON c_root, c_root_1 TO app});
	start_slowly('c_root', 'c_root', ', "chunking": "key", "chunk_rows": 1000', 'as_app');
	swap('c_root');
	is_paused('c_root', qr/public\.c_root has other columns/);
	nothing_wrong('c_root', 'c_root');
	swap('c_root');
	resume('c_root');
	same_rows($source, 'SELECT * FROM c_root', $target, 'SELECT * FROM c_root.c_root', 'c_root: equal');
}

# a foreign scan is not seen under the chunk, but by the watch
{
	make_table('c_fdw');
	start_slowly('c_fdw', 'c_fdw', ', "transport": "fdw", "chunk_rows": 1000, "chunking": "key", "rows_per_second": 1500');
	src('ALTER TABLE c_fdw ALTER c TYPE varchar(30)');
	is_paused('c_fdw', qr/public\.c_fdw has another type/);
	src('ALTER TABLE c_fdw ALTER c TYPE varchar(20)');
	resume('c_fdw');
	same_rows($source, 'SELECT * FROM c_fdw', $target, 'SELECT * FROM c_fdw.c_fdw', 'c_fdw: equal');
}

# ======================================================================
# behind the chunks: every table is copied, the job waits for another
# ======================================================================

src(q{CREATE TABLE hold (id int PRIMARY KEY); INSERT INTO hold VALUES (1)});
my $parts = q{CREATE TABLE %s (id int PRIMARY KEY, v text, extra int) PARTITION BY RANGE (id);
	CREATE TABLE %s_1 PARTITION OF %s FOR VALUES FROM (0) TO (1000);
	CREATE TABLE %s_2 PARTITION OF %s FOR VALUES FROM (1000) TO (2000);
	INSERT INTO %s SELECT g, 'v' || g FROM generate_series(1, 1999) g;
	CREATE TABLE %s_3 (id int NOT NULL, v text, extra int); INSERT INTO %s_3 SELECT g, 'new' FROM generate_series(2000, 2100) g};
my $plain = q{CREATE TABLE %s (id int PRIMARY KEY, v int, w int, extra int); INSERT INTO %s SELECT g, g, -g FROM generate_series(1, 2000) g};

# job and table, how it is made, what is done to it, what is said, how to go on
my @watched = (
	[ 'w_swap', $plain, 'BEGIN; ALTER TABLE %s RENAME v TO t; ALTER TABLE %s RENAME w TO v; ALTER TABLE %s RENAME t TO w; COMMIT',
		qr/public\.w_swap has other columns/, 'undo' ],
	[ 'w_type', $plain, 'ALTER TABLE %s ALTER v TYPE bigint', qr/public\.w_type has another type/, 'recopy' ],
	[ 'w_using', $plain, 'ALTER TABLE %s ALTER v TYPE int USING -v', qr/public\.w_using was rewritten with a column altered/, 'recopy' ],
	[ 'w_recreate', $plain, 'BEGIN; DROP TABLE %s; CREATE TABLE %s (id int PRIMARY KEY, v int, w int, extra int); INSERT INTO %s VALUES (1, 2, 3); COMMIT',
		qr/public\.w_recreate was dropped and created again/, 'recopy' ],
	[ 'w_name', $plain, 'ALTER TABLE %s RENAME TO w_named', qr/public\.w_name was renamed to public\.w_named/, 'ALTER TABLE w_named RENAME TO w_name' ],
	[ 'w_attach', $parts, 'ALTER TABLE %s ATTACH PARTITION %s_3 FOR VALUES FROM (2000) TO (3000)', qr/public\.w_attach_3 has come to public\.w_attach, and is not empty/, 'recopy' ],
	[ 'w_detach', $parts, 'ALTER TABLE %s DETACH PARTITION %s_2', qr/public\.w_detach_2 was detached from public\.w_detach/, 'recopy' ],
	[ 'w_drop', $parts, 'DROP TABLE %s_1', qr/public\.w_drop_1 was dropped/, 'recopy' ],
	[ 'w_bound', $parts, 'BEGIN; ALTER TABLE %s DETACH PARTITION %s_2; DELETE FROM %s_2 WHERE id < 1500; ALTER TABLE %s ATTACH PARTITION %s_2 FOR VALUES FROM (1500) TO (2000); COMMIT',
		qr/public\.w_bound_2 has other partitions or children, or is one of another table/, 'recopy' ],
	# what is no reason to stop
	[ 'w_extra', $plain, 'ALTER TABLE %s ADD new1 int, ADD "New 2" int DEFAULT 7; ALTER TABLE %s DROP extra', undef, qr/has new columns.*: new1, "New 2";.*\n.*has lost columns.*: 1/s ],
	[ 'w_empty', $parts, 'CREATE TABLE %s_4 PARTITION OF %s FOR VALUES FROM (3000) TO (4000)', undef, qr/public\.w_empty_4 has come to public\.w_empty on the source, and is read too/ ],
	[ 'w_part', $parts, 'ALTER TABLE %s_1 RENAME TO w_part_9', undef, qr/public\.w_part_1 was renamed to public\.w_part_9/ ],
	[ 'w_vacuum', $plain, 'VACUUM FULL %s', undef, qr/^$/ ],
	[ 'w_stats', $plain, 'ALTER TABLE %s ALTER v SET STATISTICS 10, ALTER w SET NOT NULL', undef, qr/^$/ ]);

sub fill { my ($text, $name) = @_; return $text =~ s/%s/$name/gr; }

# a row of "hold" waits in a loader as long as this session has the lock
sql(q{CREATE FUNCTION public.held(id int) RETURNS int LANGUAGE plpgsql AS $$
	BEGIN
		IF (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) = 'migrate loader' THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
		RETURN id;
	END $$});
my $hold = $target->background_psql('postgres');
$hold->query_safe('SELECT pg_advisory_lock(1)');
foreach my $w (@watched)
{
	my ($job, $make) = @$w;
	my $partitioned = $make eq $parts;
	my $columns = $partitioned ? 'id int, v text' : 'id int, v int, w int';

	src(fill($make, $job));
	# the column "extra" is not read
	sql(qq{CREATE SCHEMA $job; CREATE TABLE $job.$job ($columns, PRIMARY KEY (id)); CREATE TABLE $job.hold (id int PRIMARY KEY);
		CREATE FOREIGN TABLE $job.f ($columns) SERVER legacy OPTIONS (schema_name 'public', table_name '$job');
		SELECT migrate_create_job('$job', server => 'legacy', options => '{"workers": 1}');
		SELECT migrate_add_table('$job', '$job.f', '$job.$job', key => '{"id": "id"}');
		SELECT migrate_add_table('$job', 'public.hold', '$job.hold', columns => '{"id": "public.held(id)"}')});
	start($job);
}
foreach my $w (@watched)
{
	ok(wait_for($target, qq{SELECT s.state = 'copied' FROM migrate.source_table s JOIN migrate.job j USING (job_id) WHERE job = '$w->[0]' AND remote_table = '$w->[0]'}),
		"$w->[0]: is copied");
}
sleep(2);
src($_) foreach map { my $w = $_; map { fill($_, $w->[0]) } ($w->[2] =~ /^BEGIN/ ? $w->[2] : split(/;\s*/, $w->[2])) } @watched;
foreach my $w (@watched)
{
	my ($job, undef, undef, $says, $then) = @$w;

	is_paused($job, $says) if defined $says;
	next if defined $says;
	if ($then ne qr/^$/)
	{
		ok(wait_for($target, qq{SELECT count(*) > 0 FROM migrate.event NATURAL JOIN migrate.job WHERE job = '$job' AND kind = 'drift'}, timeout => 60), "$job: is told");
	}
	is(sql("SELECT wanted FROM migrate.job WHERE job = '$job'"), 'run', "$job: and goes on");
}

# validation does not compare what is not comparable
{
	my ($ret, $out, $err) = $target->psql('postgres', q{SELECT * FROM migrate_validate('w_detach', 'w_detach.w_detach')});
	like($err, qr/source tables of job "w_detach" have changed.*public\.w_detach_2 was detached.*migrate_recopy of w_detach\.w_detach/s, 'w_detach: validation is refused');
	is(sql(q{SELECT matched FROM migrate_validate('w_extra', 'w_extra.w_extra')}), 't', 'w_extra: validation runs');
}

$hold->query_safe('SELECT pg_advisory_unlock(1)');
foreach my $w (@watched)
{
	my ($job, $make, $change, $says, $then) = @$w;
	my $columns = $make eq $parts ? 'id, v' : 'id, v, w';

	if (!defined $says)
	{
		wait_job($target, $job, 'copied');
		like(events($job, 'info'), $then, "$job: was told once");
		is(sql("SELECT count(*) FROM migrate.event NATURAL JOIN migrate.job WHERE job = '$job' AND level = 'alert'"), '0', "$job: without an alert");
	}
	else
	{
		sql(qq{SELECT migrate_wait('$job', 'paused', '60 s')});
		if ($then eq 'recopy') { sql(qq{SELECT migrate_recopy('$job', '$job.$job')}); }
		elsif ($then eq 'undo') { src(fill($change, $job)); }
		else { src($then); }
		sql(qq{SELECT migrate_resume('$job')});
		wait_job($target, $job, 'copied');
	}
	same_rows($source, "SELECT $columns FROM $job", $target, "SELECT $columns FROM $job.$job", "$job: equal");
	is(sql("SELECT bool_and(matched) FROM migrate_validate('$job')"), 't', "$job: and matches");
}
$hold->quit;

# a partition that comes while the last chunks are written is not missed
{
	src(fill($parts, 'w_late'));
	sql(q{CREATE SCHEMA w_late; CREATE TABLE w_late.w_late (id int PRIMARY KEY, v text);
		CREATE FOREIGN TABLE w_late.f (id int, v text) SERVER legacy OPTIONS (schema_name 'public', table_name 'w_late');
		SELECT migrate_create_job('w_late', server => 'legacy', options => '{"workers": 1}');
		SELECT migrate_add_table('w_late', 'w_late.f', 'w_late.w_late', key => '{"id": "id"}')});
	sql(q{ALTER SYSTEM SET migrate.fault = 'before-commit:wait'});
	sql('SELECT pg_reload_conf()');
	start('w_late');
	ok(wait_for($target, q{SELECT count(*) = 1 FROM migrate.chunk c JOIN migrate.job j USING (job_id) WHERE job = 'w_late' AND c.state = 'running'}), 'w_late: a chunk is about to commit');
	# the watch has just looked, and will not again so soon
	sleep(3);
	src('ALTER TABLE w_late ATTACH PARTITION w_late_3 FOR VALUES FROM (2000) TO (3000)');
	sql(q{ALTER SYSTEM RESET migrate.fault});
	sql('SELECT pg_reload_conf()');
	is_paused('w_late', qr/public\.w_late_3 has come to public\.w_late/);
	is(job_state($target, 'w_late'), 'copying', 'w_late: before the copy is over');
	sql(q{SELECT migrate_wait('w_late', 'paused', '60 s'); SELECT migrate_recopy('w_late', 'w_late.w_late'); SELECT migrate_resume('w_late')});
	wait_job($target, 'w_late', 'copied');
	same_rows($source, 'SELECT id, v FROM w_late', $target, 'SELECT id, v FROM w_late.w_late', 'w_late: equal');
}

# an empty partition that comes during the copy is read, with what it has then
{
	src(q{CREATE TABLE c_new (id int PRIMARY KEY, a int, b int, pad text, c varchar(20)) PARTITION BY RANGE (id);
		CREATE TABLE c_new_1 PARTITION OF c_new FOR VALUES FROM (0) TO (100000);
		INSERT INTO c_new SELECT g, g, -g, repeat('x', 100), 'c' || g FROM generate_series(1, 20000) g});
	sql(q{CREATE SCHEMA c_new; CREATE TABLE c_new.c_new (id int PRIMARY KEY, a int, b int, pad text, c varchar(20))});
	sql(qq{SELECT migrate_create_job('c_new', server => 'legacy', options => '{$slow, "rows_per_second": 1000}');
		SELECT migrate_add_table('c_new', 'public.c_new', 'c_new.c_new', key => '{"id": "id"}')});
	start('c_new');
	ok(wait_for($target, q{SELECT count(*) >= 2 FROM migrate.chunks WHERE job = 'c_new' AND state = 'done'}), 'c_new: in the middle of the copy');
	src('CREATE TABLE c_new_2 PARTITION OF c_new FOR VALUES FROM (100000) TO (200000)');
	ok(wait_for($target, q{SELECT count(*) = 2 FROM migrate.leaf NATURAL JOIN migrate.job WHERE job = 'c_new'}, timeout => 60), 'c_new: the new partition is planned');
	src(q{INSERT INTO c_new SELECT g, g, -g, 'x', 'c' || g FROM generate_series(100001, 100500) g});
	sql(q{SELECT migrate_alter_job('c_new', '{"rows_per_second": 0}')});
	wait_job($target, 'c_new', 'copied');
	same_rows($source, 'SELECT * FROM c_new', $target, 'SELECT * FROM c_new.c_new', 'c_new: equal, with its rows');
}

done_testing();
