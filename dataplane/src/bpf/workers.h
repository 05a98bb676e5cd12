/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The workers as every XDP program sees them: their XSKs and their sentinels, in pinned maps that
 * the programs share.
 *
 * An XSK leaves its map when its process dies (net/xdp/xsk.c, xsk_release), so that a fallback
 * needs nobody's help. XSKs of a dying process close one after another. A worker's two sentinels
 * close before them: one of them missing takes all ports of the worker to the fallback at once.
 */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

/* Pods, and the queues of uplinks. */
#define PORTS_MAX 4096
/* Two for each of 32 workers. */
#define SENTINELS_MAX 64
/* Room for more: a pinned map of another size could not be taken over by the next version. */
#define OUTCOMES_MAX 32

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32); /* slot */
	__type(value, __u32);
	__uint(max_entries, PORTS_MAX);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32); /* worker * 2, worker * 2 + 1 */
	__type(value, __u32);
	__uint(max_entries, SENTINELS_MAX);
} sentinels SEC(".maps");

static __always_inline bool worker_is_there(__u32 worker)
{
	__u32 low = worker * 2;
	__u32 high = low + 1;

	return bpf_map_lookup_elem(&sentinels, &low) && bpf_map_lookup_elem(&sentinels, &high);
}
