# Copyright (c) 2026, the migrate authors; PostgreSQL License

=pod

=head1 NAME

Workload - an application that never stops, and proofs that nothing of it is lost

=head1 SYNOPSIS

  my $w = Workload->new(source => $source, target => $target);
  $w->fill;
  $w->start_writers;
  $w->define('j', options => '"workers": 2');
  $w->start_watch('j');
  $target->safe_psql('postgres', q{SELECT migrate_start('j')});
  wait_job($target, 'j', 'streaming');
  $w->drain('j');          # stops the writers, waits until all is applied
  $w->check('j');          # tests: equality, and what the watcher has seen
  $w->drop('j');

=head1 DESCRIPTION

The source has the schema C<app>.  What it holds, and what its writers do:

  account      transfers between rows, closed and opened again; op_order grows
               with every change of a row, through a delete and a re-insert
  My "Pockets" uuid key, quoted names; money goes to and fro, so that the total
               of both tables is constant at every commit
  item         key of two columns; upserts, deletes, key changes, key swaps
  doc          text key, TOASTed value that most updates leave alone
  ord, line    foreign key with cascades; at every commit there are as many
               lines as the orders say
  seat         a unique column whose values change hands
  log          no key, REPLICA IDENTITY FULL, many rows twice
  part         partitioned, rows move between partitions
  gone, gone_child   TRUNCATE, alone and in company
  ballast      rows that make the copy take its time; large transactions
  marker       see drain()

A job made by define() takes all of it over as it is into the schema <job>,
and in other forms into <job>_m, from the same source tables: expressions, a
mapping function, a filter, a set for a row, a computed key, a partition key
outside the key.

Writers are pgbench sessions that go on after any crash of the source.  The
watcher is a session on the target that looks as often as it can, from the
consistent point on, and notes what must never be seen.

=cut

package Workload;

use strict;
use warnings;

use File::Temp ();
use MigrateTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $accounts = 200;

# Functions of the writers: each call is a transaction, or a part of one.
my $source_sql = <<'SQL';
CREATE SCHEMA app;
CREATE SCHEMA w;
CREATE TABLE app.account (id int PRIMARY KEY, balance bigint NOT NULL, op_order bigint NOT NULL, note text);
CREATE TABLE app."My ""Pockets" ("Key" uuid PRIMARY KEY, "select" bigint NOT NULL, "Größe" text);
CREATE TABLE app.item (a int, b text, n int, what text, PRIMARY KEY (a, b));
CREATE TABLE app.doc (name text PRIMARY KEY, big text, small int NOT NULL, at timestamptz);
ALTER TABLE app.doc ALTER big SET STORAGE EXTERNAL;
CREATE TABLE app.ord (id int PRIMARY KEY, n int NOT NULL, price numeric(12,2), status text NOT NULL);
CREATE TABLE app.line (ord_id int REFERENCES app.ord ON DELETE CASCADE ON UPDATE CASCADE, no int, qty int,
	PRIMARY KEY (ord_id, no));
CREATE TABLE app.seat (id int PRIMARY KEY, place int NOT NULL UNIQUE);
CREATE TABLE app.log (n int, what text);
ALTER TABLE app.log REPLICA IDENTITY FULL;
CREATE TABLE app.part (id int, region int, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE app.part_0 PARTITION OF app.part FOR VALUES IN (0);
CREATE TABLE app.part_1 PARTITION OF app.part FOR VALUES IN (1);
CREATE TABLE app.part_2 PARTITION OF app.part FOR VALUES IN (2, 3);
CREATE TABLE app.gone (id int PRIMARY KEY, v text);
CREATE TABLE app.gone_child (id int PRIMARY KEY, gone_id int REFERENCES app.gone);
CREATE TABLE app.ballast (id int PRIMARY KEY, v int, pad text);
CREATE TABLE app.marker (id text PRIMARY KEY);

CREATE SEQUENCE w.ops;
CREATE SEQUENCE w.ids START 1000000;

CREATE FUNCTION w.any(n int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1 + floor(random() * n)::int';
-- a few bytes of a value, or many that do not compress
CREATE FUNCTION w.big() RETURNS text LANGUAGE sql VOLATILE AS
	'SELECT string_agg(md5(random()::text), '''') FROM generate_series(1, 80 + w.any(300)) g';
CREATE FUNCTION w.pocket(i int) RETURNS uuid LANGUAGE sql IMMUTABLE AS 'SELECT md5(''pocket'' || i)::uuid';
CREATE FUNCTION w.lock(kind int, VARIADIC keys int[]) RETURNS void LANGUAGE sql VOLATILE AS
	'SELECT pg_advisory_xact_lock(kind, k) FROM (SELECT DISTINCT unnest(keys) ORDER BY 1) u(k)';

-- sums between accounts; half done and rolled back when one of them is closed
CREATE FUNCTION w.transfer() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	a int := w.any(ACCOUNTS);
	b int := w.any(ACCOUNTS);
	m int := w.any(100);
BEGIN
	IF a = b THEN RETURN; END IF;
	PERFORM w.lock(1, a, b);
	UPDATE app.account SET balance = balance - m, op_order = nextval('w.ops') WHERE id = a;
	UPDATE app.account SET balance = balance + m, op_order = nextval('w.ops') WHERE id = b AND random() < 0.9;
	IF NOT FOUND OR NOT EXISTS (SELECT FROM app.account WHERE id = a) THEN
		RAISE EXCEPTION 'rolled back';
	END IF;
EXCEPTION WHEN raise_exception THEN
	NULL;
END $$;

CREATE FUNCTION w.pockets() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	a int := w.any(ACCOUNTS);
	p uuid := w.pocket(w.any(ACCOUNTS));
	m int := w.any(100) - 50;
BEGIN
	PERFORM w.lock(1, a);
	PERFORM FROM app.account WHERE id = a;
	IF NOT FOUND THEN RETURN; END IF;
	UPDATE app."My ""Pockets" SET "select" = "select" + m, "Größe" = 'é' || m WHERE "Key" = p;
	IF NOT FOUND THEN
		INSERT INTO app."My ""Pockets" VALUES (p, m, 'new') ON CONFLICT DO NOTHING;
		IF NOT FOUND THEN RETURN; END IF;
	END IF;
	UPDATE app.account SET balance = balance - m, op_order = nextval('w.ops') WHERE id = a;
END $$;

-- an account is closed, or opened again; sometimes both at once
CREATE FUNCTION w.close() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	a int := w.any(ACCOUNTS);
	b int := w.any(ACCOUNTS);
	m bigint;
BEGIN
	IF a = b THEN RETURN; END IF;
	PERFORM w.lock(1, a, b);
	IF NOT EXISTS (SELECT FROM app.account WHERE id = b) THEN
		INSERT INTO app.account VALUES (b, 0, nextval('w.ops'), 'again');
	END IF;
	DELETE FROM app.account WHERE id = a RETURNING balance INTO m;
	IF NOT FOUND THEN
		INSERT INTO app.account VALUES (a, 0, nextval('w.ops'), 'opened');
		RETURN;
	END IF;
	IF random() < 0.4 THEN
		INSERT INTO app.account VALUES (a, m, nextval('w.ops'), 'at once');
	ELSE
		UPDATE app.account SET balance = balance + m, op_order = nextval('w.ops') WHERE id = b;
	END IF;
END $$;

CREATE FUNCTION w.item() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	a1 int := w.any(40);
	b1 text := 'k' || w.any(30);
	a2 int := w.any(40);
	b2 text := 'k' || w.any(30);
	r float := random();
BEGIN
	IF r < 0.3 THEN
		INSERT INTO app.item VALUES (a1, b1, w.any(1000), 'in') ON CONFLICT (a, b) DO UPDATE SET n = item.n + 1, what = NULL;
	ELSIF r < 0.5 THEN
		DELETE FROM app.item WHERE a = a1 AND b = b1;
	ELSIF r < 0.6 THEN
		DELETE FROM app.item WHERE a = a1 AND b = b1;
		INSERT INTO app.item VALUES (a1, b1, w.any(1000), 'back') ON CONFLICT DO NOTHING;
	ELSIF r < 0.8 THEN
		UPDATE app.item SET a = a2, b = b2, what = 'moved' WHERE a = a1 AND b = b1;
	ELSIF r < 0.9 THEN
		-- two keys change hands
		UPDATE app.item SET a = -a1 WHERE a = a1 AND b = b1;
		UPDATE app.item SET a = a1, b = b1, n = n + 1 WHERE a = a2 AND b = b2;
		UPDATE app.item SET a = a2, b = b2 WHERE a = -a1 AND b = b1;
	ELSE
		UPDATE app.item SET n = n + 1 WHERE a = a1;
	END IF;
EXCEPTION WHEN unique_violation THEN
	NULL;
END $$;

CREATE FUNCTION w.doc() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	n1 text := 'doc ' || w.any(300);
	n2 text := 'doc ' || w.any(300);
	r float := random();
BEGIN
	IF r < 0.2 THEN
		INSERT INTO app.doc VALUES (n1, w.big(), w.any(100), clock_timestamp()) ON CONFLICT DO NOTHING;
	ELSIF r < 0.65 THEN
		UPDATE app.doc SET small = small + 1, at = clock_timestamp() WHERE name = n1;
	ELSIF r < 0.75 THEN
		UPDATE app.doc SET name = n2 WHERE name = n1;
	ELSIF r < 0.85 THEN
		UPDATE app.doc SET big = CASE WHEN random() < 0.3 THEN 'short' ELSE w.big() END WHERE name = n1;
		UPDATE app.doc SET small = small + 1 WHERE name = n1;
	ELSIF r < 0.9 THEN
		-- the name goes, its successor has the old value
		UPDATE app.doc SET name = n1 || '!' WHERE name = n1;
		UPDATE app.doc SET small = -small WHERE name = n1 || '!';
		UPDATE app.doc SET name = n1 WHERE name = n1 || '!';
	ELSE
		DELETE FROM app.doc WHERE name = n1;
	END IF;
EXCEPTION WHEN unique_violation THEN
	NULL;
END $$;

CREATE FUNCTION w.ord() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	i int := w.any(400);
	k int := w.any(6) - 1;
	r float := random();
BEGIN
	PERFORM w.lock(2, i);
	IF r < 0.3 THEN
		INSERT INTO app.ord VALUES (i, k, w.any(100000) / 100.0, 'new') ON CONFLICT DO NOTHING;
		IF FOUND THEN INSERT INTO app.line SELECT i, g, w.any(9) FROM generate_series(1, k) g; END IF;
	ELSIF r < 0.5 THEN
		UPDATE app.ord SET status = (ARRAY['new', 'paid', 'sent'])[w.any(3)], price = price + 0.01 WHERE id = i;
	ELSIF r < 0.7 THEN
		UPDATE app.ord SET n = k WHERE id = i;
		IF FOUND THEN
			DELETE FROM app.line WHERE ord_id = i AND no > k;
			INSERT INTO app.line SELECT i, g, w.any(9) FROM generate_series(1, k) g ON CONFLICT (ord_id, no) DO UPDATE SET qty = 0;
		END IF;
	ELSIF r < 0.8 THEN
		UPDATE app.ord SET id = nextval('w.ids') WHERE id = i;
	ELSE
		DELETE FROM app.ord WHERE id = i OR id = (SELECT max(id) FROM app.ord WHERE id > 400 AND i % 2 = 0);
	END IF;
END $$;

CREATE FUNCTION w.seat() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	i int := w.any(100);
	j int := w.any(100);
	p int;
	q int;
BEGIN
	IF i = j THEN RETURN; END IF;
	PERFORM w.lock(3, i, j);
	SELECT place INTO p FROM app.seat WHERE id = i;
	SELECT place INTO q FROM app.seat WHERE id = j;
	IF p IS NULL OR q IS NULL THEN
		INSERT INTO app.seat VALUES (i, nextval('w.ids')) ON CONFLICT DO NOTHING;
		RETURN;
	END IF;
	IF random() < 0.6 THEN
		UPDATE app.seat SET place = -i WHERE id = i;
		UPDATE app.seat SET place = p WHERE id = j;
		UPDATE app.seat SET place = q WHERE id = i;
	ELSE
		-- one takes the place of one that leaves
		DELETE FROM app.seat WHERE id = i;
		UPDATE app.seat SET place = p WHERE id = j;
	END IF;
END $$;

CREATE FUNCTION w.log() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	k int := w.any(20);
	r float := random();
BEGIN
	IF r < 0.5 THEN
		INSERT INTO app.log SELECT k, CASE WHEN k % 5 > 0 THEN 'what ' || k END FROM generate_series(1, w.any(3));
	ELSIF r < 0.75 THEN
		DELETE FROM app.log WHERE ctid = ANY (ARRAY(SELECT ctid FROM app.log WHERE n = k LIMIT 2));
	ELSE
		UPDATE app.log SET n = n % 20 + 1 WHERE ctid = ANY (ARRAY(SELECT ctid FROM app.log WHERE n = k LIMIT 1));
	END IF;
END $$;

CREATE FUNCTION w.part() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	i int := w.any(500);
	r float := random();
BEGIN
	IF r < 0.3 THEN
		INSERT INTO app.part VALUES (i, w.any(4) - 1, 'v' || w.any(9)) ON CONFLICT DO NOTHING;
	ELSIF r < 0.6 THEN
		UPDATE app.part SET region = (region + w.any(3)) % 4 WHERE id = i AND region = w.any(4) - 1;
	ELSIF r < 0.8 THEN
		UPDATE app.part SET v = v || '.' WHERE id = i;
	ELSE
		DELETE FROM app.part WHERE id = i AND region = w.any(4) - 1;
	END IF;
EXCEPTION WHEN unique_violation THEN
	NULL;
END $$;

CREATE FUNCTION w.gone() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	r float := random();
	i int := nextval('w.ids');
BEGIN
	INSERT INTO app.gone VALUES (i, 'before');
	INSERT INTO app.gone_child VALUES (i, i);
	IF r < 0.1 THEN
		TRUNCATE app.gone, app.gone_child;
	ELSIF r < 0.13 THEN
		TRUNCATE app.gone CASCADE;
	ELSIF r < 0.2 THEN
		TRUNCATE app.gone_child;
		UPDATE app.gone SET v = 'alone' WHERE id = i;
	ELSIF r < 0.25 THEN
		BEGIN
			TRUNCATE app.gone, app.gone_child;
			RAISE EXCEPTION 'not at all';
		EXCEPTION WHEN raise_exception THEN
			NULL;
		END;
	END IF;
	i := nextval('w.ids');
	INSERT INTO app.gone SELECT i + g * 1000000, 'after' FROM generate_series(1, 3) g;
	INSERT INTO app.gone_child VALUES (i, i + 1000000);
END $$;

-- many rows in one transaction, a part of it rolled back
CREATE FUNCTION w.large() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	i int := w.any(BALLAST);
	r float := random();
BEGIN
	PERFORM pg_advisory_xact_lock(4);
	UPDATE app.ballast SET v = v + 1 WHERE id BETWEEN i AND i + 3000;
	BEGIN
		DELETE FROM app.ballast WHERE id BETWEEN i + 1000 AND i + 2000;
		IF r < 0.5 THEN RAISE EXCEPTION 'not these'; END IF;
	EXCEPTION WHEN raise_exception THEN
		NULL;
	END;
	INSERT INTO app.ballast SELECT g, 0, 'again' FROM generate_series(i + 900, i + 2000) g ON CONFLICT (id) DO UPDATE SET v = 0;
	IF r < 0.2 THEN
		UPDATE app.part SET v = 'all' WHERE region = 1;
	ELSIF r < 0.3 THEN
		UPDATE app.log SET what = what || '' WHERE n < 5;
	ELSIF r < 0.4 THEN
		UPDATE app.doc SET small = small + 1;
	END IF;
END $$;

CREATE FUNCTION w.ballast() RETURNS void LANGUAGE sql AS $$
	UPDATE app.ballast SET v = v + 1, pad = CASE WHEN random() < 0.1 THEN repeat('p', w.any(200)) ELSE pad END
	WHERE id IN (SELECT w.any(BALLAST) FROM generate_series(1, 3))
$$;
SQL

# What the watcher looks at in one statement; %s: the schemas <job> and <job>_m
my $target_sql = <<'SQL';
CREATE SCHEMA IF NOT EXISTS w;
CREATE TABLE IF NOT EXISTS w.stop (job text);
CREATE TABLE IF NOT EXISTS w.bad (job text, at timestamptz DEFAULT clock_timestamp(), what text);
-- a row for each state that was seen, since the server may be killed, and one at the end
CREATE TABLE IF NOT EXISTS w.seen (job text, polls bigint, states bigint, ended boolean DEFAULT false);

CREATE OR REPLACE PROCEDURE w.watch(job text, n int, total bigint) LANGUAGE plpgsql AS $$
DECLARE
	looks text := format('SELECT array_agg(a.op_order ORDER BY g), sum(a.balance) + (SELECT sum("select") FROM %1$I."My ""Pockets"),'
		' (SELECT sum(cents) FROM %2$I.wallet) - 100 * sum(a.balance),'
		' (SELECT sum(n) FROM %1$I.ord) - (SELECT count(*) FROM %1$I.line), (SELECT sum(n) FROM %1$I.ord) - (SELECT count(*) FROM %2$I.piece)'
		' FROM generate_series(1, %3$s) g LEFT JOIN %1$I.account a ON a.id = g', job, job || '_m', n);
	op bigint[];
	last bigint[] := array_fill(0::bigint, ARRAY[n]);
	was bigint[];
	s bigint; cents bigint; lines bigint; pieces bigint;
	polls bigint := 0;
	ready boolean := false;
	failures text[];
BEGIN
	WHILE NOT EXISTS (SELECT FROM w.stop x WHERE x.job = watch.job) LOOP
		IF NOT ready THEN
			SELECT p.applied_lsn >= s.consistent_lsn INTO ready
				FROM migrate.job j JOIN migrate.job_stream s USING (job_id) JOIN migrate.apply_position p USING (job_id)
				WHERE j.job = watch.job AND j.state IN ('catching_up', 'streaming');
			ready := coalesce(ready, false);
			COMMIT;
			PERFORM pg_sleep(0.005);
			CONTINUE;
		END IF;
		EXECUTE looks INTO op, s, cents, lines, pieces;
		polls := polls + 1;
		IF op IS DISTINCT FROM was THEN
			INSERT INTO w.seen VALUES (job, polls, 1);
			polls := 0;
			was := op;
			failures := '{}';
			IF s IS DISTINCT FROM total THEN failures := failures || format('total is %s', s); END IF;
			IF cents <> 0 THEN failures := failures || format('through the function it differs by %s', cents); END IF;
			FOR i IN 1 .. n LOOP
				IF op[i] < last[i] THEN
					failures := failures || format('account %s went back from %s to %s', i, last[i], op[i]);
				ELSIF op[i] IS NOT NULL THEN
					last[i] := op[i];
				END IF;
			END LOOP;
			IF lines <> 0 THEN failures := failures || format('lines differ from the orders by %s', lines); END IF;
			IF pieces <> 0 THEN failures := failures || format('pieces differ from the orders by %s', pieces); END IF;
			IF failures <> '{}' THEN
				INSERT INTO w.bad SELECT watch.job, clock_timestamp(), f FROM unnest(failures) f;
			END IF;
		END IF;
		COMMIT;
		-- a session that never waits does not see that its server was killed
		PERFORM pg_sleep(0.001);
	END LOOP;
	INSERT INTO w.seen VALUES (job, polls, 0, true);
END $$;
SQL

# weight, script; the last ones with savepoints and rollbacks of the client
my @scripts = (
	[ 100, 'SELECT w.transfer();' ],
	[ 40, 'SELECT w.pockets();' ],
	[ 30, 'SELECT w.close();' ],
	[ 50, 'SELECT w.item();' ],
	[ 50, 'SELECT w.doc();' ],
	[ 50, 'SELECT w.ord();' ],
	[ 30, 'SELECT w.seat();' ],
	[ 30, 'SELECT w.log();' ],
	[ 40, 'SELECT w.part();' ],
	[ 10, 'SELECT w.gone();' ],
	[ 30, 'SELECT w.ballast();' ],
	[ 1, 'SELECT w.large();' ],
	[ 15, "BEGIN;\nSELECT w.item();\nSAVEPOINT a;\nSELECT w.item();\nSELECT w.doc();\nSAVEPOINT b;\nSELECT w.part();\nROLLBACK TO a;\nSELECT w.log();\nRELEASE a;\nSELECT w.ballast();\nCOMMIT;" ],
	[ 10, "BEGIN;\nSELECT w.transfer();\nSELECT w.gone();\nSELECT w.log();\nROLLBACK;" ]);

sub new
{
	my ($class, %o) = @_;
	return bless {
		dir => File::Temp->newdir, clients => 3, rate => 250, rows => 30000,
		drained => 0, %o }, $class;
}

sub src { my ($self, $sql) = @_; return $self->{source}->safe_psql('postgres', $sql); }
sub tgt { my ($self, $sql) = @_; return $self->{target}->safe_psql('postgres', $sql); }

# The tables and the first rows of the source.
sub fill
{
	my ($self) = @_;
	my $rows = $self->{rows};
	my $ballast = $rows - 3000;
	my $sql = $source_sql;

	$sql =~ s/ACCOUNTS/$accounts/g;
	$sql =~ s/BALLAST/$ballast/g;
	$self->src($sql . qq{
		INSERT INTO app.account SELECT g, 1000, nextval('w.ops'), repeat('n', 50) FROM generate_series(1, $accounts) g;
		INSERT INTO app."My ""Pockets" SELECT w.pocket(g), 0, NULL FROM generate_series(1, $accounts / 2) g;
		INSERT INTO app.item SELECT g % 40 + 1, 'k' || (g / 40 + 1), g, 'first' FROM generate_series(0, 799) g;
		INSERT INTO app.doc SELECT 'doc ' || g, CASE WHEN g % 3 > 0 THEN w.big() END, g, now() FROM generate_series(1, 200) g;
		INSERT INTO app.ord SELECT g, g % 5, g, 'new' FROM generate_series(1, 250) g;
		INSERT INTO app.line SELECT id, g, 1 FROM app.ord, generate_series(1, n) g;
		INSERT INTO app.seat SELECT g, 101 - g FROM generate_series(1, 100) g;
		INSERT INTO app.log SELECT g % 20 + 1, CASE WHEN g % 7 > 0 THEN 'line' END FROM generate_series(1, 300) g;
		INSERT INTO app.part SELECT g, g % 4, 'v' FROM generate_series(1, 400) g;
		INSERT INTO app.gone SELECT g, 'first' FROM generate_series(1, 50) g;
		INSERT INTO app.gone_child SELECT g, g FROM generate_series(1, 50) g;
		INSERT INTO app.ballast SELECT g, 0, repeat('b', 100) FROM generate_series(1, $rows) g;
		VACUUM ANALYZE;});
	foreach my $i (0 .. $#scripts)
	{
		PostgreSQL::Test::Utils::append_to_file("$self->{dir}/$i.sql", "$scripts[$i][1]\n");
	}
	# roles that a server drops to must be able to read it
	chmod 0755, "$self->{dir}";
	$self->{total} = $accounts * 1000;
	return;
}

# A program that is begun again whenever it ends, until its group is killed or
# the test is over.
sub forever
{
	my ($self, $log, @command) = @_;
	my $parent = $$;
	my $pid = fork() // die "fork: $!";

	if ($pid == 0)
	{
		POSIX::setpgid(0, 0);
		open STDOUT, '>>', $log;
		open STDERR, '>&', \*STDOUT;
		open STDIN, '<', '/dev/null';
		while (1)
		{
			my $rc = system(@command);
			POSIX::_exit(0) if getppid() != $parent;
			sleep(0.1);
		}
	}
	return $pid;
}

sub start_writers
{
	my ($self, %o) = @_;
	my $log = "$PostgreSQL::Test::Utils::log_path/writers.log";
	my @files = map { ('-f', "$self->{dir}/$_.sql\@$scripts[$_][0]") } 0 .. $#scripts;

	die 'the writers run' if $self->{writers};
	$self->{writers} = $self->forever($log, 'pgbench', '-n', '-M', 'prepared', '-c', $self->{clients},
		'-T', 600, '--max-tries', 20, ($self->{rate} ? ('-R', $self->{rate}) : ()),
		'-h', $self->{source}->host, '-p', $self->{source}->port, @files, 'postgres');
	return;
}

sub stop_writers
{
	my ($self) = @_;
	my $pid = delete $self->{writers} or return;

	kill 'TERM', -$pid;
	waitpid($pid, 0);
	wait_for($self->{source}, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'})
	  or die 'writers do not end';
	return;
}

# How much the writers have done with accounts; to wait for some work, not for
# some time.
sub work
{
	my ($self) = @_;
	wait_for($self->{source}, 'SELECT true');
	return $self->src('SELECT last_value FROM w.ops');
}

sub wait_work
{
	my ($self, $n) = @_;
	my $goal = $self->work + $n;
	return wait_for($self->{source}, "SELECT last_value >= $goal FROM w.ops");
}

# A job with every form of a mapping.  options: text within the braces.
sub define
{
	my ($self, $job, %o) = @_;
	my $options = $o{options} ? ", $o{options}" : '';
	my $from = "from_$job";

	$self->tgt(qq{
		SELECT migrate_create_job('$job', server => 'legacy', options => '{"capture": "logical" $options}');
		SELECT migrate_import('$job', 'app', '$from');
		SELECT migrate_add_schema('$job', 'app', '$job');
		CREATE SCHEMA ${job}_m;
		CREATE TABLE ${job}_m.wallet (id int PRIMARY KEY, cents bigint NOT NULL, op_order bigint);
		CREATE TABLE ${job}_m.ord (id int PRIMARY KEY, cents bigint, status text);
		CREATE TABLE ${job}_m.ord_by_status (id int, price numeric, status text, PRIMARY KEY (id, status)) PARTITION BY LIST (status);
		CREATE TABLE ${job}_m.ord_new PARTITION OF ${job}_m.ord_by_status FOR VALUES IN ('new');
		CREATE TABLE ${job}_m.ord_other PARTITION OF ${job}_m.ord_by_status DEFAULT;
		CREATE TABLE ${job}_m.piece (ord_id int, no int, PRIMARY KEY (ord_id, no));
		CREATE TABLE ${job}_m.item (a int, b text, n int, what text, code text, PRIMARY KEY (a, b));
		CREATE TABLE ${job}_m.item_code (code text PRIMARY KEY, n int);
		CREATE TABLE ${job}_m.even_doc (name text PRIMARY KEY, big text, small int);
		CREATE TABLE ${job}_m.doc_size (name text PRIMARY KEY, size int, at timestamptz);
		CREATE TABLE ${job}_m.flat (id int, region int, v text, PRIMARY KEY (id, region));
		CREATE TABLE ${job}_m.log (n int, what text);
		CREATE FUNCTION ${job}_m.map_wallet(o $from.account) RETURNS SETOF ${job}_m.wallet LANGUAGE sql STABLE AS
			'SELECT o.id, o.balance * 100, o.op_order';
		CREATE FUNCTION ${job}_m.map_ord(o $from.ord) RETURNS SETOF ${job}_m.ord LANGUAGE plpgsql STABLE AS
			'BEGIN IF o.status <> \$\$sent\$\$ THEN RETURN QUERY SELECT o.id, (o.price * 100)::bigint, upper(o.status); END IF; END';
		CREATE FUNCTION ${job}_m.map_piece(o $from.ord) RETURNS SETOF ${job}_m.piece LANGUAGE sql STABLE AS
			'SELECT o.id, g FROM generate_series(1, o.n) g';
		SELECT migrate_add_table('$job', 'app.account', '${job}_m.wallet', mapping => '${job}_m.map_wallet');
		SELECT migrate_add_table('$job', 'app.ord', '${job}_m.ord', mapping => '${job}_m.map_ord');
		SELECT migrate_add_table('$job', 'app.ord', '${job}_m.ord_by_status', columns => '{}', key => '{"id": "id"}');
		SELECT migrate_add_table('$job', 'app.ord', '${job}_m.piece', mapping => '${job}_m.map_piece', key => '{"ord_id": "id"}');
		SELECT migrate_add_table('$job', 'app.item', '${job}_m.item', columns => '{"n": "n * 10", "code": "what || a"}');
		SELECT migrate_add_table('$job', 'app.item', '${job}_m.item_code', columns => '{"code": "a || b"}', key => '{"code": "a || b"}');
		SELECT migrate_add_table('$job', 'app.doc', '${job}_m.even_doc', columns => '{}', filter => 'small % 2 = 0');
		SELECT migrate_add_table('$job', 'app.doc', '${job}_m.doc_size', columns => '{"size": "length(big)"}');
		SELECT migrate_add_table('$job', 'app.part', '${job}_m.flat');
		SELECT migrate_add_table('$job', 'app.log', '${job}_m.log', filter => 'n > 3');
	});
	return;
}

# The same, by SQL on the source: name of the target, query there, query here.
sub pairs
{
	my ($self, $job) = @_;
	return (
		(map { [ $_, "SELECT * FROM app.$_", "SELECT * FROM $job.$_" ] }
			qw(account "My_""Pockets" item doc ord line seat log part gone gone_child ballast marker)),
		[ 'wallet, a function', 'SELECT id, balance * 100, op_order FROM app.account', "SELECT * FROM ${job}_m.wallet" ],
		[ 'ord, a function', q{SELECT id, (price * 100)::bigint, upper(status) FROM app.ord WHERE status <> 'sent'},
			"SELECT * FROM ${job}_m.ord" ],
		[ 'ord by status, a partition key', 'SELECT id, price, status FROM app.ord', "SELECT * FROM ${job}_m.ord_by_status" ],
		[ 'piece, a set for a row', 'SELECT id, g FROM app.ord, generate_series(1, n) g', "SELECT * FROM ${job}_m.piece" ],
		[ 'item, columns', 'SELECT a, b, n * 10, what, what || a FROM app.item', "SELECT * FROM ${job}_m.item" ],
		[ 'item by code, a computed key', 'SELECT a || b, n FROM app.item', "SELECT * FROM ${job}_m.item_code" ],
		[ 'doc, a filter', 'SELECT name, big, small FROM app.doc WHERE small % 2 = 0', "SELECT * FROM ${job}_m.even_doc" ],
		[ 'doc, what needs the large value', 'SELECT name, length(big), at FROM app.doc', "SELECT * FROM ${job}_m.doc_size" ],
		[ 'part, flat', 'SELECT * FROM app.part', "SELECT * FROM ${job}_m.flat" ],
		[ 'log, a filter', 'SELECT * FROM app.log WHERE n > 3', "SELECT * FROM ${job}_m.log" ]);
}

sub start_watch
{
	my ($self, $job) = @_;
	my $log = "$PostgreSQL::Test::Utils::log_path/watch.log";

	$self->tgt($target_sql);
	$self->{watch} = $self->forever($log, 'psql', '-XqAt', '-d', $self->{target}->connstr('postgres'),
		'-c', "CALL w.watch('$job', $accounts, $self->{total})");
	return;
}

# Ends the watcher; what it has seen is in w.seen and w.bad.
sub stop_watch
{
	my ($self, $job) = @_;
	my $pid = delete $self->{watch} or return;

	$self->tgt("INSERT INTO w.stop VALUES ('$job')");
	wait_for($self->{target}, "SELECT count(*) > 0 FROM w.seen WHERE job = '$job' AND ended")
	  or diag('the watcher has not come to its end');
	kill 'TERM', -$pid;
	waitpid($pid, 0);
	return;
}

# A commit of the source that is the last one of many, or of a pause.
sub mark
{
	my ($self, @jobs) = @_;
	my $mark = "$$ " . ++$self->{drained};

	# the server may be recovering
	wait_for($self->{source}, "INSERT INTO app.marker VALUES ('$mark') RETURNING true") or return 0;
	my $ok = 1;
	$ok &&= wait_for($self->{target}, "SELECT count(*) = 1 FROM $_.marker WHERE id = '$mark'", timeout => 60) for @jobs;
	return $ok;
}

# The writers stop, and everything that they did is applied.
sub drain
{
	my ($self, @jobs) = @_;

	# not before the watcher has had something to see
	wait_for($self->{target}, 'SELECT sum(states) > 10 FROM w.seen WHERE job IN (' . join(', ', map { "'$_'" } @jobs) . ')')
	  if $self->{watch};
	$self->stop_writers;
	ok($self->mark($_), "$_: all is applied") or diag($self->tgt(
			'SELECT job, state, wanted, pause_reason, last_error FROM migrate.job; SELECT * FROM migrate.stream;'
			. 'SELECT * FROM migrate.stream_position; SELECT * FROM migrate.job_stream; SELECT * FROM migrate.apply_position;'
			. 'SELECT at, level, kind, message FROM migrate.events ORDER BY event_id DESC LIMIT 10'))
	  for @jobs;
	return;
}

# Tests of everything, after drain().
sub check
{
	my ($self, $job, %o) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $bad = 0;

	foreach my $p ($self->pairs($job))
	{
		my ($name, $there, $here) = @$p;
		s/My_/My /g for $name, $there, $here;
		same_rows($self->{source}, $there, $self->{target}, $here, "$job: equal: $name") or $bad++;
	}
	is($self->tgt("SELECT stage, sqlstate, target, count(*), min(message) FROM migrate.dead_letters WHERE job = '$job' AND state = 'open' GROUP BY 1, 2, 3"),
		'', "$job: no dead letter is open");
	is($self->tgt("SELECT count(*) FROM migrate_validate('$job') WHERE matched IS NOT TRUE"), '0', "$job: validation agrees")
	  unless $bad || $o{no_validation};
	$self->check_watch($job) if $self->{watch};
	return !$bad;
}

sub check_watch
{
	my ($self, $job) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$self->stop_watch($job);
	my ($polls, $states) = split /\|/, $self->tgt("SELECT sum(polls), sum(states) FROM w.seen WHERE job = '$job'");
	note("watcher of $job: $polls looks, $states states");
	cmp_ok($states || 0, '>', 10, "$job: the watcher has seen the target change");
	is($self->tgt("SELECT count(*) || ': ' || string_agg(DISTINCT what, '; ') FROM (SELECT what FROM w.bad WHERE job = '$job' LIMIT 20) b HAVING count(*) > 0"),
		'', "$job: the total was constant, orders had their lines, and no row went back, at every commit that was seen");
	return;
}

# Nothing of the job is left, here or on the source.
sub drop
{
	my ($self, $job) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$self->tgt("CALL migrate_finish('$job')");
	$self->tgt("SELECT migrate_drop_job('$job'); DROP SCHEMA IF EXISTS from_$job CASCADE; DROP SCHEMA $job, ${job}_m CASCADE");
	return;
}

# Slots and publications that are left on the source.
sub check_clean
{
	my ($self) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is($self->src('SELECT count(*) FROM pg_replication_slots') . $self->src('SELECT count(*) FROM pg_publication'), '00',
		'neither slot nor publication is left on the source');
	is($self->tgt(q{SELECT count(*) FROM pg_class WHERE relnamespace = 'migrate'::regnamespace AND relname ~ '^spool_[0-9]'}), '0',
		'no segment of the spool is left here');
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@);

	foreach my $pid (grep { defined } delete @$self{qw(writers watch)})
	{
		kill 'KILL', -$pid;
		waitpid($pid, 0);
	}
	return;
}

1;
