package breaker

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Threshold: -1}, "threshold -1 is not in 1..65535"},
		{Config{Threshold: 65536}, "threshold 65536"},
		{Config{Timeout: -time.Second}, "timeout -1s"},
		{Config{Timeout: time.Microsecond}, "timeout 1µs"},
		{Config{Timeout: 1000 * time.Hour}, "timeout 1000h"},
		{Config{ProbeTimeout: 1}, "probe timeout 1ns"},
	} {
		if _, err := New(c.cfg, epoch); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
}

func opened(t testing.TB, cfg Config, at time.Time) *Circuit {
	t.Helper()
	c, err := New(cfg, epoch)
	if err != nil {
		t.Fatal(err)
	}
	for range c.cfg.Threshold {
		ticket, ok := c.Allow(at)
		if !ok {
			t.Fatal("refused while closed")
		}
		c.Failure(at, ticket)
	}
	return c
}

func TestDefaults(t *testing.T) {
	c := opened(t, Config{}, epoch)
	if c.Opens() != 1 || c.State(epoch.Add(60*time.Second-1)) != Open || c.State(epoch.Add(60*time.Second)) != HalfOpen {
		t.Errorf("opens %d", c.Opens())
	}
}

// Times are kept in milliseconds: whatever the fraction at which it opened, no probe passes before the whole timeout.
func TestNeverEarly(t *testing.T) {
	for _, fraction := range []time.Duration{0, 1, 500 * time.Microsecond, 999_999} {
		at := epoch.Add(fraction)
		c := opened(t, Config{Timeout: time.Second}, at)
		if c.Ready(at.Add(time.Second-1)) || !c.Ready(at.Add(time.Second+time.Millisecond)) {
			t.Errorf("opened at +%v: early or late", fraction)
		}
	}
}

// A clock that goes back (or a now from before start) holds nothing open for longer than the timeout by that clock, and panics nowhere.
func TestATimeBeforeTheStart(t *testing.T) {
	c := opened(t, Config{Timeout: time.Second}, epoch.Add(-time.Hour))
	if c.Ready(epoch.Add(time.Second-1)) || !c.Ready(epoch.Add(time.Second)) {
		t.Error("not counted from the start")
	}
}

func TestTheZeroTicketHasNoSay(t *testing.T) {
	c, _ := New(Config{Threshold: 1}, epoch)
	c.Failure(epoch, Ticket{})
	c.Success(epoch, Ticket{})
	c.Cancel(Ticket{})
	if c.Opens() != 0 || c.State(epoch) != Closed {
		t.Error("it had")
	}
}

func TestNoAllocations(t *testing.T) {
	c := opened(t, Config{Timeout: time.Second}, epoch)
	now := epoch
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Second)
		ticket, ok := c.Allow(now)
		if !ok || !ticket.Probe() {
			t.Fatal("no probe")
		}
		c.Failure(now, ticket)
		c.State(now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Of many that ask at once when the time has come, one gets the probe, each time.
func TestOneProbeAtATime(t *testing.T) {
	c := opened(t, Config{Timeout: time.Second}, epoch)
	now := epoch
	for range 200 {
		now = now.Add(time.Second)
		var probes atomic.Int32
		var ticket Ticket
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if got, ok := c.Allow(now); ok {
					probes.Add(1)
					ticket = got
				}
			})
		}
		wg.Wait()
		if probes.Load() != 1 {
			t.Fatalf("%d probes", probes.Load())
		}
		c.Failure(now, ticket)
	}
}

// Concurrent failures open it once, and none is lost on the way to the threshold.
func TestConcurrentFailuresOpenOnce(t *testing.T) {
	for range 200 {
		c, _ := New(Config{Threshold: 8}, epoch)
		var openings atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				ticket, ok := c.Allow(epoch)
				if ok && c.Failure(epoch, ticket) {
					openings.Add(1)
				}
			})
		}
		wg.Wait()
		if openings.Load() != 1 || c.Opens() != 1 || c.State(epoch) != Open {
			t.Fatalf("%d openings, state %s", openings.Load(), c.State(epoch))
		}
	}
}
