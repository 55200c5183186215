/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What lookup.c does with DNS: queries that the pod sends to other machines, whichever, come to the proxy's sockets. */
#ifndef AMBIT_DNS_H
#define AMBIT_DNS_H

#include "ambit.h"

#define DNS_PORT 53

/* The sockets that queries come to: slots of the map dns_sockets. */
enum dns_slot {
	DNS_SLOT_DATAGRAM = 0,
	DNS_SLOT_STREAM = 1,
	DNS_SLOT_COUNT = 2,
};

/* A map of its own, so that pods that were attached before there was one keep theirs. Sizes, not types: see listeners. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, DNS_SLOT_COUNT);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u64));
} dns_sockets SEC(".maps");

volatile const __u32 dns_on; /* the pod's queries are captured */

static __always_inline bool dns(const struct bpf_sk_lookup *ctx)
{
	return dns_on && ctx->local_port == DNS_PORT;
}

#endif
