package store

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
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
	last := ""
	for ctx.Err() == nil {
		done, err := s.leadOnce(ctx, task, name, run)
		if done || s.isClosed() {
			return err
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		if text := err.Error(); text != last { // the same for hours is told once
			last = text
			s.cfg.Log.Warn("not leading; trying again", zap.String("task", task), zap.Error(explain(err)))
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
		}
	}
	return nil
}

// leadOnce waits for one election and runs the task while it holds. done tells
// that run returned by itself.
func (s *Store) leadOnce(ctx context.Context, task, name string, run func(ctx context.Context) error) (done bool, err error) {
	seconds := int((s.cfg.LeaseTTL + time.Second - 1) / time.Second)
	// Not ctx: it has ended when the session is to be given back.
	session, err := concurrency.NewSession(s.client, concurrency.WithTTL(seconds), concurrency.WithContext(context.WithoutCancel(ctx)))
	if err != nil {
		return false, fmt.Errorf("take part in the election: %w", err)
	}
	defer s.giveBack(session)
	ctx, cancel := context.WithCancel(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-session.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-watching }()
	if err := concurrency.NewElection(session, s.keys.task(task)).Campaign(ctx, name); err != nil {
		return false, fmt.Errorf("wait for the election: %w", err)
	}
	err = run(ctx)
	return ctx.Err() == nil, err
}
