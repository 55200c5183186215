// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * sk_lookup: choose the listening socket for a pod's incoming SYNs.
 *
 * One instance per pod's network namespace, because this hook knows neither mark nor cookie: the pod's addresses are
 * constants. It runs for SYNs, and for datagrams, of which it only takes DNS queries (dns.h). It sees a SYN
 *
 *   by lo, from the pod's address to a foreign one   the application's, marked by connect.c: to the outbound listener, or
 *                                                    to that for DNS
 *   by lo, from a foreign address to the pod's       the proxy's, with the client's address: to the application
 *   from and to the pod's own addresses, loopback    not the mesh's business: to the application
 *   by another interface                             from outside: to the HBONE or the plaintext listener
 *
 * Without a listener the SYN is refused (RST); it never reaches the application instead.
 */
#include "ambit.h"
#include "dns.h"

/* What user space must know of the pod after a restart; pinned beside the link. This program does not read it. */
struct pod {
	__u64 cookie;          /* of the network namespace */
	__u64 dev, ino;        /* of the network namespace's file */
	__u64 build;           /* hash of program and constants, to see whether the link must be updated */
	__u64 detached;        /* CLOCK_BOOTTIME in ns when redirection ended; 0 while attached */
	__u32 mark, mask;      /* of the rules */
	__u32 table, priority; /* of the rules */
	__u32 sysctls;         /* which sysctls were 0 before, by bit */
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pod);
} record SEC(".maps");

/* The listeners. Sizes, not types: with BTF the kernel refuses a sockmap, and freeing the refused one costs 20 ms. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, SLOT_COUNT);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u64));
} listeners SEC(".maps");

volatile const struct addr own[MAX_ADDRS]; /* the pod's addresses */
volatile const __u32 own_count;
volatile const __u16 hbone_port;

static __always_inline bool is_own(const struct addr *a)
{
	for (__u32 i = 0; i < MAX_ADDRS; i++) {
		if (i >= own_count)
			return false;
		if (same(a, &own[i]))
			return true;
	}
	return false;
}

static __always_inline int assign_from(struct bpf_sk_lookup *ctx, void *map, __u32 slot)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(map, &slot);
	long err;

	if (!sk)
		return SK_DROP;
	/* NO_REUSEPORT: the listener in the slot, not another one of its group. */
	err = bpf_sk_assign(ctx, sk, BPF_SK_LOOKUP_F_REPLACE | BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}

static __always_inline int assign(struct bpf_sk_lookup *ctx, __u32 slot)
{
	return assign_from(ctx, &listeners, slot);
}

SEC("sk_lookup")
int lookup(struct bpf_sk_lookup *ctx)
{
	struct addr local, remote;

	if (ctx->protocol != IPPROTO_TCP && !(ctx->protocol == IPPROTO_UDP && dns(ctx)))
		return SK_PASS;
	if (ctx->family == AF_INET) {
		local = from_ip4(ctx->local_ip4);
		remote = from_ip4(ctx->remote_ip4);
	} else {
		local = (struct addr){ { ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3] } };
		remote = (struct addr){ { ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2], ctx->remote_ip6[3] } };
	}
	if (loopback(&local))
		return SK_PASS;
	/* Only the pod's own datagrams come by lo to an address that is not its own: a rule for port 53 routes them so. */
	if (ctx->protocol == IPPROTO_UDP)
		return ctx->ingress_ifindex != LOOPBACK_IFINDEX || is_own(&local) ? SK_PASS : assign_from(ctx, &dns_sockets, DNS_SLOT_DATAGRAM);
	/* The order matters: for traffic to the pod's own address ingress_ifindex is the interface that has the address,
	 * although the packet crosses lo. Only by the local route of our table it is lo. */
	if (loopback(&remote) || is_own(&remote))
		return is_own(&local) ? SK_PASS : dns(ctx) ? assign_from(ctx, &dns_sockets, DNS_SLOT_STREAM) : assign(ctx, SLOT_OUTBOUND);
	if (ctx->ingress_ifindex == LOOPBACK_IFINDEX)
		return SK_PASS;
	return assign(ctx, ctx->local_port == hbone_port ? SLOT_HBONE : SLOT_PLAINTEXT);
}

char _license[] SEC("license") = "Dual BSD/GPL";
