/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the hooks share: structures that Go reads too, and tests of addresses. */
#ifndef AMBIT_H
#define AMBIT_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define AF_INET6 10
#define LOOPBACK_IFINDEX 1

/* Addresses of a pod that lookup.c knows. */
#define MAX_ADDRS 32

/* Addresses and ports of probes that lookup.c knows. */
#define MAX_PROBERS 4
#define MAX_PROBE_PORTS 32

/* Interfaces of a pod behind which there are clients of its own, that lookup.c knows. */
#define MAX_REROUTED 8

/* The listening sockets of a pod: slots of the map listeners. */
enum slot {
	SLOT_OUTBOUND = 0,  /* connections that the pod opens */
	SLOT_PLAINTEXT = 1, /* connections to the pod */
	SLOT_HBONE = 2,     /* connections to the pod's HBONE port */
	SLOT_COUNT = 4,     /* one is spare */
};

/* An address, IPv4 as ::ffff:a.b.c.d; network byte order. */
struct addr {
	__u32 word[4];
};

static __always_inline struct addr from_ip4(__u32 ip4)
{
	struct addr a = { { 0, 0, bpf_htonl(0xffff), ip4 } };
	return a;
}

static __always_inline bool same(const struct addr *a, const volatile struct addr *b)
{
	return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] && a->word[0] == b->word[0];
}

/* loopback: 127.0.0.0/8 and ::1, and the unspecified address, by which connect() means loopback. */
static __always_inline bool loopback(const struct addr *a)
{
	if (a->word[0] || a->word[1])
		return false;
	if (a->word[2] == bpf_htonl(0xffff))
		return !a->word[3] || (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !a->word[2] && (a->word[3] == 0 || a->word[3] == bpf_htonl(1));
}

#endif
