package envoy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// A client refuses a resource whole, and all services of a waypoint share one listener. So what a user wrote is checked
// piece by piece, by the rules that Envoy's messages carry, before it gets in there.

// flaw is the first thing wrong with a message or with one that it packs, nil when nothing is.
func flaw(m proto.Message) error {
	if v, ok := m.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return err
		}
	}
	return packedFlaw(m.ProtoReflect())
}

// packedFlaw looks into what is packed: Validate does not.
func packedFlaw(m protoreflect.Message) error {
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			return fmt.Errorf("unpack %s: %w", a.GetTypeUrl(), err)
		}
		return flaw(inner)
	}
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
					err = packedFlaw(x.Message())
					return err == nil
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				if err = packedFlaw(v.List().Get(i).Message()); err != nil {
					break
				}
			}
		default:
			err = packedFlaw(v.Message())
		}
		return err == nil
	})
	return err
}

var groupReference = regexp.MustCompile(`\\(\d|.|$)`)

// rewriteFlaw says what is wrong with a rewrite by expression, "" when nothing is.
func rewriteFlaw(match, substitution string) string {
	e, err := regexp.Compile(match)
	if err != nil {
		return err.Error()
	}
	for _, ref := range groupReference.FindAllStringSubmatch(substitution, -1) {
		switch c := ref[1]; {
		case c == `\`:
		case len(c) != 1 || c[0] < '0' || c[0] > '9':
			return fmt.Sprintf(`%q is no reference to a group; a backslash is written \\`, ref[0])
		case int(c[0]-'0') > e.NumSubexp():
			return fmt.Sprintf("%s refers to a group that %q does not have", ref[0], match)
		}
	}
	return ""
}

// templateFlaw says what is wrong with a path template, "" when nothing is: {*} and {**} are whole segments, and {**} is
// the last of them.
func templateFlaw(path string) string {
	if !strings.HasPrefix(path, "/") {
		return "a template begins with a slash"
	}
	last := false
	for s := range strings.SplitSeq(path[1:], "/") {
		operator := s == "{*}" || s == "{**}"
		switch {
		case !operator && strings.ContainsAny(s, "{}*"):
			return fmt.Sprintf("segment %q mixes text and operators", s)
		case operator && last:
			return "{**} must be the last operator"
		}
		last = last || s == "{**}"
	}
	return ""
}

// commands are the names of Envoy's format commands that may stand in the value of a header.
var commands = strings.Fields(`REQ REQ_WITHOUT_QUERY RESP TRAILER START_TIME DURATION PROTOCOL RESPONSE_CODE RESPONSE_FLAGS UPSTREAM_HOST
	UPSTREAM_CLUSTER UPSTREAM_CLUSTER_RAW UPSTREAM_REMOTE_ADDRESS UPSTREAM_LOCAL_ADDRESS UPSTREAM_METADATA CLUSTER_METADATA DYNAMIC_METADATA
	FILTER_STATE DOWNSTREAM_REMOTE_ADDRESS DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_REMOTE_PORT DOWNSTREAM_DIRECT_REMOTE_ADDRESS
	DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_PORT
	DOWNSTREAM_PEER_URI_SAN DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_PEER_ISSUER DOWNSTREAM_TLS_VERSION DOWNSTREAM_TLS_CIPHER
	DOWNSTREAM_TLS_SESSION_ID DOWNSTREAM_PEER_SERIAL DOWNSTREAM_PEER_CERT DOWNSTREAM_PEER_FINGERPRINT_256 REQUESTED_SERVER_NAME ROUTE_NAME
	VIRTUAL_CLUSTER_NAME HOSTNAME ENVIRONMENT CONNECTION_ID STREAM_ID BYTES_RECEIVED BYTES_SENT RESPONSE_CODE_DETAILS TRACE_ID UNIQUE_ID`)

var command = regexp.MustCompile(`%%|%([A-Z_0-9]+)(\([^()%]*\))?(:[0-9]+)?%|%`)

// headerValue makes a value that a client takes: a percent sign that begins no command stands for itself.
func headerValue(v string) string {
	return command.ReplaceAllStringFunc(v, func(s string) string {
		if m := command.FindStringSubmatch(s); s == "%%" || m[1] != "" && slices.Contains(commands, m[1]) {
			return s
		}
		return strings.ReplaceAll(s, "%", "%%")
	})
}
