# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Level "changed": what changed since the last validation is known from the
# spool, and only that is compared, for every shape of mapping; what is not known
# is compared whole; and nothing that differs is forgotten by the next run.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;

my $source = new_source('source', logical => 1);
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

# Until what the source has is applied here.
sub follow
{
	my $n = src(q{INSERT INTO mark DEFAULT VALUES RETURNING n});
	return wait_for($target, "SELECT true FROM mark WHERE n = $n") || BAIL_OUT('the job does not follow');
}

# What a run says, without the targets in which nothing changed.
sub changed
{
	my ($target) = @_;
	$target = $target ? "'public.$target'" : 'NULL';
	return sql(qq{SELECT target, source_rows, target_rows, mismatches, status FROM migrate_validate('j', $target, level => 'changed')
		WHERE status <> 'matched; nothing changed' AND target <> 'public.mark' ORDER BY 1});
}

src(q{
	CREATE TABLE mark (n serial PRIMARY KEY);
	CREATE TABLE one (id int PRIMARY KEY, v text, big text);
	ALTER TABLE one ALTER big SET STORAGE EXTERNAL;
	INSERT INTO one SELECT g, 'v' || g, CASE WHEN g % 10 = 0 THEN repeat('x', 5000) END FROM generate_series(1, 5000) g;
	CREATE TABLE two ("Key A" text, b timestamptz, v numeric, PRIMARY KEY ("Key A", b));
	INSERT INTO two SELECT 'k''ä' || g, '2026-01-01'::timestamptz + g * interval '1 s', g / 4.0 FROM generate_series(1, 3000) g;
	CREATE TABLE part (id bigint, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
	CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
	CREATE TABLE part_b PARTITION OF part FOR VALUES IN ('b');
	INSERT INTO part SELECT g, CASE g % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'n' || g FROM generate_series(1, 1000) g;
	CREATE TABLE ord (id int PRIMARY KEY, pieces int, state text);
	INSERT INTO ord SELECT g, g % 4, CASE g % 5 WHEN 0 THEN 'old' ELSE 'new' END FROM generate_series(1, 1000) g;
	CREATE TABLE log (what text, n int);
	ALTER TABLE log REPLICA IDENTITY FULL;
	INSERT INTO log SELECT 'l' || g % 7, g % 3 FROM generate_series(1, 200) g;
	ANALYZE;
});
sql(q{
	SELECT migrate_create_job('j', server => 'legacy');
	SELECT migrate_add_schema('j', 'public', exclude => '{ord}');
	SELECT migrate_import('j', 'public');
	CREATE TABLE piece (ord int, n int, PRIMARY KEY (ord, n));
	CREATE FUNCTION map_piece(o legacy.ord) RETURNS SETOF piece LANGUAGE sql STABLE AS 'SELECT o.id, g FROM generate_series(1, o.pieces) g';
	SELECT migrate_add_table('j', 'public.ord', 'public.piece', mapping => 'map_piece', key => '{"ord": "id"}');
	CREATE TABLE fresh (ord bigint PRIMARY KEY, state text);
	SELECT migrate_add_table('j', 'public.ord', 'public.fresh', columns => '{"ord": "id + 100000"}', key => '{"ord": "id + 100000"}', filter => $$state <> 'old'$$);
});
sql(q{SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming') or BAIL_OUT('the job does not stream');
follow();

# --- before any validation, and after one

like(changed('one'), qr/^public.one\|5000\|5000\|0\|matched; compared whole: it was never validated$/, 'never validated: the whole table');
is(changed('one'), '', 'then nothing has changed');
is(sql(q{SELECT status FROM migrate_validate('j') WHERE NOT matched}), '', 'all is equal');
is(changed(), '', 'after that nothing has changed anywhere');
is(sql(q{SELECT m.target, c.keys, c.whole FROM migrate._changed_since(1) c JOIN migrate.mapping m USING (mapping_id) WHERE c.keys <> 0}), '', 'nor is anything counted');

# --- changes of every kind

sub change
{
	my ($i) = @_;
	src(qq{
		UPDATE one SET v = 'changed $i' WHERE id BETWEEN 1 AND 10;
		UPDATE one SET id = id + 100000 * $i WHERE id BETWEEN 11 AND 15;
		DELETE FROM one WHERE id BETWEEN 20 AND 22;
		INSERT INTO one SELECT g, 'new' FROM generate_series(20, 21) g;
		DELETE FROM one WHERE id = 30 + $i;
		UPDATE two SET v = v + 1 WHERE "Key A" LIKE 'k''ä7%';
		UPDATE part SET region = 'b' WHERE region = 'a' AND id <= 20;
		UPDATE part SET note = 'changed $i' WHERE id BETWEEN 1 AND 3;
		INSERT INTO part VALUES (9000 + $i, 'a', NULL);
		UPDATE ord SET pieces = pieces + 1 WHERE id <= 8;
		UPDATE ord SET state = CASE state WHEN 'old' THEN 'new' ELSE 'old' END WHERE id BETWEEN 5 AND 10;
		INSERT INTO log VALUES ('new', $i);
	});
	follow();
}
change(1);
my $expected = join "\n",
	'public.fresh|6|6|0|matched; 10 keys changed',
	'public.log|201|201|0|matched; compared whole: it has no key, and has changed',
	'public.one|17|17|0|matched; 24 keys changed',
	'public.part|13|13|0|matched; 23 keys changed',
	'public.piece|23|23|0|matched; 10 keys changed',
	'public.two|111|111|0|matched; 111 keys changed';
is(sql(q{SELECT m.target, c.keys FROM migrate._changed_since(1) c JOIN migrate.mapping m USING (mapping_id) WHERE m.target <> 'public.mark' ORDER BY 1}),
	"public.fresh|10\npublic.log|\npublic.one|24\npublic.part|23\npublic.piece|10\npublic.two|111", 'what changed is counted');
is(changed(), $expected, 'each is compared by the rows that changed');
is(changed(), '', 'then nothing has changed');

# --- damage is found where something changed, and there alone

sub damage
{
	sql(q{
		UPDATE one SET v = 'damaged' WHERE id = 3;
		DELETE FROM one WHERE id = 21;
		INSERT INTO one VALUES (32, 'too many');
		UPDATE one SET v = 'not found' WHERE id = 4000;
		UPDATE two SET v = -1 WHERE "Key A" = 'k''ä77';
		UPDATE part SET note = 'damaged' WHERE id = 2;
		DELETE FROM piece WHERE ord = 7 AND n = 1;
		INSERT INTO piece VALUES (6, 77);
		INSERT INTO fresh VALUES (100005, 'filtered, and here');
		DELETE FROM log WHERE what = 'new';
	});
}
change(2);
damage();
my @found = map { [split /\|/] } split /\n/, changed();
is(join(',', map { "$_->[0] $_->[3]" } @found), 'public.fresh 1,public.log 2,public.one 3,public.part 1,public.piece 2,public.two 1',
	'damaged rows that changed are found') or diag explain \@found;
is(sql(q{SELECT target, kind, key, columns FROM migrate.differences WHERE target = 'public.one' ORDER BY key ->> 'id'}),
	qq(public.one|missing_in_target|{"id": "21"}|\npublic.one|different|{"id": "3"}|{v}\npublic.one|missing_in_source|{"id": "32"}|), 'with key and columns; the one that did not change is not among them');
@found = map { [split /\|/] } split /\n/, changed();
is(join(',', map { "$_->[0] $_->[3]" } @found), 'public.fresh 1,public.log 2,public.one 3,public.part 1,public.piece 2,public.two 1',
	'they are found again: what differs is not forgotten');
is(sql(q{SELECT go, blockers FROM migrate.readiness}), 'f|{last_check}', 'and they stand in the way of a cutover');
sql(q{SELECT migrate_repair('j', dry_run => false)});
is(sql(q{SELECT status FROM migrate_validate('j') WHERE NOT matched}), '', 'repaired');
is(sql(q{SELECT go, blockers FROM migrate.readiness}), 't|{}', 'nothing is in the way after a validation of all');
is(changed(), '', 'and nothing has changed since');
is(sql(q{SELECT v FROM one WHERE id = 4000}), 'v4000', 'it was the validation of all that found the other one');

# --- truncated

src(q{TRUNCATE part; INSERT INTO part VALUES (1, 'a', 'only')});
follow();
is(changed(), 'public.part|1|1|0|matched; compared whole: it was truncated', 'truncated: the whole table');
src(q{UPDATE part SET note = 'x'});
follow();
is(changed(), 'public.part|1|1|0|matched; 1 keys changed', 'then by rows again');

# --- copied again

src(q{UPDATE two SET v = 0});
sql(q{SELECT migrate_recopy('j', 'public.two')});
wait_job($target, 'j', 'streaming');
ok(wait_for($target, q{SELECT bool_and(state = 'done') FROM migrate.source_table}), 'copied again') ;
follow();
like(changed('two'), qr/compared whole: it was copied again since it was validated/, 'copied again: the whole table');

# --- the spool is kept, and dropped beyond its limit

sub fill { src(q{INSERT INTO log SELECT repeat(md5(random()::text), 300), g FROM generate_series(1, 1500) g; DELETE FROM log WHERE length(what) > 1000}) for 1 .. 3; follow(); }
sql(q{SELECT migrate_alter_job('j', '{"spool_limit": "4MB"}')});
fill();
is(changed('one'), '', 'the spool is kept back to the last validation') or diag sql('SELECT * FROM migrate.validated');
cmp_ok(sql('SELECT count(*) FROM migrate.spool_segment'), '>=', 2, 'in several segments');
fill();
sql(q{SELECT migrate_alter_job('j', '{"changed_spool_size": "0"}')});
ok(wait_for($target, 'SELECT count(*) <= 1 FROM migrate.spool_segment'), 'dropped beyond its limit');
like(changed('two'), qr/\|0\|matched; compared whole: what changed since it was validated is not kept any more/, 'dropped: the whole table');
like(sql(q{SELECT whole FROM migrate._changed_since(1) c JOIN migrate.mapping m USING (mapping_id) WHERE target = 'public.piece'}), qr/not kept any more/, 'and so it is told');
sql(q{SELECT migrate_alter_job('j', '{"changed_spool_size": "1GB"}')});
is(sql(q{SELECT target, status FROM migrate_validate('j') WHERE NOT matched}), '', 'all is equal in the end');

done_testing();
