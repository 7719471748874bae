package loop

import "time"

// timer tells its connection, or calls run, once its time has come.
type timer struct {
	due   time.Duration
	index int // in timers, plus one; 0 when it is not set
	conn  *Conn
	run   func()
}

// timers is a heap by due. A connection keeps one timer however often its
// deadline moves: it is set anew only for an earlier time, and looks at the
// deadline of now when it fires. So a busy connection touches the heap once in a
// while, not once per read.
type timers struct{ heap []*timer }

func (ts *timers) next() (due time.Duration, ok bool) {
	if len(ts.heap) == 0 {
		return 0, false
	}
	return ts.heap[0].due, true
}

// fire runs what is due at now.
func (ts *timers) fire(now time.Duration) {
	for len(ts.heap) > 0 && ts.heap[0].due <= now {
		t := ts.heap[0]
		if ts.drop(t); t.conn != nil {
			t.conn.expire()
		} else {
			t.run()
		}
	}
}

// set puts t at due, wherever it was before.
func (ts *timers) set(t *timer, due time.Duration) {
	t.due = due
	if t.index == 0 {
		ts.heap = append(ts.heap, t)
		t.index = len(ts.heap)
	}
	ts.down(ts.up(t.index - 1))
}

// drop takes t out, if it is in.
func (ts *timers) drop(t *timer) {
	if t.index == 0 {
		return
	}
	i, last := t.index-1, len(ts.heap)-1
	ts.swap(i, last)
	ts.heap[last], ts.heap = nil, ts.heap[:last]
	t.index = 0
	if i < last {
		ts.down(ts.up(i))
	}
}

func (ts *timers) swap(i, j int) {
	h := ts.heap
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}

func (ts *timers) up(i int) int {
	for i > 0 {
		parent := (i - 1) / 2
		if ts.heap[parent].due <= ts.heap[i].due {
			break
		}
		ts.swap(i, parent)
		i = parent
	}
	return i
}

func (ts *timers) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(ts.heap); child++ {
			if ts.heap[child].due < ts.heap[least].due {
				least = child
			}
		}
		if least == i {
			return
		}
		ts.swap(i, least)
		i = least
	}
}
