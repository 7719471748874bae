package retry

import (
	"math"
	"testing"
	"time"
)

func TestWaitsHaveAMostAndALeast(t *testing.T) {
	const half = 1 << 63 // no jitter
	for _, c := range []struct {
		name   string
		wait   Wait
		n      int
		random uint64
		left   time.Duration
		want   time.Duration
		ok     bool
	}{
		{"without bounds", Wait{Delay: time.Second}, 2, half, time.Minute, 2 * time.Second, true},
		{"below the most", Wait{Delay: time.Second, Most: 10 * time.Second}, 2, half, time.Minute, 2 * time.Second, true},
		{"at the most", Wait{Delay: time.Second, Most: 10 * time.Second}, 50, half, time.Minute, 8 * time.Second, true},
		{"at the most, the longest", Wait{Delay: time.Second, Most: 10 * time.Second}, 50, math.MaxUint64, time.Minute, 10 * time.Second, true},
		{"at the most, the shortest", Wait{Delay: time.Second, Most: 10 * time.Second}, 50, 0, time.Minute, 6 * time.Second, true},
		{"overflow has a most, too", Wait{Delay: math.MaxInt64 / 2, Most: time.Second}, 9, half, time.Minute, 800 * time.Millisecond, true},
		{"the server asks for more", Wait{Delay: time.Second, Most: 10 * time.Second, Least: 3 * time.Second}, 1, half, time.Minute, 3 * time.Second, true},
		{"the server asks for less", Wait{Delay: 5 * time.Second, Most: 10 * time.Second, Least: 3 * time.Second}, 1, half, time.Minute, 5 * time.Second, true},
		{"the server asks for too much", Wait{Delay: time.Second, Most: 10 * time.Second, Least: 11 * time.Second}, 1, half, time.Minute, 11 * time.Second, false},
		{"the server asks for more than is left", Wait{Delay: time.Second, Most: 10 * time.Second, Least: 3 * time.Second}, 1, half, 2 * time.Second, 3 * time.Second, false},
		{"no delay", Wait{Most: time.Second}, 1, half, time.Minute, 0, true},
		{"no delay and no time", Wait{Most: time.Second}, 1, half, 0, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := c.wait.Before(c.n, c.random, c.left)
			if ok != c.ok || (got-c.want).Abs() > 2*time.Nanosecond {
				t.Errorf("%v %v, want %v %v", got, ok, c.want, c.ok)
			}
		})
	}
}

// Whatever the arguments, a wait that is ok is within its bounds and ends in time.
func FuzzWait(f *testing.F) {
	f.Add(int64(time.Second), int64(time.Minute), int64(0), 3, uint64(7), int64(time.Minute))
	f.Add(int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64), math.MaxInt, uint64(math.MaxUint64), int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, delay, most, least int64, n int, random uint64, left int64) {
		w := Wait{time.Duration(delay), time.Duration(most), time.Duration(least)}
		got, ok := w.Before(n, random, time.Duration(left))
		if ok && (got < 0 || int64(got) >= left || most > 0 && int64(got) > most || int64(got) < least) {
			t.Fatalf("%+v: %v", w, got)
		}
	})
}
