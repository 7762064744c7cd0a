/*-------------------------------------------------------------------------
 *
 * row_hash.c
 *	  The canonical form of a mapped row and its hash.
 *
 * A row is written as its columns one after the other; a column is a mark (0
 * for null, 1 for a value), the value's length where it is not fixed, and the
 * value.  No two different rows have the same form, so a difference can only
 * hide in a collision of XXH3's 128 bits (which is no cryptographic hash:
 * chance, not malice, is what it withstands).
 *
 * A value is its text as the type's output function gives it under pinned
 * settings.  Where a type's inner bytes determine its text (integers, dates,
 * timestamps, text, bytea, uuid, numeric, jsonb) the bytes are taken, which
 * is several times faster.  So 1.0 and 1.00 differ, a float is compared to its
 * last bit, and no collation has a say.  The bytes of a numeric or jsonb may,
 * of values that a very old server wrote, differ where the texts do not: a
 * difference is one only when the texts differ, too (compare.c).
 *
 * Runs in the backend that validates and in its parallel workers; the state is
 * in ValidateShape, or in the call of an SQL function (digest.c).  Nothing here
 * is kept, so a crash leaves nothing behind.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "migrate.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "validate.h"

/* values longer than this enter the form of a row as their hash */
#define LONG_VALUE 65536

/*
 * Output settings in force while values become text, equal for both sides and
 * for every session that validates.
 */
static const char *const pinned[][2] = {
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"extra_float_digits", "3"},
	{"bytea_output", "hex"},
	{"lc_monetary", "C"},
	{"xmlbinary", "base64"},
	{"search_path", "pg_catalog"},
};

/* Set them until validate_unpin_settings, or the end of the transaction. */
int
validate_pin_settings(void)
{
	int			nestlevel = NewGUCNestLevel();

	for (int i = 0; i < lengthof(pinned); i++)
		(void) set_config_option(pinned[i][0], pinned[i][1], PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

void
validate_unpin_settings(int nestlevel)
{
	AtEOXact_GUC(true, nestlevel);
}

/*
 * How values of a type are hashed.  The text of a type listed here is a
 * function of the bytes.
 */
static ValidateForm
form_of_type(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
			return FORM_INTEGER;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case BYTEAOID:
		case JSONOID:
		case NUMERICOID:
		case JSONBOID:
			return FORM_BYTES;
		case UUIDOID:
		case INTERVALOID:
		case TIMETZOID:
			return FORM_FIXED;
		default:
			return FORM_TEXT;
	}
}

/* How values of a type become bytes, and what that takes. */
void
validate_value_form(ValidateValue *v, Oid type)
{
	Oid			out;
	bool		varlena;
	Oid			base = getBaseType(type);

	getTypeOutputInfo(type, &out, &varlena);
	fmgr_info(out, &v->out);
	v->form = form_of_type(base);
	v->length = get_typlen(base);
}

/* Describe one column; source_att is its number in the mapping's output. */
static void
shape_column(ValidateColumn *col, MigrateMapping *map, const char *name,
			 int source_att, int target_att)
{
	AttrNumber	attnum = get_attnum(map->target, name);
	Oid			base[2];

	if (attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of target table %s does not exist any more",
						name, map->target_name),
				 errhint("Remove the mapping and add it again.")));
	col->name = pstrdup(name);
	col->attno[VALIDATE_SOURCE] = source_att;
	col->attno[VALIDATE_TARGET] = target_att;
	col->type[VALIDATE_SOURCE] =
		TupleDescAttr(map->outdesc, source_att - 1)->atttypid;
	col->type[VALIDATE_TARGET] = get_atttype(map->target, attnum);
	for (int side = 0; side < 2; side++)
	{
		validate_value_form(&col->value[side], col->type[side]);
		base[side] = getBaseType(col->type[side]);
	}
	/* a key expression may have another type than the column: then as text */
	col->as_text = base[0] != base[1];
	if (col->as_text)
		col->value[0].form = col->value[1].form = FORM_TEXT;
}

/*
 * The shape of a compiled mapping's rows, in the current memory context.
 */
ValidateShape *
validate_shape(MigrateMapping *map)
{
	ValidateShape *shape = palloc0(sizeof(ValidateShape));
	int			max = map->ncolumns + map->nkeys;

	shape->columns = palloc0(sizeof(ValidateColumn) * Max(max, 1));
	shape->keys = palloc0(sizeof(int) * Max(map->nkeys, 1));
	shape->offsets = palloc0(sizeof(int) * (max + 1));
	for (int i = 0; i < map->ncolumns; i++)
		shape_column(&shape->columns[i], map, map->columns[i], i + 1, i + 1);
	shape->ncolumns = map->ncolumns;
	shape->nkeys = map->nkeys;
	for (int k = 0; k < map->nkeys; k++)
	{
		int			i;

		for (i = 0; i < map->ncolumns; i++)
			if (strcmp(map->columns[i], map->key_columns[k]) == 0)
				break;
		if (i == map->ncolumns)
		{
			i = shape->ncolumns++;
			shape_column(&shape->columns[i], map, map->key_columns[k],
						 map->ncolumns + k + 1, i + 1);
		}
		shape->keys[k] = i;
	}
	initStringInfo(&shape->row);
	initStringInfo(&shape->key);
	shape->tmp = AllocSetContextCreate(CurrentMemoryContext, "migrate row hash",
									   ALLOCSET_DEFAULT_SIZES);
	return shape;
}

ValidateHash
validate_hash_bytes(const char *data, size_t len)
{
	XXH128_hash_t h = XXH3_128bits(data, len);

	return (ValidateHash)
	{
		.lo = h.low64,.hi = h.high64
	};
}

/*
 * Append length and bytes; of a long value its hash, so that the form of a row
 * with several large columns stays small.
 */
static void
append_bytes(StringInfo buf, const char *data, uint32 len)
{
	appendBinaryStringInfo(buf, (const char *) &len, sizeof(len));
	if (len > LONG_VALUE)
	{
		ValidateHash h = validate_hash_bytes(data, len);

		appendBinaryStringInfo(buf, (const char *) &h, sizeof(h));
	}
	else
		appendBinaryStringInfo(buf, data, len);
}

static int64
integer_value(Datum value, int16 length)
{
	switch (length)
	{
		case 1:
			return DatumGetBool(value) ? 1 : 0;
		case 2:
			return DatumGetInt16(value);
		case 4:
			return DatumGetInt32(value);
		default:
			return DatumGetInt64(value);
	}
}

/*
 * Append a column's value with its mark; garbage goes to the current context.
 * Where text is involved the settings must be pinned.
 */
void
validate_append_value(StringInfo buf, ValidateValue *v, Datum value, bool isnull)
{
	appendStringInfoCharMacro(buf, isnull ? 0 : 1);
	if (isnull)
		return;
	switch (v->form)
	{
		case FORM_INTEGER:
			{
				int64		n = integer_value(value, v->length);

				appendBinaryStringInfo(buf, (const char *) &n, sizeof(n));
				break;
			}
		case FORM_BYTES:
			{
				struct varlena *bytes = PG_DETOAST_DATUM_PACKED(value);

				append_bytes(buf, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes));
				break;
			}
		case FORM_FIXED:
			appendBinaryStringInfo(buf, DatumGetPointer(value), v->length);
			break;
		case FORM_TEXT:
			{
				char	   *s = OutputFunctionCall(&v->out, value);

				append_bytes(buf, s, strlen(s));
				break;
			}
	}
}

/*
 * Fill row->row and row->key from row->slot.  The settings must be pinned.
 */
void
validate_hash(ValidateShape *shape, ValidateRow *row)
{
	StringInfo	buf = &shape->row;
	MemoryContext old = MemoryContextSwitchTo(shape->tmp);

	resetStringInfo(buf);
	for (int i = 0; i < shape->ncolumns; i++)
	{
		ValidateColumn *col = &shape->columns[i];
		bool		isnull;
		Datum		value = slot_getattr(row->slot, col->attno[row->side], &isnull);

		shape->offsets[i] = buf->len;
		validate_append_value(buf, &col->value[row->side], value, isnull);
	}
	shape->offsets[shape->ncolumns] = buf->len;
	row->row = validate_hash_bytes(buf->data, buf->len);
	if (shape->nkeys == 0)
		row->key = row->row;
	else
	{
		resetStringInfo(&shape->key);
		for (int k = 0; k < shape->nkeys; k++)
		{
			int			i = shape->keys[k];

			appendBinaryStringInfo(&shape->key, buf->data + shape->offsets[i],
								   shape->offsets[i + 1] - shape->offsets[i]);
		}
		row->key = validate_hash_bytes(shape->key.data, shape->key.len);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(shape->tmp);
}

/* A column's canonical text, NULL for null; the settings must be pinned. */
char *
validate_column_text(ValidateShape *shape, ValidateSide side,
					 TupleTableSlot *slot, int column)
{
	ValidateColumn *col = &shape->columns[column];
	bool		isnull;
	Datum		value = slot_getattr(slot, col->attno[side], &isnull);

	return isnull ? NULL : OutputFunctionCall(&col->value[side].out, value);
}
