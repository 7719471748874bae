package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "test.weir"

var (
	web   = policy.ServiceName{Namespace: "shop", Name: "web"}
	store = policy.ServiceName{Namespace: "shop", Name: "store"}
)

// authority is a root that signs what a test asks for, right or wrong.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial atomic.Int64

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: "Service Mesh Root CA"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return &authority{sign(t, tmpl, tmpl, &key.PublicKey, key), key}
}

// impostor calls itself by the authority's name, with a key of its own.
func (a *authority) impostor(t testing.TB) *authority {
	t.Helper()
	key := newKey(t)
	tmpl := *a.cert
	tmpl.PublicKey = nil
	return &authority{sign(t, &tmpl, &tmpl, &key.PublicKey, key), key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a *authority) pem() []byte { return encode(a.cert) }

func encode(certs ...*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return out.Bytes()
}

// leaf makes a workload's certificate; change may spoil it.
func (a *authority) leaf(t testing.TB, name policy.ServiceName, pub crypto.PublicKey, from, until time.Time, change ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	id, err := url.Parse(name.SPIFFE(domain))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)),
		Subject:      pkix.Name{Organization: []string{"Service Mesh"}, CommonName: name.Namespace + "." + name.Name},
		NotBefore:    from, NotAfter: until, URIs: []*url.URL{id},
		DNSNames:    []string{name.Namespace + "." + name.Name, name.Name + "." + name.Namespace + ".svc.cluster.local"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if name == policy.ControlPlane {
		tmpl.DNSNames = []string{"control.weir-system"}
	}
	for _, f := range change {
		f(tmpl)
	}
	return sign(t, tmpl, a.cert, pub, a.key)
}

func mustHeld(t testing.TB, a *authority, name policy.ServiceName, from, until time.Time) *held {
	t.Helper()
	key, err := makeKey()
	if err != nil {
		t.Fatal(err)
	}
	h, err := newHeld(encode(a.leaf(t, name, key.Public(), from, until)), a.pem(), key, mustDomain(domain))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// workload is an Identity that has a certificate without having joined.
func workload(t testing.TB, a *authority, name policy.ServiceName, change ...func(*Config)) *Identity {
	t.Helper()
	cfg := Config{Control: []string{"unused"}, Service: name}
	for _, f := range change {
		f(&cfg)
	}
	id, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	now := id.cfg.Now()
	id.now.Store(mustHeld(t, a, name, now.Add(-2*time.Minute), now.Add(24*time.Hour)))
	return id
}

// control is the control plane as far as identities go: it keeps what it was
// asked and can be told to fail.
type control struct {
	wire.UnimplementedJoinServer
	t    testing.TB
	life time.Duration
	now  func() time.Time

	mu      sync.Mutex
	ca      *authority
	fail    error                    // answered instead of a certificate
	spoil   func(*wire.JoinResponse) // changes an answer
	joins   int
	asked   [][]byte // requests of joins
	account string   // who joined with a service account's token, and as what
	renewed int
	calls   chan string // "join", "renew": each call as it came
}

func newControl(t testing.TB, ca *authority) *control {
	return &control{t: t, ca: ca, life: 24 * time.Hour, now: time.Now, calls: make(chan string, 1000)}
}

func (c *control) Join(_ context.Context, r *wire.JoinRequest) (*wire.JoinResponse, error) {
	if r.GetKubernetesToken() != "" {
		name := policy.ServiceName{Namespace: r.GetService().GetNamespace(), Name: r.GetService().GetName()}
		c.set(func() { c.account = r.GetKubernetesToken() + " as " + name.String() })
		return c.answer("join", name, r.Csr)
	}
	tok, err := parseToken(r.Token)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	c.set(func() { c.joins++; c.asked = append(c.asked, r.GetCsr()) })
	return c.answer("join", tok.service, r.Csr)
}

func (c *control) Renew(ctx context.Context, r *wire.RenewRequest) (*wire.JoinResponse, error) {
	p, _ := grpcpeer.FromContext(ctx)
	info := p.AuthInfo.(credentials.TLSInfo)
	if len(info.State.VerifiedChains) == 0 {
		return nil, status.Error(codes.Unauthenticated, "show a certificate")
	}
	name, err := policy.ParseSPIFFEPath(info.State.PeerCertificates[0].URIs[0].Path)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	c.mu.Lock()
	c.renewed++
	c.mu.Unlock()
	return c.answer("renew", name, r.Csr)
}

func (c *control) answer(call string, name policy.ServiceName, der []byte) (*wire.JoinResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls <- call
	if c.fail != nil {
		return nil, c.fail
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	now := c.now()
	leaf := c.ca.leaf(c.t, name, csr.PublicKey, now.Add(-2*time.Minute), now.Add(c.life))
	resp := &wire.JoinResponse{Certificate: encode(leaf), Bundle: c.ca.pem(), TrustDomain: domain}
	if c.spoil != nil {
		c.spoil(resp)
	}
	return resp, nil
}

func (c *control) set(f func()) { c.mu.Lock(); defer c.mu.Unlock(); f() }

// serve runs the control plane on a listener until the test ends or stop is called.
func (c *control) serve(l net.Listener, change ...func(*tls.Config)) (stop func()) {
	key := newKey(c.t)
	leaf := c.ca.leaf(c.t, policy.ControlPlane, &key.PublicKey, c.now().Add(-2*time.Minute), c.now().Add(300*24*time.Hour))
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.cert)
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool, Time: c.now,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, c.ca.cert.Raw}, PrivateKey: key}},
	}
	for _, f := range change {
		f(cfg)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(cfg)))
	wire.RegisterJoinServer(s, c)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	stop = sync.OnceFunc(func() { s.Stop(); <-done })
	c.t.Cleanup(stop)
	return stop
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// inMemory gives a listener that works inside testing/synctest, and its Dial.
func inMemory() (*bufconn.Listener, func(context.Context, string, string) (net.Conn, error)) {
	l := bufconn.Listen(1 << 16)
	return l, func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) }
}

func (a *authority) token(name policy.ServiceName, expires time.Time, change ...func(map[string]any)) string {
	ca := sha256.Sum256(a.cert.RawSubjectPublicKeyInfo)
	says := map[string]any{
		"svc": name.Name, "ns": name.Namespace, "exp": expires.Unix(), "nonce": "n", "td": domain, "ca": fmt.Sprintf("%x", ca),
	}
	for _, f := range change {
		f(says)
	}
	body, _ := json.Marshal(says)
	enc := base64.RawURLEncoding.EncodeToString
	return tokenPrefix + "." + enc(body) + "." + enc([]byte("a signature that only the control plane checks"))
}

func tokenFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// handshake makes one connection and gives both sides' errors; a message goes
// each way, so that TLS 1.3's late refusals and its tickets arrive.
func handshake(t testing.TB, server, client *tls.Config) (cs, cc tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l := listen(t)
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s, c := tls.Server(accepted, server), tls.Client(raw, client)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer accepted.Close()
		serverErr = exchange(s)
		cs = s.ConnectionState()
	}()
	clientErr = exchange(c)
	cc = c.ConnectionState()
	raw.Close()
	<-done
	return
}

func exchange(c *tls.Conn) error {
	if err := c.Handshake(); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err := c.Read(b)
	return err
}

// clock is a clock that a test moves.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time        { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) move(by time.Duration) { c.offset.Add(int64(by)) }
