package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// noWish is a request that asks for nothing but a certificate of its key.
func noWish() *x509.CertificateRequest { return &x509.CertificateRequest{} }

func pemOf(ders [][]byte) (out []byte) {
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// company is an authority as a company has it: a root that is kept away, and what it
// signs.
type company struct {
	t    *testing.T
	root *x509.Certificate
	key  *ecdsa.PrivateKey
	now  time.Time
}

func newCompany(t *testing.T, name string, now time.Time) *company {
	c := &company{t: t, now: now}
	c.root, c.key = c.make(name, nil, nil, func(*x509.Certificate) {})
	return c
}

func (c *company) make(name string, parent *x509.Certificate, by *ecdsa.PrivateKey, change func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(c.t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(c.t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: c.now.Add(-time.Hour), NotAfter: c.now.Add(1000 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
	}
	change(template)
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	must(c.t, err)
	cert, err := x509.ParseCertificate(der)
	must(c.t, err)
	return cert, key
}

// write writes what an authority below the root needs, and gives the files.
func (c *company) write(dir string, change func(*x509.Certificate)) Files {
	c.t.Helper()
	cert, key := c.make("weir issuing CA", c.root, c.key, change)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(c.t, err)
	f := Files{Cert: filepath.Join(dir, "ca.pem"), Key: filepath.Join(dir, "ca.key"), Chain: filepath.Join(dir, "chain.pem")}
	must(c.t, os.WriteFile(f.Cert, pemOf([][]byte{cert.Raw}), 0o600))
	must(c.t, os.WriteFile(f.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	must(c.t, os.WriteFile(f.Chain, pemOf([][]byte{c.root.Raw}), 0o600))
	return f
}

func same(*x509.Certificate) {}

func TestAnAuthorityFromFilesSigns(t *testing.T) {
	at := &clock{now: time.Now()}
	c := newCompany(t, "Company Root", at.now)
	dir := t.TempDir()
	f := c.write(dir, same)
	a, _ := newAuthority(t, func(cfg *Config) { cfg.Files, cfg.Now = f, at.Now })
	if got := roots(t, a); len(got) != 1 || got[0] != fingerprintOf(c.root) {
		t.Fatalf("trusted are %v", got)
	}
	chain, err := a.IssueForCSR(cart, newCSR(t, noWish(), nil))
	must(t, err)
	certs, err := parseChain(chain)
	must(t, err)
	if len(certs) != 2 || certs[0].CheckSignatureFrom(certs[1]) != nil || certs[1].CheckSignatureFrom(c.root) != nil {
		t.Errorf("the chain has %d certificates", len(certs))
	}
	own, err := a.ownCertificate("")
	must(t, err)
	if len(own.Certificate) != 3 || fingerprintOf(c.root) != a.SigningRoot() {
		t.Errorf("the control plane shows %d certificates, %s signs", len(own.Certificate), a.SigningRoot())
	}
	if known := a.Known(); known.Signs != fingerprintOf(c.root) || len(known.Foreign) != 1 {
		t.Errorf("to be stored: %+v", known)
	}
	// The next one below the same root takes its place without more.
	c.write(dir, func(t *x509.Certificate) { t.Subject.CommonName = "weir issuing CA 2" })
	a.Reload()
	chain, err = a.IssueForCSR(cart, newCSR(t, noWish(), nil))
	must(t, err)
	if certs, err = parseChain(chain); err != nil || certs[1].Subject.CommonName != "weir issuing CA 2" {
		t.Errorf("after the files changed, %v signs: %v", certs[1].Subject, err)
	}
}

func TestBadFilesAreRefusedAndTheOldStay(t *testing.T) {
	at := &clock{now: time.Now()}
	c := newCompany(t, "Company Root", at.now)
	dir := t.TempDir()
	f := c.write(dir, same)
	a, _ := newAuthority(t, func(cfg *Config) { cfg.Files, cfg.Now = f, at.Now })
	good, err := os.ReadFile(f.Cert)
	must(t, err)
	refused := uint64(0)
	for name, spoil := range map[string]func(){
		"no PEM":        func() { must(t, os.WriteFile(f.Cert, []byte("nothing"), 0o600)) },
		"another's key": func() { k := c.write(t.TempDir(), same); copyTo(t, k.Key, f.Key) },
		"no root above": func() { must(t, os.WriteFile(f.Chain, nil, 0o600)) },
		"no authority": func() {
			c.write(dir, func(x *x509.Certificate) { x.IsCA = false; x.KeyUsage = x509.KeyUsageDigitalSignature })
		},
		"its end": func() { c.write(dir, func(x *x509.Certificate) { x.NotAfter = at.now.Add(-time.Minute) }) },
		"not for clients": func() {
			c.write(dir, func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
		},
		"another domain only": func() {
			c.write(dir, func(x *x509.Certificate) {
				x.PermittedDNSDomains, x.PermittedDNSDomainsCritical = []string{"example.com"}, true
			})
		},
		"gone": func() { must(t, os.Remove(f.Key)) },
	} {
		c.write(dir, same)
		a.Reload()
		before, err := a.signer()
		must(t, err)
		spoil()
		a.Reload()
		a.Reload() // told and counted once
		st, _ := a.FilesStatus()
		if refused++; st.Refused != refused || st.Problem == "" {
			t.Errorf("%s: %+v, not %d", name, st, refused)
			refused = st.Refused
		}
		if after, err := a.signer(); err != nil || !after.cert.Equal(before.cert) {
			t.Errorf("%s: another signs: %v", name, err)
		}
	}
	must(t, os.WriteFile(f.Cert, good, 0o600))
}

func copyTo(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o600))
}

func TestFilesUnderAnotherRootWaitForARotation(t *testing.T) {
	at := &clock{now: time.Now()}
	dir := t.TempDir()
	keep := &memory{values: map[string][]byte{}}
	a, _ := newAuthority(t, func(cfg *Config) { cfg.Keep, cfg.Now = keep, at.Now }) // a mesh with a root of its own
	old := a.SigningRoot()
	c := newCompany(t, "Company Root", at.now)
	b, _ := newAuthority(t, func(cfg *Config) {
		cfg.Keep, cfg.Now, cfg.Files, cfg.Roots = keep, at.Now, c.write(dir, same), a.Known()
	})
	if st, ok := b.FilesStatus(); !ok || !st.Waiting || b.SigningRoot() != old {
		t.Fatalf("%+v, %s signs", st, b.SigningRoot())
	}
	s := &stored{t, b}
	if r := s.begin().Rotation; r.New != fingerprintOf(c.root) || b.SigningRoot() != old {
		t.Errorf("%+v, %s signs", r, b.SigningRoot())
	}
	s.put(Advance(b.Known(), nil, at.Now()))
	s.put(Advance(b.Known(), nil, at.Now()))
	if got := roots(t, b); len(got) != 1 || got[0] != fingerprintOf(c.root) || b.SigningRoot() != got[0] {
		t.Errorf("roots %v, %s signs", got, b.SigningRoot())
	}
	if st, _ := b.FilesStatus(); st.Waiting {
		t.Errorf("%+v", st)
	}
	// Without other files there is nothing to rotate to, and without any nothing signs.
	if _, err := b.Begin(context.Background()); !errors.Is(err, ErrRotation) {
		t.Errorf("a rotation to the same: %v", err)
	}
	if _, err := New(context.Background(), Config{TrustDomain: "weir.local", Keep: keep, Now: at.Now, Roots: b.Known()}); err == nil || !strings.Contains(err.Error(), "--ca-cert") {
		t.Errorf("without the files: %v", err)
	}
	// Those of another root, at a start, would leave every proxy behind.
	other := newCompany(t, "Other Root", at.now)
	if _, err := New(context.Background(), Config{TrustDomain: "weir.local", Keep: keep, Now: at.Now, Roots: b.Known(), Files: other.write(dir, same)}); err == nil {
		t.Error("a start with files of an unknown root")
	}
	// While it runs they wait.
	b.Reload()
	if st, _ := b.FilesStatus(); !st.Waiting || b.SigningRoot() != fingerprintOf(c.root) {
		t.Errorf("%+v", st)
	}
	// Killed in the first stage, it has the new key only, and goes on with that.
	s.begin()
	again, err := New(context.Background(), Config{TrustDomain: "weir.local", Keep: keep, Now: at.Now, Roots: b.Known(), Files: b.cfg.Files})
	must(t, err)
	if again.SigningRoot() != fingerprintOf(other.root) || len(roots(t, again)) != 2 {
		t.Errorf("%s signs, trusted are %v", again.SigningRoot(), roots(t, again))
	}
}

func keyFile(t *testing.T, keys ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	must(t, os.WriteFile(path, []byte("# keys\n"+strings.Join(keys, "\n")+"\n"), 0o600))
	return path
}

func TestSecretsAreEncryptedWhereTheyAreKept(t *testing.T) {
	first := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("a", 32)))
	second := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("b", 32)))
	keep := &memory{values: map[string][]byte{}}
	a, at := newAuthority(t, func(cfg *Config) { cfg.Keep = keep }) // in the clear
	open := func(file string) (*Authority, error) {
		sealed, err := Seal(keep, file)
		must(t, err)
		return New(context.Background(), Config{TrustDomain: "weir.local", Keep: sealed, Now: at.Now})
	}
	for _, file := range []string{keyFile(t, first), keyFile(t, second, first), keyFile(t, second)} {
		b, err := open(file)
		must(t, err)
		if string(b.Bundle()) != string(a.Bundle()) {
			t.Fatal("it has other roots")
		}
		for key, value := range keep.values {
			if !strings.HasPrefix(string(value), string(sealedMark)) || strings.Contains(string(value), "PRIVATE") {
				t.Errorf("%s is kept as %q", key, value)
			}
		}
	}
	for _, file := range []string{"", keyFile(t, first)} {
		if _, err := open(file); err == nil || !strings.Contains(err.Error(), "--ca-key-encryption") {
			t.Errorf("opened by another key: %v", err)
		}
	}
	// One secret cannot be put in the place of another.
	keep.values["token-secret"] = keep.values["ca-root-1"]
	if _, err := open(keyFile(t, second)); err == nil {
		t.Error("a secret is taken for another")
	}
	for _, bad := range []string{"short", "!", base64.StdEncoding.EncodeToString([]byte("16 bytes, no 32!"))} {
		if _, err := Seal(keep, keyFile(t, bad)); err == nil || !strings.Contains(err.Error(), "openssl rand -base64 32") {
			t.Errorf("key %q: %v", bad, err)
		}
	}
	open2 := keyFile(t, first)
	must(t, os.Chmod(open2, 0o644))
	if _, err := Seal(keep, open2); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that all may read: %v", err)
	}
}
