package detect

import (
	"crypto/tls"
	_ "embed"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A client that says what could become HTTP and then waits for an answer is not
// waited for until the deadline, nor for ever where there is none.
func TestAPauseEndsTheWaitForTheRest(t *testing.T) {
	r := start(t)
	client, c := r.pair(t)
	say(t, client, "G")
	r.arrived(t, c, unix.POLLIN)
	k := r.peek(t, client, c, Config{Pause: 20 * time.Millisecond})
	p := k.wait(t)
	p.is(t, Opaque, Incomplete)
	say(t, client, "ood")
	client.Close()
	k.wantStream(t, p, "Good")
}

// It begins with the first byte, not before: a client may be silent for long.
func TestAPauseIsNotASilence(t *testing.T) {
	r := start(t)
	client, c := r.pair(t)
	k := r.peek(t, client, c, Config{Pause: time.Nanosecond})
	k.interrupt(new(bool)) // an event long after the pause would have been over
	k.wantParked(t)
	say(t, client, "GET / HTTP/1.1\r\n")
	p := k.wait(t)
	p.is(t, HTTP1, Decided)
	client.Close()
	k.wantStream(t, p, "GET / HTTP/1.1\r\n")
}

// Each byte begins it anew, and the deadline ends it.
func TestAPauseIsCountedFromTheLastByte(t *testing.T) {
	r := start(t)
	client, c := r.pair(t)
	k := r.peek(t, client, c, Config{Pause: time.Hour, Deadline: time.Now().Add(2 * time.Hour)})
	var waits []time.Time
	for _, piece := range []string{"G", "E"} {
		say(t, client, piece)
		k.wantTaken(t, 1)
		r.do(func() { waits = append(waits, k.s.deadline) })
	}
	if !waits[1].After(waits[0]) {
		t.Errorf("it waits until %v, then until %v", waits[0], waits[1])
	}
	say(t, client, "T / HTTP/1.1\r\n")
	p := k.wait(t)
	p.is(t, HTTP1, Decided)
	client.Close()
	k.wantStream(t, p, "GET / HTTP/1.1\r\n")
}

//go:embed testdata/hello-ech.bin
var encryptedHello []byte // of crypto/tls, for the public name "data.default"; inside is secret.example.org

func TestAnEncryptedHelloIsToldFromOthers(t *testing.T) {
	for n := range len(encryptedHello) {
		if r, more := Classify(encryptedHello[:n]); !more || r.Hello != nil {
			t.Fatalf("%d bytes: %+v, more %v", n, r, more)
		}
	}
	r, more := Classify(encryptedHello)
	if more || r.Hello == nil || !r.Hello.Encrypted || r.Hello.ServerName != "data.default" || r.Mesh() {
		t.Errorf("got %+v, %+v", r, r.Hello)
	}
	r, _ = Classify(realHello(t, &tls.Config{ServerName: "data"}))
	if r.Hello == nil || r.Hello.Encrypted {
		t.Errorf("a plain hello is %+v", r.Hello)
	}
}
