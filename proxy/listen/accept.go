package listen

import (
	"net/netip"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// After a failed accept a loop waits, longer each time. Nobody is lost by it:
// the connection stays in the backlog, and is served once a descriptor is free.
// (Accepting it on a descriptor kept in reserve, only to close it, would turn a
// wait into a refusal.)
const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

// lead is how many more connections than another loop one may have before it
// hands a newcomer over.
const lead = 8

// start begins to accept.
func (s *shard) start() error {
	for i := range s.l.sockets {
		fd, err := s.l.sockets[i].dup()
		if err != nil {
			return err
		}
		a, err := s.loop.Accept(fd, func(fd int, peer netip.AddrPort) { s.accepted(s.l.sockets[i].inherits, fd, peer) },
			func(err error) time.Duration { return s.failed(s.l.sockets[i].addr, err) })
		if err != nil {
			_ = unix.Close(fd)
			return err
		}
		s.acceptors = append(s.acceptors, a)
	}
	return nil
}

// stop ends accepting.
func (s *shard) stop() {
	for _, a := range s.acceptors {
		a.Close()
	}
	s.acceptors = nil
}

// failed says how long to wait after a failed accept.
func (s *shard) failed(addr netip.AddrPort, err error) time.Duration {
	s.l.acceptErrors.Add(1)
	if s.pause == 0 { // once for each spell
		s.l.log.Warn("cannot accept for now", zap.Stringer("address", addr), zap.Error(err))
	}
	s.pause = min(max(2*s.pause, firstPause), lastPause)
	return s.pause
}

// accepted takes a newcomer, or hands it to the loop that has least: whichever
// loop happened to be awake accepted it, and would soon have most.
func (s *shard) accepted(inherits bool, fd int, peer netip.AddrPort) {
	l := s.l
	if s.pause > 0 {
		s.pause = 0
		l.log.Info("accepting again")
	}
	l.accepted.Add(1)
	l.active.Add(1)
	to := s
	for _, other := range l.shards {
		if other.open.Load() < to.open.Load()-lead || to != s && other.open.Load() < to.open.Load() {
			to = other
		}
	}
	to.open.Add(1)
	if to == s {
		s.adopt(inherits, fd, peer)
	} else if !to.loop.Post(func() { to.adopt(inherits, fd, peer) }) {
		_ = unix.Close(fd)
		to.closedOne()
	}
	if l.cfg.MaxConns > 0 && l.active.Load() >= int64(l.cfg.MaxConns) {
		s.atTheBound()
	}
}

func (s *shard) adopt(inherits bool, fd int, peer netip.AddrPort) {
	c := &Conn{shard: s, peer: placeOf(peer)}
	s.loop.AdoptInto(&c.Conn, fd)
	c.SetOwner(s)
	if !inherits {
		// An error means that the connection is gone, as its handler will see.
		_ = setKeepAlive(fd, s.l.cfg.keepAlive())
		_ = setOptions(fd)
	}
	if s.l.late.Load() {
		s.l.cut.Add(1)
		_ = c.Reset()
		return
	}
	c.Begin((*newcomer)(c))
}

// newcomer is a connection as the task that serves it.
type newcomer Conn

// Run runs the handler for one connection.
func (n *newcomer) Run() {
	c := (*Conn)(n)
	s := c.shard
	defer func() {
		if v := recover(); v != nil {
			s.l.panicked(c, v, debug.Stack())
			_ = c.Reset() // not an end: what it was sending may be half sent
		}
	}()
	c.describe(s.l.cfg.OriginalDst)
	s.handle(c)
}

// panicked counts and logs what a handler died of. What it began tasks for is
// its loop's to tell (loop.Config).
func (l *Listener) panicked(c *Conn, value any, stack []byte) {
	l.panics.Add(1)
	l.log.Error("a handler panicked; its connection is closed", zap.Stringer("peer", c.Peer()),
		zap.Stringer("original destination", c.OriginalDst()), zap.Any("panic", value), zap.ByteString("stack", stack))
}

// Closed implements loop.Owner: a connection of the shard was closed.
func (s *shard) Closed(*loop.Conn) { s.closedOne() }

func (s *shard) closedOne() {
	l := s.l
	s.open.Add(-1)
	left := l.active.Add(-1)
	if left == 0 && l.draining.Load() {
		select {
		case l.none <- struct{}{}:
		default:
		}
	}
	if l.cfg.MaxConns > 0 && left < int64(l.cfg.MaxConns) && l.full.Load() && l.full.CompareAndSwap(true, false) {
		for _, other := range l.shards {
			other.loop.Post(other.belowTheBound)
		}
	}
}

// atTheBound leaves newcomers in the backlog.
func (s *shard) atTheBound() {
	s.l.waits.Add(1)
	for _, a := range s.acceptors {
		a.Pause()
	}
	s.l.full.Store(true)
	if s.l.active.Load() < int64(s.l.cfg.MaxConns) { // the last was closed meanwhile
		s.belowTheBound()
	}
}

func (s *shard) belowTheBound() {
	for _, a := range s.acceptors {
		a.Resume()
	}
}
