package cluster

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// answers lets an endpoint answer n times with a status.
func answers(h *Host, status, n int) {
	for range n {
		h.Answered(status)
	}
}

// at sets the clock to that much after the beginning, and lets the set do what is due.
func (b *bed) at(d time.Duration) {
	b.clock.t = time.Unix(1000, 0).Add(d)
	b.set.tick(b.clock.now())
}

const outlier = `"outlier_detection":{"consecutive_5xx":3,"interval":"1s","base_ejection_time":"10s","max_ejection_percent":100,"enforcing_success_rate":0%s}`

func TestAnEndpointThatFailsInARowIsEjectedAndComesBack(t *testing.T) {
	b := newBed(t, fmt.Sprintf(outlier, ""))
	b.endpoints(locality("", plain(3)...))
	h := b.host(2)
	answers(h, 500, 2)
	answers(h, 200, 1)
	answers(h, 500, 2)
	if h.Ejected() {
		t.Fatal("ejected after two in a row")
	}
	answers(h, 500, 1)
	if !h.Ejected() || b.cluster().Stats().Ejections.Load() != 1 {
		t.Fatal("not ejected after three in a row")
	}
	if got := b.count(100, Pick{}); got[2] != 0 {
		t.Errorf("an ejected endpoint got %d requests", got[2])
	}
	b.at(9 * time.Second)
	if !h.Ejected() {
		t.Error("back after 9 s of 10")
	}
	b.at(10 * time.Second)
	if h.Ejected() {
		t.Error("still out after 10 s")
	}
	if got := b.count(99, Pick{}); got[2] != 33 {
		t.Errorf("back in the choice, and got %d of 99", got[2])
	}
}

func TestEjectionsOfTheSameEndpointLastLongerEachTime(t *testing.T) {
	b := newBed(t, fmt.Sprintf(outlier, `,"max_ejection_time":"25s"`))
	b.endpoints(locality("", plain(3)...))
	h := b.host(1)
	now := time.Duration(0)
	for i, want := range []time.Duration{10 * time.Second, 20 * time.Second, 25 * time.Second, 25 * time.Second} {
		answers(h, 503, 3)
		b.at(now + want - time.Second)
		if !h.Ejected() {
			t.Fatalf("ejection %d: back before %v", i+1, want)
		}
		now += want
		b.at(now)
		if h.Ejected() {
			t.Fatalf("ejection %d: still out after %v", i+1, want)
		}
	}
}

func TestAQuietTimeForgivesEarlierEjections(t *testing.T) {
	b := newBed(t, fmt.Sprintf(outlier, ""))
	b.endpoints(locality("", plain(3)...))
	h := b.host(1)
	answers(h, 503, 3)
	b.at(10 * time.Second)
	for i := range 3 {
		b.at(time.Duration(11+i) * time.Second)
	}
	answers(h, 503, 3)
	b.at(23 * time.Second)
	if h.Ejected() {
		t.Error("the second ejection lasts longer than the first")
	}
}

func TestNoMoreThanTheGivenShareIsEjected(t *testing.T) {
	b := newBed(t, `"outlier_detection":{"consecutive_5xx":1,"interval":"1s","max_ejection_percent":50,"enforcing_success_rate":0}`)
	b.endpoints(locality("", plain(4)...))
	out := 0
	for i := range 4 {
		h := b.host(i + 1)
		answers(h, 500, 1)
		if h.Ejected() {
			out++
		}
	}
	if out != 2 {
		t.Errorf("%d of 4 ejected, want half", out)
	}
}

func TestGatewayErrorsAreCountedApart(t *testing.T) {
	const fields = `"outlier_detection":{"consecutive_gateway_failure":2,"enforcing_consecutive_gateway_failure":100,"enforcing_consecutive_5xx":0,"enforcing_success_rate":0,"max_ejection_percent":100}`
	b := newBed(t, fields)
	b.endpoints(locality("", plain(2)...))
	answers(b.host(1), 500, 20)
	answers(b.host(1), 502, 1)
	answers(b.host(1), 500, 1)
	answers(b.host(1), 504, 1)
	if b.host(1).Ejected() {
		t.Error("ejected by answers of 500")
	}
	answers(b.host(1), 503, 1)
	if !b.host(1).Ejected() {
		t.Error("not ejected by two gateway errors in a row")
	}
}

func TestFailuresToConnectCountAsGatewayErrorsUnlessTheyAreSplitOff(t *testing.T) {
	b := newBed(t, fmt.Sprintf(outlier, ""))
	b.endpoints(locality("", plain(2)...))
	b.host(1).Failed(ConnectFailure)
	b.host(1).Failed(Timeout)
	b.host(1).Failed(Reset)
	if !b.host(1).Ejected() {
		t.Error("not ejected by three failures")
	}

	b = newBed(t, fmt.Sprintf(outlier, `,"split_external_local_origin_errors":true,"consecutive_local_origin_failure":2,"enforcing_local_origin_success_rate":0`))
	b.endpoints(locality("", plain(2)...))
	h := b.host(1)
	answers(h, 500, 2)
	h.Failed(ConnectFailure)
	answers(h, 500, 0)
	if h.Ejected() {
		t.Error("two answers and a failure were added up")
	}
	h.Answered(0)
	h.Failed(ConnectFailure)
	if h.Ejected() {
		t.Error("a connection in between did not count")
	}
	h.Failed(Timeout)
	if !h.Ejected() {
		t.Error("not ejected by two failures in a row")
	}
}

func TestEnforcingZeroOnlyCounts(t *testing.T) {
	b := newBed(t, fmt.Sprintf(outlier, `,"enforcing_consecutive_5xx":0`))
	b.endpoints(locality("", plain(2)...))
	answers(b.host(1), 500, 100)
	if b.host(1).Ejected() {
		t.Error("ejected")
	}
}

func TestALowSuccessRateIsEjectedAtTheEndOfTheInterval(t *testing.T) {
	b := newBed(t, `"outlier_detection":{"enforcing_consecutive_5xx":0,"interval":"10s","success_rate_minimum_hosts":5,"success_rate_request_volume":100,"max_ejection_percent":100}`)
	b.endpoints(locality("", plain(6)...))
	for i := 1; i <= 6; i++ {
		answers(b.host(i), 200, 99)
		answers(b.host(i), 500, 1)
	}
	answers(b.host(3), 500, 100)
	b.at(9 * time.Second)
	if b.host(3).Ejected() {
		t.Error("ejected before the interval's end")
	}
	b.at(10 * time.Second)
	for i := 1; i <= 6; i++ {
		if got := b.host(i).Ejected(); got != (i == 3) {
			t.Errorf("endpoint %d ejected: %v", i, got)
		}
	}
}

func TestAHighShareOfFailuresIsEjected(t *testing.T) {
	b := newBed(t, `"outlier_detection":{"enforcing_consecutive_5xx":0,"enforcing_success_rate":0,"interval":"10s","enforcing_failure_percentage":100,"failure_percentage_threshold":50,"failure_percentage_minimum_hosts":2,"failure_percentage_request_volume":10,"max_ejection_percent":100}`)
	b.endpoints(locality("", plain(3)...))
	answers(b.host(1), 500, 6)
	answers(b.host(1), 200, 6)
	answers(b.host(2), 200, 12)
	answers(b.host(3), 500, 9) // too few to judge
	b.at(10 * time.Second)
	if !b.host(1).Ejected() || b.host(2).Ejected() || b.host(3).Ejected() {
		t.Errorf("ejected: %v %v %v", b.host(1).Ejected(), b.host(2).Ejected(), b.host(3).Ejected())
	}
}

func TestAnEjectedEndpointStaysOutOverUpdates(t *testing.T) {
	b := newBed(t, fmt.Sprintf(outlier, ""))
	b.endpoints(locality("", plain(2)...))
	h := b.host(1)
	answers(h, 500, 3)
	b.endpoints(locality("", plain(4)...))
	if b.host(1) != h || !h.Ejected() {
		t.Error("an update let it back in")
	}
	b.endpoints(locality("", endpoint(2, ""), endpoint(3, "")))
	if !h.Gone() {
		t.Error("not gone")
	}
	answers(b.host(2), 500, 3)
	answers(b.host(3), 500, 3)
	if !b.host(3).Ejected() {
		t.Error("an endpoint that is gone still counts as ejected")
	}
}

func TestRunLetsEndpointsBackIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{t: t, set: NewSet(SetConfig{})}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.set.Run(ctx) }()
		b.update(fmt.Sprintf(outlier, ""))
		b.endpoints(locality("", plain(2)...))
		h := b.host(1)
		answers(h, 500, 3)
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if !h.Ejected() {
			t.Error("back after 9 s")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if h.Ejected() {
			t.Error("still out after 11 s")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
