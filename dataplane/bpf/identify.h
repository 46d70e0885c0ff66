// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Who has an address: the exact one first, by one look-up; else the longest prefix.
// Prefixes are found by halving: a row at a length in the middle says that there is
// something at least that long, so it takes at most five look-ups for IPv4 and seven
// for IPv6, and one more, however many prefixes and lengths there are. Lengths that
// the ruleset does not use cost nothing. Nobody known is the world.
#pragma once

#include "report.h"

#define MOST_LOOKS 8

// Who is at an address, as far as the ruleset says.
struct party {
	__u32 identity;
	__u32 group;
};

// What identify says: nobody of the ruleset has the address, or somebody, and maybe
// an enforcement point stands in front of it.
#define KNOWN 1
#define ENROLLED 2

static __always_inline const struct group *group_of(const struct ruleset *rules, __u32 number)
{
	struct group_row *row = bpf_map_lookup_elem(&groups, &number);
	return row ? &row->in[rules->slot & ACTIVE_SLOT] : NULL;
}

static __always_inline bool enforces(const struct group *group)
{
	return group && (group->flags & GROUP_ENFORCES);
}

static __always_inline bool group_enforces(const struct ruleset *rules, __u32 number)
{
	return enforces(group_of(rules, number));
}

static __always_inline int know(struct party *party, const struct peer *peer)
{
	party->identity = peer->identity;
	party->group = peer->group;
	return KNOWN | (peer->flags & PEER_ENROLLED ? ENROLLED : 0);
}

// Keeps the first bits of an address.
static __always_inline void cut(struct prefix_key *key, const struct address *address, __u32 length)
{
	__u64 high = length >= 64 ? ~0ULL : length ? ~0ULL << (64 - length) : 0;
	__u64 low = length <= 64 ? 0 : length >= 128 ? ~0ULL : ~0ULL << (128 - length);
	high = address->high & bswap64(high);
	low = address->low & bswap64(low);
	key->length = length;
	memcpy(key->address, &high, sizeof(high));
	memcpy(key->address + 2, &low, sizeof(low));
}

// Whether the ruleset has prefixes of some length from first to last.
static __always_inline bool uses(const struct ruleset *rules, bool four, __u32 first, __u32 last)
{
	if (four)
		return rules->lengths4 & (~0U >> (31 - (last - first)) << first);
	return rules->lengths6[first >> 6 & 1] & (~0ULL >> (63 - (last - first)) << (first & 63));
}

// A search for the longest prefix, shorter than an address, that has the address.
struct search {
	struct party party; // of the longest found so far,
	__s32 known;	    // whose length this is; none: -1
	__s32 best;	    // length of the longest there is, as far as is known
	__u32 length;	    // to look at next
	__u16 step;
	__u16 is; // as identify says it
};

// Looks at one length: at the best one once there is none left to halve. False if
// that was the last.
STAGE int look(const struct ruleset *rules, const struct address *address, struct search *search)
{
	if (!rules || !address || !search)
		return false;
	bool four = is4(address), last = !search->step;
	__u32 base = four ? IPV4_LENGTH : 0, step = search->step, length = search->length;
	struct prefix_key key;
	struct peer_row *row = NULL;
	if (last || uses(rules, four, length, length + step - 1)) {
		cut(&key, address, last ? search->best : base + length);
		row = bpf_map_lookup_elem(&prefixes, &key);
	}
	const struct peer *peer = row ? &row->in[rules->slot & ACTIVE_SLOT] : NULL;
	bool longer = peer && peer->flags;
	if (longer && (peer->flags & PEER_COVERED))
		search->best = peer->best;
	if (longer && (peer->flags & PEER_HERE)) {
		search->is = know(&search->party, peer);
		search->known = search->best;
	}
	search->step = step >>= 1;
	search->length = longer ? length + step : length - step;
	return !last && (step || search->best != search->known);
}

// Whether the ruleset has an address by itself, not merely as one of a prefix.
static __always_inline bool is_host(const struct ruleset *rules, const struct address *address)
{
	struct prefix_key key = {.length = HOST_LENGTH};
	memcpy(key.address, address, sizeof(key.address));
	struct peer_row *row = rules ? bpf_map_lookup_elem(&peers, &key) : NULL;
	return row && row->in[rules->slot & ACTIVE_SLOT].flags;
}

// Fills party; 0 if no peer of the ruleset has the address.
STAGE int identify(const struct ruleset *rules, const struct address *address, struct party *party)
{
	if (!rules || !address || !party)
		return false;
	union { // one after the other: stack is scarce
		struct prefix_key key;
		struct search search;
	} look_for = {.key = {.length = HOST_LENGTH}};
	memcpy(look_for.key.address, address, sizeof(look_for.key.address));
	struct peer_row *row = bpf_map_lookup_elem(&peers, &look_for.key);
	if (row) {
		const struct peer *peer = &row->in[rules->slot & ACTIVE_SLOT];
		if (peer->flags)
			return know(party, peer);
	}
	bool four = is4(address);
	if (four ? rules->lengths4 : rules->lengths6[0] | rules->lengths6[1]) {
		__u32 half = four ? 16 : 64;
		look_for.search = (struct search){.known = -1, .best = -1, .length = half, .step = half};
		if (uses(rules, four, 0, 0))
			look_for.search.best = four ? IPV4_LENGTH : 0;
		for (int i = 0; i < MOST_LOOKS && look(rules, address, &look_for.search); i++)
			;
		if (look_for.search.known >= 0) {
			*party = look_for.search.party;
			return look_for.search.is;
		}
	}
	*party = (struct party){.identity = IDENTITY_WORLD, .group = GROUP_WORLD};
	return 0;
}

// Whether an enforcement point that decides by itself must refuse: if the port's
// group, or that of either address, enforces.
STAGE int strict(const struct passage *at)
{
	struct party party = {};
	if (!at)
		return false;
	const struct ruleset *rules = rules_of(at);
	if (!rules)
		return false;
	if (at->closed || (at->identity && group_enforces(rules, at->group)))
		return true;
	identify(rules, &at->packet.source, &party);
	if (group_enforces(rules, party.group))
		return true;
	identify(rules, &at->packet.destination, &party);
	return group_enforces(rules, party.group);
}
