// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The twin of Ruleset.DecideNamed: refused identities first, then the rules from the
// most to the least specific, then the default; a decision that has ended gives
// way to its successor; a refusal takes effect if either end enforces.
#pragma once

#include "identify.h"
#include "judgement.h"

static __always_inline bool is_allowed(__u8 verdict)
{
	return verdict == VERDICT_ALLOW || verdict == VERDICT_INSPECT;
}

// Neither passes nor meets a decoy.
static __always_inline bool is_cut(__u8 verdict)
{
	return verdict == VERDICT_DROP || verdict == VERDICT_REJECT;
}

// The refusal of an identity, if it is refused now. Who was cut off by a ruleset that
// was left because nobody confirmed it stays so, by whichever lasts longer.
static __always_inline const struct refused *refusal_of(const struct ruleset *rules, __u32 left, __u32 identity, __u64 now)
{
	struct refused_row *row = bpf_map_lookup_elem(&refused_identities, &identity);
	if (!row)
		return NULL;
	const struct refused *refused = &row->in[rules->slot & ACTIVE_SLOT];
	if (left) {
		const struct refused *older = &row->in[(left - 1) & ACTIVE_SLOT];
		if (older->until > refused->until)
			refused = older;
	}
	return refused->until > now ? refused : NULL;
}

// Where a rule may be: the groups, what of the packet rules look at, and the forms
// that rules for such groups have.
struct trial {
	__u64 forms;
	__u32 slot;
	__u32 from;
	__u32 to;
	__u16 port;
	__u8 protocol;
	__u8 kind; // 0 or RULE_REASON
};

// The number of the lowest bit that is set: the count of those below it, without a
// branch, of which the verifier would follow every combination.
static __always_inline __u32 lowest(__u64 bits)
{
	__u64 below = (bits & -bits) - 1;
	below -= below >> 1 & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return below * 0x0101010101010101ULL >> 56;
}

// Tries the forms from the most to the least specific; false if there is no rule.
STAGE int probe(const struct trial *trial, struct decision *decision)
{
	if (!trial || !decision)
		return false;
	__u64 forms = trial->forms;
	for (int i = 0; i < FORMS && forms; i++) {
		__u32 form = lowest(forms);
		forms &= forms - 1;
		bool any = form >= FORM_ANY_PROTOCOL;
		__u32 bits = 16 - (any ? form - FORM_ANY_PROTOCOL : form);
		struct rule_key key = {
			.from = trial->from,
			.to = trial->to,
			.port = trial->port & ~(0xffffU >> (bits & 31)),
			.bits = bits | trial->kind,
			.protocol = any ? 0 : trial->protocol,
		};
		struct decision_row *row = bpf_map_lookup_elem(&cells, &key);
		if (!row)
			continue;
		const struct decision *found = &row->in[trial->slot & ACTIVE_SLOT];
		if (!found->verdict)
			continue;
		*decision = *found;
		TRACE(probed, traced.probed + form + 1);
		return true;
	}
	return false;
}

// What a flow is to the rules.
struct cell {
	struct party from;
	struct party to;
	__u16 port;
	__u8 protocol;
	__u8 to_here; // the destination is behind this port, else the source
	__u8 enforced; // ENFORCED_*, told by rule_on_cell, if it has looked at the groups
};
#define ENFORCED_NOT 1
#define ENFORCED_HERE 2 // by one of the groups

static __always_inline bool attempt(const struct trial *trial, __u32 rank, struct decision *decision)
{
	if (!trial->forms)
		return false;
	TRACE(probed, rank * FORMS);
	return probe(trial, decision);
}

// Rules of the pair first, then why the pair is refused, then those from any group,
// to any, and for all.
static __always_inline void lookup(const struct ruleset *rules, struct cell *cell, struct decision *decision)
{
	struct trial trial = {.slot = rules->slot, .from = cell->from.group, .to = cell->to.group, .port = cell->port, .protocol = cell->protocol};
	// The group behind this port is seldom far from the processor, that of any other
	// end mostly is. It is asked for where there is much to rule out, or no rule.
	const struct group *here = group_of(rules, cell->to_here ? cell->to.group : cell->from.group);
	cell->enforced = enforces(here) ? ENFORCED_HERE : 0;
	trial.forms = !here ? 0 : cell->to_here ? here->exact_to : here->exact_from;
	bool few = !(trial.forms & (trial.forms - 1));
	if (few && attempt(&trial, 0, decision))
		return;
	const struct group *there = group_of(rules, cell->to_here ? cell->from.group : cell->to.group);
	cell->enforced = enforces(here) || enforces(there) ? ENFORCED_HERE : ENFORCED_NOT;
	trial.forms &= few || !there ? 0 : cell->to_here ? there->exact_from : there->exact_to;
	if (attempt(&trial, 0, decision))
		return;
	const struct group *from = cell->to_here ? there : here, *to = cell->to_here ? here : there;
	if (rules->reasons) {
		trial.forms = rules->reasons;
		trial.kind = RULE_REASON;
		trial.from = from ? from->sender : 0;
		trial.to = to ? to->receiver : 0;
		if (attempt(&trial, 1, decision))
			return;
		trial.kind = 0;
	}
	trial.from = 0;
	trial.to = cell->to.group;
	trial.forms = to ? to->any_from : 0;
	if (attempt(&trial, 2, decision))
		return;
	trial.from = cell->from.group;
	trial.to = 0;
	trial.forms = from ? from->any_to : 0;
	if (attempt(&trial, 3, decision))
		return;
	trial.from = 0;
	trial.forms = rules->any;
	if (attempt(&trial, 4, decision))
		return;
	TRACE(probed, 0);
	*decision = rules->fallback;
}

// A decision that counts now, and when it ends.
struct ruling {
	__u64 until;
	struct decision decision;
	__u32 pad;
};

// Follows decisions that have ended to the one that counts now.
static __always_inline void follow(const struct ruleset *rules, __u64 now, struct ruling *ruling)
{
	ruling->until = FOREVER;
	for (int i = 0; i < MOST_SUCCESSORS && (ruling->decision.flags & DECISION_ENDS); i++) {
		__u32 id = ruling->decision.id;
		struct succession_row *row = bpf_map_lookup_elem(&successions, &id);
		if (!row)
			return;
		const struct succession *succession = &row->in[rules->slot & ACTIVE_SLOT];
		if (!succession->until)
			return;
		if (now < succession->until) {
			ruling->until = succession->until;
			return;
		}
		ruling->decision = succession->then;
		TRACE(successions, i + 1);
	}
}

static __always_inline void rule(const struct ruling *ruling, struct outcome *out)
{
	out->until = ruling->until;
	out->decision = ruling->decision.id;
	out->reason = ruling->decision.reason;
	out->verdict = out->would = ruling->decision.verdict;
	out->profile = ruling->decision.profile;
	out->fail_open = ruling->decision.fail_open;
	out->expects = ruling->decision.expects;
	out->limited = ruling->decision.limited;
}

// What the rules say of a cell at a moment; without a cell, the default. Returns
// whether a name may say otherwise.
STAGE int rule_on_cell(const struct ruleset *rules, struct cell *cell, __u64 now, struct outcome *out)
{
	if (!rules || !out)
		return 0;
	struct ruling ruling;
	if (cell)
		lookup(rules, cell, &ruling.decision);
	else
		ruling.decision = rules->fallback;
	follow(rules, now, &ruling);
	rule(&ruling, out);
	return !!(ruling.decision.flags & DECISION_YIELDS);
}

#include "named.h"

// Where the address of the local end belongs to no peer (link-local, multicast),
// the port says who it is: an enforced workload cannot be reached around policy.
static __always_inline void vouch(const struct passage *at, __u32 group, struct party *party)
{
	if (!at->identity)
		return;
	party->identity = at->identity;
	party->group = group;
}

// Writes down whom a packet is between, where that is asked.
STAGE int trace_parties(const struct ruleset *rules, const struct cell *cell)
{
	if (!rules || !cell)
		return 0;
	TRACE(judged, 1);
	TRACE(source_group, cell->from.group);
	TRACE(destination_group, cell->to.group);
	TRACE(enforces, group_enforces(rules, cell->from.group) | group_enforces(rules, cell->to.group) << 1);
	return 0;
}

// Whether a refusal takes effect; ruling mostly has seen it.
static __always_inline bool is_enforced(const struct ruleset *rules, const struct cell *cell)
{
	if (cell->enforced)
		return cell->enforced == ENFORCED_HERE;
	return group_enforces(rules, cell->from.group) || group_enforces(rules, cell->to.group);
}

// Judges, by one of the rulesets, which gives the port a group, the flow that the
// packet belongs to (original), or whose answer it is. Returns whether a name may
// allow what the address is not: judge_named says.
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

	struct cell cell = {
		.port = port_of_service(p, original),
		.protocol = p->protocol,
		.to_here = !local_source,
	};
	if (!identify(rules, original ? &p->source : &p->destination, &cell.from)) {
		out->partial = 1;
		if (local_source)
			vouch(at, group, &cell.from);
	}
	int known = identify(rules, original ? &p->destination : &p->source, &cell.to);
	if (!known) {
		out->partial = 1;
		if (!local_source)
			vouch(at, group, &cell.to);
	}
	out->enrolled = known ? !!(known & ENROLLED) : !local_source && at->identity;
	out->source = cell.from.identity;
	out->destination = cell.to.identity;

	if (tracing && index == at->index)
		trace_parties(rules, &cell);

	__u32 left = index == at->index ? at->left : 0;
	if (rules->refused || left) {
		const struct refused *refused = refusal_of(rules, left, cell.from.identity, at->now);
		if (!refused)
			refused = refusal_of(rules, left, cell.to.identity, at->now);
		if (refused) {
			out->verdict = out->would = VERDICT_DROP;
			out->reason = REASON_QUARANTINE;
			out->decision = refused->decision;
			return 0;
		}
	}
	if (!at->identity) {
		// Nothing vouches for the local end: the other end counts, and where it stands.
		*(local_source ? &out->source : &out->destination) = IDENTITY_UNKNOWN;
		out->reason = REASON_IDENTITY_UNKNOWN;
		out->would = VERDICT_DROP;
		out->verdict = at->closed || group_enforces(rules, local_source ? cell.to.group : cell.from.group)
				       ? VERDICT_DROP
				       : VERDICT_ALLOW;
		return 0;
	}
	bool yields = rule_on_cell(rules, &cell, at->now, out) && rules->names && local_source &&
		      cell.to.identity == IDENTITY_WORLD && yield_to_names(rules, &cell);
	if (!is_allowed(out->verdict) && !is_enforced(rules, &cell))
		out->verdict = VERDICT_ALLOW;
	return yields;
}

// Judges by the ruleset in force. Returns whether names were asked.
static __always_inline bool judge_anew(const struct passage *at, bool original, struct outcome *out)
{
	__u32 index = at->index & ACTIVE_SLOT, named = 0;
	bool yields = judge_by(at, index, at->group, original, out);
	if (yields)
		named = judge_named(at, index, original, out);
	TRACE(named, named);
	TRACE(refused, out->reason == REASON_QUARANTINE);
	TRACE(shape, traced.probed);
	return yields;
}

// Judges, or knows it from the last time.
STAGE int judge(const struct passage *at, __u32 original, struct outcome *out)
{
	if (!at || !out)
		return 0;
	struct judgement *last = tracing ? NULL : judgement_of(at, original);
	if (last && recall(last, at, original, out))
		return 0;
	if (!judge_anew(at, original, out) && last)
		keep(last, at, original, out);
	return 0;
}

// The port's group by the candidate, which the port was not attached for: that of
// its addresses.
STAGE int candidate_group(const struct passage *at, __u32 index)
{
	if (!at)
		return 0;
	__u32 ifindex = at->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	struct ruleset *rules = bpf_map_lookup_elem(&rulesets, &index);
	struct party party = {};
	if (!port || !rules)
		return at->group;
	if (!is_unspecified(&port->address4) && identify(rules, &port->address4, &party))
		return party.group;
	if (!is_unspecified(&port->address6) && identify(rules, &port->address6, &party))
		return party.group;
	return at->group;
}

// Judges by the candidate as well, which decides nothing, and notes where it
// would let pass what is refused or refuse what passes.
STAGE int shadow(const struct passage *at, __u32 candidate, __u32 original, struct outcome *out)
{
	__u32 zero = 0;
	if (!at || !out)
		return 0;
	struct active *now = bpf_map_lookup_elem(&active, &zero);
	if (!now)
		return 0;
	struct outcome other = {};
	__u32 slot = now->candidate_slot & ACTIVE_SLOT;
	if (judge_by(at, slot, candidate_group(at, slot), original, &other))
		judge_named(at, slot, original, &other);
	bool differs = is_allowed(other.would) != is_allowed(out->would);
	out->differs = differs ? differing(candidate) : 0;
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
