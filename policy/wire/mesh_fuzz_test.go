package wire

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/weir-mesh/weir/policy"
)

// FuzzInbound: bytes that decode to what a proxy enforces are refused, or mean the same
// on a second way: no rule is lost, and none is won.
func FuzzInbound(f *testing.F) {
	in := policy.Inbound{Service: name, MTLS: policy.Strict, JWTSecret: "secret", Rules: []policy.InboundRule{{SecurityRule: policy.SecurityRule{
		ID: "a", SourceNamespace: "*", SourceService: "front", DestinationNamespace: name.Namespace, DestinationService: name.Name,
		AllowedMethods: []string{"GET"}, RequiredJWT: true, MTLSMode: policy.Permissive,
	}}}}
	b, _ := proto.Marshal(FromInbound(&in))
	f.Add(b)
	in.Rules, in.DefaultAllow = nil, true
	b, _ = proto.Marshal(FromInbound(&in))
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Inbound
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		in, err := m.Policy()
		if err != nil {
			return
		}
		again, err := FromInbound(&in).Policy()
		if err != nil || !proto.Equal(FromInbound(&again), FromInbound(&in)) {
			t.Fatalf("taken as %+v, after a second way as %+v, %v", in, again, err)
		}
		if len(in.Rules) != len(m.Rules) || in.DefaultAllow != m.DefaultAllow || string(in.MTLS) != m.MtlsMode {
			t.Fatalf("%v is taken as %+v", &m, in)
		}
	})
}

// FuzzMesh is the same for the mesh's settings.
func FuzzMesh(f *testing.F) {
	b, _ := proto.Marshal(FromMesh(policy.Mesh{TrustDomain: "test.weir", Bundle: []byte("roots"), Tracing: true, LogLevel: "info"}))
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Mesh
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		p, err := m.Policy()
		if err != nil {
			return
		}
		again, err := FromMesh(p).Policy()
		if err != nil || !proto.Equal(FromMesh(again), FromMesh(p)) {
			t.Fatalf("taken as %+v, after a second way as %+v, %v", p, again, err)
		}
	})
}
