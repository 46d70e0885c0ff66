// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// How long flows wait, by their kind.
#pragma once

#include "table.h"

// For how many beats nothing may come of a flow, by its kind. The agent reads them
// from here.
#define KIND_CLOSED 0
#define KIND_OPENING 1
#define KIND_ESTABLISHED 2
#define KIND_DATAGRAM 3
#define KIND_STREAM 4
#define KIND_OTHER 5
#define KIND_SILENCED 6
#define KIND_FINISHED 7
#define KINDS 8
const volatile __u32 patience[KINDS] = {
	[KIND_CLOSED] = 10 * SECOND >> BEAT_SHIFT,
	[KIND_OPENING] = 120 * SECOND >> BEAT_SHIFT,
	[KIND_ESTABLISHED] = 5ULL * 86400 * SECOND >> BEAT_SHIFT, // as nf_conntrack
	[KIND_DATAGRAM] = 30 * SECOND >> BEAT_SHIFT,
	[KIND_STREAM] = 120 * SECOND >> BEAT_SHIFT,
	[KIND_OTHER] = 600 * SECOND >> BEAT_SHIFT,
	[KIND_SILENCED] = 10 * SECOND >> BEAT_SHIFT, // Open configures it
	[KIND_FINISHED] = 120 * SECOND >> BEAT_SHIFT, // what was said last may be sent again for so long (RFC 1122, 4.2.3.5)
};

static __always_inline __u32 kind_of(const struct flow *flow, __u64 word)
{
	switch (flow->key.protocol) {
	case PROTOCOL_TCP:
		// The reset may have been for us only: as long as such a flow could be taken for one
		// that was there before the point was, it is kept, and so is what it owes.
		if ((word & (FLOW_RESET | FLOW_ESTABLISHED | FLOW_WATCHED)) == (FLOW_RESET | FLOW_ESTABLISHED | FLOW_WATCHED) &&
		    flow->expects)
			return KIND_SILENCED;
		if (FLOW_CLOSED(word))
			return word & FLOW_RESET ? KIND_CLOSED : KIND_FINISHED;
		return word & FLOW_ESTABLISHED ? KIND_ESTABLISHED : KIND_OPENING;
	case PROTOCOL_UDP:
		return word & FLOW_REPLIED ? KIND_STREAM : KIND_DATAGRAM;
	case PROTOCOL_ICMP:
	case PROTOCOL_ICMPV6:
		return KIND_DATAGRAM;
	}
	return KIND_OTHER;
}

// Whether a flow's owner holds more than half of what it may.
static __always_inline bool is_owner_pressed(const struct flow *flow)
{
	__u32 owner = owner_of(flow);
	struct holding *holding = bpf_map_lookup_elem(&holdings, &owner);
	__u64 share = share_now();
	return share && holding && holding->rows > share / 2;
}

// For how many beats nothing may come of a flow. One that only waits for what may be sent
// again waits no longer than one that was reset where its row may be wanted: where much of
// the table is taken, or of what its owner may hold.
static __always_inline __u32 patience_with(const struct flow *flow, __u64 word, bool crowded)
{
	__u32 kind = kind_of(flow, word);
	if (kind == KIND_FINISHED && (crowded || is_owner_pressed(flow)))
		kind = KIND_CLOSED;
	return patience[kind % KINDS];
}
