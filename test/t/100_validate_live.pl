# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Validation and repair of a job that follows its source while an application
# writes all the time (see perl/Workload.pm):
# - P23: nothing is found different that is not, however often it is looked;
# - corruptions that are planted meanwhile are all found, with key and column,
#   and no others; they are repaired, and both sides are equal after;
# - rows that the application changes all the time are repaired, too;
# - a validation that is cancelled, fails or is killed at its worst moment
#   leaves apply running, and the next one has the same verdict.
#
# MIGRATE_VALIDATIONS: clean validations (default 5); MIGRATE_CORRUPTIONS: how
# many are planted (default 200; at most 984, since 1,000 differences are kept).

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Workload;
use Test::More;

my $validations = $ENV{MIGRATE_VALIDATIONS} || 5;
my $corruptions = $ENV{MIGRATE_CORRUPTIONS} || 200;

my $source = new_source('source', logical => 1);
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');
my $w = Workload->new(source => $source, target => $target);
$w->fill;

sub sql { return $target->safe_psql('postgres', $_[0]); }

# what nobody writes to: planted corruptions stay what they are
$w->src(q{
	CREATE TABLE app.still (id int PRIMARY KEY, n numeric, t text, e text, x int, y int, big text);
	ALTER TABLE app.still ALTER big SET STORAGE EXTERNAL;
	INSERT INTO app.still SELECT g, g / 4.0, 'text ' || g, '', g, g % 7, CASE WHEN g % 10 = 0 THEN w.big() END
		FROM generate_series(1, 20000) g;
	CREATE TABLE app.still_log (what text, n int);
	ALTER TABLE app.still_log REPLICA IDENTITY FULL;
	INSERT INTO app.still_log SELECT 'line ' || g % 50, g % 3 FROM generate_series(1, 3000) g;
	ANALYZE app.still, app.still_log;});
$w->start_writers;
$w->define('v', options => '"workers": 2');
sql(q{SELECT migrate_start('v')});
wait_job($target, 'v', 'streaming') or BAIL_OUT('the job does not stream');

# --- nothing differs
my $wrong = '';
foreach my $i (1 .. $validations)
{
	$wrong .= sql(q{SELECT 'round ' || } . $i . q{ || ': ', target, matched, mismatches, status FROM migrate_validate('v')
		WHERE status <> 'matched'});
	last if $wrong;
}
is($wrong, '', "P23: $validations validations of a target that changes all the time: nothing differs")
  or diag(sql(q{SELECT target, kind, key, columns FROM migrate.differences LIMIT 20}));
is(sql('SELECT count(*) FILTER (WHERE source_lsn IS NULL), count(*) > 20, count(DISTINCT source_lsn) > 5 FROM migrate.validation'),
	'0|t|t', 'P23: each at one place of the stream, and not always at the same');
is(sql(q{SELECT string_agg(DISTINCT digest, ',' ORDER BY digest) FROM migrate.validation}), 'here,source',
	'the source computed digests where it could');

# --- corruptions of every kind, in rows that nobody writes to
my $each = int($corruptions / 8) + 1;
sql(qq{
	CREATE TABLE planted AS
		SELECT id, row_number() OVER (ORDER BY random()) AS place FROM v.still WHERE id % 10 = 0;
	ALTER TABLE planted ADD kind text, ADD col text;
	UPDATE planted SET kind = (ARRAY['bit', 'gone', 'null', 'toast', 'swap', 'shift', 'columns'])[(place - 1) / $each + 1];
	DELETE FROM planted WHERE kind IS NULL;
	UPDATE planted SET col = CASE kind WHEN 'bit' THEN '{n}' WHEN 'null' THEN '{e}' WHEN 'toast' THEN '{big}' WHEN 'swap' THEN '{t}'
		WHEN 'shift' THEN '{x}' WHEN 'columns' THEN '{x,y}' END;
	UPDATE v.still s SET n = n + 1 FROM planted p WHERE p.id = s.id AND kind = 'bit';
	DELETE FROM v.still s USING planted p WHERE p.id = s.id AND kind = 'gone';
	UPDATE v.still s SET e = NULL FROM planted p WHERE p.id = s.id AND kind = 'null';
	UPDATE v.still s SET big = overlay(big placing '!' from length(big) / 2) FROM planted p WHERE p.id = s.id AND kind = 'toast';
	-- values that rows exchange: a ring of all of them
	UPDATE v.still s SET t = o.t FROM (SELECT id, coalesce(lead(q.t) OVER w, first_value(q.t) OVER w) AS t
		FROM planted p JOIN v.still q USING (id) WHERE kind = 'swap' WINDOW w AS (ORDER BY id)) o WHERE o.id = s.id;
	-- sums of a column stay what they were
	UPDATE v.still s SET x = x + CASE WHEN p.n % 2 = 0 THEN 1 ELSE -1 END
		FROM (SELECT *, row_number() OVER (ORDER BY id) n FROM planted WHERE kind = 'shift') p WHERE p.id = s.id;
	UPDATE v.still s SET x = y, y = x FROM planted p WHERE p.id = s.id AND kind = 'columns';
	INSERT INTO v.still (id) SELECT g * 100000 FROM generate_series(1, $each) g;
	INSERT INTO planted SELECT g * 100000, 0, 'many' FROM generate_series(1, $each) g;
	DELETE FROM v.still_log WHERE ctid = ANY (ARRAY(SELECT ctid FROM v.still_log WHERE what = 'line 7' AND n = 1 LIMIT 3));
	INSERT INTO v.still_log SELECT what, n FROM v.still_log WHERE what = 'line 8' AND n = 1;
	INSERT INTO v.still_log SELECT what, n FROM v.still_log WHERE what = 'line 9' AND n = 1 UNION ALL SELECT what, n FROM v.still_log WHERE what = 'line 9' AND n = 1;
	CREATE VIEW wrong AS
		SELECT p.id AS planted, d.key, p.kind, d.kind AS found, p.col, d.columns
		FROM planted p FULL JOIN (SELECT * FROM migrate.differences
			WHERE target = 'v.still' AND validation_id = (SELECT max(validation_id) FROM migrate.validation WHERE target = 'v.still')) d
			ON d.key ->> 'id' = p.id::text
		WHERE p.id IS NULL OR d.key IS NULL OR d.columns::text IS DISTINCT FROM p.col
			OR d.kind <> CASE p.kind WHEN 'gone' THEN 'missing_in_target' WHEN 'many' THEN 'missing_in_source' ELSE 'different' END;
});
my $planted = sql('SELECT count(*) FROM planted');
foreach my $level (qw(checksum full))
{
	is(sql(qq{SELECT target, mismatches FROM migrate_validate('v', level => '$level') WHERE NOT matched ORDER BY 1}),
		"v.still|$planted\nv.still_log|63", "$level: $planted planted corruptions are found, and nothing else");
	is(sql('SELECT * FROM wrong LIMIT 10'), '', "$level: the right keys and columns are named");
}
is(sql(q{SELECT target, matched FROM migrate_validate('v', 'v.still', 'count')}), 'v.still|t',
	'count: does not see as many rows gone as are too many');

# --- repaired
is(sql(q{SELECT action, sum(rows) FROM migrate_repair('v', 'v.still') GROUP BY 1 ORDER BY 1}),
	"delete|$each\ninsert|$each\nupdate|" . ($planted - 2 * $each), 'repair, dry: what it would do');
is(sql(q{SELECT target, action FROM migrate_repair('v', dry_run => false) WHERE action <> 'matched' ORDER BY 1, 2}),
	"v.still|deleted\nv.still|written\nv.still_log|deleted\nv.still_log|written", 'repair: done where something differed');
is(sql(q{SELECT target, status FROM migrate_validate('v') WHERE status <> 'matched'}), '', 'equal after the repair');

# --- a value that is equal, but another text
sql('UPDATE v.still SET n = round(n, 5) WHERE id = 17');
is(sql(q{SELECT matched, mismatches FROM migrate_validate('v', 'v.still', 'full')}), 'f|1', 'full: a trailing zero is found');
is(sql(q{SELECT action, rows FROM migrate_repair('v', 'v.still', false)}), "written|1\nmatched|0", 'and repaired, since it was found');

# --- rows that the application writes to meanwhile
sql(q{
	UPDATE v.ballast SET v = v - 1000000 WHERE id % 20 = 0;
	DELETE FROM v.ballast WHERE id % 100 = 3;
	UPDATE v.doc SET small = small + 1, big = 'x' || big WHERE length(name) % 2 = 0;
	DELETE FROM v.account WHERE id % 10 = 1;
	DELETE FROM v_m.wallet WHERE id % 10 = 1;
	INSERT INTO v.log SELECT 3, 'never written' FROM generate_series(1, 20);
	DELETE FROM v.log WHERE n = 7;
	UPDATE v_m.item_code SET n = -n WHERE n % 3 = 0;
	INSERT INTO v_m.piece SELECT id, 99 FROM v_m.ord WHERE id % 3 = 0;
});
cmp_ok(sql(q{SELECT count(*) FROM migrate_validate('v') WHERE NOT matched}), '>=', 5, 'what the application may change is found different, too');
is(sql(q{SELECT target, rows FROM migrate_repair('v', dry_run => false) WHERE action = 'differs'}), '', 'repair: every target matches');
is(sql(q{SELECT target, status FROM migrate_validate('v') WHERE status <> 'matched'}), '', 'equal after the repair, while changes go on');

# --- the user's checks, at one moment
sql(q{SELECT migrate_add_check('v', 'total', 'SELECT (SELECT sum(balance) FROM app.account) + (SELECT sum("select") FROM app."My ""Pockets")',
	'SELECT (SELECT sum(balance) FROM v.account) + (SELECT sum("select") FROM v."My ""Pockets")');
	SELECT migrate_add_check('v', 'orders', 'SELECT status, count(*), sum(price) FROM app.ord GROUP BY 1', 'SELECT status, count(*), sum(price) FROM v.ord GROUP BY 1')});
is(sql(q{SELECT target, status FROM migrate_validate('v') WHERE level = 'check'}), "check orders|matched\ncheck total|matched",
	'checks agree while the application writes');

# --- at the worst moment: apply is held
is(MigrateTest::try_query($target, q{SET migrate.fault = 'cut-held:error'; SELECT * FROM migrate_validate('v', 'v.account')}), undef,
	'a validation that fails while apply is held');
ok($w->mark('v'), 'apply goes on');
MigrateTest::try_query($target, q{SET migrate.fault = 'cut-held:wait'; SET statement_timeout = '300ms'; SELECT * FROM migrate_validate('v', 'v.account')});
ok($w->mark('v'), 'cancelled there: apply goes on');
MigrateTest::try_query($target, q{SET migrate.fault = 'cut-held:kill'; SELECT * FROM migrate_validate('v', 'v.account')});
start_again($target) unless wait_for($target, 'SELECT true', timeout => 60);
ok($w->mark('v'), 'killed there, and the server with it: apply goes on');
is(sql(q{SELECT target, status FROM migrate_validate('v') WHERE status <> 'matched'}), '', 'and the verdict is the same');
MigrateTest::try_query($target, q{SET migrate.fault = 'repair-mended:kill'; UPDATE v.still SET x = 0 WHERE id < 10; SELECT * FROM migrate_repair('v', 'v.still', false)});
wait_for($target, 'SELECT true', timeout => 60);
ok($w->mark('v'), 'a repair is killed: apply goes on');
is(sql(q{SELECT mismatches FROM migrate_validate('v', 'v.still')}), '9', 'a repair is killed: nothing of it stays');
is(sql(q{SELECT action, rows FROM migrate_repair('v', 'v.still', false)}), "written|9\nmatched|0", 'the next one does it');

# --- by itself
my $last = sql('SELECT max(validation_id) FROM migrate.validation_run');
sql(q{SELECT migrate_alter_job('v', '{"validate_every": "1h"}'); UPDATE migrate.validation_run SET started_at = started_at - interval '2h'});
ok(wait_for($target, "SELECT count(DISTINCT target) = (SELECT count(*) + 2 FROM migrate.mapping) FROM migrate.validation WHERE validation_id > $last"),
	'validate_every: every table and check is validated');
is(sql("SELECT count(*) FROM migrate.validation WHERE validation_id > $last AND status <> 'matched'"), '0', 'validate_every: nothing differs');

# --- in the end everything is equal
$w->drain('v');
$w->check('v');
same_rows($source, 'SELECT * FROM app.still', $target, 'SELECT * FROM v.still', 'equal: still');
same_rows($source, 'SELECT * FROM app.still_log', $target, 'SELECT * FROM v.still_log', 'equal: still_log');
$w->drop('v');
$w->check_clean;

done_testing();
