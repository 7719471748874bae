package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	peerpack "golang.org/x/net/http2/hpack"
)

func TestFieldsAreChangedBothWays(t *testing.T) {
	var got http.Header
	var host, path string
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		got, host, path = r.Header, r.Host, r.URL.Path
		w.Header().Set("X-Secret", "1")
		w.Header().Set("X-Kept", "1")
		w.Header().Set("Trailer", "X-Secret-Tail")
		io.WriteString(w, "x")
		w.Header().Set("X-Secret-Tail", "1")
	})
	p := startProxy(t, up, func(p *proxy) {
		p.handler = func(x *Exchange) {
			x.Set("X-Source-Service", "web")
			x.Set("x-source-service", "shop") // the last one counts
			x.Add("X-Added", "a")
			x.Add("X-Added", "b")
			x.Del("X-Forged", "Cookie")
			x.Set("Host", "orders.shop")
			x.SetTarget("/other")
			x.SetResponse("X-Request-ID", "17")
			x.AddResponse("Vary", "x")
			x.DelResponse("X-Secret", "X-Secret-Tail")
			p.forward(x, p.upstream)
		}
	})
	c := client(t, p.addr())
	c.head(1, true, get2("x-forged", "1", "cookie", "a=1", "cookie", "b=2", "x-source-service", "forged", "x-kept", "1")...)
	h := expect[*http2.MetaHeadersFrame](c)
	if s := fmt.Sprint(h.Fields); strings.Contains(s, "secret") && !strings.Contains(s, `"x-secret-tail"`) || !strings.Contains(s, `"x-request-id" = "17"`) || !strings.Contains(s, "x-kept") {
		t.Errorf("%s", s)
	}
	if d := expect[*http2.DataFrame](c); d.StreamEnded() {
		t.Error("ended with DATA")
	}
	if d := expect[*http2.DataFrame](c); !d.StreamEnded() || len(d.Data()) != 0 {
		t.Error("a trailer section of which nothing is left is no frame")
	}
	if host != "orders.shop" || path != "/other" || got.Get("X-Source-Service") != "shop" || len(got["X-Source-Service"]) != 1 ||
		len(got["X-Added"]) != 2 || got.Get("X-Forged") != "" || got.Get("Cookie") != "" || got.Get("X-Kept") != "1" {
		t.Errorf("%s %s %v", host, path, got)
	}
}

func TestCookieCrumbsStayAsTheyAre(t *testing.T) {
	block := make(chan string, 1)
	up := rawUpstream(t, func(r *raw, n int) {
		r.WriteSettings()
		for {
			f, err := r.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := f.(*http2.MetaHeadersFrame); ok {
				block <- fmt.Sprint(h.Fields)
				r.ok(h.StreamID)
			}
		}
	})
	p := startProxy(t, up, nil)
	c := client(t, p.addr())
	c.head(1, true, get2("cookie", "a=1", "cookie", "b=2", "te", "trailers")...)
	c.answer(1)
	if s := <-block; strings.Count(s, `"cookie"`) != 2 || !strings.Contains(s, `"te" = "trailers"`) || !strings.Contains(s, `":authority" = "orders.shop"`) {
		t.Errorf("%s", s)
	}
}

// What would break the framing, or a reader behind a proxy of HTTP/1.1, is refused
// before anything is sent.
func TestChangesThatAreRefused(t *testing.T) {
	for name, change := range map[string]func(x *Exchange){
		"a line break":      func(x *Exchange) { x.Set("X-A", "1\r\nX-B: 2") },
		"a name":            func(x *Exchange) { x.Set("X A", "1") },
		"an empty name":     func(x *Exchange) { x.Set("", "1") },
		"a pseudo-header":   func(x *Exchange) { x.Set(":path", "/") },
		"content-length":    func(x *Exchange) { x.Set("Content-Length", "1") },
		"transfer-encoding": func(x *Exchange) { x.Add("Transfer-Encoding", "chunked") },
		"connection":        func(x *Exchange) { x.Set("Connection", "close") },
		"a second host":     func(x *Exchange) { x.Add("Host", "a") },
		"a host":            func(x *Exchange) { x.Set("Host", "a/b") },
		"a target":          func(x *Exchange) { x.SetTarget("http://a/") },
		"a target's space":  func(x *Exchange) { x.SetTarget("/a b") },
	} {
		p := startProxy(t, backend(t, func(w http.ResponseWriter, r *http.Request) { t.Error(name, "was sent") }), nil)
		p.handle(func(x *Exchange) { change(x); p.forward(x, p.upstream) })
		c := client(t, p.addr())
		c.head(1, true, get2()...)
		if status, _, _ := c.answer(1); status != "500" {
			t.Errorf("%s: %s", name, status)
		}
		if f := p.failed(1)[0]; f.Side != SideLocal {
			t.Errorf("%s: %v", name, f)
		}
	}
}

func TestReply(t *testing.T) {
	p := startProxy(t, "", nil)
	p.handle(func(x *Exchange) {
		x.SetResponse("X-Request-ID", "17")
		if err := x.Reply(429, []byte("slow down"), "Content-Type", "text/plain", "Weir-Error", "rate-limited"); err != nil {
			t.Error(err)
		}
		if err := x.Reply(200, nil); err == nil {
			t.Error("answered twice")
		}
	})
	c := newClient(t)
	r, err := c.Get(p.url())
	if err != nil {
		t.Fatal(err)
	}
	if body := read(t, r); r.StatusCode != 429 || body != "slow down" || r.Header.Get("Content-Length") != "9" || r.Header.Get("Weir-Error") != "rate-limited" ||
		r.Header.Get("X-Request-Id") != "17" || r.Header.Get("Date") == "" {
		t.Errorf("%q %v", body, r)
	}
	if r, err = c.Head(p.url()); err != nil || r.StatusCode != 429 || r.ContentLength != 9 || read(t, r) != "" {
		t.Errorf("HEAD: %v %v", r, err)
	}
	p.handle(func(x *Exchange) { _ = x.Reply(204, nil) })
	if r, err = c.Get(p.url()); err != nil || r.StatusCode != 204 || r.Header.Get("Content-Length") != "" {
		t.Errorf("204: %v %v", r, err)
	}
	big := bytes.Repeat([]byte("b"), 3<<20)
	p.handle(func(x *Exchange) { _ = x.Reply(200, big) })
	if got := get200(t, c, p.url()); got != string(big) {
		t.Errorf("%d bytes", len(got))
	}
	p.handle(func(x *Exchange) {
		for _, err := range []error{x.Reply(100, nil), x.Reply(200, nil, "odd"), x.Reply(200, nil, "X", "\n")} {
			var e *Error
			if !errors.As(err, &e) || e.Side != SideLocal {
				t.Errorf("%v", err)
			}
		}
		_ = x.Reply(200, nil)
	})
	get200(t, c, p.url())
}

func TestHeadRequestsHaveNoBody(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "12345") })
	p := startProxy(t, up, nil)
	r, err := newClient(t).Head(p.url())
	if err != nil || r.ContentLength != 12345 || read(t, r) != "" {
		t.Errorf("%v %v", r, err)
	}
}

// A handler that gives no answer resets its stream, one that panics its connection;
// neither is the end of others.
func TestHandlersThatDoNotAnswer(t *testing.T) {
	panicked := make(chan any, 10)
	p := startProxy(t, "", func(p *proxy) { p.panics = func(v any, _ []byte) { panicked <- v } })
	p.handle(func(x *Exchange) {})
	c := client(t, p.addr())
	c.head(1, true, get2()...)
	c.wantReset(1, http2.ErrCodeInternal)
	p.handle(func(x *Exchange) { x.ResetStream(EnhanceYourCalm) })
	c.head(3, true, get2()...)
	c.wantReset(3, http2.ErrCodeEnhanceYourCalm)
	c.serves2(p, 5)
	p.handle(func(x *Exchange) { panic("oh") })
	for i := range 3 {
		_ = c.tryHead(uint32(7+2*i), true, get2()...) // the first may be the end already
	}
	if v := <-panicked; v != "oh" {
		t.Errorf("%v", v)
	}
	p.served(1)
	other := client(t, p.addr())
	other.serves2(p, 1)
}

// A response that nobody relays is dropped, and its stream cancelled.
func TestAResponseThatIsDropped(t *testing.T) {
	ended := make(chan bool, 10)
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { endless(w, r); ended <- true })
	p := startProxy(t, up, nil)
	for name, after := range map[string]func(x *Exchange, up *Upstream){
		"discarded": func(x *Exchange, up *Upstream) {
			x.Discard(up)
			p.pool(p.upstream).Put(p.l.Now(), up)
			_ = x.Reply(503, nil)
		},
		"replied":   func(x *Exchange, up *Upstream) { _ = x.Reply(503, nil); p.pool(p.upstream).Put(p.l.Now(), up) },
		"grpc":      func(x *Exchange, up *Upstream) { _ = x.ReplyGRPC(14, ""); p.pool(p.upstream).Put(p.l.Now(), up) },
		"reset":     func(x *Exchange, up *Upstream) { x.ResetStream(Cancel) },
		"forgotten": func(x *Exchange, up *Upstream) {},
	} {
		p.handle(func(x *Exchange) {
			up, err := p.take(p.upstream)
			if err == nil {
				_, err = x.RoundTrip(up, time.Time{})
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			after(x, up)
		})
		c := client(t, p.addr())
		c.head(1, true, get2()...)
		c.answer(1)
		<-ended
	}
	on(p.l, func() {
		for _, k := range p.pool(up).links {
			if k.open != 0 || k.streams.count != 0 {
				t.Errorf("%d places, %d streams are left", k.open, k.streams.count)
			}
		}
	})
}

// A request may be sent again while all of its body is kept.
func TestARetryRepeatsTheBody(t *testing.T) {
	var bodies []string
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		bodies = append(bodies, fmt.Sprint(len(b), r.Trailer))
		if len(bodies) < 3 {
			w.WriteHeader(503)
		}
		w.Write(b)
	})
	p := startProxy(t, up, nil)
	retry := func(x *Exchange) {
		for {
			up, err := p.take(p.upstream)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := x.RoundTrip(up, time.Time{})
			if err != nil {
				p.note(err)
				return
			}
			if resp.Status == 503 && x.CanRetry() {
				x.Discard(up)
				p.pool(p.upstream).Put(p.l.Now(), up)
				continue
			}
			_ = x.Relay(up)
			p.pool(p.upstream).Put(p.l.Now(), up)
			return
		}
	}
	p.handle(retry)
	c := newClient(t)
	for _, cs := range []struct{ size, tries, status int }{{0, 3, 200}, {10, 3, 200}, {40000, 3, 200}, {65536, 3, 200}, {70000, 1, 503}, {1 << 20, 1, 503}} {
		bodies = nil
		body := strings.Repeat("r", cs.size)
		req := newRequest(t, "POST", p.url(), io.MultiReader(strings.NewReader(body)))
		req.Trailer = http.Header{"X-T": {"1"}}
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, r); r.StatusCode != cs.status || got != body || len(bodies) != cs.tries {
			t.Errorf("%d bytes: %s, %d bytes, tries %v", cs.size, r.Status, len(got), bodies)
		}
	}
}

func TestRoundTripAfterTheBodyIsGone(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	p := startProxy(t, up, func(p *proxy) { p.cfg.ReplayBytes = -1 })
	p.handle(func(x *Exchange) {
		for i := range 2 {
			up, err := p.take(p.upstream)
			if err != nil {
				t.Error(err)
			}
			_, err = x.RoundTrip(up, time.Time{})
			if (err == nil) != (i == 0) || err != nil && !errors.Is(err, ErrNoReplay) {
				t.Errorf("%d: %v", i, err)
			}
			if err == nil {
				x.Discard(up)
				p.pool(p.upstream).Put(p.l.Now(), up)
			}
		}
		_ = x.Reply(200, nil)
	})
	r, err := newClient(t).Post(p.url(), "", strings.NewReader("body"))
	if err != nil || r.StatusCode != 200 {
		t.Errorf("%v %v", r, err)
	}
}

// Draining: requests at hand finish, those that cross the first GOAWAY on their way
// are served, and the connection ends.
func TestDrain(t *testing.T) {
	hold := make(chan struct{})
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			<-hold
		}
		io.WriteString(w, "done")
	})
	p := startProxy(t, up, nil)
	c := client(t, p.addr())
	c.head(1, true, get2()...)
	eventually(t, "the request", func() bool { return p.active() == 1 })
	p.drain()
	g := expect[*http2.GoAwayFrame](c)
	ping := expect[*http2.PingFrame](c)
	if g.LastStreamID != 1<<31-1 || g.ErrCode != http2.ErrCodeNo {
		t.Errorf("%v", g)
	}
	crossed := get2()
	crossed[7] = "/crossed"
	c.head(3, true, crossed...) // was on its way
	if status, _, _ := c.answer(3); status != "200" {
		t.Errorf("%s", status)
	}
	c.check(c.WritePing(true, ping.Data))
	if g = expect[*http2.GoAwayFrame](c); g.LastStreamID != 3 {
		t.Errorf("%v", g)
	}
	c.head(5, true, crossed...) // is not looked at
	c.check(c.WriteData(5, true, nil))
	close(hold)
	if status, body, _ := c.answer(1); status != "200" || body != "done" {
		t.Errorf("%s %s", status, body)
	}
	c.wantEnd()
	if err := p.served(1)[0]; err != nil {
		t.Errorf("%v", err)
	}
}

// A connection whose only request has lasted for longer than one may be idle is not
// taken for idle when it is drained.
func TestDrainDuringALongRequest(t *testing.T) {
	const idle = 300 * time.Millisecond
	hold := make(chan struct{})
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { <-hold; io.WriteString(w, "done") })
	p := startProxy(t, up, func(p *proxy) { p.cfg.IdleTimeout = idle })
	c := client(t, p.addr())
	c.head(1, true, get2()...)
	eventually(t, "the request", func() bool { return p.active() == 1 })
	time.Sleep(2 * idle) // so long the request lasts
	p.drain()
	expect[*http2.GoAwayFrame](c)
	ping := expect[*http2.PingFrame](c)
	c.check(c.WritePing(true, ping.Data))
	expect[*http2.GoAwayFrame](c)
	close(hold)
	if status, body, _ := c.answer(1); status != "200" || body != "done" {
		t.Errorf("%s %s", status, body)
	}
	c.wantEnd()
}

func TestDrainOfAnIdleConnection(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) { p.handler = always("x") })
	polite, mute := client(t, p.addr()), client(t, p.addr())
	polite.serves(1)
	mute.serves(1)
	p.drain()
	expect[*http2.GoAwayFrame](polite)
	ping := expect[*http2.PingFrame](polite)
	polite.check(polite.WritePing(true, ping.Data))
	polite.wantEnd()
	mute.wantEnd() // it does not answer, and is told after a second
	for _, err := range p.served(2) {
		if err != nil {
			t.Errorf("%v", err)
		}
	}
}

// A connection that was drained before its first request serves that yet.
func TestDrainBeforeTheFirstRequest(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) { p.handler = always("x") })
	c := client(t, p.addr())
	eventually(t, "the connection", func() bool {
		n := 0
		on(p.l, func() { n = len(p.conns) })
		return n == 1
	})
	p.drain()
	expect[*http2.GoAwayFrame](c)
	ping := expect[*http2.PingFrame](c)
	c.check(c.WritePing(true, ping.Data))
	c.head(1, true, get2()...)
	if status, _, _ := c.answer(1); status != "200" {
		t.Errorf("%s", status)
	}
	c.wantEnd()
}

func TestCloseAfter(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) { p.handler = func(x *Exchange) { x.CloseAfter(); _ = x.Reply(200, nil) } })
	c := newClient(t)
	get200(t, c, p.url())
	get200(t, c, p.url())
	p.served(1)
	q := startProxy(t, "", func(p *proxy) { p.handler = always("x") })
	d := client(t, q.addr())
	d.serves(1)
	on(q.l, func() {
		for c := range q.conns {
			c.Drain()
		}
	})
	expect[*http2.GoAwayFrame](d)
}

// net/http takes the hint, and loses no request while connections are drained again
// and again.
func TestNoRequestIsLostByDraining(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	p := startProxy(t, up, nil)
	c := newClient(t)
	stop, done := make(chan struct{}), make(chan error, 8)
	for range 8 {
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				r, err := c.Get(p.url())
				if err != nil {
					done <- fmt.Errorf("request %d: %w", i, err)
					return
				}
				r.Body.Close()
			}
		}()
	}
	for range 30 {
		time.Sleep(5 * time.Millisecond) // the pace of the drains
		on(p.l, func() {
			for c := range p.conns {
				c.Drain()
			}
		})
	}
	close(stop)
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestTheRequestAsItIsSeen(t *testing.T) {
	p := startProxy(t, "", nil)
	p.handle(func(x *Exchange) {
		v, ok := x.Get("X-ONE")
		_, no := x.Get("x-two")
		var all []string
		for name, value := range x.All() {
			all = append(all, name+"="+value)
		}
		if x.Method() != "POST" || x.Target() != "/a?b" || x.Path() != "/a" || x.Host() != "h:1" || x.Scheme() != "https" || v != "1" || !ok || no ||
			strings.Join(all, " ") != "x-one=1 content-type=application/grpc+proto" || !x.GRPC() || x.ContentLength() != -1 || x.Now().IsZero() || x.Sent() != 0 {
			t.Errorf("%s %s %s %s %s %s %v %v %v %d", x.Method(), x.Target(), x.Path(), x.Host(), x.Scheme(), v, ok, all, x.GRPC(), x.ContentLength())
		}
		_ = x.Reply(200, []byte("12"))
		if x.Received() != 2 {
			t.Errorf("%d received", x.Received())
		}
	})
	c := client(t, p.addr())
	c.head(1, false, ":method", "POST", ":scheme", "https", ":path", "/a?b", ":authority", "h:1", "x-one", "1", "content-type", "application/grpc+proto")
	c.answer(1)
	for ctype, want := range map[string]bool{"application/grpc": true, "application/grpc;x": true, "application/grpc-web": false, "text/plain": false} {
		m := message{ctype: ctype}
		if m.GRPC() != want {
			t.Errorf("%s: %v", ctype, !want)
		}
	}
}

// What was read of a connection before, to find out what it speaks, comes first.
func TestWhatWasPeekedComesFirst(t *testing.T) {
	for _, n := range []int{1, 24, 30, 50} {
		p := startProxy(t, "", func(p *proxy) { p.peek = n; p.handler = always("x") })
		c := dialRaw(t, p.addr())
		block := c.fields(get2()...)
		c.bytes(preface + string(appendHeader(nil, 0, frameSettings, 0, 0)) + string(appendHeader(nil, len(block), frameHeaders, flagEndHeaders|flagEndStream, 1)) + string(block))
		if status, body, _ := c.answer(1); status != "200" || body != "x" {
			t.Errorf("%d bytes: %s %s", n, status, body)
		}
		c.serves(3)
	}
	p := startProxy(t, "", func(p *proxy) { p.peek = bufferSize + 1 })
	c := dialRaw(t, p.addr())
	c.bytes(strings.Repeat("x", bufferSize+1))
	if err := p.served(1)[0]; !errors.Is(err, errPeeked) {
		t.Errorf("more than a buffer: %v", err)
	}
}

// More requests than were allowed are refused, which says that they may be sent again;
// those at hand go on.
func TestMoreStreamsThanAllowedAreRefused(t *testing.T) {
	hold := make(chan struct{})
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { <-hold })
	p := startProxy(t, up, func(p *proxy) { p.cfg.MaxStreams = 3 })
	c := client(t, p.addr())
	for i := range 4 {
		c.head(uint32(2*i+1), true, get2()...)
	}
	c.wantReset(7, http2.ErrCodeRefusedStream)
	close(hold)
	for range 3 {
		if h := expect[*http2.MetaHeadersFrame](c); h.PseudoValue("status") != "200" {
			t.Errorf("%v", h.Fields)
		}
	}
}

// An answer before the end of its request is whole, and the rest is not wanted.
func TestAReplyBeforeTheEndOfTheRequest(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) { p.handler = always("no") })
	c := client(t, p.addr())
	c.head(1, false, post()...)
	if status, body, _ := c.answer(1); status != "200" || body != "no" {
		t.Errorf("%s %s", status, body)
	}
	c.wantReset(1, http2.ErrCodeNo)
	c.check(c.WriteData(1, false, []byte("was under way")))
	c.serves(3)
}

// A peer without a table gets none.
func TestThePeersTableSizeIsRespected(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) {
		p.handler = func(x *Exchange) { _ = x.Reply(200, nil, "X-Always", "the same value") }
	})
	c := client(t, p.addr(), http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	d := peerpack.NewDecoder(4096, nil)
	d.SetAllowedMaxDynamicTableSize(0)
	c.Framer.ReadMetaHeaders = d
	for i := range 5 {
		c.head(uint32(2*i+1), true, get2()...)
		if status, _, _ := c.answer(uint32(2*i + 1)); status != "200" {
			t.Errorf("%s", status)
		}
	}
}
