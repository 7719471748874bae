package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// revocationRecord is a revocation as stored; its key says what is revoked.
type revocationRecord struct {
	Since  float64 `json:"since"`
	Until  float64 `json:"until"`
	Reason string  `json:"reason,omitempty"`
}

// revocation reads what is stored under an id.
func (r revocationRecord) revocation(id string) (policy.Revocation, error) {
	out := policy.Revocation{Since: r.Since, Until: r.Until, Reason: r.Reason}
	kind, rest, _ := strings.Cut(id, ".")
	switch kind {
	case "serial":
		out.Serial = rest
	case "identity":
		out.Identity.Namespace, out.Identity.Name, _ = strings.Cut(rest, ".")
	}
	if p := out.Validate(); len(p) > 0 {
		return out, p
	}
	return out, nil
}

// Revoke stores a revocation, in the place of one of the same. The error is
// policy.Problems when it is not valid or there are too many, and a revocation that
// exists is not cut short: lift it.
func (s *Store) Revoke(ctx context.Context, r policy.Revocation) error {
	if p := r.Validate(); len(p) > 0 {
		return p
	}
	key := s.keys.revoked(r.ID())
	return s.write(ctx, "revoke "+r.String(), func(ctx context.Context) error {
		have := s.State().Revoked
		if len(have) >= policy.MaxRevocations && !slices.ContainsFunc(have, func(h policy.Revocation) bool { return h.ID() == r.ID() }) {
			return policy.Problems{{Path: "revocations", Message: fmt.Sprintf("%d hold already, and more than that are not kept; lift some, or rotate the root (weir ca rotate)", len(have))}}
		}
		op, err := put(key, revocationRecord{r.Since, r.Until, r.Reason})
		if err != nil {
			return err
		}
		_, err = s.commit(ctx, nil, []clientv3.Op{op})
		return err
	})
}

// Lift removes a revocation, by its id. ErrNotFound when there is none.
func (s *Store) Lift(ctx context.Context, id string) error {
	if !validID(id) {
		return fmt.Errorf("revocation %q: %w", id, ErrNotFound)
	}
	return s.write(ctx, "lift revocation "+id, func(ctx context.Context) error {
		_, err := s.transact(ctx, []clientv3.Cmp{exists(s.keys.revoked(id))}, []clientv3.Op{clientv3.OpDelete(s.keys.revoked(id))})
		if err == errRace { //nolint:errorlint // never wrapped
			return ErrNotFound
		}
		return err
	})
}

// SetRoots replaces what is kept of the roots, if it is still as it was read.
// ErrConflict when it is not: another was faster.
func (s *Store) SetRoots(ctx context.Context, r policy.Roots) error {
	return s.write(ctx, "roots", func(ctx context.Context) error {
		op, err := put(s.keys.roots(), r)
		if err != nil {
			return err
		}
		_, err = s.commit(ctx, []clientv3.Cmp{unchanged(s.keys.roots(), r.Revision)}, []clientv3.Op{op})
		if err == errRace { //nolint:errorlint // never wrapped
			return fmt.Errorf("%w: another control plane changed them", ErrConflict)
		}
		return err
	})
}

// Replace puts another value in the place of a secret. ErrConflict when the value
// is not old any more.
func (s *Store) Replace(ctx context.Context, key string, old, value []byte) error {
	path := s.keys.secret(key)
	return s.write(ctx, "secret "+key, func(ctx context.Context) error {
		have, revision, err := s.get(ctx, path)
		switch {
		case err != nil:
			return err
		case !bytes.Equal(have, old):
			return fmt.Errorf("%w: it is another by now", ErrConflict)
		}
		resp, err := s.client.Txn(ctx).If(unchanged(path, revision)).Then(clientv3.OpPut(path, string(value))).Commit()
		if err == nil && !resp.Succeeded {
			return errRace
		}
		if err != nil {
			return explain(err)
		}
		return nil
	})
}
