// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// From bytes to a packet. Bounds are checked where a pointer is made (header_at);
// whatever cannot be what it claims is malformed. Pure: no maps, no helpers, so
// that the same code runs under XDP, where truncated frames can be tested.
#pragma once

#include "kernel.h"

struct packet {
	struct address source;
	struct address destination;
	struct address target; // asked or answered for by ARP and neighbour discovery; DHCP's transaction
	__u32 bytes;           // from the IP header on
	__u32 fragment;        // id, of a piece
	__u16 source_port;     // host order; an ICMP query's identifier is its source's port
	__u16 destination_port;
	__u16 ethertype; // host order
	__u16 l4;        // offset of what follows the IP headers
	__u8 protocol;
	__u8 fragment_protocol; // as the piece says it
	__u8 tcp_flags;
	__u8 type; // of ICMP; the operation of ARP and DHCP
	__u8 code;
	__u8 hops;
	__u8 marks;  // PACKET_*
	__u8 has_mac; // a neighbour's option, or ARP's sender
	__u8 source_mac[6] __attribute__((aligned(2)));
	__u8 destination_mac[6] __attribute__((aligned(2)));
	__u8 said_mac[6] __attribute__((aligned(2))); // in ARP and neighbour discovery
	__u16 piece;     // of a fragmented packet: where it begins and ends, in units of
	__u16 piece_end; // eight bytes
	__u8 more;       // it is not the last
	__u8 pad;
};
_Static_assert(sizeof(struct packet) == 96, "packet");
#define PACKET_FIRST 0x01 // piece of a fragmented packet: the first
#define PACKET_LATER 0x02
#define PACKET_GROUP 0x04   // to a multicast or broadcast MAC
#define PACKET_ERROR 0x08   // an ICMP error: quotes another packet
#define PACKET_OPENER 0x10  // may open a flow
#define PACKET_NEIGHBOUR 0x20 // neighbour discovery or a listener's report

// Memory that holds a frame: linear, from data to end. The limit is what a
// header may reach into; deeper is malformed.
struct frame {
	void *data;
	void *end;
	__u32 length; // on the wire, Ethernet header included
	__u32 super;  // a super-frame: segments are cut by its length, whatever its headers say
};
#define DEPTH 256
#define EXTENSIONS 6

static __always_inline void *header_at(struct frame *f, __u32 offset, __u32 size)
{
	if (offset > DEPTH)
		return NULL;
	void *p = f->data + offset;
	if (p + size > f->end)
		return NULL;
	return p;
}

static __always_inline struct address address4(__u32 raw)
{
	struct address a = {.high = 0, .low = ((__u64)raw << 32) | 0xffff0000ULL};
	return a;
}

static __always_inline struct address address6(const __u32 raw[4])
{
	struct address a = {
		.high = ((__u64)raw[1] << 32) | raw[0],
		.low = ((__u64)raw[3] << 32) | raw[2],
	};
	return a;
}

static __always_inline bool same(const struct address *a, const struct address *b)
{
	return a->high == b->high && a->low == b->low;
}

static __always_inline bool is4(const struct address *a)
{
	return a->high == 0 && (__u32)a->low == 0xffff0000U;
}

static __always_inline bool is_multicast(const struct address *a)
{
	if (is4(a))
		return ((a->low >> 32) & 0xf0) == 0xe0 || (a->low >> 32) == 0xffffffff;
	return (a->high & 0xff) == 0xff;
}

static __always_inline bool is_unspecified(const struct address *a)
{
	return a->high == 0 && (a->low == 0 || a->low == 0xffff0000U);
}

static __always_inline bool is_link_local6(const struct address *a)
{
	return (a->high & 0xc0ff) == 0x80fe;
}

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;
	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

struct options {
	__u8 bytes[64] __attribute__((aligned(8))); // 40 at most, the rest zero
};
#define MOST_OPTIONS 40

// Copies options out of a frame, for a function that is verified once.
static __always_inline bool copy_options(struct frame *f, struct options *options, __u32 from, __u32 length)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MOST_OPTIONS; i += 4) {
		if (i >= length)
			break;
		__u32 *word = header_at(f, from + i, 4);
		if (!word)
			return false;
		*(__u32 *)&options->bytes[i] = *word;
	}
	return true;
}

// Where, from 1 on, options of neighbour discovery speak of a MAC; 0 if they do not.
// Receivers skip options that they do not know, so none may hide it: what cannot be
// walked to its end, or speaks of two, is malformed, which is -1.
STAGE int find_mac(const struct options *options, __u32 length)
{
	if (!options)
		return -1;
	__u32 at = 0, found = 0;
	for (int i = 0; i < MOST_OPTIONS / 8; i++) {
		if (at >= length)
			break;
		__u8 type = options->bytes[at & 63], units = options->bytes[(at + 1) & 63];
		bool speaks = type == 1 || type == 2;
		if (!units || (speaks && (found || units != 1)))
			return -1;
		if (speaks)
			found = at + 1;
		at += units * 8;
	}
	return at == length ? found : -1;
}

static __always_inline bool parse_neighbour_options(struct frame *f, struct packet *p, __u32 from, __u32 length)
{
	struct options options = {};
	if (length > MOST_OPTIONS || !copy_options(f, &options, from, length))
		return false;
	int found = find_mac(&options, length);
	if (found <= 0)
		return !found;
	struct neighbour_option *option = header_at(f, from + found - 1, sizeof(*option));
	if (!option)
		return false;
	p->has_mac = 1;
	memcpy(p->said_mac, option->mac, 6);
	return true;
}

static __always_inline bool parse_icmp(struct frame *f, struct packet *p, __u32 payload)
{
	struct icmp *icmp = header_at(f, p->l4, sizeof(*icmp));
	if (!icmp || payload < sizeof(*icmp))
		return false;
	p->type = icmp->type;
	p->code = icmp->code;
	if (p->protocol == PROTOCOL_ICMP) {
		switch (icmp->type) {
		case 3: case 4: case 5: case 11: case 12:
			p->marks |= PACKET_ERROR;
			return true;
		case 8: case 13: case 15: case 17:
			p->marks |= PACKET_OPENER;
			p->source_port = bswap16(icmp->id);
			return true;
		case 0: case 14: case 16: case 18:
			p->destination_port = bswap16(icmp->id);
			return true;
		}
		p->marks |= PACKET_OPENER;
		return true;
	}
	if (icmp->type < 128) {
		p->marks |= PACKET_ERROR;
		return true;
	}
	if (icmp->type == 129) {
		p->destination_port = bswap16(icmp->id);
		return true;
	}
	p->marks |= PACKET_OPENER;
	if (icmp->type == 128)
		p->source_port = bswap16(icmp->id);
	if (icmp->type >= 133 && icmp->type <= 137) {
		if (p->hops != 255 || icmp->code != 0)
			return false; // came from afar, which it never may
		p->marks |= PACKET_NEIGHBOUR;
	}
	if (icmp->type == 130 || icmp->type == 131 || icmp->type == 132 || icmp->type == 143) {
		if (p->hops == 1)
			p->marks |= PACKET_NEIGHBOUR;
	}
	if (icmp->type == 135 || icmp->type == 136) {
		struct neighbour *n = header_at(f, p->l4, sizeof(*n));
		if (!n || payload < sizeof(*n))
			return false;
		p->target = address6(n->target);
		return parse_neighbour_options(f, p, p->l4 + sizeof(*n), payload - sizeof(*n));
	}
	if (icmp->type == 133)
		return parse_neighbour_options(f, p, p->l4 + sizeof(*icmp), payload - sizeof(*icmp));
	return true;
}

// Who asks for an address by DHCP, or grants one, and in which transaction.
static __always_inline void parse_lease(struct frame *f, struct packet *p)
{
	struct lease *lease = header_at(f, p->l4 + sizeof(struct udp), sizeof(*lease));
	if (!lease)
		return;
	bool four = p->ethertype == ETHERNET_IPV4;
	p->type = lease->operation;
	p->target.low = four ? lease->transaction : *(__u32 *)lease;
	if (!four) // the type is before it
		p->target.low &= bswap32(0xffffff);
}

// The header behind IP. Of a fragmented packet the first piece must hold it whole.
static __always_inline bool parse_transport(struct frame *f, struct packet *p, __u32 payload)
{
	if (p->marks & PACKET_LATER)
		return true;
	if (p->protocol == PROTOCOL_TCP) {
		struct tcp *tcp = header_at(f, p->l4, sizeof(*tcp));
		if (!tcp || payload < sizeof(*tcp))
			return false;
		__u32 header = (tcp->offset >> 4) * 4;
		if (header < sizeof(*tcp) || header > payload)
			return false;
		// Also of what is malformed: whoever scans with such flags is told by ports.
		p->source_port = bswap16(tcp->source);
		p->destination_port = bswap16(tcp->destination);
		__u8 flags = tcp->flags;
		if ((flags & TCP_SYN) && (flags & (TCP_FIN | TCP_RST)))
			return false;
		if (!(flags & (TCP_SYN | TCP_RST | TCP_ACK)))
			return false; // RFC 9293: every other segment acknowledges
		p->tcp_flags = flags;
		if ((flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			p->marks |= PACKET_OPENER;
		return true;
	}
	if (p->protocol == PROTOCOL_UDP) {
		struct udp *udp = header_at(f, p->l4, sizeof(*udp));
		if (!udp || payload < sizeof(*udp))
			return false;
		__u32 length = bswap16(udp->length);
		if (!f->super && (length < sizeof(*udp) || (length > payload && !(p->marks & PACKET_FIRST))))
			return false;
		p->source_port = bswap16(udp->source);
		p->destination_port = bswap16(udp->destination);
		p->marks |= PACKET_OPENER;
		if (p->source_port == 68 || p->destination_port == 68 || p->source_port == 546 || p->destination_port == 546)
			parse_lease(f, p);
		return true;
	}
	if (p->protocol == PROTOCOL_ICMP || p->protocol == PROTOCOL_ICMPV6)
		return parse_icmp(f, p, payload);
	if (p->protocol == PROTOCOL_SCTP) {
		struct udp *ports = header_at(f, p->l4, sizeof(*ports)); // the same first four bytes
		if (!ports || payload < 12)
			return false;
		p->source_port = bswap16(ports->source);
		p->destination_port = bswap16(ports->destination);
	}
	p->marks |= PACKET_OPENER;
	return true;
}

// Whether IPv4 options are whole and do not route: a source route would take the
// packet on to where nobody judged.
STAGE int are_harmless(const struct options *options, __u32 length)
{
	if (!options)
		return false;
	__u32 at = 0;
	for (int i = 0; i < 40; i++) {
		if (at >= length)
			break;
		__u8 type = options->bytes[at & 63], size = options->bytes[(at + 1) & 63];
		if (type == 0)
			return true;
		if (type == 131 || type == 137 || (type != 1 && size < 2))
			return false;
		at += type == 1 ? 1 : size;
	}
	return at == length;
}

static __always_inline bool parse_options(struct frame *f, __u32 length)
{
	struct options options = {};
	return copy_options(f, &options, sizeof(struct ethernet) + sizeof(struct ipv4), length) &&
	       are_harmless(&options, length);
}

// Notes which piece of a packet this is; false if it cannot be one.
static __always_inline bool parse_piece(struct packet *p, __u32 offset, bool more, __u32 size)
{
	p->marks |= offset ? PACKET_LATER : PACKET_FIRST;
	p->piece = offset / 8;
	p->piece_end = (offset + size + 7) / 8;
	p->more = more;
	return size && !(more && size % 8);
}

// Whether a packet may be as long as it says, in a frame with so much room for it. A
// plain frame may be padded behind it, which receivers cut off; of a super-frame all is
// delivered, in segments whose headers are written anew.
static __always_inline bool is_length(const struct frame *f, __u32 says, __u32 room)
{
	return f->super ? says == room : says <= room;
}

static __always_inline bool parse_ipv4(struct frame *f, struct packet *p)
{
	struct ipv4 *ip = header_at(f, sizeof(struct ethernet), sizeof(*ip));
	if (!ip)
		return false;
	__u32 header = (ip->version_length & 0xf) * 4;
	__u32 length = bswap16(ip->length);
	__u32 wire = f->length - sizeof(struct ethernet);
	// Also of what is malformed: whether anybody enforces is asked by addresses.
	p->source = address4(ip->source);
	p->destination = address4(ip->destination);
	if (length == 0 && f->super)
		length = wire; // beyond 64 kB
	if (ip->version_length >> 4 != 4 || header < sizeof(*ip) || length < header || !is_length(f, length, wire))
		return false;
	if (header > sizeof(*ip) && !parse_options(f, header - sizeof(*ip)))
		return false;
	p->bytes = length;
	p->protocol = p->fragment_protocol = ip->protocol;
	p->hops = ip->ttl;
	p->l4 = sizeof(struct ethernet) + header;
	__u32 payload = length - header;
	__u32 pieces = bswap16(ip->fragment);
	__u32 offset = (pieces & 0x1fff) * 8;
	bool more = pieces & 0x2000;
	if (offset || more) {
		p->fragment = ip->id;
		if (!parse_piece(p, offset, more, payload) || offset + length > 0xffff)
			return false;
		if (offset == 8 && ip->protocol == PROTOCOL_TCP)
			return false; // would rewrite the ports and flags just judged (RFC 3128)
	}
	if (ip->protocol == PROTOCOL_ICMPV6)
		return false;
	return parse_transport(f, p, payload);
}

static __always_inline bool parse_ipv6(struct frame *f, struct packet *p)
{
	struct ipv6 *ip = header_at(f, sizeof(struct ethernet), sizeof(*ip));
	if (!ip)
		return false;
	__u32 wire = f->length - sizeof(struct ethernet) - sizeof(*ip);
	__u32 payload = bswap16(ip->length);
	if (payload == 0 && f->super)
		payload = wire;
	p->source = address6(ip->source);
	p->destination = address6(ip->destination);
	if ((ip->version_class_label & 0xf0) != 0x60 || !is_length(f, payload, wire))
		return false;
	if (is4(&p->source) || is4(&p->destination))
		return false; // an IPv4-mapped address never travels (RFC 6890)
	p->bytes = payload + sizeof(*ip);
	p->hops = ip->hops;
	__u8 next = ip->next;
	__u32 offset = sizeof(struct ethernet) + sizeof(*ip);
	for (int i = 0; i < EXTENSIONS; i++) {
		if (next != 0 && next != 43 && next != 44 && next != 60)
			break;
		struct ipv6_extension *ext = header_at(f, offset, sizeof(struct ipv6_fragment));
		if (!ext || payload < sizeof(struct ipv6_fragment))
			return false;
		__u32 size = 8 + ext->length * 8;
		if (next == 43 && (ext->left || ext->type == 0))
			return false; // would go on to where nobody judged (RFC 5095)
		if (next == 44) {
			struct ipv6_fragment *fragment = (void *)ext;
			__u32 pieces = bswap16(fragment->offset);
			size = sizeof(*fragment);
			if (p->marks & (PACKET_FIRST | PACKET_LATER))
				return false;
			if (pieces & 0xfff9) {
				p->fragment = fragment->id;
				p->fragment_protocol = fragment->next;
				__u32 rest = payload - size;
				if (!parse_piece(p, pieces & 0xfff8, pieces & 1, rest) || (pieces & 0xfff8) + rest > 0xffff)
					return false;
			}
		}
		if (size > payload)
			return false;
		next = ext->next;
		payload -= size;
		offset += size;
		if (p->marks & PACKET_LATER)
			break;
	}
	p->protocol = next;
	if (!(p->marks & PACKET_LATER) && (next == 0 || next == 43 || next == 44 || next == 60))
		return false; // a chain that does not end
	if (next == PROTOCOL_ICMP)
		return false;
	if (offset > DEPTH)
		return false;
	p->l4 = offset;
	return parse_transport(f, p, payload);
}

static __always_inline bool parse_arp(struct frame *f, struct packet *p)
{
	struct arp *arp = header_at(f, sizeof(struct ethernet), sizeof(*arp));
	if (!arp)
		return false;
	// Also of what is malformed: there are those who believe it of other hardware, too.
	p->source = address4(arp->sender);
	p->target = p->destination = address4(arp->target);
	if (arp->hardware != bswap16(1) || arp->protocol != bswap16(ETHERNET_IPV4) || arp->hardware_length != 6 ||
	    arp->protocol_length != 4)
		return false;
	p->type = bswap16(arp->operation);
	p->bytes = sizeof(*arp);
	p->has_mac = 1;
	memcpy(p->said_mac, arp->sender_mac, 6);
	return arp->operation == bswap16(1) || arp->operation == bswap16(2);
}

// Reads a frame; false says that it is malformed. A frame that is neither IP nor
// ARP is not: nobody can say what it claims.
static __always_inline bool parse(struct frame *f, struct packet *p)
{
	struct ethernet *eth = header_at(f, 0, sizeof(*eth));
	if (!eth)
		return false;
	memcpy(p->destination_mac, eth->destination, 6);
	memcpy(p->source_mac, eth->source, 6);
	p->ethertype = bswap16(eth->type);
	p->bytes = f->length - sizeof(*eth);
	if (eth->destination[0] & 1)
		p->marks |= PACKET_GROUP;
	bool whole;
	switch (p->ethertype) {
	case ETHERNET_IPV4:
		whole = parse_ipv4(f, p);
		break;
	case ETHERNET_IPV6:
		whole = parse_ipv6(f, p);
		break;
	case ETHERNET_ARP:
		return parse_arp(f, p) && !(eth->source[0] & 1);
	case ETHERNET_VLAN:
	case ETHERNET_SERVICE: // what is tagged has a type
		return header_at(f, sizeof(*eth), sizeof(struct tag)) && !(eth->source[0] & 1);
	default:
		return !(eth->source[0] & 1);
	}
	if (!whole || (eth->source[0] & 1)) // nobody sends by a group's MAC
		return false;
	if (is_multicast(&p->source) || same(&p->source, &p->destination))
		return false;
	return true;
}
