package h1

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/secure"
)

// backend starts a net/http server.
func backend(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func httpClient(t *testing.T) *http.Client {
	tr := &http.Transport{DisableCompression: true, ExpectContinueTimeout: 10 * time.Second}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func do(t *testing.T, c *http.Client, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func newRequest(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// onlyReader hides the length of a body, so that it is sent in chunks.
type onlyReader struct{ io.Reader }

func TestBodiesOfEverySizeAndFramingArrive(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("backend: %v", err)
		}
		if r.URL.Query().Get("as") == "length" {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		} else {
			w.(http.Flusher).Flush()
		}
		_, _ = w.Write(b)
	})
	p := startProxy(t, addr, nil)
	c := httpClient(t)
	for _, size := range []int{0, 1, 100, 4 << 10, 8<<10 - 200, 8 << 10, 60 << 10, 64 << 10, 65 << 10, 1 << 20} {
		data := make([]byte, size)
		_, _ = rand.Read(data)
		for _, chunked := range []bool{false, true} {
			for _, as := range []string{"length", "chunks"} {
				var body io.Reader = bytes.NewReader(data)
				if chunked {
					body = onlyReader{body}
				}
				resp, got := do(t, c, newRequest(t, "POST", p.url()+"/?as="+as, body))
				if resp.StatusCode != 200 || got != string(data) {
					t.Fatalf("%d bytes, chunked %v, as %s: status %d, %d bytes back", size, chunked, as, resp.StatusCode, len(got))
				}
			}
		}
	}
	if p.dialsMade() > 3 {
		t.Errorf("%d dials: upstream connections were not used again", p.dialsMade())
	}
}

func TestTheBodyMayComeByteByByte(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	})
	p := startProxy(t, addr, nil)
	for _, in := range []string{
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n012\r\n7;x\r\n3456789\r\n0\r\nT: v\r\n\r\n",
	} {
		c := dialRaw(t, p.addr())
		for range 2 {
			for i := range len(in) {
				c.send(in[i : i+1])
			}
			if _, body := c.answer("POST"); body != "0123456789" {
				t.Errorf("body %q", body)
			}
		}
		c.send(in + in) // pipelined
		for range 2 {
			if _, body := c.answer("POST"); body != "0123456789" {
				t.Errorf("pipelined: body %q", body)
			}
		}
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.URL.Path, b)
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	var all strings.Builder
	const n = 500
	for i := range n {
		if i%2 == 0 {
			fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
		} else {
			fmt.Fprintf(&all, "\r\nPOST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab", i)
		}
	}
	go func() { _, _ = io.WriteString(c.TCPConn, all.String()) }()
	for i := range n {
		want := fmt.Sprintf("/%d ", i)
		if i%2 == 1 {
			want += "ab"
		}
		if _, body := c.answer("GET"); body != want {
			t.Fatalf("answer %d is %q", i, body)
		}
	}
}

func TestHeadFieldsAreChangedAndHopFieldsStay(t *testing.T) {
	var got http.Header
	var host string
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		got, host = r.Header.Clone(), r.Host
		w.Header().Set("Connection", "x-hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("X-Drop", "1")
		w.Header().Set("X-Stay", "1")
	})
	p := startProxy(t, addr, func(p *proxy) {
		p.handler = func(x *Exchange) {
			x.Set("X-Source-Service", "spoofed")
			x.Set("x-source-service", "web")
			x.Add("X-Many", "2")
			x.Del("X-Secret")
			x.SetTarget("/new?x=1")
			x.SetResponse("X-Request-ID", "7")
			x.DelResponse("x-drop")
			p.forward(x)
		}
	})
	c := dialRaw(t, p.addr())
	c.send("GET /old HTTP/1.1\r\nHost: a.b:80\r\nConnection: keep-alive, X-Named, x-source-service, host\r\nX-Named: 1\r\n" +
		"X-Source-Service: forged\r\nX-Many: 1\r\nX-SECRET: s\r\nKeep-Alive: 5\r\nProxy-Connection: a\r\nTE: gzip, trailers;q=1, trailers\r\nUpgrade: h2c\r\nX-Last: z\r\n\r\n")
	resp, _ := c.answer("GET")
	for name, want := range map[string][]string{
		"X-Source-Service": {"web"}, "X-Many": {"1", "2"}, "X-Secret": nil, "X-Named": nil, "Keep-Alive": nil,
		"Proxy-Connection": nil, "Te": {"trailers"}, "Connection": {"TE"}, "Upgrade": nil, "X-Last": {"z"},
	} {
		if fmt.Sprint(got[name]) != fmt.Sprint(want) {
			t.Errorf("the upstream got %s %q, want %q", name, got[name], want)
		}
	}
	if host != "a.b:80" {
		t.Errorf("host %q", host)
	}
	for name, want := range map[string]string{"X-Request-Id": "7", "X-Hop": "", "Keep-Alive": "", "X-Drop": "", "X-Stay": "1"} {
		if resp.Header.Get(name) != want {
			t.Errorf("the client got %s %q, want %q", name, resp.Header.Get(name), want)
		}
	}
}

func TestFieldsThatWouldBreakTheHeadAreRefused(t *testing.T) {
	addr := backend(t, func(http.ResponseWriter, *http.Request) { t.Error("it was forwarded") })
	for _, bad := range [][2]string{
		{"X-A", "a\r\nX-B: b"}, {"X-A", "a\x00"}, {"X A", "a"}, {"", "a"}, {"Content-Length", "5"},
		{"Transfer-Encoding", "chunked"}, {"Connection", "close"}, {"Upgrade", "x"},
	} {
		p := startProxy(t, addr, func(p *proxy) {
			p.handler = func(x *Exchange) { x.Set(bad[0], bad[1]); p.forward(x) }
		})
		c := dialRaw(t, p.addr())
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := c.answer("GET"); resp.StatusCode != 500 || !strings.Contains(body, "local") {
			t.Errorf("%q: %d %s", bad, resp.StatusCode, body)
		}
	}
}

func TestTrailersPassBothWays(t *testing.T) {
	var got http.Header
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		got = r.Trailer
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "body")
		w.Header().Set("X-Sum", "9")
		w.Header().Set(http.TrailerPrefix+"X-Source-Service", "forged")
	})
	p := startProxy(t, addr, func(p *proxy) {
		p.handler = func(x *Exchange) {
			x.Set("X-Source-Service", "web")
			x.DelResponse("X-Source-Service")
			p.forward(x)
		}
	})
	for range 3 {
		req := newRequest(t, "POST", p.url(), onlyReader{strings.NewReader("abc")})
		req.Trailer = http.Header{"X-End": {"1"}, "X-Source-Service": {"forged"}}
		resp, body := do(t, httpClient(t), req)
		if body != "body" || resp.Trailer.Get("X-Sum") != "9" || resp.Trailer.Get("X-Source-Service") != "" {
			t.Errorf("response %q, trailer %v", body, resp.Trailer)
		}
		if got.Get("X-End") != "1" || got.Get("X-Source-Service") != "" {
			t.Errorf("request trailer %v", got)
		}
	}
}

func TestBodilessAnswersLeaveTheConnectionInStep(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("ETag", `"a"`)
			w.WriteHeader(304)
		default:
			_, _ = io.WriteString(w, strings.Repeat("x", 5000))
		}
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	for _, ask := range []struct {
		method, path string
		status, size int
	}{{"HEAD", "/", 200, 0}, {"GET", "/204", 204, 0}, {"GET", "/304", 304, 0}, {"HEAD", "/204", 204, 0}, {"GET", "/", 200, 5000}} {
		c.send(ask.method + " " + ask.path + " HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, body := c.answer(ask.method)
		if resp.StatusCode != ask.status || len(body) != ask.size {
			t.Errorf("%s %s: %d, %d bytes", ask.method, ask.path, resp.StatusCode, len(body))
		}
	}
	if p.dialsMade() != 1 {
		t.Errorf("%d dials", p.dialsMade())
	}
}

func TestHTTP10Clients(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/chunks" {
			w.(http.Flusher).Flush()
		}
		if r.Header.Get("Expect") != "" {
			t.Error("Expect was passed on")
		}
		_, _ = io.WriteString(w, "hello")
	})
	p := startProxy(t, addr, nil)
	t.Run("closes by default", func(t *testing.T) {
		c := dialRaw(t, p.addr())
		c.send("GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n")
		if resp, body := c.answer("GET"); body != "hello" || !resp.Close {
			t.Errorf("%q, close %v", body, resp.Close)
		}
		c.ended()
	})
	t.Run("keep-alive when asked", func(t *testing.T) {
		c := dialRaw(t, p.addr())
		for range 2 {
			c.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n")
			if resp, body := c.answer("GET"); body != "hello" || resp.Header.Get("Connection") != "keep-alive" {
				t.Errorf("%q %v", body, resp.Header)
			}
		}
	})
	t.Run("gets no chunks", func(t *testing.T) {
		c := dialRaw(t, p.addr())
		c.send("GET /chunks HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n")
		if resp, body := c.answer("GET"); body != "hello" || resp.TransferEncoding != nil || !resp.Close {
			t.Errorf("%q %v", body, resp)
		}
		c.ended()
	})
}

func TestAnUpstreamOfHTTP10IsRelayedInChunks(t *testing.T) {
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = readHeadText(r)
		_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nto the ")
		_, _ = io.WriteString(c, "end")
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	for range 2 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := c.answer("GET"); body != "to the end" || resp.Close {
			t.Errorf("%q %v", body, resp)
		}
	}
	if p.idle() != 0 {
		t.Error("a closed connection went to the pool")
	}
}

func TestExpectContinueGoesEndToEnd(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(413) // without reading: net/http sends no 100
			return
		}
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	})
	p := startProxy(t, addr, nil)
	t.Run("continued", func(t *testing.T) {
		for range 2 {
			continued := false
			req := newRequest(t, "POST", p.url(), bytes.NewReader(make([]byte, 100<<10)))
			req.Header.Set("Expect", "100-continue")
			req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got100Continue: func() { continued = true }}))
			if resp, body := do(t, httpClient(t), req); resp.StatusCode != 200 || len(body) != 100<<10 || !continued {
				t.Errorf("%d, %d bytes, continued %v", resp.StatusCode, len(body), continued)
			}
		}
	})
	t.Run("refused", func(t *testing.T) {
		c := dialRaw(t, p.addr())
		c.send("POST /no HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
		if resp, _ := c.answer("POST"); resp.StatusCode != 413 || !resp.Close {
			t.Errorf("%v", resp)
		}
		c.ended()
	})
}

func TestEarlyHintsAreRelayed(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(103)
		w.WriteHeader(200)
	})
	p := startProxy(t, addr, nil)
	var hints []int
	req := newRequest(t, "GET", p.url(), nil)
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, code)
			return nil
		}}))
	if resp, _ := do(t, httpClient(t), req); resp.StatusCode != 200 || fmt.Sprint(hints) != "[103]" {
		t.Errorf("%d %v", resp.StatusCode, hints)
	}
}

func TestAnEarlyAnswerIsRelayedAndTheConnectionEnds(t *testing.T) {
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = readHeadText(r)
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nabc")
	if resp, body := c.answer("POST"); resp.StatusCode != 413 || body != "big" || !resp.Close {
		t.Errorf("%v %q", resp, body)
	}
	c.ended()
}

func TestBothDirectionsStreamAtOnce(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.(http.Flusher).Flush()
		b := make([]byte, 1000)
		for {
			n, err := r.Body.Read(b)
			_, _ = w.Write(b[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	})
	p := startProxy(t, addr, nil)
	t.Run("in turns", func(t *testing.T) {
		pr, pw := io.Pipe()
		resp, err := httpClient(t).Do(newRequest(t, "POST", p.url(), pr))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		line := make([]byte, 5)
		for i := range 50 {
			fmt.Fprintf(pw, "%04d\n", i)
			if _, err := io.ReadFull(resp.Body, line); err != nil || string(line) != fmt.Sprintf("%04d\n", i) {
				t.Fatalf("echo %d: %q %v", i, line, err)
			}
		}
		pw.Close()
		if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
			t.Errorf("%q %v", rest, err)
		}
	})
	t.Run("a mebibyte each way", func(t *testing.T) {
		data := make([]byte, 1<<20)
		_, _ = rand.Read(data)
		resp, err := httpClient(t).Do(newRequest(t, "POST", p.url(), onlyReader{bytes.NewReader(data)}))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		h := sha256.New()
		if _, err := io.Copy(h, resp.Body); err != nil {
			t.Fatal(err)
		}
		if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
			t.Error("the echo differs")
		}
	})
}

func TestUpgradeHandsBothConnectionsOver(t *testing.T) {
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		head, _ := readHeadText(r)
		if !strings.Contains(head, "Upgrade: websocket\r\n") || !strings.Contains(head, "Connection: Upgrade\r\n") {
			t.Errorf("the upstream got %q", head)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nwelcome")
		_, _ = io.Copy(c, r)
	})
	type pair struct{ client, upstream Handed }
	pairs := make(chan pair, 1)
	p := startProxy(t, addr, func(p *proxy) {
		p.handler = func(x *Exchange) {
			if x.Req.Upgrade() != "websocket" {
				t.Errorf("Upgrade is %q", x.Req.Upgrade())
			}
			up, err := p.take()
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := x.RoundTrip(up, time.Time{})
			if err != nil || resp.Status != 101 {
				t.Errorf("%v %v", resp, err)
				return
			}
			c, u, err := x.Upgraded(up)
			if err != nil {
				t.Error(err)
				return
			}
			pairs <- pair{c, u}
		}
	})
	c := dialRaw(t, p.addr())
	c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly ")
	if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v %v", resp, err)
	}
	got := <-pairs
	if err := p.served(1)[0]; !errors.Is(err, ErrUpgraded) {
		t.Errorf("Serve returned %v", err)
	}
	carried := make(chan struct{})
	p.l.Post(func() {
		p.l.Go(func() {
			up := p.l.Spawn(func() { carry(got.client, got.upstream.Conn) })
			carry(got.upstream, got.client.Conn)
			up.Wait()
			got.client.Conn.Close()
			got.upstream.Conn.Close()
			close(carried)
		})
	})
	c.send("bytes")
	_ = c.CloseWrite()
	if rest, err := io.ReadAll(c.r); string(rest) != "welcomeearly bytes" || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	<-carried
}

// carry copies what comes from one to the other, to the end.
func carry(from Handed, to loop.Stream) {
	_, _ = to.Write(from.Unread)
	_, _ = io.Copy(to, from.Conn)
	_ = to.CloseWrite()
}

func TestAnUpgradeMayBeDeclined(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "no") })
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	for range 2 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if _, body := c.answer("GET"); body != "no" {
			t.Errorf("%q", body)
		}
	}
}

func TestTLSOnBothSides(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	}))
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	p := startProxy(t, s.Listener.Addr().String(), func(p *proxy) {
		p.dial = func() (loop.Stream, error) {
			c, err := p.l.Dial(loop.Dialer{}, netip.MustParseAddrPort(p.upstream), time.Time{})
			if err != nil {
				return nil, err
			}
			tc := secure.Client(c, &tls.Config{RootCAs: roots, ServerName: "example.com"})
			return tc, tc.Handshake(time.Time{})
		}
		p.accepted = func(c loop.Stream) (loop.Stream, error) {
			tc := secure.Server(c.Socket(), nil, &tls.Config{Certificates: s.TLS.Certificates})
			return tc, tc.Handshake(time.Time{})
		}
	})
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	for _, size := range []int{0, 10, 1 << 10, 100 << 10, 1 << 20, 10} {
		data := bytes.Repeat([]byte("x"), size)
		for _, body := range []io.Reader{bytes.NewReader(data), onlyReader{bytes.NewReader(data)}} {
			if resp, got := do(t, c, newRequest(t, "POST", "https://"+p.addr(), body)); resp.StatusCode != 200 || got != string(data) {
				t.Fatalf("%d bytes: %d, %d bytes back", size, resp.StatusCode, len(got))
			}
		}
	}
	if p.dialsMade() != 1 {
		t.Errorf("%d dials", p.dialsMade())
	}
}
