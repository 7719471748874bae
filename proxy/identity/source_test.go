package identity

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// issued is one identity that a source brings.
type issued struct {
	chain []*x509.Certificate
	key   crypto.Signer
	roots []*x509.Certificate
}

func (a *authority) issue(t *testing.T, name policy.ServiceName, change ...func(*x509.Certificate)) issued {
	key := newKey(t)
	return issued{[]*x509.Certificate{a.leaf(t, name, &key.PublicKey, time.Now().Add(-time.Minute), time.Now().Add(time.Hour), change...)}, key, []*x509.Certificate{a.cert}}
}

// sourced starts an identity whose source brings what is put in.
func sourced(t *testing.T, name policy.ServiceName, change ...func(*Config)) (i *Identity, put func(issued) error) {
	t.Helper()
	in, out := make(chan issued, 1), make(chan error)
	cfg := Config{Control: []string{"unused:1"}, Service: name, CacheDir: t.TempDir()}
	cfg.Source = func(ctx context.Context, take func([]*x509.Certificate, crypto.Signer, []*x509.Certificate) error) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case x := <-in:
				err := take(x.chain, x.key, x.roots)
				select {
				case out <- err:
				case <-t.Context().Done():
				}
			}
		}
	}
	for _, f := range change {
		f(&cfg)
	}
	i = newIdentity(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		err := i.Start(ctx)
		if err == nil {
			err = i.Run(ctx)
		}
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return i, func(x issued) error {
		in <- x
		return <-out
	}
}

// TestAnIdentityOfASourceIsFollowed: it is in force at once, its successor too,
// under new roots; what is not ours is refused and the old stays; nothing of it is
// written to disk.
func TestAnIdentityOfASourceIsFollowed(t *testing.T) {
	ca := newAuthority(t)
	a, put := sourced(t, web)
	if err := put(ca.issue(t, store)); err == nil {
		t.Error("another's identity is taken")
	}
	if err := put(ca.issue(t, web)); err != nil {
		t.Fatal(err)
	}
	b := workload(t, ca, store)
	if _, _, serverErr, clientErr := handshake(t, b.ServerTLS(), a.ClientTLS(store)); serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	first := a.now.Load()
	next := newAuthority(t)
	mixed := ca.issue(t, web)
	mixed.roots = next.issue(t, web).roots
	if err := put(mixed); err == nil || a.now.Load() != first {
		t.Error("a certificate that does not stand under its own roots is taken")
	}
	again := ca.issue(t, web)
	if err := put(again); err != nil || a.now.Load().chain[0] != again.chain[0] || a.now.Load().trust != first.trust {
		t.Errorf("the next certificate: %v", err)
	}
	if err := put(next.issue(t, web)); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := handshake(t, b.ServerTLS(), a.ClientTLS(store)); err == nil {
		t.Error("a root that the source dropped is trusted")
	}
	// The mesh's own roots are trusted beside those of the source, and as long as
	// the control plane says so.
	if err := a.SetBundle(ca.pem()); err != nil {
		t.Fatal(err)
	}
	server := workload(t, ca, store, func(*Config) {})
	if err := server.SetBundle(append(ca.pem(), next.pem()...)); err != nil {
		t.Fatal(err)
	}
	if _, _, serverErr, clientErr := handshake(t, server.ServerTLS(), a.ClientTLS(store)); serverErr != nil || clientErr != nil {
		t.Error("a workload of the mesh's own authority:", serverErr, clientErr)
	}
	if left, err := os.ReadDir(a.cfg.CacheDir); err != nil || len(left) != 0 {
		t.Errorf("on disk is %v, %v", left, err)
	}
}

func TestASourcesIDsAreReadByATemplate(t *testing.T) {
	ca := newAuthority(t)
	form := func(path string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: domain, Path: path}} }
	}
	template := func(c *Config) { c.Template = "/k8s/{namespace}/{service}" }
	a, put := sourced(t, web, template)
	if err := put(ca.issue(t, web)); err == nil {
		t.Error("an ID of another form is taken")
	}
	if err := put(ca.issue(t, web, form("/k8s/shop/web"))); err != nil {
		t.Fatal(err)
	}
	b, put2 := sourced(t, store, template)
	if err := put2(ca.issue(t, store, form("/k8s/shop/store"))); err != nil {
		t.Fatal(err)
	}
	cs, _, serverErr, clientErr := handshake(t, b.ServerTLS(), a.ClientTLS(store))
	if name, err := b.Peer(cs); serverErr != nil || clientErr != nil || name != web || err != nil {
		t.Error(serverErr, clientErr, name, err)
	}
}

// TestJoiningWithAServiceAccount: the token goes to the control plane that the
// root vouches for, and to no other.
func TestJoiningWithAServiceAccount(t *testing.T) {
	ca := newAuthority(t)
	l := listen(t)
	c := newControl(t, ca)
	c.serve(l)
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cfg := Config{Control: []string{l.Addr().String()}, Service: web, AccountTokenFile: write("token", []byte("pod-token\n")), ControlCAFile: write("ca", ca.pem())}
	i := newIdentity(t, cfg)
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i.TrustDomain() != domain || c.account != "pod-token as shop/web" {
		t.Errorf("joined %s by %q", i.TrustDomain(), c.account)
	}
	c.set(func() { c.account = "" })
	for name, change := range map[string]func(*Config){
		"another root": func(c *Config) { c.ControlCAFile = write("other", newAuthority(t).pem()) },
		"no root":      func(c *Config) { c.ControlCAFile = "" },
		"no token":     func(c *Config) { c.AccountTokenFile = filepath.Join(dir, "none") },
		"empty token":  func(c *Config) { c.AccountTokenFile = write("empty", nil) },
	} {
		bad := cfg
		change(&bad)
		if err := newIdentity(t, bad).Start(t.Context()); err == nil || c.account != "" {
			t.Errorf("%s: %v; the control plane got %q", name, err, c.account)
		}
	}
}

// TestAJoinIsTriedAgainWithTheSameKey, so that a use that was counted for an
// answer that never came is the same use.
func TestAJoinIsTriedAgainWithTheSameKey(t *testing.T) {
	ca := newAuthority(t)
	l := listen(t)
	c := newControl(t, ca)
	lost := 0
	c.spoil = func(r *wire.JoinResponse) {
		if lost++; lost < 3 {
			r.Certificate = nil
		}
	}
	c.serve(l)
	file := tokenFile(t, ca.token(web, time.Now().Add(time.Hour)))
	if err := newIdentity(t, Config{Control: []string{l.Addr().String()}, Service: web, TokenFile: file}).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var keys []any
	for _, der := range c.asked {
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, csr.PublicKey)
	}
	if len(keys) != 3 || !reflect.DeepEqual(keys[0], keys[1]) || !reflect.DeepEqual(keys[1], keys[2]) {
		t.Errorf("%d requests, by keys %v", len(keys), keys)
	}
}
