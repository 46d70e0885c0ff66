// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What an enforcement point does with a packet, in order: read, admit, piece
// together, track, judge, conclude; and one exit that counts and acts.
#pragma once

#include "active.h"
#include "admit.h"
#include "answer.h"
#include "fast.h"
#include "fragment.h"
#include "hear.h"
#include "limit.h"
#include "resolve.h"

static __always_inline struct frame frame_of(struct __sk_buff *skb)
{
	return (struct frame){
		.data = (void *)(long)skb->data,
		.end = (void *)(long)skb->data_end,
		.length = skb->len,
		.super = skb->gso_size != 0,
	};
}

// Linearises what headers may reach into; false if the frame is malformed.
STAGE int read_packet(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return false;
	__u32 reach = skb->len < DEPTH ? skb->len : DEPTH;
	if ((long)skb->data_end - (long)skb->data < reach)
		bpf_skb_pull_data(skb, reach);
	struct frame f = frame_of(skb);
	if (!parse(&f, p))
		return false;
	return true;
}

static __always_inline void begin(struct __sk_buff *skb, struct passage *at)
{
	at->now = coarse_now();
	at->segments = skb->gso_segs > 1 ? skb->gso_segs : 1;
	choose(at);
}

// Cuts off whoever is refused whatever they say.
static __always_inline bool cut_off(const struct passage *at, const struct ruleset *rules, __u32 identity, struct outcome *out)
{
	const struct refused *refused =
		rules->refused || at->left ? refusal_of(rules, at->left, identity, at->now) : NULL;
	if (!refused)
		return false;
	out->reason = REASON_QUARANTINE;
	out->decision = refused->decision;
	out->verdict = VERDICT_DROP;
	return true;
}

// The point decides by itself, without a rule: refused where somebody enforces or is
// cut off, else passed and told.
STAGE int decide_alone(const struct passage *at, __u32 reason, struct outcome *out)
{
	if (!at || !out)
		return 0;
	*out = (struct outcome){.until = FOREVER, .verdict = VERDICT_ALLOW, .would = VERDICT_ALLOW,
				.reason = REASON_NO_RULESET};
	const struct ruleset *rules = rules_of(at);
	if (!rules)
		return 0;
	struct party party = {};
	bool enforces = at->closed || (at->identity && group_enforces(rules, at->group));
	identify(rules, &at->packet.source, &party);
	enforces = enforces || group_enforces(rules, party.group);
	out->source = at->from ? at->identity : party.identity;
	bool cut = cut_off(at, rules, party.identity, out) || cut_off(at, rules, at->identity, out);
	identify(rules, &at->packet.destination, &party);
	enforces = enforces || group_enforces(rules, party.group);
	out->destination = at->from ? party.identity : at->identity;
	out->would = VERDICT_DROP;
	if (cut || cut_off(at, rules, party.identity, out))
		return 0;
	out->reason = reason;
	out->verdict = enforces ? VERDICT_DROP : VERDICT_ALLOW;
	return 0;
}

// Neither IP nor ARP: nothing can declare it, so it gets the default decision.
static __always_inline void decide_frame(struct passage *at, struct outcome *out)
{
	struct packet *p = &at->packet;
	p->source = p->destination = (struct address){};
	p->protocol = p->tcp_flags = p->marks = 0;
	p->source_port = 0;
	p->destination_port = p->ethertype;
	decide_alone(at, REASON_IDENTITY_UNKNOWN, out);
	const struct ruleset *rules = rules_of(at);
	if (!rules || !at->identity || out->reason == REASON_QUARANTINE)
		return;
	__u8 strictly = out->verdict;
	rule_on_cell(rules, NULL, at->now, out);
	bool refuses = !is_allowed(out->verdict);
	out->would = refuses ? VERDICT_DROP : VERDICT_ALLOW;
	out->verdict = refuses ? strictly : VERDICT_ALLOW;
}

// Judges a packet that can open no flow, of none that is known. It may still belong to
// one that was there before the port was attached; then it may well be the answering
// side that speaks first. Returns whether it is.
STAGE int pick_up(const struct passage *at, struct outcome *out)
{
	if (!at || !out)
		return false;
	const struct packet *p = &at->packet;
	if (p->protocol != PROTOCOL_TCP || !may_pick_up(at)) {
		decide_alone(at, REASON_INVALID_STATE, out);
		return false;
	}
	judge_anew(at, true, out);
	bool answers = p->tcp_flags & TCP_SYN; // and ACK
	if (answers || !at->ruled || !is_allowed(out->would)) {
		struct outcome reversed = {};
		judge_anew(at, false, &reversed);
		bool forth = is_allowed(out->would), back = is_allowed(reversed.would);
		if (!answers) // where policy knows neither way, services have the lower ports
			answers = forth == back ? p->source_port < p->destination_port : back;
		if (answers)
			*out = reversed;
	}
	if (out->verdict == VERDICT_DECOY)
		out->verdict = VERDICT_DROP; // a decoy cannot take over in the middle
	return answers;
}

// Whether packets must come whole under a decision. That of a flow that is known is
// asked for again: only pieces pay for it.
STAGE int must_be_whole(const struct passage *at, __u32 decision)
{
	if (!at)
		return false;
	__u32 slot = at->index & ACTIVE_SLOT;
	struct limit_row *row = bpf_map_lookup_elem(&limits, &decision);
	return row && row->in[slot].whole;
}

// Refuses the first piece of a packet that has to come whole, and so all of it. False
// if it is refused; where that is merely observed, it is told.
STAGE int allow_piece(const struct passage *at, struct outcome *out)
{
	if (!at || !out || !is_allowed(out->would) || !must_be_whole(at, out->decision))
		return true;
	__u8 reason = out->reason, verdict = out->verdict, would = out->would;
	out->reason = REASON_FRAGMENTED;
	out->would = VERDICT_DROP;
	out->verdict = strict(at) ? VERDICT_DROP : VERDICT_ALLOW;
	if (is_cut(out->verdict)) {
		remember(at, REASON_FRAGMENTED);
		return false;
	}
	account(at, out, !at->original);
	out->reason = reason;
	out->verdict = verdict;
	out->would = would;
	return true;
}

// Counts one more flow that begins, where that may be only so fast; false if it comes
// before its turn.
STAGE int count_opener(const struct passage *at, const struct outcome *out)
{
	if (!at || !out)
		return true;
	__u32 id = out->decision, slot = at->index & ACTIVE_SLOT;
	struct limit_row *row = bpf_map_lookup_elem(&limits, &id);
	__u64 every = row ? row->in[slot].every : 0;
	if (!every)
		return true;
	struct quota_key key = {.limit = row->in[slot].number, .source = out->source, .destination = out->destination,
				.link = at->link ? LINK_WIRE : 0};
	TRACE(limited, 1);
	struct quota *quota = bpf_map_lookup_elem(&quotas, &key);
	if (!quota) {
		struct quota fresh = {};
		bpf_map_update_elem(&quotas, &key, &fresh, BPF_NOEXIST);
		quota = bpf_map_lookup_elem(&quotas, &key);
	}
	if (quota && take_turn(&quota->due, at->now, every))
		return true;
	TRACE(limited, 2);
	return false;
}

// Refuses a flow that begins in pieces where that must not be, or before its turn, and
// counts it. What was there before is none that begins.
STAGE int limit_opener(struct passage *at, struct outcome *out)
{
	if (!at || !out)
		return 0;
	at->pieced = 1;
	if ((at->packet.marks & PACKET_FIRST) && !allow_piece(at, out))
		return 0;
	bool begins = (at->packet.marks & PACKET_OPENER) ||
		      (at->packet.protocol == PROTOCOL_TCP && (at->packet.tcp_flags & TCP_SYN));
	if (!begins || !is_allowed(out->would) || count_opener(at, out))
		return 0;
	out->would = VERDICT_DROP;
	out->verdict = strict(at) ? VERDICT_DROP : VERDICT_ALLOW;
	out->reason = REASON_RATE_LIMITED;
	return 0;
}

// A packet of a flow that another processor opens, or has just opened, is that flow's:
// whose row it is says who began, and this may well be an answer. Whoever opens it may be
// held up before the row is there, and it may be over already: then the packet passes
// without one, as it was judged, if there is nothing else to do with it. Returns why it
// is to be refused by itself, as it will come again; or REASON_NONE.
STAGE int join_flow(struct passage *at, struct outcome *out)
{
	if (!at || !out)
		return REASON_NONE;
	const struct packet *p = &at->packet;
	bool second = !same(&at->key.address[0], &p->source) || at->key.port[0] != p->source_port;
	struct flow *flow = find_row(&at->key, &at->found) ? row_at(at->found.row) : NULL;
	__u64 word = at->found.word;
	bool original = second == !!(word & FLOW_SECOND);
	bool against = p->protocol == PROTOCOL_TCP && (p->marks & PACKET_OPENER) && !original;
	if (!flow)
		return out->verdict == VERDICT_ALLOW && !out->expects && !asks(at, out) ? REASON_NONE : REASON_INVALID_STATE;
	if (against)
		return REASON_INVALID_STATE;
	if (!holds(at, flow, original)) // it was not judged here: only as what this packet was judged to be
		return original == at->original ? REASON_NONE : REASON_INVALID_STATE;
	at->original = original;
	outcome_of(flow, word, out);
	return is_still(flow, word) ? REASON_NONE : REASON_INVALID_STATE;
}

// Writes a row for a new flow, unless it is cut, or there is no room.
STAGE int open_flow(struct passage *at, struct outcome *out)
{
	if (!at || !out)
		return 0;
	const struct packet *p = &at->packet;
	const struct flow_key *key = &at->key;
	bool original = at->original;
	struct steering *s = steering_now();
	// A decoy is on no VLAN.
	bool beside = at->link && at->link != LINK_WIRE;
	if (out->verdict == VERDICT_DECOY && (p->protocol != PROTOCOL_TCP || beside || !s || !s->decoy))
		out->verdict = VERDICT_DROP;
	if (is_cut(out->verdict) || out->reason == REASON_INVALID_STATE)
		return 0;
	at->found.row = make_row(at);
	__u32 made = *(volatile __u32 *)&at->found.row; // whichever way it came about, to the verifier too
	struct flow *flow = row_at(made);
	if (!flow) {
		hold(at->ifindex, -1);
		__u32 reason = made == ROW_RIVALLED ? join_flow(at, out) : REASON_TABLE_FULL;
		if (!reason)
			return 0;
		at->found.row = 0;
		decide_alone(at, reason, out);
		return 0;
	}
	bool second = !same(&key->address[0], &p->source) || key->port[0] != p->source_port;
	__u64 flags = settle(at, flow, out, original) | FLOW_LIVE | (second == original ? FLOW_SECOND : 0) |
		      (!at->from == !original ? 0 : FLOW_TO);
	bool own = own_end(flags);
	flow->seen = beat_of(at);
	flow->packets = flow->bytes = 0;
	flow->ifindex[own] = at->ifindex;
	flow->ifindex[!own] = 0;
	memcpy(flow->mac[own], at->from ? p->source_mac : p->destination_mac, 6);
	memcpy(flow->mac[!own], at->from ? p->destination_mac : p->source_mac, 6);
	flow->service = original ? service_of(p) : p->source_port;
	flow->reported = at->now >> ROUND_SHIFT;
	flow->speech = SPEECH_UNKNOWN;
	flags |= heeding(p, out) | (asks(at, out) ? FLOW_ASKS : 0);
	// What a port sends is admitted by whose it is, so its end is bound from the beginning.
	__u32 zero = 0;
	struct topology *wiring = bpf_map_lookup_elem(&topology, &zero);
	bool bound = wiring && at->from && !at->link && at->identity && !(p->marks & PACKET_GROUP);
	flow->topology = bound ? wiring->number : 0;
	if (bound)
		flags |= own ? FLOW_BOUND_SECOND : FLOW_BOUND_FIRST;
	at->found.word = give(flow, flags, FLOW_FLAGS & ~flags);
	at->news = true;
	struct tally *t = tally();
	if (t)
		t->opened++;
	return 0;
}

// Tells of a flow that passes without the inspection that it should have had.
STAGE int report_uninspected(const struct flow *flow, __u32 kind)
{
	if (!flow)
		return 0;
	struct flow copy = *flow;
	copy.verdicts = VERDICT_ALLOW | VERDICT_INSPECT << 4;
	copy.reason = REASON_INSPECTION_DOWN;
	return report_flow(&copy, kind);
}

// What to do with a packet that is not refused.
#define ACT_PASS 0
#define ACT_STEER 1
#define ACT_DIVERT 2
#define ACT_JUDGE 3    // not known yet: judge first
#define ACT_DISPATCH 4 // its flow says

// Whether this packet is the one to bring news of a flow that goes on.
static __always_inline bool is_due(const struct passage *at, struct flow *flow)
{
	__u16 round = at->now >> ROUND_SHIFT, differs = flow->differs, last = flow->reported;
	if (owner_of(flow) != at->ifindex || (__u16)(round - last) <= UPDATE_ROUNDS)
		return false;
	__u32 was = last | (__u32)differs << 16, next = round | (__u32)differs << 16;
	return __sync_val_compare_and_swap((__u32 *)&flow->reported, was, next) == was;
}

// What a flow's packet meets beyond allow and drop: the engine, or a decoy.
STAGE int dispatch(const struct passage *at, struct outcome *out)
{
	if (!at || !out)
		return ACT_PASS;
	struct flow *flow = row_at(at->found.row);
	if (!flow)
		return ACT_PASS;
	const struct packet *p = &at->packet;
	bool original = at->original, news = at->news;
	const struct steering *s = steering_now();
	bool here = out->verdict == VERDICT_INSPECT && inspects(at, at->found.word & FLOW_ENROLLED, original);
	bool down = here && !(s && s->up);
	if (down && !(at->found.word & FLOW_FAIL_OPEN)) {
		out->verdict = VERDICT_DROP;
		out->reason = REASON_INSPECTION_DOWN;
		account(at, out, !original);
		return ACT_PASS;
	}
	bool first_answer = !original && !(at->found.word & FLOW_REPLIED);
	advance(at, flow, original);
	bind(at, flow);
	if (news && !is_allowed(out->would))
		account(at, out, !original);
	else if (news && !down)
		report_flow(flow, EVENT_START);
	// A flow that is merely observed is told of at once when it is answered:
	// what answers is what policy is suggested from.
	if (first_answer && !is_allowed(out->would))
		report_flow(flow, EVENT_UPDATE);
	if (is_due(at, flow)) {
		report_flow(flow, EVENT_UPDATE);
		report_cadence(flow, false);
	}

	if (out->verdict == VERDICT_DECOY) {
		if (s && s->decoy && original && owner_of(flow) == at->ifindex &&
		    !(p->marks & (PACKET_FIRST | PACKET_LATER)))
			return ACT_DIVERT;
		out->verdict = VERDICT_DROP;
		return ACT_PASS;
	}
	if (down) {
		out->reason = REASON_INSPECTION_DOWN;
		if (!(at->found.word & FLOW_UNINSPECTED)) {
			report_uninspected(flow, news ? EVENT_START : EVENT_UPDATE);
			turn(flow, at->found.word, FLOW_UNINSPECTED, 0);
		}
		return ACT_PASS;
	}
	if (!here)
		return ACT_PASS;
	if (at->found.word & FLOW_UNINSPECTED)
		turn(flow, at->found.word, 0, FLOW_UNINSPECTED);
	return ACT_STEER;
}

// Finds the packet's flow and says what to do, where that is known. Else it must
// be judged first.
STAGE int track(struct passage *at, struct outcome *out)
{
	if (!at || !out)
		return ACT_PASS;
	const struct packet *p = &at->packet;
	bool second = key_of(at);
	struct flow *flow = find_row(&at->key, &at->found) ? row_at(at->found.row) : NULL;
	__u64 word = at->found.word;
	at->original = true;
	if (!flow)
		return ACT_JUDGE;
	bool original = second == !!(word & FLOW_SECOND);
	bool opener = p->marks & PACKET_OPENER;
	if (p->protocol == PROTOCOL_TCP && (p->tcp_flags & TCP_SYN)) {
		if (opener && FLOW_CLOSED(word) && !(may_live(word) && is_allowed(would_of(flow)))) { // its ports are used again
			end_flow(flow, at->found.row, word, true);
			at->found.free = at->found.row;
			at->found.row = 0;
			return ACT_JUDGE;
		}
		if (opener != original) { // against the grain of a flow that may live
			decide_alone(at, REASON_INVALID_STATE, out);
			account(at, out, false);
			return ACT_PASS;
		}
	}
	at->original = original;
	if (!holds(at, flow, original))
		return ACT_JUDGE;
	outcome_of(flow, word, out);
	return is_still(flow, word) ? ACT_DISPATCH : ACT_JUDGE;
}

// Writes down what a flow that has a row was judged to be now.
STAGE int renew(struct passage *at, struct outcome *out)
{
	if (!at || !out)
		return 0;
	struct flow *flow = row_at(at->found.row);
	if (!flow)
		return 0;
	bool passed = !is_cut(verdict_of(flow)), allowed = is_allowed(would_of(flow));
	__u16 differed = flow->differs;
	if (!reconsider(at, flow, out)) {
		at->found.row = 0;
		return 0;
	}
	bool passes = !is_cut(out->verdict);
	at->news = passes && (!passed || allowed != is_allowed(out->would));
	if (passes && !at->news && out->differs && out->differs != differed)
		report_flow(flow, EVENT_UPDATE); // a candidate came meanwhile
	return 0;
}

// Tells of a packet that is refused, by its flow or without one; one that passes without
// one is none.
STAGE int refuse(const struct passage *at, struct outcome *out)
{
	if (!at || !out)
		return ACT_PASS;
	soften(at, out);
	if (at->ruled && !is_allowed(out->would))
		account(at, out, !at->original);
	return ACT_PASS;
}

// Whether an ICMP error quotes a packet of a flow that is allowed.
STAGE int is_related(struct __sk_buff *skb, struct passage *at)
{
	if (!at)
		return false;
	struct frame f = frame_of(skb);
	if (!quoted_key(&f, &at->packet, !at->from || !at->identity, at->link, &at->key))
		return false;
	if (!find_row(&at->key, &at->found))
		return false;
	struct flow *flow = row_at(at->found.row);
	return flow && stands(at, flow) && is_still(flow, at->found.word);
}

// A handshake on the row of a flow that lives, as far as is known: its ends may have
// forgotten it, so that its ports are used again. What begins is counted, and once it is
// answered, as nobody does who still has the one before, it is told and heard as any
// other. An opener alone may be anybody's, who knows or guesses the ports: it changes
// nothing, and is refused by itself. Returns false if the packet is refused.
STAGE int begin_again(struct __sk_buff *skb, struct passage *at, struct outcome *out)
{
	struct flow *flow = at ? row_at(at->found.row) : NULL;
	if (!flow || !out || !is_allowed(out->would))
		return true;
	__u64 word = at->found.word;
	bool opens = !(at->packet.tcp_flags & TCP_ACK);
	if (opens != at->original)
		return true;
	if (opens) {
		if (says_early(skb, at))
			return refuse_one(at, out, REASON_INVALID_STATE);
		if (!(word & FLOW_BEGINS_AGAIN) && !count_opener(at, out) && !refuse_one(at, out, REASON_RATE_LIMITED))
			return false;
		turn(flow, word, FLOW_BEGINS_AGAIN, 0);
		return true;
	}
	if (!(word & FLOW_BEGINS_AGAIN))
		return true;
	__u64 hears = flow->expects ? FLOW_WATCHED | FLOW_HEED : 0;
	if (!take(flow, word))
		return refuse_one(at, out, REASON_INVALID_STATE); // another processor writes it: it will be sent again
	report_flow(flow, EVENT_END);
	report_cadence(flow, true);
	flow->packets = flow->bytes = 0;
	flow->speech = SPEECH_UNKNOWN;
	at->news = true;
	at->found.word = give(flow, hears,
			      (FLOW_BEGINS_AGAIN | FLOW_PICKED_UP | FLOW_ESTABLISHED | FLOW_RESET | FLOW_FIN_SOURCE |
			       FLOW_FIN_DESTINATION) & ~hears);
	forget(at);
	return true;
}

// Tracks a packet, and judges it where its flow is not known or no longer settled.
static __always_inline int pass_on(struct __sk_buff *skb, struct passage *at, struct outcome *out)
{
	int act = track(at, out);
	TRACE(tracked, act + 1);
	TRACE(row, at->found.row);
	if (act == ACT_JUDGE) {
		if (at->found.row || (at->packet.marks & PACKET_OPENER))
			judge(at, at->original, out);
		else
			at->original = !pick_up(at, out);
		if (out->reason != REASON_INVALID_STATE)
			compare(at, at->original, out);
		if (at->found.row) {
			object_to_known(at, out);
			renew(at, out);
		}
		if (!at->found.row) {
			if (out->expects)
				object_to_mute(at, out);
			if (out->limited)
				limit_opener(at, out);
			open_flow(at, out);
		}
		if (!at->found.row || is_cut(out->verdict))
			return refuse(at, out);
		act = ACT_DISPATCH;
	}
	if (act != ACT_DISPATCH)
		return act;
	if ((at->packet.marks & PACKET_FIRST) && !at->pieced && !allow_piece(at, out))
		return refuse(at, out);
	if ((at->packet.tcp_flags & TCP_SYN) && may_begin_again(at->found.word) && !begin_again(skb, at, out))
		return refuse(at, out);
	if ((at->found.word & FLOW_WATCHED) && !hear(skb, at, out))
		return refuse(at, out);
	act = dispatch(at, out); // which may refuse it after all
	// What the engine is to see first is read once it has let it go: see deliver.h.
	if ((at->found.word & FLOW_ASKS) && is_allowed(out->verdict) && (at->from || act != ACT_STEER) && resolve(skb, at))
		read_stream(skb, at);
	return act;
}

// Whether a frame to all, or many, brings a packet for one, which no host may take
// (RFC 1122, 3.3.6) and some do: what arrives so is judged by itself, and by no flow,
// where it is sent it is one of its flow. An IPv4 address that nobody has by itself may
// be that of a subnet's broadcast.
STAGE int is_for_one(const struct passage *at)
{
	if (!at || at->from || !(at->packet.marks & PACKET_GROUP))
		return false;
	const struct packet *p = &at->packet;
	if ((p->ethertype != ETHERNET_IPV4 && p->ethertype != ETHERNET_IPV6) || is_multicast(&p->destination))
		return false;
	return p->ethertype == ETHERNET_IPV6 || is_host(rules_of(at), &p->destination);
}

// Who is cut off gets no lease either.
STAGE int decide_lease(const struct passage *at, struct outcome *out)
{
	decide_alone(at, REASON_CONTROL, out);
	if (out && out->reason != REASON_QUARANTINE)
		*out = (struct outcome){.verdict = VERDICT_ALLOW, .would = VERDICT_ALLOW, .reason = REASON_CONTROL};
	return 0;
}

// Whom the packet belongs to and what becomes of it.
static __always_inline int decide(struct __sk_buff *skb, struct passage *at, struct outcome *out)
{
	struct packet *p = &at->packet;
	__u32 refusal = REASON_NONE;
	*out = (struct outcome){.verdict = VERDICT_ALLOW, .would = VERDICT_ALLOW, .reason = REASON_CONTROL};

	__u32 admitted = admit(at);
	TRACE(admitted, admitted + 1);
	switch (admitted) {
	case ADMIT_CONTROL:
		return ACT_PASS;
	case ADMIT_LEASE:
		decide_lease(at, out);
		if (!is_allowed(out->would))
			account(at, out, false);
		return ACT_PASS;
	case ADMIT_ASIDE:
		out->reason = REASON_SPOOFED;
		out->verdict = strict(at) ? VERDICT_DROP : VERDICT_ALLOW;
		return ACT_PASS;
	case ADMIT_SPOOFED:
		refusal = REASON_SPOOFED;
		break;
	case ADMIT_UNKNOWN:
		refusal = REASON_IDENTITY_UNKNOWN;
		break;
	default:
		if (is_for_one(at))
			refusal = REASON_MALFORMED;
		else if (p->marks & (PACKET_FIRST | PACKET_LATER))
			refusal = piece_together(at);
		if (!refusal && (p->marks & PACKET_ERROR)) {
			out->reason = REASON_RELATED;
			if (is_related(skb, at))
				return ACT_PASS;
			refusal = REASON_INVALID_STATE;
		}
	}
	if (refusal) {
		decide_alone(at, refusal, out);
	} else if (p->ethertype != ETHERNET_IPV4 && p->ethertype != ETHERNET_IPV6) {
		decide_frame(at, out);
	} else if ((p->marks & PACKET_GROUP) && !at->from) {
		judge(at, true, out); // each receiver by itself
		compare(at, true, out);
		if (out->expects && is_allowed(out->verdict))
			hear_group(skb, at, out);
		if (p->marks & PACKET_FIRST)
			allow_piece(at, out);
		if (out->verdict == VERDICT_INSPECT && out->enrolled && !out->fail_open) { // nobody inspects it for each
			out->reason = REASON_INSPECTION_DOWN;
			out->verdict = out->would = VERDICT_DROP;
		}
		if (!is_allowed(out->verdict))
			out->verdict = VERDICT_DROP;
	} else {
		return pass_on(skb, at, out);
	}
	if (!is_allowed(out->would))
		account(at, out, false);
	return ACT_PASS;
}

static __always_inline void trace_end(const struct passage *at, const struct outcome *out, int act)
{
	TRACE(source, out->source);
	TRACE(destination, out->destination);
	TRACE(decision, out->decision);
	TRACE(profile, out->profile);
	TRACE(verdict, out->verdict);
	TRACE(would, out->would);
	TRACE(reason, out->reason);
	TRACE(differs, out->differs);
	TRACE(original, at->original);
	TRACE(act, act);
}

// What becomes of a packet at a point: TCX_NEXT lets it pass there.
static __always_inline int enforce_at(struct __sk_buff *skb, struct passage *at)
{
	struct outcome out = {};
	int act = ACT_PASS;
	if (read_packet(skb, &at->packet)) {
		if (at->strange || (skb->vlan_present && !at->link))
			at->packet.ethertype = ETHERNET_VLAN; // what is inside belongs to another link
		at->length = at->packet.bytes;
		act = decide(skb, at, &out);
	} else {
		at->length = skb->len;
		if (!at->link)
			find_port(at);
		decide_alone(at, REASON_MALFORMED, &out);
		if (out.reason == REASON_QUARANTINE)
			out.reason = REASON_MALFORMED; // whoever it claims to be from
		if (!is_allowed(out.would))
			account(at, &out, false);
	}

	trace_end(at, &out, act);
	bool refused = !is_allowed(out.verdict);
	count(out.reason, refused, at->segments, at->length);
	if (act == ACT_DIVERT)
		return divert(skb);
	if (out.verdict == VERDICT_REJECT)
		return answer(skb, at);
	if (refused)
		return TCX_DROP;
	if ((at->packet.marks & PACKET_FIRST) && out.reason != REASON_FRAGMENT)
		remember(at, REASON_NONE);
	if (act == ACT_STEER)
		return steer(skb, at, out.profile);
	return TCX_NEXT;
}

// Whether the packet is one of its flow, whole and without anything that the host
// might look at.
static __always_inline bool is_plain(const struct packet *p)
{
	return !(p->marks & (PACKET_FIRST | PACKET_LATER | PACKET_GROUP | PACKET_ERROR)) &&
	       p->l4 == (p->ethertype == ETHERNET_IPV4 ? PLAIN4 : PLAIN6);
}

static __always_inline int enforce(struct __sk_buff *skb, bool from)
{
	if (skb->mark == MARK_RESUMED) {
		skb->mark = 0;
		return TCX_NEXT;
	}
	int passed = tracing ? 0 : pass_fast(skb, from, skb->ifindex, 0);
	if (passed)
		return passed;
	struct passage at = {.from = from, .ifindex = skb->ifindex};
	begin(skb, &at);
	int act = enforce_at(skb, &at);
	if (tracing || !direct_delivery || act != TCX_NEXT || !at.found.row || !is_plain(&at.packet))
		return act;
	if (from)
		return pass_direct(skb, &at);
	find_ways(skb, &at);
	return act;
}
