package forward

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// soak says whether the long forms are to run.
func soak() bool { return os.Getenv("AMBIT_SOAK") == "1" }

// chunk is what the test's client and server read and write at once.
const chunk = 256 << 10

// swallow answers each request when all of its body has come: with as many bytes as came.
func swallow(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 4096)
	buf := make([]byte, chunk)
	for {
		length := int64(0)
		for blank := false; !blank; {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			blank = len(line) == 2
			if v, ok := bytes.CutPrefix(line, []byte("content-length: ")); ok {
				length, _ = strconv.ParseInt(string(bytes.TrimSpace(v)), 10, 64)
			}
		}
		if n, err := io.CopyBuffer(onlyWriter{}, io.LimitReader(r, length), buf); err != nil || n != length {
			return
		}
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", length); err != nil {
			return
		}
		clear(buf)
		for length > 0 {
			n, err := c.Write(buf[:min(int64(len(buf)), length)])
			if length -= int64(n); err != nil {
				return
			}
		}
	}
}

type onlyWriter struct{}

func (onlyWriter) Write(p []byte) (int, error) { return len(p), nil }

// inUse is the memory that the process has from the kernel for its heap and stacks, in bytes.
func inUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys - m.HeapReleased
}

// A body of 10 GiB, there and back, takes no more memory than one of a few MiB: 256 MiB here, all of it in the long form.
func TestALargeBodyGrowsNothing(t *testing.T) {
	_, addr := plainRig(t, false, swallow)
	var c net.Conn
	for err := io.EOF; err != nil; { // until it listens
		c, err = net.Dial("tcp", addr)
	}
	defer c.Close()
	r := bufio.NewReaderSize(c, 4096)
	buf := make([]byte, chunk)
	most := uint64(0)
	send := func(size int64) {
		fmt.Fprintf(c, "POST /a/big HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: %d\r\n\r\n", size)
		for left := size; left > 0; {
			n, err := c.Write(buf[:min(int64(len(buf)), left)])
			if err != nil {
				t.Fatal(err)
			}
			if left -= int64(n); left%(64<<20) < chunk {
				most = max(most, inUse())
			}
		}
		for blank := false; !blank; {
			line, err := r.ReadSlice('\n')
			if err != nil {
				t.Fatal(err)
			}
			blank = len(line) == 2
		}
		for left := size; left > 0; {
			n, err := r.Read(buf[:min(int64(len(buf)), left)])
			if err != nil {
				t.Fatal(err)
			}
			if left -= int64(n); left%(64<<20) < chunk {
				most = max(most, inUse())
			}
		}
	}
	send(16 << 20)
	before := inUse()
	most = 0
	size := int64(256 << 20)
	if soak() {
		size = 10 << 30
	}
	send(size)
	t.Logf("%d MiB there and back: %.1f MB in use before, %.1f MB at most", size>>20, float64(before)/1e6, float64(most)/1e6)
	if most > before+8<<20 {
		t.Errorf("memory in use grew from %.1f to %.1f MB", float64(before)/1e6, float64(most)/1e6)
	}
}

// What an idle connection of a client takes, without its socket: no buffers, no goroutine.
func TestAnIdleConnectionTakesLittleMemory(t *testing.T) {
	const n, bound = 1000, 4 << 10
	_, addr := plainRig(t, false, tenBytes1)
	live := func() uint64 {
		var m runtime.MemStats
		for range 3 { // pools let go of what they hold
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	request := []byte("GET / HTTP/1.1\r\nHost: reviews:9080\r\n\r\n")
	reader := bufio.NewReader(nil)
	open := func() net.Conn {
		var c net.Conn
		for err := io.EOF; err != nil; {
			c, err = net.Dial("tcp", addr)
		}
		reader.Reset(c)
		if err := ask1(c, reader, request); err != nil {
			t.Fatal(err)
		}
		return c
	}
	conns := make([]net.Conn, 0, n+1)
	conns = append(conns, open())
	before := live()
	for range n {
		conns = append(conns, open())
	}
	each := (int64(live()) - int64(before)) / n
	for _, c := range conns {
		c.Close()
	}
	t.Logf("%d bytes of heap and stacks for each idle connection, with the client's end", each)
	if each > bound {
		t.Errorf("more than %d", bound)
	}
}

// What a request takes that waits for its answer: the heads on both sides, and what holds them together.
func TestAnOpenStreamTakesLittleMemory(t *testing.T) {
	const n, bound = 1000, 12 << 10
	var asked atomic.Int32
	_, addr := plainRig(t, true, func(c net.Conn) {
		r := bufio.NewReader(c)
		if _, err := r.Discard(24); err != nil {
			return
		}
		if _, err := c.Write(h2Hello[24:]); err != nil {
			return
		}
		for {
			typ, flags, _, err := frame2(r)
			switch {
			case err != nil:
				return
			case typ == 4 && flags == 0:
				if _, err := c.Write([]byte("\x00\x00\x00\x04\x01\x00\x00\x00\x00")); err != nil {
					return
				}
			case typ == 1:
				asked.Add(1)
			}
		}
	})
	var c net.Conn
	for err := io.EOF; err != nil; {
		c, err = net.Dial("tcp", addr)
	}
	defer c.Close()
	if _, err := c.Write(h2Hello); err != nil {
		t.Fatal(err)
	}
	request := append([]byte{}, h2Request...)
	request[2] = byte(len(request) - 9)
	id := uint32(1)
	open := func(n int) {
		want := asked.Load() + int32(n)
		for range n {
			binary.BigEndian.PutUint32(request[5:], id)
			id += 2
			if _, err := c.Write(request); err != nil {
				t.Fatal(err)
			}
		}
		for asked.Load() < want {
			time.Sleep(time.Millisecond)
		}
	}
	live := func() uint64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	open(1)
	before := live()
	open(n)
	each := (int64(live()) - int64(before)) / n
	t.Logf("%d bytes of heap and stacks for each open stream", each)
	if each > bound {
		t.Errorf("more than %d", bound)
	}
}
