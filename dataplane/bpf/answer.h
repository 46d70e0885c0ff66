// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Telling who is refused: a reset to TCP, an ICMP error to others, made of the
// refused packet itself and sent back out of the port that it came to, in the
// name of the address that it went to. Marked as judged, so no point of this host
// refuses it. Bounded for each port; beyond, and where an answer would be wrong
// (to errors, resets, groups and pieces), refusals are silent.
#pragma once

#include "steer.h"

// Nanoseconds between answers of a port, and how many of them it may save up.
// Open configures them.
const volatile __u64 answer_interval = MILLISECOND;
const volatile __u64 answer_burst = SECOND;

#define PLAIN4 (sizeof(struct ethernet) + sizeof(struct ipv4))
#define PLAIN6 (sizeof(struct ethernet) + sizeof(struct ipv6))
#define QUOTED 8 // bytes behind the IP header that an error gives back

static __always_inline void note_unanswered(void)
{
	struct tally *t = tally();
	if (t)
		t->unanswered++;
}

// Takes one from the port's share: `answered` runs ahead of now by what is spent.
static __always_inline bool take_share(__u32 ifindex, __u64 now)
{
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	for (int i = 0; port && i < 4; i++) {
		__u64 spent = port->answered;
		if (spent > now + answer_burst)
			break;
		__u64 next = (spent > now ? spent : now) + answer_interval;
		if (__sync_val_compare_and_swap(&port->answered, spent, next) == spent)
			return true;
	}
	note_unanswered();
	return false;
}

// Whether a refused packet may be answered, and there is room for an answer.
STAGE int may_answer(const struct passage *at)
{
	if (!at)
		return false;
	const struct packet *p = &at->packet;
	if (p->marks & (PACKET_FIRST | PACKET_LATER | PACKET_GROUP | PACKET_ERROR | PACKET_NEIGHBOUR))
		return false;
	if ((p->tcp_flags & TCP_RST) || is_multicast(&p->destination) || is_unspecified(&p->source) ||
	    is_unspecified(&p->destination))
		return false;
	// Options and extension headers would have to be answered in kind.
	if (p->l4 != (p->ethertype == ETHERNET_IPV4 ? PLAIN4 : PLAIN6))
		return false;
	if (p->bytes + sizeof(struct ethernet) < p->l4 + QUOTED)
		return false;
	return take_share(at->ifindex, at->now);
}

static __always_inline void soften(const struct passage *at, struct outcome *out)
{
	if (out->verdict == VERDICT_REJECT && !may_answer(at))
		out->verdict = VERDICT_DROP;
}

static __always_inline __u32 sum_of(const void *words, __u32 size)
{
	return bpf_csum_diff(NULL, 0, words, size, 0);
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline void head4(const struct packet *p, __u8 protocol, __u16 length, struct ipv4 *ip)
{
	*ip = (struct ipv4){
		.version_length = 0x45,
		.length = bswap16(length),
		.fragment = bswap16(0x4000), // whole, so no id is needed (RFC 6864)
		.ttl = 64,
		.protocol = protocol,
		.source = p->destination.low >> 32,
		.destination = p->source.low >> 32,
	};
	ip->checksum = ~fold(sum_of(ip, sizeof(*ip)));
}

static __always_inline void head6(const struct packet *p, __u8 next, __u16 payload, struct ipv6 *ip)
{
	*ip = (struct ipv6){.version_class_label = 0x60, .length = bswap16(payload), .next = next, .hops = 64};
	memcpy(ip->source, &p->destination, 16);
	memcpy(ip->destination, &p->source, 16);
}

// What checksums cover beyond the packet itself: addresses, length, protocol.
static __always_inline __u32 pseudo_of(const struct packet *p, __u8 protocol, __u32 length)
{
	struct {
		struct address source;
		struct address destination;
		__u32 length;
		__u32 protocol;
	} pseudo = {.length = bswap32(length), .protocol = bswap32((__u32)protocol)};
	pseudo.source = p->destination;
	pseudo.destination = p->source;
	if (p->ethertype == ETHERNET_IPV4) { // without the prefix of the mapped form
		pseudo.source.low = p->destination.low >> 32;
		pseudo.destination.low = p->source.low >> 32;
	}
	return sum_of(&pseudo, sizeof(pseudo));
}

// RFC 9293, 3.10.7.1.
static __always_inline void reset_of(const struct tcp *from, __u32 length, struct tcp *to)
{
	*to = (struct tcp){.source = from->destination, .destination = from->source, .offset = 5 << 4, .flags = TCP_RST};
	if (from->flags & TCP_ACK) {
		to->sequence = from->acknowledgement;
		return;
	}
	length += !!(from->flags & TCP_SYN) + !!(from->flags & TCP_FIN);
	to->acknowledgement = bswap32(bswap32(from->sequence) + length);
	to->flags |= TCP_ACK;
}

// Where the sender left the checksum to the hardware, the stack goes on to count
// what follows and wants the pseudo header's sum only; else it wants the whole.
// The helper knows which: it ignores what the hardware would count.
STAGE int reset(struct __sk_buff *skb, const struct packet *p)
{
	struct tcp refused = {}, tcp;
	struct ipv4 four;
	struct ipv6 six;
	if (!p)
		return -1;
	bool is_four = p->ethertype == ETHERNET_IPV4;
	__u32 l4 = is_four ? PLAIN4 : PLAIN6;
	if (bpf_skb_load_bytes(skb, l4, &refused, sizeof(refused)))
		return -1;
	reset_of(&refused, p->bytes + sizeof(struct ethernet) - l4 - (refused.offset >> 4) * 4, &tcp);
	if (bpf_skb_change_tail(skb, l4 + sizeof(tcp), 0))
		return -1;
	int failed;
	if (is_four) {
		head4(p, PROTOCOL_TCP, sizeof(four) + sizeof(tcp), &four);
		failed = bpf_skb_store_bytes(skb, sizeof(struct ethernet), &four, sizeof(four), 0);
	} else {
		head6(p, PROTOCOL_TCP, sizeof(tcp), &six);
		failed = bpf_skb_store_bytes(skb, sizeof(struct ethernet), &six, sizeof(six), 0);
	}
	__u32 checksum = l4 + __builtin_offsetof(struct tcp, checksum);
	return failed || bpf_skb_store_bytes(skb, l4, &tcp, sizeof(tcp), 0) ||
	       bpf_l4_csum_replace(skb, checksum, 0, sum_of(&tcp, sizeof(tcp)), 0) ||
	       bpf_l4_csum_replace(skb, checksum, 0, pseudo_of(p, PROTOCOL_TCP, sizeof(tcp)), BPF_F_PSEUDO_HDR);
}

// A port is unreachable by datagrams; anything else is prohibited.
static __always_inline void error_of(const struct packet *p, struct icmp *icmp)
{
	bool datagram = p->protocol == PROTOCOL_UDP;
	if (p->ethertype == ETHERNET_IPV4)
		*icmp = (struct icmp){.type = 3, .code = datagram ? 3 : 13};
	else
		*icmp = (struct icmp){.type = 1, .code = datagram ? 4 : 1};
}

STAGE int unreachable4(struct __sk_buff *skb, const struct packet *p)
{
	struct {
		struct ipv4 ip;
		struct icmp icmp;
		__u32 quote[(sizeof(struct ipv4) + QUOTED) / 4];
	} answer;
	if (!p || bpf_skb_load_bytes(skb, sizeof(struct ethernet), answer.quote, sizeof(answer.quote)) ||
	    bpf_skb_change_tail(skb, sizeof(struct ethernet) + sizeof(answer), 0))
		return -1;
	head4(p, PROTOCOL_ICMP, sizeof(answer), &answer.ip);
	error_of(p, &answer.icmp);
	// A datagram whose checksum was left to the hardware makes the stack write
	// one here too, in the error's last two bytes, which nobody reads: as the rest
	// sums up to nothing, it writes nothing that counts.
	answer.icmp.checksum = ~fold((__u64)sum_of(&answer.icmp, sizeof(answer.icmp)) + sum_of(answer.quote, sizeof(answer.quote)));
	return bpf_skb_store_bytes(skb, sizeof(struct ethernet), &answer, sizeof(answer), 0);
}

// Whether the checksum was left to the hardware: then the helper does nothing.
static __always_inline bool is_partial(struct __sk_buff *skb, __u32 offset)
{
	__u16 mark = 0;
	return !bpf_skb_store_bytes(skb, offset, &mark, 2, 0) && !bpf_l4_csum_replace(skb, offset, 0, 1, 0) &&
	       !bpf_skb_load_bytes(skb, offset, &mark, 2) && !mark;
}

STAGE int unreachable6(struct __sk_buff *skb, const struct packet *p)
{
	struct {
		struct ipv6 ip;
		struct icmp icmp;
		__u32 quote[(sizeof(struct ipv6) + QUOTED) / 4];
	} answer;
	if (!p || bpf_skb_load_bytes(skb, sizeof(struct ethernet), answer.quote, sizeof(answer.quote)) ||
	    bpf_skb_change_tail(skb, sizeof(struct ethernet) + sizeof(answer), 0))
		return -1;
	__u16 length = sizeof(answer) - sizeof(answer.ip);
	__u32 pseudo = pseudo_of(p, PROTOCOL_ICMPV6, length);
	head6(p, PROTOCOL_ICMPV6, length, &answer.ip);
	error_of(p, &answer.icmp);
	// As for IPv4; but the stack does not know of ICMPv6's pseudo header, so what
	// it will write makes up for that, and must be there now.
	if (is_partial(skb, PLAIN6 + __builtin_offsetof(struct icmp, sequence)))
		answer.icmp.sequence = fold(pseudo);
	answer.icmp.checksum = ~fold((__u64)pseudo + sum_of(&answer.icmp, sizeof(answer.icmp)) +
				     sum_of(answer.quote, sizeof(answer.quote)));
	return bpf_skb_store_bytes(skb, sizeof(struct ethernet), &answer, sizeof(answer), 0);
}

// Sends the packet back as its own refusal.
STAGE int answer(struct __sk_buff *skb, const struct passage *at)
{
	if (!at)
		return TCX_DROP;
	const struct packet *p = &at->packet;
	__u32 ifindex = at->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	__u8 macs[12];
	memcpy(macs, p->source_mac, 6);
	memcpy(macs + 6, p->destination_mac, 6);
	int failed;
	if (p->protocol == PROTOCOL_TCP)
		failed = reset(skb, p);
	else if (p->ethertype == ETHERNET_IPV4)
		failed = unreachable4(skb, p);
	else
		failed = unreachable6(skb, p);
	if (failed || !port || bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0)) {
		note_unanswered();
		return TCX_DROP;
	}
	return resume(skb, port, ifindex, !at->from);
}
