package proxy

import (
	"fmt"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
)

// ordered is users with endpoints a and b, of which a has an order.
func ordered(t *testing.T, p *Proxy, o policy.CircuitOrder, change ...func(*policy.Service)) *endpoint {
	t.Helper()
	svc := usersWith(endpointOf("a", "10.0.0.1:80"), endpointOf("b", "10.0.0.2:80"))
	svc.Endpoints[0].Circuit = o
	for _, c := range change {
		c(svc)
	}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	return p.usersPick().endpoints[0]
}

func order(state string, number int64) policy.CircuitOrder {
	return policy.CircuitOrder{State: state, Number: number}
}

func TestACircuitDoesWhatAnOperatorOrders(t *testing.T) {
	p, now := sidecar(t), time.Now()
	a := ordered(t, p, policy.CircuitOrder{})
	circuit := a.circuit
	gets := func(o policy.CircuitOrder) float64 {
		t.Helper()
		if e := ordered(t, p, o); e.circuit != circuit {
			t.Fatal("an order made another circuit")
		}
		return sharesOf(t, p.usersPick(), now, 400)['a']
	}
	if got := gets(order("open", 1)); got != 0 || circuit.Mode() != breaker.ForceOpen {
		t.Errorf("opened, it got %v", got)
	}
	if got := gets(order("close", 2)); got == 0 {
		t.Error("closed again, it got nothing")
	}
	for range 100 {
		ticket, _ := circuit.Allow(now)
		p.failed(a, ticket, now)
	}
	if circuit.State(now) != breaker.Closed {
		t.Error("forced closed, it opened")
	}
	ordered(t, p, policy.CircuitOrder{}) // the time of the order is over
	openCircuit(p, a, now)
	if circuit.State(now) != breaker.Open {
		t.Fatal("after the order it does not go by what it sees")
	}
	if got := gets(order("", 3)); got == 0 || circuit.State(now) != breaker.Closed {
		t.Errorf("after a reset it got %v", got)
	}
	openCircuit(p, a, now)
	if gets(order("", 3)); circuit.State(now) != breaker.Open {
		t.Error("a reset that was done was done again")
	}
	if gets(policy.CircuitOrder{}); circuit.State(now) != breaker.Open {
		t.Error("that a reset is forgotten resets")
	}
}

func TestAnOrderHoldsThroughOtherChanges(t *testing.T) {
	p, now := sidecar(t), time.Now()
	ordered(t, p, order("open", 1))
	if got := sharesOf(t, p.usersPick(), now, 50)['a']; got != 0 {
		t.Errorf("ordered before it was first seen, it got %v", got)
	}
	a := ordered(t, p, order("open", 1), func(s *policy.Service) { s.Traffic.Breaker.Timeout = time.Hour })
	if a.circuit.Mode() != breaker.ForceOpen {
		t.Error("with other settings of the circuit the order is lost")
	}
	ordered(t, p, order("open", 1), func(s *policy.Service) { s.Traffic.Breaker.Enabled = false })
	if got := sharesOf(t, p.usersPick(), now, 50)['a']; got != 0 {
		t.Errorf("where circuits are off an order to open does not hold: %v", got)
	}
	s := &selection{now: now, ignore: true} // a rule turned circuits off
	s.usableFn = s.usable
	for range 50 {
		s.begin(p.usersPick())
		if e, _, _ := s.take(1, 0); e.id == "a" {
			t.Fatal("a rule without circuits passes over an operator's order")
		}
	}
}

func TestWhatIsReportedOfCircuits(t *testing.T) {
	p, now := sidecar(t), time.Now()
	a := ordered(t, p, policy.CircuitOrder{})
	if got, _ := p.circuits(now); len(got) != 0 {
		t.Errorf("where all is well: %+v", got)
	}
	b := p.usersPick().endpoints[1]
	ticket, _ := b.circuit.Allow(now)
	p.failed(b, ticket, now)
	openCircuit(p, a, now)
	got, _ := p.circuits(now)
	if len(got) != 2 || got[0].Endpoint != "a" || got[0].State != "open" || got[0].Since.UnixMilli() != now.UnixMilli() || got[0].Service != users ||
		got[1].Endpoint != "b" || got[1].State != "closed" || got[1].Failures != 1 {
		t.Errorf("%+v", got)
	}
	if got, _ := p.circuits(now.Add(61 * time.Second)); got[0].State != "half_open" {
		t.Errorf("a minute later: %+v", got[0])
	}
	ordered(t, p, order("close", 7))
	if got, _ := p.circuits(now); got[0].Endpoint != "a" || !got[0].Forced || got[0].State != "closed" {
		t.Errorf("%+v", got)
	}
}

func TestNoMoreCircuitsAreReportedThanMayBe(t *testing.T) {
	p, now := sidecar(t), time.Now()
	svc := usersWith()
	for i := range policy.MaxReportedCircuits + 44 {
		svc.Endpoints = append(svc.Endpoints, endpointOf(fmt.Sprintf("e%d", i), fmt.Sprintf("10.0.%d.%d:80", i/200, 1+i%200)))
	}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	all := p.usersPick().endpoints
	for _, e := range all {
		ticket, _ := e.circuit.Allow(now)
		p.failed(e, ticket, now)
	}
	openCircuit(p, all[len(all)-1], now)
	got, more := p.circuits(now)
	if len(got) != policy.MaxReportedCircuits || more != 44 || got[0].State != "open" {
		t.Errorf("%d, and %d left out; the first is %+v", len(got), more, got[0])
	}
}
