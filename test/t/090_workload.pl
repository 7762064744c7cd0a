# Copyright (c) 2026, the migrate authors; PostgreSQL License

# An application that never stops writing (see perl/Workload.pm) is migrated,
# round after round, each with other sizes of chunks and batches: through the
# whole copy, the building of keys, the catch-up and a while of streaming.  At
# the end of each round everything is equal through every form of a mapping,
# and no commit that could be seen on the target was a state that the source
# never had.
#
# MIGRATE_ROUNDS: rounds (default 2); MIGRATE_ROUND_WORK: changes of accounts
# while streaming in each (default 400).

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Workload;
use Test::More;

my $rounds = $ENV{MIGRATE_ROUNDS} || 2;
my $work = $ENV{MIGRATE_ROUND_WORK} || 400;

my $source = new_source('source', logical => 1);
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');
my $w = Workload->new(source => $source, target => $target);
$w->fill;

my @ways = (
	'"workers": 2, "chunk_blocks": 20, "chunk_time": "100ms", "batch_rows": 300, "rows_per_second": 20000',
	'"workers": 1, "chunking": "key", "chunk_rows": 500, "chunk_time": "50ms", "rows_per_second": 15000, "apply_rows": 40',
	'"workers": 3, "chunk_blocks": 5, "rows_per_second": 20000, "apply_bytes": "4kB", "batch_rows": 50',
	'"workers": 2, "chunk_blocks": 100, "apply_rows": 1',
	'"workers": 2, "chunk_blocks": 50, "rows_per_second": 10000, "apply_latency": "10ms", "spool_limit": "1MB"');

foreach my $round (1 .. $rounds)
{
	my $job = "r$round";

	$w->start_writers;
	$w->define($job, options => $ways[ ($round - 1) % @ways ]);
	$w->start_watch($job);
	my $before = $w->work;
	$target->safe_psql('postgres', "SELECT migrate_start('$job')");
	wait_job($target, $job, 'streaming', timeout => 120) or last;
	note($w->work - $before . ' changes of accounts until streaming');
	ok($w->wait_work($work), "$job: the writers go on");
	$w->drain($job);
	$w->check($job);
	$w->drop($job);
	last unless Test::More->builder->is_passing;
}
$w->check_clean;

done_testing();
