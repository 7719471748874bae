package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/weir-mesh/weir/policy"
)

// trust is a bundle of roots and the trust domain they vouch for.
type trust struct {
	roots  []*x509.Certificate
	pool   *x509.CertPool
	domain spiffeid.TrustDomain
	id     string            // the same for the same roots
	ids    policy.IDTemplate // set before it is used

	seen peers
}

func newTrust(bundle []byte, domain spiffeid.TrustDomain) (*trust, error) {
	roots, err := parseCertificates(bundle)
	if err != nil {
		return nil, fmt.Errorf("trust bundle: %w", err)
	}
	for _, c := range roots {
		if !c.IsCA || !c.BasicConstraintsValid {
			return nil, fmt.Errorf("trust bundle: %q is not a certificate authority", c.Subject)
		}
	}
	return trustIn(roots, domain), nil
}

func trustIn(roots []*x509.Certificate, domain spiffeid.TrustDomain) *trust {
	t := &trust{roots: roots, pool: x509.NewCertPool(), domain: domain}
	sum := sha256.New()
	for _, c := range roots {
		t.pool.AddCert(c)
		sum.Write(c.Raw)
	}
	t.id = string(sum.Sum(nil))
	return t
}

// verify checks a chain, leaf first, up to one of our roots, for one use, and
// gives whom it names. A leaf that was verified before is not verified again
// within its validity: that is two signatures less in a full handshake, and
// all there is to check in a resumed one. New roots are a new trust, which has
// seen nobody. Who is revoked is asked apart, each time: see checkRevoked.
func (t *trust) verify(certs []*x509.Certificate, use x509.ExtKeyUsage, now time.Time) (*known, error) {
	if len(certs) == 0 {
		return nil, errNothingShown
	}
	key := peerKey{sha256.Sum256(certs[0].Raw), use}
	if p := t.seen.get(key, now); p != nil {
		return p, nil
	}
	name, err := t.name(certs[0])
	if err != nil {
		return nil, err
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	chains, err := certs[0].Verify(x509.VerifyOptions{
		Roots: t.pool, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use},
	})
	if err != nil {
		return nil, &refusal{whyInvalid(err, !now.Before(certs[0].NotBefore)), fmt.Errorf("certificate of %s: %w", name, err)}
	}
	return t.seen.put(key, newKnown(chains[0], name)), nil
}

// name tells which workload of our trust domain a leaf names: by exactly one
// URI, and never by a certificate that could sign others (SPIFFE X509-SVID
// sections 2 and 4).
func (t *trust) name(leaf *x509.Certificate) (policy.ServiceName, error) {
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return policy.ServiceName{}, &refusal{"not-a-workload", fmt.Errorf("not a workload's certificate: %w", err)}
	}
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return policy.ServiceName{}, &refusal{"not-a-workload", fmt.Errorf("certificate of %s may sign others: not a workload's", id)}
	}
	if !id.MemberOf(t.domain) {
		return policy.ServiceName{}, &refusal{"trust-domain", fmt.Errorf("%s is not of our trust domain %s", id, t.domain)}
	}
	name, err := t.ids.Parse(id.Path())
	if err != nil {
		return policy.ServiceName{}, &refusal{"not-a-workload", fmt.Errorf("%s: %w", id, err)}
	}
	return name, nil
}

// parseCertificates reads PEM that holds certificates and nothing else.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("not PEM")
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %s", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("holds no certificate")
	}
	return certs, nil
}
