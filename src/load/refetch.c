/*-------------------------------------------------------------------------
 *
 * refetch.c
 *	  Source rows read again, one or a few, through the foreign table.
 *
 * The foreign table is what every wrapper has, and postgres_fdw sends a
 * comparison of a plain column with a literal to the source, where the key's
 * index serves it.  Literals and not parameters: a text that becomes a
 * timestamptz by a parameter is computed here, row by row.
 *
 * A foreign scan cannot leave out what inherits from its table.  A source that
 * is read without that (only_parent) is therefore read by COPY: into an
 * ephemeral relation, as a whole, where a query is to be run on it.
 *
 * Runs in the caller's session (replay, dry run) or the job worker (keys), in
 * its transaction.  Keeps no state.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "refetch.h"

/* of ephemeral relations in this process */
static int	refetch_serial = 0;

/* A relation's name, quoted and qualified. */
char *
refetch_relation(Oid relid)
{
	char	   *name = get_rel_name(relid);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist any more", relid)));
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  name);
}

/* A type's name for a cast, qualified. */
char *
refetch_type(Oid type, int32 typmod)
{
	return format_type_extended(type, typmod,
								FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

/*
 * The equality operator of a type, OPERATOR(schema.=), whatever search_path
 * the query is read under.
 */
char *
refetch_equals(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR);
	HeapTuple	tup;
	Form_pg_operator op;
	char	   *result;

	if (!OidIsValid(entry->eq_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("type %s of a key column has no equality operator",
						format_type_be(type))));
	tup = SearchSysCache1(OPEROID, ObjectIdGetDatum(entry->eq_opr));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for operator %u", entry->eq_opr);
	op = (Form_pg_operator) GETSTRUCT(tup);
	result = psprintf("OPERATOR(%s.%s)",
					  quote_identifier(get_namespace_name(op->oprnamespace)),
					  NameStr(op->oprname));
	ReleaseSysCache(tup);
	return result;
}

/*
 * The source's columns in their order, each with a prefix (an alias and a
 * period, or empty).  NULL stands in for no columns.
 */
char *
refetch_column_list(MigrateSource *src, const char *prefix)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < src->ncolumns; i++)
		appendStringInfo(&buf, "%s%s%s", i > 0 ? ", " : "", prefix,
						 quote_identifier(src->columns[i].name));
	if (src->ncolumns == 0)
		appendStringInfoString(&buf, "NULL");
	return buf.data;
}

/* Replace the one occurrence of a marker. */
static char *
replace_marker(const char *query, const char *marker, const char *by)
{
	const char *at = strstr(query, marker);

	if (at == NULL)
		elog(ERROR, "mapping query has no \"%s\": %s", marker, query);
	return psprintf("%.*s%s%s", (int) (at - query), query, by, at + strlen(marker));
}

/* All rows of the source (max_rows at most, 0: any number), by COPY. */
static Tuplestorestate *
read_rows(MigrateJob *job, MigrateSource *src, int64 max_rows, int64 *nrows)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	MigrateConn *conn = migrate_connect(src->server, job->owner, job->name, "refetch",
										job->connect_timeout_s);
	MigrateSourceTxn txn;
	MigrateReader *reader;
	int			n = Max(src->ncolumns, 1);
	Datum	   *values = palloc(sizeof(Datum) * n);
	bool	   *nulls = palloc(sizeof(bool) * n);
	int64		bytes;

	*nrows = 0;
	migrate_source_begin(conn, src, NULL, &txn);
	reader = migrate_reader_open(conn, src, NULL, job->fetch_size);
	while ((max_rows == 0 || *nrows < max_rows) &&
		   migrate_reader_next(reader, values, nulls, &bytes))
	{
		tuplestore_putvalues(store, src->rowdesc, values, nulls);
		(*nrows)++;
	}
	if (max_rows > 0 && *nrows == max_rows)
		migrate_reader_abort(reader);
	else
		migrate_reader_close(reader);
	migrate_source_end(conn);
	migrate_disconnect(conn);
	return store;
}

/*
 * The foreign table's name, or of a source that is read without what inherits
 * from it, that of an ephemeral relation with its rows.  They are read once
 * for each SPI level, and live as long as src.
 */
char *
refetch_source(MigrateJob *job, MigrateSource *src, int64 max_rows)
{
	EphemeralNamedRelation enr;
	MemoryContext old;
	int64		nrows;
	int			rc;

	if (!src->only_parent)
		return refetch_relation(src->foreign_table);
	if (src->refetched)
		return src->refetched;
	old = MemoryContextSwitchTo(GetMemoryChunkContext(src));
	enr = palloc0(sizeof(EphemeralNamedRelationData));
	enr->md.name = psprintf("migrate_source_%d_%d", src->source_id, refetch_serial++);
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = src->rowdesc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->reldata = read_rows(job, src, max_rows, &nrows);
	enr->md.enrtuples = nrows;
	src->refetched = enr->md.name;
	MemoryContextSwitchTo(old);
	rc = SPI_register_relation(enr);
	if (rc != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register source rows: %s", SPI_result_code_string(rc));
	return src->refetched;
}

/*
 * The mapping's query over the source's rows: target columns by their names,
 * and the source row's columns as migrate_s1, migrate_s2, ...  To be planned
 * under the mapping's search_path.
 */
char *
refetch_mapped_query(MigrateJob *job, MigrateMapping *map, MigrateSource *src)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	for (int i = 0; i < src->ncolumns; i++)
		appendStringInfo(&buf, "source.%s AS migrate_s%d, ",
						 quote_identifier(src->columns[i].name), i + 1);
	return replace_marker(replace_marker(map->query, "SELECT /*migrate*/ ", buf.data),
						  "FROM /*migrate*/ source",
						  psprintf("FROM %s AS source", refetch_source(job, src, 0)));
}

/* The list migrate_s1, migrate_s2, ... of the above. */
char *
refetch_mapped_row(MigrateSource *src)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < src->ncolumns; i++)
		appendStringInfo(&buf, "%sq.migrate_s%d", i > 0 ? ", " : "", i + 1);
	if (src->ncolumns == 0)
		appendStringInfoString(&buf, "NULL");
	return buf.data;
}

/*
 * Add row "row" of the last SPI result, from column "first" on, to a batch.
 */
void
refetch_add(MigrateBatch *batch, int64 row, int first)
{
	int			n = batch->src->ncolumns;
	Datum	   *values = palloc(sizeof(Datum) * Max(n, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(n, 1));

	for (int i = 0; i < n; i++)
		values[i] = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
								  first + i + 1, &nulls[i]);
	migrate_batch_add(batch, values, nulls, SPI_tuptable->vals[row]->t_len);
	pfree(values);
	pfree(nulls);
}

/*
 * Run a query on the foreign table (or a stored row) and add all its rows.
 */
static void
fetch_into(MigrateBatch *batch, const char *sql, bool stored)
{
	int			level = migrate_input_settings(stored);

	/* not read only: a snapshot of now, for foreign data wrappers that care */
	if (SPI_execute(sql, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "reading source rows failed: %s", sql);
	for (int64 i = 0; i < SPI_processed; i++)
		refetch_add(batch, i, 0);
	SPI_freetuptable(SPI_tuptable);
	migrate_input_settings_end(level);
}

/* The value of a key column in a key's jsonb text; NULL for null. */
char *
refetch_key_value(const char *key, const char *column)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(key), CStringGetTextDatum(column)};
	char	   *value;

	migrate_spi_exec("SELECT $1::jsonb ->> $2", 2, types, values, NULL, SPI_OK_SELECT);
	value = migrate_spi_text(0, 0);
	SPI_freetuptable(SPI_tuptable);
	return value;
}

void
refetch_by_key(MigrateSource *src, const char *key, MigrateBatch *batch)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s FROM %s WHERE ", refetch_column_list(src, ""),
					 refetch_relation(src->foreign_table));
	for (int i = 0; i < src->nkeys; i++)
	{
		MigrateColumn *col = &src->columns[src->keys[i]];
		char	   *value = refetch_key_value(key, col->name);

		appendStringInfo(&sql, "%s%s", i > 0 ? " AND " : "",
						 quote_identifier(col->name));
		if (value)
			appendStringInfo(&sql, " %s %s::%s", refetch_equals(col->type),
							 quote_literal_cstr(value), refetch_type(col->type, -1));
		else
			appendStringInfoString(&sql, " IS NULL");
	}
	fetch_into(batch, sql.data, false);
}

void
refetch_stored(MigrateSource *src, const char *row, MigrateBatch *batch)
{
	fetch_into(batch,
			   psprintf("SELECT %s FROM jsonb_populate_record(NULL::%s, %s::jsonb) AS r",
						refetch_column_list(src, "r."),
						refetch_relation(src->foreign_table),
						quote_literal_cstr(row)), true);
}

void
refetch_wait_durable(MigrateJob *job, MigrateSource *src)
{
	MigrateSourceTxn txn = {0};
	MigrateConn *conn;

	if (!migrate_server_is_postgres(src->server))
		return;
	/* an error closes the connection with its memory context */
	conn = migrate_connect(src->server, job->owner, job->name, "replay",
						   job->connect_timeout_s);
	migrate_source_wait_durable(conn, &txn);
	migrate_disconnect(conn);
}

/*
 * The newest dead letter of a mapping that belongs to no chunk: the one that
 * this transaction just made by migrate_load_batch with chunk_id 0.  Others'
 * are never seen: replay takes its own away before it commits, and those of
 * building keys have their own stage.
 */
bool
refetch_newest_fault(int mapping_id, RefetchFault *fault)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(mapping_id)};

	migrate_spi_exec("SELECT d.id, d.sqlstate, d.message FROM migrate.dead_letter d"
					 " WHERE d.mapping_id = $1 AND d.state = 'open'"
					 " AND coalesce(d.chunk_id, 0) = 0 AND d.stage <> 'index'"
					 " ORDER BY d.id DESC LIMIT 1",
					 1, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed == 0)
		return false;
	fault->id = migrate_spi_int64(0, 0, 0);
	fault->sqlstate = migrate_spi_text(0, 1);
	fault->message = migrate_spi_text(0, 2);
	SPI_freetuptable(SPI_tuptable);
	return true;
}
