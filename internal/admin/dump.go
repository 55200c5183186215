package admin

import (
	"bufio"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"iter"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Section is one top-level member of /config_dump.
type Section struct {
	Key string
	// Value is called for each dump, on the request's goroutine, and must not block for long. It returns what
	// encoding/json encodes, or an iter.Seq[any], which becomes a list that is written element by element, so that a large
	// list never exists as a whole (A4).
	Value func() any
}

// dumpHandler writes the sections as one pretty-printed object.
func dumpHandler(sections []Section) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// An error here means that the client is gone, or that a section does not encode, which its test would show; the
		// answer is then visibly cut.
		_ = WriteDump(w, sections)
	})
}

// WriteDump writes the object of /config_dump.
func WriteDump(out io.Writer, sections []Section) error {
	w := bufio.NewWriterSize(out, 32<<10)
	w.WriteString("{")
	for i, s := range sections {
		if i > 0 {
			w.WriteString(",")
		}
		key, err := json.Marshal(s.Key)
		if err != nil {
			return err
		}
		w.WriteString("\n  ")
		w.Write(key)
		w.WriteString(": ")
		v := s.Value()
		if seq, ok := v.(iter.Seq[any]); ok {
			err = writeList(w, seq)
		} else {
			err = writeValue(w, v, "  ")
		}
		if err != nil {
			return err
		}
	}
	w.WriteString("\n}\n")
	return w.Flush()
}

func writeList(w *bufio.Writer, seq iter.Seq[any]) error {
	w.WriteString("[")
	some := false
	for v := range seq {
		if some {
			w.WriteString(",")
		}
		some = true
		w.WriteString("\n    ")
		if err := writeValue(w, v, "    "); err != nil {
			return err
		}
	}
	if some {
		w.WriteString("\n  ")
	}
	_, err := w.WriteString("]")
	return err
}

func writeValue(w *bufio.Writer, v any, prefix string) error {
	b, err := json.MarshalIndent(v, prefix, "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// Certificate is an identity's certificate as config_dump shows it (9.2). It has no private key (A2).
type Certificate struct {
	Identity  string     `json:"identity"`
	State     string     `json:"state"` // Available, Initializing, or "Unavailable: ..."
	CertChain []CertInfo `json:"certChain"`
	RootCerts []CertInfo `json:"rootCerts"`
}

// CertInfo is one certificate of a chain.
type CertInfo struct {
	PEM            string `json:"pem"`            // base64 of the PEM text
	SerialNumber   string `json:"serialNumber"`   // decimal
	ValidFrom      string `json:"validFrom"`      // RFC 3339, seconds, Z
	ExpirationTime string `json:"expirationTime"` // the same
}

// NewCertificate describes the certificate of an identity; chain and roots may be empty.
func NewCertificate(identity, state string, chain, roots []*x509.Certificate) Certificate {
	return Certificate{Identity: identity, State: state, CertChain: certInfos(chain), RootCerts: certInfos(roots)}
}

func certInfos(certs []*x509.Certificate) []CertInfo {
	out := make([]CertInfo, 0, len(certs))
	for _, c := range certs {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		out = append(out, CertInfo{
			PEM: base64.StdEncoding.EncodeToString(text), SerialNumber: c.SerialNumber.String(),
			ValidFrom: c.NotBefore.UTC().Format(time.RFC3339), ExpirationTime: c.NotAfter.UTC().Format(time.RFC3339),
		})
	}
	return out
}

// SortCertificates sorts by identity (A1).
func SortCertificates(list []Certificate) {
	slices.SortFunc(list, func(a, b Certificate) int { return strings.Compare(a.Identity, b.Identity) })
}

// WorkloadState is one pod under the key workloadState (9.2), by its uid.
type WorkloadState struct {
	State       string      `json:"state"` // Pending or Up
	Connections Connections `json:"connections"`
	Info        PodInfo     `json:"info"`
}

// PodInfo is what the node knows of a pod.
type PodInfo struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// Connections are the open connections of a pod.
type Connections struct {
	Inbound  []Connection `json:"inbound"`
	Outbound []Connection `json:"outbound"`
}

// Connection is one open connection. OriginalDst of an inbound one is the service hint or null (A3).
type Connection struct {
	Src         string  `json:"src"`
	OriginalDst *string `json:"originalDst"`
	ActualDst   string  `json:"actualDst"`
	Protocol    string  `json:"protocol"` // HBONE, DOUBLEHBONE or TCP
}

// Version is the key version (9.2).
type Version struct {
	Version        string `json:"version"`
	GitRevision    string `json:"gitRevision"`
	GoVersion      string `json:"goVersion"`
	RustVersion    string `json:"rustVersion"` // istioctl expects the key
	BuildProfile   string `json:"buildProfile"`
	BuildStatus    string `json:"buildStatus"`
	IstioVersion   string `json:"istioVersion"`
	CryptoProvider string `json:"cryptoProvider"`
}
