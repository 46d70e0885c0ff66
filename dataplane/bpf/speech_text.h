// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Readings of protocols that begin with lines of text, over streams.
#pragma once

// Where the first line ends: the offset of its line feed; beyond the window if none
// is there yet, and 0 if a byte cannot be in a line.
STAGE int read_line(const struct speech *s)
{
	if (!s)
		return 0;
	for (__u32 i = 0; i < SPEECH_WINDOW; i++) {
		if (i >= s->length)
			break;
		__u8 c = s->bytes[i];
		if (c == '\n')
			return i;
		if (c == 127 || (c < ' ' && c != '\r'))
			return 0;
	}
	return SPEECH_WINDOW;
}

static __always_inline bool is_of_method(__u8 c)
{
	return within(c, 'A', 'Z') || is_digit(c) || c == '-' || c == '_';
}

// The offset of the blank behind a method; beyond the window if it may still come,
// and 0 if it cannot.
STAGE int read_method(const struct speech *s)
{
	if (!s)
		return 0;
	for (__u32 i = 0; i <= LONGEST_WORD; i++) {
		if (i >= s->length)
			return SPEECH_WINDOW;
		if (s->bytes[i] == ' ')
			return i;
		if (!is_of_method(s->bytes[i]))
			return 0;
	}
	return 0;
}

// RFC 9112: a method, a blank, a target; and where the line ends within the
// window, "HTTP/1." and a digit at its end.
STAGE int http_asks(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	__u32 blank = read_method(s);
	if (!blank)
		return SPEECH_NO;
	if (blank >= SPEECH_WINDOW)
		return SPEECH_MORE;
	__u8 target = byte_at(s, blank + 1);
	// An origin's path, everything, or the name of a host, maybe behind a scheme.
	MUST(blank + 2, target == '/' || target == '*' || target == '[' || is_digit(target) ||
				within(target | 0x20, 'a', 'z'));
	__u32 end = read_line(s);
	if (!end)
		return SPEECH_NO;
	if (end >= SPEECH_WINDOW)
		return s->length >= SPEECH_WINDOW ? SPEECH_YES : SPEECH_MORE;
	if (byte_at(s, end - 1) == '\r')
		end--;
	if (end < blank + 11) // the blank, a target, a blank, and the version
		return SPEECH_NO;
	__u64 version = 0;
#pragma unroll
	for (__u32 i = 0; i < 8; i++)
		version |= (__u64)byte_at(s, end - 8 + i) << 8 * i;
	return byte_at(s, end - 9) == ' ' && (version & ~(0xffULL << 56)) == word("HTTP/1.") &&
			       is_digit(version >> 56)
		       ? SPEECH_YES
		       : SPEECH_NO;
}

STAGE int http_answers(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	int version = says(s, 0, "HTTP/1.", 7);
	if (version != SPEECH_YES)
		return version;
	const __u8 *b = s->bytes;
	MUST(8, is_digit(b[7]));
	MUST(9, b[8] == ' ');
	MUST(12, within(b[9], '1', '9') && is_digit(b[10]) && is_digit(b[11]));
	return SPEECH_YES;
}

// RFC 9113, without an upgrade from HTTP/1.1: the client's preface.
STAGE int http2_asks(const struct speech *s)
{
	return s ? says(s, 0, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24) : SPEECH_NO;
}

// The version that one side says, from an offset on: 2.0, or 1.99 of who knows
// version 1 too.
STAGE int ssh_version(const struct speech *s, __u32 at)
{
	if (!s)
		return SPEECH_NO;
	int two = says(s, at, "SSH-2.0-", 8);
	if (two == SPEECH_MORE)
		return two;
	__u32 end = at + (two == SPEECH_YES ? 8 : 9);
	int said = two == SPEECH_YES ? two : says(s, at, "SSH-1.99-", 9);
	if (said == SPEECH_YES)
		MUST(end + 1, is_printable(byte_at(s, end)));
	return said;
}

// RFC 4253, 4.2: either side says its version; a server may say lines of text before
// it, within the window.
STAGE int ssh_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	if (!s->answers)
		return ssh_version(s, 0);
	__u32 begins = true; // a line
	for (__u32 i = 0; i < SPEECH_WINDOW; i++) {
		if (i >= s->length)
			break;
		__u8 c = s->bytes[i];
		if (begins && c == 'S') {
			int ssh = says(s, i, "SSH-", 4);
			if (ssh != SPEECH_NO)
				return ssh == SPEECH_YES ? ssh_version(s, i) : ssh;
		}
		if (c == 127 || (c < ' ' && c != '\r' && c != '\n' && c != '\t'))
			return SPEECH_NO;
		begins = c == '\n';
	}
	return SPEECH_MORE;
}

// Reads a number of RESP from an offset on, with the end of its line: the offset
// behind it; beyond the window if it may still come, and 0 if it cannot.
STAGE int read_number(const struct speech *s, __u32 at, __u32 signs)
{
	if (!s)
		return 0;
	for (__u32 i = 0; i < 20; i++) {
		if (at + i >= s->length)
			return SPEECH_WINDOW + 1;
		__u8 c = byte_at(s, at + i);
		if (i && c == '\r') {
			if (at + i + 1 >= s->length)
				return SPEECH_WINDOW + 1;
			return byte_at(s, at + i + 1) == '\n' ? at + i + 2 : 0;
		}
		if (!is_digit(c) && !(signs && !i && (c == '-' || c == '+')))
			return 0;
	}
	return 0;
}

static __always_inline int ends_number(const struct speech *s, __u32 at, bool signs)
{
	__u32 next = read_number(s, at, signs);
	return next > SPEECH_WINDOW ? SPEECH_MORE : next ? SPEECH_YES : SPEECH_NO;
}

// Redis' commands that people and their tools write without RESP.
static __always_inline bool is_redis_word(__u64 lower, __u32 size)
{
	switch (size) {
	case 3:
		return lower == word("get") || lower == word("set") || lower == word("del") || lower == word("ttl") ||
		       lower == word("acl");
	case 4:
		return lower == word("ping") || lower == word("auth") || lower == word("info") || lower == word("quit") ||
		       lower == word("echo") || lower == word("keys") || lower == word("incr") || lower == word("hset") ||
		       lower == word("hget") || lower == word("mget") || lower == word("mset") || lower == word("time") ||
		       lower == word("role") || lower == word("scan") || lower == word("sync") ||
		       lower == word("type") || lower == word("decr") || lower == word("llen") || lower == word("lpop") ||
		       lower == word("rpop") || lower == word("sadd") || lower == word("zadd") || lower == word("eval") ||
		       lower == word("save") || lower == word("wait") || lower == word("xadd");
	case 5:
		return lower == word("hello") || lower == word("multi") || lower == word("psync") || lower == word("lpush") ||
		       lower == word("rpush") || lower == word("hkeys") || lower == word("setex") || lower == word("setnx") ||
		       lower == word("xread") || lower == word("reset") || lower == word("watch") || lower == word("debug");
	case 6:
		return lower == word("select") || lower == word("config") || lower == word("client") || lower == word("dbsize") ||
		       lower == word("exists") || lower == word("expire") ||
		       lower == word("append") || lower == word("strlen") || lower == word("getset") || lower == word("lrange") ||
		       lower == word("unlink") || lower == word("object") || lower == word("memory") || lower == word("module") ||
		       lower == word("script") || lower == word("bgsave") || lower == word("zrange");
	case 7:
		return lower == word("command") || lower == word("monitor") || lower == word("cluster") ||
		       lower == word("publish") || lower == word("slowlog") || lower == word("hgetall") || lower == word("flushdb") ||
		       lower == word("latency") || lower == word("evalsha") || lower == word("persist");
	case 8:
		return lower == word("flushall") || lower == word("smembers") || lower == word("replconf") ||
		       lower == word("lastsave") || lower == word("shutdown");
	case 9:
		return lower == word("subscrib");
	}
	return false;
}

// A command as an array of strings, or inline. A path behind the command is a
// request of HTTP that got lost.
STAGE int redis_asks(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(1, is_printable(b[0]));
	if (b[0] == '*') {
		MUST(2, within(b[1], '1', '9'));
		__u32 next = read_number(s, 1, false);
		if (!next)
			return SPEECH_NO;
		MUST(next + 1, byte_at(s, next) == '$');
		return ends_number(s, next + 1, false);
	}
	struct token token;
	int read = read_token(s, 0, &token);
	if (read != SPEECH_YES)
		return read;
	if (!is_redis_word(token.word | 0x2020202020202020ULL >> (token.size < 8 ? 64 - 8 * token.size : 0), token.size))
		return SPEECH_NO;
	MUST(token.size + 2, byte_at(s, token.size + 1) != '/' || byte_at(s, token.size) != ' ');
	return SPEECH_YES;
}

// RESP 2 and 3.
STAGE int redis_answers(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(1, b[0]);
	switch (b[0]) {
	case '+':
		MUST(2, within(b[1], 'A', 'Z'));
		if (says(s, 1, "OK", 2) == SPEECH_YES) // mail servers say more
			MUST(4, b[3] == '\r');
		else
			MUST(3, within(b[2], 'A', 'Z'));
		return SPEECH_YES;
	case '-':
		MUST(2, within(b[1], 'A', 'Z'));
		MUST(3, within(b[2], 'A', 'Z'));
		return SPEECH_YES;
	case ':': case '$': case '*': case '(':
		return ends_number(s, 1, true);
	case '%': case '~': case '>': case '=': case '!': case '|':
		return ends_number(s, 1, false);
	case '_':
		MUST(3, b[1] == '\r' && b[2] == '\n');
		return SPEECH_YES;
	case '#':
		MUST(4, (b[1] == 't' || b[1] == 'f') && b[2] == '\r' && b[3] == '\n');
		return SPEECH_YES;
	}
	return SPEECH_NO;
}
