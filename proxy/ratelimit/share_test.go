package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// passed counts how many of n requests at a time a limiter lets through.
func passed(l *Limiter, n int, at time.Time) int {
	ok := 0
	for range n {
		if l.Allow(at).OK {
			ok++
		}
	}
	return ok
}

func shapes() map[string]Policy {
	return map[string]Policy{
		"exact":    {Limit: 100, Window: 10 * time.Second},
		"counters": {Limit: 20_000, Window: 10 * time.Second},
		"bucket":   {Limit: 100, Window: 10 * time.Second, Burst: 100},
	}
}

func TestAShareIsWhatIsAllowed(t *testing.T) {
	for name, p := range shapes() {
		t.Run(name, func(t *testing.T) {
			l, err := New(p, noon)
			if err != nil {
				t.Fatal(err)
			}
			all := p.Limit
			l.SetShare(float64(all) * 0.3)
			if got := passed(l, all, noon); got != all*3/10 {
				t.Errorf("%d of %d pass with a share of 30 %%", got, all)
			}
			// What is counted stays so when the share grows, or is taken away and given back.
			l.SetShare(0)
			if d := l.Allow(noon); d.OK || d.Remaining != 0 {
				t.Errorf("without a share: %+v", d)
			}
			l.SetShare(float64(all) * 0.5)
			if got := passed(l, all, noon); got != all*2/10 {
				t.Errorf("%d more pass with a share of 50 %%, want %d", got, all*2/10)
			}
			l.SetShare(float64(all) * 7) // no share is more than the limit
			if got := passed(l, 2*all, noon); got != all*5/10 {
				t.Errorf("%d more pass with all of it, want %d", got, all*5/10)
			}
			l.SetShare(float64(all) * 0.1) // less than is used
			if d := l.Allow(noon.Add(time.Second)); d.OK || d.Remaining != 0 {
				t.Errorf("above its share: %+v", d)
			}
		})
	}
}

func TestABucketsShareFillsAtItsPart(t *testing.T) {
	l, _ := New(Policy{Limit: 100, Window: 10 * time.Second, Burst: 50}, noon)
	l.SetShare(20) // of 100: a fifth of the depth, and of the pace
	if got := passed(l, 100, noon); got != 10 {
		t.Errorf("%d at once", got)
	}
	if got := passed(l, 100, noon.Add(time.Second)); got != 2 {
		t.Errorf("%d after a second", got)
	}
}

func TestUsageTellsWhatWasAskedAndWhatIsHeld(t *testing.T) {
	for name, p := range shapes() {
		t.Run(name, func(t *testing.T) {
			l, _ := New(p, noon)
			l.SetShare(10)
			passed(l, 25, noon)
			l.Peek(noon) // asks for nothing
			u := l.Usage(noon)
			if u.Asked != 25 || u.Used < 9.9 || u.Used > 10.1 {
				t.Errorf("%+v", u)
			}
			if u := l.Usage(noon); u.Asked != 0 {
				t.Errorf("told twice: %+v", u)
			}
			if u := l.Usage(noon.Add(time.Hour)); u.Used != 0 {
				t.Errorf("an hour later it holds %v", u.Used)
			}
		})
	}
}

func TestUsedIsWhatTheNextRequestMeets(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, p := range shapes() {
		l, _ := New(p, noon)
		now := noon
		for range 3000 {
			now = now.Add(time.Duration(random.Int64N(int64(50 * time.Millisecond))))
			for range random.IntN(p.Limit/50 + 1) {
				l.Allow(now)
			}
			used, left := l.Usage(now).Used, l.Peek(now).Remaining
			if total := used + float64(left); total < float64(p.Limit)-1.01 || total > float64(p.Limit)+1.01 {
				t.Fatalf("%s: %v are used and %d left of %d", name, used, left, p.Limit)
			}
		}
	}
}

func TestEveryKeyHasTheShareAndAHotOneItsOwn(t *testing.T) {
	k, _ := NewKeyed(Policy{Limit: 100, Window: time.Minute}, 0, noon)
	k.Divide(10)
	ask := func(key string, n int) (ok int) {
		for range n {
			if k.Allow(key, noon).OK {
				ok++
			}
		}
		return ok
	}
	if ask("cold", 3) != 3 || ask("hot", 30) != 10 {
		t.Error("a key has more or less than the share of any")
	}
	u, keys := k.Usage(noon)
	if u.Asked != 33 || len(keys) != 1 || keys[0].Key != "hot" || keys[0].Asked < 20 || keys[0].Used != 10 {
		t.Errorf("%+v %+v", u, keys)
	}
	k.SetShares(10, func(key string) (float64, bool) { return 25, key == "hot" })
	if got := ask("hot", 30); got != 15 {
		t.Errorf("the hot key has %d more, want 15", got)
	}
	if got := ask("cold", 30); got != 7 {
		t.Errorf("the other has %d more, want 7", got)
	}
	k.SetShares(10, func(string) (float64, bool) { return 0, false }) // nobody said otherwise of it
	if got := ask("hot", 1); got != 0 {
		t.Error("a share that was given was forgotten")
	}
}

func TestAKeyThatIsQuietIsWatchedNoMore(t *testing.T) {
	k, _ := NewKeyed(Policy{Limit: 10, Window: time.Second}, 0, noon)
	k.Divide(2)
	for range 5 {
		k.Allow("hot", noon)
	}
	later := noon.Add(time.Minute)
	for i := range 2 * hotIdleAt {
		if _, keys := k.Usage(later); len(keys) == 0 {
			if i < hotIdleAt-1 {
				t.Errorf("let go after %d reports", i)
			}
			return
		}
	}
	t.Error("watched for ever")
}

func TestWatchedKeysAreBounded(t *testing.T) {
	k, _ := NewKeyed(Policy{Limit: 10, Window: time.Minute}, 0, noon)
	k.Divide(1)
	for i := range 5000 {
		k.Allow(fmt.Sprint(i), noon)
		k.Allow(fmt.Sprint(i), noon)
	}
	if _, keys := k.Usage(noon); len(keys) > hotKeys || len(keys) == 0 {
		t.Errorf("%d keys", len(keys))
	}
}

func TestPeekOfAKeyCountsNothing(t *testing.T) {
	k, _ := NewKeyed(Policy{Limit: 2, Window: time.Minute}, 0, noon)
	for range 5 {
		if d := k.Peek("a", noon); !d.OK || d.Remaining != 2 {
			t.Fatalf("%+v", d)
		}
	}
}

func TestAShareCostsNothing(t *testing.T) {
	k, _ := NewKeyed(Policy{Limit: 100, Window: time.Minute}, 0, noon)
	k.Divide(10)
	for range 200 {
		k.Allow("hot", noon)
	}
	if n := testing.AllocsPerRun(1000, func() { k.Allow("hot", noon) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
