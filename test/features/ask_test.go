package features

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ask is one request, or several alike, and what must come of it. $N in path and headers is the number of the request.
type ask struct {
	client    string // a pod of the lab
	verb      string
	path      string
	authority string
	header    []string // NAME: VALUE
	payload   string
	proto     string // "", h2, grpc, tcp, tls
	sni       string
	port      int
	to        string // service, the case's if empty
	repeat    int
	fresh     bool
	parallel  int // how many at once; 0: one after the other
	// call takes the place of a request: it returns lines.
	call func(ctx context.Context, d dialer, address string) (string, error)
	// before is a manifest that is applied before; what must come of it is waited for.
	before string
	// act is done before; what must come of it is waited for.
	act func(b *bed)

	wants       []string
	shares      []share
	key         string // the beginning of a line, of which there are so many different ones: at least, at most
	distinct    [2]int
	least, most time.Duration
	pause       time.Duration // before each but the first, and in the middle of what is not HTTP
}

// share is how many answers have a line.
type share struct {
	line     string
	min, max int
}

func get(path string, header ...string) ask { return ask{verb: "GET", path: path, header: header} }

func (a ask) method(m string) ask      { a.verb = m; return a }
func (a ask) host(h string) ask        { a.authority = h; return a }
func (a ask) body(s string) ask        { a.payload = s; return a }
func (a ask) by(client string) ask     { a.client = client; return a }
func (a ask) at(port int) ask          { a.port = port; return a }
func (a ask) of(service string) ask    { a.to = service; return a }
func (a ask) h2() ask                  { a.proto = "h2"; return a }
func (a ask) times(n int) ask          { a.repeat = n; return a }
func (a ask) anew() ask                { a.fresh = true; return a }
func (a ask) atOnce() ask              { a.parallel = max(1, a.repeat); return a }
func (a ask) workers(n int) ask        { a.parallel = n; return a }
func (a ask) after(yaml string) ask    { a.before = yaml; return a }
func (a ask) want(lines ...string) ask { a.wants = append(slices.Clone(a.wants), lines...); return a }

// pods is how many different pods answer, peers how many connections they see.
func (a ask) pods(least, most int) ask  { return a.different("pod=", least, most) }
func (a ask) peers(least, most int) ask { return a.different("peer=", least, most) }
func (a ask) different(line string, least, most int) ask {
	a.key, a.distinct = line, [2]int{least, most}
	return a
}

func (a ask) took(least, most time.Duration) ask {
	a.least, a.most = least, most
	return a
}
func (a ask) count(line string, least, most int) ask {
	a.shares = append(slices.Clone(a.shares), share{line, least, most})
	return a
}

func rpc(method string, header ...string) ask {
	return ask{verb: "POST", path: method, header: header, proto: "grpc"}
}

func raw(port int) ask { return ask{proto: "tcp", port: port} }

func hello(port int, sni string) ask { return ask{proto: "tls", port: port, sni: sni} }

// matches says whether a line of an answer is as wanted: equal, or with a star at the end, beginning so.
func matches(answer, want string) bool {
	begin, prefix := strings.CutSuffix(want, "*")
	for line := range strings.SplitSeq(answer, "\n") {
		if line == want || prefix && strings.HasPrefix(line, begin) {
			return true
		}
	}
	return false
}

// check makes the requests and says what was not as wanted.
func (a ask) check(ctx context.Context, d dialer, address string) error {
	n := max(1, a.repeat)
	answers := make([]string, n)
	begin := time.Now()
	conn := &session{a: a, d: d, address: address}
	defer conn.close()
	if a.parallel > 0 {
		var wg sync.WaitGroup
		var next atomic.Int64
		for range a.parallel {
			wg.Go(func() {
				for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
					answers[i] = conn.once(ctx, int(i))
				}
			})
		}
		wg.Wait()
	} else {
		for i := range n {
			if i > 0 && a.pause > 0 {
				time.Sleep(a.pause)
			}
			answers[i] = conn.once(ctx, i)
		}
	}
	took := time.Since(begin)
	if took < a.least*9/10 || a.most > 0 && took > a.most { // a timer may be a little early
		return fmt.Errorf("took %s, want %s to %s; got\n%s", took, a.least, a.most, answers[0])
	}
	return a.judge(answers)
}

func (a ask) judge(answers []string) error {
	for _, got := range answers {
		for _, w := range a.wants {
			if no, negative := strings.CutPrefix(w, "!"); negative == matches(got, map[bool]string{true: no, false: w}[negative]) {
				return fmt.Errorf("want %q, got\n%s", w, got)
			}
		}
	}
	seen := map[string]bool{}
	for _, got := range answers {
		for line := range strings.SplitSeq(got, "\n") {
			if value, ok := strings.CutPrefix(line, a.key); ok {
				seen[value] = true
			}
		}
	}
	if a.distinct[1] > 0 && (len(seen) < a.distinct[0] || len(seen) > a.distinct[1]) {
		return fmt.Errorf("%d different %s, want %d to %d; first answer\n%s", len(seen), a.key, a.distinct[0], a.distinct[1], answers[0])
	}
	for _, s := range a.shares {
		n := 0
		for _, got := range answers {
			if matches(got, s.line) {
				n++
			}
		}
		if n < s.min || n > s.max {
			return fmt.Errorf("%d of %d answers have %q, want %d to %d; first answer\n%s", n, len(answers), s.line, s.min, s.max, answers[0])
		}
	}
	return nil
}

// dialer connects out of a pod.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// session is the client's connections during an ask.
type session struct {
	a       ask
	d       dialer
	address string
	made    sync.Once
	http    *http.Transport
}

func (s *session) close() {
	if s.http != nil {
		s.http.CloseIdleConnections()
	}
}

const patience = 8 * time.Second

// once is the text of one answer: its status and fields, and what the server tells of the request, a line each.
func (s *session) once(ctx context.Context, i int) string {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var text string
	var err error
	switch {
	case s.a.call != nil:
		text, err = s.a.call(ctx, s.d, s.address)
	case s.a.proto == "tcp", s.a.proto == "tls":
		text, err = s.stream(ctx)
	default:
		text, err = s.request(ctx, strconv.Itoa(i))
	}
	if err != nil {
		switch {
		// A reset that arrives before the request is written is seen by its write.
		case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			err = errors.New("reset")
		case errors.Is(err, context.DeadlineExceeded):
			err = errors.New("timeout")
		}
		text += "error=" + err.Error() + "\n"
	}
	return text
}

func (s *session) request(ctx context.Context, number string) (string, error) {
	s.made.Do(func() {
		s.http = &http.Transport{DialContext: s.d, DisableCompression: true, MaxIdleConnsPerHost: 64}
		if s.a.proto != "" {
			s.http.Protocols = new(http.Protocols)
			s.http.Protocols.SetUnencryptedHTTP2(true)
		}
	})
	payload := []byte(s.a.payload)
	if s.a.proto == "grpc" {
		payload = []byte{0, 0, 0, 0, 2, 0x0a, 0}
	}
	req, err := http.NewRequestWithContext(ctx, s.a.verb, "http://"+s.address+strings.ReplaceAll(s.a.path, "$N", number), bytes.NewReader(payload))
	if err != nil {
		return "", err
	}
	req.Host = s.a.authority
	req.Header.Set("User-Agent", "features")
	if s.a.proto == "grpc" {
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("TE", "trailers")
	}
	for _, h := range s.a.header {
		name, value, _ := strings.Cut(h, ": ")
		if strings.EqualFold(name, "user-agent") {
			req.Header.Del(name)
		}
		req.Header.Add(name, strings.ReplaceAll(value, "$N", number))
	}
	resp, err := s.http.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() {
		resp.Body.Close()
		if s.a.fresh {
			s.http.CloseIdleConnections()
		}
	}()
	body, err := io.ReadAll(resp.Body)
	var b strings.Builder
	fmt.Fprintf(&b, "status=%d\n", resp.StatusCode)
	for _, h := range []http.Header{resp.Header, resp.Trailer} {
		for name, values := range h {
			for _, v := range values {
				fmt.Fprintf(&b, "answer.%s=%s\n", strings.ToLower(name), v)
			}
		}
	}
	if s.a.proto == "grpc" && len(body) > 5 { // flag, length, tag, length, text
		_, used := binary.Uvarint(body[6:])
		body = body[6+max(0, used):]
	}
	b.Write(body)
	b.WriteString("\n")
	return b.String(), err
}

// stream sends a line, or the beginning of TLS, and reads a line.
func (s *session) stream(ctx context.Context) (string, error) {
	conn, err := s.d(ctx, "tcp", s.address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	first := []byte("who?\n")
	if s.a.payload != "" {
		first = []byte(s.a.payload)
	}
	if s.a.proto == "tls" {
		first = clientHello(s.a.sni)
	}
	if s.a.verb != "greet" {
		begin := 0
		if s.a.pause > 0 {
			begin = len(first) / 2
		}
		if _, err := conn.Write(first[:begin]); err != nil {
			return "", err
		}
		time.Sleep(s.a.pause)
		if _, err := conn.Write(first[begin:]); err != nil {
			return "", err
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.ReplaceAll(line, " ", "\n"), err
}

// clientHello is the first record of a TLS client that asks for the name.
func clientHello(sni string) []byte {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() { // ends when the pipe does
		_ = tls.Client(theirs, &tls.Config{ServerName: sni, MinVersion: tls.VersionTLS12}).Handshake()
		theirs.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(ours, head); err != nil {
		return nil
	}
	rest := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(ours, rest); err != nil {
		return nil
	}
	return append(head, rest...)
}
