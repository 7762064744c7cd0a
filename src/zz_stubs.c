#include "migrate.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
static void B(void){StartTransactionCommand();SPI_connect();PushActiveSnapshot(GetTransactionSnapshot());}
static void C(void){PopActiveSnapshot();SPI_finish();CommitTransactionCommand();}
static void X(const char*s){int r=SPI_execute(s,false,0); if(r<0) elog(ERROR,"stub %s",s);}
bool migrate_server_is_postgres(Oid s){return false;}
MigrateConn*migrate_connect(Oid s,Oid o,const char*j,const char*r,int t){elog(ERROR,"no");}
void migrate_disconnect(MigrateConn*c){}
char*migrate_exec_value(MigrateConn*c,const char*q){return NULL;}
void migrate_plan_sources(MigrateJob*j,MigrateConn*c,int id){
 SPI_connect();PushActiveSnapshot(GetTransactionSnapshot());
 X(psprintf("INSERT INTO migrate.leaf(source_id,leaf_no,relation,blocks,chunk_size) SELECT source_id,1,source,estimated_rows,1 FROM migrate.source_table WHERE job_id=%d AND state='pending'",j->job_id));
 X(psprintf("UPDATE migrate.source_table SET state='copying' WHERE job_id=%d AND state='pending'",j->job_id));
 PopActiveSnapshot();SPI_finish();
}
MigrateChunk*migrate_chunk_claim(MigrateJob*j,MigrateConn*c,MemoryContext m){
 MigrateChunk*k=NULL; 
 B();
 X(psprintf("UPDATE migrate.chunk SET state='running',attempt=attempt+1,worker_pid=%d,started_at=now() WHERE chunk_id=(SELECT chunk_id FROM migrate.chunk c JOIN migrate.source_table s USING(source_id) WHERE c.job_id=%d AND c.state='todo' AND s.state='copying' ORDER BY chunk_id FOR UPDATE OF c SKIP LOCKED LIMIT 1) RETURNING chunk_id,source_id,plan_no,attempt,(SELECT source FROM migrate.source_table s WHERE s.source_id=chunk.source_id)",MyProcPid,j->job_id));
 if(SPI_processed==0){
  X(psprintf("WITH l AS (UPDATE migrate.leaf SET next_block=next_block+1,exhausted=next_block+1>=blocks WHERE (source_id,leaf_no)=(SELECT l.source_id,leaf_no FROM migrate.leaf l JOIN migrate.source_table s USING(source_id) WHERE s.job_id=%d AND s.state='copying' AND NOT exhausted FOR UPDATE OF l SKIP LOCKED LIMIT 1) RETURNING *) INSERT INTO migrate.chunk(job_id,source_id,leaf_no,plan_no,block_lo,worker_pid,started_at) SELECT s.job_id,s.source_id,leaf_no,plan_no,next_block-1,%d,now() FROM l JOIN migrate.source_table s USING(source_id) RETURNING chunk_id,source_id,plan_no,attempt,(SELECT source FROM migrate.source_table s WHERE s.source_id=chunk.source_id)",j->job_id,MyProcPid));
 }
 if(SPI_processed>0){MemoryContext o=MemoryContextSwitchTo(m);k=palloc0(sizeof*k);k->chunk_id=migrate_spi_int64(0,0,0);k->source_id=migrate_spi_int64(0,1,0);k->plan_no=migrate_spi_int64(0,2,0);k->attempt=migrate_spi_int64(0,3,0);k->range.relation=migrate_spi_text(0,4);MemoryContextSwitchTo(o);}
 C();
 return k;}
void migrate_chunk_adapt(MigrateJob*j,MigrateChunk*c,double s){}
int migrate_chunks_release(int job,int pid){
 SPI_connect();PushActiveSnapshot(GetTransactionSnapshot());
 X(psprintf("UPDATE migrate.chunk SET state='todo',worker_pid=NULL WHERE job_id=%d AND state='running' AND (%d=0 OR worker_pid=%d)",job,pid,pid));
 PopActiveSnapshot();SPI_finish();return 0;}
bool migrate_chunk_load(MigrateJob*j,MigrateConn*c,MigrateChunk*k){
 const char*s=k->range.relation;int ms=50;
 B();
 if(strncmp(s,"ms",2)==0) ms=atoi(s+2);
 for(int i=0;i<10;i++){ (void)WaitLatch(MyLatch,WL_TIMEOUT|WL_EXIT_ON_PM_DEATH,ms/10,PG_WAIT_EXTENSION); CHECK_FOR_INTERRUPTS();
  if(strncmp(s,"dead",4)==0){ X(psprintf("INSERT INTO migrate.dead_letter(job_id,mapping_id,chunk_id,stage,sqlstate,message) SELECT job_id,mapping_id,"INT64_FORMAT",'map','22P02','bad row' FROM migrate.mapping WHERE source_id=%d",k->chunk_id,k->source_id)); migrate_worker_count(0,0,1);}
  migrate_worker_count(100,1000,0); migrate_throttle(100,1000);}
 migrate_fault("chunk-batch");
 if(strncmp(s,"err",3)==0){ X(psprintf("DO $$ BEGIN RAISE EXCEPTION 'stub error' USING ERRCODE='%s'; END $$",s+3)); }
 if(strncmp(s,"rewritten",9)==0 && k->plan_no==0 && k->chunk_id%5==4){ C(); return false;}
 X(psprintf("UPDATE migrate.chunk SET state='done',rows_read=1000,finished_at=now() WHERE chunk_id="INT64_FORMAT" AND attempt=%d AND state='running' AND plan_no=(SELECT plan_no FROM migrate.source_table s WHERE s.source_id=chunk.source_id)",k->chunk_id,k->attempt));
 if(SPI_processed==0) ereport(ERROR,(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),errmsg("taken over")));
 C();return true;}
void migrate_build_keys(MigrateJob*j){(void)WaitLatch(MyLatch,WL_TIMEOUT|WL_EXIT_ON_PM_DEATH,200,PG_WAIT_EXTENSION);}
