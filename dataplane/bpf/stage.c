//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Writes versions of rows, run by the agent: in place, so that the versions which
// count are never moved nor missing. A row is made when it gets its first version
// and pruned when the last has gone, in a batch of its own: the agent sees to it
// that no packet still looks at it, and that nothing takes its memory before.

#include "maps.h"

#define ERROR_WHAT -22 // EINVAL
#define MOST_ROW (sizeof(struct group_row) / 8)

static __always_inline bool is_empty(const void *row, __u32 size)
{
	const __u64 *words = row;
	__u64 any = 0;
	for (__u32 i = 0; i < MOST_ROW && i < size / 8; i++)
		any |= words[i];
	return !any;
}

// Writes the versions of some slots.
#define write_to(in, version, slots)									\
	do {												\
		for (__u32 slot = 0; slot < SLOTS; slot++)						\
			if ((slots) >> slot & 1)							\
				memcpy(&(in)[slot], version, sizeof((in)[0]));				\
	} while (0)

// One callback for each table: rows differ in size, and versions with them.
#define STAGE_ROWS(name, map, key_type, row_type)							\
	static long name(__u32 i, struct batch *batch)							\
	{												\
		struct order *order = bpf_map_lookup_elem(&orders, &i);					\
		if (!order)										\
			return 1;									\
		key_type key;										\
		memcpy(&key, order->key, sizeof(key));							\
		row_type *row = bpf_map_lookup_elem(&map, &key);					\
		__u32 what = order->what;								\
		order->found = row ? 0 : ORDER_NEW;							\
		batch->error = 0;									\
		if (!row) {										\
			if (what == ORDER_PUT) {							\
				row_type fresh = {};							\
				write_to(fresh.in, order->value, batch->slots);				\
				batch->error = bpf_map_update_elem(&map, &key, &fresh, BPF_NOEXIST);	\
				batch->rows_more += !batch->error;					\
			}										\
		} else {										\
			if (what == ORDER_PUT)								\
				write_to(row->in, order->value, batch->slots);				\
			if (what == ORDER_COPY)								\
				write_to(row->in, &row->in[batch->like & ACTIVE_SLOT], batch->slots);	\
			bool empty = is_empty(row, sizeof(*row));					\
			order->found = empty ? ORDER_EMPTY : 0;						\
			if (empty && what == ORDER_PRUNE) {						\
				batch->error = bpf_map_delete_elem(&map, &key);				\
				batch->rows_less += !batch->error;					\
			}										\
		}											\
		if (batch->error)									\
			return 1;									\
		batch->done++;										\
		return 0;										\
	}

STAGE_ROWS(stage_peer, peers, struct prefix_key, struct peer_row)
STAGE_ROWS(stage_prefix, prefixes, struct prefix_key, struct peer_row)
STAGE_ROWS(stage_group, groups, __u32, struct group_row)
STAGE_ROWS(stage_cell, cells, struct rule_key, struct decision_row)
STAGE_ROWS(stage_refused, refused_identities, __u32, struct refused_row)
STAGE_ROWS(stage_succession, successions, __u32, struct succession_row)
STAGE_ROWS(stage_limit, limits, __u32, struct limit_row)
STAGE_ROWS(stage_name, names, __u64, struct name_row)
STAGE_ROWS(stage_ranks, rankings, __u32, struct ranks_row)

SEC("syscall")
int stage(struct batch *order)
{
	struct batch batch = *order;
	batch.done = batch.rows_more = batch.rows_less = 0;
	batch.error = 0;
	__u32 count = batch.count < ORDERS ? batch.count : ORDERS;
	switch (batch.table) {
	case TABLE_PEERS:
		bpf_loop(count, stage_peer, &batch, 0);
		break;
	case TABLE_PREFIXES:
		bpf_loop(count, stage_prefix, &batch, 0);
		break;
	case TABLE_GROUPS:
		bpf_loop(count, stage_group, &batch, 0);
		break;
	case TABLE_CELLS:
		bpf_loop(count, stage_cell, &batch, 0);
		break;
	case TABLE_REFUSED:
		bpf_loop(count, stage_refused, &batch, 0);
		break;
	case TABLE_SUCCESSIONS:
		bpf_loop(count, stage_succession, &batch, 0);
		break;
	case TABLE_LIMITS:
		bpf_loop(count, stage_limit, &batch, 0);
		break;
	case TABLE_NAMES:
		bpf_loop(count, stage_name, &batch, 0);
		break;
	case TABLE_RANKS:
		bpf_loop(count, stage_ranks, &batch, 0);
		break;
	default:
		batch.error = ERROR_WHAT;
	}
	order->done = batch.done;
	order->error = batch.error;
	order->rows_more = batch.rows_more;
	order->rows_less = batch.rows_less;
	return 0;
}
