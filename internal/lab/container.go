package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// EchoImage is the image that the lab has built in.
const EchoImage = "ambit/echo"

// container is a container of a pod: a process in the pod's namespaces.
type container struct {
	// Immutable.
	pod  *pod
	spec corev1.Container
	init bool

	// Guarded by Lab.mu.
	cmd      *exec.Cmd // of the running process
	running  bool
	ready    bool
	finished bool // will not be started again
	exitCode int
	restarts int
	started  time.Time
	reason   string
}

// A crashed container is started again after this, doubling. The kubelet waits 10 s to 5 min; a lab is for trying
// things out.
const (
	firstBackoff = time.Second
	lastBackoff  = 30 * time.Second
)

func newContainers(p *pod) []*container {
	var out []*container
	for _, s := range p.spec.InitContainers {
		out = append(out, &container{pod: p, spec: s, init: true})
	}
	for _, s := range p.spec.Containers {
		out = append(out, &container{pod: p, spec: s})
	}
	return out
}

// runInit runs an init container until it succeeds; false if it failed for good or ctx ended.
func (c *container) runInit(ctx context.Context, sb *sandbox) bool {
	for wait := firstBackoff; ; wait = min(wait*2, lastBackoff) {
		err := c.once(ctx, sb)
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			c.pod.update(func() { c.finished, c.reason = true, "" })
			return true
		}
		if c.pod.spec.RestartPolicy == corev1.RestartPolicyNever {
			c.pod.update(func() { c.finished = true })
			return false
		}
		c.pod.update(func() { c.restarts++; c.reason = err.Error() })
		if !sleep(ctx, wait) {
			return false
		}
	}
}

// runMain keeps a container running as the pod's restart policy says, until ctx ends.
func (c *container) runMain(ctx context.Context, sb *sandbox) {
	wait := firstBackoff
	for {
		begin := time.Now()
		err := c.once(ctx, sb)
		if ctx.Err() != nil {
			return
		}
		policy := c.pod.spec.RestartPolicy
		if policy == corev1.RestartPolicyNever || policy == corev1.RestartPolicyOnFailure && err == nil {
			c.pod.update(func() { c.finished = true })
			return
		}
		if time.Since(begin) > 10*time.Minute {
			wait = firstBackoff
		}
		c.pod.update(func() {
			c.reason = "exited with status 0"
			if err != nil {
				c.reason = err.Error()
			}
		})
		if !sleep(ctx, wait) {
			return
		}
		c.pod.update(func() { c.restarts++ })
		wait = min(wait*2, lastBackoff)
	}
}

// once runs the container's process to its end. The error says how it ended unless with status 0.
func (c *container) once(ctx context.Context, sb *sandbox) error {
	logFile, err := os.OpenFile(c.pod.logOf(c.spec.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer logFile.Close()
	cmd := c.command(logFile)
	c.pod.l.mu.Lock()
	if ctx.Err() != nil {
		c.pod.l.mu.Unlock()
		return ctx.Err()
	}
	if err = sb.spaces.start(cmd, sb.cg); err == nil {
		c.cmd, c.running, c.started = cmd, true, time.Now()
		c.ready = !c.init && c.spec.ReadinessProbe == nil
		c.reason = ""
	}
	c.pod.doc = nil
	c.pod.l.mu.Unlock()
	c.pod.l.wake()
	if err != nil {
		fmt.Fprintf(logFile, "lab: %v\n", err)
		c.pod.update(func() { c.exitCode = 128 })
		return fmt.Errorf("start container %s: %w", c.spec.Name, err)
	}
	err = cmd.Wait()
	code := cmd.ProcessState.ExitCode()
	c.pod.update(func() { c.cmd, c.running, c.ready, c.exitCode = nil, false, false, code })
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("container %s: %s", c.spec.Name, exit.ProcessState)
	}
	return err
}

// terminate asks the process and its session to end.
func (c *container) terminate() {
	c.pod.l.mu.Lock()
	defer c.pod.l.mu.Unlock()
	if c.cmd != nil {
		// The negative pid is the process group, which once made by Setsid.
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM)
	}
}

// command is the container's process, not yet started.
func (c *container) command(logFile *os.File) *exec.Cmd {
	env := c.environ()
	lookup := map[string]string{}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		lookup[k] = v
	}
	argv := make([]string, 0, len(c.spec.Command)+len(c.spec.Args))
	if len(c.spec.Command) == 0 {
		argv = append(argv, c.pod.l.opts.Programs.Echo...)
	}
	for _, a := range append(append([]string{}, c.spec.Command...), c.spec.Args...) {
		argv = append(argv, expandVars(a, lookup))
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Dir = "/"
	if c.spec.WorkingDir != "" {
		cmd.Dir = c.spec.WorkingDir
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: c.credential()}
	return cmd
}

// credential is runAsUser and runAsGroup of the container or else the pod.
func (c *container) credential() *syscall.Credential {
	var uid, gid *int64
	if s := c.pod.spec.SecurityContext; s != nil {
		uid, gid = s.RunAsUser, s.RunAsGroup
	}
	if s := c.spec.SecurityContext; s != nil {
		if s.RunAsUser != nil {
			uid = s.RunAsUser
		}
		if s.RunAsGroup != nil {
			gid = s.RunAsGroup
		}
	}
	if uid == nil && gid == nil {
		return nil
	}
	cred := &syscall.Credential{}
	if uid != nil {
		cred.Uid = uint32(*uid)
	}
	if gid != nil {
		cred.Gid = uint32(*gid)
	}
	return cred
}

// environ is the environment: what every pod has, then the container's own.
func (c *container) environ() []string {
	p := c.pod
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "HOSTNAME=" + p.key.Name,
		"POD_NAME=" + p.key.Name, "POD_NAMESPACE=" + p.key.Namespace, "NODE_NAME=" + p.node.name, dirVariable + "=" + p.dir(),
	}
	lookup := map[string]string{}
	for _, e := range c.spec.Env {
		v := expandVars(e.Value, lookup)
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			v = p.field(e.ValueFrom.FieldRef.FieldPath)
		}
		lookup[e.Name] = v
		env = append(env, e.Name+"="+v)
	}
	return env
}

// field is what the downward API gives for a path; the manifest's check let only these through.
func (p *pod) field(path string) string {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	switch path {
	case "metadata.name":
		return p.key.Name
	case "metadata.namespace":
		return p.key.Namespace
	case "metadata.uid":
		return p.uid
	case "spec.nodeName":
		return p.node.name
	case "spec.serviceAccountName":
		return p.account()
	case "status.hostIP":
		return p.node.addrs[0].String()
	case "status.podIP":
		return p.addrs[0].String()
	case "status.podIPs":
		var s []string
		for _, a := range p.addrs {
			s = append(s, a.String())
		}
		return strings.Join(s, ",")
	}
	if name, ok := strings.CutPrefix(path, "metadata.labels['"); ok {
		return p.labels[strings.TrimSuffix(name, "']")]
	}
	if name, ok := strings.CutPrefix(path, "metadata.annotations['"); ok {
		return p.annotations[strings.TrimSuffix(name, "']")]
	}
	return ""
}

var varRef = regexp.MustCompile(`\$\$|\$\([A-Za-z_.-][A-Za-z0-9_.-]*\)`)

// expandVars replaces $(NAME) as Kubernetes does: unknown names stay, $$ is a dollar sign.
func expandVars(s string, vars map[string]string) string {
	return varRef.ReplaceAllStringFunc(s, func(m string) string {
		if m == "$$" {
			return "$"
		}
		if v, ok := vars[m[2:len(m)-1]]; ok {
			return v
		}
		return m
	})
}
