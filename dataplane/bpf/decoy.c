//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Host side of the decoys' link, ingress: a decoy answers who was diverted to
// it, in the name of the address that was sought. It originates nothing.

#include "enforce.h"

SEC("tcx/ingress")
int from_decoy(struct __sk_buff *skb)
{
	struct passage at = {};
	struct outcome out = {.verdict = VERDICT_DROP, .would = VERDICT_DROP, .reason = REASON_INVALID_STATE};
	struct packet *p = &at.packet;
	begin(skb, &at, true);
	bool whole = read_packet(skb, p);
	at.length = p->bytes;
	if (p->ethertype == ETHERNET_ARP || (p->marks & PACKET_NEIGHBOUR))
		return TCX_DROP; // its neighbours are permanent
	if (!whole || p->protocol != PROTOCOL_TCP || (p->marks & (PACKET_FIRST | PACKET_LATER)))
		goto drop;

	struct flow_key key = {};
	bool second = flow_key_of(&p->source, &p->destination, p->source_port, p->destination_port, p->protocol, &key);
	struct flow *flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || flow->verdict != VERDICT_DECOY || second == !!(flow->flags & FLOW_SECOND))
		goto drop;
	__u32 owner = flow->owner;
	bool from = flow->flags & FLOW_TO; // diverted on the way in: answers as if from the workload
	struct port *port = bpf_map_lookup_elem(&ports, &owner);
	if (!port)
		goto drop;

	at.ifindex = owner; // who counts
	advance(&at, flow, false);
	__u8 macs[12];
	memcpy(macs, from ? flow->peer_mac : port->mac, 6);
	memcpy(macs + 6, from ? port->mac : flow->peer_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return TCX_DROP;
	return resume(skb, port, owner, from);
drop:
	out.source = out.destination = IDENTITY_WORLD;
	account(&at, &out, false);
	count(out.reason, true, at.segments, at.length);
	return TCX_DROP;
}
