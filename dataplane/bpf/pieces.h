// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Which pieces of a packet were seen, in one word: how far they reach, the one stretch
// before that which may be missing, and where the packet ends. A piece fits where
// nothing was seen yet. Pure.
#pragma once

#include "kernel.h"

// What no piece fits, of a packet that is to make room for another.
#define PIECES_REPLACED (PIECES_PLACE | 1ULL << PIECES_GAP_END_SHIFT | PIECES_PLACE << PIECES_LAST_SHIFT)

#define PIECE_ATTEMPTS 8 // against other processors; who loses them all is refused

static __always_inline bool is_whole(__u64 seen)
{
	__u32 reach = seen & PIECES_PLACE, last = seen >> PIECES_LAST_SHIFT & PIECES_PLACE;
	return last && reach == last && !(seen >> PIECES_GAP_END_SHIFT & PIECES_PLACE);
}

// The word with one more piece; 0 if it does not fit.
static __always_inline __u64 with_piece(__u64 seen, __u32 from, __u32 to, bool more)
{
	__u32 reach = seen & PIECES_PLACE, last = seen >> PIECES_LAST_SHIFT & PIECES_PLACE;
	__u32 gap = seen >> PIECES_GAP_SHIFT & PIECES_PLACE, gap_end = seen >> PIECES_GAP_END_SHIFT & PIECES_PLACE;
	if (!more && (last || to < reach))
		return 0; // the end is known, or cannot be here
	if (last && to > last)
		return 0;
	if (from >= reach) {
		if (from > reach) {
			if (gap_end)
				return 0; // one stretch may be missing, not two
			gap = reach;
			gap_end = from;
		}
		reach = to;
	} else if (from == gap && to <= gap_end) {
		gap = to;
	} else if (from > gap && to == gap_end) {
		gap_end = from;
	} else {
		return 0;
	}
	if (gap == gap_end)
		gap = gap_end = 0;
	if (!more)
		last = to;
	return reach | (__u64)gap << PIECES_GAP_SHIFT | (__u64)gap_end << PIECES_GAP_END_SHIFT |
	       (__u64)last << PIECES_LAST_SHIFT;
}

// Notes a later piece; false if it does not fit.
static __always_inline bool take_piece(__u64 *seen, __u32 from, __u32 to, bool more)
{
	for (int i = 0; i < PIECE_ATTEMPTS; i++) {
		__u64 was = *(volatile __u64 *)seen, is = with_piece(was, from, to, more);
		if (!is)
			return false;
		if (__sync_val_compare_and_swap(seen, was, is) == was)
			return true;
	}
	return false;
}
