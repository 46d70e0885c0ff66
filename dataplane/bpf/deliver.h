// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What the DNS answers through the inspection engine is read when it comes out, on its
// way to who asked, and not before: what the engine keeps teaches nothing.
#pragma once

#include "enforce.h"

static __always_inline void read_delivered(struct __sk_buff *skb, struct passage *at)
{
	if (!read_packet(skb, &at->packet) || admit(at) != ADMIT_ON)
		return;
	bool second = key_of(at);
	struct flow *flow = find_row(&at->key, &at->found) ? row_at(at->found.row) : NULL;
	if (!flow)
		return;
	__u64 word = at->found.word;
	at->original = second == !!(word & FLOW_SECOND);
	if (!at->original && (word & FLOW_ASKS) && is_allowed(verdict_of(flow)) && resolve(skb, at))
		read_stream(skb, at);
}

// Reads a packet that goes on to a workload from a point, which on a wire may lie in
// VLANs. False if it is lost.
static __always_inline bool deliver(struct __sk_buff *skb, const struct port *port, __u32 ifindex)
{
	struct passage at = {.ifindex = ifindex};
	bool wire = port->flags & PORT_WIRE;
	__u64 tags = wire ? tags_of(skb) : 0;
	begin(skb, &at);
	if (tags & TAGS_STRANGE)
		return true;
	at.link = wire ? link_of(tags) : 0;
	skb->cb[0] = 0;
	if (length_of_tags(tags) && put_aside(skb, tags))
		return false;
	read_delivered(skb, &at);
	return !wire || !put_back(skb);
}
