package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/weir-mesh/weir/test/meshlab"
)

// externalMesh is a frontend, and outside the mesh a server that speaks TLS and
// plain HTTP, under names that a name server outside knows.
type externalMesh struct {
	*meshlab.Mesh
	front, outside *meshlab.Node
	secure, plain  *app
	ca             string // a file
	sni            atomic.Value
}

func newExternalMesh(t *testing.T) *externalMesh {
	m := &externalMesh{Mesh: start(t)}
	m.outside = bare(t, m.Mesh, "outside")
	caPEM, leaf := issue(t, "api.example.com")
	m.ca = filepath.Join(m.Dir, "outside-ca.pem")
	if err := os.WriteFile(m.ca, caPEM, 0o644); err != nil {
		t.Fatal(err)
	}
	ln, err := m.outside.ListenTCP(":443")
	if err != nil {
		t.Fatal(err)
	}
	m.secure = serveOn(t, tls.NewListener(ln, &tls.Config{
		Certificates: []tls.Certificate{leaf}, NextProtos: []string{"http/1.1"},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) { m.sni.Store(h.ServerName); return nil, nil },
	}), "secure", nil)
	m.plain = serve(t, m.outside, "plain", 80, nil)
	pc, err := m.Lab.Bridge().ListenUDP(":53")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); answerHosts(pc, m.outside.Addr4()) }()
	t.Cleanup(func() { _ = pc.Close(); <-done })
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	return m
}

// issue makes a root of its own and a certificate for a name.
func issue(t *testing.T, name string) (caPEM []byte, leaf tls.Certificate) {
	t.Helper()
	make := func(tmpl, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			signer = key
		}
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der, key
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "outside"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, rootKey := make(root, root, nil)
	own := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}
	der, key := make(own, root, rootKey)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// answerHosts is a name server outside: every name under example.com is at one
// address.
func answerHosts(pc *net.UDPConn, at netip.Addr) {
	buf := make([]byte, 1500)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		var msg dnsmessage.Message
		if msg.Unpack(buf[:n]) != nil || len(msg.Questions) == 0 {
			continue
		}
		msg.Response, msg.RecursionAvailable, msg.Additionals = true, true, nil
		q := msg.Questions[0]
		switch {
		case !strings.HasSuffix(q.Name.String(), ".example.com."):
			msg.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			msg.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 5},
				Body:   &dnsmessage.AResource{A: at.As4()},
			}}
		}
		if out, err := msg.Pack(); err == nil {
			_, _ = pc.WriteToUDPAddrPort(out, from)
		}
	}
}

// apply gives documents to weir apply.
func (m *externalMesh) apply(t *testing.T, text string) {
	t.Helper()
	ca, err := os.ReadFile(m.ca)
	if err != nil {
		t.Fatal(err)
	}
	pem := strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n    ")
	path := filepath.Join(t.TempDir(), "documents.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "CA-PEM", pem)), 0o644); err != nil {
		t.Fatal(err)
	}
	m.weir(t, "apply", "-f", path)
}

func (m *externalMesh) weir(t *testing.T, args ...string) string {
	t.Helper()
	args = append([]string{"--server", "http://127.0.0.1:8080", "--token-file", m.TokenFile()}, args...)
	out, err := m.ControlNode().Output(t.Context(), m.Program("weir"), args...)
	if err != nil {
		t.Fatalf("weir %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

const payments = `kind: ExternalService
service: payments
spec:
  host: api.example.com
  tls: originate
  ca: |
    CA-PEM
`

func TestAServiceOutsideTheMesh(t *testing.T) {
	t.Parallel()
	m := newExternalMesh(t)
	set(t, m.Mesh, `{"egress":"deny"}`)
	m.apply(t, payments)
	await(t, m.Mesh, "the service outside", func() error {
		out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "http://api.example.com/")
		if err != nil || !strings.Contains(out, `"Host":"api.example.com"`) {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
	for _, c := range []struct {
		name string
		run  func(*testing.T, *externalMesh)
	}{
		{"a plain request gets TLS", plainGetsTLS},
		{"the mesh's name leads there too", byMeshName},
		{"an app that speaks TLS itself is passed on", ownTLS},
		{"what is not declared is refused and counted", undeclared},
		{"another name in the certificate is refused", otherName},
		{"a server without TLS", plainOutside},
		{"limits and rules hold for it", limitOutside},
		{"the control plane's end changes nothing", controlAway},
	} {
		t.Run(c.name, func(t *testing.T) { m.secure.forget(); m.plain.forget(); c.run(t, m) })
	}
}

func plainGetsTLS(t *testing.T, m *externalMesh) {
	s := seenBy(t, ask(t, m.front, "http://api.example.com/orders?id=1"))
	if s.Host != "api.example.com" || s.Target != "/orders?id=1" || m.sni.Load() != "api.example.com" || m.secure.count() != 1 {
		t.Errorf("the server saw %+v, SNI %v", s, m.sni.Load())
	}
	for _, name := range []string{"X-Source-Service", "X-Source-Namespace"} {
		if s.Header.Get(name) != "" {
			t.Errorf("outside the mesh it is known who calls: %s: %s", name, s.Header.Get(name))
		}
	}
	if got := dig(t, m.front, "+short", "A", "api.example.com"); !strings.HasPrefix(got, "240.240.") {
		t.Errorf("the name is answered with %q", got)
	}
}

func byMeshName(t *testing.T, m *externalMesh) {
	if s := seenBy(t, ask(t, m.front, "http://payments/")); s.Host != "api.example.com" {
		t.Errorf("the server was asked for %s", s.Host)
	}
}

func ownTLS(t *testing.T, m *externalMesh) {
	out := output(t, m.front, "curl", "-sS", "--max-time", "10", "--cacert", m.ca, "https://api.example.com/own")
	if !strings.Contains(out, `"Target":"/own"`) || m.secure.count() != 1 {
		t.Errorf("%s", out)
	}
	// With the real address and the name as SNI it is the same service.
	out = output(t, m.front, "curl", "-sS", "--max-time", "10", "--cacert", m.ca, "--resolve", "api.example.com:443:"+m.outside.Addr4().String(), "https://api.example.com/sni")
	if !strings.Contains(out, `"Target":"/sni"`) {
		t.Errorf("%s", out)
	}
}

// denied is how many connections out the frontend's proxy has refused.
func denied(t *testing.T, m *externalMesh) int {
	t.Helper()
	sum := 0
	for line := range strings.Lines(output(t, m.front, "curl", "-sS", "http://127.0.0.1:15000/metrics")) {
		if strings.HasPrefix(line, "weir_connections_total{") && strings.Contains(line, "egress-denied") {
			sum += atoi(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]))
		}
	}
	return sum
}

func undeclared(t *testing.T, m *externalMesh) {
	before := denied(t, m)
	for _, url := range []string{"http://other.example.com/", "http://" + m.outside.Addr4().String() + "/", "https://other.example.com/"} {
		out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "-k", url)
		if err == nil {
			t.Errorf("%s answers %q", url, out)
		}
	}
	if m.secure.count()+m.plain.count() != 0 {
		t.Errorf("outside saw %q %q", m.secure.targets(), m.plain.targets())
	}
	if after := denied(t, m); after-before != 3 {
		t.Errorf("%d connections were refused, and %d counted", 3, after-before)
	}
}

func otherName(t *testing.T, m *externalMesh) {
	m.apply(t, strings.NewReplacer("payments", "wrong", "api.example.com", "wrong.example.com").Replace(payments))
	await(t, m.Mesh, "the other service", func() error {
		if a := ask(t, m.front, "http://wrong.example.com/"); a.Status != 502 || a.Header.Get("weir-error") != "upstream-failure" {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
	if m.secure.count() != 0 {
		t.Error("a request went to a server with another name")
	}
}

func plainOutside(t *testing.T, m *externalMesh) {
	m.apply(t, "kind: ExternalService\nservice: mirror\nspec: {host: mirror.example.com}\n")
	await(t, m.Mesh, "the plain service", func() error {
		out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "http://mirror.example.com/x")
		if err != nil || !strings.Contains(out, `"Host":"mirror.example.com"`) {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
	if got := m.weir(t, "get", "external-services"); !strings.Contains(got, "mirror.example.com") || !strings.Contains(got, "api.example.com") {
		t.Errorf("weir get: %s", got)
	}
	if got := m.weir(t, "get", "external-services", "default/payments", "--output", "yaml"); !strings.Contains(got, "kind: ExternalService") || !strings.Contains(got, "tls: originate") || strings.Contains(got, "ip:") {
		t.Errorf("weir get as a document: %s", got)
	}
	m.weir(t, "delete", "external-service", "mirror")
	await(t, m.Mesh, "it to be refused", func() error {
		if out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "http://mirror.example.com/x"); err == nil {
			return fmt.Errorf("it answers %q", out)
		}
		return nil
	})
}

func limitOutside(t *testing.T, m *externalMesh) {
	set(t, m.Mesh, `{"services":{"payments":{"rate_limit":{"limit":3,"window":600}}}}`)
	defer set(t, m.Mesh, `{"services":{"payments":null}}`)
	await(t, m.Mesh, "the limit", func() error {
		if a := ask(t, m.front, "http://api.example.com/"); a.Status != http.StatusTooManyRequests {
			return fmt.Errorf("%d", a.Status)
		}
		return nil
	})
}

func controlAway(t *testing.T, m *externalMesh) {
	await(t, m.Mesh, "the limit to be lifted", func() error {
		if a := ask(t, m.front, "http://api.example.com/"); a.Status != 200 {
			return fmt.Errorf("%d", a.Status)
		}
		return nil
	})
	m.Control.Kill()
	<-m.Control.Done()
	if s := seenBy(t, ask(t, m.front, "http://api.example.com/away")); s.Target != "/away" {
		t.Errorf("%+v", s)
	}
}
