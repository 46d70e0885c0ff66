// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// May this workload send this at all? Source MAC and address must be the port's;
// ARP and neighbour discovery may speak for the port only. What links need to
// work passes as control. Questions for addresses that nobody has are noted.
#pragma once

#include "identify.h"

// What admission says, when it is neither "go on" nor a refusal.
#define ADMIT_ON 0
#define ADMIT_CONTROL 1
#define ADMIT_SPOOFED 2
#define ADMIT_ASIDE 3 // not addressed to this workload
#define ADMIT_UNKNOWN 4 // what links need, of whom nobody knows, where policy is enforced
#define ADMIT_LEASE 5 // DHCP: passes, but for who is cut off

#include "wire.h"

#define LEASE_PERIOD (60 * SECOND) // in which an answer by DHCP is let in

static __always_inline bool owns(const struct passage *at, const struct port *port, const struct address *address)
{
	if (same(&port->address4, address) || same(&port->address6, address))
		return true;
	if (!(port->flags & PORT_MORE_ADDRESSES))
		return false;
	struct port_address key = {.ifindex = at->ifindex, .address = *address};
	return bpf_map_lookup_elem(&port_addresses, &key) != NULL;
}

static __always_inline bool is_mac_known(const struct port *port)
{
	return port->flags & (PORT_MAC_DECLARED | PORT_MAC_LEARNED);
}

static __always_inline bool is_mac_of(const struct port *port, const __u8 *mac)
{
	return !is_mac_known(port) || same_mac(port->mac, mac);
}

// Whether a link-local address may be the sender's, though nobody declared it: not one
// made from another MAC than his (RFC 4291), nor one that people give, as routers have
// them. The rest are drawn at random (RFC 7217), and nobody has another's by chance.
STAGE int may_be_own_link_local(const struct passage *at, const struct address *address)
{
	if (!at || !address || !is_link_local6(address) || !(__u32)address->low)
		return false;
	const __u8 *id = (const __u8 *)&address->low, *mac = at->packet.source_mac;
	if (id[3] != 0xff || id[4] != 0xfe)
		return true;
	return id[0] == (mac[0] ^ 2) && id[1] == mac[1] && id[2] == mac[2] && id[5] == mac[3] && id[6] == mac[4] && id[7] == mac[5];
}

// Whether a workload may send by an address, or speak of it as its own.
static __always_inline bool may_use(const struct passage *at, const struct port *port, const struct address *address)
{
	return owns(at, port, address) || may_be_own_link_local(at, address);
}

// Looks for whom a MAC belongs to among the ports of one bridge.
struct claim {
	__u8 mac[6] __attribute__((aligned(2)));
	__u8 pad[2];
	__u32 ifindex;
	__u32 master;
	__u32 taken;
};

static long look_for_mac(void *map, const __u32 *ifindex, const struct port *port, struct claim *claim)
{
	if (*ifindex == claim->ifindex || port->master != claim->master || !is_mac_known(port) ||
	    !same_mac(port->mac, claim->mac))
		return 0;
	claim->taken = 1;
	return 1;
}

// Whether the workload sends by its own MAC. Where none was declared, that is the first by
// which it sends, unless another port of its bridge has that one: who sends by another's MAC has the
// bridge bring him what is for the other.
STAGE int claims_mac(const struct passage *at, struct port *port)
{
	if (!at || !port)
		return true;
	const __u8 *mac = at->packet.source_mac;
	if (is_mac_known(port))
		return same_mac(port->mac, mac);
	if (port->master) { // where the host routes, a MAC leads nobody astray
		struct claim claim = {.ifindex = at->ifindex, .master = port->master};
		memcpy(claim.mac, mac, 6);
		bpf_for_each_map_elem(&ports, look_for_mac, &claim, 0);
		if (claim.taken)
			return false;
	}
	memcpy(port->mac, mac, 6);
	port->flags |= PORT_MAC_LEARNED;
	return true;
}

static __always_inline void mark_answered(const struct passage *at, const struct address *asker,
					  const struct address *answerer, __u32 protocol)
{
	struct question key = {.source = *asker, .target = *answerer, .ifindex = at->ifindex, .protocol = protocol};
	struct asked *asked = bpf_map_lookup_elem(&questions, &key);
	if (asked)
		asked->answered = 1;
}

// Notes a question for an address that no peer has. A sweep tells of those that
// nobody answered: gateways and hosts have addresses without being peers.
static __always_inline void note_question(const struct passage *at, __u32 protocol)
{
	const struct packet *p = &at->packet;
	struct party party = {};
	const struct ruleset *rules = rules_of(at);
	if (!rules || identify(rules, &p->target, &party))
		return;
	struct question key = {.source = p->source, .target = p->target, .ifindex = at->ifindex, .protocol = protocol};
	struct asked *asked = bpf_map_lookup_elem(&questions, &key);
	if (asked) {
		if (!asked->count && !asked->answered)
			asked->since = at->now;
		__sync_fetch_and_add(&asked->count, 1);
		return;
	}
	struct asked fresh = {
		.since = at->now,
		.count = 1,
		.source = at->identity,
	};
	bpf_map_update_elem(&questions, &key, &fresh, BPF_ANY);
}

static __always_inline __u32 admit_arp(const struct passage *at, struct port *port)
{
	const struct packet *p = &at->packet;
	if (!at->from) {
		mark_answered(at, &p->target, &p->source, 0);
		return ADMIT_CONTROL;
	}
	if (port && port->identity) {
		if (!is_mac_of(port, p->said_mac))
			return ADMIT_SPOOFED;
		// Who looks for duplicates of an address (RFC 5227) says that it is to be his own.
		if (!owns(at, port, is_unspecified(&p->source) ? &p->target : &p->source))
			return ADMIT_SPOOFED;
	}
	if (p->type == 1 && !is_unspecified(&p->source) && !same(&p->source, &p->target))
		note_question(at, 0);
	return ADMIT_CONTROL;
}

static __always_inline __u32 admit_neighbour(const struct passage *at, struct port *port)
{
	const struct packet *p = &at->packet;
	if (!at->from) {
		if (p->type == 136)
			mark_answered(at, &p->destination, &p->target, PROTOCOL_ICMPV6);
		return ADMIT_CONTROL;
	}
	if (port && port->identity) {
		if (p->type == 134 || p->type == 137)
			return ADMIT_SPOOFED; // a workload is no router
		if (p->has_mac && !is_mac_of(port, p->said_mac))
			return ADMIT_SPOOFED;
		// Who looks for duplicates of an address says that it is to be his own.
		bool claims = p->type == 136 || (p->type == 135 && is_unspecified(&p->source));
		if (claims && !may_use(at, port, &p->target))
			return ADMIT_SPOOFED;
	}
	if (p->type == 135 && !is_unspecified(&p->source) && !is_link_local6(&p->target))
		note_question(at, PROTOCOL_ICMPV6);
	return ADMIT_CONTROL;
}

// Whether this is a whole packet of DHCP between two ports.
static __always_inline bool is_lease_between(const struct packet *p, __u16 source4, __u16 source6)
{
	if (p->protocol != PROTOCOL_UDP || (p->marks & (PACKET_FIRST | PACKET_LATER)))
		return false;
	bool four = p->ethertype == ETHERNET_IPV4;
	return p->source_port == (four ? source4 : source6) &&
	       p->destination_port == (four ? 67 + 68 - source4 : 546 + 547 - source6);
}

// Who asks for an address asks everybody on the link: servers are asked by name like
// any other, once who asks has an address to ask by.
static __always_inline bool is_lease_request(const struct packet *p)
{
	if (!is_lease_between(p, 68, 546) || !(p->marks & PACKET_GROUP))
		return false;
	if (p->ethertype == ETHERNET_IPV4)
		return p->type == 1 && p->destination.low >> 32 == 0xffffffff;
	return is_link_local6(&p->source) && p->destination.high == bswap64(0xff02ULL << 48) &&
	       p->destination.low == bswap64(0x10002);
}

static __always_inline struct question lease_key(const struct passage *at)
{
	return (struct question){.target = {.low = at->packet.target.low}, .ifindex = at->ifindex,
				 .protocol = PROTOCOL_UDP | (__u32)at->packet.ethertype << 16};
}

// Notes that a lease was asked for. Nobody answers a question that has no count.
STAGE int ask_for_lease(const struct passage *at)
{
	if (!at)
		return false;
	struct question key = lease_key(at);
	struct asked asked = {.since = at->now, .answered = 1};
	return !bpf_map_update_elem(&questions, &key, &asked, BPF_ANY);
}

// Whether this answers who asked for a lease a moment ago.
STAGE int is_lease_answer(const struct passage *at)
{
	const struct packet *p = at ? &at->packet : NULL;
	if (!p || !is_lease_between(p, 67, 547))
		return false;
	if (p->ethertype == ETHERNET_IPV4 ? p->type != 2 : !is_link_local6(&p->source))
		return false;
	struct question key = lease_key(at);
	struct asked *asked = bpf_map_lookup_elem(&questions, &key);
	return asked && at->now - asked->since < LEASE_PERIOD;
}

static __always_inline __u32 admit_sent(const struct passage *at, struct port *port)
{
	const struct packet *p = &at->packet;
	if (is_lease_request(p) && port) {
		if (is_unspecified(&p->source) || may_use(at, port, &p->source)) {
			ask_for_lease(at);
			return ADMIT_LEASE;
		}
	}
	if (port && port->identity) {
		bool nobody = is_unspecified(&p->source) && p->ethertype == ETHERNET_IPV6 &&
			      (p->marks & PACKET_NEIGHBOUR); // looking for duplicates of an address
		if (!nobody && !may_use(at, port, &p->source))
			return ADMIT_SPOOFED;
	}
	if (p->marks & PACKET_NEIGHBOUR)
		return admit_neighbour(at, port);
	return ADMIT_ON;
}

static __always_inline __u32 admit_received(const struct passage *at, struct port *port)
{
	const struct packet *p = &at->packet;
	if (port && port->identity && !(p->marks & PACKET_GROUP)) {
		if (!is_mac_of(port, p->destination_mac))
			return ADMIT_ASIDE;
		if (!is_mac_known(port)) // beside what it may learn meanwhile, for steering
			memcpy(port->guess, p->destination_mac, 6);
	}
	if (is_lease_answer(at))
		return ADMIT_LEASE;
	// What a bridge floods, or was led to send here, is another's.
	bool known = port && port->identity && !(is_unspecified(&port->address4) && is_unspecified(&port->address6));
	if (known && !is_multicast(&p->destination) && !(p->marks & PACKET_GROUP) && !is_link_local6(&p->destination) &&
	    !owns(at, port, &p->destination))
		return is_mac_known(port) ? ADMIT_SPOOFED : ADMIT_ASIDE; // by its own MAC it is meant for it
	if (p->marks & PACKET_NEIGHBOUR)
		return admit_neighbour(at, port);
	return ADMIT_ON;
}

static __always_inline struct port *find_port(struct passage *at)
{
	__u32 ifindex = at->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	if (port) {
		at->identity = port->identity;
		at->group = port->group;
		at->closed = !port->identity && (port->flags & PORT_CLOSED);
		at->young = is_young(at, port);
	}
	return port;
}

// DHCP on a wire: the inside asks and the outside answers.
static __always_inline bool is_lease(struct passage *at)
{
	if (!at->from)
		return is_lease_answer(at);
	return is_lease_request(&at->packet) &&
	       (is_unspecified(&at->packet.source) || is_link_local6(&at->packet.source)) && (ask_for_lease(at), true);
}

// Also finds the port. Before there is a ruleset, nothing is refused.
STAGE int admit(struct passage *at)
{
	if (!at)
		return ADMIT_SPOOFED;
	__u32 admitted;
	struct port *port = at->link ? NULL : find_port(at);
	if (at->from && port && port->identity && !claims_mac(at, port))
		admitted = ADMIT_SPOOFED;
	else if (at->link)
		admitted = is_lease(at) ? ADMIT_LEASE : admit_wired(at);
	else if (at->packet.ethertype == ETHERNET_ARP)
		admitted = admit_arp(at, port);
	else if (at->packet.ethertype != ETHERNET_IPV4 && at->packet.ethertype != ETHERNET_IPV6)
		return ADMIT_ON;
	else if (at->from)
		admitted = admit_sent(at, port);
	else
		admitted = admit_received(at, port);
	if (!at->ruled && (admitted == ADMIT_SPOOFED || admitted == ADMIT_ASIDE))
		return at->packet.ethertype == ETHERNET_ARP ? ADMIT_CONTROL : ADMIT_ON;
	if (at->ruled && at->closed && !at->link && (admitted == ADMIT_CONTROL || admitted == ADMIT_LEASE))
		return ADMIT_UNKNOWN;
	return admitted;
}
