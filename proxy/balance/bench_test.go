package balance

import (
	"fmt"
	"testing"
	"time"
)

func BenchmarkPick(b *testing.B) {
	for _, s := range strategies {
		for _, n := range []int{1, 100, 10_000} {
			for _, kind := range []string{"equal", "odd"} {
				eps := same(n, 100)
				if kind == "odd" {
					for i := range eps {
						eps[i].Weight += i % 97
					}
				}
				set := mustNew(b, s, eps)
				for i := range eps {
					eps[i].Stats.Begin(noon)
					eps[i].Stats.End(noon, time.Duration(i%50+1)*time.Millisecond, false)
				}
				b.Run(fmt.Sprintf("%s/%d/%s", s, n, kind), func(b *testing.B) {
					b.ReportAllocs()
					x := uint64(1)
					for b.Loop() {
						v := next(&x)
						set.Pick(Request{Now: noon, Random: v, Hash: v})
					}
				})
			}
		}
	}
}

func BenchmarkStats(b *testing.B) {
	var s Stats
	for b.Loop() {
		s.Begin(noon)
		s.End(noon, time.Millisecond, false)
	}
}

func BenchmarkNew(b *testing.B) {
	for _, s := range []Strategy{Weighted, ConsistentHash, P2CEWMA} {
		for _, n := range []int{10, 1000} {
			eps := same(n, 100)
			for i := range eps {
				eps[i].Weight += i % 97
			}
			b.Run(fmt.Sprintf("%s/%d", s, n), func(b *testing.B) {
				for b.Loop() {
					mustNew(b, s, eps)
				}
			})
		}
	}
}
