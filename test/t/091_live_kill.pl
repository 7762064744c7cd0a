# Copyright (c) 2026, the migrate authors; PostgreSQL License

# kill -9 on the way of a change, from the socket to the confirmation, under an
# application that never stops (perl/Workload.pm).  First at every named point
# between receive, spool, apply and confirm; then of each process and of both
# servers at random.  Each time the job goes on by itself: a commit that is made
# after the kill arrives.  At the end nothing is lost, nothing is there twice.
#
# MIGRATE_LIVE_KILLS: kills at random (default 8); MIGRATE_POINT_ROUNDS: how
# often every point has its turn (default 1); MIGRATE_SEED.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Workload;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $kills = $ENV{MIGRATE_LIVE_KILLS} // 8;
my $rounds = $ENV{MIGRATE_POINT_ROUNDS} // 1;
srand($ENV{MIGRATE_SEED} || 42);

# on the way of a change, in its order; and what happens once on the way to it
my @points = qw(capture-received capture-spooled capture-committed capture-confirmed
  apply-begin apply-set apply-written apply-committed);
my @once = qw(stream-published stream-slot-made stream-joined job-planned loader-claimed before-commit after-commit
  live-settled live-recheck job-indexed);

my $source = new_source('source', logical => 1);
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');
my $w = Workload->new(source => $source, target => $target, rate => 150, rows => 12000);
$w->fill;
$w->start_writers;

# What comes to the point now dies there; next: the point after that, so that
# it is not passed meanwhile.
sub kill_at
{
	my ($point, $next, $trigger) = @_;
	my $before = kills_seen($target);
	my $until = time() + 30;

	set_fault($target, "$point:kill");
	$trigger->() if $trigger;
	sleep(0.02) while kills_seen($target) == $before && time() < $until && !($next && (job_state($target, 'j') // '') eq 'streaming');
	my $hit = kills_seen($target) > $before;
	set_fault($target, $next ? "$next:kill" : '');
	return $hit;
}

$w->define('j', options => '"workers": 2, "chunk_blocks": 20, "chunk_time": "50ms", "batch_rows": 200, "rows_per_second": 8000,'
	. ' "retry_max_delay": "300ms", "retry_time": "5min"');
$w->start_watch('j');

# --- before there is anything to stream
my $passed = 0;
foreach my $i (0 .. $#once)
{
	my $start = $i == 0 ? sub { $target->psql('postgres', q{SELECT migrate_start('j')}) } : undef;
	# what is passed once may have been passed while its turn came
	my $hit = kill_at($once[$i], $once[ $i + 1 ], $start);
	note("$once[$i]: " . ($hit ? 'a process died there' : 'passed before'));
	$passed += $hit;
	last if (job_state($target, 'j') // '') eq 'streaming';
}
cmp_ok($passed, '>', 0, 'processes died on the way to streaming');
set_fault($target, '');
wait_job($target, 'j', 'streaming', timeout => 120) or do { done_testing(); exit; };
ok($w->mark('j'), 'streaming after kills on the way');

# --- between receive and confirm
foreach my $round (1 .. $rounds)
{
	foreach my $point (@points)
	{
		ok(kill_at($point), "$point: a process died there");
		ok($w->mark('j'), "$point: it goes on by itself, what was committed after that arrives");
	}
}

# --- at random
my %did;
foreach my $i (1 .. $kills)
{
	$w->wait_work(20);
	sleep(rand(0.3));
	my $what = random_kill($target, $source, qw(capture apply job walsender connection target source));
	$did{$what}++;
	# often the next kill comes before all is well again
	next if rand() < 0.4;
	ok($w->mark('j'), "after a kill of $what it goes on by itself") or last;
}
diag('kills at random: ' . join(', ', map { "$_ x $did{$_}" } sort keys %did));

$w->drain('j');
is(job_state($target, 'j'), 'streaming', 'still streaming');
$w->check('j');
is($target->safe_psql('postgres', q{SELECT count(*) FROM migrate.apply_position a JOIN migrate.job_stream USING (job_id)
	JOIN migrate.stream_position s USING (stream_id) WHERE a.applied_lsn > s.spooled_lsn}), '0', 'nothing is applied that is not in the spool');
my $confirmed = $source->safe_psql('postgres', 'SELECT confirmed_flush_lsn FROM pg_replication_slots');
is($target->safe_psql('postgres', "SELECT spooled_lsn >= '$confirmed' FROM migrate.stream_position"), 't',
	'nothing was confirmed that is not in the spool');
$w->drop('j');
$w->check_clean;

done_testing();
