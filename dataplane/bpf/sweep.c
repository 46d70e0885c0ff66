//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What time does, run by the agent every now and then: flows end, refusals and
// unanswered questions that nothing brought up again are told. A row goes only
// when its event found room.

#include "table.h"

#define CLOSED_PERIOD (10 * SECOND)
#define OPENING_PERIOD (120 * SECOND)
#define TCP_PERIOD (5ULL * 86400 * SECOND) // as nf_conntrack
#define DATAGRAM_PERIOD (30 * SECOND)
#define STREAM_PERIOD (120 * SECOND)
#define OTHER_PERIOD (600 * SECOND)
#define REFUSAL_PERIOD (10 * SECOND)
#define ANSWER_PERIOD (400 * MILLISECOND)
#define DARK_PERIOD (5 * SECOND)
#define QUESTION_PERIOD (60 * SECOND)

struct round {
	__u64 now;
	__u64 live;
	__u64 ended;
	__u32 ifindex;
	__u32 pad;
};

static __always_inline __u64 patience(const struct flow *flow, __u64 word)
{
	switch (flow->key.protocol) {
	case PROTOCOL_TCP:
		return FLOW_CLOSED(word) ? CLOSED_PERIOD : word & FLOW_ESTABLISHED ? TCP_PERIOD : OPENING_PERIOD;
	case PROTOCOL_UDP:
		return word & FLOW_REPLIED ? STREAM_PERIOD : DATAGRAM_PERIOD;
	case PROTOCOL_ICMP:
	case PROTOCOL_ICMPV6:
		return DATAGRAM_PERIOD;
	}
	return OTHER_PERIOD;
}

static long sweep_bucket(void *map, const __u32 *index, struct bucket *bucket, struct round *round)
{
	for (int i = 0; i < WAYS; i++) {
		struct flow *flow = &bucket->rows[i];
		__u64 word = word_of(flow);
		if (!(word & FLOW_LIVE))
			continue;
		bool orphan = round->ifindex && owner_of(flow) == round->ifindex;
		__u32 idle = (__u32)(round->now >> BEAT_SHIFT) - flow->seen;
		if ((__s32)idle < 0)
			idle = 0; // seen since the sweep began
		if (!orphan && idle < patience(flow, word) >> BEAT_SHIFT) {
			round->live++;
			continue;
		}
		if (!end_flow(flow, word, false)) {
			round->live++; // the ring is full: next time
			return 1;
		}
		round->ended++;
	}
	return 0;
}

static long sweep_refusal(void *map, const struct refusal_key *key, struct refusal *refusal, struct round *round)
{
	__u64 last = refusal->reported;
	if (last > round->now || round->now - last < REPORT_PERIOD)
		return 0;
	if (refusal->packets) {
		struct refusal_key copy = *key;
		if (__sync_val_compare_and_swap(&refusal->reported, last, round->now) == last &&
		    !report_refusal(&copy, refusal))
			refusal->reported = last;
	} else if (round->now - last > REFUSAL_PERIOD) {
		bpf_map_delete_elem(map, key);
	}
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
	bpf_ringbuf_submit(event, 0);
	asked->count = 0;
	asked->reported = round->now;
	return 0;
}

SEC("syscall")
int sweep(struct sweep_order *order)
{
	struct round round = {.now = bpf_ktime_get_ns(), .ifindex = order->ifindex};
	if (order->tables & SWEEP_FLOWS)
		bpf_for_each_map_elem(&flows, sweep_bucket, &round, 0);
	if (order->tables & SWEEP_REPORTS) {
		bpf_for_each_map_elem(&refusals, sweep_refusal, &round, 0);
		bpf_for_each_map_elem(&folded, sweep_refusal, &round, 0);
		bpf_for_each_map_elem(&questions, sweep_question, &round, 0);
	}
	order->live = round.live;
	order->ended = round.ended;
	return 0;
}
