package store

import (
	"errors"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

func orderOf(s *Store, name policy.ServiceName, id string) CircuitOrder {
	if svc := s.State().Services.Get(name); svc != nil {
		return svc.Circuits[id]
	}
	return CircuitOrder{}
}

func TestAnOrderForACircuitIsInTheStateAndTold(t *testing.T) {
	s := open(t)
	must(t, s.PutEndpoint(t.Context(), endpoint("users", "u1")))
	w := s.Watch()
	defer w.Close()
	if _, err := w.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	for _, c := range []struct{ order, state string }{{policy.CircuitOpen, "open"}, {policy.CircuitOpen, "open"}, {policy.CircuitClose, "close"}, {policy.CircuitReset, ""}} {
		must(t, s.OrderCircuit(t.Context(), shop("users"), "u1", c.order, 0))
		got := orderOf(s, shop("users"), "u1")
		if got.State != c.state || got.Number <= last {
			t.Fatalf("%s: the order is %+v, the one before was number %d", c.order, got, last)
		}
		if (got.Until != 0) != (c.order == policy.CircuitReset) {
			t.Errorf("%s: until %v", c.order, got.Until)
		}
		last = got.Number
		change, err := w.Next(t.Context())
		if _, told := change.Services[shop("users")]; err != nil || !told {
			t.Fatalf("%s: not told: %+v, %v", c.order, change, err)
		}
	}
	// Another process reads the same.
	other := run(t, s.cfg)
	if got := orderOf(other, shop("users"), "u1"); got != orderOf(s, shop("users"), "u1") {
		t.Errorf("another reads %+v", got)
	}
}

func TestAnOrderEndsWithItsTime(t *testing.T) {
	s := open(t)
	must(t, s.PutEndpoint(t.Context(), endpoint("users", "u1")))
	must(t, s.OrderCircuit(t.Context(), shop("users"), "u1", policy.CircuitOpen, time.Second))
	if got := orderOf(s, shop("users"), "u1"); got.State != "open" || got.Until == 0 {
		t.Fatalf("the order is %+v", got)
	}
	w := s.Watch()
	defer w.Close()
	for orderOf(s, shop("users"), "u1") != (CircuitOrder{}) {
		if _, err := w.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, known := s.storedEndpoint(shop("users"), "u1"); !known {
		t.Error("the endpoint went with it")
	}
}

func TestNothingIsOrderedOfWhatIsNotThere(t *testing.T) {
	s := open(t)
	for _, order := range []string{policy.CircuitOpen, policy.CircuitReset} {
		if err := s.OrderCircuit(t.Context(), shop("users"), "u1", order, 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", order, err)
		}
	}
	if err := s.OrderCircuit(t.Context(), shop("users"), "u/1", policy.CircuitOpen, 0); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	// What was ordered of one that is gone can be taken back, and nothing else.
	must(t, s.PutEndpoint(t.Context(), endpoint("users", "u1")))
	must(t, s.PutEndpoint(t.Context(), endpoint("users", "u2")))
	must(t, s.OrderCircuit(t.Context(), shop("users"), "u1", policy.CircuitOpen, 0))
	must(t, s.DeleteEndpoint(t.Context(), "shop", "users", "u1"))
	if got := orderOf(s, shop("users"), "u1"); got.State != "open" {
		t.Fatalf("the order is %+v", got)
	}
	if err := s.OrderCircuit(t.Context(), shop("users"), "u1", policy.CircuitClose, 0); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	must(t, s.OrderCircuit(t.Context(), shop("users"), "u1", policy.CircuitReset, 0))
	if got := orderOf(s, shop("users"), "u1"); got != (CircuitOrder{}) {
		t.Errorf("the order is %+v", got)
	}
}

// An endpoint that comes back is as it was ordered: else a restart would undo what an operator did.
func TestAnOrderOutlivesARegistration(t *testing.T) {
	s := open(t)
	must(t, s.PutEndpoint(t.Context(), endpoint("users", "u1")))
	must(t, s.OrderCircuit(t.Context(), shop("users"), "u1", policy.CircuitOpen, 0))
	must(t, s.DeleteEndpoint(t.Context(), "shop", "users", "u1"))
	if svc := s.State().Services.Get(shop("users")); svc != nil && len(svc.Endpoints) > 0 {
		t.Fatal("not removed")
	}
	must(t, s.PutEndpoint(t.Context(), endpoint("users", "u1")))
	if got := orderOf(s, shop("users"), "u1"); got.State != "open" {
		t.Errorf("the order is %+v", got)
	}
}
