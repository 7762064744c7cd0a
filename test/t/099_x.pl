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

job('j', '');
sql(q{SELECT migrate_add_schema('j', 'public', target_schema => 'j'); SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
src(q{UPDATE b SET w = 'a change' WHERE id = 2});
caught_up('j', 'caught up');
# --------------------------------------------------- cancel, start again
sql(q{SELECT migrate_cancel('j'); SELECT migrate_wait('j', 'cancelled', '30s')});
src(q{UPDATE b SET w = 'while cancelled' WHERE id = 2});
like(fails(q{SELECT migrate_resync('j')}), qr/ERROR:  55000: job "j" is cancelled\nHINT:  Use migrate_start, then migrate_resync\./, 'resync of a cancelled job');
sql(q{SELECT migrate_start('j')});
wait_job($target, 'j', 'streaming');
caught_up('j', 'started again after a cancel');
equal('j', 'cancel');


done_testing();
