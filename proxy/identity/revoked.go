package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/weir-mesh/weir/policy"
)

// ErrRevoked says that a peer's certificate, or all of its identity's, was revoked.
var ErrRevoked = errors.New("revoked")

// SetRevoked replaces what is trusted no more, for handshakes from now on, resumed
// ones too. Which connections there are already is for the caller to ask: see Revoked.
func (i *Identity) SetRevoked(list []policy.Revocation) { i.revoked.Store(policy.NewRevoked(list)) }

// Revoked tells whether the peer of a connection that was made with a configuration
// of this package is trusted no more, with an error that wraps ErrRevoked and names
// it. Where nothing is revoked it costs one load.
func (i *Identity) Revoked(cs tls.ConnectionState) error {
	r := i.revoked.Load()
	h := i.now.Load()
	if r == nil || h == nil || len(cs.PeerCertificates) == 0 {
		return nil
	}
	leaf := cs.PeerCertificates[0]
	name, err := h.trust.name(leaf)
	if err != nil {
		return nil // not of this package
	}
	return revokedIn(r, name, serialOf(leaf))
}

// checkRevoked is for handshakes, resumed ones too.
func (i *Identity) checkRevoked(p *known) error {
	r := i.revoked.Load()
	if r == nil {
		return nil
	}
	return revokedIn(r, p.name, p.serial)
}

func revokedIn(r *policy.Revoked, name policy.ServiceName, serial string) error {
	switch {
	case r.Serial(serial):
		return fmt.Errorf("%w: the certificate %s of %s", ErrRevoked, serial, name)
	case r.Identity(name):
		return fmt.Errorf("%w: the identity %s", ErrRevoked, name)
	}
	return nil
}

func serialOf(c *x509.Certificate) string { return c.SerialNumber.Text(16) }
