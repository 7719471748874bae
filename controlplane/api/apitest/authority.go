package apitest

import (
	"context"
	"fmt"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// Authority gives out texts that tell how it was asked; it signs nothing.
type Authority struct{}

// RootPEM implements api.Authority.
func (Authority) RootPEM() []byte { return []byte("ROOT\n") }

// IssueWithKey implements api.Authority.
func (Authority) IssueWithKey(name policy.ServiceName) (key, chain []byte, err error) {
	return []byte("KEY"), []byte("CHAIN " + name.String()), nil
}

// IssueForCSR implements api.Authority.
func (Authority) IssueForCSR(name policy.ServiceName, _ []byte) ([]byte, error) {
	return []byte("CHAIN " + name.String()), nil
}

// CreateToken implements api.Authority.
func (Authority) CreateToken(_ context.Context, name policy.ServiceName, ttl time.Duration, uses int) (policy.JoinToken, string, error) {
	if ttl == 0 {
		ttl = 24 * time.Hour
	}
	t := policy.JoinToken{ID: "t1", Service: name, Created: time.Unix(1_700_000_000, 0), Expires: time.Unix(1_700_000_000, 0).Add(ttl), Uses: uses}
	return t, "weir1." + name.String(), nil
}

// Tokens implements api.Authority: one of each state.
func (Authority) Tokens(context.Context) ([]policy.JoinToken, error) {
	t := policy.JoinToken{ID: "t1", Service: policy.ServiceName{Namespace: "default", Name: "web"}, Created: time.Unix(1_700_000_000, 0), Expires: time.Unix(1_700_086_400, 0)}
	used, revoked := t, t
	used.ID, used.Uses, used.Used = "t2", 3, 3
	revoked.ID, revoked.Uses, revoked.Revoked = "t3", 2, time.Unix(1_700_000_060, 0)
	return []policy.JoinToken{t, used, revoked}, nil
}

// RevokeToken implements api.Authority.
func (Authority) RevokeToken(_ context.Context, id string) error {
	if id != "t1" {
		return fmt.Errorf("join token %s: %w", id, policy.ErrNotFound)
	}
	return nil
}
