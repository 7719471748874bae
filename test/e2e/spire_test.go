package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	neturl "net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// spireServer signs SVIDs, as a SPIRE server does.
type spireServer struct {
	t    *testing.T
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newSPIREServer(t *testing.T) *spireServer {
	s := &spireServer{t: t}
	s.key, s.root = s.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*neturl.URL{{Scheme: "spiffe", Host: "weir.local"}}})
	return s
}

func (s *spireServer) sign(template *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent, by := s.root, s.key
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return key, cert
}

// svid is an identity of the form /mesh/NAMESPACE/SERVICE.
func (s *spireServer) svid(name policy.ServiceName) *workload.X509SVIDResponse {
	s.t.Helper()
	id := &neturl.URL{Scheme: "spiffe", Host: "weir.local", Path: "/mesh/" + name.String()}
	key, cert := s.sign(&x509.Certificate{
		URIs: []*neturl.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: id.String(), X509Svid: cert.Raw, X509SvidKey: pkcs8, Bundle: s.root.Raw}}}
}

// spireAgent is the Workload API beside one workload.
type spireAgent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	mu      sync.Mutex
	now     *workload.X509SVIDResponse
	changed chan struct{}
}

func (a *spireAgent) set(r *workload.X509SVIDResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = r
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *spireAgent) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	for {
		a.mu.Lock()
		now, changed := a.now, a.changed
		a.mu.Unlock()
		if err := stream.Send(now); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		}
	}
}

func newSPIREAgent(t *testing.T, first *workload.X509SVIDResponse) (*spireAgent, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "spire")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "agent.sock")
	ln, err := net.Listen("unix", socket)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = os.Chmod(socket, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	a := &spireAgent{now: first, changed: make(chan struct{})}
	srv := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(srv, a)
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() { srv.Stop(); serving.Wait() })
	return a, socket
}

func pemFile(t *testing.T, ders ...[]byte) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "roots")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "roots.pem")
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSidecarsWithIdentitiesOfSPIRE: two sidecars take theirs from Workload APIs,
// the control plane trusts the roots of SPIRE from a file; traffic between them
// passes, their certificates are SPIRE's, follow when rotated, without a failed
// request, and an identity of another service is not taken.
func TestSidecarsWithIdentitiesOfSPIRE(t *testing.T) {
	t.Parallel()
	server := newSPIREServer(t)
	const template = "/mesh/{namespace}/{service}"
	m := start(t, "--spire-bundle", pemFile(t, server.root.Raw), "--spiffe-template", template)
	root, err := m.API.RootPEM(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(root)
	control := pemFile(t, block.Bytes)
	users, front := policy.ServiceName{Namespace: "default", Name: "users"}, policy.ServiceName{Namespace: "default", Name: "front"}
	flags := func(socket string) []string {
		return []string{"--token-file=", "--spire-socket", socket, "--spiffe-template", template, "--control-ca", control}
	}
	n := bare(t, m, "users")
	app := serve(t, n, "users", 8001, nil)
	usersAgent, socket := newSPIREAgent(t, server.svid(users))
	enter(t, m, n, meshlab.Workload{Host: "users", Service: "users", Ports: []string{"8001"}, Proxy: flags(socket)})
	frontAgent, socket := newSPIREAgent(t, server.svid(front))
	caller := join(t, m, meshlab.Workload{Host: "front", Service: "front", Proxy: flags(socket)})
	allow(t, m, "front", "users")
	answered := func() error {
		if a := ask(t, caller, "-s", "http://users/"); a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	}
	await(t, m, "an answer", answered)
	if got := app.targets(); len(got) == 0 {
		t.Error("the app was not asked")
	}
	serial := func() string {
		certs, out := shown(t, m.ControlNode(), "-connect", n.Join(8001), "-alpn", "weir")
		if len(certs) == 0 {
			t.Fatalf("no certificate was shown:\n%s", out)
		}
		if err := certs[0].CheckSignatureFrom(server.root); err != nil || certs[0].URIs[0].Path != "/mesh/default/users" {
			t.Errorf("shown is %v: %v", certs[0].URIs, err)
		}
		return certs[0].SerialNumber.String()
	}
	before := serial()
	usersAgent.set(server.svid(users))
	frontAgent.set(server.svid(front))
	await(t, m, "the next certificate", func() error {
		if err := answered(); err != nil {
			t.Errorf("a request failed: %v", err)
		}
		if serial() == before {
			return fmt.Errorf("it is still %s", before)
		}
		return nil
	})
	// Another's identity, or a rotation to it, changes nothing.
	usersAgent.set(server.svid(front))
	await(t, m, "the log to tell", func() error {
		if !strings.Contains(n.Proxy.Log(), "it is default/front, not default/users") {
			return fmt.Errorf("%s", n.Proxy.Tail())
		}
		return nil
	})
	if err := answered(); err != nil {
		t.Error(err)
	}
}
