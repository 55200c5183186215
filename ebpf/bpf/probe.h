/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The connections of the kubelet's probes: probe.c writes them down as they are made, lookup.c knows them by it. */
#ifndef AMBIT_PROBE_H
#define AMBIT_PROBE_H

#include "ambit.h"

/* From the kubelet's connect() to the arrival of its SYN in the pod, with one repetition of the SYN (1 s, 3 s). */
#define PROBE_AGE_NS 5000000000ULL

/* A connection; ports in host byte order. */
struct tuple {
	struct addr node, pod;
	__u16 node_port, pod_port;
};

/* When the kubelet opened a connection (CLOCK_MONOTONIC in ns). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tuple);
	__type(value, __u64);
} probes SEC(".maps");

#endif
