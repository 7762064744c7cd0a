# Copyright (c) 2026, the migrate authors; PostgreSQL License

# A whole schema moves: what pg_dump says of source and target afterwards, cut
# into statements, differs in nothing but what preflight has listed; and in
# nothing at all when the commands that preflight gives have been run.  The
# same for a renamed schema, for definitions alone, and for the other road:
# pg_dump's sections before and after, and only the rows by us.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;
use SchemaDump;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_source('source');
my $target = new_target('target');
my @roles = ('only_there');
my $me = $source->safe_psql('postgres', 'SELECT current_user');

sub src { return $source->safe_psql('postgres', $_[0]); }

# one that dies does not hide the others
sub section
{
	my ($name, $code) = @_;
	eval { $code->(); 1 } or fail("$name: " . substr($@, 0, 2000));
	return;
}

# The source, and what a DBA has to bring here first.
my $extensions = 'CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION btree_gist SCHEMA ext;';
src("CREATE ROLE reader; CREATE ROLE writer; CREATE ROLE only_there; $extensions");
$source->psql('postgres', undef, on_error_die => 1, extra_params => [ '-f', "$FindBin::RealBin/../perl/rich_schema.sql" ]);
$target->safe_psql('postgres', 'CREATE ROLE reader; CREATE ROLE writer');

sub new_database
{
	my ($db) = @_;
	$target->safe_psql('postgres', "CREATE DATABASE $db");
	$target->safe_psql($db, "CREATE EXTENSION migrate CASCADE; $extensions");
	connect_source($target, $source, db => $db);
	return sub { return $target->safe_psql($db, $_[0]); };
}

my $dump_source = 'pg_dump --no-owner -d ' . "'" . $source->connstr('postgres') . "'";
sub shell
{
	my ($command) = @_;
	my $file = $target->basedir . '/command.sh';
	unlink $file;
	append_to_file($file, $command);
	my $output = qx{bash $file 2>&1};
	return $? == 0 && $output !~ /ERROR/ ? '' : "$command\n$output";
}

# What preflight lists, and how it would be moved.
sub not_moved
{
	my ($sql, $job) = @_;
	my @rows = map { [ split /\x1f/ ] } split /\x1e/, $sql->(qq{SELECT string_agg(object || E'\\x1f' || coalesce(detail, '') || E'\\x1f' || coalesce(hint, ''), E'\\x1e')
		FROM migrate_preflight('$job') WHERE check_name = 'not_moved' AND status <> 'ok'});
	return @rows;
}

# The job runs to its end, and every step of it succeeds.
sub run_job
{
	my ($sql, $db, $job) = @_;
	is($sql->("SELECT check_name, object, detail FROM migrate_preflight('$job') WHERE status = 'fail'"), '', "$job: preflight finds nothing in the way");
	$sql->("SELECT migrate_start('$job')");
	wait_job($target, $job, 'copied', db => $db);
	is($sql->("SELECT s.kind, s.object, s.state, s.sqlstate, s.error, s.ddl FROM migrate.post_step s JOIN migrate.job j USING (job_id) WHERE j.job = '$job' AND s.state NOT IN ('done', 'skipped') ORDER BY s.step_id"), '', "$job: every step is done");
	is($sql->("SELECT count(*) FROM migrate.dead_letters WHERE job = '$job'"), '0', "$job: no dead letter");
	return;
}

# Rows of every table, parents of others without their children.
my @tables = split /\n/, src(q{SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'app'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1});
sub rows_are_equal
{
	my ($db, $schema, $name, %renamed) = @_;
	my @differ = grep {
		my $only = src("SELECT relkind = 'r' FROM pg_class WHERE oid = 'app.\"$_\"'::regclass") eq 't' ? 'ONLY' : '';
		my $here = $renamed{$_} // $_;
		# pg_dump changes the order of columns of a table that was made to inherit
		my $columns = $_ eq 'late' ? 'legs, name, id, born' : '*';
		!rows_equal($source, "SELECT $columns FROM $only app.\"$_\"", $target, "SELECT $columns FROM $only $schema.\"$here\"", db2 => $db);
	} @tables;
	is("@differ", '', "$name: all rows are there");
	# each partition has its own
	is($target->safe_psql($db, "SELECT tableoid::regclass::name::text, count(*) FROM $schema.orders GROUP BY 1 ORDER BY 1") =~ s/^"?$schema"?\.//gmr,
		src('SELECT tableoid::regclass::name::text, count(*) FROM app.orders GROUP BY 1 ORDER BY 1') =~ s/^app\.//gmr, "$name: in the same partitions");
	return;
}

sub sequences_are_equal
{
	my ($db, $schema, $name) = @_;
	my $query = q{SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = '%s' ORDER BY 1};
	is($target->safe_psql($db, sprintf $query, $schema), src(sprintf $query, 'app'), "$name: sequences have their values");
	return;
}

# The difference, but for what may differ; shown statement by statement.
sub catalogs_differ_in
{
	my ($name, $db, $objects, %o) = @_;
	my $drop = $o{drop} // sub { 0 };
	my @there = grep { !$drop->($_) } schema_dump($source, 'postgres');
	my @here = grep { !$drop->($_) } schema_dump($target, $db, %o);
	my ($missing, $extra) = dump_difference(\@there, \@here);
	my @left = grep { !listed($_, $objects, \@roles) } @$missing;
	my %about = map { $_->{object} => 1 } @$missing;

	cmp_ok(scalar @there, '>', 200, "$name: statements were compared");
	is(join("\n", map { "[$_->{type}] $_->{text}" } @left), '', "$name: nothing is missing but what was listed");
	is(join("\n", map { "[$_->{type}] $_->{text}" } @$extra), '', "$name: nothing is there that was not");
	is(join("\n", grep { !$about{$_} } @$objects), '', "$name: what was listed is missing") unless $o{moved};
	return;
}

# ------------------------------------------------------------------ as it is
section 'same' => sub {
	my $sql = new_database('same');

	# a generated column calls it: the table cannot be made before
	$sql->('CREATE SCHEMA app');
	is(shell("$dump_source -Fc -n app | pg_restore -d '" . $target->connstr('same') . "' -n app -P 'normal(text)'"), '', 'same: a function is brought first');
	$sql->(q{SELECT migrate_create_job('same', server => 'legacy', options => '{"workers": 4, "chunk_blocks": 2}')});
	is($sql->(q{SELECT migrate_add_schema('same', 'app')}), scalar @tables, 'same: every table is added');
	my @rows = not_moved($sql, 'same');
	# functions that constraints call
	foreach my $row (grep { $_->[1] =~ /before the start/ && $_->[0] !~ /normal/ } @rows)
	{
		is(shell($row->[2]), '', "same: the command moves $row->[0]");
	}
	my @objects = map { $_->[0] } not_moved($sql, 'same');
	cmp_ok(scalar @objects, '>=', 12, 'same: preflight lists what is not moved');
	like($sql->(q{SELECT string_agg(object, ',') FROM migrate_preflight('same') WHERE check_name = 'grants'}), qr/role only_there/, 'same: and the role that is missing');
	run_job($sql, 'same', 'same');
	rows_are_equal('same', 'app', 'same');
	sequences_are_equal('same', 'app', 'same');
	is($sql->(q{SELECT target, status FROM migrate_validate('same') WHERE matched IS NOT TRUE}), '', 'same: validated');
	catalogs_differ_in('same', 'same', \@objects, without => ['legacy']);
	# one of a partitioned table is, until all partitions have theirs
	my $invalid = q{SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid OR NOT indisready ORDER BY 1};
	is($sql->($invalid), src($invalid), 'same: no index is left invalid');
	is($sql->(q{SELECT count(*) FROM pg_class c WHERE c.relnamespace = 'app'::regnamespace AND c.relkind = 'r' AND c.reltuples < 0 AND NOT c.relname LIKE 'no%'}), '0', 'same: tables were analyzed');

	# with the commands that preflight gives nothing differs any more
	foreach my $row (not_moved($sql, 'same'))
	{
		is(shell($row->[2]), '', "same: the command moves $row->[0]");
	}
	catalogs_differ_in('same, with what preflight listed', 'same', [], without => ['legacy'], moved => 1);
	is(join(',', map { $_->[0] } not_moved($sql, 'same')), '', 'same: then nothing is listed');
};

# --------------------------------------------------------------- other names
section 'renamed' => sub {
	my $sql = new_database('renamed');

	$sql->('CREATE SCHEMA app');
	is(shell("$dump_source -Fc -n app | pg_restore -d '" . $target->connstr('renamed') . "' -n app -P 'normal(text)'"), '', 'renamed: a function is brought first');
	$sql->(q{SELECT migrate_create_job('renamed', server => 'legacy', options => '{"chunking": "key"}');
		SELECT migrate_add_schema('renamed', 'app', 'moved_app', rename => '{"no_key": "renamed_no_key", "customer": "renamed_customer"}')});
	# needs types that are here only now
	is(shell("$dump_source -Fc -n app | pg_restore -d '" . $target->connstr('renamed') . "' -n app -P 'is_fine(app.positive, app.mood)'"), '', 'renamed: and one more');
	my @objects = map { $_->[0] } not_moved($sql, 'renamed');
	run_job($sql, 'renamed', 'renamed');
	rows_are_equal('renamed', 'moved_app', 'renamed', no_key => 'renamed_no_key', customer => 'renamed_customer');
	sequences_are_equal('renamed', 'moved_app', 'renamed');
	catalogs_differ_in('renamed', 'renamed', \@objects, without => ['legacy'],
		schemas => { moved_app => 'app' }, words => { renamed_no_key => 'no_key', renamed_customer => 'customer' },
		# types stay in the schema that they are in there
		drop => sub { return $_[0]->{type} eq 'SCHEMA' || $_[0]->{name} =~ /^SCHEMA / });
};

# ------------------------------------------------------- definitions, no rows
section 'definitions' => sub {
	my $sql = new_database('definitions');

	$sql->('CREATE SCHEMA app');
	is(shell("$dump_source -Fc -n app | pg_restore -d '" . $target->connstr('definitions') . "' -n app -P 'normal(text)'"), '', 'definitions: a function is brought first');
	$sql->(q{SELECT migrate_create_job('definitions', server => 'legacy', options => '{"content": "definitions"}');
		SELECT migrate_add_schema('definitions', 'app')});
	is(shell("$dump_source -Fc -n app | pg_restore -d '" . $target->connstr('definitions') . "' -n app -P 'is_fine(app.positive, app.mood)'"), '', 'definitions: and one more');
	my @objects = map { $_->[0] } not_moved($sql, 'definitions');
	run_job($sql, 'definitions', 'definitions');
	catalogs_differ_in('definitions', 'definitions', \@objects, without => ['legacy']);
	is($sql->('SELECT ' . join(' + ', map { "(SELECT count(*) FROM app.\"$_\")" } @tables)), '0', 'definitions: no row was copied');
};

# -------------------------------------- the other road: pg_dump before and after
section 'sections' => sub {
	my $sql = new_database('sections');
	my $psql = "psql -Xq -d '" . $target->connstr('sections') . "'";
	my $errors = qx{$dump_source --section=pre-data | $psql 2>&1};

	unlike($errors =~ s/^.*(?:role "only_there" does not exist|(?:schema "(?:ext|public)"|extension ".*") already exists).*\n//gmr, qr/ERROR/, 'sections: what comes before the data is restored');
	$sql->(q{SELECT migrate_create_job('sections', server => 'legacy', options => '{"content": "data", "indexes": "none"}');
		SELECT migrate_add_schema('sections', 'app')});
	run_job($sql, 'sections', 'sections');
	is($sql->(q{SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'app'::regnamespace AND c.relkind <> 'm'}), '0', 'sections: we have built no index');
	rows_are_equal('sections', 'app', 'sections');
	sequences_are_equal('sections', 'app', 'sections');
	$errors = qx{$dump_source --section=post-data | $psql 2>&1};
	unlike($errors, qr/ERROR/, 'sections: what comes after the data is restored') or diag($errors);
	catalogs_differ_in('sections', 'sections', [], without => ['legacy'], moved => 1,
		drop => sub { return $_[0]->{text} =~ /^CREATE TABLE app\.late / });
	is($sql->(q{SELECT target, status FROM migrate_validate('sections') WHERE matched IS NOT TRUE}), '', 'sections: validated');
};

done_testing();
