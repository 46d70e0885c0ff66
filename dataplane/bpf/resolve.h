// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Learning which addresses names have, by reading what the DNS tells workloads.
//
// A question is noted when the workload sends it, in a flow that policy allows, and
// it is for a name that some ruleset has. The answer counts on its way to who asked,
// once, if it is of that flow, and has the transaction's id and the question as they
// were asked. So nobody teaches a workload anything but the servers that policy lets
// it ask, and of those none what was not asked.
//
// In a stream a message begins where the one before it ends, from the server's SYN on,
// and nowhere else: who asks says where segments are cut, by its window and by what it
// acknowledges, and servers repeat what they were asked, so the asker could have a
// segment begin with what it made up itself. Where the place is not known nothing is
// learned, and that is counted.
//
// A workload's rows are its own. What does not fit pushes out its own only, is
// counted, and costs no more than that the workload has to ask again.
#pragma once

#include "dns.h"
#include "hear.h"

// Open configures it: an address may be used so long whatever its TTL is, since
// nobody connects at the moment of the answer; and no longer than a day.
const volatile __u64 name_least = 30 * SECOND;
#define NAME_MOST (86400 * SECOND)
#define INQUIRY_PERIOD (30 * SECOND) // in which an answer may come
#define MOST_MESSAGES 4		     // in one packet
#define MOST_STEPS 16		     // in a segment: lengths, and the messages behind them
#define MOST_IDS 8		     // patterns that one question matches
#define MOST_AHEAD (1 << 30)	     // bytes that a window may be long (RFC 7323)

struct clerk {
	struct message message;
	struct payload payload;
	struct address server;
	struct address address; // that is learned
	struct set_key set;	// where
	struct flow_key stream;
	struct reading place;
	__u64 until;
	__u64 ids[MOST_IDS];
	__u64 depths; // as a ruleset's names
	__u64 no_set[sizeof(struct learned_set) / 8]; // always zero
	__u32 ids_count;
	__u32 next; // of the records
	__u32 way;
	__u16 port; // of who asks
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clerk);
} clerks SEC(".maps");

static __always_inline struct clerk *clerk(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&clerks, &zero);
}

// Whether some ruleset has a pattern. What each says of it is the judge's to ask.
static __always_inline void match(struct clerk *c, __u64 id)
{
	if (!bpf_map_lookup_elem(&names, &id))
		return;
	__u32 count = c->ids_count;
	if (count < MOST_IDS)
		c->ids[count & (MOST_IDS - 1)] = id;
	c->ids_count = count + 1;
}

// Looks at the name from its next label on: by it, or by all names below it.
STAGE int match_label(void)
{
	struct clerk *c = clerk();
	if (!c)
		return false;
	struct message *m = &c->message;
	__u32 place = m->label, left = m->labels;
	if (!left || place >= DNS_NAME || place >= m->length)
		return false;
	if (!place)
		match(c, hash_name(m) & ~(__u64)NAME_BELOW);
	__u32 label = DNS_BYTES + place;
	barrier_var(label);
	if (label > DNS_BYTES + DNS_NAME)
		return false;
	place += m->bytes[label] + 1;
	m->label = place;
	m->labels = --left;
	__u32 bit = left < MOST_NAME_BITS ? left : MOST_NAME_BITS;
	if (left && place < m->length && (c->depths >> bit & 1))
		match(c, hash_bytes(m, DNS_BYTES + place, m->length - place) | NAME_BELOW);
	return left != 0;
}

// Reads a message and its question, and finds the patterns that the question matches.
STAGE int read_message(struct __sk_buff *skb, __u32 offset, __u32 size)
{
	struct clerk *c = clerk();
	if (!c)
		return false;
	struct message *m = &c->message;
	if (size > DNS_BYTES)
		size = DNS_BYTES;
	barrier_var(size);
	if (size < DNS_HEADER || size > DNS_BYTES || bpf_skb_load_bytes(skb, offset, m->bytes, size))
		return false;
	m->size = size;
	m->key[0] = flow_seeds[12];
	m->key[1] = flow_seeds[13];
	c->ids_count = 0;
	if (!read_question(m))
		return false;
	for (int i = 0; i < DNS_LABELS; i++) {
		if (!match_label())
			break;
	}
	if (c->ids_count > MOST_IDS)
		c->ids_count = MOST_IDS;
	return c->ids_count;
}

// A place among rows. It goes through memory so that the verifier does not know it:
// else it would go through what follows for each.
static __always_inline __u32 place_in(struct clerk *c, __u32 way)
{
	*(volatile __u32 *)&c->way = way;
	return *(volatile __u32 *)&c->way;
}

static __always_inline struct set_key inquiry_key(const struct passage *at, __u16 id)
{
	return (struct set_key){.identity = at->identity, .part = id & (INQUIRY_PARTS - 1)};
}

static __always_inline bool is_same_inquiry(const struct inquiry *row, const struct clerk *c, __u8 protocol)
{
	return same(&row->server, &c->server) && row->port == c->port && row->id == c->message.id && row->protocol == protocol;
}

// Notes a question.
STAGE int inquire(const struct passage *at)
{
	struct clerk *c = clerk();
	struct tally *t = tally();
	if (!at || !c || !t)
		return 0;
	struct set_key key = inquiry_key(at, c->message.id);
	struct inquiry_set *set = bpf_map_lookup_elem(&inquiries, &key);
	if (!set) {
		bpf_map_update_elem(&inquiries, &key, c->no_set, BPF_NOEXIST);
		set = bpf_map_lookup_elem(&inquiries, &key);
	}
	t->inquired++;
	if (!set) {
		t->unlearned++;
		return 0;
	}
	__u8 protocol = at->packet.protocol;
	__u64 oldest = ~0ULL, way = 0;
	bpf_spin_lock(&set->lock);
	for (__u64 i = 0; i < INQUIRIES; i++) {
		struct inquiry *row = &set->rows[i];
		__u64 until = is_same_inquiry(row, c, protocol) ? 0 : row->until;
		if (until < oldest) {
			oldest = until;
			way = i;
		}
	}
	struct inquiry *row = &set->rows[place_in(c, way) & (INQUIRIES - 1)];
	row->server = c->server;
	row->question = c->message.question;
	row->port = c->port;
	row->id = c->message.id;
	row->protocol = protocol;
	row->until = at->now + INQUIRY_PERIOD;
	bpf_spin_unlock(&set->lock);
	return 0;
}

// Whether somebody asked what is answered; if so, that question is answered.
STAGE int is_asked(const struct passage *at)
{
	struct clerk *c = clerk();
	if (!at || !c)
		return false;
	struct set_key key = inquiry_key(at, c->message.id);
	struct inquiry_set *set = bpf_map_lookup_elem(&inquiries, &key);
	if (!set)
		return false;
	__u8 protocol = at->packet.protocol;
	__u64 now = at->now, question = c->message.question;
	bool asked = false;
	bpf_spin_lock(&set->lock);
	for (int i = 0; i < INQUIRIES; i++) {
		struct inquiry *row = &set->rows[i];
		if (row->until <= now || row->question != question || !is_same_inquiry(row, c, protocol))
			continue;
		row->until = 0;
		asked = true;
	}
	bpf_spin_unlock(&set->lock);
	return asked;
}

// The twin of NamesMayMean.
static __always_inline bool may_be_meant(const struct address *a)
{
	if (is_unspecified(a) || is_multicast(a))
		return false;
	if (is4(a)) {
		__u32 first = a->low >> 32 & 0xff, second = a->low >> 40 & 0xff;
		return first != 0 && first != 127 && first < 240 && !(first == 169 && second == 254);
	}
	return !is_link_local6(a) && !(a->high == 0 && a->low == bswap64(1));
}

// Writes down that a name has the address in hand: in its row of the set, or in one
// that is over, or the one that ends first.
STAGE int learn_name(const struct passage *at, __u32 which)
{
	struct clerk *c = clerk();
	struct tally *t = tally();
	if (!at || !c || !t)
		return 0;
	struct set_key key = c->set;
	struct learned_set *set = bpf_map_lookup_elem(&learned, &key);
	if (!set) {
		bpf_map_update_elem(&learned, &key, c->no_set, BPF_NOEXIST);
		set = bpf_map_lookup_elem(&learned, &key);
	}
	if (!set) {
		t->unlearned++;
		return 0;
	}
	__u64 id = c->ids[which & (MOST_IDS - 1)], now = at->now, least = ~0ULL, way = 0;
	bpf_spin_lock(&set->lock);
	for (__u64 i = 0; i < LEARNED; i++) {
		struct learned *row = &set->rows[i];
		__u64 end = row->until > row->used ? row->until : row->used;
		if (row->name == id && same(&row->address, &c->address))
			end = 0;
		else
			end++;
		__u64 less = is_less(end, least & ~0ULL >> 1);
		least += (end - least) * less;
		way += (i - way) * less;
	}
	struct learned *row = &set->rows[place_in(c, way) & (LEARNED - 1)];
	bool own = row->name == id && same(&row->address, &c->address), counted = !own && row->until > now;
	if (!own) {
		row->address = c->address;
		row->name = id;
		row->used = row->until = 0;
	}
	if (row->until < c->until)
		row->until = c->until;
	bpf_spin_unlock(&set->lock);
	t->unlearned += counted;
	return 0;
}

// Learns the next record, if it is an address of what was asked for.
STAGE int learn_record(const struct passage *at)
{
	struct clerk *c = clerk();
	if (!at || !c)
		return 0;
	struct message *m = &c->message;
	const struct record *record = &m->records[c->next++ & (DNS_RECORDS - 1)];
	if (!is_address_of(m, record))
		return 0;
	memcpy(&c->address, record->address, sizeof(c->address));
	if (!may_be_meant(&c->address))
		return 0;
	c->set = learned_key(at->identity, &c->address);
	__u64 period = (record->ttl < m->ttl ? record->ttl : m->ttl) * SECOND;
	if (period < name_least)
		period = name_least;
	if (period > NAME_MOST)
		period = NAME_MOST;
	c->until = at->now + period;
	m->found++;
	for (__u32 i = 0; i < MOST_IDS && i < c->ids_count; i++)
		learn_name(at, i);
	return 0;
}

// What the DNS is asked on the way from the workload, and answers on the way to it.
STAGE int take_message(const struct passage *at)
{
	struct clerk *c = clerk();
	struct tally *t = tally();
	if (!at || !c || !t)
		return 0;
	struct message *m = &c->message;
	if (at->from)
		return is_inquiry(m->flags) ? inquire(at) : 0;
	if (!(m->flags & DNS_ANSWERS))
		return 0;
	if (!is_asked(at)) {
		t->unasked++;
		return 0;
	}
	if (!is_answer(m->flags))
		return 0;
	if (!read_answers(m)) {
		t->unread++;
		return 0;
	}
	c->next = 0;
	for (__u32 i = 0; i < DNS_RECORDS && i < m->records_count; i++)
		learn_record(at);
	t->answered += !!m->found;
	t->unread += !m->whole;
	return 0;
}

// How long the message is that a segment begins with, its length before it included.
STAGE __u32 length_of(struct __sk_buff *skb, __u32 offset)
{
	__u16 said = 0;
	return bpf_skb_load_bytes(skb, offset, &said, sizeof(said)) ? 0 : bswap16(said) + 2;
}

// Goes on from the place in hand: over the length of a message, or over a message,
// which is read as far as it is in the segment. False where the segment ends before
// that, or the place is lost.
STAGE int read_on(struct __sk_buff *skb, const struct passage *at)
{
	struct clerk *c = clerk();
	if (!at || !c)
		return false;
	struct reading *place = &c->place;
	__u32 ahead = place->sequence - c->payload.sequence;
	// No window reaches there: what was between has been missed, and numbers come round.
	place->lost = (__s32)ahead < -MOST_AHEAD;
	if (ahead >= c->payload.size)
		return false;
	__u32 offset = c->payload.offset + ahead, size = c->payload.size - ahead;
	if (place->inside) {
		__u32 there = place->length < size ? place->length : size;
		if (read_message(skb, offset, there))
			take_message(at);
		place->sequence += place->length;
		place->inside = false;
		return true;
	}
	__u32 whole = size < 2 ? 0 : length_of(skb, offset);
	place->lost = !whole;
	if (!whole)
		return false;
	place->sequence += 2;
	place->length = whole - 2;
	place->inside = true;
	return true;
}

// Reads a segment of a server from where a message begins in it.
STAGE int read_stream(struct __sk_buff *skb, const struct passage *at)
{
	struct clerk *c = clerk();
	struct tally *t = tally();
	if (!at || !c || !t)
		return 0;
	memcpy(&c->stream, &at->key, sizeof(c->stream));
	if (at->packet.tcp_flags & TCP_SYN) {
		c->place = (struct reading){.sequence = c->payload.sequence};
	} else {
		if (!c->payload.size)
			return 0;
		struct reading *known = bpf_map_lookup_elem(&readings, &c->stream);
		if (!known) {
			t->unread++;
			return 0;
		}
		c->place = *known;
	}
	for (int i = 0; i < MOST_STEPS; i++) {
		if (!read_on(skb, at))
			break;
	}
	if (c->place.lost) {
		t->unread++;
		bpf_map_delete_elem(&readings, &c->stream);
		return 0;
	}
	// By its key: a row in hand may have become another stream's.
	bpf_map_update_elem(&readings, &c->stream, &c->place, at->packet.tcp_flags & TCP_SYN ? BPF_ANY : BPF_EXIST);
	return 0;
}

// A stream that begins has no place yet, whatever had its ports before.
STAGE int begin_stream(const struct passage *at)
{
	struct clerk *c = clerk();
	if (!at || !c)
		return 0;
	memcpy(&c->stream, &at->key, sizeof(c->stream));
	bpf_map_delete_elem(&readings, &c->stream);
	return 0;
}

// Reads a packet of a flow that asks the DNS and is allowed: its datagrams, or the
// messages of a stream, each behind its length. A question may be behind its length, or
// without one, which may have been sent by itself before; nobody but who asks is told
// anything by it. True for an answer in a stream, which is left to read_stream: the
// stack has no room for both.
STAGE int resolve(struct __sk_buff *skb, const struct passage *at)
{
	struct clerk *c = clerk();
	if (tracing || !at || !c || !at->identity || !at->from != !at->original || (at->packet.marks & PACKET_LATER))
		return 0;
	const struct packet *p = &at->packet;
	bool stream = p->protocol == PROTOCOL_TCP;
	if (stream && at->from && (p->tcp_flags & TCP_SYN))
		begin_stream(at);
	if (!read_payload(skb, at, &c->payload))
		return 0;
	c->server = at->from ? p->destination : p->source;
	c->port = at->from ? p->source_port : p->destination_port;
	c->depths = 0;
	for (__u32 slot = 0; slot < SLOTS; slot++) {
		__u32 index = slot;
		struct ruleset *rules = bpf_map_lookup_elem(&rulesets, &index);
		c->depths |= rules ? rules->names : 0;
	}
	if (stream && !at->from)
		return true;
	__u32 prefix = stream ? 2 : 0;
	for (int i = 0; i < MOST_MESSAGES; i++) {
		__u32 offset = c->payload.offset, size = c->payload.size, whole = size;
		if (size < prefix + DNS_HEADER)
			return 0;
		if (prefix)
			whole = length_of(skb, offset);
		else if (skb->gso_size)
			whole = skb->gso_size;
		__u32 there = whole < size ? whole : size;
		if (there < prefix)
			return 0;
		if (read_message(skb, offset + prefix, there - prefix) || (prefix && read_message(skb, offset, size)))
			take_message(at);
		c->payload.offset = offset + there;
		c->payload.size = size - there;
	}
	return 0;
}
