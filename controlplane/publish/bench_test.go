package publish

import (
	"fmt"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// BenchmarkChanged changes one service that one proxy follows, beside few and
// beside many others: the time should not tell which.
func BenchmarkChanged(b *testing.B) {
	for _, others := range []int{0, 10_000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			s, err := New(Config{Source: newWorld(), Identity: identityOf, Attach: (&leases{}).attach})
			if err != nil {
				b.Fatal(err)
			}
			discard := func(*discovery.DeltaDiscoveryResponse) error { return nil }
			for i := range others + 1 {
				ses := newSession(proxyKey{users, fmt.Sprint(i)}, s.cfg.Now(), s.cfg.MaxNames, nil)
				req := &discovery.DeltaDiscoveryRequest{TypeUrl: wire.ServiceType, ResourceNamesSubscribe: []string{fmt.Sprintf("shop/s%d", i)}}
				if err := s.take(ses, req); err != nil {
					b.Fatal(err)
				}
				if _, err := s.flush(ses, discard); err != nil {
					b.Fatal(err)
				}
			}
			change := Change{Services: []policy.ServiceName{{Namespace: "shop", Name: "s0"}}}
			for b.Loop() {
				s.Changed(change)
			}
		})
	}
}
