package nodepods

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// probesOnly drops from containers what probePorts does not read.
func probesOnly(list []corev1.Container) []corev1.Container {
	out := make([]corev1.Container, len(list))
	for i, c := range list {
		out[i] = corev1.Container{
			Ports: c.Ports, LivenessProbe: c.LivenessProbe, ReadinessProbe: c.ReadinessProbe, StartupProbe: c.StartupProbe, Lifecycle: c.Lifecycle,
		}
	}
	return out
}

// probePorts are the TCP ports on which the kubelet asks a pod how it is, sorted.
func probePorts(spec *corev1.PodSpec) (out []uint16) {
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		add := func(port intstr.IntOrString) {
			n := port.IntValue()
			for _, p := range c.Ports {
				if port.Type == intstr.String && p.Name == port.StrVal {
					n = int(p.ContainerPort)
				}
			}
			if n > 0 && n < 1<<16 {
				out = append(out, uint16(n))
			}
		}
		for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			switch {
			case p == nil:
			case p.HTTPGet != nil:
				add(p.HTTPGet.Port)
			case p.TCPSocket != nil:
				add(p.TCPSocket.Port)
			case p.GRPC != nil:
				add(intstr.FromInt32(p.GRPC.Port))
			}
		}
		if c.Lifecycle == nil {
			continue
		}
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil && h.HTTPGet != nil {
				add(h.HTTPGet.Port)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
