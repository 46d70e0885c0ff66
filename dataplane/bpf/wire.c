//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Both interfaces of a wire. Ingress: what is allowed leaves by the other one, and
// nothing goes up the stack. Egress: only what crossed, nothing of the host's own.

#include "enforce.h"

// The other interface, asked for again after judging: the stack has no room to
// remember it.
STAGE int cross(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port)
		return TCX_DROP;
	skb->mark = MARK_RESUMED;
	return bpf_redirect(port->across, 0);
}

// Most packets take the short way.
static __always_inline int cross_fast(struct __sk_buff *skb, __u64 tags)
{
	__u32 ifindex = skb->ifindex;
	struct port *port = tracing ? NULL : wire_at(ifindex);
	if (!port || (tags & TAGS_STRANGE))
		return 0;
	bool inside = is_inside(port);
	__u32 own = inside ? ifindex : port->across;
	return tags & TAGS_ONE ? pass_tagged(skb, inside, own, link_of(tags), length_of_tags(tags)) :
				 pass_fast(skb, inside, own, LINK_WIRE);
}

// The rest of the path knows of no tags in frames: while it judges, the outer one lies
// beside.
static __always_inline int judge_crossing(struct __sk_buff *skb)
{
	__u64 tags = tags_of(skb);
	int passed = cross_fast(skb, tags);
	if (passed)
		return passed == TCX_NEXT ? cross(skb) : passed;
	struct passage at = {.strange = !!(tags & TAGS_STRANGE)};
	begin(skb, &at);
	if (!find_wire(&at, skb->ifindex))
		return TCX_DROP;
	at.link = at.strange ? LINK_WIRE : link_of(tags);
	skb->cb[0] = 0;
	if (length_of_tags(tags) && !at.strange && put_aside(skb, tags))
		return TCX_DROP;
	int action = enforce_at(skb, &at);
	if (action != TCX_DROP && put_back(skb))
		return TCX_DROP;
	return action == TCX_NEXT ? cross(skb) : action;
}

SEC("tcx/ingress")
int across_wire(struct __sk_buff *skb)
{
	struct presence *presence = enter();
	int what = judge_crossing(skb);
	leave(presence);
	return what;
}

SEC("tcx/egress")
int out_of_wire(struct __sk_buff *skb)
{
	if (skb->mark != MARK_RESUMED)
		return TCX_DROP;
	skb->mark = 0;
	return TCX_NEXT;
}
