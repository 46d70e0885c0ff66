// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The part of the contract that is about names of the DNS: which rulesets have, where
// decisions stand that name them, and what workloads asked for and were told. abi.h has
// the rest and includes this.
#pragma once

#define NAMERS 3 // contracts, and the two tiers of Kubernetes' policies

// A pattern of DNS names, by its id: a hash of the name, keyed by two of `seeds`, so
// that whoever chooses names cannot choose ids; the lowest bit says that all names
// below it are meant. Ids are the same in every generation, so that what was learned
// under one stays.
struct name {
	__u32 groups[NAMERS]; // of contracts, and of the policies of each tier; 0: none of them
	__u32 place;	      // among the names, from 1 on; the first that allows a flow decides
};
_Static_assert(sizeof(struct name) == 16, "name");

struct name_row {
	struct name in[SLOTS];
};
#define NAME_BELOW 1

// Where a decision towards a name stands among the rules of Kubernetes' policies; or,
// of a refusal by its id, before which of those it gives way: those whose rank is
// lower. Without ranks, default deny gives way to all, and what else yields to those of
// the tier Admin.
struct ranks {
	__u32 admin;
	__u32 baseline;
	__u32 consumed; // of a refusal: contracts that consume a name open it
	__u32 pad;
};
_Static_assert(sizeof(struct ranks) == 16, "ranks");

#define EVERY_RANK 0xffffffffU // above those of all rules

struct ranks_row {
	struct ranks in[SLOTS];
};

// What a workload asked the DNS for, until it is answered: a question for a name
// that some ruleset has. Every identity has sets of its own, chosen by the lowest
// bits of the transaction's id, so nobody pushes out what another asked.
struct set_key {
	__u32 identity;
	__u32 part;
};
_Static_assert(sizeof(struct set_key) == 8, "set_key");

struct inquiry {
	struct address server;
	__u64 question; // hash of name, type and class, as they were written
	__u64 until;	// coarse monotonic ns; 0: nobody's
	__u16 port;	// of who asks
	__u16 id;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct inquiry) == 40, "inquiry");

#define INQUIRIES 8
#define INQUIRY_PARTS 16
struct inquiry_set {
	struct bpf_spin_lock lock;
	__u32 pad;
	struct inquiry rows[INQUIRIES];
};
_Static_assert(sizeof(struct inquiry_set) == 328, "inquiry_set");

// An address that a workload was told a name has. Sets are chosen by a hash of the
// address; where one is full, what is over goes first, and the longest ago.
struct learned {
	struct address address;
	__u64 name;  // id of the pattern; 0: nobody's
	__u64 until; // monotonic ns: new flows may go there
	__u64 used;  // when a flow was last let through by it
};
_Static_assert(sizeof(struct learned) == 40, "learned");

#define LEARNED 16
#define LEARNED_PARTS 64
struct learned_set {
	struct bpf_spin_lock lock;
	__u32 pad;
	struct learned rows[LEARNED];
};
_Static_assert(sizeof(struct learned_set) == 648, "learned_set");
