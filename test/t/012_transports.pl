# Copyright (c) 2026, the migrate authors; PostgreSQL License

# What may lie between a source and us: foreign tables that declare other
# things than the source has, other encodings and collations, relations that
# are no tables, roles that may little, connections that are cut, limits.  Each
# by both transports where both can; what comes out must be the same.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source');
my $target = new_target('target');
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql($_[1] || 'postgres', $_[0]); }

# one that dies does not hide the others
sub section
{
	my ($name, $code) = @_;
	eval { $code->(); 1 } or fail("$name: $@");
	return;
}

sub start
{
	my ($job) = @_;
	return sql(qq{SELECT migrate_accept('$job', check_name, object, 'test') FROM migrate_preflight('$job')
			WHERE status = 'fail' AND check_name = 'key_index';
		SELECT migrate_start('$job')});
}

sub copied
{
	my ($job, $read, $dead) = @_;
	$dead ||= 0;
	wait_job($target, $job, 'copied');
	is(sql(qq{SELECT count(*) FILTER (WHERE k.state <> 'done'), sum(c.rows_read), sum(c.rows_dead), bool_and(c.rows_read = c.rows_mapped + c.rows_filtered + c.rows_dead)
			FROM migrate.job j JOIN migrate.chunk k USING (job_id) LEFT JOIN migrate.chunk_mapping c USING (chunk_id)
			WHERE j.job = '$job'}), "0|$read|$dead|t", "$job: each row read once, and conserved");
	is(sql(qq{SELECT target, status, source_rows, target_rows, mismatches FROM migrate_validate('$job') WHERE matched IS NOT TRUE}),
		'', "$job: validated") if !$dead;
	return;
}

sub both
{
	my ($code) = @_;
	$code->('copy', 'key');
	$code->('copy', 'whole');
	$code->('fdw', 'key');
	$code->('fdw', 'whole');
	return;
}

# --- a foreign table is the DBA's: other types, names, order, fewer columns
section 'declared' => sub {
	src(q{CREATE SCHEMA "Säle"; CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
		CREATE TABLE "Säle"."Kün""den" (gone int, i int NOT NULL, m mood, c char(10), n numeric, "naïve 日本" text, unread bytea, gone2 text,
			g int GENERATED ALWAYS AS (i * 2) STORED, at timestamptz, PRIMARY KEY (i));
		INSERT INTO "Säle"."Kün""den" (i, m, c, n, "naïve 日本", at)
			SELECT g, (enum_range(NULL::mood))[1 + g % 3], 'c' || g, g / 8.0, NULLIF('日本' || g % 10, '日本3'), 'epoch'::timestamptz + g * interval '1 h' FROM generate_series(1, 3000) g;
		INSERT INTO "Säle"."Kün""den" (i, n) VALUES (-1, 'NaN'), (0, NULL);
		ALTER TABLE "Säle"."Kün""den" DROP gone, DROP gone2});
	sql(q{CREATE SCHEMA f; CREATE SCHEMA t;
		CREATE FOREIGN TABLE f.declared (gone text, "Text" text OPTIONS (column_name 'naïve 日本'), n text, c text, doubled bigint OPTIONS (column_name 'g'), gone2 int,
			id bigint OPTIONS (column_name 'i'), m text, at timestamptz) SERVER legacy OPTIONS (schema_name 'Säle', table_name 'Kün"den');
		ALTER FOREIGN TABLE f.declared DROP gone, DROP gone2});
	both(sub {
		my ($transport, $chunking) = @_;
		my $job = "declared_${transport}_$chunking";
		sql(qq{CREATE TABLE t.$job (id bigint PRIMARY KEY, m text, c text, n text, "Text" text, doubled bigint, at timestamptz);
			SELECT migrate_create_job('$job', server => 'legacy', options => '{"transport": "$transport", "chunking": "$chunking", "chunk_rows": 500, "batch_rows": 300}');
			SELECT migrate_add_table('$job', 'f.declared', 't.$job')});
		start($job);
		copied($job, 3002);
		same_rows($source, q{SELECT i, m, rpad(c, 10), n, "naïve 日本", g, at FROM "Säle"."Kün""den"}, $target, "SELECT * FROM t.$job", "$job: equal");
	});
};

# --- a value that the declared type refuses is a row's fault
section 'refused' => sub {
	src(q{CREATE TABLE refused (id int PRIMARY KEY, v text);
		INSERT INTO refused SELECT g, CASE WHEN g % 500 = 0 THEN 'no number' ELSE g::text END FROM generate_series(1, 2000) g});
	sql(q{CREATE FOREIGN TABLE f.refused (id int, v int) SERVER legacy OPTIONS (schema_name 'public')});
	foreach my $case ([ 'copy', 'block' ], [ 'copy', 'key' ], [ 'fdw', 'key' ])
	{
		my ($transport, $chunking) = @$case;
		my $job = "refused_${transport}_$chunking";
		sql(qq{CREATE TABLE t.$job (id int PRIMARY KEY, v int);
			SELECT migrate_create_job('$job', server => 'legacy', options => '{"transport": "$transport", "chunking": "$chunking", "chunk_rows": 700}');
			SELECT migrate_add_table('$job', 'f.refused', 't.$job')});
		start($job);
		copied($job, 2000, 4);
		same_rows($source, q{SELECT id, v FROM refused WHERE v <> 'no number'}, $target, "SELECT * FROM t.$job", "$job: the other rows are there");
		is(sql(qq{SELECT stage, sqlstate, count(*) FROM migrate.dead_letters WHERE job = '$job' GROUP BY 1, 2}), 'read|22P02|4', "$job: dead letters");
	}
	is(sql(q{SELECT string_agg(key->>'id' || ' ' || convert_from((raw->'columns'->>'v')::bytea, 'UTF8'), ', ' ORDER BY (key->>'id')::int) FROM migrate.dead_letters WHERE job = 'refused_copy_block'}),
		'500 no number, 1000 no number, 1500 no number, 2000 no number', 'refused: with key and raw bytes');
	src(q{UPDATE refused SET v = '0' WHERE v = 'no number'});
	is(sql(q{SELECT * FROM migrate_replay('refused_copy_block')}), '4|0|0', 'refused: replayed after the source was mended');
	same_rows($source, q{SELECT * FROM refused}, $target, 'SELECT * FROM t.refused_copy_block', 'refused: equal');
};

# --- encodings
section 'latin1' => sub {
	src(q{CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
	connect_source($target, $source, server => 'latin1', dbname => 'latin1');
	src(q{SET client_encoding = 'UTF8';
		CREATE TABLE "Größe" ("Schlüssel" text PRIMARY KEY, v text, c "char", a text[]);
		INSERT INTO "Größe" SELECT chr(192 + g % 60) || g, repeat(chr(161 + g % 90), g % 20), 'x', ARRAY[chr(233), 'é,"' || g] FROM generate_series(1, 3000) g}, 'latin1');
	sql(q{SELECT migrate_create_job('latin1', server => 'latin1'); SELECT migrate_import('latin1', 'public', 'from_latin1')});
	both(sub {
		my ($transport, $chunking) = @_;
		my $job = "latin1_${transport}_$chunking";
		sql(qq{SELECT migrate_create_job('$job', server => 'latin1', options => '{"transport": "$transport", "chunking": "$chunking", "chunk_rows": 500}');
			SELECT migrate_add_table('$job', 'from_latin1."Größe"', 't.$job'); SELECT migrate_start('$job')});
		copied($job, 3000);
		same_rows($source, 'SELECT * FROM "Größe"', $target, "SELECT * FROM t.$job", "$job: equal", db1 => 'latin1');
	});
};

section 'sql_ascii' => sub {
	src(q{CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0});
	connect_source($target, $source, server => 'bytes', dbname => 'bytes');
	src(q{SET client_encoding = 'SQL_ASCII';
		CREATE TABLE raw (id int PRIMARY KEY, v text, w text);
		INSERT INTO raw SELECT g, CASE WHEN g % 400 = 7 THEN E'caf\351' || g ELSE E'caf\303\251' || g END, 'w' FROM generate_series(1, 2000) g;
		CREATE TABLE raw_keys (id text PRIMARY KEY, v int);
		INSERT INTO raw_keys SELECT CASE WHEN g % 400 = 7 THEN E'\351' || g ELSE E'\303\251' || g END, g FROM generate_series(1, 2000) g}, 'bytes');
	sql(q{SELECT migrate_create_job('bytes', server => 'bytes'); SELECT migrate_import('bytes', 'public', 'from_bytes')});
	foreach my $case ([ 'copy', 'block' ], [ 'copy', 'key' ], [ 'copy', 'whole' ], [ 'fdw', 'key' ])
	{
		my ($transport, $chunking) = @$case;
		my $job = "bytes_${transport}_$chunking";
		sql(qq{SELECT migrate_create_job('$job', server => 'bytes', options => '{"transport": "$transport", "chunking": "$chunking", "chunk_rows": 300}');
			SELECT migrate_add_table('$job', 'from_bytes.raw', 't.$job')});
		start($job);
		copied($job, 2000, 5);
		same_rows($source, 'SELECT * FROM raw WHERE id % 400 <> 7', $target, "SELECT * FROM t.$job", "$job: the other rows are there", db1 => 'bytes');
		is(sql(qq{SELECT stage, sqlstate, count(*) FROM migrate.dead_letters WHERE job = '$job' GROUP BY 1, 2}), 'read|22021|5', "$job: dead letters of stage read");
		is(sql(qq{SELECT string_agg(concat_ws(' ', key->>'id', raw->'columns'->>'v', raw->'columns'->>'w'), ', ' ORDER BY (key->>'id')::int) FROM migrate.dead_letters WHERE job = '$job'}),
			join(', ', map { "$_ \\x" . unpack('H*', "caf\xe9$_") . ' \\x77' } 7, 407, 807, 1207, 1607), "$job: with key and raw bytes") if $transport eq 'copy';
	}
	# bytes that are invalid in the key itself: no matter to blocks
	foreach my $chunking (qw(block whole))
	{
		my $job = "bytes_keys_$chunking";
		sql(qq{SELECT migrate_create_job('$job', server => 'bytes', options => '{"chunking": "$chunking"}');
			SELECT migrate_add_table('$job', 'from_bytes.raw_keys', 't.$job')});
		start($job);
		copied($job, 2000, 5);
		same_rows($source, 'SELECT * FROM raw_keys WHERE v % 400 <> 7', $target, "SELECT * FROM t.$job", "$job: the other rows are there", db1 => 'bytes');
		is(sql(qq{SELECT string_agg(concat_ws(' ', convert_from((raw->'columns'->>'v')::bytea, 'UTF8'), raw->'columns'->>'id', key), ', ' ORDER BY id) FROM migrate.dead_letters WHERE job = '$job'}),
			join(', ', map { "$_ \\x" . unpack('H*', "\xe9$_") } 7, 407, 807, 1207, 1607), "$job: with raw bytes, and no key");
	}
	# but a range cannot be cut there: an error, and no row is lost by it
	sql(q{SELECT migrate_create_job('bytes_keys', server => 'bytes', options => '{"chunking": "key", "chunk_rows": 300}');
		SELECT migrate_add_table('bytes_keys', 'from_bytes.raw_keys', 't.bytes_keys'); SELECT migrate_start('bytes_keys')});
	wait_job($target, 'bytes_keys', 'failed');
	like(sql(q{SELECT last_sqlstate || ' ' || last_error FROM migrate.job WHERE job = 'bytes_keys'}), qr/^22021 .*invalid byte sequence/, 'bytes_keys: an error that names the bytes');
	src(q{SET client_encoding = 'SQL_ASCII'; UPDATE raw_keys SET id = 'e' || v WHERE v % 400 = 7}, 'bytes');
	sql(q{SELECT migrate_resume('bytes_keys')});
	wait_job($target, 'bytes_keys', 'copied');
	same_rows($source, 'SELECT * FROM raw_keys WHERE v % 400 <> 7', $target, 'SELECT * FROM t.bytes_keys WHERE v % 400 <> 7', 'bytes_keys: goes on when the source is mended', db1 => 'bytes');
	sql(q{SELECT migrate_recopy('bytes_keys', 't.bytes_keys')});
	wait_job($target, 'bytes_keys', 'copied');
	same_rows($source, 'SELECT * FROM raw_keys', $target, 'SELECT * FROM t.bytes_keys', 'bytes_keys: equal after a recopy', db1 => 'bytes');
};

# --- collations: the order of keys is the source's affair
section 'collation' => sub {
	src(q{CREATE DATABASE icu ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C' TEMPLATE template0});
	connect_source($target, $source, server => 'icu', dbname => 'icu');
	my $fill = q{SELECT substr('aAbBäÄzZ-_ é', 1 + g % 12, 1) || substr('xXöÖ', 1 + g % 4, 1) || g, g FROM generate_series(1, 4000) g};
	src(qq{SET client_encoding = 'UTF8';
		CREATE TABLE by_default (id text PRIMARY KEY, v int); INSERT INTO by_default $fill;
		CREATE TABLE by_column (id text COLLATE "sv-x-icu" PRIMARY KEY, v int); INSERT INTO by_column $fill;
		CREATE TABLE by_char (id varchar(40) COLLATE "C", part bpchar(3) COLLATE "de-x-icu", v int, PRIMARY KEY (part, id)); INSERT INTO by_char SELECT q.id, CASE v % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'B' ELSE 'ä' END, v FROM ($fill) q (id, v)}, 'icu');
	sql(q{SELECT migrate_create_job('icu', server => 'icu'); SELECT migrate_import('icu', 'public', 'from_icu')});
	both(sub {
		my ($transport, $chunking) = @_;
		my $job = "icu_${transport}_$chunking";
		sql(qq{SELECT migrate_create_job('$job', server => 'icu', options => '{"transport": "$transport", "chunking": "$chunking", "chunk_rows": 333}');
			SELECT migrate_add_table('$job', 'from_icu.' || n, '$job.' || n) FROM unnest('{by_default,by_column,by_char}'::text[]) n;
			SELECT migrate_start('$job')});
		copied($job, 12000);
		same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM $job.$_", "$job: $_ is equal", db1 => 'icu') for qw(by_default by_column by_char);
		cmp_ok(sql(qq{SELECT min(n) FROM (SELECT count(*) AS n FROM migrate.chunks WHERE job = '$job' GROUP BY source) x}), '>', 3, "$job: in ranges of the key") if $chunking eq 'key';
	});
};

# --- a wrapper that is not postgres_fdw
section 'file' => sub {
	my $dir = $target->basedir;
	append_to_file("$dir/people.csv", join('', map { "$_,\"name, $_\"," . ($_ % 5 ? $_ / 4 : '') . "\n" } 1 .. 2000));
	append_to_file("$dir/bad.csv", "1,one,1\n2,two,x\n3,three,3\n");
	sql(qq{CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
		CREATE FOREIGN TABLE f.people (id int, name text, n numeric) SERVER files OPTIONS (filename '$dir/people.csv', format 'csv');
		CREATE FOREIGN TABLE f.bad (id int, name text, n numeric) SERVER files OPTIONS (filename '$dir/bad.csv', format 'csv');
		CREATE TABLE t.people (id int PRIMARY KEY, name varchar(30), n float8);
		SELECT migrate_create_job('file', server => 'files', options => '{"batch_rows": 150}');
		SELECT migrate_add_table('file', 'f.people', 't.people', key => '{"id": "id"}')});
	start('file');
	copied('file', 2000);
	same_rows($target, 'SELECT id, name, n FROM f.people', $target, 'SELECT * FROM t.people', 'file: equal');
	sql(q{CREATE TABLE t.bad (id int PRIMARY KEY, name text, n numeric);
		SELECT migrate_create_job('bad_file', server => 'files', options => '{"retry_time": "1s", "retry_max_delay": "100ms"}');
		SELECT migrate_add_table('bad_file', 'f.bad', 't.bad')});
	start('bad_file');
	ok(wait_for($target, q{SELECT state IN ('copied', 'failed') FROM migrate.job WHERE job = 'bad_file'}), 'file: a file with a bad line comes to an end');
	like(sql(q{SELECT coalesce(last_sqlstate || ' ' || last_error, '') || coalesce((SELECT string_agg(sqlstate || ' ' || message, ',') FROM migrate.dead_letters WHERE job = 'bad_file'), '')
		FROM migrate.job WHERE job = 'bad_file'}), qr/HV000 .*invalid input syntax for type numeric: "x"/, 'file: and the line is named, not dropped');
};

# --- relations that are no tables; a tree with a foreign leaf, one detached
section 'relations' => sub {
	src(q{CREATE TABLE base (id int PRIMARY KEY, v text); INSERT INTO base SELECT g, 'v' || g FROM generate_series(1, 2500) g;
		CREATE VIEW a_view AS SELECT id, upper(v) AS v FROM base;
		CREATE MATERIALIZED VIEW a_matview AS SELECT id, v || '!' AS v FROM base;
		CREATE DATABASE other});
	src(q{CREATE TABLE far (id int, v text); INSERT INTO far SELECT g, 'far' || g FROM generate_series(2000, 2999) g}, 'other');
	src(sprintf(q{CREATE EXTENSION postgres_fdw;
		CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%s', dbname 'other');
		CREATE USER MAPPING FOR CURRENT_USER SERVER other;
		CREATE TABLE tree (id int NOT NULL, v text) PARTITION BY RANGE (id);
		CREATE TABLE tree_0 PARTITION OF tree FOR VALUES FROM (0) TO (1000);
		CREATE TABLE tree_1 (v text, gone int, id int NOT NULL); ALTER TABLE tree_1 DROP gone;
		ALTER TABLE tree ATTACH PARTITION tree_1 FOR VALUES FROM (1000) TO (2000);
		CREATE FOREIGN TABLE tree_2 PARTITION OF tree FOR VALUES FROM (2000) TO (3000) SERVER other OPTIONS (table_name 'far');
		CREATE TABLE tree_3 PARTITION OF tree FOR VALUES FROM (3000) TO (4000);
		INSERT INTO tree SELECT g, 't' || g FROM generate_series(0, 3999) g WHERE g NOT BETWEEN 2000 AND 2999;
		ALTER TABLE tree DETACH PARTITION tree_3;
		CREATE TABLE parent (id int NOT NULL, v text); CREATE TABLE child (extra int) INHERITS (parent);
		INSERT INTO parent SELECT g, 'p' || g FROM generate_series(1, 1000) g; INSERT INTO child SELECT g, 'c' || g, g FROM generate_series(1001, 2000) g},
		$source->host, $source->port));
	sql(q{SELECT migrate_create_job('relations', server => 'legacy');
		CREATE FOREIGN TABLE f.a_view (id int, v text) SERVER legacy OPTIONS (schema_name 'public');
		CREATE FOREIGN TABLE f.a_matview (id int, v text) SERVER legacy OPTIONS (schema_name 'public');
		CREATE FOREIGN TABLE f.tree (id int, v text) SERVER legacy OPTIONS (schema_name 'public');
		CREATE FOREIGN TABLE f.parent (id int, v text) SERVER legacy OPTIONS (schema_name 'public')});
	foreach my $case ([ 'copy', 'auto' ], [ 'copy', 'key' ], [ 'fdw', 'key' ], [ 'fdw', 'auto' ])
	{
		my ($transport, $chunking) = @$case;
		my $job = "rel_${transport}_$chunking";
		my %n = (a_view => 2500, a_matview => 2500, tree => 3000, parent => 2000);
		sql(qq{CREATE SCHEMA $job; SELECT migrate_create_job('$job', server => 'legacy', options => '{"transport": "$transport", "chunking": "$chunking", "chunk_rows": 400}')});
		foreach my $r (sort keys %n)
		{
			my $key = $r =~ /^a_/ ? q{, key => '{"id": "id"}'} : '';
			sql(qq{CREATE TABLE $job.$r (id int PRIMARY KEY, v text); SELECT migrate_add_table('$job', 'f.$r', '$job.$r'$key)});
		}
		start($job);
		copied($job, 10000);
		same_rows($source, "SELECT id, v FROM $_", $target, "SELECT * FROM $job.$_", "$job: $_ is equal") for sort keys %n;
	}
};

# --- roles that may little
section 'privileges' => sub {
	src(q{CREATE ROLE little LOGIN; CREATE TABLE priv (secret text, id int PRIMARY KEY, v text);
		INSERT INTO priv SELECT 'hush', g, 'v' || g FROM generate_series(1, 2500) g;
		GRANT SELECT (id, v) ON priv TO little;
		CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
		CREATE TABLE root_0 PARTITION OF root FOR VALUES WITH (MODULUS 2, REMAINDER 0);
		CREATE TABLE root_1 PARTITION OF root FOR VALUES WITH (MODULUS 2, REMAINDER 1);
		INSERT INTO root SELECT g, 'r' || g FROM generate_series(1, 2500) g;
		GRANT SELECT ON root, base TO little; REVOKE ALL ON SCHEMA public FROM little});
	connect_source($target, $source, server => 'little', user => 'little');
	sql(q{CREATE FOREIGN TABLE f.priv (id int, v text) SERVER little OPTIONS (schema_name 'public');
		CREATE FOREIGN TABLE f.root (id int, v text) SERVER little OPTIONS (schema_name 'public');
		CREATE FOREIGN TABLE f.base (id int, v text) SERVER little OPTIONS (schema_name 'public')});
	foreach my $case ([ 'copy', 'auto' ], [ 'fdw', 'auto' ])
	{
		my ($transport, $chunking) = @$case;
		my $job = "little_${transport}_$chunking";
		sql(qq{SELECT migrate_create_job('$job', server => 'little', options => '{"transport": "$transport", "chunking": "$chunking", "chunk_rows": 700}');
			SELECT migrate_add_table('$job', 'f.' || n, '$job.' || n) FROM unnest('{priv,root,base}'::text[]) n});
		is(sql(qq{SELECT check_name, object, detail FROM migrate_preflight('$job') WHERE status = 'fail'}), '', "$job: preflight finds nothing that fails");
		start($job);
		copied($job, 7500);
		same_rows($source, "SELECT id, v FROM $_", $target, "SELECT * FROM $job.$_", "$job: $_ is equal") for qw(priv root base);
	}
	# a column that is asked for and not granted
	sql(q{CREATE FOREIGN TABLE f.secret (id int, secret text) SERVER little OPTIONS (schema_name 'public', table_name 'priv');
		SELECT migrate_create_job('secret', server => 'little', options => '{"retry_time": "1s"}');
		SELECT migrate_add_table('secret', 'f.secret', 't.secret')});
	is(sql(q{SELECT check_name, detail FROM migrate_preflight('secret') WHERE status = 'fail'}), 'source_privilege|role "little" may not read all columns: secret', 'secret: preflight says that a column may not be read');
};

# --- who must give a password
section 'password' => sub {
	sql(sprintf(q{CREATE ROLE plain LOGIN; SELECT migrate_grant('plain'); GRANT CREATE ON DATABASE postgres TO plain;
		GRANT USAGE ON FOREIGN SERVER legacy TO plain;
		CREATE USER MAPPING FOR plain SERVER legacy OPTIONS (user '%s');
		SET SESSION AUTHORIZATION plain; SELECT migrate_create_job('plain', server => 'legacy')}, src('SELECT current_user')));
	foreach my $case ([ '', qr/Non-superusers must provide a password in the user mapping/ ],
		[ q{ALTER USER MAPPING FOR plain SERVER legacy OPTIONS (ADD password 'unused');}, qr/Non-superuser cannot connect if the server does not request a password/ ])
	{
		my ($first, $detail) = @$case;
		sql($first) if $first;
		my ($ret, $out, $err) = $target->psql('postgres', q{SET SESSION AUTHORIZATION plain; SELECT migrate_add_table('plain', 'public.base', 'plain.base')});
		like($err, qr/ERROR:\s+password is required/, 'password: an error');
		like($err, $detail, 'password: which says what is wrong');
		like($err, qr/HINT:.*password_required/s, 'password: and what to do');
		unlike($err, qr/unused/, 'password: without the password');
	}
};

# --- a connection that is cut in mid-copy
section 'cut' => sub {
	src(q{CREATE TABLE cut (id int PRIMARY KEY, v text); INSERT INTO cut SELECT g, repeat('v', 300) FROM generate_series(1, 20000) g});
	foreach my $transport (qw(copy fdw))
	{
		my $job = "cut_$transport";
		sql(qq{SELECT migrate_create_job('$job', server => 'legacy', options => '{"transport": "$transport", "chunking": "whole", "workers": 1, "batch_rows": 100, "fetch_size": 100,
				"rows_per_second": 2000, "retry_max_delay": "100ms"}');
			SELECT migrate_add_table('$job', 'public.cut', 't.$job'); SELECT migrate_start('$job')});
		ok(wait_for($target, qq{SELECT count(*) = 1 FROM migrate.workers WHERE job = '$job' AND role = 'loader' AND chunk_rows BETWEEN 200 AND 10000}), "$job: in mid-copy");
		is(src(qq{SELECT count(*) > 0 FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname = 'postgres' AND application_name <> 'migrate/$job/job') x}), 't', "$job: its connection is cut");
		ok(wait_for($target, qq{SELECT max(attempt) > 1 FROM migrate.chunks WHERE job = '$job'}), "$job: it tries again");
		sql(qq{SELECT migrate_alter_job('$job', '{"rows_per_second": 0}')});
		copied($job, 20000);
		same_rows($source, 'SELECT * FROM cut', $target, "SELECT * FROM t.$job", "$job: equal");
		is(sql(qq{SELECT count(*) > 0 FROM migrate.events WHERE job = '$job' AND detail->>'sqlstate' LIKE '08%' OR job = '$job' AND message ~ 'terminat|connection|closed'}), 't', "$job: there is an event of it");
	}
};

# --- NOTIFY reaches whoever listens
section 'notify' => sub {
	my $out = sql(q{SELECT migrate_create_job('told', server => 'legacy'); SELECT migrate_add_table('told', 'public.base', 't.told');
		LISTEN migrate; SELECT migrate_start('told'); SELECT migrate_wait('told', 'copied', '3min'); SELECT 1; UNLISTEN migrate});
	like($out, qr/Asynchronous notification "migrate" with payload "\{"job" ?: ?"told".*copying -> /, 'notify: a state change');
	like($out, qr/"message" ?: ?"[a-z]+ -> copied/, 'notify: the end of the copy');
};

# --- limits that change while it runs, and are in view
section 'throttle' => sub {
	my $options = q{"workers": 1, "batch_rows": 100, "throttle_interval": "100ms", "rows_per_second": 500};
	src('CREATE TABLE pressure AS SELECT 10 AS n');
	sql(qq{CREATE TABLE pressure AS SELECT 10 AS n;
		SELECT migrate_create_job('limit', server => 'legacy', options => '{$options}');
		SELECT migrate_add_table('limit', 'public.cut', 't.limited'); SELECT migrate_start('limit')});
	my $shows = sub {
		my ($pattern) = @_;
		ok(wait_for($target, "SELECT throttle LIKE '$pattern' FROM migrate.progress WHERE job = 'limit'"), "throttle: in view: $pattern");
	};
	my $alter = sub { sql("SELECT migrate_alter_job('limit', '$_[0]')") };
	$shows->('rows_per_second: % > 500');
	$alter->('{"rows_per_second": 700}');
	$shows->('rows_per_second: % > 700');
	$alter->('{"bytes_per_second": "20kB"}');
	$shows->('bytes_per_second: % > 20480');
	$alter->('{"bytes_per_second": 0, "throttle_query": "SELECT n FROM public.pressure", "throttle_threshold": 5}');
	$shows->('throttle_query: 10 > 5');
	my $held = sql(q{SELECT rows_done FROM migrate.progress WHERE job = 'limit'});
	$alter->('{"rows_per_second": 0}');
	sql('UPDATE pressure SET n = 20');
	$shows->('throttle_query: 20 > 5');
	is(sql(q{SELECT rows_done FROM migrate.progress WHERE job = 'limit'}), $held, 'throttle: nothing moves meanwhile');
	# an error of the query does not hold the copy: a limit that stays must
	$alter->('{"rows_per_second": 300, "throttle_side": "source", "throttle_query": "SELECT 3 * n FROM public.pressure"}');
	$shows->('throttle_query: 30 > 5');
	src('UPDATE pressure SET n = 1');
	$shows->('rows_per_second: % > 300');
	is(job_state($target, 'limit'), 'copying', 'throttle: it is still at it');
	$alter->('{"rows_per_second": 0, "throttle_query": ""}');
	copied('limit', 20000);
	same_rows($source, 'SELECT * FROM cut', $target, 'SELECT * FROM t.limited', 'throttle: equal');
	is(sql(q{SELECT throttle IS NULL FROM migrate.progress WHERE job = 'limit'}), 't', 'throttle: nothing is in view at the end');
	is(sql(q{SELECT count(*) > 0 FROM migrate.events WHERE job = 'limit' AND kind = 'throttle' AND message LIKE 'held by throttle_query: 10 > 5%'}), 't', 'throttle: the pause is an event');
};

done_testing();
