// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// VLAN tags, of frames on wires. A frame has two at most: one of 802.1Q, or one of
// 802.1ad, or one of 802.1Q inside either. Which VLANs they name is part of every key
// (LINK_*), so that the same addresses in two of them share nothing; what is inside is
// judged like any other packet. A tag without an id says how urgent a frame is, and
// nothing more. Tags of more kinds than that, or of more than two VLANs, nobody can
// say the meaning of here. Reading them is pure.
#pragma once

#include "parse.h"

// What part of a wire a frame is of: the ids of its VLANs, the outer tag's and then
// the inner one's. No VLAN has the ids 0 and 0xfff.
#define LINK_INNER_SHIFT 12
#define LINK_SERVICE 0xfff000 // one tag, of 802.1ad; with 0 there it is of 802.1Q
#define LINK_IN_KEY 0xffffff
#define LINK_DOUBLED 0x1000000 // two tags, both of 802.1Q, where the outer one of two is else of
			       // 802.1ad: a key has its ends the other way round then

// What is known of a frame's tags, in one word: LINK_* in the lowest bits, and above
// them how many bytes of tags are in the frame, TAGS_*, and the outer tag.
#define TAGS_LINK 0x1ffffff
#define TAGS_LENGTH_SHIFT 25
#define TAGS_LENGTH 0xf
#define TAGS_ONE (1ULL << 29) // at least
#define TAGS_TWO (1ULL << 30)
#define TAGS_STRANGE (1ULL << 31)
#define TAGS_OUTER_SHIFT 32
#define OUTER_CONTROL 0xffff
#define OUTER_SERVICE 0x10000
#define OUTER_THERE 0x20000
#define MOST_TAGS 2
#define TAGS_REACH (12 + (MOST_TAGS + 1) * sizeof(struct tag) + 2) // of a frame: what tells that there is no other

static __always_inline bool is_tag(__u16 type)
{
	return type == bswap16(ETHERNET_VLAN) || type == bswap16(ETHERNET_SERVICE);
}

static __always_inline __u32 link_of(__u64 tags)
{
	return tags & TAGS_LINK;
}

static __always_inline __u32 length_of_tags(__u64 tags)
{
	return tags >> TAGS_LENGTH_SHIFT & TAGS_LENGTH;
}

// The word with the next tag inwards; its type is in network byte order.
static __always_inline __u64 with_tag(__u64 tags, __u16 type, __u16 control)
{
	__u32 id = control & VLAN_ID, link = tags & TAGS_LINK;
	bool service = type == bswap16(ETHERNET_SERVICE);
	if (!(tags & TAGS_ONE))
		tags |= TAGS_ONE | (__u64)(OUTER_THERE | (service ? OUTER_SERVICE : 0) | control) << TAGS_OUTER_SHIFT;
	else if (service || (tags & TAGS_TWO))
		tags |= TAGS_STRANGE;
	else
		tags |= TAGS_TWO;
	if (id == VLAN_ID)
		tags |= TAGS_STRANGE;
	if (!id)
		return tags;
	if (link == LINK_WIRE)
		link = id | (service ? LINK_SERVICE : 0);
	else
		link = (link & VLAN_ID) | id << LINK_INNER_SHIFT | (link & LINK_SERVICE ? 0 : LINK_DOUBLED);
	return (tags & ~(__u64)TAGS_LINK) | link;
}

// The word with the tags in a frame. One that is cut short, or has nothing behind it, is
// none.
static __always_inline __u64 read_tags(__u64 tags, void *data, void *end)
{
#pragma clang loop unroll(full)
	for (int i = 0; i <= MOST_TAGS; i++) {
		struct tag *tag = data + 12 + sizeof(*tag) * i;
		if ((void *)(tag + 1) + 2 > end || !is_tag(tag->type))
			break;
		tags = with_tag(tags, tag->type, bswap16(tag->control)) + ((__u64)sizeof(*tag) << TAGS_LENGTH_SHIFT);
	}
	return tags;
}

// The tags of a packet: the first may have been taken off the frame already.
STAGE __u64 tags_of(struct __sk_buff *skb)
{
	__u64 tags = LINK_WIRE;
	__u32 reach = skb->len < TAGS_REACH ? skb->len : TAGS_REACH;
	if ((long)skb->data_end - (long)skb->data < reach)
		bpf_skb_pull_data(skb, reach);
	if (skb->vlan_present)
		tags = with_tag(tags, skb->vlan_proto, skb->vlan_tci);
	return read_tags(tags, (void *)(long)skb->data, (void *)(long)skb->data_end);
}

// Takes the outer tag off a packet that has tags in its frame, so that none is left
// there, and keeps it beside. Nobody else looks there while the packet is here.
STAGE int put_aside(struct __sk_buff *skb, __u64 tags)
{
	skb->cb[0] = tags >> TAGS_OUTER_SHIFT;
	return bpf_skb_vlan_pop(skb);
}

// Puts the tag back that was put aside, if there is one.
STAGE int put_back(struct __sk_buff *skb)
{
	__u32 outer = skb->cb[0];
	if (!(outer & OUTER_THERE))
		return 0;
	skb->cb[0] = 0;
	return bpf_skb_vlan_push(skb, outer & OUTER_SERVICE ? bswap16(ETHERNET_SERVICE) : bswap16(ETHERNET_VLAN),
				 outer & OUTER_CONTROL);
}
