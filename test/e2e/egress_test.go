package e2e

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
)

func portless(t *testing.T, m *tcpMesh) {
	for range 8 {
		ask(t, m.front, "http://data/").want(t, 200, "", "")
	}
	if m.app.count() != 8 {
		t.Errorf("the app saw %d of 8 requests", m.app.count())
	}
}

func egress(t *testing.T, m *tcpMesh) {
	s := seenBy(t, ask(t, m.front, "http://"+m.outside.Join(8080)+"/x"))
	for _, name := range []string{"X-Request-Id", "X-Source-Service", "X-Source-Namespace", "Traceparent"} {
		if s.Header.Get(name) != "" {
			t.Errorf("outside the mesh the app saw %s: %s", name, s.Header.Get(name))
		}
	}
	// Not even what is wrong is touched.
	odd := "GET /odd HTTP/1.1\r\nHost: a\r\nX-Own : 1\r\n\r\n"
	if out, err := echoedBy(t, m, odd); out != odd {
		t.Errorf("odd bytes came back as %q, %v", out, err)
	}
	out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "http://"+m.outside.Join(81)+"/")
	if err == nil || !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "refused") {
		t.Errorf("a closed port gave %q, %v", out, err)
	}
}

func echoedBy(t *testing.T, m *tcpMesh, text string) (string, error) {
	ln := echoServer(t, m.outside, 9009, "")
	defer func() { _ = ln.Close() }()
	return echoed(t.Context(), m.front, m.outside.Join(9009), text)
}

func egressDeny(t *testing.T, m *tcpMesh) {
	set(t, m.Mesh, `{"egress":"deny"}`)
	defer func() {
		set(t, m.Mesh, `{"egress":"allow"}`)
		await(t, m.Mesh, "egress to be allowed", func() error {
			_, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "http://"+m.outside.Join(8080)+"/")
			return err
		})
	}()
	await(t, m.Mesh, "egress to be denied", func() error {
		out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "http://"+m.outside.Join(8080)+"/")
		if err == nil || !strings.Contains(err.Error(), "reset") {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
	m.outsideApp.forget()
	c := dial(t, m.front, m.outside.Join(2525))
	_, _ = io.WriteString(c, "hello\r\n")
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a denied connection gave %d bytes, %v", n, err)
	}
	ask(t, m.front, "http://data:8001/").want(t, 200, "", "")
	if m.outsideApp.count() != 0 {
		t.Errorf("outside saw %q", m.outsideApp.targets())
	}
}

func hostLeads(t *testing.T, m *tcpMesh) {
	to := "http://" + m.outside.Join(8001) + "/led"
	s := seenBy(t, ask(t, m.front, "-H", "Host: data", to))
	if s.Header.Get("X-Source-Service") != "frontend" || s.Target != "/led" {
		t.Errorf("the app saw %+v", s)
	}
	if out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "-H", "Host: nobody", to); err == nil {
		t.Errorf("nothing listens there, and it gave %q", out)
	}
}
