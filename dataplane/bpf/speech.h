// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Which application protocol a flow speaks, by the first bytes of one direction.
// Every protocol has two readings, of what the opener says (asks) and of what it
// hears (answers); each says yes, no, or that it needs more bytes. A reading that
// has SPEECH_WINDOW bytes, or all of a datagram, must know: more is then no. A yes
// or a no never changes with bytes that come later. Pure: no maps, no helpers, so
// that the same code runs under XDP and natively, where it is fuzzed.
#pragma once

#include "kernel.h"

#define SPEECH_NO 0
#define SPEECH_MORE 1
#define SPEECH_YES 2

#define SPEECH_ASKED 16

// What was heard of one direction.
struct speech {
	__u8 bytes[SPEECH_WINDOW] __attribute__((aligned(8))); // zero from length on
	__u8 asked[SPEECH_ASKED]; // the first bytes of the other direction, of answers
	__u32 length;
	__u32 asked_length;
	__u32 datagram; // its whole length; 0: a stream
	__u32 answers;
};
_Static_assert(sizeof(struct speech) == SPEECH_WINDOW + SPEECH_ASKED + 16, "speech");

// A group of bytes that ends at some length must be what is said, once it is there.
#define MUST(until, condition) \
	do { \
		if (s->length < (until)) \
			return SPEECH_MORE; \
		if (!(condition)) \
			return SPEECH_NO; \
	} while (0)

static __always_inline __u32 big16(const __u8 *b)
{
	return b[0] << 8 | b[1];
}

static __always_inline __u32 big32(const __u8 *b)
{
	return (__u32)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
}

static __always_inline __u32 little32(const __u8 *b)
{
	return (__u32)b[3] << 24 | b[2] << 16 | b[1] << 8 | b[0];
}

static __always_inline bool within(__u32 value, __u32 least, __u32 most)
{
	return value >= least && value <= most;
}

static __always_inline bool is_digit(__u8 c)
{
	return within(c, '0', '9');
}

static __always_inline bool is_printable(__u8 c)
{
	return within(c, ' ', '~');
}

static __always_inline bool ends_word(__u8 c)
{
	return c == ' ' || c == '\r' || c == '\n';
}

// A byte at an offset that only the reading itself knows to lie in the window.
static __always_inline __u8 byte_at(const struct speech *s, __u32 at)
{
	barrier_var(at); // lest the bound that the verifier needs be optimised away
	return s->bytes[at & (SPEECH_WINDOW - 1)];
}

// Whether the bytes from `at` on are this text, of a constant length.
static __always_inline int says(const struct speech *s, __u32 at, const char *text, __u32 size)
{
#pragma unroll
	for (__u32 i = 0; i < size; i++) {
		if (s->length <= at + i)
			return SPEECH_MORE;
		if (byte_at(s, at + i) != (__u8)text[i])
			return SPEECH_NO;
	}
	return SPEECH_YES;
}

// A short word as a number: the first 8 letters.
static __always_inline __u64 word(const char *text)
{
	__u64 packed = 0;
	bool ended = false;
#pragma unroll
	for (int i = 0; i < 8; i++) {
		ended = ended || !text[i];
		if (!ended)
			packed |= (__u64)(__u8)text[i] << 8 * i;
	}
	return packed;
}

#define LONGEST_WORD 20

struct token {
	__u64 word; // the first 8 letters
	__u32 size;
	__u32 pad;
};

// Reads the word that begins at an offset and ends before a blank or the end of
// the line.
STAGE int read_token(const struct speech *s, __u32 at, struct token *token)
{
	if (!s || !token)
		return SPEECH_NO;
	token->word = token->size = 0;
	for (__u32 i = 0; i <= LONGEST_WORD; i++) {
		if (at + i >= s->length)
			return SPEECH_MORE;
		__u8 c = byte_at(s, at + i);
		if (ends_word(c))
			return i ? SPEECH_YES : SPEECH_NO;
		if (!is_printable(c))
			return SPEECH_NO;
		if (i < 8)
			token->word |= (__u64)c << 8 * i;
		token->size = i + 1;
	}
	return SPEECH_NO;
}

#include "speech_binary.h"
#include "speech_text.h"
#include "speech_datagram.h"

static __always_inline int reading(const struct speech *s, __u32 protocol)
{
	bool answers = s->answers;
	switch (protocol) {
	case SPEECH_TLS:
		return s->datagram ? dtls_says(s) : answers ? tls_answers(s) : tls_asks(s);
	case SPEECH_DNS:
		return dns_says(s);
	case SPEECH_LDAP:
		return ldap_says(s);
	case SPEECH_MEMCACHED:
		return memcached_says(s);
	case SPEECH_NTP:
		return s->datagram ? ntp_says(s) : SPEECH_NO;
	case SPEECH_QUIC:
		return s->datagram ? quic_says(s) : SPEECH_NO;
	}
	if (s->datagram)
		return SPEECH_NO; // the others need a stream
	switch (protocol) {
	case SPEECH_HTTP:
		return answers ? http_answers(s) : http_asks(s);
	case SPEECH_HTTP2:
		return answers ? http2_answers(s) : http2_asks(s);
	case SPEECH_SSH:
		return ssh_says(s);
	case SPEECH_POSTGRESQL:
		return answers ? postgresql_answers(s) : postgresql_asks(s);
	case SPEECH_MYSQL:
		return answers ? mysql_answers(s) : mysql_asks(s);
	case SPEECH_REDIS:
		return answers ? redis_answers(s) : redis_asks(s);
	case SPEECH_MONGODB:
		return mongodb_says(s);
	case SPEECH_KAFKA:
		return answers ? kafka_answers(s) : kafka_asks(s);
	case SPEECH_MQTT:
		return answers ? mqtt_answers(s) : mqtt_asks(s);
	case SPEECH_AMQP:
		return amqp_says(s);
	case SPEECH_SMB:
		return smb_says(s);
	case SPEECH_RDP:
		return rdp_says(s);
	}
	return SPEECH_NO;
}

// Whether this is how the protocol begins.
STAGE int speaks(const struct speech *s, __u32 protocol)
{
	if (!s)
		return SPEECH_NO;
	int said = reading(s, protocol);
	bool all = s->length >= SPEECH_WINDOW || s->datagram;
	return said == SPEECH_MORE && all ? SPEECH_NO : said;
}

// Names what is spoken: a protocol, SPEECH_OTHER, or SPEECH_UNKNOWN while it may
// still become one. Where one beginning fits two, the earlier number has it.
STAGE int classify(const struct speech *s)
{
	if (!s)
		return SPEECH_UNKNOWN;
	bool more = false;
	for (__u32 protocol = 1; protocol <= SPEECH_PROTOCOLS; protocol++) {
		int said = speaks(s, protocol);
		if (said == SPEECH_YES)
			return protocol;
		more = more || said == SPEECH_MORE;
	}
	return more ? SPEECH_UNKNOWN : SPEECH_OTHER;
}
