package store

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// Lead runs a task in one of the processes that share the cluster, and in
// another when that one is gone or no longer heard. It blocks until ctx ends or
// run returns by itself, and gives run's error. run's context ends when this
// process may no longer lead; run is then to return, and is called again when
// its turn comes. With the embedded etcd there is one process, which leads.
func (s *Store) Lead(ctx context.Context, task string, run func(ctx context.Context) error) error {
	if s.server != nil {
		return run(ctx)
	}
	for ctx.Err() == nil {
		done, err := s.leadOnce(ctx, task, run)
		if done || s.isClosed() {
			return err
		}
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("not leading", zap.String("task", task), zap.Error(explain(err)))
			select {
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
		}
	}
	return nil
}

// leadOnce waits for one election and runs the task while it holds. done tells
// that run returned by itself.
func (s *Store) leadOnce(ctx context.Context, task string, run func(ctx context.Context) error) (done bool, err error) {
	seconds := int((s.cfg.LeaseTTL + time.Second - 1) / time.Second)
	// Not ctx: it has ended when the session is to be given back.
	session, err := concurrency.NewSession(s.client, concurrency.WithTTL(seconds), concurrency.WithContext(context.WithoutCancel(ctx)))
	if err != nil {
		return false, fmt.Errorf("take part in the election: %w", err)
	}
	defer session.Close() //nolint:errcheck // what is not given back ends by itself
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
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
	host, _ := os.Hostname() // for who looks into etcd; nothing depends on it
	if err := concurrency.NewElection(session, s.keys.leader(task)).Campaign(ctx, fmt.Sprintf("%s/%d", host, os.Getpid())); err != nil {
		return false, fmt.Errorf("wait for the election: %w", err)
	}
	err = run(ctx)
	return ctx.Err() == nil, err
}
