# Copyright (c) 2026, the migrate authors; PostgreSQL License

# The type zoo: every built-in type with its edge values, types that users make,
# types of extensions, awkward names, widths and sizes.  Migrated by both
# transports, and compared byte by byte with what COPY gives on either side,
# which knows nothing of the extension; then by migrate_validate.

use strict;
use warnings;
use utf8;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use TypeZoo;
use PostgreSQL::Test::Utils;
use Test::More;

# The databases' settings are other than those that data is exchanged with.
my $source = new_source('source');
my $target = new_target('target');
my %habits = (
	$source->name => q{datestyle = 'SQL, DMY'; intervalstyle = sql_standard; timezone = 'America/St_Johns'; extra_float_digits = -5; bytea_output = escape;
		xmlbinary = hex; quote_all_identifiers = on; lc_monetary = 'C.UTF-8'},
	$target->name => q{datestyle = 'German, DMY'; intervalstyle = iso_8601; timezone = 'Asia/Kathmandu'; extra_float_digits = 0; bytea_output = escape;
		xmloption = document; array_nulls = off; escape_string_warning = off});
foreach my $node ($source, $target)
{
	$node->safe_psql('postgres', join('', map { "ALTER DATABASE postgres SET $_;" } split /;/, $habits{ $node->name }));
}
my @transports = qw(copy fdw);

sub octets { my ($text) = @_; utf8::encode($text); return $text; }

# the harness hands over bytes
sub run_in
{
	my ($node, $sql) = @_;
	my ($out, $errors) = ('', '');
	my $file = $node->basedir . '/script.sql';

	open my $handle, '>', $file or die $!;
	print $handle octets("SET client_encoding = 'UTF8';\n$sql");
	close $handle;
	$node->psql('postgres', undef, stdout => \$out, stderr => \$errors, on_error_die => 1, extra_params => [ '-f', $file ]);
	utf8::decode($out);
	return $out;
}
sub src { return run_in($source, $_[0]); }
sub sql { return run_in($target, $_[0]); }

sub ident { my ($name) = @_; $name =~ s/"/""/g; return "\"$name\""; }
sub quoted { my ($text) = @_; $text =~ s/'/''/g; return $text =~ /\\/ ? "E'" . ($text =~ s/\\/\\\\/gr) . "'" : "'$text'"; }

# one that dies does not hide the others
sub section
{
	my ($name, $code) = @_;
	eval { $code->(); 1 } or fail("$name: " . substr($@, 0, 1000));
	return;
}

# Queries' rows, sorted and hashed: a list of digests in their order.  By psql
# and sort alone; "binary" orders them by the query itself.
my $fixed = '-c client_encoding=UTF8 -c DateStyle=ISO,YMD -c IntervalStyle=postgres -c extra_float_digits=3 -c TimeZone=UTC'
  . ' -c bytea_output=hex -c lc_monetary=C -c xmlbinary=base64 -c quote_all_identifiers=off -c search_path=pg_catalog';

sub digests
{
	my ($node, $queries, $binary) = @_;
	my $file = $node->basedir . '/digests.sql';
	local $ENV{PGOPTIONS} = $fixed;
	local $ENV{PGCLIENTENCODING} = 'UTF8';

	open my $handle, '>', $file or die $!;
	foreach my $query (@$queries)
	{
		print $handle octets($binary
			? "COPY ($query) TO STDOUT (FORMAT binary) \\g |sha256sum\n"
			: "COPY ($query) TO STDOUT \\g |LC_ALL=C sort | sha256sum\n");
	}
	close $handle;
	my $out = qx{psql -XqAt -v ON_ERROR_STOP=1 -d '${\$node->connstr('postgres')}' -f '$file' 2>&1};
	return split /\n/, $out;
}

# The same tables of two schemas, all of them, in both directions.
sub tables_of
{
	my ($node, $schema) = @_;
	return split /\x1e/, run_in($node, q{SELECT string_agg(c.relname, E'\x1e' ORDER BY c.relname COLLATE "C") FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = } . quoted($schema) . q{ AND c.relkind IN ('r', 'p') AND NOT c.relispartition});
}

sub compare
{
	my ($name, $there, $here, %o) = @_;
	my @tables = tables_of($source, $there);
	my $binary = $o{binary} || 0;
	my @wanted = grep { $_ =~ ($o{only} // qr/./s) } @tables;
	my $select = sub { my ($schema) = @_; return map { 'SELECT * FROM ' . ident($schema) . '.' . ident($_) . ($binary ? ' ORDER BY id' : '') } @wanted };
	my @a = digests($source, [ $select->($there) ], $binary);
	my @b = digests($target, [ $select->($here) ], $binary);
	my @differ = grep { !defined $a[$_] || $a[$_] !~ /^[0-9a-f]{64}/ || ($b[$_] // '') ne $a[$_] } 0 .. $#wanted;

	is_deeply([ tables_of($target, $here) ], \@tables, "$name: the same tables");
	ok(@wanted && !@differ, "$name: " . @wanted . ' tables are equal byte by byte' . ($binary ? ' in binary form' : ''))
	  or diag("differ: @wanted[@differ]\n$a[$differ[0]]\n" . ($b[ $differ[0] ] // ''));
	foreach my $i (splice @differ, 0, 3)
	{
		same_rows($source, octets(($select->($there))[$i]), $target, octets(($select->($here))[$i]), octets("$name: $wanted[$i]"));
	}
	return;
}

# A job of whole schemas by a transport, through to its end.
sub migrate
{
	my ($job, $transport, $schemas, %o) = @_;
	my $options = $o{options} // '"verify_writes": true, "workers": 4, "chunk_rows": 7, "batch_rows": 3, "chunk_blocks": 8';
	my $imports = 0;
	my $add = join '', map {
		my ($there, $here, $only) = @$_;
		'SELECT migrate_import(' . join(', ', map { quoted($_) } $job, $there, "from_$job" . ++$imports, $only // ()) . ');'
		  . 'SELECT migrate_add_schema(' . join(', ', map { quoted($_) } $job, $there, $here, $only // ()) . ');'
	} @$schemas;

	sql(qq{SELECT migrate_create_job('$job', server => 'legacy', options => '{"transport": "$transport", $options}'); $add
		SELECT migrate_accept('$job', check_name, object, 'test') FROM migrate_preflight('$job') WHERE status = 'fail';
		SELECT migrate_start('$job')});
	wait_job($target, $job, 'copied');
	my $dead = $o{dead} // 0;
	is(sql(qq{SELECT count(*) FROM migrate.dead_letters WHERE job = '$job' AND state = 'open'}), $dead, "$job: dead letters")
	  or diag(sql(qq{SELECT target, sqlstate, stage, left(message, 150), count(*) FROM migrate.dead_letters WHERE job = '$job' GROUP BY 1, 2, 3, 4 ORDER BY 1 LIMIT 30}));
	return;
}

sub validated
{
	my ($job) = @_;
	is(sql(qq{SELECT target, status, source_rows, target_rows, mismatches FROM migrate_validate('$job') WHERE matched IS NOT TRUE}), '', "$job: validated");
	return;
}

# Both transports.
sub both
{
	my ($name, $schema, %o) = @_;
	foreach my $transport (@transports)
	{
		section "$name by $transport" => sub {
			my $job = "${name}_$transport";
			migrate($job, $transport, [ [ $schema, $job ] ], %o);
			compare($job, $schema, $job);
			validated($job);
		};
	}
	return;
}

connect_source($target, $source, server => 'legacy');

# -------------------------------------------------- every built-in type
my @zoo = type_zoo($source->pg_version->major);
my %animals = map { $_->[0] => 1 } @zoo;

# an array of each: empty, all, with bounds that are not 1, of two dimensions,
# with nulls
sub array_forms
{
	my ($type, @values) = @_;
	my $all = 'ARRAY[' . join(', ', @values) . "]::${type}[]";
	my $n = @values;

	return ("'{}'::${type}[]", 'NULL') unless $n;
	return (
		"'{}'::${type}[]", 'NULL', $all, "ARRAY[NULL, $values[0], NULL]::${type}[]", "array_fill($values[-1], '{2,1,2}', '{-3,0,2147483640}')",
		"array_cat(ARRAY[$all], ARRAY[$all])", "array_fill($values[0], '{2}', '{-2147483648}')", "array_fill(NULL::$type, '{1,2}', '{0,5}')");
}

section 'built in' => sub {
	my $ddl = 'CREATE SCHEMA built_in; CREATE SCHEMA keys;';
	my $everything = '';
	my $rows = 0;

	foreach my $animal (@zoo)
	{
		my ($type, @values) = @$animal;
		my $name = type_name($type);
		my $has_array = $type !~ /^pg_(brin|dep|mcv|ndis|node)/;
		my @arrays = $has_array ? array_forms($type, @values) : ('1', 'NULL');
		my $n = @values > @arrays ? @values : @arrays;

		$ddl .= "CREATE TABLE built_in.$name (id int PRIMARY KEY, v $type, a " . ($has_array ? "${type}[]" : 'int') . ");\n";
		$ddl .= "INSERT INTO built_in.$name VALUES " . join(', ', map { "($_, " . ($values[$_] // 'NULL') . ', ' . ($arrays[$_] // 'NULL') . ')' } 0 .. $n - 1) . ";\n";
		# as a key, where it can be one
		$ddl .= qq{DO \$\$BEGIN CREATE TABLE keys.$name (v $type PRIMARY KEY, n int);
			INSERT INTO keys.$name SELECT DISTINCT ON (v) v, id FROM built_in.$name WHERE v IS NOT NULL ORDER BY v, id;
			EXCEPTION WHEN undefined_object THEN NULL; END\$\$;\n} if @values;
		$everything .= ", $name $type";
		$rows = @values if @values > $rows;
	}
	# all in one row; the extension's type makes the transport use the text form
	$ddl .= "CREATE SCHEMA more; CREATE EXTENSION citext SCHEMA more; CREATE TABLE more.everything (id int PRIMARY KEY, text_form more.citext$everything);\n";
	foreach my $row (0 .. $rows)
	{
		my @columns = map { my ($type, @values) = @$_; @values ? $values[ $row % @values ] : 'NULL' } @zoo;
		@columns = map { 'NULL' } @columns if $row == $rows;
		$ddl .= "INSERT INTO more.everything VALUES ($row, 'CamelCase', " . join(', ', @columns) . ");\n";
	}
	# information_schema has domains of its own, and catalogs have row types
	$ddl .= q{CREATE TABLE more.catalogs (id int PRIMARY KEY, n information_schema.cardinal_number, y information_schema.yes_or_no, i information_schema.sql_identifier,
			c pg_catalog.pg_tables, cs pg_catalog.pg_tables[]);
		INSERT INTO more.catalogs SELECT 1, 7, 'YES', 'ident', t, ARRAY[t] FROM pg_tables t WHERE tablename = 'pg_class';
		INSERT INTO more.catalogs (id) VALUES (2)};
	src($ddl);
	sql('CREATE SCHEMA more; CREATE EXTENSION citext SCHEMA more');

	# a type that is forgotten here fails
	my @missing = grep { !$animals{$_} } split /\n/, src(q{SELECT CASE t.typname WHEN 'char' THEN '"char"' WHEN 'bpchar' THEN 'bpchar' ELSE t.typname END
		FROM pg_type t WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype IN ('b', 'r', 'm')
		  AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)});
	is("@missing", '', 'every built-in type is in the zoo');
	cmp_ok(src(q{SELECT count(*) FROM pg_tables WHERE schemaname = 'keys'}), '>', 40, 'and is a key where it can be');
};

both('built_in', 'built_in');
foreach my $transport (@transports)
{
	section 'binary form' => sub {
		# these have no binary form
		compare("built_in_$transport", 'built_in', "built_in_$transport", binary => 1, only => qr/^(?!aclitem|gtsvector)/);
	};
}
both('keys', 'keys', options => '"chunking": "key", "workers": 4, "chunk_rows": 2, "batch_rows": 3');
both('more', 'more');

# --------------------------------------------------- types of the users' own
section 'own types' => sub {
	src(q{CREATE SCHEMA own;
		CREATE TYPE own."Mood, sad" AS ENUM ('sad', 'o''k', 'H"appy', '', 'é日本', '{a,b}', '(x)', 'null', 'NULL');
		CREATE TYPE own.inner_row AS (m own."Mood, sad", n numeric(6,2), t text, a int[]);
		CREATE DOMAIN own.checked AS own.inner_row CHECK ((VALUE).n IS NULL OR (VALUE).n >= 0);
		CREATE TYPE own.outer_row AS (r own.checked, rs own.checked[], "select" bytea, at timestamptz, money money, x xml);
		CREATE DOMAIN own.outer_domain AS own.outer_row;
		CREATE DOMAIN own.positive AS int CHECK (VALUE > 0);
		CREATE DOMAIN own.even AS own.positive CONSTRAINT "is it even?" CHECK (VALUE % 2 = 0);
		CREATE DOMAIN own.list AS text[] CHECK (cardinality(VALUE) < 10);
		CREATE DOMAIN own.code AS char(4) DEFAULT 'none' CHECK (VALUE <> 'bad!');
		CREATE TYPE own.text_range AS RANGE (SUBTYPE = text, COLLATION = "C");
		CREATE TYPE own.float_range AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = float8mi, MULTIRANGE_TYPE_NAME = own.float_ranges);
		CREATE TYPE own.mood_range AS RANGE (SUBTYPE = own."Mood, sad");
		CREATE TYPE own.nothing AS ();
		CREATE TABLE own.enums (id int PRIMARY KEY, m own."Mood, sad", ms own."Mood, sad"[]);
		INSERT INTO own.enums SELECT o, v, ARRAY[v, NULL, v] FROM unnest(enum_range(NULL::own."Mood, sad")) WITH ORDINALITY u(v, o);
		INSERT INTO own.enums VALUES (0, NULL, '[5:5][-1:0]={{sad,"o''k"}}'), (-1, NULL, '{}');
		CREATE TABLE own.enum_key (m own."Mood, sad" PRIMARY KEY); INSERT INTO own.enum_key SELECT m FROM own.enums WHERE m IS NOT NULL;

		CREATE TABLE own.rows (id int PRIMARY KEY, i own.inner_row, d own.checked, o own.outer_row, od own.outer_domain, ods own.outer_domain[], n own.nothing);
		INSERT INTO own.rows
			SELECT o, i, ROW(v, o, NULL, '{}')::own.inner_row, ROW(ROW(v, 0, '', NULL)::own.inner_row, ARRAY[i, NULL, ROW(NULL, NULL, NULL, NULL)::own.inner_row]::own.checked[],
					'\\x005c22', '0044-03-15 12:00 BC', (-0.01)::money, XMLPARSE(CONTENT '<a b="c">"\\</a>'))::own.outer_row,
				ROW(ROW(v, 0, E'\\t\\n', '[0:1]={1,2}')::own.inner_row, '{}', NULL, 'infinity', NULL, NULL)::own.outer_row, NULL, ROW()::own.nothing
			FROM (SELECT o, v, ROW(v, o * 1.5, E'a"b\\\\,(c)' || v, ARRAY[o, NULL])::own.inner_row AS i FROM unnest(enum_range(NULL::own."Mood, sad")) WITH ORDINALITY u(v, o)) s;
		UPDATE own.rows SET ods = ARRAY[o, NULL, o]::own.outer_domain[] WHERE id % 2 = 0;
		INSERT INTO own.rows VALUES (100, ROW(NULL, NULL, NULL, NULL), NULL, NULL, ROW(NULL, NULL, NULL, NULL, NULL, NULL), '{}', NULL);
		INSERT INTO own.rows (id) VALUES (101);

		CREATE TABLE own.domains (id own.even PRIMARY KEY, p own.positive, ps own.positive[], l own.list, c own.code, cs own.code[]);
		INSERT INTO own.domains SELECT 2 * g, g, ARRAY[g, NULL], CASE WHEN g % 3 > 0 THEN ARRAY['a,b', NULL, 'null'] ELSE '[0:0]={x}' END, 'c' || g % 10, ARRAY['', 'ab', NULL] FROM generate_series(1, 30) g;

		CREATE TABLE own.ranges (id int PRIMARY KEY, t own.text_range, f own.float_range, fs own.float_ranges, m own.mood_range, ms own.mood_range[], mm own.mood_multirange);
		INSERT INTO own.ranges VALUES (1, '[")","a ""b\\\\,"]', '(-0,NaN]', '{[1,2),(3,)}', '[sad,"H\\"appy")', ARRAY['[sad,)', 'empty', NULL]::own.mood_range[], '{[sad,"o''k"),["H\\"appy",)}'),
			(2, 'empty', '(,)', '{}', '(,)', '{}', '{}'), (3, '["",]', '[-Infinity,5e-324)', '{(,)}', '["",""]', NULL, NULL);
		INSERT INTO own.ranges (id) VALUES (4);
		-- a table's row type as a column's type
		CREATE TABLE own.person (id int PRIMARY KEY, name text, gone int, born date); ALTER TABLE own.person DROP gone;
		INSERT INTO own.person VALUES (1, 'Ann', '0001-01-01 BC'), (2, NULL, NULL)});
};
both('own', 'own');

# ------------------------------------------------------ types of extensions
section 'extensions' => sub {
	# in a schema of their own; the DBA makes them first, as preflight asks
	my $extensions = 'CREATE SCHEMA ext;' . join('', map { "CREATE EXTENSION \"$_\" SCHEMA ext;" } qw(hstore ltree cube seg isn pg_trgm btree_gist btree_gin intarray lo))
		. 'ALTER EXTENSION citext SET SCHEMA ext;';
	src($extensions . q{;
		CREATE SCHEMA extended; SET search_path = extended, ext, public;
		CREATE TABLE labels (id citext PRIMARY KEY, h hstore, hs hstore[], l ltree, q lquery, t ltxtquery, c cube, s seg, e ean13, i isbn, o lo, cs citext[]);
		INSERT INTO labels VALUES
			('Ann', '', '{}', '', '*', 'a & b', '(1)', '1.50', '978-0-393-04002-9', '0-393-04002-X', 0, '{}'),
			('béa', '"a"=>NULL, "b"=>"NULL", "c d"=>"e\"f,=>", ""=>""', ARRAY['a=>1', NULL, '']::hstore[], 'Top.Sub_1.x', 'Top.*{1,2}.a|b@', 'a* & !b@',
				'(-0,1.5,NaN),(1e-300,2,Infinity)', '~5.0 .. 6.30', '978-0-393-04002-9', '0-393-04002-X', 4294967295, ARRAY['X', 'x', NULL]),
			('日本', NULL, NULL, (repeat('a.', 1000) || 'z')::ltree, NULL, NULL, '(0,0,0,0)', '< 1', NULL, NULL, NULL, NULL);
		CREATE INDEX trigrams ON labels USING gin ((id::text) gin_trgm_ops); CREATE INDEX hs ON labels USING gist (h); CREATE INDEX lt ON labels USING gist (l);
		CREATE TABLE trees (path ltree PRIMARY KEY, n int); INSERT INTO trees SELECT ('a.b' || g % 3 || '.c' || g)::ltree, g FROM generate_series(1, 50) g;
		CREATE TABLE words (id text PRIMARY KEY, w text NOT NULL, a int[]); INSERT INTO words SELECT md5(g::text), repeat(chr(65 + g % 50), g % 40) || g, ARRAY[g, g % 3] FROM generate_series(1, 200) g;
		CREATE INDEX words_gist ON words USING gist (w gist_trgm_ops (siglen = 32)); CREATE INDEX words_gin ON words USING gin (w gin_trgm_ops, a gin__int_ops)});
	sql($extensions);
};
both('extended', 'extended');

# --------------------------------------------------------------------- names
my $hall = q{Säle "of"; 日本's};
section 'names' => sub {
	# words of SQL, ours, wildcards, quotes, what a client would replace, 63 bytes
	my @names = (
		'select', 'user', 'table', 'source', 'migrate_batch', 'migrate_ord', 'Mixed Case', 'a.b', 'quo"te', "ap'os", 'back\\slash', '%s %1$I', '$1', ':x', ';--', '/*', '*/', '{a,b}', '(a)', '*?_%', 'tab\there',
		"new\nline", ' ', 'é', 'ünïcödé "日本"', '😀', 'x' x 63, 'é' x 31 . 'x', '日' x 21, '"' x 63, "'" x 63, '0', 'null', 'NULL', 'f', 'excluded', 'old', 'new', 't');
	my $ddl = 'CREATE SCHEMA ' . ident($hall) . '; CREATE SCHEMA ' . ident('s' x 63) . ';';
	my $columns = join ', ', map { ident($_) . ' text' } grep { !/^ctid$/ } @names;
	my $n = 0;

	foreach my $name (@names)
	{
		my $table = ident($hall) . '.' . ident($name);
		$n++;
		$ddl .= "CREATE TABLE $table (" . ident($name) . " int PRIMARY KEY, $columns);" =~ s/, \Q${\ident($name)}\E text//r;
		$ddl .= "INSERT INTO $table SELECT g, " . join(', ', map { quoted($_) . ' || g' } 2 .. @names) . ' FROM generate_series(1, 20) g;';
	}
	my $long = ident('s' x 63);
	$ddl .= "CREATE TABLE $long." . ident('t' x 63) . ' (' . ident('c' x 63) . ' int PRIMARY KEY);'
	  . "INSERT INTO $long." . ident('t' x 63) . ' SELECT generate_series(1, 50);'
	  . "CREATE TYPE $long." . ident('日' x 21) . " AS ENUM ('" . '日' x 21 . "'); CREATE DOMAIN $long." . ident('d' x 63) . " AS $long." . ident('日' x 21) . ' CONSTRAINT ' . ident('k' x 63) . ' CHECK (VALUE IS NOT NULL);'
	  . "CREATE TYPE $long." . ident('y' x 63) . ' AS (' . ident('z' x 63) . " $long." . ident('d' x 63) . ");"
	  . "CREATE TABLE $long.named (id int PRIMARY KEY, y $long." . ident('y' x 63) . ", ys $long." . ident('y' x 63) . "[], es $long." . ident('日' x 21) . "[]);"
	  . "INSERT INTO $long.named SELECT 1, ROW('" . '日' x 21 . "')::$long." . ident('y' x 63) . ", '{}', ARRAY['" . '日' x 21 . "']::$long." . ident('日' x 21) . '[]';
	src($ddl);
};
foreach my $transport (@transports)
{
	section "names by $transport" => sub {
		my $job = qq{Job "of"; names $transport};
		migrate($job, $transport, [ [ $hall, "Räume $transport" ], [ 's' x 63, "long $transport" ] ]);
		compare("names $transport", $hall, "Räume $transport");
		compare("names $transport", 's' x 63, "long $transport");
		validated($job);
	};
}

# ---------------------------------------------------- shapes, keys and widths
section 'shapes' => sub {
	my $many = join ', ', map { "c$_ " . ('int', 'text', 'smallint', 'boolean')[ $_ % 4 ] } 2 .. 1600;
	my $some = join ', ', map { "c$_ int" } 2 .. 1590;

	src(qq{CREATE SCHEMA shapes; SET search_path = shapes;
		CREATE TABLE composite (a text, b int, c date, d numeric, v text, PRIMARY KEY (c, a, b, d));
		INSERT INTO composite SELECT 'a' || g % 7, g % 11, date '2000-01-01' + g % 13, g * 0.1, 'v' || g FROM generate_series(1, 500) g;
		CREATE TABLE text_key (k text PRIMARY KEY, v int); INSERT INTO text_key SELECT CASE g % 4 WHEN 0 THEN repeat('k', 200) WHEN 1 THEN 'É' WHEN 2 THEN E'\\t' ELSE '' END || g, g FROM generate_series(1, 500) g;
		CREATE TABLE bytes_key (k bytea PRIMARY KEY); INSERT INTO bytes_key SELECT decode(md5(g::text), 'hex') FROM generate_series(1, 500) g;
		CREATE TABLE no_key (a int, b text); INSERT INTO no_key SELECT g % 5, repeat('b', g % 3) FROM generate_series(1, 500) g;
		CREATE TABLE unique_only (a int NOT NULL, b int UNIQUE, UNIQUE (a) INCLUDE (b)); INSERT INTO unique_only SELECT g, NULLIF(g % 250, g) + 1000 * (g % 2) FROM generate_series(1, 250) g;
		CREATE TABLE unique_null (a int UNIQUE); INSERT INTO unique_null SELECT NULLIF(g % 100, 0) FROM generate_series(0, 100) g;
		CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v int); INSERT INTO deferred SELECT g, -g FROM generate_series(1, 100) g;
		CREATE TABLE zero_rows (id int PRIMARY KEY, v text);
		CREATE TABLE zero_columns (); INSERT INTO zero_columns SELECT FROM generate_series(1, 37);
		CREATE TABLE zero_left (a int, b int); INSERT INTO zero_left SELECT 1 FROM generate_series(1, 23); ALTER TABLE zero_left DROP a, DROP b;
		CREATE TABLE zero_both ();
		CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, v text); INSERT INTO unlogged SELECT g, 'v' FROM generate_series(1, 50) g;
		CREATE TABLE only_nulls (a int, b text, c int[]); INSERT INTO only_nulls SELECT FROM generate_series(1, 20);
		CREATE TABLE wide (id int PRIMARY KEY, $many);
		INSERT INTO wide (id) VALUES (0);
		INSERT INTO wide SELECT g, @{[ join ', ', map { ('g', "'t' || g", 'g', 'g % 2 = 0')[ $_ % 4 ] } 2 .. 1600 ]} FROM generate_series(1, 20) g;
		CREATE TABLE dropped (id int PRIMARY KEY, $some);
		INSERT INTO dropped SELECT g, @{[ join ', ', map { "g + $_" } 2 .. 1590 ]} FROM generate_series(1, 20) g;
		ALTER TABLE dropped @{[ join ', ', map { "DROP c$_" } grep { $_ % 3 != 1 } 2 .. 1590 ]};
		ALTER TABLE dropped ADD later text DEFAULT 'there'; INSERT INTO dropped (id, c4, later) VALUES (-1, 4, NULL);
		CREATE TABLE changed (gone int, id int PRIMARY KEY, a int, gone_too text, b varchar(3), c int NOT NULL DEFAULT 7);
		INSERT INTO changed SELECT g, g, g, 'x', 'b' || g % 9 FROM generate_series(1, 100) g;
		ALTER TABLE changed DROP gone, DROP gone_too, ADD d text DEFAULT 'fast default', ADD e timestamptz DEFAULT '2000-01-01', ALTER a TYPE bigint, ALTER b TYPE text;
		INSERT INTO changed (id) SELECT g FROM generate_series(101, 150) g;
		CREATE TABLE parted (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2000-01-01') TO ('2000-02-01') PARTITION BY HASH (id);
		CREATE TABLE parted_1a PARTITION OF parted_1 FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE parted_1b PARTITION OF parted_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
		CREATE TABLE parted_2 (gone int, v text, id int NOT NULL, at date NOT NULL); ALTER TABLE parted_2 DROP gone; ALTER TABLE parted ATTACH PARTITION parted_2 DEFAULT;
		INSERT INTO parted SELECT g, date '2000-01-01' + g % 60, 'v' || g FROM generate_series(1, 500) g});
};
both('shapes', 'shapes');

# ---------------------------------------------------------------------- sizes
section 'sizes' => sub {
	# ten megabytes that do not compress, in all the types that can hold them
	src(q{CREATE SCHEMA sizes; SET search_path = sizes;
		CREATE TABLE big (id int PRIMARY KEY, t text, b bytea, j jsonb, js json, a int[], ts text[], bits varbit, x xml, n numeric, p polygon);
		ALTER TABLE big ALTER t SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
		INSERT INTO big (id) VALUES (0);
		INSERT INTO big (id, t) SELECT 1, string_agg(md5(g::text), '') FROM generate_series(1, 327680) g;
		INSERT INTO big (id, b) SELECT 2, decode(t, 'hex') || decode(t, 'hex') FROM big WHERE id = 1;
		INSERT INTO big (id, j) SELECT 3, jsonb_agg(md5(g::text)) FROM generate_series(1, 300000) g;
		INSERT INTO big (id, js) SELECT 4, j::text::json FROM big WHERE id = 3;
		INSERT INTO big (id, a) SELECT 5, array_agg(g * 7919) FROM generate_series(1, 270000) g;
		INSERT INTO big (id, ts) SELECT 6, array_agg(CASE WHEN g % 5 > 0 THEN md5(g::text) END) FROM generate_series(1, 330000) g;
		INSERT INTO big (id, bits) SELECT 7, string_agg((g * 2654435761 % 4294967296)::bit(32)::text, '')::varbit FROM generate_series(1, 327680) g;
		INSERT INTO big (id, x) SELECT 8, XMLPARSE(CONTENT '<a>' || t || '</a>') FROM big WHERE id = 1;
		INSERT INTO big (id, n) SELECT 9, (repeat('123456789', 14000) || '.' || repeat('987654321', 1800))::numeric;
		INSERT INTO big (id, p) SELECT 10, ('(' || string_agg(format('(%s,%s)', g * 0.1, -g / 7.0), ',') || ')')::polygon FROM generate_series(1, 300000) g;
		INSERT INTO big SELECT 11, t, (SELECT b FROM big WHERE id = 2), (SELECT j FROM big WHERE id = 3) FROM big WHERE id = 1;
		-- many in a batch
		CREATE TABLE several (id int PRIMARY KEY, v text); INSERT INTO several SELECT 100 + g, t FROM big, generate_series(1, 6) g WHERE big.id = 1});
};
both('sizes', 'sizes', options => '"workers": 2');

# --------------------------------------- what cannot be the same here, is told
# Values that name what is not here, or that nobody can write, are dead letters
# and nothing else is.
section 'told' => sub {
	src(q{CREATE SCHEMA told; SET search_path = told; CREATE ROLE "only there";
		CREATE SCHEMA other; CREATE VIEW other.view AS SELECT 1; CREATE FUNCTION other.func(int) RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE SCHEMA "only there"; CREATE TYPE other.enum AS ENUM ();
		CREATE TABLE names (id int PRIMARY KEY, c regclass, t regtype, p regproc, pp regprocedure, n regnamespace, r regrole, a aclitem, x xid, cs regclass[]);
		INSERT INTO names (id, c, t, p, pp, n, r) VALUES (1, 'pg_class', 'int4', 'now', 'now()', 'pg_catalog', 'pg_monitor'), (20, NULL, NULL, NULL, NULL, NULL, NULL);
		INSERT INTO names (id, c) VALUES (2, 'other.view'); INSERT INTO names (id, t) VALUES (3, 'other.enum'); INSERT INTO names (id, p) VALUES (4, 'other.func');
		INSERT INTO names (id, pp) VALUES (5, 'other.func(int)'); INSERT INTO names (id, n) VALUES (6, '"only there"'); INSERT INTO names (id, r) VALUES (7, '"only there"');
		INSERT INTO names (id, a) VALUES (8, makeaclitem('"only there"'::regrole, '"only there"'::regrole, 'SELECT', false)); INSERT INTO names (id, cs) VALUES (9, ARRAY['pg_class', 'other.view']::regclass[]);
		-- several functions have the name
		INSERT INTO names (id, p) VALUES (10, 'pg_catalog.abs(int)'::regprocedure::oid::regproc);
		INSERT INTO names (id, x) VALUES (11, '4294967295');
		INSERT INTO names (id, c) SELECT 100 + g, 'pg_type' FROM generate_series(1, 100) g;
		CREATE TABLE unwritable (id int PRIMARY KEY, n pg_node_tree, m pg_mcv_list, d pg_dependencies, i pg_ndistinct);
		CREATE TABLE correlated (a int DEFAULT 1, b int); INSERT INTO correlated SELECT g % 10, g % 10 FROM generate_series(1, 1000) g; CREATE STATISTICS correlated ON a, b FROM correlated; ANALYZE correlated;
		INSERT INTO unwritable (id) SELECT generate_series(1, 20);
		UPDATE unwritable SET n = (SELECT adbin FROM pg_attrdef WHERE adrelid = 'correlated'::regclass) WHERE id = 3;
		UPDATE unwritable SET m = stxdmcv FROM pg_statistic_ext_data WHERE id = 7; UPDATE unwritable SET d = stxddependencies FROM pg_statistic_ext_data WHERE id = 8; UPDATE unwritable SET i = stxdndistinct FROM pg_statistic_ext_data WHERE id = 20;
		});
};
foreach my $transport (@transports)
{
	section "told by $transport" => sub {
		my $job = "told_$transport";
		my $letters = "FROM migrate.dead_letters WHERE job = '$job' AND state = 'open'";
		sql('DROP SCHEMA IF EXISTS other CASCADE; CREATE SCHEMA other; DROP SCHEMA IF EXISTS "only there"; DROP ROLE IF EXISTS "only there"');
		migrate($job, $transport, [ [ 'told', $job ] ], dead => 9 + 4);
		is(sql(qq{SELECT sqlstate, count(*), bool_and(stage = 'read') $letters GROUP BY 1 ORDER BY 1}),
			"0A000|4|t\n3F000|1|t\n42704|3|t\n42725|1|t\n42883|2|t\n42P01|2|t", "$job: by what is missing");
		same_rows($source, 'SELECT * FROM told.names WHERE id NOT BETWEEN 2 AND 10', $target, "SELECT * FROM $job.names", "$job: other rows with names are there");
		same_rows($source, 'SELECT id FROM told.unwritable WHERE id NOT IN (3, 7, 8, 20)', $target, "SELECT id FROM $job.unwritable", "$job: other rows without");
		is(sql(qq{SELECT matched, status FROM migrate_validate('$job', '$job.names')}), 'f|differs: explained by dead letters', "$job: validation says so");

		# made here, they are replayed; the others stay
		sql(q{CREATE VIEW other.view AS SELECT 1; CREATE FUNCTION other.func(int) RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE SCHEMA "only there"; CREATE ROLE "only there"; CREATE TYPE other.enum AS ENUM ()});
		sql(qq{SELECT migrate_replay('$job')});
		is(sql(qq{SELECT string_agg(sqlstate, ' ' ORDER BY sqlstate) $letters}), '0A000 0A000 0A000 0A000 42725', "$job: replayed when the objects are there");
		same_rows($source, 'SELECT * FROM told.names WHERE id <> 10', $target, "SELECT * FROM $job.names", "$job: rows with names are equal");
	};
}

# --------------------------------------------------- money in another currency
# Its text form is the locale's: where dots and commas change places, a value
# read by the other rules is another value, or none.
SKIP:
{
	my $locales = $source->basedir . '/locales';
	mkdir $locales;
	skip 'no locale can be made here', 1
	  if system("localedef -i de_DE -f UTF-8 '$locales/de_DE.UTF-8' >/dev/null 2>&1") != 0;
	local $ENV{LOCPATH} = $locales;
	$_->restart foreach $source, $target;
	foreach my $case ([ 'both', 'de_DE.UTF-8', 'de_DE.UTF-8', @transports ], [ 'there', 'de_DE.UTF-8', 'C', 'copy' ], [ 'here', 'C', 'de_DE.UTF-8', 'copy' ])
	{
		my ($where, $there, $here, @by) = @$case;
		$source->safe_psql('postgres', "ALTER DATABASE postgres SET lc_monetary = '$there'");
		$target->safe_psql('postgres', "ALTER DATABASE postgres SET lc_monetary = '$here'");
		foreach my $transport (@by)
		{
			section "money by $transport" => sub {
				my $job = "money_${where}_$transport";
				migrate($job, $transport, [ [ 'built_in', $job, '{money}' ], [ 'keys', "${job}_keys", '{money}' ] ]);
				same_rows($source, "SELECT * FROM $_->[0].money", $target, "SELECT * FROM $_->[1].money", "$job: $_->[0] are equal")
				  foreach [ 'built_in', $job ], [ 'keys', "${job}_keys" ];
				validated($job);
			};
		}
	}
}

done_testing();
