# Copyright (c) 2026, the migrate authors; PostgreSQL License

# A validation that is killed goes on where it was (src/validate/parts.c), with
# the same verdict, whoever is killed: its session and the server with it, the
# whole target, the source, the worker of a scheduled one.  That a range is not
# read again is shown by a corruption in it that is not found until the next
# validation, one in the rest by being found.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use IPC::Run ();
use Test::More;

my $source = new_source('source', logical => 1);
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub up { wait_for($_[0], 'SELECT true') or BAIL_OUT('no server'); return; }

# rows of a target that are kept, and in how many parts
sub kept
{
	my $is = quote_literal($_[0]);
	return MigrateTest::try_query($target, "SELECT coalesce(sum(p.target_rows), 0) || ' in ' || count(*) FROM migrate.validation_part p"
		  . " JOIN migrate.mapping m USING (mapping_id) WHERE m.target = $is") // 'no answer';
}
sub quote_literal { return MigrateTest::quote_literal(@_); }

# a validation that ends in the middle
sub killed
{
	my ($settings, $call) = @_;
	MigrateTest::try_query($target, "$settings; SELECT * FROM $call");
	start_again($target) unless wait_for($target, 'SELECT true', timeout => 60);
	return;
}
sub validate { return sql("SELECT target, matched, mismatches, regexp_replace(status, 'since.*', 'since') FROM migrate_validate($_[0])"); }
sub streams { return wait_for($target, q{SELECT state = 'streaming' AND EXISTS (SELECT FROM migrate.workers WHERE job = 'v' AND role = 'apply') FROM migrate.job WHERE job = 'v'}); }

$source->safe_psql('postgres', q{
	CREATE TABLE few (id uuid PRIMARY KEY, v text);
	INSERT INTO few SELECT md5(g::text)::uuid, 'few ' || g FROM generate_series(1, 3000) g;
	CREATE TABLE t (id bigint PRIMARY KEY, v text);
	INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) g;
	CREATE TABLE loose (id int PRIMARY KEY, v text);
	INSERT INTO loose SELECT g, 'loose' FROM generate_series(1, 5000) g ORDER BY md5(g::text);
	VACUUM ANALYZE});
sql(q{
	CREATE SCHEMA v;
	CREATE TABLE v.few (id uuid PRIMARY KEY, v text);
	CREATE TABLE v.t (id bigint PRIMARY KEY, v text);
	CREATE TABLE v.loose (id int PRIMARY KEY, v text);
	SELECT migrate_create_job('v', server => 'legacy', options => '{"validate_part_rows": 2000, "workers": 1}');
	SELECT migrate_add_table('v', 'public.few', 'v.few');
	SELECT migrate_add_table('v', 'public.loose', 'v.loose');
	SELECT migrate_add_table('v', 'public.t', 'v.t');
	SELECT migrate_start('v')});
wait_job($target, 'v', 'streaming') or BAIL_OUT('the job does not stream');
sql('ANALYZE');
my $equal = "v.few|t|0|matched\nv.loose|t|0|matched\nv.t|t|0|matched";
is(validate(q{'v'}), $equal, 'equal');
is(sql('SELECT count(*) FROM migrate.validation_part'), '0', 'nothing is kept when it has ended');

# ------------------------------------------------------------ the session, twice
my $kill = "SET migrate.fault = 'validate-kept:kill'";
killed($kill, q{migrate_validate('v', 'v.t')});
my ($rows) = kept('v.t') =~ /^(\d+)/;
ok($rows >= 2000 && $rows < 20000, "killed: what was equal is kept, $rows rows");
is(sql(q{SELECT count(*) FROM migrate.validation WHERE status <> 'matched'}), '0', 'killed: nothing of it is recorded');
up($target); streams();
# in the part that was compared, and behind it
sql(q{UPDATE v.t SET v = 'other' WHERE id IN (5, 19995)});
killed($kill, q{migrate_validate('v', 'v.t')});
cmp_ok((kept('v.t') =~ /^(\d+)/)[0], '>', $rows, 'killed again: it went on, and keeps more');
is(sql(q{SELECT count(DISTINCT chain) = 1 AND bool_and(source_lsn IS NOT NULL) FROM migrate.validation_part}), 't', 'of one validation, each at its place of the stream');
streams();
my ($again) = kept('v.t') =~ /^(\d+)/;
is(validate(q{'v', 'v.t'}), "v.t|f|1|differs; $again rows of it compared before an interruption, since", 'the rest is compared, and what differs in it is found');
is(sql(q{SELECT source_rows, target_rows FROM migrate.validation ORDER BY validation_id DESC LIMIT 1}), '20000|20000', 'all rows are counted');
is(sql(q{SELECT key ->> 'id' FROM migrate.differences ORDER BY difference_id DESC LIMIT 1}), '19995', 'the row is named');
is(kept('v.t'), '0 in 0', 'ended: nothing is kept');
is(validate(q{'v', 'v.t'}), 'v.t|f|2|differs', 'the next one begins anew, and finds what was changed since');
sql(q{UPDATE v.t SET v = md5(id::text) WHERE id IN (5, 19995)});

# ------------------------------------------------------------ what is not one integer key, or lies about
killed($kill, q{migrate_validate('v')});
is(kept('v.few'), '3000 in 1', 'another key: the table is one part');
is(kept('v.loose') . ', ' . kept('v.t'), '0 in 0, 0 in 0', 'and the others are not kept yet');
streams();
killed($kill, q{migrate_validate('v')});
is(kept('v.few') . ', ' . kept('v.loose'), '3000 in 1, 5000 in 1', 'rows in no order: the table is one part');
streams();
sql(q{DELETE FROM v.few WHERE v = 'few 7'; UPDATE v.t SET v = 'x' WHERE id = 1});
is(validate(q{'v'}), "v.few|t|0|matched; 3000 rows of it compared before an interruption, since\nv.loose|t|0|matched; 5000 rows of it compared before an interruption, since\nv.t|f|1|differs",
	'tables that were compared are not read again, the others are');
is(validate(q{'v'}), "v.few|f|1|differs\nv.loose|t|0|matched\nv.t|f|1|differs", 'until it has ended');
is(sql(q{SELECT count(*) FROM migrate_repair('v', dry_run => false) WHERE action = 'matched'}), '3', 'mended');

# ------------------------------------------------------------ the rest differs where it is not known yet
sql(q{UPDATE v.t SET v = 'x' WHERE id = 100});
killed($kill, q{migrate_validate('v', 'v.t')});
streams();
sql(q{UPDATE v.t SET v = md5(id::text) WHERE id = 100});
like(validate(q{'v', 'v.t'}), qr/^v.t\|t\|0\|matched; \d+ rows of it compared before/, 'what differed is looked at again');

# ------------------------------------------------------------ rows that travel
killed("$kill; SELECT migrate_alter_job('v', '{\"digest\": \"here\"}')", q{migrate_validate('v', 'v.t', 'full')});
like(kept('v.t'), qr/^[1-9]/, 'full: it is kept, too');
streams();
is(validate(q{'v', 'v.t', 'checksum'}), 'v.t|t|0|matched', 'another level does not go by it');
like(validate(q{'v', 'v.t', 'full'}), qr/^v.t\|t\|0\|matched; \d+ rows/, 'the same does');

# ------------------------------------------------------------ when it does not count
killed($kill, q{migrate_validate('v', 'v.t')});
streams();
sql(q{SELECT migrate_alter_job('v', '{"validate_resume": 0}')});
is(validate(q{'v', 'v.t'}), 'v.t|t|0|matched', 'validate_resume 0: from the beginning');
is(kept('v.t'), '0 in 0', 'and nothing is left');
sql(q{SELECT migrate_alter_job('v', '{"validate_resume": "1d", "validate_part_rows": 0}')});
MigrateTest::try_query($target, "$kill; SELECT * FROM migrate_validate('v', 'v.t')");
is(kept('v.t') . ', ' . sql(q{SELECT status FROM migrate.validation ORDER BY validation_id DESC LIMIT 1}), '0 in 0, matched', 'validate_part_rows 0: nothing is kept');
sql(q{SELECT migrate_alter_job('v', '{"validate_part_rows": 2000}')});

# ------------------------------------------------------------ one that runs is not disturbed
my %s = (in => '', out => '', err => '');
$s{h} = IPC::Run::start([ 'psql', '-XAtq', '-d', $target->connstr('postgres'), '-c', "SET migrate.fault = 'validate-kept:wait'", '-c', q{SELECT mismatches FROM migrate_validate('v', 'v.t')} ],
	'<', \$s{in}, '>', \$s{out}, '2>', \$s{err});
ok(wait_for(sub { kept('v.t') =~ /^[1-9]/ }), 'one waits in the middle');
is(validate(q{'v', 'v.t'}), 'v.t|t|0|matched', 'another does not go by what it has found');
my $pid = sql('SELECT pid FROM migrate.validating');

# ------------------------------------------------------------ the source goes away
hard_kill($source);
sql("SELECT pg_terminate_backend($pid)");
IPC::Run::finish($s{h});
start_again($source);
streams();
killed("SET migrate.fault = 'validate-kept:error'", q{migrate_validate('v', 'v.t')});
my $before = kept('v.t');
like($before, qr/^[1-9]/, 'an error in the middle: kept');
hard_kill($source);
is(MigrateTest::try_query($target, q{SELECT * FROM migrate_validate('v', 'v.t')}), undef, 'no source: an error');
start_again($source);
streams();
like(validate(q{'v', 'v.t'}), qr/^v.t\|t\|0\|matched; \d+ rows of it compared before/, 'it is there again: goes on');

# ------------------------------------------------------------ the whole target
killed("SET migrate.fault = 'validate-kept:error'", q{migrate_validate('v', 'v.t')});
hard_restart($target);
up($target); streams();
like(validate(q{'v', 'v.t'}), qr/^v.t\|t\|0\|matched; \d+ rows of it compared before/, 'the target server is killed: goes on');

# ------------------------------------------------------------ by itself
set_fault($target, 'validate-kept:wait');
sql(q{SELECT migrate_alter_job('v', '{"validate_every": "1h"}'); UPDATE migrate.validation_run SET started_at = started_at - interval '2h'});
ok(wait_for(sub { kept('v.t') =~ /^[1-9]/ }), 'a scheduled one is in the middle');
my ($validator) = sql(q{SELECT pid FROM migrate.validating});
set_fault($target, '');
kill(9, $validator);
wait_for($target, 'SELECT true');
streams();
ok(wait_for($target, q{SELECT EXISTS (SELECT FROM migrate.validation WHERE target = 'v.t' AND status LIKE 'matched; % rows of it compared before%' AND started_at > now() - interval '1 hour')
	AND 3 = (SELECT count(DISTINCT target) FROM migrate.validation WHERE matched AND started_at > now() - interval '1 hour')}), 'killed: the next one goes on by itself');

# ------------------------------------------------------------ limits of the worker that runs
# so slow that it would not end: it ends since the limit is lifted while it runs
sub session
{
	my %s = (in => '', out => '', err => '');
	$s{h} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $target->connstr('postgres'), map { ('-c', $_) } @_ ], '<', \$s{in}, '>', \$s{out}, '2>', \$s{err});
	return \%s;
}
sub ended { my ($s) = @_; IPC::Run::finish($s->{h}); return $s->{out} . $s->{err}; }
sub limit { return sql(qq{SELECT migrate_alter_job('v', '{"rows_per_second": $_[0], "batch_rows": 100, "validate_every": 0, "validate_part_rows": 10000000}')}); }
sub shows { return wait_for($target, "SELECT EXISTS (SELECT FROM migrate.validating WHERE $_[0])"); }

limit(1);
my $s = session(q{SELECT mismatches FROM migrate_validate('v', 'v.t')});
ok(shows(q{throttle LIKE 'rows_per_second: % > 1' AND source_rows > 0}), 'the worker\'s limit holds for a validation');
limit(0);
is(ended($s), "0\n", 'and is lifted while it runs');

# ------------------------------------------------------------ a repair
sql(q{UPDATE v.t SET v = 'x' WHERE id % 2 = 0});
limit(1);
$s = session(q{SELECT action, rows FROM migrate_repair('v', 'v.t', false)});
ok(shows(q{target = 'v.t' AND phase = 'compare' AND throttle LIKE 'rows_per_second%' AND percent < 100}), 'a repair is seen, and keeps to the limits');
limit(4000);
ok(shows(q{phase = 'repair' AND source_rows > 0 AND source_estimate = 20000}), 'and so while it writes');
sql(q{SELECT pg_cancel_backend(pid) FROM migrate.validating});
like(ended($s), qr/57014: canceling statement/, 'it can be cancelled');
is(sql(q{SELECT count(*) FROM migrate.validating}), '0', 'nothing is seen of it');
limit(0);
is(sql(q{SELECT mismatches FROM migrate_validate('v', 'v.t')}), '10000', 'cancelled: nothing of it stays');
is(sql(q{SELECT action, rows FROM migrate_repair('v', 'v.t', false)}), "written|10000\nmatched|0", 'the next one does it');

# ------------------------------------------------------------ cancelled with the job
limit(1);
sql(q{SELECT migrate_alter_job('v', '{"validate_every": "1h"}'); UPDATE migrate.validation_run SET started_at = started_at - interval '2h'});
ok(shows(q{source_rows > 0 AND (SELECT backend_type FROM pg_stat_activity a WHERE a.pid = validating.pid) = 'migrate validator'}), 'a scheduled one that goes slowly');
sql(q{UPDATE v.t SET v = 'x' WHERE id = 1});
$s = session(q{SELECT action, rows FROM migrate_repair('v', 'v.t', false)});
ok(shows(q{pid <> (SELECT pid FROM pg_stat_activity WHERE backend_type = 'migrate validator') AND source_rows > 0}), 'and a repair');
sql(q{SELECT migrate_cancel('v')});
like(ended($s), qr/57014: the repair was cancelled with job "v"/, 'migrate_cancel ends the repair');
ok(wait_for($target, q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'migrate validator')}), 'and the scheduled validation');
is(sql(q{SELECT level FROM migrate.event WHERE kind = 'validation' AND message LIKE 'a scheduled validation was cancelled%'}), 'info', 'which is no warning');
is(sql(q{SELECT count(*) FROM migrate.validating}), '0', 'nothing is seen of either');
done_testing();
