# Copyright (c) 2026, the migrate authors; PostgreSQL License

# The rules of the protocol that a copy obeys, each by the hole that it closes.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use IPC::Run ();
use Test::More;

my $source = new_source('source', conf => "autovacuum = off\n");
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

my $slow = '"workers": 1, "chunk_blocks": 16, "chunk_time": "100ms", "batch_rows": 200';

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

# Start a job over one table, held back so that it stands in the middle, and
# return when at least two chunks are done.
sub start_slowly
{
	my ($job, $table, $options) = @_;
	sql(qq{
		SELECT migrate_create_job('$job', server => 'legacy', options => '{$slow, "rows_per_second": 2000 $options}');
		SELECT migrate_add_table('$job', 'public.$table', '$job.$table');
		SELECT migrate_start('$job');
	});
	ok(wait_for($target, qq{SELECT count(*) >= 2 FROM migrate.chunks WHERE job = '$job' AND state = 'done'}),
		"$job: two chunks are done");
	is(job_state($target, $job), 'copying', "$job: and it is in the middle of the copy");
	return;
}

sub finish
{
	my ($job, $table) = @_;
	sql(qq{SELECT migrate_alter_job('$job', '{"rows_per_second": 0}')});
	wait_job($target, $job, 'copied');
	same_rows($source, "SELECT * FROM $table", $target, "SELECT * FROM $job.$table", "$job: equal");
	return;
}

# --- P1: the table under a chunk
foreach my $how (
	[ 'p1_cluster', 'CLUSTER %s USING %1$s_v' ],
	[ 'p1_full',    'VACUUM FULL %s' ],
	[ 'p1_rewrite', 'ALTER TABLE %s ADD COLUMN z float DEFAULT random(); ALTER TABLE %1$s DROP COLUMN z' ],
	[ 'p1_truncate', q{BEGIN; CREATE TEMP TABLE k AS SELECT * FROM %s; TRUNCATE %1$s; INSERT INTO %1$s SELECT * FROM k ORDER BY v; COMMIT} ])
{
	my ($job, $statement) = @$how;
	src(qq{CREATE TABLE $job (id int PRIMARY KEY, v int, pad text);
		CREATE INDEX ${job}_v ON $job (v);
		INSERT INTO $job SELECT g, (g::bigint * 7919) % 20011, repeat('x', 200) FROM generate_series(1, 20000) g});
	start_slowly($job, $job, '');
	my $s = sprintf($statement, $job) =~ s/%s/$job/gr;
	src($_) for ($s);
	finish($job, $job);
	cmp_ok(sql("SELECT max(plan_no) FROM migrate.source_table s JOIN migrate.job USING (job_id) WHERE job = '$job'"),
		'>', 0, "P1: $job was planned anew");
}

# --- P4, P5: nothing that the source could still lose
{
	my $lazy = new_source('lazy', durable => 1, conf => "synchronous_commit = off\nautovacuum = off\nbgwriter_lru_maxpages = 0\n");
	$lazy->safe_psql('postgres', 'CREATE TABLE lost (id int PRIMARY KEY, v text); CHECKPOINT');
	connect_source($target, $lazy, server => 'lazy');
	sql(q{SELECT migrate_create_job('p4', server => 'lazy', options => '{"workers": 1, "retry_max_delay": "300ms"}');
		SELECT migrate_add_table('p4', 'public.lost', 'p4.lost')});

	# stopped when it has nothing to do, so that it holds no lock meanwhile
	my $walwriter = $lazy->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
	ok(wait_for($lazy, 'SELECT pg_current_wal_flush_lsn() = pg_current_wal_insert_lsn()'), 'P4: the source is idle');
	kill 'STOP', $walwriter or die "walwriter: $!";
	$lazy->safe_psql('postgres', q{SET synchronous_commit = off; INSERT INTO lost SELECT g, 'v' FROM generate_series(1, 500) g});
	is($lazy->safe_psql('postgres', 'SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()'), 't',
		'P4: committed on the source, and not durable there');
	my $insert = $lazy->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
	sql(q{SELECT migrate_start('p4')});
	ok(wait_for($lazy, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE 'migrate/p4/%' AND query LIKE '%flush_lsn%'}),
		'P4: the loader has read and asks whether it may commit');
	is(sql('SELECT count(*) FROM p4.lost'), '0', 'P4: and has committed nothing');
	# the whole server goes down with it, and what WAL was only in memory
	kill 'KILL', $walwriter;
	ok(wait_for($lazy, 'SELECT count(*) = 0 FROM lost'), 'P4: the crash made the rows unhappen');
	wait_job($target, 'p4', 'copied');
	is(sql('SELECT count(*) FROM p4.lost'), '0', 'P4: none of them is in the target');

	# the position kept with a chunk is the insert position
	sql(q{SELECT migrate_create_job('p5', server => 'lazy', options => '{"workers": 1}');
		SELECT migrate_add_table('p5', 'public.lost', 'p5.lost')});
	$walwriter = $lazy->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
	ok(wait_for($lazy, 'SELECT pg_current_wal_flush_lsn() = pg_current_wal_insert_lsn()'), 'P5: the source is idle');
	kill 'STOP', $walwriter or die "walwriter: $!";
	$lazy->safe_psql('postgres', q{SET synchronous_commit = off; INSERT INTO lost SELECT g, 'v' FROM generate_series(1, 600) g});
	$insert = $lazy->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
	sql(q{SELECT migrate_start('p5')});
	ok(wait_for($lazy, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE 'migrate/p5/%' AND query LIKE '%flush_lsn%'}),
		'P5: the loader waits for the flush');
	kill 'CONT', $walwriter;
	wait_job($target, 'p5', 'copied');
	is(sql("SELECT bool_and(source_lsn >= '$insert') FROM migrate.chunk JOIN migrate.job USING (job_id) WHERE job = 'p5'"), 't',
		'P5: the chunk keeps the insert position after its snapshot, not the flush position');
	same_rows($lazy, 'SELECT * FROM lost', $target, 'SELECT * FROM p5.lost', 'P5: equal');
	$lazy->stop;
}

# --- P6: row security is an error, never missing rows; role time-outs are ours
{
	src(q{CREATE ROLE app LOGIN; CREATE ROLE boss;
		CREATE TABLE hidden (id int PRIMARY KEY, tenant text);
		INSERT INTO hidden SELECT g, CASE g % 2 WHEN 0 THEN 'app' ELSE 'other' END FROM generate_series(1, 100) g;
		ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
		CREATE POLICY mine ON hidden USING (tenant = current_user);
		GRANT SELECT ON hidden TO app;
		CREATE TABLE slow (id int PRIMARY KEY, pad text);
		INSERT INTO slow SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g;
		GRANT SELECT ON slow TO app;
		ALTER ROLE app SET statement_timeout = '20ms';
		ALTER ROLE app SET row_security = on;
		ALTER ROLE app SET extra_float_digits = -3});
	connect_source($target, $source, server => 'as_app', user => 'app');
	sql(q{SELECT migrate_create_job('p6', server => 'as_app', options => '{"retry_time": "1s"}');
		SELECT migrate_add_table('p6', 'public.hidden', 'p6.hidden')});
	like(sql(q{SELECT string_agg(check_name || ' ' || object, ',') FROM migrate_preflight('p6') WHERE status = 'fail'}),
		qr/hidden/, 'P6: preflight names the table whose rows would be hidden');
	my ($ret, $out, $err) = $target->psql('postgres', q{SELECT migrate_start('p6')});
	isnt($ret, 0, 'P6: start is refused');
	sql(q{SELECT migrate_accept('p6', check_name, object, 'test') FROM migrate_preflight('p6') WHERE status = 'fail'; SELECT migrate_start('p6')});
	wait_job($target, 'p6', 'failed');
	like(sql(q{SELECT last_sqlstate || last_error FROM migrate.job WHERE job = 'p6'}), qr/^42501.*row-level security/,
		'P6: and if it is started all the same, it fails and says why');
	is(sql('SELECT count(*) FROM p6.hidden'), '0', 'P6: without half of the rows');

	sql(q{SELECT migrate_create_job('p6b', server => 'as_app', options => '{"chunking": "whole", "rows_per_second": 40000}');
		SELECT migrate_add_table('p6b', 'public.slow', 'p6.slow'); SELECT migrate_start('p6b')});
	wait_job($target, 'p6b', 'copied');
	same_rows($source, 'SELECT * FROM slow', $target, 'SELECT * FROM p6.slow', 'P6: a time-out of the role does not reach us');
}

# --- P7: one conversion
{
	src(q{CREATE TYPE mood AS ENUM ('sad', 'ok');
		CREATE TABLE conv (id int PRIMARY KEY, c char(10), m mood, r regclass, n numeric, i int, f float8);
		INSERT INTO conv VALUES (1, 'abc', 'ok', 'pg_class', 1.50, 7, 0.1), (2, '', 'sad', NULL, 'NaN', -1, 1e300)});
	sql(q{CREATE FOREIGN TABLE conv (id int, c text, m text, r text, n text, i bigint, f float8)
			SERVER legacy OPTIONS (schema_name 'public', table_name 'conv');
		CREATE SCHEMA p7;
		CREATE TABLE p7.conv (id int, c text, m text, r text, n text, i bigint, f float8);
		SELECT migrate_create_job('p7', server => 'legacy');
		SELECT migrate_add_table('p7', 'public.conv', 'p7.conv', key => '{"id": "id"}');
		SELECT migrate_accept('p7', check_name, object, 'no index in this test') FROM migrate_preflight('p7') WHERE status = 'fail';
		SELECT migrate_start('p7')});
	wait_job($target, 'p7', 'copied');
	is(sql(q{SELECT id, '<' || c || '>', m, r, n, i, f FROM p7.conv ORDER BY id}),
		"1|<abc       >|ok|pg_class|1.50|7|0.1\n2|<          >|sad||NaN|-1|1e+300",
		'P7: a type declared otherwise goes through the text form');
	is(sql(q{SELECT "binary" FROM migrate.source_table WHERE foreign_table = 'conv'::regclass}), 'f', 'P7: not by binary COPY');
}

# --- P7: nor does it matter in whose session a mapping runs
{
	src(q{CREATE TABLE zone (id int PRIMARY KEY, at timestamptz); INSERT INTO zone SELECT g, '2026-01-01 00:00Z'::timestamptz + g * interval '7 h' FROM generate_series(1, 100) g});
	sql(q{SET timezone = 'Asia/Tokyo'; SET datestyle = 'SQL, DMY';
		CREATE TABLE p7.zone (id int PRIMARY KEY, day date, shown text);
		SELECT migrate_create_job('zone', server => 'legacy');
		SELECT migrate_add_table('zone', 'public.zone', 'p7.zone', columns => '{"day": "at::date", "shown": "at::text"}');
		SELECT migrate_start('zone')});
	wait_job($target, 'zone', 'copied');
	is(sql(q{SELECT day, shown FROM p7.zone WHERE id = 3}), '2026-01-02|02/01/2026 06:00:00 JST', 'P7: a mapping runs under the settings that it was defined in');
	is(sql(q{SET timezone = 'America/New_York'; SELECT matched FROM migrate_validate('zone')}), 't', 'P7: also when somebody elsewhere validates');
}

# --- P10: a row that moved between two chunks is there twice for a moment
{
	src(q{CREATE TABLE p10 (id int PRIMARY KEY, v int, pad text) WITH (fillfactor = 100);
		INSERT INTO p10 SELECT g, 0, repeat('x', 200) FROM generate_series(1, 20000) g});
	start_slowly('p10', 'p10', '');
	# rows of the first blocks, which are copied, move to the end
	src('UPDATE p10 SET v = id WHERE id <= 100');
	finish('p10', 'p10');
	is(sql(q{SELECT doubles FROM migrate.mapping WHERE target = 'p10.p10'}), '100', 'P10: a hundred second copies were dropped and counted');
	is(sql(q{SELECT count(*) FROM migrate.dead_letters WHERE job = 'p10'}), '0', 'P10: and none is a dead letter');

	# two source rows that the mapping gives one key are no doubles
	src(q{CREATE TABLE p10b (id int PRIMARY KEY, v int); INSERT INTO p10b SELECT g, g FROM generate_series(1, 1000) g});
	sql(q{SELECT migrate_create_job('p10b', server => 'legacy');
		CREATE TABLE p10.collide (id int, v int);
		SELECT migrate_import('p10b', 'public', 'p10b', include => '{p10b}');
		SELECT migrate_add_table('p10b', 'public.p10b', 'p10.collide', columns => '{"id": "id - (id % 500 = 1)::int"}');
		SELECT migrate_accept('p10b', check_name, object, 'no index in this test') FROM migrate_preflight('p10b') WHERE status = 'fail';
		BEGIN;
		SELECT migrate_start('p10b');
		-- in the same transaction: after the planning, before any worker looks
		INSERT INTO migrate.post_step (job_id, mapping_id, target_oid, relation, kind, phase, object, ddl)
			SELECT job_id, mapping_id, target_oid, target, 'key', 10, 'collide_pkey', 'CREATE UNIQUE INDEX collide_pkey ON p10.collide (id)'
			FROM migrate.mapping WHERE target = 'p10.collide';
		COMMIT});
	wait_job($target, 'p10b', 'copied');
	# 1 -> 0 is free; 501 -> 500 collides with 500
	is(sql('SELECT count(*), count(DISTINCT id) FROM p10.collide'), '999|999', 'P10: one of the two is in the target');
	is(sql(q{SELECT count(*), min(sqlstate), min(source_row->>'id') IN ('500', '501') FROM migrate.dead_letters WHERE job = 'p10b' AND state = 'open'}),
		'1|23505|t', 'P10: and the other is a dead letter');
}

# --- P11: a row is found by its key, also where the target's key is wider
{
	src(q{CREATE TABLE p11 (id int PRIMARY KEY, region text, v int);
		INSERT INTO p11 SELECT g, CASE WHEN g % 2 = 0 THEN 'a' ELSE 'b' END, g FROM generate_series(1, 500) g});
	sql(q{CREATE SCHEMA p11;
		CREATE TABLE p11.p11 (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
		CREATE TABLE p11.a PARTITION OF p11.p11 FOR VALUES IN ('a');
		CREATE TABLE p11.b PARTITION OF p11.p11 FOR VALUES IN ('b');
		-- rows of an earlier try, half of them in the other partition
		INSERT INTO p11.p11 SELECT g, CASE WHEN g % 4 = 0 THEN 'a' ELSE 'b' END, -g FROM generate_series(1, 100) g;
		SELECT migrate_create_job('p11', server => 'legacy');
		SELECT migrate_add_table('p11', 'public.p11', 'p11.p11', key => '{"id": "id"}');
		SELECT migrate_accept('p11', check_name, object, 'test') FROM migrate_preflight('p11') WHERE status = 'fail';
		SELECT migrate_start('p11')});
	wait_job($target, 'p11', 'copied');
	same_rows($source, 'SELECT * FROM p11', $target, 'SELECT * FROM p11.p11', 'P11: one row a key, in its partition');
}

# --- P13: user triggers do not fire on replicated rows, mapping code is ordinary
{
	src(q{CREATE TABLE p13 (id int PRIMARY KEY, v text); INSERT INTO p13 SELECT g, 'v' FROM generate_series(1, 100) g});
	sql(q{CREATE SCHEMA p13; CREATE TABLE p13.fired (id int);
		CREATE TABLE p13.p13 (id int PRIMARY KEY, v text);
		CREATE FUNCTION p13.tell() RETURNS trigger LANGUAGE plpgsql AS
			$$BEGIN INSERT INTO p13.fired VALUES (NEW.id); RETURN NEW; END$$;
		CREATE TRIGGER tell BEFORE INSERT OR UPDATE ON p13.p13 FOR EACH ROW EXECUTE FUNCTION p13.tell();
		SELECT migrate_create_job('p13', server => 'legacy');
		SELECT migrate_add_table('p13', 'public.p13', 'p13.p13', columns => $${"v": "current_setting('session_replication_role')"}$$);
		SELECT migrate_start('p13')});
	wait_job($target, 'p13', 'copied');
	is(sql('SELECT count(*) FROM p13.fired'), '0', 'P13: no trigger fired');
	is(sql('SELECT count(*), min(v), max(v) FROM p13.p13'), '100|origin|origin', 'P13: mapping code ran as origin');

	sql(q{CREATE ROLE mover LOGIN; SELECT migrate_grant('mover'); GRANT CREATE ON DATABASE postgres TO mover;
		GRANT USAGE ON SCHEMA p13 TO mover;
		CREATE TABLE p13.theirs (id int PRIMARY KEY, v text);
		CREATE TRIGGER tell BEFORE INSERT OR UPDATE ON p13.theirs FOR EACH ROW EXECUTE FUNCTION p13.tell();
		GRANT ALL ON p13.theirs, p13.fired TO mover});
	connect_source($target, $source, server => 'for_mover', for => 'mover');
	sql(q{SET SESSION AUTHORIZATION mover;
		SELECT migrate_create_job('p13b', server => 'for_mover');
		SELECT migrate_add_table('p13b', 'public.p13', 'p13.theirs');
		SELECT migrate_start('p13b')});
	wait_job($target, 'p13b', 'copied');
	is(sql('SELECT count(*) FROM p13.fired'), '100', q{P13: the triggers of somebody else's table do fire});
	same_rows($source, 'SELECT * FROM p13', $target, 'SELECT * FROM p13.theirs', 'P13: and the rows are there');
}

# --- P15: what a mapping reads besides its row
{
	src(q{CREATE TABLE p15 (id int PRIMARY KEY, code int); INSERT INTO p15 VALUES (1, 1), (2, 2)});
	sql(q{CREATE SCHEMA p15; CREATE TABLE p15.codes (code int PRIMARY KEY, name text); INSERT INTO p15.codes VALUES (1, 'one'), (2, 'two');
		CREATE TABLE p15.p15 (id int PRIMARY KEY, name text);
		SELECT migrate_create_job('p15', server => 'legacy');
		SELECT migrate_add_table('p15', 'public.p15', 'p15.p15', columns => '{"name": "(SELECT name FROM p15.codes c WHERE c.code = source.code)"}')});
	like(sql(q{SELECT string_agg(status || detail, ',') FROM migrate_preflight('p15') WHERE status <> 'ok'}), qr/p15\.codes/,
		'P15: preflight names the table that the mapping reads');
	sql(q{SELECT migrate_start('p15')});
	wait_job($target, 'p15', 'copied');
	is(sql('SELECT string_agg(name, $$,$$ ORDER BY id) FROM p15.p15'), 'one,two', 'P15: the mapping ran');
}

# --- P17: what came before a bad row stays, two different errors in one batch
{
	src(q{CREATE TABLE p17 (id int PRIMARY KEY, v text);
		INSERT INTO p17 SELECT g, CASE g WHEN 77 THEN 'x' WHEN 78 THEN '0' WHEN 4999 THEN NULL ELSE g::text END FROM generate_series(1, 5000) g});
	sql(q{CREATE SCHEMA p17; CREATE TABLE p17.p17 (id int PRIMARY KEY, v int NOT NULL);
		SELECT migrate_create_job('p17', server => 'legacy', options => '{"batch_rows": 5000}');
		SELECT migrate_add_table('p17', 'public.p17', 'p17.p17', columns => '{"v": "1000000 / v::int"}');
		SELECT migrate_start('p17')});
	wait_job($target, 'p17', 'copied');
	is(sql(q{SELECT string_agg(format('%s %s %s', key->>'id', sqlstate, stage), ', ' ORDER BY (key->>'id')::int) FROM migrate.dead_letters WHERE job = 'p17'}),
		'77 22P02 map, 78 22012 map, 4999 23502 write', 'P17: three rows, three errors, three dead letters');
	same_rows($source, q{SELECT id, 1000000 / v::int FROM p17 WHERE id NOT IN (77, 78, 4999)}, $target, 'SELECT * FROM p17.p17', 'P17: all others are there');
}

# --- P22: a worker is one
{
	src(q{CREATE TABLE p22 (id int PRIMARY KEY); INSERT INTO p22 SELECT generate_series(1, 8000)});
	sql(q{SELECT migrate_create_job('p22', server => 'legacy', options => '{"workers": 1, "rows_per_second": 500, "batch_rows": 100}');
		SELECT migrate_add_table('p22', 'public.p22', 'p22.p22'); UPDATE migrate.job SET wanted = 'run' WHERE job = 'p22'});
	# two sessions at once, neither of which sees the other's worker: both
	# workers wait for their transaction, then race
	my @twins = map {
		my %t = (in => "SET client_min_messages = error; BEGIN; SELECT txid_current() > 0; SELECT 'launched ' || migrate._launch(job_id) FROM migrate.job WHERE job = 'p22';\n", out => '', err => '');
		$t{h} = IPC::Run::start([ 'psql', '-XAtq', '-d', $target->connstr('postgres') ], '<', \$t{in}, '>', \$t{out}, '2>', \$t{err});
		IPC::Run::pump($t{h}) until $t{out} =~ /launched/ or $t{err} ne '';
		\%t } 1 .. 2;
	is($_->{out}, "t\nlaunched true\n", 'P22: a worker is started') for @twins;
	foreach my $t (@twins) { $t->{in} .= "COMMIT;\n\\q\n"; IPC::Run::finish($t->{h}); }
	ok(wait_for($target, q{SELECT count(*) = 1 AND (SELECT state FROM migrate.job WHERE job = 'p22') = 'copying'
			FROM pg_stat_activity WHERE backend_type = 'migrate job'}, timeout => 30), 'P22: of two, one stays');
	sql(q{SELECT migrate_resume('p22')}) for 1 .. 10;
	ok(wait_for($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'migrate job'}), 'P22: one job worker, however often asked');
	ok(wait_for($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'migrate loader'}), 'P22: and one loader');
	kill9_backend($target, 'loader');
	ok(wait_for($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'migrate loader'}), 'P22: one again after a crash-restart');
	is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'migrate job'}), '1', 'P22: with one job worker');
	sql(q{SELECT migrate_alter_job('p22', '{"rows_per_second": 0}')});
	wait_job($target, 'p22', 'copied');
	same_rows($source, 'SELECT * FROM p22', $target, 'SELECT * FROM p22.p22', 'P22: equal');
}

done_testing();
