/*-------------------------------------------------------------------------
 *
 * apply_relation.c
 *	  A table of the stream as a source table of the job.
 *
 * Apply worker, in the transaction of a batch.  The stream describes each
 * table before the first change after a connection or an ALTER.  A table
 * belongs to a source
 *
 *	  by its OID			a leaf of the plan
 *	  by its name			the source itself
 *	  by what it is under	a partition that came later: the source is asked
 *
 * and if to none it is another job's on the same stream, and skipped; the
 * answer holds as long as the worker's session.  A partition that does not
 * exist any more when the source is asked has no rows to be kept: skipped too.
 *
 * Changes of the schema (DESIGN, section 5) are seen by comparing a
 * description with the one before it:
 *
 *	  new column that is not read			event, goes on
 *	  column that is read, not there		generated: null, never sent
 *											there on the source: added after this
 *											change: not known, as unchanged TOAST
 *											else: pause
 *	  column that is read, of another type	declared so meanwhile, or the table
 *											was copied after it: goes on
 *											else: pause
 *	  replica identity without the key		pause, at the first update or delete
 *
 * What is read are the columns of the foreign table, as everywhere.
 *
 * States: nothing here is kept but in memory.  A new worker begins with the
 * descriptions that migrate.stream_relation has from before its place in the
 * spool; so after a pause the same comparison is made again, until
 * migrate_refresh_schema has changed the foreign table.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "extract/extract.h"
#include "load/apply_worker.h"

/* ----------------------------------------------------------------
 * the catalog
 * ----------------------------------------------------------------
 */

/* "xmin:xmax:xip,xip" as pg_snapshot's output */
static ApplySnapshot *
read_snapshot(const char *text)
{
	ApplySnapshot *snapshot = palloc0(sizeof(ApplySnapshot));
	char	   *p;
	int			max = 1;

	snapshot->xmin = strtou64(text, &p, 10);
	if (*p++ != ':')
		elog(ERROR, "not a snapshot: %s", text);
	snapshot->xmax = strtou64(p, &p, 10);
	if (*p++ != ':')
		elog(ERROR, "not a snapshot: %s", text);
	for (const char *c = p; *c; c++)
		max += *c == ',';
	snapshot->xip = palloc(sizeof(uint64) * max);
	while (*p)
	{
		snapshot->xip[snapshot->nxip++] = strtou64(p, &p, 10);
		if (*p == ',')
			p++;
	}
	return snapshot;
}

static XLogRecPtr
lsn_or_0(int row, int col)
{
	char	   *s = migrate_spi_text(row, col);

	return s ? DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(s))) :
		InvalidXLogRecPtr;
}

/*
 * The leaves of a source (0: of all), with the snapshots of those without a
 * key, in the order of sources.  SPI is connected.
 */
static void
query_leaves(ApplyWorker *w, int source_id)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(w->job_id), Int32GetDatum(source_id)};

	migrate_spi_exec("SELECT s.source_id, s.remote_schema, s.remote_table, s.only_parent::int,"
					 " l.relation, l.remote_oid::bigint, c.snapshot, c.source_lsn"
					 " FROM migrate.source_table s"
					 " LEFT JOIN migrate.leaf l USING (source_id)"
					 " LEFT JOIN migrate.chunk c ON c.source_id = s.source_id"
					 "  AND c.leaf_no = l.leaf_no AND c.state = 'done' AND s.key_columns = '{}'"
					 " WHERE s.job_id = $1 AND s.remote_table IS NOT NULL"
					 " AND ($2 = 0 OR s.source_id = $2)"
					 " ORDER BY s.source_id, l.leaf_no, c.chunk_id",
					 2, types, values, NULL, SPI_OK_SELECT);
}

static ApplyLeaf *
take_leaf(uint64 row)
{
	ApplyLeaf  *leaf = palloc0(sizeof(ApplyLeaf));
	char	   *snapshot = migrate_spi_text(row, 6);

	leaf->relation = migrate_spi_text(row, 4);
	leaf->oid = (Oid) migrate_spi_int64(row, 5, 0);
	if (snapshot)
		leaf->snapshot = read_snapshot(snapshot);
	leaf->lsn = lsn_or_0(row, 7);
	return leaf;
}

/* Sources of the job with their leaves, in the session's memory. */
static void
load_sources(ApplyWorker *w)
{
	ApplySource *source = NULL;
	MemoryContext old;

	migrate_spi_begin();
	query_leaves(w, 0);
	old = MemoryContextSwitchTo(w->session);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		int			id = (int) migrate_spi_int64(row, 0, 0);

		if (source == NULL || source->source_id != id)
		{
			source = palloc0(sizeof(ApplySource));
			source->source_id = id;
			source->schema = migrate_spi_text(row, 1);
			source->table = migrate_spi_text(row, 2);
			source->only_parent = migrate_spi_int64(row, 3, 0) != 0;
			w->sources = lappend(w->sources, source);
		}
		if (migrate_spi_text(row, 4))
			source->leaves = lappend(source->leaves, take_leaf(row));
	}
	MemoryContextSwitchTo(old);
	migrate_spi_end();
}

static ApplyRelation *
enter_relation(ApplyWorker *w, Oid oid)
{
	bool		found;
	ApplyRelation *rel = hash_search(w->relations, &oid, HASH_ENTER, &found);

	if (!found)
	{
		memset(rel, 0, sizeof(*rel));
		rel->oid = oid;
	}
	return rel;
}

/* In a transaction, at the begin of a session. */
void
migrate_relations_open(ApplyWorker *w)
{
	HASHCTL		ctl = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(ApplyRelation),
		.hcxt = w->session,
	};
	MemoryContext old;
	List	   *known;
	ListCell   *lc;

	w->sources = NIL;
	w->last_relation = NULL;
	w->relations = hash_create("migrate tables of the stream", 256, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	load_sources(w);
	old = MemoryContextSwitchTo(w->session);
	known = migrate_spool_relations(w->stream->stream_id, w->next_seq);
	foreach(lc, known)
	{
		MigrateRemoteRelation *remote = lfirst(lc);
		ApplyRelation *rel = enter_relation(w, remote->oid);

		rel->remote = rel->accepted = remote;
	}
	MemoryContextSwitchTo(old);
}

/* When every chunk of a source was read, at the earliest. */
static XLogRecPtr
copied_lsn(int source_id)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(source_id);
	XLogRecPtr	lsn;

	migrate_spi_begin();
	migrate_spi_exec("SELECT min(source_lsn) FROM migrate.chunk"
					 " WHERE source_id = $1 AND state = 'done'",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	lsn = lsn_or_0(0, 0);
	migrate_spi_end();
	return lsn;
}

/* The columns of a source. */
static void
load_source(ApplyWorker *w, ApplySource *source)
{
	MemoryContext old;

	if (source->src)
		return;
	old = MemoryContextSwitchTo(w->session);
	source->src = migrate_source_load(source->source_id);
	source->copied_lsn = copied_lsn(source->source_id);
	MemoryContextSwitchTo(old);
}

/* And its mappings. */
void
migrate_source_ready(ApplyWorker *w, ApplySource *source)
{
	MemoryContext old;

	load_source(w, source);
	if (source->applier)
		return;
	old = MemoryContextSwitchTo(w->session);
	source->applier = migrate_applier_open(w->job, source->src);
	MemoryContextSwitchTo(old);
}

/* ----------------------------------------------------------------
 * whose table is it?
 * ----------------------------------------------------------------
 */

static ApplyLeaf *
leaf_of(ApplySource *source, Oid oid)
{
	ListCell   *lc;

	foreach(lc, source->leaves)
	{
		ApplyLeaf  *leaf = lfirst(lc);

		if (leaf->oid == oid ||
			(!OidIsValid(leaf->oid) && list_length(source->leaves) == 1))
			return leaf;
	}
	return NULL;
}

static bool
is_leaf(ApplySource *source, Oid oid)
{
	ApplyLeaf  *leaf = leaf_of(source, oid);

	return leaf && leaf->oid == oid;
}

static bool
has_name(ApplySource *source, const char *schema, const char *table)
{
	return strcmp(source->table, table) == 0 && source->schema &&
		strcmp(source->schema, schema) == 0;
}

/* Sources that the table is a leaf of, or the table itself. */
static List *
sources_by_plan(ApplyWorker *w, MigrateRemoteRelation *remote)
{
	List	   *found = NIL;
	ListCell   *lc;

	foreach(lc, w->sources)
	{
		ApplySource *source = lfirst(lc);

		if (is_leaf(source, remote->oid) ||
			has_name(source, remote->schema, remote->name))
			found = lappend(found, source);
	}
	return found;
}

/* Sources that the source says the table is under. */
static List *
sources_by_tree(ApplyWorker *w, Oid oid)
{
	List	   *found = NIL;
	PGresult   *res;
	ListCell   *lc;

	res = migrate_exec(migrate_apply_connection(w),
					   psprintf("WITH RECURSIVE up (oid) AS (SELECT %u::oid UNION"
								" SELECT i.inhparent FROM up JOIN pg_catalog.pg_inherits i ON i.inhrelid = up.oid)"
								" SELECT n.nspname, c.relname FROM up"
								" JOIN pg_catalog.pg_class c ON c.oid = up.oid AND c.oid <> %u"
								" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace", oid, oid));
	foreach(lc, w->sources)
	{
		ApplySource *source = lfirst(lc);

		for (int row = 0; row < PQntuples(res) && !source->only_parent; row++)
			if (has_name(source, PQgetvalue(res, row, 0), PQgetvalue(res, row, 1)))
			{
				found = lappend(found, source);
				break;
			}
	}
	PQclear(res);
	return found;
}

/* ----------------------------------------------------------------
 * what has changed of it?
 * ----------------------------------------------------------------
 */

static int
column_index(MigrateRemoteRelation *remote, const char *name)
{
	for (int i = 0; remote && i < remote->ncolumns; i++)
		if (strcmp(remote->columns[i].name, name) == 0)
			return i;
	return -1;
}

static char *
table_name(MigrateRemoteRelation *remote)
{
	return psprintf("%s.%s", remote->schema, remote->name);
}

/*
 * A column that is read is not in the description: is it on the source, and
 * generated (the stream has none of these)?
 */
static int
missing_column(ApplyWorker *w, MigrateRemoteRelation *remote, MigrateColumn *col)
{
	char	   *generated = migrate_exec_value(migrate_apply_connection(w),
											   psprintf("SELECT attgenerated FROM pg_catalog.pg_attribute"
														" WHERE attrelid = %u AND attname = %s"
														" AND attnum > 0 AND NOT attisdropped",
														remote->oid,
														quote_literal_cstr(col->remote_name)));

	if (generated == NULL)
		migrate_apply_pause(w, "table %s of the source has no column \"%s\" any more (dropped or renamed);"
							" run migrate_refresh_schema and do what it lists, then migrate_resume",
							table_name(remote), col->remote_name);
	if (col->is_key)
		migrate_apply_pause(w, "column \"%s\" of table %s is of the key, but not in the stream;"
							" run migrate_refresh_schema and do what it lists, then migrate_recopy and migrate_resume",
							col->remote_name, table_name(remote));
	return generated[0] == '\0' ? APPLY_NOT_KNOWN : APPLY_NOT_SENT;
}

/* The name of a type on the source, as refresh compares it. */
static char *
remote_type_name(ApplyWorker *w, MigrateRemoteColumn *col)
{
	if (col->type < FirstGenbkiObjectId)
		return format_type_with_typemod(col->type, col->typmod);
	return migrate_exec_value(migrate_apply_connection(w),
							  psprintf("SELECT pg_catalog.format_type(%u, %d)",
									   col->type, col->typmod));
}

/* A column that is read has another type than before. */
static void
check_type(ApplyWorker *w, ApplySource *source, MigrateRemoteRelation *remote,
		   MigrateColumn *col, MigrateRemoteColumn *now, MigrateRemoteColumn *was)
{
	char	   *name;

	if (w->final_lsn < source->copied_lsn)
		return;
	name = remote_type_name(w, now);
	if (name && strcmp(name, format_type_with_typemod(col->type, col->typmod)) == 0)
		return;
	migrate_apply_pause(w, "column \"%s\" of table %s of the source is %s now, it was %s;"
						" run migrate_refresh_schema and do what it lists, then migrate_resume",
						col->remote_name, table_name(remote), name ? name : "of another type",
						remote_type_name(w, was));
}

/* A column that nothing reads is new: once. */
static void
tell_new_column(ApplyWorker *w, MigrateRemoteRelation *remote, const char *column)
{
	char	   *message = psprintf("%s has a new column on the source that is not read: \"%s\";"
								   " migrate_refresh_schema takes it over",
								   table_name(remote), column);
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(w->job_id), CStringGetTextDatum(message)};
	bool		told;

	migrate_spi_begin();
	migrate_spi_exec("SELECT FROM migrate.event WHERE job_id = $1 AND message = $2 LIMIT 1",
					 2, types, values, NULL, SPI_OK_SELECT);
	told = SPI_processed > 0;
	migrate_spi_end();
	if (!told)
		migrate_event(w->job_id, "info", "drift", "%s", message);
}

static bool
is_read(MigrateSource *src, const char *name)
{
	for (int i = 0; i < src->ncolumns; i++)
		if (strcmp(src->columns[i].remote_name, name) == 0)
			return true;
	return false;
}

/* Why old rows of it cannot be found by our key; NULL: they can. */
static const char *
key_obstacle(MigrateSource *src, MigrateRemoteRelation *remote, int *from)
{
	if (remote->identity == 'f')
		return NULL;
	if (src->nkeys == 0)
		return psprintf("table %s has no key here and not REPLICA IDENTITY FULL on the source;"
						" set that, then run migrate_recopy and migrate_resume",
						table_name(remote));
	for (int k = 0; k < src->nkeys; k++)
		if (!remote->columns[from[src->keys[k]]].is_key)
			return psprintf("the replica identity of table %s on the source does not have column \"%s\", which is of its key;"
							" set another, then run migrate_recopy and migrate_resume",
							table_name(remote), src->columns[src->keys[k]].remote_name);
	return NULL;
}

/* The columns of a source in the messages of a table. */
static void
fill_map(ApplyWorker *w, ApplyRelation *rel, ApplyMap *map, ApplySource *source)
{
	MigrateSource *src;
	MigrateRemoteRelation *remote = rel->remote;

	load_source(w, source);
	src = source->src;
	map->source = source;
	map->leaf = leaf_of(source, rel->oid);
	map->from = palloc(sizeof(int) * Max(src->ncolumns, 1));
	for (int i = 0; i < src->ncolumns; i++)
	{
		MigrateColumn *col = &src->columns[i];
		int			at = column_index(remote, col->remote_name);
		int			before = column_index(rel->accepted, col->remote_name);

		if (at < 0)
			map->from[i] = missing_column(w, remote, col);
		else
		{
			map->from[i] = at;
			if (before >= 0 &&
				(remote->columns[at].type != rel->accepted->columns[before].type ||
				 remote->columns[at].typmod != rel->accepted->columns[before].typmod))
				check_type(w, source, remote, col, &remote->columns[at],
						   &rel->accepted->columns[before]);
		}
	}
	map->no_key = key_obstacle(src, remote, map->from);
	for (int i = 0; rel->accepted && i < remote->ncolumns; i++)
		if (column_index(rel->accepted, remote->columns[i].name) < 0 &&
			!is_read(src, remote->columns[i].name))
			tell_new_column(w, remote, remote->columns[i].name);
}

/* Find the sources of a table, and its columns in them. */
static void
prepare_relation(ApplyWorker *w, ApplyRelation *rel)
{
	MemoryContext old = MemoryContextSwitchTo(w->session);
	ListCell   *lc;
	int			n = 0;

	w->relation = rel->remote->name;
	if (!rel->found)
	{
		rel->sources = sources_by_plan(w, rel->remote);
		if (rel->sources == NIL)
			rel->sources = sources_by_tree(w, rel->oid);
		rel->found = true;
	}
	rel->maps = palloc0(sizeof(ApplyMap) * Max(list_length(rel->sources), 1));
	foreach(lc, rel->sources)
		fill_map(w, rel, &rel->maps[n++], lfirst(lc));
	rel->nmaps = n;
	rel->accepted = rel->remote;
	rel->ready = true;
	MemoryContextSwitchTo(old);
}

/* An 'R' message. */
void
migrate_relation_message(ApplyWorker *w, const char *data, int len)
{
	MemoryContext old = MemoryContextSwitchTo(w->session);
	MigrateRemoteRelation *remote = migrate_message_relation(data, len);
	ApplyRelation *rel = enter_relation(w, remote->oid);

	rel->remote = remote;
	rel->ready = false;
	/* what has been applied was accepted */
	if (w->skip)
		rel->accepted = remote;
	MemoryContextSwitchTo(old);
}

/* The table of a change. */
ApplyRelation *
migrate_relation_of(ApplyWorker *w, Oid oid)
{
	ApplyRelation *rel = w->last_relation;

	if (unlikely(rel == NULL || rel->oid != oid))
	{
		rel = hash_search(w->relations, &oid, HASH_FIND, NULL);
		if (rel == NULL || rel->remote == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("the stream has a change of table %u, which it has not described",
							oid)));
		w->last_relation = rel;
	}
	if (unlikely(!rel->ready))
		prepare_relation(w, rel);
	return rel;
}

/*
 * P16, of a source without a key: has the chunk's snapshot seen the source
 * transaction at hand?  Its id has 32 bits; the snapshot tells the others,
 * being less than half the circle away.
 */
bool
migrate_relation_copied(ApplyWorker *w, ApplyMap *map)
{
	ApplyLeaf  *leaf = map->leaf;
	ApplySnapshot *snapshot;
	uint64		xid;

	if (likely(leaf == NULL || leaf->snapshot == NULL || w->final_lsn >= leaf->lsn))
		return false;
	snapshot = leaf->snapshot;
	xid = snapshot->xmax + (int32) (w->xid - (uint32) snapshot->xmax);
	if (xid < snapshot->xmin)
		return true;
	if (xid >= snapshot->xmax)
		return false;
	for (int i = 0; i < snapshot->nxip; i++)
		if (snapshot->xip[i] == xid)
			return false;
	return true;
}

/* ----------------------------------------------------------------
 * TRUNCATE
 * ----------------------------------------------------------------
 */

/* Relations with rows that are under the source now, as the source says. */
static bool
tree_is_within(ApplyWorker *w, ApplySource *source, List *oids)
{
	PGresult   *res;
	bool		within = true;

	res = migrate_exec(migrate_apply_connection(w),
					   psprintf("WITH RECURSIVE tree (oid) AS (SELECT c.oid FROM pg_catalog.pg_class c"
								" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
								" WHERE n.nspname = %s AND c.relname = %s"
								" UNION SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid)"
								" SELECT c.oid FROM tree JOIN pg_catalog.pg_class c USING (oid) WHERE c.relkind = 'r'",
								quote_literal_cstr(source->schema),
								quote_literal_cstr(source->table)));
	for (int row = 0; row < PQntuples(res) && within; row++)
		within = list_member_oid(oids, atooid(PQgetvalue(res, row, 0)));
	PQclear(res);
	return within;
}

/* Are these tables all that the source's rows are in? */
static bool
is_whole(ApplyWorker *w, ApplySource *source, List *oids)
{
	List	   *planned = NIL;
	bool		known = true;
	HASH_SEQ_STATUS seq;
	ApplyRelation *rel;
	ListCell   *lc;

	/* leaves may have come since (P2) */
	migrate_spi_begin();
	query_leaves(w, source->source_id);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		Oid			oid = (Oid) migrate_spi_int64(row, 5, 0);

		planned = lappend_oid(planned, oid);
		known = known && OidIsValid(oid);
	}
	if (known)
		foreach(lc, planned)
			known = known && list_member_oid(oids, lfirst_oid(lc));
	else
		planned = NIL;
	migrate_spi_end();
	if (known)
	{
		/* and none that the stream alone has told of */
		hash_seq_init(&seq, w->relations);
		while ((rel = hash_seq_search(&seq)) != NULL)
			for (int i = 0; rel->ready && i < rel->nmaps; i++)
				if (rel->maps[i].source == source && !list_member_oid(oids, rel->oid))
					known = false;
		return known;
	}
	return list_length(source->leaves) == 1 &&
		!OidIsValid(((ApplyLeaf *) linitial(source->leaves))->oid) &&
		tree_is_within(w, source, oids);
}

/* The tables of the message that are of one source. */
static List *
truncated_of(List *relations, ApplySource *source)
{
	List	   *oids = NIL;
	ListCell   *lc;

	foreach(lc, relations)
	{
		ApplyRelation *rel = lfirst(lc);

		for (int i = 0; i < rel->nmaps; i++)
			if (rel->maps[i].source == source)
				oids = lappend_oid(oids, rel->oid);
	}
	return oids;
}

static void
truncate_source(ApplyWorker *w, ApplySource *source, List *oids)
{
	ListCell   *lc;

	w->relation = source->src->label;
	if (is_whole(w, source, oids))
	{
		(void) migrate_apply_truncate(source->applier, NULL);
		return;
	}
	foreach(lc, oids)
	{
		ApplyLeaf  *leaf = leaf_of(source, lfirst_oid(lc));
		ApplyRelation *rel = migrate_relation_of(w, lfirst_oid(lc));
		char	   *name = leaf && leaf->oid == rel->oid ? leaf->relation :
		quote_qualified_identifier(rel->remote->schema, rel->remote->name);

		if (!migrate_apply_truncate(source->applier, name))
			migrate_apply_pause(w, "%s, a part of %s, was truncated on the source, and its rows cannot be told from others here;"
								" run migrate_recopy of the targets of %s, then migrate_resume",
								name, source->src->label, source->src->label);
	}
}

static int
by_rank_descending(const ListCell *a, const ListCell *b)
{
	return migrate_applier_rank(((ApplySource *) lfirst(b))->applier) -
		migrate_applier_rank(((ApplySource *) lfirst(a))->applier);
}

/* What came before is written; the job's tables among these, children first. */
void
migrate_relations_truncate(ApplyWorker *w, MigrateMessage *msg)
{
	List	   *relations = NIL;
	List	   *sources = NIL;
	ListCell   *lc;

	for (int i = 0; i < msg->nrelids; i++)
	{
		ApplyRelation *rel = migrate_relation_of(w, msg->relids[i]);

		for (int m = 0; m < rel->nmaps; m++)
		{
			if (migrate_relation_copied(w, &rel->maps[m]))
				continue;
			relations = list_append_unique_ptr(relations, rel);
			sources = list_append_unique_ptr(sources, rel->maps[m].source);
		}
	}
	if (sources == NIL)
		return;
	migrate_collect_flush(w);
	foreach(lc, sources)
		migrate_source_ready(w, lfirst(lc));
	list_sort(sources, by_rank_descending);
	foreach(lc, sources)
		truncate_source(w, lfirst(lc), truncated_of(relations, lfirst(lc)));
	w->changes += list_length(sources);
	w->written = true;
}
