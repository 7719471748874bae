// Package gate bounds how much is under way at once: what is too much waits in a queue, or is turned away.
// It does not know what is under way, nor what to tell those that are turned away.
package gate

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Gate is one bound, shared by all loops of a process and exact over them: at no moment are more inside. The zero value has no
// bound. What does not wait costs two atomic operations.
type Gate struct {
	most, queue atomic.Int64 // the bounds: inside, 0 for none, and waiting

	inside  atomic.Int64
	waiting atomic.Int64 // len(line)

	mu   sync.Mutex // guards line, and is held for moments
	line []*waiter  // who came first is first
}

// waiter is a task that waits for room, which may be made on another loop.
type waiter struct {
	l       *loop.Loop
	wait    loop.Waiter // the loop's alone
	entered bool        // guarded by Gate.mu
}

// Set sets how many may be inside, 0 for any number, and how many may wait.
// More than most may be inside after it, until they leave.
func (g *Gate) Set(most, queue int) {
	g.most.Store(int64(most))
	g.queue.Store(int64(queue))
	g.admit()
}

// Bounded says whether there is a bound.
func (g *Gate) Bounded() bool { return g.most.Load() > 0 }

// Inside is how many have entered and not left.
func (g *Gate) Inside() int { return int(g.inside.Load()) }

// Waiting is how many are in the queue.
func (g *Gate) Waiting() int { return int(g.waiting.Load()) }

// TryEnter enters if there is room and nobody waits for it. Who enters leaves.
func (g *Gate) TryEnter() bool { return g.waiting.Load() == 0 && g.take() }

// Leave makes room for another.
func (g *Gate) Leave() {
	g.inside.Add(-1)
	// Whoever waits has looked for room after it stood in line: either it saw this room, or we see it.
	if g.waiting.Load() > 0 {
		g.admit()
	}
}

// Outcome is what became of Enter.
type Outcome uint8

// The outcomes.
const (
	Entered Outcome = iota
	Full            // the queue is, or there is none
	Late            // the time has come, or the loop is closing
)

// watchClosing is how often who waits looks whether the loop is closing.
const watchClosing = time.Second

// Enter enters, and where there is no room waits for it until a time, as a task of the loop.
func (g *Gate) Enter(l *loop.Loop, until time.Time) Outcome {
	if g.TryEnter() {
		return Entered
	}
	w := &waiter{l: l}
	w.wait.Init(l)
	if !g.stand(w) {
		return Full
	}
	g.admit()
	for now := l.Now(); now.Before(until) && !l.Closing(); now = l.Now() {
		next := now.Add(watchClosing)
		if next.After(until) {
			next = until
		}
		if w.wait.Wait(next) == nil {
			return Entered
		}
	}
	if g.leaveLine(w) {
		return Late
	}
	return Entered // at the last moment
}

// take takes a place, if there is one.
func (g *Gate) take() bool {
	for {
		n, most := g.inside.Load(), g.most.Load()
		if most > 0 && n >= most {
			return false
		}
		if g.inside.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (g *Gate) stand(w *waiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if int64(len(g.line)) >= g.queue.Load() {
		return false
	}
	g.line = append(g.line, w)
	g.waiting.Store(int64(len(g.line)))
	return true
}

// leaveLine says whether w was still in it.
func (g *Gate) leaveLine(w *waiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.entered {
		return false
	}
	i := slices.Index(g.line, w)
	g.line = slices.Delete(g.line, i, i+1)
	g.waiting.Store(int64(len(g.line)))
	return true
}

// admit lets in who waits, as far as there is room.
func (g *Gate) admit() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.line) > 0 && g.take() {
		w := g.line[0]
		g.line = slices.Delete(g.line, 0, 1)
		g.waiting.Store(int64(len(g.line)))
		w.entered = true
		w.l.Post(w.wait.Wake)
	}
}
