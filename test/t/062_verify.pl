# Copyright (c) 2026, the migrate authors; PostgreSQL License

# verify_writes: rows are read back in the transaction that writes them.  What
# changes rows on their way into the target is told, whichever way they take,
# and nothing of that chunk or batch stays; what only looks like it (values
# coerced to the column, defaults, generated columns) is not.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;

my $source = new_source('source', logical => 1);
my $target = new_target('target');
my $third = new_target('third');
connect_source($target, $source, server => 'legacy');
connect_source($target, $third, server => 'beyond');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

sub start
{
	my ($job, $add, %opt) = @_;
	my $more = $opt{options} ? ", $opt{options}" : '';
	my $from = $opt{from} // 't';
	sql(qq{SELECT migrate_create_job('$job', server => 'legacy', options => '{"capture": "none", "verify_writes": true, "batch_rows": 200$more}');
		SELECT migrate_import('$job', 'public', 'from_$job', include => '{t,k}');
		} . ($opt{ddl} // '') . qq{;
		SELECT migrate_add_table('$job', 'from_$job.$from', $add);
		SELECT migrate_accept('$job', check_name, object, 'test') FROM migrate_preflight('$job') WHERE status = 'fail';
		SELECT migrate_start('$job')});
	return;
}

sub copied
{
	my ($job) = @_;
	wait_job($target, $job, 'copied');
	is(sql(qq{SELECT count(*) FROM migrate.dead_letters WHERE job = '$job'}), 0, "$job: no letter");
	return;
}

# paused, and its workers gone
sub stopped
{
	my ($job) = @_;
	ok(wait_for($target, "SELECT j.pause_reason IS NOT NULL AND j.wanted = 'pause' AND NOT EXISTS (SELECT FROM migrate.workers w WHERE w.job = j.job AND w.role <> 'capture') FROM migrate.job j WHERE j.job = '$job'"), "$job: stopped");
	return;
}

# the job pauses, and says why; nothing is there
sub refused
{
	my ($job, $table, $reason) = @_;
	stopped($job);
	like(sql("SELECT pause_reason FROM migrate.job WHERE job = '$job'"), $reason, "$job: paused with the reason");
	is(sql("SELECT count(*) FROM migrate.events WHERE job = '$job' AND kind = 'verify' AND level = 'alert'"), 1, "$job: an alert");
	is(sql("SELECT count(*) FROM $table"), 0, "$job: nothing stays") if $table;
	is(sql(qq{SELECT count(*) FROM migrate.dead_letters WHERE job = '$job'}), 0, "$job: no letter");
	return;
}

src(q{CREATE TABLE t (id int PRIMARY KEY, a int, b text, at date);
	INSERT INTO t SELECT g, g % 100, 'b' || g, '2020-01-01'::date + g % 700 FROM generate_series(1, 1000) g;
	CREATE TABLE k AS SELECT * FROM t});
sql(q{CREATE SCHEMA m;
	CREATE FUNCTION m.change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.id = 777 THEN NEW.b := NEW.b || $$!$$; END IF; RETURN NEW; END';
	CREATE FUNCTION m.change_after() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.id = 777 THEN EXECUTE format($$UPDATE %I.%I SET a = -1, b = null WHERE id = 777$$, TG_TABLE_SCHEMA, TG_TABLE_NAME); END IF; RETURN NULL; END';
	CREATE FUNCTION m.drop_after() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN EXECUTE format($$DELETE FROM %I.%I WHERE id = 777$$, TG_TABLE_SCHEMA, TG_TABLE_NAME); RETURN NULL; END';
	CREATE FUNCTION m.rekey() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.id = 777 THEN NEW.id := -777; END IF; RETURN NEW; END'});

# what every table has that shall fail
sub always
{
	my ($table, $when, $function) = @_;
	sql("CREATE TRIGGER always $when INSERT OR UPDATE ON $table FOR EACH ROW EXECUTE FUNCTION m.$function(); ALTER TABLE $table ENABLE ALWAYS TRIGGER always");
	return;
}

# ---------------------------------------------------------------- no false alarm

sql(q{CREATE TABLE m.straight (id int, a int, b text, at date)});
start('straight', q{'m.straight'});
copied('straight');
foreach my $way ('fresh', 'sql')
{
	sql(qq{CREATE TABLE m.coerced_$way (x int, b char(12), a numeric(8,3), id int GENERATED ALWAYS AS IDENTITY, at timestamptz(0), twice numeric GENERATED ALWAYS AS (a * 2) STORED,
		filled text DEFAULT random()::text, list varchar(3)[], r m.straight); ALTER TABLE m.coerced_$way DROP x});
	sql("CREATE INDEX ON m.coerced_$way (a)") if $way eq 'sql';
	start("coerced_$way", qq{'m.coerced_$way', columns => '{"a": "a / 7.0", "at": "at + interval \$\$1.7 s\$\$", "list": "ARRAY[left(b, 3), null, \$\$x\$\$]", "r": "ROW(id, a, repeat(b, 1000), at)::m.straight"}'});
	copied("coerced_$way");
	is(sql("SELECT count(*), count(DISTINCT filled), min(length(b::bytea::text)), min(a) FROM m.coerced_$way"), '1000|1000|26|0.000', "coerced_$way: as the columns are");
}
is(sql('SELECT md5(string_agg(f.r::text, chr(10) ORDER BY id)) = (SELECT md5(string_agg(s.r::text, chr(10) ORDER BY id)) FROM m.coerced_sql s) FROM m.coerced_fresh f'), 't', 'coerced: the same by both ways');

sql(q{CREATE TABLE m.nokey (a int, at date); CREATE INDEX ON m.nokey (a)});
start('nokey', q{'m.nokey', columns => '{}'}, from => 'k');
copied('nokey');

sql(q{CREATE TABLE m.line (id int, n int, b text); CREATE INDEX ON m.line (id)});
start('line', q{'m.line', mapping => 'm.lines', key => '{"id": "id"}'}, ddl => q{CREATE FUNCTION m.lines(o from_line.t) RETURNS SETOF m.line LANGUAGE sql STABLE AS
	'SELECT o.id, 1, o.b FROM generate_series(1, o.a % 3) g'});
copied('line');
is(sql('SELECT count(*) FROM m.line'), src('SELECT sum(a % 3) FROM t'), 'line: a set for a row');

sql(q{CREATE TABLE m.there (id int PRIMARY KEY, a int, b text, at date, mine text DEFAULT 'mine'); INSERT INTO m.there SELECT g, -1, 'old' FROM generate_series(1, 1000, 3) g; UPDATE m.there SET mine = 'kept'});
start('there', q{'m.there'});
copied('there');
is(sql("SELECT count(*) FILTER (WHERE mine = 'kept'), count(*) FROM m.there"), '334|1000', 'there: rows that were there');
same_rows($source, 'SELECT * FROM t', $target, 'SELECT id, a, b, at FROM m.there', 'there: are updated');

$third->safe_psql('postgres', q{CREATE TABLE far (id int, a int, b text, at date, f float8)});
sql(q{CREATE TABLE m.parted (at date, id int, a int, b text, f float8) PARTITION BY RANGE (at);
	CREATE TABLE m.p2020 (b text, at date, f float8, id int, a int);
	ALTER TABLE m.parted ATTACH PARTITION m.p2020 FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
	CREATE FOREIGN TABLE m.p2021 PARTITION OF m.parted FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') SERVER beyond OPTIONS (schema_name 'public', table_name 'far')});
start('parted', q{'m.parted', columns => '{"f": "id / 3.0"}'});
copied('parted');
is(sql('SELECT count(*), count(DISTINCT tableoid) FROM m.parted'), '1000|2', 'parted: one partition is on another server');

# ---------------------------------------------------------------- what changes rows

sql('CREATE TABLE m.changed (id int, a int, b text, at date)');
always('m.changed', 'BEFORE', 'change');
start('changed', q{'m.changed', key => '{"id": "id"}'});
refused('changed', 'm.changed', qr/^verify_writes: rows of m\.changed are not there.*Row \(id\)=\(777\) is there with another value of column "b"\./);
sql(q{ALTER TABLE m.changed DISABLE TRIGGER always; SELECT migrate_resume('changed')});
copied('changed');
same_rows($source, 'SELECT * FROM t', $target, 'SELECT * FROM m.changed', 'changed: resumed when the trigger is gone');

sql('CREATE TABLE m.after (id int PRIMARY KEY, a int, b text, at date)');
always('m.after', 'AFTER', 'change_after');
sql(q{ALTER TABLE m.after DISABLE TRIGGER always; CREATE TRIGGER later AFTER INSERT ON m.after FOR EACH ROW EXECUTE FUNCTION m.change_after(); ALTER TABLE m.after ENABLE ALWAYS TRIGGER later});
start('after', q{'m.after'});
refused('after', 'm.after', qr/200 were given, 199 were found\. Row \(id\)=\(777\) is not there/);
sql(q{SELECT migrate_alter_job('after', '{"verify_writes": false}'); SELECT migrate_resume('after')});
wait_job($target, 'after', 'copied');
is(sql('SELECT a FROM m.after WHERE id = 777'), -1, 'after: turned off while it is paused');

sql('CREATE TABLE m.dropped (id int PRIMARY KEY, a int, b text, at date); INSERT INTO m.dropped SELECT 1');
sql('CREATE TRIGGER always AFTER INSERT ON m.dropped FOR EACH ROW EXECUTE FUNCTION m.drop_after(); ALTER TABLE m.dropped ENABLE ALWAYS TRIGGER always');
start('dropped', q{'m.dropped'}, options => '"batch_rows": 5000');
refused('dropped', undef, qr/1000 were given, 999 were found\. Row \(id\)=\(777\) is not there\./);

sql('CREATE TABLE m.keyless (id int, a int, b text, at date)');
always('m.keyless', 'BEFORE', 'rekey');
start('keyless', q{'m.keyless'}, from => 'k');
refused('keyless', 'm.keyless', qr/Row \('777', '77', 'b777', .*\) is there with another value of column "id"\./);

sql('CREATE TABLE m.elsewhere (id int, a int, b text, at date); CREATE TABLE m.ruled (id int, a int, b text, at date); CREATE RULE away AS ON INSERT TO m.ruled DO INSTEAD INSERT INTO m.elsewhere VALUES (NEW.*); ALTER TABLE m.ruled ENABLE ALWAYS RULE away');
start('ruled', q{'m.ruled', key => '{"id": "id"}'});
refused('ruled', 'm.elsewhere', qr/200 were given, 0 were found\. Row \(id\)=\(\d+\) is not there\./);

sql('CREATE TABLE m.unread (id int, a int, b text, at date); CREATE RULE away AS ON INSERT TO m.unread DO INSTEAD INSERT INTO m.elsewhere VALUES (NEW.*); ALTER TABLE m.unread ENABLE ALWAYS RULE away');
start('unread', q{'m.unread'}, from => 'k', options => '"retry_time": "0"');
sql("SELECT migrate_wait('unread', 'failed', '60s')");
like(sql(q{SELECT last_error FROM migrate.progress WHERE job = 'unread'}), qr/rows of m\.unread cannot be read back/, 'unread: what cannot be read back is an error, not a row taken for verified');

sql('CREATE TABLE m.parts (id int, a int, b text, at date) PARTITION BY HASH (id); CREATE TABLE m.parts_0 PARTITION OF m.parts FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE m.parts_1 PARTITION OF m.parts FOR VALUES WITH (MODULUS 2, REMAINDER 1)');
always("m.$_", 'BEFORE', 'change') foreach ('parts_0', 'parts_1');
start('parts', q{'m.parts', key => '{"id": "id"}'});
refused('parts', 'm.parts', qr/Row \(id\)=\(777\) is there with another value of column "b"\./);

$third->safe_psql('postgres', q{CREATE TABLE away (id int, a int, b text, at date);
	CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.at := NEW.at + 1; RETURN NEW; END';
	CREATE TRIGGER change BEFORE INSERT ON away FOR EACH ROW EXECUTE FUNCTION change()});
sql(q{CREATE TABLE m.away (id int, a int, b text, at date) PARTITION BY HASH (id);
	CREATE FOREIGN TABLE m.away_0 PARTITION OF m.away FOR VALUES WITH (MODULUS 1, REMAINDER 0) SERVER beyond OPTIONS (schema_name 'public', table_name 'away')});
start('away', q{'m.away', key => '{"id": "id"}'});
refused('away', 'm.away', qr/another value of column "at"/);

sql(q{CREATE TABLE m.many (id int, n int, b text); CREATE INDEX ON m.many (id); INSERT INTO m.many VALUES (1, 1, 'there')});
always('m.many', 'BEFORE', 'change');
start('many', q{'m.many', mapping => 'm.many_lines', key => '{"id": "id"}'}, ddl => q{CREATE FUNCTION m.many_lines(o from_many.t) RETURNS SETOF m.many LANGUAGE sql STABLE AS
	'SELECT o.id, g, o.b FROM generate_series(1, 3) g'});
refused('many', undef, qr/Row \(id\)=\(777\) is there with another value of column "b"\./);

# ---------------------------------------------------------------- changes

# r: by an index; p: by statements; s: sets; b: a bag
src(q{CREATE TABLE r (id int PRIMARY KEY, a int, b text, big text);
	CREATE TABLE s (id int PRIMARY KEY, a int, b text);
	CREATE TABLE b (id int, a int, b text); ALTER TABLE b REPLICA IDENTITY FULL;
	ALTER TABLE r ALTER big SET STORAGE EXTERNAL;
	INSERT INTO r SELECT g, g, 'b' || g, repeat(md5(g::text), 200) FROM generate_series(1, 300) g;
	INSERT INTO s SELECT id, a, b FROM r; INSERT INTO b SELECT id, a, b FROM r});
sql(q{CREATE TABLE m.r (id int PRIMARY KEY, a int UNIQUE, b text, big text, mine int DEFAULT 3);
	CREATE TABLE m.p (id int, a int, b text, big text, PRIMARY KEY (id)) PARTITION BY HASH (id); CREATE TABLE m.p_0 PARTITION OF m.p FOR VALUES WITH (MODULUS 1, REMAINDER 0);
	CREATE TABLE m.s (id int, n int, b text, PRIMARY KEY (id, n)); CREATE TABLE m.ps (id int, n int, b text) PARTITION BY HASH (id); CREATE TABLE m.ps_0 PARTITION OF m.ps FOR VALUES WITH (MODULUS 1, REMAINDER 0); CREATE INDEX ON m.ps (id);
	CREATE TABLE m.b (id int, a int, b text);
	SELECT migrate_create_job('live', server => 'legacy', options => '{"verify_writes": true}');
	SELECT migrate_import('live', 'public', 'from_live', include => '{r,s,b}');
	CREATE FUNCTION m.set_s(o from_live.s) RETURNS SETOF m.s LANGUAGE sql STABLE AS 'SELECT o.id, g, o.b FROM generate_series(1, o.a % 4) g';
	CREATE FUNCTION m.set_ps(o from_live.s) RETURNS SETOF m.ps LANGUAGE sql STABLE AS 'SELECT o.id, g, o.b FROM generate_series(1, o.a % 4) g';
	SELECT migrate_add_table('live', 'from_live.r', 'm.r');
	SELECT migrate_add_table('live', 'from_live.r', 'm.p', filter => 'a <> 13');
	SELECT migrate_add_table('live', 'from_live.s', 'm.s', mapping => 'm.set_s', key => '{"id": "id"}');
	SELECT migrate_add_table('live', 'from_live.s', 'm.ps', mapping => 'm.set_ps', key => '{"id": "id"}');
	SELECT migrate_add_table('live', 'from_live.b', 'm.b');
	SELECT migrate_accept('live', check_name, object, 'test') FROM migrate_preflight('live') WHERE status = 'fail';
	SELECT migrate_start('live')});
wait_job($target, 'live', 'streaming');

sub follows
{
	my ($name) = @_;
	my $lsn = src('SELECT pg_current_wal_insert_lsn()');
	ok(wait_for($target, "SELECT applied_lsn >= '$lsn' FROM migrate.lag WHERE job = 'live'"), "$name: applied");
	same_rows($source, 'SELECT * FROM r', $target, 'SELECT id, a, b, big FROM m.r', "$name: by an index");
	same_rows($source, 'SELECT * FROM r WHERE a <> 13', $target, 'SELECT * FROM m.p', "$name: by statements");
	same_rows($source, 'SELECT id, g, b FROM s, generate_series(1, a % 4) g', $target, "SELECT * FROM m.$_", "$name: sets, $_") foreach ('s', 'ps');
	same_rows($source, 'SELECT * FROM b', $target, 'SELECT * FROM m.b', "$name: a bag");
	is(sql("SELECT pause_reason IS NULL FROM migrate.job WHERE job = 'live'"), 't', "$name: no alarm");
	return;
}
follows('copy');
my $before = sql("SELECT verified FROM migrate.workers WHERE job = 'live' AND role = 'apply'");
src(q{BEGIN;
	UPDATE r SET b = b || '+' WHERE id % 3 = 0; UPDATE r SET big = 'small' WHERE id % 50 = 0; UPDATE r SET a = 1000 - a;
	UPDATE r SET a = 13 WHERE id = 13; UPDATE r SET a = 1001 WHERE a = 987; UPDATE r SET id = -id WHERE id % 10 = 4; DELETE FROM r WHERE id % 7 = 0; INSERT INTO r VALUES (0, 0, NULL, NULL);
	UPDATE s SET a = a + 1; DELETE FROM s WHERE id % 7 = 0; UPDATE s SET b = '+' WHERE id % 3 = 0; INSERT INTO s VALUES (0, 3, 'new');
	UPDATE b SET a = a + 1; DELETE FROM b WHERE id % 7 = 0; INSERT INTO b SELECT 1, 1, 'same' FROM generate_series(1, 3);
	COMMIT});
follows('changes');
cmp_ok(sql("SELECT verified FROM migrate.workers WHERE job = 'live' AND role = 'apply'"), '>', $before + 600, 'changes: rows read back are counted');

# what fails now: changed, not deleted, not all of a set
sub fails
{
	my ($name, $ddl, $undo, $change, $reason) = @_;
	my $alerts = sql("SELECT count(*) FROM migrate.events WHERE job = 'live' AND kind = 'verify'");
	sql($ddl);
	src($change);
	stopped('live');
	like(sql("SELECT pause_reason FROM migrate.job WHERE job = 'live'"), $reason, "$name: paused");
	is(sql("SELECT count(*) FROM migrate.events WHERE job = 'live' AND kind = 'verify'"), $alerts + 1, "$name: an alert");
	sql($undo);
	sql("SELECT migrate_resume('live'); SELECT migrate_wait('live', 'streaming', '60s')");
	follows($name);
	return;
}
sub trigger_on
{
	my ($table, $when, $function) = @_;
	return ("CREATE TRIGGER t $when ON $table FOR EACH ROW EXECUTE FUNCTION m.$function(); ALTER TABLE $table ENABLE ALWAYS TRIGGER t", "DROP TRIGGER t ON $table");
}
sql(q{CREATE FUNCTION m.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
	CREATE FUNCTION m.add() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO m.ps VALUES (NEW.id, 99, NEW.b); RETURN NULL; END';
	CREATE FUNCTION m.revive() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO m.p VALUES (OLD.*); RETURN NULL; END';
	CREATE FUNCTION m.spoil() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.b := null; RETURN NEW; END'});
fails('an update', trigger_on('m.r', 'BEFORE UPDATE', 'spoil'), q{UPDATE r SET b = 'x' WHERE id = 5}, qr/rows of m\.r are not there.*Row \(id\)=\(5\) is there with another value of column "b"/);
fails('an insert', trigger_on('m.p_0', 'BEFORE INSERT', 'spoil'), q{INSERT INTO r VALUES (5000, 5000, 'x', 'x')}, qr/rows of m\.p are not there.*Row \(id\)=\(5000\) is there with another value of column "b"/);
fails('a delete', trigger_on('m.p_0', 'BEFORE DELETE', 'keep'), q{DELETE FROM r WHERE id = 5}, qr/rows of m\.p are not there.*Row \(id\)=\(5\) is still there, which was removed/);
fails('a filtered row', trigger_on('m.p_0', 'AFTER DELETE', 'revive'), q{UPDATE r SET a = 14 WHERE a = 13; UPDATE r SET a = 13 WHERE id = 6}, qr/rows of m\.p are not there.*Row \(id\)=\(6\) is still there, which was removed/);
fails('a set', trigger_on('m.s', 'BEFORE INSERT', 'spoil'), q{UPDATE s SET b = 'y' WHERE id = 5}, qr/rows of m\.s are not there.*Row \(id\)=\(5\) is there with another value of column "b"/);
fails('a bag', trigger_on('m.b', 'BEFORE INSERT', 'spoil'), q{INSERT INTO b VALUES (5000, 5000, 'x')}, qr/rows of m\.b are not there/);
fails('more of a set', trigger_on('m.ps', 'AFTER INSERT', 'keep'), q{UPDATE s SET b = 'z' WHERE id = 6}, qr/./) if 0;

done_testing();
