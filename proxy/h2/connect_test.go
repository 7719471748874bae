package h2

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// connect is the head of an extended CONNECT, and more.
func connect(more ...string) []string {
	return append([]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "orders.shop", ":path", "/chat"}, more...)
}

// offers tells whether SETTINGS offer extended CONNECT.
func offers(t *testing.T, c *raw) bool {
	f, err := c.ReadFrame()
	c.check(err)
	s, ok := f.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("got %v before SETTINGS", f)
	}
	v, ok := s.Value(http2.SettingEnableConnectProtocol)
	return ok && v == 1
}

// A WebSocket on a stream (RFC 8441): what is said goes both ways, and so does the end.
func TestExtendedConnectIsCarried(t *testing.T) {
	up := rawUpstream(t, func(r *raw, _ int) {
		_ = r.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		for {
			f, err := r.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.MetaHeadersFrame:
				if f.PseudoValue("method") != "CONNECT" || f.PseudoValue("protocol") != "websocket" || f.PseudoValue("path") != "/chat" {
					t.Errorf("%v came", f.Fields)
				}
				_ = r.tryHead(f.StreamID, false, ":status", "200", "sec-websocket-protocol", "chat")
			case *http2.DataFrame:
				_ = r.WriteData(f.StreamID, f.StreamEnded(), []byte(strings.ToUpper(string(f.Data()))))
			}
		}
	})
	methods := make(chan string, 1)
	p := startProxy(t, up, func(p *proxy) {
		p.connects = true
		p.handler = func(x *Exchange) {
			methods <- x.Method() + " " + x.Protocol()
			p.forward(x, up)
		}
	})
	c := client(t, p.addr())
	if !offers(t, c) {
		t.Fatal("it is not offered")
	}
	c.head(1, false, connect("sec-websocket-version", "13")...)
	if got := <-methods; got != "GET websocket" {
		t.Errorf("the handler saw %s", got)
	}
	if h := expect[*http2.MetaHeadersFrame](c); h.PseudoValue("status") != "200" || h.StreamEnded() {
		t.Fatalf("%v", h.Fields)
	}
	for _, end := range []bool{false, false, true} {
		c.check(c.WriteData(1, end, []byte("hello")))
		if d := expect[*http2.DataFrame](c); string(d.Data()) != "HELLO" || d.StreamEnded() != end {
			t.Errorf("%q, end %v", d.Data(), d.StreamEnded())
		}
	}
}

func TestExtendedConnectThatIsNotOffered(t *testing.T) {
	// Not by the proxy: the stream is reset, as is any with a field that is unknown.
	p := startProxy(t, backend(t, nil), nil)
	c := client(t, p.addr())
	if offers(t, c) {
		t.Error("it is offered")
	}
	c.head(1, false, connect()...)
	c.wantReset(1, http2.ErrCodeProtocol)
	// Not by the upstream, which must not be asked.
	asked := make(chan uint32, 1)
	up := rawUpstream(t, func(r *raw, _ int) {
		_ = r.WriteSettings()
		if id, ok := r.request(); ok {
			asked <- id
		}
	})
	p = startProxy(t, up, func(p *proxy) { p.connects = true })
	c = client(t, p.addr())
	c.head(1, false, connect()...)
	if status, _, _ := c.answer(1); status != "501" || len(asked) != 0 {
		t.Errorf("%s, %d requests came", status, len(asked))
	}
	if f := p.failed(1)[0]; !errors.Is(f, ErrNoConnect) || f.Sent {
		t.Errorf("%+v", f)
	}
	// And what only looks like one.
	c = client(t, p.addr())
	for i, fields := range [][]string{
		append([]string{":protocol", "websocket"}, get2()...),
		{":method", "CONNECT", ":protocol", "web socket", ":scheme", "http", ":authority", "a", ":path", "/"},
		{":method", "CONNECT", ":protocol", "websocket", ":authority", "a"},
	} {
		id := uint32(2*i + 1)
		c.head(id, true, fields...)
		c.wantReset(id, http2.ErrCodeProtocol)
	}
}
