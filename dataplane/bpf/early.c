//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// A wire's interface, in its driver: openers of TCP that are refused end here,
// before the kernel has made anything of them. A flood costs a fifth of what it
// costs later. All else goes on to across_wire, which decides alike; what a driver
// keeps from programs (a VLAN tag) does not matter to these.

#include "enforce.h"

// Reads an opener of TCP that is neither a piece nor to a group; false for all else.
STAGE int read_opener(struct xdp_md *xdp, struct packet *p)
{
	if (!p)
		return false;
	struct frame f = {
		.data = (void *)(long)xdp->data,
		.end = (void *)(long)xdp->data_end,
		.length = xdp->data_end - xdp->data,
	};
	return parse(&f, p) && p->protocol == PROTOCOL_TCP && (p->marks & PACKET_OPENER) &&
	       !(p->marks & (PACKET_FIRST | PACKET_LATER | PACKET_GROUP));
}

// Whether the packet is an opener that must be judged. Its flow is not looked for:
// what policy refuses now, an older verdict of this generation does not allow.
STAGE int meets(struct xdp_md *xdp, struct passage *at, __u32 *spoofed)
{
	if (!at || !spoofed)
		return false;
	begin(at, 1);
	if (!at->ruled || !find_wire(at, xdp->ingress_ifindex) || !read_opener(xdp, &at->packet))
		return false;
	at->length = at->packet.bytes;
	__u32 admitted = admit(at);
	*spoofed = admitted == ADMIT_SPOOFED;
	return *spoofed || admitted == ADMIT_ON;
}

SEC("xdp")
int early_on_wire(struct xdp_md *xdp)
{
	struct passage at = {};
	struct outcome out = {};
	__u32 spoofed = false;
	if (!meets(xdp, &at, &spoofed))
		return XDP_PASS;
	if (spoofed) {
		decide_alone(&at, REASON_SPOOFED, &out);
	} else {
		judge(&at, true, &out);
		compare(&at, true, &out);
	}
	if (out.verdict != VERDICT_DROP)
		return XDP_PASS;
	account(&at, &out, false);
	count(out.reason, true, 1, at.length);
	return XDP_DROP;
}
