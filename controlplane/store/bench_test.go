package store

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

// What a registration costs its caller: fsync, apply, watch, State.
func BenchmarkPutEndpoint(b *testing.B) {
	for _, services := range []int{1, 1000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			s, err := Open(b.Context(), Config{DataDir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			go s.Run(b.Context())
			for i := range services {
				if err := s.PutEndpoint(b.Context(), endpoint(fmt.Sprintf("s%d", i), "e")); err != nil {
					b.Fatal(err)
				}
			}
			b.ResetTimer()
			for i := range b.N {
				if err := s.PutEndpoint(b.Context(), endpoint("s0", fmt.Sprint(i%10))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What a change costs besides etcd.
func BenchmarkState(b *testing.B) {
	for _, services := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			m := newModel("/weir/", nil)
			m.touched.Services = map[policy.ServiceName]struct{}{}
			for i := range services {
				name := shop(fmt.Sprintf("s%d", i))
				m.service(name).endpoints["e"] = storedEndpoint{Endpoint: Endpoint{Endpoint: endpoint(name.Name, "e")}}
				m.touched.Services[name] = struct{}{}
			}
			m.state(1)
			b.ResetTimer()
			for i := range b.N {
				m.touch(endpointKey, shop("s0"), "e", int64(i))
				m.state(int64(i))
			}
		})
	}
}

// What many callers at a time register of new services, ten endpoints each: the
// first of each service gives it its address, one service after the other.
func BenchmarkPutEndpointsOfNewServices(b *testing.B) {
	s, err := Open(b.Context(), Config{DataDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	go s.Run(b.Context())
	var next atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			i := int(next.Add(1))
			if err := s.PutEndpoint(b.Context(), endpoint(fmt.Sprintf("s%d", i/10), fmt.Sprint("e", i%10))); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
