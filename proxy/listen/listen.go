// Package listen accepts connections on event loops and hands each, with its original destination, to a handler.
// What the bytes mean, where they go and what redirected them is left to others.
package listen

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Config says where to listen and within which bounds.
type Config struct {
	// Addrs are "host:port" with a literal IP address: "0.0.0.0:15001",
	// "[::1]:15001". A socket for an IPv6 address takes IPv6 only; ":15001"
	// takes both families on one.
	Addrs []string
	// Listeners are sockets that are open already, handed over by an older
	// process. They are served beside Addrs and belong to the Listener from
	// then on, also when New fails.
	Listeners []*net.TCPListener

	// MaxConns bounds the connections that are open at once, over all sockets.
	// At the bound nothing is refused: newcomers wait in the kernel's backlog.
	// Each loop may be one over it. 0 means no bound.
	MaxConns int
	// OriginalDst tells where a connection was going before it was redirected.
	// Its error means that this is not known. nil: nothing is redirected.
	OriginalDst func(syscall.Conn) (netip.AddrPort, error)
	// KeepAlive is set on the sockets and inherited by their connections. The
	// zero value means 3 probes, 10 s apart, after 30 s of silence: netfilter
	// forgets a half-closed connection after 60 s (nf_conntrack_tcp_timeout_close_wait),
	// and with it where its last segments belong. For none set Idle to -1 and
	// leave Enable false.
	KeepAlive net.KeepAliveConfig
	Log       *zap.Logger // nil logs nothing
}

// Figures are counts since New, but for Active.
type Figures struct {
	Accepted     uint64 `json:"accepted"`      // connections taken from the kernel
	Active       int    `json:"active"`        // connections that are open now
	Waits        uint64 `json:"waits"`         // times that newcomers had to wait because of MaxConns
	AcceptErrors uint64 `json:"accept_errors"` // failed accepts after which it went on
	Panics       uint64 `json:"panics"`        // handlers that panicked
	Cut          uint64 `json:"cut"`           // connections closed by the end of a drain or of Run
}

// Listener is a set of listening sockets with one bound.
type Listener struct {
	cfg     Config
	log     *zap.Logger
	sockets []socket

	accepted, waits, acceptErrors, panics, cut atomic.Uint64
	active                                     atomic.Int64
	full                                       atomic.Bool // some loop waits for the bound
	draining, ended                            atomic.Bool
	late                                       atomic.Bool // newcomers are reset

	drain    chan struct{} // closed when accepting is to stop
	setDrain func()
	none     chan struct{} // has a value when, while draining, the last connection has closed
	finished chan struct{} // closed when Run returns

	mu     sync.Mutex // guards what follows
	ran    bool
	shards []*shard
}

// shard is the Listener's part on one loop. Only that loop touches it.
type shard struct {
	l         *Listener
	loop      *loop.Loop
	index     int
	open      atomic.Int64 // connections; also read by the other loops
	handle    func(*Conn)
	acceptors []*loop.Acceptor
	pause     time.Duration // after a failed accept; 0: the last one went well
	asked     asked         // used for one connection after another
}

// New binds all addresses or none. The error names the address, and says so
// when another program has the port. Nothing is accepted before Run, but
// clients can connect.
func New(cfg Config) (*Listener, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	l := &Listener{
		cfg: cfg, log: cfg.Log,
		drain: make(chan struct{}), none: make(chan struct{}, 1), finished: make(chan struct{}),
	}
	l.setDrain = sync.OnceFunc(func() { l.draining.Store(true); close(l.drain) })
	if err := l.bind(); err != nil {
		l.closeSockets()
		return nil, err
	}
	return l, nil
}

// Run accepts on the loops until Drain is called or ctx ends, and begins handle
// as a task for each connection. A connection counts until it is closed, which
// is for the handler to see to, or for what it parked the connection with. Run
// returns when all are closed. It may be called once; the loops must be running,
// and run on.
//
// The end of ctx is the hard end: it resets the connections. Use Drain first for
// a soft one. A handler that panics loses its connection, is logged with its
// stack and counted. Accept errors are waited out: whatever accept(2) reports,
// the connection stays in the backlog and is served once it can be. The error is
// of a socket that could not be watched.
func (l *Listener) Run(ctx context.Context, loops []*loop.Loop, handle func(*Conn)) error {
	l.begin(loops, handle)
	defer close(l.finished)
	err := l.start()
	if err != nil {
		l.setDrain()
	}
	select {
	case <-l.drain:
	case <-ctx.Done():
		l.late.Store(true)
		l.setDrain()
	}
	l.onEach(func(s *shard) { s.stop() })
	l.closeSockets()
	for l.active.Load() > 0 {
		select {
		case <-l.none:
		case <-ctx.Done():
			l.endHard()
			<-l.none
		}
	}
	return err
}

// begin marks the Listener as run. A second Run is a mistake of the program.
func (l *Listener) begin(loops []*loop.Loop, handle func(*Conn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ran {
		panic("listen: Run was called twice")
	}
	l.ran = true
	for i, lp := range loops {
		l.shards = append(l.shards, &shard{l: l, loop: lp, index: i, handle: handle})
	}
}

// start gives each loop a descriptor of each socket. All loops accept from the
// same queue, so none waits while another is busy; of those that wait, one is
// woken for each connection.
func (l *Listener) start() error {
	if l.draining.Load() {
		return nil
	}
	var mu sync.Mutex
	var errs error
	l.onEach(func(s *shard) {
		if err := s.start(); err != nil {
			mu.Lock()
			errs = errors.Join(errs, err)
			mu.Unlock()
		}
	})
	return errs
}

// onEach runs f on each loop and waits for all.
func (l *Listener) onEach(f func(*shard)) {
	var wg sync.WaitGroup
	for _, s := range l.shards {
		wg.Add(1)
		if !s.loop.Post(func() { defer wg.Done(); f(s) }) {
			wg.Done()
		}
	}
	wg.Wait()
}

// endHard cuts what is open.
func (l *Listener) endHard() {
	l.late.Store(true)
	if l.ended.Swap(true) {
		return
	}
	l.onEach(func(s *shard) {
		s.loop.Each(func(c *loop.Conn) {
			if c.Owner() == loop.Owner(s) {
				l.cut.Add(1)
				_ = c.Reset()
			}
		})
	})
}

// Draining reports whether no more connections are taken: a handler that can end
// its connection at a good moment then does.
func (l *Listener) Draining() bool { return l.draining.Load() }

// Drain stops accepting, begins the tasks of connections that are parked (which
// find the Listener Draining), waits for all to be closed until ctx ends, then
// resets what is left. It returns how many it cut, when Run returns. Without a
// Run it closes the sockets.
func (l *Listener) Drain(ctx context.Context) (cut int) {
	before := l.cut.Load()
	l.setDrain()
	l.mu.Lock()
	ran := l.ran
	l.mu.Unlock()
	if !ran {
		l.closeSockets()
		return 0 // and a later Run accepts nothing
	}
	l.onEach(func(s *shard) {
		s.loop.Each(func(c *loop.Conn) {
			if c.Owner() == loop.Owner(s) && c.Parked() {
				c.Wake()
			}
		})
	})
	select {
	case <-l.finished:
	case <-ctx.Done():
		l.endHard()
		<-l.finished
	}
	return int(l.cut.Load() - before)
}

// Close closes the sockets of a Listener whose Run was never called.
func (l *Listener) Close() error {
	l.closeSockets()
	return nil
}

func (l *Listener) closeSockets() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.sockets {
		l.sockets[i].close()
	}
}

// Addrs are the bound addresses, in the order Listeners, Addrs.
func (l *Listener) Addrs() (addrs []netip.AddrPort) {
	for _, s := range l.sockets {
		addrs = append(addrs, s.addr)
	}
	return addrs
}

// Files duplicates the sockets, to be handed to a newer process, in the order of
// Addrs. The caller closes the files. Both processes may accept for a while.
func (l *Listener) Files() (files []*os.File, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sockets {
		fd, err := s.dup()
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, os.NewFile(uintptr(fd), s.addr.String()))
	}
	return files, nil
}

// Figures returns the counts. They are not of one instant.
func (l *Listener) Figures() Figures {
	return Figures{
		Accepted:     l.accepted.Load(),
		Active:       int(l.active.Load()),
		Waits:        l.waits.Load(),
		AcceptErrors: l.acceptErrors.Load(),
		Panics:       l.panics.Load(),
		Cut:          l.cut.Load(),
	}
}

// keepAlive is the configured one, or ours.
func (c Config) keepAlive() net.KeepAliveConfig {
	if c.KeepAlive != (net.KeepAliveConfig{}) {
		return c.KeepAlive
	}
	return net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}
}
