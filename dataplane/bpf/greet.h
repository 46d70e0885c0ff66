// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What clients of TLS say before anything is encrypted, their ClientHello, is told
// piece by piece: the agent puts it together and reads the names in it. Only the
// flow's owner tells, until the server speaks, what lies within GREETING_REACH.
#pragma once

#include "report.h"

#define GREETING_REACH (32 << 10)
#define GREETING_PACKETS 4096 // of the flow, and bytes, both directions: a byte a segment
#define GREETING_BYTES (256 << 10)
#define GREETING_PIECES 4 // of a super-frame

// Whether there may be more to tell of a flow: what passed is bounded, whatever is
// in its sequence numbers.
static __always_inline bool may_greet(const struct flow *flow)
{
	return flow->packets <= GREETING_PACKETS && flow->bytes <= GREETING_BYTES;
}

// The record of a flow that may be told of here, begun; or NULL.
static __always_inline struct greeting *draft_of(const struct passage *at, struct flow *flow)
{
	__u32 zero = 0;
	struct greeting *draft = bpf_map_lookup_elem(&greeting_drafts, &zero);
	if (!draft || !flow || owner_of(flow) != at->ifindex || !may_greet(flow))
		return NULL;
	describe_flow(&draft->event, flow, EVENT_GREETING);
	draft->event.time = bpf_ktime_get_ns();
	draft->event.bytes = (flow->bytes & EVENT_BYTES) | (__u64)SPEECH_TLS << EVENT_SPEECH_SHIFT;
	return draft;
}

// Tells that nobody can say what the client says: it said something twice and otherwise,
// or what it begins from. Its record has no bytes.
STAGE int tell_doubt(const struct passage *at)
{
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	struct greeting *draft = at ? draft_of(at, flow) : NULL;
	struct tally *t = tally();
	if (!draft || !t)
		return 0;
	draft->offset = draft->size = 0;
	t->greeted++;
	if (bpf_ringbuf_output(&greetings, draft, sizeof(*draft) - GREETING_PIECE, 0))
		t->ungreeted++;
	return 0;
}

// Tells the bytes of a frame from an offset on, which are some of what the client
// says, from a place on.
STAGE int tell_greeting(struct __sk_buff *skb, const struct passage *at, __u32 offset, __u32 size, __u32 place)
{
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	struct greeting *draft = at ? draft_of(at, flow) : NULL;
	struct tally *t = tally();
	if (!draft || !t)
		return 0;
	for (__u32 i = 0; i < GREETING_PIECES && size > 0 && place < GREETING_REACH; i++) {
		__u32 piece = size < GREETING_PIECE ? size : GREETING_PIECE;
		barrier_var(piece);
		if (piece == 0 || piece > GREETING_PIECE || bpf_skb_load_bytes(skb, offset, draft->bytes, piece))
			return 0;
		draft->offset = place;
		draft->size = piece;
		t->greeted++;
		if (bpf_ringbuf_output(&greetings, draft, sizeof(*draft) - GREETING_PIECE + piece, 0))
			t->ungreeted++;
		offset += piece;
		place += piece;
		size -= piece;
	}
	return 0;
}
