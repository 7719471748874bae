package apitest

import (
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

// NewToken implements api.Authority.
func (Authority) NewToken(name policy.ServiceName, ttl time.Duration) (string, time.Time, error) {
	if ttl == 0 {
		ttl = 24 * time.Hour
	}
	return "weir1." + name.String(), time.Unix(1_700_000_000, 0).Add(ttl), nil
}
