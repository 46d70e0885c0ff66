// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The contract between the programs in the kernel and the Go around them: what
// lies in maps and in the ring buffer. bpf2go makes the Go twins. Widths are
// fixed, padding is written out, sizes are asserted, numbers are never reused.
// The text of this file is hashed into the folder that maps are pinned in, so a
// process never takes over maps whose layout it does not know.
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;

// Words of the root package (verdict.go, event.go, identity.go).
#define VERDICT_ALLOW 1
#define VERDICT_INSPECT 2
#define VERDICT_DROP 3
#define VERDICT_DECOY 4
#define VERDICT_REJECT 5

#define REASON_NONE 0
#define REASON_RULE 1
#define REASON_DEFAULT_DENY 2
#define REASON_QUARANTINE 4
#define REASON_NO_RULESET 5
#define REASON_THREAT 6
#define REASON_KUBERNETES 7
#define REASON_SPOOFED 16
#define REASON_MALFORMED 17
#define REASON_FRAGMENT 18
#define REASON_IDENTITY_UNKNOWN 19
#define REASON_INVALID_STATE 20
#define REASON_TABLE_FULL 21
#define REASON_INSPECTION_DOWN 22
#define REASON_DARK_ADDRESS 23
#define REASON_CONTROL 24
#define REASON_RELATED 25
#define REASON_PROTOCOL_MISMATCH 26
#define REASON_RATE_LIMITED 27
#define REASON_FRAGMENTED 28
#define REASONS 64 // room for reasons to come

#define EVENT_START 1
#define EVENT_END 2
#define EVENT_REFUSED 3
#define EVENT_UPDATE 4
#define EVENT_CADENCE 5
#define EVENT_GREETING 6
#define EVENT_TO 0x10
#define EVENT_REPLIED 0x20
#define EVENT_CLOSED 0x40
#define EVENT_DIFFERS 0x80

// What flows speak (appprotocol.go).
#define SPEECH_UNKNOWN 0
#define SPEECH_TLS 1
#define SPEECH_HTTP 2
#define SPEECH_HTTP2 3
#define SPEECH_SSH 4
#define SPEECH_POSTGRESQL 5
#define SPEECH_MYSQL 6
#define SPEECH_MONGODB 7
#define SPEECH_KAFKA 8
#define SPEECH_MQTT 9
#define SPEECH_AMQP 10
#define SPEECH_LDAP 11
#define SPEECH_SMB 12
#define SPEECH_RDP 13
#define SPEECH_DNS 14
#define SPEECH_NTP 15
#define SPEECH_QUIC 16
#define SPEECH_MEMCACHED 17
#define SPEECH_REDIS 18
#define SPEECH_PROTOCOLS 18
#define SPEECH_NOTHING 254 // what nobody can speak: two protocols at once
#define SPEECH_OTHER 255
#define SPEECH_WINDOW 64 // bytes of each direction that are read

#define IDENTITY_UNKNOWN 0
#define IDENTITY_WORLD 1
#define GROUP_WORLD 1

// An address in network byte order; IPv4 in its IPv6-mapped form.
struct address {
	__u64 high;
	__u64 low;
};

// What is in force. Bits 0 and 1 of the word are a slot: which of a row's versions
// counts, and which row of `rulesets`. Bit 2 says which of the terms is the word's
// own, the rest is an epoch that grows with every change. Zero: none yet. Whatever
// comes into force does so by the one store that changes the word.
//
// A ruleset that nobody has confirmed has a deadline in its term, from which on the
// word to go back to counts in its place, whether or not any process lives.
//
// Beside it, a number for the candidate that is evaluated too, another for each
// (zero: there is none), and its slot.
struct term {
	__u64 deadline; // CLOCK_MONOTONIC in ns, or FOREVER
	__u64 back;
};

struct active {
	__u64 word;
	struct term terms[2];
	__u32 candidate;
	__u32 candidate_slot;
};
_Static_assert(sizeof(struct active) == 48, "active");
#define SLOTS 4 // in force, to go back to, candidate, to come
#define ACTIVE_SLOT 3
#define ACTIVE_TERM_SHIFT 2
#define ACTIVE_EPOCH_SHIFT 3
#define FOREVER 0xffffffffffffffffULL

// Rows of a ruleset have a version for each slot; a version of zeros is none. So
// what generations share is there once, and what changes between two costs what it
// is. Versions are written by `stage` only, in place, never the one that counts.

// Both tables of addresses: the whole address, and shorter prefixes.
struct prefix_key {
	__u32 length; // of the prefix in bits; that of an IPv4 prefix is 96 more
	__u32 address[4]; // in network byte order, the rest zero
};
_Static_assert(sizeof(struct prefix_key) == 20, "prefix_key");
#define HOST_LENGTH 128
#define IPV4_LENGTH 96

struct peer {
	__u32 identity;
	__u32 group;
	__u8 flags; // PEER_*
	__u8 best;  // length of the longest prefix, this one included, that covers this one
	__u8 pad[2];
};
_Static_assert(sizeof(struct peer) == 12, "peer");
#define PEER_HERE 1     // else there is only something longer
#define PEER_LONGER 2   // a longer prefix is found by way of this one
#define PEER_ENROLLED 4 // an enforcement point stands in front of it
#define PEER_COVERED 8  // best is one

struct peer_row {
	struct peer in[SLOTS];
};

// What is known of a group: whether it enforces, under which numbers the reasons
// know it, and the forms of the rules that name it, so that nothing is probed in
// vain. A form is a bit: 16 less the length of the port's prefix, and 17 more where
// the rule is for any protocol. The lowest bit is the most specific form.
struct group {
	__u64 exact_from; // of rules from this group to another one
	__u64 exact_to;
	__u64 any_to;   // from this group to any
	__u64 any_from; // from any to this group
	__u32 sender;
	__u32 receiver;
	__u32 flags; // GROUP_*
	__u32 pad;
};
_Static_assert(sizeof(struct group) == 48, "group");
#define GROUP_HERE 1
#define GROUP_ENFORCES 2

struct group_row {
	struct group in[SLOTS];
};
#define FORMS 34 // 2 of protocol x 17 lengths of port prefix
#define FORM_ANY_PROTOCOL 17

struct refused {
	__u64 until; // CLOCK_MONOTONIC in ns, or FOREVER; 0: not refused
	__u32 decision;
	__u32 pad;
};
_Static_assert(sizeof(struct refused) == 16, "refused");

struct refused_row {
	struct refused in[SLOTS];
};

struct rule_key {
	__u32 from;
	__u32 to;
	__u16 port; // the first `bits` bits, the rest zero; host order
	__u8 bits;  // and RULE_REASON
	__u8 protocol;
};
_Static_assert(sizeof(struct rule_key) == 12, "rule_key");
#define RULE_REASON 0x80 // between classes of groups: says why, where no pair's rule does

struct decision {
	__u32 id;
	__u16 profile;
	__u8 verdict; // 0: none
	__u8 reason;
	__u8 fail_open; // of the profile
	__u8 flags;     // DECISION_*
	__u8 expects;   // SPEECH_*, what a flow must speak; 0: anything
	__u8 limited;   // in how fast flows begin, or in how they come: see limit
};
_Static_assert(sizeof(struct decision) == 12, "decision");
#define DECISION_ENDS 1	  // some time: see succession
#define DECISION_YIELDS 2 // is a refusal that a name may open: see ranks
#define DECISION_RANKED 4 // has ranks, by its id

struct decision_row {
	struct decision in[SLOTS];
};

// When a decision, by its id, ends, and which takes its place.
struct succession {
	__u64 until; // CLOCK_MONOTONIC in ns; 0: none
	struct decision then;
	__u32 pad;
};
_Static_assert(sizeof(struct succession) == 24, "succession");
#define MOST_SUCCESSORS 8

struct succession_row {
	struct succession in[SLOTS];
};

// How fast flows may begin under a decision, by its id, and whether in pieces.
struct limit {
	__u64 number; // that of the limit, which decisions share
	__u32 every;  // ns from one flow's turn to the next one's; 0: any
	__u32 whole;  // no packet may come in pieces
};
_Static_assert(sizeof(struct limit) == 16, "limit");
#define LIMIT_AHEAD 250000000ULL // ns: how long before its turn a flow may come

struct limit_row {
	struct limit in[SLOTS];
};

// Whose flows are counted together.
struct quota_key {
	__u64 limit;
	__u32 source; // identities
	__u32 destination;
	__u32 link; // LINK_WIRE: on wires, whatever the VLANs are, which who sends may choose
	__u32 pad;
};
_Static_assert(sizeof(struct quota_key) == 24, "quota_key");

struct quota {
	__u64 due; // CLOCK_MONOTONIC in ns: the next flow's turn
};

// The ruleset of a slot.
struct ruleset {
	__u64 generation;
	__u64 names;	   // bit 0: it has names; bit n: such that mean all below a name of n labels
	__u64 any;	   // forms of the rules from any group to any
	__u64 reasons;	   // forms of the reasons
	__u64 lengths6[2]; // of IPv6 prefixes shorter than an address, a bit for each
	__u32 lengths4;
	__u32 refused; // how many identities are
	__u32 slot;
	struct decision fallback;
};
_Static_assert(sizeof(struct ruleset) == 72, "ruleset");
#define MOST_NAME_BITS 63 // the last bit is for names of as many labels and more

// What `stage` is to do with one row.
struct order {
	__u8 key[24];
	__u8 value[48]; // the version to be
	__u32 what;	// ORDER_*
	__u32 found;	// ORDER_*, told by stage
};
_Static_assert(sizeof(struct order) == 80, "order");
#define ORDER_PUT 1   // the versions are value
#define ORDER_COPY 2  // the versions are that of another slot
#define ORDER_PRUNE 3 // the row goes, if it has no version
#define ORDER_COUNT 4 // only look
#define ORDER_NEW 1   // there was no row
#define ORDER_EMPTY 2 // the row has no version any more
#define ORDERS 2048

struct batch {
	__u32 table; // TABLE_*
	__u32 count; // of orders
	__u32 slots; // whose versions are written: a bit for each
	__u32 like;  // the slot that ORDER_COPY copies from
	__u32 done; // told by stage: orders carried out,
	__s32 error; // and why not the next one
	__u32 rows_more;
	__u32 rows_less;
};
_Static_assert(sizeof(struct batch) == 32, "batch");
#define TABLE_PEERS 0
#define TABLE_PREFIXES 1
#define TABLE_GROUPS 2
#define TABLE_CELLS 3
#define TABLE_REFUSED 4
#define TABLE_SUCCESSIONS 5
#define TABLE_LIMITS 6
#define TABLE_NAMES 7
#define TABLE_RANKS 8

// Whether a processor is in the middle of a packet, so that a change can await the
// last packet that began before it.
struct presence {
	__u64 inside;
	__u64 turns; // how often it has come out
	__u64 tick;  // of the last packet: reading the time once a tick costs a packet nothing
	__u64 now;   // the time then: coarse, monotonic ns
};

// One enforcement point, by the index of the host's side of the interface.
struct port {
	__u64 attached; // coarse monotonic ns
	__u64 answered; // until when its share of answers to refusals is spent
	struct address address4;
	struct address address6;
	__u32 identity; // 0: nobody vouches for it
	__u32 group;
	__u8 mac[6];      // the workload's
	__u8 host_mac[6]; // of the host's side
	__u8 flags;       // PORT_*
	__u8 driver;      // DRIVER_*, see wire.h
	__u16 mtu;
	__u32 across; // index of a wire's other interface
	__u32 master; // index of the bridge that the interface is of; 0: none
	__u8 guess[6]; // the MAC by which it was last sent to, while nobody knows the workload's
	__u8 pad[2];
};
_Static_assert(sizeof(struct port) == 88, "port");
#define PORT_MAC_DECLARED 1
#define PORT_MAC_LEARNED 2
#define PORT_MORE_ADDRESSES 4 // than the two above: see port_addresses
#define PORT_CLOSED 8    // nobody vouches for it, and where it stands policy is enforced
#define PORT_WIRE 16     // an end of a wire, whose residents have the identities
#define PORT_OUTSIDE 32  // the outer one
#define PORT_LOOSENED 64 // takes frames to any MAC because of us
#define PORT_PEER 128    // the workload's side lies in another namespace, and can be handed packets

struct port_address {
	__u32 ifindex;
	__u32 pad;
	struct address address;
};
_Static_assert(sizeof(struct port_address) == 24, "port_address");

// Who is at the inside of a wire, by the index of the interface inside and address.
struct resident {
	__u32 identity;
	__u32 group;
	__u8 mac[6];
	__u8 flags; // PORT_MAC_*
	__u8 pad;
};
_Static_assert(sizeof(struct resident) == 16, "resident");

// Both directions of a flow have the same key: the lower end comes first.
struct flow_key {
	struct address address[2];
	__u16 port[2]; // host order; an ICMP query's identifier is the port of who asks
	__u8 protocol;
	__u8 link[3]; // zero: the host's; else LINK_*
};
_Static_assert(sizeof(struct flow_key) == 40, "flow_key");
#define LINK_WIRE 0xfff // the ids of no VLAN: the wire itself; the others are in tags.h

// Where in what a server of the DNS says in a stream something begins: the length of a
// message, or the message behind it.
struct reading {
	__u32 sequence;
	__u16 length; // of the message
	__u8 inside;  // the message is next
	__u8 lost;
};
_Static_assert(sizeof(struct reading) == 8, "reading");

// A row of the table of flows: two cache lines, of which the first decides. What
// is told of an end lies at the end's place in the key.
struct flow {
	__u64 word; // FLOW_*: flags, version and tag; see table.h
	struct flow_key key;
	__u32 epoch;    // in which it was judged
	__u32 topology; // in which its ends were bound
	__u32 until;    // in eras: when the verdict ends by itself; 0 of a cut flow
	__u32 seen;     // in beats, of the last packet

	__u64 packets; // both directions, counted by the owner only
	__u64 bytes;
	__u32 source; // identities; source opened it
	__u32 destination;
	__u32 decision;
	__u32 generation;
	__u32 ifindex[2]; // of the points; 0: none was seen
	__u8 mac[2][6] __attribute__((aligned(2)));
	__u16 service; // destination port; type*256+code of ICMP
	__u16 profile;
	__u16 reported; // in rounds, of the last event; with `differs` one word
	__u16 differs;  // of the candidate that decides its reach otherwise; see differing
	__u8 verdicts;  // what is done, and in the upper half what would be
	__u8 reason;
	__u8 expects; // SPEECH_*, what it must speak; 0: anything
	__u8 speech;  // SPEECH_*, what it was heard to speak; while it is watched, see hear.h
};
_Static_assert(sizeof(struct flow) == 128, "flow");
#define FLOW_SECOND 0x1 // the source is the second end of the key
#define FLOW_TO 0x2     // the owner stands before the destination
#define FLOW_REPLIED 0x4
#define FLOW_FIN_SOURCE 0x8
#define FLOW_FIN_DESTINATION 0x10
#define FLOW_RESET 0x20
#define FLOW_JUDGED_SOURCE 0x40 // by the point before the source
#define FLOW_JUDGED_DESTINATION 0x80
#define FLOW_UNKNOWN 0x100   // touches an interface that nobody vouches for
#define FLOW_ENROLLED 0x200  // the destination's point inspects, else the source's
#define FLOW_FAIL_OPEN 0x400 // passes while the engine is down
#define FLOW_UNINSPECTED 0x800
#define FLOW_ESTABLISHED 0x1000 // both ends are known to be there
#define FLOW_BOUND_FIRST 0x2000  // the key's first end is behind a port and has a MAC
#define FLOW_BOUND_SECOND 0x4000
#define FLOW_WATCHED 0x8000   // a stage beyond the short way wants its packets
#define FLOW_WAY_FIRST_SHIFT 16 // two bits: how what the first end sends gets to the second
#define FLOW_WAY_SECOND_SHIFT 18
#define FLOW_WAYS 0xf0000
#define FLOW_HEED_SOURCE 0x100000 // what the source says first is not known yet
#define FLOW_HEED_DESTINATION 0x200000
#define FLOW_LIVE 0x400000    // the row is a flow's
#define FLOW_WRITING 0x800000 // somebody writes it
#define FLOW_ASKS 0x1000000   // its source asks the DNS for names, which are read
#define FLOW_UNUSUAL (FLOW_UNKNOWN | FLOW_UNINSPECTED | FLOW_WATCHED | FLOW_WRITING | FLOW_ASKS)
#define FLOW_FLAGS 0x1ffffffULL
#define FLOW_VERSION_SHIFT 25
#define FLOW_VERSION 0xfffe000000ULL
#define FLOW_TAG_SHIFT 40
#define FLOW_TAG 0xffffff0000000000ULL

// Units of time in a row, as shifts of nanoseconds: 4.2 ms, 67 ms and 1.1 s. A
// number of beats wraps after 208 days, of eras after nine years.
#define BEAT_SHIFT 22
#define ERA_SHIFT 26
#define ROUND_SHIFT 30
#define ERA_FOREVER 0xffffffff

// Rows that a flow may lie in come in buckets: two, chosen by its key.
#define WAYS 8
struct bucket {
	struct flow rows[WAYS];
};
_Static_assert(sizeof(struct bucket) == 1024, "bucket");

// What leads to the rows of a bucket without touching them: a byte for each, zero of
// a row that is free, else of its flow's tag.
struct guide {
	__u64 bytes;
};

struct bpf_spin_lock {
	__u32 val;
};

// When a flow was silent, and what it said between: sums since it began, all of
// which can be added up. Gaps are counted by their octave, sizes of bursts by their
// class, each by who spoke: the flow's source (0) or its destination.
#define CADENCE_GAPS 10 // octaves: from 268 ms, 537 ms, ... to 137 s and more
#define CADENCE_SIZES 4 // bytes: below 256, 4 KiB, 64 KiB, and more
struct cadence {
	__u64 gap_squares; // of beats
	__u32 gap_beats;
	__u16 alike; // gaps like the one before, but for a quarter
	__u16 alike_sizes;
	__u16 gaps[2][CADENCE_GAPS];
	__u16 sizes[2][CADENCE_SIZES];
};
_Static_assert(sizeof(struct cadence) == 72, "cadence");

// Of one flow, by its key.
struct paced {
	struct flow_key key;
	__u64 bytes; // of the flow, when its last burst began
	__u64 size;  // of the burst before
	__u32 gap;   // the last, in beats
	__u32 beat;  // when the last burst began
	__u16 bursts; // 0: nobody's row
	__u8 second; // the last burst is the destination's
	__u8 pad[5];
	struct cadence cadence;
};
_Static_assert(sizeof(struct paced) == 144, "paced");

#define PACES 4
struct paces {
	struct bpf_spin_lock lock;
	__u32 pad;
	struct paced rows[PACES];
};
_Static_assert(sizeof(struct paces) == 584, "paces");

// What links, ports and routes there are has a number that changes with it.
struct topology {
	__u32 number;
	__u32 pad;
	__u64 direct_until; // monotonic ns: until when somebody watches for changes
};
_Static_assert(sizeof(struct topology) == 16, "topology");

// How many rows an enforcement point holds, and how many one may.
struct holding {
	__u64 rows;
};

// What was heard of one direction of a stream, before it is known what it speaks.
struct heard {
	__u64 have; // of the window's bytes, a bit each
	__u8 bytes[SPEECH_WINDOW];
	__u32 base;  // sequence number of the first byte
	__u32 bytes_passed;
	__u16 packets_passed;
	__u8 matched; // as many bytes were enough, and are to be acknowledged
	__u8 begun;   // the base is known
	__u8 sure;    // from the handshake
	__u8 pad[3];
};
_Static_assert(sizeof(struct heard) == 88, "heard");

// Of a flow: what its source says, and its destination.
struct hearing {
	struct flow_key key;
	__u64 since; // coarse monotonic ns, and HEARING_OWED; 0: nobody's
	struct heard side[2];
};
_Static_assert(sizeof(struct hearing) == 224, "hearing");
#define HEARING_OWED (1ULL << 62) // of a flow that must speak something: for a while it makes room for no other

#define HEARING_WAYS 4
struct hearings {
	struct bpf_spin_lock lock;
	__u32 pad;
	struct hearing rows[HEARING_WAYS];
};
_Static_assert(sizeof(struct hearings) == 904, "hearings");

#include "abi_names.h"

struct fragment_key {
	struct address source;
	struct address destination;
	__u32 id;
	__u32 protocol; // 0 of IPv6, where only the first piece's counts
	__u32 ifindex;  // each point sees every piece
	__u32 link;
};
_Static_assert(sizeof(struct fragment_key) == 48, "fragment_key");

// What the first piece said, and which pieces were seen, in one word. Places are in
// units of eight bytes.
struct fragment {
	__u64 seen; // PIECES_*
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 type;
	__u8 code;
	__u8 refused; // REASON_*, of the first and so of all; 0: it passed
	__u32 until;  // in eras: when the rest is not expected any more
	__u32 pad;
};
_Static_assert(sizeof(struct fragment) == 24, "fragment");
#define PIECES_PLACE 0x3fffULL
#define PIECES_GAP_SHIFT 14     // where a stretch is missing, before the end of what was seen
#define PIECES_GAP_END_SHIFT 28 // and where it ends; none if nowhere
#define PIECES_LAST_SHIFT 42    // where the packet ends; 0: not known yet

// Refusals that look the same are counted together and reported at most once a
// second.
struct refusal_key {
	struct address source;
	struct address destination;
	__u32 ifindex;
	__u16 service;
	__u8 protocol;
	__u8 reason;
	__u8 verdict;
	__u8 would;
	__u8 to; // seen on the way to the workload
	__u8 differs; // the candidate would let it pass
	__u32 decision;
};
_Static_assert(sizeof(struct refusal_key) == 48, "refusal_key");

#define REFUSAL_IDLE (1ULL << 63)       // nothing came for long: the row goes unless something does
#define REFUSAL_GONE (REFUSAL_IDLE | 1ULL << 62) // it goes: nothing is counted there any more
struct refusal {
	__u64 reported;
	__u64 packets; // not reported yet, or one of these; whoever counts onto the first takes it back
	__u64 bytes;
	__u32 source; // identities: an address may become another's
	__u32 destination;
	__u32 decision;
	__u32 generation;
	__u16 source_port; // of the first; all else is of the last
	__u8 speech;       // SPEECH_*
	__u8 pad[5];
};
_Static_assert(sizeof(struct refusal) == 48, "refusal");

// What somebody asked for by ARP or neighbour discovery that no peer has. It is
// dark once nobody has answered for a moment.
struct question {
	struct address source;
	struct address target;
	__u32 ifindex;
	__u32 protocol; // 0: ARP, 58: neighbour discovery; else of DHCP, and the target is the transaction
};
_Static_assert(sizeof(struct question) == 40, "question");

struct asked {
	__u64 since;
	__u64 reported;
	__u32 count; // not reported yet
	__u32 answered;
	__u32 source; // identity
	__u32 pad;
};
_Static_assert(sizeof(struct asked) == 32, "asked");

// Where steered and diverted packets go. Zero indexes: nowhere.
struct steering {
	__u32 outside;
	__u32 inside;
	__u32 up;
	__u32 decoy;
	__u8 decoy_mac[6];
	__u8 pad[2];
};
_Static_assert(sizeof(struct steering) == 24, "steering");

// The table of flows forgot flows that may live, though idle, to make room: until
// then (monotonic ns) packets in their middle are picked up.
struct pressure {
	__u64 until;
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct tally {
	__u64 offered; // events that were due
	__u64 lost;    // of these, without room in the ring buffer
	__u64 opened;  // flows
	__u64 ended;
	__u64 evicted; // of these, before their time, to make room
	__u64 folded; // refusals that found no row of their own and were counted by port and reason only
	__u64 unanswered; // refusals that ask for an answer and were dropped in silence: too many at once
	__u64 unpaced; // bursts that found their set full: one of two cadences is not counted
	__u64 inquired; // questions to the DNS for names of a ruleset
	__u64 answered; // of these, with addresses that were learned
	__u64 unasked;	// answers to no question that is open
	__u64 unread;	// answers of which not all could be read
	__u64 unlearned; // addresses of names that found no room, or took that of others which still counted
	__u64 greeted; // pieces of greetings that were due
	__u64 ungreeted; // of these, without room in their ring buffer
	__u64 waited; // in the ring when it was last looked into, in parts of wake_bytes
};

// What came of judging by the candidate as well.
struct comparison {
	__u64 evaluated;
	__u64 differs;
};

// The FlowEvent of the root package, but for the clock: monotonic ns.
struct event {
	__u64 time;
	__u32 source;
	__u32 destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 kind;
	__u8 verdict;
	__u8 reason;
	__u32 decision;
	__u32 generation;
	__u32 ifindex;
	__u32 packets;
	__u64 bytes; // and in the highest byte what is spoken: SPEECH_*
	struct address remote;
};
_Static_assert(sizeof(struct event) == 64, "event");
#define EVENT_BYTES 0xffffffffffffffULL
#define EVENT_SPEECH_SHIFT 56

// The Cadence of the root package: the flow's event, and what is counted of it.
struct cadence_event {
	struct event event;
	struct cadence cadence;
};
_Static_assert(sizeof(struct cadence_event) == 136, "cadence_event");

// A piece of what a client of TLS says first, behind the flow's event, in the ring
// buffer of greetings; as many bytes as it has. None say that what the client says is
// in doubt.
#define GREETING_PIECE 4096
struct greeting {
	struct event event;
	__u32 offset; // in what the client says
	__u32 size;
	__u8 bytes[GREETING_PIECE];
};
_Static_assert(sizeof(struct greeting) == 72 + GREETING_PIECE, "greeting");

// What a sweep is asked to do, and what it did.
struct sweep_order {
	__u32 tables; // SWEEP_*
	__u32 ifindex; // flows of this owner end now; 0: only those that are over
	__u32 count;   // of rows in `endings`
	__u32 full;    // the ring is: the rest next time
	__u64 ended;
};
_Static_assert(sizeof(struct sweep_order) == 24, "sweep_order");
#define SWEEP_FLOWS 1
#define SWEEP_REPORTS 2
#define SWEEP_CROWDED 4 // much of the table is taken: what is finished goes early

// Rows that the agent takes to be over, by number.
#define ENDINGS 256
struct endings {
	__u32 row[ENDINGS];
};
