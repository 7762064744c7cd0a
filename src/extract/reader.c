/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  Rows of a range, whichever way they come.
 *
 * Runs in loaders, validation and dry runs, within one local transaction: a
 * reader, its memory and its hold on the foreign table belong to the whole
 * transaction, not to the subtransaction or SPI level in which it happens to
 * be called, so that it can be used between others' levels and given up after
 * an error in one of them.  Core's COPY checks neither privileges nor
 * policies, so the privilege is checked here.
 *
 * Values come as text that does not depend on the source's settings, and are
 * read under settings that do not depend on this database's or session's (P7).
 *
 * A crash leaves nothing: the source's transaction ends with the connection.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"
#include "utils/xml.h"

/* ----------------------------------------------------------------
 * settings that input functions obey
 * ----------------------------------------------------------------
 */

/* Does a value of the type contain money, at whatever depth? */
bool
migrate_type_contains_money(Oid type)
{
	Oid			base = getBaseType(type);
	Oid			element = get_element_type(base);
	bool		found = base == MONEYOID;

	check_stack_depth();
	if (OidIsValid(element))
		return migrate_type_contains_money(element);
	if (type_is_range(base))
		return migrate_type_contains_money(get_range_subtype(base));
	if (type_is_multirange(base))
		return migrate_type_contains_money(get_multirange_range(base));
	if (get_typtype(base) == TYPTYPE_COMPOSITE)
	{
		TupleDesc	desc = lookup_rowtype_tupdesc(base, -1);

		for (int i = 0; i < desc->natts && !found; i++)
			found = !TupleDescAttr(desc, i)->attisdropped &&
				migrate_type_contains_money(TupleDescAttr(desc, i)->atttypid);
		ReleaseTupleDesc(desc);
	}
	return found;
}

/*
 * The settings that the source's text is written for, which connection.c sets
 * there; in force until AtEOXact_GUC(true, <result>).  0: they are already,
 * which costs nothing.  A wrapper writes money as the source's own lc_monetary
 * has it: then ours is left as it is.
 */
int
migrate_input_settings(bool money)
{
	int			level;

	if (Array_nulls && xmloption == XMLOPTION_CONTENT &&
		(!money || strcmp(GetConfigOption("lc_monetary", false, false), "C") == 0))
		return 0;
	level = NewGUCNestLevel();
	(void) set_config_option("array_nulls", "on", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("xmloption", "content", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (money)
		(void) set_config_option("lc_monetary", "C", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

void
migrate_input_settings_end(int level)
{
	if (level > 0)
		AtEOXact_GUC(true, level);
}

/* ----------------------------------------------------------------
 * open, next, close
 * ----------------------------------------------------------------
 */

MigrateReader *
migrate_reader_open(MigrateConn *conn, MigrateSource *src, MigrateRange *range,
					int fetch_size)
{
	AclResult	acl = pg_class_aclcheck(src->foreign_table, GetUserId(), ACL_SELECT);
	MemoryContext mcxt;
	MemoryContext oldcxt;
	MigrateReader *reader;

	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FOREIGN_TABLE, get_rel_name(src->foreign_table));

	mcxt = AllocSetContextCreate(TopTransactionContext, "migrate reader",
								 ALLOCSET_DEFAULT_SIZES);
	oldcxt = MemoryContextSwitchTo(mcxt);
	reader = palloc0(sizeof(MigrateReader));
	reader->mcxt = mcxt;
	reader->row_mcxt = AllocSetContextCreate(mcxt, "migrate reader row",
											 ALLOCSET_DEFAULT_SIZES);
	reader->conn = conn;
	reader->src = src;
	reader->range = range;
	reader->fetch_size = Max(fetch_size, 1);
	for (int i = 0; i < src->ncolumns && src->transport == 'c' && !reader->money; i++)
		reader->money = migrate_type_contains_money(src->columns[i].type);
	PG_TRY();
	{
		if (src->transport == 'c')
			migrate_copy_reader_open(reader);
		else
			migrate_fdw_reader_open(reader);
	}
	PG_CATCH();
	{
		/* the caller gets no reader that it could abort */
		MemoryContextSwitchTo(oldcxt);
		migrate_reader_abort(reader);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcxt);
	return reader;
}

bool
migrate_reader_next(MigrateReader *reader, Datum *values, bool *nulls, int64 *bytes)
{
	MemoryContext oldcxt;
	int			level;

	*bytes = 0;
	if (reader->done)
		return false;
	MemoryContextReset(reader->row_mcxt);
	oldcxt = MemoryContextSwitchTo(reader->row_mcxt);
	level = migrate_input_settings(reader->money);
	if (reader->copy)
		reader->done = !migrate_copy_reader_next(reader, values, nulls, bytes);
	else
		reader->done = !migrate_fdw_reader_next(reader, values, nulls, bytes);
	migrate_input_settings_end(level);
	MemoryContextSwitchTo(oldcxt);
	return !reader->done;
}

/*
 * Can an error be about a value that is read, although elsewhere it would tell
 * of a wrong definition?  The relation, type, role or function that a reg* value
 * or an aclitem names is not here, or nobody may write the type.  What
 * postgres_fdw's own functions throw tells of the source.
 */
bool
migrate_error_can_be_of_value(ErrorData *edata)
{
	int			category = ERRCODE_TO_CATEGORY(edata->sqlerrcode);

	if (edata->funcname && strncmp(edata->funcname, "pgfdw_", 6) == 0)
		return false;
	return category == ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_UNDEFINED_SCHEMA) ||
		category == ERRCODE_FEATURE_NOT_SUPPORTED;
}

/* Within a scan only postgres_fdw's errors can be told apart. */
bool
migrate_reader_error_is_of_row(MigrateReader *reader, ErrorData *edata)
{
	if (migrate_error_is_of_row(edata->sqlerrcode))
		return true;
	return reader && reader->converting &&
		(reader->copy || migrate_server_is_postgres(reader->src->server)) &&
		migrate_error_can_be_of_value(edata);
}

/* The end of a reader that gave no error, at its end or before. */
void
migrate_reader_close(MigrateReader *reader)
{
	if (!reader->done)
	{
		migrate_reader_abort(reader);
		return;
	}
	if (reader->copy)
		migrate_copy_reader_close(reader, false);
	else
		migrate_fdw_reader_close(reader, false);
	MemoryContextDelete(reader->mcxt);
}

/*
 * The end of any reader.  On the source what it began is cancelled and rolled
 * back to where it began; a connection that does not answer is closed.
 */
void
migrate_reader_abort(MigrateReader *reader)
{
	if (reader->copy)
		migrate_copy_reader_close(reader, true);
	if (reader->fdw)
		migrate_fdw_reader_close(reader, true);
	MemoryContextDelete(reader->mcxt);
}
