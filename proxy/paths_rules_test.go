package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/h1"
)

func TestNoPathLeadsAroundASecurityRule(t *testing.T) {
	o := newPathIn(t)
	in := *o.p.guard.Load().Settings()
	in.Rules = []policy.InboundRule{{SecurityRule: policy.SecurityRule{
		ID: "all", SourceNamespace: "*", SourceService: "*", DestinationNamespace: "default", DestinationService: "front", AllowedMethods: []string{"*"},
	}}, {SecurityRule: policy.SecurityRule{
		ID: "secret", SourceNamespace: "*", SourceService: "*", DestinationNamespace: "default", DestinationService: "front", AllowedMethods: []string{"*"},
		Action: policy.Deny, Paths: []string{"/secret*"},
	}}}
	if err := o.p.setInbound(in); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{
		"/public/a%2Fb//c;d": "200", "/public/../b": "200",
		"/secret": "403", "/%73ecret": "403", "/a/../secret": "403",
		"//secret": "400", "/%2Fsecret": "400", "/a%2F..%2Fsecret": "400", "/a/..;/secret": "400", `/a\..\secret`: "400", "/%00": "400",
	} {
		up, client := &spy{script: o.up}, &spy{script: o.client}
		client.says = []byte("GET " + target + " HTTP/1.1\r\nHost: users\r\n\r\n")
		o.on(func() {
			o.client.left, o.up.left = 1, 1
			pool := o.p.apps[0].get(appKey{dst: netip.MustParseAddrPort("127.0.0.1:8080")}).h1
			for u := pool.Get(o.l.Now()); u != nil; u = pool.Get(o.l.Now()) {
				_ = u.Close()
			}
			pool.Put(o.l.Now(), h1.NewUpstream(up))
			o.p.h1.Serve(client, nil, func() bool { return false }, o.serve, func(error) {})
		})
		if got := client.wrote.String(); !strings.HasPrefix(got, "HTTP/1.1 "+want) || (up.wrote.Len() > 0) != (want == "200") {
			t.Errorf("%s: %.80q, the app saw %q", target, got, up.wrote.String())
		}
	}
}
