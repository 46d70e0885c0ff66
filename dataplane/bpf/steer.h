// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Sending packets through the inspection engine or to a decoy, and back. The
// port to resume at travels in the MAC that this host knows anyway; the profile
// travels as VLAN id. A resumed packet carries a mark that says "judged"; marks
// never cross a workload's link, so nobody but this host can set it.
#pragma once

#include "track.h"

#define MARK_RESUMED 0xb0ca6e01
#define TOKEN_FIRST 0x02
#define TOKEN_SECOND 0xb0
#define TOKEN_READ 1 // of the second byte: the DNS's answer to a workload, which is to be read

static __always_inline struct steering *steering_now(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&steering, &zero);
}

// Whether this port is the one that inspects: the destination's if it has one,
// else the source's.
static __always_inline bool inspects(const struct passage *at, bool enrolled, bool original)
{
	bool before_destination = !at->from != !original;
	return before_destination == enrolled;
}

static __always_inline int steer(struct __sk_buff *skb, const struct passage *at, __u16 profile)
{
	const struct steering *s = steering_now();
	bool answer = !at->from && (at->found.word & FLOW_ASKS);
	__u8 token[6] = {TOKEN_FIRST, TOKEN_SECOND | (answer ? TOKEN_READ : 0)};
	memcpy(token + 2, &at->ifindex, 4);
	if (!s || bpf_skb_store_bytes(skb, at->from ? 6 : 0, token, 6, 0) || (at->link && put_back(skb)) ||
	    bpf_skb_vlan_push(skb, bswap16(ETHERNET_VLAN), profile))
		return TCX_DROP;
	return bpf_redirect(at->from ? s->inside : s->outside, 0);
}

static __always_inline int divert(struct __sk_buff *skb)
{
	const struct steering *s = steering_now();
	if (!s || bpf_skb_store_bytes(skb, 0, s->decoy_mac, 6, 0))
		return TCX_DROP;
	return bpf_redirect(s->decoy, 0);
}

// Lets a packet go on from the port as if it had never left: out to the
// workload, or in from it.
static __always_inline int resume(struct __sk_buff *skb, const struct port *port, __u32 ifindex, bool from)
{
	__u8 destination[6];
	skb->mark = MARK_RESUMED;
	if (!from || port->across)
		return bpf_redirect(from ? port->across : ifindex, 0);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + 6 > end)
		return TCX_DROP;
	memcpy(destination, data, 6);
	bool host = same_mac(destination, port->host_mac);
	if (bpf_skb_change_type(skb, host ? PACKET_HOST : PACKET_OTHERHOST))
		return TCX_DROP;
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}
