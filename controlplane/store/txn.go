package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// maxRaces bounds how often a write is tried again that lost against another.
// Each loss is another's success, so the mesh as a whole goes on.
const maxRaces = 100

// errRace is an attempt's "the world has moved, look again".
var errRace = fmt.Errorf("%w: others write the same all the time", ErrUnavailable)

// commit does the operations if the conditions hold, waits until the State holds
// them and gives their revision. What is acknowledged is on etcd's disk.
func (s *Store) commit(ctx context.Context, conditions []clientv3.Cmp, ops []clientv3.Op) (int64, error) {
	if err := s.server.space(); err != nil {
		return 0, err
	}
	return s.transact(ctx, conditions, ops)
}

// transact is commit on a disk of any fill: to remove something must be possible.
func (s *Store) transact(ctx context.Context, conditions []clientv3.Cmp, ops []clientv3.Op) (int64, error) {
	resp, err := s.client.Txn(ctx).If(conditions...).Then(append(ops, clientv3.OpPut(s.keys.head(), ""))...).Commit()
	if err != nil {
		return 0, explain(err)
	}
	if !resp.Succeeded {
		return 0, errRace
	}
	return resp.Header.Revision, s.await(ctx, resp.Header.Revision)
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
	limit := requestTimeout
	if s.server != nil { // nothing but work takes time there, and thousands of changes at once are much
		limit = embeddedTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := s.untilWon(ctx, attempt)
	if s.server != nil && errors.Is(err, rpctypes.ErrNoSpace) {
		if err = s.relieve(ctx); err == nil {
			err = s.untilWon(ctx, attempt)
		}
	}
	if err != nil && s.server.failure() != nil {
		err = fmt.Errorf("%w: %w", ErrUnavailable, s.server.failure())
	}
	if errors.Is(err, ErrUnavailable) && s.server == nil {
		err = fmt.Errorf("%w; whether it was stored is not known: look before you try again", s.last.explain(err))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (s *Store) untilWon(ctx context.Context, attempt func(ctx context.Context) error) error {
	err := attempt(ctx)
	if err == errRace { //nolint:errorlint // never wrapped
		err = s.inTurn(ctx, attempt)
	}
	return err
}

// inTurn repeats an attempt that lost, one at a time in this process: else n
// writers of one thing would make n² attempts. Other processes are raced with.
func (s *Store) inTurn(ctx context.Context, attempt func(ctx context.Context) error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errRace, ctx.Err())
	}
	var err error
	for range maxRaces {
		if err = attempt(ctx); err != errRace { //nolint:errorlint // never wrapped
			break
		}
	}
	return err
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

// readsPerTxn is how many keys are read at once: etcd takes 128 operations in a
// transaction unless it is told otherwise.
const readsPerTxn = 100

// getAll reads keys; those that do not exist are not in the answer. More than
// readsPerTxn may be of different revisions, in a cluster.
func (s *Store) getAll(ctx context.Context, keys []string) (map[string]*mvccpb.KeyValue, error) {
	out := make(map[string]*mvccpb.KeyValue, len(keys))
	most := readsPerTxn
	if s.server != nil {
		most = maxTxnOps
	}
	for part := range slices.Chunk(keys, most) {
		ops := make([]clientv3.Op, len(part))
		for i, key := range part {
			ops[i] = clientv3.OpGet(key)
		}
		resp, err := s.client.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return nil, explain(err)
		}
		for i, r := range resp.Responses {
			if kvs := r.GetResponseRange().Kvs; len(kvs) > 0 {
				out[part[i]] = kvs[0]
			}
		}
	}
	return out, nil
}

// inServices commits operations below the prefixes of services, and in the same
// transaction gives those their virtual addresses that have none.
func (s *Store) inServices(ctx context.Context, names []policy.ServiceName, conditions []clientv3.Cmp, ops []clientv3.Op) (int64, error) {
	var fresh []policy.ServiceName
	conditions = slices.Clip(conditions)
	for _, name := range names {
		if s.hasVirtual(name) {
			conditions = append(conditions, exists(s.keys.virtual(name)))
		} else {
			fresh = append(fresh, name)
		}
	}
	if len(fresh) == 0 {
		revision, err := s.commit(ctx, conditions, ops)
		if err == errRace { //nolint:errorlint // never wrapped
			return 0, s.recheckVirtual(ctx, names)
		}
		return revision, err
	}
	// One at a time in this process: else n new services at once would make n²
	// attempts. Other processes are told apart by the transaction.
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	if slices.ContainsFunc(fresh, s.hasVirtual) {
		return 0, errRace // another was faster: now it needs no turn
	}
	slices.SortFunc(fresh, func(a, b policy.ServiceName) int { return strings.Compare(a.String(), b.String()) })
	more, alloc, err := s.allocate(ctx, fresh)
	if err != nil {
		return 0, err
	}
	return s.commit(ctx, append(conditions, more...), append(alloc, ops...))
}

// recheckVirtual says errRace, after reading everything again if a service has
// lost its virtual address and this process does not know yet.
func (s *Store) recheckVirtual(ctx context.Context, names []policy.ServiceName) error {
	keys := make([]string, len(names))
	for i, name := range names {
		keys[i] = s.keys.virtual(name)
	}
	kvs, err := s.getAll(ctx, keys)
	if err == nil && len(kvs) < len(keys) {
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

// allocate gives the conditions and operations that give services their virtual
// addresses: those after the last given out, and when there are no more of
// these, those of services that are gone.
func (s *Store) allocate(ctx context.Context, names []policy.ServiceName) (conditions []clientv3.Cmp, ops []clientv3.Op, err error) {
	keys := []string{s.keys.virtualLast()}
	for _, name := range names {
		keys = append(keys, s.keys.virtual(name))
	}
	kvs, err := s.getAll(ctx, keys)
	if err != nil {
		return nil, nil, err
	}
	last, revision := 0, int64(0)
	if kv := kvs[s.keys.virtualLast()]; kv != nil {
		revision = kv.ModRevision
		if last, err = strconv.Atoi(string(kv.Value)); err != nil {
			return nil, nil, fmt.Errorf("key %s: %w", s.keys.virtualLast(), err)
		}
	}
	first, heirs := last, []policy.ServiceName{}
	for _, name := range names {
		switch own := s.keys.virtual(name); {
		case kvs[own] != nil: // another was faster
			conditions = append(conditions, exists(own))
		case last < policy.MaxVirtual:
			last++
			conditions = append(conditions, absent(own))
			ops = append(ops, clientv3.OpPut(own, strconv.Itoa(last)))
		default:
			heirs = append(heirs, name)
		}
	}
	if last > first {
		conditions = append(conditions, unchanged(s.keys.virtualLast(), revision))
		ops = append(ops, clientv3.OpPut(s.keys.virtualLast(), strconv.Itoa(last)))
	}
	if len(heirs) == 0 {
		return conditions, ops, nil
	}
	more, inherited, err := s.inherit(heirs)
	return append(conditions, more...), append(ops, inherited...), err
}

// inherit takes the addresses of the services that are gone for longest. It is
// used only when every address was given out once: who still holds an old
// answer of the DNS would else reach the wrong service.
func (s *Store) inherit(names []policy.ServiceName) (conditions []clientv3.Cmp, ops []clientv3.Op, err error) {
	type gone struct {
		name policy.ServiceName
		serviceModel
	}
	var free []gone
	s.mu.Lock()
	for n, svc := range s.model.services {
		if svc.empty() && svc.virtual != 0 && !slices.Contains(names, n) {
			free = append(free, gone{n, *svc})
		}
	}
	s.mu.Unlock()
	if len(free) < len(names) {
		return nil, nil, fmt.Errorf("%w: all %d virtual addresses are given to services that exist", ErrFull, policy.MaxVirtual)
	}
	slices.SortFunc(free, func(a, b gone) int { return cmp.Compare(a.revision, b.revision) })
	for i, name := range names {
		from := free[i]
		was := s.keys.virtual(from.name)
		conditions = append(conditions, absent(s.keys.virtual(name)), unchanged(was, from.virtualRev),
			noneUnder(s.keys.endpoints(from.name)), noneUnder(s.keys.rules(from.name)))
		ops = append(ops, clientv3.OpDelete(was), clientv3.OpPut(s.keys.virtual(name), strconv.Itoa(from.virtual)))
	}
	return conditions, ops, nil
}
