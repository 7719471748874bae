package detect

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

func tcpPair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(); a.Close() })
	return d.(*net.TCPConn), a.(*net.TCPConn)
}

type peeked struct {
	Result
	conn *Conn
	err  error
}

func peekLater(ctx context.Context, c net.Conn, cfg Config) <-chan peeked {
	out := make(chan peeked, 1)
	go func() {
		r, conn, err := Peek(ctx, c, cfg)
		out <- peeked{r, conn, err}
	}()
	return out
}

func await(t testing.TB, ch <-chan peeked) peeked {
	t.Helper()
	select {
	case p := <-ch:
		return p
	case <-time.After(patience):
		t.Fatal("Peek does not return")
		return peeked{}
	}
}

// wantReplay: the connection gives exactly these bytes, then the end.
func (p peeked) wantReplay(t testing.TB, want string) {
	t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(iotest.OneByteReader(p.conn))
	if err != nil || string(got) != want {
		t.Errorf("replayed %.60q, %v; want %.60q", got, err, want)
	}
}

func TestHTTPByteByByteIsHTTP(t *testing.T) {
	client, server := tcpPair(t)
	later := peekLater(t.Context(), server, Config{Deadline: time.Now().Add(patience)})
	const request = "DELETE /a HTTP/1.1\r\n\r\n"
	for i := range len(request) {
		client.Write([]byte{request[i]})
	}
	client.Close()
	p := await(t, later)
	if p.Kind != HTTP1 || p.Outcome != Decided || p.err != nil {
		t.Errorf("got %+v, %v", p.Result, p.err)
	}
	p.wantReplay(t, request)
}

func TestAHelloLargerThanTheFirstReadIsReadOn(t *testing.T) {
	protocols := []string{"weir"}
	for range 60 {
		protocols = append(protocols, strings.Repeat("x", 100))
	}
	hello := realHello(t, &tls.Config{NextProtos: protocols})
	if len(hello) < 2*firstRead {
		t.Fatalf("the hello has only %d bytes", len(hello))
	}
	client, server := tcpPair(t)
	later := peekLater(t.Context(), server, Config{})
	client.Write(append(hello, "more"...))
	client.Close()
	p := await(t, later)
	if !p.Mesh() || p.Outcome != Decided || p.err != nil {
		t.Errorf("got %+v, %v", p.Result, p.err)
	}
	p.wantReplay(t, string(hello)+"more")
}

// The handshake works over the connection that was peeked at.
func TestTLSRunsOverTheReplay(t *testing.T) {
	client, server := tcpPair(t)
	go func() {
		c := tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{MeshALPN}})
		c.Handshake()
	}()
	p := await(t, peekLater(t.Context(), server, Config{}))
	if !p.Mesh() {
		t.Fatalf("got %+v, %v", p.Result, p.err)
	}
	var alpn []string
	seen := errors.New("seen")
	err := tls.Server(p.conn, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		alpn = h.SupportedProtos
		return nil, seen
	}}).Handshake()
	if !errors.Is(err, seen) || len(alpn) != 1 || alpn[0] != MeshALPN {
		t.Errorf("the server saw %v, %v", alpn, err)
	}
}

func TestASilentClientIsOpaqueAtTheDeadline(t *testing.T) {
	client, server := tcpPair(t)
	p := await(t, peekLater(t.Context(), server, Config{Deadline: time.Now().Add(20 * time.Millisecond)}))
	if p.Kind != Opaque || p.Outcome != Silent || p.err != nil {
		t.Errorf("got %+v, %v", p.Result, p.err)
	}
	client.Write([]byte("late"))
	client.Close()
	p.wantReplay(t, "late") // and the deadline is gone
}

func TestHalfAHelloAtTheDeadline(t *testing.T) {
	hello := realHello(t, &tls.Config{NextProtos: []string{MeshALPN}})
	client, server := tcpPair(t)
	client.Write(hello[:100])
	p := await(t, peekLater(t.Context(), server, Config{Deadline: time.Now().Add(300 * time.Millisecond)}))
	if p.Kind != TLS || p.Outcome != Incomplete || p.Mesh() || p.err != nil {
		t.Errorf("got %+v, %v", p.Result, p.err)
	}
	client.Write(hello[100:])
	client.Close()
	p.wantReplay(t, string(hello))
}

// MySQL, SMTP, SSH: the server speaks first and the client waits for it.
func TestTheServerSpeaksFirst(t *testing.T) {
	for _, said := range []string{"", "G"} {
		client, server := tcpPair(t)
		client.Write([]byte(said))
		other := make(chan struct{})
		later := peekLater(t.Context(), server, Config{Other: other})
		close(other)
		p := await(t, later)
		if p.Kind != Opaque || p.err != nil || p.Outcome != OtherSpoke && p.Outcome != Incomplete {
			t.Errorf("got %+v, %v", p.Result, p.err)
		}
		client.Write([]byte("login"))
		client.Close()
		p.wantReplay(t, said+"login")
	}
}

func TestTheContextEnds(t *testing.T) {
	client, server := tcpPair(t)
	why := errors.New("policy changed")
	ctx, cancel := context.WithCancelCause(context.Background())
	later := peekLater(ctx, server, Config{})
	cancel(why)
	p := await(t, later)
	if !errors.Is(p.err, why) || p.Outcome != Silent {
		t.Errorf("got %+v, %v", p.Result, p.err)
	}
	client.Write([]byte("x"))
	client.Close()
	p.wantReplay(t, "x")
}

func TestTheClientEndsItsStream(t *testing.T) {
	for said, want := range map[string]Outcome{"": Ended, "GE": Incomplete, "bye\r\n": Decided} {
		client, server := tcpPair(t)
		client.Write([]byte(said))
		client.CloseWrite()
		p := await(t, peekLater(t.Context(), server, Config{}))
		if p.Kind != Opaque || p.Outcome != want || p.err != nil {
			t.Errorf("%q: got %+v, %v", said, p.Result, p.err)
		}
		p.wantReplay(t, said)
	}
}

func TestTheClientResets(t *testing.T) {
	client, server := tcpPair(t)
	client.SetLinger(0)
	client.Close()
	p := await(t, peekLater(t.Context(), server, Config{}))
	if !errors.Is(p.err, unix.ECONNRESET) || p.conn == nil {
		t.Errorf("got %+v, %v", p.Result, p.err)
	}
}

// An interrupt at the very moment at which bytes come loses none of them, and
// leaves no deadline behind.
func TestInterruptsRaceWithBytes(t *testing.T) {
	for range 200 {
		client, server := tcpPair(t)
		other := make(chan struct{})
		later := peekLater(t.Context(), server, Config{Other: other})
		go close(other)
		client.Write([]byte("GE"))
		p := await(t, later)
		client.Write([]byte("T / HTTP/1.1\r\n"))
		client.Close()
		p.wantReplay(t, "GET / HTTP/1.1\r\n")
		server.Close()
	}
}

func TestUnwrapGivesWhatWasNotReadYet(t *testing.T) {
	client, server := tcpPair(t)
	client.Write([]byte("hello there"))
	p := await(t, peekLater(t.Context(), server, Config{}))
	io.ReadFull(p.conn, make([]byte, 6))
	under, unread := p.conn.Unwrap()
	if under != net.Conn(server) || string(unread) != "there" {
		t.Errorf("got %v and %q", under, unread)
	}
}

func TestHalfCloseGoesThrough(t *testing.T) {
	client, server := tcpPair(t)
	if err := (&Conn{Conn: server}).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	client.SetReadDeadline(time.Now().Add(patience))
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
	a, b := net.Pipe()
	defer b.Close()
	defer a.Close()
	if err := (&Conn{Conn: a}).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a pipe half-closed: %v", err)
	}
}

// chunks is a connection whose reads return pieces of an input.
type chunks struct {
	recorder
	rest []byte
	size int
}

func (c *chunks) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.rest[:min(len(c.rest), c.size)])
	c.rest = c.rest[n:]
	return n, nil
}

// However the bytes come, they are replayed exactly, and never more than
// MaxBytes are taken in advance.
func FuzzPeek(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 1)
	f.Add(realHello(f, &tls.Config{NextProtos: []string{MeshALPN}}), 7)
	f.Add(bytes.Repeat([]byte("\n"), 20000), 4096)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		c := &chunks{rest: in, size: max(1, size)}
		_, conn, err := Peek(context.Background(), c, Config{})
		if err != nil {
			t.Fatal(err)
		}
		if taken := len(in) - len(c.rest); taken > MaxBytes {
			t.Fatalf("%d bytes were taken", taken)
		}
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, in) {
			t.Fatalf("replayed %q, %v, of %q", got, err, in)
		}
	})
}
