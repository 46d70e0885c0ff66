// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The short way, of most packets: TCP or UDP behind a plain IP header, of a flow
// that is allowed, settled and bound to this port. Whatever is unusual takes the
// long way (enforce.h), which decides alike; this one decides nothing that the long
// way has not decided before. What admission checks of each packet is checked here
// against the row: the port that an end is behind, and the end's MAC; its address is
// in the key.
#pragma once

#include "active.h"
#include "direct.h"

// What of a packet the short way needs.
struct glance {
	struct flow_key key;
	__u32 bytes; // from the IP header on
	__u8 second; // the source is the second end of the key
	__u8 protocol;
	__u8 tcp_flags;
};

// The header behind IP; false if it is for the long way.
static __always_inline bool glance_transport(void *l4, void *end, __u32 payload, __u8 protocol, bool super,
					     __u16 *source, __u16 *destination, __u8 *flags)
{
	if (protocol == PROTOCOL_TCP) {
		struct tcp *tcp = l4;
		if ((void *)(tcp + 1) > end)
			return false;
		__u32 header = (tcp->offset >> 4) * 4;
		if (header < sizeof(*tcp) || header > payload || !(tcp->flags & (TCP_RST | TCP_ACK)))
			return false; // may open a flow, or is malformed
		if (tcp->flags & TCP_SYN)
			return false; // opens a flow, or says that another begins on its ports
		*flags = tcp->flags;
		*source = bswap16(tcp->source);
		*destination = bswap16(tcp->destination);
		return true;
	}
	*flags = 0;
	struct udp *udp = l4;
	if (protocol != PROTOCOL_UDP || (void *)(udp + 1) > end || payload < sizeof(*udp))
		return false;
	__u32 length = bswap16(udp->length);
	if (!super && (length < sizeof(*udp) || length > payload))
		return false;
	*source = bswap16(udp->source);
	*destination = bswap16(udp->destination);
	return true;
}

// How much may be behind a packet in its frame; see is_length.
static __always_inline __u32 room_behind(bool super)
{
	return super ? 0 : ~0U >> 1;
}

static __always_inline bool glance_at4(struct ipv4 *ip, void *end, __u32 wire, bool super, __u32 link, struct glance *g)
{
	if ((void *)(ip + 1) > end)
		return false;
	__u32 length = bswap16(ip->length);
	if (ip->version_length != 0x45 || (ip->fragment & bswap16(0x3fff)) || length < sizeof(*ip) ||
	    wire - length > room_behind(super))
		return false;
	__u16 source, destination;
	if (!glance_transport(ip + 1, end, length - sizeof(*ip), ip->protocol, super, &source, &destination, &g->tcp_flags))
		return false;
	__u64 from = address4(ip->source).low, to = address4(ip->destination).low;
	bool second = (from > to || (from == to && source > destination)) != !!(link & LINK_DOUBLED);
	g->second = second;
	g->bytes = length;
	g->protocol = ip->protocol;
	g->key.address[0] = (struct address){.low = second ? to : from};
	g->key.address[1] = (struct address){.low = second ? from : to};
	*(__u64 *)&g->key.port[0] = key_rest(second ? destination : source, second ? source : destination, ip->protocol, link);
	return true;
}

static __always_inline bool glance_at6(struct ipv6 *ip, void *end, __u32 wire, bool super, __u32 link, struct glance *g)
{
	if ((void *)(ip + 1) > end)
		return false;
	__u32 payload = bswap16(ip->length);
	if ((ip->version_class_label & 0xf0) != 0x60 || payload == 0 ||
	    wire - (payload + (__u32)sizeof(*ip)) > room_behind(super))
		return false;
	__u16 source, destination;
	if (!glance_transport(ip + 1, end, payload, ip->next, super, &source, &destination, &g->tcp_flags))
		return false;
	struct address from = address6(ip->source), to = address6(ip->destination);
	bool second = from.high > to.high ||
		      (from.high == to.high && (from.low > to.low || (from.low == to.low && source > destination)));
	second = second != !!(link & LINK_DOUBLED);
	g->second = second;
	g->bytes = payload + sizeof(*ip);
	g->protocol = ip->next;
	g->key.address[0] = second ? to : from;
	g->key.address[1] = second ? from : to;
	*(__u64 *)&g->key.port[0] = key_rest(second ? destination : source, second ? source : destination, ip->next, link);
	return true;
}

// A frame with so many bytes of tags in it, on a link; false if it is for the long way.
static __always_inline bool glance_at(void *data, void *end, __u32 tags, __u32 length, bool super, __u32 link,
				      struct glance *g)
{
	struct ethernet *eth = data + tags; // as far as its type
	if ((void *)(eth + 1) > end)
		return false;
	__u32 wire = length - sizeof(*eth) - tags;
	if (eth->type == bswap16(ETHERNET_IPV4))
		return glance_at4((void *)(eth + 1), end, wire, super, link, g);
	return eth->type == bswap16(ETHERNET_IPV6) && glance_at6((void *)(eth + 1), end, wire, super, link, g);
}

// What the word must say of a flow whose packets may go the short way.
static __always_inline bool is_usual(__u64 word, bool original, bool end, bool from)
{
	__u64 must = (from == original ? FLOW_JUDGED_SOURCE : FLOW_JUDGED_DESTINATION) |
		     (end ? FLOW_BOUND_SECOND : FLOW_BOUND_FIRST);
	return (word & (must | FLOW_UNUSUAL)) == must;
}

// What becomes of a packet that was glanced at, at a point, by the interface that is its
// own; 0 if it does not go the short way. Only what is in the host's hands (skb) can be
// handed over to another workload.
static __always_inline int pass_glanced(struct __sk_buff *skb, const struct ethernet *eth, const struct glance *g,
					__u32 from, __u32 ifindex, __u32 segments)
{
	__u64 word;
	__u32 number;
	struct flow *flow = look_up(&g->key, place_of(&g->key), &word, &number);
	if (!flow)
		return 0;

	__u32 zero = 0;
	bool original = g->second == !!(word & FLOW_SECOND), local = g->second == !!from;
	struct active *active_word = bpf_map_lookup_elem(&active, &zero);
	struct topology *wiring = bpf_map_lookup_elem(&topology, &zero);
	__u64 now = coarse_now();
	if (!is_usual(word, original, local, from) || !active_word || !wiring)
		return 0;
	__u8 left;
	__u32 epoch = word_at(active_word, now, &left) >> ACTIVE_EPOCH_SHIFT;
	__u8 reason = flow->reason;
	const __u8 *mac = from ? eth->source : eth->destination;
	if (flow->epoch != epoch || flow->topology != wiring->number || now >> ERA_SHIFT >= flow->until ||
	    verdict_of(flow) != VERDICT_ALLOW || flow->ifindex[local] != ifindex || !same_mac(flow->mac[local], mac) ||
	    (eth->source[0] & 1))
		return 0;
	bool allowed = would_of(flow) == VERDICT_ALLOW;
	__u64 said = said_by(word, original, g->protocol, g->tcp_flags) & ~word;
	if ((said & FLOW_REPLIED) && !allowed)
		return 0; // what answers is told

	// Straight to the other workload, if that is known to be its way.
	__u32 way = WAY_STACK, there = flow->ifindex[!local];
	__u8 other_mac[6];
	if (skb && is_direct_now(wiring, now) && is_local(word)) {
		bool host = skb->pkt_type == PACKET_HOST;
		way = way_from(word, local);
		if (!from && !(word & FLOW_WAYS))
			return 0; // finds out
		memcpy(other_mac, flow->mac[!local], 6);
		if (!from || host != (way == WAY_ROUTED) || (!host && !same_mac(eth->destination, other_mac)) ||
		    !allowed)
			way = WAY_STACK;
	}
	bool owner = own_end(word) == local;
	if (owner && (__u16)((now >> ROUND_SHIFT) - flow->reported) > UPDATE_ROUNDS)
		return 0;
	if (!is_still(flow, word) || (said && !turn(flow, word, said, 0)))
		return 0;

	see(flow, word, now >> BEAT_SHIFT, original);
	int act = TCX_NEXT;
	if (way > WAY_STACK) {
		act = hand_over(skb, there, other_mac, way);
		if (act != TCX_NEXT) {
			owner = true; // one of both
			count(reason, false, segments, g->bytes);
		}
	}
	if (owner) {
		__sync_fetch_and_add(&flow->packets, segments);
		__sync_fetch_and_add(&flow->bytes, g->bytes);
	}
	count(reason, false, segments, g->bytes);
	return act;
}

static __always_inline __u32 segments_of(struct __sk_buff *skb)
{
	return skb->gso_segs > 1 ? skb->gso_segs : 1;
}

// What becomes of a packet that goes the short way at a point; 0 if it does not.
STAGE int pass_fast(struct __sk_buff *skb, __u32 from, __u32 ifindex, __u32 link)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct glance g;
	if (skb->vlan_present || !glance_at(data, end, 0, skb->len, skb->gso_size != 0, link, &g))
		return 0;
	return pass_glanced(skb, data, &g, from, ifindex, segments_of(skb));
}

// Likewise with tags, so many bytes of which are in the frame, on a wire.
STAGE int pass_tagged(struct __sk_buff *skb, __u32 from, __u32 ifindex, __u32 link, __u32 tags)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct glance g;
	if (tags > MOST_TAGS * sizeof(struct tag) || data + sizeof(struct ethernet) > end ||
	    !glance_at(data, end, tags, skb->len, skb->gso_size != 0, link, &g))
		return 0;
	return pass_glanced(NULL, data, &g, from, ifindex, segments_of(skb));
}
