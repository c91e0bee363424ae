/* Reports of IPv6 multicast listeners (MLD, RFC 3810) that nobody has asked for.
 *
 * A kernel reports the solicited-node group of each of its addresses four times when a NIC comes up, to ff02::16, where only multicast
 * routers and switches that snoop listen. Flooded, each report reaches every member: on a LAN of a thousand that takes 5 ms of processor
 * time, three times what the making of a container does. So they are dropped, as by a switch that snoops and knows of no router (RFC 4541,
 * 2.1.1), until somebody on any LAN of this node asks: whoever uses reports asks for them first. Reports of other groups always pass.
 */
#ifndef NESTBED_MLD_H
#define NESTBED_MLD_H

#include "traffic.h"

#define MLD_QUERY 130
#define MLD_REPORT_V2 143
#define ASKED_NS (600 * 1000000000ULL) /* queries come every 125 s */
#define RECORDS_MAX 8

struct mld_report {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 reserved;
	__be16 records;
};

struct mld_record {
	__u8 type;
	__u8 auxiliary_words;
	__be16 sources;
	__be32 group[4];
};

/* When a query passed last; 0: never. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} mld_asked SEC(".maps");

static __always_inline __u64 *asked_ns(void)
{
	__u32 first = 0;

	return bpf_map_lookup_elem(&mld_asked, &first);
}

/* The type of a message of MLD, whose router alert stands between the headers; 0 for other frames. */
static __always_inline __u8 mld_type(struct __sk_buff *skb, const struct headers *h)
{
	const __u16 wanted = 1 << CLASS_IPV6 | 1 << CLASS_ICMP | 1 << CLASS_MULTICAST;
	__u8 type;

	if ((h->classes & wanted) != wanted || h->length == h->l3 + 40 || bpf_skb_load_bytes(skb, h->length, &type, 1) < 0)
		return 0;
	return type;
}

static __always_inline int is_solicited_node(const __be32 *group)
{
	return group[0] == bpf_htonl(0xff020000) && !group[1] && group[2] == bpf_htonl(1) &&
	       (group[3] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline int is_of_own_addresses(struct __sk_buff *skb, __u32 at)
{
	struct mld_report report;
	struct mld_record record;
	__u32 records;

	if (bpf_skb_load_bytes(skb, at, &report, sizeof(report)) < 0)
		return 0;
	records = bpf_ntohs(report.records);
	if (!records || records > RECORDS_MAX)
		return 0;
	at += sizeof(report);
	for (__u32 number = 0; number < RECORDS_MAX && number < records; number++) {
		if (bpf_skb_load_bytes(skb, at, &record, sizeof(record)) < 0)
			return 0;
		if (record.auxiliary_words || record.sources || !is_solicited_node(record.group))
			return 0;
		at += sizeof(record);
	}
	return 1;
}

static __always_inline void note_query(struct __sk_buff *skb, const struct headers *h)
{
	__u64 *asked;

	if (mld_type(skb, h) != MLD_QUERY)
		return;
	asked = asked_ns();
	if (asked)
		*asked = bpf_ktime_get_ns();
}

static __always_inline int is_unasked(struct __sk_buff *skb, const struct headers *h)
{
	__u64 *asked;

	if (mld_type(skb, h) != MLD_REPORT_V2)
		return 0;
	asked = asked_ns();
	if (!asked || (*asked && bpf_ktime_get_ns() - *asked < ASKED_NS))
		return 0;
	return is_of_own_addresses(skb, h->length);
}

#endif
