package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// Change makes edits as one transaction: all of them or none, and what they
// changed is noted in the history with it. When dryRun is set nothing is stored,
// and the outcome tells what would be. A rule that comes without an id gets one;
// rules that are added stand in the order of their edits. An edit for a resource
// that another of the edits is for is refused, but for those of the settings.
//
// The error is policy.Problems (under "edits[i]" where there are several edits)
// or wraps ErrNotFound, ErrConflict, ErrOwned, policy.ErrStale, ErrTooLarge or what the
// store as such may answer.
func (s *Store) Change(ctx context.Context, edits []policy.Edit, dryRun bool) (policy.Outcome, error) {
	edits = slices.Clone(edits)
	what := fmt.Sprintf("%d changes", len(edits))
	if len(edits) == 1 {
		what = edits[0].String()
	}
	if err := s.prepare(edits); err != nil {
		return policy.Outcome{}, err
	}
	var out policy.Outcome
	var refused error // says itself what it is about
	err := s.write(ctx, what, func(ctx context.Context) error {
		p, err := s.plan(ctx, edits)
		if isRefusal(err) {
			refused = err
		}
		if err != nil {
			return err
		}
		out = policy.Outcome{Differences: p.steps}
		if dryRun {
			return nil
		}
		out.Revision, err = s.carryOut(ctx, p)
		return err
	})
	if err != nil {
		return policy.Outcome{}, cmp.Or(refused, err)
	}
	return out, nil
}

// isRefusal tells whether an edit was refused for what is stored.
func isRefusal(err error) bool {
	return errors.Is(err, policy.ErrNotFound) || errors.Is(err, policy.ErrExists) || errors.Is(err, policy.ErrStale) || errors.Is(err, policy.ErrOwned)
}

// prepare gives ids where they are missing and checks what can be checked
// without what is stored.
func (s *Store) prepare(edits []policy.Edit) error {
	var problems policy.Problems
	seen := map[policy.Ref]bool{}
	for i := range edits {
		e := &edits[i]
		p := s.check(e)
		if seen[e.Ref] && e.Kind != policy.KindConfig {
			p = append(p, policy.Problem{Path: "id", Message: fmt.Sprintf("%s is there twice", e.Ref)})
		}
		seen[e.Ref] = true
		if len(edits) > 1 {
			p = p.Under(fmt.Sprintf("edits[%d]", i))
		}
		problems = append(problems, p...)
	}
	return problems.Err()
}

func (s *Store) check(e *policy.Edit) policy.Problems {
	if e.To == nil {
		return nil // what cannot be named is not found
	}
	if e.ID == "" && e.Kind != policy.KindConfig && e.Kind != policy.KindEndpoint {
		e.ID, e.New = s.cfg.NewID(), true
	}
	to := *e.To
	switch {
	case to.Traffic != nil && e.Kind == policy.KindTrafficRule:
		rule := *to.Traffic
		rule.ID, to.Traffic = e.ID, &rule
	case to.Security != nil && e.Kind == policy.KindSecurityRule:
		rule := *to.Security
		rule.ID, to.Security = e.ID, &rule
	case to.Endpoint != nil && e.Kind == policy.KindEndpoint:
	case to.Settings != nil && e.Kind == policy.KindConfig:
	default:
		return policy.Problems{{Path: "kind", Message: fmt.Sprintf("the value is not one of a %s", e.Kind)}}
	}
	e.To = &to
	problems := to.Validate()
	if e.Kind != policy.KindEndpoint { // which names itself
		problems = append(e.Ref.Validate(), problems...)
	}
	return problems
}

// plan is what edits come to, worked out on what was stored when they were read.
type plan struct {
	keys  []string // those written, in the order of their edits
	have  map[string]stored
	then  map[string]stored // Value is nil for what is removed
	refs  map[string]policy.Ref
	steps []policy.Difference
	when  []clientv3.Cmp // what else must hold

	file    *File // nil for none
	fileRev int64
}

// newPlan reads keys and begins a plan on them.
func (s *Store) newPlan(ctx context.Context, keys []string) (*plan, map[string]*mvccpb.KeyValue, error) {
	p := &plan{have: map[string]stored{}, then: map[string]stored{}, refs: map[string]policy.Ref{}}
	kvs, err := s.getAll(ctx, append(slices.Clip(keys), s.keys.file()))
	if err != nil {
		return nil, nil, err
	}
	if kv := kvs[s.keys.file()]; kv != nil {
		p.fileRev = kv.ModRevision
		if p.file, err = readFile(kv.Value); err != nil {
			return nil, nil, err
		}
	}
	return p, kvs, nil
}

func (s *Store) plan(ctx context.Context, edits []policy.Edit) (*plan, error) {
	keys := make([]string, len(edits))
	for i := range edits {
		if keys[i] = s.keys.resource(edits[i].Ref); keys[i] == "" {
			return nil, fmt.Errorf("%s: %w", edits[i].Ref, ErrNotFound) // a name or id that cannot be
		}
	}
	p, kvs, err := s.newPlan(ctx, keys)
	if err != nil {
		return nil, err
	}
	for i := range edits {
		if err := p.add(&edits[i], keys[i], i, kvs[keys[i]]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// add takes one more edit in.
func (p *plan) add(e *policy.Edit, key string, index int, kv *mvccpb.KeyValue) error {
	have, err := readResource(e.Ref, kv)
	if err != nil {
		return err
	}
	was, again := p.then[key]
	if !again {
		was = have
	}
	made, err := e.Make(p.shown(e.Kind, was.Stored))
	if err != nil {
		return err
	}
	next := was
	next.Value = made
	if was.Version == 0 {
		next.Index = index
	}
	// A proxy stays known through a registration at the same address.
	next.meshed = was.meshed && made != nil && was.Value != nil && was.Value.Endpoint != nil && was.Value.Endpoint.IP == made.Endpoint.IP
	step, err := p.compare(e.Ref, was.Value, made)
	if err == nil {
		err = p.notTheFiles(e, &was, step)
	}
	if err != nil {
		return err
	}
	p.steps = append(p.steps, step)
	// What is the same is not written, but for a registration, which is also
	// news of the endpoint.
	if !again && step.Action == policy.Unchanged && (e.Kind != policy.KindEndpoint || e.Quiet) {
		return nil
	}
	p.write(key, e.Ref, have, next)
	return nil
}

// carryOut stores a plan, if what it was worked out on still holds. The revision
// is 0 when there was nothing to store.
func (s *Store) carryOut(ctx context.Context, p *plan) (int64, error) {
	if len(p.keys) == 0 {
		return 0, nil
	}
	conditions := slices.Clone(p.when)
	var ops []clientv3.Op
	services := map[policy.ServiceName]struct{}{}
	var note []change
	for _, key := range p.keys {
		have, then, ref := p.have[key], p.then[key], p.refs[key]
		conditions = append(conditions, unchanged(key, have.Version))
		if ref.Kind == policy.KindConfig {
			conditions = append(conditions, unchanged(s.keys.file(), p.fileRev))
		}
		c, err := p.noteOf(ref, have, then)
		if err != nil {
			return 0, err
		}
		note = append(note, c...)
		if then.Value == nil {
			ops = append(ops, clientv3.OpDelete(key))
			continue
		}
		op, err := put(key, then.record())
		if err != nil {
			return 0, err
		}
		ops = append(ops, op)
		if ref.Service != "" {
			services[ref.Name()] = struct{}{}
		}
	}
	more, err := s.noteOps(ctx, note, operators)
	if err != nil {
		return 0, err
	}
	commit := func() (int64, error) {
		return s.inServices(ctx, slices.Collect(maps.Keys(services)), conditions, append(ops, more...))
	}
	if p.removesOnly() {
		commit = func() (int64, error) { return s.transact(ctx, conditions, append(ops, more...)) }
	}
	revision, err := commit()
	if err != nil {
		return 0, s.tooLarge(err, len(ops))
	}
	s.noted(ctx, more)
	return revision, nil
}

// removesOnly tells that a plan makes room.
func (p *plan) removesOnly() bool {
	for _, key := range p.keys {
		if p.then[key].Value != nil {
			return false
		}
	}
	return true
}

// tooLarge says what to do about a transaction that etcd does not take.
func (s *Store) tooLarge(err error, n int) error {
	if !errors.Is(err, ErrTooLarge) || s.server != nil {
		return err
	}
	return fmt.Errorf("%d changes at once: %w; etcd started with --max-txn-ops=%d --max-request-bytes=%d takes more, else make fewer at once",
		n, err, maxTxnOps, maxRequestBytes)
}
