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
#include <linux/pkt_cls.h>

#include "lan_maps.h"
#include "lan_outer.h"
#include "lan_places.h"
#include "traffic.h"

#define SUPERS_MAX 64
#define PAIRED_NS (50 * 1000000ULL)
#define TCP_OPTIONS_MAX 40
#define COPIED 0x80000000 /* in the mark of what goes through the segmenter: the slow path has its copy */

static __always_inline int drop(struct traffic *traffic, enum reason reason, const struct amount *amount)
{
	if (traffic)
		add_drop(traffic, reason, amount->frames);
	return TC_ACT_SHOT;
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
