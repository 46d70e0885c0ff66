//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Host side of a workload's interface, egress: what goes to the workload.

#include "enforce.h"

SEC("tcx/egress")
int to_workload(struct __sk_buff *skb)
{
	struct presence *presence = enter();
	int what = enforce(skb, false);
	leave(presence);
	return what;
}
