package retry

import (
	"math"
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	const half = 1 << 63 // no jitter
	for _, c := range []struct {
		name   string
		delay  time.Duration
		n      int
		random uint64
		left   time.Duration
		want   time.Duration
		ok     bool
	}{
		{"after the first try", time.Second, 1, half, time.Minute, time.Second, true},
		{"after the third", time.Second, 3, half, time.Minute, 3 * time.Second, true},
		{"the least", time.Second, 2, 0, time.Minute, 1500 * time.Millisecond, true},
		{"the most", time.Second, 2, math.MaxUint64, time.Minute, 2500 * time.Millisecond, true},
		{"no deadline", time.Hour, 2, half, NoDeadline, 2 * time.Hour, true},
		{"it would end after the deadline", time.Second, 2, half, 1999 * time.Millisecond, 2 * time.Second, false},
		{"it would end at the deadline", time.Second, 1, half, time.Second, time.Second, false},
		{"no delay", 0, 1, half, time.Second, 0, true},
		{"no delay and no time", 0, 1, half, 0, 0, false},
		{"the deadline has passed", time.Second, 1, 0, -time.Second, 750 * time.Millisecond, false},
		{"overflow", math.MaxInt64, 3, half, NoDeadline, NoDeadline, false},
		{"nearly overflow", math.MaxInt64 / 2, 2, math.MaxUint64, NoDeadline, NoDeadline, false},
		{"no try yet", time.Second, 0, half, time.Second, 0, true},
	} {
		if got, ok := Backoff(c.delay, c.n, c.random, c.left); got != c.want || ok != c.ok {
			t.Errorf("%s: %v, %v; want %v, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

// Whatever the arguments, a wait that is ok is within a quarter of delay×n, not negative, and shorter than what is left.
func FuzzBackoff(f *testing.F) {
	f.Add(int64(time.Second), 3, uint64(7), int64(time.Minute))
	f.Add(int64(math.MaxInt64), math.MaxInt, uint64(math.MaxUint64), int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, delay int64, n int, random uint64, left int64) {
		got, ok := Backoff(time.Duration(delay), n, random, time.Duration(left))
		if got < 0 || ok && int64(got) >= left {
			t.Fatalf("%v, %v", got, ok)
		}
		if want := float64(delay) * float64(n); ok && delay > 0 && n > 0 && (float64(got) < 0.7499*want-1 || float64(got) > 1.2501*want+1) {
			t.Fatalf("%v for %v", got, time.Duration(want))
		}
	})
}

func TestSafe(t *testing.T) {
	for _, c := range []struct {
		method         string
		sent, answered bool
		want           bool
	}{
		{"GET", false, false, true}, {"GET", true, false, true}, {"GET", true, true, false},
		{"HEAD", true, false, true}, {"OPTIONS", true, false, true}, {"TRACE", true, false, true},
		{"PUT", true, false, true}, {"DELETE", true, false, true},
		{"POST", false, false, true}, {"POST", true, false, false}, {"PATCH", true, false, false}, {"CONNECT", true, false, false},
		{"get", true, false, false}, {"", true, false, false}, {"BREW", true, false, false}, {"BREW", false, false, true},
		{"POST", false, true, false},
	} {
		if got := Safe(c.method, c.sent, c.answered); got != c.want {
			t.Errorf("%q sent %v answered %v: %v", c.method, c.sent, c.answered, got)
		}
	}
}

func TestRetriable(t *testing.T) {
	for status, want := range map[int]bool{0: false, 200: false, 404: false, 429: false, 499: false, 500: true, 501: true, 502: true, 503: true, 504: true, 505: true, 599: true, 600: false} {
		if got := Retriable(status); got != want {
			t.Errorf("%d: %v", status, got)
		}
	}
}
