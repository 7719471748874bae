// Package identity gets, renews and presents this workload's certificate, and tells who a TLS peer is.
// It leaves to its user which connections are encrypted and what a peer may do.
package identity

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// ALPN is the protocol by which the mesh's TLS is told from an app's own.
const ALPN = "weir"

// Config says who this workload is and where it gets its certificate.
type Config struct {
	Control   []string // addresses of the control plane, host:port, tried in turn; at least one
	TokenFile string   // holds the join token; read anew at every use, so that it may be replaced
	// AccountTokenFile holds the token of a Kubernetes service account, to join with
	// in the place of a join token; read anew at every use.
	AccountTokenFile string
	// ControlCAFile holds the control plane's roots, PEM, by which it is known at
	// first contact where no join token says so.
	ControlCAFile string
	// Source brings the identity in the place of the control plane; it is neither
	// renewed nor kept in CacheDir then. nil is none.
	Source Follow
	// Template reads the SPIFFE IDs where there is a Source; "" is
	// policy.DefaultIDTemplate.
	Template policy.IDTemplate
	Service  policy.ServiceName // who we are to be
	// CacheDir keeps key, certificate and trust bundle in one file, 0600, so
	// that a restart needs no control plane. "" keeps them in memory only.
	CacheDir string
	// Dial opens connections to the control plane; nil is a plain net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Now  func() time.Time // nil is time.Now
	// OnClock hears what the control plane's clock shows when it answers; nil is
	// nobody.
	OnClock func(control time.Time)
	Rand    func() float64 // in [0,1), spreads renewals and retries; nil is math/rand/v2
	Log     *zap.Logger    // nil logs nothing
}

// Identity is this workload's certificate and what it trusts. The methods are
// safe for concurrent use; those that need a certificate work after Start.
type Identity struct {
	cfg     Config
	wake    chan struct{} // capacity 1: renew now
	clients clientConfigs
	fresh   bool // Start has joined; set before Run

	now     atomic.Pointer[held] // nil before Start; replaced under mu, never changed
	revoked atomic.Pointer[policy.Revoked]

	joinKey crypto.Signer // of a join that was not answered yet; of Start and Run

	mu                 sync.Mutex          // held while now and the cache file are replaced; guards what follows
	signing            string              // fingerprint of the root that was told to sign
	sourced, meshRoots []*x509.Certificate // with a Source: its roots, and those of SetBundle
}

// New checks the configuration. It neither reads files nor connects.
func New(cfg Config) (*Identity, error) {
	if len(cfg.Control) == 0 {
		return nil, errors.New("identity: no address of a control plane")
	}
	if err := cfg.Service.Validate(); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Float64
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Identity{cfg: cfg, wake: make(chan struct{}, 1)}, nil
}

// SetBundle replaces the roots to trust (PEM) for handshakes from now on, and
// keeps them in the cache. Sessions made under other roots are not resumed. A
// bundle that holds anything but certificate authorities is refused and
// the old stays; an empty one changes nothing. When our own certificate does not
// stand under the new roots, Run renews it at once.
func (i *Identity) SetBundle(pem []byte) error {
	if len(pem) == 0 {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	old := i.now.Load()
	if old == nil {
		return errors.New("set trust bundle: there is no certificate yet")
	}
	if i.cfg.Source != nil {
		return i.addMeshRoots(old, pem)
	}
	t, err := newTrust(pem, old.trust.domain)
	if err != nil {
		return fmt.Errorf("set trust bundle: %w", err)
	}
	if t.id == old.trust.id {
		return nil
	}
	next := &held{cert: old.cert, chain: old.chain, trust: t}
	i.replaceLocked(next)
	i.cfg.Log.Info("trust bundle replaced", zap.Int("roots", len(t.roots)))
	if err := next.isFor(i.cfg.Service, i.cfg.Now()); err != nil {
		i.cfg.Log.Warn("our certificate does not stand under the new trust bundle; renewing it", zap.Error(err))
		i.wakeUp()
	}
	return nil
}

func (i *Identity) wakeUp() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// SignedUnder tells under which root certificates are signed now, by its fingerprint;
// "" says nothing. When ours stands under another, Run renews it soon: within
// spread, by chance, so that not all proxies of a mesh do so at once.
func (i *Identity) SignedUnder(fingerprint string, spread time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	h := i.now.Load()
	if fingerprint == "" || fingerprint == i.signing || h == nil {
		return
	}
	i.signing = fingerprint
	if h.root() == fingerprint {
		return
	}
	i.cfg.Log.Info("certificates are signed under another root now; ours will be renewed", zap.String("root", fingerprint))
	time.AfterFunc(time.Duration(float64(spread)*i.cfg.Rand()), i.wakeUp)
}

// Certificate tells of the present certificate; false before there is one.
func (i *Identity) Certificate() (c Certificate, ok bool) {
	h := i.now.Load()
	if h == nil {
		return c, false
	}
	leaf := h.cert.Leaf
	c = Certificate{Serial: serialOf(leaf), Begins: leaf.NotBefore, Ends: leaf.NotAfter, Root: h.root()}
	for _, r := range h.trust.roots {
		c.Trusted = append(c.Trusted, fingerprint(r))
		if end := r.NotAfter; c.TrustEnds.IsZero() || end.Before(c.TrustEnds) {
			c.TrustEnds = end
		}
	}
	return c, true
}

// Certificate is what a workload has, and what it trusts. Fingerprints are hex
// SHA-256 of public keys (SubjectPublicKeyInfo).
type Certificate struct {
	Serial       string // hexadecimal
	Begins, Ends time.Time
	Root         string   // above the certificate
	Trusted      []string // in the order of the bundle
	TrustEnds    time.Time
}

// replaceLocked puts a new value in force, and in the cache. A cache that cannot
// be written costs only the restart without a control plane.
func (i *Identity) replaceLocked(h *held) {
	i.now.Store(h)
	if i.cfg.CacheDir == "" {
		return
	}
	if err := writeCache(i.cfg.CacheDir, h); err != nil {
		i.cfg.Log.Warn("certificate is not kept for a restart", zap.Error(err))
	}
}

// Expiry is when the present certificate ends; zero before there is one.
func (i *Identity) Expiry() time.Time {
	if h := i.now.Load(); h != nil {
		return h.cert.Leaf.NotAfter
	}
	return time.Time{}
}

// TrustDomain is the trust domain of our certificate; "" before there is one.
func (i *Identity) TrustDomain() string {
	if h := i.now.Load(); h != nil {
		return h.trust.domain.Name()
	}
	return ""
}
