# migrate: move a database into this PostgreSQL server without stopping it.
#
#   make                build with warnings as errors
#   make install        into the server that PG_CONFIG belongs to
#   make check          build, then every test, on private throwaway servers
#   make demo           two minutes: a migration between two throwaway servers

EXTENSION = migrate
EXTVERSION = 0.1
MODULE_big = migrate

SQL_PARTS = $(sort $(wildcard sql/[0-9]*.sql))
UPGRADES = $(wildcard sql/migrate--*--*.sql)
DATA = $(UPGRADES)
DATA_built = migrate--$(EXTVERSION).sql

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))

PG_CPPFLAGS = -I$(srcdir)/src -I$(libpq_srcdir)
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -Wno-cast-function-type \
	-Wno-declaration-after-statement \
	-fvisibility=hidden
SHLIB_LINK_INTERNAL = $(libpq)

EXTRA_CLEAN = migrate--$(EXTVERSION).sql tmp_check

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
# no bitcode: it would need the very clang that the server was built with
override with_llvm = no
include $(PGXS)

migrate--$(EXTVERSION).sql: $(SQL_PARTS)
	{ echo '\echo Use "CREATE EXTENSION migrate CASCADE" to load this file. \quit'; \
	  cat $(SQL_PARTS); } > $@

$(OBJS): src/migrate.h src/compat.h
