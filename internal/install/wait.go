package install

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

const step = 500 * time.Millisecond // between two looks

// until calls look until it says that nothing is missing. Whenever what is missing changes it is told. At the end of the time
// the error says what is missing still.
func (c *Config) until(ctx context.Context, limit time.Duration, look func(ctx context.Context) (missing string, err error)) error {
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := time.NewTicker(step)
	defer t.Stop()
	said := ""
	for {
		missing, err := look(ctx)
		switch {
		case err == nil && missing == "":
			return nil
		case err == nil && missing != said:
			c.say("waiting: %s", missing)
			said = missing
		case err != nil && timed.Err() == nil && !apierrors.IsServerTimeout(err) && !apierrors.IsTooManyRequests(err):
			return err
		}
		select {
		case <-timed.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("after %v still waiting: %s: %w", limit.Round(time.Second), said, context.DeadlineExceeded)
		case <-t.C:
		}
	}
}

// await waits until the mesh works: its programs run in the version that was applied and say that they are ready, which the
// node proxies are once they have the mesh's roots and the configuration of the control plane, and the CNI plugin is in place.
func (c *Config) await(ctx context.Context, objects []*unstructured.Unstructured) error {
	began := time.Now()
	left := func() time.Duration { return max(c.Wait-time.Since(began), step) }
	for _, o := range objects {
		if k := o.GetKind(); k != "Deployment" && k != "DaemonSet" {
			continue
		}
		if err := c.until(ctx, left(), func(ctx context.Context) (string, error) { return c.Cluster.rollout(ctx, refOf(o)) }); err != nil {
			return err
		}
		c.say("%s is ready", name(o))
	}
	c.say("the mesh works, after %v", time.Since(began).Round(100*time.Millisecond))
	return nil
}

// rollout says what a Deployment or DaemonSet lacks.
func (c *Cluster) rollout(ctx context.Context, r ref) (string, error) {
	in, err := c.resource(r)
	if err != nil {
		return "", err
	}
	o, err := in.Get(ctx, r.Name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("get %s: %w", r, err)
	}
	number := func(fields ...string) int64 { n, _, _ := unstructured.NestedInt64(o.Object, fields...); return n }
	want, updated, ready := number("spec", "replicas"), number("status", "updatedReplicas"), number("status", "availableReplicas")
	there := number("status", "replicas")
	if r.Kind == "DaemonSet" {
		want, updated, ready = number("status", "desiredNumberScheduled"), number("status", "updatedNumberScheduled"), number("status", "numberAvailable")
		there = want
	}
	if number("status", "observedGeneration") >= o.GetGeneration() && updated >= want && ready >= want && there <= want {
		return "", nil
	}
	missing := fmt.Sprintf("%s: %d of %d ready, %d of this version", name(o), ready, want, updated)
	why, err := c.why(ctx, o)
	return missing + why, err
}

// why is the reason that the pods of a workload tell for not being ready; "" if they tell none.
func (c *Cluster) why(ctx context.Context, o *unstructured.Unstructured) (string, error) {
	match, _, _ := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
	list, err := c.dynamic.Resource(pods).Namespace(o.GetNamespace()).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: match})})
	if err != nil {
		return "", fmt.Errorf("list the pods of %s: %w", name(o), err)
	}
	for _, u := range list.Items {
		if w := troubleOf(u); w != "" {
			return "; pod " + u.GetName() + w, nil
		}
	}
	return "", nil
}

// troubleOf is trouble of a pod as the API server gave it, after a colon.
func troubleOf(o unstructured.Unstructured) string {
	var p corev1.Pod
	if runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &p) != nil {
		return ""
	}
	if w := trouble(&p); w != "" {
		return ": " + w
	}
	return ""
}

// lastWords is the last line that a container wrote, in brackets.
func lastWords(log string) string {
	log = strings.TrimSpace(log)
	if log == "" {
		return ""
	}
	return " (" + log[strings.LastIndexByte(log, '\n')+1:] + ")"
}

// trouble is why a pod does not run, if that does not pass by itself in a moment.
func trouble(p *corev1.Pod) string {
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		switch w := s.State.Waiting; {
		case w == nil || w.Reason == "ContainerCreating" || w.Reason == "PodInitializing":
		case s.LastTerminationState.Terminated != nil && w.Reason == "CrashLoopBackOff":
			end := s.LastTerminationState.Terminated
			return fmt.Sprintf("container %s ended with status %d%s: kubectl logs -n %s %s -c %s --previous", s.Name, end.ExitCode, lastWords(end.Message), p.Namespace, p.Name, s.Name)
		default:
			return strings.TrimSuffix("container "+s.Name+": "+w.Reason+": "+w.Message, ": ")
		}
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
			return cond.Reason + ": " + cond.Message
		}
	}
	return ""
}
