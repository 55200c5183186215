package http2

import (
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runH2Spec runs h2spec against a port. Every case passes or is an exception, and exceptions do not pass.
func runH2Spec(t *testing.T, bin, port string, exceptions map[string]string) {
	report := filepath.Join(t.TempDir(), "report.xml")
	out, err := exec.Command(bin, "-p", port, "-o", "3", "-j", report).CombinedOutput()
	if err != nil {
		t.Log(err) // it fails if a case does
	}
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var suites struct {
		Suites []struct {
			Cases []struct {
				Package string    `xml:"package,attr"`
				Class   string    `xml:"classname,attr"`
				Failure string    `xml:"failure"`
				Error   string    `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &suites); err != nil {
		t.Fatal(err)
	}
	n, skipped := 0, 0
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			n++
			bad := strings.TrimSpace(c.Failure + c.Error)
			name := c.Package + ": " + c.Class
			reason, known := exceptions[name]
			switch {
			case c.Skipped != nil:
				skipped++
				t.Logf("h2spec skips: %s", name)
			case bad != "" && !known:
				t.Errorf("%s\n%s", name, bad)
			case bad != "":
				t.Logf("exception: %s (%s)", name, reason)
			case known:
				t.Errorf("passes, though it is listed as an exception: %s", name)
			}
		}
	}
	t.Logf("%d cases, %d skipped", n, skipped)
	if n < 100 {
		t.Errorf("only %d cases were run\n%s", n, out)
	}
}
