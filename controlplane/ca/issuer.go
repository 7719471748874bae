package ca

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"
)

// issuer signs certificates: a root, or an authority below one.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
	// between are the certificates that go with each leaf: from cert upwards, without
	// the root; none where the root signs.
	between []*x509.Certificate
	root    *root
}

func (r *root) issuer() *issuer { return &issuer{cert: r.cert, key: r.key, root: r} }

// notAfter is when the first certificate of the chain ends.
func (i *issuer) notAfter() time.Time {
	end := i.root.cert.NotAfter
	for _, c := range i.between {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// chainPEM is a leaf with what is between it and the root.
func (i *issuer) chainPEM(leaf []byte) []byte {
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf})
	for _, c := range i.between {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// issuersLocked are all whose keys are here.
func (a *Authority) issuersLocked() []*issuer {
	var out []*issuer
	for _, r := range a.made {
		out = append(out, r.issuer())
	}
	for _, i := range []*issuer{a.files.inForce, a.files.offered} {
		if i != nil {
			out = append(out, i)
		}
	}
	return out
}

func (a *Authority) trustsLocked(fingerprint string) bool {
	for _, r := range a.trustedLocked() {
		if r.fingerprint() == fingerprint {
			return true
		}
	}
	return false
}

// underLocked gives the issuer below a root, of two the newer; nil where there is
// none that is valid.
func (a *Authority) underLocked(fingerprint string, now time.Time) *issuer {
	var found *issuer
	for _, i := range a.issuersLocked() {
		if fingerprint != "" && i.root.fingerprint() == fingerprint && now.Before(i.notAfter()) {
			found = i
		}
	}
	return found
}

// signerLocked is what the store says, or else goes by age: the newest root that is
// old enough to sign, or else the oldest that is valid. A rotation goes on without
// the key of the old root where that is gone.
func (a *Authority) signerLocked(now time.Time) (*issuer, error) {
	if signs := a.known.Signs; signs != "" {
		if i := a.underLocked(signs, now); i != nil {
			return i, nil
		}
		if r := a.known.Rotation; r.Running() {
			if i := a.underLocked(r.New, now); i != nil {
				return i, nil
			}
		}
		return nil, fmt.Errorf("certificates of this mesh are signed under the root %s, and no valid certificate with its key is here: give those of --ca-cert and --ca-key", short(signs))
	}
	var signer *root
	for _, r := range a.made {
		if now.Before(r.cert.NotAfter) && (signer == nil || !now.Before(r.from)) {
			signer = r
		}
	}
	if signer == nil {
		return nil, fmt.Errorf("no root certificate is valid now; is the clock right?")
	}
	return signer.issuer(), nil
}

func (a *Authority) signer() (*issuer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.signerLocked(a.cfg.Now())
}

// lasting is what tokens name: the authority that signs when a rotation is over.
func (a *Authority) lasting() (*issuer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.known.Rotation; r.Running() {
		if i := a.underLocked(r.New, a.cfg.Now()); i != nil {
			return i, nil
		}
	}
	return a.signerLocked(a.cfg.Now())
}

// SigningRoot is the fingerprint of the root under which is signed; "" when nothing
// can sign.
func (a *Authority) SigningRoot() string {
	i, err := a.signer()
	if err != nil {
		return ""
	}
	return i.root.fingerprint()
}

// short is a fingerprint as people compare it.
func short(fingerprint string) string { return fingerprint[:min(16, len(fingerprint))] }
