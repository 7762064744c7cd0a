#include "extract/extract.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "common/hashfn.h"
#include "utils/fmgroids.h"
#define F_RECORD_OUT_XT F_RECORD_OUT
#ifdef XT_MAGIC
#endif
PG_MODULE_MAGIC;
typedef struct XtArgs { Oid db; Oid owner; int job; char transport[8]; char chunking[8]; int blocks; int rows; int plan; int max_chunks; int delay_ms;int chunk_time; int64 pad;} XtArgs;

PGDLLEXPORT void xt_main(Datum arg);
PG_FUNCTION_INFO_V1(xt_run);
PGDLLEXPORT Datum xt_run(PG_FUNCTION_ARGS);
PG_FUNCTION_INFO_V1(xt_release);
PGDLLEXPORT Datum xt_release(PG_FUNCTION_ARGS);
Datum xt_release(PG_FUNCTION_ARGS) { PG_RETURN_INT32(migrate_chunks_release(PG_GETARG_INT32(0), PG_GETARG_INT32(1))); }

Datum
xt_run(PG_FUNCTION_ARGS)
{
	BackgroundWorker w = {0};
	BackgroundWorkerHandle *h;
	XtArgs a = {0};
	pid_t pid;
	a.db = MyDatabaseId; a.owner = GetUserId(); a.job = PG_GETARG_INT32(0);
	strlcpy(a.transport, text_to_cstring(PG_GETARG_TEXT_PP(1)), 8);
	strlcpy(a.chunking, text_to_cstring(PG_GETARG_TEXT_PP(2)), 8);
	a.blocks = PG_GETARG_INT32(3); a.rows = PG_GETARG_INT32(4); a.plan = PG_GETARG_INT32(5); a.max_chunks = PG_GETARG_INT32(6); a.delay_ms = PG_GETARG_INT32(7);
	a.chunk_time = PG_GETARG_INT32(8);
	w.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	w.bgw_start_time = BgWorkerStart_RecoveryFinished;
	w.bgw_restart_time = BGW_NEVER_RESTART;
	strcpy(w.bgw_library_name, "migrate"); strcpy(w.bgw_function_name, "xt_main");
	strcpy(w.bgw_name, "xt"); strcpy(w.bgw_type, "xt");
	w.bgw_notify_pid = MyProcPid;
	memcpy(w.bgw_extra, &a, sizeof(a));
	if (!RegisterDynamicBackgroundWorker(&w, &h)) elog(ERROR, "no worker");
	(void) WaitForBackgroundWorkerStartup(h, &pid);
	if (PG_GETARG_BOOL(9)) WaitForBackgroundWorkerShutdown(h);
	PG_RETURN_INT32(pid);
}

typedef struct Tot { int64 n; uint64 sum; int64 bytes; int dead; } Tot;

static void read_range(MigrateConn *conn, MigrateSource *src, MigrateRange *r, Tot *tot, MigrateChunk *chunk, int depth)
{
	MigrateReader *volatile reader = NULL;
	Tot t = {0};
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner own = CurrentResourceOwner;
	volatile bool failed = false;
	ErrorData *volatile ed = NULL;
	TupleDesc bd = BlessTupleDesc(CreateTupleDescCopy(src->rowdesc));
	FmgrInfo fi; 
	MemoryContext rc = AllocSetContextCreate(cxt, "x", ALLOCSET_DEFAULT_SIZES);
	Datum *values = palloc(sizeof(Datum) * (src->ncolumns + 1)); bool *nulls = palloc(src->ncolumns + 1);
	fmgr_info(F_RECORD_OUT_XT, &fi);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		int64 b;
		reader = migrate_reader_open(conn, src, r, 10000);
		while (migrate_reader_next(reader, values, nulls, &b))
		{
			MemoryContext o = MemoryContextSwitchTo(rc);
			HeapTuple ht = heap_form_tuple(bd, values, nulls);
			char *s = OutputFunctionCall(&fi, HeapTupleGetDatum(ht));
			t.sum += (uint64) DatumGetInt64(hash_any_extended((unsigned char *) s, strlen(s), 0));
			t.n++; t.bytes += b;
			MemoryContextSwitchTo(o);
			MemoryContextReset(rc);
			CHECK_FOR_INTERRUPTS();
		}
		migrate_reader_close(reader);
		reader = NULL;
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(cxt); CurrentResourceOwner = own;
	}
	PG_CATCH();
	{
		failed = true;
		MemoryContextSwitchTo(cxt);
		ed = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(cxt); CurrentResourceOwner = own;
	}
	PG_END_TRY();
	if (failed)
	{
		MigrateRange a, bb;
		int cls = ERRCODE_TO_CATEGORY(ed->sqlerrcode);
		if (reader) migrate_reader_abort(reader);
		if (depth == 0) elog(LOG, "XT read failed: %s %s ctx %s", unpack_sql_state(ed->sqlerrcode), ed->message, ed->context ? ed->context : "");
		if (cls != ERRCODE_DATA_EXCEPTION && cls != ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION) ReThrowError(ed);
		if (migrate_range_halve(conn, src, r, &a, &bb))
		{
			read_range(conn, src, &a, tot, chunk, depth + 1);
			read_range(conn, src, &bb, tot, chunk, depth + 1);
		}
		else
		{
			char *k, *raw;
			Oid ty[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID};
			Datum v[4]; char n[] = "    ";
			migrate_range_raw(conn, src, r, &k, &raw);
			v[0] = Int64GetDatum(chunk->chunk_id);
			if (k) v[1] = CStringGetTextDatum(k); else n[1] = 'n';
			v[2] = CStringGetTextDatum(raw); v[3] = CStringGetTextDatum(ed->message);
			SPI_connect();
			migrate_spi_exec("INSERT INTO xt_dead VALUES ($1, $2::jsonb, $3::jsonb, $4)", 4, ty, v, n, SPI_OK_INSERT);
			SPI_finish();
			tot->dead++;
		}
	}
	else { tot->n += t.n; tot->sum += t.sum; tot->bytes += t.bytes; }
	MemoryContextDelete(rc);
}

void
xt_main(Datum arg)
{
	XtArgs a; MigrateJob job = {0}; MigrateConn *conn = NULL; Oid server; int chunks = 0;
	MemoryContext cc;
	memcpy(&a, MyBgworkerEntry->bgw_extra, sizeof(a));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(a.db, a.owner, 0);
	job.job_id = a.job; job.transport = a.transport; job.chunking = a.chunking; job.chunk_blocks = a.blocks; job.chunk_rows = a.rows; job.chunk_time_ms = a.chunk_time; job.owner = a.owner; job.fetch_size = 10000;
	StartTransactionCommand(); PushActiveSnapshot(GetTransactionSnapshot()); SPI_connect();
	SPI_execute(psprintf("select server::int8 from migrate.job where job_id=%d", a.job), true, 1);
	server = (Oid) migrate_spi_int64(0, 0, 0);
	SPI_finish();
	MemoryContextSwitchTo(TopMemoryContext);
	if (server && migrate_server_is_postgres(server))
		conn = migrate_connect(server, a.owner, "tést job with a rather long name that does not fit in it", "loader", 10);
	if (a.plan)
	{
		instr_time t0, t1;
		INSTR_TIME_SET_CURRENT(t0);
		migrate_plan_sources(&job, conn, a.plan > 1 ? a.plan - 1 : 0);
		INSTR_TIME_SET_CURRENT(t1); INSTR_TIME_SUBTRACT(t1, t0);
		elog(LOG, "XT plan %.1f ms", INSTR_TIME_GET_MILLISEC(t1));
	}
	PopActiveSnapshot(); CommitTransactionCommand();
	cc = AllocSetContextCreate(TopMemoryContext, "chunk", ALLOCSET_DEFAULT_SIZES);
	while (a.max_chunks == 0 || chunks < a.max_chunks)
	{
		MigrateChunk *c; MigrateSource *src; MigrateSourceTxn txn; Tot tot = {0};
		instr_time t0, t1, t2;
		Oid ty[] = {INT8OID, INT4OID, INT8OID, INT8OID, TEXTOID, TEXTOID, INT8OID, BOOLOID};
		Datum v[8]; char nn[] = "        ";
		INSTR_TIME_SET_CURRENT(t0);
		c = migrate_chunk_claim(&job, conn, cc);
		INSTR_TIME_SET_CURRENT(t1);
		if (!c) break;
		chunks++;
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand(); PushActiveSnapshot(GetTransactionSnapshot());
		MemoryContextSwitchTo(cc);
		src = migrate_source_load(c->source_id);
		migrate_source_begin(conn, src, &c->range, &txn);
		if (txn.rewritten)
		{
			elog(LOG, "XT rewritten: %s", src->label);
			SPI_connect(); SPI_execute(psprintf("update migrate.source_table set state='replan' where source_id=%d", src->source_id), false, 0); SPI_finish();
			migrate_source_end(conn);
			PopActiveSnapshot(); CommitTransactionCommand(); continue;
		}
		read_range(conn, src, &c->range, &tot, c, 0);
		if (a.delay_ms) { (void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, a.delay_ms, PG_WAIT_EXTENSION); ResetLatch(MyLatch); CHECK_FOR_INTERRUPTS(); }
		migrate_source_wait_durable(conn, &txn);
		INSTR_TIME_SET_CURRENT(t2); 
		v[0] = Int64GetDatum(c->chunk_id); v[1] = Int32GetDatum(c->source_id); v[2] = Int64GetDatum(tot.n); v[3] = Int64GetDatum((int64) tot.sum);
		v[4] = CStringGetTextDatum(psprintf("claim %.2f ms read %.1f ms bytes " INT64_FORMAT " dead %d lsn %X/%X", (INSTR_TIME_GET_MICROSEC(t1) - INSTR_TIME_GET_MICROSEC(t0)) / 1000.0, (INSTR_TIME_GET_MICROSEC(t2) - INSTR_TIME_GET_MICROSEC(t1)) / 1000.0, tot.bytes, tot.dead, LSN_FORMAT_ARGS(txn.insert_lsn)));
		if (txn.snapshot) v[5] = CStringGetTextDatum(txn.snapshot); else nn[5] = 'n';
		v[6] = Int64GetDatum(tot.dead); v[7] = BoolGetDatum(src->binary);
		SPI_connect();
		migrate_spi_exec("INSERT INTO xt_result VALUES ($1,$2,$3,$4,$5,$6,$7,$8)", 8, ty, v, nn, SPI_OK_INSERT);
		migrate_spi_exec("UPDATE migrate.chunk SET state='done', rows_read=$3 WHERE chunk_id=$1 and $2 = $2", 3, ty, v, nn, SPI_OK_UPDATE);
		SPI_finish();
		migrate_chunk_adapt(&job, c, (INSTR_TIME_GET_MICROSEC(t2) - INSTR_TIME_GET_MICROSEC(t1)) / 1e6);
		PopActiveSnapshot(); CommitTransactionCommand();
		migrate_source_end(conn);
		MemoryContextReset(cc);
	}
	elog(LOG, "XT end: %d chunks, memory %zu", chunks, MemoryContextMemAllocated(TopMemoryContext, true));
	proc_exit(0);
}
void migrate_event(int job_id, const char *level, const char *kind, const char *fmt, ...) { elog(LOG, "XT event %s %s", level, kind); }
