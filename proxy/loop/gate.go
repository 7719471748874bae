package loop

import "time"

// Gate lets tasks of one loop wait for what another of them brings about.
type Gate struct {
	waiting []*entrant
}

// entrant is a task before a gate.
type entrant struct {
	t      *task
	passed bool
}

// Wait waits until Open is called, at most until deadline, zero being no limit; it
// reports whether Open was.
func (g *Gate) Wait(l *Loop, deadline time.Time) bool {
	e := &entrant{t: l.current}
	g.waiting = append(g.waiting, e)
	late := false
	if !deadline.IsZero() {
		stop := l.AfterFunc(deadline.Sub(l.now), func() { late = true; l.wake(e.t) })
		defer stop()
	}
	for !e.passed && !late {
		l.pause()
	}
	if !e.passed {
		g.leave(e)
	}
	return e.passed
}

// Open lets all pass who wait; those who come later wait again.
func (g *Gate) Open() {
	for _, e := range g.waiting {
		e.passed = true
		e.t.l.wake(e.t)
	}
	g.waiting = nil
}

// Waiting is the number of tasks that wait.
func (g *Gate) Waiting() int { return len(g.waiting) }

func (g *Gate) leave(e *entrant) {
	for i, w := range g.waiting {
		if w == e {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			return
		}
	}
}
