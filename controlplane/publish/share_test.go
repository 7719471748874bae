package publish

import (
	"fmt"
	"sync"
	"testing"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// shareBook remembers demands and gives out what a test says.
type shareBook struct {
	mu       sync.Mutex // guards what follows
	demands  map[ProxyName][]policy.Demand
	shares   map[ProxyName][]policy.Share
	detached []string
}

func (b *shareBook) config(cfg *Config) {
	b.demands, b.shares = map[ProxyName][]policy.Demand{}, map[ProxyName][]policy.Share{}
	cfg.Demands = func(p ProxyName, d []policy.Demand) { b.mu.Lock(); defer b.mu.Unlock(); b.demands[p] = d }
	cfg.Shares = func(p ProxyName) []policy.Share { b.mu.Lock(); defer b.mu.Unlock(); return b.shares[p] }
	cfg.Detached = func(p ProxyName, left bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.detached = append(b.detached, fmt.Sprint(p.ID, " ", left))
	}
}

func (b *shareBook) give(p ProxyName, requests float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shares[p] = []policy.Share{{Limit: policy.LimitRef{Service: orders, Name: "default"}, Requests: requests}}
}

func (b *shareBook) gone() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprint(b.detached)
}

func (m *member) response() *wire.AttachResponse {
	m.t.Helper()
	resp, err := m.stream.Recv()
	if err != nil {
		m.t.Fatal(err)
	}
	return resp
}

func TestSharesComeWithEachAnswerAndWhenTheyChange(t *testing.T) {
	var b shareBook
	r := newRig(t, b.config)
	u1 := ProxyName{users, "u-1"}
	want := []policy.Demand{{Limit: policy.LimitRef{Service: orders, Name: "default"}, Rate: 5, Used: 3}}
	m := r.dial(users)
	m.send(&wire.AttachRequest{Hello: hello("u-1"), Figures: &wire.Figures{Demands: wire.FromDemands(want)}})
	if resp := m.response(); resp.Ttl == nil || len(resp.Shares) != 0 {
		t.Errorf("%v", resp)
	}
	b.mu.Lock()
	if got := b.demands[u1]; len(got) != 1 || got[0].Limit != want[0].Limit || got[0].Rate != 5 {
		t.Errorf("demands are %+v", b.demands)
	}
	b.mu.Unlock()
	b.give(u1, 7)
	r.server.SharesChanged(u1)
	if resp := m.response(); resp.Ttl != nil || resp.PolicyShares()[0].Requests != 7 {
		t.Errorf("what was told by itself is %v", resp)
	}
	b.give(u1, 8)
	m.send(&wire.AttachRequest{})
	if resp := m.response(); resp.Ttl == nil || resp.PolicyShares()[0].Requests != 8 {
		t.Errorf("the answer is %v", resp)
	}
	r.server.SharesChanged(ProxyName{users, "nobody"})
	m.send(&wire.AttachRequest{Figures: &wire.Figures{}})
	m.response()
	until(t, "it wants nothing any more", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.demands[u1]) == 0 })
}

func TestWhoEndsIsToldOfOnce(t *testing.T) {
	var b shareBook
	r := newRig(t, b.config)
	first := r.attach(users, hello("u-1"))
	second := r.attach(users, hello("u-1")) // takes the place of the first: that is no end
	r.attach(users, hello("u-2")).cancel()
	until(t, "the second proxy is away", func() bool { return b.gone() == "[u-2 false]" })
	second.send(&wire.AttachRequest{Leaving: true})
	until(t, "the first took leave", func() bool { return b.gone() == "[u-2 false u-1 true]" })
	_ = first
}

// Reports that come twice a second do not renew the lease each time.
func TestDemandsDoNotRenewTheLeaseEachTime(t *testing.T) {
	var b shareBook
	r := newRig(t, b.config)
	m := r.attach(users, hello("u-1"))
	for range 20 {
		m.send(&wire.AttachRequest{Figures: &wire.Figures{Demands: []*wire.Demand{{}}}})
		m.answer()
	}
	if renewals, _ := r.leases.last().counts(); renewals > 1 {
		t.Errorf("renewed %d times in a moment of a minute", renewals)
	}
}
