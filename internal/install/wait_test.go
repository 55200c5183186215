package install

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAPodThatEndsAgainAndAgainTellsItsLastWords(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "ztunnel-1"}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name:  "capture",
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
		LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 1, Message: "level=INFO msg=starts\nztunnel: no BPF file system is mounted there\n",
		}},
	}}
	want := "container capture ended with status 1 (ztunnel: no BPF file system is mounted there): kubectl logs -n istio-system ztunnel-1 -c capture --previous"
	if got := trouble(p); got != want {
		t.Errorf("trouble:\n%s\nwant\n%s", got, want)
	}
}
