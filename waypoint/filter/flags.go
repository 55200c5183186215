package filter

import "math/bits"

// Flags are Envoy's response flags, a set.
type Flags uint32

// The flags, with Envoy's short names (%RESPONSE_FLAGS%).
const (
	NoHealthyUpstream Flags = 1 << iota
	UpstreamFailure
	UpstreamOverflow
	NoRoute
	UpstreamRetryLimit
	UpstreamTimeout
	LocalReset
	UpstreamReset
	UpstreamTermination
	DelayInjected
	FaultInjected
	RateLimited
	Unauthorized
	DownstreamReset
	RateLimitError
	StreamIdleTimeout
	DownstreamProtocolError
	UpstreamProtocolError
	MaxDuration
	NoCluster
	Overloaded
	DNSFailure
)

var flagNames = [...]string{
	"UH", "UF", "UO", "NR", "URX", "UT", "LR", "UR", "UC", "DI", "FI", "RL", "UAEX", "DC", "RLSE", "SI", "DPE", "UPE", "DT", "NC", "OM", "DF",
}

// Append appends the names of the set, joined by commas, or "-" for the empty one.
func (f Flags) Append(b []byte) []byte {
	if f == 0 {
		return append(b, '-')
	}
	for n := 0; f != 0; n++ {
		if n > 0 {
			b = append(b, ',')
		}
		i := bits.TrailingZeros32(uint32(f))
		b = append(b, flagNames[i]...)
		f &^= 1 << i
	}
	return b
}

// String is the set as Append has it.
func (f Flags) String() string { return string(f.Append(nil)) }

// ParseFlag is the flag of a short name. Names that Envoy has and we never set are known too: they are the empty set.
func ParseFlag(name string) (Flags, bool) {
	for i, n := range flagNames {
		if n == name {
			return 1 << i, true
		}
	}
	switch name {
	case "LH", "IH", "NFCF", "RFCF", "UMSDR", "OM", "DO", "DR", "UDO", "DPE", "UPE":
		return 0, true
	}
	return 0, false
}
