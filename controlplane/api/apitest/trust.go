package apitest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// Trust keeps revocations and walks the stages of a rotation when it is told to.
type Trust struct {
	mu       sync.Mutex // guards what follows
	revoked  []policy.Revocation
	rotation *api.RotationView
}

// conflict says that a step cannot be taken.
type conflict string

func (c conflict) Error() string       { return string(c) }
func (c conflict) Is(other error) bool { return other == policy.ErrExists }

// CA implements api.Trust.
func (t *Trust) CA() api.CA {
	t.mu.Lock()
	defer t.mu.Unlock()
	return api.CA{TrustDomain: "weir.local", Rotation: t.rotation, Alarm: 0.33, Certificates: []api.Certified{
		{Kind: api.KindRoot, Name: "CN=Service Mesh Root CA", Fingerprint: "ab", Trusted: true, Signs: true, Begins: 1_700_000_000, Expires: 4_000_000_000},
	}}
}

// Rotate implements api.Trust.
func (t *Trust) Rotate(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.rotation; r != nil && (r.Stage == policy.StageTrust || r.Stage == policy.StageReissue) {
		return conflict("a rotation is under way")
	}
	t.rotation = &api.RotationView{Number: 1, Stage: policy.StageTrust, Old: []string{"ab"}, New: "cd", Behind: []api.ProxyBehind{}, Left: []string{}}
	return nil
}

// GoOn implements api.Trust.
func (t *Trust) GoOn(context.Context) ([]api.ProxyBehind, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.rotation == nil:
		return nil, conflict("no rotation is under way")
	case t.rotation.Stage == policy.StageTrust:
		t.rotation.Stage = policy.StageReissue
	default:
		t.rotation.Stage = policy.StageDone
	}
	return nil, nil
}

// Abort implements api.Trust.
func (t *Trust) Abort(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rotation == nil {
		return conflict("no rotation is under way")
	}
	t.rotation.Stage = policy.StageAborted
	return nil
}

// Revocations implements api.Trust.
func (t *Trust) Revocations() []policy.Revocation {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.revoked)
}

// Revoke implements api.Trust.
func (t *Trust) Revoke(_ context.Context, r policy.Revocation, ttl time.Duration) (policy.Revocation, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r.Since = 1_700_000_000
	r.Until = r.Since + max(ttl, time.Hour).Seconds()
	t.revoked = append(t.revoked, r)
	return r, nil
}

// Lift implements api.Trust.
func (t *Trust) Lift(_ context.Context, id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(t.revoked)
	t.revoked = slices.DeleteFunc(t.revoked, func(r policy.Revocation) bool { return r.ID() == id })
	if len(t.revoked) == n {
		return fmt.Errorf("revocation %q: %w", id, policy.ErrNotFound)
	}
	return nil
}
