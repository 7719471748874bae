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
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// The age of a root that the mesh made. Its successor is made early and put into
// the bundle, and signs only after every proxy had the time to hear of it; the old
// root then stays trusted longer than any certificate it signed lives.
const (
	successorBefore = 125 * 24 * time.Hour // before the root's end: more than a third, at which there is an alarm
	overlap         = 45 * 24 * time.Hour  // in the bundle before it signs; the rest is ≥ MaxLeafTTL
	rotateEvery     = time.Hour
	// ahead is how far in the future a kept root may begin. One that begins later
	// was made by a control plane whose clock ran ahead: nobody could verify what
	// it signs.
	ahead = 24 * time.Hour
)

// root is a certificate that is trusted by itself.
type root struct {
	cert *x509.Certificate
	key  crypto.Signer // nil where others hold it
	pem  []byte        // of the certificate
	n    int           // of those that the mesh made, counted from 1; 0 for others
	from time.Time     // from when it signs, if that goes by age
}

// fingerprint is what tokens carry: hex SHA-256 of the public key (SPKI), which
// stays should the certificate be made anew for the same key.
func (r *root) fingerprint() string { return fingerprintOf(r.cert) }

func fingerprintOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Rotate brings the roots up to date: reads them, makes a successor when it is
// time, and drops those that ended. changed tells that Bundle has changed.
// Every control plane that shares the keeper comes to the same roots.
func (a *Authority) Rotate(ctx context.Context) (changed bool, err error) {
	a.turn.Lock()
	defer a.turn.Unlock()
	a.mu.Lock()
	known, before := a.known, a.bundleLocked()
	a.mu.Unlock()
	made, err := a.madeRoots(ctx, known)
	if err != nil {
		return false, err
	}
	foreign, err := foreignRoots(known, a.cfg.Now())
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.made, a.foreign = made, foreign
	return !bytes.Equal(before, a.bundleLocked()), nil
}

// madeRoots reads the roots that the mesh made and trusts, and makes what is
// missing.
func (a *Authority) madeRoots(ctx context.Context, known policy.Roots) ([]*root, error) {
	now := a.cfg.Now()
	var roots []*root
	needed := known.Signs == "" // by age; else those there are will do
	for n := 1; needed || n <= known.Made; n++ {
		r, err := a.madeRoot(ctx, n)
		if err != nil {
			return nil, err
		}
		if slices.Contains(known.Retired, n) {
			continue
		}
		if now.Add(ahead).Before(r.cert.NotBefore) {
			a.cfg.Log.Warn("a root certificate begins in the future and is passed over; was a control plane's clock wrong, or is this one's?",
				zap.Int("root", n), zap.Time("begins", r.cert.NotBefore), zap.Time("now", now))
			continue
		}
		if len(roots) > 0 {
			r.from = r.cert.NotBefore.Add(overlap)
		}
		if now.Before(r.cert.NotAfter) {
			roots = append(roots, r)
		}
		if now.Before(r.cert.NotAfter.Add(-successorBefore)) {
			needed = false
		}
	}
	return roots, nil
}

func (a *Authority) madeRoot(ctx context.Context, n int) (*root, error) {
	kept, err := a.cfg.Keep.GetOrCreate(ctx, rootKey(n), func() ([]byte, error) { return a.makeRoot(a.cfg.Now()) })
	if err != nil {
		return nil, fmt.Errorf("root certificate %d: %w", n, err)
	}
	r, err := a.parseRoot(kept)
	if err != nil {
		return nil, fmt.Errorf("root certificate %d, as kept: %w", n, err)
	}
	r.n = n
	return r, nil
}

func rootKey(n int) string { return fmt.Sprintf("ca-root-%d", n) }

// foreignRoots reads the roots of others that are trusted.
func foreignRoots(known policy.Roots, now time.Time) ([]*root, error) {
	var out []*root
	for i, text := range known.Foreign {
		certs, err := parseChain([]byte(text))
		if err != nil || len(certs) != 1 {
			return nil, fmt.Errorf("trusted root %d, as kept: not one certificate in PEM: %w", i+1, err)
		}
		if now.Before(certs[0].NotAfter) {
			out = append(out, &root{cert: certs[0], pem: []byte(text)})
		}
	}
	return out, nil
}

// Use takes over what the store knows of the roots now. changed tells that Bundle
// has changed. What cannot be read leaves the old in force.
func (a *Authority) Use(ctx context.Context, known policy.Roots) (changed bool, err error) {
	a.mu.Lock()
	old := a.known
	a.known = known.Clone()
	a.mu.Unlock()
	if changed, err = a.Rotate(ctx); err != nil {
		a.mu.Lock()
		a.known = old
		a.mu.Unlock()
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if o := a.files.offered; o != nil && o.root.fingerprint() == a.known.Signs {
		a.files.inForce, a.files.offered = o, nil
	}
	return changed, nil
}

// Run rotates the root when it is time and calls changed, if not nil, when
// Bundle has changed. It returns when ctx ends. A failure is logged and tried
// again: there are months to do it.
func (a *Authority) Run(ctx context.Context, changed func(bundle []byte)) error {
	ticker := time.NewTicker(rotateEvery)
	defer ticker.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.followFiles(ctx) })
	return a.run(ctx, ticker.C, changed)
}

// followFiles takes the files anew when they change.
func (a *Authority) followFiles(ctx context.Context) {
	if !a.cfg.Files.given() {
		return
	}
	ticker := time.NewTicker(filesEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			a.Reload()
		}
	}
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

// RootPEM gives the certificate of the root under which is signed now.
func (a *Authority) RootPEM() []byte {
	i, err := a.signer()
	if err != nil {
		return a.Bundle()
	}
	return bytes.Clone(i.root.pem)
}

// Bundle gives the certificates of all roots to trust, PEM.
func (a *Authority) Bundle() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.bundleLocked()
	for _, c := range a.others() {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func (a *Authority) others() []*x509.Certificate {
	if a.cfg.Others == nil {
		return nil
	}
	return a.cfg.Others()
}

func (a *Authority) bundleLocked() []byte {
	var out []byte
	for _, r := range a.trustedLocked() {
		out = append(out, r.pem...)
	}
	return out
}

func (a *Authority) trustedLocked() []*root {
	return append(slices.Clone(a.made), a.foreign...)
}

func (a *Authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.trustedLocked() {
		pool.AddCert(r.cert)
	}
	for _, c := range a.others() {
		pool.AddCert(c)
	}
	return pool
}

// makeRoot gives a new root's certificate and key, PEM.
func (a *Authority) makeRoot(now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key: %w", err)
	}
	serial, err := newSerial(0)
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

// newSerial gives a number that is positive and has at most 20 octets (RFC 5280
// section 4.1.2.2): 63 bits of the family, which is the token's that the certificate
// goes back to, or chance, and 64 by chance.
func newSerial(family uint64) (*big.Int, error) {
	var low [8]byte
	if _, err := rand.Read(low[:]); err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	if family == 0 {
		var high [8]byte
		if _, err := rand.Read(high[:]); err != nil {
			return nil, fmt.Errorf("make a serial number: %w", err)
		}
		family = asFamily(high[:])
	}
	serial := new(big.Int).SetUint64(family)
	serial.Lsh(serial, 64)
	return serial.Or(serial, new(big.Int).SetBytes(low[:])), nil
}

// asFamily makes a family of eight bytes or more: 63 bits, never 0.
func asFamily(b []byte) uint64 { return binary.BigEndian.Uint64(b)>>1 | 1<<62 }

// familyOf reads it from a serial number.
func familyOf(serial *big.Int) uint64 {
	return new(big.Int).Rsh(serial, 64).Uint64()
}
