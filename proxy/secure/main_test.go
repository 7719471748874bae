package secure

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(peerEnv); addr != "" {
		bePeer(addr)
		return
	}
	goleak.VerifyTestMain(m)
}

// start runs a loop until the test ends.
func start(t testing.TB) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	t.Cleanup(func() { l.Close(); <-ended })
	return l
}

// do runs f as a task and waits for it.
func do(t testing.TB, l *loop.Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { l.Go(func() { defer close(done); f() }) }) {
		t.Fatal("the loop has ended")
	}
	<-done
}

// pair is a connection on the loop and its other end.
func pair(t testing.TB, l *loop.Loop) (*loop.Conn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var c *loop.Conn
	do(t, l, func() {
		if c, err = l.Dial(loop.Dialer{}, ln.Addr().(*net.TCPAddr).AddrPort(), time.Time{}); err != nil {
			t.Error(err)
		}
	})
	p, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return c, p.(*net.TCPConn)
}

// meet makes both ends of a TLS connection: ours the server on a loop, and a
// client of crypto/tls.
func meet(t testing.TB, l *loop.Loop) (*Conn, *tls.Conn) {
	t.Helper()
	return meetWith(t, l, serverConfig(), clientConfig())
}

func meetWith(t testing.TB, l *loop.Loop, ours, theirs *tls.Config) (*Conn, *tls.Conn) {
	t.Helper()
	c, p := pair(t, l)
	peer := tls.Client(p, theirs)
	shaken := shake(peer)
	s := Server(c, nil, ours)
	do(t, l, func() {
		if err := s.Handshake(l.Now().Add(10 * time.Second)); err != nil {
			t.Error(err)
		}
	})
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	return s, peer
}

// shake runs a peer's handshake.
func shake(peer *tls.Conn) <-chan error {
	err := make(chan error, 1)
	go func() { err <- peer.Handshake() }()
	return err
}

// onLoop is a connection with both ends on the loop.
func onLoop(t testing.TB, l *loop.Loop, ours, theirs *tls.Config) (server, client *Conn) {
	t.Helper()
	fd, addr := listening(t)
	accepted := make(chan *loop.Conn, 1)
	do(t, l, func() {
		a, err := l.Accept(fd, func(fd int, _ netip.AddrPort) { accepted <- l.Adopt(fd) }, func(error) time.Duration { return time.Second })
		if err != nil {
			t.Error(err)
			return
		}
		defer a.Close()
		c, err := l.Dial(loop.Dialer{}, addr, time.Time{})
		if err != nil {
			t.Error(err)
			return
		}
		for len(accepted) == 0 {
			l.Yield()
		}
		server, client = Server(<-accepted, nil, ours), Client(c, theirs)
		other := l.Spawn(func() {
			if err := server.Handshake(time.Time{}); err != nil {
				t.Error("server:", err)
			}
		})
		if err := client.Handshake(time.Time{}); err != nil {
			t.Error("client:", err)
		}
		other.Wait()
	})
	return server, client
}

// listening is a socket for loop.Accept.
func listening(t testing.TB) (fd int, addr netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	in4 := sa.(*unix.SockaddrInet4)
	return fd, netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port))
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peer.test"}, DNSNames: []string{"peer.test"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

func roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(certificate().Leaf)
	return pool
}

// serverConfig asks for a client's certificate, as between two proxies.
func serverConfig() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{certificate()}, ClientAuth: tls.RequireAnyClientCert,
		MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true,
	}
}

func clientConfig() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{certificate()}, RootCAs: roots(), ServerName: "peer.test",
		MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true,
	}
}

// tooMuch does not fit into the buffers of two sockets.
const tooMuch = 16 << 20
