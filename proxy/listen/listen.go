// Package listen accepts connections and hands each, with its original destination, to a handler.
// What the bytes mean, where they go and what redirected them is left to others.
package listen

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Config says where to listen and within which bounds.
type Config struct {
	// Addrs are "host:port" with a literal IP address, each with a socket of
	// its own: "0.0.0.0:15001", "[::1]:15001". A socket for an IPv6 address
	// takes IPv6 only; ":15001" takes both families on one.
	Addrs []string
	// Listeners are sockets that are open already, handed over by an older
	// process. They are served beside Addrs and belong to the Listener from
	// then on, also when New fails.
	Listeners []*net.TCPListener

	// MaxConns bounds the connections that are handled at once, over all
	// sockets. At the bound nothing is refused: newcomers wait in the kernel's
	// backlog, and one for each socket is accepted and waits here. 0 means no
	// bound.
	MaxConns int
	// OriginalDst tells where a connection was going before it was redirected.
	// Its error means that this is not known. nil: nothing is redirected.
	OriginalDst func(*net.TCPConn) (netip.AddrPort, error)
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
	Active       int    `json:"active"`        // connections being handled now
	Waits        uint64 `json:"waits"`         // connections that had to wait because of MaxConns
	AcceptErrors uint64 `json:"accept_errors"` // failed accepts after which it went on
	Panics       uint64 `json:"panics"`        // handlers that panicked
	Cut          uint64 `json:"cut"`           // connections closed by the end of a drain or of Run
}

// Listener is a set of listening sockets with one bound.
type Listener struct {
	cfg     Config
	log     *zap.Logger
	sockets []socket
	slots   chan struct{} // one for each connection being handled; nil without a bound

	accepted, waits, acceptErrors, panics, cut atomic.Uint64

	drain    context.Context // ends when accepting is to stop
	setDrain context.CancelFunc
	hard     context.Context // ends when connections are to be cut; the parent of the handlers' contexts
	setHard  context.CancelFunc
	finished chan struct{} // closed when Run returns

	mu     sync.Mutex // guards what follows
	ran    bool
	ended  bool // the hard end: no connection is taken in any more
	active map[*Conn]struct{}
}

// New binds all addresses or none. The error names the address, and says so
// when another program has the port. Nothing is accepted before Run, but
// clients can connect.
func New(cfg Config) (*Listener, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	l := &Listener{cfg: cfg, log: cfg.Log, finished: make(chan struct{}), active: map[*Conn]struct{}{}}
	l.drain, l.setDrain = context.WithCancel(context.Background())
	l.hard, l.setHard = context.WithCancel(context.Background())
	if cfg.MaxConns > 0 {
		l.slots = make(chan struct{}, cfg.MaxConns)
	}
	if err := l.bind(); err != nil {
		l.closeSockets()
		return nil, err
	}
	return l, nil
}

// Run accepts until Drain is called or ctx ends, and calls handle for each
// connection in a goroutine of its own. It returns when every handler has
// returned. It may be called once.
//
// The end of ctx is the hard end: it closes the sockets, ends the handlers'
// contexts and closes their connections. Use Drain first for a soft one. The
// contexts of the handlers carry nothing else of ctx.
//
// A handler that panics loses its connection, is logged with its stack and
// counted; the others go on. Accept errors that pass (no descriptor, no memory)
// are waited out. Run's error is nil after Drain and after the end of ctx; else
// it names the socket that failed, and the end was a hard one.
func (l *Listener) Run(ctx context.Context, handle func(context.Context, *Conn)) error {
	l.begin()
	defer close(l.finished)
	var handlers, loops, hardEnd sync.WaitGroup
	ended := make(chan struct{})
	hardEnd.Go(func() { l.awaitHardEnd(ctx, ended) })

	errs := make(chan error, len(l.sockets))
	for _, s := range l.sockets {
		loops.Go(func() {
			if err := l.acceptLoop(s, &handlers, handle); err != nil {
				errs <- err
				l.endHard()
			}
		})
	}
	<-l.drain.Done()
	l.closeSockets()
	loops.Wait()
	handlers.Wait()
	close(ended)
	hardEnd.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// begin marks the Listener as run. A second Run is a mistake of the program.
func (l *Listener) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ran {
		panic("listen: Run was called twice")
	}
	l.ran = true
}

// awaitHardEnd makes the end of ctx the hard end.
func (l *Listener) awaitHardEnd(ctx context.Context, ended <-chan struct{}) {
	select {
	case <-ended:
	case <-ctx.Done():
		l.endHard()
	}
}

// endHard cuts what is being handled, once. The contexts end before the
// connections, so that a handler whose read fails can tell why.
func (l *Listener) endHard() {
	l.setDrain()
	l.mu.Lock()
	first := !l.ended
	l.ended = true
	var cut []*Conn
	if first {
		cut = slices.Collect(maps.Keys(l.active))
	}
	l.mu.Unlock()
	l.cut.Add(uint64(len(cut)))
	l.setHard()
	for _, c := range cut {
		c.reset()
	}
}

// Drain stops accepting, tells the handlers (Conn.Draining), waits for them
// until ctx ends, then cuts what is left: the handlers' contexts end and their
// connections are closed. It returns how many it cut, when Run returns. Without a
// Run it closes the sockets.
func (l *Listener) Drain(ctx context.Context) (cut int) {
	before := l.cut.Load()
	l.setDrain()
	l.closeSockets()
	l.mu.Lock()
	ran := l.ran
	l.mu.Unlock()
	if !ran {
		return 0 // and a later Run accepts nothing
	}
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
	for _, s := range l.sockets {
		_ = s.Close() // closed already, or nothing that could be done about it
	}
}

// Addrs are the bound addresses, in the order Listeners, Addrs.
func (l *Listener) Addrs() (addrs []netip.AddrPort) {
	for _, s := range l.sockets {
		addrs = append(addrs, addrPort(s.Addr()))
	}
	return addrs
}

// Files duplicates the sockets, to be handed to a newer process, in the order of
// Addrs. The caller closes the files. Both processes may accept for a while.
func (l *Listener) Files() (files []*os.File, err error) {
	for _, s := range l.sockets {
		f, err := s.acceptor.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// Figures returns the counts. They are not of one instant.
func (l *Listener) Figures() Figures {
	l.mu.Lock()
	active := len(l.active)
	l.mu.Unlock()
	return Figures{
		Accepted:     l.accepted.Load(),
		Active:       active,
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
