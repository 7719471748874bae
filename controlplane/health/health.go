// Package health checks endpoints and reports what it found. It leaves storing
// the outcome, and what is done about an unhealthy endpoint, to others.
package health

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// Config is what a Checker needs. The funcs are called from several goroutines.
type Config struct {
	// Targets lists the endpoints to check, each with the status that is stored.
	// It is called at the start, after Changed and once in five seconds.
	Targets func() []policy.Target
	// Report takes each result, on the goroutine of the check: while it blocks,
	// one of Concurrency is used up. Store what has Changed set; the status
	// compared with is that of the last Targets, so a write that failed is
	// asked for again at the next check.
	Report func(ctx context.Context, target policy.Target, result Result)

	// The settings, asked for anew at each use. Enabled may be nil, which is true:
	// while it is false nothing is checked and results are forgotten.
	Enabled  func() bool
	Interval func() time.Duration // nil or 0 is 30 s; from the start of one check to that of the next, ±10 %; a sixth of it while an endpoint is unhealthy or in doubt
	Timeout  func() time.Duration // nil or 0 is 5 s; for a whole check

	Thresholds func() Thresholds // nil is one result

	// TLS gives the configuration for meshed endpoints: the control plane's
	// certificate and the roots. nil, or a nil answer, leaves meshed endpoints
	// unchecked. Where it sets neither ServerName nor InsecureSkipVerify, the
	// endpoint's certificate must be for the DNS name "<namespace>.<service>".
	TLS func() *tls.Config
	// VerifyPeer may check further that the peer is the service it should be.
	VerifyPeer func(state tls.ConnectionState, want policy.ServiceName) error
	// Dial may be nil, which is a plain dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	Concurrency int              // checks at the same time; 0 is 64
	Now         func() time.Time // nil is time.Now
	Rand        func() float64   // in [0,1); nil is math/rand/v2
	Log         *zap.Logger      // may be nil
}

// Result is the outcome of one check.
type Result struct {
	At     time.Time     // when the check started
	Took   time.Duration // how long it took
	Check  string        // "http", "grpc", "tcp"
	Passed bool          // what this one check found
	// Unclear tells that it could not find out: the state stays as it is.
	Unclear bool
	Detail  string // "200 OK"; or what failed, in which step
	// Healthy is the endpoint's state after the thresholds, and Changed tells that
	// it is not the status which Targets gave.
	Healthy bool
	Changed bool
}

// Thresholds are how many results in a row turn an endpoint; less than 1 is 1.
type Thresholds struct {
	Unhealthy int // failures
	Healthy   int // passes
}

// Status is what is known of one endpoint.
type Status struct {
	Healthy bool
	Since   time.Time // when Healthy last turned; zero when no check turned it
	Next    time.Time // when the next check is due; past while one is under way
	History []Result  // the newest last, 100 at most
}
