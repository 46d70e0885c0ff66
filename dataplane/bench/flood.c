//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Makes floods of the frame that it is run on: each comes from another port, with
// the checksum that it must have, as fast as the machine goes.

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]

static long (*const bpf_tail_call)(void *context, void *programs, __u32 index) = (void *)12;

struct xdp_md {
	__u32 data;
	__u32 data_end;
};

// An Ethernet frame with an IPv4 header of 20 bytes and TCP.
#define PORT 34
#define CHECKSUM 50
#define WHOLE 54
#define XDP_ABORTED 0
#define XDP_DROP 1
#define XDP_PASS 2

// What meets the frames before the host's stack does, if anything. Programs may follow
// each other if all take frames in pieces, as those of wires do.
struct {
	__uint(type, 3); // BPF_MAP_TYPE_PROG_ARRAY
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 4);
} early SEC(".maps");

static __u32 swap(__u32 x)
{
	return __builtin_bswap16(x);
}

SEC("xdp.frags")
int send_flood(struct xdp_md *xdp)
{
	__u8 *data = (__u8 *)(long)xdp->data;
	if (data + WHOLE > (__u8 *)(long)xdp->data_end)
		return XDP_ABORTED;
	__u16 *port = (__u16 *)(data + PORT), *checksum = (__u16 *)(data + CHECKSUM);
	__u16 next = swap(swap(*port) + 1);
	__u32 sum = (__u16)~*checksum + (__u16)~*port + next; // RFC 1624, equation 3
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*checksum = ~sum;
	*port = next;
	bpf_tail_call(xdp, &early, 0);
	return XDP_PASS;
}

SEC("xdp.frags")
int drop_all(struct xdp_md *xdp)
{
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
