package nodepods

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"
)

func TestPortsOfProbesAreFound(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	spec := corev1.PodSpec{
		InitContainers: []corev1.Container{{RestartPolicy: &always, StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(7000)}}}}},
		Containers: []corev1.Container{
			{
				Image:          "dropped",
				Ports:          []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("web")}}},
				LivenessProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9090}}},
				StartupProbe:   &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}},
				Lifecycle:      &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8081)}}},
			},
			{ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("web")}}}}, // a name of another container
			{ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080)}}}},
		},
	}
	want := []uint16{7000, 8080, 8081, 9090}
	if got := probePorts(&spec); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	s := New(Config{API: fakeAPI{fake.NewClientset()}, ProbePorts: true})
	o, err := s.slim(&corev1.Pod{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	slim := o.(*corev1.Pod)
	if got := probePorts(&slim.Spec); !slices.Equal(got, want) || slim.Spec.Containers[0].Image != "" {
		t.Errorf("of the slim pod got %v, want %v; image %q", got, want, slim.Spec.Containers[0].Image)
	}
	s.cfg.ProbePorts = false
	if o, _ := s.slim(slim); len(o.(*corev1.Pod).Spec.Containers) != 0 {
		t.Error("containers are kept for nothing")
	}
}
