# Copyright (c) 2026, the migrate authors; PostgreSQL License

=pod

=head1 NAME

SchemaDump - two databases' definitions, compared statement by statement

=head1 SYNOPSIS

  use SchemaDump;

  my @there = schema_dump($source, 'postgres');
  my @here = schema_dump($target, 'postgres', schemas => { moved => 'app' }, without => ['legacy']);
  my ($missing, $extra) = dump_difference(\@there, \@here);
  # of the missing, what preflight has listed
  my @left = grep { !listed($_, \@objects, \@roles) } @$missing;

=head1 DESCRIPTION

What C<pg_dump --schema-only --no-owner> writes is cut into its entries (one an
object, by the comments that pg_dump heads them with) and these into statements.
The order of entries follows from dependencies and names and means nothing, so
statements are compared as a bag; within a statement nothing is changed, since
the order of columns does mean something.  Left out:

  SET, SELECT pg_catalog.set_config, \restrict     of pg_dump itself
  extensions, foreign servers, user mappings       the DBA's, or the job's own
  schemas that "without" names                     the job's foreign tables

=over

=item schema_dump($node, $db, %options)

The statements, each a hash reference:

  type, schema, name    of the entry, as pg_dump has it: 'FK CONSTRAINT', 'app',
                        'orders orders_customer_fkey'
  object                what preflight would call it, if it lists such objects:
                        'trigger touch on app.item'; else ''
  text                  the statement, its white space at the ends cut off

Options:

  schemas   names of schemas there and what they are to be called (a renamed
            target); names must be unlike any other word
  words     the same for other names (a renamed table)
  without   schemas to leave out
  pg_dump   the program, else the target installation's
  args      more arguments for it

=item dump_difference(\@a, \@b)

Two array references: statements of the first that the second lacks, and the
other way round.

=item listed($statement, \@objects, \@roles)

Is the statement about an object that preflight has listed (in the form of its
column "object"), or a grant to one of the roles?

=back

=cut

package SchemaDump;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(schema_dump dump_difference listed);

# Entries of pg_dump that are preflight's objects, and how it calls them.
my %kinds = (
	'VIEW' => 'view', 'MATERIALIZED VIEW' => 'materialized view', 'FOREIGN TABLE' => 'foreign table',
	'FUNCTION' => 'function', 'PROCEDURE' => 'procedure', 'AGGREGATE' => 'aggregate',
	'TRIGGER' => 'trigger', 'RULE' => 'rule', 'POLICY' => 'policy', 'ROW SECURITY' => 'row security',
	'EVENT TRIGGER' => 'event trigger', 'PUBLICATION' => 'publication', 'PUBLICATION TABLE' => 'publication', 'SUBSCRIPTION' => 'subscription',
	'OPERATOR' => 'operator', 'OPERATOR CLASS' => 'operator class', 'OPERATOR FAMILY' => 'operator family', 'CAST' => 'cast',
	'TEXT SEARCH CONFIGURATION' => 'text search configuration', 'TEXT SEARCH DICTIONARY' => 'text search dictionary');

sub ident
{
	my ($name) = @_;
	return $name if $name =~ /^[a-z_][a-z0-9_\$]*$/;
	$name =~ s/"/""/g;
	return "\"$name\"";
}

# Names in an entry's head are not quoted, those of preflight are.
sub object_name
{
	my ($type, $schema, $name) = @_;
	my $kind = $kinds{$type} or return '';
	if ($type =~ /^(?:TRIGGER|RULE|POLICY)$/)
	{
		my ($table, $it) = $name =~ /^(\S+|".*?") (.*)$/;
		return "$kind " . ident($it) . ' on ' . ident($schema) . '.' . ident($table);
	}
	return "$kind of " . ident($schema) . '.' . ident($name) if $type eq 'ROW SECURITY';
	return "$kind " . ident((split / /, $name)[0]) if $type eq 'PUBLICATION TABLE';
	return "$kind " . ident($name) if $schema eq '-';
	return "$kind " . ident($schema) . '.' . ident($1) . $2 if $name =~ /^(.*?)(\(.*\))$/;
	return "$kind " . ident($schema) . '.' . ident($name);
}

# A comment's or a grant's entry is called after what it is about.
sub about_object
{
	my ($type, $schema, $name) = @_;

	return object_name($type, $schema, $name) unless $type =~ /^(?:COMMENT|ACL|INDEX|SEQUENCE SET)$/;
	if ($name =~ /^(TRIGGER|RULE|POLICY) (.*) ON (.*)$/s)
	{
		return "\L$1\E " . ident($2) . ' on ' . ident($schema) . '.' . ident($3);
	}
	foreach my $kind (sort { length $b <=> length $a } keys %kinds)
	{
		return object_name($kind, $schema, $1) if $name =~ /^\Q$kind\E (.*)$/s;
	}
	return '';
}

# Cut at semicolons that end a line, outside of quotes and dollar quotes.
sub statements
{
	my ($text) = @_;
	my @list;

	while ($text =~ /\G\s*((?:'(?:[^']|'')*'|"(?:[^"]|"")*"|(\$\w*\$).*?\2|--[^\n]*\n|[^;'"\$-]|[\$-])+;)/gcs)
	{
		push @list, $1;
	}
	return @list;
}

sub schema_dump
{
	my ($node, $db, %o) = @_;
	my $program = $o{pg_dump} || 'pg_dump';
	my $args = $o{args} || '';
	my $connstr = $node->connstr($db);
	my $dump = qx{PGCLIENTENCODING=UTF8 $program --schema-only --no-owner $args -d '$connstr'};
	my %without = map { $_ => 1 } @{ $o{without} || [] };
	my %renamed = (%{ $o{schemas} || {} }, %{ $o{words} || {} });
	my @result;

	die 'pg_dump failed' if $? != 0;
	foreach my $there (keys %renamed)
	{
		$dump =~ s/\b\Q$there\E\b/$renamed{$there}/g;
	}
	my ($before, @entries) = split /^--\n-- (?=Name: )/m, $dump;
	foreach my $entry (@entries)
	{
		my ($name, $type, $schema, $text) = $entry =~ /^Name: (.*?); Type: ([A-Z ]+); Schema: (.*?); Owner: .*?\n--\n(.*)$/s
		  or die "an entry without a head: $entry";
		$text =~ s/^--\n-- PostgreSQL database dump complete\n--\n.*//ms;
		next if $type =~ /^(?:EXTENSION|SERVER|USER MAPPING|FOREIGN DATA WRAPPER)$/;
		next if $name =~ /^(?:EXTENSION|SERVER|FOREIGN SERVER|FOREIGN DATA WRAPPER) / && $type =~ /^(?:COMMENT|ACL)$/;
		next if $without{$schema} || ($type eq 'SCHEMA' && $without{$name}) || ($name =~ /^SCHEMA (.*)/ && $without{$1});
		foreach my $statement (statements($text))
		{
			next if $statement =~ /^(?:SET|SELECT pg_catalog\.set_config)\b/ || $statement =~ /^\\(?:un)?restrict/;
			$statement =~ s/^\s*--[^\n]*\n//g;

			# of 18: a key makes an inherited NOT NULL the child's own, also
			# when pg_dump's own statements are run
			$statement =~ s/\n    CONSTRAINT \S+ NOT NULL [^\n]*?,?(?=\n)//g if $statement =~ /\nINHERITS \(/;
			push @result, { type => $type, schema => $schema, name => $name, object => about_object($type, $schema, $name), text => $statement };
		}
	}
	return @result;
}

sub dump_difference
{
	my ($a, $b) = @_;
	my %count;
	my (@only_a, @only_b);

	$count{ $_->{text} }-- foreach @$b;
	foreach my $statement (@$a)
	{
		push @only_a, $statement if ++$count{ $statement->{text} } > 0;
	}
	# those that are left over on the other side
	my %surplus = map { $_ => -$count{$_} } grep { $count{$_} < 0 } keys %count;
	foreach my $statement (@$b)
	{
		push @only_b, $statement if ($surplus{ $statement->{text} } // 0) > 0 && $surplus{ $statement->{text} }-- > 0;
	}
	return (\@only_a, \@only_b);
}

sub listed
{
	my ($statement, $objects, $roles) = @_;

	return 1 if $statement->{object} ne '' && grep { $_ eq $statement->{object} } @$objects;
	# to pg_dump a grant on a view is one on a table
	if ($statement->{type} eq 'ACL' && $statement->{name} =~ /^TABLE (.*)$/)
	{
		my $name = ident($statement->{schema}) . '.' . ident($1);
		return 1 if grep { /^(?:view|materialized view|foreign table) \Q$name\E$/ } @$objects;
	}
	foreach my $role (@{ $roles || [] })
	{
		my $quoted = quotemeta(ident($role));
		return 1 if $statement->{type} eq 'ACL' && $statement->{text} =~ /\b(?:TO|FROM) $quoted(?: WITH GRANT OPTION)?;$/;
	}
	# an index of a materialized view goes with it
	foreach my $object (@$objects)
	{
		next unless $object =~ /^materialized view (.*)$/;
		return 1 if $statement->{type} eq 'INDEX' && $statement->{text} =~ / ON \Q$1\E /;
	}
	return 0;
}

1;
