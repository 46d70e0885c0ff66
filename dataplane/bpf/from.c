//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Host side of a workload's interface, ingress: what the workload sends.

#include "enforce.h"

SEC("tcx/ingress")
int from_workload(struct __sk_buff *skb)
{
	struct presence *presence = enter();
	int what = enforce(skb, true);
	leave(presence);
	return what;
}
