package h2

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// endless writes until its client is gone, and tells how much.
func endless(w http.ResponseWriter, r *http.Request) int {
	b := bytes.Repeat([]byte("x"), 32<<10)
	total := 0
	for r.Context().Err() == nil {
		n, err := w.Write(b)
		total += n
		if err != nil {
			break
		}
	}
	return total
}

// A client that stalls in some downloads holds a window of each, no more, and its
// other requests, and those of others, go on over the same upstream connection.
func TestAStalledReaderStopsNobodyElse(t *testing.T) {
	var mu sync.Mutex
	written := map[string]int{}
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/quick" {
			io.WriteString(w, strings.Repeat("q", 300<<10))
			return
		}
		n := endless(w, r)
		mu.Lock()
		written[r.URL.Path] = n
		mu.Unlock()
	})
	p := startProxy(t, up, func(p *proxy) { p.cfg = Config{StreamWindow: 64 << 10, MaxStreams: 100} })
	c := newClient(t)
	ctx, cancel := context.WithCancel(context.Background())
	const stalled = 30
	for i := range stalled {
		r, err := c.Do(newRequest(t, "GET", fmt.Sprint(p.url(), "/", i), nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r.Body, make([]byte, 1000)); err != nil { // and then no more
			t.Fatal(err)
		}
		defer r.Body.Close()
	}
	for range 3 {
		if got := get200(t, c, p.url()+"/quick"); len(got) != 300<<10 {
			t.Errorf("%d bytes", len(got))
		}
		if got := get200(t, newClient(t), p.url()+"/quick"); len(got) != 300<<10 {
			t.Errorf("%d bytes", len(got))
		}
	}
	if n := p.dialsMade(); n != 1 {
		t.Errorf("%d upstream connections", n)
	}
	held := 0
	on(p.l, func() {
		for _, k := range p.pool(up).links {
			k.streams.each(func(s *stream) { held = max(held, s.in.left) })
		}
	})
	if held > 64<<10 {
		t.Errorf("%d bytes of one stream are held", held)
	}
	cancel()
	eventually(t, "the end of the downloads", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(written) == stalled
	})
	for path, n := range written {
		if n > 12<<20 { // a window of ours, of the client (4 MiB) and the sockets' buffers
			t.Errorf("%s: %d bytes were taken from the upstream", path, n)
		}
	}
}

// The same the other way: a server that does not read stops its own requests only.
func TestAStalledServerStopsNobodyElse(t *testing.T) {
	release := make(chan struct{})
	up := roomyBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-release
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	})
	p := startProxy(t, up, func(p *proxy) { p.cfg = Config{StreamWindow: 64 << 10, MaxStreams: 100} })
	c := newClient(t)
	var wg sync.WaitGroup
	for range 10 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r, err := c.Post(p.url()+"/slow", "", bytes.NewReader(make([]byte, 600<<10)))
			if err != nil {
				t.Error(err)
				return
			}
			if got := read(t, r); got != fmt.Sprint(600<<10) {
				t.Errorf("%s", got)
			}
		}()
	}
	eventually(t, "the slow requests", func() bool { return p.active() == 10 })
	r, err := c.Post(p.url()+"/quick", "", bytes.NewReader(make([]byte, 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, r); got != fmt.Sprint(1<<20) {
		t.Errorf("%s", got)
	}
	close(release)
	wg.Wait()
}

// Several downloads of one connection share it, so that none waits for another's end.
func TestDownloadsShareAConnection(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { endless(w, r) })
	p := startProxy(t, up, nil)
	c := client(t, p.addr(), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	c.check(c.WriteWindowUpdate(0, 1<<30))
	for i := range 4 {
		c.head(uint32(2*i+1), true, get2()...)
	}
	got := map[uint32]int{}
	for least := 0; least < 1<<20; {
		if f, ok := c.next().(*http2.DataFrame); ok {
			got[f.StreamID] += len(f.Data())
		}
		least = 1 << 30
		for i := range 4 {
			least = min(least, got[uint32(2*i+1)])
		}
		if got[1]+got[3]+got[5]+got[7] > 64<<20 {
			t.Fatalf("%v", got)
		}
	}
}

// A window of the whole connection that is used up is shared when it opens.
func TestTheWindowOfTheConnectionIsRespected(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat("w", 50000)) })
	p := startProxy(t, up, nil)
	c := client(t, p.addr(), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	c.head(1, true, get2()...)
	c.head(3, true, get2()...)
	got, ended := 0, 0
	for ended < 2 {
		if got == 65535 {
			c.check(c.WritePing(false, [8]byte{7})) // nothing may come before its answer
			if f, ok := c.next().(*http2.PingFrame); !ok || !f.IsAck() {
				t.Fatalf("%v came though the window is used up", f)
			}
			c.check(c.WriteWindowUpdate(0, 100000))
			got++
		}
		switch f := c.next().(type) {
		case *http2.DataFrame:
			if got < 65535 {
				got += len(f.Data())
			}
			if got > 65536 {
				t.Fatalf("%d bytes", got)
			}
			if f.StreamEnded() {
				ended++
			}
		case *http2.PingFrame, *http2.MetaHeadersFrame:
		default:
			t.Fatalf("%v", f)
		}
	}
}

// DATA beyond a window that we gave is a fault.
func TestDataBeyondTheWindow(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) {
		p.cfg = Config{StreamWindow: 16 << 10, MaxStreams: 8}
		p.handler = func(x *Exchange) {
			if x.Method() == "POST" {
				_ = x.w.Wait(time.Time{})
				return
			}
			_ = x.Reply(200, nil)
		}
	})
	c := client(t, p.addr())
	c.check(c.WriteSettingsAck())
	c.head(1, false, post()...)
	c.check(c.WriteData(1, false, make([]byte, 16<<10)))
	c.check(c.WriteData(1, false, []byte("x")))
	c.wantReset(1, http2.ErrCodeFlowControl)
	c.serves(3)
	for i := range 8 { // each has its own window; that of the connection is their sum
		id := uint32(5 + 2*i)
		c.head(id, false, post()...)
		c.check(c.WriteData(id, false, make([]byte, 16<<10)))
	}
	c.check(c.WritePing(false, [8]byte{1}))
	expect[*http2.PingFrame](c)
}

// A client that does not take its answer for too long loses it; so does one that
// begins a request and does not go on.
func TestAClientThatStallsForTooLong(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		endless(w, r)
	})
	p := startProxy(t, up, func(p *proxy) { p.cfg.StallTimeout = 100 * time.Millisecond })
	c := client(t, p.addr())
	c.head(1, true, get2()...) // its window is 65535
	c.wantHeadThenReset(1)
	c.check(c.WriteWindowUpdate(0, 1000))
	if f := p.failed(1)[0]; f.Side != SideClient || f.Step != WriteResponse || !f.Timeout {
		t.Errorf("%v", f)
	}
	c.head(3, false, post()...)
	if status, _, _ := c.answer(3); status != "408" {
		t.Errorf("%s", status)
	}
	if f := p.failed(2)[1]; f.Side != SideClient || f.Step != ReadBody || !f.Timeout || f.Status != 408 {
		t.Errorf("%v", f)
	}
}

func (r *raw) wantHeadThenReset(id uint32) {
	r.t.Helper()
	for {
		if f, ok := r.next().(*http2.RSTStreamFrame); ok && f.StreamID == id {
			return
		}
	}
}

func TestAnUpstreamThatIsSilentForTooLong(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/head" {
			io.WriteString(w, "begun")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	})
	p := startProxy(t, up, func(p *proxy) { p.cfg.StreamIdle = 50 * time.Millisecond })
	c := newClient(t)
	r, err := c.Get(p.url())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r.Body); err == nil || string(b) != "begun" {
		t.Errorf("%q %v", b, err)
	}
	if f := p.failed(1)[0]; f.Side != SideUpstream || f.Step != ReadContent || !f.Timeout {
		t.Errorf("%v", f)
	}
	p.handle(func(x *Exchange) {
		x.SetTarget("/head")
		up, err := p.take(up)
		if err != nil {
			t.Error(err)
			return
		}
		_, err = x.RoundTrip(up, x.Now().Add(50*time.Millisecond))
		e := p.note(err)
		_ = x.Reply(e.Status, nil)
	})
	if r, err = c.Get(p.url()); err != nil || r.StatusCode != 504 {
		t.Errorf("%v %v", r, err)
	}
	if f := p.failed(2)[1]; f.Side != SideUpstream || f.Step != ReadResponse || !f.Timeout || !f.Sent || f.Got {
		t.Errorf("%+v", f)
	}
}

// What streams hold is given back when they are over, however they ended.
func TestNothingIsHeldAfterwards(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { endless(w, r) })
	p := startProxy(t, up, nil)
	c := client(t, p.addr())
	for i := range 100 {
		id := uint32(2*i + 1)
		c.head(id, false, post()...)
		c.check(c.WriteData(id, false, make([]byte, 5000)))
	}
	eventually(t, "all requests", func() bool { return p.active() == 100 })
	for i := range 100 {
		c.check(c.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel))
	}
	eventually(t, "their end", func() bool { return p.active() == 0 })
	c.check(c.WriteWindowUpdate(0, 1000)) // that of the connection is used up
	c.serves2(p, 1001)
	on(p.l, func() {
		for conn := range p.conns {
			s := conn.session
			if s.streams.count != 0 || s.owed+s.recvLeft != s.cfg.connWindow() {
				t.Errorf("client: %d streams, window %d of %d", s.streams.count, s.owed+s.recvLeft, s.cfg.connWindow())
			}
		}
		for _, k := range p.pool(up).links {
			if k.streams.count != 0 || k.open != 0 {
				t.Errorf("upstream: %d streams, %d places", k.streams.count, k.open)
			}
		}
	})
	runtime.GC()
}

func (r *raw) serves2(p *proxy, id uint32) {
	p.handle(always("x"))
	r.serves(id)
}
