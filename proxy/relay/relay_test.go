package relay

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestClientEndsFirstAndStillGetsItsAnswer(t *testing.T) {
	s := start(t, Config{})
	send(t, s.app, "question")
	s.app.CloseWrite()
	expect(t, s.server, "question")
	expectEnd(t, s.server)
	send(t, s.server, "answer")
	s.server.Close()
	expect(t, s.app, "answer")
	expectEnd(t, s.app)
	s.wantEOF(t, 8, 6)
}

func TestServerEndsFirstAndStillTakesTheUpload(t *testing.T) {
	s := start(t, Config{})
	send(t, s.server, "go ahead")
	s.server.CloseWrite()
	expect(t, s.app, "go ahead")
	expectEnd(t, s.app)
	send(t, s.app, "upload")
	s.app.CloseWrite()
	expect(t, s.server, "upload")
	expectEnd(t, s.server)
	s.wantEOF(t, 6, 8)
}

func TestServerSpeaksFirst(t *testing.T) {
	s := start(t, Config{})
	send(t, s.server, "220 ready\r\n")
	expect(t, s.app, "220 ready\r\n")
	send(t, s.app, "QUIT\r\n")
	expect(t, s.server, "QUIT\r\n")
	s.server.Close()
	expectEnd(t, s.app)
	s.app.Close()
	s.wantEOF(t, 6, 11)
}

func TestResetIsPassedOnAsReset(t *testing.T) {
	for _, side := range []Side{Client, Upstream} {
		t.Run(side.String(), func(t *testing.T) {
			s := start(t, Config{})
			send(t, s.app, "x")
			expect(t, s.server, "x")
			gone, left := s.app, s.server
			if side == Upstream {
				gone, left = s.server, s.app
			}
			gone.SetLinger(0)
			gone.Close()
			expectReset(t, left)
			r := s.result(t)
			if r.Reason != Failed || r.Err.Side != side || r.Err.Op != "read" || !errors.Is(r.Err, unix.ECONNRESET) {
				t.Errorf("got %v: %v", r.Reason, r.Err)
			}
		})
	}
}

// The kernel tells of a reset once. Where the writing flow hears it, the reading
// flow sees a plain end, which must not reach the server as one: it would take a
// cut upload for a whole one.
func TestAResetThatTheKernelToldAlreadyIsStillAReset(t *testing.T) {
	app, client := tcpPair(t)
	upstream, server := tcpPair(t)
	app.SetLinger(0)
	app.Close()
	waitForReset(t, client)
	raw, err := client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || v != int(unix.ECONNRESET) {
			t.Errorf("SO_ERROR is %v, %v", v, err)
		}
	})
	s := startWith(t, app, server, client, upstream, Config{})
	expectReset(t, server)
	if r := s.result(t); r.Reason != Failed || r.Err.Side != Client || !errors.Is(r.Err, unix.ECONNRESET) {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

// The same, as it happens.
func TestResetDuringADownloadNeverLooksLikeTheEndOfTheUpload(t *testing.T) {
	download := make([]byte, 1<<20)
	for range 100 {
		app, client := tcpPair(t)
		upstream, server := tcpPair(t)
		app.SetReadBuffer(4 << 10)
		client.SetWriteBuffer(4 << 10) // so that the relay is blocked in a write
		s := startWith(t, app, server, client, upstream, Config{})
		if _, err := server.Write(download); err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, app, rand.Int64N(1<<14))
		app.SetLinger(0)
		app.Close()
		expectReset(t, server)
		if r := s.result(t); r.Reason != Failed || r.Err.Side != Client {
			t.Fatalf("got %v: %v", r.Reason, r.Err)
		}
		server.Close()
	}
}

func TestEarlyAnswerReachesAClientThatStillUploads(t *testing.T) {
	answer := "HTTP/1.1 413 Content Too Large\r\n\r\n" + strings.Repeat("no ", 30000)
	app, client := tcpPair(t)
	upstream, server := tcpPair(t)
	app.SetReadBuffer(4 << 10) // so that the answer waits in the relay's socket
	client.SetWriteBuffer(1 << 20)
	var toClient atomic.Int64
	s := startWith(t, app, server, client, upstream, Config{Progress: func(from Side, n int) {
		if from == Upstream {
			toClient.Add(int64(n))
		}
	}})
	go io.Copy(app, zeros{})
	expect(t, server, "\x00")
	send(t, server, answer)
	waitFor(t, func() string {
		if n := toClient.Load(); n < int64(len(answer)) {
			return fmt.Sprintf("the relay took %d bytes of the answer", n)
		}
		return ""
	})
	server.Close() // with bytes unread, so the kernel resets
	waitForReset(t, upstream)
	expect(t, app, answer)
	if r := s.result(t); r.Reason != Failed || r.Err.Side != Upstream {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

func TestManyBytesBothWaysAtOnceAreExact(t *testing.T) {
	const size = 64 << 20
	var progress [2]atomic.Int64
	s := start(t, Config{Progress: func(from Side, n int) { progress[from].Add(int64(n)) }})
	var wg sync.WaitGroup
	var sums [4]hash.Hash
	for i := range sums {
		sums[i] = sha256.New()
	}
	pump := func(c *net.TCPConn, seed byte, sum hash.Hash) {
		src := io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
		if _, err := io.CopyBuffer(struct{ io.Writer }{c}, io.TeeReader(src, sum), make([]byte, 1<<18)); err != nil {
			t.Error(err)
		}
		c.CloseWrite()
	}
	sink := func(c *net.TCPConn, sum hash.Hash) {
		if _, err := io.CopyBuffer(sum, struct{ io.Reader }{c}, make([]byte, 1<<18)); err != nil {
			t.Error(err)
		}
	}
	wg.Go(func() { pump(s.app, 1, sums[0]) })
	wg.Go(func() { sink(s.server, sums[1]) })
	wg.Go(func() { pump(s.server, 2, sums[2]) })
	wg.Go(func() { sink(s.app, sums[3]) })
	wg.Wait()
	for i := 0; i < 4; i += 2 {
		if string(sums[i].Sum(nil)) != string(sums[i+1].Sum(nil)) {
			t.Errorf("stream %d arrived changed", i/2)
		}
	}
	s.wantEOF(t, size, size)
	if progress[Client].Load() != size || progress[Upstream].Load() != size {
		t.Errorf("Progress saw %d and %d bytes", progress[Client].Load(), progress[Upstream].Load())
	}
	if len(pipes.free) == 0 {
		t.Error("the kernel did not splice: no pipe was ever made")
	}
}

func TestALargeFlowThatGoesQuietHoldsNoPipe(t *testing.T) {
	s := start(t, Config{})
	bulk := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { send(t, s.app, bulk) })
		expect(t, s.server, bulk)
		wg.Wait()
		// The last byte may have arrived before its pipe was put back; the
		// echo comes after.
		send(t, s.server, "ok")
		expect(t, s.app, "ok")
		waitFor(t, func() string {
			if open, listed := openPipes(t), listedPipes(); open != 2*listed {
				return fmt.Sprintf("%d descriptors of pipes are open and %d pipes are in the list", open, listed)
			}
			return ""
		})
	}
	// And it works on after the return to small messages.
	for i := range 3 * smallFills {
		text := fmt.Sprintf("message %d", i)
		send(t, s.app, text)
		expect(t, s.server, text)
	}
	s.app.Close()
	s.server.Close()
	if r := s.result(t); r.Reason != EOF {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

func TestNoDescriptorForAPipeMeansCopying(t *testing.T) {
	s := start(t, Config{})
	send(t, s.app, "x")
	expect(t, s.server, "x")

	pipes.mu.Lock()
	for _, p := range pipes.free {
		p.close()
	}
	pipes.free = nil
	pipes.mu.Unlock()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)

	bulk := strings.Repeat("0123456789abcdef", 1<<18)
	var wg sync.WaitGroup
	wg.Go(func() { send(t, s.app, bulk) })
	expect(t, s.server, bulk)
	wg.Wait()
	if n := listedPipes(); n != 0 {
		t.Errorf("%d pipes were made: the limit did not bite", n)
	}
}

func TestAReaderThatStallsHoldsTheWriterBack(t *testing.T) {
	s := start(t, Config{})
	bulk := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{7}).Read(bulk)
	s.app.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	sent, err := s.app.Write(bulk)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d bytes to a server that reads nothing: %v", sent, err)
	}
	// Kernel buffers of four sockets, a pipe and a buffer lie between the two.
	if sent > 48<<20 {
		t.Errorf("%d MiB are held between a writer and a reader that stalls", sent>>20)
	}
	s.app.CloseWrite()
	got, err := io.ReadAll(s.server)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(bulk[:sent]) {
		t.Errorf("%d bytes arrived of %d, %v", len(got), sent, err)
	}
	s.server.Close()
	s.wantEOF(t, int64(sent), 0)
}

func TestCancelResetsBothSides(t *testing.T) {
	for _, state := range []string{"silent", "blocked in a write"} {
		t.Run(state, func(t *testing.T) {
			s := start(t, Config{})
			send(t, s.app, "x")
			expect(t, s.server, "x")
			if state != "silent" {
				s.app.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
				io.Copy(s.app, zeros{})
			}
			s.cancel()
			if r := s.result(t); r.Reason != Cancelled || r.Err != nil {
				t.Errorf("got %v: %v", r.Reason, r.Err)
			}
			expectReset(t, s.app)
			expectReset(t, s.server)
		})
	}
}

func TestCancelledBeforeItStarts(t *testing.T) {
	app, client := tcpPair(t)
	upstream, server := tcpPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if r := Run(ctx, client, upstream, Config{}); r.Reason != Cancelled {
		t.Errorf("got %+v", r)
	}
	expectReset(t, app)
	expectReset(t, server)
}

func TestSilenceResetsBothSides(t *testing.T) {
	s := start(t, Config{IdleTimeout: 40 * time.Millisecond})
	expectReset(t, s.app)
	expectReset(t, s.server)
	if r := s.result(t); r.Reason != Idle || r.Err != nil {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

// replay is what detect gives back: bytes read before, and what is beneath.
type replay struct {
	net.Conn
	unread string
}

func (r replay) Unwrap() (net.Conn, []byte) { return r.Conn, []byte(r.unread) }

func TestBytesReadBeforeComeFirstAndTheWrapperComesOff(t *testing.T) {
	app, client := tcpPair(t)
	upstream, server := tcpPair(t)
	s := startWith(t, app, server,
		replay{replay{client, "two "}, "one "}, replay{upstream, "banner "},
		Config{FromClient: []byte("zero "), FromUpstream: []byte("hello ")})
	send(t, app, "three")
	app.CloseWrite()
	expect(t, server, "zero one two three")
	expectEnd(t, server)
	send(t, server, "bye")
	server.Close()
	expect(t, app, "hello banner bye")
	s.wantEOF(t, 18, 16)
}

func TestOldDeadlinesAreForgotten(t *testing.T) {
	app, client := tcpPair(t)
	upstream, server := tcpPair(t)
	client.SetReadDeadline(time.Unix(1, 0))
	upstream.SetDeadline(time.Unix(1, 0))
	s := startWith(t, app, server, client, upstream, Config{})
	send(t, app, "x")
	expect(t, server, "x")
	app.Close()
	server.Close()
	if r := s.result(t); r.Reason != EOF {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

func TestNothingIsLeftOpen(t *testing.T) {
	once := func(how int) {
		s := start(t, Config{})
		send(t, s.app, strings.Repeat("x", 100))
		expect(t, s.server, strings.Repeat("x", 100))
		switch how % 4 {
		case 0:
			s.app.Close()
		case 1:
			s.server.SetLinger(0)
			s.server.Close()
		case 2:
			s.cancel()
		case 3:
			s.app.CloseWrite()
			s.server.Close()
		}
		if how%4 == 0 {
			expectEnd(t, s.server)
			s.server.Close()
		}
		s.result(t)
		s.app.Close()
		s.server.Close()
	}
	once(0)
	before := len(openFiles(t)) - 2*listedPipes()
	for i := range 40 {
		once(i)
	}
	if after := len(openFiles(t)) - 2*listedPipes(); after != before {
		t.Errorf("%d descriptors before, %d after:\n%s", before, after, strings.Join(openFiles(t), "\n"))
	}
}
