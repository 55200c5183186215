package cluster

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// systemLookup asks the servers that the system names. No thread waits meanwhile. The library that asks does not tell TTLs,
// so they are read off the answers on their way to it; names of the hosts file have none.
func systemLookup() Lookup { return lookupBy((&net.Dialer{}).DialContext) }

// lookupBy is systemLookup with another way to the servers.
func lookupBy(dial func(ctx context.Context, network, address string) (net.Conn, error)) Lookup {
	return func(ctx context.Context, network, host string) ([]netip.Addr, time.Duration, error) {
		var t leastTTL
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			if u, ok := conn.(*net.UDPConn); ok { // whose kind the library asks for
				return &udpAnswers{UDPConn: u, ttl: &t}, nil
			}
			return &tcpAnswers{Conn: conn, ttl: &t}, nil
		}}
		addrs, err := r.LookupNetIP(ctx, network, host)
		return addrs, t.get(), err
	}
}

// leastTTL is the shortest time that an answer is good for. Any goroutine: both families are asked at once.
type leastTTL struct {
	mu    sync.Mutex
	known bool          // guarded by mu
	ttl   time.Duration // guarded by mu
}

// get is 0 if there was no answer.
func (t *leastTTL) get() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ttl
}

// look reads an answer.
func (t *leastTTL) look(message []byte) {
	var p dnsmessage.Parser
	if _, err := p.Start(message); err != nil || p.SkipAllQuestions() != nil {
		return
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil || p.SkipAnswer() != nil {
			return
		}
		switch h.Type {
		case dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeCNAME:
			t.mu.Lock()
			if d := time.Duration(h.TTL) * time.Second; !t.known || d < t.ttl {
				t.known, t.ttl = true, max(d, time.Millisecond) // 0 stands for not known
			}
			t.mu.Unlock()
		}
	}
}

// udpAnswers is a connection on which each read is an answer.
type udpAnswers struct {
	*net.UDPConn
	ttl *leastTTL
}

// Read implements net.Conn.
func (c *udpAnswers) Read(p []byte) (int, error) {
	n, err := c.UDPConn.Read(p)
	if err == nil {
		c.ttl.look(p[:n])
	}
	return n, err
}

// tcpAnswers is a connection on which answers follow their lengths.
type tcpAnswers struct {
	net.Conn
	ttl *leastTTL
	got []byte
}

// Read implements net.Conn.
func (c *tcpAnswers) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.got = append(c.got, p[:n]...)
	for len(c.got) >= 2 && len(c.got) >= 2+int(binary.BigEndian.Uint16(c.got)) {
		end := 2 + int(binary.BigEndian.Uint16(c.got))
		c.ttl.look(c.got[2:end])
		c.got = c.got[end:]
	}
	return n, err
}
