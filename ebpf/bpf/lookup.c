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
 *   by an interface to machines inside the pod       from these, to anywhere: to the outbound listener
 *   by another interface                             from outside: to the HBONE or the plaintext listener;
 *                                                    probes of the kubelet, and all if the pod wants it so: to the application
 *
 * Without a listener the SYN is refused (RST); it never reaches the application instead.
 */
#include "dns.h"
#include "probe.h"

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

/* Where probes are told by their source instead of by the kubelet: its addresses and the ports that it asks. */
volatile const struct addr prober[MAX_PROBERS];
volatile const __u16 probe_port[MAX_PROBE_PORTS];
volatile const __u32 prober_count, probe_port_count;

volatile const __u32 rerouted[MAX_REROUTED]; /* interfaces to machines inside the pod */
volatile const __u32 rerouted_count;
volatile const __u32 bypass_inbound; /* not 0: only HBONE is captured from outside */

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

static __always_inline bool is_prober(const struct addr *a)
{
	for (__u32 i = 0; i < MAX_PROBERS && i < prober_count; i++)
		if (same(a, &prober[i]))
			return true;
	return false;
}

static __always_inline bool is_probe_port(__u32 port)
{
	for (__u32 i = 0; i < MAX_PROBE_PORTS && i < probe_port_count; i++)
		if (port == probe_port[i])
			return true;
	return false;
}

static __always_inline bool is_rerouted(__u32 ifindex)
{
	for (__u32 i = 0; i < MAX_REROUTED && i < rerouted_count; i++)
		if (ifindex == rerouted[i])
			return true;
	return false;
}

/* from_kubelet: the kubelet of this node has just opened this connection. */
static __always_inline bool from_kubelet(struct bpf_sk_lookup *ctx, const struct addr *local, const struct addr *remote)
{
	struct tuple t = { *remote, *local, bpf_ntohs(ctx->remote_port), ctx->local_port };
	__u64 *opened = bpf_map_lookup_elem(&probes, &t);

	if (opened)
		return bpf_ktime_get_ns() - *opened <= PROBE_AGE_NS;
	return is_probe_port(ctx->local_port) && is_prober(remote);
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
	if (is_rerouted(ctx->ingress_ifindex))
		return assign(ctx, SLOT_OUTBOUND);
	if (ctx->local_port == hbone_port)
		return assign(ctx, SLOT_HBONE);
	if (bypass_inbound || from_kubelet(ctx, &local, &remote))
		return SK_PASS;
	return assign(ctx, SLOT_PLAINTEXT);
}

char _license[] SEC("license") = "Dual BSD/GPL";
