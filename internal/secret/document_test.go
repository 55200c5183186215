package secret

import (
	"strings"
	"testing"
)

// marker is what a secret is in this test: it must not come out.
const marker = "hunter2hunter2"

func TestRedactedTextHasNoSecret(t *testing.T) {
	for _, text := range []string{
		"-----BEGIN EC PRIVATE KEY-----\n" + marker + "\n-----END EC PRIVATE KEY-----",
		"authorization: Bearer " + marker, "authorization=Basic " + marker, `{"access_token": "` + marker + `"`, "password=" + marker + "&x=1",
		"\nxdsHeaders:\n- - x-api-key\n  - " + marker + "\n- - x-team\n  - blue\n", "\n- - \"x-session-id\"\n  - \"" + marker + "\"\n",
		"https://me:" + marker + "@host/path", "token eyJhbGciOiJIUzI1.eyJ" + marker + ".sig", "--api-key=" + marker,
	} {
		got := string(Text([]byte("before " + text + " after")))
		if strings.Contains(got, marker) || !strings.Contains(got, "before") || !strings.Contains(got, "after") {
			t.Errorf("%q: %q", text, got)
		}
	}
	line := `info access connection complete src.identity="spiffe://cluster.local/ns/shop/sa/web" dst.addr=10.0.0.1:80 error="no certificate for spiffe://cluster.local/ns/shop/sa/web"`
	if got := string(Text([]byte(line))); got != line {
		t.Errorf("a line without secrets: %q", got)
	}
	if got := string(JSON([]byte(`{"data": "{\"password\": \"` + marker + `\"}", "tokenReview": {"kept": 1}, "isToken": true}`))); strings.Contains(got, marker) || !strings.Contains(got, "kept") || !strings.Contains(got, "true") {
		t.Errorf("a document in a document: %s", got)
	}
	doc := `{"xdsHeaders": [["x-api-key", "` + marker + `"], ["x-team", "blue"], ["authorization", "` + marker + `"]], "secretTtl": "24h0m0s"}`
	if got := string(JSON([]byte(doc))); strings.Contains(got, marker) || !strings.Contains(got, "blue") || !strings.Contains(got, "24h0m0s") {
		t.Errorf("pairs: %s", got)
	}
}
