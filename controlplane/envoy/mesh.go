package envoy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/format"
)

// meshSettings are what of MeshConfig concerns waypoints.
type meshSettings struct {
	config *meshconfig.MeshConfig
	// flaws are what is wrong with the ConfigMap.
	flaws []kube.Problem
}

// ParseMesh reads MeshConfig as YAML. Fields that are not known are an error, which names them.
func ParseMesh(text []byte) (*meshconfig.MeshConfig, error) {
	body, err := yaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("parse mesh config: %w", err)
	}
	m := &meshconfig.MeshConfig{}
	if err := protojson.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("parse mesh config: %w", err)
	}
	return m, nil
}

// readMesh takes the configuration that was given, else that of the ConfigMap istio.
func (x *Index) readMesh() meshSettings {
	if x.cfg.Mesh != nil {
		return meshSettings{config: x.cfg.Mesh}
	}
	cm := kube.Get[*corev1.ConfigMap](x.objects, x.cfg.RootNamespace, "istio")
	if cm == nil {
		return meshSettings{config: &meshconfig.MeshConfig{}}
	}
	m, err := ParseMesh([]byte(cm.Data["mesh"]))
	if err != nil {
		return meshSettings{config: &meshconfig.MeshConfig{}, flaws: []kube.Problem{{
			Severity: kube.Ignored, Object: kube.KeyOf(cm), Field: "data.mesh", Cause: err.Error(), Accepted: "Istio's MeshConfig as YAML",
		}}}
	}
	s := meshSettings{config: m}
	dropFormats(m, func(field string, err error) {
		s.flaws = append(s.flaws, kube.Problem{
			Severity: kube.Ignored, Object: kube.KeyOf(cm), Field: "data.mesh." + field, Cause: err.Error() + ": the default format is used", Accepted: "a format string of Envoy's access logs",
		})
	})
	return s
}

// dropFormats removes the formats of access logs that no waypoint takes: it would refuse the listener, and all that is in it.
func dropFormats(m *meshconfig.MeshConfig, flaw func(field string, err error)) {
	if m.AccessLogFormat != "" {
		_, err := format.Parse(m.AccessLogFormat)
		if m.AccessLogEncoding == meshconfig.MeshConfig_JSON {
			fields := &structpb.Struct{}
			if err = fields.UnmarshalJSON([]byte(m.AccessLogFormat)); err == nil {
				err = formatsFlaw(fields)
			}
		}
		if err != nil {
			flaw("accessLogFormat", err)
			m.AccessLogFormat = ""
		}
	}
	for i, p := range m.ExtensionProviders {
		at := indexed("extensionProviders", i)
		if l := p.GetEnvoyFileAccessLog(); l != nil {
			if err := errors.Join(textFlaw(l.GetLogFormat().GetText()), formatsFlaw(l.GetLogFormat().GetLabels())); err != nil {
				flaw(at+".envoyFileAccessLog.logFormat", err)
				l.LogFormat = nil
			}
		}
		if l := p.GetEnvoyOtelAls(); l != nil {
			if err := errors.Join(textFlaw(l.GetLogFormat().GetText()), formatsFlaw(l.GetLogFormat().GetLabels())); err != nil {
				flaw(at+".envoyOtelAls.logFormat", err)
				l.LogFormat = nil
			}
		}
	}
}

func textFlaw(text string) error {
	_, err := format.Parse(text)
	return err
}

// formatsFlaw says what is wrong with a format in JSON: its values are format strings, or objects of such.
func formatsFlaw(fields *structpb.Struct) error {
	for _, name := range sortedKeys(fields.GetFields()) {
		var err error
		switch v := fields.Fields[name].GetKind().(type) {
		case *structpb.Value_StringValue:
			err = textFlaw(v.StringValue)
		case *structpb.Value_StructValue:
			err = formatsFlaw(v.StructValue)
		default:
			err = errors.New("neither a string nor an object")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// provider finds an extension provider by name.
func (m meshSettings) provider(name string) *meshconfig.MeshConfig_ExtensionProvider {
	for _, p := range m.config.ExtensionProviders {
		if p.Name == name {
			return p
		}
	}
	return nil
}

func (m meshSettings) providerNames() string {
	var names []string
	for _, p := range m.config.ExtensionProviders {
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return "a provider of extensionProviders in MeshConfig (there is none)"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// hosts are the services of all providers, which each waypoint gets clusters for.
func (m meshSettings) hosts() []string {
	var out []string
	for _, p := range m.config.ExtensionProviders {
		if s := providerService(p); s != "" {
			// "namespace/host" is accepted too.
			if _, host, ok := strings.Cut(s, "/"); ok {
				s = host
			}
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func providerService(p *meshconfig.MeshConfig_ExtensionProvider) string {
	switch {
	case p.GetEnvoyExtAuthzHttp() != nil:
		return p.GetEnvoyExtAuthzHttp().Service
	case p.GetEnvoyExtAuthzGrpc() != nil:
		return p.GetEnvoyExtAuthzGrpc().Service
	case p.GetZipkin() != nil:
		return p.GetZipkin().Service
	case p.GetOpentelemetry() != nil:
		return p.GetOpentelemetry().Service
	case p.GetEnvoyOtelAls() != nil:
		return p.GetEnvoyOtelAls().Service
	case p.GetEnvoyHttpAls() != nil:
		return p.GetEnvoyHttpAls().Service
	case p.GetEnvoyTcpAls() != nil:
		return p.GetEnvoyTcpAls().Service
	}
	return ""
}

// serviceHost is the host of a service that a provider names, which may be "namespace/host".
func serviceHost(name string) string {
	if _, host, ok := strings.Cut(name, "/"); ok {
		return host
	}
	return name
}
