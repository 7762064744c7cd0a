/*-------------------------------------------------------------------------
 *
 * writer_sql.c
 *	  Statements through the executor: for partitioned and foreign tables,
 *	  tables with indexes, triggers, rules or row security, any access method.
 *
 * The mapped rows of a batch are held in a tuplestore, the ephemeral relation
 * migrate_mapped (columns migrate_c1 .., migrate_k1 .., migrate_ord), from
 * which
 *
 *	  while nothing of ours is there:	INSERT all
 *	  else, a row for a row (P11):		UPDATE those that are there, in place,
 *										INSERT the others
 *	  else, where that cannot be:		DELETE those that are there, INSERT all
 *	  a set for a row:					the same
 *
 * What is there is found by the key map, among the rows that "owns" names.
 * Every statement is planned for its own batch, so a plan made for thousands
 * of rows is never run for one (P17).
 *
 * P13: the statements run under session_replication_role = replica if the
 * owner owns the target; the mapping has run before, under origin.
 *
 * Process, locks and crash: as writer.c.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/partcache.h"
#include "utils/queryenvironment.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#define MAPPED_NAME MIGRATE_MAPPED_NAME
#define GONE_NAME MIGRATE_GONE_NAME
#define TAKEN_NAME "migrate_taken"

typedef struct SqlState
{
	Tuplestorestate *store;
	TupleDesc	desc;
	int64		rows;

	/* of sets */
	Tuplestorestate *gone;		/* keys that go; NULL: none */
	int64		gone_rows;
	Tuplestorestate *taken;		/* of the rows in store, what was there */
	int64		taken_rows;
} SqlState;

/* ----------------------------------------------------------------
 * what the target's indexes and partitions ask for
 * ----------------------------------------------------------------
 */

static bool
is_key_column(MigrateMapping *map, AttrNumber attnum)
{
	for (int k = 0; k < map->nkeys; k++)
		if (map->key_attnums[k] == attnum)
			return true;
	return false;
}

static bool
is_mapped_column(MigrateMapping *map, AttrNumber attnum)
{
	for (int i = 0; i < map->ncolumns; i++)
		if (map->attnums[i] == attnum)
			return true;
	return false;
}

/* A partition key with anything outside the key map: an update may move rows. */
static bool
partition_key_outside(MigrateWriter *writer)
{
	PartitionKey key;

	if (writer->rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return false;
	key = RelationGetPartitionKey(writer->rel);
	for (int i = 0; i < key->partnatts; i++)
		if (key->partattrs[i] == 0 || !is_key_column(writer->map, key->partattrs[i]))
			return true;
	return false;
}

/* P11: a unique key that holds key map columns and mapped others. */
static bool
unique_key_beyond(MigrateWriter *writer)
{
	List	   *indexes = RelationGetIndexList(writer->rel);
	ListCell   *lc;
	bool		beyond = false;

	foreach(lc, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_index index;
		bool		inside = false;
		bool		outside = false;

		if (!HeapTupleIsValid(tuple))
			continue;
		index = (Form_pg_index) GETSTRUCT(tuple);
		for (int i = 0; index->indisunique && i < index->indnkeyatts; i++)
		{
			AttrNumber	attnum = index->indkey.values[i];

			if (is_key_column(writer->map, attnum))
				inside = true;
			else if (attnum == 0 || is_mapped_column(writer->map, attnum))
				outside = true;
		}
		ReleaseSysCache(tuple);
		beyond |= inside && outside;
	}
	list_free(indexes);
	return beyond;
}

/* Every column that can be written is mapped: nothing is lost by a delete. */
static bool
all_columns_mapped(MigrateWriter *writer)
{
	TupleDesc	desc = RelationGetDescr(writer->rel);

	for (int a = 1; a <= desc->natts; a++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, a - 1);

		if (!att->attisdropped && att->attgenerated == '\0' &&
			!is_mapped_column(writer->map, a))
			return false;
	}
	return true;
}

/* GENERATED ALWAYS AS IDENTITY: can be inserted, but not updated. */
static bool
is_identity_always(MigrateWriter *writer, AttrNumber attnum)
{
	return TupleDescAttr(RelationGetDescr(writer->rel), attnum - 1)->attidentity ==
		ATTRIBUTE_IDENTITY_ALWAYS;
}

/*
 * Rows that are there are deleted and inserted anew, not updated: always for
 * sets; where an update cannot say it; and where a unique key goes beyond the
 * key map, if that loses no value and fires no foreign key's action.
 */
static bool
must_delete_first(MigrateWriter *writer)
{
	MigrateMapping *map = writer->map;
	int			settable = 0;

	if (map->many)
		return true;
	/* an update moves a row to another partition as well, and loses nothing */
	if (partition_key_outside(writer) && !(writer->sets && !all_columns_mapped(writer)))
		return true;
	for (int i = 0; i < map->ncolumns; i++)
	{
		if (!is_identity_always(writer, map->attnums[i]))
			settable++;
		else if (!is_key_column(map, map->attnums[i]))
			return true;
	}
	return settable == 0 ||
		(writer->replica && all_columns_mapped(writer) && unique_key_beyond(writer));
}

/* ----------------------------------------------------------------
 * the statements
 * ----------------------------------------------------------------
 */

static char *
target_column(MigrateWriter *writer, const char *column)
{
	return psprintf("%s.%s", quote_identifier(RelationGetRelationName(writer->rel)),
					quote_identifier(column));
}

/* "nsp.=" of a key column's type, whatever the search_path */
static char *
equality_operator(MigrateWriter *writer, int k)
{
	Oid			func = writer->keys[k].equal.fn_oid;
	TypeCacheEntry *type = lookup_type_cache(writer->keys[k].type, TYPECACHE_EQ_OPR);
	HeapTuple	tuple;
	Form_pg_operator op;
	char	   *result;

	if (!OidIsValid(func) || !OidIsValid(type->eq_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("key column \"%s\" of %s has type %s, which has no equality operator",
						writer->map->key_columns[k], writer->map->target_name,
						format_type_be(writer->keys[k].type)),
				 errhint("Give the mapping another key.")));
	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(type->eq_opr));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", type->eq_opr);
	op = (Form_pg_operator) GETSTRUCT(tuple);
	result = psprintf("OPERATOR(%s.%s)",
					  quote_identifier(get_namespace_name(op->oprnamespace)),
					  NameStr(op->oprname));
	ReleaseSysCache(tuple);
	return result;
}

/* The target where its rows are looked for: see target.c. */
static char *
rows_of_target(MigrateWriter *writer)
{
	return migrate_target_name(writer->map->target, writer->src->only_parent);
}

/* The row that is there: by the key map, among those that are ours. */
static void
append_found(StringInfo buf, MigrateWriter *writer)
{
	MigrateMapping *map = writer->map;

	for (int k = 0; k < map->nkeys; k++)
		appendStringInfo(buf, "%s%s %s migrate_m.migrate_k%d", k > 0 ? " AND " : "",
						 target_column(writer, map->key_columns[k]),
						 equality_operator(writer, k), k + 1);
	if (map->owns && map->owns[0])
		appendStringInfo(buf, " AND (%s\n)", map->owns);
}

/*
 * With "owns" each statement also tells whether its rows satisfy it: a row of
 * counts (written, owned); without, the statement's own count is enough.
 */
static char *
counted(MigrateWriter *writer, const char *statement)
{
	MigrateMapping *map = writer->map;

	if (map->owns == NULL || map->owns[0] == '\0')
		return pstrdup(statement);
	return psprintf("WITH migrate_w AS (%s RETURNING (%s\n) AS ok)"
					" SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE ok)"
					" FROM migrate_w", statement, map->owns);
}

static char *
update_statement(MigrateWriter *writer)
{
	MigrateMapping *map = writer->map;
	StringInfoData buf;
	bool		first = true;

	initStringInfo(&buf);
	appendStringInfo(&buf, "UPDATE %s SET ", rows_of_target(writer));
	for (int i = 0; i < map->ncolumns; i++)
	{
		/* in the key, where it has the value already */
		if (is_identity_always(writer, map->attnums[i]))
			continue;
		appendStringInfo(&buf, "%s%s = migrate_m.migrate_c%d", first ? "" : ", ",
						 quote_identifier(map->columns[i]), i + 1);
		first = false;
	}
	appendStringInfoString(&buf, " FROM " MAPPED_NAME " AS migrate_m WHERE ");
	append_found(&buf, writer);
	return counted(writer, buf.data);
}

static char *
delete_statement(MigrateWriter *writer, const char *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "DELETE FROM %s USING %s AS migrate_m WHERE ",
					 rows_of_target(writer), keys);
	append_found(&buf, writer);
	return buf.data;
}

static char *
bare_insert(MigrateWriter *writer, const char *where)
{
	MigrateMapping *map = writer->map;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "INSERT INTO %s ", migrate_writer_target(writer));
	for (int i = 0; i < map->ncolumns; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "(",
						 quote_identifier(map->columns[i]));
	appendStringInfo(&buf, "%s OVERRIDING SYSTEM VALUE SELECT ",
					 map->ncolumns > 0 ? ")" : "");
	for (int i = 0; i < map->ncolumns; i++)
		appendStringInfo(&buf, "%smigrate_m.migrate_c%d", i > 0 ? ", " : "", i + 1);
	appendStringInfoString(&buf, " FROM " MAPPED_NAME " AS migrate_m");
	appendStringInfoString(&buf, where);
	return buf.data;
}

static char *
insert_statement_where(MigrateWriter *writer, const char *where)
{
	return counted(writer, bare_insert(writer, where));
}

/* Insert all, without counting; for writer_back.c. */
char *
migrate_writer_sql_insert(MigrateWriter *writer)
{
	return bare_insert(writer, "");
}

/* Columns of the rows that have the keys of such a relation. */
char *
migrate_writer_sql_find(MigrateWriter *writer, const char *columns, const char *keys)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT %s FROM %s, %s AS migrate_m WHERE ",
					 columns, rows_of_target(writer), keys);
	append_found(&buf, writer);
	return buf.data;
}

/* Insert all, or only rows whose key is not there. */
static char *
insert_statement(MigrateWriter *writer, bool only_new)
{
	StringInfoData where;

	initStringInfo(&where);
	if (only_new)
	{
		appendStringInfo(&where, " WHERE NOT EXISTS (SELECT FROM %s WHERE ",
						 rows_of_target(writer));
		append_found(&where, writer);
		appendStringInfoChar(&where, ')');
	}
	return insert_statement_where(writer, where.data);
}

/* Names that no column of a target has: of mapped columns, then of keys. */
static TupleDesc
named_desc(TupleDesc from, int ncolumns)
{
	TupleDesc	desc = CreateTupleDescCopy(from);

	for (int i = 0; i < desc->natts - 1; i++)
		namestrcpy(&TupleDescAttr(desc, i)->attname,
				   i < ncolumns ? psprintf("migrate_c%d", i + 1) :
				   psprintf("migrate_k%d", i - ncolumns + 1));
	namestrcpy(&TupleDescAttr(desc, desc->natts - 1)->attname, MIGRATE_ORDINAL);
	return desc;
}

/*
 * For a set that is written anew: what the rows that are taken out have in
 * columns that are not mapped, and how it comes back.
 */
static void
open_taken(MigrateWriter *writer)
{
	MigrateMapping *map = writer->map;
	MigrateWriterSql *sql = &writer->sql;
	TupleDesc	desc = RelationGetDescr(writer->rel);
	StringInfoData take;
	StringInfoData columns;
	StringInfoData values;
	int			n = 0;

	initStringInfo(&take);
	initStringInfo(&columns);
	initStringInfo(&values);
	sql->taken = CreateTemplateTupleDesc(desc->natts + 1);
	for (int i = 0; i < map->ncolumns; i++)
	{
		appendStringInfo(&columns, "%s, ", quote_identifier(map->columns[i]));
		appendStringInfo(&values, "migrate_m.migrate_c%d, ", i + 1);
	}
	for (int a = 1; a <= desc->natts; a++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, a - 1);

		if (att->attisdropped || att->attgenerated != '\0' || is_mapped_column(map, a))
			continue;
		n++;
		TupleDescCopyEntry(sql->taken, n, desc, a);
		namestrcpy(&TupleDescAttr(sql->taken, n - 1)->attname, psprintf("migrate_t%d", n));
		appendStringInfo(&take, "%s, ", target_column(writer, NameStr(att->attname)));
		appendStringInfo(&columns, "%s%s", n > 1 ? ", " : "",
						 quote_identifier(NameStr(att->attname)));
		appendStringInfo(&values, "%smigrate_t.migrate_t%d", n > 1 ? ", " : "", n);
	}
	TupleDescInitEntry(sql->taken, n + 1, MIGRATE_ORDINAL, INT8OID, -1, 0);
	sql->taken->natts = n + 1;
	appendStringInfo(&take, "migrate_m." MIGRATE_ORDINAL " FROM %s, " GONE_NAME
					 " AS migrate_m WHERE ", rows_of_target(writer));
	append_found(&take, writer);
	sql->take = psprintf("SELECT %s", take.data);
	sql->put_back = counted(writer,
							psprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM "
									 MAPPED_NAME " AS migrate_m JOIN " TAKEN_NAME
									 " AS migrate_t USING (" MIGRATE_ORDINAL ")",
									 migrate_writer_target(writer), columns.data, values.data));
	sql->insert_untaken = insert_statement_where(writer,
												 " WHERE NOT EXISTS (SELECT FROM " TAKEN_NAME
												 " AS migrate_t WHERE migrate_t." MIGRATE_ORDINAL
												 " = migrate_m." MIGRATE_ORDINAL ")");
}

void
migrate_writer_sql_open(MigrateWriter *writer)
{
	MigrateWriterSql *sql = &writer->sql;

	sql->mapped = named_desc(writer->map->outdesc, writer->map->ncolumns);
	sql->insert = insert_statement(writer, false);
	if (writer->map->nkeys == 0)
		return;
	if (must_delete_first(writer))
		sql->delete = delete_statement(writer, MAPPED_NAME);
	else
	{
		sql->update = update_statement(writer);
		sql->insert_new = insert_statement(writer, true);
	}
	if (!writer->sets)
		return;
	writer->served = migrate_index_serves(writer);
	sql->remove = delete_statement(writer, GONE_NAME);
	sql->gone = named_desc(writer->map->keysdesc, 0);
	if (!writer->map->many && !all_columns_mapped(writer))
		open_taken(writer);
}

/* ----------------------------------------------------------------
 * an attempt
 * ----------------------------------------------------------------
 */
static void
sql_begin(MigrateWriter *writer)
{
	SqlState   *state = palloc0(sizeof(SqlState));

	writer->state = state;
	state->store = tuplestore_begin_heap(false, false, work_mem);
	state->desc = writer->sql.mapped;
	if (writer->verify)
		migrate_back_begin(writer, state->store);
}

/* What the row of an ordinal had in columns that are not mapped. */
static void
put_taken(MigrateWriter *writer, int64 ord)
{
	SqlState   *state = writer->state;
	TupleDesc	desc = writer->sql.taken;
	HeapTuple	tuple = writer->taken[writer->ids[ord]];
	Datum	   *values;
	bool	   *nulls;

	if (state->taken == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(writer->attempt);

		state->taken = tuplestore_begin_heap(false, false, work_mem);
		MemoryContextSwitchTo(old);
	}
	if (tuple == NULL)
		return;
	values = palloc(sizeof(Datum) * desc->natts);
	nulls = palloc(sizeof(bool) * desc->natts);
	heap_deform_tuple(tuple, desc, values, nulls);
	values[desc->natts - 1] = Int64GetDatum(ord);
	tuplestore_putvalues(state->taken, desc, values, nulls);
	state->taken_rows++;
	pfree(values);
	pfree(nulls);
}

static void
sql_put(MigrateWriter *writer, TupleTableSlot *slot)
{
	SqlState   *state = writer->state;

	tuplestore_puttupleslot(state->store, slot);
	state->rows++;
	if (writer->verify)
		migrate_back_given(writer, slot);
	if (writer->anew && writer->sql.take)
		put_taken(writer, DatumGetInt64(slot->tts_values[slot->tts_tupleDescriptor->natts - 1]));
}

static void
sql_remove(MigrateWriter *writer, TupleTableSlot *keys)
{
	SqlState   *state = writer->state;

	if (state->gone == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(writer->attempt);

		state->gone = tuplestore_begin_heap(false, false, work_mem);
		MemoryContextSwitchTo(old);
	}
	tuplestore_puttupleslot(state->gone, keys);
	state->gone_rows++;
}

/* Rows that are visible to statements of this SPI level. */
static void
register_rows(const char *name, TupleDesc desc, Tuplestorestate *store, int64 rows)
{
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));
	int			rc;

	enr->md.name = pstrdup(name);
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = desc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = rows;
	enr->reldata = store;
	rc = SPI_register_relation(enr);
	if (rc != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register mapped rows: %s", SPI_result_code_string(rc));
}

static void
check_owned(MigrateWriter *writer, int64 written, int64 owned)
{
	if (owned != written)
		ereport(ERROR,
				(errcode(ERRCODE_WITH_CHECK_OPTION_VIOLATION),
				 errmsg("row does not satisfy \"owns\" of the mapping to %s",
						writer->map->target_name),
				 errdetail("The predicate is %s.", writer->map->owns)));
}

/*
 * Run a statement, give the rows that it wrote; each must be ours.
 */
static int64
run_statement(MigrateWriter *writer, const char *sql)
{
	int			rc = SPI_execute(sql, false, 0);
	int64		written;

	if (rc < 0)
		elog(ERROR, "statement gave %s: %s", SPI_result_code_string(rc), sql);
	if (rc != SPI_OK_SELECT)
		return SPI_processed;
	written = migrate_spi_int64(0, 0, 0);
	check_owned(writer, written, migrate_spi_int64(0, 1, 0));
	SPI_freetuptable(SPI_tuptable);
	return written;
}

/* The same for the insert of rows that are read back by their places. */
static int64
run_insert_places(MigrateWriter *writer)
{
	int64		owned;
	int64		written = migrate_back_insert(writer, &owned);

	check_owned(writer, written, owned);
	return written;
}

/*
 * Each mapped row must have become one target row: a trigger or rule that
 * drops it, or a key that finds two rows, is told and not passed over.
 */
static void
check_written(MigrateWriter *writer, int64 written)
{
	SqlState   *state = writer->state;

	if (written < state->rows)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
				 errmsg("row for %s was suppressed by a trigger or rule of the target",
						writer->map->target_name),
				 errdetail("%lld rows were given, %lld were written.",
						   (long long) state->rows, (long long) written)));
	if (written > state->rows)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("key map finds more than one row of %s for a source row",
						writer->map->target_name),
				 errdetail("%lld rows were given, %lld were written.",
						   (long long) state->rows, (long long) written),
				 errhint("The key must be unique in the target.")));
}

/*
 * P17: a set's statement finds each row by the index.  Statistics of a table
 * that was just filled may say that it is empty, and the cheapest plan then
 * reads all of it for a row; no other plan is left where an index serves.
 */
static void
plan_for_sets(MigrateWriter *writer)
{
	static const char *const off[] = {"enable_seqscan", "enable_hashjoin", "enable_mergejoin"};

	(void) set_config_option("jit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	for (int i = 0; writer->served && i < lengthof(off); i++)
		(void) set_config_option(off[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
}

/* Keep what rows that go have in columns that are not mapped. */
static void
take_rows(MigrateWriter *writer)
{
	MemoryContext mcxt = GetMemoryChunkContext(writer->taken);
	int			last = writer->sql.taken->natts;

	if (SPI_execute(writer->sql.take, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "rows could not be taken: %s", writer->sql.take);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		int64		ord = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
													  last, &isnull));
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		writer->taken[writer->ids[ord]] = heap_copytuple(SPI_tuptable->vals[i]);
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
}

static void
remove_rows(MigrateWriter *writer)
{
	SqlState   *state = writer->state;

	SPI_connect();
	register_rows(GONE_NAME, writer->sql.gone, state->gone, state->gone_rows);
	if (writer->taken && writer->sql.take)
		take_rows(writer);
	writer->removed += run_statement(writer, writer->sql.remove);
	SPI_finish();
}

/* A set written anew; SPI is connected, the mapped rows are registered. */
static int64
write_back(MigrateWriter *writer)
{
	SqlState   *state = writer->state;

	if (writer->sql.take == NULL)
		return run_statement(writer, writer->sql.insert);
	register_rows(TAKEN_NAME, writer->sql.taken, state->taken, state->taken_rows);
	return run_statement(writer, writer->sql.put_back) +
		run_statement(writer, writer->sql.insert_untaken);
}

/* The mapped rows; SPI is connected, they are registered. */
static int64
write_rows(MigrateWriter *writer)
{
	MigrateWriterSql *sql = &writer->sql;

	if (writer->anew)
		return write_back(writer);
	if (writer->verify && writer->back->by_place)
		return run_insert_places(writer);
	if (writer->insert_only)
		return run_statement(writer, sql->insert);
	if (sql->update)
		return run_statement(writer, sql->update) +
			run_statement(writer, sql->insert_new);
	(void) run_statement(writer, sql->delete);
	return run_statement(writer, sql->insert);
}

/* Read back what was written and removed; SPI is connected. */
static void
read_back(MigrateWriter *writer)
{
	SqlState   *state = writer->state;

	if (state->gone_rows > 0)
		register_rows(GONE_NAME, writer->sql.gone, state->gone, state->gone_rows);
	migrate_back_check(writer, state->rows > 0, state->gone_rows > 0);
}

static int64
sql_finish(MigrateWriter *writer)
{
	SqlState   *state = writer->state;
	int			nestlevel = NewGUCNestLevel();
	int64		written = 0;

	(void) set_config_option("search_path", writer->map->search_path, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	/* P13: around the write only; the mapping ran under origin */
	if (writer->replica)
		(void) set_config_option("session_replication_role", "replica", PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (writer->sets)
		plan_for_sets(writer);
	if (state->gone_rows > 0)
		remove_rows(writer);
	if (state->rows > 0 || writer->verify)
		SPI_connect();
	if (state->rows > 0)
	{
		register_rows(MAPPED_NAME, state->desc, state->store, state->rows);
		written = write_rows(writer);
	}
	check_written(writer, written);
	if (writer->verify)
		read_back(writer);
	if (state->rows > 0 || writer->verify)
		SPI_finish();
	AtEOXact_GUC(true, nestlevel);
	tuplestore_end(state->store);
	if (state->gone)
		tuplestore_end(state->gone);
	return written;
}

const MigrateWriterWay migrate_writer_sql = {
	.name = "statements",
	.begin = sql_begin,
	.put = sql_put,
	.remove = sql_remove,
	.finish = sql_finish,
};
