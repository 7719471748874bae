package health

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/weir-mesh/weir/policy"
)

var (
	t0    = time.Unix(1_700_000_000, 0)
	users = policy.ServiceName{Namespace: "shop", Name: "users"}
)

func target(id string) policy.Target {
	e := policy.DefaultEndpoint()
	e.ID, e.Namespace, e.ServiceName, e.IP, e.Port, e.Protocol = id, "shop", "users", "10.0.0.1", 8001, "tcp"
	return policy.Target{Endpoint: e}
}

func middle() float64 { return 0.5 }

// turn takes out all that is due and puts it back at once.
func turn(s *schedule, now time.Time) (ids []string) {
	for {
		it, _, _ := s.next(now)
		if it == nil {
			return ids
		}
		ids = append(ids, it.key.id)
		s.requeue(it, now)
	}
}

func TestNewEndpointsAreSpreadOverASecondThenOverTheInterval(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	s := newSchedule(rng.Float64)
	var targets []policy.Target
	for i := range 500 {
		targets = append(targets, target(fmt.Sprint("e", i)))
	}
	s.update(targets, 30*time.Second, Thresholds{}, t0)
	if n := len(turn(s, t0.Add(firstWithin))); n != 500 {
		t.Errorf("%d of 500 were checked within a second", n)
	}
	if _, wait, ok := s.next(t0.Add(firstWithin)); !ok || wait < 27*time.Second || wait > 28*time.Second {
		t.Errorf("the next check is in %v, want the interval less 10 %%", wait)
	}
	early := len(turn(s, t0.Add(31*time.Second)))
	late := len(turn(s, t0.Add(34*time.Second+firstWithin)))
	if early == 0 || late == 0 || early+late != 500 {
		t.Errorf("%d and %d checks fell before and after the interval: they bunch", early, late)
	}
}

func TestVeryManyNewEndpointsAreCheckedAtABoundedRate(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for n, within := range map[int]time.Duration{10 * firstRate: 10 * time.Second, 100 * firstRate: 30 * time.Second} {
		s := newSchedule(rng.Float64)
		targets := make([]policy.Target, n)
		for i := range targets {
			targets[i] = target(fmt.Sprint("e", i))
		}
		s.update(targets, 30*time.Second, Thresholds{}, t0)
		half := len(turn(s, t0.Add(within/2)))
		rest := len(turn(s, t0.Add(within)))
		if half < n*4/10 || half > n*6/10 || half+rest < n {
			t.Errorf("of %d new endpoints %d were checked in the first half of %v and %d in the second", n, half, within, rest)
		}
	}
}

func TestRemovedEndpointIsForgottenAndItsCheckCutOff(t *testing.T) {
	s := newSchedule(middle)
	s.update([]policy.Target{target("a"), target("b")}, time.Second, Thresholds{}, t0)
	it, _, _ := s.next(t0.Add(firstWithin))
	cut := false
	it.cancel = func() { cut = true }
	s.update(nil, time.Second, Thresholds{}, t0.Add(firstWithin))
	if !cut {
		t.Error("the running check was not cut off")
	}
	if _, ok := s.judge(it, Result{}); ok {
		t.Error("its result was taken")
	}
	s.requeue(it, t0)
	if _, _, ok := s.next(t0.Add(time.Hour)); ok || len(s.items) != 0 {
		t.Error("something is still there")
	}
}

func TestEndpointAtAnotherAddressStartsAnew(t *testing.T) {
	s := newSchedule(middle)
	s.update([]policy.Target{target("a")}, time.Minute, Thresholds{}, t0)
	now := t0.Add(firstWithin)
	it, _, _ := s.next(now)
	s.judge(it, Result{At: now})
	s.requeue(it, now)
	same := target("a")
	same.Weight, same.Status = 7, policy.Unhealthy // nothing about how it is checked
	s.update([]policy.Target{same}, time.Minute, Thresholds{}, now)
	if st, _ := s.status(users, "a"); len(st.History) != 1 || len(turn(s, now.Add(firstWithin))) != 0 {
		t.Error("a change of weight and status started it anew")
	}
	moved := same
	moved.Port++
	s.update([]policy.Target{moved}, time.Minute, Thresholds{}, now)
	if st, ok := s.status(users, "a"); !ok || len(st.History) != 0 {
		t.Errorf("the results of another address are kept: %+v", st)
	}
	if got := turn(s, now.Add(firstWithin)); !slices.Equal(got, []string{"a"}) {
		t.Errorf("checked soon: %v, want the endpoint that moved", got)
	}
}

func TestIntervalTakesEffectForWhatWaits(t *testing.T) {
	s := newSchedule(middle)
	s.update([]policy.Target{target("a"), target("b")}, time.Hour, Thresholds{}, t0)
	turn(s, t0.Add(firstWithin))
	now := t0.Add(time.Minute)
	s.update([]policy.Target{target("a"), target("b")}, time.Second, Thresholds{}, now)
	if got := turn(s, now.Add(firstWithin)); len(got) < 2 {
		t.Errorf("after the interval was cut from an hour to a second, %v were checked", got)
	}
	s.update([]policy.Target{target("a"), target("b")}, time.Hour, Thresholds{}, now.Add(2*time.Second))
	turn(s, now.Add(2*time.Second))
	if _, wait, _ := s.next(now.Add(2 * time.Second)); wait < 50*time.Minute {
		t.Errorf("after it was raised again the next check is in %v", wait)
	}
}

func TestThresholdsDecide(t *testing.T) {
	const up, down = true, false
	for name, c := range map[string]struct {
		unhealthy, healthy int
		stored             string
		results            []bool
		want               []bool // healthy after each
		changed            []bool // while the stored status stays what it was
	}{
		"one result decides":        {1, 1, policy.Healthy, []bool{down, up, down}, []bool{down, up, down}, []bool{true, false, true}},
		"three failures, two to go": {3, 2, policy.Healthy, []bool{down, down, down, up, up}, []bool{up, up, down, down, up}, []bool{false, false, true, true, false}},
		"a success in between":      {2, 1, policy.Healthy, []bool{down, up, down, down}, []bool{up, up, up, down}, []bool{false, false, false, true}},
		"stored as unhealthy":       {1, 2, policy.Unhealthy, []bool{up, up}, []bool{down, up}, []bool{false, true}},
		"no stored status":          {1, 1, "", []bool{up, down}, []bool{up, down}, []bool{false, true}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSchedule(middle)
			tg := target("a")
			tg.Status = c.stored
			s.update([]policy.Target{tg}, time.Second, Thresholds{c.unhealthy, c.healthy}, t0)
			it := s.items[key{tg.Service(), "a"}]
			for i, passed := range c.results {
				r, _ := s.judge(it, Result{At: t0.Add(time.Duration(i) * time.Second), Passed: passed})
				if r.Healthy != c.want[i] || r.Changed != c.changed[i] {
					t.Errorf("after result %d: healthy %v, changed %v; want %v, %v", i+1, r.Healthy, r.Changed, c.want[i], c.changed[i])
				}
			}
		})
	}
}

// What says nothing of the app turns nothing, and does not break a row.
func TestAResultThatIsUnclearIsKeptAndTurnsNothing(t *testing.T) {
	s := newSchedule(middle)
	tg := target("a")
	s.update([]policy.Target{tg}, time.Second, Thresholds{Unhealthy: 2, Healthy: 1}, t0)
	it := s.items[key{tg.Service(), "a"}]
	for i, c := range []struct{ passed, unclear, healthy bool }{
		{false, true, true}, {false, true, true}, {false, false, true}, {false, true, true}, {false, false, false}, {false, true, false}, {true, false, true},
	} {
		if r, _ := s.judge(it, Result{Passed: c.passed, Unclear: c.unclear}); r.Healthy != c.healthy {
			t.Errorf("after result %d: healthy %v", i+1, r.Healthy)
		}
	}
	if st, _ := s.status(tg.Service(), "a"); len(st.History) != 7 {
		t.Errorf("%d results are kept", len(st.History))
	}
}

func TestStatusThatWasOverwrittenIsReportedAgain(t *testing.T) {
	s := newSchedule(middle)
	tg := target("a")
	s.update([]policy.Target{tg}, time.Second, Thresholds{}, t0)
	it := s.items[key{tg.Service(), "a"}]
	s.judge(it, Result{})
	tg.Status = policy.Unhealthy // stored
	s.update([]policy.Target{tg}, time.Second, Thresholds{}, t0)
	if r, _ := s.judge(it, Result{}); r.Changed {
		t.Error("a status that is stored as found counts as changed")
	}
	tg.Status = policy.Healthy // registered anew
	s.update([]policy.Target{tg}, time.Second, Thresholds{}, t0)
	if r, _ := s.judge(it, Result{}); !r.Changed {
		t.Error("a status that is not what was found does not count as changed")
	}
}

func TestDoubtIsShort(t *testing.T) {
	s := newSchedule(middle)
	s.update([]policy.Target{target("a")}, time.Minute, Thresholds{Unhealthy: 3}, t0)
	now := t0.Add(firstWithin)
	for i, want := range []time.Duration{10 * time.Second, 10 * time.Second, 10 * time.Second} {
		it, _, _ := s.next(now)
		if it == nil {
			t.Fatalf("check %d is not due", i+1)
		}
		s.judge(it, Result{At: now})
		s.requeue(it, now)
		if got := it.due.Sub(now); got != want {
			t.Errorf("after failure %d the next check is in %v, want %v", i+1, got, want)
		}
		now = it.due
	}
	it, _, _ := s.next(now)
	s.judge(it, Result{At: now, Passed: true})
	s.requeue(it, now)
	if got := it.due.Sub(now); got != time.Minute {
		t.Errorf("once it is healthy again the next check is in %v, want the interval", got)
	}
}

func TestTheLastHundredResultsAreKept(t *testing.T) {
	s := newSchedule(middle)
	tg := target("a")
	s.update([]policy.Target{tg}, time.Second, Thresholds{}, t0)
	it := s.items[key{tg.Service(), "a"}]
	at := func(i int) time.Time { return t0.Add(time.Duration(i) * time.Second) }
	for i := range 3*historySize + 7 {
		detail := "connected"
		if i == 250 {
			detail = "connect: connection refused"
		}
		s.judge(it, Result{At: at(i), Took: 1500 * time.Microsecond, Check: "tcp", Passed: i != 250, Detail: detail})
		st, _ := s.status(users, "a")
		if want := min(i+1, historySize); len(st.History) != want {
			t.Fatalf("after %d results %d are kept, want %d", i+1, len(st.History), want)
		}
		for j, r := range st.History {
			if n := i + 1 - len(st.History) + j; !r.At.Equal(at(n)) || r.Passed != (n != 250) {
				t.Fatalf("after %d results, number %d of the kept ones is of %v, passed %v", i+1, j, r.At, r.Passed)
			}
		}
	}
	st, _ := s.status(users, "a")
	want := Result{At: at(250), Took: 1500 * time.Microsecond, Check: "tcp", Detail: "connect: connection refused", Changed: true}
	got := st.History[historySize-57]
	if !got.At.Equal(want.At) {
		t.Fatalf("the failure is not where it was put: %+v", got)
	}
	got.At = want.At
	if got != want || !st.Since.Equal(at(251)) {
		t.Errorf("kept %+v, since %v; want %+v", got, st.Since, want)
	}
}

func TestAResultIsKeptInThirtyTwoBytes(t *testing.T) {
	if size := unsafe.Sizeof(record{}); size != 32 {
		t.Errorf("a kept result takes %d bytes", size)
	}
}
