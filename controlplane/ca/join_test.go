package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"maps"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

var emptyCSR = &x509.CertificateRequest{}

// serve runs the Join service until the test ends and gives its address.
func serve(t *testing.T, a *Authority, creds credentials.TransportCredentials) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	srv := grpc.NewServer(grpc.Creds(creds))
	wire.RegisterJoinServer(srv, a.JoinServer())
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Stop()
		must(t, <-ended)
	})
	return ln.Addr().String()
}

func client(t *testing.T, addr string, creds credentials.TransportCredentials) wire.JoinClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return wire.NewJoinClient(conn)
}

// workload gives TLS for a proxy that has a certificate.
func workload(t *testing.T, a *Authority, name policy.ServiceName) *tls.Config {
	t.Helper()
	chain, key, err := a.IssueWithKey(name)
	must(t, err)
	cert, err := tls.X509KeyPair(chain, key)
	must(t, err)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: "control.weir-system", RootCAs: a.pool(), ClientCAs: a.pool(), Time: a.cfg.Now,
		Certificates: []tls.Certificate{cert}, NextProtos: []string{MeshALPN}, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

func TestAProxyJoinsAndRenews(t *testing.T) {
	a, _ := newAuthority(t)
	addr := serve(t, a, credentials.NewTLS(a.ServerTLS()))
	token, _, err := a.NewToken(cart, 0)
	must(t, err)

	// First contact: all the proxy has is the fingerprint in its token.
	signer, err := a.signer()
	must(t, err)
	fingerprint := signer.root.fingerprint()
	first := &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			last := state.PeerCertificates[len(state.PeerCertificates)-1]
			if sum := sha256.Sum256(last.RawSubjectPublicKeyInfo); hex.EncodeToString(sum[:]) != fingerprint {
				return errors.New("the root is another")
			}
			pool := x509.NewCertPool()
			pool.AddCert(last)
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: "control.weir-system"})
			return err
		},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	got, err := client(t, addr, credentials.NewTLS(first)).Join(t.Context(), &wire.JoinRequest{Token: token, Csr: newCSR(t, emptyCSR, key)})
	must(t, err)
	if got.GetTrustDomain() != "weir.local" || string(got.GetBundle()) != string(a.Bundle()) {
		t.Errorf("the answer is %v", got)
	}
	cert := parse(t, got.GetCertificate())
	if !key.PublicKey.Equal(cert.PublicKey) || cert.URIs[0].String() != cart.SPIFFE("weir.local") {
		t.Errorf("the certificate is of %v", cert.URIs)
	}

	// From then on: its certificate.
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(got.GetBundle())
	mine := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "control.weir-system", RootCAs: pool, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
	renewed, err := client(t, addr, credentials.NewTLS(mine)).Renew(t.Context(), &wire.RenewRequest{Csr: newCSR(t, emptyCSR, nil)})
	must(t, err)
	if again := parse(t, renewed.GetCertificate()); again.URIs[0].String() != cart.SPIFFE("weir.local") || again.SerialNumber.Cmp(cert.SerialNumber) == 0 {
		t.Errorf("the renewed certificate is of %v, serial %v", again.URIs, again.SerialNumber)
	}
}

func TestWhoCannotJoinOrRenew(t *testing.T) {
	core, logged := observer.New(zap.DebugLevel)
	a, at := newAuthority(t, func(c *Config) { c.Log = zap.New(core) })
	addr := serve(t, a, credentials.NewTLS(a.ServerTLS()))
	token, _, err := a.NewToken(cart, time.Hour)
	must(t, err)
	csr := newCSR(t, emptyCSR, nil)
	other := newCSR(t, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "weir.local", Path: "/ns/shop/sa/admin"}}}, nil)
	anonymous := client(t, addr, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, ServerName: "control.weir-system", RootCAs: a.pool(), Time: at.Now}))
	member := client(t, addr, credentials.NewTLS(workload(t, a, cart)))
	// The control plane's own identity is not to be had by asking for it.
	own, err := a.ownCertificate("")
	must(t, err)
	self := workload(t, a, cart)
	self.Certificates = []tls.Certificate{*own}
	control := client(t, addr, credentials.NewTLS(self))
	// A connection outlives its certificate.
	_, err = member.Renew(t.Context(), &wire.RenewRequest{Csr: csr})
	must(t, err)

	join := func(c wire.JoinClient, token string, csr []byte) error {
		_, err := c.Join(t.Context(), &wire.JoinRequest{Token: token, Csr: csr})
		return err
	}
	renew := func(c wire.JoinClient, csr []byte) error {
		_, err := c.Renew(t.Context(), &wire.RenewRequest{Csr: csr})
		return err
	}
	check := func(what string, err error, want codes.Code, says string) {
		t.Helper()
		if status.Code(err) != want || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want %v with %q", what, err, want, says)
		}
	}
	check("no token", join(anonymous, "", csr), codes.Unauthenticated, "malformed")
	check("forged token", join(anonymous, token[:len(token)-4]+"AAAA", csr), codes.Unauthenticated, "not signed by this mesh")
	check("no request", join(anonymous, token, nil), codes.InvalidArgument, "certificate signing request")
	check("another's request", join(anonymous, token, other), codes.Unauthenticated, "shop/sa/admin")
	check("renew without certificate", renew(anonymous, csr), codes.Unauthenticated, "no certificate")
	check("renew for another", renew(member, other), codes.InvalidArgument, "shop/sa/admin")
	check("renew the control plane", renew(control, csr), codes.PermissionDenied, "control plane")
	at.Add(2 * time.Hour)
	check("expired token", join(anonymous, token, csr), codes.Unauthenticated, "expired")
	at.Add(DefaultLeafTTL)
	check("expired certificate", renew(member, csr), codes.Unauthenticated, "expired")
	at.Add(2 * RootTTL)
	check("no root", join(anonymous, freshToken(t, a), csr), codes.Internal, "log tells why")

	plain := serve(t, a, insecure.NewCredentials())
	check("renew without TLS", renew(client(t, plain, insecure.NewCredentials()), csr), codes.Unauthenticated, "TLS")
	if _, err := a.Peer(context.Background()); !errors.Is(err, ErrPeer) {
		t.Errorf("outside of a call the peer's error is %v", err)
	}
	if logged.Len() != 11 {
		t.Errorf("%d refusals are logged", logged.Len())
	}
	want := map[string]uint64{"token-malformed": 1, "token-signature": 1, "token-expired": 1, "token-service": 1, "request": 2, "certificate": 3, "name": 1}
	if got := a.Refused(); !maps.Equal(got, want) {
		t.Errorf("counted are %v, want %v", got, want)
	}
	for _, e := range logged.All() {
		for _, v := range e.ContextMap() {
			if s, ok := v.(string); ok && strings.Contains(s, token[:40]) {
				t.Errorf("the log shows a token: %v", e)
			}
		}
	}
}

// freshToken signs a token while no root is valid, as none can be had then.
func freshToken(t *testing.T, a *Authority) string {
	t.Helper()
	text := tokenVersion + "." + tokenEncoding.EncodeToString([]byte(`{"svc":"cart","ns":"shop","td":"weir.local","exp":99999999999}`))
	return text + "." + tokenEncoding.EncodeToString(a.mac(text))
}

// handshake makes a connection and gives both ends' errors.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error, state tls.ConnectionState) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ended := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		a.Close()
		ended <- err
	}()
	c := tls.Client(b, client)
	if clientErr = c.Handshake(); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	b.Close()
	return <-ended, clientErr, c.ConnectionState()
}

func TestTheControlPlaneCallsWorkloads(t *testing.T) {
	a, at := newAuthority(t)
	stranger, _ := newAuthority(t)
	admin := policy.ServiceName{Namespace: "shop", Name: "admin"}
	twoURIs := workload(t, a, cart)
	twoURIs.Certificates[0] = odd(t, a, []string{cart.SPIFFE("weir.local"), admin.SPIFFE("weir.local")})
	foreignURI := workload(t, a, cart)
	foreignURI.Certificates[0] = odd(t, a, []string{cart.SPIFFE("evil.local")})
	noURI := workload(t, a, cart)
	noURI.Certificates[0] = odd(t, a, nil)
	theirs := workload(t, stranger, cart)
	theirs.ClientCAs = a.pool()
	for name, c := range map[string]struct {
		server *tls.Config
		expect policy.ServiceName
		ok     bool
	}{
		"the one expected":     {workload(t, a, cart), cart, true},
		"any":                  {workload(t, a, admin), policy.ServiceName{}, true},
		"another":              {workload(t, a, admin), cart, false},
		"of another mesh":      {theirs, cart, false},
		"two identities":       {twoURIs, cart, false},
		"another trust domain": {foreignURI, cart, false},
		"no identity":          {noURI, policy.ServiceName{}, false},
	} {
		serverErr, clientErr, state := handshake(t, c.server, a.ClientTLS(c.expect))
		if (serverErr == nil && clientErr == nil) != c.ok {
			t.Errorf("%s: %v, %v", name, serverErr, clientErr)
		}
		if c.ok && state.NegotiatedProtocol != MeshALPN {
			t.Errorf("%s: ALPN %q", name, state.NegotiatedProtocol)
		}
		if !c.ok && !errors.Is(clientErr, ErrPeer) {
			t.Errorf("%s: the error is %v", name, clientErr)
		}
	}
	old := workload(t, a, cart)
	at.Add(DefaultLeafTTL + time.Hour)
	if _, err, _ := handshake(t, old, a.ClientTLS(cart)); !errors.Is(err, ErrPeer) {
		t.Errorf("an expired workload: %v", err)
	}
}

// odd gives a certificate that we would not issue.
func odd(t *testing.T, a *Authority, uris []string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	signer, err := a.signer()
	must(t, err)
	template := a.template(cart, signer)
	template.URIs = nil
	for _, s := range uris {
		u, err := url.Parse(s)
		must(t, err)
		template.URIs = append(template.URIs, u)
	}
	if template.SerialNumber, err = newSerial(0); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.cert, key.Public(), signer.key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestWhoMayConnectToTheControlPlane(t *testing.T) {
	a, at := newAuthority(t, func(c *Config) { c.Hosts = []string{"mesh.example", "192.0.2.7", "localhost"} })
	stranger, _ := newAuthority(t)
	foreign := workload(t, stranger, cart)
	foreign.RootCAs = a.pool()
	none := workload(t, a, cart)
	none.Certificates = nil
	old := none.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, c := range map[string]struct {
		client *tls.Config
		ok     bool
	}{
		"a member": {workload(t, a, cart), true}, "without certificate": {none, true},
		"of another mesh": {foreign, false}, "TLS 1.2": {old, false},
	} {
		c.client.NextProtos = []string{"h2"}
		serverErr, clientErr, _ := handshake(t, a.ServerTLS(), c.client)
		if (serverErr == nil && clientErr == nil) != c.ok {
			t.Errorf("%s: %v, %v", name, serverErr, clientErr)
		}
	}
	for _, host := range []string{"control.weir-system", "localhost", "127.0.0.1", "::1", "mesh.example", "192.0.2.7"} {
		cfg := none.Clone()
		cfg.ServerName, cfg.NextProtos = host, []string{"h2", "http/1.1"}
		serverErr, clientErr, state := handshake(t, a.HTTPSTLS(), cfg)
		if err := errors.Join(serverErr, clientErr); err != nil {
			t.Errorf("as %s: %v", host, err)
			continue
		}
		if n := len(state.PeerCertificates); n != 2 || state.PeerCertificates[0].URIs[0].String() != policy.ControlPlane.SPIFFE("weir.local") {
			t.Errorf("as %s: %d certificates, of %v", host, n, state.PeerCertificates[0].URIs)
		}
	}

	// Its certificate is made anew in time, by the root that signs then.
	first, err := a.ownCertificate("")
	must(t, err)
	if again, err := a.ownCertificate(""); err != nil || again != first {
		t.Errorf("made anew at once: %v", err)
	}
	at.Add(DefaultLeafTTL/2 + time.Minute)
	if again, err := a.ownCertificate(""); err != nil || again == first {
		t.Errorf("not made anew after half its life: %v", err)
	}
	must(t, errorOf(a.Rotate(t.Context())))
	at.Add(RootTTL - successorBefore)
	must(t, errorOf(a.Rotate(t.Context())))
	at.Add(overlap + time.Hour)
	cfg := workload(t, a, cart)
	cfg.NextProtos = []string{"h2"}
	serverErr, clientErr, state := handshake(t, a.ServerTLS(), cfg)
	must(t, errors.Join(serverErr, clientErr))
	if string(state.PeerCertificates[1].Raw) == string(first.Certificate[1]) {
		t.Error("the old root still signs")
	}
}

// A clock that is wrong at the control plane alone: those who are in the mesh are
// told by their certificates' ends, and trust the control plane as before.
func TestAWrongClockShutsOutAsFewAsItCan(t *testing.T) {
	a, at := newAuthority(t)
	right := at.Now()
	member, none := workload(t, a, cart), workload(t, a, cart)
	for _, c := range []*tls.Config{member, none} { // whose clocks are right
		c.Time = func() time.Time { return right }
	}
	none.Certificates = nil
	for _, c := range []struct {
		by                time.Duration
		comes, joins, app bool
	}{{-90 * time.Minute, true, true, true}, {0, true, true, true}, {6 * time.Hour, true, true, true}, {36 * time.Hour, false, true, false}, {0, true, true, true}} {
		at.Add(right.Add(c.by).Sub(at.Now()))
		for what, try := range map[string]struct {
			server, client *tls.Config
			ok             bool
		}{
			"a member comes": {a.ServerTLS(), member, c.comes}, "a stranger joins": {a.ServerTLS(), none, c.joins},
			"an app is asked": {member, a.ClientTLS(cart), c.app},
		} {
			server, client := try.server.Clone(), try.client.Clone()
			client.NextProtos = []string{"h2"}
			server.NextProtos = client.NextProtos
			serverErr, clientErr, _ := handshake(t, server, client)
			if (serverErr == nil && clientErr == nil) != try.ok {
				t.Errorf("%v: %s: %v, %v", c.by, what, serverErr, clientErr)
			}
		}
	}
}

func errorOf(_ bool, err error) error { return err }

func TestRunRotatesAndTells(t *testing.T) {
	a, at := newAuthority(t)
	told := make(chan []byte, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	tick := make(chan time.Time)
	go func() { ended <- a.run(ctx, tick, func(b []byte) { told <- b }) }()
	before := a.Bundle()
	tick <- time.Time{}
	at.Add(RootTTL - successorBefore)
	tick <- time.Time{}
	if bundle := <-told; len(bundle) <= len(before) || !strings.HasPrefix(string(bundle), string(before)) {
		t.Errorf("the bundle is %s", bundle)
	}
	a.cfg.Keep.(*memory).mu.Lock()
	a.cfg.Keep.(*memory).broken = errors.New("no etcd")
	a.cfg.Keep.(*memory).mu.Unlock()
	tick <- time.Time{}
	if _, _, err := a.IssueWithKey(cart); err != nil {
		t.Errorf("without the keeper: %v", err)
	}
	cancel()
	must(t, <-ended)
	must(t, a.Run(ctx, nil))
}
