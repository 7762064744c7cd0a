# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Binary rows are decoded without core's parser, and values of common types
# without their receive functions (src/extract/decode.c).  What comes out must be
# what core makes of the same value, to the byte: the copy is compared (by
# record_image_eq, which looks at a value's bytes) with the foreign table, whose values core's input
# functions have made.  And what a type refuses must become a dead letter that
# says what the receive function says.

use strict;
use warnings;
use utf8;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source');
my $target = new_target('target');
connect_source($target, $source, server => 'legacy');

# the harness hands over bytes
sub octets { my ($text) = @_; utf8::encode($text); return $text; }
sub src { return $source->safe_psql('postgres', octets($_[0])); }
sub sql { return $target->safe_psql('postgres', octets($_[0])); }

# Tables of an id and one column each, for one job.
my @tables;
sub same_as_core
{
	my ($name, $type, $values) = @_;
	src(qq{CREATE TABLE $name (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v $type); INSERT INTO $name (v) $values});
	push @tables, $name;
	return;
}

# every value as it is, and null
sub list { return "SELECT v FROM (VALUES " . join(', ', map { "($_)" } @_) . ') AS x (v)'; }
sub quoted { return map { my $v = $_; $v =~ s/'/''/g; "'$v'" } @_; }

# --- numbers and times: ends of what is done here, and beyond
same_as_core('b', 'boolean', list('true', 'false', 'NULL'));
same_as_core('i2', 'smallint', list(-32768, -1, 0, 1, 32767, 'NULL'));
same_as_core('i4', 'integer', list(-2147483648, -1, 0, 256, 2147483647, 'NULL'));
same_as_core('i8', 'bigint', list("'-9223372036854775808'::bigint", -1, 0, 9223372036854775807, 'NULL'));
same_as_core('o', 'oid', list("0::oid", "4294967295::oid", 'NULL'));
same_as_core('f4', 'real', list(map({"$_\::real"} quoted('-0', '1.5', '-1e-38', '3.4e38', 'NaN', 'Infinity', '-Infinity')), 'NULL'));
same_as_core('f8', 'double precision', list(map({"$_\::float8"} quoted('-0', '0.1', '-1e-308', '1.7e308', 'NaN', 'Infinity', '-Infinity')), 'NULL'));
same_as_core('d', 'date',
	list(map({"$_\::date"} quoted('0001-01-01', '0001-01-01 BC', '4713-11-24 BC', '2000-01-01', '9999-12-31', '10000-01-01', '5874897-12-31', 'infinity', '-infinity')), 'NULL'));
my @times = ('0001-01-01', '0001-12-31 23:59:59.999999 BC', '4713-11-24 BC', '2000-01-01', '1999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999999', '10000-01-02',
	'294276-12-31', 'infinity', '-infinity');
same_as_core('ts', 'timestamp', list(map({"$_\::timestamp"} quoted(@times)), 'NULL'));
same_as_core('ts3', 'timestamp(3)', list(map({"$_\::timestamp"} quoted(@times)), 'NULL'));
same_as_core('ts6', 'timestamp(6)', list(map({"$_\::timestamp"} quoted(@times)), 'NULL'));
same_as_core('tz', 'timestamptz', list(map({"$_\::timestamptz"} quoted(@times)), 'NULL'));
same_as_core('tz0', 'timestamptz(0)', list(map({"$_\::timestamptz"} quoted(@times)), 'NULL'));

my @numbers = qw(0 -0 0.0 0.000000 1 -1 10 9999 10000 10001 99990000 100000000 0.1 0.01 0.001 0.0001 0.00001 -0.00012345 1.50 -12345.67890 123456789012345678901234567890
	0.10000000000000000000 12345678.000000000000);
same_as_core('n', 'numeric', list(map({"$_\::numeric"} quoted(@numbers, 'NaN', '1e100', '-1e-100', '1e-16383', '9' x 300, '0.' . '123456789' x 12)), "1e1000::numeric", 'NULL'));
same_as_core('n_inf', 'numeric', "SELECT v FROM unnest('{Infinity,-Infinity,NaN}'::numeric[]) v") if src('SHOW server_version_num') >= 140000;
same_as_core('n122', 'numeric(12, 2)', list(map({"$_\::numeric"} quoted('0', '-0.01', '9999999999.99', '-9999999999.99', '1.5', '0.1', '123', 'NaN')), 'NULL'));
same_as_core('n60', 'numeric(6, 0)', list(qw(0 1 999999 -999999 100000 10000), 'NULL'));
same_as_core('n_many', 'numeric', q{SELECT (g::numeric ^ 3 - 5000 * g::numeric ^ 2) / (10::numeric ^ (g % 30)) FROM generate_series(1, 5000) g});

# --- bytes and text: lengths around those that are kept short, encodings
my $lengths = 'generate_series(0, 140)';
same_as_core('by', 'bytea', "SELECT substr(decode(repeat('00ff8041', 100), 'hex'), 1, g) FROM $lengths g");
same_as_core('te', 'text', "SELECT left(repeat(x, 300), g) FROM $lengths g, (VALUES ('a'), ('é'), ('日a'), ('\xf0\x9f\x98\x80')) v (x)" =~ s/\xf0\x9f\x98\x80/😀/r);
same_as_core('vc', 'varchar(20)', "SELECT left(repeat(x, 20), g) FROM generate_series(0, 20) g, (VALUES ('a'), ('é'), ('日a')) v (x)");
same_as_core('vc_any', 'varchar', "SELECT repeat('xyz', g) FROM $lengths g");
same_as_core('ch', 'char(84)', "SELECT left(repeat(x, 84), g) FROM generate_series(0, 84) g, (VALUES ('a'), (' '), ('é'), ('日a')) v (x)");
same_as_core('ch1', '"char"', list(map {"$_\::\"char\""} quoted('a', '')));
same_as_core('na', 'name', list(map {"$_\::name"} quoted('', 'short', 'x' x 63)));
same_as_core('uu', 'uuid', "SELECT md5(g::text)::uuid FROM generate_series(1, 100) g");
same_as_core('long', 'text', "SELECT repeat(md5(g::text), g * 40) FROM generate_series(1, 60) g");

# --- what is left to the receive functions
same_as_core('ar', 'int[]', list("'{}'::int[]", "'{1,NULL,3}'::int[]", "'[2:3]={1,2}'::int[]", 'NULL'));
same_as_core('ra', 'int4range', list("'empty'::int4range", "'[1,5)'::int4range", "'(,)'::int4range", 'NULL'));
same_as_core('iv', 'interval', list("'1 mon -2 days 03:04:05.678901'::interval", 'NULL'));
same_as_core('js', 'json', list(q{'{"a" :  1, "a": [true]}'::json}, 'NULL'));

# --- jsonb: by the server's own text, and by what is not taken
my @json = ('{}', '[]', '""', '"x"', 'null', 'true', 'false', '0', '-1.50', '[[]]', '[{}]', '{"a": {}}', '{"a": []}', '[[], {}, null, true, false, 0, ""]',
	'{"b": 1, "a": 2, "aa": 3, "": 4}', '{"a": 1, "a": 2}', '"\u00e9\n\t\"\\\\\u0001 / \u2028"', '{"q\"k": 1, "é": "日本😀"}', '{"' . 'k' x 200 . '": "' . 'v' x 5000 . '"}',
	'[1e5, 1E-5, 1.5e300, -0, -0.0, 0e0]', '[' . join(', ', @numbers) . ']', '[' . '9' x 60 . ', ' . '9' x 61 . ', 0.' . '1' x 60 . ', 0.' . '1' x 61 . ', -' . '1' x 70 . '.' . '2' x 70 . ']',
	'[' x 63 . ']' x 63, '[' x 64 . ']' x 64, '[' x 65 . ']' x 65, '[' x 66 . ']' x 66, '[' x 1000 . ']' x 1000, '{"a": ' x 70 . '1' . '}' x 70,
	# beside each other, with offsets now and then, numbers aligned
	map({'[' . join(', ', map { $_ % 3 ? $_ : qq{"s$_"} } 1 .. $_) . ']'} 1, 31, 32, 33, 64, 65, 1998, 1999, 2000, 2001),
	map({'{' . join(', ', map {qq{"k$_": } . ($_ % 2 ? $_ / 8 : qq{["$_", {"x": $_}]})} 1 .. $_) . '}'} 1, 15, 16, 17, 31, 32, 33, 100, 500));
same_as_core('jb', 'jsonb', list(map({ my $j = $_; $j =~ s/'/''/g; "'$j'::jsonb" } @json), 'NULL'));
same_as_core('jb_many', 'jsonb', q{
	SELECT jsonb_build_object('id', g, 'n', (g - 2000) / 7.0, 't', repeat('x', g % 50), 'a', (SELECT jsonb_agg(CASE WHEN i % 3 = 0 THEN to_jsonb(i * g) WHEN i % 3 = 1 THEN to_jsonb(i || 'é') ELSE 'null' END)
		FROM generate_series(1, g % 40) i), md5(g::text), jsonb_build_array(g % 2 = 0, jsonb_build_object('deep', g / 1000.0)))
	FROM generate_series(1, 4000) g});

sql(q{SELECT migrate_create_job('core', server => 'legacy', options => '{"transport": "copy"}');
	SELECT migrate_add_schema('core', 'public');
	SELECT migrate_start('core')});
wait_job($target, 'core', 'copied');
is(sql(q{SELECT count(*) FROM migrate.source_table s JOIN migrate.job USING (job_id) WHERE job = 'core' AND NOT s."binary"}), '0', 'all are read as binary');
foreach my $name (@tables)
{
	my $rows = src("SELECT count(*) FROM $name");
	is(sql(qq{SELECT count(*), count(*) FILTER (WHERE record_image_eq(ROW(t.v), ROW(f.v))) FROM public.$name t JOIN legacy.$name f USING (id)}),
		"$rows|$rows", "$name: $rows values, all as core makes them");
}

# --- no column, a foreign table with columns that the source has not, column order
src('CREATE TABLE wide (c text, a int PRIMARY KEY, gone int, b numeric); ALTER TABLE wide DROP gone; INSERT INTO wide SELECT g || repeat(chr(224), g % 200), g, g / 4.0 FROM generate_series(1, 1000) g');
sql(q{CREATE FOREIGN TABLE legacy.wide (x int, a int, b numeric, y text, c text) SERVER legacy OPTIONS (schema_name 'public', table_name 'wide');
	ALTER FOREIGN TABLE legacy.wide DROP x, DROP y;
	CREATE TABLE public.wide (b numeric, c text, a int PRIMARY KEY);
	SELECT migrate_create_job('wide', server => 'legacy', options => '{"transport": "copy"}');
	SELECT migrate_add_table('wide', 'legacy.wide', 'public.wide');
	SELECT migrate_start('wide')});
wait_job($target, 'wide', 'copied');
is(sql('SELECT count(*) FILTER (WHERE record_image_eq(ROW(t.a, t.b, t.c), ROW(f.a, f.b, f.c))) FROM public.wide t JOIN legacy.wide f USING (a)'), 1000, 'columns in another order');

# --- what a type refuses: the receive function's words, where and in which column
src(q{CREATE TABLE bad (id int PRIMARY KEY, v varchar(5), c char(3)); INSERT INTO bad SELECT g, 'ok', 'abc' FROM generate_series(1, 500) g;
	UPDATE bad SET v = 'ééééé' WHERE id = 100});
sql(q{CREATE FOREIGN TABLE legacy.bad (id int, v varchar(3), c char(3)) SERVER legacy OPTIONS (schema_name 'public', table_name 'bad');
	CREATE TABLE public.bad (id int PRIMARY KEY, v varchar(5), c char(3));
	SELECT migrate_create_job('bad', server => 'legacy', options => '{"transport": "copy"}');
	SELECT migrate_add_table('bad', 'legacy.bad', 'public.bad');
	SELECT migrate_start('bad')});
wait_job($target, 'bad', 'copied');
is(sql('SELECT count(*) FROM public.bad'), 499, 'all but the bad row');
is(sql(q{SELECT stage, sqlstate, message, context ~ 'COPY bad, line 1, column v' FROM migrate.dead_letters WHERE job = 'bad'}),
	'read|22001|value too long for type character varying(3)|t', 'the dead letter says what varcharrecv says, and where');

done_testing();
