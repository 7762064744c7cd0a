# Copyright (c) 2026, the migrate authors; PostgreSQL License

# Every form of a mapping and every kind of target, between two servers.  Each
# ends in an independent comparison of rows, our own validation, and
# conservation: what was read is mapped, filtered or dead, row for row.

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

my $rows = 5000;

src(qq{
	CREATE TABLE item (id int PRIMARY KEY, name text, qty int, price numeric(10, 2), at timestamptz, tags text);
	INSERT INTO item SELECT g, 'n' || g, g % 1000, g / 4.0, 'epoch'::timestamptz + g * interval '1 h',
			CASE g % 4 WHEN 0 THEN NULL WHEN 1 THEN 'a' WHEN 2 THEN 'a,b' ELSE 'a,b,c' END
		FROM generate_series(1, $rows) g;
	UPDATE item SET qty = NULL WHERE id % 17 = 0});
sql(q{CREATE SCHEMA t; SELECT migrate_create_job('setup', server => 'legacy'); SELECT migrate_import('setup', 'public', 'src')});

# Start, whatever preflight says of a table that is meant to lack an index
sub start
{
	my ($job) = @_;
	return sql(qq{SELECT migrate_accept('$job', check_name, object, 'test') FROM migrate_preflight('$job')
			WHERE status = 'fail' AND check_name = 'key_index';
		SELECT migrate_start('$job')});
}

sub create
{
	my ($job, $options) = @_;
	return sql(qq{SELECT migrate_create_job('$job', server => 'legacy', options => '{"chunk_blocks": 16, "batch_rows": 700 }'::jsonb || '} . ($options || '{}') . q{')});
}

# Every chunk done, every source row read once for every mapping, and the sums
sub conserved
{
	my ($job, $read, %expect) = @_;
	my $dead = $expect{dead} || 0;
	is(sql(qq{SELECT count(*) FROM migrate.chunks WHERE job = '$job' AND NOT outdated AND state <> 'done'}), '0', "$job: no chunk is left");
	is(sql(qq{SELECT string_agg(DISTINCT x, '; ') FROM (
			SELECT format('%s: read %s of %s, mapped %s, filtered %s, dead %s', m.target, sum(c.rows_read), $read,
				sum(c.rows_mapped), sum(c.rows_filtered), sum(c.rows_dead)) AS x
			FROM migrate.chunk_mapping c JOIN migrate.mapping m USING (mapping_id) JOIN migrate.job j ON j.job_id = m.job_id
			JOIN migrate.chunk k USING (chunk_id) JOIN migrate.source_table s ON s.source_id = m.source_id AND k.plan_no = s.plan_no
			WHERE j.job = '$job' GROUP BY m.mapping_id, m.target
			HAVING sum(c.rows_read) <> $read OR sum(c.rows_read) <> sum(c.rows_mapped + c.rows_filtered + c.rows_dead)
				OR sum(c.rows_dead) <> $dead} .
			(defined $expect{filtered} ? " OR sum(c.rows_filtered) <> $expect{filtered}" : '') .
			(defined $expect{written} ? " OR sum(c.rows_written) <> $expect{written}" : '') . q{) y}),
		'', "$job: conservation, each row read once");
	is(sql(qq{SELECT count(*) FROM migrate.dead_letters WHERE job = '$job'}), $dead, "$job: $dead dead letters") unless $expect{no_letters};
	return;
}

sub validated
{
	my ($job) = @_;
	is(sql(qq{SELECT target, status, source_rows, target_rows, mismatches FROM migrate_validate('$job') WHERE matched IS NOT TRUE}),
		'', "$job: validated");
	return;
}

# One mapping from item: target's definition, arguments, the query that says
# what must come out, the query over the target, what to expect of the counts
sub form
{
	my ($job, $ddl, $args, $want, $have, %expect) = @_;
	sql($ddl);
	create($job, $expect{options});
	sql(qq{SELECT migrate_add_table('$job', 'src.item', 't.$job'$args)});
	start($job);
	wait_job($target, $job, 'copied');
	same_rows($source, $want, $target, $have || "SELECT * FROM t.$job", "$job: equal");
	conserved($job, $rows, %expect);
	validated($job);
	return;
}

# --- identity by name: other order, other types by assignment
form('ordered', 'CREATE TABLE t.ordered (tags varchar(20), at timestamptz, price numeric, qty bigint, name text, id bigint PRIMARY KEY)',
	'', 'SELECT tags, at, price, qty, name, id FROM item', undef, filtered => 0, written => $rows);

# --- a value that is too long is refused, never cut
src(q{CREATE TABLE long_names (id int PRIMARY KEY, name text);
	INSERT INTO long_names SELECT g, CASE WHEN g % 250 = 0 THEN 'longer than five' ELSE 'ok' || g % 100 END FROM generate_series(1, 5000) g});
foreach my $case ([ 'refuse_sql', 'id int PRIMARY KEY' ], [ 'refuse_fresh', 'id int' ])
{
	my ($job, $id) = @$case;
	sql(qq{CREATE TABLE t.$job ($id, name varchar(5))});
	create($job);
	sql(qq{SELECT migrate_add_table('$job', 'public.long_names', 't.$job')});
	start($job);
	wait_job($target, $job, 'copied');
	same_rows($source, q{SELECT * FROM long_names WHERE name LIKE 'ok%'}, $target, "SELECT * FROM t.$job", "$job: all others are there");
	conserved($job, 5000, dead => 20, written => 4980);
	is(sql(qq{SELECT DISTINCT sqlstate, source_row->>'name' FROM migrate.dead_letters WHERE job = '$job'}), '22001|longer than five',
		"$job: refused, with the whole value kept");
	is(sql(qq{SELECT matched, source_rows - target_rows FROM migrate_validate('$job')}), 'f|20', "$job: validation does not call that equal");
}
src(q{UPDATE long_names SET name = 'short' WHERE length(name) > 5});
foreach my $job (qw(refuse_sql refuse_fresh))
{
	is(sql(qq{SELECT * FROM migrate_replay('$job')}), '20|0|0', "$job: replayed after the source was mended");
	same_rows($source, 'SELECT * FROM long_names', $target, "SELECT * FROM t.$job", "$job: equal after that");
	validated($job);
}

# --- columns, with the rest by name; and left to a default
form('renamed', q{CREATE TABLE t.renamed (id int PRIMARY KEY, cents bigint, label text, qty int, origin text DEFAULT 'old', flag bool)},
	q{, columns => '{"cents": "(price * 100)::bigint", "label": "upper(name) || qty", "flag": true}'},
	q{SELECT id, (price * 100)::bigint, upper(name) || qty, qty, 'old', true FROM item}, undef, filtered => 0, written => $rows);

# --- functions in each language, of a row and of a set
my $pair = '(id int PRIMARY KEY, name text)';
form('sql_set', qq{CREATE TABLE t.sql_set $pair;
	CREATE FUNCTION t.map_sql_set(o src.item) RETURNS SETOF t.sql_set LANGUAGE sql STABLE AS 'SELECT o.id, upper(o.name)'},
	q{, mapping => 't.map_sql_set'}, 'SELECT id, upper(name) FROM item', undef, filtered => 0, written => $rows);
form('sql_row', qq{CREATE TABLE t.sql_row $pair;
	CREATE FUNCTION t.map_sql_row(o src.item) RETURNS t.sql_row LANGUAGE sql STABLE AS 'SELECT o.id, upper(o.name) WHERE o.qty IS NOT NULL'},
	q{, mapping => 't.map_sql_row'}, 'SELECT id, upper(name) FROM item WHERE qty IS NOT NULL', undef, filtered => int($rows / 17));
form('sql_table', qq{CREATE TABLE t.sql_table $pair;
	CREATE FUNCTION t.map_sql_table(o src.item) RETURNS TABLE (name text, id int) LANGUAGE sql STABLE AS 'SELECT lower(o.name), o.id'},
	q{, mapping => 't.map_sql_table'}, 'SELECT id, lower(name) FROM item', undef, filtered => 0);
form('standard', qq{CREATE TABLE t.standard $pair;
	CREATE FUNCTION t.map_standard(o src.item) RETURNS SETOF t.standard LANGUAGE sql STABLE BEGIN ATOMIC SELECT (o).id, reverse((o).name); END},
	q{, mapping => 't.map_standard'}, 'SELECT id, reverse(name) FROM item', undef, filtered => 0, written => $rows);
form('plpgsql_row', qq{CREATE TABLE t.plpgsql_row $pair;
	CREATE FUNCTION t.map_plpgsql_row(o src.item) RETURNS t.plpgsql_row LANGUAGE plpgsql STABLE AS
	\$\$DECLARE r t.plpgsql_row; BEGIN IF o.id % 2 = 0 THEN RETURN NULL; END IF; r.id := o.id; r.name := o.tags; RETURN r; END\$\$},
	q{, mapping => 't.map_plpgsql_row'}, 'SELECT id, tags FROM item WHERE id % 2 = 1', undef, filtered => $rows / 2, written => $rows / 2);

# --- none, one or many, with the key map that finds them again; and a filter
my $lines = '(item_id int, line int, tag text, PRIMARY KEY (item_id, line))';
my $many = q{SELECT id, u.n, u.tag FROM item, LATERAL unnest(string_to_array(tags, ',')) WITH ORDINALITY u(tag, n)};
my $lines_written = src("SELECT count(*) FROM ($many) q");
form('many_sql', qq{CREATE TABLE t.many_sql $lines;
	CREATE FUNCTION t.map_many_sql(o src.item) RETURNS SETOF t.many_sql LANGUAGE sql STABLE AS
	\$\$SELECT o.id, u.n::int, u.tag FROM unnest(string_to_array(o.tags, ',')) WITH ORDINALITY u(tag, n)\$\$},
	q{, mapping => 't.map_many_sql', key => '{"item_id": "id"}'}, $many, undef, filtered => $rows / 4, written => $lines_written);
form('many_plpgsql', qq{CREATE TABLE t.many_plpgsql $lines;
	CREATE FUNCTION t.map_many_plpgsql(o src.item) RETURNS SETOF t.many_plpgsql LANGUAGE plpgsql STABLE AS
	\$\$DECLARE a text[] := string_to_array(o.tags, ','); BEGIN FOR i IN 1 .. coalesce(cardinality(a), 0) LOOP RETURN NEXT ROW(o.id, i, a[i])::t.many_plpgsql; END LOOP; END\$\$},
	q{, mapping => 't.map_many_plpgsql', key => '{"item_id": "id"}', filter => 'id % 10 <> 0'},
	"$many WHERE id % 10 <> 0", undef,
	filtered => src("SELECT count(*) FROM item WHERE tags IS NULL OR id % 10 = 0"));
form('filtered', qq{CREATE TABLE t.filtered $pair}, q{, columns => '{}', filter => 'qty > 500 -- and NULL is no'},
	'SELECT id, name FROM item WHERE qty > 500', undef, filtered => src('SELECT count(*) FROM item WHERE (qty > 500) IS NOT TRUE'));

# --- several mappings of one source table: one scan
{
	sql(qq{CREATE TABLE t.part_names $pair; CREATE TABLE t.part_prices (id int PRIMARY KEY, price numeric);
		CREATE TABLE t.part_tags $lines;
		CREATE FUNCTION t.map_part_tags(o src.item) RETURNS SETOF t.part_tags LANGUAGE sql STABLE AS
		\$\$SELECT o.id, u.n::int, u.tag FROM unnest(string_to_array(o.tags, ',')) WITH ORDINALITY u(tag, n)\$\$});
	create('split');
	sql(q{SELECT migrate_add_table('split', 'src.item', 't.part_names', columns => '{}');
		SELECT migrate_add_table('split', 'src.item', 't.part_prices', columns => '{}', filter => 'price >= 500');
		SELECT migrate_add_table('split', 'src.item', 't.part_tags', mapping => 't.map_part_tags', key => '{"item_id": "id"}')});
	start('split');
	wait_job($target, 'split', 'copied');
	same_rows($source, 'SELECT id, name FROM item', $target, 'SELECT * FROM t.part_names', 'split: names');
	same_rows($source, 'SELECT id, price FROM item WHERE price >= 500', $target, 'SELECT * FROM t.part_prices', 'split: prices');
	same_rows($source, $many, $target, 'SELECT * FROM t.part_tags', 'split: tags');
	conserved('split', $rows);
	validated('split');
	is(sql(q{SELECT sum(rows_read), count(DISTINCT s.source_id) FROM migrate.chunk c JOIN migrate.source_table s USING (source_id) JOIN migrate.job j ON j.job_id = s.job_id WHERE job = 'split'}),
		"$rows|1", 'split: the source was read once for all three');
}

# --- shards: three databases, a job each, into one table
{
	sql(q{CREATE TABLE t.account (tenant_id int, id int, balance numeric, PRIMARY KEY (tenant_id, id));
		INSERT INTO t.account VALUES (99, 1, 7)});
	foreach my $n (1 .. 3)
	{
		src("CREATE DATABASE shard$n");
		$source->safe_psql("shard$n", "CREATE TABLE account (id int PRIMARY KEY, balance numeric); INSERT INTO account SELECT g, g * $n FROM generate_series(1, 3000) g");
		connect_source($target, $source, server => "shard$n", dbname => "shard$n");
		sql(qq{SELECT migrate_create_job('shard$n', server => 'shard$n', options => '{"chunk_blocks": 4, "batch_rows": 500}');
			SELECT migrate_add_table('shard$n', 'public.account', 't.account', columns => '{"tenant_id": $n}',
				key => '{"tenant_id": $n, "id": "id"}', owns => 'tenant_id = $n')});
	}
	start("shard$_") for 1 .. 3;
	wait_job($target, "shard$_", 'copied') for 1 .. 3;
	my $same = sub {
		my ($n, $what) = @_;
		same_rows($source, "SELECT $n, * FROM account", $target, "SELECT * FROM t.account WHERE tenant_id = $n", "$what: shard$n is equal", db1 => "shard$n");
		validated("shard$n");
	};
	$same->($_, 'shards') for 1 .. 3;
	conserved("shard$_", 3000, written => 3000, filtered => 0) for 1 .. 3;

	my $others = q{SELECT coalesce(md5(string_agg(format('%s %s %s', ctid, xmin, a), ',' ORDER BY ctid)), '') FROM t.account a WHERE tenant_id <> 2};
	my $before = sql($others);
	$source->safe_psql('shard2', 'DELETE FROM account WHERE id % 3 = 0; UPDATE account SET balance = -id WHERE id % 3 = 1; INSERT INTO account SELECT g, 0 FROM generate_series(5001, 5100) g');
	is(sql(q{SELECT matched FROM migrate_validate('shard2')}), 'f', 'shards: validation sees that shard2 moved on');
	sql(q{SELECT migrate_recopy('shard2', 't.account')});
	wait_job($target, 'shard2', 'copied');
	$same->(2, 'shards, one copied again');
	is(sql($others), $before, 'shards: no other row was touched, byte for byte');
	conserved('shard2', 2100, written => 2100);
	is(sql('SELECT balance FROM t.account WHERE tenant_id = 99'), '7', 'shards: nor a row that no job owns');
}

# --- columns that the target makes itself
foreach my $case ([ 'made_sql', 'PRIMARY KEY' ], [ 'made_fresh', '' ])
{
	my ($job, $key) = @$case;
	form($job, qq{CREATE SEQUENCE t.${job}_seq;
		CREATE TABLE t.$job (twice int GENERATED ALWAYS AS (qty * 2) STORED, id int GENERATED ALWAYS AS IDENTITY $key, qty int,
			made_by text NOT NULL DEFAULT 'migrate', n int DEFAULT nextval('t.${job}_seq'), name text)},
		q{, columns => '{}'}, 'SELECT qty * 2, id, qty, $$migrate$$, name FROM item', "SELECT twice, id, qty, made_by, name FROM t.$job",
		filtered => 0, written => $rows);
	is(sql("SELECT count(DISTINCT n), count(n) FROM t.$job"), "$rows|$rows", "$job: a default that is a sequence drew a number for each row");
}

# --- partitioned targets
form('parted', q{CREATE TABLE t.parted (name text, id int, qty int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
	CREATE TABLE t.parted_1 PARTITION OF t.parted FOR VALUES FROM (0) TO (2000);
	CREATE TABLE t.parted_2 (qty int, gone int, id int NOT NULL, name text); ALTER TABLE t.parted_2 DROP gone;
	ALTER TABLE t.parted ATTACH PARTITION t.parted_2 FOR VALUES FROM (2000) TO (4000);
	CREATE TABLE t.parted_3 PARTITION OF t.parted DEFAULT PARTITION BY LIST (id);
	CREATE TABLE t.parted_4 PARTITION OF t.parted_3 DEFAULT},
	q{, columns => '{}'}, 'SELECT name, id, qty FROM item', undef, filtered => 0, written => $rows);
{
	# a row that has no partition
	sql(q{CREATE TABLE t.gap (id int PRIMARY KEY, name text) PARTITION BY RANGE (id);
		CREATE TABLE t.gap_1 PARTITION OF t.gap FOR VALUES FROM (0) TO (4991)});
	create('gap');
	sql(q{SELECT migrate_add_table('gap', 'src.item', 't.gap', columns => '{}')});
	start('gap');
	wait_job($target, 'gap', 'copied');
	same_rows($source, 'SELECT id, name FROM item WHERE id < 4991', $target, 'SELECT * FROM t.gap', 'gap: what has a partition is there');
	conserved('gap', $rows, dead => 10);
	is(sql(q{SELECT DISTINCT sqlstate, stage FROM migrate.dead_letters WHERE job = 'gap'}), '23514|write', 'gap: the others are dead letters');
	sql(q{CREATE TABLE t.gap_2 PARTITION OF t.gap DEFAULT});
	is(sql(q{SELECT * FROM migrate_replay('gap')}), '10|0|0', 'gap: replayed when there is a partition');
	same_rows($source, 'SELECT id, name FROM item', $target, 'SELECT * FROM t.gap', 'gap: equal after that');
	validated('gap');
}

# --- a partition that is on a third server
{
	my $third = new_source('third');
	$third->safe_psql('postgres', 'CREATE TABLE far (id int, name text)');
	connect_source($target, $third, server => 'third');
	form('spread', q{CREATE TABLE t.spread (id int, name text) PARTITION BY RANGE (id);
		CREATE TABLE t.near PARTITION OF t.spread FOR VALUES FROM (0) TO (2500);
		CREATE INDEX ON t.near (id);
		CREATE FOREIGN TABLE t.far PARTITION OF t.spread FOR VALUES FROM (2500) TO (100000) SERVER third OPTIONS (schema_name 'public', table_name 'far')},
		q{, columns => '{}'}, 'SELECT id, name FROM item', undef, filtered => 0, written => $rows);
	same_rows($source, 'SELECT id, name FROM item WHERE id >= 2500', $third, 'SELECT * FROM far', 'spread: half of it is on the third server');
	src(q{UPDATE item SET name = 'again' WHERE id % 1000 = 1});
	sql(q{SELECT migrate_recopy('spread', 't.spread')});
	wait_job($target, 'spread', 'copied');
	same_rows($source, 'SELECT id, name FROM item', $target, 'SELECT * FROM t.spread', 'spread: copied again');
	conserved('spread', $rows, written => $rows);
	validated('spread');
	sql('DROP TABLE t.spread');
	$third->stop;
}

# --- triggers: only ENABLE ALWAYS ones fire, and what they do counts
form('watched', q{CREATE TABLE t.watched (id int PRIMARY KEY, name text);
	CREATE TABLE t.log (id int, trigger text);
	CREATE FUNCTION t.note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO t.log VALUES (NEW.id, TG_NAME); RETURN NEW; END$$;
	CREATE TRIGGER ordinary AFTER INSERT ON t.watched FOR EACH ROW EXECUTE FUNCTION t.note();
	CREATE TRIGGER always AFTER INSERT ON t.watched FOR EACH ROW EXECUTE FUNCTION t.note();
	ALTER TABLE t.watched ENABLE ALWAYS TRIGGER always},
	q{, columns => '{}'}, 'SELECT id, name FROM item', undef, filtered => 0, written => $rows);
is(sql('SELECT trigger, count(*), count(DISTINCT id) FROM t.log GROUP BY 1'), "always|$rows|$rows", 'watched: the trigger ENABLE ALWAYS fired once a row, no other');

# one that keeps rows away must not do so in silence
{
	sql(q{CREATE TABLE t.swallowed (id int PRIMARY KEY, name text);
		CREATE FUNCTION t.swallow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.id % 500 = 0 THEN RETURN NULL; END IF; RETURN NEW; END$$;
		CREATE TRIGGER swallow BEFORE INSERT OR UPDATE ON t.swallowed FOR EACH ROW EXECUTE FUNCTION t.swallow();
		ALTER TABLE t.swallowed ENABLE ALWAYS TRIGGER swallow});
	create('swallowed');
	sql(q{SELECT migrate_add_table('swallowed', 'src.item', 't.swallowed', columns => '{}')});
	start('swallowed');
	wait_job($target, 'swallowed', 'copied');
	same_rows($source, 'SELECT id, name FROM item WHERE id % 500 <> 0', $target, 'SELECT * FROM t.swallowed', 'swallowed: what the trigger lets in');
	conserved('swallowed', $rows, dead => $rows / 500, written => $rows - $rows / 500);
	is(sql(q{SELECT DISTINCT sqlstate, stage FROM migrate.dead_letters WHERE job = 'swallowed'}), '09000|write', 'swallowed: each row that it kept away is a dead letter');
}

# --- existing indexes, one of which two source rows collide on
{
	src(q{CREATE TABLE mail (id int PRIMARY KEY, address text);
		INSERT INTO mail SELECT g, 'a' || g FROM generate_series(1, 3000) g;
		UPDATE mail SET address = 'A7' WHERE id = 2007});
	sql(q{CREATE TABLE t.mail (id int PRIMARY KEY, address text NOT NULL);
		CREATE UNIQUE INDEX ON t.mail (lower(address)); CREATE INDEX ON t.mail USING hash (address); CREATE INDEX ON t.mail (address) WHERE id < 100});
	create('mail');
	sql(q{SELECT migrate_add_table('mail', 'public.mail', 't.mail')});
	start('mail');
	wait_job($target, 'mail', 'copied');
	conserved('mail', 3000, dead => 1, written => 2999);
	is(sql(q{SELECT sqlstate, stage, key->>'id' IN ('7', '2007') FROM migrate.dead_letters WHERE job = 'mail'}), '23505|write|t', 'mail: the second row of an address is a dead letter');
	src(q{UPDATE mail SET address = 'b' || id WHERE id IN (7, 2007)});
	is(sql(q{SELECT * FROM migrate_replay('mail')}), '1|0|0', 'mail: replayed');
	sql(q{SELECT migrate_recopy('mail', 't.mail')});
	wait_job($target, 'mail', 'copied');
	same_rows($source, 'SELECT * FROM mail', $target, 'SELECT * FROM t.mail', 'mail: equal after a recopy');
	conserved('mail', 3000, dead => 0, no_letters => 1);
	validated('mail');
}

# --- a recopy of a table without an index, and of one mapping of several
src('UPDATE item SET name = name || $$x$$ WHERE id % 7 = 0; DELETE FROM item WHERE id % 100 = 0');
my $left = src('SELECT count(*) FROM item');
sql(qq{SELECT migrate_recopy('$_->[0]', '$_->[1]')}) for [ 'made_fresh', 't.made_fresh' ], [ 'split', 't.part_names' ], [ 'many_sql', 't.many_sql' ];
wait_job($target, $_, 'copied') for qw(made_fresh split many_sql);
same_rows($source, 'SELECT id, qty * 2, name FROM item', $target, 'SELECT id, twice, name FROM t.made_fresh', 'recopy: without an index');
same_rows($source, 'SELECT id, name FROM item', $target, 'SELECT * FROM t.part_names', 'recopy: the target named');
same_rows($source, 'SELECT id, price FROM item WHERE price >= 500', $target, 'SELECT * FROM t.part_prices', 'recopy: and its sibling');
same_rows($source, $many, $target, 'SELECT * FROM t.many_sql', 'recopy: many rows for one');
foreach my $job (qw(made_fresh split many_sql)) { conserved($job, $left); validated($job); }

# --- a dry run keeps nothing
{
	sql(qq{CREATE TABLE t.dry $pair; CREATE TABLE t.dry_log (id int);
		CREATE FUNCTION t.map_dry(o src.item) RETURNS SETOF t.dry LANGUAGE plpgsql AS
		\$\$BEGIN INSERT INTO t.dry_log VALUES (o.id); IF o.id = 3 THEN RAISE EXCEPTION 'three'; ELSIF o.id <> 4 THEN RETURN NEXT ROW(o.id, CASE WHEN o.id = 5 THEN NULL ELSE o.name END)::t.dry; END IF; END\$\$;
		ALTER TABLE t.dry ADD CHECK (name IS NOT NULL)});
	create('dry');
	sql(q{SELECT migrate_add_table('dry', 'src.item', 't.dry', mapping => 't.map_dry')});
	my $kept = q{SELECT (SELECT count(*) FROM t.dry), (SELECT count(*) FROM t.dry_log), (SELECT count(*) FROM migrate.dead_letters WHERE job = 'dry'),
		(SELECT count(*) FROM migrate.chunks WHERE job = 'dry')};
	is(sql(q{SELECT source_row->>'id', target_row->>'name', sqlstate, error FROM migrate_dry_run('dry', 't.dry', 50) WHERE (source_row->>'id')::int BETWEEN 2 AND 5 ORDER BY 1}) =~ s/new row.*/refused/r,
		"2|n2||\n3||P0001|three\n4|||filtered\n5||23514|refused", 'dry run: mapped, raised, filtered, refused');
	is(sql(q{SELECT count(*) FROM migrate_dry_run('dry', 't.dry', 50)}), '50', 'dry run: a row for each of the sample');
	is(sql($kept), '0|0|0|0', 'dry run: nothing is kept');
	is(job_state($target, 'dry'), 'defined', 'dry run: the job has not moved');
}

# --- a chunk that is repeated, into a table that has no index to find its rows by
{
	src(q{CREATE TABLE plain (a int, b text); INSERT INTO plain SELECT g % 50, 'b' || g % 7 FROM generate_series(1, 20000) g});
	sql('CREATE TABLE t.plain (a int, b text)');
	create('repeat', '{"workers": 1, "chunking": "whole", "batch_rows": 200, "rows_per_second": 2000, "retry_max_delay": "100ms"}');
	sql(q{SELECT migrate_add_table('repeat', 'public.plain', 't.plain')});
	start('repeat');
	my $pid = 0;
	foreach my $try (1 .. 2)
	{
		# with no loader alive the job worker copies by itself
		my $busy = "FROM migrate.workers WHERE job = 'repeat' AND pid <> $pid AND chunk_rows >= 400";
		ok(wait_for($target, "SELECT count(*) = 1 $busy"), "repeat: a worker is in the middle of the chunk ($try)");
		$pid = sql("SELECT pid $busy");
		sql("SELECT pg_terminate_backend($pid)");
		ok(wait_for($target, "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid"), "repeat: it is gone ($try)");
		sql(q{SELECT migrate_resume('repeat')});
	}
	sql(q{SELECT migrate_alter_job('repeat', '{"rows_per_second": 0}')});
	wait_job($target, 'repeat', 'copied');
	cmp_ok(sql(q{SELECT max(attempt) FROM migrate.chunks WHERE job = 'repeat'}), '>=', 3, 'repeat: the chunk was tried three times');
	same_rows($source, 'SELECT * FROM plain', $target, 'SELECT * FROM t.plain', 'repeat: no row is doubled or missing');
	conserved('repeat', 20000, written => 20000);
	validated('repeat');
}

done_testing();
