package ca

import (
	"crypto/x509"
	"fmt"
	"math/big"

	"github.com/weir-mesh/weir/policy"
)

// revoked is what is trusted no more, and the families of the certificates in it: a
// token that such a certificate goes back to is known to whoever had it.
type revoked struct {
	*policy.Revoked
	families map[uint64]bool
}

// SetRevoked replaces what is revoked.
func (a *Authority) SetRevoked(list []policy.Revocation) {
	r := &revoked{Revoked: policy.NewRevoked(list), families: map[uint64]bool{}}
	for _, serial := range r.Serials() {
		if n, ok := new(big.Int).SetString(serial, 16); ok && familyOf(n) != 0 {
			r.families[familyOf(n)] = true
		}
	}
	a.revoked.Store(r)
}

func (a *Authority) checkIdentity(name policy.ServiceName) error {
	if r := a.revoked.Load(); r != nil && r.Identity(name) {
		return fmt.Errorf("%w: the identity %s; weir revoke list tells why, weir revoke lift lifts it", ErrRevoked, name)
	}
	return nil
}

func (a *Authority) checkCertificate(name policy.ServiceName, leaf *x509.Certificate) error {
	if r := a.revoked.Load(); r != nil && r.Serial(serialOf(leaf)) {
		return fmt.Errorf("%w: the certificate %s of %s", ErrRevoked, serialOf(leaf), name)
	}
	return a.checkIdentity(name)
}

func (a *Authority) checkFamily(name policy.ServiceName, family uint64) error {
	if r := a.revoked.Load(); r != nil && r.families[family] {
		return fmt.Errorf("%w: the join token, with a certificate of %s that was got by it; make a new one with: weir token create --service %s --namespace %s",
			ErrRevoked, name, name.Name, name.Namespace)
	}
	return a.checkIdentity(name)
}

func serialOf(c *x509.Certificate) string { return c.SerialNumber.Text(16) }
