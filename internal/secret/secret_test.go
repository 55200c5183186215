package secret

import (
	"strings"
	"testing"
)

// jwt is a signed token as clients send it.
const jwt = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"

func TestNamesOfSecretsAreKnown(t *testing.T) { // S15
	for _, n := range []string{
		"authorization", "Proxy-Authorization", "cookie", "Set-Cookie", "x-api-key", "X-Auth-Token", "x-amz-security-token", "access_token", "idToken",
		"client_secret", "password", "passwd", "pwd", "sig", "X-Amz-Signature", "code", "key", "apikey", "AWSAccessKeyId", "jsessionid", "PHPSESSID",
		"DB_PASSWORD", "client_assertion", "SAMLResponse", "x-jwt-payload",
	} {
		if !Named(n) {
			t.Errorf("%q is no secret", n)
		}
	}
	for _, n := range []string{
		":path", ":authority", "user-agent", "x-request-id", "x-forwarded-for", "traceparent", "q", "page", "author", "keyword", "monkey", "country_code",
		"pass-through", "idempotency-key", "x-envoy-attempt-count", "content-type", "pinned", "signed", "", "x-forwarded-client-cert",
	} {
		if Named(n) {
			t.Errorf("%q is a secret", n)
		}
	}
}

func TestURLsKeepEverythingButSecrets(t *testing.T) { // B45
	for _, c := range [][2]string{
		{"/", "/"},
		{"/a/b.c?x=1&y=2", "/a/b.c?x=1&y=2"},
		{"/?token=abc", "/?token=[redacted]"},
		{"/?x=1&token=abc&y=2", "/?x=1&token=[redacted]&y=2"},
		{"/?token=", "/?token="},
		{"/?Access-Token=abc", "/?Access-Token=[redacted]"},
		{"/?acc%65ss_token=abc", "/?acc%65ss_token=[redacted]"},
		{"/?token=a/b?c;d=e&y=2", "/?token=[redacted]&y=2"}, // base64 has slashes, and some servers do not divide by semicolons
		{"/?x=1;token=abc", "/?x=1;token=[redacted]"},       // and some do
		{"/?user[password]=abc", "/?user[password]=[redacted]"},
		{"/a;jsessionid=abc/b?c=d", "/a;jsessionid=[redacted]/b?c=d"},
		{"/?next=/login?token=abc&z=1", "/?next=/login?token=[redacted]&z=1"},
		{"/?next=%2Flogin%3Ftoken%3Dabc&z=1", "/?next=[redacted]&z=1"},
		{"/?next=%252Flogin%253Ftoken%253Dabc&z=1", "/?next=[redacted]&z=1"},
		{"/?next=%2Flogin%3Fx%3Dabc&z=1", "/?next=%2Flogin%3Fx%3Dabc&z=1"},
		{"/?q=" + jwt, "/?q=[redacted]"},
		{"/?q=Bearer%20" + jwt, "/?q=[redacted]"},
		{"/?q=" + strings.ReplaceAll(jwt, ".", "%2E"), "/?q=[redacted]"},
		{"/confirm/" + jwt + "/now", "/confirm/[redacted]/now"},
		{"/?" + jwt, "/?[redacted]"},
		{"/example.com.example.org?v=1.2.3", "/example.com.example.org?v=1.2.3"},
		{"https://user:pass@example.com/a?b=c", "https://[redacted]@example.com/a?b=c"},
		{"https://example.com/a@b", "https://example.com/a@b"},
		{"/?x=%zz&token=%zz", "/?x=%zz&token=[redacted]"},
		{"/?a=b&&&=&token=x", "/?a=b&&&=&token=[redacted]"},
	} {
		if got := URL(c[0]); got != c[1] {
			t.Errorf("%q: got %q, want %q", c[0], got, c[1])
		}
	}
}

func TestHeadersKeepEverythingButSecrets(t *testing.T) {
	for _, c := range [][3]string{
		{"authorization", "Basic YTpi", Hidden}, {"cookie", "a=b", Hidden}, {"x-who", jwt, Hidden}, {"x-who", "alice", "alice"},
		{"referer", "http://a/?token=b", "http://a/?token=[redacted]"}, {":path", "/?a=b", "/?a=b"}, {"x-forwarded-for", "10.1.2.3, 10.1.2.4", "10.1.2.3, 10.1.2.4"},
	} {
		if got := Header(c[0], c[1]); got != c[2] {
			t.Errorf("%s: %q: got %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

func TestAURLWithoutSecretsCostsNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { URL("/api/v1.2/items.json?page=3&sort=name&q=hello") }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

// FuzzURL holds that a secret's value is not in the result, wherever it stands, and that what is clean stays so.
func FuzzURL(f *testing.F) {
	f.Add("/a/b?x=1", "&y=2")
	f.Add("/;", "/b?c")
	f.Add("http://u:p@h/?n=%2F%3F", "")
	const planted = "pLaNtEd0123456789"
	f.Fuzz(func(t *testing.T, before, after string) {
		once := URL(before)
		if twice := URL(once); twice != once {
			t.Errorf("%q becomes %q and then %q", before, once, twice)
		}
		for _, divider := range []string{"?", "&", ";"} {
			s := before + divider + "token=" + planted + after
			if divider == "&" && !strings.Contains(before, "?") {
				continue // no query: the whole is a segment's name
			}
			if got := URL(s); strings.Contains(got, planted) {
				t.Errorf("%q becomes %q", s, got)
			}
		}
	})
}

func BenchmarkURL(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		URL("/api/v1.2/items.json?page=3&sort=name&q=hello")
	}
}
