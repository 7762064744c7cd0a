/*-------------------------------------------------------------------------
 *
 * decode_jsonb.c
 *	  jsonb from its text, where that is as a server writes it.
 *
 * jsonb travels as text, also in binary COPY, and core's way back is a third
 * of the time of copying a table with such a column: a general JSON parser
 * with a callback a token, sorting of keys, and values that are allocated one
 * by one.  But a server writes what is sorted already:
 *
 *	  {"a": 1, "bc": ["x", null], "de": {"f": true}}
 *
 * keys by length, then by bytes, none twice; ", " and ": " and no other space.
 * Text in this form, without escapes and with numbers that are not very long, is
 * turned into jsonb here.  Any other is left to jsonb_recv(), also what is no
 * JSON at all: there is one source of errors.  So this must never take what
 * core would refuse, nor give other bytes than core does; t/013_decode compares
 * them.  The layout of jsonb is that of utils/jsonb.h, which pg_upgrade
 * keeps as it is.
 *
 * Two passes: the text into tokens, checked; tokens into containers, where
 * all keys of an object come before its values.
 *
 * Process: whoever reads a source.  States and locks: none; a crash leaves
 * nothing.
 *
 * Copyright (c) 2026, the migrate authors; PostgreSQL License
 *
 *-------------------------------------------------------------------------
 */
#include "extract/extract.h"

#include "mb/pg_wchar.h"
#include "utils/jsonb.h"

/* beyond these it is left to core */
#define MAX_TOKENS 2000
#define MAX_DEPTH 64
#define MAX_TEXT (1024 * 1024)
#define MAX_DIGITS 60			/* on each side of the point */

/* what a token takes in the result besides its text, at most */
#define TOKEN_OVERHEAD 32

typedef struct Token
{
	char		kind;			/* { [ " 0 t f n */
	int			len;			/* of the text; else values in the container */
	int			next;			/* the token after this value */
	const char *text;			/* of a string or number */
} Token;

typedef struct Scan
{
	const char *p;
	const char *end;
	int			ntokens;
	Token		tokens[MAX_TOKENS];
} Scan;

/* too large for the stack of a function that may be called deep in one */
static Scan scan;

/* where the result grows; there is room enough */
typedef struct Output
{
	char	   *start;
	char	   *p;
} Output;

static bool scan_value(int depth);
static JEntry put_value(Output *out, const Token *token);

/* ----------------------------------------------------------------
 * text into tokens; false: not the form that is known here
 * ----------------------------------------------------------------
 */
static inline Token *
new_token(char kind)
{
	Token	   *token;

	if (scan.ntokens == MAX_TOKENS)
		return NULL;
	token = &scan.tokens[scan.ntokens++];
	token->kind = kind;
	token->len = 0;
	return token;
}

static inline bool
skip(const char *what, int len)
{
	if (scan.end - scan.p < len || memcmp(scan.p, what, len) != 0)
		return false;
	scan.p += len;
	return true;
}

/* After the opening quote. */
static bool
scan_string(void)
{
	Token	   *token = new_token('"');
	const char *p = scan.p;

	if (token == NULL)
		return false;
	token->text = p;
	while (p < scan.end && *p != '"')
	{
		if (*p == '\\' || (unsigned char) *p < ' ')
			return false;
		p++;
	}
	if (p == scan.end)
		return false;
	token->len = p - scan.p;
	token->next = scan.ntokens;
	scan.p = p + 1;
	return true;
}

static inline int
scan_digits(void)
{
	const char *start = scan.p;

	while (scan.p < scan.end && *scan.p >= '0' && *scan.p <= '9')
		scan.p++;
	return scan.p - start;
}

static bool
scan_number(void)
{
	Token	   *token = new_token('0');
	const char *start = scan.p;
	int			digits;

	if (token == NULL)
		return false;
	token->text = start;
	if (*scan.p == '-')
		scan.p++;
	start = scan.p;
	digits = scan_digits();
	if (digits == 0 || digits > MAX_DIGITS || (digits > 1 && *start == '0'))
		return false;
	if (scan.p < scan.end && *scan.p == '.')
	{
		scan.p++;
		digits = scan_digits();
		if (digits == 0 || digits > MAX_DIGITS)
			return false;
	}
	if (scan.p < scan.end && (*scan.p == 'e' || *scan.p == 'E'))
		return false;
	token->len = scan.p - token->text;
	token->next = scan.ntokens;
	return true;
}

static bool
scan_word(const char *word, int len)
{
	Token	   *token = new_token(word[0]);

	if (token == NULL || !skip(word, len))
		return false;
	token->next = scan.ntokens;
	return true;
}

static bool
scan_array(int depth)
{
	int			me = scan.ntokens;
	int			n = 0;

	if (new_token('[') == NULL)
		return false;
	scan.p++;
	if (!skip("]", 1))
		for (;;)
		{
			if (!scan_value(depth + 1))
				return false;
			n++;
			if (skip("]", 1))
				break;
			if (!skip(", ", 2))
				return false;
		}
	scan.tokens[me].len = n;
	scan.tokens[me].next = scan.ntokens;
	return true;
}

/* Is the key "b" behind the key "a"? */
static inline bool
in_order(const Token *a, const Token *b)
{
	if (a->len != b->len)
		return a->len < b->len;
	return memcmp(a->text, b->text, a->len) < 0;
}

static bool
scan_object(int depth)
{
	int			me = scan.ntokens;
	int			n = 0;
	int			last = -1;

	if (new_token('{') == NULL)
		return false;
	scan.p++;
	if (!skip("}", 1))
		for (;;)
		{
			int			key = scan.ntokens;

			if (!skip("\"", 1) || !scan_string() || !skip(": ", 2))
				return false;
			if (last >= 0 && !in_order(&scan.tokens[last], &scan.tokens[key]))
				return false;
			last = key;
			if (!scan_value(depth + 1))
				return false;
			n++;
			if (skip("}", 1))
				break;
			if (!skip(", ", 2))
				return false;
		}
	scan.tokens[me].len = n;
	scan.tokens[me].next = scan.ntokens;
	return true;
}

static bool
scan_value(int depth)
{
	if (scan.p == scan.end || depth > MAX_DEPTH)
		return false;
	switch (*scan.p)
	{
		case '"':
			scan.p++;
			return scan_string();
		case '{':
			return scan_object(depth);
		case '[':
			return scan_array(depth);
		case 't':
			return scan_word("true", 4);
		case 'f':
			return scan_word("false", 5);
		case 'n':
			return scan_word("null", 4);
		case '-':
		case '0':
		case '1':
		case '2':
		case '3':
		case '4':
		case '5':
		case '6':
		case '7':
		case '8':
		case '9':
			return scan_number();
	}
	return false;
}

/* ----------------------------------------------------------------
 * tokens into jsonb
 * ----------------------------------------------------------------
 */

/* Where the next integer begins; what is skipped is zero. */
static inline void
align(Output *out)
{
	while ((out->p - out->start) % sizeof(int32) != 0)
		*out->p++ = '\0';
}

/*
 * The entry of value i of a container, whose data is "total" bytes so far with
 * this one: the length, but now and then where it ends.
 */
static inline void
put_entry(char *entries, int i, JEntry entry, uint32 *total)
{
	*total += JBE_OFFLENFLD(entry);
	if (i % JB_OFFSET_STRIDE == 0)
		entry = (entry & JENTRY_TYPEMASK) | *total | JENTRY_HAS_OFF;
	memcpy(entries + i * sizeof(JEntry), &entry, sizeof(JEntry));
}

static JEntry
put_string(Output *out, const Token *token)
{
	memcpy(out->p, token->text, token->len);
	out->p += token->len;
	return JENTRY_ISSTRING | token->len;
}

/* Four decimal digits of a number, "0" where it has no more on the right. */
static inline int16
four_digits(const char *p, int n)
{
	int16		value = 0;

	for (int i = 0; i < 4; i++)
		value = value * 10 + (i < n ? p[i] - '0' : 0);
	return value;
}

/* The text of a number as numeric_in() would have it. */
static JEntry
put_number(Output *out, const Token *token)
{
	char	   *start = out->p;
	const char *p = token->text;
	const char *end = p + token->len;
	bool		negative = *p == '-';
	const char *point;
	int16		digits[2 * (MAX_DIGITS / 4 + 1)];
	int			n = 0;
	int			weight;
	int			scale;
	int			first;

	if (negative)
		p++;
	point = memchr(p, '.', end - p);
	if (point == NULL)
		point = end;
	scale = point < end ? end - point - 1 : 0;

	/* the first group is what is over when the others have four digits */
	first = (point - p) % 4;
	weight = (point - p + 3) / 4 - 1;
	if (first > 0)
	{
		int16		value = 0;

		while (first-- > 0)
			value = value * 10 + (*p++ - '0');
		digits[n++] = value;
	}
	for (; p < point; p += 4)
		digits[n++] = four_digits(p, 4);
	for (p = point + 1; p < end; p += 4)
		digits[n++] = four_digits(p, end - p);

	align(out);
	out->p += migrate_put_numeric(out->p, VARHDRSZ, negative, scale, weight, digits, n);
	return JENTRY_ISNUMERIC | (out->p - start);
}

/* The header of a container, and room for the entries of its n values. */
static char *
begin_container(Output *out, uint32 header, int n)
{
	char	   *entries;

	align(out);
	memcpy(out->p, &header, sizeof(header));
	entries = out->p + sizeof(header);
	out->p = entries + n * sizeof(JEntry);
	return entries;
}

static JEntry
put_array(Output *out, const Token *token)
{
	char	   *start = out->p;
	char	   *entries = begin_container(out, JB_FARRAY | token->len, token->len);
	const Token *value = token + 1;
	uint32		total = 0;

	for (int i = 0; i < token->len; i++)
	{
		put_entry(entries, i, put_value(out, value), &total);
		value = &scan.tokens[value->next];
	}
	return JENTRY_ISCONTAINER | (out->p - start);
}

static JEntry
put_object(Output *out, const Token *token)
{
	char	   *start = out->p;
	char	   *entries = begin_container(out, JB_FOBJECT | token->len, 2 * token->len);
	const Token *key = token + 1;
	uint32		total = 0;

	for (int i = 0; i < token->len; i++)
	{
		put_entry(entries, i, put_string(out, key), &total);
		key = &scan.tokens[key[1].next];
	}
	key = token + 1;
	for (int i = 0; i < token->len; i++)
	{
		put_entry(entries, token->len + i, put_value(out, key + 1), &total);
		key = &scan.tokens[key[1].next];
	}
	return JENTRY_ISCONTAINER | (out->p - start);
}

static JEntry
put_value(Output *out, const Token *token)
{
	switch (token->kind)
	{
		case '{':
			return put_object(out, token);
		case '[':
			return put_array(out, token);
		case '"':
			return put_string(out, token);
		case '0':
			return put_number(out, token);
		case 't':
			return JENTRY_ISBOOL_TRUE;
		case 'f':
			return JENTRY_ISBOOL_FALSE;
	}
	return JENTRY_ISNULL;
}

/*
 * The jsonb that the text stands for, or NULL: ask jsonb_recv().  The text's
 * encoding is to be known as valid.
 */
Datum
migrate_decode_jsonb(const char *text, int len, bool *done)
{
	Output		out;

	*done = false;
	if (len > MAX_TEXT)
		return (Datum) 0;
	scan.p = text;
	scan.end = text + len;
	scan.ntokens = 0;
	if (!scan_value(0) || scan.p != scan.end)
		return (Datum) 0;

	out.start = out.p = palloc(VARHDRSZ + len + (scan.ntokens + 1) * TOKEN_OVERHEAD);
	out.p += VARHDRSZ;
	if (scan.tokens[0].kind == '{' || scan.tokens[0].kind == '[')
		(void) put_value(&out, &scan.tokens[0]);
	else
	{
		/* a scalar is the one element of an array that says so */
		char	   *entries = begin_container(&out, JB_FARRAY | JB_FSCALAR | 1, 1);
		uint32		total = 0;

		put_entry(entries, 0, put_value(&out, &scan.tokens[0]), &total);
	}
	SET_VARSIZE(out.start, out.p - out.start);
	*done = true;
	return PointerGetDatum(out.start);
}
