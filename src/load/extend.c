/*-------------------------------------------------------------------------
 *
 * extend.c
 *	  Room at the end of a table, many blocks at a time.
 *
 * PostgreSQL 15 makes a table longer by one block at a time, each by writing 8
 * kB of zeros: a quarter of a loader's time.  Version 16 asks the file system
 * for many blocks at once (posix_fallocate), and then this file has nothing to
 * do.  Here it is done in the order that is safe beside other backends, under
 * the lock for extension:
 *
 *	  space is reserved behind the end of the file (ENOSPC comes now, and not
 *	  when a checkpoint writes the pages; the length stays)
 *	  -> empty pages in shared buffers, which nobody can look for yet
 *	  -> the last block is written, which makes the file that long
 *	  -> the free space map tells inserters
 *
 * What is made is what the tuples at hand need, so that nothing is left over.
 *
 * Process: loader, in the transaction that writes.  Locks: that for the
 * relation's extension, for the moment.  A crash or an error leaves empty pages,
 * as it does in core; the next insert or VACUUM finds them.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "load/load.h"

#include <fcntl.h>

#include "access/heaptoast.h"
#include "access/htup_details.h"
#include "storage/bufmgr.h"
#include "storage/fd.h"
#include "storage/freespace.h"
#include "storage/lmgr.h"
#include "storage/smgr.h"
#include "utils/rel.h"

/* fewer blocks are not worth it; and not more at a time */
#define MIN_BLOCKS 4
#define MAX_BLOCKS 256

#if PG_VERSION_NUM < 160000 && defined(FALLOC_FL_KEEP_SIZE)

/* a file system that cannot: core's way from now on */
static bool unsupported = false;

/*
 * Reserve space in the file that holds block "first", for n blocks from there.
 * False where that cannot be: then core does it, or says what is wrong.
 */
static bool
reserve_space(Relation rel, BlockNumber first, int n)
{
	char	   *path = relpath(RelationGetSmgr(rel)->smgr_rnode, MAIN_FORKNUM);
	BlockNumber segment = first / RELSEG_SIZE;
	off_t		start = (off_t) (first % RELSEG_SIZE) * BLCKSZ;
	int			fd;
	int			rc;
	int			error;

	if (segment > 0)
		path = psprintf("%s.%u", path, segment);
	fd = OpenTransientFile(path, O_RDWR | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	do
		rc = fallocate(fd, FALLOC_FL_KEEP_SIZE, start, (off_t) n * BLCKSZ);
	while (rc != 0 && errno == EINTR);
	error = errno;
	CloseTransientFile(fd);
	if (rc == 0)
		return true;
	if (error == EOPNOTSUPP || error == ENOSYS)
		unsupported = true;
	errno = error;
	if (error == ENOSPC)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not extend file \"%s\": %m", path),
				 errhint("Check free disk space.")));
	return false;
}

/* Empty pages for n blocks from "first", which are behind the end. */
static void
make_pages(Relation rel, BlockNumber first, int n, BufferAccessStrategy strategy)
{
	for (int i = 0; i < n; i++)
		UnlockReleaseBuffer(ReadBufferExtended(rel, MAIN_FORKNUM, first + i,
											   RBM_ZERO_AND_LOCK, strategy));
}

static void
extend(Relation rel, int n, BufferAccessStrategy strategy)
{
	PGAlignedBlock zeros;
	BlockNumber first;

	LockRelationForExtension(rel, ExclusiveLock);
	first = RelationGetNumberOfBlocks(rel);

	/* core makes the first block of a file */
	n = Min(n, RELSEG_SIZE - first % RELSEG_SIZE);
	if (first % RELSEG_SIZE == 0 || n < MIN_BLOCKS ||
		first + n > MaxBlockNumber - RELSEG_SIZE)
		n = 0;
	if (n > 0 && !reserve_space(rel, first, n))
		n = 0;
	if (n > 0)
	{
		make_pages(rel, first, n, strategy);
		memset(zeros.data, 0, BLCKSZ);
		smgrextend(RelationGetSmgr(rel), MAIN_FORKNUM, first + n - 1, zeros.data, false);
	}
	UnlockRelationForExtension(rel, ExclusiveLock);
	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
		RecordPageWithFreeSpace(rel, first + i, BLCKSZ - SizeOfPageHeaderData);
	FreeSpaceMapVacuumRange(rel, first, first + n);
}

/*
 * Tuples of so many bytes, their line pointers included, are going to be
 * inserted; *owed is what earlier calls have not made room for.
 */
void
migrate_extend_for(Relation rel, Size bytes, Size *owed, BufferAccessStrategy strategy)
{
	Size		page = RelationGetTargetPageUsage(rel, HEAP_DEFAULT_FILLFACTOR) - SizeOfPageHeaderData;
	Size		n;

	*owed += bytes;
	n = Min(*owed / page, MAX_BLOCKS);
	if (unsupported || n < MIN_BLOCKS)
		return;
	*owed -= n * page;
	extend(rel, (int) n, strategy);
}

#else

void
migrate_extend_for(Relation rel, Size bytes, Size *owed, BufferAccessStrategy strategy)
{
}

#endif

/* What a tuple of that length takes in a page; one that is toasted, nothing. */
Size
migrate_tuple_room(Size length)
{
	return length > TOAST_TUPLE_THRESHOLD ? 0 : MAXALIGN(length) + sizeof(ItemIdData);
}
