// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Listening to what flows say first. A flow that must speak a protocol (expects)
// is watched until both directions are known to: packets that may still become it
// pass, the first that cannot is refused, and so is the flow from then on.
//
// Of a stream, each direction's first bytes are put together from its segments,
// in whatever sizes and order they come; what is sent twice must be the same. What
// matched counts when it was acknowledged, so that segments that their receiver
// never takes (of a wrong checksum, or few hops) say nothing. Before that, a
// direction has SPEECH_WINDOW bytes to be known by, and passes at most
// MUTE_PACKETS packets and MUTE_BYTES bytes beside them.
//
// Of datagrams each is read by itself, until an answer was.
//
// What is merely observed is put together alike, for the record: nothing is refused
// for it, and where room is scarce it gives way. Where TLS is, or must be spoken, what
// the client says is told meanwhile (greet.h).
#pragma once

#include "fragment.h"
#include "greet.h"
#include "speech.h"

#define MUTE_PACKETS 256
#define MUTE_BYTES (256 << 10)
#define OWED_PATIENCE (120 * SECOND) // that a stream which owes has its place for certain
#define MOST_DATAGRAMS 16 // in one super-frame, of a flow that is watched

// Whether to listen to flows that owe nothing, where policy does not know them.
// Open configures it.
const volatile __u32 listen_to_observed = 1;

#define FLOW_HEED (FLOW_HEED_SOURCE | FLOW_HEED_DESTINATION)

// Room to work in.
struct ear {
	struct speech speech;
	__u8 before[SPEECH_WINDOW]; // always zero, as is what comes behind the chunk, so
	__u8 chunk[SPEECH_WINDOW];  // that it may be read from any place near it
	__u8 behind[SPEECH_WINDOW * 2 + 8];
	__u32 size;    // of the chunk
	__u32 matched; // bytes of this direction that were enough, if they were
	__u32 acknowledged; // what the other direction matched
	__u32 way;
	__u32 base;  // sequence number of this direction's first byte
	__u32 based; // it is known
	__u32 forked; // two handshakes say otherwise
	__u32 unanswered; // the handshake that is counted from, and something is said
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ear);
} ears SEC(".maps");

// What a packet carries.
struct payload {
	__u32 offset; // in the frame
	__u32 size;
	__u32 sequence; // of its first byte
	__u32 acknowledgement;
};

static __always_inline struct ear *ear(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&ears, &zero);
}

static __always_inline __u64 heed(__u32 side)
{
	return side ? FLOW_HEED_DESTINATION : FLOW_HEED_SOURCE;
}

// While a flow is watched, its row's speech is a protocol, if one direction is known
// to speak it, and a bit for each direction that has spoken and is not known.
static __always_inline __u8 spoke(__u32 side)
{
	return side ? SPEECH_DESTINATION_SPOKE : SPEECH_SOURCE_SPOKE;
}

// Adds to a row's speech, whatever other processors add meanwhile: with the three
// bytes before it, it is a word.
static __always_inline void add_speech(struct flow *flow, __u8 speech)
{
	_Static_assert(__builtin_offsetof(struct flow, speech) % 4 == 3, "speech is the highest byte");
	if ((flow->speech & speech) != speech)
		__sync_fetch_and_or((__u32 *)&flow->verdicts, (__u32)speech << 24);
}

// How a new flow is to be listened to. One that was there before has said its
// first bytes already.
static __always_inline __u64 heeding(const struct packet *p, const struct outcome *out)
{
	bool begins = p->protocol == PROTOCOL_UDP || (p->protocol == PROTOCOL_TCP && (p->tcp_flags & TCP_SYN));
	bool observed = listen_to_observed && (!is_allowed(out->would) || out->reason == REASON_NO_RULESET) &&
			out->verdict == VERDICT_ALLOW;
	if (p->protocol == PROTOCOL_TCP && !begins)
		return FLOW_PICKED_UP;
	return begins && (out->expects || observed) ? FLOW_WATCHED | FLOW_HEED : 0;
}

// Whether this is a flow to which a duty to speak something means anything: ICMP
// speaks for others.
static __always_inline bool is_mute(const struct packet *p)
{
	return p->protocol != PROTOCOL_TCP && p->protocol != PROTOCOL_UDP && !is_icmp(p->protocol);
}

static __always_inline void object(const struct passage *at, struct outcome *out, __u32 spoken)
{
	out->would = VERDICT_DROP;
	out->verdict = strict(at) ? VERDICT_DROP : VERDICT_ALLOW;
	out->reason = REASON_PROTOCOL_MISMATCH;
	out->speech = spoken;
}

// What cannot be read does not speak what it must.
STAGE int object_to_mute(const struct passage *at, struct outcome *out)
{
	if (!at || !out)
		return 0;
	if (out->expects && is_allowed(out->verdict) && is_mute(&at->packet))
		object(at, out, SPEECH_OTHER);
	return 0;
}

// A flow that is judged anew is judged by what it was heard to speak as well.
STAGE int object_to_known(const struct passage *at, struct outcome *out)
{
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	if (!flow || !out)
		return 0;
	__u8 spoken = spoken_of(flow);
	if (out->expects && spoken && spoken != out->expects && is_allowed(out->verdict) && is_still(flow, at->found.word))
		object(at, out, spoken);
	return 0;
}

// A row by its number. The number goes through memory so that the verifier does
// not know it: else it would go through what follows for each.
static __always_inline struct hearing *hearing_at(struct ear *e, struct hearings *bucket, __u32 way)
{
	*(volatile __u32 *)&e->way = way;
	return &bucket->rows[*(volatile __u32 *)&e->way & (HEARING_WAYS - 1)];
}

static __always_inline struct heard *side_of(struct hearing *row, __u64 side)
{
	barrier_var(side);
	return &row->side[side & 1];
}

// The key's row among those of a bucket, which is locked.
static __always_inline struct hearing *hearing_of(struct ear *e, struct hearings *bucket, const struct flow_key *key)
{
	__u64 way = HEARING_WAYS;
	for (int i = 0; i < HEARING_WAYS; i++) {
		if (bucket->rows[i].since && same_key(&bucket->rows[i].key, key))
			way = i;
	}
	return way < HEARING_WAYS ? hearing_at(e, bucket, way) : NULL;
}

// Takes a free row of a bucket, which is locked, or the oldest: of those that owe
// nothing, if there are any. None is taken from who owes for one who does not, before
// whoever means to speak has.
static __always_inline struct hearing *open_hearing(struct ear *e, struct hearings *bucket, const struct flow_key *key,
						   __u64 now, bool owes)
{
	__u64 way = 0, oldest = bucket->rows[0].since;
	for (int i = 1; i < HEARING_WAYS; i++) {
		__u64 since = bucket->rows[i].since, older = is_less(since, oldest);
		oldest += (since - oldest) * older;
		way += (i - way) * older;
	}
	if (!owes && (oldest & HEARING_OWED) && (oldest & ~HEARING_OWED) + OWED_PATIENCE > now)
		return NULL;
	struct hearing *row = hearing_at(e, bucket, way);
	row->key = *key;
	row->since = now | 1 | (owes ? HEARING_OWED : 0);
	for (int i = 0; i < 2; i++) {
		row->side[i].have = 0;
		row->side[i].bytes_passed = 0;
		row->side[i].packets_passed = 0;
		row->side[i].matched = row->side[i].begun = row->side[i].sure = 0;
	}
	return row;
}

static __always_inline struct hearings *hearings_at(__u32 row)
{
	__u32 index = row & (HEARINGS - 1);
	return bpf_map_lookup_elem(&hearings, &index);
}

STAGE int forget(const struct passage *at)
{
	struct ear *e = ear();
	struct hearings *bucket = at ? hearings_at(at->found.row) : NULL;
	if (!bucket || !e)
		return 0;
	bpf_spin_lock(&bucket->lock);
	struct hearing *row = hearing_of(e, bucket, &at->key);
	if (row)
		row->since = 0;
	bpf_spin_unlock(&bucket->lock);
	return 0;
}

// Clears flags of the packet's flow.
STAGE int release(struct passage *at, __u64 flags)
{
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	if (flow && turn(flow, at->found.word, 0, flags))
		at->found.word &= ~flags;
	return 0;
}

// Refuses a packet, not its flow; false where somebody enforces. Else it is told of.
STAGE int refuse_one(const struct passage *at, struct outcome *out, __u32 reason)
{
	if (!at || !out)
		return true;
	__u8 was = out->reason, verdict = out->verdict, would = out->would;
	out->reason = reason;
	out->would = VERDICT_DROP;
	out->verdict = strict(at) ? VERDICT_DROP : VERDICT_ALLOW;
	if (is_cut(out->verdict))
		return false;
	account(at, out, !at->original);
	out->reason = was;
	out->would = would;
	out->verdict = verdict;
	return true;
}

// What hearing says of a packet, if it is not what is spoken against the duty.
#define HEARD_WELL 0
#define HEARD_PIECE -1 // nobody can read it
#define HEARD_STRAY -2 // not of the flow that is heard
#define HEARD_DOUBT -3 // said otherwise before, where nothing is owed

// Refuses a flow for what it speaks. Where nobody enforces it goes on, and is told of.
STAGE int refuse_speech(struct passage *at, struct outcome *out, int spoken)
{
	if (!at || !out)
		return false;
	struct flow *flow = row_at(at->found.row);
	object(at, out, spoken);
	if (spoken == HEARD_PIECE) {
		out->reason = REASON_FRAGMENT;
		out->speech = SPEECH_UNKNOWN;
		return is_allowed(out->verdict);
	}
	at->news = true;
	if (!flow || !take(flow, at->found.word))
		return is_allowed(out->verdict); // another processor writes it: the next packet will say so again
	flow->verdicts = out->verdict | out->would << 4;
	flow->reason = out->reason;
	flow->speech = out->speech;
	if (is_cut(out->verdict))
		flow->until = 0;
	at->found.word = give(flow, 0, FLOW_WATCHED | FLOW_HEED);
	forget(at);
	return is_allowed(out->verdict);
}

// It is known what the flow speaks.
STAGE int conclude(struct passage *at, __u32 spoken)
{
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	if (flow && is_still(flow, at->found.word)) {
		flow->speech = spoken;
		release(at, FLOW_WATCHED | FLOW_HEED);
	}
	return 0;
}

// Finds what a packet carries; false if its header cannot be read.
STAGE int read_payload(struct __sk_buff *skb, const struct passage *at, struct payload *payload)
{
	if (!at || !payload)
		return false;
	const struct packet *p = &at->packet;
	__u32 end = sizeof(struct ethernet) + p->bytes, header = sizeof(struct udp);
	*payload = (struct payload){};
	if (p->protocol == PROTOCOL_TCP) {
		struct tcp tcp;
		if (bpf_skb_load_bytes(skb, p->l4, &tcp, sizeof(tcp)))
			return false;
		header = (tcp.offset >> 4) * 4;
		payload->sequence = bswap32(tcp.sequence) + !!(tcp.flags & TCP_SYN);
		payload->acknowledgement = bswap32(tcp.acknowledgement);
	}
	payload->offset = p->l4 + header;
	payload->size = end > payload->offset ? end - payload->offset : 0;
	// What is behind the end of a datagram nobody is given.
	__u16 said = 0;
	if (p->protocol == PROTOCOL_UDP && !skb->gso_size && !bpf_skb_load_bytes(skb, p->l4 + 4, &said, sizeof(said)) &&
	    bswap16(said) < payload->size + header)
		payload->size = bswap16(said) - header;
	return true;
}

// Reads the beginning of a payload, or of one of its datagrams.
STAGE int read_chunk(struct __sk_buff *skb, __u32 offset, __u32 size)
{
	struct ear *e = ear();
	if (!e)
		return false;
	if (size > SPEECH_WINDOW)
		size = SPEECH_WINDOW;
	e->size = size;
	memset(e->chunk, 0, sizeof(e->chunk));
	barrier_var(size);
	if (size == 0)
		return true;
	if (size > SPEECH_WINDOW)
		return false;
	return !bpf_skb_load_bytes(skb, offset, e->chunk, size);
}

// How many bytes there are without a gap: the place of the lowest bit that is not set.
static __always_inline __u32 without_gap(__u64 have)
{
	__u64 gap = ~have & (have + 1);
	if (!gap)
		return SPEECH_WINDOW;
	return !!(gap & 0xffffffff00000000ULL) << 5 | !!(gap & 0xffff0000ffff0000ULL) << 4 |
	       !!(gap & 0xff00ff00ff00ff00ULL) << 3 | !!(gap & 0xf0f0f0f0f0f0f0f0ULL) << 2 |
	       !!(gap & 0xccccccccccccccccULL) << 1 | !!(gap & 0xaaaaaaaaaaaaaaaaULL);
}

// The lesser of a number, if it is not negative, and 8; without branches, of which
// the verifier would have to go through all combinations.
static __always_inline __u64 up_to_8(__s64 n)
{
	__s64 negative = n >> 63; // all ones, or zero; barriers keep branches from coming back
	barrier_var(negative);
	__s64 beyond = (n & ~negative) - 8, less = beyond >> 63;
	barrier_var(less);
	return 8 + (beyond & less);
}

static __always_inline __u32 up_to_16(__u32 n)
{
	return up_to_8(n) + up_to_8((__s64)n - 8);
}

// Copies the bytes up to the first gap, and zeroes behind them.
static __always_inline void copy_heard(struct speech *s, const struct heard *side)
{
	const __u64 *from = (const __u64 *)side->bytes;
	__u64 *to = (__u64 *)s->bytes;
	__u32 length = without_gap(side->have);
	for (__u32 i = 0; i < SPEECH_WINDOW / 8; i++) {
		__u64 half = up_to_8((__s64)length - i * 8) * 4;
		to[i] = from[i] & ((1ULL << half << half) - 1);
	}
	s->length = length;
}

// The bits of the window that so many bytes take up from a place on.
static __always_inline __u64 taken(__s32 place, __u32 size)
{
	__u64 bits = size >= SPEECH_WINDOW ? ~0ULL : (1ULL << (size & 63)) - 1;
	if (place <= -SPEECH_WINDOW || place >= SPEECH_WINDOW)
		return 0;
	return place < 0 ? bits >> (-place & 63) : bits << (place & 63);
}

// Makes a byte of each of 8 bits.
static __always_inline __u64 spread(__u64 bits)
{
	__u64 one = ((bits & 0xff) * 0x0101010101010101ULL) & 0x8040201008040201ULL;
	return ((one + 0x7f7f7f7f7f7f7f7fULL) >> 7 & 0x0101010101010101ULL) * 0xff;
}

// Puts the chunk where it belongs; false if other bytes came there before.
static __always_inline bool merge(struct heard *side, const struct ear *e, __u32 sequence)
{
	__s32 place = sequence - side->base;
	__u64 other = 0, in = taken(place, e->size), had = in & side->have, put = in & ~side->have;
	if (!in)
		return true;
	__u64 *words = (__u64 *)side->bytes;
	for (__u32 i = 0; i < SPEECH_WINDOW / 8; i++) {
		__u32 from = SPEECH_WINDOW + i * 8 - place;
		barrier_var(from);
		__u64 is = *(const __u64 *)(e->before + (from & 255)), differs = words[i] ^ is;
		other |= differs & spread(had >> i * 8);
		words[i] ^= differs & spread(put >> i * 8);
	}
	side->have |= in;
	return !other;
}

#define HEARD_GAP -1   // what was heard before is lost, or began before what was taken for the first
#define HEARD_OTHER -2 // the same bytes were said otherwise before
#define HEARD_ENOUGH -3 // too much passed without being known

// Finds what was heard of a stream, or begins with it, at a handshake or at the
// first bytes; false if there is nothing. Notes where both directions begin, and
// whether the packet acknowledges what matched of the other direction.
STAGE int attend(const struct passage *at, const struct payload *payload, __u32 side, __u32 owes)
{
	struct ear *e = ear();
	struct hearings *bucket = at ? hearings_at(at->found.row) : NULL;
	if (!at || !payload || !e || !bucket)
		return false;
	bool syn = at->packet.tcp_flags & TCP_SYN, ack = at->packet.tcp_flags & TCP_ACK;
	e->acknowledged = e->based = e->forked = e->unanswered = 0;
	bpf_spin_lock(&bucket->lock);
	struct hearing *row = hearing_of(e, bucket, &at->key);
	if (!row && (syn || e->size))
		row = open_hearing(e, bucket, &at->key, at->now, owes);
	if (row) {
		struct heard *own = side_of(row, side), *other = side_of(row, !side);
		// Only one of two handshakes reached its receiver, and where nobody has answered
		// which, nothing may have been said. What the answer acknowledges counts.
		bool again = syn && own->begun && own->base != payload->sequence;
		if (again && (ack || other->begun || own->have || payload->size))
			e->forked = 1;
		else if (syn) {
			own->base = payload->sequence;
			own->begun = own->sure = 1;
		}
		if (syn && ack && !other->have) {
			other->base = payload->acknowledgement;
			other->begun = other->sure = 1;
		}
		// What is counted from an opener counts once that was answered: it may never have
		// arrived, and what is sent then belong to a connection that was there before.
		bool answered = own->sure || !other->sure;
		if (ack && answered && other->matched &&
		    (__s32)(payload->acknowledgement - other->base - other->matched) >= 0)
			e->acknowledged = 1;
		if (!side && !syn && e->size && own->sure && !other->sure)
			e->unanswered = 1;
		e->base = own->base;
		e->based = own->begun;
	}
	bpf_spin_unlock(&bucket->lock);
	return row != NULL;
}

// Adds the chunk, a segment's beginning, to what was heard of its flow, by the row
// that attend found; what there is without a gap goes to the ear's speech.
STAGE int overhear(const struct passage *at, const struct payload *payload, __u32 side, __u32 spoken)
{
	struct ear *e = ear();
	struct hearings *bucket = at ? hearings_at(at->found.row) : NULL;
	int heard = HEARD_GAP;
	if (!at || !payload || !e || !bucket)
		return heard;
	e->matched = e->speech.length = 0;
	bpf_spin_lock(&bucket->lock);
	struct hearing *row = hearing_at(e, bucket, e->way);
	struct heard *own = side_of(row, side), *other = side_of(row, !side);
	if (row->since && same_key(&row->key, &at->key) && (own->begun || !spoken)) {
		if (!own->begun) {
			own->base = payload->sequence;
			own->begun = 1;
		}
		e->base = own->base;
		e->based = 1;
		if (own->sure || (__s32)(payload->sequence - own->base) >= 0)
			heard = merge(own, e, payload->sequence) ? 0 : HEARD_OTHER;
		own->packets_passed += own->packets_passed <= MUTE_PACKETS;
		if (own->bytes_passed <= MUTE_BYTES)
			own->bytes_passed += payload->size;
		if (!heard && (own->packets_passed > MUTE_PACKETS || own->bytes_passed > MUTE_BYTES))
			heard = HEARD_ENOUGH;
		e->matched = own->matched;
		copy_heard(&e->speech, own);
		*(__u64 *)e->speech.asked = *(__u64 *)other->bytes;
		*(__u64 *)(e->speech.asked + 8) = *(__u64 *)(other->bytes + 8);
		e->speech.asked_length = side * up_to_16(without_gap(other->have));
	}
	bpf_spin_unlock(&bucket->lock);
	e->speech.datagram = 0;
	e->speech.answers = side;
	return heard;
}

// Notes that a direction matched by as many bytes as it has.
STAGE int note_match(const struct passage *at, __u32 side, __u32 length)
{
	struct ear *e = ear();
	struct hearings *bucket = at ? hearings_at(at->found.row) : NULL;
	if (!bucket || !e)
		return 0;
	bpf_spin_lock(&bucket->lock);
	struct hearing *row = hearing_of(e, bucket, &at->key);
	if (row)
		side_of(row, side)->matched = length;
	bpf_spin_unlock(&bucket->lock);
	return 0;
}

// Takes the chunk by itself for all that is said: of datagrams, and of what is only
// listened to.
static __always_inline void take_chunk(struct ear *e, __u32 datagram, bool answers)
{
	memcpy(e->speech.bytes, e->chunk, SPEECH_WINDOW);
	e->speech.length = e->size;
	e->speech.asked_length = 0;
	e->speech.datagram = datagram;
	e->speech.answers = answers;
}

// Listens to what owes nothing. What is not understood is left: there may be more
// to understand from the other side.
STAGE int overhear_aside(struct passage *at, __u32 spoken)
{
	if (!at)
		return 0;
	bool known = spoken && spoken != SPEECH_OTHER;
	if (!known)
		release(at, heed(!at->original));
	if (known || !(at->found.word & FLOW_HEED)) {
		conclude(at, known ? spoken : SPEECH_OTHER);
		if (at->packet.protocol == PROTOCOL_TCP)
			forget(at);
	}
	return 0;
}

// Tells a segment of what may be a ClientHello. What has been heard decides: bytes
// that come early are kept by the agent until it has those before.
STAGE int greet(struct __sk_buff *skb, const struct passage *at, const struct payload *payload)
{
	struct ear *e = ear();
	if (!at || !payload || !e || !e->based)
		return 0;
	__u32 place = payload->sequence - e->base;
	return place < GREETING_REACH ? tell_greeting(skb, at, payload->offset, payload->size, place) : 0;
}

// A segment of a stream that owes nothing, and what was heard of its side so far. When
// it is known what the client speaks, the stream is watched on until somebody answers:
// what was said may be a copy that the server never takes, and the one that it does
// comes behind.
STAGE int hear_aside(struct __sk_buff *skb, struct passage *at, const struct payload *payload, __u32 spoken)
{
	struct ear *e = ear();
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	if (!at || !payload || !e || !flow)
		return 0;
	__u32 side = !at->original;
	if (flow->speech & SPEECH_KNOWN) // by the client's side
		return side ? overhear_aside(at, flow->speech & SPEECH_KNOWN) : 0;
	if (!side && (spoken == SPEECH_TLS || (spoken == SPEECH_UNKNOWN && tls_asks(&e->speech))))
		greet(skb, at, payload);
	if (spoken == SPEECH_UNKNOWN) {
		add_speech(flow, spoke(side));
		return 0;
	}
	if (side || !may_greet(flow))
		return overhear_aside(at, spoken);
	add_speech(flow, SPEECH_SOURCE_SPOKE | (spoken == SPEECH_OTHER ? 0 : spoken));
	return spoken == SPEECH_TLS ? release(at, FLOW_HEED_SOURCE) // all of it is told, and compared there
				    : note_match(at, 0, e->speech.length);
}

// More of what a client of TLS says, whose beginning is known.
STAGE int greet_on(struct __sk_buff *skb, struct passage *at, const struct payload *payload)
{
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	if (!at || !payload || !flow)
		return 0;
	greet(skb, at, payload);
	if (!flow->expects && !may_greet(flow))
		overhear_aside(at, SPEECH_TLS);
	return 0;
}

// What is spoken, where it is known not to be what must be: its beginning may be
// like, and what follows not.
static __always_inline __u32 unlike(__u32 spoken, __u32 expects)
{
	return spoken && spoken != expects ? spoken : SPEECH_OTHER;
}

// A segment of a stream.
STAGE int hear_segment(struct __sk_buff *skb, struct passage *at)
{
	struct payload payload;
	struct ear *e = ear();
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	if (!at || !e || !flow)
		return HEARD_PIECE;
	const struct packet *p = &at->packet;
	__u32 side = !at->original, expects = flow->expects;
	if (p->marks & (PACKET_FIRST | PACKET_LATER))
		return expects ? HEARD_PIECE : HEARD_WELL;
	bool heeds = at->found.word & heed(side);
	if (!read_payload(skb, at, &payload))
		return HEARD_PIECE;
	if (!payload.size && !(p->tcp_flags & TCP_SYN) && !(flow->speech & SPEECH_KNOWN))
		return HEARD_WELL; // says nothing, and acknowledges nothing that matched
	if (expects && heeds && payload.size && (p->tcp_flags & TCP_URG))
		return SPEECH_OTHER; // receivers take urgent bytes out of what is said, and nobody begins so
	if (!read_chunk(skb, payload.offset, heeds ? payload.size : 0))
		return HEARD_PIECE;
	if ((p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && at->news)
		forget(at); // a flow that had the same ends
	bool attends = attend(at, &payload, side, expects);
	if (expects && e->forked)
		return HEARD_STRAY;
	if (expects && e->unanswered)
		return SPEECH_OTHER;
	// On wires, answers may take another way.
	if ((e->forked && side) || (e->unanswered && !at->link))
		return HEARD_DOUBT;
	if (e->acknowledged) {
		release(at, heed(!side));
		__u32 known = expects ? expects : flow->speech & SPEECH_KNOWN;
		if (!(at->found.word & FLOW_HEED) || (!expects && known)) {
			conclude(at, known);
			forget(at);
			if (!expects)
				return HEARD_WELL;
		}
	}
	if (!e->size) {
		if (!side && !heeds && payload.size && (flow->speech & SPEECH_KNOWN) == SPEECH_TLS)
			greet_on(skb, at, &payload);
		return HEARD_WELL;
	}
	if (!attends && !expects && !(flow->speech & SPEECH_KNOWN)) {
		conclude(at, SPEECH_UNKNOWN); // there is no room to listen
		return HEARD_WELL;
	}
	int heard = attends ? overhear(at, &payload, side, !!(flow->speech & spoke(side))) : HEARD_GAP;
	if (!expects && heard)
		return !side && heard == HEARD_OTHER ? HEARD_DOUBT : overhear_aside(at, (flow->speech & SPEECH_KNOWN) ?: SPEECH_OTHER);
	if (!expects)
		return hear_aside(skb, at, &payload, classify(&e->speech));
	if (!side && !heard && expects == SPEECH_TLS && tls_asks(&e->speech))
		greet(skb, at, &payload);
	if (!heard && e->matched)
		return HEARD_WELL; // said again, and not acknowledged yet
	int said = heard ? SPEECH_NO : speaks(&e->speech, expects);
	if (said == SPEECH_NO)
		return unlike(classify(&e->speech), expects);
	if (said == SPEECH_MORE) {
		add_speech(flow, spoke(side));
		return HEARD_WELL;
	}
	note_match(at, side, e->speech.length);
	add_speech(flow, spoke(side) | expects);
	return HEARD_WELL;
}

// Whether all datagrams of a packet speak what they must; else what is spoken.
STAGE int hear_datagrams(struct __sk_buff *skb, const struct payload *payload, __u32 expects, __u32 answers)
{
	struct ear *e = ear();
	if (!payload || !e)
		return SPEECH_OTHER;
	__u32 one = skb->gso_size ? skb->gso_size : payload->size;
	for (__u32 i = 0, at = 0; i < MOST_DATAGRAMS; i++) {
		__u32 size = payload->size - at < one ? payload->size - at : one;
		if (!read_chunk(skb, payload->offset + at, size))
			return SPEECH_OTHER;
		take_chunk(e, size ? size : 1, answers);
		if (speaks(&e->speech, expects) != SPEECH_YES)
			return unlike(classify(&e->speech), expects);
		at += one;
		if (at >= payload->size)
			return expects;
	}
	return SPEECH_OTHER; // more than anybody begins with
}

STAGE int hear_datagram(struct __sk_buff *skb, struct passage *at)
{
	struct payload payload;
	struct ear *e = ear();
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	if (!at || !e || !flow)
		return HEARD_PIECE;
	__u32 side = !at->original, expects = flow->expects;
	if (at->packet.marks & PACKET_LATER)
		return HEARD_WELL; // the first piece was read
	if (!(at->found.word & heed(side)))
		return HEARD_WELL;
	if (!read_payload(skb, at, &payload))
		return HEARD_PIECE;
	if (!expects) {
		if (read_chunk(skb, payload.offset, payload.size) && e->size) {
			take_chunk(e, payload.size, side);
			overhear_aside(at, classify(&e->speech));
		}
		return HEARD_WELL;
	}
	__u32 spoken = hear_datagrams(skb, &payload, expects, side);
	if (spoken != expects)
		return spoken;
	if (side)
		conclude(at, expects);
	else
		add_speech(flow, expects);
	return HEARD_WELL;
}

// Whether a handshake of a flow that owes a protocol carries data. Nobody can tell whether
// what answers it takes these, or answers to one before that ends where they do. Who opens
// so (RFC 7413) opens without them, too.
STAGE int says_early(struct __sk_buff *skb, const struct passage *at)
{
	struct payload payload;
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	return flow && flow->expects && (!read_payload(skb, at, &payload) || payload.size);
}

// Listens to a packet of a flow that is watched; false if it is refused.
static __always_inline bool hear(struct __sk_buff *skb, struct passage *at, struct outcome *out)
{
	bool stream = at->packet.protocol == PROTOCOL_TCP;
	if (stream && (at->packet.tcp_flags & TCP_SYN) && says_early(skb, at) && !refuse_one(at, out, REASON_INVALID_STATE))
		return false;
	int heard = stream ? hear_segment(skb, at) : hear_datagram(skb, at);
	if (heard == HEARD_DOUBT) {
		tell_doubt(at);
		overhear_aside(at, SPEECH_OTHER);
		return true;
	}
	if (heard == HEARD_STRAY)
		return refuse_one(at, out, REASON_INVALID_STATE);
	return heard == HEARD_WELL || refuse_speech(at, out, heard);
}

// A packet to a group has no flow: each is read by itself.
STAGE int hear_group(struct __sk_buff *skb, const struct passage *at, struct outcome *out)
{
	struct payload payload;
	if (!at || !out)
		return 0;
	const struct packet *p = &at->packet;
	if (is_icmp(p->protocol) || (p->marks & PACKET_LATER))
		return 0;
	__u32 spoken = SPEECH_OTHER;
	if (p->protocol == PROTOCOL_UDP && read_payload(skb, at, &payload))
		spoken = hear_datagrams(skb, &payload, out->expects, false);
	if (spoken != out->expects && p->protocol == PROTOCOL_UDP && hear_datagrams(skb, &payload, out->expects, true) == out->expects)
		return 0; // answers go to the group too, as multicast DNS has it
	if (spoken != out->expects)
		object(at, out, spoken);
	return 0;
}
