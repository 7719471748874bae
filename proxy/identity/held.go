package identity

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/weir-mesh/weir/policy"
)

// held is what we present and what we trust, as one finished value.
type held struct {
	cert  tls.Certificate     // with its Leaf
	chain []*x509.Certificate // of cert, leaf first
	trust *trust
}

// newHeld puts together a chain and a bundle, both PEM, and the chain's key.
func newHeld(chain, bundle []byte, key crypto.Signer, domain spiffeid.TrustDomain) (*held, error) {
	certs, err := parseCertificates(chain)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(certs[0].PublicKey) {
		return nil, errors.New("the certificate is not of our key")
	}
	t, err := newTrust(bundle, domain)
	if err != nil {
		return nil, err
	}
	h := &held{cert: tls.Certificate{PrivateKey: key, Leaf: certs[0]}, chain: certs, trust: t}
	for _, c := range certs {
		h.cert.Certificate = append(h.cert.Certificate, c.Raw)
	}
	return h, nil
}

// isFor checks that the certificate names a workload and stands under our own
// bundle, as others will find it.
func (h *held) isFor(name policy.ServiceName, now time.Time) error {
	own, err := h.trust.verify(h.chain, x509.ExtKeyUsageServerAuth, now)
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w; is the clock of this machine right (%s)?", err, now.UTC().Format(time.RFC3339))
	case err != nil:
		return err
	case own.name != name:
		return fmt.Errorf("the certificate is of %s, not %s", own.name, name)
	}
	return nil
}

func (h *held) expired(now time.Time) bool { return !now.Before(h.cert.Leaf.NotAfter) }

// root is the fingerprint of the root that the certificate stands under; "" where it
// stands under none.
func (h *held) root() string {
	intermediates := x509.NewCertPool()
	for _, c := range h.chain[1:] {
		intermediates.AddCert(c)
	}
	chains, err := h.chain[0].Verify(x509.VerifyOptions{
		Roots: h.trust.pool, Intermediates: intermediates, CurrentTime: h.cert.Leaf.NotAfter.Add(-time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return ""
	}
	return fingerprint(chains[0][len(chains[0])-1])
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// renewAt is when half of the certificate's life is over, give or take a tenth
// of it, so that proxies started together do not renew together. chance is in
// [0,1).
func (h *held) renewAt(chance float64) time.Time {
	leaf := h.cert.Leaf
	half := leaf.NotAfter.Sub(leaf.NotBefore) / 2
	return leaf.NotBefore.Add(time.Duration(float64(half) * (0.9 + 0.2*chance)))
}
