// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Wires: points between two interfaces, where what is allowed crosses and the
// host itself has no part. Who is at the inside is known by address; whoever else
// sends from there has no identity. A packet's point is the interface inside,
// whichever side it comes from.
#pragma once

#include "report.h"

// Of a wire whose interfaces' drivers forward what they can (driver.c).
#define DRIVER_FORWARDS 1
#define DRIVER_PIECES 2 // also frames that lie in several pieces of memory
#define DRIVER_BARED 4  // the interface hands frames over with their tags of 802.1Q because of us
#define DRIVER_BARED_SERVICE 8 // likewise with those of 802.1ad

// Whether a point stands for so short a time that connections may be older.
static __always_inline bool is_young(const struct passage *at, const struct port *port)
{
	return (__s64)(at->now - port->attached) < (__s64)pickup_period; // the coarse clock may be behind
}

static __always_inline struct resident *resident_at(const struct passage *at, const struct address *address)
{
	struct port_address key = {.ifindex = at->ifindex, .address = *address};
	return bpf_map_lookup_elem(&residents, &key);
}

static __always_inline bool is_resident_mac(const struct resident *resident, const __u8 *mac)
{
	return !(resident->flags & PORT_MAC_DECLARED) || same_mac(resident->mac, mac);
}

// What leaves the inspection engine needs the MAC again that it came with.
static __always_inline void learn_resident(struct resident *resident, const __u8 *mac)
{
	if ((resident->flags & PORT_MAC_DECLARED) || same_mac(resident->mac, mac))
		return;
	memcpy(resident->mac, mac, 6);
	resident->flags |= PORT_MAC_LEARNED;
}

// Whether a resident's address is claimed by somebody else.
static __always_inline bool is_falsely_claimed(const struct passage *at, const struct address *address)
{
	const struct packet *p = &at->packet;
	struct resident *claimed = resident_at(at, address);
	return claimed && (!at->from || !is_resident_mac(claimed, p->has_mac ? p->said_mac : p->source_mac));
}

// Whether an ARP or neighbour discovery packet says of a resident what is not so:
// an address's owner is known, and those inside do not speak for those outside. Who
// sends by an address says that it is his, and so does who looks for its duplicates.
static __always_inline bool is_false_claim(const struct passage *at)
{
	const struct packet *p = &at->packet;
	bool target = p->type == 136 || (p->type == 135 && is_unspecified(&p->source));
	if (p->ethertype != ETHERNET_ARP && target && is_falsely_claimed(at, &p->target))
		return true;
	return is_falsely_claimed(at, &p->source);
}

// Admits a packet to a wire, and finds who sends or receives it at the inside.
// Leases are asked for by the inside and granted by the outside.
STAGE int admit_wired(struct passage *at)
{
	if (!at)
		return ADMIT_SPOOFED;
	const struct packet *p = &at->packet;
	if (p->ethertype == ETHERNET_ARP || (p->marks & PACKET_NEIGHBOUR))
		return is_false_claim(at) ? ADMIT_SPOOFED : ADMIT_CONTROL;
	if (p->ethertype != ETHERNET_IPV4 && p->ethertype != ETHERNET_IPV6)
		return ADMIT_ON;
	if (!at->from && resident_at(at, &p->source))
		return ADMIT_SPOOFED; // who is inside does not come from outside
	struct resident *resident = resident_at(at, at->from ? &p->source : &p->destination);
	if (!resident)
		return ADMIT_ON;
	const __u8 *mac = at->from ? p->source_mac : p->destination_mac;
	at->closed = false;
	at->identity = resident->identity;
	at->group = resident->group;
	if (p->marks & PACKET_GROUP)
		return ADMIT_ON;
	if (!is_resident_mac(resident, mac))
		return at->from ? ADMIT_SPOOFED : ADMIT_ASIDE;
	learn_resident(resident, mac);
	return ADMIT_ON;
}

// Whether a packet comes from or goes to the resident that its address is of, and
// would be admitted.
static __always_inline bool is_of_resident(const struct passage *at)
{
	const struct packet *p = &at->packet;
	struct resident *resident = resident_at(at, at->from ? &p->source : &p->destination);
	return resident && resident->identity && is_resident_mac(resident, at->from ? p->source_mac : p->destination_mac) &&
	       (at->from || !resident_at(at, &p->source));
}

// The wire's row, by either of its interfaces.
static __always_inline struct port *wire_at(__u32 ifindex)
{
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	return port && (port->flags & PORT_WIRE) ? port : NULL;
}

static __always_inline bool is_inside(const struct port *port)
{
	return !(port->flags & PORT_OUTSIDE);
}

// The wire's row; the passage is told where it is.
static __always_inline struct port *find_wire(struct passage *at, __u32 ifindex)
{
	struct port *port = wire_at(ifindex);
	if (!port)
		return NULL;
	at->from = is_inside(port);
	at->ifindex = at->from ? ifindex : port->across;
	at->link = LINK_WIRE;
	at->closed = !!(port->flags & PORT_CLOSED);
	at->young = is_young(at, port);
	return port;
}
