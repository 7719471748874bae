package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weir-mesh/weir/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Keeper.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	broken error
}

func (k *memory) GetOrCreate(_ context.Context, key string, make func() ([]byte, error)) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil {
		return nil, k.broken
	}
	if v, ok := k.values[key]; ok {
		return v, nil
	}
	v, err := make()
	if err == nil {
		k.values[key] = v
	}
	return v, err
}

func (k *memory) Get(_ context.Context, key string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.values[key], k.broken
}

func (k *memory) Replace(_ context.Context, key string, old, value []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil || string(k.values[key]) != string(old) {
		return errors.Join(k.broken, errors.New("it is another by now"))
	}
	k.values[key] = value
	return nil
}

// clock is set by the test.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newAuthority(t testing.TB, change ...func(*Config)) (*Authority, *clock) {
	t.Helper()
	at := &clock{now: time.Now()}
	cfg := Config{TrustDomain: "weir.local", Keep: &memory{values: map[string][]byte{}}, Now: at.Now}
	for _, f := range change {
		f(&cfg)
	}
	a, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a, at
}

var cart = policy.ServiceName{Namespace: "shop", Name: "cart"}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func parse(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("not PEM: %q", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return cert
}

func newCSR(t testing.TB, template *x509.CertificateRequest, key any) []byte {
	t.Helper()
	if key == nil {
		var err error
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	must(t, err)
	return der
}

func TestACertificateSaysWhoAndNothingElse(t *testing.T) {
	a, at := newAuthority(t)
	chain, keyPEM, err := a.IssueWithKey(cart)
	must(t, err)
	cert := parse(t, chain)
	if got := cert.Subject.String(); got != "CN=shop.cart,O=Service Mesh" {
		t.Errorf("the subject is %s", got)
	}
	if !slices.Equal(cert.DNSNames, []string{"shop.cart", "cart.shop.svc.cluster.local"}) {
		t.Errorf("the DNS names are %v", cert.DNSNames)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://weir.local/ns/shop/sa/cart" || len(cert.IPAddresses) != 0 {
		t.Errorf("the URIs are %v, the addresses %v", cert.URIs, cert.IPAddresses)
	}
	if d := at.Now().Sub(cert.NotBefore); d < backdate || d > backdate+time.Second {
		t.Errorf("NotBefore is %v ago", d)
	}
	if d := cert.NotAfter.Sub(at.Now()); d > DefaultLeafTTL || d < DefaultLeafTTL-time.Second {
		t.Errorf("it lasts %v", d)
	}
	if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature || len(cert.ExtKeyUsage) != 2 || cert.SerialNumber.BitLen() < 64 {
		t.Errorf("CA %v, usage %v %v, serial %v", cert.IsCA, cert.KeyUsage, cert.ExtKeyUsage, cert.SerialNumber)
	}
	block, _ := pem.Decode(keyPEM)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must(t, err)
	if k, ok := key.(*ecdsa.PrivateKey); !ok || k.Curve != elliptic.P256() || !k.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("the key is %T", key)
	}
	root := parse(t, a.RootPEM())
	if root.Subject.CommonName != "Service Mesh Root CA" || !root.IsCA || !root.MaxPathLenZero || root.NotAfter.Sub(at.Now()).Round(time.Hour) != RootTTL {
		t.Errorf("the root is %+v, until %v", root.Subject, root.NotAfter)
	}
}

func TestOpenSSLAgrees(t *testing.T) {
	a, _ := newAuthority(t)
	chain, keyPEM, err := a.IssueWithKey(cart)
	must(t, err)
	dir := t.TempDir()
	for name, text := range map[string][]byte{"leaf.pem": chain, "root.pem": a.RootPEM(), "key.pem": keyPEM} {
		must(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("openssl %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for _, purpose := range []string{"sslserver", "sslclient"} {
		run("verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem", "leaf.pem")
	}
	run("verify", "-x509_strict", "-verify_hostname", "cart.shop.svc.cluster.local", "-CAfile", "root.pem", "leaf.pem")
	text := run("x509", "-in", "leaf.pem", "-noout", "-text")
	for _, want := range []string{"DNS:shop.cart", "URI:spiffe://weir.local/ns/shop/sa/cart", "CA:FALSE", "O = Service Mesh, CN = shop.cart", "ASN1 OID: prime256v1"} {
		if !strings.Contains(strings.ReplaceAll(text, "O=Service Mesh, CN=shop.cart", "O = Service Mesh, CN = shop.cart"), want) {
			t.Errorf("openssl does not show %q:\n%s", want, text)
		}
	}
	if pub, priv := run("x509", "-in", "leaf.pem", "-noout", "-pubkey"), run("pkey", "-in", "key.pem", "-pubout"); pub != priv {
		t.Error("the key is not the certificate's")
	}
	// And a request made by openssl is taken.
	run("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "own.pem", "-subj", "/CN=whatever", "-out", "csr.pem")
	csr, err := os.ReadFile(filepath.Join(dir, "csr.pem"))
	must(t, err)
	chain, err = a.IssueForCSR(cart, csr)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "leaf.pem"), chain, 0o600))
	run("verify", "-x509_strict", "-CAfile", "root.pem", "leaf.pem")
}

func TestNothingOfARequestIsTakenButItsKey(t *testing.T) {
	a, _ := newAuthority(t)
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	der := newCSR(t, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "shop.admin", Organization: []string{"Evil"}},
		DNSNames: []string{"control.weir-system", "*"}, EmailAddresses: []string{"a@b"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "weir.local", Path: "/ns/shop/sa/cart"}},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA:TRUE
		},
	}, key)
	for name, csr := range map[string][]byte{"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})} {
		chain, err := a.IssueForCSR(cart, csr)
		must(t, err)
		cert := parse(t, chain)
		if cert.Subject.CommonName != "shop.cart" || len(cert.DNSNames) != 2 || len(cert.URIs) != 1 || cert.IsCA || len(cert.EmailAddresses) != 0 || cert.Subject.Organization[0] != "Service Mesh" {
			t.Errorf("%s: the certificate is of %v, names %v, URIs %v, CA %v", name, cert.Subject, cert.DNSNames, cert.URIs, cert.IsCA)
		}
		if !key.PublicKey.Equal(cert.PublicKey) {
			t.Errorf("%s: the key is another", name)
		}
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	a, _ := newAuthority(t)
	good := newCSR(t, &x509.CertificateRequest{}, nil)
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	must(t, err)
	asks := func(uri string) []byte {
		u, err := url.Parse(uri)
		must(t, err)
		return newCSR(t, &x509.CertificateRequest{URIs: []*url.URL{u}}, nil)
	}
	asPEM := func(kind string) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: good}) }
	for name, csr := range map[string][]byte{
		"empty":                nil,
		"text":                 []byte("hello"),
		"a certificate":        a.RootPEM(),
		"PEM of another kind":  asPEM("CERTIFICATE"),
		"two requests":         append(asPEM("CERTIFICATE REQUEST"), asPEM("CERTIFICATE REQUEST")...),
		"broken PEM":           []byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA"),
		"trailing bytes":       append(slices.Clone(good), 0),
		"forged":               forged,
		"P-521":                newCSR(t, &x509.CertificateRequest{}, p521),
		"another service":      asks("spiffe://weir.local/ns/shop/sa/admin"),
		"another namespace":    asks("spiffe://weir.local/ns/bank/sa/cart"),
		"another trust domain": asks("spiffe://evil.local/ns/shop/sa/cart"),
		"the control plane":    asks("spiffe://weir.local/ns/weir-system/sa/control"),
		"not a SPIFFE ID":      asks("https://weir.local/ns/shop/sa/cart"),
		"huge":                 make([]byte, maxCSR+1),
	} {
		if chain, err := a.IssueForCSR(cart, csr); !errors.Is(err, ErrCSR) || chain != nil {
			t.Errorf("%s: %q, %v", name, chain, err)
		}
	}
	for bits, ok := range map[int]bool{1024: false, 2048: true} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil { // Go itself refuses to make the weak key
			t.Setenv("GODEBUG", "rsa1024min=0")
			key, err = rsa.GenerateKey(rand.Reader, bits)
		}
		must(t, err)
		if _, err := a.IssueForCSR(cart, newCSR(t, &x509.CertificateRequest{}, key)); (err == nil) != ok {
			t.Errorf("RSA with %d bits: %v", bits, err)
		}
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	if _, err := a.IssueForCSR(cart, newCSR(t, &x509.CertificateRequest{}, ed)); err != nil {
		t.Errorf("Ed25519: %v", err)
	}
}

func TestNamesThatNoWorkloadHas(t *testing.T) {
	a, _ := newAuthority(t)
	csr := newCSR(t, &x509.CertificateRequest{}, nil)
	for _, name := range []policy.ServiceName{policy.ControlPlane, {Namespace: "weir-system", Name: "x"}, {}, {Namespace: "shop"}, {Name: "cart"}, {Namespace: "a/b", Name: "c"}, {Namespace: "*", Name: "*"}, {Namespace: "Shop", Name: "cart"}} {
		_, err1 := a.IssueForCSR(name, csr)
		_, _, err2 := a.IssueWithKey(name)
		_, _, err3 := a.NewToken(name, 0)
		for _, err := range []error{err1, err2, err3} {
			if !errors.Is(err, ErrName) {
				t.Errorf("%s: the error is %v", name, err)
			}
		}
	}
	long := policy.ServiceName{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("s", 63)}
	chain, _, err := a.IssueWithKey(long)
	must(t, err)
	if cert := parse(t, chain); cert.Subject.CommonName != "" || cert.DNSNames[0] != long.Namespace+"."+long.Name {
		t.Errorf("a long name gives %v %v", cert.Subject, cert.DNSNames)
	}
}

func TestARootIsMadeOnce(t *testing.T) {
	keep := &memory{values: map[string][]byte{}}
	with := func(domain string) func(*Config) {
		return func(c *Config) { c.Keep, c.TrustDomain = keep, domain }
	}
	a, _ := newAuthority(t, with("weir.local"))
	b, _ := newAuthority(t, with("weir.local"))
	if string(a.RootPEM()) != string(b.RootPEM()) || string(a.Bundle()) != string(a.RootPEM()) {
		t.Error("two starts have two roots")
	}
	token, _, err := a.NewToken(cart, 0)
	must(t, err)
	if name, err := b.CheckToken(token); err != nil || name != cart {
		t.Errorf("%v, %v", name, err)
	}
	ctx := context.Background()
	if _, err := New(ctx, Config{TrustDomain: "other.local", Keep: keep}); err == nil || !strings.Contains(err.Error(), "other.local") {
		t.Errorf("another trust domain on the same root: %v", err)
	}
	for name, cfg := range map[string]Config{
		"no trust domain":  {Keep: keep},
		"bad trust domain": {TrustDomain: "Weir Local", Keep: keep},
		"leaf too long":    {TrustDomain: "weir.local", Keep: keep, LeafTTL: MaxLeafTTL + 1},
		"leaf too short":   {TrustDomain: "weir.local", Keep: keep, LeafTTL: time.Second},
		"keeper broken":    {TrustDomain: "weir.local", Keep: &memory{broken: errors.New("no disk")}},
		"root damaged":     {TrustDomain: "weir.local", Keep: &memory{values: map[string][]byte{"ca-root-1": []byte("x")}}},
		"secret damaged":   {TrustDomain: "weir.local", Keep: &memory{values: map[string][]byte{"token-secret": []byte("x")}}},
		"key of another":   {TrustDomain: "weir.local", Keep: &memory{values: map[string][]byte{"ca-root-1": swapKey(t)}}},
	} {
		if _, err := New(ctx, cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func swapKey(t *testing.T) []byte {
	a, _ := newAuthority(t)
	now := time.Now()
	one, err := a.makeRoot(now)
	must(t, err)
	two, err := a.makeRoot(now)
	must(t, err)
	_, key := pem.Decode(two)
	return append(one[:len(one)-len(key)], key...)
}

// A year and a half of a mesh, day by day: what is signed is trusted by those
// who know the bundle of the day before, and lives within its root's life.
func TestTheRootRotatesAndNobodyNotices(t *testing.T) {
	a, at := newAuthority(t, func(c *Config) { c.LeafTTL = MaxLeafTTL })
	var live []*x509.Certificate
	roots := map[string]bool{}
	bundle := a.Bundle()
	for range 550 {
		at.Add(24 * time.Hour)
		before := bundle
		changed, err := a.Rotate(t.Context())
		must(t, err)
		bundle = a.Bundle()
		if changed != (string(before) != string(bundle)) {
			t.Fatal("changed does not tell whether the bundle changed")
		}
		chain, _, err := a.IssueWithKey(cart)
		must(t, err)
		fresh := parse(t, chain)
		roots[string(a.RootPEM())] = true
		for _, known := range [][]byte{before, bundle} {
			verifies(t, known, at.Now(), fresh)
		}
		live = append(live, fresh)
		for len(live) > 0 && live[0].NotAfter.Before(at.Now()) {
			live = live[1:]
		}
		verifies(t, bundle, at.Now(), live[0]) // the oldest that still counts
	}
	if len(roots) != 2 && len(roots) != 3 {
		t.Errorf("%d roots have signed", len(roots))
	}
}

func verifies(t *testing.T, bundle []byte, now time.Time, leaf *x509.Certificate) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Fatalf("at %v: %v", now, err)
	}
}

func TestAControlPlaneThatWasAwayForYears(t *testing.T) {
	a, at := newAuthority(t)
	old := string(a.Bundle())
	at.Add(3 * RootTTL)
	if _, _, err := a.IssueWithKey(cart); err == nil {
		t.Error("an ended root signed")
	}
	changed, err := a.Rotate(t.Context())
	must(t, err)
	if !changed || strings.Contains(string(a.Bundle()), old) {
		t.Error("the ended root is still in the bundle")
	}
	chain, _, err := a.IssueWithKey(cart)
	must(t, err)
	verifies(t, a.Bundle(), at.Now(), parse(t, chain))
}

// A clock that ran ahead for an hour makes successors that begin in years. They
// must not be what is left when the root ends.
func TestAClockThatRanAheadLeavesNoRootThatNobodyCanVerify(t *testing.T) {
	a, at := newAuthority(t)
	first := string(a.Bundle())
	at.Add(3 * RootTTL)
	_, err := a.Rotate(t.Context())
	must(t, err)
	at.Add(-3 * RootTTL)
	_, err = a.Rotate(t.Context())
	must(t, err)
	if string(a.Bundle()) != first {
		t.Error("with the clock right again the bundle is another")
	}
	for range 40 { // in steps of ten days, over the end of the root
		at.Add(10 * 24 * time.Hour)
		_, err = a.Rotate(t.Context())
		must(t, err)
		chain, _, err := a.IssueWithKey(cart)
		must(t, err)
		verifies(t, a.Bundle(), at.Now(), parse(t, chain))
	}
}

func TestAClockThatIsSetBackStillSignsWhatVerifiesThen(t *testing.T) {
	a, at := newAuthority(t)
	at.Add(100 * 24 * time.Hour)
	_, err := a.Rotate(t.Context())
	must(t, err)
	at.Add(-50 * 24 * time.Hour)
	_, err = a.Rotate(t.Context())
	must(t, err)
	chain, _, err := a.IssueWithKey(cart)
	must(t, err)
	verifies(t, a.Bundle(), at.Now(), parse(t, chain))
	if token, _, err := a.NewToken(cart, time.Hour); err != nil {
		t.Error(err)
	} else if _, err := a.CheckToken(token); err != nil {
		t.Error(err)
	}
}
