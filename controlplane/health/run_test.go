package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// lab runs a Checker on a fake clock; what a dial finds is the test's choice.
type lab struct {
	mu       sync.Mutex
	targets  []policy.Target
	down     map[string]bool // by address
	interval time.Duration
	off      bool
	reports  []string // "id healthy|unhealthy [changed]"
	at       []time.Time
}

func (c *Checker) known() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.schedule.items)
}

func (l *lab) with(f func(*lab)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
}

func (l *lab) config() Config {
	return Config{
		Targets: func() []policy.Target { l.mu.Lock(); defer l.mu.Unlock(); return l.targets },
		Report: func(_ context.Context, t policy.Target, r Result) {
			l.mu.Lock()
			defer l.mu.Unlock()
			word := t.ID + " unhealthy"
			if r.Healthy {
				word = t.ID + " healthy"
			}
			if r.Changed {
				word += " changed"
			}
			l.reports, l.at = append(l.reports, word), append(l.at, time.Now())
		},
		Interval: func() time.Duration { l.mu.Lock(); defer l.mu.Unlock(); return l.interval },
		Enabled:  func() bool { l.mu.Lock(); defer l.mu.Unlock(); return !l.off },
		Rand:     middle,
		Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.down[addr] {
				return nil, errors.New("connection refused")
			}
			near, far := net.Pipe()
			_ = far.Close()
			return near, nil
		},
	}
}

func (l *lab) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := strings.Join(l.reports, ", ")
	l.reports = nil
	return out
}

// run starts a Checker and returns what stops it and waits.
func run(t *testing.T, cfg Config) (*Checker, func()) {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	return c, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	ok := (&lab{}).config()
	noTargets, noReport, negative := ok, ok, ok
	noTargets.Targets, noReport.Report, negative.Concurrency = nil, nil, -1
	for want, cfg := range map[string]Config{"Targets": noTargets, "Report": noReport, "negative": negative} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New gave %v, want it to name %q", err, want)
		}
	}
}

func TestEndpointGoesDownAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{targets: []policy.Target{target("a")}, down: map[string]bool{}, interval: 30 * time.Second}
		c, stop := run(t, l.config())
		defer stop()
		at := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := l.take(); got != want {
				t.Fatalf("after %v the reports are %q, want %q", d, got, want)
			}
		}
		at(time.Second, "a healthy") // with the middle of the jitter at half a second
		l.with(func(l *lab) { l.down["10.0.0.1:8001"] = true })
		at(29*time.Second, "")
		at(time.Second, "a unhealthy changed")
		l.with(func(l *lab) { l.targets = []policy.Target{target("a")}; l.targets[0].Status = policy.Unhealthy })
		at(5*time.Second, "a unhealthy") // a sixth of the interval: it may come back soon
		l.with(func(l *lab) { l.down = nil })
		at(5*time.Second, "a healthy changed")
		l.with(func(l *lab) { l.targets = []policy.Target{target("a")} })
		at(29*time.Second, "")
		st, ok := c.Status(users, "a")
		if !ok || !st.Healthy || len(st.History) != 4 || st.History[1].Detail != "connect: connection refused" {
			t.Errorf("the results are %+v", st)
		}
	})
}

func TestNewEndpointIsCheckedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{interval: time.Hour}
		c, stop := run(t, l.config())
		defer stop()
		time.Sleep(time.Minute)
		l.with(func(l *lab) { l.targets = []policy.Target{target("a")} })
		c.Changed()
		time.Sleep(firstWithin + relistGap)
		synctest.Wait()
		if got := l.take(); got != "a healthy" {
			t.Errorf("a second after it was made known: %q", got)
		}
		l.with(func(l *lab) { l.targets = append(l.targets, target("b")) }) // nobody says so
		time.Sleep(relistEvery + firstWithin)
		synctest.Wait()
		if got := l.take(); got != "b healthy" {
			t.Errorf("after a while: %q", got)
		}
	})
}

func TestManyChangesListTheEndpointsFewTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{interval: time.Hour}
		cfg := l.config()
		var lists atomic.Int64
		inner := cfg.Targets
		cfg.Targets = func() []policy.Target { lists.Add(1); return inner() }
		c, stop := run(t, cfg)
		defer stop()
		for range 1000 {
			c.Changed()
			time.Sleep(time.Millisecond)
		}
		if n := lists.Load(); n > 12 {
			t.Errorf("a thousand changes in a second listed the endpoints %d times", n)
		}
	})
}

func TestSettingsTakeEffectWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{targets: []policy.Target{target("a")}, interval: time.Hour}
		c, stop := run(t, l.config())
		defer stop()
		time.Sleep(time.Minute)
		l.take()
		l.with(func(l *lab) { l.interval = time.Second })
		c.Changed()
		time.Sleep(5*time.Second + relistGap)
		synctest.Wait()
		if n := strings.Count(l.take(), "a"); n < 4 {
			t.Errorf("with an interval of a second %d checks came in five", n)
		}
		l.with(func(l *lab) { l.off = true })
		c.Changed()
		time.Sleep(time.Second)
		l.take()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := l.take(); got != "" || c.known() != 0 {
			t.Errorf("while disabled: %q, %d known", got, c.known())
		}
		l.with(func(l *lab) { l.off = false })
		c.Changed()
		time.Sleep(firstWithin + relistGap)
		synctest.Wait()
		if got := l.take(); !strings.HasPrefix(got, "a healthy") {
			t.Errorf("enabled again: %q", got)
		}
	})
}

// hang is a dial that waits for the end of its context.
func hang(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestChecksAtTheSameTimeAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{interval: time.Minute}
		for i := range 20 {
			l.targets = append(l.targets, target(fmt.Sprint("e", i)))
		}
		cfg := l.config()
		cfg.Concurrency = 4
		var now, most atomic.Int64
		cfg.Dial = func(ctx context.Context, n, a string) (net.Conn, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			return hang(ctx, n, a)
		}
		_, stop := run(t, cfg)
		defer stop()
		time.Sleep(30 * time.Second) // five rounds of four, 5 s each
		synctest.Wait()
		if n := len(strings.Split(l.take(), ",")); n != 20 || most.Load() != 4 {
			t.Errorf("%d of 20 checks ended, %d were under way at once", n, most.Load())
		}
	})
}

func TestTimeLimitIsTheSettingAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{targets: []policy.Target{target("a")}, interval: time.Minute}
		cfg := l.config()
		cfg.Dial, cfg.Timeout = hang, func() time.Duration { return 2 * time.Second }
		c, stop := run(t, cfg)
		defer stop()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		st, _ := c.Status(users, "a")
		if len(st.History) != 1 {
			t.Fatalf("the results are %+v", st)
		}
		if r := st.History[0]; r.Took != 2*time.Second || r.Detail != "connect: no answer within 2s" || r.Passed {
			t.Errorf("the result is %+v", r)
		}
	})
}

func TestEndpointThatIsRemovedWhileCheckedIsNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{targets: []policy.Target{target("a")}, interval: time.Minute}
		cfg := l.config()
		cfg.Dial = hang
		c, stop := run(t, cfg)
		defer stop()
		time.Sleep(firstWithin)
		l.with(func(l *lab) { l.targets = nil })
		c.Changed()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := l.take(); got != "" || c.known() != 0 {
			t.Errorf("reported %q, %d known", got, c.known())
		}
	})
}

func TestRunEndsWithItsChecksAndCanRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{targets: []policy.Target{target("a")}, interval: time.Minute}
		cfg := l.config()
		var dialled atomic.Int64
		cfg.Dial = func(ctx context.Context, n, a string) (net.Conn, error) { dialled.Add(1); return hang(ctx, n, a) }
		c, stop := run(t, cfg)
		time.Sleep(firstWithin)
		synctest.Wait()
		stop() // a check is under way; the bubble fails on what is left running
		if got := l.take(); got != "" {
			t.Errorf("a check that was cut off was reported: %q", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := c.Run(ctx); err != nil || dialled.Load() != 2 {
			t.Errorf("the second run: %v, %d checks in all", err, dialled.Load())
		}
	})
}

func TestMeshedEndpointStaysAsItIsWithoutACertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := target("a")
		tg.Meshed = true
		l := &lab{targets: []policy.Target{tg}, interval: time.Second}
		_, stop := run(t, l.config())
		defer stop()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := l.take(); got != "" {
			t.Errorf("reported %q", got)
		}
	})
}

func TestALongListIsNotTakenAgainForEachChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{interval: 30 * time.Second}
		cfg := l.config()
		lists := 0
		cfg.Targets = func() []policy.Target {
			lists++
			time.Sleep(100 * time.Millisecond) // as it takes with very many
			return nil
		}
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		for range 1000 {
			time.Sleep(10 * time.Millisecond)
			c.Changed()
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if lists < 4 || lists > 6 { // each takes 0.1 s, which is to be a twentieth of the time
			t.Errorf("%d lists were taken in ten seconds", lists)
		}
	})
}
