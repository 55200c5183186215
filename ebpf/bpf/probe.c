// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cgroup/connect4, cgroup/connect6 and sockops in the node's network namespace: write down the connections of the kubelet, so that its
 * probes reach pods whose policy admits no plaintext.
 *
 * The kubelet is told by its process, or by its own cgroup if the programs are attached to that; never by its address, which
 * every process of the node has, and forwarded connections too. connect() flags the socket; when the SYN is about to be sent the source port
 * is known and the tuple is put down, and taken out again when the socket is closed, so that nobody can use it anew.
 * Other nodes may share the kernel: only the sockets of this node's namespace count.
 */
#include "probe.h"

#define ALLOW 1

/* Who is the kubelet. All 0: nobody. */
struct kubelet {
	__u32 tgid;   /* the process, as the machine numbers it */
	__u32 cgroup; /* not 0: whoever these programs run for, they are attached to its own cgroup */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kubelet);
} kubelet SEC(".maps");

/* The kubelet's sockets. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} kubelet_sockets SEC(".maps");

volatile const __u64 node_cookie; /* of the node's network namespace */

static __always_inline int flag(struct bpf_sock_addr *ctx)
{
	struct kubelet *k;
	__u32 zero = 0;

	if (ctx->protocol != IPPROTO_TCP || bpf_get_netns_cookie(ctx) != node_cookie)
		return ALLOW;
	k = bpf_map_lookup_elem(&kubelet, &zero);
	if (!k || !ctx->sk)
		return ALLOW;
	if (k->cgroup || (k->tgid && k->tgid == bpf_get_current_pid_tgid() >> 32))
		bpf_sk_storage_get(&kubelet_sockets, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	return ALLOW;
}

SEC("cgroup/connect4")
int probe4(struct bpf_sock_addr *ctx)
{
	return flag(ctx);
}

SEC("cgroup/connect6")
int probe6(struct bpf_sock_addr *ctx)
{
	return flag(ctx);
}

/* The compiler must not merge reads of neighbouring fields: the kernel would refuse the program. */
#define FIELD(f)                                                                                                      \
	({                                                                                                            \
		__u32 v;                                                                                              \
		asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(v) : "r"(ctx), "i"(__builtin_offsetof(struct bpf_sock_ops, f))); \
		v;                                                                                                    \
	})

static __always_inline struct tuple tuple_of(struct bpf_sock_ops *ctx)
{
	struct tuple t = {};

	if (FIELD(family) == AF_INET) {
		t.node = from_ip4(FIELD(local_ip4));
		t.pod = from_ip4(FIELD(remote_ip4));
	} else {
		t.node = (struct addr){ { FIELD(local_ip6[0]), FIELD(local_ip6[1]), FIELD(local_ip6[2]), FIELD(local_ip6[3]) } };
		t.pod = (struct addr){ { FIELD(remote_ip6[0]), FIELD(remote_ip6[1]), FIELD(remote_ip6[2]), FIELD(remote_ip6[3]) } };
	}
	t.node_port = FIELD(local_port);
	t.pod_port = bpf_ntohl(FIELD(remote_port));
	return t;
}

SEC("sockops")
int probe_tuple(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;
	struct tuple t;
	__u64 now;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	sk = ctx->sk;
	if (!sk || !bpf_sk_storage_get(&kubelet_sockets, sk, 0, 0))
		return 1;
	if (ctx->op == BPF_SOCK_OPS_STATE_CB) {
		if (ctx->args[1] == BPF_TCP_CLOSE) {
			t = tuple_of(ctx);
			bpf_map_delete_elem(&probes, &t);
		}
		return 1;
	}
	/* Without news of its end it is not put down. */
	if (bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG))
		return 1;
	t = tuple_of(ctx);
	now = bpf_ktime_get_ns();
	bpf_map_update_elem(&probes, &t, &now, BPF_ANY);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
