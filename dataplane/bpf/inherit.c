//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Takes a flow over that programs of another layout of maps know, run by the agent for
// each before this layout's programs take their places: its answers belong to what
// began there, and nobody could tell that from the packets alone. It is judged anew on
// its next packet, as in another epoch.

#include "table.h"

// What of a row's flags means nothing here, or is said anew: how its packets get to
// their ends.
#define FLOW_LEFT_BEHIND (FLOW_WAYS | FLOW_BOUND_FIRST | FLOW_BOUND_SECOND | FLOW_LIVE | FLOW_WRITING)

SEC("syscall")
int inherit(struct flow *given)
{
	struct passage at = {.key = given->key, .now = bpf_ktime_get_ns()};
	if (find_row(&at.key, &at.found))
		return false; // its packets came here meanwhile
	__u64 word = given->word;
	__u32 owner = given->ifindex[0], other = given->ifindex[1], speech = given->speech;
	barrier_var(owner); // or it becomes a sum of the context's address
	at.ifindex = own_end(word) ? other : owner;
	struct flow *flow = row_at(make_row(&at));
	if (!flow) {
		hold(at.ifindex, -1);
		return false;
	}
	__u64 flags = (word & FLOW_FLAGS & ~FLOW_LEFT_BEHIND) | FLOW_LIVE;
	if (word & FLOW_WATCHED) { // what was heard of it so far stays there: it counts as picked up
		flags &= ~(FLOW_WATCHED | FLOW_HEED_SOURCE | FLOW_HEED_DESTINATION);
		flags |= at.key.protocol == PROTOCOL_TCP ? FLOW_PICKED_UP : 0;
		speech = SPEECH_UNKNOWN;
	}
	flow->epoch = 0; // in which nothing is judged
	flow->topology = 0;
	flow->until = given->until;
	flow->seen = given->seen;
	flow->packets = given->packets;
	flow->bytes = given->bytes;
	flow->source = given->source;
	flow->destination = given->destination;
	flow->decision = given->decision;
	flow->generation = given->generation;
	flow->ifindex[0] = given->ifindex[0];
	flow->ifindex[1] = other;
	memcpy(flow->mac, given->mac, sizeof(flow->mac));
	flow->service = given->service;
	flow->profile = given->profile;
	flow->reported = given->reported;
	flow->differs = 0;
	flow->verdicts = given->verdicts;
	flow->reason = given->reason;
	flow->expects = given->expects;
	flow->speech = speech;
	give(flow, flags, FLOW_FLAGS & ~flags);
	struct tally *t = tally();
	if (t)
		t->opened++;
	return true;
}
