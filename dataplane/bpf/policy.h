// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The twin of Ruleset.Decide: refused identities first, then the rules from the
// most to the least specific, then the default; a refusal takes effect if either
// end enforces.
#pragma once

#include "identify.h"

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

static __always_inline struct refused *refusal_of(const struct ruleset *rules, __u32 identity, __u64 now)
{
	struct refused_key key = {.slot = rules->refused_slot, .identity = identity};
	struct refused *refused = bpf_map_lookup_elem(&refused_identities, &key);
	if (refused && refused->until && refused->until <= now)
		return NULL;
	return refused;
}

static __always_inline const struct decision *lookup(const struct ruleset *rules, __u32 from, __u32 to, __u32 protocol, __u32 port)
{
	for (int i = 0; i < SHAPES; i++) {
		if (i >= rules->shape_count)
			break;
		const struct shape *shape = &rules->shapes[i];
		struct rule_key key = {
			.slot = rules->slot,
			.from = from & shape->from,
			.to = to & shape->to,
			.port = port & shape->port,
			.bits = shape->bits,
			.protocol = protocol & shape->protocol,
		};
		const struct decision *decision = bpf_map_lookup_elem(&cells, &key);
		if (decision)
			return decision;
	}
	return &rules->fallback;
}

// Where the address of the local end belongs to no peer (link-local, multicast),
// the port says who it is: an enforced workload cannot be reached around policy.
static __always_inline void vouch(const struct passage *at, const struct ruleset *rules, struct peer *peer)
{
	if (!at->identity)
		return;
	peer->identity = at->identity;
	peer->group = at->group;
	peer->enforce = group_enforces(rules, at->group);
	peer->enrolled = 1;
}

// Judges the flow that the packet belongs to (original), or whose answer it is.
STAGE int judge(const struct passage *at, __u32 original, struct outcome *out)
{
	if (!at || !out)
		return 0;
	const struct packet *p = &at->packet;
	bool local_source = !at->from == !original; // else the destination is behind this port
	*out = (struct outcome){.verdict = VERDICT_ALLOW, .would = VERDICT_ALLOW, .reason = REASON_NO_RULESET,
				.source = IDENTITY_WORLD, .destination = IDENTITY_WORLD};
	const struct ruleset *rules = rules_of(at);
	if (!rules) {
		*(local_source ? &out->source : &out->destination) = at->identity;
		return 0;
	}

	struct peer source = {}, destination = {};
	if (!identify(rules, original ? &p->source : &p->destination, &source)) {
		out->partial = 1;
		if (local_source)
			vouch(at, rules, &source);
	}
	if (!identify(rules, original ? &p->destination : &p->source, &destination)) {
		out->partial = 1;
		if (!local_source)
			vouch(at, rules, &destination);
	}
	bool enforce = source.enforce || destination.enforce;
	out->enrolled = destination.enrolled;

	out->source = source.identity;
	out->destination = destination.identity;

	if (rules->refused) {
		struct refused *refused = refusal_of(rules, source.identity, at->now);
		if (!refused)
			refused = refusal_of(rules, destination.identity, at->now);
		if (refused) {
			out->verdict = out->would = VERDICT_DROP;
			out->reason = REASON_QUARANTINE;
			out->decision = refused->decision;
			return 0;
		}
	}
	if (!at->identity) {
		// Nothing vouches for the local end: only the other end counts.
		*(local_source ? &out->source : &out->destination) = IDENTITY_UNKNOWN;
		enforce = local_source ? destination.enforce : source.enforce;
		out->reason = REASON_IDENTITY_UNKNOWN;
		out->would = VERDICT_DROP;
		out->verdict = enforce ? VERDICT_DROP : VERDICT_ALLOW;
		return 0;
	}
	__u32 port = !has_ports(p->protocol) ? 0 : original ? p->destination_port : p->source_port;
	const struct decision *decision = lookup(rules, source.group, destination.group, p->protocol, port);
	out->decision = decision->id;
	out->reason = decision->reason;
	out->would = decision->verdict;
	out->profile = decision->profile;
	out->fail_open = decision->fail_open;
	bool refuses = decision->verdict != VERDICT_ALLOW && decision->verdict != VERDICT_INSPECT;
	out->verdict = refuses && !enforce ? VERDICT_ALLOW : decision->verdict;
	return 0;
}
