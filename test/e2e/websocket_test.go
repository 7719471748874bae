package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// webSocketPort is declared as kubernetes.io/ws.
const webSocketPort = 8765

// debianPython is the one that Debian's modules are for.
const debianPython = "/usr/bin/python3"

func script(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// webSocketClients are how to run the clients: without the path of a proxy, they
// know nothing of one.
func webSocketClients(t *testing.T) map[string][]string {
	return map[string][]string{
		"python": {debianPython, script(t, "websocket_client.py")},
		"node":   {"env", "NODE_PATH=/usr/share/nodejs", "node", script(t, "websocket_client.js")},
	}
}

func webSocketMessages(t *testing.T, m *programMesh) {
	for name, command := range webSocketClients(t) {
		m.fromBoth(t, name, func(t *testing.T, from *meshlab.Node, host string) {
			url := fmt.Sprintf("ws://%s:%d/", host, webSocketPort)
			out := output(t, from, command[0], append(command[1:], "messages", url)...)
			if !strings.HasPrefix(out, "good\n") {
				t.Errorf("%s", out)
			}
		})
	}
}

func curlUpgrade(t *testing.T, m *programMesh) {
	m.fromBoth(t, "curl", func(t *testing.T, from *meshlab.Node, host string) {
		// curl gets the 101 and then waits for a body, until its time is over.
		out, err := from.Output(t.Context(), "curl", "-sS", "-i", "-N", "--http1.1", "--max-time", "1", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket",
			"-H", "Sec-WebSocket-Version: 13", "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", fmt.Sprintf("http://%s:%d/", host, webSocketPort))
		if err == nil || !strings.HasPrefix(out, "HTTP/1.1 101 ") || !strings.Contains(out, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// webSocketDrain: a proxy that ends closes WebSockets as a server does that goes
// away, to both sides, and needs not cut them.
func webSocketDrain(t *testing.T, m *programMesh) {
	for _, c := range m.silent { // which would have to be cut
		_ = c.Close()
	}
	for _, who := range []*meshlab.Node{m.data, m.front} {
		t.Run("of "+who.Host.Name(), func(t *testing.T) {
			before := strings.Count(m.ws.Log(), "closed 1001")
			stay := map[string]*meshlab.Process{}
			clients := webSocketClients(t)
			for name, args := range map[string][]string{"python": {"stay"}, "node": {"stay"}, "busy": {"stream"}} {
				command := clients[name]
				if name == "busy" {
					command = clients["python"]
				}
				args = slices.Concat(command[1:], args, []string{fmt.Sprintf("ws://data:%d/", webSocketPort)})
				p, err := m.front.Start(t.Context(), "stay-"+name+"-"+who.Host.Name(), 0, command[0], args...)
				if err != nil {
					t.Fatal(err)
				}
				stay[name] = p
			}
			for name, p := range stay {
				await(t, m.Mesh, name+" to be connected", func() error { return printed(p, "ready") })
			}
			m.open(t, m.front, `direction="outbound",protocol="websocket"`, 3)
			m.open(t, m.data, `direction="inbound",protocol="websocket"`, 3)
			if err := who.Proxy.Stop(15 * time.Second); err != nil {
				t.Errorf("the proxy ended with %v", err)
			}
			for name, p := range stay {
				await(t, m.Mesh, name+" to be closed", func() error { return printed(p, "closed 1001 the proxy shuts down") })
			}
			await(t, m.Mesh, "the server to be told", func() error {
				if n := strings.Count(m.ws.Log(), "closed 1001") - before; n != 3 {
					return fmt.Errorf("%d of 3 were: %s", n, m.ws.Tail())
				}
				return nil
			})
			if log := who.Proxy.Log(); !strings.Contains(log, `"cut_inbound":0,"cut_outbound":0`) {
				t.Errorf("connections were cut: %s", who.Proxy.Tail())
			}
			if err := who.StartProxy(t.Context()); err != nil {
				t.Fatal(err)
			}
			m.ready(t)
		})
	}
}

func printed(p *meshlab.Process, text string) error {
	if !strings.Contains(p.Log(), text) {
		return errors.New(p.Tail())
	}
	return nil
}
