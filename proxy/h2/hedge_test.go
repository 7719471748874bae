package h2

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// rivalServer is an upstream that answers when it is told to.
type rivalServer struct {
	addr   string
	asked  chan string   // what it was sent
	answer chan string   // what it is to say; "" breaks the stream off
	ended  chan struct{} // the request was cancelled
}

func newRivalServer(t *testing.T) *rivalServer {
	s := &rivalServer{asked: make(chan string, 4), answer: make(chan string, 4), ended: make(chan struct{}, 4)}
	s.addr = start(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.asked <- r.Method + " " + r.RequestURI + " " + string(body) + " " + r.Trailer.Get("X-Sum")
		select {
		case text := <-s.answer:
			if text == "" {
				panic(http.ErrAbortHandler)
			}
			_, _ = io.WriteString(w, text)
		case <-r.Context().Done():
			s.ended <- struct{}{}
		}
	}), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 64 << 10}})
	return s
}

// hedgedStreams serves requests that are sent to first and, after a moment, to second.
func hedgedStreams(t *testing.T, first, second *rivalServer, deadline time.Duration, dialing <-chan struct{}) *proxy {
	return startProxy(t, first.addr, func(p *proxy) {
		p.handler = func(x *Exchange) {
			up, err := p.take(first.addr)
			if err != nil {
				t.Error(err)
				return
			}
			by := time.Time{}
			if deadline > 0 {
				by = time.Now().Add(deadline)
			}
			other := func() func() (*Upstream, error) {
				if second == nil {
					return nil
				}
				return func() (*Upstream, error) {
					if dialing != nil {
						p.l.Block(func() { <-dialing })
					}
					return p.take(second.addr)
				}
			}
			_, won, err := x.RoundTripHedged(up, by, 10*time.Millisecond, other)
			if err != nil {
				_ = x.Reply(p.note(err).Status, nil)
				return
			}
			p.note(x.Relay(won))
			_ = won.Close()
		}
	})
}

func TestTheFirstHeadWins(t *testing.T) {
	for name, c := range map[string]struct {
		play   func(first, second *rivalServer)
		status int
		body   string
		loser  int // 1 or 2: whose stream is reset; 0 is none
	}{
		"the second":                      {func(_, second *rivalServer) { second.answer <- "2" }, 200, "2", 1},
		"the first":                       {func(first, _ *rivalServer) { first.answer <- "1" }, 200, "1", 2},
		"the second, as the first breaks": {func(first, second *rivalServer) { first.answer <- ""; second.answer <- "2" }, 200, "2", 0},
		"the first, as the second breaks": {func(first, second *rivalServer) { second.answer <- ""; first.answer <- "1" }, 200, "1", 0},
		"neither, as both break":          {func(first, second *rivalServer) { second.answer <- ""; first.answer <- "" }, 502, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newRivalServer(t), newRivalServer(t)
			p := hedgedStreams(t, first, second, 0, nil)
			go func() {
				got, again := <-first.asked, <-second.asked
				if got != "POST /x abc " || again != got {
					t.Errorf("the first was sent %q, the second %q", got, again)
				}
				c.play(first, second)
			}()
			r, err := newClient(t).Do(newRequest(t, "POST", p.url()+"/x", strings.NewReader("abc")))
			if err != nil {
				t.Fatal(err)
			}
			if body := read(t, r); r.StatusCode != c.status || body != c.body {
				t.Errorf("%d %q", r.StatusCode, body)
			}
			switch c.loser {
			case 1:
				<-first.ended
			case 2:
				<-second.ended
			}
		})
	}
}

// The second gets all of a body that is larger than the windows, and its trailers.
func TestTheSecondGetsAllOfTheBody(t *testing.T) {
	first, second := newRivalServer(t), newRivalServer(t)
	p := hedgedStreams(t, first, second, 0, nil)
	body := strings.Repeat("0123456789", 6<<10)
	for range 3 {
		second.answer <- "ok"
		req := newRequest(t, "PUT", p.url()+"/x", struct{ io.Reader }{bytes.NewReader([]byte(body))})
		req.Trailer = http.Header{"X-Sum": {"7"}}
		r, err := newClient(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, r); r.StatusCode != 200 || got != "ok" {
			t.Errorf("%d %q", r.StatusCode, got)
		}
		if got := <-second.asked; got != "PUT /x "+body+" 7" {
			t.Errorf("the second was sent %d bytes, …%q", len(got), got[max(len(got)-10, 0):])
		}
		<-first.ended
	}
}

func TestNobodyWaitsForASecondThatIsDialled(t *testing.T) {
	first, second, dialing := newRivalServer(t), newRivalServer(t), make(chan struct{})
	p := hedgedStreams(t, first, second, 0, dialing)
	go func() { <-first.asked; time.AfterFunc(50*time.Millisecond, func() { first.answer <- "1" }) }()
	c := newClient(t)
	go func() { time.Sleep(100 * time.Millisecond); close(dialing) }() // Block holds up the loop's end, not the loop
	if got := get200(t, c, p.url()); got != "1" {
		t.Error(got)
	}
	<-dialing
	first.answer <- "2"
	if got := get200(t, c, p.url()); got != "2" {
		t.Error(got)
	}
	eventually(t, "no place taken on the connections", func() bool {
		open := 0
		on(p.l, func() {
			for _, pool := range p.pools {
				for _, k := range pool.links {
					open += k.open
				}
			}
		})
		return open == 0
	})
}

func TestTheDeadlineEndsBothStreams(t *testing.T) {
	first, second := newRivalServer(t), newRivalServer(t)
	p := hedgedStreams(t, first, second, 200*time.Millisecond, nil)
	r, err := newClient(t).Get(p.url())
	if err != nil || r.StatusCode != 504 {
		t.Fatalf("%+v %v", r, err)
	}
	<-first.ended
	<-second.ended
}

func TestWithoutASecondTheFirstStreamIsWaitedFor(t *testing.T) {
	first := newRivalServer(t)
	p := hedgedStreams(t, first, nil, 0, nil)
	go func() { <-first.asked; time.AfterFunc(50*time.Millisecond, func() { first.answer <- "1" }) }()
	if got := get200(t, newClient(t), p.url()); got != "1" {
		t.Error(got)
	}
	// Nor is there one for a request that has not all come.
	second := newRivalServer(t)
	p = hedgedStreams(t, first, second, 0, nil)
	in, out := io.Pipe()
	go func() {
		_, _ = io.WriteString(out, "half")
		time.Sleep(100 * time.Millisecond) // past the time of the hedge
		_, _ = io.WriteString(out, "half")
		_ = out.Close()
		first.answer <- "whole"
	}()
	r, err := newClient(t).Do(newRequest(t, "PUT", p.url(), in))
	if err != nil || read(t, r) != "whole" || len(second.asked) != 0 {
		t.Errorf("%v, %d at the second", err, len(second.asked))
	}
}
