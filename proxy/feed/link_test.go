package feed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestAReconnectTellsVersionsAndGetsOnlyWhatDiffers(t *testing.T) {
	c := newControl(t)
	at, stop := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80))
	c.set(wire.ServiceType, bank.String(), service(bank, 80))
	var a app
	f, _ := start(t, &a, []string{at})
	ready(t, f)
	for _, n := range []policy.ServiceName{store, bank} {
		if !f.Service(t.Context(), n) {
			t.Fatal(n)
		}
	}
	if f.Service(t.Context(), policy.ServiceName{Namespace: "shop", Name: "none"}) {
		t.Fatal("none is known")
	}
	stop()
	connected(t, f, false)
	if !f.Service(t.Context(), store) || f.Status().LastError == "" {
		t.Errorf("%+v", f.Status())
	}
	c.set(wire.ServiceType, bank.String(), service(bank, 80, 81))
	for len(c.requests) > 0 {
		<-c.requests
	}
	a.mu.Lock()
	calls := a.calls
	a.mu.Unlock()
	c.serve(at, nil)
	a.until(t, "the change", func() bool { return len(a.services[bank].Endpoints) == 2 })
	first := c.request(wire.ServiceType, subscribes(store.String()))
	if !slices.Equal(first.ResourceNamesSubscribe, []string{"money/bank", "shop/none", "shop/store"}) {
		t.Error(first.ResourceNamesSubscribe)
	}
	if got := slices.Sorted(maps.Keys(first.InitialResourceVersions)); !slices.Equal(got, []string{"money/bank", "shop/store"}) {
		t.Error("versions of", got)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.calls != calls+1 {
		t.Errorf("%d hook calls for one change", a.calls-calls)
	}
}

func TestTheNextControlPlaneTakesOver(t *testing.T) {
	one, two := newControl(t), newControl(t)
	at1, stop := one.serve("", nil)
	at2, _ := two.serve("", nil)
	two.set(wire.MeshType, wire.MeshName, wire.FromMesh(policy.Mesh{TrustDomain: "two"}))
	var a app
	f, _ := start(t, &a, []string{at1, at2})
	if ready(t, f); f.Status().Control != at1 {
		t.Fatal(f.Status())
	}
	stop()
	a.until(t, "the other's state", func() bool { return a.mesh.TrustDomain == "two" })
	if f.Status().Control != at2 {
		t.Error(f.Status())
	}
}

func TestDisconnectedNothingIsWaitedFor(t *testing.T) {
	c := newControl(t)
	at, stop := c.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at}, func(cfg *Config) { cfg.Wait = time.Hour })
	ready(t, f)
	// Who waits already is let go when the connection ends.
	c.change(func() { c.mute = true })
	waiting := make(chan bool)
	go func() { waiting <- f.Service(context.Background(), store) }()
	c.request(wire.ServiceType, subscribes(store.String()))
	stop()
	if <-waiting {
		t.Error("known")
	}
	connected(t, f, false)
	if f.Service(t.Context(), bank) {
		t.Error("known")
	}
	if _, ok := f.ServiceAt(t.Context(), netip.MustParseAddrPort("10.0.0.5:80")); ok {
		t.Error("known")
	}
	// What was asked for meanwhile is asked for on return.
	c.change(func() { c.mute = false })
	c.set(wire.ServiceType, bank.String(), service(bank, 80))
	c.serve(at, nil)
	a.until(t, "the service", func() bool { return a.services[bank] != nil })
}

func TestASilentControlPlaneIsWaitedForOnce(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at}, func(cfg *Config) { cfg.Wait = 50 * time.Millisecond })
	ready(t, f)
	c.change(func() { c.mute = true })
	if f.Service(t.Context(), store) {
		t.Error("known")
	}
	f.mu.RLock()
	s := f.subs.services[store]
	f.mu.RUnlock()
	if left := s.until.Sub(f.cfg.Now()); left > 0 {
		t.Errorf("the second waits for %s more", left)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f.Service(ctx, bank) {
		t.Error("known")
	}
	// A late answer counts.
	c.set(wire.ServiceType, store.String(), service(store, 80))
	a.until(t, "the service", func() bool { return a.services[store] != nil })
}

func TestOverTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"control.weir-system"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	c := newControl(t)
	at, _ := c.serve("", credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}))
	trusting := &tls.Config{RootCAs: pool, ServerName: "control.weir-system", MinVersion: tls.VersionTLS13}
	var a, b app
	f, _ := start(t, &a, []string{at}, func(cfg *Config) { cfg.TLS = func() *tls.Config { return trusting } })
	ready(t, f)

	// One that does not trust it says so and hears nothing.
	doubting := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "control.weir-system"}
	g, _ := start(t, &b, []string{at}, func(cfg *Config) { cfg.TLS = func() *tls.Config { return doubting } })
	for end := time.Now().Add(20 * time.Second); !strings.Contains(g.Status().LastError, "unknown authority"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", g.Status())
		}
	}
	if g.Connected() || b.mesh.TrustDomain != "" {
		t.Error("connected")
	}
}

func TestBackoff(t *testing.T) {
	f := &Feed{cfg: Config{Control: []string{"a", "b"}, Rand: func() float64 { return 1 }}}
	var got []time.Duration
	for n := range 16 {
		got = append(got, f.backoff(n))
	}
	if got[0] != minBackoff || got[1] != minBackoff || got[2] != 2*minBackoff || got[15] != maxBackoff || f.backoff(1<<40) != maxBackoff {
		t.Error(got)
	}
}
