// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Straight from one workload to another of the same host: what the host would only
// carry from one link to the next is handed to the other workload's side of its
// link, past the host's own stack. Both points have judged the flow, and both count
// the packet. Only where the host would really send it there: by the same bridge,
// or by the host's own routes and neighbours, asked once and asked again when
// anything about links, addresses, routes or neighbours changes. While nobody
// watches for that, packets go through the stack.
#pragma once

#include "track.h"

// Open configures it.
const volatile __u8 direct_delivery;

// What is known of the way from one end to the other; two bits of the word each.
#define WAY_UNKNOWN 0
#define WAY_STACK 1
#define WAY_BRIDGED 2
#define WAY_ROUTED 3

static __always_inline __u32 way_from(__u64 word, bool end)
{
	return (word >> (end ? FLOW_WAY_SECOND_SHIFT : FLOW_WAY_FIRST_SHIFT)) & 3;
}

// Whether both points know their end and allow the flow.
static __always_inline bool is_local(__u64 word)
{
	const __u64 both = FLOW_BOUND_FIRST | FLOW_BOUND_SECOND | FLOW_JUDGED_SOURCE | FLOW_JUDGED_DESTINATION;
	return (word & both) == both;
}

static __always_inline bool is_direct_now(const struct topology *wiring, __u64 now)
{
	return direct_delivery && now < wiring->direct_until;
}

// Whether the host routes what an end sends to the other end's link and MAC.
static __always_inline bool is_routed(struct __sk_buff *skb, const struct flow *flow, bool end)
{
	const struct flow_key *key = &flow->key;
	bool four = is4(&key->address[0]);
	struct fib_question question = {
		.family = four ? AF_INET : AF_INET6,
		.protocol = key->protocol,
		.source_port = bswap16(key->port[end]),
		.destination_port = bswap16(key->port[!end]),
		.ifindex = flow->ifindex[end],
	};
	if (four) {
		question.source[0] = key->address[end].low >> 32;
		question.destination[0] = key->address[!end].low >> 32;
	} else {
		memcpy(question.source, &key->address[end], 16);
		memcpy(question.destination, &key->address[!end], 16);
	}
	return !bpf_fib_lookup(skb, &question, sizeof(question), 0) && question.ifindex == flow->ifindex[!end] &&
	       same_mac(question.destination_mac, flow->mac[!end]);
}

// Which way the packets of an end go that come out of the stack with a source MAC.
STAGE __u32 way_of(struct __sk_buff *skb, const struct flow *flow, __u32 end, __u32 bridged)
{
	if (!flow)
		return WAY_STACK;
	end = !!end;
	__u32 here = flow->ifindex[end], there = flow->ifindex[!end];
	struct port *source = bpf_map_lookup_elem(&ports, &here);
	struct port *destination = bpf_map_lookup_elem(&ports, &there);
	if (!source || !destination || here == there || !(destination->flags & PORT_PEER) || destination->mtu < source->mtu)
		return WAY_STACK;
	if (bridged)
		return source->master && source->master == destination->master ? WAY_BRIDGED : WAY_STACK;
	return is_routed(skb, flow, end) ? WAY_ROUTED : WAY_STACK;
}

// Finds out which ways the packets of a flow go, both at once, from one that comes
// out of the stack to a workload.
STAGE int find_ways(struct __sk_buff *skb, const struct passage *at)
{
	if (!at)
		return 0;
	__u32 zero = 0, ifindex = at->ifindex;
	struct flow *flow = row_at(at->found.row);
	struct topology *wiring = bpf_map_lookup_elem(&topology, &zero);
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!flow || !wiring || !port || !is_direct_now(wiring, at->now))
		return 0;
	__u64 word = word_of(flow);
	bool end = !!at->original == !!(word & FLOW_SECOND); // whose packet it is
	if (!is_local(word) || (word & FLOW_WAYS) || flow->topology != wiring->number)
		return 0;
	bool routed = same_mac(at->packet.source_mac, port->host_mac);
	bool bridged = !routed && same_mac(at->packet.source_mac, flow->mac[end]);
	__u64 forth = WAY_STACK, back = WAY_STACK;
	if (routed || bridged) {
		forth = way_of(skb, flow, end, bridged);
		back = way_of(skb, flow, !end, bridged);
	}
	turn(flow, word, (end ? back : forth) << FLOW_WAY_FIRST_SHIFT | (end ? forth : back) << FLOW_WAY_SECOND_SHIFT, 0);
	return 0;
}

// Hands the packet over: what the host would have changed of it is changed.
static __always_inline int hand_over(struct __sk_buff *skb, __u32 ifindex, const __u8 *mac, __u32 way)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct {
		__u8 destination[6];
		__u8 source[6];
		__u16 type;
		__u16 words[6]; // of the IP header
	} head;
	if (way == WAY_ROUTED) {
		struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
		if (!port || data + sizeof(head) > end)
			return TCX_NEXT;
		memcpy(&head, data, sizeof(head));
		memcpy(head.destination, mac, 6);
		memcpy(head.source, port->host_mac, 6);
		__u32 size = sizeof(head);
		if (head.type == bswap16(ETHERNET_IPV4)) {
			__u8 *hops = (__u8 *)&head.words[4];
			__u32 sum = head.words[5] + 1; // the upper byte of a word in network order is one less
			if (*hops <= 1)
				return TCX_NEXT;
			(*hops)--;
			head.words[5] = sum + (sum >= 0xffff);
		} else {
			__u8 *hops = (__u8 *)&head.words[3] + 1;
			if (*hops <= 1)
				return TCX_NEXT;
			(*hops)--;
			size = sizeof(struct ethernet) + 8;
		}
		if (bpf_skb_store_bytes(skb, 0, &head, size, 0))
			return TCX_DROP;
	}
	return bpf_redirect_peer(ifindex, 0);
}

// Counts a packet that passed the long way at the other point too and hands it over,
// or lets it go its way.
STAGE int pass_direct(struct __sk_buff *skb, const struct passage *at)
{
	if (!at)
		return TCX_NEXT;
	const struct packet *p = &at->packet;
	struct flow *flow = row_at(at->found.row);
	__u32 zero = 0;
	struct topology *wiring = bpf_map_lookup_elem(&topology, &zero);
	if (!flow || !wiring || !is_direct_now(wiring, at->now))
		return TCX_NEXT;
	__u64 word = word_of(flow);
	bool end = !!at->original == !!(word & FLOW_SECOND); // whose packet it is
	if (!is_local(word) || !stands(at, flow) || flow->topology != wiring->number || flow->ifindex[end] != at->ifindex ||
	    flow->verdicts != (VERDICT_ALLOW | VERDICT_ALLOW << 4) || (word & FLOW_UNUSUAL))
		return TCX_NEXT;
	__u32 way = way_from(word, end), there = flow->ifindex[!end];
	bool host = skb->pkt_type == PACKET_HOST;
	__u8 mac[6], reason = flow->reason;
	memcpy(mac, flow->mac[!end], 6);
	if (way < WAY_BRIDGED || host != (way == WAY_ROUTED) || (!host && !same_mac(p->destination_mac, mac)) ||
	    !is_still(flow, word))
		return TCX_NEXT;
	int act = hand_over(skb, there, mac, way);
	if (act != TCX_NEXT) {
		if (owner_of(flow) == there) {
			__sync_fetch_and_add(&flow->packets, at->segments);
			__sync_fetch_and_add(&flow->bytes, at->length);
		}
		count(reason, false, at->segments, at->length);
	}
	return act;
}
