package store

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Lead runs a task in one of the processes that ask for it, beside what TakePart
// runs: not every member can do it. In another it runs within LeaseTTL when that
// one is gone or no longer heard; name is this process, for who looks into etcd.
// run's context ends when this process may no longer lead; run is then to return,
// and is called again when its turn comes. Lead blocks; it returns nil when ctx
// ends, and run's error when run returns by itself. With the embedded etcd there
// is one process, which leads.
func (s *Store) Lead(ctx context.Context, task, name string, run func(ctx context.Context) error) error {
	if s.server != nil {
		return run(ctx)
	}
	return s.hold(ctx, &election{key: s.keys.task(task), name: func() string { return name }, lead: run})
}

// election is what one process does for the part it takes in one.
type election struct {
	key  string
	name func() string // of this process
	lead func(ctx context.Context) error
	// beside runs as long as the lease does, elected or not; nil for nothing.
	beside func(ctx context.Context, lease clientv3.LeaseID) error
}

// hold takes part in an election, with one lease after another, until ctx ends
// or lead returns by itself.
func (s *Store) hold(ctx context.Context, e *election) error {
	last := ""
	for ctx.Err() == nil {
		done, err := s.takePart(ctx, e)
		if done || s.isClosed() {
			return err
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		if text := err.Error(); text != last { // the same for hours is told once
			last = text
			s.cfg.Log.Warn("no part in an election of the control planes of this store; trying again",
				zap.String("election", e.key), zap.Error(explain(err)))
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
		}
	}
	return nil
}

// takePart is one session: a lease, what is done beside, and the election. done
// tells that lead returned by itself.
func (s *Store) takePart(ctx context.Context, e *election) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	session, err := s.session(ctx)
	if err != nil {
		return false, fmt.Errorf("take part in the election: %w", err)
	}
	defer s.giveBack(session)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-session.Done():
			return errSessionEnded
		case <-ctx.Done():
			return nil
		}
	})
	if e.beside != nil {
		g.Go(func() error { return e.beside(ctx, session.Lease()) })
	}
	g.Go(func() error {
		defer cancel()
		if err := concurrency.NewElection(session, e.key).Campaign(ctx, e.name()); err != nil {
			return fmt.Errorf("wait for the election: %w", err)
		}
		err := e.lead(ctx)
		done = ctx.Err() == nil
		return err
	})
	err = g.Wait()
	return done, err
}

// session takes a lease and keeps it alive until it is given back.
func (s *Store) session(ctx context.Context) (*concurrency.Session, error) {
	seconds := int64((s.cfg.LeaseTTL + time.Second - 1) / time.Second)
	ask, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	lease, err := s.client.Grant(ask, seconds)
	if err != nil {
		return nil, err
	}
	// A client that ends with ctx: who waits for an election and is told to end
	// withdraws first, by its client's context, and without the cluster would do so
	// for ever. What is not withdrawn goes with the lease.
	c := clientv3.NewCtxClient(ctx)
	c.KV, c.Lease, c.Watcher = s.client.KV, s.client.Lease, s.client.Watcher
	// Not ctx: the lease is to be there until it is given back.
	return concurrency.NewSession(c, concurrency.WithLease(lease.ID), concurrency.WithContext(context.WithoutCancel(ctx)))
}

var errSessionEnded = fmt.Errorf("the lease ended: %w", ErrUnavailable)

// giveBack ends a session, so that another need not wait for its lease to end.
// What is not given back in a second ends by itself.
func (s *Store) giveBack(session *concurrency.Session) {
	session.Orphan()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = s.client.Revoke(ctx, session.Lease())
}
