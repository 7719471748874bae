package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/weir-mesh/weir/policy"
)

// frames is a connection of HTTP/2 in a test's hands, after the preface.
func frames(c net.Conn) *http2.Framer {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return f
}

func writeHead(t *testing.T, f *http2.Framer, id uint32, pairs ...string) {
	t.Helper()
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true}); err != nil {
		t.Error(err)
	}
}

// awaitFrame is the next frame of a type.
func awaitFrame[F http2.Frame](t *testing.T, f *http2.Framer) F {
	t.Helper()
	for {
		got, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := got.(F); ok {
			return want
		}
	}
}

// webSocketsOnStreams is a server that takes extended CONNECT, and echoes.
func webSocketsOnStreams(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		f := frames(c)
		_, _ = io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		for {
			got, err := f.ReadFrame()
			if err != nil {
				return
			}
			switch got := got.(type) {
			case *http2.MetaHeadersFrame:
				writeHead(t, f, got.StreamID, ":status", "200", "x-asked", got.PseudoValue("method")+" "+got.PseudoValue("protocol"))
			case *http2.DataFrame:
				_ = f.WriteData(got.StreamID, got.StreamEnded(), got.Data())
			}
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-ended })
	return ln.Addr().String()
}

// An HTTP/2 client's extended CONNECT reaches an endpoint of HTTP/2 under the rules of a
// GET; to a service that has another endpoint it is not offered.
func TestAWebSocketOnAStream(t *testing.T) {
	p := sidecar(t)
	at := webSocketsOnStreams(t)
	rule := policy.DefaultTrafficRule()
	rule.MatchMethod, rule.RequestHeaders = "GET", nil
	rule.ResponseHeaders = &policy.HeaderChanges{Set: map[string]string{"X-Rule": "get"}}
	svc := usersWith(endpointOf("a", at, speaking("http2")))
	svc.Rules = []policy.TrafficRule{rule}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	l := turning(t, p)
	begin := func() *http2.Framer {
		lc, app := redirectedPair(t, l)
		t.Cleanup(func() { _ = app.Close() })
		l.Post(func() { l.Go(func() { p.serveAs(asStreams, &lc.Conn, nil, lc, p.dests.Load().byName[users]) }) })
		f := frames(app)
		_, _ = io.WriteString(app, http2.ClientPreface)
		_ = f.WriteSettings()
		return f
	}
	f := begin()
	if v, ok := awaitFrame[*http2.SettingsFrame](t, f).Value(http2.SettingEnableConnectProtocol); !ok || v != 1 {
		t.Fatal("extended CONNECT is not offered")
	}
	writeHead(t, f, 1, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "users", ":path", "/")
	h := awaitFrame[*http2.MetaHeadersFrame](t, f)
	if text := fmt.Sprint(h.Fields); h.PseudoValue("status") != "200" || !strings.Contains(text, "CONNECT websocket") || !strings.Contains(text, `"x-rule" = "get"`) {
		t.Errorf("%s", text)
	}
	_ = f.WriteData(1, true, []byte("hello"))
	if d := awaitFrame[*http2.DataFrame](t, f); string(d.Data()) != "hello" {
		t.Errorf("%q", d.Data())
	}
	svc.Endpoints = append(svc.Endpoints, endpointOf("b", "127.0.0.1:1"))
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	if _, ok := awaitFrame[*http2.SettingsFrame](t, begin()).Value(http2.SettingEnableConnectProtocol); ok {
		t.Error("extended CONNECT is offered where an endpoint speaks HTTP/1.1")
	}
}

// An upgrade to an endpoint of HTTP/2 is refused, and the endpoint is not blamed.
func TestAnUpgradeToAnHTTP2EndpointIsRefused(t *testing.T) {
	s := serving(t, true, func(http.ResponseWriter, *http.Request) {})
	p := sidecar(t)
	svc := usersWith(endpointOf("a", s.Listener.Addr().String(), speaking("http2")))
	svc.Traffic.Breaker = policy.Breaker{Enabled: true, Threshold: 1, Timeout: time.Minute}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	l := turning(t, p)
	for _, upgrade := range []string{"websocket", "other", ""} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://users/", nil)
		if upgrade != "" {
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", upgrade)
		}
		lc, app := redirectedPair(t, l)
		l.Post(func() { l.Go(func() { p.serveRequests(&lc.Conn, nil, lc, p.dests.Load().byName[users]) }) })
		resp, err := appOf(t, false, app).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if upgrade == "" {
			want(t, resp, 200, "")
		} else {
			want(t, resp, 501, "upgrade-impossible")
		}
	}
}
