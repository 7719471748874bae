package identity

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"
)

// Follow brings a workload's identity that somebody else issues: it calls take with
// the chain (leaf first), its key and the roots to trust, now and whenever one of
// them changes, until ctx ends. An error of take leaves the old in force.
type Follow func(ctx context.Context, take func(chain []*x509.Certificate, key crypto.Signer, roots []*x509.Certificate) error) error

// startFollowing waits for the first identity of the source.
func (i *Identity) startFollowing(ctx context.Context) error {
	first, got := context.WithCancel(ctx)
	defer got()
	err := i.cfg.Source(first, func(chain []*x509.Certificate, key crypto.Signer, roots []*x509.Certificate) error {
		err := i.takeOver(chain, key, roots)
		if err == nil {
			got()
		}
		return err
	})
	switch {
	case i.now.Load() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("get certificate of %s: %w", i.cfg.Service, err)
	}
	return fmt.Errorf("get certificate of %s: %w", i.cfg.Service, context.Cause(ctx))
}

// takeOver checks what the source brings, and puts it in force.
func (i *Identity) takeOver(chain []*x509.Certificate, key crypto.Signer, roots []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("the source brought no certificate")
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return fmt.Errorf("the source's certificate: %w", err)
	}
	ours, err := i.controlRoots()
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sourced = roots
	t := i.trustIn(union(roots, ours, i.meshRoots), id.TrustDomain())
	if old := i.now.Load(); old != nil && old.trust.id == t.id && old.trust.domain == t.domain {
		t = old.trust // it knows whom it has seen
	}
	h := &held{cert: tls.Certificate{PrivateKey: key, Leaf: chain[0]}, chain: chain, trust: t}
	for _, c := range chain {
		h.cert.Certificate = append(h.cert.Certificate, c.Raw)
	}
	if err := h.isFor(i.cfg.Service, i.cfg.Now()); err != nil {
		return err
	}
	i.now.Store(h)
	i.cfg.Log.Info("identity taken from the source", zap.String("id", id.String()), zap.Time("expires", chain[0].NotAfter), zap.Int("roots", len(t.roots)))
	return nil
}

// addMeshRoots takes the mesh's bundle beside the roots of the source: those of
// workloads that joined by a token, and of the control plane.
func (i *Identity) addMeshRoots(old *held, bundle []byte) error {
	t, err := newTrust(bundle, old.trust.domain)
	if err != nil {
		return fmt.Errorf("set trust bundle: %w", err)
	}
	ours, err := i.controlRoots()
	if err != nil {
		return err
	}
	i.meshRoots = t.roots
	t = i.trustIn(union(i.sourced, ours, i.meshRoots), old.trust.domain)
	if t.id != old.trust.id {
		i.now.Store(&held{cert: old.cert, chain: old.chain, trust: t})
		i.cfg.Log.Info("trust bundle replaced", zap.Int("roots", len(t.roots)))
	}
	return nil
}

// trustIn is trust whose IDs are read by our template.
func (i *Identity) trustIn(roots []*x509.Certificate, domain spiffeid.TrustDomain) *trust {
	t := trustIn(roots, domain)
	t.ids = i.cfg.Template
	return t
}

// controlRoots are those by which the control plane is known at first contact.
func (i *Identity) controlRoots() ([]*x509.Certificate, error) {
	if i.cfg.ControlCAFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(i.cfg.ControlCAFile)
	if err != nil {
		return nil, fmt.Errorf("control plane's root: %w", err)
	}
	roots, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("control plane's root: %s: %w", i.cfg.ControlCAFile, err)
	}
	return roots, nil
}

func union(lists ...[]*x509.Certificate) (all []*x509.Certificate) {
	for _, list := range lists {
		for _, c := range list {
			if !slices.ContainsFunc(all, c.Equal) {
				all = append(all, c)
			}
		}
	}
	return all
}
