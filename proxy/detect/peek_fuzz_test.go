package detect

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// How the pieces of a stream come.
const (
	waits    = 1 << iota // each has to be waited for
	together             // what follows a piece is told with it
	breaks               // the stream fails, it does not end
)

var errBroken = errors.New("broken")

// pieces is a stream whose reads return pieces of an input. What Peek has no
// need of is not there.
type pieces struct {
	loop.Stream
	rest     []byte
	size     int
	how      byte
	here     bool // the next piece has been waited for
	taken    int
	before   int // taken, but for the last read
	parked   func()
	deadline time.Time
}

func (s *pieces) SetReadDeadline(t time.Time) error { s.deadline = t; return nil }
func (s *pieces) Park(t loop.Task)                  { s.parked = t.Run }

func (s *pieces) TryRead(b []byte) (int, error) {
	if err := s.nothing(); err != nil {
		return 0, err
	}
	n := copy(b, s.rest[:min(len(s.rest), s.size)])
	s.rest, s.before, s.taken, s.here = s.rest[n:], s.taken, s.taken+n, false
	if s.how&together != 0 {
		return n, s.nothing()
	}
	return n, nil
}

// nothing is why there is nothing to read, nil if there is.
func (s *pieces) nothing() error {
	switch {
	case s.how&waits != 0 && !s.here:
		return loop.ErrWouldBlock
	case len(s.rest) > 0:
		return nil
	case s.how&breaks != 0:
		return errBroken
	}
	return io.EOF
}

// However the bytes come, none is lost or changed, never more than MaxBytes are
// taken, no more than the answer needs, and the answer is that for all of them.
func FuzzPeek(f *testing.F) {
	hello := realHello(f, &tls.Config{NextProtos: []string{MeshALPN}})
	endless := append([]byte("\x16\x03\x01\x40\x00\x01\x00\xff\xff"), make([]byte, 2*MaxBytes)...)
	for how := range byte(waits | together | breaks + 1) {
		f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 1, how)
		f.Add(hello, 7, how)
		f.Add(hello[:100], 60, how)
		f.Add(bytes.Repeat([]byte("\n"), 20000), 4096, how)
		f.Add(endless, 1000, how)
		f.Add([]byte{}, 1, how)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int, how byte) {
		size = max(1, size, len(in)/500) // each piece costs a look at all before it
		s := &pieces{rest: in, size: size, how: how, deadline: time.Unix(1, 0)}
		calls := 0
		var got Result
		var gotErr error
		Peek(s, Config{}, func(res Result, b []byte, err error) {
			if all := append(bytes.Clone(b), s.rest...); !bytes.Equal(all, in) {
				t.Fatalf("%q and %q, of %q", b, s.rest, in)
			}
			calls++
			got, gotErr = res, err
		})
		for s.parked != nil {
			resume := s.parked
			s.parked, s.here = nil, true
			resume()
		}
		if calls != 1 || !s.deadline.IsZero() || s.taken > MaxBytes {
			t.Fatalf("%d calls, deadline %v, %d bytes taken", calls, s.deadline, s.taken)
		}
		want, wantErr := s.answer(in)
		if !reflect.DeepEqual(got, want) || !errors.Is(gotErr, wantErr) {
			t.Fatalf("got %+v, %v; want %+v, %v", got, gotErr, want, wantErr)
		}
		if _, more := Classify(in[:s.before]); !more {
			t.Fatalf("%d bytes were taken where %d were enough", s.taken, s.before)
		}
	})
}

// answer is what Peek should say of the bytes it took.
func (s *pieces) answer(in []byte) (Result, error) {
	want, more := Classify(in[:s.taken])
	if !more {
		return want, nil
	}
	var err error
	want.Outcome = Incomplete
	if s.taken == 0 {
		want.Outcome = Ended
	}
	if s.how&breaks != 0 {
		err = errBroken
		if s.taken == 0 {
			want.Outcome = Silent
		}
	}
	return want, err
}
