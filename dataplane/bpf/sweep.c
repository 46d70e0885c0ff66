//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What time does, run by the agent every now and then: flows end, refusals and
// unanswered questions that nothing brought up again are told. A row goes only
// when its event found room. Which flows may be over the agent sees for itself, in
// the table; what ends is decided here.

#include "patience.h"

#define ANSWER_PERIOD (400 * MILLISECOND)
#define DARK_PERIOD (5 * SECOND)
#define QUESTION_PERIOD (60 * SECOND)

struct round {
	__u64 now;
};

// Ends a flow if it is over, or its owner is gone.
#define KEPT 0
#define ENDED 1
#define UNTOLD 2 // the ring has no room
STAGE int end_if_over(__u32 number, __u32 owner, __u64 now, __u32 crowded)
{
	struct flow *flow = number ? row_at(number) : NULL;
	if (!flow)
		return KEPT;
	__u64 word = word_of(flow);
	if (!(word & FLOW_LIVE))
		return KEPT;
	bool orphan = owner && owner_of(flow) == owner;
	__u32 idle = (__u32)(now >> BEAT_SHIFT) - flow->seen;
	if (!orphan && ((__s32)idle < 0 || idle < patience_with(flow, word, crowded)))
		return KEPT;
	if (end_flow(flow, number, word, false))
		return ENDED;
	return word_of(flow) == word ? UNTOLD : KEPT; // else another processor ended it
}

static __always_inline void sweep_flows(struct sweep_order *order, __u64 now)
{
	__u32 zero = 0, owner = order->ifindex;
	struct endings *list = bpf_map_lookup_elem(&endings, &zero);
	for (__u32 i = 0; list && i < ENDINGS && i < order->count; i++) {
		int end = end_if_over(list->row[i], owner, now, order->tables & SWEEP_CROWDED);
		order->ended += end == ENDED;
		if (end == UNTOLD) {
			order->full = 1;
			return;
		}
	}
}

static long sweep_refusal(void *map, const struct refusal_key *key, struct refusal *refusal, struct round *round)
{
	settle_refusal(map, key, refusal, round->now);
	return 0;
}

static long sweep_question(void *map, const struct question *key, struct asked *asked, struct round *round)
{
	if (asked->since > round->now || round->now - asked->since < ANSWER_PERIOD)
		return 0;
	if (asked->answered || !asked->count) {
		asked->count = 0;
		if (round->now - asked->since > QUESTION_PERIOD)
			bpf_map_delete_elem(&questions, key);
		return 0;
	}
	if (asked->reported && round->now - asked->reported < DARK_PERIOD)
		return 0;
	struct event *event = event_begin();
	if (!event)
		return 1;
	event->source = asked->source;
	event->destination = IDENTITY_WORLD;
	event->source_port = 0;
	event->destination_port = key->protocol ? 135 << 8 : 0;
	event->protocol = key->protocol;
	event->kind = EVENT_REFUSED;
	event->verdict = VERDICT_ALLOW | VERDICT_ALLOW << 4; // nothing was blocked
	event->reason = REASON_DARK_ADDRESS;
	event->decision = 0;
	event->generation = 0;
	event->ifindex = key->ifindex;
	event->packets = asked->count;
	event->bytes = 0;
	event->remote = key->target;
	event_end(event);
	asked->count = 0;
	asked->reported = round->now;
	return 0;
}

SEC("syscall")
int sweep(struct sweep_order *order)
{
	struct round round = {.now = bpf_ktime_get_ns()};
	if (order->tables & SWEEP_FLOWS)
		sweep_flows(order, round.now);
	if (order->tables & SWEEP_REPORTS) {
		bpf_for_each_map_elem(&refusals, sweep_refusal, &round, 0);
		bpf_for_each_map_elem(&folded, sweep_refusal, &round, 0);
		bpf_for_each_map_elem(&questions, sweep_question, &round, 0);
	}
	return 0;
}
