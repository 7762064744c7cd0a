
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# kill -9 in the middle of a cutover and of a rollback, at each step and between
# a commit and what follows: of the process that is there (with it the server
# loses all), of the client, of either server.  A writer goes on meanwhile and
# writes where it may.  After each: within bounded time one side takes writes and
# the other refuses them with 25006; what was acknowledged is on both; job and
# migrate.cutover agree with that; and a further cutover and rollback work.
#
# MIGRATE_POINT_ROUNDS: how often each point has its turn (default 1).

use strict;
use warnings;
use POSIX ();
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $rounds = $ENV{MIGRATE_POINT_ROUNDS} // 1;
my $source = new_source('source', logical => 1);
my $target = new_target('target', logical => 1, preload => 1);
my @node = ($source, $target);

connect_source($target, $source, server => 'legacy');
$source->safe_psql('postgres', q{
	CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
	INSERT INTO account SELECT g, 1000 FROM generate_series(1, 100) g;
	CREATE TABLE entry (n bigint PRIMARY KEY, side text);
});
$target->safe_psql('postgres', q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"retry_max_delay": "300ms"}');
	SELECT migrate_add_schema('j', 'public');
	SELECT migrate_start('j');
});
wait_job($target, 'j', 'streaming');
$target->safe_psql('postgres', q{SELECT migrate_accept('j', 'cutover', 'validation', 'the test compares')});

# the guard is on the target from the first try on
$target->safe_psql('postgres', q{CALL migrate_cutover('j', stop_before => 'open')});

# ------------------------------------------------------------------- writing

my $n = 0;
my %acknowledged;
my %maybe;

# One transaction on a side: '' acknowledged, the SQLSTATE, or 'lost'.  A server
# that is away must answer at once, or the test would wait for it.
sub write_to
{
	my ($side) = @_;
	my ($out, $err) = ('', '');
	$n++;
	my ($a, $b) = (1 + $n % 100, 1 + ($n * 7 + 3) % 100);
	my $rc = eval {
		$node[$side]->psql('postgres', "\\set VERBOSITY sqlstate\nSET lock_timeout = '10s'; BEGIN; UPDATE account SET balance = balance - 1 WHERE id = $a;"
			  . " UPDATE account SET balance = balance + 1 WHERE id = $b; INSERT INTO entry VALUES ($n, '$side'); COMMIT;",
			stdout => \$out, stderr => \$err, timeout => 30);
	};
	if (defined $rc && $rc == 0) { $acknowledged{$n} = $side; return ''; }
	return $1 if $err =~ /ERROR:\s+(\w{5})/;
	# its commit may have been lost on the way to us
	$maybe{$n} = $side;
	return 'lost';
}

# What each side says.  Both only if the source takes a write after the target
# has: they may just have changed places.
sub open_sides
{
	my @state = map { write_to($_) } 0, 1;
	$state[0] = write_to(0) if $state[1] eq '';
	return join(',', map { $_ eq '' ? 'open' : $_ } @state);
}

# A client of its own, that may be killed, or its server; its pid.
sub client
{
	my ($what, $more) = @_;
	my $pid = fork() // die;

	return $pid if $pid;
	open(STDOUT, '>', '/dev/null');
	open(STDERR, '>', '/dev/null');
	exec 'psql', '-Xq', '-d', $target->connstr('postgres'), '-c', "CALL migrate_$what('j'" . ($more // '') . ')';
	POSIX::_exit(1);
}

# A client that asks and may lose its server.
sub call
{
	my ($what) = @_;
	my ($out, $err) = ('', '');
	my $rc = eval { $target->psql('postgres', "CALL migrate_$what('j', max_downtime => '10s')", stdout => \$out, stderr => \$err, timeout => 60) };
	return ($rc // -1, $err);
}

# What must be so after whatever has happened.
sub settled
{
	my ($name) = @_;
	my $begin = time();
	my ($sides, $both) = ('', 0);
	my $ok = wait_for(sub {
		# it never may be both, whatever else is still under way
		$sides = open_sides();
		$both++ if $sides eq 'open,open';
		return $both || $sides eq 'open,25006' || $sides eq '25006,open';
	}, timeout => 60);
	my $took = time() - $begin;
	ok($ok && !$both, "$name: one side takes writes, the other refuses them") or diag("source,target: $sides");
	# one that was only asked for when all died is carried out now
	$ok = wait_for($target, "SELECT state IN ('streaming', 'cut_over') AND NOT EXISTS (SELECT FROM migrate.cutover WHERE state IN ('asked', 'running')) FROM migrate.job", timeout => 60);
	ok($ok, "$name: no cutover is under way");
	my $expected = job_state($target, 'j');
	is(open_sides(), $expected eq 'streaming' ? 'open,25006' : '25006,open', "$name: the job is $expected, and so it is");
	note(sprintf('%s: %s after %.1f s; %s', $name, $expected, $took,
		value($target, q{SELECT concat_ws(' ', direction, state, error, 'last step:', (SELECT step || ' ' || s.state FROM migrate.cutover_step s WHERE s.cutover_id = c.cutover_id ORDER BY step_no DESC LIMIT 1))
			FROM migrate.cutover c ORDER BY cutover_id DESC LIMIT 1})));
	return $expected;
}

# Until what was acknowledged is on both sides
sub nothing_lost
{
	my ($name) = @_;
	my $wanted = join(',', map { "($_, '$acknowledged{$_}')" } sort { $a <=> $b } keys %acknowledged);
	foreach my $i (0, 1)
	{
		ok(wait_for($node[$i], "SELECT count(*) = 0 FROM (VALUES $wanted) v(n, side) LEFT JOIN entry e USING (n, side) WHERE e.n IS NULL", timeout => 30),
			"$name: everything acknowledged is on the " . ($i ? 'target' : 'source'));
	}
	return;
}

# To the state that the next kill begins from; twice, so that both ways work.
sub go_to
{
	my ($state, $name) = @_;
	return if job_state($target, 'j') eq $state;
	my $what = $state eq 'cut_over' ? 'cutover' : 'rollback';
	my ($rc, $err) = call($what);
	is($rc, 0, "$name: a $what works") or diag($err);
	return;
}

# ------------------------------------------------ the process that is at a point

my @cutover_points = ((map { "cutover-$_" } qw(prechecks guard reverse arm validate lag fence locked drain check sequences commit committed open opened)),
	'reverse-slot');
my @rollback_points = ((map { "rollback-$_" } qw(close drain check sequences commit closed lifted)), 'reverse-written', 'reverse-committed');

sub kill_at
{
	my ($point, $what) = @_;
	my $before = kills_seen($target);
	set_fault($target, "$point:kill");
	# whoever comes after it is in force has been signalled, or is told by it
	wait_for($target, "SELECT current_setting('migrate.fault') = '$point:kill'");
	# the way back has something to carry
	my $sides = open_sides();
	my ($rc, $err) = call($what);
	my $hit = wait_for(sub { kills_seen($target) > $before }, timeout => 30);
	set_fault($target, '');
	ok($hit, "$point: a process died there") or diag($err);
	settled($point);
	nothing_lost($point);
	return;
}

foreach my $round (1 .. $rounds)
{
	foreach my $point (@cutover_points)
	{
		go_to('streaming', "before $point");
		kill_at($point, 'cutover');
	}
	foreach my $point (@rollback_points)
	{
		go_to('cut_over', "before $point");
		kill_at($point, 'rollback');
	}
}

# ------------------------------------------------------------------ the client

foreach my $what (qw(cutover rollback))
{
	go_to($what eq 'cutover' ? 'streaming' : 'cut_over', "before the client's death");
	my $pid = client($what);
	wait_for($target, "SELECT state IN ('cutting_over', 'rolling_back') FROM migrate.job", timeout => 20);
	kill 9, $pid;
	waitpid($pid, 0);
	is(settled("client of $what"), $what eq 'cutover' ? 'cut_over' : 'streaming', "$what: it comes to its end without its client");
	nothing_lost("client of $what");
}

# ------------------------------------------------------------- the servers

# A server dies when a hook says that a phase is reached
foreach my $which (qw(source target))
{
	foreach my $phase (qw(before_fence after_fence before_open))
	{
		foreach my $what ($phase eq 'before_fence' ? qw(cutover rollback) : 'cutover')
		{
			my $name = "$which dies at $phase of a $what";
			my $node = $which eq 'source' ? $source : $target;
			go_to($what eq 'cutover' ? 'streaming' : 'cut_over', $name);
			$target->safe_psql('postgres', "SELECT migrate_add_hook('j', '$phase', 'target', 'SELECT pg_sleep(1)')");
			my $pid = client($what, ", max_downtime => '10s'");
			wait_for($target, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'}, timeout => 20) or diag("$name: not reached");
			hard_restart($node);
			waitpid($pid, 0);
			settled($name);
			nothing_lost($name);
			$target->safe_psql('postgres', q{SELECT migrate_remove_hook('j', hook_id) FROM migrate.hook});
		}
	}
}

# At each step of a rollback: its client, and either server, while the job worker
# stands there
sub stands
{
	my ($step) = @_;
	return $step eq 'closed' ? q{SELECT closed FROM migrate.cutover WHERE state = 'running'} :
	  $step eq 'lifted' ? q{SELECT count(*) > 0 FROM migrate.cutover_step s JOIN migrate.cutover c USING (cutover_id) WHERE c.state = 'running' AND s.step = 'lift'} :
	  "SELECT count(*) > 0 FROM migrate.workers WHERE role = 'job' AND phase = '$step'";
}

foreach my $step (qw(close drain check sequences commit closed lifted))
{
	foreach my $who (qw(client source target))
	{
		my $name = "$who dies at $step of a rollback";
		go_to('cut_over', $name);
		set_fault($target, "rollback-$step:wait");
		wait_for($target, "SELECT current_setting('migrate.fault') = 'rollback-$step:wait'");
		my $pid = client('rollback', ", max_downtime => '20s'");
		ok(wait_for($target, stands($step), timeout => 30), "$name: it is there");
		if ($who eq 'client')
		{
			kill 9, $pid;
			set_fault($target, '');
		}
		elsif ($who eq 'source')
		{
			hard_kill($source);
			set_fault($target, '');
			start_again($source);
		}
		else
		{
			hard_kill($target);
			$target->append_conf('postgresql.conf', "migrate.fault = ''\n");
			start_again($target);
		}
		waitpid($pid, 0);
		settled($name);
		nothing_lost($name);
	}
}

# The source dies while its fence is being committed and the target with it
go_to('streaming', 'both servers');
{
	my $before = kills_seen($target);
	set_fault($target, 'cutover-committed:kill');
	call('cutover');
	wait_for(sub { kills_seen($target) > $before }, timeout => 30);
	hard_kill($source);
	set_fault($target, '');
	sleep(1);
	is(write_to(1), '25006', 'both servers: while nobody knows about the fence, the target stays closed');
	start_again($source);
	is(settled('both servers'), 'cut_over', 'both servers: the fence was there, so it went on');
	nothing_lost('both servers');
}
go_to('streaming', 'at the end');
go_to('cut_over', 'at the end');

# ------------------------------------------------------------------ the proof

my $position = value($target, 'SELECT pg_current_wal_flush_lsn()');
ok(wait_for($target, "SELECT bool_and(confirmed_flush_lsn >= '$position') FROM pg_replication_slots"), 'the way back has nothing left');
same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM $_", "$_: both sides are equal") for qw(account entry);
is(value($target, 'SELECT sum(balance) FROM account'), '100000', 'the total');
my $other = 0;
foreach my $line (split /\n/, value($target, 'SELECT n, side FROM entry'))
{
	my ($i, $side) = split /\|/, $line;
	$other++ if ($acknowledged{$i} // $maybe{$i} // '') ne $side;
}
is($other, 0, 'nothing is there that nobody wrote');
note(scalar(keys %acknowledged) . ' acknowledged, ' . scalar(keys %maybe) . ' unknown');
is(value($target, 'SELECT count(*) FROM migrate.dead_letter'), '0', 'no dead letter');
is(value($target, q{SELECT count(*) FROM pg_replication_slots}), '1', 'one slot of the way back');
my ($rc, $err) = (0, '');
$rc = $target->psql('postgres', q{CALL migrate_finish('j')}, stderr => \$err);
is($rc, 0, 'finish') or diag $err;
is(value($target, q{SELECT count(*) FROM pg_replication_slots}), '0', 'no slot is left');

done_testing();
