package relay

import (
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

	"github.com/weir-mesh/weir/proxy/loop"
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
	l := startLoop(t)
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	app.SetLinger(0)
	app.Close()
	waitForReset(t, l, client)
	do(t, l, func() {
		if v, err := unix.GetsockoptInt(client.FD(), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || v != int(unix.ECONNRESET) {
			t.Errorf("SO_ERROR is %v, %v", v, err)
		}
	})
	s := startWith(t, l, app, server, client, upstream, Config{})
	expectReset(t, server)
	if r := s.result(t); r.Reason != Failed || r.Err.Side != Client || !errors.Is(r.Err, unix.ECONNRESET) {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

// The same, as it happens.
func TestResetDuringADownloadNeverLooksLikeTheEndOfTheUpload(t *testing.T) {
	download := make([]byte, 1<<20)
	l := startLoop(t)
	for range 100 {
		client, app := pairWith(t, l, sendBuffer(4<<10)) // so that the relay waits in a write
		upstream, server := pair(t, l)
		app.SetReadBuffer(4 << 10)
		s := startWith(t, l, app, server, client, upstream, Config{})
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
	answer := "HTTP/1.1 413 Content Too Large\r\n\r\n" + strings.Repeat("no ", 250000)
	l := startLoop(t)
	client, app := pairWith(t, l, sendBuffer(1<<20))
	upstream, server := pair(t, l)
	app.SetReadBuffer(64 << 10) // so that the answer waits in the relay's socket
	var toClient atomic.Int64
	s := startWith(t, l, app, server, client, upstream, Config{Progress: func(from Side, n int) {
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
	waitForReset(t, l, upstream)
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
	if _, free := s.pipes(t); free == 0 {
		t.Error("the kernel did not splice: no pipe was ever made")
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
				blockWriter(t, s.app)
			}
			s.abort()
			if r := s.result(t); r.Reason != Cancelled || r.Err != nil {
				t.Errorf("got %v: %v", r.Reason, r.Err)
			}
			expectReset(t, s.app)
			expectReset(t, s.server)
		})
	}
}

func TestAbortAtOnce(t *testing.T) {
	l := startLoop(t)
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	ended := make(chan Result, 1)
	l.Post(func() { // outside any task
		Start(client, upstream, Config{FromClient: []byte("x")}, func(r Result) { ended <- r }).Abort(Cancelled)
	})
	if r := <-ended; r.Reason != Cancelled || r.Err != nil {
		t.Errorf("got %+v", r)
	}
	expectReset(t, app)
	expectReset(t, server)
}

func TestAbortAfterTheEndDoesNothing(t *testing.T) {
	s := start(t, Config{})
	s.app.Close()
	s.server.Close()
	s.wantEOF(t, 0, 0)
	do(t, s.l, func() { s.session.Abort(Cancelled) })
}

// Nobody is at fault when the proxy goes away.
func TestTheEndOfTheLoopIsACancel(t *testing.T) {
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	s := startWith(t, l, app, server, client, upstream, Config{IdleTimeout: time.Hour})
	blockWriter(t, s.app)
	l.Close()
	<-ended
	if r := s.result(t); r.Reason != Cancelled || r.Err != nil {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
	expectReset(t, app)
	expectReset(t, server)
}

func TestRunWaitsInItsTask(t *testing.T) {
	l := startLoop(t)
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	ended := make(chan Result, 1)
	l.Post(func() { Start(client, upstream, Config{}, func(r Result) { ended <- r }) })
	send(t, app, "ping")
	expect(t, server, "ping")
	app.Close()
	server.Close()
	if r := <-ended; r != (Result{ToUpstream: 4, Reason: EOF}) {
		t.Errorf("got %+v (%v)", r, r.Err)
	}
}

func TestBytesReadBeforeComeFirst(t *testing.T) {
	l := startLoop(t)
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	send(t, app, "two")
	s := startWith(t, l, app, server, client, upstream,
		Config{FromClient: []byte("one "), FromUpstream: []byte("hello ")})
	app.CloseWrite()
	expect(t, server, "one two")
	expectEnd(t, server)
	send(t, server, "bye")
	server.Close()
	expect(t, app, "hello bye")
	s.wantEOF(t, 7, 9)
}

func TestOldDeadlinesAreForgotten(t *testing.T) {
	l := startLoop(t)
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	do(t, l, func() {
		client.SetReadDeadline(time.Unix(1, 0))
		upstream.SetDeadline(time.Unix(1, 0))
	})
	s := startWith(t, l, app, server, client, upstream, Config{})
	send(t, app, "x")
	expect(t, server, "x")
	app.Close()
	server.Close()
	if r := s.result(t); r.Reason != EOF {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

func TestNothingIsLeftOpen(t *testing.T) {
	l := startLoop(t)
	once := func(how int) {
		client, app := pair(t, l)
		upstream, server := pair(t, l)
		s := startWith(t, l, app, server, client, upstream, Config{IdleTimeout: time.Hour})
		send(t, s.app, strings.Repeat("x", 100))
		expect(t, s.server, strings.Repeat("x", 100))
		switch how % 4 {
		case 0:
			s.app.Close()
		case 1:
			s.server.SetLinger(0)
			s.server.Close()
		case 2:
			s.abort()
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
	before := len(openFiles(t))
	for i := range 40 {
		once(i)
	}
	if after := len(openFiles(t)); after != before {
		t.Errorf("%d descriptors before, %d after:\n%s", before, after, strings.Join(openFiles(t), "\n"))
	}
}
