// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The twin of Ruleset.DecideNamed: where policy merely does not allow an address
// outside, a name that the flow's source was told the address has may, and where
// Kubernetes refuses it, a name that it accepts before. What is learned is written by
// resolve.h; here it is only read.
#pragma once

#include "table.h"

// Patterns of names by which a workload knows an address.
struct naming {
	struct trial trial;
	struct ruling ruling;
	struct ruling best;
	__u64 ids[LEARNED];
	struct ranks yields; // of what was refused
	__u32 count;
	__u32 at;
	__u32 place; // of the best; 0: none
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

static __always_inline const struct ranks *ranks_of(const struct ruleset *rules, __u32 id)
{
	struct ranks_row *row = bpf_map_lookup_elem(&rankings, &id);
	return row ? &row->in[rules->slot & ACTIVE_SLOT] : NULL;
}

// Whether what was decided of a name lets pass what was refused of the address.
static __always_inline bool opens(const struct naming *n, const struct ruleset *rules, const struct decision *named)
{
	if (!is_allowed(named->verdict))
		return false;
	if (!(named->flags & DECISION_RANKED))
		return named->reason == REASON_RULE && n->yields.consumed;
	const struct ranks *its = ranks_of(rules, named->id);
	return its && ((its->admin && its->admin < n->yields.admin) || (its->baseline && its->baseline < n->yields.baseline));
}

// Tries the next of the names: the first in the order of names that allows counts, of
// its groups the first.
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
	__u32 place = name->place;
	if (!place || (n->place && n->place <= place))
		return 0;
	const struct group *source = group_of(rules, n->trial.from);
#pragma clang loop unroll(disable)
	for (int i = 0; i < NAMERS; i++) {
		__u32 group = name->groups[i];
		const struct group *target = group ? group_of(rules, group) : NULL;
		n->trial.to = group;
		n->trial.forms = source && target ? source->exact_from & target->exact_to : 0;
		if (!n->trial.forms || !probe(&n->trial, &n->ruling.decision))
			continue;
		follow(rules, now, &n->ruling);
		if (!opens(n, rules, &n->ruling.decision))
			continue;
		n->best = n->ruling;
		n->place = place;
		break;
	}
	return 0;
}

// Which names may open what was refused.
static __always_inline void find_yields(struct naming *n, const struct ruleset *rules, const struct outcome *out)
{
	const struct ranks *its = ranks_of(rules, out->decision);
	if (its && (its->admin | its->baseline)) {
		n->yields = *its;
		return;
	}
	n->yields.admin = EVERY_RANK;
	n->yields.baseline = out->reason == REASON_DEFAULT_DENY ? EVERY_RANK : 0;
	n->yields.consumed = true;
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
	n->at = n->place = 0;
	return true;
}

// Lets a name allow what the address is not allowed, until either ends.
STAGE int judge_named(const struct passage *at, __u32 index, __u32 original, struct outcome *out)
{
	struct naming *n = naming();
	const struct ruleset *rules = bpf_map_lookup_elem(&rulesets, &index);
	if (!at || !rules || !out || !n)
		return 0;
	find_yields(n, rules, out);
	__u32 count = recall_names(at, original ? &at->packet.destination : &at->packet.source);
	for (__u32 i = 0; i < LEARNED && i < count; i++)
		try_name(rules, at->now);
	if (!n->place)
		return 0;
	if (out->until < n->best.until)
		n->best.until = out->until;
	rule(&n->best, out);
	return n->place;
}
