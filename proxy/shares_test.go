package proxy

import (
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// meshed is a sidecar that keeps a limit of the whole mesh for "users".
func meshed(t *testing.T, l policy.RateLimit) (*Proxy, *limit) {
	t.Helper()
	p := sidecar(t)
	l.Mesh = true
	svc := usersWith(endpointOf("a", "10.0.0.1:80"))
	svc.Traffic.RateLimits = []policy.RateLimit{l, {Limit: 5, Window: time.Minute, Name: "own"}}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	return p, p.dests.Load().byName[users].limits[0]
}

func (l *limit) passes(n int, key string) (ok int) {
	for range n {
		if l.ask(key, time.Now(), true).OK {
			ok++
		}
	}
	return ok
}

func TestALimitOfTheMeshIsKeptByItsShare(t *testing.T) {
	p, l := meshed(t, policy.RateLimit{Limit: 100, Window: time.Hour})
	if got := l.passes(50, ""); got != 10 {
		t.Errorf("%d pass before there is a share, want a tenth", got)
	}
	d := p.demands()
	if len(d) != 1 || d[0].Limit != l.ref || d[0].Rate < 10 || d[0].Used != 10 {
		t.Fatalf("demands are %+v: 50 were asked just now", d)
	}
	p.takeShares([]policy.Share{{Limit: policy.LimitRef{Service: users, Name: "nobody's"}, Requests: 1}, {Limit: l.ref, Requests: 25}})
	if got := l.passes(50, ""); got != 15 {
		t.Errorf("%d more pass with a share of 25", got)
	}
	// The share stays when nobody tells another, and over changes of the service.
	svc := *p.dests.Load().byName[users].svc
	svc.Traffic.Timeout = time.Second
	if err := p.setService(users, &svc); err != nil {
		t.Fatal(err)
	}
	if got := p.dests.Load().byName[users].limits[0].passes(50, ""); got != 0 {
		t.Errorf("%d pass after another change", got)
	}
	if err := p.setService(users, nil); err != nil || len(p.demands()) != 0 {
		t.Errorf("a service that is gone wants something (%v)", err)
	}
}

func TestAKeyThatIsWantedIsToldByItsHash(t *testing.T) {
	p, l := meshed(t, policy.RateLimit{Limit: 100, Window: time.Hour, Key: "header:X"})
	if l.passes(20, "hot") != 10 || l.passes(2, "cold") != 2 {
		t.Error("each key is to have a tenth before there is a share")
	}
	d := p.demands()
	if len(d) != 1 || len(d[0].Keys) != 1 || d[0].Keys[0].Key != l.hash("hot") || d[0].Keys[0].Used != 10 || d[0].Keys[0].Rate <= 0 {
		t.Fatalf("%+v", d)
	}
	if l.hash("hot") == l.hash("cold") {
		t.Error("two keys have one hash")
	}
	p.takeShares([]policy.Share{{Limit: l.ref, Requests: 5, Keys: []policy.KeyShare{{Key: l.hash("hot"), Requests: 40}, {Key: 1, Requests: 2}}}})
	if got := l.passes(50, "hot"); got != 30 {
		t.Errorf("%d more of the hot key, want 30", got)
	}
	if got := l.passes(50, "cold"); got != 3 {
		t.Errorf("%d more of the other, want 3", got)
	}
}

func TestDemandIsAveragedOverASecond(t *testing.T) {
	if got := smooth(5, 20, 2*time.Second); got != 10 {
		t.Errorf("over two seconds %v", got)
	}
	if got := smooth(10, 10, 500*time.Millisecond); got != 15 { // half of what was, half of 20
		t.Errorf("over half of one %v", got)
	}
	if got := smooth(10, 10, 0); got != 10 {
		t.Errorf("over none %v", got)
	}
}
