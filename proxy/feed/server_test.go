package feed

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	own   = policy.ServiceName{Namespace: "shop", Name: "web"}
	store = policy.ServiceName{Namespace: "shop", Name: "store"}
	bank  = policy.ServiceName{Namespace: "money", Name: "bank"}
)

// control is a small control plane: it holds resources, answers subscriptions
// and keeps what it was told.
type control struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	wire.UnimplementedAttachmentServer
	t testing.TB

	mu       sync.Mutex
	state    map[string]map[string]*discovery.Resource // type → name
	mute     bool                                      // answers no subscription
	streams  map[*stream]bool
	attach   error // answered instead of taking an attachment
	ttl      time.Duration
	requests chan *discovery.DeltaDiscoveryRequest // each as it came
	attached chan *wire.AttachRequest              // likewise
}

type stream struct {
	grpc.BidiStreamingServer[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]
	subs  map[string]bool // type + name
	nonce int
}

func newControl(t testing.TB) *control {
	c := &control{
		t: t, state: map[string]map[string]*discovery.Resource{}, streams: map[*stream]bool{}, ttl: 10 * time.Second,
		requests: make(chan *discovery.DeltaDiscoveryRequest, 100000), attached: make(chan *wire.AttachRequest, 10000),
	}
	c.set(wire.MeshType, wire.MeshName, wire.FromMesh(policy.Mesh{TrustDomain: "test.weir", Bundle: []byte("roots")}))
	c.set(wire.InboundType, own.String(), wire.FromInbound(&policy.Inbound{Service: own, MTLS: policy.Strict}))
	return c
}

// set stores a resource, or with nil removes it, and tells the subscribers.
func (c *control) set(typ, name string, m proto.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state[typ] == nil {
		c.state[typ] = map[string]*discovery.Resource{}
	}
	delete(c.state[typ], name)
	if m != nil {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			c.t.Fatal(err)
		}
		c.state[typ][name] = &discovery.Resource{
			Name: name, Version: fmt.Sprintf("%x", sha256.Sum256(raw))[:12], Resource: &anypb.Any{TypeUrl: typ, Value: raw},
		}
	}
	for s := range c.streams {
		if s.subs[typ+name] {
			c.answerLocked(s, typ, []string{name}, nil)
		}
	}
}

func (c *control) answerLocked(s *stream, typ string, names []string, have map[string]string) {
	s.nonce++
	resp := &discovery.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: fmt.Sprint(s.nonce)}
	for _, name := range names {
		switch res := c.state[typ][name]; {
		case res == nil:
			resp.RemovedResources = append(resp.RemovedResources, name)
		case have[name] != res.Version:
			resp.Resources = append(resp.Resources, res)
		}
	}
	if len(resp.Resources)+len(resp.RemovedResources) > 0 {
		s.Send(resp)
	}
}

func (c *control) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s := &stream{BidiStreamingServer: g, subs: map[string]bool{}}
	c.mu.Lock()
	c.streams[s] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.streams, s)
	}()
	for {
		req, err := g.Recv()
		if err != nil {
			return nil
		}
		c.requests <- req
		c.mu.Lock()
		for _, name := range req.ResourceNamesUnsubscribe {
			delete(s.subs, req.TypeUrl+name)
		}
		for _, name := range req.ResourceNamesSubscribe {
			s.subs[req.TypeUrl+name] = true
		}
		if !c.mute && len(req.ResourceNamesSubscribe) > 0 {
			c.answerLocked(s, req.TypeUrl, req.ResourceNamesSubscribe, req.InitialResourceVersions)
		}
		c.mu.Unlock()
	}
}

func (c *control) Attach(g grpc.BidiStreamingServer[wire.AttachRequest, wire.AttachResponse]) error {
	for {
		req, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c.attached <- req
		c.mu.Lock()
		refuse, ttl := c.attach, c.ttl
		c.mu.Unlock()
		if refuse != nil {
			return refuse
		}
		if req.Leaving {
			return nil
		}
		if ttl > 0 {
			if err := g.Send(&wire.AttachResponse{Ttl: durationpb.New(ttl)}); err != nil {
				return err
			}
		}
	}
}

func (c *control) change(f func()) { c.mu.Lock(); defer c.mu.Unlock(); f() }

// serve runs the control plane at an address, "" for any free one, until the
// test ends or stop is called, which is sudden.
func (c *control) serve(address string, creds credentials.TransportCredentials) (at string, stop func()) {
	c.t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		c.t.Fatal(err)
	}
	var opts []grpc.ServerOption
	if creds != nil {
		opts = append(opts, grpc.Creds(creds))
	}
	s := grpc.NewServer(opts...)
	discovery.RegisterAggregatedDiscoveryServiceServer(s, c)
	wire.RegisterAttachmentServer(s, c)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	stop = sync.OnceFunc(func() { s.Stop(); <-done })
	c.t.Cleanup(stop)
	return l.Addr().String(), stop
}

// request waits for a request of a type that the test wants.
func (c *control) request(typ string, want func(*discovery.DeltaDiscoveryRequest) bool) *discovery.DeltaDiscoveryRequest {
	c.t.Helper()
	for {
		select {
		case req := <-c.requests:
			if req.TypeUrl == typ && want(req) {
				return req
			}
		case <-time.After(20 * time.Second):
			c.t.Fatal("no such request of " + typ)
		}
	}
}

func subscribes(name string) func(*discovery.DeltaDiscoveryRequest) bool {
	return func(r *discovery.DeltaDiscoveryRequest) bool {
		return slices.Contains(r.ResourceNamesSubscribe, name)
	}
}

func answers(r *discovery.DeltaDiscoveryRequest) bool { return r.ResponseNonce != "" }

// app is what hangs on a feed's hooks.
type app struct {
	mu       sync.Mutex
	mesh     policy.Mesh
	inbound  policy.Inbound
	services map[policy.ServiceName]*policy.Service
	calls    int
	refuse   error
	changed  chan struct{}
}

func (a *app) hooks() Hooks {
	a.services = map[policy.ServiceName]*policy.Service{}
	a.changed = make(chan struct{}, 100000)
	do := func(f func()) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.calls++
		a.changed <- struct{}{}
		if a.refuse != nil {
			return a.refuse
		}
		f()
		return nil
	}
	return Hooks{
		OnMesh:    func(m policy.Mesh) error { return do(func() { a.mesh = m }) },
		OnInbound: func(in policy.Inbound) error { return do(func() { a.inbound = in }) },
		OnService: func(n policy.ServiceName, s *policy.Service) error {
			return do(func() {
				a.services[n] = s
				if s == nil {
					delete(a.services, n)
				}
			})
		},
	}
}

func (a *app) service(n policy.ServiceName) *policy.Service {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.services[n]
}

// until waits for a state, looking again at each call of a hook.
func (a *app) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for {
		a.mu.Lock()
		done := ok()
		a.mu.Unlock()
		if done {
			return
		}
		select {
		case <-a.changed:
		case <-time.After(20 * time.Second):
			t.Fatal("never: " + what)
		}
	}
}

func service(n policy.ServiceName, ports ...int) *wire.Service {
	v4, v6, _ := policy.VirtualAddrs(len(n.Name) + len(ports)*100)
	s := &policy.Service{Name: n, Virtual4: v4, Virtual6: v6}
	for _, p := range ports {
		e := policy.DefaultEndpoint()
		e.ID, e.Namespace, e.ServiceName, e.IP, e.Port = fmt.Sprint(n.Name, p), n.Namespace, n.Name, "10.0.0.5", p
		s.Endpoints = append(s.Endpoints, policy.Target{Endpoint: e})
	}
	return wire.FromService(s)
}

// start runs a feed until the test ends or stop is called.
func start(t testing.TB, a *app, at []string, change ...func(*Config)) (f *Feed, stop func()) {
	t.Helper()
	cfg := Config{
		Control: at, ProxyID: "web-1", Version: "1.2.3", Service: own, Hooks: a.hooks(), Wait: 20 * time.Second,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	}
	for _, c := range change {
		c(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("Run:", err)
		}
	})
	t.Cleanup(stop)
	return f, stop
}

func ready(t testing.TB, f *Feed) {
	t.Helper()
	select {
	case <-f.Ready():
	case <-time.After(20 * time.Second):
		t.Fatalf("never ready: %+v", f.Status())
	}
}

// connected waits for Connected to be as wanted. It has no event of its own.
func connected(t testing.TB, f *Feed, want bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); f.Connected() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("connected is not %v: %+v", want, f.Status())
		}
	}
}

func stateFile(t testing.TB) string { return filepath.Join(t.TempDir(), "state", "state.pb") }

var errRefused = status.Error(codes.PermissionDenied, "not yours")
