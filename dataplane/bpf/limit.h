// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// How fast flows may begin: the twin of Limit.Take. One moment is all there is to
// remember, when the next turn is due, and it changes by one store.
#pragma once

#include "kernel.h"

#define TURN_ATTEMPTS 16 // against other processors; who loses them all is refused

// Takes the turn of one more flow, if it has come.
static __always_inline bool take_turn(__u64 *due, __u64 now, __u64 every)
{
	for (int i = 0; i < TURN_ATTEMPTS; i++) {
		__u64 was = *(volatile __u64 *)due, turn = was > now ? was : now;
		if (turn - now > LIMIT_AHEAD)
			return false;
		if (__sync_val_compare_and_swap(due, was, turn + every) == was)
			return true;
	}
	return false;
}
