package store

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	// historyBytes bounds the compressed values of a class. The newest change is
	// kept whatever its size.
	historyBytes = 64 << 20
	// pruneEvery is how many changes of this process lie between two looks at how
	// many there are, and historyBytes/pruneParts of them between two at how large:
	// the history exceeds its bounds by so much, times the processes. A look each
	// 32 changes, which read all of them, was two fifths of a registration's cost.
	pruneEvery = 256
	pruneParts = 32
)

// noted looks at the history's bounds now and then, after a change that was
// stored. What goes wrong with that is not the change's fault, and is tried
// again after some more.
func (s *Store) noted(ctx context.Context, ops []clientv3.Op) {
	if len(ops) == 0 {
		return
	}
	unweighed := s.unweighed.Add(int64(len(ops[len(ops)-1].ValueBytes())))
	heavy := unweighed >= s.cfg.historyBytes/pruneParts
	if s.written.Add(1)%pruneEvery != 0 && !heavy {
		return
	}
	if !s.pruneMu.TryLock() {
		return // one at a time: thousands of proxies that come at once would all read all of it
	}
	defer s.pruneMu.Unlock()
	err := errors.Join(s.prune(ctx, operators, s.cfg.History, heavy), s.prune(ctx, proxies, s.cfg.History/2, heavy))
	if err == nil && heavy {
		s.unweighed.Add(-unweighed)
	}
	if err != nil && !errors.Is(err, errRace) { // another prunes
		s.cfg.Log.Warn("the history is longer than it is to be", zap.Error(err))
	}
}

// prune removes the oldest changes of a class beyond its bounds. How large they
// are is in each of them, and is read only when asked for.
func (s *Store) prune(ctx context.Context, class string, keep int, weigh bool) error {
	var old []*mvccpb.KeyValue
	var err error
	if weigh {
		old, err = s.tooHeavy(ctx, class, keep)
	} else {
		old, err = s.tooMany(ctx, class, keep)
	}
	if err != nil || len(old) == 0 {
		return err
	}
	newest := old[len(old)-1].ModRevision
	for part := range slices.Chunk(old, readsPerTxn/2) {
		var ops []clientv3.Op
		for _, kv := range part {
			key := string(kv.Key)
			ops = append(ops, clientv3.OpDelete(key), clientv3.OpDelete(strings.Replace(key, s.keys.log(class), s.keys.diff(class), 1)))
		}
		if err := s.forget(ctx, class, newest, ops); err != nil {
			return err
		}
	}
	return nil
}

// oldestFirst is the order of the changes: their names tell the time as some
// process had it, which may have been set back.
func oldestFirst() clientv3.OpOption {
	return clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend)
}

// tooMany gives the oldest changes of a class beyond those that are kept, the
// oldest first.
func (s *Store) tooMany(ctx context.Context, class string, keep int) ([]*mvccpb.KeyValue, error) {
	prefix := s.keys.log(class) + "/"
	n, err := s.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || n.Count <= int64(keep) {
		return nil, explain(err)
	}
	resp, err := s.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), oldestFirst(), clientv3.WithLimit(n.Count-int64(keep)))
	if err != nil {
		return nil, explain(err)
	}
	return resp.Kvs, nil
}

// tooHeavy gives those beyond either bound.
func (s *Store) tooHeavy(ctx context.Context, class string, keep int) ([]*mvccpb.KeyValue, error) {
	resp, err := s.client.Get(ctx, s.keys.log(class)+"/", clientv3.WithPrefix(), oldestFirst())
	if err != nil {
		return nil, explain(err)
	}
	total, n := int64(0), len(resp.Kvs)
	for i, kv := range slices.Backward(resp.Kvs) {
		var r logRecord
		_ = json.Unmarshal(kv.Value, &r) // one that cannot be read has no bytes
		if total += int64(r.Bytes); i < n-1 && (n-i > keep || total > s.cfg.historyBytes) {
			return resp.Kvs[:i+1], nil
		}
	}
	return nil, nil
}

// forget removes changes and notes how far back the history reaches from then
// on. What proxies did is not needed to go back.
func (s *Store) forget(ctx context.Context, class string, newest int64, ops []clientv3.Op) error {
	if class != operators {
		_, err := s.client.Txn(ctx).Then(ops...).Commit()
		return explain(err)
	}
	value, revision, err := s.get(ctx, s.keys.forgotten())
	if err != nil {
		return err
	}
	have, _ := strconv.ParseInt(string(value), 10, 64)
	ops = append(ops, clientv3.OpPut(s.keys.forgotten(), strconv.FormatInt(max(have, newest), 10)))
	resp, err := s.client.Txn(ctx).If(unchanged(s.keys.forgotten(), revision)).Then(ops...).Commit()
	if err == nil && !resp.Succeeded {
		return errRace
	}
	return explain(err)
}
