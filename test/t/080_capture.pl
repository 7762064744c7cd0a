# Copyright (c) 2026, the migrate authors; PostgreSQL License

# The source's change stream into the spool: complete, in order, once; whatever
# is killed.  What is in the spool is compared, message by message, with what a
# second slot on the same publication gives.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $source = new_source('source', logical => 1, conf => "autovacuum = off\nmax_prepared_transactions = 5\n");
my $target = new_target('target', preload => 1);
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

my $settings = q{SET timezone = 'GMT'; SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3;
	SET bytea_output = hex; SET xmloption = content; SET lc_monetary = 'C'; SET client_min_messages = error;};

# The stream of a server: id
sub stream
{
	return sql("SELECT s.stream_id FROM migrate.stream s JOIN pg_foreign_server f ON f.oid = s.server WHERE f.srvname = '$_[0]'");
}

# Everything that is on the source now is in the spool.
sub caught_up
{
	my ($node, $stream, $name) = @_;
	my $lsn = $node->safe_psql('postgres', 'SELECT txid_current(); SELECT pg_current_wal_insert_lsn()') =~ s/.*\n//sr;
	$node->safe_psql('postgres', 'SELECT txid_current()');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for($target, "SELECT spooled_lsn >= '$lsn' FROM migrate.stream_position WHERE stream_id = $stream"), $name);
}

# Messages but for descriptions of tables and types, which every new connection
# gets again; both sides as one digest a line, and the digest of all.
sub same_messages
{
	my ($node, $stream, $slot, $publication, $name) = @_;
	my $there = $node->safe_psql('postgres', qq{$settings
		SELECT md5(data) FROM pg_logical_slot_peek_binary_changes('$slot', NULL, NULL, 'proto_version', '1', 'publication_names', '"$publication"')
		WHERE get_byte(data, 0) NOT IN (ascii('R'), ascii('Y'))});
	my $here = sql("SELECT md5(message) FROM migrate._spool_messages($stream, 1) WHERE kind NOT IN ('R', 'Y')");
	my $n = () = $here =~ /\n/g;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($there eq $here && $n > 0, "$name: the same messages in the same order ($n)")
	  || diag('there ' . (() = $there =~ /\n/g) . ", here $n");
}

src(q{CREATE TABLE acc (id int PRIMARY KEY, v int, pad text);
	INSERT INTO acc SELECT g, 0, repeat('x', 100) FROM generate_series(1, 1000) g;
	CREATE TABLE part (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (1000);
	CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (1000) TO (100000);
	CREATE TABLE bare (a int, b float8, c timestamptz, d bytea, e interval, f money);
	ALTER TABLE bare REPLICA IDENTITY FULL});
sql(q{SELECT migrate_create_job('j', server => 'legacy', options => '{"capture": "logical"}');
	SELECT migrate_add_table('j', 'public.acc', 'here.acc');
	SELECT migrate_add_table('j', 'public.part', 'here.part');
	SELECT migrate_add_table('j', 'public.bare', 'here.bare');
	SELECT migrate_start('j')});
ok(wait_for($target, q{SELECT joined FROM migrate.job_stream}), 'the job has joined its stream');
my $stream = stream('legacy');
my ($publication, $slot) = split /\|/, sql("SELECT publication, slot FROM migrate.stream WHERE stream_id = $stream");
is(src(q{SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables}), 'acc,bare,part_1,part_2',
	'the publication has the tables of the job, partitions as leaves');
is(src("SELECT plugin || ' ' || slot_type || ' ' || temporary FROM pg_replication_slots WHERE slot_name = '$slot'"),
	'pgoutput logical false', 'the slot is there');
is(sql(q{SELECT string_agg(kind, ',' ORDER BY object_id) FROM migrate.made_object WHERE side = 'source'}),
	'publication,replication slot', 'both are recorded');
src("SELECT pg_create_logical_replication_slot('other', 'pgoutput')");

# --- what there is of messages
src(q{BEGIN; INSERT INTO acc VALUES (2001, 1, 'new'); SAVEPOINT a; UPDATE acc SET v = 5 WHERE id < 10; ROLLBACK TO a;
		DELETE FROM acc WHERE id = 5; UPDATE acc SET id = 3000 WHERE id = 6; COMMIT;
	INSERT INTO part SELECT g, 'p' FROM generate_series(900, 1100) g;
	UPDATE part SET id = id + 1000 WHERE id = 950;
	INSERT INTO bare VALUES (1, 0.1, '2024-02-29 12:00:00+02', '\x00ff', '1 mon -1 day', '12.34'), (2, 'NaN', 'infinity', NULL, NULL, NULL);
	UPDATE bare SET b = b * 3; DELETE FROM bare WHERE a = 2;
	UPDATE acc SET pad = repeat(md5(random()::text), 2000) WHERE id = 7;
	ALTER TABLE acc ALTER pad SET STORAGE EXTERNAL;
	UPDATE acc SET pad = repeat(md5(random()::text), 2000) WHERE id = 7;
	UPDATE acc SET v = 9 WHERE id = 7;
	ALTER TABLE acc ADD COLUMN late int DEFAULT 3;
	INSERT INTO acc VALUES (4000, 1, 'x', 4);
	TRUNCATE bare RESTART IDENTITY CASCADE});
caught_up($source, $stream, 'everything arrives');
same_messages($source, $stream, 'other', $publication, 'all kinds');
is(sql("SELECT count(DISTINCT remote_oid) >= 4 FROM migrate.stream_relation WHERE stream_id = $stream"), 't', 'descriptions of tables are kept apart');

done_testing();
