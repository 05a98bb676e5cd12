// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Generic XDP on every pod's host end and on viaduct1: hands each packet to the port's worker, or,
 * while the worker is gone (`workers.h`), does what the port's entry says.
 *
 * In the fallback nobody stands between a pod and the node's kernel, so a pod's packet is checked
 * first: it is dropped unless its addresses are the pod's. VLAN tags that veth carries beside the
 * frame are invisible here; the kernel drops them where the host end has no VLAN device.
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

#include "marker.h"
#include "workers.h"

/* Four for each port. */
#define SOURCES_MAX 16384
/* Longest chain of IPv6 extension headers looked through; real ones have one or two. */
#define EXTENSION_HEADERS_MAX 8
/* Most neighbour discovery options looked at; kernels send one or two. */
#define ND_OPTIONS_MAX 8

enum port_kind { PORT_POD = 0, PORT_NODE = 1 };

struct port {
	__u32 slot; /* of `sockets` */
	__u32 worker;
	__u32 fallback; /* XDP_PASS or XDP_DROP */
	__u8 mac[ETH_ALEN]; /* assigned to the pod */
	__u8 kind;
	__u8 reserved; /* 0 */
};

struct source {
	__u32 ifindex;
	__u32 family; /* 4 or 6 */
	__u8 addr[16]; /* IPv4: the first four, the rest 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32); /* ifindex */
	__type(value, struct port);
	__uint(max_entries, PORTS_MAX);
} ports SEC(".maps");

/* Present: the pod at the port may send from the address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct source);
	__type(value, __u8);
	__uint(max_entries, SOURCES_MAX);
} sources SEC(".maps");

/* What became of a packet that no worker took. The loader names them in this order. */
enum outcome {
	PASSED,
	DROPPED, /* a legal packet: the port's entry says so */
	UNKNOWN_PORT,
	TOO_SHORT,
	ETHER_TYPE,
	SOURCE_MAC,
	SOURCE_IPV4,
	SOURCE_IPV6,
	ARP,
	NEIGHBOUR_DISCOVERY,
	EXTENSION_HEADERS,
	OUTCOMES,
};

_Static_assert(OUTCOMES <= OUTCOMES_MAX, "every outcome has its count");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* enum outcome */
	__type(value, __u64);
	__uint(max_entries, OUTCOMES_MAX);
} fallback_counts SEC(".maps");

/* Hardware type of Ethernet; linux/if_arp.h cannot be included for the BPF target. */
#define ARPHRD_ETHER 1

/* RFC 826 for Ethernet and IPv4. */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender_ip[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target_ip[4];
} __attribute__((packed));

/* RFC 4861 §4.3, §4.4: the head of a solicitation and of an advertisement. */
struct neighbour_discovery {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	__u8 target[16];
} __attribute__((packed));

/* RFC 4861 §4.6.1: a link-layer address option; `units` counts eight bytes each. */
struct nd_option {
	__u8 type;
	__u8 units;
	__u8 mac[ETH_ALEN];
} __attribute__((packed));

enum nd_type { ROUTER_SOLICITATION = 133, SOLICITATION = 135, ADVERTISEMENT = 136, REDIRECT = 137 };
enum nd_option_type { ND_SOURCE_MAC = 1, ND_TARGET_MAC = 2 };

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	__u8 difference = 0;

	for (int i = 0; i < ETH_ALEN; i++)
		difference |= a[i] ^ b[i];
	return difference == 0;
}

static __always_inline bool legal_ipv4(__u32 ifindex, const void *addr)
{
	struct source source = { .ifindex = ifindex, .family = 4 };

	__builtin_memcpy(source.addr, addr, 4);
	return bpf_map_lookup_elem(&sources, &source);
}

static __always_inline bool legal_ipv6(__u32 ifindex, const void *addr)
{
	struct source source = { .ifindex = ifindex, .family = 6 };

	__builtin_memcpy(source.addr, addr, 16);
	return bpf_map_lookup_elem(&sources, &source);
}

static __always_inline enum outcome check_arp(struct xdp_md *ctx, const struct port *port,
					      const struct ethhdr *ethernet)
{
	struct arp arp;

	if (bpf_xdp_load_bytes(ctx, ETH_HLEN, &arp, sizeof(arp)))
		return TOO_SHORT;
	/* The marker is never written over an ARP frame, so the MAC is the assigned one. */
	if (!same_mac(ethernet->h_source, port->mac))
		return SOURCE_MAC;
	if (arp.hardware != bpf_htons(ARPHRD_ETHER) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_len != ETH_ALEN || arp.protocol_len != 4)
		return ARP;
	/* An address probe (RFC 5227, sender 0.0.0.0) is refused here too: 0.0.0.0 is nobody's. */
	if (!same_mac(arp.sender_mac, port->mac) || !legal_ipv4(ctx->ingress_ifindex, arp.sender_ip))
		return ARP;
	return PASSED;
}

static __always_inline enum outcome check_ipv4(struct xdp_md *ctx)
{
	struct iphdr ip;

	if (bpf_xdp_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)))
		return TOO_SHORT;
	return legal_ipv4(ctx->ingress_ifindex, &ip.saddr) ? PASSED : SOURCE_IPV4;
}

/* A neighbour message at `offset` may speak of the pod's own address and MAC, of no others. */
static __always_inline enum outcome check_nd(struct xdp_md *ctx, const struct port *port,
					     __u32 offset, __u32 end)
{
	struct neighbour_discovery nd;
	struct nd_option option;

	if (bpf_xdp_load_bytes(ctx, offset, &nd, sizeof(nd)))
		return TOO_SHORT;
	if (nd.type != SOLICITATION && nd.type != ADVERTISEMENT)
		return NEIGHBOUR_DISCOVERY;
	if (nd.type == ADVERTISEMENT && !legal_ipv6(ctx->ingress_ifindex, nd.target))
		return NEIGHBOUR_DISCOVERY;

	offset += sizeof(nd);
	for (int i = 0; i < ND_OPTIONS_MAX && offset < end; i++) {
		/* No option is shorter than these eight bytes. */
		if (bpf_xdp_load_bytes(ctx, offset, &option, sizeof(option)))
			return TOO_SHORT;
		if ((option.type == ND_SOURCE_MAC || option.type == ND_TARGET_MAC) &&
		    (option.units != 1 || !same_mac(option.mac, port->mac)))
			return NEIGHBOUR_DISCOVERY;
		offset += option.units * 8;
	}
	/* Else there are too many, the last is cut off, or one says it has no length. */
	return offset == end ? PASSED : NEIGHBOUR_DISCOVERY;
}

/*
 * Looks for neighbour discovery behind extension headers, where no honest sender puts it
 * (RFC 6980): a first fragment must show what it carries (RFC 7112), a later one cannot be read,
 * and without its first fragment comes to nothing.
 */
static __always_inline enum outcome check_extensions(struct xdp_md *ctx, __u8 next, __u32 offset)
{
	for (int i = 0; i < EXTENSION_HEADERS_MAX; i++) {
		__u8 header[4];
		__u32 length;

		switch (next) {
		case IPPROTO_ICMPV6:
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
		case IPPROTO_DSTOPTS:
			break;
		default:
			return PASSED;
		}
		if (bpf_xdp_load_bytes(ctx, offset, header, sizeof(header)))
			return TOO_SHORT;
		if (next == IPPROTO_ICMPV6)
			return header[0] >= ROUTER_SOLICITATION && header[0] <= REDIRECT ?
				       NEIGHBOUR_DISCOVERY : PASSED;
		if (next == IPPROTO_FRAGMENT) {
			/* RFC 8200 §4.5: the offset is the upper 13 bits. */
			if (header[2] || header[3] & 0xf8)
				return PASSED;
			length = 8;
		} else if (next == IPPROTO_AH) {
			/* RFC 4302 §2.2: in units of four bytes, less two. */
			length = (header[1] + 2) * 4;
		} else {
			/* RFC 8200 §4.3: in units of eight bytes, less one. */
			length = (header[1] + 1) * 8;
		}
		next = header[0];
		offset += length;
	}
	return EXTENSION_HEADERS;
}

static __always_inline enum outcome check_ipv6(struct xdp_md *ctx, const struct port *port)
{
	const __u32 payload = ETH_HLEN + sizeof(struct ipv6hdr);
	struct ipv6hdr ip;
	__u8 type;

	if (bpf_xdp_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)))
		return TOO_SHORT;
	/* Refuses duplicate address detection and solicitations from :: as well: :: is nobody's. */
	if (!legal_ipv6(ctx->ingress_ifindex, &ip.saddr))
		return SOURCE_IPV6;
	if (ip.nexthdr != IPPROTO_ICMPV6)
		return check_extensions(ctx, ip.nexthdr, payload);

	if (bpf_xdp_load_bytes(ctx, payload, &type, sizeof(type)))
		return TOO_SHORT;
	if (type < ROUTER_SOLICITATION || type > REDIRECT)
		return PASSED;
	/* The kernel reads options to the end of the payload, not of the frame. */
	return check_nd(ctx, port, payload, payload + bpf_ntohs(ip.payload_len));
}

/* PASSED, or the reason for which a pod's packet must not reach the node's kernel. */
static __always_inline enum outcome check_pod(struct xdp_md *ctx, const struct port *port)
{
	struct ethhdr ethernet;

	if (bpf_xdp_load_bytes(ctx, 0, &ethernet, sizeof(ethernet)))
		return TOO_SHORT;
	if (ethernet.h_proto == bpf_htons(ETH_P_ARP))
		return check_arp(ctx, port, &ethernet);
	if (ethernet.h_proto != bpf_htons(ETH_P_IP) && ethernet.h_proto != bpf_htons(ETH_P_IPV6))
		return ETHER_TYPE;
	if (ethernet.h_source[0] != MARKER_FIRST && !same_mac(ethernet.h_source, port->mac))
		return SOURCE_MAC;
	return ethernet.h_proto == bpf_htons(ETH_P_IP) ? check_ipv4(ctx) : check_ipv6(ctx, port);
}

/* Counts what became of the packet and answers the XDP action for it. */
static __always_inline int conclude(enum outcome outcome)
{
	__u32 index = outcome;
	__u64 *count = bpf_map_lookup_elem(&fallback_counts, &index);

	if (count)
		*count += 1;
	return outcome == PASSED || outcome == UNKNOWN_PORT ? XDP_PASS : XDP_DROP;
}

SEC("xdp.frags")
int port(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	enum outcome outcome = PASSED;

	if (!port)
		return conclude(UNKNOWN_PORT);
	/*
	 * The redirect looks the XSK up itself and answers its last argument when there is none, so
	 * no packet slips through unchecked between a look and the redirect.
	 */
	if (worker_is_there(port->worker) &&
	    bpf_redirect_map(&sockets, port->slot, XDP_DROP) == XDP_REDIRECT)
		return XDP_REDIRECT;

	if (port->kind != PORT_NODE)
		outcome = check_pod(ctx, port);
	if (outcome == PASSED && port->kind != PORT_NODE && port->fallback != XDP_PASS)
		outcome = DROPPED;
	return conclude(outcome);
}

char _license[] SEC("license") = "Dual BSD/GPL";
