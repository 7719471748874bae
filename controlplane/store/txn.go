package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// maxRaces bounds how often a write is tried again that lost against another.
// Each loss is another's success, so the mesh as a whole goes on.
const maxRaces = 100

// errRace is an attempt's "the world has moved, look again".
var errRace = fmt.Errorf("%w: others write the same all the time", ErrUnavailable)

// commit does the operations if the conditions hold, and waits until the State
// holds them. What is acknowledged is on etcd's disk.
func (s *Store) commit(ctx context.Context, conditions []clientv3.Cmp, ops []clientv3.Op) error {
	if err := s.server.space(); err != nil {
		return err
	}
	return s.transact(ctx, conditions, ops)
}

// transact is commit on a disk of any fill: to remove something must be possible.
func (s *Store) transact(ctx context.Context, conditions []clientv3.Cmp, ops []clientv3.Op) error {
	resp, err := s.client.Txn(ctx).If(conditions...).Then(append(ops, clientv3.OpPut(s.keys.head(), ""))...).Commit()
	if err != nil {
		return explain(err)
	}
	if !resp.Succeeded {
		return errRace
	}
	return s.await(ctx, resp.Header.Revision)
}

// Sync returns when the State holds every write that was acknowledged before
// the call, by whichever process: what is read after it is not older than what
// anybody was told is stored. It takes one read from a majority of the cluster;
// with the embedded etcd it is so always. ErrUnavailable when the cluster does
// not answer within ctx; the State is then what was last heard of.
func (s *Store) Sync(ctx context.Context) error {
	if s.server != nil {
		return nil
	}
	if s.isClosed() {
		return fmt.Errorf("read: %w", ErrClosed)
	}
	_, revision, err := s.get(ctx, s.keys.head())
	if err == nil {
		err = s.await(ctx, revision)
	}
	if err != nil {
		return fmt.Errorf("read: %w", explain(err))
	}
	return nil
}

// write does an attempt until it does not end in errRace, within the time that
// a request has. what names the step in errors.
func (s *Store) write(ctx context.Context, what string, attempt func(ctx context.Context) error) error {
	if s.isClosed() {
		return fmt.Errorf("%s: %w", what, ErrClosed)
	}
	if err := s.server.failure(); err != nil {
		return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var err error
	for range maxRaces {
		if err = attempt(ctx); err != errRace { //nolint:errorlint // never wrapped
			break
		}
	}
	if err != nil && s.server.failure() != nil {
		err = fmt.Errorf("%w: %w", ErrUnavailable, s.server.failure())
	}
	if errors.Is(err, ErrUnavailable) && s.server == nil {
		err = fmt.Errorf("%w; whether it was stored is not known: look before you try again", err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// get reads one key; revision 0 means that it does not exist.
func (s *Store) get(ctx context.Context, key string) (value []byte, revision int64, err error) {
	resp, err := s.client.Get(ctx, key)
	if err != nil {
		return nil, 0, explain(err)
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, nil
	}
	return resp.Kvs[0].Value, resp.Kvs[0].ModRevision, nil
}

func unchanged(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

func exists(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
}

func absent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

// noneUnder holds when no key has the prefix.
func noneUnder(prefix string) clientv3.Cmp { return absent(prefix).WithPrefix() }

func put(key string, value any, opts ...clientv3.OpOption) (clientv3.Op, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return clientv3.Op{}, fmt.Errorf("encode: %w", err)
	}
	return clientv3.OpPut(key, string(b), opts...), nil
}

// inService commits operations below a service's prefix, and in the same
// transaction gives the service its virtual address if it has none.
func (s *Store) inService(ctx context.Context, name policy.ServiceName, conditions []clientv3.Cmp, ops []clientv3.Op) error {
	if s.hasVirtual(name) {
		err := s.commit(ctx, append(conditions, exists(s.keys.virtual(name))), ops)
		if err == errRace { //nolint:errorlint // never wrapped
			return s.recheckVirtual(ctx, name)
		}
		return err
	}
	// One at a time in this process: else n new services at once would make n²
	// attempts. Other processes are told apart by the transaction.
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	more, alloc, err := s.allocate(ctx, name)
	if err != nil {
		return err
	}
	return s.commit(ctx, append(conditions, more...), append(alloc, ops...))
}

// recheckVirtual says errRace, after reading everything again if a service has
// lost its virtual address and this process does not know yet.
func (s *Store) recheckVirtual(ctx context.Context, name policy.ServiceName) error {
	_, revision, err := s.get(ctx, s.keys.virtual(name))
	if err == nil && revision == 0 {
		err = s.load(ctx)
	}
	if err != nil {
		return err
	}
	return errRace
}

func (s *Store) hasVirtual(name policy.ServiceName) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc := s.model.services[name]
	return svc != nil && svc.virtual != 0
}

// allocate gives the conditions and operations that give a service its virtual
// address: the one after the last given out.
func (s *Store) allocate(ctx context.Context, name policy.ServiceName) ([]clientv3.Cmp, []clientv3.Op, error) {
	own := s.keys.virtual(name)
	resp, err := s.client.Txn(ctx).Then(clientv3.OpGet(own), clientv3.OpGet(s.keys.virtualLast())).Commit()
	if err != nil {
		return nil, nil, explain(err)
	}
	if len(resp.Responses[0].GetResponseRange().Kvs) > 0 {
		return []clientv3.Cmp{exists(own)}, nil, nil // another was faster
	}
	last, revision := 0, int64(0)
	if kvs := resp.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		revision = kvs[0].ModRevision
		if last, err = strconv.Atoi(string(kvs[0].Value)); err != nil {
			return nil, nil, fmt.Errorf("key %s: %w", s.keys.virtualLast(), err)
		}
	}
	if last >= policy.MaxVirtual {
		return s.inherit(name)
	}
	next := strconv.Itoa(last + 1)
	return []clientv3.Cmp{absent(own), unchanged(s.keys.virtualLast(), revision)},
		[]clientv3.Op{clientv3.OpPut(own, next), clientv3.OpPut(s.keys.virtualLast(), next)}, nil
}

// inherit takes the address of the service that is gone for longest. It is used
// only when every address was given out once: who still holds an old answer of
// the DNS would else reach the wrong service.
func (s *Store) inherit(name policy.ServiceName) ([]clientv3.Cmp, []clientv3.Op, error) {
	s.mu.Lock()
	var oldest policy.ServiceName
	var from *serviceModel
	for n, svc := range s.model.services {
		if svc.empty() && svc.virtual != 0 && (from == nil || svc.revision < from.revision) {
			oldest, from = n, svc
		}
	}
	var index int
	var revision int64
	if from != nil {
		index, revision = from.virtual, from.virtualRev
	}
	s.mu.Unlock()
	if from == nil {
		return nil, nil, fmt.Errorf("%w: all %d virtual addresses are given to services that exist", ErrFull, policy.MaxVirtual)
	}
	was := s.keys.virtual(oldest)
	return []clientv3.Cmp{absent(s.keys.virtual(name)), unchanged(was, revision), noneUnder(s.keys.endpoints(oldest)), noneUnder(s.keys.rules(oldest))},
		[]clientv3.Op{clientv3.OpDelete(was), clientv3.OpPut(s.keys.virtual(name), strconv.Itoa(index))}, nil
}
