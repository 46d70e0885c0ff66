// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// When a flow speaks after it was silent: a histogram of the silences, and of how
// much was said between them. Who keeps one connection open to call home is seen
// by this alone. A packet pays one comparison of two words that its row has ready;
// the packet that breaks a silence pays for a table of its own, in sets of few
// rows, each set with a lock: no more than four bursts a second come of a flow.
//
// Whose a row is says the flow's key, and it is given back while the flow's row is
// taken to end it, so that no two flows are ever counted together: who comes later
// finds under the lock that the flow is over.
#pragma once

#include "report.h"

// Open configures it: a power of two.
const volatile __u32 cadence_sets = 1 << 11;

#define SILENCE_BEATS 64 // and more end a burst: 268 ms
#define CADENCE_LEAST 3  // gaps: fewer say nothing
#define CADENCE_CHANCE 8 // in how many bursts one displaces a row

static __always_inline struct paces *paces_of(const struct flow *flow)
{
	__u32 index = (flow->word >> FLOW_TAG_SHIFT) & (cadence_sets - 1);
	return bpf_map_lookup_elem(&cadences, &index);
}

static __always_inline bool is_paced(const struct paced *paced, const struct flow_key *key)
{
	return paced->bursts && paced->key.address[0].high == key->address[0].high &&
	       paced->key.address[0].low == key->address[0].low && paced->key.address[1].high == key->address[1].high &&
	       paced->key.address[1].low == key->address[1].low &&
	       *(const __u64 *)&paced->key.port[0] == *(const __u64 *)&key->port[0];
}

static __always_inline void bump(__u16 *count)
{
	if (*count != 0xffff)
		++*count;
}

// Whether two numbers differ by no more than a quarter of the greater one.
static __always_inline bool is_like(__u64 a, __u64 b)
{
	__u64 more = a > b ? a : b, less = a > b ? b : a;
	return more - less <= more >> 2;
}

// The octave of a gap: 0 from SILENCE_BEATS on, 1 from twice as many.
static __always_inline __u32 octave(__u32 gap)
{
	__u32 n = 0;
	for (int i = 1; i < CADENCE_GAPS; i++)
		n += gap >= (__u32)SILENCE_BEATS << i;
	return n;
}

static __always_inline __u32 size_class(__u64 bytes)
{
	__u32 n = 0;
	for (int i = 1; i < CADENCE_SIZES; i++)
		n += bytes >= 16ULL << 4 * i;
	return n;
}

// Counts a gap, and the burst before it, which is over now.
static __always_inline void pace(struct paced *paced, __u64 bytes, __u32 gap, __u32 beat, __u32 second)
{
	struct cadence *c = &paced->cadence;
	__u64 size = bytes - paced->bytes;
	__u32 length = octave(gap), class = size_class(size);
	__u32 began = paced->second ? 1 : 0;
	second = second ? 1 : 0;
	if (length < CADENCE_GAPS)
		bump(&c->gaps[second][length]);
	if (class < CADENCE_SIZES)
		bump(&c->sizes[began][class]);
	c->gap_beats += gap;
	c->gap_squares += (__u64)gap * gap;
	if (paced->bursts > 1 && is_like(gap, paced->gap))
		bump(&c->alike);
	if (paced->bursts > 1 && is_like(size, paced->size))
		bump(&c->alike_sizes);
	paced->bytes = bytes;
	paced->size = size;
	paced->gap = gap;
	paced->beat = beat;
	paced->second = second;
	if (paced->bursts != 0xffff)
		paced->bursts++;
}

// A packet, of the flow's destination (`answers`) or source, breaks a silence. The
// burst that began with the flow was the source's. Where a set is full, the flow
// whose last burst is oldest gives way now and then: seldom enough that those that
// are there gather something, and often enough that nobody who fills the table keeps
// the rest out of it. What goes uncounted is counted.
STAGE int break_silence(struct flow *flow, __u64 word, __u32 beat, __u32 answers)
{
	if (!flow)
		return 0;
	__u32 was = *(volatile __u32 *)&flow->seen, gap = beat - was;
	if ((__s32)gap < SILENCE_BEATS || __sync_val_compare_and_swap(&flow->seen, was, beat) != was)
		return 0; // another processor has its packet
	struct paces *paces = paces_of(flow);
	struct tally *t = tally();
	if (!paces || !t)
		return 0;
	bool crowded = false;
	bpf_spin_lock(&paces->lock);
	if (!((*(volatile __u64 *)&flow->word ^ word) & (FLOW_TAG | FLOW_VERSION | FLOW_LIVE | FLOW_WRITING))) {
		struct paced *mine = NULL, *oldest = &paces->rows[0];
		for (int i = 0; i < PACES; i++) {
			struct paced *row = &paces->rows[i];
			if (is_paced(row, &flow->key))
				mine = row;
			if (!row->bursts || (oldest->bursts && (__s32)(row->beat - oldest->beat) < 0))
				oldest = row;
		}
		crowded = !mine && oldest->bursts;
		if (!mine && (!crowded || beat % CADENCE_CHANCE == 0)) {
			mine = oldest;
			memset(mine, 0, sizeof(*mine));
			mine->key = flow->key;
			mine->bursts = 1;
		}
		if (mine)
			pace(mine, flow->bytes, gap, beat, answers);
	}
	bpf_spin_unlock(&paces->lock);
	if (crowded)
		t->unpaced++;
	return 0;
}

// Notes when a flow was seen, and whether it had been silent.
static __always_inline void see(struct flow *flow, __u64 word, __u32 beat, bool original)
{
	__u32 was = flow->seen;
	if (was == beat)
		return;
	if ((__s32)(beat - was) >= SILENCE_BEATS)
		break_silence(flow, word, beat, !original);
	else
		flow->seen = beat;
}

// Tells the cadence of a flow that has one, all of it since the flow began. A flow
// that ends gives its row back, told or not.
STAGE int report_cadence(const struct flow *flow, __u32 ends)
{
	if (!flow)
		return 0;
	struct paces *paces = paces_of(flow);
	struct paced *mine = NULL;
	if (!paces)
		return 0;
	__u32 at = PACES, bursts = 0;
	for (int i = 0; i < PACES; i++) {
		if (is_paced(&paces->rows[i], &flow->key)) {
			at = i;
			bursts = paces->rows[i].bursts;
		}
	}
	if (at >= PACES)
		return 0;
	mine = &paces->rows[at];
	struct cadence_event *told = bursts > CADENCE_LEAST ? event_begin_sized(sizeof(*told)) : NULL;
	if (!told) {
		bpf_spin_lock(&paces->lock);
		if (ends && is_paced(mine, &flow->key))
			mine->bursts = 0;
		bpf_spin_unlock(&paces->lock);
		return 0;
	}
	describe_flow(&told->event, flow, EVENT_CADENCE);
	bpf_spin_lock(&paces->lock);
	bool still = is_paced(mine, &flow->key);
	told->cadence = mine->cadence;
	if (ends && still)
		mine->bursts = 0;
	bpf_spin_unlock(&paces->lock);
	if (still)
		event_end(told);
	else
		event_withdraw(told);
	return 0;
}
