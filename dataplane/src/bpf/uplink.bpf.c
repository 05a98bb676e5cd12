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
 * A worker also gets whole packets to a host port at one of the node's addresses, and ICMP errors
 * about what was sent from there. Fragments to the node are the kernel's, which puts them together
 * and has every host port in a table of its own. What accepts a connection is its, too.
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
#define NODE_ADDRESSES_MAX 4096
#define HOST_PORTS_MAX 65536
/* Most IPv6 extension headers before a transport header: as many as workers look through. */
#define EXTENSION_HEADERS_MAX 8

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

struct address {
	__u32 family; /* 4 or 6 */
	__u8 addr[16]; /* IPv4: the first four, the rest 0 */
};

struct host_port {
	struct address address; /* addr all 0: any of the node's, of this family */
	__be16 port;
	__u8 protocol;
	__u8 reserved; /* 0 */
};

/* Present: the node has the address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, __u8); /* 1 */
	__uint(max_entries, NODE_ADDRESSES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} node_addresses SEC(".maps");

/* Present: a pod serves it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct host_port);
	__type(value, __u8); /* 1 */
	__uint(max_entries, HOST_PORTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} host_ports SEC(".maps");

/* Not 0 while `host_ports` has entries: without any, the node's own packets cost no hashing. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, __u32);
	__uint(max_entries, 1);
} host_ports_in_use SEC(".maps");

/* Why a packet passed. The loader names them in this order. */
enum outcome {
	UNKNOWN_UPLINK,
	OTHER_MAC, /* broadcast and multicast, and what a promiscuous NIC sees */
	ETHER_TYPE, /* neither IPv4 nor IPv6: ARP, tagged frames */
	MALFORMED, /* cut short, or no IP header */
	NOT_OURS, /* neither to a pod of this node nor to a host port, or a fragment to the node */
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
/* RFC 791 §3.1: the fragment offset is the lower 13 bits, "more fragments" the one above. */
#define IPV4_OFFSET 0x1fff
#define IPV4_MORE 0x2000
/* RFC 8200 §4.5: in the last byte of the field, the offset is the upper 5 bits, "more" the last. */
#define IPV6_OFFSET 0xf8
#define IPV6_MORE 0x01
/* RFC 9293 §3.1, RFC 768, RFC 9260 §3.1: where the ports are, the same for all. */
#define SOURCE_PORT 0
#define DESTINATION_PORT 2
/* RFC 9293 §3.1: SYN and ACK are bits of the byte there. */
#define TCP_FLAGS 13
#define TCP_SYN_ACK 0x12
/* RFC 9260 §3.2, §3.3.3: the type of the first chunk is there. */
#define SCTP_CHUNK 12
#define SCTP_INIT_ACK 2

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

/* Whether `end`, all but its port filled in, has a host port; false while there is none at all. */
static __always_inline bool is_asked_of_node(const struct host_port *end)
{
	__u32 index = 0;
	__u32 *in_use = bpf_map_lookup_elem(&host_ports_in_use, &index);

	return in_use && *in_use && bpf_map_lookup_elem(&node_addresses, &end->address);
}

/* OURS if the port at `offset` of the frame makes `end` a host port. */
static __always_inline enum outcome steer_port(struct xdp_md *ctx, struct host_port *end,
					       __u32 offset)
{
	if (end->protocol != IPPROTO_TCP && end->protocol != IPPROTO_UDP &&
	    end->protocol != IPPROTO_SCTP)
		return NOT_OURS;
	if (bpf_xdp_load_bytes(ctx, offset, &end->port, sizeof(end->port)))
		return MALFORMED;
	/* Which of two the worker prefers makes no difference here. */
	if (bpf_map_lookup_elem(&host_ports, end))
		return OURS;
	__builtin_memset(end->address.addr, 0, sizeof(end->address.addr));
	return bpf_map_lookup_elem(&host_ports, end) ? OURS : NOT_OURS;
}

/*
 * Whether the packet whose transport header is at `offset` accepts a connection that was opened
 * from here. A pod may open one from a port that it serves, and the kernel masquerades it; no
 * client of a host port sends such a packet.
 */
static __always_inline bool accepts_connection(struct xdp_md *ctx, __u8 protocol, __u32 offset)
{
	__u8 byte = 0;

	if (protocol == IPPROTO_TCP) {
		bpf_xdp_load_bytes(ctx, offset + TCP_FLAGS, &byte, sizeof(byte));
		return (byte & TCP_SYN_ACK) == TCP_SYN_ACK;
	}
	if (protocol == IPPROTO_SCTP) {
		bpf_xdp_load_bytes(ctx, offset + SCTP_CHUNK, &byte, sizeof(byte));
		return byte == SCTP_INIT_ACK;
	}
	return false;
}

/* OURS if the packet whose transport header is at `offset` is for a host port at `end`. */
static __always_inline enum outcome steer_packet(struct xdp_md *ctx, struct host_port *end,
						 __u32 offset)
{
	enum outcome outcome = steer_port(ctx, end, offset + DESTINATION_PORT);

	if (outcome == OURS && accepts_connection(ctx, end->protocol, offset))
		return NOT_OURS;
	return outcome;
}

/*
 * The same for an ICMP error at `offset`, which came to `end`: ours if a host port of that address
 * sent the packet that it speaks of. A redirect tells nothing about a connection.
 */
static __always_inline enum outcome steer_error_ipv4(struct xdp_md *ctx, struct host_port *end,
						     __be32 addr, __u32 offset)
{
	struct iphdr quoted;
	__u8 type;

	if (bpf_xdp_load_bytes(ctx, offset, &type, sizeof(type)))
		return MALFORMED;
	if (!is_icmp_error(type) || type == ICMP_REDIRECT)
		return NOT_OURS;
	offset += ICMP_HEAD_LEN;
	if (bpf_xdp_load_bytes(ctx, offset, &quoted, sizeof(quoted)) || quoted.version != 4 ||
	    quoted.ihl < 5)
		return MALFORMED;
	if (quoted.saddr != addr || quoted.frag_off & bpf_htons(IPV4_OFFSET))
		return NOT_OURS;
	end->protocol = quoted.protocol;
	return steer_port(ctx, end, offset + quoted.ihl * 4 + SOURCE_PORT);
}

/* OURS for a whole packet to a host port, or why the packet passes. */
static __always_inline enum outcome steer_host_port_ipv4(struct xdp_md *ctx, const struct iphdr *ip)
{
	struct host_port end = { .address.family = 4, .protocol = ip->protocol };
	__u32 payload = ETH_HLEN + ip->ihl * 4;

	__builtin_memcpy(end.address.addr, &ip->daddr, sizeof(ip->daddr));
	if (!is_asked_of_node(&end) || ip->frag_off & bpf_htons(IPV4_MORE | IPV4_OFFSET))
		return NOT_OURS;
	if (ip->protocol == IPPROTO_ICMP)
		return steer_error_ipv4(ctx, &end, ip->daddr, payload);
	return steer_packet(ctx, &end, payload);
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
		return steer_host_port_ipv4(ctx, &ip);

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

static __always_inline bool same_ipv6(const struct in6_addr *a, const struct in6_addr *b)
{
	__u32 difference = 0;

	for (int i = 0; i < 4; i++)
		difference |= a->in6_u.u6_addr32[i] ^ b->in6_u.u6_addr32[i];
	return difference == 0;
}

/*
 * The protocol above IPv6 and its extension headers, of which `next` is the first and at `offset`;
 * `offset` is moved on to it. IPPROTO_NONE if it cannot be told, of a fragment for example, and, of
 * a packet that is not `quoted` but here, if the node would have to put it together or send it on.
 */
static __always_inline __u8 upper_layer(struct xdp_md *ctx, __u8 next, __u32 *offset, bool quoted)
{
	for (int i = 0; i <= EXTENSION_HEADERS_MAX; i++) {
		__u8 header[4];

		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
		case IPPROTO_DSTOPTS:
			break;
		default:
			return next;
		}
		if (bpf_xdp_load_bytes(ctx, *offset, header, sizeof(header)))
			return IPPROTO_NONE;
		if (next == IPPROTO_FRAGMENT) {
			if (header[2] || header[3] & IPV6_OFFSET ||
			    (header[3] & IPV6_MORE && !quoted))
				return IPPROTO_NONE;
			*offset += 8;
		} else if (next == IPPROTO_AH) {
			/* RFC 4302 §2.2: in units of four bytes, less two. */
			*offset += (header[1] + 2) * 4;
		} else {
			/* RFC 8200 §4.4: segments left, so this is not where the packet ends. */
			if (next == IPPROTO_ROUTING && header[3] && !quoted)
				return IPPROTO_NONE;
			/* RFC 8200 §4.3: in units of eight bytes, less one. */
			*offset += (header[1] + 1) * 8;
		}
		next = header[0];
	}
	return IPPROTO_NONE;
}

/* As of IPv4. */
static __always_inline enum outcome steer_error_ipv6(struct xdp_md *ctx, struct host_port *end,
						     const struct in6_addr *addr, __u32 offset)
{
	struct ipv6hdr quoted;
	__u8 type;

	if (bpf_xdp_load_bytes(ctx, offset, &type, sizeof(type)))
		return MALFORMED;
	if (type >= ICMPV6_INFORMATIONAL)
		return NOT_OURS;
	offset += ICMP_HEAD_LEN;
	if (bpf_xdp_load_bytes(ctx, offset, &quoted, sizeof(quoted)) || quoted.version != 6)
		return MALFORMED;
	if (!same_ipv6(&quoted.saddr, addr))
		return NOT_OURS;
	offset += sizeof(quoted);
	end->protocol = upper_layer(ctx, quoted.nexthdr, &offset, true);
	return steer_port(ctx, end, offset + SOURCE_PORT);
}

/* As of IPv4. */
static __always_inline enum outcome steer_host_port_ipv6(struct xdp_md *ctx,
							 const struct ipv6hdr *ip)
{
	struct host_port end = {};
	__u32 payload = ETH_HLEN + sizeof(*ip);

	/* Not in an initialiser: clang would make it data, and data would be a map to pin. */
	end.address.family = 6;
	__builtin_memcpy(end.address.addr, &ip->daddr, sizeof(ip->daddr));
	if (!is_asked_of_node(&end))
		return NOT_OURS;
	end.protocol = upper_layer(ctx, ip->nexthdr, &payload, false);
	if (end.protocol == IPPROTO_ICMPV6)
		return steer_error_ipv6(ctx, &end, &ip->daddr, payload);
	return steer_packet(ctx, &end, payload);
}

/* The same. An error to a pod behind extension headers is taken by its source, as all else is. */
static __always_inline enum outcome steer_ipv6(struct xdp_md *ctx)
{
	__u32 payload = ETH_HLEN + sizeof(struct ipv6hdr);
	struct ipv6hdr ip;
	__u8 type;

	if (bpf_xdp_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 6)
		return MALFORMED;
	if (!lookup(&pod_prefixes, 6, &ip.daddr, sizeof(ip.daddr)))
		return steer_host_port_ipv6(ctx, &ip);

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
