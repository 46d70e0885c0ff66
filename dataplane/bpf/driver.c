//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Both interfaces of a wire, in their drivers, before there is a packet to the kernel:
// what goes the short way leaves by the other driver, and what nobody may open is
// dropped. Everything else goes up and is judged there (wire.c): this decides nothing
// that is not decided alike there, and says nothing twice.

#include "enforce.h"

// Whether a frame fits the other interface: by its length, with one tag more than the MTU
// says, and by the pieces of memory that it lies in.
static __always_inline bool is_fitting(const struct port *port, struct xdp_md *xdp, __u32 length)
{
	bool whole = xdp->data_end - xdp->data >= length;
	return (whole || (port->driver & DRIVER_PIECES)) &&
	       length <= port->mtu + sizeof(struct ethernet) + sizeof(struct tag);
}

// What becomes of a frame that goes the short way at a wire; XDP_PASS if it does not.
STAGE int pass_driver(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	__u32 ifindex = xdp->ingress_ifindex, length = bpf_xdp_get_buff_len(xdp);
	struct port *port = wire_at(ifindex);
	if (!port || data + sizeof(struct ethernet) > end || !is_fitting(port, xdp, length))
		return XDP_PASS;
	__u64 tags = read_tags(LINK_WIRE, data, end);
	__u32 link = link_of(tags), in_frame = length_of_tags(tags);
	bool inside = is_inside(port);
	struct glance g;
	if ((tags & TAGS_STRANGE) || in_frame > MOST_TAGS * sizeof(struct tag) ||
	    !glance_at(data, end, in_frame, length, false, link, &g))
		return XDP_PASS;
	// What is counted leaves: the other interface may be gone.
	if (bpf_redirect_map(&crossings, ifindex, XDP_PASS) != XDP_REDIRECT)
		return XDP_PASS;
	return pass_glanced(NULL, data, &g, inside, inside ? ifindex : port->across, 1) == TCX_NEXT ? XDP_REDIRECT : XDP_PASS;
}

// Whether this reading of a packet is all there is to know of it, to refuse it.
static __always_inline bool is_simple(const struct packet *p)
{
	return (p->ethertype == ETHERNET_IPV4 || p->ethertype == ETHERNET_IPV6) &&
	       !(p->marks & (PACKET_FIRST | PACKET_LATER | PACKET_GROUP | PACKET_ERROR | PACKET_NEIGHBOUR));
}

// Reads a frame without tags that lies in one piece of memory.
STAGE int read_frame(struct xdp_md *xdp, struct packet *p)
{
	struct frame f = {
		.data = (void *)(long)xdp->data,
		.end = (void *)(long)xdp->data_end,
		.length = xdp->data_end - xdp->data,
	};
	return p && f.length == bpf_xdp_get_buff_len(xdp) && parse(&f, p) && is_simple(p);
}

// Whether a packet that belongs to no flow is refused, with no answer. If so, it is
// told and counted; if not, nothing has happened.
static __always_inline bool refuse_first(struct xdp_md *xdp, struct passage *at)
{
	struct outcome out = {};
	__u32 admitted = read_frame(xdp, &at->packet) ? admit(at) : ADMIT_CONTROL;
	at->length = at->packet.bytes;
	at->original = true;
	if (admitted == ADMIT_SPOOFED) {
		decide_alone(at, REASON_SPOOFED, &out);
	} else if (admitted == ADMIT_ON) {
		key_of(at);
		if (find_row(&at->key, &at->found))
			return false;
		if (at->packet.marks & PACKET_OPENER)
			judge(at, true, &out);
		else
			at->original = !pick_up(at, &out);
	}
	if (out.verdict != VERDICT_DROP)
		return false;
	if (admitted == ADMIT_ON && out.reason != REASON_INVALID_STATE)
		compare(at, at->original, &out);
	account(at, &out, !at->original);
	count(out.reason, true, at->segments, at->length);
	return true;
}

static __always_inline int judge_in_driver(struct xdp_md *xdp)
{
	struct port *port = wire_at(xdp->ingress_ifindex);
	if (!port || !(port->driver & DRIVER_FORWARDS))
		return XDP_PASS;
	int passed = pass_driver(xdp);
	if (passed != XDP_PASS)
		return passed;
	struct passage at = {.now = coarse_now(), .segments = 1};
	choose(&at);
	if (!at.ruled || !find_wire(&at, xdp->ingress_ifindex))
		return XDP_PASS;
	at.link = LINK_WIRE;
	return refuse_first(xdp, &at) ? XDP_DROP : XDP_PASS;
}

SEC("xdp.frags")
int across_drivers(struct xdp_md *xdp)
{
	struct presence *presence = enter();
	int what = judge_in_driver(xdp);
	leave(presence);
	return what;
}
