package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
)

// TestTheRootsOfSPIREAreFollowed: a file that changes is taken, one that is wrong
// is not, and the roots before stay; at the start a wrong one is an error.
func TestTheRootsOfSPIREAreFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bundle")
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root := func(isCA bool) []byte {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: isCA, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	var none *spireRoots
	if got, err := newSPIRERoots("", "weir.local", zap.NewNop()); got != nil || err != nil || none.now() != nil {
		t.Errorf("without a file: %v %v", got, err)
	}
	for name, text := range map[string][]byte{"empty": nil, "text": []byte("x"), "a leaf": root(false), "a bundle without roots": []byte(`{"keys":[]}`)} {
		write(text)
		if _, err := newSPIRERoots(path, "weir.local", zap.NewNop()); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	one := root(true)
	write(one)
	s, err := newSPIRERoots(path, "weir.local", zap.NewNop())
	if err != nil || len(s.now()) != 1 {
		t.Fatalf("%v", err)
	}
	for _, c := range []struct {
		text    []byte
		changed bool
		bad     bool
		roots   int
	}{{one, false, false, 1}, {append(one, root(true)...), true, false, 2}, {[]byte("x"), false, true, 2}, {root(false), false, true, 2}, {one, true, false, 1}} {
		write(c.text)
		if changed, err := s.load(); changed != c.changed || (err != nil) != c.bad || len(s.now()) != c.roots {
			t.Errorf("changed %v, %v, %d roots; want %+v", changed, err, len(s.now()), c)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(); err == nil || len(s.now()) != 1 {
		t.Errorf("a file that is gone: %v", err)
	}
}
