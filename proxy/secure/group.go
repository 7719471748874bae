package secure

// Group is the connections of one loop that joined it and are not closed. It is for
// the tasks of that loop only. The zero value is empty.
type Group struct{ first *Conn }

// place is a connection's in its group. The list runs through the connections, as
// there are many and each costs three words so.
type place struct {
	group      *Group
	prev, next *Conn
}

// Join puts a connection into a group until it is closed. It is to be called once.
func (c *Conn) Join(g *Group) {
	c.place = place{group: g, next: g.first}
	if g.first != nil {
		g.first.place.prev = c
	}
	g.first = c
}

func (c *Conn) leave() {
	p := c.place
	if p.group == nil {
		return
	}
	if p.prev != nil {
		p.prev.place.next = p.next
	} else {
		p.group.first = p.next
	}
	if p.next != nil {
		p.next.place.prev = p.prev
	}
	c.place = place{}
}

// Each calls f for each connection, which f may close.
func (g *Group) Each(f func(*Conn)) {
	for c := g.first; c != nil; {
		next := c.place.next
		f(c)
		c = next
	}
}
