package proxy

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

// What weir explain says of the endpoints is what a proxy chooses from.
func TestAChoiceIsWhatTheExplanationSays(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	pick := func(words ...string) string { return words[rnd.IntN(len(words))] }
	p := sidecar(t)
	for range 300 {
		var all []policy.Target
		for i := range 1 + rnd.IntN(5) {
			all = append(all, endpointOf(fmt.Sprint("e", i), fmt.Sprintf("10.0.0.%d:%s", i+1, pick("80", "81")), version(pick("v1", "v2")), func(t *policy.Target) {
				t.Protocol, t.Status = pick("http", "http2", "tcp"), pick(policy.Healthy, policy.Healthy, policy.Unhealthy)
			}))
		}
		svc := usersWith(all...)
		svc.Traffic.Balancing.Panic = rnd.IntN(2) * 50
		if err := p.setService(users, svc); err != nil {
			t.Fatal(err)
		}
		subset, port := pick("", "v1", "v2", "v3"), []uint16{0, 80, 81, 82}[rnd.IntN(4)]
		want := ""
		for i, narrow := 0, svc.Narrow(subset, port); i < len(all); i++ {
			if narrow(&all[i]) == "" {
				want += all[i].ID
			}
		}
		got := ""
		if pk := p.dests.Load().byName[users].choose(subset, port); pk != nil {
			got = idsOf(pk)
		}
		if got != want {
			t.Fatalf("subset %q port %d of %+v: a proxy chooses from %q, explained is %q", subset, port, all, got, want)
		}
	}
}
