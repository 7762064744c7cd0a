# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Every kind of key, by every chunk method and transport, between two servers;
# at the end an independent comparison of sorted COPY output, our own
# validation, conservation, and each source row read exactly once.

use strict;
use warnings;
use utf8;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;

my $source = new_source('source');
my $target = new_target('target');

# Name, definition of the table's key, how to fill it from g, and whether it
# can be cut into ranges of its key.
my @tables = (
	[ 'k_int', 'id int PRIMARY KEY', 'g' ],
	[ 'k_bigint', 'id bigint PRIMARY KEY', 'g * 4294967311' ],
	[ 'k_uuid', 'id uuid PRIMARY KEY', 'md5(g::text)::uuid' ],
	[ 'k_text', 'id text PRIMARY KEY',
		q{substr('aBäZz _-"''\\,', 1 + g % 12, 1) || md5(g::text)} ],
	[ 'k_time', 'id timestamptz PRIMARY KEY', q{'2020-01-01Z'::timestamptz + g * interval '1 s 1 us'} ],
	[ 'k_numeric', 'id numeric PRIMARY KEY', 'g / 7.0' ]);
my $rows = 12_000;

foreach my $t (@tables)
{
	my ($name, $def, $fill) = @$t;
	$source->safe_psql('postgres', qq{
		CREATE TABLE $name ($def, v text, n numeric(12, 2), at timestamptz);
		INSERT INTO $name SELECT $fill, repeat('x', g % 50), g / 3.0, 'epoch'::timestamptz + g * interval '1 s'
			FROM generate_series(1, $rows) g;
	});
}
$source->safe_psql('postgres', qq{
	-- one tenant has nearly all rows: its range is cut by the next columns
	CREATE TABLE k_composite (tenant text, id int, part date, v text, PRIMARY KEY (tenant, id, part));
	INSERT INTO k_composite SELECT CASE WHEN g % 100 = 0 THEN 't' || g ELSE 'heavy' END, g,
		'2020-01-01'::date + g % 1000, 'v' || g FROM generate_series(1, $rows) g;
	CREATE TABLE k_none (a int, b text);
	INSERT INTO k_none SELECT g % 10, NULLIF('b' || g % 5, 'b0') FROM generate_series(1, $rows) g;
	CREATE TABLE empty (id int PRIMARY KEY, v text);
	CREATE TABLE no_columns ();
	INSERT INTO no_columns DEFAULT VALUES;
	INSERT INTO no_columns DEFAULT VALUES;
	CREATE TABLE dropped (gone int, id int PRIMARY KEY, gone2 text, v text, gone3 numeric);
	INSERT INTO dropped SELECT g, g, 'x', 'v' || g, g FROM generate_series(1, 1000) g;
	ALTER TABLE dropped DROP gone, DROP gone2, DROP gone3;
	CREATE TABLE "Größe ""x""" ("Id 1" int PRIMARY KEY, "select" text, "naïve col" text);
	INSERT INTO "Größe ""x""" SELECT g, 's' || g, 'ü' || g FROM generate_series(1, 1000) g;
	CREATE TABLE parted (region text, id int, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
	CREATE TABLE parted_a PARTITION OF parted FOR VALUES IN ('a');
	CREATE TABLE parted_b PARTITION OF parted FOR VALUES IN ('b') PARTITION BY RANGE (id);
	CREATE TABLE parted_b1 PARTITION OF parted_b FOR VALUES FROM (0) TO (3000);
	CREATE TABLE parted_b2 PARTITION OF parted_b FOR VALUES FROM (3000) TO (100000);
	INSERT INTO parted SELECT CASE WHEN g % 3 = 0 THEN 'a' ELSE 'b' END, g, 'p' || g FROM generate_series(1, $rows) g;
	CREATE TABLE big_values (id int PRIMARY KEY, v text, b bytea);
	INSERT INTO big_values SELECT g, (SELECT string_agg(md5(g::text || i), '') FROM generate_series(1, 5000) i),
		NULLIF(decode(repeat(md5(g::text), 200), 'hex'), '') FROM generate_series(1, 60) g;
});

# Compare every target table with its source, both ways.
sub check_all
{
	my ($job, $schema, $what) = @_;
	my $names = $source->safe_psql('postgres', q{
		SELECT string_agg(quote_ident(relname), E'\n' ORDER BY relname) FROM pg_class c
		WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition});
	foreach my $name (split /\n/, $names)
	{
		same_rows($source, "SELECT * FROM public.$name", $target, "SELECT * FROM $schema.$name",
			"$what: $name is equal");
	}
	is($target->safe_psql('postgres',
			"SELECT target, status, source_rows, target_rows, mismatches FROM migrate_validate('$job') WHERE matched IS NOT TRUE"),
		'', "$what: validation finds every table equal");
	is($target->safe_psql('postgres', qq{
			SELECT count(*) FROM migrate.chunk c JOIN migrate.job j USING (job_id)
			WHERE j.job = '$job' AND c.state <> 'done'}), '0', "$what: no chunk is left");
	is($target->safe_psql('postgres', qq{
			SELECT mapping_id, sum(rows_read), sum(rows_written) FROM migrate.chunk_mapping JOIN migrate.job j USING (job_id)
			WHERE j.job = '$job' GROUP BY 1 HAVING sum(rows_read) <> sum(rows_written)}),
		'', "$what: each row read once and written once");
}

connect_source($target, $source, server => 'legacy');
foreach my $case (
	[ 'block', 'copy', '{"chunking": "block", "chunk_blocks": 16}' ],
	[ 'key', 'copy', '{"chunking": "key", "chunk_rows": 1000, "batch_rows": 300}' ],
	[ 'whole', 'copy', '{"chunking": "whole"}' ],
	[ 'fdw', 'fdw', '{"transport": "fdw", "chunking": "key", "chunk_rows": 2000}' ])
{
	my ($method, $transport, $options) = @$case;
	my ($job, $schema) = ("j_$method", "to_$method");
	$target->safe_psql('postgres', qq{
		SELECT migrate_create_job('$job', server => 'legacy', options => '$options');
		SELECT migrate_import('$job', 'public', 'from_$method');
		SELECT migrate_add_schema('$job', 'public', '$schema');
		SELECT migrate_start('$job');
	});
	wait_job($target, $job, 'copied');
	check_all($job, $schema, "$method by $transport");
	if ($method ne 'whole')
	{
		cmp_ok($target->safe_psql('postgres', qq{
				SELECT count(*) FROM migrate.chunk c JOIN migrate.source_table s USING (source_id)
				JOIN migrate.job j ON j.job_id = s.job_id WHERE j.job = '$job' AND s.source LIKE '%k_composite'}),
			'>', 1, "$method by $transport: the skewed table was read in several chunks");
	}
	is($target->safe_psql('postgres', qq{
			SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
			WHERE nspname = '$schema' AND relname LIKE 'k\\_%' AND relkind IN ('r', 'p')
			AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = c.oid AND contype = 'p')}),
		'1', "$method by $transport: every key is built (k_none has none)");
}

done_testing();
