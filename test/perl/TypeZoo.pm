# Copyright (c) 2026, the migrate authors; PostgreSQL License

=pod

=head1 NAME

TypeZoo - edge values of every built-in type

=head1 SYNOPSIS

  use TypeZoo;

  foreach my $animal (type_zoo($node->pg_version->major)) {
      my ($type, @values) = @$animal;      # values are SQL expressions
  }

=head1 DESCRIPTION

Values were chosen where forms lose something: ends of a type's range, what
has two spellings, what the text form escapes, what depends on a setting.
Types without values cannot be written by anybody (their input functions
refuse), but tables can have columns of them, all NULL.

=over

=item type_zoo($version)

A list of [ type, value, ... ] for the built-in base, range and multirange
types, in the order of their names, with variants that have a typmod
(C<numeric(5,-2)>).  Without C<$version>, as of 15.

=item type_name($type)

A name for a table or column of that type: C<numeric_5_2>.

=back

=cut

package TypeZoo;

use strict;
use warnings;
use utf8;

use Exporter 'import';

our @EXPORT = qw(type_zoo type_name);

# a text form, as an expression of the type
sub literal
{
	my ($type, $text) = @_;
	$text =~ s/'/''/g;
	return $text =~ /\\/ ? 'E' . "'" . ($text =~ s/\\/\\\\/gr) . "'::$type" : "'$text'::$type";
}

my $thousand = '123456789' . '0' x 10 . '987654321' x 109;    # 1,000 digits
my @dates = ('infinity', '-infinity', '4714-11-24 BC', '0044-03-15 BC', '0001-12-31 BC', '0001-01-01', '1582-10-15',
	'1999-12-31', '2000-01-01', '2000-02-29', '9999-12-31', '10000-01-01');
my @times = ('00:00', '00:00:00.000001', '12:34:56.789', '23:59:59.999999', '24:00');
my @stamps = (
	'infinity', '-infinity', '4714-11-24 00:00:00 BC', '0044-03-15 12:00:00.5 BC', '0001-12-31 23:59:59.999999 BC',
	'1900-01-01 00:00:00.1', '1969-12-31 23:59:59.999999', '2000-01-01', '2024-03-31 02:30:00.123456', '12345-06-07 08:09:10',
	'294276-12-31 23:59:59.999999');
my @texts = (
	'', ' ', '  two  ', 'a', 'A', 'NULL', '\\N', '\\.', '\\', '\\\\', '\\x41', "tab\tnew\nline\rreturn", "\x01\x7f", '"quoted"', "it's",
	'{a,"b"}', '(a,b)', 'comma,;|', '$1 %s %', '--', '/*', 'é', "e\x{301}", 'ß', 'İ', '日本語', '😀', "\x{feff}bom", "\x{10ffff}", "\x{200d}\x{202e}",
	'x' x 10_000);

my %values = (
	bool => [ 't', 'f' ],
	'"char"' => [ '', 'a', ' ', '\\', "\n", '"', ',' ],
	int2 => [ 0, 1, -1, 32767, -32768 ],
	int4 => [ 0, 1, -1, 2147483647, -2147483648 ],
	int8 => [ 0, 1, -1, '9223372036854775807', '-9223372036854775808' ],
	oid => [ 0, 1, 2147483648, 4294967295 ],
	float4 => [ 0, '-0', 1, 0.1, -1.5, '1e-45', '1.17549435e-38', '3.4028235e38', '-3.4028235e38', '0.3333333', 'NaN', 'Infinity', '-Infinity' ],
	float8 => [
		0, '-0', 1, 0.1, -1.5, '5e-324', '2.2250738585072014e-308', '1.7976931348623157e308', '-1.7976931348623157e308',
		'0.30000000000000004', '9007199254740993', 'NaN', 'Infinity', '-Infinity' ],
	numeric => [
		0, '0.000', '1.0', '1.00', '-1', '0.1', '100000', '1e20', '-99999.99999', $thousand, "-0.$thousand", "$thousand.$thousand",
		'1e131071', '1e-16383', 'NaN', 'Infinity', '-Infinity' ],
	'numeric(5,-2)' => [ 0, 12345, -9999949, '150', 'NaN' ],
	'numeric(3,5)' => [ 0, '0.00123', '-0.00999' ],
	'numeric(1000,500)' => [ 0, '1' . '0' x 499, '0.' . '0' x 499 . '1', "-1.$thousand" ],
	money => [ 0, '0.01', '-0.01', '1234567.89', '92233720368547758.07', '-92233720368547758.08' ],
	text => \@texts,
	varchar => \@texts,
	'varchar(5)' => [ '', ' ', 'abc  ', 'äöüßé', '日本語日本', '😀😀😀😀😀' ],
	bpchar => [ '', ' ', 'a', 'a  ', '日本  ', '\\N' ],
	'char(5)' => [ '', ' ', 'a', 'abcde', 'é', '日本語日本' ],
	name => [ '', 'a', 'with "quotes"', "it's", '\\', 'x' x 63, 'é' x 31 . 'x', '日' x 21 ],
	bytea => [ '', '\\x00', '\\x5c', '\\xdeadbeef00ff', '\\x' . '0a0d5c2e00' x 2000 ],
	date => [ @dates, '5874897-12-31' ],
	time => \@times,
	'time(2)' => [ '00:00', '12:34:56.78', '23:59:59.996' ],
	timetz => [ '00:00+00', '00:00+15:59:59', '24:00-15:59:59', '12:34:56.789+05:30', '23:59:59.999999-00:00:01' ],
	timestamp => \@stamps,
	'timestamp(0)' => [ '1999-12-31 23:59:59.5', '0044-03-15 12:00:00 BC' ],
	timestamptz => [ (map { $_ =~ /inf/ ? $_ : $_ =~ /^(.*) BC$/ ? "$1+00 BC" : "$_+00" } @stamps), '2024-10-27 02:30:00+02', '2024-10-27 02:30:00+01', '1890-01-01 00:00:00+00:53:28' ],
	interval => [
		'0', '1 microsecond', '-1 microsecond', '1 year 2 mons 3 days 04:05:06.789', '-1 year +2 mons -3 days +04:05:06.000001',
		'1 year -2 mons 3 days -04:05:06', '1 mon', '30 days', '720 hours', '1 day -1 second', '100000 hours', '178956970 years 7 mons',
		'-178956970 years -8 mons', '2147483647 days', '-2147483648 days', '2562047788:00:54.775807', '-2562047788:00:54.775807',
		'178956970 years 7 mons 2147483647 days 2562047788:00:54.775807' ],
	'interval year to month' => [ '1 year 2 mons', '-14 mons' ],
	'interval second(3)' => [ '1.2345', '-0.0005' ],
	uuid => [ '00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' ],
	inet => [ '0.0.0.0', '0.0.0.0/0', '192.168.1.5/24', '192.168.1.5', '255.255.255.255', '::', '::/0', '::1', '::ffff:1.2.3.4', '2001:db8::1/64' ],
	cidr => [ '0.0.0.0/0', '10/8', '192.168.1.5/32', '::/0', '2001:db8::/32', '::1/128' ],
	macaddr => [ '00:00:00:00:00:00', '08:00:2b:01:02:03', 'ff:ff:ff:ff:ff:ff' ],
	macaddr8 => [ '00:00:00:00:00:00:00:00', '08:00:2b:01:02:03:04:05', '08:00:2b:ff:fe:01:02:03', 'ff:ff:ff:ff:ff:ff:ff:ff' ],
	bit => [ '0', '1' ],
	'bit(13)' => [ '0' x 13, '1' x 13, '1010101010101' ],
	varbit => [ '', '0', '1', '00000000', '101', '10' x 5000 ],
	'varbit(5)' => [ '', '10101' ],
	json => [
		'null', 'true', '0', '-0', '1e400', '1.10', '""', '{}', '[]', ' { "a" : 1 , "a" : [ 2 , null ] } ', '"\\u0041\\n\\"\\\\\\/"', '"\\u0000"', '"\\ud83d\\ude00"', '"é日本"',
		'[' x 100 . ']' x 100, '{"":{"":""}}' ],
	jsonb => [
		'null', 'true', '0', '-0', '1e400', '1.10', '1.1', '""', '{}', '[]', '{"b": 1, "a": {"c": [2, null, "x"]}}', '"\\u0041\\b\\f\\n\\r\\t\\"\\\\\\/"', '"\\u0001\\u001f\\u007f"',
		'"\\ud83d\\ude00"', '"é日本"', '[' x 100 . ']' x 100, '{"":{"":""}}', '[1, "1", 1.0, true, "true", null, "null"]' ],
	jsonpath => [ '$', 'strict $."a b"[*] ? (@.x > 1 && !(@.y == "q\\"\\u00e9"))', 'lax $.a[last - 1 to last].double()', '$ ? (@ like_regex "^a\\\\d" flag "is")', '$.**{2 to 5}.datetime("HH24:MI")' ],
	xml => [
		'', 'text', '<a/>', '<a b="c&amp;&lt;&quot;">x<!-- c --><![CDATA[<&]]>é日本</a>', 'a<b/>c', '<?xml version="1.0"?><a/>', '<?xml version="1.0" standalone="yes"?><a/>',
		'<?xml version="1.0" encoding="UTF-8"?><a>é</a>', '<?xml version="1.1"?><a/>', '<!DOCTYPE a><a>&#233;</a>', "<a>\n\t</a>", '<?pi x?><a xmlns:n="u"><n:b/></a>' ],
	point => [ '(0,0)', '(-0,1)', '(1e-300,-1e300)', '(NaN,Infinity)', '(-Infinity,0.1)' ],
	line => [ '{1,2,3}', '{-0,1,NaN}', '{0,-1,0.1}' ],
	lseg => [ '[(0,0),(1,1)]', '[(1e300,-1e-300),(-0,NaN)]' ],
	box => [ '(1,1),(0,0)', '(Infinity,1),(-Infinity,-0)' ],
	path => [ '[(0,0)]', '((0,0))', '[(0,0),(1,1),(-0,0.1)]', '((0,0),(1,1),(1e300,Infinity))' ],
	polygon => [ '((0,0))', '((0,0),(1,1),(1,0))', '((-0,0.1),(1e300,-1e-300))' ],
	circle => [ '<(0,0),0>', '<(1.5,-0),2>', '<(NaN,1),Infinity>' ],
	tsvector => [ '', 'a', "'it''s':1A,2B 'b':3C,4 'c\\\\d':16383", "'日本':1 'a b':2 ''''", join(' ', map { "w$_:" . join(',', map { $_ * 7 } 1 .. 200) } 1 .. 30) ],
	tsquery => [ '', 'a', "!a & (b | 'c d':*AB)", 'a <-> b <3> !c', "'it''s':D & '\\\\x'", '!(a & !(b | c)) <0> 日本' ],
	pg_lsn => [ '0/0', '16/B374D848', 'FFFFFFFF/FFFFFFFF' ],
	tid => [ '(0,0)', '(0,1)', '(4294967295,65535)' ],
	xid => [ 0, 3, 4294967295 ],
	cid => [ 0, 4294967295 ],
	xid8 => [ 0, 3, 4294967296, '18446744073709551615' ],
	pg_snapshot => [ '1:1:', '10:20:10,14,15', '9223372036854775806:9223372036854775807:9223372036854775806' ],
	txid_snapshot => [ '1:1:', '10:20:10,14,15', '9223372036854775806:9223372036854775807:9223372036854775806' ],
	int2vector => [ '', '0', '-32768 0 32767' ],
	oidvector => [ '', '0', '0 26 4294967295' ],
	refcursor => [ '', 'cursor one', '<unnamed portal 1>' ],
	regclass => [ '-', 'pg_catalog.pg_class', 'information_schema.tables', '4294967295' ],
	regcollation => [ '-', '"C"', '"POSIX"', '4294967295' ],
	regconfig => [ 'simple', 'pg_catalog.english', '4294967295' ],
	regdictionary => [ 'simple', 'english_stem', '4294967295' ],
	regnamespace => [ '-', 'pg_catalog', 'public', '4294967295' ],
	regoper => [ '0', '||/', '4294967295' ],
	regoperator => [ '0', '+(int4,int4)', '-(NONE,int4)', '4294967295' ],
	regproc => [ '-', 'now', 'pg_catalog.pg_backend_pid', '4294967295' ],
	regprocedure => [ '-', 'abs(int4)', 'now()', 'format(text,"any")', '4294967295' ],
	regrole => [ '-', \'current_user::regrole', 'pg_read_all_data', '4294967295' ],
	regtype => [ '-', 'int4', 'character varying', '"char"', 'numeric[]', 'timestamp with time zone', '4294967295' ],
	aclitem => [ \q{makeaclitem(0, current_user::regrole, 'SELECT', false)}, \q{makeaclitem('pg_monitor'::regrole, current_user::regrole, 'SELECT', true)} ],

	int4range => [ 'empty', '(,)', '[1,2]', '(,5)', '[-2147483648,)', '[0,2147483647)' ],
	int8range => [ 'empty', '(,)', '[1,2]', '[-9223372036854775808,9223372036854775807)' ],
	numrange => [ 'empty', '(,)', '[1.0,1.00]', '(1.5,2.50]', '[-Infinity,NaN]', "[-$thousand,0.$thousand)" ],
	daterange => [ 'empty', '(,)', '[2024-02-28,2024-02-29]', '[-infinity,infinity]', '[4714-11-24 BC,0044-03-15 BC)' ],
	tsrange => [ 'empty', '(,)', '[2024-01-01 00:00,2024-01-01 00:00]', '(-infinity,infinity)', '["0044-03-15 12:00 BC",)' ],
	tstzrange => [ 'empty', '(,)', '[2024-01-01 00:00+02,2024-01-01 00:00+00]', '[-infinity,infinity]' ],
	int4multirange => [ '{}', '{(,)}', '{[1,2),[5,9),[20,)}' ],
	int8multirange => [ '{}', '{(,)}', '{(,-9223372036854775807),[0,1)}' ],
	nummultirange => [ '{}', '{(,)}', '{(1.5,2.50],[3.0,3.0],[5,NaN]}' ],
	datemultirange => [ '{}', '{(,)}', '{[-infinity,0044-03-15 BC),[2000-01-01,infinity]}' ],
	tsmultirange => [ '{}', '{(,)}', '{["0044-03-15 12:00 BC",2000-01-01 00:00],(2001-01-01 00:00,)}' ],
	tstzmultirange => [ '{}', '{(,)}', '{[2000-01-01 00:00+01,2000-01-01 00:00+00),(2001-01-01 00:00+00,infinity]}' ],

	# nobody can write these
	gtsvector => [],
	pg_brin_bloom_summary => [],
	pg_brin_minmax_multi_summary => [],
	pg_dependencies => [],
	pg_mcv_list => [],
	pg_ndistinct => [],
	pg_node_tree => []);

sub type_zoo
{
	my ($version) = @_;
	my @zoo;

	foreach my $type (sort keys %values)
	{
		my @texts = @{ $values{$type} };
		push @texts, 'infinity', '-infinity' if $type eq 'interval' && ($version // 15) >= 17;
		push @zoo, [ $type, map { ref $_ ? $$_ : literal($type, $_) } @texts ];
	}
	# a byte that is no character
	foreach my $animal (@zoo)
	{
		push @$animal, '(-1)::"char"', '(-128)::"char"' if $animal->[0] eq '"char"';
	}
	return @zoo;
}

sub type_name
{
	my ($type) = @_;
	$type =~ s/"//g and return 'quoted_char';
	$type =~ s/\W+/_/g;
	$type =~ s/_$//;
	return $type;
}

1;
