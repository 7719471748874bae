package identity

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/weir-mesh/weir/policy"
)

func mustDomain(s string) spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString(s) }

func TestTwoWorkloadsKnowEachOther(t *testing.T) {
	ca := newAuthority(t)
	a, b := workload(t, ca, web), workload(t, ca, store)
	cs, cc, serverErr, clientErr := handshake(t, b.ServerTLS(), a.ClientTLS(store))
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	if name, err := b.Peer(cs); name != web || err != nil {
		t.Error("server sees", name, err)
	}
	if name, err := a.Peer(cc); name != store || err != nil {
		t.Error("client sees", name, err)
	}
	if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != ALPN || cs.CurveID != tls.X25519MLKEM768 {
		t.Errorf("version %x, protocol %q, curve %s", cs.Version, cs.NegotiatedProtocol, cs.CurveID)
	}
	if cs.ServerName != "store.shop" {
		t.Errorf("SNI %q", cs.ServerName)
	}
}

// spoiled are certificates that must not pass for a workload's, on either side.
func spoiled(t *testing.T, ca *authority) map[string]*tls.Certificate {
	now := time.Now()
	with := func(a *authority, name policy.ServiceName, from, until time.Time, change ...func(*x509.Certificate)) *tls.Certificate {
		key := newKey(t)
		c := a.leaf(t, name, &key.PublicKey, from, until, change...)
		return &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}
	}
	uri := func(ids ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs = nil
			for _, id := range ids {
				u, err := url.Parse(id)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, u)
			}
		}
	}
	from, until := now.Add(-time.Minute), now.Add(time.Hour)
	out := map[string]*tls.Certificate{
		"expired":                with(ca, web, now.Add(-time.Hour), now.Add(-time.Second)),
		"not valid yet":          with(ca, web, now.Add(time.Hour), now.Add(2*time.Hour)),
		"another root":           with(newAuthority(t), web, from, until),
		"another trust domain":   with(ca, web, from, until, uri("spiffe://other.weir/ns/shop/sa/web")),
		"no URI":                 with(ca, web, from, until, uri()),
		"two URIs":               with(ca, web, from, until, uri(web.SPIFFE(domain), store.SPIFFE(domain))),
		"the same URI twice":     with(ca, web, from, until, uri(web.SPIFFE(domain), web.SPIFFE(domain))),
		"not a SPIFFE ID":        with(ca, web, from, until, uri("https://test.weir/ns/shop/sa/web")),
		"no service in its path": with(ca, web, from, until, uri("spiffe://test.weir/shop/web")),
		"a path too long":        with(ca, web, from, until, uri("spiffe://test.weir/ns/shop/sa/web/x")),
		"could sign others":      with(ca, web, from, until, func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }),
		"of no use for TLS": with(ca, web, from, until, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}),
	}
	out["a root of the same name"] = with(ca.impostor(t), web, from, until)
	self := with(ca, web, from, until)
	key := self.PrivateKey.(*ecdsa.PrivateKey)
	parsed, err := x509.ParseCertificate(self.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	parsed.PublicKey = nil
	self.Certificate[0] = sign(t, parsed, parsed, &key.PublicKey, key).Raw
	out["self-signed"] = self
	// Signed by a workload, as if it were an authority.
	key = newKey(t)
	mid := ca.leaf(t, store, &key.PublicKey, from, until)
	last := with(&authority{mid, key}, web, from, until)
	last.Certificate = append(last.Certificate, mid.Raw)
	out["signed by a workload"] = last
	return out
}

// words are what the failures of these tests are counted as.
var words = map[string]string{
	"expired": "expired", "not valid yet": "not-yet-valid", "another root": "untrusted-root", "a root of the same name": "untrusted-root",
	"self-signed": "untrusted-root", "signed by a workload": "untrusted-root", "another trust domain": "trust-domain",
	"no URI": "not-a-workload", "two URIs": "not-a-workload", "the same URI twice": "not-a-workload", "not a SPIFFE ID": "not-a-workload",
	"no service in its path": "not-a-workload", "a path too long": "not-a-workload", "could sign others": "not-a-workload",
	"of no use for TLS": "usage", "no certificate": "no-certificate", "TLS 1.2": "tls-version", "no ALPN": "protocol", "another ALPN": "protocol",
	"another workload": "other-service",
}

func checkWord(t *testing.T, name string, err error) {
	t.Helper()
	if got := FailureReason(err); got != words[name] {
		t.Errorf("counted as %q, want %q: %v", got, words[name], err)
	}
}

func TestServerRefuses(t *testing.T) {
	ca := newAuthority(t)
	server := workload(t, ca, store).ServerTLS()
	client := func(cert *tls.Certificate, change ...func(*tls.Config)) *tls.Config {
		cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPN}}
		if cert != nil {
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		for _, f := range change {
			f(cfg)
		}
		return cfg
	}
	good := workload(t, ca, web).now.Load().cert
	if _, _, err, _ := handshake(t, server, client(&good)); err != nil {
		t.Fatal("a good certificate:", err)
	}
	cases := map[string]*tls.Config{
		"no certificate": client(nil),
		"TLS 1.2":        client(&good, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
		"no ALPN":        client(&good, func(c *tls.Config) { c.NextProtos = nil }),
		"another ALPN":   client(&good, func(c *tls.Config) { c.NextProtos = []string{"h2"} }),
	}
	for name, cert := range spoiled(t, ca) {
		cases[name] = client(cert)
	}
	for name, cfg := range cases {
		t.Run(name, func(t *testing.T) {
			_, _, serverErr, clientErr := handshake(t, server, cfg)
			if serverErr == nil || clientErr == nil {
				t.Fatalf("accepted: server %v, client %v", serverErr, clientErr)
			}
			checkWord(t, name, serverErr)
		})
	}
}

func TestClientRefuses(t *testing.T) {
	ca := newAuthority(t)
	a := workload(t, ca, web)
	server := func(cert *tls.Certificate, change ...func(*tls.Config)) *tls.Config {
		cfg := &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{ALPN}, ClientAuth: tls.RequireAnyClientCert}
		for _, f := range change {
			f(cfg)
		}
		return cfg
	}
	good := workload(t, ca, web).now.Load().cert
	if _, _, _, err := handshake(t, server(&good), a.ClientTLS(web)); err != nil {
		t.Fatal("a good certificate:", err)
	}
	swapped := workload(t, ca, store).now.Load().cert
	cases := map[string]*tls.Config{
		"another workload": server(&swapped),
		"TLS 1.2":          server(&good, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
		"no ALPN":          server(&good, func(c *tls.Config) { c.NextProtos = nil }),
	}
	for name, cert := range spoiled(t, ca) {
		cases[name] = server(cert)
	}
	for name, cfg := range cases {
		t.Run(name, func(t *testing.T) {
			_, _, _, err := handshake(t, cfg, a.ClientTLS(web))
			if err == nil {
				t.Fatal("accepted")
			}
			checkWord(t, name, err)
		})
	}
}

func TestAnotherWorkloadDoesNotPassForTheExpectedOne(t *testing.T) {
	ca := newAuthority(t)
	a, b := workload(t, ca, web), workload(t, ca, store)
	_, _, _, err := handshake(t, b.ServerTLS(), a.ClientTLS(policy.ServiceName{Namespace: "shop", Name: "bank"}))
	if err == nil || !strings.Contains(err.Error(), "shop/store, not shop/bank") {
		t.Error(err)
	}
}

// resumed makes two connections and tells whether the second resumed the first.
func TestLiveConnectionsOutliveARenewal(t *testing.T) {
	ca := newAuthority(t)
	a, b := workload(t, ca, web), workload(t, ca, store)
	l := listen(t)
	y, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	x, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s, c := tls.Server(x, b.ServerTLS()), tls.Client(y, a.ClientTLS(store))
	done := make(chan error, 1)
	go func() { done <- exchange(c) }()
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	before := slices.Clone(s.ConnectionState().PeerCertificates[0].Raw)
	a.now.Store(mustHeld(t, ca, web, time.Now(), time.Now().Add(time.Hour)))
	b.now.Store(mustHeld(t, ca, store, time.Now(), time.Now().Add(time.Hour)))
	buf := make([]byte, 1)
	if _, err := s.Read(buf); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(buf); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	cs, _, serverErr, clientErr := handshake(t, b.ServerTLS(), a.ClientTLS(store))
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	if slices.Equal(before, cs.PeerCertificates[0].Raw) {
		t.Error("a new connection shows the old certificate")
	}
}

func TestSetBundleRefusesWhatIsNoBundle(t *testing.T) {
	ca := newAuthority(t)
	a := workload(t, ca, web)
	before := a.now.Load()
	key := newKey(t)
	for name, text := range map[string][]byte{
		"not PEM":     []byte("-----BEGIN"),
		"a workload":  encode(ca.leaf(t, web, &key.PublicKey, time.Now(), time.Now().Add(time.Hour))),
		"a key":       []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"text behind": append(ca.pem(), "and more"...),
	} {
		if err := a.SetBundle(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := a.SetBundle(nil); err != nil {
		t.Error("empty:", err)
	}
	if err := a.SetBundle(ca.pem()); err != nil {
		t.Error("the same:", err)
	}
	if a.now.Load() != before {
		t.Error("something was replaced")
	}
}

func TestBeforeStartThereIsNoIdentity(t *testing.T) {
	ca := newAuthority(t)
	i, err := New(Config{Control: []string{"x"}, Service: web})
	if err != nil {
		t.Fatal(err)
	}
	if !i.Expiry().IsZero() || i.TrustDomain() != "" {
		t.Error(i.Expiry(), i.TrustDomain())
	}
	if err := i.SetBundle(ca.pem()); err == nil {
		t.Error("took a bundle")
	}
	if _, err := i.Peer(tls.ConnectionState{}); err == nil {
		t.Error("knew a peer")
	}
	if _, _, err, _ := handshake(t, i.ServerTLS(), workload(t, ca, web).ClientTLS(web)); err == nil {
		t.Error("served")
	}
	if _, _, _, err := handshake(t, workload(t, ca, store).ServerTLS(), i.ClientTLS(store)); err == nil {
		t.Error("called")
	}
}

func TestAVerifiedCertificateIsForgottenAtItsEnd(t *testing.T) {
	ca := newAuthority(t)
	now := time.Now()
	key := newKey(t)
	leaf := ca.leaf(t, web, &key.PublicKey, now.Add(-time.Minute), now.Add(time.Hour))
	tr, err := newTrust(ca.pem(), mustDomain(domain))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		at time.Duration
		ok bool
	}{{0, true}, {0, true}, {time.Hour + time.Second, false}, {-2 * time.Minute, false}, {time.Minute, true}} {
		if _, err := tr.verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageServerAuth, now.Add(tc.at)); (err == nil) != tc.ok {
			t.Errorf("at %s: %v", tc.at, err)
		}
	}
	// The same name and serial under another key is not what was verified.
	forged := ca.impostor(t)
	if _, err := tr.verify([]*x509.Certificate{forged.leaf(t, web, &key.PublicKey, now, now.Add(time.Hour))}, x509.ExtKeyUsageServerAuth, now); err == nil {
		t.Error("a forged leaf passed")
	}
}

func TestClientConfigurationsAreShared(t *testing.T) {
	ca := newAuthority(t)
	a := workload(t, ca, web)
	if a.ClientTLS(store) != a.ClientTLS(store) || a.ClientTLS(store) == a.ClientTLS(web) || a.ClientTLS(store) == a.ClientTLS(store, "h3") {
		t.Error("configurations are mixed up or made anew")
	}
	if n := testing.AllocsPerRun(100, func() { a.ClientTLSAt(store, "10.0.0.1:80") }); n != 0 {
		t.Errorf("%v allocations per connection", n)
	}
	for n := range maxClients + 10 {
		a.ClientTLS(policy.ServiceName{Namespace: "n", Name: string(rune('a' + n))})
	}
	if len(a.clients.made) > maxClients {
		t.Error("unbounded:", len(a.clients.made))
	}
}
