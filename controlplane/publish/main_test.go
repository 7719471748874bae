package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come; it is an end to a hang,
// not a measure.
const patience = 20 * time.Second

var (
	users  = policy.ServiceName{Namespace: "shop", Name: "users"}
	orders = policy.ServiceName{Namespace: "shop", Name: "orders"}
	carts  = policy.ServiceName{Namespace: "shop", Name: "carts"}
)

// world is a Source that counts how often it is read.
type world struct {
	mu       sync.Mutex
	mesh     policy.Mesh
	services map[policy.ServiceName]*policy.Service
	inbounds map[policy.ServiceName]policy.Inbound
	lookups  map[string]policy.ServiceName
	reads    map[string]int
}

func newWorld() *world {
	return &world{
		mesh:     policy.Mesh{TrustDomain: "weir.test"},
		services: map[policy.ServiceName]*policy.Service{},
		inbounds: map[policy.ServiceName]policy.Inbound{},
		lookups:  map[string]policy.ServiceName{},
		reads:    map[string]int{},
	}
}

func (w *world) change(f func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

func (w *world) readsOf(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reads[name]
}

func (w *world) Mesh() policy.Mesh {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads["mesh"]++
	return w.mesh
}

func (w *world) Service(n policy.ServiceName) (*policy.Service, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads["service "+n.String()]++
	s, ok := w.services[n]
	return s, ok
}

func (w *world) Inbound(n policy.ServiceName) policy.Inbound {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads["inbound "+n.String()]++
	in := w.inbounds[n]
	in.Service = n
	return in
}

func (w *world) Lookup(resource string) (policy.ServiceName, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads["lookup "+resource]++
	n, ok := w.lookups[resource]
	return n, ok
}

// withStrategy is a service that tells its versions apart by the strategy.
func withStrategy(n policy.ServiceName, strategy string) *policy.Service {
	return &policy.Service{Name: n, Traffic: policy.Traffic{Strategy: strategy, MTLS: policy.Strict}}
}

func (w *world) put(n policy.ServiceName, strategy string) {
	w.change(func(w *world) { w.services[n] = withStrategy(n, strategy) })
}

// rig is a Server behind a real gRPC connection in memory. The peer's identity
// is what the call's metadata says: certificates are another package's.
type rig struct {
	t      *testing.T
	world  *world
	server *Server
	conn   *grpc.ClientConn
	leases *leases
}

func newRig(t *testing.T, adjust ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, world: newWorld(), leases: &leases{ttl: time.Minute}}
	cfg := Config{Source: r.world, Identity: identityOf, Attach: r.leases.attach}
	for _, f := range adjust {
		f(&cfg)
	}
	var err error
	if r.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	lis := bufconn.Listen(1 << 16)
	gs := grpc.NewServer()
	r.server.Register(gs)
	served := make(chan struct{})
	go func() { defer close(served); _ = gs.Serve(lis) }()
	r.conn, err = grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.conn.Close(); gs.Stop(); <-served })
	return r
}

func identityOf(ctx context.Context) (policy.ServiceName, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	v := md.Get("test-identity")
	if len(v) != 1 {
		return policy.ServiceName{}, errors.New("no client certificate")
	}
	return policy.ParseServiceName(v[0], "")
}

func (r *rig) context(as policy.ServiceName) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	if !as.IsZero() {
		ctx = metadata.AppendToOutgoingContext(ctx, "test-identity", as.String())
	}
	return ctx, cancel
}

// client is a delta client written by hand: it sends what a test says.
type client struct {
	t        *testing.T
	server   *Server
	key      proxyKey
	stream   grpc.BidiStreamingClient[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]
	cancel   context.CancelFunc
	barriers int
}

func (r *rig) follow(as policy.ServiceName, id string) *client {
	r.t.Helper()
	ctx, cancel := r.context(as)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(r.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(cancel)
	return &client{t: r.t, server: r.server, key: proxyKey{as, id}, stream: stream, cancel: cancel}
}

func (c *client) send(req *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	req.Node = &core.Node{Id: c.key.id}
	if err := c.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		c.t.Fatal(err)
	}
}

func (c *client) subscribe(typeURL string, names ...string) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

func (c *client) unsubscribe(typeURL string, names ...string) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesUnsubscribe: names})
}

func (c *client) ack(resp *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce})
}

func (c *client) nack(resp *discovery.DeltaDiscoveryResponse, reason string) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce,
		ErrorDetail: &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: reason}})
}

func (c *client) recv() *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	resp, err := c.stream.Recv()
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	return resp
}

// expect receives one response and compares what it holds.
func (c *client) expect(typeURL string, resources, removed []string) *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	resp := c.recv()
	var got []string
	for _, r := range resp.Resources {
		got = append(got, r.Name)
		if r.Version == "" || r.Resource.GetTypeUrl() != typeURL {
			c.t.Errorf("%s has version %q and type %q", r.Name, r.Version, r.Resource.GetTypeUrl())
		}
	}
	if resp.TypeUrl != typeURL || !slices.Equal(got, resources) || !slices.Equal(resp.RemovedResources, removed) {
		c.t.Fatalf("got %s with %v, removed %v; want %s with %v, removed %v",
			resp.TypeUrl, got, resp.RemovedResources, typeURL, resources, removed)
	}
	if resp.Nonce == "" {
		c.t.Error("the response has no nonce")
	}
	return resp
}

// quiet proves that nothing is on its way: what the server had to say before it
// saw the question would come before the answer. It also proves that all that
// was sent before is processed.
func (c *client) quiet() {
	c.t.Helper()
	c.barriers++
	name := fmt.Sprintf("192.0.2.1:%d", c.barriers)
	c.subscribe(wire.LookupType, name)
	resp := c.expect(wire.LookupType, nil, []string{name})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.LookupType, ResponseNonce: resp.Nonce, ResourceNamesUnsubscribe: []string{name}})
	until(c.t, "the question is taken back", func() bool {
		return !slices.ContainsFunc(c.server.Resources(c.key.service, c.key.id), func(r ResourceStatus) bool { return r.Name == name })
	})
}

// ends waits for the stream's end and wants its code.
func (c *client) ends(want codes.Code) string {
	c.t.Helper()
	for {
		_, err := c.stream.Recv()
		if err == nil {
			continue
		}
		if status.Code(err) != want {
			c.t.Fatalf("the stream ended with %v, want code %v", err, want)
		}
		return status.Convert(err).Message()
	}
}

func serviceIn(t *testing.T, resp *discovery.DeltaDiscoveryResponse, name policy.ServiceName) *policy.Service {
	t.Helper()
	for _, r := range resp.Resources {
		if r.Name != name.String() {
			continue
		}
		var m wire.Service
		if err := r.Resource.UnmarshalTo(&m); err != nil {
			t.Fatal(err)
		}
		svc, err := m.Policy()
		if err != nil {
			t.Fatal(err)
		}
		return svc
	}
	t.Fatalf("%s is not in the response", name)
	return nil
}

// only gives the one proxy that is connected.
func (r *rig) only() ProxyStatus {
	r.t.Helper()
	p := r.server.Proxies()
	if len(p) != 1 {
		r.t.Fatalf("%d proxies are known, want 1: %+v", len(p), p)
	}
	return p[0]
}

// until waits for a condition that another goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("it did not come about that %s", what)
		}
	}
}
