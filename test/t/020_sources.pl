
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Sources that are not like the target: an ICU collation, another encoding,
# bytes that are no text here, declared types that differ, views, inheritance,
# few privileges.  By every chunk method and transport that can read them.

use strict;
use warnings;
use utf8;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;

my $source = new_source('source', icu => 'en');
my $target = new_target('target');
sub src { $source->safe_psql('postgres', @_) }
sub sql { $target->safe_psql('postgres', @_) }

src(q{
	CREATE TABLE words (w text PRIMARY KEY, n int);
	INSERT INTO words SELECT substr('aAbBzZéÉ_-', 1 + g % 10, 1) || md5(g::text), g FROM generate_series(1, 8000) g;
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
	CREATE TABLE zoo (id int PRIMARY KEY, c char(10), m mood, i int, n numeric(20, 5), f float8, b bytea,
		j jsonb, a text[], r int4range, iv interval, at timestamptz, x xml, cl regclass, mo money, bits varbit, ip inet);
	INSERT INTO zoo SELECT g, 'c' || g, (enum_range(NULL::mood))[1 + g % 3], g, g / 7.0, 1 / (g + 0.1)::float8,
		decode(md5(g::text), 'hex'), jsonb_build_object('g', g, 'é', E'\\\\n'), ARRAY['a', NULL, 'b,"' || g],
		int4range(g, g + 5), g * interval '-1 day 3 min', '2024-01-01Z'::timestamptz + g * interval '1 h',
		'<a>é</a>', 'pg_class', g::money, g::bit(20), '10.0.0.1'::inet + g FROM generate_series(1, 1000) g;
	INSERT INTO zoo (id) VALUES (0);
	CREATE TABLE inh (id int PRIMARY KEY, v text);
	CREATE TABLE inh_c (w int) INHERITS (inh);
	CREATE TABLE inh_cc () INHERITS (inh_c);
	INSERT INTO inh SELECT g, 'p' FROM generate_series(1, 300) g;
	INSERT INTO inh_c SELECT g, 'c', g FROM generate_series(1001, 1300) g;
	INSERT INTO inh_cc SELECT g, 'cc', g FROM generate_series(2001, 2300) g;
	CREATE VIEW vw AS SELECT n AS id, w FROM words;
	CREATE MATERIALIZED VIEW mv AS SELECT n AS id, w FROM words;
});
connect_source($target, $source, server => 'legacy');

# --- foreign tables that declare what the source does not have
sql(q{
	CREATE SCHEMA src; CREATE SCHEMA t;
	CREATE FOREIGN TABLE src.words (n int, w text) SERVER legacy OPTIONS (schema_name 'public');
	CREATE FOREIGN TABLE src.zoo (emo text OPTIONS (column_name 'm'), id bigint, c text, gone int, i text, n text, f float8, b bytea,
		j text, a text[], r int4range, iv interval, at timestamptz, x text, cl text, mo text, bits varbit, ip text)
		SERVER legacy OPTIONS (schema_name 'public');
	ALTER FOREIGN TABLE src.zoo DROP COLUMN gone;
	CREATE FOREIGN TABLE src.inh (id int, v text) SERVER legacy OPTIONS (schema_name 'public');
	CREATE FOREIGN TABLE src.vw (id int, w text) SERVER legacy OPTIONS (schema_name 'public');
	CREATE FOREIGN TABLE src.mv (id int, w text) SERVER legacy OPTIONS (schema_name 'public');
	CREATE FOREIGN TABLE src.none () SERVER legacy OPTIONS (schema_name 'public', table_name 'words');
});
my %key = (words => '{"w": "w"}', zoo => '{"id": "id"}', inh => '{"id": "id"}', vw => '{"id": "id"}', mv => '{"id": "id"}');
foreach my $way ([ 'auto', 'auto' ], [ 'copy', 'key' ], [ 'copy', 'whole' ], [ 'fdw', 'key' ])
{
	my ($transport, $chunking) = @$way;
	my $job = "${transport}_$chunking";
	sql(qq{CREATE SCHEMA $job; SELECT migrate_create_job('$job', server => 'legacy',
		options => '{"transport": "$transport", "chunking": "$chunking", "chunk_rows": 1000, "chunk_blocks": 16}')});
	foreach my $name (sort keys %key)
	{
		my ($k) = $key{$name} =~ /"(\w+)"/;
		sql(qq{CREATE TABLE $job.$name (LIKE src.$name); ALTER TABLE $job.$name ADD PRIMARY KEY ($k);
			SELECT migrate_add_table('$job', 'src.$name', '$job.$name', key => '$key{$name}')});
	}
	sql(qq{SELECT migrate_start('$job')});
	wait_job($target, $job, 'copied');
	foreach my $name (sort keys %key)
	{
		# postgres_fdw is the independent reader
		same_rows($target, "SELECT * FROM src.$name", $target, "SELECT * FROM $job.$name", "$job: $name");
	}
	is(sql(qq{SELECT count(*) FROM migrate.dead_letters WHERE job = '$job'}), '0', "$job: nothing is dead");
	is(sql(qq{SELECT string_agg(n::text, ' ' ORDER BY source) FROM (SELECT source, sum(rows_read) AS n
		FROM migrate.chunks WHERE job = '$job' GROUP BY 1) s}), '900 8000 8000 8000 1001', "$job: each row is read once");
	sql(qq{SELECT migrate_cancel('$job')});
}
is(sql('SELECT count(*) FROM auto_auto.zoo WHERE length(c) = 10'), '1000', 'P7: char(10) to text keeps its blanks');
my $leaves = sql(q{SELECT count(DISTINCT relation) FROM migrate.chunks WHERE job = 'auto_auto' AND relation LIKE '%inh%'});
is($leaves, '3', 'an inheritance tree is read leaf by leaf');
cmp_ok(sql(q{SELECT count(*) FROM migrate.chunks WHERE job = 'copy_key' AND relation LIKE '%words'}), '>=', 4, 'text keys are cut in the order of the source');

# --- a source in LATIN1
my $latin = new_source('latin', encoding => 'LATIN1');
$latin->safe_psql('postgres', q{SET client_encoding = 'UTF8'; CREATE TABLE "täble" ("clé" text PRIMARY KEY, v char(4));
	INSERT INTO "täble" SELECT 'é' || g || 'ÿ', 'à' FROM generate_series(1, 2000) g});
connect_source($target, $latin, server => 'latin');
sql(q{SELECT migrate_create_job('latin', server => 'latin'); SELECT migrate_add_schema('latin', 'public', 'lt'); SELECT migrate_start('latin')});
wait_job($target, 'latin', 'copied');
is(sql(q{SELECT count(*), min(length("clé")), bool_and(v = 'à' AND "clé" LIKE 'é%ÿ') FROM lt."täble"}), '2000|3|t', 'LATIN1 is converted');

# --- a source that says nothing of its encoding, with bytes that are no UTF8
my $ascii = new_source('ascii', encoding => 'SQL_ASCII');
$ascii->safe_psql('postgres', q{CREATE TABLE b (id int PRIMARY KEY, t text);
	INSERT INTO b SELECT g, CASE WHEN g IN (1, 777, 3456, 5000) THEN E'bad\xff' || g ELSE E'good \xc3\xa9' || g END FROM generate_series(1, 5000) g;
	CREATE TABLE bk (k text PRIMARY KEY); INSERT INTO bk SELECT CASE g WHEN 50 THEN E'\xfe' ELSE 'k' || g END FROM generate_series(1, 100) g});
connect_source($target, $ascii, server => 'ascii');
foreach my $chunking ('block', 'key')
{
	sql(qq{SELECT migrate_create_job('a_$chunking', server => 'ascii', options => '{"chunking": "$chunking", "chunk_rows": 2000, "chunk_blocks": 16}');
		SELECT migrate_add_table('a_$chunking', 'public.b', 'a_$chunking.b')});
	sql(qq{SELECT migrate_add_table('a_$chunking', 'public.bk', 'a_$chunking.bk')}) if $chunking eq 'block';
	sql(qq{SELECT migrate_start('a_$chunking')});
	wait_job($target, "a_$chunking", 'copied');
	is(sql("SELECT count(*), count(*) FILTER (WHERE t LIKE 'good é%') FROM a_$chunking.b"), '4996|4996', "$chunking: what is text is there");
	is(sql(qq{SELECT string_agg(key->>'id', ' ' ORDER BY (key->>'id')::int) FROM migrate.dead_letters
		WHERE job = 'a_$chunking' AND target LIKE '%.b' AND stage = 'read' AND sqlstate = '22021'}), '1 777 3456 5000', "$chunking: what is not has a letter with its key");
	is(sql(qq{SELECT raw->>'at', raw->'columns'->>'t' FROM migrate.dead_letters WHERE job = 'a_$chunking' AND key->>'id' = '777'}),
		'(4,37) of public.b|\x626164ff373737', "$chunking: and where it is, as bytes");
}
is(sql(q{SELECT count(*), min(raw->'columns'->>'k') FROM migrate.dead_letters WHERE job = 'a_block' AND target LIKE '%.bk' AND key IS NULL}),
	'1|\xfe', 'a key that cannot be read either');
is(sql('SELECT count(*) FROM a_block.bk'), '99', 'and the other rows of its block are there');

# --- a role that may read partitions only through their root
src(q{CREATE ROLE part_reader LOGIN;
	CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
	CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (0) TO (1000); CREATE TABLE root_2 PARTITION OF root FOR VALUES FROM (1000) TO (9000);
	INSERT INTO root SELECT g, 'v' || g FROM generate_series(1, 3000) g; GRANT SELECT ON root TO part_reader});
connect_source($target, $source, server => 'limited', user => 'part_reader');
sql(q{CREATE SCHEMA l; CREATE FOREIGN TABLE l.root (id int, v text) SERVER limited OPTIONS (schema_name 'public');
	CREATE SCHEMA lim; CREATE TABLE lim.root (LIKE l.root); ALTER TABLE lim.root ADD PRIMARY KEY (id);
	SELECT migrate_create_job('lim', server => 'limited', options => '{"chunk_rows": 1000}');
	SELECT migrate_add_table('lim', 'l.root', 'lim.root', key => '{"id": "id"}');
	SELECT migrate_start('lim')});
wait_job($target, 'lim', 'copied');
same_rows($target, 'SELECT * FROM l.root', $target, 'SELECT * FROM lim.root', 'limited role: all partitions');

done_testing();
