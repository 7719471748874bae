package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// tlsClientSide is a relay whose client side is the server end of a TLS
// connection. It returns the application's end of it.
func tlsClientSide(t *testing.T, cfg Config) (*tls.Conn, *scene) {
	t.Helper()
	rawApp, rawClient := tcpPair(t)
	upstream, server := tcpPair(t)
	app := tls.Client(rawApp, &tls.Config{InsecureSkipVerify: true})
	client := tls.Server(NewTransport(rawClient), &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := client.Handshake(); err != nil {
			t.Error(err)
		}
	})
	if err := app.Handshake(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	return app, startWith(t, rawApp, server, client, upstream, cfg)
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestTLSHalfCloseIsACloseNotifyBothWays(t *testing.T) {
	for _, first := range []Side{Client, Upstream} {
		t.Run(first.String()+" ends first", func(t *testing.T) {
			app, s := tlsClientSide(t, Config{})
			bulk := strings.Repeat("0123456789abcdef", 1<<15) // 512 KiB: small and large buffers
			up := func() {
				var wg sync.WaitGroup
				wg.Go(func() { send(t, app, bulk); app.CloseWrite() })
				expect(t, s.server, bulk)
				expectEnd(t, s.server)
				wg.Wait()
			}
			down := func() {
				var wg sync.WaitGroup
				wg.Go(func() { send(t, s.server, bulk); s.server.CloseWrite() })
				expect(t, app, bulk)
				expectEnd(t, app)
				wg.Wait()
			}
			if first == Client {
				up()
				down()
			} else {
				down()
				up()
			}
			s.wantEOF(t, int64(len(bulk)), int64(len(bulk)))
		})
	}
}

func TestATLSStreamCutShortIsNotAnEnd(t *testing.T) {
	app, s := tlsClientSide(t, Config{})
	send(t, app, "half a mess")
	expect(t, s.server, "half a mess")
	s.app.CloseWrite() // of the socket beneath: no close_notify
	expectReset(t, s.server)
	r := s.result(t)
	if r.Reason != Failed || r.Err.Side != Client || !errors.Is(r.Err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

func TestCancelDoesNotWaitForATLSPeerThatReadsNothing(t *testing.T) {
	_, s := tlsClientSide(t, Config{})
	s.server.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	io.Copy(s.server, zeros{})
	s.cancel()
	if r := s.result(t); r.Reason != Cancelled {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
	expectReset(t, s.server)
}

// What follows runs on net.Pipe, inside a bubble with its own clock.

type pipeScene struct {
	app, server net.Conn
	done        chan Result
	began       time.Time
}

func startOnPipes(ctx context.Context, cfg Config) pipeScene {
	app, client := net.Pipe()
	upstream, server := net.Pipe()
	s := pipeScene{app: app, server: server, done: make(chan Result, 1), began: time.Now()}
	go func() { s.done <- Run(ctx, halfCloser{client}, halfCloser{upstream}, cfg) }()
	return s
}

// halfCloser has a half-close that nobody hears.
type halfCloser struct{ net.Conn }

func (halfCloser) CloseWrite() error { return nil }

func (s pipeScene) wantIdle(t *testing.T, since time.Time, timeout time.Duration) {
	t.Helper()
	r := <-s.done
	if r.Reason != Idle {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
	if took := time.Since(since); took < timeout || took > timeout*5/4 {
		t.Errorf("ended %v after the last byte, want %v to %v", took, timeout, timeout*5/4)
	}
}

func TestIdleTimeoutCountsFromTheLastByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = time.Minute
		s := startOnPipes(t.Context(), Config{IdleTimeout: timeout})
		for i := range 10 {
			time.Sleep(timeout - time.Second)
			from, to := s.app, s.server
			if i%2 == 1 {
				from, to = to, from
			}
			send(t, from, "x")
			expect(t, to, "x")
		}
		s.wantIdle(t, time.Now(), timeout)
	})
}

func TestIdleTimeoutWithoutAnyByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startOnPipes(t.Context(), Config{IdleTimeout: time.Minute})
		s.wantIdle(t, s.began, time.Minute)
	})
}

func TestZeroTimeoutNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := startOnPipes(ctx, Config{})
		time.Sleep(1000 * time.Hour)
		send(t, s.app, "x")
		expect(t, s.server, "x")
		cancel()
		if r := <-s.done; r.Reason != Cancelled {
			t.Errorf("got %v: %v", r.Reason, r.Err)
		}
	})
}

func TestHalfClosedTimeoutTakesOver(t *testing.T) {
	for _, idle := range []time.Duration{0, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			s := startOnPipes(t.Context(), Config{IdleTimeout: idle, HalfClosedTimeout: time.Minute})
			time.Sleep(50 * time.Minute)
			s.app.Close()
			s.wantIdle(t, time.Now(), time.Minute)
		})
	}
}

func TestASideWithoutHalfCloseIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, client := net.Pipe()
		upstream, server := net.Pipe()
		done := make(chan Result, 1)
		go func() { done <- Run(t.Context(), client, upstream, Config{}) }()
		send(t, app, "bye")
		expect(t, server, "bye")
		app.Close()
		expectEnd(t, server)
		if r := <-done; r != (Result{ToUpstream: 3, Reason: EOF}) {
			t.Errorf("got %+v (%v)", r, r.Err)
		}
	})
}

// A side that refuses writes, yet never ends what it says, does not keep the
// relay alive.
func TestAFailedSideThatStaysSilentIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, client := net.Pipe()
		upstream, server := net.Pipe()
		defer server.Close()
		done := make(chan Result, 1)
		go func() { done <- Run(t.Context(), client, refuser{upstream}, Config{}) }()
		send(t, app, "x")
		r := <-done
		if r.Reason != Failed || r.Err.Side != Upstream || r.Err.Op != "write" || !errors.Is(r.Err, errRefused) {
			t.Errorf("got %v: %v", r.Reason, r.Err)
		}
	})
}

var errRefused = errors.New("refused")

type refuser struct{ net.Conn }

func (refuser) Write([]byte) (int, error) { return 0, errRefused }

// resetter has its own way to say that a stream was cut, as QUIC streams do.
type resetter struct {
	net.Conn
	reset *atomic.Bool
}

func (r resetter) Reset() error { r.reset.Store(true); return nil }

func TestATransportsOwnResetIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, client := net.Pipe()
		upstream, server := net.Pipe()
		defer app.Close()
		defer server.Close()
		var reset atomic.Bool
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		Run(ctx, client, resetter{upstream, &reset}, Config{})
		if !reset.Load() {
			t.Error("Reset was not called")
		}
	})
}
