
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Writers that are between two of many tables while all of them are to be
# locked: each holds one that we wait for and waits for one that we have got,
# until we let go.  Cutover and rollback get their locks all the same, and no
# writer meets anything but 25006.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $tables = 100;
my $writers = 4;
my $source = new_source('source', logical => 1);
my $target = new_target('target', logical => 1, preload => 1);

connect_source($target, $source, server => 'legacy');
$source->safe_psql('postgres', join '', map { "CREATE TABLE t_$_ (id int PRIMARY KEY, n int NOT NULL); INSERT INTO t_$_ SELECT g, 0 FROM generate_series(1, 20) g;" } 1 .. $tables);
$target->safe_psql('postgres', q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"fence_timeout": "5s"}');
	SELECT migrate_add_schema('j', 'public');
	SELECT migrate_start('j');
});
wait_job($target, 'j', 'streaming');
$target->safe_psql('postgres', q{SELECT count(*) FROM migrate_validate('j')});
ok(wait_for($target, q{SELECT go FROM migrate.readiness}), 'ready');

# Two tables a transaction, in any order, until it is refused.  The rows of each
# writer are its own, so that writers do not wait for each other.
sub writer
{
	my ($node, $id) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $pid = fork() // die;
	if ($pid == 0)
	{
		open(STDERR, '>', "$dir/err");
		exec 'psql', '-Xq', '-v', 'VERBOSITY=sqlstate', '-d', $node->connstr('postgres'), '-c', qq{
			DO \$\$
			BEGIN
				LOOP
					EXECUTE format('UPDATE t_%s SET n = n + 1 WHERE id = $id', 1 + floor(random() * $tables));
					PERFORM pg_sleep(0.001);
					EXECUTE format('UPDATE t_%s SET n = n + 1 WHERE id = $id', 1 + floor(random() * $tables));
					COMMIT;
					PERFORM pg_sleep(0.002);
				END LOOP;
			END \$\$};
		exit 1;
	}
	return [ $pid, "$dir/err" ];
}

my $sum = join ' + ', map { "(SELECT sum(n) FROM t_$_)" } 1 .. $tables;

foreach my $turn ([ 'cutover', $source ], [ 'rollback', $target ])
{
	my ($what, $node) = @$turn;
	my @writers = map { writer($node, $_) } 1 .. $writers;
	ok(wait_for($node, qq{SELECT count(*) >= $writers FROM pg_stat_activity WHERE backend_type = 'client backend' AND query LIKE '%random()%' AND pid <> pg_backend_pid()}),
		"$what: the writers write");
	my ($rc, $out, $err) = $target->psql('postgres', "CALL migrate_$what('j')");
	is($rc, 0, "$what among writers to $tables tables") or die $err;
	foreach my $w (@writers)
	{
		waitpid($w->[0], 0);
		like(slurp_file($w->[1]), qr/25006/, "$what: a writer was refused, and by nothing else");
	}
}
ok(wait_job($target, 'j', 'streaming'), 'back');
my $there = value($source, "SELECT $sum");
cmp_ok($there, '>', 0, 'something was written');
is(value($target, "SELECT $sum"), $there, 'both sides are equal');
done_testing();
