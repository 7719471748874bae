package shares

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

var (
	orders = policy.LimitRef{Service: policy.ServiceName{Namespace: "default", Name: "orders"}, Name: "default"}
	search = policy.LimitRef{Service: policy.ServiceName{Namespace: "default", Name: "orders"}, Rule: "search", Name: "search"}
)

// hundred knows two limits, and a third not.
func hundred(ref policy.LimitRef, key *uint64) (Limit, bool) {
	switch ref {
	case orders:
		return Limit{Requests: 100, Window: time.Second}, true
	case search:
		return Limit{Requests: 100, Window: time.Second, Keyed: key == nil}, true
	}
	return Limit{}, false
}

func wants(ref policy.LimitRef, rate float64, keys ...policy.KeyDemand) []policy.Demand {
	return []policy.Demand{{Limit: ref, Rate: rate, Keys: keys}}
}

func (t *Table[K]) of(who K) string {
	var out []string
	for _, s := range t.Shares(who) {
		out = append(out, fmt.Sprintf("%s %v%v", s.Limit.Name, s.Requests, s.Keys))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestALimitIsDividedAmongThoseWhoToldOfIt(t *testing.T) {
	table := NewTable(strings.Compare)
	if !table.Report("a", wants(orders, 1000)) {
		t.Error("one that has no share yet can wait")
	}
	if got := table.Divide(hundred, time.Second); fmt.Sprint(got) != "[a]" || table.of("a") != "default 100[]" {
		t.Errorf("%v: %s", got, table.of("a"))
	}
	if table.Report("a", wants(orders, 1000)) {
		t.Error("nothing is used, and it is urgent")
	}
	table.Report("b", wants(orders, 1000))
	if got := table.Divide(hundred, time.Second); fmt.Sprint(got) != "[a b]" || table.of("a") != "default 50[]" || table.of("b") != "default 50[]" {
		t.Errorf("%v: %s, %s", got, table.of("a"), table.of("b"))
	}
	if got := table.Divide(hundred, time.Second); len(got) != 0 {
		t.Errorf("%v are told what they know", got)
	}
	if !table.Report("a", []policy.Demand{{Limit: orders, Rate: 1000, Used: 50}}) {
		t.Error("a share is used up, and it can wait")
	}
	table.Forget("b")
	if table.Divide(hundred, time.Second); table.of("a") != "default 100[]" || table.of("b") != "" {
		t.Errorf("%s, %s", table.of("a"), table.of("b"))
	}
	table.Report("a", nil) // it keeps the limit no longer
	if !table.Empty() || table.of("a") != "" {
		t.Errorf("left is %s", table.of("a"))
	}
}

func TestAnUnknownLimitIsNotDivided(t *testing.T) {
	table := NewTable(strings.Compare)
	table.Report("a", wants(policy.LimitRef{Name: "of nobody"}, 5))
	if got := table.Divide(hundred, time.Second); len(got) != 0 || table.of("a") != "" {
		t.Errorf("%v: %s", got, table.of("a"))
	}
}

func TestKeysThatWantMoreAreDividedByThemselves(t *testing.T) {
	table := NewTable(strings.Compare)
	hot := func(rate float64) policy.KeyDemand { return policy.KeyDemand{Key: 7, Rate: rate} }
	table.Report("a", wants(search, 100, hot(1000), policy.KeyDemand{Key: 3, Rate: 1}))
	table.Report("b", wants(search, 100, hot(10)))
	table.Report("c", wants(search, 100))
	table.Report("d", wants(search, 100))
	table.Divide(hundred, time.Second)
	for who, want := range map[string]string{
		"a": "search 25[{3 100} {7 89}]", "b": "search 25[{7 11}]", "c": "search 25[]", "d": "search 25[]",
	} {
		if got := table.of(who); got != want {
			t.Errorf("%s has %s, want %s", who, got, want)
		}
	}
	if !table.Report("c", wants(search, 100, hot(5))) {
		t.Error("a key that has no share of its own yet can wait")
	}
}

func TestTotalsAreWhatAllWant(t *testing.T) {
	table := NewTable(strings.Compare)
	table.Report("a", []policy.Demand{{Limit: search, Rate: 1, Used: 2, Keys: []policy.KeyDemand{{Key: 9, Rate: 1, Used: 1}}}, {Limit: orders, Rate: 5}})
	table.Report("b", []policy.Demand{{Limit: search, Rate: 3, Used: 4, Keys: []policy.KeyDemand{{Key: 9, Rate: 2, Used: 3}, {Key: 1}}}})
	if got := fmt.Sprintf("%+v", table.Totals()); got != "[{Limit:{Service:default/orders Rule: Name:default} Rate:5 Used:0 Keys:[] Keepers:1} "+
		"{Limit:{Service:default/orders Rule:search Name:search} Rate:4 Used:6 Keys:[{Key:1 Rate:0 Used:0} {Key:9 Rate:3 Used:4}] Keepers:2}]" {
		t.Error(got)
	}
}

// What comes from a proxy is bounded, and no number of its makes a share that is
// none.
func TestWhatAProxyTellsIsBounded(t *testing.T) {
	table := NewTable(strings.Compare)
	var many []policy.Demand
	for i := range 3000 {
		many = append(many, policy.Demand{Limit: policy.LimitRef{Name: fmt.Sprint(i)}})
	}
	table.Report("a", many)
	if n := len(table.keepers["a"]); n != maxDemands {
		t.Errorf("%d limits are kept", n)
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1), -1} {
		table.Report("a", []policy.Demand{{Limit: orders, Rate: bad}, {Limit: search, Used: bad}})
		if !table.Empty() {
			t.Errorf("%v is taken", bad)
		}
	}
	var keys []policy.KeyDemand
	for i := range 1000 {
		keys = append(keys, policy.KeyDemand{Key: uint64(i), Rate: float64(i)}, policy.KeyDemand{Key: uint64(i), Rate: math.NaN()})
	}
	for i := range 10 {
		table.Report(fmt.Sprint("p", i), wants(search, 1, keys[i:]...))
	}
	table.Divide(hundred, time.Second)
	if n := len(table.Shares("p1")[0].Keys); n > maxKeys || n == 0 {
		t.Errorf("%d keys", n)
	}
	if n := len(table.Totals()[0].Keys); n > maxKeys {
		t.Errorf("%d keys in the totals", n)
	}
}
