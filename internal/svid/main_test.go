package svid_test

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ambit-mesh/ambit/internal/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func verifyOptions(s *svid.SVID) x509.VerifyOptions {
	return x509.VerifyOptions{Roots: s.Roots, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
}

func pemOf(s *svid.SVID) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Leaf.Raw}))
}
