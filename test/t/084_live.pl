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

src(q{
	CREATE TABLE a (id int PRIMARY KEY, code text UNIQUE, v int);
	CREATE INDEX a_v ON a (v);
	INSERT INTO a SELECT g, 'c' || g, g % 10 FROM generate_series(1, 20000) g;
	CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a, w text);
	INSERT INTO b SELECT g, g, md5(g::text) FROM generate_series(1, 20000) g;
	VACUUM ANALYZE});

sub job
{
	my ($name, $options) = @_;
	sql(qq{SELECT migrate_create_job('$name', server => 'legacy', options => '{"capture": "logical", "chunk_blocks": 16, "batch_rows": 200, "retry_max_delay": "300ms" $options}');
		SELECT migrate_add_schema('$name', 'public', target_schema => '$name')});
	return;
}

job('j', '');
sql(q{SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
same_rows($source, "SELECT * FROM $_", $target, "SELECT * FROM j.$_", "j.$_: equal") for qw(a b);
is(sql(q{SELECT string_agg(detail->>'to', ' ' ORDER BY event_id) FROM migrate.event JOIN migrate.job USING (job_id) WHERE job = 'j' AND kind = 'state'}),
	'preparing copying indexing catching_up streaming', 'every change of state is an event');
diag(sql('SELECT * FROM migrate.lag')); diag(sql('SELECT * FROM migrate.slo')); diag(sql('SELECT * FROM migrate.workers'));

done_testing();
