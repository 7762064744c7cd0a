
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# The way back in detail: unique values that change places, what becomes of dead
# letters and of their acceptance, the limit on what its slot holds back; and
# what migrate_finish leaves when it is killed.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $source = new_source('source', logical => 1);
my $target = new_target('target', logical => 1, preload => 1);

connect_source($target, $source, server => 'legacy');
$source->safe_psql('postgres', q{
	CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL CONSTRAINT one_a_place UNIQUE, note text, "kept Here" text DEFAULT 'there',
		doubled int GENERATED ALWAYS AS (place * 2) STORED);
	INSERT INTO seat SELECT g, g, 'n' || g, 'kept ' || g FROM generate_series(1, 3000) g;
	CREATE TABLE guest (id int PRIMARY KEY, seat int REFERENCES seat ON DELETE CASCADE);
	INSERT INTO guest SELECT g, g FROM generate_series(1, 3000) g;
	CREATE TABLE code (a "char", b varchar(8), c bit(3), u text, PRIMARY KEY (a, b), UNIQUE (c, u));
	INSERT INTO code VALUES ('x', 'one', B'101', 'u'), ('y', 'two', B'010', 'u');
});
$target->safe_psql('postgres', q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"gate_timeout": "1min"}');
	SELECT migrate_add_schema('j', 'public', include => '{code,guest}');
	CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL CONSTRAINT one_a_place UNIQUE, note text);
	SELECT migrate_add_table('j', 'public.seat', 'public.seat', columns => '{}');
	SELECT migrate_start('j');
});
wait_job($target, 'j', 'streaming');
$target->safe_psql('postgres', q{SELECT migrate_accept('j', 'cutover', 'validation', 'the test compares')});

sub call
{
	my ($what, $arguments) = @_;
	my ($out, $err) = ('', '');
	my $rc = $target->psql('postgres', "CALL migrate_$what('j'" . ($arguments ? ", $arguments" : '') . ')', stdout => \$out, stderr => \$err);
	return ($rc, $err);
}

sub works
{
	my ($what, $name) = @_;
	my ($rc, $err) = call($what);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($rc, 0, $name) or diag $err;
	return;
}

# Until what was written here is there, or set aside.
sub gone_back
{
	my $position = value($target, 'SELECT pg_current_wal_insert_lsn()');
	$target->safe_psql('postgres', 'SELECT pg_logical_emit_message(true, $$test$$, $$x$$)');
	return wait_for($target, "SELECT bool_and(confirmed_flush_lsn > '$position') FROM pg_replication_slots WHERE slot_name LIKE 'migrate_back%'");
}

sub open_letters { return value($target, q{SELECT count(*) FROM migrate.dead_letter WHERE state = 'open'}) }

sub same_seats
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	same_rows($source, 'SELECT id, place, note FROM seat', $target, 'SELECT id, place, note FROM seat', "$name: the same rows on both sides");
	return;
}

# ------------------------------------------------ overrides, gates on the way

$target->safe_psql('postgres', q{SELECT migrate_add_hook('j', 'before_fence', 'gate')});
my $pid = fork() // die;
if ($pid == 0)
{
	open(STDOUT, '>', '/dev/null');
	open(STDERR, '>', '/dev/null');
	exec 'psql', '-Xq', '-d', $target->connstr('postgres'), '-c', q{CALL migrate_cutover('j')};
	exit 1;
}
ok(wait_for($target, q{SELECT count(*) = 1 FROM migrate.cutovers WHERE state = 'running' AND gate LIKE 'before_fence, hook %'}), 'migrate.cutovers shows the gate that it waits at');
$target->safe_psql('postgres', q{SELECT migrate_continue('j')});
waitpid($pid, 0);
is($?, 0, 'it has gone on');
is(value($target, q{SELECT job, direction, state, gate IS NULL, overrides ->> 'validation', asked_by = current_user FROM migrate.cutovers}),
	'j|forward|done|t|the test compares|t', 'the gate is cleared, and what was passed over is there with its reason');
$target->safe_psql('postgres', q{SELECT migrate_remove_hook('j', hook_id) FROM migrate.hook});

# -------------------------------------------- unique values that change places

$target->safe_psql('postgres', q{
	BEGIN;
	UPDATE seat SET place = -1 WHERE id = 1;
	UPDATE seat SET place = 1 WHERE id = 2;
	UPDATE seat SET place = 2 WHERE id = 1;
	COMMIT;
});
ok(gone_back(), 'two rows exchange a unique value');
is(open_letters(), '0', 'exchange: no dead letter') or diag value($target, 'SELECT string_agg(message, E$$\n$$) FROM migrate.dead_letter');
same_seats('exchange');
is(value($source, 'SELECT string_agg("kept Here" || doubled, $$,$$ ORDER BY id) FROM seat WHERE id < 3'), 'kept 14,kept 22', 'exchange: a column that is not taken over is kept');
is(value($source, 'SELECT count(*) FROM guest'), '3000', 'exchange: nothing cascades');

$target->safe_psql('postgres', q{
	BEGIN;
	UPDATE seat SET place = place + 100000;
	UPDATE seat SET place = place - 99999, note = 'moved ''\\';
	INSERT INTO seat VALUES (0, 1, 'in front');
	DELETE FROM seat WHERE id = 3000;
	INSERT INTO seat VALUES (5000, 3001, 'in its place');
	COMMIT;
});
ok(gone_back(), 'all move on by one, and one comes in front');
is(open_letters(), '0', 'move: no dead letter');
same_seats('move');
is(value($source, 'SELECT "kept Here" FROM seat WHERE id = 0'), 'there', 'move: a new row has the default');

$target->safe_psql('postgres', q{
	BEGIN;
	UPDATE code SET u = 'v' WHERE a = 'x';
	UPDATE code SET c = B'101' WHERE a = 'y';
	UPDATE code SET c = B'010', u = 'u' WHERE a = 'x';
	COMMIT;
});
ok(gone_back(), 'values of odd types');
is(open_letters(), '0', 'odd types: no dead letter');
same_rows($source, 'SELECT * FROM code', $target, 'SELECT * FROM code', 'odd types: the same rows');

# ---------------------------------------------- what still conflicts is a letter

$target->safe_psql('postgres', q{
	ALTER TABLE seat DROP CONSTRAINT one_a_place;
	BEGIN;
	UPDATE seat SET place = 11 WHERE id = 9;
	UPDATE seat SET place = 10 WHERE id = 10;
	UPDATE seat SET place = 501 WHERE id = 20;
	COMMIT;
});
ok(gone_back(), 'an exchange, and one row that takes a value of a third');
is(value($target, q{SELECT count(*), min(key ->> 'id'), min(sqlstate) FROM migrate.dead_letter WHERE state = 'open' AND stage = 'back'}), '1|20|23505', 'only that one is a letter')
	or diag value($target, q{SELECT string_agg(key::text || message, E'\n') FROM migrate.dead_letter WHERE state = 'open'});
is(value($source, q{SELECT string_agg(id || ':' || place, ' ' ORDER BY id) FROM seat WHERE id IN (9, 10, 20)}), '9:11 10:10 20:21', 'the source has the rest, and keeps what it had of this one');

# ------------------------------------------- a later change supersedes the letter

$target->safe_psql('postgres', q{UPDATE seat SET place = 502 WHERE id = 20});
gone_back();
is(value($target, q{SELECT string_agg(state, ',' ORDER BY id) FROM migrate.dead_letter WHERE stage = 'back'}), 'superseded,open', 'a later change that fails leaves one open letter');
$target->safe_psql('postgres', q{UPDATE seat SET place = 21 WHERE id = 20});
gone_back();
is(value($target, q{SELECT string_agg(DISTINCT state, ',') FROM migrate.dead_letter WHERE stage = 'back'}), 'superseded', 'one that fits supersedes it');
same_seats('superseded');
$target->safe_psql('postgres', q{UPDATE seat SET place = 503 WHERE id = 20});
gone_back();
is(open_letters(), '1', 'another letter');
{
	my %refused = (
		'replay dead letters of' => q{SELECT * FROM migrate_replay('j')},
		repair => q{SELECT * FROM migrate_repair('j', dry_run => false)},
		'recopy tables of' => q{SELECT migrate_recopy('j', 'public.seat')},
		resync => q{SELECT migrate_resync('j')});
	foreach my $what (sort keys %refused)
	{
		my ($rc, $out, $err) = $target->psql('postgres', $refused{$what});
		like($err, qr/cannot $what job "j" while it is cut_over\nDETAIL:  The source does not lead any more.*\nHINT:  .*migrate_rollback/, "$what: not from a source that does not lead");
	}
	is(value($target, 'SELECT place FROM seat WHERE id = 20'), '503', 'whose row is older than what is here');
}
$target->safe_psql('postgres', q{DELETE FROM seat WHERE id = 20});
gone_back();
is(open_letters(), '0', 'a delete supersedes it, too');

# ------------------------------- a COMMIT that outlives the worker that sent it

$source->safe_psql('postgres', q{ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf()});
wait_for($source, q{SELECT current_setting('synchronous_standby_names') = 'nobody'});
$target->safe_psql('postgres', q{INSERT INTO seat VALUES (5001, 5001, 'late')});
ok(wait_for($source, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'}), 'a COMMIT on the source hangs');
kill 9, value($target, q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'migrate reverse'});
ok(wait_for($target, q{DELETE FROM seat WHERE id = 5001 RETURNING true}), 'its worker is killed, and the row deleted');
ok(wait_for($source, q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}, timeout => 30), 'the next worker waits for it');
$source->safe_psql('postgres', q{ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()});
ok(gone_back(), 'and goes on');
same_seats('a late COMMIT');

# ------------------------------------------------- an acceptance is for one time

$target->safe_psql('postgres', q{UPDATE seat SET place = 504 WHERE id = 30});
gone_back();
my ($rc, $err) = call('rollback');
like($err, qr/1 rows could not go back to the source/, 'a letter stands in the way of going back');
$target->safe_psql('postgres', q{SELECT migrate_accept('j', 'rollback', 'dead_letters', 'row 30 is known')});
works('rollback', 'accepted, it goes back');
is(value($target, q{SELECT overrides ->> 'dead_letters' FROM migrate.cutovers WHERE direction = 'back' AND state = 'done'}), 'row 30 is known', 'on record');
$target->safe_psql('postgres', q{SELECT migrate_discard('j', ARRAY(SELECT id FROM migrate.dead_letter WHERE state = 'open'), 'known')});
works('cutover', 'and forth again');
$target->safe_psql('postgres', q{UPDATE seat SET place = 505 WHERE id = 31});
gone_back();
($rc, $err) = call('rollback');
isnt($rc, 0, 'it was for one rollback');
like($err, qr/1 rows could not go back to the source/, 'and it says so');
is(job_state($target, 'j'), 'cut_over', 'still cut over');
$target->safe_psql('postgres', q{DELETE FROM seat WHERE id = 31});
works('rollback', 'back without a letter');

# ------------------------------------------------- what the slot may hold back

works('cutover', 'and forth');
is(value($target, q{SELECT rollback_possible, rollback_loses IS NULL OR rollback_loses LIKE '%kept Here%' FROM migrate.readiness}), 't|t', 'there is a way back');
$target->safe_psql('postgres', q{SELECT migrate_alter_job('j', '{"max_target_wal": "16MB"}'); CREATE TABLE ballast (t text)});
$source->stop('immediate');
ok(wait_for(sub {
	$target->safe_psql('postgres', q{INSERT INTO ballast SELECT repeat(md5(g::text), 60) FROM generate_series(1, 2000) g; UPDATE seat SET note = 'later' WHERE id = 1;});
	return value($target, q{SELECT state = 'lost' FROM migrate.reverse}) eq 't';
}, timeout => 60), 'the source is away, and the slot is given up');
is(value($target, q{SELECT count(*) FROM pg_replication_slots}), '0', 'nothing holds WAL back any more');
is(value($target, q{SELECT rollback_possible, rollback_loses FROM migrate.readiness}),
	'f|everything written here after the opening: slot: its slot held more WAL than max_target_wal, and was dropped', 'readiness says that there is no way back, and why');
is(value($target, q{SELECT count(*) FROM migrate.event WHERE kind = 'reverse_lost' AND level = 'alert'}), '1', 'it was told, once');
$target->safe_psql('postgres', q{UPDATE seat SET note = 'still open' WHERE id = 2});
is(job_state($target, 'j'), 'cut_over', 'the target goes on');
start_again($source);
($rc, $err) = call('rollback');
like($err, qr/job "j" is not ready for a rollback\nDETAIL:  reverse: /, 'a rollback is refused');
works('finish', 'finish');
$target->safe_psql('postgres', q{SELECT migrate_drop_job('j'); DROP TABLE seat, guest, code, ballast});
$source->safe_psql('postgres', 'DROP TABLE guest, seat, code');

# --------------------------------------- the slot is taken away behind our back

sub traces
{
	my ($node) = @_;
	return value($node, q{
		SELECT string_agg(x, E'\n' ORDER BY x) FROM (
			SELECT 'schema ' || nspname AS x FROM pg_namespace WHERE nspname !~ '^pg_'
			UNION ALL SELECT 'relation ' || oid::regclass FROM pg_class WHERE relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_' OR nspname IN ('information_schema', 'migrate'))
			UNION ALL SELECT 'trigger ' || tgname || ' on ' || tgrelid::regclass FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'check_transition'
			UNION ALL SELECT 'publication ' || pubname FROM pg_publication
			UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots
			UNION ALL SELECT 'function ' || oid::regprocedure FROM pg_proc
				WHERE pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
				  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = pg_proc.oid AND d.deptype = 'e')) t});
}

$source->safe_psql('postgres', 'CREATE TABLE account (id int PRIMARY KEY, balance bigint); INSERT INTO account SELECT g, 100 FROM generate_series(1, 100) g');
$target->safe_psql('postgres', 'CREATE TABLE account (id int PRIMARY KEY, balance bigint)');
my %before = (source => traces($source), target => traces($target));

sub cut_over
{
	my ($name) = @_;
	$target->safe_psql('postgres', q{
		TRUNCATE account;
		SELECT migrate_create_job('j', server => 'legacy');
		SELECT migrate_add_table('j', 'public.account', 'public.account');
		SELECT migrate_start('j');
	});
	wait_job($target, 'j', 'streaming');
	$target->safe_psql('postgres', q{SELECT migrate_accept('j', 'cutover', 'validation', 'the test compares')});
	works('cutover', "$name: cut over");
	$target->safe_psql('postgres', 'UPDATE account SET balance = balance + 1');
	gone_back();
	return;
}

sub finished
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($out, $err) = ('', '');
	my $rc = $target->psql('postgres', q{CALL migrate_finish('j')}, stderr => \$err);
	is($rc, 0, "$name: finish") or diag $err;
	is($err, '', "$name: without a warning");
	is(traces($source), $before{source}, "$name: nothing is left on the source");
	is(traces($target), $before{target}, "$name: nothing is left on the target");
	$target->safe_psql('postgres', 'UPDATE account SET balance = balance + 1');
	$source->safe_psql('postgres', 'UPDATE account SET balance = balance + 1');
	is(value($target, q{SELECT count(*) FROM migrate.made_object WHERE temporary}), '0', "$name: nor on record");
	$target->safe_psql('postgres', q{SELECT migrate_drop_job('j')});
	return;
}

cut_over('slot');
$target->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'migrate reverse'});
ok(wait_for(sub {
	# it comes back, so between two of its lives
	$target->psql('postgres', q{SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active; SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots});
	return value($target, 'SELECT count(*) FROM pg_replication_slots') eq '0';
}, timeout => 30), 'slot: somebody drops it');
$target->safe_psql('postgres', 'UPDATE account SET balance = balance + 1');
ok(wait_for($target, q{SELECT state = 'lost' AND error = 'its slot is gone' FROM migrate.reverse}), 'slot: no new one is made, which would miss what was written meanwhile');
is(value($target, 'SELECT rollback_possible FROM migrate.readiness'), 'f', 'slot: readiness says so');
finished('slot');

# ------------------------------------------------------------ a killed finish

foreach my $point (qw(finish-asked finish-alone finish-slot finish-fence finish-stream))
{
	cut_over($point);
	set_fault($target, "$point:kill");
	ok(wait_for($target, "SELECT current_setting('migrate.fault') = '$point:kill'"), "$point: set");
	my $err = '';
	my $rc = $target->psql('postgres', q{CALL migrate_finish('j')}, stderr => \$err);
	isnt($rc, 0, "$point: killed");
	set_fault($target, '');
	ok(wait_for($target, q{SELECT current_setting('migrate.fault') = ''}), "$point: the server is back");
	is(job_state($target, 'j'), 'finished', "$point: the job is finished, but not all is removed");
	isnt(traces($target), $before{target}, "$point: something is left");
	$target->safe_psql('postgres', 'UPDATE account SET balance = balance + 1');
	finished($point);
}

done_testing();
