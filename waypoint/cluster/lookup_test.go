package cluster

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// answerOf is what a server says to a question about the one name it knows: an alias and its address. Over UDP it says that
// the answer is too long.
func answerOf(t *testing.T, question []byte, udp bool) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		t.Error(err)
		return nil
	}
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RecursionAvailable: true, Truncated: udp}
	m.Additionals = nil
	q := m.Questions[0]
	alias := dnsmessage.MustNewName("alias.example.")
	add := func(name dnsmessage.Name, ttl uint32, body dnsmessage.ResourceBody) {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}, Body: body})
	}
	if !udp {
		add(q.Name, 7, &dnsmessage.CNAMEResource{CNAME: alias})
		if q.Type == dnsmessage.TypeA {
			add(alias, 30, &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}})
		} else {
			add(alias, 40, &dnsmessage.AAAAResource{AAAA: [16]byte{0x20, 1, 0xd, 0xb8, 15: 1}})
		}
	}
	out, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return out
}

// serveNames is a server for both transports, on one port.
func serveNames(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); udp.Close() })
	go func() { // ends with the socket
		buf := make([]byte, 4096)
		for n, from, err := udp.ReadFrom(buf); err == nil; n, from, err = udp.ReadFrom(buf) {
			_, _ = udp.WriteTo(answerOf(t, buf[:n], true), from)
		}
	}()
	go func() { // ends with the listener
		for conn, err := ln.Accept(); err == nil; conn, err = ln.Accept() {
			go func() {
				defer conn.Close()
				var size [2]byte
				if _, err := io.ReadFull(conn, size[:]); err != nil {
					return
				}
				question := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(conn, question); err != nil {
					return
				}
				a := answerOf(t, question, false)
				_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}()
		}
	}()
	return ln.Addr().String()
}

func TestTheLeastTTLOfAnAnswerIsTold(t *testing.T) {
	server := serveNames(t)
	look := lookupBy(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	})
	addrs, ttl, err := look(t.Context(), "ip", "ttl.example.")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range addrs {
		got = append(got, a.Unmap().String())
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"192.0.2.1", "2001:db8::1"}) || ttl != 7*time.Second {
		t.Errorf("got %v for %s, want both addresses for 7s, the alias's time", got, ttl)
	}
}
