
# Copyright (c) 2026, the migrate authors; PostgreSQL License

# 111_cutover_writers with the way back by triggers, which may be had where
# wal_level is logical, too.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use MigrateTest;

$ENV{MIGRATE_REVERSE} = 'trigger';
$ENV{MIGRATE_CYCLES} ||= 4;
do "$FindBin::RealBin/111_cutover_writers.pl" or die $@ || $!;
