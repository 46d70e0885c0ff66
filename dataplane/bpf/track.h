// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Flows: one row for both directions and for every port of the host. A row keeps
// the verdict, the epoch in which it was given and when it ends by itself; in
// another epoch, or after that, the flow is judged again on its next packet, in
// whichever direction that goes, so a revoked permission cuts what lives. What
// was cut stays in the table: should policy allow it again, it goes on where both
// ends still try.
#pragma once

#include "admit.h"
#include "policy.h"
#include "table.h"
#include "tags.h"

static __always_inline bool may_pick_up(const struct passage *at)
{
	__u32 zero = 0;
	struct pressure *pressed = bpf_map_lookup_elem(&pressure, &zero);
	return at->young || (pressed && at->now < pressed->until);
}

// Of a flow that is not watched, and so heeds nothing: its handshake was not seen, or it
// lives and its source has opened it once more.
#define FLOW_PICKED_UP FLOW_HEED_SOURCE
#define FLOW_BEGINS_AGAIN FLOW_HEED_DESTINATION

// Whether a flow that was reset may live all the same. Its ends know whether the reset
// is one, by its checksum and its sequence number; here it may be anybody's.
static __always_inline bool may_live(__u64 word)
{
	return (word & (FLOW_RESET | FLOW_ESTABLISHED | FLOW_WATCHED)) == (FLOW_RESET | FLOW_ESTABLISHED);
}

// Whether a row is one on which a handshake may be that of another flow, and does not
// cut the one that is there.
static __always_inline bool may_begin_again(__u64 word)
{
	return !(word & FLOW_WATCHED) && (word & (FLOW_ESTABLISHED | FLOW_PICKED_UP));
}

// What of a key comes behind the addresses.
static __always_inline __u64 key_rest(__u16 first, __u16 second, __u8 protocol, __u32 link)
{
	return first | (__u64)second << 16 | (__u64)protocol << 32 | (__u64)(link & LINK_IN_KEY) << 40;
}

// Writes the key of a packet; true if its source is the second end.
static __always_inline bool flow_key_of(const struct address *source, const struct address *destination,
					__u16 source_port, __u16 destination_port, __u8 protocol, __u32 link,
					struct flow_key *key)
{
	bool second = source->high > destination->high ||
		      (source->high == destination->high &&
		       (source->low > destination->low ||
			(source->low == destination->low && source_port > destination_port)));
	second = second != !!(link & LINK_DOUBLED);
	key->address[0] = second ? *destination : *source;
	key->address[1] = second ? *source : *destination;
	*(__u64 *)&key->port[0] =
		key_rest(second ? destination_port : source_port, second ? source_port : destination_port, protocol, link);
	return second;
}

static __always_inline bool key_of(struct passage *at)
{
	const struct packet *p = &at->packet;
	return flow_key_of(&p->source, &p->destination, p->source_port, p->destination_port, p->protocol, at->link, &at->key);
}

static __always_inline __u64 judged_here(const struct passage *at, bool original)
{
	return !at->from == !original ? FLOW_JUDGED_SOURCE : FLOW_JUDGED_DESTINATION;
}

static __always_inline __u32 beat_of(const struct passage *at)
{
	return at->now >> BEAT_SHIFT;
}

// A verdict counts for whole eras only, so that none outlasts its end.
static __always_inline __u32 era_of(__u64 until)
{
	__u64 era = until >> ERA_SHIFT;
	return era < ERA_FOREVER ? era : ERA_FOREVER;
}

static __always_inline bool is_icmp(__u8 protocol)
{
	return protocol == PROTOCOL_ICMP || protocol == PROTOCOL_ICMPV6;
}

static __always_inline __u8 verdict_of(const struct flow *flow)
{
	return flow->verdicts & 0xf;
}

static __always_inline __u8 would_of(const struct flow *flow)
{
	return flow->verdicts >> 4;
}

// What settling says anew of a row's flags.
#define FLOW_SETTLED (FLOW_JUDGED_SOURCE | FLOW_JUDGED_DESTINATION | FLOW_UNKNOWN | FLOW_ENROLLED | FLOW_FAIL_OPEN | \
		      FLOW_UNINSPECTED | FLOW_ASKS)

#define PORT_DNS 53

// Whether some ruleset, maybe one to come, has names.
STAGE int are_names_known(void)
{
	__u64 any = 0;
	for (__u32 i = 0; i < SLOTS; i++) {
		__u32 slot = i;
		struct ruleset *rules = bpf_map_lookup_elem(&rulesets, &slot);
		any |= rules ? rules->names : 0;
	}
	return any != 0;
}

// Whether a flow asks the DNS, as it may, where that matters. What it asks and is told
// is read then.
static __always_inline bool asks(const struct passage *at, const struct outcome *out)
{
	const struct packet *p = &at->packet;
	if ((at->original ? p->destination_port : p->source_port) != PORT_DNS || !is_allowed(out->would) ||
	    (p->protocol != PROTOCOL_UDP && p->protocol != PROTOCOL_TCP))
		return false;
	return are_names_known();
}

// Writes what was judged into a row that was taken; the flags that go with it are
// set when it is given.
static __always_inline __u64 settle(const struct passage *at, struct flow *flow, const struct outcome *out, bool original)
{
	flow->source = out->source;
	flow->destination = out->destination;
	flow->decision = out->decision;
	flow->profile = out->profile;
	flow->verdicts = out->verdict | out->would << 4;
	flow->reason = out->reason;
	flow->expects = out->expects;
	flow->generation = generation_of(at);
	flow->differs = out->differs;
	flow->until = is_cut(out->verdict) ? 0 : era_of(out->until);
	flow->epoch = at->epoch;
	return (out->partial ? judged_here(at, original) : FLOW_JUDGED_SOURCE | FLOW_JUDGED_DESTINATION) |
	       (is_unknown(at) ? FLOW_UNKNOWN : 0) | (out->enrolled ? FLOW_ENROLLED : 0) |
	       (out->fail_open ? FLOW_FAIL_OPEN : 0);
}

static __always_inline void outcome_of(const struct flow *flow, __u64 word, struct outcome *out)
{
	*out = (struct outcome){
		.source = flow->source,
		.destination = flow->destination,
		.decision = flow->decision,
		.profile = flow->profile,
		.verdict = verdict_of(flow),
		.would = would_of(flow),
		.reason = flow->reason,
		.expects = flow->expects,
		.fail_open = !!(word & FLOW_FAIL_OPEN),
		.enrolled = !!(word & FLOW_ENROLLED),
	};
}

// Whether a row still is what it was when its word was read.
static __always_inline bool is_still(const struct flow *flow, __u64 word)
{
	barrier();
	return !((word_of(flow) ^ word) & (FLOW_SELF | FLOW_WRITING));
}

// What a packet says of its flow. Echoes establish nothing: they cost a row and
// nobody misses one.
static __always_inline __u64 said_by(__u64 word, bool original, __u8 protocol, __u8 tcp_flags)
{
	bool tcp = protocol == PROTOCOL_TCP;
	__u64 said = 0;
	if (!original)
		said = FLOW_REPLIED | (tcp || is_icmp(protocol) ? 0 : FLOW_ESTABLISHED);
	else if (tcp && (word & FLOW_REPLIED) && !(tcp_flags & TCP_SYN))
		said = FLOW_ESTABLISHED;
	if (tcp_flags & TCP_RST)
		said |= FLOW_RESET;
	if (tcp_flags & TCP_FIN)
		said |= original ? FLOW_FIN_SOURCE : FLOW_FIN_DESTINATION;
	return said;
}

// Notes a packet in the row of its flow.
static __always_inline void advance(const struct passage *at, struct flow *flow, bool original)
{
	const struct packet *p = &at->packet;
	__u64 said = said_by(at->found.word, original, p->protocol, p->tcp_flags);
	if ((at->found.word & said) != said)
		turn(flow, at->found.word, said, 0);
	see(flow, at->found.word, beat_of(at), original);
	if (owner_of(flow) == at->ifindex) {
		__sync_fetch_and_add(&flow->packets, at->segments);
		__sync_fetch_and_add(&flow->bytes, at->length);
	}
}

// Whether what is sent by the end that is behind this port would be admitted: what
// comes from there has been.
static __always_inline bool is_own_end(const struct passage *at)
{
	const struct packet *p = &at->packet;
	__u32 ifindex = at->ifindex;
	if (at->link)
		return is_of_resident(at);
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	if (at->from || !port)
		return port;
	return owns(at, port, &p->destination) || (p->ethertype == ETHERNET_IPV6 && is_link_local6(&p->destination));
}

// Takes the row to note whom it may take for the end that is behind this port.
STAGE int bind_end(const struct passage *at, struct flow *flow)
{
	if (!at || !flow)
		return 0;
	bool original = at->original;
	const struct packet *p = &at->packet;
	__u64 word = word_of(flow);
	__u32 zero = 0;
	struct topology *wiring = bpf_map_lookup_elem(&topology, &zero);
	if (!wiring || !at->identity || (p->marks & PACKET_GROUP))
		return 0;
	bool end = (!at->from == !original) == !!(word & FLOW_SECOND);
	__u64 bound = end ? FLOW_BOUND_SECOND : FLOW_BOUND_FIRST;
	__u32 number = *(volatile __u32 *)&wiring->number;
	const __u8 *mac = at->from ? p->source_mac : p->destination_mac;
	bool others = flow->topology == number ? word & (FLOW_BOUND_FIRST | FLOW_BOUND_SECOND) & ~bound : 0;
	if (!is_own_end(at) || (own_end(word) == end && owner_of(flow) != at->ifindex))
		return 0; // a second port before the same end: not the one that reports
	if (!take(flow, word))
		return 0;
	flow->topology = number;
	flow->ifindex[end] = at->ifindex;
	memcpy(flow->mac[end], mac, 6);
	give(flow, bound, FLOW_WAYS | (others ? 0 : (FLOW_BOUND_FIRST | FLOW_BOUND_SECOND) & ~bound));
	return 0;
}

// Notes in the row whom it may take for the end that is behind this port: admission
// has just found that it is. Not where nobody vouches for the port.
static __always_inline void bind(const struct passage *at, struct flow *flow)
{
	const struct packet *p = &at->packet;
	__u64 word = word_of(flow);
	__u32 zero = 0;
	struct topology *wiring = bpf_map_lookup_elem(&topology, &zero);
	bool end = (!at->from == !at->original) == !!(word & FLOW_SECOND);
	if (!wiring || !(word & (end ? FLOW_BOUND_SECOND : FLOW_BOUND_FIRST)) || flow->topology != wiring->number ||
	    flow->ifindex[end] != at->ifindex || !same_mac(flow->mac[end], at->from ? p->source_mac : p->destination_mac))
		bind_end(at, flow);
}

// Whether the flow's verdict, which is not to cut it, still counts.
static __always_inline bool stands(const struct passage *at, const struct flow *flow)
{
	return flow->epoch == at->epoch && at->now >> ERA_SHIFT < flow->until;
}

// Whether what is known of the flow still holds for this packet at this port.
static __always_inline bool holds(const struct passage *at, const struct flow *flow, bool original)
{
	return !(at->found.word & FLOW_WRITING) && stands(at, flow) && (at->found.word & judged_here(at, original)) &&
	       (!is_unknown(at) || (at->found.word & FLOW_UNKNOWN));
}

// Joins what a known flow was judged to be with what it is judged now. A flow at
// a decoy stays there, and none goes there in the middle. Refusals of an interface
// that nobody vouches for do not touch the row: it may be another's. False if the
// row is another flow's by now.
static __always_inline bool reconsider(struct passage *at, struct flow *flow, struct outcome *out)
{
	bool original = at->original;
	if (verdict_of(flow) == VERDICT_DECOY && !is_cut(out->verdict)) {
		out->verdict = VERDICT_DECOY;
	} else if (out->verdict == VERDICT_DECOY) {
		out->verdict = VERDICT_DROP;
	}
	if (is_unknown(at) && is_cut(out->verdict))
		return true;
	__u64 word = word_of(flow);
	if (!(word & FLOW_WRITING) && stands(at, flow) && is_allowed(verdict_of(flow)) && is_allowed(out->verdict)) {
		// The other end's point allowed it too; its word stands.
		struct outcome agreed;
		outcome_of(flow, word, &agreed);
		__u16 differs = out->differs;
		if (turn(flow, at->found.word, judged_here(at, original) | (is_unknown(at) ? FLOW_UNKNOWN : 0), 0)) {
			if (differs)
				flow->differs = differs;
			*out = agreed;
			at->found.word = word_of(flow);
			return true;
		}
	}
	if (take(flow, at->found.word)) {
		__u64 flags = settle(at, flow, out, original) | (asks(at, out) ? FLOW_ASKS : 0);
		at->found.word = give(flow, flags, FLOW_SETTLED & ~flags);
		return true;
	}
	// Another processor judges it just now too, or the row has become another's.
	word = word_of(flow);
	bool ours = !((word ^ at->found.word) & (FLOW_TAG | FLOW_LIVE));
	at->found.word = word;
	return ours;
}
