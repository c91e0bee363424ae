// Ports: what passes is counted, and what is impaired is led through a leg.
//
// port_in and port_out are the clsact programs of every port (in: from the container, out: to it). An impaired direction of a port has an
// entry in `doors`: its frames are redirected to the leg, a pair of devices A and B, and come back marked:
//
//   port -> A egress (segments super-frames, fills in checksums) -> B ingress [leg: loss, duplication, corruption]
//        -> B egress (tbf, netem) -> A ingress [leg] -> (tap -> relay -> tap ingress [leg]) -> port, marked
//
// The program `leg` stands at the ingress of each device of a leg; `stages` says, by the device's index, what it does there and where
// the frame goes next. Stages and doors are written by nestbed.lan.legs, which has the layouts too (a test compares them).
#include "mld.h"
#include "port_loops.h"
#include "traffic.h"

#include <linux/pkt_cls.h>

#define LEG_MARK 0x6e626c67
#define FROM 0
#define TO 1

#define STAGE_LAST 1    // the frame goes back to the port: mark it, and measure how long it took
#define STAGE_INGRESS 2 // next is the ingress of the device, not its egress

#define BUCKETS_PER_OCTAVE_LOG2 5
#define BUCKET_FIRST_LOG2 10 // delays below 1.024 us are in the first bucket
#define BUCKETS 832          // 26 octaves: up to 68 s

struct port_key {
	__u32 ifindex;
	__u32 direction;
};

struct door {
	__u64 closed_ns; // until then nothing passes: the port closed a loop
	__u32 device;	 // of the leg that frames are led into; 0: they pass
	__u32 unused;
};

struct stage {
	__u64 loss; // thresholds: a random number of 32 bits is below them
	__u64 duplicate;
	__u64 corrupt;
	__u64 busy_gap_ns; // a longer pause between two frames does not count as time in which the leg was busy
	struct port_key port;
	__u32 next_ifindex;
	__u32 flags;
};

struct leg_counters {
	__u64 since_ns; // when it was set, of the wall clock; written by nestbed.lan.legs
	__u64 in_frames;
	__u64 in_bytes;
	__u64 lost;
	__u64 duplicated;
	__u64 corrupted;
	__u64 out_frames;
	__u64 out_bytes;
	__u64 busy_ns;
	__u64 last_ns;
	__u64 delay_count;
	__u64 delay_sum_ns;
	__u64 delay_min_ns;
	__u64 delay_buckets[BUCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct port_key);
	__type(value, struct traffic);
} port_traffic SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct port_key);
	__type(value, struct door);
} port_doors SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct stage);
} leg_stages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct port_key);
	__type(value, struct leg_counters);
} leg_counts SEC(".maps");

static const struct traffic nothing;

static __always_inline struct traffic *traffic_of(const struct port_key *key)
{
	struct traffic *traffic = bpf_map_lookup_elem(&port_traffic, key);

	if (!traffic) {
		bpf_map_update_elem(&port_traffic, key, &nothing, BPF_NOEXIST);
		traffic = bpf_map_lookup_elem(&port_traffic, key);
	}
	return traffic;
}

static __always_inline struct traffic *count(const struct port_key *key, const struct headers *headers, const struct amount *amount)
{
	struct traffic *traffic = traffic_of(key);

	if (traffic)
		add_traffic(traffic, headers, amount);
	return traffic;
}

static __always_inline void count_drop(const struct port_key *key, enum reason reason)
{
	struct traffic *traffic = traffic_of(key);

	if (traffic)
		add_drop(traffic, reason, 1);
}

static __always_inline int enter(struct __sk_buff *skb, const struct port_key *key, __u32 door, const struct amount *amount)
{
	struct leg_counters *counters = bpf_map_lookup_elem(&leg_counts, key);

	if (counters) {
		__sync_fetch_and_add(&counters->in_frames, amount->frames);
		__sync_fetch_and_add(&counters->in_bytes, amount->bytes);
	}
	// Only IP can carry a stamp; of the rest the delay is not measured.
	bpf_skb_set_tstamp(skb, bpf_ktime_get_ns(), BPF_SKB_TSTAMP_DELIVERY_MONO);
	return bpf_redirect(door, 0);
}

static __always_inline int is_closed(const struct door *door)
{
	return door->closed_ns && bpf_ktime_get_coarse_ns() < door->closed_ns;
}

static __always_inline void close_door(const struct port_key *key, __u64 until)
{
	struct door closed = {.closed_ns = until}, *door = bpf_map_lookup_elem(&port_doors, key);

	if (door)
		door->closed_ns = until;
	else
		bpf_map_update_elem(&port_doors, key, &closed, BPF_NOEXIST);
}

static __always_inline void close_port(__u32 port, __u32 kept, const __u8 *mac, __u64 now)
{
	struct port_key key = {.ifindex = port, .direction = FROM};

	close_door(&key, now + CLOSED_NS);
	key.direction = TO;
	close_door(&key, now + CLOSED_NS);
	note_closing(port, kept, mac, now + CLOSED_NS);
}

// Whether a frame that comes in has been on the LAN already, and went round. Of frames to one station only some are looked at, which is
// enough for those that go round for ever.
static __always_inline int came_round(struct __sk_buff *skb, const struct headers *headers, const struct traffic *traffic)
{
	__u32 port = skb->ifindex, slot, is_first;
	struct home *home;
	struct seen *seen;
	__u64 hash, now;

	if (!(headers->eth.h_dest[0] & 1) && traffic && traffic->all.frames % LOOKED_AT)
		return 0;
	home = bpf_map_lookup_elem(&port_homes, &port);
	if (!home)
		return 0;
	hash = hash_of(skb, home->lan);
	slot = (hash & ((1 << SEEN_LOG2) - 1)) | (headers->eth.h_dest[0] & 1) << SEEN_LOG2;
	seen = bpf_map_lookup_elem(&port_seen, &slot);
	if (!seen)
		return 0;
	now = bpf_ktime_get_coarse_ns();
	if (seen->hash != hash || now - seen->at_ns > SECOND_NS) {
		seen->hash = hash;
		seen->at_ns = now;
		seen->port = port;
		seen->other = 0;
		return 0;
	}
	seen->at_ns = now;
	is_first = seen->port == port;
	if (is_first && !seen->other)
		return 0;
	if (!is_first) {
		is_first = is_mac(headers->eth.h_source, home->mac);
		seen->other = is_first ? seen->port : port;
		if (is_first)
			seen->port = port;
	}
	if (is_storm(seen->other, now))
		close_port(seen->other, seen->port, headers->eth.h_source, now);
	return !is_first;
}

SEC("tc")
int port_in(struct __sk_buff *skb)
{
	struct port_key key = {.ifindex = skb->ifindex, .direction = FROM};
	struct headers headers;
	struct traffic *traffic;
	struct amount amount;
	struct door *door;

	if (skb->mark == LEG_MARK) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	read_headers(skb, &headers);
	amount = on_the_wire(&headers, skb->len, skb->gso_size);
	traffic = count(&key, &headers, &amount);
	note_query(skb, &headers);
	if (is_unasked(skb, &headers)) {
		count_drop(&key, REASON_UNASKED);
		return TC_ACT_SHOT;
	}
	door = bpf_map_lookup_elem(&port_doors, &key);
	if ((door && is_closed(door)) || came_round(skb, &headers, traffic)) {
		count_drop(&key, REASON_LOOP);
		return TC_ACT_SHOT;
	}
	return door && door->device ? enter(skb, &key, door->device, &amount) : TC_ACT_UNSPEC;
}

SEC("tc")
int port_out(struct __sk_buff *skb)
{
	struct port_key key = {.ifindex = skb->ifindex, .direction = TO};
	struct headers headers;
	struct amount amount;
	struct door *door;

	read_headers(skb, &headers);
	amount = on_the_wire(&headers, skb->len, skb->gso_size);
	if (skb->mark == LEG_MARK) {
		skb->mark = 0;
	} else {
		door = bpf_map_lookup_elem(&port_doors, &key);
		if (door && is_closed(door)) {
			count_drop(&key, REASON_LOOP);
			return TC_ACT_SHOT;
		}
		if (door && door->device)
			return enter(skb, &key, door->device, &amount);
	}
	count(&key, &headers, &amount);
	note_query(skb, &headers);
	return TC_ACT_UNSPEC;
}

static __always_inline __u32 log2_of(__u64 value)
{
	__u32 result = 0;

	if (value >> 32) {
		value >>= 32;
		result += 32;
	}
	if (value >> 16) {
		value >>= 16;
		result += 16;
	}
	if (value >> 8) {
		value >>= 8;
		result += 8;
	}
	if (value >> 4) {
		value >>= 4;
		result += 4;
	}
	if (value >> 2) {
		value >>= 2;
		result += 2;
	}
	return result + (value >> 1);
}

// The bucket of a delay: 32 per power of two, so each is 3 % wide.
static __always_inline __u32 bucket_of(__u64 delay_ns)
{
	__u32 log2 = log2_of(delay_ns), bucket;

	if (log2 < BUCKET_FIRST_LOG2)
		return 0;
	bucket = ((log2 - BUCKET_FIRST_LOG2) << BUCKETS_PER_OCTAVE_LOG2) |
		 ((delay_ns >> (log2 - BUCKETS_PER_OCTAVE_LOG2)) & ((1 << BUCKETS_PER_OCTAVE_LOG2) - 1));
	return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static __always_inline void measure(struct __sk_buff *skb, struct leg_counters *counters, __u64 now)
{
	__u64 stamp = skb->tstamp, delay;
	__u32 bucket;

	if (skb->tstamp_type != BPF_SKB_TSTAMP_DELIVERY_MONO || !stamp || stamp > now)
		return;
	delay = now - stamp;
	__sync_fetch_and_add(&counters->delay_count, 1);
	__sync_fetch_and_add(&counters->delay_sum_ns, delay);
	if (!counters->delay_min_ns || delay < counters->delay_min_ns)
		counters->delay_min_ns = delay;
	bucket = bucket_of(delay);
	if (bucket < BUCKETS)
		__sync_fetch_and_add(&counters->delay_buckets[bucket], 1);
	bpf_skb_set_tstamp(skb, 0, BPF_SKB_TSTAMP_UNSPEC);
}

static __always_inline void leave(struct __sk_buff *skb, const struct stage *stage, struct leg_counters *counters)
{
	__u64 now = bpf_ktime_get_ns(), gap = now - counters->last_ns;
	struct amount amount = {.frames = 1, .bytes = skb->len};
	struct headers headers;

	if (skb->gso_size) {
		read_headers(skb, &headers);
		amount = on_the_wire(&headers, skb->len, skb->gso_size);
	}
	__sync_fetch_and_add(&counters->out_frames, amount.frames);
	__sync_fetch_and_add(&counters->out_bytes, amount.bytes);
	if (gap < stage->busy_gap_ns)
		__sync_fetch_and_add(&counters->busy_ns, gap);
	counters->last_ns = now;
	measure(skb, counters, now);
}

static __always_inline void corrupt(struct __sk_buff *skb)
{
	__u32 bit = bpf_get_prandom_u32(), offset;
	__u8 byte;

	if (skb->len <= ETH_HLEN)
		return;
	offset = ETH_HLEN + bpf_get_prandom_u32() % (skb->len - ETH_HLEN);
	if (bpf_skb_load_bytes(skb, offset, &byte, 1))
		return;
	byte ^= 1 << (bit & 7);
	bpf_skb_store_bytes(skb, offset, &byte, 1, 0);
	// Nobody has vouched for this payload: let the receiver check it.
	bpf_csum_level(skb, BPF_CSUM_LEVEL_RESET);
}

SEC("tc")
int leg(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, flags;
	struct stage *stage = bpf_map_lookup_elem(&leg_stages, &ifindex);
	struct leg_counters *counters;

	// Nothing of a leg is for this machine's own stack.
	if (!stage)
		return TC_ACT_SHOT;
	counters = bpf_map_lookup_elem(&leg_counts, &stage->port);
	if (!counters)
		return TC_ACT_SHOT;
	if (stage->loss && bpf_get_prandom_u32() < stage->loss) {
		__sync_fetch_and_add(&counters->lost, 1);
		count_drop(&stage->port, REASON_LOSS);
		return TC_ACT_SHOT;
	}
	if (stage->corrupt && bpf_get_prandom_u32() < stage->corrupt) {
		__sync_fetch_and_add(&counters->corrupted, 1);
		corrupt(skb);
	}
	flags = stage->flags & STAGE_INGRESS ? BPF_F_INGRESS : 0;
	if (stage->flags & STAGE_LAST) {
		skb->mark = LEG_MARK;
		leave(skb, stage, counters);
	}
	if (stage->duplicate && bpf_get_prandom_u32() < stage->duplicate) {
		__sync_fetch_and_add(&counters->duplicated, 1);
		if (stage->flags & STAGE_LAST)
			leave(skb, stage, counters);
		bpf_clone_redirect(skb, stage->next_ifindex, flags);
	}
	return bpf_redirect(stage->next_ifindex, flags);
}

// ---- the control network: a container says nothing there but in its own name

struct guard {
	__u8 mac[6];
	__u8 padding[2];
	__be32 ipv4;
	__u32 ipv6[4]; // its link-local address
};

// Not pinned: the next daemon fills one of its own before it puts its program in the place of this one.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct guard);
} port_guards SEC(".maps");

#define ICMPV6_AT (ETH_HLEN + 40)
#define ICMPV6_ADVERTISES_ROUTER 134
#define ICMPV6_ADVERTISES_NEIGHBOUR 136
#define ICMPV6_REDIRECTS 137

static __always_inline int is_ipv6(const __u32 *address, const __u32 *other)
{
	return !((address[0] ^ other[0]) | (address[1] ^ other[1]) | (address[2] ^ other[2]) | (address[3] ^ other[3]));
}

static __always_inline int is_own_arp(struct __sk_buff *skb, const struct guard *guard)
{
	__u8 sender[6];
	__be32 ipv4;

	return bpf_skb_load_bytes(skb, ETH_HLEN + 8, sender, 6) == 0 && bpf_skb_load_bytes(skb, ETH_HLEN + 14, &ipv4, 4) == 0 &&
	       is_mac(sender, guard->mac) && (ipv4 == guard->ipv4 || ipv4 == 0);
}

static __always_inline int is_own_ipv4(struct __sk_buff *skb, const struct guard *guard)
{
	__be32 source;

	return bpf_skb_load_bytes(skb, ETH_HLEN + 12, &source, 4) == 0 && source == guard->ipv4;
}

static __always_inline int is_own_ipv6(struct __sk_buff *skb, const struct guard *guard)
{
	__u32 none[4] = {}, source[4], target[4];
	__u8 next, type;

	if (bpf_skb_load_bytes(skb, ETH_HLEN + 6, &next, 1) || bpf_skb_load_bytes(skb, ETH_HLEN + 8, source, 16))
		return 0;
	// Before it knows that nobody has its address it speaks without one; that is ICMPv6, and MLD behind a hop-by-hop option.
	if (!is_ipv6(source, guard->ipv6) && (!is_ipv6(source, none) || next == IPPROTO_TCP || next == IPPROTO_UDP))
		return 0;
	if (next == IPPROTO_HOPOPTS) // a router alert of 8 octets
		return bpf_skb_load_bytes(skb, ICMPV6_AT, &next, 1) == 0 && next == IPPROTO_ICMPV6 &&
		       bpf_skb_load_bytes(skb, ICMPV6_AT + 1, &type, 1) == 0 && type == 0 &&
		       bpf_skb_load_bytes(skb, ICMPV6_AT + 8, &type, 1) == 0 && (type == 143 || type == 131 || type == 132);
	if (next != IPPROTO_ICMPV6)
		return next == IPPROTO_TCP || next == IPPROTO_UDP;
	if (bpf_skb_load_bytes(skb, ICMPV6_AT, &type, 1) || type == ICMPV6_ADVERTISES_ROUTER || type == ICMPV6_REDIRECTS)
		return 0;
	return type != ICMPV6_ADVERTISES_NEIGHBOUR ||
	       (bpf_skb_load_bytes(skb, ICMPV6_AT + 8, target, 16) == 0 && is_ipv6(target, guard->ipv6));
}

SEC("tc")
int guard(struct __sk_buff *skb)
{
	struct port_key key = {.ifindex = skb->ifindex, .direction = FROM};
	struct guard *guard = bpf_map_lookup_elem(&port_guards, &key.ifindex);
	struct ethhdr eth;
	int is_own = 0;

	if (guard && !skb->vlan_present && bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) == 0 && is_mac(eth.h_source, guard->mac)) {
		if (eth.h_proto == bpf_htons(ETH_P_IP))
			is_own = is_own_ipv4(skb, guard);
		else if (eth.h_proto == bpf_htons(ETH_P_IPV6))
			is_own = is_own_ipv6(skb, guard);
		else if (eth.h_proto == bpf_htons(ETH_P_ARP))
			is_own = is_own_arp(skb, guard);
	}
	if (is_own)
		return TC_ACT_UNSPEC;
	count_drop(&key, REASON_FOREIGN);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "GPL";
