package wsframe

import (
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/proxy/loop"
)

// said is a stream that gives its text in pieces, and a moment without any
// between them.
type said struct {
	loop.Stream
	conn   loop.Conn // is not on a loop: waking it does nothing
	left   string
	pieces func(left int) int
	pause  bool
}

func (s *said) Socket() *loop.Conn { return &s.conn }
func (s *said) Readable() bool     { return true }

func (s *said) TryRead(b []byte) (int, error) {
	if s.pause = !s.pause; s.pause {
		return 0, loop.ErrWouldBlock
	}
	if s.left == "" {
		return 0, io.EOF
	}
	n := copy(b, s.left[:s.pieces(len(s.left))])
	s.left = s.left[n:]
	return n, nil
}

// Whenever a Close of ours is asked for, in whatever pieces bytes come and are
// taken: what is passed on is what was said up to the next place for it, and then
// the Close. That place is between two messages, if it is late between two frames.
func FuzzClose(f *testing.F) {
	for _, s := range stories {
		for seed := range uint64(4) {
			f.Add([]byte(s[:min(len(s), 2000)]), seed, seed%2 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64, late bool) {
		r := rand.New(rand.NewPCG(seed, 3))
		source := &said{left: string(b), pieces: func(left int) int { return 1 + r.IntN(left) }}
		s := New(&said{}, source, Config{Draining: func() bool { return false }, Reason: "bye"})
		e := &s.upstream
		ask, asked := r.IntN(2*(len(b)+1)), -1
		var out strings.Builder
		buf := make([]byte, 1+r.IntN(300))
		for {
			if asked < 0 && out.Len() >= ask {
				s.draining, e.ask, s.late = true, true, late
				asked = out.Len()
			}
			n, err := e.TryRead(buf)
			out.Write(buf[:n])
			if err == io.EOF {
				break
			}
		}
		want := string(b)
		if at := place(want, asked, late); at >= 0 {
			want = want[:at] + ourClose
		}
		if out.String() != want {
			t.Errorf("of %q, asked at %d, came %q; want %q", b, asked, out.String(), want)
		}
	})
}

// place is where a Close has to go that is asked for at some point of a stream:
// -1 if nowhere, because the stream ends within a frame or the peer closes by itself.
func place(stream string, asked int, late bool) int {
	if asked < 0 {
		return -1
	}
	p := parse(stream)
	places := p.messages
	if late {
		places = p.boundaries
	}
	for _, at := range places {
		if at < asked {
			continue
		}
		if parse(stream[:at]).closed {
			return -1
		}
		return at
	}
	return -1
}
