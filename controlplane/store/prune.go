package store

import (
	"cmp"
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

// tooMany gives the oldest changes of a class beyond those that are kept, the
// oldest first. It begins at the first that was kept when it was asked last: etcd
// goes through what was removed before, too, until it is compacted, and after
// 90 000 changes that took as long as all the rest. What a clock that was set back
// has named as of before is found by tooHeavy.
func (s *Store) tooMany(ctx context.Context, class string, keep int) ([]*mvccpb.KeyValue, error) {
	from := cmp.Or(s.keptFrom[class], s.keys.log(class)+"/")
	within := clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.keys.log(class) + "/"))
	n, err := s.client.Get(ctx, from, within, clientv3.WithCountOnly())
	if err != nil || n.Count <= int64(keep) {
		return nil, explain(err)
	}
	resp, err := s.client.Get(ctx, from, within, clientv3.WithKeysOnly())
	if err != nil {
		return nil, explain(err)
	}
	return s.beyond(class, resp.Kvs, len(resp.Kvs)-keep), nil
}

// tooHeavy gives those beyond either bound.
func (s *Store) tooHeavy(ctx context.Context, class string, keep int) ([]*mvccpb.KeyValue, error) {
	resp, err := s.client.Get(ctx, s.keys.log(class)+"/", clientv3.WithPrefix())
	if err != nil {
		return nil, explain(err)
	}
	byAge(resp.Kvs)
	total, n := int64(0), len(resp.Kvs)
	for i, kv := range slices.Backward(resp.Kvs) {
		var r logRecord
		_ = json.Unmarshal(kv.Value, &r) // one that cannot be read has no bytes
		if total += int64(r.Bytes); i < n-1 && (n-i > keep || total > s.cfg.historyBytes) {
			return s.beyond(class, resp.Kvs, i+1), nil
		}
	}
	return s.beyond(class, resp.Kvs, 0), nil
}

// beyond gives the n oldest changes, and notes where the others begin.
func (s *Store) beyond(class string, kvs []*mvccpb.KeyValue, n int) []*mvccpb.KeyValue {
	n = max(n, 0)
	byAge(kvs)
	first := ""
	for _, kv := range kvs[n:] {
		if key := string(kv.Key); first == "" || key < first {
			first = key
		}
	}
	s.keptFrom[class] = first
	return kvs[:n]
}

// byAge orders changes by revision, the oldest first: their names tell the time
// as some process had it.
func byAge(kvs []*mvccpb.KeyValue) {
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
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
