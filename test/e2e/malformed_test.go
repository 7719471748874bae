package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/test/meshlab"
)

// malformed are messages that two readers could understand differently, or not
// at all. None may reach an app.
var malformed = []struct{ name, text string }{
	{"two lengths", "POST /m HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"},
	{"length list", "POST /m HTTP/1.1\r\nHost: web\r\nContent-Length: 5, 6\r\n\r\nhello!"},
	{"length with chunked", "POST /m HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"negative length", "POST /m HTTP/1.1\r\nHost: web\r\nContent-Length: -5\r\n\r\nhello"},
	{"signed length", "POST /m HTTP/1.1\r\nHost: web\r\nContent-Length: +5\r\n\r\nhello"},
	{"hex length", "POST /m HTTP/1.1\r\nHost: web\r\nContent-Length: 0x5\r\n\r\nhello"},
	{"huge length", "POST /m HTTP/1.1\r\nHost: web\r\nContent-Length: 99999999999999999999\r\n\r\nhello"},
	{"bare LF", "GET /m HTTP/1.1\nHost: web\n\n"},
	{"bare LF in one line", "GET /m HTTP/1.1\r\nHost: web\nX: y\r\n\r\n"},
	{"bare CR", "GET /m HTTP/1.1\r\nHost: web\r\nX: a\rY: b\r\n\r\n"},
	{"folded line", "GET /m HTTP/1.1\r\nHost: web\r\nX: a\r\n b\r\n\r\n"},
	{"space before colon", "GET /m HTTP/1.1\r\nHost: web\r\nX : a\r\n\r\n"},
	{"space before the first field", "GET /m HTTP/1.1\r\n Host: web\r\n\r\n"},
	{"no colon", "GET /m HTTP/1.1\r\nHost: web\r\nnonsense\r\n\r\n"},
	{"empty name", "GET /m HTTP/1.1\r\nHost: web\r\n: a\r\n\r\n"},
	{"NUL in a value", "GET /m HTTP/1.1\r\nHost: web\r\nX: a\x00b\r\n\r\n"},
	{"no Host", "GET /m HTTP/1.1\r\nX: y\r\n\r\n"},
	{"two Hosts", "GET /m HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n"},
	{"chunked twice", "POST /m HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"},
	{"chunked not last", "POST /m HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"},
	{"nearly chunked", "POST /m HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
	{"chunked with a tab", "POST /m HTTP/1.1\r\nHost: web\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"},
	{"bad chunk size", "POST /m HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n"},
	{"signed chunk size", "POST /m HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n"},
	{"huge chunk size", "POST /m HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n"},
	{"chunk ends early", "POST /m HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n"},
	{"bare LF after a chunk size", "POST /m HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"},
	{"no target", "GET HTTP/1.1\r\nHost: web\r\n\r\n"},
	{"space in the target", "GET /m n HTTP/1.1\r\nHost: web\r\n\r\n"},
	{"control in the target", "GET /m\x01 HTTP/1.1\r\nHost: web\r\n\r\n"},
	{"bad Host", "GET /m HTTP/1.1\r\nHost: we b\r\n\r\n"},
}

func TestMalformedRequestsAreRefusedAndNeverReachTheApp(t *testing.T) {
	t.Parallel()
	m := newHTTPMesh(t)
	outside := bare(t, m.Mesh, "outside")
	virtual := curl(t, m.front, "-4", "-o", "/dev/null", "-w", "%{remote_ip}", "http://web:8001/") + ":8001"
	if !strings.HasPrefix(virtual, "240.240.") {
		t.Fatalf("web leads to %s", virtual)
	}
	rule := allMethods("*", "web")
	rule.SourceNamespace, rule.MTLSMode = "*", "permissive"
	if _, err := m.API.AddSecurityRule(t.Context(), rule); err != nil {
		t.Fatal(err)
	}
	await(t, m.Mesh, "plaintext to be taken", func() error {
		out, err := raw(t.Context(), outside, m.web.Join(8001), "GET /ok HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(out, "HTTP/1.1 200 ") {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
	for _, side := range []struct {
		name string
		from *meshlab.Node
		to   string
	}{{"outbound", m.front, virtual}, {"inbound", outside, m.web.Join(8001)}} {
		for _, c := range malformed {
			t.Run(side.name+"/"+strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
				m.app.forget()
				out, err := raw(t.Context(), side.from, side.to, c.text)
				if !strings.HasPrefix(out, "HTTP/1.1 400 ") || !strings.Contains(strings.ToLower(out), "connection: close") {
					t.Errorf("answered %q, %v", out, err)
				}
				if m.app.count() != 0 {
					t.Errorf("the app saw %q", m.app.targets())
				}
			})
		}
	}
	for _, side := range []struct {
		name string
		from *meshlab.Node
		to   string
	}{{"outbound", m.front, virtual}, {"inbound", outside, m.web.Join(8001)}} {
		t.Run(side.name+"/too_large", func(t *testing.T) {
			m.app.forget()
			big := "GET /m HTTP/1.1\r\nHost: web\r\nX: " + strings.Repeat("a", 70<<10) + "\r\n\r\n"
			if out, err := raw(t.Context(), side.from, side.to, big); !strings.HasPrefix(out, "HTTP/1.1 431 ") {
				t.Errorf("a large head: %.200q, %v", out, err)
			}
			long := "GET /" + strings.Repeat("a", 20<<10) + " HTTP/1.1\r\nHost: web\r\n\r\n"
			if out, err := raw(t.Context(), side.from, side.to, long); !strings.HasPrefix(out, "HTTP/1.1 414 ") {
				t.Errorf("a long target: %.200q, %v", out, err)
			}
			if m.app.count() != 0 {
				t.Errorf("the app saw %d requests", m.app.count())
			}
		})
	}
}

// What a request hides behind a good one is refused as well, and a good request
// before it is served.
func TestARequestSmuggledBehindAnotherIsRefused(t *testing.T) {
	t.Parallel()
	m := newHTTPMesh(t)
	out, err := raw(t.Context(), m.front, "web:8001", "GET /good HTTP/1.1\r\nHost: web\r\n\r\nGET /bad HTTP/1.1\r\nHost : web\r\n\r\n")
	if err != nil || strings.Count(out, "HTTP/1.1 ") != 2 || !strings.HasPrefix(out, "HTTP/1.1 200 ") || !strings.Contains(out, "HTTP/1.1 400 ") {
		t.Errorf("got %q, %v", out, err)
	}
	if got := m.app.targets(); len(got) != 1 || got[0] != "GET /good" {
		t.Errorf("the app saw %q", got)
	}
	if _, err := os.Stat(m.dir); err != nil {
		t.Error(err)
	}
}
