#include "load/apply_set.h"

void
migrate_apply_bag(MigrateApplier *applier, MigrateApplyBag *bag, MigrateApplyCounts *counts)
{
	elog(ERROR, "tables without a key are not applied yet");
}
