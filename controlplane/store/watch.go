package store

import (
	"context"
	"maps"

	"github.com/weir-mesh/weir/policy"
)

// Change tells what changed since the last one, and the state after it.
type Change struct {
	State    *State
	Services map[policy.ServiceName]struct{} // those that changed, came or went
	Security bool
	Settings bool
	Proxies  map[string]struct{} // ids of those that changed, came or went
	Revoked  bool
	Roots    bool
}

func (c *Change) empty() bool {
	return len(c.Services) == 0 && !c.Security && !c.Settings && len(c.Proxies) == 0 && !c.Revoked && !c.Roots
}

func (c *Change) add(other *Change) {
	if c.Services == nil {
		c.Services, c.Proxies = map[policy.ServiceName]struct{}{}, map[string]struct{}{}
	}
	maps.Copy(c.Services, other.Services)
	maps.Copy(c.Proxies, other.Proxies)
	c.Security = c.Security || other.Security
	c.Settings = c.Settings || other.Settings
	c.Revoked, c.Roots = c.Revoked || other.Revoked, c.Roots || other.Roots
}

// Watch hears of changes. Changes between two calls of Next become one, so a
// slow reader costs no memory and misses no end state.
type Watch struct {
	store *Store
	wake  chan struct{} // holds a token when pending is not empty
	done  chan struct{} // closed when the store closes

	pending Change // guarded by store.mu
}

// Watch starts to hear of changes; the first Next returns everything that is.
// Close ends it.
func (s *Store) Watch() *Watch {
	w := &Watch{store: s, wake: make(chan struct{}, 1), done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		close(w.done)
		return w
	}
	all := Everything(s.current.Load())
	w.pending.add(&all)
	w.wake <- struct{}{}
	s.watches[w] = struct{}{}
	return w
}

// Everything is the change from nothing to a state.
func Everything(st *State) Change {
	c := Change{State: st, Services: map[policy.ServiceName]struct{}{}, Security: true, Settings: true, Revoked: true, Roots: true, Proxies: map[string]struct{}{}}
	for name := range st.Services.All() {
		c.Services[name] = struct{}{}
	}
	for p := range st.Proxies.All() {
		c.Proxies[p.ID] = struct{}{}
	}
	return c
}

// Next waits for a change. The error is ctx's, or ErrClosed.
func (w *Watch) Next(ctx context.Context) (Change, error) {
	select {
	case <-ctx.Done():
		return Change{}, ctx.Err()
	case <-w.done:
		return Change{}, ErrClosed
	case <-w.wake:
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	out := w.pending
	out.State = w.store.current.Load()
	w.pending = Change{}
	return out, nil
}

// Close stops hearing of changes.
func (w *Watch) Close() {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	delete(w.store.watches, w)
}

func (w *Watch) tellLocked(c *Change) {
	w.pending.add(c)
	select {
	case w.wake <- struct{}{}:
	default: // a token is there already
	}
}
