# Copyright (c) 2026, the migrate authors; PostgreSQL License

# kill -9 of everything, at random moments of a copy of three million rows,
# tens of times in one run.  At the end: both sides are equal, no row is there
# twice, what was read is mapped, filtered or dead, and a kill has repeated at
# most one chunk a loader.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;
use Time::HiRes qw(sleep);

my $kills = $ENV{MIGRATE_KILLS} || 30;
my $rows = $ENV{MIGRATE_KILL_ROWS} || 3_000_000;
my $workers = 2;

my $source = new_source('source', conf => 'max_connections = 60');
my $target = new_target('target', preload => 1);

$source->safe_psql('postgres', qq{
	CREATE TABLE plain (id int PRIMARY KEY, v int, t text);
	INSERT INTO plain SELECT g, g % 1000, 'row ' || g FROM generate_series(1, $rows) g;
	CREATE TABLE mapped (a text, b int, v numeric, PRIMARY KEY (a, b));
	INSERT INTO mapped SELECT 'k' || g % 97, g, g / 4.0 FROM generate_series(1, $rows / 10) g;
	CREATE TABLE bare (v int);
	INSERT INTO bare SELECT g % 100 FROM generate_series(1, $rows / 10) g;
	VACUUM ANALYZE;
});
connect_source($target, $source, server => 'legacy');

# A mapped table into which rows go through an index, so that the writer that
# looks rows up is killed as well; a row in 1,000 is refused.
$target->safe_psql('postgres', qq{
	CREATE SCHEMA shop;
	CREATE TABLE shop.mapped (a text, b bigint, cents bigint CHECK (b % 1000 <> 7), PRIMARY KEY (a, b));
	SELECT migrate_create_job('j', server => 'legacy',
		options => '{"workers": $workers, "chunk_time": "200ms", "chunk_blocks": 64, "chunk_rows": 2000, "batch_rows": 1000,
			"rows_per_second": 100000, "max_dead_letters": -1, "retry_time": "5min", "retry_max_delay": "500ms"}');
	SELECT migrate_add_table('j', 'public.plain', 'shop.plain');
	SELECT migrate_add_table('j', 'public.bare', 'shop.bare');
	SELECT migrate_add_table('j', 'public.mapped', 'shop.mapped', columns => '{"cents": "(v * 100)::bigint"}');
	SELECT migrate_start('j');
});

srand($ENV{MIGRATE_SEED} || 42);
my %done;
my $n = 0;
for my $i (1 .. $kills)
{
	# until some work was done since the last kill: a position, not a time
	my $before = eval { value($target, q{SELECT count(*) FROM migrate.chunk WHERE state = 'done'}) } // 0;
	my $goal = $before + 1 + int(rand(4));
	last unless wait_for($target,
		"SELECT count(*) >= $goal OR (SELECT state FROM migrate.job) IN ('indexing', 'copied') FROM migrate.chunk WHERE state = 'done'");
	last if job_state($target, 'j') =~ /^(indexing|copied)$/;
	sleep(rand(0.2));
	my $what = random_kill($target, $source);
	$done{$what}++;
	$n++ if $what;
}
diag("$n kills: " . join(', ', map { "$_ x $done{$_}" } sort keys %done));
cmp_ok($n, '>=', $kills * 0.6, "most of the kills hit a copy that was running");
is(scalar(grep { $done{$_} } qw(loader job target source connection)), 5, 'every kind of kill happened')
  if $kills >= 30;

$target->safe_psql('postgres', q{SELECT migrate_alter_job('j', '{"rows_per_second": 0}')});
wait_job($target, 'j', 'copied', timeout => 300);

same_rows($source, 'SELECT * FROM plain', $target, 'SELECT * FROM shop.plain', 'plain table equal');
same_rows($source, 'SELECT * FROM bare', $target, 'SELECT * FROM shop.bare', 'table without a key equal');
same_rows($source, 'SELECT a, b::bigint, (v * 100)::bigint FROM mapped WHERE b % 1000 <> 7',
	$target, 'SELECT * FROM shop.mapped', 'mapped table equal, but for the refused rows');
is(value($target, q{SELECT count(*) FROM migrate.dead_letters WHERE state = 'open'}),
	value($source, 'SELECT count(*) FROM mapped WHERE b % 1000 = 7'), 'each refused row is one dead letter');
is(value($target, q{SELECT count(*) FROM (SELECT DISTINCT key FROM migrate.dead_letters) d}),
	value($source, 'SELECT count(*) FROM mapped WHERE b % 1000 = 7'), '... and none is there twice');

is(value($target, q{
		SELECT string_agg(format('%s %s %s', target, sum_read, sum_out), E'\n') FROM (
			SELECT m.target, sum(c.rows_read) AS sum_read, sum(c.rows_mapped + c.rows_filtered + c.rows_dead) AS sum_out
			FROM migrate.chunk_mapping c JOIN migrate.mapping m USING (mapping_id) GROUP BY 1) x
		WHERE sum_read <> sum_out}), '', 'read = mapped + filtered + dead');
is(value($target, q{
		SELECT string_agg(m.target || ' ' || c.sum, ', ' ORDER BY m.target) FROM migrate.mapping m
		JOIN (SELECT mapping_id, sum(rows_read) FROM migrate.chunk_mapping GROUP BY 1) c USING (mapping_id)}),
	join(', ', 'shop.bare ' . $rows / 10, 'shop.mapped ' . $rows / 10, "shop.plain $rows"),
	'the chunks that count have read each row once');

# A kill stops at most the chunk at hand of each loader; a killed connection
# or source that of each as well.
my $repeated = value($target, 'SELECT coalesce(sum(attempt - 1), 0) FROM migrate.chunk');
cmp_ok($repeated, '<=', $n * $workers, "$n kills repeated $repeated chunks, at most one a loader each");
cmp_ok($repeated, '>', 0, 'and at least one kill met a chunk');
is(value($target, q{SELECT count(*) FROM migrate.chunk WHERE state <> 'done'}), '0', 'no chunk is left over');
is(value($target, q{SELECT count(*) > 0 FROM migrate.events WHERE kind = 'restart'}), 't', 'and the events tell that workers were cut short');
is(value($target, q{SELECT count(*) FROM migrate_validate('j') WHERE target IN ('shop.plain', 'shop.bare') AND NOT matched}),
	'0', 'validation agrees');

done_testing();
