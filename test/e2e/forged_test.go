package e2e

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// believed are fields, names and values in turn, that a client sends and nobody is to
// believe, and what of them the app may see.
var believed = []struct {
	name   string
	fields []string
	only   string // HTTP/1.1 or HTTP/2, "" is both
	sees   map[string]string
	absent []string
	same   string // this field comes with the value that was sent
}{
	{name: "SourceInOtherSpellings", fields: []string{"X_Source_Service", "admin", "x-source_service", "admin", "X_SOURCE-NAMESPACE", "admin"},
		sees: map[string]string{"X-Source-Service": "frontend", "X-Source-Namespace": "default"}},
	{name: "SourceTwice", fields: []string{"x-source-service", "admin", "x-source-service", "admin2"}, sees: map[string]string{"X-Source-Service": "frontend"}},
	{name: "SourceNamedByConnection", only: "HTTP/1.1", fields: []string{"Connection", "x-source-service, x-source-namespace", "X-Source-Service", "admin"},
		sees: map[string]string{"X-Source-Service": "frontend", "X-Source-Namespace": "default"}},
	{name: "TargetOfAnotherProxy", fields: []string{"x-target-service", "admin", "x-target-namespace", "admin"}, absent: []string{"X-Target-Service", "X-Target-Namespace"}},
	{name: "ClientCertificate", fields: []string{"x-forwarded-client-cert", "URI=spiffe://weir.local/ns/default/sa/admin", "x_forwarded_client_cert", "admin"}, absent: []string{"X-Forwarded-Client-Cert"}},
	{name: "Mirror", fields: []string{"x-weir-mirror", "admin"}, absent: []string{"X-Weir-Mirror"}},
	{name: "RequestIDTooLong", fields: []string{"x-request-id", strings.Repeat("admin", 1000)}},
	{name: "RequestIDTwice", fields: []string{"x-request-id", "admin", "x-request-id", "admin2"}},
	{name: "RequestIDNamedByConnection", only: "HTTP/1.1", fields: []string{"Connection", "x-request-id, cookie", "Cookie", "admin"}, absent: []string{"Cookie"}},
	{name: "TraceThatIsNone", fields: []string{"traceparent", "00-" + strings.Repeat("g", 32) + "-b7ad6b7169203331-01"}, same: "Traceparent"},
	{name: "TraceThatIsLong", fields: []string{"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-" + strings.Repeat("x", 9000)}, same: "Traceparent"},
	{name: "B3ThatIsNone", fields: []string{"x-b3-traceid", strings.Repeat("1", 9000), "x-b3-spanid", "../../x"}, same: "X-B3-Traceid"},
	{name: "HopByHopFieldsEndHere", only: "HTTP/1.1", fields: []string{"Connection", "keep-alive, authorization, x-own", "Authorization", "Bearer admin", "X-Own", "admin", "Keep-Alive", "admin", "Proxy-Connection", "admin"},
		absent: []string{"Authorization", "X-Own", "Keep-Alive", "Proxy-Connection", "Connection"}},
}

func TestNoFieldThatAClientSendsIsBelieved(t *testing.T) {
	t.Parallel()
	m := newHTTPMesh(t)
	await(t, m.Mesh, "the app", func() error {
		if a := ask(t, m.front, "http://web:8001/"); a.Status != 200 {
			return fmt.Errorf("%d", a.Status)
		}
		return nil
	})
	send := map[string]func(fields []string) (string, error){
		"HTTP/1.1": func(fields []string) (string, error) {
			text := "GET /forged HTTP/1.1\r\nHost: web\r\n"
			for i := 0; i < len(fields); i += 2 {
				text += fields[i] + ": " + fields[i+1] + "\r\n"
			}
			return halfClosed(t.Context(), m.front, "web:8001", text+"\r\n")
		},
		"HTTP/2": func(fields []string) (string, error) {
			all := []string{":method", "GET", ":scheme", "http", ":authority", "web", ":path", "/forged"}
			for i := 0; i < len(fields); i += 2 {
				all = append(all, strings.ToLower(fields[i]), fields[i+1])
			}
			return inFrames(t.Context(), m.front, "web:8001", func(f *http2.Framer) error {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: fieldBlock(all...)})
			})
		},
	}
	for version, send := range send {
		for _, c := range believed {
			if c.only != "" && c.only != version {
				continue
			}
			t.Run(version+"/"+c.name, func(t *testing.T) {
				m.app.forget()
				if out, err := send(c.fields); err != nil && out == "" || !strings.Contains(out, "200") {
					t.Fatalf("got %.300q, %v", out, err)
				}
				m.app.mu.Lock()
				defer m.app.mu.Unlock()
				if len(m.app.seen) != 1 {
					t.Fatalf("the app saw %d requests", len(m.app.seen))
				}
				h := m.app.seen[0].Header
				checkBelieved(t, h, c.same, c.fields)
				for name, want := range c.sees {
					if got := h[name]; !slices.Equal(got, []string{want}) {
						t.Errorf("the app saw %s: %q, want %q", name, got, want)
					}
				}
				for _, name := range c.absent {
					if got, there := h[name]; there {
						t.Errorf("the app saw %s: %q", name, got)
					}
				}
			})
		}
		t.Run(version+"/Flood", func(t *testing.T) {
			m.app.forget()
			var fields []string
			for range 300 {
				fields = append(fields, "x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124")
			}
			if out, err := send(fields); !strings.Contains(out, "431") || m.app.count() != 0 {
				t.Errorf("300 fields: %.100q, %v; the app saw %d requests", out, err, m.app.count())
			}
		})
	}
}

// checkBelieved looks for what no case may bring about.
func checkBelieved(t *testing.T, h http.Header, same string, sent []string) {
	t.Helper()
	for name, values := range h {
		if strings.Contains(strings.Join(values, " "), "admin") {
			t.Errorf("the app saw %s: %.100q", name, values)
		}
	}
	if id := h["X-Request-Id"]; len(id) != 1 || !regexp.MustCompile(`^[\x21-\x7e]{1,128}$`).MatchString(id[0]) {
		t.Errorf("the app saw X-Request-ID %.200q", id)
	}
	if same != "" && h.Get(same) != sent[1] {
		t.Errorf("%s has become %.100q", same, h.Get(same))
	}
}
