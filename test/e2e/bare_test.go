package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
)

// The wire of HTTP/2 as far as the bare peers speak it (RFC 9113). They share no code with hbone.
const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

	typeData, typeHeaders, typeReset, typeSettings, typePing, typeGoAway = 0, 1, 3, 4, 6, 7

	endStream, endHeaders, ack = 1, 4, 1
)

// frame is one HTTP/2 frame as it stood on the connection.
type frame struct {
	typ, flags byte
	stream     uint32
	payload    []byte
}

func (f frame) bytes() []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(f.payload))<<8|uint32(f.typ))
	b = binary.BigEndian.AppendUint32(append(b, f.flags), f.stream)
	return append(b, f.payload...)
}

func readFrame(r io.Reader) (frame, error) {
	head := make([]byte, 9)
	if _, err := io.ReadFull(r, head); err != nil {
		return frame{}, err
	}
	f := frame{typ: head[3], flags: head[4], stream: binary.BigEndian.Uint32(head[5:])}
	f.payload = make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	_, err := io.ReadFull(r, f.payload)
	return f, err
}

// readUntil reads frames up to one of a type, and answers what must be answered on the way.
func readUntil(c io.ReadWriter, typs ...byte) (frame, error) {
	for {
		f, err := readFrame(c)
		if err != nil {
			return f, err
		}
		if bytes.IndexByte(typs, f.typ) >= 0 {
			return f, nil
		}
		switch {
		case f.typ == typeSettings && f.flags&ack == 0:
			_, err = c.Write(frame{typ: typeSettings, flags: ack}.bytes())
		case f.typ == typePing && f.flags&ack == 0:
			_, err = c.Write(frame{typ: typePing, flags: ack, payload: f.payload}.bytes())
		case f.typ == typeGoAway:
			err = fmt.Errorf("GOAWAY %x", f.payload)
		}
		if err != nil {
			return f, err
		}
	}
}

// fields are a header block's, as "name: value". Both of our encoders work without a dynamic table, so each block stands
// for itself.
func fields(block []byte) ([]string, error) {
	fs, err := hpack.NewDecoder(4096, nil).DecodeFull(block)
	var out []string
	for _, f := range fs {
		out = append(out, f.Name+": "+f.Value)
	}
	return out, err
}

// block encodes pairs of names and values.
func block(kv ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	e.SetMaxDynamicTableSize(0)
	for i := 0; i < len(kv); i += 2 {
		if err := e.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]}); err != nil {
			panic(err) // a bytes.Buffer takes everything
		}
	}
	return b.Bytes()
}

// credentials has the lab's CA certify a new key for an identity, as the ztunnel of the identity's node would.
func (m *mesh) credentials(node, id string) *tls.Config {
	m.t.Helper()
	dir := filepath.Join("/run/ambit-lab", m.name)
	rootFile := filepath.Join(dir, "controlplane/root-cert.pem")
	ca, err := svid.NewCAClient(svid.CAClientConfig{
		Address: "https://172.30.0.2:15012", RootCA: rootFile, ClusterID: "Kubernetes",
		Token: func() (string, error) {
			b, err := os.ReadFile(filepath.Join(dir, "nodes", node, "token"))
			return string(b), err
		},
		Dial: func(_ context.Context, addr string) (net.Conn, error) {
			to, err := netip.ParseAddrPort(addr)
			if err != nil {
				return nil, err
			}
			return m.dial("", node, to, 5*time.Second)
		},
	})
	netnstest.Must(m.t, err)
	defer ca.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	netnstest.Must(m.t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	netnstest.Must(m.t, err)
	who, err := spiffe.Parse(id)
	netnstest.Must(m.t, err)
	chain, err := ca.Sign(m.t.Context(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), who, time.Hour)
	netnstest.Must(m.t, err)
	cert := tls.Certificate{PrivateKey: key}
	for _, c := range chain[:len(chain)-1] { // the last one is the root
		p, _ := pem.Decode([]byte(c))
		cert.Certificate = append(cert.Certificate, p.Bytes)
	}
	rootPEM, err := os.ReadFile(rootFile)
	netnstest.Must(m.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(rootPEM)
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
		NextProtos: []string{"h2"}, InsecureSkipVerify: true, // there is no DNS name to check; the chain is checked here
		VerifyConnection: func(cs tls.ConnectionState) error {
			rest := x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				rest.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: rest, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		},
	}
}

// wantOneURI checks that a certificate names one SPIFFE ID and nothing else.
func wantOneURI(t *testing.T, cs tls.ConnectionState, id string) {
	t.Helper()
	c := cs.PeerCertificates[0]
	if len(c.URIs) != 1 || c.URIs[0].String() != id {
		t.Errorf("URI names %v, want exactly %s", c.URIs, id)
	}
	if len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) > 0 {
		t.Errorf("further names: %v %v %v", c.DNSNames, c.IPAddresses, c.EmailAddresses)
	}
}

// tunnel is the client's end of an HBONE connection, spoken by hand. Stream numbers count up from 1.
type tunnel struct {
	*tls.Conn
	next uint32
}

// openTunnel connects from a pod outside of the mesh to a pod's tunnel port and shakes hands.
func (m *mesh) openTunnel(namespace, pod string, to netip.Addr, cfg *tls.Config) (*tunnel, error) {
	tcp, err := m.dial(namespace, pod, netip.AddrPortFrom(to, 15008), 5*time.Second)
	if err != nil {
		return nil, err
	}
	_ = tcp.SetDeadline(time.Now().Add(20 * time.Second))
	c := tls.Client(tcp, cfg)
	if err := c.HandshakeContext(m.t.Context()); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	m.t.Cleanup(func() { c.Close() })
	return &tunnel{c, 1}, nil
}

// connect sends a request, which ends with its header unless it is a CONNECT, and returns the fields of the answer, or the
func (t *tunnel) connect(kv ...string) (stream uint32, answer []string, err error) {
	stream = t.next
	t.next += 2
	flags := byte(endHeaders)
	if kv[1] != "CONNECT" {
		flags |= endStream
	}
	if _, err := t.Write(frame{typeHeaders, flags, stream, block(kv...)}.bytes()); err != nil {
		return stream, nil, err
	}
	f, err := readUntil(t, typeHeaders, typeReset)
	for err == nil && f.stream < stream { // a refused stream is reset without an error, after its answer
		f, err = readUntil(t, typeHeaders, typeReset)
	}
	if err != nil {
		return stream, nil, err
	}
	if f.typ == typeReset {
		return stream, []string{fmt.Sprintf("reset %d", binary.BigEndian.Uint32(f.payload))}, nil
	}
	answer, err = fields(f.payload)
	return stream, answer, err
}

// exchange sends bytes on an open stream and reads until the answer contains a text.
func (t *tunnel) exchange(stream uint32, send, until string) (string, error) {
	if _, err := t.Write(frame{typeData, 0, stream, []byte(send)}.bytes()); err != nil {
		return "", err
	}
	got := ""
	for !strings.Contains(got, until) {
		f, err := readUntil(t, typeData, typeReset)
		if err != nil || f.typ == typeReset {
			return got, fmt.Errorf("after %q: frame %d: %w", got, f.typ, err)
		}
		got += string(f.payload)
	}
	return got, nil
}
