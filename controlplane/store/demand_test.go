package store

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// What its proxies want of limits of the mesh a member tells when it is told to,
// and not with the next turn.
func TestAMemberTellsAtOnceWhatItsProxiesWant(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	var rate atomic.Int64
	leads, stop := takePart(t, a, func() Member {
		return Member{Name: "a", Demands: []policy.Demand{{Limit: policy.LimitRef{Service: shop("cart"), Name: "default"}, Rate: float64(rate.Load()), Keepers: 2,
			Keys: []policy.KeyDemand{{Key: 1<<64 - 1, Rate: 2}}}}}
	})
	defer stop()
	<-leads
	membersUntil(t, b, func(m []Member) bool { return len(m) == 1 })
	// With their turns these would take more than a minute and a half.
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	for want := range int64(20) {
		rate.Store(want + 1)
		a.TellNow()
		for {
			got, err := b.Members(ctx)
			must(t, err)
			d := got[0].Demands[0]
			if d.Keepers != 2 || d.Keys[0].Key != 1<<64-1 || d.Limit.Service != shop("cart") {
				t.Fatalf("%+v", d)
			}
			if d.Rate == float64(want+1) {
				break
			}
		}
	}
}
