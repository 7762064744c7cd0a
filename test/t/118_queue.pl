
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# The way back by triggers, on a target whose wal_level is replica: every kind of
# change, in every order in which it may become visible, with the worker and the
# server killed in between; again after a rollback; what is refused, given up and
# left behind.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $source = new_source('source', logical => 1);
my $target = new_target('target', preload => 1);

connect_source($target, $source, server => 'legacy');
$source->safe_psql('postgres', q{
	CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL UNIQUE, note text);
	INSERT INTO seat SELECT g, g, 'n' || g FROM generate_series(1, 1000) g;
	CREATE TABLE guest (id int PRIMARY KEY, seat int REFERENCES seat);
	INSERT INTO guest SELECT g, g FROM generate_series(1, 1000) g;
	CREATE TABLE part (id int, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
	CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
	CREATE TABLE part_b PARTITION OF part FOR VALUES IN ('b');
	CREATE TABLE part_new PARTITION OF part FOR VALUES IN ('new');
	INSERT INTO part SELECT g, CASE g % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'p' || g FROM generate_series(1, 200) g;
	CREATE TABLE wide (id int PRIMARY KEY, small int, large text);
	INSERT INTO wide SELECT g, g, (SELECT string_agg(md5((g * 1000 + i)::text), '') FROM generate_series(1, 300) i) FROM generate_series(1, 20) g;
	CREATE TABLE stamp (at timestamptz, f float8, b bytea, v int, PRIMARY KEY (at, f, b));
	INSERT INTO stamp SELECT '2026-03-29 00:00Z'::timestamptz + g * interval '17 minutes', g / 3.0, decode(md5(g::text), 'hex'), g FROM generate_series(1, 100) g;
	CREATE TABLE person (id int PRIMARY KEY, name text, street text);
	INSERT INTO person SELECT g, 'name ' || g, 'street ' || g FROM generate_series(1, 100) g;
	CREATE TABLE amount (id int PRIMARY KEY, v int);
	INSERT INTO amount SELECT g, g FROM generate_series(1, 10) g;
});
$target->safe_psql('postgres', q{
	SELECT migrate_create_job('j', server => 'legacy');
	SELECT migrate_import('j', 'public');
	SELECT migrate_add_schema('j', 'public', include => '{seat,guest,wide,stamp}');
	CREATE TABLE part (note text, junk int, id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
	ALTER TABLE part DROP COLUMN junk;
	CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
	CREATE TABLE part_b (region text NOT NULL, id int NOT NULL, note text);
	ALTER TABLE part ATTACH PARTITION part_b FOR VALUES IN ('b');
	SELECT migrate_add_table('j', 'public.part', 'public.part', columns => '{}');
	CREATE TABLE person (id int PRIMARY KEY, name text);
	CREATE TABLE address (id int PRIMARY KEY, street text);
	SELECT migrate_add_table('j', 'public.person', 'public.person', columns => '{}');
	SELECT migrate_add_table('j', 'public.person', 'public.address', columns => '{}');
	CREATE TABLE amount (id int PRIMARY KEY, cents bigint);
	CREATE FUNCTION to_cents(a legacy.amount) RETURNS SETOF amount LANGUAGE sql STABLE AS 'SELECT a.id, a.v * 100::bigint';
	CREATE FUNCTION from_cents(a amount) RETURNS SETOF legacy.amount LANGUAGE sql STABLE AS 'SELECT a.id, (a.cents / 100)::int';
	SELECT migrate_add_table('j', 'public.amount', 'public.amount', mapping => 'to_cents', key => '{"id": "id"}');
	SELECT migrate_set_inverse('j', 'public.amount', 'from_cents(amount)');
	SELECT migrate_start('j');
});
wait_job($target, 'j', 'streaming');
$target->safe_psql('postgres', q{SELECT migrate_accept('j', 'cutover', 'validation', 'the test compares')});

# ------------------------------------------------------------------- helpers

sub works
{
	my ($what, $name) = @_;
	my ($out, $err) = ('', '');
	my $rc = $target->psql('postgres', "CALL migrate_$what('j')", stdout => \$out, stderr => \$err);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($rc, 0, $name) or diag $err;
	return $err;
}

# All that is visible here is on the source, or set aside.
sub gone_back { return wait_for($target, 'SELECT NOT EXISTS (SELECT FROM migrate.reverse_queue)', timeout => 60) }

my %pair = (
	(map { $_ => ["SELECT * FROM $_"] } qw(seat guest wide stamp)),
	part => ['SELECT id, region, note FROM part'],
	person => ['SELECT * FROM person', 'SELECT coalesce(p.id, a.id), p.name, a.street FROM person p FULL JOIN address a ON a.id = p.id'],
	amount => ['SELECT id, v FROM amount', 'SELECT id, cents / 100 FROM amount']);

sub same
{
	my ($name, @tables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(gone_back(), "$name: the queue is empty") or BAIL_OUT('nothing goes back');
	foreach my $table (@tables ? @tables : sort keys %pair)
	{
		my ($there, $here) = @{ $pair{$table} };
		same_rows($source, $there, $target, $here // $there, "$name: $table is the same on both sides");
	}
	is(value($target, q{SELECT string_agg(message, '; ') FROM migrate.dead_letter WHERE state = 'open'}), '', "$name: no dead letter");
	return;
}

# A session that stays; what it is told is done when say() returns.
sub session
{
	my $psql = $target->background_psql('postgres', on_error_stop => 1);
	return $psql;
}
sub say_to { my ($session, $sql) = @_; return $session->query_safe($sql) }

# ----------------------------------------------------------------- readiness

is(value($target, q{SELECT rollback_possible, rollback_loses FROM migrate.readiness}), 't|street of public.person; name of public.address', 'wal_level replica: there is a way back');
is(value($target, q{SELECT migrate._reverse_kind(job_id) FROM migrate.job}), 'trigger', 'by triggers');
$target->safe_psql('postgres', q{SELECT migrate_alter_job('j', '{"reverse": "logical"}')});
is(value($target, q{SELECT rollback_loses FROM migrate.readiness}),
	'everything written here after the opening: wal_level: wal_level of this server is replica; option reverse, logical, needs logical', 'what cannot be had is said');
$target->safe_psql('postgres', q{SELECT migrate_alter_job('j', '{"reverse": "none"}')});
is(value($target, q{SELECT rollback_loses FROM migrate.readiness}), 'everything written here after the opening: reverse: option reverse is none', 'nor what is not wanted');
$target->safe_psql('postgres', q{SELECT migrate_alter_job('j', '{"reverse": null}')});

like(works('cutover', 'cutover'), qr/reverse .*armed/, 'it is armed');
is(value($target, q{SELECT count(*) FROM migrate.reverse_queue}), '0', 'nothing of ours was noted');
is(value($target, q{SELECT string_agg(DISTINCT tgenabled::text, ',') FROM pg_trigger WHERE tgname LIKE 'migrate\_queue%'}), 'A', 'whatever the role of the session (P27)');

# ------------------------------------------------------- every kind of change

$target->safe_psql('postgres', q{
	BEGIN;
	UPDATE seat SET place = -1 WHERE id = 1;
	UPDATE seat SET place = 1 WHERE id = 2;
	UPDATE seat SET place = 2 WHERE id = 1;
	COMMIT;
	BEGIN;
	UPDATE seat SET place = place + 10000;
	UPDATE seat SET place = place - 9999, note = 'moved ''\\';
	INSERT INTO seat VALUES (0, 1, NULL);
	DELETE FROM guest WHERE id = 1000;
	DELETE FROM seat WHERE id = 1000;
	COMMIT;
	BEGIN;
	INSERT INTO seat VALUES (5000, 5000, 'new');
	INSERT INTO guest VALUES (5000, 5000);
	UPDATE guest SET id = id + 10000 WHERE id BETWEEN 10 AND 20;
	UPDATE guest SET id = id - 9000 WHERE id > 10000;
	DELETE FROM guest WHERE id = 30;
	DELETE FROM seat WHERE id = 30;
	INSERT INTO seat VALUES (30, 31, 'again');
	COMMIT;
	INSERT INTO seat VALUES (31, 31, 'upsert') ON CONFLICT (id) DO UPDATE SET note = excluded.note;
	INSERT INTO seat VALUES (31, 31, 'not') ON CONFLICT (id) DO NOTHING;
});
same('changes', qw(seat guest));

$target->safe_psql('postgres', q{
	UPDATE wide SET small = small + 1;
	UPDATE wide SET id = id + 100 WHERE id < 5;
	UPDATE wide SET large = large || 'x' WHERE id = 10;
	UPDATE part SET region = 'b', note = 'went' WHERE region = 'a' AND id < 50;
	UPDATE part SET region = 'a' WHERE id BETWEEN 41 AND 60;
	INSERT INTO part (id, region) VALUES (1000, 'a'), (1001, 'b');
	DELETE FROM part WHERE id = 100;
	UPDATE amount SET cents = cents + 500;
	INSERT INTO amount VALUES (11, 1100);
	UPDATE person SET name = 'another' WHERE id < 10;
	UPDATE address SET street = 'other' WHERE id BETWEEN 5 AND 15;
	DELETE FROM person WHERE id = 50;
	DELETE FROM address WHERE id = 50;
	SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'; SET extra_float_digits = 0; SET bytea_output = 'escape';
	UPDATE stamp SET v = v + 1;
	UPDATE stamp SET at = at + interval '1 second', f = f / 7 WHERE v < 50;
	DELETE FROM stamp WHERE v > 90;
	INSERT INTO stamp VALUES ('2026-10-25 00:30Z', 0.1::float8 + 0.2, '\x00ff', 1000);
});
same('kinds of tables');
$target->safe_psql('postgres', q{SET session_replication_role = replica; UPDATE seat SET note = 'replica' WHERE id = 2; DELETE FROM guest WHERE id = 3});
same('replica role', qw(seat guest));
$target->safe_psql('postgres', q{COPY person FROM PROGRAM 'seq -f "%.0f	copied" 1000 1100'});
same('COPY');

# within one statement: triggers of the application that write to the same rows
$target->safe_psql('postgres', q{
	CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
		IF pg_trigger_depth() = 1 THEN
			UPDATE seat SET note = note || '+' WHERE id BETWEEN NEW.id - 1 AND NEW.id + 1;
			BEGIN
				UPDATE seat SET note = 'taken back'; RAISE EXCEPTION 'x';
			EXCEPTION WHEN raise_exception THEN NULL; END;
		END IF;
		RETURN NULL;
	END$$;
	CREATE TRIGGER meddle AFTER UPDATE ON seat FOR EACH ROW EXECUTE FUNCTION meddle();
	CREATE TRIGGER zz_meddle AFTER UPDATE ON seat FOR EACH ROW EXECUTE FUNCTION meddle();
	UPDATE seat SET note = 'start' WHERE id BETWEEN 100 AND 110;
	DROP TRIGGER meddle ON seat; DROP TRIGGER zz_meddle ON seat;
});
same('nested', qw(seat));

# --------------------------------------------------------- savepoints, sessions

$target->safe_psql('postgres', q{
	BEGIN;
	UPDATE seat SET note = 'stays' WHERE id = 40;
	SAVEPOINT a;
	UPDATE seat SET note = 'goes' WHERE id BETWEEN 40 AND 45;
	DELETE FROM guest;
	TRUNCATE address;
	ROLLBACK TO a;
	INSERT INTO person VALUES (2000, 'behind it');
	COMMIT;
});
same('savepoint');

{
	# the one that noted first commits last, what is between was taken meanwhile
	my $slow = session();
	say_to($slow, q{BEGIN; INSERT INTO seat VALUES (6000, 6000, 'slow'); UPDATE seat SET note = 'slow' WHERE id = 50;});
	$target->safe_psql('postgres', q{UPDATE seat SET note = 'fast' WHERE id IN (51, 52); INSERT INTO guest VALUES (6000, 51)});
	ok(wait_for($source, q{SELECT count(*) = 2 FROM seat WHERE note = 'fast'}), 'two sessions: the fast one has gone back');
	is(value($source, 'SELECT count(*) FROM seat WHERE id = 6000'), '0', 'two sessions: the slow one has not');
	say_to($slow, q{UPDATE seat SET note = 'slower' WHERE id = 51; COMMIT;});
	$slow->quit;
	same('two sessions', qw(seat guest));
}

# -------------------------------------------------------------------- TRUNCATE

$target->safe_psql('postgres', q{
	BEGIN;
	INSERT INTO stamp VALUES ('2027-01-01 00:00Z', 1, '\x01', 1);
	TRUNCATE stamp, guest;
	INSERT INTO stamp VALUES ('2027-01-01 00:00Z', 2, '\x02', 2);
	INSERT INTO guest VALUES (1, 1);
	COMMIT;
	INSERT INTO guest VALUES (2, 2);
});
same('TRUNCATE', qw(stamp guest));
$target->safe_psql('postgres', q{TRUNCATE part_a});
same('TRUNCATE of a partition', qw(part));
is(value($source, q{SELECT count(*) > 0 AND count(*) FILTER (WHERE region = 'a') = 0 FROM part}), 't', 'TRUNCATE of a partition: the others are there');
$target->safe_psql('postgres', q{BEGIN; TRUNCATE part; INSERT INTO part (id, region) VALUES (1, 'a'), (2, 'b'); COMMIT; CREATE TABLE part_new PARTITION OF part FOR VALUES IN ('new'); INSERT INTO part (id, region) VALUES (3, 'new')});
same('TRUNCATE of a partitioned table, and a partition that is new', qw(part));

# --------------------------------------------------------- kills, in the middle

# how often the fault has come
sub hits
{
	return kills_seen($target) if $_[0] eq 'server';
	return scalar(() = slurp_file($target->logfile) =~ /fault injected at/g);
}

my $n = 0;
foreach my $point (qw(reverse-written reverse-committed))
{
	foreach my $who (qw(worker server))
	{
		$n++;
		my $fault = $who eq 'worker' ? 'error' : 'kill';
		my $before = hits($who);
		set_fault($target, "$point:$fault");
		ok(wait_for($target, "SELECT current_setting('migrate.fault') = '$point:$fault'"), "$point, $who: set");
		$target->psql('postgres', qq{
			BEGIN; UPDATE seat SET note = '$point $who' WHERE id < 100; UPDATE guest SET id = id + 7000 WHERE id < 5000; DELETE FROM wide WHERE id = 10 + $n;
			TRUNCATE amount; INSERT INTO amount VALUES ($n, $n * 100); COMMIT;});
		ok(wait_for(sub { hits($who) > $before }), "$point, $who: hit");
		set_fault($target, '');
		# the server may be starting again, and again
		ok(wait_for(sub { (try_query($target, q{SELECT current_setting('migrate.fault')}) // '-') eq '' }), "$point, $who: again");
		ok(wait_for(sub { defined try_query($target, q{UPDATE guest SET id = id - 7000 WHERE id > 7000 AND id < 12000}) }), "$point, $who: written to");
		same("$point, $who", qw(seat guest wide amount));
	}
}
foreach my $i (1 .. 3)
{
	$target->safe_psql('postgres', "UPDATE seat SET note = 'killed $i' WHERE id < 500; UPDATE part SET note = '$i'");
	my $pid = value($target, q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'migrate reverse'});
	kill 9, $pid if $pid;
	ok(wait_for($target, 'SELECT true'), "kill $i: the server is back");
	ok(wait_for(sub { defined try_query($target, "DELETE FROM seat WHERE id = 900 + $i AND id NOT IN (SELECT seat FROM guest)") }), "kill $i: written to");
	same("kill $i", qw(seat part));
}

# ----------------------------------------------------------- forth and back

foreach my $cycle (1 .. 3)
{
	works('rollback', "cycle $cycle: back");
	is(value($target, q{SELECT string_agg(DISTINCT tgenabled::text, ',') FROM pg_trigger WHERE tgname LIKE 'migrate\_queue%'}), 'D', "cycle $cycle: nothing is noted any more");
	same("cycle $cycle, back");
	$source->safe_psql('postgres', qq{
		UPDATE seat SET note = 'source $cycle' WHERE id BETWEEN 60 AND 70; INSERT INTO seat VALUES (-$cycle, -$cycle, 'source');
		UPDATE part SET note = 'source $cycle' WHERE id = 2});
	works('cutover', "cycle $cycle: forth");
	is(value($target, q{SELECT count(*) FROM migrate.reverse_queue}), '0', "cycle $cycle: no echo (P30)");
	same("cycle $cycle, forth", qw(seat part));
	$target->safe_psql('postgres', qq{UPDATE seat SET note = 'target $cycle' WHERE id BETWEEN 65 AND 75; DELETE FROM seat WHERE id = -$cycle});
}
same('cycles');

# ---------------------------------------------------- many keys, in one transaction

$target->safe_psql('postgres', q{BEGIN; INSERT INTO person SELECT g, 'n' || g FROM generate_series(10000, 60000) g; INSERT INTO address SELECT g, 's' || g FROM generate_series(10000, 60000) g; DELETE FROM person WHERE id BETWEEN 20000 AND 30000; DELETE FROM address WHERE id BETWEEN 20000 AND 30000; COMMIT});
same('many', qw(person));
ok(wait_for($target, q{SELECT pg_relation_size('migrate.reverse_queue') <= 1024 * 1024}), 'many: an empty queue is cut to nothing');

# in parts: nothing fails although rows hang together
set_fault($target, 'queue-small:skip');
ok(wait_for($target, q{SELECT current_setting('migrate.fault') = 'queue-small:skip'}), 'in parts: set');
$source->stop('fast');
$target->safe_psql('postgres', q{
	INSERT INTO guest SELECT g, 2 FROM generate_series(20000, 20300) g;
	INSERT INTO seat SELECT g, g, 'late' FROM generate_series(20000, 20300) g;
	UPDATE guest SET seat = id WHERE id >= 20000;
	UPDATE seat SET place = -place WHERE place BETWEEN 201 AND 801;
	UPDATE seat SET place = 1002 + place WHERE place < -200;
});
start_again($source);
same('in parts', qw(seat guest));
set_fault($target, '');

# ------------------------------------------------------------ too long, finish

$target->safe_psql('postgres', q{SELECT migrate_alter_job('j', '{"max_target_wal": "2MB"}')});
$source->stop('immediate');
ok(wait_for(sub {
	$target->safe_psql('postgres', q{UPDATE person SET name = name || '.'});
	return value($target, q{SELECT state = 'lost' FROM migrate.reverse}) eq 't';
}, timeout => 90), 'the source is away, and the queue is given up');
is(value($target, q{SELECT string_agg(DISTINCT tgenabled::text, ',') FROM pg_trigger WHERE tgname LIKE 'migrate\_queue%'}), 'D', 'nothing is noted any more');
like(value($target, q{SELECT rollback_loses FROM migrate.readiness}), qr/its queue was longer than max_target_wal, and was dropped/, 'readiness says that there is no way back, and why');
start_again($source);
works('finish', 'finish');
is(value($target, q{SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE 'migrate%'}), '0', 'no trigger is left');
is(value($target, q{SELECT count(*) FROM migrate.reverse_queue}), '0', 'nor a row in the queue');
is(value($source, q{SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'migrate%'}), '0', 'nor anything on the source');

done_testing();
