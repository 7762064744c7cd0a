# Copyright (c) 2026, the migrate authors; PostgreSQL License

# P32: what changed is compared before the target is opened, by rounds before the
# fence until the rest fits, and by the rest under it.  A damaged row among what
# changed undoes the cutover, and the application goes on writing to the source.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source', logical => 1);
my $target = new_target('target', logical => 1, preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }
sub call { my ($rc, $out, $err) = $target->psql('postgres', "CALL migrate_cutover('j'" . ($_[0] // '') . ')'); return ($rc, $err); }
sub detail { return sql("SELECT detail FROM migrate.cutover_steps WHERE step = '$_[0]' AND cutover_id = (SELECT max(cutover_id) FROM migrate.cutovers)"); }
sub follow
{
	my $n = src(q{INSERT INTO mark DEFAULT VALUES RETURNING n});
	return wait_for($target, "SELECT true FROM mark WHERE n = $n") || BAIL_OUT('the job does not follow');
}

src(q{
	CREATE TABLE mark (n serial PRIMARY KEY);
	CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
	INSERT INTO account SELECT g, 1000 FROM generate_series(1, 20000) g;
	CREATE TABLE entry (n serial PRIMARY KEY, account int, amount int);
	CREATE TABLE log (what text, n int);
	ALTER TABLE log REPLICA IDENTITY FULL;
	INSERT INTO log SELECT 'line ' || g, g FROM generate_series(1, 300000) g;
	ANALYZE;
});
sql(q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"retry_max_delay": "300ms", "fence_timeout": "10s"}');
	SELECT migrate_add_schema('j', 'public');
	SELECT migrate_start('j');
});
wait_job($target, 'j', 'streaming') or BAIL_OUT('the job does not stream');
follow();

# --- never validated, and accepted

sql(q{SELECT migrate_accept('j', 'cutover', 'validation', 'for the test')});
src('UPDATE account SET balance = balance + 1 WHERE id = 5');
my ($rc, $err) = call(q{, stop_before => 'open'});
is($rc, 0, 'rehearsal of a job that was never validated') or diag $err;
like(detail('validate'), qr/; 4 targets were never validated: of them only what changes now/, 'says what is not compared');
sql(q{DELETE FROM migrate.acceptance});

# --- what changed is compared before the fence

is(sql(q{SELECT count(*) FROM migrate_validate('j') WHERE NOT matched}), '0', 'validated');
src('UPDATE account SET balance = balance + 1 WHERE id BETWEEN 100 AND 3099');
follow();
is(sql('SELECT validated_at IS NOT NULL, changed_keys, not_known FROM migrate.readiness'), 't|3001|', 'readiness tells what changed since');
($rc, $err) = call(q{, dry_run => true});
like($err, qr/INFO:  to compare: 3001 keys that changed since the last validation$/m, 'and so does the dry run');
($rc, $err) = call(q{, stop_before => 'open'});
is($rc, 0, 'rehearsal') or diag $err;
like(detail('validate'), qr/^3001 keys in \d+ rounds?$/, 'they are compared before the fence');
is(sql('SELECT changed_keys FROM migrate.readiness'), '0', 'and known to be equal after it');
is(sql(q{SELECT count(*) > 0 AND bool_and(matched) FROM migrate.validation WHERE level = 'changed'}), 't', 'in the history of validations');

# --- a damaged row among what changed

src('UPDATE account SET balance = balance + 1 WHERE id BETWEEN 1 AND 10');
follow();
sub damage { return "SET session_replication_role = replica; $_[0]"; }
sql(damage('UPDATE account SET balance = -1 WHERE id = 7'));
($rc, $err) = call();
like($err, qr/ERROR:  the cutover of job "j" was undone: 1 rows that changed are not equal on both sides: public.account/, 'a damaged row that changed: refused before the fence');
is(job_state($target, 'j'), 'streaming', 'streaming on');
is(sql(q{SELECT pause IS NULL FROM migrate.cutovers ORDER BY cutover_id DESC LIMIT 1}), 't', 'nobody has waited');
is(sql(q{SELECT kind, key, columns FROM migrate.differences ORDER BY difference_id DESC LIMIT 1}), 'different|{"id": "7"}|{balance}', 'the difference is recorded');
($rc, $err) = call();
like($err, qr/is not ready for a cutover\nDETAIL:  last_check: Rows that changed are not equal: public.account/, 'and stands in the way from then on');
sql(q{SELECT migrate_accept('j', 'cutover', 'last_check', 'for the test')});
($rc, $err) = call(q{, stop_before => 'open'});
is($rc, 0, 'unless it is accepted') or diag $err;
sql(q{DELETE FROM migrate.acceptance});
sql(q{SELECT migrate_repair('j', 'public.account', false); SELECT migrate_validate('j')});
is(sql('SELECT go FROM migrate.readiness'), 't', 'repaired and validated: ready');

# --- a row that is damaged under the fence, after the last round

sql(q{
	CREATE FUNCTION damage() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.balance := -1; RETURN NEW; END';
	CREATE TRIGGER damage BEFORE UPDATE ON account FOR EACH ROW WHEN (NEW.id = 12) EXECUTE FUNCTION damage();
	ALTER TABLE account ENABLE ALWAYS TRIGGER damage;
	SELECT migrate_add_hook('j', 'before_fence', 'source', 'UPDATE public.account SET balance = balance + 1 WHERE id = 12');
});
sql(damage('UPDATE account SET balance = -1 WHERE id = 13'));
($rc, $err) = call();
like($err, qr/was undone: 1 rows that changed are not equal on both sides: public.account/, 'a damaged row that changed: found under the fence')
  or diag(sql('SELECT step, state, detail FROM migrate.cutover_steps ORDER BY cutover_id DESC, step_no LIMIT 12'));
is(sql(q{SELECT step FROM migrate.cutover_steps WHERE state = 'failed' ORDER BY cutover_id DESC LIMIT 1}), 'check', 'by the last check');
src('UPDATE account SET balance = balance + 1 WHERE id = 11');
follow();
is(job_state($target, 'j'), 'streaming', 'the source is open, and followed');
is(sql(q{SELECT key FROM migrate.differences ORDER BY difference_id DESC LIMIT 1}), '{"id": "12"}', 'the difference outlives it; the row that did not change is not claimed to be found');
is(sql(q{SELECT blockers FROM migrate.readiness}), '{last_check}', 'and stands in the way');
sql(q{SELECT migrate_remove_hook('j', hook_id) FROM migrate.hook; DROP TRIGGER damage ON account});
sql(q{SELECT migrate_repair('j', 'public.account', false); SELECT migrate_validate('j')});

# --- what never fits is refused: a large table without a key that is written to all the time

my $writer = fork() // die;
if ($writer == 0)
{
	open(STDOUT, '>', '/dev/null'); open(STDERR, '>', '/dev/null');
	exec 'psql', '-Xq', '-d', $source->connstr('postgres'), '-c', q{DO $$ BEGIN FOR i IN 1 .. 100000 LOOP
		INSERT INTO log VALUES ('more', i); COMMIT; PERFORM pg_sleep(0.002); END LOOP; END $$};
}
($rc, $err) = call(q{, max_downtime => '100ms'});
like($err, qr/ERROR:  the cutover of job "j" was undone: what changes on the source cannot be compared within max_downtime/, 'what never fits is refused');
is(sql(q{SELECT pause IS NULL FROM migrate.cutovers ORDER BY cutover_id DESC LIMIT 1}), 't', 'before anybody has waited');
like(sql(q{SELECT message FROM migrate.event WHERE kind = 'cutover_undone' ORDER BY event_id DESC LIMIT 1}), qr/After \d+ rounds \d+ keys of \d targets are left, 1 of these to be compared whole: about \d+ ms; \d+ ms of 100 ms are left for it/, 'with its figures');
sql(q{SELECT migrate_alter_job('j', '{"last_check": "none"}')});
($rc, $err) = call(q{, max_downtime => '20s', stop_before => 'open'});
is($rc, 0, 'unless it is left out') or diag $err;
is(detail('validate'), 'left out: option last_check', 'which is said');
sql(q{SELECT migrate_alter_job('j', '{"last_check": "changed"}')});
kill 'TERM', $writer;
waitpid($writer, 0);

# --- kill -9 in the middle

foreach my $point (qw(cutover-round cutover-compare))
{
	src('UPDATE account SET balance = balance + 1 WHERE id <= 50');
	set_fault($target, "$point:kill");
	my ($r) = eval { call(q{, max_downtime => '20s'}) };
	wait_for($target, 'SELECT true', timeout => 60);
	set_fault($target, '');
	ok(wait_for($target, q{SELECT state = 'streaming' AND NOT EXISTS (SELECT FROM migrate.cutover WHERE state IN ('asked', 'running')) FROM migrate.job}, timeout => 60)
		|| job_state($target, 'j') eq 'cut_over', "$point, killed: it is over");
	is(job_state($target, 'j'), 'streaming', "$point, killed: undone");
	ok(wait_for(sub { ($source->psql('postgres', 'UPDATE account SET balance = balance + 1 WHERE id = 1'))[0] == 0 }, timeout => 60), "$point, killed: the source is open");
	follow();
}

# --- and in the end it is done

($rc, $err) = call(q{, max_downtime => '20s'});
is($rc, 0, 'cutover') or diag $err;
like(detail('check'), qr/^(nothing to compare|\d+ keys( and \d+ whole tables)? of \d targets compared)$/, 'with the last check');
same_rows($source, 'SELECT * FROM account', $target, 'SELECT * FROM account', 'both sides are equal');

done_testing();
