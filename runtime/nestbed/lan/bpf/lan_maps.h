/* What the fast path is told, and what it notes: written and read by nestbed/lan/fastpath.py. */
#ifndef NESTBED_LAN_MAPS_H
#define NESTBED_LAN_MAPS_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>

#include "traffic.h"

#define LANS_MAX 4096
#define MACS_MAX 65536
#define LEGS_MAX 4
#define PEERS_MAX 64

#define MEMBER_SLOTS 65536

enum lan_flags {
	LAN_UNICAST = 1, /* to each peer instead of to the group */
};

/* What stands before each frame; aligned, so that it begins two bytes late. */
struct outer {
	__u16 unused;
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
};

/* One underlay of a LAN. The header is complete but for lengths, IP id and checksum, source port, and in unicast the destination. */
struct leg {
	__u32 ifindex;
	__u32 mtu;
	struct outer header;
	__u32 sum; /* of the IP header as it stands, in ones' complement, not folded */
};

struct peer {
	__be32 address;
	__u8 mac[ETH_ALEN]; /* of the next hop */
	__u8 leg;
	__u8 is_resolved;
};

struct lan {
	__u64 key;
	__u32 port;  /* the bridge's uplink port */
	__u32 outer; /* its other end */
	__u32 tap;
	__u32 segmenter; /* a device that segments whatever is sent by it */
	__u32 frame_max; /* Ethernet header and payload, without tags */
	__u16 flags;
	__be16 udp_port;
	__u8 legs_count;
	__u8 peers_count;
	__u16 mtu; /* the smallest of its underlays' */
	__u16 unused[2];
	struct leg legs[LEGS_MAX];
	struct peer peers[PEERS_MAX];
};

struct group {
	__be32 address;
	__u32 underlay;
	__be16 udp_port;
	__u16 unused;
};

struct station {
	__u64 lan;
	__u8 mac[ETH_ALEN];
	__u16 unused;
};

struct place {
	__be32 origin; /* 0: on this machine; else the sender of the datagram */
	__u32 moves;
	__u64 heard_ns;
	__u64 window_ns;
	__u64 pinned_ns; /* until then */
	__u64 supers;    /* above 0: its frames came as super-frames of late */
	__u64 paired_ns; /* when a segment of it last took the way through the pair */
};

struct refusal {
	__u64 frames;
	__u64 last_ns;
	__be32 kept;
	__be32 refused;
};

struct echo {
	__u64 lan;
	__u32 underlay;
	__u32 unused;
};

struct lan_traffic {
	struct traffic to_wire;
	struct traffic from_wire;
};

/* By the index of the uplink port and of the tap. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * LANS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct lan);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lans SEC(".maps");

/* What a datagram must be addressed to, and the uplink port of its LAN. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LEGS_MAX * LANS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct group);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} groups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, LANS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct lan_traffic);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lan_traffic SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MACS_MAX);
	__type(key, struct station);
	__type(value, struct place);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} places SEC(".maps");

/* Whether other sockets of this machine are members of a LAN, at the slot of its key's low bits: then the slow path gets a copy of
 * everything. Written by the relay alone. LANs that share a slot share the copies, which does no harm. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MEMBER_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} members SEC(".maps");

/* Stations whose frames are refused because they came round: for the daemon to tell. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct station);
	__type(value, struct refusal);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} refusals SEC(".maps");

/* Underlays on which datagrams that we sent on another one came in, and how many: the two are one segment. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct echo);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} echoes SEC(".maps");

#endif
