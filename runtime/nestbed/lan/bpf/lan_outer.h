/* The outer headers: put in front of a frame, with its tags, and taken off. */
#ifndef NESTBED_LAN_OUTER_H
#define NESTBED_LAN_OUTER_H

#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#include "lan_maps.h"

#define OUTER_LEN 42 /* Ethernet, IPv4 without options, UDP */
#define TAG_LEN 4
#define TAGS_MAX 4

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

#endif
