package cluster

import (
	"errors"
	"math"
	"math/rand/v2"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

//lint:file-ignore SA1019 deprecated fields are still sent, and Envoy still obeys them

var (
	// ErrNoHost says that no endpoint takes requests.
	ErrNoHost = errors.New("no healthy endpoint")
	// ErrUnknown says that the endpoints have not come yet, or that their names are being looked up for the first time.
	ErrUnknown = errors.New("the endpoints are not known yet")
	// ErrDropped says that the control plane asks for a share of requests to be refused, of which this is one.
	ErrDropped = errors.New("dropped by the load policy")
)

// Policy is how an endpoint is chosen.
type Policy uint8

// The policies.
const (
	RoundRobin Policy = iota
	LeastRequest
	RandomChoice
	RingHash
	Maglev
	// Provided: there is no choice, see Cluster.At.
	Provided
)

const (
	defaultPanic   = 50
	defaultChoices = 2
	defaultRingMin = 1024
	maxRing        = 8 << 20
	defaultMaglev  = 65537
	maxMaglev      = 5_000_011
)

// balanceConfig is how endpoints are chosen. Immutable.
type balanceConfig struct {
	policy           Policy
	panic            float64 // percent of healthy endpoints below which health does not count
	byLocality       bool    // localities have weights
	choices          int     // of LeastRequest: how many are compared
	bias             float64 // of LeastRequest: how much requests under way count against weight
	ringMin, ringMax uint64
	murmur           bool
	byHostname       bool // of the hashing policies: endpoints are hashed by their host names
	maglevSize       uint64
	slow             slowStart
}

// slowStart lets an endpoint's weight grow in its first time.
type slowStart struct {
	window     time.Duration // 0: none
	aggression float64
	least      float64 // share of the weight at the beginning
}

// Policy is how the cluster chooses endpoints.
func (c *Config) Policy() Policy { return c.balance.policy }

func (c *Config) compileBalance(p *clusterv3.Cluster) error {
	b := &c.balance
	*b = balanceConfig{panic: defaultPanic, choices: defaultChoices, bias: 1, ringMin: defaultRingMin, ringMax: maxRing, maglevSize: defaultMaglev}
	if p.GetLoadBalancingPolicy() != nil {
		return field.Errorf("load_balancing_policy", "unsupported, use lb_policy")
	}
	common := p.GetCommonLbConfig()
	if t := common.GetHealthyPanicThreshold(); t != nil {
		if b.panic = t.GetValue(); !(b.panic >= 0 && b.panic <= 100) {
			return field.Errorf("common_lb_config.healthy_panic_threshold", "%v is not between 0 and 100", b.panic)
		}
	}
	b.byLocality = common.GetLocalityWeightedLbConfig() != nil
	b.byHostname = common.GetConsistentHashingLbConfig().GetUseHostnameForHashing()
	if common.GetConsistentHashingLbConfig().GetHashBalanceFactor() != nil {
		return field.Errorf("common_lb_config.consistent_hashing_lb_config.hash_balance_factor", "unsupported")
	}
	provided := c.Discovery == OriginalDst || c.Discovery == Dynamic
	var err error
	switch l := p.GetLbPolicy(); l {
	case clusterv3.Cluster_ROUND_ROBIN:
		b.policy = RoundRobin
		b.slow, err = compileSlow(p.GetRoundRobinLbConfig().GetSlowStartConfig())
		err = field.At(err, "round_robin_lb_config.slow_start_config")
	case clusterv3.Cluster_LEAST_REQUEST:
		err = field.At(b.compileLeast(p.GetLeastRequestLbConfig()), "least_request_lb_config")
	case clusterv3.Cluster_RANDOM:
		b.policy = RandomChoice
	case clusterv3.Cluster_RING_HASH:
		err = field.At(b.compileRing(p.GetRingHashLbConfig()), "ring_hash_lb_config")
	case clusterv3.Cluster_MAGLEV:
		b.policy = Maglev
		if n := p.GetMaglevLbConfig().GetTableSize(); n != nil {
			b.maglevSize = n.GetValue()
		}
		if !prime(b.maglevSize) || b.maglevSize > maxMaglev {
			return field.Errorf("maglev_lb_config.table_size", "%d is not a prime of at most %d", b.maglevSize, maxMaglev)
		}
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		if !provided {
			return field.Errorf("lb_policy", "CLUSTER_PROVIDED fits only clusters that find their endpoint by the request")
		}
	default:
		return field.Errorf("lb_policy", "unsupported value %v", l)
	}
	if provided {
		b.policy = Provided
	}
	return err
}

func (b *balanceConfig) compileLeast(p *clusterv3.Cluster_LeastRequestLbConfig) (err error) {
	b.policy = LeastRequest
	if n := p.GetChoiceCount(); n != nil {
		if b.choices = int(n.GetValue()); b.choices < 2 {
			return field.Errorf("choice_count", "%d is less than 2", b.choices)
		}
	}
	if f := p.GetActiveRequestBias(); f != nil {
		if b.bias = f.GetDefaultValue(); !(b.bias >= 0) || math.IsInf(b.bias, 0) {
			return field.Errorf("active_request_bias", "%v is not a number of at least 0", b.bias)
		}
	}
	b.slow, err = compileSlow(p.GetSlowStartConfig())
	return field.At(err, "slow_start_config")
}

func (b *balanceConfig) compileRing(p *clusterv3.Cluster_RingHashLbConfig) error {
	b.policy = RingHash
	b.murmur = p.GetHashFunction() == clusterv3.Cluster_RingHashLbConfig_MURMUR_HASH_2
	if b.murmur {
		return field.Errorf("hash_function", "unsupported %v", p.GetHashFunction())
	}
	if n := p.GetMinimumRingSize(); n != nil {
		b.ringMin = n.GetValue()
	}
	if n := p.GetMaximumRingSize(); n != nil {
		b.ringMax = n.GetValue()
	}
	switch {
	case b.ringMax > maxRing:
		return field.Errorf("maximum_ring_size", "%d is more than %d", b.ringMax, maxRing)
	case b.ringMin > b.ringMax:
		return field.Errorf("minimum_ring_size", "%d is more than the maximum %d", b.ringMin, b.ringMax)
	}
	return nil
}

func compileSlow(p *clusterv3.Cluster_SlowStartConfig) (s slowStart, err error) {
	if p == nil {
		return s, nil
	}
	if s.window, err = field.Duration("slow_start_window", p.GetSlowStartWindow(), 0); err != nil {
		return s, err
	}
	s.aggression, s.least = 1, 0.1
	if a := p.GetAggression(); a != nil {
		if s.aggression = a.GetDefaultValue(); !(s.aggression > 0) {
			return s, field.Errorf("aggression", "%v is not more than 0", s.aggression)
		}
	}
	if l := p.GetMinWeightPercent(); l != nil {
		if s.least = l.GetValue() / 100; !(s.least >= 0 && s.least <= 1) {
			return s, field.Errorf("min_weight_percent", "%v is not between 0 and 100", l.GetValue())
		}
	}
	return s, nil
}

func prime(n uint64) bool {
	if n < 2 || n > 2 && n%2 == 0 {
		return false
	}
	for d := uint64(3); d*d <= n; d += 2 {
		if n%d == 0 {
			return false
		}
	}
	return true
}

// Pick is what a choice depends on.
type Pick struct {
	// Rand draws numbers; nil: the global source.
	Rand *rand.Rand
	// Hash is the request's hash if HasHash, for RingHash and Maglev; without it they choose by chance.
	Hash    uint64
	HasHash bool
	// Avoid, if not nil, names endpoints that are not wanted. Up to Attempts are chosen; the last one is taken all the same.
	Avoid    func(*Host) bool
	Attempts int
	// Failed is a set of priorities, by bits from the lowest, that are to be left out as long as there are others.
	Failed uint64
}

func (p *Pick) random() uint64 {
	if p.Rand != nil {
		return p.Rand.Uint64()
	}
	return rand.Uint64()
}

func (p *Pick) below(n int) int {
	if p.Rand != nil {
		return p.Rand.IntN(n)
	}
	return rand.IntN(n)
}

// Pick chooses an endpoint. It takes no lock and does not allocate. The error is ErrNoHost, ErrUnknown or ErrDropped.
func (c *Cluster) Pick(p *Pick) (*Host, error) {
	t := c.table.Load()
	if t.levels == nil {
		if t.unknown {
			return nil, ErrUnknown
		}
		return nil, ErrNoHost
	}
	for i := range t.drops {
		if d := &t.drops[i]; p.random()%d.Denominator < d.Numerator {
			return nil, ErrDropped
		}
	}
	hash := p.Hash
	if !p.HasHash {
		hash = p.random()
	}
	s := t.source(hash, p.Failed)
	if s == nil || len(s.hosts) == 0 {
		return nil, ErrNoHost
	}
	var h *Host
	for i := range max(1, p.Attempts) {
		h = s.pick(&c.balance, p, hash, uint64(i))
		if p.Avoid == nil || !p.Avoid(h) {
			break
		}
	}
	return h, nil
}
