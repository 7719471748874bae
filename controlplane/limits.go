package controlplane

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weir-mesh/weir/controlplane/publish"
	"github.com/weir-mesh/weir/controlplane/shares"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// inboundLimitsLocked adds the limits of a service that its own proxies count,
// and tells whether one of them goes by a token.
func (v *view) inboundLimitsLocked(in *policy.Inbound) (needsSecret bool) {
	traffic := v.state.Settings.TrafficFor(in.Service)
	for _, l := range traffic.Limits() {
		if l.CountedByReceiver() {
			in.RateLimits = append(in.RateLimits, l)
			needsSecret = needsSecret || l.NeedsToken()
		}
	}
	svc := v.state.Services.Get(in.Service)
	if svc == nil || !policy.LimitsByReceiver(svc.Rules) {
		return needsSecret
	}
	in.Routes = policy.WithWindows(svc.Rules, duration(v.state.Settings.Security.RateLimiting.Window))
	for i := range in.Routes {
		needsSecret = needsSecret || in.Routes[i].Limit(0).NeedsToken()
	}
	return needsSecret
}

// limitsInbound tells whether a change of a service's rules changes what its own
// proxies count.
func limitsInbound(old, now *store.Service) bool {
	return old != nil && policy.LimitsByReceiver(old.Rules) || now != nil && policy.LimitsByReceiver(now.Rules)
}

// divideEvery is how often the limits of the whole mesh are divided anew, and
// divideAgain how soon after the last time where a proxy lacks a share.
// demandLasts is the time for which a share is to do: a proxy tells twice a second
// what it wants, and what it is told then is one division old.
const (
	divideEvery = 250 * time.Millisecond
	divideAgain = 50 * time.Millisecond
	demandLasts = time.Second
	// membersEvery is how often control planes tell one another what their proxies
	// want.
	membersEvery = time.Second
)

// shareOut divides the limits of the whole mesh among the proxies attached here,
// as far as these have demands. Each control plane divides the part of a limit
// that is its own: all work that out from the same figures in the store.
type shareOut struct {
	store   *store.Store
	limit   func(policy.LimitRef) (policy.RateLimit, bool)
	tell    func(publish.ProxyName)
	self    func() (name string, since float64)
	urgent  chan struct{} // of one place
	leaseOf time.Duration // how long a proxy that vanished keeps its share

	mu      sync.Mutex // guards what follows
	table   *shares.Table[publish.ProxyName]
	gone    map[publish.ProxyName]time.Time // detached since
	members []store.Member                  // as read last
}

func newShareOut(st *store.Store, limit func(policy.LimitRef) (policy.RateLimit, bool)) *shareOut {
	return &shareOut{
		store: st, limit: limit, urgent: make(chan struct{}, 1), leaseOf: shareOutlives,
		table: shares.NewTable(func(a, b publish.ProxyName) int {
			return cmp.Or(compareNames(a.Service, b.Service), strings.Compare(a.ID, b.ID))
		}),
		gone: map[publish.ProxyName]time.Time{},
	}
}

// shareOutlives is how long a proxy that is not attached any more keeps its
// share, as it does its endpoints: it may be on its way back, or to another
// control plane.
const shareOutlives = 10 * time.Second

// demands takes what a proxy wants.
func (s *shareOut) demands(p publish.ProxyName, demands []policy.Demand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.gone, p)
	if s.table.Report(p, demands) {
		select {
		case s.urgent <- struct{}{}:
		default:
		}
	}
}

// shares gives what a proxy has.
func (s *shareOut) shares(p publish.ProxyName) []policy.Share {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.Shares(p)
}

// detached notes that a proxy is away; one that took leave gives its share back
// at once.
func (s *shareOut) detached(p publish.ProxyName, left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if left {
		s.table.Forget(p)
		return
	}
	s.gone[p] = time.Now()
}

// totals is what the proxies here want together.
func (s *shareOut) totals() []policy.Demand {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.Totals()
}

// run divides until ctx ends.
func (s *shareOut) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.divideLoop(ctx); return nil })
	g.Go(func() error { s.memberLoop(ctx); return nil })
	return g.Wait()
}

func (s *shareOut) divideLoop(ctx context.Context) {
	tick := time.NewTicker(divideEvery)
	defer tick.Stop()
	last := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.urgent:
			if wait := divideAgain - time.Since(last); wait > 0 && !pause(ctx, wait) {
				return
			}
		}
		last = time.Now()
		for _, p := range s.divide(last) {
			s.tell(p)
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// divide gives the proxies whose shares changed.
func (s *shareOut) divide(now time.Time) []publish.ProxyName {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, since := range s.gone {
		if now.Sub(since) > s.leaseOf {
			s.table.Forget(p)
			delete(s.gone, p)
		}
	}
	if s.table.Empty() {
		return nil
	}
	return s.table.Divide(s.portionLocked(), demandLasts)
}

// memberLoop tells the other control planes what the proxies here want, and hears
// the same of them, as long as there is a limit of the whole mesh.
func (s *shareOut) memberLoop(ctx context.Context) {
	tick := time.NewTicker(membersEvery)
	defer tick.Stop()
	for told := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		empty := s.table.Empty()
		s.mu.Unlock()
		if empty && !told {
			continue
		}
		told = !empty
		s.store.TellNow()
		ask, cancel := context.WithTimeout(ctx, membersEvery)
		members, err := s.store.Members(ask)
		cancel()
		if err != nil {
			continue // the store is away: what was known of the others stays so
		}
		s.mu.Lock()
		s.members = members
		s.mu.Unlock()
	}
}
