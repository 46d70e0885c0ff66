//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The pure parts alone, for tests: XDP takes frames as short as 14 bytes, which
// BPF_PROG_RUN refuses for tc. Never attached.

#include "limit.h"
#include "parse.h"
#include "speech.h"
#include "tags.h"

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

// Writes what is known of a frame's tags over its first bytes.
SEC("xdp")
int read_frame_tags(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	if (data + sizeof(struct ethernet) > end)
		return -1;
	*(__u64 *)data = read_tags(LINK_WIRE, data, end);
	return 0;
}

// Reads a struct speech and names what is spoken.
SEC("xdp")
int read_speech(struct xdp_md *xdp)
{
	struct speech speech;
	struct speech *given = (void *)(long)xdp->data;
	if ((void *)(given + 1) > (void *)(long)xdp->data_end || given->length > SPEECH_WINDOW)
		return -1;
	speech = *given;
	return classify(&speech);
}

// Reads a struct speech and the number of a protocol behind it.
SEC("xdp")
int read_as(struct xdp_md *xdp)
{
	struct speech speech;
	struct speech *given = (void *)(long)xdp->data;
	__u32 *protocol = (void *)(given + 1);
	if ((void *)(protocol + 1) > (void *)(long)xdp->data_end || given->length > SPEECH_WINDOW)
		return -1;
	speech = *given;
	return speaks(&speech, *protocol);
}

// Reads three numbers, when a turn is due, what time it is and how long one takes;
// writes when the next is due, and says whether this one had come.
SEC("xdp")
int take_one(struct xdp_md *xdp)
{
	__u64 *given = (void *)(long)xdp->data;
	if ((void *)(given + 3) > (void *)(long)xdp->data_end)
		return -1;
	__u64 due = given[0];
	bool taken = take_turn(&due, given[1], given[2]);
	given[0] = due;
	return taken;
}

char _license[] SEC("license") = "Dual BSD/GPL";
