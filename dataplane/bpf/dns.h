// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Messages of the DNS (RFC 1035), as far as one needs them to know which addresses
// somebody is told a name has: the one question; of the answers, addresses of that
// name or of the end of a chain of aliases (CNAME) that begins with it. Where a message
// is cut short, what came before that counts; where it is not well-formed, nothing does.
//
// Names are compared by a hash (SipHash-2-4) of their labels in lower case, keyed by
// what nobody outside knows. All that is known of a message lies in its struct, so
// the verifier goes through each step once. Pure: no maps, no helpers.
#pragma once

#include "kernel.h"

#define DNS_BYTES 4096 // of a message, that are read
#define DNS_HEADER 12
#define DNS_NAME 255   // in wire form
#define DNS_JUMPS 10   // from one part of a compressed name to the next
#define DNS_RECORDS 64
#define DNS_ALIASES 16
#define DNS_ADDRESSES 32
#define DNS_LABELS 127

#define DNS_ANSWERS 0x8000 // flags: an answer, and what else must be clear in it
#define DNS_OPCODE 0x7800
#define DNS_TRUNCATED 0x0200
#define DNS_RCODE 0x000f

#define DNS_A 1
#define DNS_CNAME 5
#define DNS_AAAA 28
#define DNS_INTERNET 1

// A record, by the hashes of names.
struct record {
	__u64 owner;
	__u64 alias;
	__u8 address[16]; // IPv4 in its IPv6-mapped form
	__u32 ttl; // in seconds
	__u32 type;
};
_Static_assert(sizeof(struct record) == 40, "record");

#define DNS_ROOM (DNS_BYTES + 1024)
struct message {
	__u8 bytes[DNS_ROOM] __attribute__((aligned(8))); // behind the message, the name read last
	__u64 key[2];
	__u64 question; // hash of name, type and class, as they are written
	__u64 name;	// hash of the question's name; then of the end of its aliases
	struct record records[DNS_RECORDS];
	__u32 size; // of the message, as far as it is there
	__u32 at;   // how far it is read
	__u32 records_count;
	__u32 ttl;    // of the aliases, the least
	__u16 whole;  // all there is to read was read
	__u16 broken; // what was read cannot be what it claims
	__u16 id;
	__u16 flags;
	__u16 answers;
	__u16 pad;
	// Of the name that is being read.
	__u32 cursor;
	__u32 end;    // behind the name, in the message; 0: not known yet
	__u32 left;   // of the label, in bytes
	__u32 length; // so far
	__u32 labels;
	__u32 jumps;
	__u32 label; // of the question's name, that is looked at: its place there
	__u32 found; // of the records: how many addresses are the question's
};

static __always_inline __u32 dns_byte(const struct message *m, __u32 at)
{
	at &= DNS_BYTES - 1;
	barrier_var(at); // lest the bound that the verifier needs be optimised away
	return m->bytes[at];
}

static __always_inline __u32 dns_16(const struct message *m, __u32 at)
{
	return dns_byte(m, at) << 8 | dns_byte(m, at + 1);
}

static __always_inline __u32 dns_32(const struct message *m, __u32 at)
{
	return dns_16(m, at) << 16 | dns_16(m, at + 2);
}

struct sip {
	__u64 a, b, c, d;
};

static __always_inline __u64 turned(__u64 x, __u32 bits)
{
	return x << bits | x >> (64 - bits);
}

static __always_inline void sip_round(struct sip *s)
{
	s->a += s->b;
	s->b = turned(s->b, 13) ^ s->a;
	s->a = turned(s->a, 32);
	s->c += s->d;
	s->d = turned(s->d, 16) ^ s->c;
	s->a += s->d;
	s->d = turned(s->d, 21) ^ s->a;
	s->c += s->b;
	s->b = turned(s->b, 17) ^ s->c;
	s->c = turned(s->c, 32);
}

static __always_inline void sip_take(struct sip *s, __u64 word)
{
	s->d ^= word;
	sip_round(s);
	sip_round(s);
	s->a ^= word;
}

#define SIP_WORDS 33 // a name, a type and a class

// Hashes so many bytes from a place on, of the message or the name behind it.
STAGE __u64 hash_bytes(const struct message *m, __u32 from, __u32 size)
{
	if (!m)
		return 0;
	struct sip s = {m->key[0] ^ 0x736f6d6570736575ULL, m->key[1] ^ 0x646f72616e646f6dULL,
			m->key[0] ^ 0x6c7967656e657261ULL, m->key[1] ^ 0x7465646279746573ULL};
	__u32 rest = size;
	for (__u32 i = 0; i < SIP_WORDS && rest >= 8; i++, rest -= 8) {
		__u32 place = from + i * 8;
		barrier_var(place);
		if (place > DNS_ROOM - 8)
			return 0;
		sip_take(&s, *(const __u64 *)(m->bytes + place));
	}
	__u32 place = from + (size & ~7U);
	barrier_var(place);
	if (place > DNS_ROOM - 8)
		return 0;
	__u64 last = *(const __u64 *)(m->bytes + place) & ((1ULL << (rest & 7) * 8) - 1);
	sip_take(&s, last | (__u64)size << 56);
	s.c ^= 0xff;
	for (int i = 0; i < 4; i++)
		sip_round(&s);
	return s.a ^ s.b ^ s.c ^ s.d;
}

#define NAME_MORE 0
#define NAME_READ 1
#define NAME_BROKEN 2
#define NAME_CUT 3

// Takes the next byte of a name, or the next part of it.
STAGE int name_step(struct message *m)
{
	if (!m || m->cursor >= m->size || m->cursor >= DNS_BYTES)
		return NAME_CUT;
	__u32 byte = dns_byte(m, m->cursor), length = m->length;
	if (length >= DNS_NAME)
		return NAME_BROKEN;
	__u32 place = DNS_BYTES + (length & 255);
	barrier_var(place);
	if (place > DNS_BYTES + 255)
		return NAME_BROKEN;
	if (m->left) {
		if (byte == '.' || !byte)
			return NAME_BROKEN; // what no name of a host has, and text would hide
		m->bytes[place] = byte >= 'A' && byte <= 'Z' ? byte + ('a' - 'A') : byte;
		m->left--;
	} else if (byte >= 0xc0) {
		// What it points to was there before, so it comes to an end.
		__u32 target = (byte & 0x3f) << 8 | dns_byte(m, m->cursor + 1);
		if (m->cursor + 1 >= m->size || m->cursor + 1 >= DNS_BYTES)
			return NAME_CUT;
		if (target >= m->cursor || ++m->jumps > DNS_JUMPS)
			return NAME_BROKEN;
		if (!m->end)
			m->end = m->cursor + 2;
		m->cursor = target;
		return NAME_MORE;
	} else if (byte >= 0x40 || length + byte + 1 > DNS_NAME - !!byte) {
		return NAME_BROKEN;
	} else {
		m->bytes[place] = byte;
		m->left = byte;
		m->labels += !!byte;
	}
	m->cursor++;
	m->length = length + 1;
	if (byte || m->left)
		return NAME_MORE;
	if (!m->end)
		m->end = m->cursor;
	return NAME_READ;
}

// Reads a name at a place in the message, in lower case and without compression, to
// behind the message. Returns where it ends there; 0: it is none.
STAGE __u32 read_name(struct message *m, __u32 at)
{
	if (!m)
		return 0;
	m->cursor = at;
	m->end = m->left = m->length = m->labels = m->jumps = 0;
	int what = NAME_MORE;
	for (int i = 0; i < DNS_NAME + DNS_JUMPS + 1 && what == NAME_MORE; i++)
		what = name_step(m);
	if (what == NAME_MORE || what == NAME_BROKEN)
		m->broken = true;
	return what == NAME_READ ? m->end : 0;
}

static __always_inline __u64 hash_name(const struct message *m)
{
	return hash_bytes(m, DNS_BYTES, m->length);
}

// Reads the header and the question, whose name then lies behind the message; false
// if there is not exactly one.
STAGE int read_question(struct message *m)
{
	if (!m || m->size < DNS_HEADER)
		return false;
	m->id = dns_16(m, 0);
	m->flags = dns_16(m, 2);
	m->answers = dns_16(m, 6);
	m->records_count = m->found = m->label = m->broken = 0;
	m->whole = true;
	__u32 end = dns_16(m, 4) == 1 ? read_name(m, DNS_HEADER) : 0;
	if (!end || m->jumps || end + 4 > m->size || end + 4 > DNS_BYTES || dns_16(m, end + 2) != DNS_INTERNET)
		return false;
	m->question = hash_bytes(m, DNS_HEADER, end + 4 - DNS_HEADER);
	m->name = hash_name(m);
	m->at = end + 4;
	return true;
}

// Reads the next record; false if it is not whole.
STAGE int read_record(struct message *m)
{
	if (!m || m->records_count >= DNS_RECORDS)
		return false;
	struct record *record = &m->records[m->records_count & (DNS_RECORDS - 1)];
	__u32 at = read_name(m, m->at);
	if (!at || at + 10 > m->size || at + 10 > DNS_BYTES)
		return false;
	__u32 type = dns_16(m, at), class = dns_16(m, at + 2), ttl = dns_32(m, at + 4), size = dns_16(m, at + 8);
	__u32 data = at + 10, end = data + size;
	if (end > m->size || end > DNS_BYTES)
		return false;
	record->owner = hash_name(m);
	record->ttl = ttl >> 31 ? 0 : ttl; // RFC 2181
	record->type = class == DNS_INTERNET ? type : 0;
	if ((record->type == DNS_A && size != 4) || (record->type == DNS_AAAA && size != 16)) {
		m->broken = true;
		return false;
	}
	if (record->type == DNS_A) {
		memset(record->address, 0, 10);
		record->address[10] = record->address[11] = 0xff;
		for (int i = 0; i < 4; i++)
			record->address[12 + i] = dns_byte(m, data + i);
	} else if (record->type == DNS_AAAA) {
		for (int i = 0; i < 16; i++)
			record->address[i] = dns_byte(m, data + i);
	} else if (record->type == DNS_CNAME) {
		if (read_name(m, data) != end) {
			m->broken = true;
			return false;
		}
		record->alias = hash_name(m);
	}
	m->at = end;
	m->records_count++;
	return true;
}

// Goes from a name to what it is an alias of; false if it is none.
STAGE int follow_alias(struct message *m)
{
	if (!m)
		return false;
	for (__u32 i = 0; i < DNS_RECORDS && i < m->records_count; i++) {
		const struct record *record = &m->records[i];
		if (record->type != DNS_CNAME || record->owner != m->name)
			continue;
		m->name = record->alias;
		if (record->ttl < m->ttl)
			m->ttl = record->ttl;
		return true;
	}
	return false;
}

static __always_inline bool is_address_of(const struct message *m, const struct record *record)
{
	return (record->type == DNS_A || record->type == DNS_AAAA) && record->owner == m->name;
}

// Reads the records of an answer whose question was read, and finds the end of the
// name's aliases. False if it is not well-formed, or they have no end.
static __always_inline bool read_answers(struct message *m)
{
	m->ttl = 0x7fffffff;
	for (int i = 0; i < DNS_RECORDS; i++) {
		if (m->records_count >= m->answers || !read_record(m))
			break;
	}
	m->whole = m->records_count >= m->answers;
	if (m->broken)
		return false;
	for (int i = 0; i < DNS_ALIASES; i++) {
		if (!follow_alias(m))
			return true;
	}
	return false;
}

// Whether the flags are those of a good answer.
static __always_inline bool is_answer(__u16 flags)
{
	return (flags & (DNS_ANSWERS | DNS_OPCODE | DNS_TRUNCATED | DNS_RCODE)) == DNS_ANSWERS;
}

static __always_inline bool is_inquiry(__u16 flags)
{
	return !(flags & (DNS_ANSWERS | DNS_OPCODE));
}
