// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc egress on a pod's eth0 and on viaduct0: tells the worker at the other end of the veth what
 * only the sending kernel knows, the checksum still to be filled in and the segment size, in the
 * source MAC (`marker.h`). XDP sees neither (design, §9.12).
 *
 * A frame whose state does not fit keeps its assigned MAC, and the worker infers the state as it
 * does where this program cannot be loaded: bpf_cast_to_kern_ctx came with Linux 6.2.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "marker.h"

/* include/linux/skbuff.h: the checksum is left to the device. */
#define CHECKSUM_PARTIAL 3

/*
 * The members of the kernel's sk_buff that are read here. The loader finds their real places by
 * name in the running kernel's BTF; sizes and order in this file mean nothing.
 */
struct sk_buff {
	__u8 ip_summed : 2;
	__u8 csum_not_inet : 1;
	__u8 encapsulation : 1;
	__u16 csum_start; /* from head */
	__u16 csum_offset; /* from csum_start */
	unsigned char *head;
	unsigned char *data;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

/* Whether the outstanding sum is SCTP's CRC32c, which a worker cannot fill in. */
static __always_inline bool sum_is_crc(struct sk_buff *skb)
{
	/* The member exists only in kernels built with SCTP. */
	return bpf_core_field_exists(skb->csum_not_inet) &&
	       BPF_CORE_READ_BITFIELD(skb, csum_not_inet);
}

SEC("tc")
int marker(struct __sk_buff *ctx)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);
	struct marker marker = {
		.first = MARKER_FIRST,
		.gso_size = bpf_htons(ctx->gso_size),
	};
	__be16 ether_type;

	/* The frame's own type: skb->protocol of a packet socket may say anything. */
	if (bpf_skb_load_bytes(ctx, offsetof(struct ethhdr, h_proto), &ether_type,
			       sizeof(ether_type)))
		return TC_ACT_UNSPEC;
	if (ether_type != bpf_htons(ETH_P_IP) && ether_type != bpf_htons(ETH_P_IPV6))
		return TC_ACT_UNSPEC;

	if (BPF_CORE_READ_BITFIELD(skb, ip_summed) == CHECKSUM_PARTIAL) {
		/* At tc egress data is at the Ethernet header. */
		__u64 frame = (__u64)skb->data - (__u64)skb->head;
		__u64 start = skb->csum_start - frame;
		__u16 offset = skb->csum_offset;

		if (start > 0xff || offset > 0xff || sum_is_crc(skb))
			return TC_ACT_UNSPEC;
		marker.csum_start = start;
		marker.csum_offset = offset;
		marker.flags |= MARKER_PARTIAL;
	}
	if (BPF_CORE_READ_BITFIELD(skb, encapsulation))
		marker.flags |= MARKER_ENCAPSULATED;

	/* No sum covers the Ethernet header, so none has to be corrected. */
	bpf_skb_store_bytes(ctx, offsetof(struct ethhdr, h_source), &marker, sizeof(marker), 0);
	/* Unspecified: filters after this one run. */
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
