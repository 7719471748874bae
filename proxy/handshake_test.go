package proxy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/identity"
)

// shop is the caller in these tests, front the sidecar that is called.
var (
	shop  = policy.ServiceName{Namespace: "default", Name: "shop"}
	front = policy.ServiceName{Namespace: "default", Name: "front"}
)

// root is an authority that signs what a test asks for, right or wrong.
type root struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newRoot(t testing.TB) *root {
	t.Helper()
	r := &root{t: t, key: newECKey(t)}
	r.cert = r.sign(&x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}, nil, r.key)
	return r
}

func newECKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (r *root) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	r.t.Helper()
	if parent == nil {
		parent = template
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, r.key)
	if err != nil {
		r.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		r.t.Fatal(err)
	}
	return cert
}

// leaf is a workload's certificate, spoiled by change.
func (r *root) leaf(name policy.ServiceName, change ...func(*x509.Certificate)) tls.Certificate {
	r.t.Helper()
	key := newECKey(r.t)
	template := &x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, URIs: []*url.URL{spiffe(name)},
	}
	for _, f := range change {
		f(template)
	}
	cert := r.sign(template, r.cert, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func spiffe(name policy.ServiceName) *url.URL {
	u, err := url.Parse(name.SPIFFE("test.weir"))
	if err != nil {
		panic(err)
	}
	return u
}

// identity gives a proxy's identity, as one that kept its certificate starts.
func (r *root) identity(t testing.TB, name policy.ServiceName) *identity.Identity {
	r.t.Helper()
	cert := r.leaf(name)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		r.t.Fatal(err)
	}
	var kept bytes.Buffer
	for _, b := range []pem.Block{{Type: "PRIVATE KEY", Bytes: key}, {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, {Type: "WEIR TRUSTED ROOT", Bytes: r.cert.Raw}} {
		_ = pem.Encode(&kept, &b)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "identity.pem"), kept.Bytes(), 0o600); err != nil {
		r.t.Fatal(err)
	}
	id, err := identity.New(identity.Config{Control: []string{"127.0.0.1:1"}, TokenFile: filepath.Join(dir, "none"), Service: name, CacheDir: dir})
	if err == nil {
		err = id.Start(t.Context())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// called is a sidecar with a certificate, called as its neighbours call it, with
// an app behind that answers "hello".
func called(t *testing.T, r *root, change func(*Proxy)) *between {
	t.Helper()
	b := newBetweenOf(t, func(p *Proxy) {
		p.id = r.identity(t, front)
		p.cfg.HandshakeTime = 20 * time.Second
		if change != nil {
			change(p)
		}
	}, (*Proxy).serveInbound)
	b.allowShop(policy.SecurityRule{
		ID: "r", SourceNamespace: "default", SourceService: "shop", DestinationNamespace: "default", DestinationService: "front", AllowedMethods: policy.DefaultMethods(),
	})
	var answering sync.WaitGroup
	answering.Go(func() {
		_ = http.Serve(b.server, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	})
	t.Cleanup(func() { _ = b.server.Close(); answering.Wait() })
	return b
}

func (b *between) allowShop(rules ...policy.SecurityRule) {
	b.t.Helper()
	in := policy.Inbound{Service: front, MTLS: policy.Strict}
	for _, r := range rules {
		in.Rules = append(in.Rules, policy.InboundRule{SecurityRule: r})
	}
	if err := b.p.setInbound(in); err != nil {
		b.t.Fatal(err)
	}
}

func clientOf(cert *tls.Certificate, change ...func(*tls.Config)) *tls.Config {
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"weir"}}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	for _, f := range change {
		f(cfg)
	}
	return cfg
}

// get makes a connection and a request on it.
func get(addr string, cfg *tls.Config) (tls.ConnectionState, string, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", addr, cfg)
	if err != nil {
		return tls.ConnectionState{}, "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: front\r\nConnection: close\r\n\r\n"); err != nil {
		return c.ConnectionState(), "", err
	}
	answer, err := io.ReadAll(c)
	return c.ConnectionState(), string(answer), err
}

// figure is a metric's value as /metrics shows it, "" where it is not there.
func (b *between) figure(series string) string { return figure(b.p, series) }

func figure(p *Proxy, series string) string {
	w := httptest.NewRecorder()
	p.metrics.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func awaitFigure(t *testing.T, p *Proxy, series, want string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); figure(p, series) != want; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s is %q, want %q", series, figure(p, series), want)
		}
		<-time.After(time.Millisecond)
	}
}

func failures(side, reason string) string {
	return fmt.Sprintf(`weir_tls_handshake_failures_total{reason=%q,side=%q}`, reason, side)
}

func done(side, kind string) string {
	return fmt.Sprintf(`weir_tls_handshakes_total{kind=%q,side=%q}`, kind, side)
}

// TestHandshakesThatFailAreRefusedAndCounted: whoever calls with what is no
// certificate of the mesh, or with none, or another TLS, is refused, its reason
// counted once, and the app is not asked.
func TestHandshakesThatFailAreRefusedAndCounted(t *testing.T) {
	r := newRoot(t)
	b := called(t, r, nil)
	good := r.leaf(shop)
	uris := func(list ...*url.URL) func(*x509.Certificate) { return func(c *x509.Certificate) { c.URIs = list } }
	with := func(c tls.Certificate) *tls.Config { return clientOf(&c) }
	self := newRoot(t)
	foreign := *spiffe(shop)
	foreign.Host = "other.weir"
	for _, c := range []struct {
		name, reason string
		cfg          *tls.Config
	}{
		{"wrong trust domain", "trust-domain", with(r.leaf(shop, uris(&foreign)))},
		{"expired leaf", "expired", with(r.leaf(shop, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))},
		{"leaf of tomorrow", "not-yet-valid", with(r.leaf(shop, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }))},
		{"two URIs", "not-a-workload", with(r.leaf(shop, uris(spiffe(shop), spiffe(front))))},
		{"no URI", "not-a-workload", with(r.leaf(shop, uris()))},
		{"self-signed root", "untrusted-root", with(self.leaf(shop))},
		{"no certificate", "no-certificate", clientOf(nil)},
		{"TLS 1.2", "tls-version", clientOf(&good, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			before := b.figure(failures("server", c.reason))
			_, answer, err := get(b.at, c.cfg)
			if err == nil || answer != "" {
				t.Errorf("answered %q, %v", answer, err)
			}
			want := "1"
			if before == "1" {
				want = "2"
			}
			awaitFigure(t, b.p, failures("server", c.reason), want)
		})
	}
	state, answer, err := get(b.at, clientOf(&good))
	if err != nil || !strings.HasSuffix(answer, "hello") {
		t.Fatalf("a good certificate: %q, %v", answer, err)
	}
	if state.CurveID != tls.X25519MLKEM768 {
		t.Errorf("keys were exchanged by %v", state.CurveID)
	}
	awaitFigure(t, b.p, done("server", "full"), "1")
}

// TestClientsThatDoNotFinishTheirHelloAreEnded: one that says nothing, one that
// says half a hello, one that stops after it, one that goes away in the middle, and
// one that speaks plain HTTP: none is kept, each is counted, the app is not asked.
func TestClientsThatDoNotFinishTheirHelloAreEnded(t *testing.T) {
	r := newRoot(t)
	hello := record(t)
	for _, c := range []struct {
		name   string
		say    []byte
		end    bool // half-closes then
		series string
	}{
		{"nothing", nil, false, failures("server", "silent")},
		{"half a hello", hello[:len(hello)/2], false, failures("server", "half-hello")},
		{"a hello and no more", hello, false, failures("server", "timeout")},
		{"a hello and an end", hello, true, failures("server", "closed")},
		{"plain HTTP", []byte("GET / HTTP/1.1\r\nHost: front\r\n\r\n"), false, `weir_denied_total{direction="inbound",namespace="default",reason="mtls-required",service="front"}`},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			b := called(t, r, func(p *Proxy) { p.cfg.HandshakeTime = 200 * time.Millisecond })
			conn, err := net.Dial("tcp", b.at)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = conn.Write(c.say)
			if c.end {
				_ = conn.(*net.TCPConn).CloseWrite()
			}
			awaitFigure(t, b.p, c.series, "1")
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			if c.name != "plain HTTP" { // that is answered 403, and the connection kept
				_, err = io.ReadAll(conn)
				if e, ok := err.(net.Error); ok && e.Timeout() {
					t.Error("the connection is still there")
				}
			}
		})
	}
}

// record is a ClientHello of the mesh, as it is on the wire.
func record(t *testing.T) []byte {
	t.Helper()
	a, z := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { _ = tls.Client(a, clientOf(nil)).Handshake() })
	defer wg.Wait()
	defer func() { _ = z.Close() }()
	head := make([]byte, 5)
	if _, err := io.ReadFull(z, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(z, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// TestServersThatAreNotWhoWasDialled: a server that is another service than
// dialled, one that answers in plain text, and a black hole, which takes the
// connection and never says a word.
func TestServersThatAreNotWhoWasDialled(t *testing.T) {
	r := newRoot(t)
	p := sidecar(t)
	p.id, p.cfg.ConnectLimit = r.identity(t, front), 20*time.Second
	if err := p.makeLoops(); err != nil {
		t.Fatal(err)
	}
	turned := make(chan struct{})
	go func() { defer close(turned); p.runLoops() }()
	t.Cleanup(func() { p.closeLoops(); <-turned })
	serve := func(answer func(net.Conn)) string {
		ln := listenLocal(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { defer func() { _ = c.Close() }(); answer(c) })
			}
		})
		t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
		return ln.Addr().String()
	}
	withTLS := func(name policy.ServiceName, change ...func(*x509.Certificate)) func(net.Conn) {
		cert := r.leaf(name, change...)
		return func(c net.Conn) {
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"weir"}, ClientAuth: tls.RequireAnyClientCert})
			if s.Handshake() == nil {
				_, _ = s.Read(make([]byte, 1)) // until the other side ends it
			}
		}
	}
	dial := func(addr string) error {
		t.Helper()
		svc := usersWith(endpointOf("a", addr, func(e *policy.Target) { e.Meshed = true }))
		if err := p.setService(users, svc); err != nil {
			t.Fatal(err)
		}
		d := p.dests.Load().byName[users]
		result := make(chan error, 1)
		l := p.loops[0]
		l.Post(func() {
			l.Spawn(func() {
				c, err := p.dialEndpoint(l, d, d.choose("", 0).endpoints[0], time.Time{})
				if err == nil {
					_ = c.Close()
				}
				result <- err
			})
		})
		select {
		case err := <-result:
			return err
		case <-time.After(30 * time.Second):
			t.Fatal("the dial did not end")
			return nil
		}
	}
	if err := dial(serve(withTLS(users))); err != nil {
		t.Fatal("the right one:", err)
	}
	awaitFigure(t, p, done("client", "full"), "1")
	for _, c := range []struct {
		name, reason string
		answer       func(net.Conn)
	}{
		{"swapped SAN", "other-service", withTLS(shop)},
		{"expired leaf", "expired", withTLS(users, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })},
		{"plain text", "other", func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
		}},
		{"gone", "closed", func(net.Conn) {}},
	} {
		if err := dial(serve(c.answer)); err == nil {
			t.Errorf("%s: taken", c.name)
		}
		if got := figure(p, failures("client", c.reason)); got != "1" {
			t.Errorf("%s: counted %q times as %s", c.name, got, c.reason)
		}
	}
	p.cfg.ConnectLimit = 100 * time.Millisecond
	if err := dial(serve(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })); err == nil || figure(p, failures("client", "timeout")) != "1" {
		t.Errorf("a black hole: %v", err)
	}
}

// TestAResumedSessionIsAskedAboutAgain: sessions are resumed, and counted; a
// change of policy holds for those too, and a change of roots ends them.
func TestAResumedSessionIsAskedAboutAgain(t *testing.T) {
	r := newRoot(t)
	b := called(t, r, nil)
	caller := r.identity(t, shop)
	cfg := caller.ClientTLS(front)
	for n, kind := range []string{"full", "resumed", "resumed"} {
		state, answer, err := get(b.at, cfg)
		if err != nil || !strings.Contains(answer, "200 OK") || state.DidResume != (n > 0) {
			t.Fatalf("connection %d: %v, resumed %v, %q", n, err, state.DidResume, answer)
		}
		awaitFigure(t, b.p, done("server", kind), fmt.Sprint(max(1, n)))
	}
	b.allowShop() // nobody
	state, answer, err := get(b.at, cfg)
	if !state.DidResume || !strings.Contains(answer, "403 Forbidden") {
		t.Errorf("after the rule was taken away: resumed %v, %q, %v", state.DidResume, answer, err)
	}
	if err := b.p.id.SetBundle(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newRoot(t).cert.Raw})); err != nil {
		t.Fatal(err)
	}
	if _, answer, err := get(b.at, cfg); err == nil && answer != "" {
		t.Errorf("after the root was dropped: %q", answer)
	}
	awaitFigure(t, b.p, failures("server", "untrusted-root"), "1")
}

// manyAtOnce has n clients connect, and then all shake hands at the same time. It
// gives the most memory that was in use meanwhile, of both sides.
func manyAtOnce(t *testing.T, n int) (most uint64) {
	r := newRoot(t)
	b := called(t, r, func(p *Proxy) { p.cfg.HandshakeTime = 5 * time.Minute })
	cert := r.leaf(shop)
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.DialTimeout("tcp", b.at, 30*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns[i] = c
		t.Cleanup(func() { _ = c.Close() })
	}
	ctx, stop := context.WithCancel(t.Context())
	var watch, clients sync.WaitGroup
	watch.Go(func() {
		var m runtime.MemStats
		for ctx.Err() == nil {
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse+m.StackInuse)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	failed := make(chan error, n)
	for _, c := range conns {
		clients.Go(func() {
			_ = c.SetDeadline(time.Now().Add(5 * time.Minute))
			if err := tls.Client(c, clientOf(&cert)).Handshake(); err != nil {
				failed <- err
			}
		})
	}
	clients.Wait()
	close(failed)
	for err := range failed {
		t.Errorf("a handshake of %d at once failed: %v", n, err)
		break
	}
	awaitFigure(t, b.p, done("server", "full"), fmt.Sprint(n))
	stop()
	watch.Wait()
	// And it answers on.
	if _, answer, err := get(b.at, clientOf(&cert)); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("after %d at once: %q, %v", n, answer, err)
	}
	return most
}

// TestManyHandshakesAtOnce: none is stuck, none fails, and memory is bounded.
// TestTenThousandHandshakesAtOnce is the large one.
func TestManyHandshakesAtOnce(t *testing.T) {
	const n = 200
	if most := manyAtOnce(t, n); most > 256<<20 {
		t.Errorf("%d handshakes at once took %d MiB", n, most>>20)
	}
}
