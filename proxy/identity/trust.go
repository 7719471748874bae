package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
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
	id     string // the same for the same roots

	mu       sync.Mutex // guards what follows
	verified map[[sha256.Size]byte]window
}

// window is when a chain is valid: the narrowest of its certificates.
type window struct{ from, until time.Time }

// maxVerified bounds the memory of verified certificates: about 100 bytes each.
const maxVerified = 8192

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
	t := &trust{roots: roots, pool: x509.NewCertPool(), domain: domain, verified: map[[sha256.Size]byte]window{}}
	sum := sha256.New()
	for _, c := range roots {
		t.pool.AddCert(c)
		sum.Write(c.Raw)
	}
	t.id = string(sum.Sum(nil))
	return t
}

// verify checks a chain, leaf first, up to one of our roots and gives the
// workload it names. A leaf that was verified before under the same roots is not
// verified again within its validity: that halves what a resumed handshake
// costs the client.
func (t *trust) verify(certs []*x509.Certificate, now time.Time) (policy.ServiceName, error) {
	if len(certs) == 0 {
		return policy.ServiceName{}, errors.New("the peer showed no certificate")
	}
	name, err := t.name(certs[0])
	if err != nil {
		return policy.ServiceName{}, err
	}
	sum := sha256.Sum256(certs[0].Raw)
	t.mu.Lock()
	w, ok := t.verified[sum]
	t.mu.Unlock()
	if ok && !now.Before(w.from) && !now.After(w.until) {
		return name, nil
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	chains, err := certs[0].Verify(x509.VerifyOptions{
		Roots: t.pool, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return policy.ServiceName{}, fmt.Errorf("certificate of %s: %w", name, err)
	}
	t.remember(sum, chains[0])
	return name, nil
}

func (t *trust) remember(sum [sha256.Size]byte, chain []*x509.Certificate) {
	w := window{chain[0].NotBefore, chain[0].NotAfter}
	for _, c := range chain[1:] {
		if c.NotBefore.After(w.from) {
			w.from = c.NotBefore
		}
		if c.NotAfter.Before(w.until) {
			w.until = c.NotAfter
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.verified) >= maxVerified {
		clear(t.verified) // rare, and costs one verification each
	}
	t.verified[sum] = w
}

// name tells which workload of our trust domain a leaf names: by exactly one
// URI, and never by a certificate that could sign others (SPIFFE X509-SVID
// sections 2 and 4).
func (t *trust) name(leaf *x509.Certificate) (policy.ServiceName, error) {
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return policy.ServiceName{}, fmt.Errorf("not a workload's certificate: %w", err)
	}
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return policy.ServiceName{}, fmt.Errorf("certificate of %s may sign others: not a workload's", id)
	}
	if !id.MemberOf(t.domain) {
		return policy.ServiceName{}, fmt.Errorf("%s is not of our trust domain %s", id, t.domain)
	}
	name, err := policy.ParseSPIFFEPath(id.Path())
	if err != nil {
		return policy.ServiceName{}, fmt.Errorf("%s: %w", id, err)
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
