// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Readings of protocols that are spoken in datagrams, some of them in streams too.
#pragma once

// RFC 9147 and 6347: the first flight of DTLS.
STAGE int dtls_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(14, b[1] == 0xfe && (b[2] == 0xff || b[2] == 0xfd));
	if (big16(b + 3) || big16(b + 11) > s->datagram - 13)
		return SPEECH_NO; // an epoch with keys, or cut
	if (b[0] == 21)
		return s->answers && big16(b + 11) == 2 ? SPEECH_YES : SPEECH_NO;
	if (b[0] != 22 || big16(b + 11) < 12)
		return SPEECH_NO;
	return (s->answers ? b[13] == 2 || b[13] == 3 : b[13] == 1) ? SPEECH_YES : SPEECH_NO;
}

#define MOST_LABELS (SPEECH_WINDOW / 2)

// Reads the labels of a question's name from an offset on, as far as the window
// goes, and its type and class behind them. A question's name is not compressed.
STAGE int dns_question(const struct speech *s, __u32 at)
{
	if (!s)
		return SPEECH_NO;
	for (int i = 0; i < MOST_LABELS; i++) {
		if (at >= SPEECH_WINDOW)
			break; // a long name
		__u8 size = byte_at(s, at);
		MUST(at + 1, size < 64);
		if (!size)
			break;
		at += size + 1;
	}
	if (at + 5 > SPEECH_WINDOW)
		return s->datagram && s->datagram < at + 5 ? SPEECH_NO : SPEECH_YES;
	// The highest bit of the class is multicast DNS's.
	__u32 class = (byte_at(s, at + 3) & 0x7f) << 8 | byte_at(s, at + 4);
	MUST(at + 5, within(class, 1, 4) || within(class, 254, 255));
	return SPEECH_YES;
}

// RFC 1035, behind its length over streams. Of several questions in a stream any may
// be answered first (RFC 7766).
STAGE int dns_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	__u32 at = s->datagram ? 0 : 2;
	const __u8 *b = s->bytes;
	MUST(at, !at || big16(b) >= 12);
	b += at;
	MUST(at + 3, !!(b[2] & 0x80) == !!s->answers);
	__u32 opcode = b[2] >> 3 & 15;
	if (opcode == 3 || opcode > 6)
		return SPEECH_NO;
	MUST(at + 4, !(b[3] & 0x40) && (s->answers || !(b[3] & 15)));
	__u32 questions = big16(b + 4);
	bool multicast = s->datagram && !big16(b); // RFC 6762: many questions, and what is known already
	MUST(at + 6, questions <= (multicast ? 255 : 1));
	// What a question brings along: what to update, or what it knows already.
	MUST(at + 8, s->answers || multicast || opcode == 4 || opcode == 5 || !big16(b + 6));
	MUST(at + 12, s->answers || big16(b + 10) <= 4);
	if (!questions)
		return s->answers || opcode == 6 || big16(b + 10) ? SPEECH_YES : SPEECH_NO;
	return dns_question(s, at + 12);
}

// RFC 5905: clients, servers and peers of versions 1 to 4, and control (RFC 9327).
// Not the private mode 7, which only amplifies.
STAGE int ntp_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(2, within(b[0] >> 3 & 7, 1, 4));
	switch (b[0] & 7) {
	case 0: // version 1 had no modes
		if ((b[0] >> 3 & 7) != 1)
			return SPEECH_NO;
		break;
	case 6: // the highest bit of the second byte says that it answers
		if (!!(b[1] & 0x80) != !!s->answers || (b[0] & 0xc0) || ((b[1] & 31) > 12 && (b[1] & 31) != 31))
			return SPEECH_NO;
		MUST(12, big16(b + 10) + 12 <= s->datagram);
		return SPEECH_YES;
	case 1: case 2:
		break;
	case 3:
		if (s->answers)
			return SPEECH_NO;
		break;
	case 4: case 5:
		if (!s->answers && (b[0] & 7) == 4)
			return SPEECH_NO;
		break;
	default:
		return SPEECH_NO;
	}
	return s->datagram >= 48 && s->datagram % 4 == 0 && b[1] <= 16 ? SPEECH_YES : SPEECH_NO;
}

// RFC 9000 and 9369: a long header, with which connections begin.
STAGE int quic_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(7, b[0] & 0x80);
	__u32 version = big32(b + 1);
	if (b[5] > 20)
		return SPEECH_NO; // the identifier of a connection
	if (s->answers && !version)
		return SPEECH_YES; // says which it knows
	// Versions 1 and 2, drafts, and those that are there to be refused.
	bool known = version == 1 || version == 0x6b3343cf || version >> 8 == 0xff0000 ||
		     (version & 0x0f0f0f0f) == 0x0a0a0a0a;
	if (!known || !(b[0] & 0x40))
		return SPEECH_NO;
	if (s->answers)
		return SPEECH_YES;
	if (s->datagram < 1200) // who opens fills the datagram
		return SPEECH_NO;
	if (version == 1) // Initial
		return b[0] & 0x30 ? SPEECH_NO : SPEECH_YES;
	return version == 0x6b3343cf && (b[0] & 0x30) != 0x10 ? SPEECH_NO : SPEECH_YES;
}

static __always_inline bool is_memcached_command(const struct token *t)
{
	__u64 w = t->word;
	switch (t->size) {
	case 2:
		return w == word("mg") || w == word("ms") || w == word("md") || w == word("ma") || w == word("mn") || w == word("me");
	case 3:
		return w == word("get") || w == word("set") || w == word("add") || w == word("cas") || w == word("gat") ||
		       w == word("lru");
	case 4:
		return w == word("gets") || w == word("gats") || w == word("incr") || w == word("decr") || w == word("quit");
	case 5:
		return w == word("stats") || w == word("touch") || w == word("watch") || w == word("slabs");
	case 6:
		return w == word("delete") || w == word("append");
	case 7:
		return w == word("replace") || w == word("prepend") || w == word("version");
	case 8:
		return w == word("shutdown") || w == word("extstore");
	case 9:
		return w == word("flush_al") || w == word("verbosit");
	case 11:
		return w == word("lru_craw");
	case 14:
		return w == word("cache_me");
	}
	return false;
}

static __always_inline bool is_memcached_answer(const struct token *t)
{
	__u64 w = t->word;
	switch (t->size) {
	case 2:
		return w == word("HD") || w == word("VA") || w == word("EN") || w == word("NS") || w == word("EX") ||
		       w == word("NF") || w == word("MN") || w == word("ME") || w == word("OK");
	case 3:
		return w == word("END");
	case 4:
		return w == word("STAT") || w == word("BUSY");
	case 5:
		return w == word("VALUE") || w == word("ERROR") || w == word("RESET");
	case 6:
		return w == word("STORED") || w == word("EXISTS");
	case 7:
		return w == word("DELETED") || w == word("TOUCHED") || w == word("VERSION");
	case 9:
		return w == word("NOT_FOUN");
	case 10:
		return w == word("NOT_STOR");
	case 12:
		return w == word("CLIENT_E") || w == word("SERVER_E");
	}
	return false;
}

// Binary headers, and words: of the text protocol and of its meta commands. A
// datagram has a header of its own before them: a number, which part of how many,
// and two zero bytes.
STAGE int memcached_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	__u32 at = s->datagram ? 8 : 0;
	const __u8 *b = s->bytes;
	MUST(at, !at || (big16(b + 2) < big16(b + 4) && !big16(b + 6) && (s->answers || big16(b + 4) == 1)));
	b += at;
	MUST(at + 1, b[0] == (s->answers ? 0x81 : 0x80) || is_printable(b[0]));
	if (b[0] & 0x80) {
		MUST(at + 2, b[1] <= 0x48);
		MUST(at + 4, big16(b + 2) <= 250); // a key
		MUST(at + 6, b[5] == 0);
		MUST(at + 12, b[4] <= 32 && big32(b + 8) >= big16(b + 2) + b[4] && big32(b + 8) <= 1U << 30);
		return SPEECH_YES;
	}
	if (s->answers && is_digit(b[0])) // the value after incr
		return ends_number(s, at, false);
	struct token token;
	int read = read_token(s, at, &token);
	if (read != SPEECH_YES)
		return read;
	return (s->answers ? is_memcached_answer(&token) : is_memcached_command(&token)) ? SPEECH_YES : SPEECH_NO;
}
