package http2

import "errors"

// huffmanLen is the length in bits of each octet's code (RFC 7541 appendix B). The code is canonical: codes of one length
// follow each other in the order of the octets, and shorter codes come before longer ones. So the lengths say it all.
var huffmanLen = [256]uint8{
	13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
	28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
	6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
	5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
	13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
	7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
	15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
	6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
	20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
	24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
	22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
	21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
	26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
	19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
	20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
	26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
}

const (
	maxHuffman  = 30 // bits of the longest code
	fastHuffman = 8  // bits of the longest code that the fast table knows
)

// huffman is the code, prepared for both directions.
var huffman = func() (t struct {
	codes [256]uint32
	// fast gives for the next eight bits the octet and the length of its code, 0 if the code is longer.
	fast [1 << fastHuffman]struct{ sym, bits uint8 }
	// For each length: the first code and the first beyond, both shifted to the top of 32 bits, and where the octets are.
	first, limit [maxHuffman + 1]uint64
	at           [maxHuffman + 1]int
	syms         [256]uint8
}) {
	code, n := uint32(0), 0
	for bits := 1; bits <= maxHuffman; bits++ {
		code <<= 1
		up := 32 - bits
		t.first[bits], t.at[bits] = uint64(code)<<up, n
		for sym := range 256 {
			if int(huffmanLen[sym]) != bits {
				continue
			}
			t.codes[sym] = code
			t.syms[n] = uint8(sym)
			if bits <= fastHuffman {
				for k := range 1 << (fastHuffman - bits) {
					e := &t.fast[int(code)<<(fastHuffman-bits)|k]
					e.sym, e.bits = uint8(sym), uint8(bits)
				}
			}
			code++
			n++
		}
		t.limit[bits] = uint64(code) << up
	}
	return t
}()

var errHuffman = errors.New("bad Huffman code")

// appendUnhuffman appends what the Huffman-coded b stands for (RFC 7541 section 5.2).
func appendUnhuffman(dst, b []byte) ([]byte, error) {
	var acc uint64 // the next bits, from the top
	n := 0         // how many there are
	for {
		for n <= 56 && len(b) > 0 {
			acc |= uint64(b[0]) << (56 - n)
			n += 8
			b = b[1:]
		}
		e := huffman.fast[acc>>(64-fastHuffman)]
		if bits := int(e.bits); bits != 0 {
			if bits > n {
				break
			}
			dst = append(dst, e.sym)
			acc <<= bits
			n -= bits
			continue
		}
		w := acc >> 32
		bits := fastHuffman + 1
		for bits <= maxHuffman && w >= huffman.limit[bits] {
			bits++
		}
		if bits > n {
			break
		}
		if bits > maxHuffman { // EOS
			return dst, errHuffman
		}
		dst = append(dst, huffman.syms[huffman.at[bits]+int((w-huffman.first[bits])>>(32-bits))])
		acc <<= bits
		n -= bits
	}
	// what is left is padding: fewer than eight bits, all ones
	if n >= 8 || acc>>(64-n) != 1<<n-1 {
		return dst, errHuffman
	}
	return dst, nil
}

// huffmanSize is the length of the Huffman code of s in bytes.
func huffmanSize(s string) int {
	n := 0
	for i := range len(s) {
		n += int(huffmanLen[s[i]])
	}
	return (n + 7) / 8
}

// appendHuffman appends the Huffman code of s.
func appendHuffman(dst []byte, s string) []byte {
	var acc uint64 // the low n bits are still to be written
	n := 0
	for i := range len(s) {
		bits := int(huffmanLen[s[i]])
		acc = acc<<bits | uint64(huffman.codes[s[i]])
		for n += bits; n >= 8; n -= 8 {
			dst = append(dst, byte(acc>>(n-8)))
		}
	}
	if n > 0 {
		dst = append(dst, byte(acc<<(8-n))|byte(0xff>>n))
	}
	return dst
}
