// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The table of flows: buckets of rows, two for each key, chosen by a hash whose
// seed nobody outside knows. It never forgets a flow that is established and in
// use: room is made of flows that are over, then of those that nobody answered,
// then of the one that was idle longest, and if there is none, there is no room.
//
// Rows are read without locks by any processor while others write. `word` says
// whose a row is: tag, version and FLOW_LIVE. Who acts on what it read of a row
// reads the word once more; if it is no longer the same, what was read may be
// torn. Who writes more than a counter takes FLOW_WRITING by compare-and-swap, and
// leaves another version behind. Nobody waits for a lock: of those that open one flow
// at once one prevails, and the others look so often for its row that it is mostly
// there by then (claim_row, await_row). (Loads are taken to be seen in order, as
// x86-64 has it.)
//
// Guides say which rows to look at, so that a key that is not there costs two words
// of a small table and not sixteen cache lines of a large one. A byte of a guide is
// written by who has taken its row: before the row lives, and before it does no more.
// So no row that lives is missed; what a guide says is only where to look.
#pragma once

#include "cadence.h"

// Open draws and configures these.
const volatile __u64 flow_seeds[SEEDS];
const volatile __u32 flow_buckets = 1 << 14;

#define FLOW_SELF (FLOW_TAG | FLOW_VERSION | FLOW_LIVE)

// An established flow that was idle for this long may go when room is needed.
#define IDLE_BEATS (300 * SECOND >> BEAT_SHIFT)

#define FLOW_CLOSED(flags) \
	(((flags) & FLOW_RESET) || \
	 ((flags) & (FLOW_FIN_SOURCE | FLOW_FIN_DESTINATION)) == (FLOW_FIN_SOURCE | FLOW_FIN_DESTINATION))

// Where a flow may lie.
struct place {
	__u64 tag; // where the word has it
	__u32 first;
	__u32 second;
};

// One factor of a sum that is the same for two given keys with a chance of 2^-32,
// whoever chose them, as long as he does not know the seeds (NH, of UMAC).
static __always_inline __u64 mixed(__u64 word, __u64 seed)
{
	return (__u64)(__u32)((__u32)word + (__u32)seed) * (__u32)((__u32)(word >> 32) + (__u32)(seed >> 32));
}

static __always_inline __u32 scaled(__u64 hash)
{
	return (hash >> 32) * flow_buckets >> 32;
}

static __always_inline struct place place_of(const struct flow_key *key)
{
	const __u64 *rest = (const __u64 *)&key->port[0];
	__u64 sum = mixed(key->address[0].high, flow_seeds[0]) + mixed(key->address[0].low, flow_seeds[1]) +
		    mixed(key->address[1].high, flow_seeds[2]) + mixed(key->address[1].low, flow_seeds[3]) +
		    mixed(*rest, flow_seeds[4]);
	__u64 first = sum * flow_seeds[5], second = sum * flow_seeds[6]; // odd
	return (struct place){.tag = (second << 32) & FLOW_TAG, .first = scaled(first), .second = scaled(second)};
}

static __always_inline bool same_key(const struct flow_key *a, const struct flow_key *b)
{
	return same(&a->address[0], &b->address[0]) && same(&a->address[1], &b->address[1]) &&
	       *(const __u64 *)&a->port[0] == *(const __u64 *)&b->port[0];
}

static __always_inline __u64 word_of(const struct flow *flow)
{
	return *(const volatile __u64 *)&flow->word;
}

static __always_inline __u32 number_of(__u32 bucket, __u32 way)
{
	return bucket * WAYS + (way % WAYS) + 1;
}

static __always_inline struct flow *row_at(__u32 number)
{
	__u32 index = (number - 1) / WAYS;
	struct bucket *bucket = bpf_map_lookup_elem(&flows, &index);
	if (!bucket)
		return NULL;
	barrier_var(bucket);
	return &bucket->rows[(number - 1) % WAYS];
}

#define EACH_BYTE 0x0101010101010101ULL

// The highest bit of each byte that is zero.
static __always_inline __u64 zeroes(__u64 bytes)
{
	__u64 low = 0x7f * EACH_BYTE;
	return ~(((bytes & low) + low) | bytes | low);
}

// The number of the lowest byte whose highest bit is set.
static __always_inline __u32 lowest_byte(__u64 bits)
{
	return ((((bits & -bits) - 1) & EACH_BYTE) * EACH_BYTE >> 56) - 1;
}

static __always_inline __u32 count_bytes(__u64 bits)
{
	return (bits >> 7) * EACH_BYTE >> 56;
}

// What a guide says of a flow's row: never zero.
static __always_inline __u8 guiding(__u64 tag)
{
	__u8 byte = tag >> FLOW_TAG_SHIFT;
	return byte ? byte : 1;
}

static __always_inline struct guide *guide_of(__u32 number)
{
	__u32 bucket = (number - 1) / WAYS;
	return bpf_map_lookup_elem(&guides, &bucket);
}

// Says whose a row is that was taken; 0: nobody's any more.
static __always_inline void set_guide(struct guide *guide, __u32 number, __u8 byte)
{
	((volatile __u8 *)&guide->bytes)[(number - 1) % WAYS] = byte;
}

// Where a guide leads to with a tag: the highest bit of each byte that is like it.
static __always_inline __u64 follow_guide(const struct guide *guide, __u64 tag)
{
	return zeroes(*(const volatile __u64 *)&guide->bytes ^ guiding(tag) * EACH_BYTE);
}

// The key's row among those of a bucket that a guide leads to, but for one of them,
// whose state is one of two; or NULL.
static __always_inline struct flow *row_in(struct bucket *bucket, __u64 like, const struct flow_key *key, __u64 tag,
					   __u64 states, const struct flow *but, __u64 *found)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < WAYS && like; i++) {
		struct flow *row = &bucket->rows[lowest_byte(like) % WAYS];
		__u64 word = word_of(row);
		if ((word & FLOW_TAG) == tag && (word & states) && row != but && same_key(&row->key, key)) {
			*found = word;
			return row;
		}
		like &= like - 1;
	}
	return NULL;
}

// Finds the row of a flow, and its number; or NULL.
static __always_inline struct flow *look_up(const struct flow_key *key, struct place place, __u64 *word, __u32 *number)
{
	__u32 index = place.first;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 2; i++) {
		struct guide *guide = bpf_map_lookup_elem(&guides, &index);
		__u64 like = guide ? follow_guide(guide, place.tag) : 0;
		struct bucket *bucket = like ? bpf_map_lookup_elem(&flows, &index) : NULL;
		struct flow *row = bucket ? row_in(bucket, like, key, place.tag, FLOW_LIVE, NULL, word) : NULL;
		if (row) {
			*number = number_of(index, row - bucket->rows);
			return row;
		}
		index = place.second;
	}
	return NULL;
}

// A free row in a bucket that is not nearly full: its number, or 0. Most of the time
// there is one in a flow's first bucket. The row itself is not touched: it may be far.
static __always_inline __u32 free_row(__u32 bucket)
{
	struct guide *guide = bpf_map_lookup_elem(&guides, &bucket);
	__u64 free = guide ? zeroes(*(volatile __u64 *)&guide->bytes) : 0;
	return count_bytes(free) < WAYS / 4 ? 0 : number_of(bucket, lowest_byte(free));
}

// Finds the row of a flow; its number, or 0. Then it says which is free.
STAGE __u32 find_row(const struct flow_key *key, struct found *found)
{
	if (!key || !found)
		return 0;
	found->word = 0;
	found->row = found->free = 0;
	struct place place = place_of(key);
	if (!look_up(key, place, &found->word, &found->row))
		found->free = free_row(place.first);
	return found->row;
}

// Sets and clears flags of a row if it still is what it was; false if not.
static __always_inline bool turn(struct flow *flow, __u64 known, __u64 set, __u64 clear)
{
	for (int i = 0; i < 4; i++) {
		__u64 was = word_of(flow), next = (was | set) & ~clear;
		if ((was ^ known) & FLOW_SELF)
			return false;
		if (was == next || __sync_val_compare_and_swap(&flow->word, was, next) == was)
			return true;
	}
	return false;
}

// Takes a row to write it, if it still is what it was and nobody else does.
static __always_inline bool take(struct flow *flow, __u64 known)
{
	for (int i = 0; i < 4; i++) {
		__u64 was = word_of(flow);
		if (((was ^ known) & FLOW_SELF) || (was & FLOW_WRITING))
			return false;
		if (__sync_val_compare_and_swap(&flow->word, was, was | FLOW_WRITING) == was)
			return true;
	}
	return false;
}

static __always_inline __u64 next_version(__u64 word)
{
	return (word & ~FLOW_VERSION) | ((word + (1ULL << FLOW_VERSION_SHIFT)) & FLOW_VERSION);
}

// Gives a row that was taken back, as another version, and returns its word.
static __always_inline __u64 give(struct flow *flow, __u64 set, __u64 clear)
{
	__u64 was = 0, next = 0;
	for (int i = 0; i < 8; i++) { // others may only turn flags meanwhile
		was = word_of(flow);
		next = (next_version(was) & ~(clear | FLOW_WRITING)) | set;
		if (__sync_val_compare_and_swap(&flow->word, was, next) == was)
			return next;
	}
	__sync_lock_test_and_set(&flow->word, next);
	return next;
}

// Counts rows of an owner, and returns how many there were before.
static __always_inline __u64 hold(__u32 ifindex, __s64 rows)
{
	struct holding *holding = bpf_map_lookup_elem(&holdings, &ifindex);
	if (!holding && rows > 0) {
		struct holding fresh = {};
		bpf_map_update_elem(&holdings, &ifindex, &fresh, BPF_NOEXIST);
		holding = bpf_map_lookup_elem(&holdings, &ifindex);
	}
	return holding ? __sync_fetch_and_add(&holding->rows, rows) : 0;
}

// Ends a flow and frees its row; false if another does, or if it must be told and
// cannot. What must go goes untold, and is counted as a lost event.
STAGE int end_flow(struct flow *flow, __u32 number, __u64 known, __u32 must)
{
	struct guide *guide = guide_of(number);
	if (!flow || !guide || !take(flow, known))
		return false;
	if (!report_flow(flow, EVENT_END) && !must) {
		turn(flow, known, 0, FLOW_WRITING);
		return false;
	}
	report_cadence(flow, true);
	hold(owner_of(flow), -1);
	set_guide(guide, number, 0);
	give(flow, 0, FLOW_FLAGS);
	struct tally *t = tally();
	if (t)
		t->ended++;
	return true;
}

// Ends a flow to make room: before its time, if it is not one that merely waits for what
// its ends may send again.
static __always_inline bool evict_flow(struct flow *flow, __u32 number, __u64 known)
{
	struct tally *t = tally();
	if (!end_flow(flow, number, known, true))
		return false;
	if (t && !FLOW_CLOSED(known))
		t->evicted++;
	return true;
}

// A packet may still come of a flow that was only idle.
static __always_inline void note_forgotten(__u64 now)
{
	__u32 zero = 0;
	struct pressure *pressed = bpf_map_lookup_elem(&pressure, &zero);
	if (pressed)
		pressed->until = now + pickup_period;
}

// How readily a row makes room, in the upper half; in the lower, how long it has
// been idle. An owner that holds its share already (`only`) gets room from its own
// flows only. Without branches, of which the verifier would have to go through all
// combinations; the barriers keep the compiler from putting them back.
#define ROOM_SHARE 5ULL
#define ROOM_FREE 4ULL
#define ROOM_OVER 3ULL
#define ROOM_UNANSWERED 2ULL
#define ROOM_IDLE 1ULL
static __always_inline __u64 bit(__u64 word, __u64 flag)
{
	__u64 set = (word & flag) / flag;
	barrier_var(set);
	return set;
}

static __always_inline __u64 is_less(__u64 a, __u64 b) // both below 2^63
{
	__u64 less = (a - b) >> 63;
	barrier_var(less);
	return less;
}

static __always_inline __u64 room_in(const struct flow *row, __u32 beat, __u32 only, __u64 *owned)
{
	__u64 word = word_of(row), idle = (__u32)(beat - row->seen);
	idle *= 1 - (idle >> 31); // another processor may have seen it since
	__u64 live = bit(word, FLOW_LIVE), writing = bit(word, FLOW_WRITING), established = bit(word, FLOW_ESTABLISHED);
	__u64 over = bit(word, FLOW_RESET) | (bit(word, FLOW_FIN_SOURCE) & bit(word, FLOW_FIN_DESTINATION)) |
		     is_less(row->until, 1);
	__u64 second = bit(word, FLOW_SECOND) ^ bit(word, FLOW_TO);
	__u64 owner = row->ifindex[0] * (1 - second) + row->ifindex[1] * second;
	__u64 own = live & is_less(owner ^ only, 1);
	__u64 used = over * ROOM_OVER + (1 - over) * ((1 - established) * ROOM_UNANSWERED +
						      established * is_less(IDLE_BEATS, idle) * ROOM_IDLE);
	__u64 room = (live * used + (1 - live) * ROOM_FREE) * (is_less(only, 1) | own) * (1 - writing);
	*owned += own;
	return room << 32 | idle * is_less(0, room) * live;
}

// What a bucket has to offer: the readiest row, and how many are free, and how many
// the owner has who holds its share.
struct offer {
	__u64 room;
	__u64 way;
	__u64 free;
	__u64 owned;
};

static __always_inline struct offer offer_of(struct bucket *bucket, __u32 beat, __u32 only)
{
	struct offer offer = {};
	for (__u64 i = 0; i < WAYS; i++) {
		__u64 room = room_in(&bucket->rows[i], beat, only, &offer.owned);
		__u64 better = is_less(offer.room, room);
		offer.room += (room - offer.room) * better;
		offer.way += (i - offer.way) * better;
		offer.free += room >> 34;
	}
	return offer;
}

// Looks for the row of a flow that another processor is opening until it is there, or as
// often as that mostly takes: whoever opens it may be held up for as long as it likes.
static __always_inline void await_row(const struct flow_key *key)
{
	struct found found = {};
	for (int i = 0; i < 32 && !found.row; i++)
		find_row(key, &found);
}

// Whether a flow that lives is not to make room as its row was chosen to: another
// processor may have opened it there meanwhile.
STAGE int is_spared(const struct flow *flow, __u64 now, __u64 room)
{
	__u64 owned = 0;
	return !flow || room_in(flow, now >> BEAT_SHIFT, 0, &owned) >> 32 != room;
}

// How many rows one owner may have.
static __always_inline __u64 share_now(void)
{
	__u32 everybody = 0;
	struct holding *most = bpf_map_lookup_elem(&shares, &everybody);
	return most ? most->rows : 0;
}

// Chooses the row that a new flow is to have: its number, and in the upper half how
// it makes room; 0 if there is none. ROOM_SHARE says that an owner who holds its
// share has not even half of it here, and nothing that may go: it may have what is
// free.
STAGE __u64 choose_row(const struct flow_key *key, __u64 now, __u32 only)
{
	if (!key)
		return 0;
	struct place place = place_of(key);
	struct bucket *bucket = bpf_map_lookup_elem(&flows, &place.first);
	if (!bucket)
		return 0;
	__u32 index = place.first, beat = now >> BEAT_SHIFT;
	struct offer best = offer_of(bucket, beat, only);
	if (best.free < WAYS / 4) {
		bucket = bpf_map_lookup_elem(&flows, &place.second);
		if (!bucket)
			return 0;
		struct offer other = offer_of(bucket, beat, only);
		other.owned += best.owned;
		if (!best.room && !other.room && only)
			return (other.owned + 1) * flow_buckets <= share_now() || !other.owned ? ROOM_SHARE << 32 : 0;
		if (other.free > best.free || other.room > best.room) {
			best = other;
			index = place.second;
		}
	}
	return best.room ? best.room >> 32 << 32 | number_of(index, best.way) : 0;
}

// Whether another processor claims a row for the same key, or has one: it goes if it saw
// this claim and has the higher row; may live in a moment if it did not; else it stays.
#define RIVAL_NONE 0
#define RIVAL_PASSING 1
#define RIVAL_STAYS 2
STAGE int rival_of(const struct flow_key *key, __u32 number)
{
	if (!key)
		return RIVAL_STAYS;
	struct place place = place_of(key);
	__u32 index = place.first;
	const struct flow *mine = row_at(number);
#pragma clang loop unroll(disable)
	for (int i = 0; i < 2; i++) {
		__u64 word = 0;
		struct guide *guide = bpf_map_lookup_elem(&guides, &index);
		struct bucket *bucket = bpf_map_lookup_elem(&flows, &index);
		struct flow *row = !guide || !bucket ? NULL
						     : row_in(bucket, follow_guide(guide, place.tag), key, place.tag,
							      FLOW_LIVE | FLOW_WRITING, mine, &word);
		if (row)
			return !(word & FLOW_LIVE) && number_of(index, row - bucket->rows) > number ? RIVAL_PASSING : RIVAL_STAYS;
		index = place.second;
	}
	return RIVAL_NONE;
}

// Whether a claim prevails over that of others, of whom at least one saw it or was seen.
// What does not is given back.
#define RIVAL_LOOKS 64
STAGE int prevails(const struct flow_key *key, __u32 number)
{
	int rival = RIVAL_PASSING;
	for (int i = 0; i < RIVAL_LOOKS && rival == RIVAL_PASSING; i++)
		rival = rival_of(key, number);
	struct guide *guide = guide_of(number);
	struct flow *mine = row_at(number);
	if (rival == RIVAL_NONE || !guide || !mine)
		return rival == RIVAL_NONE;
	set_guide(guide, number, 0);
	give(mine, 0, FLOW_FLAGS);
	return false;
}

// Claims a row that is free, for a key that has none. The row has its key and tag
// then, is taken, and is nobody's until it is given. Returns its number; 0 if another
// processor took it; or CLAIM_RIVALLED, if it has it, but another opens the same flow.
//
// Without a lock: whoever claims says so first and then looks for others, so of two that
// claim at once at least one sees the other.
#define CLAIM_RIVALLED ~0U
STAGE __u32 claim_row(const struct flow_key *key, __u32 number)
{
	if (!key)
		return 0;
	struct place place = place_of(key);
	struct bucket *first = bpf_map_lookup_elem(&flows, &place.first);
	struct bucket *second = bpf_map_lookup_elem(&flows, &place.second);
	struct guide *to_first = bpf_map_lookup_elem(&guides, &place.first);
	struct guide *to_second = bpf_map_lookup_elem(&guides, &place.second);
	if (!first || !second || !to_first || !to_second)
		return 0;
	bool in_first = (number - 1) / WAYS == place.first;
	struct guide *guide = in_first ? to_first : to_second;
	struct flow *row = &(in_first ? first : second)->rows[(number - 1) % WAYS];
	__u64 was = word_of(row), theirs;
	if (was & (FLOW_LIVE | FLOW_WRITING))
		return 0;
	__u64 claimed = (next_version(was) & FLOW_VERSION) | place.tag | FLOW_WRITING;
	if (__sync_val_compare_and_swap(&row->word, was, claimed) != was)
		return 0;
	row->key = *key;
	set_guide(guide, number, guiding(place.tag));
	__sync_fetch_and_or(&row->word, FLOW_WRITING); // is set: only so that others see all this before what follows
	if (!row_in(first, follow_guide(to_first, place.tag), key, place.tag, FLOW_LIVE | FLOW_WRITING, row, &theirs) &&
	    !row_in(second, follow_guide(to_second, place.tag), key, place.tag, FLOW_LIVE | FLOW_WRITING, row, &theirs))
		return number;
	return CLAIM_RIVALLED;
}

// Makes a new flow's row, which is taken, and to be written and given: its number. 0 if
// there is no room; ROW_RIVALLED if another processor opens the same flow, or has just
// opened it. Neither is the number of a row. An owner that holds more than its share gets room from others' flows no
// more. A row counts as the owner's already, even if nothing came of it.
#define ROW_RIVALLED ~0U
static __always_inline __u32 make_row(const struct passage *at)
{
	__u32 number = 0;
	struct flow *free = at->found.free ? row_at(at->found.free) : NULL;
	if (free) { // it is far: its two lines come while the owner's row is looked up
		(void)*(volatile __u64 *)&free->word;
		(void)*(volatile __u64 *)&free->packets;
	}
	__u64 share = share_now(), held = hold(at->ifindex, 1);
	bool all = share && held >= share;
	for (int tries = 0; tries < 3 && !number; tries++) {
		__u64 chosen = all || tries ? 0 : at->found.free;
		if (chosen)
			chosen |= ROOM_FREE << 32;
		else
			chosen = choose_row(&at->key, at->now, all ? at->ifindex : 0);
		bool only_free = chosen >> 32 == ROOM_SHARE;
		if (only_free)
			chosen = choose_row(&at->key, at->now, 0);
		__u64 room = chosen >> 32;
		struct flow *row = chosen ? row_at(chosen) : NULL;
		if (!row || (only_free && room != ROOM_FREE))
			return 0;
		__u64 was = word_of(row);
		if (was & FLOW_LIVE) {
			// Of whom it was chosen it may not be any more: what is another's by now stays.
			if (is_spared(row, at->now, room))
				continue;
			if (evict_flow(row, chosen, was) && room == ROOM_IDLE)
				note_forgotten(at->now);
		}
		number = claim_row(&at->key, chosen);
		if (number == CLAIM_RIVALLED) {
			if (prevails(&at->key, chosen))
				return chosen;
			await_row(&at->key);
			return ROW_RIVALLED;
		}
	}
	return number;
}
