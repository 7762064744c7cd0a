# Copyright (c) 2026, the migrate authors; PostgreSQL License

# A validation while it runs: what other sessions see of it, the limits that it
# keeps to, and how it is cancelled; and what becomes of its results later.
# The server does not preload the library, and the job has no worker any more:
# all that is shown comes from the session that validates.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use IPC::Run ();
use Test::More;
use Time::HiRes qw(sleep time);

my $source = new_source('source');
my $target = new_target('target', conf => "max_parallel_workers_per_gather = 2\nmin_parallel_table_scan_size = 0\nparallel_setup_cost = 0\nparallel_tuple_cost = 0");
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub shows { return wait_for($target, $_[0], timeout => 40); }
sub seen { return sql("SELECT $_[0] FROM migrate.validating WHERE job = 'v'"); }

# a session that does something for long; what it said, when it has ended
sub begin_session
{
	my %s = (in => '', out => '', err => '');
	$s{h} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $target->connstr('postgres'), '-c', $_[0] ], '<', \$s{in}, '>', \$s{out}, '2>', \$s{err});
	return \%s;
}
sub end_session { my ($s) = @_; IPC::Run::finish($s->{h}); return $s->{out} . $s->{err}; }

$source->safe_psql('postgres', q{
	CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) g;
	CREATE TABLE few (id int PRIMARY KEY, v text); INSERT INTO few SELECT g, 'few' FROM generate_series(1, 20) g;
	VACUUM ANALYZE});
sql(q{
	-- holds a query on the target in the middle
	CREATE FUNCTION public.gate(id int) RETURNS boolean LANGUAGE plpgsql PARALLEL SAFE AS $$
	BEGIN
		IF id = 15000 THEN
			PERFORM pg_advisory_xact_lock_shared(4711);
		END IF;
		RETURN true;
	END $$;
	CREATE SCHEMA v;
	CREATE TABLE v.few (id int PRIMARY KEY, v text);
	CREATE TABLE v.t (id int PRIMARY KEY, v text);
	SELECT migrate_create_job('v', server => 'legacy', options => '{"batch_rows": 100}');
	SELECT migrate_add_table('v', 'public.few', 'v.few');
	SELECT migrate_add_table('v', 'public.t', 'v.t', owns => 'public.gate(id)');
	SELECT migrate_start('v')});
wait_job($target, 'v', 'copied') or BAIL_OUT('no copy');
is(seen('count(*)'), '0', 'nothing is validated');

# ------------------------------------------------------------ rows that travel, paced
sql(q{SELECT migrate_alter_job('v', '{"rows_per_second": 2000, "digest": "auto"}')});
my $s = begin_session('SELECT target, matched FROM migrate_validate(\'v\')');
ok(shows(q{SELECT source_rows > 2500 FROM migrate.validating WHERE target = 'v.t'}), 'paced: it is seen, and moves');
is(seen(q{concat_ws(' ', target, level, digest, phase, source_estimate, target_estimate, targets_done, targets)}),
	'v.t checksum here compare 20000 20000 1 2', 'what it does, and how much there is of it');
is(seen(q{concat_ws(' ', eta IS NOT NULL, total_eta IS NOT NULL, percent BETWEEN 0.1 AND 99.9, total_percent BETWEEN 0.1 AND 99.9, bar <> '', rows_per_second > 0)}),
	't t t t t t', 'rate and time left, of the target and of all');
ok(shows(q{SELECT throttle LIKE 'rows_per_second: % > 2000' FROM migrate.validating}), 'the limit that it waits for');
is(sql(q{CREATE ROLE other; SELECT migrate_grant('other'); SET ROLE other; SELECT count(*) FROM migrate.validating}) =~ s/^\s+//r, '0',
	'others do not see it');
my $percent = seen('percent');
ok(shows("SELECT percent > $percent + 5 FROM migrate.validating"), "it goes on from $percent percent");
is(sql(q{SELECT count(*) FROM migrate.validation}), '0', 'nothing is recorded before the end');

# the statement is cancelled
sql(q{SELECT pg_cancel_backend(pid) FROM migrate.validating});
like(end_session($s), qr/ERROR:  57014: canceling statement due to user request/, 'cancelled while it waits for the limit');
is(seen('count(*)'), '0', 'cancelled: nothing is seen of it');
is(sql(q{SELECT count(*) FROM migrate.validation}), '0', 'cancelled: nothing is recorded');
ok(wait_for($source, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'migrate/v/%'}), 'cancelled: the source is left');

# ------------------------------------------------------------ a query here, a query there
sql(q{SELECT migrate_alter_job('v', '{"rows_per_second": 0}')});
foreach my $workers (1, 3)
{
	my $gate = $target->background_psql('postgres');
	$gate->query_safe('SELECT pg_advisory_lock(4711)');
	sql(qq{SELECT migrate_alter_job('v', '{"workers": $workers}')});
	$s = begin_session('SELECT target, matched FROM migrate_validate(\'v\', \'v.t\')');
	ok(shows(q{SELECT target_rows > 1024 FROM migrate.validating WHERE digest = 'source'}), "digests by query, workers $workers: rows are counted");
	is(seen(q{concat_ws(' ', phase, coalesce(source_rows::text, 'unknown'), target_rows <= 20000, percent BETWEEN 1 AND 99.9, eta IS NOT NULL)}), 'compare unknown t t t', 'here; of the source nothing is known');
	$gate->quit;
	is(end_session($s), "v.t|t\n", 'and it ends well');
}

# ------------------------------------------------------------ what differs
sql(q{UPDATE v.t SET v = 'x' WHERE id % 5 = 0; SELECT migrate_alter_job('v', '{"rows_per_second": 9000, "digest": "here"}')});
$s = begin_session('SELECT target, mismatches FROM migrate_validate(\'v\', \'v.t\')');
ok(shows(q{SELECT phase = 'rows that differ' AND source_rows > 0 AND percent < 100 AND total_percent > 99 FROM migrate.validating}), 'the rows that differ are a pass of its own');
is(end_session($s), "v.t|4000\n", 'they are found');

# ------------------------------------------------------------ cancelled with the job
sql(q{SELECT migrate_alter_job('v', '{"rows_per_second": 500}')});
$s = begin_session('SELECT target, mismatches FROM migrate_validate(\'v\', \'v.t\')');
ok(shows(q{SELECT source_rows > 0 FROM migrate.validating}), 'a slow one');
my $recorded = sql('SELECT count(*) FROM migrate.validation');
sql(q{SELECT migrate_cancel('v')});
like(end_session($s), qr/ERROR:  57014: the validation was cancelled with job "v"/, 'migrate_cancel cancels it');
is(sql('SELECT count(*) FROM migrate.validation'), $recorded, 'before its end: nothing is recorded');
is(seen('count(*)'), '0', 'nothing is seen of it');

# ------------------------------------------------------------ history
sql(q{SELECT migrate_alter_job('v', '{"rows_per_second": 0, "digest": "auto"}'); UPDATE v.t SET v = md5(id::text);
	SELECT migrate_validate('v'); SELECT migrate_validate('v', level => 'count');
	UPDATE migrate.validation_run SET started_at = started_at - interval '40 days'});
my $all = sql('SELECT count(*) FROM migrate.validation');
cmp_ok(sql('SELECT count(*) FROM migrate.differences'), '>', 0, 'there are old differences');
sql(q{SELECT migrate_alter_job('v', '{"validation_retention": 0}'); SELECT migrate_validate('v', 'v.t')});
is(sql('SELECT count(*) FROM migrate.validation'), $all + 1, 'validation_retention 0: all is kept');
sql(q{SELECT migrate_alter_job('v', '{"validation_retention": "60 days"}'); SELECT migrate_validate('v', 'v.t')});
is(sql('SELECT count(*) FROM migrate.validation'), $all + 2, 'what is younger is kept');
sql(q{SELECT migrate_alter_job('v', '{"validation_retention": null}'); SELECT migrate_validate('v', 'v.few')});
is(sql(q{SELECT target, level, count(*), bool_or(started_at < now() - interval '30 days') FROM migrate.validation GROUP BY 1, 2 ORDER BY 1, 2}),
	"v.few|checksum|1|f\nv.few|count|1|t\nv.t|checksum|2|f\nv.t|count|1|t", 'what is older is removed, but the newest of each target and level');
is(sql('SELECT count(*) FROM migrate.differences'), '0', 'and its differences with it');

# by the job worker, too
sub history { return sql(q{SELECT count(*) FILTER (WHERE kind = 'old'), (SELECT count(*) FROM migrate.validation) FROM migrate.events}); }
sql(q{UPDATE migrate.validation_run SET started_at = started_at - interval '40 days';
	INSERT INTO migrate.event (job_id, at, level, kind, message) SELECT job_id, now() - interval '40 days', 'info', 'old', 'old' FROM migrate.job;
	SELECT migrate_alter_job('v', '{"event_retention": 0, "validation_retention": 0}'); SELECT migrate_recopy('v', 'v.t'); SELECT migrate_start('v')});
wait_job($target, 'v', 'copied');
is(history(), '1|5', 'retention 0: the job worker removes nothing');
sql(q{SELECT migrate_alter_job('v', '{"event_retention": null, "validation_retention": null}'); SELECT migrate_recopy('v', 'v.t')});
wait_job($target, 'v', 'copied');
is(history(), '0|4', 'the job worker removes what is old');

# ------------------------------------------------------------ the newest results
is(sql(q{SELECT targets, targets_validated, targets_matched, validation_mismatches, validation_age > '39 days', validation_age_objective FROM migrate.slo}),
	'2|2|2|0|t|', 'migrate.slo: all matched, long ago');
sql(q{UPDATE v.t SET v = 'x' WHERE id = 7; SELECT migrate_alter_job('v', '{"validate_every": "1d"}'); SELECT migrate_validate('v')});
is(sql(q{SELECT targets, targets_validated, targets_matched, validation_mismatches, validation_age < '1 hour', validation_age_objective FROM migrate.slo}),
	'2|2|1|1|t|24:00:00', 'migrate.slo: one does not match');

done_testing();
