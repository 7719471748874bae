// Package flows remembers the flows that proxies counted, by minute, for a day.
// It keeps them in memory and does not judge them.
package flows

import (
	"sync"
	"time"
	"unique"

	"github.com/weir-mesh/weir/policy"
)

const (
	// Kept is how long a flow is remembered.
	Kept = 24 * time.Hour
	// maxEntries bounds the flows of all minutes together. Where it is reached the
	// oldest minutes go first. What a flow is made of is kept once for all minutes.
	maxEntries = 200_000
)

// Recorded is a flow with what was counted of it.
type Recorded struct {
	policy.FlowCount
	First, Last time.Time // the minutes in which it was seen
}

// Log is the memory. It is safe for concurrent use.
type Log struct {
	most int // entries; set by New, never changed

	mu      sync.Mutex // guards what follows
	began   time.Time  // before it nothing is known
	minutes []minute   // in order of time
	entries int
	leftOut uint64
}

type minute struct {
	at     time.Time
	counts map[unique.Handle[policy.Flow]]tally
}

type tally struct{ calls, errors uint64 }

// New gives an empty log that begins now.
func New(now time.Time) *Log { return &Log{most: maxEntries, began: now.Truncate(time.Minute)} }

// Add notes what a proxy told now, and how many calls it had no room to count.
func (l *Log) Add(now time.Time, counts []policy.FlowCount, leftOut uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leftOut += leftOut
	if len(counts) == 0 {
		return
	}
	m := l.minuteLocked(now.Truncate(time.Minute))
	for _, c := range counts {
		key := unique.Make(c.Flow)
		have, known := m.counts[key]
		if !known {
			l.entries++
		}
		m.counts[key] = tally{have.calls + c.Calls, have.errors + c.Errors}
	}
	l.forgetLocked(now)
}

func (l *Log) minuteLocked(at time.Time) *minute {
	// A clock that is set back adds to the newest minute.
	if n := len(l.minutes); n == 0 || at.After(l.minutes[n-1].at) {
		l.minutes = append(l.minutes, minute{at: at, counts: map[unique.Handle[policy.Flow]]tally{}})
	}
	return &l.minutes[len(l.minutes)-1]
}

// forgetLocked drops what is too old or too much; the newest minute stays.
func (l *Log) forgetLocked(now time.Time) {
	for len(l.minutes) > 1 && (l.entries > l.most || now.Sub(l.minutes[0].at) > Kept) {
		l.entries -= len(l.minutes[0].counts)
		l.minutes[0] = minute{}
		l.minutes = l.minutes[1:]
		l.began = l.minutes[0].at
	}
}

// Since gives the flows from a time on, in whole minutes, that are wanted (nil
// is all), in no order; and from when on they are known, and how many calls
// proxies had no room to count since this log began.
func (l *Log) Since(from time.Time, wanted func(*policy.Flow) bool) (out []Recorded, known time.Time, leftOut uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from = from.Truncate(time.Minute)
	at := map[unique.Handle[policy.Flow]]int{}
	for _, m := range l.minutes {
		if m.at.Before(from) {
			continue
		}
		for key, t := range m.counts {
			i, seen := at[key]
			if !seen {
				f := key.Value()
				if wanted != nil && !wanted(&f) {
					continue
				}
				i = len(out)
				at[key] = i
				out = append(out, Recorded{FlowCount: policy.FlowCount{Flow: f}, First: m.at})
			}
			r := &out[i]
			r.Calls, r.Errors, r.Last = r.Calls+t.calls, r.Errors+t.errors, m.at
		}
	}
	if l.began.After(from) {
		from = l.began
	}
	return out, from, l.leftOut
}
