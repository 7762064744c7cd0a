# Copyright (c) 2026, the migrate authors; PostgreSQL License

# No row disappears quietly: two source rows with one mapped key, whichever
# batch, half or chunk they come in; a key map that means another row than the
# mapping; keys that are not unique in the target; rows that cannot be read or
# kept; foreign keys that would follow a delete.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use Test::More;

my $source = new_source('source');
my $target = new_target('target');
connect_source($target, $source, server => 'legacy');

sub sql { return $target->safe_psql('postgres', $_[0]); }
sub src { return $source->safe_psql('postgres', $_[0]); }

my $any = '"max_dead_letters": 100000, "max_dead_ratio": 1';

# A job with one table, which it knows as from_<job>.<table>, through the copy.
# $add: the arguments of migrate_add_table from the target on.
sub copy
{
	my ($job, $table, $add, $options, $ddl) = @_;
	my $more = $options ? ", $options" : '';
	sql(qq{SELECT migrate_create_job('$job', server => 'legacy', options => '{$any$more}');
		SELECT migrate_import('$job', 'public', 'from_$job', include => '{$table}');
		} . ($ddl // '') . qq{;
		SELECT migrate_add_table('$job', 'from_$job.$table', $add);
		SELECT migrate_accept('$job', check_name, object, 'test') FROM migrate_preflight('$job') WHERE status = 'fail';
		SELECT migrate_start('$job')});
	wait_job($target, $job, 'copied');
	return;
}

# read | mapped | dead by the books
sub books
{
	my ($job) = @_;
	return sql(qq{SELECT sum(rows_read), sum(rows_mapped), sum(rows_dead)
		FROM migrate.chunk_mapping JOIN migrate.job USING (job_id) WHERE job = '$job'});
}

sub letters
{
	my ($job) = @_;
	return sql(qq{SELECT sqlstate, count(*) FROM migrate.dead_letters WHERE job = '$job' GROUP BY 1 ORDER BY 1});
}

src(q{CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL); INSERT INTO t SELECT g, g FROM generate_series(1, 1000) g});
sql('CREATE SCHEMA m');

# --- ids 2 and 3, 4 and 5 ... become one; id 500 cannot be mapped
foreach my $case ([ 'one_batch', '"batch_rows": 5000' ], [ 'batches', '"batch_rows": 7' ],
	[ 'chunks', '"batch_rows": 50, "chunk_blocks": 1, "chunking": "block"' ])
{
	my ($name, $options) = @$case;
	foreach my $many (0, 1)
	{
		my $table = $name . ($many ? '_set' : '');
		my $ddl;
		my $how = q{columns => '{"id": "id / 2", "v": "v + 0 / (v - 500)"}'};
		sql("CREATE TABLE m.$table (id int PRIMARY KEY, v int)");
		if ($many)
		{
			$ddl = qq{CREATE FUNCTION m.map_$table(o from_j_$table.t) RETURNS SETOF m.$table LANGUAGE sql STABLE AS
				'SELECT o.id / 2, o.v + 0 / (o.v - 500)'};
			$how = "mapping => 'm.map_$table'";
		}
		copy("j_$table", 't', qq{'m.$table', $how, key => '{"id": "id / 2"}'}, $options, $ddl);
		is(books("j_$table"), '1000|501|499', "$table: the books");
		is(sql("SELECT count(*) FROM m.$table"), '501', "$table: each key once");
		is(letters("j_$table"), "22012|1\n23505|498", "$table: a letter for every row that is not there");
		is(sql(qq{SELECT count(*) FROM m.$table x JOIN migrate.dead_letters d ON d.job = 'j_$table' AND (d.source_row->>'v')::int = x.v}),
			'0', "$table: no row is there of which there is a letter");
	}
}

# --- the key map says id where the mapping gives id / 2
sql('CREATE TABLE m.differ (id int PRIMARY KEY, v int)');
copy('differ', 't', q{'m.differ', columns => '{"id": "id / 2"}', key => '{"id": "id"}'});
is(books('differ'), '1000|0|1000', 'key map and mapping disagree: every row is dead');
like(sql(q{SELECT DISTINCT message || ' ' || hint FROM migrate.dead_letters WHERE job = 'differ'}), qr/key map.*disagree.*key/s,
	'key map and mapping disagree: the letter says so');
is(sql('SELECT count(*) FROM m.differ'), '0', 'key map and mapping disagree: nothing was written over');

# --- rows that were in the target before; replaced by key
sql('CREATE TABLE m.before (id int PRIMARY KEY, v int, mine text DEFAULT $$new$$); INSERT INTO m.before SELECT g, -g, $$old$$ FROM generate_series(500, 1500) g');
copy('before', 't', q{'m.before'}, '"batch_rows": 100');
is(books('before'), '1000|1000|0', 'rows were there: all is mapped');
is(sql('SELECT count(*), count(*) FILTER (WHERE v > 0), count(*) FILTER (WHERE mine = $$old$$) FROM m.before'), '1500|1000|1001',
	'rows were there: those of the source are replaced, columns that are not mapped and other rows are kept');

# --- a key that is not unique in the target, and finds two rows for one
sql('CREATE TABLE m.twice (id int, v int); CREATE INDEX ON m.twice (id); INSERT INTO m.twice VALUES (7, -7), (7, -7)');
src('CREATE TABLE two (id int PRIMARY KEY, v int); INSERT INTO two VALUES (7, 7), (8, 8)');
copy('twice', 'two', q{'m.twice'});
is(sql('SELECT count(*) FROM m.twice WHERE id = 8'), '1', 'a key that finds two rows: the other row is not lost');

# --- a value that source_row cannot hold as it is
src(q{CREATE TABLE doc (id int PRIMARY KEY, d json); INSERT INTO doc SELECT g, CASE WHEN g % 10 = 0 THEN '{"a": "\u0000"}' ELSE '{"a": 1}' END::json FROM generate_series(1, 100) g});
sql('CREATE TABLE m.doc (id int PRIMARY KEY, d jsonb)');
copy('doc', 'doc', q{'m.doc', columns => '{"d": "d::jsonb"}'});
is(letters('doc'), '22P05|10', 'a letter can be written for a row that is no jsonb');
is(sql(q{SELECT source_row->>'d' FROM migrate.dead_letters WHERE job = 'doc' ORDER BY id LIMIT 1}), '{"a": "\u0000"}', 'and it shows the value');

# --- a row that cannot be read, in a source that cannot be cut: never one letter for all of it
sql(q{CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw});
my $file = $target->basedir . '/rows.csv';
PostgreSQL::Test::Utils::append_to_file($file, join('', map { ($_ == 50 ? 'x' : $_) . ",v$_\n" } 1 .. 100));
sql(qq{CREATE SCHEMA f; CREATE FOREIGN TABLE f.rows (id int, v text) SERVER files OPTIONS (filename '$file', format 'csv');
	CREATE TABLE m.file (id int, v text);
	SELECT migrate_create_job('file', server => 'files', options => '{$any, "retry_time": "1s", "retry_max_delay": "200ms"}');
	SELECT migrate_add_table('file', 'f.rows', 'm.file');
	SELECT migrate_accept('file', check_name, object, 'test') FROM migrate_preflight('file') WHERE status = 'fail';
	SELECT migrate_start('file')});
ok(wait_for($target, q{SELECT state = 'failed' OR state = 'copied' FROM migrate.job WHERE job = 'file'}), 'unreadable file: comes to an end');
is(sql(q{SELECT state FROM migrate.job WHERE job = 'file'}), 'failed', 'unreadable file: the job failed');
like(sql(q{SELECT last_error FROM migrate.job WHERE job = 'file'}), qr/invalid input syntax for type integer: "x"/, 'unreadable file: with the error in view');
is(sql(q{SELECT count(*) FROM migrate.dead_letters WHERE job = 'file'}), '0', 'unreadable file: no letter that stands for a hundred rows');

# --- where the owner does not own the target, no delete may set off a foreign key's action
sql(q{CREATE ROLE mover LOGIN; SELECT migrate_grant('mover'); GRANT CREATE ON DATABASE postgres TO mover; GRANT USAGE ON SCHEMA m TO mover;
	CREATE TABLE m.parent (id int PRIMARY KEY, v int UNIQUE); CREATE TABLE m.child (id int REFERENCES m.parent ON DELETE CASCADE);
	INSERT INTO m.parent SELECT g, -g FROM generate_series(1, 10) g; INSERT INTO m.child SELECT g FROM generate_series(1, 10) g;
	GRANT SELECT, INSERT, UPDATE, DELETE ON m.parent TO mover});
connect_source($target, $source, server => 'moved', for => 'mover');
sql(qq{SET SESSION AUTHORIZATION mover; SELECT migrate_create_job('cascade', server => 'moved', options => '{$any}');
	SELECT migrate_add_table('cascade', 'public.t', 'm.parent');
	SELECT migrate_accept('cascade', check_name, object, 'test') FROM migrate_preflight('cascade') WHERE status = 'fail';
	SELECT migrate_start('cascade')});
wait_job($target, 'cascade', 'copied');
is(sql('SELECT count(*), (SELECT count(*) FROM m.child) FROM m.parent'), '1000|10', 'rows of another owner are updated, and no foreign key deletes what refers to them');

# --- a table without an index that is copied again: cleared, and not looked up row by row
copy('again', 't', q{'again.t'});
sql(q{SELECT migrate_recopy('again', 'again.t')});
ok(wait_for($target, q{SELECT state = 'copied' FROM migrate.job WHERE job = 'again'}), 'copied again');
same_rows($source, 'SELECT * FROM t', $target, 'SELECT * FROM again.t', 'copied again: equal');

is(sql('SELECT count(*) FROM migrate.chunk_mapping WHERE rows_read <> rows_mapped + rows_filtered + rows_dead'), '0', 'conservation everywhere');

done_testing();
