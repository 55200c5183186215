package hbone_test

import (
	"io"
	"testing"

	"github.com/ambit-mesh/ambit/hbone"
)

// Both ends of the tunnel run in this process, each on its own loop, over real TLS.

func BenchmarkPingPong1K(b *testing.B) {
	m := newMesh(b, hbone.PoolConfig{}, hbone.ServerConfig{})
	x, y := m.connect()
	go func() {
		buf := make([]byte, 1024)
		for {
			if _, err := io.ReadFull(y, buf); err != nil {
				return
			}
			y.Write(buf)
		}
	}()
	buf := make([]byte, 1024)
	b.ReportAllocs()
	for b.Loop() {
		x.Write(buf)
		io.ReadFull(x, buf)
	}
}

func BenchmarkBulk256K(b *testing.B) {
	m := newMesh(b, hbone.PoolConfig{}, hbone.ServerConfig{})
	x, y := m.connect()
	done := make(chan int64)
	go func() {
		buf := make([]byte, 256<<10)
		var n int64
		for {
			k, err := y.Read(buf)
			n += int64(k)
			if err != nil {
				done <- n
				return
			}
		}
	}()
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		x.Write(buf)
	}
	x.CloseWrite()
	<-done
}

func BenchmarkOpenClose(b *testing.B) {
	m := newMesh(b, hbone.PoolConfig{}, hbone.ServerConfig{})
	b.ReportAllocs()
	for b.Loop() {
		x, y := m.connect()
		x.Close()
		y.Close()
		<-m.joined
		<-m.joined
	}
}
