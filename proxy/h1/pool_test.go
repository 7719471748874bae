package h1

import (
	"bufio"
	"io"
	"net"
	"testing"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// pair is an upstream on a loop that has nothing else to do, and its other end.
func pair(t *testing.T, l *loop.Loop) (*Upstream, net.Conn) {
	t.Helper()
	ln := listen(t)
	defer ln.Close()
	var up *Upstream
	on(l, func() {
		c, err := l.Dial(loop.Dialer{}, ln.Addr().(*net.TCPAddr).AddrPort(), time.Time{})
		if err != nil {
			t.Error(err)
			return
		}
		up = NewUpstream(c)
	})
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	return up, peer
}

func TestThePoolGivesTheLastUsedFirst(t *testing.T) {
	l := turn(t)
	a, _ := pair(t, l)
	b, _ := pair(t, l)
	c, _ := pair(t, l)
	on(l, func() {
		p := NewPool(PoolConfig{MaxIdle: 2, MaxAge: 10 * time.Second})
		t0 := time.Unix(1000, 0)
		if p.Get(t0) != nil {
			t.Error("something in an empty pool")
		}
		p.Put(t0, a)
		p.Put(t0.Add(time.Second), b)
		p.Put(t0.Add(2*time.Second), c) // beyond the bound
		if c.Reusable() || p.Len() != 2 {
			t.Error("the bound does not hold")
		}
		if p.Get(t0.Add(3*time.Second)) != b || p.Get(t0.Add(3*time.Second)) != a {
			t.Error("not last in first out")
		}
	})
}

func TestThePoolForgetsTheOldAndTheDead(t *testing.T) {
	l := turn(t)
	old, _ := pair(t, l)
	dead, peer := pair(t, l)
	loud, talker := pair(t, l)
	fine, _ := pair(t, l)
	on(l, func() {
		p := NewPool(PoolConfig{MaxAge: 10 * time.Second})
		t0 := time.Unix(1000, 0)
		p.Put(t0, old)
		for _, up := range []*Upstream{dead, loud, fine} {
			p.Put(t0.Add(5*time.Second), up)
		}
		peer.Close()
		_, _ = talker.Write([]byte("?"))
		for dead.IdleAlive() || loud.IdleAlive() { // until loopback has delivered
			l.Sleep(time.Millisecond)
		}
		if n := p.CloseIdle(t0.Add(12 * time.Second)); n != 1 {
			t.Errorf("%d left", n)
		}
		if p.Get(t0.Add(16*time.Second)) != nil {
			t.Error("gave one that is too old")
		}
		if up := p.Get(t0.Add(14 * time.Second)); up != fine {
			t.Error("the good one is gone")
		}
		p.Close()
		p.Put(t0, fine)
		if fine.Reusable() || p.Len() != 0 {
			t.Error("a closed pool keeps connections")
		}
	})
}

func TestABadConnectionIsNotKept(t *testing.T) {
	l := turn(t)
	up, _ := pair(t, l)
	on(l, func() {
		p := NewPool(PoolConfig{})
		up.unfit()
		p.Put(time.Unix(0, 0), up)
		if p.Len() != 0 {
			t.Error("kept")
		}
		if up.IdleAlive() {
			t.Error("alive")
		}
	})
}

// A server that says how long it keeps an idle connection is believed: what is in its
// last second is not used.
func TestThePoolBelievesKeepAlive(t *testing.T) {
	for _, c := range []struct {
		says   string
		usable time.Duration // 0: as long as others
	}{
		{"timeout=5", 4 * time.Second}, {"timeout=5, max=100", 4 * time.Second}, {"max=100, Timeout=5", 4 * time.Second},
		{`timeout="2"`, time.Second}, {"timeout=1", 500 * time.Millisecond}, {"timeout=0", 1},
		{"timeout=999999999999", 0}, {"timeout=", 0}, {"timeout=-1", 0}, {"timeout=99999999999999999999", 0}, {"max=3", 0}, {"", 0},
	} {
		addr := rawUpstream(t, func(conn net.Conn, r *bufio.Reader) {
			for {
				if _, err := readHeadText(r); err != nil {
					return
				}
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: "+c.says+"\r\n\r\n")
			}
		})
		p := startProxy(t, addr, nil)
		client := dialRaw(t, p.addr())
		client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := client.answer("GET"); resp.Header.Get("Keep-Alive") != "" {
			t.Error("Keep-Alive, which is about one connection, was passed on")
		}
		on(p.l, func() {
			t0, most := p.pool.idle[0].idleSince, 30*time.Second
			if c.usable > 0 {
				most = c.usable
			}
			if up := p.pool.Get(t0.Add(most - 1)); up == nil {
				t.Errorf("%q: not given after %v", c.says, most-1)
			} else {
				p.pool.Put(t0, up)
			}
			if up := p.pool.Get(t0.Add(most)); up != nil {
				t.Errorf("%q: given after %v", c.says, most)
				_ = up.Close()
			}
		})
	}
}
