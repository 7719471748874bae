package h2

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weir-mesh/weir/proxy/loop"
)

// rawUpstream runs script on each connection that comes, after the preface.
func rawUpstream(t testing.TB, script func(c *raw, n int)) string {
	t.Helper()
	ln := listen(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Add(1)
	go func() {
		defer wg.Done()
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				if _, err := io.ReadFull(c, make([]byte, len(preface))); err == nil {
					script(newRaw(t, c), n)
				}
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			}()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// request reads until a request came, and gives its stream.
func (r *raw) request() (id uint32, ok bool) {
	for {
		f, err := r.ReadFrame()
		if err != nil {
			return 0, false
		}
		if h, is := f.(*http2.MetaHeadersFrame); is {
			return h.StreamID, true
		}
	}
}

// drainFrames reads until the connection ends.
func (r *raw) drainFrames() {
	for {
		if _, err := r.ReadFrame(); err != nil {
			return
		}
	}
}

func (r *raw) ok(id uint32) {
	_ = r.tryHead(id, false, ":status", "200")
	_ = r.WriteData(id, true, []byte("ok"))
}

// An answer that is malformed is none: the client gets 502, or its stream is reset
// where the head has gone on, and the upstream is told.
func TestMalformedResponses(t *testing.T) {
	for _, c := range []struct {
		what string
		send func(c *raw, id uint32)
		want string
	}{
		{"no status", func(c *raw, id uint32) { c.tryHead(id, true, "x", "1") }, "502"},
		{"two statuses", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "200", ":status", "200") }, "502"},
		{"a status of two digits", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "20") }, "502"},
		{"a status that is no number", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "2x0") }, "502"},
		{"status 101", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "101") }, "502"},
		{"an interim response that ends", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "103") }, "502"},
		{"a method", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "200", ":method", "GET") }, "502"},
		{"upper case", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "200", "X-A", "1") }, "502"},
		{"a line break", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "200", "x-a", "1\r\n2") }, "502"},
		{"connection", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "200", "connection", "close") }, "502"},
		{"a head that is too large", func(c *raw, id uint32) {
			c.tryHead(id, true, ":status", "200", "x-a", strings.Repeat("a", 9000))
		}, "502"},
		{"a body that is not announced", func(c *raw, id uint32) { c.tryHead(id, true, ":status", "200", "content-length", "3") }, "502"},
		{"a body that is too short", func(c *raw, id uint32) {
			c.tryHead(id, false, ":status", "200", "content-length", "3")
			c.WriteData(id, true, []byte("12"))
		}, "reset INTERNAL_ERROR"},
		{"a body that is too long", func(c *raw, id uint32) {
			c.tryHead(id, false, ":status", "200", "content-length", "3")
			c.WriteData(id, true, []byte("1234"))
		}, "reset INTERNAL_ERROR"},
		{"a body of 204", func(c *raw, id uint32) {
			c.tryHead(id, false, ":status", "204")
			c.WriteData(id, true, []byte("1"))
		}, "reset INTERNAL_ERROR"},
		{"trailers that do not end", func(c *raw, id uint32) {
			c.tryHead(id, false, ":status", "200")
			c.tryHead(id, false, "x", "1")
		}, "reset INTERNAL_ERROR"},
		{"trailers with a status", func(c *raw, id uint32) {
			c.tryHead(id, false, ":status", "200")
			c.tryHead(id, true, ":status", "200")
		}, "reset INTERNAL_ERROR"},
		{"too many interim responses", func(c *raw, id uint32) {
			for range 100 {
				c.tryHead(id, false, ":status", "103")
			}
		}, "502"},
	} {
		t.Run(c.what, func(t *testing.T) {
			told := make(chan string, 10)
			up := rawUpstream(t, func(r *raw, n int) {
				r.WriteSettings()
				id, ok := r.request()
				if !ok {
					return
				}
				c.send(r, id)
				for {
					f, err := r.ReadFrame()
					if err != nil {
						return
					}
					if f, ok := f.(*http2.RSTStreamFrame); ok {
						told <- f.ErrCode.String()
					}
				}
			})
			p := startProxy(t, up, func(p *proxy) { p.cfg.MaxHeadBytes = 8 << 10 })
			conn := client(t, p.addr())
			conn.head(1, true, get2()...)
			status, _, _ := conn.answer(1)
			if status != c.want && !strings.HasPrefix(c.want, "reset") || strings.HasPrefix(c.want, "reset") && status != c.want && status != "502" {
				t.Errorf("got %s, want %s", status, c.want)
			}
			if code := <-told; code != "PROTOCOL_ERROR" {
				t.Errorf("the upstream was told %s", code)
			}
			if f := p.failed(1)[0]; f.Side != SideUpstream {
				t.Errorf("%v", f)
			}
			conn.check(conn.WriteWindowUpdate(0, 1000))
			conn.serves2(p, 3)
		})
	}
}

// What an upstream surely did not look at may be sent again, whatever it is.
func TestRequestsThatWereNotLookedAtAreSentElsewhere(t *testing.T) {
	for name, refuse := range map[string]func(r *raw, id uint32){
		"refused":        func(r *raw, id uint32) { r.WriteRSTStream(id, http2.ErrCodeRefusedStream); r.drainFrames() },
		"going away":     func(r *raw, id uint32) { r.WriteGoAway(0, http2.ErrCodeNo, nil); r.drainFrames() },
		"away and gone":  func(r *raw, id uint32) { r.WriteGoAway(0, http2.ErrCodeNo, nil) },
		"away with code": func(r *raw, id uint32) { r.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			var mu sync.Mutex
			up := rawUpstream(t, func(r *raw, n int) {
				r.WriteSettings()
				for {
					id, ok := r.request()
					if !ok {
						return
					}
					mu.Lock()
					tries++
					first := tries == 1
					mu.Unlock()
					if first && name != "refused" {
						refuse(r, id)
						return
					} else if first {
						r.WriteRSTStream(id, http2.ErrCodeRefusedStream)
						continue
					}
					r.ok(id)
				}
			})
			p := startProxy(t, up, nil)
			c := client(t, p.addr())
			c.head(1, false, post()...)
			c.check(c.WriteData(1, true, []byte("once")))
			if status, body, _ := c.answer(1); status != "200" || body != "ok" {
				t.Errorf("%s %s", status, body)
			}
			f := p.failed(1)[0]
			if !f.Stale() || f.Sent {
				t.Errorf("%+v", f)
			}
		})
	}
}

// Streams up to the last of GOAWAY are answered yet.
func TestGoAwayLetsEarlierRequestsFinish(t *testing.T) {
	up := rawUpstream(t, func(r *raw, n int) {
		r.WriteSettings()
		id, ok := r.request()
		if !ok {
			return
		}
		if n == 0 {
			second, _ := r.request()
			r.WriteGoAway(id, http2.ErrCodeNo, nil)
			_ = second
		}
		r.ok(id)
		r.drainFrames()
	})
	p := startProxy(t, up, nil)
	c := client(t, p.addr())
	c.head(1, true, get2()...)
	c.head(3, true, get2()...)
	got := map[uint32]string{}
	for len(got) < 2 {
		switch f := c.next().(type) {
		case *http2.DataFrame:
			got[f.StreamID] = string(f.Data())
		case *http2.MetaHeadersFrame:
		default:
			t.Fatalf("%v", f)
		}
	}
	if p.dialsMade() != 2 {
		t.Errorf("%d connections", p.dialsMade())
	}
}

// An upstream that closes without a word: sent requests may have been seen.
func TestAnUpstreamThatGoesAwayWithoutAWord(t *testing.T) {
	for _, first := range []bool{true, false} {
		up := rawUpstream(t, func(r *raw, n int) {
			r.WriteSettings()
			if !first {
				id, _ := r.request()
				r.ok(id)
			}
			r.request()
		})
		p := startProxy(t, up, nil)
		c := client(t, p.addr())
		id := uint32(1)
		if !first {
			c.serves(1)
			id = 3
		}
		c.head(id, true, get2()...)
		if status, _, _ := c.answer(id); status != "502" {
			t.Errorf("%s", status)
		}
		f := p.failed(1)[0]
		if f.Side != SideUpstream || !f.Sent || f.Got || f.Reused == first || f.Stale() == first || !errors.Is(f, ErrTruncated) && !strings.Contains(f.Error(), "reset by peer") {
			t.Errorf("%+v", f)
		}
	}
}

// In mid-answer the client's stream is reset: with the upstream's code, if there is one.
func TestAnAnswerThatBreaksOff(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(r *raw, id uint32)
		want string
	}{
		"reset":  {func(r *raw, id uint32) { r.WriteRSTStream(id, http2.ErrCodeEnhanceYourCalm); r.drainFrames() }, "reset ENHANCE_YOUR_CALM"},
		"closed": {func(r *raw, id uint32) {}, "reset INTERNAL_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			up := rawUpstream(t, func(r *raw, n int) {
				r.WriteSettings()
				id, _ := r.request()
				_ = r.tryHead(id, false, ":status", "200")
				_ = r.WriteData(id, false, []byte("beginning"))
				_ = r.WritePing(false, [8]byte{})
				for {
					if f, err := r.ReadFrame(); err != nil || f.Header().Type == http2.FramePing {
						break
					}
				}
				c.end(r, id)
			})
			p := startProxy(t, up, nil)
			conn := client(t, p.addr())
			conn.head(1, true, get2()...)
			status, _, _ := conn.answer(1)
			if status != c.want && !(status == "502") {
				t.Errorf("got %s", status)
			}
			if f := p.failed(1)[0]; f.Side != SideUpstream || f.Step != ReadContent && f.Step != ReadResponse {
				t.Errorf("%v", f)
			}
		})
	}
}

// A whole answer is not spoilt by a reset that asks for no more of the request.
func TestAnAnswerThatIsWholeBeforeTheRequest(t *testing.T) {
	up := rawUpstream(t, func(r *raw, n int) {
		r.WriteSettings()
		id, _ := r.request()
		r.ok(id)
		r.WriteRSTStream(id, http2.ErrCodeNo)
		r.drainFrames()
	})
	p := startProxy(t, up, nil)
	c := client(t, p.addr())
	c.head(1, false, post()...)
	c.check(c.WriteData(1, false, []byte("part")))
	if status, body, _ := c.answer(1); status != "200" || body != "ok" {
		t.Errorf("%s %s", status, body)
	}
	c.wantReset(1, http2.ErrCodeNo)
	c.check(c.WriteData(1, true, []byte("under way")))
	c.serves2(p, 3)
}

// The client's code goes on to the upstream, but for those that complain about us.
func TestResetCodesGoUpstream(t *testing.T) {
	for from, want := range map[http2.ErrCode]http2.ErrCode{http2.ErrCodeCancel: http2.ErrCodeCancel, http2.ErrCodeInternal: http2.ErrCodeInternal, http2.ErrCodeFlowControl: http2.ErrCodeCancel} {
		got, here := make(chan http2.ErrCode, 1), make(chan bool, 1)
		up := rawUpstream(t, func(r *raw, n int) {
			r.WriteSettings()
			_, _ = r.request()
			here <- true
			for {
				f, err := r.ReadFrame()
				if err != nil {
					return
				}
				if f, ok := f.(*http2.RSTStreamFrame); ok {
					got <- f.ErrCode
				}
			}
		})
		p := startProxy(t, up, nil)
		c := client(t, p.addr())
		c.head(1, true, get2()...)
		<-here
		c.check(c.WriteRSTStream(1, from))
		if code := <-got; code != want {
			t.Errorf("%v became %v", from, code)
		}
	}
}

func TestInterimResponsesAreRelayed(t *testing.T) {
	up := rawUpstream(t, func(r *raw, n int) {
		r.WriteSettings()
		id, _ := r.request()
		r.tryHead(id, false, ":status", "100")
		r.tryHead(id, false, ":status", "103", "link", "</style.css>")
		r.tryHead(id, false, ":status", "103", "link", "</more.css>")
		r.ok(id)
		r.drainFrames()
	})
	p := startProxy(t, up, nil)
	c := client(t, p.addr())
	c.head(1, true, get2()...)
	for _, want := range []string{"100", "103", "103", "200"} {
		h := expect[*http2.MetaHeadersFrame](c)
		if h.PseudoValue("status") != want {
			t.Errorf("%v, want %s", h.Fields, want)
		}
	}
}

func TestTheUpstreamIsAskedWhetherItIsThere(t *testing.T) {
	asked := make(chan bool, 10)
	up := rawUpstream(t, func(r *raw, n int) {
		r.WriteSettings()
		r.request()
		for i := 0; ; {
			f, err := r.ReadFrame()
			if err != nil {
				return
			}
			if f, ok := f.(*http2.PingFrame); ok {
				asked <- true
				if i++; i < 3 { // and then not any more
					r.WritePing(true, f.Data)
				}
			}
		}
	})
	p := startProxy(t, up, func(p *proxy) {
		p.cfg = Config{KeepAlive: 20 * time.Millisecond, KeepAliveTimeout: 30 * time.Millisecond}
	})
	c := client(t, p.addr())
	c.head(1, true, get2()...)
	for range 3 {
		<-asked
	}
	if status, _, _ := c.answer(1); status != "502" && status != "504" {
		t.Errorf("%s", status)
	}
	if f := p.failed(1)[0]; f.Side != SideUpstream {
		t.Errorf("%v", f)
	}
}

// However many requests come while the first connection is being dialled, there is one.
func TestOneDialForManyRequests(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") })
	gate := make(chan struct{})
	p := startProxy(t, up, func(p *proxy) {
		dial := p.dial
		p.dial = func(addr string) (loop.Stream, error) {
			p.l.Block(func() { <-gate })
			return dial(addr)
		}
	})
	c := client(t, p.addr())
	for i := range 80 {
		c.head(uint32(2*i+1), true, get2()...)
	}
	eventually(t, "all requests", func() bool { return p.active() == 80 })
	close(gate)
	for done := 0; done < 80; {
		if f, ok := c.next().(*http2.DataFrame); ok && f.StreamEnded() {
			done++
		}
	}
	if n := p.dialsMade(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestADialThatFailsFailsThoseWhoWait(t *testing.T) {
	gate := make(chan struct{})
	p := startProxy(t, "127.0.0.1:1", func(p *proxy) {
		dial := p.dial
		p.dial = func(addr string) (loop.Stream, error) {
			p.l.Block(func() { <-gate })
			return dial(addr)
		}
	})
	c := client(t, p.addr())
	for i := range 10 {
		c.head(uint32(2*i+1), true, get2()...)
	}
	eventually(t, "all requests", func() bool { return p.active() == 10 })
	close(gate)
	for done := 0; done < 10; {
		if f, ok := c.next().(*http2.MetaHeadersFrame); ok {
			if done++; f.PseudoValue("status") != "502" {
				t.Errorf("%v", f.Fields)
			}
		}
	}
	if n := p.dialsMade(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestIdleConnectionsGrowOld(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") })
	p := startProxy(t, up, nil)
	c := client(t, p.addr())
	c.serves(1)
	on(p.l, func() {
		pool := p.pool(up)
		now := p.l.Now()
		if n := pool.CloseIdle(now.Add(time.Minute)); n != 1 {
			t.Errorf("after a minute: %d connections", n)
		}
		if n := pool.CloseIdle(now.Add(time.Hour)); n != 0 {
			t.Errorf("after an hour: %d connections", n)
		}
	})
	c.serves(3)
	on(p.l, func() { p.pool(up).Close() })
	if on(p.l, func() {
		if p.pool(up).Len() != 0 {
			t.Error("connections are left")
		}
	}); p.dialsMade() != 2 {
		t.Errorf("%d connections", p.dialsMade())
	}
}

// A connection whose room is used up is not taken; of two the fuller one is.
func TestTheFullestConnectionIsTaken(t *testing.T) {
	up := rawUpstream(t, func(r *raw, n int) {
		r.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 3})
		r.drainFrames()
	})
	l := turn(t, nil)
	on(l, func() {
		pool := NewPool(PoolConfig{})
		dial := func() (loop.Stream, error) { return dialLoop(l, up) }
		var ups []*Upstream
		take := func() *Upstream {
			up, err := pool.Take(l, time.Time{}, dial)
			if err != nil {
				t.Fatal(err)
			}
			ups = append(ups, up)
			return up
		}
		first := take()
		first.link.touch() // so that the greeting goes before a request does
		first.link.settle()
		for !first.link.greeted {
			l.Sleep(time.Millisecond)
		}
		same := take()
		take()
		other := take()
		if same.Conn() != first.Conn() || other.Conn() == first.Conn() || pool.Len() != 2 {
			t.Errorf("%d connections", pool.Len())
		}
		_ = first.Close()
		if up := take(); up.Conn() != same.Conn() {
			t.Error("the emptier one was taken")
		}
		for _, up := range ups {
			pool.Put(l.Now(), up)
		}
		if up := pool.Get(l.Now()); up == nil || !up.Reusable() {
			t.Error("not reusable")
		} else {
			_ = up.Close()
			if up.Reusable() || up.Conn() != nil {
				t.Error("given back, and yet there")
			}
		}
		pool.Close()
	})
}
