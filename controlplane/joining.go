package controlplane

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/weir-mesh/weir/controlplane/ca"
	"github.com/weir-mesh/weir/controlplane/tokenreview"
	"github.com/weir-mesh/weir/policy"
)

// Joining says by what workloads may join besides the mesh's own tokens.
type Joining struct {
	Kubernetes          bool     // tokens of service accounts are taken
	KubernetesAPI       string   // URL of the API server; "" is that of the pod we are in
	KubernetesCAFile    string   // whom to trust there
	KubernetesTokenFile string   // what we show there
	KubernetesAudience  string   // that tokens must have been made for
	KubernetesMap       []string // NAMESPACE/ACCOUNT=SERVICE

	SPIREBundleFile string // roots of SPIRE in the mesh's trust domain, PEM or a SPIFFE bundle (JSON); "" is none
	SPIFFETemplate  string // how the IDs that SPIRE gives out name services; "" is as the mesh's own
}

// kubernetes gives the check of service accounts' tokens, nil where they are not
// taken, and what ends it.
func (j *Joining) kubernetes() (check func(ctx context.Context, token string, want policy.ServiceName) error, end func(), err error) {
	if !j.Kubernetes {
		return nil, func() {}, nil
	}
	m, err := tokenreview.ParseMap(j.KubernetesMap)
	if err != nil {
		return nil, nil, err
	}
	r, err := tokenreview.New(tokenreview.Config{
		Server: j.KubernetesAPI, CAFile: j.KubernetesCAFile, TokenFile: j.KubernetesTokenFile, Audience: j.KubernetesAudience, Map: m,
	})
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, token string, want policy.ServiceName) error {
		err := r.Allow(ctx, token, want)
		if errors.Is(err, tokenreview.ErrRefused) {
			return fmt.Errorf("%w: %w", ca.ErrKubernetes, err)
		}
		return err
	}, r.Close, nil
}

// spireRoots are the roots of SPIRE in a file that is followed.
type spireRoots struct {
	path   string
	domain spiffeid.TrustDomain
	log    *zap.Logger

	roots  atomic.Pointer[[]*x509.Certificate]
	read   []byte // what the roots were made of; of one goroutine
	failed string // that was logged
}

const spireRootsEvery = 2 * time.Second

// newSPIRERoots reads the file; nil where there is none.
func newSPIRERoots(path, domain string, log *zap.Logger) (*spireRoots, error) {
	if path == "" {
		return nil, nil
	}
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return nil, err
	}
	s := &spireRoots{path: path, domain: td, log: log}
	if _, err := s.load(); err != nil {
		return nil, fmt.Errorf("--spire-bundle: %w", err)
	}
	return s, nil
}

// now gives the roots; none of nil.
func (s *spireRoots) now() []*x509.Certificate {
	if s == nil {
		return nil
	}
	return *s.roots.Load()
}

// load reads the file and tells whether it holds something else than before.
func (s *spireRoots) load() (changed bool, err error) {
	text, err := os.ReadFile(s.path)
	if err != nil || s.roots.Load() != nil && bytes.Equal(text, s.read) {
		return false, err
	}
	roots, err := s.parse(text)
	if err != nil {
		return false, fmt.Errorf("%s: %w", s.path, err)
	}
	s.read = text
	s.roots.Store(&roots)
	return true, nil
}

func (s *spireRoots) parse(text []byte) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	if block, _ := pem.Decode(text); block != nil {
		b, err := x509bundle.Parse(s.domain, text)
		if err != nil {
			return nil, err
		}
		roots = b.X509Authorities()
	} else {
		b, err := spiffebundle.Parse(s.domain, text)
		if err != nil {
			return nil, fmt.Errorf("neither PEM nor a SPIFFE bundle: %w", err)
		}
		roots = b.X509Authorities()
	}
	if len(roots) == 0 {
		return nil, errors.New("it holds no root")
	}
	for _, c := range roots {
		if !c.IsCA || !c.BasicConstraintsValid {
			return nil, fmt.Errorf("%q is not a certificate authority", c.Subject)
		}
	}
	return roots, nil
}

// run follows the file until ctx ends. One that cannot be read leaves the roots in
// force.
func (s *spireRoots) run(ctx context.Context, changed func()) error {
	if s == nil {
		return nil
	}
	tick := time.NewTicker(spireRootsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		ok, err := s.load()
		switch {
		case err != nil && err.Error() != s.failed:
			s.failed = err.Error()
			s.log.Warn("the bundle of SPIRE is not taken; its roots stay as they were", zap.Error(err))
		case ok:
			s.failed = ""
			s.log.Info("the bundle of SPIRE has changed", zap.Int("roots", len(s.now())))
			changed()
		}
	}
}
