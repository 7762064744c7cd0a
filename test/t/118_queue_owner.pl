
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# The way back by triggers where nobody is a superuser: an owner of the job with
# the rights of migrate_grant, an application that may do no more than write to
# the tables, and a role on the source for which foreign keys hold.  Changes that
# hang together go back in parts.  What is not possible is told before the copy.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source', logical => 1);
my $target = new_target('target', preload => 1);

$source->safe_psql('postgres', q{
	CREATE ROLE mover LOGIN REPLICATION;
	GRANT CREATE ON DATABASE postgres TO mover;
	GRANT ALL ON SCHEMA public TO mover;
	SET ROLE mover;
	CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL UNIQUE, note text);
	INSERT INTO seat SELECT g, g, 'n' || g FROM generate_series(1, 1000) g;
	CREATE TABLE guest (id int PRIMARY KEY, seat int NOT NULL REFERENCES seat, name text);
	INSERT INTO guest SELECT g, g, 'g' || g FROM generate_series(1, 1000) g;
	CREATE TABLE other (id int PRIMARY KEY);
	CREATE TABLE cut (id int PRIMARY KEY);
});
connect_source($target, $source, server => 'legacy', user => 'mover', options => { });
$target->safe_psql('postgres', q{
	CREATE ROLE mover LOGIN;
	CREATE ROLE app LOGIN;
	SELECT migrate_grant('mover');
	GRANT USAGE ON FOREIGN SERVER legacy TO mover;
	GRANT CREATE ON DATABASE postgres TO mover;
	GRANT ALL ON SCHEMA public TO mover;
	CREATE USER MAPPING FOR mover SERVER legacy OPTIONS (user 'mover', password_required 'false');
	CREATE TABLE other (id int PRIMARY KEY);
	GRANT ALL ON other TO mover;
	CREATE TABLE cut (id int NOT NULL) PARTITION BY RANGE (id);
	ALTER TABLE cut OWNER TO mover;
	CREATE TABLE cut_1 PARTITION OF cut FOR VALUES FROM (0) TO (10);
	CREATE SCHEMA foreign_part;
	CREATE FOREIGN TABLE foreign_part.cut_2 PARTITION OF cut FOR VALUES FROM (10) TO (20) SERVER legacy OPTIONS (schema_name 'public', table_name 'cut');
});

sub as { my ($role, $sql) = @_; return $target->safe_psql('postgres', "SET ROLE $role; $sql") }

sub works
{
	my ($what, $name) = @_;
	my $err = '';
	my $rc = $target->psql('postgres', "CALL migrate_$what('j')", stderr => \$err, connstr => $target->connstr('postgres') . ' user=mover');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($rc, 0, $name) or diag $err;
	return;
}

sub same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(wait_for($target, 'SELECT NOT EXISTS (SELECT FROM migrate.reverse_queue)', timeout => 60), "$name: the queue is empty");
	same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM $_", "$name: $_ is the same on both sides") for qw(seat guest);
	is(value($target, q{SELECT string_agg(DISTINCT message, '; ') FROM migrate.dead_letter WHERE state = 'open'}), '', "$name: no dead letter");
	return;
}

as('mover', q{
	SELECT migrate_create_job('no', server => 'legacy');
	SELECT migrate_add_table('no', 'public.other', 'public.other');
	SELECT migrate_add_table('no', 'public.cut', 'public.cut');
});
like(as('mover', q{SELECT string_agg(object || ': ' || detail, E'\n' ORDER BY object, detail) FROM migrate_preflight('no') WHERE check_name = 'way_back' AND status = 'fail'}),
	qr/public.cut: .*partition foreign_part.cut_2 is a foreign table.*public.other: .*the owner of the job does not own it/s, 'preflight tells what cannot have triggers');
as('mover', q{SELECT migrate_drop_job('no')});

as('mover', q{
	SELECT migrate_create_job('j', server => 'legacy');
	SELECT migrate_add_schema('j', 'public', include => '{seat,guest}');
	SELECT migrate_start('j');
});
wait_job($target, 'j', 'streaming');
as('mover', q{SELECT migrate_accept('j', 'cutover', 'validation', 'the test compares'); GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON seat, guest TO app});
is(as('mover', 'SELECT rollback_possible FROM migrate.readiness'), 't', 'there is a way back');
works('cutover', 'cutover');
is(value($target, q{SELECT kind FROM migrate.reverse}), 'trigger', 'by triggers');

as('app', q{
	UPDATE seat SET note = 'app' WHERE id < 100;
	UPDATE seat SET id = id + 10000 WHERE id NOT IN (SELECT seat FROM guest);
	BEGIN; INSERT INTO seat VALUES (2000, 2000, 'new'); INSERT INTO guest VALUES (2000, 2000, 'new'); DELETE FROM guest WHERE id = 5; DELETE FROM seat WHERE id = 5; COMMIT;
});
same('the application');

# ------------------------------------------------------------------ in parts

set_fault($target, 'queue-small:skip');
ok(wait_for($target, q{SELECT current_setting('migrate.fault') = 'queue-small:skip'}), 'in parts: set');
$source->stop('fast');
as('app', q{
	INSERT INTO guest SELECT g, 2, 'first' FROM generate_series(20000, 20400) g;
	INSERT INTO seat SELECT g, g, 'late' FROM generate_series(20000, 20400) g;
	UPDATE guest SET seat = id WHERE id >= 20000;
	UPDATE seat SET place = -place WHERE place BETWEEN 201 AND 801;
	UPDATE seat SET place = 1002 + place WHERE place < -200;
	UPDATE seat SET note = 'gone' WHERE id BETWEEN 850 AND 990;
	DELETE FROM guest WHERE id BETWEEN 850 AND 990;
	DELETE FROM seat WHERE id BETWEEN 850 AND 990;
});
cmp_ok(value($target, 'SELECT count(*) FROM migrate.reverse_queue'), '>', 2000, 'in parts: many of them');
start_again($source);
same('in parts');
set_fault($target, '');

# what can never go back is a letter in the end
as('mover', 'ALTER TABLE seat DROP CONSTRAINT seat_place_key');
as('app', 'UPDATE seat SET place = 1 WHERE id = 3');
ok(wait_for($target, q{SELECT count(*) = 1 AND min(key ->> 'id') = '3' FROM migrate.dead_letter WHERE state = 'open' AND stage = 'back'}), 'what cannot go back is a dead letter');
as('app', 'UPDATE seat SET place = 3 WHERE id = 3');
same('superseded');

works('rollback', 'rollback');
same('rollback');
works('cutover', 'and forth again');
as('app', q{TRUNCATE guest; INSERT INTO guest VALUES (1, 1, 'one')});
same('forth again');
works('finish', 'finish');
is(value($target, q{SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE 'migrate%'}), '0', 'no trigger is left');

done_testing();
