package h2

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
)

// FuzzServerFrames sends bytes after the preface. Whatever they are, the connection ends
// when the client does, nothing of it is left, what it held was bounded, and others
// are served.
func FuzzServerFrames(f *testing.F) {
	call := func(ids ...uint32) (out []byte) {
		out = appendHeader(nil, 0, frameSettings, 0, 0)
		for _, id := range ids {
			c := grpcCall(20)
			number(c, id)
			out = append(out, c...)
		}
		return out
	}
	f.Add(call(1))
	f.Add(append(call(1, 3, 5), appendReset(nil, 3, Cancel)...))
	f.Add(append(call(1), appendWindowUpdate(nil, 1, 1<<20)...))
	f.Add(append(call(1), appendPing(nil, 0, make([]byte, 8))...))
	f.Add(append(call(1), appendGoAway(nil, 0, NoError, "bye")...))
	f.Add(appendSetting(appendHeader(nil, 6, frameSettings, 0, 0), settingWindow, 0))
	f.Add(append(call(), appendHeader(nil, 5, frameHeaders, 0xc, 1)...))
	f.Add(append(call(), "\x00\x00\x04\x01\x00\x00\x00\x00\x01\x83\x86\x84\x41\x00\x00\x03\x09\x04\x00\x00\x00\x01\x01\x61\x0f"...))
	up := frameUpstream(f)
	p := startProxy(f, up, func(p *proxy) { p.cfg = Config{MaxStreams: 8, StreamWindow: 16 << 10, MaxControl: 50, MaxResets: 20} })
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := net.Dial("tcp", p.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a guard, not a measure
		go func() {
			_, _ = io.WriteString(c, preface+string(data))
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		fr := http2.NewFramer(io.Discard, c)
		for {
			if _, err := fr.ReadFrame(); err != nil { // what comes is well framed, to the end
				if ne, ok := err.(net.Error); ok && ne.Timeout() {
					t.Fatal("the connection did not end")
				} else if _, ok := err.(http2.ConnectionError); ok {
					t.Fatalf("a malformed frame: %v", err)
				}
				break
			}
		}
		eventually(t, "the end of all requests", func() bool { return p.active() == 0 })
		on(p.l, func() {
			held := 0
			for _, k := range p.pool(up).links {
				held += k.streams.count + k.open
			}
			if held != 0 {
				t.Errorf("%d streams or places are left", held)
			}
		})
		client(t, p.addr()).serves(1)
	})
}

// frameUpstream answers every request.
func frameUpstream(t testing.TB) string {
	ln := listen(t)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go answerAll(c, grpcAnswer(20))
		}
	}()
	return ln.Addr().String()
}

// FuzzUpstreamFrames is the same from the other side: an upstream may say anything.
func FuzzUpstreamFrames(f *testing.F) {
	answer := grpcAnswer(20)
	number(answer, 1)
	f.Add(append(appendHeader(nil, 0, frameSettings, 0, 0), answer...))
	f.Add(append(appendHeader(nil, 0, frameSettings, 0, 0), appendReset(nil, 1, RefusedStream)...))
	f.Add(append(appendHeader(nil, 0, frameSettings, 0, 0), appendGoAway(nil, 0, NoError, "")...))
	f.Add(append(append(appendHeader(nil, 0, frameSettings, 0, 0), answer...), appendWindowUpdate(nil, 1, 5)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		up := rawUpstream(t, func(r *raw, n int) {
			_, _ = r.TCPConn.Write(data)
			_ = r.CloseWrite()
			_, _ = io.Copy(io.Discard, r.TCPConn)
		})
		p := startProxy(t, up, func(p *proxy) { p.cfg = Config{MaxStreams: 8, StreamWindow: 16 << 10} })
		c := client(t, p.addr())
		c.head(1, false, post()...)
		c.check(c.WriteData(1, true, []byte("body")))
		status, _, _ := c.answer(1)
		if status == "" || strings.HasPrefix(status, "goaway") {
			t.Errorf("the client got %q", status)
		}
		eventually(t, "the end of the request", func() bool { return p.active() == 0 })
	})
}

// FuzzRequestHead: what is accepted has nothing in it that a reader of HTTP/1.1 would
// take for the end of a field or a request, and is the same after it was encoded again.
func FuzzRequestHead(f *testing.F) {
	f.Add("GET", "http", "/", "a:80", "x", "y", "host", "a:80")
	f.Add("POST", "https", "/a?b", "", "host", "a", "content-length", "0")
	f.Add("OPTIONS", "http", "*", "a", "te", "trailers", "cookie", "a=b")
	f.Add("GET /\r\n", "http", "/ HTTP/1.1\r\n", "a\r\n", "x: y\r\nz", "1\r\n\r\nGET", "transfer-encoding", "chunked")
	f.Fuzz(func(t *testing.T, method, scheme, path, authority, n1, v1, n2, v2 string) {
		r, err := readHead(t, method, scheme, path, authority, n1, v1, n2, v2)
		if err != nil {
			return
		}
		for _, s := range append([]string{r.method, r.scheme, r.path, r.authority}, names1(r)...) {
			if s == "" || strings.ContainsAny(s, "\r\n\x00 \t:") && s != r.path && s != r.authority {
				t.Errorf("%q was accepted", s)
			}
		}
		if strings.ContainsAny(r.path+r.authority+r.method, "\r\n\x00 \t") || strings.Contains(r.path+r.authority, "#") || strings.ContainsAny(r.authority, "/@\\") || r.path[0] != '/' && r.path != "*" {
			t.Errorf("%q %q was accepted", r.path, r.authority)
		}
		for i := range r.fields {
			if v := r.fields[i].Value; strings.ContainsAny(v, "\r\n\x00") || strings.Trim(v, " \t") != v {
				t.Errorf("value %q was accepted", v)
			}
			switch r.fields[i].Name {
			case "connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection":
				t.Errorf("%s was accepted", r.fields[i].Name)
			}
		}
		again, err := readHead(t, r.method, r.scheme, r.path, r.authority, n1, v1, n2, v2)
		if err != nil || again.method != r.method || again.path != r.path || again.authority != r.authority || len(again.fields) != len(r.fields) {
			t.Errorf("%v: %+v became %+v", err, r, again)
		}
	})
}

func names1(r *request) (out []string) {
	for i := range r.fields {
		out = append(out, r.fields[i].Name)
	}
	return out
}

func readHead(t *testing.T, method, scheme, path, authority string, fields ...string) (*request, error) {
	pairs := []string{":method", method, ":scheme", scheme, ":path", path}
	if authority != "" {
		pairs = append(pairs, ":authority", authority)
	}
	pairs = append(pairs, fields...)
	var e hpack.Encoder
	out := e.Begin(nil)
	for i := 0; i < len(pairs); i += 2 {
		out = e.Field(out, &hpack.Field{Name: pairs[i], Value: pairs[i+1]})
	}
	d := hpack.Decoder{Classify: classify}
	r := new(request)
	r.reset()
	if err := d.Decode(&r.head, out, hpack.Limits{Size: 1 << 20, Fields: 100}); err != nil {
		t.Fatal(err)
	}
	if err := r.read(); err != nil {
		return nil, err
	}
	return r, nil
}
