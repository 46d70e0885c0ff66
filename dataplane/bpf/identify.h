// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Who has an address: exact first, longest prefix on a miss and only where the
// ruleset has prefixes. Nobody known is the world.
#pragma once

#include "report.h"

static __always_inline bool group_enforces(const struct ruleset *rules, __u32 group)
{
	struct group_key key = {.slot = rules->slot, .group = group};
	return bpf_map_lookup_elem(&groups, &key) != NULL;
}

// Fills peer; false if no peer of the ruleset has the address.
STAGE int identify(const struct ruleset *rules, const struct address *address, struct peer *peer)
{
	if (!rules || !address || !peer)
		return false;
	struct peer_key key = {.slot = rules->slot, .address = *address};
	struct peer *found = bpf_map_lookup_elem(&peers, &key);
	bool four = is4(address);
	if (!found && (four ? rules->prefixes4 : rules->prefixes6)) {
		struct prefix_key prefix = {
			.length = PREFIX_FIXED_BITS + 128,
			.slot = rules->slot,
			.family = four ? 4 : 6,
		};
		memcpy(prefix.address, address, sizeof(prefix.address));
		found = bpf_map_lookup_elem(&prefixes, &prefix);
	}
	if (found) {
		*peer = *found;
		return true;
	}
	*peer = (struct peer){.identity = IDENTITY_WORLD, .group = GROUP_WORLD, .enforce = rules->world_enforces};
	return false;
}

// Whether an enforcement point that decides by itself must refuse: if the port's
// group, or that of either address, enforces.
STAGE int strict(const struct passage *at)
{
	struct peer peer = {};
	if (!at)
		return false;
	const struct ruleset *rules = rules_of(at);
	if (!rules)
		return false;
	if (at->closed || (at->identity && group_enforces(rules, at->group)))
		return true;
	identify(rules, &at->packet.source, &peer);
	if (peer.enforce)
		return true;
	identify(rules, &at->packet.destination, &peer);
	return peer.enforce;
}
