/* Loops within this machine: containers that bridge NICs of one LAN, or of LANs that others join, too. A LAN is a switch without STP, and
 * the node adds no frame of its own to it, so a loop is known by what it does: a frame comes into a LAN by a second port.
 *
 * What came in within a second is remembered by a hash of its beginning. The same frame at another port of the LAN came round, and is
 * dropped there. (Of frames to one station, which are known to come round only if nobody knows the station, one in LOOKED_AT is looked at:
 * hashing each took 3 % of the rate of small frames.) A port by which FRAMES_MAX of them came within a second is closed both ways, and opened again after CLOSED_NS: if
 * the loop is still there, that many frames tell. A station that moves, or is in two places, sends other frames there, and is let alone.
 *
 * A frame with the MAC of the port's own NIC is at home: it is the other port that is in the wrong, also if it came first. */
#ifndef NESTBED_PORT_LOOPS_H
#define NESTBED_PORT_LOOPS_H

#include "traffic.h"

#define SECOND_NS 1000000000ULL
#define CLOSED_NS (5 * SECOND_NS)
#define FRAMES_MAX 16
#define LOOKED_AT 16 /* one of so many frames to one station */
#define BEGINNING 64
#define SEEN_LOG2 11

/* A port's LAN and NIC; written by nestbed.lan.programs. Frames of ports without an entry are not looked at. */
struct home {
	__u64 lan;
	__u64 window_ns;
	__u8 mac[6];
	__u16 came_round; /* frames, since window_ns */
};

struct seen {
	__u64 hash;
	__u64 at_ns;
	__u32 port;
	__u32 other; /* the port by which it came round; 0: none */
};

/* A port that was closed. */
struct port_loop {
	__u64 until_ns;
	__u32 closings;
	__u32 kept; /* the port where the same frames were before */
	__u8 mac[6]; /* the last one's source */
	__u16 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct home);
} port_homes SEC(".maps");

/* Those to one station, and those to many: these are few, and kept longer. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 << SEEN_LOG2);
	__type(key, __u32);
	__type(value, struct seen);
} port_seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct port_loop);
} port_loops SEC(".maps");

static __always_inline __u64 hash_of(struct __sk_buff *skb, __u64 lan)
{
	__u64 words[BEGINNING / 8] = {}, hash = lan ^ skb->len, length = skb->len;

	if (skb->vlan_present)
		hash ^= (__u64)(skb->vlan_tci & 0xFFFF) << 32;
	if (length < BEGINNING) {
		/* The verifier of 6.1 does not see by itself that it is short. */
		asm volatile("%0 &= %1" : "+r"(length) : "i"(BEGINNING - 1));
		if (length < ETH_HLEN || bpf_skb_load_bytes(skb, 0, words, length) < 0)
			return 0;
	} else if (bpf_skb_load_bytes(skb, 0, words, BEGINNING) < 0) {
		return 0;
	}
#pragma unroll
	for (int i = 0; i < BEGINNING / 8; i++) {
		hash = (hash ^ words[i]) * 0x9E3779B97F4A7C15ULL;
		hash ^= hash >> 32;
	}
	return hash;
}

static __always_inline int is_mac(const __u8 *mac, const __u8 *other)
{
	return !((mac[0] ^ other[0]) | (mac[1] ^ other[1]) | (mac[2] ^ other[2]) | (mac[3] ^ other[3]) | (mac[4] ^ other[4]) |
		 (mac[5] ^ other[5]));
}

/* A frame came round by this port: whether that is one too many. */
static __always_inline int is_storm(__u32 port, __u64 now)
{
	struct home *home = bpf_map_lookup_elem(&port_homes, &port);

	if (!home)
		return 0;
	if (now - home->window_ns > SECOND_NS) {
		home->window_ns = now;
		home->came_round = 0;
	}
	if (++home->came_round < FRAMES_MAX)
		return 0;
	home->came_round = 0;
	return 1;
}

static __always_inline void note_closing(__u32 port, __u32 kept, const __u8 *mac, __u64 until)
{
	struct port_loop first = { .closings = 1, .until_ns = until, .kept = kept };
	struct port_loop *found = bpf_map_lookup_elem(&port_loops, &port);

	__builtin_memcpy(first.mac, mac, sizeof(first.mac));
	if (found)
		first.closings = found->closings + 1;
	bpf_map_update_elem(&port_loops, &port, &first, BPF_ANY);
}

#endif
