package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/listen"
)

// between is a sidecar's way out between real clients and a server at an address
// that is no service's.
type between struct {
	t      *testing.T
	p      *Proxy
	server *net.TCPListener
	at     string // where clients connect
}

// impatient finds a peer that is gone within seconds.
var impatient = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 1}

func newBetween(t *testing.T, change func(*Proxy)) *between {
	t.Helper()
	return newBetweenOf(t, change, (*Proxy).serveUnknown)
}

func newBetweenOf(t *testing.T, change func(*Proxy), serve func(*Proxy, *listen.Conn)) *between {
	t.Helper()
	b := &between{t: t, p: sidecar(t), server: listenLocal(t)}
	if change != nil {
		change(b.p)
	}
	if err := b.p.makeLoops(); err != nil {
		t.Fatal(err)
	}
	turned := make(chan struct{})
	go func() { defer close(turned); b.p.runLoops() }()
	t.Cleanup(func() { b.p.closeLoops(); <-turned })
	to := b.server.Addr().(*net.TCPAddr).AddrPort()
	ln, err := listen.New(listen.Config{
		Addrs: []string{"127.0.0.1:0"}, OriginalDst: func(syscall.Conn) (netip.AddrPort, error) { return to, nil },
		KeepAlive: impatient,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ln.Run(ctx, b.p.loops, func(lc *listen.Conn) { serve(b.p, lc) }) }()
	t.Cleanup(func() {
		if stop(); <-ended != nil {
			t.Error("the listener failed")
		}
	})
	b.at = ln.Addrs()[0].String()
	return b
}

func listenLocal(t *testing.T) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.(*net.TCPListener)
}

// connect makes a connection through the proxy and gives both its ends.
func (b *between) connect() (client, server *net.TCPConn) {
	b.t.Helper()
	c, err := net.Dial("tcp", b.at)
	if err != nil {
		b.t.Fatal(err)
	}
	return c.(*net.TCPConn), b.accept(c)
}

func (b *between) accept(client net.Conn) *net.TCPConn {
	b.t.Helper()
	s, err := b.server.AcceptTCP()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range []net.Conn{client, s} {
		b.t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return s
}

func (b *between) pass(from, to net.Conn, text string) {
	b.t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		b.t.Fatal(err)
	}
	b.hear(to, text)
}

func (b *between) hear(c net.Conn, text string) {
	b.t.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != text {
		b.t.Fatalf("got %q, %v; want %q", got[:n], err, text)
	}
}

// hasty is a proxy all of whose limits for a peer's first bytes are over at once.
func hasty(p *Proxy) { p.cfg.HandshakeTime = time.Millisecond }

// An hour is too long for a test; it is three thousand six hundred times a second
// here, in limits that pass, while others come and go.
func TestAConnectionInWhichNothingIsSaidIsNeverGivenUp(t *testing.T) {
	b := newBetween(t, hasty)
	silent, far := b.connect()
	waiting, greets := b.connect()
	for range 300 {
		c, s := b.connect()
		b.pass(c, s, "x")
		_, _ = c.Close(), s.Close()
	}
	b.pass(silent, far, "I have been thinking")
	b.pass(far, silent, "and?")
	b.pass(greets, waiting, "220 sorry for the delay")
	b.pass(waiting, greets, "HELO")
}

// Both may be silent for long, so nothing is to wait for them but two sockets.
func TestSilentConnectionsHoldNoStack(t *testing.T) {
	b := newBetween(t, nil)
	c, s := b.connect()
	b.pass(c, s, "x")
	const many = 300
	before := runtime.NumGoroutine()
	for range many {
		b.connect()
	}
	c, s = b.connect()
	b.pass(c, s, "x")
	// The loops keep up to 64 coroutines each of tasks that have ended.
	if grew := runtime.NumGoroutine() - before; grew > 64*len(b.p.loops)+10 {
		t.Errorf("%d silent connections made %d goroutines", many, grew)
	}
}

func TestAResetInTheSilenceArrivesAsAReset(t *testing.T) {
	b := newBetween(t, nil)
	for name, swap := range map[string]bool{"by the client": false, "by the server": true} {
		t.Run(name, func(t *testing.T) {
			b.t = t
			from, to := b.connect()
			if swap {
				from, to = to, from
			}
			_ = from.SetLinger(0)
			_ = from.Close()
			if n, err := to.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("it arrived as %d bytes, %v", n, err)
			}
		})
	}
}

// A client whose host lost its memory of the connection, as by a restart, says
// nothing of that: its proxy has to ask.
func TestAHalfOpenConnectionIsFound(t *testing.T) {
	b := newBetween(t, nil)
	for _, said := range []string{"", "something, and then no more"} {
		client, server := b.connect()
		b.pass(client, server, said)
		forget(t, client)
		if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after %q the server got %d bytes, %v", said, n, err)
		}
	}
}

// forget closes a connection so that its peer hears nothing of it.
func forget(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var rerr error
	if err := raw.Control(func(fd uintptr) { rerr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) }); err != nil {
		t.Fatal(err)
	}
	if errors.Is(rerr, unix.EPERM) && os.Geteuid() != 0 {
		t.Skip("TCP_REPAIR, by which a socket can be forgotten, needs CAP_NET_ADMIN: ", rerr)
	}
	if err := errors.Join(rerr, c.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestAnEndInTheSilenceArrivesAsAnEnd(t *testing.T) {
	b := newBetween(t, nil)
	client, server := b.connect()
	_ = client.CloseWrite()
	if n, err := server.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("it arrived as %d bytes, %v", n, err)
	}
	b.pass(server, client, "all the same")
}

// A protocol whose client says one letter and waits for the answer.
func TestAWordThatCouldBecomeHTTPIsAnsweredInTheEnd(t *testing.T) {
	b := newBetween(t, hasty)
	client, server := b.connect()
	b.pass(client, server, "G")
	b.pass(server, client, "which game?")
	b.pass(client, server, "ET going")
}

func TestATLSHelloLeadsToTheServiceItNamesUnlessItIsEncrypted(t *testing.T) {
	hello, err := os.ReadFile("detect/testdata/hello-ech.bin")
	if err != nil {
		t.Fatal(err)
	}
	data := listenLocal(t)
	b := newBetween(t, func(p *Proxy) {
		name := policy.ServiceName{Namespace: "default", Name: "data"}
		target := endpointOf("a", data.Addr().String(), func(e *policy.Target) { e.ServiceName, e.Protocol = name.Name, "tls" })
		svc := &policy.Service{Name: name, Endpoints: []policy.Target{target}}
		if err := p.setService(name, svc); err != nil {
			t.Fatal(err)
		}
	})
	client, server := b.connect()
	b.pass(client, server, string(hello)) // by address, and as it is

	c, err := net.Dial("tcp", b.at)
	if err != nil {
		t.Fatal(err)
	}
	plain := helloOf(t, "data.default", "h2")
	if _, err := c.Write(plain); err != nil {
		t.Fatal(err)
	}
	b.accept(c) // what was dialled meanwhile
	b.server = data
	b.hear(b.accept(c), string(plain))
}

// helloOf is what crypto/tls says first to a server of this name.
func helloOf(t *testing.T, name, alpn string) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	go func() {
		_ = tls.Client(near, &tls.Config{ServerName: name, NextProtos: []string{alpn}}).Handshake() // which is never answered
		_ = near.Close()
	}()
	b := make([]byte, 16<<10)
	n, err := far.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// Where plaintext is allowed an app that speaks first is faster than a caller's
// hello, which must not get a greeting for an answer.
func TestAGreetingWaitsForAHelloThatIsOnItsWay(t *testing.T) {
	b := newBetweenOf(t, func(p *Proxy) {
		in := policy.Inbound{Service: p.cfg.Service, MTLS: policy.Permissive, DefaultAllow: true}
		if err := p.setInbound(in); err != nil {
			t.Fatal(err)
		}
	}, (*Proxy).serveInbound)
	const greets = "220 ready\r\n"
	for name, hello := range map[string][]byte{"a proxy": helloOf(t, "front", detect.MeshALPN), "a client": nil} {
		c, err := net.Dial("tcp", b.at)
		if err != nil {
			t.Fatal(err)
		}
		server := b.accept(c)
		if _, err := io.WriteString(server, greets); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // the greeting is there by now; if it is not the test is less sharp
		if _, err := c.Write(hello); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(greets))
		n, err := io.ReadFull(c, got)
		if heard := string(got[:n]) == greets; heard != (hello == nil) {
			t.Errorf("%s got %q, %v", name, got[:n], err)
		}
	}
}
