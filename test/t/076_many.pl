# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Many small tables, as most schemas have them: what a job does once a table
# must be done right three hundred times over, in one transaction where it is
# defined, by several workers where it runs.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use SchemaDump;
use PostgreSQL::Test::Utils;
use Test::More;

my $n = $ENV{MIGRATE_MANY} || 300;
my $source = new_source('source', conf => 'max_locks_per_transaction = 512');
my $target = new_target('target', conf => 'max_locks_per_transaction = 512');
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }

# each with a key, an index, some with a foreign key to the one before
my $ddl = 'CREATE SCHEMA many;';
foreach my $i (1 .. $n)
{
	$ddl .= "CREATE TABLE many.t$i (id int PRIMARY KEY, name text NOT NULL DEFAULT 'n', at timestamptz, before int);"
	  . "CREATE INDEX ON many.t$i (name);"
	  . "INSERT INTO many.t$i SELECT g, 'name ' || g, '2020-01-01 00:00+00'::timestamptz + g * interval '1 h', 1 FROM generate_series(1, @{[ 1 + $i % 5 ]}) g;\n";
	$ddl .= "ALTER TABLE many.t$i ADD FOREIGN KEY (before) REFERENCES many.t" . ($i - 1) . ';' if $i % 3 == 0;
	$ddl .= "COMMENT ON TABLE many.t$i IS 'number $i';" if $i % 10 == 0;
}
$source->safe_psql('postgres', $ddl);

sql(q{SELECT migrate_create_job('many', server => 'legacy', options => '{"workers": 4}')});
is(sql(q{SELECT migrate_add_schema('many', 'many')}), $n, 'every table is added by one call');
is(sql(q{SELECT migrate_add_schema('many', 'many')}), '0', 'and none by the next');
is(sql(q{SELECT count(*) FROM migrate_preflight('many') WHERE status = 'fail'}), '0', 'preflight finds nothing in the way');
sql(q{SELECT migrate_start('many')});
wait_job($target, 'many', 'copied', timeout => 600);

is(sql(q{SELECT count(*) FROM migrate.post_step s JOIN migrate.job USING (job_id) WHERE job = 'many' AND s.state <> 'done'}), '0', 'every step is done');
is(sql(q{SELECT count(*), bool_and(matched) FROM migrate_validate('many')}), "$n|t", 'every table is validated');

# all rows of all tables, without the extension
my $all = join(' UNION ALL ', map { "SELECT $_, id, name, at, before FROM many.t$_" } 1 .. $n);
same_rows($source, $all, $target, $all, 'every row is there');
my ($missing, $extra) = dump_difference([ schema_dump($source, 'postgres') ], [ schema_dump($target, 'postgres', without => ['legacy']) ]);
is(join("\n", map { $_->{text} } @$missing, @$extra), '', 'and every definition');

# once more from the beginning, and away
sql(q{SELECT migrate_recopy('many', 'many.t7')});
wait_job($target, 'many', 'copied', timeout => 600);
same_rows($source, 'SELECT * FROM many.t7', $target, 'SELECT * FROM many.t7', 'one is copied again');
sql(q{SELECT migrate_drop_job('many')});
is(sql(q{SELECT count(*) FROM pg_foreign_table}), '0', 'with the job its foreign tables go');
is(sql(q{SELECT count(*) FROM pg_tables WHERE schemaname = 'many'}), $n, 'and the tables stay');

done_testing();
