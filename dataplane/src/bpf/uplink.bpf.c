// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * XDP on the node's NICs: hands the worker of the queue what the workers carry, and passes all
 * else to the kernel untouched, so that the node never loses its own network.
 *
 * A worker gets a packet to this node's pods if it comes from a direct address, one that pods reach
 * by an uplink as they are. A pod's answer to any other address leaves by the kernel, which has to
 * see both halves of a connection: so the request must have come by the kernel too. An ICMP error
 * comes from wherever it happened; what counts is where the packet was going that it speaks of.
 *
 * Without a worker or its XSK the packet passes, and the kernel forwards it to the pod. That a
 * source is not one of this node's pods is not checked here but by who forwards the packet.
 *
 * A VLAN tag that the NIC has taken out of the frame is invisible here: `rxvlan` must be off on an
 * uplink that has VLAN devices.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "workers.h"

/* Interfaces. */
#define UPLINKS_MAX 128
/* Memory is used for entries that are there only, so these are bounds and no sizes. */
#define POD_PREFIXES_MAX 4096
#define DIRECT_PREFIXES_MAX 65536

struct uplink {
	__u32 first; /* slot of queue 0; the others follow */
	__u32 queues;
	__u32 workers; /* queue q belongs to worker q mod workers */
	__u8 mac[ETH_ALEN];
	__u8 reserved[6]; /* 0 */
};

struct prefix {
	__u32 len; /* bits that count, those of `family` included */
	__u32 family; /* 4 or 6 */
	__u8 addr[16]; /* IPv4: the first four, the rest 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32); /* ifindex */
	__type(value, struct uplink);
	__uint(max_entries, UPLINKS_MAX);
} uplinks SEC(".maps");

/* Present: the addresses are of pods on this node. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix);
	__type(value, __u8); /* 1 */
	__uint(max_entries, POD_PREFIXES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} pod_prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix);
	__type(value, __u8); /* 1: direct, 0: left to the kernel */
	__uint(max_entries, DIRECT_PREFIXES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} direct_prefixes SEC(".maps");

/* Why a packet passed. The loader names them in this order. */
enum outcome {
	UNKNOWN_UPLINK,
	OTHER_MAC, /* broadcast and multicast, and what a promiscuous NIC sees */
	ETHER_TYPE, /* neither IPv4 nor IPv6: ARP, tagged frames */
	MALFORMED, /* cut short, or no IP header */
	NOT_OURS, /* not to a pod of this node */
	NOT_DIRECT,
	FALLBACK, /* a worker's, who is gone */
	OURS, /* a worker's; not counted */
};

_Static_assert(OURS <= OUTCOMES_MAX, "every outcome has its count");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* enum outcome */
	__type(value, __u64);
	__uint(max_entries, OUTCOMES_MAX);
} uplink_counts SEC(".maps");

/* RFC 792; linux/icmp.h cannot be included for the BPF target. */
enum icmp_type {
	ICMP_UNREACHABLE = 3,
	ICMP_SOURCE_QUENCH = 4,
	ICMP_REDIRECT = 5,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
};

/* RFC 792, RFC 4443 §2.1: the packet that an error speaks of follows eight bytes. */
#define ICMP_HEAD_LEN 8
/* RFC 4443 §2.1: error messages have types below it. */
#define ICMPV6_INFORMATIONAL 128
/* RFC 791 §3.1: the fragment offset is the lower 13 bits. */
#define IPV4_OFFSET 0x1fff

static __always_inline bool is_own(const struct uplink *uplink, const __u8 *mac)
{
	__u8 difference = 0;

	for (int i = 0; i < ETH_ALEN; i++)
		difference |= uplink->mac[i] ^ mac[i];
	return difference == 0;
}

/* The value of the longest prefix in `map` that covers the address; 0 if there is none. */
static __always_inline __u8 lookup(void *map, __u32 family, const void *addr, __u32 addr_len)
{
	struct prefix key = { .len = (sizeof(key.family) + addr_len) * 8, .family = family };
	__u8 *value;

	__builtin_memcpy(key.addr, addr, addr_len);
	value = bpf_map_lookup_elem(map, &key);
	return value ? *value : 0;
}

static __always_inline bool is_icmp_error(__u8 type)
{
	return type == ICMP_UNREACHABLE || type == ICMP_SOURCE_QUENCH || type == ICMP_REDIRECT ||
	       type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER_PROBLEM;
}

/* OURS, or why the packet passes. */
static __always_inline enum outcome steer_ipv4(struct xdp_md *ctx)
{
	struct iphdr ip;
	__be32 addr;
	__u32 payload;
	__u8 type;

	if (bpf_xdp_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return MALFORMED;
	if (!lookup(&pod_prefixes, 4, &ip.daddr, sizeof(ip.daddr)))
		return NOT_OURS;

	addr = ip.saddr;
	payload = ETH_HLEN + ip.ihl * 4;
	/* A later fragment has no ICMP header: its addresses decide. */
	if (ip.protocol == IPPROTO_ICMP && !(ip.frag_off & bpf_htons(IPV4_OFFSET))) {
		if (bpf_xdp_load_bytes(ctx, payload, &type, sizeof(type)))
			return MALFORMED;
		payload += ICMP_HEAD_LEN + offsetof(struct iphdr, daddr);
		if (is_icmp_error(type) && bpf_xdp_load_bytes(ctx, payload, &addr, sizeof(addr)))
			return MALFORMED;
	}
	return lookup(&direct_prefixes, 4, &addr, sizeof(addr)) ? OURS : NOT_DIRECT;
}

/* The same. An error behind extension headers is taken by its source, as all else is. */
static __always_inline enum outcome steer_ipv6(struct xdp_md *ctx)
{
	__u32 payload = ETH_HLEN + sizeof(struct ipv6hdr);
	struct ipv6hdr ip;
	__u8 type;

	if (bpf_xdp_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 6)
		return MALFORMED;
	if (!lookup(&pod_prefixes, 6, &ip.daddr, sizeof(ip.daddr)))
		return NOT_OURS;

	if (ip.nexthdr == IPPROTO_ICMPV6) {
		if (bpf_xdp_load_bytes(ctx, payload, &type, sizeof(type)))
			return MALFORMED;
		payload += ICMP_HEAD_LEN + offsetof(struct ipv6hdr, daddr);
		if (type < ICMPV6_INFORMATIONAL &&
		    bpf_xdp_load_bytes(ctx, payload, &ip.saddr, sizeof(ip.saddr)))
			return MALFORMED;
	}
	return lookup(&direct_prefixes, 6, &ip.saddr, sizeof(ip.saddr)) ? OURS : NOT_DIRECT;
}

static __always_inline enum outcome steer(struct xdp_md *ctx, const struct uplink *uplink)
{
	struct ethhdr ethernet;

	if (bpf_xdp_load_bytes(ctx, 0, &ethernet, sizeof(ethernet)))
		return MALFORMED;
	if (!is_own(uplink, ethernet.h_dest))
		return OTHER_MAC;
	if (ethernet.h_proto == bpf_htons(ETH_P_IP))
		return steer_ipv4(ctx);
	if (ethernet.h_proto == bpf_htons(ETH_P_IPV6))
		return steer_ipv6(ctx);
	return ETHER_TYPE;
}

static __always_inline int pass(enum outcome outcome)
{
	__u32 index = outcome;
	__u64 *count = bpf_map_lookup_elem(&uplink_counts, &index);

	if (count)
		*count += 1;
	return XDP_PASS;
}

SEC("xdp.frags")
int uplink(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex, queue = ctx->rx_queue_index;
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &ifindex);
	enum outcome outcome;

	if (!uplink)
		return pass(UNKNOWN_UPLINK);
	outcome = steer(ctx, uplink);
	if (outcome != OURS)
		return pass(outcome);
	/* A queue that came after the entry was made has no slot of its own. */
	if (queue < uplink->queues && worker_is_there(queue % uplink->workers) &&
	    bpf_redirect_map(&sockets, uplink->first + queue, XDP_PASS) == XDP_REDIRECT)
		return XDP_REDIRECT;
	return pass(FALLBACK);
}

char _license[] SEC("license") = "Dual BSD/GPL";
