// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Which ruleset a packet is judged by, chosen once when it begins, and when the last
// packet that chose another is through. Nothing here waits or locks: the agent does
// the waiting, by watching every processor come out of the packet that it is in.
#pragma once

#include "report.h"

// The word that counts at a moment. The deadline of a ruleset that nobody has
// confirmed is part of the choice, by the clock that the packet has anyway: from
// then on the one before counts.
static __always_inline __u64 word_at(const struct active *row, __u64 now, __u8 *left)
{
	__u64 word = *(volatile __u64 *)&row->word;
	const struct term *term = &row->terms[word >> ACTIVE_TERM_SHIFT & 1];
	if (now < *(volatile __u64 *)&term->deadline)
		return word;
	*left = (word & ACTIVE_SLOT) + 1;
	return term->back;
}

static __always_inline void choose(struct passage *at)
{
	__u32 zero = 0;
	struct active *row = bpf_map_lookup_elem(&active, &zero);
	if (!row)
		return;
	__u8 left = 0;
	__u64 word = word_at(row, at->now, &left);
	at->left = left;
	at->ruled = word != 0;
	at->index = word & ACTIVE_SLOT;
	at->epoch = word >> ACTIVE_EPOCH_SHIFT;
}

// A processor is inside from before the choice until after the verdict. A packet
// may come while a program runs for a test, so there may be more than one.
static __always_inline struct presence *enter(void)
{
	__u32 zero = 0;
	struct presence *presence = bpf_map_lookup_elem(&presences, &zero);
	if (presence)
		*(volatile __u64 *)&presence->inside = presence->inside + 1;
	barrier();
	return presence;
}

static __always_inline void leave(struct presence *presence)
{
	barrier();
	if (!presence)
		return;
	__u64 inside = presence->inside - 1;
	*(volatile __u64 *)&presence->inside = inside;
	if (!inside)
		presence->turns++;
}
