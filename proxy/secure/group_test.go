package secure

import "testing"

func TestAGroupHoldsWhoHasJoinedAndNotLeft(t *testing.T) {
	var g Group
	all := []*Conn{{}, {}, {}, {}}
	for _, c := range all {
		c.Join(&g)
	}
	left := func() (n int) {
		g.Each(func(*Conn) { n++ })
		return n
	}
	if left() != 4 {
		t.Fatalf("%d have joined", left())
	}
	all[1].leave() // in the middle, at both ends, twice
	all[1].leave()
	all[3].leave()
	all[0].leave()
	if left() != 1 || g.first != all[2] {
		t.Errorf("%d are left", left())
	}
	all[0].Join(&g)
	g.Each(func(c *Conn) { c.leave() })
	if left() != 0 {
		t.Errorf("%d are left of those that left while they were gone through", left())
	}
}
