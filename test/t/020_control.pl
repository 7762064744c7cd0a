# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Driving a job: every call, each twice, in the right and the wrong state;
# what is seen of it; throttle and limits changed while it runs; errors that
# last; one worker and no more (P22); and that nothing is slow to stop.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $source = new_source('source');
my $target = new_target('target');    # not preloaded: all works but restarts
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

# the error of a statement that must fail, with its SQLSTATE
sub fails
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $target->psql('postgres', "\\set VERBOSITY verbose\n$sql");
	return $err;
}

# the notices of one that must not
sub notices
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $target->psql('postgres', $sql);
	return $rc == 0 ? $err : "failed: $err";
}

sub row { return sql("SELECT concat_ws(' ', state, wanted) FROM migrate.job WHERE job = '$_[0]'"); }
sub workers { return sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '^migrate (job|loader)'}); }

src(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 50000) g; VACUUM ANALYZE t});

sub job
{
	my ($name, $options) = @_;
	sql(qq{SELECT migrate_create_job('$name', server => 'legacy', options => '{"chunk_blocks": 16, "batch_rows": 200, "retry_max_delay": "300ms" $options}');
		SELECT migrate_add_table('$name', 'public.t', '$name.t')});
	return;
}

# ------------------------------------------------------------ the calls
job('calls', ', "rows_per_second": 3000');
like(fails("SELECT migrate_$_('nobody')"), qr/ERROR:  42704: job "nobody" does not exist\nHINT/, "$_ of an unknown job")
  for qw(start pause resume cancel);
like(fails(q{SELECT migrate_pause('calls')}), qr/ERROR:  55000: job "calls" does not run, it is defined/, 'pause before the start');
like(fails(q{SELECT migrate_resume('calls')}), qr/ERROR:  55000: job "calls" has not been started\nHINT/, 'resume before the start');
sql(q{SELECT migrate_create_job('empty', server => 'legacy')});
like(fails(q{SELECT migrate_start('empty')}), qr/ERROR:  55000: job "empty" has no tables\nHINT/, 'start without tables');

sql(q{SELECT migrate_start('calls')});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.chunk WHERE state = 'running'}), 'it copies');
is(notices(q{SELECT migrate_start('calls')}), 'psql:<stdin>:1: NOTICE:  job "calls" is already running', 'start again: a notice');
is(notices(q{SELECT migrate_resume('calls')}), '', 'resume of a running job');
is(sql(q{SELECT string_agg(DISTINCT backend_type, ', ') FROM pg_stat_activity WHERE backend_type ~ '^migrate'}), 'migrate job, migrate loader', 'pg_stat_activity shows the workers');
ok(wait_for($target, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'migrate loader' AND query ~ 'copying chunk \d+ of .*t, job calls'}), 'and what they do');
is(sql(q{SELECT string_agg(DISTINCT role, ', ') FROM migrate._live_workers()}), 'job, loader', 'shared memory too');
like(fails(q{SELECT migrate_wait('calls', 'copied', '100ms')}), qr/ERROR:  55P03: timeout while waiting for job "calls" to be "copied": it is in state "copying"/, 'wait: time-out');
like(fails(q{SELECT migrate_wait('calls', 'ready')}), qr/ERROR:  22023: unknown job state "ready"\nHINT:  The states are: defined, preparing, copying, indexing, copied/, 'wait: unknown state');
is(sql(q{SELECT migrate_wait('calls', 'preparing', '1s')}), 'copying', 'wait: a state that is past');

my $begin = time();
sql(q{SELECT migrate_pause('calls')});
is(sql(q{SELECT migrate_wait('calls', 'paused', '10s')}), 'paused', 'paused');
cmp_ok(time() - $begin, '<', 3, 'within three seconds, though the throttle would hold the chunk longer');
is(notices(q{SELECT migrate_pause('calls')}), 'psql:<stdin>:1: NOTICE:  job "calls" is already paused', 'pause again: a notice');
ok(wait_for(sub { workers() eq '0' }), 'a paused job uses no worker');
is(sql(q{SELECT count(*) FROM migrate.chunk WHERE state = 'running'}), '0', 'and no chunk is running');
is(sql(q{SELECT count(*) FROM migrate.chunk WHERE last_error IS NOT NULL}), '0', 'to give a chunk up for it is no error');
is(row('calls'), 'copying pause', 'the state remembers where it was');
sql(q{SELECT migrate_resume('calls')});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.chunk WHERE state = 'done'}), 'resumed');

$begin = time();
sql(q{SELECT migrate_cancel('calls')});
is(sql(q{SELECT migrate_wait('calls', 'cancelled', '10s')}), 'cancelled', 'cancelled');
cmp_ok(time() - $begin, '<', 3, 'at once');
is(notices(q{SELECT migrate_cancel('calls')}), 'psql:<stdin>:1: NOTICE:  job "calls" is already cancelled', 'cancel again: a notice');
like(fails(q{SELECT migrate_resume('calls')}), qr/ERROR:  55000: job "calls" is cancelled\nHINT:  Use migrate_start/, 'resume of a cancelled job');
like(fails(q{SELECT migrate_wait('calls', 'copied')}), qr/ERROR:  55000: job "calls" was cancelled while waiting/, 'wait: cancelled');
ok(wait_for(sub { workers() eq '0' }), 'a cancelled job uses no worker');

my $done = sql(q{SELECT count(*) FROM migrate.chunk WHERE state = 'done'});
sql(q{SELECT migrate_alter_job('calls', '{"rows_per_second": 0}'); SELECT migrate_start('calls')});
is(sql(q{SELECT migrate_wait('calls', 'copied', '60s')}), 'copied', 'started again: copied');
is(sql(q{SELECT count(*) FROM migrate.chunk WHERE state = 'done' AND attempt > 1}) <= 6, 1, 'only chunks at hand were repeated');
cmp_ok($done, '>', 0, "from the checkpoint ($done chunks)");
is(row('calls'), 'copied stop', 'the wish is over');
same_rows($source, 'SELECT * FROM t', $target, 'SELECT * FROM calls.t', 'calls: equal');
is(notices("SELECT migrate_$_('calls')"), 'psql:<stdin>:1: NOTICE:  job "calls" is already copied', "$_ of a copied job") for qw(start resume);
is(sql(q{SELECT string_agg(detail->>'to', ' ' ORDER BY event_id) FROM migrate.event JOIN migrate.job USING (job_id) WHERE job = 'calls' AND kind = 'state'}),
	'preparing copying cancelled copying indexing copied', 'every change of state is an event');

# ----------------------------------------------------- transactions
job('tx', '');
like(fails(q{BEGIN; SELECT migrate_start('tx'); SELECT migrate_wait('tx', 'copied')}),
	qr/ERROR:  25001: this transaction cannot wait for job "tx"/, 'a transaction cannot wait for what it has started');
sleep(0.5);
is(row('tx'), 'defined stop', 'rolled back: not started');
ok(wait_for(sub { workers() eq '0' }), 'and the worker has left');
sql(q{BEGIN; SELECT migrate_start('tx'); SELECT pg_sleep(0.3); COMMIT; SELECT migrate_wait('tx', 'copied', '60s')});
same_rows($source, 'SELECT * FROM t', $target, 'SELECT * FROM tx.t', 'tx: equal');
like(fails(q{UPDATE migrate.job SET state = 'defined' WHERE job = 'tx'}), qr/ERROR:  55000: job "tx" cannot go from state "copied" to "defined"\nHINT/, 'an illegal change of state is refused');
is(sql(q{SELECT count(*) FROM migrate.transition t WHERE from_state = 'finished'}), '0', 'nothing leads out of finished');

# NOTIFY: one JSON object an event, within the limit whatever the message
my $listener = $target->background_psql('postgres');
$listener->query_safe('LISTEN migrate');
sql(q{SELECT migrate_recopy('tx', 'tx.t'); SELECT migrate._event(job_id, 'info', 'test', repeat(chr(1) || 'ä"', 3000)) FROM migrate.job WHERE job = 'tx'});
sql(q{SELECT migrate_wait('tx', 'copied', '60s')});
my $heard = $listener->query('SELECT 1');
$listener->quit;
like($heard, qr/notification "migrate" with payload "\{"job" : "tx", "state" : "copying", "level" : "info", "kind" : "state", "message" : "copied -> copying: recopy of tx.t"/, 'NOTIFY tells the same as JSON');
is(sql(q{SELECT count(*), count(DISTINCT id) FROM tx.t}), '50000|50000', 'recopied, nothing is there twice');
like(fails(q{SELECT migrate_recopy('tx', 'tx.u')}), qr/ERROR:  42704: job "tx" has no target "tx.u"\nHINT:  Its targets are: tx.t/, 'recopy of a target that is none');

# ------------------------------------------------------------ throttle
job('slow', ', "rows_per_second": 2000, "throttle_interval": "200ms"');
sql(q{SELECT migrate_start('slow')});
my $rows = q{SELECT coalesce(sum(rows), 0) FROM migrate._live_workers() JOIN migrate.job USING (job_id) WHERE job = 'slow'};
ok(wait_for($target, "SELECT ($rows) > 3000"), 'throttled, it still moves');
$begin = time();
my $r1 = sql($rows);
sleep(3);
my $speed = (sql($rows) - $r1) / (time() - $begin);
cmp_ok($speed, '<', 2600, "rows_per_second 2000: $speed");
cmp_ok($speed, '>', 1000, 'and not much less');
like(sql(q{SELECT max(throttle) FROM migrate._live_workers()}), qr/^rows_per_second: [0-9.]+ > 2000$/, 'told: reason, value, threshold');
sql(q{CREATE TABLE public.brake (v int); INSERT INTO public.brake VALUES (9);
	SELECT migrate_alter_job('slow', '{"rows_per_second": 3000, "throttle_query": "SELECT v FROM public.brake", "throttle_threshold": 5}')});
ok(wait_for($target, q{SELECT max(throttle) = 'throttle_query: 9 > 5' FROM migrate._live_workers()}), 'throttle_query, set while it runs, holds');
sleep(0.3);
$r1 = sql($rows);
sleep(1);
is(sql($rows), $r1, 'nothing moves');
sql('UPDATE public.brake SET v = 5');
ok(wait_for($target, "SELECT ($rows) > $r1"), 'at the threshold it goes on');
src('CREATE TABLE brake (v bool); INSERT INTO brake VALUES (true)');
sql(q{SELECT migrate_alter_job('slow', '{"throttle_side": "source", "throttle_threshold": 0}')});
ok(wait_for($target, q{SELECT max(throttle) = 'throttle_query: 1 > 0' FROM migrate._live_workers()}), 'the same on the source, a boolean');
src('UPDATE brake SET v = false');
$r1 = sql($rows);
ok(wait_for($target, "SELECT ($rows) > $r1"), 'false: it goes on');
sql(q{SELECT migrate_alter_job('slow', '{"throttle_side": "target"}')});
sql('DROP TABLE public.brake');
ok(wait_for($target, q{SELECT count(*) = 1 FROM migrate.event WHERE kind = 'throttle_query' AND level = 'warning'}), 'a query that fails is a warning');
$r1 = sql($rows);
ok(wait_for($target, "SELECT ($rows) > $r1"), 'and does not hold the copy');
sql(q{SELECT migrate_alter_job('slow', '{"rows_per_second": 0, "bytes_per_second": 0, "throttle_query": "", "workers": 4}')});
is(sql(q{SELECT migrate_wait('slow', 'copied', '20s')}), 'copied', 'without limits it is soon done');
same_rows($source, 'SELECT * FROM t', $target, 'SELECT * FROM slow.t', 'slow: equal');

# -------------------------------------------------------- lasting errors
sql(q{SELECT migrate_create_job('broken', server => 'legacy', options => '{"retry_max_delay": "200ms"}');
	SELECT migrate_import('broken', 'public', 'src');
	CREATE SCHEMA broken; CREATE TABLE broken.t (id int PRIMARY KEY, v text);
	CREATE TABLE broken.lookup (v text);
	CREATE FUNCTION broken.map(o src.t) RETURNS SETOF broken.t LANGUAGE plpgsql AS $$
	BEGIN PERFORM FROM broken.lookup; RETURN NEXT ROW(o.id, o.v)::broken.t; END $$;
	SELECT migrate_add_table('broken', 'src.t', 'broken.t', mapping => 'broken.map', reads => '{broken.lookup}')});
sql(q{ALTER TABLE broken.lookup RENAME TO hidden});
sql(q{SELECT migrate_accept('broken', check_name, object, 'test') FROM migrate_preflight('broken') WHERE status = 'fail'; SELECT migrate_start('broken')});
like(fails(q{SELECT migrate_wait('broken', 'copied', '60s')}), qr/ERROR:  55000: job "broken" has failed while waiting for state "copied"\nDETAIL:  42P01: relation "broken.lookup" does not exist/, 'the same error three times: failed, with the error in view');
is(row('broken'), 'failed stop', 'state failed');
is(sql(q{SELECT count(*) FROM migrate.dead_letter JOIN migrate.job USING (job_id) WHERE job = 'broken'}), '0', 'no dead letter for it');
ok(wait_for(sub { workers() eq '0' }), 'a failed job uses no worker');
like(fails(q{SELECT migrate_start('broken')}), qr/ERROR:  55000: job "broken" has failed\nDETAIL.*\nHINT:  Use migrate_resume/, 'start of a failed job');
sql(q{ALTER TABLE broken.hidden RENAME TO lookup; SELECT migrate_resume('broken')});
is(sql(q{SELECT migrate_wait('broken', 'copied', '60s')}), 'copied', 'resumed after the cause is gone');
is(sql(q{SELECT last_error IS NULL FROM migrate.job WHERE job = 'broken'}), 't', 'and the error is no longer shown');

# ------------------------------------------------------ transient errors
job('away', ', "retry_time": "2s", "connect_timeout": "1s", "rows_per_second": 10000');
sql(q{SELECT migrate_start('away')});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.chunk JOIN migrate.job USING (job_id) WHERE job = 'away' AND chunk.state = 'running'}), 'it copies');
$source->stop('immediate');
$begin = time();
like(fails(q{SELECT migrate_wait('away', 'copied', '60s')}), qr/ERROR:  55000: job "away" has failed.*\nDETAIL:  (08|57)/, 'source gone for longer than retry_time: failed');
cmp_ok(time() - $begin, '>', 1.5, 'not before retry_time');
$source->start;
sql(q{SELECT migrate_alter_job('away', '{"retry_time": "1min"}'); SELECT migrate_resume('away')});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate.chunk JOIN migrate.job USING (job_id) WHERE job = 'away' AND chunk.state = 'running'}), 'it copies again');
$source->stop('immediate');
$source->start;
sql(q{SELECT migrate_alter_job('away', '{"rows_per_second": 0}')});
is(sql(q{SELECT migrate_wait('away', 'copied', '60s')}), 'copied', 'source restarted within it: copied, without anybody doing anything');
same_rows($source, 'SELECT * FROM t', $target, 'SELECT * FROM away.t', 'away: equal');

# ------------------------------------------------------------ P22: once
job('once', ', "rows_per_second": 1000');
sql(q{SELECT migrate_start('once')});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate._live_workers() WHERE role = 'loader'}), 'it copies');
my $pid = sql(q{SELECT pid FROM migrate._live_workers() WHERE slot = 0});
sql(q{SELECT migrate._launch(job_id), migrate_resume(job) FROM migrate.job, generate_series(1, 5) WHERE job = 'once'}) for 1 .. 3;
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'migrate job'}), '1', 'P22: one job worker, however often it is asked for');
is(sql(q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() AND granted AND objsubid NOT IN (1, 2)}), '1', 'P22: by a lock that SQL cannot take');
sql(qq{SELECT pg_terminate_backend($pid)});
ok(wait_for(sub { workers() eq '0' }), 'P22: without the job worker its loaders leave');
sql(q{SELECT migrate_resume('once')}) for 1 .. 3;
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate._live_workers() WHERE role = 'loader'}), 'resumed');
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'migrate job'}), '1', 'P22: one again');

# two that are asked for at the same moment, before either has the lock
sql(q{SELECT migrate_pause('once'); });
sql(q{SELECT migrate_wait('once', 'paused', '10s')});
ok(wait_for(sub { workers() eq '0' }), 'paused');
sql(q{UPDATE migrate.job SET wanted = 'run' WHERE job = 'once'});
my @sessions = map { $target->background_psql('postgres') } 1 .. 2;
$_->query_safe(q{BEGIN; SELECT txid_current(); SELECT migrate._launch(job_id) FROM migrate.job WHERE job = 'once'}) for @sessions;
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'migrate job'}), '2', 'P22: two workers wait for their transactions');
for my $s (@sessions) { $s->query_safe('COMMIT'); $s->quit; }
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate._live_workers() WHERE role = 'loader' AND rows > 0}), 'it copies');
ok(wait_for($target, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'migrate job'}, timeout => 15), 'P22: one of them has left');
is(sql(q{SELECT count(*) <= 2 FROM pg_stat_activity WHERE backend_type = 'migrate loader'}), 't', 'P22: and the other one has the loaders');

# a loader that is ended comes back
sql(q{SELECT pg_terminate_backend(pid) FROM migrate._live_workers() WHERE slot = 1});
ok(wait_for($target, q{SELECT count(*) = 1 FROM migrate.event JOIN migrate.job USING (job_id) WHERE job = 'once' AND kind = 'loader_ended'}), 'a loader that is ended is told');
ok(wait_for($target, q{SELECT count(*) = 2 FROM migrate._live_workers() WHERE role = 'loader'}), 'and started again');

# ---------------------------------------------- shutdown, and afterwards
$begin = time();
$target->stop('fast');
cmp_ok(time() - $begin, '<', 3, 'a fast shutdown in the middle of a copy is prompt');
$target->start;
is(row('once'), 'copying run', 'not preloaded: the job waits');
like(fails(q{SELECT migrate_wait('once', 'copied', '60s')}), qr/ERROR:  55000: job "once" is in state "copying", and no worker runs it\nHINT:  Use migrate_resume/, 'and who waits for it is told');
sql(q{SELECT migrate_alter_job('once', '{"rows_per_second": 0}'); SELECT migrate_resume('once')});
is(sql(q{SELECT migrate_wait('once', 'copied', '60s')}), 'copied', 'migrate_resume goes on');
same_rows($source, 'SELECT * FROM t', $target, 'SELECT * FROM once.t', 'once: equal');

# cancelled without a worker, and dropping the extension under a worker
job('last', ', "rows_per_second": 1000');
sql(q{SELECT migrate_cancel('last')});
is(row('last'), 'cancelled stop', 'cancel of a job without a worker');
sql(q{SELECT migrate_start('last')});
ok(wait_for($target, q{SELECT count(*) > 0 FROM migrate._live_workers() WHERE role = 'loader'}), 'it runs');
# which takes its locks in no order that workers know: it may lose a deadlock
ok(wait_for(sub { ($target->psql('postgres', 'DROP EXTENSION IF EXISTS migrate CASCADE'))[0] == 0 }), 'the extension is dropped');
ok(wait_for(sub { workers() eq '0' }, timeout => 60), 'workers leave when the extension is dropped');

done_testing();
