package main

import (
	"math/bits"
	"time"
)

// subBuckets is the number of buckets for each power of two: values are kept within 3 %.
const subBuckets = 32

// A histogram counts durations in log-linear buckets of nanoseconds. Not safe for use by several goroutines.
type histogram struct {
	n       uint64
	buckets [60 * subBuckets]uint64
}

func (h *histogram) add(d time.Duration) {
	v := uint64(max(d, 0))
	i := int(v)
	if v >= subBuckets {
		e := bits.Len64(v) - 6
		i = (e+1)*subBuckets + int(v>>uint(e))&(subBuckets-1)
	}
	h.buckets[min(i, len(h.buckets)-1)]++
	h.n++
}

func (h *histogram) merge(o *histogram) {
	for i, c := range o.buckets {
		h.buckets[i] += c
	}
	h.n += o.n
}

// quantile is the lower bound of the bucket that holds the p-th part of the values, or zero without values.
func (h *histogram) quantile(p float64) time.Duration {
	rank, seen := uint64(p*float64(h.n)), uint64(0)
	for i, c := range h.buckets {
		if seen += c; seen > rank {
			return bucketStart(i)
		}
	}
	return 0
}

func bucketStart(i int) time.Duration {
	if i < subBuckets {
		return time.Duration(i)
	}
	e := i/subBuckets - 1
	return time.Duration(uint64(i%subBuckets+subBuckets) << uint(e))
}
