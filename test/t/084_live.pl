# Copyright (c) 2026, the migrate authors; PostgreSQL License

# The life of a job that follows its source: how capture is decided; P9, what is
# built before and after the consistent position, and conflicts from before it;
# pause, resume, cancel, failure and their like in the live states;
# migrate_recopy while the stream goes on; what is seen of it, alerts included;
# P22, one apply worker, and kills; the end by migrate_finish.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $source = new_source('source', logical => 1);
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

sub fails
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $target->psql('postgres', "\\set VERBOSITY verbose\n$sql");
	return $err;
}

sub notices
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $target->psql('postgres', $sql);
	return $rc == 0 ? $err : "failed: $err";
}

# everything that the source has committed so far is applied
sub caught_up
{
	my ($job, $name) = @_;
	my $lsn = src('SELECT pg_current_wal_insert_lsn()');
	src('SELECT txid_current()');
	return ok(wait_for($target, "SELECT a.applied_lsn >= '$lsn' FROM migrate.apply_position a JOIN migrate.job USING (job_id) WHERE job = '$job'"), $name);
}


sub job
{
	my ($name, $options) = @_;
	sql(qq{SELECT migrate_create_job('$name', server => 'legacy', options => '{"chunk_blocks": 16, "batch_rows": 200, "retry_max_delay": "300ms" $options}')});
	return;
}

sub state { return job_state($target, $_[0]); }
sub events { return sql("SELECT count(*) FROM migrate.events WHERE job = '$_[0]' AND level = '$_[1]' AND kind = '$_[2]'"); }
sub equal { same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM $_[0].$_", "$_[1]: $_ is equal") for qw(a b); return; }

src(q{
	CREATE TABLE a (id int PRIMARY KEY, code text UNIQUE, v int);
	CREATE INDEX a_v ON a (v);
	INSERT INTO a SELECT g, 'c' || g, g % 10 FROM generate_series(1, 20000) g;
	CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a, w text);
	INSERT INTO b SELECT g, g, md5(g::text) FROM generate_series(1, 5000) g;
	CREATE SCHEMA odd;
	CREATE TABLE odd.nokey (v int);
	VACUUM ANALYZE});

# ------------------------------------------------- how capture is decided
job('none', ', "capture": "none"');
sql(q{SELECT migrate_add_schema('none', 'odd', target_schema => 'none'); SELECT migrate_start('none')});
wait_job($target, 'none', 'copied');
is(sql(q{SELECT capture FROM migrate.job WHERE job = 'none'}), 'none', 'capture none: copied once');
job('odd', '');
sql(q{SELECT migrate_add_schema('odd', 'odd', target_schema => 'odd')});
like(notices(q{SELECT migrate_start('odd')}), qr/WARNING:  job "odd" copies once.*\nDETAIL:  .*odd\.nokey/, 'auto: falls back, and names the obstacle');
wait_job($target, 'odd', 'copied');
is(sql(q{SELECT capture FROM migrate.job WHERE job = 'odd'}), 'none', 'to none');
is(events('odd', 'warning', 'capture'), '1', 'and an event says so');
sql(qq{SELECT migrate_drop_job('$_')}) for qw(none odd);

# ------------------------- P9: values that move between chunks' snapshots
job('j', ', "rows_per_second": 4000');
sql(q{SELECT migrate_add_schema('j', 'public', target_schema => 'j'); SELECT migrate_start('j')});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.chunk WHERE state = 'done'}), 'P9: a first chunk is copied');
src(q{BEGIN; UPDATE a SET code = 'moved' WHERE id = 1; UPDATE a SET code = 'c1' WHERE id = 20000; COMMIT});
sql(q{SELECT migrate_alter_job('j', '{"rows_per_second": 0}')});
wait_job($target, 'j', 'streaming');
is(sql(q{SELECT capture FROM migrate.job WHERE job = 'j'}), 'logical', 'auto: logical where nothing stands in the way');
is(sql(q{SELECT string_agg(detail->>'to', ' ' ORDER BY event_id) FROM migrate.event JOIN migrate.job USING (job_id) WHERE job = 'j' AND kind = 'state'}),
	'preparing copying indexing catching_up streaming', 'every change of state is an event');
is(sql(q{SELECT count(*) FROM migrate.dead_letter}), '0', 'P9: no dead letter');
is(sql(q{SELECT count(*) FROM migrate.steps WHERE job = 'j' AND state <> 'done'}), '0', 'P9: every step is done');
my $since = q{(SELECT at FROM migrate.events WHERE job = 'j' AND message LIKE 'indexing -> catching_up%')};
is(sql(qq{SELECT string_agg(DISTINCT kind, ' ' ORDER BY kind) FROM migrate.steps WHERE job = 'j' AND started < $since}), 'index key', 'P9: before the consistent position only keys and plain indexes');
is(sql(qq{SELECT count(*) FROM migrate.steps WHERE job = 'j' AND statement ~ '^CREATE UNIQUE' AND kind = 'index' AND started > $since}), '1', 'P9: other unique indexes after it');
caught_up('j', 'caught up');
equal('j', 'P9');

# conflicts from before the position are tried once more
sql(q{CREATE SCHEMA p9; CREATE TABLE p9.a (LIKE j.a INCLUDING ALL); INSERT INTO p9.a VALUES (-1, 'c5', 0), (-2, 'c6', 0);});
job('p9', ', "rows_per_second": 4000');
sql(q{SELECT migrate_add_table('p9', 'public.a', 'p9.a')});
sql(q{SELECT migrate_start('p9')});
ok(wait_for($target, q{SELECT count(*) = 2 FROM migrate.dead_letters WHERE job = 'p9' AND state = 'open' AND sqlstate = '23505'}), 'P9: rows conflict with what is in the target');
sql(q{DELETE FROM p9.a WHERE id = -1; SELECT migrate_alter_job('p9', '{"rows_per_second": 0}')});
wait_job($target, 'p9', 'streaming');
is(sql(q{SELECT key ->> 'id' FROM migrate.dead_letters WHERE job = 'p9' AND state = 'open'}), '6', 'P9: what still conflicts stays a dead letter');
is(sql(q{SELECT code FROM p9.a WHERE id = 5}), 'c5', 'P9: the other row is there');
is(sql(q{SELECT message FROM migrate.events WHERE job = 'p9' AND kind = 'recheck'}), 'conflicts from before the consistent position: 1 are solved, 1 stay dead letters', 'P9: an event says so');

# -------------------------------------------------------- what is seen
is(sql(q{SELECT string_agg(DISTINCT role, ' ' ORDER BY role) FROM migrate.workers WHERE job = 'j'}), 'apply capture job', 'workers of a job that streams');
is(sql(q{SELECT array_to_string(jobs, ' ') FROM migrate.streams}), 'j p9', 'one stream for both jobs');
is(sql(q{SELECT concat_ws(' ', spooled_lsn >= applied_lsn, apply_bytes >= 0, seconds_behind < 30, stalled, reason IS NULL) FROM migrate.lag WHERE job = 'j'}), 't t t f t', 'lag');
src(q{UPDATE b SET w = w || 'x' WHERE id % 10 = 0});
caught_up('j', 'changes arrive');
is(sql(q{SELECT concat_ws(' ', checkpoint_success > 0, copy_write_p50 > 0, copy_write_p99 >= copy_write_p50, apply_write_p95 > 0, lag_p50 > 0, lag_p99 >= lag_p95, lag_objective) FROM migrate.slo WHERE job = 'j'}), 't t t t t t 300000', 'service levels');
is(sql(q{SELECT migrate._histogram_quantile('{0,0,10,0,85,5}', q) FROM unnest('{0.05,0.5,0.99,0}'::float8[]) q}), "0.283\n1.131\n1.600\n0.283", 'quantiles of a histogram');
is(sql(q{SELECT migrate._histogram_quantile('{0,0}', 0.5) IS NULL}), 't', 'of an empty one');

# ------------------------------------------------------ pause and resume
sql(q{SELECT migrate_pause('j'); SELECT migrate_wait('j', 'paused', '30s')});
src(q{UPDATE b SET w = w || 'y' WHERE id <= 100});
my $lsn = src('SELECT pg_current_wal_insert_lsn()');
src('SELECT txid_current()');
ok(wait_for($target, "SELECT spooled_lsn >= '$lsn' FROM migrate.lag WHERE job = 'j'"), 'paused: changes are still taken in');
is(sql(q{SELECT concat_ws(' ', apply_bytes > 0, reason, stalled) FROM migrate.lag WHERE job = 'j'}), 't paused f', 'paused: lag says why');
my $behind = sql(q{SELECT seconds_behind FROM migrate.lag WHERE job = 'j'});
sleep(0.3);
cmp_ok(sql(q{SELECT seconds_behind FROM migrate.lag WHERE job = 'j'}), '>', $behind, 'paused: lag moves on');
hard_restart($target);
src(q{UPDATE b SET w = w || 'z' WHERE id <= 100});
$lsn = src('SELECT pg_current_wal_insert_lsn()');
src('SELECT txid_current()');
ok(wait_for($target, "SELECT spooled_lsn >= '$lsn' FROM migrate.lag WHERE job = 'p9'"), 'after a restart of the server they are taken in again');
sql(q{SELECT migrate_pause('p9'); SELECT migrate_wait('p9', 'paused', '30s')});
hard_restart($target);
src(q{UPDATE b SET w = w || 'z' WHERE id <= 100});
$lsn = src('SELECT pg_current_wal_insert_lsn()');
src('SELECT txid_current()');
ok(wait_for($target, "SELECT spooled_lsn >= '$lsn' FROM migrate.lag WHERE job = 'p9'"), 'also when all jobs of the stream are paused');
is(state('j'), 'streaming', 'the state remembers where it was');
sql(qq{SELECT migrate_resume('$_')}) for qw(j p9);
caught_up('j', 'resumed');
equal('j', 'pause');

# -------------------------------------------------------------- alerts
sql(q{SELECT migrate_alter_job('j', '{"lag_alert": "1s"}')});
my $locker = $target->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE j.b IN EXCLUSIVE MODE');
src(q{UPDATE b SET w = w || 'l' WHERE id <= 10});
ok(wait_for($target, q{SELECT stalled FROM migrate.lag WHERE job = 'j'}), 'stalled: seen');
ok(wait_for(sub { events('j', 'alert', 'stalled') eq '1' && events('j', 'alert', 'lag') eq '1' }), 'an alert that it is stalled, and one that it lags');
sleep(2);
is(events('j', 'alert', 'stalled'), '1', 'one an episode');
$locker->query_safe('COMMIT');
$locker->quit;
ok(wait_for(sub { events('j', 'info', 'stalled') eq '1' && events('j', 'info', 'lag') eq '1' }), 'told when it is over');
is(sql(q{SELECT lag_p99 > 1000 AND apply_write_p99 > 1000 FROM migrate.slo WHERE job = 'j'}), 't', 'percentiles show it');
ok(wait_for(sub { src(q{UPDATE b SET w = 'quick' WHERE id = 1}); return sql(q{SELECT migrate._histogram_quantile(lag, 1) < 1000 AND migrate._histogram_quantile(apply_write, 1) < 1000
	FROM migrate._live_jobs() NATURAL JOIN migrate.job WHERE job = 'j'}) eq 't' }),
	'and only as long as it is recent');
sql(q{SELECT migrate_alter_job('j', '{"lag_alert": null}')});

# -------------------------------------------------- steps to try again
sql(q{UPDATE migrate.post_step SET state = 'failed', sqlstate = '55P03', error = 'test' WHERE kind = 'vacuum' AND job_id = (SELECT job_id FROM migrate.job WHERE job = 'j')});
is(sql(q{SELECT migrate_retry_steps('j') > 0}), 't', 'failed steps are tried again');
ok(wait_for($target, q{SELECT bool_and(state = 'done') FROM migrate.steps WHERE job = 'j'}), 'and done');
wait_job($target, 'j', 'streaming');

# ------------------------------------------- one table again, in the stream
src(q{CREATE FUNCTION work(n int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	UPDATE a SET v = v + 1, code = code || '_' || n WHERE id % 97 = n % 97;
	DELETE FROM b WHERE id = n;
	INSERT INTO b VALUES (n, n + 1, 'again ' || n);
	INSERT INTO a VALUES (100000 + n, 'new' || n, n);
	DELETE FROM a WHERE id = 100000 + n - 20;
END $$});
my $before = sql(q{SELECT consistent_lsn FROM migrate.job_stream JOIN migrate.job USING (job_id) WHERE job = 'j'});
src("SELECT work($_)") for 1 .. 20;
sql(q{SELECT migrate_alter_job('j', '{"rows_per_second": 20000}'); SELECT migrate_recopy('j', 'j.a')});
my $n = 20;
ok(wait_for(sub { src('SELECT work(' . ++$n . ')'); return sql(q{SELECT count(*) > 0 FROM migrate.events WHERE job = 'j' AND message LIKE 'copying -> indexing%' AND event_id > (SELECT max(event_id) FROM migrate.events WHERE kind = 'recopy')}) eq 't' }), 'recopy: while the source goes on');
is(events('j', 'warning', 'worker_error'), '0', 'recopy: no error');
wait_job($target, 'j', 'streaming');
sql(q{SELECT migrate_alter_job('j', '{"rows_per_second": 0}')});
src('SELECT work(' . ++$n . ')');
caught_up('j', 'recopy: caught up');
equal('j', 'recopy');
is(sql(qq{SELECT consistent_lsn > '$before' FROM migrate.job_stream JOIN migrate.job USING (job_id) WHERE job = 'j'}), 't', 'recopy: a new consistent position');
is(sql(q{SELECT count(*) FROM migrate.dead_letters WHERE job = 'j' AND state = 'open'}), '0', 'recopy: no dead letter stays');

# --------------------------------- what the stream tells is no drift
src(q{TRUNCATE b; INSERT INTO b SELECT g, g, 'after' FROM generate_series(1, 100) g});
caught_up('j', 'TRUNCATE');
sleep(6);
is(sql(q{SELECT wanted FROM migrate.job WHERE job = 'j'}), 'run', 'TRUNCATE: the watch finds no drift');
equal('j', 'TRUNCATE');

# ------------------------------------------------------- errors that last
sql(q{ALTER TABLE j.b RENAME w TO other});
src(q{UPDATE b SET w = 'renamed' WHERE id = 1});
ok(wait_for(sub { state('j') eq 'failed' }), 'an error of apply that lasts: failed');
like(sql(q{SELECT last_error FROM migrate.job WHERE job = 'j'}), qr/^changes cannot be applied: /, 'the error says of what');
ok(wait_for($target, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'migrate apply' AND query ~ 'job j\M'}), 'no worker is left');
is(sql(q{SELECT reason FROM migrate.lag WHERE job = 'j'}), 'failed', 'lag says so');
sql(q{ALTER TABLE j.b RENAME other TO w; SELECT migrate_resume('j')});
wait_job($target, 'j', 'streaming');
caught_up('j', 'resumed after a failure');
equal('j', 'failure');

# --------------------------------------------------- cancel, start again
sql(q{SELECT migrate_cancel('j'); SELECT migrate_wait('j', 'cancelled', '30s')});
src(q{UPDATE b SET w = 'while cancelled' WHERE id = 2});
like(fails(q{SELECT migrate_resync('j')}), qr/ERROR:  55000: job "j" is cancelled\nHINT:  Use migrate_start, then migrate_resync\./, 'resync of a cancelled job');
sql(q{SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
caught_up('j', 'started again after a cancel');
equal('j', 'cancel');

# ------------------------------------------------------- P22, and kills
sql(q{SELECT migrate_resume('j')}) for 1 .. 5;
foreach my $kind (qw(apply capture job))
{
	my $killed = sub { my $k = () = slurp_file($target->logfile) =~ /terminated by signal 9/g; return $k };
	my $before = $killed->();
	my $pid = kill9_backend($target, $kind eq 'job' ? 'migrate job' : "migrate $kind");
	ok($pid, "kill -9 of $kind");
	ok(wait_for(sub { $killed->() > $before }) && wait_for($target, q{SELECT count(*) = 4 FROM pg_stat_activity WHERE backend_type ~ '^migrate (job|apply)'}), 'the workers are started again');
	src(q{UPDATE b SET w = 'after a kill' WHERE id = 3});
	caught_up('j', "after a kill of $kind it goes on by itself");
}
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'migrate capture'}), '1', 'P22: one capture worker a stream');
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'migrate apply'}), '2', 'P22: one apply worker a job');
equal('j', 'kills');

# ------------------------------------------------------------- the end
like(fails(q{BEGIN; CALL migrate_finish('j')}), qr/ERROR:  2D000: /, 'finish cannot be in a transaction block');
wait_job($target, 'j', 'streaming');
is(notices(q{CALL migrate_finish('p9')}), '', 'finish');
is(state('p9'), 'finished', 'finished');
is(src('SELECT count(*) FROM pg_replication_slots'), '1', 'the slot stays for the other job');
src(q{UPDATE b SET w = 'one left' WHERE id = 4});
caught_up('j', 'which goes on');
sql(q{CREATE VIEW public.depends AS SELECT * FROM legacy.b});
like(notices(q{CALL migrate_finish('j')}), qr/WARNING:  job "j" is finished, but not all.*\nDETAIL:  .*DROP FOREIGN TABLE IF EXISTS legacy\.b CASCADE;/s, 'finish: what cannot be removed is named with its statement');
is(src('SELECT count(*) FROM pg_replication_slots') . src('SELECT count(*) FROM pg_publication'), '00', 'slot and publication are gone');
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '^migrate (job|apply|capture|loader)'}), '0', 'so are the workers');
is(sql(q{SELECT count(*) FROM migrate.stream}) . sql(q{SELECT count(*) FROM pg_class WHERE relname LIKE 'spool_%_%' AND relkind = 'r' AND relname <> 'spool_segment'}), '00', 'and the spool');
sql(q{DROP VIEW public.depends});
is(notices(q{CALL migrate_finish('j')}), '', 'finish once more removes the rest');
is(sql(q{SELECT count(*) FROM pg_foreign_table}), '0', 'no foreign table is left');
is(sql(q{SELECT count(*) FROM j.b}), src('SELECT count(*) FROM b'), 'the rows are');
is(notices(qq{SELECT migrate_$_('j')}), 'psql:<stdin>:1: NOTICE:  job "j" is already finished', "$_ of a finished job") for qw(start resume);
is(sql(qq{SELECT count(*) FROM migrate_drop_job('$_')}), '0', "drop of $_") for qw(j p9);

# ------------------------- P16: a bag of rows, and writers during its copy
src(q{CREATE TABLE bag (v int, w text); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag SELECT g % 200, 'old' FROM generate_series(1, 20000) g});
my $script = PostgreSQL::Test::Utils::tempdir() . '/bag.sql';
append_to_file($script, q{\set r random(0, 199)
\set s random(0, 199)
BEGIN;
INSERT INTO bag VALUES (:r, 'new');
\sleep 3 ms
DELETE FROM bag WHERE ctid = (SELECT ctid FROM bag WHERE v = :s LIMIT 1 FOR UPDATE SKIP LOCKED);
UPDATE bag SET w = w || 'x' WHERE ctid = (SELECT ctid FROM bag WHERE v = :r AND w <> 'new' LIMIT 1 FOR UPDATE SKIP LOCKED);
\sleep 3 ms
COMMIT;
});
my $writers = fork() // die;
if ($writers == 0)
{
	open(STDOUT, '>', '/dev/null');
	open(STDERR, '>', '/dev/null');
	exec('pgbench', '-n', '-c', '6', '-T', '300', '-f', $script, $source->connstr('postgres'));
}
ok(wait_for($source, q{SELECT count(*) > 100 FROM bag WHERE w = 'new'}), 'P16: writers are at work');
job('bag', '');
sql(q{SELECT migrate_add_table('bag', 'public.bag', 'bag.bag'); SELECT migrate_start('bag')});
wait_job($target, 'bag', 'streaming');
for my $round (1 .. 3)
{
	# a new copy, with a snapshot in the midst of others' transactions
	sql(q{SELECT migrate_recopy('bag', 'bag.bag')}) if $round > 1;
	ok(wait_for($target, qq{SELECT count(*) >= $round FROM migrate.events WHERE job = 'bag' AND message LIKE 'catching_up -> streaming%'}), "P16: copy $round is over");
	cmp_ok(sql(q{SELECT count(*) FROM migrate.chunks WHERE job = 'bag'}), '==', 1, 'P16: one chunk');
}
kill('TERM', $writers);
waitpid($writers, 0);
ok(wait_for($source, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'}), 'P16: writers have ended');
caught_up('bag', 'P16: caught up');
same_rows($source, 'SELECT * FROM bag', $target, 'SELECT * FROM bag.bag', 'P16: the bags are equal');
is(sql(q{SELECT count(*) FROM migrate.dead_letters WHERE job = 'bag'}), '0', 'P16: no dead letter');
sql(q{CALL migrate_finish('bag')});

done_testing();
