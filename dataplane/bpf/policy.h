// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The twin of Ruleset.Decide: refused identities first, then the rules from the
// most to the least specific, then the default; a decision that has ended gives
// way to its successor; a refusal takes effect if either end enforces.
#pragma once

#include "identify.h"

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

static __always_inline bool is_allowed(__u8 verdict)
{
	return verdict == VERDICT_ALLOW || verdict == VERDICT_INSPECT;
}

// Neither passes nor meets a decoy.
static __always_inline bool is_cut(__u8 verdict)
{
	return verdict == VERDICT_DROP || verdict == VERDICT_REJECT;
}

static __always_inline struct refused *refusal_of(const struct ruleset *rules, __u32 identity, __u64 now)
{
	struct refused_key key = {.slot = rules->refused_slot, .identity = identity};
	struct refused *refused = bpf_map_lookup_elem(&refused_identities, &key);
	if (refused && refused->until && refused->until <= now)
		return NULL;
	return refused;
}

struct cell {
	__u32 from; // groups
	__u32 to;
	__u16 port;
	__u8 protocol;
};

static __always_inline const struct decision *lookup(const struct ruleset *rules, const struct cell *cell)
{
	for (int i = 0; i < SHAPES; i++) {
		if (i >= rules->shape_count)
			break;
		const struct shape *shape = &rules->shapes[i];
		struct rule_key key = {
			.slot = rules->slot,
			.from = cell->from & shape->from,
			.to = cell->to & shape->to,
			.port = cell->port & shape->port,
			.bits = shape->bits,
			.protocol = cell->protocol & shape->protocol,
		};
		const struct decision *decision = bpf_map_lookup_elem(&cells, &key);
		if (decision) {
			TRACE(probed, i + 1);
			return decision;
		}
	}
	TRACE(probed, 0);
	return &rules->fallback;
}

// A decision that counts now, and when it ends.
struct ruling {
	__u64 until;
	struct decision decision;
	__u32 pad;
};

// Follows decisions that have ended to the one that counts now.
static __always_inline void follow(const struct ruleset *rules, const struct decision *decision, __u64 now,
				   struct ruling *ruling)
{
	ruling->until = FOREVER;
	ruling->decision = *decision;
	for (int i = 0; i < MOST_SUCCESSORS && ruling->decision.ends; i++) {
		struct succession_key key = {.slot = rules->refused_slot, .decision = ruling->decision.id};
		struct succession *succession = bpf_map_lookup_elem(&successions, &key);
		if (!succession)
			return;
		if (now < succession->until) {
			ruling->until = succession->until;
			return;
		}
		ruling->decision = succession->then;
		TRACE(successions, i + 1);
	}
}

// What the rules say of a cell at a moment; without a cell, the default.
STAGE int rule_on_cell(const struct ruleset *rules, const struct cell *cell, __u64 now, struct outcome *out)
{
	if (!rules || !out)
		return 0;
	struct ruling ruling;
	follow(rules, cell ? lookup(rules, cell) : &rules->fallback, now, &ruling);
	out->until = ruling.until;
	out->decision = ruling.decision.id;
	out->reason = ruling.decision.reason;
	out->verdict = out->would = ruling.decision.verdict;
	out->profile = ruling.decision.profile;
	out->fail_open = ruling.decision.fail_open;
	return 0;
}

// Where the address of the local end belongs to no peer (link-local, multicast),
// the port says who it is: an enforced workload cannot be reached around policy.
static __always_inline void vouch(const struct passage *at, const struct ruleset *rules, __u32 group, struct peer *peer)
{
	if (!at->identity)
		return;
	peer->identity = at->identity;
	peer->group = group;
	peer->enforce = group_enforces(rules, group);
	peer->enrolled = 1;
}

// Judges, by one of the rulesets, which gives the port a group, the flow that the
// packet belongs to (original), or whose answer it is.
STAGE int judge_by(const struct passage *at, __u32 index, __u32 group, __u32 original, struct outcome *out)
{
	if (!at || !out)
		return 0;
	const struct packet *p = &at->packet;
	bool local_source = !at->from == !original; // else the destination is behind this port
	*out = (struct outcome){.until = FOREVER, .verdict = VERDICT_ALLOW, .would = VERDICT_ALLOW,
				.reason = REASON_NO_RULESET, .source = IDENTITY_WORLD, .destination = IDENTITY_WORLD};
	const struct ruleset *rules = at->ruled ? bpf_map_lookup_elem(&rulesets, &index) : NULL;
	if (!rules) {
		*(local_source ? &out->source : &out->destination) = at->identity;
		return 0;
	}

	struct peer source = {}, destination = {};
	if (!identify(rules, original ? &p->source : &p->destination, &source)) {
		out->partial = 1;
		if (local_source)
			vouch(at, rules, group, &source);
	}
	if (!identify(rules, original ? &p->destination : &p->source, &destination)) {
		out->partial = 1;
		if (!local_source)
			vouch(at, rules, group, &destination);
	}
	bool enforce = source.enforce || destination.enforce;
	out->enrolled = destination.enrolled;

	out->source = source.identity;
	out->destination = destination.identity;
	bool in_force = index != CANDIDATE_INDEX;
	if (in_force) {
		TRACE(judged, 1);
		TRACE(source_group, source.group);
		TRACE(destination_group, destination.group);
		TRACE(enforces, !!source.enforce | !!destination.enforce << 1);
	}

	if (rules->refused) {
		struct refused *refused = refusal_of(rules, source.identity, at->now);
		if (!refused)
			refused = refusal_of(rules, destination.identity, at->now);
		if (refused) {
			out->verdict = out->would = VERDICT_DROP;
			out->reason = REASON_QUARANTINE;
			out->decision = refused->decision;
			if (in_force)
				TRACE(refused, 1);
			return 0;
		}
	}
	if (!at->identity) {
		// Nothing vouches for the local end: the other end counts, and where it stands.
		*(local_source ? &out->source : &out->destination) = IDENTITY_UNKNOWN;
		enforce = (local_source ? destination.enforce : source.enforce);
		out->reason = REASON_IDENTITY_UNKNOWN;
		out->would = VERDICT_DROP;
		out->verdict = enforce || at->closed ? VERDICT_DROP : VERDICT_ALLOW;
		return 0;
	}
	struct cell cell = {
		.from = source.group,
		.to = destination.group,
		.port = !has_ports(p->protocol) ? 0 : original ? p->destination_port : p->source_port,
		.protocol = p->protocol,
	};
	rule_on_cell(rules, &cell, at->now, out);
	if (in_force)
		TRACE(shape, traced.probed);
	if (!enforce && !is_allowed(out->verdict))
		out->verdict = VERDICT_ALLOW;
	return 0;
}

static __always_inline void judge(const struct passage *at, bool original, struct outcome *out)
{
	judge_by(at, at->index & ACTIVE_INDEX, at->group, original, out);
}

// The port's group by the candidate, which the port was not attached for: that of
// its addresses.
static __always_inline __u32 candidate_group(const struct passage *at)
{
	__u32 ifindex = at->ifindex, index = CANDIDATE_INDEX;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	struct ruleset *rules = bpf_map_lookup_elem(&rulesets, &index);
	struct peer peer = {};
	if (!port || !rules)
		return at->group;
	if (!is_unspecified(&port->address4) && identify(rules, &port->address4, &peer))
		return peer.group;
	if (!is_unspecified(&port->address6) && identify(rules, &port->address6, &peer))
		return peer.group;
	return at->group;
}

// Judges by the candidate as well, which decides nothing, and notes where it
// would let pass what is refused or refuse what passes.
STAGE int shadow(const struct passage *at, __u32 candidate, __u32 original, struct outcome *out)
{
	if (!at || !out)
		return 0;
	struct outcome other = {};
	judge_by(at, CANDIDATE_INDEX, candidate_group(at), original, &other);
	bool differs = is_allowed(other.would) != is_allowed(out->would);
	out->differs = differs ? candidate : 0;
	__u32 zero = 0;
	struct comparison *comparison = bpf_map_lookup_elem(&comparisons, &zero);
	if (comparison) {
		comparison->evaluated++;
		comparison->differs += differs;
	}
	return 0;
}

static __always_inline void compare(const struct passage *at, bool original, struct outcome *out)
{
	__u32 candidate = candidate_now();
	if (candidate && at->ruled)
		shadow(at, candidate, original, out);
}
