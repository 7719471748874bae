package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	peerpack "golang.org/x/net/http2/hpack"
)

// raw is an end of a connection that says what a test wants it to.
type raw struct {
	t testing.TB
	*net.TCPConn
	*http2.Framer
	enc   *peerpack.Encoder
	block bytes.Buffer
}

func newRaw(t testing.TB, c net.Conn) *raw {
	r := &raw{t: t, TCPConn: c.(*net.TCPConn)}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a guard, not a measure
	r.Framer = http2.NewFramer(c, c)
	r.Framer.ReadMetaHeaders = peerpack.NewDecoder(4096, nil)
	r.Framer.AllowIllegalWrites = true
	r.enc = peerpack.NewEncoder(&r.block)
	return r
}

// dialRaw is a client that has said nothing.
func dialRaw(t testing.TB, addr string) *raw {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return newRaw(t, c)
}

// client is a client that has sent the preface and SETTINGS.
func client(t testing.TB, addr string, settings ...http2.Setting) *raw {
	t.Helper()
	r := dialRaw(t, addr)
	r.bytes(preface)
	r.check(r.WriteSettings(settings...))
	return r
}

func (r *raw) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) bytes(s string) {
	r.t.Helper()
	_, err := io.WriteString(r.TCPConn, s)
	r.check(err)
}

// fields encodes names and values in turn.
func (r *raw) fields(pairs ...string) []byte {
	r.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		r.check(r.enc.WriteField(peerpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}))
	}
	return bytes.Clone(r.block.Bytes())
}

// get are the pseudo-header fields of a GET, and more.
func get2(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":authority", "orders.shop", ":path", "/"}, more...)
}

func post(more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":authority", "orders.shop", ":path", "/"}, more...)
}

func (r *raw) head(id uint32, end bool, pairs ...string) {
	r.t.Helper()
	r.check(r.tryHead(id, end, pairs...))
}

func (r *raw) tryHead(id uint32, end bool, pairs ...string) error {
	return r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.fields(pairs...), EndHeaders: true, EndStream: end})
}

// next is the next frame that is no SETTINGS and no WINDOW_UPDATE.
func (r *raw) next() http2.Frame {
	r.t.Helper()
	for {
		f, err := r.ReadFrame()
		if err != nil {
			r.t.Fatalf("read a frame: %v", err)
		}
		switch f.(type) {
		case *http2.SettingsFrame, *http2.WindowUpdateFrame:
			continue
		}
		return f
	}
}

// expect is the next frame, which must be of a type.
func expect[F http2.Frame](r *raw) F {
	r.t.Helper()
	f := r.next()
	want, ok := f.(F)
	if !ok {
		r.t.Fatalf("got %v, %v", f, frameText(f))
	}
	return want
}

func frameText(f http2.Frame) string {
	switch f := f.(type) {
	case *http2.GoAwayFrame:
		return fmt.Sprintf("%v %s", f.ErrCode, f.DebugData())
	case *http2.RSTStreamFrame:
		return f.ErrCode.String()
	case *http2.MetaHeadersFrame:
		return fmt.Sprint(f.Fields)
	}
	return ""
}

// answer reads a response whole: its status, body and trailer section.
func (r *raw) answer(id uint32) (status, body, trailer string) {
	r.t.Helper()
	for {
		switch f := r.next().(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID != id {
				continue
			}
			if s := f.PseudoValue("status"); s != "" {
				status = s
			} else {
				trailer = fmt.Sprint(f.Fields)
			}
			if f.StreamEnded() {
				return
			}
		case *http2.DataFrame:
			if f.StreamID != id {
				continue
			}
			body += string(f.Data())
			if f.StreamEnded() {
				return
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "reset " + f.ErrCode.String(), body, ""
			}
		case *http2.GoAwayFrame:
			return "goaway " + f.ErrCode.String(), body, string(f.DebugData())
		}
	}
}

// wantReset expects a stream to be reset.
func (r *raw) wantReset(id uint32, code http2.ErrCode) {
	r.t.Helper()
	for {
		switch f := r.next().(type) {
		case *http2.RSTStreamFrame:
			if f.StreamID != id || f.ErrCode != code {
				r.t.Errorf("stream %d was reset with %v, not %d with %v", f.StreamID, f.ErrCode, id, code)
			}
			return
		case *http2.GoAwayFrame:
			r.t.Errorf("the connection ended: %s", frameText(f))
			return
		}
	}
}

// wantGoAway expects the connection to end: GOAWAY with a code, then the end.
func (r *raw) wantGoAway(code http2.ErrCode) {
	r.t.Helper()
	for {
		f, err := r.ReadFrame()
		if err != nil {
			r.t.Fatalf("the connection ended without GOAWAY: %v", err)
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			if g.ErrCode != code {
				r.t.Errorf("GOAWAY %s, want %v", frameText(g), code)
			}
			r.wantEnd()
			return
		}
	}
}

// wantEnd expects the connection to end, whatever comes before.
func (r *raw) wantEnd() {
	r.t.Helper()
	_, err := io.Copy(io.Discard, r.TCPConn)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		r.t.Error("the connection was not closed")
	}
	r.TCPConn.Close() // which is waited for
}

// serves checks that the connection still answers.
func (r *raw) serves(id uint32) {
	r.t.Helper()
	r.head(id, true, get2()...)
	if status, _, _ := r.answer(id); status != "200" {
		r.t.Errorf("a good request afterwards got %s", status)
	}
}

func always(body string) Handler {
	return func(x *Exchange) { _ = x.Reply(200, []byte(body)) }
}

func TestWindowsThatOpenLaterAreUsed(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello world") })
	for name, h := range map[string]Handler{"reply": always("hello world"), "relay": nil} {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t, up, func(p *proxy) {
				if h != nil {
					p.handler = h
				}
			})
			c := client(t, p.addr(), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			c.head(1, true, get2()...)
			expect[*http2.MetaHeadersFrame](c)
			for i, v := range []uint32{1, 3} {
				c.check(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: v}))
				if d := expect[*http2.DataFrame](c); len(d.Data()) != 1+i {
					t.Errorf("%d bytes", len(d.Data()))
				}
			}
			c.check(c.WriteWindowUpdate(1, 100))
			if d := expect[*http2.DataFrame](c); string(d.Data()) != "lo world" || !d.StreamEnded() {
				t.Errorf("%q", d.Data())
			}
		})
	}
}
