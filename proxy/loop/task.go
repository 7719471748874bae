package loop

import (
	"fmt"
	"iter"
	"runtime/debug"
	"time"
)

// task is a coroutine: of one function after another.
type task struct {
	l     *Loop
	f     Task
	next  func() (struct{}, bool)
	yield func(struct{}) bool
	stop  func()
	queue bool  // is in ready
	conn  *Conn // to be reset when f panics
}

// Go begins a task. It runs when the caller, if that is a task, waits or ends.
func (l *Loop) Go(f func()) { l.begin(Func(f)) }

func (l *Loop) begin(f Task) *task {
	t := l.take()
	t.f = f
	l.live++
	l.wake(t)
	return t
}

func (l *Loop) take() *task {
	if n := len(l.free); n > 0 {
		t := l.free[n-1]
		l.free[n-1], l.free = nil, l.free[:n-1]
		l.leastFree = min(l.leastFree, n-1)
		return t
	}
	t := &task{l: l}
	t.next, t.stop = iter.Pull(t.body)
	return t
}

// keepTask keeps a coroutine whose task has ended for the next.
func (l *Loop) keepTask(t *task) bool {
	if len(l.free) >= maxFree {
		return false
	}
	l.free = append(l.free, t)
	if len(l.free) > fewFree && !l.thinning && !l.closing {
		l.thinning, l.leastFree = true, len(l.free)
		l.AfterFunc(thinEvery, l.thin)
	}
	return true
}

// thin lets go of coroutines that were not needed since it was called last.
func (l *Loop) thin() {
	for n := min(l.leastFree, len(l.free)-fewFree); n > 0; n-- {
		last := len(l.free) - 1
		t := l.free[last]
		l.free[last], l.free = nil, l.free[:last]
		t.stop()
	}
	l.leastFree = len(l.free)
	if l.thinning = len(l.free) > fewFree && !l.closing; l.thinning {
		l.AfterFunc(thinEvery, l.thin)
	}
}

func (t *task) body(yield func(struct{}) bool) {
	t.yield = yield
	for {
		t.run()
		t.f, t.conn = nil, nil
		t.l.live--
		if !t.l.keepTask(t) {
			return
		}
		if !yield(struct{}{}) {
			return
		}
	}
}

func (t *task) run() {
	if t.l.cfg.Panicked != nil {
		defer func() {
			if v := recover(); v != nil {
				t.l.cfg.Panicked(v, debug.Stack())
				if t.conn != nil {
					_ = t.conn.Reset()
				}
			}
		}()
	}
	t.f.Run()
}

func (l *Loop) resume(t *task) {
	t.queue = false
	l.current = t
	t.next()
	l.current = nil
}

// wake makes a waiting task ready, once.
func (l *Loop) wake(t *task) {
	if !t.queue {
		t.queue = true
		l.ready = append(l.ready, t)
	}
}

// pause gives the loop to others until somebody wakes the task that runs.
func (l *Loop) pause() {
	t := l.current
	if t == nil {
		panic("loop: a wait outside any task")
	}
	t.yield(struct{}{})
}

// Yield lets everything else that is ready go first.
func (l *Loop) Yield() {
	l.wake(l.current)
	l.pause()
}

// Block runs f in a goroutine of its own and waits for it: for what would hold
// up the whole loop. It costs some microseconds. A panic of f is the task's.
func (l *Loop) Block(f func()) {
	t := l.current
	var panicked any
	finished := false
	go func() {
		defer func() {
			if panicked = recover(); panicked != nil {
				panicked = fmt.Sprintf("%v\n%s", panicked, debug.Stack())
			}
			l.Post(func() { finished = true; l.wake(t) })
		}()
		f()
	}()
	for !finished {
		l.pause()
	}
	if panicked != nil {
		panic(panicked)
	}
}

// Join is a task's end, for others of the same loop to wait for.
type Join struct {
	l       *Loop
	ended   bool
	waiting *task
}

// Spawn begins a task like Go; its end can be waited for by one other task.
func (l *Loop) Spawn(f func()) *Join {
	j := &Join{l: l}
	l.Go(func() {
		defer func() {
			if j.ended = true; j.waiting != nil {
				l.wake(j.waiting)
			}
		}()
		f()
	})
	return j
}

// Ended reports whether the task has ended.
func (j *Join) Ended() bool { return j.ended }

// Wait waits for the task's end.
func (j *Join) Wait() {
	for !j.ended {
		j.waiting = j.l.current
		j.l.pause()
	}
}

// Sleep waits for a time.
func (l *Loop) Sleep(d time.Duration) {
	t, slept := l.current, false
	l.timers.set(&timer{run: func() { slept = true; l.wake(t) }}, l.since(l.now.Add(d)))
	for !slept {
		l.pause()
	}
}

// AfterFunc has f run on the loop once d has passed, outside any task; stop
// prevents that.
func (l *Loop) AfterFunc(d time.Duration, f func()) (stop func()) {
	tm := &timer{run: f}
	l.timers.set(tm, l.since(time.Now().Add(d)))
	return func() { l.timers.drop(tm) }
}
