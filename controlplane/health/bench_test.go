package health

import (
	"fmt"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// BenchmarkUpdate takes the list of endpoints again, of which none has changed.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			targets := make([]policy.Target, n)
			for i := range targets {
				e := policy.DefaultEndpoint()
				e.ID, e.Namespace, e.ServiceName = fmt.Sprintf("e%d", i%10), "default", fmt.Sprintf("s%d", i/10)
				e.IP, e.Port = fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), 8001
				targets[i].Endpoint = e
			}
			s := newSchedule(func() float64 { return 0.5 })
			now := time.Unix(0, 0)
			for b.Loop() {
				s.update(targets, 30*time.Second, Thresholds{}, now)
			}
		})
	}
}
