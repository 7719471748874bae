package wsframe

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"
)

// frame is one as RFC 6455 section 5.2 has it.
func frame(fin bool, opcode byte, masked bool, payload string) string {
	b := []byte{opcode, 0}
	if fin {
		b[0] |= finBit
	}
	switch n := len(payload); {
	case n < length16:
		b[1] = byte(n)
	case n < 1<<16:
		b[1] = length16
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b[1] = length64
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	data := []byte(payload)
	if masked {
		b[1] |= maskBit
		key := []byte{1, 2, 3, 4}
		b = append(b, key...)
		for i := range data {
			data[i] ^= key[i%4]
		}
	}
	return string(append(b, data...))
}

const (
	text = 0x1
	cont = 0x0
	ping = 0x9
)

// slow is the other way to find out: all at once, from the beginning.
type slow struct {
	boundaries []int // where a control frame may be inserted
	messages   []int // of those, between messages
	closed     bool
}

func parse(stream string) (s slow) {
	at, within := 0, false
	for {
		s.boundaries = append(s.boundaries, at)
		if !within {
			s.messages = append(s.messages, at)
		}
		size, length, ok := measure([]byte(stream[at:]))
		if !ok || uint64(len(stream)-at-size) < length {
			return s
		}
		opcode, fin := stream[at]&opcodeBits, stream[at]&finBit != 0
		at += size + int(length)
		if opcode == opClose {
			s.closed = true
		}
		if opcode < 8 {
			within = !fin
		}
	}
}

// check follows a stream in pieces and compares with the slow way.
func check(t *testing.T, stream string, pieces func(left int) int) {
	t.Helper()
	var f follower
	var got slow
	note := func(at int) {
		if f.between() {
			got.boundaries = append(got.boundaries, at)
			if !f.within {
				got.messages = append(got.messages, at)
			}
		}
	}
	note(0)
	for at := 0; at < len(stream); {
		piece := []byte(stream[at : at+pieces(len(stream)-at)])
		for len(piece) > 0 {
			n := f.next(piece)
			if n < 1 || n > len(piece) {
				t.Fatalf("at %d took %d of %d bytes", at, n, len(piece))
			}
			at += n
			piece = piece[n:]
			note(at)
		}
	}
	got.closed = f.closed
	want := parse(stream)
	if !equal(got.boundaries, want.boundaries) || !equal(got.messages, want.messages) || got.closed != want.closed {
		t.Errorf("of %d bytes got %+v, want %+v", len(stream), got, want)
	}
}

func equal(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

var stories = map[string]string{
	"small":       frame(true, text, true, "hello") + frame(true, text, false, "hello"),
	"empty":       frame(true, text, false, "") + frame(true, ping, true, "") + frame(true, text, true, ""),
	"lengths":     frame(true, text, false, strings.Repeat("x", 125)) + frame(true, 2, true, strings.Repeat("x", 126)) + frame(true, 2, false, strings.Repeat("x", 65535)) + frame(true, 2, true, strings.Repeat("x", 65536)),
	"in pieces":   frame(false, text, true, "he") + frame(true, ping, true, "?") + frame(false, cont, true, "") + frame(true, cont, true, "llo") + frame(true, text, true, "next"),
	"a close":     frame(true, text, false, "bye") + frame(true, opClose, false, "\x03\xe8"),
	"cut short":   frame(true, text, false, "bye")[:3],
	"a half head": frame(true, text, true, strings.Repeat("x", 300))[:7],
}

func TestFramesAreFollowedHoweverTheyCome(t *testing.T) {
	for name, stream := range stories {
		t.Run(name, func(t *testing.T) {
			check(t, stream, func(left int) int { return left })
			check(t, stream, func(int) int { return 1 })
			for seed := range uint64(50) {
				r := rand.New(rand.NewPCG(seed, 1))
				check(t, stream, func(left int) int { return 1 + r.IntN(min(left, 20)) })
			}
		})
	}
}

func TestWhatCannotBeAFrameIsFollowedNoMore(t *testing.T) {
	var f follower
	b := []byte{0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 'x', 'y'}
	if n := f.next(b); n != len(b) || f.between() {
		t.Errorf("took %d, between %v", n, f.between())
	}
	if n := f.next([]byte(frame(true, text, false, "a"))); n != 3 || f.between() || f.closed {
		t.Errorf("afterwards took %d, between %v", n, f.between())
	}
}

func TestOurCloseIsWellFormed(t *testing.T) {
	if got := closeFrame(GoingAway, "bye", nil); string(got) != frame(true, opClose, false, "\x03\xe9bye") {
		t.Errorf("to a client: %x", got)
	}
	if got := closeFrame(GoingAway, "bye", &[4]byte{1, 2, 3, 4}); string(got) != frame(true, opClose, true, "\x03\xe9bye") {
		t.Errorf("to a server: %x", got)
	}
	// RFC 6455 section 5.7: a masked text frame "Hello".
	rfc, _ := hex.DecodeString("818537fa213d7f9f4d5158")
	var f follower
	if n := f.next(rfc); n != len(rfc) || !f.between() {
		t.Errorf("the RFC's own frame: %d, %v", n, f.between())
	}
}

// Whatever passes, the fast way and the slow one agree on where a Close may go.
func FuzzFollow(f *testing.F) {
	for _, s := range stories {
		f.Add([]byte(s[:min(len(s), 2000)]), uint64(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 2))
		check(t, string(b), func(left int) int { return 1 + r.IntN(left) })
	})
}

func BenchmarkFollowSmallFrames(b *testing.B) {
	stream := []byte(strings.Repeat(frame(true, text, true, strings.Repeat("x", 50)), 100))
	b.SetBytes(int64(len(stream)))
	var f follower
	for b.Loop() {
		for at := 0; at < len(stream); {
			at += f.next(stream[at:])
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/frame")
}
