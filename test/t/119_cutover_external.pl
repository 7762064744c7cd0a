
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# A cutover whose source is fenced by the DBA's own means (fence => 'external'),
# by a role that may read there and no more: nothing is made on the source;
# writers that a hook stops; writers that it does not stop, seen before and after
# the opening; transactions that outlive the fence; gates; the way back.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;
use Time::HiRes qw(sleep);

my $source = new_source('source', logical => 1, conf => 'max_prepared_transactions = 5');
my $target = new_target('target', logical => 1, preload => 1);

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

src(q{
	CREATE ROLE app LOGIN;
	CREATE ROLE reader LOGIN REPLICATION;
	CREATE ROLE boss;
	CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
	INSERT INTO account SELECT g, 1000 FROM generate_series(1, 100) g;
	CREATE TABLE part (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
	CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
	CREATE TABLE other (id int PRIMARY KEY);
	ALTER TABLE account OWNER TO boss;
	ALTER TABLE part OWNER TO boss;
	GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
	GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO app;
	CREATE PUBLICATION theirs FOR TABLE account, part, other WITH (publish_via_partition_root = false);
	-- what the hooks of the job call: more than its role may do by itself
	CREATE SCHEMA dba;
	CREATE FUNCTION dba.close() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
	BEGIN
		REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON public.account, public.part, public.part_a FROM app;
		PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app';
	END $$;
	CREATE FUNCTION dba.open() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
		GRANT INSERT, UPDATE, DELETE, TRUNCATE ON public.account, public.part, public.part_a TO app $$;
	GRANT USAGE ON SCHEMA dba TO reader;
});
connect_source($target, $source, server => 'legacy', user => 'reader');
sql(q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"publication": "theirs"}');
	SELECT migrate_add_schema('j', 'public', exclude => '{other}');
});

# ------------------------------------------------------------------ privileges

like(sql(q{SELECT migrate_source_sql('j')}), qr/^GRANT CREATE ON DATABASE postgres TO reader;\t-- for the fence.*^GRANT boss TO reader;\t-- for the fence/ms, 'what the fence of triggers needs');
sql(q{SELECT migrate_alter_job('j', '{"fence": "external"}')});
unlike(sql(q{SELECT migrate_source_sql('j')}), qr/CREATE ON DATABASE|for the fence|boss/, 'none of it for a fence of another kind');
like(sql(q{SELECT migrate_source_sql('j')}), qr/^GRANT INSERT, UPDATE, DELETE ON TABLE public.account, public.part TO reader;\t-- only for the way back/m, 'what the way back needs');
my $before = src(q{SELECT string_agg(t, ' ' ORDER BY t) FROM (SELECT nspname::text FROM pg_namespace UNION ALL SELECT tgname::text FROM pg_trigger UNION ALL SELECT pubname::text FROM pg_publication) x(t)});
sql(q{SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
sql(q{SELECT migrate_validate('j')});
is(sql(q{SELECT blockers FROM migrate.readiness}), '{fence_hook}', 'somebody has to say that it is fenced');
sql(q{SELECT migrate_alter_job('j', '{"fence": "triggers"}')});
like(sql(q{SELECT details FROM migrate.readiness}), qr/"name": "fence_privilege".*Role reader may not make the fence: it may not create a schema, and does not own public.account, public.part/, 'without the option the missing privileges are told');
sql(q{SELECT migrate_alter_job('j', '{"fence": "external"}')});
is(sql(q{SELECT rollback_possible FROM migrate.readiness}), 'f', 'a role that only reads has no way back');
like(sql(q{SELECT rollback_loses FROM migrate.readiness}), qr/role reader may not write to public.account, public.part on the source: GRANT/, 'and is told why');

# --------------------------------------------------------------------- helpers

sub call
{
	my ($what, $arguments) = @_;
	my ($out, $err) = ('', '');
	my $rc = $target->psql('postgres', "CALL migrate_$what('j'" . ($arguments ? ", $arguments" : '') . ')', stdout => \$out, stderr => \$err);
	return ($rc, $err);
}

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
	return ($? >> 8, PostgreSQL::Test::Utils::slurp_file($call->{file}));
}

# A session that stays
sub session
{
	my ($user) = @_;
	my $s = { in => '', out => '' };
	$s->{run} = IPC::Run::start([ 'psql', '-XqAt', '-d', $source->connstr('postgres') . ($user ? " user=$user" : '') ], '<', \$s->{in}, '>', \$s->{out}, '2>&1', IPC::Run::timer(180));
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

sub bye { my ($s) = @_; $s->{in} .= "\\q\n"; eval { $s->{run}->finish }; return; }

sub app_may_write
{
	my ($out, $err) = ('', '');
	my $rc = $source->psql('postgres', 'SET ROLE app; UPDATE account SET balance = balance + 1 WHERE id = 1', stdout => \$out, stderr => \$err, on_error_stop => 1);
	return $rc == 0;
}

sub undone
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(job_state($target, 'j'), 'streaming', "$name: the job streams");
	ok(app_may_write(), "$name: the lift hook has opened the source");
	my $v = src('SELECT balance FROM account WHERE id = 1');
	ok(wait_for($target, "SELECT balance = $v FROM account WHERE id = 1", timeout => 30), "$name: and what is written there is followed");
	return;
}

# -------------------------------------------------------------------- no hooks

my ($rc, $err) = call('cutover');
isnt($rc, 0, 'without a hook there is no cutover');
like($err, qr/fence_hook: Nothing says when the source is fenced/, 'which says why');

# ------------------------------------------------- the rehearsal, and an app

sql(q{SELECT migrate_add_hook('j', 'fence', 'source', 'SELECT dba.close()'), migrate_add_hook('j', 'lift', 'source', 'SELECT dba.open()')});
my $app = session('app');
say_to($app, 'BEGIN; UPDATE account SET balance = balance - 5 WHERE id = 7;');
($rc, $err) = call('cutover', q{stop_before => 'open'});
is($rc, 0, 'the rehearsal') or diag $err;
like($err, qr/INFO:  arm .*nothing, the source is fenced by other means.*INFO:  fence .*done, by other means, up to.*INFO:  commit .*done/s, 'goes through its looks');
undone('rehearsal');
eval { bye($app) };

# -------------------------------------- a transaction that outlives the fence

my $dba = session();
foreach my $kind (qw(open prepared))
{
	say_to($dba, 'BEGIN; SELECT count(*) FROM other;' . ($kind eq 'prepared' ? " INSERT INTO other VALUES (77); PREPARE TRANSACTION 'late one';" : ''));
	($rc, $err) = call('cutover', q{max_downtime => '700ms'});
	isnt($rc, 0, "$kind: a transaction that was there before the fence may still write");
	like($err, qr/transactions that were open when the source was fenced have not ended within max_downtime/, "$kind: and keeps it from being opened");
	like(sql(q{SELECT message FROM migrate.event WHERE kind = 'cutover_undone' ORDER BY event_id DESC LIMIT 1}),
		$kind eq 'open' ? qr/pid \d+ \(\w+; more is seen with pg_read_all_stats\)/ : qr/prepared transaction 'late one'/, "$kind: and is named");
	undone($kind);
	say_to($dba, $kind eq 'prepared' ? "ROLLBACK PREPARED 'late one';" : 'ROLLBACK;');
}

# ------------------------------------------------- a writer that is not stopped

# commits between the fence and the opening: before what was open then has ended, and after
foreach my $when (qw(after_fence before_open))
{
	my $hook = sql("SELECT migrate_add_hook('j', '$when', 'gate')");
	my $call = call_aside('cutover', q{max_downtime => '60s'});
	ok(wait_for($target, "SELECT gate LIKE '$when%' FROM migrate.cutover WHERE state = 'running'", timeout => 60), "$when: it waits");
	say_to($dba, 'UPDATE account SET balance = balance + 7 WHERE id = 50;');
	sql(q{SELECT migrate_continue('j')});
	($rc, $err) = result_of($call);
	isnt($rc, 0, "$when: a write after the fence undoes it");
	like($err, qr/undone: the source was written to after it was said to be fenced/, "$when: which it says");
	undone($when);
	sql("SELECT migrate_remove_hook('j', $hook)");
}
like(sql(q{SELECT string_agg(message, ' ') FROM migrate.event WHERE kind = 'cutover_undone'}), qr/1 changes, the first of public\.account by transaction \d+, commit/, 'with table and transaction');

# one that has not committed
{
	my $hook = sql("SELECT migrate_add_hook('j', 'before_open', 'gate')");
	my $call = call_aside('cutover', q{max_downtime => '60s'});
	ok(wait_for($target, q{SELECT gate LIKE 'before_open%' FROM migrate.cutover WHERE state = 'running'}, timeout => 60), 'open write: it waits');
	say_to($dba, 'BEGIN; UPDATE account SET balance = balance + 7 WHERE id = 50;');
	sql(q{SELECT migrate_continue('j')});
	($rc, $err) = result_of($call);
	isnt($rc, 0, 'open write: seen by its lock');
	like($err, qr/undone: the source is being written to after it was said to be fenced/, 'open write: which it says');
	say_to($dba, 'COMMIT;');
	undone('open write');
	sql("SELECT migrate_remove_hook('j', $hook)");
}

# other tables do not matter
{
	my $hook = sql("SELECT migrate_add_hook('j', 'before_open', 'gate')");
	my $call = call_aside('cutover', q{max_downtime => '60s'});
	ok(wait_for($target, q{SELECT gate LIKE 'before_open%' FROM migrate.cutover WHERE state = 'running'}, timeout => 60), 'another table: it waits');
	say_to($dba, 'INSERT INTO other VALUES (1); TRUNCATE other;');
	sql(q{SELECT migrate_continue('j'); SELECT migrate_remove_hook('j', } . $hook . ')');
	($rc, $err) = result_of($call);
	is($rc, 0, 'writes to other tables are nobody\'s business: cut over') or diag $err;
}
is(job_state($target, 'j'), 'cut_over', 'cut over by a role that only reads');
ok(!app_may_write(), 'the application cannot write to the source');
is(src(q{SELECT string_agg(t, ' ' ORDER BY t) FROM (SELECT nspname::text FROM pg_namespace UNION ALL SELECT tgname::text FROM pg_trigger UNION ALL SELECT pubname::text FROM pg_publication) x(t)}),
	$before, 'nothing was made on the source');
is(sql(q{SELECT fence FROM migrate.cutovers ORDER BY cutover_id DESC LIMIT 1}), 'external', 'how it was fenced is on record');
sql('UPDATE account SET balance = 1 WHERE id = 2');

# ------------------------------------------------------- a write after the opening

say_to($dba, q{UPDATE account SET balance = 555 WHERE id = 60; DELETE FROM account WHERE id = 61; INSERT INTO part VALUES (1, 'a');});
ok(wait_for($target, q{SELECT count(*) = 1 FROM migrate.event WHERE kind = 'fence' AND level = 'alert'}, timeout => 60), 'a write after the opening is an alert');
like(sql(q{SELECT message FROM migrate.event WHERE kind = 'fence' AND level = 'alert'}),
	qr/the source was written to while the target leads: 3 changes, the first of public\.account by transaction \d+, commit/, 'which names it');
is(sql(q{SELECT m.target, d.key, d.source_row, d.state FROM migrate.dead_letter d JOIN migrate.mapping m USING (mapping_id) WHERE d.stage = 'late' ORDER BY m.target, d.key ->> 'id'}),
	qq{public.account|{"id": "60"}|{"id": "60", "balance": "555"}|open\npublic.account|{"id": "61"}||open\npublic.part|{"id": "1", "region": "a"}|{"id": "1", "region": "a"}|open}, 'with letters of what came');
is(sql('SELECT balance FROM account WHERE id = 60'), '1000', 'and is not applied here');
($rc, $err) = call('rollback');
isnt($rc, 0, 'a role that only reads cannot go back');
like($err, qr/there is no way back that loses nothing/, 'which it says');
($rc, $err) = call('finish');
is($rc, 0, 'finish') or diag $err;

# ------------------------------------------------------------- with a way back

src(q{SELECT dba.open(); GRANT INSERT, UPDATE, DELETE ON account, part TO reader; UPDATE account SET balance = 1000});
sql(q{SELECT migrate_drop_job('j'); DROP TABLE account, part CASCADE;
	SELECT migrate_create_job('j', server => 'legacy', options => '{"publication": "theirs", "fence": "external"}');
	SELECT migrate_add_schema('j', 'public', exclude => '{other}');
	SELECT migrate_add_hook('j', 'fence', 'gate'), migrate_add_hook('j', 'lift', 'source', 'SELECT dba.open()');
	SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
sql(q{SELECT migrate_validate('j')});
is(sql(q{SELECT go, blockers, rollback_possible FROM migrate.readiness}), 't|{}|t', 'ready, with a way back') or diag sql(q{SELECT details, rollback_loses FROM migrate.readiness});
sub gated_cutover
{
	my $call = call_aside('cutover', q{max_downtime => '10s'});
	ok(wait_for($target, q{SELECT gate LIKE 'fence%' FROM migrate.cutover WHERE state = 'running'}, timeout => 60), 'it waits to be told that the source is fenced');
	src('SELECT dba.close()');
	sql(q{SELECT migrate_continue('j')});
	my ($rc, $err) = result_of($call);
	is($rc, 0, 'then it goes on') or diag $err;
	return;
}
gated_cutover();
sql('UPDATE account SET balance = balance + id; DELETE FROM account WHERE id = 9');
ok(wait_for($source, 'SELECT balance = 1080 FROM account WHERE id = 80'), 'what is written here goes back');
# two looks of the watch
sleep(11);
is(sql(q{SELECT count(*) FROM migrate.event WHERE kind = 'fence' AND level = 'alert' AND job_id = (SELECT job_id FROM migrate.job)}), '0', 'and is no alert');
say_to($dba, 'UPDATE account SET balance = 3 WHERE id = 90;');
($rc, $err) = call('rollback');
isnt($rc, 0, 'a rollback sees what the watch has not yet') or diag $err;
like($err, qr/undone: (the source was written to after it was said to be fenced|1 rows were written on the source while)/, 'and says so');
ok(wait_for($target, q{SELECT count(*) = 1 FROM migrate.dead_letter WHERE stage = 'late' AND state = 'open'}, timeout => 60), 'it has its letter');
($rc, $err) = call('rollback');
like($err, qr/undone: 1 rows were written on the source while the target led/, 'and stands in the way until it is accepted');
sql(q{SELECT migrate_accept('j', 'rollback', 'dead_letters', 'known')});
($rc, $err) = call('rollback');
is($rc, 0, 'rollback') or diag $err;
ok(app_may_write(), 'which opens the source by the lift hook');
is(sql(q{SELECT * FROM migrate_replay('j')}), '1|0|0', 'what was written there meanwhile is replayed');
src('UPDATE account SET balance = balance + 1 WHERE id = 3');
my $v = src('SELECT balance FROM account WHERE id = 3');
ok(wait_for($target, "SELECT balance = $v FROM account WHERE id = 3"), 'and it streams on');
$v = src('SELECT balance FROM account WHERE id = 1');
ok(wait_for($target, "SELECT balance = $v FROM account WHERE id = 1"), 'streamed');
same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM $_", "$_: both sides are equal") for qw(account part);

# -------------------------------------------------------------- deaths

foreach my $point (qw(cutover-stated cutover-drain cutover-commit cutover-open))
{
	my $kills = kills_seen($target);
	sql(q{SELECT migrate_validate('j')});
	set_fault($target, "$point:kill");
	wait_for($target, "SELECT current_setting('migrate.fault') = '$point:kill'");
	my $call = call_aside('cutover', q{max_downtime => '10s'});
	ok(wait_for($target, q{SELECT gate LIKE 'fence%' FROM migrate.cutover WHERE state = 'running'}, timeout => 60), "$point: it waits");
	src('SELECT dba.close()');
	sql(q{SELECT migrate_continue('j')});
	ok(wait_for(sub { kills_seen($target) > $kills }, timeout => 30), "$point: a process died there");
	result_of($call);
	set_fault($target, '');
	ok(wait_for($target, q{SELECT state = 'streaming' FROM migrate.job}, timeout => 60), "$point: undone");
	undone($point);
}
# after the opening it is over
{
	my $kills = kills_seen($target);
	set_fault($target, 'cutover-opened:kill');
	wait_for($target, q{SELECT current_setting('migrate.fault') = 'cutover-opened:kill'});
	my $call = call_aside('cutover', q{max_downtime => '10s'});
	ok(wait_for($target, q{SELECT gate LIKE 'fence%' FROM migrate.cutover WHERE state = 'running'}, timeout => 60), 'opened: it waits');
	src('SELECT dba.close()');
	sql(q{SELECT migrate_continue('j')});
	ok(wait_for(sub { kills_seen($target) > $kills }, timeout => 30), 'opened: a process died there');
	result_of($call);
	set_fault($target, '');
	ok(wait_for($target, q{SELECT state = 'cut_over' FROM migrate.job}, timeout => 60), 'opened: cut over');
	ok(!app_may_write(), 'opened: the source stays closed');
}
# the source is away when it is to be opened again
{
	($rc, $err) = call('rollback');
	is($rc, 0, 'back once more') or diag $err;
	sql(q{SELECT migrate_add_hook('j', 'after_fence', 'target', 'SELECT pg_sleep(1)')});
	my $call = call_aside('cutover', q{max_downtime => '10s'});
	ok(wait_for($target, q{SELECT gate LIKE 'fence%' FROM migrate.cutover WHERE state = 'running'}, timeout => 60), 'source away: it waits');
	src('SELECT dba.close()');
	bye($dba);
	sql(q{SELECT migrate_continue('j')});
	ok(wait_for($target, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'}, timeout => 20), 'source away: fenced');
	hard_kill($source);
	ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.event WHERE kind = 'fence' AND message LIKE 'the source cannot be opened yet%'}, timeout => 60), 'source away: that it stays closed is an alert');
	start_again($source);
	($rc, $err) = result_of($call);
	isnt($rc, 0, 'source away: undone');
	undone('source away');
}

done_testing();
