// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cgroup/connect4 and cgroup/connect6: mark the TCP sockets of enrolled network namespaces as they connect.
 *
 * The mark selects a policy rule, the rule a table whose only route is "local default dev lo": the SYN comes back on lo
 * and lookup.c gives it to the proxy's listener. No address is rewritten. Attached once per node, at the root of cgroup
 * v2; the socket's network namespace decides, not the caller's cgroup. Sockets that exist already are not touched.
 */
#include "ambit.h"

#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define SO_MARK 36
#define SO_BINDTOIFINDEX 62

#define REFUSE 0 /* connect(2) returns EPERM */
#define ALLOW 1

/* What is known of an enrolled namespace. */
struct enrolment {
	__u32 flags; /* none yet */
	__u32 reserved;
};

/* The enrolled namespaces of this node, by cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct enrolment);
} enrolled SEC(".maps");

/* The proxy's own sockets. Only who holds this map can add one: unlike a mark it cannot be copied by an application. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} exempt SEC(".maps");

volatile const __u32 mark; /* bits of mark_mask only */
volatile const __u32 mark_mask;

/* unbind undoes SO_BINDTODEVICE: bound to eth0 a socket would not match the route by lo and would leave uncaptured.
 * Without CAP_NET_RAW the kernel refuses it even to us. SO_BINDTOIFINDEX is younger than our kernel floor. */
static __always_inline bool unbind(struct bpf_sock_addr *ctx)
{
	int none = 0;
	char no_name[4] = {};

	return !bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &none, sizeof(none)) ||
	       !bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, no_name, sizeof(no_name));
}

static __always_inline int capture(struct bpf_sock_addr *ctx, const struct addr *to)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 cookie;
	int value;

	if (ctx->protocol != IPPROTO_TCP || loopback(to))
		return ALLOW;
	cookie = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&enrolled, &cookie))
		return ALLOW;
	if (!sk)
		return REFUSE;
	if (bpf_sk_storage_get(&exempt, sk, 0, 0))
		return ALLOW;
	if (sk->bound_dev_if && sk->bound_dev_if != LOOPBACK_IFINDEX && !unbind(ctx))
		return REFUSE;
	value = (sk->mark & ~mark_mask) | mark;
	if (bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &value, sizeof(value)))
		return REFUSE;
	return ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct addr to = from_ip4(ctx->user_ip4);

	return capture(ctx, &to);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct addr to = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };

	return capture(ctx, &to);
}

char _license[] SEC("license") = "Dual BSD/GPL";
