// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Pieces of packets. The first has the header behind IP and is judged like any
// packet; what its header said is remembered, so later pieces are judged as the
// same flow. A piece belongs to nothing whose first was not seen, or was refused, or
// that says again what another has said (RFC 5722): nothing that was judged is
// written over. And packets quoted by ICMP errors, which are pieces of another kind.
#pragma once

#include "pieces.h"
#include "track.h"

// As long as receivers wait for the rest (RFC 791's upper bound as Linux has it; RFC
// 8200).
#define PIECES_PERIOD4 (30 * SECOND)
#define PIECES_PERIOD6 (60 * SECOND)

static __always_inline void fragment_key_of(const struct passage *at, struct fragment_key *key)
{
	const struct packet *p = &at->packet;
	key->source = p->source;
	key->destination = p->destination;
	key->id = p->fragment;
	key->protocol = p->ethertype == ETHERNET_IPV4 ? p->fragment_protocol : 0;
	key->ifindex = at->ifindex;
	key->link = at->link;
}

// Remembers a first piece, that it was refused for that reason if there is one. One
// that passed while the same was judged on another processor is remembered already,
// and more may have come since: what was seen is not taken back.
STAGE int remember(const struct passage *at, __u32 refused)
{
	if (!at)
		return 0;
	const struct packet *p = &at->packet;
	struct fragment_key key;
	fragment_key_of(at, &key);
	struct fragment first = {
		.seen = p->piece_end,
		.source_port = p->source_port,
		.destination_port = p->destination_port,
		.protocol = p->protocol,
		.type = p->type,
		.code = p->code,
		.refused = refused,
		.until = era_of(at->now + (p->ethertype == ETHERNET_IPV4 ? PIECES_PERIOD4 : PIECES_PERIOD6)),
	};
	struct fragment *was = bpf_map_lookup_elem(&fragments, &key);
	if (refused || !was)
		return bpf_map_update_elem(&fragments, &key, &first, refused ? BPF_ANY : BPF_NOEXIST);
	__u64 seen = *(volatile __u64 *)&was->seen;
	if (at->now >> ERA_SHIFT < was->until && !was->refused && !is_whole(seen))
		return 0;
	if (__sync_val_compare_and_swap(&was->seen, seen, PIECES_REPLACED) != seen)
		return 0; // another does
	return bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
}

static __always_inline bool is_same_first(const struct fragment *first, const struct packet *p)
{
	return first->seen == p->piece_end && first->source_port == p->source_port &&
	       first->destination_port == p->destination_port && first->protocol == p->protocol &&
	       first->type == p->type && first->code == p->code;
}

// Finds the packet that a piece is of. Gives a later one what the first has said, or
// the reason to refuse it. A first piece is refused while others wait for what is
// missing of a packet with the same id.
STAGE int piece_together(struct passage *at)
{
	if (!at)
		return REASON_FRAGMENT;
	struct packet *p = &at->packet;
	struct fragment_key key;
	fragment_key_of(at, &key);
	struct fragment *first = bpf_map_lookup_elem(&fragments, &key);
	bool begins = p->marks & PACKET_FIRST;
	if (!first || at->now >> ERA_SHIFT >= first->until)
		return begins ? REASON_NONE : REASON_FRAGMENT;
	if (begins)
		return first->refused || is_whole(first->seen) || is_same_first(first, p) ? REASON_NONE : REASON_FRAGMENT;
	if (first->refused)
		return first->refused;
	p->source_port = first->source_port;
	p->destination_port = first->destination_port;
	p->protocol = first->protocol;
	p->type = first->type;
	p->code = first->code;
	return take_piece(&first->seen, p->piece, p->piece_end, p->more) ? REASON_NONE : REASON_FRAGMENT;
}

#define QUOTED_EXTENSIONS 4 // headers that hosts put before what they send

// Writes the key of the flow that an ICMP error quotes a packet of. The error must
// go to the quoted packet's source, and its kind must be one that hosts need: a
// redirect is not. From who is no router it must be about what was sent to himself.
static __always_inline bool quoted_key(struct frame *f, const struct packet *p, bool router, __u32 link,
				       struct flow_key *key)
{
	struct address source, destination;
	__u8 protocol;
	__u32 l4 = p->l4 + sizeof(struct icmp);
	if (p->protocol == PROTOCOL_ICMP) {
		struct ipv4 *ip = header_at(f, l4, sizeof(*ip));
		if (p->type == 5 || !ip || ip->version_length >> 4 != 4 || (ip->fragment & bswap16(0x1fff)))
			return false;
		source = address4(ip->source);
		destination = address4(ip->destination);
		protocol = ip->protocol;
		l4 += (ip->version_length & 0xf) * 4;
	} else {
		struct ipv6 *ip = header_at(f, l4, sizeof(*ip));
		if (!ip || (ip->version_class_label & 0xf0) != 0x60)
			return false;
		source = address6(ip->source);
		destination = address6(ip->destination);
		protocol = ip->next;
		l4 += sizeof(*ip);
		for (int i = 0; i < QUOTED_EXTENSIONS; i++) {
			if (protocol != 0 && protocol != 43 && protocol != 44 && protocol != 60)
				break;
			struct ipv6_extension *ext = header_at(f, l4, sizeof(struct ipv6_fragment));
			if (!ext)
				return false;
			if (protocol == 44 && (((struct ipv6_fragment *)ext)->offset & bswap16(0xfff8)))
				return false; // a later piece has no ports
			l4 += protocol == 44 ? sizeof(struct ipv6_fragment) : 8 + ext->length * 8;
			protocol = ext->next;
		}
	}
	if (!same(&source, &p->destination) || (!router && !same(&destination, &p->source)))
		return false;
	__u16 source_port = 0, destination_port = 0;
	if (has_ports(protocol)) {
		struct udp *ports = header_at(f, l4, sizeof(*ports));
		if (!ports)
			return false;
		source_port = bswap16(ports->source);
		destination_port = bswap16(ports->destination);
	} else if (protocol == PROTOCOL_ICMP || protocol == PROTOCOL_ICMPV6) {
		struct icmp *icmp = header_at(f, l4, sizeof(*icmp));
		if (!icmp)
			return false;
		bool query = icmp->type == 8 || icmp->type == 13 || icmp->type == 15 || icmp->type == 17 ||
			     icmp->type == 128;
		source_port = query ? bswap16(icmp->id) : 0;
		destination_port = query ? 0 : bswap16(icmp->id);
	}
	flow_key_of(&source, &destination, source_port, destination_port, protocol, link, key);
	return true;
}
