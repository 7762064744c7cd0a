# Copyright (c) 2026, the migrate authors; PostgreSQL License

=pod

=head1 NAME

MigrateBench - private servers and fair races between ways to copy a database

=head1 DESCRIPTION

A benchmark makes two servers, fills the source, and lets contenders race:

  my $b = MigrateBench->new(work => $dir, source => {...}, target => {...});
  my $r = $b->race('title', rounds => 5, contenders => [
      { name => 'pipes', prepare => sub {...}, run => sub {...}, check => sub {...} },
      ...
  ]);
  $b->table($r, base => 'pipes');

In every round each contender runs once, the order turning by one a round, each
into a database of the target that was made anew (unless it says C<keep>).  C<prepare> is not timed,
C<run> is, C<check> must return what the race's C<expect> says (so that nobody
wins by doing less).  Both servers are checkpointed before each run.

Measured a run: seconds of the wall clock; CPU seconds of everything that took
part, which are those of both servers' processes, dead ones included (a
postmaster counts those it has waited for), and of the contender's own programs;
and, where asked for, the peak of anonymous memory (RssAnon, proc(5)) over the
processes that a pattern names.

=cut

package MigrateBench;

use strict;
use warnings;
use POSIX qw(sysconf _SC_CLK_TCK WNOHANG);
use Time::HiRes qw(time sleep);

my $ticks = sysconf(_SC_CLK_TCK);

sub new
{
	my ($class, %o) = @_;
	my $self = bless {
		work => $o{work}, port => { source => 5433, target => 5432 },
		results => [],
	}, $class;
	$self->serve($_, $o{$_} // {}) for qw(source target);
	return $self;
}

# A server with settings that leave the disk out of the race as far as can be:
# nothing is synced, no checkpoint falls due in the middle of a run, and WAL goes
# into files that are there already, as on a server that has run for a while.
sub serve
{
	my ($self, $name, $conf) = @_;
	my $dir = "$self->{work}/$name";
	my %conf = (
		listen_addresses => "''", unix_socket_directories => "'$self->{work}/tmp'",
		port => $self->{port}{$name}, fsync => 'off', full_page_writes => 'off',
		synchronous_commit => 'off', shared_buffers => "'4GB'", max_wal_size => "'16GB'",
		min_wal_size => "'8GB'", checkpoint_timeout => "'1h'", autovacuum => 'off', wal_level => 'logical',
		maintenance_work_mem => "'256MB'", max_worker_processes => 16,
		dynamic_shared_memory_type => 'mmap', max_locks_per_transaction => 1024,
		%$conf);

	sh("initdb -D $dir -A trust -N --encoding=UTF8 --locale=C");
	open(my $f, '>>', "$dir/postgresql.conf") or die "$dir: $!";
	print $f "$_ = $conf{$_}\n" for sort keys %conf;
	close $f;
	sh("pg_ctl -D $dir -l $dir.log -w start");
}

# Run a shell command; dies with its output when it fails.
sub sh
{
	my ($command) = @_;
	my $out = qx{( $command ) 2>&1};
	die "failed: $command\n" . substr($out, -3000) if $? != 0;
	return $out;
}

# libpq's words for a database of a server.
sub dsn
{
	my ($self, $server, $db) = @_;
	return "host=$self->{work}/tmp port=$self->{port}{$server} dbname=" . ($db // 'bench');
}

# What a statement gives, as text.
sub sql
{
	my ($self, $server, $sql, $db) = @_;
	open(my $f, '>', "$self->{work}/statement.sql") or die $!;
	print $f $sql;
	close $f;
	my $out = sh("psql -XqAt -v ON_ERROR_STOP=1 -d '" . $self->dsn($server, $db)
		  . "' -f $self->{work}/statement.sql");
	chomp $out;
	return $out;
}

# Start shell commands side by side, wait for all.
sub parallel
{
	my ($self, @commands) = @_;
	my @pids = map {
		my $command = $_;
		my $pid = fork() // die "fork: $!";
		if ($pid == 0)
		{
			exec('bash', '-o', 'pipefail', '-c', $command) or POSIX::_exit(127);
		}
		$pid;
	} @commands;
	my $failed = 0;
	for my $pid (@pids)
	{
		waitpid($pid, 0);
		$failed ||= $?;
	}
	die "failed: @commands\n" if $failed;
}

# CPU seconds so far: of the servers' processes, and of programs of ours that
# have ended.
sub cpu
{
	my ($self) = @_;
	my $sum = 0;
	my @me = times;
	for my $name (qw(source target))
	{
		my $postmaster = qx{head -1 $self->{work}/$name/postmaster.pid} + 0;
		for my $pid ($postmaster, split ' ', qx{pgrep -P $postmaster})
		{
			open(my $f, '<', "/proc/$pid/stat") or next;
			my $line = <$f> // next;
			my @field = split ' ', $line =~ s/^.*\) //sr;
			# utime stime cutime cstime are fields 14 to 17 of proc(5)
			$sum += $_ / $ticks for @field[ 11 .. 14 ];
		}
	}
	return $sum + $me[2] + $me[3];
}

# Watch the anonymous memory of processes whose title matches, in a process of
# its own; the function returned ends it and gives the peak in MB.
sub watch_memory
{
	my ($self, $pattern) = @_;
	my $parents = join(',', map { qx{head -1 $self->{work}/$_/postmaster.pid} + 0 } qw(source target));
	pipe(my $from, my $to) or die $!;
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		my ($peak, $stop) = (0, 0);
		local $SIG{TERM} = sub { $stop = 1 };
		until ($stop)
		{
			for my $p (split ' ', qx{pgrep -P '$parents' -f '$pattern'})
			{
				open(my $f, '<', "/proc/$p/status") or next;
				while (my $line = <$f>) { $peak = $1 if $line =~ /^RssAnon:\s+(\d+)/ && $1 > $peak }
			}
			sleep 0.02;
		}
		syswrite($to, $peak);
		POSIX::_exit(0);
	}
	close $to;
	return sub {
		kill 'TERM', $pid;
		my $peak = <$from>;
		waitpid($pid, 0);
		return ($peak // 0) / 1024;
	};
}

sub median
{
	my @v = sort { $a <=> $b } grep { defined } @_;
	return undef unless @v;
	return @v % 2 ? $v[ @v / 2 ] : ($v[ @v / 2 - 1 ] + $v[ @v / 2 ]) / 2;
}

# One run of a contender: a hash of what was measured.
sub run_once
{
	my ($self, $c, $expect) = @_;
	my $watch;

	if (!$c->{keep})
	{
		$self->sql('target', 'DROP DATABASE IF EXISTS bench WITH (FORCE)', 'postgres');
		$self->sql('target', 'CREATE DATABASE bench', 'postgres');
	}
	$c->{prepare}->() if $c->{prepare};
	$self->sql($_, 'CHECKPOINT', 'postgres') for qw(source target);
	$watch = $self->watch_memory($c->{memory}) if $c->{memory};
	my ($cpu, $start) = ($self->cpu, time);
	my $value = $c->{run}->();
	my %m = (seconds => time - $start);
	# a backend that is just leaving is counted when it has left
	$self->wait_alone;
	$m{cpu} = $self->cpu - $cpu;
	$m{memory} = $watch->() if $watch;
	$m{seconds} = $value if $c->{own_time};
	if (defined $expect)
	{
		my $got = $c->{check} ? $c->{check}->() : $self->sql('target', $expect->[0]);
		die "$c->{name} gave $got, not $expect->[1]\n" if $got ne $expect->[1];
	}
	$c->{clean}->() if $c->{clean};
	return \%m;
}

# Until no session but ours is left on the servers.
sub wait_alone
{
	my ($self) = @_;
	for my $name (qw(source target))
	{
		for (1 .. 200)
		{
			last if $self->sql($name,
				"SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
				  . " AND datname = 'bench' AND backend_type NOT LIKE 'logical%'", 'postgres') == 0;
			sleep 0.02;
		}
	}
}

# See the head.  expect: [ query on the target, its answer ].
sub race
{
	my ($self, $title, %o) = @_;
	my @contenders = @{ $o{contenders} };
	my %runs;

	for my $round (1 .. $o{rounds})
	{
		for my $i (0 .. $#contenders)
		{
			my $c = $contenders[ ($i + $round - 1) % @contenders ];
			my $m = $self->run_once($c, $o{expect});
			push @{ $runs{ $c->{name} } }, $m;
			printf STDERR "%-28s round %d  %-44s %7.2f s  cpu %6.2f s%s\n", $title, $round,
			  $c->{name}, $m->{seconds}, $m->{cpu},
			  defined $m->{memory} ? sprintf('  mem %.0f MB', $m->{memory}) : '';
		}
	}
	my $result = { title => $title, rounds => $o{rounds}, note => $o{note}, rows => [] };
	for my $c (@contenders)
	{
		my @m = @{ $runs{ $c->{name} } };
		push @{ $result->{rows} }, {
			name => $c->{name},
			map { my $k = $_; ($k => median(map { $_->{$k} } @m)) } qw(seconds cpu memory) };
	}
	push @{ $self->{results} }, $result;
	return { map { $_->{name} => $_ } @{ $result->{rows} } };
}

# Figures that were not made by race(): rows with a name, seconds and cpu.
sub add_result
{
	my ($self, $title, %o) = @_;
	push @{ $self->{results} }, { title => $title, %o };
}

# As claim(), with a limit that the value must not fall below.
sub claim_least
{
	my ($self, $text, $value, $limit, $format) = @_;
	push @{ $self->{results}[-1]{claims} },
	  sprintf("%s: **$format** (to reach: at least $format)%s", $text, $value, $limit,
		$value >= $limit ? '' : ' - *missed*');
}

# A claim about the figures: shown with the results, whether it holds or not.
sub claim
{
	my ($self, $text, $value, $limit, $format) = @_;
	push @{ $self->{results}[-1]{claims} },
	  sprintf("%s: **$format** (to reach: at most $format) %s", $text, $value, $limit,
		$value <= $limit ? '' : '- *missed*');
}

# A remark below the results of the last race.
sub remark
{
	my ($self, $text) = @_;
	push @{ $self->{results}[-1]{claims} }, $text;
}

# All results as Markdown.
sub report
{
	my ($self) = @_;
	my $out = '';
	for my $r (@{ $self->{results} })
	{
		my $memory = grep { defined $_->{memory} } @{ $r->{rows} };
		my $base = @{ $r->{rows} } ? $r->{rows}[0]{seconds} : undef;
		$out .= "### $r->{title}\n\n";
		$out .= "$r->{note}\n\n" if $r->{note};
		if (@{ $r->{rows} })
		{
			$out .= "| | seconds | ratio | CPU seconds |" . ($memory ? " peak MB |" : '') . "\n";
			$out .= "|---|---:|---:|---:|" . ($memory ? "---:|" : '') . "\n";
			for my $row (@{ $r->{rows} })
			{
				$out .= sprintf("| %s | %.2f | %.2f | %.2f |%s\n", $row->{name}, $row->{seconds},
					$row->{seconds} / $base, $row->{cpu},
					$memory ? (defined $row->{memory} ? sprintf(' %.0f |', $row->{memory}) : ' |') : '');
			}
			$out .= $r->{rounds} > 1 ? "\nMedians of $r->{rounds} rounds.\n\n" : "\nOne round.\n\n";
		}
		$out .= "- $_\n" for @{ $r->{claims} // [] };
		$out .= "\n" if $r->{claims};
	}
	return $out;
}

# Machine and versions, a line each.
sub machine
{
	my ($self) = @_;
	my ($cpu) = qx{cat /proc/cpuinfo} =~ /^model name\s*:\s*(.*)$/m;
	my ($mem) = qx{cat /proc/meminfo} =~ /^MemTotal:\s*(\d+)/m;
	my $version = $self->sql('target', 'SHOW server_version', 'postgres');
	my $cores = qx{nproc};
	my ($clone) = (qx{${\ ($self->{pgcopydb} // 'pgcopydb')} --version 2>&1 || true}) =~ /version\s+(\S+)/;
	chomp $cores;
	return sprintf("%s, %d cores, %.0f GB of memory; PostgreSQL %s on both sides%s.",
		$cpu // 'unknown processor', $cores, $mem / 1048576, $version,
		$clone ? "; pgcopydb $clone" : '');
}

1;
