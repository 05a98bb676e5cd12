/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The marker: what a pod's kernel knows about a packet, written over the source MAC of an IP frame.
 * `marker.bpf.c` writes it, the workers read it, `port.bpf.c` lets it pass as a source MAC.
 * It is a hint and never a proof: a pod can write these bytes itself.
 */
#pragma once

#include <linux/types.h>

/* First byte of a marker; no assigned MAC starts with it. */
#define MARKER_FIRST 0x02
/* `flags`: the checksum at start + offset still has to be summed up from `start`. */
#define MARKER_PARTIAL 0x01
/* `flags`: the packet carries another (VXLAN, Geneve, IP in IP); the state is the inner one's. */
#define MARKER_ENCAPSULATED 0x02

struct marker {
	__u8 first;
	__u8 csum_start; /* bytes from the start of the Ethernet frame; 0 unless partial */
	__u8 csum_offset; /* bytes from csum_start; 0 unless partial */
	__u8 flags;
	__be16 gso_size; /* payload bytes of each segment; 0: not a super-packet */
} __attribute__((packed));

_Static_assert(sizeof(struct marker) == 6, "a marker takes the place of a MAC address");
