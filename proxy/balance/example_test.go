package balance_test

import (
	"fmt"
	"time"

	"github.com/weir-mesh/weir/proxy/balance"
)

func Example() {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	set, err := balance.New(balance.Weighted, []balance.Endpoint{
		{ID: "10.0.0.1:80", Weight: 3, Stats: new(balance.Stats)},
		{ID: "10.0.0.2:80", Weight: 1, Stats: new(balance.Stats)},
		{ID: "10.0.0.3:80", Weight: 0, Stats: new(balance.Stats)}, // drains
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 4 {
		i, ok := set.Pick(balance.Request{Now: now, Random: 0}) // Random: rand.Uint64()
		if !ok {
			fmt.Println("no healthy endpoints available")
			return
		}
		e := set.At(i)
		e.Stats.Begin(now)
		fmt.Println(e.ID)
		e.Stats.End(now.Add(5*time.Millisecond), 5*time.Millisecond, false)
	}
	// Output:
	// 10.0.0.1:80
	// 10.0.0.1:80
	// 10.0.0.2:80
	// 10.0.0.1:80
}

// An open circuit or an endpoint already tried is told by Usable; the set itself stays as it is.
func ExampleRequest_usable() {
	set, _ := balance.New(balance.RoundRobin, []balance.Endpoint{{ID: "a", Weight: 1}, {ID: "b", Weight: 1}})
	open := map[int]bool{0: true}
	for range 2 {
		i, ok := set.Pick(balance.Request{Usable: func(i int) bool { return !open[i] }})
		fmt.Println(set.At(i).ID, ok)
	}
	// Output:
	// b true
	// b true
}
