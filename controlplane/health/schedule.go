package health

import (
	"container/heap"
	"context"
	"time"

	"github.com/weir-mesh/weir/policy"
)

const (
	// firstWithin is how soon a new endpoint is checked first, unless it came with
	// so many that there would be more than firstRate in a second: those of a
	// control plane that restarts, which has proxies to serve then.
	firstWithin = time.Second
	firstRate   = 1000
	// sooner divides the interval for an endpoint that is unhealthy or whose last
	// result contradicts its state: an app that starts after its proxy, or
	// restarts, is not to be away for a whole one, and doubt is to be short.
	sooner = 6
)

type key struct {
	service policy.ServiceName
	id      string
}

// item is one endpoint's place in the schedule.
type item struct {
	key     key
	target  policy.Target
	round   int // of the update that named it last
	due     time.Time
	at      int                // place in the queue; -1 while it is being checked
	started time.Time          // of the last check; zero before the first
	cancel  context.CancelFunc // of the running check

	healthy bool // after the thresholds
	streak  int  // results in a row that contradict healthy
	since   time.Time
	history history
}

// schedule says which endpoint is checked when and what its results amount to.
// It has no clock and no goroutine.
type schedule struct {
	random func() float64

	interval   time.Duration
	thresholds Thresholds
	round      int // counts the updates
	items      map[key]*item
	queue      queue
}

func newSchedule(random func() float64) *schedule {
	return &schedule{random: random, items: map[key]*item{}}
}

// update takes the endpoints and the settings that hold from now on.
func (s *schedule) update(targets []policy.Target, interval time.Duration, thresholds Thresholds, now time.Time) {
	s.thresholds = thresholds
	if interval != s.interval {
		s.interval = interval
		s.respread(now)
	}
	s.round++
	var fresh []*item
	for i := range targets {
		t := &targets[i]
		k := key{t.Service(), t.ID}
		it := s.items[k]
		if it != nil && sameCheck(&it.target, t) {
			it.target, it.round = *t, s.round // its status may have changed
			continue
		}
		if it != nil {
			s.remove(it)
		}
		it = &item{key: k, target: *t, round: s.round, at: -1, healthy: t.Status != policy.Unhealthy}
		s.items[k] = it
		fresh = append(fresh, it)
	}
	s.add(fresh, now)
	for _, it := range s.items {
		if it.round != s.round {
			s.remove(it)
		}
	}
}

// sameCheck tells whether an endpoint is still reached in the same way.
func sameCheck(a, b *policy.Target) bool {
	return a.IP == b.IP && a.Port == b.Port && a.Protocol == b.Protocol &&
		a.HealthCheckPath == b.HealthCheckPath && a.Meshed == b.Meshed
}

// add gives new items their first turn.
func (s *schedule) add(fresh []*item, now time.Time) {
	within := min(max(firstWithin, time.Duration(len(fresh))*time.Second/firstRate), s.interval)
	for _, it := range fresh {
		it.due = now.Add(s.upTo(within))
		heap.Push(&s.queue, it)
	}
}

// remove forgets an item; a check of it that is running is cut off.
func (s *schedule) remove(it *item) {
	delete(s.items, it.key)
	if it.at >= 0 {
		heap.Remove(&s.queue, it.at)
	} else if it.cancel != nil {
		it.cancel()
	}
}

// respread gives what waits its place under a new interval.
func (s *schedule) respread(now time.Time) {
	for _, it := range s.queue {
		if it.started.IsZero() {
			continue
		}
		if it.due = it.started.Add(s.pause(it)); it.due.Before(now) {
			it.due = now.Add(s.upTo(min(firstWithin, s.interval)))
		}
	}
	heap.Init(&s.queue)
}

// next takes out the item whose check is due, or says how long none is. ok is
// false when nothing waits at all.
func (s *schedule) next(now time.Time) (it *item, wait time.Duration, ok bool) {
	if len(s.queue) == 0 {
		return nil, 0, false
	}
	if wait = s.queue[0].due.Sub(now); wait > 0 {
		return nil, wait, true
	}
	it = heap.Pop(&s.queue).(*item)
	it.started = now
	return it, 0, true
}

// judge takes a result in and completes it; false when the item is gone.
func (s *schedule) judge(it *item, r Result) (Result, bool) {
	if s.items[it.key] != it {
		return r, false
	}
	switch {
	case r.Unclear: // it stays as it is
	case r.Passed == it.healthy:
		it.streak = 0
	default:
		if it.streak++; it.streak >= s.threshold(r.Passed) {
			it.healthy, it.streak, it.since = r.Passed, 0, r.At
		}
	}
	r.Healthy = it.healthy
	r.Changed = it.healthy != (it.target.Status != policy.Unhealthy)
	it.history.add(&r)
	return r, true
}

func (s *schedule) threshold(passed bool) int {
	if passed {
		return max(s.thresholds.Healthy, 1)
	}
	return max(s.thresholds.Unhealthy, 1)
}

// requeue puts an item back after its check.
func (s *schedule) requeue(it *item, now time.Time) {
	if s.items[it.key] != it {
		return
	}
	if it.due = it.started.Add(s.pause(it)); it.due.Before(now) {
		it.due = now
	}
	heap.Push(&s.queue, it)
}

// status tells what is known of one endpoint.
func (s *schedule) status(service policy.ServiceName, id string) (Status, bool) {
	it := s.items[key{service, id}]
	if it == nil {
		return Status{}, false
	}
	return Status{Healthy: it.healthy, Since: it.since, Next: it.due, History: it.history.results()}, true
}

// pause is the time from the start of one check to that of the next: the
// interval, or a part of it while the endpoint is unhealthy or in doubt, ±10 %,
// so that checks which fell together drift apart.
func (s *schedule) pause(it *item) time.Duration {
	d := float64(s.interval)
	if !it.healthy || it.streak > 0 {
		d /= sooner
	}
	return time.Duration(d * (0.9 + 0.2*s.random()))
}

func (s *schedule) upTo(d time.Duration) time.Duration {
	return time.Duration(float64(d) * s.random())
}

// queue is a heap by due.
type queue []*item

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

func (q *queue) Push(x any) {
	it := x.(*item)
	it.at = len(*q)
	*q = append(*q, it)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	it := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	it.at = -1
	return it
}
