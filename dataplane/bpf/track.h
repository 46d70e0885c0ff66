// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Flows: one row for both directions and for every port of the host. A row keeps
// the verdict, the epoch in which it was given and when it ends by itself; in
// another epoch, or after that, the flow is judged again on its next packet, in
// whichever direction that goes, so a revoked permission cuts what lives. What
// was cut stays in the table: should policy allow it again, it goes on where both
// ends still try.
#pragma once

#include "policy.h"

// A TCP packet that cannot open a flow opens one all the same for a while after
// its port was attached, or after the table was nearly full: it belongs to one
// that was there before. Other protocols have no such packets. Open configures
// the period.
const volatile __u64 pickup_period = 2ULL * 3600 * SECOND + 900 * SECOND;

static __always_inline bool may_pick_up(const struct passage *at)
{
	__u32 zero = 0;
	struct pressure *pressed = bpf_map_lookup_elem(&pressure, &zero);
	return at->now - at->attached < pickup_period || (pressed && at->now < pressed->until);
}

#define FLOW_CLOSED(flags) \
	(((flags) & FLOW_RESET) || \
	 ((flags) & (FLOW_FIN_SOURCE | FLOW_FIN_DESTINATION)) == (FLOW_FIN_SOURCE | FLOW_FIN_DESTINATION))

// Writes the key of a packet; true if its source is the second end.
static __always_inline bool flow_key_of(const struct address *source, const struct address *destination,
					__u16 source_port, __u16 destination_port, __u8 protocol, struct flow_key *key)
{
	bool second = source->high > destination->high ||
		      (source->high == destination->high &&
		       (source->low > destination->low ||
			(source->low == destination->low && source_port > destination_port)));
	key->address[0] = second ? *destination : *source;
	key->address[1] = second ? *source : *destination;
	key->port[0] = second ? destination_port : source_port;
	key->port[1] = second ? source_port : destination_port;
	key->protocol = protocol;
	return second;
}

static __always_inline void raise(struct flow *flow, __u32 flags)
{
	if ((flow->flags & flags) != flags)
		__sync_fetch_and_or(&flow->flags, flags);
}

static __always_inline void lower(struct flow *flow, __u32 flags)
{
	if (flow->flags & flags)
		__sync_fetch_and_and(&flow->flags, ~flags);
}

static __always_inline __u32 judged_here(const struct passage *at, bool original)
{
	return !at->from == !original ? FLOW_JUDGED_SOURCE : FLOW_JUDGED_DESTINATION;
}

static __always_inline void settle(const struct passage *at, struct flow *flow, const struct outcome *out, bool original)
{
	__u32 judged = out->partial ? judged_here(at, original) : FLOW_JUDGED_SOURCE | FLOW_JUDGED_DESTINATION;
	flow->source = out->source;
	flow->destination = out->destination;
	flow->decision = out->decision;
	flow->profile = out->profile;
	flow->verdict = out->verdict;
	flow->would = out->would;
	flow->reason = out->reason;
	flow->generation = generation_of(at);
	flow->differs = out->differs;
	lower(flow, FLOW_JUDGED_SOURCE | FLOW_JUDGED_DESTINATION | FLOW_UNKNOWN | FLOW_ENROLLED | FLOW_FAIL_OPEN |
			    FLOW_UNINSPECTED);
	raise(flow, judged | (is_unknown(at) ? FLOW_UNKNOWN : 0) | (out->enrolled ? FLOW_ENROLLED : 0) |
			    (out->fail_open ? FLOW_FAIL_OPEN : 0));
	// Until these two are there, another processor judges for itself.
	barrier();
	flow->until = is_cut(out->verdict) ? 0 : out->until;
	barrier();
	flow->epoch = at->epoch;
}

static __always_inline void outcome_of(const struct flow *flow, struct outcome *out)
{
	*out = (struct outcome){
		.source = flow->source,
		.destination = flow->destination,
		.decision = flow->decision,
		.profile = flow->profile,
		.verdict = flow->verdict,
		.would = flow->would,
		.reason = flow->reason,
		.fail_open = !!(flow->flags & FLOW_FAIL_OPEN),
		.enrolled = !!(flow->flags & FLOW_ENROLLED),
	};
}

static __always_inline void advance(const struct passage *at, struct flow *flow, bool original)
{
	const struct packet *p = &at->packet;
	if (!original)
		raise(flow, FLOW_REPLIED);
	if (p->tcp_flags & TCP_RST)
		raise(flow, FLOW_RESET);
	if (p->tcp_flags & TCP_FIN)
		raise(flow, original ? FLOW_FIN_SOURCE : FLOW_FIN_DESTINATION);
	flow->seen = at->now;
	if (flow->owner == at->ifindex) {
		__sync_fetch_and_add(&flow->packets, at->segments);
		__sync_fetch_and_add(&flow->bytes, at->length);
	}
}

// Whether the flow's verdict, which is not to cut it, still counts.
static __always_inline bool stands(const struct passage *at, const struct flow *flow)
{
	return flow->epoch == at->epoch && at->now < flow->until;
}

// Whether what is known of the flow still holds for this packet at this port.
static __always_inline bool holds(const struct passage *at, const struct flow *flow, bool original)
{
	return stands(at, flow) && (flow->flags & judged_here(at, original)) &&
	       (!is_unknown(at) || (flow->flags & FLOW_UNKNOWN));
}

// Joins what a known flow was judged to be with what it is judged now. A flow at
// a decoy stays there, and none goes there in the middle. Refusals of an interface
// that nobody vouches for do not touch the row: it may be another's.
static __always_inline void reconsider(const struct passage *at, struct flow *flow, struct outcome *out)
{
	bool original = at->original;
	if (flow->verdict == VERDICT_DECOY && !is_cut(out->verdict)) {
		out->verdict = VERDICT_DECOY;
	} else if (out->verdict == VERDICT_DECOY) {
		out->verdict = VERDICT_DROP;
	}
	if (is_unknown(at) && is_cut(out->verdict))
		return;
	if (stands(at, flow) && is_allowed(flow->verdict) && is_allowed(out->verdict)) {
		// The other end's point allowed it too; its word stands.
		if (out->differs)
			flow->differs = out->differs;
		raise(flow, judged_here(at, original) | (is_unknown(at) ? FLOW_UNKNOWN : 0));
		outcome_of(flow, out);
		return;
	}
	settle(at, flow, out, original);
}
