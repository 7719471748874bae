package loop

import "time"

// timer calls run once its time has come.
type timer struct {
	place int32 // in the heap, plus one; 0 when it is not set
	run   func()
}

func (t *timer) placed() *int32 { return &t.place }
func (c *Conn) placed() *int32  { return &c.timer }

// entry is what a heap holds of one that waits for a time.
type entry[T any] struct {
	at  time.Duration
	who T
}

// heap gives those first that are due first. Each knows its place in it.
type heap[T interface{ placed() *int32 }] struct{ all []entry[T] }

func (h *heap[T]) next() time.Duration {
	if len(h.all) == 0 {
		return noDeadline
	}
	return h.all[0].at
}

// take takes the first out that is due at now.
func (h *heap[T]) take(now time.Duration) (who T, ok bool) {
	if len(h.all) == 0 || h.all[0].at > now {
		return who, false
	}
	who = h.all[0].who
	h.drop(who)
	return who, true
}

// due is the time at which who is in the heap; it must be there.
func (h *heap[T]) due(who T) time.Duration { return h.all[*who.placed()-1].at }

// set puts who at a time, wherever it was before.
func (h *heap[T]) set(who T, at time.Duration) {
	place := who.placed()
	if *place == 0 {
		h.all = append(h.all, entry[T]{who: who})
		*place = int32(len(h.all))
	}
	i := int(*place) - 1
	h.all[i].at = at
	h.down(h.up(i))
}

// drop takes who out, if it is in.
func (h *heap[T]) drop(who T) {
	place := who.placed()
	if *place == 0 {
		return
	}
	i, last := int(*place)-1, len(h.all)-1
	h.swap(i, last)
	h.all[last] = entry[T]{}
	h.all = h.all[:last]
	*place = 0
	if i < last {
		h.down(h.up(i))
	}
}

func (h *heap[T]) swap(i, j int) {
	h.all[i], h.all[j] = h.all[j], h.all[i]
	*h.all[i].who.placed(), *h.all[j].who.placed() = int32(i+1), int32(j+1)
}

func (h *heap[T]) up(i int) int {
	for i > 0 {
		parent := (i - 1) / 2
		if h.all[parent].at <= h.all[i].at {
			break
		}
		h.swap(i, parent)
		i = parent
	}
	return i
}

func (h *heap[T]) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(h.all); child++ {
			if h.all[child].at < h.all[least].at {
				least = child
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}
