package h2

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// Each of these goes on for ever if it is let; the connection has to end, with
// ENHANCE_YOUR_CALM, and others must not notice.
func TestFloodsEndTheConnection(t *testing.T) {
	floods := map[string]func(c *raw, i int) error{
		"PING":                     func(c *raw, _ int) error { return c.WritePing(false, [8]byte{}) },
		"PING answers":             func(c *raw, _ int) error { return c.WritePing(true, [8]byte{}) },
		"SETTINGS":                 func(c *raw, _ int) error { return c.WriteSettings() },
		"SETTINGS acknowledgement": func(c *raw, _ int) error { return c.WriteSettingsAck() },
		"PRIORITY": func(c *raw, i int) error {
			return c.WritePriority(uint32(2*i+1), http2.PriorityParam{StreamDep: 0, Weight: 1})
		},
		"WINDOW_UPDATE":      func(c *raw, _ int) error { return c.WriteWindowUpdate(0, 1) },
		"unknown frames":     func(c *raw, _ int) error { return c.WriteRawFrame(0xbe, 0, 1, nil) },
		"empty DATA":         func(c *raw, _ int) error { return c.WriteData(1, false, nil) },
		"padding alone":      func(c *raw, _ int) error { return c.WriteDataPadded(1, false, nil, make([]byte, 10)) },
		"RST_STREAM of none": func(c *raw, _ int) error { return c.WriteRSTStream(1, http2.ErrCodeCancel) },
		"rapid reset": func(c *raw, i int) error {
			return errors.Join(c.tryHead(uint32(2*i+3), true, get2()...), c.WriteRSTStream(uint32(2*i+3), http2.ErrCodeCancel))
		},
		"malformed requests": func(c *raw, i int) error { return c.tryHead(uint32(2*i+3), true, get2("Upper", "1")...) },
		"refused streams":    func(c *raw, i int) error { return c.tryHead(uint32(2*i+3), false, post()...) },
		"DATA of streams that are over": func(c *raw, i int) error {
			return c.WriteData(1, false, []byte("x"))
		},
	}
	for name, send := range floods {
		t.Run(name, func(t *testing.T) {
			over := strings.Contains(name, "over") || strings.Contains(name, "none")
			p := startProxy(t, "", func(p *proxy) {
				p.cfg = Config{MaxControl: 100, MaxResets: 50, MaxStreams: 20}
				p.handler = func(x *Exchange) {
					if x.Method() == "POST" && !over {
						_ = x.w.Wait(time.Time{}) // until the client is gone
						return
					}
					_ = x.Reply(200, nil)
				}
			})
			c := client(t, p.addr())
			c.head(1, over, post()...)
			if over {
				c.answer(1)
			}
			go func() {
				for i := 0; i < 100000; i++ {
					if send(c, i) != nil {
						return
					}
				}
			}()
			f := &http2.GoAwayFrame{}
			for f.ErrCode == 0 {
				switch n, err := c.ReadFrame(); {
				case err != nil:
					t.Fatalf("no GOAWAY: %v", err)
				default:
					f, _ = n.(*http2.GoAwayFrame)
					if f == nil {
						f = &http2.GoAwayFrame{}
					}
				}
			}
			if f.ErrCode != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("%s", frameText(f))
			}
			c.wantEnd()
			if err := p.served(1)[0]; !errors.Is(err, ErrFlood) {
				t.Errorf("ended with %v", err)
			}
			other := client(t, p.addr())
			other.serves(1)
		})
	}
}

func TestAFloodOfContinuationsEndsTheConnection(t *testing.T) {
	for name, piece := range map[string]int{"large": 16384, "small": 10, "empty": 0} {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t, "", func(p *proxy) { p.cfg.MaxControl = 100; p.handler = always("x") })
			c := client(t, p.addr())
			c.check(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(get2()...), EndStream: true}))
			go func() {
				field := "\x00\x01a\x7f\x81\x7f" + strings.Repeat("v", 1<<15)
				for i := 0; i < 100000; i++ {
					b := strings.Repeat(field, 1)[:piece]
					if c.WriteContinuation(1, false, []byte(b)) != nil {
						return
					}
				}
			}()
			c.wantGoAway(http2.ErrCodeEnhanceYourCalm)
		})
	}
}

// A peer that asks and does not read the answers is held to what they may take.
func TestAPeerThatDoesNotReadIsDropped(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) { p.cfg.MaxControl = 1 << 29; p.handler = always("x") })
	c := client(t, p.addr())
	c.SetReadBuffer(4096)
	ping := strings.Repeat("\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", 1000)
	for range 10000 {
		if _, err := io.WriteString(c.TCPConn, ping); err != nil {
			break
		}
	}
	if err := p.served(1)[0]; err == nil {
		t.Error("ended with nil")
	}
}

func TestAHeadThatIsTooLargeIsRefused(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) {
		p.cfg = Config{MaxHeadBytes: 8 << 10, MaxFields: 20, Refusal: func(status int) ([]byte, []string) {
			return fmt.Appendf(nil, "refused with %d", status), []string{"Weir-Error", "bad-request"}
		}}
		p.handler = always("x")
	})
	many := get2()
	for i := range 30 {
		many = append(many, fmt.Sprint("x-", i), "1")
	}
	c := client(t, p.addr())
	c.head(1, true, get2("x-big", strings.Repeat("b", 8<<10))...)
	if status, body, _ := c.answer(1); status != "431" || body != "refused with 431" {
		t.Errorf("%s %s", status, body)
	}
	c.head(3, true, many...)
	if status, _, _ := c.answer(3); status != "431" {
		t.Errorf("%s", status)
	}
	c.head(5, true, post("content-type", "application/grpc", "x-big", strings.Repeat("b", 8<<10))...)
	h := expect[*http2.MetaHeadersFrame](c)
	if h.PseudoValue("status") != "200" || !strings.Contains(fmt.Sprint(h.Fields), `"grpc-status" = "8"`) {
		t.Errorf("%v", h.Fields)
	}
	c.serves(7)
}

func TestTimeLimitsOfAConnection(t *testing.T) {
	short := Config{HeadTimeout: 50 * time.Millisecond, IdleTimeout: 100 * time.Millisecond}
	for name, c := range map[string]struct {
		send  func(c *raw)
		code  http2.ErrCode
		ended bool // without an error
	}{
		"no preface":        {func(c *raw) { c.bytes(preface[:10]) }, http2.ErrCodeEnhanceYourCalm, false},
		"half a frame":      {func(c *raw) { c.bytes(preface); c.WriteSettings(); c.bytes("\x00\x00\x08\x06\x00") }, http2.ErrCodeEnhanceYourCalm, false},
		"half a head":       {func(c *raw) { c.bytes(preface); c.WriteSettings(); c.headPart() }, http2.ErrCodeEnhanceYourCalm, false},
		"nothing at all":    {func(c *raw) { c.bytes(preface); c.WriteSettings() }, http2.ErrCodeNo, true},
		"nothing any more":  {func(c *raw) { c.bytes(preface); c.WriteSettings(); c.serves(1) }, http2.ErrCodeNo, true},
		"no byte, ever":     {func(c *raw) {}, http2.ErrCodeEnhanceYourCalm, false},
		"HTTP/1.1 as it is": {func(c *raw) { c.bytes("GET / HTTP/1.1\r\nHost: a\r\n\r\n") }, http2.ErrCodeProtocol, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t, "", func(p *proxy) { p.cfg = short; p.handler = always("x") })
			conn := dialRaw(t, p.addr())
			c.send(conn)
			conn.wantGoAway(c.code)
			if err := p.served(1)[0]; (err == nil) != c.ended {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

func (r *raw) headPart() {
	r.check(r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.fields(get2()...), EndStream: true}))
}

// A connection with a call under way is not idle, however silent it is.
func TestASilentCallIsNotIdle(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(200 * time.Millisecond) // the silence that is tested
		io.WriteString(w, "at last")
	})
	p := startProxy(t, up, func(p *proxy) { p.cfg.IdleTimeout = 20 * time.Millisecond })
	c := client(t, p.addr())
	c.head(1, true, get2()...)
	if status, body, _ := c.answer(1); status != "200" || body != "at last" {
		t.Errorf("%s %s", status, body)
	}
	c.wantGoAway(http2.ErrCodeNo)
}
