/*-------------------------------------------------------------------------
 *
 * decode.c
 *	  Rows of binary COPY into values.
 *
 * Does what core's parser does for the format that it describes (manual, COPY,
 * "Binary Format"), on the message of libpq that holds the row: no byte is
 * copied through the parser's buffers, and a value of a common type is taken
 * where it lies.
 *
 * P7, one conversion: the receive function of the declared type says what a
 * value is.  For some types it does so little that it is done here, but only
 * where the outcome is certain (the right length, ASCII, within the range); in
 * every other case, so also for every error, the receive function is asked.
 * t/013_decode compares the two.
 *
 *	  int, float, bool, oid		byte order alone
 *	  date, timestamp			the same, years 1 to 9999
 *	  uuid						where it lies
 *	  text, varchar, char(n)	encoding verified, and as long as may be
 *	  bytea						as it is
 *	  numeric					as it is kept, if no digit goes
 *	  jsonb						decode_jsonb.c
 *
 * A short varlena gets its one-byte header in place of the last byte of the
 * field's length, so that text of up to 126 bytes is not copied either.  Such
 * values live as long as the message.
 *
 * Process: whoever reads a source.  States and locks: none; a crash leaves
 * nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#define SIGNATURE "PGCOPY\n\377\r\n\0"
#define SIGNATURE_SIZE 11

/* Values of date and timestamp from year 1 to 9999, in their units. */
#define MIN_DATE (-730119)
#define MAX_DATE 2921939

/* numeric as it is sent, and as it is kept (numeric.c) */
#define NUMERIC_SENT_POSITIVE 0x0000
#define NUMERIC_SENT_NEGATIVE 0x4000
#define NUMERIC_SHORT 0x8000
#define NUMERIC_SHORT_SIGN 0x2000
#define NUMERIC_SHORT_SCALE_SHIFT 7
#define NUMERIC_SHORT_WEIGHT_MASK 0x007f	/* with its sign */
#define MAX_NUMERIC_DIGITS 60	/* to base 10,000, that fit a short varlena */

typedef struct DecodeColumn
{
	Oid			type;			/* InvalidOid: by the receive function */
	int			max_chars;		/* of varchar(n) and char(n); -1: any */
	FmgrInfo	receive;
	Oid			ioparam;
	int32		typmod;
	const char *name;
} DecodeColumn;

struct MigrateDecoder
{
	int			ncolumns;
	DecodeColumn *columns;
	bool		begun;			/* the header was read */

	/* for the errors' context */
	const char *relation;
	uint64		line;
	const char *column;			/* NULL: none */
};

/* ----------------------------------------------------------------
 * making one
 * ----------------------------------------------------------------
 */

/* Is the type, so declared, one of those that are decoded here? */
static Oid
decoded_here(Oid type, int32 typmod)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case DATEOID:
		case UUIDOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case BYTEAOID:
		case NUMERICOID:
		case JSONBOID:
			return type;
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			/* fewer digits of a second are rounded to */
			return typmod < 0 || typmod == MAX_TIMESTAMP_PRECISION ? type : InvalidOid;
	}
	return InvalidOid;
}

/*
 * For the source's columns, in the current memory context.  "relation" is for
 * messages.
 */
MigrateDecoder *
migrate_decoder_create(MigrateSource *src, const char *relation)
{
	MigrateDecoder *decoder = palloc0(sizeof(MigrateDecoder));

	decoder->ncolumns = src->ncolumns;
	decoder->columns = palloc0(Max(src->ncolumns, 1) * sizeof(DecodeColumn));
	decoder->relation = relation;
	for (int i = 0; i < src->ncolumns; i++)
	{
		DecodeColumn *col = &decoder->columns[i];
		Oid			receive;

		col->name = src->columns[i].name;
		col->typmod = src->columns[i].typmod;
		col->type = decoded_here(src->columns[i].type, col->typmod);
		col->max_chars = col->typmod >= (int32) VARHDRSZ ? col->typmod - VARHDRSZ : -1;
		getTypeBinaryInputInfo(src->columns[i].type, &receive, &col->ioparam);
		fmgr_info(receive, &col->receive);
	}
	return decoder;
}

/* Errors name line and column as COPY's do; arg is the decoder. */
void
migrate_decoder_context(void *arg)
{
	MigrateDecoder *decoder = arg;

	if (decoder->column)
		errcontext("COPY %s, line %llu, column %s", decoder->relation,
				   (unsigned long long) decoder->line, decoder->column);
	else
		errcontext("COPY %s, line %llu", decoder->relation,
				   (unsigned long long) decoder->line);
}

/* ----------------------------------------------------------------
 * where a row ends
 * ----------------------------------------------------------------
 */
static inline int16
get_int16(const char *p)
{
	uint16		n;

	memcpy(&n, p, sizeof(n));
	return (int16) pg_ntoh16(n);
}

static inline int32
get_int32(const char *p)
{
	uint32		n;

	memcpy(&n, p, sizeof(n));
	return (int32) pg_ntoh32(n);
}

static inline int64
get_int64(const char *p)
{
	uint64		n;

	memcpy(&n, p, sizeof(n));
	return (int64) pg_ntoh64(n);
}

static void
bad_format(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_BAD_COPY_FILE_FORMAT),
			 errmsg("binary COPY data of the source cannot be read: %s", what)));
}

/* What comes before the first row: its length, -1 if it is not all there. */
static int64
header_length(const char *data, int64 len)
{
	int64		size = SIGNATURE_SIZE + 2 * sizeof(int32);
	int32		more;

	if (len < size)
		return -1;
	if (memcmp(data, SIGNATURE, SIGNATURE_SIZE) != 0)
		bad_format("it does not begin as it should");
	if (get_int32(data + SIGNATURE_SIZE) != 0)
		bad_format("it has flags that are not known");
	more = get_int32(data + SIGNATURE_SIZE + sizeof(int32));
	if (more < 0)
		bad_format("its header is invalid");
	return len < size + more ? -1 : size + more;
}

/*
 * The length of the row that begins at data, with the header if it is the
 * first one, or of the trailer; -1 when more has to be received.
 */
int64
migrate_decode_length(MigrateDecoder *decoder, const char *data, int64 len)
{
	int64		pos = 0;
	int			n;

	if (!decoder->begun && (pos = header_length(data, len)) < 0)
		return -1;
	if (len - pos < (int64) sizeof(int16))
		return -1;
	n = get_int16(data + pos);
	pos += sizeof(int16);
	if (n == -1)
		return pos;
	if (n != decoder->ncolumns)
		bad_format(psprintf("a row has %d fields, expected %d", n, decoder->ncolumns));
	for (int i = 0; i < n; i++)
	{
		int32		size;

		if (len - pos < (int64) sizeof(int32))
			return -1;
		size = get_int32(data + pos);
		if (size < -1)
			bad_format("a field has an invalid size");
		pos += sizeof(int32) + Max(size, 0);
		if (pos > len)
			return -1;
	}
	return pos;
}

/* ----------------------------------------------------------------
 * values
 * ----------------------------------------------------------------
 */

/* ASCII without a zero byte: valid in every encoding of a server. */
static inline bool
is_ascii(const char *s, int len)
{
	uint64		high = 0;
	uint64		nonzero = UINT64CONST(0x8080808080808080);
	const char *end = s + len;

	for (; end - s >= (int) sizeof(uint64); s += sizeof(uint64))
	{
		uint64		x;

		memcpy(&x, s, sizeof(x));
		high |= x;
		/* no byte carries into the next where none has its high bit */
		nonzero &= x + UINT64CONST(0x7f7f7f7f7f7f7f7f);
	}
	for (; s < end; s++)
	{
		if (*s == '\0')
			return false;
		high |= (uint64) (unsigned char) *s;
	}
	return ((high | ~nonzero) & UINT64CONST(0x8080808080808080)) == 0;
}

/* A varlena of the field's bytes: in its place if it is short. */
static inline Datum
varlena(char *field, int size)
{
	struct varlena *result;

	if (size + VARHDRSZ_SHORT <= VARATT_SHORT_MAX)
	{
		SET_VARSIZE_SHORT(field - VARHDRSZ_SHORT, size + VARHDRSZ_SHORT);
		return PointerGetDatum(field - VARHDRSZ_SHORT);
	}
	result = palloc((Size) size + VARHDRSZ);
	SET_VARSIZE(result, (Size) size + VARHDRSZ);
	memcpy(VARDATA(result), field, size);
	return PointerGetDatum(result);
}

/* Can a text be taken as it is, by encoding and length? */
static inline bool
text_fits(DecodeColumn *col, const char *field, int size)
{
	bool		ascii = is_ascii(field, size);

	if (!ascii && !pg_verifymbstr(field, size, true))
		return false;
	if (col->max_chars < 0 || col->type == TEXTOID)
		return true;
	if (col->type == BPCHAROID)
		return ascii && size == col->max_chars;
	return size <= col->max_chars;
}

/*
 * A numeric in the form in which it is kept (numeric.c, NumericShort): the
 * varlena's header, of "header" bytes, a word of sign, scale and weight, and the
 * digits to base 10,000 without zeros at either end.  That of jsonb's numbers is
 * like it.  Scale is at most 63, weight from -64 to 63.  How many bytes it is.
 */
Size
migrate_put_numeric(char *to, Size header, bool negative, int scale, int weight,
					const int16 *digits, int ndigits)
{
	uint16		word;
	Size		size;

	for (; ndigits > 0 && digits[0] == 0; digits++, ndigits--)
		weight--;
	while (ndigits > 0 && digits[ndigits - 1] == 0)
		ndigits--;
	if (ndigits == 0)
	{
		weight = 0;
		negative = false;
	}
	word = NUMERIC_SHORT | (negative ? NUMERIC_SHORT_SIGN : 0) |
		(scale << NUMERIC_SHORT_SCALE_SHIFT) |
		(weight & NUMERIC_SHORT_WEIGHT_MASK);
	size = header + sizeof(word) + ndigits * sizeof(int16);
	if (header == VARHDRSZ_SHORT)
		SET_VARSIZE_SHORT(to, size);
	else
		SET_VARSIZE(to, size);
	memcpy(to + header, &word, sizeof(word));
	memcpy(to + header + sizeof(word), digits, ndigits * sizeof(int16));
	return size;
}

/* May a numeric so declared be this one, as it is? */
static bool
numeric_fits(int32 typmod, int scale, int weight, const int16 *digits, int ndigits)
{
	int			precision;
	int			integral;

	if (typmod < (int32) VARHDRSZ)
		return true;
	/* manual, numeric(p, s); the scale has a sign of its own */
	precision = ((typmod - VARHDRSZ) >> 16) & 0xffff;
	if (scale != ((((typmod - VARHDRSZ) & 0x7ff) ^ 1024) - 1024))
		return false;
	if (ndigits == 0 || weight < 0)
		return true;
	integral = weight * 4 + (digits[0] >= 1000 ? 4 : digits[0] >= 100 ? 3 :
							 digits[0] >= 10 ? 2 : 1);
	return integral <= precision - scale;
}

/* A numeric that a server has sent, in its place; false: ask numeric_recv(). */
static bool
decode_numeric(DecodeColumn *col, char *field, int size, Datum *value)
{
	static const int16 tail[] = {1, 10, 100, 1000};
	int16		digits[MAX_NUMERIC_DIGITS];
	int			ndigits,
				weight,
				sign,
				scale,
				hidden;

	if (size < 4 * sizeof(int16))
		return false;
	ndigits = get_int16(field);
	weight = get_int16(field + 2);
	sign = get_int16(field + 4);
	scale = get_int16(field + 6);
	if (ndigits < 0 || ndigits > MAX_NUMERIC_DIGITS ||
		size != (4 + ndigits) * sizeof(int16) ||
		(sign != NUMERIC_SENT_POSITIVE && sign != NUMERIC_SENT_NEGATIVE) ||
		scale < 0 || scale > 63 || weight < -64 || weight > 63)
		return false;
	for (int i = 0; i < ndigits; i++)
	{
		digits[i] = get_int16(field + 8 + i * sizeof(int16));
		if (digits[i] < 0 || digits[i] > 9999)
			return false;
	}
	if (ndigits > 0 && (digits[0] == 0 || digits[ndigits - 1] == 0))
		return false;
	/* digits behind the scale would be cut off */
	hidden = (ndigits - 1 - weight) * 4 - scale;
	if (ndigits > 0 && hidden > 0 &&
		(hidden >= 4 || digits[ndigits - 1] % tail[hidden] != 0))
		return false;
	if (!numeric_fits(col->typmod, scale, weight, digits, ndigits))
		return false;
	(void) migrate_put_numeric(field - VARHDRSZ_SHORT, VARHDRSZ_SHORT,
							   sign == NUMERIC_SENT_NEGATIVE, scale, weight,
							   digits, ndigits);
	*value = PointerGetDatum(field - VARHDRSZ_SHORT);
	return true;
}

/* The value, if it is certain; else false. */
static inline bool
decode_here(DecodeColumn *col, char *field, int size, Datum *value)
{
	bool		done;
	int64		n;

	switch (col->type)
	{
		case BOOLOID:
			*value = BoolGetDatum(*field != 0);
			return size == sizeof(char);
		case INT2OID:
			if (size != sizeof(int16))
				return false;
			*value = Int16GetDatum(get_int16(field));
			return true;
		case INT4OID:
			if (size != sizeof(int32))
				return false;
			*value = Int32GetDatum(get_int32(field));
			return true;
		case OIDOID:
			if (size != sizeof(Oid))
				return false;
			*value = ObjectIdGetDatum((Oid) get_int32(field));
			return true;
		case FLOAT4OID:
			{
				int32		bits;
				float4		f;

				if (size != sizeof(float4))
					return false;
				bits = get_int32(field);
				memcpy(&f, &bits, sizeof(f));
				*value = Float4GetDatum(f);
				return true;
			}
		case INT8OID:
			if (size != sizeof(int64))
				return false;
			*value = Int64GetDatum(get_int64(field));
			return true;
		case FLOAT8OID:
			{
				int64		bits;
				float8		f;

				if (size != sizeof(float8))
					return false;
				bits = get_int64(field);
				memcpy(&f, &bits, sizeof(f));
				*value = Float8GetDatum(f);
				return true;
			}
		case DATEOID:
			if (size != sizeof(DateADT))
				return false;
			n = get_int32(field);
			*value = DateADTGetDatum((DateADT) n);
			return n >= MIN_DATE && n <= MAX_DATE;
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			if (size != sizeof(Timestamp))
				return false;
			n = get_int64(field);
			*value = TimestampGetDatum(n);
			return n >= MIN_DATE * USECS_PER_DAY && n <= MAX_DATE * USECS_PER_DAY;
		case UUIDOID:
			*value = PointerGetDatum(field);
			return size == UUID_LEN;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			if (!text_fits(col, field, size))
				return false;
			*value = varlena(field, size);
			return true;
		case BYTEAOID:
			*value = varlena(field, size);
			return true;
		case NUMERICOID:
			return decode_numeric(col, field, size, value);
		case JSONBOID:
			/* a version, then text */
			if (size < 1 || field[0] != 1 || !pg_verifymbstr(field + 1, size - 1, true))
				return false;
			*value = migrate_decode_jsonb(field + 1, size - 1, &done);
			return done;
	}
	return false;
}

/* By the receive function; field NULL is null. */
static Datum
receive(DecodeColumn *col, char *field, int size)
{
	StringInfoData buf = {.data = field,.len = size,.maxlen = size + 1};
	char		next;
	Datum		value;

	if (field == NULL)
		return ReceiveFunctionCall(&col->receive, NULL, col->ioparam, col->typmod);

	/* it may rely on a zero byte behind */
	next = field[size];
	field[size] = '\0';
	value = ReceiveFunctionCall(&col->receive, &buf, col->ioparam, col->typmod);
	field[size] = next;
	if (buf.cursor != buf.len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("incorrect binary data format")));
	return value;
}

/*
 * The row that begins at data, which migrate_decode_length() has found to be
 * complete; a byte behind it can be written.  False: it is the trailer.
 * Values are of the current memory context, or of the data, which is changed.
 */
bool
migrate_decode_row(MigrateDecoder *decoder, char *data, Datum *values, bool *nulls)
{
	char	   *p = data;

	if (!decoder->begun)
		p += header_length(data, MaxAllocSize);
	decoder->begun = true;
	if (get_int16(p) == -1)
		return false;
	decoder->line++;
	p += sizeof(int16);
	for (int i = 0; i < decoder->ncolumns; i++)
	{
		DecodeColumn *col = &decoder->columns[i];
		int32		size = get_int32(p);

		p += sizeof(int32);
		nulls[i] = size < 0;
		decoder->column = col->name;
		if (size < 0)
			values[i] = receive(col, NULL, 0);
		else if (!decode_here(col, p, size, &values[i]))
			values[i] = receive(col, p, size);
		p += Max(size, 0);
	}
	decoder->column = NULL;
	return true;
}
