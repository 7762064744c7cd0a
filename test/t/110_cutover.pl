# Cutover and rollback between two servers: the steps, the pause, the fence and
# the guard, the way back, and that nothing is left behind.

# Copyright (c) 2026, the migrate authors; PostgreSQL License

use strict;
use warnings;

use MigrateTest;
use Test::More;

my $source = new_source('source', logical => 1);
my $target = new_target('target', logical => 1, preload => 1);

connect_source($target, $source, server => 'legacy');

# a catalog's worth of what a job may leave behind
sub traces
{
	my ($node) = @_;
	return value($node, q{
		SELECT string_agg(x, E'\n' ORDER BY x) FROM (
			SELECT 'schema ' || nspname AS x FROM pg_namespace WHERE nspname !~ '^pg_'
			UNION ALL SELECT 'trigger ' || tgname || ' on ' || tgrelid::regclass FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'check_transition'
			UNION ALL SELECT 'publication ' || pubname FROM pg_publication
			UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots
			UNION ALL SELECT 'foreign table ' || ftrelid::regclass FROM pg_foreign_table
			UNION ALL SELECT 'function ' || oid::regprocedure FROM pg_proc
				WHERE pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
				  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = pg_proc.oid AND d.deptype = 'e')) t});
}

$source->safe_psql('postgres', q{
	CREATE TABLE account (id int PRIMARY KEY, owner text, balance bigint NOT NULL);
	INSERT INTO account SELECT g, 'owner ' || g, 100 FROM generate_series(1, 1000) g;
	CREATE TABLE "Odd Name" ("Key A" text, "b" uuid DEFAULT gen_random_uuid(), v numeric, PRIMARY KEY ("Key A", b));
	INSERT INTO "Odd Name" SELECT 'k''' || g, gen_random_uuid(), g / 7.0 FROM generate_series(1, 300) g;
	CREATE TABLE part (id bigint GENERATED ALWAYS AS IDENTITY, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
	CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
	CREATE TABLE part_b PARTITION OF part FOR VALUES IN ('b');
	INSERT INTO part (region, note) SELECT CASE g % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'note ' || g FROM generate_series(1, 200) g;
	CREATE TABLE renamed (id int PRIMARY KEY, total int, word text);
	INSERT INTO renamed SELECT g, g * 2, 'w' || g FROM generate_series(1, 100) g;
	CREATE TABLE big (id int PRIMARY KEY, small int, large text);
	INSERT INTO big SELECT g, g, (SELECT string_agg(md5((g * 1000 + i)::text), '') FROM generate_series(1, 300) i) FROM generate_series(1, 20) g;
	CREATE SEQUENCE loose START 5;
	SELECT nextval('loose');
});
my $before_source = traces($source);

$target->safe_psql('postgres', q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"new_home": "host new, database postgres"}');
	SELECT migrate_add_schema('j', 'public', exclude => '{renamed}');
	CREATE TABLE moved (key_id int PRIMARY KEY, total bigint, word text);
	SELECT migrate_add_table('j', 'public.renamed', 'public.moved', columns => '{"key_id": "id"}');
});
$target->safe_psql('postgres', q{SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');

# ---------------------------------------------------------------- readiness

my ($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_cutover('j')});
isnt($rc, 0, 'without a validation there is no cutover');
like($err, qr/job "j" is not ready for a cutover\nDETAIL:  validation: Not found equal within the last 24 hours:/, 'and it says so');
is(value($target, q{SELECT go, blockers FROM migrate.readiness}), 'f|{validation}', 'readiness says the same');
$target->safe_psql('postgres', q{SELECT migrate_validate('j')});
is(value($target, q{SELECT go, blockers, rollback_possible FROM migrate.readiness}), 't|{}|t', 'ready after a validation');
is(value($target, q{SELECT state FROM migrate.job}), 'streaming', 'still streaming');

($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_cutover('j', stop_before => 'opne')});
like($err, qr/there is no step "opne"\nHINT:  The steps are: prechecks, guard, reverse, arm, validate, lag, fence, drain, check, sequences, commit, open\./, 'unknown step');
($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_rollback('j')});
like($err, qr/job "j" is streaming, there is nothing to roll back/, 'nothing to roll back');
($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_cutover('j', dry_run => true)});
is($rc, 0, 'dry run');
like($err, qr/INFO:  prechecks: not measured yet\n.*INFO:  open: not measured yet/s, 'prints the steps');

# ---------------------------------------------------------------- rehearsal

($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_cutover('j', stop_before => 'open')});
is($rc, 0, 'rehearsal') or diag $err;
like($err, qr/stopped before "open" and undone; the application could not write for \d+ ms/, 'the pause is measured');
is(job_state($target, 'j'), 'streaming', 'streaming on');
$source->safe_psql('postgres', 'UPDATE account SET balance = 101 WHERE id = 1');
ok(wait_for($target, 'SELECT balance = 101 FROM account WHERE id = 1'), 'the source is open, and followed');

# ---------------------------------------------------------------- guard

($rc, $out, $err) = $target->psql('postgres', 'UPDATE account SET balance = 0 WHERE id = 1');
like($err, qr/table "public.account" is not open for writing yet/, 'the guard refuses writes here');
($rc, $out, $err) = $target->psql('postgres', 'TRUNCATE part');
like($err, qr/table "public.part_[ab]" is not open for writing yet/, 'and TRUNCATE');

# ---------------------------------------------------------------- cutover

($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_cutover('j', max_downtime => '10s')});
is($rc, 0, 'cutover') or diag $err;
like($err, qr/INFO:  fence .* done, 6 tables, 1 try.*INFO:  the target is open; the application could not write for \d+ ms/s, 'with its steps');
is(job_state($target, 'j'), 'cut_over', 'cut over');
($rc, $out, $err) = $source->psql('postgres', 'UPDATE account SET balance = 7 WHERE id = 2', on_error_stop => 0);
like($err, qr/ERROR:  table "public.account" cannot be written to any more\nDETAIL:  It has been moved to another server.\nHINT:  Write to host new, database postgres./, 'the source refuses');
($rc, $out, $err) = $source->psql('postgres', q{\set VERBOSITY sqlstate
INSERT INTO part_a (region, note) VALUES ('a', 'x');
TRUNCATE "Odd Name";
SET session_replication_role = replica;
DELETE FROM renamed;}, on_error_stop => 0);
is(() = $err =~ /25006/g, 3, 'leaves, TRUNCATE and replica role are refused, too (P27)') or diag $err;

# everything the way back has to carry
$target->safe_psql('postgres', q{
	UPDATE account SET balance = balance - 10 WHERE id <= 500;
	DELETE FROM account WHERE id BETWEEN 900 AND 950;
	UPDATE account SET id = id + 10000 WHERE id BETWEEN 700 AND 720;
	INSERT INTO account SELECT g, 'new ''\\ ' || g, 5 FROM generate_series(900, 920) g;
	INSERT INTO part (region, note) VALUES ('a', 'back'), ('b', NULL);
	UPDATE part SET region = 'b' WHERE region = 'a' AND id % 3 = 0;
	INSERT INTO moved VALUES (1001, 5, 'neu');
	UPDATE moved SET total = total + 1 WHERE key_id <= 50;
	UPDATE big SET small = small + 1;
	BEGIN; UPDATE big SET small = 77 WHERE id = 3; SAVEPOINT a; DELETE FROM big; ROLLBACK TO a; COMMIT;
	DELETE FROM "Odd Name" WHERE v > 30;
	INSERT INTO "Odd Name" VALUES ('neu', '00000000-0000-0000-0000-000000000001', 'NaN');
	SELECT nextval('loose'), nextval('loose');
});
my %pairs = (account => ['SELECT * FROM account'] , part => ['SELECT * FROM part'],
	big => ['SELECT * FROM big'], odd => ['SELECT * FROM "Odd Name"'],
	moved => ['SELECT id, total, word FROM renamed', 'SELECT key_id, total, word FROM moved']);

# ---------------------------------------------------------------- rollback

($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_rollback('j')});
is($rc, 0, 'rollback') or diag $err;
like($err, qr/INFO:  the source is open; the application could not write for \d+ ms/, 'with its pause');
is(job_state($target, 'j'), 'streaming', 'streaming again');
foreach my $t (sort keys %pairs)
{
	my ($there, $here) = @{ $pairs{$t} };
	same_rows($source, $there, $target, $here || $there, "$t is the same on both sides after going back");
}
is(value($source, 'SELECT last_value FROM loose'), value($target, 'SELECT last_value FROM loose'), 'sequences went back');
$source->safe_psql('postgres', q{INSERT INTO account VALUES (5000, 'after', 1)});
ok(wait_for($target, 'SELECT count(*) = 1 FROM account WHERE id = 5000'), 'the forward stream goes on');
($rc, $out, $err) = $target->psql('postgres', 'DELETE FROM account');
like($err, qr/is not open for writing yet/, 'the target is closed again');

# ---------------------------------------------------------------- again, and the end

foreach my $i (1 .. 3)
{
	($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_cutover('j')});
	is($rc, 0, "cutover $i") or diag $err;
	$target->safe_psql('postgres', "UPDATE account SET balance = balance + $i WHERE id <= 100");
	($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_rollback('j')});
	is($rc, 0, "rollback $i") or diag $err;
	$source->safe_psql('postgres', "UPDATE account SET balance = balance - $i WHERE id <= 50");
}
($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_cutover('j')});
is($rc, 0, 'the last cutover') or diag $err;
foreach my $t (sort keys %pairs)
{
	my ($there, $here) = @{ $pairs{$t} };
	same_rows($source, $there, $target, $here || $there, "$t is the same on both sides at the end");
}
($rc, $out, $err) = $target->psql('postgres', q{SELECT migrate_cancel('j')});
like($err, qr/job "j" is cut_over, and cannot be cancelled/, 'no cancel between the sides');
($rc, $out, $err) = $target->psql('postgres', q{CALL migrate_finish('j')});
is($rc, 0, 'finish') or diag $err;
is($err, '', 'without a warning');
is(traces($source), $before_source, 'nothing is left on the source');
unlike(traces($target), qr/trigger|publication|slot|foreign table/, 'nor here, but the tables');
$target->safe_psql('postgres', q{DROP EXTENSION migrate CASCADE; INSERT INTO account VALUES (9999, 'free', 0)});

done_testing();
