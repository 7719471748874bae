package wire

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/weir-mesh/weir/policy"
)

var name = policy.ServiceName{Namespace: "default", Name: "users"}

// throughWire is what arrives of a message that was sent.
func throughWire[M proto.Message](t *testing.T, sent, into M) M {
	t.Helper()
	b, err := proto.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
	return into
}

func exampleService() *policy.Service {
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = "u-1", "users", "default", "10.0.0.1", 8001
	e.Labels = map[string]string{"version": "v2"}
	sick := e
	order := policy.CircuitOrder{State: "open", Number: 12}
	e.CircuitTimeout, e.RateLimit = 2.5, 7
	sick.ID, sick.IP, sick.Status, sick.Labels = "u-2", "fd00::2", policy.Unhealthy, nil
	outside := sick
	outside.ID, outside.IP, outside.Status, outside.Port = "u-3", "", policy.Healthy, 443
	outside.External = policy.External{Host: "api.example.com", TLS: policy.TLSOriginate, ServerName: "a.example.com"}
	return &policy.Service{
		Name: name, Virtual4: netip.MustParseAddr("240.240.0.7"), Virtual6: netip.MustParseAddr("fd77:6569:7200::7"),
		Endpoints: []policy.Target{{Endpoint: e, Meshed: true, Limit: policy.RateLimit{Limit: 7, Window: time.Minute}}, {Endpoint: sick, Circuit: order}, {Endpoint: outside}},
		Rules: []policy.TrafficRule{{
			ID: "r", MatchHeaders: map[string]string{"version": "beta"}, MatchPath: "/a*", MatchMethod: "GET",
			DestinationService: "other", DestinationSubset: "v2", Weight: 7, Timeout: 1.5, RetryAttempts: 2, CircuitBreaker: true,
			RateLimit: &policy.ServiceLimit{Name: "n", Limit: 5, Window: 0.5, Key: "header:a", Algorithm: policy.TokenBucket, Burst: 9, Scope: policy.ScopeMesh},
		}},
		Traffic: policy.Traffic{
			Strategy: "weighted", HashKey: "source", Timeout: time.Second, Retry: policy.Retry{Attempts: 3, Delay: time.Millisecond},
			Breaker:   policy.Breaker{Enabled: true, Threshold: 5, Timeout: time.Minute},
			RateLimit: policy.RateLimit{Limit: 100, Window: time.Minute, Key: "header:x"}, MTLS: policy.Permissive,
			RateLimits:    []policy.RateLimit{{Limit: 1, Window: time.Second, Name: "most", Burst: 4, Mesh: true}},
			PlaintextFrom: []policy.ServiceName{{Namespace: "default", Name: "old"}},
			Balancing:     policy.Balancing{LoadFactor: 1.5, PreferZone: true, SlowStart: 30 * time.Second, Aggression: 2, Panic: 40},
			Outliers: policy.Outliers{
				Enabled: true, Interval: 10 * time.Second, MinHosts: 3, MinRequests: 50, RateFactor: 1.9, RateMargin: 0.1, LatencyFactor: 3,
				LatencyMargin: time.Millisecond, BaseEjection: 30 * time.Second, MaxEjection: time.Minute, MaxEjectedPart: 33,
			},
			Overload: policy.Overload{Concurrent: 7, Pending: 8, Connections: 9},
		},
	}
}

func TestAServiceArrivesAsItWasSent(t *testing.T) {
	want := exampleService()
	got, err := throughWire(t, FromService(want), &Service{}).Policy()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestAnInboundArrivesAsItWasSent(t *testing.T) {
	want := policy.Inbound{
		Service: name, MTLS: policy.Strict, DefaultAllow: true, JWTSecret: "s", RateLimit: policy.RateLimit{Limit: 3, Window: time.Second, Key: "source"},
		RateLimits: []policy.RateLimit{{Limit: 4, Window: time.Second, Key: "jwt:org", Name: "b"}}, Routes: exampleService().Rules,
		Rules: []policy.InboundRule{{
			SecurityRule: policy.SecurityRule{
				ID: "r", SourceNamespace: "default", SourceService: "*", DestinationNamespace: "default", DestinationService: "users",
				AllowedMethods: []string{"GET"}, RequiredJWT: true, MTLSMode: policy.Disabled,
			},
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9")},
		}, {SecurityRule: policy.SecurityRule{
			ID: "d", Sources: []string{"prod/web-*", "*/*"}, DestinationNamespace: "default", DestinationService: "u*", AllowedMethods: []string{"*"},
			Action: policy.Deny, Ports: []int{80, 9001}, Paths: []string{"/admin/*", "/x"}, Headers: map[string]string{"X-A": "absent:"},
			Claims: map[string][]string{"realm.roles": {"a", "b"}, "sub": {"x"}},
		}}},
		PortModes: map[uint16]policy.MTLSMode{9001: policy.Permissive},
	}
	got, err := throughWire(t, FromInbound(&want), &Inbound{}).Policy()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// To a proxy of before, a rule that denies would be one that allows.
func TestARuleWithFieldsThatOldProxiesDoNotKnowIsOneThatTheyRefuse(t *testing.T) {
	old := policy.SecurityRule{
		ID: "d", SourceNamespace: "default", SourceService: "web", DestinationNamespace: "default", DestinationService: "users", AllowedMethods: []string{"GET"},
	}
	if m := fromSecurityRule(&policy.InboundRule{SecurityRule: old}); len(m.GetAllowedMethods()) != 1 || len(m.GetMethods()) != 0 {
		t.Errorf("a rule of before is sent as %v", m)
	}
	for _, change := range []func(*policy.SecurityRule){
		func(r *policy.SecurityRule) { r.Action = policy.Deny },
		func(r *policy.SecurityRule) { r.Sources = []string{"a/b"} },
		func(r *policy.SecurityRule) { r.Ports = []int{1} },
		func(r *policy.SecurityRule) { r.Paths = []string{"/"} },
		func(r *policy.SecurityRule) { r.Headers = map[string]string{"a": "b"} },
		func(r *policy.SecurityRule) { r.Claims = map[string][]string{"a": {"b"}} },
	} {
		r := old
		change(&r)
		m := fromSecurityRule(&policy.InboundRule{SecurityRule: r})
		if len(m.GetAllowedMethods()) != 0 { // which Validate refuses, then as now
			t.Errorf("sent is %v", m)
		}
		back := m.policy()
		if p := back.Validate(); len(p) > 0 {
			t.Error(p)
		}
	}
	bad := &Inbound{Name: FromName(name), MtlsMode: "strict", PortModes: map[uint32]string{80: "loose"}}
	if _, err := bad.Policy(); err == nil || !strings.Contains(err.Error(), `port 80: mtls_mode "loose" is not known`) {
		t.Errorf("taken: %v", err)
	}
	bad = &Inbound{Name: FromName(name), MtlsMode: "strict", Rules: []*SecurityRule{{
		Id: "r", Source: FromName(name), Destination: FromName(name), Methods: []string{"GET"}, Action: "forbid",
	}}}
	if _, err := bad.Policy(); err == nil || !strings.Contains(err.Error(), `action: "forbid" is not one of`) {
		t.Errorf("taken: %v", err)
	}
}

func TestMeshAndFiguresArriveAsTheyWereSent(t *testing.T) {
	mesh := policy.Mesh{TrustDomain: "weir.local", EgressDeny: true, AccessLog: true, Metrics: true, Tracing: true, Bundle: []byte("pem"),
		SigningRoot: "ab", Revocations: []policy.Revocation{{Identity: name}, {Serial: "1f"}}}
	if got, err := throughWire(t, FromMesh(mesh), &Mesh{}).Policy(); err != nil || !reflect.DeepEqual(got, mesh) {
		t.Errorf("got %+v, %v", got, err)
	}
	f := policy.Figures{InboundRequests: 1, OutboundRequests: 2, RequestErrors: 3, RequestDurationTotal: 4.5, CircuitBreakerOpens: 5, RequestsRouted: 6, RoutingFailures: 7, BackendFailures: 8}
	if got := throughWire(t, FromFigures(f), &Figures{}).Policy(); got != f {
		t.Errorf("got %+v", got)
	}
	for _, r := range []policy.Report{{}, {ResidentBytes: 1 << 33, CertificateExpires: time.Unix(1_800_000_000, 0), Control: "10.0.0.1:8081", CircuitsLeftOut: 3,
		CertificateBegins: time.Unix(1_700_000_000, 0), CertificateSerial: "1f", CertificateRoot: "ab", TrustedRoots: []string{"ab", "cd"}, Circuits: []policy.CircuitState{
			{Service: name, Endpoint: "u-1", State: "open", Since: time.UnixMilli(1_800_000_000_123), Forced: true, Ejected: true}, {Service: name, Endpoint: "u-2", State: "closed", Failures: 2},
		}}} {
		if got := throughWire(t, FromReport(r), &Report{}).Policy(); !reflect.DeepEqual(got, r) {
			t.Errorf("got %+v, want %+v", got, r)
		}
	}
}

func TestOfAReportOnlyWhatCanBeIsTaken(t *testing.T) {
	m := &Report{}
	for range 1000 {
		m.Circuits = append(m.Circuits, &Circuit{Service: FromName(name), Endpoint: "u-1", State: "open"})
	}
	if got := m.Policy().Circuits; len(got) != policy.MaxReportedCircuits {
		t.Errorf("%d circuits are taken", len(got))
	}
	m.Circuits = []*Circuit{{State: "ajar"}, {State: "open", Endpoint: strings.Repeat("x", 254)}, {State: "open", Service: &Name{Name: strings.Repeat("x", 254)}}, {State: "closed"}}
	if got := m.Policy().Circuits; len(got) != 1 || got[0].State != "closed" {
		t.Errorf("taken is %+v", got)
	}
}

func TestWhatIsNotGoodIsRefusedByName(t *testing.T) {
	bad := FromService(exampleService())
	bad.Endpoints[1].Port = 0
	if _, err := bad.Policy(); err == nil || !strings.Contains(err.Error(), `endpoint "u-2"`) {
		t.Errorf("error is %v", err)
	}
	bad = FromService(exampleService())
	bad.Rules[0].MatchPath = "regex:("
	if _, err := bad.Policy(); err == nil || !strings.Contains(err.Error(), `traffic rule "r"`) {
		t.Errorf("error is %v", err)
	}
	if _, err := (&Inbound{Name: FromName(name), MtlsMode: "sometimes"}).Policy(); err == nil {
		t.Error("an unknown mode is taken")
	}
	if _, err := (&Mesh{}).Policy(); err == nil {
		t.Error("a mesh without trust domain is taken")
	}
}

// FuzzService: bytes that decode to a Service are refused or give one that
// compiles and keeps its meaning on the way back.
func FuzzService(f *testing.F) {
	b, _ := proto.Marshal(FromService(exampleService()))
	f.Add(b)
	for _, split := range []func(*policy.TrafficRule){
		func(r *policy.TrafficRule) {
			r.Redirect, r.DirectResponse, r.Rewrite.PathPrefix, r.Fault.Abort.GRPCStatus, r.Hedge.After = nil, nil, "", 0, 0
		},
		func(r *policy.TrafficRule) {
			r.Handling = policy.Handling{Redirect: &policy.Redirect{PathPrefix: "/m"}}
		},
		func(r *policy.TrafficRule) { r.Handling = policy.Handling{DirectResponse: r.DirectResponse} },
	} {
		s := exampleService()
		s.Rules = append(s.Rules, wholeRule())
		split(&s.Rules[1])
		b, _ := proto.Marshal(FromService(s))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Service
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		s, err := m.Policy()
		if err != nil {
			return
		}
		if _, err := policy.NewRouter(s); err != nil {
			t.Fatalf("taken, but does not compile: %v", err)
		}
		if _, err := FromService(s).Policy(); err != nil {
			t.Fatalf("taken, but not after a second way: %v", err)
		}
	})
}
