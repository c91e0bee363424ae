/* What passed in one direction, told apart by class: nestbed.lanmodel's Traffic in C, read by nestbed/lan/traffic.py. */
#ifndef NESTBED_TRAFFIC_H
#define NESTBED_TRAFFIC_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "reasons.h"

/* The order of nestbed.lanmodel.TRAFFIC_CLASSES. */
enum traffic_class {
	CLASS_IPV4, CLASS_IPV6, CLASS_ARP, CLASS_TCP, CLASS_UDP, CLASS_ICMP, CLASS_MULTICAST, CLASS_BROADCAST, CLASS_OTHER,
	CLASSES,
};

struct amount {
	__u64 frames;
	__u64 bytes;
};

struct traffic {
	struct amount all;
	struct amount classes[CLASSES];
	__u64 drops[REASONS_MAX];
};

/* Where things are in a frame, and which classes it belongs to (a bit for each). */
struct headers {
	struct ethhdr eth;
	__u16 classes;
	__u16 l3;     /* where what the EtherType names begins, behind VLAN tags */
	__u16 length; /* of all headers, TCP's with them if it is TCP: what each segment of a super-frame begins with */
	__be16 protocol; /* the EtherType behind VLAN tags */
	__u16 is_fragment;
};

#ifndef ETH_P_8021AD
#define ETH_P_8021AD 0x88A8
#endif

static __always_inline void note_l4(struct __sk_buff *skb, struct headers *h, __u32 at, __u8 protocol, int is_first)
{
	__u8 offset;

	h->length = at;
	switch (protocol) {
	case IPPROTO_TCP:
		h->classes |= 1 << CLASS_TCP;
		h->length = at + 20;
		/* Its options matter to super-frames alone, which repeat them. */
		if (skb->gso_size && is_first && bpf_skb_load_bytes(skb, at + 12, &offset, 1) == 0)
			h->length = at + (offset >> 4) * 4;
		break;
	case IPPROTO_UDP:
		h->classes |= 1 << CLASS_UDP;
		h->length = at + 8;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		h->classes |= 1 << CLASS_ICMP;
		break;
	}
}

static __always_inline void note_ipv4(struct __sk_buff *skb, struct headers *h)
{
	__u8 ip[10];

	h->classes |= 1 << CLASS_IPV4;
	if (bpf_skb_load_bytes(skb, h->l3, ip, sizeof(ip)) == 0) {
		h->is_fragment = (ip[6] & 0x3F) | ip[7];
		note_l4(skb, h, h->l3 + (ip[0] & 15) * 4, ip[9], !((ip[6] & 0x1F) | ip[7]));
	}
}

static __always_inline void note_ipv6(struct __sk_buff *skb, struct headers *h)
{
	__u8 next, option[2];
	__u32 at = h->l3 + 40;

	h->classes |= 1 << CLASS_IPV6;
	if (bpf_skb_load_bytes(skb, h->l3 + 6, &next, 1) < 0)
		return;
	/* The one extension header that ordinary traffic has: MLD's router alert. */
	if (next == IPPROTO_HOPOPTS && bpf_skb_load_bytes(skb, at, option, 2) == 0) {
		next = option[0];
		at += (option[1] + 1) * 8;
	}
	note_l4(skb, h, at, next, 1);
}

static __always_inline int is_all_ones(const __u8 *mac)
{
	return (mac[0] & mac[1] & mac[2] & mac[3] & mac[4] & mac[5]) == 0xFF;
}

/* Read the headers of a frame (skb->data at its Ethernet header). 0, or -1 for one without an Ethernet header. */
static __always_inline int read_headers(struct __sk_buff *skb, struct headers *h)
{
	__be16 tag[2];

	h->classes = h->is_fragment = 0;
	h->l3 = h->length = ETH_HLEN;
	if (bpf_skb_load_bytes(skb, 0, &h->eth, sizeof(h->eth)) < 0)
		return -1;
	h->protocol = h->eth.h_proto;
	if (h->eth.h_dest[0] & 1) {
		int is_broadcast = is_all_ones(h->eth.h_dest);

		h->classes |= 1 << (is_broadcast ? CLASS_BROADCAST : CLASS_MULTICAST);
	}
#pragma unroll
	for (int tags = 0; tags < 2; tags++) {
		if (h->protocol != bpf_htons(ETH_P_8021Q) && h->protocol != bpf_htons(ETH_P_8021AD))
			break;
		if (bpf_skb_load_bytes(skb, h->l3, tag, sizeof(tag)) < 0)
			break;
		h->protocol = tag[1];
		h->l3 += 4;
		h->length = h->l3;
	}
	if (h->protocol == bpf_htons(ETH_P_IP))
		note_ipv4(skb, h);
	else if (h->protocol == bpf_htons(ETH_P_IPV6))
		note_ipv6(skb, h);
	else
		h->classes |= 1 << (h->protocol == bpf_htons(ETH_P_ARP) ? CLASS_ARP : CLASS_OTHER);
	return 0;
}

/* How many frames of how many bytes a (super-)frame of length bytes is on the wire. */
static __always_inline struct amount on_the_wire(const struct headers *h, __u32 length, __u32 gso_size)
{
	struct amount amount = { .frames = 1, .bytes = length };

	if (gso_size && length > h->length + gso_size) {
		amount.frames = (length - h->length + gso_size - 1) / gso_size;
		amount.bytes += (amount.frames - 1) * h->length;
	}
	return amount;
}

/* traffic is a per-CPU value: tc programs run with soft interrupts off, so nothing else on this CPU is half way through adding. */
static __always_inline void add_traffic(struct traffic *traffic, const struct headers *h, const struct amount *amount)
{
	traffic->all.frames += amount->frames;
	traffic->all.bytes += amount->bytes;
#pragma unroll
	for (int class = 0; class < CLASSES; class++)
		if (h->classes & (1 << class)) {
			traffic->classes[class].frames += amount->frames;
			traffic->classes[class].bytes += amount->bytes;
		}
}

static __always_inline void add_drop(struct traffic *traffic, enum reason reason, __u64 frames)
{
	traffic->drops[reason & (REASONS_MAX - 1)] += frames;
}

#endif
