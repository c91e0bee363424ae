/* The fast path between machines: one bare Ethernet frame per UDP datagram, in QEMU's format.
 *
 *   encap     on the bridge's uplink port, egress: frame -> datagram(s) out of the underlay NICs
 *   decap     on an underlay NIC, ingress: datagram -> frame into the bridge through the uplink
 *   resume    on the far end of the segmenter, ingress: as encap, for the segments of super-frames that cannot be carried whole
 *   from_tap  on the tap of the slow path, ingress: what the relay took from the wire -> into the bridge
 *
 * What none of them can carry goes to the slow path: frames by the tap, datagrams by the network stack to the relay's sockets.
 * nestbed/lan/fastpath.py writes the maps; docs/lan.md describes the whole. For verifiers from Linux 6.1 on.
 */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include "traffic.h"

#define LANS_MAX 4096
#define MACS_MAX 65536
#define LEGS_MAX 4
#define PEERS_MAX 64

#define OUTER_LEN 42 /* Ethernet, IPv4 without options, UDP */
#define TAG_LEN 4
#define TAGS_MAX 4

#define MOVES_MAX 5
#define SECOND_NS 1000000000ULL
#define AT_ONCE_NS (50 * 1000000ULL)
#define PIN_NS (5 * SECOND_NS)
#define SUPERS_MAX 64
#define PAIRED_NS (50 * 1000000ULL)
#define TCP_OPTIONS_MAX 40
#define MEMBER_SLOTS 65536
#define COPIED 0x80000000 /* in the mark of what goes through the segmenter: the slow path has its copy */

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

static __always_inline int drop(struct traffic *traffic, enum reason reason, const struct amount *amount)
{
	if (traffic)
		add_drop(traffic, reason, amount->frames);
	return TC_ACT_SHOT;
}

static __always_inline void note_refusal(const struct station *station, __be32 kept, __be32 refused, __u64 now)
{
	struct refusal first = { .frames = 1, .last_ns = now, .kept = kept, .refused = refused };
	struct refusal *found = bpf_map_lookup_elem(&refusals, station);

	if (!found) {
		bpf_map_update_elem(&refusals, station, &first, BPF_ANY);
		return;
	}
	found->frames++;
	found->last_ns = now;
	found->kept = kept;
	found->refused = refused;
}

/* A station was seen at an origin: 1 if it may be there, 0 if not. It may move; but what is in two places at once comes round in a loop,
 * and of it only what came first is taken. So is what moves too often: it is pinned, as long as both are heard. */
static __always_inline int note_place(struct place *place, const struct station *station, __be32 origin)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (place->origin == origin) {
		place->heard_ns = now;
		return 1;
	}
	if (now - place->window_ns > SECOND_NS) {
		place->window_ns = now;
		place->moves = 0;
	}
	if (now >= place->pinned_ns && ++place->moves > MOVES_MAX)
		place->pinned_ns = now + PIN_NS;
	if (now < place->pinned_ns && now - place->heard_ns < PIN_NS)
		place->moves = 0;
	else if (now - place->heard_ns >= AT_ONCE_NS) {
		place->pinned_ns = 0;
		place->origin = origin;
		place->heard_ns = now;
		place->supers = 0;
		return 1;
	}
	note_refusal(station, place->origin, origin, now);
	return 0;
}

/* The place of a station that was seen at an origin; NULL only if there is no memory. is_allowed as note_place says. */
static __always_inline struct place *see(const struct station *station, __be32 origin, int *is_allowed)
{
	struct place *place = bpf_map_lookup_elem(&places, station);

	*is_allowed = 1;
	if (place) {
		*is_allowed = note_place(place, station, origin);
	} else {
		struct place first = { .origin = origin, .heard_ns = bpf_ktime_get_coarse_ns() };

		bpf_map_update_elem(&places, station, &first, BPF_ANY);
		place = bpf_map_lookup_elem(&places, station);
	}
	return place;
}

/* Whether a station can have this address: neither a group's nor zero. */
static __always_inline int is_station(const __u8 *mac)
{
	return !(mac[0] & 1) && (mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5]);
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return ~sum;
}

/* The frame to be sent: what stays the same for each destination. */
struct sending {
	__u32 frame_length; /* with tags; of a super-frame, all of it */
	__u32 hash;
};

/* Write the outer headers for one destination in front of the frame, where there is room for them. 0, or a negative errno. */
static __always_inline int address_to(struct __sk_buff *skb, const struct leg *leg, const struct peer *peer, const struct sending *sending)
{
	struct outer header = leg->header;
	__u16 port = 32768 + (sending->hash & 0x3FFF);
	__u32 sum = leg->sum;

	if (peer) {
		__builtin_memcpy(header.eth.h_dest, peer->mac, ETH_ALEN);
		header.ip.daddr = peer->address;
		sum += (peer->address & 0xFFFF) + (peer->address >> 16);
	}
	header.ip.tot_len = bpf_htons(sending->frame_length + sizeof(header.ip) + sizeof(header.udp));
	header.ip.id = bpf_get_prandom_u32();
	header.ip.check = fold(sum + header.ip.tot_len + header.ip.id);
	header.udp.source = bpf_htons(port);
	if (header.udp.source == header.udp.dest) /* that is QEMU's source port */
		header.udp.source = bpf_htons(port ^ 1);
	header.udp.len = bpf_htons(sending->frame_length + sizeof(header.udp));
	return bpf_skb_store_bytes(skb, 0, &header.eth, OUTER_LEN, 0);
}

/* What tells flows apart: the kernel's hash if it has one (a socket's), else one of addresses and ports; its own takes as long as all the
 * rest of encap.
 */
static __always_inline __u32 flow_hash(struct __sk_buff *skb, const struct headers *headers)
{
	__u32 words[6] = {}, hash = skb->hash;

	if (hash)
		return hash;
	if (headers->protocol == bpf_htons(ETH_P_IP)) /* both addresses, and the ports behind them */
		bpf_skb_load_bytes(skb, headers->l3 + 12, words, headers->is_fragment ? 8 : 12);
	else if (headers->protocol == bpf_htons(ETH_P_IPV6)) /* the end of the source, the destination, the ports */
		bpf_skb_load_bytes(skb, headers->l3 + 20, words, sizeof(words));
#pragma unroll
	for (int i = 0; i < 6; i++) {
		hash ^= words[i];
		hash *= 0x9E3779B1; /* 2^32 over the golden ratio */
		hash ^= hash >> 15;
	}
	return hash;
}

/* Take the tags out of the metadata: they go between the addresses and the EtherType, where the wire has them. Their length in bytes. */
static __always_inline __u32 take_tags(struct __sk_buff *skb, __be16 *tags)
{
	__u32 length = 0;

#pragma unroll
	for (int i = 0; i < TAGS_MAX; i++) {
		if (!skb->vlan_present)
			break;
		tags[2 * i] = skb->vlan_proto;
		tags[2 * i + 1] = bpf_htons(skb->vlan_tci);
		if (bpf_skb_vlan_pop(skb) < 0) /* a tag that follows in the frame moves up into the metadata */
			break;
		length += TAG_LEN;
	}
	return length;
}

/* Undo take_tags. */
static __always_inline void put_tags_back(struct __sk_buff *skb, const __be16 *tags, __u32 tags_length)
{
#pragma unroll
	for (int i = TAGS_MAX - 1; i >= 0; i--)
		if (tags_length > (__u32)i * TAG_LEN)
			bpf_skb_vlan_push(skb, tags[2 * i], bpf_ntohs(tags[2 * i + 1]));
}

/* Make room for the outer headers and tags in front of the frame, and write the inner Ethernet header. 0, or a negative errno. */
static __always_inline int make_room(struct __sk_buff *skb, struct ethhdr *eth, __be16 *tags, __u32 tags_length)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
		      BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN + tags_length);
	__u32 is_ip = skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
	int result = -1;

	/* A short one must not be marked as encapsulated: decap could not lengthen it then. */
	if (is_ip && skb->len >= ETH_HLEN + sizeof(struct iphdr))
		result = bpf_skb_adjust_room(skb, OUTER_LEN + tags_length, BPF_ADJ_ROOM_MAC, flags);
	if (result < 0) {
		if (skb->gso_size)
			return result;
		result = bpf_skb_change_head(skb, OUTER_LEN + tags_length, 0);
	}
	if (result < 0)
		return result;
	if (!tags_length)
		return bpf_skb_store_bytes(skb, OUTER_LEN, eth, sizeof(*eth), 0);
	bpf_skb_store_bytes(skb, OUTER_LEN, eth, 2 * ETH_ALEN, 0);
#pragma unroll
	for (int i = 0; i < TAGS_MAX; i++)
		if (tags_length > (__u32)i * TAG_LEN)
			bpf_skb_store_bytes(skb, OUTER_LEN + 2 * ETH_ALEN + i * TAG_LEN, tags + 2 * i, TAG_LEN, 0);
	return bpf_skb_store_bytes(skb, OUTER_LEN + 2 * ETH_ALEN + tags_length, &eth->h_proto, sizeof(eth->h_proto), 0);
}

static __always_inline int send_to_group(struct __sk_buff *skb, struct lan *lan, const struct sending *sending)
{
#pragma unroll
	for (int i = 1; i < LEGS_MAX; i++)
		if (i < lan->legs_count && address_to(skb, &lan->legs[i], NULL, sending) == 0)
			bpf_clone_redirect(skb, lan->legs[i].ifindex, 0);
	if (address_to(skb, &lan->legs[0], NULL, sending) < 0)
		return -1;
	return bpf_redirect(lan->legs[0].ifindex, 0);
}

struct round {
	struct __sk_buff *skb;
	struct lan *lan;
	const struct sending *sending;
	__be32 only;
	__u32 pending; /* the underlay for which the frame is addressed, but not sent: the last one needs no copy */
	__s32 result;
};

static long send_to_peer(__u32 i, struct round *round)
{
	struct peer *peer = &round->lan->peers[i & (PEERS_MAX - 1)];
	struct leg *leg = &round->lan->legs[peer->leg & (LEGS_MAX - 1)];

	if (!peer->is_resolved || (round->only && peer->address != round->only))
		return 0;
	if (round->pending)
		bpf_clone_redirect(round->skb, round->pending, 0);
	round->pending = leg->ifindex;
	round->result = address_to(round->skb, leg, peer, round->sending);
	return round->result < 0;
}

/* To one peer, the one whose address is given, or to all. -1 if there is none that can be reached. */
static __always_inline int send_to_peers(struct __sk_buff *skb, struct lan *lan, const struct sending *sending, __be32 only)
{
	struct round round = { .skb = skb, .lan = lan, .sending = sending, .only = only };

	bpf_loop(lan->peers_count, send_to_peer, &round, 0);
	if (round.result < 0 || !round.pending)
		return -1;
	return bpf_redirect(round.pending, 0);
}

/* The peer that has a station, 0 for one that nobody or everybody has. */
static __always_inline __be32 owner(struct lan *lan, const __u8 *mac)
{
	struct station station = { .lan = lan->key };
	struct place *place;

	if (!(lan->flags & LAN_UNICAST) || (mac[0] & 1))
		return 0;
	__builtin_memcpy(station.mac, mac, ETH_ALEN);
	place = bpf_map_lookup_elem(&places, &station);
	return place ? place->origin : 0;
}

static __always_inline int has_members(const struct lan *lan)
{
	__u32 slot = lan->key & (MEMBER_SLOTS - 1);
	__u32 *found = bpf_map_lookup_elem(&members, &slot);

	return found && *found;
}

static __always_inline int to_slow_path(struct lan *lan, struct traffic *traffic, enum reason otherwise, const struct amount *amount)
{
	return lan->tap ? bpf_redirect(lan->tap, 0) : drop(traffic, otherwise, amount);
}

/* A super-frame of anything but TCP, or one that was carried by the wire before: its marks of that time would have the kernel segment it
 * wrongly, and nothing takes them off. Its segments come back by resume. */
static __always_inline int segment(struct __sk_buff *skb, struct lan *lan, __u32 copied)
{
	skb->mark = lan->port | copied;
	return bpf_redirect(lan->segmenter, 0);
}

static __always_inline int carry(struct __sk_buff *skb, __u32 index, __u32 copied)
{
	__u32 tags_length, longest;
	struct lan *lan = bpf_map_lookup_elem(&lans, &index);
	struct sending sending = {};
	struct lan_traffic *both;
	struct traffic *traffic = NULL;
	struct station station = {};
	__be16 tags[2 * TAGS_MAX];
	struct amount amount;
	struct headers headers;
	struct ethhdr eth;
	__be32 only;
	int is_allowed, result;

	if (!lan)
		return TC_ACT_SHOT;
	both = bpf_map_lookup_elem(&lan_traffic, &lan->key);
	if (both)
		traffic = &both->to_wire;
	if (read_headers(skb, &headers) < 0) {
		amount.frames = 1;
		return drop(traffic, REASON_RUNT, &amount);
	}
	eth = headers.eth;
	amount = on_the_wire(&headers, skb->len, skb->gso_size);
	if (!is_station(eth.h_source))
		return drop(traffic, REASON_MALFORMED, &amount);
	station.lan = lan->key;
	__builtin_memcpy(station.mac, eth.h_source, ETH_ALEN);
	see(&station, 0, &is_allowed);
	if (!is_allowed)
		return drop(traffic, REASON_LOOP, &amount);
	if (!lan->legs_count)
		return drop(traffic, REASON_UNDERLAY_DOWN, &amount);

	longest = amount.frames > 1 ? headers.length + skb->gso_size : skb->len;
	longest += OUTER_LEN - ETH_HLEN + (skb->vlan_present ? TAG_LEN : 0);
	if (longest > lan->mtu)
		return to_slow_path(lan, traffic, REASON_OVERSIZE, &amount);
	if (skb->gso_size && !(headers.classes & (1 << CLASS_TCP)))
		return segment(skb, lan, copied);
	if (lan->tap && !copied && has_members(lan) && bpf_clone_redirect(skb, lan->tap, 0) == 0)
		copied = COPIED;

	only = owner(lan, eth.h_dest);
	sending.hash = flow_hash(skb, &headers);
	tags_length = take_tags(skb, tags);
	if (skb->vlan_present) /* more of them than anybody uses */
		return drop(traffic, REASON_MALFORMED, &amount);
	if (tags_length && bpf_skb_load_bytes(skb, 2 * ETH_ALEN, &eth.h_proto, sizeof(eth.h_proto)) < 0)
		return drop(traffic, REASON_NO_MEMORY, &amount);
	sending.frame_length = skb->len + tags_length;
	if (make_room(skb, &eth, tags, tags_length) < 0) {
		if (!skb->gso_size)
			return drop(traffic, REASON_NO_MEMORY, &amount);
		put_tags_back(skb, tags, tags_length);
		return segment(skb, lan, copied);
	}
	result = lan->flags & LAN_UNICAST ? send_to_peers(skb, lan, &sending, only) : send_to_group(skb, lan, &sending);
	if (result < 0)
		return drop(traffic, REASON_UNDERLAY_DOWN, &amount);
	if (traffic)
		add_traffic(traffic, &headers, &amount);
	return result;
}

SEC("tc")
int encap(struct __sk_buff *skb)
{
	return carry(skb, skb->ifindex, 0);
}

SEC("tc")
int resume(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;

	skb->mark = 0;
	return carry(skb, mark & ~COPIED, mark & COPIED);
}

static __always_inline int is_peer(struct lan *lan, __be32 address)
{
	for (int i = 0; i < PEERS_MAX; i++) {
		if (i >= lan->peers_count)
			break;
		if (lan->peers[i].address == address)
			return 1;
	}
	return 0;
}

/* Whether a datagram that came in is one that this LAN sent: on the same underlay or, which is noted, on another. */
static __always_inline int is_own(struct __sk_buff *skb, struct lan *lan, __be32 source)
{
#pragma unroll
	for (int i = 0; i < LEGS_MAX; i++) {
		struct echo echo = { .lan = lan->key, .underlay = skb->ifindex };
		__u64 *count, one = 1;

		if (i >= lan->legs_count || lan->legs[i].header.ip.saddr != source)
			continue;
		if (lan->legs[i].ifindex == skb->ifindex)
			return 1;
		count = bpf_map_lookup_elem(&echoes, &echo);
		if (count)
			*count += 1;
		else
			bpf_map_update_elem(&echoes, &echo, &one, BPF_ANY);
		return 1;
	}
	return 0;
}

/* A LAN with several underlays joins them: what came in on one goes out on the others, as it is. */
static __always_inline void pass_on(struct __sk_buff *skb, struct lan *lan, __u32 came_in_on, const struct sending *sending)
{
#pragma unroll
	for (int i = 0; i < LEGS_MAX; i++)
		if (i < lan->legs_count && lan->legs[i].ifindex != came_in_on &&
		    sending->frame_length + OUTER_LEN - ETH_HLEN <= lan->legs[i].mtu + (skb->gso_size ? 65536 : 0) &&
		    address_to(skb, &lan->legs[i], NULL, sending) == 0)
			bpf_clone_redirect(skb, lan->legs[i].ifindex, 0);
}

/* Take the outer headers off: what is left begins with the inner Ethernet header. 0, or a negative errno. */
static __always_inline int strip(struct __sk_buff *skb, struct ethhdr *eth, __u32 frame_length)
{
	__u32 least = ETH_HLEN + sizeof(struct iphdr);
	int result;

	/* The kernel takes off no header that leaves less than an IP header: lengthen, and shorten again. */
	if (frame_length < least && bpf_skb_change_tail(skb, OUTER_LEN + least, 0) < 0)
		return -1;
	result = bpf_skb_adjust_room(skb, -OUTER_LEN, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	if (result < 0)
		return result;
	if (frame_length < least && bpf_skb_change_tail(skb, frame_length, 0) < 0)
		return -1;
	return bpf_skb_store_bytes(skb, 0, eth, sizeof(*eth), 0);
}

static __always_inline int into_bridge(struct __sk_buff *skb, struct lan *lan, struct place *place, const struct headers *headers)
{
	int is_large;

	/* Super-frames go straight into the bridge. Segments of TCP take the way through the pair, whose far end puts them together
	 * again: the two ways are not mixed while super-frames come, or they would overtake each other. */
	if (skb->gso_size) {
		if (place)
			place->supers = SUPERS_MAX;
		return bpf_redirect(lan->port, BPF_F_INGRESS);
	}
	if (!(headers->classes & (1 << CLASS_TCP)))
		return bpf_redirect(lan->port, BPF_F_INGRESS);
	is_large = skb->len > headers->length + TCP_OPTIONS_MAX;
	if (place && place->supers) {
		if (is_large)
			place->supers--;
		return bpf_redirect(lan->port, BPF_F_INGRESS);
	}
	/* Nothing is gained by putting acknowledgements together. */
	if (place && !is_large && place->heard_ns - place->paired_ns > PAIRED_NS)
		return bpf_redirect(lan->port, BPF_F_INGRESS);
	if (place && is_large)
		place->paired_ns = place->heard_ns;
	return bpf_redirect(lan->outer, 0);
}

SEC("tc")
int decap(struct __sk_buff *skb)
{
	struct sending sending = {};
	struct station station = {};
	struct group group = {};
	struct lan_traffic *both;
	struct traffic *traffic = NULL;
	struct headers headers;
	struct amount amount = { .frames = 1 };
	struct outer outer;
	struct place *place;
	struct ethhdr eth;
	__u32 *port, longest;
	struct lan *lan;
	int is_allowed;

	/* A locally sent datagram that the stack loops back has no Ethernet header here, and is for the relay's sockets. */
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type == PACKET_LOOPBACK || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (bpf_skb_load_bytes(skb, 0, &outer.eth, OUTER_LEN) < 0 || outer.ip.protocol != IPPROTO_UDP || outer.ip.ihl != 5)
		return TC_ACT_UNSPEC;
	if (outer.ip.frag_off & bpf_htons(0x3FFF)) /* the stack puts it together */
		return TC_ACT_UNSPEC;
	group.address = outer.ip.daddr;
	group.underlay = skb->ifindex;
	group.udp_port = outer.udp.dest;
	port = bpf_map_lookup_elem(&groups, &group);
	if (!port)
		return TC_ACT_UNSPEC;
	lan = bpf_map_lookup_elem(&lans, port);
	if (!lan)
		return TC_ACT_UNSPEC;
	both = bpf_map_lookup_elem(&lan_traffic, &lan->key);
	if (both)
		traffic = &both->from_wire;

	if (is_own(skb, lan, outer.ip.saddr))
		return drop(traffic, REASON_OWN, &amount);
	if ((lan->flags & LAN_UNICAST) && !is_peer(lan, outer.ip.saddr))
		return drop(traffic, REASON_STRANGER, &amount);
	/* Several datagrams that a socket of another machine handed down as one: the stack takes them apart. */
	if (skb->gso_size && outer.udp.check)
		return TC_ACT_UNSPEC;

	sending.frame_length = skb->len - OUTER_LEN;
	if (!skb->gso_size) {
		__u32 datagram = bpf_ntohs(outer.udp.len);

		if (datagram < sizeof(outer.udp) || datagram + sizeof(outer.ip) > bpf_ntohs(outer.ip.tot_len) ||
		    datagram + sizeof(outer.ip) + ETH_HLEN > skb->len)
			return drop(traffic, REASON_MALFORMED, &amount);
		sending.frame_length = datagram - sizeof(outer.udp);
	}
	if (sending.frame_length < ETH_HLEN || bpf_skb_load_bytes(skb, OUTER_LEN, &eth, sizeof(eth)) < 0)
		return drop(traffic, REASON_RUNT, &amount);
	if (!is_station(eth.h_source))
		return drop(traffic, REASON_MALFORMED, &amount);
	/* What lies behind the datagram fills an Ethernet frame up to its least length. */
	if (skb->len > OUTER_LEN + sending.frame_length && bpf_skb_change_tail(skb, OUTER_LEN + sending.frame_length, 0) < 0)
		return drop(traffic, REASON_NO_MEMORY, &amount);
	station.lan = lan->key;
	__builtin_memcpy(station.mac, eth.h_source, ETH_ALEN);
	place = see(&station, outer.ip.saddr, &is_allowed);
	if (!is_allowed)
		return drop(traffic, REASON_LOOP, &amount);
	if (lan->legs_count > 1 && !(lan->flags & LAN_UNICAST)) {
		sending.hash = bpf_get_hash_recalc(skb);
		pass_on(skb, lan, group.underlay, &sending);
	}

	if (strip(skb, &eth, sending.frame_length) < 0 || read_headers(skb, &headers) < 0)
		return drop(traffic, REASON_NO_MEMORY, &amount);
	amount = on_the_wire(&headers, skb->len, skb->gso_size);
	longest = amount.frames > 1 ? headers.length + skb->gso_size : skb->len;
	if (longest > lan->frame_max + headers.l3 - ETH_HLEN)
		return drop(traffic, REASON_GIANT, &amount);
	if (traffic)
		add_traffic(traffic, &headers, &amount);
	/* Other sockets of this machine do not see the datagram any more. The relay tells by the length that this is for them alone. */
	if (lan->tap && has_members(lan) && longest + OUTER_LEN - ETH_HLEN <= lan->mtu)
		bpf_clone_redirect(skb, lan->tap, 0);
	return into_bridge(skb, lan, place, &headers);
}

SEC("tc")
int from_tap(struct __sk_buff *skb)
{
	__u32 index = skb->ifindex;
	struct lan *lan = bpf_map_lookup_elem(&lans, &index);

	return lan ? bpf_redirect(lan->port, BPF_F_INGRESS) : TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "GPL";
