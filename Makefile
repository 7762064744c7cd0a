# migrate: move a database into this PostgreSQL server without stopping it.
#
#   make                build with warnings as errors
#   make install        into the server that PG_CONFIG belongs to
#   make check          build, then every test, on private throwaway servers;
#                       make check TESTS="sql/define t/001_harness" for some;
#                       kinds: sql/ specs/ model/ t/
#   make soak           the tests of live capture, for hours: long workloads, large
#                       transactions, many kills
#   make demo           two minutes: a migration between two throwaway servers
#   make bench          races against other tools, into doc/performance.md
#   make matrix         the tests on other PostgreSQL versions, in chroots
#   make indent         lay the C sources out as PostgreSQL does
#   make indent-check   fail when they are not

EXTENSION = migrate
EXTVERSION = 0.1
MODULE_big = migrate

ifndef PG_CONFIG
PG_CONFIG := $(shell test/tools/find_pg_config)
endif
TESTS ?=

# These come without PGXS, which has a "check" that only refuses; and the
# first of them install PostgreSQL where there is none yet.
SCRIPTED = check soak demo bench matrix indent indent-check
.PHONY: $(SCRIPTED)

ifneq (,$(filter $(SCRIPTED),$(MAKECMDGOALS)))

SOURCES = $(sort $(wildcard src/*.[ch] src/*/*.[ch]))

check:
	@test/tools/install_deps $(if $(NO_MODELS),,model)
	@test/tools/check $(TESTS)

soak:
	@test/tools/install_deps
	@MIGRATE_ROUNDS=$${MIGRATE_ROUNDS:-50} MIGRATE_ROUND_WORK=$${MIGRATE_ROUND_WORK:-5000} \
	MIGRATE_LIVE_KILLS=$${MIGRATE_LIVE_KILLS:-300} MIGRATE_POINT_ROUNDS=$${MIGRATE_POINT_ROUNDS:-10} \
	MIGRATE_LAZY_CRASHES=$${MIGRATE_LAZY_CRASHES:-50} MIGRATE_BULK_ROWS=$${MIGRATE_BULK_ROWS:-10000000} \
	MIGRATE_BULK_MB=$${MIGRATE_BULK_MB:-1024} MIGRATE_LIVE_TABLES=$${MIGRATE_LIVE_TABLES:-1000} \
	TAP_TIMEOUT=$${TAP_TIMEOUT:-14400} \
	test/tools/check $(if $(TESTS),$(TESTS),t/090_workload t/091_live_kill t/092_live_odd)

demo:
	@test/tools/install_deps
	@test/demo

bench:
	@test/tools/install_deps bench
	@bench/run $(BENCH)

matrix:
	@test/tools/install_deps matrix
	@test/tools/matrix $(VERSIONS)

indent indent-check:
	@test/tools/install_deps indent
	@test/tools/$@ $(SOURCES)

# any other goal beside one of these
$(filter-out $(SCRIPTED),$(MAKECMDGOALS)):
	@$(MAKE) --no-print-directory $@

else

SQL_PARTS = $(sort $(wildcard sql/[0-9]*.sql))
UPGRADES = $(wildcard sql/migrate--*--*.sql)
DATA = $(UPGRADES)
DATA_built = migrate--$(EXTVERSION).sql

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))
ALL_HEADERS = $(wildcard src/*.h src/*/*.h)

# The server's headers are system headers: warnings are about our code only.
# (Under PGXS they also come with -I, which then counts for nothing.)
PG_CPPFLAGS = -I$(srcdir)/src -isystem $(shell $(PG_CONFIG) --includedir-server) \
	-I$(libpq_srcdir)
# Callbacks have parameters that they do not need; core mixes signed and
# unsigned; we declare near use.
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare \
	-Wno-declaration-after-statement -fvisibility=hidden
SHLIB_LINK_INTERNAL = $(libpq)

EXTRA_CLEAN = migrate--$(EXTVERSION).sql tmp_check .built-with

PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq (,$(PGXS))
$(error no PostgreSQL with its build files found: install the server's development package, or set PG_CONFIG)
endif
# no bitcode: it would need the very clang that the server was built with
override with_llvm = no
include $(PGXS)

migrate--$(EXTVERSION).sql: $(SQL_PARTS) migrate.control
	{ printf '%s\n' '\echo Use "CREATE EXTENSION migrate CASCADE" to load this file. \quit'; \
	  cat $(SQL_PARTS); } > $@

# Any header, other flags or another server: build all anew.
BUILT_WITH := $(shell $(PG_CONFIG) --version) $(PG_CFLAGS) $(COPT)
$(shell [ "$$(cat .built-with 2>/dev/null)" = "$(BUILT_WITH)" ] || echo "$(BUILT_WITH)" > .built-with)
$(OBJS): $(ALL_HEADERS) .built-with

endif
