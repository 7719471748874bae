package spire

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is a Workload API.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	t *testing.T

	mu      sync.Mutex
	now     *workload.X509SVIDResponse // nil refuses
	changed chan struct{}
}

func (a *agent) set(r *workload.X509SVIDResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = r
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("workload.spiffe.io")) != 1 {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	for {
		a.mu.Lock()
		now, changed := a.now, a.changed
		a.mu.Unlock()
		if now == nil {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
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

func (a *agent) serve(socket string) (stop func()) {
	a.t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		a.t.Fatal(err)
	}
	srv := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(srv, a)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(ln) }()
	return func() { srv.Stop(); <-ended }
}

// svid is an identity with its root, self-signed: whether it stands is looked at by
// others.
func svid(t *testing.T, id string, serial int64) *workload.X509SVID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), URIs: []*url.URL{u}, NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(serial), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	bundle, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &workload.X509SVID{SpiffeId: id, X509Svid: der, X509SvidKey: pkcs8, Bundle: bundle}
}

// TestTheIdentityWantedIsFollowed: of several the one that is asked for; when it is
// rotated the new one; while the agent refuses, brings another's, or is away, what
// was taken stays, and each is said once.
func TestTheIdentityWantedIsFollowed(t *testing.T) {
	const cart = "spiffe://shop.test/ns/shop/sa/cart"
	socket := filepath.Join(t.TempDir(), "agent.sock")
	a := &agent{t: t, changed: make(chan struct{})}
	stop := a.serve(socket)
	core, logged := observer.New(zap.WarnLevel)
	said := func(text string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			for _, e := range logged.All() {
				if strings.Contains(e.ContextMap()["error"].(string), text) {
					return
				}
			}
			if time.Now().After(end) {
				t.Fatalf("not said: %s; but %v", text, logged.All())
			}
		}
	}
	ctx, end := context.WithCancel(t.Context())
	taken := make(chan int64, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- Follow(ctx, Config{Socket: socket, Log: zap.New(core), Want: func(id spiffeid.ID) error {
			if id.String() != cart {
				return errors.New("another")
			}
			return nil
		}}, func(chain []*x509.Certificate, key crypto.Signer, roots []*x509.Certificate) error {
			if len(chain) != 1 || len(roots) != 1 || !key.Public().(*ecdsa.PublicKey).Equal(chain[0].PublicKey) {
				t.Errorf("a chain of %d, %d roots", len(chain), len(roots))
			}
			taken <- chain[0].SerialNumber.Int64()
			return nil
		})
	}()
	next := func(want int64) {
		t.Helper()
		select {
		case got := <-taken:
			if got != want {
				t.Errorf("number %d was taken, want %d", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("number %d was not taken", want)
		}
	}
	said("no identity issued")
	other := svid(t, "spiffe://shop.test/ns/shop/sa/other", 1)
	a.set(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{other}})
	said("none of the workload's identities is the one wanted: spiffe://shop.test/ns/shop/sa/other: another")
	a.set(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{other, svid(t, cart, 2)}})
	next(2)
	a.set(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{svid(t, cart, 3)}})
	next(3)
	stop()
	a.set(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{svid(t, cart, 4)}})
	stop = a.serve(socket)
	defer stop()
	next(4)
	end()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestAddressesOfSockets(t *testing.T) {
	for _, good := range []string{"/run/spire/agent.sock", "unix:///run/spire/agent.sock", "tcp://127.0.0.1:8000"} {
		if err := Check(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "http://x", "tcp://name:1", "unix://relative/x?y"} {
		if err := Check(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
