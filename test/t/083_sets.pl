# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Sets of changes, as large as they come, into targets of all sorts: what
# test/sql/apply_set.sql shows on a few rows.  Here: that no statement reads a
# table for a row (P17), sets of tens of thousands with a conflict in them, rows
# fetched by thousands, partitions truncated, owners that do not own the target.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;

my $source = new_source('source', conf => "autovacuum = off\n");
my $target = new_target('target', conf => "autovacuum = off\n");
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

# the same rows on the source as the sets give, so that they can be compared
sub images
{
	my ($table, $where) = @_;
	return "(SELECT jsonb_agg(to_jsonb(r)) FROM (SELECT * FROM legacy.$table WHERE $where) r)";
}

src(q{
	CREATE TABLE uniq (id int PRIMARY KEY, u int, v text);
	INSERT INTO uniq SELECT g, g, 'v' || g FROM generate_series(1, 20000) g;
	CREATE TABLE parts (id int PRIMARY KEY, grp int, v text);
	INSERT INTO parts SELECT g, g % 4, 'v' || g FROM generate_series(1, 20000) g;
	CREATE TABLE wide (a int, b text, big text, n int, PRIMARY KEY (a, b));
	INSERT INTO wide SELECT g, 'b' || g % 7, 'big ' || g, g FROM generate_series(1, 3000) g;
	CREATE TABLE days (day date, n int, PRIMARY KEY (day, n)) PARTITION BY RANGE (day);
	CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
	CREATE TABLE "Days 2" PARTITION OF days FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
	CREATE TABLE hashed (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
	CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE TABLE child (id int PRIMARY KEY, parent int);
});
sql(q{
	CREATE FUNCTION apply(job text, source text, images jsonb DEFAULT NULL, gone jsonb DEFAULT NULL, unknown jsonb DEFAULT NULL, truncate text DEFAULT NULL)
		RETURNS text LANGUAGE C AS '$libdir/migrate', 'migrate_test_apply';
	SELECT migrate_create_job('s', 'legacy');
	SELECT migrate_import('s', 'public');
	CREATE SCHEMA t;
	CREATE TABLE t.uniq (id int PRIMARY KEY, u int UNIQUE, v text CHECK (v <> 'bad'), ours int DEFAULT 7);
	CREATE TABLE t.parts (id int, grp int, v text, ours int DEFAULT 7, UNIQUE (id, grp)) PARTITION BY LIST (grp);
	CREATE TABLE t.parts_0 PARTITION OF t.parts FOR VALUES IN (0);
	CREATE TABLE t.parts_1 PARTITION OF t.parts FOR VALUES IN (1);
	CREATE TABLE t.parts_2 PARTITION OF t.parts FOR VALUES IN (2, 3);
	CREATE TABLE t.wide (a int, b text, big text, n int, PRIMARY KEY (b, a));
	SELECT migrate_add_table('s', 'public.uniq', 't.uniq');
	SELECT migrate_add_table('s', 'public.parts', 't.parts');
	SELECT migrate_add_table('s', 'public.wide', 't.wide');
	SELECT migrate_add_table('s', 'public.days', 't.days');
	SELECT migrate_add_table('s', 'public.hashed', 't.hashed');
});

# ---------------------------------------------------------------- large sets

like(sql("SELECT apply('s', 'public.uniq', " . images('uniq', 'true') . ")"),
	qr/^index: 20000 up, 0 del, 0 dead/, 'many new rows');
sql('UPDATE t.uniq SET ours = id');
src('UPDATE uniq SET u = 20001 - u');
like(sql("SELECT apply('s', 'public.uniq', " . images('uniq', 'true') . ")"),
	qr/^index: 20000 up, \d+ del, 0 dead/, 'every row has the unique value of another');
same_rows($source, 'SELECT id, u, v FROM uniq', $target, 'SELECT id, u, v FROM t.uniq', 'values swapped');
is(sql('SELECT count(*) FROM t.uniq WHERE ours = id'), 20000, 'what is not mapped is kept');

# bad rows and a swap in one set
src(q{UPDATE uniq SET u = CASE id WHEN 3 THEN -1 WHEN 19000 THEN (SELECT u FROM uniq WHERE id = 3) ELSE u END,
	v = CASE WHEN id IN (50, 7000, 15000) THEN 'bad' ELSE 'x' || id END WHERE id IN (3, 19000, 50, 7000, 15000) OR id % 100 = 1});
like(sql("SELECT apply('s', 'public.uniq', " . images('uniq', q{v ~ '^(bad|x)'}) . ")"),
	qr/^index: 202 up, \d+ del, 3 dead/, 'bad rows and a value that moved in one set');
same_rows($source, q{SELECT id, u, v FROM uniq WHERE v <> 'bad'}, $target, 'SELECT id, u, v FROM t.uniq', 'only the bad ones are missing');
src(q{UPDATE uniq SET v = 'good' WHERE v = 'bad'});
like(sql("SELECT apply('s', 'public.uniq', " . images('uniq', q{v = 'good'}) . ")"),
	qr/^index: 3 up, 0 del, 0 dead, 3 superseded/, 'they are superseded');
same_rows($source, 'SELECT id, u, v FROM uniq', $target, 'SELECT id, u, v FROM t.uniq', 'and all rows are there');

# ------------------------------------------- P17: no table is read for a row

like(sql("SELECT apply('s', 'public.parts', " . images('parts', 'true') . ")"),
	qr/^statements: 20000 up/, 'P17: rows into partitions');
sql(q{SELECT pg_stat_force_next_flush(); SELECT pg_stat_reset()});
src(q{UPDATE parts SET grp = (grp + 1) % 4, v = v || '!' WHERE id % 50 = 0; UPDATE parts SET v = v || '?' WHERE id = 77});
like(sql("SELECT apply('s', 'public.parts', " . images('parts', q{v ~ '!$'}) . ")"),
	qr/^statements: 400 up, 0 del, 0 dead/, 'P17: rows move between partitions');
sql("SELECT apply('s', 'public.parts', " . images('parts', 'id = 77') . q{, '[{"id": 20000}]')});
wait_for($target, q{SELECT sum(idx_scan) > 400 FROM pg_stat_user_tables WHERE relname ~ '^parts_'});
is(sql(q{SELECT coalesce(sum(seq_scan), 0) FROM pg_stat_user_tables WHERE relname ~ '^parts_'}), 0,
	'P17: though nothing was analyzed, every row was found by an index');
src('DELETE FROM parts WHERE id = 20000');
same_rows($source, 'SELECT id, grp, v FROM parts', $target, 'SELECT id, grp, v FROM t.parts', 'P17: partitions have the rows');

# ------------------------------------------------------------ fetched rows

# every third is in the target already
sql(q{INSERT INTO t.wide SELECT a, b, 'ours', 0 FROM legacy.wide WHERE a % 3 = 0});
like(sql("SELECT apply('s', 'public.wide', " . images('wide', 'true') .
		q{, NULL, (SELECT jsonb_object_agg(i, '["big"]'::jsonb) FROM generate_series(0, 2999) i))}),
	qr/, 0 dead, 0 superseded, fetched$/, 'unchanged TOAST of thousands of rows');
is(sql(q{SELECT count(*), count(*) FILTER (WHERE big = 'ours'), count(*) FILTER (WHERE big = 'big ' || a AND n = a) FROM t.wide}),
	'3000|1000|2000', 'kept where the row was there, fetched where not');

# ---------------------------------------------------------------- TRUNCATE

for my $t ('days', 'hashed')
{
	src($t eq 'days' ? q{INSERT INTO days SELECT d, n FROM generate_series(date '2026-01-01', '2026-02-28', '1 day') d, generate_series(1, 3) n}
		: q{INSERT INTO hashed SELECT g, 'v' FROM generate_series(1, 100) g});
	sql("SELECT apply('s', 'public.$t', " . images($t, 'true') . ")");
}
src('TRUNCATE "Days 2", hashed_1');
like(sql(q{SELECT apply('s', 'public.days', truncate => 'public."Days 2"')}), qr/truncated$/, 'a partition is truncated');
like(sql(q{SELECT apply('s', 'public.hashed', truncate => 'public.hashed_1')}), qr/truncated$/, 'also one by hash');
same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM t.$_", "$_: the rest is there") for ('days', 'hashed');

# a target with partitions of its own
sql(q{
	SELECT migrate_remove_table('s', 't.days');
	SELECT migrate_remove_table('s', 't.hashed');
	CREATE TABLE t.alldays (day date, n int, PRIMARY KEY (n, day));
	CREATE TABLE t.allhashed (id int PRIMARY KEY, v text);
	SELECT migrate_add_table('s', 'public.days', 't.alldays');
	SELECT migrate_add_table('s', 'public.hashed', 't.allhashed');
});
src(q{INSERT INTO days SELECT d, n FROM generate_series(date '2026-02-01', '2026-02-28', '1 day') d, generate_series(1, 3) n});
sql("SELECT apply('s', 'public.$_', " . images($_, 'true') . ")") for ('days', 'hashed');
src('TRUNCATE days_1, hashed_0');
like(sql(q{SELECT apply('s', 'public.days', truncate => 'public.days_1')}), qr/truncated$/, 'a partition by its constraint');
same_rows($source, 'SELECT * FROM days', $target, 'SELECT * FROM t.alldays', 'its rows are gone');
unlike(sql(q{SELECT apply('s', 'public.hashed', truncate => 'public.hashed_0')}), qr/truncated$/, 'rows of a hash partition cannot be told');
is(sql('SELECT count(*) > 0 FROM t.allhashed'), 't', 'and none is deleted');

# somebody reads the target: its rows are deleted instead
sql(q{SELECT migrate_alter_job('s', '{"lock_timeout": "200ms"}')});
my $reader = $target->background_psql('postgres');
$reader->query_safe('BEGIN; SELECT count(*) FROM t.wide');
like(sql(q{SELECT apply('s', 'public.wide', truncate => '')}), qr/truncated$/, 'a reader does not hold it up');
is(sql('SELECT count(*) FROM t.wide'), 0, 'all rows are gone');
$reader->query_safe('COMMIT');
$reader->quit;

# --------------------------------------- an owner that does not own the target

sql(q{
	CREATE ROLE guest LOGIN;
	GRANT CREATE ON DATABASE postgres TO guest;
	GRANT USAGE ON FOREIGN SERVER legacy TO guest;
	GRANT USAGE ON SCHEMA t TO guest;
	CREATE TABLE t.parent (id int PRIMARY KEY);
	INSERT INTO t.parent SELECT generate_series(1, 5);
	CREATE TABLE t.child (id int PRIMARY KEY, parent int REFERENCES t.parent);
	GRANT SELECT, INSERT, UPDATE, DELETE ON t.child, t.parent TO guest;
	SELECT migrate_grant('guest');
	CREATE USER MAPPING FOR guest SERVER legacy OPTIONS (user 'guest', password_required 'false');
});
src(q{CREATE ROLE guest LOGIN; GRANT SELECT ON child TO guest});
$target->safe_psql('postgres', q{SET ROLE guest;
	SELECT migrate_create_job('g', 'legacy');
	SELECT migrate_import('g', 'public', 'guests', include => '{child}');
	SELECT migrate_add_table('g', 'public.child', 't.child')});
like(sql(q{SELECT apply('g', 'public.child', '[{"id": 1, "parent": 1}, {"id": 2, "parent": 99}, {"id": 3, "parent": 3}]')}),
	qr/^statements: 2 up, 0 del, 1 dead/, 'foreign keys are enforced where the owner does not own the target');
is(sql(q{SELECT d.key, d.sqlstate FROM migrate.dead_letter d JOIN migrate.job j USING (job_id) WHERE j.job = 'g'}),
	'{"id": "2"}|23503', 'the row without a parent is a dead letter');

done_testing();
