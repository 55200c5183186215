package envoy

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Names of what every waypoint has (3.5).
const (
	nameConnectOriginate = "connect_originate"
	nameInnerOriginate   = "inner_connect_originate"
	nameOuterOriginate   = "outer_connect_originate"
	nameConnectTerminate = "connect_terminate"
	nameMainInternal     = "main_internal"
	nameEncap            = "encap"
	nameDirectHTTP       = "direct-http"
	nameDirectTCP        = "direct-tcp"
	nameUnknownService   = "UnknownService"
)

// kindHTTP and kindTCP stand in names and in metadata.
const (
	kindHTTP = "http"
	kindTCP  = "tcp"
)

// inboundName names chain, cluster and routes of a port of a service that the waypoint serves.
func inboundName(port uint32, kind, subset, host string) string {
	if subset != "" {
		kind += "/" + subset
	}
	return fmt.Sprintf("inbound-vip|%d|%s|%s", port, kind, host)
}

// outboundName names the cluster of a service that the waypoint does not serve.
func outboundName(port uint32, subset, host string) string {
	return fmt.Sprintf("outbound|%d|%s|%s", port, subset, host)
}

// configPath is how istiod names an object in metadata: the plural is not used.
func configPath(kind string, o metav1.Object) string {
	return configPathOf(kind, o.GetNamespace(), o.GetName())
}

func configPathOf(kind, namespace, name string) string {
	return "/apis/networking.istio.io/v1/namespaces/" + namespace + "/" + kind + "/" + name
}

// structOf makes a Struct of strings, booleans, numbers, maps and lists.
func structOf(fields map[string]any) *structpb.Struct {
	s, err := structpb.NewStruct(fields)
	if err != nil {
		panic("make struct: " + err.Error()) // the callers' types are in the list above
	}
	return s
}

// clone copies a message.
func clone[M proto.Message](m M) M { return proto.Clone(m).(M) }
