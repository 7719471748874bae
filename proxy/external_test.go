package proxy

import (
	"context"
	"net/netip"
	"testing"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/resolve"
)

// outside is an endpoint with a host.
func outside(host string, change ...func(*policy.Target)) policy.Target {
	t := endpointOf(host, "10.0.0.1:443", func(t *policy.Target) { t.IP, t.Host = "", host })
	for _, c := range change {
		c(&t)
	}
	return t
}

func originate(t *policy.Target) { t.TLS = policy.TLSOriginate }

// withNames lets a sidecar look names up here.
func withNames(t *testing.T, p *Proxy, names map[string][]netip.Addr) {
	t.Helper()
	var err error
	p.names, err = resolve.New(resolve.Config{Changed: p.hostMoved, Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
		return names[host], nil
	}})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAHostIsAnEndpointForEachAddress(t *testing.T) {
	p := sidecar(t)
	names := map[string][]netip.Addr{"a.example.com": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}}
	withNames(t, p, names)
	if err := p.setService(users, usersWith(outside("a.example.com", originate), outside("gone.example.com"))); err != nil {
		t.Fatal(err)
	}
	d := p.dests.Load().byName[users]
	if len(d.missing) != 2 || d.choose("", 443) != nil {
		t.Fatalf("missing are %v", d.missing)
	}
	d = p.lookUp(t.Context(), d)
	if len(d.missing) != 1 || d.missing[0] != "gone.example.com" {
		t.Errorf("missing are %v", d.missing)
	}
	pk := d.choose("", 80) // whatever port the app dials
	if pk == nil || len(pk.endpoints) != 2 {
		t.Fatalf("%+v", pk)
	}
	e := pk.endpoints[0]
	if e.at != "192.0.2.1:443" || e.id != "a.example.com@192.0.2.1" || e.host != "a.example.com" || e.mtls || e.origin == nil {
		t.Errorf("%+v", e)
	}
	if c := e.origin.cfg; c.ServerName != "a.example.com" || c.RootCAs == nil || c.InsecureSkipVerify || c.NextProtos[0] != "http/1.1" {
		t.Errorf("TLS is %+v", c)
	}
	// An address that stays keeps what is known of it; one that went is forgotten.
	names["a.example.com"] = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.3")}
	p.names.Keep(nil)
	p.names.Want(t.Context(), "a.example.com")
	p.hostMoved("a.example.com")
	again := p.dests.Load().byName[users].choose("", 0)
	if len(again.endpoints) != 2 || again.endpoints[0] != e || again.endpoints[1].at != "192.0.2.3:443" || len(p.endpoints) != 2 {
		t.Errorf("%d endpoints, %d kept", len(again.endpoints), len(p.endpoints))
	}
	if err := p.setService(users, nil); err != nil || p.names.Addrs("a.example.com") != nil {
		t.Error("a name that nobody needs is kept")
	}
}

func TestAChangeOfTLSIsNotUsedOnOldConnections(t *testing.T) {
	p := sidecar(t)
	withNames(t, p, map[string][]netip.Addr{"a.example.com": {netip.MustParseAddr("192.0.2.1")}})
	endpoint := func(target policy.Target) *endpoint {
		t.Helper()
		if err := p.setService(users, usersWith(target)); err != nil {
			t.Fatal(err)
		}
		return p.lookUp(t.Context(), p.dests.Load().byName[users]).choose("", 0).endpoints[0]
	}
	plain := endpoint(outside("a.example.com"))
	if plain.origin != nil {
		t.Error("TLS is begun for who did not ask")
	}
	first := endpoint(outside("a.example.com", originate))
	if first.origin == nil || first.kept[0].h1 == plain.kept[0].h1 {
		t.Error("plain connections stay in use where TLS is to be begun")
	}
	same := endpoint(outside("a.example.com", originate, func(t *policy.Target) { t.Weight = 7; t.CircuitTimeout = 3 }))
	if same.origin != first.origin || same.kept[0].h1 != first.kept[0].h1 {
		t.Error("another change ends sessions and connections")
	}
	if opaque := endpoint(outside("a.example.com", originate, func(t *policy.Target) { t.Protocol = "tcp" })); len(opaque.origin.cfg.NextProtos) != 0 {
		t.Error("HTTP is offered where it is not spoken")
	}
	bad := usersWith(outside("a.example.com", originate, func(t *policy.Target) { t.CA = "nothing" }))
	if err := p.setService(users, bad); err == nil {
		t.Error("roots that cannot be read are taken")
	}
}

func TestTheHostThatAServerOutsideIsToldOf(t *testing.T) {
	for want, target := range map[string]policy.Target{
		"a.example.com":      outside("a.example.com", originate),
		"a.example.com:443":  outside("a.example.com"),
		"a.example.com:8443": outside("a.example.com", originate, func(t *policy.Target) { t.Port = 8443 }),
	} {
		if got := hostField(&target); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for host, want := range map[string]string{
		"api.example.com": "api.example.com", "API.Example.com:8080": "api.example.com", "api.example.com.": "api.example.com",
		"users": "", "10.0.0.1": "", "10.0.0.1:80": "", "[::1]:80": "", "": "",
	} {
		if got, ok := outsideName(host); ok != (want != "") || got != want && ok {
			t.Errorf("%q: %q %v", host, got, ok)
		}
	}
}

func TestAnAppsOwnTLSIsKnown(t *testing.T) {
	for peeked, want := range map[string]bool{"\x16\x03\x01\x02\x00\x01": true, "GET / HTTP/1.1": false, "": false, "\x16": false, "\x16\x16": false} {
		if got := speaksTLS([]byte(peeked)); got != want {
			t.Errorf("%q: %v", peeked, got)
		}
	}
}
