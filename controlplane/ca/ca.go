// Package ca is the mesh's certificate authority: it keeps the root, signs, and
// makes and checks join tokens. Where its secrets are kept, who may ask for a
// token and how certificates are used are left to others.
package ca

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// What callers branch on. Errors wrap these.
var (
	// ErrName says that a service cannot have a certificate or token under the
	// name asked for.
	ErrName = errors.New("name")
	// ErrCSR says that a certificate signing request is not one, is not signed
	// by its key, has a weak key, or asks for the identity of another.
	ErrCSR = errors.New("certificate signing request")
	// ErrToken says that a join token was refused. ErrTokenMalformed,
	// ErrTokenSignature, ErrTokenExpired and ErrTokenDomain say why.
	ErrToken          = errors.New("join token")
	ErrTokenMalformed = fmt.Errorf("%w: malformed", ErrToken)
	ErrTokenSignature = fmt.Errorf("%w: not signed by this mesh", ErrToken)
	ErrTokenExpired   = fmt.Errorf("%w: expired", ErrToken)
	ErrTokenDomain    = fmt.Errorf("%w: of another trust domain", ErrToken)
	// ErrPeer says that a caller has no identity of this mesh.
	ErrPeer = errors.New("peer")
	// ErrRevoked says that an identity, a certificate or the token that it was got
	// with was revoked.
	ErrRevoked = errors.New("revoked")
	// ErrRotation says that a step of a rotation cannot be taken as things are.
	ErrRotation = errors.New("rotation")
)

// Keeper keeps secrets: the first value made for a key is the value for every
// process that shares the keeper.
type Keeper interface {
	GetOrCreate(ctx context.Context, key string, make func() ([]byte, error)) ([]byte, error)
	// Get gives nil where nothing is kept.
	Get(ctx context.Context, key string) ([]byte, error)
	// Replace puts another value in the place of old, if it is still there.
	Replace(ctx context.Context, key string, old, value []byte) error
}

// Lifetimes of certificates.
const (
	DefaultLeafTTL = 24 * time.Hour
	MaxLeafTTL     = 30 * 24 * time.Hour
	MinLeafTTL     = 2 * time.Second // half of it is a renewal a second
	RootTTL        = 365 * 24 * time.Hour
	// backdate allows for clocks that are behind: a proxy whose clock is five
	// minutes late is to take what was signed just now, and its peers' too.
	backdate = 10 * time.Minute
)

// Config says whose authority it is.
type Config struct {
	// TrustDomain is the name of the mesh in SPIFFE IDs ("weir.local").
	TrustDomain string
	// LeafTTL is how long certificates are valid; DefaultLeafTTL when zero, at
	// most MaxLeafTTL and at least MinLeafTTL.
	LeafTTL time.Duration
	// Hosts are names and addresses that the control plane's own certificate has
	// besides control.weir-system, localhost, 127.0.0.1 and ::1.
	Hosts []string
	// Keep keeps the roots with their keys, and the secret of the tokens.
	Keep Keeper
	// Tokens keeps records of join tokens; without it none can be made.
	Tokens Tokens
	// Account tells whether the service-account token of a Kubernetes pod entitles
	// to a service's identity; its refusals wrap ErrKubernetes. nil takes none.
	Account func(ctx context.Context, token string, want policy.ServiceName) error
	// Files are those of a certificate authority of one's own; the zero value is the
	// mesh's own root.
	Files Files
	// Roots is what the store knows of the roots; the zero value at the first start.
	Roots policy.Roots
	// Others gives roots of others that vouch for workloads of this trust domain:
	// they are in Bundle, and certificates under them are taken. nil is none.
	Others func() []*x509.Certificate
	// IDs reads the SPIFFE IDs of workloads; "" is policy.DefaultIDTemplate. What
	// this authority signs is of the default form.
	IDs policy.IDTemplate
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Log takes refusals and rotations; nil drops them. No token, key or
	// request is logged.
	Log *zap.Logger
}

// Authority signs certificates and tokens. Its methods may be called by many
// goroutines.
type Authority struct {
	cfg     Config
	domain  spiffeid.TrustDomain
	secret  []byte // of the tokens
	revoked atomic.Pointer[revoked]

	turn sync.Mutex // held while the roots are brought up to date

	mu      sync.Mutex // guards what follows
	known   policy.Roots
	made    []*root // oldest first, those trusted and still valid
	foreign []*root // the same, of which others hold the keys
	files   filesState
	own     map[string]*ownCertificate // by the fingerprint of the root above it

	refused map[string]uint64
}

// ownCertificate is the control plane's own.
type ownCertificate struct {
	cert *tls.Certificate
	by   *issuer
}

// New reads the root and the token secret from the keeper, or makes them at the
// first start; or takes the authority of the files. It fails when the kept root is
// of another trust domain, and when nothing that is here can sign.
func New(ctx context.Context, cfg Config) (*Authority, error) {
	cfg.LeafTTL = cmp.Or(cfg.LeafTTL, DefaultLeafTTL)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.LeafTTL < MinLeafTTL || cfg.LeafTTL > MaxLeafTTL {
		return nil, fmt.Errorf("lifetime of certificates: %v is not in %v..%v", cfg.LeafTTL, MinLeafTTL, MaxLeafTTL)
	}
	if cfg.IDs != "" {
		if _, err := policy.ParseIDTemplate(string(cfg.IDs)); err != nil {
			return nil, err
		}
	}
	domain, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	a := &Authority{cfg: cfg, domain: domain, known: cfg.Roots.Clone(), refused: map[string]uint64{}, own: map[string]*ownCertificate{}}
	if a.secret, err = cfg.Keep.GetOrCreate(ctx, "token-secret", newSecret); err != nil {
		return nil, fmt.Errorf("secret of the join tokens: %w", err)
	}
	if len(a.secret) < secretSize {
		return nil, fmt.Errorf("secret of the join tokens: %d bytes are kept, %d are meant", len(a.secret), secretSize)
	}
	if err := a.openFiles(ctx); err != nil {
		return nil, err
	}
	if _, err := a.Rotate(ctx); err != nil {
		return nil, err
	}
	if _, err := a.signer(); err != nil {
		return nil, err
	}
	return a, nil
}

// TrustDomain gives the mesh's name in SPIFFE IDs.
func (a *Authority) TrustDomain() string { return a.domain.Name() }

// checkName refuses names that no workload can have.
func checkName(name policy.ServiceName) error {
	if err := name.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrName, err)
	}
	if name.Namespace == policy.ControlPlane.Namespace {
		return fmt.Errorf("%w: the namespace %q is the control plane's own", ErrName, name.Namespace)
	}
	return nil
}
