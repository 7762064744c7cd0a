
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Option fence_reads: while the source is fenced nobody but the job's role reads it.
# What was revoked comes back as it was: after a rehearsal, a cutover that was undone,
# a rollback, a worker that was killed, and at the end.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;

my $source = new_source('source', logical => 1);
my $target = new_target('target', logical => 1, preload => 1);

sub src { return $source->safe_psql('postgres', $_[0]); }
sub sql { return $target->safe_psql('postgres', $_[0]); }

src(q{
	CREATE ROLE app LOGIN REPLICATION;
	CREATE ROLE "Odd reader" LOGIN;
	CREATE ROLE crew;
	CREATE ROLE member LOGIN IN ROLE crew;
	CREATE ROLE other_owner;
	GRANT other_owner TO app;
	GRANT CREATE ON DATABASE postgres TO app;
	GRANT ALL ON SCHEMA public TO app, other_owner;
	SET ROLE app;
	CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, secret text);
	INSERT INTO account SELECT g, 1000, 'x' FROM generate_series(1, 100) g;
	CREATE TABLE "Odd t" (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
	CREATE TABLE "Odd t1" PARTITION OF "Odd t" FOR VALUES IN (1);
	INSERT INTO "Odd t" SELECT g, 1 FROM generate_series(1, 10) g;
	SET ROLE other_owner;
	CREATE TABLE theirs (id int PRIMARY KEY);
	INSERT INTO theirs VALUES (1);
	CREATE TABLE child (id int PRIMARY KEY, theirs int REFERENCES theirs);
	RESET ROLE;
	GRANT SELECT, UPDATE ON account TO crew WITH GRANT OPTION;
	GRANT SELECT (id, secret) ON account TO "Odd reader";
	GRANT SELECT ON "Odd t", "Odd t1" TO PUBLIC;
	GRANT SELECT ON theirs TO crew;
	GRANT ALL ON theirs, child TO app;
});
connect_source($target, $source, server => 'legacy', user => 'app', options => { });
sql(q{
	SELECT migrate_create_job('j', server => 'legacy', options => '{"fence_reads": true}');
	SELECT migrate_add_schema('j', 'public');
	SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
sql(q{SELECT migrate_accept('j', 'cutover', x, 'the test does without') FROM unnest('{validation,way_back}'::text[]) x});

# every right of every table and column; NULL is what the owner has by default
my $rights = q{SELECT c.relname, a.col, a.grantee::regrole, a.privilege_type, a.is_grantable, a.grantor::regrole
	FROM pg_class c CROSS JOIN LATERAL (
		SELECT '' AS col, e.* FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) e
		UNION ALL SELECT x.attname, e.* FROM pg_attribute x CROSS JOIN LATERAL aclexplode(x.attacl) e WHERE x.attrelid = c.oid) a
	WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1, 2, 3, 4};
my $before = src($rights);

sub call
{
	my ($what, $arguments) = @_;
	my ($out, $err) = ('', '');
	my $rc = $target->psql('postgres', "CALL migrate_$what('j'" . ($arguments ? ", $arguments" : '') . ')', stdout => \$out, stderr => \$err);
	return ($rc, $err);
}

# SQLSTATE that a role gets, or what it reads
sub reads
{
	my ($role, $what) = @_;
	my ($out, $err) = ('', '');
	$source->psql('postgres', "\\set VERBOSITY sqlstate\nSET ROLE \"$role\";\nSELECT $what", stdout => \$out, stderr => \$err);
	return $err =~ /ERROR:\s+(\w+)/ ? $1 : $out;
}

sub readers_are
{
	my ($want, $when) = @_;
	my @tables = (['member', 'count(*) FROM account', 100], ['Odd reader', 'count(secret) FROM account', 100],
		['member', 'count(*) FROM "Odd t"', 10], ['Odd reader', 'count(*) FROM "Odd t1"', 10], ['member', 'count(*) FROM theirs', 1]);
	is(reads($_->[0], $_->[1]), $want eq 'out' ? '42501' : $_->[2], "$when: $_->[0], $_->[1]") foreach @tables;
	is(reads('app', 'count(*) > 90 FROM account'), 't', "$when: the job's role reads");
	return;
}

readers_are('in', 'before');
my ($rc, $err) = call('cutover', q{stop_before => 'open'});
is($rc, 0, 'rehearsal') or diag $err;
is(src($rights), $before, 'rehearsal: every right is as it was');

foreach my $cycle (1, 2)
{
	($rc, $err) = call('cutover');
	is($rc, 0, "cycle $cycle: cutover") or diag $err;
	readers_are('out', "cycle $cycle");
	sql(qq{UPDATE account SET balance = $cycle WHERE id = 5; INSERT INTO child VALUES ($cycle, 1); INSERT INTO "Odd t" VALUES (100 + $cycle, 1); DELETE FROM "Odd t" WHERE id = 100 + $cycle});
	ok(wait_for($source, "SELECT (SELECT balance FROM account WHERE id = 5) = $cycle AND EXISTS (SELECT FROM child WHERE id = $cycle)"),
		"cycle $cycle: the way back writes, foreign keys included");
	($rc, $err) = call('rollback');
	is($rc, 0, "cycle $cycle: rollback") or diag $err;
	is(src($rights), $before, "cycle $cycle: every right is as it was");
	readers_are('in', "cycle $cycle, back");
}

# --- killed before and after the fence is committed
foreach my $point (qw(cutover-locked cutover-commit))
{
	set_fault($target, "$point:kill");
	wait_for($target, "SELECT current_setting('migrate.fault') = '$point:kill'");
	my $kills = kills_seen($target);
	call('cutover');
	ok(wait_for(sub { kills_seen($target) > $kills }), "$point: killed");
	set_fault($target, '');
	ok(wait_for(sub { (try_query($target, q{SELECT current_setting('migrate.fault')}) // '-') eq '' }), "$point: again");
	ok(wait_for(sub { (try_query($target, q{SELECT state FROM migrate.job WHERE job = 'j'}) // '') =~ /^(streaming|cut_over)$/ }, timeout => 120), "$point: it comes to an end");
	if (job_state($target, 'j') eq 'cut_over')
	{
		readers_are('out', $point);
		($rc, $err) = call('rollback');
		is($rc, 0, "$point: back") or diag $err;
	}
	is(src($rights), $before, "$point: every right is as it was");
}

# --- what cannot be given back is not taken
src(q{SET ROLE crew; GRANT SELECT ON account TO "Odd reader"});
my $more = src($rights);
($rc, $err) = call('cutover');
like($err, qr/ERROR:  the cutover of job "j" was undone: error on server "legacy": readers of public\.account cannot be fenced: its owner has not granted SELECT to "Odd reader" himself/, 'granted by another role');
is(job_state($target, 'j'), 'streaming', 'it streams on');
is(src($rights), $more, 'and every right is as it was');
src(q{SET ROLE crew; REVOKE SELECT ON account FROM "Odd reader"});

($rc, $err) = call('cutover');
is($rc, 0, 'cutover') or diag $err;
# a role and a table that go meanwhile
src(q{REVOKE ALL ON account FROM "Odd reader"; REVOKE ALL (id, secret) ON account FROM "Odd reader"; DROP ROLE "Odd reader"});
sql(q{CALL migrate_finish('j')});
is(src($rights =~ s/WHERE c/WHERE a.grantee <> 4294967295 AND c/r), join("\n", grep { !/Odd reader/ } split(/\n/, $before)), 'finish: every right is as it was, but for a role that is gone');
is(src(q{SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'migrate_fence%'}), '0', 'finish: nothing is left');
done_testing();
