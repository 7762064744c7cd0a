
# Copyright (c) 2026, the migrate authors; PostgreSQL License

=pod

=head1 NAME

MigrateTest - two servers and what tests of a migration do with them

=head1 SYNOPSIS

  use strict;
  use warnings;
  use MigrateTest;
  use Test::More;

  my $source = new_source('source');
  my $target = new_target('target', preload => 1);
  $source->safe_psql('postgres', 'CREATE TABLE t (...)');

  connect_source($target, $source, server => 'legacy');
  $target->safe_psql('postgres', q{
      SELECT migrate_create_job('j', server => 'legacy');
      SELECT migrate_add_schema('j', 'public');
      SELECT migrate_start('j');
  });
  random_kill($target, $source, 'loader', 'source', 'connection') for 1 .. 10;
  wait_job($target, 'j', 'copied');

  same_rows($source, 'SELECT * FROM t', $target, 'SELECT * FROM t', 'equal');
  done_testing();

=head1 DESCRIPTION

Nodes are PostgreSQL::Test::Cluster objects, so everything that they can do is
there (safe_psql, psql, background_psql, append_conf, restart, ...).  All
servers listen on a private socket only, and are stopped at the end of the test
by Cluster itself.  Data is not synced to disk unless C<durable> is given: a
killed process loses nothing by that, only a killed machine would.

Works with the test modules of PostgreSQL 15 to 18.  Run tests by
C<make check TESTS=t/001_harness>.

=head2 Nodes

=over

=item new_target($name, %options), new_source($name, %options)

A running node.  A target has the extension in database C<postgres>, unless
C<extension =E<gt> 0>.  Options:

  preload    target: migrate in shared_preload_libraries (default 0)
  conf       text appended to postgresql.conf (it wins over our settings)
  initdb     more arguments for initdb, an array reference
  encoding   of the databases (default UTF8)
  locale     (default C)
  icu        an ICU locale, e.g. 'en', as default collation
  durable    fsync and full page writes as in production
  start      0 leaves the node initialised but down
  install    another PostgreSQL's directory (with bin/ in it)
  logical    wal_level = logical: jobs follow it live (default 0)

=item connect_source($target, $source, %options)

Creates the foreign server and the user mapping through the socket.

  server     name (default 'legacy')
  dbname     on the source (default 'postgres')
  user       on the source (default: its superuser)
  for        role here that the mapping is for (default CURRENT_USER); other
             roles get USAGE on the server and password_required 'false'
  db         database of the target (default 'postgres')
  options    more server options, a hash reference

=item hard_restart($node), hard_kill($node), start_again($node)

C<kill -9> of the postmaster and a start, or one of both halves.  Waits for
what is left of the old server.

=back

=head2 Waiting

=over

=item wait_for($node, $sql, %options), wait_for(sub {...}, %options)

Until the query gives C<t>, or the function something true; errors of the
query, a server that is down included, count as "not yet".  Returns false, with
a diagnostic, after C<timeout> seconds (default 180).  C<db> is the database.

=item wait_job($node, $job, $state, %options)

Waits for a job's state as a test with a name; fails at once, showing the error
and the last events, when the job is C<failed> (unless that is the state).

=item job_state($node, $job, $db)

=back

=head2 Breaking things

=over

=item kill9_backend($node, $role)

C<kill -9> of one process, chosen at random from those whose backend_type or
application_name contains the role: 'loader', 'job worker', 'launcher', 'client
backend', 'checkpointer'.  The server restarts its processes after that, as
with restart_after_crash = on.  Returns the pid, 0 when there was none.

=item random_kill($target, $source, @kinds)

Does one of these at random, and returns what it did ('' when there was nothing
to kill): 'loader', 'job', 'capture', 'apply' (kill -9 in the target),
'walsender' (the same in the source), 'target', 'source' (hard_restart of a
server), 'connection' (pg_terminate_backend of a migrate session on the
source).  Without kinds, any of 'loader', 'job', 'target', 'source' and
'connection'.

=back

=head2 Proof

=over

=item same_rows($node1, $sql1, $node2, $sql2, $test_name, %options)

A test: both queries give the same rows, as bags.  Independent of migrate:
sorted COPY text, UTF-8, fixed output settings.  Shows the first differences.
C<db1>, C<db2>: databases.

=item rows_equal(the same without the name)

Returns true or false, and is no test.

=item value($node, $sql, $db)

safe_psql in database C<postgres>.

=back

=cut

package MigrateTest;

use strict;
use warnings;

use Exporter 'import';
use File::Temp ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
  new_target new_source connect_source
  hard_restart hard_kill start_again
  wait_for wait_job job_state try_query
  kill9_backend random_kill kills_seen set_fault
  same_rows rows_equal value
);

# A postmaster that was killed must not stay a zombie, or pg_ctl takes it for
# alive: not every container's first process reaps quickly.  So orphans become
# our children (prctl PR_SET_CHILD_SUBREAPER), and hard_kill() reaps them.
my %prctl = (x86_64 => 157, aarch64 => 167);
my $machine = (POSIX::uname())[4];
syscall($prctl{$machine}, 36, 1, 0, 0, 0) if $prctl{$machine};

# ---------------------------------------------------------------- nodes

sub new_node
{
	my ($name, %o) = @_;
	my $node =
	  PostgreSQL::Test::Cluster->new($name,
		$o{install} ? (install_path => $o{install}) : ());
	my @initdb = ('--encoding', $o{encoding} || 'UTF8', '--locale', $o{locale} || 'C');

	push @initdb, '--locale-provider=icu', "--icu-locale=$o{icu}" if $o{icu};
	push @initdb, @{ $o{initdb} || [] };
	$node->init(extra => \@initdb, allows_streaming => 'logical');

	my $conf = <<'CONF';
shared_buffers = 32MB
max_connections = 60
max_worker_processes = 32
max_wal_size = 1GB
min_wal_size = 80MB
max_wal_senders = 10
max_replication_slots = 10
wal_log_hints = off
restart_after_crash = on
# in the data directory, so that nothing is left in /dev/shm after a kill -9
dynamic_shared_memory_type = mmap
log_statement = none
log_min_duration_statement = -1
deadlock_timeout = 200ms
timezone = 'UTC'
CONF
	$conf .= "wal_level = replica\n" unless $o{logical};
	$conf .= "full_page_writes = off\n" unless $o{durable};
	$conf .= "fsync = on\n" if $o{durable};
	$conf .= "shared_preload_libraries = 'migrate'\n" if $o{preload};
	$conf .= $o{conf} . "\n" if defined $o{conf};
	$node->append_conf('postgresql.conf', $conf);
	$node->start unless defined $o{start} && !$o{start};
	return $node;
}

sub new_source { return new_node(@_); }

sub new_target
{
	my ($name, %o) = @_;
	my $node = new_node($name, %o);

	return $node if defined $o{start} && !$o{start};
	$node->safe_psql('postgres', 'CREATE EXTENSION migrate CASCADE')
	  unless defined $o{extension} && !$o{extension};
	return $node;
}

sub quote_literal
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

sub quote_ident
{
	my ($text) = @_;
	$text =~ s/"/""/g;
	return "\"$text\"";
}

sub connect_source
{
	my ($target, $source, %o) = @_;
	my $db = $o{db} || 'postgres';
	my $server = quote_ident($o{server} || 'legacy');
	my $user = $o{user}
	  || $source->safe_psql('postgres', 'SELECT current_user');
	my %options = (
		host => $source->host,
		port => $source->port,
		dbname => $o{dbname} || 'postgres',
		%{ $o{options} || {} });
	my $list =
	  join(', ', map { "$_ " . quote_literal($options{$_}) } sort keys %options);
	my $for = $o{for} ? quote_ident($o{for}) : 'CURRENT_USER';
	my $sql = "CREATE SERVER IF NOT EXISTS $server FOREIGN DATA WRAPPER postgres_fdw OPTIONS ($list);\n"
	  . "CREATE USER MAPPING FOR $for SERVER $server OPTIONS (user "
	  . quote_literal($user)
	  . ($o{for} ? ", password_required 'false'" : '') . ");\n";

	$sql .= "GRANT USAGE ON FOREIGN SERVER $server TO $for;\n" if $o{for};
	$target->safe_psql($db, $sql);
	return;
}

# Processes of a server, by their working directory; the postmaster's pid file
# says nothing about children that outlive it for a moment.
sub server_pids
{
	my ($node) = @_;
	my ($dev, $ino) = stat($node->data_dir);
	my @pids;

	foreach my $proc (glob('/proc/[0-9]*'))
	{
		my ($d, $i) = stat("$proc/cwd");
		push @pids, $1 if defined $i && $d == $dev && $i == $ino && $proc =~ /(\d+)$/;
	}
	return @pids;
}

sub hard_kill
{
	my ($node) = @_;
	my $until = time() + 60;
	my ($pid) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	$node->kill9;
	while (server_pids($node) || kill(0, $pid))
	{
		waitpid($pid, POSIX::WNOHANG());
		die 'processes outlive their postmaster: '
		  . join('; ', map { my $p = $_; "$p " . (eval { slurp_file("/proc/$p/cmdline") } // '') =~ tr/\0/ /r } server_pids($node))
		  if time() > $until;
		sleep(0.05);
	}
	return;
}

sub start_again
{
	my ($node) = @_;

	for my $try (1 .. 20)
	{
		return if $node->start(fail_ok => 1);
		sleep(0.5);
	}
	die 'server "' . $node->name . '" does not start any more';
}

# Processes of a server that were killed so far, by its log.
sub kills_seen
{
	my ($node) = @_;
	my $n = () = slurp_file($node->logfile) =~ /terminated by signal 9/g;
	return $n;
}

# migrate.fault, by file and signal, which also reach a server that is just
# recovering.
sub set_fault
{
	my ($node, $fault) = @_;
	$node->append_conf('postgresql.conf', "migrate.fault = '$fault'\n");
	$node->reload;
	return;
}

sub hard_restart
{
	my ($node) = @_;
	hard_kill($node);
	start_again($node);
	return;
}

# -------------------------------------------------------------- waiting

# A query that may fail: its output, or undef
sub try_query
{
	my ($node, $sql, $db) = @_;
	my $output = '';
	my $errors = '';
	my $rc = eval {
		$node->psql(
			$db || 'postgres', $sql,
			stdout => \$output,
			stderr => \$errors,
			timeout => 60);
	};
	return defined $rc && $rc == 0 ? $output : undef;
}

sub wait_for
{
	my ($node, $sql, %o);
	if (ref $_[0] eq 'CODE') { ($sql, %o) = @_; }
	else { ($node, $sql, %o) = @_; }
	my $until = time() + ($o{timeout} || 180);
	my $pause = 0.05;
	my $last;

	while (1)
	{
		if ($node)
		{
			$last = try_query($node, $sql, $o{db});
			return 1 if defined $last && $last eq 't';
		}
		else
		{
			return 1 if $sql->();
		}
		last if time() > $until;
		sleep($pause);
		$pause = 0.5 if ($pause *= 1.3) > 0.5;
	}
	diag('waited in vain for ' . ($node ? "\"$sql\", it gave " . ($last // 'an error') : 'a function'));
	return 0;
}

sub job_state
{
	my ($node, $job, $db) = @_;
	return try_query($node,
		'SELECT state FROM migrate.job WHERE job = ' . quote_literal($job), $db);
}

sub wait_job
{
	my ($node, $job, $state, %o) = @_;
	my $until = time() + ($o{timeout} || 180);
	my $now = '';

	while (time() < $until)
	{
		$now = job_state($node, $job, $o{db}) // '';
		last if $now eq $state || $now eq 'failed' || $now eq 'cancelled';
		sleep(0.1);
	}
	is($now, $state, "job $job is $state") and return 1;
	diag(
		try_query(
			$node,
			'SELECT format($f$state %s, wanted %s, paused: %s, error: %s %s$f$, state, wanted, pause_reason, last_sqlstate, last_error)'
			  . ' FROM migrate.job WHERE job = ' . quote_literal($job), $o{db}) // 'no job');
	diag(
		try_query(
			$node,
			'SELECT at, level, kind, message FROM migrate.event NATURAL JOIN migrate.job WHERE job = '
			  . quote_literal($job) . ' ORDER BY event_id DESC LIMIT 15', $o{db}) // 'no events');
	return 0;
}

# ------------------------------------------------------ breaking things

sub kill9_backend
{
	my ($node, $role) = @_;
	my $like = quote_literal("%$role%");
	my $pid = try_query($node,
		"SELECT pid FROM pg_stat_activity WHERE (backend_type ILIKE $like OR application_name ILIKE $like)"
		  . ' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1');

	return 0 unless $pid;
	kill(9, $pid) or return 0;
	return $pid;
}

sub random_kill
{
	my ($target, $source, @kinds) = @_;
	@kinds = qw(loader job target source connection) unless @kinds;
	my $kind = $kinds[ int(rand(@kinds)) ];
	my $did;

	if ($kind eq 'loader') { $did = kill9_backend($target, 'migrate%loader'); }
	elsif ($kind eq 'job') { $did = kill9_backend($target, 'migrate%job'); }
	elsif ($kind eq 'capture') { $did = kill9_backend($target, 'migrate%capture'); }
	elsif ($kind eq 'apply') { $did = kill9_backend($target, 'migrate%apply'); }
	elsif ($kind eq 'walsender') { $did = kill9_backend($source, 'walsender'); }
	elsif ($kind eq 'target') { hard_restart($target); $did = 1; }
	elsif ($kind eq 'source') { hard_restart($source); $did = 1; }
	elsif ($kind eq 'connection')
	{
		$did = try_query($source,
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'migrate/%' ORDER BY random() LIMIT 1"
		);
	}
	else { die "random_kill: no such kind: $kind"; }
	note($did ? "random_kill: $kind" : "random_kill: no $kind to kill");
	return $did ? $kind : '';
}

# ---------------------------------------------------------------- proof

# Rows of a query, sorted bytewise, in a file
sub sorted_rows
{
	my ($node, $sql, $db, $file) = @_;
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	local $ENV{PGOPTIONS} =
	  '-c DateStyle=ISO,YMD -c IntervalStyle=postgres -c extra_float_digits=3 -c TimeZone=UTC -c bytea_output=hex -c xmlbinary=base64'
	  . ' -c lc_monetary=C -c quote_all_identifiers=off -c row_security=off';
	my $command = $sql;
	$command =~ s/\s+/ /g if $command !~ /'|--|\$/;
	my $sql_file = File::Temp->new(SUFFIX => '.sql');
	print $sql_file "COPY ($command\n) TO STDOUT";
	close $sql_file;
	my $conn = $node->connstr($db || 'postgres');
	my $rc = system('bash', '-c',
		'set -o pipefail; psql -XqAt -v ON_ERROR_STOP=1 -d "$1" -f "$2" | LC_ALL=C sort -S 64M >"$3"',
		'rows', $conn, "$sql_file", $file);
	die "query failed: $sql" if $rc != 0;
	return;
}

sub compare_rows
{
	my ($node1, $sql1, $node2, $sql2, %o) = @_;
	my $dir = File::Temp->newdir;
	sorted_rows($node1, $sql1, $o{db1}, "$dir/1");
	sorted_rows($node2, $sql2, $o{db2}, "$dir/2");
	return (1, '') if system('cmp', '-s', "$dir/1", "$dir/2") == 0;
	return (0, scalar `diff "$dir/1" "$dir/2" | grep '^[<>]' | cut -c 1-300 | head -n 20; wc -l "$dir/1" "$dir/2"`);
}

sub rows_equal
{
	my ($equal) = compare_rows(@_);
	return $equal;
}

sub same_rows
{
	my ($node1, $sql1, $node2, $sql2, $name, %o) = @_;
	my ($equal, $why) = compare_rows($node1, $sql1, $node2, $sql2, %o);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($equal, $name // 'same rows') or diag($why);
	return $equal;
}

sub value
{
	my ($node, $sql, $db) = @_;
	return $node->safe_psql($db || 'postgres', $sql);
}

1;
