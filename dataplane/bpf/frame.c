//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The parser alone, for tests: XDP takes frames as short as 14 bytes, which
// BPF_PROG_RUN refuses for tc. Never attached.

#include "parse.h"

SEC("xdp")
int parse_frame(struct xdp_md *xdp)
{
	struct packet p = {};
	struct frame f = {
		.data = (void *)(long)xdp->data,
		.end = (void *)(long)xdp->data_end,
		.length = xdp->data_end - xdp->data,
	};
	return parse(&f, &p) ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
