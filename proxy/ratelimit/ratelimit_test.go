package ratelimit

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func mustNew(t testing.TB, p Policy) *Limiter {
	t.Helper()
	l, err := New(p, noon)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestPoliciesOutOfBounds(t *testing.T) {
	for _, c := range []struct {
		p    Policy
		want string
	}{
		{Policy{}, "limit 0 is not in 1..16777215"},
		{Policy{Limit: 1 << 24, Window: time.Second}, "limit 16777216"},
		{Policy{Limit: 1}, "window 0s is not in 1ms..24h0m0s"},
		{Policy{Limit: 1, Window: 25 * time.Hour}, "window 25h0m0s"},
		{Policy{Limit: 1, Window: time.Second, Burst: -1}, "burst -1"},
		{Policy{Limit: 2_000_000, Window: time.Second, Burst: 1}, "more than the million tokens a second"},
		{Policy{Limit: 1, Window: 24 * time.Hour, Burst: 31}, "takes more than"},
	} {
		_, err := New(c.p, noon)
		_, errKeyed := NewKeyed(c.p, 0, noon)
		if err == nil || !strings.Contains(err.Error(), c.want) || errKeyed == nil {
			t.Errorf("%+v: %v, %v; want %q", c.p, err, errKeyed, c.want)
		}
	}
	if _, err := NewKeyed(Policy{Limit: 1, Window: time.Second}, -1, noon); err == nil {
		t.Error("-1 keys")
	}
}

// The contract: 100 in a sliding 60 s window; the 101st is refused, and told when the oldest falls out.
func TestTheHundredAndFirst(t *testing.T) {
	l := mustNew(t, Policy{Limit: 100, Window: time.Minute})
	for i := range 100 {
		d := l.Allow(noon.Add(time.Duration(i) * 100 * time.Millisecond))
		if !d.OK || d.Remaining != 99-i || d.RetryAfter != 0 || d.Limit != 100 {
			t.Fatalf("request %d: %+v", i+1, d)
		}
	}
	d := l.Allow(noon.Add(10 * time.Second))
	if want := (Decision{Limit: 100, Reset: 50 * time.Second, RetryAfter: 50 * time.Second}); d != want {
		t.Fatalf("the 101st: %+v", d)
	}
	if d := l.Allow(noon.Add(time.Minute - 1)); d.OK || string(AppendRetryAfter(nil, d)) != "1" {
		t.Fatalf("just before the oldest falls out: %+v", d)
	}
	if d := l.Allow(noon.Add(time.Minute)); !d.OK || d.Remaining != 0 {
		t.Fatalf("when it has: %+v", d)
	}
	if d := l.Allow(noon.Add(time.Minute)); d.OK || d.RetryAfter != 100*time.Millisecond {
		t.Fatalf("then the next oldest: %+v", d)
	}
	if d := l.Peek(noon.Add(time.Hour)); !d.OK || d.Remaining != 100 || d.Reset != 0 {
		t.Fatalf("an hour later: %+v", d)
	}
}

// seedList is the sliding window as the seed writes it: a list of times. There a request still counts at exactly the age of the window; here not,
// so that one who waits for the time it was told is not refused again.
type seedList struct {
	times []time.Time
	Policy
}

func (s *seedList) allow(now time.Time) (ok bool, retry time.Duration, used int) {
	for len(s.times) > 0 && now.Sub(s.times[0]) >= s.Window {
		s.times = s.times[1:]
	}
	if len(s.times) >= s.Limit {
		return false, s.times[0].Add(s.Window).Sub(now), len(s.times)
	}
	s.times = append(s.times, now)
	return true, 0, len(s.times)
}

func TestTheWindowDoesWhatTheListDoes(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		p := Policy{Limit: 1 + rnd.IntN(40), Window: time.Duration(1+rnd.IntN(2000)) * time.Millisecond}
		keyed, err := NewKeyed(p, 1, noon) // one key: the ring that grows
		if err != nil {
			t.Fatal(err)
		}
		l, list, now := mustNew(t, p), &seedList{Policy: p}, noon
		for step := range 3000 {
			now = now.Add(time.Duration(rnd.Int64N(int64(p.Window) / int64(p.Limit) * 2)))
			got, alike := l.Allow(now), keyed.Allow("k", now)
			ok, retry, used := list.allow(now)
			if got != alike || got.OK != ok || got.RetryAfter != retry || got.Remaining != p.Limit-used {
				t.Fatalf("%+v step %d: %+v and %+v; want %v %v %d", p, step, got, alike, ok, retry, p.Limit-used)
			}
		}
	}
}

// slowBucket is the token bucket as it is told: tokens that drip in.
type slowBucket struct {
	tokens float64
	at     time.Time
	Policy
}

func (s *slowBucket) allow(now time.Time) bool {
	s.tokens = min(float64(s.Burst), s.tokens+now.Sub(s.at).Seconds()*float64(s.Limit)/s.Window.Seconds())
	s.at = now
	if s.tokens < 1-1e-6 {
		return false
	}
	s.tokens--
	return true
}

func TestTheBucketDoesWhatTokensDo(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		p := Policy{Limit: []int{1, 2, 5, 10, 100}[rnd.IntN(5)], Window: time.Second, Burst: 1 + rnd.IntN(20)}
		l, slow, now := mustNew(t, p), &slowBucket{tokens: float64(p.Burst), at: noon, Policy: p}, noon
		for step := range 3000 {
			now = now.Add(time.Duration(rnd.IntN(2000/p.Limit)) * time.Millisecond)
			d := l.Allow(now)
			if want := slow.allow(now); d.OK != want {
				t.Fatalf("%+v step %d: %+v, want %v with %.6f tokens", p, step, d, want, slow.tokens)
			}
			if d.OK && d.Remaining != int(slow.tokens+1e-6) {
				t.Fatalf("%+v step %d: %+v, want %.6f tokens", p, step, d, slow.tokens)
			}
		}
	}
}

// Whatever the algorithm: one who waits for RetryAfter gets through, one who comes a little earlier does not; Reset tells when Remaining grows.
func TestTheFiguresAreTrue(t *testing.T) {
	const slack = 5 * time.Microsecond // the two counters round
	for _, p := range []Policy{{Limit: 7, Window: time.Second}, {Limit: 20_000, Window: time.Second}, {Limit: 10, Window: time.Second, Burst: 5}} {
		rnd := rand.New(rand.NewPCG(9, 9))
		l, now, refused := mustNew(t, p), noon, 0
		for range 200_000 {
			now = now.Add(time.Duration(rnd.Int64N(int64(p.Window) * 2 / int64(p.Limit))))
			if rnd.IntN(1000) == 0 {
				now = now.Add(time.Duration(rnd.Int64N(int64(3 * p.Window))))
			}
			d := l.Allow(now)
			if p.Limit > exactLimit {
				for d.OK { // fill it up: refusals are what is looked at
					d = l.Allow(now)
				}
			}
			if d.OK != (d.RetryAfter == 0) || d.Remaining < 0 || d.Remaining > d.Limit || d.Reset <= 0 {
				t.Fatalf("%+v: %+v", p, d)
			}
			later := l.count // a copy, so that the question does not change the answer
			later.times = append([]int64(nil), l.count.times...)
			var after Decision
			if l.rules.decide(&later, l.limit, int64(now.Add(d.Reset).Sub(noon)), false, &after); after.Remaining <= d.Remaining {
				t.Fatalf("%+v: %+v, and at Reset %+v", p, d, after)
			}
			if d.OK {
				continue
			}
			if refused++; d.RetryAfter > slack {
				if early := l.Peek(now.Add(d.RetryAfter - slack)); early.OK {
					t.Fatalf("%+v: %+v, and a little before %+v", p, d, early)
				}
			}
			now = now.Add(d.RetryAfter)
			if late := l.Allow(now); !late.OK {
				t.Fatalf("%+v: %+v, and after the wait %+v", p, d, late)
			}
			if refused > 300 {
				break
			}
		}
		if refused < 300 {
			t.Errorf("%+v: only %d refusals", p, refused)
		}
	}
}

// The two counters against the exact list: under even load they agree to a few in a hundred, and never let twice the limit through.
func TestTheTwoCountersAreNear(t *testing.T) {
	p := Policy{Limit: 20_000, Window: time.Second}
	l, list, rnd, now := mustNew(t, p), &seedList{Policy: p}, rand.New(rand.NewPCG(3, 3)), noon
	if l.rules.exact {
		t.Fatal("exact")
	}
	allowed, exact := 0, 0
	for range 400_000 { // ten seconds at twice the limit
		now = now.Add(time.Duration(rnd.IntN(50_000)))
		if l.Allow(now).OK {
			allowed++
		}
		if ok, _, _ := list.allow(now); ok {
			exact++
		}
	}
	if allowed < exact*95/100 || allowed > exact*105/100 {
		t.Errorf("%d allowed, %d by the exact window", allowed, exact)
	}
}

// Time that stands still or goes back: nothing is forgotten early, nothing is locked for longer than a window.
func TestTimeGoesBack(t *testing.T) {
	for _, p := range []Policy{{Limit: 2, Window: time.Second}, {Limit: 20_000, Window: time.Second}, {Limit: 2, Window: time.Second, Burst: 2}} {
		l := mustNew(t, p)
		n := 0
		for i := range 30_000 {
			if l.Allow(noon.Add(time.Minute - time.Duration(i)*time.Millisecond)).OK {
				n++
			}
		}
		if n != min(p.Limit, 30_000) {
			t.Errorf("%+v: %d allowed", p, n)
		}
		if d := l.Allow(noon.Add(time.Minute + 2*time.Second)); !d.OK {
			t.Errorf("%+v: %+v", p, d)
		}
	}
}

func TestAllowDoesNotAllocate(t *testing.T) {
	for _, p := range []Policy{{Limit: 100, Window: time.Minute}, {Limit: 20_000, Window: time.Minute}, {Limit: 100, Window: time.Minute, Burst: 10}} {
		l := mustNew(t, p)
		k, _ := NewKeyed(p, 0, noon)
		for range 200 {
			k.Allow("spiffe://mesh/ns/shop/sa/cart", noon)
		}
		now, buf := noon, make([]byte, 0, 100)
		if n := testing.AllocsPerRun(1000, func() {
			now = now.Add(time.Millisecond)
			d := l.Allow(now)
			k.Allow("spiffe://mesh/ns/shop/sa/cart", now)
			AppendRetryAfter(AppendRateLimit(AppendPolicy(buf, "default", p), "default", d), d)
		}); n != 0 {
			t.Errorf("%+v: %v allocations", p, n)
		}
	}
}

// Under concurrency exactly the limit passes: not one more, not one fewer.
func TestConcurrentUse(t *testing.T) {
	for _, p := range []Policy{{Limit: 1000, Window: time.Minute}, {Limit: 12_000, Window: time.Minute}, {Limit: 1000, Window: time.Hour, Burst: 1000}} {
		l := mustNew(t, p)
		k, _ := NewKeyed(p, 2000, noon)
		var one, keyed atomic.Int64
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range 4000 {
					now := noon.Add(time.Duration(i*4+g) * time.Microsecond)
					if l.Allow(now).OK {
						one.Add(1)
					}
					if k.Allow([]string{"a", "b"}[i%2], now).OK {
						keyed.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if one.Load() != int64(min(p.Limit, 16_000)) || keyed.Load() != int64(min(2*p.Limit, 16_000)) {
			t.Errorf("%+v: %d and %d passed", p, one.Load(), keyed.Load())
		}
	}
}
