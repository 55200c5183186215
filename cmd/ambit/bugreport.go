package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/diagnose"
	"github.com/ambit-mesh/ambit/internal/secret"
)

func bugReportCommand() *cobra.Command {
	f := &meshFlags{}
	var path string
	var tail int64
	c := &cobra.Command{
		Use: "bug-report", Short: "Collect what somebody needs who is to help, without secrets", Args: arguments(cobra.NoArgs),
		Long: `Write an archive with findings, states, logs and dumps of the mesh's programs, and the objects that concern the mesh. Secrets are not read;
values of environment variables, arguments of other programs, contents of ConfigMaps, and what looks like a key, a token or a
password anywhere are taken out. Look through it all the same before you give it away.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, namespace, err := f.open()
			if err != nil {
				return err
			}
			if f.kubeFlags.namespace == "" {
				namespace = "" // all, unless one was named
			}
			out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("create report: %w", err)
			}
			err = writeReport(cmd.Context(), s, namespace, tail, out)
			if err = errors.Join(err, out.Close()); err != nil {
				_ = os.Remove(path)
				return err
			}
			fmt.Println(path)
			return nil
		},
	}
	f.register(c)
	c.Flags().StringVarP(&path, "filename", "f", "ambit-report-"+time.Now().UTC().Format("20060102-150405")+".tar.gz", "file to write; it must not exist")
	c.Flags().Int64Var(&tail, "tail", 5000, "lines of each log")
	return c
}

// report is an archive. Everything that goes in is redacted.
type report struct {
	tar *tar.Writer
	now time.Time
}

func (r *report) add(name string, body []byte) error {
	body = secret.Text(body)
	h := &tar.Header{Name: "ambit-report/" + name, Mode: 0o600, Size: int64(len(body)), ModTime: r.now}
	if err := r.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := r.tar.Write(body)
	return err
}

func (r *report) json(name string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return r.add(name, secret.JSON(body))
}

func writeReport(ctx context.Context, s source, namespace string, tail int64, out io.Writer) error {
	w, err := s.world(ctx)
	if err != nil {
		return err
	}
	ask(ctx, s, w)
	z := gzip.NewWriter(out)
	r := &report{tar.NewWriter(z), time.Now()}
	st := diagnose.StatusOf(w)
	_, proxies := diagnose.Proxies(w)
	errs := []error{
		r.add("version.txt", fmt.Appendf(nil, "ambit %s %s\nKubernetes %s\n", version, runtime.Version(), w.KubeVersion)),
		r.add("status.txt", []byte(st.Text())), r.json("status.json", st), r.json("proxies.json", proxies),
		r.json("analysis.json", of(diagnose.Analyze(w), namespace)), r.objects(w, namespace),
	}
	for i := range w.Proxies {
		errs = append(errs, r.program(ctx, s, &w.Proxies[i], tail))
	}
	return errors.Join(append(errs, r.tar.Close(), z.Close())...)
}

// objects adds those that concern the mesh.
func (r *report) objects(w *diagnose.World, namespace string) error {
	var all bytes.Buffer
	for _, k := range w.Objects.Keys() {
		ours := k.Namespace == "istio-system" || w.System != "" && k.Namespace == w.System
		if namespace != "" && k.Namespace != "" && k.Namespace != namespace && !ours || k.Kind == kube.KindConfigMap && !ours {
			continue
		}
		body, err := diagnose.RedactObject(w.Objects.Lookup(k), ours)
		if err != nil {
			return err
		}
		fmt.Fprintf(&all, "# %s\n%s\n", k, body)
	}
	return r.add("objects.txt", all.Bytes())
}

// program adds the dump and the logs of one program. What cannot be had is said in its place.
func (r *report) program(ctx context.Context, s source, p *diagnose.Proxy, tail int64) error {
	dir := "programs/" + p.Role + "-" + p.Name + "/"
	paths := map[string]string{"config_dump.json": "/config_dump"}
	if p.Role == diagnose.ControlPlane {
		paths = map[string]string{"syncz.json": "/debug/syncz", "problems.json": "/debug/problems", "ca.json": "/debug/ca", "metrics.txt": "/metrics"}
	}
	var errs []error
	for name, path := range paths {
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		body, err := s.admin(ctx, p, http.MethodGet, path)
		cancel()
		if err != nil {
			body = []byte(err.Error())
		}
		if strings.HasSuffix(name, ".json") {
			body = secret.JSON(body)
		}
		errs = append(errs, r.add(dir+name, body))
	}
	parts := []string{""}
	if p.Role == diagnose.Ztunnel {
		parts = []string{"proxy", "capture"}
	}
	for _, part := range parts {
		var log bytes.Buffer
		if err := s.logs(ctx, &log, p, logOptions{part: part, tail: tail}); err != nil {
			fmt.Fprintf(&log, "%v\n", err)
		}
		name := "log.txt"
		if part != "" {
			name = part + ".log"
		}
		errs = append(errs, r.add(dir+name, log.Bytes()))
	}
	return errors.Join(errs...)
}
