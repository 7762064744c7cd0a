
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# What stands in the way of a cutover, and what it does about it: transactions
# that are open when the source is fenced, a privilege that is missing there, a
# target that is locked, hooks that fail or take too long, gates, rows that
# cannot go back.  Each time the application waits no longer than it was promised
# to, and afterwards it writes where it wrote before.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $source = new_source('source', logical => 1, conf => 'max_prepared_transactions = 5');
my $target = new_target('target', logical => 1, preload => 1);

$source->safe_psql('postgres', q{
	CREATE ROLE app LOGIN REPLICATION;
	GRANT CREATE ON DATABASE postgres TO app;
	GRANT ALL ON SCHEMA public TO app;
	SET ROLE app;
	CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
	INSERT INTO account SELECT g, 1000 FROM generate_series(1, 100) g;
	CREATE TABLE amount (id int PRIMARY KEY, v int);
	INSERT INTO amount SELECT g, g FROM generate_series(1, 10) g;
	CREATE TABLE half (id int PRIMARY KEY, kind text);
	INSERT INTO half SELECT g, CASE g % 2 WHEN 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 10) g;
	CREATE TABLE pair (id int PRIMARY KEY, v int UNIQUE);
	INSERT INTO pair VALUES (1, 1), (2, 2);
	CREATE TABLE family (id int PRIMARY KEY, v int UNIQUE);
	INSERT INTO family VALUES (1, 1), (2, 2);
	CREATE TABLE child (pair int REFERENCES pair, family int REFERENCES family ON DELETE CASCADE);
	INSERT INTO child VALUES (1, 1), (2, 2);
});
connect_source($target, $source, server => 'legacy', user => 'app', options => { });
$target->safe_psql('postgres', q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"fence_lock_timeout": "300ms", "fence_timeout": "3s"}');
	SELECT migrate_import('j', 'public');
	SELECT migrate_add_schema('j', 'public', include => '{account,pair,family}');
	CREATE TABLE amount (id int PRIMARY KEY, cents bigint);
	CREATE FUNCTION to_cents(a legacy.amount) RETURNS SETOF amount LANGUAGE sql STABLE AS 'SELECT a.id, a.v * 100::bigint';
	CREATE FUNCTION from_cents(a amount) RETURNS SETOF legacy.amount LANGUAGE sql STABLE AS 'SELECT a.id, (a.cents / 100)::int';
	SELECT migrate_add_table('j', 'public.amount', 'public.amount', mapping => 'to_cents', key => '{"id": "id"}');
	CREATE TABLE half (id int PRIMARY KEY, kind text);
	SELECT migrate_add_table('j', 'public.half', 'public.half', filter => $$kind = 'a'$$);
});
$target->safe_psql('postgres', q{SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
$target->safe_psql('postgres', q{SELECT migrate_accept('j', 'cutover', x, 'the test does it on purpose') FROM unnest('{validation,prepared_transaction,long_transaction,fence_privilege}'::text[]) x});

# ------------------------------------------------------------------- helpers

sub call
{
	my ($what, $arguments) = @_;
	my ($out, $err) = ('', '');
	my $rc = $target->psql('postgres', "CALL migrate_$what('j'" . ($arguments ? ", $arguments" : '') . ')', stdout => \$out, stderr => \$err);
	return ($rc, $err);
}

# the same beside us
sub call_aside
{
	my ($what, $arguments) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/call';
	my $pid = fork() // die;
	if ($pid == 0)
	{
		open(STDOUT, '>', $file);
		open(STDERR, '>&', \*STDOUT);
		exec 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $target->connstr('postgres'), '-c', "CALL migrate_$what('j'" . ($arguments ? ", $arguments" : '') . ')';
		exit 1;
	}
	return { pid => $pid, file => $file };
}

sub result_of
{
	my ($call) = @_;
	waitpid($call->{pid}, 0);
	my $rc = $? >> 8;
	return ($rc, PostgreSQL::Test::Utils::slurp_file($call->{file}));
}

# A session that stays: a statement, and what it says
sub session
{
	my ($node, $user) = @_;
	my $s = { in => '', out => '' };
	my $timer = IPC::Run::timer(180);
	$s->{run} = IPC::Run::start([ 'psql', '-XqAt', '-d', $node->connstr('postgres') . ($user ? " user=$user" : '') ], '<', \$s->{in}, '>', \$s->{out}, '2>&1', $timer);
	return $s;
}

sub say_to
{
	my ($s, $sql) = @_;
	$s->{out} = '';
	$s->{in} .= "$sql\n\\echo end\n";
	$s->{run}->pump until $s->{out} =~ /end\n/;
	return $s->{out};
}

sub bye { my ($s) = @_; $s->{in} .= "\\q\n"; $s->{run}->finish; return; }

# longest time that a writer of the source has to wait, in ms, until the call is over
sub longest_wait
{
	my ($call) = @_;
	my $longest = 0;
	my $s = session($source);
	while (waitpid($call->{pid}, POSIX::WNOHANG()) == 0)
	{
		my $begin = time();
		my $said = say_to($s, 'INSERT INTO account VALUES (' . (1000 + int(rand(1e9))) . ', 0)');
		$longest = time() - $begin if time() - $begin > $longest;
		sleep(0.01);
	}
	my $rc = $? >> 8;
	bye($s);
	return (int(1000 * $longest), $rc, PostgreSQL::Test::Utils::slurp_file($call->{file}));
}

sub source_is_open
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(job_state($target, 'j'), 'streaming', "$name: the job streams");
	$source->safe_psql('postgres', 'UPDATE account SET balance = balance + 1 WHERE id = 1');
	my $v = value($source, 'SELECT balance FROM account WHERE id = 1');
	ok(wait_for($target, "SELECT balance = $v FROM account WHERE id = 1"), "$name: the source is open, and followed");
	my ($rc, $out, $err) = $target->psql('postgres', 'UPDATE account SET balance = 0 WHERE id = 2');
	like($err, qr/not open for writing yet/, "$name: the target is closed");
	return;
}

sub last_error { return value($target, 'SELECT error FROM migrate.cutover ORDER BY cutover_id DESC LIMIT 1'); }

# --------------------------------------------------------- missing privilege

$source->safe_psql('postgres', 'REVOKE CREATE ON DATABASE postgres FROM app');
my ($rc, $err) = call('cutover');
isnt($rc, 0, 'without the privilege to make the fence there is no cutover');
like($err, qr/the cutover of job "j" was undone: .*permission denied for database postgres/, 'and it says so');
source_is_open('missing privilege');
$source->safe_psql('postgres', 'GRANT CREATE ON DATABASE postgres TO app');

# --------------------------------------------- a transaction while it is armed

# of the role that the job has there: of others it sees no more than that they are
my $other = session($source, 'app');
say_to($other, 'BEGIN; UPDATE account SET balance = balance WHERE id = 5;');
my $call = call_aside('cutover', q{stop_before => 'open'});
sleep(1.2);
say_to($other, 'COMMIT;');
($rc, $err) = result_of($call);
is($rc, 0, 'a transaction that is open while the triggers are made is waited for') or diag $err;
source_is_open('armed');

# ------------------------------------------------------------ no way back yet

is(value($target, 'SELECT rollback_possible FROM migrate.readiness'), 'f', 'no way back from a mapping function');
$target->safe_psql('postgres', q{SELECT migrate_set_inverse('j', 'public.amount', 'from_cents(amount)')});
is(value($target, 'SELECT rollback_possible FROM migrate.readiness'), 't', 'there is one with its inverse') or
	diag value($target, 'SELECT rollback_loses FROM migrate.readiness');

# ------------------------------------------------- transactions at the fence

foreach my $kind (qw(short long idle prepared))
{
	say_to($other, 'BEGIN; UPDATE account SET balance = balance + 1 WHERE id = 7;' .
		($kind eq 'prepared' ? " PREPARE TRANSACTION 'in the way';" : ''));
	$other->{in} .= "SELECT pg_sleep(5);\n\\echo slept\n" if $kind eq 'long';
	$other->{run}->pump_nb if $kind eq 'long';
	$call = call_aside('cutover');
	if ($kind eq 'short')
	{
		sleep(1.2);
		say_to($other, 'COMMIT;');
		($rc, $err) = result_of($call);
		is($rc, 0, 'short: the fence waits for it') or diag $err;
		cmp_ok(value($target, q{SELECT count(*) FROM migrate.event WHERE kind = 'fence' AND message LIKE '%could not be locked within 300 ms (try 1): pid % (%, idle in transaction, transaction % old)%'}),
			'>', 0, 'short: and has said for whom');
		($rc, $err) = call('rollback');
		is($rc, 0, 'short: and back') or diag $err;
		next;
	}
	my $longest;
	($longest, $rc, $err) = longest_wait($call);
	isnt($rc, 0, "$kind: gives up");
	like($err, qr/undone: the source's tables could not be locked in \d+ tries/, "$kind: says why") or diag $err;
	note("$kind: no other writer has waited for longer than $longest ms");
	# fence_lock_timeout, and as much again for a slow machine
	cmp_ok($longest, '<', 300 + 1500, "$kind: nobody waits behind the lock for longer than it may take");
	my $who = $kind eq 'prepared' ? "prepared transaction 'in the way'" : $kind eq 'long' ? 'active, transaction' : 'idle in transaction, transaction';
	like(value($target, q{SELECT message FROM migrate.event WHERE kind = 'fence' ORDER BY event_id DESC LIMIT 1}), qr/\Q$who/, "$kind: names it");
	like(value($target, q{SELECT details::text FROM migrate.readiness}), qr/prepared_transaction/, 'readiness names it, too') if $kind eq 'prepared';
	source_is_open($kind);
	say_to($other, $kind eq 'prepared' ? "COMMIT PREPARED 'in the way';" : 'COMMIT;');
}
bye($other);

# ------------------------------------------- a VACUUM where it is to be opened

my $holder = session($target);
$target->safe_psql('postgres', q{SELECT migrate_add_hook('j', 'before_fence', 'gate')});
$call = call_aside('cutover', q{max_downtime => '1s'});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.cutover WHERE state = 'running' AND gate LIKE 'before_fence%'}), 'it waits at a gate');
say_to($holder, 'BEGIN; LOCK TABLE account IN SHARE UPDATE EXCLUSIVE MODE;');
$target->safe_psql('postgres', q{SELECT migrate_continue('j'); SELECT migrate_remove_hook('j', hook_id) FROM migrate.hook});
($rc, $err) = result_of($call);
isnt($rc, 0, 'a target that somebody has locked cannot be opened');
like($err, qr/undone: table "account" of the target could not be locked within max_downtime/, 'and it is undone before the source is closed for good');
say_to($holder, 'COMMIT;');
source_is_open('locked target');
say_to($holder, 'BEGIN; LOCK TABLE account IN SHARE UPDATE EXCLUSIVE MODE;');
$target->safe_psql('postgres', q{SELECT migrate_alter_job('j', '{"cutover_lag_timeout": "1s"}')});
($rc, $err) = call('cutover');
isnt($rc, 0, 'nor is it waited for before the pause, without an end');
like(last_error(), qr/lock timeout/, 'which it says');
say_to($holder, 'COMMIT;');
$target->safe_psql('postgres', q{SELECT migrate_alter_job('j', '{"cutover_lag_timeout": "1min"}')});
source_is_open('locked target before');

# --------------------------------------------------------------------- hooks

foreach my $h (['after_fence', 'target', 'SELECT pg_sleep(2)', qr/longer than max_downtime|terminat|connection|closed/, 'too slow on the target'],
	['before_open', 'target', 'SELECT pg_sleep(2)', qr/longer than max_downtime/, 'too slow at the end'],
	['before_open', 'source', 'SELECT pg_sleep(2)', qr/longer than max_downtime/, 'too slow on the source'],
	['after_fence', 'target', 'SELECT 1 / 0', qr/division by zero/, 'fails on the target'],
	['before_fence', 'source', 'SELECT 1 / 0', qr/division by zero/, 'fails on the source'],
	['before_open', 'target', 'VACUUM', qr/VACUUM/, 'cannot be run'])
{
	my ($phase, $side, $sql, $expected, $name) = @$h;
	$target->safe_psql('postgres', "SELECT migrate_add_hook('j', '$phase', '$side', \$q\$$sql\$q\$);"
		. " SELECT migrate_add_hook('j', 'undone', 'target', \$q\$CREATE TABLE public.told ()\$q\$)");
	($rc, $err) = call('cutover', q{max_downtime => '1s'});
	isnt($rc, 0, "$phase, $name: no cutover");
	like(last_error(), $expected, "$phase, $name: it says why");
	source_is_open("$phase, $name");
	ok(wait_for($target, q{SELECT to_regclass('told') IS NOT NULL}, timeout => 10), "$phase, $name: the hook for that has run");
	$target->safe_psql('postgres', q{SELECT migrate_remove_hook('j', hook_id) FROM migrate.hook; DROP TABLE told});
}

# --------------------------------------------------------------------- gates

$target->safe_psql('postgres', q{SELECT migrate_add_hook('j', 'before_fence', 'gate'); SELECT migrate_alter_job('j', '{"gate_timeout": "1s"}')});
($rc, $err) = call('cutover');
isnt($rc, 0, 'nobody opens the gate');
like(last_error(), qr/nobody called migrate_continue within 1000 ms/, 'and it says so');
source_is_open('gate');
$target->safe_psql('postgres', q{SELECT migrate_alter_job('j', '{"gate_timeout": "1min"}')});
$call = call_aside('cutover');
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.cutover WHERE state = 'running' AND gate LIKE 'before_fence%'}), 'it waits at the gate');
$source->safe_psql('postgres', 'UPDATE account SET balance = balance + 1 WHERE id = 3');
$target->safe_psql('postgres', q{SELECT migrate_continue('j')});
($rc, $err) = result_of($call);
is($rc, 0, 'migrate_continue lets it go on') or diag $err;
is(job_state($target, 'j'), 'cut_over', 'cut over');
$target->safe_psql('postgres', q{SELECT migrate_remove_hook('j', hook_id) FROM migrate.hook});

# --------------------------------------------------- rows that cannot go back

$target->safe_psql('postgres', q{
	UPDATE amount SET cents = 4200 WHERE id = 2;
	UPDATE amount SET cents = 300000000000000 WHERE id = 3;
	DELETE FROM amount WHERE id = 4;
	INSERT INTO amount VALUES (11, 1100);
	DELETE FROM account WHERE id = 50;
});
ok(wait_for($target, q{SELECT count(*) = 1 FROM migrate.dead_letter WHERE stage = 'back' AND state = 'open'}), 'a row that does not fit there is a dead letter');
like(value($target, q{SELECT sqlstate || ' ' || message FROM migrate.dead_letter WHERE stage = 'back'}), qr/22003 .*out of range/, 'with its error');
($rc, $err) = call('rollback');
isnt($rc, 0, 'and no rollback');
like(last_error(), qr/1 rows could not go back to the source/, 'which says why');
is(job_state($target, 'j'), 'cut_over', 'still cut over');
$target->safe_psql('postgres', 'UPDATE account SET balance = balance + 1 WHERE id = 9');
# emptied here, of a mapping that leaves rows out
$target->safe_psql('postgres', 'TRUNCATE half');
$target->safe_psql('postgres', q{SELECT migrate_accept('j', 'rollback', 'dead_letters', 'the row is known')});
($rc, $err) = call('rollback');
is($rc, 0, 'accepted, it goes back') or diag $err;
is(value($source, q{SELECT string_agg(id || ':' || v, ' ' ORDER BY id) FROM amount}), '1:1 2:42 3:3 5:5 6:6 7:7 8:8 9:9 10:10 11:11',
	'every other row is there, and this one as it was');
is(value($source, 'SELECT count(*) FROM account WHERE id = 50'), '0', 'the deletes as well');
is(value($source, q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM half}), '1 3 5 7 9', 'a TRUNCATE takes what was taken over, and no more');
$target->safe_psql('postgres', q{SELECT migrate_discard('j', ARRAY(SELECT id FROM migrate.dead_letter WHERE state = 'open'), 'known')});
source_is_open('rolled back');

# ------------------------- unique values change places where triggers are on there

($rc, $err) = call('cutover');
is($rc, 0, 'cut over without replica role on the source') or diag $err;
foreach my $table (qw(pair family))
{
	$target->safe_psql('postgres', "BEGIN; UPDATE $table SET v = -1 WHERE id = 1; UPDATE $table SET v = 1 WHERE id = 2; UPDATE $table SET v = 2 WHERE id = 1; COMMIT");
}
ok(wait_for($source, q{SELECT string_agg(v::text, ' ' ORDER BY id) = '2 1' FROM pair}), 'rows that a foreign key refers to exchange their values');
ok(wait_for($target, q{SELECT count(*) = 2 FROM migrate.dead_letter d JOIN migrate.mapping m USING (mapping_id) WHERE d.state = 'open' AND m.target = 'public.family' AND d.sqlstate = '23505'}),
	'where deleting them would take others with them, they are dead letters');
is(value($target, q{SELECT count(*) FROM migrate.dead_letter WHERE state = 'open'}), '2', 'and no others are');
is(value($source, 'SELECT count(*) FROM child'), '2', 'nothing was deleted');
$target->safe_psql('postgres', 'DELETE FROM family');
ok(wait_for($target, q{SELECT count(*) = 0 FROM migrate.dead_letter WHERE state = 'open'}), 'gone here, they are superseded');
($rc, $err) = call('rollback');
is($rc, 0, 'back') or diag $err;

# ------------------------------------------- what another one holds over there

($rc, $err) = call('cutover');
is($rc, 0, 'cut over once more') or diag $err;
$holder->{in} .= "BEGIN; UPDATE account SET balance = balance + 1 WHERE id = 8;\n\\echo there\n";
$holder->{run}->pump until $holder->{out} =~ /there/;
($rc, $err) = call('rollback');
isnt($rc, 0, 'a transaction on the target keeps a rollback from closing it');
like(last_error(), qr/the target's tables could not be locked in \d+ tries/, 'which says so');
like(value($target, q{SELECT message FROM migrate.event WHERE kind = 'fence' ORDER BY event_id DESC LIMIT 1}),
	qr/the target's tables could not be locked within 300 ms \(try \d+\): pid \d+ \(\w+, idle in transaction, transaction \S+ old\)/, 'and names it, after each try');
like(value($target, q{SELECT message FROM migrate.event WHERE kind = 'rollback_undone' ORDER BY event_id DESC LIMIT 1}),
	qr/In the way: pid \d+/, 'and at the end');
is(job_state($target, 'j'), 'cut_over', 'and the target stays open');
say_to($holder, 'COMMIT;');
$target->safe_psql('postgres', 'UPDATE account SET balance = balance + 1 WHERE id = 8');
($rc, $err) = call('rollback');
is($rc, 0, 'without it, back') or diag $err;
same_rows($source, 'SELECT * FROM account', $target, 'SELECT * FROM account', 'both sides are equal');
bye($holder);

done_testing();
