//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Host side of the decoys' link, ingress: a decoy answers who was diverted to
// it, in the name of the address that was sought. It originates nothing.

#include "enforce.h"

// Writes the MACs that the link of the port goes by.
STAGE int readdress(struct __sk_buff *skb, const struct flow *flow, __u32 from)
{
	if (!flow)
		return -1;
	bool other = !own_end(flow->word);
	__u8 macs[12];
	bool to = from ? other : !other;
	memcpy(macs, flow->mac[to], 6);
	memcpy(macs + 6, flow->mac[!to], 6);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

SEC("tcx/ingress")
int from_decoy(struct __sk_buff *skb)
{
	struct passage at = {.from = true, .ifindex = skb->ifindex};
	struct outcome out = {.verdict = VERDICT_DROP, .would = VERDICT_DROP, .reason = REASON_INVALID_STATE};
	struct packet *p = &at.packet;
	begin(skb, &at);
	bool whole = read_packet(skb, p);
	at.length = p->bytes;
	if (p->ethertype == ETHERNET_ARP || (p->marks & PACKET_NEIGHBOUR))
		return TCX_DROP; // its neighbours are permanent
	if (!whole || p->protocol != PROTOCOL_TCP || (p->marks & (PACKET_FIRST | PACKET_LATER)))
		goto drop;

	bool second = key_of(&at);
	if (!find_row(&at.key, &at.found)) {
		at.key.link[0] = LINK_WIRE & 0xff;
		at.key.link[1] = LINK_WIRE >> 8;
		find_row(&at.key, &at.found);
	}
	struct flow *flow = at.found.row ? row_at(at.found.row) : NULL;
	__u64 word = at.found.word;
	if (!flow || verdict_of(flow) != VERDICT_DECOY || second == !!(word & FLOW_SECOND) || !is_still(flow, word))
		goto drop;
	__u32 owner = owner_of(flow);
	bool from = word & FLOW_TO; // diverted on the way in: answers as if from the workload
	struct port *port = bpf_map_lookup_elem(&ports, &owner);
	if (!port)
		goto drop;

	at.ifindex = owner; // who counts
	advance(&at, flow, false);
	if (readdress(skb, flow, from))
		return TCX_DROP;
	return resume(skb, port, owner, from);
drop:
	out.source = out.destination = IDENTITY_WORLD;
	account(&at, &out, false);
	count(out.reason, true, at.segments, at.length);
	return TCX_DROP;
}
