package store

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// Rollback makes rules, settings and registered endpoints what they were after a
// revision, as one transaction, which is a revision itself. Endpoints that are a
// proxy's or the mesh file's, then or now, are left alone, and so is the status of
// the others; what the file sets stays in force over the settings. When
// dryRun is set nothing is stored, and the outcome tells what would be. The error
// is as for Change, or wraps ErrForgotten; ErrNotFound for a revision that is yet
// to come.
func (s *Store) Rollback(ctx context.Context, revision int64, dryRun bool) (policy.Outcome, error) {
	if _, ok := ctx.Value(authorKey{}).(policy.Author); !ok {
		ctx = WithAuthor(ctx, policy.Author{Who: policy.ByRollback, Name: fmt.Sprintf("to revision %d", revision)})
	}
	var out policy.Outcome
	err := s.write(ctx, fmt.Sprintf("roll back to revision %d", revision), func(ctx context.Context) error {
		p, err := s.planRollback(ctx, revision)
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
	return out, err
}

// planRollback takes back what operators changed since: the first change of a
// resource tells what it was.
func (s *Store) planRollback(ctx context.Context, revision int64) (*plan, error) {
	resp, err := s.client.Get(ctx, s.keys.settings())
	if err != nil {
		return nil, explain(err)
	}
	if newest := resp.Header.Revision; revision > newest || revision < 0 {
		return nil, fmt.Errorf("%w: the newest is %d", ErrNotFound, newest)
	}
	changes, noneMore, err := s.since(ctx, revision)
	if err != nil {
		return nil, err
	}
	first := map[policy.Ref]change{}
	var refs []policy.Ref
	var keys []string
	for _, c := range changes {
		if _, again := first[c.Ref]; !again {
			first[c.Ref] = c
			refs, keys = append(refs, c.Ref), append(keys, s.keys.resource(c.Ref))
		}
	}
	p, kvs, err := s.newPlan(ctx, keys)
	if err != nil {
		return nil, err
	}
	p.when = []clientv3.Cmp{noneMore} // one made meanwhile is to be taken back too
	for i, ref := range refs {
		now, err := readResource(ref, kvs[keys[i]])
		if err != nil {
			return nil, err
		}
		if was := first[ref]; !was.Leased && now.lease == 0 && !was.File && !now.file {
			if err := p.restore(ref, keys[i], now, was); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// restore makes a resource what it was before a change.
func (p *plan) restore(ref policy.Ref, key string, now stored, was change) error {
	if p.file != nil && was.Base != nil { // what lies over it is the file's
		was.Before = &policy.Resource{Settings: was.Base}
	}
	step, err := p.compare(ref, now.Value, was.Before)
	if err != nil {
		return err
	}
	if step.Action == policy.Unchanged {
		if now.Value == nil || now.Value.Traffic == nil && now.Value.Security == nil || now.place == was.Place {
			return nil
		}
		step.Action = policy.Changed // it was removed and added again: it stands elsewhere
	}
	then := now
	then.Value, then.place = was.Before, was.Place
	if was.Before != nil && was.Before.Endpoint != nil {
		// How it was then says nothing of how it is.
		e := *was.Before.Endpoint
		e.Status = policy.Healthy
		if now.Value != nil {
			e.Status, e.LastSeen = now.Value.Endpoint.Status, now.Value.Endpoint.LastSeen
		}
		then.Value = &policy.Resource{Endpoint: &e}
	}
	p.steps = append(p.steps, step)
	p.write(key, ref, now, then)
	return nil
}

// write notes what is to be stored.
func (p *plan) write(key string, ref policy.Ref, have, then stored) {
	if _, again := p.then[key]; !again {
		p.keys = append(p.keys, key)
		p.have[key], p.refs[key] = have, ref
	}
	p.then[key] = then
}
