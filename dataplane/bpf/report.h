// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What is told: counters of every packet by reason, events of flows, refusals
// counted together. Nothing is lost in silence: what finds no room is counted.
#pragma once

#include "maps.h"
#include "parse.h"

#define REPORT_PERIOD SECOND       // of a refusal that goes on
#define REFUSAL_PERIOD (10 * SECOND) // after which a row without refusals is idle
#define UPDATE_ROUNDS (30 * SECOND >> ROUND_SHIFT) // of a flow that goes on

// A TCP packet that cannot open a flow opens one all the same for a while after
// its port was attached, or after flows were forgotten that may live: it belongs
// to one that was there before. Other protocols have no such packets. Open
// configures the period.
const volatile __u64 pickup_period = 2ULL * 3600 * SECOND + 900 * SECOND;

// A row that was found, and its word then. Rows are numbered from 1 where they are
// handed from stage to stage; 0 is none.
struct found {
	__u64 word;
	__u32 row;
	__u32 free; // where there is none: a row that it could have; 0: not known
};

// What is known of the packet in hand. Stages cannot hand pointers into maps to
// each other, so they hand what leads there.
struct passage {
	struct packet packet;
	struct flow_key key; // of its flow
	__u64 now;      // coarse
	__u32 ifindex;
	__u32 identity; // of the port; 0: nobody vouches for it
	__u32 group;
	__u32 epoch;
	__u32 length;   // of the IP packet, in bytes
	__u16 segments; // packets in it
	__u8 from;      // the workload sent it
	__u8 original;  // it goes the way that its flow was opened
	__u8 news;      // its flow is new, or judged otherwise than before
	__u8 ruled;     // there is a ruleset
	__u8 index;     // of the ruleset: its slot
	__u8 closed : 1; // nobody vouches for the port, and that is reason enough to refuse
	__u8 young : 1;  // the port was attached not long ago
	__u8 pieced : 1; // a first piece was found to be allowed
	__u8 left : 3;   // one more than the slot of the ruleset that was left, or 0
	__u8 strange : 1; // it has tags that nobody can say the meaning of
	__u32 link;     // of a wire: LINK_*
	struct found found; // the row of its flow
};

// What becomes of it, and why.
struct outcome {
	__u64 until;  // monotonic ns: when it ends by itself
	__u32 source; // identities
	__u32 destination;
	__u32 decision;
	__u16 differs; // of the candidate that decides reach otherwise; see differing
	__u16 profile;
	__u8 verdict;
	__u8 would;
	__u8 reason;
	__u8 fail_open : 1;
	__u8 limited : 1; // flows may begin only so fast
	__u8 enrolled; // the destination has an enforcement point
	__u8 partial;  // one end is known to this point only: the other must judge too
	__u8 expects;  // what the flow must speak
	__u8 speech;   // what it was heard to speak
};

static __always_inline struct ruleset *rules_of(const struct passage *at)
{
	__u32 index = at->index & ACTIVE_SLOT;
	return at->ruled ? bpf_map_lookup_elem(&rulesets, &index) : NULL;
}

static __always_inline __u32 generation_of(const struct passage *at)
{
	struct ruleset *rules = rules_of(at);
	return rules ? rules->generation : 0;
}

// An interface that nobody vouches for, where that means something.
static __always_inline bool is_unknown(const struct passage *at)
{
	return at->ruled && !at->identity;
}

static __always_inline __u64 coarse_now(void)
{
	__u32 zero = 0;
	struct presence *presence = bpf_map_lookup_elem(&presences, &zero);
	__u64 tick = bpf_jiffies64();
	if (!presence)
		return bpf_ktime_get_coarse_ns();
	if (presence->tick != tick) {
		presence->now = bpf_ktime_get_coarse_ns();
		presence->tick = tick;
	}
	return presence->now;
}

static __always_inline void count(__u32 reason, bool refused, __u32 packets, __u32 bytes)
{
	__u32 index = (reason & (REASONS - 1)) + (refused ? REASONS : 0);
	struct counter *counter = bpf_map_lookup_elem(&counters, &index);
	if (counter) {
		counter->packets += packets;
		counter->bytes += bytes;
	}
}

static __always_inline struct tally *tally(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&tallies, &zero);
}

// Every record in the ring buffer begins with an event.
static __always_inline void *event_begin_sized(__u64 bytes)
{
	struct tally *t = tally();
	if (!t)
		return NULL;
	t->offered++;
	struct event *event = bpf_ringbuf_reserve(&events, bytes, 0);
	if (!event)
		t->lost++;
	else
		event->time = bpf_ktime_get_ns();
	return event;
}

// The agent looks into the ring often enough; to wake it for every event would cost
// a new connection more than all that is decided about it. It is woken each time
// that as much again waits. Each processor asks how much that is once in so many
// events. Open configures both, powers of two.
const volatile __u64 wake_bytes = 1 << 16;
const volatile __u64 wake_events = 16;

static __always_inline void event_end(void *event)
{
	struct tally *t = tally();
	bool wake = false;
	if (t && !(t->offered & (wake_events - 1))) {
		__u64 parts = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) / wake_bytes;
		wake = parts > t->waited;
		t->waited = parts;
	}
	bpf_ringbuf_submit(event, wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

static __always_inline struct event *event_begin(void)
{
	return event_begin_sized(sizeof(struct event));
}

// Takes back an event that there is nothing to say in.
static __always_inline void event_withdraw(void *event)
{
	struct tally *t = tally();
	if (t)
		t->offered--;
	bpf_ringbuf_discard(event, 0);
}

// Which end of the key is the owner's: the one that it stands before.
static __always_inline bool own_end(__u64 flags)
{
	return !!(flags & FLOW_SECOND) != !!(flags & FLOW_TO);
}

static __always_inline __u32 owner_of(const struct flow *flow)
{
	return flow->ifindex[own_end(flow->word)];
}

// Number of the candidate that is evaluated beside the ruleset in force, or 0.
static __always_inline __u32 candidate_now(void)
{
	__u32 zero = 0;
	struct active *word = bpf_map_lookup_elem(&active, &zero);
	return word ? word->candidate : 0;
}

// The number of a candidate as rows have room for it.
static __always_inline __u16 differing(__u32 candidate)
{
	return candidate ? candidate % 0xffff + 1 : 0;
}

// Bits of a row's speech while it is watched.
#define SPEECH_SOURCE_SPOKE 0x40
#define SPEECH_DESTINATION_SPOKE 0x80
#define SPEECH_KNOWN 0x1f

static __always_inline __u8 spoken_of(const struct flow *flow)
{
	return flow->word & FLOW_WATCHED ? flow->speech & SPEECH_KNOWN : flow->speech;
}

static __always_inline void describe_flow(struct event *event, const struct flow *flow, __u32 kind)
{
	__u32 flags = flow->word;
	const struct flow_key *key = &flow->key;
	bool second = flags & FLOW_SECOND;
	bool closed = (flags & FLOW_RESET) || (flags & (FLOW_FIN_SOURCE | FLOW_FIN_DESTINATION)) ==
						      (FLOW_FIN_SOURCE | FLOW_FIN_DESTINATION);
	event->source = flow->source;
	event->destination = flow->destination;
	event->source_port = key->port[second];
	event->destination_port = flow->service;
	event->protocol = key->protocol;
	event->kind = kind | (flags & FLOW_TO ? EVENT_TO : 0) | (flags & FLOW_REPLIED ? EVENT_REPLIED : 0) |
		      (closed ? EVENT_CLOSED : 0) |
		      (flow->differs && flow->differs == differing(candidate_now()) ? EVENT_DIFFERS : 0);
	event->verdict = flow->verdicts;
	event->reason = flow->reason;
	event->decision = flow->decision;
	event->generation = flow->generation;
	event->ifindex = owner_of(flow);
	event->packets = flow->packets > 0xffffffff ? 0xffffffff : flow->packets;
	event->bytes = (flow->bytes & EVENT_BYTES) | (__u64)spoken_of(flow) << EVENT_SPEECH_SHIFT;
	event->remote = key->address[!own_end(flags)];
}

// Tells a moment of a flow; false if it found no room.
STAGE int report_flow(const struct flow *flow, __u32 kind)
{
	if (!flow)
		return false;
	struct event *event = event_begin();
	if (!event)
		return false;
	describe_flow(event, flow, kind);
	event_end(event);
	return true;
}

// Tells a refusal and how often it happened since it was told last.
STAGE int report_refusal(const struct refusal_key *key, struct refusal *refusal)
{
	if (!key || !refusal)
		return false;
	struct event *event = event_begin();
	if (!event)
		return false;
	__u64 packets = __sync_lock_test_and_set(&refusal->packets, 0) & ~REFUSAL_IDLE;
	event->source = refusal->source;
	event->destination = refusal->destination;
	event->source_port = refusal->source_port;
	event->destination_port = key->service;
	event->protocol = key->protocol;
	event->kind = EVENT_REFUSED | (key->to ? EVENT_TO : 0) | (key->differs ? EVENT_DIFFERS : 0);
	event->verdict = key->verdict | key->would << 4;
	event->reason = key->reason;
	event->decision = refusal->decision;
	event->generation = refusal->generation;
	event->ifindex = key->ifindex;
	event->packets = packets > 0xffffffff ? 0xffffffff : packets;
	event->bytes = (__sync_lock_test_and_set(&refusal->bytes, 0) & EVENT_BYTES) |
		       (__u64)refusal->speech << EVENT_SPEECH_SHIFT;
	event->remote = key->to ? key->source : key->destination;
	event_end(event);
	return true;
}

static __always_inline __u16 service_of(const struct packet *p)
{
	if (p->protocol == PROTOCOL_ICMP || p->protocol == PROTOCOL_ICMPV6)
		return p->type << 8 | p->code;
	return p->destination_port;
}

// Counts onto a row, unless that goes. A row that was idle may: an idle row goes a
// second after it was found to be, when nobody who saw it before is still about to
// count. Bytes are counted first, so that a row without packets has none either.
#define COUNTED_NOT 0
#define COUNTED 1
#define COUNTED_FIRST 2 // the row was idle
static __always_inline int count_refusal(struct refusal *row, __u64 segments, __u64 length)
{
	__u64 packets = *(volatile __u64 *)&row->packets;
	if (packets == REFUSAL_GONE)
		return COUNTED_NOT;
	__sync_fetch_and_add(&row->bytes, length);
	if (packets == REFUSAL_IDLE) {
		packets = __sync_val_compare_and_swap(&row->packets, REFUSAL_IDLE, segments);
		if (packets == REFUSAL_IDLE)
			return COUNTED_FIRST;
		if (packets == REFUSAL_GONE)
			return COUNTED_NOT;
	}
	__sync_fetch_and_add(&row->packets, segments);
	return COUNTED;
}

// What is left over is told. A row that nothing came to for long is taken away in two
// turns, a second and more apart: in the first it is marked, which whoever counts sees
// and undoes; in the second it goes, unless somebody did.
static __always_inline void settle_refusal(void *map, const struct refusal_key *key, struct refusal *refusal, __u64 now)
{
	__u64 last = refusal->reported;
	if (last > now || now - last < REPORT_PERIOD)
		return;
	__u64 packets = *(volatile __u64 *)&refusal->packets;
	if (packets == REFUSAL_IDLE) {
		if (__sync_val_compare_and_swap(&refusal->packets, REFUSAL_IDLE, REFUSAL_GONE) == REFUSAL_IDLE)
			bpf_map_delete_elem(map, key);
	} else if (packets) {
		struct refusal_key copy = *key;
		if (__sync_val_compare_and_swap(&refusal->reported, last, now) == last &&
		    !report_refusal(&copy, refusal))
			refusal->reported = last;
	} else if (now - last > REFUSAL_PERIOD &&
		   __sync_val_compare_and_swap(&refusal->packets, 0, REFUSAL_IDLE) == 0) {
		refusal->reported = now;
	}
}

// Counts a refusal with those that look the same; reports the first at once, and
// then at most one a second. Sweeps report what is left over. Where the table is
// full, refusals of a port that share a reason are counted in one row.
STAGE int account(const struct passage *at, const struct outcome *out, __u32 reversed)
{
	if (!at || !out)
		return 0;
	const struct packet *p = &at->packet;
	struct refusal_key key = {
		.source = reversed ? p->destination : p->source,
		.destination = reversed ? p->source : p->destination,
		.ifindex = at->ifindex,
		.service = reversed ? p->source_port : service_of(p),
		.protocol = p->protocol,
		.reason = out->reason,
		.verdict = out->verdict,
		.would = out->would,
		.to = !at->from != !!reversed,
		.differs = !!out->differs,
		.decision = out->decision,
	};
	struct refusal fresh = {
		.source = out->source,
		.destination = out->destination,
		.source_port = reversed ? p->destination_port : p->source_port,
	};
	struct refusal *row = bpf_map_lookup_elem(&refusals, &key);
	int counted = row ? count_refusal(row, at->segments, at->length) : COUNTED_NOT;
	if (!row || counted == COUNTED_NOT) {
		bpf_map_update_elem(&refusals, &key, &fresh, BPF_NOEXIST);
		row = bpf_map_lookup_elem(&refusals, &key);
		counted = row ? count_refusal(row, at->segments, at->length) : COUNTED_NOT;
		if (!row || counted == COUNTED_NOT) {
			struct tally *t = tally();
			if (t)
				t->folded++;
			memset(&key.source, 0, sizeof(key.source));
			memset(&key.destination, 0, sizeof(key.destination));
			key.service = 0;
			key.protocol = 0;
			key.decision = 0;
			fresh.source_port = 0;
			*(key.to ? &fresh.source : &fresh.destination) = IDENTITY_UNKNOWN; // the remote one
			bpf_map_update_elem(&folded, &key, &fresh, BPF_NOEXIST);
			row = bpf_map_lookup_elem(&folded, &key);
			counted = row ? count_refusal(row, at->segments, at->length) : COUNTED_NOT;
		}
		if (!row || counted == COUNTED_NOT)
			return 0; // the counters have it
	}
	row->source = fresh.source;
	row->destination = fresh.destination;
	row->decision = out->decision;
	row->generation = generation_of(at);
	row->speech = out->speech;
	__u64 last = row->reported;
	if (counted != COUNTED_FIRST && last && at->now - last < REPORT_PERIOD)
		return 0;
	if (__sync_val_compare_and_swap(&row->reported, last, at->now) != last)
		return 0; // another processor reports it
	if (!report_refusal(&key, row))
		row->reported = last; // no room: the count waits
	return 0;
}
