package h2

import "slices"

// list is of streams that wait for something of a connection.
type list struct{ first, last *stream }

func (l *list) add(s *stream) {
	if s.waits != nil {
		return
	}
	s.waits, s.prev, s.more = l, l.last, nil
	if l.last == nil {
		l.first = s
	} else {
		l.last.more = s
	}
	l.last = s
}

func (l *list) remove(s *stream) {
	if s.waits != l {
		return
	}
	if s.prev == nil {
		l.first = s.more
	} else {
		s.prev.more = s.more
	}
	if s.more == nil {
		l.last = s.prev
	} else {
		s.more.prev = s.prev
	}
	s.waits, s.prev, s.more = nil, nil, nil
}

// heads are exchanges in the order in which they came.
type heads []*Exchange

func (h *heads) add(x *Exchange) {
	if !slices.Contains(*h, x) {
		*h = append(*h, x)
	}
}

func (h *heads) remove(x *Exchange) {
	if i := slices.Index(*h, x); i >= 0 {
		*h = slices.Delete(*h, i, i+1)
	}
}

// table finds streams by their number.
type table struct {
	slots []*stream // as many as a power of two
	count int
	gone  [32]uint32 // those we reset last: the peer may not have heard yet
	at    int
}

func (t *table) slot(id uint32) **stream { return &t.slots[int(id>>1)&(len(t.slots)-1)] }

func (t *table) find(id uint32) *stream {
	if len(t.slots) == 0 {
		return nil
	}
	s := *t.slot(id)
	for s != nil && s.id != id {
		s = s.next
	}
	return s
}

func (t *table) add(s *stream) {
	if t.count >= len(t.slots) {
		t.grow()
	}
	at := t.slot(s.id)
	s.next, s.listed = *at, true
	*at = s
	t.count++
}

func (t *table) grow() {
	old := t.slots
	t.slots = make([]*stream, max(8, 2*len(old)))
	for _, s := range old {
		for s != nil {
			next, at := s.next, t.slot(s.id)
			s.next, *at = *at, s
			s = next
		}
	}
}

func (t *table) remove(s *stream) {
	if !s.listed {
		return
	}
	at := t.slot(s.id)
	for *at != s {
		at = &(*at).next
	}
	*at, s.next, s.listed = s.next, nil, false
	t.count--
}

func (t *table) each(f func(*stream)) {
	for _, s := range t.slots {
		for s != nil {
			next := s.next
			f(s)
			s = next
		}
	}
}

// takeAll empties the table.
func (t *table) takeAll() (all []*stream) {
	t.each(func(s *stream) { all = append(all, s) })
	for _, s := range all {
		t.remove(s)
	}
	return all
}

func (t *table) remember(id uint32) {
	t.gone[t.at%len(t.gone)] = id
	t.at++
}

func (t *table) wasReset(id uint32) bool {
	for _, g := range t.gone {
		if g == id {
			return true
		}
	}
	return false
}
