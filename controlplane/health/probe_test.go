package health

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/weir-mesh/weir/policy"
)

// app is one kind of application under check; it gets a listener, plain or TLS.
type app func(t *testing.T, l net.Listener)

func httpApp(h2 bool, h http.HandlerFunc) app {
	return func(t *testing.T, l net.Listener) {
		s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
		s.Protocols.SetHTTP1(!h2)
		s.Protocols.SetUnencryptedHTTP2(h2)
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(plain{l}) }()
		t.Cleanup(func() { _ = s.Close(); <-done })
	}
}

// plain hides that a connection is TLS, as the proxy does from its app.
type plain struct{ net.Listener }

func (p plain) Accept() (net.Conn, error) {
	c, err := p.Listener.Accept()
	return struct{ net.Conn }{c}, err
}

func grpcApp(register func(*grpc.Server)) app {
	return func(t *testing.T, l net.Listener) {
		s := grpc.NewServer()
		register(s)
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(plain{l}) }()
		t.Cleanup(func() { s.Stop(); <-done })
	}
}

func withHealth(st healthpb.HealthCheckResponse_ServingStatus) func(*grpc.Server) {
	return func(s *grpc.Server) {
		h := grpchealth.NewServer()
		h.SetServingStatus("", st)
		healthpb.RegisterHealthServer(s, h)
	}
}

// rawApp handles each connection by hand and closes it.
func rawApp(handle func(net.Conn)) app {
	return func(t *testing.T, l net.Listener) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				if tc, ok := c.(*tls.Conn); ok {
					_ = tc.Handshake()
				}
				handle(c)
				_ = c.Close()
			}
		}()
		t.Cleanup(func() { _ = l.Close(); <-done })
	}
}

func answers(code int, contentType string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" || r.Method != http.MethodGet || r.Header.Get("User-Agent") != userAgent {
			code = http.StatusTeapot
		}
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		if code/100 == 3 {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(code)
	}
}

// endless answers and never comes to an end.
func endless(w http.ResponseWriter, r *http.Request) {
	b := make([]byte, 8192)
	for r.Context().Err() == nil {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// talk reads a request, sends text and waits for the peer to go.
func talk(c net.Conn, text string) {
	_, _ = c.Read(make([]byte, 4096))
	_, _ = c.Write([]byte(text))
	untilClosed(c)
}

// untilClosed reads until the peer is gone.
func untilClosed(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }

func probeOnce(t *testing.T, cfg Config, tg policy.Target) finding {
	t.Helper()
	cfg.Targets = func() []policy.Target { return nil }
	cfg.Report = func(context.Context, policy.Target, Result) {}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f, ok := c.probe(t.Context(), &tg)
	if !ok {
		t.Fatal("it was not checked")
	}
	return f
}

func listen(t *testing.T) (net.Listener, policy.Target) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	tg := target("a")
	addr := netip.MustParseAddrPort(l.Addr().String())
	tg.IP, tg.Port = addr.Addr().String(), int(addr.Port())
	return l, tg
}

var probes = map[string]struct {
	app      app // nil: nothing listens
	protocol string
	passed   bool
	check    string
	detail   string
}{
	"http 200":               {httpApp(false, answers(200, "")), "http", true, "http", "200 OK"},
	"http 204":               {httpApp(false, answers(204, "")), "http", true, "http", "204 No Content"},
	"http 503":               {httpApp(false, answers(503, "")), "http", false, "http", "GET /health: 503 Service Unavailable"},
	"http redirect":          {httpApp(false, answers(302, "")), "http", false, "http", "GET /health: 302 Found"},
	"http code of no name":   {httpApp(false, answers(299, "")), "http", true, "http", "299"},
	"http endless":           {httpApp(false, endless), "http", true, "http", "200 OK"},
	"http on another's port": {rawApp(func(c net.Conn) { _, _ = c.Write([]byte("SSH-2.0-x\r\n")); untilClosed(c) }), "http", false, "http", "GET /health: "},
	"http interim first":     {rawApp(func(c net.Conn) { talk(c, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n") }), "http", true, "http", "200 OK"},
	"http only interim":      {rawApp(func(c net.Conn) { talk(c, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 10000)) }), "http", false, "http", "GET /health: "},
	"http endless header":    {rawApp(func(c net.Conn) { talk(c, "HTTP/1.1 200 OK\r\nA: "+strings.Repeat("a", 1<<20)) }), "http", false, "http", "GET /health: "},
	"http endless nonsense":  {rawApp(func(c net.Conn) { talk(c, strings.Repeat("\xff", 1<<20)) }), "http", false, "http", "GET /health: "},
	"http closes":            {rawApp(func(net.Conn) {}), "http", false, "http", "GET /health: "},
	"http down":              {nil, "http", false, "http", "connect: "},
	"http2 200":              {httpApp(true, answers(200, "")), "http2", true, "http", "200 OK"},
	"http2 500":              {httpApp(true, answers(500, "")), "http2", false, "http", "GET /health: 500 Internal Server Error"},
	"http2 down":             {nil, "http2", false, "http", "connect: "},
	"http2 that is gRPC":     {grpcApp(withHealth(healthpb.HealthCheckResponse_NOT_SERVING)), "http2", false, "grpc", "gRPC health: NOT_SERVING"},
	"grpc serving":           {grpcApp(withHealth(healthpb.HealthCheckResponse_SERVING)), "grpc", true, "grpc", "SERVING"},
	"grpc not serving":       {grpcApp(withHealth(healthpb.HealthCheckResponse_NOT_SERVING)), "grpc", false, "grpc", "gRPC health: NOT_SERVING"},
	"grpc without health":    {grpcApp(func(*grpc.Server) {}), "grpc", true, "grpc", "connected; the app offers no gRPC health service"},
	"grpc that is HTTP/1":    {httpApp(false, answers(200, "")), "grpc", false, "grpc", "gRPC health: Unavailable"},
	"grpc down":              {nil, "grpc", false, "grpc", "connect: "},
	"tcp silent":             {rawApp(untilClosed), "tcp", true, "tcp", "connected"},
	"tcp speaks first":       {rawApp(func(c net.Conn) { _, _ = c.Write([]byte("220 ready\r\n")); untilClosed(c) }), "tcp", true, "tcp", "connected"},
	"tcp down":               {nil, "tcp", false, "tcp", "connect: "},
	"tls":                    {rawApp(untilClosed), "tls", true, "tcp", "connected"},
}

func TestProbePlain(t *testing.T) {
	for name, c := range probes {
		t.Run(name, func(t *testing.T) {
			l, tg := listen(t)
			tg.Protocol = c.protocol
			if c.app == nil {
				_ = l.Close()
			} else {
				c.app(t, l)
			}
			f := probeOnce(t, Config{}, tg)
			if f.passed != c.passed || f.check != c.check || !strings.HasPrefix(f.detail, c.detail) {
				t.Errorf("found %+v, want passed %v, %s, %q", f, c.passed, c.check, c.detail)
			}
			if len(f.detail) > maxDetail+len("…") || !utf8.ValidString(f.detail) {
				t.Errorf("the detail is %q", f.detail)
			}
			if c.app == nil && !strings.Contains(f.detail, "refused") {
				t.Errorf("the detail %q does not say why", f.detail)
			}
		})
	}
}

// The same applications behind a proxy: mTLS on the same port.
func TestProbeMeshed(t *testing.T) {
	mesh := newMeshCA(t)
	for name, c := range probes {
		if c.app == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			l, tg := listen(t)
			tg.Protocol, tg.Meshed = c.protocol, true
			c.app(t, tls.NewListener(l, mesh.server(t, "shop.users")))
			cfg := Config{TLS: func() *tls.Config { return mesh.client(t) }}
			f := probeOnce(t, cfg, tg)
			if f.passed != c.passed || f.check != c.check || !strings.HasPrefix(f.detail, c.detail) {
				t.Errorf("found %+v, want passed %v, %s, %q", f, c.passed, c.check, c.detail)
			}
		})
	}
}

func TestProbeMeshedTCPSeesThatTheAppIsDown(t *testing.T) {
	mesh := newMeshCA(t)
	for name, end := range map[string]func(net.Conn){
		"closes": func(net.Conn) {},
		"resets": func(c net.Conn) {
			tc := c.(*tls.Conn)
			_ = tc.NetConn().(*net.TCPConn).SetLinger(0)
			_ = tc.NetConn().Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, tg := listen(t)
			tg.Meshed = true
			rawApp(end)(t, tls.NewListener(l, mesh.server(t, "shop.users")))
			f := probeOnce(t, Config{TLS: func() *tls.Config { return mesh.client(t) }}, tg)
			if f.passed || !strings.HasPrefix(f.detail, "read: ") {
				t.Errorf("found %+v", f)
			}
		})
	}
}

// A certificate that has ended by this clock says nothing of the app; one of
// another service says that it is not there.
func TestProbeMeshedDoesNotJudgeByTheTimeOfDay(t *testing.T) {
	mesh := newMeshCA(t)
	for by, want := range map[time.Duration]finding{
		0: {check: "tcp", passed: true, detail: "connected"}, 10 * 365 * 24 * time.Hour: {check: "tcp", unclear: true, detail: "TLS: "},
	} {
		l, tg := listen(t)
		tg.Meshed = true
		rawApp(untilClosed)(t, tls.NewListener(l, mesh.server(t, "shop.users")))
		client := mesh.client(t)
		client.Time = func() time.Time { return time.Now().Add(by) }
		f := probeOnce(t, Config{TLS: func() *tls.Config { return client }}, tg)
		if f.passed != want.passed || f.unclear != want.unclear || !strings.HasPrefix(f.detail, want.detail) {
			t.Errorf("by a clock ahead by %v it found %+v", by, f)
		}
	}
}

func TestProbeMeshedTrustsOnlyTheServiceThatIsMeant(t *testing.T) {
	mesh, stranger := newMeshCA(t), newMeshCA(t)
	other := mesh.server(t, "shop.users")
	other.NextProtos = []string{"h2"}
	silent := mesh.server(t, "shop.users")
	silent.NextProtos = nil
	blind := mesh.client(t)
	blind.RootCAs, blind.InsecureSkipVerify = nil, true
	for name, c := range map[string]struct {
		server *tls.Config
		client *tls.Config
		verify func(tls.ConnectionState, policy.ServiceName) error
		detail string
	}{
		"another service":        {mesh.server(t, "shop.orders"), mesh.client(t), nil, "TLS: tls: failed to verify certificate: x509: certificate is valid for shop.orders"},
		"another mesh":           {stranger.server(t, "shop.users"), mesh.client(t), nil, "TLS: tls: failed to verify certificate"},
		"another protocol":       {other, mesh.client(t), nil, "TLS: "},
		"no ALPN":                {silent, mesh.client(t), nil, "TLS: the port takes TLS, but not the mesh's"},
		"no checks":              {mesh.server(t, "shop.users"), blind, nil, "TLS: the configuration verifies nothing"},
		"refused by VerifyPeer":  {mesh.server(t, "shop.users"), mesh.client(t), func(_ tls.ConnectionState, want policy.ServiceName) error { return errors.New("not " + want.String()) }, "TLS: not shop/users"},
		"control plane unknown":  {mesh.server(t, "shop.users"), stranger.clientTrusting(t, mesh), nil, "read: "},
		"skip but with a verify": {mesh.server(t, "shop.users"), blind, func(tls.ConnectionState, policy.ServiceName) error { return nil }, "connected"},
	} {
		t.Run(name, func(t *testing.T) {
			l, tg := listen(t)
			tg.Meshed = true
			rawApp(untilClosed)(t, tls.NewListener(l, c.server))
			f := probeOnce(t, Config{TLS: func() *tls.Config { return c.client }, VerifyPeer: c.verify}, tg)
			if f.passed != (c.detail == "connected") || !strings.HasPrefix(f.detail, c.detail) {
				t.Errorf("found %+v, want %q", f, c.detail)
			}
		})
	}
}

// An app that accepts and then says nothing; the limit is short, the outcome
// does not depend on how short.
func TestProbeGivesUpAtItsLimit(t *testing.T) {
	for _, protocol := range []string{"http", "http2", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			l, tg := listen(t)
			tg.Protocol = protocol
			rawApp(func(c net.Conn) {
				for {
					if _, err := c.Read(make([]byte, 1024)); err != nil {
						return
					}
				}
			})(t, l)
			f := probeOnce(t, Config{Timeout: func() time.Duration { return 50 * time.Millisecond }}, tg)
			if f.passed || !strings.HasSuffix(f.detail, ": no answer within 50ms") {
				t.Errorf("found %+v", f)
			}
		})
	}
}

// meshCA makes certificates as the mesh's CA does, as far as a check looks.
type meshCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newMeshCA(t *testing.T) *meshCA {
	t.Helper()
	ca := &meshCA{}
	ca.key = newKey(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &ca.key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return ca
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (ca *meshCA) issue(t *testing.T, dns string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{dns}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (ca *meshCA) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

func (ca *meshCA) server(t *testing.T, dns string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{ca.issue(t, dns)}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: ca.pool(), NextProtos: []string{alpn}, MinVersion: tls.VersionTLS13}
}

func (ca *meshCA) client(t *testing.T) *tls.Config { return ca.clientTrusting(t, ca) }

func (ca *meshCA) clientTrusting(t *testing.T, roots *meshCA) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "weir-system.control")}, RootCAs: roots.pool()}
}
