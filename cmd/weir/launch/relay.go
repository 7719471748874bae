package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	relayConns = 4096 // connections at once through one relay; more wait to be accepted
	dialLimit  = 10 * time.Second
)

// relay carries connections from a listener to another address: into the
// namespace what is published, out of it what the proxy has for the control plane
// and for the machine's resolvers. It runs outside of the namespace.
type relay struct {
	ln   net.Listener
	dial func(context.Context) (net.Conn, error)
	wg   sync.WaitGroup
	end  context.CancelFunc
}

// newRelay serves ln until close.
func newRelay(ln net.Listener, dial func(context.Context) (net.Conn, error)) *relay {
	ctx, end := context.WithCancel(context.Background())
	r := &relay{ln: ln, dial: dial, end: end}
	r.wg.Go(func() { r.accept(ctx) })
	return r
}

// dialTo gives a func that dials one address.
func dialTo(address string) func(context.Context) (net.Conn, error) {
	d := &net.Dialer{Timeout: dialLimit}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
}

func (r *relay) accept(ctx context.Context) {
	room := make(chan struct{}, relayConns)
	for {
		room <- struct{}{}
		c, err := r.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, most likely: it may pass
			<-room
			time.Sleep(10 * time.Millisecond)
			continue
		}
		r.wg.Go(func() {
			defer func() { <-room }()
			r.carry(ctx, c)
		})
	}
}

// carry copies both ways, and passes the end of each on by itself.
func (r *relay) carry(ctx context.Context, from net.Conn) {
	defer func() { _ = from.Close() }()
	to, err := r.dial(ctx)
	if err != nil {
		if t, ok := from.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a reset: nobody is there, as where nobody listens
		}
		return
	}
	defer func() { _ = to.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = from.Close(); _ = to.Close() })
	defer stop()
	var back sync.WaitGroup
	back.Go(func() { copyHalf(from, to) })
	copyHalf(to, from)
	back.Wait()
}

func copyHalf(to, from net.Conn) {
	_, err := io.Copy(to, from)
	t, ok := to.(*net.TCPConn)
	if err != nil || !ok || t.CloseWrite() != nil {
		_ = to.Close() // broken: the other way has no sense either
		_ = from.Close()
	}
}

// close ends the relay with all its connections, and waits until they are gone.
func (r *relay) close() {
	_ = r.ln.Close()
	r.end()
	r.wg.Wait()
}

// publication is one --publish: an address of the machine that leads to a port of
// the program.
type publication struct {
	listen string // HOST:PORT
	port   uint16
}

// parsePublish reads HOST:PORT:PORT or PORT:PORT, which is on loopback. A HOST of
// IPv6 is in brackets.
func parsePublish(s string) (publication, error) {
	meant := fmt.Errorf("%q: meant is HOST:PORT:PORT or PORT:PORT with ports in 1..65535 and an IP address for HOST", s)
	at := strings.LastIndexByte(s, ':')
	if at < 0 {
		return publication{}, meant
	}
	outside, inside := s[:at], s[at+1:]
	if !strings.Contains(outside, ":") {
		outside = "127.0.0.1:" + outside
	}
	host, err := netip.ParseAddrPort(outside)
	port, err2 := strconv.ParseUint(inside, 10, 16)
	if err != nil || err2 != nil || host.Port() == 0 || port == 0 {
		return publication{}, meant
	}
	return publication{listen: host.String(), port: uint16(port)}, nil
}
