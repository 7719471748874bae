// Package feed follows the control plane: the newest good state of what this proxy subscribed to.
// It leaves to its user's hooks what the state means, and to identity how the connection is secured.
package feed

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// Config says who this proxy is, where the control plane is and who hears of changes.
type Config struct {
	Control []string           // addresses of the control plane, host:port, tried in turn; at least one
	TLS     func() *tls.Config // asked for each connection; nil is plaintext, for tests
	// Dial opens connections to the control plane; nil is a plain net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	ProxyID   string             // unique in the mesh, the same after a restart
	Version   string             // of this program, for operators to see
	Service   policy.ServiceName // whose Inbound is followed
	Addresses []netip.Addr       // those this proxy is beside
	Endpoints []policy.Target    // registered as long as we are attached

	Figures func() policy.Figures // nil reports none
	// FiguresEvery is asked how much time lies between two reports of them; 0, or no
	// func, is with each sign of life.
	FiguresEvery func() time.Duration
	// Demands tells what is wanted of limits of the whole mesh; as long as there are
	// any they are told twice a second. nil wants none.
	Demands   func() []policy.Demand
	Report    func() policy.Report // nil reports nothing but the control plane's address
	StateFile string               // last known good state, 0600; "" keeps none
	IdleAfter time.Duration        // what was not touched so long is forgotten; 0 = 10 min
	Wait      time.Duration        // how long a first lookup may wait for its answer; 0 = 1 s
	Now       func() time.Time     // nil is time.Now
	Rand      func() float64       // in [0,1), spreads reconnects; nil is math/rand/v2
	Log       *zap.Logger          // nil logs nothing
	Hooks     Hooks
}

// Hooks hear of new state, one call at a time, in order. They may call Touch,
// but not Service or ServiceAt, which can wait for them. An error refuses the
// state: the old stays in force and the control plane is told the reason. nil
// hooks take everything.
type Hooks struct {
	OnMesh    func(policy.Mesh) error
	OnInbound func(policy.Inbound) error
	// OnService hears nil when a service is gone, or forgotten because it was
	// idle; the error is then ignored. Connections to a service that was
	// forgotten may live on.
	OnService func(policy.ServiceName, *policy.Service) error
	// OnShares hears the shares that the demands led to. It is called apart from the
	// others, and nil lets them be.
	OnShares func([]policy.Share)
	// OnClock hears what the control plane's clock shows with each of its answers.
	// It may be nil, and is called apart from the others.
	OnClock func(control time.Time)
}

// Feed follows the control plane. All methods are safe for concurrent use.
type Feed struct {
	cfg     Config
	ready   chan struct{} // closed once mesh and inbound are known
	leaving chan struct{} // closed by Leave
	leave   func()
	wake    chan struct{} // capacity 1: queue has something to send
	sweep   chan struct{} // capacity 1: there are too many subscriptions
	changed chan struct{} // capacity 1: the state file is behind
	ask     chan struct{} // capacity 1: demands are to be told soon
	hooks   sync.Mutex    // held while hooks are called; taken before mu

	mu    sync.RWMutex // guards what follows; never held while hooks are called
	subs  table
	queue queue
	link  link
}

// link is how we stand with the control plane.
type link struct {
	down     chan struct{} // closed when the connection ends; nil while there is none
	address  string
	since    time.Time
	lastErr  string
	heard    bool // anything of any control plane, since Run began
	moves    int  // control planes left for their silence since the last answer to an attachment
	attached bool // the control plane has answered our attachment, which lasts
	fromFile bool
	rejected map[string]string
}

const (
	defaultIdle = 10 * time.Minute
	defaultWait = time.Second
)

// New checks the configuration. It neither reads files nor connects.
func New(cfg Config) (*Feed, error) {
	switch {
	case len(cfg.Control) == 0:
		return nil, errors.New("feed: no address of a control plane")
	case cfg.ProxyID == "":
		return nil, errors.New("feed: no proxy id")
	case cfg.IdleAfter < 0 || cfg.Wait < 0:
		return nil, errors.New("feed: IdleAfter or Wait is negative")
	}
	if err := cfg.Service.Validate(); err != nil {
		return nil, fmt.Errorf("feed: %w", err)
	}
	cfg.setDefaults()
	f := &Feed{
		cfg: cfg, ready: make(chan struct{}), leaving: make(chan struct{}),
		wake: make(chan struct{}, 1), sweep: make(chan struct{}, 1), changed: make(chan struct{}, 1), ask: make(chan struct{}, 1),
		subs: newTable(), queue: newQueue(),
	}
	f.leave = sync.OnceFunc(func() { close(f.leaving) })
	f.link.since = cfg.Now()
	f.link.rejected = map[string]string{}
	now := cfg.Now()
	f.subs.add(resource{meshKind, meshName}, now)
	f.subs.add(resource{inboundKind, cfg.Service.String()}, now)
	return f, nil
}

func (c *Config) setDefaults() {
	if c.IdleAfter == 0 {
		c.IdleAfter = defaultIdle
	}
	if c.Wait == 0 {
		c.Wait = defaultWait
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Float64
	}
	if c.Figures == nil {
		c.Figures = func() policy.Figures { return policy.Figures{} }
	}
	if c.Report == nil {
		c.Report = func() policy.Report { return policy.Report{} }
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Demands == nil {
		c.Demands = func() []policy.Demand { return nil }
	}
	if c.Hooks.OnShares == nil {
		c.Hooks.OnShares = func([]policy.Share) {}
	}
	if c.Hooks.OnMesh == nil {
		c.Hooks.OnMesh = func(policy.Mesh) error { return nil }
	}
	if c.Hooks.OnInbound == nil {
		c.Hooks.OnInbound = func(policy.Inbound) error { return nil }
	}
	if c.Hooks.OnService == nil {
		c.Hooks.OnService = func(policy.ServiceName, *policy.Service) error { return nil }
	}
}

// Ready is closed once the mesh's settings and our Inbound are known, from the
// control plane or from the state file.
func (f *Feed) Ready() <-chan struct{} { return f.ready }

// Service subscribes to a service on first use and tells whether it exists,
// which it does once OnService took it. A first call waits for the control
// plane's answer at most Config.Wait; disconnected, and for what is known, it
// answers at once. It counts as a use.
func (f *Feed) Service(ctx context.Context, name policy.ServiceName) (known bool) {
	s := f.use(name)
	if s == nil {
		if name.Validate() != nil {
			return false
		}
		s = f.subscribe(resource{serviceKind, name.String()})
	}
	return f.wait(ctx, s).known
}

// ServiceAt tells which service answers at an address: a virtual address,
// whatever the port, or an endpoint's. It waits like Service and remembers also
// that an address is nobody's. It does not subscribe to the service found.
func (f *Feed) ServiceAt(ctx context.Context, at netip.AddrPort) (policy.ServiceName, bool) {
	if at.Addr().Zone() != "" || !at.IsValid() {
		return policy.ServiceName{}, false // no endpoint can have it
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if policy.IsVirtual(at.Addr()) {
		at = netip.AddrPortFrom(at.Addr(), 0)
	}
	name, s := f.useAddress(at)
	if s == nil {
		if !name.IsZero() {
			return name, true
		}
		s = f.subscribe(resource{lookupKind, lookupName(at)})
	}
	a := f.wait(ctx, s)
	return a.service, a.known
}

// LookAt is ServiceAt that does not wait: answered is false when it is not known
// yet what is at the address, which ServiceAt finds out.
func (f *Feed) LookAt(at netip.AddrPort) (name policy.ServiceName, known, answered bool) {
	if at.Addr().Zone() != "" || !at.IsValid() {
		return name, false, true
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if policy.IsVirtual(at.Addr()) {
		at = netip.AddrPortFrom(at.Addr(), 0)
	}
	name, s := f.useAddress(at)
	if s == nil {
		return name, !name.IsZero(), !name.IsZero()
	}
	a := s.answer.Load()
	if a == nil {
		return name, false, false
	}
	return a.service, a.known, true
}

// lookupName is an address as a resource's name: a port of 0 stands for a
// virtual address, where the port does not matter.
func lookupName(at netip.AddrPort) string {
	if at.Port() == 0 {
		return at.Addr().String()
	}
	return at.String()
}

// Touch counts as a use of a service, so that it is not forgotten. It
// subscribes to it if need be, without waiting.
func (f *Feed) Touch(name policy.ServiceName) {
	if f.use(name) == nil && name.Validate() == nil {
		f.subscribe(resource{serviceKind, name.String()})
	}
}

// use finds a service's subscription and counts a use; nil when there is none.
// The use is counted under the lock, for the sweeper to see.
func (f *Feed) use(name policy.ServiceName) *sub {
	f.mu.RLock()
	defer f.mu.RUnlock()
	s := f.subs.services[name]
	if s != nil {
		s.used.Store(f.cfg.Now().UnixNano())
	}
	return s
}

// useAddress is use for an address. A virtual address of a service that is
// followed needs no subscription of its own.
func (f *Feed) useAddress(at netip.AddrPort) (policy.ServiceName, *sub) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	now := f.cfg.Now().UnixNano()
	if at.Port() == 0 {
		if name, ok := f.subs.virtual[at.Addr()]; ok {
			f.subs.services[name].used.Store(now)
			return name, nil
		}
	}
	s := f.subs.addresses[at]
	if s != nil {
		s.used.Store(now)
	}
	return policy.ServiceName{}, s
}

// subscribe finds or makes a subscription, and has it sent.
func (f *Feed) subscribe(r resource) *sub {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.subs.all[r]; s != nil {
		return s
	}
	now := f.cfg.Now()
	s := f.subs.add(r, now)
	if f.link.down != nil {
		s.until = now.Add(f.cfg.Wait)
		f.queue.subscribe(r)
		poke(f.wake)
	}
	if f.subs.full() {
		poke(f.sweep)
	}
	return s
}

// wait waits for the first answer about a subscription: until Wait after it was
// asked for, and not while there is nobody to answer.
func (f *Feed) wait(ctx context.Context, s *sub) answer {
	if a := s.answer.Load(); a != nil {
		return *a
	}
	f.mu.RLock()
	down, left := f.link.down, s.until.Sub(f.cfg.Now())
	f.mu.RUnlock()
	if down != nil && left > 0 {
		timer := time.NewTimer(left)
		defer timer.Stop()
		select {
		case <-s.answered:
		case <-down:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	if a := s.answer.Load(); a != nil {
		return *a
	}
	return answer{}
}

// AskShares has the demands told soon, for a share that is used up or not known
// yet. It does not wait.
func (f *Feed) AskShares() { poke(f.ask) }

// Leave tells the control plane to remove our endpoints now, and no longer
// offers them; state is followed on. For the begin of a drain. It does not wait.
func (f *Feed) Leave() { f.leave() }

// Connected tells whether state is followed at this moment.
func (f *Feed) Connected() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.link.down != nil
}

// poke wakes a loop that looks at everything there is to do.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
