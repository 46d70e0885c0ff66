// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The way that one described packet takes, step by step, where the programs are
// loaded a second time to be asked (trace.go). Where they enforce, `tracing` is a
// constant zero and the verifier takes all of this out.
#pragma once

#include "abi.h"

const volatile __u32 tracing = 0;

struct trace {
	__u32 source; // identities, and the groups by which the cell was found
	__u32 destination;
	__u32 source_group;
	__u32 destination_group;
	__u32 decision;
	__u32 row; // of the flow that was found; 0: none
	__u32 differs;
	__u16 profile;
	__u8 verdict;
	__u8 would;
	__u8 reason;
	__u8 admitted;	// what admission said, and one
	__u8 tracked;	// what tracking said, and one; 0: it was not asked
	__u8 act;	// what is done with a packet that is not refused
	__u8 original;	// it goes the way that its flow was opened
	__u8 judged;	// a ruleset was asked
	__u8 refused;	// an end is in the refused set
	__u8 probed;	// form that the last look-up hit, 34 more for each less specific
			// kind of pair, and one; 0: none
	__u8 shape;	// likewise, of the ruleset in force
	__u8 successions; // decisions that had ended
	__u8 enforces;	// 1: the source's group, 2: the destination's
	__u8 limited;	// 1: it would be counted by a limit, 2: and is one flow too many
	__u32 named; // rank of the name that allows the flow; 0: none
};
_Static_assert(sizeof(struct trace) == 48, "trace");

struct trace traced;

// Writes a step down.
#define TRACE(field, value)                  \
	do {                                 \
		if (tracing)                 \
			traced.field = (value); \
	} while (0)
