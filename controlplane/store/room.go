package store

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// relieve makes room in the embedded etcd whose database has reached its quota:
// etcd then refuses every write, also after a restart, until somebody drops the
// past, gives its pages back and disarms the alarm. Nobody but this process can
// reach it. Of a cluster that is its operator's work. The error is ErrFull when
// what is there fills the quota by itself.
func (s *Store) relieve(ctx context.Context) error {
	s.relieveMu.Lock()
	defer s.relieveMu.Unlock()
	alarms, err := s.client.AlarmList(ctx)
	if err != nil || len(alarms.Alarms) == 0 { // another writer was here before
		return err
	}
	s.cfg.Log.Warn("etcd's database has reached its quota; dropping its past")
	head, err := s.client.Get(ctx, s.keys.head())
	if err != nil {
		return fmt.Errorf("make room: %w", err)
	}
	if _, err := s.client.Compact(ctx, head.Header.Revision, clientv3.WithCompactPhysical()); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("make room: %w", err)
	}
	// Not by the client: etcd's in-process one has no way to it.
	db := s.server.etcd.Server.Backend()
	if err := db.Defrag(); err != nil {
		return fmt.Errorf("make room: %w", err)
	}
	// A little above is too little: the alarm would go off again at once.
	if quota := s.quota(); db.Size() > quota-quota/10 {
		return fmt.Errorf("%w: of etcd's quota of %d MiB %d are in use", ErrFull, quota>>20, db.Size()>>20)
	}
	if _, err := s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		return fmt.Errorf("make room: %w", err)
	}
	s.cfg.Log.Info("etcd has room again", zap.Int64("database_bytes", db.Size()))
	return nil
}

// defaultQuota is etcd's own.
const defaultQuota = 2 << 30

func (s *Store) quota() int64 {
	if s.cfg.quota > 0 {
		return s.cfg.quota
	}
	return defaultQuota
}
