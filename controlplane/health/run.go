package health

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

const (
	defaultInterval    = 30 * time.Second
	defaultTimeout     = 5 * time.Second
	defaultConcurrency = 64
	// The endpoints are listed again this often even if nobody calls Changed, and
	// not more often however much it is called.
	relistEvery = 5 * time.Second
	relistGap   = 250 * time.Millisecond
	// One in relistShare is the most of the time that listing takes: with a
	// hundred thousand endpoints that change all the time, a new one waits some
	// seconds longer for its first check.
	relistShare = 20
)

// Checker checks endpoints while Run runs.
type Checker struct {
	cfg     Config // set by New, never changed
	changed chan struct{}
	freed   chan struct{} // a check ended

	mu       sync.Mutex // guards what follows
	schedule *schedule
	running  int
}

// New makes a checker; it starts nothing. The error names the missing field.
func New(cfg Config) (*Checker, error) {
	switch {
	case cfg.Targets == nil:
		return nil, errors.New("health: Config.Targets is missing")
	case cfg.Report == nil:
		return nil, errors.New("health: Config.Report is missing")
	case cfg.Concurrency < 0:
		return nil, errors.New("health: Config.Concurrency is negative")
	}
	if cfg.Enabled == nil {
		cfg.Enabled = func() bool { return true }
	}
	cfg.Interval = orDefault(cfg.Interval, defaultInterval)
	cfg.Timeout = orDefault(cfg.Timeout, defaultTimeout)
	if cfg.Thresholds == nil {
		cfg.Thresholds = func() Thresholds { return Thresholds{} }
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = defaultConcurrency
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Float64
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Checker{
		cfg: cfg, changed: make(chan struct{}, 1), freed: make(chan struct{}, 1),
		schedule: newSchedule(cfg.Rand),
	}, nil
}

func orDefault(f func() time.Duration, d time.Duration) func() time.Duration {
	return func() time.Duration {
		if f != nil {
			if v := f(); v > 0 {
				return v
			}
		}
		return d
	}
}

// Changed tells that the endpoints or the settings have changed. It never
// blocks.
func (c *Checker) Changed() { signal(c.changed) }

// Status tells what is known of one endpoint; false when it is not checked
// here: while nothing runs, while checking is disabled, or before it was listed.
func (c *Checker) Status(service policy.ServiceName, id string) (Status, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.schedule.status(service, id)
}

// Run checks until the context ends, and returns when all checks have ended.
// It runs once at a time; what it knew is forgotten in the end.
func (c *Checker) Run(ctx context.Context) error {
	var checks sync.WaitGroup
	defer c.forget()
	defer checks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var relist, earliest time.Time
	for {
		now := c.cfg.Now()
		if !now.Before(relist) {
			c.list(now)
			earliest = now.Add(max(relistGap, relistShare*c.cfg.Now().Sub(now)))
			relist = later(now.Add(relistEvery), earliest)
		}
		timer.Reset(min(c.startDue(ctx, now, &checks), relist.Sub(now)))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-c.freed:
		case <-c.changed:
			relist = earlier(relist, earliest)
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// list takes the endpoints and settings as they are now.
func (c *Checker) list(now time.Time) {
	if !c.cfg.Enabled() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.schedule.update(nil, c.cfg.Interval(), c.cfg.Thresholds(), now)
		return
	}
	targets := c.cfg.Targets()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.schedule.update(targets, c.cfg.Interval(), c.cfg.Thresholds(), now)
}

func (c *Checker) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.schedule.update(nil, c.schedule.interval, c.schedule.thresholds, time.Time{})
}

// startDue starts the checks that are due, as many as may run at once, and says
// when to look again.
func (c *Checker) startDue(ctx context.Context, now time.Time, checks *sync.WaitGroup) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.running < c.cfg.Concurrency {
		it, wait, ok := c.schedule.next(now)
		if it == nil {
			if !ok {
				return relistEvery
			}
			return wait
		}
		c.running++
		ctx, cancel := context.WithCancel(ctx)
		it.cancel = cancel
		target := it.target
		checks.Go(func() {
			defer cancel()
			c.check(ctx, it, target, now)
		})
	}
	return relistEvery // a check that ends wakes the loop
}

// check runs one check and reports it. The item waits for its next turn only
// when the report is done, so that results of one endpoint keep their order.
func (c *Checker) check(ctx context.Context, it *item, target policy.Target, at time.Time) {
	if found, ok := c.probe(ctx, &target); ok && ctx.Err() == nil {
		r := Result{At: at, Took: c.cfg.Now().Sub(at), Check: found.check, Passed: found.passed, Unclear: found.unclear, Detail: found.detail}
		c.mu.Lock()
		r, ok = c.schedule.judge(it, r)
		target = it.target
		c.mu.Unlock()
		if ok {
			c.note(target.Service().String(), target.ID, r)
			c.cfg.Report(ctx, target, r)
		}
	}
	c.mu.Lock()
	c.running--
	c.schedule.requeue(it, c.cfg.Now())
	c.mu.Unlock()
	signal(c.freed)
}

func (c *Checker) note(service, id string, r Result) {
	if r.Changed {
		c.cfg.Log.Info("endpoint turned", zap.String("service", service), zap.String("endpoint", id),
			zap.Bool("healthy", r.Healthy), zap.String("check", r.Check), zap.String("detail", r.Detail))
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
