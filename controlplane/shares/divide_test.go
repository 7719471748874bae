package shares

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestADivision(t *testing.T) {
	minute := Limit{Requests: 100, Window: time.Minute}
	for _, c := range []struct {
		name  string
		limit Limit
		uses  []Use
		want  []int
	}{
		{"nobody", minute, nil, nil},
		{"one alone has all", minute, []Use{{}}, []int{100}},
		{"who wants nothing has an even part", minute, []Use{{}, {}, {}}, []int{34, 33, 33}},
		{"who wants much has no more than half where two do", minute, []Use{{Rate: 1000}, {Rate: 1000}}, []int{50, 50}},
		{"who wants little has it, the other the rest", Limit{Requests: 100, Window: time.Second}, []Use{{Rate: 9}, {Rate: 1000}}, []int{10, 90}},
		{"what a window holds stays there", minute, []Use{{Used: 60}, {Rate: 1000, Used: 40}}, []int{60, 40}},
		{"what slides out goes to who wants it", Limit{Requests: 100, Window: 4 * time.Second}, []Use{{Used: 80}, {Rate: 1000, Used: 20}}, []int{61, 39}},
		{"a window of a second holds nothing until next time", Limit{Requests: 100, Window: time.Second}, []Use{{Used: 100}, {Rate: 1000}}, []int{1, 99}},
		{"a bucket holds nothing", Limit{Requests: 100, Window: time.Minute, Bucket: true}, []Use{{Used: 100}, {Rate: 1000}}, []int{1, 99}},
		{"the limit was lowered", Limit{Requests: 10, Window: time.Hour}, []Use{{Used: 60}, {Used: 20}}, []int{8, 2}},
		{"fewer requests than proxies", Limit{Requests: 2, Window: time.Minute}, []Use{{}, {Rate: 5}, {}, {Rate: 5}}, []int{0, 1, 0, 1}},
	} {
		if got := Divide(c.limit, c.uses, time.Second); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// However demand is, the shares are together the limit, nobody has less than
// nothing, and who holds or wants no less than another has no less of it.
func FuzzDivide(f *testing.F) {
	f.Add(uint16(100), uint32(1000), false, []byte{1, 2, 3, 4, 5, 6})
	f.Add(uint16(0), uint32(1), true, []byte{255, 0})
	f.Fuzz(func(t *testing.T, requests uint16, window uint32, bucket bool, raw []byte) {
		l := Limit{Requests: int(requests), Window: time.Duration(window) * time.Millisecond, Bucket: bucket}
		var uses []Use
		for i := 0; i+1 < len(raw) && i < 64; i += 2 {
			uses = append(uses, Use{Rate: float64(raw[i]) * 7.3, Used: float64(raw[i+1]) * 1.1})
		}
		got := Divide(l, uses, time.Second)
		if len(uses) == 0 {
			return
		}
		sum := 0
		for i, n := range got {
			sum += n
			if n < 0 {
				t.Fatalf("share %d is %d", i, n)
			}
			for j := range got {
				if uses[i].Rate >= uses[j].Rate && uses[i].Used >= uses[j].Used && got[i] < got[j]-1 {
					t.Fatalf("%+v has %d, %+v has %d", uses[i], got[i], uses[j], got[j])
				}
			}
		}
		if sum != l.Requests {
			t.Fatalf("the shares of %d are %v together", l.Requests, sum)
		}
	})
}

func TestFairGivesNobodyMoreThanItWants(t *testing.T) {
	got := fair([]float64{1, 10, 3, 10}, 14)
	for i, want := range []float64{1, 5, 3, 5} {
		if math.Abs(got[i]-want) > 1e-9 {
			t.Errorf("%v", got)
		}
	}
}
