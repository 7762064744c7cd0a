#include "load/apply_set.h"

bool
migrate_apply_truncate(MigrateApplier *applier, const char *leaf)
{
	elog(ERROR, "TRUNCATE is not applied yet");
	return false;
}
