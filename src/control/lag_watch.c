#include "postgres.h"
#include "control/job_worker.h"
void
migrate_lag_watch(MigrateJob *job)
{
}
