# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Changes of the source in the targets, one kind after the other, while the job
# streams: after each, everything that the source has committed is here.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source', logical => 1);
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

# All that is committed on the source by now is applied.
sub applied
{
	my ($job, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $lsn = src('SELECT pg_current_wal_insert_lsn()');

	# so that the stream has something behind it
	src('SELECT txid_current()');
	my ($state, $out) = ('', '');
	my $ok = wait_for(sub {
		$state = $target->psql('postgres', "SELECT CASE WHEN j.state = 'failed' THEN 'failed' WHEN a.applied_lsn >= '$lsn' THEN 't' END"
			. " FROM migrate.apply_position a JOIN migrate.job j USING (job_id) WHERE j.job = '$job'", stdout => \$out) == 0 ? $out : '';
		$state eq 't' || $state eq 'failed' }, timeout => 60) && $state eq 't';
	ok($ok, $name // "$job: all is applied") or diag(sql(q{
		SELECT job, state, wanted, pause_reason, last_sqlstate, last_error FROM migrate.job;
		SELECT * FROM migrate.apply_position; SELECT * FROM migrate.stream_position;
		SELECT at, level, kind, message FROM migrate.event ORDER BY event_id DESC LIMIT 10}));
	return $ok;
}

sub equal
{
	my ($job, $table, $name, $there, $here) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$there //= "SELECT * FROM $table";
	$here //= "SELECT * FROM $job.$table";
	return same_rows($source, $there, $target, $here, "$table: $name");
}

sub start
{
	my ($job, $options, @tables) = @_;

	sql("SELECT migrate_create_job('$job', server => 'legacy', options => '{\"capture\": \"logical\", \"workers\": 1, \"retry_max_delay\": \"200ms\" $options}')");
	foreach my $t (@tables)
	{
		my ($table, $more) = ref $t ? @$t : ($t, '');
		sql("SELECT migrate_add_table('$job', 'public.$table', '$job.$table' $more)");
	}
	sql("SELECT migrate_start('$job')");
	return wait_job($target, $job, 'streaming');
}

sub letters
{
	my ($job, $state) = @_;
	return sql("SELECT count(*) FROM migrate.dead_letters WHERE job = '$job' AND state = '$state'");
}

# ---------------------------------------------------------------- the source
src(q{
	CREATE TABLE plain (id int PRIMARY KEY, v text, n numeric(12,2), at timestamptz DEFAULT now());
	INSERT INTO plain (id, v, n) SELECT g, 'row ' || g, g / 7.0 FROM generate_series(1, 2000) g;
	CREATE TABLE "Odd ""Name" ("The Key" text, "second, key" int, "v'al" text, PRIMARY KEY ("The Key", "second, key"));
	INSERT INTO "Odd ""Name" SELECT chr(64 + g % 20) || ' "x" ', g, 'v' FROM generate_series(1, 100) g;
	CREATE TABLE uuids (u uuid PRIMARY KEY, v int);
	INSERT INTO uuids SELECT md5(g::text)::uuid, g FROM generate_series(1, 500) g;
	CREATE TABLE bits (a bigint, b text, c date, v text, PRIMARY KEY (a, b, c));
	INSERT INTO bits SELECT g, 'b' || g, '2020-01-01'::date + g, 'v' FROM generate_series(-50, 50) g;
	CREATE TABLE big (id int PRIMARY KEY, small int, large text);
	ALTER TABLE big ALTER large SET STORAGE EXTERNAL;
	INSERT INTO big SELECT g, g, repeat('large ' || g || ' ', 1000) FROM generate_series(1, 50) g;
	CREATE TABLE nokey (a int, b text, c numeric);
	ALTER TABLE nokey REPLICA IDENTITY FULL;
	INSERT INTO nokey SELECT g % 10, 'b', NULLIF(g % 3, 0) FROM generate_series(1, 300) g;
	CREATE TABLE swaps (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
	ALTER TABLE swaps REPLICA IDENTITY FULL;
	INSERT INTO swaps SELECT g, 'row ' || g FROM generate_series(1, 10) g;
	CREATE TABLE parent (id int PRIMARY KEY);
	CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
	INSERT INTO parent SELECT generate_series(1, 100);
	INSERT INTO child SELECT g, g % 100 + 1 FROM generate_series(1, 300) g;
	CREATE TABLE part (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
	CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100);
	CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (100) TO (200);
	INSERT INTO part SELECT g, g % 200, 'v' FROM generate_series(1, 1000) g;
	CREATE TABLE serials (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, w text GENERATED ALWAYS AS (v || '!') STORED);
	INSERT INTO serials (v) SELECT 'v' FROM generate_series(1, 20);
});

sql(q{SELECT migrate_create_job('j', server => 'legacy', options => '{"capture": "logical", "workers": 2, "retry_max_delay": "200ms"}');
	SELECT migrate_add_schema('j', 'public', 'j');
	SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming') or do { done_testing(); exit; };

my @tables = ('plain', '"Odd ""Name"', 'uuids', 'bits', 'big', 'nokey', 'swaps', 'parent', 'child', 'part', 'serials');
sub all_equal
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# nothing that follows would tell more
	applied('j', "$name: all is applied") or do { done_testing(); exit 1; };
	equal('j', $_, $name) for @tables;
	return;
}
all_equal('after the copy');

# ---------------------------------------------------------------- every kind
src(q{
	INSERT INTO plain (id, v) VALUES (3001, 'new'), (3002, NULL);
	UPDATE plain SET v = 'updated', n = n + 1 WHERE id % 3 = 0;
	DELETE FROM plain WHERE id % 10 = 0;
	UPDATE "Odd ""Name" SET "v'al" = 'it''s "quoted" \\ tab	' WHERE "second, key" % 2 = 0;
	DELETE FROM "Odd ""Name" WHERE "second, key" % 5 = 0;
	INSERT INTO "Odd ""Name" VALUES ('', 0, ''), ('new', -1, NULL);
	UPDATE uuids SET v = v + 1 WHERE v % 2 = 0;
	DELETE FROM uuids WHERE v % 7 = 0;
	UPDATE bits SET v = 'w' WHERE a < 0;
	DELETE FROM bits WHERE a > 40;
	INSERT INTO serials (v) VALUES ('a'), ('b');
	UPDATE serials SET v = 'c' WHERE id = 3;
});
all_equal('insert, update, delete');

# ------------------------------------------------- keys that change and return
src(q{
	BEGIN;
	UPDATE plain SET id = id + 10000 WHERE id BETWEEN 1 AND 5;
	INSERT INTO plain (id, v) VALUES (1, 'again'), (2, 'again');
	UPDATE plain SET id = 10001 + 20000, v = 'moved twice' WHERE id = 10001;
	DELETE FROM plain WHERE id = 2;
	INSERT INTO plain (id, v) VALUES (2, 'third');
	DELETE FROM plain WHERE id = 10003;
	INSERT INTO plain (id, v) VALUES (77777, 'comes and goes');
	DELETE FROM plain WHERE id = 77777;
	COMMIT;
	UPDATE bits SET a = a + 1000, b = 'other' WHERE a BETWEEN 1 AND 10;
	-- keys move up by one, the highest first
	DO $$ BEGIN FOR i IN REVERSE 30 .. 20 LOOP UPDATE plain SET id = 100000 + i + 1 WHERE id = 100000 + i;
		INSERT INTO plain (id, v) VALUES (100000 + i, 'chain'); END LOOP; END $$;
	UPDATE "Odd ""Name" SET "The Key" = lower("The Key");
});
all_equal('keys that change, and keys used again');

# ------------------------------------------------------- savepoints, rollbacks
src(q{
	BEGIN;
	INSERT INTO plain (id, v) VALUES (4001, 'kept');
	SAVEPOINT a;
	INSERT INTO plain (id, v) VALUES (4002, 'not kept');
	UPDATE plain SET v = 'not kept' WHERE id = 100;
	ROLLBACK TO a;
	SAVEPOINT b;
	INSERT INTO plain (id, v) VALUES (4003, 'kept');
	RELEASE b;
	COMMIT;
	BEGIN; DELETE FROM plain; ROLLBACK;
});
all_equal('savepoints and rollbacks');

# ------------------------------------------------------------- unchanged TOAST
src(q{
	UPDATE big SET small = small + 1 WHERE id <= 10;
	BEGIN;
	UPDATE big SET large = repeat('other ', 2000) WHERE id = 11;
	UPDATE big SET small = -11 WHERE id = 11;
	COMMIT;
	BEGIN;
	UPDATE big SET large = repeat('moved ', 2000) WHERE id = 12;
	UPDATE big SET id = 112 WHERE id = 12;
	UPDATE big SET small = -12 WHERE id = 112;
	COMMIT;
	UPDATE big SET id = 113 WHERE id = 13;
	UPDATE big SET small = NULL, id = 114 WHERE id = 14;
	BEGIN; DELETE FROM big WHERE id = 15; UPDATE big SET id = 15 WHERE id = 16; COMMIT;
});
all_equal('unchanged TOAST (P12)');

# ---------------------------------------------------------------------- no key
src(q{
	INSERT INTO nokey VALUES (1, 'b', NULL), (1, 'b', NULL), (100, NULL, NULL);
	DELETE FROM nokey WHERE ctid IN (SELECT ctid FROM nokey WHERE a = 3 LIMIT 2);
	UPDATE nokey SET c = 99 WHERE a = 4;
	BEGIN; INSERT INTO nokey VALUES (7, 'x', 1); UPDATE nokey SET b = 'y' WHERE b = 'x'; DELETE FROM nokey WHERE b = 'y'; COMMIT;
});
all_equal('without a key');

# Two rows exchange a key, which is only checked at the commit: row by row, the
# second would take the first away.  Such a key is none, and rows are told whole.
src(q{
	UPDATE swaps SET id = 3 - id WHERE id IN (1, 2);
	BEGIN; UPDATE swaps SET id = 4 WHERE id = 3; UPDATE swaps SET id = 3, v = 'four' WHERE v = 'row 4'; COMMIT;
	UPDATE swaps SET id = id + 1 WHERE id >= 5;
});
all_equal('a key that is deferrable');

# -------------------------------------------------------------------- TRUNCATE
src(q{
	BEGIN; INSERT INTO plain (id, v) VALUES (5001, 'before'); TRUNCATE plain; INSERT INTO plain (id, v) VALUES (1, 'after'), (5001, 'after'); COMMIT;
	INSERT INTO nokey VALUES (1, 'before', 0);
	TRUNCATE nokey;
	INSERT INTO nokey VALUES (1, 'after', 0);
	TRUNCATE serials RESTART IDENTITY;
	INSERT INTO serials (v) VALUES ('first again');
});
all_equal('TRUNCATE');
src(q{TRUNCATE parent CASCADE; INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1)});
all_equal('TRUNCATE ... CASCADE');
src(q{BEGIN; INSERT INTO part VALUES (9001, 5, 'before'), (9002, 105, 'before'); TRUNCATE part1; INSERT INTO part VALUES (9003, 6, 'after'); COMMIT});
all_equal('TRUNCATE of a leaf');
src(q{TRUNCATE part; INSERT INTO part SELECT g, g % 200, 'v' FROM generate_series(1, 500) g});
all_equal('TRUNCATE of a partitioned table');

# ------------------------------------------------------------------ partitions
src(q{
	UPDATE part SET at = at + 100 WHERE at < 50;
	UPDATE part SET at = 199 - at WHERE id % 3 = 0;
	DELETE FROM part WHERE id % 11 = 0;
	INSERT INTO part VALUES (8001, 1, 'x'), (8002, 150, 'y');
});
all_equal('rows that move between partitions');

# --- foreign keys: parents and children in any order
src(q{
	INSERT INTO parent SELECT generate_series(2, 50);
	BEGIN; INSERT INTO child SELECT g, g FROM generate_series(2, 50) g; DELETE FROM child WHERE id = 9; DELETE FROM parent WHERE id = 9; COMMIT;
	DELETE FROM parent WHERE id > 40;
	UPDATE child SET parent = 1 WHERE id = 10;
});
all_equal('parents and children');

# ------------------------------------------------------------ large transaction
sql(q{SELECT migrate_alter_job('j', '{"apply_rows": 500, "apply_bytes": "64kB"}')});
src(q{
	BEGIN;
	INSERT INTO plain (id, v) SELECT g, repeat('x', 100) FROM generate_series(10000, 29999) g;
	UPDATE plain SET v = 'second' WHERE id BETWEEN 10000 AND 14999;
	UPDATE plain SET id = -id WHERE id BETWEEN 15000 AND 15999;
	DELETE FROM plain WHERE id BETWEEN 20000 AND 24999;
	INSERT INTO nokey SELECT g, 'large', 0 FROM generate_series(1, 3000) g;
	DELETE FROM nokey WHERE a % 2 = 0;
	COMMIT;
});
all_equal('one transaction of many sets');
sql(q{SELECT migrate_alter_job('j', '{"apply_rows": null, "apply_bytes": null}')});

# nobody sees half of it, and a crash in the middle takes all
src(q{CREATE TABLE seen (id int PRIMARY KEY, v int); INSERT INTO seen SELECT g, 0 FROM generate_series(1, 4000) g});
start('halves', ', "apply_rows": 300', 'seen') or do { done_testing(); exit; };
sql(q{ALTER SYSTEM SET migrate.fault = 'apply-set:wait'; SELECT pg_reload_conf()});
src('UPDATE seen SET v = 1');
ok(wait_for($target, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'migrate apply' AND backend_xid IS NOT NULL}),
	'a set of a large transaction is written');
is(sql('SELECT sum(v) FROM halves.seen'), '0', 'and is not seen');
my $pid = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'migrate apply' AND backend_xid IS NOT NULL LIMIT 1});
sql(q{ALTER SYSTEM RESET migrate.fault});
kill 9, $pid;
wait_for($target, 'SELECT pg_reload_conf()');
applied('halves', 'it goes on after a kill in the middle');
equal('halves', 'seen', 'equal');

my $fault = sub { sql("ALTER SYSTEM SET migrate.fault = '$_[0]'"); sql('SELECT pg_reload_conf()') };
my $appliers = q{SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE backend_type = 'migrate apply'};

# A batch ends at commits only, also when it is full in the middle of the
# second transaction: whenever a batch is committed, what is seen is a whole
# number of transactions.
my $pids = sql($appliers);
$fault->('apply-begin:wait');
# new processes know the setting from the start
sql("SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[$pids]) pid");
ok(wait_for($target, "SELECT count(*) FILTER (WHERE pid IN ($pids)) = 0 AND count(*) FILTER (WHERE xact_start IS NOT NULL) = 2 FROM pg_stat_activity WHERE backend_type = 'migrate apply'"),
	'apply is held before a batch');
src('UPDATE seen SET v = 2 WHERE id = 1');
src('UPDATE seen SET v = 2 WHERE id > 1');
my $end = src('SELECT txid_current(); SELECT pg_current_wal_insert_lsn()') =~ s/.*\n//sr;
src('SELECT txid_current()');
ok(wait_for($target, "SELECT spooled_lsn >= '$end' FROM migrate.stream_position"), 'two transactions are in the spool');
is(sql('SELECT max(v) FROM halves.seen'), '1', 'none is applied');
$fault->('apply-committed:wait');
ok(wait_for($target, 'SELECT v = 2 FROM halves.seen WHERE id = 1'), 'a batch is committed');
is(sql('SELECT count(DISTINCT v) FROM halves.seen WHERE id > 1'), '1', 'and holds no part of a transaction');
sql('ALTER SYSTEM RESET migrate.fault');
sql('SELECT pg_reload_conf()');
applied('halves');
equal('halves', 'seen', 'equal after a batch of several transactions');

# What is left of a transaction at the beginning of the row of the spool where
# reading begins again is applied already, with what came after it: it does not
# come back.
src(q{CREATE TABLE wide (id int PRIMARY KEY, v int, pad text);
	INSERT INTO wide SELECT g, 0, repeat(g::text, 300) FROM generate_series(1001, 1400) g});
start('tail', '', 'wide') or do { done_testing(); exit; };
my $capture = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'migrate capture'};
my ($kind, $v) = ('', 0);
# on a slow machine the first may be committed here alone: then once more
for (1 .. 5)
{
	$pid = sql($capture);
	$fault->('capture-received:wait');
	# a new process knows the setting from the start
	sql("SELECT pg_terminate_backend($pid)");
	wait_for($target, "SELECT count(*) = 1 FROM ($capture AND pid <> $pid) p");
	src('UPDATE wide SET v = ' . ++$v);
	src('UPDATE wide SET v = ' . ++$v . ' WHERE id > 1390');
	# it holds one transaction, and the next comes with it
	wait_for($source, q{SELECT sent_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication WHERE state = 'streaming'});
	$fault->('apply-committed:wait');
	next if !wait_for($target, "SELECT v = $v FROM tail.wide WHERE id = 1400", timeout => 15);
	$kind = sql(q{SELECT m.kind FROM migrate.apply_position a JOIN migrate.job j USING (job_id)
		JOIN migrate.job_stream USING (job_id), migrate._spool_messages(stream_id, next_seq) m WHERE j.job = 'tail' LIMIT 1});
	last if $kind eq 'U';
}
is($kind, 'U', 'the next row of the spool begins within a transaction');
$pids = sql("ALTER SYSTEM RESET migrate.fault; SELECT pg_reload_conf(); $appliers");
$pids =~ s/^t\n//;
sql("SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[$pids]) pid");
ok(wait_for($target, "SELECT count(*) FILTER (WHERE pid IN ($pids)) = 0 AND count(*) > 1 FROM pg_stat_activity WHERE backend_type = 'migrate apply'"),
	'reading begins again');
src('UPDATE wide SET v = v + 1 WHERE id = 1001');
applied('tail');
equal('tail', 'wide', 'no part of a transaction is applied again');

# ------------------------------------------------- a new partition on the source
src(q{CREATE TABLE part3 PARTITION OF part FOR VALUES FROM (200) TO (300)});
sql(q{CREATE TABLE j.part3 PARTITION OF j.part FOR VALUES FROM (200) TO (300)});
# what is seen empty first is known to be in the stream from its first row on (P2)
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.events WHERE job = 'j' AND kind = 'drift' AND message LIKE 'public.part3 has come%'}, timeout => 60),
	'the new partition was seen empty');
src(q{INSERT INTO part VALUES (7001, 250, 'new partition'); UPDATE part SET at = 251 WHERE id = 8001});
all_equal('a partition that came later');

# ------------------------------------------------------- tables of other jobs
# (both jobs read one stream; each has its own tables only)
is(sql(q{SELECT count(DISTINCT stream_id) FROM migrate.job_stream}), '1', 'one stream for both jobs (P20)');

# ------------------------------------------------------------------ dead letters
src(q{CREATE TABLE bad (id int PRIMARY KEY, v text); INSERT INTO bad VALUES (1, '1'), (2, '2'), (3, '3')});
sql('CREATE SCHEMA d; CREATE TABLE d.bad (id int PRIMARY KEY, v int)');
start('d', '', [ 'bad', q{, columns => '{"v": "v::int"}'} ]) or do { done_testing(); exit; };
src(q{INSERT INTO bad VALUES (4, '4'), (5, 'not a number'), (6, '6'); UPDATE bad SET v = 'nor this' WHERE id = 2});
applied('d');
is(letters('d', 'open'), '2', 'two rows that cannot be mapped are dead letters');
same_rows($source, q{SELECT id, v::int FROM bad WHERE v ~ '^\d+$'}, $target, 'SELECT id, v FROM d.bad WHERE id <> 2',
	'and the others are there');
src(q{UPDATE bad SET v = '22' WHERE id = 2; DELETE FROM bad WHERE id = 5});
applied('d');
is(letters('d', 'open'), '0', 'none is open any more');
is(letters('d', 'superseded'), '2', 'later changes superseded both');
same_rows($source, q{SELECT id, v::int FROM bad}, $target, 'SELECT id, v FROM d.bad', 'equal again');

# --- too many of them
sql(q{SELECT migrate_alter_job('d', '{"max_dead_letters": 3}')});
sleep(2);
src(q{INSERT INTO bad SELECT g, 'bad' FROM generate_series(100, 150) g});
ok(wait_for($target, q{SELECT wanted = 'pause' AND shm_handle = 0 FROM migrate.job WHERE job = 'd'}, timeout => 60), 'too many dead letters: paused');
like(sql(q{SELECT pause_reason FROM migrate.job WHERE job = 'd'}), qr/max_dead_letters: 51 dead letters in one batch/, 'with the reason');
is(letters('d', 'open'), '0', 'and none of the batch is kept');
src(q{DELETE FROM bad WHERE id >= 100});
sql(q{SELECT migrate_alter_job('d', '{"max_dead_letters": 1000}'); SELECT migrate_resume('d')});
applied('d', 'resumed with another limit, it goes on');
same_rows($source, q{SELECT id, v::int FROM bad}, $target, 'SELECT id, v FROM d.bad', 'equal once more');

# --- a value that cannot be read here: an older image never stands in for it
src(q{CREATE TYPE mood AS ENUM ('good', 'bad');
	CREATE TABLE moods (id int PRIMARY KEY, m mood, n int);
	INSERT INTO moods SELECT g, 'good', 0 FROM generate_series(1, 10) g});
sql(q{CREATE TYPE mood AS ENUM ('good', 'bad')});
start('r', '', 'moods') or do { done_testing(); exit; };
src(q{ALTER TYPE mood ADD VALUE 'new'});
src(q{
	BEGIN; UPDATE moods SET n = 1 WHERE id = 1; UPDATE moods SET m = 'new', n = 2 WHERE id = 1; COMMIT;
	UPDATE moods SET m = 'bad' WHERE id = 2;
	BEGIN; DELETE FROM moods WHERE id = 3; INSERT INTO moods VALUES (3, 'new', 3); COMMIT;
	UPDATE moods SET id = 104, m = 'new' WHERE id = 4;
});
applied('r');
is(letters('r', 'open'), '3', 'rows that cannot be read are dead letters');
is(sql(q{SELECT string_agg(stage || ' ' || (key ->> 'id') || ' ' || sqlstate, ', ' ORDER BY (key ->> 'id')::int) FROM migrate.dead_letters WHERE job = 'r' AND state = 'open'}),
	'read 1 22P02, read 3 22P02, read 104 22P02', 'with stage, key and error');
is(sql(q{SELECT encode(decode(substr(raw #>> '{columns,m}', 3), 'hex'), 'escape') FROM migrate.dead_letter d JOIN migrate.mapping m USING (mapping_id)
	WHERE m.target = 'r.moods' AND d.key ->> 'id' = '1'}), 'new', 'and the bytes');
is(sql('SELECT string_agg(id || m::text || n, chr(32) ORDER BY id) FROM r.moods WHERE id < 5 OR id > 100'), '2bad0',
	'no older image stands in for them');
sql(q{ALTER TYPE mood ADD VALUE 'new'});
src(q{UPDATE moods SET n = n + 1 WHERE id IN (1, 3); DELETE FROM moods WHERE id = 104});
applied('r');
is(letters('r', 'open'), '0', 'superseded');
equal('r', 'moods', 'equal again');

# -------------------------------------------------------- changes of the schema
src(q{CREATE TABLE shape (id int PRIMARY KEY, a int, b text, c varchar(10)); INSERT INTO shape SELECT g, g, 'b', 'c' FROM generate_series(1, 10) g});
start('s', '', 'shape') or do { done_testing(); exit; };
src(q{UPDATE shape SET a = 2 WHERE id = 2});
applied('s');
src(q{ALTER TABLE shape ADD COLUMN d int DEFAULT 7; UPDATE shape SET a = 3 WHERE id = 3});
applied('s', 'a new column does not hold it up');
is(sql(q{SELECT count(*) > 0 FROM migrate.events WHERE job = 's' AND message LIKE '%shape%new column%d%'}), 't', 'and is told');
equal('s', 'shape', 'equal but for the new column', 'SELECT id, a, b, c FROM shape', 'SELECT id, a, b, c FROM s.shape');

sub paused
{
	my ($job, $like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(wait_for($target, "SELECT wanted = 'pause' AND shm_handle = 0 FROM migrate.job WHERE job = '$job'", timeout => 60), "$name: paused");
	like(sql("SELECT pause_reason FROM migrate.job WHERE job = '$job'"), $like, "$name: the reason names table, column and remedy");
	return;
}

src(q{UPDATE shape SET a = 40 WHERE id = 4});
src(q{BEGIN; UPDATE shape SET a = 50 WHERE id = 5; ALTER TABLE shape DROP COLUMN b; UPDATE shape SET a = 60 WHERE id = 6; COMMIT});
paused('s', qr/shape.*\bb\b.*migrate_refresh_schema/, 'a column that is read was dropped');
is(sql(q{SELECT string_agg(a::text, ' ' ORDER BY id) FROM s.shape WHERE id IN (4, 5, 6)}), '40 5 6',
	'what came before is applied, of that transaction nothing');
sql(q{SELECT migrate_resume('s')});
paused('s', qr/shape.*\bb\b/, 'resumed without following');
sql(q{ALTER FOREIGN TABLE legacy.shape DROP COLUMN b; ALTER TABLE s.shape DROP COLUMN b;
	SELECT migrate_refresh_schema('s')});
sql(q{SELECT migrate_resume('s')});
applied('s', 'followed, it goes on');
equal('s', 'shape', 'equal', 'SELECT id, a, c FROM shape', 'SELECT id, a, c FROM s.shape');

src(q{ALTER TABLE shape ALTER c TYPE varchar(20); UPDATE shape SET c = 'a longer text' WHERE id = 7});
paused('s', qr/"c" of table public\.shape.*migrate_refresh_schema/, 'a column that is read has another type');
sql(q{SELECT migrate_refresh_schema('s')});
sql(q{SELECT migrate_resume('s')});
applied('s', 'refreshed, it goes on');
equal('s', 'shape', 'equal', 'SELECT id, a, c FROM shape', 'SELECT id, a, c FROM s.shape');

# ----------------------------------------------------- kill -9 at every point
my $n = 0;
foreach my $point (qw(apply-begin apply-read apply-collected apply-set apply-written apply-commit apply-committed))
{
	my $before = kills_seen($target);

	$n++;
	sql(qq{ALTER SYSTEM SET migrate.fault = '$point:kill'; SELECT pg_reload_conf()});
	src(qq{BEGIN; UPDATE plain SET v = '$point', n = $n WHERE id % 7 = $n; INSERT INTO nokey VALUES ($n, '$point', 0);
		DELETE FROM plain WHERE id % 100 = $n; COMMIT; UPDATE part SET v = '$point' WHERE id % 10 = $n});
	ok(wait_for(sub { kills_seen($target) > $before }, timeout => 60), "$point: killed there");
	wait_for(sub { defined try_query($target, 'ALTER SYSTEM RESET migrate.fault') && defined try_query($target, 'SELECT pg_reload_conf()') },
		timeout => 60);
	all_equal("killed at $point");
}

# --- a batch that fails is tried again, the job stays
sql(q{ALTER SYSTEM SET migrate.fault = 'apply-written:error'; SELECT pg_reload_conf()});
src(q{INSERT INTO plain (id, v) VALUES (900001, 'after an error')});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.events WHERE job = 'j' AND kind = 'apply_error' AND message LIKE '%fault injected%'}),
	'an error is told');
sql(q{ALTER SYSTEM RESET migrate.fault; SELECT pg_reload_conf()});
all_equal('after an error that passes');
is(job_state($target, 'j'), 'streaming', 'the job streams on');

done_testing();
