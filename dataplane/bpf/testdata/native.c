// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The pure parts of the programs as a native library: what native_main.c fuzzes.

#include "../dns.h"
#include "../parse.h"
#include "../speech.h"
#include "../tags.h"

// Reads a frame; its memory ends where the frame does. Returns -1 for tags that do not
// lie in it, or of VLANs that there are not.
int native_parse(void *data, unsigned size)
{
	__u64 tags = read_tags(LINK_WIRE, data, data + size);
	__u32 link = link_of(tags), length = length_of_tags(tags), outer = link & VLAN_ID;
	if (length && 12 + length + 2 > size)
		return -1;
	if (!(tags & TAGS_STRANGE) && (length > 8 || !outer || (outer == VLAN_ID && link != LINK_WIRE)))
		return -1;
	struct packet p = {};
	struct frame f = {.data = data, .end = data + size, .length = size};
	return parse(&f, &p);
}

// Reads the beginning of a stream or a datagram as every protocol, and checks what
// readings promise of the parts of it. Returns what is spoken, or -1 for a broken
// promise.
int native_speech(struct speech *s, const __u8 *bytes, unsigned size, unsigned *broken)
{
	__u32 total = size < SPEECH_WINDOW ? size : SPEECH_WINDOW;
	__u32 before[SPEECH_PROTOCOLS + 1];
	for (__u32 p = 1; p <= SPEECH_PROTOCOLS; p++)
		before[p] = SPEECH_MORE;
	for (__u32 n = 0; n <= total; n++) {
		if (n)
			s->bytes[n - 1] = bytes[n - 1];
		s->length = n;
		if (s->datagram && n < total)
			continue;
		for (__u32 p = 1; p <= SPEECH_PROTOCOLS; p++) {
			__u32 said = speaks(s, p);
			*broken = p;
			if (before[p] != SPEECH_MORE && said != before[p])
				return -1; // said otherwise of less
			if (said == SPEECH_MORE && (s->datagram || n == SPEECH_WINDOW))
				return -1; // does not know of all
			before[p] = said;
		}
	}
	return classify(s);
}

// Reads a message of the DNS in memory of its own, whose room behind it is never read
// into the answer. Returns how many records were read, or -1 for a broken promise.
int native_dns(struct message *m, const __u8 *bytes, unsigned size)
{
	if (size > DNS_BYTES)
		size = DNS_BYTES;
	memcpy(m->bytes, bytes, size);
	m->size = size;
	if (!read_question(m) || !is_answer(m->flags) || !read_answers(m))
		return 0;
	if (m->at > size || m->records_count > DNS_RECORDS || m->length > DNS_NAME)
		return -1;
	return m->records_count;
}

// Gives the addresses of the question's name, each behind its TTL; how many.
int native_addresses(struct message *m, __u8 *to, unsigned room)
{
	unsigned count = 0;
	for (__u32 i = 0; i < m->records_count && count < room; i++) {
		const struct record *record = &m->records[i];
		if (!is_address_of(m, record))
			continue;
		__u32 ttl = record->ttl < m->ttl ? record->ttl : m->ttl;
		memcpy(to + count * 20, &ttl, 4);
		memcpy(to + count * 20 + 4, record->address, 16);
		count++;
	}
	return count;
}

unsigned native_dns_size(void)
{
	return sizeof(struct message);
}
