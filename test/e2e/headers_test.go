package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func requestID(t *testing.T, m *httpMesh) {
	a := ask(t, m.front, "http://web:8001/")
	made := a.Header.Get("X-Request-ID")
	if s := seenBy(t, a); !uuid.MatchString(made) || s.Header.Get("X-Request-ID") != made || len(s.Header["X-Request-Id"]) != 1 {
		t.Errorf("returned %q, the app saw %q", made, s.Header["X-Request-Id"])
	}
	if again := ask(t, m.front, "http://web:8001/").Header.Get("X-Request-ID"); again == made {
		t.Error("two requests have the same id")
	}
	a = ask(t, m.front, "-H", "X-Request-ID: mine-1", "http://web:8001/")
	if s := seenBy(t, a); a.Header.Get("X-Request-ID") != "mine-1" || s.Header.Get("X-Request-ID") != "mine-1" {
		t.Errorf("sent mine-1, returned %q, the app saw %q", a.Header.Get("X-Request-ID"), s.Header.Get("X-Request-ID"))
	}
	if n := len(a.Header["X-Request-Id"]); n != 1 {
		t.Errorf("the id was returned %d times", n)
	}
}

func traceContext(t *testing.T, m *httpMesh) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	s := seenBy(t, ask(t, m.front, "-H", "traceparent: "+parent, "-H", "tracestate: a=1,b=2", "http://web:8001/"))
	if !strings.HasPrefix(s.Header.Get("traceparent"), parent[:36]) || s.Header.Get("tracestate") != "a=1,b=2" {
		t.Errorf("the app saw %q, %q", s.Header.Get("traceparent"), s.Header.Get("tracestate"))
	}
	if s := seenBy(t, ask(t, m.front, "http://web:8001/")); s.Header.Get("traceparent") != "" {
		t.Errorf("tracing is off and the app saw %q", s.Header.Get("traceparent"))
	}
	set(t, m.Mesh, `{"observability":{"tracing_enabled":true}}`)
	defer set(t, m.Mesh, `{"observability":{"tracing_enabled":false}}`)
	await(t, m.Mesh, "a trace to be begun", func() error {
		s := seenBy(t, ask(t, m.front, "http://web:8001/"))
		if p := s.Header.Get("traceparent"); !regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`).MatchString(p) {
			return fmt.Errorf("traceparent %q", p)
		}
		return nil
	})
}

func forged(t *testing.T, m *httpMesh) {
	for _, name := range []string{"X-Source-Service", "x-source-service", "X-SOURCE-service"} {
		s := seenBy(t, ask(t, m.front, "-H", name+": admin", "-H", "X-Source-Namespace: kube-system", "-H", "Connection: keep-alive, X-Source-Service", "http://web:8001/"))
		if got := s.Header["X-Source-Service"]; len(got) != 1 || got[0] != "frontend" {
			t.Errorf("%s: the app saw the source %q", name, got)
		}
		if got := s.Header["X-Source-Namespace"]; len(got) != 1 || got[0] != "default" {
			t.Errorf("%s: the app saw the namespace %q", name, got)
		}
	}
	// Not in trailers either, nor behind bytes that hide the request line.
	m.app.forget()
	req := "POST /forged HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\nX-Source-Service: admin\r\n\r\n"
	if _, err := raw(t.Context(), m.front, "web:8001", req); err != nil {
		t.Error(err)
	}
	for _, pieces := range [][]string{
		{"\r\nGET /forged HTTP/1.1\r\nHost: web\r\nX-Source-Service: admin\r\nConnection: close\r\n\r\n"},
		{"\r\n", "GET /forged HTTP/1.1\r\nHost: web\r\nX-Source-Service: admin\r\nConnection: close\r\n\r\n"},
		{"Z", "ZZ /forged HTTP/1.1\r\nHost: web\r\nX-Source-Service: admin\r\nConnection: close\r\n\r\n"},
		{"G", "E", "T /forged HTTP/1.1\r\nHost: web\r\nX-Source-Service: admin\r\nConnection: close\r\n\r\n"},
	} {
		_, _ = raw(t.Context(), m.front, "web:8001", pieces...) // refused or served: what arrived counts
	}
	m.app.mu.Lock()
	defer m.app.mu.Unlock()
	for _, s := range m.app.seen {
		if b, _ := json.Marshal(s); bytes.Contains(b, []byte("admin")) {
			t.Errorf("a forged source arrived: %s", b)
		}
	}
}

// http2IsRead: where HTTP/1.1 is declared, requests in HTTP/2 are read by the proxy, and
// reach the app in HTTP/1.1.
func http2IsRead(t *testing.T, m *httpMesh) {
	app := serve(t, m.web, "h2c", 8006, nil)
	defer app.stop()
	register(t, m.Mesh, m.web, "web", "web-h2c", 8006, "http")
	known(t, m.Mesh, m.front, "web", "web-h2c")
	defer deregister(t, m.Mesh, "web", "web-h2c")
	s := seenBy(t, ask(t, m.front, "--http2-prior-knowledge", "-H", "X-Source-Service: admin", "http://web:8006/"))
	if s.Proto != "HTTP/1.1" || s.Header.Get("X-Source-Service") != "frontend" {
		t.Errorf("HTTP/2 was carried past the proxy: the app saw %+v", s)
	}
	s = seenBy(t, ask(t, m.front, "--http2", "-H", "X-Source-Service: admin", "http://web:8006/"))
	if s.Proto != "HTTP/1.1" || s.Header.Get("Upgrade") != "" || s.Header.Get("Http2-Settings") != "" || s.Header.Get("X-Source-Service") != "frontend" {
		t.Errorf("an upgrade to HTTP/2 was passed on: the app saw %+v", s)
	}
	app.mu.Lock()
	defer app.mu.Unlock()
	for _, s := range app.seen {
		if s.Header.Get("X-Source-Service") == "admin" {
			t.Errorf("a forged source arrived: %+v", s)
		}
	}
}
