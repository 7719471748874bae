// Package resolve keeps the addresses of host names that are in use.
// How a name is looked up, and who is in need of which, it leaves to its user.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Config is what a Resolver needs.
type Config struct {
	// Lookup asks a name server. Its error leaves what is known in force.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Changed hears of a name that leads elsewhere than before, from Run.
	Changed func(host string)
	Every   time.Duration    // between two look-ups of a name; 0 is 30 s
	Limit   time.Duration    // for one; 0 is 3 s
	Now     func() time.Time // nil is time.Now
	Log     *zap.Logger      // nil logs nothing
}

const (
	defaultEvery = 30 * time.Second
	defaultLimit = 3 * time.Second
	// failedFor is how long a name that leads nowhere is not asked for again.
	failedFor = time.Second
	atOnce    = 16 // look-ups of Run
)

// Resolver keeps addresses. All methods are safe for concurrent use.
type Resolver struct {
	cfg Config

	mu    sync.Mutex // guards what follows
	names map[string]*name
}

type name struct {
	addrs  []netip.Addr
	err    error         // of the last look-up
	asked  time.Time     // when it ended
	asking chan struct{} // closed with the look-up under way; nil when there is none
}

// New makes a Resolver that knows nothing, and asks for nothing yet.
func New(cfg Config) (*Resolver, error) {
	if cfg.Lookup == nil || cfg.Changed == nil {
		return nil, errors.New("resolve: Lookup or Changed is missing")
	}
	if cfg.Every == 0 {
		cfg.Every = defaultEvery
	}
	if cfg.Limit == 0 {
		cfg.Limit = defaultLimit
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Resolver{cfg: cfg, names: map[string]*name{}}, nil
}

// Addrs gives what is known of a name, in order. It does not wait.
func (r *Resolver) Addrs(host string) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.names[host]; n != nil {
		return n.addrs
	}
	return nil
}

// Want gives a name's addresses, looking it up if none are known: once, however
// many ask. A name that has just led nowhere is not asked for again for a second.
func (r *Resolver) Want(ctx context.Context, host string) ([]netip.Addr, error) {
	for {
		r.mu.Lock()
		n := r.nameLocked(host)
		switch {
		case len(n.addrs) > 0, n.err != nil && r.cfg.Now().Sub(n.asked) < failedFor:
			addrs, err := n.addrs, n.err
			r.mu.Unlock()
			if len(addrs) > 0 {
				err = nil
			}
			return addrs, err
		case n.asking == nil:
			r.mu.Unlock()
			r.ask(ctx, host)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			continue
		}
		asking := n.asking
		r.mu.Unlock()
		select {
		case <-asking:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *Resolver) nameLocked(host string) *name {
	n := r.names[host]
	if n == nil {
		n = &name{}
		r.names[host] = n
	}
	return n
}

// ask looks a name up, if nobody else is at it, and tells whether it leads
// elsewhere now.
func (r *Resolver) ask(ctx context.Context, host string) (changed bool) {
	r.mu.Lock()
	n := r.nameLocked(host)
	if n.asking != nil {
		r.mu.Unlock()
		return false
	}
	n.asking = make(chan struct{})
	r.mu.Unlock()
	ask, cancel := context.WithTimeout(ctx, r.cfg.Limit)
	defer cancel()
	addrs, err := r.cfg.Lookup(ask, host)
	if addrs = usable(addrs); err == nil && len(addrs) == 0 {
		err = errors.New("it has no address that can be dialled")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(n.asking)
	n.asking = nil
	if ctx.Err() != nil {
		return false // who asked has gone: that says nothing about the name
	}
	n.asked = r.cfg.Now()
	if err != nil {
		if n.err == nil {
			r.cfg.Log.Warn("a host outside the mesh cannot be looked up; the addresses it had stay", zap.String("host", host), zap.Int("addresses", len(n.addrs)), zap.Error(err))
		}
		n.err = fmt.Errorf("look up %s: %w", host, err)
		return false
	}
	changed = !slices.Equal(addrs, n.addrs)
	n.addrs, n.err = addrs, nil
	return changed
}

// Keep forgets all names but those in use.
func (r *Resolver) Keep(inUse map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for host, n := range r.names {
		if !inUse[host] && n.asking == nil {
			delete(r.names, host)
		}
	}
}

// Run looks the names up again from time to time, until ctx ends: what a name
// server answers has a time to live, of which Go's resolver does not tell.
func (r *Resolver) Run(ctx context.Context) {
	tick := time.NewTicker(r.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.refresh(ctx)
	}
}

func (r *Resolver) refresh(ctx context.Context) {
	r.mu.Lock()
	hosts := make([]string, 0, len(r.names))
	for host := range r.names {
		hosts = append(hosts, host)
	}
	r.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, host := range hosts {
		g.Go(func() error {
			if r.ask(ctx, host) {
				r.cfg.Changed(host)
			}
			return nil
		})
	}
	_ = g.Wait() // no look-up gives an error: it is kept with the name
}

// usable are the IPv4 addresses of a name, or if it has none the IPv6 ones: with
// both, a host would stand twice for the same failure. In order, so that the same
// answer is the same.
func usable(addrs []netip.Addr) []netip.Addr {
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		switch {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast():
		case a.Is4():
			v4 = append(v4, a)
		default:
			v6 = append(v6, a)
		}
	}
	if len(v4) == 0 {
		v4 = v6
	}
	slices.SortFunc(v4, netip.Addr.Compare)
	return slices.Compact(v4)
}
