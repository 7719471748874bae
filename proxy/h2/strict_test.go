package h2

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// What is malformed is reset and never reaches a handler; the connection goes on.
func TestMalformedRequests(t *testing.T) {
	without := func(name string, more ...string) (out []string) {
		all := get2()
		for i := 0; i < len(all); i += 2 {
			if all[i] != name {
				out = append(out, all[i], all[i+1])
			}
		}
		return append(out, more...)
	}
	const reset = "reset PROTOCOL_ERROR"
	for _, c := range []struct {
		what   string
		fields []string
		want   string
	}{
		{"an upper-case name", get2("X-Up", "1"), reset},
		{"an empty name", get2("", "1"), reset},
		{"a name with a space", get2("x y", "1"), reset},
		{"a name with a colon", get2("x:y", "1"), reset},
		{"a name with a line break", get2("x\r\ny", "1"), reset},
		{"a value with a line feed", get2("x", "1\n2"), reset},
		{"a value with a carriage return", get2("x", "1\r"), reset},
		{"a value with a NUL", get2("x", "\x00"), reset},
		{"a value with a space before", get2("x", " 1"), reset},
		{"a value with a tab after", get2("x", "1\t"), reset},
		{"connection", get2("connection", "close"), reset},
		{"transfer-encoding", get2("transfer-encoding", "chunked"), reset},
		{"upgrade", get2("upgrade", "h2c"), reset},
		{"keep-alive", get2("keep-alive", "5"), reset},
		{"proxy-connection", get2("proxy-connection", "close"), reset},
		{"te other than trailers", get2("te", "gzip"), reset},
		{"an unknown pseudo-header", append([]string{":weird", "1"}, get2()...), reset},
		{":protocol", append([]string{":protocol", "websocket"}, get2()...), reset},
		{":status in a request", append([]string{":status", "200"}, get2()...), reset},
		{"a pseudo-header after a field", append(without(":path", "x", "1"), ":path", "/"), reset},
		{"no method", without(":method"), reset},
		{"no scheme", without(":scheme"), reset},
		{"no path", without(":path"), reset},
		{"two paths", append([]string{":path", "/"}, get2()...), reset},
		{"an empty path", append(without(":path")[:6], ":path", ""), reset},
		{"a path without slash", append(without(":path")[:6], ":path", "a"), reset},
		{"a path with a space", append(without(":path")[:6], ":path", "/a b"), reset},
		{"a path with a fragment", append(without(":path")[:6], ":path", "/a#b"), reset},
		{"* without OPTIONS", append(without(":path")[:6], ":path", "*"), reset},
		{"an absolute path", append(without(":path")[:6], ":path", "http://a/"), reset},
		{"a method with a space", append(without(":method")[:6], ":method", "GET /x"), reset},
		{"another scheme", append(without(":scheme")[:6], ":scheme", "ftp"), reset},
		{"no authority", without(":authority"), "400"},
		{"an authority with userinfo", append(without(":authority")[:6], ":authority", "a@b"), "400"},
		{"an authority with a slash", append(without(":authority")[:6], ":authority", "a/b"), "400"},
		{"a host that differs", get2("host", "other.shop"), "400"},
		{"two hosts", without(":authority", "host", "a", "host", "a"), "400"},
		{"CONNECT", []string{":method", "CONNECT", ":authority", "a:1"}, "501"},
		{"extended CONNECT", []string{":method", "CONNECT", ":scheme", "http", ":path", "/", ":authority", "a:1"}, "501"},
		{"a content-length that is none", get2("content-length", "+1"), reset},
		{"two content-lengths", get2("content-length", "0", "content-length", "0"), reset},
		{"a content-length without a body", get2("content-length", "5"), reset},
		{"host alone", without(":authority", "host", "orders.shop"), "200"},
		{"a host that agrees", get2("host", "Orders.SHOP"), "200"},
		{"te: trailers", get2("te", "trailers"), "200"},
		{"bytes beyond ASCII in a value", get2("x", "\xfc\xff"), "200"},
		{"an empty value", get2("x", ""), "200"},
		{"OPTIONS *", []string{":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "a"}, "200"},
	} {
		t.Run(c.what, func(t *testing.T) {
			seen := false
			p := startProxy(t, "", func(p *proxy) {
				p.handler = func(x *Exchange) { seen = true; _ = x.Reply(200, nil) }
			})
			conn := client(t, p.addr())
			conn.head(1, true, c.fields...)
			if status, _, _ := conn.answer(1); status != c.want {
				t.Errorf("got %s, want %s", status, c.want)
			}
			on(p.l, func() {
				if seen != (c.want == "200") {
					t.Errorf("seen by the handler: %v", seen)
				}
			})
			conn.serves(3)
		})
	}
}

func TestBodiesThatAreNotAsLongAsSaid(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := r.Body.Read(make([]byte, 1000)); err == nil {
			r.Body.Read(make([]byte, 1000))
		}
	})
	p := startProxy(t, up, nil)
	c := client(t, p.addr())
	c.head(1, false, post("content-length", "5")...)
	eventually(t, "the request", func() bool { return p.active() == 1 }) // else nobody is handed it
	c.check(c.WriteData(1, false, []byte("123456")))
	c.wantReset(1, http2.ErrCodeProtocol)
	c.head(3, false, post("content-length", "5")...)
	c.check(c.WriteData(3, true, []byte("1234")))
	c.wantReset(3, http2.ErrCodeProtocol)
	c.head(5, false, post("content-length", "5")...)
	c.head(5, true, "x-tail", "1")
	c.wantReset(5, http2.ErrCodeProtocol)
	for _, f := range p.failed(1) { // those that had been handed on when the fault was found
		if f.Side != SideClient {
			t.Errorf("%v", f)
		}
	}
}

func TestMalformedTrailers(t *testing.T) {
	for name, fields := range map[string][]string{"a pseudo-header": {":path", "/"}, "upper case": {"X-A", "1"}, "connection": {"connection", "x"}} {
		p := startProxy(t, backend(t, func(w http.ResponseWriter, r *http.Request) { r.Body.Read(make([]byte, 1)) }), nil)
		c := client(t, p.addr())
		c.head(1, false, post()...)
		c.head(1, true, fields...)
		if status, _, _ := c.answer(1); status != "reset PROTOCOL_ERROR" {
			t.Errorf("%s: %s", name, status)
		}
		c.head(3, false, post()...)
		c.head(3, false, "x-a", "1")
		if status, _, _ := c.answer(3); status != "reset PROTOCOL_ERROR" {
			t.Errorf("not the end: %s", status)
		}
	}
}

// Faults of the connection: it ends with the code of the RFC.
func TestFaultsThatEndAConnection(t *testing.T) {
	for _, c := range []struct {
		what string
		send func(c *raw)
		code http2.ErrCode
	}{
		{"no SETTINGS at first", func(c *raw) { c.bytes(preface); c.WritePing(false, [8]byte{}) }, http2.ErrCodeProtocol},
		{"a frame that is too large", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 16385)) }, http2.ErrCodeFrameSize},
		{"HEADERS of stream 0", func(c *raw) { c.hello(); c.head(0, true, get2()...) }, http2.ErrCodeProtocol},
		{"HEADERS of an even stream", func(c *raw) { c.hello(); c.head(2, true, get2()...) }, http2.ErrCodeProtocol},
		{"DATA of an idle stream", func(c *raw) { c.hello(); c.WriteData(1, true, nil) }, http2.ErrCodeProtocol},
		{"RST_STREAM of an idle stream", func(c *raw) { c.hello(); c.WriteRSTStream(1, 8) }, http2.ErrCodeProtocol},
		{"WINDOW_UPDATE of an idle stream", func(c *raw) { c.hello(); c.WriteWindowUpdate(1, 8) }, http2.ErrCodeProtocol},
		{"WINDOW_UPDATE by nothing", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 4)) }, http2.ErrCodeProtocol},
		{"a window that overflows", func(c *raw) { c.hello(); c.WriteWindowUpdate(0, 1<<31-1) }, http2.ErrCodeFlowControl},
		{"PUSH_PROMISE", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 4)) }, http2.ErrCodeProtocol},
		{"CONTINUATION of nothing", func(c *raw) { c.hello(); c.WriteContinuation(1, true, nil) }, http2.ErrCodeProtocol},
		{"another frame inside a head", func(c *raw) { c.hello(); c.headPart(); c.WritePing(false, [8]byte{}) }, http2.ErrCodeProtocol},
		{"another stream inside a head", func(c *raw) { c.hello(); c.headPart(); c.WriteContinuation(3, true, nil) }, http2.ErrCodeProtocol},
		{"a block that cannot be decoded", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FrameHeaders, 5, 1, []byte{0x80}) }, http2.ErrCodeCompression},
		{"more padding than frame", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FrameHeaders, 0xd, 1, []byte{9, 1}) }, http2.ErrCodeProtocol},
		{"PING of a stream", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8)) }, http2.ErrCodeProtocol},
		{"PING of a wrong size", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) }, http2.ErrCodeFrameSize},
		{"SETTINGS of a wrong size", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 7)) }, http2.ErrCodeFrameSize},
		{"SETTINGS of a stream", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }, http2.ErrCodeProtocol},
		{"an acknowledgement that says something", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FrameSettings, 1, 0, make([]byte, 6)) }, http2.ErrCodeFrameSize},
		{"a push setting of 2", func(c *raw) { c.bytes(preface); c.WriteSettings(http2.Setting{ID: 2, Val: 2}) }, http2.ErrCodeProtocol},
		{"an initial window of 2^31", func(c *raw) { c.bytes(preface); c.WriteSettings(http2.Setting{ID: 4, Val: 1 << 31}) }, http2.ErrCodeFlowControl},
		{"a frame size of 1", func(c *raw) { c.bytes(preface); c.WriteSettings(http2.Setting{ID: 5, Val: 1}) }, http2.ErrCodeProtocol},
		{"a stream that was over", func(c *raw) { c.hello(); c.serves(3); c.head(1, true, get2()...) }, http2.ErrCodeStreamClosed},
		{"GOAWAY of a stream", func(c *raw) { c.hello(); c.WriteRawFrame(http2.FrameGoAway, 0, 1, make([]byte, 8)) }, http2.ErrCodeProtocol},
		{"a stream that depends on itself", func(c *raw) {
			c.hello()
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(get2()...), EndHeaders: true, Priority: http2.PriorityParam{StreamDep: 1}})
		}, http2.ErrCodeProtocol},
	} {
		t.Run(c.what, func(t *testing.T) {
			p := startProxy(t, "", func(p *proxy) { p.handler = always("x") })
			conn := dialRaw(t, p.addr())
			c.send(conn)
			conn.wantGoAway(c.code)
			if err := p.served(1)[0]; err == nil {
				t.Error("ended with nil")
			}
		})
	}
}

func (r *raw) hello() {
	r.bytes(preface)
	r.check(r.WriteSettings())
}

// Faults of a stream end it alone.
func TestFaultsThatEndAStream(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	p := startProxy(t, up, nil)
	c := client(t, p.addr())
	c.head(1, true, post()...)
	c.check(c.WriteData(1, true, []byte("x")))
	c.wantReset(1, http2.ErrCodeStreamClosed)
	c.head(3, true, post()...)
	c.head(3, true, "x", "1")
	c.wantReset(3, http2.ErrCodeStreamClosed)
	c.head(5, false, post()...)
	c.check(c.WriteWindowUpdate(5, 1<<31-1))
	c.wantReset(5, http2.ErrCodeFlowControl)
	c.head(7, false, post()...)
	c.check(c.WriteRawFrame(http2.FrameWindowUpdate, 0, 7, make([]byte, 4)))
	c.wantReset(7, http2.ErrCodeProtocol)
	c.check(c.WriteRawFrame(http2.FramePriority, 0, 9, make([]byte, 4)))
	c.wantReset(9, http2.ErrCodeFrameSize)
}

// Padding and priorities are understood, and unknown frames are passed over.
func TestFramesThatNobodyNeeds(t *testing.T) {
	var got string
	p := startProxy(t, backend(t, func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 100)
		n, _ := r.Body.Read(b)
		got = string(b[:n])
	}), nil)
	c := client(t, p.addr(), http2.Setting{ID: 0x99, Val: 1})
	c.check(c.WriteRawFrame(0x77, 0xff, 3, []byte("whatever")))
	c.check(c.WritePriority(1, http2.PriorityParam{StreamDep: 3, Weight: 9}))
	c.check(c.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: c.fields(post()...), EndHeaders: true, PadLength: 200, Priority: http2.PriorityParam{StreamDep: 0, Weight: 3},
	}))
	c.check(c.WriteDataPadded(1, true, []byte("padded"), make([]byte, 255)))
	if status, _, _ := c.answer(1); status != "200" || got != "padded" {
		t.Errorf("%s %q", status, got)
	}
}

// A head may come in many pieces, and frames in single bytes.
func TestHeadsInPieces(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) {
		p.handler = func(x *Exchange) {
			v, _ := x.Get("X-Big")
			_ = x.Reply(200, fmt.Append(nil, len(v)))
		}
	})
	c := client(t, p.addr())
	block := c.fields(get2("x-big", strings.Repeat("b", 40000))...)
	c.check(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:5], EndStream: true}))
	c.check(c.WriteContinuation(1, false, block[5:5]))
	c.check(c.WriteContinuation(1, false, block[5:16000]))
	c.check(c.WriteContinuation(1, true, block[16000:]))
	if status, body, _ := c.answer(1); status != "200" || body != "40000" {
		t.Errorf("%s %s", status, body)
	}
	slow := dialRaw(t, p.addr())
	block = slow.fields(get2("x-big", "1234")...)
	all := string(appendHeader([]byte(preface), 0, frameSettings, 0, 0)) + string(appendHeader(nil, len(block), frameHeaders, 5, 1)) + string(block)
	for _, b := range []byte(all) {
		slow.bytes(string([]byte{b}))
	}
	if status, body, _ := slow.answer(1); status != "200" || body != "4" {
		t.Errorf("%s %s", status, body)
	}
}
