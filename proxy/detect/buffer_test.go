package detect

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A connection on which nobody speaks costs next to nothing, however often it
// was woken for nothing.
func TestAWaitingPeekHoldsNoBuffer(t *testing.T) {
	r := start(t)
	client, c := r.pair(t)
	k := r.peek(t, client, c, Config{Deadline: time.Now().Add(time.Hour)})
	for range 2 {
		k.wantParked(t)
		buffer := k.s.buffer
		for range 5 { // a pool lets go at the second collection
			runtime.GC()
		}
		if buffer.Value() != nil {
			t.Error("the buffer is kept")
		}
		r.Post(c.Wake)
	}
	client.Close()
	k.wait(t).is(t, Opaque, Ended)
}

// Buffers are shared by one peek after another, never by two at once.
func TestManyPeeksAtOnceSeeTheirOwnBytes(t *testing.T) {
	r := start(t)
	var peeks []*peeking
	for range 50 {
		client, c := r.pair(t)
		peeks = append(peeks, r.peek(t, client, c, Config{}))
	}
	line := func(i int) string { return fmt.Sprintf("GET /%d HTTP/1.1\r\n", i) }
	for i, k := range peeks {
		say(t, k.client, line(i)[:2])
		k.wantTaken(t, 2)
	}
	for i, k := range peeks {
		say(t, k.client, line(i)[2:])
		k.client.Close()
	}
	for i, k := range peeks {
		p := k.wait(t)
		p.is(t, HTTP1, Decided)
		k.wantStream(t, p, line(i))
	}
}

func TestTheBytesStayUntilThenReturns(t *testing.T) {
	const line, other = "GET /mine HTTP/1.1\r\n", "PUT /other HTTP/1.1\r\n"
	r := start(t)
	client, c := r.pair(t)
	otherClient, otherC := r.pair(t)
	say(t, client, line)
	say(t, otherClient, other)
	r.arrived(t, c, unix.POLLIN)
	r.arrived(t, otherC, unix.POLLIN)
	var got, gotOther string
	r.do(func() {
		Peek(c, Config{}, func(_ Result, b []byte, _ error) {
			Peek(otherC, Config{}, func(_ Result, b []byte, _ error) { gotOther = string(b) })
			got = string(b)
		})
	})
	if got != line || gotOther != other {
		t.Errorf("got %q and %q", got, gotOther)
	}
}
