package relay

import (
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// layer is a stream over a connection, as TLS is one: it gives a record at a
// time, and takes an end without its own last word for a cut.
type layer struct {
	*loop.Conn
	cut    bool // the peer's end is not an orderly one
	reads  int
	resets int

	writeErr, closeWriteErr error
}

func (c *layer) TryRead(b []byte) (int, error) {
	c.reads++
	n, err := c.Conn.TryRead(b[:min(len(b), recordRoom)])
	if c.cut && err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (c *layer) Write(b []byte) (int, error) {
	if c.writeErr != nil {
		return 0, c.writeErr
	}
	return c.Conn.Write(b)
}

func (c *layer) CloseWrite() error {
	if c.closeWriteErr != nil {
		return c.closeWriteErr
	}
	return c.Conn.CloseWrite()
}

func (c *layer) Reset() error { c.resets++; return c.Conn.Reset() }

// layered is a scene whose client side is a layer.
func layered(t *testing.T, prepare func(client *layer)) (*layer, *scene) {
	t.Helper()
	l := startLoop(t)
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	c := &layer{Conn: client}
	prepare(c)
	return c, startWith(t, l, app, server, c, upstream, Config{})
}

func TestALayerIsCopiedBothWaysAndHalfClosed(t *testing.T) {
	for _, first := range []Side{Client, Upstream} {
		t.Run(first.String()+" ends first", func(t *testing.T) {
			_, s := layered(t, func(*layer) {})
			bulk := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB
			from, to := s.app, s.server
			if first == Upstream {
				from, to = to, from
			}
			for range 2 {
				var wg sync.WaitGroup
				wg.Go(func() { send(t, from, bulk); from.CloseWrite() })
				expect(t, to, bulk)
				expectEnd(t, to)
				wg.Wait()
				from, to = to, from
			}
			s.wantEOF(t, int64(len(bulk)), int64(len(bulk)))
			if _, free := s.pipes(t); free > 0 {
				t.Errorf("%d pipes were made for what cannot be spliced", free)
			}
		})
	}
}

func TestALayersStreamCutShortIsNotAnEnd(t *testing.T) {
	c, s := layered(t, func(c *layer) { c.cut = true })
	send(t, s.app, "half a mess")
	expect(t, s.server, "half a mess")
	s.app.CloseWrite() // of the socket beneath
	expectReset(t, s.server)
	r := s.result(t)
	if r.Reason != Failed || r.Err.Side != Client || r.Err.Op != "read" || !errors.Is(r.Err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
	if c.resets == 0 {
		t.Error("the layer's own Reset was not called")
	}
}

// The last bytes and the cut may come together; the bytes are not lost.
func TestBytesBeforeACutAreHandedOn(t *testing.T) {
	l := startLoop(t)
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	send(t, app, "last words")
	app.CloseWrite()
	s := startWith(t, l, app, server, &layer{Conn: client, cut: true}, upstream, Config{})
	expect(t, server, "last words")
	expectReset(t, server)
	if r := s.result(t); r.Reason != Failed || r.ToUpstream != 10 {
		t.Errorf("got %+v (%v)", r, r.Err)
	}
}

// A side that refuses writes, yet never ends what it says, does not keep the
// relay alive.
func TestAFailedSideThatStaysSilentIsGivenUp(t *testing.T) {
	refused := errors.New("refused")
	_, s := layered(t, func(c *layer) { c.writeErr = refused })
	send(t, s.server, "x")
	r := s.result(t)
	if r.Reason != Failed || r.Err.Side != Client || r.Err.Op != "write" || !errors.Is(r.Err, refused) {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
	expectReset(t, s.app)
	expectReset(t, s.server)
}

func TestAHalfCloseThatFailsIsThatSidesFault(t *testing.T) {
	refused := errors.New("refused")
	_, s := layered(t, func(c *layer) { c.closeWriteErr = refused })
	s.server.CloseWrite()
	r := s.result(t)
	if r.Reason != Failed || r.Err.Side != Client || r.Err.Op != "close write" || !errors.Is(r.Err, refused) {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
	expectReset(t, s.app)
}

func TestAbortOfALayerThatIsBlocked(t *testing.T) {
	c, s := layered(t, func(*layer) {})
	for _, peer := range []io.Writer{s.app, s.server} {
		blockWriter(t, peer)
	}
	s.abort()
	if r := s.result(t); r.Reason != Cancelled || r.Err != nil {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
	if c.resets == 0 {
		t.Error("the layer's own Reset was not called")
	}
	expectReset(t, s.app)
	expectReset(t, s.server)
}

// seeThrough is a layer that has no end of its own: it looks at what passes.
type seeThrough struct{ loop.Stream }

func (s seeThrough) Beneath() loop.Stream { return s.Stream }

// As TestAResetThatTheKernelToldAlreadyIsStillAReset, seen through a layer.
func TestAResetBeneathALayerIsStillAReset(t *testing.T) {
	l := startLoop(t)
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	app.SetLinger(0)
	app.Close()
	waitForReset(t, l, client)
	do(t, l, func() { _, _ = unix.GetsockoptInt(client.FD(), unix.SOL_SOCKET, unix.SO_ERROR) })
	s := startWith(t, l, app, server, seeThrough{client}, upstream, Config{})
	expectReset(t, server)
	if r := s.result(t); r.Reason != Failed || r.Err.Side != Client || !errors.Is(r.Err, unix.ECONNRESET) {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}
