package lab

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func itoa(n int) string { return strconv.Itoa(n) }

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// nameLetters are those of Kubernetes: no vowels, so that no words come out.
const nameLetters = "bcdfghjklmnpqrstvwxz2456789"

// templateHash names a version of a Deployment's template.
func templateHash(d *appsv1.Deployment) string {
	b, err := json.Marshal(d.Spec.Template)
	if err != nil {
		panic(err) // it came from JSON
	}
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%x", sum[:5])
}

// suffix makes the five letters behind a pod's name.
func suffix() string {
	b := make([]byte, 5)
	rand.Read(b)
	for i := range b {
		b[i] = nameLetters[int(b[i])%len(nameLetters)]
	}
	return string(b)
}

// rollout is where a Deployment stands.
type rollout struct {
	want           int
	surge, unavail int
	fresh, old     []*pod // not stopping
	available      int    // of both
	freshAvailable int
	settled        bool
}

func (r rollout) String() string {
	return fmt.Sprintf("%d of %d updated pods ready, %d old", r.freshAvailable, r.want, len(r.old))
}

// deploymentStatus looks at a Deployment's pods; with Lab.mu held.
func (l *Lab) deploymentStatus(o *object) rollout {
	d := o.deploy
	r := rollout{want: 1}
	if d.Spec.Replicas != nil {
		r.want = int(*d.Spec.Replicas)
	}
	r.surge, r.unavail = limits(d, r.want)
	hash := o.hash
	for _, p := range l.pods {
		if p.owner != d.Name || p.key.Namespace != o.m.Namespace || p.stopping {
			continue
		}
		ready := p.readyLocked()
		if ready {
			r.available++
		}
		if p.hash == hash {
			r.fresh = append(r.fresh, p)
			if ready {
				r.freshAvailable++
			}
		} else {
			r.old = append(r.old, p)
		}
	}
	for _, ps := range [][]*pod{r.fresh, r.old} {
		// Those that do not serve go first, then the youngest.
		slices.SortFunc(ps, func(a, b *pod) int {
			if ra, rb := a.readyLocked(), b.readyLocked(); ra != rb {
				if rb {
					return -1
				}
				return 1
			}
			return -a.created.Compare(b.created)
		})
	}
	r.settled = len(r.old) == 0 && len(r.fresh) == r.want && r.freshAvailable == r.want
	return r
}

// limits are maxSurge and maxUnavailable: a quarter each unless given.
func limits(d *appsv1.Deployment, want int) (surge, unavail int) {
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return 0, want
	}
	quarter := intstr.FromString("25%")
	s, u := &quarter, &quarter
	if ru := d.Spec.Strategy.RollingUpdate; ru != nil {
		if ru.MaxSurge != nil {
			s = ru.MaxSurge
		}
		if ru.MaxUnavailable != nil {
			u = ru.MaxUnavailable
		}
	}
	surge, _ = intstr.GetScaledValueFromIntOrPercent(s, want, true)
	unavail, _ = intstr.GetScaledValueFromIntOrPercent(u, want, false)
	if surge == 0 && unavail == 0 {
		unavail = 1 // as Kubernetes does, or nothing would ever move
	}
	return surge, unavail
}

// scaleDeployments takes each Deployment one step towards its spec; the next step follows when a pod changed. With
// Lab.mu held.
func (l *Lab) scaleDeployments(ctx context.Context) {
	for _, o := range l.objects {
		if o.deploy == nil {
			continue
		}
		r := l.deploymentStatus(o)
		for i := 0; i < len(r.fresh)-r.want; i++ {
			r.fresh[i].stopLocked()
		}
		l.retireOld(o, r)
		r = l.deploymentStatus(o)
		room := r.want + r.surge - len(r.fresh) - len(r.old)
		if o.deploy.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType && l.anyOld(o) {
			room = 0
		}
		for range min(room, r.want-len(r.fresh)) {
			l.addReplica(ctx, o)
		}
	}
}

// anyOld tells whether pods of an old template are still there, even if they are about to end.
func (l *Lab) anyOld(o *object) bool {
	hash := o.hash
	for _, p := range l.pods {
		if p.owner == o.deploy.Name && p.key.Namespace == o.m.Namespace && p.hash != hash {
			return true
		}
	}
	return false
}

// retireOld stops pods of an old template as far as enough others serve.
func (l *Lab) retireOld(o *object, r rollout) {
	floor := r.want - r.unavail
	for _, p := range r.old {
		switch {
		case !p.readyLocked():
			p.stopLocked()
		case r.available > floor:
			p.stopLocked()
			r.available--
		}
	}
}

func (l *Lab) addReplica(ctx context.Context, o *object) {
	d, hash := o.deploy, o.hash
	labels := maps.Clone(d.Spec.Template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels["pod-template-hash"] = hash
	k := podKey(o.m.Namespace, d.Name+"-"+hash+"-"+suffix())
	l.startPodLocked(ctx, k, newUID(), &d.Spec.Template.Spec, labels, d.Spec.Template.Annotations, d.Name, hash)
}
