/*-------------------------------------------------------------------------
 *
 * drift.c
 *	  What the source changes without saying so (P2): ATTACH, DETACH, DROP,
 *	  columns under other names or types.
 *
 * The job worker watches while the job copies, once more before it leaves that
 * state; migrate_validate looks before it reads; a loader that finds its
 * table changed under a chunk tells here.  The tables are compared with what
 * was noted when they were planned (migrate.leaf):
 *
 *	  as planned										-> nothing
 *	  columns that are not read came or went			-> told, noted
 *	  a partition has another name						-> told, noted
 *	  a partition came, empty, or all of it in the stream	-> told, planned too
 *	  rewritten, chunks left to read					-> the chunk finds it (P1)
 *	  rewritten, all read								-> noted; but after an ALTER
 *														   of a column: pause
 *	  anything else										-> pause
 *	  followed live, and UPDATE and DELETE do not tell
 *	  in the stream which row they are about (P16)		-> pause
 *
 * The pause is the wish in the job's row, with tables and remedy as its
 * reason.  migrate_recopy plans the table anew; without it, the next look
 * pauses again.  A fingerprint that is null in migrate.leaf takes what is
 * there now.
 *
 * The watch first asks for one digest of everything, without waiting for the
 * answer; only when that is another one than when all was well, for the
 * relations themselves.  It has a connection of its own, which may be lost at
 * any time.  Writes are one transaction; a crash loses nothing that the next
 * look would not find.
 *
 * Locks: rows of migrate.job, source_table and leaf for a moment; none on the
 * source's tables but ACCESS SHARE on a new partition, for its size.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "control/control.h"
#include "extract/extract.h"
#include "extract/stream.h"

/* between two looks, ms; longer when a look takes long */
#define WATCH_INTERVAL 5000
#define WATCH_SHARE 20
/* for locks on the source, which others may hold for long */
#define WATCH_LOCK_TIMEOUT "2s"
/* named in a message, the rest is counted */
#define MAX_NAMED 8

/* a part of a source table as it was planned */
typedef struct DriftLeaf
{
	int			leaf_no;
	char	   *relation;
	Oid			oid;			/* 0: read through the root or by a wrapper */
	Oid			filenode;
	char	   *fingerprint;	/* may be NULL */
	bool		complete;		/* every chunk is done */
} DriftLeaf;

/* a source table as it was planned, and as it is */
typedef struct DriftSource
{
	MigrateSource *src;
	bool		copied;
	DriftLeaf **leaves;			/* by OID */
	int			nleaves;
	MigrateRelation **relations;	/* by OID */
	int			nrelations;
	StringInfoData what;		/* what has changed, empty: nothing */
	int			changes;
	List	   *gone;			/* of DriftLeaf: what became of them? */
	List	   *came;			/* of MigrateRelation: are they empty? */
	List	   *added;			/* of MigrateRelation: to be planned too */
	StringInfoData unread;		/* (oid, attnum), for names of new columns */
	int			dropped;		/* columns that are not read */
} DriftSource;

/* a look at some sources */
typedef struct Look
{
	MigrateJob *job;
	MigrateConn *conn;
	List	   *sources;		/* of DriftSource */
	StringInfoData updates;		/* JSON array for migrate.leaf */
	List	   *events;			/* of char *, level info */
} Look;

/* The watch; nothing of it matters after a crash. */
static struct
{
	MigrateConn *conn;
	MemoryContext conn_cxt;
	bool		asked;			/* the digest, and not answered yet */
	TimestampTz next;
	char		good[32];		/* the digest when all was well; or empty */
	int			errors;			/* in a row */
}			watch;

/* ----------------------------------------------------------------
 * what was planned
 * ----------------------------------------------------------------
 */

/* Sources that were planned on the job's server and are not to be planned anew. */
#define WATCHED \
	" FROM migrate.source_table s WHERE s.job_id = $1 AND s.remote_table IS NOT NULL" \
	" AND s.state IN ('copying', 'copied', 'done')" \
	" AND ($2 IS NULL OR s.source_id = ANY ($2))" \
	" AND EXISTS (SELECT FROM migrate.leaf l WHERE l.source_id = s.source_id" \
	"  AND (l.fingerprint IS NOT NULL OR l.remote_oid IS NOT NULL))"

static Datum
int_array(List *ids)
{
	Datum	   *elems = palloc(sizeof(Datum) * Max(list_length(ids), 1));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, ids)
		elems[n++] = Int32GetDatum(lfirst_int(lc));
	return PointerGetDatum(construct_array(elems, n, INT4OID, sizeof(int32), true,
										   TYPALIGN_INT));
}

/* A query with $1 the job and $2 sources (NIL: all), SPI connected. */
static void
exec_for_sources(MigrateJob *job, List *ids, const char *sql)
{
	Oid			types[] = {INT4OID, INT4ARRAYOID};
	Datum		values[] = {Int32GetDatum(job->job_id), (Datum) 0};

	if (ids != NIL)
		values[1] = int_array(ids);
	migrate_spi_exec(sql, 2, types, values, ids != NIL ? "  " : " n", SPI_OK_SELECT);
}

/* Names of all sources for the digest; empty when there is nothing to watch. */
static void
values_for_digest(MigrateJob *job, StringInfo values)
{
	migrate_spi_begin();
	exec_for_sources(job, NIL, "SELECT s.source_id, s.remote_schema, s.remote_table,"
					 " s.only_parent::int" WATCHED " ORDER BY 1");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MigrateSource src = {0};

		src.remote_schema = migrate_spi_text(i, 1);
		src.remote_table = migrate_spi_text(i, 2);
		src.only_parent = migrate_spi_int64(i, 3, 0) != 0;
		migrate_tree_values(values, (int) migrate_spi_int64(i, 0, 0), &src);
	}
	migrate_spi_end();
}

static int
compare_leaves(const void *a, const void *b)
{
	Oid			x = (*(DriftLeaf *const *) a)->oid;
	Oid			y = (*(DriftLeaf *const *) b)->oid;

	return x < y ? -1 : x > y;
}

static int
compare_relations(const void *a, const void *b)
{
	Oid			x = (*(MigrateRelation *const *) a)->oid;
	Oid			y = (*(MigrateRelation *const *) b)->oid;

	return x < y ? -1 : x > y;
}

/* Leaves of one source, rows [from, to) of the last result. */
static void
take_leaves(DriftSource *ds, uint64 from, uint64 to)
{
	ds->leaves = palloc(sizeof(DriftLeaf *) * Max(to - from, 1));
	for (uint64 i = from; i < to; i++)
	{
		DriftLeaf  *leaf = palloc0(sizeof(DriftLeaf));

		leaf->leaf_no = (int) migrate_spi_int64(i, 1, 0);
		leaf->relation = migrate_spi_text(i, 2);
		leaf->oid = (Oid) migrate_spi_int64(i, 3, 0);
		leaf->filenode = (Oid) migrate_spi_int64(i, 4, 0);
		leaf->fingerprint = migrate_spi_text(i, 5);
		leaf->complete = migrate_spi_int64(i, 6, 0) != 0;
		ds->leaves[ds->nleaves++] = leaf;
	}
	qsort(ds->leaves, ds->nleaves, sizeof(DriftLeaf *), compare_leaves);
}

/* Sources and their leaves, from the catalog, in the current memory context. */
static void
load_planned(Look *look, List *ids)
{
	MemoryContext mcxt = CurrentMemoryContext;
	DriftSource *ds = NULL;
	uint64		begin = 0;

	migrate_spi_begin();
	exec_for_sources(look->job, ids,
					 "WITH watched AS (SELECT s.source_id, s.state" WATCHED "),"
					 " busy AS (SELECT DISTINCT c.source_id, c.leaf_no FROM migrate.chunk c"
					 "  WHERE c.job_id = $1 AND c.state = 'todo'"
					 "  UNION SELECT c.source_id, c.leaf_no FROM migrate.chunk c"
					 "  WHERE c.job_id = $1 AND c.state = 'running')"
					 " SELECT w.source_id, l.leaf_no, l.relation, l.remote_oid,"
					 "  l.remote_filenode, l.fingerprint,"
					 "  (l.exhausted AND b.leaf_no IS NULL)::int,"
					 "  (w.state <> 'copying')::int"
					 " FROM watched w JOIN migrate.leaf l USING (source_id)"
					 " LEFT JOIN busy b ON b.source_id = l.source_id AND b.leaf_no = l.leaf_no"
					 " ORDER BY w.source_id, l.leaf_no");
	MemoryContextSwitchTo(mcxt);
	for (uint64 i = 0; i <= SPI_processed; i++)
	{
		int			id = i < SPI_processed ? (int) migrate_spi_int64(i, 0, 0) : 0;

		if (ds && id == ds->src->source_id)
			continue;
		if (ds)
			take_leaves(ds, begin, i);
		if (i == SPI_processed)
			break;
		ds = palloc0(sizeof(DriftSource));
		ds->copied = migrate_spi_int64(i, 7, 0) != 0;
		ds->src = migrate_source_load(id);
		initStringInfo(&ds->what);
		initStringInfo(&ds->unread);
		look->sources = lappend(look->sources, ds);
		begin = i;
	}
	migrate_spi_end();
	MemoryContextSwitchTo(mcxt);
}

/* ----------------------------------------------------------------
 * what is there
 * ----------------------------------------------------------------
 */

/* The trees of all sources of the look, in one query. */
static void
ask_relations(Look *look)
{
	StringInfoData values;
	MigrateRelation **all;
	PGresult   *res;
	ListCell   *lc;

	initStringInfo(&values);
	foreach(lc, look->sources)
		migrate_tree_values(&values, foreach_current_index(lc),
							((DriftSource *) lfirst(lc))->src);
	res = migrate_exec(look->conn,
					   migrate_tree_query(values.data, look->conn->version, false));
	all = palloc(sizeof(MigrateRelation *) * Max(PQntuples(res), 1));
	for (int row = 0; row < PQntuples(res); row++)
	{
		int			id;
		DriftSource *ds;

		all[row] = migrate_tree_relation(res, row, &id);
		/* the result is ordered by source */
		ds = list_nth(look->sources, id);
		if (ds->nrelations++ == 0)
			ds->relations = &all[row];
	}
	PQclear(res);
	foreach(lc, look->sources)
	{
		DriftSource *ds = lfirst(lc);

		if (ds->nrelations > 0)
			qsort(ds->relations, ds->nrelations, sizeof(MigrateRelation *),
				  compare_relations);
	}
}

/* 1,2,3 */
static void
append_oid(StringInfo buf, Oid oid)
{
	appendStringInfo(buf, "%s%u", buf->len > 0 ? "," : "", oid);
}

/* ----------------------------------------------------------------
 * the comparison
 * ----------------------------------------------------------------
 */

/* A clause of what has changed that reading cannot follow. */
static void
add_change(DriftSource *ds, const char *relation, const char *change)
{
	if (ds->changes++ < MAX_NAMED)
		appendStringInfo(&ds->what, "%s%s %s", ds->what.len > 0 ? "; " : "", relation,
						 change);
}

/* To be written into migrate.leaf when nothing else is wrong. */
static void
add_update(Look *look, DriftSource *ds, DriftLeaf *leaf, MigrateRelation *rel,
		   const char *fingerprint)
{
	StringInfo	buf = &look->updates;

	appendStringInfo(buf, "%s{\"id\":%d,\"plan\":%d,\"no\":%d,\"fingerprint\":\"%s\","
					 "\"filenode\":%u,\"relation\":", buf->len > 0 ? "," : "",
					 ds->src->source_id, ds->src->plan_no, leaf->leaf_no, fingerprint,
					 rel ? rel->filenode : leaf->filenode);
	escape_json(buf, rel ? rel->name : leaf->relation);
	appendStringInfoChar(buf, '}');
}

/* Columns that are not read came or went: by the root, or its first leaf. */
static void
note_unread(DriftSource *ds, const char *planned, const char *now, Oid oid)
{
	int			after,
				added,
				dropped;

	migrate_fingerprint_unread(planned, now, &after, &added, &dropped);
	if (added > 0 && ds->unread.len == 0)
		appendStringInfo(&ds->unread, "attrelid = %u AND attnum > %d", oid, after);
	ds->dropped = Max(ds->dropped, dropped);
}

/* A leaf whose relation is there, in its tree. */
static void
compare_leaf(Look *look, DriftSource *ds, DriftLeaf *leaf, MigrateRelation *rel)
{
	char	   *change = migrate_fingerprint_change(leaf->fingerprint, rel->fingerprint,
													rel->missing, false);
	bool		renamed = strcmp(leaf->relation, rel->name) != 0;
	bool		rewritten = leaf->filenode != rel->filenode;

	if (change)
		add_change(ds, leaf->relation, change);
	else if (rewritten && !leaf->complete)
		return;					/* P1 */
	else if (rewritten && migrate_fingerprint_altered(leaf->fingerprint, rel->fingerprint))
		add_change(ds, leaf->relation,
				   "was rewritten with a column altered that is read, so that values may be others");
	else if (rewritten || renamed || leaf->fingerprint == NULL ||
			 strcmp(leaf->fingerprint, rel->fingerprint) != 0)
	{
		add_update(look, ds, leaf, rel, rel->fingerprint);
		note_unread(ds, leaf->fingerprint, rel->fingerprint, rel->oid);
		if (renamed)
			look->events = lappend(look->events,
								   psprintf("%s was renamed to %s on the source, and is read by that name",
											leaf->relation, rel->name));
	}
}

/* A tree that is read as one. */
static void
compare_tree(Look *look, DriftSource *ds, DriftLeaf *leaf)
{
	List	   *relations = NIL;
	MigrateRelation *root = NULL;
	char	   *now;
	char	   *change;

	for (int i = 0; i < ds->nrelations; i++)
	{
		relations = lappend(relations, ds->relations[i]);
		if (ds->relations[i]->is_root)
			root = ds->relations[i];
	}
	if (root == NULL)
	{
		add_change(ds, ds->src->label, "does not exist any more (dropped or renamed)");
		return;
	}
	now = migrate_tree_fingerprint(relations);
	change = migrate_fingerprint_change(leaf->fingerprint, now, root->missing, false);
	if (change)
		add_change(ds, ds->src->label, change);
	else if (leaf->fingerprint == NULL || strcmp(leaf->fingerprint, now) != 0)
	{
		add_update(look, ds, leaf, NULL, now);
		note_unread(ds, leaf->fingerprint, now, root->oid);
	}
}

static MigrateRelation *
find_relation(DriftSource *ds, Oid oid)
{
	MigrateRelation key = {.oid = oid};
	MigrateRelation *keyp = &key;
	MigrateRelation **found = NULL;

	if (ds->nrelations > 0)
		found = bsearch(&keyp, ds->relations, ds->nrelations, sizeof(MigrateRelation *),
						compare_relations);
	return found ? *found : NULL;
}

static bool
is_planned(DriftSource *ds, MigrateRelation *rel)
{
	DriftLeaf	key = {.oid = rel->oid};
	DriftLeaf  *keyp = &key;

	return bsearch(&keyp, ds->leaves, ds->nleaves, sizeof(DriftLeaf *),
				   compare_leaves) != NULL;
}

/*
 * Relations that came, against leaves that are gone: one of the same name is a
 * table that was dropped and created again.
 */
static void
match_by_name(DriftSource *ds)
{
	ListCell   *lc;

	foreach(lc, ds->gone)
	{
		DriftLeaf  *leaf = lfirst(lc);
		ListCell   *lc2;

		foreach(lc2, ds->came)
		{
			MigrateRelation *rel = lfirst(lc2);
			char	   *change;

			if (strcmp(rel->name, leaf->relation) != 0)
				continue;
			change = migrate_fingerprint_change(leaf->fingerprint, rel->fingerprint,
												rel->missing, true);
			if (change)
				add_change(ds, leaf->relation,
						   psprintf("is another table now, which %s", change));
			else if (leaf->complete)
				add_change(ds, leaf->relation, "was dropped and created again");
			ds->came = foreach_delete_current(ds->came, lc2);
			ds->gone = foreach_delete_current(ds->gone, lc);
			break;
		}
	}
}

static void
compare_source(Look *look, DriftSource *ds)
{
	if (ds->nleaves == 1 && !OidIsValid(ds->leaves[0]->oid))
	{
		compare_tree(look, ds, ds->leaves[0]);
		return;
	}
	if (ds->nrelations == 0 && ds->nleaves > 1)
	{
		add_change(ds, ds->src->label, "does not exist any more (dropped or renamed)");
		return;
	}
	for (int i = 0; i < ds->nleaves; i++)
	{
		MigrateRelation *rel = find_relation(ds, ds->leaves[i]->oid);

		if (rel)
			compare_leaf(look, ds, ds->leaves[i], rel);
		else
			ds->gone = lappend(ds->gone, ds->leaves[i]);
	}
	for (int i = 0; i < ds->nrelations; i++)
	{
		if (ds->relations[i]->relkind != RELKIND_PARTITIONED_TABLE &&
			!is_planned(ds, ds->relations[i]))
			ds->came = lappend(ds->came, ds->relations[i]);
	}
	if (ds->gone != NIL && ds->came != NIL)
		match_by_name(ds);
}

/* ----------------------------------------------------------------
 * more questions, when something has changed
 * ----------------------------------------------------------------
 */

/* Leaves that are not in their trees any more: dropped, detached, renamed? */
static void
describe_gone(Look *look)
{
	StringInfoData oids;
	ListCell   *lc,
			   *lc2;
	PGresult   *res;

	initStringInfo(&oids);
	foreach(lc, look->sources)
		foreach(lc2, ((DriftSource *) lfirst(lc))->gone)
		append_oid(&oids, ((DriftLeaf *) lfirst(lc2))->oid);
	if (oids.len == 0)
		return;
	res = migrate_exec(look->conn,
					   psprintf("SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname)"
								" FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
								" WHERE c.oid = ANY ('{%s}')", oids.data));
	foreach(lc, look->sources)
	{
		DriftSource *ds = lfirst(lc);

		foreach(lc2, ds->gone)
		{
			DriftLeaf  *leaf = lfirst(lc2);
			char	   *name = NULL;

			for (int row = 0; row < PQntuples(res) && name == NULL; row++)
				if (atooid(PQgetvalue(res, row, 0)) == leaf->oid)
					name = migrate_result_value(res, row, 1);
			if (name == NULL)
				add_change(ds, leaf->relation, "was dropped");
			else if (strcmp(name, leaf->relation) != 0)
				add_change(ds, leaf->relation, psprintf("was renamed to %s", name));
			else
				add_change(ds, leaf->relation,
						   psprintf("was detached from %s", ds->src->label));
		}
	}
	PQclear(res);
}

/*
 * The publication and the boundary of the job's stream: what transactions with
 * a higher id do on the source is in the stream (P3).  False: it has none.
 */
static bool
stream_boundary(MigrateJob *job, char **publication, char **boundary)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(job->job_id);

	*boundary = NULL;
	migrate_spi_begin();
	migrate_spi_exec("SELECT s.publication, j.boundary FROM migrate.job_stream j"
					 " JOIN migrate.stream s USING (stream_id)"
					 " WHERE j.job_id = $1 AND j.joined AND s.state = 'running'"
					 " AND j.generation = s.generation AND j.boundary IS NOT NULL",
					 1, &type, &arg, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		*publication = MemoryContextStrdup(mcxt, migrate_spi_text(0, 0));
		*boundary = MemoryContextStrdup(mcxt, migrate_spi_text(0, 1));
	}
	migrate_spi_end();
	MemoryContextSwitchTo(mcxt);
	return *boundary != NULL;
}

/*
 * Born as a partition, and never anything else: ATTACH and DETACH renew every
 * row that a table has in pg_attribute for its columns, but not that of
 * tableoid; CREATE TABLE ... PARTITION OF makes them in one command.  A column
 * that was altered since counts for nothing, one that was not is enough.  With
 * xmax set, cmin may be that of whoever tried to alter it.
 */
#define BORN_AS_PARTITION(oid) \
	"EXISTS (SELECT FROM pg_class b JOIN pg_attribute t ON t.attrelid = b.oid" \
	"  AND t.attnum < 0 AND t.attname = 'tableoid'" \
	" JOIN pg_attribute x ON x.attrelid = b.oid AND x.attnum > 0 AND x.attinhcount > 0" \
	"  AND x.xmin = t.xmin AND x.cmin = t.cmin" \
	" WHERE b.oid = " oid " AND b.relispartition AND x.xmax = '0'::xid AND t.xmax = '0'::xid)"

/*
 * Tables that came since the job has joined its stream, and were born as
 * partitions of what is in the plan: every row that they ever had is in the
 * stream, as if they had been seen empty.  Up the tree, each parent was born so
 * too, or has a partition in the plan: then it was there when that was made,
 * and has not left since, or the place of that partition were another.
 */
static char *
streamed_query(Look *look, const char *publication, const char *boundary)
{
	StringInfoData came,
				planned;
	int			version = look->conn->version;
	ListCell   *lc,
			   *lc2;

	initStringInfo(&came);
	initStringInfo(&planned);
	foreach(lc, look->sources)
	{
		DriftSource *ds = lfirst(lc);
		Oid			root = InvalidOid;

		for (int i = 0; i < ds->nrelations; i++)
			if (ds->relations[i]->is_root)
				root = ds->relations[i]->oid;
		foreach(lc2, ds->came)
			appendStringInfo(&came, "%s(%d,%u,%u)", came.len > 0 ? "," : "",
							 ds->src->source_id, root,
							 ((MigrateRelation *) lfirst(lc2))->oid);
		for (int i = 0; ds->came != NIL && i < ds->nleaves; i++)
			if (ds->leaves[i]->fingerprint)
				appendStringInfo(&planned, ",(%d,%u)", ds->src->source_id,
								 ds->leaves[i]->oid);
	}
	return psprintf("WITH RECURSIVE came (id, root, oid) AS (VALUES %s), planned (id, oid) AS (VALUES (0,0)%s),"
					" up (id, root, oid, at) AS (SELECT c.id, c.root::oid, c.oid::oid, c.oid::oid FROM came c"
					"  UNION ALL SELECT u.id, u.root, u.oid, i.inhparent FROM up u"
					"  JOIN pg_inherits i ON i.inhrelid = u.at%s"
					"  WHERE u.at <> u.root AND " BORN_AS_PARTITION("u.at") ")"
					" SELECT DISTINCT u.oid FROM up u JOIN pg_class c ON c.oid = u.oid AND c.relkind = 'r'"
					" JOIN pg_attribute t ON t.attrelid = u.oid AND t.attnum < 0 AND t.attname = 'tableoid'"
					" JOIN pg_publication p ON p.pubname = %s"
					" WHERE u.oid <> u.at AND age(t.xmin) < age('%s'::xid8::xid)"
					" AND (u.at = u.root OR EXISTS (SELECT FROM pg_inherits i"
					"  JOIN planned l ON l.id = u.id AND l.oid::oid = i.inhrelid WHERE i.inhparent = u.at))"
					" AND (p.puballtables OR EXISTS (SELECT FROM pg_partition_ancestors(u.root) a"
					"  JOIN pg_class r ON r.oid = a.relid WHERE"
					"  EXISTS (SELECT FROM pg_publication_rel w WHERE w.prpubid = p.oid AND w.prrelid = r.oid)%s))",
					came.data, planned.data, version >= 140000 ? " AND NOT i.inhdetachpending" : "",
					quote_literal_cstr(publication), boundary,
					version >= 150000 ?
					" OR EXISTS (SELECT FROM pg_publication_namespace w WHERE w.pnpubid = p.oid AND w.pnnspid = r.relnamespace)" : "");
}

static bool
result_has_oid(PGresult *res, Oid oid)
{
	for (int row = 0; res && row < PQntuples(res); row++)
		if (atooid(PQgetvalue(res, row, 0)) == oid)
			return true;
	return false;
}

/*
 * Relations that were not planned.  A table without a block holds no row: it
 * can be planned as if it had been there all the time.  So can one whose every
 * row is in the stream.
 */
static void
judge_came(Look *look)
{
	StringInfoData oids;
	ListCell   *lc,
			   *lc2;
	PGresult   *empty;
	PGresult   *streamed = NULL;
	char	   *publication;
	char	   *boundary;

	initStringInfo(&oids);
	foreach(lc, look->sources)
		foreach(lc2, ((DriftSource *) lfirst(lc))->came)
		append_oid(&oids, ((MigrateRelation *) lfirst(lc2))->oid);
	if (oids.len == 0)
		return;
	empty = migrate_exec(look->conn,
						 psprintf("SELECT c.oid FROM pg_class c WHERE c.oid = ANY ('{%s}')"
								  " AND c.relkind = 'r' AND pg_relation_size(c.oid) = 0",
								  oids.data));
	if (look->job->live && stream_boundary(look->job, &publication, &boundary))
		streamed = migrate_exec(look->conn, streamed_query(look, publication, boundary));
	foreach(lc, look->sources)
	{
		DriftSource *ds = lfirst(lc);

		foreach(lc2, ds->came)
		{
			MigrateRelation *rel = lfirst(lc2);

			if (rel->readable && (result_has_oid(empty, rel->oid) || result_has_oid(streamed, rel->oid)))
				ds->added = lappend(ds->added, rel);
			else
				add_change(ds, rel->name, psprintf("has come to %s, and is not empty",
												   ds->src->label));
		}
	}
	PQclear(empty);
	PQclear(streamed);
}

/* Tell of columns that are not read and came or went. */
static void
tell_unread(Look *look, DriftSource *ds)
{
	char	   *names = NULL;

	if (ds->unread.len > 0)
		names = migrate_exec_value(look->conn,
								   psprintf("SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)"
											" FROM pg_attribute WHERE NOT attisdropped AND %s",
											ds->unread.data));
	if (names)
		look->events = lappend(look->events,
							   psprintf("%s has new columns on the source that are not read: %s;"
										" migrate_refresh_schema takes them over",
										ds->src->label, names));
	if (ds->dropped > 0)
		look->events = lappend(look->events,
							   psprintf("%s has lost columns on the source that are not read: %d",
										ds->src->label, ds->dropped));
}

/*
 * Compare sources (NIL: all) with the source as it is.  True when one has
 * changed so that reading cannot follow.  In a transaction.
 */
static bool
look_closely(Look *look, List *ids)
{
	bool		changed = false;
	ListCell   *lc;

	initStringInfo(&look->updates);
	load_planned(look, ids);
	if (look->sources == NIL)
		return false;
	ask_relations(look);
	foreach(lc, look->sources)
		compare_source(look, lfirst(lc));
	describe_gone(look);
	judge_came(look);
	foreach(lc, look->sources)
	{
		DriftSource *ds = lfirst(lc);

		if (ds->changes > 0)
			changed = true;
		else
			tell_unread(look, ds);
	}
	return changed;
}

/*
 * Relations whose rows the stream cannot tell from each other any more: what is
 * wrong with them, and what to do on the source, or NULL.  What a DBA has
 * accepted is not told again.
 */
static char *
identity_lost(Look *look)
{
	StringInfoData values,
				keys,
				what;
	PGresult   *res;
	ListCell   *lc;
	Oid			types[] = {INT4OID, TEXTOID};
	int			n = 0;

	if (!look->job->live || look->sources == NIL)
		return NULL;
	initStringInfo(&values);
	initStringInfo(&keys);
	initStringInfo(&what);
	foreach(lc, look->sources)
	{
		MigrateSource *src = ((DriftSource *) lfirst(lc))->src;

		migrate_tree_values(&values, foreach_current_index(lc), src);
		migrate_key_values(&keys, foreach_current_index(lc), src);
	}
	res = migrate_exec(look->conn, migrate_tree_identity_query(values.data, keys.data,
															   look->conn->version));
	migrate_spi_begin();
	for (int row = 0; row < PQntuples(res); row++)
	{
		Datum		args[] = {Int32GetDatum(look->job->job_id),
		CStringGetTextDatum(PQgetvalue(res, row, 1))};

		migrate_spi_exec("SELECT FROM migrate.acceptance WHERE job_id = $1 AND object = $2"
						 " AND check_name IN ('replica_identity', 'stream_key')",
						 2, types, args, NULL, SPI_OK_SELECT);
		if (SPI_processed > 0)
			continue;
		if (n++ < MAX_NAMED)
			appendStringInfo(&what, "%s%s %s: %s", n > 1 ? "; " : "", PQgetvalue(res, row, 1),
							 PQgetvalue(res, row, 2), PQgetvalue(res, row, 3));
	}
	if (n > MAX_NAMED)
		appendStringInfo(&what, "; and %d more tables", n - MAX_NAMED);
	migrate_spi_end();
	PQclear(res);
	return n > 0 ? what.data : NULL;
}

/* What has changed, over all sources, and which those are. */
static char *
all_changes(Look *look, List **ids)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	*ids = NIL;
	foreach(lc, look->sources)
	{
		DriftSource *ds = lfirst(lc);

		if (ds->changes == 0)
			continue;
		*ids = lappend_int(*ids, ds->src->source_id);
		if (list_length(*ids) > MAX_NAMED)
			continue;
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? "; " : "", ds->what.data);
		if (ds->changes > MAX_NAMED)
			appendStringInfo(&buf, " and %d more of %s", ds->changes - MAX_NAMED,
							 ds->src->label);
	}
	if (list_length(*ids) > MAX_NAMED)
		appendStringInfo(&buf, "; and %d more tables", list_length(*ids) - MAX_NAMED);
	return buf.data;
}

/* ----------------------------------------------------------------
 * what follows from it
 * ----------------------------------------------------------------
 */

/* The targets of some sources, for the remedy. */
static char *
targets_of(MigrateJob *job, List *ids)
{
	exec_for_sources(job, ids,
					 "SELECT pg_catalog.string_agg(t.target, ', ' ORDER BY t.target)"
					 " || CASE WHEN max(t.n) > " CppAsString2(MAX_NAMED) " THEN ', ...' ELSE '' END"
					 " FROM (SELECT m.target, count(*) OVER () AS n FROM migrate.mapping m"
					 "  WHERE m.job_id = $1 AND m.source_id = ANY ($2) GROUP BY m.target"
					 "  ORDER BY 1 LIMIT " CppAsString2(MAX_NAMED) ") t");
	return migrate_spi_text(0, 0);
}

/* The wish, with its reason; SPI is connected. */
static void
pause_for(MigrateJob *job, const char *reason)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(job->job_id), CStringGetTextDatum(reason)};

	migrate_spi_exec("UPDATE migrate.job SET wanted = 'pause', pause_reason = $2"
					 " WHERE job_id = $1 AND wanted = 'run'",
					 2, types, values, NULL, SPI_OK_UPDATE);
	if (SPI_processed > 0)
		migrate_event(job->job_id, "alert", "drift", "paused: %s", reason);
}

void
migrate_drift_pause(MigrateJob *job, List *source_ids, const char *what)
{
	char	   *targets;

	migrate_spi_begin();
	targets = targets_of(job, source_ids);
	pause_for(job, psprintf("the source has changed: %s. Run migrate_refresh_schema, then"
							" migrate_recopy of %s and migrate_resume; or undo the change on"
							" the source, then migrate_resume",
							what, targets ? targets : "its targets"));
	migrate_spi_end();
}

static void
pause_for_identity(MigrateJob *job, const char *what)
{
	migrate_spi_begin();
	pause_for(job, psprintf("UPDATE and DELETE on the source fail there or cannot be followed: %s."
							" Do that on the source, then migrate_resume", what));
	migrate_spi_end();
}

/* What is no reason to stop goes into the plan. */
static void
note_updates(Look *look)
{
	Oid			type = TEXTOID;
	Datum		value;

	if (look->updates.len == 0)
		return;
	value = CStringGetTextDatum(psprintf("[%s]", look->updates.data));
	migrate_spi_exec("UPDATE migrate.leaf l SET fingerprint = r.fingerprint,"
					 " remote_filenode = nullif(r.filenode, 0), relation = r.relation"
					 " FROM pg_catalog.jsonb_to_recordset($1::jsonb) AS r"
					 " (id int, plan int, no int, fingerprint text, filenode oid, relation text)"
					 " JOIN migrate.source_table s ON s.source_id = r.id AND s.plan_no = r.plan"
					 "  AND s.state IN ('copying', 'copied', 'done')"
					 " WHERE l.source_id = r.id AND l.leaf_no = r.no",
					 1, &type, &value, NULL, SPI_OK_UPDATE);
}

/*
 * A partition that came becomes a leaf.  Of a source that is copied it has been
 * read: it was seen empty, or would have been right after its birth.
 */
static void
add_leaf(Look *look, DriftSource *ds, MigrateRelation *rel)
{
	MigrateJob *job = look->job;
	Oid			types[] = {INT4OID, INT4OID, TEXTOID, OIDOID, OIDOID, TEXTOID, INT8OID};
	Datum		values[7];

	values[0] = Int32GetDatum(ds->src->source_id);
	values[1] = Int32GetDatum(ds->src->plan_no);
	values[2] = CStringGetTextDatum(rel->name);
	values[3] = ObjectIdGetDatum(rel->oid);
	values[4] = ObjectIdGetDatum(rel->filenode);
	values[5] = CStringGetTextDatum(rel->fingerprint);
	values[6] = Int64GetDatum(ds->src->method == 'b' ? job->chunk_blocks :
							  ds->src->method == 'k' ? job->chunk_rows : 0);
	migrate_spi_exec("SELECT FROM migrate.source_table WHERE source_id = $1 FOR NO KEY UPDATE",
					 1, types, values, NULL, SPI_OK_SELECT);
	migrate_spi_exec("INSERT INTO migrate.leaf (source_id, leaf_no, job_id, relation,"
					 " remote_oid, remote_filenode, fingerprint, blocks, weight, chunk_size, exhausted)"
					 " SELECT s.source_id, (SELECT coalesce(max(l.leaf_no), 0) + 1"
					 "  FROM migrate.leaf l WHERE l.source_id = s.source_id), s.job_id,"
					 " $3, $4, nullif($5, 0), $6, 0, 0, $7, s.state <> 'copying'"
					 " FROM migrate.source_table s WHERE s.source_id = $1 AND s.plan_no = $2"
					 " AND s.state IN ('copying', 'copied', 'done')",
					 7, types, values, NULL, SPI_OK_INSERT);
	if (SPI_processed > 0)
		migrate_event(job->job_id, "info", "drift",
					  "%s has come to %s on the source, and is read too; where the target is partitioned, migrate_refresh_schema makes it here",
					  rel->name, ds->src->label);
}

static void
note_harmless(Look *look)
{
	ListCell   *lc,
			   *lc2;

	migrate_spi_begin();
	note_updates(look);
	foreach(lc, look->sources)
		foreach(lc2, ((DriftSource *) lfirst(lc))->added)
		add_leaf(look, lfirst(lc), lfirst(lc2));
	migrate_spi_end();
	foreach(lc, look->events)
		migrate_event(look->job->job_id, "info", "drift", "%s", (char *) lfirst(lc));
}

/* ----------------------------------------------------------------
 * the watch
 * ----------------------------------------------------------------
 */
static void
hang_up(void)
{
	MigrateConn *conn = watch.conn;

	watch.conn = NULL;
	watch.asked = false;
	if (conn)
		migrate_disconnect(conn);
	if (watch.conn_cxt)
		MemoryContextReset(watch.conn_cxt);
}

static void
connect_watch(MigrateJob *job)
{
	MemoryContext old;

	if (watch.conn)
		return;
	if (watch.conn_cxt == NULL)
		watch.conn_cxt = AllocSetContextCreate(TopMemoryContext, "migrate watch connection",
											   ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(watch.conn_cxt);
	watch.conn = migrate_connect(job->server, job->owner, job->name, "watch",
								 job->connect_timeout_s);
	MemoryContextSwitchTo(old);
	PQclear(migrate_exec(watch.conn, "SET lock_timeout = '" WATCH_LOCK_TIMEOUT "'"));
}

/* Send the question for the digest; false: nothing to be watched. */
static bool
ask_digest(MigrateJob *job)
{
	StringInfoData values;

	initStringInfo(&values);
	values_for_digest(job, &values);
	if (values.len == 0)
		return false;
	connect_watch(job);
	migrate_remote_start(watch.conn,
						 migrate_tree_digest_query(values.data, watch.conn->version), false);
	watch.asked = true;
	return true;
}

/* The look itself, and what follows; true: paused. */
static bool
examine(MigrateJob *job)
{
	Look		look = {.job = job};
	List	   *ids;
	char	   *what;

	connect_watch(job);
	look.conn = watch.conn;
	if (watch.asked)
		(void) migrate_remote_value(watch.conn, NULL);
	watch.asked = false;
	if (!look_closely(&look, NIL))
	{
		note_harmless(&look);
		what = identity_lost(&look);
		if (what)
			pause_for_identity(job, what);
		return what != NULL;
	}
	what = all_changes(&look, &ids);
	migrate_drift_pause(job, ids, what);
	return true;
}

/*
 * A turn of the watch, in a transaction.
 */
static bool
watch_turn(MigrateJob *job)
{
	char	   *digest;
	char	   *took;
	int64		ms;

	if (!watch.asked)
	{
		if (!ask_digest(job))
			watch.next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WATCH_INTERVAL);
		return false;
	}
	if (!migrate_remote_ready(watch.conn))
		return false;
	watch.asked = false;
	digest = migrate_remote_value(watch.conn, NULL);
	took = strchr(digest, ' ');
	if (took == NULL)
		elog(ERROR, "not a digest: %s", digest);
	*took++ = '\0';
	ms = Min(pg_strtoint64(took), 60000);
	watch.next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											 Max(WATCH_INTERVAL, ms * WATCH_SHARE));
	if (strcmp(watch.good, digest) == 0)
		return false;
	if (examine(job))
		return true;
	strlcpy(watch.good, digest, sizeof(watch.good));
	return false;
}

/* A look that failed, by the source's or the connection's fault: later again. */
static void
watch_failed(MigrateJob *job, ErrorData *edata)
{
	hang_up();
	watch.next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											 Min(WATCH_INTERVAL << Min(watch.errors, 4), 60000));
	/* the first may be a connection that was just lost */
	if (watch.errors++ != 1)
		return;
	StartTransactionCommand();
	migrate_event(job->job_id, "warning", "drift",
				  "cannot see whether the source has changed: %s%s%s", edata->message,
				  edata->detail ? "; " : "", edata->detail ? edata->detail : "");
	CommitTransactionCommand();
}

void
migrate_drift_forget(void)
{
	watch.good[0] = '\0';
	watch.next = 0;
}

bool
migrate_drift_found(MigrateJob *job, bool final)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ErrorData  *volatile edata = NULL;
	volatile bool paused = false;

	if (!final && !watch.asked && GetCurrentTimestamp() < watch.next)
		return false;
	PG_TRY();
	{
		StartTransactionCommand();
		if (migrate_server_is_postgres(job->server))
			paused = final ? examine(job) : watch_turn(job);
		CommitTransactionCommand();
		watch.errors = 0;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		if (final)
		{
			hang_up();
			PG_RE_THROW();
		}
		edata = migrate_recover(mcxt);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	if (edata)
		watch_failed(job, edata);
	else if (paused || final)
		hang_up();
	MemoryContextSwitchTo(mcxt);
	return paused;
}

/* ----------------------------------------------------------------
 * before a validation
 * ----------------------------------------------------------------
 */
void
migrate_drift_refuse(MigrateJob *job, List *source_ids, MigrateConn *conn)
{
	Look		look = {.job = job,.conn = conn};
	List	   *ids;
	char	   *what;

	if (!look_closely(&look, source_ids))
		return;
	what = all_changes(&look, &ids);
	migrate_spi_begin();
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("source tables of job \"%s\" have changed since their copy was planned",
					job->name),
			 errdetail_internal("%s.", what),
			 errhint("Run migrate_refresh_schema, then migrate_recopy of %s; or undo the change on the source.",
					 targets_of(job, ids))));
}
