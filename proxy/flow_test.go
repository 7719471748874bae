package proxy

import (
	"net/netip"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

// drained are the flows that a path's loop has counted.
func (o *path) drained() (out []policy.FlowCount) {
	o.on(func() { out, _ = o.p.flows[0].Drain() })
	return out
}

func TestRequestsAreCountedByWhatTheyHaveInCommon(t *testing.T) {
	front := policy.ServiceName{Namespace: "default", Name: "front"}
	in := newPathIn(t)
	in.on(func() { in.requests(7) })
	got := in.drained()
	if len(got) != 1 || got[0].Calls != 7 || got[0].Errors != 0 {
		t.Fatalf("inwards: %+v", got)
	}
	f := got[0].Flow
	if f.Direction != policy.FlowInbound || f.Source != users || f.Destination != front || f.Port != 8080 || f.Protocol != "http1" || f.Method == "" ||
		f.Path == "" || !f.Allowed || f.Reason != policy.ByRule || f.Rule != "users" || f.Encryption != policy.EncryptedMTLS || f.Why != "" {
		t.Errorf("inwards: %+v", f)
	}

	out := newPathOut(t)
	out.on(func() { out.requests(5) })
	got = out.drained()
	if len(got) != 1 || got[0].Calls != 5 {
		t.Fatalf("outwards: %+v", got)
	}
	if f := got[0].Flow; f.Direction != policy.FlowOutbound || f.Source != front || f.Destination != users || f.Routed != users || f.Encryption != policy.Plaintext || f.Why != policy.WhyNoProxy {
		t.Errorf("outwards: %+v", f)
	}
}

func TestWhereACallerWithoutACertificateIs(t *testing.T) {
	for addr, want := range map[string]string{
		"10.1.2.3": policy.ClassPrivate, "127.0.0.1": policy.ClassPrivate, "fd00::1": policy.ClassPrivate, "fe80::1": policy.ClassPrivate,
		"::ffff:192.168.1.1": policy.ClassPrivate, "8.8.8.8": policy.ClassPublic, "2001:4860::1": policy.ClassPublic,
	} {
		if got := addressClass(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is %s", addr, got)
		}
	}
}
