package zds

import (
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/zdspb"
)

// maxAckText keeps an answer below MaxPacket.
const maxAckText = 900

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrProtocol, fmt.Errorf(format, args...))
}

func marshal(m proto.Message) ([]byte, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(b) > MaxPacket {
		return nil, fmt.Errorf("encode message: %d bytes, more than %d", len(b), MaxPacket)
	}
	return b, nil
}

// encodeRequest returns the packet of a request. The descriptors stay the caller's.
func encodeRequest(r Request) ([]byte, []*File, error) {
	m := &zdspb.WorkloadRequest{}
	var files []*File
	switch r := r.(type) {
	case *Add:
		info := &zdspb.WorkloadInfo{Name: r.Name, Namespace: r.Namespace, ServiceAccount: r.ServiceAccount}
		for _, a := range r.Addrs {
			info.Addresses = append(info.Addresses, a.String())
		}
		m.Payload = &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: r.UID, WorkloadInfo: info}}
		files = r.Files.list()
	case *Del:
		m.Payload = &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: r.UID, Drain: r.Drain}}
	case *Keep:
		m.Payload = &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: r.UID}}
	case *SnapshotSent:
		m.Payload = &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}
	case *NodeSetup:
		m.Payload = &zdspb.WorkloadRequest_NodeSetup{NodeSetup: &zdspb.NodeSetup{
			Mark: r.Mark, Mask: r.Mask, AppPortMin: uint32(r.AppPortMin), AppPortMax: uint32(r.AppPortMax),
		}}
		files = []*File{r.Exempt}
	case *Return:
		m.Payload = &zdspb.WorkloadRequest_ReturnWorkload{ReturnWorkload: &zdspb.ReturnWorkload{Uid: r.UID}}
	}
	b, err := marshal(m)
	return b, files, err
}

// decodeRequest reads a packet of the agent. listeners says whether a node setup came before, that is, whether an add
// carries 4 descriptors, or 6, or 1 (Z3). On success the descriptors belong to the request, on error to the caller.
func decodeRequest(b []byte, files []*File, listeners bool) (Request, error) {
	m := &zdspb.WorkloadRequest{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, protocolError("decode request: %w", err)
	}
	want := 0
	var r Request
	var err error
	switch p := m.Payload.(type) {
	case *zdspb.WorkloadRequest_Add:
		want = 1
		if listeners {
			want = listenerFiles
			if len(files) == maxFiles {
				want = maxFiles
			}
		}
		r, err = decodeAdd(p.Add)
	case *zdspb.WorkloadRequest_Del:
		r = &Del{UID: p.Del.GetUid(), Drain: p.Del.GetDrain()}
	case *zdspb.WorkloadRequest_Keep:
		r = &Keep{UID: p.Keep.GetUid()}
	case *zdspb.WorkloadRequest_SnapshotSent:
		r = &SnapshotSent{}
	case *zdspb.WorkloadRequest_NodeSetup:
		want = 1
		r, err = decodeSetup(p.NodeSetup)
	case *zdspb.WorkloadRequest_ReturnWorkload:
		r = &Return{UID: p.ReturnWorkload.GetUid()}
	default:
		return nil, protocolError("request without a payload that is known")
	}
	if err != nil {
		return nil, err
	}
	if len(files) != want {
		return nil, protocolError("%T with %d descriptors, not %d", r, len(files), want)
	}
	switch r := r.(type) {
	case *Add:
		r.Files = filesOf(files)
	case *NodeSetup:
		r.Exempt = files[0]
	}
	return r, nil
}

func decodeAdd(m *zdspb.AddWorkload) (*Add, error) {
	info := m.GetWorkloadInfo()
	if info == nil {
		return nil, protocolError("add of %q without workload info", m.GetUid())
	}
	a := &Add{Workload{
		UID: m.GetUid(), Name: info.GetName(), Namespace: info.GetNamespace(), ServiceAccount: info.GetServiceAccount(),
	}}
	for _, s := range info.GetAddresses() {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return nil, protocolError("add of %q: %w", m.GetUid(), err)
		}
		a.Addrs = append(a.Addrs, addr.Unmap())
	}
	return a, nil
}

func decodeSetup(m *zdspb.NodeSetup) (*NodeSetup, error) {
	lo, hi := m.GetAppPortMin(), m.GetAppPortMax()
	if lo > hi || hi > 0xffff {
		return nil, protocolError("node setup with ports %d to %d", lo, hi)
	}
	return &NodeSetup{Setup{
		Mark: m.GetMark(), Mask: m.GetMask(), AppPortMin: uint16(lo), AppPortMax: uint16(hi),
	}}, nil
}

// hello is the first packet of a proxy.
type hello struct {
	listeners, dns bool
	pid            int64
}

func encodeHello(h hello) ([]byte, error) {
	return marshal(&zdspb.ZdsHello{Version: zdspb.Version_V1, Listeners: h.listeners, Dns: h.dns, Pid: h.pid})
}

func decodeHello(b []byte) (hello, error) {
	m := &zdspb.ZdsHello{}
	if err := proto.Unmarshal(b, m); err != nil {
		return hello{}, protocolError("decode hello: %w", err)
	}
	if m.GetVersion() != zdspb.Version_V1 {
		return hello{}, protocolError("hello of version %v, not V1", m.GetVersion())
	}
	return hello{listeners: m.GetListeners(), dns: m.GetDns(), pid: m.GetPid()}, nil
}

// encodeAck returns the answer to a request that ended with err; nil is success.
func encodeAck(err error) ([]byte, error) {
	ack := &zdspb.Ack{}
	if err != nil {
		ack.Error = clip(err.Error())
	}
	return marshal(&zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Ack{Ack: ack}})
}

// clip makes text valid and short enough for an answer; an error must not become an empty text, which means success.
func clip(text string) string {
	out := make([]rune, 0, len(text))
	n := 0
	for _, r := range text { // invalid bytes become U+FFFD, 3 bytes
		if n += len(string(r)); n > maxAckText {
			break
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return "unknown error"
	}
	return string(out)
}

// decodeAck reads an answer; the first result is the proxy's error text, empty for success.
func decodeAck(b []byte) (string, error) {
	m := &zdspb.WorkloadResponse{}
	if err := proto.Unmarshal(b, m); err != nil {
		return "", protocolError("decode answer: %w", err)
	}
	p, ok := m.Payload.(*zdspb.WorkloadResponse_Ack)
	if !ok {
		return "", protocolError("answer without ack")
	}
	return p.Ack.GetError(), nil
}
