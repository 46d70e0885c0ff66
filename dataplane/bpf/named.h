// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The twin of Ruleset.DecideNamed: where policy merely does not allow an address
// outside, a name that the flow's source was told the address has may. What is
// learned is written by resolve.h; here it is only read.
#pragma once

#include "table.h"

// Patterns of names by which a workload knows an address.
struct naming {
	struct trial trial;
	struct ruling ruling;
	struct ruling best;
	__u64 ids[LEARNED];
	__u32 count;
	__u32 at;
	__u32 rank; // of the best; 0: none
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct naming);
} namings SEC(".maps");

static __always_inline struct naming *naming(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&namings, &zero);
}

static __always_inline struct set_key learned_key(__u32 identity, const struct address *address)
{
	__u64 sum = mixed(address->high, flow_seeds[9]) + mixed(address->low, flow_seeds[10]);
	return (struct set_key){.identity = identity, .part = sum * flow_seeds[11] >> 32 & (LEARNED_PARTS - 1)};
}

// Whether the packet is of a flow that passes already: that one goes on although
// what let it in has ended since.
static __always_inline bool goes_on(const struct passage *at)
{
	struct flow *flow = at->found.row ? row_at(at->found.row) : NULL;
	return flow && is_allowed(flow->verdicts >> 4) && !(((word_of(flow) ^ at->found.word) & FLOW_SELF));
}

// Finds by which names a workload knows an address.
STAGE int recall_names(const struct passage *at, const struct address *address)
{
	struct naming *n = naming();
	if (!at || !address || !n)
		return 0;
	n->count = 0;
	struct set_key key = learned_key(at->identity, address);
	struct learned_set *set = bpf_map_lookup_elem(&learned, &key);
	if (!set)
		return 0;
	__u64 now = at->now, since = goes_on(at) ? 0 : now;
	__u32 count = 0;
	bpf_spin_lock(&set->lock);
	for (int i = 0; i < LEARNED; i++) {
		struct learned *row = &set->rows[i];
		if (!row->name || row->until <= since || !same(&row->address, address))
			continue;
		if (!tracing)
			row->used = now;
		n->ids[count++ & (LEARNED - 1)] = row->name;
	}
	bpf_spin_unlock(&set->lock);
	return n->count = count;
}

// Tries the next of the names: the first in the order of names that allows counts.
STAGE int try_name(const struct ruleset *rules, __u64 now)
{
	struct naming *n = naming();
	if (!rules || !n)
		return 0;
	__u64 id = n->ids[n->at++ & (LEARNED - 1)];
	struct name_row *row = bpf_map_lookup_elem(&names, &id);
	if (!row)
		return 0;
	const struct name *name = &row->in[rules->slot & ACTIVE_SLOT];
	__u32 rank = name->rank;
	if (!name->group || (n->rank && n->rank <= rank))
		return 0;
	const struct group *source = group_of(rules, n->trial.from), *target = group_of(rules, name->group);
	n->trial.to = name->group;
	n->trial.forms = source && target ? source->exact_from & target->exact_to : 0;
	if (!probe(&n->trial, &n->ruling.decision))
		return 0;
	follow(rules, now, &n->ruling);
	if (!is_allowed(n->ruling.decision.verdict) || n->ruling.decision.reason != REASON_RULE)
		return 0;
	n->best = n->ruling;
	n->rank = rank;
	return 0;
}

// What judge_named needs to know of a cell, which has no room where that is called.
static __always_inline int yield_to_names(const struct ruleset *rules, const struct cell *cell)
{
	struct naming *n = naming();
	if (!n)
		return false;
	n->trial.slot = rules->slot;
	n->trial.from = cell->from.group;
	n->trial.port = cell->port;
	n->trial.protocol = cell->protocol;
	n->trial.kind = 0;
	n->at = n->rank = 0;
	return true;
}

// Lets a name allow what the address is not allowed, until either ends.
STAGE int judge_named(const struct passage *at, __u32 index, __u32 original, struct outcome *out)
{
	struct naming *n = naming();
	const struct ruleset *rules = bpf_map_lookup_elem(&rulesets, &index);
	if (!at || !rules || !out || !n)
		return 0;
	__u32 count = recall_names(at, original ? &at->packet.destination : &at->packet.source);
	for (__u32 i = 0; i < LEARNED && i < count; i++)
		try_name(rules, at->now);
	if (!n->rank)
		return 0;
	if (out->until < n->best.until)
		n->best.until = out->until;
	rule(&n->best, out);
	return n->rank;
}
