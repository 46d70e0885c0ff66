//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Host side of the inspection engine's two links, ingress: what comes out of the
// engine resumes at the port that sent it in. Frames without a token are the
// engine's own and go nowhere.

#include "deliver.h"

struct mac {
	__u8 bytes[8];
};

// The MAC that the packet had where the token is now: the port's, or on a wire
// that of whom it is from or to.
STAGE int mac_before(struct __sk_buff *skb, __u32 ifindex, __u32 from, struct mac *mac)
{
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port || !mac)
		return -1;
	if (!(port->flags & PORT_WIRE)) {
		memcpy(mac->bytes, is_mac_known(port) ? port->mac : port->guess, 6);
		return 0;
	}
	struct tag tag = {};
	__u16 type = 0;
	__u32 raw[4] = {}, network = sizeof(struct ethernet);
	struct port_address key = {.ifindex = ifindex};
	if (bpf_skb_load_bytes(skb, 12, &tag, sizeof(tag)))
		return -1;
	type = tag.type;
	if (is_tag(type)) { // the inner one of two
		if (bpf_skb_load_bytes(skb, 12 + sizeof(tag), &type, 2))
			return -1;
		network += sizeof(tag);
	}
	if (type == bswap16(ETHERNET_IPV4)) {
		if (bpf_skb_load_bytes(skb, network + (from ? 12 : 16), raw, 4))
			return -1;
		key.address = address4(raw[0]);
	} else {
		if (bpf_skb_load_bytes(skb, network + (from ? 8 : 24), raw, 16))
			return -1;
		key.address = address6(raw);
	}
	struct resident *resident = bpf_map_lookup_elem(&residents, &key);
	if (!resident)
		return -1;
	memcpy(mac->bytes, resident->mac, 6);
	return 0;
}

static __always_inline int emerge(struct __sk_buff *skb, bool from)
{
	__u8 token[6];
	__u32 ifindex, mac = from ? 6 : 0;
	if (!skb->vlan_present)
		return TCX_DROP;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + sizeof(struct ethernet) > end)
		return TCX_DROP;
	memcpy(token, data + mac, 6);
	if (token[0] != TOKEN_FIRST || (token[1] & ~TOKEN_READ) != TOKEN_SECOND)
		return TCX_DROP;
	bool reads = !from && (token[1] & TOKEN_READ);
	memcpy(&ifindex, token + 2, 4);
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port)
		return TCX_DROP;
	struct mac before = {};
	if (bpf_skb_vlan_pop(skb) || mac_before(skb, ifindex, from, &before) ||
	    bpf_skb_store_bytes(skb, mac, before.bytes, 6, 0))
		return TCX_DROP;
	if (reads && !deliver(skb, port, ifindex))
		return TCX_DROP;
	return resume(skb, port, ifindex, from);
}

SEC("tcx/ingress")
int from_engine_outside(struct __sk_buff *skb)
{
	return emerge(skb, true);
}

SEC("tcx/ingress")
int from_engine_inside(struct __sk_buff *skb)
{
	struct presence *presence = enter();
	int what = emerge(skb, false);
	leave(presence);
	return what;
}
