package feed

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// FuzzApply: a change that is refused leaves the service in force as it was, and one
// that is taken is what the control plane sent.
func FuzzApply(f *testing.F) {
	good, err := proto.Marshal(service(store, 80))
	if err != nil {
		f.Fatal(err)
	}
	other, _ := proto.Marshal(service(own, 80))
	f.Add(good, wire.ServiceType)
	f.Add(other, wire.ServiceType)
	f.Add([]byte{0xff}, wire.ServiceType)
	f.Add(good, wire.MeshType)
	change := func(typ string, raw []byte) *wire.DeltaDiscoveryResponse {
		return &wire.DeltaDiscoveryResponse{TypeUrl: wire.ServiceType, Resources: []*wire.Resource{{Name: store.String(), Version: "2", Resource: &anypb.Any{TypeUrl: typ, Value: raw}}}}
	}
	f.Fuzz(func(t *testing.T, raw []byte, typ string) {
		var a app
		feed, err := New(Config{Control: []string{"x"}, ProxyID: "p", Service: own, Hooks: a.hooks()})
		if err != nil {
			t.Fatal(err)
		}
		state := change(wire.ServiceType, good)
		state.SystemVersionInfo = own.String()
		state.Resources[0].Resource.TypeUrl = wire.ServiceType
		feed.restore(state)
		before := a.services[store]
		if before == nil {
			t.Fatal("the good service is not in force")
		}
		err = feed.apply(change(typ, raw))
		after := a.services[store]
		switch sent := (&wire.Service{}); {
		case string(raw) == string(good): // nothing new: it is not looked at again
			if err != nil || after != before {
				t.Fatalf("what is in force already changed it: %v", err)
			}
		case err != nil && after != before:
			t.Fatalf("refused (%v), but in force", err)
		case err == nil && (typ != wire.ServiceType || proto.Unmarshal(raw, sent) != nil):
			t.Fatalf("taken: %q of type %q", raw, typ)
		case err == nil && !proto.Equal(wire.FromService(after), wire.FromService(mustPolicy(t, sent))):
			t.Fatalf("in force is %+v, sent was %v", after, sent)
		}
	})
}

func mustPolicy(t *testing.T, s *wire.Service) *policy.Service {
	t.Helper()
	svc, err := s.Policy()
	if err != nil {
		t.Fatalf("taken, but not good: %v", err)
	}
	return svc
}
