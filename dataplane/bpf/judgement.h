// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What was judged a moment ago: who opens a flow mostly opens more to the same service,
// and the second is judged as the first was, by one look at memory that is near instead
// of six into tables that are not. Each processor has rows of its own, a row for the last
// of all cases that share it.
//
// A row holds in one epoch, in which no row that counts is ever written, and until the
// decision ends by itself. What the time of day or what was learned since may change is
// not kept: who is refused whatever policy says, and what names may allow. Each load of
// the programs begins with none, so no program trusts what another one judged.
#pragma once

#include "table.h"

#define JUDGEMENT_BITS 7

struct judgement {
	struct address source; // of the flow
	struct address destination;
	struct outcome outcome;
	__u32 epoch;
	__u32 identity; // of the port
	__u32 group;
	__u16 port; // of the service
	__u8 protocol;
	__u8 side;  // from where it was judged: see side_of_port
	__u32 turn; // odd while the row is written
	__u32 pad;
};
_Static_assert(sizeof(struct judgement) == 88, "judgement");

struct judgements {
	struct judgement rows[1 << JUDGEMENT_BITS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct judgements);
} judgements SEC(".maps");

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

static __always_inline __u16 port_of_service(const struct packet *p, bool original)
{
	return !has_ports(p->protocol) ? 0 : original ? p->destination_port : p->source_port;
}

// What else than who and where the judgement depends on; never zero.
static __always_inline __u8 side_of_port(const struct passage *at, bool original)
{
	return 1 | !!at->from << 1 | original << 2 | at->closed << 3 | at->left << 4;
}

// The row that a case would be in; NULL where there is no ruleset.
static __always_inline struct judgement *judgement_of(const struct passage *at, bool original)
{
	__u32 zero = 0;
	struct judgements *all = at->ruled ? bpf_map_lookup_elem(&judgements, &zero) : NULL;
	if (!all)
		return NULL;
	const struct packet *p = &at->packet;
	__u64 sum = (p->source.high + p->source.low) * flow_seeds[5] +
		    (p->destination.high + p->destination.low + port_of_service(p, original)) * flow_seeds[6];
	return &all->rows[sum >> (64 - JUDGEMENT_BITS)];
}

// Says of a case what was said the last time; false if that was another case.
static __always_inline bool recall(const struct judgement *row, const struct passage *at, bool original, struct outcome *out)
{
	const struct packet *p = &at->packet;
	__u32 turn = *(volatile __u32 *)&row->turn;
	if ((turn & 1) || row->epoch != at->epoch || row->side != side_of_port(at, original) ||
	    row->port != port_of_service(p, original) || row->protocol != p->protocol ||
	    row->identity != at->identity || row->group != at->group ||
	    !same(&row->source, original ? &p->source : &p->destination) ||
	    !same(&row->destination, original ? &p->destination : &p->source))
		return false;
	*out = row->outcome;
	barrier(); // where programs may be interrupted, another may have written meanwhile
	return *(volatile __u32 *)&row->turn == turn && at->now < out->until;
}

static __always_inline void keep(struct judgement *row, const struct passage *at, bool original, const struct outcome *out)
{
	if (out->reason == REASON_QUARANTINE)
		return;
	const struct packet *p = &at->packet;
	__u32 turn = *(volatile __u32 *)&row->turn + 1;
	if (!(turn & 1))
		return; // this program interrupted one that writes the row
	*(volatile __u32 *)&row->turn = turn;
	barrier();
	row->source = original ? p->source : p->destination;
	row->destination = original ? p->destination : p->source;
	row->outcome = *out;
	row->epoch = at->epoch;
	row->identity = at->identity;
	row->group = at->group;
	row->port = port_of_service(p, original);
	row->protocol = p->protocol;
	row->side = side_of_port(at, original);
	barrier();
	*(volatile __u32 *)&row->turn = turn + 1;
}
