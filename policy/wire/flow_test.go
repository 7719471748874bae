package wire

import (
	"reflect"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func TestFlowsArriveAsTheyWereSentAndAreOfTheProxysService(t *testing.T) {
	own, other := policy.ServiceName{Namespace: "default", Name: "own"}, policy.ServiceName{Namespace: "default", Name: "other"}
	want := []policy.FlowCount{
		{Calls: 3, Errors: 1, Flow: policy.Flow{
			Direction: policy.FlowInbound, Source: other, Destination: own, Port: 80, Protocol: "http1", Method: "GET", Path: "/a", Allowed: true,
			Reason: policy.ByRule, Rule: "r", Token: true, Encryption: policy.EncryptedMTLS}},
		{Calls: 1, Flow: policy.Flow{
			Direction: policy.FlowInbound, SourceClass: policy.ClassPublic, Destination: own, Port: 80, Protocol: "tcp", Reason: policy.MTLSRequired,
			Encryption: policy.Plaintext, Why: policy.WhyNoCertificate}},
		{Calls: 2, Flow: policy.Flow{
			Direction: policy.FlowOutbound, Source: own, Destination: other, Port: 80, Protocol: "grpc", Method: "POST", Path: "/a/b", Allowed: true,
			Route: "t", Routed: own, Subset: "v2", Encryption: policy.Plaintext, Why: policy.WhyNoProxy}},
	}
	m := throughWire(t, FromReport(policy.Report{Flows: want, FlowsLeftOut: 7}), &Report{})
	if got := m.PolicyFlows(own); !reflect.DeepEqual(got, want) || m.GetFlowsLeftOut() != 7 {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for _, f := range m.PolicyFlows(other) {
		if f.Direction == policy.FlowInbound && f.Destination != other || f.Direction == policy.FlowOutbound && f.Source != other {
			t.Errorf("a proxy told of another's service: %+v", f)
		}
	}
}

func TestFlowsThatCannotBeAreLeftOut(t *testing.T) {
	good := func() *Flow { return &Flow{Peer: FromName(name), Calls: 1} }
	bad := map[string]func(*Flow){
		"no calls":         func(f *Flow) { f.Calls = 0 },
		"more errors":      func(f *Flow) { f.Errors = 2 },
		"a port":           func(f *Flow) { f.Port = 70_000 },
		"a long text":      func(f *Flow) { f.Path = "/" + strings.Repeat("x", maxFlowText) },
		"no name":          func(f *Flow) { f.Peer = &Name{Namespace: "a b"} },
		"a route of none":  func(f *Flow) { f.Routed = &Name{} },
		"outbound to none": func(f *Flow) { f.Outbound, f.Peer = true, nil },
	}
	m := &Report{Flows: []*Flow{good()}}
	for _, spoil := range bad {
		f := good()
		spoil(f)
		m.Flows = append(m.Flows, f)
	}
	if got := m.PolicyFlows(name); len(got) != 1 {
		t.Errorf("%d of 1 flows were taken: %+v", len(got), got)
	}
	for range 2 * maxFlows {
		m.Flows = append(m.Flows, good())
	}
	if got := m.PolicyFlows(name); len(got) > maxFlows {
		t.Errorf("%d flows of one report were taken", len(got))
	}
}

func TestIssuersArriveAsTheyWereSent(t *testing.T) {
	want := policy.Inbound{Service: name, MTLS: policy.Strict, JWT: policy.JWTSettings{Leeway: 5, Issuers: []policy.JWTIssuer{
		{Issuer: "a", Audiences: []string{"x"}, Algorithms: []string{"RS256"}, JWKSURL: "https://a/", Refresh: 60},
		{Issuer: "b", SecretFile: "/b", AllowNoExpiry: true}, {Issuer: "c", JWKSFile: "/c"}, {Issuer: "d", SecretEnv: "D"},
	}}}
	got, err := throughWire(t, FromInbound(&want), &Inbound{}).Policy()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if in, err := (&Inbound{Name: FromName(name), MtlsMode: "strict"}).Policy(); err != nil || in.JWT.Leeway != policy.DefaultLeeway {
		t.Errorf("a control plane that says nothing of leeway: %+v, %v", in.JWT, err)
	}
}
