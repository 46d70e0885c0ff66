//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Host side of the inspection engine's two links, ingress: what comes out of the
// engine resumes at the port that sent it in. Frames without a token are the
// engine's own and go nowhere.

#include "steer.h"

static __always_inline int leave(struct __sk_buff *skb, bool from)
{
	__u8 token[6];
	__u32 ifindex, mac = from ? 6 : 0;
	if (!skb->vlan_present)
		return TCX_DROP;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + sizeof(struct ethernet) > end)
		return TCX_DROP;
	memcpy(token, data + mac, 6);
	if (token[0] != TOKEN_FIRST || token[1] != TOKEN_SECOND)
		return TCX_DROP;
	memcpy(&ifindex, token + 2, 4);
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port)
		return TCX_DROP;
	if (bpf_skb_vlan_pop(skb) || bpf_skb_store_bytes(skb, mac, port->mac, 6, 0))
		return TCX_DROP;
	return resume(skb, port, ifindex, from);
}

SEC("tcx/ingress")
int from_engine_outside(struct __sk_buff *skb)
{
	return leave(skb, true);
}

SEC("tcx/ingress")
int from_engine_inside(struct __sk_buff *skb)
{
	return leave(skb, false);
}
