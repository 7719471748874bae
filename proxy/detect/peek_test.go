package detect

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestHTTPByteByByteIsHTTP(t *testing.T) {
	r := start(t)
	client, c := r.pair(t)
	k := r.peek(t, client, c, Config{Deadline: time.Now().Add(patience)})
	const first, rest = "DELETE /", "a HTTP/1.1\r\n\r\n"
	for i := range len(first) {
		k.wantParked(t)
		say(t, client, first[i:i+1])
		k.wantTaken(t, 1)
	}
	p := k.wait(t)
	p.is(t, HTTP1, Decided)
	if p.bytes != first {
		t.Errorf("got %q", p.bytes)
	}
	say(t, client, rest)
	client.Close()
	k.wantStream(t, p, first+rest)
}

func TestAHelloLargerThanTheFirstReadIsReadOn(t *testing.T) {
	protocols := []string{MeshALPN}
	for range 60 {
		protocols = append(protocols, strings.Repeat("x", 100))
	}
	hello := string(realHello(t, &tls.Config{NextProtos: protocols}))
	if len(hello) < 2*firstRead {
		t.Fatalf("the hello has only %d bytes", len(hello))
	}
	r := start(t)
	for _, size := range []int{len(hello), firstRead, firstRead - 1, 1000} {
		client, c := r.pair(t)
		k := r.peek(t, client, c, Config{})
		rest := hello
		for len(rest) > size {
			say(t, client, rest[:size])
			k.wantTaken(t, size)
			k.wantParked(t)
			rest = rest[size:]
		}
		say(t, client, rest+"more")
		client.Close()
		p := k.wait(t)
		if p.is(t, TLS, Decided); !p.Mesh() {
			t.Error("not of the mesh")
		}
		k.wantStream(t, p, hello+"more")
	}
}

// The handshake works with the bytes that were peeked and those that follow.
func TestTLSRunsOverWhatWasPeekedAndWhatFollows(t *testing.T) {
	r := start(t)
	client, c := r.pair(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{MeshALPN}}).Handshake()
	}()
	k := r.peek(t, client, c, Config{})
	p := k.wait(t)
	if p.is(t, TLS, Decided); !p.Mesh() {
		t.Error("not of the mesh")
	}
	r.do(func() {
		var alpn []string
		seen := errors.New("seen")
		all := &oneWay{Reader: io.MultiReader(strings.NewReader(p.bytes), c)}
		err := tls.Server(all, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			alpn = h.SupportedProtos
			return nil, seen
		}}).Handshake()
		if !errors.Is(err, seen) || len(alpn) != 1 || alpn[0] != MeshALPN {
			t.Errorf("the server saw %v, %v", alpn, err)
		}
		c.Close()
	})
	<-ended
}

func TestASilentClientIsOpaqueAtTheDeadline(t *testing.T) {
	r := start(t)
	client, c := r.pair(t)
	deadline := time.Now().Add(20 * time.Millisecond)
	k := r.peek(t, client, c, Config{Deadline: deadline})
	k.wait(t).is(t, Opaque, Silent)
	if time.Now().Before(deadline) {
		t.Error("it ended before the deadline")
	}
	var got []byte
	var err error
	var reading *loop.Join
	r.do(func() {
		reading = r.Spawn(func() { got, err = io.ReadAll(c) })
		if r.Yield(); reading.Ended() { // a read that has to wait meets what is left of a deadline
			t.Errorf("the next read does not wait: %v", err)
		}
	})
	say(t, client, "late")
	client.Close()
	if r.do(reading.Wait); string(got) != "late" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestHalfAHelloAtTheDeadline(t *testing.T) {
	hello := string(realHello(t, &tls.Config{NextProtos: []string{MeshALPN}}))
	r := start(t)
	client, c := r.pair(t)
	say(t, client, hello[:100])
	r.arrived(t, c, unix.POLLIN)
	k := r.peek(t, client, c, Config{Deadline: time.Now().Add(20 * time.Millisecond)})
	p := k.wait(t)
	if p.is(t, TLS, Incomplete); p.Mesh() || p.bytes != hello[:100] {
		t.Errorf("got %d bytes, mesh %v", len(p.bytes), p.Mesh())
	}
	say(t, client, hello[100:])
	client.Close()
	k.wantStream(t, p, hello)
}

// What is there counts, however late it is looked at, and a deadline from before
// does not.
func TestADeadlineThatPassed(t *testing.T) {
	r := start(t)
	for said, want := range map[string]Outcome{"": Silent, "GE": Incomplete, "GET / HTTP/1.1\r\n": Decided} {
		client, c := r.pair(t)
		if say(t, client, said); said != "" {
			r.arrived(t, c, unix.POLLIN)
		}
		k := r.peek(t, client, c, Config{Deadline: time.Unix(1, 0)})
		p := k.wait(t)
		if p.Outcome != want || p.bytes != said || p.err != nil {
			t.Errorf("%q: got %+v", said, p)
		}
		client.Close()
		k.wantStream(t, p, said)
	}
	client, c := r.pair(t)
	r.do(func() { c.SetReadDeadline(time.Unix(1, 0)) })
	k := r.peek(t, client, c, Config{})
	k.wantParked(t)
	say(t, client, "GET / HTTP/1.1\r\n")
	k.wait(t).is(t, HTTP1, Decided)
}

// MySQL, SMTP, SSH: the server speaks first and the client waits for it.
func TestTheServerSpeaksFirst(t *testing.T) {
	r := start(t)
	for said, want := range map[string]Outcome{"": OtherSpoke, "G": Incomplete} {
		client, c := r.pair(t)
		enough := false
		k := r.peek(t, client, c, Config{Deadline: time.Now().Add(patience), Enough: func() bool { return enough }})
		say(t, client, said)
		k.wantTaken(t, len(said))
		k.wantParked(t)
		k.interrupt(&enough)
		p := k.wait(t)
		p.is(t, Opaque, want)
		say(t, client, "login")
		client.Close()
		k.wantStream(t, p, said+"login")
	}
}

func TestTheServerSpokeBeforePeekWasCalled(t *testing.T) {
	r := start(t)
	spoke := Config{Enough: func() bool { return true }}
	client, c := r.pair(t)
	r.peek(t, client, c, spoke).wait(t).is(t, Opaque, OtherSpoke)

	client, c = r.pair(t)
	say(t, client, "GET / HTTP/1.1\r\n") // bytes that are enough count more
	r.arrived(t, c, unix.POLLIN)
	r.peek(t, client, c, spoke).wait(t).is(t, HTTP1, Decided)
}

func TestAWakeThatMeansNothingIsSleptThrough(t *testing.T) {
	r := start(t)
	client, c := r.pair(t)
	asked := 0
	k := r.peek(t, client, c, Config{
		Deadline: time.Now().Add(patience),
		Enough:   func() bool { asked++; return false },
	})
	for range 3 {
		r.Post(c.Wake)
		k.wantParked(t)
	}
	r.do(func() {
		if asked != 4 {
			t.Errorf("Enough was asked %d times", asked)
		}
	})
	say(t, client, "GET / HTTP/1.1\r\n")
	k.wait(t).is(t, HTTP1, Decided)
}

func TestTheClientEndsItsStream(t *testing.T) {
	hello := realHello(t, &tls.Config{NextProtos: []string{MeshALPN}})
	r := start(t)
	for _, tc := range []struct {
		said    string
		kind    Kind
		outcome Outcome
	}{
		{"", Opaque, Ended},
		{"GE", Opaque, Incomplete},
		{"bye\r\n", Opaque, Decided},
		{"GET / HTTP/1.1\r\n", HTTP1, Decided},
		{string(hello[:100]), TLS, Incomplete},
	} {
		client, c := r.pair(t) // the end comes with the bytes
		say(t, client, tc.said)
		client.CloseWrite()
		r.arrived(t, c, unix.POLLRDHUP)
		k := r.peek(t, client, c, Config{})
		p := k.wait(t)
		p.is(t, tc.kind, tc.outcome)
		k.wantStream(t, p, tc.said)

		client, c = r.pair(t) // the end comes later
		k = r.peek(t, client, c, Config{})
		say(t, client, tc.said)
		if k.wantTaken(t, len(tc.said)); tc.outcome != Decided {
			k.wantParked(t)
		}
		client.CloseWrite()
		p = k.wait(t)
		p.is(t, tc.kind, tc.outcome)
		k.wantStream(t, p, tc.said)
	}
}

func TestTheClientResets(t *testing.T) {
	r := start(t)
	for said, want := range map[string]Outcome{"": Silent, "GE": Incomplete} {
		client, c := r.pair(t)
		k := r.peek(t, client, c, Config{Deadline: time.Now().Add(patience)})
		say(t, client, said)
		k.wantTaken(t, len(said))
		k.wantParked(t)
		client.SetLinger(0)
		client.Close()
		p := k.wait(t)
		if !errors.Is(p.err, unix.ECONNRESET) || p.Outcome != want || p.bytes != said {
			t.Errorf("%q: got %+v", said, p)
		}
	}
	client, c := r.pair(t) // before Peek looks
	client.SetLinger(0)
	client.Close()
	r.arrived(t, c, unix.POLLRDHUP)
	if p := r.peek(t, client, c, Config{}).wait(t); !errors.Is(p.err, unix.ECONNRESET) || p.Outcome != Silent {
		t.Errorf("got %+v", p)
	}
}

func TestTheStreamIsClosedUnderPeek(t *testing.T) {
	for name, end := range map[string]func(r *rig, c *loop.Conn){
		"alone":         func(r *rig, c *loop.Conn) { r.do(func() { c.Close() }) },
		"with the loop": func(r *rig, _ *loop.Conn) { r.Close() },
	} {
		for said, want := range map[string]Outcome{"": Silent, "GE": Incomplete} {
			t.Run(fmt.Sprintf("%s after %q", name, said), func(t *testing.T) {
				r := start(t)
				client, c := r.pair(t)
				k := r.peek(t, client, c, Config{Deadline: time.Now().Add(time.Hour)})
				say(t, client, said)
				k.wantTaken(t, len(said))
				k.wantParked(t)
				end(r, c)
				p := k.wait(t)
				if !errors.Is(p.err, net.ErrClosed) || p.Outcome != want || p.bytes != said {
					t.Errorf("got %+v", p)
				}
			})
		}
	}
}

// An interrupt at the very moment at which bytes come loses none of them, and
// leaves no deadline behind.
func TestInterruptsRaceWithBytes(t *testing.T) {
	r := start(t)
	for i := range 200 {
		client, c := r.pair(t)
		enough := false
		cfg := Config{Deadline: time.Now().Add(patience), Enough: func() bool { return enough }}
		if i%2 == 0 {
			cfg.Deadline = time.Now().Add(time.Duration(i) * 10 * time.Microsecond)
		}
		k := r.peek(t, client, c, cfg)
		if i%2 == 1 {
			go k.interrupt(&enough)
		}
		say(t, client, "GE")
		p := k.wait(t)
		if p.Outcome == Decided || p.Outcome == Ended || p.err != nil || (p.Outcome == Incomplete) != (p.bytes != "") {
			t.Errorf("got %+v", p)
		}
		say(t, client, "T / HTTP/1.1\r\n")
		client.Close()
		k.wantStream(t, p, "GET / HTTP/1.1\r\n")
	}
}

func TestNothingIsReadBeyondMaxBytes(t *testing.T) {
	sent := "\x16\x03\x01\x40\x00\x01\x00\xff\xff" + strings.Repeat("x", 3*MaxBytes) // a hello that does not end
	r := start(t)
	client, c := r.pair(t)
	k := r.peek(t, client, c, Config{})
	say(t, client, sent)
	client.Close()
	p := k.wait(t)
	if p.is(t, TLS, Decided); len(p.bytes) != MaxBytes || p.Hello != nil {
		t.Errorf("%d bytes were taken, hello %+v", len(p.bytes), p.Hello)
	}
	k.wantStream(t, p, sent)
}
