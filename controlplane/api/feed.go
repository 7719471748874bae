package api

import (
	"iter"
	"sync"

	"github.com/weir-mesh/weir/policy"
)

const (
	// keptEvents is how many events a watcher may be behind, or away for, and
	// still be told each; beyond, it is told everything anew. About 1 KB each.
	keptEvents = 4096
	// maxWatchers bounds the watches at once: each is a connection, a goroutine
	// and a few KB.
	maxWatchers = 1000
)

// Touched names what a change of the state may have changed.
type Touched struct {
	Services []policy.ServiceName
	Security bool
	Settings bool
}

// list is something that can be watched.
type list struct {
	what    string             // "services", "endpoints", "traffic-rules", "security-rules", "config"
	service policy.ServiceName // of endpoints and traffic rules
}

// event tells of one element of a list.
type event struct {
	list     list
	action   policy.Action
	revision int64
	value    any // as it is listed
}

// feed keeps the newest events, so that a watcher which was away can be told what
// it missed. It is one for all watchers: what none of them costs is a queue.
type feed struct {
	mu       sync.Mutex // guards what follows
	now      Snapshot
	events   []event       // at most keptEvents: number n since the start is at n % keptEvents
	next     int           // number of the one that comes next
	complete int64         // all events after this revision are kept
	wake     chan struct{} // closed and replaced when there is news
	closed   bool
	watchers int
}

func newFeed(now Snapshot) *feed {
	return &feed{now: now, complete: now.Revision(), wake: make(chan struct{})}
}

func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.wake)
	}
}

// enter admits a watcher, who is to leave.
func (f *feed) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.watchers >= maxWatchers {
		return false
	}
	f.watchers++
	return true
}

func (f *feed) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers--
}

func (f *feed) watching() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.watchers
}

// changed takes in that the state is another.
func (f *feed) changed(now Snapshot, t Touched) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	for _, e := range differences(f.now, now, t) {
		f.keepLocked(e)
	}
	f.now = now
	close(f.wake)
	f.wake = make(chan struct{})
}

// keepLocked takes one more event in, in the place of the oldest. To copy those
// that are kept instead was a third of the cost of a change.
func (f *feed) keepLocked(e event) {
	if len(f.events) < keptEvents {
		f.events = append(f.events, e)
	} else {
		place := &f.events[f.next%keptEvents]
		f.complete, *place = place.revision, e
	}
	f.next++
}

// firstLocked is the number of the oldest event that is kept.
func (f *feed) firstLocked() int { return f.next - len(f.events) }

// fromLocked gives the kept events from a number on, in order.
func (f *feed) fromLocked(number int) iter.Seq2[int, *event] {
	return func(yield func(int, *event) bool) {
		for n := max(number, f.firstLocked()); n < f.next; n++ {
			if !yield(n, &f.events[n%keptEvents]) {
				return
			}
		}
	}
}

// cursor is how far a watcher was told.
type cursor struct {
	next     int // number of the first event that it was not told of
	revision int64
}

// news is what a watcher is to be told.
type news struct {
	events []event         // since its cursor, of its list
	whole  Snapshot        // in their place, if they are not kept any more
	at     cursor          // when it was told
	wake   <-chan struct{} // closed when there is more
	closed bool
}

// since gives what a watcher of a list that stands at a place is to be told.
func (f *feed) since(l list, from cursor) news {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := news{at: cursor{f.next, f.now.Revision()}, wake: f.wake, closed: f.closed}
	if from.next < f.firstLocked() {
		out.whole = f.now
		return out
	}
	for _, e := range f.fromLocked(from.next) {
		if e.list == l {
			out.events = append(out.events, *e)
		}
	}
	return out
}

// resume gives the cursor of one who was told everything up to a revision; not
// ok when what came after is not kept.
func (f *feed) resume(revision int64) (cursor, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if revision < f.complete || revision > f.now.Revision() {
		return cursor{}, false
	}
	for n, e := range f.fromLocked(0) {
		if e.revision > revision {
			return cursor{n, revision}, true
		}
	}
	return cursor{f.next, revision}, true
}

// start is the cursor of one who was told nothing.
var start = cursor{next: -1}

// differences lists how the lists of two states differ.
func differences(old, now Snapshot, t Touched) []event {
	var out []event
	revision := now.Revision()
	for _, name := range t.Services {
		out = append(out, compare(list{"endpoints", name}, revision, old.Endpoints(name), now.Endpoints(name),
			func(e *EndpointState) (string, int64) { return e.ID, e.Version },
			func(e *EndpointState) any { return viewEndpoint(e) })...)
		settings := now.Settings()
		traffic := settings.Value.TrafficFor(name)
		out = append(out, compare(list{"traffic-rules", name}, revision, old.TrafficRules(name), now.TrafficRules(name),
			func(r *Versioned[policy.TrafficRule]) (string, int64) { return r.Value.ID, r.Version },
			func(r *Versioned[policy.TrafficRule]) any { return viewTrafficRule(r, &traffic) })...)
		out = append(out, compareService(old, now, name)...)
	}
	if t.Security {
		settings := now.Settings()
		out = append(out, compare(list{what: "security-rules"}, revision, old.SecurityRules(), now.SecurityRules(),
			func(r *Versioned[policy.SecurityRule]) (string, int64) { return r.Value.ID, r.Version },
			func(r *Versioned[policy.SecurityRule]) any { return viewSecurityRule(r, &settings.Value) })...)
	}
	if t.Settings && old.Settings().Version != now.Settings().Version {
		out = append(out, event{list{what: "config"}, policy.Changed, revision, viewConfig(now.Settings().Value)})
	}
	return out
}

// compare tells how a list of elements with ids and versions differs from what
// it was.
func compare[T any](l list, revision int64, old, now []T, key func(*T) (id string, version int64), view func(*T) any) []event {
	var out []event
	was := make(map[string]int64, len(old))
	for i := range old {
		id, version := key(&old[i])
		was[id] = version
	}
	for i := range now {
		id, version := key(&now[i])
		switch before, ok := was[id]; {
		case !ok:
			out = append(out, event{l, policy.Added, revision, view(&now[i])})
		case before != version:
			out = append(out, event{l, policy.Changed, revision, view(&now[i])})
		}
		delete(was, id)
	}
	for i := range old {
		id, _ := key(&old[i])
		if _, gone := was[id]; gone {
			out = append(out, event{l, policy.Removed, revision, view(&old[i])})
		}
	}
	return out
}

func compareService(old, now Snapshot, name policy.ServiceName) []event {
	was, existed := old.Service(name)
	is, exists := now.Service(name)
	e := event{list{what: "services"}, policy.Changed, now.Revision(), is}
	switch {
	case existed && !exists:
		e.action, e.value = policy.Removed, was
	case !existed && exists:
		e.action = policy.Added
	case was == is:
		return nil
	}
	return []event{e}
}
