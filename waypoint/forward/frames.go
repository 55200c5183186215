package forward

// frames counts the messages of one direction of a gRPC call as its bytes pass: each has a head of five bytes, of which the
// last four are the length (gRPC over HTTP/2, "Length-Prefixed-Message"). A message counts when its head is complete.
type frames struct {
	on   bool
	have uint8  // bytes of the head that have come
	size uint32 // as far as they say
	left uint32 // bytes of the message to come
	n    int64
}

func (f *frames) count(p []byte) {
	if !f.on {
		return
	}
	for len(p) > 0 {
		if f.left > 0 {
			n := min(uint64(len(p)), uint64(f.left))
			p, f.left = p[n:], f.left-uint32(n)
			continue
		}
		if f.have > 0 { // the first byte says whether it is compressed
			f.size = f.size<<8 | uint32(p[0])
		}
		f.have++
		p = p[1:]
		if f.have == 5 {
			f.n++
			f.left, f.size, f.have = f.size, 0, 0
		}
	}
}
