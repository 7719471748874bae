package publish

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// Hello is what a proxy says of itself when it attaches. Service is taken from
// its certificate, so the endpoints can be of no other.
type Hello struct {
	ProxyID   string
	Version   string
	Control   string // the control plane's address, as the proxy was told it
	Service   policy.ServiceName
	Addresses []netip.Addr
	Endpoints []policy.Target
}

// Lease keeps a proxy's endpoints alive. Its methods are called one at a time.
type Lease interface {
	// TTL is how long the endpoints stay without KeepAlive.
	TTL() time.Duration
	// KeepAlive renews. ErrLeaseLost, wrapped or not, ends the proxy's stream, so
	// that it attaches anew; after another error it is tried again at the
	// proxy's next message.
	KeepAlive(ctx context.Context) error
	// Close removes the endpoints at once.
	Close(ctx context.Context) error
}

// ErrLeaseLost says that a lease has expired or was revoked.
var ErrLeaseLost = errors.New("the lease is lost")
