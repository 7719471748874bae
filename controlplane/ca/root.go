package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"go.uber.org/zap"
)

// Rotation of the root. Its successor is made early and put into the bundle,
// and signs only after every proxy had the time to hear of it; the old root
// then stays trusted longer than any certificate it signed lives.
const (
	successorBefore = 90 * 24 * time.Hour // before the root's end
	overlap         = 45 * 24 * time.Hour // in the bundle before it signs; the rest is ≥ MaxLeafTTL
	rotateEvery     = time.Hour
	// ahead is how far in the future a kept root may begin. One that begins later
	// was made by a control plane whose clock ran ahead: nobody could verify what
	// it signs.
	ahead = 24 * time.Hour
)

type root struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte    // of the certificate
	from time.Time // from when it signs
}

// fingerprint is what tokens carry: hex SHA-256 of the public key (SPKI), which
// stays should the certificate be made anew for the same key.
func (r *root) fingerprint() string {
	sum := sha256.Sum256(r.cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Rotate brings the roots up to date: reads them, makes a successor when it is
// time, and drops those that ended. changed tells that Bundle has changed.
// Every control plane that shares the keeper comes to the same roots.
func (a *Authority) Rotate(ctx context.Context) (changed bool, err error) {
	now := a.cfg.Now()
	var roots []*root
	for n := 1; ; n++ {
		kept, err := a.cfg.Keep.GetOrCreate(ctx, fmt.Sprintf("ca-root-%d", n), func() ([]byte, error) { return a.makeRoot(now) })
		if err != nil {
			return false, fmt.Errorf("root certificate %d: %w", n, err)
		}
		r, err := a.parseRoot(kept)
		if err != nil {
			return false, fmt.Errorf("root certificate %d, as kept: %w", n, err)
		}
		if now.Add(ahead).Before(r.cert.NotBefore) {
			a.cfg.Log.Warn("a root certificate begins in the future and is passed over; was a control plane's clock wrong, or is this one's?",
				zap.Int("root", n), zap.Time("begins", r.cert.NotBefore), zap.Time("now", now))
			continue
		}
		if n > 1 {
			r.from = r.cert.NotBefore.Add(overlap)
		}
		if now.Before(r.cert.NotAfter) {
			roots = append(roots, r)
		}
		if now.Before(r.cert.NotAfter.Add(-successorBefore)) {
			break
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	changed = !bytes.Equal(bundleOf(a.roots), bundleOf(roots))
	a.roots = roots
	return changed, nil
}

// Run rotates the root when it is time and calls changed, if not nil, when
// Bundle has changed. It returns when ctx ends. A failure is logged and tried
// again: there are months to do it.
func (a *Authority) Run(ctx context.Context, changed func(bundle []byte)) error {
	ticker := time.NewTicker(rotateEvery)
	defer ticker.Stop()
	return a.run(ctx, ticker.C, changed)
}

func (a *Authority) run(ctx context.Context, tick <-chan time.Time, changed func(bundle []byte)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
		ok, err := a.Rotate(ctx)
		if err != nil && ctx.Err() == nil {
			a.cfg.Log.Error("the root certificate could not be rotated; the present one stays in force", zap.Error(err))
		}
		if ok {
			a.cfg.Log.Info("the mesh's trust bundle has changed")
			if changed != nil {
				changed(a.Bundle())
			}
		}
	}
}

// signerLocked is the newest root that is old enough to sign, or else the
// oldest that is valid.
func (a *Authority) signerLocked(now time.Time) (*root, error) {
	var signer *root
	for _, r := range a.roots {
		if now.Before(r.cert.NotAfter) && (signer == nil || !now.Before(r.from)) {
			signer = r
		}
	}
	if signer == nil {
		return nil, errors.New("no root certificate is valid now; is the clock right?")
	}
	return signer, nil
}

func (a *Authority) signer() (*root, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.signerLocked(a.cfg.Now())
}

// RootPEM gives the certificate of the root that signs now.
func (a *Authority) RootPEM() []byte {
	r, err := a.signer()
	if err != nil {
		return a.Bundle()
	}
	return bytes.Clone(r.pem)
}

// Bundle gives the certificates of all roots to trust, PEM.
func (a *Authority) Bundle() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return bundleOf(a.roots)
}

func bundleOf(roots []*root) []byte {
	var out []byte
	for _, r := range roots {
		out = append(out, r.pem...)
	}
	return out
}

func (a *Authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.roots {
		pool.AddCert(r.cert)
	}
	return pool
}

// makeRoot gives a new root's certificate and key, PEM.
func (a *Authority) makeRoot(now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"Service Mesh"}, CommonName: "Service Mesh Root CA"},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(RootTTL),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:     true, BasicConstraintsValid: true, MaxPathLenZero: true,
		// A signing certificate carries the trust domain (X509-SVID section 2).
		URIs: []*url.URL{a.domain.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...), nil
}

func (a *Authority) parseRoot(kept []byte) (*root, error) {
	certBlock, rest := pem.Decode(kept)
	keyBlock, _ := pem.Decode(rest)
	if certBlock == nil || keyBlock == nil {
		return nil, errors.New("not a certificate and a key in PEM")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the key is not the certificate's")
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != a.domain.IDString() {
		return nil, fmt.Errorf("it is the root of %v, not of the trust domain %q; a mesh keeps its trust domain for life", cert.URIs, a.domain.Name())
	}
	return &root{cert: cert, key: key, pem: pem.EncodeToMemory(certBlock)}, nil
}

// newSerial gives 127 random bits, positive and at most 20 octets (RFC 5280
// section 4.1.2.2).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
