package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// retryAfter is the wait before a broken watch is opened again.
	retryAfter = 500 * time.Millisecond
	// A cluster is asked so often, with so much time to answer, whether what is
	// known is the newest: a watch that hears nothing says nothing.
	probeEvery  = 3 * time.Second
	probeWithin = 2 * time.Second
)

// Run follows what changes in etcd until ctx ends (nil), the store is closed
// (nil), or the embedded etcd fails (the error says how; nothing that was
// acknowledged is lost). A cluster that is away is waited for.
func (s *Store) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.setFollowing(true); err != nil {
		return err
	}
	defer s.setFollowing(false) //nolint:errcheck // off cannot fail
	if s.server == nil {
		var probe sync.WaitGroup
		defer probe.Wait()
		defer cancel()
		probe.Go(func() { s.probe(ctx) })
	}
	for {
		err := s.follow(ctx)
		if ctx.Err() != nil || s.isClosed() {
			return nil
		}
		if failure := s.server.failure(); failure != nil {
			return failure
		}
		s.interrupted(s.last.explain(err))
		select {
		case <-ctx.Done():
			return nil
		case <-s.server.failed():
		case <-time.After(retryAfter):
		}
		if err := s.load(ctx); err != nil && ctx.Err() == nil {
			s.interrupted(err)
		}
	}
}

// Trouble says since when etcd cannot be followed, and why.
type Trouble struct {
	Since time.Time
	Err   error
}

// Trouble gives what keeps the State from being the newest; nil while etcd is
// followed. It is known some seconds after it began; Sync tells at once.
func (s *Store) Trouble() *Trouble { return s.trouble.Load() }

// interrupted notes a trouble, and logs it when it is another than before.
func (s *Store) interrupted(err error) {
	was := s.trouble.Load()
	now := &Trouble{Since: s.cfg.Now(), Err: err}
	if was != nil {
		now.Since = was.Since
	}
	s.trouble.Store(now)
	if was == nil || was.Err.Error() != err.Error() {
		s.cfg.Log.Warn("following etcd was interrupted; what is known stays in force", zap.Error(err))
	}
}

// probe finds out whether etcd is followed, until ctx ends.
func (s *Store) probe(ctx context.Context) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, probeWithin)
		err := s.Sync(ask)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.interrupted(s.last.explain(err))
		default:
			s.followed()
			ask, cancel := context.WithTimeout(ctx, probeWithin)
			_, _ = s.Members(ask) // for KnownMembers; the next turn tries again
			cancel()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// followed notes that what is known is the newest.
func (s *Store) followed() {
	if was := s.trouble.Swap(nil); was != nil {
		s.cfg.Log.Info("following etcd again", zap.Duration("interrupted_for", s.cfg.Now().Sub(was.Since)))
	}
}

func (s *Store) setFollowing(on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on && s.closed {
		return ErrClosed
	}
	if on && s.following {
		return errors.New("the store is followed already")
	}
	s.following = on
	if !on {
		s.announceLocked(true) // writers that wait are to look for themselves
	}
	return nil
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// follow takes changes from one watch until it breaks.
func (s *Store) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := s.client.Watch(ctx, s.keys.mesh(), clientv3.WithPrefix(), clientv3.WithRev(s.State().Revision+1))
	for {
		select {
		case <-s.server.failed():
			return s.server.failure()
		case resp, ok := <-changes:
			if !ok {
				return errors.New("the watch ended")
			}
			// ErrCompacted is among these: what was missed is gone, and
			// Run reads everything again.
			if err := resp.Err(); err != nil {
				return err
			}
			s.apply(resp.Events)
		}
	}
}

// apply takes events, in order of revision, into a new State.
func (s *Store) apply(events []*clientv3.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	revision := s.current.Load().Revision
	known := revision
	for _, ev := range events {
		if ev.Kv.ModRevision <= known {
			continue // a load was faster
		}
		if ev.Type == mvccpb.DELETE {
			s.model.remove(string(ev.Kv.Key), ev.Kv.ModRevision)
		} else {
			s.model.put(ev.Kv)
		}
		revision = ev.Kv.ModRevision
	}
	if revision > known {
		s.publishLocked(revision)
	}
}

// load reads the whole state and tells what differs from the one before.
func (s *Store) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := s.client.Get(ctx, s.keys.mesh(), clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("read the state: %w", explain(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if resp.Header.Revision <= s.current.Load().Revision {
		return nil // the watch was faster
	}
	fresh := newModel(s.keys, s.cfg.Log)
	for _, kv := range resp.Kvs {
		fresh.put(kv)
	}
	fresh.after(s.model, resp.Header.Revision)
	s.model = fresh
	s.publishLocked(resp.Header.Revision)
	return nil
}

// publishLocked makes the model's State the current one and tells of it.
func (s *Store) publishLocked(revision int64) {
	st, c := s.model.state(revision)
	s.current.Store(st)
	s.forgetSeen(&c, st)
	if !c.empty() {
		for w := range s.watches {
			w.tellLocked(&c)
		}
	}
	s.announceLocked(false)
}

// waiter is a writer that waits for the State to hold what it wrote.
type waiter struct {
	holds func() bool   // asked with mu held
	ready chan struct{} // closed when it is to look again
}

// announceLocked wakes the waiters whose condition holds, or all. With many
// writers most revisions are of interest to one of them.
func (s *Store) announceLocked(all bool) {
	for w := range s.waiters {
		if all || w.holds() {
			delete(s.waiters, w)
			close(w.ready)
		}
	}
}

// forgetSeen drops what was heard of endpoints that are gone.
func (s *Store) forgetSeen(c *Change, st *State) {
	s.seenMu.Lock()
	defer s.seenMu.Unlock()
	for name := range c.Services {
		for id := range s.seen[name] {
			if _, ok := st.endpoint(name, id); !ok {
				delete(s.seen[name], id)
			}
		}
		if len(s.seen[name]) == 0 {
			delete(s.seen, name)
		}
	}
}

// await returns when the State holds a revision, so that who writes reads what
// was written. While nobody follows, it reads for itself.
func (s *Store) await(ctx context.Context, revision int64) error {
	return s.awaitThat(ctx, func() bool { return s.current.Load().Revision >= revision })
}

// awaitThat waits for a condition, which is asked with mu held.
func (s *Store) awaitThat(ctx context.Context, holds func() bool) error {
	for {
		w := &waiter{holds: holds, ready: make(chan struct{})}
		s.mu.Lock()
		closed, following, ok := s.closed, s.following, holds()
		if !ok && !closed && following {
			s.waiters[w] = struct{}{}
		}
		s.mu.Unlock()
		switch {
		case ok:
			return nil
		case closed:
			return fmt.Errorf("stored, but not read back: %w", ErrClosed)
		case !following:
			return s.load(ctx)
		}
		select {
		case <-w.ready:
			continue
		case <-s.server.failed():
			s.forgetWaiter(w)
			return fmt.Errorf("stored, but not read back: %w", s.server.failure())
		case <-ctx.Done():
			s.forgetWaiter(w)
			return fmt.Errorf("stored, but not read back in time: %w", ctx.Err())
		}
	}
}

func (s *Store) forgetWaiter(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiters, w)
}

// explain says in the store's words what etcd's client reports.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: etcd's quota is used up: %w", ErrFull, err)
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, rpctypes.ErrTimeout), errors.Is(err, rpctypes.ErrNoLeader),
		errors.Is(err, rpctypes.ErrLeaderChanged), errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail),
		errors.Is(err, rpctypes.ErrTimeoutDueToConnectionLost), errors.Is(err, rpctypes.ErrStopped), errors.Is(err, rpctypes.ErrTooManyRequests),
		status.Code(err) == codes.Unavailable, status.Code(err) == codes.DeadlineExceeded,
		// etcd 3.4 passes its own deadline on as "Unknown".
		status.Code(err) == codes.Unknown && strings.Contains(err.Error(), context.DeadlineExceeded.Error()):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, rpctypes.ErrTooManyOps), errors.Is(err, rpctypes.ErrRequestTooLarge), status.Code(err) == codes.ResourceExhausted:
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return err
}
