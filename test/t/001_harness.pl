# The harness itself: two servers, and a foreign server between them.
use strict;
use warnings;
use MigrateTest;
use Test::More;

my $source = new_source('source');
my $target = new_target('target', preload => 0, extension => 0);

$source->safe_psql('postgres',
	"CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 1000) g");
$target->safe_psql('postgres', 'CREATE EXTENSION postgres_fdw');
connect_source($target, $source, server => 'legacy');
$target->safe_psql('postgres',
	"CREATE SCHEMA legacy; IMPORT FOREIGN SCHEMA public FROM SERVER legacy INTO legacy; CREATE TABLE t AS SELECT * FROM legacy.t");

same_rows($target, 'SELECT * FROM t', $source, 'SELECT * FROM t', 'rows read across the server');
ok(!rows_equal($target, 'SELECT * FROM t WHERE id < 1000', $source, 'SELECT * FROM t'),
	'a missing row is seen');

hard_restart($source);
is($source->safe_psql('postgres', 'SELECT count(*) FROM t'), '1000', 'source lives after kill -9');
ok(wait_for($target, 'SELECT count(*) = 1000 FROM legacy.t'), 'target reconnects');

is(kill9_backend($target, 'no such role'), 0, 'no backend, nothing killed');

my $old = value($target, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
is(kill9_backend($target, "checkpointer"), $old, "a process killed by name");
ok(wait_for($target, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'checkpointer' AND pid <> $old"),
	"the server restarts its processes");

SKIP:
{
	skip 'no PostgreSQL 13 (make matrix VERSIONS=13)', 2 unless $ENV{MIGRATE_SOURCE13};
	my $old = new_source('old', install => $ENV{MIGRATE_SOURCE13});
	like($old->safe_psql('postgres', 'SHOW server_version'), qr/^13\b/, 'a source of version 13');
	connect_source($target, $old, server => 'old');
	$target->safe_psql('postgres', 'CREATE FOREIGN TABLE roles (oid oid) SERVER old OPTIONS (schema_name $$pg_catalog$$, table_name $$pg_roles$$)');
	is($target->safe_psql('postgres', 'SELECT count(*) > 0 FROM roles'), 't', 'and it can be read');
}

done_testing();
